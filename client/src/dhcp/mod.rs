//! Proxy DHCP: which machine is told to load what. Packet -> `query` -> `decide` -> reply. With
//! `--dhcp-server` also addresses: packet -> `server` -> reply, with what `decide` says in it.
//!
//! Guarantees: without `--dhcp-server` ordinary DHCP clients never get an answer, and a reply gives
//! no address; what is sent passes the helper's output guard. `ask`, `query`, `table`, `policy`, `choice`, `decide`, `pool`,
//! `server` and `offers` are pure; `serve` and `probe` move packets.

mod ask;
mod choice;
mod decide;
pub mod offers;
mod policy;
pub mod pool;
pub mod probe;
mod query;
mod serve;
pub mod server;
pub mod table;
#[cfg(test)]
mod tests;

pub use ask::Ask;
pub use decide::{Decision, Ignore, decide, fits, leave, screen};
pub use policy::{Count, Memory, Policy, UefiOffer};
pub use query::{BootItem, Client, Ipxe, NotBootClient, Port, Query};
pub use serve::{Authority, Note, What, serve_boot_server, serve_dhcp};
