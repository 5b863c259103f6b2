//! Who may: every answer of polkit, and every way of not answering.

use std::{collections::BTreeMap, os::unix::net::UnixStream};

use futures_util::StreamExt;
use nix::unistd::getuid;
use portcullis_dbus::{Error, action, keys::reason};
use portcullis_helper::{
    caller::Caller, config::Config, firewall::Dhcp, limits, request::Request, state::State,
};
use tokio::sync::oneshot::error::TryRecvError;
use zbus::Variant;

use crate::lab::{Bus, Client, Fake, Helper, Lab, Mood, PATIENCE, World, request, until};

#[tokio::test]
async fn p1_polkit_is_asked_about_the_caller_and_exactly_this_request() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let mut request = request("eth0");
    request.insert("http-port", 8080_u16.into());
    request.insert("max-seconds", 60_u32.into());
    client.proxy.open(request).await.unwrap();
    let asked = lab.polkit.log().asked.clone();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].subject, client.name());
    assert_eq!(asked[0].action, action::OPEN);
    assert!(asked[0].interactive);
    let details =
        [("dhcp", "bind"), ("http-port", "8080"), ("interface", "eth0"), ("max-seconds", "60")];
    let details: BTreeMap<_, _> = details.map(|(key, value)| (key.into(), value.into())).into();
    assert_eq!(asked[0].details, details);
}

#[tokio::test]
async fn p1_full_dhcp_is_a_question_of_its_own() {
    let lab = Lab::start_with("full-dhcp = true").await;
    let client = lab.client().await;
    let full = || {
        let mut request = request("eth0");
        request.insert("full-dhcp", true.into());
        request
    };
    // Who may open, may not hand out addresses.
    lab.polkit.answers(Mood::Yes);
    let facts = client.proxy.check(full()).await.unwrap();
    assert_eq!(*facts["authorization"], Variant::from("no"));
    assert_eq!(*facts["dhcp-mode"], Variant::from("full"));
    let error = client.proxy.open(full()).await.unwrap_err();
    assert!(matches!(error, Error::NotAuthorized(_)), "{error:?}");
    assert!(lab.helper.world().is_clean());
    // And the other way round.
    lab.polkit.answers(Mood::No);
    lab.polkit.full_dhcp(Mood::Yes);
    let (lease, _sockets, facts) = client.proxy.open(full()).await.unwrap();
    assert_eq!(*facts["dhcp-mode"], Variant::from("full"));
    assert_eq!(lab.helper.world().open[0].dhcp, Dhcp::Full);
    let listed = client.proxy.list().await.unwrap();
    assert_eq!(*listed[0].1["dhcp-mode"], Variant::from("full"));
    client.proxy.extend(lease, 60).await.unwrap();
    let asked = lab.polkit.log().asked.clone();
    assert!(asked.iter().all(|asked| asked.action == action::OPEN_DHCP), "{asked:?}");
    assert!(asked.iter().all(|asked| asked.details["dhcp"] == "full"), "{asked:?}");
    // Taken back by the same action alone.
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    lab.polkit.changes().await;
    lab.polkit.asked(asked.len() + 1).await;
    assert_eq!(client.proxy.list().await.unwrap().len(), 1);
    lab.polkit.full_dhcp(Mood::No);
    lab.polkit.changes().await;
    let signal = tokio::time::timeout(PATIENCE, closed.next()).await.expect("a signal").unwrap();
    assert_eq!(signal.args().unwrap().reason, reason::REVOKED);
}

