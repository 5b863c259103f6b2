//! Copies of what lies on another web server, where things go wrong around them: a disk that is full, and another
//! program that shares the folder and is killed. The real program on a real host; the other server sends
//! what no disk here has room for, and stops where a test says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs, download,
    host::{Client, SOON, Site},
    lan::Lan,
    need_host,
    netns::Netns,
    nixos::Flavour,
    process::{Process, finish, mortal, wait_until},
    scene::{HTTP, Scene},
};
use serde_json::Value;

const BLOCK: usize = 64 * 1024;
const MIB: u64 = 1 << 20;
/// Octets of the file; more than the disk has.
const LENGTH: u64 = 96 * MIB;
/// The disk.
const DISK: &str = "40m";

/// A part of the file, which begins as a Linux kernel does.
fn block(number: u64) -> Vec<u8> {
    let mut octets: Vec<u8> = number.to_le_bytes().repeat(BLOCK / 8);
    if number == 0 {
        octets[0x202..0x206].copy_from_slice(b"HdrS");
    }
    octets
}

fn blocks() -> impl Iterator<Item = Vec<u8>> {
    (0..LENGTH / BLOCK as u64).map(block)
}

/// The file's SHA-256, as sha256sum says it.
fn sum() -> String {
    let mut command = mortal("sha256sum");
    let file = tempfile::NamedTempFile::new().unwrap();
    blocks().for_each(|octets| file.as_file().write_all(&octets).unwrap());
    command.arg(file.path());
    finish(command).unwrap().split(' ').next().unwrap().to_owned()
}

#[derive(Default)]
struct State {
    /// Sends no octet from this one on.
    hold: Mutex<Option<u64>>,
    changed: Condvar,
    /// Paths of the questions for the whole, and whether it was still the same.
    log: Mutex<Vec<String>>,
}

/// The other web server, 192.0.2.4 on the LAN: `/chunks` without a length, everything else with one.
struct Origin {
    _netns: Netns,
    state: Arc<State>,
}

impl Origin {
    fn start(scene: &Scene, hold: u64) -> Self {
        let netns = Netns::new("origin").unwrap();
        scene.lan.attach(&netns, "eth0", Some("192.0.2.4/24")).unwrap();
        let listener = netns.run(|| TcpListener::bind("192.0.2.4:80").unwrap()).unwrap();
        let state = Arc::new(State { hold: Mutex::new(Some(hold)), ..State::default() });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                // Who leaves is no fault of the server.
                std::thread::spawn(move || state.answer(stream.unwrap()));
            }
        });
        Self { _netns: netns, state }
    }

    fn hold(&self, hold: Option<u64>) {
        *self.state.hold.lock().unwrap() = hold;
        self.state.changed.notify_all();
    }

    fn asked(&self, what: &str) -> usize {
        self.state.log.lock().unwrap().iter().filter(|line| *line == what).count()
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let question = lines.next().unwrap()?;
        let head: Vec<_> =
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let has = |word: &str| head.iter().any(|line| line.to_lowercase().starts_with(word));
        let chunks = question.contains("/chunks");
        let same = has("if-none-match:");
        // A look at its beginning is no download.
        if !has("range:") {
            let path = question.split(' ').nth(1).unwrap();
            self.log.lock().unwrap().push(format!("{path} {}", if same { 304 } else { 200 }));
        }
        let framing = if chunks {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {LENGTH}")
        };
        let status = if same { "304 Same" } else { "200 OK" };
        let framing = if same { "Vary: Accept" } else { &framing };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nConnection: close\r\nETag: \"a\"\r\n{framing}\r\n\r\n"
        )?;
        if same || question.starts_with("HEAD") {
            return Ok(());
        }
        let mut sent = 0;
        for octets in blocks() {
            let mut hold = self.hold.lock().unwrap();
            while hold.is_some_and(|hold| hold <= sent) {
                hold = self.changed.wait(hold).unwrap();
            }
            drop(hold);
            if chunks {
                write!(stream, "{BLOCK:x}\r\n")?;
                stream.write_all(&octets)?;
                stream.write_all(b"\r\n")?;
            } else {
                stream.write_all(&octets)?;
            }
            sent += BLOCK as u64;
        }
        if chunks { stream.write_all(b"0\r\n\r\n") } else { Ok(()) }
    }
}

