//! Load: many machines in one process, fast enough not to be what is measured.
//!
//! Guarantees: an exchange that is reported as whole was whole, and what came is counted, never
//! estimated. The generators are held against the ordinary clients by `tests/tests/generators.rs`.
//! Each function works in the network namespace of its thread ([`crate::netns::Netns::run`]).

pub mod dhcp;
pub mod http;
pub mod tftp;

use std::time::Duration;

/// What one machine has fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Octets of the file.
    pub octets: u64,
    /// From the request to the last octet.
    pub time: Duration,
}

/// Where a download stops although the file goes on.
#[derive(Clone, Copy, Debug)]
pub struct Enough {
    /// After so many octets.
    pub octets: u64,
    /// After so long.
    pub time: Duration,
}

impl Enough {
    /// Only the end of the file.
    pub const ALL: Self = Self { octets: u64::MAX, time: Duration::from_secs(600) };
}
