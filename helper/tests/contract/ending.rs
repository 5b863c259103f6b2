//! How leases end, who is told, and how the helper itself ends.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use portcullis_dbus::{Error, keys::reason};
use portcullis_helper::firewall::{Backend, Standing};

use crate::lab::{Bus, Client, Helper, Lab, Mood, PATIENCE, World, request, until};

/// Opens a lease, changes the world, and waits for the reason that the owner is told.
async fn ends_by(lab: &Lab, interface: &str, change: impl FnOnce(&mut World)) -> String {
    let client = lab.client().await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (lease, _sockets, _) = client.open(interface).await.unwrap();
    change(&mut lab.helper.world());
    let signal = tokio::time::timeout(PATIENCE, closed.next());
    let signal = signal.await.expect("the lease ends").unwrap();
    let args = signal.args().unwrap();
    assert_eq!(args.lease, lease);
    assert!(client.proxy.list().await.unwrap().is_empty());
    assert!(lab.helper.world().open.is_empty());
    assert_eq!(lab.helper.world().living_placeholders(), 0);
    // Its end is remembered: closing it succeeds.
    client.proxy.close(lease).await.unwrap();
    args.reason.clone()
}

#[tokio::test]
async fn p2_the_owner_leaves_and_only_its_lease_ends() {
    let lab = Lab::start().await;
    let (one, other) = (lab.client().await, lab.client().await);
    let (_, one_sockets, _) = one.open("eth0").await.unwrap();
    let (kept, _other_sockets, _) = other.open("eth1").await.unwrap();
    // Somebody without a lease leaves: nothing happens.
    lab.client().await.leave().await;
    assert_eq!(lab.helper.world().open.len(), 2);
    one.leave().await;
    until("the lease ends", || lab.helper.world().open.len() == 1).await;
    assert_eq!(lab.helper.world().living_placeholders(), 2);
    let listed = other.proxy.list().await.unwrap();
    assert_eq!(listed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [kept]);
    // Its sockets live on in some process: leaving alone has ended it.
    drop(one_sockets);
}

#[tokio::test]
async fn closing_twice_succeeds_and_once_too_often_for_others() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (lease, _sockets, _) = client.open("eth0").await.unwrap();
    client.proxy.close(lease).await.unwrap();
    assert_eq!(closed.next().await.unwrap().args().unwrap().reason, reason::CLOSED);
    client.proxy.close(lease).await.unwrap();
    // For the same user from elsewhere, too.
    lab.client().await.proxy.close(lease).await.unwrap();
    assert!(matches!(client.proxy.extend(lease, 60).await, Err(Error::NoSuchLease(_))));
    let Some(stranger) = lab.stranger().await else {
        return;
    };
    assert!(matches!(stranger.proxy.close(lease).await, Err(Error::NoSuchLease(_))));
}

