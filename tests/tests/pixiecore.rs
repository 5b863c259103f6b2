//! Called as `pixiecore`: its command lines, as people have them in their notes, run on a real host
//! behind a firewall, and a machine on the LAN is given what it needs, packet by packet. The web
//! service that API and mirrors need is a real one. Section numbers are those of docs/pixiecore.md.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs,
    boot_client::{ask, message, option},
    host::{Client, SOON, Site},
    machine, need_host,
    netns::Netns,
    nixos::Flavour,
    process::wait_until,
    scene::{CLOSED, Scene},
};

/// Kinds of answers that the service gives, by the last octet of the machine's address.
const PLAIN: u8 = 1;
const REDIRECTED: u8 = 2;
const HELD_BACK: u8 = 3;
const REFUSED: u8 = 4;
const MALFORMED: u8 = 5;
const HUGE: u8 = 6;
const BROKEN_OFF: u8 = 7;
const TEXT: u8 = 8;
const OF_THIS_COMPUTER: u8 = 9;
const SCRIPT: u8 = 10;
const EMPTY: u8 = 11;

/// Where the web service is.
const WEB: &str = "http://127.0.0.1:8080";

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

fn folder(last: u8) -> String {
    format!("02-00-00-00-00-{last:02x}")
}

/// The DISCOVER of a machine's own firmware (x64 UEFI), or of its iPXE with all that it can do.
fn discover(last: u8, ipxe: bool) -> Vec<u8> {
    let class = b"PXEClient:Arch:00007:UNDI:003016";
    let mut options: Vec<(u8, &[u8])> = vec![(53, &[1]), (60, class), (93, &[0, 7])];
    if ipxe {
        options.extend([(77, &b"iPXE"[..]), (175, &[0x13, 1, 1, 0x24, 1, 1])]);
    }
    message(mac(last), &options)
}

/// The DISCOVER of another kind of machine's firmware, or of a bare iPXE on it.
fn discover_as(arch: u8, bare_ipxe: bool) -> Vec<u8> {
    let code = [0, arch];
    let mut options: Vec<(u8, &[u8])> = vec![(53, &[1]), (60, b"PXEClient"), (93, &code)];
    if bare_ipxe {
        options.push((77, b"iPXE"));
    }
    message(mac(0x60 + arch), &options)
}

/// Asks until there is an offer of ours, and gives back the boot file that it names.
fn offered(machine: &Netns, last: u8, ipxe: bool) -> Option<String> {
    offered_to(machine, &discover(last, ipxe))
}

/// The same for any question.
fn offered_to(machine: &Netns, question: &[u8]) -> Option<String> {
    let to = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    let mut file = None;
    wait_until(SOON, || {
        let limit = (4, Duration::from_millis(700));
        // A fork of another test may hold the last question's socket until its exec.
        let Ok(answers) = ask(machine, "eth0", 68, question, &to, limit) else {
            return false;
        };
        let ours = answers.iter().filter(|(from, _)| from.ip().octets() == [192, 0, 2, 2]);
        file = ours.filter_map(|(_, bytes)| option(bytes, 67)).next_back();
        file.is_some()
    });
    file.map(|file| String::from_utf8(file).unwrap().trim_end_matches('\0').to_owned())
}

/// What curl fetches.
fn curl(machine: &Netns, url: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let mut command = Command::new("curl");
    command.args(["-s", "-S", "-f", "-m", "120", url, "-o"]).arg(&file);
    machine.finish(command).unwrap();
    std::fs::read(file).unwrap()
}

/// Goes the whole way of a UEFI machine: loader by TFTP, iPXE, script. Returns the script.
fn script(machine: &Netns, last: u8) -> String {
    let loader = offered(machine, last, false).unwrap();
    assert_eq!(loader, format!("{}/snponly.efi", folder(last)));
    let got = curl(machine, &format!("tftp://192.0.2.2//{loader}"));
    assert!(got == std::fs::read("/usr/lib/ipxe/snponly.efi").unwrap(), "the loader differs");
    let url = offered(machine, last, true).unwrap();
    assert!(url.ends_with(&format!("/{}/boot.ipxe", folder(last))), "{url}");
    String::from_utf8(curl(machine, &url)).unwrap()
}

