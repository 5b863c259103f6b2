//! The board: what a person sees of each machine, folded from events. Terminal and web page draw from it.
//!
//! Guarantees: pure, but that the list of makers ([`Vendors`]) is read when the first machine asks;
//! bounded: [`MACHINES`], [`DOWNLOADS`] of each, and [`LINES`] of text, of which each has fewer the more
//! machines there are; no text in it has a control character. What is told of a download is remembered
//! here alone. Rates and times are of the moment of the last event or [`Board::tick`].
//!
//! The field names of what can be serialised here are stable: they only ever grow.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use serde::Serialize;

use crate::{
    event::{Event, Fact, Firmware, Protocol, Role, Statement, What},
    mac::MacAddr,
    oui::Vendors,
    report::text::{self, Line, Told, Tone, When},
};

/// Machines on the board: as many as are served at all (`machines`).
pub const MACHINES: usize = 4096;
/// Running downloads of one machine: firmware and iPXE load one file after the other.
pub const DOWNLOADS: usize = 16;
/// Lines kept of all machines together: some 3 MiB.
pub const LINES: usize = 16_384;
/// Lines kept of one machine at most, and at least however many there are. A boot without trouble
/// takes a dozen.
const LINES_OF_ONE: (usize, usize) = (4, 64);
/// Characters of a line that are kept: an API may have said more.
const LINE: usize = 300;
/// Milliseconds over which a rate is measured: shorter ones jump, longer ones lag.
const WINDOW: u64 = 3_000;
/// The shortest time that gives a rate, in milliseconds.
const MEASURABLE: u64 = 200;
/// Samples of one download within the window: four a second come, and two more frame them.
const SAMPLES: usize = 16;
/// Seconds of traffic that are remembered, for a chart.
pub const CHART: usize = 300;

/// A board that is drawn from in several places.
pub type Shared = Arc<Mutex<Board>>;

/// How far a machine has come, in order; then what is out of this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// It asked for network boot.
    Seen,
    /// It was told what to load.
    Offered,
    /// It asked the boot server on UDP 4011.
    BootServer,
    /// It fetches, or has, a boot loader; or the files of a Raspberry Pi.
    Loader,
    /// iPXE runs on it.
    Ipxe,
    /// It fetches, or has, the kernel, or the EFI program.
    Kernel,
    /// It fetches, or has, an initrd.
    Initrd,
    /// It has everything.
    HandedOver,
    /// Its own system was noticed.
    Up,
    /// Nothing has come from it for too long.
    Stopped,
    /// It asked, and is not served.
    LeftAlone,
}

impl Step {
    /// All, in order.
    pub const ALL: [Self; 11] = [
        Self::Seen,
        Self::Offered,
        Self::BootServer,
        Self::Loader,
        Self::Ipxe,
        Self::Kernel,
        Self::Initrd,
        Self::HandedOver,
        Self::Up,
        Self::Stopped,
        Self::LeftAlone,
    ];

    /// For people, in at most eleven letters: what the machine is doing, or what became of it.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Seen => "asking",
            Self::Offered => "offered",
            Self::BootServer => "boot server",
            Self::Loader => "boot loader",
            Self::Ipxe => "iPXE",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::HandedOver => "starting",
            Self::Up => "up",
            Self::Stopped => "stopped",
            Self::LeftAlone => "left alone",
        }
    }

    fn of(role: Role) -> Option<Self> {
        match role {
            Role::Loader | Role::Firmware => Some(Self::Loader),
            Role::Script | Role::Autoexec => Some(Self::Ipxe),
            Role::Kernel | Role::Efi => Some(Self::Kernel),
            Role::Initrd(_) => Some(Self::Initrd),
            Role::Other => None,
        }
    }
}

/// A running download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Download {
    /// Its number, unique in the run.
    pub transfer: u64,
    /// What for.
    pub role: Role,
    /// The file's name.
    pub file: String,
    /// How.
    pub protocol: Protocol,
    /// Octets in all; 0 if that is not known.
    pub size: u64,
    /// Octets so far.
    pub sent: u64,
    /// Packets or windows sent again so far (TFTP).
    pub retransmissions: u32,
    /// Over the last seconds. Not known of one that has only begun.
    pub octets_per_second: Option<u64>,
    /// Milliseconds until it is done, if it goes on so.
    pub remaining: Option<u64>,
    /// Octets and when they were reached, oldest first: the window, and what was just before it.
    #[serde(skip)]
    samples: VecDeque<(u64, u64)>,
}

