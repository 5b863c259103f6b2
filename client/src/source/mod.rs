//! What is served: from a machine to what it boots ([`Source`]). What the user named is opened by
//! [`open`], once; recipes, an API and mirrors have files of their own.
//!
//! Trusts the user's own files; never writes them.

pub mod api;
pub mod cache;
mod directory;
mod efi;
mod file;
pub mod fresh;
pub mod kernel;
pub mod mirror;
pub mod netboot_ipxe;
mod open;
mod opener;
pub mod quick;
pub mod url;

use std::{fmt::Write as _, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt as _};

pub use self::{
    efi::{add_efi_image, efi_program},
    file::{OpenError, open_blob, read_head, text_blob},
    kernel::{HEAD, pe_machine},
    open::{Order, check_script, complete, open, open_script},
    opener::small_blob,
};
use crate::{
    event::Firmware,
    exit::{Code, Failure},
    image::Generation,
    mac::MacAddr,
};

/// Decides what each machine boots.
pub trait Source: Send + Sync {
    /// First path element of every machine's URLs.
    fn token(&self) -> &str;

    /// What `mac` says of itself, before [`Self::generation`] is asked about its DISCOVER: read out of
    /// it only for who wants to know.
    fn meet(&self, mac: MacAddr, traits: &dyn Fn() -> Traits) {
        let _ = (mac, traits);
    }

    /// What `mac` boots, now that it takes this step. May take as long as a network's answer does.
    fn generation(
        &self,
        mac: MacAddr,
        step: Step,
    ) -> BoxFuture<'_, Result<Arc<Generation>, Refusal>>;

    /// What `mac` boots, where that is known without asking anybody.
    fn known(&self, mac: MacAddr) -> Option<Arc<Generation>>;
}

/// What a machine says of itself when it asks for network boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traits {
    /// DHCP option 93.
    pub arch: u16,
    /// What asks.
    pub firmware: Firmware,
    /// DHCP option 97 in the usual form, as SMBIOS has it.
    pub uuid: Option<String>,
}

/// How far a machine is that [`Source::generation`] is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It asks for network boot.
    Discover,
    /// It fetches its script, or the EFI program that needs none.
    Script,
    /// It fetches a file that the script named.
    File,
}

/// Why there is nothing for a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// The same for every machine.
#[derive(Clone, Debug)]
pub struct Same(pub Arc<Generation>);

impl Source for Same {
    fn token(&self) -> &str {
        &self.0.token
    }

    fn generation(&self, _: MacAddr, _: Step) -> BoxFuture<'_, Result<Arc<Generation>, Refusal>> {
        std::future::ready(Ok(Arc::clone(&self.0))).boxed()
    }

    fn known(&self, _: MacAddr) -> Option<Arc<Generation>> {
        Some(Arc::clone(&self.0))
    }
}

/// 128 random bits as 32 hexadecimal digits.
pub(crate) fn token() -> Result<String, Failure> {
    let mut octets = [0; 16];
    let got = rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty());
    // Up to 256 octets come whole once the pool is seeded (getrandom(2)).
    if got != Ok(octets.len()) {
        return Err(Failure::new(Code::Internal, "the kernel gave no random numbers"));
    }
    Ok(octets.iter().fold(String::with_capacity(32), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    }))
}
