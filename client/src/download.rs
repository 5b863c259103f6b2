//! One download as the user sees it, whichever protocol carries it.
//!
//! Guarantees: numbers are unique in the run; a download that was started ends with exactly one
//! `TransferDone` or `TransferEnded`, also when its task is dropped; at most four
//! `TransferProgress` a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    event::{Fact, Protocol, Role, Witness},
    mac::MacAddr,
};

/// Four facts a second are enough for a moving display.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Longest piece of a machine's text that is repeated to the user, in characters.
const MAX_TEXT: usize = 64;

/// Both servers number their downloads from here.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Tells a [`Witness`] about one download. No fact is told before [`Download::progress`].
pub struct Download {
    witness: Arc<dyn Witness>,
    mac: MacAddr,
    protocol: Protocol,
    role: Role,
    file: String,
    size: u64,
    begun: Instant,
    sent: u64,
    retransmissions: u32,
    /// The number, once `TransferStarted` was told.
    transfer: Option<u64>,
    reported: Instant,
    finished: bool,
}

impl Download {
    /// A download of `size` octets that begins now. `file` is a name, of whatever octets.
    #[must_use]
    pub fn new(
        witness: Arc<dyn Witness>,
        mac: MacAddr,
        protocol: Protocol,
        role: Role,
        file: &[u8],
        size: u64,
    ) -> Self {
        let now = Instant::now();
        Self {
            witness,
            mac,
            protocol,
            role,
            file: printable(file),
            size,
            begun: now,
            sent: 0,
            retransmissions: 0,
            transfer: None,
            reported: now,
            finished: false,
        }
    }

    /// The first `sent` octets of the file have gone. The first call tells `TransferStarted`.
    pub fn progress(&mut self, sent: u64) {
        self.sent = sent;
        let transfer = self.start();
        let now = Instant::now();
        if now.duration_since(self.reported) >= PROGRESS_INTERVAL {
            self.reported = now;
            let fact =
                Fact::TransferProgress { transfer, sent, retransmissions: self.retransmissions };
            self.witness.fact(self.mac, fact);
        }
    }

    /// So many packets or windows were sent more than once, in all.
    pub fn sent_again(&mut self, retransmissions: u32) {
        self.retransmissions = retransmissions;
    }

    /// The whole file has gone.
    pub fn done(mut self) {
        let transfer = self.start();
        self.finished = true;
        let elapsed = self.begun.elapsed().as_millis();
        let fact = Fact::TransferDone {
            transfer,
            sent: self.sent,
            milliseconds: u64::try_from(elapsed).unwrap_or(u64::MAX),
            retransmissions: self.retransmissions,
        };
        self.witness.fact(self.mac, fact);
    }

    /// It ended early.
    pub fn ended(mut self, reason: impl Into<String>) {
        let transfer = self.start();
        self.end(transfer, reason.into());
    }

    /// Nothing is told: the machine only asked for the size.
    pub fn forget(mut self) {
        self.finished = true;
    }

    /// Whether `TransferStarted` was told.
    #[must_use]
    pub fn started(&self) -> bool {
        self.transfer.is_some()
    }

    fn start(&mut self) -> u64 {
        if let Some(transfer) = self.transfer {
            return transfer;
        }
        let transfer = NEXT.fetch_add(1, Ordering::Relaxed);
        self.transfer = Some(transfer);
        let fact = Fact::TransferStarted {
            transfer,
            protocol: self.protocol,
            role: self.role,
            file: self.file.clone(),
            size: self.size,
            sent: self.sent,
        };
        self.witness.fact(self.mac, fact);
        transfer
    }

    fn end(&mut self, transfer: u64, reason: String) {
        self.finished = true;
        let fact = Fact::TransferEnded { transfer, sent: self.sent, reason };
        self.witness.fact(self.mac, fact);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let (Some(transfer), false) = (self.transfer, self.finished) {
            self.end(transfer, "the connection was closed before the end of the file".into());
        }
    }
}

/// A machine's text as printable ASCII, shortened to 64 characters: anything else could move the
/// cursor of the terminal that shows it.
#[must_use]
pub fn printable(text: &[u8]) -> String {
    text.iter()
        .take(MAX_TEXT)
        .map(|&octet| match octet {
            b' '..=b'~' => char::from(octet),
            _ => '?',
        })
        .collect()
}
