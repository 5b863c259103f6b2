//! The whole program against a fake helper: a small service on a private bus that hands out
//! sockets on loopback. No privileges are needed, and nothing of the system's own bus is touched.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::{fd::OwnedFd as StdFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use portcullis_dbus::{BUS_NAME, Error, OBJECT_PATH, keys::fact};
use serde_json::Value;
use zbus::{OwnedFd, OwnedVariant, Variant, message::Header, object_server::SignalEmitter};

/// No step of these tests takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A private dbus-daemon, ended with the test.
struct Bus {
    daemon: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Bus {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("bus.conf");
        std::fs::write(
            &config,
            format!(
                "<busconfig><type>session</type><listen>unix:path={}/socket</listen><auth>EXTERNAL</auth>\
                 <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_type=\"method_call\"/>\
                 <allow send_type=\"signal\"/><allow send_requested_reply=\"true\"/>\
                 <allow receive_requested_reply=\"true\"/><allow receive_type=\"signal\"/></policy></busconfig>",
                directory.path().display()
            ),
        )
        .unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile", "--print-address=1", "--config-file"])
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon (package dbus-daemon)");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { daemon, address: address.trim().to_owned(), _directory: directory }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

type Facts = HashMap<String, OwnedVariant>;
type MakeError = fn(String) -> Error;

/// How the fake helper answers `Open`.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Grants,
    Refuses(MakeError),
    NeverAnswers,
    /// Says NoAgent first and NotAuthorized then.
    WantsAgent,
    Forgets,
}

/// What the fake helper was asked.
type Asked = Arc<Mutex<Vec<String>>>;

struct FakeHelper {
    mood: Mood,
    asked: Asked,
    ports: mpsc::Sender<Ports>,
}

/// Where the fake helper's sockets are.
#[derive(Debug)]
struct Ports {
    tftp: u16,
    http: u16,
    owner: String,
}

#[zbus::interface(name = "org.portcullis.Netboot1")]
impl FakeHelper {
    async fn open(
        &self,
        #[zbus(header)] header: Header<'_>,
        request: HashMap<String, OwnedVariant>,
    ) -> Result<(u64, HashMap<String, OwnedFd>, Facts), Error> {
        let mut keys: Vec<_> = request.keys().cloned().collect();
        keys.sort();
        self.asked.lock().unwrap().push(format!("Open {}", keys.join(" ")));
        match self.mood {
            Mood::Grants | Mood::Forgets => {}
            Mood::Refuses(error) => return Err(error("a sentence of the helper".to_owned())),
            Mood::NeverAnswers => std::future::pending().await,
            Mood::WantsAgent if self.asked.lock().unwrap().len() == 1 => {
                return Err(Error::NoAgent("nobody to ask".to_owned()));
            }
            Mood::WantsAgent => return Err(Error::NotAuthorized("no".to_owned())),
        }
        let udp = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (dhcp, boot_server, tftp) = (udp(), udp(), udp());
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let ports = Ports {
            tftp: tftp.local_addr().unwrap().port(),
            http: http.local_addr().unwrap().port(),
            owner: header.sender().unwrap().to_string(),
        };
        let port = ports.http;
        self.ports.send(ports).unwrap();
        let mut sockets = HashMap::new();
        for (key, socket) in [
            ("dhcp", StdFd::from(dhcp)),
            ("boot-server", boot_server.into()),
            ("tftp", tftp.into()),
            ("http", http.into()),
        ] {
            if !(matches!(self.mood, Mood::Forgets) && key == "tftp") {
                sockets.insert(key.to_owned(), OwnedFd::from(socket));
            }
        }
        let opened =
            self.asked.lock().unwrap().iter().filter(|one| one.starts_with("Open")).count();
        let mut facts = facts(port);
        facts.insert(fact::INTERFACE.to_owned(), request["interface"].clone());
        Ok((6 + opened as u64, sockets, facts))
    }

