//! A helper for one run, where none is installed: the same program, started by sudo, pkexec or run0,
//! which ask for a password themselves, and bound to this process by a socket that is its standard
//! input (those tools close everything else).
//!
//! Guarantees: nothing is started that the user has not chosen, at the terminal or by `--via`; what is
//! to run as root can be changed by nobody but root and the user, who is asked for the password;
//! nothing is installed. The helper ends with the socket, however this process ends.

use std::{
    fs::Metadata,
    io::{self, BufRead, IsTerminal as _, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::ValueEnum as _;
use nix::unistd::geteuid;
use portcullis_dbus::Error;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::unix::pipe,
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};
use zbus::Connection;

use crate::{
    agent::find,
    cli::{Common, Via},
    commands::with_agent,
    exit::{Code, Failure},
    report::Report,
    session::Session,
};

/// The helper's file.
const HELPER: &str = "portcullis-helper";
/// How long the helper, and what started it, may take to end once the socket is closed.
const END: Duration = Duration::from_secs(5);

/// The way to a helper.
pub enum Way {
    /// The one that is installed.
    Installed(Box<Session>),
    /// One for this run.
    Once(Once),
}

/// A helper that is still to be started.
pub struct Once {
    via: Via,
    helper: PathBuf,
    common: Common,
    /// The system bus, if there is one: for others than the helper.
    bus: Option<Connection>,
}

/// Looks for the helper on the bus. Where there is none, and neither `via` nor somebody at the terminal
/// says how to start one, that is an error.
///
/// # Errors
/// There is no helper, none is wanted, or it must not be run as root.
pub async fn way(via: Option<Via>, common: &Common, report: &mut Report) -> Result<Way, Failure> {
    let (bus, missing) = match Session::connect().await {
        Ok(session) => match session.missing().await {
            None => return Ok(Way::Installed(Box::new(session))),
            Some(missing) => (session.bus().cloned(), missing),
        },
        Err(no_bus) => (None, no_bus),
    };
    if via == Some(Via::Never) {
        return Err(missing);
    }
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(Code::Internal, format!("/proc/self/exe: {error}")))?;
    let Some(helper) = beside(&program) else {
        return Err(missing);
    };
    let via = match via {
        Some(via) => via,
        None => ask(common, &helper, missing)?,
    };
    trusted(&helper).map_err(|why| {
        let text = format!("{} is not started as root: {why}", helper.display());
        Failure::new(Code::Usage, text)
    })?;
    report.note(&format!(
        "Starting {} for this run, by {}. It gives root up at once, keeps two capabilities, and ends \
         with this program; nothing is installed.",
        helper.display(),
        via.name()
    ));
    Ok(Way::Once(Once { via, helper, common: common.clone(), bus }))
}

/// The helper's file beside the program's, or where `make install` puts it.
fn beside(program: &Path) -> Option<PathBuf> {
    let directory = program.parent()?;
    let found = [directory.join(HELPER), directory.join("../libexec").join(HELPER)]
        .into_iter()
        .find(|path| path.is_file())?;
    found.canonicalize().ok()
}

/// Whether nobody but root and this user can change what this path names: neither the file nor any
/// directory on the way to it. Whoever could would be root with the user's password.
fn trusted(file: &Path) -> Result<(), String> {
    let facts =
        |path: &Path| path.metadata().map_err(|error| format!("{}: {error}", path.display()));
    if facts(file)?.permissions().mode() & 0o111 == 0 {
        return Err("it is not executable".to_owned());
    }
    file.ancestors().try_for_each(|path| judge(path, &facts(path)?))
}

fn judge(path: &Path, facts: &Metadata) -> Result<(), String> {
    let user = geteuid().as_raw();
    let path = path.display();
    if facts.uid() != 0 && facts.uid() != user {
        return Err(format!("{path} belongs to uid {}, neither to root nor to you", facts.uid()));
    }
    // In a sticky directory others cannot replace what is not theirs (inode(7)).
    let sticky = facts.is_dir() && facts.mode() & 0o1000 != 0;
    if facts.mode() & 0o022 != 0 && !sticky {
        return Err(format!("others can change {path} (chmod go-w {path})"));
    }
    Ok(())
}

