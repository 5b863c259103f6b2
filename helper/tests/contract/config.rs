//! The site's configuration: what it does not allow is refused before anybody is asked, and `Check`
//! says so; it never allows more than polkit does.

use std::net::Ipv4Addr;

use portcullis_dbus::Error;
use portcullis_helper::sockdiag::{Found, Protocol};
use zbus::Variant;

use crate::lab::{Client, Lab, Mood, request};

type Asking = std::collections::HashMap<&'static str, Variant<'static>>;

fn with(interface: &'static str, key: &'static str, value: impl Into<Variant<'static>>) -> Asking {
    let mut request = request(interface);
    request.insert(key, value.into());
    request
}

/// Refused by `Open`, with these words, without a question to polkit; and `Check` says the same.
async fn forbidden(lab: &Lab, client: &Client, asking: impl Fn() -> Asking, words: &str) {
    let asked = lab.polkit.log().asked.len();
    let error = client.proxy.open(asking()).await.unwrap_err();
    assert!(matches!(&error, Error::ForbiddenByPolicy(text) if text.contains(words)), "{error:?}");
    assert!(error.message().contains("/etc/portcullis/helper.toml"), "{error:?}");
    assert_eq!(lab.polkit.log().asked.len(), asked);
    assert!(lab.helper.world().sockets.is_empty());
    let facts = client.proxy.check(asking()).await.unwrap();
    let problems = Vec::<String>::try_from(facts["problems"].try_clone().unwrap()).unwrap();
    assert_eq!(problems, [error.message()]);
}

async fn allowed(client: &Client, asking: Asking) {
    let (lease, sockets, _) = client.proxy.open(asking).await.unwrap();
    client.proxy.close(lease).await.unwrap();
    drop(sockets);
}

#[tokio::test]
async fn only_the_interfaces_of_the_site_are_served_on() {
    let lab = Lab::start_with("interfaces = [\"eth1\", \"eth1?\"]").await;
    let client = lab.client().await;
    let words = "serving on eth2; interfaces = [\"eth1\", \"eth1?\"]";
    forbidden(&lab, &client, || request("eth2"), words).await;
    for interface in ["eth1", "eth10"] {
        allowed(&client, request(interface)).await;
    }
    // A yes of the configuration is not one of polkit.
    lab.polkit.answers(Mood::No);
    assert!(matches!(client.open("eth1").await, Err(Error::NotAuthorized(_))));
}

#[tokio::test]
async fn only_the_ports_of_the_site_are_opened() {
    let lab = Lab::start_with("http-ports = [8080, \"9000-9009\"]").await;
    let client = lab.client().await;
    let words = "TCP port 64172; http-ports = [8080, \"9000-9009\"]";
    forbidden(&lab, &client, || request("eth0"), words).await;
    for port in [8079_u16, 8081, 8999, 9010] {
        let asking = || with("eth0", "http-port", port);
        forbidden(&lab, &client, asking, &format!("TCP port {port}")).await;
    }
    for port in [0_u16, 8080, 9000, 9009] {
        allowed(&client, with("eth0", "http-port", port)).await;
    }
}

#[tokio::test]
async fn addresses_are_handed_out_only_where_the_site_says_so() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    lab.polkit.full_dhcp(Mood::Yes);
    let asking = || with("eth0", "full-dhcp", true);
    forbidden(&lab, &client, asking, "handing out addresses; full-dhcp = false").await;
    allowed(&client, with("eth0", "full-dhcp", false)).await;

    let lab = Lab::start_with("full-dhcp = true").await;
    let client = lab.client().await;
    lab.polkit.full_dhcp(Mood::Yes);
    allowed(&client, asking()).await;
}

/// A raw socket: only where the site says so, the port is to be shared and is not, and somebody can answer.
#[tokio::test]
async fn a_raw_socket_is_for_a_port_that_is_not_shared_where_the_site_says_so() {
    let server = Found {
        protocol: Protocol::Udp,
        port: 67,
        address: Ipv4Addr::UNSPECIFIED.into(),
        ifindex: 0,
        uid: 0,
        held: true,
        mark: 0,
    };
    let asking = |boot_server: bool| {
        let mut asking = with("eth0", "dhcp", "share");
        asking.extend(with("eth0", "boot-server", boot_server));
        asking
    };
    for (site, taken, boot_server, expected) in [
        ("", false, true, Some("dhcp")),
        ("", true, true, None),
        ("raw-dhcp = true", false, true, Some("dhcp")),
        ("raw-dhcp = true", true, false, None),
        ("raw-dhcp = true", true, true, Some("dhcp-raw")),
    ] {
        let lab = Lab::start_with(site).await;
        let client = lab.client().await;
        if taken {
            lab.helper.world().holders.push(server);
        }
        let case = format!("{site} {taken} {boot_server}");
        match client.proxy.open(asking(boot_server)).await {
            Ok((_, sockets, facts)) => {
                let key = sockets.keys().find(|key| key.starts_with("dhcp")).map(String::as_str);
                assert_eq!(key, expected, "{case}");
                let mode = if taken { "shared-raw" } else { "shared" };
                assert_eq!(*facts["dhcp-mode"], Variant::from(mode), "{case}");
            }
            Err(Error::AddressInUse(text)) => {
                assert_eq!(expected, None, "{case}: {text}");
                assert!(text.contains("bind-dynamic") && text.contains("raw-dhcp"), "{text}");
            }
            Err(error) => panic!("{case}: {error:?}"),
        }
    }
    // Whoever does not want to share gets the port, or nothing.
    let lab = Lab::start_with("raw-dhcp = true").await;
    let client = lab.client().await;
    lab.helper.world().holders.push(server);
    let refused = client.open("eth0").await.unwrap_err();
    assert!(matches!(refused, Error::AddressInUse(_)), "{refused:?}");
}

