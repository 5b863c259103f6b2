//! The helper's own process: what it may, how it starts, how it dies.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::OwnedFd,
        linux::fs::MetadataExt,
        unix::{
            fs::PermissionsExt,
            net::{UnixDatagram, UnixStream},
            process::CommandExt,
        },
    },
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use futures_util::StreamExt;
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use portcullis_dbus::{Error, keys::reason};
use tempfile::TempDir;

use crate::{
    lab::{Bus, Client, Mood, Polkit, appears, request, until},
    netns::{Peer, sh, skipped, two_wires},
    real::NIXOS,
};

/// The real program.
pub const HELPER: &str = env!("CARGO_BIN_EXE_portcullis-helper");
/// The helper's user, on a machine that has it.
pub const UID: u32 = 64_099;

/// Gives the calling thread, and what it starts, a machine with two wires and the user portcullis;
/// `None`, and a word, without root.
pub fn machine_with_user() -> Option<(Peer, TempDir)> {
    let peer = two_wires()?;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    sh("mount --make-rprivate /");
    let files = tempfile::tempdir().unwrap();
    fs::set_permissions(files.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for (file, line) in [
        ("passwd", format!("portcullis:x:{UID}:{UID}::/:/usr/sbin/nologin\n")),
        ("group", format!("portcullis:x:{UID}:\n")),
    ] {
        let host = fs::read_to_string(format!("/etc/{file}")).unwrap();
        let path = files.path().join(file);
        fs::write(&path, line + &host).unwrap();
        sh(&format!("mount --bind {} /etc/{file}", path.display()));
    }
    Some((peer, files))
}

/// A helper that root has started.
pub struct Process {
    child: Child,
    notifications: UnixDatagram,
    _directory: TempDir,
}

impl Process {
    pub fn start(bus: &str, arguments: &[&str]) -> Self {
        Self::start_with(bus, arguments, |_| {})
    }

    fn start_with(bus: &str, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("notify");
        let notifications = UnixDatagram::bind(&socket).unwrap();
        notifications.set_nonblocking(true).unwrap();
        fs::set_permissions(&socket, PermissionsExt::from_mode(0o777)).unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new(HELPER);
        command
            .args(arguments)
            .env("DBUS_SYSTEM_BUS_ADDRESS", bus)
            .env("NOTIFY_SOCKET", &socket)
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null());
        prepare(&mut command);
        let child = command.spawn().unwrap();
        Self { child, notifications, _directory: directory }
    }

    fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    pub fn status(&self, key: &str) -> String {
        status(self.child.id(), key)
    }

    /// How many it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn notified(&self) -> Vec<String> {
        let mut buffer = [0; 64];
        std::iter::from_fn(|| {
            let length = self.notifications.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
        .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What /proc says of a process, its parts separated by one blank.
pub fn status(pid: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// What the program says when it refuses to run.
pub fn refused(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert_eq!(status.code(), Some(1));
    String::from_utf8_lossy(&stderr).into_owned()
}

#[tokio::test]
async fn p10_root_becomes_the_helpers_user_with_exactly_two_capabilities() {
    let Some(_machine) = machine_with_user() else {
        return;
    };
    let bus = Bus::start_for(UID);
    let process = Process::start(&bus.address, &[]);
    appears(&bus).await;
    let ids = [UID; 4].map(|uid| uid.to_string()).join(" ");
    assert_eq!(process.status("Uid"), ids);
    assert_eq!(process.status("Gid"), ids);
    assert_eq!(process.status("Groups"), "");
    // CAP_NET_BIND_SERVICE is 10, CAP_NET_ADMIN is 12.
    for (set, capabilities) in
        [("CapPrm", 0x1400), ("CapEff", 0x1400), ("CapBnd", 0x1400), ("CapInh", 0), ("CapAmb", 0)]
    {
        assert_eq!(process.status(set), format!("{capabilities:016x}"), "{set}");
    }
    assert_eq!(process.status("NoNewPrivs"), "1");
    assert_eq!(process.status("Threads"), "1");
}

#[tokio::test]
async fn p3_killed_the_helper_takes_its_table_along_and_the_sweep_the_rest() {
    let Some(_machine) = machine_with_user() else {
        return;
    };
    sh(NIXOS);
    let before = sh("nft -s -a list ruleset");
    let bus = Bus::start_for(UID);
    let _polkit = Polkit::start(&bus).await;
    let mut process = Process::start(&bus.address, &[]);
    appears(&bus).await;
    let client = Client::new(&bus).await;
    let (_, _sockets, _) = client.open("pc-svc0").await.unwrap();
    assert!(sh("nft list tables").contains("table inet portcullis"));
    process.signal(Signal::SIGKILL);
    process.child.wait().unwrap();
    // What is left accepts what carries a mark that nobody sets any more.
    assert!(!sh("nft list tables").contains("portcullis"));
    assert_eq!(sh("nft list ruleset").matches("portcullis").count(), 4);
    let mut sweep = Process::start(&bus.address, &["--sweep"]);
    assert!(sweep.child.wait().unwrap().success());
    assert_eq!(sh("nft -s -a list ruleset"), before);
}

#[tokio::test]
async fn p3_terminated_the_helper_closes_and_tells() {
    let Some(_machine) = machine_with_user() else {
        return;
    };
    sh(NIXOS);
    let before = sh("nft -s -a list ruleset");
    let bus = Bus::start_for(UID);
    let _polkit = Polkit::start(&bus).await;
    let mut process = Process::start(&bus.address, &[]);
    appears(&bus).await;
    until("it is ready", || process.notified().contains(&"READY=1".to_owned())).await;
    let client = Client::new(&bus).await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (_, _sockets, _) = client.open("pc-svc0").await.unwrap();
    let mut alive = 0;
    until("it says again and again that it is alive", || {
        let states = process.notified();
        alive += states.iter().filter(|state| *state == "WATCHDOG=1").count();
        alive >= 3
    })
    .await;
    process.signal(Signal::SIGTERM);
    assert_eq!(closed.next().await.unwrap().args().unwrap().reason, reason::HELPER_STOPPING);
    assert!(process.child.wait().unwrap().success());
    assert!(process.notified().contains(&"STOPPING=1".to_owned()));
    assert_eq!(sh("nft -s -a list ruleset"), before);
}

#[test]
fn p10_the_helper_refuses_to_run_with_more_or_less_than_it_needs() {
    if two_wires().is_none() {
        return;
    }
    let with = |capabilities: &str| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(format!("--inh-caps=-all{capabilities}"))
            .arg(format!("--ambient-caps=-all{capabilities}"))
            .arg(HELPER);
        command
    };
    let exact = ",+net_admin,+net_bind_service";
    let raw = ",+net_admin,+net_bind_service,+net_raw";
    // What sweeps after a helper has the same drop-in as that.
    for enough in [exact, raw] {
        assert!(with(enough).arg("--sweep").status().unwrap().success());
    }
    for wrong in ["", ",+net_admin", ",+net_admin,+net_raw", &format!("{exact},+sys_time")] {
        let said = refused(with(wrong).arg("--sweep"));
        assert!(said.contains("exactly CAP_NET_ADMIN and CAP_NET_BIND_SERVICE"), "{said}");
    }
    // The site has not said what it would be for.
    let said = refused(&mut with(raw));
    assert!(said.contains("raw-dhcp = true"), "{said}");
}

#[test]
fn root_without_the_helpers_user_is_told_how_to_make_it() {
    if !nix::unistd::geteuid().is_root() || !sh("getent passwd portcullis || true").is_empty() {
        skipped("needs root, and a machine without the user portcullis");
        return;
    }
    let said = refused(Command::new(HELPER).arg("--sweep"));
    assert!(said.contains("sysusers"), "{said}");
}

/// Nothing that the helper does could open what legacy iptables refuses: it does not pretend to.
/// (That systemd hands the list over: `p10_*` in tests/tests/system.rs.)
#[tokio::test]
async fn legacy_iptables_is_refused_where_no_other_firewall_is() {
    let Some((_peer, files)) = machine_with_user() else {
        return;
    };
    let list = files.path().join("ip-tables-names");
    fs::set_permissions(files.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for (tables, refuses) in [("none", false), ("nat\n", false), ("nat\nfilter\n", true)] {
        fs::write(&list, tables).unwrap();
        let bus = Bus::start_for(UID);
        let _polkit = Polkit::start(&bus).await;
        let _process = Process::start_with(&bus.address, &[], |command| {
            command.env("CREDENTIALS_DIRECTORY", files.path());
        });
        appears(&bus).await;
        let client = Client::new(&bus).await;
        match client.open("pc-svc0").await {
            Ok(_) => assert!(!refuses, "{tables:?}"),
            Err(Error::FirewallUnsupported(text)) => {
                assert!(refuses && text.contains("iptables-legacy"), "{tables:?}: {text}");
            }
            Err(other) => panic!("{tables:?}: {other:?}"),
        }
    }
}

/// Lets the calling thread, and what it starts, see a copy of /etc with this configuration.
fn configure(files: &TempDir, text: &str) {
    let etc = files.path().join("etc");
    let etc = etc.display();
    sh(&format!(
        "mkdir -p {etc} && cp -a /etc/. {etc} && mkdir -p {etc}/portcullis && mount --bind {etc} /etc"
    ));
    fs::write("/etc/portcullis/helper.toml", text).unwrap();
}

#[tokio::test]
async fn a_bad_configuration_stops_the_helper_and_a_good_one_holds() {
    let Some((_peer, files)) = machine_with_user() else {
        return;
    };
    configure(&files, "leases = 3\ninterfaces = [\"pc-svc1\"]\ncolour = 1\n");
    let bus = Bus::start_for(UID);
    let _polkit = Polkit::start(&bus).await;
    let mut command = Command::new(HELPER);
    command.env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address);
    let said = refused(&mut command);
    assert!(said.contains("/etc/portcullis/helper.toml:3: unknown field `colour`"), "{said}");
    // The sweep after a crash is done all the same.
    let sweep = Command::new(HELPER).arg("--sweep").output().unwrap();
    assert!(sweep.status.success(), "{}", String::from_utf8_lossy(&sweep.stderr));

    fs::write("/etc/portcullis/helper.toml", "interfaces = [\"pc-svc1\"]\n").unwrap();
    let _process = Process::start(&bus.address, &[]);
    appears(&bus).await;
    let client = Client::new(&bus).await;
    let error = client.open("pc-svc0").await.unwrap_err();
    assert!(matches!(error, Error::ForbiddenByPolicy(_)), "{error:?}");
    client.open("pc-svc1").await.unwrap();
}

#[test]
fn a_configuration_is_checked_by_anybody_before_it_is_used() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let file = directory.path().join("new.toml");
    let check = || {
        let mut command = Command::new(HELPER);
        command.arg("--check-config").arg(&file);
        if nix::unistd::geteuid().is_root() {
            command.uid(65534);
        }
        command
    };
    fs::write(&file, "leases = 3\n").unwrap();
    let Output { status, stdout, .. } = check().output().unwrap();
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!((status.code(), said), (Some(0), format!("{}: good\n", file.display())));
    fs::write(&file, "leases = 3\n\nleases-per-user = 0\n").unwrap();
    let said = refused(&mut check());
    assert!(said.contains("new.toml:3: this number is 1 to 128"), "{said}");
    fs::remove_file(&file).unwrap();
    let said = refused(&mut check());
    assert!(said.contains("new.toml: cannot be read"), "{said}");
}

#[test]
fn the_command_line_is_as_small_as_it_looks() {
    let run = |arguments: &[&str]| Command::new(HELPER).args(arguments).uid(65534).output();
    let version = run(&["--version"]).unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("portcullis-helper 0."));
    assert!(String::from_utf8_lossy(&run(&["--help"]).unwrap().stdout).contains("--sweep"));
    for wrong in [&["--verbose"][..], &["--sweep", "now"], &["-h"], &["--check-config", "a", "b"]] {
        assert_eq!(run(wrong).unwrap().status.code(), Some(2), "{wrong:?}");
    }
}

/// The fields of an entry in journald's native protocol: name, newline, length, value, newline.
fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while !entry.is_empty() {
        let (name, rest) = entry.split_at(entry.iter().position(|byte| *byte == b'\n').unwrap());
        let (length, rest) = rest[1..].split_first_chunk().unwrap();
        let (value, rest) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
        entry = rest.strip_prefix(b"\n").unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(fields.insert(text(name), text(value)), None);
    }
    fields
}

