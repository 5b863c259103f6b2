//! `portcullis doctor` in a laboratory of broken networks: each fault is named as what it is, and the same
//! set-up without it is silent. Nothing is left of it, and without `--probe` nothing is opened.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{net::UdpSocket, os::unix::fs::PermissionsExt as _, path::PathBuf};

use portcullis_lab::{
    host::{Host, SOON, Site},
    lan::Lan,
    need_host,
    netns::Netns,
    nixos::{self, Flavour, Settings},
    probe,
    process::wait_until,
    rival::Rival,
    snapshot::{Snapshot, assert_same},
};
use serde_json::Value;

/// Exit code, as README lists it.
const FOUND: i32 = 34;

/// A LAN on which nobody hands out addresses yet, and the host at 192.0.2.2.
struct Ward {
    host: Host,
    lan: Lan,
}

impl Ward {
    fn new(flavour: Option<Flavour>, site: Site) -> Self {
        let lan = Lan::new().unwrap();
        let host = Host::start("host", site).unwrap();
        lan.attach(host.netns(), "eth0", Some("192.0.2.2/24")).unwrap();
        if let Some(flavour) = flavour {
            nixos::start(host.netns(), flavour, &Settings::default()).unwrap();
        }
        Self { host, lan }
    }

    fn nftables() -> Self {
        Self::new(Some(Flavour::Nftables), Site::AllowsAlice)
    }

    /// What the host's kernel says of an interface.
    fn sysfs(&self, path: &str) -> String {
        let mut command = self.host.command(None, "cat");
        command.arg(format!("/sys/class/net/{path}"));
        self.host.netns().finish(command).unwrap().trim().to_owned()
    }

    /// Somebody else at this address.
    fn neighbour(&self, label: &str, address: &str) -> Netns {
        let netns = Netns::new(label).unwrap();
        self.lan.attach(&netns, "eth0", Some(address)).unwrap();
        netns
    }

    /// What alice is told, one object a line. Nothing is left of the examination.
    #[track_caller]
    fn told(&self, words: &[&str]) -> Vec<Value> {
        let state = || (Snapshot::take(self.host.netns()).unwrap(), self.host.sockets().unwrap());
        let before = state();
        let arguments =
            [&["doctor", "--json", "--no-ask-password", "--color=never"], words].concat();
        let mut client = self.host.client("alice", &arguments).unwrap();
        let code = client.end().unwrap().code();
        let told = client.events();
        let of = |event: &str| told.iter().filter(|one| one["event"] == event).count();
        let expected = if of("finding") == 0 { 0 } else { FOUND };
        assert_eq!(code, Some(expected), "{told:#?}\n{}", client.stderr());
        assert_eq!(of("examined"), 1, "{}", client.stderr());
        wait_until(SOON, || state() == before);
        let after = state();
        assert_same(&before.0, &after.0);
        assert_eq!(before.1, after.1);
        told
    }

    /// The names of what is found.
    #[track_caller]
    fn finds(&self, words: &[&str]) -> Vec<String> {
        names(&self.told(words))
    }

    /// Nothing is found.
    #[track_caller]
    fn is_silent(&self, words: &[&str]) {
        let told = self.told(words);
        assert_eq!(names(&told), NOTHING, "{told:#?}");
    }
}

const NOTHING: [&str; 0] = [];
/// What is served everywhere.
const IMAGE: [&str; 3] = ["/mnt", "-i", "eth0"];
const PROBE: [&str; 4] = ["/mnt", "-i", "eth0", "--probe"];

fn findings(told: &[Value]) -> impl Iterator<Item = &Value> {
    told.iter().filter(|one| one["event"] == "finding")
}

fn names(told: &[Value]) -> Vec<String> {
    findings(told).map(|one| one["finding"].as_str().unwrap().to_owned()).collect()
}

/// The text of the only finding, and what to do.
#[track_caller]
fn only(told: &[Value], name: &str) -> (String, String) {
    assert_eq!(names(told), [name], "{told:#?}");
    let one = findings(told).next().unwrap();
    assert!(!one["remedies"].as_array().unwrap().is_empty(), "{one}");
    (one["text"].to_string(), one["remedies"].to_string())
}

fn fact<'a>(told: &'a [Value], about: &str) -> &'a str {
    let found = told.iter().find(|one| one["event"] == "fact" && one["about"] == about);
    found.and_then(|one| one["text"].as_str()).unwrap_or_default()
}

