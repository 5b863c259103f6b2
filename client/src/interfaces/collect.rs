//! Facts about the interfaces of this computer, from sysfs and getifaddrs(3).
//!
//! What disappears while it is looked at counts as not there. Reads only.

use std::{collections::BTreeMap, fs, io, net::Ipv4Addr, path::Path};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sys::socket::{SockaddrIn, SockaddrStorage},
};

use super::{Interface, Kind};

/// Depth of stacked interfaces (a VLAN on a bond on a bridge) that is looked through.
const STACK: u8 = 4;

/// All interfaces, by name.
///
/// # Errors
/// sysfs or getifaddrs(3) cannot be read.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut addresses: BTreeMap<String, (bool, Vec<Ipv4Addr>)> = BTreeMap::new();
    for entry in getifaddrs()? {
        let facts = addresses.entry(entry.interface_name).or_default();
        facts.0 |= entry.flags.contains(InterfaceFlags::IFF_UP);
        if let Some(address) = entry.address.and_then(|any| any.as_sockaddr_in().map(|v4| v4.ip()))
        {
            facts.1.push(address);
        }
    }
    let class = Path::new("/sys/class/net");
    Ok(addresses
        .into_iter()
        .filter(|(name, _)| class.join(name).exists())
        .map(|(name, (up, addresses))| {
            let at = class.join(&name);
            Interface {
                kind: kind(class, &name, STACK),
                up,
                carrier: fs::read_to_string(at.join("carrier"))
                    .is_ok_and(|text| text.trim() == "1"),
                addresses: addresses
                    .into_iter()
                    .filter(|address| !address.is_link_local())
                    .collect(),
                bridge: at
                    .join("brport")
                    .exists()
                    .then(|| fs::read_link(at.join("master")).ok())
                    .flatten()
                    .and_then(|path| {
                        path.file_name().map(|name| name.to_string_lossy().into_owned())
                    }),
                name,
            }
        })
        .collect())
}

/// The IPv4 addresses of one interface, each with its mask.
///
/// # Errors
/// getifaddrs(3) fails.
pub fn networks(interface: &str) -> io::Result<Vec<(Ipv4Addr, Ipv4Addr)>> {
    let of = |any: Option<SockaddrStorage>| any?.as_sockaddr_in().map(SockaddrIn::ip);
    Ok(getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| Some((of(entry.address)?, of(entry.netmask)?)))
        .collect())
}

/// The kind of interface `name` below `class` (`/sys/class/net`).
fn kind(class: &Path, name: &str, depth: u8) -> Kind {
    let at = class.join(name);
    let uevent = fs::read_to_string(at.join("uevent")).unwrap_or_default();
    let devtype = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE=")).unwrap_or_default();
    if name == "lo" {
        Kind::Loopback
    } else if devtype == "wlan" || at.join("wireless").exists() || at.join("phy80211").exists() {
        Kind::Wireless
    } else if devtype == "wwan" || at.join("tun_flags").exists() {
        Kind::Virtual
    } else if at.join("device").exists() {
        Kind::Wired
    } else if matches!(devtype, "bridge" | "bond" | "vlan") && depth > 0 {
        // Software on top of a real card is as good as the card; docker0 and virbr0 have none.
        let on_a_card = lower(&at).iter().any(|below| kind(class, below, depth - 1) == Kind::Wired);
        if on_a_card { Kind::Wired } else { Kind::Virtual }
    } else {
        Kind::Virtual
    }
}

/// Names of the interfaces that this one stands on (links `lower_NAME`).
fn lower(at: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(at) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            Some(entry.ok()?.file_name().to_str()?.strip_prefix("lower_")?.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_and_known() {
        let all = interfaces().unwrap();
        let lo = all.iter().find(|one| one.name == "lo").unwrap();
        assert_eq!(lo.kind, Kind::Loopback);
        let network = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(255, 0, 0, 0));
        assert!(networks("lo").unwrap().contains(&network));
        assert_eq!(networks("no-such-one").unwrap(), []);
    }

    #[test]
    fn kinds_are_told_apart_by_sysfs() {
        let class = tempfile::tempdir().unwrap();
        let make = |name: &str, devtype: &str, entries: &[&str]| {
            let at = class.path().join(name);
            fs::create_dir(&at).unwrap();
            fs::write(at.join("uevent"), format!("INTERFACE={name}\nDEVTYPE={devtype}\n")).unwrap();
            for entry in entries {
                fs::create_dir(at.join(entry)).unwrap();
            }
        };
        make("eth0", "", &["device"]);
        make("wlan0", "wlan", &["device", "phy80211"]);
        make("wwan0", "wwan", &["device"]);
        make("tap0", "", &["tun_flags"]);
        make("wg0", "wireguard", &[]);
        make("veth1", "", &[]);
        make("docker0", "bridge", &["lower_veth1"]);
        make("br0", "bridge", &["lower_eth0", "lower_tap0"]);
        make("eth0.5", "vlan", &["lower_eth0"]);
        make("deep", "vlan", &["lower_br0"]);
        for (name, expected) in [
            ("lo", Kind::Loopback),
            ("eth0", Kind::Wired),
            ("wlan0", Kind::Wireless),
            ("wwan0", Kind::Virtual),
            ("tap0", Kind::Virtual),
            ("wg0", Kind::Virtual),
            ("veth1", Kind::Virtual),
            ("docker0", Kind::Virtual),
            ("br0", Kind::Wired),
            ("eth0.5", Kind::Wired),
            ("deep", Kind::Wired),
        ] {
            assert_eq!(kind(class.path(), name, STACK), expected, "{name}");
        }
    }
}
