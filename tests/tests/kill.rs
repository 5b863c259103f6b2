//! P2 and P3: whoever dies, however and whenever, the ports are closed at once, seen from outside;
//! nothing of ours is left, and everything else is what it was. `ROUNDS` of each (10; `make soak`:
//! 1,000, and 200 of those in which the helper is killed at any moment).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use portcullis_lab::{
    host::{Client, SOON, Site},
    need_host,
    nixos::Flavour,
    probe::Answer,
    process::{send, wait_until},
    scene::{CLOSED, Scene},
    times::Times,
};
use rustix::process::{PidfdFlags, pidfd_open};

/// What promise P2 says; how it is held: [`Times`].
const PROMISE: Duration = Duration::from_secs(1);

/// Machines are noisy: a round fails when it never happens.
const RESTORED: Duration = Duration::from_secs(15);

fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(10, |text| text.parse().expect("ROUNDS is a number"))
}

/// One host, many rounds: closed, open, then what `end` does to the client (pid) and its helper.
fn each_round(what: &str, flavour: Flavour, mut end: impl FnMut(&Scene, &mut Round)) {
    let mut times = Times::default();
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
        times.add(begun.elapsed());
    }
    times.hold(&format!("{what}, {flavour:?}: restored"), PROMISE);
}

struct Round {
    number: usize,
    client: Client,
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

/// What is going on when somebody dies.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// From the start of the client on, until it serves, and a little longer.
    Opening,
    /// From the signal that ends it on, until it has ended, and a little longer.
    Closing,
}

/// Calls of `portcullis` that show how long a moment lasts on this machine, as it is now.
const CALIBRATION: usize = 5;

/// A part of `span`, another one for each round, all over it however many rounds there are (the
/// golden ratio's multiples, modulo 1, are spread evenly).
fn part_of(span: Duration, round: usize) -> Duration {
    let round = u32::try_from(round).unwrap();
    span.mul_f64((f64::from(round) * 0.618_033_988_749_895).fract())
}

/// `portcullis boot`, just started, and its process.
fn started(scene: &Scene) -> (Client, u32) {
    let words = ["boot", "/mnt", "--interface", "eth0", "--json", "--no-ask-password"];
    let client = scene.host.client("alice", &words).unwrap();
    let pid = client.pid().unwrap();
    (client, pid)
}

/// How long a moment lasts: the longest of a few, and a quarter more.
fn span(scene: &Scene, moment: Moment) -> Duration {
    let once = || {
        let begun = Instant::now();
        let (mut client, pid) = started(scene);
        client.ready().unwrap();
        let opening = begun.elapsed();
        let begun = Instant::now();
        send(pid, Signal::SIGTERM).unwrap();
        assert_eq!(client.end().unwrap().code(), Some(0), "{}", client.stderr());
        match moment {
            Moment::Opening => opening,
            Moment::Closing => begun.elapsed(),
        }
    };
    let longest = (0..CALIBRATION).map(|_| once()).max().unwrap();
    longest + longest / 4
}

/// The helper that runs, started if there is none.
fn helper(scene: &Scene) -> u32 {
    let mut client = scene.host.client("alice", &["status"]).unwrap();
    assert!(client.end().unwrap().success(), "{}", client.stderr());
    scene.host.helpers().unwrap()[0]
}

/// No lease is left, whoever asks.
fn no_lease(scene: &Scene, round: usize) {
    let mut status = scene.host.client("root", &["status", "--json"]).unwrap();
    assert!(status.end().unwrap().success(), "round {round}: {}", status.stderr());
    assert!(status.events().is_empty(), "round {round}: {}", status.stdout());
}

/// One host, many rounds: `kill` is done at some moment (client's process, helper's process); then
/// nothing is left.
fn at_any_moment(
    what: &str,
    (flavour, rounds): (Flavour, usize),
    moment: Moment,
    kill: impl Fn(&Scene, &mut Client, u32, u32),
) {
    let mut times = Times::default();
    let scene = Scene::start(Some(flavour), Site::AllowsAlice).unwrap();
    let span = span(&scene, moment);
    for round in 0..rounds {
        let helper = helper(&scene);
        let (mut client, pid) = started(&scene);
        if let Moment::Closing = moment {
            client.ready().unwrap();
            send(pid, Signal::SIGTERM).unwrap();
        }
        std::thread::sleep(part_of(span, round));
        kill(&scene, &mut client, pid, helper);
        let begun = Instant::now();
        scene.assert_restored(RESTORED).unwrap();
        times.add(begun.elapsed());
        assert_eq!(scene.try_ports().unwrap(), CLOSED, "round {round}: 67, 69, 4011, TCP");
        no_lease(&scene, round);
    }
    times.hold(&format!("{what} while {moment:?} ({span:.0?}), {flavour:?}: restored"), PROMISE);
}

fn client_killed_at_any_moment(flavour: Flavour) {
    for moment in [Moment::Opening, Moment::Closing] {
        at_any_moment("client killed", (flavour, rounds()), moment, |_, _, client, _| {
            // It may have ended by itself.
            let _gone = send(client, Signal::SIGKILL);
            dead(client);
        });
    }
}

fn helper_killed_at_any_moment(flavour: Flavour) {
    let rounds = if rounds() > 200 { 200 } else { rounds() };
    for moment in [Moment::Opening, Moment::Closing] {
        at_any_moment("helper killed", (flavour, rounds), moment, |scene, client, pid, helper| {
            send(helper, Signal::SIGKILL).unwrap();
            dead(helper);
            // Killed early, another one was started for the request, and it is served.
            let _gone = send(pid, Signal::SIGTERM);
            let status = client.end().unwrap();
            // Ended well; by us, before it was allowed or by the signal itself; or it says that the
            // helper is gone, before or after it was allowed.
            let ended = status.code().is_none_or(|code| [0, 11, 22, 23].contains(&code));
            assert!(ended, "{status}: {}", client.stderr());
            scene.host.sweep().unwrap();
        });
    }
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

#[test]
fn p2_client_killed_at_any_moment_iptables() {
    need_host!();
    client_killed_at_any_moment(Flavour::Iptables);
}

#[test]
fn p2_client_killed_at_any_moment_nftables() {
    need_host!();
    client_killed_at_any_moment(Flavour::Nftables);
}

#[test]
fn p3_helper_killed_at_any_moment_iptables() {
    need_host!();
    helper_killed_at_any_moment(Flavour::Iptables);
}

#[test]
fn p3_helper_killed_at_any_moment_nftables() {
    need_host!();
    helper_killed_at_any_moment(Flavour::Nftables);
}
