//! What the page is told, as it happens: what is open, the machines, the traffic (server-sent events,
//! HTML Living Standard section 9.2).
//!
//! Guarantees: a reader is told how things stand when there is room for it in its connection, never
//! what it has missed, so that a slow one costs no memory and keeps nobody waiting; at most four
//! messages a second for each of [`READERS`]. Nothing is made ready while nobody reads. Reads the
//! board; the only thing of its own that it remembers is what is open, and [`NOTES`] remarks.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::metrics::Metrics;
use crate::{
    board::{Board, Machine, Shared, Step},
    event::Event,
    report::{
        explain,
        text::{self, Line, Tone},
    },
};

/// Pages that are kept up to date at once.
const READERS: usize = 16;
/// Remarks that are remembered.
const NOTES: usize = 20;
/// Between two messages: fast enough for bars that move, slow enough for sixty machines.
const PACE: Duration = Duration::from_millis(250);
/// While something is being sent, rates and chart go on at least so often.
const SECOND: Duration = Duration::from_secs(1);
/// And so often when nothing happens, by which the page knows that it is still heard.
const QUIET: Duration = Duration::from_secs(10);

/// What is open on one interface, line by line.
#[derive(Clone, Debug, Serialize)]
struct Outlet {
    interface: String,
    lines: Vec<Said>,
}

/// A line without its place in a column.
#[derive(Clone, Debug, Serialize)]
struct Said {
    /// The word before it, if it has one.
    label: String,
    text: String,
    tone: Tone,
}

impl Said {
    fn new(line: &Line) -> Self {
        // Two blanks, the word, and blanks up to the twelfth column: `report::text::ready`.
        let parts = line.text.strip_prefix("  ").and_then(|rest| rest.split_at_checked(10));
        let (label, text) = parts.unwrap_or(("", &line.text));
        Self { label: label.trim().to_owned(), text: text.trim().to_owned(), tone: line.tone }
    }
}

/// What is told beside the machines.
#[derive(Debug, Default)]
struct Head {
    /// Grows with each change.
    revision: u64,
    outlets: Vec<Outlet>,
    notes: VecDeque<Said>,
}

/// Where the page gets what it shows.
#[derive(Debug)]
pub struct Feed {
    board: Shared,
    /// What the times of events are counted from.
    begun: Instant,
    /// Tells this run from the one before.
    run: String,
    head: Mutex<Head>,
    metrics: Mutex<Metrics>,
    seats: Arc<Semaphore>,
}

impl Feed {
    /// Reads `board`, whose times are counted from `begun`; `run` is a text of this run's own.
    #[must_use]
    pub fn new(board: Shared, begun: Instant, run: String) -> Arc<Self> {
        let (head, metrics) = (Mutex::default(), Mutex::default());
        let seats = Arc::new(Semaphore::new(READERS));
        Arc::new(Self { board, begun, run, head, metrics, seats })
    }

    /// Counts an event; the board has it already.
    pub fn count(&self, event: &Event) {
        locked(&self.metrics).count(event);
    }

    /// How things stand on an interface now, in place of what was said of it before.
    pub fn outlet(&self, interface: &str, lines: &[Line]) {
        let lines = lines.iter().map(Said::new).collect();
        let mut head = locked(&self.head);
        head.revision += 1;
        let interface = interface.to_owned();
        match head.outlets.iter_mut().find(|outlet| outlet.interface == interface) {
            Some(outlet) => outlet.lines = lines,
            None => head.outlets.push(Outlet { interface, lines }),
        }
    }

    /// A remark.
    pub fn note(&self, line: &Line) {
        let mut head = locked(&self.head);
        head.revision += 1;
        if head.notes.len() >= NOTES {
            head.notes.pop_front();
        }
        head.notes.push_back(Said::new(line));
    }

    /// Totals for a scraper.
    #[must_use]
    pub fn totals(&self) -> String {
        let known = locked(&self.board).totals().steps;
        let count = |step| (step_word(step), known.get(&step).copied().unwrap_or_default());
        let machines: BTreeMap<_, _> = Step::ALL.into_iter().map(count).collect();
        locked(&self.metrics).render(&machines)
    }

    /// What happened with the machine of this number, as JSON.
    #[must_use]
    pub fn log(&self, number: &str) -> Option<String> {
        let number = number.parse().ok()?;
        serde_json::to_string(&locked(&self.board).machine(number)?.log).ok()
    }