/// Asks at a terminal; elsewhere it is an error that names the flag.
fn ask(common: &Common, helper: &Path, missing: Failure) -> Result<Via, Failure> {
    let tools: Vec<Via> = [Via::Sudo, Via::Pkexec, Via::Run0]
        .into_iter()
        .filter(|via| find(&via.name()).is_some())
        .collect();
    let Some(first) = tools.first() else {
        return Err(missing);
    };
    if common.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let advice = format!("without installing anything, for one run: --via {}", first.name());
        return Err(missing.advise(advice));
    }
    question(&tools, helper, io::stdin().lock(), io::stderr()).ok_or(missing)
}

/// Repeats the question until the answer is one of the tools, or nothing.
fn question(
    tools: &[Via],
    helper: &Path,
    answers: impl BufRead,
    mut screen: impl Write,
) -> Option<Via> {
    let names: Vec<String> = tools.iter().map(Via::name).collect();
    let _ = writeln!(
        screen,
        "No helper is installed on this computer. {} can be started for this run alone, without \
         installing anything, by one of: {}",
        helper.display(),
        names.join(", ")
    );
    let mut answers = answers.lines();
    loop {
        let _ = write!(screen, "Which one? [{}, Enter: none] ", names.join("/"));
        let _ = screen.flush();
        let answer = answers.next()?.ok()?;
        let answer = answer.trim();
        if answer.is_empty() {
            return None;
        }
        let chosen = tools.iter().find(|via| via.name() == answer);
        if let Some(via) = chosen {
            return Some(*via);
        }
    }
}

impl Via {
    /// Its name, which is that of the program.
    #[must_use]
    pub fn name(&self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl Way {
    /// The session with the helper, and the helper itself where it was started for this run.
    ///
    /// # Errors
    /// It was not started, or could not serve.
    pub async fn session(self) -> Result<(Session, Option<Started>), Failure> {
        match self {
            Self::Installed(session) => Ok((*session, None)),
            Self::Once(once) => {
                // pkexec asks polkit about this process, whose agent with_agent starts. Its own does
                // not work from a terminal (polkit 122: "No session for cookie").
                let (session, one) = with_agent(&once.common, async || once.start().await).await?;
                Ok((session, Some(one)))
            }
        }
    }
}

impl Once {
    async fn start(&self) -> Result<(Session, Started), Failure> {
        let flags = self.via.flags(self.common.no_ask_password);
        let (mut started, socket) =
            Started::new(self.via, flags, &self.helper).map_err(|error| {
                let text = format!("{} cannot be started: {error}", self.via.name());
                Failure::new(Code::Internal, text)
            })?;
        match Session::over(socket, self.bus.clone()).await {
            Ok(session) => {
                started.said.speaks.store(true, Ordering::Relaxed);
                Ok((session, started))
            }
            Err(_) => Err(started.failure(self.via).await),
        }
    }
}

impl Via {
    /// Whether it asks at the terminal, or only by a dialog of the desktop.
    fn flags(self, no_ask_password: bool) -> &'static [&'static str] {
        match (self, no_ask_password) {
            (Self::Sudo, true) => &["-n", "--"],
            (Self::Sudo, false) => &["--"],
            (Self::Pkexec, _) => &["--disable-internal-agent"],
            (Self::Run0, true) => &["--no-ask-password", "--"],
            (Self::Run0, false) => &["--"],
            (Self::Never, _) => &[],
        }
    }
}

/// A helper that was started for this run, or what starts it.
pub struct Started {
    child: Child,
    said: Arc<Said>,
    reader: JoinHandle<()>,
}

/// What the helper and the tool say.
#[derive(Default)]
struct Said {
    /// The helper is there, so that what goes wrong is shown as it comes.
    speaks: AtomicBool,
    /// The first error of the helper's.
    error: Mutex<Option<String>>,
    /// The first line of a tool whose lines are not shown: all that pkexec says is why it did nothing.
    tool: Option<Mutex<String>>,
}

fn lock<T>(one: &Mutex<T>) -> MutexGuard<'_, T> {
    one.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Said {
    /// One line: what sudo and run0 say is shown as it is; the helper's lines begin with a priority
    /// (sd-daemon(3)), and only warnings and errors are for the user.
    fn hear(&self, line: &str, mut screen: impl Write) {
        let Some((priority, text)) = priority(line) else {
            match &self.tool {
                Some(first) if lock(first).is_empty() => line.clone_into(&mut lock(first)),
                Some(_) => {}
                None => drop(writeln!(screen, "{line}")),
            }
            return;
        };
        if priority <= 3 && !self.speaks.load(Ordering::Relaxed) {
            lock(&self.error).get_or_insert_with(|| text.to_owned());
        } else if priority <= 4 {
            let _ = writeln!(screen, "{HELPER}: {}", text.escape_debug());
        }
    }
}

fn priority(line: &str) -> Option<(u8, &str)> {
    let (priority, text) = line.strip_prefix('<')?.split_once('>')?;
    Some((priority.parse().ok()?, text))
}

impl Started {
    /// Starts the helper through a tool, and returns our end of its socket.
    fn new(via: Via, flags: &[&str], helper: &Path) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        // Both outputs are a pipe: so sudo takes it for a part of a pipeline, and leaves the
        // terminal to us once it has the password.
        let (screen, words_end) = io::pipe()?;
        let mut command = Command::new(find(&via.name()).ok_or(io::ErrorKind::NotFound)?);
        command
            .args(flags)
            .arg(helper)
            .arg("--once")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(words_end.try_clone()?))
            .stderr(Stdio::from(words_end));
        let child = command.spawn()?;
        // With it go our copies of what the child has: their closing says that it is gone.
        drop(command);
        let tool = (via == Via::Pkexec).then(Mutex::default);
        let said = Arc::new(Said { tool, ..Said::default() });
        let screen = pipe::Receiver::from_owned_fd(OwnedFd::from(screen))?;
        let hearing = Arc::clone(&said);
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(screen).split(b'\n');
            while let Ok(Some(line)) = lines.next_segment().await {
                hearing.hear(&String::from_utf8_lossy(&line), io::stderr());
            }
        });
        Ok((Self { child, said, reader }, ours))
    }

    /// Why there is no helper: it said so, or the tool did not start it.
    async fn failure(&mut self, via: Via) -> Failure {
        let status = timeout(END, self.child.wait()).await.ok().and_then(Result::ok);
        let _ = timeout(END, &mut self.reader).await;
        let error = lock(&self.said.error).take();
        match error {
            Some(error) => {
                let unreachable = Error::ZBus(zbus::Error::InvalidReply).exit_code();
                let message = format!("the helper for this run cannot start: {error}");
                Failure { code: unreachable, message, advice: Vec::new() }
            }
            None => {
                let said = self.said.tool.as_ref().map(|first| lock(first).clone());
                refused(via, status, &said.unwrap_or_default())
            }
        }
    }

    /// Waits for its end, once the session is dropped.
    pub async fn end(mut self) {
        let _ = timeout(END, self.child.wait()).await;
        let _ = timeout(END, self.reader).await;
    }
}

