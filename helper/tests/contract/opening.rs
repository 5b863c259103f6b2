//! What is opened, what is refused, and that a failure at any step leaves nothing.

use std::net::IpAddr;

use portcullis_dbus::Error;
use portcullis_helper::{
    firewall::Dhcp,
    sockdiag::{Found, Protocol},
};
use zbus::{OwnedVariant, Variant};

use crate::lab::{Lab, Mood, bridge_port, request};

fn value(facts: &std::collections::HashMap<String, OwnedVariant>, key: &str) -> Variant<'static> {
    facts[key].try_clone().unwrap().into()
}

#[tokio::test]
async fn open_gives_sockets_and_facts() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let (lease, sockets, facts) = client.open("eth3").await.unwrap();
    let mut keys: Vec<_> = sockets.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["boot-server", "dhcp", "http", "tftp"]);
    assert_eq!(value(&facts, "backend"), Variant::from("nixos-nftables"));
    assert_eq!(value(&facts, "interface"), Variant::from("eth3"));
    assert_eq!(value(&facts, "interface-index"), Variant::from(5_u32));
    assert_eq!(value(&facts, "address"), Variant::from("192.0.2.4"));
    assert_eq!(value(&facts, "udp-ports"), Variant::from(vec![67_u16, 69, 4011]));
    assert_eq!(value(&facts, "tcp-ports"), Variant::from(vec![64172_u16]));
    assert_eq!(value(&facts, "opened"), Variant::from(1_000_000_000_u64));
    assert_eq!(value(&facts, "ends"), Variant::from((1000 + 43_200) * 1_000_000_u64));
    assert_eq!(facts.len(), 9);
    let listed = client.proxy.list().await.unwrap();
    assert_eq!(listed[0].0, lease);
    assert_eq!(value(&listed[0].1, "uid"), Variant::from(nix::unistd::getuid().as_raw()));
    let open = lab.helper.world().open.clone();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].dhcp, Dhcp::Proxy);
    assert_eq!(value(&facts, "dhcp-mode"), Variant::from("bind"));

    // The helper keeps no copy: with the client's, the last one is gone.
    assert_eq!(lab.helper.world().living().len(), 4);
    drop(sockets);
    crate::lab::until("the helper keeps no copy", || lab.helper.world().living().is_empty()).await;
}

#[tokio::test]
async fn p7_only_what_was_asked_for_is_opened() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let mut only_tftp = request("eth0");
    only_tftp.insert("dhcp", "none".into());
    only_tftp.insert("boot-server", false.into());
    only_tftp.insert("http-port", 0_u16.into());
    let (_, sockets, facts) = client.proxy.open(only_tftp).await.unwrap();
    assert_eq!(sockets.keys().collect::<Vec<_>>(), ["tftp"]);
    assert_eq!(value(&facts, "udp-ports"), Variant::from(vec![69_u16]));
    let opening = lab.helper.world().open[0].clone();
    assert!(
        opening.dhcp == Dhcp::None
            && !opening.boot_server
            && opening.tftp
            && opening.http.is_none()
    );
}

#[tokio::test]
async fn p5_a_failure_at_any_step_leaves_nothing() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let mut step = 1;
    loop {
        {
            let mut world = lab.helper.world();
            world.effects = 0;
            world.fails_at = Some(step);
        }
        let outcome = client.open("eth0").await;
        let reached = lab.helper.world().effects >= step;
        lab.helper.world().fails_at = None;
        match outcome {
            Err(error) => {
                assert!(reached, "{step}: {error:?}");
                assert!(lab.helper.world().is_clean(), "{step}: {error:?}");
                assert!(client.proxy.list().await.unwrap().is_empty(), "{step}");
            }
            Ok((lease, ..)) => {
                assert!(!reached, "step {step} failed and the request was granted");
                client.proxy.close(lease).await.unwrap();
                break;
            }
        }
        step += 1;
    }
    // Two looks at the interface, the living sockets, four sockets, the firewall.
    assert_eq!(step, 9);
    lab.helper.clean().await;
}

#[tokio::test]
async fn p5_what_a_lost_answer_has_left_open_is_swept() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    lab.helper.world().answer_lost = true;
    let error = client.open("eth0").await.unwrap_err();
    assert!(matches!(error, Error::FirewallFailed(_)), "{error:?}");
    lab.helper.clean().await;
    assert!(client.proxy.list().await.unwrap().is_empty());
    lab.helper.world().answer_lost = false;
    let _lease = client.open("eth0").await.unwrap();
    // The sweep leaves what is open alone.
    tokio::time::sleep(2 * portcullis_helper::limits::TICK).await;
    assert_eq!(lab.helper.world().open.len(), 1);
}

