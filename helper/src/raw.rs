//! The only unsafe code of the helper: three socket options that no crate here offers, and fork(2).
//!
//! Guarantees: setsockopt(2) is given a pointer to living octets and their number, and nothing else.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use libc::{c_int, c_void, socklen_t};
use nix::unistd::{self, ForkResult};

/// A copy of this process. To be called before any thread is started.
///
/// # Errors
/// When the kernel gives no further process.
pub fn fork() -> nix::Result<ForkResult> {
    // SAFETY: the caller's is the only thread, so the copy lacks none that could hold a lock.
    unsafe { unistd::fork() }
}

/// Locks the classic filter of a socket: nobody can detach or replace it any more, whoever holds
/// the socket (SO_LOCK_FILTER, socket(7)).
///
/// # Errors
/// When the kernel refuses.
pub fn lock_filter(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1_i32.to_ne_bytes())
}

/// Has the kernel refuse whatever is sent by an IPv4 socket, whoever holds it and however it is sent: an
/// IPsec policy of the socket's own that blocks. Only CAP_NET_ADMIN can take it off again.
/// (`struct xfrm_userpolicy_info` of include/uapi/linux/xfrm.h; net/xfrm/xfrm_policy.c, `xfrm_lookup`,
/// through which net/ipv4/raw.c finds every route.)
///
/// # Errors
/// When the kernel has no IPsec policies.
pub fn silence(socket: &impl AsFd) -> io::Result<()> {
    const IP_XFRM_POLICY: c_int = 17;
    const AF_INET: u16 = 2;
    // Octets 0 to 55, a selector: whatever is of this family. To 119, the limits: XFRM_INF octets and
    // packets, and no time. To 159, counters, priority and index; then XFRM_POLICY_OUT and _BLOCK.
    let family = AF_INET.to_ne_bytes();
    let policy =
        [&[0; 40][..], &family, &[0; 14], &[0xff; 32], &[0; 72], &[1, 1, 0, 0, 0, 0, 0, 0]];
    set(socket, libc::IPPROTO_IP, IP_XFRM_POLICY, &policy.concat())
}

/// Lets connections of a listener skip TIME_WAIT's successor FIN_WAIT_2 and TIME_WAIT itself
/// (TCP_LINGER2 = -1, tcp(7); inherited by accepted connections).
///
/// # Errors
/// When the kernel refuses.
pub fn no_time_wait(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_LINGER2, &(-1_i32).to_ne_bytes())
}

fn set(socket: &impl AsFd, level: c_int, option: c_int, value: &[u8]) -> io::Result<()> {
    let length = socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open (borrowed for the call), `value` lives until the call returns,
    // and `length` is its size; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            value.as_ptr().cast::<c_void>(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
