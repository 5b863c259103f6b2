//! The web page: what the terminal shows, in a browser on this computer, and totals for Prometheus.
//!
//! The data's way: connection -> hyper -> `page` (who asks, for what) -> `events` (the board, as it
//! changes), `metrics`, or a file of the page. How it is used, and why its address is as it is:
//! docs/web.md.
//!
//! Guarantees: listens on the loopback address unless the user names another; shows nothing but totals
//! to those who do not know the secret of its address; changes nothing, ever; at most
//! 64 connections, each ended when it asks nothing or takes nothing for too long, and, when there is no
//! room, those first that have not shown the secret. Never fails the run once it listens.

pub mod events;
pub mod metrics;
pub mod page;

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode},
    routing::any,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use portcullis_dbus::Error;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use crate::{
    exit::{Code, Failure},
    source::token,
};
use events::Feed;
use page::{Asked, Gate, answer, short};

/// Where the page is unless another port is named: beside that of the boot images.
pub const PORT: u16 = 64173;

/// Connections at once, those of the pages that are kept up to date among them.
const CONNECTIONS: usize = 64;
/// For a request to arrive, and for the next one on the same connection.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// For a page to take anything of what it is told: a reader that has stopped loses its place.
const STALL_TIME: Duration = Duration::from_secs(10);
/// Octets of a request's head, and of what is sent at a time.
const BUFFER: usize = 16 * 1024;
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Characters of a secret: 128 random bits.
const SECRET: u64 = 32;

/// Which port is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// This one or none.
    Exactly(u16),
    /// This one, or any other where it is taken.
    Rather(u16),
}

/// Where the page is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The address; loopback unless the user says otherwise.
    pub address: Ipv4Addr,
    /// The port.
    pub port: Port,
}

/// The page's listening socket and its secret.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    address: SocketAddrV4,
    secret: String,
}

impl Door {
    /// Listens, in a runtime's context; nobody is answered yet. `session` is the user's own directory
    /// while logged in (`XDG_RUNTIME_DIR`): there the secret is kept, so that a page that is open finds
    /// the next run. At another port than the one that was wanted it is new: whoever has that one may
    /// have been told the kept one by a page.
    ///
    /// # Errors
    /// The address is not one of this computer's, or the port is taken.
    pub fn open(wish: Wish, session: Option<&Path>) -> Result<Self, Failure> {
        let Wish { address, port } = wish;
        if address.is_unspecified() {
            let text = "--web-listen 0.0.0.0: name the one address at which the page is to be seen";
            return Err(Failure::new(Code::Usage, text));
        }
        let (Port::Exactly(number) | Port::Rather(number)) = port;
        let bind = |number| std::net::TcpListener::bind(SocketAddrV4::new(address, number));
        let (listener, usual) = match (bind(number), port) {
            (Ok(listener), _) => (listener, true),
            (Err(error), Port::Rather(_)) if error.kind() != ErrorKind::AddrNotAvailable => {
                (bind(0).map_err(|error| refused(address, number, &error))?, false)
            }
            (Err(error), _) => return Err(refused(address, number, &error)),
        };
        let unusable = |error: io::Error| refused(address, number, &error);
        listener.set_nonblocking(true).map_err(unusable)?;
        let listener = TcpListener::from_std(listener).map_err(unusable)?;
        let number = listener.local_addr().map_err(unusable)?.port();
        let kept = session.filter(|_| usual).and_then(kept_secret);
        let secret = kept.map_or_else(token, Ok)?;
        Ok(Self { listener, address: SocketAddrV4::new(address, number), secret })
    }

