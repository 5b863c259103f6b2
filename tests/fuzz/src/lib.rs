//! What reads octets from outside, each with the property that has to hold for any octets.
//!
//! A property is a function that panics when it does not hold; that nothing else panics, overflows
//! or runs on is part of each. libFuzzer calls them (tests/scripts/fuzz), guided by the branches
//! that an input reaches; the corpora are also tried by an ordinary test, so that they never rot.
//! `corpus/<target>/` holds packets of real firmware (tests/examples/capture.rs), answers of a real
//! kernel, literal beginnings, and what was found.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a property that does not hold panics")]

mod helper;
mod image;
mod text;
mod wire;

/// One thing that is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Panics when the property does not hold for these octets.
    pub holds: fn(&[u8]),
}

/// All of them. The property is written at each function.
pub const TARGETS: &[Target] = &[
    Target { name: "request", holds: helper::request },
    Target { name: "netlink", holds: helper::netlink },
    Target { name: "nftables", holds: helper::nftables },
    Target { name: "config", holds: helper::config },
    Target { name: "dhcp", holds: wire::dhcp },
    Target { name: "tftp", holds: wire::tftp },
    Target { name: "transfer", holds: wire::transfer },
    Target { name: "http", holds: wire::http },
    Target { name: "uki", holds: image::uki },
    Target { name: "netboot-ipxe", holds: text::netboot_ipxe },
    Target { name: "template", holds: text::template },
    Target { name: "script", holds: text::script },
    Target { name: "api", holds: text::api },
    Target { name: "terminal", holds: text::terminal },
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn corpora() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
    }

    /// P11: what the fuzzers were given and what they have found, once more.
    #[test]
    fn p11_every_property_holds_for_its_corpus() {
        for target in TARGETS {
            let mut inputs = 0;
            for entry in fs::read_dir(corpora().join(target.name)).unwrap() {
                let path = entry.unwrap().path();
                println!("{}", path.display());
                (target.holds)(&fs::read(&path).unwrap());
                inputs += 1;
            }
            assert!(inputs >= 3, "{}: {inputs} inputs", target.name);
        }
    }

    /// P11: every corpus cut short at every place, and with every octet changed in turn.
    #[test]
    fn p11_every_property_holds_for_what_is_near_its_corpus() {
        for target in TARGETS {
            for entry in fs::read_dir(corpora().join(target.name)).unwrap() {
                let whole = fs::read(entry.unwrap().path()).unwrap();
                // A prime step: over the files all places come up.
                let step = whole.len() / 64 + 1;
                for at in (0..whole.len()).step_by(step) {
                    (target.holds)(&whole[..at]);
                    let mut changed = whole.clone();
                    changed[at] ^= 1 << (at % 8);
                    (target.holds)(&changed);
                }
            }
        }
    }

    #[test]
    fn every_corpus_has_its_target() {
        let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        let corpora = fs::read_dir(corpora()).unwrap();
        let found: BTreeSet<_> =
            corpora.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(found, names);
    }
}
