//! The parts of a copy, each with a hash of its own: which of them were looked at, and which comes next.
//!
//! Guarantees: pure but for a lock. No octet of a copy that was kept is given out before its part was looked at, and none
//! behind the first look that found other octets; what machines wait for is looked at first, in the order in which
//! they asked, and then what is behind that. Memory is a hash and an octet for each part.

use std::{
    collections::VecDeque,
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN, digest};
use tokio::sync::watch;

use super::record::hex;

/// Octets of a part: half a millisecond of one processor.
pub const PART: u64 = 1 << 20;
/// Parts that a machine is told of at once, and ahead of which one is asked for.
const SPAN: usize = 4;

/// The part that this octet lies in.
fn part(at: u64) -> usize {
    usize::try_from(at / PART).unwrap_or(usize::MAX)
}

/// The SHA-256 of each part, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(Vec<u8>);

impl List {
    /// Of what was written beside a copy.
    #[must_use]
    pub fn new(octets: Vec<u8>) -> Self {
        Self(octets)
    }

    /// Octets of the list of a copy that has so many.
    #[must_use]
    pub fn size(length: u64) -> u64 {
        let digest = u64::try_from(SHA256_OUTPUT_LEN).unwrap_or_default();
        length.div_ceil(PART).saturating_mul(digest)
    }

    /// As it is written.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.0
    }

    /// What names all of them: its own SHA-256, in hexadecimal digits.
    #[must_use]
    pub fn sha256(&self) -> String {
        hex(digest(&SHA256, &self.0).as_ref())
    }

    fn of(&self, part: usize) -> Option<&[u8]> {
        self.0.chunks_exact(SHA256_OUTPUT_LEN).nth(part)
    }
}

/// Hashes what comes, part by part.
pub struct Hasher {
    list: Vec<u8>,
    context: Context,
    /// Octets that the part at hand has.
    taken: u64,
}

impl Hasher {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { list: Vec::new(), context: Context::new(&SHA256), taken: 0 }
    }

    /// The next octets.
    pub fn update(&mut self, octets: &[u8]) {
        let mut octets = octets;
        while !octets.is_empty() {
            let room = usize::try_from(PART - self.taken).unwrap_or(usize::MAX);
            let (now, later) = octets.split_at(room.min(octets.len()));
            self.context.update(now);
            self.taken += u64::try_from(now.len()).unwrap_or_default();
            if self.taken == PART {
                self.end_part();
            }
            octets = later;
        }
    }

    /// Of all of them.
    #[must_use]
    pub fn finish(mut self) -> List {
        if self.taken > 0 {
            self.end_part();
        }
        List(self.list)
    }

    fn end_part(&mut self) {
        let context = std::mem::replace(&mut self.context, Context::new(&SHA256));
        self.list.extend(context.finish().as_ref());
        self.taken = 0;
    }
}

/// What is known of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    /// Somebody looks at it.
    InHand,
    Sound,
}

#[derive(Debug)]
struct Now {
    states: Vec<State>,
    /// What machines wait for.
    wanted: VecDeque<usize>,
    /// The one behind what was taken in hand last.
    next: usize,
    is_damaged: bool,
}

/// The parts of a copy that was kept.
#[derive(Debug)]
pub struct Parts {
    length: u64,
    list: List,
    /// Parts that were not found sound.
    left: AtomicUsize,
    /// Parts that may not be given out.
    held_back: AtomicUsize,
    now: watch::Sender<Now>,
}

impl Parts {
    /// Nobody has looked at any of `length` octets.
    #[must_use]
    pub fn new(length: u64, list: List) -> Self {
        let count = usize::try_from(length.div_ceil(PART)).unwrap_or(usize::MAX);
        let states = vec![State::Unknown; count];
        let now = Now { states, wanted: VecDeque::new(), next: 0, is_damaged: false };
        let [left, held_back] = [count; 2].map(AtomicUsize::new);
        Self { length, list, left, held_back, now: watch::Sender::new(now) }
    }

