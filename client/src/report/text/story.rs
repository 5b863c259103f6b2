//! What is said of machines: the lines of each event, how they stand at the end, the log. Pure.

use super::{
    super::{
        explain,
        units::{rate, size, time},
    },
    Line, Tone,
};
use crate::{
    board::{Board, Download},
    dhcp::table,
    event::{Event, Fact, Firmware, Ignored, OfferForm, Protocol, Role, Sign, Statement, What},
};

/// Downloads smaller than this are over before a progress line could be read.
const WORTH_PROGRESS: u64 = 16 << 20;

/// When a line about a machine is shown. The board remembers it in any case, but for progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Always.
    Always,
    /// With `--debug`.
    Debug,
    /// Progress, where no bar or status line shows it.
    Unwatched,
}

/// A line about a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The line, without a head.
    pub line: Line,
    /// When it is shown.
    pub when: When,
}

/// Chooses which lines are shown, and heads them.
#[derive(Clone, Copy, Debug)]
pub struct Narrator {
    /// Everything is shown.
    pub debug: bool,
    /// Running downloads are shown in a status line instead of lines of their own.
    pub live: bool,
    /// A machine is named with its interface.
    pub several: bool,
}

impl Narrator {
    /// The lines that are shown of what was told.
    #[must_use]
    pub fn lines(&self, interface: &str, event: &Event, told: Vec<Told>) -> Vec<Line> {
        let place = if self.several { format!("{interface}  ") } else { String::new() };
        let head = format!("{:>8}  {place}{}  ", time(event.at), event.mac);
        let shown = |when| match when {
            When::Always => true,
            When::Debug => self.debug,
            When::Unwatched => self.debug || !self.live,
        };
        told.into_iter()
            .filter(|told| shown(told.when))
            .map(|told| Line { head: head.clone(), ..told.line })
            .collect()
    }
}

/// The running downloads in one line, if there are any worth it. The largest remainder first.
#[must_use]
pub fn status(board: &Board) -> Option<String> {
    let mut worth: Vec<_> = board
        .loading()
        .flat_map(|machine| machine.downloads.iter().map(|run| (machine.mac, run)))
        .filter(|(_, run)| run.sent > 0 && run.size >= WORTH_PROGRESS)
        .collect();
    worth.sort_by_key(|(_, run)| std::cmp::Reverse(run.size.saturating_sub(run.sent)));
    let (mac, first) = worth.first()?;
    let rate = first.octets_per_second.map(|rate| format!("{}/s", size(rate))).unwrap_or_default();
    let more = match worth.len() {
        1 => String::new(),
        count => format!("  and {} more", count - 1),
    };
    Some(format!(
        "          {mac}  {}: {} of {}  {rate}{more}",
        role(first.role),
        size(first.sent),
        size(first.size)
    ))
}

/// Machines that the summary names.
const SUMMARY: usize = 100;

/// How each machine stands, for the end of the live view.
#[must_use]
pub fn summary(board: &Board) -> Vec<Line> {
    let mut lines: Vec<_> = board
        .machines()
        .take(SUMMARY)
        .map(|machine| {
            let (tone, more) = match &machine.attention {
                Some(attention) => (Tone::Attention, format!(": {attention}")),
                None => (Tone::Plain, String::new()),
            };
            let text = format!("{}  {}{more}", machine.mac, machine.step.words());
            Line { head: "  ".to_owned(), ..Line::toned(tone, text) }
        })
        .collect();
    if let Some(more) = board.machines().len().checked_sub(SUMMARY).filter(|more| *more > 0) {
        lines.push(Line::plain(format!("  and {more} more")));
    }
    lines
}

/// What happened with all machines, in order, a line each.
#[must_use]
pub fn log(board: &Board) -> String {
    let mut lines: Vec<_> = board
        .machines()
        .flat_map(|machine| machine.log.iter().map(move |entry| (entry.at, machine, entry)))
        .collect();
    lines.sort_by_key(|(at, ..)| *at);
    lines
        .into_iter()
        .map(|(at, machine, entry)| {
            let (time, interface, mac) = (time(at), &machine.interface, machine.mac);
            format!("{time:>8}  {interface}  {mac}  {}\n", entry.text)
        })
        .collect()
}

