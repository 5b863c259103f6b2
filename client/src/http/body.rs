//! The octets of a response, read from the files while they are sent.
//!
//! Guarantees: exactly the octets announced, or the connection is broken off (a file that became
//! shorter is never filled up); at most one chunk is read ahead, so memory does not grow with the
//! file; the runtime's threads never wait for the disk.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;

use crate::{download::Download, read::Content};

/// Octets of one read. One chunk is being sent while the next is read, for each machine: a lab of 64
/// has to stay below 24 MiB.
const CHUNK: u64 = 64 * 1024;

/// A part of what is served.
pub(super) struct BlobBody {
    content: Content,
    /// Not yet handed over.
    rest: Range<u64>,
    read: Option<JoinHandle<io::Result<Vec<u8>>>>,
    download: Option<Download>,
}

impl BlobBody {
    /// The octets `part` of `content`, told to `download` as they go.
    pub fn new(content: Content, part: Range<u64>, download: Option<Download>) -> Self {
        let mut body = Self { content, rest: part, read: None, download };
        // Tells that it began; an empty file is done with that.
        body.handed_over(0);
        body
    }

    /// Begins to read the next chunk, if there is one.
    fn read_ahead(&mut self) {
        let count = CHUNK.min(self.rest.end - self.rest.start);
        if count == 0 {
            return;
        }
        let content = self.content.clone();
        let offset = self.rest.start;
        // A chunk always fits in memory.
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.read =
            Some(tokio::task::spawn_blocking(move || content.read_at(offset, count, Vec::new())));
    }

    fn handed_over(&mut self, octets: usize) {
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
}

impl Body for BlobBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.read.is_none() {
            self.read_ahead();
        }
        let Some(read) = &mut self.read else {
            return Poll::Ready(None);
        };
        let result = ready!(Pin::new(read).poll(context)).unwrap_or_else(|lost| Err(lost.into()));
        self.read = None;
        Poll::Ready(Some(match result {
            Ok(octets) => {
                self.handed_over(octets.len());
                self.read_ahead();
                Ok(Frame::data(octets.into()))
            }
            Err(error) => {
                self.rest.start = self.rest.end;
                if let Some(download) = self.download.take() {
                    download.ended(error.to_string());
                }
                Err(error)
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.end - self.rest.start)
    }
}
