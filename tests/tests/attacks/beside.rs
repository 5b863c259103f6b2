//! The sockets of a lease beside another DHCP server of this host: a shared one, a raw one.

use super::*;

both_flavours!("python3", "setpriv";
    p8_a_shared_socket_gives_no_more_than_another,
    p8_a_raw_socket_hears_and_sends_nothing,
    p8_the_boot_server_sends_boot_answers_alone_from_the_shared_port,
);

/// The socket beside another server, made as the helper makes it.
fn p8_a_shared_socket_gives_no_more_than_another(flavour: Flavour) {
    let evil = "
index = socket.if_nametoindex('eth1')
for port in [53, 69, 5000]:
    quietly(lambda: s.sendto(reply(b'EVIL'), ('192.0.2.2', port)))
for kind in [2, 5]:
    quietly(lambda: s.sendto(reply(b'EVIL', STRANGER, kind), EVERYBODY))
quietly(lambda: s.sendto(reply(b'EVIL', kind=6), EVERYBODY))
quietly(lambda: s.sendto(reply(b'EVIL', op=1), ('192.0.2.2', 67)))
quietly(lambda: s.sendmsg([reply(b'EVIL')], pktinfo(index, '0.0.0.0'), 0, ('198.51.100.2', 68)))
s.connect(LAN); unspec(s)
s.setsockopt(socket.SOL_SOCKET, 25, b'eth1\\0')
quietly(lambda: s.sendto(reply(b'EVIL'), ('198.51.100.2', 68)))";
    let cases = [(false, Way::Inherited), (true, Way::Inherited), (true, Way::Sent)];
    for (guarded, way) in cases {
        let scene = Scene::new(Some(flavour));
        let opening = Opening { dhcp: Dhcp::Shared, ..scene.opening(1) };
        let mut firewall = scene.firewall();
        if guarded {
            scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
        }
        let bind = || sockets::bind(&opening, HOST).unwrap().handed.remove(0).1;
        let socket = scene.host.run(bind).unwrap();
        let script = format!("{TWIN}\n{evil}");
        let seen = watch(&scene, || run(&scene.host, way, socket, &script));
        let case = format!("{flavour:?}, guarded: {guarded}, {way:?}");
        assert!(contains(&seen, b"TWIN"), "{case}");
        assert_eq!(contains(&seen, b"EVIL"), !guarded, "{case}");
    }
}

/// Every way of sending that a raw socket has, before and after what its holder may do with it.
const RAW: &str = r"
evil = reply(b'EVIL')
datagram = struct.pack('!HHHH', 67, 68, 8 + len(evil), 0) + evil
def header(to):
    ends = socket.inet_aton('192.0.2.77') + socket.inet_aton(to)
    return struct.pack('!BBHHHBBH', 0x45, 0, 0, 0, 0, 64, 17, 0) + ends
def ways(to):
    for included in [0, 1]:
        s.setsockopt(socket.IPPROTO_IP, 3, included)
        m = header(to) + datagram if included else datagram
        for flags in [0, 0x4, 0x8000]:
            quietly(lambda: s.sendto(m, flags, (to, 0)))
        for number in [1, 17, 255]:
            protocol = [(socket.IPPROTO_IP, 52, struct.pack('=i', number))]
            quietly(lambda: s.sendmsg([m], protocol, 0, (to, 0)))
        for interface in ['eth0', 'eth1']:
            index = socket.if_nametoindex(interface)
            quietly(lambda: s.sendmsg([m], pktinfo(index, '0.0.0.0'), 0, (to, 0)))
        quietly(lambda: s.connect((to, 0)))
        quietly(lambda: s.send(m))
        quietly(lambda: os.write(s.fileno(), m))
        r, w = os.pipe(); os.write(w, m)
        quietly(lambda: os.splice(r, s.fileno(), len(m)))
        unspec(s)
def all_ways():
    for to in ['192.0.2.2', '255.255.255.255', '198.51.100.2', '224.0.0.1']: ways(to)
s.setsockopt(socket.SOL_SOCKET, 6, 1)
all_ways()
# Another policy, which lets everything pass; also as root of a user namespace of its own.
allow = bytearray(168); allow[40] = socket.AF_INET; allow[56:88] = b'\xff' * 32; allow[160] = 1
for _ in range(2):
    quietly(lambda: s.setsockopt(socket.IPPROTO_IP, 17, bytes(allow)))
    quietly(lambda: s.setsockopt(socket.IPPROTO_IP, 17, b''))
    all_ways()
    ctypes.CDLL(None).unshare(0x10000000)
for device in [b'eth1\0', b'\0', b'eth0\0']:
    quietly(lambda: s.setsockopt(socket.SOL_SOCKET, 25, device))
    quietly(lambda: s.bind(('0.0.0.0', 0)))
    all_ways()
