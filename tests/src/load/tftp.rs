//! A TFTP client with block size and window (RFC 1350, 2347, 2348, 7440).
//!
//! Guarantees: blocks are taken in order and once; after a gap the last good block is acknowledged
//! again, once, as RFC 7440 section 4 has it. A window costs one system call when it is there as a
//! whole. A silent server is asked again as often as firmware does it, and given up as soon. A machine
//! that takes its time before each ACK sleeps, and wakes within some 20 us of that time if the
//! processor is free.

use std::{
    io::{self, ErrorKind, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::sys::{
    prctl::set_timerslack,
    socket::{MsgFlags, MultiHeaders, recvmmsg},
};

use super::{Enough, Fetched};

/// Time-out and repetitions of EDK2 (`MTFTP4_DEFAULT_TIMEOUT`, `MTFTP4_DEFAULT_RETRY`).
/// Tests with a server that follows a script must not be hurried by a busy machine.
const TIME_OUT: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 3 });
const REPEATS: u32 = 5;
/// Octets of DATA's header.
const HEADER: usize = 4;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The machine's own address; 0.0.0.0 where it does not matter.
    pub from: Ipv4Addr,
    /// Port 69 of the server.
    pub server: SocketAddrV4,
    /// The file's name.
    pub file: &'a str,
    /// `blksize`, octets.
    pub block: u16,
    /// `windowsize`, blocks; 1 is not sent.
    pub window: u16,
    /// How long the machine sleeps before each ACK: what a wire, a network card and firmware that polls
    /// it add to a round trip.
    pub pause: Duration,
}

impl Request<'_> {
    fn packet(&self) -> Vec<u8> {
        let Self { file, block, window, .. } = self;
        let mut packet = [
            b"\0\x01",
            file.as_bytes(),
            b"\0octet\0blksize\0",
            block.to_string().as_bytes(),
            b"\0",
        ]
        .concat();
        if *window > 1 {
            packet.extend(format!("windowsize\0{window}\0").bytes());
        }
        packet
    }
}

/// A download that came to its end, or had enough: then the server waits for its next
/// acknowledgement, and is told to stop when this is dropped.
#[derive(Debug)]
pub struct Ended {
    /// What came.
    pub fetched: Fetched,
    waiting: Option<UdpSocket>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(socket) = &self.waiting {
            // A server that does not hear it gives up by itself.
            let _lost = socket.send(STOP);
        }
    }
}

/// ERROR 0: not an error of the server's.
const STOP: &[u8] = b"\0\x05\0\0enough\0";

/// Fetches a file, or the beginning of it.
///
/// # Errors
/// The server refuses, or is silent for too long.
pub fn fetch(
    request: &Request<'_>,
    enough: Enough,
    mut sink: impl FnMut(&[u8]),
) -> io::Result<Ended> {
    let socket = UdpSocket::bind((request.from, 0))?;
    socket.set_read_timeout(Some(TIME_OUT))?;
    if !request.pause.is_zero() {
        // Of this thread: by itself the kernel lets it sleep up to 50 us longer.
        set_timerslack(1)?;
    }
    let begun = Instant::now();
    let (answer, server) = first_answer(&socket, request)?;
    // The transfer's own port: nobody else is heard from here on.
    socket.connect(server)?;
    let mut state = State { block: 512, window: 1, last: 0, since: 0, gap: false, whole: false };
    let mut octets = 0;
    let mut step = if answer.starts_with(b"\0\x06") {
        state.agreed(&answer);
        Some(0)
    } else {
        state.receive(&answer, &mut |data| {
            octets += length(data);
            sink(data);
        })?
    };
    let most = usize::from(request.window.max(1));
    let mut headers = MultiHeaders::<()>::preallocate(most, None);
    let mut buffers = vec![vec![0_u8; usize::from(request.block).max(512) + HEADER]; most];
    let mut silent = 0;
    loop {
        if let Some(acknowledged) = step {
            if !request.pause.is_zero() {
                std::thread::sleep(request.pause);
            }
            socket.send(&ack(acknowledged))?;
        }
        if state.whole {
            break;
        }
        if octets >= enough.octets || begun.elapsed() >= enough.time {
            let fetched = Fetched { octets, time: begun.elapsed() };
            return Ok(Ended { fetched, waiting: Some(socket) });
        }
        let lengths = match receive(&socket, &mut headers, &mut buffers) {
            Ok(lengths) => lengths,
            Err(error) if error.kind() == ErrorKind::WouldBlock && silent < REPEATS => {
                silent += 1;
                step = Some(state.last);
                continue;
            }
            Err(error) => return Err(error),
        };
        silent = 0;
        step = None;
        for (buffer, count) in buffers.iter().zip(lengths) {
            let datagram = buffer.get(..count).unwrap_or(buffer);
            let due = state.receive(datagram, &mut |data| {
                octets += length(data);
                sink(data);
            })?;
            step = due.or(step);
        }
    }
    Ok(Ended { fetched: Fetched { octets, time: begun.elapsed() }, waiting: None })
}

