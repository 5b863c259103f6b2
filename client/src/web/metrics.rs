//! Totals of a run in Prometheus' text format (version 0.0.4, docs/web.md).
//!
//! Guarantees: counters only grow, also where progress was left out on the way; the number of time
//! series is fixed by this file, whatever strangers on the network send: no label holds a machine's
//! address, a file's name or any other text of theirs. Pure.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use crate::event::{Event, Fact, Ignored, Protocol, Role, Statement, What};

/// Downloads that are remembered until they end; more than the servers carry at once.
const TRANSFERS: usize = 1024;

/// The type that a scraper is told (Prometheus, "Exposition formats").
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A download that runs.
#[derive(Clone, Copy, Debug)]
struct Running {
    protocol: &'static str,
    role: &'static str,
    sent: u64,
}

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// By what asked.
    requests: BTreeMap<&'static str, u64>,
    offers: u64,
    /// By the reason why it was left alone.
    ignored: BTreeMap<&'static str, u64>,
    /// By protocol, role and how it ended.
    transfers: BTreeMap<[&'static str; 3], u64>,
    /// By protocol.
    bytes: BTreeMap<&'static str, u64>,
    retransmissions: u64,
    /// From other web servers, and those of copies that were found to be the same.
    fetched: u64,
    reused: u64,
    not_found: u64,
    handed_over: u64,
    up: u64,
    stalled: u64,
    /// By the download's number.
    running: BTreeMap<u64, Running>,
}

impl Metrics {
    /// Counts an event.
    pub fn count(&mut self, event: &Event) {
        match &event.what {
            What::Fact(fact) => self.fact(fact),
            What::Statement(Statement::HandedOver) => self.handed_over += 1,
            What::Statement(Statement::Stalled { .. }) => self.stalled += 1,
        }
    }

