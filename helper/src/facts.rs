//! Facts, as they go over the bus.
//!
//! Guarantees: each fact has the key and type of the contract (`keys::fact`). Decides nothing.

use std::{collections::HashMap, time::Duration};

use portcullis_dbus::keys::{self, fact};
use zbus::{OwnedVariant, Variant};

use crate::{
    firewall::{Backend, Dhcp},
    lease::Lease,
    sockdiag::Protocol,
};

/// Facts by their keys.
pub type Facts = HashMap<String, OwnedVariant>;

/// Facts about an open lease.
#[must_use]
pub fn of_lease(lease: &Lease) -> Facts {
    let mut facts = Facts::new();
    put(&mut facts, fact::BACKEND, backend(lease.backend).into());
    put(&mut facts, fact::INTERFACE, lease.opening.interface.as_str().into());
    put(&mut facts, fact::INTERFACE_INDEX, lease.opening.index.into());
    put(&mut facts, fact::ADDRESS, lease.address.to_string().into());
    put(&mut facts, fact::OPENED, microseconds(lease.opened).into());
    put(&mut facts, fact::ENDS, microseconds(lease.ends).into());
    put_ports(&mut facts, lease.ports());
    put(&mut facts, fact::DHCP_MODE, dhcp_mode(lease.opening.dhcp).into());
    facts
}

/// The same for `List`, which also names the user.
#[must_use]
pub fn entry(lease: &Lease) -> Facts {
    let mut facts = of_lease(lease);
    put(&mut facts, fact::UID, lease.owner.uid.get().into());
    facts
}

/// Puts the ports in, by protocol.
pub fn put_ports(facts: &mut Facts, ports: impl Iterator<Item = (Protocol, u16)>) {
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for (protocol, port) in ports {
        match protocol {
            Protocol::Udp => udp.push(port),
            Protocol::Tcp => tcp.push(port),
        }
    }
    put(facts, fact::UDP_PORTS, udp.into());
    put(facts, fact::TCP_PORTS, tcp.into());
}

/// Puts a fact in. The only value that cannot be owned is a descriptor that cannot be duplicated,
/// and no fact is one.
pub fn put(facts: &mut Facts, name: &str, value: Variant<'_>) {
    if let Ok(value) = value.try_to_owned() {
        facts.insert(name.to_owned(), value);
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The word for what is done on UDP 67.
#[must_use]
pub fn dhcp_mode(dhcp: Dhcp) -> &'static str {
    match dhcp {
        Dhcp::None => keys::dhcp_mode::NONE,
        Dhcp::Proxy => keys::dhcp_mode::BIND,
        Dhcp::Shared => keys::dhcp_mode::SHARED,
        Dhcp::Raw => keys::dhcp_mode::SHARED_RAW,
        Dhcp::Full => keys::dhcp_mode::FULL,
    }
}

/// The word for a back end.
#[must_use]
pub fn backend(found: Backend) -> &'static str {
    match found {
        Backend::NixosNftables => keys::backend::NIXOS_NFTABLES,
        Backend::NixosIptables => keys::backend::NIXOS_IPTABLES,
        Backend::NamedChain => keys::backend::NAMED_CHAIN,
        Backend::Firewalld => keys::backend::FIREWALLD,
        Backend::None => keys::backend::NONE,
    }
}
