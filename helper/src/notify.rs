//! Tells the service manager that the helper is ready, alive or stopping (sd_notify(3)).
//!
//! Guarantees: without NOTIFY_SOCKET nothing happens; a manager that does not listen never blocks
//! or ends the helper.

use std::{
    env,
    fmt::Display,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::Path,
    time::Duration,
};

/// The way to the service manager.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// Connects to the manager that the environment names, if any.
    #[must_use]
    pub fn from_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let address = match path.as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(Path::new(&path)),
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect_addr(&address.ok()?).ok()?;
            socket.set_nonblocking(true).ok()?;
            Some(socket)
        });
        Self { socket }
    }

    /// The helper has its name on the bus.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The helper's loop goes round.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The helper is leaving.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The helper cannot start or go on: one line, that `systemctl status` and the client show.
    pub fn failed(&self, error: &dyn Display) {
        let text = error.to_string();
        self.send(&format!("STATUS={}", text.lines().next().unwrap_or_default()));
    }

    fn send(&self, state: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(state.as_bytes());
        }
    }
}

/// How often the manager wants to hear that the helper is alive: half of its patience, as
/// sd_watchdog_enabled(3) advises.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    let patience: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let half = Duration::from_micros(patience).checked_div(2)?;
    (!half.is_zero()).then_some(half)
}
