//! The opening on both flavours of NixOS' firewall, by real packets: what opens, what stays closed,
//! what is left, and what happens when its holder, the helper or the firewall goes away.

// A test speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

#[macro_use]
mod scene;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    process::{ChildStdin, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use portcullis_helper::{
    config::Config,
    firewall::{Backend, Dhcp, Firewall, FirewallError, Nftables, Opening, Standing},
    mark::Marks,
    sockdiag::{self, Found, Protocol},
    sockets,
};
use portcullis_lab::{
    need_root,
    netns::Netns,
    nixos::{self, Flavour, Settings},
    probe::{self, Answer, NEIGHBOURS},
    process::{Process, mortal, wait_until},
    require::skip,
    snapshot::{Snapshot, assert_same},
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use scene::{HOST, HTTP, Scene, Sockets};
use socket2::{Domain, Socket, Type};

const OPEN: [bool; 5] = [true; 5];
const CLOSED: [bool; 5] = [false; 5];

both_flavours!(;
    p4_closed_open_closed_and_nothing_is_left,
    p7_neighbour_ports_the_second_interface_and_ipv6_stay_closed,
    the_host_prints_the_rules_as_they_are,
    p3_without_its_holder_the_port_is_closed,
    p3_where_a_raw_socket_hears_a_helper_that_hangs_lets_in_for_ten_seconds,
    p3_without_its_helper_the_port_is_closed_and_the_sweep_removes_the_rest,
    p8_an_ended_lease_is_cut_both_ways,
    p2_no_conntrack_entry_keeps_the_port_open_for_an_earlier_peer,
    p9_one_lease_ends_and_the_other_goes_on,
    p6_a_reload_is_told_from_a_revocation_and_is_repaired,
    an_emptied_chain_is_neither_repaired_nor_a_revocation,
    p7_a_foreign_mark_opens_nothing,
    other_changes_at_the_same_time_are_waited_for,
    p6_the_rules_come_back_and_the_reload_is_never_disturbed,
    a_saved_and_restored_rule_is_recognised,
);

/// What `Nftables::backend` must say.
fn backend(flavour: Flavour) -> Backend {
    match flavour {
        Flavour::Iptables => Backend::NixosIptables,
        Flavour::Nftables => Backend::NixosNftables,
    }
}

impl Scene {
    /// Which doors a machine on the LAN finds open: DISCOVER, UDP 67, 69, 4011, TCP.
    fn doors(&self, sockets: &Sockets) -> [bool; 5] {
        let udp =
            |port, holder| probe::udp_arrives(&self.lan, (HOST, port).into(), holder).unwrap();
        [
            probe::discover_arrives(&self.lan, "eth0", &sockets.dhcp).unwrap(),
            udp(67, &sockets.dhcp),
            udp(69, &sockets.tftp),
            udp(4011, &sockets.boot_server),
            self.tcp() == Answer::Open,
        ]
    }

    /// What a machine on the LAN hears from the HTTP port.
    fn tcp(&self) -> Answer {
        probe::tcp(&self.lan, (HOST, HTTP).into()).unwrap()
    }

    /// A command's output, inside the host.
    fn sh(&self, script: &str) -> String {
        self.host.sh(script).unwrap()
    }
}

/// How often: `ROUNDS` of `make soak`, or this.
fn rounds(usual: u32) -> u32 {
    let wanted = std::env::var("ROUNDS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Does something with the helper's firewall, in the host.
macro_rules! inside {
    ($scene:expr, $work:expr) => {
        $scene.host.run(|| $work).unwrap()
    };
}

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

fn p3_without_its_holder_the_port_is_closed(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    assert_eq!(scene.doors(&sockets), OPEN);
    drop(sockets);
    // Nobody has told the helper. The port is closed, and other sockets on it hear nothing: neither
    // unmarked ones nor those of a lease that is not open.
    assert_eq!(scene.tcp(), Answer::Silent);
    for mark in [0, scene.opening(2).mark.value()] {
        for port in [67, 69, 4011] {
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
            let other = inside!(scene, scene::udp(mark, any));
            let arrives = probe::udp_arrives(&scene.lan, (HOST, port).into(), &other).unwrap();
            assert!(!arrives, "{mark:#x} {port}");
        }
    }
}

/// Beside a server that has UDP 67 for itself: the kernel cannot tell whether a raw socket still lives.
fn p3_where_a_raw_socket_hears_a_helper_that_hangs_lets_in_for_ten_seconds(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let before = Snapshot::take(&scene.host).unwrap();
    let opening = Opening { dhcp: Dhcp::Raw, ..scene.opening(1) };
    let server = inside!(scene, UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67))).unwrap();
    let bound = inside!(scene, sockets::bind(&opening, HOST)).unwrap();
    let mut firewall = scene.firewall();
    let arrives = || probe::discover_arrives(&scene.lan, "eth0", &server).unwrap();
    assert!(!arrives(), "the host's firewall refuses it");
    inside!(scene, firewall.open(&opening)).unwrap();
    let mut goes_on = || {
        assert_eq!(inside!(scene, firewall.standing(&opening)).unwrap(), Standing::Whole);
        wait_until(Duration::from_secs(5), arrives)
    };
    // The other server gets it, too, and by a helper that looks on every now and then for longer
    // than what it says at once lasts.
    for _ in 0..13 {
        assert!(goes_on());
        std::thread::sleep(Duration::from_secs(1));
    }
    let elsewhere = probe::discover_arrives(&scene.other, "eth0", &server).unwrap();
    assert!(!elsewhere, "another interface");
    let unicast = probe::udp_arrives(&scene.lan, (HOST, 67).into(), &server).unwrap();
    assert!(!unicast, "what is sent to the host");
    std::thread::sleep(Duration::from_millis(10_500));
    assert!(!arrives(), "the helper hangs");
    assert!(goes_on(), "it goes on");
    // The lease ends, with what was let in for ten seconds more.
    drop(bound);
    inside!(scene, firewall.close(&opening)).unwrap();
    assert!(!arrives());
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
    // Opened again, and its time over by itself: that hinders no end.
    inside!(scene, firewall.open(&opening)).unwrap();
    std::thread::sleep(Duration::from_millis(10_500));
    inside!(scene, firewall.close(&opening)).unwrap();
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
}

fn p3_without_its_helper_the_port_is_closed_and_the_sweep_removes_the_rest(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let before = Snapshot::take(&scene.host).unwrap();
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    assert_eq!(scene.doors(&sockets), OPEN);
    let mut second = scene.firewall();
    let refused = inside!(scene, second.open(&scene.opening(2)));
    assert!(matches!(refused, Err(FirewallError::AnotherHelper)), "{refused:?}");
    let refused = inside!(scene, second.sweep());
    assert!(matches!(refused, Err(FirewallError::AnotherHelper)), "{refused:?}");
    assert_eq!(scene.doors(&sockets), OPEN);
    drop(firewall);
    assert_eq!(scene.doors(&sockets), CLOSED);
    assert_eq!(inside!(scene, second.sweep()).unwrap(), 4);
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
    assert_eq!(inside!(scene, second.sweep()).unwrap(), 0);
}

fn p8_an_ended_lease_is_cut_both_ways(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    let connect = || TcpStream::connect((HOST, HTTP)).unwrap();
    let mut machine = scene.lan.run(connect).unwrap();
    let (mut server, _) = sockets.http.accept().unwrap();
    machine.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    server.write_all(b"begin").unwrap();
    let mut buffer = [0; 5];
    machine.read_exact(&mut buffer).unwrap();

    inside!(scene, firewall.close(&opening)).unwrap();
    // Out: what the holder still writes does not come.
    server.write_all(b"after").unwrap();
    let late = machine.read(&mut buffer).unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset), "{late}");
    // In: the first thing that the machine says ends its connection.
    let told = Instant::now();
    while machine.write_all(b"more").is_ok() {
        assert!(told.elapsed() < Duration::from_secs(10), "not cut");
        std::thread::sleep(Duration::from_millis(10));
    }
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let nothing = server.read(&mut buffer);
    assert!(nothing.is_err(), "{nothing:?}");
    assert_eq!(scene.doors(&sockets), CLOSED);
}

