//! A copy of another server's file, while it grows and when it is whole: one writes, many read.
//!
//! Guarantees: the file is fetched as fast as its server sends, whoever reads, and to its end, also if nobody reads any more; whoever reads has what is there,
//! and waits for what is not; memory is one piece of what the server sends. A connection that breaks off is taken up
//! where it ended, if the server says by a strong entity tag that the rest belongs to the beginning (RFC 9110 section
//! 14.2); else, and if less comes than was announced, everybody who reads is told. Nothing is kept that is not whole.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Uri,
    header::{ACCEPT_ENCODING, CONTENT_RANGE, IF_RANGE, RANGE},
};
use hyper::body::Incoming;
use ring::digest::{Context, SHA256};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    record::{Record, Terms, hex},
    store::{Claim, Partial},
};
use crate::{
    event::Fact,
    fetch::{self, ANSWER, Facts, Fetcher},
    read::{Content, Piece},
};

/// For a server to send anything more.
pub const STALL: Duration = Duration::from_secs(60);
/// How often, one after the other, a connection is taken up again that brought nothing.
const ATTEMPTS: u32 = 5;
/// Before it is.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells a person, in the name of the machine for which a file is fetched.
pub type Tell = Box<dyn Fn(Fact) + Send + Sync>;

/// How far a copy is.
#[derive(Clone, Debug)]
struct Progress {
    /// Octets, from the first one on.
    there: u64,
    /// When it was last written to, once it is whole; or why it never will be.
    end: Option<Result<Option<SystemTime>, String>>,
}

/// A copy that can be read.
#[derive(Debug)]
pub struct Held {
    file: Arc<File>,
    /// Octets that it has, or will have.
    pub length: u64,
    /// Strong entity tag for machines.
    pub tag: String,
    /// What its server said.
    pub terms: Terms,
    progress: watch::Receiver<Progress>,
    _claim: Option<Claim>,
}

impl Held {
    /// A whole copy, whose octets were looked at.
    #[must_use]
    pub fn whole(file: File, record: &Record) -> Self {
        let modified = file.metadata().and_then(|facts| facts.modified()).ok();
        let progress = Progress { there: record.length, end: Some(Ok(modified)) };
        Self {
            file: Arc::new(file),
            length: record.length,
            tag: record.tag.clone(),
            terms: record.terms(),
            progress: watch::channel(progress).1,
            _claim: None,
        }
    }

    /// Nothing more will come of it.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.progress.borrow().end, Some(Err(_)))
    }

    /// It does not grow any more.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.progress.borrow().end, Some(Ok(_)))
    }

    /// Octets that are there.
    #[must_use]
    pub fn there(&self) -> u64 {
        self.progress.borrow().there
    }

    /// What its server said of it, as far as that was noted at the start.
    #[must_use]
    pub fn facts(&self) -> Facts {
        Facts { length: Some(self.length), etag: self.terms.etag.clone() }
    }

    /// All that is there, once the octet at `at` is.
    ///
    /// # Errors
    /// It will never be.
    pub async fn beyond(&self, at: u64) -> io::Result<Content> {
        let mut progress = self.progress.clone();
        let reached = |now: &Progress| now.there > at || now.end.is_some();
        let waited = progress.wait_for(reached).await;
        let now = waited.map_err(|_| io::Error::other("fetching it was given up"))?.clone();
        match now.end {
            Some(Err(problem)) if now.there <= at => Err(io::Error::other(problem)),
            end => {
                let (file, length) = (Arc::clone(&self.file), now.there);
                // While it grows, that it was written to says nothing.
                let modified = end.and_then(Result::ok).flatten();
                Ok(Content::new(vec![Piece::File { file, start: 0, length, modified }]))
            }
        }
    }
}

/// A file that is to be fetched.
pub struct Fetch {
    /// Where it lies.
    pub address: Uri,
    /// Asks for it.
    pub fetcher: Fetcher,
    /// What its server says of it.
    pub terms: Terms,
    /// Octets.
    pub length: u64,
    /// Strong entity tag for machines.
    pub tag: String,
    /// Is told how it ends.
    pub tell: Tell,
}

impl Fetch {
    /// Writes what `body` brings into `partial`, by a task of its own. The copy can be read at once.
    #[must_use]
    pub fn start(self, body: Incoming, mut partial: Partial) -> Arc<Held> {
        let (sender, progress) = watch::channel(Progress { there: 0, end: None });
        let held = Arc::new(Held {
            file: Arc::clone(&partial.file),
            length: self.length,
            tag: self.tag.clone(),
            terms: self.terms.clone(),
            progress,
            _claim: partial.claim.take(),
        });
        tokio::spawn(async move {
            let begun = Instant::now();
            let end = match self.bring(body, &partial, &sender).await {
                Ok(sha256) => self.finish(partial, sha256, begun).await,
                Err(problem) => Err(problem),
            };
            sender.send_modify(|progress| progress.end = Some(end));
        });
        held
    }

