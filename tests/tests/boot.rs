//! Machines boot: a user without any privilege runs `portcullis boot`, a machine on the LAN reaches
//! userspace with the right kernel, initrd and command line, and the host is as it was (P4).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{path::Path, process::Stdio, time::Duration};

use portcullis_lab::{
    Needs,
    host::{SOON, Site},
    lan::dissect,
    machine::{self, AAVMF, Firmware, Machine, OVMF, OVMF32},
    need_host,
    netns::Netns,
    nixos::Flavour,
    process::{Process, finish, mortal, wait_until},
    scene::{CLOSED, Scene},
    snapshot::Snapshot,
};
use tempfile::TempDir;

const MAC: &str = "02:00:00:00:00:01";
/// systemd's boot stub (package systemd-boot-efi).
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// The image's own command line, on a PC.
const IMAGE: &str = "init=/nix/store/00000000000000000000000000000000-nixos-system/init console=ttyS0 panic=1 loglevel=4 no_timer_check";
/// What is added to the image's own command line.
const WORD: &str = "portcullis.test=\"a b\" quiet";

/// The DHCP messages of a capture on the boot server's port, as "source port,destination port,type".
fn boot_server_messages(capture: &Path) -> Vec<String> {
    dissect(capture, "udp.port == 4011", &["udp.srcport", "udp.dstport", "dhcp.option.dhcp"])
        .unwrap()
}

/// Boots one machine from the laboratory's image and returns its DHCP messages with the boot server.
/// `meanwhile` runs while the ports are open, before the machine is switched on.
fn boots(
    scene: &Scene,
    firmware: Firmware,
    arguments: &[&str],
    meanwhile: impl FnOnce(&Scene),
) -> Vec<String> {
    let arguments = [arguments, &["--cmdline", WORD]].concat();
    boots_this(scene, firmware, &["boot", "/mnt"], &arguments, meanwhile).0
}

/// The same by any command that serves; returns also what the client told.
fn boots_this(
    scene: &Scene,
    firmware: Firmware,
    command: &[&str],
    arguments: &[&str],
    meanwhile: impl FnOnce(&Scene),
) -> (Vec<String>, Vec<serde_json::Value>) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("capture");
    assert_eq!(scene.try_ports().unwrap(), CLOSED, "before");

    let capture = scene.lan.capture(&file, "udp").unwrap();
    let mut client = scene.serve_by(command, arguments).unwrap();
    let during = Snapshot::take(scene.host.netns()).unwrap();
    assert_ne!(scene.before.changes(&during), "", "something was opened");
    meanwhile(scene);

    println!("{arguments:?}");
    let (mut machine, cmdline) = scene.boot(firmware, MAC, &client).unwrap();
    let console = if firmware.processor() == "arm64" { "ttyAMA0" } else { "ttyS0" };
    // iPXE hands an EFI program its own name as the first word, as a shell does.
    let own = match firmware {
        Firmware::Uefi if !command.iter().any(|word| word.ends_with(".efi")) => {
            cmdline.strip_prefix("kernel ").unwrap()
        }
        _ => cmdline.as_str(),
    };
    let words: Vec<&str> = own
        .split(' ')
        // For the loader and the kernel's EFI stub; its form is not ours.
        .filter(|word| !word.starts_with("initrd="))
        .collect();
    assert_eq!(words.join(" "), format!("{IMAGE} {WORD}").replace("ttyS0", console));
    if arguments.contains(&"/mnt/extra") {
        let image = machine::image_for(firmware.processor()).unwrap();
        let marker = machine::marker(&image).unwrap();
        let line = machine.line("PORTCULLIS-EXTRA ", machine::BOOT, machine::BOOT).unwrap();
        assert_eq!(line.unwrap().0, marker.replace("initrd", "extra"));
    }

    let handed_over = client
        .events()
        .iter()
        .any(|event| event["statement"] == "handed-over" && event["mac"] == MAC);
    assert!(handed_over, "the client saw it through:\n{}", client.stdout());
    // Before the ports are tried again, which is no machine's business.
    capture.end().unwrap();
    scene.end(&mut client, Duration::from_secs(1)).unwrap();
    (boot_server_messages(&file), client.events())
}

/// Whether there is a fact with this field.
fn told(events: &[serde_json::Value], fact: &str, field: &str, value: &str) -> bool {
    events.iter().any(|event| event["fact"] == fact && event[field] == value)
}

