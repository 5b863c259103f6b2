//! How fast machines take what they are sent, and how many connections each has.
//!
//! Guarantees: a machine that takes less than [`LEAST`] in each of two windows of time while there is
//! more to send loses its connection, so that it holds no place that others wait for; one that is not
//! being sent anything is not judged here. One machine has at most [`MAX_PER_MACHINE`] connections.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Octets in one window of time: 1 KiB a second, as windows are of a minute, with which an image of
/// 1 GiB would take twelve days.
pub(super) const LEAST: u64 = 64 * 1024;

/// Connections of one machine at once: firmware and iPXE use one or two, a system that fetches what
/// its command line names a few more. An eighth of all that there are.
const MAX_PER_MACHINE: usize = 32;

/// What a connection has taken.
#[derive(Debug, Default)]
pub(super) struct Pace {
    taken: AtomicU64,
    /// More is to be sent than the kernel takes at the moment.
    waits: AtomicBool,
}

impl Pace {
    /// Returns once less than `least` was taken in each of two windows, one after the other.
    pub async fn too_slow(&self, window: Duration, least: u64) {
        let mut slow = 0;
        while slow < 2 {
            let before = self.taken.load(Ordering::Relaxed);
            tokio::time::sleep(window).await;
            let taken = self.taken.load(Ordering::Relaxed).saturating_sub(before);
            let is_slow = taken < least && self.waits.load(Ordering::Relaxed);
            slow = if is_slow { slow + 1 } else { 0 };
        }
    }

    /// It takes no more at the moment.
    pub fn waits(&self) {
        self.waits.store(true, Ordering::Relaxed);
    }

    /// It took so many octets.
    pub fn takes(&self, octets: usize) {
        self.waits.store(false, Ordering::Relaxed);
        self.taken.fetch_add(u64::try_from(octets).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// How many connections each machine has.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Places {
    /// A place for one more connection of this machine, until it is dropped.
    pub fn take(&self, machine: IpAddr) -> Option<Place> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = places.entry(machine).or_default();
        if *taken >= MAX_PER_MACHINE {
            return None;
        }
        *taken += 1;
        Some(Place { machine, places: self.clone() })
    }
}

/// One connection's place.
#[derive(Debug)]
pub(super) struct Place {
    machine: IpAddr,
    places: Places,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = places.get_mut(&self.machine) {
            *taken -= 1;
            if *taken == 0 {
                places.remove(&self.machine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_machine_has_so_many_places_and_takes_none_of_another() {
        let places = Places::default();
        let [one, other] = [1, 2].map(|last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last)));
        let mut taken: Vec<_> = std::iter::from_fn(|| places.take(one)).collect();
        assert_eq!(taken.len(), MAX_PER_MACHINE);
        assert!(places.take(other).is_some());
        taken.pop();
        assert!(places.take(one).is_some());
        drop(taken);
        assert!(places.0.lock().unwrap().is_empty(), "nothing is kept of machines that are gone");
    }
}