/// The word after `word` on the script's line that begins with `command`.
fn named<'a>(script: &'a str, command: &str) -> &'a str {
    let line = script.lines().find(|line| line.starts_with(command)).unwrap();
    line.split(' ').nth(3).unwrap()
}

fn image(name: &str) -> Vec<u8> {
    std::fs::read(machine::image().unwrap().join(name)).unwrap()
}

/// `pixiecore ...` by alice, without sudo, until the ports answer.
fn pixiecore(scene: &Scene, line: &[&str]) -> Client {
    let client = scene.host.program("alice", "pixiecore", line).unwrap();
    let open = wait_until(SOON, || scene.try_ports().unwrap() != CLOSED);
    assert!(open, "{line:?}\n{}{}", client.stdout(), client.stderr());
    client
}

fn end(scene: &Scene, mut client: Client) {
    client.signal(Signal::SIGINT).unwrap();
    assert_eq!(client.end().unwrap().code(), Some(0), "{}", client.stderr());
    scene.assert_restored(SOON).unwrap();
}

/// A web service on the host's loopback, and what was asked of it.
struct Service {
    asked: Arc<Mutex<BTreeSet<String>>>,
    /// Whether the answer that is held back may go.
    free: Arc<(Mutex<bool>, Condvar)>,
}

impl Service {
    /// Port 8080 of the host's 127.0.0.1, which belongs to the scene from then on. Its threads end with
    /// the test.
    fn start(scene: &mut Scene) -> Self {
        let listener =
            scene.host.netns().run(|| TcpListener::bind("127.0.0.1:8080").unwrap()).unwrap();
        scene.sockets = scene.host.sockets().unwrap();
        let service = Self { asked: Arc::default(), free: Arc::default() };
        let (asked, free) = (Arc::clone(&service.asked), Arc::clone(&service.free));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, free) = (Arc::clone(&asked), Arc::clone(&free));
                // A client that goes away is its own business.
                std::thread::spawn(move || drop(answer(stream, &asked, &free)));
            }
        });
        service
    }

    fn let_go(&self) {
        *self.free.0.lock().unwrap() = true;
        self.free.1.notify_all();
    }

    fn was_asked(&self, path: &str) -> bool {
        self.asked.lock().unwrap().contains(path)
    }
}

/// One request, one answer.
fn answer(
    mut stream: TcpStream,
    asked: &Mutex<BTreeSet<String>>,
    free: &(Mutex<bool>, Condvar),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().unwrap().insert(path.clone());
    let boot = br#"{"kernel":"/files/bzImage","initrd":["/files/initrd"],"message":"hello",
        "cmdline":{"init":"/i","seed":{"url":"/files/extra"},"quiet":true}}"#;
    let last = path.rsplit(':').next().and_then(|last| u8::from_str_radix(last, 16).ok());
    let (status, body) = match last.filter(|_| path.contains("/v1/boot/")) {
        Some(PLAIN) => (200, boot.to_vec()),
        Some(REDIRECTED) => (302, Vec::new()),
        Some(HELD_BACK) => {
            let mut freed = free.0.lock().unwrap();
            while !*freed {
                freed = free.1.wait(freed).unwrap();
            }
            (200, boot.to_vec())
        }
        Some(TEXT) => (
            200,
            br#"{"kernel":"files/bzImage","initrd":["files/initrd","/files/extra"],"colour":["blue"],
            "cmdline":"seed={{ URL \"files/extra\" }} quiet"}"#
                .to_vec(),
        ),
        Some(OF_THIS_COMPUTER) => (200, br#"{"kernel":"file:///mnt/bzImage"}"#.to_vec()),
        Some(SCRIPT) => (200, b"{\"ipxe-script\":\"#!ipxe\\necho ${net0/mac}\\n\"}".to_vec()),
        Some(EMPTY) => (200, b"{}".to_vec()),
        Some(MALFORMED) => (200, b"{\"kernel\": 7".to_vec()),
        Some(HUGE) => (200, vec![b' '; 2 << 20]),
        Some(BROKEN_OFF) => {
            return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{");
        }
        Some(_) => (404, Vec::new()),
        None if path == "/moved" => (200, boot.to_vec()),
        None => match path.rsplit('/').next() {
            Some(name @ ("bzImage" | "initrd" | "extra")) => (200, image(name)),
            Some("linux" | "vmlinuz" | "vmlinuz-linux") => (200, image("bzImage")),
            Some("initrd.gz" | "initrd.img" | "initramfs-linux.img") => (200, image("initrd")),
            Some("SHA256SUMS") => (200, b"00 *ubuntu-24.04-live-server-amd64.iso\n".to_vec()),
            Some("stable.json") => (200, coreos().into_bytes()),
            Some(name) if name.starts_with("netboot.xyz") => (200, loader(name)),
            _ => (404, Vec::new()),
        },
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\nLocation: /moved\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&body)
}