#[test]
fn p4_uefi_machine_boots_by_http_without_tftp_and_ipxe_behind_nftables() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::Tool("tshark"),
        Needs::File(OVMF[0]),
        Needs::File(STUB)
    );
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let arguments = ["/mnt/bzImage", "/mnt/initrd", "/mnt/extra"];
    let cmdline = format!("{IMAGE} {WORD}");
    let more = [&arguments[1..], &["--cmdline", &cmdline]].concat();
    let (messages, events) =
        boots_this(&scene, Firmware::UefiHttp, &["boot", arguments[0]], &more, |_| {});
    assert_eq!(messages, <[String; 0]>::default(), "nothing is said on 4011");
    assert!(told(&events, "offered", "form", "http"), "{events:#?}");
    assert!(told(&events, "transfer-started", "role", "efi"), "{events:#?}");
    assert!(!told(&events, "transfer-started", "protocol", "tftp"), "{events:#?}");
}

#[test]
fn p4_uefi_machine_boots_an_efi_program_by_tftp_and_by_http_and_bios_is_left_alone() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::Tool("tshark"),
        Needs::Tool("objcopy"),
        Needs::File(OVMF[0]),
        Needs::File(STUB)
    );
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let program = unified_kernel_image(directory.path());
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    for (firmware, protocol) in [(Firmware::Uefi, "tftp"), (Firmware::UefiHttp, "http")] {
        let (_, events) = boots_this(&scene, firmware, &["boot", &program], &[], |_| {});
        assert!(told(&events, "transfer-started", "role", "efi"), "{events:#?}");
        assert!(told(&events, "transfer-started", "protocol", protocol), "{events:#?}");
        assert!(!told(&events, "transfer-started", "role", "kernel"), "{events:#?}");
    }
    let client = scene.serve_this(&program, &[]).unwrap();
    let _machine = Machine::start(&scene.lan, Firmware::Bios, MAC).unwrap();
    let left_alone = || told(&client.events(), "ignored", "why", "other-platform");
    assert!(wait_until(machine::BOOT, left_alone), "{}", client.stdout());
    assert!(!told(&client.events(), "offered", "form", "script"), "{}", client.stdout());
}

/// Machines for which no iPXE is at hand are given one program of kernel, initrd, command line and
/// systemd's stub.
fn boots_one_program(firmware: Firmware, flavour: Flavour, protocol: &str) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let image = machine::image_for(firmware.processor()).unwrap();
    let kernel = if image.join("Image").exists() { "Image" } else { "bzImage" };
    for name in [kernel, "initrd", "netboot.ipxe", "stub"] {
        std::fs::copy(image.join(name), at(name)).unwrap();
    }
    let stub = at("stub").display().to_string();
    let scene = Scene::start(Some(flavour), Site::AllowsAlice).unwrap();
    let arguments = ["--stub", &stub, "--cmdline", WORD];
    let build = directory.path().display().to_string();
    let (_, events) = boots_this(&scene, firmware, &["boot", &build], &arguments, |_| {});
    let started: Vec<_> = events.iter().filter(|one| one["fact"] == "transfer-started").collect();
    let efi = |one: &&serde_json::Value| one["role"] == "efi" && one["protocol"] == protocol;
    assert!(!started.is_empty() && started.iter().all(efi), "{events:#?}");
}

#[test]
fn p4_arm64_machine_boots_one_program_by_tftp_behind_nftables() {
    need_host!(Needs::Tool("qemu-system-aarch64"), Needs::Tool("tshark"), Needs::File(AAVMF[0]));
    boots_one_program(Firmware::Arm64, Flavour::Nftables, "tftp");
}

#[test]
fn p4_arm64_machine_boots_by_http_without_tftp_behind_iptables() {
    need_host!(Needs::Tool("qemu-system-aarch64"), Needs::Tool("tshark"), Needs::File(AAVMF[0]));
    boots_one_program(Firmware::Arm64Http, Flavour::Iptables, "http");
}

#[test]
fn p4_32_bit_uefi_machine_boots_one_program_by_tftp_behind_iptables() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("tshark"), Needs::File(OVMF32[0]));
    boots_one_program(Firmware::Uefi32, Flavour::Iptables, "tftp");
}

#[test]
fn p4_32_bit_uefi_machine_boots_by_http_without_tftp_behind_nftables() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("tshark"), Needs::File(OVMF32[0]));
    boots_one_program(Firmware::Uefi32Http, Flavour::Nftables, "http");
}

/// A unified kernel image of the laboratory's kernel and initrd, made with binutils: no code of
/// ours.
fn unified_kernel_image(directory: &Path) -> String {
    let image = machine::image().unwrap();
    let cmdline = directory.join("cmdline");
    std::fs::write(&cmdline, format!("{IMAGE} {WORD}")).unwrap();
    let program = directory.join("system.efi");
    let mut command = mortal("objcopy");
    for (section, file, address) in [
        (".cmdline", cmdline, 0x3_0000),
        (".linux", image.join("bzImage"), 0x200_0000),
        (".initrd", image.join("initrd"), 0x800_0000),
    ] {
        command
            .arg("--add-section")
            .arg(format!("{section}={}", file.display()))
            .arg("--change-section-vma")
            .arg(format!("{section}={address:#x}"));
    }
    command.arg(STUB).arg(&program);
    finish(command).unwrap();
    program.display().to_string()
}