#[tokio::test]
async fn no_lease_lasts_longer_than_the_site_allows() {
    let lab = Lab::start_with("max-seconds = 3600").await;
    let client = lab.client().await;
    let words = "3601 seconds; max-seconds = 3600";
    forbidden(&lab, &client, || with("eth0", "max-seconds", 3601_u32), words).await;
    allowed(&client, with("eth0", "max-seconds", 3600_u32)).await;
    // Without a word about it, the default of twelve hours gives way, and polkit is told so.
    let (lease, _sockets, facts) = client.open("eth0").await.unwrap();
    assert_eq!(*facts["ends"], Variant::from((1000 + 3600) * 1_000_000_u64));
    let asked = lab.polkit.log().asked.last().unwrap().clone();
    assert_eq!(asked.details["max-seconds"], "3600");

    let questions = lab.polkit.log().asked.len();
    let error = client.proxy.extend(lease, 3601).await.unwrap_err();
    assert!(matches!(&error, Error::ForbiddenByPolicy(text) if text.contains(words)), "{error:?}");
    assert_eq!(lab.polkit.log().asked.len(), questions);
    lab.helper.pass(100);
    client.proxy.extend(lease, 3600).await.unwrap();
    let ends = client.proxy.list().await.unwrap()[0].1["ends"].try_clone().unwrap();
    assert_eq!(u64::try_from(ends), Ok((1100 + 3600) * 1_000_000));
}

#[tokio::test]
async fn p9_the_sites_quotas_hold() {
    let lab = Lab::start_with("leases = 3\nleases-per-user = 2").await;
    let client = lab.client().await;
    let (_, _first, _) = client.open("eth0").await.unwrap();
    let (lease, _second, _) = client.open("eth1").await.unwrap();
    let full = |error: &Error, words: &str| {
        assert!(matches!(error, Error::LimitsExceeded(text) if text.contains(words)), "{error:?}");
    };
    full(&client.open("eth2").await.unwrap_err(), "you already have 2 leases");
    let facts = client.proxy.check(request("eth2")).await.unwrap();
    let problems = Vec::<String>::try_from(facts["problems"].try_clone().unwrap()).unwrap();
    assert!(problems[0].contains("you already have 2 leases"), "{problems:?}");

    let Some(stranger) = lab.stranger().await else {
        return;
    };
    let (_, _third, _) = stranger.open("eth2").await.unwrap();
    full(&stranger.open("eth3").await.unwrap_err(), "3 leases are open on this host");
    client.proxy.close(lease).await.unwrap();
    stranger.open("eth3").await.unwrap();
}

#[tokio::test]
async fn p9_one_user_has_as_many_questions_as_the_site_allows_and_one_per_connection() {
    let lab = Lab::start_with("questions-per-user = 2").await;
    let clients = [lab.client().await, lab.client().await, lab.client().await];
    lab.polkit.answers(Mood::Silent);
    let open = |client: &Client, interface| {
        let proxy = client.proxy.clone();
        tokio::spawn(async move { proxy.open(request(interface)).await })
    };
    let first = open(&clients[0], "eth0");
    lab.polkit.asked(1).await;
    assert!(matches!(clients[0].open("eth3").await, Err(Error::Busy(_))));
    let second = open(&clients[1], "eth1");
    lab.polkit.asked(2).await;
    assert!(matches!(clients[2].open("eth2").await, Err(Error::Busy(_))));
    lab.polkit.say_yes_now().await;
    let _kept = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    lab.polkit.answers(Mood::Yes);
    clients[2].open("eth2").await.unwrap();
}

#[tokio::test]
async fn the_sites_mark_is_that_of_every_lease() {
    let lab = Lab::start_with("mark = { tag = 0x12300000, mask = 0xfff00000 }").await;
    let client = lab.client().await;
    let (_, _sockets, _) = client.open("eth0").await.unwrap();
    let mark = lab.helper.world().open[0].mark;
    assert_eq!(mark.value(), 0x1230_0001);
    assert_eq!((mark.marks.tag(), mark.marks.mask()), (0x1230_0000, 0xfff0_0000));
}
