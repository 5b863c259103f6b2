//! Which interface to serve on: a pure decision over facts. `collect` gathers the facts.
//!
//! The rule: up, with carrier and an IPv4 address, not loopback, not made for containers, virtual
//! machines or VPNs. A single wired one wins over Wi-Fi. What the user names is taken as given: the
//! helper judges it.

pub mod collect;

use std::net::Ipv4Addr;

use serde::Serialize;

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Ethernet, or a bridge, bond or VLAN on top of it.
    Wired,
    /// Wi-Fi.
    Wireless,
    /// `lo`.
    Loopback,
    /// Made by software: containers, virtual machines, VPNs, mobile modems.
    Virtual,
}

/// What is known about one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: Kind,
    /// Whether it is switched on.
    pub up: bool,
    /// Whether a cable or an access point is connected.
    pub carrier: bool,
    /// IPv4 addresses, those of 169.254.0.0/16 left out: a machine that boots gets none of these.
    pub addresses: Vec<Ipv4Addr>,
    /// The bridge whose port it is.
    pub bridge: Option<String>,
}

impl Interface {
    /// Why it is not a candidate, in words; `None` if it is one.
    #[must_use]
    pub fn unfit(&self) -> Option<String> {
        match self.kind {
            Kind::Loopback => return Some("loopback".to_owned()),
            Kind::Virtual => return Some("virtual (container, VM, VPN or modem)".to_owned()),
            Kind::Wired | Kind::Wireless => {}
        }
        if let Some(bridge) = &self.bridge {
            Some(format!("a port of the bridge {bridge}"))
        } else if !self.up {
            Some("switched off".to_owned())
        } else if !self.carrier {
            Some("nothing connected".to_owned())
        } else if self.addresses.is_empty() {
            Some("no IPv4 address".to_owned())
        } else {
            None
        }
    }

    /// One line about it: name, kind, addresses.
    #[must_use]
    pub fn describe(&self) -> String {
        let kind = match self.kind {
            Kind::Wired => "wired",
            Kind::Wireless => "Wi-Fi",
            Kind::Loopback => "loopback",
            Kind::Virtual => "virtual",
        };
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        match addresses.is_empty() {
            true => format!("{} ({kind})", self.name),
            false => format!("{} ({kind}, {})", self.name, addresses.join(", ")),
        }
    }
}

/// Outcome of the rule.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// This one.
    One(&'a Interface),
    /// The user has to say which.
    Several(Vec<&'a Interface>),
    /// A cable goes straight to another machine: wired, connected, no address, beside a Wi-Fi that
    /// has one.
    DirectCable {
        /// The interface of the cable.
        wired: &'a Interface,
        /// The one that would be taken otherwise.
        wireless: &'a Interface,
    },
    /// None will do.
    None,
}

/// The rule.
#[must_use]
pub fn choose(interfaces: &[Interface]) -> Choice<'_> {
    let fit: Vec<_> = interfaces.iter().filter(|one| one.unfit().is_none()).collect();
    let of = |kind| fit.iter().copied().filter(|one| one.kind == kind).collect::<Vec<_>>();
    match (of(Kind::Wired).as_slice(), of(Kind::Wireless).as_slice()) {
        ([], []) => Choice::None,
        ([one], _) => Choice::One(one),
        ([], [wireless]) => {
            let cable = interfaces.iter().find(|one| {
                one.kind == Kind::Wired
                    && one.up
                    && one.carrier
                    && one.addresses.is_empty()
                    && one.bridge.is_none()
            });
            match cable {
                Some(wired) => Choice::DirectCable { wired, wireless },
                None => Choice::One(wireless),
            }
        }
        ([], wireless) => Choice::Several(wireless.to_vec()),
        (wired, _) => Choice::Several(wired.to_vec()),
    }
}

/// How an interface is given an address for a cable that goes straight to another machine.
#[must_use]
pub fn direct_cable_advice(wired: &str) -> [String; 3] {
    [
        format!(
            "give {wired} an address, with NetworkManager: `nmcli connection add type ethernet \
             ifname {wired} con-name netboot ipv4.method manual ipv4.addresses 10.77.0.1/24 \
             ipv6.method disabled && nmcli connection up netboot`"
        ),
        format!(
            "without NetworkManager: `sudo ip address add 10.77.0.1/24 dev {wired} && sudo ip link \
             set {wired} up`"
        ),
        format!(
            "then, since there is no DHCP server at the cable: `portcullis boot ... -i {wired} \
             --dhcp-server`"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, kind: Kind) -> Interface {
        Interface {
            name: name.to_owned(),
            kind,
            up: true,
            carrier: true,
            addresses: vec![Ipv4Addr::new(192, 168, 1, 2)],
            bridge: None,
        }
    }

    fn wired(name: &str) -> Interface {
        interface(name, Kind::Wired)
    }

    #[test]
    fn one_that_will_do_is_taken() {
        let all =
            [interface("lo", Kind::Loopback), interface("docker0", Kind::Virtual), wired("eth0")];
        assert_eq!(choose(&all), Choice::One(&all[2]));
        let wifi = [interface("wlan0", Kind::Wireless), interface("tun0", Kind::Virtual)];
        assert_eq!(choose(&wifi), Choice::One(&wifi[0]));
    }

    #[test]
    fn a_single_wired_one_wins_over_wifi() {
        let all =
            [interface("wlan0", Kind::Wireless), wired("eth0"), interface("wlan1", Kind::Wireless)];
        assert_eq!(choose(&all), Choice::One(&all[1]));
    }

    #[test]
    fn several_of_a_kind_are_a_question() {
        let all = [wired("eth0"), wired("eth1"), interface("wlan0", Kind::Wireless)];
        assert_eq!(choose(&all), Choice::Several(vec![&all[0], &all[1]]));
        let wifi = [interface("wlan0", Kind::Wireless), interface("wlan1", Kind::Wireless)];
        assert_eq!(choose(&wifi), Choice::Several(vec![&wifi[0], &wifi[1]]));
    }

    #[test]
    fn a_cable_without_address_beside_wifi_is_a_direct_cable() {
        let mut all = [interface("wlan0", Kind::Wireless), wired("eth0")];
        all[1].addresses.clear();
        assert_eq!(choose(&all), Choice::DirectCable { wired: &all[1], wireless: &all[0] });
        all[1].carrier = false;
        assert_eq!(choose(&all), Choice::One(&all[0]));
    }

    #[test]
    fn each_reason_to_pass_one_over() {
        let mut port = wired("eth0");
        port.bridge = Some("br0".to_owned());
        let mut off = wired("eth0");
        off.up = false;
        let mut idle = wired("eth0");
        idle.carrier = false;
        let mut bare = wired("eth0");
        bare.addresses.clear();
        for (one, word) in
            [(port, "br0"), (off, "switched off"), (idle, "nothing"), (bare, "address")]
        {
            assert!(one.unfit().is_some_and(|reason| reason.contains(word)), "{one:?}");
            assert_eq!(choose(&[one]), Choice::None);
        }
    }
}