    /// Octets that were sent to all machines, those of running downloads included.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.bytes.values().sum()
    }

    fn fact(&mut self, fact: &Fact) {
        match fact {
            Fact::Seen { firmware, .. } => *self.requests.entry(firmware.word()).or_default() += 1,
            Fact::Offered { .. } => self.offers += 1,
            Fact::Ignored(why) => *self.ignored.entry(ignored(why)).or_default() += 1,
            Fact::TransferStarted { transfer, protocol, role, sent, .. } => {
                // The oldest, whose end was not told.
                if self.running.len() >= TRANSFERS {
                    self.running.pop_first();
                }
                let (protocol, role) = (protocol_word(*protocol), role_word(*role));
                self.running.insert(*transfer, Running { protocol, role, sent: *sent });
            }
            Fact::TransferProgress { transfer, sent, .. } => self.progress(*transfer, *sent),
            Fact::TransferDone { transfer, sent, retransmissions, .. } => {
                self.retransmissions += u64::from(*retransmissions);
                self.over(*transfer, *sent, "done");
            }
            Fact::TransferEnded { transfer, sent, .. } => self.over(*transfer, *sent, "broken-off"),
            Fact::Fetched { octets, .. } => self.fetched = self.fetched.saturating_add(*octets),
            Fact::Reused { octets, .. } => self.reused = self.reused.saturating_add(*octets),
            Fact::NotFound { .. } => self.not_found += 1,
            Fact::Up { .. } => self.up += 1,
            _ => {}
        }
    }

    fn progress(&mut self, transfer: u64, sent: u64) {
        if let Some(running) = self.running.get_mut(&transfer) {
            let more = sent.saturating_sub(running.sent);
            *self.bytes.entry(running.protocol).or_default() += more;
            running.sent += more;
        }
    }

    fn over(&mut self, transfer: u64, sent: u64, how: &'static str) {
        self.progress(transfer, sent);
        if let Some(Running { protocol, role, .. }) = self.running.remove(&transfer) {
            *self.transfers.entry([protocol, role, how]).or_default() += 1;
        }
    }

    /// Everything as a scraper reads it; `machines` is how many are at each step now.
    #[must_use]
    pub fn render(&self, machines: &BTreeMap<String, usize>) -> String {
        let mut text = Text::default();
        text.family("portcullis_build_info", "gauge", "Always 1; the version is its label.");
        text.sample("portcullis_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        text.family("portcullis_machines", "gauge", "Machines that are known, by their step.");
        for (step, count) in machines {
            text.sample("portcullis_machines", &[("step", step)], count);
        }
        let name = "portcullis_boot_requests_total";
        text.family(name, "counter", "DHCP requests for network boot, by what asked.");
        for (firmware, count) in &self.requests {
            text.sample(name, &[("firmware", firmware)], count);
        }
        text.counter("portcullis_offers_total", "Offers that were sent.", self.offers);
        let name = "portcullis_ignored_total";
        text.family(name, "counter", "Requests that were left alone, by the reason.");
        for (reason, count) in &self.ignored {
            text.sample(name, &[("reason", reason)], count);
        }
        let name = "portcullis_downloads_total";
        text.family(name, "counter", "Downloads that are over, by protocol, file and result.");
        for ([protocol, file, result], count) in &self.transfers {
            let labels = [("protocol", *protocol), ("file", *file), ("result", *result)];
            text.sample(name, &labels, count);
        }
        let name = "portcullis_sent_bytes_total";
        text.family(name, "counter", "Bytes of files that were sent to machines, by protocol.");
        for (protocol, count) in &self.bytes {
            text.sample(name, &[("protocol", protocol)], count);
        }
        let help = "Downloads that run now.";
        text.family("portcullis_running_downloads", "gauge", help);
        text.sample("portcullis_running_downloads", &[], self.running.len());
        let name = "portcullis_retransmissions_total";
        text.counter(name, "Packets that were sent again by TFTP.", self.retransmissions);
        let help = "Bytes of files that were fetched from web servers, once for all machines.";
        text.counter("portcullis_fetched_bytes_total", help, self.fetched);
        let help = "Bytes of files that were not fetched: a kept copy was the same.";
        text.counter("portcullis_reused_bytes_total", help, self.reused);
        let help = "Requests for files that there are not.";
        text.counter("portcullis_not_found_total", help, self.not_found);
        let name = "portcullis_handed_over_total";
        text.counter(
            name,
            "Boots that were seen through: the machine has everything.",
            self.handed_over,
        );
        text.counter("portcullis_up_total", "Booted systems that were noticed.", self.up);
        text.counter("portcullis_stalled_total", "Boots that stopped on the way.", self.stalled);
        text.0
    }
}

/// The text as it grows.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels
            .iter()
            // Every value is a word of this program: nothing in it would have to be escaped.
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let labels = match labels.as_slice() {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }
}

fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tftp => "tftp",
        Protocol::Http => "http",
    }
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Loader => "loader",
        Role::Script => "script",
        Role::Autoexec => "autoexec",
        Role::Kernel => "kernel",
        Role::Efi => "efi",
        Role::Firmware => "firmware",
        Role::Initrd(_) => "initrd",
        Role::Other => "other",
    }
}

