//! TFTP: first-stage loaders for firmware, the script beside them, and a Raspberry Pi's boot files,
//! read only.
//!
//! The data's way: datagram on port 69 -> `wire::tftp` -> `name` and admission -> one thread per
//! machine (`session`, `line`, `glance`) around a state machine (`transfer`).
//!
//! Guarantees: at most 256 transfers at once, and 16 of one machine, each with bounded memory and
//! time; every transfer ends within a tenth of a second when the future is dropped, or at the end of
//! a read from the disk. Never writes, never opens a file but the
//! kernel's table of neighbours.

mod glance;
mod line;
pub mod name;
mod session;
pub mod transfer;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use tokio::{net::UdpSocket, runtime::Handle};

use crate::{
    admission::Admission,
    chain::Chain,
    event::{Fact, Protocol, Role, Witness},
    grub,
    image::{Blob, Loader, Loaders, Payload, menu_folder},
    ipxe,
    mac::MacAddr,
    rpi::{Folder, neighbour},
    source::{Source, text_blob},
    template::Machine,
    wire::tftp::{ErrorCode, MAX_REQUEST, Malformed, Packet, Request, error},
};
use name::Name;
use session::{File, Job, Mail, Peer};

/// Transfers at once: a lab that is switched on together, with a socket, a thread and at most
/// 256 KiB each.
const MAX_TRANSFERS: usize = 256;
/// Addresses of machines that are remembered: as many as machines are.
const ADDRESSES: usize = 4096;

/// Transfers of one machine at once. Firmware makes one after the other; what it gave up without a word
/// counts until it is given up here, too.
const MAX_PER_MACHINE: usize = 16;

/// What waits for a session at once: a request, and where transfers share port 69, what is
/// acknowledged meanwhile. What is beyond that is lost, like a datagram.
const MAIL: usize = 16;

/// Stack of a transfer's thread, octets. It takes memory only as far as it is used: some 10 KiB.
const STACK: usize = 256 * 1024;

/// Where transfers are sent from.
#[derive(Clone)]
pub struct Settings {
    /// The interface's address: every transfer's own socket is bound to it.
    pub address: Ipv4Addr,
    /// The interface's name: the sockets are bound to it where the kernel lets an ordinary user do
    /// so, and the routing table decides where it does not.
    pub interface: String,
    /// The interface's MTU, octets: limits the block size.
    pub mtu: u16,
    /// Transfers have no port of their own; all is sent from port 69 and received there, for networks
    /// where something between lets no other port pass.
    pub single_port: bool,
    /// URL of the folder that holds a folder for each machine, with its script.
    pub scripts: String,
    /// What is served: the EFI program of what is known without asking is a file, too.
    pub source: Arc<dyn Source>,
    /// What Raspberry Pis fetch.
    pub folder: Arc<Folder>,
    /// `--chain`: its files are beside the loaders, and GRUB finds its configuration, the kernel and
    /// the initrds of what is served there.
    pub chain: Option<Arc<Chain>>,
}

/// Answers read requests on `socket` (bound to UDP port 69) until the future is dropped, which
/// ends every transfer.
///
/// A file is named `<mac>/<loader>` ([`crate::image::Loader::file_name`]),
/// `<mac>/menu<N>/boot.efi`, the program of a menu's item, or `<mac>/autoexec.ipxe`, whose text is [`crate::ipxe::autoexec`]. With a [`Chain`] also `<mac>/` and
/// the name of one of its files, `kernel`, `initrd<N>`, or `grub.cfg` ([`crate::grub::config`]); the
/// last one in any folder, for GRUB asks by names of its own: it is then for the machine that fetched
/// something by its own name from the same address before. Or it is one of the folder's
/// ([`Folder::find`]). A download is told to
/// `witness` once its first block was acknowledged, so that firmware that asks for the size first
/// and then again shows as one download; or once the answer was sent several times in vain.
///
/// # Errors
/// The socket fails.
pub async fn serve_tftp(
    socket: std::net::UdpSocket,
    settings: Settings,
    files: Arc<Loaders>,
    witness: Arc<dyn Witness>,
    admission: Arc<dyn Admission>,
) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let shared = if settings.single_port { Some(Arc::new(socket.try_clone()?)) } else { None };
    let mut server = Server {
        socket: UdpSocket::from_std(socket)?,
        shared,
        settings: Arc::new(settings),
        files,
        witness,
        admission,
        sessions: Arc::default(),
        addresses: HashMap::new(),
    };
    // One octet more than a request may have, so that a longer one is noticed.
    let mut buffer = [0; MAX_REQUEST + 1];
    loop {
        let (length, peer) = server.socket.recv_from(&mut buffer).await?;
        server.datagram(buffer.get(..length).unwrap_or(&buffer), peer).await;
    }
}

/// See [`Server::chained`].
enum Chained {
    File(Role, File),
    /// Not there, and nothing to be told: who asks can do without.
    Optional,
    Unknown,
}

