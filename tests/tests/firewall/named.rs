//! Firewalls that the helper knows only by the name of a chain that an administrator has written down:
//! plain nftables and ufw, and what their owners do with them meanwhile.

use portcullis_helper::config::{Family, NamedChain};
use tempfile::TempDir;

use super::*;

/// A firewall that the helper knows only by the name of a chain: how it is (re)loaded, how the chain
/// is printed, and what a rule of ours for UDP 67 looks like there.
struct Named {
    load: String,
    reload: String,
    chain: NamedChain,
    print: &'static str,
    rule: &'static str,
}

fn named(family: Family, table: &str, chain: &str) -> NamedChain {
    let name = |text: &str| text.to_owned().try_into().unwrap();
    NamedChain { family, table: name(table), chain: name(chain) }
}

/// As Debian's /etc/nftables.conf is usually filled.
fn plain_nftables() -> Named {
    let load = "nft -f - <<'END'
flush ruleset
table inet filter {
  chain input {
    type filter hook input priority filter; policy drop;
    iifname \"lo\" accept
    ct state established,related accept
    ct state invalid drop
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport 22 accept
  }
  chain forward { type filter hook forward priority filter; policy drop; }
}
END";
    Named {
        load: load.to_owned(),
        reload: load.to_owned(),
        chain: named(Family::Inet, "filter", "input"),
        print: "nft list chain inet filter input",
        rule: "meta nfproto ipv4 iifname \"eth0\" udp dport 67 meta mark & 0xfff00000 == 0x12300000 \
               accept comment \"portcullis lease 1\"",
    }
}

/// Debian's ufw, as its package installs it and `ufw enable` starts it. Its files are copies of its own:
/// it never touches those of the machine that runs the test.
struct Ufw(TempDir);

impl Ufw {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        let copied = portcullis_lab::process::finish({
            let mut command = std::process::Command::new("sh");
            command.args([
                "-ec",
                &format!("cp -a /etc/ufw {path}/etc; cp -a /etc/default/ufw {path}"),
            ]);
            command
        });
        copied.unwrap();
        Self(directory)
    }

    /// `ufw` with these words, as a script for [`Scene::sh`].
    fn says(&self, words: &str) -> String {
        let path = self.0.path().display();
        format!(
            "unshare --mount sh -ec 'mount --make-rprivate /; mount --bind {path}/etc /etc/ufw; \
             mount --bind {path}/ufw /etc/default/ufw; ufw {words}'"
        )
    }

    /// As the configuration of the helper names it.
    fn chain() -> NamedChain {
        named(Family::Ip, "filter", "ufw-user-input")
    }

    /// Enabled, with one rule of the administrator's.
    fn host(&self) -> Named {
        Named {
            load: format!("{} && {}", self.says("--force enable"), self.says("allow 22/tcp")),
            reload: self.says("reload"),
            chain: Self::chain(),
            print: "iptables -S ufw-user-input",
            rule: "-A ufw-user-input -i eth0 -p udp -m udp --dport 67 -m mark --mark \
                   0x12300000/0xfff00000 -m comment --comment \"portcullis lease 1\" -j ACCEPT",
        }
    }
}

