//! Looks for other DHCP servers, as an ordinary user can.
//!
//! A server answers a machine on port 68, which takes a privilege to hear. But it answers a relay on
//! port 67, where this program listens: so the question is sent as a relay's would be, by broadcast
//! from an ordinary socket, with our own address as `giaddr` (RFC 2131 section 4.1). dnsmasq, ISC
//! dhcpd, Kea and busybox's udhcpd answer it. A server that refuses relays is not found
//! so, and is noticed by the first machine that names it in a REQUEST.
//!
//! Guarantees: an answer takes nothing: an offer that is not followed by a REQUEST lapses. Asks with
//! the interface's own hardware address, so that servers that know only some machines answer.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    time::Duration,
};

use portcullis_dbus::DHCP_PORT;
use socket2::{Domain, Socket, Type};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::server::answering_server;
use crate::{
    mac::MacAddr,
    wire::{
        dhcp::{BOOTREQUEST, COOKIE, HEADER, message_type, option},
        dhcp_reply::MIN,
    },
};

/// When the question is asked, after the beginning: a link that has just come up may lose the first
/// ones.
const ASKED: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_millis(2500)];
/// How long answers are waited for. Measured: dnsmasq offers after 3 s, in which it pings the
/// address, udhcpd after 2 s, ISC dhcpd after 1 s, Kea at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks on one interface.
#[derive(Debug)]
pub struct Prober {
    socket: UdpSocket,
    question: Vec<u8>,
}

impl Prober {
    /// A socket for questions on `interface`, which has `address`. Nothing is sent yet.
    ///
    /// # Errors
    /// The system gives no such socket.
    pub fn new(interface: &str, address: Ipv4Addr) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), None)?;
        // Needs no privilege for a socket without a device (Linux 5.7).
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_broadcast(true)?;
        let mut xid = [0; 4];
        rustix::rand::getrandom(&mut xid, rustix::rand::GetRandomFlags::empty())?;
        let question = question(xid, hardware_address(interface), address);
        Ok(Self { socket: socket.into(), question })
    }

    /// Asks once.
    ///
    /// # Errors
    /// The question could not be sent.
    pub fn ask(&self) -> io::Result<()> {
        let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, DHCP_PORT);
        self.socket.send_to(&self.question, everybody).map(drop)
    }

    /// Asks until a server answers to `dhcp`, the socket of port 67, or none does for five seconds.
    /// Machines that ask meanwhile are not heard, and ask again.
    ///
    /// # Errors
    /// The question could not be sent, or the socket fails.
    pub async fn look(&self, dhcp: &UdpSocket, ours: Ipv4Addr) -> io::Result<Option<Ipv4Addr>> {
        let dhcp = tokio::net::UdpSocket::from_std(dhcp.try_clone()?)?;
        let begun = Instant::now();
        let mut times = ASKED.iter().map(|after| begun + *after).peekable();
        let mut datagram = [0; 2048];
        loop {
            tokio::select! {
                () = sleep_until(times.peek().copied().unwrap_or(begun)), if times.peek().is_some() => {
                    self.ask()?;
                    times.next();
                }
                received = timeout_at(begun + PATIENCE, dhcp.recv(&mut datagram)) => {
                    let Ok(received) = received else { return Ok(None) };
                    let bytes = datagram.get(..received?).unwrap_or_default();
                    if let Some(server) = answering_server(bytes).filter(|one| *one != ours) {
                        return Ok(Some(server));
                    }
                }
            }
        }
    }
}

/// A relayed DISCOVER.
fn question(xid: [u8; 4], mac: MacAddr, relay: Ipv4Addr) -> Vec<u8> {
    let mut out = vec![BOOTREQUEST, 1, 6, 1];
    out.extend_from_slice(&xid);
    out.resize(24, 0);
    out.extend_from_slice(&relay.octets());
    out.extend_from_slice(&mac.0);
    out.resize(HEADER - COOKIE.len(), 0);
    out.extend_from_slice(&COOKIE);
    out.extend_from_slice(&[option::MESSAGE_TYPE, 1, message_type::DISCOVER]);
    out.push(option::END);
    out.resize(MIN, option::PAD);
    out
}

/// The interface's own; zero if it has none.
fn hardware_address(interface: &str) -> MacAddr {
    let path = Path::new("/sys/class/net").join(interface).join("address");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(MacAddr([0; 6]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_octet_by_octet() {
        let mac = MacAddr([2, 0, 0, 0, 0, 7]);
        let bytes = question([0xde, 0xad, 0xbe, 0xef], mac, Ipv4Addr::new(10, 77, 0, 1));
        // One hop, and our address as giaddr.
        let mut expected = vec![1, 1, 6, 1, 0xde, 0xad, 0xbe, 0xef];
        expected.extend([0; 16]);
        expected.extend([10, 77, 0, 1, 2, 0, 0, 0, 0, 7]);
        expected.resize(236, 0);
        expected.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
        expected.resize(300, 0);
        assert_eq!(bytes, expected);
    }
}