impl Download {
    /// Thousandths of the file that were sent; none where the size is not known.
    #[must_use]
    pub fn thousandths(&self) -> Option<u16> {
        let part = u128::from(self.sent) * 1000 / u128::from(self.size.max(1));
        (self.size > 0).then(|| u16::try_from(part.min(1000)).unwrap_or(1000))
    }

    fn sample(&mut self, now: u64, sent: u64) {
        self.sent = sent;
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, sent));
        self.measure(now);
    }

    fn measure(&mut self, now: u64) {
        let edge = now.saturating_sub(WINDOW);
        while self.samples.get(1).is_some_and(|(at, _)| *at <= edge) {
            self.samples.pop_front();
        }
        let Some((at, before)) = self.samples.front() else { return };
        let time = now.saturating_sub(*at);
        self.octets_per_second = (time >= MEASURABLE).then(|| {
            let octets = u128::from(self.sent.saturating_sub(*before));
            u64::try_from(octets * 1000 / u128::from(time)).unwrap_or(u64::MAX)
        });
        let left = u128::from(self.size.saturating_sub(self.sent)) * 1000;
        self.remaining = self
            .octets_per_second
            .filter(|rate| *rate > 0 && self.size > 0)
            .and_then(|rate| u64::try_from(left / u128::from(rate)).ok());
    }
}

/// Why a machine has stopped, most likely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// Its last step, in words.
    pub step: String,
    /// What its screen shows: names of entries of `codes`.
    pub screen: Vec<String>,
    /// Likely reasons, most likely first, each with what to try.
    pub advice: Vec<String>,
}

/// One line of what happened with a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Milliseconds since the run began.
    pub at: u64,
    /// The words.
    pub text: String,
    /// How it is coloured.
    pub tone: Tone,
}

/// One machine on one interface. Times are milliseconds since the run began.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Its number on the board: never another's.
    pub id: u64,
    /// Hardware address.
    pub mac: MacAddr,
    /// Who made its network card, if that is known.
    pub vendor: Option<String>,
    /// The interface on which it asked.
    pub interface: String,
    /// DHCP option 93.
    pub arch: Option<u16>,
    /// The same in words.
    pub architecture: Option<String>,
    /// What asked last.
    pub firmware: Option<Firmware>,
    /// Its address, if it was seen to take one.
    pub address: Option<Ipv4Addr>,
    /// How far it is, or what became of it.
    pub step: Step,
    /// How far it came in this boot, also when it has stopped.
    pub reached: Step,
    /// When it was first seen.
    pub appeared: u64,
    /// When this boot began.
    pub began: u64,
    /// When `step` was reached.
    pub since: u64,
    /// When it last gave a sign of life.
    pub heard: u64,
    /// How often it was handed over.
    pub boots: u32,
    /// Those that run.
    pub downloads: Vec<Download>,
    /// What somebody should look at, as a line says it; gone when the machine gets on.
    pub attention: Option<String>,
    /// Why it has stopped. Stays, while the machine begins anew because of just that.
    pub stop: Option<Stop>,
    /// What happened, oldest first.
    pub log: VecDeque<Entry>,
    /// The board's revision at which anything here but rates was last changed.
    pub revision: u64,
    /// When `attention` was said.
    #[serde(skip)]
    warned: u64,
}

impl Machine {
    fn new(id: u64, interface: &str, event: &Event, vendor: Option<String>) -> Self {
        Self {
            id,
            mac: event.mac,
            vendor,
            interface: interface.to_owned(),
            arch: None,
            architecture: None,
            firmware: None,
            address: None,
            step: Step::Seen,
            reached: Step::Seen,
            appeared: event.at,
            began: event.at,
            since: event.at,
            heard: event.at,
            boots: 0,
            downloads: Vec::new(),
            attention: None,
            stop: None,
            log: VecDeque::new(),
            revision: 0,
            warned: 0,
        }
    }

    /// The download to show where there is room for one: the one with most left to send.
    #[must_use]
    pub fn download(&self) -> Option<&Download> {
        self.downloads.iter().max_by_key(|one| one.size.saturating_sub(one.sent))
    }

    fn running(&self, transfer: u64) -> Option<&Download> {
        self.downloads.iter().find(|one| one.transfer == transfer)
    }

    fn set(&mut self, now: u64, step: Step) {
        if self.step != step {
            (self.step, self.since) = (step, now);
        }
    }

    /// It is at least so far.
    fn reach(&mut self, now: u64, step: Step) {
        if step > self.reached {
            self.reached = step;
            (self.attention, self.stop) = (None, None);
        }
        self.set(now, self.reached);
    }

    /// A new boot. What was said of the one before in the same instant is about why it begins anew.
    fn begin(&mut self, now: u64) {
        if self.warned != now {
            (self.attention, self.stop) = (None, None);
        }
        self.downloads.clear();
        (self.began, self.address, self.reached) = (now, None, Step::Seen);
        self.set(now, Step::Seen);
    }