#[test]
fn what_is_in_order_is_said_and_nothing_is_opened() {
    need_host!();
    for (flavour, word) in [
        (Some(Flavour::Nftables), "NixOS, nftables"),
        (Some(Flavour::Iptables), "NixOS, iptables"),
        (None, "none"),
    ] {
        let ward = Ward::new(flavour, Site::AllowsAlice);
        let told = ward.told(&IMAGE);
        assert_eq!(names(&told), NOTHING, "{told:#?}");
        assert!(fact(&told, "firewall").starts_with(word), "{told:#?}");
        assert_eq!(fact(&told, "ports"), "free: UDP 67, 69, 4011 and TCP 64172");
        assert!(fact(&told, "machines").contains("BIOS PCs, 64-bit UEFI PCs"), "{told:#?}");
        assert!(fact(&told, "network").contains("--probe"), "{told:#?}");
        assert!(!ward.host.log().contains("granted"), "{}", ward.host.log());
    }
}

#[test]
fn nothing_connected() {
    need_host!();
    let ward = Ward::nftables();
    let port = |state: &str| ward.lan.switch().ip(&format!("link set port0 {state}")).unwrap();
    let carrier = || ward.sysfs("eth0/operstate");
    port("down");
    assert!(wait_until(SOON, || carrier() != "up"));
    assert_eq!(ward.finds(&IMAGE), ["no-carrier"]);
    port("up");
    assert!(wait_until(SOON, || carrier() == "up"));
    ward.is_silent(&IMAGE);
}

#[test]
fn a_port_is_taken_also_where_the_helper_cannot_be_asked() {
    need_host!();
    let ward = Ward::nftables();
    ward.is_silent(&IMAGE);
    let without_bus = || {
        let mut words = vec!["DBUS_SYSTEM_BUS_ADDRESS=unix:path=/none", "portcullis", "doctor"];
        words.extend(["--json", "-i", "eth0"]);
        let mut client = ward.host.program("alice", "env", &words).unwrap();
        assert_eq!(client.end().unwrap().code(), Some(FOUND), "{}", client.stderr());
        client.events()
    };
    assert_eq!(names(&without_bus()), ["helper"]);
    let socket = ward.host.netns().run(|| UdpSocket::bind("0.0.0.0:69").unwrap()).unwrap();
    let (text, remedy) = only(&ward.told(&IMAGE), "port-taken");
    assert!(text.contains("udp port 69") && text.contains("uid 0 (root)"), "{text}");
    assert!(remedy.contains("ss -lnp"), "{remedy}");
    let told = without_bus();
    assert_eq!(names(&told), ["helper", "port-taken"]);
    assert!(findings(&told).nth(1).unwrap()["text"].to_string().contains("udp port 69"));
    drop(socket);
    // In nobody's way.
    let _local = ward.host.netns().run(|| UdpSocket::bind("127.0.0.1:69").unwrap()).unwrap();
    ward.is_silent(&IMAGE);
    assert_eq!(names(&without_bus()), ["helper"]);
}

#[test]
fn a_strict_reverse_path_with_two_interfaces_in_one_network() {
    need_host!();
    let ward = Ward::new(None, Site::AllowsAlice);
    let host = ward.host.netns();
    ward.lan.attach(host, "eth1", Some("192.0.2.4/24")).unwrap();
    let neighbour = ward.neighbour("neighbour", "192.0.2.3/24");
    let filter = |value: &str| {
        for (name, value) in [("all", "0"), ("eth0", value), ("eth1", value)] {
            host.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), value).unwrap();
        }
    };
    // The truth that the finding is about: what comes in by eth1 is dropped.
    let mac = ward.sysfs("eth1/address");
    neighbour.ip(&format!("neigh replace 192.0.2.4 lladdr {mac} dev eth0 nud permanent")).unwrap();
    let arrives = || {
        let holder = host.run(|| UdpSocket::bind("192.0.2.4:4000").unwrap()).unwrap();
        probe::udp_arrives(&neighbour, ([192, 0, 2, 4], 4000).into(), &holder).unwrap()
    };
    let second = ["/mnt", "-i", "eth1"];
    filter("2");
    assert!(wait_until(SOON, arrives));
    ward.is_silent(&second);
    filter("1");
    assert!(!arrives());
    let (text, remedy) = only(&ward.told(&second), "reverse-path");
    assert!(text.contains("eth0") && text.contains("192.0.2.0/24"), "{text}");
    assert!(remedy.contains("-i eth0"), "{remedy}");
    // Over eth0 leads the way back, too.
    ward.is_silent(&IMAGE);
    // A firewall's own test cannot be seen: that it may be there is said.
    filter("2");
    nixos::start(host, Flavour::Nftables, &Settings::default()).unwrap();
    let told = ward.told(&second);
    assert_eq!(names(&told), NOTHING, "{told:#?}");
    assert!(fact(&told, "way back").contains("checkReversePath"), "{told:#?}");
}

