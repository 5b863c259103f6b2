//! HTTP: the script, the kernel, the initrds and extra files; for UEFI HTTP boot all in one.
//!
//! The data's way: connection -> `request` -> `answer` (path, admission, source, `conditional`) ->
//! `response` -> `files`, or `remote` for what lies on another web server.
//!
//! Guarantees: at most 256 connections, and 32 of one machine, each ended when it asks nothing, or
//! takes nothing or next to nothing, for too long (`pace`); running out of descriptors pauses the accepting and does not end it; everything ends when
//! the future is dropped. Never redirects, never opens a file; sends chunks only of what lies on a
//! web server that does not tell its length.

mod answer;
mod body;
mod conditional;
mod connection;
mod files;
mod pace;
mod remote;
mod request;
mod response;
mod socket;

use std::{io, net::SocketAddrV4, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use crate::{admission::Admission, event::Witness, source::Source};
use pace::{LEAST, Places};

/// Connections at once. The next one waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;

/// Long enough for a machine that unpacks one file before it asks for the next.
const HEADER_TIME: Duration = Duration::from_secs(30);

/// Long enough for firmware that is busy with its memory; short enough for a lab's next machine.
const STALL_TIME: Duration = Duration::from_secs(60);

/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address and port that the URLs in the script name.
    pub address: SocketAddrV4,
    /// For a request's header to arrive, and for the next request on the same connection.
    pub header: Duration,
    /// For a machine to take anything of what is being sent.
    pub stall: Duration,
    /// Octets that a machine has to take of it in each `stall`.
    pub least: u64,
    /// Where machines are looked up by their address, when they say that they are up.
    pub interface: Option<String>,
}

impl Settings {
    /// The usual limits.
    #[must_use]
    pub fn new(address: SocketAddrV4) -> Self {
        Self { address, header: HEADER_TIME, stall: STALL_TIME, least: LEAST, interface: None }
    }

    /// The same for machines on this interface.
    #[must_use]
    pub fn on(self, interface: &str) -> Self {
        Self { interface: Some(interface.to_owned()), ..self }
    }
}

/// What every request needs.
pub struct Server {
    /// `http://ADDRESS:PORT`.
    base: String,
    settings: Settings,
    source: Arc<dyn Source>,
    witness: Arc<dyn Witness>,
    admission: Arc<dyn Admission>,
}

impl Server {
    /// Serves what `source` has for each machine.
    #[must_use]
    pub fn new(
        settings: Settings,
        source: Arc<dyn Source>,
        witness: Arc<dyn Witness>,
        admission: Arc<dyn Admission>,
    ) -> Self {
        let base = format!("http://{}", settings.address);
        Self { base, settings, source, witness, admission }
    }

    /// Reads requests from a stream and answers them, until one side ends it, or takes too little for
    /// too long.
    pub async fn converse(&self, stream: TcpStream) {
        connection::converse(stream, self).await;
    }
}

/// Serves what `source` has for each machine on `listener` until the future is dropped, which cuts
/// every connection.
///
/// `/up` is told to `witness`, of the machine that has the asker's address. Other paths are
/// `/<token>/<mac>/` and `boot.ipxe`, `autoexec.ipxe`, `kernel`, `initrd<N>`, `other<N>`
/// or `boot.efi`.
/// Every GET that reaches the end of a file is told to `witness` as one download of the file's
/// whole size; a continuation (Range) is a download of its own that begins at its first octet, and
/// is done when the last one was handed over. HEAD, and a range that stops short of the end, are
/// not told. `TransferDone` says that everything was handed to the connection, not that the
/// machine has it.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve_http(
    listener: std::net::TcpListener,
    settings: Settings,
    source: Arc<dyn Source>,
    witness: Arc<dyn Witness>,
    admission: Arc<dyn Admission>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let server = Arc::new(Server::new(settings, source, witness, admission));
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let places = Places::default();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return Ok(());
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                // What is one too many is closed at once.
                let Some(place) = places.take(peer.ip()) else { continue };
                let server = Arc::clone(&server);
                connections.spawn(async move {
                    prepare(&stream, server.settings.stall);
                    server.converse(stream).await;
                    drop((permit, place));
                });
            }
            // Too many descriptors, no memory, or a machine that was gone before it was accepted:
            // none of them is a reason to stop.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Sets what an accepted connection is to have.
fn prepare(stream: &TcpStream, stall: Duration) {
    // Both only improve matters: without them answers come later, and a dead machine holds its
    // place longer.
    let _ = stream.set_nodelay(true);
    // Covers a receiver that keeps its window closed, too (Linux 5.11).
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(stall));
}