/// pkexec(1) says by its exit code that its dialog was dismissed (126), and in words that there is
/// nobody to show one.
fn refused(via: Via, status: Option<ExitStatus>, said: &str) -> Failure {
    let tool = via.name();
    let code = status.and_then(|status| status.code());
    let ended = code.map_or_else(String::new, |code| format!(" (its exit code: {code})"));
    let why = if said.is_empty() { String::new() } else { format!(": {}", said.escape_debug()) };
    let error = match (via, code) {
        (Via::Pkexec, Some(126)) => {
            Error::AuthenticationDismissed("pkexec was dismissed: nothing was opened".to_owned())
        }
        (Via::Pkexec, _) if said.contains("No authentication agent") => {
            Error::NoAgent("pkexec needs a password, and there is nobody to ask for it".to_owned())
        }
        _ => Error::NotAuthorized(format!("{tool} did not start the helper{ended}{why}")),
    };
    let code = error.exit_code();
    Failure { code, message: error.message(), advice: Vec::new() }
        .advise("another tool, if there is one: --via sudo, --via pkexec, --via run0")
        .advise("or install the package portcullis, and be asked by polkit")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_helper_is_found_beside_the_program_or_where_it_is_installed() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        for directory in ["bin", "libexec", "target"] {
            fs::create_dir(root.join(directory)).unwrap();
        }
        let (installed, built) =
            (root.join("libexec/portcullis-helper"), root.join("target/portcullis-helper"));
        assert_eq!(beside(&root.join("bin/portcullis")), None);
        fs::write(&installed, "").unwrap();
        fs::write(&built, "").unwrap();
        assert_eq!(beside(&root.join("bin/portcullis")), Some(installed));
        assert_eq!(beside(&root.join("target/portcullis")), Some(built));
    }

    #[test]
    fn what_others_can_change_is_not_started_as_root() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().canonicalize().unwrap().join("target");
        fs::create_dir(&directory).unwrap();
        let helper = directory.join(HELPER);
        fs::write(&helper, "").unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for (file, folder, good) in [
            (0o755, 0o755, true),
            (0o700, 0o700, true),
            (0o644, 0o755, false),
            (0o775, 0o755, false),
            (0o757, 0o755, false),
            (0o755, 0o775, false),
            (0o755, 0o757, false),
            (0o755, 0o1777, true),
        ] {
            mode(&helper, file);
            mode(&directory, folder);
            assert_eq!(trusted(&helper).is_ok(), good, "{file:o} in {folder:o}");
        }
        mode(&directory, 0o755);
        let stranger = |path: &Path| std::os::unix::fs::chown(path, Some(65_533), None);
        if stranger(&helper).is_ok() {
            assert!(trusted(&helper).unwrap_err().contains("belongs to uid 65533"));
        }
    }

    #[test]
    fn the_question_takes_a_tool_that_is_there_or_nothing() {
        for (typed, chosen, asked) in [
            ("sudo\n", Some(Via::Sudo), 1),
            ("run0\nyes\n pkexec \n", Some(Via::Pkexec), 3),
            ("\nsudo\n", None, 1),
            ("", None, 1),
        ] {
            let mut screen = Vec::new();
            let tools = [Via::Sudo, Via::Pkexec];
            let answer = question(&tools, Path::new("/h"), typed.as_bytes(), &mut screen);
            assert_eq!(answer, chosen, "{typed:?}");
            let screen = String::from_utf8(screen).unwrap();
            assert_eq!(screen.matches("[sudo/pkexec, Enter: none]").count(), asked, "{screen}");
        }
    }

    #[test]
    fn the_helpers_lines_are_told_from_the_tools() {
        let pkexec = Said { tool: Some(Mutex::default()), ..Said::default() };
        for line in ["Error: no", "", "This incident has been reported."] {
            pkexec.hear(line, io::sink());
        }
        assert_eq!(*lock(pkexec.tool.as_ref().unwrap()), "Error: no");
        let (said, mut screen) = (Said::default(), Vec::new());
        let mut hear = |line| said.hear(line, &mut screen);
        for line in ["Sorry, try again.", "<6>ready", "<3>no table", "<3>later", "<4>odd \u{1b}["] {
            hear(line);
        }
        said.speaks.store(true, Ordering::Relaxed);
        hear("<3>late");
        hear("<5>decision=granted");
        hear("<x>y");
        assert_eq!(said.error.lock().unwrap().as_deref(), Some("no table"));
        let expected =
            "Sorry, try again.\nportcullis-helper: odd \\u{1b}[\nportcullis-helper: late\n<x>y\n";
        assert_eq!(String::from_utf8(screen).unwrap(), expected);
    }

    #[test]
    fn each_tool_is_told_whether_it_may_ask_here() {
        for (via, words) in [(Via::Sudo, "-n --"), (Via::Run0, "--no-ask-password --")] {
            assert_eq!(via.flags(true).join(" "), words);
            assert!(!via.flags(false).contains(&words.split(' ').next().unwrap_or_default()));
        }
        assert_eq!(Via::Pkexec.flags(false), ["--disable-internal-agent"]);
    }

    #[test]
    fn a_refusal_has_the_exit_code_of_the_contract() {
        let ended = |code: i32| Some(std::os::unix::process::ExitStatusExt::from_raw(code << 8));
        let nobody = "Error executing command as another user: No authentication agent found.";
        assert_eq!(refused(Via::Pkexec, ended(126), "").code, 11);
        assert_eq!(refused(Via::Pkexec, ended(127), "Not authorized").code, 10);
        assert_eq!(refused(Via::Pkexec, ended(127), nobody).code, 12);
        assert_eq!(refused(Via::Sudo, ended(1), "").code, 10);
        assert_eq!(refused(Via::Sudo, None, "").code, 10);
    }
}
