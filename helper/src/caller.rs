//! Who calls: the unique name that the bus put on the message, and the uid that the bus vouches for;
//! or, where the helper was started for one run, the program at the other end of its socket, and the
//! uid that the kernel vouches for.
//!
//! Guarantees: a [`Caller`] exists only after the bus answered for the very name that the message
//! came from, or the kernel for the very socket; an answer that fails is never read as some uid.
//! Trusts the bus, and the tool that started a helper for one run for whom it asked.

use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use portcullis_dbus::Error;
use zbus::{
    Connection,
    fdo::DBusProxy,
    message::Header,
    names::{OwnedUniqueName, UniqueName},
    proxy::CacheProperties,
};

/// A user id that the bus or the kernel has vouched for. There is no default and no other way to make one.
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

impl std::fmt::Display for Uid {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

    /// Whether the bus still knows it.
    pub async fn is_on(&self, connection: &Connection) -> bool {
        let Ok(bus) = bus(connection).await else {
            return false;
        };
        bus.name_has_owner(self.name.as_ref().into()).await.unwrap_or(false)
    }

    /// The program at the other end of a socket that was made by socketpair(2): its user is who made
    /// the pair (SO_PEERCRED, unix(7)). `told`: the uids of whom the starting tool says it asked.
    ///
    /// # Errors
    /// A sentence, when there is no such socket, or the tool asked nobody or somebody else.
    pub fn at_the_other_end(socket: &impl AsFd, told: &[u32]) -> Result<Self, String> {
        let peer = getsockopt(socket, PeerCredentials)
            .map_err(|error| format!("standard input is no socket of portcullis: {error}"))?;
        if told.is_empty() || told.iter().any(|uid| *uid != peer.uid()) {
            return Err(format!(
                "standard input was made by uid {}, and who was asked is {told:?} (SUDO_UID, \
                 PKEXEC_UID): they must be the same",
                peer.uid()
            ));
        }
        let name = UniqueName::from_static_str(ALONE).map_err(|error| error.to_string())?;
        Ok(Self { name: name.into(), uid: Uid(peer.uid()) })
    }
}

/// The name of the one caller where there is no bus that gives names.
const ALONE: &str = ":once.0";

async fn bus(connection: &Connection) -> zbus::Result<DBusProxy<'static>> {
    DBusProxy::builder(connection).cache_properties(CacheProperties::No).build().await
}

fn unknown() -> Error {
    Error::NotAuthorized("the bus does not know the caller any more".to_owned())
}
