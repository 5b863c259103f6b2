//! The contract between `portcullis` (the user's process) and `portcullis-helper` (the privileged
//! process) on the system bus.
//!
//! Guarantees: every name that both sides use is written once, here. Nothing in this crate decides
//! anything: parsing and authorising a request is the helper's work (`helper/src/request.rs`).
//! The same contract for people and other languages is `dbus/org.portcullis.Netboot1.xml`; a test
//! compares that file with what the helper really exports.

mod error;
pub mod keys;
mod proxy;

pub use error::Error;
pub use proxy::{Closed, ClosedStream, Netboot1Proxy};

/// Well-known name of the helper on the system bus. The number is the version of the contract and
/// is part of name, path and interface alike.
pub const BUS_NAME: &str = "org.portcullis.Netboot1";
/// The helper's only object.
pub const OBJECT_PATH: &str = "/org/portcullis/Netboot1";
/// The helper's only interface.
pub const INTERFACE: &str = "org.portcullis.Netboot1";

/// polkit actions, one per class of risk (`polkit/org.portcullis.netboot1.policy`).
pub mod action {
    /// Open the netboot ports for proxy DHCP on one interface.
    pub const OPEN: &str = "org.portcullis.netboot1.open";
    /// Open them for full DHCP authority: the caller may hand out addresses.
    pub const OPEN_DHCP: &str = "org.portcullis.netboot1.open-dhcp";
    /// See and end other people's leases.
    pub const MANAGE: &str = "org.portcullis.netboot1.manage";
    /// Details that every question to polkit carries, for a site's rules (`action.lookup`).
    /// The list is stable.
    pub const DETAILS: [&str; 4] = ["interface", "http-port", "dhcp", "max-seconds"];
}

/// UDP port of DHCP servers (RFC 2131 section 4.1).
pub const DHCP_PORT: u16 = 67;
/// UDP port of TFTP (RFC 1350 section 4).
pub const TFTP_PORT: u16 = 69;
/// UDP port of the PXE boot server (PXE 2.1 section 2.2; "BINL" in EDK2).
pub const BOOT_SERVER_PORT: u16 = 4011;
/// TCP port that boot images are served on unless the request names another.
pub const DEFAULT_HTTP_PORT: u16 = 64172;
/// Seconds that a lease lasts unless the request says otherwise: a backstop, since a lease ends
/// with its client.
pub const DEFAULT_MAX_SECONDS: u32 = 12 * 60 * 60;
