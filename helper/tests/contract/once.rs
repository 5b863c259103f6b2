//! A helper that was started for one run: no bus, no polkit, one caller, and the socket between them
//! as the run itself. First over a pair of sockets in this process, then the real program.

use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Output, Stdio},
};

use futures_util::StreamExt;
use nix::{sys::signal::Signal, unistd::getuid};
use portcullis_dbus::{
    Error,
    keys::{authorization, fact, reason},
};
use portcullis_helper::{
    caller::Caller,
    config::{self, Config},
    limits,
    run::{self, Failure},
};
use zbus::connection;

use crate::{
    lab::{Client, Helper, PATIENCE, request, until},
    netns::{sh, skipped, two_wires},
    process::{HELPER, refused, send, status},
    real::{NIXOS, ruleset},
};

/// A helper in this process, and our end of its socket.
fn start(config: Config) -> (Helper, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let caller = Caller::at_the_other_end(&theirs, &[getuid().as_raw()]).unwrap();
    let helper = Helper::spawn(config, |state, stop| run::once(theirs, caller, state, stop));
    (helper, ours)
}

async fn connect(socket: UnixStream) -> Client {
    Client::over(connection::Builder::unix_stream(socket).p2p().build().await.unwrap()).await
}

#[tokio::test]
async fn p1_the_one_caller_opens_what_the_site_allows_and_nobody_is_asked() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "interfaces = [\"eth0\"]\nleases-per-user = 1\n").unwrap();
    let (once, socket) = start(config::check(file.path()).unwrap());
    let client = connect(socket).await;
    let facts = client.proxy.check(request("eth0")).await.unwrap();
    assert_eq!(*facts[fact::AUTHORIZATION], zbus::Variant::from(authorization::YES));
    let error = client.open("eth1").await.unwrap_err();
    assert!(matches!(error, Error::ForbiddenByPolicy(_)), "{error:?}");
    let (lease, sockets, _) = client.open("eth0").await.unwrap();
    assert_eq!(sockets.len(), 4);
    let error = client.open("eth0").await.unwrap_err();
    assert!(matches!(error, Error::LimitsExceeded(_)), "{error:?}");
    client.proxy.extend(lease, 60).await.unwrap();
    let leases = client.proxy.list().await.unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!(*leases[0].1[fact::UID], zbus::Variant::from(getuid().as_raw()));
    client.proxy.close(lease).await.unwrap();
    client.proxy.close(lease).await.unwrap();
    drop(sockets);
    until("it is closed", || once.world().is_clean()).await;
    let error = client.proxy.close(99).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchLease(_)), "{error:?}");
    // However long nothing is open, it stays while its caller does.
    once.world().now += 10 * limits::IDLE;
    tokio::time::sleep(3 * limits::TICK).await;
    client.open("eth0").await.unwrap();
}

#[tokio::test]
async fn p2_it_ends_with_its_caller_and_everything_with_it() {
    let (mut once, socket) = start(Config::default());
    let client = connect(socket).await;
    let (_, sockets, _) = client.open("eth0").await.unwrap();
    client.leave().await;
    tokio::time::timeout(PATIENCE, &mut once.task).await.expect("it ends").unwrap().unwrap();
    assert!(once.world().open.is_empty());
    drop(sockets);
    assert!(once.world().is_clean());
}

