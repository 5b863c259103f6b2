//! A pseudo-terminal: what a person at a keyboard would see and type.
//!
//! Guarantees: every wait ends, and one that ends in vain shows all that was on the screen. The
//! terminal stays open while this value lives, so that programs may come and go on it; on drop they
//! are hung up on.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::{
    pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use crate::{LabError, Result, process::wait_until};

/// What the interrupt key sends.
const CTRL_C: &[u8] = b"\x03";

/// A terminal with a screen that remembers everything.
#[derive(Debug)]
pub struct Pty {
    keyboard_and_screen: File,
    line: OwnedFd,
    name: PathBuf,
    seen: Vec<u8>,
    read: usize,
}

impl Pty {
    /// A new terminal of the devpts that is mounted at `<root>/dev/pts`: `/`, or the root of a
    /// container, where the name will be valid.
    pub fn open(root: &Path) -> Result<Self> {
        let multiplexer = root.join("dev/pts/ptmx");
        let failed = |error: &dyn std::fmt::Display| LabError::of(multiplexer.display(), error);
        let master = File::options()
            .read(true)
            .write(true)
            .open(&multiplexer)
            .map_err(|error| failed(&error))?;
        unlockpt(&master).map_err(|error| failed(&error))?;
        let name = ptsname(&master, Vec::new()).map_err(|error| failed(&error))?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let line = ioctl_tiocgptpeer(&master, flags).map_err(|error| failed(&error))?;
        let size = Winsize { ws_row: 25, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&line, size).map_err(|error| failed(&error))?;
        Ok(Self {
            keyboard_and_screen: master,
            line,
            name: PathBuf::from(String::from_utf8_lossy(name.as_bytes()).into_owned()),
            seen: Vec::new(),
            read: 0,
        })
    }

    /// Its name in the devpts that it belongs to, for example `/dev/pts/3`.
    #[must_use]
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The line itself, to be a program's standard input and outputs.
    pub fn line(&self) -> Result<OwnedFd> {
        self.line.try_clone().map_err(|error| LabError::of(self.name.display(), error))
    }

    /// Waits until `text` appears after what earlier waits have found, at most `limit`. Returns
    /// what stood between, `text` included.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            let unread = self.seen.get(self.read..).unwrap_or_default();
            if let Some(at) = find(unread, text.as_bytes()) {
                let found = unread.get(..at + text.len()).unwrap_or_default();
                let found = String::from_utf8_lossy(found).into_owned();
                self.read += at + text.len();
                return Ok(found);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(LabError(format!(
                    "no {text:?} within {limit:?} on the terminal, which shows:\n{}",
                    self.screen()
                )));
            }
            self.read_for(left)?;
        }
    }

    /// Everything that the terminal has shown.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Takes in what is shown until nothing new comes for `quiet`; then everything shown so far.
    pub fn settle(&mut self, quiet: Duration) -> Result<String> {
        while self.read_for(quiet)? {}
        Ok(self.screen())
    }

    /// Types `text` and the return key.
    pub fn type_line(&mut self, text: &str) -> Result<()> {
        self.press(format!("{text}\n").as_bytes())
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&mut self) -> Result<()> {
        self.press(CTRL_C)
    }

    /// Waits until what is typed is not shown any more. A program asks for a password first and
    /// hides it then, and drops what was typed between.
    pub fn expect_hidden(&self, limit: Duration) -> Result<()> {
        let mut hidden = Ok(false);
        wait_until(limit, || {
            hidden = self.echo().map(|shown| !shown);
            hidden != Ok(false)
        });
        match hidden {
            Ok(true) => Ok(()),
            Ok(false) => Err(LabError(format!(
                "what is typed was still shown after {limit:?} on the terminal:\n{}",
                self.screen()
            ))),
            Err(error) => Err(error),
        }
    }

    /// Whether what is typed is shown: off in a password prompt, and on again afterwards.
    pub fn echo(&self) -> Result<bool> {
        let modes = tcgetattr(&self.line)
            .map_err(|error| LabError::of(self.name.display(), error))?
            .local_modes;
        Ok(modes.contains(LocalModes::ECHO))
    }

    fn press(&mut self, keys: &[u8]) -> Result<()> {
        self.keyboard_and_screen
            .write_all(keys)
            .map_err(|error| LabError::of(self.name.display(), error))
    }

    /// Takes in one piece of output, waiting for it at most `limit`; whether there was one.
    fn read_for(&mut self, limit: Duration) -> Result<bool> {
        let failed = |error: &dyn std::fmt::Display| LabError::of(self.name.display(), error);
        let timeout = PollTimeout::try_from(limit.max(Duration::from_millis(1)))
            .map_err(|error| failed(&error))?;
        let mut ready =
            [PollFd::new(std::os::fd::AsFd::as_fd(&self.keyboard_and_screen), PollFlags::POLLIN)];
        if poll(&mut ready, timeout).map_err(|error| failed(&error))? == 0 {
            return Ok(false);
        }
        let mut piece = [0; 4096];
        match self.keyboard_and_screen.read(&mut piece) {
            Ok(length) => {
                self.seen.extend_from_slice(piece.get(..length).unwrap_or_default());
                Ok(length > 0)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// Where `needle` begins in `bytes`.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Process, mortal};

    const SOON: Duration = Duration::from_secs(5);

    /// A shell script as the session leader of a new terminal, as after a login.
    fn on_a_terminal(script: &str) -> (Pty, Process) {
        let pty = Pty::open(Path::new("/")).unwrap();
        let mut command = mortal("setsid");
        // A shell cannot trap what was ignored when it began, as what runs in the background does.
        command
            .args(["--ctty", "env", "--default-signal=INT", "sh", "-c", script])
            .stdin(pty.line().unwrap())
            .stdout(pty.line().unwrap())
            .stderr(pty.line().unwrap());
        let process = Process::start(command).unwrap();
        (pty, process)
    }

    #[test]
    fn a_secret_is_not_shown_and_echo_comes_back() {
        let (mut pty, mut shell) = on_a_terminal(
            "stty -echo; printf 'secret? '; read -r s; stty echo; echo \"got $s\"; read -r t; echo $t",
        );
        pty.expect("secret? ", SOON).unwrap();
        pty.expect_hidden(SOON).unwrap();
        pty.type_line("hush").unwrap();
        assert_eq!(pty.expect("got hush", SOON).unwrap(), "got hush");
        assert!(wait_until(SOON, || pty.echo().unwrap()));
        pty.type_line("loud").unwrap();
        // Once as it is typed, once by the program.
        pty.expect("loud", SOON).unwrap();
        pty.expect("loud", SOON).unwrap();
        assert!(shell.wait(SOON).unwrap().unwrap().success());
    }

    #[test]
    fn ctrl_c_interrupts_and_a_vain_wait_shows_the_screen() {
        let (mut pty, mut shell) = on_a_terminal(
            "trap 'echo stopped; exit 7' INT; echo ready; while :; do sleep 0.1; done",
        );
        pty.expect("ready", SOON).unwrap();
        let error = pty.expect("never", Duration::from_millis(50)).unwrap_err();
        assert!(error.0.ends_with("ready\r\n"), "{error}");
        pty.interrupt().unwrap();
        pty.expect("stopped", SOON).unwrap();
        assert_eq!(shell.wait(SOON).unwrap().unwrap().code(), Some(7));
    }
}