#[tokio::test]
async fn interfaces_that_cannot_be_served_on_are_refused_before_any_question() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    {
        let mut world = lab.helper.world();
        world.link("eth1").up = false;
        world.link("eth2").addresses.clear();
        world.link("eth3").loopback = true;
        bridge_port(world.link("eth4"));
        world.link("eth5").name = "enp5s0".into();
    }
    for (name, reason) in [
        ("nobody0", "no interface nobody0"),
        ("eth1", "is down"),
        ("eth2", "no IPv4 address"),
        ("eth3", "loopback"),
        ("eth4", "serve on br0 instead"),
        ("eth5", "alternative name"),
    ] {
        let error = client.open(name).await.unwrap_err();
        assert!(
            matches!(&error, Error::NoSuchInterface(text) if text.contains(reason)),
            "{name}: {error:?}"
        );
        let facts = client.proxy.check(request(name)).await.unwrap();
        let problems = Vec::<String>::try_from(facts["problems"].try_clone().unwrap()).unwrap();
        assert!(problems[0].contains(reason), "{problems:?}");
    }
    let asked = lab.polkit.log().asked.clone();
    assert!(asked.iter().all(|asked| !asked.interactive), "asked in vain");
}

#[tokio::test]
async fn an_interface_that_changes_during_the_dialog_is_not_served_on() {
    let lab = Lab::start().await;
    for change in [0, 1, 2] {
        let client = lab.client().await;
        // The answer comes when the world has changed.
        lab.polkit.answers(Mood::Silent);
        let asked = lab.polkit.log().asked.len();
        let proxy = client.proxy.clone();
        let name = ["eth0", "eth1", "eth2"][change];
        let call = tokio::spawn(async move { proxy.open(request(name)).await.map(|_| ()) });
        lab.polkit.asked(asked + 1).await;
        {
            let mut world = lab.helper.world();
            match change {
                0 => world.link(name).index = 77,
                1 => world.link(name).addresses = vec![[198, 51, 100, 1].into()],
                _ => drop(world.links.remove(name)),
            }
        }
        lab.polkit.say_yes_now().await;
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::NoSuchInterface(_)), "{change}: {error:?}");
        assert!(lab.helper.world().sockets.is_empty());
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_holder() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let squat = |address: [u8; 4], ifindex| {
        let (protocol, address) = (Protocol::Tcp, IpAddr::from(address));
        vec![Found { protocol, port: 64172, address, ifindex, uid: 1234, held: true, mark: 0 }]
    };
    // In nobody's way: on the loopback, on another interface.
    for (address, ifindex) in [([127, 0, 0, 1], 0), ([0, 0, 0, 0], 99)] {
        lab.helper.world().holders = squat(address, ifindex);
        let facts = client.proxy.check(request("eth0")).await.unwrap();
        let taken = Vec::<(String, u16, u32)>::try_from(value(&facts, "ports-taken")).unwrap();
        assert!(taken.is_empty(), "{taken:?}");
    }
    for (address, ifindex) in [([0, 0, 0, 0], 0), ([192, 0, 2, 1], 0), ([0, 0, 0, 0], 2)] {
        lab.helper.world().holders = squat(address, ifindex);
        let error = client.open("eth0").await.unwrap_err();
        assert!(
            matches!(&error, Error::AddressInUse(text)
                if text.contains("tcp port 64172") && text.contains("uid 1234")),
            "{error:?}"
        );
        lab.helper.clean().await;
        let facts = client.proxy.check(request("eth0")).await.unwrap();
        let taken = Vec::<(String, u16, u32)>::try_from(value(&facts, "ports-taken")).unwrap();
        assert_eq!(taken, [("tcp".to_owned(), 64172, 1234)]);
    }
}