/// With a mark of the site's own, too.
fn a_named_chain_is_opened_repaired_and_left_as_it_was(host: &Named) {
    let scene = Scene::new(None);
    scene.sh(&host.load);
    // A firewall's first reload may put chains into another order.
    scene.sh(&host.reload);
    let before = Snapshot::take(&scene.host).unwrap();
    let marks = Marks::new(0x1230_0000, 0xfff0_0000).unwrap();
    let config = Config { marks, chain: Some(host.chain.clone()), ..Config::default() };
    let opening = scene.opening(1);
    let opening = Opening { mark: marks.lease(opening.mark.slot), ..opening };
    let sockets = scene.sockets(&opening);

    // Not without its name.
    let refused = inside!(scene, scene.firewall().open(&opening));
    let Err(FirewallError::Unsupported(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("[firewall] in /etc/portcullis/helper.toml"), "{text}");
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
    assert_eq!(scene.doors(&sockets), CLOSED);

    let mut firewall = scene.firewall_with(&config);
    assert_eq!(firewall.backend().unwrap(), Backend::NamedChain);
    assert_eq!(inside!(scene, firewall.open(&opening)).unwrap(), Backend::NamedChain);
    assert_eq!(scene.doors(&sockets), OPEN);
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::Whole);
    // Some versions of nft print a mask of leading ones as a prefix length.
    let printed = scene.sh(host.print);
    let printed =
        printed.replace("meta mark 0x12300000/12", "meta mark & 0xfff00000 == 0x12300000");
    assert!(printed.lines().any(|line| line.trim() == host.rule), "{printed}");
    let neighbour = probe::tcp(&scene.lan, (HOST, HTTP + 1).into()).unwrap();
    assert_eq!(neighbour, Answer::Silent);

    for _ in 0..3 {
        scene.sh(&host.reload);
        assert_eq!(scene.doors(&sockets), CLOSED);
        assert_eq!(firewall.standing(&opening).unwrap(), Standing::ChainGone);
        assert!(firewall.restore(&opening).unwrap());
        assert_eq!(firewall.standing(&opening).unwrap(), Standing::Whole);
        assert_eq!(scene.doors(&sockets), OPEN);
    }
    inside!(scene, firewall.close(&opening)).unwrap();
    assert_eq!(scene.doors(&sockets), CLOSED);
    drop(sockets);
    let before = before.without_handles();
    // A program that another test starts at this moment holds the sockets until it is executed.
    wait_until(ARRIVES, || {
        inside!(scene, firewall.sweep()).unwrap();
        Snapshot::take(&scene.host).unwrap().without_handles() == before
    });
    assert_same(&before, &Snapshot::take(&scene.host).unwrap().without_handles());

    // What a helper that died has left is swept, wherever it was put.
    inside!(scene, firewall.open(&opening)).unwrap();
    drop(firewall);
    let mut second = scene.firewall_with(&config);
    assert_eq!(inside!(scene, second.sweep()).unwrap(), 4);
    assert_same(&before, &Snapshot::take(&scene.host).unwrap().without_handles());
}

#[test]
fn a_named_chain_of_plain_nftables_is_opened() {
    need_root!("ip", "nft");
    a_named_chain_is_opened_repaired_and_left_as_it_was(&plain_nftables());
}

#[test]
fn a_named_chain_of_ufw_is_opened() {
    need_root!("ip", "nft", "iptables", "ufw");
    a_named_chain_is_opened_repaired_and_left_as_it_was(&Ufw::new().host());
}

/// What an administrator does with ufw while a lease is open: rules come and go, the chain is made
/// anew though nothing is in it, and it is emptied and filled again as it stands.
#[test]
fn p6_a_lease_outlives_what_an_administrator_does_with_ufw() {
    need_root!("ip", "nft", "iptables", "ufw");
    let scene = Scene::new(None);
    let ufw = Ufw::new();
    scene.sh(&ufw.says("--force enable"));
    let config = Config { chain: Some(Ufw::chain()), ..Config::default() };
    let mut firewall = scene.firewall_with(&config);
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    inside!(scene, firewall.open(&opening)).unwrap();
    assert_eq!(scene.doors(&sockets), OPEN);
    for (words, disturbs) in [
        ("reload", true),
        ("allow 22/tcp", false),
        ("insert 1 allow 23/tcp", true),
        ("reload", true),
        ("--force delete allow 23/tcp", true),
        ("deny 67/udp", false),
    ] {
        scene.sh(&ufw.says(words));
        let expected = if disturbs { Standing::ChainGone } else { Standing::Whole };
        assert_eq!(firewall.standing(&opening).unwrap(), expected, "ufw {words}");
        assert!(!disturbs || firewall.restore(&opening).unwrap(), "ufw {words}");
        assert_eq!(firewall.standing(&opening).unwrap(), Standing::Whole, "ufw {words}");
        assert_eq!(scene.doors(&sockets), OPEN, "ufw {words}");
    }
    // One of ours alone taken away is meant, whatever else stands there.
    scene.sh("iptables -D ufw-user-input 2");
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::Revoked);
    scene.sh("for rule in 1 2 3; do iptables -D ufw-user-input 1; done");
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::Revoked);
    scene.sh(&ufw.says("disable"));
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::ChainGone);
    drop(sockets);
    inside!(scene, firewall.close(&opening)).unwrap();
    assert!(!scene.sh("nft list ruleset").contains("portcullis"));
}

