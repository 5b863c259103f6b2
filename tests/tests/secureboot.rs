//! Secure Boot: what is signed reaches userspace, and the kernel itself says that Secure Boot is on;
//! what is not signed is refused, and the client says so with what to do. The firmware is OVMF's
//! build for Secure Boot, with Debian's test key or with Microsoft's keys enrolled.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{path::Path, process::Stdio, time::Duration};

use portcullis_lab::{
    Needs,
    host::{Client, SOON, Site},
    machine::{self, Firmware, Keys, Machine, OVMF_SECURE, TEST_KEY},
    need_host,
    nixos::Flavour,
    process::{finish, mortal, wait_until},
    scene::Scene,
};
use serde_json::Value;

const MAC: &str = "02:00:00:00:00:01";
/// systemd's boot stub (package systemd-boot-efi).
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// Debian's chain (packages shim-signed and grub-efi-amd64-signed).
const SHIM: &str = "/usr/lib/shim/shimx64.efi.signed";
const GRUB: &str = "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed";
const CMDLINE: &str =
    "console=ttyS0 panic=1 loglevel=4 no_timer_check portcullis.test=\"a b\" quiet";

/// What is served, with these flags.
fn serve(scene: &Scene, more: &[&str]) -> Client {
    let arguments = [&["/mnt/initrd", "--cmdline", CMDLINE], more].concat();
    scene.serve_this("/mnt/bzImage", &arguments).unwrap()
}

/// The machine comes up with this command line, its kernel under Secure Boot.
fn comes_up(scene: &Scene, firmware: Firmware, client: &Client, cmdline: &str) {
    let (mut machine, found) = scene.boot(firmware, MAC, client).unwrap();
    assert!(found.ends_with(cmdline), "{found}");
    let said = machine.secure_boot().unwrap();
    assert!(said.contains("Secure boot enabled"), "{said}");
    assert!(told(&client.events(), "statement", "handed-over"), "{}", client.stdout());
}

/// Ends the client, after which everything is as it was.
#[track_caller]
fn ends(scene: &Scene, mut client: Client) {
    scene.end(&mut client, Duration::from_secs(1)).unwrap();
}

fn told(events: &[Value], key: &str, value: &str) -> bool {
    events.iter().any(|event| event["mac"] == MAC && event[key] == value)
}

/// Whether the client says that the machine stopped, with this advice.
fn advises(client: &Client, word: &str) -> bool {
    client.events().iter().any(|event| {
        let advice = event["advice"].as_array();
        event["statement"] == "stalled"
            && advice.is_some_and(|lines| {
                lines.iter().any(|line| line.as_str().is_some_and(|line| line.contains(word)))
            })
    })
}

/// The test key without its password, where the user can read it.
fn test_key(directory: &Path) -> String {
    let key = directory.join("key.pem").display().to_string();
    let mut command = mortal("openssl");
    command.args(["rsa", "-passin", "pass:snakeoil", "-in", TEST_KEY[0], "-out", &key]);
    finish(command).unwrap();
    for (path, mode) in [(directory, 0o755), (Path::new(&key), 0o644)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    }
    key
}

#[test]
fn p4_secure_boot_takes_what_was_signed_with_the_users_key_by_tftp_and_by_http() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::Tool("openssl"),
        Needs::File(OVMF_SECURE),
        Needs::File(Keys::Test.variables()),
        Needs::File(STUB)
    );
    let directory = tempfile::tempdir().unwrap();
    let key = test_key(directory.path());
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    for (firmware, protocol) in
        [(Firmware::Secure(Keys::Test), "tftp"), (Firmware::SecureHttp(Keys::Test), "http")]
    {
        let client = serve(&scene, &["--sign-key", &key, "--sign-cert", TEST_KEY[1]]);
        comes_up(&scene, firmware, &client, CMDLINE);
        let events = client.events();
        assert!(told(&events, "role", "efi"), "{events:#?}");
        assert!(!told(&events, "role", "loader"), "{events:#?}");
        let started = events.iter().filter(|event| event["fact"] == "transfer-started");
        assert!(started.clone().count() > 0);
        assert!(started.clone().all(|event| event["protocol"] == protocol), "{events:#?}");
        ends(&scene, client);
    }
}

