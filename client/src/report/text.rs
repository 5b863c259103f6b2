//! Text for people: pure functions from results to lines; those about machines are in `story`.

mod story;

use std::time::Duration;

use portcullis_dbus::keys::{backend, dhcp_mode};

pub use self::story::{Narrator, Told, When, log, status, summary, told};
pub(crate) use self::story::{architecture, role, visible};
use super::{
    Asking, Ready,
    units::{ports, size, time},
};
use crate::{
    exit::Failure,
    interfaces::Interface,
    nixos::{self, State},
    session::{Facts, Lease},
    source::cache::Record,
};

/// How a line is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tone {
    /// Not.
    Plain,
    /// Detail.
    Dim,
    /// It went well.
    Good,
    /// Somebody should look at it.
    Attention,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Written before the text without colour, such as the time and the machine.
    pub head: String,
    /// The text.
    pub text: String,
    /// Its colour.
    pub tone: Tone,
}

impl Line {
    /// A line without head and colour.
    #[must_use]
    pub fn plain(text: impl Into<String>) -> Self {
        Self { head: String::new(), text: text.into(), tone: Tone::Plain }
    }

    /// A line that somebody should look at.
    #[must_use]
    pub fn attention(text: impl Into<String>) -> Self {
        Self::toned(Tone::Attention, text)
    }

    pub(super) fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Self { tone, ..Self::plain(text) }
    }

    /// The line as it is written.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let Self { head, text, tone } = self;
        // ECMA-48 SGR: 2 faint, 32 green, 1;33 bold yellow, 0 off.
        let code = match tone {
            _ if !color => return format!("{head}{text}"),
            Tone::Plain => return format!("{head}{text}"),
            Tone::Dim => "2",
            Tone::Good => "32",
            Tone::Attention => "1;33",
        };
        format!("{head}\x1b[{code}m{text}\x1b[0m")
    }
}

/// Where the web page is, and who may see it.
#[must_use]
pub fn page(url: &str, is_public: bool) -> Vec<Line> {
    let mut lines = vec![Line::plain(format!("Web page: {url}"))];
    if is_public {
        lines.push(Line::attention(
            "  Whoever can reach this computer there and knows that whole address sees it; it is not \
             encrypted. This computer's firewall is not opened for it.",
        ));
    }
    lines
}

/// Before the question.
#[must_use]
pub fn asking(asking: &Asking) -> Line {
    let most = asking
        .max_seconds
        .map(|seconds| format!(" (at most {})", time(u64::from(seconds) * 1000)))
        .unwrap_or_default();
    Line::plain(format!(
        "Opening {} on {}{}, until Ctrl-C{most} ...",
        ports(&asking.udp_ports, &asking.tcp_ports),
        asking.interface,
        if asking.dhcp_server { ", to hand out addresses as well" } else { "" },
    ))
}

/// The first screen.
#[must_use]
pub fn ready(ready: &Ready<'_>, debug: bool) -> Vec<Line> {
    let facts = &ready.lease.facts;
    let files: Vec<_> = ready
        .kernel
        .iter()
        .chain(&ready.initrds)
        .map(|file| match file.bytes {
            Some(bytes) => format!("{} ({})", file.name, size(bytes)),
            None => file.name.clone(),
        })
        .collect();
    let files = match &ready.api {
        Some(api) => format!("what {api} says for each machine"),
        None if !ready.menu.is_empty() => format!("a menu of {}", ready.menu.join(", ")),
        None if files.is_empty() => "an iPXE script".to_owned(),
        None => files.join(", "),
    };
    let address = facts.address.map(|address| format!(" ({address})")).unwrap_or_default();
    let mut lines = vec![
        Line::toned(Tone::Good, format!("Ready on {}{address}", facts.interface)),
        Line::plain(format!("  serving   {files}")),
        Line::plain(format!("  to        {} that boot from the network", ready.can.join(" and "))),
        Line::plain(format!(
            "  open      {}, this interface only, for {} at most",
            ports(&facts.udp_ports, &facts.tcp_ports),
            time(facts.ends.saturating_sub(facts.opened) / 1000)
        )),
        Line::plain(format!("  firewall  {}", firewall(&facts.backend))),
    ];
    if facts.dhcp == dhcp_mode::SHARED_RAW {
        lines.push(Line::plain(
            "  DHCP      shared with this computer's own server, heard by a raw socket",
        ));
    }
    match ready.addresses {
        None => {}
        Some(1) => lines.push(Line::plain("  addresses handed out here, to one machine at a time")),
        Some(count) => {
            lines.push(Line::plain(format!("  addresses handed out here, up to {count}")));
        }
    }
    if !ready.only.is_empty() {
        lines.push(Line::plain(format!("  only      {}", ready.only.join("; "))));
    }
    for cannot in &ready.cannot {
        lines.push(Line::toned(Tone::Attention, format!("  not to    {cannot}")));
    }
    if debug {
        lines.push(Line::plain(format!("  cmdline   {}", ready.cmdline)));
        lines.push(Line::plain(format!("  loaders   {}", ready.loaders.join(", "))));
        lines.push(Line::plain(format!("  lease     {}", ready.lease.number)));
    }
    if ready.last {
        lines.push(Line::plain(
            "Now let the other machine boot from the network. Ctrl-C ends and closes.",
        ));
    }
    lines
}