/// What a server agrees to: block size and window, by its answer to the request.
///
/// # Errors
/// As [`fetch`].
pub fn agreement(request: &Request<'_>) -> io::Result<(usize, u16)> {
    let socket = UdpSocket::bind((request.from, 0))?;
    socket.set_read_timeout(Some(TIME_OUT))?;
    let (answer, server) = first_answer(&socket, request)?;
    socket.send_to(STOP, server)?;
    let mut state = State { block: 512, window: 1, last: 0, since: 0, gap: false, whole: false };
    state.agreed(&answer);
    Ok((state.block, state.window))
}

/// A machine that asks for a file, gets the first answer, and never says another word while the
/// socket lives.
///
/// # Errors
/// As [`fetch`].
pub fn stall(request: &Request<'_>) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((request.from, 0))?;
    socket.set_read_timeout(Some(TIME_OUT))?;
    first_answer(&socket, request)?;
    Ok(socket)
}

/// The request, until something comes back.
fn first_answer(socket: &UdpSocket, request: &Request<'_>) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..=REPEATS {
        socket.send_to(&request.packet(), request.server)?;
        match socket.recv_from(&mut buffer) {
            Ok((count, server)) => {
                buffer.truncate(count);
                return match buffer.as_slice() {
                    [0, 5, ..] => Err(refusal(&buffer)),
                    _ => Ok((buffer, server)),
                };
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// As many datagrams as are there, at least one: their lengths.
fn receive(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    buffers: &mut [Vec<u8>],
) -> io::Result<Vec<usize>> {
    let mut slices: Vec<_> =
        buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer.as_mut_slice())]).collect();
    let flags = MsgFlags::MSG_WAITFORONE;
    let received = recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), flags, None)?;
    Ok(received.map(|message| message.bytes).collect())
}

fn ack(block: u16) -> [u8; 4] {
    let [high, low] = block.to_be_bytes();
    [0, 4, high, low]
}

fn refusal(packet: &[u8]) -> io::Error {
    let text = packet.get(HEADER..).unwrap_or_default();
    io::Error::other(format!("the server refuses: {}", String::from_utf8_lossy(text)))
}

fn length(data: &[u8]) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

/// Where a transfer stands.
struct State {
    /// Octets of a full block, and blocks of a window, as agreed.
    block: usize,
    window: u16,
    /// The last block that came in order.
    last: u16,
    /// Blocks in order since the last ACK.
    since: u16,
    /// A gap was told of and is not closed yet.
    gap: bool,
    /// The last block of the file was taken.
    whole: bool,
}

impl State {
    /// What an OACK says.
    fn agreed(&mut self, packet: &[u8]) {
        let words: Vec<_> = packet
            .get(2..)
            .unwrap_or_default()
            .split(|octet| *octet == 0)
            .map(|word| String::from_utf8_lossy(word).to_ascii_lowercase())
            .collect();
        for pair in words.chunks(2) {
            match pair {
                [name, value] if name == "blksize" => {
                    self.block = value.parse().unwrap_or(self.block);
                }
                [name, value] if name == "windowsize" => {
                    self.window = value.parse().unwrap_or(self.window);
                }
                _ => {}
            }
        }
    }

