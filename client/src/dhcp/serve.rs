//! Moves packets: socket -> `query` -> `decide` -> socket, and tells the machines' book.
//!
//! Guarantees: every packet that waits is read before the task sleeps, so that a thousand machines
//! that ask at once are all answered (the runtime lets other tasks in between); a packet costs a constant amount of work; an answer leaves
//! from the address that it names; a source that takes its time about one machine keeps no other
//! waiting. Trusts the socket to be bound to one interface. Never ends because of one packet or one
//! answer that could not be sent.

use std::{
    fmt,
    io::{self, IoSlice},
    net::{SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::Arc,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use nix::{
    libc,
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg},
};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    decide::{Decision, Ignore, decide, fits, screen},
    query::{NotBootClient, Port, Query},
};
use crate::{
    event::{Fact, Ignored, Witness},
    image::Generation,
    mac::MacAddr,
    machines::{Machines, Needs},
    source::{self, Source},
};

/// Questions that wait for the source: as many as machines are remembered. A machine that is not
/// heard then asks again.
const WAITING: usize = 4096;

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
        }
    }
}

/// Serves UDP 67 until the socket fails; the error is why. The socket is bound to the wildcard
/// address and to one interface. Called within a tokio runtime.
pub async fn serve_dhcp(
    socket: std::net::UdpSocket,
    machines: Arc<Machines>,
    source: Arc<dyn Source>,
    note: impl Fn(Note) + Send,
) -> io::Error {
    let port = |_| Port::Dhcp;
    serve(socket, &machines, &*source, port, note).await
}

/// Serves UDP 4011 until the socket fails; the error is why. The socket is bound to our address.
pub async fn serve_boot_server(
    socket: std::net::UdpSocket,
    machines: Arc<Machines>,
    source: Arc<dyn Source>,
    note: impl Fn(Note) + Send,
) -> io::Error {
    let port = |asker| Port::BootServer { asker };
    serve(socket, &machines, &*source, port, note).await
}

async fn serve(
    socket: std::net::UdpSocket,
    machines: &Machines,
    source: &dyn Source,
    port: impl Fn(SocketAddrV4) -> Port,
    note: impl Fn(Note) + Send,
) -> io::Error {
    let socket = match adopt(socket) {
        Ok(socket) => socket,
        Err(error) => return error,
    };
    let mut datagram = [0; DATAGRAM];
    let mut waiting = FuturesUnordered::new();
    loop {
        let received = tokio::select! {
            biased;
            Some(done) = waiting.next(), if !waiting.is_empty() => {
                note(done);
                continue;
            }
            received = socket.recv_from(&mut datagram) => received,
        };
        let (length, from) = match received {
            Ok((length, SocketAddr::V4(from))) => (length, from),
            Ok((_, SocketAddr::V6(_))) => continue,
            Err(error) if passes(&error) => continue,
            Err(error) => return error,
        };
        let bytes = datagram.get(..length).unwrap_or_default();
        match Query::parse(bytes) {
            Ok(query) if waiting.len() < WAITING => {
                let (socket, port) = (&socket, port(from));
                waiting.push(async move {
                    let what = one(socket, machines, source, &query, port).await;
                    Note { from, mac: Some(query.mac), what }
                });
            }
            Ok(_) => {}
            Err(reason) => note(Note { from, mac: None, what: What::NotBootClient(reason) }),
        }
    }
}

async fn one(
    socket: &UdpSocket,
    machines: &Machines,
    source: &dyn Source,
    query: &Query,
    port: Port,
) -> What {
    let (mac, policy, memory) = (query.mac, machines.policy(), machines.memory(query.mac));
    let screened = screen(query, port, policy, memory);
    if matches!(screened, Ok(()) | Err(Ignore::Machine(_))) && port == Port::Dhcp {
        let firmware = query.firmware();
        machines.fact(mac, Fact::Seen { arch: query.architecture(), firmware });
    }
    // A source is not asked about machines that get nothing in any case.
    let decision = match screened {
        Ok(()) => match meet(source, query).await {
            Ok(generation) => {
                machines.needs(mac, needs(&generation));
                machines.identify(mac, query.identity());
                match fits(query, policy, generation.machine) {
                    Ok(()) => decide(query, port, policy, memory, &generation.efi),
                    Err(reason) => Decision::Ignore(reason),
                }
            }
            Err(refusal) => {
                Decision::Ignore(Ignore::Machine(Ignored::Source { reason: refusal.0 }))
            }
        },
        Err(reason) => Decision::Ignore(reason),
    };
    match decision {
        Decision::Reply { bytes, destination, fact } => {
            match send(socket, machines, &bytes, destination).await {
                Ok(()) => {
                    machines.fact(query.mac, fact);
                    What::Answered(destination)
                }
                Err(error) => {
                    let reason = error.to_string();
                    machines.fact(query.mac, Fact::NotSent { reason });
                    What::NotSent(error)
                }
            }
        }
        Decision::Ignore(reason) => {
            if let Ignore::Machine(ignored) = &reason {
                machines.fact(query.mac, Fact::Ignored(ignored.clone()));
            }
            What::Ignored(reason)
        }
    }
}

/// What the source has for a machine that asks.
async fn meet(source: &dyn Source, query: &Query) -> Result<Arc<Generation>, source::Refusal> {
    source.meet(query.mac, query.traits());
    source.generation(query.mac, source::Step::Discover).await
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