fn firewall(name: &str) -> String {
    match name {
        backend::NIXOS_NFTABLES => {
            "opened (NixOS, nftables); closes when this program ends".to_owned()
        }
        backend::NIXOS_IPTABLES => {
            "opened (NixOS, iptables); closes when this program ends".to_owned()
        }
        backend::NAMED_CHAIN => {
            "opened (the chain that this host's configuration names); closes when this program ends"
                .to_owned()
        }
        backend::FIREWALLD => {
            "opened by firewalld, for every interface of the zone and every program; closes when this \
             program ends, a minute later at the most"
                .to_owned()
        }
        backend::NONE => "none here that drops anything: nothing had to be opened".to_owned(),
        other => format!("opened ({}); closes when this program ends", other.escape_default()),
    }
}

/// What would be done with the firewall, before it is.
#[must_use]
pub fn firewall_before(name: &str) -> String {
    let ports = "the ports are opened in it while portcullis runs";
    match name {
        backend::NIXOS_NFTABLES => format!("NixOS, nftables: {ports}"),
        backend::NIXOS_IPTABLES => format!("NixOS, iptables: {ports}"),
        backend::NAMED_CHAIN => format!("the chain that this host's configuration names: {ports}"),
        backend::FIREWALLD => {
            format!("firewalld: {ports}, for every interface of the zone and every program")
        }
        backend::NONE => "none that drops anything: nothing has to be opened".to_owned(),
        other => format!("{}: {ports}", other.escape_default()),
    }
}

/// How a build goes.
#[must_use]
pub fn build(told: &nixos::Told) -> Line {
    let tone = match told.state {
        State::Output => Tone::Dim,
        State::Failed => Tone::Attention,
        State::Done => Tone::Good,
        State::Started | State::Same => Tone::Plain,
    };
    Line::toned(tone, visible(&told.text))
}

/// The last line.
#[must_use]
pub fn closed(facts: &Facts) -> Line {
    Line::plain(format!(
        "Closed: {} on {}",
        ports(&facts.udp_ports, &facts.tcp_ports),
        facts.interface
    ))
}

/// A failure with what can be done.
#[must_use]
pub fn failure(failure: &Failure) -> Vec<Line> {
    std::iter::once(Line::toned(Tone::Attention, format!("portcullis: {}", failure.message)))
        .chain(failure.advice.iter().map(|advice| Line::plain(format!("  - {advice}"))))
        .collect()
}

/// `status`. `now` is CLOCK_BOOTTIME in microseconds, as the leases' times are.
#[must_use]
pub fn leases(leases: &[Lease], now: u64) -> Vec<Line> {
    if leases.is_empty() {
        return vec![Line::plain("Nothing is open that you may see.")];
    }
    leases
        .iter()
        .map(|Lease { number, facts }| {
            let owner = facts.uid.map(|uid| format!(", by uid {uid}")).unwrap_or_default();
            let since = time(now.saturating_sub(facts.opened) / 1000);
            let left = time(facts.ends.saturating_sub(now) / 1000);
            let open = ports(&facts.udp_ports, &facts.tcp_ports);
            let interface = &facts.interface;
            Line::plain(format!(
                "Lease {number}: {open} on {interface}{owner}, open for {since}, at most {left} more"
            ))
        })
        .collect()
}

/// `interfaces`.
#[must_use]
pub fn interfaces(interfaces: &[Interface], chosen: Option<&str>) -> Vec<Line> {
    interfaces
        .iter()
        .map(|one| {
            let name = one.describe();
            match one.unfit() {
                None if chosen == Some(&one.name) => {
                    Line::toned(Tone::Good, format!("* {name}: taken by `portcullis boot`"))
                }
                None => Line::plain(format!("  {name}: possible with -i {}", one.name)),
                Some(reason) => Line::toned(Tone::Dim, format!("  {name}: {reason}")),
            }
        })
        .collect()
}

/// A copy of another web server's file.
#[must_use]
pub fn copy(record: &Record, age: Duration) -> Line {
    let minutes = age.as_secs() / 60;
    let ago = match (minutes / 1440, minutes / 60, minutes) {
        (0, 0, 0) => "just now".to_owned(),
        (0, 0, minutes) => format!("{minutes} min ago"),
        (0, hours, _) => format!("{hours} h ago"),
        (1, ..) => "a day ago".to_owned(),
        (days, ..) => format!("{days} days ago"),
    };
    Line::plain(format!("{:>9}  {}, used {ago}", size(record.length), visible(&record.url)))
}

#[cfg(test)]
mod tests;
