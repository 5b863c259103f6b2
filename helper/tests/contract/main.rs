//! The contract over a private bus: the real helper, the real bus policy, a stand-in for polkit
//! that takes nothing unexpected, and a kernel and firewall that fail on demand. No privileges.
//! Tests whose names begin with a promise (P1 ...) show that promise.

mod authority;
mod ending;
mod lab;
mod opening;
mod shape;
