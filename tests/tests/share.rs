//! Beside another DHCP server of this host, on the same interface: a machine gets its address from
//! that one and its boot information from us, the other's clients notice nothing, and nothing of ours
//! is left. A server whose socket cannot be shared is named, with what to do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs,
    boot_client::{Answer, ask, message, option},
    host::{Client, Host, Site},
    lan::Lan,
    machine::{Firmware, Machine},
    need_host,
    netns::Netns,
    nixos::{self, Flavour, Settings},
    process::{Process, mortal, wait_until},
    snapshot::{Snapshot, assert_same},
};
use tempfile::TempDir;

/// Longest wait for what comes in a moment.
const SOON: Duration = Duration::from_secs(15);
/// The host, which is the other server, too.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const EVERYBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);

/// The other DHCP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    /// dnsmasq without a word about its sockets: UDP 67 of all addresses, for itself alone.
    Dnsmasq,
    /// As libvirt and NetworkManager run it.
    DnsmasqBindInterfaces,
    DnsmasqBindDynamic,
    Networkd,
    /// Packet sockets, and a UDP socket on its address.
    KeaRaw,
    KeaUdp,
}

impl Other {
    /// Starts it in this network, to hand out 192.0.2.100 to .150; returns when it has the port.
    fn start(self, netns: &Netns, directory: &Path) -> Process {
        let log = File::create(directory.join("other.log")).unwrap();
        let mut command = match self {
            Self::Dnsmasq => dnsmasq(directory, &[]),
            Self::DnsmasqBindInterfaces => dnsmasq(directory, &["--bind-interfaces"]),
            Self::DnsmasqBindDynamic => dnsmasq(directory, &["--bind-dynamic"]),
            Self::Networkd => networkd(directory),
            Self::KeaRaw => kea(directory, "raw"),
            Self::KeaUdp => kea(directory, "udp"),
        };
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let process = netns.spawn(command).unwrap();
        let has_port = || {
            let mut command = Command::new("ss");
            command.args(["-Hlun", "sport = :67"]);
            netns.finish(command).is_ok_and(|sockets| !sockets.is_empty())
        };
        let log = || fs::read_to_string(directory.join("other.log")).unwrap();
        assert!(wait_until(SOON, has_port), "{self:?}: {}", log());
        process
    }
}

fn dnsmasq(directory: &Path, more: &[&str]) -> Command {
    let mut command = mortal("dnsmasq");
    command
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root"])
        .args(["--group=root", "--no-hosts", "--no-resolv", "--pid-file=", "--no-ping"])
        .args(["--dhcp-authoritative", "--interface=eth0", "--enable-ra", "--log-facility=-"])
        .args(["--dhcp-range=192.0.2.100,192.0.2.150,255.255.255.0,1h"])
        .arg("--dhcp-range=::,constructor:eth0,ra-only,64,1h")
        .arg(format!("--dhcp-leasefile={}", directory.join("leases").display()))
        .args(more);
    command
}

/// In a mount namespace, since it looks nowhere but below /run; a read-only /sys tells it that there
/// is no udev to wait for.
fn networkd(directory: &Path) -> Command {
    let network = "[Match]\nName=eth0\n[Network]\nAddress=192.0.2.2/24\n\
                   DHCPServer=yes\nIPv6AcceptRA=no\n[DHCPServer]\nPoolOffset=100\nPoolSize=50\n";
    fs::write(directory.join("eth0.network"), network).unwrap();
    let script = "mount --make-rprivate / && mount -o remount,bind,ro /sys && \
                  cp \"$0\" /tmp/eth0.network.$$ && mount -t tmpfs -o mode=755 tmpfs /run && \
                  mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases && \
                  chown -R systemd-network:systemd-network /run/systemd/netif && \
                  mv /tmp/eth0.network.$$ /run/systemd/network/eth0.network && \
                  chmod 644 /run/systemd/network/eth0.network && \
                  exec /usr/lib/systemd/systemd-networkd";
    let mut command = mortal("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(directory.join("eth0.network"));
    command
}

fn kea(directory: &Path, kind: &str) -> Command {
    let config = format!(
        r#"{{"Dhcp4": {{
            "interfaces-config": {{"interfaces": ["eth0"], "dhcp-socket-type": "{kind}"}},
            "lease-database": {{"type": "memfile", "persist": false}},
            "subnet4": [{{"id": 1, "subnet": "192.0.2.0/24",
                "pools": [{{"pool": "192.0.2.100-192.0.2.150"}}]}}],
            "loggers": [{{"name": "kea-dhcp4", "severity": "INFO",
                "output_options": [{{"output": "stdout"}}]}}]
        }}}}"#
    );
    let file = directory.join("kea.json");
    fs::write(&file, config).unwrap();
    let mut command = mortal("kea-dhcp4");
    command.arg("-c").arg(file).env("KEA_PIDFILE_DIR", directory).env("KEA_LOCKFILE_DIR", "none");
    command
}

