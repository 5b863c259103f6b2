//! Fetches a file for a copy that grows (`grow`).
//!
//! Guarantees: the file is fetched as fast as its server sends, whoever reads, and to its end, also if nobody
//! reads any more. A connection that breaks off is taken up where it ended, if the file's length is known and its server says
//! by a strong entity tag that the rest belongs to the beginning (RFC 9110 section
//! 14.2); else, and if less comes than was announced, everybody who reads is told. Nothing is kept that is not whole.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Uri,
    header::{ACCEPT_ENCODING, CONTENT_RANGE, IF_RANGE, RANGE},
};
use hyper::body::Incoming;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    grow::{PATIENCE, QUEUED, Writer, Written, give_back},
    held::{Copied, Held, Progress},
    parts::List,
    record::{Record, Terms},
    store::{NoRoom, Partial, Store},
};
use crate::{
    event::Fact,
    fetch::{self, ANSWER, Fetcher},
};

/// For a server to send anything more.
pub const STALL: Duration = Duration::from_secs(60);
/// How often, one after the other, a connection is taken up again that brought nothing.
const ATTEMPTS: u32 = 5;
/// Before it is.
const PAUSE: Duration = Duration::from_secs(1);
/// Stack of a thread that writes, or looks at what was written: it calls nothing deep.
pub const STACK: usize = 256 * 1024;

/// Tells a person, in the name of the machine for which a file is fetched.
pub type Tell = Arc<dyn Fn(Fact) + Send + Sync>;

/// A file that is to be fetched.
pub struct Fetch {
    /// Where it lies.
    pub address: Uri,
    /// Asks for it.
    pub fetcher: Fetcher,
    /// What its server says of it.
    pub terms: Terms,
    /// Octets, if that is announced.
    pub length: Option<u64>,
    /// Strong entity tag for machines.
    pub tag: String,
    /// Is told how it ends.
    pub tell: Tell,
}

impl Fetch {
    /// Writes what `body` brings into `partial`. The copy can be read at once, and one machine does.
    #[must_use]
    pub fn start(self, body: Incoming, store: Arc<Store>, partial: Partial) -> Arc<Held> {
        let (sender, progress) = watch::channel(Progress::default());
        let copy = Arc::new(Copied {
            file: Arc::clone(&partial.file),
            announced: self.length,
            tag: self.tag.clone(),
            terms: self.terms.clone(),
            progress,
            places: watch::Sender::default(),
            look: None,
            _claim: partial.claim.clone(),
        });
        let held = copy.read();
        tokio::spawn(async move {
            let (begun, partial_of) = (Instant::now(), Arc::clone(&copy));
            let writer = self.writer(copy, store, partial, sender);
            let (written, end) = self.bring(body, writer).await;
            let Some(written) = written else { return };
            let spilled = partial_of.has_spilled();
            let end = match end {
                Ok(()) => self.finish(written.partial, written.length, written.list, begun).await,
                Err(problem) => Err(problem),
            };
            written.progress.send_modify(|progress| progress.end = Some(end));
            if spilled {
                // What fails here is given back when the program ends.
                let _ = give_back(&partial_of).await;
            }
        });
        held
    }

    /// The thread that writes.
    fn writer(
        &self,
        copy: Arc<Copied>,
        store: Arc<Store>,
        partial: Partial,
        progress: watch::Sender<Progress>,
    ) -> Writer {
        let (tell, file, folder) =
            (Arc::clone(&self.tell), self.address.to_string(), store.name().to_owned());
        let full = Box::new(move |why: &NoRoom| {
            let problem = format!(
                "{}: the machines that load it now get the rest past the disk, as fast as the slowest of them \
                 takes it, and each later one has a download of its own ({})",
                why.sentence(),
                why.advice(&folder)
            );
            tell(Fact::Upstream { file: file.clone(), problem });
        });
        Writer { copy, partial, store, progress, full, patience: PATIENCE }
    }