#[test]
fn bios_machine_tells_its_serial_number_and_runs_a_script_of_the_users() {
    need_host!(Needs::Tool("qemu-system-x86_64"));
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let script = directory.path().join("own.ipxe");
    let text = "#!ipxe\nkernel {{ ID \"/mnt/bzImage\" }} ${cmdline} from={{ MAC }} || shell\n\
                initrd {{ ID \"/mnt/initrd\" }} || shell\nboot || shell\n";
    std::fs::write(&script, text).unwrap();
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let cmdline =
        format!("{IMAGE} serial={{{{ SERIAL }}}} uuid={{{{ UUID }}}} arch={{{{ ARCH }}}}");
    let script = script.display().to_string();
    let client = scene.serve_this(&script, &["--cmdline", &cmdline]).unwrap();
    let mut machine = Machine::start(&scene.lan, Firmware::Bios, MAC).unwrap();
    let (line, _) = machine.up().unwrap_or_else(|error| panic!("{error:?}\n{}", client.stdout()));
    let uuid = machine::UUID;
    assert_eq!(line, format!("{IMAGE} serial=PC__7__42 uuid={uuid} arch=bios from={MAC}"));
    assert_eq!(machine.initrd().unwrap(), machine::marker(&machine::image().unwrap()).unwrap());
    let handed_over = |event: &serde_json::Value| event["statement"] == "handed-over";
    assert!(client.events().iter().any(handed_over), "{}", client.stdout());
}

#[test]
fn p4_bios_machine_boots_behind_iptables() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("tshark"));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    boots(&scene, Firmware::Bios, &[], |_| {});
}

#[test]
fn a_bios_machine_shows_a_menu_and_boots_what_is_chosen() {
    need_host!(Needs::Tool("qemu-system-x86_64"));
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let script = directory.path().join("own.ipxe");
    let text = format!(
        "#!ipxe\nkernel {{{{ ID \"/mnt/bzImage\" }}}} {IMAGE} chosen=second || shell\n\
         initrd {{{{ ID \"/mnt/initrd\" }}}} || shell\nboot || shell\n"
    );
    std::fs::write(&script, text).unwrap();
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let second = format!("The second one={}", script.display());
    let client = scene.serve(&["--cmdline", WORD, "--menu", &second]).unwrap();
    let mut machine = Machine::start(&scene.lan, Firmware::Bios, MAC).unwrap();
    let handed_over = || {
        let events = client.events();
        events.iter().filter(|event| event["statement"] == "handed-over").count()
    };
    // From now on the keys wait for the menu.
    assert!(wait_until(machine::BOOT, || handed_over() == 1), "{}", client.stdout());
    machine.press("down").unwrap();
    machine.press("ret").unwrap();
    let (line, _) = machine.up().unwrap_or_else(|error| panic!("{error}\n{}", client.stdout()));
    assert_eq!(line, format!("{IMAGE} chosen=second"));
    assert_eq!(machine.initrd().unwrap(), machine::marker(&machine::image().unwrap()).unwrap());
    assert_eq!(handed_over(), 1, "{}", client.stdout());
}

/// Boots a machine from the network, and again, beside an ordinary DHCP server. The second time its
/// console says `word` and then `text`.
fn is_left_once_it_has_booted(
    firmware: Firmware,
    limit: &[&str],
    disk: Option<&Path>,
    word: &str,
    text: &str,
) {
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let client = scene.serve(&[&["--cmdline", WORD], limit].concat()).unwrap();
    let start = || Machine::with_disk(&scene.lan, firmware, MAC, disk).unwrap();
    let over = || told(&client.events(), "ignored", "why", "already-booted");
    let mut machine = start();
    let (cmdline, _) = machine.up().unwrap_or_else(|error| panic!("{error}\n{}", client.stdout()));
    assert!(cmdline.contains(WORD), "{cmdline}");
    assert!(!over(), "{}", client.stdout());
    drop(machine);
    let mut machine = start();
    let (line, time) = machine
        .line(word, machine::BOOT, machine::BOOT)
        .unwrap_or_else(|error| panic!("{error}\n{}", client.stdout()))
        .unwrap();
    println!("{firmware:?} {limit:?}: {time:.1?} until it is left");
    assert_eq!(line, text);
    assert!(over(), "{}", client.stdout());
}