/// Who is being served, by address and port. A thread takes itself out, once nothing waits for it.
#[derive(Default)]
struct Sessions(Mutex<HashMap<SocketAddr, SyncSender<Mail>>>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, SyncSender<Mail>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request that came meanwhile; if there is none, no other comes.
    fn leave(&self, peer: SocketAddr, mail: &Receiver<Mail>) -> Option<Job> {
        let mut sessions = self.lock();
        let next = mail.try_iter().find_map(|letter| match letter {
            Mail::Request(job) => Some(job),
            Mail::Datagram(_) => None,
        });
        if next.is_none() {
            sessions.remove(&peer);
        }
        next
    }
}

struct Server {
    socket: UdpSocket,
    /// The same for those who wait in threads, if transfers have no port of their own.
    shared: Option<Arc<std::net::UdpSocket>>,
    settings: Arc<Settings>,
    files: Arc<Loaders>,
    witness: Arc<dyn Witness>,
    admission: Arc<dyn Admission>,
    sessions: Arc<Sessions>,
    /// Which machine has which address: kept for a [`Chain`] only.
    addresses: HashMap<IpAddr, MacAddr>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Each thread sees that nobody can write to it any more.
        self.sessions.lock().clear();
    }
}

impl Server {
    async fn datagram(&mut self, datagram: &[u8], peer: SocketAddr) {
        let refusal = match Packet::parse(datagram) {
            Ok(Packet::Ack(_) | Packet::Error { .. }) if self.pass_on(datagram, peer) => None,
            Ok(Packet::Read(request)) => self.read(request, peer),
            Ok(Packet::Write) => Some((ErrorCode::AccessViolation, "files are read only")),
            Ok(Packet::Ack(_)) => Some((ErrorCode::UnknownTransfer, "no such transfer")),
            // An ERROR is never answered, or two servers could answer each other for ever.
            Ok(Packet::Error { .. }) | Err(Malformed::Short) => None,
            Err(_) => Some((ErrorCode::IllegalOperation, "not a read request")),
        };
        if let Some((code, message)) = refusal {
            // A lost or refused ERROR is repaired by the machine's own time-out.
            let _ = self.socket.send_to(&error(code, message), peer).await;
        }
    }

    /// To the machine's transfer, if it has no port of its own.
    fn pass_on(&self, datagram: &[u8], peer: SocketAddr) -> bool {
        let sessions = self.sessions.lock();
        let Some(session) = sessions.get(&peer).filter(|_| self.settings.single_port) else {
            return false;
        };
        // Full: it is lost, as a datagram may be.
        let _lost = session.try_send(Mail::Datagram(datagram.to_vec()));
        true
    }

    /// Hands the request to the machine's session, or says why not.
    fn read(&mut self, request: Request, peer: SocketAddr) -> Option<(ErrorCode, &'static str)> {
        let missing = Some((ErrorCode::NotFound, "no such file"));
        let (mac, loader) = match Name::parse(&request.file, &self.files) {
            Name::Loader(mac, loader) => (mac, Some(loader)),
            Name::Item(mac, number) => {
                let Some(file) = self.item(mac, number) else {
                    let name = format!("{}/{}", menu_folder(number), Loader::Image.file_name());
                    self.not_found(mac, name);
                    return missing;
                };
                return self.begin(Job { request, mac, role: Role::Efi, file }, peer);
            }
            Name::Autoexec(Some(mac)) => (mac, None),
            Name::Autoexec(None) => return missing,
            Name::Unknown { mac, file } => {
                if let Some(blob) = self.settings.folder.find(&request.file) {
                    let file = File::Ready(blob.clone());
                    let Some(mac) = mac.or_else(|| self.neighbour(peer)) else { return missing };
                    return self.begin(Job { request, mac, role: Role::Firmware, file }, peer);
                }
                let mac = mac.or_else(|| self.addresses.get(&peer.ip()).copied());
                let Some(mac) = mac else {
                    return missing;
                };
                return match self.chained(mac, &request.file) {
                    Chained::File(role, file) => self.begin(Job { request, mac, role, file }, peer),
                    Chained::Optional => missing,
                    Chained::Unknown => {
                        self.not_found(mac, file);
                        missing
                    }
                };
            }
        };
        let (role, file) = match loader {
            Some(Loader::Image) => match self.image(mac) {
                Some(file) => (Role::Efi, file),
                None => {
                    self.not_found(mac, Loader::Image.file_name().into_owned());
                    return missing;
                }
            },
            Some(loader @ Loader::Whole(_)) => {
                (Role::Efi, File::Ready(self.files.0.get(&loader)?.clone()))
            }
            Some(loader) => (Role::Loader, File::Ready(self.files.0.get(&loader)?.clone())),
            None => (Role::Autoexec, File::Ready(self.autoexec(mac))),
        };
        self.begin(Job { request, mac, role, file }, peer)
    }

