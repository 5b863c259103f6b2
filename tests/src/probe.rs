//! Whether a port is open, seen from another namespace.
//!
//! Two views that cannot both be wrong: what the prober hears back ([`udp`], [`tcp`]: a firewall that
//! drops is silent, a host that lets the packet in answers even when nobody listens), and what the
//! holder of the socket receives ([`udp_arrives`], [`discover_arrives`]).

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
};

use crate::{
    LabError, Result,
    netns::{CROSSING, Netns},
};

/// What the prober hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The connection stands, or a datagram came back.
    Open,
    /// The host said no: the packet was let in and nobody listens, or the firewall rejects.
    Refused,
    /// Nothing: a firewall dropped it (or, for UDP, the holder of the port read it and kept quiet).
    Silent,
}

/// How long a holder waits for a datagram. Longer than [`CROSSING`]: here a late packet would pass
/// for one that was refused, on a machine that runs other tests at the same time.
const ARRIVAL: Duration = Duration::from_millis(600);

/// UDP and TCP ports beside ours, which must stay closed while ours are open.
pub const NEIGHBOURS: ([u16; 6], [u16; 4]) =
    ([66, 68, 70, 4010, 4012, 64172], [64171, 64173, 67, 69]);

/// Tries to connect.
pub fn tcp(from: &Netns, to: SocketAddr) -> Result<Answer> {
    let attempt = from.run(|| TcpStream::connect_timeout(&to, CROSSING))?;
    match attempt {
        Ok(_) => Ok(Answer::Open),
        Err(error) => {
            heard(&error).ok_or_else(|| LabError::of(format!("connecting to {to}"), error))
        }
    }
}

/// Sends one datagram from any port and listens for what comes back.
pub fn udp(from: &Netns, to: SocketAddr, payload: &[u8]) -> Result<Answer> {
    let what = || format!("probing UDP {to}");
    from.run(|| {
        let here: SocketAddr = match to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
        };
        let socket = UdpSocket::bind(here)?;
        socket.set_read_timeout(Some(CROSSING))?;
        // Connected, so that an ICMP error comes back as an error of this socket.
        socket.connect(to)?;
        socket.send(payload)?;
        let mut buffer = [0; 2048];
        let heard_back = loop {
            match socket.recv(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                heard_back => break heard_back,
            }
        };
        match heard_back {
            Ok(_) => Ok(Answer::Open),
            Err(error) => heard(&error).ok_or(error),
        }
    })?
    .map_err(|error| LabError::of(what(), error))
}

/// What an error of a connection attempt says about the port.
fn heard(error: &std::io::Error) -> Option<Answer> {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Some(Answer::Refused),
        // A rejecting firewall may also say "host unreachable" or "administratively prohibited".
        ErrorKind::HostUnreachable | ErrorKind::PermissionDenied => Some(Answer::Refused),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Some(Answer::Silent),
        _ => None,
    }
}

/// Whether a datagram to `to` arrives at `holder`, a socket bound to that port. What else arrives
/// meanwhile is read and dropped. The read time-out of the socket is changed.
pub fn udp_arrives(from: &Netns, to: SocketAddr, holder: &UdpSocket) -> Result<bool> {
    let mark = nonce();
    from.run(|| UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(&mark, to)))?
        .map_err(|error| LabError::of(format!("sending to {to}"), error))?;
    received(holder, &mark)
}

/// Whether a broadcast from a machine without an address (0.0.0.0:68 to 255.255.255.255:67) that is
/// sent out of `interface` of `from` arrives at `holder`.
pub fn discover_arrives(from: &Netns, interface: &str, holder: &UdpSocket) -> Result<bool> {
    let mark = nonce();
    broadcast(
        from,
        interface,
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
        &mark,
    )?;
    received(holder, &mark)
}

/// Sends one UDP datagram in an Ethernet broadcast frame, with any source address.
pub fn broadcast(
    from: &Netns,
    interface: &str,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &[u8],
) -> Result<()> {
    from.run(|| {
        let link = link_address(interface)?;
        let sender = link.addr().ok_or(ErrorKind::AddrNotAvailable)?;
        let frame = frame(sender, source, destination, payload)?;
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty())?;
        Ok(())
    })?
    .map_err(|error: std::io::Error| LabError::of(format!("broadcasting on {interface}"), error))
}

