//! Moves packets: socket -> `query` -> `decide` -> socket, with `server` beside them where addresses
//! are handed out, and tells the machines' book.
//!
//! Guarantees: every packet that waits is read before the task sleeps, so that a thousand machines
//! that ask at once are all answered (the runtime lets other tasks in between); a packet costs a constant amount of work; an answer leaves
//! from the address that it names; a source that takes its time about one machine keeps no other
//! waiting. Trusts the socket to be bound to one interface. Never ends because of one packet or one
//! answer that could not be sent.

use std::{
    fmt,
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use nix::{
    libc,
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg},
};
use tokio::{
    io::Interest,
    net::UdpSocket,
    time::{MissedTickBehavior, interval},
};

use super::{
    ask::Ask,
    choice::boot_data,
    decide::{Decision, Ignore, admit, decide, fits, leave, local_disk, screen},
    probe::Prober,
    query::{NotBootClient, Port, Query},
    server::{Answer, Server, Verdict, answering_server},
};
use crate::{
    event::{Fact, Ignored, Witness},
    image::Generation,
    mac::MacAddr,
    machines::{Machines, Needs},
    source::{self, Source},
    wire::{
        dhcp::message_type,
        dhcp_reply::{self, Kind},
        udp,
    },
};

/// Questions that wait for the source: as many as machines are remembered. A machine that is not
/// heard then asks again.
const WAITING: usize = 4096;

/// How often other DHCP servers are looked for while addresses are handed out: one may be plugged in
/// later.
const LOOK: Duration = Duration::from_secs(30);

/// Room for one datagram: more than any MTU that DHCP travels on.
const DATAGRAM: usize = 2048;

/// Something that happened to a packet, for `--debug`.
#[derive(Debug)]
pub struct Note {
    /// Where the packet came from.
    pub from: SocketAddrV4,
    /// The machine, if it said which.
    pub mac: Option<MacAddr>,
    /// What happened.
    pub what: What,
}

/// See [`Note`].
#[derive(Debug)]
pub enum What {
    /// Not a boot client: no answer.
    NotBootClient(NotBootClient),
    /// A boot client that gets no answer.
    Ignored(Ignore),
    /// Answered, to this address.
    Answered(SocketAddrV4),
    /// The answer could not be sent.
    NotSent(io::Error),
    /// It asks for an address, and all are taken.
    NoAddressLeft,
    /// Another DHCP server has appeared: from now on no addresses are handed out.
    Rival(Ipv4Addr),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DHCP from {}", self.from)?;
        if let Some(mac) = self.mac {
            write!(f, " ({mac})")?;
        }
        match &self.what {
            What::NotBootClient(reason) => write!(f, ": ignored, {reason}"),
            What::Ignored(reason) => write!(f, ": ignored, {reason}"),
            What::Answered(destination) => write!(f, ": answered to {destination}"),
            What::NotSent(error) => write!(f, ": the answer could not be sent: {error}"),
            What::NoAddressLeft => write!(f, ": ignored, no address is left"),
            What::Rival(server) => write!(f, ": the DHCP server {server} is there, too"),
        }
    }
}

/// Hands out addresses beside boot information, as long as nobody else does.
#[derive(Debug)]
pub struct Authority {
    server: Mutex<Server>,
    prober: Prober,
    begun: Instant,
}

impl Authority {
    /// An authority that begins now: that no other one answers was seen before.
    #[must_use]
    pub fn new(server: Server, prober: Prober) -> Self {
        Self { server: Mutex::new(server), prober, begun: Instant::now() }
    }

    /// How many machines can have an address at a time.
    #[must_use]
    pub fn size(&self) -> usize {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).size()
    }

    fn hear(&self, ask: &Ask) -> Verdict {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.server.lock().unwrap_or_else(PoisonError::into_inner).hear(now, ask)
    }

    /// A datagram that is no client's. The other server, if that is news.
    fn rival(&self, datagram: &[u8]) -> Option<Ipv4Addr> {
        let found = answering_server(datagram)?;
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.rival_answers(found).then_some(found)
    }
}

/// Serves UDP 67 until a socket fails; the error is why. The socket is bound to the wildcard
/// address and to one interface; where it is a raw one, which gives whole IPv4 packets and cannot send,
/// `answers` is what sends. Called within a tokio runtime.
pub async fn serve_dhcp(
    socket: std::net::UdpSocket,
    answers: Option<std::net::UdpSocket>,
    machines: Arc<Machines>,
    source: Arc<dyn Source>,
    authority: Option<Authority>,
    note: impl Fn(Note) + Send,
) -> io::Error {
    let port = |_| Port::Dhcp;
    serve((socket, answers), &machines, &*source, authority.as_ref(), port, note).await
}

/// Serves UDP 4011 until the socket fails; the error is why. The socket is bound to our address.
pub async fn serve_boot_server(
    socket: std::net::UdpSocket,
    machines: Arc<Machines>,
    source: Arc<dyn Source>,
    note: impl Fn(Note) + Send,
) -> io::Error {
    let port = |asker| Port::BootServer { asker };
    serve((socket, None), &machines, &*source, None, port, note).await
}

