//! The helper's life on the bus: appear, serve, look after the leases, leave.
//!
//! Guarantees: the name is asked for once everything answers, without taking it from anybody, and
//! its loss ends the helper; every lease is closed before a regular end. Leaving for idleness gives
//! the name back first, then answers what was on its way, and stays if that was a request.

use std::{
    future::{self, Future},
    time::Duration,
};

use futures_util::StreamExt;
use portcullis_dbus::{BUS_NAME, OBJECT_PATH};
use zbus::{
    Connection,
    fdo::{DBusProxy, NameLostStream, RequestNameFlags},
    proxy::CacheProperties,
};

use crate::{
    limits, log,
    notify::{self, Notifier},
    service::Netboot,
    state::{CannotClose, State},
    watch::Watch,
};

/// Why the helper ended before anybody told it to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The bus did not take the helper.
    #[error("the helper could not appear on the bus: {0}")]
    Bus(#[from] zbus::Error),
    /// The bus took the name away, or is gone itself.
    #[error("the name on the bus is lost: another helper, or the bus ended")]
    NameLost,
    /// An opening could not be removed.
    #[error(transparent)]
    CannotClose(#[from] CannotClose),
}

/// Serves on a connection until `stop` completes or there is nothing left to do.
///
/// # Errors
/// When the helper ends for any other reason; the leases have been closed as far as possible.
pub async fn run(
    connection: Connection,
    state: State,
    notifier: &Notifier,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let netboot = Netboot::new(connection.clone(), state);
    connection.object_server().at(OBJECT_PATH, netboot.clone()).await?;
    let bus = DBusProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
    let mut lost = bus.receive_name_lost_with_args(&[(0, BUS_NAME)]).await?;
    connection.request_name_with_flags(BUS_NAME, RequestNameFlags::DO_NOT_QUEUE).await?;
    notifier.tell(notify::READY);
    log::note("ready");

    let outcome = look_after(&connection, &netboot, notifier, stop, &mut lost).await;
    notifier.tell(notify::STOPPING);
    let ended = netboot.state().end_all();
    netboot.tell(ended).await;
    // What is still open now is closed by the kernel, together with this process.
    let _ = tokio::time::timeout(limits::DRAIN, connection.graceful_shutdown()).await;
    outcome
}

async fn look_after(
    connection: &Connection,
    netboot: &Netboot,
    notifier: &Notifier,
    stop: impl Future<Output = ()>,
    lost: &mut NameLostStream,
) -> Result<(), Failure> {
    let mut stop = std::pin::pin!(stop);
    let watchdog = notify::watchdog().unwrap_or(Duration::MAX);
    let mut heed_polkit = std::pin::pin!(netboot.heed_polkit());
    let watch = Watch::open().inspect_err(|error| log::kernel("watch the firewall", error)).ok();
    loop {
        let next_tick = netboot.state().next_tick().min(watchdog);
        tokio::select! {
            () = &mut stop => return Ok(()),
            _ = lost.next() => return Err(Failure::NameLost),
            () = connection.closed() => return Err(Failure::NameLost),
            () = &mut heed_polkit => {}
            () = firewall_changed(watch.as_ref()) => {}
            () = tokio::time::sleep(next_tick) => {}
        }
        notifier.tell(notify::ALIVE);
        let ended = netboot.state().tick()?;
        netboot.tell(ended).await;
        let may_leave = netboot.state().may_leave();
        if may_leave && leave(connection, netboot, lost).await? {
            log::note("leaving: nothing to do");
            return Ok(());
        }
    }
}

/// Never completes when the firewall cannot be watched: the tick sees the change then.
async fn firewall_changed(watch: Option<&Watch>) {
    if let Some(watch) = watch
        && watch.changed().await.is_ok()
    {
        return;
    }
    future::pending().await
}

/// Gives the name back. Once the bus has confirmed that, every call that was sent to the name is
/// already here; if one of them was a request, the helper takes the name again and stays.
async fn leave(
    connection: &Connection,
    netboot: &Netboot,
    lost: &mut NameLostStream,
) -> Result<bool, Failure> {
    connection.release_name(BUS_NAME).await?;
    // The bus says NameLost for a name that was given back, too.
    let _ = tokio::time::timeout(limits::DRAIN, lost.next()).await;
    // Every call has a task of its own; each notes itself as soon as it is run.
    tokio::time::sleep(limits::SOON).await;
    if netboot.state().may_leave() {
        return Ok(true);
    }
    connection.request_name_with_flags(BUS_NAME, RequestNameFlags::DO_NOT_QUEUE).await?;
    Ok(false)
}
