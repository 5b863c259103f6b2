//! What an ordinary user can read of this host: routes, sysctls, who holds ports. Reads only, and sends
//! nothing: to ask the kernel for a route, a UDP socket is connected, which puts nothing on the wire.
//! What cannot be read counts as not there.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrIn};
use portcullis_dbus::{BOOT_SERVER_PORT, DHCP_PORT, TFTP_PORT};

use super::{Finding, asked::user};

/// Below it: `net/ipv4/conf/IF/rp_filter` (Documentation/networking/ip-sysctl.rst).
const SYSCTL: &str = "/proc/sys";
/// `rp_filter`: the source's route must lead back through the interface that it came in by.
const STRICT: u32 = 1;

/// Two interfaces in one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twins {
    /// The one that the way to that network leads over. What comes in by ours fails the test of its way
    /// back, where there is one.
    pub other: String,
    /// Address and length of the prefix.
    pub network: String,
    /// The kernel makes that test.
    pub is_tested: bool,
}

impl Twins {
    /// What is wrong, if the kernel drops what comes in.
    #[must_use]
    pub fn finding(&self, interface: &str) -> Option<Finding> {
        let Self { other, network, is_tested } = self;
        let text = format!(
            "{interface} and {other} are both in the network {network}, and the way there leads over \
             {other}: what machines send to {interface} is dropped (strict reverse-path filter)"
        );
        let finding = Finding::new("reverse-path", text, format!("serve on {other}: -i {other}"));
        let finding = finding.or(format!("or disconnect {other}, or take its address away"));
        let sysctl = format!("sudo sysctl net.ipv4.conf.{interface}.rp_filter=2");
        is_tested.then(|| finding.or(format!("or have it pass: {sysctl} (loose)")))
    }
}

/// Whether another interface is in the network of ours, and the way there leads over it.
#[must_use]
pub fn twins(interface: &str, address: Ipv4Addr) -> Option<Twins> {
    // The larger of the two counts.
    let setting = |name: &str| {
        let path = Path::new(SYSCTL).join("net/ipv4/conf").join(name).join("rp_filter");
        fs::read_to_string(path).ok()?.trim().parse::<u32>().ok()
    };
    let of = |any: Option<nix::sys::socket::SockaddrStorage>| {
        any?.as_sockaddr_in().map(SockaddrIn::ip).map(Ipv4Addr::to_bits)
    };
    let all: Vec<_> = getifaddrs()
        .ok()?
        .filter_map(|one| Some((of(one.address)?, of(one.netmask)?, one.interface_name)))
        .collect();
    let (ours, mask, _) =
        all.iter().find(|(at, _, name)| *at == address.to_bits() && name == interface)?;
    let network = ours & mask;
    let machine = neighbour(network, *mask, |at| all.iter().any(|(own, ..)| *own == at))?;
    let from = source_towards(machine)?;
    let (_, _, other) = all.iter().find(|(at, _, name)| *at == from && name != interface)?;
    Some(Twins {
        other: other.clone(),
        network: format!("{}/{}", Ipv4Addr::from_bits(network), mask.count_ones()),
        is_tested: setting(interface).max(setting("all")) == Some(STRICT),
    })
}

/// An address of this network that is none of this host's own.
fn neighbour(network: u32, mask: u32, is_own: impl Fn(u32) -> bool) -> Option<Ipv4Addr> {
    let broadcast = network | !mask;
    let mut candidates = network.saturating_add(1)..broadcast;
    candidates.find(|at| !is_own(*at)).map(Ipv4Addr::from_bits)
}

/// The address that this host would send from.
fn source_towards(machine: Ipv4Addr) -> Option<u32> {
    let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(SocketAddrV4::new(machine, DHCP_PORT)).ok()?;
    match socket.local_addr().ok()? {
        std::net::SocketAddr::V4(local) => Some(local.ip().to_bits()),
        std::net::SocketAddr::V6(_) => None,
    }
}

