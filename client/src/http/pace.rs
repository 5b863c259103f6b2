//! How fast machines take what they are sent, and how many connections each has.
//!
//! Guarantees: a machine that takes less than [`LEAST`] in each of two windows of time while there is
//! more to send loses its connection, so that it holds no place that others wait for; one that is not
//! being sent anything is not judged here. One machine has at most [`MAX_PER_MACHINE`] connections.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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

    fn note(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Pending => self.waits.store(true, Ordering::Relaxed),
            Poll::Ready(Ok(octets)) => {
                self.waits.store(false, Ordering::Relaxed);
                let octets = u64::try_from(*octets).unwrap_or(u64::MAX);
                self.taken.fetch_add(octets, Ordering::Relaxed);
            }
            Poll::Ready(Err(_)) => {}
        }
    }
}

/// A connection whose pace is noted.
pub(super) struct Paced<T> {
    stream: T,
    pace: Arc<Pace>,
}

impl<T> Paced<T> {
    /// Notes what goes out on `stream`.
    pub fn new(stream: T, pace: Arc<Pace>) -> Self {
        Self { stream, pace }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Paced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, octets);
        self.pace.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.pace.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
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
