//! The helper's life on the bus: appear, serve, look after the leases, leave. Or without one, for the
//! one program that it was started for, as long as that holds its end of the socket.
//!
//! Guarantees: the name is asked for once everything answers, without taking it from anybody, and not to
//! be taken away; should it have another owner all the same, the helper ends; every lease is closed before a regular end. Leaving for idleness gives
//! the name back first, then answers what was on its way, and stays if that was a request.

use std::{future::Future, os::unix::net::UnixStream};

use futures_util::future::OptionFuture;
use portcullis_dbus::{BUS_NAME, OBJECT_PATH};
use zbus::{
    Connection, Guid, connection,
    fdo::{DBusProxy, RequestNameFlags},
    proxy::CacheProperties,
};

use crate::{
    authority::Authority,
    caller::Caller,
    limits, log, notify,
    service::{Netboot, tell},
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
    /// The one caller did not begin to speak, or not as it should.
    #[error("the program that this helper was started for does not answer: {0}")]
    Alone(zbus::Error),
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
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let netboot = Netboot::new(Authority::Polkit(connection.clone()), state);
    connection.object_server().at(OBJECT_PATH, netboot.clone()).await?;
    let bus = DBusProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
    let departures = bus.receive_name_owner_changed().await?;
    connection.request_name_with_flags(BUS_NAME, RequestNameFlags::DO_NOT_QUEUE).await?;
    notify::tell(notify::READY);
    log::note("ready");

    let outcome = tokio::select! {
        outcome = look_after(&connection, &netboot, stop, true) => outcome,
        () = netboot.heed_departures(&connection, departures) => Err(Failure::NameLost),
        never = netboot.heed_polkit(&connection) => match never {},
    };
    notify::tell(notify::STOPPING);
    let ended = netboot.state().end_all();
    tell(&connection, ended).await;
    // What is still open now is closed by the kernel, together with this process.
    let _ = tokio::time::timeout(limits::DRAIN, connection.graceful_shutdown()).await;
    outcome
}

/// Serves the one caller at the other end of a socket until it is gone, or `stop` completes.
///
/// # Errors
/// As [`run`].
pub async fn once(
    socket: UnixStream,
    caller: Caller,
    state: State,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut stop = std::pin::pin!(stop);
    let netboot = Netboot::new(Authority::Launcher(caller), state);
    // The object is there before the first call is read.
    let speaks = connection::Builder::unix_stream(socket)
        .server(Guid::generate())
        .p2p()
        .serve_at(OBJECT_PATH, netboot.clone())
        .build();
    let connection = tokio::select! {
        () = &mut stop => return Ok(()),
        connection = speaks => connection.map_err(Failure::Alone)?,
    };
    log::note("ready");
    let outcome = tokio::select! {
        outcome = look_after(&connection, &netboot, stop, false) => outcome,
        () = connection.closed() => Ok(()),
    };
    let ended = netboot.state().end_all();
    tell(&connection, ended).await;
    outcome
}

/// Until `stop` completes or, where it `may_leave` a bus, there is nothing left to do.
async fn look_after(
    connection: &Connection,
    netboot: &Netboot,
    stop: impl Future<Output = ()>,
    may_leave: bool,
) -> Result<(), Failure> {
    let mut stop = std::pin::pin!(stop);
    // A firewall that cannot be watched is seen by the tick.
    let watch = Watch::open().inspect_err(|error| log::kernel("watch the firewall", error)).ok();
    loop {
        let next_tick = netboot.state().next_tick();
        tokio::select! {
            () = &mut stop => return Ok(()),
            Some(Ok(())) = OptionFuture::from(watch.as_ref().map(Watch::changed)) => {}
            () = tokio::time::sleep(next_tick) => {}
        }
        notify::tell(notify::ALIVE);
        let ended = netboot.state().tick()?;
        tell(connection, ended).await;
        let idle = may_leave && netboot.state().may_leave();
        if idle && leave(connection, netboot).await? {
            log::note("leaving: nothing to do");
            return Ok(());
        }
    }
}

/// Gives the name back. Once the bus has confirmed that, every call that was sent to the name is
/// already here; if one of them was a request, the helper takes the name again and stays.
async fn leave(connection: &Connection, netboot: &Netboot) -> Result<bool, Failure> {
    connection.release_name(BUS_NAME).await?;
    // Every call has a task of its own; each notes itself as soon as it is run.
    tokio::time::sleep(limits::SOON).await;
    if netboot.state().may_leave() {
        return Ok(true);
    }
    connection.request_name_with_flags(BUS_NAME, RequestNameFlags::DO_NOT_QUEUE).await?;
    Ok(false)
}
