//! Proxy DHCP: which machine is told to load what. Packet -> `query` -> `decide` -> reply.
//!
//! Guarantees: ordinary DHCP clients never get an answer; a reply gives no address; what is sent
//! passes the helper's output guard. `query`, `table` and `decide` are pure; `serve` moves packets.

mod decide;
mod query;
mod serve;
pub mod table;
#[cfg(test)]
mod tests;

pub use decide::{Count, Decision, Ignore, Memory, Policy, UefiOffer, decide, fits, screen};
pub use query::{BootItem, Client, Ipxe, NotBootClient, Port, Query};
pub use serve::{Note, What, serve_boot_server, serve_dhcp};