#[test]
fn a_bridge_whose_frames_are_filtered() {
    need_host!();
    let ward = Ward::new(None, Site::AllowsAlice);
    let host = ward.host.netns();
    host.bridge("br0").unwrap();
    host.address("br0", "198.51.100.2/24").unwrap();
    ward.lan.attach(host, "eth1", None).unwrap();
    host.plug("eth1", "br0").unwrap();
    assert!(wait_until(SOON, || ward.sysfs("br0/operstate") == "up"));
    // Where the kernel has br_netfilter loaded; elsewhere nothing is filtered.
    let filter = |value: &str| {
        let set = host.sysctl("net/bridge/bridge-nf-call-iptables", value).is_ok();
        let told = ward.told(&["-i", "br0"]);
        assert_eq!(names(&told), NOTHING, "{told:#?}");
        (set, !fact(&told, "bridge").is_empty())
    };
    let (is_loaded, is_told) = filter("1");
    assert_eq!(is_told, is_loaded);
    assert!(!filter("0").1);
}

#[test]
fn a_firewall_that_is_not_known() {
    need_host!();
    let ward = Ward::new(None, Site::AllowsAlice);
    let table = |policy: &str| {
        let script = format!(
            "nft 'table inet own; delete table inet own; table inet own {{ chain input {{ \
             type filter hook input priority 0; policy {policy}; ct state established accept; }}; }}'"
        );
        ward.host.netns().sh(&script).unwrap();
    };
    table("drop");
    let (text, remedy) = only(&ward.told(&IMAGE), "firewall");
    assert!(text.contains("table inet own, chain input"), "{text}");
    assert!(remedy.contains("helper.toml"), "{remedy}");
    table("accept");
    ward.is_silent(&IMAGE);
}

#[test]
fn a_kill_switch_of_a_vpn() {
    need_host!();
    for flavour in Flavour::BOTH {
        let ward = Ward::new(Some(flavour), Site::AllowsAlice);
        let table = |policy: &str| {
            let script = format!(
                "nft 'table inet vpn; delete table inet vpn; table inet vpn {{ chain output {{ \
                 type filter hook output priority 0; policy {policy}; oifname \"wg0\" accept; }}; }}'"
            );
            ward.host.netns().sh(&script).unwrap();
        };
        table("drop");
        let (text, _) = only(&ward.told(&IMAGE), "other-table");
        assert!(text.contains("table inet vpn, chain output"), "{text}");
        table("accept");
        ward.is_silent(&IMAGE);
    }
}

#[test]
fn polkit_says_no() {
    need_host!();
    let ward = Ward::new(Some(Flavour::Nftables), Site::Refuses);
    only(&ward.told(&IMAGE), "not-allowed");
    // Nothing is asked then, and nobody is asked for a password.
    assert_eq!(ward.finds(&PROBE), ["not-allowed"]);
    let ward = Ward::new(Some(Flavour::Nftables), Site::Asks);
    let told = ward.told(&IMAGE);
    assert_eq!(names(&told), NOTHING, "{told:#?}");
    assert!(fact(&told, "permission").contains("password"), "{told:#?}");
    Ward::nftables().is_silent(&IMAGE);
}

/// A file with the head of a kernel: bzImage or not, and with an EFI stub for this machine or without.
fn kernel(directory: &tempfile::TempDir, bzimage: bool, machine: Option<u16>) -> PathBuf {
    let mut head = vec![0_u8; 4096];
    if bzimage {
        head[0x202..0x206].copy_from_slice(b"HdrS");
    } else {
        head[56..60].copy_from_slice(b"ARM\x64");
    }
    if let Some(machine) = machine {
        head[..2].copy_from_slice(b"MZ");
        head[0x3c] = 0x80;
        head[0x80..0x84].copy_from_slice(b"PE\0\0");
        head[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
    }
    let path = directory.path().join(format!("{bzimage}-{machine:?}"));
    std::fs::write(&path, head).unwrap();
    path
}

#[test]
fn an_image_that_no_machine_here_can_start() {
    need_host!();
    let ward = Ward::nftables();
    let directory = tempfile::tempdir().unwrap();
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), readable).unwrap();
    let text = directory.path().join("text");
    std::fs::write(&text, "<html>not found</html>").unwrap();
    let told = |kernel: PathBuf, initrd: Option<&str>| {
        let kernel = kernel.display().to_string();
        let mut words = vec!["-i", "eth0", kernel.as_str()];
        words.extend(initrd);
        ward.told(&words)
    };
    let pc = || kernel(&directory, true, Some(0x8664));
    assert_eq!(names(&told(pc(), None)), NOTHING);
    let (said, _) =
        only(&told(kernel(&directory, false, Some(0xaa64)), None), "wrong-architecture");
    assert!(said.contains("arm64 UEFI machines"), "{said}");
    only(&told(kernel(&directory, true, None), None), "no-efi-stub");
    let text = text.display().to_string();
    only(&told(pc(), Some(&text)), "initrd");
    only(&told(directory.path().join("none"), None), "source");
}

