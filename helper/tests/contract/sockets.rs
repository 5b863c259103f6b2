//! The sockets of a lease in the real kernel: what they take, and what their holder cannot do.

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    num::NonZeroU8,
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt};
use portcullis_helper::{
    config::Config,
    firewall::{Dhcp, Firewall, Nftables, Opening},
    interface::{InterfaceName, Link},
    kernel::{Kernel, Linux},
    mark::Marks,
    sockdiag::Protocol,
    sockets::{self, Bound},
};
use socket2::{SockFilter, SockRef};

use crate::{
    netns::{Peer, sh, two_wires},
    real::NIXOS,
};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn link(name: &str) -> Option<Link> {
    Linux::default().link(&InterfaceName::parse(name).unwrap()).unwrap()
}

fn opening() -> Opening {
    Opening {
        mark: Marks::default().lease(NonZeroU8::new(7).unwrap()),
        interface: InterfaceName::parse("pc-svc0").unwrap(),
        index: link("pc-svc0").unwrap().index,
        dhcp: Dhcp::Proxy,
        boot_server: true,
        tftp: true,
        http: Some(64172),
    }
}

fn take(bound: &mut Bound, key: &str) -> UdpSocket {
    let position = bound.handed.iter().position(|(name, _)| *name == key).unwrap();
    let socket = UdpSocket::from(bound.handed.remove(position).1);
    socket.set_nonblocking(false).unwrap();
    socket
}

/// What `attempt` gives once it is what it should be, after sockets were closed: a program that another test
/// of this process is just starting has copies of them until its exec. In the end, what it is.
fn settled<T>(attempt: impl Fn() -> T, is_it: impl Fn(&T) -> bool) -> T {
    for _ in 0..200 {
        let result = attempt();
        if is_it(&result) {
            return result;
        }
        thread::sleep(Duration::from_millis(50));
    }
    attempt()
}

/// The sockets, where others were closed just now.
fn bind_again(opening: &Opening) -> Bound {
    settled(|| sockets::bind(opening, ADDRESS), Result::is_ok).unwrap()
}

fn send(peer: &Peer, from: &'static str, to: &'static str, times: u8) {
    peer.run(move || {
        for number in 0..times {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            SockRef::from(&socket).set_broadcast(true).unwrap();
            socket.send_to(&[number], to).unwrap();
        }
    });
}

/// What arrives, waiting long for the datagrams that are expected and a little for others.
fn received(socket: &UdpSocket, expected: usize) -> usize {
    let mut count = 0;
    loop {
        let patience = if count < expected { 3000 } else { 200 };
        socket.set_read_timeout(Some(Duration::from_millis(patience))).unwrap();
        if socket.recv(&mut [0; 16]).is_err() {
            return count;
        }
        count += 1;
    }
}

#[test]
fn p8_sockets_are_marked_confined_and_locked() {
    let Some(_peer) = two_wires() else { return };
    let opening = opening();
    let bound = sockets::bind(&opening, ADDRESS).unwrap();
    assert_eq!(bound.handed.len(), 4);
    assert_eq!(bound.placeholders.len(), 2);
    for (key, socket) in &bound.handed {
        let socket = SockRef::from(socket);
        assert_eq!(socket.mark().unwrap(), 0x5a00_0007, "{key}");
        assert_eq!(socket.device().unwrap().unwrap(), b"pc-svc0", "{key}");
        assert!(socket.nonblocking().unwrap(), "{key}");
        let flags = nix::fcntl::fcntl(socket.as_fd(), nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & nix::libc::FD_CLOEXEC, nix::libc::FD_CLOEXEC, "{key}");
        let address = socket.local_addr().unwrap().as_socket_ipv4().unwrap();
        let (ip, port) = match *key {
            "dhcp" => (Ipv4Addr::UNSPECIFIED, 67),
            "tftp" => (ADDRESS, 69),
            "boot-server" => (ADDRESS, 4011),
            _ => (ADDRESS, 64172),
        };
        assert_eq!((*address.ip(), address.port()), (ip, port), "{key}");
        if *key == "http" {
            continue;
        }
        // Even root cannot take the filter off any more.
        assert!(socket.detach_filter().is_err(), "{key}");
        assert!(socket.attach_filter(&[SockFilter::new(6, 0, 0, u32::MAX)]).is_err(), "{key}");
        let buffer = getsockopt(&socket.as_fd(), sockopt::RcvBuf).unwrap();
        assert!(buffer >= 1024 * 1024, "{key}: {buffer}");
    }
    assert!(SockRef::from(&bound.handed[0].1).broadcast().unwrap());
    for placeholder in &bound.placeholders {
        let placeholder = SockRef::from(placeholder);
        assert_eq!(placeholder.mark().unwrap(), 0);
        assert_eq!(placeholder.device().unwrap(), None);
        assert!(placeholder.detach_filter().is_err());
    }
    // What the kernel lists is what we made, and the placeholders are not among it.
    let tagged = Linux::default().tagged().unwrap();
    assert_eq!(tagged.len(), 4);
    assert!(
        tagged
            .iter()
            .all(|socket| socket.mark == opening.mark.value() && socket.ifindex == opening.index)
    );
}

