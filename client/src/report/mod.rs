//! What a person, or a program, gets to see.
//!
//! Results (the state, each machine's way) go to stdout; questions, notes and errors to stderr.
//! Pure functions make the text ([`text`], [`explain`], [`doctor`], [`units`]) and the objects ([`json`]); this file only
//! writes them. A reader that has gone away is no error: serving goes on.
//!
//! On a terminal the live view ([`view`]) takes the place of lines while machines are served. What is
//! said meanwhile is kept, and stands on the terminal when the view is left.

pub mod doctor;
pub mod explain;
pub mod json;
pub mod text;
pub mod units;
pub mod view;

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    board::{Board, Shared},
    cli::{Color, Common, Serving},
    codes::{self, Entry},
    doctor::Diagnosis,
    event::{Event, Fact, What},
    exit::Failure,
    interfaces::Interface,
    nixos::Told,
    oui::Vendors,
    session::Lease,
    source::cache::Record,
    web::events::Feed,
};

use text::{Line, Narrator, Tone};
use view::{View, draw::Head, state::Wish};

/// Lines that are kept while the live view is shown; older ones are left out.
const KEPT: usize = 200;

/// What is about to be opened.
#[derive(Clone, Debug)]
pub struct Asking {
    /// Interface.
    pub interface: String,
    /// UDP ports.
    pub udp_ports: Vec<u16>,
    /// TCP ports.
    pub tcp_ports: Vec<u16>,
    /// Seconds until it closes by itself at the latest; `None` leaves it to the site.
    pub max_seconds: Option<u32>,
    /// Whether addresses are handed out, too.
    pub dhcp_server: bool,
}

/// A file that is served.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Served {
    /// Name.
    pub name: String,
    /// Octets; none if a web server does not tell.
    pub bytes: Option<u64>,
}

/// Everything is open and served.
#[derive(Clone, Debug)]
pub struct Ready<'a> {
    /// The lease.
    pub lease: &'a Lease,
    /// What the times of events are counted from.
    pub begun: Instant,
    /// No other interface follows.
    pub last: bool,
    /// Address of the API that is asked about each machine; there is no kernel of all then.
    pub api: Option<&'a str>,
    /// Kernel.
    pub kernel: Option<Served>,
    /// Initrds.
    pub initrds: Vec<Served>,
    /// Names of the sources, if there is a menu of them.
    pub menu: Vec<String>,
    /// Kernel command line.
    pub cmdline: String,
    /// Names of the loaders.
    pub loaders: Vec<String>,
    /// Machines that can be served.
    pub can: Vec<String>,
    /// Machines that cannot, and why.
    pub cannot: Vec<String>,
    /// How many machines can have an address at a time, if addresses are handed out.
    pub addresses: Option<usize>,
    /// What limits it further (`--for-mac`, `--once`, `--count`), in words.
    pub only: Vec<String>,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Errors, and machines that need attention.
    Quiet,
    /// What happens.
    #[default]
    Normal,
    /// Everything.
    Debug,
}

/// Writes what happens, in one form.
#[derive(Debug)]
pub struct Report {
    json: bool,
    detail: Detail,
    timestamps: bool,
    color_out: bool,
    color_err: bool,
    /// Whether stdout is a terminal, on which a last line can be overwritten.
    live: bool,
    /// Whether such a line stands there now.
    status_shown: bool,
    /// Whether the reader of stdout has gone.
    deaf: bool,
    narrator: Narrator,
    board: Shared,
    /// The web page, if there is one: it reads the board, and is told the rest.
    page: Option<Arc<Feed>>,
    /// Whether the live view is shown once all is open.
    wants_view: bool,
    /// What is open, for the view's head.
    heads: Vec<Head>,
    view: Option<View>,
    /// What was said while the view was shown, for stdout and for stderr.
    kept: VecDeque<(Stream, Line)>,
}

/// Where a line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