#[tokio::test]
async fn the_caller_is_told_why_its_lease_ended() {
    let (mut once, socket) = start(Config::default());
    let client = connect(socket).await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (lease, sockets, _) = client.open("eth0").await.unwrap();
    once.world().links.clear();
    let told = closed.next().await.unwrap();
    let told = told.args().unwrap();
    assert_eq!((told.lease, &*told.reason), (lease, reason::INTERFACE_CHANGED));

    drop(sockets);
    once.world().add_link(0);
    let (_, _sockets, _) = client.open("eth0").await.unwrap();
    once.stop();
    let told = closed.next().await.unwrap();
    assert_eq!(told.args().unwrap().reason, reason::HELPER_STOPPING);
    tokio::time::timeout(PATIENCE, once.task).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_caller_that_does_not_speak_the_contract_gets_nothing() {
    use std::io::Write;
    // Nonsense, and another user's name.
    let (once, mut socket) = start(Config::default());
    socket.write_all(b"\0GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(socket);
    let ended = tokio::time::timeout(PATIENCE, once.task).await.expect("it ends").unwrap();
    assert!(matches!(ended, Err(Failure::Alone(_))), "{ended:?}");
    let (_once, socket) = start(Config::default());
    let other = getuid().as_raw() + 1;
    let builder = connection::Builder::unix_stream(socket).p2p().user_id(other);
    assert!(builder.build().await.is_err());
    // Silence.
    let (mut once, _socket) = start(Config::default());
    once.stop();
    tokio::time::timeout(PATIENCE, once.task).await.expect("it ends").unwrap().unwrap();
}

#[test]
fn p1_the_caller_is_who_the_kernel_and_the_starting_tool_both_name() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let us = getuid().as_raw();
    let caller = Caller::at_the_other_end(&theirs, &[us]).unwrap();
    assert_eq!(caller.uid.get(), us);
    for told in [&[][..], &[us + 1], &[us, us + 1]] {
        let why = Caller::at_the_other_end(&ours, told).unwrap_err();
        assert!(why.contains("SUDO_UID"), "{told:?}: {why}");
    }
    let file = File::open("/dev/null").unwrap();
    let why = Caller::at_the_other_end(&file, &[us]).unwrap_err();
    assert!(why.contains("no socket"), "{why}");
}

/// Where root has started the program, as sudo does for uid 0.
struct Started {
    guard: std::process::Child,
    client: Client,
}

impl Started {
    async fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guard = Command::new(HELPER)
            .arg("--once")
            .env("SUDO_UID", "0")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { guard, client: connect(ours).await }
    }

    /// The process that serves.
    fn helper(&self) -> u32 {
        let id = self.guard.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.trim().parse().unwrap()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

#[tokio::test]
async fn p10_both_of_its_processes_have_an_unused_uid_and_two_capabilities() {
    let Some(_peer) = two_wires() else {
        return;
    };
    sh(NIXOS);
    let before = ruleset();
    let mut started = Started::new().await;
    let (_, sockets, _) = started.client.open("pc-svc0").await.unwrap();
    for pid in [started.guard.id(), started.helper()] {
        let uids = status(pid, "Uid");
        let uid: u32 = uids.split(' ').next().unwrap().parse().unwrap();
        assert!(limits::ONCE_UIDS.contains(&uid), "{uid}");
        assert_eq!(uids, [uid; 4].map(|uid| uid.to_string()).join(" "));
        assert_eq!(status(pid, "Gid"), uids);
        assert_eq!(status(pid, "Groups"), "");
        // CAP_NET_BIND_SERVICE is 10, CAP_NET_ADMIN is 12.
        let sets = [
            ("CapPrm", 0x1400),
            ("CapEff", 0x1400),
            ("CapBnd", 0x1400),
            ("CapInh", 0),
            ("CapAmb", 0),
        ];
        for (set, capabilities) in sets {
            assert_eq!(status(pid, set), format!("{capabilities:016x}"), "{set}");
        }
        assert_eq!(status(pid, "NoNewPrivs"), "1");
    }
    // The copy was made of one thread, which the guard still is.
    assert_eq!(status(started.guard.id(), "Threads"), "1");
    // What a terminal sends is not for it.
    for key in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGHUP] {
        for pid in [started.guard.id(), started.helper()] {
            send(pid, key);
        }
    }
    assert_eq!(started.client.proxy.list().await.unwrap().len(), 1);
    drop(sockets);
    started.client.connection.clone().close().await.unwrap();
    assert!(started.guard.wait().unwrap().success());
    assert_eq!(ruleset(), before);
}

#[tokio::test]
async fn p3_killed_it_leaves_nothing_and_so_does_its_guard() {
    let Some(_peer) = two_wires() else {
        return;
    };
    sh(NIXOS);
    let before = ruleset();
    let mut started = Started::new().await;
    let (_, sockets, _) = started.client.open("pc-svc0").await.unwrap();
    assert_ne!(ruleset(), before);
    send(started.helper(), Signal::SIGKILL);
    started.client.connection.closed().await;
    // The guard sweeps, and is gone.
    assert!(started.guard.wait().unwrap().success());
    assert_eq!(ruleset(), before);
    drop(sockets);

    // Told to stop, it closes and says so, whichever half is told.
    let mut started = Started::new().await;
    let (_, sockets, _) = started.client.open("pc-svc0").await.unwrap();
    send(started.guard.id(), Signal::SIGTERM);
    started.client.connection.closed().await;
    assert!(started.guard.wait().unwrap().success());
    drop(sockets);
    assert_eq!(ruleset(), before);

    // Without its guard it ends with its caller all the same.
    let mut started = Started::new().await;
    let (_, sockets, _) = started.client.open("pc-svc0").await.unwrap();
    started.guard.kill().unwrap();
    started.guard.wait().unwrap();
    assert_eq!(started.client.proxy.list().await.unwrap().len(), 1);
    drop(sockets);
    started.client.connection.clone().close().await.unwrap();
    until("it sweeps itself", || ruleset() == before).await;
}

#[tokio::test]
async fn p9_one_beside_another_is_refused_and_takes_nothing_from_it() {
    let Some(_peer) = two_wires() else {
        return;
    };
    sh(NIXOS);
    let mut first = Started::new().await;
    // Started while nothing is open yet, it hears so when it asks.
    let late = Started::new().await;
    let (_, _sockets, _) = first.client.open("pc-svc0").await.unwrap();
    let open = ruleset();
    let error = late.client.open("pc-svc1").await.unwrap_err();
    let Error::FirewallFailed(why) = error else { panic!("{error:?}") };
    assert!(why.contains("another helper holds the table inet portcullis"), "{why}");
    // Started afterwards, it says so and ends.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let Output { status, stderr, .. } = Command::new(HELPER)
        .arg("--once")
        .env("SUDO_UID", "0")
        .stdin(OwnedFd::from(theirs))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success(), "{said}");
    assert!(said.starts_with("<3>another helper holds the table inet portcullis"), "{said}");
    drop((ours, late));
    assert_eq!(ruleset(), open);
    first.client.connection.clone().close().await.unwrap();
    assert!(first.guard.wait().unwrap().success());
}

#[test]
fn p1_the_program_refuses_a_start_that_nobody_was_asked_about() {
    if !getuid().is_root() {
        skipped("needs root");
        return;
    }
    let start = |uid: Option<&str>, stdin: OwnedFd| {
        let mut command = Command::new(HELPER);
        command.arg("--once").env_remove("SUDO_UID").env_remove("PKEXEC_UID").stdin(stdin);
        command.envs(uid.map(|uid| ("PKEXEC_UID", uid)));
        refused(&mut command)
    };
    let socket = || OwnedFd::from(UnixStream::pair().unwrap().1);
    assert!(start(None, socket()).contains("SUDO_UID"));
    assert!(start(Some("1"), socket()).contains("standard input was made by uid 0"));
    assert!(start(Some("x"), socket()).contains("invalid digit"));
    let file = OwnedFd::from(File::open("/dev/null").unwrap());
    assert!(start(Some("0"), file).contains("standard input is no socket"));
}
