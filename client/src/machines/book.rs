//! What follows from facts and time. Pure: time comes in as milliseconds since the run began.
//!
//! Guarantees: at most [`MACHINES`] machines, each of bounded size; a fact that only repeats what
//! is known is told once; a machine's boot ends in `HandedOver` once, or in `Stalled` once per step.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::advice::{self, Address, Served, Situation};
use crate::{
    dhcp::{Count, Memory, Policy},
    event::{Fact, Firmware, OfferForm, Role, Statement, What},
    mac::MacAddr,
    template::Identity,
};

/// Machines remembered: four times the lab of 1,000 that powers on at once.
pub const MACHINES: usize = 4096;
/// Downloads remembered for one machine; firmware and iPXE load one file after the other.
const TRANSFERS: usize = 16;
/// Names that do not exist, told for one boot of one machine.
const NOT_FOUND: usize = 8;
/// A machine that was silent so long begins anew. EDK2's longest pause between two DISCOVERs is
/// 32 s.
const NEW_BOOT: u64 = 60_000;
/// From an offer to the next step: EDK2 asks for 60 s in all, iPXE for about 30 s, and both take an
/// offer within 4 s of the DHCP server's.
const OFFERED: u64 = 30_000;
/// From a menu that the firmware shows to the choice: somebody may read it.
const MENU: u64 = 300_000;
/// From a loader that was fetched to the first packet of iPXE: emulated machines take 10 s.
const LOADED: u64 = 30_000;
/// Silence in the middle of a download, or between two.
const SILENT: u64 = 20_000;
/// Silence between kernel and initrds: a slow machine unpacks in between.
const IMAGES: u64 = 30_000;

/// Firmware that refuses a program asks again within seconds; no system is installed in so short a
/// time.
const REFUSED: u64 = 60_000;
/// The same for one that goes on to another kind of network boot, which a machine that starts anew
/// does not begin with. EDK2 tries IPv6 in between, and waits 60 to 90 s for an answer.
const NEXT_ENTRY: u64 = 180_000;
/// A system that starts asks for an address. Unpacking a large image may take a slow machine minutes.
const UNHEARD: u64 = 180_000;

/// How far a machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It asked, and is not (yet) offered anything.
    Asked,
    /// It was offered something on 67.
    Offered(OfferForm),
    /// It was answered on 4011.
    BootServer,
    /// It fetches a loader.
    Loading,
    /// It has a loader.
    Loaded,
    /// It fetches the script.
    Script,
    /// It has the script.
    ScriptDone,
    /// It fetches kernel or initrds, or the EFI program with both in it.
    Images,
    /// It has everything.
    HandedOver,
    /// It fetches files of a folder; which of them it needs is not known.
    Files,
}

#[derive(Debug)]
struct Machine {
    step: Step,
    /// When the step was reached.
    since: u64,
    /// When it last gave a sign of life.
    last: u64,
    /// The step's `Stalled` was told.
    stalled: bool,
    /// What was told last of what repeats: asked, answered on 67, answered on 4011.
    seen: Option<Fact>,
    answered: Option<Fact>,
    boot_server: Option<Fact>,
    /// How often it has asked since that was news.
    asked: u32,
    /// The address that it took since then: a DHCP server's, or ours.
    address: Option<Fact>,
    not_found: usize,
    transfers: BTreeMap<u64, Role>,
    needs: Needs,
    identity: Identity,
    kernel: bool,
    initrds: BTreeSet<usize>,
    /// It has an EFI program with everything in it.
    efi: bool,
    /// What it was handed over with was an EFI program.
    program: bool,
    /// An ordinary DHCP client on it has spoken since.
    heard: bool,
    /// That its system is up was told.
    up: bool,
    booted: bool,
    chained: bool,
    failed_loaders: usize,
}

impl Machine {
    fn new(now: u64, needs: Needs) -> Self {
        Self {
            needs,
            identity: Identity::default(),
            step: Step::Asked,
            since: now,
            last: now,
            stalled: false,
            seen: None,
            answered: None,
            boot_server: None,
            asked: 0,
            address: None,
            not_found: 0,
            transfers: BTreeMap::new(),
            kernel: false,
            initrds: BTreeSet::new(),
            efi: false,
            program: false,
            heard: false,
            up: false,
            booted: false,
            chained: false,
            failed_loaders: 0,
        }
    }

    fn reach(&mut self, now: u64, step: Step) {
        if self.step != step {
            self.step = step;
            self.since = now;
            self.stalled = false;
        }
    }

