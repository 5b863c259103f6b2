//! P5 on the real kernel: every system call of an opening, a closing, a repair, a look and a sweep is
//! made to fail, one after the other, behind both flavours of NixOS' firewall.
//!
//! What fails is the call itself, in the helper's own code on its way to the kernel: a socket, an
//! option, a port, a listing, the transaction, and the kernel's word on the transaction, after which
//! only the kernel knows whether it was carried out. Each loop ends with the first number that the
//! step does not reach, so a step that grows is covered as it grows.

// A test speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

#[allow(dead_code, reason = "shared with tests that need all of it")]
mod scene;

use portcullis_helper::{
    firewall::{Firewall, FirewallError, Nftables, Opening, Standing},
    kernel::{Kernel, Linux},
    sockets::Bound,
};
use portcullis_lab::{
    fault::{CALLS, Fault, When},
    host::SOON,
    nixos::Flavour,
    process::wait_until,
    snapshot::{Snapshot, assert_same},
};
use scene::{HOST, HTTP, Scene};

macro_rules! both_flavours {
    ($($test:ident),+ $(,)?) => {
        mod iptables { $(#[test] fn $test() { portcullis_lab::need_root!("ip", "nft", "iptables", "strace"); super::$test(super::Flavour::Iptables); })+ }
        mod nftables { $(#[test] fn $test() { portcullis_lab::need_root!("ip", "nft", "iptables", "strace"); super::$test(super::Flavour::Nftables); })+ }
    };
}

both_flavours!(
    p5_a_fault_in_any_call_of_an_opening_leaves_nothing,
    p5_a_kernel_that_refuses_from_any_call_on_leaves_nothing_to_the_next_helper,
    p5_a_fault_in_any_call_of_a_closing_leaves_the_ports_closed_and_the_sweep_nothing,
    p5_a_fault_in_any_call_of_a_look_or_a_repair_is_neither_a_revocation_nor_left,
);

/// What the helper does for a granted request.
fn open(firewall: &mut Nftables, opening: &Opening) -> Result<Bound, String> {
    let bound = Linux::default().bind(opening, HOST).map_err(|error| format!("bind: {error}"))?;
    firewall.open(opening).map_err(|error| format!("open: {error}"))?;
    Ok(bound)
}

/// Does this while a fault awaits it: what came of it, and whether the fault struck.
fn faulted<T>(call: &str, when: When, work: impl FnOnce() -> T) -> (T, bool) {
    let fault = Fault::inject(call, when).unwrap();
    let outcome = work();
    let struck = fault.lift().unwrap();
    (outcome, struck)
}

/// A round for each call of the helper, until a round says that the fault did not strike; in the
/// host. How many did.
fn each_fault(
    scene: &Scene,
    when: fn(usize) -> When,
    mut round: impl FnMut(&str, When) -> bool + Send,
) -> usize {
    let rounds = move || {
        let of_call = |call| (1..).find(|number| !round(call, when(*number))).unwrap() - 1;
        CALLS.map(of_call).into_iter().sum()
    };
    scene.host.run(rounds).unwrap()
}

fn now(scene: &Scene) -> Snapshot {
    Snapshot::take(&scene.host).unwrap()
}

/// Whether nothing holds a port of a lease, in this thread's namespace.
fn ports_are_free() -> bool {
    let holds = |kind: &str, port: u16| {
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{kind}")).unwrap();
        let port = format!(":{port:04X}");
        table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .any(|at| at.ends_with(&port))
    };
    ![("udp", 67), ("udp", 69), ("udp", 4011), ("tcp", HTTP)]
        .iter()
        .any(|(kind, port)| holds(kind, *port))
}

/// What is left in the end, swept as the helper does it with every tick. A program that another test of
/// this process is just starting has copies of the sockets, and so keeps the table, until its exec.
fn left(scene: &Scene, before: &Snapshot, firewall: &mut Nftables) -> String {
    let mut changes = String::new();
    wait_until(SOON, || {
        match firewall.sweep() {
            Ok(_) | Err(FirewallError::AnotherHelper) => {}
            Err(error) => panic!("{error}"),
        }
        changes = before.changes(&now(scene));
        changes.is_empty() && ports_are_free()
    });
    assert!(!changes.is_empty() || ports_are_free());
    changes
}

fn p5_a_fault_in_any_call_of_an_opening_leaves_nothing(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let before = now(&scene);
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    let mut refused = 0;
    let faults = each_fault(&scene, When::Only, |call, when| {
        let (outcome, struck) = faulted(call, when, || open(&mut firewall, &opening));
        match outcome {
            Err(error) => {
                assert!(struck, "{call} {when:?}: {error}");
                refused += 1;
            }
            // Not reached; or one that the helper can do without, or asks again.
            Ok(bound) => {
                assert_eq!(firewall.standing(&opening).unwrap(), Standing::Whole);
                drop(bound);
                firewall.close(&opening).unwrap();
            }
        }
        // After a refusal, too: the kernel's answer may be what was lost.
        let changes = left(&scene, &before, &mut firewall);
        assert!(changes.is_empty(), "{call} {when:?}, struck: {struck}:\n{changes}");
        struck
    });
    println!("{flavour:?}: {faults} faults, {refused} openings refused");
    assert!(refused > 50, "{refused}");
}

fn p5_a_kernel_that_refuses_from_any_call_on_leaves_nothing_to_the_next_helper(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let before = now(&scene);
    let opening = scene.opening(1);
    let faults = each_fault(&scene, When::From, |call, when| {
        let mut firewall = scene.firewall();
        let (outcome, struck) = faulted(call, when, || open(&mut firewall, &opening));
        assert_eq!(outcome.is_err(), struck, "{call} {when:?}: {outcome:?}");
        drop((outcome, firewall));
        let changes = left(&scene, &before, &mut scene.firewall());
        assert!(changes.is_empty(), "{call} {when:?}, struck: {struck}:\n{changes}");
        struck
    });
    println!("{flavour:?}: {faults} faults");
    assert!(faults > 50, "{faults}");
}

fn p5_a_fault_in_any_call_of_a_closing_leaves_the_ports_closed_and_the_sweep_nothing(
    flavour: Flavour,
) {
    let scene = Scene::new(Some(flavour));
    let before = now(&scene);
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    let live = format!("elements = {{ {:#x} }}", opening.mark.value());
    let faults = each_fault(&scene, When::Only, |call, when| {
        let bound = open(&mut firewall, &opening).unwrap();
        assert!(now(&scene).text().contains(&live));
        let (_either, struck) = faulted(call, when, || firewall.close(&opening));
        // No living lease, or nothing that one could hear by, whoever still holds the sockets.
        let then = now(&scene);
        let closed = !then.text().contains(&live) || !then.text().contains("portcullis lease");
        assert!(closed, "{call} {when:?}:\n{}", then.text());
        drop(bound);
        let (outcome, again) = faulted(call, when, || firewall.sweep());
        assert!(outcome.is_ok() || again, "{call} {when:?}: {outcome:?}");
        let changes = left(&scene, &before, &mut firewall);
        assert!(changes.is_empty(), "{call} {when:?}, struck: {struck}, {again}:\n{changes}");
        struck || again
    });
    println!("{flavour:?}: {faults} faults");
    assert!(faults > 15, "{faults}");
}

fn p5_a_fault_in_any_call_of_a_look_or_a_repair_is_neither_a_revocation_nor_left(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    // As a reload: every chain is made anew, in one transaction.
    let reload = match flavour {
        Flavour::Iptables => "iptables-restore </tmp/saved".to_owned(),
        Flavour::Nftables => "nft -f /tmp/saved".to_owned(),
    };
    let directory = tempfile::tempdir().unwrap();
    let saved = directory.path().join("saved").display().to_string();
    let reload = reload.replace("/tmp/saved", &saved);
    scene
        .host
        .sh(&match flavour {
            Flavour::Iptables => format!("iptables-save -t filter >{saved}"),
            Flavour::Nftables => format!(
                "{{ echo 'delete table inet nixos-fw'; nft list table inet nixos-fw; }} >{saved}"
            ),
        })
        .unwrap();
    scene.host.sh(&reload).unwrap();
    let before = now(&scene).without_handles();
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    let bound = scene.host.run(|| open(&mut firewall, &opening)).unwrap().unwrap();
    scene.host.sh(&reload).unwrap();
    assert!(firewall.restore(&opening).unwrap());
    let whole = now(&scene).without_handles();
    let faults = each_fault(&scene, When::Only, |call, when| {
        let (standing, first) = faulted(call, when, || firewall.standing(&opening));
        let expected = matches!(standing, Ok(Standing::Whole)) || first && standing.is_err();
        assert!(expected, "{call} {when:?}: {standing:?}");
        scene.host.sh(&reload).unwrap();
        let (standing, second) = faulted(call, when, || firewall.standing(&opening));
        let expected = matches!(standing, Ok(Standing::ChainGone)) || second && standing.is_err();
        assert!(expected, "{call} {when:?}: {standing:?}");
        let (restored, third) = faulted(call, when, || firewall.restore(&opening));
        let expected = matches!(restored, Ok(true)) || third && restored.is_err();
        assert!(expected, "{call} {when:?}: {restored:?}");
        if firewall.standing(&opening).unwrap() != Standing::Whole {
            assert!(firewall.restore(&opening).unwrap());
        }
        assert_same(&whole, &now(&scene).without_handles());
        first || second || third
    });
    println!("{flavour:?}: {faults} faults");
    assert!(faults > 10, "{faults}");
    drop(bound);
    scene.host.run(|| firewall.close(&opening)).unwrap().unwrap();
    wait_until(SOON, || {
        scene.host.run(|| firewall.sweep()).unwrap().unwrap();
        now(&scene).without_handles() == before
    });
    assert_same(&before, &now(&scene).without_handles());
}
