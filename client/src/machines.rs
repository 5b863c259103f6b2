//! The book of machines: facts come in, events go out, and what is remembered bears on decisions.
//!
//! Guarantees: telling a fact never blocks; the book is bounded, and what a stranger on the network
//! invents pushes out inventions before machines that are being served. The rules (what follows
//! from facts and time) are pure: `book`; the words are in `advice`. Here are only the lock, the
//! clock and the channel.

mod advice;
mod book;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::mpsc;

pub use self::book::Needs;

use self::book::Book;
use crate::{
    admission::Admission,
    dhcp::{Memory, Policy},
    event::{Event, Fact, Sign, What, Witness},
    mac::MacAddr,
    template::Identity,
};

/// All machines of a run.
pub struct Machines {
    policy: Policy,
    started: Instant,
    events: mpsc::Sender<Event>,
    book: Mutex<Book>,
}

impl Machines {
    /// An empty book of a run that began at `started`. Events are dropped while the channel is full, progress already when half of
    /// it is taken: give it room for a burst (8,192).
    #[must_use]
    pub fn new(policy: Policy, started: Instant, events: mpsc::Sender<Event>) -> Arc<Self> {
        let book = Mutex::new(Book::new(&policy));
        Arc::new(Self { policy, started, events, book })
    }

    /// What is served, to whom.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether this machine is left to boot from its disk: `--once` and `--count`.
    #[must_use]
    pub fn should_boot_locally(&self, mac: MacAddr) -> bool {
        self.memory(mac).local_boot
    }

    /// What bears on the next decision about this machine.
    #[must_use]
    pub fn memory(&self, mac: MacAddr) -> Memory {
        let now = self.millis(Instant::now());
        self.with_book(|book| book.memory(now, mac))
    }

    /// What a machine that has asked will have to fetch.
    pub fn needs(&self, mac: MacAddr, needs: Needs) {
        self.with_book(|book| book.needs(mac, needs));
    }

    /// An ordinary DHCP client spoke on this machine; `asks` for an address.
    pub fn heard(&self, mac: MacAddr, asks: bool) {
        self.with_book(|book| book.heard(mac));
        if asks {
            self.fact(mac, Fact::Up { sign: Sign::Dhcp });
        }
    }

    /// What a machine that has asked says of itself.
    pub fn identify(&self, mac: MacAddr, identity: Identity) {
        self.with_book(|book| book.identify(mac, identity));
    }

    /// Draws the conclusions from silence. To be called about once a second.
    pub fn tick(&self, now: Instant) {
        let at = self.millis(now);
        self.with_book(|book| {
            for (mac, statement) in book.tick(at) {
                self.tell(at, mac, What::Statement(statement));
            }
        });
    }

    /// Events are sent under the lock, so that their order is the order of the book.
    fn with_book<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        work(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn millis(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    fn tell(&self, at: u64, mac: MacAddr, what: What) {
        let progress = matches!(what, What::Fact(Fact::TransferProgress { .. }));
        if progress && self.events.capacity() < self.events.max_capacity() / 2 {
            return;
        }
        // Full or closed: whoever reads has stopped, or cannot keep up. The book is right anyway.
        let _ = self.events.try_send(Event { at, mac, what });
    }
}

/// The file servers follow the same `--for-mac` as DHCP does.
impl Admission for Machines {
    fn admitted(&self, mac: MacAddr) -> bool {
        self.policy.admits(mac)
    }

    fn identity(&self, mac: MacAddr) -> Identity {
        self.with_book(|book| book.identity(mac))
    }
}

impl Witness for Machines {
    fn fact(&self, mac: MacAddr, fact: Fact) {
        let at = self.millis(Instant::now());
        self.with_book(|book| {
            for what in book.fact(at, mac, fact) {
                self.tell(at, mac, what);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{Firmware, OfferForm, Statement};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn machines(room: usize) -> (Arc<Machines>, mpsc::Receiver<Event>) {
        let policy = Policy { for_mac: [MAC].into(), once: true, ..Policy::plain() };
        let (sender, events) = mpsc::channel(room);
        (Machines::new(policy, Instant::now(), sender), events)
    }

    fn seen() -> Fact {
        let firmware = Firmware::Pxe;
        Fact::Seen { arch: 7, firmware }
    }

    #[test]
    fn only_selected_machines_are_admitted() {
        let (machines, _events) = machines(1);
        assert!(machines.admitted(MAC));
        assert!(!machines.admitted(MacAddr([3; 6])));
        assert!(!machines.should_boot_locally(MAC));
    }

    #[test]
    fn facts_become_events_and_silence_becomes_a_statement() {
        let (machines, mut events) = machines(8);
        let file = "file".to_owned();
        let form = OfferForm::Complete;
        machines.fact(MAC, seen());
        machines.fact(MAC, Fact::Offered { form, file });
        machines.tick(Instant::now() + Duration::from_secs(29));
        machines.tick(Instant::now() + Duration::from_secs(31));
        let told: Vec<Event> = std::iter::from_fn(|| events.try_recv().ok()).collect();
        let [one, two, three] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((one.mac, &one.what), (MAC, &What::Fact(seen())));
        assert!(matches!(two.what, What::Fact(Fact::Offered { .. })));
        assert!(matches!(three.what, What::Statement(Statement::Stalled { .. })));
        assert!(one.at <= two.at && (30_000..40_000).contains(&three.at));
    }

    #[test]
    fn progress_leaves_room_for_steps_and_a_full_channel_blocks_nobody() {
        let (machines, mut events) = machines(8);
        for sent in 0..100 {
            machines.fact(MAC, Fact::TransferProgress { transfer: 1, sent, retransmissions: 0 });
        }
        machines.fact(MAC, seen());
        let told: Vec<Event> = std::iter::from_fn(|| events.try_recv().ok()).collect();
        assert_eq!(told.len(), 6);
        assert_eq!(told[5].what, What::Fact(seen()));
        for transfer in 0..100 {
            let (sent, reason) = (0, String::new());
            let ended = Fact::TransferEnded { transfer, sent, reason };
            machines.fact(MAC, ended);
        }
        assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count(), 8);
    }
}