    /// All octets, into the file. What was written is there unless the writer is lost.
    async fn bring(&self, body: Incoming, writer: Writer) -> (Option<Written>, Result<(), String>) {
        let (pieces, queue) = mpsc::channel(QUEUED);
        let (done, written) = oneshot::channel();
        let thread = thread::Builder::new().name("copy".to_owned()).stack_size(STACK);
        let work = move || {
            // Whoever waits for it may be gone with the runtime.
            let _ = done.send(writer.run(queue));
        };
        if let Err(error) = thread.spawn(work) {
            return (None, Err(error.to_string()));
        }
        let brought = self.take(body, pieces).await;
        match written.await {
            Ok((written, Ok(()))) => (Some(written), brought),
            Ok((written, problem)) => (Some(written), problem),
            Err(lost) => (None, Err(lost.to_string())),
        }
    }

    /// Takes all octets from the server.
    async fn take(&self, mut body: Incoming, pieces: mpsc::Sender<Bytes>) -> Result<(), String> {
        let (mut at, mut attempts) = (0, 0);
        while self.length != Some(at) {
            let problem = match timeout(STALL, fetch::next(&mut body)).await {
                Ok(Some(Ok(octets))) => {
                    let end = at + u64::try_from(octets.len()).unwrap_or(u64::MAX);
                    if self.length.is_some_and(|length| end > length) {
                        return Err("the file's own server sends more than it announced".to_owned());
                    }
                    // The writer says itself why it takes no more.
                    pieces.send(octets).await.map_err(|_| String::new())?;
                    (at, attempts) = (end, 0);
                    continue;
                }
                Ok(Some(Err(error))) => format!("the file's own server broke off: {error}"),
                Ok(None) if self.length.is_none() => return Ok(()),
                Ok(None) => {
                    "the file's own server broke off: less came than it announced".to_owned()
                }
                Err(_late) => "the file's own server stopped sending".to_owned(),
            };
            body = loop {
                let known = self.length.zip(self.terms.strong());
                let Some((length, tag)) = known.filter(|_| attempts < ATTEMPTS) else {
                    return Err(problem);
                };
                attempts += 1;
                sleep(PAUSE).await;
                if let Some(body) = self.rest(at, length, tag).await? {
                    break body;
                }
            };
        }
        Ok(())
    }

    /// What is behind the first `at` octets. None, if it could not be asked for now.
    async fn rest(&self, at: u64, length: u64, tag: &str) -> Result<Option<Incoming>, String> {
        let mut headers = identity();
        headers.extend(HeaderValue::from_str(&format!("bytes={at}-")).ok().map(|it| (RANGE, it)));
        headers.extend(HeaderValue::from_str(tag).ok().map(|it| (IF_RANGE, it)));
        let Ok(got) = self.fetcher.ask(Method::GET, &self.address, &headers, ANSWER).await else {
            return Ok(None);
        };
        match got.status() {
            StatusCode::PARTIAL_CONTENT if self.continues(&got, at, length) => {
                Ok(Some(got.into_body()))
            }
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
    fn continues(&self, got: &Response<Incoming>, at: u64, length: u64) -> bool {
        let range = got.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let expected = format!("bytes {at}-{}/{length}", length - 1);
        // An answer to If-Range may leave out the entity tag (RFC 9110 section 15.3.7).
        let terms = Terms::of(got.headers());
        range.map(str::trim) == Some(&expected)
            && (terms.etag.is_none() || terms.etag == self.terms.etag)
    }

    /// Keeps it, if it may be kept. That this fails takes nothing from those who read it.
    async fn finish(
        &self,
        mut partial: Partial,
        length: u64,
        list: Option<List>,
        begun: Instant,
    ) -> Result<Option<SystemTime>, String> {
        let url = self.address.to_string();
        let kept = list.map(|list| {
            let record = Record {
                url: url.clone(),
                length,
                etag: self.terms.etag.clone(),
                last_modified: self.terms.last_modified.clone(),
                tag: self.tag.clone(),
                parts_sha256: list.sha256(),
            };
            (record, list)
        });
        let finished = spawn_blocking(move || {
            let kept = kept.is_some_and(|(record, list)| partial.keep(&record, &list).is_ok());
            (kept, partial.file.metadata().and_then(|facts| facts.modified()).ok())
        });
        let (kept, modified) = finished.await.map_err(|error| error.to_string())?;
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        (self.tell)(Fact::Fetched { file: url, octets: length, milliseconds, kept });
        Ok(modified)
    }
}

/// What every question here has: octets as they are, since they are counted.
pub fn identity() -> HeaderMap {
    [(ACCEPT_ENCODING, HeaderValue::from_static("identity"))].into_iter().collect()
}