/// Beside a server that has UDP 67 for itself.
#[test]
fn p8_a_raw_socket_hears_what_a_shared_one_would_and_nothing_after_its_lease() {
    let Some(peer) = two_wires() else { return };
    let _server = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).unwrap();
    let opening = Opening { dhcp: Dhcp::Raw, ..opening() };
    let mut bound = sockets::bind(&opening, ADDRESS).unwrap();
    let raw = take(&mut bound, "dhcp-raw");
    let socket = SockRef::from(&raw);
    // Of no lease: the guard knows nothing that it may send.
    assert_eq!(socket.mark().unwrap(), 0x5a00_0000);
    assert!(socket.detach_filter().is_err());
    assert!(socket.attach_filter(&[SockFilter::new(6, 0, 0, u32::MAX)]).is_err());
    let hears = |from, to, expected| {
        send(&peer, from, to, 3);
        received(&raw, expected)
    };
    let everybody = "255.255.255.255:67";
    assert_eq!(hears("192.0.2.2", everybody, 3), 3);
    for device in [Some(b"pc-svc0".as_slice()), None, Some(b"pc-svc1")] {
        // Its holder's own affair, which gives it nothing more.
        socket.bind_device(device).unwrap();
        for (from, to) in [
            ("192.0.2.2", "255.255.255.255:68"),
            ("192.0.2.2", "192.0.2.1:67"),
            ("198.51.100.2", everybody),
        ] {
            assert_eq!(hears(from, to, 0), 0, "{device:?} {from} {to}");
        }
        let home = if device == Some(b"pc-svc1") { 0 } else { 3 };
        assert_eq!(hears("192.0.2.2", everybody, home), home, "{device:?}");
    }
    socket.bind_device(Some(b"pc-svc0")).unwrap();
    let refused = raw.send_to(&[0; 300], "192.0.2.2:0").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);

    // The lease ends, and its holder does what it likes with the socket.
    drop(bound.ear.take().unwrap());
    assert_eq!(hears("192.0.2.2", everybody, 0), 0);
    socket.bind_device(Some(b"pc-svc0")).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 67)).into()).unwrap();
    rustix::net::connect_unspec(&raw).unwrap();
    assert_eq!(hears("192.0.2.2", everybody, 0), 0);
}

#[test]
fn packets_go_to_the_lease_and_never_to_the_placeholder() {
    let Some(peer) = two_wires() else { return };
    let mut bound = sockets::bind(&opening(), ADDRESS).unwrap();
    for (key, to) in
        [("boot-server", "192.0.2.1:4011"), ("tftp", "192.0.2.1:69"), ("dhcp", "192.0.2.1:67")]
    {
        let socket = take(&mut bound, key);
        // Each from a port of its own, so that a shared port would split them by their hash.
        send(&peer, "192.0.2.2", to, 100);
        assert_eq!(received(&socket, 100), 100, "{key}");
    }
    drop(bound);
    let mut bound = bind_again(&opening());
    let dhcp = take(&mut bound, "dhcp");
    send(&peer, "192.0.2.2", "255.255.255.255:67", 3);
    assert_eq!(received(&dhcp, 3), 3);
}

