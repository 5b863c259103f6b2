//! Hosts without a firewall, and with one that is not NixOS'.

use super::*;

#[test]
fn p2_without_a_firewall_there_is_nothing_to_open_and_an_ended_lease_is_still_deaf() {
    need_root!("ip", "nft");
    let scene = Scene::new(None);
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    assert_eq!(inside!(scene, firewall.open(&opening)).unwrap(), Backend::None);
    assert_eq!(scene.doors(&sockets), OPEN);
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::Whole);
    nixos::start(&scene.host, Flavour::Nftables, &Settings::default()).unwrap();
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::ChainGone);
    assert!(firewall.restore(&opening).unwrap());
    assert_eq!(scene.doors(&sockets), OPEN);
    nixos::stop(&scene.host, Flavour::Nftables, &Settings::default()).unwrap();
    inside!(scene, firewall.close(&opening)).unwrap();
    assert_eq!(scene.doors(&sockets), CLOSED);
    assert_eq!(scene.tcp(), Answer::Refused);
}

#[test]
fn p4_without_a_firewall_nothing_is_left() {
    need_root!("ip", "nft");
    let scene = Scene::new(None);
    let before = Snapshot::take(&scene.host).unwrap();
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    assert_ne!(Snapshot::take(&scene.host).unwrap(), before);
    drop(sockets);
    inside!(scene, firewall.close(&opening)).unwrap();
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
}

#[test]
fn a_firewall_that_is_not_known_is_named_and_never_taken_for_none() {
    need_root!("ip", "nft", "iptables");
    let accepting = [
        "nft 'table inet t { chain c { type filter hook input priority 0; tcp dport 22 accept; ct state new counter; }; }'",
        "nft 'table inet t { chain c { type filter hook forward priority 0; policy drop; }; }'",
        "iptables -A INPUT -p tcp --dport 22 -j ACCEPT",
    ];
    for script in accepting {
        let scene = Scene::new(None);
        scene.sh(script);
        assert_eq!(scene.firewall().backend().unwrap(), Backend::None, "{script}");
    }
    let refusing = [
        (
            "nft 'table inet filter { chain input { type filter hook input priority 0; policy drop; }; }'",
            "table inet filter, chain input drops by policy",
        ),
        (
            "nft 'table ip t { chain c { type filter hook input priority 9; udp dport 67 drop; }; }'",
            "table ip t, chain c has a rule that may refuse packets",
        ),
        (
            "nft 'table inet t { chain c { type filter hook input priority 0; ct state vmap { new : drop }; }; }'",
            "table inet t, chain c has a rule that may refuse packets",
        ),
        (
            "iptables -A INPUT -p udp -j REJECT",
            "table ip filter, chain INPUT has a rule that may refuse packets",
        ),
        (
            "iptables -N ufw && iptables -A INPUT -j ufw",
            "table ip filter, chain INPUT jumps to ufw",
        ),
        // firewalld alone would be asked (firewalld.rs).
        (
            "nft 'table inet firewalld { chain filter_INPUT { type filter hook input priority 10; }; }
             table inet filter { chain input { type filter hook input priority 0; policy drop; }; }'",
            "table inet filter, chain input drops by policy",
        ),
        (
            "nft 'table inet nixos-fw { chain input { type filter hook input priority 0; }; chain input-allow { }; }'
             iptables -N nixos-fw && iptables -A INPUT -j nixos-fw",
            "both firewalls of NixOS are active",
        ),
        (
            "nft 'table inet nixos-fw { chain input { type filter hook input priority 0; }; chain input-allow { };
             chain output { type filter hook output priority 0; policy drop; }; }'",
            "networking.firewall.filterOutput",
        ),
        (
            "iptables -N nixos-fw && iptables -N nixos-drop && iptables -A INPUT -j nixos-drop",
            "being reloaded",
        ),
    ];
    for (script, sentence) in refusing {
        let scene = Scene::new(None);
        scene.sh(script);
        let before = Snapshot::take(&scene.host).unwrap();
        let mut firewall = scene.firewall();
        let opening = scene.opening(1);
        match inside!(scene, firewall.open(&opening)) {
            Err(FirewallError::Unsupported(text)) => assert!(text.contains(sentence), "{text}"),
            other => panic!("{script}: {other:?}"),
        }
        assert_same(&before, &Snapshot::take(&scene.host).unwrap());
    }
}

/// It is no part of nf_tables, and only root may list it: a helper that systemd did not tell of it does not see it. What it refuses stays refused,
/// and nothing in it is changed.
#[test]
fn legacy_iptables_is_not_seen_and_keeps_what_it_refuses() {
    need_root!("ip", "nft", "iptables-legacy", "iptables-legacy-save");
    let scene = Scene::new(None);
    let rules =
        "iptables-legacy -A INPUT -p udp -j DROP && iptables-legacy -A INPUT -p tcp -j DROP";
    if let Err(error) = scene.host.sh(rules) {
        // Kernels begin to leave it out.
        assert!(
            error.0.contains("Table does not exist") || error.0.contains("No such file"),
            "{error:?}"
        );
        let _whether_allowed = skip("legacy_iptables", "a kernel with legacy iptables");
        return;
    }
    let listing = || scene.sh("iptables-legacy-save | grep -v '^[#:]'");
    let before = listing();
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    assert_eq!(inside!(scene, firewall.open(&opening)).unwrap(), Backend::None);
    assert_eq!(scene.doors(&sockets), CLOSED);
    inside!(scene, firewall.close(&opening)).unwrap();
    assert_eq!(listing(), before);
}
