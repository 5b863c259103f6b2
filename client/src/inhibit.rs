//! Keeps the computer awake while it serves, if logind lets the user do so.
//!
//! Guarantees: never asks for a password, never fails the run; the lock ends with its descriptor.

use std::{os::fd::OwnedFd, time::Duration};

use tokio::time::timeout;
use zbus::Connection;

/// A logind that takes longer is done without.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes logind's lock against sleep (org.freedesktop.login1(5), `Inhibit`): closing the lid in the
/// middle of a download would leave the machine with half a system. `None`: logind is not there, or
/// the user may not.
pub async fn sleep(connection: &Connection) -> Option<OwnedFd> {
    let call = connection.call_method(
        Some("org.freedesktop.login1"),
        "/org/freedesktop/login1",
        Some("org.freedesktop.login1.Manager"),
        "Inhibit",
        &("sleep", "portcullis", "another machine is booting from this one", "block"),
    );
    let reply = timeout(PATIENCE, call).await.ok()?.ok()?;
    reply.body().deserialize::<zbus::OwnedFd>().ok().map(OwnedFd::from)
}