/// What is to be said of an event: nothing, or a line, or with advice several. `running` is what was
/// known before of the download that it is about.
#[must_use]
pub fn told(event: &Event, vendor: Option<&str>, running: Option<&Download>) -> Vec<Told> {
    let mut told = match &event.what {
        What::Fact(fact) => fact_line(fact, vendor, running).into_iter().collect(),
        What::Statement(statement) => statement_lines(statement)
            .into_iter()
            .map(|line| Told { line, when: When::Always })
            .collect::<Vec<_>>(),
    };
    for Told { line, .. } in &mut told {
        if !is_plain(&line.text) {
            line.text = visible(&line.text);
        }
    }
    told
}

fn fact_line(fact: &Fact, vendor: Option<&str>, running: Option<&Download>) -> Option<Told> {
    let told = |tone, when, text: String| Some(Told { line: Line::toned(tone, text), when });
    let plain = |text: String| told(Tone::Plain, When::Always, text);
    let attention = |text: String| told(Tone::Attention, When::Always, text);
    let detail = |text: String| told(Tone::Dim, When::Debug, text);
    let progress = |text: String| told(Tone::Dim, When::Unwatched, text);
    let maker = vendor.map(|vendor| format!(", {vendor}")).unwrap_or_default();
    match fact {
        Fact::Seen { arch, firmware } => plain(match firmware {
            Firmware::Pxe => format!("asks for network boot ({}{maker})", architecture(*arch)),
            Firmware::Ipxe => "iPXE runs and asks what to boot".to_owned(),
            Firmware::Http => format!("asks for HTTP boot ({}{maker})", architecture(*arch)),
        }),
        Fact::Offered { form, file } => match form {
            OfferForm::Complete => plain(format!("is told to load {}", last(file))),
            OfferForm::BootServer => plain("is told to ask our boot server".to_owned()),
            OfferForm::Menu => plain("is given the menu".to_owned()),
            OfferForm::Folder => plain("is told that its boot files are here".to_owned()),
            OfferForm::Http => plain(format!("is told to load {} by HTTP", last(file))),
            OfferForm::Script => detail(format!("is given the script {file}")),
        },
        Fact::BootServer { file } => {
            plain(format!("asks our boot server, is told to load {}", last(file)))
        }
        Fact::Ignored(why) => match why {
            Ignored::NotSelected => plain("is not among --for-mac: left alone".to_owned()),
            Ignored::AlreadyBooted => plain(
                "has booted before: left alone, so that it starts from its own disk".to_owned(),
            ),
            Ignored::NoLoader { arch } => attention(format!(
                "asks, and cannot be served: no boot loader for {} (architecture {arch}; \
                     see --ipxe-dir and --loader)",
                architecture(*arch)
            )),
            Ignored::NoEfiImage { arch, reason } => {
                attention(format!("asks, and cannot be served: {}: {reason}", architecture(*arch)))
            }
            Ignored::OtherPlatform { arch } => attention(format!(
                "asks, and cannot be served: what is served does not run on {}",
                architecture(*arch)
            )),
            Ignored::UnknownArchitecture { arch } => attention(format!(
                "asks, and cannot be served: unknown kind of machine (architecture {arch}; \
                     see --loader)"
            )),
            Ignored::Source { reason } => plain(format!("left alone: {reason}")),
        },
        Fact::Upstream { file, problem } => attention(format!("{file}: {problem}")),
        Fact::Fetched { file, octets, milliseconds, kept } => {
            let rate =
                rate(*octets, *milliseconds).map(|rate| format!(", {rate}")).unwrap_or_default();
            let kept = if *kept { ", and a copy is kept" } else { "" };
            plain(format!(
                "{file} was fetched for all machines: {} in {}{rate}{kept}",
                size(*octets),
                time(*milliseconds)
            ))
        }
        Fact::Reused { file, octets } => {
            plain(format!("{file} is the same as the copy kept here ({})", size(*octets)))
        }
        Fact::NotSent { reason } => {
            attention(format!("asks, and the answer could not be sent: {reason}"))
        }
        Fact::Selected { server, address } => {
            let address = address.map(|address| format!(" {address}")).unwrap_or_default();
            detail(format!("takes the address{address} that the DHCP server {server} offered"))
        }
        Fact::Leased { address } => plain(format!("is given the address {address}")),
        Fact::TransferStarted { role: what, file, size: octets, .. } => {
            let text = format!("fetches the {} ({})", named(*what, file), size(*octets));
            if *octets >= WORTH_PROGRESS { progress(text) } else { detail(text) }
        }
        Fact::TransferProgress { sent, .. } => {
            let run = running?;
            let quarter = |sent: u64| u128::from(sent) * 4 / u128::from(run.size.max(1));
            let (before, now) = (quarter(run.sent), quarter(*sent));
            let worth = run.size >= WORTH_PROGRESS && before < now && now < 4;
            let (done, all) = (size(*sent), size(run.size));
            worth.then(|| progress(format!("{}: {done} of {all}", role(run.role)))).flatten()
        }
        Fact::TransferDone { sent, milliseconds, retransmissions, .. } => {
            if running.is_some_and(|run| run.role == Role::Script) {
                return detail(format!("has the script ({})", size(*sent)));
            }
            let rate =
                rate(*sent, *milliseconds).map(|rate| format!(", {rate}")).unwrap_or_default();
            let again = match retransmissions {
                0 => String::new(),
                1 => ", 1 packet sent again".to_owned(),
                many => format!(", {many} packets sent again"),
            };
            let protocol = match running.map(|run| run.protocol) {
                Some(Protocol::Tftp) => ", TFTP",
                Some(Protocol::Http) | None => "",
            };
            let what = known(running);
            plain(format!(
                "has the {what}: {} in {}{rate}{protocol}{again}",
                size(*sent),
                time(*milliseconds)
            ))
        }
        Fact::TransferEnded { sent, reason, .. } => {
            let of = running.map(|run| format!(" of {}", size(run.size))).unwrap_or_default();
            let what = known(running);
            attention(format!("stopped fetching the {what} after {}{of}: {reason}", size(*sent)))
        }
        Fact::Up { sign } => told(
            Tone::Good,
            When::Always,
            match sign {
                Sign::Dhcp => "is up: its own system asks for an address".to_owned(),
                Sign::Url => "is up: its own system says so".to_owned(),
            },
        ),
        Fact::NotFound { file, .. } => detail(format!("asks for {file}, which there is not")),
    }
}