/// Rules that were taken away are not taken for a reload because whatever else stands in the chain is
/// younger: an administrator's later rule, or another lease, which its user can open at any time.
#[test]
fn p6_a_revocation_is_one_whatever_came_into_the_chain_since() {
    need_root!("ip", "nft");
    let scene = Scene::new(None);
    scene.sh(
        "nft 'add table ip t; add chain ip t c { type filter hook input priority 0; policy drop; }; \
         add rule ip t c tcp dport 22 accept'",
    );
    let config = Config { chain: Some(named(Family::Ip, "t", "c")), ..Config::default() };
    let mut firewall = scene.firewall_with(&config);
    let [first, second] = [1, 2].map(|slot| scene.opening(slot));
    let taken = |slot: u8| {
        scene.sh(&format!(
            "for handle in $(nft -a list chain ip t c | sed -n 's/.*lease {slot}\" # handle //p'); \
             do nft delete rule ip t c handle $handle; done"
        ))
    };
    let own = "nft delete rule ip t c handle $(nft -a list chain ip t c | sed -n \
               's/.*dport 22 accept # handle //p')";

    // The rule that was there is replaced by another, and seen so.
    inside!(scene, firewall.open(&first)).unwrap();
    scene.sh(&format!("nft add rule ip t c tcp dport 23 accept; {own}"));
    assert_eq!(firewall.standing(&first).unwrap(), Standing::Whole);
    taken(1);
    assert_eq!(firewall.standing(&first).unwrap(), Standing::Revoked);
    inside!(scene, firewall.close(&first)).unwrap();

    // Nothing but leases is in the chain.
    scene.sh("nft flush chain ip t c");
    inside!(scene, firewall.open(&first)).unwrap();
    inside!(scene, firewall.open(&second)).unwrap();
    taken(1);
    assert_ne!(firewall.standing(&first).unwrap(), Standing::Whole);
    assert!(!firewall.restore(&first).unwrap(), "what was taken away is back");
    assert_eq!(firewall.standing(&second).unwrap(), Standing::Whole);
    for opening in [&first, &second] {
        inside!(scene, firewall.close(opening)).unwrap();
    }
}

#[test]
fn a_named_chain_that_no_packet_reaches_is_refused_and_ends_its_lease() {
    need_root!("ip", "nft", "iptables", "ufw");
    let scene = Scene::new(None);
    scene.sh(&Ufw::new().host().load);
    scene.sh("iptables -N unused && iptables -A unused -p tcp --dport 22 -j ACCEPT");
    for chain in ["unused", "absent"] {
        let chain = Some(named(Family::Ip, "filter", chain));
        let mut firewall = scene.firewall_with(&Config { chain, ..Config::default() });
        let refused = inside!(scene, firewall.open(&scene.opening(1)));
        let Err(FirewallError::Unsupported(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains("no input chain leads to table ip filter, chain"), "{text}");
    }
    assert!(!scene.sh("nft list ruleset").contains("portcullis"));

    // Once opened, and no longer reached: as a firewall that was taken down.
    let chain = Some(Ufw::chain());
    let mut firewall = scene.firewall_with(&Config { chain, ..Config::default() });
    let opening = scene.opening(1);
    inside!(scene, firewall.open(&opening)).unwrap();
    scene.sh("iptables -D ufw-before-input -j ufw-user-input");
    assert_eq!(firewall.standing(&opening).unwrap(), Standing::ChainGone);
    assert!(!firewall.restore(&opening).unwrap());
    inside!(scene, firewall.close(&opening)).unwrap();
    assert!(!scene.sh("nft list ruleset").contains("portcullis"));
}
