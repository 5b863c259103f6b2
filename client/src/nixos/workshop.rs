//! Builds anew while machines are served: on demand, or when the files have changed.
//!
//! Guarantees: one build at a time, and at most one waits; what was built before is served until a
//! new build is whole, and on if it fails. The terminal is read only while this program is in its
//! foreground.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
    sync::Arc,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{getpgrp, read, tcgetpgrp},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};

use super::{Links, Recipe, Screen, Watched};
use crate::{
    exit::{Code, Failure},
    source::fresh::Fresh,
};

/// Lines of nix that wait while the terminal is slow; what does not fit is not shown.
const LINES: usize = 1024;
/// How long a program in the background waits before it looks at its terminal again.
const BACKGROUND: Duration = Duration::from_millis(500);

/// How far a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It has begun.
    Started,
    /// nix says something.
    Output,
    /// It is whole: machines that start from now on get it.
    Done,
    /// There is nothing new.
    Same,
    /// What was built before is served.
    Failed,
}

/// What is said of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// How far it is.
    pub state: State,
    /// For people.
    pub text: String,
}

/// See the module.
#[derive(Debug)]
pub struct Workshop {
    ask: mpsc::Sender<()>,
    told: mpsc::Receiver<Told>,
    /// Where there is no terminal whose end this signal would tell of.
    hangup: Option<Signal>,
    task: JoinHandle<()>,
}

impl Workshop {
    /// Waits for work. `first` is what is served already, from the links of build 0.
    ///
    /// # Errors
    /// Signals cannot be watched.
    pub fn open(
        recipe: Recipe,
        first: super::Build,
        links: Arc<Links>,
        folder: Option<Watched>,
        fresh: Arc<Fresh>,
    ) -> Result<Self, Failure> {
        let hangup = if has_terminal() { None } else { Some(signal(SignalKind::hangup())) };
        let hangup = hangup.transpose().map_err(|error| {
            Failure::new(Code::Internal, format!("signals cannot be watched: {error}"))
        })?;
        let (ask, asked) = mpsc::channel(1);
        let (tell, told) = mpsc::channel(LINES);
        let bench = Bench { recipe, links, fresh, tell };
        let task = tokio::spawn(bench.work(first, asked, folder));
        Ok(Self { ask, told, hangup, task })
    }

    /// Whether SIGHUP asks for a build.
    #[must_use]
    pub fn takes_hangups(&self) -> bool {
        self.hangup.is_some()
    }

    /// Begins to take `r` and Enter from the terminal; whether there is one.
    pub fn listen(&self) -> bool {
        let terminal = io::stdin().is_terminal();
        if terminal {
            let ask = self.ask.clone();
            // Ends with the process: nothing takes a thread out of its wait for the keyboard.
            std::thread::spawn(move || keyboard(&ask));
        }
        terminal
    }

    /// What is said next.
    pub async fn next(&mut self) -> Told {
        loop {
            let hangup = async {
                match &mut self.hangup {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // One that waits already will see what has changed until it begins.
                _ = hangup => {
                    let _one_waits = self.ask.try_send(());
                }
                told = self.told.recv() => match told {
                    Some(told) => return told,
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Ends a build that is under way.
    pub async fn close(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }
}

/// What a build needs.
struct Bench {
    recipe: Recipe,
    links: Arc<Links>,
    fresh: Arc<Fresh>,
    tell: mpsc::Sender<Told>,
}

impl Bench {
    async fn work(
        self,
        first: super::Build,
        mut asked: mpsc::Receiver<()>,
        mut folder: Option<Watched>,
    ) {
        let (mut served, mut served_number) = (first, 0);
        for number in 1.. {
            let changed = async {
                match &mut folder {
                    Some(folder) => folder.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                wish = asked.recv() => if wish.is_none() { return },
                () = changed => {}
            }
            self.say(State::Started, format!("Building {} anew ...", self.recipe.name())).await;
            let (state, text) = match self.build(number, &served).await {
                Ok(Some(build)) => {
                    self.links.forget(served_number);
                    (served, served_number) = (build, number);
                    let system = served.toplevel.display();
                    (State::Done, format!("Machines that start now get the new build, {system}"))
                }
                Ok(None) => {
                    self.links.forget(number);
                    (State::Same, "Built anew, and nothing is new: it is what is served".to_owned())
                }
                Err(failure) => {
                    self.links.forget(number);
                    let said = failure.message;
                    (State::Failed, format!("{said}; machines go on getting the build before"))
                }
            };
            self.say(state, text).await;
        }
    }

    /// Builds, and serves it if it is another one than before.
    async fn build(
        &self,
        number: u64,
        before: &super::Build,
    ) -> Result<Option<super::Build>, Failure> {
        let links = self.links.build(number).map_err(|error| {
            Failure::new(Code::Internal, format!("no folder for the build can be made: {error}"))
        })?;
        let mut tell = |line: &str| {
            let told = Told { state: State::Output, text: line.to_owned() };
            let _not_shown = self.tell.try_send(told);
        };
        let build = self.recipe.build(&links, &mut Screen::Lines(&mut tell)).await?;
        let same = build.toplevel == before.toplevel && build.order.initrds == before.order.initrds;
        if same {
            return Ok(None);
        }
        self.fresh.renew(build.order.clone()).await?;
        Ok(Some(build))
    }

    async fn say(&self, state: State, text: String) {
        // Nobody listens any more: it is about to end.
        let _end = self.tell.send(Told { state, text }).await;
    }
}

/// Whether a terminal would send SIGHUP when it is closed.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Asks for a build at each line that says so, until the terminal is gone.
fn keyboard(ask: &mpsc::Sender<()>) {
    let stdin = io::stdin();
    let mut octets = [0; 256];
    loop {
        let mut ready = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::NONE).is_err() {
            continue;
        }
        let events = ready.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        // Without input, or hung up.
        if events != PollFlags::POLLIN {
            return;
        }
        // Whoever reads its terminal from the background is stopped.
        if tcgetpgrp(&stdin).ok() != Some(getpgrp()) {
            std::thread::sleep(BACKGROUND);
            continue;
        }
        let Ok(count) = read(&stdin, &mut octets) else { return };
        let line = String::from_utf8_lossy(octets.get(..count).unwrap_or_default());
        if line.trim().eq_ignore_ascii_case("r") {
            let _one_waits = ask.try_send(());
        }
    }
}
