//! What is served changes, or does not fit: the real program on a real host, and machines on the LAN.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::Duration,
};

use portcullis_lab::{
    Needs,
    boot_client::{ask, message},
    download::kernel_path,
    host::{SOON, Site},
    machine, need_host,
    netns::Netns,
    nixos::Flavour,
    process::wait_until,
    scene::Scene,
};

/// A machine on the LAN with curl.
struct Machine(Netns);

impl Machine {
    fn on(scene: &Scene) -> Self {
        Self(scene.lan.machine("192.0.2.80/24").unwrap())
    }

    fn get(&self, path: &str) -> String {
        let mut command = Command::new("curl");
        command.args(["-s", "-S", "-f", "-m", "60", &format!("http://192.0.2.2:64172{path}")]);
        self.0.finish(command).unwrap()
    }
}

/// A directory that alice may read.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Puts a file into the place of another, as a build does.
fn put(folder: &Path, name: &str, text: &str) {
    let new = folder.join("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, folder.join(name)).unwrap();
}

#[test]
fn a_new_build_is_for_machines_that_start_later_and_is_said() {
    need_host!(Needs::Tool("curl"));
    let folder = folder();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::copy(machine::image().unwrap().join("bzImage"), at("vmlinuz")).unwrap();
    put(folder.path(), "initrd", "one");
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let directory = folder.path().display().to_string();
    let client = scene.serve_this(&directory, &["--cmdline", "host={{ HOSTNAME }}"]).unwrap();
    let machine = Machine::on(&scene);

    let first = kernel_path(&machine.0, "eth0", &client).unwrap();
    let (script, initrd) =
        (first.replace("kernel", "boot.ipxe"), first.replace("kernel", "initrd0"));
    assert!(machine.get(&script).contains("&hostname=${hostname:hexraw}"));
    let told = machine.get(&format!("{script}?serial=31&hostname=70632d37"));
    assert!(told.contains(" host=pc-7 ||"), "{told}");
    assert_eq!(machine.get(&initrd), "one");

    put(folder.path(), "initrd", "two");
    // A machine that has its script keeps what it has, so each look is another machine's.
    let mut number = 0x10;
    let came = || {
        number += 1;
        let folder = format!("00-{number:02x}/");
        machine.get(&script.replace("00-07/", &folder));
        machine.get(&initrd.replace("00-07/", &folder)) == "two"
    };
    assert!(wait_until(SOON, came), "{}", client.stdout());
    assert_eq!(machine.get(&initrd), "one", "it goes on with what it began with");
    let said = |event: &serde_json::Value| {
        event["event"] == "note" && event["text"].as_str().unwrap().contains("initrd has changed")
    };
    assert!(wait_until(SOON, || client.events().iter().any(said)), "{}", client.stdout());
}

#[test]
fn a_kernel_for_another_processor_is_not_offered_and_that_is_said() {
    need_host!();
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let client = scene.serve(&[]).unwrap();
    let machine = Machine::on(&scene);
    let arm64 =
        message([2, 0, 0, 0, 0, 9], &[(53, &[1]), (60, b"PXEClient:Arch:00011"), (93, &[0, 11])]);
    let to = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    let told = || {
        ask(&machine.0, "eth0", 68, &arm64, &to, (0, Duration::ZERO)).unwrap();
        let alone =
            |event: &serde_json::Value| event["why"] == "other-platform" && event["arch"] == 11;
        client.events().iter().any(alone)
    };
    assert!(wait_until(SOON, told), "{}", client.stdout());
}