/// What a running download is for; with its name where it is one of many.
fn known(running: Option<&Download>) -> String {
    running.map_or_else(|| role(Role::Other), |run| named(run.role, &run.file))
}

fn named(what: Role, file: &str) -> String {
    match what {
        Role::Firmware | Role::Other => format!("{} {}", role(what), last(file)),
        _ => role(what),
    }
}

/// A fact may repeat what an API or another web server said, and a terminal obeys control characters.
pub(crate) fn visible(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Whether it is ASCII that can be shown: nearly every text is, and there is one for each step of
/// each machine.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|octet| matches!(octet, b' '..=b'~'))
}

fn statement_lines(statement: &Statement) -> Vec<Line> {
    match statement {
        Statement::HandedOver => {
            vec![Line::toned(Tone::Good, "has everything: its own system starts now")]
        }
        Statement::Stalled { step, screen, advice } => {
            std::iter::once(Line::toned(Tone::Attention, format!("nothing more since: {step}")))
                .chain(explain::probably(screen))
                .chain(
                    advice.iter().map(|text| Line::toned(Tone::Attention, format!("  - {text}"))),
                )
                .collect()
        }
    }
}

pub(crate) fn role(role: Role) -> String {
    match role {
        Role::Loader => "boot loader".to_owned(),
        Role::Script => "script".to_owned(),
        Role::Autoexec => "autoexec.ipxe".to_owned(),
        Role::Kernel => "kernel".to_owned(),
        Role::Efi => "whole program".to_owned(),
        Role::Firmware => "boot file".to_owned(),
        Role::Initrd(0) => "initrd".to_owned(),
        Role::Initrd(number) => format!("initrd {}", number + 1),
        Role::Other => "file".to_owned(),
    }
}

/// Kinds of machines by DHCP option 93 (IANA, "Processor Architecture Types").
pub(crate) fn architecture(number: u16) -> String {
    match number {
        0 => "BIOS",
        6 => "32-bit UEFI",
        7 | 9 => "64-bit UEFI",
        10 => "32-bit ARM UEFI",
        11 => "64-bit ARM UEFI",
        15 => "32-bit UEFI, HTTP",
        16 => "64-bit UEFI, HTTP",
        18 => "32-bit ARM UEFI, HTTP",
        19 => "64-bit ARM UEFI, HTTP",
        other => match table::row(other) {
            Some(row) => row.name,
            None => return format!("architecture {other}"),
        },
    }
    .to_owned()
}

/// The last part of a path or URL.
fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
