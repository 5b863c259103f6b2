//! Network interfaces: names, and which of them can be served on.
//!
//! Guarantees: what is served on is up, is no loopback, is not ruled by a bridge or a VRF, and has
//! an IPv4 address; index, name and address belong together. Trusts what the kernel says
//! (`rtnetlink.rs`). Never decides who may serve there.

use std::{fmt, net::Ipv4Addr};

use portcullis_dbus::Error;

use crate::limits;

/// The name of a network interface that is safe to show, to log and to match on.
///
/// 1 to 15 bytes of `A-Z a-z 0-9 _ . : @ -`, not `.` or `..`: no wildcard (`+`, `*`), no quote, no
/// control character, nothing that nft or iptables would print in a way that reads as another name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Parses a name; `None` when it breaks the rule above.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=limits::INTERFACE_NAME).contains(&text.len());
        let plain =
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.:@-".contains(&byte));
        (fits && plain && text != "." && text != "..").then(|| Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What the kernel says about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its own name: the kernel also finds an interface by an alternative name.
    pub name: String,
    /// Whether it is up (IFF_UP).
    pub up: bool,
    /// Whether it is a loopback (IFF_LOOPBACK).
    pub loopback: bool,
    /// The interface that rules it, if any.
    pub master: Option<Master>,
    /// Its IPv4 addresses, in the kernel's order.
    pub addresses: Vec<Ipv4Addr>,
}

/// The interface that rules another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its name, if it may be shown.
    pub name: Option<InterfaceName>,
    /// The kernel's word for the relation: `bridge`, `vrf`, `bond` ...
    pub kind: String,
}

/// An interface that can be served on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its name.
    pub name: InterfaceName,
    /// Its index.
    pub index: u32,
    /// The address that UDP 69, 4011 and TCP are bound to.
    pub address: Ipv4Addr,
}

impl Site {
    /// Judges what the kernel said about `name`.
    ///
    /// # Errors
    /// `NoSuchInterface`, with the reason and what to do.
    pub fn judge(name: &InterfaceName, link: Option<&Link>) -> Result<Self, Error> {
        let refuse = |sentence: String| Err(Error::NoSuchInterface(sentence));
        let Some(link) = link else {
            return refuse(format!("there is no interface {name}: see `ip link`"));
        };
        if link.name != name.as_str() {
            return refuse(format!(
                "{name} is an alternative name of an interface: give its own name, see `ip link`"
            ));
        }
        if link.loopback {
            return refuse(format!(
                "{name} is the loopback, no machine can boot over it: choose the interface that \
                 leads to the machines"
            ));
        }
        if let Some(master) = &link.master {
            let ruler = master.name.as_ref().map_or("another one", InterfaceName::as_str);
            return refuse(match master.kind.as_str() {
                "bridge" => {
                    format!("{name} is a port of the bridge {ruler}: serve on {ruler} instead")
                }
                "vrf" => format!(
                    "{name} belongs to the VRF {ruler}, and sockets of a VRF are not supported: \
                     serve on an interface outside of it"
                ),
                _ => format!("{name} is ruled by {ruler}: serve on {ruler} instead"),
            });
        }
        if !link.up {
            return refuse(format!("{name} is down: `ip link set {name} up`, or connect it"));
        }
        let address = link
            .addresses
            .iter()
            .find(|address| !address.is_link_local())
            .or_else(|| link.addresses.first());
        let Some(address) = address else {
            return refuse(format!(
                "{name} has no IPv4 address, and machines boot over IPv4: give it one, for example \
                 `sudo ip address add 10.77.0.1/24 dev {name}`"
            ));
        };
        Ok(Self { name: name.clone(), index: link.index, address: *address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            index: 7,
            name: "eth0".into(),
            up: true,
            loopback: false,
            master: None,
            addresses: vec![Ipv4Addr::new(169, 254, 1, 2), Ipv4Addr::new(192, 0, 2, 1)],
        }
    }

    fn judge(link: &Link) -> Result<Site, Error> {
        Site::judge(&InterfaceName::parse("eth0").unwrap(), Some(link))
    }

    fn ruled(kind: &str) -> Link {
        let master = Master { name: InterfaceName::parse("br0"), kind: kind.into() };
        Link { master: Some(master), ..link() }
    }

    #[test]
    fn names_that_other_tools_read_otherwise_are_no_names() {
        for name in ["", ".", "..", "eth0+", "eth*", "a\"b", "a b", "a/b", "ä", "0123456789abcdef"]
        {
            assert_eq!(InterfaceName::parse(name), None, "{name:?}");
        }
        for name in ["eth0", "wlp0s20f3", "br-lan.7", "veth@if2", "0123456789abcde"] {
            assert!(InterfaceName::parse(name).is_some(), "{name:?}");
        }
    }

    #[test]
    fn the_first_address_that_is_not_link_local_is_served_on() {
        assert_eq!(judge(&link()).unwrap().address, Ipv4Addr::new(192, 0, 2, 1));
        let only_local = Link { addresses: vec![Ipv4Addr::new(169, 254, 1, 2)], ..link() };
        assert_eq!(judge(&only_local).unwrap().address, Ipv4Addr::new(169, 254, 1, 2));
    }

    #[test]
    fn what_cannot_be_served_on_says_why() {
        let cases = [
            (Link { name: "enp3s0".into(), ..link() }, "alternative name"),
            (Link { loopback: true, ..link() }, "loopback"),
            (Link { up: false, ..link() }, "is down"),
            (Link { addresses: vec![], ..link() }, "no IPv4 address"),
            (ruled("bridge"), "port of the bridge br0"),
            (ruled("vrf"), "the VRF br0"),
            (ruled("bond"), "ruled by br0"),
        ];
        for (link, reason) in cases {
            let error = judge(&link).unwrap_err();
            assert!(matches!(error, Error::NoSuchInterface(_)));
            assert!(error.message().contains(reason), "{error}");
        }
        let eth0 = InterfaceName::parse("eth0").unwrap();
        let error = Site::judge(&eth0, None).unwrap_err();
        assert!(error.message().contains("no interface eth0"), "{error}");
    }
}
