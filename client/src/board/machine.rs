//! One machine on the board: how far it is, what it loads and how fast, what somebody should look at.
//! Pure.

use std::{collections::VecDeque, net::Ipv4Addr};

use serde::Serialize;

use crate::{
    event::{Event, Fact, Firmware, Protocol, Role, Statement, What},
    mac::MacAddr,
    report::text::{self, Tone},
};

/// Running downloads of one machine: firmware and iPXE load one file after the other.
pub const DOWNLOADS: usize = 16;
/// Milliseconds over which a rate is measured: shorter ones jump, longer ones lag.
const WINDOW: u64 = 3_000;
/// The shortest time that gives a rate, in milliseconds.
const MEASURABLE: u64 = 200;
/// Samples of one download within the window: four a second come, and two more frame them.
const SAMPLES: usize = 16;

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
    pub(super) samples: VecDeque<(u64, u64)>,
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

    pub(super) fn measure(&mut self, now: u64) {
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
    pub(super) warned: u64,
}

impl Machine {
    pub(super) fn new(id: u64, interface: &str, event: &Event, vendor: Option<String>) -> Self {
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

    pub(super) fn running(&self, transfer: u64) -> Option<&Download> {
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

    pub(super) fn fact(&mut self, now: u64, fact: &Fact) {
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

    pub(super) fn statement(&mut self, now: u64, statement: &Statement) {
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
    pub(super) fn worth(&self) -> (bool, bool, u64) {
        (self.boots > 0, self.reached > Step::Offered, self.heard)
    }
}

/// The download that an event is about.
pub(super) fn transfer(what: &What) -> Option<u64> {
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
pub(super) fn sent(what: &What) -> Option<u64> {
    match what {
        What::Fact(
            Fact::TransferProgress { sent, .. }
            | Fact::TransferDone { sent, .. }
            | Fact::TransferEnded { sent, .. },
        ) => Some(*sent),
        _ => None,
    }
}
