//! The live view's picture: the board and where the person is in it, drawn into a buffer of cells.
//!
//! Guarantees: pure; right at any size, from 40 columns on readable; what was told by machines or
//! servers comes from the board, which has no control character; without colours nothing is lost but
//! colour, and without Unicode nothing but the look.

use std::net::Ipv4Addr;

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
};

use super::state::{Page, State};
use crate::{
    board::{Board, Download, Machine, Step},
    report::{
        explain::{broken_at, probably},
        text::{self, Line, Tone},
        units::{ports, size, time},
    },
};

/// Below this width a line has only the end of the address, the step, the bar and its part.
const NARROW: u16 = 60;
/// From this width on it has maker, address and sizes as well.
const WIDE: u16 = 120;

/// What is open on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Interface.
    pub interface: String,
    /// Our address on it.
    pub address: Option<Ipv4Addr>,
    /// Open UDP and TCP ports.
    pub ports: (Vec<u16>, Vec<u16>),
    /// When it closes by itself, in milliseconds since the run began.
    pub ends: u64,
}

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Colours.
    pub color: bool,
    /// More than ASCII.
    pub unicode: bool,
}

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The machines.
    pub board: &'a Board,
    /// What is open.
    pub heads: &'a [Head],
    /// What was said last beside the machines.
    pub message: Option<&'a Line>,
    /// How.
    pub look: Look,
}

/// What the keys do, as the help page has it.
const KEYS: [(&str, &str); 7] = [
    ("up, down, j, k", "choose a machine, or scroll"),
    ("Page Up, Page Down", "by ten lines; Home and End to either end"),
    ("Enter", "all about the chosen machine, and back"),
    ("l", "write what happened to a file"),
    ("Ctrl-Z", "stop for a while (nothing is served meanwhile); fg goes on"),
    ("q, Ctrl-C", "close everything and end; a second Ctrl-C does so at once"),
    ("?", "this page"),
];

/// Draws all.
pub fn draw(buffer: &mut Buffer, scene: &Scene<'_>, state: &mut State) {
    let Rect { width, height, .. } = buffer.area;
    if width == 0 || height == 0 {
        return;
    }
    let mut canvas = Canvas { buffer, width };
    let top = header(&mut canvas, scene);
    let bottom = height.saturating_sub(2);
    let body = top.min(bottom)..bottom;
    let machine = match state.page {
        Page::Details(id) => scene.board.machine(id),
        Page::List | Page::Help => None,
    };
    match (state.page, machine) {
        (Page::Help, _) => help(&mut canvas, body),
        (Page::Details(_), Some(machine)) => details(&mut canvas, machine, scene, state, body),
        // Also for one that is on the board no more.
        (Page::List | Page::Details(_), _) => {
            state.page = Page::List;
            list(&mut canvas, scene, state, body);
        }
    }
    footer(&mut canvas, scene, state, bottom);
    canvas.fit(scene.look);
}

/// Writes lines of text into a buffer; what does not fit is cut off.
struct Canvas<'a> {
    buffer: &'a mut Buffer,
    width: u16,
}

impl Canvas<'_> {
    /// Writes at a column, in at most so many columns, and returns the column behind them.
    fn put(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) -> u16 {
        let width = width.min(self.width.saturating_sub(x));
        if width > 0 && y < self.buffer.area.height {
            self.buffer.set_stringn(x, y, text, usize::from(width), style);
        }
        x.saturating_add(width)
    }

    fn line(&mut self, y: u16, text: &str, style: Style) {
        self.put(0, y, self.width, text, style);
    }

    /// Writes at a column, up to the right edge; where there is more, it says so.
    fn cut(&mut self, x: u16, y: u16, text: &str, style: Style) {
        self.put(x, y, self.width, text, style);
        let end = text.chars().count().saturating_add(usize::from(x));
        if end > usize::from(self.width) {
            self.right(y, "\u{2026}", style);
        }
    }

    /// Writes so that it ends at the right edge.
    fn right(&mut self, y: u16, text: &str, style: Style) {
        let length = u16::try_from(text.chars().count()).unwrap_or(u16::MAX);
        self.put(self.width.saturating_sub(length), y, length, text, style);
    }

    /// A bar of so many columns, of which so many thousandths are done.
    fn bar(&mut self, x: u16, y: u16, width: u16, thousandths: u16, style: Style) {
        let done = u32::from(width) * u32::from(thousandths.min(1000)) / 1000;
        let done = usize::try_from(done).unwrap_or_default();
        let left = usize::from(width).saturating_sub(done);
        self.put(x, y, width, &"\u{2588}".repeat(done), style);
        let x = x.saturating_add(u16::try_from(done).unwrap_or(width));
        self.put(x, y, width, &"\u{2591}".repeat(left), dim());
    }

    /// Takes off what the terminal cannot show.
    fn fit(&mut self, look: Look) {
        for cell in &mut self.buffer.content {
            if !look.color {
                (cell.fg, cell.bg) = (Color::Reset, Color::Reset);
            }
            if !look.unicode && !cell.symbol().is_ascii() {
                let plain = match cell.symbol() {
                    "\u{2588}" => "#",
                    "\u{2591}" | "\u{2026}" => ".",
                    _ => "?",
                };
                cell.set_symbol(plain);
            }
        }
    }
}

