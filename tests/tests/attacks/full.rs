//! Full DHCP: addresses are handed out where that was granted, from port 67, and nowhere else.

use super::*;

both_flavours!("python3", "setpriv";
    p8_full_dhcp_from_its_port_alone,
    p8_addresses_are_handed_out_with_full_dhcp_alone,
);

/// Full DHCP is granted: addresses and refusals leave from port 67, and from no other.
fn p8_full_dhcp_from_its_port_alone(flavour: Flavour) {
    let scene = Scene::new(Some(flavour));
    let opening = Opening { dhcp: Dhcp::Full, ..scene.opening(1) };
    let mut firewall = scene.firewall();
    scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
    let sockets = scene.sockets(&opening);
    let [dhcp, boot_server, tftp] =
        [sockets.dhcp, sockets.boot_server, sockets.tftp].map(OwnedFd::from);
    let seen = watch(&scene, || {
        let free = "
s.sendto(reply(b'OFFERED', STRANGER, kind=2), EVERYBODY)
s.sendto(reply(b'LEASED', STRANGER, kind=5), LAN)
s.sendto(reply(b'REFUSED', kind=6), EVERYBODY)
quietly(lambda: s.sendto(reply(b'EVIL', STRANGER, op=1), ('192.0.2.2', 67)))
quietly(lambda: s.sendto(reply(b'EVIL', STRANGER), ('192.0.2.2', 5000)))";
        run(&scene.host, Way::Inherited, dhcp, free);
        let bound = "
for kind in [2, 5, 6]:
    quietly(lambda: s.sendto(reply(b'EVIL', STRANGER, kind=kind), LAN))
quietly(lambda: s.sendto(reply(b'EVIL', kind=6), LAN))";
        run(&scene.host, Way::Sent, tftp, bound);
        run(
            &scene.host,
            Way::Sent,
            boot_server,
            &format!("{bound}\ns.sendto(reply(b'TWIN', kind=5), LAN)"),
        );
    });
    for expected in ["OFFERED", "LEASED", "REFUSED", "TWIN"] {
        assert!(contains(&seen, expected.as_bytes()), "{flavour:?}: {expected}");
    }
    assert!(!contains(&seen, b"EVIL"), "{flavour:?}");
}

/// A DHCP server of a few lines, for one client. Ends when it has renewed the client's lease, or has
/// offered an address LIMIT times.
const SERVER: &str = r"
HOST = socket.inet_aton('192.0.2.1')
offers = 0
while offers < LIMIT:
    q, peer = s.recvfrom(2048)
    if q[:1] != b'\1': continue
    options, at = {}, 240
    while at < len(q) and q[at] != 255:
        if q[at] == 0: at += 1; continue
        options[q[at]] = q[at + 2:at + 2 + q[at + 1]]; at += 2 + q[at + 1]
    discover, renewal = options[53] == b'\1', q[12:16] != bytes(4)
    m = b'\2\1\6\0' + q[4:8] + bytes(4) + q[12:16] + socket.inet_aton('192.0.2.50') + HOST
    m += bytes(4) + q[28:44] + bytes(192) + b'\x63\x82\x53\x63' + bytes([53, 1, 2 if discover else 5])
    m += b'\x36\4' + HOST + b'\x33\4' + struct.pack('!I', 4) + b'\1\4\xff\xff\xff\0\xff'
    # Nobody without a privilege can answer an address that no ARP answer was seen from: all are told.
    quietly(lambda: s.sendto(m.ljust(300, b'\0'), peer if renewal else EVERYBODY))
    offers += discover
    if renewal:
        assert peer[0] == '192.0.2.50', peer
        print('renewed')
        break
";

/// A real DHCP client and a server on the lease's socket: with full DHCP the client has its address,
/// and renews it by unicast; without, nothing of it reaches the client.
fn p8_addresses_are_handed_out_with_full_dhcp_alone(flavour: Flavour) {
    portcullis_lab::need_root!("udhcpc");
    for mode in [Dhcp::Full, Dhcp::Proxy] {
        let scene = Scene::new(Some(flavour));
        let opening = Opening { dhcp: mode, ..scene.opening(1) };
        let mut firewall = scene.firewall();
        scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
        let socket = scene.sockets(&opening).dhcp;
        let script = tempfile::NamedTempFile::new().unwrap();
        let configure = "#!/bin/sh\n[ \"$1\" != bound ] || ip address add $ip/24 dev $interface\n";
        std::fs::write(script.path(), configure).unwrap();
        let script = script.into_temp_path();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, executable).unwrap();
        let script = script.to_str().unwrap();
        let arguments = ["-i", "eth0", "-f", "-t", "100", "-T", "1", "-s", script];
        let client = scene.lan.daemon("udhcpc", &arguments).unwrap();
        let full = mode == Dhcp::Full;
        let limit = if full { 100 } else { 5 };
        let said =
            run(&scene.host, Way::Inherited, socket.into(), &format!("LIMIT = {limit}\n{SERVER}"));
        let addresses = scene.lan.ip("-4 address show dev eth0").unwrap();
        assert_eq!(said.contains("renewed"), full, "{flavour:?}: {said}");
        assert_eq!(addresses.contains("192.0.2.50/24"), full, "{flavour:?}: {addresses}");
        drop(client);
    }
}