#[test]
fn p7_nothing_comes_in_by_another_interface_not_even_unbound() {
    let Some(peer) = two_wires() else { return };
    peer.run(|| sh("ip route add 192.0.2.1/32 via 198.51.100.1 dev pc-peer1 src 198.51.100.2"));
    sh("echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter");
    sh("echo 0 >/proc/sys/net/ipv4/conf/pc-svc1/rp_filter");
    let mut bound = sockets::bind(&opening(), ADDRESS).unwrap();
    let socket = take(&mut bound, "boot-server");
    // The twin: without our filter and device the packet does arrive.
    let twin = UdpSocket::bind("192.0.2.1:4012").unwrap();
    send(&peer, "198.51.100.2", "192.0.2.1:4012", 1);
    assert_eq!(received(&twin, 1), 1);
    send(&peer, "198.51.100.2", "192.0.2.1:4011", 1);
    assert_eq!(received(&socket, 0), 0);
    // connect(AF_UNSPEC) takes the device away (and the kernel says so); the filter stays.
    rustix::net::connect_unspec(&socket).unwrap();
    assert_eq!(SockRef::from(&socket).device().unwrap(), None);
    drop(bound);
    send(&peer, "198.51.100.2", "192.0.2.1:4011", 1);
    assert_eq!(received(&socket, 0), 0);
    let moved = Linux::default().tagged().unwrap();
    assert_eq!(moved.len(), 1);
    assert_eq!((moved[0].port, moved[0].ifindex), (4011, 0));
}

/// A UDP socket of nobody's, on another interface and with SO_REUSEPORT if asked; held until standard
/// input ends.
fn nobodys_socket(address: &str, port: u16, device: &str, reuse: bool) -> Command {
    let script = "import socket,sys\n\
         s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
         s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,int(sys.argv[4]))\n\
         d=sys.argv[3].encode()\n\
         d and s.setsockopt(socket.SOL_SOCKET,socket.SO_BINDTODEVICE,d)\n\
         s.bind((sys.argv[1],int(sys.argv[2])))\n\
         print('bound',flush=True)\n\
         sys.stdin.read()";
    let mut command = Command::new("python3");
    command
        .args(["-c", script, address, &port.to_string(), device, &u8::from(reuse).to_string()])
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::null());
    command
}

/// Whether nobody can bind such a socket.
fn nobody_binds(address: &str, port: u16, device: &str, reuse: bool) -> bool {
    let output = nobodys_socket(address, port, device, reuse).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || text.contains("Address already in use"), "{text}");
    output.status.success()
}

#[test]
fn p9_nobody_can_move_a_socket_onto_a_lease() {
    let Some(_peer) = two_wires() else { return };
    let bound = sockets::bind(&opening(), ADDRESS).unwrap();
    let ways =
        [("0.0.0.0", "pc-svc1"), ("192.0.2.1", ""), ("192.0.2.1", "pc-svc1"), ("0.0.0.0", "")];
    for (address, device) in ways {
        for reuse in [false, true] {
            assert!(!nobody_binds(address, 4011, device, reuse), "{address} {device} {reuse}");
        }
    }
    assert!(nobody_binds("198.51.100.1", 4011, "pc-svc1", false), "another address is free");
    drop(bound);
    for (address, device) in ways {
        let binds = settled(|| nobody_binds(address, 4011, device, false), |binds| *binds);
        assert!(binds, "{address} {device}: free again");
    }
}

/// Who was there before is in the way, is named, and shares nothing with the lease.
#[test]
fn p9_a_socket_that_was_there_before_is_refused_and_never_shared_with() {
    let Some(_peer) = two_wires() else { return };
    // 69 is privileged; nobody could hold it only with the host's leave.
    sh("echo 60 >/proc/sys/net/ipv4/ip_unprivileged_port_start");
    for (port, address, device) in [
        (67, "0.0.0.0", ""),
        (67, "0.0.0.0", "pc-svc0"),
        (67, "192.0.2.1", ""),
        (69, "0.0.0.0", ""),
        (69, "192.0.2.1", "pc-svc1"),
        (4011, "0.0.0.0", ""),
        (4011, "0.0.0.0", "pc-svc0"),
        (4011, "0.0.0.0", "pc-svc1"),
        (4011, "192.0.2.1", ""),
        (4011, "192.0.2.1", "pc-svc0"),
    ] {
        for reuse in [false, true] {
            let mut squatter = nobodys_socket(address, port, device, reuse);
            let mut squatter =
                squatter.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut said = [0; 6];
            squatter.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
            let case = format!("{address}:{port} {device} {reuse}");
            let refused = || sockets::bind(&opening(), ADDRESS).expect_err(&case);
            let error = settled(refused, |error| error.port == port);
            assert_eq!((error.protocol, error.port), (Protocol::Udp, port), "{case}");
            let holders = Linux::default().holders(Protocol::Udp, port).unwrap();
            assert!(holders.iter().any(|holder| holder.uid == 65534), "{case}: {holders:?}");
            drop(squatter.stdin.take());
            squatter.wait().unwrap();
            // With it gone, nothing is in the way.
            drop(bind_again(&opening()));
        }
    }
}