fn plain() -> Style {
    Style::new()
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn toned(tone: Tone) -> Style {
    match tone {
        Tone::Plain => plain(),
        Tone::Dim => dim(),
        Tone::Good => plain().fg(Color::Green),
        Tone::Attention => bold().fg(Color::Yellow),
    }
}

fn step_style(step: Step) -> Style {
    match step {
        Step::HandedOver | Step::Up => toned(Tone::Good),
        Step::Stopped => toned(Tone::Attention),
        Step::LeftAlone => dim(),
        _ => plain().fg(Color::Cyan),
    }
}

/// What is open, and how the machines stand. Returns the line below.
fn header(canvas: &mut Canvas<'_>, scene: &Scene<'_>) -> u16 {
    let board = scene.board;
    let mut y = 0;
    for head in scene.heads {
        let left = time(head.ends.saturating_sub(board.now()) / 60_000 * 60_000);
        let address = head.address.map(|address| format!(" {address}")).unwrap_or_default();
        let x = if canvas.width < WIDE { 0 } else { canvas.put(0, y, 12, "Portcullis", bold()) };
        let open = ports(&head.ports.0, &head.ports.1);
        let text = match canvas.width {
            0..NARROW => format!("{}{address}", head.interface),
            _ => format!("{}{address}, open: {open}", head.interface),
        };
        canvas.put(x, y, canvas.width, &text, bold());
        if canvas.width >= NARROW {
            canvas.right(y, &format!("  {left} left"), dim());
        }
        y = y.saturating_add(1);
    }
    let totals = board.totals();
    let count = board.machines().len();
    let mut text = match count {
        0 => "no machine yet".to_owned(),
        1 => "1 machine".to_owned(),
        _ => format!("{count} machines"),
    };
    // First what somebody should look at: the end may be cut off.
    let (stopped, others): (Vec<_>, Vec<_>) =
        totals.steps.iter().filter(|_| count > 1).partition(|(step, _)| **step == Step::Stopped);
    for (step, count) in stopped.into_iter().chain(others) {
        text.push_str(&format!(", {count} {}", step.words()));
    }
    canvas.cut(0, y, &text, plain());
    if totals.octets_per_second > 0 {
        let rate = format!("  {}/s", size(totals.octets_per_second));
        let room = usize::from(canvas.width).saturating_sub(rate.chars().count());
        if text.chars().count() > room {
            canvas.right(y, &format!("\u{2026}{rate}"), plain());
        }
        canvas.right(y, &rate, bold());
    }
    y.saturating_add(2)
}

fn footer(canvas: &mut Canvas<'_>, scene: &Scene<'_>, state: &State, y: u16) {
    match (&state.notice, scene.message) {
        (Some(notice), _) => canvas.line(y, notice, bold()),
        (None, Some(message)) => canvas.cut(0, y, &message.text, toned(message.tone)),
        (None, None) => {}
    }
    let keys = match (state.page, canvas.width) {
        (Page::Help, _) => "any key: back   q: close and end",
        (Page::Details(_), 0..NARROW) => "Enter: back   q: end",
        (Page::Details(_), _) => "up/down: scroll   Enter: back   l: save log   q: close and end",
        (Page::List, 0..NARROW) => "Enter: details   ?: help   q: end",
        (Page::List, _) => {
            "up/down: choose   Enter: details   l: save log   ?: help   q: close and end"
        }
    };
    canvas.line(y.saturating_add(1), keys, dim());
}

fn list(canvas: &mut Canvas<'_>, scene: &Scene<'_>, state: &mut State, body: std::ops::Range<u16>) {
    let count = scene.board.machines().len();
    if count == 0 {
        state.order.clear();
        let text = "Now let the other machine boot from the network: often F12, right after it is \
                    switched on. What it does then is shown here.";
        for (y, line) in body.zip(broken_at(usize::from(canvas.width), text, 0, 0)) {
            canvas.line(y, &line, plain());
        }
        return;
    }
    let rows = usize::from(body.end.saturating_sub(body.start)).max(1);
    let mut machines: Vec<_> = scene.board.machines().collect();
    if count > rows {
        machines.sort_by_key(|machine| rank(machine));
    }
    state.order = machines.iter().map(|machine| machine.id).collect();
    let chosen = state.line();
    // The chosen line is shown, and no line is wasted at the end.
    let least = (chosen + 1).saturating_sub(rows);
    state.top = state.top.clamp(least, chosen).min(count.saturating_sub(rows));
    for (index, (y, machine)) in
        (state.top..).zip(body.clone().zip(machines.iter().skip(state.top)))
    {
        row(canvas, y, machine, index == chosen, scene.heads.len() > 1);
    }
    if count > rows {
        let last = (state.top + rows).min(count);
        let text = format!("  {}-{last} of {count}", state.top + 1);
        canvas.right(body.start.saturating_sub(1), &text, dim());
    }
}

/// Who stands first where there is no room for all: who needs somebody, who is at work, who has what it
/// came for, who is not served.
fn rank(machine: &Machine) -> u8 {
    match machine.step {
        Step::Stopped => 0,
        _ if machine.attention.is_some() => 0,
        Step::HandedOver | Step::Up => 2,
        Step::LeftAlone => 3,
        _ => 1,
    }
}

/// One machine: who it is, how far it is, and what comes to it or was said of it last.
fn row(canvas: &mut Canvas<'_>, y: u16, machine: &Machine, chosen: bool, several: bool) {
    let (narrow, wide) = (canvas.width < NARROW, canvas.width >= WIDE);
    let style = if chosen { bold() } else { plain() };
    canvas.put(0, y, 2, if chosen { ">" } else { "" }, bold());
    let mac = machine.mac.to_string();
    let shown = if narrow { mac.get(9..).unwrap_or_default() } else { &mac };
    let mut x = 2;
    let mut column = |canvas: &mut Canvas<'_>, width: u16, text: &str, style: Style| {
        x = canvas.put(x, y, width, text, style).saturating_add(1);
        x
    };
    column(canvas, if narrow { 8 } else { 17 }, shown, style);
    if several && !narrow {
        column(canvas, 8, &machine.interface, plain());
    }
    if wide {
        let address = machine.address.map(|address| address.to_string()).unwrap_or_default();
        column(canvas, 15, &address, plain());
        let kind = machine.vendor.as_ref().or(machine.architecture.as_ref());
        column(canvas, 22, kind.map_or("", String::as_str), dim());
    }
    let x = column(canvas, 11, machine.step.words(), step_style(machine.step));
    match machine.download() {
        Some(download) => progress(canvas, x, y, download),
        None => {
            let last = machine.log.back();
            let (text, style) = match (&machine.attention, last) {
                (Some(text), _) => (text.as_str(), toned(Tone::Attention)),
                (None, Some(last)) => (last.text.trim_start(), toned(last.tone)),
                (None, None) => ("", plain()),
            };
            canvas.cut(x, y, text, style);
        }
    }
}