/// Fedora CoreOS' stream metadata, as far as it is looked at.
fn coreos() -> String {
    let part = |name: &str| format!(r#"{{"location":"{WEB}/files/{name}"}}"#);
    format!(
        r#"{{"architectures":{{"x86_64":{{"artifacts":{{"metal":{{"formats":{{"pxe":
        {{"kernel":{},"initramfs":{},"rootfs":{}}}}}}}}}}}}}}}"#,
        part("bzImage"),
        part("initrd"),
        part("extra")
    )
}

/// What one of netboot.xyz' files is here: its name, in a UEFI program if it is to be one.
fn loader(name: &str) -> Vec<u8> {
    let machine: u16 = match name {
        _ if name.contains("arm64") => 0xaa64,
        _ if name.contains("efi32") => 0x014c,
        _ if name.ends_with(".efi") => 0x8664,
        _ => return name.as_bytes().to_vec(),
    };
    let mut program = vec![0; 512];
    program[..2].copy_from_slice(b"MZ");
    program[0x3c] = 0x80;
    program[0x80..0x84].copy_from_slice(b"PE\0\0");
    program[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
    program.extend_from_slice(name.as_bytes());
    program
}

/// What a machine fetches by TFTP.
fn tftp(machine: &Netns, file: &str) -> Vec<u8> {
    curl(machine, &format!("tftp://192.0.2.2//{file}"))
}

/// A machine on the LAN, with an address as its firmware would have it.
fn machine_on(scene: &Scene) -> Netns {
    scene.lan.machine("192.0.2.60/24").unwrap()
}

#[test]
fn section_14_the_wikis_own_command_line_without_sudo() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/snponly.efi"));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let machine = machine_on(&scene);
    let cmdline = "init=/nix/store/00000000000000000000000000000000-nixos/init loglevel=4";
    let client = pixiecore(
        &scene,
        &[
            "boot",
            "/mnt/bzImage",
            "/mnt/initrd",
            "--cmdline",
            cmdline,
            "--debug",
            "--dhcp-no-bind",
            "--port",
            "64172",
            "--status-port",
            "64172",
            // What the wiki's wrapper is called with: the laboratory's interface is a virtual one,
            // which is taken only when it is named.
            "-l",
            "192.0.2.2",
        ],
    );
    let script = script(&machine, PLAIN);
    assert!(script.contains(&format!(" initrd=initrd0 {cmdline} ||")), "{script}");
    let kernel = named(&script, "kernel ");
    assert!(kernel.starts_with("http://192.0.2.2:64172/"), "{kernel}");
    assert!(curl(&machine, kernel) == image("bzImage"), "the kernel differs");
    assert!(curl(&machine, named(&script, "initrd ")) == image("initrd"), "the initrd differs");
    end(&scene, client);
}

