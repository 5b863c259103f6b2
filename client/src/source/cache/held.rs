//! A copy of another server's file, as machines read it, while it grows and when it is whole.
//!
//! Guarantees: whoever reads has what is there, and waits for what is not; what is not there in the right order is
//! an error, never other octets; what an earlier run has kept is given out part by part, as it is looked at (`look`). Where each machine is, is known to whoever writes (`grow`).

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    bring::Tell,
    look::Look,
    parts::List,
    record::{Record, Terms},
    store::Claim,
};
use crate::{
    fetch::Facts,
    read::{Content, Piece},
};

/// Octets of a copy that grows of which a machine is told at once, so that it is known where it is.
const SPAN: u64 = 4 << 20;

/// How far a copy is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// Octets, from the first one on.
    pub there: u64,
    /// Those that the file does not have.
    pub spill: Option<Spill>,
    /// When it was last written to, once it is whole; or why it never will be.
    pub end: Option<Result<Option<SystemTime>, String>>,
}

/// The latest octets, in memory alone, since the disk took no more.
#[derive(Clone, Debug)]
pub(super) struct Spill {
    /// Octets of the file.
    pub file: u64,
    /// The place of the first piece. What lies between is gone.
    pub first: u64,
    pub pieces: VecDeque<Bytes>,
}

impl Progress {
    /// What there is, for one who has all up to `at`.
    fn content(&self, file: &Arc<File>, at: u64) -> io::Result<Content> {
        let begins = |length, modified| {
            let file = Arc::clone(file);
            Piece::File { file, start: 0, length, modified }
        };
        match (&self.spill, &self.end) {
            (Some(spill), _) if at >= spill.file => {
                if at < spill.first {
                    return Err(io::Error::other(
                        "it took too little for too long, and the cache's disk takes no more",
                    ));
                }
                // Of what is gone nothing can be read here: the file is not so long.
                let memory = spill.pieces.iter().cloned().map(Piece::Memory);
                Ok(Content::new([begins(spill.first, None)].into_iter().chain(memory).collect()))
            }
            (Some(spill), _) => Ok(Content::new(vec![begins(spill.file, None)])),
            // While it grows, that it was written to says nothing.
            (None, None | Some(Err(_))) => {
                let length = self.there.min(at.saturating_add(SPAN));
                Ok(Content::new(vec![begins(length, None)]))
            }
            (None, Some(Ok(modified))) => Ok(Content::new(vec![begins(self.there, *modified)])),
        }
    }
}

/// Where the machines are that read a copy: the first octet that each has not taken.
#[derive(Debug, Default)]
pub(super) struct Places {
    next: u64,
    at: BTreeMap<u64, u64>,
}

impl Places {
    /// The hindmost.
    pub fn slowest(&self) -> Option<u64> {
        self.at.values().min().copied()
    }

    /// Nobody waits any more for those who are at `slowest`.
    pub fn leave_behind(&mut self, slowest: u64) {
        self.at.retain(|_, at| *at > slowest);
    }
}

/// A copy, for all machines.
#[derive(Debug)]
pub struct Copied {
    pub(super) file: Arc<File>,
    /// Octets, as its server has announced them.
    pub(super) announced: Option<u64>,
    /// Strong entity tag for machines.
    pub tag: String,
    /// What its server said.
    pub terms: Terms,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) places: watch::Sender<Places>,
    /// Of a copy that an earlier run has kept.
    pub(super) look: Option<Look>,
    pub(super) _claim: Option<Arc<Claim>>,
}

impl Copied {
    /// A copy that an earlier run has kept, whose octets nobody has looked at.
    #[must_use]
    pub fn kept(file: File, record: &Record, list: List) -> Self {
        let modified = file.metadata().and_then(|facts| facts.modified()).ok();
        let progress = Progress { there: record.length, spill: None, end: Some(Ok(modified)) };
        Self {
            file: Arc::new(file),
            announced: Some(record.length),
            tag: record.tag.clone(),
            terms: record.terms(),
            progress: watch::channel(progress).1,
            places: watch::Sender::default(),
            look: Some(Look::new(&record.url, record.length, list)),
            _claim: None,
        }
    }

    /// Nothing more will come of it.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        // Whoever writes it may be gone without a word.
        let is_lost = self.progress.has_changed().is_err();
        match self.progress.borrow().end {
            None => is_lost,
            Some(Ok(_)) => self.is_damaged(),
            Some(Err(_)) => true,
        }
    }

    /// A machine wants it: what is found in it is said in its name.
    pub(super) fn lend(&self, tell: &Tell) {
        if let Some(look) = &self.look {
            look.lend(tell);
        }
    }

    /// It is not what it was when it was kept.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.look.as_ref().is_some_and(|look| look.parts.is_damaged())
    }

    /// The disk did not take all of it: only those who read it already get the rest.
    #[must_use]
    pub fn has_spilled(&self) -> bool {
        self.progress.borrow().spill.is_some()
    }

    /// All of it is there, for everybody.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let progress = self.progress.borrow();
        matches!(progress.end, Some(Ok(_))) && progress.spill.is_none() && !self.is_damaged()
    }

    /// Octets that are there.
    #[must_use]
    pub fn there(&self) -> u64 {
        self.progress.borrow().there
    }

    /// Octets that it has, or will have, if that is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.announced.or_else(|| self.is_whole().then(|| self.there()))
    }

    /// What its server said of it, as far as that was noted at the start.
    #[must_use]
    pub fn facts(&self) -> Facts {
        Facts { length: self.length(), etag: self.terms.etag.clone() }
    }

    /// One more machine reads it.
    #[must_use]
    pub fn read(self: &Arc<Self>) -> Arc<Held> {
        let mut id = 0;
        self.places.send_modify(|places| {
            id = places.next;
            places.next += 1;
            places.at.insert(id, 0);
        });
        Arc::new(Held { copy: Arc::clone(self), id })
    }
}

/// A copy, for one machine. It is waited for as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// What it reads.
    pub copy: Arc<Copied>,
    id: u64,
}

impl Held {
    /// What is there, once the octet at `at` is, which is the first that this machine has not taken.
    ///
    /// # Errors
    /// It will never be.
    pub async fn beyond(&self, at: u64) -> io::Result<Content> {
        self.copy.places.send_if_modified(|places| {
            let place = places.at.get_mut(&self.id).filter(|place| **place != at);
            place.map(|place| *place = at).is_some()
        });
        if let Some(look) = &self.copy.look {
            let end = look.parts.readable(at).await?;
            if end < self.copy.there() {
                let file = Arc::clone(&self.copy.file);
                // Whether it was written to is asked at its end.
                let sound = Piece::File { file, start: 0, length: end, modified: None };
                return Ok(Content::new(vec![sound]));
            }
        }
        let mut progress = self.copy.progress.clone();
        let reached = |now: &Progress| now.there > at || now.end.is_some();
        let waited = progress.wait_for(reached).await;
        let now = waited.map_err(|_| io::Error::other("fetching it was given up"))?;
        match &now.end {
            Some(Err(problem)) if now.there <= at => Err(io::Error::other(problem.clone())),
            _ => now.content(&self.copy.file, at),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.copy.places.send_if_modified(|places| places.at.remove(&self.id).is_some());
    }
}
