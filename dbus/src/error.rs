//! The errors of the contract, each with one D-Bus name and one exit code of the client.

use zbus::DBusError;

/// What the helper answers instead of a reply. The text is a sentence that a person can act on.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.portcullis.Netboot1.Error")]
pub enum Error {
    /// Not an answer of the helper: the bus itself failed, or the helper is not there.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// polkit said no, or could not be asked.
    NotAuthorized(String),
    /// The dialog was dismissed, or the password was wrong.
    AuthenticationDismissed(String),
    /// A password is needed, and there is nobody to ask for it.
    NoAgent(String),
    /// Another request of this caller is pending.
    Busy(String),
    /// A port is taken; the text names port, protocol and the uid of the holder.
    AddressInUse(String),
    /// The request itself is wrong: unknown key, wrong type, value out of range.
    InvalidRequest(String),
    /// No such interface, or one that cannot be served on.
    NoSuchInterface(String),
    /// The site's configuration says no.
    ForbiddenByPolicy(String),
    /// The firewall of this host is not one that the helper can open.
    FirewallUnsupported(String),
    /// The kernel refused the change to the firewall; nothing was left behind.
    FirewallFailed(String),
    /// A quota is used up.
    LimitsExceeded(String),
    /// No such lease of this caller.
    NoSuchLease(String),
}

impl Error {
    /// Exit code of the client for this error (README, "Exit codes"). 22 means that the helper
    /// could not be reached.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotAuthorized(_) => 10,
            Self::AuthenticationDismissed(_) => 11,
            Self::NoAgent(_) => 12,
            Self::Busy(_) => 13,
            Self::AddressInUse(_) => 14,
            Self::InvalidRequest(_) => 15,
            Self::NoSuchInterface(_) => 16,
            Self::ForbiddenByPolicy(_) => 17,
            Self::FirewallUnsupported(_) => 18,
            Self::FirewallFailed(_) => 19,
            Self::LimitsExceeded(_) => 20,
            Self::NoSuchLease(_) => 21,
            Self::ZBus(_) => 22,
        }
    }

    /// The sentence for people.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::ZBus(error) => error.to_string(),
            Self::NotAuthorized(text)
            | Self::AuthenticationDismissed(text)
            | Self::NoAgent(text)
            | Self::Busy(text)
            | Self::AddressInUse(text)
            | Self::InvalidRequest(text)
            | Self::NoSuchInterface(text)
            | Self::ForbiddenByPolicy(text)
            | Self::FirewallUnsupported(text)
            | Self::FirewallFailed(text)
            | Self::LimitsExceeded(text)
            | Self::NoSuchLease(text) => text.clone(),
        }
    }
}
