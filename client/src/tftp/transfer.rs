//! One TFTP transfer as a state machine: datagrams and time in, what to send out. No sockets, no
//! clock, no file.
//!
//! Guarantees: never more than one window in flight; without windows a duplicate ACK never causes a
//! second DATA (RFC 1123 section 4.2.3.1), with them every other window at most goes out twice for one;
//! an ACK inside the window goes on from the block after it (RFC 7440 section 4); every pause is bounded, and a machine that is silent for [`GIVE_UP`] is given up.
//! Never trusts the reader: an ACK of what was not sent is ignored.

use std::time::Duration;

use crate::wire::tftp::{Options, Packet, oack};

/// Block size without the option (RFC 1350 section 2).
const DEFAULT_BLOCK: u16 = 512;

/// Largest block (RFC 2348 section 2).
const MAX_BLOCK: u16 = 65464;

/// IPv4, UDP and TFTP header: a larger block would be sent in fragments, which many ROMs cannot
/// put together.
const HEADERS: u16 = 32;

/// Most blocks in flight. More than 64 upsets real readers.
const MAX_WINDOW: u16 = 64;

/// Most octets in flight, so that memory per transfer is bounded for any block size.
pub const MAX_WINDOW_OCTETS: usize = 256 * 1024;

/// Pause before the first retransmission while the round trip is not known.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Shortest pause: firmware that is busy writing must not be flooded.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause; a `timeout` that the reader asked for lowers it.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// So long without an ACK of anything new, and the transfer is given up.
pub const GIVE_UP: Duration = Duration::from_secs(30);

/// A reader that acknowledges less than [`LEAST`] in each of these is given up, too.
const MINUTE: Duration = Duration::from_secs(60);

/// Octets in a [`MINUTE`]: half a block of 512 octets in each second, far below what firmware does.
const LEAST: u64 = 16 * 1024;

/// What reader and server agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Octets of a block.
    pub block: u16,
    /// Blocks of a window.
    pub window: u16,
    timeout: Option<u8>,
    /// The OACK, unless nothing was asked that could be granted.
    oack: Option<Vec<u8>>,
}

impl Agreement {
    /// Grants of `asked` what this server can do, never more than was asked.
    pub fn new(asked: Options, length: u64, mtu: u16) -> Self {
        let largest = mtu.saturating_sub(HEADERS).clamp(DEFAULT_BLOCK, MAX_BLOCK);
        let block = asked.block.map_or(DEFAULT_BLOCK, |block| block.min(largest));
        let in_memory = MAX_WINDOW_OCTETS / usize::from(block);
        let most = MAX_WINDOW.min(u16::try_from(in_memory).unwrap_or(u16::MAX));
        let window = asked.window.map_or(1, |window| window.min(most));
        let mut granted = Vec::new();
        if asked.block.is_some() {
            granted.push(("blksize", u64::from(block)));
        }
        if let Some(seconds) = asked.timeout {
            granted.push(("timeout", u64::from(seconds)));
        }
        if asked.size {
            granted.push(("tsize", length));
        }
        if asked.window.is_some() {
            granted.push(("windowsize", u64::from(window)));
        }
        Self {
            block,
            window,
            timeout: asked.timeout,
            oack: (!granted.is_empty()).then(|| oack(&granted)),
        }
    }
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing before the next datagram or [`Transfer::deadline`].
    Wait,
    /// Send this OACK.
    Oack(Vec<u8>),
    /// Send `count` blocks from block `first` on (blocks count from 1, without wrapping).
    Window {
        /// First block.
        first: u64,
        /// How many.
        count: u16,
    },
    /// The last block was acknowledged.
    Done,
    /// The reader sent an ERROR.
    Refused {
        /// RFC 1350 section 5, or 8 (RFC 2347).
        code: u16,
        /// As it came.
        message: Vec<u8>,
    },
    /// The reader was silent for [`GIVE_UP`].
    GivenUp,
    /// The reader acknowledged less than half a block of 512 octets a second, over a minute.
    TooSlow,
}

/// See the top of the file. `now` is the time since the transfer began and never goes back.
#[derive(Debug)]
pub struct Transfer {
    agreement: Agreement,
    length: u64,
    /// Number of the last block, which is shorter than the others, perhaps empty.
    last: u64,
    /// The OACK has not been acknowledged yet.
    negotiating: bool,
    /// Highest block acknowledged.
    acknowledged: u64,
    /// Highest block sent.
    sent: u64,
    /// When the window was sent, if it holds only blocks that were never sent before (Karn).
    sent_at: Option<Duration>,
    /// An ACK of the last window that comes again means that this one's first block was lost, since
    /// neither has been sent twice: there is nothing else that the reader could answer so.
    telling: bool,
    /// Smoothed round trip and its variation (RFC 6298 section 2).
    round_trip: Option<(Duration, Duration)>,
    pause: Duration,
    deadline: Duration,
    progress_at: Duration,
    /// When this minute began, and the octets that had been acknowledged then.
    minute: (Duration, u64),
    retransmissions: u32,
}

