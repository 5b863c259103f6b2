//! Level 4: `--dhcp-server` on a LAN without any other DHCP server, behind NixOS' firewalls: real DHCP
//! clients get and renew an address, machines boot, and another server is never disturbed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{net::SocketAddrV4, os::unix::fs::PermissionsExt as _, time::Duration};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs,
    boot_client::{ask, message, option},
    host::{Client, Host, Site},
    lan::Lan,
    machine::{self, Firmware, Machine, OVMF},
    need_host,
    netns::Netns,
    nixos::{self, Flavour, Settings},
    process::{Process, mortal, wait_until},
    rival::Rival,
    snapshot::{Snapshot, assert_same},
};

/// systemd's boot stub (package systemd-boot-efi).
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const MAC: &str = "02:00:00:00:00:01";
/// Where a machine without an address asks.
const SERVERS: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::BROADCAST, 67);
/// Longest time for anything short of a boot.
const SOON: Duration = Duration::from_secs(20);
/// Longest time until a silent machine or a new server is spoken of: each is looked at every 30 s.
const LATER: Duration = Duration::from_secs(90);
/// Exit codes, as README lists them.
const FORBIDDEN: i32 = 17;
const INTERFACE: i32 = 32;
const OTHER_DHCP_SERVER: i32 = 33;

/// A cable between the host, 192.0.2.2, and whoever is plugged in; nobody hands out addresses.
struct Cable {
    host: Host,
    before: Snapshot,
    lan: Lan,
}

impl Cable {
    fn new(flavour: Flavour, site: Site, address: Option<&str>) -> Self {
        let lan = Lan::new().unwrap();
        let host = Host::start("host", site).unwrap();
        lan.attach(host.netns(), "eth0", address).unwrap();
        nixos::start(host.netns(), flavour, &Settings::default()).unwrap();
        let before = Snapshot::take(host.netns()).unwrap();
        Self { host, before, lan }
    }

    /// `portcullis boot` by alice.
    fn boot(&self, more: &[&str]) -> Client {
        let mut arguments = vec!["boot", "/mnt", "-i", "eth0", "--json", "--no-ask-password"];
        arguments.extend(more);
        self.host.client("alice", &arguments).unwrap()
    }

    /// The same until it serves.
    fn serve(&self, more: &[&str]) -> Client {
        let mut client = self.boot(more);
        client.ready().unwrap();
        client
    }

    /// It ends with this code, its last words hold `word`, and nothing is left of it.
    #[track_caller]
    fn refuses(&self, mut client: Client, code: i32, word: &str) {
        assert_eq!(client.end().unwrap().code(), Some(code), "{}", client.stderr());
        assert!(client.stderr().contains(word), "{}", client.stderr());
        self.assert_restored();
    }

    #[track_caller]
    fn assert_restored(&self) {
        let now = || Snapshot::take(self.host.netns()).unwrap();
        wait_until(SOON, || now() == self.before);
        assert_same(&self.before, &now());
    }

    fn plugged_in(&self, label: &str) -> Netns {
        let netns = Netns::new(label).unwrap();
        self.lan.attach(&netns, "eth0", None).unwrap();
        netns
    }

    fn ends(&self, mut client: Client) {
        client.signal(Signal::SIGINT).unwrap();
        assert_eq!(client.end().unwrap().code(), Some(0), "{}", client.stderr());
        self.assert_restored();
    }
}

/// busybox' DHCP client, which notes what it is told, with and puts the address on.
struct Udhcpc {
    process: Process,
    directory: tempfile::TempDir,
}

impl Udhcpc {
    fn start(netns: &Netns) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        let notes = directory.path().join("notes");
        let text = format!(
            "#!/bin/sh\n[ \"$1\" != bound ] || ip address add \"$ip/$mask\" dev eth0\n\
             echo \"$1 $ip/$mask $serverid $router $dns $lease\" >>{}\n",
            notes.display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = mortal("udhcpc");
        command.args(["-f", "-i", "eth0", "-s"]).arg(&script);
        Self { process: netns.spawn(command).unwrap(), directory }
    }

    /// What it was told when this happened.
    #[track_caller]
    fn told(&self, event: &str) -> String {
        let notes =
            || std::fs::read_to_string(self.directory.path().join("notes")).unwrap_or_default();
        let line = || {
            let notes = notes();
            notes.lines().find_map(|line| line.strip_prefix(event)).map(str::to_owned)
        };
        assert!(wait_until(SOON, || line().is_some()), "no {event} in: {}", notes());
        line().unwrap().trim().to_owned()
    }
}

fn is_note(event: &serde_json::Value, words: &str) -> bool {
    event["event"] == "note" && event["text"].as_str().is_some_and(|text| text.contains(words))
}