#[test]
fn p4_secure_boot_refuses_what_is_not_signed_and_the_client_says_so() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::File(OVMF_SECURE),
        Needs::File(Keys::Test.variables()),
        Needs::File(STUB)
    );
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    // iPXE from the system; and no iPXE at all, so that the machine is given the EFI program itself.
    let empty = tempfile::tempdir().unwrap();
    let program = empty.path().join("system.efi");
    std::fs::copy(STUB, &program).unwrap();
    for (path, mode) in [(empty.path(), 0o755), (program.as_path(), 0o644)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    }
    let program = program.display().to_string();
    for (what, more) in
        [("/mnt/bzImage", &["/mnt/initrd", "--cmdline", CMDLINE][..]), (program.as_str(), &[])]
    {
        let client = scene.serve_this(what, more).unwrap();
        let machine = Machine::start(&scene.lan, Firmware::Secure(Keys::Test), MAC).unwrap();
        // Firmware tries IPv6 before it asks again, and waits a minute for it.
        let said = wait_until(machine::BOOT * 4, || advises(&client, "--sign-key"));
        assert!(said, "{}\n{}", client.stdout(), machine.console());
        let console = machine.console();
        assert!(console.contains("Access Denied"), "{console}");
        assert!(!console.contains("PORTCULLIS-UP"), "{console}");
        drop(machine);
        ends(&scene, client);
    }
}

#[test]
fn secure_boot_takes_what_an_api_names_signed_with_the_users_key() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::Tool("openssl"),
        Needs::Tool("python3"),
        Needs::File(OVMF_SECURE),
        Needs::File(Keys::Test.variables()),
        Needs::File(STUB)
    );
    let [directory, service] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let key = test_key(directory.path());
    let mut scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    std::fs::create_dir_all(service.path().join("v1/boot")).unwrap();
    let answer = serde_json::json!({
        "kernel": "file:///mnt/bzImage", "initrd": ["file:///mnt/initrd"], "cmdline": CMDLINE
    });
    std::fs::write(service.path().join("v1/boot").join(MAC), answer.to_string()).unwrap();
    let mut command = scene.host.command(None, "python3");
    command.args(["-m", "http.server", "8080", "--bind", "127.0.0.1", "--directory"]);
    command.arg(service.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let host = scene.host.netns();
    let _service = host.spawn(command).unwrap();
    let listens = || !host.sh("ss -Hltn 'sport = :8080'").unwrap_or_default().is_empty();
    assert!(wait_until(SOON, listens), "the web server does not listen");
    scene.sockets = scene.host.sockets().unwrap();
    let flags = ["--sign-key", &key, "--sign-cert", TEST_KEY[1]];
    let client = scene.serve_by(&["api", "http://127.0.0.1:8080"], &flags).unwrap();
    comes_up(&scene, Firmware::Secure(Keys::Test), &client, CMDLINE);
    let events = client.events();
    assert!(told(&events, "protocol", "tftp") && told(&events, "role", "efi"), "{events:#?}");
    assert!(!told(&events, "role", "loader"), "{events:#?}");
    ends(&scene, client);
}

/// A NixOS build of the laboratory's kernel and initrd with this command line, which users can read.
fn build(directory: &Path, cmdline: &str) -> String {
    let image = machine::image().unwrap();
    for name in ["bzImage", "initrd"] {
        std::fs::copy(image.join(name), directory.join(name)).unwrap();
    }
    let text = format!("#!ipxe\nkernel bzImage {cmdline} initrd=initrd\ninitrd initrd\nboot\n");
    std::fs::write(directory.join("netboot.ipxe"), text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory, mode).unwrap();
    directory.display().to_string()
}