#[tokio::test]
async fn a_server_that_does_not_share_its_port_is_named_with_what_to_do() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let share = || {
        let mut request = request("eth0");
        request.insert("dhcp", "share".into());
        request
    };
    let (lease, sockets, facts) = client.proxy.open(share()).await.unwrap();
    assert_eq!(value(&facts, "dhcp-mode"), Variant::from("shared"));
    assert_eq!(lab.polkit.log().asked[0].details["dhcp"], "share");
    client.proxy.close(lease).await.unwrap();
    drop(sockets);
    let address = IpAddr::from([0, 0, 0, 0]);
    let (protocol, port) = (Protocol::Udp, 67);
    let holder = Found { protocol, port, address, ifindex: 0, uid: 1234, held: true, mark: 0 };
    lab.helper.world().holders = vec![holder];
    // A socket on the port is what is expected; whether it can be shared shows when it is tried.
    let facts = client.proxy.check(share()).await.unwrap();
    assert_eq!(value(&facts, "problems"), Variant::from(Vec::<String>::new()));
    let error = client.proxy.open(share()).await.unwrap_err();
    assert!(
        matches!(&error, Error::AddressInUse(text)
            if text.contains("uid 1234") && text.contains("dnsmasq: bind-dynamic")),
        "{error:?}"
    );
    let error = client.open("eth0").await.unwrap_err();
    assert!(matches!(&error, Error::AddressInUse(text) if !text.contains("dnsmasq")), "{error:?}");
}

#[tokio::test]
async fn p9_one_interface_and_port_has_one_lease() {
    let lab = Lab::start().await;
    let (first, second) = (lab.client().await, lab.client().await);
    let (lease, sockets, _) = first.open("eth0").await.unwrap();
    let error = second.open("eth0").await.unwrap_err();
    assert!(matches!(&error, Error::AddressInUse(text) if text.contains("leased to uid")));
    let facts = second.proxy.check(request("eth0")).await.unwrap();
    let taken = Vec::<(String, u16, u32)>::try_from(value(&facts, "ports-taken")).unwrap();
    assert_eq!(taken.len(), 4);
    // One port in common is enough.
    let mut other_http = request("eth0");
    other_http.insert("dhcp", "none".into());
    other_http.insert("tftp", false.into());
    other_http.insert("http-port", 8080_u16.into());
    assert!(matches!(second.proxy.open(other_http).await, Err(Error::AddressInUse(_))));
    // After its end, a process that still holds the sockets is in the way, too.
    first.proxy.close(lease).await.unwrap();
    let error = second.open("eth0").await.unwrap_err();
    assert!(matches!(&error, Error::AddressInUse(text) if text.contains("lease has ended")));
    drop(sockets);
    second.open("eth0").await.unwrap();
}

#[tokio::test]
async fn p9_quotas_hold_and_a_mark_rests_while_its_sockets_live() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let mut kept = Vec::new();
    for number in 0..8 {
        kept.push(client.open(&format!("eth{number}")).await.unwrap());
    }
    let error = client.open("eth8").await.unwrap_err();
    assert!(matches!(error, Error::LimitsExceeded(_)));
    let first_mark = lab.helper.world().open[0].mark;
    client.proxy.close(kept[0].0).await.unwrap();
    // The sockets of the closed lease live on: its slot is not used.
    for _ in 0..300 {
        let (lease, sockets, _) = client.open("eth9").await.unwrap();
        let mark = lab.helper.world().open.last().unwrap().mark;
        assert_ne!(mark, first_mark);
        client.proxy.close(lease).await.unwrap();
        drop(sockets);
        lab.helper.world().sockets.retain(|(tagged, _)| tagged.mark != mark.value());
    }
}

#[tokio::test]
async fn p11_what_is_no_request_is_refused_and_changes_nothing() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let mut unknown = request("eth0");
    unknown.insert("colour", "red".into());
    let mut wrong = request("eth0");
    wrong.insert("http-port", 64172_u32.into());
    let mut share = request("eth0");
    share.insert("dhcp", "share".into());
    share.insert("full-dhcp", true.into());
    let mut odd = request("eth0");
    odd.insert("interface", "eth0\" accept".into());
    for bad in [unknown, wrong, share, odd] {
        let error = client.proxy.open(bad.clone()).await.unwrap_err();
        assert!(matches!(error, Error::InvalidRequest(_)), "{error:?}");
        assert!(matches!(client.proxy.check(bad).await, Err(Error::InvalidRequest(_))));
    }
    // Arguments of another signature do not reach the helper's code.
    let call = |member: &'static str, body: Variant<'static>| {
        let connection = client.connection.clone();
        async move {
            let name = Some("org.portcullis.Netboot1");
            connection.call_method(name, "/org/portcullis/Netboot1", name, member, &(body,)).await
        }
    };
    for member in ["Open", "Check", "Close", "Extend"] {
        assert!(call(member, Variant::from(vec![1_u8; 70_000])).await.is_err(), "{member}");
    }
    assert!(lab.polkit.log().asked.is_empty());
    assert!(lab.helper.world().sockets.is_empty());
    client.open("eth0").await.unwrap();
}
