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
#[path = "attacks/beside.rs"]
mod beside;
#[path = "attacks/datagrams.rs"]
mod datagrams;
#[path = "attacks/full.rs"]
mod full;
#[path = "attacks/holder.rs"]
mod holder;

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
