//! Which sockets carry our mark, and who holds a port (sock_diag(7)).
//!
//! Guarantees: sees every UDP and TCP socket of this network namespace, of whatever user. Trusts:
//! the kernel. Needs CAP_NET_ADMIN: without it the kernel tells no marks, and nothing is found.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::{
    mark::{LeaseMark, Marks},
    netlink,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Attributes of answers and of requests (include/uapi/linux/inet_diag.h).
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_MARK_COND: u8 = 10;
/// All states, and for TCP those that keep a port from being listened on: LISTEN and, since
/// Linux 6.8, BOUND_INACTIVE.
const ALL_STATES: u32 = u32::MAX;
const LISTENING: u32 = (1 << 10) | (1 << 13);

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Tcp => 6,
        }
    }
}

/// A socket that carries a lease's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// The lease that it was made for.
    pub mark: LeaseMark,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// Local port; 0 when it has none.
    pub port: u16,
    /// Index of the interface that it is bound to; 0 when to none.
    pub ifindex: u32,
    /// Its owner.
    pub uid: u32,
    /// 0 when no process holds it any more.
    pub inode: u32,
    /// TCP state (include/net/tcp_states.h); 7 for a UDP socket that is not connected.
    pub state: u8,
}

/// A socket that holds a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Local address.
    pub address: IpAddr,
    /// Index of the interface that it is bound to; 0 when to none.
    pub ifindex: u32,
    /// Its owner.
    pub uid: u32,
    /// Its mark; 0 when it has none.
    pub mark: u32,
}

/// Every socket that carries a lease's mark. Those of a lease are of the family AF_INET, and only
/// the helper can mark any.
///
/// # Errors
/// What the kernel answered, or a time-out.
pub fn tagged(marks: Marks) -> io::Result<Vec<Tagged>> {
    let mut found = Vec::new();
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        for answer in sockets(&[AF_INET], protocol, ALL_STATES, 0, &with_our_tag(marks))? {
            if let Some(mark) = marks.of_socket(answer.mark) {
                found.push(Tagged {
                    mark,
                    protocol,
                    port: answer.port,
                    ifindex: answer.ifindex,
                    uid: answer.uid,
                    inode: answer.inode,
                    state: answer.state,
                });
            }
        }
    }
    Ok(found)
}

/// Who holds a port: every UDP socket that is bound to it, or every TCP socket that is bound to it
/// and is not a connection.
///
/// # Errors
/// What the kernel answered, or a time-out.
pub fn holders(protocol: Protocol, port: u16) -> io::Result<Vec<Holder>> {
    let states = match protocol {
        Protocol::Udp => ALL_STATES,
        Protocol::Tcp => LISTENING,
    };
    let answers = sockets(&[AF_INET, AF_INET6], protocol, states, port, &[])?;
    let holder = |answer: Answer| Holder {
        address: answer.address,
        ifindex: answer.ifindex,
        uid: answer.uid,
        mark: answer.mark,
    };
    Ok(answers.into_iter().map(holder).collect())
}

/// `struct inet_diag_msg` and its mark, as far as we read it.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// As in [`Tagged::state`].
    pub state: u8,
    /// As in [`Tagged::port`].
    pub port: u16,
    /// As in [`Holder::address`].
    pub address: IpAddr,
    /// As in [`Holder::ifindex`].
    pub ifindex: u32,
    /// As in [`Holder::uid`].
    pub uid: u32,
    /// As in [`Tagged::inode`].
    pub inode: u32,
    /// As in [`Holder::mark`].
    pub mark: u32,
}

fn sockets(
    families: &[u8],
    protocol: Protocol,
    states: u32,
    port: u16,
    filter: &[u8],
) -> io::Result<Vec<Answer>> {
    let mut socket = netlink::Socket::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in families {
        let request = request(*family, protocol, states, port, filter);
        for message in socket.dump(SOCK_DIAG_BY_FAMILY, &request)? {
            let answer = parse(&message.body);
            found.push(answer.ok_or(io::ErrorKind::InvalidData)?);
        }
    }
    Ok(found)
}

