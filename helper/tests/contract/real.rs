//! The whole helper with the real kernel and the real nf_tables in a network namespace; only polkit
//! is a stand-in.

use std::{net::UdpSocket, num::NonZeroU8, os::fd::OwnedFd, time::Duration};

use futures_util::{FutureExt, StreamExt};
use portcullis_dbus::{Error, keys::reason};
use portcullis_helper::{
    config::Config,
    firewall::Nftables,
    kernel::{Kernel, Linux},
    mark::Marks,
    run,
    state::State,
};
use tokio::task::JoinHandle;

use crate::{
    lab::{Bus, Client, PATIENCE, Polkit, appears, until},
    netns::{sh, two_wires},
};

/// NixOS' nftables firewall, as far as it matters here.
pub const NIXOS: &str = "nft -f - <<'END'
table inet nixos-fw {
  chain input {
    type filter hook input priority filter; policy drop;
    iifname \"lo\" accept
    ct state vmap { established : accept, related : accept, new : jump input-allow }
  }
  chain input-allow {
    tcp dport 22 accept
  }
}
END";

struct Real {
    helper: JoinHandle<Result<(), run::Failure>>,
    _polkit: Polkit,
    bus: Bus,
}

async fn start() -> Real {
    let bus = Bus::start();
    let polkit = Polkit::start(&bus).await;
    let config = Config::default();
    let linux = Linux(config.marks);
    let firewall = Nftables::new(&config).unwrap();
    let state = State::new(config, Box::new(linux), Box::new(firewall));
    let connection = bus.connect().await;
    let helper =
        tokio::spawn(async move { run::run(connection, state, std::future::pending()).await });
    appears(&bus).await;
    Real { helper, _polkit: polkit, bus }
}

pub fn ruleset() -> String {
    sh("nft -s -a list ruleset")
}

#[tokio::test]
async fn p4_a_lease_lives_and_leaves_the_firewall_as_it_was() {
    let Some(_peer) = two_wires() else { return };
    sh(NIXOS);
    let before = ruleset();
    let real = start().await;
    let client = Client::new(&real.bus).await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();

    let (lease, sockets, facts) = client.open("pc-svc0").await.unwrap();
    assert_eq!(*facts["backend"], zbus::Variant::from("nixos-nftables"));
    assert_ne!(ruleset(), before);
    let tagged = Linux::default().tagged().unwrap();
    assert_eq!(tagged.len(), 4);
    let mark = Marks::default().lease(NonZeroU8::MIN).value();
    assert!(tagged.iter().all(|socket| socket.mark == mark));
    // It stands, whenever it is looked at.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(closed.next().now_or_never().is_none());

    // What the helper keeps is in its own way no more than in anybody's: the same again is refused
    // by name, and the other interface is free.
    let other = Client::new(&real.bus).await;
    assert!(matches!(other.open("pc-svc0").await, Err(Error::AddressInUse(_))));
    let (second, others, _) = other.open("pc-svc1").await.unwrap();
    other.proxy.close(second).await.unwrap();
    drop(others);

    // Our table stays until the sockets are gone, too: until then it keeps them deaf and mute.
    client.proxy.close(lease).await.unwrap();
    assert!(!ruleset().contains("dport 4011"), "{}", ruleset());
    drop(sockets);
    until("the table goes", || ruleset() == before).await;
    let (_, sockets, _) = client.open("pc-svc0").await.unwrap();
    drop(sockets);
    client.leave().await;
    until("the table goes", || ruleset() == before).await;
    assert_eq!(Linux::default().tagged().unwrap(), []);
    assert!(!real.helper.is_finished());
}

#[tokio::test]
async fn p8_a_socket_that_is_moved_ends_its_lease() {
    let Some(_peer) = two_wires() else { return };
    sh(NIXOS);
    let before = ruleset();
    let real = start().await;
    let client = Client::new(&real.bus).await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (_, mut sockets, _) = client.open("pc-svc0").await.unwrap();
    let boot_server = UdpSocket::from(OwnedFd::from(sockets.remove("boot-server").unwrap()));
    rustix::net::connect_unspec(&boot_server).unwrap();
    let signal = tokio::time::timeout(PATIENCE, closed.next()).await.unwrap();
    assert_eq!(signal.unwrap().args().unwrap().reason, reason::SOCKET_MOVED);
    drop((boot_server, sockets));
    until("the table goes", || ruleset() == before).await;
}

#[tokio::test]
async fn p6_a_reload_of_the_firewall_is_repaired() {
    let Some(_peer) = two_wires() else { return };
    sh(NIXOS);
    let real = start().await;
    let client = Client::new(&real.bus).await;
    let mut closed = client.proxy.receive_lease_ended().await.unwrap();
    let (_, _sockets, _) = client.open("pc-svc0").await.unwrap();
    let ours = || sh("nft list chain inet nixos-fw input-allow").matches("portcullis").count();
    assert_eq!(ours(), 4);
    let reload =
        NIXOS.replace("END'\n", "END'\nadd table inet nixos-fw\ndelete table inet nixos-fw\n");
    sh(&reload);
    until("the rules are back", || ours() == 4).await;
    assert!(closed.next().now_or_never().is_none());

    // One of our rules alone taken away by somebody: that is meant.
    let handle = sh(
        "nft -a list chain inet nixos-fw input-allow | grep portcullis | head -1 | grep -o '[0-9]*$'",
    );
    sh(&format!("nft delete rule inet nixos-fw input-allow handle {}", handle.trim()));
    let signal = tokio::time::timeout(PATIENCE, closed.next()).await.unwrap();
    assert_eq!(signal.unwrap().args().unwrap().reason, reason::REVOKED);
    assert_eq!(ours(), 0);
}

#[tokio::test]
async fn a_squatter_is_named_by_check_and_by_open() {
    let Some(_peer) = two_wires() else { return };
    let real = start().await;
    let client = Client::new(&real.bus).await;
    let _squatter = std::net::TcpListener::bind("0.0.0.0:64172").unwrap();
    let error = client.open("pc-svc0").await.unwrap_err();
    assert!(
        matches!(&error, Error::AddressInUse(text) if text.contains("tcp port 64172") && text.contains("uid 0")),
        "{error:?}"
    );
    let facts = client.proxy.check(crate::lab::request("pc-svc0")).await.unwrap();
    let taken = Vec::<(String, u16, u32)>::try_from(facts["ports-taken"].try_clone().unwrap());
    assert_eq!(taken.unwrap(), [("tcp".to_owned(), 64172, 0)]);
    assert_eq!(*facts["backend"], zbus::Variant::from("none"));
    // The twin: on the loopback it is in nobody's way.
    drop(_squatter);
    let _loopback = std::net::TcpListener::bind("127.0.0.1:64172").unwrap();
    client.open("pc-svc0").await.unwrap();
}
