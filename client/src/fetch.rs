//! HTTP as a client: files that are passed on to machines, and the API that is asked about them.
//!
//! Guarantees: https addresses are checked against the system's CA certificates (`SSL_CERT_FILE` and
//! `SSL_CERT_DIR` as everywhere), and never become http by a redirect; whoever does not answer is
//! given up after a time; nothing is read further than it is passed on. Proxies of the environment
//! are not used.

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE, USER_AGENT},
};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::time::timeout;

use crate::source::url;

/// For a connection to be made (RFC 6298: the third SYN goes out after 3 s).
const CONNECT: Duration = Duration::from_secs(10);
/// For the header of an answer.
pub const ANSWER: Duration = Duration::from_secs(30);
/// As many as Go's and curl's users are used to.
const REDIRECTS: usize = 10;

/// Why something could not be fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No connection, no TLS, or the connection broke.
    #[error("{0}")]
    Connection(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// A redirect to nowhere, from https to http, or one too many.
    #[error("it redirects {0}")]
    Redirect(&'static str),
    /// Another status than was hoped for.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// More than was expected.
    #[error("its answer is longer than {0} octets")]
    TooLong(usize),
}

/// A client whose connections are shared by its clones.
#[derive(Clone)]
pub struct Fetcher(Client<HttpsConnector<HttpConnector>, String>);

impl fmt::Debug for Fetcher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Fetcher")
    }
}

impl Default for Fetcher {
    fn default() -> Self {
        Self::new()
    }
}

impl Fetcher {
    /// Reads the system's CA certificates. Without any, https addresses fail as not trusted, and
    /// http ones work.
    #[must_use]
    pub fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(ring::default_provider())
            .unwrap_or_else(|_| HttpsConnectorBuilder::new().with_tls_config(nobody_trusted()))
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }

    /// Sends a request and returns the answer's header, whatever its status, after redirects.
    ///
    /// # Errors
    /// No answer came.
    pub async fn ask(
        &self,
        method: Method,
        address: &Uri,
        headers: &HeaderMap,
        within: Duration,
    ) -> Result<Response<Incoming>, FetchError> {
        timeout(within, self.follow(method, address.clone(), headers))
            .await
            .unwrap_or(Err(FetchError::Timeout(within)))
    }

    async fn follow(
        &self,
        method: Method,
        mut address: Uri,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, FetchError> {
        for _ in 0..=REDIRECTS {
            let mut request = Request::new(String::new());
            *request.method_mut() = method.clone();
            *request.uri_mut() = address.clone();
            *request.headers_mut() = headers.clone();
            let agent = HeaderValue::from_static(concat!("portcullis/", env!("CARGO_PKG_VERSION")));
            request.headers_mut().insert(USER_AGENT, agent);
            let response = self.0.request(request).await.map_err(|error| connection(&error))?;
            let status = response.status();
            // RFC 9110 section 15.4; 304 is an answer to us, 300 names no address of its own.
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.ok_or(FetchError::Redirect("without saying where"))?;
            let next = match url::resolve(&address, next) {
                Ok(url::Location::Http(next)) => next,
                _ => return Err(FetchError::Redirect("to an address that cannot be used")),
            };
            if address.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(FetchError::Redirect("from https to http"));
            }
            address = next;
        }
        Err(FetchError::Redirect("too often"))
    }

    /// A whole short answer, in time as a whole.
    ///
    /// # Errors
    /// Anything but 200, or more than `limit` octets.
    pub async fn whole(
        &self,
        address: &Uri,
        limit: usize,
        within: Duration,
    ) -> Result<Bytes, FetchError> {
        let read = async {
            let response = self.follow(Method::GET, address.clone(), &HeaderMap::new()).await?;
            if response.status() != StatusCode::OK {
                return Err(FetchError::Status(response.status()));
            }
            let mut body = response.into_body();
            let mut octets = BytesMut::new();
            while let Some(more) = next(&mut body).await {
                octets.extend(more.map_err(|error| connection(&error))?);
                if octets.len() > limit {
                    return Err(FetchError::TooLong(limit));
                }
            }
            Ok(octets.freeze())
        };
        timeout(within, read).await.unwrap_or(Err(FetchError::Timeout(within)))
    }

    /// `count` octets of a file from `start` on; all of it, if its server knows no ranges.
    ///
    /// # Errors
    /// There is no such file, or no such part of it.
    pub async fn part(&self, address: &Uri, start: u64, count: u64) -> Result<Part, FetchError> {
        let end = start.saturating_add(count).saturating_sub(1);
        let response = self.ask(Method::GET, address, &range(start, end), ANSWER).await?;
        let start = match response.status() {
            StatusCode::OK => None,
            StatusCode::PARTIAL_CONTENT => Some(start),
            other => return Err(FetchError::Status(other)),
        };
        Ok(Part {
            facts: Facts::of(&response),
            start: start.unwrap_or_default(),
            whole: start.is_none(),
            body: response.into_body(),
        })
    }

    /// The first octets of a file, at most `limit`, and what its server says of it.
    ///
    /// # Errors
    /// There is no such file.
    pub async fn head(&self, address: &Uri, limit: usize) -> Result<(Vec<u8>, Facts), FetchError> {
        let end = u64::try_from(limit.saturating_sub(1)).unwrap_or(u64::MAX);
        let response = self.ask(Method::GET, address, &range(0, end), ANSWER).await?;
        let facts = match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Facts::of(&response),
            // A file without a first octet (RFC 9110 section 15.5.17).
            StatusCode::RANGE_NOT_SATISFIABLE => Facts { length: Some(0), etag: None },
            other => return Err(FetchError::Status(other)),
        };
        if facts.length == Some(0) {
            return Ok((Vec::new(), facts));
        }
        let mut body = response.into_body();
        let mut octets = Vec::new();
        let read = async {
            while octets.len() < limit {
                match next(&mut body).await {
                    Some(Ok(chunk)) => octets.extend_from_slice(&chunk),
                    Some(Err(error)) => return Err(connection(&error)),
                    None => break,
                }
            }
            Ok(())
        };
        timeout(ANSWER, read).await.unwrap_or(Err(FetchError::Timeout(ANSWER)))?;
        octets.truncate(limit);
        Ok((octets, facts))
    }
}