/// From a column to the right edge: the bar, its part, rate and what is left; with room, sizes too.
fn progress(canvas: &mut Canvas<'_>, x: u16, y: u16, download: &Download) {
    let part = download.thousandths();
    let percent = part.map(|part| format!("{:>3}%", part / 10)).unwrap_or_default();
    let rate = download.octets_per_second.map(|rate| format!("{}/s", size(rate)));
    let rate = rate.unwrap_or_default();
    let left = download.remaining.map(time).unwrap_or_default();
    let amount = match download.size {
        0 => size(download.sent),
        all => format!("{} of {}", size(download.sent), size(all)),
    };
    let figures = match canvas.width {
        0..NARROW => percent,
        NARROW..WIDE => format!("{percent} {rate:>11} {left:>10}"),
        WIDE.. => {
            let again = match download.retransmissions {
                0 => String::new(),
                count => format!("{count} again"),
            };
            format!("{percent}  {amount:>20} {rate:>11} {left:>10} {again:>10}")
        }
    };
    let length = u16::try_from(figures.chars().count()).unwrap_or(u16::MAX);
    let width = canvas.width.saturating_sub(x).saturating_sub(length.saturating_add(1));
    match part {
        Some(part) => canvas.bar(x, y, width, part, plain().fg(Color::Cyan)),
        // How much there is in all is not known.
        None => drop(canvas.put(x, y, width, &amount, plain())),
    }
    canvas.right(y, &figures, plain());
}

