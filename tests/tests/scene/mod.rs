//! A host behind NixOS' firewall, a LAN that it serves, a second network that it does not serve,
//! and the sockets of one lease, made as the helper makes them.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    num::NonZeroU8,
    time::Duration,
};

use portcullis_helper::{
    config::Config,
    firewall::{Dhcp, Nftables, Opening},
    interface::InterfaceName,
    mark::Marks,
};
use portcullis_lab::{
    netns::Netns,
    nixos::{self, Flavour, Settings},
    process::wait_until,
};
use socket2::{Domain, Socket, Type};

/// The host's address on the LAN.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The TCP port of the boot images.
pub const HTTP: u16 = 64172;

/// See the module.
pub struct Scene {
    /// The host: `eth0` to the LAN, `eth1` to the other network.
    pub host: Netns,
    /// A machine on the LAN, 192.0.2.2 and 2001:db8::2 on its `eth0`.
    pub lan: Netns,
    /// A machine on the other network, 198.51.100.2 on its `eth0`.
    pub other: Netns,
}

impl Scene {
    /// Makes it, with a firewall or without.
    pub fn new(flavour: Option<Flavour>) -> Self {
        let [host, lan, other] = ["host", "lan", "other"].map(|name| Netns::new(name).unwrap());
        host.cable("eth0", &lan, "eth0").unwrap();
        host.cable("eth1", &other, "eth0").unwrap();
        for (netns, interface, address) in [
            (&host, "eth0", "192.0.2.1/24"),
            (&host, "eth0", "2001:db8::1/64"),
            (&lan, "eth0", "192.0.2.2/24"),
            (&lan, "eth0", "2001:db8::2/64"),
            (&host, "eth1", "198.51.100.1/24"),
            (&other, "eth0", "198.51.100.2/24"),
        ] {
            netns.address(interface, address).unwrap();
        }
        let scene = Self { host, lan, other };
        if let Some(flavour) = flavour {
            nixos::start(&scene.host, flavour, &Settings::default()).unwrap();
        }
        scene
    }

    /// Everything for proxy DHCP on `eth0`, in this slot.
    pub fn opening(&self, slot: u8) -> Opening {
        Opening {
            mark: Marks::default().lease(NonZeroU8::new(slot).unwrap()),
            interface: InterfaceName::parse("eth0").unwrap(),
            index: self.host.index("eth0").unwrap(),
            dhcp: Dhcp::Proxy,
            boot_server: true,
            tftp: true,
            http: Some(HTTP),
        }
    }

    /// A helper's firewall in the host.
    pub fn firewall(&self) -> Nftables {
        self.firewall_with(&Config::default())
    }

    /// A helper's firewall in the host, with this configuration.
    pub fn firewall_with(&self, config: &Config) -> Nftables {
        self.host.run(|| Nftables::new(config).unwrap()).unwrap()
    }

    /// The sockets of a lease.
    pub fn sockets(&self, opening: &Opening) -> Sockets {
        let mark = opening.mark.value();
        let make = || Sockets {
            dhcp: udp(mark, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67)),
            tftp: udp(mark, SocketAddrV4::new(HOST, 69)),
            boot_server: udp(mark, SocketAddrV4::new(HOST, 4011)),
            http: listener(mark),
        };
        self.host.run(make).unwrap()
    }
}

/// The sockets of one lease.
pub struct Sockets {
    /// UDP 67, any address.
    pub dhcp: UdpSocket,
    /// UDP 69.
    pub tftp: UdpSocket,
    /// UDP 4011.
    pub boot_server: UdpSocket,
    /// TCP.
    pub http: TcpListener,
}

/// How long a program that another test of this process is just starting may keep its copies of sockets,
/// which it has until its exec.
const COPIES: Duration = Duration::from_secs(10);

fn bind(socket: &Socket, address: SocketAddrV4) {
    let bind = || socket.bind(&SocketAddr::from(address).into());
    wait_until(COPIES, || !bind().is_err_and(|error| error.kind() == ErrorKind::AddrInUse));
    let bound = socket.local_addr().unwrap().as_socket_ipv4();
    assert_eq!(bound, Some(address), "{:?}", bind());
}

/// A UDP socket on `eth0` with this mark (0: none), in this thread's namespace.
pub fn udp(mark: u32, address: SocketAddrV4) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.set_mark(mark).unwrap();
    socket.set_broadcast(true).unwrap();
    bind(&socket, address);
    socket.into()
}

fn listener(mark: u32) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.set_mark(mark).unwrap();
    socket.set_reuse_address(true).unwrap();
    bind(&socket, SocketAddrV4::new(HOST, HTTP));
    socket.listen(16).unwrap();
    socket.into()
}
