//! Which sockets carry our mark, and who holds a port (sock_diag(7)).
//!
//! Guarantees: sees every UDP and TCP socket of this network namespace, of whatever user, and keeps
//! one of those that are alike: a download's connections, however many, are one. Trusts: the kernel. Needs CAP_NET_ADMIN: without it the kernel tells no marks, and nothing is found.

use std::{collections::BTreeSet, io, net::IpAddr};

use rustix::net::netlink::SOCK_DIAG;

use crate::{
    attribute::{self, Attributes, field, malformed},
    limits,
    mark::Marks,
    netlink::{self, Message, NLM_F_DUMP, Socket},
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

/// A socket, as far as it matters here (`struct inet_diag_msg` and its mark).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// UDP or TCP.
    pub protocol: Protocol,
    /// Local port; 0 when it has none.
    pub port: u16,
    /// Local address.
    pub address: IpAddr,
    /// Index of the interface that it is bound to; 0 when to none.
    pub ifindex: u32,
    /// Its owner.
    pub uid: u32,
    /// Whether a process holds it.
    pub held: bool,
    /// Its mark; 0 when it has none.
    pub mark: u32,
}

/// Every socket that carries a lease's mark. Those of a lease are of the family AF_INET, and only
/// the helper can mark any.
///
/// # Errors
/// What the kernel answered, or a time-out.
pub fn tagged(marks: Marks) -> io::Result<Vec<Found>> {
    let filter = with_our_tag(marks);
    let mut found = sockets(&[AF_INET], Protocol::Udp, ALL_STATES, 0, &filter)?;
    found.extend(sockets(&[AF_INET], Protocol::Tcp, ALL_STATES, 0, &filter)?);
    found.retain(|socket| marks.of_socket(socket.mark).is_some());
    Ok(found)
}

/// Who holds a port: every UDP socket that is bound to it, or every TCP socket that is bound to it
/// and is not a connection.
///
/// # Errors
/// What the kernel answered, or a time-out.
pub fn holders(protocol: Protocol, port: u16) -> io::Result<Vec<Found>> {
    let states = match protocol {
        Protocol::Udp => ALL_STATES,
        Protocol::Tcp => LISTENING,
    };
    sockets(&[AF_INET, AF_INET6], protocol, states, port, &[])
}

fn sockets(
    families: &[u8],
    protocol: Protocol,
    states: u32,
    port: u16,
    filter: &[u8],
) -> io::Result<Vec<Found>> {
    let mut socket = Socket::open(Some(SOCK_DIAG))?;
    let mut found = BTreeSet::new();
    for family in families {
        // struct inet_diag_req_v2; in it struct inet_diag_sockid, 48 bytes: the local port, and 0
        // for whatever else.
        let mut request = vec![*family, protocol.number(), 0, 0];
        request.extend(states.to_ne_bytes());
        request.extend(port.to_be_bytes());
        request.resize(56, 0);
        request.extend(filter);
        let request = Message { kind: SOCK_DIAG_BY_FAMILY, flags: NLM_F_DUMP, body: request };
        socket.exchange(&[request], &mut |answer| {
            found.insert(parse(protocol, &answer.body)?);
            if found.len() > limits::DUMP_MESSAGES { Err(netlink::too_many()) } else { Ok(()) }
        })?;
    }
    Ok(found.into_iter().collect())
}

/// A filter that the kernel applies: the mark is ours.
fn with_our_tag(marks: Marks) -> Vec<u8> {
    // struct inet_diag_bc_op: where to go on when it matches (the end: accepted), and when it does
    // not (beyond the end: rejected). Then struct inet_diag_markcond.
    let mut code = vec![INET_DIAG_BC_MARK_COND, 12];
    code.extend(16_u16.to_ne_bytes());
    code.extend(marks.tag().to_ne_bytes());
    code.extend(marks.mask().to_ne_bytes());
    attribute::bytes(INET_DIAG_REQ_BYTECODE, &code)
}

/// Reads one answer.
///
/// # Errors
/// `InvalidData`.
pub fn parse(protocol: Protocol, body: &[u8]) -> io::Result<Found> {
    let attributes = Attributes::read(body.get(72..).ok_or_else(malformed)?)?;
    let number = |at| field(body, at).map(u32::from_ne_bytes);
    Ok(Found {
        protocol,
        port: u16::from_be_bytes(field(body, 4)?),
        address: match field(body, 0)? {
            [AF_INET6] => field::<16>(body, 8)?.into(),
            [_] => field::<4>(body, 8)?.into(),
        },
        ifindex: number(40)?,
        uid: number(64)?,
        held: number(68)? != 0,
        mark: attributes.array(INET_DIAG_MARK)?.map_or(0, u32::from_ne_bytes),
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
        let expected = Found {
            protocol: Protocol::Udp,
            port: 69,
            address: IpAddr::from([192, 0, 2, 1]),
            ifindex: 3,
            uid: 1000,
            held: true,
            mark: 0x5a00_0009,
        };
        assert_eq!(parse(Protocol::Udp, &answer()).unwrap(), expected);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_cut_answer_is_refused_and_never_read_past_its_end() {
        let whole = answer();
        for length in (0..72).chain([whole.len().saturating_sub(1)]) {
            assert!(parse(Protocol::Udp, whole.get(..length).unwrap()).is_err(), "{length}");
        }
        let mut endless = whole;
        *endless.get_mut(72).unwrap() = 0;
        assert!(parse(Protocol::Udp, &endless).is_err());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_filter_is_one_condition_on_the_mark() {
        let expected = [16, 0, 1, 0, 10, 12, 16, 0, 0, 0, 0, 0x5a, 0, 0, 0, 0xff];
        assert_eq!(with_our_tag(Marks::default()), expected);
    }
}
