//! The way from a transfer to its machine: a socket of its own, or the one of port 69 that all share.
//!
//! Guarantees: blocks leave in order and each as a datagram of its own. From a transfer's own socket
//! a window goes to the kernel at once, which cuts it into datagrams (UDP_SEGMENT, udp(7)) without
//! a copy before that; where kernel or device cannot, they go one by one, and so for the rest of the
//! transfer. From port 69 they always go one by one: the helper's guard lets nothing pass there that
//! is longer than a frame.

use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg},
};
use rustix::net::{RecvFlags, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

use super::{glance::Glance, session::Mail};
use crate::wire::tftp::{DATA_HEADER, data_header};

/// Most datagrams that a kernel makes of one (UDP_MAX_SEGMENTS before Linux 6.9, include/linux/udp.h).
const MAX_SEGMENTS: usize = 64;

/// Longest UDP payload over IPv4: 65535 octets less both headers.
const MAX_PAYLOAD: usize = 65_507;

/// How long a socket is waited for at once. So soon a transfer sees that its server has ended, or that
/// the machine asked again on port 69, while it hears nothing itself. As long as the shortest pause
/// before a retransmission, so that whoever hears something all the time never sets another.
const LOOK: Duration = Duration::from_millis(100);

/// The kernel takes none for waiting without end.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// A full send buffer is waited for so long: in milliseconds, as long as [`LOOK`].
const ROOM: u8 = 100;

/// What there is to do after [`Line::wait`].
pub(super) enum Wake {
    /// So many octets, and who sent them.
    Datagram(usize, SocketAddr),
    /// Port 69 passed something on.
    Mail(Mail),
    /// It was waited long enough, for now.
    Nothing,
    /// The socket cannot be read.
    Failed(io::Error),
    /// Port 69 is not served any more.
    Over,
}

/// See the top of the file.
pub(super) struct Line {
    socket: Arc<UdpSocket>,
    shared: bool,
    /// Whether the kernel is asked to cut windows.
    segments: bool,
    /// How long the socket waits, once it was told.
    patience: Option<Duration>,
    /// Before the socket waits.
    glance: Glance,
}

impl Line {
    /// A fresh port on the interface's address.
    pub fn open(address: Ipv4Addr, interface: &str) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        // Keeps a VPN's routes from taking the answers. Kernels before 5.7 want a privilege for it;
        // the address alone has to do there.
        let _ = socket.bind_device(Some(interface.as_bytes()));
        socket.bind(&SocketAddr::from((address, 0)).into())?;
        socket.set_write_timeout(Some(LOOK))?;
        let socket = Arc::new(socket.into());
        Ok(Self { socket, shared: false, segments: true, patience: None, glance: Glance::new() })
    }

    /// The socket of port 69. What comes back is read by whoever reads that.
    pub fn shared(socket: Arc<UdpSocket>) -> Self {
        Self { socket, shared: true, segments: false, patience: None, glance: Glance::new() }
    }

    /// Waits for what comes next, at most for `limit`.
    pub fn wait(&mut self, buffer: &mut [u8], mail: &Receiver<Mail>, limit: Duration) -> Wake {
        if self.shared {
            return match mail.recv_timeout(limit) {
                Ok(letter) => Wake::Mail(letter),
                Err(RecvTimeoutError::Timeout) => Wake::Nothing,
                Err(RecvTimeoutError::Disconnected) => Wake::Over,
            };
        }
        if let Some(wake) = letter(mail) {
            return wake;
        }
        match self.receive(buffer, limit.clamp(LEAST_WAIT, LOOK)) {
            Ok((count, sender)) => Wake::Datagram(count, sender),
            Err(error) => match error.kind() {
                // What was written meanwhile comes before what is done about silence.
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                    letter(mail).unwrap_or(Wake::Nothing)
                }
                _ => Wake::Failed(error),
            },
        }
    }

    fn receive(&mut self, buffer: &mut [u8], wait: Duration) -> io::Result<(usize, SocketAddr)> {
        let socket = &self.socket;
        if let Some(found) = self.glance.at(|| receive(socket, buffer, RecvFlags::DONTWAIT)) {
            return found;
        }
        if self.patience != Some(wait) {
            self.socket.set_read_timeout(Some(wait))?;
            self.patience = Some(wait);
        }
        receive(&self.socket, buffer, RecvFlags::empty())
    }

    /// Sends one datagram.
    pub fn send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        self.send_parts(&[IoSlice::new(packet)], &[], &SockaddrStorage::from(to))
    }

    /// Sends `count` blocks of `block` octets from number `first` on. `octets` is what they hold; the
    /// last block of a file may be short or empty.
    pub fn send_window(
        &mut self,
        first: u64,
        count: u16,
        block: usize,
        octets: &[u8],
        to: SocketAddr,
    ) -> io::Result<()> {
        let at_once = (MAX_PAYLOAD / (DATA_HEADER + block)).clamp(1, MAX_SEGMENTS);
        let mut rest = Blocks { first, count: usize::from(count), block, octets };
        while self.segments && rest.count > 1 {
            let (burst, after) = rest.split(at_once);
            if self.send_burst(&burst, to).is_err() {
                // Whatever the reason is: if it is none of segmentation's, it comes again below.
                self.segments = false;
                break;
            }
            rest = after;
        }
        while rest.count > 0 {
            let (one, after) = rest.split(1);
            self.send_burst(&one, to)?;
            rest = after;
        }
        Ok(())
    }

    fn send_burst(&self, burst: &Blocks<'_>, to: SocketAddr) -> io::Result<()> {
        let segment = u16::try_from(DATA_HEADER + burst.block).unwrap_or(u16::MAX);
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let control = if burst.count > 1 { &control[..] } else { &[] };
        let mut headers = [[0; DATA_HEADER]; MAX_SEGMENTS];
        let mut parts = [IoSlice::new(&[]); 2 * MAX_SEGMENTS];
        let parts = burst.parts(&mut headers, &mut parts);
        self.send_parts(parts, control, &to.into())
    }

    /// One call of the kernel. A device that takes nothing loses it, like any network.
    fn send_parts(
        &self,
        parts: &[IoSlice<'_>],
        control: &[ControlMessage<'_>],
        to: &SockaddrStorage,
    ) -> io::Result<()> {
        let flags = MsgFlags::empty();
        loop {
            match sendmsg(self.socket.as_raw_fd(), parts, control, flags, Some(to)) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                // The socket of port 69 is read by a task, and so does not wait by itself.
                Err(Errno::EAGAIN) => {
                    let mut room = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    if poll(&mut room, ROOM)? == 0 {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// So many octets, and who sent them.
fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, SocketAddr)> {
    let (_, count, sender) = recvfrom(socket, buffer, flags)?;
    let sender = sender.map(SocketAddr::try_from).transpose()?.ok_or(io::ErrorKind::InvalidData)?;
    Ok((count, sender))
}

/// What port 69 has passed on, without waiting for it.
fn letter(mail: &Receiver<Mail>) -> Option<Wake> {
    match mail.try_recv() {
        Ok(letter) => Some(Wake::Mail(letter)),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => Some(Wake::Over),
    }
}

/// Blocks that follow one another.
#[derive(Clone, Copy)]
struct Blocks<'a> {
    first: u64,
    count: usize,
    block: usize,
    octets: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// The first `most` blocks, and the others.
    fn split(self, most: usize) -> (Self, Self) {
        let count = self.count.min(most);
        let (octets, others) = self.octets.split_at((count * self.block).min(self.octets.len()));
        let number = u64::try_from(count).unwrap_or(u64::MAX);
        let first = self.first.saturating_add(number);
        (
            Self { count, octets, ..self },
            Self { first, count: self.count - count, octets: others, ..self },
        )
    }

    /// Header, payload, header, payload ... of at most [`MAX_SEGMENTS`] blocks.
    fn parts<'b>(
        &self,
        headers: &'b mut [[u8; DATA_HEADER]; MAX_SEGMENTS],
        parts: &'b mut [IoSlice<'b>; 2 * MAX_SEGMENTS],
    ) -> &'b [IoSlice<'b>]
    where
        'a: 'b,
    {
        for (header, number) in headers.iter_mut().zip(self.first..) {
            *header = data_header(number);
        }
        let payloads = self.octets.chunks(self.block).chain(std::iter::repeat(&[][..]));
        let blocks = headers.iter().zip(payloads).take(self.count);
        for (pair, (header, payload)) in parts.chunks_exact_mut(2).zip(blocks) {
            if let [first, second] = pair {
                *first = IoSlice::new(header);
                *second = IoSlice::new(payload);
            }
        }
        parts.get(..2 * self.count).unwrap_or(parts)
    }
}