    fn close(&self, lease: u64) -> Result<(), Error> {
        self.asked.lock().unwrap().push(format!("Close {lease}"));
        Ok(())
    }

    fn list(&self) -> Result<Vec<(u64, Facts)>, Error> {
        Ok(vec![(7, facts(64172))])
    }

    #[zbus(signal, name = "Closed")]
    async fn lease_ended(emitter: &SignalEmitter<'_>, lease: u64, reason: &str)
    -> zbus::Result<()>;
}

fn facts(http: u16) -> Facts {
    let value = |value: Variant<'_>| OwnedVariant::try_from(value).unwrap();
    HashMap::from([
        (fact::BACKEND.to_owned(), value("none".into())),
        (fact::INTERFACE.to_owned(), value("lo".into())),
        (fact::INTERFACE_INDEX.to_owned(), value(1u32.into())),
        (fact::ADDRESS.to_owned(), value("127.0.0.1".into())),
        (fact::UDP_PORTS.to_owned(), value(vec![67u16, 69, 4011].into())),
        (fact::TCP_PORTS.to_owned(), value(vec![http].into())),
        (fact::UID.to_owned(), value(1000u32.into())),
        (fact::ENDS.to_owned(), value(u64::MAX.into())),
    ])
}

/// Bus, fake helper and something to serve.
struct Lab {
    helper: Option<zbus::Connection>,
    asked: Asked,
    ports: mpsc::Receiver<Ports>,
    runtime: tokio::runtime::Runtime,
    files: tempfile::TempDir,
    bus: Bus,
}

impl Lab {
    fn new(mood: Option<Mood>) -> Self {
        let bus = Bus::start();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let asked = Asked::default();
        let (sender, ports) = mpsc::channel();
        let helper = mood.map(|mood| {
            let fake = FakeHelper { mood, asked: Arc::clone(&asked), ports: sender };
            runtime
                .block_on(async {
                    zbus::connection::Builder::address(bus.address.as_str())
                        .serve_at(OBJECT_PATH, fake)
                        .name(BUS_NAME)
                        .build()
                        .await
                })
                .unwrap()
        });
        let files = tempfile::tempdir().unwrap();
        let mut kernel = vec![0; 4096];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        for (name, content) in [
            ("bzImage", kernel.as_slice()),
            ("initrd", b"initrd content"),
            ("undionly.kpxe", b"loader content"),
            ("netboot.ipxe", b"#!ipxe\nkernel bzImage init=/i initrd=initrd quiet ${cmdline}\ninitrd initrd\nboot\n"),
        ] {
            std::fs::write(files.path().join(name), content).unwrap();
        }
        Self { helper, asked, ports, runtime, files, bus }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command
            .args(arguments)
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.bus.address)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `boot` of the directory on loopback.
    fn boot(&self, more: &[&str]) -> Command {
        let directory = self.files.path().to_str().unwrap();
        let mut command = self.command(&["boot", directory, "-i", "lo", "--ipxe-dir", directory]);
        command.args(more);
        command
    }