#[tokio::test]
async fn p1_open_without_a_yes_opens_nothing_and_says_why() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    for mood in [
        Mood::No,
        Mood::YesAndChallenge,
        Mood::Challenge,
        Mood::Dismissed,
        Mood::WrongPassword,
        Mood::Garbage,
        Mood::Failing,
    ] {
        lab.polkit.answers(mood);
        let error = client.open("eth0").await.unwrap_err();
        let expected = match (mood, &error) {
            (Mood::Challenge, Error::NoAgent(text)) => text.contains("nobody to ask"),
            (Mood::Dismissed | Mood::WrongPassword, Error::AuthenticationDismissed(_)) => true,
            (Mood::No | Mood::YesAndChallenge, Error::NotAuthorized(text)) => {
                text.contains("refused")
            }
            (Mood::Garbage | Mood::Failing, Error::NotAuthorized(text)) => {
                text.contains("does not answer")
            }
            _ => false,
        };
        assert!(expected, "{mood:?}: {error:?}");
        assert!(lab.helper.world().sockets.is_empty(), "{mood:?}");
        assert!(lab.helper.world().is_clean(), "{mood:?}");
    }
    // The same caller may ask again, and a yes is a yes.
    lab.polkit.answers(Mood::Yes);
    client.open("eth0").await.unwrap();
}

#[tokio::test]
async fn p1_without_polkit_nothing_opens() {
    let bus = Bus::start();
    let helper = Helper::start(&bus).await;
    let client = Client::new(&bus).await;
    let error = client.open("eth0").await.unwrap_err();
    assert!(matches!(&error, Error::NotAuthorized(text) if text.contains("does not answer")));
    assert!(helper.world().sockets.is_empty());
    let facts = client.proxy.check(request("eth0")).await.unwrap();
    assert_eq!(*facts["authorization"], Variant::from("unavailable"));
}

#[tokio::test]
async fn p1_a_caller_without_the_flag_for_a_dialog_gets_none() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    lab.polkit.answers(Mood::Challenge);
    let body = (request("eth0"),);
    let reply = client.connection.call_method(
        Some("org.portcullis.Netboot1"),
        "/org/portcullis/Netboot1",
        Some("org.portcullis.Netboot1"),
        "Open",
        &body,
    );
    let error = reply.await.unwrap_err();
    assert!(error.to_string().contains("Error.NoAgent"), "{error}");
    let asked = lab.polkit.log().asked.clone();
    assert_eq!(asked.len(), 1);
    assert!(!asked[0].interactive);
}

#[tokio::test]
async fn p1_a_slow_polkit_is_no_polkit_for_a_question_without_a_dialog() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    lab.polkit.answers(Mood::Silent);
    let proxy = client.proxy.clone();
    let check = tokio::spawn(async move { proxy.check(request("eth0")).await });
    // polkit is asked, gets its time, and never answers: it is the helper that ends it.
    lab.polkit.asked(1).await;
    assert!(!check.is_finished(), "polkit gets time to answer");
    let check = tokio::time::timeout(limits::POLKIT + PATIENCE, check);
    let facts = check.await.expect("an answer").unwrap().unwrap();
    assert_eq!(*facts["authorization"], Variant::from("unavailable"));
    until("the question is withdrawn", || lab.polkit.log().cancelled == 1).await;
}

#[tokio::test]
async fn p1_a_caller_killed_during_the_dialog_gets_nothing() {
    let lab = Lab::start().await;
    lab.polkit.answers(Mood::Silent);
    let client = lab.client().await;
    let proxy = client.proxy.clone();
    let call = tokio::spawn(async move { proxy.open(request("eth0")).await.map(|_| ()) });
    lab.polkit.asked(1).await;
    call.abort();
    let _ = call.await;
    client.leave().await;
    until("the question is withdrawn", || lab.polkit.log().cancelled == 1).await;
    assert!(lab.helper.world().sockets.is_empty());
    // The slot for questions is free again.
    lab.polkit.answers(Mood::Yes);
    lab.client().await.open("eth0").await.unwrap();
}

