//! What a holder does to its socket and its lease: marks, filters, connections, an end.

use super::*;

both_flavours!("python3", "setpriv";
    p8_another_mark,
    p8_a_locked_filter_stays,
    p8_an_accepted_connection_connects_elsewhere,
    p8_a_lease_that_has_ended_is_mute,
);

fn p8_another_mark(flavour: Flavour) {
    let evil = "
def says(name, attempt):
    try: attempt()
    except PermissionError: s.sendto(reply(b'TWIN'), EVERYBODY)
    else: quietly(lambda: s.sendto(reply(b'EVIL'), EVERYBODY))
for mark in [0, 0x5a000002]:
    says('mark', lambda: s.setsockopt(socket.SOL_SOCKET, 36, mark))
# The mark of one packet may be asked for, too; it is not what the guard looks at.
quietly(lambda: s.sendmsg([reply(b'EVIL', STRANGER)], [(socket.SOL_SOCKET, 36, struct.pack('=I', 0))], 0, LAN))";
    attack(flavour, Given::Dhcp, Unguarded::Refused, TWIN, evil);
}

fn p8_a_locked_filter_stays(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
    let dhcp = scene.sockets(&opening).dhcp;
    // As the helper does it: a classic filter (here: one that takes everything), then the lock.
    let lock = "
import ctypes, socket, struct
s = socket.socket(fileno=0)
code = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0xffffffff))
s.setsockopt(socket.SOL_SOCKET, 26, struct.pack('@HP', 1, ctypes.addressof(code)))
s.setsockopt(socket.SOL_SOCKET, 44, 1)";
    let mut command = Command::new("python3");
    command.args(["-c", lock]).stdin(OwnedFd::from(dhcp.try_clone().unwrap()));
    assert!(scene.host.run(|| command.status()).unwrap().unwrap().success());
    for way in Way::BOTH {
        let said = run(
            &scene.host,
            way,
            dhcp.try_clone().unwrap().into(),
            "
code = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0xffffffff))
quietly(lambda: s.setsockopt(socket.SOL_SOCKET, 27, 0))
quietly(lambda: s.setsockopt(socket.SOL_SOCKET, 26, struct.pack('@HP', 1, ctypes.addressof(code))))
quietly(lambda: s.setsockopt(socket.SOL_SOCKET, 44, 0))",
        );
        assert_eq!(said, "refused: 1\n".repeat(3), "{way:?}");
    }
}

fn p8_an_accepted_connection_connects_elsewhere(flavour: Flavour) {
    for (guarded, way) in [(false, Way::Inherited), (true, Way::Inherited), (true, Way::Sent)] {
        let scene = Scene::new(Some(flavour));
        let opening = scene.opening(1);
        let mut firewall = scene.firewall();
        let sockets = scene.sockets(&opening);
        scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
        let connect = || std::net::TcpStream::connect((HOST, scene::HTTP)).unwrap();
        let machine = scene.lan.run(connect).unwrap();
        let (accepted, _) = sockets.http.accept().unwrap();
        let elsewhere = scene.lan.run(|| std::net::TcpListener::bind("192.0.2.2:80").unwrap());
        let elsewhere = elsewhere.unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        if !guarded {
            // Without its holder's guard: the helper is gone.
            drop(firewall);
        }
        let script = "
s.sendall(b'TWIN')
unspec(s)
s.bind(('192.0.2.1', 64172))
s.settimeout(0.3)
quietly(lambda: s.connect(('192.0.2.2', 80)))";
        let seen = watch(&scene, || {
            // The listener keeps the port otherwise.
            drop(sockets.http);
            run(&scene.host, way, accepted.into(), script)
        });
        assert!(contains(&seen, b"TWIN"), "{flavour:?}");
        assert_eq!(elsewhere.accept().is_err(), guarded, "{flavour:?}");
        drop(machine);
    }
}

fn p8_a_lease_that_has_ended_is_mute(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = scene.opening(1);
    let mut firewall = scene.firewall();
    scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
    let sockets = scene.sockets(&opening);
    let given = || OwnedFd::from(sockets.dhcp.try_clone().unwrap());
    let seen = watch(&scene, || run(&scene.host, Way::Sent, given(), TWIN));
    assert!(contains(&seen, b"TWIN"), "{flavour:?}");
    scene.host.run(|| firewall.close(&opening)).unwrap().unwrap();
    let evil = "quietly(lambda: s.sendto(reply(b'EVIL'), EVERYBODY))";
    for way in Way::BOTH {
        let seen = watch(&scene, || run(&scene.host, way, given(), evil));
        assert!(!contains(&seen, b"EVIL"), "{flavour:?}, {way:?}");
    }
    // Another lease, even on the same interface, does not give it its voice back.
    let next = scene.opening(2);
    scene.host.run(|| firewall.open(&next)).unwrap().unwrap();
    for way in Way::BOTH {
        let seen = watch(&scene, || run(&scene.host, way, given(), evil));
        assert!(!contains(&seen, b"EVIL"), "{flavour:?}, {way:?}");
    }
    drop(sockets.tftp);
    let other = scene.host.run(|| scene::udp(next.mark.value(), SocketAddrV4::new(HOST, 69)));
    let twin = "s.sendto(b'TWIN', ('192.0.2.2', 5000))";
    let seen = watch(&scene, || run(&scene.host, Way::Inherited, other.unwrap().into(), twin));
    assert!(contains(&seen, b"TWIN"), "{flavour:?}");
}
