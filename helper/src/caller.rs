//! Who calls: the unique name that the bus put on the message, and the uid that the bus vouches for.
//!
//! Guarantees: a [`Caller`] exists only after the bus answered for the very name that the message
//! came from; an answer that fails is never read as some uid. Trusts the bus.

use std::fmt;

use futures_util::StreamExt;
use portcullis_dbus::Error;
use zbus::{
    Connection,
    fdo::{DBusProxy, NameOwnerChangedStream},
    message::Header,
    names::OwnedUniqueName,
    proxy::CacheProperties,
};

/// A user id that the bus has vouched for. There is no default and no other way to make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(u32);

impl Uid {
    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn for_test(uid: u32) -> Self {
        Self(uid)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// One connection to the bus and its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The unique name of the connection.
    pub name: OwnedUniqueName,
    /// The user that opened it.
    pub uid: Uid,
}

impl Caller {
    /// Identifies the sender of a message.
    ///
    /// # Errors
    /// `NotAuthorized` when the message has no sender, or the bus does not know it (any more).
    pub async fn identify(connection: &Connection, header: &Header<'_>) -> Result<Self, Error> {
        let name = header.sender().ok_or_else(unknown)?;
        let bus = bus(connection).await.map_err(|_| unknown())?;
        let credentials =
            bus.get_connection_credentials(name.clone().into()).await.map_err(|_| unknown())?;
        let uid = credentials.unix_user_id().ok_or_else(unknown)?;
        Ok(Self { name: name.clone().into(), uid: Uid(uid) })
    }
}

/// Notices that a connection has left the bus.
pub struct Departure {
    changes: NameOwnerChangedStream,
    bus: DBusProxy<'static>,
    name: OwnedUniqueName,
}

impl Departure {
    /// Watches from now on, and only then asks whether the caller is still there: a departure
    /// between the two is seen.
    ///
    /// # Errors
    /// `NotAuthorized` when the caller is gone.
    pub async fn watch(connection: &Connection, name: &OwnedUniqueName) -> Result<Self, Error> {
        let bus = bus(connection).await.map_err(|_| unknown())?;
        let changes = bus
            .receive_name_owner_changed_with_args(&[(0, name.as_str())])
            .await
            .map_err(|_| unknown())?;
        let departure = Self { changes, bus, name: name.clone() };
        departure.still_here().await?;
        Ok(departure)
    }

    /// Asks the bus whether the caller is still there.
    ///
    /// # Errors
    /// `NotAuthorized` when it is not.
    pub async fn still_here(&self) -> Result<(), Error> {
        match self.bus.name_has_owner(self.name.as_ref().into()).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(unknown()),
        }
    }

    /// Completes when the caller has left, or when the bus itself is gone. A unique name is never
    /// given to anybody else, so any change of its owner is its end.
    pub async fn left(&mut self) {
        let _ = self.changes.next().await;
    }
}

async fn bus(connection: &Connection) -> zbus::Result<DBusProxy<'static>> {
    DBusProxy::builder(connection).cache_properties(CacheProperties::No).build().await
}

fn unknown() -> Error {
    Error::NotAuthorized("the bus does not know the caller any more".to_owned())
}
