//! Clients and tools that were not written here: TFTP and HTTP clients fetch what is served, ordinary
//! DHCP clients notice nothing, and scapy reads what is said. (dnsmasq as the oracle: differential.rs.)

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{path::Path, process::Command};

use portcullis_lab::{
    Needs, download::kernel_path, host::Site, lan::dissect, machine, need_host, netns::Netns,
    nixos::Flavour, process::finish, repository::script, scene::Scene,
};

const LOADER: &str = "/usr/lib/ipxe/undionly.kpxe";
/// Its name in requests of the machine that asks here.
const FILE: &str = "02-00-00-00-00-07/undionly.kpxe";

/// Runs one tool on a machine of the LAN.
fn run(machine: &Netns, directory: &Path, words: &[&str]) {
    let (program, arguments) = words.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    let said = machine.finish(command).unwrap_or_else(|error| panic!("{words:?}: {error:?}"));
    println!("{words:?}: {said}");
}

fn scene_with_machine() -> (Scene, Netns) {
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let machine = scene.lan.machine("192.0.2.70/24").unwrap();
    (scene, machine)
}

#[test]
fn tftp_hpa_atftp_busybox_and_curl_fetch_whole_files() {
    need_host!(
        Needs::Tool("tftp"),
        Needs::Tool("atftp"),
        Needs::Tool("busybox"),
        Needs::Tool("curl"),
        Needs::File(LOADER)
    );
    let (scene, machine) = scene_with_machine();
    let client = scene.serve(&[]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let right = std::fs::read(LOADER).unwrap();
    let server = "192.0.2.2";
    for words in [
        &["tftp", "-m", "binary", server, "-c", "get", FILE, "got"][..],
        &["atftp", "--get", "-r", FILE, "-l", "got", server],
        &[
            "atftp",
            "--option",
            "blksize 1428",
            "--option",
            "windowsize 8",
            "--get",
            "-r",
            FILE,
            "-l",
            "got",
            server,
        ],
        &["busybox", "tftp", "-g", "-r", FILE, "-l", "got", server],
        &["busybox", "tftp", "-g", "-b", "1428", "-r", FILE, "-l", "got", server],
        &["curl", "-s", "-S", "-m", "120", "-o", "got", &format!("tftp://{server}//{FILE}")],
        &[
            "curl",
            "-s",
            "-S",
            "-m",
            "120",
            "--tftp-blksize",
            "1024",
            "-o",
            "got",
            &format!("tftp://{server}//{FILE}"),
        ],
    ] {
        run(&machine, directory.path(), words);
        let got = std::fs::read(directory.path().join("got")).unwrap();
        assert!(got == right, "{words:?}: {} octets of {}", got.len(), right.len());
        std::fs::remove_file(directory.path().join("got")).unwrap();
    }
    let path = kernel_path(&machine, "eth0", &client).unwrap();
    let url = format!("http://{server}:64172{path}");
    let kernel = std::fs::read(machine::image().unwrap().join("bzImage")).unwrap();
    run(
        &machine,
        directory.path(),
        &["curl", "-s", "-S", "-f", "-m", "120", "-r", "0-999", "-o", "got", &url],
    );
    // The rest of it, as a download that was broken off goes on.
    run(
        &machine,
        directory.path(),
        &["curl", "-s", "-S", "-f", "-m", "120", "-C", "-", "-o", "got", &url],
    );
    assert!(std::fs::read(directory.path().join("got")).unwrap() == kernel, "the kernel differs");
    run(&machine, directory.path(), &["busybox", "wget", "-q", "-O", "got", &url]);
    assert!(std::fs::read(directory.path().join("got")).unwrap() == kernel, "the kernel differs");
}

/// What dhcpcd would take, without taking it. Its version 9.4.1 breaks down after the last line of its
/// test mode and leaves processes behind: how it ends says nothing, and it runs in a PID namespace that
/// ends with it.
fn dhcpcd(bystander: &Netns) -> String {
    let said = bystander
        .sh("unshare --pid --fork --mount-proc sh -c \
             'dhcpcd --test -4 --noipv4ll --noarp --timeout 30 -f /dev/null eth0 2>&1; true'")
        .unwrap();
    let mut lines: Vec<&str> = said.lines().filter(|line| line.starts_with("new_")).collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
fn dhcpcd_and_udhcpc_take_nothing_from_us() {
    need_host!(
        Needs::Tool("dhcpcd"),
        Needs::Tool("udhcpc"),
        Needs::Tool("tcpdump"),
        Needs::Tool("tshark")
    );
    let (scene, _) = scene_with_machine();
    let bystander = Netns::new("bystander").unwrap();
    scene.lan.attach(&bystander, "eth0", None).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let alone = dhcpcd(&bystander);
    assert!(
        alone.contains("new_ip_address='192.0.2.") || alone.contains("new_ip_address=192.0.2."),
        "{alone}"
    );
    let _client = scene.serve(&[]).unwrap();
    let file = directory.path().join("capture");
    let capture = scene.lan.capture(&file, "udp port 67 or udp port 68").unwrap();
    assert_eq!(dhcpcd(&bystander), alone);
    run(
        &bystander,
        directory.path(),
        &["udhcpc", "-f", "-q", "-n", "-t", "10", "-i", "eth0", "-s", "/bin/true"],
    );
    capture.end().unwrap();
    let from = |address: &str| {
        dissect(&file, &format!("ip.src == {address} && dhcp.type == 2"), &["dhcp.id"]).unwrap()
    };
    assert!(from("192.0.2.1").len() >= 2, "the router answered both");
    assert_eq!(from("192.0.2.2"), <[String; 0]>::default(), "and nobody else");
}

#[test]
fn scapy_reads_the_offer_and_its_tftp_automaton_the_file() {
    need_host!(
        Needs::File("/usr/lib/python3/dist-packages/scapy/__init__.py"),
        Needs::Tool("sha256sum"),
        Needs::File(LOADER)
    );
    let (scene, machine) = scene_with_machine();
    let _client = scene.serve(&[]).unwrap();
    let mut command = script("scapy-client");
    command.args(["02:00:00:00:00:07", "192.0.2.2", FILE]);
    let said = machine.finish(command).unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let mut sum = Command::new("sha256sum");
    sum.arg(LOADER);
    assert_eq!(
        said,
        serde_json::json!({
            "offers": [{
                "yiaddr": "0.0.0.0",
                "siaddr": "192.0.2.2",
                "file": FILE,
                "type": 2,
                "class": "PXEClient",
            }],
            "octets": std::fs::metadata(LOADER).unwrap().len(),
            "sha256": finish(sum).unwrap().split(' ').next().unwrap(),
        })
    );
}