/// A host behind NixOS' firewall with its own DHCP server, and the LAN that it serves.
struct Place {
    // The server goes before its network.
    _other: Process,
    host: Host,
    machine: Netns,
    before: Snapshot,
    lan: Lan,
    directory: TempDir,
}

impl Place {
    fn new(flavour: Flavour, other: Other) -> Self {
        Self::of(Site::AllowsAlice, flavour, other)
    }

    fn of(site: Site, flavour: Flavour, other: Other) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let lan = Lan::new().unwrap();
        let machine = Netns::new("machine").unwrap();
        lan.attach(&machine, "eth0", None).unwrap();
        let host = Host::start("host", site).unwrap();
        // networkd gives it its address.
        let address = (other != Other::Networkd).then_some("192.0.2.2/24");
        lan.attach(host.netns(), "eth0", address).unwrap();
        host.netns().address("eth0", "fd00::2/64").unwrap();
        // As everybody has to who runs a DHCP server behind it.
        let settings = Settings { allowed_udp: vec![67], ..Settings::default() };
        nixos::start(host.netns(), flavour, &settings).unwrap();
        let process = other.start(host.netns(), directory.path());
        let before = Snapshot::take(host.netns()).unwrap();
        Self { _other: process, host, machine, before, lan, directory }
    }

    fn boot(&self) -> Client {
        let arguments =
            ["boot", "/mnt", "-i", "eth0", "--json", "--no-ask-password", "--dhcp-no-bind"];
        self.host.client("alice", &arguments).unwrap()
    }

    /// What a BIOS machine hears to a DISCOVER: the answer with an address, and the one without.
    fn discover(&self, wanted: usize) -> (Option<Answer>, Option<Answer>) {
        let bytes = boot_question();
        let mut heard = (None, None);
        wait_until(SOON, || {
            let limit = Duration::from_secs(3);
            let asked = ask(&self.machine, "eth0", 68, &bytes, &[EVERYBODY], (wanted, limit));
            for answer in asked.unwrap() {
                match answer.1[16..20] {
                    [0, 0, 0, 0] => heard.1 = Some(answer),
                    _ => heard.0 = Some(answer),
                }
            }
            usize::from(heard.0.is_some()) + usize::from(heard.1.is_some()) >= wanted
        });
        heard
    }

    /// A real client of the other server gets its address, and renews it.
    fn udhcpc(&self) {
        let script = self.directory.path().join("configure");
        let text = "#!/bin/sh\n[ \"$1\" != bound ] || ip address replace $ip/24 dev $interface\n";
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let file = self.directory.path().join("udhcpc.log");
        let log = File::create(&file).unwrap();
        let mut command = mortal("udhcpc");
        command.args(["-i", "eth0", "-f", "-t", "20", "-T", "1", "-s"]).arg(&script);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let client = self.machine.spawn(command).unwrap();
        let said = || fs::read_to_string(&file).unwrap();
        let leases =
            |wanted| wait_until(SOON, || said().matches("obtained from").count() >= wanted);
        assert!(leases(1), "{}", said());
        assert!(said().contains("server 192.0.2.2"), "{}", said());
        // Renewed by unicast, which both sockets could be taken to be meant by.
        client.signal(Signal::SIGUSR1).unwrap();
        assert!(leases(2), "{}", said());
        drop(client);
        self.machine.ip("address flush dev eth0").unwrap();
    }

    fn ends(&self, client: &mut Client) {
        client.signal(Signal::SIGINT).unwrap();
        assert_eq!(client.end().unwrap().code(), Some(0), "{}", client.stderr());
        let same = || Snapshot::take(self.host.netns()).is_ok_and(|now| now == self.before);
        wait_until(SOON, same);
        assert_same(&self.before, &Snapshot::take(self.host.netns()).unwrap());
    }
}

