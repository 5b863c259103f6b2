//! The opening: what a lease changes in the firewall, as values, and the trait that applies them.
//!
//! Guarantees (the mechanism: ARCHITECTURE.md, "The opening"): an opening is one
//! transaction; a failed one leaves nothing; what `close` leaves is what `open` found.
//!
//! To read in this order: `table` (what our own table says), `host` (the host's firewall and our
//! rules in it), `kernel` (when what is done), `firewalld`, then the forms: `expr`, `nft`, `crate::attribute`.

mod expr;
mod firewalld;
pub mod host;
mod kernel;
pub mod nft;
mod table;

pub use kernel::Nftables;

use crate::{interface::InterfaceName, mark::LeaseMark, request, sockdiag::Protocol};

/// What is done on UDP 67.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dhcp {
    /// Nothing: the port is left alone.
    None,
    /// Boot information, and never an address (proxy DHCP).
    Proxy,
    /// The same beside another server of this host: broadcasts alone are heard, and shared with it.
    Shared,
    /// The same where that server keeps the port to itself: a raw socket hears, and the boot server's
    /// socket answers.
    Raw,
    /// Addresses, too: the output guard lets any `yiaddr` and DHCPNAK pass.
    Full,
}

/// What is opened for one lease. Immutable: authorised, opened and closed as one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The mark of the lease's sockets.
    pub mark: LeaseMark,
    /// Name of the interface, for the rule in the host's own chain.
    pub interface: InterfaceName,
    /// Index of the interface, for the rules in our table.
    pub index: u32,
    /// What is done on UDP 67.
    pub dhcp: Dhcp,
    /// UDP 4011 is served.
    pub boot_server: bool,
    /// UDP 69 is served.
    pub tftp: bool,
    /// TCP port of the boot images, if any.
    pub http: Option<u16>,
}

impl Opening {
    /// The ports that it opens to the network.
    pub fn ports(&self) -> impl Iterator<Item = (Protocol, u16)> + use<> {
        request::ports(self.dhcp != Dhcp::None, self.boot_server, self.tftp, self.http)
    }
}

/// A firewall that the helper knows how to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `table inet nixos-fw`, chain `input-allow`.
    NixosNftables,
    /// `table ip filter`, chain `nixos-fw` (iptables, nf_tables variant).
    NixosIptables,
    /// The chain that the site's configuration names.
    NamedChain,
    /// firewalld's zone of the interface, by rules with a time-out.
    Firewalld,
    /// No input chain that drops.
    None,
}

/// Why the firewall could not be changed. Nothing of the attempt is left behind after a sweep.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// A layout the helper does not know; the text says what was found and what to configure.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel refused, or its answer was not one that netlink allows here.
    #[error("the kernel did not {step}: {source}")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// firewalld did not do what it was asked.
    #[error(
        "firewalld did not {0}: `journalctl -u firewalld` may say why; polkit has to let the user \
         portcullis configure it, as the rules that come with the helper do"
    )]
    Firewalld(&'static str),
    /// The table of another running helper is there.
    #[error(
        "another helper holds the table inet portcullis: the installed one, or one that was started \
         for one run; it lets go when its last lease ends"
    )]
    AnotherHelper,
}

/// Whether what was opened still stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The rules of this lease are all there.
    Whole,
    /// The host's chain is there (not empty), and one of our rules is gone: an administrator removed it.
    Revoked,
    /// The host's chain is gone or empty: a reload under way, or the firewall was stopped. Or what
    /// was asked of firewalld is to be asked again, before its time is over.
    ChainGone,
}

/// Opens and closes. One implementation talks to the kernel; tests have one that fails on demand.
pub trait Firewall {
    /// The back end of this host, found anew on every call.
    fn backend(&mut self) -> Result<Backend, FirewallError>;
    /// Base chains that drop by policy and that an opening does not open, in words; found anew on every
    /// call.
    fn other_drops(&mut self) -> Result<Vec<String>, FirewallError>;
    /// Opens in one transaction. On error nothing is left, unless the kernel's word on the transaction
    /// was lost: then the next [`Self::sweep`] removes it.
    fn open(&mut self, opening: &Opening) -> Result<Backend, FirewallError>;
    /// Closes the ports, then removes the rules of the lease everywhere in one transaction. Closing
    /// what is not open succeeds. After the last lease our table goes too, unless some process
    /// still holds one of its sockets: then it stays, so that they stay deaf and mute, until the
    /// next [`Self::sweep`] that finds them gone. After an error the ports are closed all the
    /// same, and the next `sweep` removes what is left.
    fn close(&mut self, opening: &Opening) -> Result<(), FirewallError>;
    /// Whether the rules of an opening still stand.
    fn standing(&mut self, opening: &Opening) -> Result<Standing, FirewallError>;
    /// Puts the rules back in the host's chain after a reload, only when that is safe
    /// (iptables: INPUT jumps to nixos-fw again). `false`: not yet safe, ask again.
    fn restore(&mut self, opening: &Opening) -> Result<bool, FirewallError>;
    /// Removes what no open lease needs: rules that a helper that died has left, and our table.
    /// To be called at start, and again and again while no lease is open. Returns the number of
    /// rules removed.
    fn sweep(&mut self) -> Result<usize, FirewallError>;
}
