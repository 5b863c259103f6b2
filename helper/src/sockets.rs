//! The sockets of a lease: made, marked, confined, and then handed over for good.
//!
//! Guarantees: every socket is bound to the lease's interface and carries its mark before it has a
//! port; every UDP socket has a locked filter on the interface's index, which its holder cannot
//! take off (SO_BINDTODEVICE alone is no limit: `connect(AF_UNSPEC)` removes it from UDP sockets).
//! Trusts the kernel. Never reads or writes a packet.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU32,
    os::fd::OwnedFd,
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use portcullis_dbus::{DHCP_PORT, TFTP_PORT, keys};
use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{
    firewall::{Dhcp, Opening},
    limits, netlink, raw, request, sockdiag,
};

/// The sockets of one lease.
#[derive(Debug)]
pub struct Bound {
    /// What the client gets, by its key in the reply. The helper keeps no copy.
    pub handed: Vec<(&'static str, OwnedFd)>,
    /// What the helper keeps as long as the lease lives.
    pub placeholders: Vec<OwnedFd>,
    /// Kept for its end, where a raw socket was handed over.
    pub ear: Option<Ear>,
}

/// The helper's copy of a raw socket. When it goes, the kernel takes the socket out of its lists for
/// good, whoever holds the others: it hears nothing any more.
#[derive(Debug)]
pub struct Ear(Socket);

impl Drop for Ear {
    fn drop(&mut self) {
        // net/ipv4/raw.c: a raw socket that was disconnected is not put back. There is no way to fail.
        let _ = rustix::net::connect_unspec(&self.0);
    }
}

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{} port {port}: {source}", request::word(*protocol))]
pub struct BindError {
    /// Its protocol.
    pub protocol: sockdiag::Protocol,
    /// Its port.
    pub port: u16,
    /// What the kernel answered.
    pub source: io::Error,
}

/// Makes the sockets of an opening. On an error those already made are closed.
///
/// # Errors
/// The first socket that could not be made; EADDRINUSE when somebody else has the port.
pub fn bind(opening: &Opening, address: Ipv4Addr) -> Result<Bound, BindError> {
    let mut bound = Bound { handed: Vec::new(), placeholders: Vec::new(), ear: None };
    for (protocol, port) in opening.ports() {
        let made = make(&mut bound, opening, SocketAddrV4::new(address, port), protocol);
        made.map_err(|source| BindError { protocol, port, source })?;
    }
    Ok(bound)
}

fn make(
    bound: &mut Bound,
    opening: &Opening,
    address: SocketAddrV4,
    protocol: sockdiag::Protocol,
) -> io::Result<()> {
    let everybody = |ip| SocketAddrV4::new(ip, DHCP_PORT);
    let (key, socket) = match (protocol, address.port()) {
        (sockdiag::Protocol::Tcp, _) => (keys::socket::HTTP, listener(opening, address)?),
        (_, DHCP_PORT) => match opening.dhcp {
            Dhcp::Raw => {
                let (socket, ear) = raw_ear(opening)?;
                bound.ear = Some(ear);
                (keys::socket::DHCP_RAW, socket)
            }
            // Beside another server: what is sent to the host itself (a renewal) would come to the
            // younger of two sockets on the wildcard address alone; a broadcast comes to both.
            Dhcp::Shared => (keys::socket::DHCP, udp(opening, everybody(Ipv4Addr::BROADCAST))?),
            _ => (keys::socket::DHCP, udp(opening, everybody(Ipv4Addr::UNSPECIFIED))?),
        },
        (_, port) => {
            bound.placeholders.push(placeholder(address)?);
            let key =
                if port == TFTP_PORT { keys::socket::TFTP } else { keys::socket::BOOT_SERVER };
            (key, udp(opening, address)?)
        }
    };
    bound.handed.push((key, socket));
    Ok(())
}

/// Keeps a UDP port from everybody else: any user may move a UDP socket of theirs onto an interface
/// and port (a wildcard bind elsewhere, then SO_BINDTODEVICE) and take its packets, unless the port
/// is held on the address without a device. The placeholder holds it so and takes nothing: the
/// lease's socket, bound to the device, always ranks higher, and the placeholder's filter drops all.
fn placeholder(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let placeholder = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    filter(&placeholder, &[SockFilter::new(BPF_RET, 0, 0, 0)])?;
    placeholder.set_reuse_port(true)?;
    placeholder.bind(&address.into())?;
    Ok(placeholder.into())
}

fn udp(opening: &Opening, address: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = confined(opening, Type::DGRAM, Protocol::UDP)?;
    filter(&socket, &only_interface(opening.index))?;
    let tftp = address.port() == TFTP_PORT;
    let buffer = if tftp { limits::TFTP_RECEIVE_BUFFER } else { limits::DHCP_RECEIVE_BUFFER };
    setsockopt(&socket, RcvBufForce, &buffer)?;
    if address.port() == DHCP_PORT {
        // Machines without an address are answered by broadcast. No SO_REUSEPORT: the port needs a
        // privilege, so there is nobody to hold it against.
        socket.set_broadcast(true)?;
        socket.set_reuse_address(opening.dhcp == Dhcp::Shared)?;
    } else {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// What hears the broadcasts to UDP 67 where another server has the port for itself: a raw socket for UDP,
/// of which the kernel lets nothing out. Its mark is of no lease, so that the guard would stop it, too.
fn raw_ear(opening: &Opening) -> io::Result<(OwnedFd, Ear)> {
    let socket = confined(opening, Type::RAW, Protocol::UDP)?;
    // A kernel that may load modules by itself loads the one that takes policies.
    drop(netlink::socket(Some(rustix::net::netlink::XFRM), SocketFlags::empty(), 0));
    let unsupported = |error| io::Error::other(format!("{NO_POLICIES}: {error}"));
    raw::silence(&socket).map_err(unsupported)?;
    socket.set_mark(opening.mark.marks.tag())?;
    filter(&socket, &only_broadcasts(opening.index))?;
    setsockopt(&socket, RcvBufForce, &limits::DHCP_RECEIVE_BUFFER)?;
    Ok((socket.try_clone()?.into(), Ear(socket)))
}

const NO_POLICIES: &str = "a raw socket is silenced by an IPsec policy, and this kernel takes none (load \
                           the module xfrm_user at each start: modules-load.d(5); on NixOS \
                           boot.kernelModules)";

fn listener(opening: &Opening, address: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = confined(opening, Type::STREAM, Protocol::TCP)?;
    // A machine that reboots comes back from the same port: the last connection's TIME_WAIT must
    // keep neither us from binding nor it from connecting.
    socket.set_reuse_address(true)?;
    raw::no_time_wait(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(limits::TCP_BACKLOG)?;
    Ok(socket.into())
}

/// Device before bind: the kernel groups and ranks sockets by the device they have when they get
/// their port. By index, not by name: after a renaming in between, a name would be another interface.
fn confined(opening: &Opening, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let kind = kind.cloexec().nonblocking();
    let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
    let index = NonZeroU32::new(opening.index).ok_or(io::ErrorKind::InvalidInput)?;
    socket.bind_device_by_index_v4(Some(index))?;
    socket.set_mark(opening.mark.value())?;
    Ok(socket)
}

/// A filter that nobody takes off any more.
fn filter(socket: &Socket, code: &[SockFilter]) -> io::Result<()> {
    socket.attach_filter(code)?;
    raw::lock_filter(socket)
}

/// Accepts what came in by one interface, drops the rest (classic BPF, linux/filter.h).
fn only_interface(index: u32) -> [SockFilter; 4] {
    [
        SockFilter::new(BPF_LD_W_ABS, 0, 0, SKF_AD_IFINDEX),
        SockFilter::new(BPF_JMP_JEQ_K, 0, 1, index),
        SockFilter::new(BPF_RET, 0, 0, u32::MAX),
        SockFilter::new(BPF_RET, 0, 0, 0),
    ]
}

/// Accepts what came in by one interface for UDP 67 of everybody. A raw socket is given the IPv4 header
/// first (RFC 791: the destination at 16), and what was in fragments as one.
fn only_broadcasts(index: u32) -> [SockFilter; 9] {
    [
        SockFilter::new(BPF_LD_W_ABS, 0, 0, SKF_AD_IFINDEX),
        SockFilter::new(BPF_JMP_JEQ_K, 0, 6, index),
        SockFilter::new(BPF_LD_W_ABS, 0, 0, 16),
        SockFilter::new(BPF_JMP_JEQ_K, 0, 4, u32::MAX),
        SockFilter::new(BPF_LDX_B_MSH, 0, 0, 0),
        SockFilter::new(BPF_LD_H_IND, 0, 0, 2),
        SockFilter::new(BPF_JMP_JEQ_K, 0, 1, u32::from(DHCP_PORT)),
        SockFilter::new(BPF_RET, 0, 0, u32::MAX),
        SockFilter::new(BPF_RET, 0, 0, 0),
    ]
}

// include/uapi/linux/bpf_common.h, filter.h
const BPF_LD_W_ABS: u16 = 0x20;
const BPF_JMP_JEQ_K: u16 = 0x15;
const BPF_RET: u16 = 0x06;
/// The index register: the length of the IPv4 header at this offset.
const BPF_LDX_B_MSH: u16 = 0xb1;
/// Two octets so far behind the index register.
const BPF_LD_H_IND: u16 = 0x48;
/// SKF_AD_OFF (-0x1000) + SKF_AD_IFINDEX (8).
const SKF_AD_IFINDEX: u32 = 0xffff_f008;