#[test]
fn a_squatter_on_the_wildcard_is_in_the_way_and_one_on_the_loopback_is_not() {
    let Some(_peer) = two_wires() else { return };
    let loopback = TcpListener::bind("127.0.0.1:64172").unwrap();
    drop(sockets::bind(&opening(), ADDRESS).unwrap());
    drop(loopback);

    let squatter = TcpListener::bind("0.0.0.0:64172").unwrap();
    let refused = || sockets::bind(&opening(), ADDRESS).unwrap_err();
    let error = settled(refused, |error| error.port == 64172);
    assert_eq!((error.protocol, error.port), (Protocol::Tcp, 64172));
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
    // What was bound before it is free again.
    for address in ["0.0.0.0:67", "0.0.0.0:4011"] {
        assert!(settled(|| UdpSocket::bind(address).is_ok(), |free| *free), "{address}");
    }
    let holders = Linux::default().holders(Protocol::Tcp, 64172).unwrap();
    assert_eq!(holders.len(), 1);
    assert!(holders[0].address.is_unspecified());
    drop(squatter);

    let _udp = settled(|| UdpSocket::bind("0.0.0.0:69"), Result::is_ok).unwrap();
    let error = settled(refused, |error| error.port == 69);
    assert_eq!((error.protocol, error.port), (Protocol::Udp, 69));
}

