//! What is served: files that were opened once and belong together.
//!
//! Guarantees: a [`Generation`] holds open descriptors, so that a build that is replaced or
//! collected meanwhile does not mix with it; every length was read from the descriptor itself.

use crate::read::Content;

/// One open file, or several that read as one.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Last part of the path, for people.
    pub name: String,
    /// The octets. Read with positioned reads only: many machines share them.
    pub content: Content,
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
    /// What UEFI machines can load without iPXE.
    pub efi: Result<EfiImage, NoEfiImage>,
}

/// An EFI program that brings everything along: what UEFI HTTP boot loads.
#[derive(Clone, Debug)]
pub struct EfiImage {
    /// The program.
    pub blob: Blob,
    /// Machine type of its PE/COFF header.
    pub machine: u16,
    /// It is what the user named, so that machines that cannot run it get nothing. If not, it was
    /// put together from kernel, initrds and command line.
    pub named: bool,
}

/// Why there is no [`EfiImage`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEfiImage {
    /// There is none for this kernel's machine type on the system.
    #[error(
        "systemd's boot stub {0} was not found (Debian, Ubuntu: apt install systemd-boot-efi; \
         NixOS has it beside its systemd; else --stub FILE)"
    )]
    NoStub(&'static str),
    /// The one that was found will not do.
    #[error("{0}")]
    BadStub(String),
    /// Not a PE/COFF image of a known machine type.
    #[error("the kernel is not an EFI program (it needs CONFIG_EFI_STUB)")]
    Kernel,
    /// A PE/COFF image counts its octets with 32 bits.
    #[error("kernel and initrds together are larger than the 4 GiB of an EFI program")]
    TooLarge,
}

/// A program that firmware fetches by TFTP and starts.
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
    /// No loader but the whole image: the generation's [`EfiImage`].
    Image,
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
            Self::Image => "boot.efi",
        }
    }
}

/// The loaders that were found on this system.
#[derive(Clone, Debug, Default)]
pub struct Loaders(pub std::collections::BTreeMap<Loader, Blob>);
