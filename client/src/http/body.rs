//! The content of an answer, before it is sent.
//!
//! Guarantees: a [`Part`] is told to its download as it goes, and to its end; of what still grows, it
//! gives what is there.

use std::{io, ops::Range};

use bytes::Bytes;

use super::remote::RemoteBody;
use crate::{
    download::Download,
    read::{Content, Piece},
    source::cache::Shared,
};

/// Octets that are enough not to ask how much more is there.
const ENOUGH: u64 = 1 << 20;

/// What is sent behind a head.
pub(super) enum Body {
    Nothing,
    Text(Bytes),
    Part(Part),
    Remote(Box<RemoteBody>),
}

impl Body {
    /// Octets, if that is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Nothing => Some(0),
            Self::Text(text) => Some(u64::try_from(text.len()).unwrap_or(u64::MAX)),
            Self::Part(part) => Some(part.rest.end - part.rest.start),
            Self::Remote(remote) => remote.length(),
        }
    }
}

/// A part of what is served.
pub(super) struct Part {
    pub content: Content,
    /// Not yet handed over.
    pub rest: Range<u64>,
    /// What `content` is the present state of, if that changes.
    shared: Option<Box<Shared>>,
    download: Option<Download>,
}

impl Part {
    /// The octets `part` of `content`, told to `download` as they go.
    pub fn new(content: Content, part: Range<u64>, download: Option<Download>) -> Self {
        let mut new = Self { content, rest: part, shared: None, download };
        // Tells that it began; an empty file is done with that.
        new.handed_over(0);
        new
    }

    /// The octets `part` of a copy that may still grow, or be looked at.
    pub fn of(shared: Box<Shared>, part: Range<u64>, download: Option<Download>) -> Self {
        Self { shared: Some(shared), ..Self::new(Content::new(Vec::new()), part, download) }
    }

    /// What comes next, up to the end of a piece; nothing, if that was all.
    ///
    /// # Errors
    /// It was to come from another server, and will not.
    pub async fn next(&mut self) -> io::Result<Option<Piece>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        if let Some(shared) = &mut self.shared
            && self.content.length() < self.rest.end
            && self.content.length() < self.rest.start.saturating_add(ENOUGH)
        {
            match shared.beyond(self.rest.start).await {
                Ok(content) => self.content = content,
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(self.content.behind(self.rest.start))
    }

    /// So many octets of it have gone.
    pub fn handed_over(&mut self, octets: usize) {
        self.rest.start += u64::try_from(octets).unwrap_or(u64::MAX);
        if let Some(download) = &mut self.download {
            download.progress(self.rest.start);
        }
        if self.rest.is_empty()
            && let Some(download) = self.download.take()
        {
            download.done();
        }
    }

    /// The rest cannot be had. What goes wrong with the connection is not told here, since the
    /// download says so itself.
    pub fn failed(&mut self, error: io::Error) -> io::Error {
        if let Some(download) = self.download.take() {
            download.ended(error.to_string());
        }
        error
    }
}
