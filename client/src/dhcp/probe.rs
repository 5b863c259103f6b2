//! Looks for other DHCP servers, and for what servers offer to machines that boot, as an ordinary user can.
//!
//! A server answers a machine on port 68, which takes a privilege to hear. But it answers a relay on
//! port 67, where this program listens: so the question is sent as a relay's would be, by broadcast
//! from an ordinary socket, with our own address as `giaddr` (RFC 2131 section 4.1). dnsmasq, ISC
//! dhcpd, Kea and busybox's udhcpd answer it. A server that refuses relays is not found
//! so, and is noticed by the first machine that names it in a REQUEST.
//!
//! Servers for network boot answer in the same way, if the question has what firmware puts into it: so
//! `doctor` hears what a machine would be offered.
//!
//! Guarantees: an answer takes nothing: an offer that is not followed by a REQUEST lapses. Asks with
//! the interface's own hardware address, so that servers that know only some machines answer.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    time::Duration,
};

use portcullis_dbus::DHCP_PORT;
use socket2::{Domain, Socket, Type};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    offers::{Asker, Offer},
    server::answering_server,
};
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

/// Answers that are kept; EDK2 keeps 16.
const OFFERS: usize = 64;

/// Asks on one interface.
#[derive(Debug)]
pub struct Prober {
    socket: UdpSocket,
    xid: [u8; 4],
    mac: MacAddr,
    address: Ipv4Addr,
}

/// An offer, and who was offered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// In whose place it was asked for.
    pub asker: Asker,
    /// The offer.
    pub offer: Offer,
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
        Ok(Self { socket: socket.into(), xid, mac: hardware_address(interface), address })
    }

    /// Asks once for an address.
    ///
    /// # Errors
    /// The question could not be sent.
    pub fn ask(&self) -> io::Result<()> {
        self.send(&question(self.xid, self.mac, self.address, &[]))
    }

    fn send(&self, question: &[u8]) -> io::Result<()> {
        let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, DHCP_PORT);
        self.socket.send_to(question, everybody).map(drop)
    }

    /// Asks until a server answers to `dhcp`, the socket of port 67, or none does for five seconds.
    /// Machines that ask meanwhile are not heard, and ask again.
    ///
    /// # Errors
    /// The question could not be sent, or the socket fails.
    pub async fn look(&self, dhcp: &UdpSocket, ours: Ipv4Addr) -> io::Result<Option<Ipv4Addr>> {
        let server = |bytes: &[u8], _| answering_server(bytes).filter(|one| *one != ours);
        self.listen(dhcp, || self.ask(), server).await
    }

    /// Asks as machines that boot from the network do, for five seconds, and returns every different
    /// offer that came to `dhcp`, the socket of port 67.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub async fn offers(&self, dhcp: &UdpSocket) -> io::Result<Vec<Heard>> {
        let mut heard: Vec<Heard> = Vec::new();
        let ask = || {
            Asker::ALL.into_iter().try_for_each(|asker| {
                let options = as_firmware(asker);
                self.send(&question(self.xid_of(asker), self.mac, self.address, &options))
            })
        };
        let keep = |bytes: &[u8], source| -> Option<()> {
            let xid = bytes.get(4..8)?;
            let asker = Asker::ALL.into_iter().find(|asker| self.xid_of(*asker) == xid)?;
            let one = Heard { asker, offer: Offer::parse(bytes, source)? };
            if heard.len() < OFFERS && !heard.contains(&one) {
                heard.push(one);
            }
            None
        };
        self.listen(dhcp, ask, keep).await?;
        Ok(heard)
    }

    /// Each has a transaction of its own.
    fn xid_of(&self, asker: Asker) -> [u8; 4] {
        let [a, b, c, d] = self.xid;
        [a, b, c, d & 0xfc | asker as u8]
    }

    /// Asks at its times, and listens until `take` has what it wants or patience ends.
    async fn listen<T>(
        &self,
        dhcp: &UdpSocket,
        ask: impl Fn() -> io::Result<()>,
        mut take: impl FnMut(&[u8], Ipv4Addr) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let dhcp = tokio::net::UdpSocket::from_std(dhcp.try_clone()?)?;
        let begun = Instant::now();
        let mut times = ASKED.iter().map(|after| begun + *after).peekable();
        let mut datagram = [0; 2048];
        loop {
            tokio::select! {
                () = sleep_until(times.peek().copied().unwrap_or(begun)), if times.peek().is_some() => {
                    ask()?;
                    times.next();
                }
                received = timeout_at(begun + PATIENCE, dhcp.recv_from(&mut datagram)) => {
                    let Ok(received) = received else { return Ok(None) };
                    let (length, source) = received?;
                    let IpAddr::V4(source) = source.ip() else { continue };
                    if let Some(found) = take(datagram.get(..length).unwrap_or_default(), source) {
                        return Ok(Some(found));
                    }
                }
            }
        }
    }
}

