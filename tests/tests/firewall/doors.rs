//! What an opening lets in while it stands, and what stays closed beside it.

use super::*;

both_flavours!(;
    p4_closed_open_closed_and_nothing_is_left,
    p7_neighbour_ports_the_second_interface_and_ipv6_stay_closed,
    p7_a_foreign_mark_opens_nothing,
    p9_one_lease_ends_and_the_other_goes_on,
    the_host_prints_the_rules_as_they_are,
);

fn p4_closed_open_closed_and_nothing_is_left(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let before = Snapshot::take(&scene.host).unwrap();
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    assert_eq!(firewall.backend().unwrap(), backend(flavour));
    assert_eq!(scene.doors(&sockets), CLOSED);
    for _ in 0..2 {
        let found = inside!(scene, firewall.open(&opening)).unwrap();
        assert_eq!(found, backend(flavour));
        assert_eq!(scene.doors(&sockets), OPEN);
        assert_eq!(firewall.standing(&opening).unwrap(), Standing::Whole);
        inside!(scene, firewall.close(&opening)).unwrap();
        assert_eq!(scene.doors(&sockets), CLOSED);
    }
    // As long as somebody holds the sockets, our table keeps them mute.
    assert!(scene.sh("nft list tables").contains("inet portcullis"));
    drop(sockets);
    // A program that another test starts at this moment holds the sockets until it is executed.
    wait_until(ARRIVES, || {
        assert_eq!(inside!(scene, firewall.sweep()).unwrap(), 0);
        Snapshot::take(&scene.host).unwrap() == before
    });
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
    inside!(scene, firewall.close(&opening)).unwrap();
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
}

fn p7_neighbour_ports_the_second_interface_and_ipv6_stay_closed(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    let (udp, tcp) = NEIGHBOURS;
    std::thread::scope(|scope| {
        for port in udp {
            let to = (HOST, port).into();
            let lan = &scene.lan;
            scope.spawn(move || {
                assert_eq!(probe::udp(lan, to, b"?").unwrap(), Answer::Silent, "{to}");
            });
        }
        for port in tcp {
            let to = (HOST, port).into();
            let lan = &scene.lan;
            scope.spawn(move || assert_eq!(probe::tcp(lan, to).unwrap(), Answer::Silent, "{to}"));
        }
        for port in [67, 69, 4011] {
            let (lan, other) = (&scene.lan, &scene.other);
            scope.spawn(move || {
                for (from, to) in [(other, "198.51.100.1"), (lan, "2001:db8::1")] {
                    let to = (to.parse::<IpAddr>().unwrap(), port).into();
                    assert_eq!(probe::udp(from, to, b"?").unwrap(), Answer::Silent, "{to}");
                }
            });
        }
        let (lan, other) = (&scene.lan, &scene.other);
        scope.spawn(move || {
            for (from, to) in [(other, "198.51.100.1:64172"), (lan, "[2001:db8::1]:64172")] {
                let to = to.parse().unwrap();
                assert_eq!(probe::tcp(from, to).unwrap(), Answer::Silent, "{to}");
            }
        });
    });
    assert_eq!(scene.doors(&sockets), OPEN);
}

fn p7_a_foreign_mark_opens_nothing(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    scene.sh("nft 'table ip elsewhere { chain c { type filter hook prerouting priority -150; \
              meta mark set 0x5a000001; }; }'");
    let unmarked = scene.host.run(|| scene::udp(0, SocketAddrV4::new(HOST, 69))).unwrap();
    assert!(!probe::udp_arrives(&scene.lan, (HOST, 69).into(), &unmarked).unwrap());
    // The head rule alone does trust the mark: this is what clearing it is for.
    drop(firewall);
    let arrives = || probe::udp_arrives(&scene.lan, (HOST, 69).into(), &unmarked).unwrap();
    assert!(wait_until(ARRIVES, arrives));
}

