//! polkit's text agent, so that a password can be asked for in a plain terminal.
//!
//! Guarantees: it is started only after the helper said that nobody is there to be asked, so that a
//! desktop's own agent keeps the right of way, and a caller who needs no password waits for nothing;
//! afterwards it is gone and the terminal echoes as before. A missing agent is no error of its own.
//!
//! `pkttyagent --fallback`, registered beforehand, would keep the desktop's right of way as well, but
//! polkit passes a fallback agent over for callers outside of any login session.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        signal::{Signal, kill},
        termios::{SetArg, Termios, tcgetattr, tcsetattr},
    },
    unistd::{Pid, pipe2},
};
use tokio::io::AsyncReadExt as _;

/// How long registration may take; polkit itself answers within milliseconds.
const REGISTRATION: Duration = Duration::from_secs(5);
/// How long the agent may take to restore the terminal and leave.
const FAREWELL: Duration = Duration::from_millis(500);
/// Where programs are beside PATH.
const PLACES: [&str; 2] = ["/usr/bin", "/run/current-system/sw/bin"];

/// A running agent. Dropping it ends it.
pub struct Agent {
    child: Child,
    terminal: Option<(File, Termios)>,
}

impl Agent {
    /// Starts the agent for this process and waits until it is registered. `None` if there is none,
    /// or it could not register.
    pub async fn start() -> Option<Self> {
        let program = find("pkttyagent")?;
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // The only descriptor that a child of this process inherits, and only until it is closed below.
        fcntl(&writer, FcntlArg::F_SETFD(FdFlag::empty())).ok()?;
        let terminal = File::open("/dev/tty")
            .ok()
            .and_then(|tty| tcgetattr(&tty).ok().map(|state| (tty, state)));
        let subject = format!("{},{}", std::process::id(), start_time()?);
        // setpriv lets it die with us even if we are killed. The signal is bound to the thread that
        // starts it, which is the main thread and lives as long as the process.
        let mut command = match find("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "TERM", "--"]).arg(&program);
                command
            }
            None => Command::new(&program),
        };
        let child = command
            .args(["--process", &subject, "--notify-fd"])
            .arg(writer.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        drop(writer);
        let mut agent = Self { child, terminal };
        let mut reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader).ok()?;
        // It closes the descriptor when it is registered, and when it dies.
        let closed =
            async { while reader.read(&mut [0; 16]).await.is_ok_and(|count| count > 0) {} };
        tokio::time::timeout(REGISTRATION, closed).await.ok()?;
        matches!(agent.child.try_wait(), Ok(None)).then_some(agent)
    }
}

impl Drop for Agent {
    /// Ends the agent by SIGTERM, on which it restores the terminal; if it does not leave, by
    /// SIGKILL, and the terminal's state from before is put back.
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id())
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let deadline = Instant::now() + FAREWELL;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some((tty, state)) = &self.terminal {
            let _ = tcsetattr(tty, SetArg::TCSADRAIN, state);
        }
    }
}

/// An executable of this name in PATH or the usual places.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PLACES.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| {
            path.metadata()
                .is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
        })
}

/// When this process started, in clock ticks since boot: together with its number it names the
/// process for good.
fn start_time() -> Option<u64> {
    parse_start_time(&io::read_to_string(File::open("/proc/self/stat").ok()?).ok()?)
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)). Field 2, the name, may hold blanks and brackets.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_field_22_whatever_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 9 10";
        assert_eq!(parse_start_time(stat), Some(987_654));
        assert_eq!(parse_start_time("7 (x) S 1"), None);
        assert!(start_time().is_some_and(|ticks| ticks > 0));
    }

    #[test]
    fn programs_are_found_and_only_if_executable() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-here"), None);
    }
}