    /// All octets, and their hash if it is needed.
    async fn bring(
        &self,
        mut body: Incoming,
        partial: &Partial,
        sender: &watch::Sender<Progress>,
    ) -> Result<Option<String>, String> {
        let mut hash = partial.is_named().then(|| Context::new(&SHA256));
        let (mut at, mut attempts) = (0, 0);
        while at < self.length {
            let problem = match timeout(STALL, fetch::next(&mut body)).await {
                Ok(Some(Ok(octets))) => {
                    let end = at.saturating_add(u64::try_from(octets.len()).unwrap_or(u64::MAX));
                    if end > self.length {
                        return Err("the file's own server sends more than it announced".to_owned());
                    }
                    hash = write(Arc::clone(&partial.file), at, octets, hash).await?;
                    (at, attempts) = (end, 0);
                    sender.send_modify(|progress| progress.there = at);
                    continue;
                }
                Ok(Some(Err(error))) => format!("the file's own server broke off: {error}"),
                Ok(None) => {
                    "the file's own server broke off: less came than it announced".to_owned()
                }
                Err(_late) => "the file's own server stopped sending".to_owned(),
            };
            body = loop {
                let Some(tag) = self.terms.strong().filter(|_| attempts < ATTEMPTS) else {
                    return Err(problem);
                };
                attempts += 1;
                sleep(PAUSE).await;
                if let Some(body) = self.rest(at, tag).await? {
                    break body;
                }
            };
        }
        Ok(hash.map(|hash| hex(hash.finish().as_ref())))
    }

    /// What is behind the first `at` octets. None, if it could not be asked for now.
    async fn rest(&self, at: u64, tag: &str) -> Result<Option<Incoming>, String> {
        let mut headers = identity();
        headers.extend(HeaderValue::from_str(&format!("bytes={at}-")).ok().map(|it| (RANGE, it)));
        headers.extend(HeaderValue::from_str(tag).ok().map(|it| (IF_RANGE, it)));
        let Ok(got) = self.fetcher.ask(Method::GET, &self.address, &headers, ANSWER).await else {
            return Ok(None);
        };
        match got.status() {
            StatusCode::PARTIAL_CONTENT if self.continues(&got, at) => Ok(Some(got.into_body())),
            status if status.is_server_error() => Ok(None),
            StatusCode::OK if Terms::of(got.headers()).strong() == Some(tag) => {
                Err("the file's own server broke off, and does not send the rest alone".to_owned())
            }
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                Err("it has changed on its server while it was being fetched".to_owned())
            }
            status => {
                Err(format!("the file's own server broke off, and answers {status} for the rest"))
            }
        }
    }

    /// Whether this is the rest of the same file.
    fn continues(&self, got: &Response<Incoming>, at: u64) -> bool {
        let range = got.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let expected = format!("bytes {at}-{}/{}", self.length - 1, self.length);
        // An answer to If-Range may leave out the entity tag (RFC 9110 section 15.3.7).
        let terms = Terms::of(got.headers());
        range.map(str::trim) == Some(&expected)
            && (terms.etag.is_none() || terms.etag == self.terms.etag)
    }

    /// Keeps it, if it may be kept. That this fails takes nothing from those who read it.
    async fn finish(
        &self,
        mut partial: Partial,
        sha256: Option<String>,
        begun: Instant,
    ) -> Result<Option<SystemTime>, String> {
        let url = self.address.to_string();
        let record = sha256.map(|sha256| Record {
            url: url.clone(),
            length: self.length,
            etag: self.terms.etag.clone(),
            last_modified: self.terms.last_modified.clone(),
            tag: self.tag.clone(),
            sha256,
        });
        let finished = spawn_blocking(move || {
            let kept = record.is_some_and(|record| partial.keep(&record).is_ok());
            (kept, partial.file.metadata().and_then(|facts| facts.modified()).ok())
        });
        let (kept, modified) = finished.await.map_err(|error| error.to_string())?;
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        (self.tell)(Fact::Fetched { file: url, octets: self.length, milliseconds, kept });
        Ok(modified)
    }
}

/// What every question here has: octets as they are, since they are counted.
pub fn identity() -> HeaderMap {
    [(ACCEPT_ENCODING, HeaderValue::from_static("identity"))].into_iter().collect()
}

/// Writes a piece to its place, and adds it to the hash.
async fn write(
    file: Arc<File>,
    at: u64,
    octets: Bytes,
    mut hash: Option<Context>,
) -> Result<Option<Context>, String> {
    let written = spawn_blocking(move || {
        file.write_all_at(&octets, at)?;
        if let Some(hash) = &mut hash {
            hash.update(&octets);
        }
        Ok::<_, io::Error>(hash)
    });
    let written = written.await.map_err(|error| error.to_string())?;
    written.map_err(|error| format!("its copy in the cache cannot be written: {error}"))
}