#[test]
fn no_dhcp_server_at_all() {
    need_host!();
    let ward = Ward::nftables();
    let (_, remedy) = only(&ward.told(&PROBE), "no-dhcp");
    assert!(remedy.contains("--dhcp-server"), "{remedy}");
    let router = ward.neighbour("router", "192.0.2.1/24");
    let _rival = Rival::start(&router, "eth0", &[]).unwrap();
    let told = ward.told(&PROBE);
    assert_eq!(names(&told), NOTHING, "{told:#?}");
    assert!(fact(&told, "network").contains("BIOS, UEFI, HTTP boot"), "{told:#?}");
    assert!(fact(&told, "offer").starts_with("192.0.2.1: an address (192.0.2."), "{told:#?}");
    let offers: Vec<_> = told.iter().filter(|one| one["event"] == "offer").collect();
    assert_eq!(offers.len(), 3, "one for each who asked: {told:#?}");
    assert!(offers.iter().all(|one| one["server"] == "192.0.2.1" && one["file"].is_null()));
}

/// With a router that is given these arguments: the only finding.
#[track_caller]
fn router(arguments: &[&str], name: &str) -> (String, String) {
    let ward = Ward::new(Some(Flavour::Iptables), Site::AllowsAlice);
    let router = ward.neighbour("router", "192.0.2.1/24");
    let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    let _rival = Rival::start(&router, "eth0", &arguments).unwrap();
    only(&ward.told(&PROBE), name)
}

#[test]
fn a_router_that_says_it_is_a_pxe_server() {
    need_host!();
    let (text, remedy) = router(&["--dhcp-option-force=60,PXEClient"], "router-is-pxe-server");
    assert!(text.contains("192.0.2.1") && text.contains("option 60"), "{text}");
    assert!(remedy.contains("Remove option 60"), "{remedy}");
}

#[test]
fn a_router_that_names_a_boot_file() {
    need_host!();
    let (text, _) = router(&["--dhcp-boot=pxelinux.0"], "router-boot-file");
    assert!(text.contains("(pxelinux.0)"), "{text}");
}

#[test]
fn a_router_that_serves_http_boot_itself() {
    need_host!();
    let (text, _) = router(
        &[
            "--dhcp-match=set:http,60,HTTPClient",
            "--dhcp-boot=tag:http,http://192.0.2.1/boot.efi",
            "--dhcp-option-force=tag:http,60,HTTPClient",
        ],
        "router-http",
    );
    assert!(text.contains("192.0.2.1"), "{text}");
}

#[test]
fn a_second_proxy() {
    need_host!();
    let ward = Ward::nftables();
    let router = ward.neighbour("router", "192.0.2.1/24");
    let _rival = Rival::start(&router, "eth0", &[]).unwrap();
    ward.is_silent(&PROBE);
    // Another portcullis, on a computer of its own.
    let other = Host::start("other", Site::AllowsAlice).unwrap();
    ward.lan.attach(other.netns(), "eth0", Some("192.0.2.9/24")).unwrap();
    let mut serving = other
        .client("alice", &["boot", "/mnt", "-i", "eth0", "--json", "--no-ask-password"])
        .unwrap();
    serving.ready().unwrap();
    let (text, _) = only(&ward.told(&PROBE), "other-boot-server");
    assert!(text.contains("192.0.2.9"), "{text}");
}

#[test]
fn addresses_are_to_be_handed_out_where_somebody_does() {
    need_host!();
    let ward = Ward::new(Some(Flavour::Nftables), Site::GivesAlice);
    let words = [&PROBE[..], &["--dhcp-server"]].concat();
    ward.is_silent(&words);
    let router = ward.neighbour("router", "192.0.2.1/24");
    let _rival = Rival::start(&router, "eth0", &[]).unwrap();
    let (text, _) = only(&ward.told(&words), "other-dhcp-server");
    assert!(text.contains("192.0.2.1"), "{text}");
}
