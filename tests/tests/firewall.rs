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
/// Longest wait for what arrives, on a busy machine.
const ARRIVES: Duration = Duration::from_secs(10);

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

/// Does something with the helper's firewall, in the host.
macro_rules! inside {
    ($scene:expr, $work:expr) => {
        $scene.host.run(|| $work).unwrap()
    };
}

// After `inside!`, which they use.
#[path = "firewall/beside.rs"]
mod beside;
#[path = "firewall/changes.rs"]
mod changes;
#[path = "firewall/doors.rs"]
mod doors;
#[path = "firewall/ends.rs"]
mod ends;
#[path = "firewall/named.rs"]
mod named;
#[path = "firewall/others.rs"]
mod others;
