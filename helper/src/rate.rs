//! How often one user may have polkit asked without a dialog: a burst, and one more per second.
//!
//! Guarantees: remembers at most [`limits::CHECK_USERS`] users, the one that asked longest ago is
//! forgotten first. No clock of its own.

use std::{collections::BTreeMap, time::Duration};

use crate::{caller::Uid, limits};

/// What each user has left.
#[derive(Debug, Default)]
pub struct Rates {
    users: BTreeMap<Uid, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: u32,
    filled: Duration,
}

impl Rates {
    /// Takes one call of this user at this time; `false` when there is none left.
    pub fn take(&mut self, uid: Uid, now: Duration) -> bool {
        let mut bucket = self
            .users
            .get(&uid)
            .copied()
            .unwrap_or(Bucket { left: limits::CHECK_BURST, filled: now });
        let seconds = now.saturating_sub(bucket.filled).as_secs();
        if seconds > 0 {
            let earned = u32::try_from(seconds).unwrap_or(u32::MAX);
            bucket.left = bucket.left.saturating_add(earned).min(limits::CHECK_BURST);
            bucket.filled = bucket.filled.saturating_add(Duration::from_secs(seconds));
        }
        let granted = bucket.left > 0;
        bucket.left = bucket.left.saturating_sub(1);
        self.users.insert(uid, bucket);
        if self.users.len() > limits::CHECK_USERS
            && let Some(oldest) = self.oldest()
        {
            self.users.remove(&oldest);
        }
        granted
    }

    fn oldest(&self) -> Option<Uid> {
        let by_age = self.users.iter().min_by_key(|(_, bucket)| bucket.filled);
        by_age.map(|(uid, _)| *uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_per_second_and_others_are_not_affected() {
        let mut rates = Rates::default();
        let (greedy, other) = (Uid::for_test(1), Uid::for_test(2));
        let at = Duration::from_millis;
        for _ in 0..limits::CHECK_BURST {
            assert!(rates.take(greedy, at(500)));
        }
        assert!(!rates.take(greedy, at(500)));
        assert!(rates.take(other, at(500)));
        assert!(rates.take(greedy, at(1500)));
        assert!(!rates.take(greedy, at(1600)));
        assert!(rates.take(greedy, at(2500)));
    }

    #[test]
    fn only_so_many_users_are_remembered() {
        let mut rates = Rates::default();
        for uid in 0..1000 {
            assert!(rates.take(Uid::for_test(uid), Duration::from_secs(u64::from(uid))));
        }
        assert_eq!(rates.users.len(), limits::CHECK_USERS);
        assert!(rates.users.contains_key(&Uid::for_test(999)));
    }
}
