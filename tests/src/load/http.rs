//! An HTTP client that lets the kernel throw away what it receives (`MSG_TRUNC`, tcp(7)), so that it
//! costs no copy.
//!
//! Guarantees: a download counts when exactly the announced octets have come. Never keeps a body.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Socket, Type};

use super::{Enough, Fetched};

/// Longest silence.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest head.
const HEAD: usize = 16 * 1024;
/// Most that one call throws away.
const STEP: usize = 1 << 20;

/// A download whose head was read and whose body waits.
#[derive(Debug)]
pub struct Waiting {
    stream: TcpStream,
    /// Octets that are still to come.
    left: u64,
    octets: u64,
    begun: Instant,
}

/// A connection from this address of the machine; 0.0.0.0 where it does not matter.
fn connect(from: Ipv4Addr, server: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&SocketAddr::from(server).into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Asks for `path` and reads the head of the answer.
///
/// # Errors
/// The connection fails, or the answer is not 200 with a length.
pub fn begin(from: Ipv4Addr, server: SocketAddrV4, path: &str) -> io::Result<Waiting> {
    let begun = Instant::now();
    let mut stream = connect(from, server)?;
    ask(&mut stream, "GET", path)?;
    let octets = head(&mut stream)?;
    Ok(Waiting { stream, left: octets, octets, begun })
}

impl Waiting {
    /// Throws the body away as it comes.
    ///
    /// # Errors
    /// The connection ends before the body does, or is silent for too long.
    pub fn finish(mut self, enough: Enough) -> io::Result<Fetched> {
        let mut nothing = vec![0; STEP];
        loop {
            let octets = self.octets - self.left;
            if self.left == 0 || octets >= enough.octets || self.begun.elapsed() >= enough.time {
                return Ok(Fetched { octets, time: self.begun.elapsed() });
            }
            let count = recv(self.stream.as_raw_fd(), &mut nothing, MsgFlags::MSG_TRUNC)?;
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.left = match self.left.checked_sub(count) {
                Some(left) if count > 0 => left,
                _ => return Err(ErrorKind::UnexpectedEof.into()),
            };
        }
    }
}

/// Fetches `path`.
///
/// # Errors
/// As [`begin`] and [`Waiting::finish`].
pub fn fetch(
    from: Ipv4Addr,
    server: SocketAddrV4,
    path: &str,
    enough: Enough,
) -> io::Result<Fetched> {
    begin(from, server, path)?.finish(enough)
}

/// `count` HEAD requests, one after the other on one connection.
///
/// # Errors
/// As [`begin`].
pub fn heads(from: Ipv4Addr, server: SocketAddrV4, path: &str, count: u32) -> io::Result<()> {
    let mut stream = connect(from, server)?;
    for _ in 0..count {
        ask(&mut stream, "HEAD", path)?;
        head(&mut stream)?;
    }
    Ok(())
}

fn ask(stream: &mut TcpStream, method: &str, path: &str) -> io::Result<()> {
    // One write, so that it is one packet.
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())
}

/// Reads up to the empty line and nothing after it; the announced length.
fn head(stream: &mut TcpStream) -> io::Result<u64> {
    let mut bytes = vec![0; HEAD];
    let end = loop {
        let seen = recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK)?;
        let end =
            bytes.get(..seen).and_then(|text| text.windows(4).position(|at| at == b"\r\n\r\n"));
        match end {
            Some(end) => break end + 4,
            None if seen == 0 || seen == HEAD => return Err(ErrorKind::InvalidData.into()),
            // The rest is on its way; a peek returns at once with what is there.
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    bytes.truncate(end);
    stream.read_exact(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|value| value.trim().parse().ok());
    match length {
        Some(length) if text.starts_with("http/1.1 200 ") => Ok(length),
        _ => Err(io::Error::other(format!("not a file with a length:\n{text}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answering(answer: &'static [u8]) -> SocketAddrV4 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 33];
            stream.read_exact(&mut question).unwrap();
            assert_eq!(&question, b"GET /file HTTP/1.1\r\nHost: lab\r\n\r\n".as_slice());
            stream.write_all(answer).unwrap();
        });
        address
    }

    #[test]
    fn a_body_counts_when_it_is_whole() {
        let whole = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(fetch(Ipv4Addr::LOCALHOST, whole, "/file", Enough::ALL).unwrap().octets, 5);
        let short = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello");
        let error = fetch(Ipv4Addr::LOCALHOST, short, "/file", Enough::ALL).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        let missing = answering(b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nhello");
        assert!(fetch(Ipv4Addr::LOCALHOST, missing, "/file", Enough::ALL).is_err());
    }
}