#[test]
fn udhcpc_and_dhclient_get_the_same_address_and_renew_it() {
    need_host!(Needs::Tool("udhcpc"), Needs::Tool("dhclient"));
    let cable = Cable::new(Flavour::Nftables, Site::GivesAlice, Some("192.0.2.2/24"));
    let client = cable.serve(&["--dhcp-server", "--router", "192.0.2.9", "--dns", "192.0.2.8"]);
    let machine = cable.plugged_in("machine");

    let udhcpc = Udhcpc::start(&machine);
    let told = udhcpc.told("bound");
    let address = told.split('/').next().unwrap().to_owned();
    assert_eq!(told, format!("{address}/24 192.0.2.2 192.0.2.9 192.0.2.8 3600"));
    // By unicast, from the address that it has put on.
    udhcpc.process.signal(Signal::SIGUSR1).unwrap();
    assert_eq!(udhcpc.told("renew"), told);
    let leased = |event: &serde_json::Value| {
        event["fact"] == "leased" && event["address"] == address.as_str()
    };
    assert_eq!(client.events().iter().filter(|event| leased(event)).count(), 1, "told once");
    drop(udhcpc);
    machine.ip("address flush dev eth0").unwrap();

    let directory = tempfile::tempdir().unwrap();
    let leases = directory.path().join("leases");
    let mut command = mortal("dhclient");
    command.args(["-4", "-1", "-d", "-sf", "/bin/true", "-cf", "/dev/null"]);
    command.arg("-lf").arg(&leases).arg("-pf").arg(directory.path().join("pid")).arg("eth0");
    let dhclient = machine.spawn(command).unwrap();
    let lease = || std::fs::read_to_string(&leases).unwrap_or_default();
    assert!(wait_until(SOON, || lease().contains("fixed-address")), "{}", lease());
    for line in [
        &format!("fixed-address {address};"),
        "option subnet-mask 255.255.255.0;",
        "option routers 192.0.2.9;",
        "option domain-name-servers 192.0.2.8;",
        "option dhcp-lease-time 3600;",
        "option dhcp-renewal-time 1800;",
    ] {
        assert!(lease().contains(line), "no {line} in: {}", lease());
    }
    drop(dhclient);

    cable.ends(client);
}

#[test]
fn a_server_that_is_there_first_is_left_alone() {
    need_host!();
    let cable = Cable::new(Flavour::Iptables, Site::GivesAlice, Some("192.0.2.2/24"));
    let router = Netns::new("router").unwrap();
    cable.lan.attach(&router, "eth0", Some("192.0.2.1/24")).unwrap();
    let rival = Rival::start(&router, "eth0", &[]).unwrap();
    cable.refuses(cable.boot(&["--dhcp-server"]), OTHER_DHCP_SERVER, "192.0.2.1");
    assert_eq!(rival.leases(), <[String; 0]>::default(), "the question took no address");
}

#[test]
fn ended_while_it_looks_for_other_servers_it_says_what_it_closed() {
    need_host!();
    let cable = Cable::new(Flavour::Nftables, Site::GivesAlice, Some("192.0.2.2/24"));
    let client = cable.boot(&["--dhcp-server"]);
    assert!(
        wait_until(SOON, || client.stdout().contains("Looking for other")),
        "{}",
        client.stderr()
    );
    client.signal(Signal::SIGINT).unwrap();
    let mut client = client;
    assert_eq!(client.end().unwrap().code(), Some(0), "{}", client.stderr());
    let said = client.stdout();
    assert!(said.contains("\"event\":\"closed\"") && !said.contains("\"ready\""), "{said}");
    cable.assert_restored();
}

#[test]
fn a_server_that_appears_later_ends_the_handing_out_and_not_the_serving() {
    need_host!();
    let cable = Cable::new(Flavour::Nftables, Site::GivesAlice, Some("192.0.2.2/24"));
    let client = cable.serve(&["--dhcp-server"]);
    let machine = cable.plugged_in("machine");
    let asks = || {
        let discover = message(
            [2, 0, 0, 0, 0, 9],
            &[(53, &[1]), (60, b"PXEClient:Arch:00007:UNDI:003000"), (93, &[0, 7])],
        );
        ask(&machine, "eth0", 68, &discover, &[SERVERS], (2, Duration::from_secs(5))).unwrap()
    };
    let answers = asks();
    let [(from, offer)] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(from.to_string(), "192.0.2.2:67");
    assert_eq!((&offer[16..19], &offer[20..24]), (&[192, 0, 2][..], &[192, 0, 2, 2][..]));
    assert_eq!(option(offer, 60).unwrap(), b"PXEClient");

    let router = Netns::new("router").unwrap();
    cable.lan.attach(&router, "eth0", Some("192.0.2.1/24")).unwrap();
    let _rival = Rival::start(&router, "eth0", &[]).unwrap();
    let noticed = || client.events().iter().any(|event| is_note(event, "192.0.2.1"));
    assert!(wait_until(LATER, noticed), "{}", client.stdout());
    let mut answers = asks();
    answers.sort();
    let [(theirs, address), (ours, boot)] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(
        (theirs.to_string(), &address[16..19]),
        ("192.0.2.1:67".to_owned(), &[192, 0, 2][..])
    );
    // What to boot, and no address: a proxy's answer.
    assert_eq!((ours.to_string(), &boot[16..20]), ("192.0.2.2:67".to_owned(), &[0; 4][..]));
    assert_eq!((option(boot, 51), option(boot, 60).unwrap()), (None, b"PXEClient".to_vec()));
    cable.ends(client);
}

