//! Two socket options that no crate here offers, and with guard.rs the only unsafe code of the helper.
//!
//! Guarantees: the kernel is given a pointer to a live `c_int` and its exact size, and nothing else.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use libc::{c_int, c_void, socklen_t};

/// Locks the classic filter of a socket: nobody can detach or replace it any more, whoever holds
/// the socket (SO_LOCK_FILTER, socket(7)).
///
/// # Errors
/// When the kernel refuses.
pub fn lock_filter(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
}

/// Lets connections of a listener skip TIME_WAIT's successor FIN_WAIT_2 and TIME_WAIT itself
/// (TCP_LINGER2 = -1, tcp(7); inherited by accepted connections).
///
/// # Errors
/// When the kernel refuses.
pub fn no_time_wait(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_LINGER2, -1)
}

fn set(socket: &impl AsFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let length = socklen_t::try_from(size_of::<c_int>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open (borrowed for the call), `value` lives until the call returns,
    // and `length` is its size; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast::<c_void>(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