/// Asks for these octets, the last one included.
fn range(start: u64, end: u64) -> HeaderMap {
    let range = HeaderValue::from_str(&format!("bytes={start}-{end}"));
    range.map(|range| (RANGE, range)).into_iter().collect()
}

/// A part of a file, while it comes.
#[derive(Debug)]
pub struct Part {
    /// What its server says of the whole.
    pub facts: Facts,
    /// The place in the file of what comes first; [`Self::next`] leaves it to the caller.
    pub start: u64,
    whole: bool,
    body: Incoming,
}

impl Part {
    /// It is the whole file, since its server knows no ranges.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The next octets, or none at the end.
    ///
    /// # Errors
    /// Nothing came for too long, or the connection broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let next = timeout(ANSWER, next(&mut self.body)).await;
        let next = next.map_err(|_| FetchError::Timeout(ANSWER))?;
        next.transpose().map_err(|error| connection(&error))
    }
}

/// What a server says of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Octets of the whole file.
    pub length: Option<u64>,
    /// Entity tag.
    pub etag: Option<String>,
}

impl Facts {
    /// Read from the header of a 200 or 206.
    #[must_use]
    pub fn of<B>(response: &Response<B>) -> Self {
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let length = match response.status() {
            // RFC 9110 section 14.4: `bytes FIRST-LAST/LENGTH`, or `*` for a length not known.
            StatusCode::PARTIAL_CONTENT => {
                text(CONTENT_RANGE).and_then(|range| range.rsplit_once('/')).map(|(_, all)| all)
            }
            _ => text(CONTENT_LENGTH),
        };
        Self {
            length: length.and_then(|length| length.trim().parse().ok()),
            etag: text(ETAG).map(str::to_owned),
        }
    }

    /// Whether what is known from both is the same: the file has not changed.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        let same_length = self.length.zip(other.length).is_none_or(|(one, two)| one == two);
        let same_tag = self.etag.as_ref().zip(other.etag.as_ref()).is_none_or(|(a, b)| a == b);
        same_length && same_tag
    }
}

/// The next octets of a body.
pub(crate) async fn next(body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
    loop {
        let frame = std::future::poll_fn(|context| {
            http_body::Body::poll_frame(std::pin::Pin::new(&mut *body), context)
        });
        match frame.await? {
            // What is no data are trailers.
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

fn nobody_trusted() -> ClientConfig {
    // The ring provider has every version of TLS that is asked for here.
    ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_or_else(
            |_| ClientConfig::builder().with_root_certificates(RootCertStore::empty()),
            |builder| builder.with_root_certificates(RootCertStore::empty()),
        )
        .with_no_client_auth()
}

/// The innermost cause is what says something: "connection refused", "invalid peer certificate".
fn connection(error: &(dyn std::error::Error + 'static)) -> FetchError {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    FetchError::Connection(cause.to_string())
}