#[tokio::test]
async fn one_question_at_a_time() {
    let lab = Lab::start().await;
    lab.polkit.answers(Mood::Silent);
    let first = lab.client().await;
    let proxy = first.proxy.clone();
    let call = tokio::spawn(async move { proxy.open(request("eth0")).await.map(|_| ()) });
    lab.polkit.asked(1).await;
    // The same connection, and another one of the same user.
    assert!(matches!(first.open("eth1").await, Err(Error::Busy(_))));
    let second = lab.client().await;
    assert!(matches!(second.open("eth1").await, Err(Error::Busy(_))));
    assert_eq!(lab.polkit.log().asked.len(), 1);
    // Others are served meanwhile: nothing is locked.
    assert_eq!(second.proxy.list().await.unwrap().len(), 0);
    call.abort();
    let _ = call.await;
    first.leave().await;
    until("the question is withdrawn", || lab.polkit.log().cancelled == 1).await;
    lab.polkit.answers(Mood::Yes);
    second.open("eth1").await.unwrap();
}

#[tokio::test]
async fn p9_a_lease_is_its_users_on_every_connection() {
    let lab = Lab::start().await;
    let (owner, other) = (lab.client().await, lab.client().await);
    let mut closed = owner.proxy.receive_lease_ended().await.unwrap();
    let (lease, _sockets, _) = owner.open("eth0").await.unwrap();
    // Seen.
    let seen = other.proxy.list().await.unwrap();
    assert_eq!(seen.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [lease]);
    // Not extended, in the same words as what is not there.
    let error = other.proxy.extend(lease, 60).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchLease(_)), "{error:?}");
    let unknown = other.proxy.extend(lease + 1, 60).await.unwrap_err();
    assert_eq!(unknown.message(), error.message());
    assert_eq!(lab.helper.world().open.len(), 1);
    // Ended.
    other.proxy.close(lease).await.unwrap();
    assert!(lab.helper.world().open.is_empty());
    let signal = tokio::time::timeout(PATIENCE, closed.next()).await;
    let signal = signal.expect("the owner is told").unwrap();
    let args = signal.args().unwrap();
    assert_eq!((args.lease, args.reason.as_str()), (lease, reason::CLOSED));
    for client in [&owner, &other] {
        client.proxy.close(lease).await.unwrap();
        assert!(client.proxy.list().await.unwrap().is_empty());
    }
    // polkit was asked to open, and nothing else.
    assert_eq!(lab.polkit.log().asked.len(), 1);
}

#[tokio::test]
async fn p9_a_foreign_lease_is_no_lease_unless_polkit_lets_manage() {
    let lab = Lab::start().await;
    let owner = lab.client().await;
    let Some(stranger) = lab.stranger().await else {
        return;
    };
    let mut closed = owner.proxy.receive_lease_ended().await.unwrap();
    let (lease, _sockets, _) = owner.open("eth0").await.unwrap();
    for mood in [Mood::No, Mood::Challenge, Mood::Dismissed, Mood::Garbage, Mood::Failing] {
        lab.polkit.manager(mood);
        let error = stranger.proxy.close(lease).await.unwrap_err();
        assert!(matches!(error, Error::NoSuchLease(_)), "{mood:?}: {error:?}");
        let unknown = stranger.proxy.close(lease + 1).await.unwrap_err();
        assert_eq!(unknown.message(), error.message());
        assert!(stranger.proxy.list().await.unwrap().is_empty(), "{mood:?}");
    }
    let error = stranger.proxy.extend(lease, 60).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchLease(_)));
    // Nor told from one while a question of one's own is open.
    lab.polkit.answers(Mood::Silent);
    let asked = lab.polkit.log().asked.len();
    let proxy = stranger.proxy.clone();
    let pending = tokio::spawn(async move { proxy.open(request("eth1")).await });
    lab.polkit.asked(asked + 1).await;
    for id in [lease, lease + 1] {
        let error = stranger.proxy.close(id).await.unwrap_err();
        assert!(matches!(error, Error::Busy(_)), "{error:?}");
    }
    lab.polkit.say_yes_now().await;
    stranger.proxy.close(pending.await.unwrap().unwrap().0).await.unwrap();
    assert_eq!(owner.proxy.list().await.unwrap().len(), 1);
    assert_eq!(lab.helper.world().open.len(), 1);

    lab.polkit.manager(Mood::Yes);
    let seen = stranger.proxy.list().await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].0, lease);
    let uid = u32::try_from(seen[0].1["uid"].try_clone().unwrap());
    assert_eq!(uid, Ok(nix::unistd::getuid().as_raw()));
    stranger.proxy.close(lease).await.unwrap();
    assert!(lab.helper.world().open.is_empty());
    let signal = tokio::time::timeout(PATIENCE, closed.next()).await;
    let signal = signal.expect("the owner is told").unwrap();
    assert_eq!(signal.args().unwrap().reason, reason::MANAGER);
}