/// The DISCOVER of a BIOS machine.
fn boot_question() -> Vec<u8> {
    message(
        [2, 0, 0, 0, 0, 7],
        &[
            (53, &[1]),
            (60, b"PXEClient:Arch:00000:UNDI:002001"),
            (93, &[0, 0]),
            (94, &[1, 2, 1]),
            (97, &[0; 17]),
            (55, &[1, 3, 54, 60, 66, 67]),
        ],
    )
}

/// Both answer, each with its part, and the other server's client has an address and keeps it.
fn both_serve(flavour: Flavour, other: Other) {
    both_serve_in(&Place::new(flavour, other), other, "shared");
}

fn both_serve_in(place: &Place, other: Other, dhcp: &str) {
    let mut client = place.boot();
    let ready = client.ready().unwrap();
    assert_eq!(ready["interface"], "eth0", "{ready}");
    assert_eq!(ready["dhcp"], dhcp, "{ready}");
    let (theirs, ours) = place.discover(2);
    let told = || fs::read_to_string(place.directory.path().join("other.log")).unwrap();
    let (_, theirs) = theirs.unwrap_or_else(|| panic!("{other:?} is silent: {}", told()));
    assert_eq!(option(&theirs, 54), Some(HOST.octets().to_vec()), "{other:?}");
    let (from, ours) = ours.unwrap_or_else(|| panic!("we are silent: {}", client.stderr()));
    assert_eq!(from, SocketAddrV4::new(HOST, 67));
    assert_eq!(option(&ours, 60).unwrap(), b"PXEClient");
    assert!(option(&ours, 67).is_some_and(|file| file.ends_with(b"undionly.kpxe\0")), "{ours:?}");
    place.udhcpc();
    place.ends(&mut client);
    let (theirs, ours) = place.discover(1);
    assert!(theirs.is_some() && ours.is_none(), "{other:?}");
}

#[test]
fn beside_dnsmasq_a_machine_boots() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("udhcpc"));
    let place = Place::new(Flavour::Iptables, Other::DnsmasqBindInterfaces);
    let mut client = place.boot();
    client.ready().unwrap();
    let mut machine = Machine::start(&place.lan, Firmware::Bios, "02:00:00:00:00:09").unwrap();
    let up = machine.up();
    assert!(up.is_ok(), "{up:?}\n{}{}", client.stdout(), client.stderr());
    place.udhcpc();
    drop(machine);
    place.ends(&mut client);
}

#[test]
fn beside_dnsmasq_with_bind_interfaces_both_answer() {
    need_host!(Needs::Tool("udhcpc"));
    both_serve(Flavour::Nftables, Other::DnsmasqBindInterfaces);
}

#[test]
fn beside_dnsmasq_with_bind_dynamic_both_answer() {
    need_host!(Needs::Tool("udhcpc"));
    both_serve(Flavour::Iptables, Other::DnsmasqBindDynamic);
}