/// Machines on one LAN that fetch the kernel, and what they got, as sha256sum says it.
struct Machines(Vec<Process>);

impl Machines {
    fn start(from: &Netns, host: &str, path: &str, count: u8) -> Self {
        let one = |last: u8| {
            let path = path.replace("00-07/", &format!("00-{last:02x}/"));
            let mut command = mortal("sh");
            let url = format!("http://{host}:{HTTP}{path}");
            command.args(["-c", &format!("curl -s -S -f -m 300 {url} | sha256sum")]);
            command.stdout(std::process::Stdio::piped());
            from.spawn(command).unwrap()
        };
        Self((0..count).map(one).collect())
    }

    /// What each of them got.
    fn end(self) -> Vec<String> {
        let end = |mut machine: Process| {
            machine.wait(20 * SOON).unwrap();
            let said = machine.rest_of_stdout().unwrap();
            said.split(' ').next().unwrap_or_default().to_owned()
        };
        self.0.into_iter().map(end).collect()
    }
}

fn count(client: &Client, wanted: impl Fn(&Value) -> bool) -> usize {
    client.events().iter().filter(|event| wanted(event)).count()
}

/// A shell's words on the host, by root.
fn on_host(scene: &Scene, script: &str) -> String {
    let mut command = scene.host.command(None, "sh");
    command.args(["-c", script]);
    scene.host.netns().finish(command).unwrap()
}

