//! The contract over a private bus: the real helper, the real bus policy, a stand-in for polkit
//! that takes nothing unexpected, and a kernel and firewall that fail on demand. No privileges.
//! Tests whose names begin with a promise (P1 ...) show that promise.
//!
//! `process`, `real` and `sockets` use the real kernel in network namespaces of their own, and need root;
//! without it they say SKIPPED.

// A test that panics has done its work.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used
)]

mod authority;
mod config;
mod crowd;
mod ending;
mod hostile;
mod lab;
mod model;
mod netns;
mod once;
mod opening;
mod process;
mod real;
mod shape;
mod sockets;
