//! The half of a helper that was started for one run which outlives the other, and sweeps: a service
//! manager does the same for an installed one (`ExecStopPost=`).
//!
//! Guarantees: two processes from here on, the copy to serve, the first to wait for its end; neither
//! hears the keys of a terminal, whose Ctrl-C is the client's. No program is started: the copy goes on
//! with what it has. With sockopt.rs, the only unsafe code of the helper.

#![allow(unsafe_code)]

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

/// Makes the copy: `None` in it, its id in the first. To be called before any thread is started.
///
/// # Errors
/// When the kernel gives no further process.
pub fn split() -> nix::Result<Option<Pid>> {
    // What a terminal sends to all that run in it: the socket alone says when the run is over.
    let keys = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGHUP];
    SigSet::from_iter(keys).thread_block()?;
    // SAFETY: this is the only thread, so the copy lacks none that could hold a lock.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(None),
        ForkResult::Parent { child } => Ok(Some(child)),
    }
}

/// Waits for the end of the copy. Whether it ended as it should, with nothing left to sweep.
///
/// # Errors
/// What waitpid(2) answered.
pub fn wait(copy: Pid) -> nix::Result<bool> {
    loop {
        match waitpid(copy, None) {
            Err(Errno::EINTR) => {}
            Ok(status) => return Ok(matches!(status, WaitStatus::Exited(_, 0))),
            Err(error) => return Err(error),
        }
    }
}
