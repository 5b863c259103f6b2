//! P2 and P3: whoever dies, however, the ports are closed at once, seen from outside; nothing of
//! ours is left, and everything else is what it was. `ROUNDS` of each (20; `make soak`: 1,000).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    io::Write,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use portcullis_lab::{
    host::{SOON, Site},
    need_host,
    nixos::Flavour,
    probe::Answer,
    process::{send, wait_until},
    scene::{CLOSED, Scene},
};
use rustix::process::{PidfdFlags, pidfd_open};

/// Promise P2 says one second. Machines are noisy: a test fails when it never happens, and prints
/// how long it took at most.
const RESTORED: Duration = Duration::from_secs(15);

fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(20, |text| text.parse().expect("ROUNDS is a number"))
}

/// One host, many rounds: closed, open, then what `end` does to the client (pid) and its helper.
fn each_round(what: &str, flavour: Flavour, mut end: impl FnMut(&Scene, &mut Round)) {
    let mut slowest = Duration::ZERO;
    let scene = Scene::start(Some(flavour), Site::AllowsAlice).unwrap();
    assert_eq!(scene.try_ports().unwrap(), CLOSED, "before");
    for number in 0..rounds() {
        let client = scene.serve(&[]).unwrap();
        let helpers = scene.host.helpers().unwrap();
        assert_eq!(helpers.len(), 1, "round {number}: helpers {helpers:?}");
        // The client keeps quiet about the question marks on 67 and 4011.
        let mut heard = CLOSED;
        let open = wait_until(SOON, || {
            heard = scene.try_ports().unwrap();
            (heard[1], heard[3]) == (Answer::Open, Answer::Open)
        });
        assert!(open, "round {number}: {heard:?}");
        let mut round = Round { number, client, helper: helpers[0] };
        end(&scene, &mut round);
        let begun = Instant::now();
        scene.assert_restored(RESTORED).unwrap();
        slowest = slowest.max(begun.elapsed());
    }
    // Not by println!, which the harness keeps to itself when a test passes.
    let rounds = rounds();
    let line =
        format!("{what}, {flavour:?}: {rounds} rounds, restored after {slowest:.1?} at most\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

struct Round {
    number: usize,
    client: portcullis_lab::host::Client,
    helper: u32,
}

/// The first packets after the deed are refused.
fn closed_at_once(scene: &Scene, round: &Round) {
    let heard = scene.try_ports().unwrap();
    assert_eq!(heard, CLOSED, "round {}: 67, 69, 4011, TCP", round.number);
}

/// Waits for the death that "at once" counts from: SIGKILL is asynchronous, and the sockets of a
/// process are closed by the last of its threads, which may outlive the first.
fn dead(pid: u32) {
    let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may be reaped already.
    let Ok(descriptor) = pidfd_open(process, PidfdFlags::empty()) else {
        return;
    };
    let mut watched = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(SOON).unwrap();
    assert_eq!(poll(&mut watched, limit), Ok(1), "process {pid} does not die");
}

fn client_killed(flavour: Flavour) {
    each_round("client killed", flavour, |scene, round| {
        let pid = round.client.pid().unwrap();
        send(pid, Signal::SIGKILL).unwrap();
        dead(pid);
        closed_at_once(scene, round);
    });
}

fn helper_killed(flavour: Flavour) {
    each_round("helper killed", flavour, |scene, round| {
        send(round.helper, Signal::SIGKILL).unwrap();
        dead(round.helper);
        closed_at_once(scene, round);
        let status = round.client.end().unwrap();
        assert_eq!(status.code(), Some(23), "the client says so: {}", round.client.stderr());
        // Swept as the unit does it, or by the next helper when it starts.
        if round.number.is_multiple_of(2) {
            scene.host.sweep().unwrap();
        } else {
            let mut status = scene.host.client("alice", &["status"]).unwrap();
            assert!(status.end().unwrap().success(), "{}", status.stderr());
        }
    });
}

fn client_killed_while_the_helper_hangs(flavour: Flavour) {
    each_round("client killed while the helper hangs", flavour, |scene, round| {
        send(round.helper, Signal::SIGSTOP).unwrap();
        let pid = round.client.pid().unwrap();
        send(pid, Signal::SIGKILL).unwrap();
        dead(pid);
        closed_at_once(scene, round);
        // Nobody has tidied up, and yet it was closed: the rules are still there.
        let hanging = portcullis_lab::snapshot::Snapshot::take(scene.host.netns()).unwrap();
        assert!(hanging.text().contains("table inet portcullis"), "{}", hanging.text());
        send(round.helper, Signal::SIGCONT).unwrap();
    });
}

#[test]
fn p2_client_killed_iptables() {
    need_host!();
    client_killed(Flavour::Iptables);
}

#[test]
fn p2_client_killed_nftables() {
    need_host!();
    client_killed(Flavour::Nftables);
}

#[test]
fn p3_helper_killed_iptables() {
    need_host!();
    helper_killed(Flavour::Iptables);
}

#[test]
fn p3_helper_killed_nftables() {
    need_host!();
    helper_killed(Flavour::Nftables);
}

#[test]
fn p3_client_killed_while_the_helper_hangs_iptables() {
    need_host!();
    client_killed_while_the_helper_hangs(Flavour::Iptables);
}

#[test]
fn p3_client_killed_while_the_helper_hangs_nftables() {
    need_host!();
    client_killed_while_the_helper_hangs(Flavour::Nftables);
}