    fn answered_with_offer(&self) -> bool {
        matches!(self.answered, Some(Fact::Offered { .. }))
    }

    fn firmware(&self) -> Option<Firmware> {
        match self.seen {
            Some(Fact::Seen { firmware, .. }) => Some(firmware),
            _ => None,
        }
    }

    fn arch(&self) -> Option<u16> {
        match self.seen {
            Some(Fact::Seen { arch, .. }) => Some(arch),
            _ => None,
        }
    }

    /// What is to be said of a boot that its next one ends too early.
    fn ended_by(&self, now: u64, fact: &Fact, served: Served) -> Option<Statement> {
        let situation = self.situation(served);
        let images = matches!(self.needs, Needs::Images { .. }) && !self.program;
        if self.step == Step::HandedOver && images && !self.heard {
            let soon = now.saturating_sub(self.since) < REFUSED;
            return soon.then(|| advice::restarted(&situation));
        }
        if matches!(fact, Fact::Seen { firmware: Firmware::Ipxe, .. }) {
            return None;
        }
        let next_entry =
            matches!(*fact, Fact::Seen { firmware, .. } if self.firmware() != Some(firmware));
        let refused = if next_entry { NEXT_ENTRY } else { REFUSED };
        match self.step {
            Step::HandedOver if self.program && now.saturating_sub(self.since) < refused => {
                Some(advice::returned(&situation))
            }
            Step::Loaded if !self.stalled && !self.is_bios() => Some(advice::stalled(&situation)),
            _ => None,
        }
    }

    /// Whether this is said by or to an iPXE that is part of the program which the machine was handed
    /// over with, as netboot.xyz' are.
    fn is_own_ipxe(&self, fact: &Fact) -> bool {
        let ipxe = matches!(
            fact,
            Fact::Seen { firmware: Firmware::Ipxe, .. }
                | Fact::Offered { form: OfferForm::Script, .. }
        );
        ipxe && self.step == Step::HandedOver && self.program
    }

    fn is_bios(&self) -> bool {
        self.arch() == Some(0)
    }

    fn situation(&self, served: Served) -> Situation {
        Situation {
            step: self.step,
            arch: self.arch(),
            firmware: self.firmware(),
            kernel: self.kernel,
            address: match (&self.address, self.asked) {
                (Some(_), _) => Address::Taken,
                // Who asks again has heard of none, or would have taken it.
                (None, 2..) => Address::None,
                (None, _) => Address::Unknown,
            },
            served,
        }
    }

    /// It asks for an offer. Returns whether that is news.
    fn ask(&mut self, now: u64, fact: &Fact) -> bool {
        let waiting = matches!(self.step, Step::Asked | Step::Offered(_));
        let again =
            waiting && self.seen.as_ref() == Some(fact) && now.saturating_sub(self.last) < NEW_BOOT;
        if again {
            self.asked = self.asked.saturating_add(1);
            return false;
        }
        self.asked = 1;
        self.address = None;
        let not_ipxe = !matches!(fact, Fact::Seen { firmware: Firmware::Ipxe, .. });
        if self.step == Step::Loaded {
            match (not_ipxe, self.stalled) {
                // The loader came to nothing, and that is not yet counted.
                (true, false) => self.failed_loaders += 1,
                // It was only slow.
                (false, true) => self.failed_loaders = self.failed_loaders.saturating_sub(1),
                _ => {}
            }
        }
        self.step = Step::Asked;
        self.since = now;
        self.stalled = false;
        self.seen = Some(fact.clone());
        self.answered = None;
        self.boot_server = None;
        self.not_found = 0;
        (self.heard, self.up) = (false, false);
        self.transfers.clear();
        true
    }

    /// Puts away what is told once. Returns whether it is news.
    fn once(slot: &mut Option<Fact>, fact: &Fact) -> bool {
        let news = slot.as_ref() != Some(fact);
        if news {
            *slot = Some(fact.clone());
        }
        news
    }

    fn start(&mut self, now: u64, id: u64, role: Role) {
        if self.transfers.len() >= TRANSFERS {
            self.transfers.pop_first();
        }
        self.transfers.insert(id, role);
        match role {
            Role::Loader => self.reach(now, Step::Loading),
            Role::Script => self.reach(now, Step::Script),
            Role::Firmware => self.reach(now, Step::Files),
            Role::Kernel | Role::Initrd(_) | Role::Efi if self.step != Step::HandedOver => {
                self.reach(now, Step::Images);
            }
            Role::Kernel | Role::Initrd(_) | Role::Efi | Role::Autoexec | Role::Other => {}
        }
    }