#[test]
fn section_1_2_each_flag_of_boot_does_what_it_says() {
    need_host!(Needs::Tool("curl"));
    let mut scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let service = Service::start(&mut scene);
    let machine = machine_on(&scene);
    let files = tempfile::tempdir().unwrap();
    std::fs::set_permissions(files.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let names = ["bios", "ipxe", "efi32.efi", "efi64.efi"];
    let [bios, ipxe, efi32, efi64] = names.map(|name| {
        let path = files.path().join(name);
        std::fs::write(&path, loader(name)).unwrap();
        path.display().to_string()
    });
    let kernel = format!("{WEB}/files/bzImage");
    let line = [
        "boot",
        &kernel,
        "/mnt/initrd",
        "--cmdline",
        "seed={{ ID \"/mnt/extra\" }} quiet",
        "--bootmsg",
        "Hello there",
        "-d",
        "-t",
        "-l",
        "192.0.2.2",
        "-p",
        "8099",
        "--status-port",
        "8099",
        "--ui-assets-dir",
        "/nowhere",
        "--ipxe-bios",
        &bios,
        "--ipxe-ipxe",
        &ipxe,
        "--ipxe-efi64",
        &efi64,
    ];
    let client = pixiecore(&scene, &line);
    for (arch, bare_ipxe, file, content) in [
        (0, false, "undionly.kpxe", "bios"),
        (0, true, "ipxe.pxe", "ipxe"),
        (7, false, "snponly.efi", "efi64.efi"),
        (9, false, "snponly.efi", "efi64.efi"),
    ] {
        let found = offered_to(&machine, &discover_as(arch, bare_ipxe)).unwrap();
        assert!(found.ends_with(&format!("/{file}")), "{arch}: {found}");
        assert!(tftp(&machine, &found) == loader(content), "{arch}: {found} is not {content}");
    }
    let url = offered(&machine, PLAIN, true).unwrap();
    assert!(url.starts_with("http://192.0.2.2:8099/"), "{url}");
    let script = String::from_utf8(curl(&machine, &url)).unwrap();
    assert!(script.contains("echo Portcullis: Hello there\n"), "{script}");
    assert!(curl(&machine, named(&script, "kernel ")) == image("bzImage"), "the kernel differs");
    assert!(service.was_asked("/files/bzImage"));
    let seed = script.split(" seed=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(curl(&machine, seed) == image("extra"), "the extra file differs");
    let said = client.stdout() + &client.stderr();
    assert!(said.contains("DHCP from 192.0.2.60:68 (02:"), "-d: {said}");
    assert!(said.contains("--ui-assets-dir"), "{said}");
    assert!(said.contains("http://127.0.0.1:8099/"), "--status-port: {said}");
    let dated = |line: &str| line.starts_with("20") && line.get(4..5) == Some("-");
    let lines: Vec<_> =
        said.lines().filter(|line| line.contains("asks for network boot")).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| dated(line)), "-t: {said}");
    end(&scene, client);

    // The laboratory's kernel is not for machines of 32 bit; a script may be.
    let script = files.path().join("own.ipxe");
    std::fs::write(&script, "#!ipxe\nshell\n").unwrap();
    let script = script.display().to_string();
    let client = pixiecore(&scene, &["boot", &script, "--ipxe-efi32", &efi32, "-l", "192.0.2.2"]);
    let found = offered_to(&machine, &discover_as(6, false)).unwrap();
    assert!(tftp(&machine, &found) == loader("efi32.efi"), "{found}");
    end(&scene, client);
}

#[test]
fn section_1_1_what_is_refused_says_why_and_ends_with_a_code() {
    need_host!(Needs::Tool("curl"));
    let scene = Scene::start(None, Site::AllowsAlice).unwrap();
    for (line, code, word) in [
        (&["bootipv6", "--listen-addr", "x"][..], 2, "IPv6"),
        (&["ipv6api", "x"], 2, "IPv6"),
        (&["boot", "/mnt/missing", "-l", "192.0.2.2"], 30, "/mnt/missing"),
        (&["boot", "/mnt/bzImage", "-p", "80"], 2, "80"),
        (&["quick", "debian"], 2, "which version of debian"),
        (&["quick", "plan9", "4"], 2, "plan9"),
    ] {
        let mut client = scene.host.program("alice", "pixiecore", line).unwrap();
        let status = client.end().unwrap();
        let said = client.stdout() + &client.stderr();
        assert_eq!(status.code(), Some(code), "{line:?}: {said}");
        assert!(said.contains(word), "{line:?}: {said}");
    }
    scene.assert_restored(SOON).unwrap();
}