#[test]
fn a_name_that_was_given_to_another_interface_means_the_old_one() {
    let Some(_peer) = two_wires() else { return };
    let stale = opening();
    sh("ip link set pc-svc0 down; ip link set pc-svc0 name pc-old; ip link set pc-old up
        ip link set pc-svc1 down; ip link set pc-svc1 name pc-svc0; ip link set pc-svc0 up");
    let bound = sockets::bind(&stale, ADDRESS).unwrap();
    for (key, socket) in &bound.handed {
        let device = SockRef::from(socket).device().unwrap().unwrap();
        assert_eq!(device, b"pc-old", "{key}");
    }
}

#[test]
fn a_machine_that_comes_back_from_the_same_port_is_served_at_once() {
    let Some(peer) = two_wires() else { return };
    let mut bound = sockets::bind(&opening(), ADDRESS).unwrap();
    let position = bound.handed.iter().position(|(key, _)| *key == "http").unwrap();
    let listener = TcpListener::from(bound.handed.remove(position).1);
    listener.set_nonblocking(false).unwrap();
    for round in 0..3 {
        let (stream, served) = thread::scope(|scope| {
            let accepted = scope.spawn(|| listener.accept().unwrap().0);
            let stream = peer.run(|| {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                        .unwrap();
                socket.set_reuse_address(true).unwrap();
                let from: SocketAddr = "192.0.2.2:40000".parse().unwrap();
                socket.bind(&from.into()).unwrap();
                let to: SocketAddr = "192.0.2.1:64172".parse().unwrap();
                socket
                    .connect_timeout(&to.into(), Duration::from_secs(2))
                    .map(|()| TcpStream::from(socket))
            });
            (stream, accepted.join().unwrap())
        });
        let stream = stream.unwrap_or_else(|error| panic!("round {round}: {error}"));
        // The server closes first, which is what leaves a TIME_WAIT behind.
        drop(served);
        thread::sleep(Duration::from_millis(50));
        drop(stream);
        thread::sleep(Duration::from_millis(50));
        let waiting = sh("ss -Htan state time-wait");
        assert!(waiting.is_empty(), "{waiting}");
    }
}

#[test]
fn the_kernel_says_what_an_interface_is() {
    let Some(_peer) = two_wires() else { return };
    sh("ip link add pc-br0 type bridge; ip link add pc-a type veth peer name pc-c;
        ip link set pc-a master pc-br0;
        ip link property add dev pc-c altname pc-other;
        ip addr add 203.0.113.1/24 dev pc-c; ip addr add 203.0.113.9/24 dev pc-c label pc-c:1");
    let svc = link("pc-svc0").unwrap();
    assert!(svc.up && !svc.loopback && svc.master.is_none());
    assert_eq!(svc.addresses, [ADDRESS]);
    let master = link("pc-a").unwrap().master.unwrap();
    assert_eq!((master.kind.as_str(), master.name.unwrap().as_str()), ("bridge", "pc-br0"));
    let other = link("pc-other").unwrap();
    assert_eq!((other.name.as_str(), other.up), ("pc-c", false));
    assert_eq!(other.addresses, [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 9)]);
    assert!(link("lo").unwrap().loopback);
    assert_eq!(link("pc-nobody"), None);
}

/// What a lease hears on port 67 of its interface while a socket of another lease is moved there.
fn heard_beside(peer: &Peer, other: Dhcp, moved_to: Option<&[u8]>) -> [usize; 3] {
    // As the whole firewall of NixOS does it.
    sh(&NIXOS.replace("new : jump", "untracked : jump input-allow, new : jump"));
    let other = Opening { dhcp: other, ..opening() };
    let own = Opening {
        mark: Marks::default().lease(NonZeroU8::new(8).unwrap()),
        interface: InterfaceName::parse("pc-svc1").unwrap(),
        index: link("pc-svc1").unwrap().index,
        ..opening()
    };
    let mut firewall = Nftables::new(&Config::default()).unwrap();
    let moved = take(&mut sockets::bind(&other, ADDRESS).unwrap(), "dhcp");
    let here = Ipv4Addr::new(198, 51, 100, 1);
    let mut bound = sockets::bind(&own, here).unwrap();
    let dhcp = take(&mut bound, "dhcp");
    for opening in [&other, &own] {
        firewall.open(opening).unwrap();
    }
    let heard = || {
        send(peer, "198.51.100.2", "255.255.255.255:67", 3);
        received(&dhcp, 3)
    };
    let before = heard();
    moved.connect("192.0.2.2:9").unwrap();
    rustix::net::connect_unspec(&moved).unwrap();
    SockRef::from(&moved).bind_device(moved_to).unwrap();
    let meanwhile = heard();
    firewall.close(&other).unwrap();
    let afterwards = heard();
    drop((moved, bound));
    [before, meanwhile, afterwards]
}

/// Without its device, or on the other lease's interface: neither while its own lease is open nor after.
#[test]
fn p9_a_socket_of_another_lease_takes_no_broadcast() {
    for other in [Dhcp::Proxy, Dhcp::Shared] {
        for moved_to in [None, Some(b"pc-svc1".as_slice())] {
            let heard = move || Some(heard_beside(&two_wires()?, other, moved_to));
            let heard = thread::spawn(heard).join().unwrap();
            assert!(heard.is_none_or(|heard| heard == [3; 3]), "{other:?} {moved_to:?}: {heard:?}");
        }
    }
}

/// Another DHCP server of the host, on another interface.
#[test]
fn p9_a_moved_socket_does_not_make_a_server_of_the_host_deaf() {
    let Some(peer) = two_wires() else { return };
    let server = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    server.bind_device(Some(b"pc-svc1")).unwrap();
    server.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 67)).into()).unwrap();
    let server = UdpSocket::from(server);
    let mut firewall = Nftables::new(&Config::default()).unwrap();
    let opening = opening();
    let moved = take(&mut sockets::bind(&opening, ADDRESS).unwrap(), "dhcp");
    firewall.open(&opening).unwrap();
    let heard = || {
        send(&peer, "198.51.100.2", "255.255.255.255:67", 3);
        received(&server, 3)
    };
    assert_eq!(heard(), 3);
    moved.connect("192.0.2.2:9").unwrap();
    rustix::net::connect_unspec(&moved).unwrap();
    SockRef::from(&moved).bind_device(Some(b"pc-svc1")).unwrap();
    assert_eq!(heard(), 3, "moved there while its lease is open");
    firewall.close(&opening).unwrap();
    assert_eq!(heard(), 3, "its lease has ended");
    assert_eq!(received(&moved, 0), 0);
    // At home, without a lease, it is deaf.
    rustix::net::connect_unspec(&moved).unwrap();
    SockRef::from(&moved).bind_device(Some(b"pc-svc0")).unwrap();
    send(&peer, "192.0.2.2", "255.255.255.255:67", 3);
    assert_eq!(received(&moved, 0), 0);
    let listing = sh("nft list table inet portcullis");
    assert!(listing.contains("type mark . iface_index"), "{listing}");
}