#[test]
fn secure_boot_is_given_a_menu_that_the_firmware_shows_with_a_key_or_without() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::Tool("openssl"),
        Needs::File(OVMF_SECURE),
        Needs::File(Keys::Test.variables()),
        Needs::File(STUB)
    );
    let [directory, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let key = test_key(directory.path());
    let common = "console=ttyS0 panic=1 loglevel=4 no_timer_check";
    let source = build(second.path(), &format!("{common} chosen=second"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let item = format!("The \u{1b}[2J second ü={source}");
    let flags = ["--sign-key", &key, "--sign-cert", TEST_KEY[1], "--menu"];
    // A name with a control character is refused before anybody is asked.
    let refused = scene.serve_this("/mnt", &[&flags[..], &[&item]].concat());
    assert!(refused.unwrap_err().to_string().contains("control characters"));
    let item = item.replace('\u{1b}', "");
    let more = ["--cmdline", "chosen=first"];
    let client = scene.serve_this("/mnt", &[&flags[..], &[&item], &more].concat()).unwrap();
    for (firmware, mac, chosen) in [
        (Firmware::Uefi, "02:00:00:00:00:02", "first"),
        (Firmware::Secure(Keys::Test), MAC, "second"),
    ] {
        let handed_over = || {
            let events = client.events();
            let over = events.iter().filter(|event| event["statement"] == "handed-over");
            over.filter(|event| event["mac"] == mac).count()
        };
        let mut machine = Machine::start(&scene.lan, firmware, mac).unwrap();
        let shows = |machine: &Machine, word: &str| {
            let shown = wait_until(machine::BOOT * 4, || machine.console().contains(word));
            assert!(shown, "{word}: {}\n{}", machine.console(), client.stdout());
        };
        shows(&machine, "F8: menu");
        if chosen == "second" {
            machine.press("f8").unwrap();
            shows(&machine, "The [2J second ?");
            machine.press("down").unwrap();
            machine.press("ret").unwrap();
        }
        // The firmware counts down by a clock that is slow on a busy machine.
        let limit = 6 * machine::BOOT;
        let up = machine
            .line("PORTCULLIS-UP ", limit, limit)
            .unwrap_or_else(|error| panic!("{error:?}\n{}{}", client.stdout(), client.stderr()));
        let (cmdline, time) = up.unwrap();
        println!("{firmware:?}: {time:.1?} to userspace");
        assert!(cmdline.ends_with(&format!("no_timer_check chosen={chosen}")), "{cmdline}");
        if chosen == "second" {
            assert!(machine.secure_boot().unwrap().contains("Secure boot enabled"));
        }
        assert_eq!(handed_over(), 1, "{}", client.stdout());
    }
    let events = client.events();
    assert!(told(&events, "form", "menu"), "{events:#?}");
    for (key, value) in [("role", "loader"), ("protocol", "http")] {
        assert!(!told(&events, key, value), "{events:#?}");
    }
    ends(&scene, client);
}

/// As far as GRUB's own way of writing quotation marks: it puts them around the word.
const BY_GRUB: &str =
    "console=ttyS0 panic=1 loglevel=4 no_timer_check \"portcullis.test=a b\" quiet";

#[test]
fn p4_secure_boot_takes_debians_chain_where_the_router_names_this_computer() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::File(OVMF_SECURE),
        Needs::File(Keys::Microsoft.variables()),
        Needs::File(SHIM),
        Needs::File(GRUB)
    );
    let router = ["--dhcp-boot=,,192.0.2.2".to_owned()];
    let scene = Scene::start_beside(Some(Flavour::Nftables), Site::AllowsAlice, &router).unwrap();
    let client = serve(&scene, &["--chain"]);
    comes_up(&scene, Firmware::Secure(Keys::Microsoft), &client, BY_GRUB);
    let events = client.events();
    assert!(!told(&events, "statement", "stalled"), "{events:#?}");
    assert!(!told(&events, "fact", "not-found"), "{events:#?}");
    ends(&scene, client);
}

#[test]
fn p4_debians_grub_asks_the_router_and_the_client_says_what_to_set_there() {
    need_host!(
        Needs::Tool("qemu-system-x86_64"),
        Needs::File(OVMF_SECURE),
        Needs::File(Keys::Microsoft.variables()),
        Needs::File(SHIM),
        Needs::File(GRUB)
    );
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let client = serve(&scene, &["--chain"]);
    let machine = Machine::start(&scene.lan, Firmware::Secure(Keys::Microsoft), MAC).unwrap();
    let said = wait_until(machine::BOOT * 4, || advises(&client, "next server"));
    assert!(said, "{}\n{}", client.stdout(), machine.console());
    assert!(machine.console().contains("Welcome to GRUB"), "{}", machine.console());
    drop(machine);
    ends(&scene, client);
}
