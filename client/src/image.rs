//! What is served: files that were opened once and belong together.
//!
//! Guarantees: a [`Generation`] holds open descriptors, so that a build that is replaced or
//! collected meanwhile does not mix with it; every length was read from the descriptor itself.

use std::{fs::File, sync::Arc};

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

/// Kernel, initrds and command line that belong together.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Unguessable path element of this run's URLs: 32 hexadecimal digits.
    pub token: String,
    /// The kernel.
    pub kernel: Blob,
    /// The initrds, in the order in which the kernel gets them.
    pub initrds: Vec<Blob>,
    /// The kernel's command line, without `initrd=`: that part belongs to the boot loader.
    pub cmdline: String,
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
