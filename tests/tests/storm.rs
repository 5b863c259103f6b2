//! A lab that is switched on at nine: a thousand machines ask in the same instant. The real helper
//! opens with its own buffers, the kernel's limits are as they come.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt::RcvBufForce},
};
use portcullis_lab::{
    boot_client::{message, option},
    host::Site,
    need_host,
    nixos::Flavour,
    scene::Scene,
};
use socket2::{Domain, Socket, Type};

const MACHINES: u32 = 1000;

/// As long as BIOS ROMs send it.
const LENGTH: usize = 548;

/// The DISCOVER of a machine; its number is in the hardware address and is the transaction.
fn discover(number: u32) -> Vec<u8> {
    let [a, b, c, d] = number.to_be_bytes();
    let class = b"PXEClient:Arch:00000:UNDI:002001";
    let mut bytes = message([2, 0, a, b, c, d], &[(53, &[1]), (60, class), (93, &[0, 0])]);
    bytes[4..8].copy_from_slice(&[a, b, c, d]);
    bytes.resize(LENGTH, 0);
    bytes
}

/// The client is stopped while they ask, so that not one is read before the last is there: none may
/// find the buffer full.
#[test]
fn wire_09_a_thousand_that_ask_in_the_same_instant_are_all_answered() {
    need_host!();
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let client = scene.serve(&["--quiet"]).unwrap();
    let answered = scene.outsider.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into()).unwrap();
        // The machines' own buffers, all in one.
        setsockopt(&socket, RcvBufForce, &(16 << 20)).unwrap();
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

        client.signal(Signal::SIGSTOP).unwrap();
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
        for number in 0..MACHINES {
            socket.send_to(&discover(number), to).unwrap();
        }
        client.signal(Signal::SIGCONT).unwrap();

        let mut answered = BTreeSet::new();
        let mut bytes = [0; 2048];
        while answered.len() < MACHINES as usize {
            let Ok((length, _)) = socket.recv_from(&mut bytes) else { break };
            // The router answers, too, but not what to boot.
            if option(&bytes[..length], 60).as_deref() == Some(b"PXEClient") {
                answered.insert(u32::from_be_bytes(bytes[4..8].try_into().unwrap()));
            }
        }
        answered
    });
    assert_eq!(answered.unwrap().len(), MACHINES as usize);
    drop(client);
    scene.assert_restored(Duration::from_secs(10)).unwrap();
}