/// Whether it is a bridge whose frames pass the firewall (`net.bridge.bridge-nf-call-iptables`).
#[must_use]
pub fn bridge_is_filtered(interface: &str) -> bool {
    let called = fs::read_to_string(Path::new(SYSCTL).join("net/bridge/bridge-nf-call-iptables"));
    called.is_ok_and(|value| value.trim() == "1")
        && Path::new("/sys/class/net").join(interface).join("bridge").exists()
}

/// Who holds one of our ports, where the helper cannot be asked. The tables do not tell interfaces.
#[must_use]
pub fn ports_taken(http: u16, address: Option<Ipv4Addr>) -> Vec<Finding> {
    let read = |name: &str| fs::read_to_string(Path::new("/proc/net").join(name));
    let of = |protocol: &'static str, names: [&str; 2], ports: &[u16]| -> Vec<Finding> {
        let mut holders: Vec<_> = names
            .iter()
            .filter_map(|name| read(name).ok())
            .flat_map(|table| holders(&table, ports, address))
            .collect();
        holders.sort_unstable();
        holders.dedup();
        let finding = |(port, uid): (u16, u32)| {
            let user = user(uid);
            let text = format!("{protocol} port {port} is in use by a program of uid {uid}{user}");
            Finding::new("port-taken", text, "stop it (`ss -lnp` as root names it)")
        };
        holders.into_iter().map(finding).collect()
    };
    let mut findings = of("udp", ["udp", "udp6"], &[DHCP_PORT, TFTP_PORT, BOOT_SERVER_PORT]);
    findings.extend(of("tcp", ["tcp", "tcp6"], &[http]));
    findings
}

/// Ports and uids in a table of /proc/net (proc_net_udp(5)), as far as they are in the way of `address`:
/// at it, or at every address.
fn holders(table: &str, ports: &[u16], address: Option<Ipv4Addr>) -> Vec<(u16, u32)> {
    // TCP: LISTEN. UDP: not connected.
    const WAITS: [&str; 2] = ["0A", "07"];
    let ours = address.map(|address| format!("{:08X}", u32::from_ne_bytes(address.octets())));
    let holder = |line: &str| {
        let mut columns = line.split_whitespace().skip(1);
        let (at, port) = columns.next()?.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let waits = WAITS.contains(&columns.nth(1)?);
        let uid = columns.nth(3)?.parse().ok()?;
        let in_the_way = port == DHCP_PORT
            || at.bytes().all(|digit| digit == b'0')
            || ours.as_ref().is_some_and(|ours| at.ends_with(ours));
        (waits && in_the_way && ports.contains(&port)).then_some((port, uid))
    };
    table.lines().skip(1).filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn holders_are_read_from_the_kernels_table() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             1: 00000000:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000   112        0 1 2 0 0\n\
             2: 0100007F:0FAB 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0\n\
             3: 020200C0:0FAB 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 1 2 0 0\n\
             4: 0100007F:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     5        0 1 2 0 0\n\
             5: 020200C0:FAAC 030200C0:8000 01 00000000:00000000 00:00000000 00000000  1000        0 1 2 0 0\n\
             6: 0000\n";
        let ports = [67, 69, 4011, 64172];
        let ours = Some(Ipv4Addr::new(192, 0, 2, 2));
        assert_eq!(holders(table, &ports, ours), [(69, 112), (4011, 1000), (67, 5)]);
        assert_eq!(holders(table, &[69], None), [(69, 112)]);
        assert_eq!(holders("", &ports, ours), []);
    }

    #[test]
    fn a_neighbour_is_another_address_of_the_network() {
        let [network, mask] = [[192, 0, 2, 0], [255, 255, 255, 252]].map(u32::from_be_bytes);
        let first = neighbour(network, mask, |_| false);
        assert_eq!(first, Some(Ipv4Addr::new(192, 0, 2, 1)));
        let second = neighbour(network, mask, |at| at == network + 1);
        assert_eq!(second, Some(Ipv4Addr::new(192, 0, 2, 2)));
        assert_eq!(neighbour(network, mask, |_| true), None);
        assert_eq!(neighbour(network, u32::MAX, |_| false), None);
    }
}
