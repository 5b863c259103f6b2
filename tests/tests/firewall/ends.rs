//! What is closed, and what is left, when a lease, its holder or the helper is gone, or an opening fails.

use super::*;

both_flavours!(;
    p3_without_its_holder_the_port_is_closed,
    p3_where_a_raw_socket_hears_a_helper_that_hangs_lets_in_for_ten_seconds,
    p3_without_its_helper_the_port_is_closed_and_the_sweep_removes_the_rest,
    p8_an_ended_lease_is_cut_both_ways,
    p2_no_conntrack_entry_keeps_the_port_open_for_an_earlier_peer,
    a_saved_and_restored_rule_is_recognised,
);

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