/// A relayed DISCOVER, with these options after its type.
fn question(xid: [u8; 4], mac: MacAddr, relay: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut out = vec![BOOTREQUEST, 1, 6, 1];
    out.extend_from_slice(&xid);
    out.resize(24, 0);
    out.extend_from_slice(&relay.octets());
    out.extend_from_slice(&mac.0);
    out.resize(HEADER - COOKIE.len(), 0);
    out.extend_from_slice(&COOKIE);
    out.extend_from_slice(&[option::MESSAGE_TYPE, 1, message_type::DISCOVER]);
    out.extend_from_slice(options);
    out.push(option::END);
    if out.len() < MIN {
        out.resize(MIN, option::PAD);
    }
    out
}

/// What firmware puts into its DISCOVER (RFC 4578, RFC 5970): who it is, and what it wants to know.
fn as_firmware(asker: Asker) -> Vec<u8> {
    let (class, arch) = asker.class();
    let mut out = vec![option::VENDOR_CLASS, u8::try_from(class.len()).unwrap_or_default()];
    out.extend_from_slice(class);
    out.extend_from_slice(&[option::ARCHITECTURE, 2]);
    out.extend_from_slice(&arch.to_be_bytes());
    // Its network interface: UNDI 3.16; its identifier: type 0, all zero.
    out.extend_from_slice(&[94, 3, 1, 3, 16, option::MACHINE_ID, 17]);
    out.extend_from_slice(&[0; 17]);
    let wanted = [
        option::SUBNET_MASK,
        option::ROUTER,
        option::DNS,
        option::VENDOR,
        option::SERVER_ID,
        option::VENDOR_CLASS,
        66,
        option::BOOT_FILE,
        option::MACHINE_ID,
    ];
    out.extend_from_slice(&[55, u8::try_from(wanted.len()).unwrap_or_default()]);
    out.extend_from_slice(&wanted);
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
        let relay = Ipv4Addr::new(10, 77, 0, 1);
        let bytes = question([0xde, 0xad, 0xbe, 0xef], mac, relay, &[]);
        // One hop, and our address as giaddr.
        let mut expected = vec![1, 1, 6, 1, 0xde, 0xad, 0xbe, 0xef];
        expected.extend([0; 16]);
        expected.extend([10, 77, 0, 1, 2, 0, 0, 0, 0, 7]);
        expected.resize(236, 0);
        expected.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
        expected.resize(300, 0);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_machines_question_octet_by_octet() {
        let mac = MacAddr([2, 0, 0, 0, 0, 7]);
        let relay = Ipv4Addr::new(10, 77, 0, 1);
        let bytes = question([1, 2, 3, 4], mac, relay, &as_firmware(Asker::Http));
        let mut expected = vec![53, 1, 1, 60, 33];
        expected.extend(b"HTTPClient:Arch:00016:UNDI:003016");
        expected.extend([93, 2, 0, 16, 94, 3, 1, 3, 16, 97, 17]);
        expected.extend([0; 17]);
        expected.extend([55, 9, 1, 3, 6, 43, 54, 60, 66, 67, 97, 255]);
        assert_eq!(bytes[240..], expected);
    }
}
