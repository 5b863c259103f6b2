//! How long something took, round after round, held against what is promised.
//!
//! A single round says nothing on a machine that does other work: the scheduler may take a second by
//! itself. So no test fails by one; the long loops (`make soak`) fail by their median, which noise
//! does not move and a program that became slow does.

use std::{fmt::Write as _, io::Write as _, time::Duration};

/// Rounds from which on the median is judged: fewer are `make test`.
const MANY: usize = 100;

/// Upper bounds of the histogram's rows, milliseconds; all that is longer is in one more.
const ROWS: [u64; 7] = [50, 100, 250, 500, 1000, 2000, 5000];

/// The times of one kind of round.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// One more round.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Prints them past the harness, which keeps the output of tests that pass to itself.
    ///
    /// # Panics
    /// When there are many rounds and more than half of them took longer than `promise`.
    #[track_caller]
    pub fn hold(mut self, what: &str, promise: Duration) {
        self.0.sort_unstable();
        // Nobody is left to tell when standard error is gone.
        let _ = std::io::stderr().write_all(self.text(what, promise).as_bytes());
        let median = self.0.get(self.0.len() / 2).copied().unwrap_or_default();
        assert!(
            self.0.len() < MANY || median <= promise,
            "{what}: more than half of the rounds took longer than {promise:?}"
        );
    }

    /// Of sorted times: a line, and one for each row that has something in it.
    fn text(&self, what: &str, promise: Duration) -> String {
        let kept = self.0.iter().filter(|time| **time <= promise).count();
        let longest = self.0.last().copied().unwrap_or_default();
        let rounds = self.0.len();
        let mut text = format!(
            "{what}: within {promise:?} as promised: {kept} of {rounds}; longest {longest:.2?}\n"
        );
        let mut from = 0;
        for bound in ROWS.into_iter().chain([u64::MAX]) {
            let below = |time: &&Duration| time.as_millis() <= u128::from(bound);
            let to = self.0.iter().take_while(below).count();
            let row = match bound {
                u64::MAX => "  longer".to_owned(),
                bound => format!("  {bound:>4} ms"),
            };
            if to > from {
                let _a_string_takes_everything = writeln!(text, "{row} {}", to - from);
            }
            from = to;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(milliseconds: impl IntoIterator<Item = u64>) -> Times {
        Times(milliseconds.into_iter().map(Duration::from_millis).collect())
    }

    #[test]
    fn what_was_kept_is_counted_and_shown_in_rows() {
        let text = times([10, 50, 51, 1000, 1001, 9000]).text("closing", Duration::from_secs(1));
        let rows = "    50 ms 2\n   100 ms 1\n  1000 ms 1\n  2000 ms 1\n  longer 1\n";
        let head = "closing: within 1s as promised: 4 of 6; longest 9.00s\n";
        assert_eq!(text, format!("{head}{rows}"));
    }

    #[test]
    fn only_many_rounds_of_which_most_are_slow_fail() {
        let promise = Duration::from_secs(1);
        times([5000; 99]).hold("few", promise);
        times(std::iter::repeat_n(10, 51).chain([5000; 49])).hold("noise", promise);
        let slow = times(std::iter::repeat_n(10, 49).chain([5000; 51]));
        let held = std::panic::catch_unwind(|| slow.hold("slow", promise));
        assert!(held.is_err());
    }
}