    /// Takes one datagram; the block to acknowledge, if one is due.
    fn receive(&mut self, packet: &[u8], sink: &mut dyn FnMut(&[u8])) -> io::Result<Option<u16>> {
        let (number, data) = match packet {
            [0, 3, high, low, data @ ..] => (u16::from_be_bytes([*high, *low]), data),
            [0, 5, ..] => return Err(refusal(packet)),
            // The OACK again: its ACK was lost.
            [0, 6, ..] if self.last == 0 => return Ok(Some(0)),
            _ => return Ok(None),
        };
        let next = self.last.wrapping_add(1);
        if number == next {
            sink(data);
            self.last = next;
            self.gap = false;
            self.since += 1;
            self.whole = data.len() < self.block;
            if self.whole || self.since >= self.window {
                self.since = 0;
                return Ok(Some(next));
            }
        } else if number.wrapping_sub(next) < self.window && !self.gap {
            self.gap = true;
            self.since = 0;
            return Ok(Some(self.last));
        } else if number == self.last {
            // A window that came twice: its ACK was lost.
            self.since = 0;
            return Ok(Some(self.last));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says what it is told to, whatever it hears; and everything that it heard.
    fn scripted(says: Vec<Vec<Vec<u8>>>) -> (SocketAddrV4, std::thread::JoinHandle<Vec<Vec<u8>>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = socket.local_addr().unwrap() else { unreachable!() };
        let thread = std::thread::spawn(move || {
            let mut heard = Vec::new();
            let mut buffer = [0; 600];
            for packets in says {
                let (count, peer) = socket.recv_from(&mut buffer).unwrap();
                heard.push(buffer[..count].to_vec());
                for packet in packets {
                    socket.send_to(&packet, peer).unwrap();
                }
            }
            heard
        });
        (address, thread)
    }

    fn data(number: u8, octets: &[u8]) -> Vec<u8> {
        [&[0, 3, 0, number], octets].concat()
    }

    #[test]
    fn a_window_with_a_gap_is_acknowledged_up_to_the_gap_and_taken_once() {
        let oack = b"\0\x06blksize\x008\0windowsize\x003\0".to_vec();
        let (server, thread) = scripted(vec![
            vec![oack],
            vec![data(1, b"aaaaaaaa"), data(3, b"cccccccc")],
            vec![data(2, b"bbbbbbbb"), data(3, b"cccccccc"), data(4, b"dddddddd")],
            vec![data(4, b"dddddddd")],
            vec![data(5, b"e")],
            vec![],
        ]);
        let request = Request {
            from: Ipv4Addr::LOCALHOST,
            server,
            file: "f",
            block: 8,
            window: 3,
            pause: Duration::from_micros(1),
        };
        let mut got = Vec::new();
        let ended = fetch(&request, Enough::ALL, |octets| got.extend_from_slice(octets)).unwrap();
        assert_eq!(got, b"aaaaaaaabbbbbbbbccccccccdddddddde");
        assert_eq!(ended.fetched.octets, 33);
        assert_eq!(
            thread.join().unwrap(),
            [
                b"\0\x01f\0octet\0blksize\x008\0windowsize\x003\0".to_vec(),
                vec![0, 4, 0, 0],
                vec![0, 4, 0, 1],
                vec![0, 4, 0, 4],
                // Block 4 again shows that its ACK was lost; 5 is short.
                vec![0, 4, 0, 4],
                vec![0, 4, 0, 5],
            ]
        );
    }

    #[test]
    fn a_server_without_options_a_refusal_and_a_download_that_has_enough() {
        let block = [7; 512];
        let (server, thread) = scripted(vec![vec![data(1, &block)], vec![], vec![]]);
        let request = Request {
            from: Ipv4Addr::LOCALHOST,
            server,
            file: "f",
            block: 1428,
            window: 1,
            pause: Duration::ZERO,
        };
        let enough = Enough { octets: 512, time: Duration::MAX };
        assert_eq!(fetch(&request, enough, |_| {}).unwrap().fetched.octets, 512);
        assert_eq!(
            thread.join().unwrap().split_off(1),
            [vec![0, 4, 0, 1], b"\0\x05\0\0enough\0".to_vec()]
        );

        let (server, _thread) = scripted(vec![vec![b"\0\x05\0\x01not here\0".to_vec()]]);
        let error = fetch(&Request { server, ..request }, enough, |_| {}).unwrap_err();
        assert!(error.to_string().contains("not here"), "{error}");
    }
}