#[test]
fn section_7_each_key_of_an_answer_by_the_first_versions_flags() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/snponly.efi"));
    let mut scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let service = Service::start(&mut scene);
    let machine = machine_on(&scene);
    let line = [
        "-api",
        WEB,
        "-api-timeout",
        "5s",
        "-debug",
        "-port-dhcp",
        "67",
        "-port-pxe",
        "4011",
        "-port-tftp",
        "69",
        "-port-http",
        "64173",
        "-listen-addr",
        "192.0.2.2",
    ];
    let client = pixiecore(&scene, &line);
    let text = script(&machine, TEXT);
    assert!(text.contains("/other0 quiet ||"), "{text}");
    assert!(named(&text, "kernel ").starts_with("http://192.0.2.2:64173/"), "{text}");
    assert!(curl(&machine, named(&text, "kernel ")) == image("bzImage"), "the kernel differs");
    let seed = text.split(" seed=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(curl(&machine, seed) == image("extra"), "the extra file differs");
    assert!(text.contains(" initrd=initrd0 initrd=initrd1 "), "{text}");
    assert!(curl(&machine, named(&text, "initrd ")) == image("initrd"), "the initrd differs");
    assert!(service.was_asked("/v1/boot/02:00:00:00:00:08") && service.was_asked("/files/extra"));
    let local = script(&machine, OF_THIS_COMPUTER);
    assert!(curl(&machine, named(&local, "kernel ")) == image("bzImage"), "the kernel differs");
    assert_eq!(script(&machine, SCRIPT), "#!ipxe\necho ${net0/mac}\n");
    let to = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    let refused = || client.stdout().contains("no kernel") || client.stderr().contains("no kernel");
    ask(&machine, "eth0", 68, &discover(EMPTY, false), &to, (0, Duration::ZERO)).unwrap();
    assert!(wait_until(SOON, refused), "{}{}", client.stdout(), client.stderr());
    end(&scene, client);
}

#[test]
fn section_1_3_each_recipe_of_quick_from_a_mirror() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/snponly.efi"));
    let mut scene = Scene::start(None, Site::AllowsAlice).unwrap();
    let service = Service::start(&mut scene);
    let machine = machine_on(&scene);
    for (words, asked, said) in [
        (
            &["arch"][..],
            "/iso/latest/arch/boot/x86_64/vmlinuz-linux",
            "archiso_http_srv=http://127.0.0.1:8080/iso/latest/",
        ),
        (&["centos", "10"], "/10-stream/BaseOS/x86_64/os/images/pxeboot/vmlinuz", "inst.stage2="),
        (&["coreos", "stable"], "/streams/stable.json", "/other0"),
        (
            &["debian", "testing", "--arch", "arm64"],
            "/dists/testing/main/installer-arm64/current/images/netboot/debian-installer/arm64/linux",
            "initrd=initrd0",
        ),
        (
            &["fedora", "44"],
            "/releases/44/Everything/x86_64/os/images/pxeboot/vmlinuz",
            "inst.stage2=",
        ),
        (&["ubuntu", "noble"], "/noble/netboot/amd64/linux", "ubuntu-24.04-live-server-amd64.iso"),
    ] {
        let line = [&["quick"], words, &["--mirror", WEB, "-l", "192.0.2.2"]].concat();
        let client = pixiecore(&scene, &line);
        let script = script(&machine, PLAIN);
        assert!(script.contains(said), "{words:?}: {script}");
        assert!(service.was_asked(asked), "{words:?}: {:?}", service.asked.lock().unwrap());
        let kernel = named(&script, "kernel ");
        assert!(curl(&machine, kernel) == image("bzImage"), "{words:?}: the kernel differs");
        end(&scene, client);
    }
}

#[test]
fn section_1_3_quick_xyz_has_something_for_machines_with_ipxe_and_without() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/snponly.efi"));
    let mut scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let _service = Service::start(&mut scene);
    let machine = machine_on(&scene);
    let client = pixiecore(&scene, &["quick", "xyz", "--mirror", WEB, "--json", "-l", "192.0.2.2"]);
    let script = script(&machine, PLAIN);
    let fetched: Vec<_> = script
        .lines()
        .filter_map(|line| line.strip_prefix("chain http://192")?.split(' ').next())
        .map(|rest| curl(&machine, &format!("http://192{rest}")))
        .collect();
    let names = ["netboot.xyz.lkrn", "netboot.xyz.efi", "netboot.xyz-arm64.efi"];
    assert!(fetched == names.map(loader), "{script}");
    // No iPXE for arm64 is at hand: netboot.xyz' own is what such a machine is given, and all.
    let given = offered_to(&machine, &discover_as(11, false)).unwrap();
    assert!(given.ends_with("/program-11"), "{given}");
    assert!(tftp(&machine, &given) == loader("netboot.xyz-arm64-snponly.efi"), "{given}");
    let handed_over = || {
        let events = client.events();
        events
            .iter()
            .any(|event| event["statement"] == "handed-over" && event["mac"] == "02:00:00:00:00:6b")
    };
    assert!(wait_until(SOON, handed_over), "{}", client.stdout());
    end(&scene, client);
}