/// Without either word it keeps the port, and a raw socket hears what it hears.
#[test]
fn beside_plain_dnsmasq_both_answer_by_a_raw_socket() {
    need_host!(Needs::Tool("udhcpc"));
    for flavour in [Flavour::Nftables, Flavour::Iptables] {
        let place = Place::of(Site::GrantsRaw, flavour, Other::Dnsmasq);
        both_serve_in(&place, Other::Dnsmasq, "shared-raw");
        // A machine hears one offer of ours, and that from the port that it listens to.
        let mut client = place.boot();
        client.ready().unwrap();
        let bytes = boot_question();
        let limit = Duration::from_secs(3);
        let heard = ask(&place.machine, "eth0", 68, &bytes, &[EVERYBODY], (9, limit)).unwrap();
        let ours: Vec<_> = heard.iter().filter(|one| one.1[16..20] == [0; 4]).collect();
        assert_eq!(ours.len(), 1, "{heard:?}");
        assert_eq!(ours[0].0, SocketAddrV4::new(HOST, 67));
        // Killed, it leaves nothing either.
        client.signal(Signal::SIGKILL).unwrap();
        let same = || Snapshot::take(place.host.netns()).is_ok_and(|now| now == place.before);
        assert!(wait_until(SOON, same), "{}", place.host.log());
    }
}

#[test]
fn beside_plain_dnsmasq_a_machine_boots_by_a_raw_socket() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("udhcpc"));
    let place = Place::of(Site::GrantsRaw, Flavour::Iptables, Other::Dnsmasq);
    let mut client = place.boot();
    client.ready().unwrap();
    let mut machine = Machine::start(&place.lan, Firmware::Uefi, "02:00:00:00:00:0a").unwrap();
    let up = machine.up();
    assert!(up.is_ok(), "{up:?}\n{}{}", client.stdout(), client.stderr());
    drop(machine);
    place.ends(&mut client);
}

#[test]
fn a_raw_socket_without_its_capability_is_refused_with_what_to_install() {
    need_host!();
    let place = Place::of(Site::AllowsRaw, Flavour::Nftables, Other::Dnsmasq);
    let mut client = place.boot();
    assert_eq!(client.end().unwrap().code(), Some(14), "{}", client.stderr());
    let said = [client.stdout(), client.stderr()].concat();
    for part in ["udp port 67 is in use", "CAP_NET_RAW", "raw-dhcp.conf"] {
        assert!(said.contains(part), "{said}");
    }
    assert_same(&place.before, &Snapshot::take(place.host.netns()).unwrap());
}

/// The raw socket is for servers that do not share: where the port is shared, it is not used.
#[test]
fn a_port_that_is_shared_is_not_heard_by_a_raw_socket() {
    need_host!(Needs::Tool("udhcpc"));
    let place = Place::of(Site::GrantsRaw, Flavour::Nftables, Other::DnsmasqBindInterfaces);
    both_serve_in(&place, Other::DnsmasqBindInterfaces, "shared");
}

#[test]
fn beside_networkd_both_answer() {
    need_host!(Needs::Tool("udhcpc"), Needs::File("/usr/lib/systemd/systemd-networkd"));
    both_serve(Flavour::Nftables, Other::Networkd);
}

#[test]
fn beside_kea_with_packet_sockets_both_answer() {
    need_host!(Needs::Tool("udhcpc"), Needs::Tool("kea-dhcp4"));
    both_serve(Flavour::Iptables, Other::KeaRaw);
}

#[test]
fn beside_kea_with_udp_sockets_the_port_is_shared() {
    need_host!(Needs::Tool("udhcpc"), Needs::Tool("kea-dhcp4"));
    // So bound it hears no broadcast at all: its clients come over relays.
    let place = Place::new(Flavour::Nftables, Other::KeaUdp);
    let mut client = place.boot();
    client.ready().unwrap();
    place.machine.address("eth0", "192.0.2.9/24").unwrap();
    let (theirs, ours) = place.discover(1);
    assert!(theirs.is_none() && ours.is_some());
    place.ends(&mut client);
}

#[test]
fn a_server_that_does_not_share_is_named_with_what_to_do() {
    need_host!();
    let place = Place::new(Flavour::Nftables, Other::Dnsmasq);
    let mut client = place.boot();
    assert_eq!(client.end().unwrap().code(), Some(14), "{}", client.stderr());
    let said = [client.stdout(), client.stderr()].concat();
    for part in ["udp port 67 is in use", "bind-dynamic", "raw-dhcp"] {
        assert!(said.contains(part), "{said}");
    }
    assert_same(&place.before, &Snapshot::take(place.host.netns()).unwrap());
    assert!(place.discover(1).0.is_some(), "the other server goes on");
}
