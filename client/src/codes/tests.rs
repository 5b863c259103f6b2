use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

fn codes(asked: &str) -> Vec<&'static str> {
    find(asked).into_iter().map(|entry| entry.code.as_str()).collect()
}

fn raw() -> Value {
    serde_json::from_str(include_str!("../../data/codes.json")).unwrap()
}

#[test]
fn each_entry_has_a_meaning_reasons_a_remedy_and_a_source_and_none_is_there_twice() {
    let data = parse().unwrap();
    let mut known = BTreeSet::new();
    for entry in &data.codes {
        let code = &entry.code;
        assert!(entry.meaning.ends_with('.') && entry.meaning.len() > 10, "{code}");
        assert!(!entry.text.is_empty(), "{code}");
        assert!(!entry.reasons.is_empty() && !entry.sources.is_empty(), "{code}");
        assert!(entry.reasons.iter().all(|key| data.reasons.contains_key(key)), "{code}");
        assert!(entry.sources.iter().all(|key| data.sources.contains_key(key)), "{code}");
        let distinct: BTreeSet<_> = entry.reasons.iter().collect();
        assert_eq!(distinct.len(), entry.reasons.len(), "{code}");
        assert!(!entry.by.is_empty(), "{code}");
        for by in &entry.by {
            assert!(known.insert((code.clone(), *by)), "{code} is there twice");
        }
    }
    for (key, reason) in &data.reasons {
        assert!(reason.reason.len() > 10 && reason.reason.ends_with(['.', ')']), "{key}");
        assert!(reason.remedy.len() > 10 && reason.remedy.ends_with(['.', ')']), "{key}");
    }
    for speaker in Speaker::ALL {
        assert!(data.codes.iter().any(|entry| entry.by.contains(&speaker)), "{speaker:?}");
    }
}

#[test]
fn no_text_of_the_data_is_unused() {
    let data = parse().unwrap();
    let raw = raw();
    let stops = raw["stops"].as_object().unwrap().values();
    let used: BTreeSet<_> = stops
        .chain(raw["codes"].as_array().unwrap())
        .flat_map(|one| one["reasons"].as_array().unwrap())
        .map(|key| key.as_str().unwrap())
        .collect();
    let there: BTreeSet<_> = data.reasons.keys().map(String::as_str).collect();
    assert_eq!(used, there);
    let used: BTreeSet<_> = data.codes.iter().flat_map(|entry| &entry.sources).collect();
    assert_eq!(used, data.sources.keys().collect());
}

#[test]
fn each_stop_has_codes_of_entries_or_says_why_it_has_none() {
    let raw = raw();
    for (name, stop) in raw["stops"].as_object().unwrap() {
        let stop: Stop = serde_json::from_value(stop.clone()).unwrap();
        assert!(!stop.step.is_empty() && !stop.reasons.is_empty(), "{name}");
        assert!(stop.screen.is_empty() != stop._silent.is_empty(), "{name}: codes, or why none");
        for (speaker, codes) in &stop.screen {
            assert!(!codes.is_empty(), "{name}");
            for code in codes {
                let entry = entry(code).unwrap_or_else(|| panic!("{name}: no entry {code}"));
                assert_eq!(codes_named(entry), [code.clone()], "{name}: {code}");
                // What it loaded last speaks, too: iPXE, or the firmware of what it refused.
                let fits = entry.by.contains(speaker)
                    || entry.by.contains(&Speaker::Ipxe)
                    || *speaker != Speaker::Bios && entry.by.contains(&Speaker::Status);
                assert!(fits, "{name}: {code} is not shown by {speaker:?}");
            }
        }
    }
}

/// The codes that are found by an entry's own name, among those that the same one shows.
fn codes_named(entry: &Entry) -> Vec<String> {
    let same = |other: &&&Entry| other.by == entry.by;
    find(&entry.code).iter().filter(same).map(|entry| entry.code.clone()).collect()
}