impl Transfer {
    /// A transfer of `length` octets, and the first thing to send.
    pub fn begin(agreement: Agreement, length: u64, now: Duration) -> (Self, Action) {
        let ceiling = ceiling(&agreement);
        let mut transfer = Self {
            last: length / u64::from(agreement.block) + 1,
            negotiating: agreement.oack.is_some(),
            agreement,
            length,
            acknowledged: 0,
            sent: 0,
            sent_at: Some(now),
            telling: false,
            round_trip: None,
            pause: FIRST_PAUSE.min(ceiling),
            deadline: now,
            progress_at: now,
            minute: (now, 0),
            retransmissions: 0,
        };
        let action = transfer.send(now);
        (transfer, action)
    }

    /// A datagram came from the reader.
    pub fn receive(&mut self, datagram: &[u8], now: Duration) -> Action {
        match Packet::parse(datagram) {
            Ok(Packet::Ack(block)) => self.receive_ack(block, now),
            Ok(Packet::Error { code, message }) => {
                Action::Refused { code, message: message.to_vec() }
            }
            _ => Action::Wait,
        }
    }

    fn receive_ack(&mut self, block: u16, now: Duration) -> Action {
        let [.., high, low] = self.acknowledged.to_be_bytes();
        // The window is far smaller than the counter, so the distance names one block only.
        let newly = u64::from(block.wrapping_sub(u16::from_be_bytes([high, low])));
        if self.negotiating {
            if block != 0 {
                return Action::Wait;
            }
            self.negotiating = false;
        } else if newly == 0 && self.first_block_is_missed(now) {
            return self.repeat(now);
        } else if newly == 0 || newly > self.sent - self.acknowledged {
            return Action::Wait;
        } else {
            self.acknowledged += newly;
        }
        self.progress_at = now;
        if self.acknowledged == self.last {
            return Action::Done;
        }
        let (began, before) = self.minute;
        if now.saturating_sub(began) >= MINUTE {
            if self.octets() - before < LEAST {
                return Action::TooSlow;
            }
            self.minute = (now, self.octets());
        }
        let whole = self.acknowledged == self.sent;
        if let (true, Some(sent_at)) = (whole, self.sent_at) {
            self.measure(now.saturating_sub(sent_at));
        }
        self.pause = self.paused();
        if !whole {
            self.retransmissions = self.retransmissions.saturating_add(1);
        }
        self.telling = whole && self.sent_at.is_some() && self.agreement.window > 1;
        self.sent_at = whole.then_some(now);
        self.send(now)
    }

    /// Whether the ACK of the last window, which came again, asks for this one again. One that comes in
    /// less than half a round trip was sent before this window could arrive: the network doubled it.
    fn first_block_is_missed(&self, now: Duration) -> bool {
        let (Some(sent_at), Some((smooth, _))) = (self.sent_at, self.round_trip) else {
            return false;
        };
        self.telling && now.saturating_sub(sent_at) >= smooth / 2
    }

    /// [`Transfer::deadline`] has come.
    pub fn time_out(&mut self, now: Duration) -> Action {
        if now.saturating_sub(self.progress_at) >= GIVE_UP {
            return Action::GivenUp;
        }
        self.pause = (self.pause * 2).min(ceiling(&self.agreement));
        self.repeat(now)
    }

    /// Sends again what was not acknowledged.
    pub fn repeat(&mut self, now: Duration) -> Action {
        self.retransmissions = self.retransmissions.saturating_add(1);
        self.sent_at = None;
        self.telling = false;
        self.send(now)
    }

    /// When [`Transfer::time_out`] is due, unless a datagram comes first.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Octets acknowledged.
    pub fn octets(&self) -> u64 {
        (self.acknowledged * u64::from(self.agreement.block)).min(self.length)
    }

    /// Whether a block was acknowledged. Until then it may be a probe: EDK2 asks for the size,
    /// refuses the file, and asks again.
    pub fn under_way(&self) -> bool {
        self.acknowledged > 0
    }

    /// Whether only ACKs of blocks that were sent are outstanding.
    pub fn sent_whole(&self) -> bool {
        self.sent == self.last
    }

    /// How often something was sent again.
    pub fn retransmissions(&self) -> u32 {
        self.retransmissions
    }

    /// OACK or the window after the last acknowledged block.
    fn send(&mut self, now: Duration) -> Action {
        self.deadline = now + self.pause;
        if self.negotiating {
            return self.agreement.oack.clone().map_or(Action::Wait, Action::Oack);
        }
        let count = u16::try_from(self.last - self.acknowledged)
            .unwrap_or(u16::MAX)
            .min(self.agreement.window);
        self.sent = self.acknowledged + u64::from(count);
        Action::Window { first: self.acknowledged + 1, count }
    }

    fn measure(&mut self, sample: Duration) {
        self.round_trip = Some(match self.round_trip {
            None => (sample, sample / 2),
            Some((smooth, variation)) => {
                (smooth * 7 / 8 + sample / 8, variation * 3 / 4 + smooth.abs_diff(sample) / 4)
            }
        });
    }

    /// The pause that the measured round trip calls for.
    fn paused(&self) -> Duration {
        self.round_trip
            .map_or(FIRST_PAUSE, |(smooth, variation)| smooth + variation * 4)
            .max(MIN_PAUSE)
            .min(ceiling(&self.agreement))
    }
}

fn ceiling(agreement: &Agreement) -> Duration {
    agreement
        .timeout
        .map_or(MAX_PAUSE, |seconds| MAX_PAUSE.min(Duration::from_secs(seconds.into())))
}

#[cfg(test)]
mod tests;