#[test]
fn section_1_5_the_first_versions_command_line() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/snponly.efi"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let machine = machine_on(&scene);
    let client = pixiecore(
        &scene,
        &[
            "-kernel",
            "/mnt/bzImage",
            "-initrd=/mnt/initrd,/mnt/extra",
            "-cmdline",
            "a=b",
            "-port-http",
            "64172",
            "-listen-addr=192.0.2.2",
        ],
    );
    let script = script(&machine, PLAIN);
    assert!(script.contains("boot kernel initrd=initrd0 initrd=initrd1 a=b ||"), "{script}");
    assert!(curl(&machine, named(&script, "kernel ")) == image("bzImage"), "the kernel differs");
    end(&scene, client);
}

#[test]
fn section_7_a_service_that_is_slow_failing_malformed_huge_or_elsewhere() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/snponly.efi"));
    let mut scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let service = Service::start(&mut scene);
    let machine = machine_on(&scene);
    let line = [
        "api",
        "http://127.0.0.1:8080",
        "--api-request-timeout",
        "10m",
        "--json",
        "-l",
        "192.0.2.2",
    ];
    let client = pixiecore(&scene, &line);

    // It asks first, and is not answered before all others were.
    let to = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    ask(&machine, "eth0", 68, &discover(HELD_BACK, false), &to, (0, Duration::ZERO)).unwrap();
    let held = "/v1/boot/02:00:00:00:00:03";
    assert!(wait_until(SOON, || service.was_asked(held)), "the service is asked");
    let told = |last: u8| {
        let name = folder(last).replace('-', ":");
        client
            .events()
            .iter()
            .any(|event| event["mac"] == name.as_str() && event["why"] == "source")
    };
    for last in [REFUSED, MALFORMED, HUGE, BROKEN_OFF] {
        ask(&machine, "eth0", 68, &discover(last, false), &to, (0, Duration::ZERO)).unwrap();
        assert!(wait_until(SOON, || told(last)), "{last}:\n{}", client.stdout());
    }
    for last in [PLAIN, REDIRECTED] {
        let script = script(&machine, last);
        assert!(script.contains("echo Portcullis: hello\n"), "{script}");
        let ours = format!("/{}/other0", folder(last));
        assert!(script.contains("init=\"/i\" quiet seed=http://192.0.2.2:64172/"), "{script}");
        assert!(script.contains(&ours), "{script}");
        assert!(
            curl(&machine, named(&script, "kernel ")) == image("bzImage"),
            "the kernel differs"
        );
    }
    let events = client.events();
    let left_alone = |last: u8| {
        let name = folder(last).replace('-', ":");
        let of = |event: &&serde_json::Value| event["mac"] == name.as_str();
        !events.iter().filter(of).any(|event| event["fact"] == "offered")
    };
    for last in [HELD_BACK, REFUSED, MALFORMED, HUGE, BROKEN_OFF] {
        assert!(left_alone(last), "{last}: {}", client.stdout());
    }
    service.let_go();
    assert!(offered(&machine, HELD_BACK, false).is_some(), "its answer has come");
    end(&scene, client);
}

#[test]
fn section_1_3_quick_from_a_mirror_passed_on_and_directly() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/snponly.efi"));
    let mut scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let service = Service::start(&mut scene);
    let machine = machine_on(&scene);
    let line = [
        "quick",
        "debian",
        "stable",
        "--mirror",
        "http://127.0.0.1:8080",
        "--cmdline",
        "auto",
        "-l",
        "192.0.2.2",
    ];
    let client = pixiecore(&scene, &line);
    let through = script(&machine, PLAIN);
    assert!(through.contains(" auto"), "{through}");
    let kernel = named(&through, "kernel ");
    assert!(kernel.starts_with("http://192.0.2.2:64172/"), "{kernel}");
    assert!(curl(&machine, kernel) == image("bzImage"), "the kernel differs");
    end(&scene, client);

    let client = pixiecore(&scene, &[&line[..], &["--direct"]].concat());
    let direct = script(&machine, PLAIN);
    let kernel = named(&direct, "kernel ");
    assert!(kernel.starts_with("http://127.0.0.1:8080/"), "{kernel}");
    assert!(service.was_asked(kernel.strip_prefix("http://127.0.0.1:8080").unwrap()));
    end(&scene, client);
}