/// Index and hardware address of an interface of this thread's namespace.
fn link_address(interface: &str) -> std::io::Result<LinkAddr> {
    getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| ErrorKind::NotFound.into())
}

/// An Ethernet broadcast frame with one UDP datagram (RFC 894, 791, 768; UDP checksum 0: not used).
fn frame(
    sender: [u8; 6],
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &[u8],
) -> std::io::Result<Vec<u8>> {
    let too_long = |_| std::io::Error::from(ErrorKind::InvalidInput);
    let udp_length = u16::try_from(payload.len() + 8).map_err(too_long)?;
    let ip_length = u16::try_from(payload.len() + 28).map_err(too_long)?;
    let mut ip = Vec::with_capacity(20);
    ip.extend([0x45, 0]);
    ip.extend(ip_length.to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(source.ip().octets());
    ip.extend(destination.ip().octets());
    let checksum = internet_checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&checksum);

    let mut frame = vec![0xff; 6];
    frame.extend(sender);
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend(source.port().to_be_bytes());
    frame.extend(destination.port().to_be_bytes());
    frame.extend(udp_length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    Ok(frame)
}

/// RFC 1071, for an even number of octets.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Octets that no other probe of this process sends.
fn nonce() -> Vec<u8> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("probe {} {number}", std::process::id()).into_bytes()
}

/// Whether `expected` comes to `holder` in the time that a packet needs.
pub fn received(holder: &UdpSocket, expected: &[u8]) -> Result<bool> {
    let what = |error| LabError::of("reading the holder's socket", error);
    let end = Instant::now() + ARRIVAL;
    let mut buffer = [0; 2048];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        holder.set_read_timeout(Some(left.max(Duration::from_millis(1)))).map_err(what)?;
        match holder.recv(&mut buffer) {
            Ok(length) if buffer.get(..length) == Some(expected) => return Ok(true),
            Ok(_) => {}
            // A read with a time-out is not taken up again by itself when the process was stopped or
            // traced meanwhile (signal(7)).
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(what(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need_root;

    #[test]
    fn the_frame_is_what_the_standards_say() {
        let frame = frame(
            [2, 0, 0, 0, 0, 1],
            SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
            b"ab",
        )
        .unwrap();
        let expected: &[u8] = &[
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0, // Ethernet
            0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0x7a, 0xd0, 0, 0, 0, 0, 255, 255, 255,
            255, // IP
            0, 68, 0, 67, 0, 10, 0, 0, b'a', b'b', // UDP
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn an_open_port_a_closed_one_and_a_dropped_one_are_told_apart() {
        need_root!("ip", "nft");
        let host = Netns::new("host").unwrap();
        let prober = Netns::new("prober").unwrap();
        host.cable("eth0", &prober, "eth0").unwrap();
        host.address("eth0", "192.0.2.1/24").unwrap();
        prober.address("eth0", "192.0.2.2/24").unwrap();
        let to = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let echo = host.run(|| UdpSocket::bind("0.0.0.0:7").unwrap()).unwrap();
        let holder = echo.try_clone().unwrap();
        let _echo = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let (length, peer) = echo.recv_from(&mut buffer).unwrap();
            echo.send_to(&buffer[..length], peer).unwrap();
        });
        assert_eq!(udp(&prober, to(7), b"hello").unwrap(), Answer::Open);
        assert_eq!(udp(&prober, to(8), b"hello").unwrap(), Answer::Refused);
        assert!(udp_arrives(&prober, to(7), &holder).unwrap());
        assert!(!udp_arrives(&prober, to(8), &holder).unwrap());
        host.sh("nft 'table inet t { chain c { type filter hook input priority 0; udp dport { 7, 8 } drop; }; }'")
            .unwrap();
        assert_eq!(udp(&prober, to(7), b"hello").unwrap(), Answer::Silent);
        assert_eq!(udp(&prober, to(8), b"hello").unwrap(), Answer::Silent);
        assert!(!udp_arrives(&prober, to(7), &holder).unwrap());
    }
}