/// `struct inet_diag_req_v2`, then the attributes in `filter`.
fn request(family: u8, protocol: Protocol, states: u32, port: u16, filter: &[u8]) -> Vec<u8> {
    let mut bytes = vec![family, protocol.number(), 0, 0];
    bytes.extend(states.to_ne_bytes());
    // struct inet_diag_sockid, 48 bytes: the local port, and 0 for whatever else.
    bytes.extend(port.to_be_bytes());
    bytes.resize(56, 0);
    bytes.extend(filter);
    bytes
}

/// A filter that the kernel applies: the mark is ours.
fn with_our_tag(marks: Marks) -> Vec<u8> {
    // struct nlattr: 4 bytes and 12 bytes of code.
    let mut bytes = 16_u16.to_ne_bytes().to_vec();
    bytes.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    // struct inet_diag_bc_op: where to go on when it matches (the end: accepted), and when it does
    // not (beyond the end: rejected). Then struct inet_diag_markcond.
    bytes.extend([INET_DIAG_BC_MARK_COND, 12]);
    bytes.extend(16_u16.to_ne_bytes());
    bytes.extend(marks.tag().to_ne_bytes());
    bytes.extend(marks.mask().to_ne_bytes());
    bytes
}

/// Reads one answer; `None` when it is malformed.
#[must_use]
pub fn parse(body: &[u8]) -> Option<Answer> {
    let (fixed, mut attributes) = body.split_first_chunk::<72>()?;
    let word = |at: usize| -> Option<u32> {
        let (bytes, _) = fixed.get(at..)?.split_first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let (port, _) = fixed.get(4..)?.split_first_chunk::<2>()?;
    let address = fixed.get(8..)?;
    let address = if *fixed.first()? == AF_INET6 {
        IpAddr::from(Ipv6Addr::from(*address.first_chunk::<16>()?))
    } else {
        IpAddr::from(Ipv4Addr::from(*address.first_chunk::<4>()?))
    };
    let mut mark = 0;
    while let Some(([l0, l1, k0, k1], _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([*k0, *k1]) == INET_DIAG_MARK {
            mark = u32::from_ne_bytes(*value.first_chunk::<4>()?);
        }
        let next = length.checked_next_multiple_of(4)?;
        attributes = attributes.get(next..).unwrap_or_default();
    }
    Some(Answer {
        state: *fixed.get(1)?,
        port: u16::from_be_bytes(*port),
        address,
        ifindex: word(40)?,
        uid: word(64)?,
        inode: word(68)?,
        mark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel sends it: 192.0.2.1:69, interface 3, uid 1000, inode 0x1234, and two
    /// attributes, shutdown (8) and mark (15).
    #[cfg(target_endian = "little")]
    fn answer() -> Vec<u8> {
        let mut bytes = vec![2, 7, 0, 0, 0, 69, 0, 0, 192, 0, 2, 1];
        bytes.resize(40, 0);
        bytes.extend([3, 0, 0, 0]);
        bytes.resize(64, 0);
        bytes.extend([0xe8, 3, 0, 0, 0x34, 0x12, 0, 0]);
        bytes.extend([5, 0, 8, 0, 0, 0, 0, 0]);
        bytes.extend([8, 0, 15, 0, 9, 0, 0, 0x5a]);
        bytes
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn an_answer_is_read_with_its_mark() {
        let expected = Answer {
            state: 7,
            port: 69,
            address: IpAddr::from([192, 0, 2, 1]),
            ifindex: 3,
            uid: 1000,
            inode: 0x1234,
            mark: 0x5a00_0009,
        };
        assert_eq!(parse(&answer()), Some(expected));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_cut_answer_is_refused_and_never_read_past_its_end() {
        let whole = answer();
        for length in (0..72).chain([whole.len().saturating_sub(1)]) {
            assert_eq!(parse(whole.get(..length).unwrap()), None, "{length}");
        }
        let mut endless = whole;
        *endless.get_mut(72).unwrap() = 0;
        assert_eq!(parse(&endless), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_filter_is_one_condition_on_the_mark() {
        let expected = [16, 0, 1, 0, 10, 12, 16, 0, 0, 0, 0, 0x5a, 0, 0, 0, 0xff];
        assert_eq!(with_our_tag(Marks::default()), expected);
    }
}
