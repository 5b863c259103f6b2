//! A kernel that says no: one system call of the calling thread fails, the n-th of its kind, by strace's
//! fault injection (strace(1), "Tampering").
//!
//! Guarantees: nothing but the calling thread is tampered with; the call that fails is not carried
//! out, so what an answer would have said stays unread, as after a real ENOBUFS; on drop the thread
//! goes on untouched.

use std::{fs::File, path::PathBuf, time::Duration};

use nix::{
    sys::signal::Signal,
    unistd::{getsid, gettid},
};
use tempfile::TempDir;

use crate::{
    LabError, Result,
    process::{Process, mortal, wait_until},
};

/// Every system call by which the helper changes anything in the kernel or asks it for anything.
pub const CALLS: [&str; 7] =
    ["socket", "bind", "listen", "setsockopt", "getsockname", "sendto", "recvfrom"];

/// A call that the helper never makes: it shows that strace has begun.
const MARK: &str = "getsid";

/// Longest time in which strace begins or ends, however busy the machine is.
const SOON: Duration = Duration::from_secs(20);

/// Which calls of a kind fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// This one alone, counted from 1.
    Only(usize),
    /// This one and every later one.
    From(usize),
}

/// A fault that awaits the calling thread.
#[derive(Debug)]
pub struct Fault {
    // Dropped in this order: the process, then its directory.
    strace: Process,
    directory: TempDir,
}

impl Fault {
    /// From now on `call` fails with ENOBUFS, when the calling thread makes it as often as `when`
    /// says.
    pub fn inject(call: &str, when: When) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-fault-")
            .tempdir()
            .map_err(|error| LabError::of("a directory for strace", error))?;
        let when = match when {
            When::Only(number) => number.to_string(),
            When::From(number) => format!("{number}+"),
        };
        let errors = File::create(directory.path().join("errors"))
            .map_err(|error| LabError::of("a file for strace", error))?;
        let mut command = mortal("strace");
        command
            .args([
                "--attach",
                &gettid().to_string(),
                "--quiet=all",
                "-e",
                &format!("trace={MARK},{call}"),
            ])
            .args(["-e", &format!("inject={call}:error=ENOBUFS:when={when}")])
            .arg("--output")
            .arg(directory.path().join("log"))
            .stderr(errors);
        let fault = Self { strace: Process::start(command)?, directory };
        let begun = wait_until(SOON, || {
            // It fails for nobody: the session of the caller.
            let _mark = getsid(None);
            fault.log().contains(MARK)
        });
        if begun {
            Ok(fault)
        } else {
            let said = std::fs::read_to_string(fault.path("errors")).unwrap_or_default();
            Err(LabError(format!("strace does not trace this thread: {said}")))
        }
    }

    /// Takes it away; whether it struck.
    pub fn lift(mut self) -> Result<bool> {
        self.strace.signal(Signal::SIGTERM)?;
        match self.strace.wait(SOON)? {
            Some(_) => Ok(self.log().contains("(INJECTED)")),
            None => Err(LabError("strace does not end".to_owned())),
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_that_is_named_fails_and_no_other() {
        crate::need_root!("strace", "setpriv");
        let bind = || std::net::UdpSocket::bind("127.0.0.1:0").map(|_| ());
        let errno =
            |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());
        let fault = Fault::inject("bind", When::Only(2)).unwrap();
        let heard = [(); 3].map(|()| errno(bind()));
        assert_eq!(heard, [None, Some(nix::libc::ENOBUFS), None]);
        assert!(fault.lift().unwrap());
        let fault = Fault::inject("bind", When::From(2)).unwrap();
        let heard = [(); 3].map(|()| errno(bind()));
        assert_eq!(heard, [None, Some(nix::libc::ENOBUFS), Some(nix::libc::ENOBUFS)]);
        assert!(fault.lift().unwrap());
        let fault = Fault::inject("bind", When::Only(2)).unwrap();
        assert_eq!(errno(bind()), None);
        assert!(!fault.lift().unwrap());
        assert_eq!(errno(bind()), None);
    }
}
