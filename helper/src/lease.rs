//! Leases: who has what, under which mark, until when. Values only: no I/O, no clock.
//!
//! Guarantees: quotas; one pending question per connection; an id is never given
//! twice in one run. The sockets and the life of a lease belong to the connection that asked for it,
//! and so does extending it; seeing and ending it belongs to the user, who could as well kill that
//! program. Nobody else finds it. Trusts its caller for the time.

use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
    num::NonZeroU8,
    os::fd::OwnedFd,
    time::Duration,
};

use portcullis_dbus::Error;
use tokio::sync::oneshot;
use zbus::names::UniqueName;

use crate::{
    caller::{Caller, Uid},
    config::Config,
    firewall::{Backend, Opening},
    limits,
    mark::{LeaseMark, Marks},
    request::Request,
    sockdiag::Found,
    sockets::Ear,
};

/// One granted request.
#[derive(Debug)]
pub struct Lease {
    /// The connection that it belongs to, and its user.
    pub owner: Caller,
    /// What was granted, last of all for how long.
    pub request: Request,
    /// What was opened for it.
    pub opening: Opening,
    /// The address that its sockets have.
    pub address: Ipv4Addr,
    /// The firewall it was opened in.
    pub backend: Backend,
    /// When it was opened (CLOCK_BOOTTIME).
    pub opened: Duration,
    /// When it ends by itself (CLOCK_BOOTTIME).
    pub ends: Duration,
    /// Since when the host's firewall has been away, if it is.
    pub chain_gone_since: Option<Duration>,
    /// What keeps other users off its ports; closed with the lease.
    pub placeholders: Vec<OwnedFd>,
    /// What makes its raw socket deaf, if it has one, when the lease ends.
    pub ear: Option<Ear>,
}

/// All leases, and the questions that may become some.
#[derive(Debug, Default)]
pub struct Leases {
    /// The open ones, by their ids.
    pub open: BTreeMap<u64, Lease>,
    last_id: u64,
    last_slot: u8,
    pending: Vec<(Caller, oneshot::Sender<()>)>,
    ended: VecDeque<(u64, Uid)>,
}

impl Leases {
    /// Notes that a question of this caller is pending. What is returned completes when it is not any
    /// more.
    ///
    /// # Errors
    /// `Busy` when one of this connection already is, or as many of this user as the site allows.
    pub fn begin_question(
        &mut self,
        caller: &Caller,
        site: &Config,
    ) -> Result<oneshot::Receiver<()>, Error> {
        let of_user = self.pending.iter().filter(|(other, _)| other.uid == caller.uid).count();
        if of_user >= site.questions_per_user || self.is_asking(caller) {
            return Err(Error::Busy(
                "another request of yours is waiting for an answer: answer its password dialog, \
                 or end that program"
                    .to_owned(),
            ));
        }
        let (pending, over) = oneshot::channel();
        self.pending.push((caller.clone(), pending));
        Ok(over)
    }

    /// Whether a question of this connection is pending.
    #[must_use]
    pub fn is_asking(&self, caller: &Caller) -> bool {
        self.pending.iter().any(|(other, _)| other.name == caller.name)
    }

    /// Forgets the pending question of a connection.
    pub fn end_question(&mut self, name: &UniqueName<'_>) {
        self.pending.retain(|(other, _)| other.name != *name);
    }

    /// Whether this user may have one more lease.
    ///
    /// # Errors
    /// `LimitsExceeded`.
    pub fn check_quota(&self, uid: Uid, site: &Config) -> Result<(), Error> {
        let own = self.open.values().filter(|lease| lease.owner.uid == uid).count();
        if own >= site.leases_per_user {
            return Err(Error::LimitsExceeded(format!(
                "you already have {own} leases, as many as this host allows: close one (`portcullis \
                 status` shows them)"
            )));
        }
        if self.open.len() >= site.leases {
            return Err(Error::LimitsExceeded(format!(
                "{} leases are open on this host, and it allows no more",
                site.leases
            )));
        }
        Ok(())
    }

    /// The mark with the next slot, in turn, that neither an open lease nor a living socket has.
    ///
    /// # Errors
    /// `LimitsExceeded`.
    pub fn next_mark(&mut self, marks: Marks, living: &[Found]) -> Result<LeaseMark, Error> {
        let last = self.last_slot;
        let slots = (0..=u8::MAX).map(|step| last.wrapping_add(step).wrapping_add(1));
        let mut marks = slots.filter_map(NonZeroU8::new).map(|slot| marks.lease(slot));
        let free = marks.find(|mark| {
            living.iter().all(|socket| socket.mark != mark.value())
                && self.open.values().all(|lease| lease.opening.mark != *mark)
        });
        let free = free.ok_or_else(|| {
            Error::LimitsExceeded(
                "every slot is taken by a lease, or by a process that still holds the sockets of \
                 an ended one"
                    .to_owned(),
            )
        })?;
        self.last_slot = free.slot.get();
        Ok(free)
    }

    /// Records a lease and gives it an id.
    pub fn insert(&mut self, lease: Lease) -> (u64, &Lease) {
        self.last_id = self.last_id.saturating_add(1);
        (self.last_id, self.open.entry(self.last_id).or_insert(lease))
    }

    /// Takes a lease out; remembers whose it was ([`limits::ENDED_LEASES`]).
    pub fn remove(&mut self, id: u64) -> Option<Lease> {
        let lease = self.open.remove(&id)?;
        if self.ended.len() >= limits::ENDED_LEASES {
            self.ended.pop_front();
        }
        self.ended.push_back((id, lease.owner.uid));
        Some(lease)
    }

    /// Whether a lease is, or was, this user's, whichever connection it belongs to.
    #[must_use]
    pub fn is_of(&self, id: u64, uid: Uid) -> bool {
        match self.open.get(&id) {
            Some(lease) => lease.owner.uid == uid,
            None => self.ended.contains(&(id, uid)),
        }
    }

    /// The connection's own lease of this id.
    ///
    /// # Errors
    /// `NoSuchLease` when it is not open or not this connection's, all in the same words.
    pub fn own(&mut self, id: u64, name: &UniqueName<'_>) -> Result<&mut Lease, Error> {
        self.open.get_mut(&id).filter(|lease| lease.owner.name == *name).ok_or_else(|| {
            Error::NoSuchLease(
                "this connection has no such lease: only the program that opened a lease can \
                     extend it"
                    .to_owned(),
            )
        })
    }

    /// Whether there is neither a lease nor a question.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.open.is_empty() && self.pending.is_empty()
    }
}

/// The answer to an id that is not the user's: foreign and unknown look the same.
#[must_use]
pub fn no_such_lease() -> Error {
    Error::NoSuchLease("you have no such lease: `portcullis status` shows yours".to_owned())
}
