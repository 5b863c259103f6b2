//! Other sockets of the host: which are ours, who holds a port, and the one that shares UDP 67 with us.

use super::*;

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