    /// A system speaks on it. Returns whether that is news: that of the image, for the first time.
    fn speaks(&mut self) -> bool {
        let news = matches!(self.step, Step::HandedOver | Step::Files) && !self.up;
        (self.heard, self.up) = (true, self.up || news);
        news
    }

    /// A download is complete. Returns whether the machine has everything with it.
    fn done(&mut self, now: u64, id: u64) -> bool {
        let Needs::Images { initrds } = self.needs else {
            return self.done_by_script(now, id);
        };
        match self.transfers.remove(&id) {
            Some(Role::Loader) => {
                self.reach(now, Step::Loaded);
                self.chained = self.firmware() == Some(Firmware::Ipxe);
            }
            Some(Role::Script) => {
                self.reach(now, Step::ScriptDone);
                self.chained = false;
                self.kernel = false;
                self.initrds.clear();
            }
            Some(Role::Kernel) => self.kernel = true,
            Some(Role::Efi) => self.efi = true,
            Some(Role::Initrd(number)) if number < initrds => {
                self.initrds.insert(number);
            }
            Some(Role::Initrd(_) | Role::Autoexec | Role::Firmware | Role::Other) | None => {}
        }
        let has_all = self.efi || (self.kernel && self.initrds.len() == initrds);
        let whole = has_all && self.step == Step::Images;
        if whole {
            self.program = std::mem::take(&mut self.efi);
            self.reach(now, Step::HandedOver);
            self.booted = true;
        }
        whole
    }

    /// As [`Self::done`], where the script, or the program that needs none, is the last that is known
    /// of the boot.
    fn done_by_script(&mut self, now: u64, id: u64) -> bool {
        let role = self.transfers.remove(&id);
        if role == Some(Role::Loader) {
            self.reach(now, Step::Loaded);
            self.chained = self.firmware() == Some(Firmware::Ipxe);
        }
        let last = matches!(role, Some(Role::Script | Role::Efi));
        let whole = last && self.step != Step::HandedOver;
        if whole {
            self.program = role == Some(Role::Efi);
            self.reach(now, Step::HandedOver);
            self.chained = false;
            self.booted = true;
        }
        whole
    }

    /// The statement that is due when nothing has followed for too long.
    fn stall(&mut self, now: u64, served: Served) -> Option<Statement> {
        let (from, patience) = match self.step {
            Step::HandedOver if self.program && !self.heard => (self.since, UNHEARD),
            Step::Asked | Step::HandedOver | Step::Files => return None,
            Step::Offered(OfferForm::Menu) => (self.since, MENU),
            Step::Offered(_) => (self.since, OFFERED),
            Step::Loaded => (self.last, LOADED),
            Step::Images => (self.last, IMAGES),
            Step::BootServer | Step::Loading | Step::Script | Step::ScriptDone => {
                (self.last, SILENT)
            }
        };
        if self.stalled || now.saturating_sub(from) < patience {
            return None;
        }
        self.stalled = true;
        // An iPXE that was given the script and does not come for it is no loop: it may begin anew.
        self.chained = false;
        if self.step == Step::Loaded {
            self.failed_loaders += 1;
        }
        Some(advice::stalled(&self.situation(served)))
    }

    /// Which machines are forgotten first: those that only ever asked.
    fn worth(&self) -> (bool, bool, u64) {
        let only_asked = matches!(self.step, Step::Asked | Step::Offered(_));
        (self.booted, !only_asked, self.last)
    }
}

/// What a machine must have fetched before the rest is the image's own work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// The kernel and so many initrds.
    Images {
        /// How many.
        initrds: usize,
    },
    /// The script: what it loads is not known, or does not come from here.
    Script,
}

/// The machines of a run.
#[derive(Debug)]
pub struct Book {
    needs: Needs,
    served: Served,
    once: bool,
    count: Option<Arc<Count>>,
    machines: BTreeMap<MacAddr, Machine>,
}

impl Book {
    /// An empty book.
    pub fn new(policy: &Policy) -> Self {
        Self {
            needs: Needs::Images { initrds: policy.initrds },
            served: Served {
                signed: policy.signed,
                chain: policy.chain.is_some(),
                dhcp_server: policy.dhcp_server,
            },
            once: policy.once,
            count: policy.count.clone(),
            machines: BTreeMap::new(),
        }
    }

