//! The half of a helper that was started for one run which outlives the other, and sweeps: a service
//! manager does the same for an installed one (`ExecStopPost=`).
//!
//! Guarantees: two processes from here on, the copy to serve, the first to wait for its end, whatever
//! it is asked to do itself but SIGKILL; neither hears the keys of a terminal, whose Ctrl-C is the
//! client's. No program is started: the copy goes on with what it has. With sockopt.rs, the only
//! unsafe code of the helper.

#![allow(unsafe_code)]

use nix::{
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, setsid},
};

/// What a terminal sends to all that run in it: the socket alone says when the run is over.
const KEYS: [Signal; 4] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGHUP];
/// What the first waits for.
const AWAITED: [Signal; 2] = [Signal::SIGTERM, Signal::SIGCHLD];

/// Makes the copy: `None` in it, its id in the first. To be called before any thread is started.
///
/// # Errors
/// When the kernel gives no further process.
pub fn split() -> nix::Result<Option<Pid>> {
    SigSet::from_iter(KEYS.into_iter().chain(AWAITED)).thread_block()?;
    // SAFETY: this is the only thread, so the copy lacks none that could hold a lock.
    match unsafe { fork() }? {
        ForkResult::Child => {
            SigSet::from_iter(AWAITED).thread_unblock()?;
            // Out of the group that sudo kills as a whole when it is killed itself.
            setsid()?;
            Ok(None)
        }
        ForkResult::Parent { child } => Ok(Some(child)),
    }
}

/// Waits for the end of the copy, and tells it if it is to stop. Whether it ended as it should, with
/// nothing left to sweep.
///
/// # Errors
/// What waitpid(2) answered.
pub fn wait(copy: Pid) -> nix::Result<bool> {
    loop {
        match waitpid(copy, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => {}
            ended => return Ok(matches!(ended, WaitStatus::Exited(_, 0))),
        }
        if SigSet::from_iter(AWAITED).wait()? == Signal::SIGTERM {
            kill(copy, Signal::SIGTERM)?;
        }
    }
}
