//! How often one user may have polkit asked without a dialog: a burst, and one more per second.
//!
//! Guarantees: remembers at most [`limits::CHECK_USERS`] users, the one that asked longest ago is
//! forgotten first. No clock of its own.

use std::{collections::BTreeMap, time::Duration};

use crate::{caller::Uid, limits};

/// For each user, when all that was taken will be earned again.
#[derive(Debug, Default)]
pub struct Rates(BTreeMap<Uid, Duration>);

impl Rates {
    /// Takes one call of this user at this time; `false` when there is none left.
    pub fn take(&mut self, uid: Uid, now: Duration) -> bool {
        let earned = self.0.get(&uid).map_or(now, |earned| now.max(*earned));
        let earned = earned.saturating_add(Duration::from_secs(1));
        let granted = earned.saturating_sub(now) <= limits::CHECK_BURST;
        if granted {
            self.0.insert(uid, earned);
        }
        if self.0.len() > limits::CHECK_USERS {
            let oldest = self.0.iter().min_by_key(|(_, earned)| **earned).map(|(uid, _)| *uid);
            oldest.and_then(|uid| self.0.remove(&uid));
        }
        granted
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
        for _ in 0..limits::CHECK_BURST.as_secs() {
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
        assert_eq!(rates.0.len(), limits::CHECK_USERS);
        assert!(rates.0.contains_key(&Uid::for_test(999)));
    }
}