#[tokio::test]
async fn p9_only_the_connection_that_has_it_is_told() {
    let lab = Lab::start().await;
    let (owner, other) = (lab.client().await, lab.client().await);
    let mut told = owner.proxy.receive_lease_ended().await.unwrap();
    let mut overheard = other.proxy.receive_lease_ended().await.unwrap();
    let (lease, _sockets, _) = owner.open("eth0").await.unwrap();
    other.proxy.close(lease).await.unwrap();
    told.next().await.unwrap();
    // Whatever was sent before this answer would have arrived before it.
    other.proxy.list().await.unwrap();
    assert!(overheard.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_lease_expires_by_the_clock_that_counts_suspend() {
    let lab = Lab::start().await;
    assert_eq!(
        ends_by(&lab, "eth0", |world| world.now += Duration::from_secs(43_201)).await,
        reason::EXPIRED
    );
}

#[tokio::test]
async fn a_lease_ends_when_its_interface_is_another_one() {
    let lab = Lab::start().await;
    let ends = ends_by(&lab, "eth0", |world| world.link("eth0").index = 99).await;
    assert_eq!(ends, reason::INTERFACE_CHANGED);
    let ends = ends_by(&lab, "eth1", |world| drop(world.links.remove("eth1"))).await;
    assert_eq!(ends, reason::INTERFACE_CHANGED);
    let ends = ends_by(&lab, "eth2", |world| crate::lab::bridge_port(world.link("eth2"))).await;
    assert_eq!(ends, reason::INTERFACE_CHANGED);
    let ends = ends_by(&lab, "eth3", |world| world.link("eth3").addresses.clear()).await;
    assert_eq!(ends, reason::ADDRESS_CHANGED);
}

#[tokio::test]
async fn p8_a_lease_ends_when_a_socket_leaves_its_interface() {
    let lab = Lab::start().await;
    for moved_to in [0, 77] {
        let change = |world: &mut World| world.sockets.last_mut().unwrap().0.ifindex = moved_to;
        assert_eq!(ends_by(&lab, "eth0", change).await, reason::SOCKET_MOVED);
        lab.helper.world().sockets.clear();
    }
}

#[tokio::test]
async fn a_lease_ends_with_its_last_socket() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (_, sockets, _) = client.open("eth0").await.unwrap();
    drop(sockets);
    assert_eq!(closed.next().await.unwrap().args().unwrap().reason, reason::CLOSED);
    lab.helper.clean().await;
}

#[tokio::test]
async fn an_interface_that_is_down_for_a_moment_keeps_its_lease() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let (_, _sockets, _) = client.open("eth0").await.unwrap();
    lab.helper.world().link("eth0").up = false;
    tokio::time::sleep(Duration::from_millis(2200)).await;
    assert_eq!(client.proxy.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn p6_a_reload_is_repaired_and_a_revocation_is_not() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let (lease, sockets, _) = client.open("eth0").await.unwrap();
    lab.helper.world().standing = Standing::ChainGone;
    // Not yet safe: nothing is put back.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert_eq!(lab.helper.world().restored, 0);
    // Safe.
    lab.helper.world().restorable = true;
    until("it is put back", || lab.helper.world().restored == 1).await;
    lab.helper.pass(6);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(client.proxy.list().await.unwrap().len(), 1);
    client.proxy.close(lease).await.unwrap();
    drop(sockets);

    let ends = ends_by(&lab, "eth1", |world| world.standing = Standing::Revoked).await;
    assert_eq!(ends, reason::REVOKED);
}

#[tokio::test]
async fn the_other_firewall_of_the_host_is_announced() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let (_, _sockets, _) = client.open("eth0").await.unwrap();
    {
        let mut world = lab.helper.world();
        (world.standing, world.restorable) = (Standing::ChainGone, true);
        world.backend = Backend::NixosIptables;
    }
    until("it is put there", || lab.helper.world().restored == 1).await;
    let listed = client.proxy.list().await.unwrap();
    assert_eq!(*listed[0].1["backend"], zbus::Variant::from("nixos-iptables"));
}

#[tokio::test]
async fn p1_a_permission_that_is_withdrawn_ends_its_leases() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (lease, _sockets, _) = client.open("eth0").await.unwrap();
    // What is no refusal ends nothing: a password may have been given, polkit may be restarting.
    for (questions, mood) in [Mood::Yes, Mood::Challenge, Mood::Failing].into_iter().enumerate() {
        lab.polkit.answers(mood);
        until_asked(&lab, questions + 2).await;
    }
    client.proxy.list().await.unwrap();
    assert!(closed.next().now_or_never().is_none());
    let asked = lab.polkit.log().asked.clone();
    for again in &asked[1..] {
        assert_eq!((&again.subject, &again.details), (&asked[0].subject, &asked[0].details));
        assert!(!again.interactive);
    }

    lab.polkit.answers(Mood::No);
    lab.polkit.changes().await;
    let signal = tokio::time::timeout(PATIENCE, closed.next()).await.unwrap().unwrap();
    let args = signal.args().unwrap();
    assert_eq!((args.lease, args.reason.as_str()), (lease, reason::REVOKED));
    assert!(lab.helper.world().open.is_empty());
}

