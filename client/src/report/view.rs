//! The live view: the board on a whole terminal, until the person there quits.
//!
//! Guarantees: the terminal is as it was when the view is left, also by a panic, by a signal that ends
//! the program, and while Ctrl-Z has stopped it; nothing is asked for here, and no fact is judged. What
//! is drawn is in `draw`, what keys do in `state`, both pure; here are the terminal, a thread that reads
//! its keys, and the clock.

pub mod draw;
pub mod state;

use std::{
    io::{self, IsTerminal as _},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        event::{self, Event},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use tokio::{
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval},
};

use self::{
    draw::{Head, Look, Scene},
    state::{State, Wish},
};
use super::text::Line;
use crate::board::Shared;

/// How often it is drawn: downloads tell their progress four times a second.
const FRAME: Duration = Duration::from_millis(250);
/// How long the thread that reads keys may go on when it is not wanted any more.
const KEYS: Duration = Duration::from_millis(50);
/// Keys that wait; more than anybody types while one frame is drawn.
const TYPED: usize = 64;

/// Whether the terminal is ours, for the hook that a panic runs.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// The terminal, while it is drawn on.
pub struct View {
    terminal: Terminal<CrosstermBackend<io::Stdout>>,
    look: Look,
    heads: Vec<Head>,
    begun: Instant,
    state: State,
    clock: Interval,
    typed: mpsc::Receiver<Event>,
    keys: Option<Keys>,
}

/// The thread that reads keys, and how it is told to end.
struct Keys {
    leave: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Whether there is a terminal to draw on and a keyboard.
#[must_use]
pub fn possible() -> bool {
    io::stdout().is_terminal() && io::stdin().is_terminal()
}

impl View {
    /// Takes the terminal. `begun` is what the board's times are counted from.
    ///
    /// # Errors
    /// The terminal does not do it; it is as it was.
    pub fn enter(color: bool, heads: Vec<Head>, begun: Instant) -> io::Result<Self> {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |information| {
            restore();
            hook(information);
        }));
        let terminal = take().inspect_err(|_| restore())?;
        let (sender, typed) = mpsc::channel(TYPED);
        let mut clock = interval(FRAME);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let leave = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&leave);
        let thread = std::thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || read_keys(&told, &sender))
            .inspect_err(|_| restore())?;
        Ok(Self {
            terminal,
            look: Look { color, unicode: is_utf8(|name| std::env::var(name).ok()) },
            heads,
            begun,
            state: State::default(),
            clock,
            typed,
            keys: Some(Keys { leave, thread }),
        })
    }

    /// What is to be done next: a key says so, or the clock.
    pub async fn attend(&mut self) -> Wish {
        tokio::select! {
            typed = self.typed.recv() => {
                typed.map_or(Wish::Lines, |typed| self.state.typed(&typed))
            }
            _ = self.clock.tick() => Wish::Draw,
        }
    }

    /// Draws what the board shows now. `message` is the last thing that was said beside it.
    ///
    /// # Errors
    /// The terminal has gone.
    pub fn draw(&mut self, board: &Shared, message: Option<&Line>) -> io::Result<()> {
        let mut board = board.lock().unwrap_or_else(PoisonError::into_inner);
        board.tick(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        let scene = Scene { board: &board, heads: &self.heads, message, look: self.look };
        self.terminal.draw(|frame| draw::draw(frame.buffer_mut(), &scene, &mut self.state))?;
        Ok(())
    }

    /// Shows this beside the machines until the next key.
    pub fn notice(&mut self, text: String) {
        self.state.notice = Some(text);
    }

    /// An interface is served no more.
    pub fn close(&mut self, interface: &str) {
        self.heads.retain(|head| head.interface != interface);
    }

    /// Ctrl-Z: gives the terminal back, stops as a shell's job does, and takes it again.
    ///
    /// # Errors
    /// The terminal cannot be taken again.
    pub fn suspend(&mut self) -> io::Result<()> {
        restore();
        // To the whole group, as the terminal itself would; it returns when the job goes on.
        kill(Pid::from_raw(0), Signal::SIGTSTP)?;
        self.terminal = take()?;
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(keys) = self.keys.take() {
            keys.leave.store(true, Ordering::Relaxed);
            let _ = keys.thread.join();
        }
        restore();
    }
}

fn take() -> io::Result<Terminal<CrosstermBackend<io::Stdout>>> {
    SHOWN.store(true, Ordering::Relaxed);
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen)?;
    let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
    terminal.clear()?;
    Ok(terminal)
}

/// Gives the terminal back, if it is taken. What does not succeed has nowhere to be told.
fn restore() {
    if SHOWN.swap(false, Ordering::Relaxed) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

fn read_keys(leave: &AtomicBool, typed: &mpsc::Sender<Event>) {
    while !leave.load(Ordering::Relaxed) {
        match event::poll(KEYS).and_then(|any| any.then(event::read).transpose()) {
            // What is typed faster than it is drawn is left out.
            Ok(Some(event)) => drop(typed.try_send(event)),
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// Whether the terminal shows more than ASCII, by the first of these variables that says anything
/// (locale(7)).
fn is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(variable)
        .find(|value| !value.is_empty())
        .is_some_and(|value| value.to_lowercase().replace('-', "").ends_with("utf8"))
}

#[cfg(test)]
mod tests;
