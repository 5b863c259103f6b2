//! A glance: looking at a socket for a moment, before sleeping in the kernel until something comes.
//!
//! Guarantees: one thread of the process looks at a time, for [`LIMIT`], and lets whoever else wants
//! the processor have it meanwhile. Who looked in vain sleeps at once the next time, and each time in
//! vain doubles how often; so a machine that answers slowly, or a processor that others need,
//! costs next to nothing.
//!
//! Why: to fall asleep and be woken takes a processor that has nothing else to do longer than a machine
//! nearby takes to answer.

use std::{
    io::{self, ErrorKind},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long a look lasts at most, unless others need the processor. A machine on the same computer
/// answers in 5 to 40 us; one behind a wire, with firmware that polls it, in some 90: looking as long
/// as that cost ten times the CPU time, and gave nothing.
const LIMIT: Duration = Duration::from_micros(50);

/// A look that lasted so long gave the processor to somebody who computes, and waited for its turn: a
/// time slice of Linux is 0.7 ms with one processor, 1.4 ms with two, 2.8 ms with eight.
const TURN: Duration = Duration::from_millis(1);

/// Most times in a row that a thread sleeps at once. A look that lasts a turn is spread over as many answers.
const MOST: u32 = 4096;

/// Held by whoever looks.
static TOKEN: AtomicBool = AtomicBool::new(false);

/// When one thread looks.
#[derive(Debug)]
pub(super) struct Glance {
    token: &'static AtomicBool,
    /// How often it still sleeps at once.
    asleep: u32,
    /// What `asleep` was set to when it last looked: 0 if that was not in vain.
    last: u32,
}

impl Glance {
    /// Of a thread that has not looked yet.
    pub fn new() -> Self {
        Self::by(&TOKEN)
    }

    fn by(token: &'static AtomicBool) -> Self {
        Self { token, asleep: 0, last: 0 }
    }

    /// What `receive`, which must not wait, has to say other than that nothing is there. Nothing, if
    /// nothing came, or if it is better to sleep now.
    pub fn at<T>(&mut self, receive: impl FnMut() -> io::Result<T>) -> Option<io::Result<T>> {
        if self.asleep > 0 {
            self.asleep -= 1;
            return None;
        }
        if self.token.swap(true, Ordering::Acquire) {
            return None;
        }
        let begun = Instant::now();
        let found = ask(receive, || begun.elapsed() < LIMIT);
        self.token.store(false, Ordering::Release);
        self.learn(begun.elapsed());
        found
    }

    /// Takes in how long a look lasted. One that found something too late was in vain, too: asleep,
    /// the thread would have had it sooner.
    fn learn(&mut self, lasted: Duration) {
        self.last = match lasted {
            lasted if lasted < LIMIT => 0,
            lasted if lasted < TURN => (self.last * 2).clamp(1, MOST),
            _ => MOST,
        };
        self.asleep = self.last;
    }
}

/// Asks again and again while `on` says so, and once more.
fn ask<T>(
    mut receive: impl FnMut() -> io::Result<T>,
    on: impl Fn() -> bool,
) -> Option<io::Result<T>> {
    loop {
        let again = on();
        match receive() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            found => return Some(found),
        }
        if !again {
            return None;
        }
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SOON: Duration = Duration::from_micros(49);
    const IN_VAIN: Duration = Duration::from_micros(50);

    fn nothing() -> io::Result<u8> {
        Err(ErrorKind::WouldBlock.into())
    }

    /// How often it sleeps at once after looks that lasted so long.
    fn pauses(lasted: &[Duration]) -> Vec<u32> {
        static UNUSED: AtomicBool = AtomicBool::new(false);
        let mut glance = Glance::by(&UNUSED);
        let after = |lasted: &Duration| {
            glance.learn(*lasted);
            glance.asleep
        };
        lasted.iter().map(after).collect()
    }

    #[test]
    fn each_look_in_vain_doubles_the_pause_up_to_a_limit_and_one_that_is_not_ends_it() {
        assert_eq!(pauses(&[SOON, IN_VAIN, IN_VAIN, IN_VAIN, SOON, IN_VAIN]), [0, 1, 2, 4, 0, 1]);
        assert_eq!(pauses(&[IN_VAIN; 20]).last(), Some(&4096));
    }

    #[test]
    fn where_others_compute_the_pause_is_the_longest_at_once() {
        assert_eq!(pauses(&[Duration::from_micros(999), TURN, TURN, SOON]), [1, 4096, 4096, 0]);
    }

    #[test]
    fn a_look_ends_and_after_it_the_thread_sleeps_at_once() {
        static MINE: AtomicBool = AtomicBool::new(false);
        let mut glance = Glance::by(&MINE);
        assert!(glance.at(nothing).is_none());
        assert!(!MINE.load(Ordering::Relaxed));
        assert!(glance.asleep > 0);
        glance.asleep = 2;
        for _ in 0..2 {
            assert!(glance.at(|| -> io::Result<u8> { panic!("it looks") }).is_none());
        }
        assert!(matches!(glance.at(|| Ok(7)), Some(Ok(7))));
    }

    #[test]
    fn one_looks_at_a_time() {
        static OURS: AtomicBool = AtomicBool::new(false);
        let (mut first, mut second) = (Glance::by(&OURS), Glance::by(&OURS));
        let found = first.at(|| {
            assert!(second.at(|| -> io::Result<u8> { panic!("both look") }).is_none());
            Ok(1)
        });
        assert!(matches!(found, Some(Ok(1))));
        assert!(matches!(second.at(|| Ok(2)), Some(Ok(2))));
    }

    #[test]
    fn it_asks_until_something_comes_or_time_is_up_and_then_once_more() {
        let asked = Cell::new(0);
        let count = || {
            asked.set(asked.get() + 1);
            asked.get()
        };
        let third = || if count() < 3 { nothing() } else { Ok(3) };
        assert!(matches!(ask(third, || true), Some(Ok(3))));
        asked.set(0);
        // What came while others had the processor is found by the last question.
        assert!(matches!(ask(third, || asked.get() < 2), Some(Ok(3))));
        asked.set(0);
        assert!(
            ask(
                || {
                    count();
                    nothing()
                },
                || asked.get() < 2
            )
            .is_none()
        );
        assert_eq!(asked.get(), 3);
        let failed = || -> io::Result<u8> { Err(ErrorKind::NetworkDown.into()) };
        assert!(matches!(ask(failed, || true), Some(Err(_))));
    }
}
