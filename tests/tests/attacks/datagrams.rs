//! Where a datagram goes, from where, and what is in it: what the output guard admits, and no more.

use super::*;

both_flavours!("python3", "setpriv";
    p8_disconnect_and_bind_to_another_device,
    p8_packet_info_names_another_interface,
    p8_packet_info_names_a_foreign_source,
    p8_segmentation_offload_smuggles_a_second_message,
    p8_a_datagram_that_must_be_fragmented,
    p8_a_large_datagram_from_the_tftp_port,
    p8_ip_options,
    p8_an_address_from_the_boot_server_port,
    p8_an_address_from_the_dhcp_port,
    p8_a_nak,
    p8_a_message_without_cookie,
    p8_a_request_in_the_name_of_a_client,
    p8_the_dhcp_port_to_any_other_port,
    p8_the_tftp_port_to_dhcp_clients,
    p8_an_unmarked_socket_to_dhcp_clients,
    p8_to_the_host_itself,
    p8_ipv6,
);

fn p8_disconnect_and_bind_to_another_device(flavour: Flavour) {
    let evil = "
s.connect(LAN); unspec(s)
s.setsockopt(socket.SOL_SOCKET, 25, b'eth1\\0')
quietly(lambda: s.sendto(reply(b'EVIL'), ('198.51.100.2', 68)))
quietly(lambda: s.sendto(reply(b'EVIL'), EVERYBODY))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_packet_info_names_another_interface(flavour: Flavour) {
    let evil = "
index = socket.if_nametoindex('eth1')
quietly(lambda: s.sendmsg([reply(b'EVIL')], pktinfo(index, '0.0.0.0'), 0, ('198.51.100.2', 68)))
s.connect(LAN); unspec(s)
quietly(lambda: s.sendmsg([reply(b'EVIL')], pktinfo(index, '0.0.0.0'), 0, ('198.51.100.2', 68)))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_packet_info_names_a_foreign_source(flavour: Flavour) {
    let evil = "
index = socket.if_nametoindex('eth0')
s.setsockopt(socket.IPPROTO_IP, 15, 1)
for source in ['192.0.2.77', '198.51.100.1', '127.0.0.1']:
    quietly(lambda: s.sendmsg([reply(b'EVIL')], pktinfo(index, source), 0, LAN))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_segmentation_offload_smuggles_a_second_message(flavour: Flavour) {
    let evil = "
for size in [240, 250, 300]:
    s.setsockopt(socket.IPPROTO_UDP, 103, size)
    quietly(lambda: s.sendto(reply(b'', size=size) + reply(b'EVIL', STRANGER, size=size), LAN))
    for first in [size, 2 * size]:
        quietly(lambda: s.sendto(bytes(first) + reply(b'EVIL', STRANGER, size=size), LAN))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_a_datagram_that_must_be_fragmented(flavour: Flavour) {
    let evil = "
s.setsockopt(socket.IPPROTO_IP, 10, 0)
quietly(lambda: s.sendto(reply(b'EVIL', size=3000), LAN))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_a_large_datagram_from_the_tftp_port(flavour: Flavour) {
    let twin = "s.sendto(b'TWIN'.ljust(1472, b'\\0'), ('192.0.2.2', 5000))";
    let evil = "
s.setsockopt(socket.IPPROTO_IP, 10, 0)
quietly(lambda: s.sendto(b'EVIL'.ljust(1473, b'\\0'), ('192.0.2.2', 5000)))";
    attack(flavour, Given::Tftp, Unguarded::Arrives, twin, evil);
}

fn p8_ip_options(flavour: Flavour) {
    let evil = "
s.setsockopt(socket.IPPROTO_IP, 4, bytes([1, 1, 1, 0]))
quietly(lambda: s.sendto(reply(b'EVIL'), LAN))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_an_address_from_the_boot_server_port(flavour: Flavour) {
    let twin = "s.sendto(reply(b'TWIN', kind=5), LAN)";
    let evil = "
for port in [67, 68, 4011]:
    quietly(lambda: s.sendto(reply(b'EVIL', STRANGER, kind=5), ('192.0.2.2', port)))";
    attack(flavour, Given::BootServer, Unguarded::Arrives, twin, evil);
}

fn p8_an_address_from_the_dhcp_port(flavour: Flavour) {
    let evil = "
for kind in [2, 5]:
    for to in [LAN, EVERYBODY, ('192.0.2.2', 67)]:
        quietly(lambda: s.sendto(reply(b'EVIL', STRANGER, kind), to))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_a_nak(flavour: Flavour) {
    let evil = "quietly(lambda: s.sendto(reply(b'EVIL', kind=6), EVERYBODY))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_a_message_without_cookie(flavour: Flavour) {
    let evil = "quietly(lambda: s.sendto(reply(b'EVIL', cookie=bytes(4)), EVERYBODY))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_a_request_in_the_name_of_a_client(flavour: Flavour) {
    let evil = "quietly(lambda: s.sendto(reply(b'EVIL', op=1), ('192.0.2.2', 67)))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_the_dhcp_port_to_any_other_port(flavour: Flavour) {
    let evil = "
for port in [53, 69, 4011, 5000]:
    quietly(lambda: s.sendto(reply(b'EVIL'), ('192.0.2.2', port)))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_the_tftp_port_to_dhcp_clients(flavour: Flavour) {
    let twin = "s.sendto(b'TWIN', ('192.0.2.2', 5000))";
    let evil = "
for to in [LAN, EVERYBODY]:
    quietly(lambda: s.sendto(reply(b'EVIL', STRANGER), to))";
    attack(flavour, Given::Tftp, Unguarded::Arrives, twin, evil);
}

fn p8_an_unmarked_socket_to_dhcp_clients(flavour: Flavour) {
    let evil = "
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
u.setsockopt(socket.SOL_SOCKET, 25, b'eth0\\0')
u.sendto(reply(b'TWIN'), ('192.0.2.2', 5000))
for to in [LAN, EVERYBODY]:
    quietly(lambda: u.sendto(reply(b'EVIL', STRANGER), to))";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, "", evil);
}

fn p8_to_the_host_itself(flavour: Flavour) {
    // Nobody but the host sees these packets: the attacker listens himself, and tells the LAN.
    let evil = "
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(('0.0.0.0', 5000)); u.settimeout(0.2)
t = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(LAN); unspec(s)
for to in ['127.0.0.1', '192.0.2.1', '198.51.100.1']:
    quietly(lambda: s.sendto(b'hello', (to, 5000)))
    try:
        u.recv(100)
        t.sendto(b'EVIL', ('192.0.2.2', 5000))
    except TimeoutError: pass";
    attack(flavour, Given::Dhcp, Unguarded::Arrives, TWIN, evil);
}

fn p8_ipv6(flavour: Flavour) {
    for (guarded, way) in [(false, Way::Inherited), (true, Way::Inherited), (true, Way::Sent)] {
        let scene = Scene::new(Some(flavour));
        let opening = scene.opening(1);
        let mut firewall = scene.firewall();
        if guarded {
            scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
        }
        let make = || {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
            socket.bind_device(Some(b"eth0")).unwrap();
            socket.set_mark(opening.mark.value()).unwrap();
            socket.bind(&"[::]:67".parse::<SocketAddr>().unwrap().into()).unwrap();
            OwnedFd::from(socket)
        };
        let socket = scene.host.run(make).unwrap();
        let script = "
for to in ['2001:db8::2', 'ff02::1%eth0']:
    for port in [67, 68, 547]:
        quietly(lambda: s.sendto(reply(b'EVIL'), (to, port)))
s.sendto(reply(b'TWIN'), ('::ffff:192.0.2.2', 68))";
        let seen = watch(&scene, || run(&scene.host, way, socket, script));
        assert!(contains(&seen, b"TWIN"), "{flavour:?}");
        assert_eq!(contains(&seen, b"EVIL"), !guarded, "{flavour:?}");
    }
}