impl Report {
    /// For a command without machines.
    #[must_use]
    pub fn new(common: &Common) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
        let color = |terminal: bool| match common.color {
            Color::Always => true,
            Color::Never => false,
            // https://no-color.org: set and not empty.
            Color::Auto => {
                terminal && !dumb && std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty())
            }
        };
        let live = io::stdout().is_terminal() && !dumb && !common.json;
        Self {
            json: common.json,
            detail: Detail::Normal,
            timestamps: false,
            color_out: color(io::stdout().is_terminal()),
            color_err: color(io::stderr().is_terminal()),
            live,
            status_shown: false,
            deaf: false,
            narrator: Narrator { debug: false, live, several: false },
            board: Arc::new(Mutex::new(Board::new(Vendors::system()))),
            page: None,
            wants_view: false,
            heads: Vec::new(),
            view: None,
            kept: VecDeque::new(),
        }
    }

    /// For a command that serves.
    #[must_use]
    pub fn for_serving(boot: &Serving) -> Self {
        let mut report = Self::new(&boot.common);
        report.detail = match (boot.quiet, boot.debug) {
            (true, _) => Detail::Quiet,
            (_, true) => Detail::Debug,
            _ => Detail::Normal,
        };
        report.timestamps = boot.log_timestamps;
        let lines = boot.plain || boot.log_timestamps || report.detail != Detail::Normal;
        report.wants_view = report.live && !lines && view::possible();
        report.narrator =
            Narrator { debug: boot.debug, live: report.live, several: boot.interface.len() > 1 };
        report
    }

    /// Without the live view: somebody else writes to the terminal, too.
    #[must_use]
    pub fn in_lines(mut self) -> Self {
        self.wants_view = false;
        self
    }

    /// Says where the web page is, and tells it what comes.
    pub fn page(&mut self, feed: Arc<Feed>, url: &str, is_public: bool) {
        if self.json {
            self.object(&json::page(url, is_public));
        } else {
            for line in text::page(url, is_public) {
                self.result(&line);
            }
        }
        self.page = Some(feed);
    }

    fn tell_page(&self, tell: impl FnOnce(&Feed)) {
        if let Some(page) = &self.page {
            tell(page);
        }
    }

    /// Says what is about to be opened.
    pub fn asking(&mut self, asking: &Asking) {
        self.tell_page(|page| page.outlet(&asking.interface, &[text::asking(asking)]));
        if self.json {
            self.object(&json::asking(asking));
        } else if self.detail != Detail::Quiet {
            self.message(&text::asking(asking));
        }
    }

    /// Says that all is open.
    pub fn ready(&mut self, ready: &Ready<'_>) {
        self.tell_page(|page| {
            // Without what is said to the terminal alone.
            let lines = text::ready(&Ready { last: false, ..ready.clone() }, false);
            page.outlet(&ready.lease.facts.interface, &lines);
        });
        if self.json {
            self.object(&json::ready(ready));
        } else if self.detail != Detail::Quiet {
            for line in text::ready(ready, self.detail == Detail::Debug) {
                self.result(&line);
            }
        }
        self.open_view(ready);
    }

    /// After the last interface's first screen: what follows is shown in the live view, if there is to
    /// be one. Where the terminal refuses, lines go on.
    fn open_view(&mut self, ready: &Ready<'_>) {
        if !self.wants_view {
            return;
        }
        let facts = &ready.lease.facts;
        let milliseconds = |time: u128| u64::try_from(time).unwrap_or(u64::MAX);
        let now = milliseconds(ready.begun.elapsed().as_millis());
        self.heads.push(Head {
            interface: facts.interface.clone(),
            address: facts.address,
            ports: (facts.udp_ports.clone(), facts.tcp_ports.clone()),
            ends: now.saturating_add(facts.ends.saturating_sub(facts.opened) / 1000),
        });
        if ready.last {
            let heads = std::mem::take(&mut self.heads);
            self.view = View::enter(self.color_out, heads, ready.begun).ok();
        }
    }

    /// Waits for the person at the live view, or for its next picture; without a view, for ever.
    pub async fn attend(&mut self) -> Wish {
        match &mut self.view {
            Some(view) => view.attend().await,
            None => std::future::pending().await,
        }
    }

    /// Does what [`Report::attend`] has returned. Returns whether all is to be closed.
    pub fn obey(&mut self, wish: Wish) -> bool {
        let Some(view) = &mut self.view else { return false };
        let done = match wish {
            Wish::Quit => return true,
            Wish::Lines => {
                self.leave();
                return false;
            }
            Wish::Draw => Ok(()),
            Wish::Suspend => view.suspend(),
            Wish::Save => {
                let text = self.save();
                if let Some(view) = &mut self.view {
                    view.notice(text.clone());
                }
                self.keep(Stream::Err, &Line::plain(text));
                Ok(())
            }
        };
        let message = self.kept.back().map(|(_, line)| line);
        let drawn = match &mut self.view {
            Some(view) => done.and_then(|()| view.draw(&self.board, message)),
            None => Ok(()),
        };
        if drawn.is_err() {
            self.leave();
        }
        false
    }

    /// Ends the live view: the terminal is as it was, and has what was said meanwhile and how each
    /// machine stands.
    fn leave(&mut self) {
        let Some(view) = self.view.take() else { return };
        drop(view);
        for (stream, line) in std::mem::take(&mut self.kept) {
            match stream {
                Stream::Out => self.result(&line),
                Stream::Err => self.message(&line),
            }
        }
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = text::summary(&board);
        drop(board);
        lines.iter().for_each(|line| self.result(line));
    }

    fn keep(&mut self, stream: Stream, line: &Line) {
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((stream, line.clone()));
    }

    /// Writes what happened to a new file, here or at home, and says what became of it.
    fn save(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = units::timestamp(now.as_secs()).replace(' ', "-").replace(':', "");
        let name = format!("portcullis-{time}.log");
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let here = std::env::current_dir().ok();
        let text = text::log(&self.board.lock().unwrap_or_else(PoisonError::into_inner));
        let mut problem = "there is no folder for it".to_owned();
        for path in here.into_iter().chain(home).map(|folder| folder.join(&name)) {
            let written =
                File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes()));
            match written {
                Ok(()) => return format!("The log is in {}", path.display()),
                Err(error) => problem = format!("{}: {error}", path.display()),
            }
        }
        format!("The log could not be written: {problem}")
    }

    /// Tells what happened with a machine on an interface.
    pub fn machine(&mut self, interface: &str, event: &Event) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let told = board.apply(interface, event);
        let seen = matches!(event.what, What::Fact(Fact::Seen { .. }));
        let vendor = (self.json && seen).then(|| board.vendor(event.mac)).flatten();
        let lines = !self.json && self.view.is_none();
        let status = (lines && self.has_status()).then(|| text::status(&board)).flatten();
        drop(board);
        self.tell_page(|page| page.count(event));
        if self.json {
            let object = json::machine(interface, event, vendor.as_deref());
            self.write(&(object + "\n"));
        }
        if !lines {
            return;
        }
        for line in self.narrator.lines(interface, event, told) {
            if self.detail != Detail::Quiet || line.tone == Tone::Attention {
                self.result(&line);
            }
        }
        self.status(status.as_deref());
    }

    /// What is known of the machines, for whoever draws it.
    #[must_use]
    pub fn board(&self) -> &Shared {
        &self.board
    }

    /// Says something on the way, such as why a flag has no effect.
    pub fn note(&mut self, note: &str) {
        self.tell_page(|page| page.note(&Line::plain(note)));
        self.remark(note);
    }

    /// As [`Report::note`], only with `--debug`, and to the terminal alone.
    pub fn detail(&mut self, note: &str) {
        if self.detail == Detail::Debug {
            self.remark(note);
        }
    }

    fn remark(&mut self, note: &str) {
        if self.json {
            self.object(&json::note(note));
        } else if self.detail != Detail::Quiet {
            self.message(&Line::plain(note));
        }
    }

    /// Tells how a build goes.
    pub fn build(&mut self, told: &Told) {
        if self.json {
            self.object(&json::build(told));
            return;
        }
        let line = text::build(told);
        if self.detail != Detail::Quiet || line.tone == Tone::Attention {
            self.message(&line);
        }
    }

    /// Whether a program that is started may write to the terminal by itself.
    #[must_use]
    pub fn shares_terminal(&self) -> bool {
        !self.json && self.detail != Detail::Quiet && io::stderr().is_terminal()
    }

    /// Says what somebody should look at, while serving goes on.
    pub fn attention(&mut self, text: &str) {
        self.tell_page(|page| page.note(&Line::attention(text)));
        if self.json {
            self.object(&json::note(text));
        } else {
            self.message(&Line::attention(text));
        }
    }

    /// Ctrl-C was pressed: what comes next begins a line of its own, after the terminal's `^C` or an
    /// unanswered prompt.
    pub fn interrupted(&mut self) {
        if self.view.is_some() {
            self.leave();
            return;
        }
        self.status(None);
        if io::stderr().is_terminal() {
            let _ = writeln!(io::stderr());
        }
    }

    /// Says that the lease is closed.
    pub fn closed(&mut self, lease: &Lease, reason: &str) {
        self.status(None);
        let facts = &lease.facts;
        self.tell_page(|page| page.outlet(&facts.interface, &[text::closed(facts)]));
        if let Some(view) = &mut self.view {
            view.close(&lease.facts.interface);
        }
        if self.json {
            self.object(&json::closed(lease, reason));
        } else if self.detail != Detail::Quiet {
            self.result(&text::closed(&lease.facts));
        }
    }

    /// Shows leases.
    pub fn leases(&mut self, leases: &[Lease], now: u64) {
        if self.json {
            for lease in leases {
                self.object(&json::lease(lease, now));
            }
        } else {
            for line in text::leases(leases, now) {
                self.result(&line);
            }
        }
    }

    /// Shows interfaces; `chosen` is what `boot` would take.
    pub fn interfaces(&mut self, interfaces: &[Interface], chosen: Option<&str>) {
        if self.json {
            for one in interfaces {
                self.object(&json::interface(one, chosen));
            }
        } else {
            for line in text::interfaces(interfaces, chosen) {
                self.result(&line);
            }
        }
    }

    /// Shows what is kept of other web servers' files, and how long ago each was used.
    pub fn copies(&mut self, copies: &[(Record, Duration)]) {
        for (record, age) in copies {
            if self.json {
                self.object(&json::copy(record, *age));
            } else {
                self.result(&text::copy(record, *age));
            }
        }
    }

    /// Explains what a screen shows.
    pub fn explanations(&mut self, entries: &[&Entry]) {
        if self.json {
            for entry in entries {
                self.object(&json::code(entry));
            }
        } else {
            for line in explain::explanations(entries) {
                self.result(&line);
            }
        }
    }

    /// Lists all that screens are known to show.
    pub fn codes(&mut self) {
        let all = &codes::data().codes;
        if self.json {
            for entry in all {
                self.object(&json::code(entry));
            }
        } else {
            for line in explain::list(all) {
                self.result(&line);
            }
        }
    }

    /// Shows what `doctor` has found.
    pub fn diagnoses(&mut self, all: &[Diagnosis]) {
        if self.json {
            for object in all.iter().flat_map(json::diagnosis) {
                self.object(&object);
            }
            self.object(&json::examined(all));
        } else {
            for line in doctor::diagnoses(all) {
                self.result(&line);
            }
        }
    }

    /// Says why the program ends.
    pub fn failure(&mut self, failure: &Failure) {
        self.leave();
        self.status(None);
        if self.json {
            self.object(&json::failure(failure));
        }
        for line in text::failure(failure) {
            self.message(&line);
        }
    }

    fn object(&mut self, object: &serde_json::Value) {
        self.write(&format!("{object}\n"));
    }

    fn result(&mut self, line: &Line) {
        if self.view.is_some() {
            return self.keep(Stream::Out, line);
        }
        self.status(None);
        let text = format!("{}{}\n", self.stamp(), line.render(self.color_out));
        self.write(&text);
    }

    fn message(&mut self, line: &Line) {
        if self.view.is_some() {
            return self.keep(Stream::Err, line);
        }
        self.status(None);
        // Nowhere is left to complain to if stderr is gone.
        let _ = writeln!(io::stderr(), "{}{}", self.stamp(), line.render(self.color_err));
    }

    fn stamp(&self) -> String {
        if !self.timestamps {
            return String::new();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("{} ", units::timestamp(now.as_secs()))
    }

    /// Whether there is a line at the bottom that shows downloads as they run.
    fn has_status(&self) -> bool {
        self.live && self.detail != Detail::Quiet
    }

    /// Replaces the line at the bottom of a terminal that shows downloads as they run.
    fn status(&mut self, text: Option<&str>) {
        if !self.has_status() {
            return;
        }
        match text {
            // From the first column, the rest of the line erased; on a narrow terminal it is cut off
            // (DECAWM), since a second line could not be taken back.
            Some(text) => self.write(&format!("\r\x1b[?7l{text}\x1b[K\x1b[?7h")),
            None if self.status_shown => self.write("\r\x1b[K"),
            None => {}
        }
        self.status_shown = text.is_some();
    }

    fn write(&mut self, text: &str) {
        if self.deaf {
            return;
        }
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        self.deaf = written.is_err();
    }
}
