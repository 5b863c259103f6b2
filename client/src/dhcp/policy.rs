//! What is served on one interface, to whom, and what is remembered of a machine: all that a decision
//! goes by beside the question itself. Pure.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    image::{Cpu, Loader, menu_folder},
    mac::MacAddr,
};

/// How UEFI machines are told what to load (`--uefi-offer`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UefiOffer {
    /// As the table says for the architecture.
    #[default]
    Auto,
    /// Everything on 67: option 43 = 06 01 08 FF, and the file.
    Complete,
    /// No option 43, so that the machine asks 4011. Some firmware ignores the complete form.
    BootServer,
}

/// How many machines are to be handed over, and how many were: one for all interfaces of a run.
#[derive(Debug, Default)]
pub struct Count {
    limit: u64,
    handed_over: AtomicU64,
}

impl Count {
    /// None was handed over yet.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, ..Self::default() })
    }

    /// One more was handed over.
    pub fn add(&self) {
        // Wraps after 2^64 machines.
        self.handed_over.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether those that come now are left alone.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.handed_over.load(Ordering::Relaxed) >= self.limit
    }
}

/// What is served, to whom, and where on one interface. Fixed for a run, but for the count.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `--for-mac`: only these machines; empty means all.
    pub for_mac: BTreeSet<MacAddr>,
    /// `--once`: a machine that has booted boots from its own disk afterwards.
    pub once: bool,
    /// `--count`: so many machines are handed over; those that come later are left alone.
    pub count: Option<Arc<Count>>,
    /// How many initrds make a machine complete.
    pub initrds: usize,
    /// The loaders that can be served by TFTP.
    pub loaders: BTreeSet<Loader>,
    /// Our address on the segment.
    pub address: Ipv4Addr,
    /// TCP port of the script and the images.
    pub http_port: u16,
    /// First path element of the URLs.
    pub token: String,
    /// Form of offers to UEFI machines.
    pub uefi_offer: UefiOffer,
    /// Whether 4011 is served. If not, [`UefiOffer::BootServer`] counts as `Complete`.
    pub boot_server: bool,
    /// `--chain`: UEFI machines of this kind are given this file, whose maker Secure Boot knows.
    pub chain: Option<(Cpu, String)>,
    /// Secure Boot may take the EFI program that is the same for every machine.
    pub signed: bool,
    /// `--dhcp-server`: addresses are handed out, too.
    pub dhcp_server: bool,
}

impl Policy {
    /// Whether this machine is served at all.
    #[must_use]
    pub fn admits(&self, mac: MacAddr) -> bool {
        self.for_mac.is_empty() || self.for_mac.contains(&mac)
    }

    /// URL of a machine's script.
    #[must_use]
    pub fn script_url(&self, mac: MacAddr) -> String {
        self.url(mac, "boot.ipxe")
    }

    /// URL of the EFI program. With an address literal, since firmware may have no DNS server: 88
    /// octets at most.
    #[must_use]
    pub fn efi_url(&self, mac: MacAddr) -> String {
        self.url(mac, &Loader::Image.file_name())
    }

    fn url(&self, mac: MacAddr, file: &str) -> String {
        let Self { address, http_port, token, .. } = self;
        format!("http://{address}:{http_port}/{token}/{}/{file}", mac.hyphenated())
    }

    pub(super) fn loader_name(mac: MacAddr, loader: Loader) -> String {
        format!("{}/{}", mac.hyphenated(), loader.file_name())
    }

    /// The program of a menu's item.
    pub(super) fn item_name(mac: MacAddr, number: usize) -> String {
        let program = Loader::Image.file_name();
        format!("{}/{}/{program}", mac.hyphenated(), menu_folder(number))
    }
}

/// What is remembered of a machine and bears on the decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// It has booted, or enough machines have: it is left to boot from its disk.
    pub local_boot: bool,
    /// It was handed over in this run, so that it is ours to send on to its disk; others than those
    /// are nobody's but other servers'.
    pub booted: bool,
    /// An iPXE on it that cannot run the script was given a loader, and loaded it: whatever comes
    /// now gets the script, so that there is no loop.
    pub chained: bool,
    /// So many loaders were loaded and nothing followed: the next one in the row is tried.
    pub failed_loaders: usize,
}

#[cfg(test)]
impl Policy {
    /// Without any option, and with nothing to load.
    pub(crate) fn plain() -> Self {
        Self {
            for_mac: BTreeSet::new(),
            once: false,
            count: None,
            initrds: 0,
            loaders: BTreeSet::new(),
            address: Ipv4Addr::LOCALHOST,
            http_port: 1,
            token: String::new(),
            uefi_offer: UefiOffer::Auto,
            boot_server: true,
            chain: None,
            signed: true,
            dhcp_server: false,
        }
    }
}
