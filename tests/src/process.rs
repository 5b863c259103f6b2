//! A child process that ends with its owner.
//!
//! Guarantees: it is killed and reaped on drop, and the kernel kills it when the thread that started
//! it is gone (`PR_SET_PDEATHSIG`, set by setpriv), so that an interrupted test leaves nothing.

use std::{
    io::Read,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{LabError, Result};

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

/// A command whose process dies with the thread that starts it.
#[must_use]
pub fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// Runs a command to its end. Its standard output is returned; a failure carries everything it said.
pub fn finish(mut command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| LabError::of(&shown, error))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(LabError(format!(
        "{shown}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    )))
}

impl Process {
    /// Starts it on this thread, in the namespaces of this thread.
    pub fn start(mut command: Command) -> Result<Self> {
        let name = format!("{command:?}");
        let child = command.spawn().map_err(|error| LabError::of(&name, error))?;
        Ok(Self { name, child })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal)
    }

    /// Its exit status, if it ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait().map_err(|error| LabError::of(&self.name, error))?;
            if ended.is_some() || start.elapsed() >= limit {
                return Ok(ended);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        // A process that already ended cannot be killed, and need not be.
        let _already_gone = self.child.kill();
        self.child.wait().map(|_| ()).map_err(|error| LabError::of(&self.name, error))
    }

    /// Everything left on its standard output, when that is a pipe, up to its end.
    pub fn rest_of_stdout(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        if let Some(pipe) = self.child.stdout.as_mut() {
            pipe.read_to_end(&mut bytes).map_err(|error| LabError::of(&self.name, error))?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _best_effort = self.kill();
    }
}

/// Sends a signal to a process by its id. After SIGSTOP it returns when every thread has stopped:
/// until then the process still reads what comes to its sockets.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).map_err(|error| LabError::of(pid, error))?;
    kill(Pid::from_raw(raw), signal)
        .map_err(|error| LabError::of(format!("{signal} to {pid}"), error))?;
    if signal == Signal::SIGSTOP && !wait_until(STOPS, || is_stopped(pid)) {
        return Err(LabError(format!("process {pid} does not stop")));
    }
    Ok(())
}

/// How long a process is given to stop.
const STOPS: Duration = Duration::from_secs(10);

/// Whether every thread of a process has stopped, by the state in `/proc/PID/task/TID/stat`.
fn is_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // After the name, which is in parentheses and may hold some itself.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// Waits until `done` says so, at most `limit`; whether it did.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