#[test]
fn each_entry_is_found_by_its_name() {
    for entry in &data().codes {
        assert!(codes(&entry.code).contains(&entry.code.as_str()), "{}", entry.code);
        assert!(codes(&entry.code.to_uppercase()).contains(&entry.code.as_str()), "{}", entry.code);
    }
}

#[test]
fn codes_are_found_in_every_spelling() {
    for asked in [
        "PXE-E53",
        "pxe-e53",
        "E53",
        "e53",
        "pxe e53",
        " PXE-E53: No boot filename received. ",
        "no boot filename received",
    ] {
        assert_eq!(codes(asked), ["PXE-E53"], "{asked}");
    }
    // The ROM of a BIOS machine and UEFI firmware mean two things by it.
    assert_eq!(codes("E21"), ["PXE-E21", "PXE-E21"]);
    for asked in [
        "Could not retrieve NBP file size",
        "  Error: Could not retrieve NBP file size from HTTP server.",
    ] {
        assert_eq!(codes(asked), ["could-not-retrieve-nbp-file-size"], "{asked}");
    }
    let line = "BdsDxe: failed to load Boot0001 \"UEFI PXEv4\" from PciRoot(0x0): Access Denied";
    for asked in ["Access Denied", "access-denied", line] {
        assert_eq!(codes(asked), ["access-denied"], "{asked}");
    }
    assert_eq!(codes("File not found"), ["TFTP-1"]);
    for asked in ["", "e", "PXE-E54", "E5", "-", "xyzzy", "ipxe", "ipxe.org/", "é"] {
        assert_eq!(codes(asked), [""; 0], "{asked}");
    }
}

#[test]
fn a_number_of_ipxe_is_explained_by_the_entry_that_shares_most_of_its_digits() {
    for (asked, code) in [
        ("https://ipxe.org/4c0a6092", "ipxe-4c0a6"),
        ("http://ipxe.org/err/4c0a60", "ipxe-4c0a6"),
        ("Connection timed out (https://ipxe.org/4c0a6035)", "ipxe-4c0a6"),
        ("0x4C0A6092", "ipxe-4c0a6"),
        // Timed out, in a file of iPXE's that has no entry.
        ("4c3b6003", "ipxe-4c"),
        ("3d1c6092", "ipxe-3d"),
        ("040ee119", "ipxe-040ee1"),
        ("2d0c618e", "ipxe-2d0c6"),
        ("7f04819a", "ipxe-7f04819a"),
        ("7f04818e", "ipxe-7f0481"),
        ("38086193", "ipxe-38086"),
        ("2e008081", "ipxe-2e008"),
    ] {
        assert_eq!(codes(asked), [code], "{asked}");
    }
    assert_eq!(codes("ipxe.org/10000000"), [""; 0]);
    for asked in ["4c0a6", "4c0a60923", "4c0a609g", "ipxe.org/howto", "€€€€€€"] {
        assert_eq!(ipxe_number(asked), None, "{asked}");
    }
}

#[test]
fn what_is_unknown_has_near_ones() {
    let near = |asked: &str| -> Vec<_> {
        nearest(asked).into_iter().map(|entry| entry.code.as_str()).collect()
    };
    for asked in ["PXE-E54", "e54"] {
        assert_eq!(near(asked)[..4], ["PXE-E51", "PXE-E52", "PXE-E53", "PXE-E55"], "{asked}");
    }
    assert_eq!(near("Acess Denied")[0], "access-denied");
    assert_eq!(near("Sever response timeout")[0], "server-response-timeout");
    assert_eq!(near("").len(), NEAREST);
    assert_eq!(near(&"é".repeat(100_000)).len(), NEAREST);
    assert_eq!(distance("kitten", "sitting"), 3);
    assert_eq!(distance("", "abc"), 3);
    assert_eq!(distance("abc", ""), 3);
}