    /// Sends it, if this machine may have it.
    fn begin(&mut self, job: Job, peer: SocketAddr) -> Option<(ErrorCode, &'static str)> {
        if !self.admission.admitted(job.mac) {
            return Some((ErrorCode::NotFound, "no such file"));
        }
        if self.settings.chain.is_some() {
            if self.addresses.len() >= ADDRESSES {
                self.addresses.clear();
            }
            self.addresses.insert(peer.ip(), job.mac);
        }
        let busy = Some((ErrorCode::Undefined, "busy, try again"));
        let mut sessions = self.sessions.lock();
        if let Some(session) = sessions.get(&peer) {
            // Full: the machine asks again.
            return match session.try_send(Mail::Request(job)) {
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => None,
            };
        }
        let to_it = sessions.keys().filter(|other| other.ip() == peer.ip()).count();
        if sessions.len() >= MAX_TRANSFERS || to_it >= MAX_PER_MACHINE {
            return busy;
        }
        let (sender, mail) = sync_channel(MAIL);
        let machine = Peer {
            settings: Arc::clone(&self.settings),
            witness: Arc::clone(&self.witness),
            address: peer,
            shared: self.shared.clone(),
            runtime: Handle::current(),
        };
        let others = Arc::clone(&self.sessions);
        let run = move || {
            let mut next = Some(job);
            while let Some(job) = next {
                next = machine.serve(&job, &mail).or_else(|| others.leave(peer, &mail));
            }
        };
        match thread::Builder::new().name("tftp".into()).stack_size(STACK).spawn(run) {
            Ok(_) => {
                sessions.insert(peer, sender);
                None
            }
            // The system gives this user no more of them.
            Err(_) => busy,
        }
    }

    /// What a name means that is none of ours by itself.
    fn chained(&self, mac: MacAddr, name: &[u8]) -> Chained {
        let Some(chain) = &self.settings.chain else {
            return Chained::Unknown;
        };
        let Some(image) = self.settings.source.known(mac) else {
            return Chained::Unknown;
        };
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let (folder, last) = name.rsplit_once(['/', '\\']).unwrap_or(("", &name));
        if last == "grub.cfg" {
            let cmdline = image.cmdline.text(&self.machine(mac));
            let address = self.settings.address;
            return match grub::config(address, mac, image.initrds.len(), &cmdline) {
                Ok(text) => Chained::File(Role::Script, File::Ready(text_blob(last, text))),
                Err(_) => Chained::Unknown,
            };
        }
        let payload = match last.strip_prefix("initrd").map(str::parse) {
            Some(Ok(number)) => image.initrds.get(number).map(|file| (Role::Initrd(number), file)),
            _ if last == "kernel" => image.kernel.as_ref().map(|file| (Role::Kernel, file)),
            _ => None,
        };
        match (chain.file(last), payload) {
            (Some(blob), _) => Chained::File(Role::Loader, File::Ready(blob.clone())),
            (None, Some((role, Payload::Local(blob)))) => {
                Chained::File(role, File::Ready(blob.clone()))
            }
            _ if Chain::does_without(last) || folder.contains("grub") => Chained::Optional,
            _ => Chained::Unknown,
        }
    }

    /// Whose address this is, on this network.
    fn neighbour(&self, peer: SocketAddr) -> Option<MacAddr> {
        match peer {
            SocketAddr::V4(peer) => neighbour(*peer.ip(), &self.settings.interface),
            SocketAddr::V6(_) => None,
        }
    }

    /// Where HTTP has the machine's files.
    fn url(&self, mac: MacAddr) -> String {
        format!("{}/{}", self.settings.scripts, mac.hyphenated())
    }

    /// What texts that are each machine's own are made of.
    fn machine(&self, mac: MacAddr) -> Machine {
        Machine { url: self.url(mac), mac, identity: self.admission.identity(mac) }
    }

    fn image(&self, mac: MacAddr) -> Option<File> {
        let generation = self.settings.source.known(mac)?;
        generation.efi.as_ref().ok()?;
        Some(File::Image(generation, self.machine(mac)))
    }

    /// The program of a menu's item.
    fn item(&self, mac: MacAddr, number: usize) -> Option<File> {
        let menu = self.settings.source.known(mac)?;
        let generation = Arc::clone(&menu.menu.get(number)?.generation);
        generation.efi.as_ref().ok()?;
        let url = format!("{}/{}", self.url(mac), menu_folder(number));
        Some(File::Image(generation, Machine { url, ..self.machine(mac) }))
    }

    fn autoexec(&self, mac: MacAddr) -> Blob {
        let url = format!("{}/boot.ipxe", self.url(mac));
        text_blob("autoexec.ipxe", ipxe::autoexec(&url))
    }

    fn not_found(&self, mac: MacAddr, file: String) {
        if self.admission.admitted(mac) {
            let protocol = Protocol::Tftp;
            self.witness.fact(mac, Fact::NotFound { protocol, file });
        }
    }
}
