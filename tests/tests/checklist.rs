//! The wire checklist: docs/wire.md has a row for every number, and what a row names is there. And the
//! kinds of machines: docs/architectures.md says of each whether it was booted, and by which test.

use std::{collections::BTreeSet, path::PathBuf};

use portcullis_lab::repository::{files, read, workspace};

/// Items of the checklist.
const ITEMS: u32 = 60;

/// The names of all test functions.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    for file in files(workspace()).into_iter().filter(is_source) {
        let text = std::fs::read_to_string(&file).expect("a source is text");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        names.extend(lines.windows(2).filter_map(|pair| {
            let (name, _) =
                pair[1].trim_start_matches("async ").strip_prefix("fn ")?.split_once('(')?;
            // Or it is in the list of a macro that makes a test of it.
            let is_test = pair[0] == "#[test]"
                || pair[0].starts_with("#[tokio::test")
                || lines.contains(&format!("{name},").as_str());
            is_test.then(|| name.to_owned())
        }));
    }
    names
}

/// Names in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the first table as number, text.
fn rows() -> Vec<(u32, String)> {
    read("docs/wire.md")
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| {
            let (number, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
            Some((number.parse().ok()?, rest.to_owned()))
        })
        .collect()
}

#[test]
fn every_item_of_the_wire_checklist_has_a_test_or_a_reason() {
    let tests = tests();
    let rows = rows();
    let numbers: Vec<u32> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=ITEMS).collect::<Vec<_>>(), "one row for each item, in order");
    for (number, row) in &rows {
        let named: Vec<&str> =
            quoted(row).filter(|word| word.starts_with("wire_") || is_promise(word)).collect();
        for name in &named {
            assert!(tests.contains(*name), "item {number}: there is no test {name}");
        }
        assert!(
            !named.is_empty() || row.contains("Not here: "),
            "item {number} names no test and gives no reason"
        );
    }
}

/// `p2_client_killed`.
fn is_promise(word: &str) -> bool {
    word.strip_prefix('p').and_then(|rest| rest.split_once('_')).is_some_and(|(number, _)| {
        !number.is_empty() && number.bytes().all(|octet| octet.is_ascii_digit())
    })
}

/// What is said of a kind of machine.
fn states() -> Vec<(String, String)> {
    read("docs/architectures.md")
        .lines()
        .skip_while(|line| !line.starts_with("| code |"))
        .skip(2)
        .take_while(|line| line.starts_with("| "))
        .filter_map(|line| {
            let (kind, state) = line.trim_end_matches(" |").rsplit_once(" | ")?;
            Some((kind.to_owned(), state.to_owned()))
        })
        .collect()
}

#[test]
fn every_kind_of_machine_that_was_booted_or_replayed_names_its_test() {
    let tests = tests();
    let boots = read("tests/tests/boot.rs");
    let states = states();
    assert!(states.len() > 10, "{states:?}");
    for (kind, state) in &states {
        for part in state.split("; ") {
            let named: Vec<&str> = quoted(part).collect();
            for name in &named {
                assert!(tests.contains(*name), "{kind}: there is no test {name}");
            }
            let booted = part.starts_with("booted");
            let proven = booted || part.starts_with("replayed");
            assert_eq!(proven, !named.is_empty(), "{kind}: {part}");
            assert!(proven || ["untested", "left alone"].contains(&part), "{kind}: {part}");
            let here = |name: &&str| boots.contains(&format!("fn {name}("));
            assert!(!booted || named.iter().all(here), "{kind}: {part} is no boot");
        }
    }
}
