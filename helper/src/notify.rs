//! Tells the service manager that the helper is ready, alive or stopping (sd_notify(3)).
//!
//! Guarantees: without NOTIFY_SOCKET nothing happens; a manager that does not listen never blocks
//! or ends the helper.

use std::{
    env,
    fmt::Display,
    os::{
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr},
    },
    path::Path,
};

use crate::journal::send_now;

/// Said once the helper has its name on the bus.
pub const READY: &str = "READY=1";
/// Said whenever the helper's loop goes round: at least every [`crate::limits::TICK`], far more often than
/// the unit wants to hear it.
pub const ALIVE: &str = "WATCHDOG=1";
/// Said when the helper is leaving.
pub const STOPPING: &str = "STOPPING=1";

/// The helper cannot start or go on: one line, that `systemctl status` and the client show.
pub fn failed(error: &dyn Display) {
    let text = error.to_string();
    tell(&format!("STATUS={}", text.lines().next().unwrap_or_default()));
}

/// Says one of the words above to the manager that the environment names, if any.
pub fn tell(word: &str) {
    let path = env::var_os("NOTIFY_SOCKET");
    let address = path.and_then(|path| match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name).ok(),
        None => SocketAddr::from_pathname(Path::new(&path)).ok(),
    });
    let _ = address.map(|address| send_now(&address, word.as_bytes()));
}