#[tokio::test]
async fn p9_one_users_quota_and_question_are_not_anothers() {
    let lab = Lab::start().await;
    let (first, second) = (lab.client().await, lab.client().await);
    let Some(stranger) = lab.stranger().await else {
        return;
    };
    let mut kept = Vec::new();
    for number in 0..limits::LEASES_PER_USER {
        kept.push(first.open(&format!("eth{number}")).await.unwrap());
    }
    // Used up on every connection of this user, and of no other.
    for client in [&first, &second] {
        assert!(matches!(client.open("eth8").await, Err(Error::LimitsExceeded(_))));
    }
    kept.push(stranger.open("eth8").await.unwrap());
    first.proxy.close(kept[0].0).await.unwrap();

    let asked = lab.polkit.log().asked.len();
    lab.polkit.answers(Mood::Silent);
    let open = |client: &Client, interface| {
        let proxy = client.proxy.clone();
        tokio::spawn(async move { proxy.open(request(interface)).await })
    };
    let own = open(&first, "eth9");
    lab.polkit.asked(asked + 1).await;
    assert!(matches!(second.open("eth10").await, Err(Error::Busy(_))));
    let others = open(&stranger, "eth10");
    lab.polkit.asked(asked + 2).await;
    assert!(matches!(stranger.open("eth11").await, Err(Error::Busy(_))));
    lab.polkit.say_yes_now().await;
    kept.push(own.await.unwrap().unwrap());
    kept.push(others.await.unwrap().unwrap());
    // Seven and one, one and one.
    assert_eq!(second.proxy.list().await.unwrap().len(), 8);
    assert_eq!(stranger.proxy.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn list_never_shows_a_dialog_and_asks_only_when_there_is_something_to_hide() {
    let lab = Lab::start().await;
    let (owner, other) = (lab.client().await, lab.client().await);
    owner.proxy.list().await.unwrap();
    let (_, _sockets, _) = owner.open("eth0").await.unwrap();
    owner.proxy.list().await.unwrap();
    other.proxy.list().await.unwrap();
    assert_eq!(lab.polkit.log().asked.len(), 1);
    let Some(stranger) = lab.stranger().await else {
        return;
    };
    stranger.proxy.list().await.unwrap();
    let asked = lab.polkit.log().asked.clone();
    assert_eq!(asked.len(), 2);
    assert_eq!((asked[1].action.as_str(), asked[1].interactive), (action::MANAGE, false));
    assert_eq!(asked[1].subject, stranger.name());
}

#[tokio::test]
async fn extend_asks_by_the_same_rules() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let (lease, _sockets, facts) = client.open("eth0").await.unwrap();
    let before = u64::try_from(facts["ends"].try_clone().unwrap()).unwrap();
    lab.helper.pass(100);
    lab.polkit.answers(Mood::No);
    assert!(matches!(client.proxy.extend(lease, 50_000).await, Err(Error::NotAuthorized(_))));
    lab.polkit.answers(Mood::Yes);
    assert!(matches!(client.proxy.extend(lease, 5).await, Err(Error::InvalidRequest(_))));
    client.proxy.extend(lease, 50_000).await.unwrap();
    let asked = lab.polkit.log().asked.last().unwrap().clone();
    assert_eq!(
        (asked.action.as_str(), asked.details["max-seconds"].as_str()),
        (action::OPEN, "50000")
    );
    assert_eq!(asked.details["interface"], "eth0");
    let listed = client.proxy.list().await.unwrap();
    let after = u64::try_from(listed[0].1["ends"].try_clone().unwrap()).unwrap();
    assert_eq!(after - before, (100 + 50_000 - 43_200) * 1_000_000);
    // Asked again, it is about what was granted last, not about the sum.
    let questions = lab.polkit.log().asked.len();
    lab.polkit.changes().await;
    lab.polkit.asked(questions + 1).await;
    assert_eq!(lab.polkit.log().asked.last().unwrap().details["max-seconds"], "50000");
}

/// Between the bus' last word about the caller and the grant there is no step in which a departure could
/// be missed: it takes the question away, and nothing is granted without one.
#[test]
fn p1_a_departure_that_is_seen_before_the_grant_leaves_nothing() {
    let world = World::new();
    let (kernel, firewall) = (Fake(world.clone()), Fake(world.clone()));
    let mut state = State::new(Config::default(), Box::new(kernel), Box::new(firewall));
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let caller = Caller::at_the_other_end(&theirs, &[getuid().as_raw()]).unwrap();
    let options = [("interface".to_owned(), Variant::from("eth0").try_into().unwrap())];
    let request = Request::parse(&options.into(), 60).unwrap();
    for leaves in [true, false] {
        let mut over = state.leases.begin_question(&caller, &state.config).unwrap();
        let site = state.admit(&request, caller.uid).unwrap();
        if leaves {
            state.left(&caller.name);
            assert!(over.try_recv() == Err(TryRecvError::Closed));
        }
        let granted = state.grant(&request, &site, &caller);
        match granted {
            Err(Error::NotAuthorized(_)) => assert!(leaves && world.lock().unwrap().is_clean()),
            granted => assert!(!leaves && granted.is_ok()),
        }
    }
    state.left(&caller.name);
    assert!(state.leases.open.is_empty() && world.lock().unwrap().open.is_empty());
}

#[tokio::test]
async fn check_says_what_polkit_would_and_opens_nothing() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    for (mood, word) in [(Mood::Yes, "yes"), (Mood::No, "no"), (Mood::Challenge, "challenge")] {
        lab.polkit.answers(mood);
        let facts = client.proxy.check(request("eth0")).await.unwrap();
        assert_eq!(*facts["authorization"], Variant::from(word));
    }
    assert!(lab.polkit.log().asked.iter().all(|asked| !asked.interactive));
    assert!(lab.helper.world().sockets.is_empty());
}

#[tokio::test]
async fn p9_check_is_limited_per_user() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    for _ in 0..20 {
        client.proxy.check(request("eth0")).await.unwrap();
    }
    let error = client.proxy.check(request("eth0")).await.unwrap_err();
    assert!(matches!(error, Error::LimitsExceeded(_)));
    assert_eq!(lab.polkit.log().asked.len(), 20);
    lab.helper.pass(1);
    client.proxy.check(request("eth0")).await.unwrap();
}

#[tokio::test]
async fn p9_list_is_limited_per_user_where_polkit_has_to_be_asked() {
    let lab = Lab::start().await;
    let owner = lab.client().await;
    let Some(stranger) = lab.stranger().await else {
        return;
    };
    for _ in 0..30 {
        stranger.proxy.list().await.unwrap();
    }
    let (_, _sockets, _) = owner.open("eth0").await.unwrap();
    for _ in 0..20 {
        stranger.proxy.list().await.unwrap();
    }
    assert!(matches!(stranger.proxy.list().await, Err(Error::LimitsExceeded(_))));
    // One's own is for free.
    owner.proxy.list().await.unwrap();
}
