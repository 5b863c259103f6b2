//! What an unprivileged holder of a lease's sockets tries, one test per attack, behind both flavours
//! of NixOS' firewall.
//!
//! The attacker is a process without any capability that has one socket of the lease: as its holder
//! (uid 65534), who inherited it, or as somebody else's process (uid 65533), which was sent it over
//! SCM_RIGHTS by a holder that is gone. A listener on each network records every frame; the attack's message carries EVIL and
//! must be in none. The same socket's legitimate message carries TWIN and must be there: a test
//! whose path is broken fails. Each attack also runs before the lease is opened, where nothing
//! guards the socket and EVIL does arrive (or the kernel itself refuses: then that is asserted).

// A test speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

#[macro_use]
mod scene;

use std::{
    net::{SocketAddr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use portcullis_helper::{
    firewall::{Dhcp, Firewall, Opening},
    sockets,
};
use portcullis_lab::{
    netns::{CROSSING, Netns},
    nixos::Flavour,
};
use scene::{HOST, Scene};
use socket2::{Domain, Socket, Type};

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
    p8_another_mark,
    p8_a_locked_filter_stays,
    p8_an_accepted_connection_connects_elsewhere,
    p8_ipv6,
    p8_a_lease_that_has_ended_is_mute,
    p8_full_dhcp_from_its_port_alone,
    p8_addresses_are_handed_out_with_full_dhcp_alone,
    p8_a_shared_socket_gives_no_more_than_another,
    p8_a_raw_socket_hears_and_sends_nothing,
    p8_the_boot_server_sends_boot_answers_alone_from_the_shared_port,
);

/// What every attacker knows; `reply` makes a BOOTP reply. The socket will be `s`.
const PRELUDE: &str = r"
import ctypes, os, socket, struct, sys
caps = [l.split()[1] for l in open('/proc/self/status') if l.startswith('Cap') and 'Bnd' not in l]
assert os.getuid() > 65000 and all(int(c, 16) == 0 for c in caps), caps
def unspec(s):
    ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)
def reply(tag, yiaddr=bytes(4), kind=2, size=300, op=2, cookie=b'\x63\x82\x53\x63'):
    m = bytes([op, 1, 6, 0]) + bytes(12) + yiaddr + bytes(24) + tag.ljust(192, b'\0') + cookie
    return (m + bytes([53, 1, kind, 255])).ljust(size, b'\0')
def pktinfo(index, source):
    return [(socket.IPPROTO_IP, 8, struct.pack('=I4s4s', index, socket.inet_aton(source), bytes(4)))]
def quietly(attempt):
    try: attempt()
    except OSError as e: print('refused:', e.errno)
STRANGER = bytes([192, 0, 2, 99])
LAN = ('192.0.2.2', 68)
EVERYBODY = ('255.255.255.255', 68)
";

/// How the attacker came by the socket.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// It is the holder.
    Inherited,
    /// The holder sent it.
    Sent,
}

impl Way {
    const BOTH: [Self; 2] = [Self::Inherited, Self::Sent];

    /// The attacker's user, and how it takes the socket.
    fn takes(self) -> (&'static str, &'static str) {
        match self {
            Self::Inherited => ("65534", "s = socket.socket(fileno=0)"),
            Self::Sent => (
                "65533",
                r"
l = socket.socket(socket.AF_UNIX)
l.bind('\0receiver')
l.listen()
s = socket.socket(fileno=socket.recv_fds(l.accept()[0], 1, 1)[1][0])",
            ),
        }
    }
}

/// The holder that sends its socket to another process, and ends.
const SENDER: &str = r"
import socket, time
c = socket.socket(socket.AF_UNIX)
for _ in range(1000):
    try: c.connect('\0receiver')
    except OSError: time.sleep(0.01)
    else: break
socket.send_fds(c, [b's'], [0])";