/// All that is known of one machine.
fn details(
    canvas: &mut Canvas<'_>,
    machine: &Machine,
    scene: &Scene<'_>,
    state: &mut State,
    body: std::ops::Range<u16>,
) {
    let width = usize::from(canvas.width.saturating_sub(1));
    let mut lines: Vec<(String, Style)> = Vec::new();
    let mut add = |text: &str, hanging: usize, style: Style| {
        let first = text.chars().take_while(|one| *one == ' ').count();
        lines.extend(broken_at(width, text, first, hanging).into_iter().map(|line| (line, style)));
    };
    let known = [
        machine.vendor.clone(),
        machine.architecture.clone(),
        machine.address.map(|address| address.to_string()),
        Some(format!("on {}", machine.interface)),
    ];
    let known: Vec<_> = known.into_iter().flatten().collect();
    add(&format!("{}, {}", machine.mac, known.join(", ")), 4, bold());
    let ago = time(scene.board.now().saturating_sub(machine.since));
    let boots = match machine.boots {
        0 => String::new(),
        1 => "; was given everything once".to_owned(),
        many => format!("; was given everything {many} times"),
    };
    let reached = match machine.step {
        Step::Stopped => format!(" ({})", machine.reached.words()),
        _ => String::new(),
    };
    let step = machine.step.words();
    add(&format!("{step}{reached} for {ago}{boots}"), 4, step_style(machine.step));
    if let Some(stop) = &machine.stop {
        add(&format!("Nothing more came since: {}.", stop.step), 4, toned(Tone::Attention));
        if let Some(line) = probably(&stop.screen) {
            add(&line.text, 4, toned(line.tone));
        }
        for advice in &stop.advice {
            add(&format!("  - {advice}"), 4, plain());
        }
    }
    let downloads = lines.len() + 1;
    let bars = machine.downloads.len();
    lines.push((String::new(), plain()));
    for download in &machine.downloads {
        lines.push((format!("{} {}", text::role(download.role), download.file), plain()));
    }
    if bars > 0 {
        lines.push((String::new(), plain()));
    }
    for entry in &machine.log {
        let head = format!("{:>8}  ", time(entry.at));
        let text = broken_at(width.saturating_sub(10), entry.text.trim_start(), 0, 2);
        for (index, line) in text.into_iter().enumerate() {
            let head = if index == 0 { &head } else { "          " };
            lines.push((format!("{head}{line}"), toned(entry.tone)));
        }
    }
    let rows = usize::from(body.end.saturating_sub(body.start));
    state.scroll = state.scroll.min(lines.len().saturating_sub(rows));
    for (index, (y, (line, style))) in
        (state.scroll..).zip(body.zip(lines.iter().skip(state.scroll)))
    {
        let download =
            index.checked_sub(downloads).and_then(|number| machine.downloads.get(number));
        match download {
            Some(download) => {
                let x = canvas.put(0, y, canvas.width.min(28), line, *style);
                progress(canvas, x.saturating_add(1), y, download);
            }
            None => canvas.line(y, line, *style),
        }
    }
}

fn help(canvas: &mut Canvas<'_>, body: std::ops::Range<u16>) {
    let mut lines = vec!["Keys".to_owned()];
    let width = usize::from(canvas.width);
    for (key, text) in KEYS {
        lines.extend(broken_at(width, &format!("{key}: {text}"), 2, 4));
    }
    for (y, line) in body.zip(&lines) {
        canvas.line(y, line, plain());
    }
}