fn p2_no_conntrack_entry_keeps_the_port_open_for_an_earlier_peer(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    let peer = scene.lan.run(|| UdpSocket::bind("192.0.2.2:5000").unwrap()).unwrap();
    let mut buffer = [0; 8];
    peer.send_to(b"ask", (HOST, 69)).unwrap();
    let (_, from) = sockets.tftp.recv_from(&mut buffer).unwrap();
    sockets.tftp.send_to(b"answer", from).unwrap();
    assert_eq!(peer.recv(&mut buffer).unwrap(), 6);
    drop(sockets);
    inside!(scene, firewall.close(&opening)).unwrap();

    let other = inside!(scene, scene::udp(0, SocketAddrV4::new(HOST, 69)));
    peer.send_to(b"again", (HOST, 69)).unwrap();
    assert!(!probe::received(&other, b"again").unwrap());
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

fn a_saved_and_restored_rule_is_recognised(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    // A restore puts chains into another order, and that is not ours to mend.
    let listing = || {
        scene.sh("iptables -S | sort; nft list tables | sort; nft list table inet nixos-fw || true")
    };
    let before = listing();
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    match flavour {
        Flavour::Iptables => scene.sh("iptables-save -t filter | iptables-restore"),
        Flavour::Nftables => scene
            .sh("saved=$(nft list table inet nixos-fw); nft delete table inet nixos-fw; \
             echo \"$saved\" | nft -f -"),
    };
    assert!(scene.sh("nft list ruleset").contains("portcullis lease 1"));
    drop(firewall);
    let mut second = scene.firewall();
    assert_eq!(inside!(scene, second.sweep()).unwrap(), 4);
    assert_eq!(before, listing());
}

/// A program that owns a table like NixOS', with a rule in it that has our comment.
fn owned_nixos_table(scene: &Scene, policy: &str) -> (Process, ChildStdin) {
    let mut command = mortal("nft");
    command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut owner = scene.host.spawn(command).unwrap();
    let mut input = owner.child().stdin.take().unwrap();
    let script = format!(
        "add table inet nixos-fw {{ flags owner; }}\n\
         add chain inet nixos-fw input {{ type filter hook input priority 0; {policy} }}\n\
         add chain inet nixos-fw input-allow\n\
         add rule inet nixos-fw input-allow counter comment \"portcullis lease 1\"\n"
    );
    input.write_all(script.as_bytes()).unwrap();
    assert!(wait_until(Duration::from_secs(5), || {
        scene.sh("nft list ruleset").contains("portcullis lease 1")
    }));
    (owner, input)
}

#[test]
fn p2_a_lease_is_closed_even_when_its_rules_cannot_be_removed() {
    need_root!("ip", "nft");
    let scene = Scene::new(None);
    let opening = scene.opening(1);
    let sockets = scene.sockets(&opening);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.open(&opening)).unwrap();
    assert_eq!(scene.doors(&sockets), OPEN);
    let _owner = owned_nixos_table(&scene, "");
    assert_eq!(scene.doors(&sockets), OPEN);
    let refused = inside!(scene, firewall.close(&opening));
    assert!(matches!(refused, Err(FirewallError::Kernel { .. })), "{refused:?}");
    assert!(scene.sh("nft list chain inet portcullis admit").contains("portcullis lease 1"));
    assert_eq!(scene.doors(&sockets), CLOSED);
    assert_eq!(scene.tcp(), Answer::Refused);
}

