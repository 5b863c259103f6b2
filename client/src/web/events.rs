//! What the page is told, as it happens: what is open, the machines, the traffic (server-sent events,
//! HTML Living Standard section 9.2).
//!
//! Guarantees: a reader is told how things stand when there is room for it in its connection, never
//! what it has missed, so that a slow one costs no memory and keeps nobody waiting; at most four
//! messages a second for each of 16 readers. Nothing is made ready while nobody reads. Reads the
//! board; the only thing of its own that it remembers is what is open, and 20 remarks.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        board::MACHINES,
        event::{Fact, Firmware, Protocol, Role, What},
        mac::MacAddr,
        oui::Vendors,
    };

    fn feed() -> Arc<Feed> {
        let board = Arc::new(Mutex::new(Board::new(Vendors::default())));
        Feed::new(board, Instant::now(), "run".to_owned())
    }

    fn tell(feed: &Feed, machine: u16, fact: Fact) {
        let [high, low] = machine.to_be_bytes();
        let event = Event { at: 0, mac: MacAddr([2, 0, 0, 0, high, low]), what: What::Fact(fact) };
        locked(&feed.board).apply("eth0", &event);
        feed.count(&event);
    }

    fn seen(feed: &Feed, machine: u16) {
        tell(feed, machine, Fact::Seen { arch: 7, firmware: Firmware::Pxe });
    }

    fn reader(feed: &Arc<Feed>) -> Reader {
        let seat = Arc::clone(&feed.seats).try_acquire_owned().unwrap();
        Reader { feed: Arc::clone(feed), _seat: seat, seen: None }
    }

    /// The event's name and what it says.
    fn read(reader: &mut Reader, now: Instant) -> Option<(String, Value)> {
        let message = reader.look(now)?;
        assert!(message.ends_with("\n\n") && message.trim_end().lines().count() == 4, "{message}");
        let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        Some((field("event: ").to_owned(), serde_json::from_str(field("data: ")).unwrap()))
    }

    fn macs(told: &Value) -> Vec<String> {
        let machines = told["machines"].as_array().unwrap();
        machines.iter().map(|one| one["mac"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_reader_is_told_everything_and_then_what_has_changed() {
        let feed = feed();
        feed.outlet("eth0", &[Line::plain("Ready on eth0"), Line::plain("  open      UDP 67")]);
        seen(&feed, 1);
        let (mut one, now) = (reader(&feed), Instant::now());
        let (event, told) = read(&mut one, now).unwrap();
        assert_eq!((event.as_str(), macs(&told).len()), ("snapshot", 1));
        assert_eq!(told["outlets"][0]["lines"][1]["label"], "open");
        assert_eq!(told["outlets"][0]["lines"][1]["text"], "UDP 67");
        assert_eq!(told["words"]["seen"], "asking");
        assert_eq!(told["machines"][0]["log"][0], 1, "of the log only how much there is");
        assert_eq!(read(&mut one, now), None, "nothing has changed");

        // However much happens, there is one message of how things stand.
        for machine in 2..50 {
            seen(&feed, machine);
            seen(&feed, machine);
        }
        let (event, told) = read(&mut one, now).unwrap();
        assert_eq!((event.as_str(), macs(&told).len()), ("update", 48));
        assert_eq!(told.get("outlets"), None);
        assert_eq!(read(&mut one, now), None);
        feed.note(&Line::attention("look"));
        let (_, told) = read(&mut one, now).unwrap();
        assert_eq!((&told["notes"][0]["text"], macs(&told).len()), (&json!("look"), 0));
        assert!(read(&mut one, now + QUIET).is_some(), "it is heard that nothing happens");
    }

    #[test]
    fn a_running_download_is_told_of_each_second_also_when_it_stands_still() {
        let feed = feed();
        let (protocol, role, file) = (Protocol::Http, Role::Initrd(0), String::new());
        let started = Fact::TransferStarted { transfer: 1, protocol, role, file, size: 9, sent: 0 };
        tell(&feed, 1, started);
        let (mut one, now) = (reader(&feed), Instant::now());
        let (_, told) = read(&mut one, now).unwrap();
        assert_eq!(told["machines"][0]["downloads"][0]["what"], "initrd");
        assert_eq!(read(&mut one, now + PACE), None);
        let (_, told) = read(&mut one, now + SECOND).unwrap();
        assert_eq!(macs(&told).len(), 1);
    }

    #[test]
    fn a_machine_that_made_room_for_another_is_not_left_standing() {
        let feed = feed();
        let most = u16::try_from(MACHINES).unwrap();
        (0..most).for_each(|machine| seen(&feed, machine));
        let (mut one, now) = (reader(&feed), Instant::now());
        assert_eq!(macs(&read(&mut one, now).unwrap().1).len(), MACHINES);
        seen(&feed, most);
        let (event, told) = read(&mut one, now).unwrap();
        assert_eq!((event.as_str(), macs(&told).len()), ("snapshot", MACHINES));
    }

    #[test]
    fn there_are_so_many_readers_and_places_come_back() {
        let feed = feed();
        let mut readers: Vec<_> = std::iter::from_fn(|| feed.read()).collect();
        assert_eq!(readers.len(), READERS);
        readers.pop();
        assert!(feed.read().is_some());
    }

    #[test]
    fn a_log_is_that_of_the_machine_that_is_named() {
        let feed = feed();
        seen(&feed, 1);
        let number = locked(&feed.board).machines().next().unwrap().id;
        assert!(feed.log(&number.to_string()).unwrap().contains("asks for network boot"));
        for other in ["", "-1", "x", "99", "../0", "99999999999999999999999"] {
            assert_eq!(feed.log(other), None, "{other}");
        }
        assert!(feed.totals().contains("portcullis_machines{step=\"seen\"} 1\n"));
        assert!(feed.totals().contains("portcullis_machines{step=\"handed-over\"} 0\n"));
    }
}