fn peak(client: &Client) -> u64 {
    let path = format!("/proc/{}/status", client.pid().unwrap());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn on_a_full_disk_machines_get_every_octet_it_is_said_once_and_nothing_stays() {
    need_host!(Needs::Tool("curl"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    // In the host's own mount namespace.
    on_host(
        &scene,
        &format!(
            "mount -t tmpfs -o size={DISK},uid=$(id -u alice),mode=700 tmpfs /run/cache/alice"
        ),
    );
    let origin = Origin::start(&scene, MIB);
    let whole = sum();
    for what in ["/chunks", "/length"] {
        origin.hold(Some(MIB));
        let url = format!("http://192.0.2.4{what}");
        let mut client = scene.serve_by(&["boot", &url], &[]).unwrap();
        let path = download::kernel_path(&scene.outsider, "eth0", &client).unwrap();
        let machines = Machines::start(&scene.outsider, "192.0.2.2", &path, 4);
        let started =
            |event: &Value| event["fact"] == "transfer-started" && event["role"] == "kernel";
        assert!(wait_until(4 * SOON, || count(&client, started) == 4), "{}", client.stdout());
        if what == "/chunks" {
            // Somebody else takes all that is left.
            let script =
                "cat /dev/zero > /run/cache/alice/other 2>&1; stat -f -c %f /run/cache/alice";
            assert_eq!(on_host(&scene, &format!("{script}; true")).lines().last(), Some("0"));
        }
        origin.hold(None);
        assert_eq!(machines.end(), vec![whole.clone(); 4], "{}", client.stdout());
        let told = |event: &Value| {
            event["fact"] == "upstream" && event["problem"].as_str().unwrap().contains("disk")
        };
        assert!(wait_until(SOON, || count(&client, told) > 0), "{}", client.stdout());
        // Who comes later gets it, too, and nothing is said again.
        let later = Machines::start(&scene.outsider, "192.0.2.2", &path, 1);
        assert_eq!(later.end(), std::slice::from_ref(&whole), "{}", client.stdout());
        let events = client.events();
        let problems: Vec<_> = events.iter().filter(|event| told(event)).collect();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        let problem = problems[0]["problem"].as_str().unwrap();
        assert!(problem.contains("make room on the disk of /run/cache/alice"), "{problem}");
        // Without a length it is one download as far as there is room, and beyond.
        let downloads = if what == "/chunks" { 2 } else { 5 };
        assert_eq!(origin.asked(&format!("{what} 200")), downloads);
        let megabytes = peak(&client);
        assert!(megabytes < 64, "{megabytes} MiB, of a file of {} MiB", LENGTH / MIB);
        let left = || on_host(&scene, "ls /run/cache/alice/portcullis");
        assert!(wait_until(SOON, || left().is_empty()), "{}", left());
        scene.end(&mut client, SOON).unwrap();
        on_host(&scene, "rm -f /run/cache/alice/other");
        assert_eq!(on_host(&scene, "df --output=used /run/cache/alice | tail -1").trim(), "0");
    }
}

#[test]
fn two_programs_share_a_folder_and_the_death_of_one_takes_nothing_from_the_other() {
    need_host!(Needs::Tool("curl"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let lan = Lan::new().unwrap();
    let other = Netns::new("other").unwrap();
    lan.attach(&other, "eth0", Some("198.51.100.3/24")).unwrap();
    lan.attach(scene.host.netns(), "eth1", Some("198.51.100.2/24")).unwrap();
    let origin = Origin::start(&scene, MIB);
    let whole = sum();
    let url = "http://192.0.2.4/length";
    let serve = |interface: &str| {
        let words = ["boot", url, "--interface", interface, "--json", "--no-ask-password"];
        let mut client = scene.host.client("alice", &words).unwrap();
        client.ready().unwrap();
        client
    };
    let files = || on_host(&scene, "ls /run/cache/alice/portcullis").lines().count();
    let mut killed = serve("eth0");
    let mut survivor = serve("eth1");
    let path = download::kernel_path(&scene.outsider, "eth0", &killed).unwrap();
    let lost = Machines::start(&scene.outsider, "192.0.2.2", &path, 2);
    let path = download::kernel_path(&other, "eth0", &survivor).unwrap();
    let machines = Machines::start(&other, "198.51.100.2", &path, 2);
    let started = |event: &Value| event["fact"] == "transfer-started" && event["role"] == "kernel";
    for client in [&killed, &survivor] {
        assert!(wait_until(4 * SOON, || count(client, started) == 2), "{}", client.stdout());
    }
    assert_eq!(files(), 2, "each fetches into a file of its own");
    origin.hold(Some(48 * MIB));
    let half = || {
        let sizes = on_host(&scene, "stat -c %s /run/cache/alice/portcullis/*");
        sizes.lines().all(|size| size.parse::<u64>().unwrap() >= 47 * MIB)
    };
    assert!(wait_until(4 * SOON, half), "both are in the middle");
    killed.signal(Signal::SIGKILL).unwrap();
    killed.end().unwrap();
    origin.hold(None);
    assert_eq!(machines.end(), vec![whole.clone(); 2], "{}", survivor.stdout());
    assert!(lost.end().iter().all(|got| *got != whole), "what is half is not taken for whole");
    let kept = |event: &Value| event["fact"] == "fetched" && event["kept"] == true;
    assert!(wait_until(4 * SOON, || count(&survivor, kept) == 1), "{}", survivor.stdout());
    survivor.signal(Signal::SIGINT).unwrap();
    survivor.end().unwrap();

    // The next one finds one copy, looks at its octets, and has removed what was half.
    let mut next = serve("eth0");
    let path = download::kernel_path(&scene.outsider, "eth0", &next).unwrap();
    let machines = Machines::start(&scene.outsider, "192.0.2.2", &path, 1);
    assert_eq!(machines.end(), [whole], "{}", next.stdout());
    let reused = |event: &Value| event["fact"] == "reused" && event["file"] == url;
    assert_eq!(count(&next, reused), 1, "{}", next.stdout());
    assert_eq!((files(), origin.asked("/length 200"), origin.asked("/length 304")), (1, 2, 1));
    next.signal(Signal::SIGINT).unwrap();
    next.end().unwrap();
}
