//! A lab that is powered on at once: a DISCOVER of each machine, in the same instant.
//!
//! Guarantees: each machine has its own hardware address, in the message and in its frame, and its own
//! xid; an offer counts once, for the machine whose xid and hardware address it carries. Nothing is
//! asked twice. The buffer for the answers is large enough for all, whatever the kernel's limits:
//! what is lost is lost by the server.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, sendto, setsockopt, socket, sockopt,
};
use socket2::{Domain, Socket, Type};

use crate::{boot_client, probe};

/// For the answers of 1,000 machines and more.
const BUFFER: usize = 64 << 20;
/// What the machines of UEFI say (RFC 4578): architecture 7, UNDI 3.16.
const CLASS: &[u8] = b"PXEClient:Arch:00007:UNDI:003016";

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Machines that were offered something.
    pub answered: usize,
    /// From the first DISCOVER to the last of these offers.
    pub time: Duration,
    /// How long sending took.
    pub sending: Duration,
}

/// Hardware address of a machine.
fn mac(machine: u16) -> [u8; 6] {
    let [high, low] = machine.to_be_bytes();
    [2, 0, 0, 1, high, low]
}

fn xid(machine: u16) -> [u8; 4] {
    let [high, low] = machine.to_be_bytes();
    [0x5e, 0xed, high, low]
}

/// The question of a machine.
fn discover(machine: u16) -> Vec<u8> {
    let identity = [&[0_u8; 11][..], &mac(machine)].concat();
    let mut message = boot_client::message(
        mac(machine),
        &[
            (53, &[1]),
            (55, &[1, 3, 43, 54, 60, 66, 67, 97]),
            (60, CLASS),
            (93, &[0, 7]),
            (94, &[1, 3, 16]),
            (97, &identity),
        ],
    );
    if let Some(place) = message.get_mut(4..8) {
        place.copy_from_slice(&xid(machine));
    }
    message
}

/// The machine that an offer is for.
fn offered(message: &[u8]) -> Option<u16> {
    let machine = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    let fits = message.first() == Some(&2)
        && message.get(4..8)? == xid(machine)
        && message.get(28..34)? == mac(machine)
        && boot_client::option(message, 53) == Some(vec![2]);
    fits.then_some(machine)
}

/// Sends a DISCOVER for each of `machines` out of `interface` and collects the offers, until all are
/// there or nothing has come for `quiet`.
///
/// # Errors
/// A socket cannot be made or used.
pub fn storm(interface: &str, machines: u16, quiet: Duration) -> std::io::Result<Storm> {
    let ears = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    ears.bind_device(Some(interface.as_bytes()))?;
    ears.set_broadcast(true)?;
    // A process that another thread is starting holds the last storm's socket for a moment.
    ears.set_reuse_address(true)?;
    setsockopt(&ears, sockopt::RcvBufForce, &BUFFER)?;
    ears.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into())?;
    let ears = UdpSocket::from(ears);
    ears.set_read_timeout(Some(quiet))?;

    let link = probe::link_address(interface)?;
    let nobody = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    let frames = (0..machines)
        .map(|machine| probe::frame(mac(machine), nobody, everybody, &discover(machine)))
        .collect::<std::io::Result<Vec<_>>>()?;
    let mouth = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let begun = Instant::now();
    for frame in &frames {
        sendto(mouth.as_raw_fd(), frame, &link, MsgFlags::empty())?;
    }
    let sending = begun.elapsed();

    let mut seen = BTreeSet::new();
    let mut time = Duration::ZERO;
    let mut buffer = [0; 2048];
    while seen.len() < usize::from(machines) {
        match ears.recv(&mut buffer) {
            Ok(count) => {
                let machine = buffer.get(..count).and_then(offered);
                if machine.is_some_and(|machine| machine < machines && seen.insert(machine)) {
                    time = begun.elapsed();
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Storm { answered: seen.len(), time, sending })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_counts_for_the_machine_that_asked_alone() {
        let mut offer = discover(0x0102);
        assert_eq!(offer[4..8], [0x5e, 0xed, 1, 2]);
        assert_eq!(offer[28..34], [2, 0, 0, 1, 1, 2]);
        assert_eq!(offer[240..243], [53, 1, 1]);
        assert_eq!(offered(&offer), None, "a question is no offer");
        offer[0] = 2;
        offer[242] = 2;
        assert_eq!(offered(&offer), Some(0x0102));
        offer[33] = 3;
        assert_eq!(offered(&offer), None, "another machine's address");
    }
}
