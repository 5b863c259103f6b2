//! One run of a nix program, and what it says.
//!
//! Guarantees: what it says on standard error is shown as it comes, on the terminal by itself, else
//! line by line; a failure repeats its first error. A run that is given up is asked to end, and
//! ended.

use std::{
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
};

use crate::exit::{Code, Failure};

/// Longest line that is shown whole; the rest of it is left out.
const LINE: usize = 2000;
/// Most of a program's result that is read.
const RESULT: u64 = 1 << 20;
/// How long nix may take to end when it is asked to.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where it says what it does.
pub enum Screen<'a> {
    /// On the terminal that this program has itself, where it may also ask.
    Terminal,
    /// Line by line.
    Lines(&'a mut (dyn FnMut(&str) + Send)),
}

impl<'a> Screen<'a> {
    /// The terminal, if it may write there itself.
    pub fn new(terminal: bool, tell: &'a mut (dyn FnMut(&str) + Send)) -> Self {
        if terminal { Self::Terminal } else { Self::Lines(tell) }
    }
}

/// Runs it to its end; returns its standard output. `what` names what it is asked for.
///
/// # Errors
/// [`Code::Nix`].
pub async fn run(
    command: std::process::Command,
    screen: &mut Screen<'_>,
    what: &str,
) -> Result<Vec<u8>, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| {
        Failure::new(Code::Nix, format!("{program} cannot be run: {error}"))
    };
    let mut command = Command::from(command);
    command.stdout(Stdio::piped());
    match screen {
        Screen::Terminal => command.stdin(Stdio::inherit()).stderr(Stdio::inherit()),
        Screen::Lines(_) => command.stdin(Stdio::null()).stderr(Stdio::piped()),
    };
    let mut run = Run(command.spawn().map_err(failed)?);
    let (stdout, stderr) = (run.0.stdout.take(), run.0.stderr.take());
    let mut result = Vec::new();
    let mut first_error = None;
    let results = async {
        match stdout {
            Some(stdout) => stdout.take(RESULT).read_to_end(&mut result).await.map(drop),
            None => Ok(()),
        }
    };
    let messages = async {
        let (Some(stderr), Screen::Lines(tell)) = (stderr, screen) else { return Ok(()) };
        let mut show = |line: &str| {
            if first_error.is_none() {
                first_error = error(line);
            }
            tell(line);
        };
        lines(stderr, &mut show).await
    };
    let (results, messages) = tokio::join!(results, messages);
    results.and(messages).map_err(failed)?;
    let status = run.0.wait().await.map_err(failed)?;
    if status.success() { Ok(result) } else { Err(failure(what, status, first_error)) }
}

fn failure(what: &str, status: ExitStatus, first_error: Option<String>) -> Failure {
    let said = first_error.unwrap_or_else(|| "what it says stands above".to_owned());
    Failure::new(Code::Nix, format!("nix could not build {what} ({status}): {said}"))
}

/// The text of an error, if the line is one.
fn error(line: &str) -> Option<String> {
    let text = line.trim().strip_prefix("error:")?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Gives each line as it is complete, without what a terminal would obey.
async fn lines(
    mut from: impl AsyncRead + Unpin,
    tell: &mut (dyn FnMut(&str) + Send),
) -> std::io::Result<()> {
    let mut rest = Vec::new();
    let mut octets = [0; 4096];
    loop {
        let count = from.read(&mut octets).await?;
        for &octet in octets.get(..count).unwrap_or_default() {
            match octet {
                b'\n' | b'\r' => say(&mut rest, tell),
                octet if rest.len() < LINE => rest.push(octet),
                _ => {}
            }
        }
        if count == 0 {
            say(&mut rest, tell);
            return Ok(());
        }
    }
}

fn say(line: &mut Vec<u8>, tell: &mut dyn FnMut(&str)) {
    let text = String::from_utf8_lossy(line).replace(char::is_control, " ");
    line.clear();
    if !text.trim().is_empty() {
        tell(text.trim_end());
    }
}

/// A running program. Dropping it asks it to end, as Ctrl-C does, so that nix ends its own builders.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        // None once it has been waited for.
        let Some(pid) = self.0.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
        let _already_gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let deadline = Instant::now() + FAREWELL;
        while matches!(self.0.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _already_gone = self.0.start_kill();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Result<Vec<u8>, Failure>, Vec<String>) {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]);
        let mut said = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut tell = |line: &str| said.push(line.to_owned());
        let result = runtime.block_on(run(command, &mut Screen::Lines(&mut tell), ".#a"));
        (result, said)
    }

    #[test]
    fn what_it_says_is_told_line_by_line_and_its_result_returned() {
        let (result, said) = shell("printf 'one\\n\\n\\033[2Jtwo\\rthree' >&2; echo '[\"a\"]'");
        assert_eq!(result.unwrap(), b"[\"a\"]\n");
        assert_eq!(said, ["one", " [2Jtwo", "three"]);
        let (_, said) = shell("printf '%03000d\\n' 0 >&2");
        assert_eq!(said[0].len(), LINE);
    }

    #[test]
    fn a_failure_repeats_the_first_error() {
        let script = "printf 'warning: error: net\\nerror:\\n  … while\\n  error: no such thing\\nerror: 1 failed\\n' >&2; exit 3";
        let (result, said) = shell(script);
        let failure = result.unwrap_err();
        assert_eq!(failure.code, Code::Nix as u8);
        assert!(failure.message.starts_with("nix could not build .#a"), "{failure}");
        assert!(failure.message.ends_with(": no such thing"), "{failure}");
        assert_eq!(said.len(), 5);
    }

    #[test]
    fn a_run_that_is_given_up_ends() {
        let folder = tempfile::tempdir().unwrap();
        let ended = folder.path().join("ended");
        let script = format!(
            "trap 'touch {}; exit' TERM; echo on >&2; while :; do sleep 0.01; done",
            ended.display()
        );
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sender, mut told) = tokio::sync::mpsc::channel(1);
        runtime.block_on(async {
            let mut tell = |_: &str| {
                let _told = sender.try_send(());
            };
            let mut screen = Screen::Lines(&mut tell);
            tokio::select! {
                _ = run(command, &mut screen, ".#a") => panic!("ends by itself"),
                _ = told.recv() => {}
            }
        });
        assert!(ended.exists());
    }
}