#[test]
fn p5_a_refused_transaction_leaves_nothing() {
    need_root!("ip", "nft");
    let scene = Scene::new(None);
    // The host's table belongs to somebody: our rule in it, the last of the batch, is refused.
    let _owner = owned_nixos_table(&scene, "policy drop;");
    let before = Snapshot::take(&scene.host).unwrap();
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    let refused = inside!(scene, firewall.open(&opening));
    assert!(matches!(refused, Err(FirewallError::Kernel { .. })), "{refused:?}");
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
    inside!(scene, firewall.close(&opening)).unwrap();
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
}

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

// After `inside!`, which it uses.
#[path = "firewall/named.rs"]
mod named;

#[test]
fn p4_a_table_left_by_a_restored_listing_is_replaced_and_swept() {
    need_root!("ip", "nft");
    let scene = Scene::new(Some(Flavour::Nftables));
    let before = Snapshot::take(&scene.host).unwrap();
    let leftover = "nft add table inet portcullis; nft add chain inet portcullis input";
    scene.sh(leftover);
    let mut firewall = scene.firewall();
    inside!(scene, firewall.sweep()).unwrap();
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
    scene.sh(leftover);
    let opening = scene.opening(1);
    inside!(scene, firewall.open(&opening)).unwrap();
    assert!(scene.sh("nft list table inet portcullis").contains("owner"));
    inside!(scene, firewall.close(&opening)).unwrap();
    assert_same(&before, &Snapshot::take(&scene.host).unwrap());
}

