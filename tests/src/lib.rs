//! The laboratory: namespaces, firewalls, rivals and machines, all real, all gone when a test ends.
//!
//! Guarantees: nothing is made in the host's own network namespace, and nothing that was made
//! outlives the process that made it, however that process ends. Trusts: root, the kernel and the
//! ordinary tools (ip, nft, iptables, dnsmasq, QEMU). Never: pretends; without root or a tool a test
//! says that it was skipped.

pub mod boot_client;
pub mod browser;
pub mod download;
pub mod fault;
pub mod host;
pub mod lan;
pub mod load;
pub mod machine;
pub mod middle;
pub mod netns;
pub mod nixos;
pub mod nspawn;
pub mod plain_rom;
pub mod probe;
pub mod process;
pub mod pty;
pub mod repository;
pub mod require;
pub mod rival;
pub mod scene;
pub mod screen;
pub mod snapshot;
pub mod stage;
pub mod times;
pub mod trace;

pub use require::{Needs, missing};

/// Why the laboratory could not be set up, in words. `Debug` prints the words alone, so that
/// `unwrap` in a test is readable.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LabError(pub String);

impl std::fmt::Debug for LabError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Result of everything that sets up the laboratory.
pub type Result<T> = std::result::Result<T, LabError>;

impl LabError {
    /// `what` failed with `error`.
    pub fn of(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}