    fn fact(&mut self, now: u64, fact: &Fact) {
        match fact {
            Fact::Seen { arch, firmware } => {
                (self.arch, self.firmware) = (Some(*arch), Some(*firmware));
                self.architecture = Some(text::architecture(*arch));
                let goes_on = *firmware == Firmware::Ipxe && self.reached < Step::Kernel;
                if !goes_on {
                    self.begin(now);
                }
                if *firmware == Firmware::Ipxe {
                    self.reach(now, Step::Ipxe);
                }
            }
            Fact::Offered { .. } => self.reach(now, Step::Offered),
            Fact::BootServer { .. } => self.reach(now, Step::BootServer),
            Fact::Ignored(_) => self.set(now, Step::LeftAlone),
            Fact::Selected { address, .. } => self.address = address.or(self.address),
            Fact::Leased { address } => self.address = Some(*address),
            Fact::TransferStarted { transfer, protocol, role, file, size, sent } => {
                // An iPXE that cannot run the script is given another one.
                if *role == Role::Loader && self.reached == Step::Ipxe {
                    self.reached = Step::Loader;
                }
                self.reach(now, Step::of(*role).unwrap_or(self.reached));
                if self.downloads.len() >= DOWNLOADS {
                    self.downloads.remove(0);
                }
                self.downloads.push(Download {
                    transfer: *transfer,
                    role: *role,
                    file: text::visible(file),
                    protocol: *protocol,
                    size: *size,
                    sent: *sent,
                    retransmissions: 0,
                    octets_per_second: None,
                    remaining: None,
                    samples: [(now, *sent)].into(),
                });
            }
            Fact::TransferProgress { transfer, sent, retransmissions } => {
                self.reach(now, self.reached);
                if let Some(one) = self.downloads.iter_mut().find(|one| one.transfer == *transfer) {
                    one.retransmissions = *retransmissions;
                    one.sample(now, *sent);
                }
            }
            Fact::TransferDone { transfer, .. } | Fact::TransferEnded { transfer, .. } => {
                self.reach(now, self.reached);
                self.downloads.retain(|one| one.transfer != *transfer);
            }
            Fact::Up { .. } => self.reach(now, Step::Up),
            Fact::NotSent { .. }
            | Fact::Upstream { .. }
            | Fact::Fetched { .. }
            | Fact::Reused { .. }
            | Fact::NotFound { .. } => {}
        }
    }

    fn statement(&mut self, now: u64, statement: &Statement) {
        match statement {
            Statement::HandedOver => {
                self.reach(now, Step::HandedOver);
                self.boots = self.boots.saturating_add(1);
            }
            Statement::Stalled { step, screen, advice } => {
                self.stop = Some(Stop {
                    step: text::visible(step),
                    screen: screen.clone(),
                    advice: advice.clone(),
                });
                self.set(now, Step::Stopped);
            }
        }
    }

    /// Which machines leave the board first: those that only ever asked, and of these the one that
    /// has been silent longest.
    fn worth(&self) -> (bool, bool, u64) {
        (self.boots > 0, self.reached > Step::Offered, self.heard)
    }
}

/// What the machines do together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Octets sent since the run began.
    pub octets: u64,
    /// Octets a second, over the last three full seconds.
    pub octets_per_second: u64,
    /// Machines at each step; steps with none are left out.
    pub steps: BTreeMap<Step, usize>,
}

/// All machines of a run, on all interfaces.
#[derive(Debug, Default)]
pub struct Board {
    vendors: Vendors,
    machines: BTreeMap<u64, Machine>,
    numbers: HashMap<(MacAddr, String), u64>,
    next: u64,
    revision: u64,
    now: u64,
    octets: u64,
    /// Octets sent in each full second that is remembered, and in the present one.
    traffic: VecDeque<u64>,
    present: u64,
}

impl Board {
    /// An empty board that looks makers up in this list.
    #[must_use]
    pub fn new(vendors: Vendors) -> Self {
        Self { vendors, ..Self::default() }
    }