async fn serve(
    (socket, answers): (std::net::UdpSocket, Option<std::net::UdpSocket>),
    machines: &Machines,
    source: &dyn Source,
    authority: Option<&Authority>,
    port: impl Fn(SocketAddrV4) -> Port,
    note: impl Fn(Note) + Send,
) -> io::Error {
    let (hears, answers) = match (adopt(socket), answers.map(adopt).transpose()) {
        (Ok(hears), Ok(answers)) => (hears, answers),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    let is_raw = answers.is_some();
    let counter =
        &Counter { socket: answers.as_ref().unwrap_or(&hears), machines, source, authority };
    let mut datagram = [0; DATAGRAM];
    let mut waiting = FuturesUnordered::new();
    let mut looking = interval(LOOK);
    looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let received = tokio::select! {
            biased;
            Some(done) = waiting.next(), if !waiting.is_empty() => {
                note(done);
                continue;
            }
            received = hears.recv_from(&mut datagram) => received,
            _ = looking.tick(), if authority.is_some() => {
                if let Some(authority) = authority {
                    // Lost or not sent: the next one will do.
                    let _ = authority.prober.ask();
                }
                continue;
            }
        };
        let (length, from) = match received {
            Ok((length, SocketAddr::V4(from))) => (length, from),
            Ok((_, SocketAddr::V6(_))) => continue,
            Err(error) if passes(&error) => continue,
            Err(error) => return error,
        };
        let bytes = datagram.get(..length).unwrap_or_default();
        let (from, bytes) = match is_raw.then(|| udp::datagram(bytes)) {
            None => (from, bytes),
            Some(Some(found)) => found,
            // No datagram: nobody said anything.
            Some(None) => continue,
        };
        let what = match Query::parse(bytes) {
            Ok(query) => {
                if waiting.len() < WAITING {
                    let port = port(from);
                    waiting.push(async move {
                        let what = counter.boot_client(&query, port).await;
                        Note { from, mac: Some(query.ask.mac), what }
                    });
                }
                continue;
            }
            Err(reason) => match Ask::parse(bytes) {
                Some(ask) => counter.other_client(&ask, reason).await,
                None => match authority.and_then(|one| one.rival(bytes)) {
                    Some(rival) => What::Rival(rival),
                    None => What::NotBootClient(reason),
                },
            },
        };
        note(Note { from, mac: None, what });
    }
}

/// Where questions are answered, and by what.
struct Counter<'a> {
    socket: &'a UdpSocket,
    machines: &'a Machines,
    source: &'a dyn Source,
    authority: Option<&'a Authority>,
}

