//! What is served: files that were opened once and belong together.
//!
//! Guarantees: a [`Generation`] holds open descriptors, so that a build that is replaced or
//! collected meanwhile does not mix with it; every length was read from the descriptor itself. What
//! lies on a web server is opened when it is passed on; a [`Remote`] knows what its server said of it
//! at the start, so that a file that changed there is not passed on.

use std::{fs::File, sync::Arc};

use axum::http::Uri;

use crate::{
    fetch::{Facts, Fetcher},
    template::Template,
};

/// One open file.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Last part of the path, for people.
    pub name: String,
    /// The descriptor. Read with positioned reads only: many machines share it.
    pub file: Arc<File>,
    /// Octets.
    pub length: u64,
    /// Strong entity tag with its quotes (RFC 9110 section 8.8.3), made from device, inode, length
    /// and modification time.
    pub etag: String,
    /// Modification time in the form of `Last-Modified` (RFC 9110 section 8.8.2).
    pub last_modified: String,
}

/// One file on a web server, passed on to machines without being stored.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Last part of the address, for people.
    pub name: String,
    /// http or https.
    pub address: Uri,
    /// What its server said of it when it was chosen; nothing, if it was not asked.
    pub facts: Facts,
    /// Asks for it.
    pub fetcher: Fetcher,
}

/// What is served under one name.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Opened here.
    Local(Blob),
    /// Passed on.
    Remote(Box<Remote>),
}

impl Payload {
    /// For people.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Local(blob) => &blob.name,
            Self::Remote(remote) => &remote.name,
        }
    }

    /// Octets, if that is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Local(blob) => Some(blob.length),
            Self::Remote(remote) => remote.facts.length,
        }
    }
}

impl From<Remote> for Payload {
    fn from(remote: Remote) -> Self {
        Self::Remote(Box::new(remote))
    }
}

impl From<Blob> for Payload {
    fn from(blob: Blob) -> Self {
        Self::Local(blob)
    }
}

/// Kernel, initrds and command line that belong together.
#[derive(Clone, Debug, Default)]
pub struct Generation {
    /// Unguessable path element of this run's URLs: 32 hexadecimal digits.
    pub token: String,
    /// The kernel; without one, `script` says what is booted.
    pub kernel: Option<Payload>,
    /// The initrds, in the order in which the kernel gets them.
    pub initrds: Vec<Payload>,
    /// The kernel's command line, without `initrd=`: that part belongs to the boot loader.
    pub cmdline: Template,
    /// Extra files that command line or script name.
    pub others: Vec<Payload>,
    /// Shown on the machine's screen before it fetches the kernel.
    pub message: Option<String>,
    /// An iPXE script that is run as it stands, instead of one made from the above.
    pub script: Option<Template>,
}

/// A first-stage loader that is fetched by TFTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loader {
    /// x86 BIOS, iPXE over the card's own UNDI driver.
    Undionly,
    /// x86 BIOS, iPXE with its own drivers: for machines whose ROM is an iPXE that lacks features.
    IpxePxe,
    /// x64 UEFI, iPXE over the firmware's network driver.
    SnponlyX64,
    /// x64 UEFI, iPXE with its own drivers.
    IpxeX64,
}

impl Loader {
    /// Name in TFTP requests.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Undionly => "undionly.kpxe",
            Self::IpxePxe => "ipxe.pxe",
            Self::SnponlyX64 => "snponly.efi",
            Self::IpxeX64 => "ipxe.efi",
        }
    }
}

/// The loaders that were found on this system.
#[derive(Clone, Debug, Default)]
pub struct Loaders(pub std::collections::BTreeMap<Loader, Blob>);
