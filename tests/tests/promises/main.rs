//! What the pages promise, held against the sources: which test proves which promise on which firewall
//! (README's table and docs/promises.md are made here), docs/faults.md, the lines that the helper's audit
//! rests on, and the links between pages. After a change: `UPDATE=1 cargo test -p portcullis-tests --test
//! promises`.

// A test speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

mod audit;
mod faults;
mod links;
mod list;
mod pages;
mod proofs;

/// What makes the pages right.
const MAKE: &str = "cargo test -p portcullis-tests --test promises";