    /// Takes an event in, and returns what is to be said of it.
    pub fn apply(&mut self, interface: &str, event: &Event) -> Vec<Told> {
        self.advance(event.at);
        let id = self.number(interface, event);
        self.revision += 1;
        let lines = self.lines_of_one();
        let Some(machine) = self.machines.get_mut(&id) else { return Vec::new() };
        let running = transfer(&event.what).and_then(|number| machine.running(number)).cloned();
        let told = text::told(event, machine.vendor.as_deref(), running.as_ref());
        let now = event.at;
        machine.heard = now;
        machine.revision = self.revision;
        match &event.what {
            What::Fact(fact) => machine.fact(now, fact),
            What::Statement(statement) => machine.statement(now, statement),
        }
        if let Some(Told { line, .. }) = told.iter().find(|told| told.line.tone == Tone::Attention)
        {
            machine.attention = Some(short(line));
            machine.warned = now;
        }
        let said = told.iter().filter(|told| told.when != When::Unwatched);
        machine.log.extend(said.map(|Told { line, .. }| Entry {
            at: now,
            text: short(line),
            tone: line.tone,
        }));
        let over = machine.log.len().saturating_sub(lines);
        machine.log.drain(..over);
        if let (Some(running), Some(sent)) = (running, sent(&event.what)) {
            let new = sent.saturating_sub(running.sent);
            self.octets = self.octets.saturating_add(new);
            self.present = self.present.saturating_add(new);
        }
        told
    }

    /// Time goes on: rates fall where nothing was sent. `now` is milliseconds since the run began, as
    /// events have it. To be called some times a second while the board is looked at.
    pub fn tick(&mut self, now: u64) {
        self.advance(now);
        let now = self.now;
        for download in self.machines.values_mut().flat_map(|one| &mut one.downloads) {
            download.measure(now);
        }
    }

    fn advance(&mut self, now: u64) {
        // Events of several interfaces may come in a slightly different order.
        let now = now.max(self.now);
        let seconds = usize::try_from(now / 1000 - self.now / 1000).unwrap_or(usize::MAX);
        for _ in 0..seconds.min(CHART) {
            if self.traffic.len() >= CHART {
                self.traffic.pop_front();
            }
            self.traffic.push_back(std::mem::take(&mut self.present));
        }
        self.now = now;
    }

    /// The machines, in the order in which they were first seen.
    #[must_use]
    pub fn machines(&self) -> impl ExactSizeIterator<Item = &Machine> + DoubleEndedIterator {
        self.machines.values()
    }

    /// The machine with this number.
    #[must_use]
    pub fn machine(&self, id: u64) -> Option<&Machine> {
        self.machines.get(&id)
    }

    /// Who made a machine's network card, if that is known.
    pub fn vendor(&mut self, mac: MacAddr) -> Option<String> {
        self.vendors.name(mac).map(text::visible)
    }

    /// Grows with each event.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Milliseconds since the run began, as far as was told.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// What they do together.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut steps = BTreeMap::new();
        for machine in self.machines.values() {
            *steps.entry(machine.step).or_insert(0) += 1;
        }
        let last: u64 = self.traffic.iter().rev().take(3).sum();
        Totals { octets: self.octets, octets_per_second: last / 3, steps }
    }

    /// Octets sent in each of the last full seconds, oldest first, [`CHART`] of them at most.
    pub fn traffic(&self) -> impl ExactSizeIterator<Item = u64> {
        self.traffic.iter().copied()
    }

    fn number(&mut self, interface: &str, event: &Event) -> u64 {
        let key = (event.mac, interface.to_owned());
        if let Some(id) = self.numbers.get(&key) {
            return *id;
        }
        if self.machines.len() >= MACHINES {
            let least = self.machines.values().min_by_key(|one| one.worth()).map(|one| one.id);
            if let Some(machine) = least.and_then(|id| self.machines.remove(&id)) {
                self.numbers.remove(&(machine.mac, machine.interface));
            }
        }
        let id = self.next;
        self.next += 1;
        let vendor = self.vendor(event.mac);
        self.machines.insert(id, Machine::new(id, interface, event, vendor));
        self.numbers.insert(key, id);
        id
    }

    fn lines_of_one(&self) -> usize {
        let (least, most) = LINES_OF_ONE;
        (LINES / self.machines.len().max(1)).clamp(least, most)
    }
}

/// The download that an event is about.
fn transfer(what: &What) -> Option<u64> {
    match what {
        What::Fact(
            Fact::TransferProgress { transfer, .. }
            | Fact::TransferDone { transfer, .. }
            | Fact::TransferEnded { transfer, .. },
        ) => Some(*transfer),
        _ => None,
    }
}

/// How many of its octets have gone.
fn sent(what: &What) -> Option<u64> {
    match what {
        What::Fact(
            Fact::TransferProgress { sent, .. }
            | Fact::TransferDone { sent, .. }
            | Fact::TransferEnded { sent, .. },
        ) => Some(*sent),
        _ => None,
    }
}

fn short(line: &Line) -> String {
    line.text.chars().take(LINE).collect()
}

#[cfg(test)]
mod tests;
