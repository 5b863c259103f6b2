//! Level 4: what is told of a machine follows from its packets: each is sent here as firmware, iPXE and
//! the booted system send it, and `--json` is read.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use portcullis_lab::{
    boot_client::{ask, message, option},
    download::{http, tftp},
    host::{Client, Site},
    need_host,
    netns::Netns,
    nixos::Flavour,
    process::wait_until,
    scene::{HOST, HTTP, Scene},
};
use serde_json::Value;

/// Longest time for anything that is waited for.
const SOON: Duration = Duration::from_secs(40);
/// The machine; nobody assigned its address, so it has no maker.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FIRMWARE: &[(u8, &[u8])] =
    &[(53, &[1]), (60, b"PXEClient:Arch:00007:UNDI:003016"), (93, &[0, 7])];
const IPXE: &[(u8, &[u8])] = &[
    (53, &[1]),
    (60, b"PXEClient:Arch:00007:UNDI:003016"),
    (93, &[0, 7]),
    (77, b"iPXE"),
    (175, &[0x13, 1, 1, 0x24, 1, 1]),
];
/// A system that asks for an address: no class of a boot client.
const SYSTEM: &[(u8, &[u8])] = &[(53, &[1]), (60, b"udhcp 1.35.0"), (55, &[1, 3, 6])];

/// A machine on the scene's LAN.
struct Machine(Netns);

impl Machine {
    fn on(scene: &Scene) -> Self {
        Self(scene.lan.machine("192.0.2.80/24").unwrap())
    }

    /// Asks until there is an offer of ours, and returns the file in it.
    fn offered(&self, mac: [u8; 6], options: &[(u8, &[u8])]) -> String {
        let mut file = None;
        wait_until(SOON, || {
            let answers = self.broadcast(mac, options, 4);
            let ours = answers.iter().filter(|(from, _)| from.ip().octets() == HOST);
            file = ours.filter_map(|(_, bytes)| option(bytes, 67)).next_back();
            file.is_some()
        });
        String::from_utf8(file.expect("an offer")).unwrap().trim_end_matches('\0').to_owned()
    }

    fn broadcast(
        &self,
        mac: [u8; 6],
        options: &[(u8, &[u8])],
        answers: usize,
    ) -> Vec<(SocketAddrV4, Vec<u8>)> {
        let to = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
        let limit = (answers, Duration::from_millis(700));
        ask(&self.0, "eth0", 68, &message(mac, options), &to, limit).unwrap()
    }

    fn get(&self, path: &str) -> Vec<u8> {
        http(&self.0, SocketAddr::from((HOST, HTTP)), path, Duration::ZERO).unwrap()
    }

    /// From the first packet until it has everything.
    fn boots(&self) {
        let loader = self.offered(MAC, FIRMWARE);
        let server = SocketAddr::from((HOST, 69));
        assert!(!tftp(&self.0, server, &loader, Duration::ZERO).unwrap().is_empty());
        let url = self.offered(MAC, IPXE);
        let script = url.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap();
        for file in ["boot.ipxe", "kernel", "initrd0"] {
            assert!(!self.get(&script.replace("boot.ipxe", file)).is_empty(), "{file}");
        }
    }
}

/// Waits for an event of the machine that has this value.
#[track_caller]
fn told(client: &Client, key: &str, value: &str) -> Value {
    let found = || client.events().into_iter().find(|event| event[key] == value);
    assert!(wait_until(SOON, || found().is_some()), "no {key} {value}:\n{}", client.stdout());
    found().unwrap()
}

/// Facts and statements of the machine by name, but for progress.
fn way(client: &Client) -> Vec<String> {
    let events = client.events();
    let names = events
        .iter()
        .filter(|event| event["mac"] == "02:00:00:00:00:01")
        .filter_map(|event| event["fact"].as_str().or_else(|| event["statement"].as_str()));
    names.filter(|name| *name != "transfer-progress").map(str::to_owned).collect()
}

#[test]
fn a_boots_packets_are_told_in_order_until_its_system_asks_for_an_address() {
    need_host!();
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let client = scene.serve(&[]).unwrap();
    let machine = Machine::on(&scene);
    // A system that did not come from here is nobody's news.
    machine.broadcast(MAC, SYSTEM, 1);
    machine.boots();
    told(&client, "statement", "handed-over");
    assert!(wait_until(SOON, || {
        machine.broadcast(MAC, SYSTEM, 1);
        client.stdout().contains("\"fact\":\"up\"")
    }));
    machine.broadcast(MAC, SYSTEM, 1);
    let download = ["transfer-started", "transfer-done"];
    let mut expected = vec!["seen", "offered"];
    expected.extend(download);
    expected.extend(["seen", "offered"]);
    expected.extend(download.repeat(3));
    expected.extend(["handed-over", "up"]);
    assert_eq!(way(&client), expected, "{}", client.stdout());

    assert_eq!(told(&client, "fact", "seen")["vendor"], Value::Null);
    assert_eq!(told(&client, "fact", "up")["sign"], "dhcp");
    let loader = told(&client, "role", "loader");
    assert_eq!(loader["protocol"], "tftp", "{loader}");
    assert!(loader["file"].as_str().unwrap().ends_with("snponly.efi"), "{loader}");
    assert_eq!(told(&client, "role", "kernel")["file"], "bzImage");
}

#[test]
fn a_system_may_say_itself_that_it_is_up_and_nobody_else_for_it() {
    need_host!();
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let client = scene.serve(&[]).unwrap();
    let machine = Machine::on(&scene);
    // The address in its packets is that of its card, since it is looked up by that.
    machine.0.ip("link set dev eth0 address 02:00:00:00:00:01").unwrap();
    machine.boots();
    told(&client, "statement", "handed-over");
    let to = SocketAddr::from((HOST, HTTP));
    http(&scene.outsider, to, "/up", Duration::ZERO).unwrap();
    assert_eq!(machine.get("/up"), b"welcome\n");
    assert_eq!(told(&client, "fact", "up")["sign"], "url");
    machine.get("/up");
    machine.broadcast(MAC, SYSTEM, 1);
    let ups = client.events().iter().filter(|event| event["fact"] == "up").count();
    assert_eq!(ups, 1, "{}", client.stdout());
}