#[tokio::test]
async fn p12_each_decision_is_one_entry_with_its_fields() {
    let Some((_peer, files)) = machine_with_user() else {
        return;
    };
    // A journal of this machine's own, and a standard error that goes to it.
    sh("mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal");
    let journal = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    journal.set_nonblocking(true).unwrap();
    sh("chmod 666 /run/systemd/journal/socket");
    let path = files.path().join("stderr");
    let stderr = fs::File::create(&path).unwrap();
    let metadata = stderr.metadata().unwrap();
    let stream = format!("{}:{}", metadata.st_dev(), metadata.st_ino());
    let bus = Bus::start_for(UID);
    let polkit = Polkit::start(&bus).await;
    let _helper = Process::start_with(&bus.address, &[], |command| {
        command.env("JOURNAL_STREAM", stream).stderr(stderr);
    });
    appears(&bus).await;
    let client = Client::new(&bus).await;
    let sender = client.connection.unique_name().unwrap().to_string();
    let told = |expected: &[(&str, &str)]| {
        let mut buffer = [0; 4096];
        let length = journal.recv(&mut buffer).unwrap();
        let entry = fields(&buffer[..length]);
        let all = [
            ("PRIORITY", "5"),
            ("SYSLOG_IDENTIFIER", "portcullis-helper"),
            ("PORTCULLIS_UID", "0"),
            ("PORTCULLIS_SENDER", &sender),
        ];
        let mut rest = entry.clone();
        for (name, value) in all.iter().chain(expected) {
            assert_eq!(rest.remove(*name).as_deref(), Some(*value), "{name} of {entry:?}");
        }
        let message = rest.remove("MESSAGE").unwrap();
        let (_, decision) = expected[1];
        assert!(message.starts_with(&format!("decision={decision} uid=0 sender={sender}")));
        assert!(rest.is_empty(), "more than is documented: {rest:?}");
        assert!(journal.recv(&mut buffer).is_err(), "one entry for each decision");
    };
    let wanted = [
        ("PORTCULLIS_INTERFACE", "pc-svc0"),
        ("PORTCULLIS_DHCP", "bind"),
        ("PORTCULLIS_HTTP_PORT", "64172"),
        ("PORTCULLIS_PORTS", "udp/67,udp/69,udp/4011,tcp/64172"),
    ];
    let whole = |kind: &[(&'static str, &'static str)]| [kind, &wanted[..]].concat();

    let (lease, sockets, _) = client.open("pc-svc0").await.unwrap();
    told(&whole(&[
        ("MESSAGE_ID", "150783d880d24208a7a0727e1e2059db"),
        ("PORTCULLIS_DECISION", "granted"),
        ("PORTCULLIS_LEASE", "1"),
        ("PORTCULLIS_SECONDS", "43200"),
        ("PORTCULLIS_BACKEND", "none"),
    ]));
    client.proxy.extend(lease, 600).await.unwrap();
    told(&whole(&[
        ("MESSAGE_ID", "a6334bb2ffe845c7a5877183e59ad0e5"),
        ("PORTCULLIS_DECISION", "extended"),
        ("PORTCULLIS_LEASE", "1"),
        ("PORTCULLIS_SECONDS", "600"),
        ("PORTCULLIS_BACKEND", "none"),
    ]));
    client.proxy.close(lease).await.unwrap();
    told(&whole(&[
        ("MESSAGE_ID", "e3995dcf1c554863a80cba7b874ef6ff"),
        ("PORTCULLIS_DECISION", "ended"),
        ("PORTCULLIS_LEASE", "1"),
        ("PORTCULLIS_SECONDS", "0"),
        ("PORTCULLIS_BACKEND", "none"),
        ("PORTCULLIS_REASON", "closed"),
    ]));
    drop(sockets);

    polkit.answers(Mood::No);
    client.open("pc-svc0").await.unwrap_err();
    told(&whole(&[
        ("MESSAGE_ID", "506650eaaac842b595f7f99b47b9d6f5"),
        ("PORTCULLIS_DECISION", "refused"),
        ("PORTCULLIS_METHOD", "Open"),
        ("PORTCULLIS_RESULT", "NotAuthorized"),
        ("PORTCULLIS_SECONDS", "43200"),
    ]));
    // What was not understood is not repeated.
    let mut odd = request("pc-svc0");
    odd.insert("interface", "x\nPORTCULLIS_UID=0".into());
    client.proxy.open(odd).await.unwrap_err();
    told(&[
        ("MESSAGE_ID", "506650eaaac842b595f7f99b47b9d6f5"),
        ("PORTCULLIS_DECISION", "refused"),
        ("PORTCULLIS_METHOD", "Open"),
        ("PORTCULLIS_RESULT", "InvalidRequest"),
    ]);
    client.proxy.close(99).await.unwrap_err();
    told(&[
        ("MESSAGE_ID", "506650eaaac842b595f7f99b47b9d6f5"),
        ("PORTCULLIS_DECISION", "refused"),
        ("PORTCULLIS_METHOD", "Close"),
        ("PORTCULLIS_RESULT", "NoSuchLease"),
        ("PORTCULLIS_LEASE", "99"),
    ]);
    assert!(!fs::read_to_string(&path).unwrap().contains("decision="));

    // The journal is gone: a line on standard error instead, and the helper goes on.
    fs::remove_file("/run/systemd/journal/socket").unwrap();
    client.proxy.close(98).await.unwrap_err();
    let line = format!("<5>decision=refused uid=0 sender={sender} lease=98 method=Close");
    let said = fs::read_to_string(&path).unwrap();
    assert!(said.contains(&line), "{said}");
    // It is there and reads nothing: the same.
    let stuck = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    sh("chmod 666 /run/systemd/journal/socket");
    for number in 100..150 {
        client.proxy.close(number).await.unwrap_err();
    }
    let said = fs::read_to_string(&path).unwrap();
    assert!(said.contains("lease=149"), "the last ones found no room:\n{said}");
    drop(stuck);
}

#[tokio::test]
async fn p12_a_standard_error_that_nobody_reads_does_not_stop_the_helper() {
    let Some(_machine) = machine_with_user() else {
        return;
    };
    let (unread, stderr) = UnixStream::pair().unwrap();
    socket2::SockRef::from(&stderr).set_send_buffer_size(1).unwrap();
    let bus = Bus::start_for(UID);
    let _helper = Process::start_with(&bus.address, &[], |command| {
        command.stderr(OwnedFd::from(stderr));
    });
    appears(&bus).await;
    let client = Client::new(&bus).await;
    for number in 0..200 {
        let closing = client.proxy.close(number);
        let answer = tokio::time::timeout(Duration::from_secs(10), closing).await;
        assert!(matches!(answer, Ok(Err(Error::NoSuchLease(_)))), "{number}: {answer:?}");
    }
    drop(unread);
    client.proxy.close(200).await.unwrap_err();
}