    /// Everything, and then what changes, until the reader leaves. `None`: too many read already.
    #[must_use]
    pub fn read(self: &Arc<Self>) -> Option<Body> {
        let seat = Arc::clone(&self.seats).try_acquire_owned().ok()?;
        let reader = Reader { feed: Arc::clone(self), _seat: seat, seen: None };
        Some(Body::from_stream(stream::unfold(reader, |mut reader| async {
            let message = reader.next().await;
            Some((Ok::<_, Infallible>(message), reader))
        })))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a reader knows.
#[derive(Clone, Copy, Debug)]
struct Seen {
    board: u64,
    head: u64,
    /// How many machines, and the number of the next new one.
    machines: usize,
    next: u64,
    told: Instant,
}

/// One page.
struct Reader {
    feed: Arc<Feed>,
    _seat: OwnedSemaphorePermit,
    seen: Option<Seen>,
}

impl Reader {
    /// The next message: everything at first, then what has changed, once something has.
    async fn next(&mut self) -> Bytes {
        loop {
            if self.seen.is_some() {
                tokio::time::sleep(PACE).await;
            }
            if let Some(message) = self.look(Instant::now()) {
                return message.into();
            }
        }
    }

    fn look(&mut self, now: Instant) -> Option<String> {
        let mut board = locked(&self.feed.board);
        board.tick(self.feed.now());
        // A machine that had to make room for another is not told of by what has changed.
        let known = self.seen.filter(|seen| {
            let new = board.machines().rev().take_while(|machine| machine.id >= seen.next).count();
            seen.machines + new == board.machines().len()
        });
        let head = locked(&self.feed.head);
        if let Some(seen) = known {
            let running = board.machines().any(|machine| !machine.downloads.is_empty());
            let moves = running || board.traffic().any(|octets| octets > 0);
            let patience = if moves { SECOND } else { QUIET };
            let changed = board.revision() > seen.board || head.revision > seen.head;
            if !changed && now.saturating_duration_since(seen.told) < patience {
                return None;
            }
        }
        let mut told = message(&board, known);
        told["run"] = self.feed.run.as_str().into();
        if known.is_none_or(|seen| head.revision > seen.head) {
            told["outlets"] = json!(head.outlets);
            told["notes"] = json!(head.notes);
        }
        let seen = Seen {
            board: board.revision(),
            head: head.revision,
            machines: board.machines().len(),
            next: board.machines().next_back().map_or(0, |machine| machine.id + 1),
            told: now,
        };
        self.seen = Some(seen);
        let event = if known.is_some() { "update" } else { "snapshot" };
        let id = format!("{}-{}-{}", self.feed.run, seen.board, seen.head);
        // Once the connection is lost, a second passes until the next try.
        Some(format!("retry: 1000\nid: {id}\nevent: {event}\ndata: {told}\n\n"))
    }
}

/// The machines that are new to the reader, or all.
fn message(board: &Board, known: Option<Seen>) -> Value {
    let is_new = |machine: &&Machine| {
        known.is_none_or(|seen| machine.revision > seen.board || !machine.downloads.is_empty())
    };
    let mut told = json!({
        "now": board.now(),
        "totals": board.totals(),
        "traffic": board.traffic().collect::<Vec<_>>(),
        "machines": board.machines().filter(is_new).map(card).collect::<Vec<_>>(),
    });
    if known.is_none() {
        let words: BTreeMap<_, _> =
            Step::ALL.into_iter().map(|step| (step_word(step), step.words())).collect();
        told["words"] = json!(words);
        told["version"] = env!("CARGO_PKG_VERSION").into();
    }
    told
}

/// A machine as the board has it, with the words for its downloads and its screen; of its log only how
/// much there is and when it last grew.
fn card(machine: &Machine) -> Value {
    // Numbers, texts and lists of them, which cannot fail.
    let mut card = serde_json::to_value(machine).unwrap_or_default();
    card["log"] = json!([machine.log.len(), machine.log.back().map(|entry| entry.at)]);
    for (value, download) in
        card["downloads"].as_array_mut().into_iter().flatten().zip(&machine.downloads)
    {
        value["what"] = text::role(download.role).into();
    }
    if let Some(stop) = &machine.stop {
        let words = explain::probably(&stop.screen).map(|line| line.text.trim().to_owned());
        card["stop"]["screen_words"] = json!(words);
    }
    card
}

fn step_word(step: Step) -> String {
    let word = serde_json::to_value(step).unwrap_or_default();
    word.as_str().unwrap_or_default().to_owned()
}
