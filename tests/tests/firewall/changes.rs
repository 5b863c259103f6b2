//! The firewall changes under a lease: it is reloaded, emptied, edited by an administrator.

use super::*;

both_flavours!(;
    p6_a_reload_is_told_from_a_revocation_and_is_repaired,
    an_emptied_chain_is_neither_repaired_nor_a_revocation,
    p6_the_rules_come_back_and_the_reload_is_never_disturbed,
    other_changes_at_the_same_time_are_waited_for,
);

/// How often: `ROUNDS` of `make soak`, or this.
fn rounds(usual: u32) -> u32 {
    let wanted = std::env::var("ROUNDS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn p6_a_reload_is_told_from_a_revocation_and_is_repaired(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let settings = Settings::default();
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    for _ in 0..3 {
        nixos::reload(&scene.host, flavour, &settings).unwrap();
        assert_eq!(scene.doors(&sockets), CLOSED);
        assert_eq!(firewall.standing(&opening).unwrap(), Standing::ChainGone);
        assert!(firewall.restore(&opening).unwrap());
        assert_eq!(firewall.standing(&opening).unwrap(), Standing::Whole);
        assert_eq!(scene.doors(&sockets), OPEN);
    }
    nixos::stop(&scene.host, flavour, &settings).unwrap();
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::ChainGone);
    assert!(!firewall.restore(&opening).unwrap());
    nixos::start(&scene.host, flavour, &settings).unwrap();
    assert!(firewall.restore(&opening).unwrap());
    assert_eq!(scene.doors(&sockets), OPEN);

    match flavour {
        Flavour::Iptables => scene.sh("iptables -D nixos-fw 2"),
        Flavour::Nftables => scene.sh(
            "nft delete rule inet nixos-fw input-allow handle $(nft -a list chain inet nixos-fw \
             input-allow | sed -n 's/.*dport 69 .*portcullis lease 1\" # handle //p')",
        ),
    };
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::Revoked);
    drop(sockets);
    inside!(scene, firewall.close(&opening)).unwrap();
    assert!(!scene.sh("nft list ruleset").contains("portcullis"));
}

fn an_emptied_chain_is_neither_repaired_nor_a_revocation(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    match flavour {
        Flavour::Iptables => scene.sh("iptables -F nixos-fw"),
        Flavour::Nftables => scene.sh("nft flush chain inet nixos-fw input-allow"),
    };
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::ChainGone);
    assert!(!firewall.restore(&opening).unwrap());
    inside!(scene, firewall.close(&opening)).unwrap();
    assert!(!scene.sh("nft list ruleset").contains("portcullis"));
}

fn p6_the_rules_come_back_and_the_reload_is_never_disturbed(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    let reloading = AtomicBool::new(true);
    std::thread::scope(|scope| {
        // As eager as can be: what the tick of the helper does once a second, all the time.
        scope.spawn(|| {
            while reloading.load(Ordering::Relaxed) {
                if firewall.standing(&opening).unwrap() == Standing::ChainGone {
                    firewall.restore(&opening).unwrap();
                }
            }
        });
        for round in 0..rounds(5) {
            let result = nixos::reload(&scene.host, flavour, &Settings::default());
            if result.is_err() {
                reloading.store(false, Ordering::Relaxed);
            }
            result.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        reloading.store(false, Ordering::Relaxed);
    });
    if firewall.standing(&opening).unwrap() != Standing::Whole {
        assert!(firewall.restore(&opening).unwrap());
    }
    assert_eq!(scene.doors(&sockets), OPEN);
}

fn other_changes_at_the_same_time_are_waited_for(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let before = Snapshot::take(&scene.host).unwrap();
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    let busy = scene.host.daemon(
        "sh",
        &["-c", "while nft 'add table ip busy; delete table ip busy'; do sleep 0.005; done"],
    );
    for _ in 0..rounds(100) {
        inside!(scene, firewall.open(&opening)).unwrap();
        inside!(scene, firewall.close(&opening)).unwrap();
    }
    busy.unwrap().kill().unwrap();
    scene.sh("nft 'add table ip busy; delete table ip busy'");
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
}
