//! TFTP: first-stage loaders for firmware, the script beside them, and a Raspberry Pi's boot files,
//! read only.
//!
//! The data's way: datagram on port 69 -> `wire::tftp` -> `name` and admission -> one task per
//! machine (`session`) around a state machine (`transfer`).
//!
//! Guarantees: at most 256 transfers at once, each with bounded memory and time; ends every
//! transfer when its future is dropped. Never writes, never opens a file but the kernel's table of
//! neighbours.

mod line;
mod name;
mod session;
mod transfer;

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::{net::UdpSocket, sync::mpsc, task::JoinSet};

use crate::{
    admission::Admission,
    event::{Fact, Protocol, Role, Witness},
    image::{Blob, Generation, Loader, Loaders},
    ipxe,
    mac::MacAddr,
    rpi::{Folder, neighbour},
    source::{efi_program, text_blob},
    wire::tftp::{ErrorCode, MAX_REQUEST, Malformed, Packet, Request, error},
};
use name::Name;
use session::{Job, Mail};

/// Transfers at once: a lab that is switched on together, with a socket and at most 512 KiB each.
const MAX_TRANSFERS: usize = 256;

/// What waits for a session at once: a request, and where transfers share port 69, what is
/// acknowledged meanwhile. What is beyond that is lost, like a datagram.
const MAIL: usize = 16;

/// Where transfers are sent from.
#[derive(Clone, Debug)]
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
    /// What Raspberry Pis fetch.
    pub folder: Arc<Folder>,
    /// What is served, if it is the same for every machine: its EFI program is a file, too.
    pub image: Option<Arc<Generation>>,
}

/// Answers read requests on `socket` (bound to UDP port 69) until the future is dropped, which
/// ends every transfer.
///
/// A file is named `<mac>/<loader>` ([`crate::image::Loader::file_name`]) or
/// `<mac>/autoexec.ipxe`, whose text is [`crate::ipxe::autoexec`], or is one of the folder's
/// ([`Folder::find`]). A download is told to
/// `witness` once its first block was acknowledged, so that firmware that asks for the size first
/// and then again shows as one download; one that gets no answer at all shows as started and ended.
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
    let mut server = Server {
        socket: Arc::new(UdpSocket::from_std(socket)?),
        settings: Arc::new(settings),
        files,
        witness,
        admission,
        sessions: HashMap::new(),
        tasks: JoinSet::new(),
    };
    // One octet more than a request may have, so that a longer one is noticed.
    let mut buffer = [0; MAX_REQUEST + 1];
    loop {
        tokio::select! {
            received = server.socket.recv_from(&mut buffer) => {
                let (length, peer) = received?;
                server.datagram(buffer.get(..length).unwrap_or(&buffer), peer).await;
            }
            Some(_) = server.tasks.join_next() => {
                server.sessions.retain(|_, session| !session.is_closed());
            }
        }
    }
}

struct Server {
    socket: Arc<UdpSocket>,
    settings: Arc<Settings>,
    files: Arc<Loaders>,
    witness: Arc<dyn Witness>,
    admission: Arc<dyn Admission>,
    /// By the machine's address and port. A session whose receiver is closed has ended.
    sessions: HashMap<SocketAddr, mpsc::Sender<Mail>>,
    tasks: JoinSet<()>,
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
        let session = self.sessions.get(&peer).filter(|_| self.settings.single_port);
        // Full or ended: it is lost, as a datagram may be.
        session.is_some_and(|session| {
            !matches!(
                session.try_send(Mail::Datagram(datagram.to_vec())),
                Err(mpsc::error::TrySendError::Closed(_))
            )
        })
    }

    /// Hands the request to the machine's session, or says why not.
    fn read(&mut self, request: Request, peer: SocketAddr) -> Option<(ErrorCode, &'static str)> {
        let missing = Some((ErrorCode::NotFound, "no such file"));
        let (mac, loader) = match Name::parse(&request.file, &self.files) {
            Name::Loader(mac, loader) => (mac, Some(loader)),
            Name::Autoexec(Some(mac)) => (mac, None),
            Name::Autoexec(None) => return missing,
            Name::Unknown { mac, file } => {
                if let Some(blob) = self.settings.folder.find(&request.file) {
                    let blob = blob.clone();
                    let Some(mac) = mac.or_else(|| self.neighbour(peer)) else { return missing };
                    return self.begin(Job { request, mac, role: Role::Firmware, blob }, peer);
                }
                if let Some(mac) = mac {
                    self.not_found(mac, file);
                }
                return missing;
            }
        };
        let (role, blob) = match loader {
            Some(Loader::Image) => match self.image(mac) {
                Some(blob) => (Role::Efi, blob),
                None => {
                    self.not_found(mac, Loader::Image.file_name().into_owned());
                    return missing;
                }
            },
            Some(loader) => (Role::Loader, self.files.0.get(&loader)?.clone()),
            None => (Role::Autoexec, self.autoexec(mac)),
        };
        self.begin(Job { request, mac, role, blob }, peer)
    }

    /// Sends it, if this machine may have it.
    fn begin(&mut self, mut job: Job, peer: SocketAddr) -> Option<(ErrorCode, &'static str)> {
        if !self.admission.admitted(job.mac) {
            return Some((ErrorCode::NotFound, "no such file"));
        }
        if let Some(session) = self.sessions.get(&peer) {
            match session.try_send(Mail::Request(job)) {
                Err(mpsc::error::TrySendError::Closed(Mail::Request(back))) => job = back,
                // Full: the machine asks again.
                _ => return None,
            }
        } else if self.sessions.len() >= MAX_TRANSFERS {
            return Some((ErrorCode::Undefined, "busy, try again"));
        }
        let (sender, receiver) = mpsc::channel(MAIL);
        self.sessions.insert(peer, sender);
        self.tasks.spawn(session::run(
            Arc::clone(&self.settings),
            Arc::clone(&self.witness),
            peer,
            job,
            self.settings.single_port.then(|| Arc::clone(&self.socket)),
            receiver,
        ));
        None
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

    fn image(&self, mac: MacAddr) -> Option<Blob> {
        efi_program(self.settings.image.as_ref()?, &self.url(mac)).ok()
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
