//! The board: what a person sees of each machine, folded from events. Terminal and web page draw from it.
//!
//! Guarantees: pure, but that the list of makers ([`Vendors`]) is read when the first machine asks;
//! bounded: [`MACHINES`], [`DOWNLOADS`] of each, and [`LINES`] of text, of which each has fewer the more
//! machines there are; no text in it has a control character. What is told of a download is remembered
//! here alone. Rates and times are of the moment of the last event or [`Board::tick`].
//!
//! The field names of what can be serialised here are stable: they only ever grow.

mod machine;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use serde::Serialize;

pub use self::machine::{DOWNLOADS, Download, Entry, Machine, Step, Stop};
use self::machine::{sent, transfer};
use crate::{
    event::{Event, What},
    mac::MacAddr,
    oui::Vendors,
    report::text::{self, Line, Told, Tone, When},
};

/// Machines on the board: as many as are served at all (`machines`).
pub const MACHINES: usize = 4096;
/// Lines kept of all machines together: some 3 MiB.
pub const LINES: usize = 16_384;
/// Lines kept of one machine at most, and at least however many there are. A boot without trouble
/// takes a dozen.
const LINES_OF_ONE: (usize, usize) = (4, 64);
/// Characters of a line that are kept: an API may have said more.
const LINE: usize = 300;
/// Seconds of traffic that are remembered, for a chart.
pub const CHART: usize = 300;

/// A board that is drawn from in several places.
pub type Shared = Arc<Mutex<Board>>;

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
    /// By address and interface.
    numbers: BTreeMap<MacAddr, BTreeMap<String, u64>>,
    /// Numbers of the machines that have downloads: the others cost nothing when these are looked at.
    loading: BTreeSet<u64>,
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
        if machine.downloads.is_empty() {
            self.loading.remove(&id);
        } else {
            self.loading.insert(id);
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
        for id in &self.loading {
            let downloads = self.machines.get_mut(id).map(|one| &mut one.downloads);
            downloads.into_iter().flatten().for_each(|one| one.measure(now));
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

    /// Those of them that have downloads.
    pub fn loading(&self) -> impl Iterator<Item = &Machine> {
        self.loading.iter().filter_map(|id| self.machines.get(id))
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
        if let Some(id) = self.numbers.get(&event.mac).and_then(|one| one.get(interface)) {
            return *id;
        }
        if self.machines.len() >= MACHINES {
            let least = self.machines.values().min_by_key(|one| one.worth()).map(|one| one.id);
            if let Some(machine) = least.and_then(|id| self.machines.remove(&id)) {
                self.loading.remove(&machine.id);
                self.forget(machine.mac, &machine.interface);
            }
        }
        let id = self.next;
        self.next += 1;
        let vendor = self.vendor(event.mac);
        self.machines.insert(id, Machine::new(id, interface, event, vendor));
        self.numbers.entry(event.mac).or_default().insert(interface.to_owned(), id);
        id
    }

    fn forget(&mut self, mac: MacAddr, interface: &str) {
        if let Some(numbers) = self.numbers.get_mut(&mac) {
            numbers.remove(interface);
            if numbers.is_empty() {
                self.numbers.remove(&mac);
            }
        }
    }

    fn lines_of_one(&self) -> usize {
        let (least, most) = LINES_OF_ONE;
        (LINES / self.machines.len().max(1)).clamp(least, most)
    }
}

fn short(line: &Line) -> String {
    // As a rule all of it; characters take an octet at least.
    if line.text.len() <= LINE {
        return line.text.clone();
    }
    let end = line.text.char_indices().nth(LINE).map_or(line.text.len(), |(at, _)| at);
    line.text.get(..end).unwrap_or_default().to_owned()
}