#[test]
fn bios_machines_start_from_their_disks_once_they_have_booted() {
    need_host!(Needs::Tool("qemu-system-x86_64"));
    let directory = tempfile::tempdir().unwrap();
    let disk = machine::disk(directory.path()).unwrap();
    for (firmware, limit) in
        [(Firmware::Bios, &["--once"][..]), (Firmware::BiosPlain, &["--count", "1"])]
    {
        is_left_once_it_has_booted(firmware, limit, Some(&disk), "PORTCULLIS-DISK ", "runs");
    }
}

/// EDK2 has understood: it ends PXE with an address, and goes on to its next entry. Where nothing is
/// offered, it says "PXE-E16: No valid offer received" after a minute.
#[test]
fn a_uefi_machine_ends_pxe_by_itself_once_it_has_booted() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::File(OVMF[0]));
    let (word, text) = ("  PXE-E", "21: Remote boot cancelled.");
    is_left_once_it_has_booted(Firmware::Uefi, &["--once"], None, word, text);
}

/// Address of the web server that [`web_server`] starts on the host.
const WEB: &str = "http://127.0.0.1:8080";

/// Serves these files, each copied from the image, and this text, from the host itself.
fn web_server(scene: &Scene, files: &[(&str, &str)], text: (&str, &str)) -> (TempDir, Process) {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    for (name, file) in files {
        std::fs::copy(machine::image().unwrap().join(file), place(name)).unwrap();
    }
    std::fs::write(place(text.0), text.1).unwrap();
    let mut command = scene.host.command(None, "python3");
    command.args(["-m", "http.server", "8080", "--bind", "127.0.0.1", "--directory"]);
    command.arg(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = scene.host.netns().spawn(command).unwrap();
    let host = scene.host.netns();
    let listens = || !host.sh("ss -Hltn 'sport = :8080'").unwrap_or_default().is_empty();
    assert!(wait_until(SOON, listens), "the web server does not listen");
    (directory, server)
}

#[test]
fn p4_uefi_machine_boots_what_a_web_service_says_behind_iptables() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::Tool("tshark"),
        Needs::Tool("python3"),
        Needs::File(OVMF[0])
    );
    let mut scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let cmdline = format!("{IMAGE} {WORD}");
    let answer =
        serde_json::json!({ "kernel": "/files/k", "initrd": ["../files/i"], "cmdline": cmdline });
    let files = [("files/k", "bzImage"), ("files/i", "initrd")];
    let answer = (format!("v1/boot/{MAC}"), answer.to_string());
    let _service = web_server(&scene, &files, (&answer.0, &answer.1));
    scene.sockets = scene.host.sockets().unwrap();
    let (_, events) = boots_this(&scene, Firmware::Uefi, &["api", WEB], &[], |_| {});
    assert!(told(&events, "transfer-started", "role", "kernel"), "{events:#?}");
}

#[test]
fn p4_bios_machine_boots_a_recipe_from_a_mirror_behind_nftables() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("tshark"), Needs::Tool("python3"));
    let mut scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let folder = "dists/stable/main/installer-amd64/current/images/netboot/debian-installer/amd64";
    let [kernel, initrd] = ["linux", "initrd.gz"].map(|name| format!("{folder}/{name}"));
    let files = [(kernel.as_str(), "bzImage"), (initrd.as_str(), "initrd")];
    let _mirror = web_server(&scene, &files, ("README", "A mirror."));
    scene.sockets = scene.host.sockets().unwrap();
    let command = ["quick", "debian", "stable", "--mirror", WEB];
    let cmdline = format!("{IMAGE} {WORD}");
    boots_this(&scene, Firmware::Bios, &command, &["--cmdline", &cmdline], |_| {});
}

/// The ROM's PXE stack loads undionly.kpxe and runs below it.
#[test]
fn p4_bios_machine_with_a_plain_pxe_rom_boots_through_undionly_behind_nftables() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::Tool("tshark"),
        Needs::File("/usr/lib/ipxe/undionly.kpxe")
    );
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let arguments = ["--cmdline", WORD];
    let (_, events) =
        boots_this(&scene, Firmware::BiosPlain, &["boot", "/mnt"], &arguments, |_| {});
    let steps: Vec<_> = events
        .iter()
        .filter(|event| event["mac"] == MAC)
        .filter_map(|event| match event["fact"].as_str()? {
            "seen" => Some(format!("seen {}", event["firmware"])),
            "offered" => Some(format!("offered {}", event["form"])),
            "transfer-started" => Some(format!("{} by {}", event["role"], event["protocol"])),
            _ => None,
        })
        .collect();
    let steps = steps.join(", ").replace('"', "");
    assert!(
        steps
            .starts_with("seen pxe, offered complete, loader by tftp, seen ipxe, offered script, "),
        "{steps}"
    );
    assert!(events.iter().any(|event| {
        event["file"].as_str().is_some_and(|file| file.ends_with("/undionly.kpxe"))
    }));
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