quietly(lambda: s.shutdown(socket.SHUT_RD))
all_ways()";

/// What keeps it silent is its own, and no guard: it stays so when the helper and its table are gone.
fn p8_a_raw_socket_hears_and_sends_nothing(flavour: Flavour) {
    let twin = "
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.sendto(b'TWIN', ('192.0.2.2', 5000))";
    let cases = [
        (None, Way::Inherited),
        (Some(true), Way::Inherited),
        (Some(true), Way::Sent),
        (Some(false), Way::Sent),
    ];
    for (guarded, way) in cases {
        let scene = Scene::new(Some(flavour));
        let opening = Opening { dhcp: Dhcp::Raw, ..scene.opening(1) };
        let mut firewall = scene.firewall();
        let make = || match guarded {
            // Any raw socket, to see that the attack is one.
            None => {
                let socket = Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::UDP));
                let socket = socket.unwrap();
                socket.bind_device(Some(b"eth0")).unwrap();
                (socket.into(), None)
            }
            Some(_) => {
                let mut bound = sockets::bind(&opening, HOST).unwrap();
                (bound.handed.remove(0).1, bound.ear)
            }
        };
        let (socket, ear): (OwnedFd, _) = scene.host.run(make).unwrap();
        if guarded == Some(true) {
            scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
        }
        let seen = watch(&scene, || run(&scene.host, way, socket, &format!("{RAW}{twin}")));
        let case = format!("{flavour:?}, guarded: {guarded:?}, {way:?}");
        assert!(contains(&seen, b"TWIN"), "{case}");
        assert_eq!(contains(&seen, b"EVIL"), guarded.is_none(), "{case}");
        drop(ear);
    }
}

/// Where a raw socket hears, the boot server's broadcasts leave from port 67, and are then held against
/// what may leave from there.
fn p8_the_boot_server_sends_boot_answers_alone_from_the_shared_port(flavour: Flavour) {
    let twin = "
s.sendto(reply(b'TWIN'), EVERYBODY)
s.sendto(reply(b'UNICAST', kind=5), LAN)";
    let evil = r"
index = socket.if_nametoindex('eth1')
for kind in [2, 5]:
    quietly(lambda: s.sendto(reply(b'EVIL', STRANGER, kind), EVERYBODY))
quietly(lambda: s.sendto(reply(b'EVIL', kind=6), EVERYBODY))
quietly(lambda: s.sendto(reply(b'EVIL', op=1), EVERYBODY))
quietly(lambda: s.sendto(reply(b'EVIL', cookie=bytes(4)), EVERYBODY))
quietly(lambda: s.sendto(reply(b'EVIL'), ('255.255.255.255', 5000)))
quietly(lambda: s.sendmsg([reply(b'EVIL')], pktinfo(index, '0.0.0.0'), 0, EVERYBODY))
s.setsockopt(socket.IPPROTO_UDP, 103, 300)
quietly(lambda: s.sendto(reply(b'', size=300) + reply(b'EVIL', STRANGER, size=300), EVERYBODY))
s.setsockopt(socket.IPPROTO_UDP, 103, 0)
s.setsockopt(socket.IPPROTO_IP, 10, 0)
quietly(lambda: s.sendto(reply(b'EVIL', size=3000), EVERYBODY))
s.setsockopt(socket.IPPROTO_IP, 4, bytes([1, 1, 1, 0]))
quietly(lambda: s.sendto(reply(b'EVIL'), EVERYBODY))";
    for (guarded, way) in [(false, Way::Inherited), (true, Way::Inherited), (true, Way::Sent)] {
        let scene = Scene::new(Some(flavour));
        let opening = Opening { dhcp: Dhcp::Raw, ..scene.opening(1) };
        let mut firewall = scene.firewall();
        if guarded {
            scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
        }
        let make = || scene::udp(opening.mark.value(), SocketAddrV4::new(HOST, 4011));
        let socket = scene.host.run(make).unwrap().into();
        let seen = watch(&scene, || run(&scene.host, way, socket, &format!("{twin}{evil}")));
        let case = format!("{flavour:?}, guarded: {guarded}, {way:?}");
        // The ports, behind Ethernet's 14 octets and IPv4's 20.
        let ports = |what: &[u8]| {
            let frame = seen.iter().find(|frame| contains(&[frame.to_vec()], what));
            frame.map(|frame| frame[34..38].to_vec())
        };
        let shared: &[u8] = if guarded { &[0, 67, 0, 68] } else { &[0x0f, 0xab, 0, 68] };
        assert_eq!(ports(b"TWIN").as_deref(), Some(shared), "{case}");
        assert_eq!(ports(b"UNICAST").as_deref(), Some(&[0x0f, 0xab, 0, 68][..]), "{case}");
        assert_eq!(contains(&seen, b"EVIL"), !guarded, "{case}");
    }
}
