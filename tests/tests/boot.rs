//! Machines boot: a user without any privilege runs `portcullis boot`, a machine on the LAN reaches
//! userspace with the right kernel, initrd and command line, and the host is as it was (P4).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{path::Path, time::Duration};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs,
    host::Site,
    lan::dissect,
    machine::{self, Firmware, Machine, OVMF},
    need_host,
    netns::Netns,
    nixos::Flavour,
    process::mortal,
    scene::{CLOSED, Scene},
    snapshot::Snapshot,
};

const MAC: &str = "02:00:00:00:00:01";
/// What is added to the image's own command line.
const WORD: &str = "portcullis.test=\"a b\" quiet";

/// The DHCP messages of a capture on the boot server's port, as "source port,destination port,type".
fn boot_server_messages(capture: &Path) -> Vec<String> {
    dissect(capture, "udp.port == 4011", &["udp.srcport", "udp.dstport", "dhcp.option.dhcp"])
        .unwrap()
}

/// Boots one machine and returns its DHCP messages with the boot server. `meanwhile` runs while the
/// ports are open, before the machine is switched on.
fn boots(
    scene: &Scene,
    firmware: Firmware,
    arguments: &[&str],
    meanwhile: impl FnOnce(&Scene),
) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("capture");
    assert_eq!(scene.try_ports().unwrap(), CLOSED, "before");

    let capture = scene.lan.capture(&file, "udp").unwrap();
    let mut arguments = arguments.to_vec();
    arguments.extend(["--cmdline", WORD]);
    let mut client = scene.serve(&arguments).unwrap();
    let during = Snapshot::take(scene.host.netns()).unwrap();
    assert_ne!(scene.before.changes(&during), "", "something was opened");
    meanwhile(scene);

    let mut machine = Machine::start(&scene.lan, firmware, MAC).unwrap();
    let up = machine.up();
    let (cmdline, time) = match up {
        Ok(up) => up,
        Err(error) => panic!(
            "{error:?}\nclient:\n{}{}\nhost:\n{}",
            client.stdout(),
            client.stderr(),
            scene.host.log()
        ),
    };
    println!("{firmware:?} {arguments:?}: {time:.1?} to userspace");
    let image = machine::image().unwrap();
    // iPXE hands an EFI program its own name as the first word, as a shell does.
    let own = match firmware {
        Firmware::Bios => cmdline.as_str(),
        Firmware::Uefi => cmdline.strip_prefix("kernel ").unwrap(),
    };
    let words: Vec<&str> = own
        .split(' ')
        // For the loader and the kernel's EFI stub; its form is not ours.
        .filter(|word| !word.starts_with("initrd="))
        .collect();
    assert_eq!(
        words.join(" "),
        format!(
            "init=/nix/store/00000000000000000000000000000000-nixos-system/init console=ttyS0 panic=1 loglevel=4 {WORD}"
        )
    );
    let marker = machine::marker(&image).unwrap();
    assert_eq!(machine.initrd().unwrap(), marker);

    let handed_over = client
        .events()
        .iter()
        .any(|event| event["statement"] == "handed-over" && event["mac"] == MAC);
    assert!(handed_over, "the client saw it through:\n{}", client.stdout());
    // Before the ports are tried again, which is no machine's business.
    capture.end().unwrap();
    client.signal(Signal::SIGINT).unwrap();
    let status = client.end().unwrap();
    assert_eq!(status.code(), Some(0), "{}", client.stderr());
    assert_eq!(scene.try_ports().unwrap(), CLOSED, "after");
    scene.assert_restored(Duration::from_secs(1)).unwrap();
    boot_server_messages(&file)
}

#[test]
fn p4_bios_machine_boots_behind_iptables() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("tshark"));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    boots(&scene, Firmware::Bios, &[], |_| {});
}

#[test]
fn p4_uefi_machine_boots_by_a_complete_offer_behind_nftables() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("tshark"), Needs::File(OVMF[0]));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let arguments = ["--uefi-offer", "complete"];
    let messages = boots(&scene, Firmware::Uefi, &arguments, |_| {});
    assert_eq!(messages, <[String; 0]>::default(), "nothing is said on 4011");
}

#[test]
fn p4_uefi_machine_boots_by_the_boot_server_behind_iptables() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("tshark"), Needs::File(OVMF[0]));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let arguments = ["--uefi-offer", "boot-server"];
    let messages = boots(&scene, Firmware::Uefi, &arguments, |_| {});
    // DHCPREQUEST is 3, DHCPACK is 5 (RFC 2132 section 9.6).
    assert!(messages.iter().any(|line| line.ends_with(",4011,3")), "{messages:?}");
    assert!(
        messages.iter().any(|line| line.starts_with("4011,") && line.ends_with(",5")),
        "{messages:?}"
    );
}

/// What an ordinary DHCP client is given, every field of it, as udhcpc hands it to its script.
fn lease_of(bystander: &Netns) -> String {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    let result = directory.path().join("lease");
    std::fs::write(
        &script,
        format!(
            "#!/bin/sh\n[ \"$1\" = bound ] && env | grep -v -e ^_= -e ^PWD= -e ^SHLVL= -e ^PATH= | sort >{}\nexit 0\n",
            result.display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = mortal("udhcpc");
    command
        .args(["-f", "-q", "-n", "-t", "5", "-i", "eth0", "-s"])
        .arg(&script)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    bystander.finish(command).unwrap();
    std::fs::read_to_string(result).unwrap()
}

#[test]
fn p4_bios_machine_boots_behind_nftables_while_an_ordinary_dhcp_client_notices_nothing() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("tshark"), Needs::Tool("udhcpc"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let bystander = Netns::new("bystander").unwrap();
    scene.lan.attach(&bystander, "eth0", None).unwrap();
    let alone = lease_of(&bystander);
    assert!(alone.contains("ip=192.0.2."), "{alone}");
    boots(&scene, Firmware::Bios, &[], |_| {
        assert_eq!(lease_of(&bystander), alone);
    });
    assert_eq!(lease_of(&bystander), alone);
    assert!(!scene.rival.leases().is_empty());
}