/// Lets polkit change until it was asked so often: the helper may just be about to listen.
async fn until_asked(lab: &Lab, questions: usize) {
    while lab.polkit.log().asked.len() < questions {
        lab.polkit.changes().await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_firewall_that_stays_away_ends_the_lease() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (_, _sockets, _) = client.open("eth0").await.unwrap();
    lab.helper.world().standing = Standing::ChainGone;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(closed.next().now_or_never().is_none());
    lab.helper.pass(5);
    let signal = tokio::time::timeout(PATIENCE, closed.next()).await.unwrap();
    assert_eq!(signal.unwrap().args().unwrap().reason, reason::FIREWALL_GONE);
}

#[tokio::test]
async fn p3_a_stop_closes_everything_and_says_so() {
    let mut lab = Lab::start().await;
    let client = lab.client().await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (_, _one, _) = client.open("eth0").await.unwrap();
    let (_, _two, _) = client.open("eth1").await.unwrap();
    lab.helper.stop();
    for _ in 0..2 {
        let signal = closed.next().await.unwrap();
        assert_eq!(signal.args().unwrap().reason, reason::HELPER_STOPPING);
    }
    (&mut lab.helper.task).await.unwrap().unwrap();
    assert!(lab.helper.world().open.is_empty());
    assert_eq!(lab.helper.world().living_placeholders(), 0);
}

#[tokio::test]
async fn p1_a_yes_that_comes_while_the_helper_stops_opens_nothing() {
    let mut lab = Lab::start().await;
    lab.polkit.answers(Mood::Silent);
    let client = lab.client().await;
    let proxy = client.proxy.clone();
    let call = tokio::spawn(async move { proxy.open(request("eth0")).await.map(|_| ()) });
    lab.polkit.asked(1).await;
    lab.helper.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    lab.polkit.say_yes_now().await;
    assert!(matches!(call.await.unwrap(), Err(Error::Busy(_))));
    (&mut lab.helper.task).await.unwrap().unwrap();
    assert!(lab.helper.world().sockets.is_empty());
}

#[tokio::test]
async fn a_firewall_that_does_not_close_is_tried_again_and_then_left_to_the_kernel() {
    let mut lab = Lab::start().await;
    let client = lab.client().await;
    let (lease, _sockets, _) = client.open("eth0").await.unwrap();
    lab.helper.world().close_fails = true;
    client.proxy.close(lease).await.unwrap();
    assert_eq!(lab.helper.world().open.len(), 1);
    // Nothing new is opened until it is.
    assert!(matches!(client.open("eth1").await, Err(Error::FirewallFailed(_))));
    lab.helper.world().close_fails = false;
    until("it is closed", || lab.helper.world().open.is_empty()).await;

    let (lease, _sockets, _) = client.open("eth1").await.unwrap();
    lab.helper.world().close_fails = true;
    client.proxy.close(lease).await.unwrap();
    lab.helper.pass(6);
    let failure = (&mut lab.helper.task).await.unwrap().unwrap_err();
    assert!(failure.to_string().contains("refuses to close"), "{failure}");
}

#[tokio::test]
async fn the_helper_leaves_when_idle_and_not_before() {
    let mut lab = Lab::start().await;
    let client = lab.client().await;
    let (lease, sockets, _) = client.open("eth0").await.unwrap();
    lab.helper.pass(11);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!lab.helper.task.is_finished(), "left with a lease");
    client.proxy.close(lease).await.unwrap();
    lab.helper.pass(11);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!lab.helper.task.is_finished(), "left while a tagged socket lived");
    drop(sockets);
    let left = tokio::time::timeout(PATIENCE, &mut lab.helper.task).await;
    left.expect("leaves").unwrap().unwrap();
}

#[tokio::test]
async fn a_second_helper_does_not_take_the_name() {
    let lab = Lab::start().await;
    let mut second = Helper::start(&lab.bus).await;
    let failure = (&mut second.task).await.unwrap().unwrap_err();
    assert!(failure.to_string().contains("could not appear"), "{failure}");
    let client = lab.client().await;
    client.open("eth0").await.unwrap();
    assert!(!lab.helper.world().open.is_empty());
}

#[tokio::test]
async fn p3_the_helper_ends_with_its_bus() {
    let mut bus = Bus::start();
    let mut helper = Helper::start(&bus).await;
    let _client = Client::new(&bus).await;
    bus.stop();
    let ended = tokio::time::timeout(PATIENCE, &mut helper.task).await;
    assert!(ended.expect("ends").unwrap().is_err());
    assert!(helper.world().is_clean());
}

#[tokio::test]
async fn a_request_that_crosses_the_leaving_helper_is_served_or_finds_nobody() {
    let (mut served, mut too_late) = (0, 0);
    // Around the first tick, which is when it leaves.
    for delay in (464..536).step_by(12).chain([0, 900]) {
        let mut lab = Lab::start().await;
        let client = lab.client().await;
        lab.helper.pass(11);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let call = tokio::time::timeout(PATIENCE, client.open("eth0"));
        match call.await.expect("an answer") {
            Ok((_, _sockets, _)) => {
                tokio::time::sleep(Duration::from_millis(600)).await;
                assert!(!lab.helper.task.is_finished(), "left with a lease");
                assert_eq!(client.proxy.list().await.unwrap().len(), 1);
                served += 1;
            }
            // No helper: the real bus would start one.
            Err(Error::ZBus(_)) => {
                (&mut lab.helper.task).await.unwrap().unwrap();
                assert!(lab.helper.world().is_clean());
                too_late += 1;
            }
            Err(error) => panic!("after {delay} ms: {error:?}"),
        }
    }
    assert!(served > 0 && too_late > 0, "{served} served, {too_late} too late");
}