#[test]
fn tagged_sockets_and_holders_of_ports_are_seen_whoever_owns_them() {
    need_root!("ip");
    let scene = Scene::new(None);
    let opening = scene.opening(9);
    let index = opening.index;
    assert_eq!(inside!(scene, sockdiag::tagged(Marks::default())).unwrap(), []);
    let sockets = scene.sockets(&opening);
    let connect = || TcpStream::connect((HOST, HTTP)).unwrap();
    let machine = scene.lan.run(connect).unwrap();
    let (accepted, _) = sockets.http.accept().unwrap();
    let _unmarked = inside!(scene, scene::udp(0, SocketAddrV4::new(HOST, 70)));

    let found = inside!(scene, sockdiag::tagged(Marks::default())).unwrap();
    let mut ports: Vec<_> = found.iter().map(|one| (one.protocol, one.port)).collect();
    ports.sort_unstable();
    let udp = |port| (Protocol::Udp, port);
    let tcp = (Protocol::Tcp, HTTP);
    // The listener and its connection are alike: one stands for both.
    assert_eq!(ports, [udp(67), udp(69), udp(4011), tcp]);
    for one in &found {
        assert_eq!((one.mark, one.ifindex, one.uid), (opening.mark.value(), index, 0));
        assert!(one.held);
    }
    let holders = |protocol, port| inside!(scene, sockdiag::holders(protocol, port)).unwrap();
    let only = |protocol, port| {
        let [one] = holders(protocol, port)[..] else { panic!("one holder of {port}") };
        assert_eq!((one.mark, one.ifindex, one.uid), (opening.mark.value(), index, 0));
        one.address
    };
    assert_eq!(only(Protocol::Udp, 67), IpAddr::from(Ipv4Addr::UNSPECIFIED));
    assert_eq!(only(Protocol::Udp, 69), IpAddr::from(HOST));
    // The listener, not its connections.
    assert_eq!(only(Protocol::Tcp, HTTP), IpAddr::from(HOST));
    assert_eq!(holders(Protocol::Tcp, 67), []);
    let six = inside!(scene, UdpSocket::bind("[2001:db8::1]:4012").unwrap());
    let address = "2001:db8::1".parse().unwrap();
    assert_eq!(holders(Protocol::Udp, 4012)[0].address, IpAddr::V6(address));
    drop((six, accepted, machine, sockets));
    let held = |one: &Found| one.held;
    let found = inside!(scene, sockdiag::tagged(Marks::default())).unwrap();
    assert!(!found.iter().any(held), "{found:?}");
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

/// Longest wait for what arrives, on a busy machine.
const ARRIVES: Duration = Duration::from_secs(10);

/// The socket of another DHCP server, as dnsmasq has it.
fn server(interface: &str) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind_device(Some(interface.as_bytes())).unwrap();
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], 67)).into()).unwrap();
    socket.into()
}

#[test]
fn p9_nothing_that_its_holder_does_with_a_shared_socket_makes_the_other_server_deaf() {
    need_root!("ip", "nft");
    let scene = Scene::new(None);
    let opening = Opening { dhcp: Dhcp::Shared, ..scene.opening(1) };
    let [here, there] = ["eth0", "eth1"].map(|name| scene.host.run(|| server(name)).unwrap());
    let mut firewall = scene.firewall();
    let make = || {
        let mut bound = sockets::bind(&opening, HOST).unwrap();
        UdpSocket::from(bound.handed.remove(0).1)
    };
    let ours = scene.host.run(make).unwrap();
    ours.set_nonblocking(false).unwrap();
    scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
    let arrives = |from: &Netns, at: &UdpSocket| {
        wait_until(ARRIVES, || probe::discover_arrives(from, "eth0", at).unwrap())
    };
    let to_the_host = SocketAddr::from((HOST, 67));
    let renewal =
        || wait_until(ARRIVES, || probe::udp_arrives(&scene.lan, to_the_host, &here).unwrap());
    // A broadcast comes to both, what is sent to the host to the other alone.
    assert!(arrives(&scene.lan, &here));
    assert!(arrives(&scene.lan, &ours));
    assert!(renewal());
    assert!(!probe::udp_arrives(&scene.lan, to_the_host, &ours).unwrap());
    // Let go of its interface, it hears no other, and who serves there still does.
    scene.host.run(|| rustix::net::connect_unspec(&ours)).unwrap().unwrap();
    assert!(arrives(&scene.other, &there));
    assert!(!probe::discover_arrives(&scene.other, "eth0", &ours).unwrap());
    assert!(arrives(&scene.lan, &here) && renewal());
    // The lease is over, its holder is not.
    scene.host.run(|| firewall.close(&opening)).unwrap().unwrap();
    assert!(arrives(&scene.lan, &here) && renewal());
    assert!(arrives(&scene.other, &there));
    // The slot is given again, to a lease that shares nothing: the other lease's mark is forgotten.
    drop((ours, here));
    let next = scene.opening(1);
    scene.host.run(|| firewall.open(&next)).unwrap().unwrap();
    let exclusive = scene.sockets(&next).dhcp;
    assert!(arrives(&scene.lan, &exclusive));
    scene.host.run(|| firewall.close(&next)).unwrap().unwrap();
    assert!(!probe::discover_arrives(&scene.lan, "eth0", &exclusive).unwrap());
}