fn ignored(why: &Ignored) -> &'static str {
    match why {
        Ignored::NotSelected => "not-selected",
        Ignored::AlreadyBooted => "already-booted",
        Ignored::NoLoader { .. } => "no-loader",
        Ignored::NoEfiImage { .. } => "no-efi-image",
        Ignored::OtherPlatform { .. } => "other-platform",
        Ignored::UnknownArchitecture { .. } => "unknown-architecture",
        Ignored::Source { .. } => "source",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::Firmware, mac::MacAddr};

    fn counted(facts: impl IntoIterator<Item = Fact>) -> Metrics {
        let mut metrics = Metrics::default();
        for fact in facts {
            metrics.count(&Event { at: 0, mac: MacAddr([2; 6]), what: What::Fact(fact) });
        }
        metrics
    }

    fn started(transfer: u64, role: Role) -> Fact {
        let (protocol, file) = (Protocol::Http, String::new());
        Fact::TransferStarted { transfer, protocol, role, file, size: 100, sent: 0 }
    }

    fn progress(transfer: u64, sent: u64) -> Fact {
        Fact::TransferProgress { transfer, sent, retransmissions: 0 }
    }

    fn done(transfer: u64, sent: u64) -> Fact {
        Fact::TransferDone { transfer, sent, milliseconds: 1, retransmissions: 2 }
    }

    #[test]
    fn a_run_in_prometheus_text_format() {
        let mut metrics = counted([
            Fact::Seen { arch: 7, firmware: Firmware::Pxe },
            Fact::Ignored(Ignored::NoLoader { arch: 11 }),
            started(1, Role::Initrd(3)),
            progress(1, 40),
            done(1, 100),
            started(2, Role::Kernel),
            progress(2, 7),
            Fact::Fetched { file: "u".to_owned(), octets: 9, milliseconds: 1, kept: true },
            Fact::Reused { file: "u".to_owned(), octets: 8 },
        ]);
        let what = What::Statement(Statement::HandedOver);
        metrics.count(&Event { at: 0, mac: MacAddr([2; 6]), what });
        let text = metrics.render(&BTreeMap::from([("kernel".to_owned(), 1)]));
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                concat!("portcullis_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
                "portcullis_machines{step=\"kernel\"} 1",
                "portcullis_boot_requests_total{firmware=\"pxe\"} 1",
                "portcullis_offers_total 0",
                "portcullis_ignored_total{reason=\"no-loader\"} 1",
                "portcullis_downloads_total{protocol=\"http\",file=\"initrd\",result=\"done\"} 1",
                "portcullis_sent_bytes_total{protocol=\"http\"} 107",
                "portcullis_running_downloads 1",
                "portcullis_retransmissions_total 2",
                "portcullis_fetched_bytes_total 9",
                "portcullis_reused_bytes_total 8",
                "portcullis_not_found_total 0",
                "portcullis_handed_over_total 1",
                "portcullis_up_total 0",
                "portcullis_stalled_total 0",
            ]
        );
        assert!(text.ends_with('\n'));
        // Each family is introduced once, before its samples (Prometheus, "Exposition formats").
        for line in samples {
            let name = line.split(['{', ' ']).next().unwrap();
            for word in ["HELP", "TYPE"] {
                let start = format!("# {word} {name} ");
                assert_eq!(text.matches(&start).count(), 1, "{start}");
                assert!(text.find(&start) < text.find(&format!("\n{line}")), "{line}");
            }
        }
    }

    #[test]
    fn strangers_make_no_new_series() {
        let count = |metrics: &Metrics| metrics.render(&BTreeMap::new()).lines().count();
        let few = counted((0..2).flat_map(|number| {
            let file = number.to_string();
            [
                started(number, Role::Initrd(7)),
                done(number, 1),
                Fact::NotFound { protocol: Protocol::Tftp, file },
            ]
        }));
        let many = counted((0..5000_u16).flat_map(|number| {
            let file = number.to_string();
            let transfer = u64::from(number);
            [
                started(transfer, Role::Initrd(number.into())),
                done(transfer, 1),
                Fact::NotFound { protocol: Protocol::Tftp, file },
            ]
        }));
        assert_eq!(count(&few), count(&many));
        let open = counted((0..5000).map(|transfer| started(transfer, Role::Kernel)));
        assert_eq!(open.running.len(), TRANSFERS);
    }

    #[test]
    fn what_is_sent_again_or_told_late_is_not_counted_twice() {
        let progress = |sent| progress(1, sent);
        let metrics = counted([
            progress(9),
            started(1, Role::Kernel),
            progress(50),
            progress(30),
            done(1, 60),
            progress(80),
        ]);
        assert_eq!(metrics.sent(), 60);
    }
}
