//! What the kernel says about an interface (rtnetlink(7)), in two questions and two message types.
//!
//! Guarantees: a malformed answer is an error; bounded in time and memory by `netlink.rs`. Trusts
//! the kernel. Never changes anything: only RTM_GET messages are built here.

use std::{io, net::Ipv4Addr};

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::{
    interface::{InterfaceName, Link, Master},
    netlink,
};

/// Looks an interface up by name; `None` when there is none.
///
/// # Errors
/// When the kernel does not answer, or not in the way that rtnetlink(7) says.
pub fn link(name: &InterfaceName) -> io::Result<Option<Link>> {
    let mut route = netlink::Socket::open(NETLINK_ROUTE)?;
    let mut by_name = vec![0; IFINFOMSG];
    put_attribute(&mut by_name, IFLA_IFNAME, &[name.as_str().as_bytes(), b"\0"].concat())?;
    let Some(seen) = get_link(&mut route, by_name)? else {
        return Ok(None);
    };
    let master = match seen.master {
        None => None,
        Some(index) => Some(Master { name: name_of(&mut route, index)?, kind: seen.slave_kind }),
    };
    Ok(Some(Link {
        index: seen.index,
        name: seen.name,
        up: seen.flags & IFF_UP != 0,
        loopback: seen.flags & IFF_LOOPBACK != 0,
        master,
        addresses: addresses(&mut route, seen.index)?,
    }))
}

/// One RTM_NEWLINK, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SeenLink {
    /// Its index.
    pub index: u32,
    /// IFF_UP and the like.
    pub flags: u32,
    /// Its name; not checked yet.
    pub name: String,
    /// Index of the bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// What that is; empty when it has none.
    pub slave_kind: String,
}

fn get_link(route: &mut netlink::Socket, body: Vec<u8>) -> io::Result<Option<SeenLink>> {
    let answers = match route.ask(RTM_GETLINK, body) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        answers => answers?,
    };
    let link = answers.iter().find(|answer| answer.kind == RTM_NEWLINK);
    link.map(|link| parse_link(&link.body).ok_or_else(malformed)).transpose()
}

fn name_of(route: &mut netlink::Socket, index: u32) -> io::Result<Option<InterfaceName>> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.resize(IFINFOMSG, 0);
    Ok(get_link(route, body)?.and_then(|link| InterfaceName::parse(&link.name)))
}

fn addresses(route: &mut netlink::Socket, index: u32) -> io::Result<Vec<Ipv4Addr>> {
    let mut body = vec![AF_INET];
    body.resize(IFADDRMSG, 0);
    let answers = route.dump(RTM_GETADDR, &body)?;
    Ok(answers
        .iter()
        .filter(|answer| answer.kind == RTM_NEWADDR)
        .filter_map(|answer| parse_address(&answer.body))
        .filter_map(|(of, address)| (of == index).then_some(address))
        .collect())
}

/// Reads the body of an RTM_NEWLINK; `None` when it is malformed.
#[must_use]
pub fn parse_link(body: &[u8]) -> Option<SeenLink> {
    let mut link =
        SeenLink { index: u32_at(body, 4)?, flags: u32_at(body, 8)?, ..SeenLink::default() };
    for (kind, value) in attributes(body.get(IFINFOMSG..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MASTER => link.master = Some(u32_at(value, 0)?),
            IFLA_LINKINFO => {
                link.slave_kind = attributes(value)
                    .find(|(kind, _)| *kind == IFLA_INFO_SLAVE_KIND)
                    .map_or_else(String::new, |(_, value)| text(value));
            }
            _ => {}
        }
    }
    Some(link)
}

/// Reads the body of an RTM_NEWADDR: index and address. IFA_LOCAL is the interface's own address;
/// IFA_ADDRESS is the peer's on a point-to-point link.
#[must_use]
pub fn parse_address(body: &[u8]) -> Option<(u32, Ipv4Addr)> {
    let index = u32_at(body, 4)?;
    let own = attributes(body.get(IFADDRMSG..)?).find(|(kind, _)| *kind == IFA_LOCAL)?;
    let bytes = own.1.first_chunk::<4>()?;
    Some((index, Ipv4Addr::from(*bytes)))
}

/// Attributes: length and type, 2 bytes each, then the value, aligned to 4. Ends at the first that
/// does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some((kind, value))
    })
}

fn put_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) -> io::Result<()> {
    let length = u16::try_from(value.len().saturating_add(4)).map_err(|_| malformed())?;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
    Ok(())
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|field| u16::from_ne_bytes(*field))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|field| u32::from_ne_bytes(*field))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer of rtnetlink was not understood")
}

// include/uapi/linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h, if.h
const AF_INET: u8 = 2;
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const NLA_TYPE_MASK: u16 = 0x3fff;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, kind, value).unwrap();
        bytes
    }

    #[test]
    fn a_link_message_is_read() {
        let mut body = vec![0, 0, 1, 0];
        body.extend(7_u32.to_ne_bytes());
        body.extend(0x1003_u32.to_ne_bytes());
        body.extend(0_u32.to_ne_bytes());
        body.extend(attribute(IFLA_IFNAME, b"eth0\0"));
        body.extend(attribute(IFLA_MASTER, &3_u32.to_ne_bytes()));
        let mut info = attribute(1, b"veth\0");
        info.extend(attribute(IFLA_INFO_SLAVE_KIND, b"bridge\0"));
        body.extend(attribute(IFLA_LINKINFO | 0x8000, &info));
        assert_eq!(
            parse_link(&body),
            Some(SeenLink {
                index: 7,
                flags: 0x1003,
                name: "eth0".into(),
                master: Some(3),
                slave_kind: "bridge".into()
            })
        );
    }

    #[test]
    fn the_local_address_is_read_and_not_the_peers() {
        let mut body = vec![2, 32, 0, 0];
        body.extend(9_u32.to_ne_bytes());
        body.extend(attribute(1, &[10, 0, 0, 2]));
        body.extend(attribute(IFA_LOCAL, &[10, 0, 0, 1]));
        assert_eq!(parse_address(&body), Some((9, Ipv4Addr::new(10, 0, 0, 1))));
    }

    #[test]
    fn the_loopback_of_this_machine_is_found_and_a_name_that_nobody_has_is_not() {
        let lo = link(&InterfaceName::parse("lo").unwrap()).unwrap().unwrap();
        assert!(lo.loopback);
        assert_eq!((lo.index, lo.name.as_str()), (1, "lo"));
        assert_eq!(link(&InterfaceName::parse("pc-nobody").unwrap()).unwrap(), None);
    }

    proptest! {
        #[test]
        fn p11_any_bytes_are_read_without_a_crash(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            let _ = parse_link(&bytes);
            let _ = parse_address(&bytes);
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
