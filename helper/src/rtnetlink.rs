//! What the kernel says about an interface (rtnetlink(7)), in two questions and two message types.
//!
//! Guarantees: a malformed answer is an error; bounded in time and memory by `netlink.rs`. Trusts
//! the kernel. Never changes anything: only RTM_GET messages are built here.

use std::{io, net::Ipv4Addr};

use crate::{
    attribute::{self, Attributes, field, malformed},
    interface::{InterfaceName, Link, Master},
    netlink::Socket,
};

/// Looks an interface up by name; `None` when there is none.
///
/// # Errors
/// When the kernel does not answer, or not in the way that rtnetlink(7) says.
pub fn link(name: &InterfaceName) -> io::Result<Option<Link>> {
    // NETLINK_ROUTE is the family that is meant by none.
    let mut route = Socket::open(None)?;
    let by_name = attribute::text(IFLA_IFNAME, name.as_str());
    let Some((mut link, ruler)) = get_link(&mut route, 0, &by_name)? else {
        return Ok(None);
    };
    if let Some((master, index)) = link.master.as_mut().zip(ruler) {
        let ruler = get_link(&mut route, index, &[])?;
        master.name = ruler.and_then(|(ruler, _)| InterfaceName::parse(&ruler.name));
    }
    link.addresses = addresses(&mut route, link.index)?;
    Ok(Some(link))
}

/// By index, or, where that is 0, by an attribute.
fn get_link(
    route: &mut Socket,
    index: u32,
    attributes: &[u8],
) -> io::Result<Option<(Link, Option<u32>)>> {
    let ifinfomsg = [[0; 4], index.to_ne_bytes(), [0; 4], [0; 4]].concat();
    let answers = match route.ask(RTM_GETLINK, [&ifinfomsg, attributes].concat()) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        answers => answers?,
    };
    let link = answers.iter().find(|answer| answer.kind == RTM_NEWLINK);
    link.map(|link| parse_link(&link.body)).transpose()
}

fn addresses(route: &mut Socket, index: u32) -> io::Result<Vec<Ipv4Addr>> {
    let mut found = Vec::new();
    for answer in route.dump(RTM_GETADDR, vec![AF_INET, 0, 0, 0, 0, 0, 0, 0])? {
        let (of, address) = parse_address(&answer.body)?;
        found.extend(address.filter(|_| of == index));
    }
    Ok(found)
}

/// Reads the body of an RTM_NEWLINK: all but its addresses and the name of what rules it, whose index
/// is told. The names are not checked yet.
///
/// # Errors
/// `InvalidData`.
pub fn parse_link(body: &[u8]) -> io::Result<(Link, Option<u32>)> {
    let attributes = Attributes::read(body.get(IFINFOMSG..).ok_or_else(malformed)?)?;
    let flags = u32::from_ne_bytes(field(body, 8)?);
    let master = attributes.array(IFLA_MASTER)?.map(u32::from_ne_bytes);
    let kind = attributes.nested(IFLA_LINKINFO)?.text(IFLA_INFO_SLAVE_KIND);
    let link = Link {
        index: u32::from_ne_bytes(field(body, 4)?),
        name: attributes.text(IFLA_IFNAME),
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        master: master.map(|_| Master { name: None, kind }),
        addresses: Vec::new(),
    };
    Ok((link, master))
}

/// Index of the interface, and its own address: IFA_ADDRESS would be the peer's on a point-to-point
/// link.
///
/// # Errors
/// `InvalidData`.
pub fn parse_address(body: &[u8]) -> io::Result<(u32, Option<Ipv4Addr>)> {
    let attributes = Attributes::read(body.get(IFADDRMSG..).ok_or_else(malformed)?)?;
    let address = attributes.array::<4>(IFA_LOCAL)?.map(Ipv4Addr::from);
    Ok((u32::from_ne_bytes(field(body, 4)?), address))
}

// include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, if.h
const AF_INET: u8 = 2;
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
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

    #[test]
    fn a_link_message_is_read() {
        let mut body = vec![0, 0, 1, 0];
        body.extend(7_u32.to_ne_bytes());
        body.extend(0x1003_u32.to_ne_bytes());
        body.extend(0_u32.to_ne_bytes());
        body.extend(attribute::text(IFLA_IFNAME, "eth0"));
        body.extend(attribute::bytes(IFLA_MASTER, &3_u32.to_ne_bytes()));
        let info = [attribute::text(1, "veth"), attribute::text(IFLA_INFO_SLAVE_KIND, "bridge")];
        body.extend(attribute::nested(IFLA_LINKINFO, &info));
        let expected = Link {
            index: 7,
            name: "eth0".into(),
            up: true,
            loopback: false,
            master: Some(Master { name: None, kind: "bridge".into() }),
            addresses: Vec::new(),
        };
        assert_eq!(parse_link(&body).unwrap(), (expected, Some(3)));
        for length in 0..16 {
            assert!(parse_link(body.get(..length).unwrap()).is_err(), "{length}");
        }
    }

    #[test]
    fn the_local_address_is_read_and_not_the_peers() {
        let mut body = vec![2, 32, 0, 0];
        body.extend(9_u32.to_ne_bytes());
        body.extend(attribute::bytes(1, &[10, 0, 0, 2]));
        assert_eq!(parse_address(&body).unwrap(), (9, None));
        body.extend(attribute::bytes(IFA_LOCAL, &[10, 0, 0, 1]));
        assert_eq!(parse_address(&body).unwrap(), (9, Some(Ipv4Addr::new(10, 0, 0, 1))));
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
        }
    }
}
