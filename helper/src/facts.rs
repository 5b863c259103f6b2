//! Facts, as they go over the bus.
//!
//! Guarantees: each fact has the key and type of the contract (`keys::fact`). Decides nothing.

use std::{collections::HashMap, time::Duration};

use portcullis_dbus::keys::{self, fact};
use zbus::Variant;

use crate::{
    firewall::{Backend, Dhcp},
    lease::Lease,
    sockdiag::Protocol,
};

/// Facts by their keys.
pub type Facts = HashMap<&'static str, Variant<'static>>;

/// Facts about an open lease.
#[must_use]
pub fn of_lease(lease: &Lease) -> Facts {
    let mut facts = of_ports(lease.opening.ports(), lease.opening.dhcp);
    facts.extend([
        (fact::BACKEND, backend(lease.backend).into()),
        (fact::INTERFACE, lease.opening.interface.to_string().into()),
        (fact::INTERFACE_INDEX, lease.opening.index.into()),
        (fact::ADDRESS, lease.address.to_string().into()),
        (fact::OPENED, microseconds(lease.opened).into()),
        (fact::ENDS, microseconds(lease.ends).into()),
    ]);
    facts
}

/// Facts about ports, by protocol.
pub fn of_ports(ports: impl Iterator<Item = (Protocol, u16)>, dhcp: Dhcp) -> Facts {
    let (udp, tcp): (Vec<_>, Vec<_>) = ports.partition(|(protocol, _)| *protocol == Protocol::Udp);
    let numbers = |ports: Vec<_>| ports.into_iter().map(|(_, port)| port).collect::<Vec<u16>>();
    Facts::from([
        (fact::UDP_PORTS, numbers(udp).into()),
        (fact::TCP_PORTS, numbers(tcp).into()),
        (fact::DHCP_MODE, dhcp_mode(dhcp).into()),
    ])
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The word for what is done on UDP 67.
fn dhcp_mode(dhcp: Dhcp) -> &'static str {
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
