//! libFuzzer's program for the target that `FUZZ_TARGET` names. Made and run by tests/scripts/fuzz.

#![no_main]

use std::sync::LazyLock;

use portcullis_fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("FUZZ_TARGET: no target {name:?}"))
});

libfuzzer_sys::fuzz_target!(|octets: &[u8]| (TARGET.holds)(octets));