fn p9_one_lease_ends_and_the_other_goes_on(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let before = Snapshot::take(&scene.host).unwrap();
    let mut first = scene.opening(1);
    first.http = None;
    let mut second = scene.opening(2);
    (second.dhcp, second.boot_server, second.tftp) = (Dhcp::None, false, false);
    let sockets = scene.sockets(&first);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&first)).unwrap();
    inside!(scene, firewall.open(&second)).unwrap();
    // All four sockets carry the mark of the first, which has no HTTP port.
    assert_eq!(scene.doors(&sockets), [true, true, true, true, false]);
    let twice = inside!(scene, firewall.open(&first));
    assert!(twice.is_err());
    inside!(scene, firewall.close(&second)).unwrap();
    assert_eq!(firewall.standing(&first).unwrap(), Standing::Whole);
    assert_eq!(scene.doors(&sockets), [true, true, true, true, false]);
    drop(sockets);
    inside!(scene, firewall.close(&first)).unwrap();
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
}

fn the_host_prints_the_rules_as_they_are(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(7);
    let _sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    match flavour {
        Flavour::Iptables => {
            let mark = "-m mark --mark 0x5a000000/0xff000000";
            let rest = "-m comment --comment \"portcullis lease 7\" -j ACCEPT";
            let rule = |protocol: &str, port: u16| {
                format!("-i eth0 -p {protocol} -m {protocol} --dport {port} {mark} {rest}")
            };
            let rules = [rule("tcp", HTTP), rule("udp", 4011), rule("udp", 69), rule("udp", 67)];
            let printed = scene.sh("iptables -S nixos-fw");
            let head: Vec<&str> = printed.lines().skip(1).take(4).collect();
            assert_eq!(head, rules.each_ref().map(|rule| format!("-A nixos-fw {rule}")));
            for rule in rules {
                scene.sh(&format!("iptables -C nixos-fw {rule}"));
            }
            scene.sh("iptables-save > /dev/null && iptables-save | iptables-restore --test");
            assert!(!scene.sh("iptables-save").contains("incompatible"));
        }
        Flavour::Nftables => {
            let mark = "meta mark & 0xff000000 == 0x5a000000";
            let rule = |protocol: &str, port: u16| {
                format!(
                    "\t\tmeta nfproto ipv4 iifname \"eth0\" {protocol} dport {port} {mark} accept \
                     comment \"portcullis lease 7\""
                )
            };
            // Some versions of nft print a mask of leading ones as a prefix length.
            let printed = scene
                .sh("nft list chain inet nixos-fw input-allow")
                .replace("meta mark 0x5a000000/8", mark);
            let head: Vec<&str> = printed.lines().skip(2).take(4).collect();
            let rules = [rule("tcp", HTTP), rule("udp", 4011), rule("udp", 69), rule("udp", 67)];
            assert_eq!(head, rules);
        }
    }
    // What nft prints of our table, nft reads: no chain has the name of a keyword.
    let ours = scene.sh("nft list table inet portcullis | sed 's/flags owner//'");
    let mut reader = mortal("nft");
    reader.args(["-f", "-"]).stdin(Stdio::piped());
    let mut reader = scene.other.spawn(reader).unwrap();
    let mut input = reader.child().stdin.take().unwrap();
    input.write_all(ours.as_bytes()).unwrap();
    drop(input);
    assert!(reader.wait(Duration::from_secs(5)).unwrap().unwrap().success());
    let again = scene.other.sh("nft list table inet portcullis").unwrap();
    let rules = |text: &str| -> Vec<String> {
        let chains = text.lines().skip_while(|line| !line.contains("set live"));
        chains.filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    assert_eq!(rules(&ours), rules(&again));
    assert!(rules(&ours).len() > 40, "{ours}");
}

#[test]
fn p10_net_admin_alone_is_enough() {
    need_root!("ip", "nft");
    let scene = Scene::new(Some(Flavour::Nftables));
    let before = Snapshot::take(&scene.host).unwrap();
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    // On a thread of its own, which alone becomes another user.
    inside!(scene, {
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_keep_capabilities(true).unwrap();
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let sets = CapabilitySets {
            effective: CapabilitySet::NET_ADMIN,
            permitted: CapabilitySet::NET_ADMIN,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).unwrap();
        let mut firewall = Nftables::new(&Config::default()).unwrap();
        firewall.open(&opening).unwrap();
        assert_eq!(firewall.standing(&opening).unwrap(), Standing::Whole);
        assert_eq!(sockdiag::tagged(Marks::default()).unwrap().len(), 4);
        drop(sockets);
        firewall.close(&opening).unwrap();
    });
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
}
