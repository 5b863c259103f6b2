//! The privileged helper: request -> authority -> lease -> sockets + firewall. Where to begin
//! reading: `README.md` beside this folder.
//!
//! Guarantees: nothing is bound or opened before polkit's yes for this caller and this request (or, in a
//! helper for one run, before sudo, pkexec or run0 has started it for this caller), and everything is
//! bound to the life of the sockets and of this process. Trusts: the kernel, the bus (for the names of
//! its peers) and polkit. Never: parses DHCP, TFTP or HTTP, opens a path that a
//! client names, logs text that a client chose, starts a program.

pub mod attribute;
pub mod authority;
pub mod caller;
pub mod config;
pub mod facts;
pub mod firewall;
pub mod guard;
pub mod interface;
mod journal;
pub mod kernel;
pub mod lease;
pub mod limits;
pub mod log;
pub mod mark;
pub mod netlink;
pub mod notify;
pub mod privileges;
pub mod rate;
pub mod request;
pub mod rtnetlink;
pub mod run;
pub mod service;
pub mod sockdiag;
pub mod sockets;
mod sockopt;
pub mod state;
mod upkeep;
mod watch;
