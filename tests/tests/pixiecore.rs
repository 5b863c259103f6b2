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

/// Asks until there is an offer of ours, and gives back the boot file that it names.
fn offered(machine: &Netns, last: u8, ipxe: bool) -> Option<String> {
    let to = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    let mut file = None;
    wait_until(SOON, || {
        let limit = (4, Duration::from_millis(700));
        let answers = ask(machine, "eth0", 68, &discover(last, ipxe), &to, limit).unwrap();
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
        Some(MALFORMED) => (200, b"{\"kernel\": 7".to_vec()),
        Some(HUGE) => (200, vec![b' '; 2 << 20]),
        Some(BROKEN_OFF) => {
            return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{");
        }
        Some(_) => (404, Vec::new()),
        None if path == "/moved" => (200, boot.to_vec()),
        None => match path.rsplit('/').next() {
            Some(name @ ("bzImage" | "initrd" | "extra")) => (200, image(name)),
            Some("linux") => (200, image("bzImage")),
            Some("initrd.gz") => (200, image("initrd")),
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

/// A machine on the LAN, with an address as its firmware would have it.
fn machine_on(scene: &Scene) -> Netns {
    let machine = Netns::new("machine").unwrap();
    scene.lan.attach(&machine, "eth0", Some("192.0.2.60/24")).unwrap();
    machine
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