/// Boots one machine; what is served, and the arguments behind it.
fn boots(cable: &Cable, firmware: Firmware, more: &[&str]) {
    let client = cable.serve(&[&["--dhcp-server"], more].concat());
    let mut machine = Machine::start(&cable.lan, firmware, MAC).unwrap();
    let up = machine.up();
    let (_, time) = up.unwrap_or_else(|error| panic!("{error}\n{}", client.stdout()));
    println!("{firmware:?}: {time:.1?} to userspace");
    assert_eq!(machine.initrd().unwrap(), machine::marker(&machine::image().unwrap()).unwrap());
    let events = client.events();
    let leased: std::collections::BTreeSet<_> = events
        .iter()
        .filter(|event| event["fact"] == "leased")
        .map(|event| event["address"].to_string())
        .collect();
    assert_eq!(leased.len(), 1, "one machine, one address: {events:#?}");
    assert!(events.iter().any(|event| event["statement"] == "handed-over"), "{events:#?}");
    cable.ends(client);
}

#[test]
fn p4_a_bios_machine_boots_without_any_other_dhcp_server() {
    need_host!(Needs::Tool("qemu-system-x86_64"));
    boots(
        &Cable::new(Flavour::Iptables, Site::GivesAlice, Some("192.0.2.2/30")),
        Firmware::Bios,
        &[],
    );
}

#[test]
fn p4_uefi_machines_boot_without_any_other_dhcp_server() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::File(OVMF[0]), Needs::File(STUB));
    let cable = Cable::new(Flavour::Nftables, Site::GivesAlice, Some("192.0.2.2/24"));
    boots(&cable, Firmware::Uefi, &[]);
    boots(&cable, Firmware::UefiHttp, &[]);
}

#[test]
fn the_site_the_address_and_the_network_are_judged_first() {
    need_host!();
    let cable = Cable::new(Flavour::Nftables, Site::AllowsAlice, None);
    cable.refuses(
        cable.boot(&["--dhcp-server"]),
        INTERFACE,
        "ip address add 10.77.0.1/24 dev eth0",
    );
    let host = cable.host.netns();
    host.address("eth0", "192.0.2.2/31").unwrap();
    cable.refuses(cable.boot(&["--dhcp-server"]), INTERFACE, "no room");
    host.address("eth0", "198.51.100.2/24").unwrap();
    cable.refuses(cable.boot(&["--dhcp-server"]), FORBIDDEN, "full-dhcp");
}

#[test]
fn a_cable_without_a_dhcp_server_is_told_from_what_the_machine_does() {
    need_host!();
    let cable = Cable::new(Flavour::Nftables, Site::AllowsAlice, Some("192.0.2.2/24"));
    let client = cable.serve(&[]);
    let machine = cable.plugged_in("machine");
    let discover = message(
        [2, 0, 0, 0, 0, 9],
        &[(53, &[1]), (60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])],
    );
    // Twice, as a ROM that hears of no address.
    for _ in 0..2 {
        let answers =
            ask(&machine, "eth0", 68, &discover, &[SERVERS], (1, Duration::from_secs(10))).unwrap();
        assert_eq!(answers.len(), 1);
    }
    let stalled = || client.events().into_iter().find(|event| event["statement"] == "stalled");
    assert!(wait_until(LATER, || stalled().is_some()), "{}", client.stdout());
    let stalled = stalled().unwrap();
    assert!(stalled["step"].as_str().unwrap().contains("no DHCP server"), "{stalled}");
    assert!(stalled["advice"][0].as_str().unwrap().contains("--dhcp-server"), "{stalled}");
    cable.ends(client);
}

#[test]
fn a_bios_machine_starts_from_its_disk_once_it_has_booted() {
    need_host!(Needs::Tool("qemu-system-x86_64"));
    let cable = Cable::new(Flavour::Nftables, Site::GivesAlice, Some("192.0.2.2/24"));
    let directory = tempfile::tempdir().unwrap();
    let disk = machine::disk(directory.path()).unwrap();
    for limit in [&["--once"][..], &["--count", "1"]] {
        let client = cable.serve(&[&["--dhcp-server"], limit].concat());
        let mut machine = Machine::with_disk(&cable.lan, Firmware::Bios, MAC, Some(&disk)).unwrap();
        machine.up().unwrap_or_else(|error| panic!("{error}\n{}", client.stdout()));
        drop(machine);
        let mut machine = Machine::with_disk(&cable.lan, Firmware::Bios, MAC, Some(&disk)).unwrap();
        let line = machine.line("PORTCULLIS-DISK ", machine::BOOT, machine::BOOT);
        let (_, time) = line.unwrap().unwrap();
        println!("Bios {limit:?}: {time:.1?} to the disk");
        let left = client.events().iter().any(|event| event["why"] == "already-booted");
        assert!(left, "{}", client.stdout());
        cable.ends(client);
    }
}