    /// What bears on the next decision about this machine.
    pub fn memory(&self, now: u64, mac: MacAddr) -> Memory {
        let enough = self.count.as_ref().is_some_and(|count| count.is_reached());
        let Some(machine) = self.machines.get(&mac) else {
            return Memory { local_boot: enough, ..Memory::default() };
        };
        // A machine on its way when the count is reached is not stopped half-way.
        let on_its_way = machine.step != Step::HandedOver
            && machine.answered_with_offer()
            && now.saturating_sub(machine.last) < NEW_BOOT;
        Memory {
            local_boot: (self.once && machine.booted) || (enough && !on_its_way),
            booted: machine.booted,
            chained: machine.chained,
            failed_loaders: machine.failed_loaders,
        }
    }

    /// Takes a fact in and returns what is to be told, in order.
    pub fn fact(&mut self, now: u64, mac: MacAddr, fact: Fact) -> Vec<What> {
        // Another server's doing: no sign of life.
        if matches!(fact, Fact::Fetched { .. } | Fact::Reused { .. }) {
            return vec![What::Fact(fact)];
        }
        let known = self.machines.contains_key(&mac);
        if !known && matches!(fact, Fact::Up { .. }) {
            return Vec::new();
        }
        if !known && self.machines.len() >= MACHINES {
            self.forget_one();
        }
        let needs = self.needs;
        let machine = self.machines.entry(mac).or_insert_with(|| Machine::new(now, needs));
        let mut complete = false;
        let mut told = Vec::new();
        let news = match &fact {
            Fact::Seen { .. } => {
                let served = self.served;
                told.extend(machine.ended_by(now, &fact, served).map(What::Statement));
                match machine.is_own_ipxe(&fact) {
                    // Its own business, and a sign that it runs.
                    true => {
                        machine.heard = true;
                        false
                    }
                    false => machine.ask(now, &fact),
                }
            }
            Fact::Offered { .. } if machine.is_own_ipxe(&fact) => false,
            Fact::Offered { form, .. } => {
                machine.reach(now, Step::Offered(*form));
                Machine::once(&mut machine.answered, &fact)
            }
            Fact::Ignored(_) | Fact::NotSent { .. } => Machine::once(&mut machine.answered, &fact),
            Fact::Selected { .. } | Fact::Leased { .. } => {
                Machine::once(&mut machine.address, &fact)
            }
            Fact::BootServer { .. } => {
                machine.reach(now, Step::BootServer);
                Machine::once(&mut machine.boot_server, &fact)
            }
            Fact::TransferStarted { transfer, role, .. } => {
                machine.start(now, *transfer, *role);
                true
            }
            Fact::TransferDone { transfer, .. } => {
                complete = machine.done(now, *transfer);
                true
            }
            Fact::TransferEnded { transfer, .. } => {
                machine.transfers.remove(transfer);
                true
            }
            Fact::TransferProgress { .. } => true,
            Fact::Up { .. } => machine.speaks(),
            Fact::Fetched { .. } | Fact::Reused { .. } => true,
            Fact::NotFound { .. } | Fact::Upstream { .. } => {
                machine.not_found = machine.not_found.saturating_add(1);
                machine.not_found <= NOT_FOUND
            }
        };
        machine.last = now;
        if news {
            told.push(What::Fact(fact));
        }
        if complete {
            if let Some(count) = &self.count {
                count.add();
            }
            told.push(What::Statement(Statement::HandedOver));
        }
        told
    }

    /// What this machine in particular has to fetch, once it has asked.
    pub fn needs(&mut self, mac: MacAddr, needs: Needs) {
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.needs = needs;
        }
    }

    /// An ordinary DHCP client spoke on this machine: its system runs, or its firmware.
    pub fn heard(&mut self, mac: MacAddr) {
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.heard = true;
        }
    }

    /// What this machine said of itself when it asked.
    pub fn identify(&mut self, mac: MacAddr, identity: Identity) {
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.identity = identity;
        }
    }

    /// As [`Self::identify`] was told last.
    pub fn identity(&self, mac: MacAddr) -> Identity {
        self.machines.get(&mac).map(|machine| machine.identity.clone()).unwrap_or_default()
    }

    /// What follows from silence.
    pub fn tick(&mut self, now: u64) -> Vec<(MacAddr, Statement)> {
        let served = self.served;
        self.machines
            .iter_mut()
            .filter_map(|(&mac, machine)| Some((mac, machine.stall(now, served)?)))
            .collect()
    }

    fn forget_one(&mut self) {
        let least =
            self.machines.iter().min_by_key(|(_, machine)| machine.worth()).map(|(&mac, _)| mac);
        if let Some(mac) = least {
            self.machines.remove(&mac);
        }
    }
}

#[cfg(test)]
mod tests;