    /// Other octets were found than were kept.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.now.borrow().is_damaged
    }

    /// The end of what can be read from `at` on, once that can: all of it, or some parts.
    ///
    /// # Errors
    /// The copy is damaged, there or elsewhere.
    pub async fn readable(&self, at: u64) -> io::Result<u64> {
        if self.held_back.load(Ordering::Acquire) == 0 {
            return Ok(self.length);
        }
        let first = part(at);
        self.now.send_if_modified(|now| {
            let mut ahead = now.states.iter().enumerate().skip(first).take(SPAN);
            let unknown = ahead.find(|(_, state)| **state == State::Unknown);
            if let Some((part, _)) = unknown
                && !now.wanted.contains(&part)
            {
                now.wanted.push_back(part);
            }
            // It changes nothing for those who wait.
            false
        });
        let is_sound = |now: &Now| now.states.get(first).is_none_or(|it| *it == State::Sound);
        let mut known = self.now.subscribe();
        let waited = known.wait_for(|now| now.is_damaged || is_sound(now)).await;
        let now = waited.map_err(|_| io::Error::other("nobody looks at it any more"))?;
        if !is_sound(&now) {
            return Err(io::Error::other("the copy in the cache is not what was written there"));
        }
        let states = now.states.iter().skip(first).take(SPAN);
        let sound = states.take_while(|state| **state == State::Sound).count();
        let end = u64::try_from(first + sound).unwrap_or(u64::MAX).saturating_mul(PART);
        Ok(end.min(self.length))
    }

    /// The next part to look at: its number, first octet and length. None, if all are sound or in hand, or the copy is
    /// damaged.
    pub fn take(&self) -> Option<(usize, u64, u64)> {
        let mut taken = None;
        self.now.send_if_modified(|now| {
            let Now { states, wanted, next, is_damaged } = now;
            let is_unknown = |part: &usize| states.get(*part) == Some(&State::Unknown);
            let mut asked = std::iter::from_fn(|| wanted.pop_front());
            let rest = (*next..states.len()).chain(0..*next);
            taken = asked.find(is_unknown).or_else(|| rest.into_iter().find(is_unknown));
            taken = taken.filter(|_| !*is_damaged);
            if let Some(part) = taken {
                *next = part + 1;
                states.get_mut(part).into_iter().for_each(|state| *state = State::InHand);
            }
            false
        });
        let start = u64::try_from(taken?).ok()?.checked_mul(PART)?;
        Some((taken?, start, PART.min(self.length.checked_sub(start)?)))
    }

    /// Whether this is the hash that the part had.
    #[must_use]
    pub fn has(&self, part: usize, sha256: &[u8]) -> bool {
        self.list.of(part) == Some(sha256)
    }

    /// One more part has the hash that it had. Whether it is the last one of all; [`Self::give`] follows.
    pub fn found_sound(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Machines may have this part.
    pub fn give(&self, part: usize) {
        self.now.send_modify(|now| {
            now.states.get_mut(part).into_iter().for_each(|state| *state = State::Sound);
            self.held_back.fetch_sub(1, Ordering::AcqRel);
        });
    }

    /// Nothing more of it is given out.
    pub fn damage(&self) {
        self.now.send_modify(|now| now.is_damaged = true);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::{Pin, pin},
        task::{Poll, Waker},
    };

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = PART;

    fn poll<F: Future>(waits: Pin<&mut F>) -> Poll<F::Output> {
        waits.poll(&mut std::task::Context::from_waker(Waker::noop()))
    }

    /// Of ten parts, the last of which is short.
    fn ten() -> Parts {
        Parts::new(9 * MIB + 7, List(vec![0; 10 * SHA256_OUTPUT_LEN]))
    }

    fn find_sound(parts: &Parts) -> usize {
        let (part, ..) = parts.take().unwrap();
        parts.found_sound();
        parts.give(part);
        part
    }

    #[tokio::test]
    async fn nothing_is_read_before_it_was_looked_at_and_what_is_asked_for_is_looked_at_first() {
        let parts = ten();
        let mut begins = pin!(parts.readable(0));
        let mut middle = pin!(parts.readable(6 * MIB + 5));
        let mut end = pin!(parts.readable(9 * MIB + 6));
        assert!(poll(begins.as_mut()).is_pending() && poll(middle.as_mut()).is_pending());
        assert_eq!(find_sound(&parts), 0);
        assert!(poll(middle.as_mut()).is_pending());
        assert_eq!(begins.await.unwrap(), MIB);
        assert!(poll(end.as_mut()).is_pending());
        assert_eq!(find_sound(&parts), 6);
        assert_eq!(middle.await.unwrap(), 7 * MIB);
        assert_eq!(parts.take(), Some((9, 9 * MIB, 7)));
        assert!(poll(end.as_mut()).is_pending(), "it is in hand");
        // Who can read on already asks for what comes behind it.
        assert_eq!(parts.readable(6 * MIB).await.unwrap(), 7 * MIB);
        assert_eq!(find_sound(&parts), 7);
        assert_eq!((parts.found_sound(), parts.give(9)), (false, ()));
        assert_eq!(end.await.unwrap(), 9 * MIB + 7);
        // The rest in its order, from there on and then from the beginning.
        let rest: Vec<_> = (0..6).map(|_| find_sound(&parts)).collect();
        assert_eq!(rest, [8, 1, 2, 3, 4, 5]);
        assert_eq!((parts.take(), parts.readable(3).await.unwrap()), (None, 9 * MIB + 7));
    }

    #[tokio::test]
    async fn a_machine_is_told_of_some_parts_at_once_and_the_last_one_found_is_known() {
        let parts = ten();
        for number in 0..9 {
            let (part, ..) = parts.take().unwrap();
            assert_eq!((part, parts.found_sound()), (number, false));
            parts.give(part);
        }
        assert_eq!(parts.readable(5).await.unwrap(), 4 * MIB);
        assert_eq!(parts.readable(7 * MIB).await.unwrap(), 9 * MIB);
        assert!(parts.take().is_some() && parts.found_sound());
        assert!(poll(pin!(parts.readable(9 * MIB))).is_pending(), "it was not given yet");
    }

    #[tokio::test]
    async fn nothing_is_given_out_behind_a_damage_but_what_was_found_sound_before() {
        let parts = ten();
        find_sound(&parts);
        let mut waits = pin!(parts.readable(3 * MIB));
        assert!(poll(waits.as_mut()).is_pending() && !parts.is_damaged());
        parts.damage();
        assert!(matches!(poll(waits.as_mut()), Poll::Ready(Err(_))) && parts.is_damaged());
        assert_eq!((parts.take(), parts.readable(5).await.unwrap()), (None, MIB));
    }

    #[tokio::test]
    async fn nothing_has_no_parts() {
        let parts = Parts::new(0, Hasher::new().finish());
        assert_eq!((parts.take(), parts.readable(0).await.unwrap()), (None, 0));
        assert_eq!(List::size(0), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// In whatever pieces it comes.
        #[test]
        fn each_part_has_its_own_hash(
            cuts in proptest::collection::vec(0_usize..3 * (1 << 20) + 9, 0..6),
            length in 0_usize..3 * (1 << 20) + 9,
        ) {
            let octets: Vec<_> = (0..length).map(|at| (at * 31 + at / 251).to_le_bytes()[0]).collect();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(length)).chain([0, length]).collect();
            cuts.sort_unstable();
            let mut hasher = Hasher::new();
            cuts.windows(2).for_each(|two| hasher.update(&octets[two[0]..two[1]]));
            let list = hasher.finish();
            prop_assert_eq!(list.octets().len() as u64, List::size(length as u64));
            for (number, part) in octets.chunks(1 << 20).enumerate() {
                let expected = digest(&SHA256, part);
                prop_assert_eq!(list.of(number), Some(expected.as_ref()));
            }
        }
    }
}