impl Counter<'_> {
    async fn boot_client(&self, query: &Query, port: Port) -> What {
        if let Some(authority) = self.authority {
            let ask = &query.ask;
            match authority.hear(ask) {
                Verdict::Answer(answer) => return self.address(Some(query), ask, &answer).await,
                Verdict::Exhausted => return self.exhausted(ask.mac),
                Verdict::Rival(server) => return What::Rival(server),
                // What is left is the business of a proxy.
                Verdict::Silence => {}
            }
        }
        let (mac, policy, memory) =
            (query.ask.mac, self.machines.policy(), self.machines.memory(query.ask.mac));
        if let (Port::Dhcp, message_type::REQUEST, Some(server)) =
            (port, query.ask.message_type, query.ask.server_id)
        {
            self.machines.fact(mac, Fact::Selected { server, address: query.ask.requested });
        }
        let screened = screen(query, port, policy, memory);
        if matches!(screened, Ok(()) | Err(Ignore::Machine(_))) && port == Port::Dhcp {
            self.seen(query);
        }
        // A source is not asked about machines that get nothing in any case.
        let decision = match screened {
            Ok(()) => match self.generation(query).await {
                Ok(generation) => decide(query, port, policy, memory, &generation),
                Err(reason) => Decision::Ignore(reason),
            },
            Err(reason) => leave(query, port, policy, memory, reason),
        };
        match decision {
            Decision::Reply { bytes, destination, fact } => {
                self.send(mac, &bytes, destination, [fact]).await
            }
            Decision::Ignore(reason) => {
                self.ignored(mac, &reason);
                What::Ignored(reason)
            }
        }
    }

    /// A DHCP client that does not boot: such as the system that was booted.
    async fn other_client(&self, ask: &Ask, reason: NotBootClient) -> What {
        let asks = [message_type::DISCOVER, message_type::REQUEST].contains(&ask.message_type);
        self.machines.heard(ask.mac, asks);
        match self.authority.map(|authority| authority.hear(ask)) {
            Some(Verdict::Answer(answer)) => self.address(None, ask, &answer).await,
            Some(Verdict::Exhausted) => self.exhausted(ask.mac),
            Some(Verdict::Rival(server)) => What::Rival(server),
            Some(Verdict::Silence) | None => What::NotBootClient(reason),
        }
    }

    /// Answers as a DHCP server, with what to boot if the machine is to boot.
    async fn address(&self, query: Option<&Query>, ask: &Ask, answer: &Answer) -> What {
        let mac = ask.mac;
        let boots = query.filter(|query| {
            matches!(query.ask.message_type, message_type::DISCOVER | message_type::REQUEST)
                && answer.kind != Kind::Nak
        });
        let mut facts = Vec::new();
        let mut boot = None;
        if let Some(query) = boots {
            let offers = answer.kind == Kind::Offer;
            if offers {
                self.seen(query);
            }
            match self.boot(query).await {
                Ok((data, form)) => {
                    let file = data.file.clone();
                    facts.extend(offers.then_some(Fact::Offered { form, file }));
                    boot = Some(data);
                }
                // It gets its address all the same, and goes on to its disk.
                Err(reason) => {
                    if offers {
                        self.ignored(mac, &reason);
                    }
                    if reason == Ignore::Machine(Ignored::AlreadyBooted) {
                        boot = local_disk(query, self.machines.memory(mac));
                    }
                }
            }
        }
        if let (Kind::Ack, Some(lease)) = (answer.kind, &answer.lease)
            && lease.seconds.is_some()
        {
            facts.push(Fact::Leased { address: lease.address });
        }
        match answer.emit(ask, self.machines.policy().address, boot) {
            Ok(bytes) => self.send(mac, &bytes, answer.destination, facts).await,
            Err(error) => What::Ignored(error.into()),
        }
    }

    async fn boot(
        &self,
        query: &Query,
    ) -> Result<(dhcp_reply::Boot, crate::event::OfferForm), Ignore> {
        let (policy, memory) = (self.machines.policy(), self.machines.memory(query.ask.mac));
        admit(query, policy, memory)?;
        let generation = self.generation(query).await?;
        boot_data(query, Port::Dhcp, policy, memory, &generation)
    }

    /// What the source has for a machine that asks.
    async fn generation(&self, query: &Query) -> Result<Arc<Generation>, Ignore> {
        self.source.meet(query.ask.mac, &|| query.traits());
        let generation = self.source.generation(query.ask.mac, source::Step::Discover).await;
        let generation =
            generation.map_err(|refusal| Ignore::Machine(Ignored::Source { reason: refusal.0 }))?;
        self.machines.needs(query.ask.mac, needs(&generation));
        self.machines.identify(query.ask.mac, query.identity());
        fits(query, self.machines.policy(), generation.machine)?;
        Ok(generation)
    }

    fn seen(&self, query: &Query) {
        let seen = Fact::Seen { arch: query.architecture(), firmware: query.firmware() };
        self.machines.fact(query.ask.mac, seen);
    }

    fn ignored(&self, mac: MacAddr, reason: &Ignore) {
        if let Ignore::Machine(ignored) = reason {
            self.machines.fact(mac, Fact::Ignored(ignored.clone()));
        }
    }

    fn exhausted(&self, mac: MacAddr) -> What {
        let reason = "every address of this network is taken".to_owned();
        self.machines.fact(mac, Fact::NotSent { reason });
        What::NoAddressLeft
    }

    async fn send(
        &self,
        mac: MacAddr,
        bytes: &[u8],
        destination: SocketAddrV4,
        facts: impl IntoIterator<Item = Fact>,
    ) -> What {
        match send(self.socket, self.machines, bytes, destination).await {
            Ok(()) => {
                for fact in facts {
                    self.machines.fact(mac, fact);
                }
                What::Answered(destination)
            }
            Err(error) => {
                let reason = error.to_string();
                self.machines.fact(mac, Fact::NotSent { reason });
                What::NotSent(error)
            }
        }
    }
}

fn needs(generation: &Generation) -> Needs {
    if generation.is_followed() {
        Needs::Images { initrds: generation.initrds.len() }
    } else {
        Needs::Script
    }
}

fn adopt(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    socket.set_broadcast(true)?;
    UdpSocket::from_std(socket)
}

/// Errors of receiving that say something about the network, not about the socket.
fn passes(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

/// Sends from our address also when the socket is bound to the wildcard one (ip(7), IP_PKTINFO).
/// The device stays the socket's own: the index is 0.
async fn send(
    socket: &UdpSocket,
    machines: &Machines,
    bytes: &[u8],
    destination: SocketAddrV4,
) -> io::Result<()> {
    let source = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from_ne_bytes(machines.policy().address.octets()),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let to = SockaddrIn::from(destination);
    socket
        .async_io(Interest::WRITABLE, || {
            let parts = [IoSlice::new(bytes)];
            let control = [ControlMessage::Ipv4PacketInfo(&source)];
            let flags = MsgFlags::empty();
            sendmsg(socket.as_raw_fd(), &parts, &control, flags, Some(&to))
                .map(|_| ())
                .map_err(io::Error::from)
        })
        .await
}