    /// The whole address of the page, for those who may see it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/{}/", self.address, self.secret)
    }

    /// Whether others than this computer's users can reach it.
    #[must_use]
    pub fn is_public(&self) -> bool {
        !self.address.ip().is_loopback()
    }

    /// Answers with what `feed` has until the future is dropped, which cuts every connection.
    pub async fn serve(self, feed: Arc<Feed>) {
        let port = self.address.port();
        let mut hosts = vec![self.address.to_string()];
        if !self.is_public() {
            hosts.push(format!("localhost:{port}"));
        }
        let gate = Arc::new(Gate::new(hosts, self.secret));
        let mut connections = JoinSet::new();
        let mut guests: Vec<Guest> = Vec::new();
        loop {
            while connections.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    guests.retain(|guest| !guest.task.is_finished());
                    if guests.len() >= CONNECTIONS {
                        let stranger =
                            guests.iter().position(|guest| !guest.knows.load(Ordering::Relaxed));
                        // Without one, it is the new connection that is closed.
                        let Some(oldest) = stranger else { continue };
                        guests.remove(oldest).task.abort();
                    }
                    let knows = Arc::default();
                    let router = router(&gate, &feed, &knows);
                    let task = connections.spawn(serve_connection(stream, router));
                    guests.push(Guest { task, knows });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

/// A connection.
struct Guest {
    task: AbortHandle,
    /// Whether it has shown the secret.
    knows: Arc<AtomicBool>,
}

fn router(gate: &Arc<Gate>, feed: &Arc<Feed>, knows: &Arc<AtomicBool>) -> Router {
    let (gate, feed, knows) = (Arc::clone(gate), Arc::clone(feed), Arc::clone(knows));
    Router::new().fallback_service(any(move |request: Request<Body>| {
        let response = respond(&gate, &feed, &knows, request);
        async move { response }
    }))
}

async fn serve_connection(stream: TcpStream, router: Router) {
    // Without it an event comes later.
    let _ = stream.set_nodelay(true);
    // Ends a reader that takes nothing (Linux 5.11): without it, it keeps its place.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(STALL_TIME));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // Whoever was at the other end is gone, or broke the rules.
    let _ = connection.await;
}

fn respond(
    gate: &Gate,
    feed: &Arc<Feed>,
    knows: &AtomicBool,
    request: Request<Body>,
) -> Response<Body> {
    let asked = match gate.pass(&request.into_parts().0) {
        Ok(asked) => asked,
        Err(refusal) => return refusal.answer(),
    };
    if asked != Asked::Metrics {
        knows.store(true, Ordering::Relaxed);
    }
    match asked {
        Asked::Asset(asset) => asset.answer(),
        Asked::Metrics => answer(StatusCode::OK, metrics::MEDIA_TYPE, feed.totals()),
        Asked::Log(machine) => match feed.log(&machine) {
            Some(log) => answer(StatusCode::OK, "application/json", log),
            None => short(StatusCode::NOT_FOUND, "no such machine\n"),
        },
        Asked::Events => match feed.read() {
            Some(body) => answer(StatusCode::OK, "text/event-stream; charset=utf-8", body),
            None => short(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n"),
        },
    }
}

fn refused(address: Ipv4Addr, port: u16, error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::AddrInUse => {
            let text = format!("the web page cannot be at {address}: TCP {port} is taken");
            Failure::from(Error::AddressInUse(text)).advise("name another one: --web=PORT")
        }
        ErrorKind::AddrNotAvailable => {
            let text = format!("--web-listen {address}: this computer does not have that address");
            Failure::new(Code::Interface, text).advise("see `portcullis interfaces`")
        }
        _ => {
            let text = format!("the web page cannot be at {address}, TCP {port}: {error}");
            Failure::new(Code::Internal, text)
        }
    }
}

/// The secret of this user's runs. `None` where that directory is not the user's own.
fn kept_secret(session: &Path) -> Option<String> {
    // XDG Base Directory Specification: nobody else may even look. In a wrong environment (sudo -E) it
    // is another user's.
    let about = fs::metadata(session).ok()?;
    if about.uid() != nix::unistd::geteuid().as_raw() || about.mode() & 0o077 != 0 {
        return None;
    }
    let directory = session.join("portcullis");
    let file = directory.join("page");
    let mut text = String::new();
    let read = File::open(&file).and_then(|file| file.take(SECRET + 1).read_to_string(&mut text));
    let hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if read.is_ok_and(|length| u64::try_from(length) == Ok(SECRET)) && hexadecimal {
        return Some(text);
    }
    let secret = token().ok()?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    made.and_then(|()| options.open(file)?.write_all(secret.as_bytes())).ok()?;
    Some(secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_secret_is_kept_where_nobody_else_looks() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |mode| fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode));
        mode(0o755).unwrap();
        assert_eq!(kept_secret(directory.path()), None, "others may look");
        mode(0o700).unwrap();
        let secret = kept_secret(directory.path()).unwrap();
        assert_eq!(secret.len(), 32);
        assert_eq!(kept_secret(directory.path()).as_ref(), Some(&secret));
        let file = directory.path().join("portcullis/page");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        for broken in ["", "0123", &"x".repeat(32), &"0".repeat(33)] {
            fs::write(&file, broken).unwrap();
            let anew = kept_secret(directory.path()).unwrap();
            assert!(anew.len() == 32 && anew != secret && anew != broken, "{broken}: {anew}");
        }
        assert_eq!(kept_secret(&directory.path().join("none")), None);
    }
}