    fn run(&self, command: &mut Command) -> Output {
        wait(command.spawn().unwrap())
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// The output of a process that has to end within [`PATIENCE`].
fn wait(mut child: Child) -> Output {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the program does not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The objects of `--json` up to and with the first one whose `event` is this.
fn until(lines: &mut BufReader<ChildStdout>, event: &str) -> Vec<Value> {
    let mut objects = Vec::new();
    loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "no {event} in {objects:?}");
        let object: Value = serde_json::from_str(&line).unwrap();
        let found = object["event"] == event;
        objects.push(object);
        if found {
            return objects;
        }
    }
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A read request for `file` without options (RFC 1350), answered by DATA 1.
fn tftp(port: u16, file: &str) -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = [b"\0\x01", file.as_bytes(), b"\0octet\0"].concat();
    socket.send_to(&request, (Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut answer = [0; 600];
    let (length, peer) = socket.recv_from(&mut answer).unwrap();
    socket.send_to(b"\0\x04\0\x01", peer).unwrap();
    answer[..length].to_vec()
}

#[test]
fn a_machine_is_served_and_ctrl_c_closes() {
    let lab = Lab::new(Some(Mood::Grants));
    let mut child = lab.boot(&["--json", "--for", "1h"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let ready = until(&mut lines, "ready");
    assert_eq!(ready[0]["event"], "asking");
    assert_eq!(ready[0]["max_seconds"], 3600);
    let ready = ready.last().unwrap();
    assert_eq!(ready["cmdline"], "init=/i quiet");
    assert_eq!(ready["backend"], "none");
    assert_eq!(ready["lease"], 7);
    assert_eq!(lab.asked(), ["Open http-port interface max-seconds"]);
    let ports = lab.ports.recv_timeout(PATIENCE).unwrap();

    assert!(get(ports.http, "/elsewhere").starts_with("HTTP/1.1 404"));
    assert_eq!(&tftp(ports.tftp, "02-00-00-00-00-01/undionly.kpxe")[4..], b"loader content");
    let done = until(&mut lines, "machine");
    assert_eq!(done[0]["mac"], "02:00:00:00:00:01");
    assert_eq!(done[0]["fact"], "transfer-started");

    signal(&child, Signal::SIGINT);
    let closed = until(&mut lines, "closed");
    assert_eq!(closed.last().unwrap()["reason"], "closed");
    let output = wait(child);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(lab.asked().last().map(String::as_str), Some("Close 7"));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, ports.http)).is_err());
}

#[test]
fn sigterm_ends_like_ctrl_c_and_the_text_says_what_was_closed() {
    let lab = Lab::new(Some(Mood::Grants));
    let child = lab.boot(&["--color", "never"]).spawn().unwrap();
    let http = lab.ports.recv_timeout(PATIENCE).unwrap().http;
    get(http, "/");
    signal(&child, Signal::SIGTERM);
    let output = wait(child);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("Ready on lo (127.0.0.1)\n"), "{text}");
    assert!(text.contains("bzImage (4.0 KiB), initrd (14 B)"), "{text}");
    let last = format!("Closed: UDP 67, 69, 4011 and TCP {http} on lo\n");
    assert!(text.ends_with(&last), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(stderr(&output).starts_with("Opening UDP 67, 69, 4011 and TCP 64172 on lo"));
}

#[test]
fn every_refusal_of_the_helper_keeps_its_exit_code_and_sentence() {
    let refusals: [(MakeError, i32); 5] = [
        (Error::NotAuthorized, 10),
        (Error::AuthenticationDismissed, 11),
        (Error::NoAgent, 12),
        (Error::AddressInUse, 14),
        (Error::FirewallUnsupported, 18),
    ];
    for (error, code) in refusals {
        let lab = Lab::new(Some(Mood::Refuses(error)));
        let output = lab.run(&mut lab.boot(&[]));
        assert_eq!(output.status.code(), Some(code));
        assert!(stderr(&output).contains("portcullis: a sentence of the helper"), "{output:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_helper_that_is_not_installed_is_said_so() {
    let lab = Lab::new(None);
    let output = lab.run(&mut lab.boot(&[]));
    assert_eq!(output.status.code(), Some(22));
    assert!(stderr(&output).contains("not installed"), "{output:?}");
    let output =
        lab.run(lab.command(&["status"]).env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent"));
    assert_eq!(output.status.code(), Some(22));
    assert!(stderr(&output).contains("system bus cannot be reached"), "{output:?}");
}

#[test]
fn a_helper_that_forgets_a_socket_is_an_error_that_names_it() {
    let lab = Lab::new(Some(Mood::Forgets));
    let output = lab.run(&mut lab.boot(&[]));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("\"tftp\""), "{output:?}");
}

#[test]
fn ctrl_c_while_the_question_is_open_is_a_dismissal() {
    let lab = Lab::new(Some(Mood::NeverAnswers));
    let child = lab.boot(&[]).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while lab.asked().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(&child, Signal::SIGINT);
    let output = wait(child);
    assert_eq!(output.status.code(), Some(11), "{output:?}");
}

/// What systemd says of the helper's unit: a state for each time that it is asked, then the last.
struct FakeUnit {
    states: Mutex<Vec<&'static str>>,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl FakeUnit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        let mut states = self.states.lock().unwrap();
        let state = states[0];
        if states.len() > 1 {
            states.remove(0);
        }
        state.to_owned()
    }

    #[zbus(property)]
    fn inactive_enter_timestamp_monotonic(&self) -> u64 {
        self.states.lock().unwrap().len() as u64
    }
}

struct FakeService;

#[zbus::interface(name = "org.freedesktop.systemd1.Service")]
impl FakeService {
    #[zbus(property)]
    fn status_text(&self) -> String {
        "/etc/portcullis/helper.toml:2: unknown field".to_owned()
    }
}

#[test]
fn a_helper_that_cannot_start_is_not_waited_for() {
    // A start that fails; and one that had failed, which the bus does not try again.
    for states in [vec!["inactive", "activating", "activating", "failed"], vec!["failed"]] {
        let lab = Lab::new(Some(Mood::NeverAnswers));
        let unit = FakeUnit { states: Mutex::new(states) };
        let path = "/org/freedesktop/systemd1/unit/portcullis_2dhelper_2eservice";
        let systemd = lab.runtime.block_on(async {
            zbus::connection::Builder::address(lab.bus.address.as_str())
                .serve_at(path, unit)
                .serve_at(path, FakeService)
                .name("org.freedesktop.systemd1")
                .build()
                .await
        });
        let output = lab.run(&mut lab.boot(&[]));
        assert_eq!(output.status.code(), Some(22), "{output:?}");
        let said = stderr(&output);
        let cause = "cannot start: /etc/portcullis/helper.toml:2: unknown field";
        assert!(said.contains(cause) && said.contains("--check-config"), "{said}");
        drop(systemd.unwrap());
    }
}

#[test]
fn the_end_of_the_lease_is_said_with_its_reason() {
    let lab = Lab::new(Some(Mood::Grants));
    let mut child = lab.boot(&["--json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    until(&mut lines, "ready");
    let owner = lab.ports.recv_timeout(PATIENCE).unwrap().owner;
    let helper = lab.helper.clone().unwrap();
    lab.runtime.block_on(async {
        let emitter = SignalEmitter::new(&helper, OBJECT_PATH)
            .unwrap()
            .set_destination(owner.as_str().try_into().unwrap());
        FakeHelper::lease_ended(&emitter, 6, "manager").await.unwrap();
        FakeHelper::lease_ended(&emitter, 7, "expired").await.unwrap();
    });
    let closed = until(&mut lines, "error");
    assert_eq!(closed[closed.len() - 2]["reason"], "expired");
    let output = wait(child);
    assert_eq!(output.status.code(), Some(23));
    assert!(stderr(&output).contains("the time is over"), "{output:?}");
}

#[test]
fn of_two_interfaces_each_has_its_own_lease_and_one_that_ends_ends_alone() {
    let lab = Lab::new(Some(Mood::Grants));
    // The third is the first once more.
    let mut child = lab.boot(&["--json", "-i", "lo1", "-i", "lo"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    for (lease, interface) in [(7, "lo"), (8, "lo1")] {
        let ready = until(&mut lines, "ready").pop().unwrap();
        assert_eq!(
            (ready["lease"].as_u64(), ready["interface"].as_str()),
            (Some(lease), Some(interface))
        );
    }
    assert_eq!(lab.asked(), ["Open http-port interface"; 2]);
    let [first, second] = [(); 2].map(|()| lab.ports.recv_timeout(PATIENCE).unwrap());
    for (port, interface) in [(first.tftp, "lo"), (second.tftp, "lo1")] {
        assert_eq!(&tftp(port, "02-00-00-00-00-01/undionly.kpxe")[4..], b"loader content");
        let started = until(&mut lines, "machine").pop().unwrap();
        assert_eq!(started["interface"], interface);
        let done = until(&mut lines, "machine").pop().unwrap();
        assert_eq!(
            (&done["fact"], done["interface"].as_str()),
            (&"transfer-done".into(), Some(interface))
        );
    }
    let helper = lab.helper.clone().unwrap();
    lab.runtime.block_on(async {
        let emitter = SignalEmitter::new(&helper, OBJECT_PATH)
            .unwrap()
            .set_destination(first.owner.as_str().try_into().unwrap());
        FakeHelper::lease_ended(&emitter, 7, "address-changed").await.unwrap();
    });
    let closed = until(&mut lines, "closed").pop().unwrap();
    assert_eq!(
        (&closed["interface"], &closed["reason"]),
        (&"lo".into(), &"address-changed".into())
    );
    let note = until(&mut lines, "note").pop().unwrap();
    let text = note["text"].as_str().unwrap();
    assert!(text.starts_with("lo: not serving any more: the address of lo changed"), "{text}");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, first.http)).is_err());
    assert!(get(second.http, "/elsewhere").starts_with("HTTP/1.1 404"));

    signal(&child, Signal::SIGINT);
    let closed = until(&mut lines, "closed").pop().unwrap();
    assert_eq!(closed["interface"], "lo1");
    assert_eq!(wait(child).status.code(), Some(0));
    assert_eq!(lab.asked().last().map(String::as_str), Some("Close 8"));
}

#[test]
fn the_helper_leaving_the_bus_ends_it() {
    let mut lab = Lab::new(Some(Mood::Grants));
    let child = lab.boot(&[]).spawn().unwrap();
    let http = lab.ports.recv_timeout(PATIENCE).unwrap().http;
    get(http, "/");
    let helper = lab.helper.take().unwrap();
    lab.runtime.block_on(async { helper.close().await.unwrap() });
    let output = wait(child);
    assert_eq!(output.status.code(), Some(23), "{output:?}");
    assert!(stderr(&output).contains("has gone"), "{output:?}");
}

#[test]
fn nothing_is_asked_for_arguments_that_are_wrong() {
    let lab = Lab::new(Some(Mood::Grants));
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (kernel, initrd) = (text(lab.file("bzImage")), text(lab.file("initrd")));
    let directory = text(lab.files.path().to_owned());
    let empty = tempfile::tempdir().unwrap();
    let bare = empty.path().to_str().unwrap();
    for (arguments, code) in [
        (vec!["boot", &directory, "--port", "x"], 2),
        (vec!["boot", &directory, "--loader", "arm64=f"], 2),
        (vec!["api", "host"], 2),
        (vec!["boot", &initrd], 30),
        (vec!["boot", &kernel, bare], 30),
        (vec!["boot", bare], 30),
        (vec!["boot", &kernel, "/nonexistent"], 30),
        (vec!["boot", &kernel, &initrd, "--cmdline", "a=${net0/mac}"], 30),
        (vec!["boot", &kernel, "--ipxe-bios", "/nonexistent"], 31),
        (vec!["boot", &kernel, "--ipxe-efi32", "/nonexistent"], 31),
        (vec!["boot", &kernel, "--loader", "11=/nonexistent"], 31),
        (vec!["boot", &kernel, "--ipxe-dir", &directory, "--listen-addr", "192.0.2.77"], 32),
    ] {
        let output = lab.run(&mut lab.command(&arguments));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
    assert_eq!(lab.asked(), Vec::<String>::new());
}

#[test]
fn status_and_close_speak_of_what_is_open() {
    let lab = Lab::new(Some(Mood::Grants));
    let output = lab.run(&mut lab.command(&["status"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.starts_with("Lease 7: UDP 67, 69, 4011 and TCP 64172 on lo, by uid 1000"),
        "{text}"
    );
    let output = lab.run(&mut lab.command(&["status", "--json"]));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((object["event"].as_str(), object["lease"].as_u64()), (Some("lease"), Some(7)));
    let output = lab.run(&mut lab.command(&["close"]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(lab.asked(), ["Close 7"]);
}

#[test]
fn called_as_pixiecore_it_takes_pixiecores_words() {
    let lab = Lab::new(Some(Mood::Grants));
    let link = lab.file("pixiecore");
    std::os::unix::fs::symlink(Path::new(env!("CARGO_BIN_EXE_portcullis")), &link).unwrap();
    let mut command = Command::new(link);
    command
        .arg("boot")
        .args([lab.file("bzImage"), lab.file("initrd")])
        .args([
            "--cmdline",
            "init=/i loglevel=4",
            "--debug",
            "--port",
            "64172",
            "--status-port",
            "64172",
        ])
        .args(["-l", "127.0.0.1", "--ipxe-bios"])
        .arg(lab.file("undionly.kpxe"))
        .env("DBUS_SYSTEM_BUS_ADDRESS", &lab.bus.address)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    get(lab.ports.recv_timeout(PATIENCE).unwrap().http, "/");
    signal(&child, Signal::SIGINT);
    let output = wait(child);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("Web page: http://127.0.0.1:"), "{output:?}");
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let lab = Lab::new(Some(Mood::Grants));
    let mut child = lab.boot(&[]).spawn().unwrap();
    drop(child.stdout.take());
    get(lab.ports.recv_timeout(PATIENCE).unwrap().http, "/");
    signal(&child, Signal::SIGINT);
    assert_eq!(wait(child).status.code(), Some(0));
}

#[test]
fn the_text_agent_is_started_at_a_terminal_when_it_is_needed_and_ended_again() {
    let lab = Lab::new(Some(Mood::WantsAgent));
    let agent = lab.file("pkttyagent");
    // Notes its arguments, closes the descriptor of its third option, and notes its end.
    let script = "#!/usr/bin/env bash\n\
        cd \"${0%/*}\"; echo \"$*\" > agent.log\n\
        trap 'echo ended >> agent.log; exit' TERM\n\
        eval \"exec $4>&-\"\n\
        while :; do sleep 0.02; done\n";
    std::fs::write(&agent, script).unwrap();
    std::fs::set_permissions(&agent, PermissionsExt::from_mode(0o755)).unwrap();
    let directory = lab.files.path().display();
    let boot = format!(
        "{} boot {directory} -i lo --ipxe-dir {directory}",
        env!("CARGO_BIN_EXE_portcullis")
    );
    // script(1) runs it at a terminal of its own and passes the exit code on.
    let path = format!("{directory}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("script");
    command
        .args(["-qec", &boot, "/dev/null"])
        .env("DBUS_SYSTEM_BUS_ADDRESS", &lab.bus.address)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = lab.run(&mut command);
    assert_eq!(output.status.code(), Some(10), "{output:?}");
    assert_eq!(lab.asked().len(), 2);
    let log = std::fs::read_to_string(lab.file("agent.log")).unwrap();
    assert!(log.starts_with("--process ") && log.contains(" --notify-fd "), "{log}");
    assert!(log.ends_with("\nended\n"), "{log}");

    // Without a terminal, or if the user does not want to be asked, it is left alone.
    let lab = Lab::new(Some(Mood::WantsAgent));
    let output = lab.run(&mut lab.boot(&[]));
    assert_eq!((output.status.code(), lab.asked().len()), (Some(12), 1));
}