/// A legitimate OFFER by broadcast, as proxy DHCP sends it.
const TWIN: &str = "s.sendto(reply(b'TWIN'), EVERYBODY)";

/// Where programs are that another user may run, too.
const PATH: &str = "/run/current-system/sw/bin:/usr/local/bin:/usr/bin:/bin";

/// Which socket the attacker is given.
#[derive(Clone, Copy)]
enum Given {
    Dhcp,
    BootServer,
    Tftp,
}

/// What becomes of the attack without a lease's guard.
#[derive(Clone, Copy, PartialEq)]
enum Unguarded {
    /// It reaches somebody: it is the guard that stops it.
    Arrives,
    /// The kernel refuses it by itself.
    Refused,
}

/// Runs attack and twin: without the guard, and with it, by its holder and by a process that was sent it.
fn attack(flavour: Flavour, given: Given, unguarded: Unguarded, twin: &str, evil: &str) {
    for (guarded, way) in [(false, Way::Inherited), (true, Way::Inherited), (true, Way::Sent)] {
        let scene = Scene::new(Some(flavour));
        let opening = scene.opening(1);
        let mut firewall = scene.firewall();
        if guarded {
            scene.host.run(|| firewall.open(&opening)).unwrap().unwrap();
        }
        let sockets = scene.sockets(&opening);
        let socket: OwnedFd = match given {
            Given::Dhcp => sockets.dhcp.into(),
            Given::BootServer => sockets.boot_server.into(),
            Given::Tftp => sockets.tftp.into(),
        };
        let seen = watch(&scene, || run(&scene.host, way, socket, &format!("{twin}\n{evil}")));
        let case = format!("{flavour:?}, guarded: {guarded}, {way:?}");
        assert!(contains(&seen, b"TWIN"), "{case}: the twin is lost");
        let expected = !guarded && unguarded == Unguarded::Arrives;
        assert_eq!(contains(&seen, b"EVIL"), expected, "{case}");
    }
}

/// The attacker: an unprivileged process with the socket. Returns what it says.
fn run(host: &Netns, way: Way, socket: OwnedFd, script: &str) -> String {
    let (user, takes) = way.takes();
    let script = format!("{PRELUDE}{takes}\ns.setblocking(True)\n{script}");
    let mut attacker = unprivileged(user, &script);
    let output = match way {
        Way::Inherited => {
            attacker.stdin(Stdio::from(socket));
            host.run(|| attacker.output()).unwrap().unwrap()
        }
        Way::Sent => {
            let mut sender = unprivileged("65534", SENDER);
            sender.stdin(Stdio::from(socket));
            let both = move || {
                let mut sending = sender.spawn()?;
                // Its copy of the socket was the command's.
                drop(sender);
                let output = attacker.stdin(Stdio::null()).output();
                sending.wait()?;
                output
            };
            host.run(both).unwrap().unwrap()
        }
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    said
}

fn unprivileged(user: &str, script: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs"])
        .args(["--inh-caps=-all", "--bounding-set=-all", "--pdeathsig", "KILL", "python3", "-c"])
        .arg(script)
        .env("PATH", PATH);
    command
}

/// Every frame that comes to either network while `work` is done and shortly after.
fn watch<T>(scene: &Scene, work: impl FnOnce() -> T) -> Vec<Vec<u8>> {
    let ears = [&scene.lan, &scene.other].map(|netns| {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap()
        };
        netns.run(open).unwrap()
    });
    work();
    let end = Instant::now() + CROSSING;
    let mut frames = Vec::new();
    let mut buffer = vec![0; 65536];
    while Instant::now() < end {
        for ear in &ears {
            while let Ok(length) = recv(ear.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                frames.push(buffer[..length].to_vec());
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    frames
}

fn contains(frames: &[Vec<u8>], what: &[u8]) -> bool {
    let within = |frame: &Vec<u8>| frame.windows(what.len()).any(|window| window == what);
    frames.iter().any(within)
}

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
