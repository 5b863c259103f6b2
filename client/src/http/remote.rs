//! A file on a web server, passed on while it is fetched.
//!
//! Guarantees: what can be shared comes from one copy ([`crate::source::cache`]), which is followed while
//! it grows, with its length as soon as that is known. Of what cannot, no more is read than the machine takes; conditions and ranges
//! are then the other server's to judge, and its answer is passed on with its length. A file that is not
//! the one that was chosen at the start is not passed on; a server that falls silent ends the
//! download, and exactly the announced octets are sent or the connection is broken off.

use std::{io, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::{task::spawn_blocking, time::timeout};

use super::{
    Server,
    answer::{Content, plain, put, respond},
    body::Body,
    conditional::beginning,
    request::Request,
};
use crate::{
    download::Download,
    event::{Fact, Protocol, Role},
    fetch::{self, ANSWER, Facts},
    image::Remote,
    mac::MacAddr,
    read::Piece,
    source::cache::{AHEAD, Held, NO_LENGTH, Opened, Problem, STALL, Shared, Tell},
};

/// Octets of a copy without a length that go at a time.
const READ: usize = 256 * 1024;

/// What a machine asks that the other server has to judge (RFC 9110 sections 13.1 and 14.2).
const ASKED: [header::HeaderName; 6] = [
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// What the other server says that the machine has to know.
const ANSWERED: [header::HeaderName; 5] = [
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::ACCEPT_RANGES,
];

/// Answers HEAD and GET: from the copy that all machines share, or with what the other server answers.
pub(super) async fn pass_on(
    server: &Server,
    request: &Request,
    mac: MacAddr,
    role: Role,
    remote: &Remote,
) -> Response<Body> {
    let upstream = |problem: String| {
        server.witness.fact(mac, Fact::Upstream { file: remote.address.to_string(), problem });
    };
    let failed = |problem: String| {
        let text = format!("{}: {problem}\n", remote.name);
        upstream(problem);
        plain(StatusCode::BAD_GATEWAY, &text)
    };
    let mut headers = HeaderMap::new();
    for name in ASKED {
        if let Some(value) = request.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let method = request.method.clone();
    let witness = Arc::clone(&server.witness);
    let tell: Tell = Arc::new(move |fact| witness.fact(mac, fact));
    let whole = match copy(request, remote, &tell).await {
        Ok(Opened::Shared(held)) => match held.copy.length() {
            Some(length) => {
                let shared = Box::new(Shared { held, remote: remote.clone(), tell });
                let content = Content::Shared(shared, length);
                return respond(server, request, mac, role, &content);
            }
            None if method == Method::GET && headers.is_empty() => {
                let name = remote.name.as_bytes();
                let witness = Arc::clone(&server.witness);
                let download = Download::new(witness, mac, Protocol::Http, role, name, 0);
                let body = RemoteBody::new(Octets::Copy(held), None, 0, Some(download));
                let mut response = Response::new(Body::Remote(Box::new(body)));
                put(&mut response, header::CONTENT_TYPE, "application/octet-stream");
                return response;
            }
            // What depends on a length that nobody knows yet is the other server's to say.
            None => None,
        },
        Ok(Opened::Direct(whole)) => whole,
        Err(error) => return failed(error.to_string()),
    };
    let got = match whole {
        Some(got) if headers.is_empty() => Ok(*got),
        _ => {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let fetcher = remote.cache.fetcher();
            fetcher.ask(method.clone(), &remote.address, &headers, ANSWER).await
        }
    };
    let got = match got {
        Ok(got) => got,
        Err(error) => return failed(error.to_string()),
    };
    let status = got.status();
    if !matches!(status.as_u16(), 200 | 206 | 304 | 412 | 416) {
        return failed(Problem::Status(status).to_string());
    }
    let mut facts = Facts::of(&got);
    let sends_file = matches!(status.as_u16(), 200 | 206);
    if sends_file && !facts.agrees(&remote.facts) {
        return failed(Problem::Changed.to_string());
    }
    if method == Method::GET && sends_file && facts.length.is_none() {
        upstream(NO_LENGTH.to_owned());
    }
    let mut response = Response::new(Body::Nothing);
    *response.status_mut() = status;
    put(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    for name in ANSWERED {
        if let Some(value) = got.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    if method == Method::GET && sends_file {
        let (start, end) = range(&got);
        // What stops short of the end is a look at the file, not a download of it.
        let whole = end.is_none_or(|end| facts.length.is_none_or(|length| end == length));
        let size = facts.length.take().unwrap_or_default();
        let download = whole.then(|| {
            let name = remote.name.as_bytes();
            Download::new(Arc::clone(&server.witness), mac, Protocol::Http, role, name, size)
        });
        let body =
            RemoteBody::new(Octets::Server(got.into_body()), announced(&response), start, download);
        *response.body_mut() = Body::Remote(Box::new(body));
    }
    response
}

/// The copy that answers this request. What only looks at a part of a file, or begins far behind what is
/// there of it, is answered from a copy that has that part, and else by the file's own server: nobody waits for all
/// of a file to see its end, and nothing is fetched whole for a look at it.
async fn copy(request: &Request, remote: &Remote, tell: &Tell) -> Result<Opened, Problem> {
    let is_get = request.method == Method::GET;
    let asked = beginning(&request.headers).filter(|_| is_get);
    if asked.is_some_and(|(start, to_the_end)| start <= AHEAD && to_the_end) {
        return remote.cache.open(remote, Arc::clone(tell)).await;
    }
    let held = remote.cache.peek(remote).await.filter(|held| {
        let is_near = |(start, _)| start <= held.copy.there().saturating_add(AHEAD);
        !is_get || held.copy.is_whole() || asked.is_some_and(is_near)
    });
    Ok(held.map_or(Opened::Direct(None), Opened::Shared))
}

/// The next octets of a copy, behind those that the machine has.
async fn next_of_copy(held: &Held, at: u64) -> io::Result<Option<Bytes>> {
    let content = held.beyond(at).await?;
    match content.behind(at) {
        None => Ok(None),
        Some(Piece::Memory(octets)) => Ok(Some(octets)),
        Some(Piece::File { length, .. }) => {
            let count = usize::try_from(length).unwrap_or(READ).min(READ);
            let read = spawn_blocking(move || content.read_at(at, count, Vec::new())).await?;
            read.map(|octets| Some(octets.into()))
        }
    }
}

/// First octet and, if it is told, the one after the last: `bytes FIRST-LAST/LENGTH`.
fn range(response: &Response<Incoming>) -> (u64, Option<u64>) {
    let text = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let bounds = text
        .filter(|_| response.status() == StatusCode::PARTIAL_CONTENT)
        .and_then(|text| text.trim().strip_prefix("bytes "))
        .and_then(|text| text.split_once('/'))
        .and_then(|(range, _)| range.split_once('-'))
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse::<u64>().ok()?)));
    bounds.map_or((0, None), |(first, last)| (first, Some(last.saturating_add(1))))
}

/// The octets that an answer says will follow.
fn announced(response: &Response<Body>) -> Option<u64> {
    let length = response.headers().get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.trim().parse().ok()
}

/// Where octets come from.
enum Octets {
    /// This machine's own download.
    Server(Incoming),
    /// All machines' one, which has no length yet.
    Copy(Arc<Held>),
}

/// The octets as they come.
pub(super) struct RemoteBody {
    octets: Octets,
    /// Announced and not yet come, if a length was announced.
    left: Option<u64>,
    at: u64,
    download: Option<Download>,
}

impl RemoteBody {
    fn new(octets: Octets, left: Option<u64>, at: u64, download: Option<Download>) -> Self {
        let mut new = Self { octets, left, at, download };
        new.passed_on(0);
        new
    }

    /// Octets that are still to come, if that was announced.
    pub fn length(&self) -> Option<u64> {
        self.left
    }

    /// The next octets; none at the end.
    ///
    /// # Errors
    /// The other server is silent for too long, breaks off, or does not send what it announced.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let result = match &mut self.octets {
            Octets::Server(_) => self.next_of_server().await,
            Octets::Copy(held) => next_of_copy(held, self.at).await,
        };
        if let Err(error) = &result
            && let Some(download) = self.download.take()
        {
            download.ended(error.to_string());
        }
        result
    }

    async fn next_of_server(&mut self) -> io::Result<Option<Bytes>> {
        let Octets::Server(body) = &mut self.octets else { return Ok(None) };
        let next = timeout(STALL, fetch::next(body)).await;
        let silent =
            || io::Error::new(io::ErrorKind::TimedOut, "the file's own server stopped sending");
        let broke_off = |why: &dyn std::fmt::Display| {
            io::Error::other(format!("the file's own server broke off: {why}"))
        };
        match next {
            Err(_late) => Err(silent()),
            Ok(Some(Err(error))) => Err(broke_off(&error)),
            Ok(Some(Ok(octets))) => self.counted(octets).map(Some).ok_or_else(|| {
                io::Error::other("the file's own server sends more than it announced")
            }),
            Ok(None) if self.left.is_some_and(|left| left > 0) => {
                Err(broke_off(&"less came than it announced"))
            }
            Ok(None) => Ok(None),
        }
    }

    /// Takes them off what was announced, if they are not more than that.
    fn counted(&mut self, octets: Bytes) -> Option<Bytes> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(u64::try_from(octets.len()).ok()?)?;
        }
        Some(octets)
    }

    /// So many octets have gone to the machine.
    pub fn passed_on(&mut self, octets: usize) {
        self.at = self.at.saturating_add(u64::try_from(octets).unwrap_or(u64::MAX));
        if let Some(download) = &mut self.download {
            download.progress(self.at);
        }
    }

    /// All of it has.
    pub fn done(self) {
        if let Some(download) = self.download {
            download.done();
        }
    }
}
