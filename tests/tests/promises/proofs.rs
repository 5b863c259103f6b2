//! The tests that are named as proofs.
//!
//! Guarantees: each is in the sources, is a test, is not ignored, is run by `tests/scripts/levels`, and runs
//! behind the firewall of its column.

use std::collections::BTreeMap;

use portcullis_lab::repository::read;

use super::list::{KILL, PROMISES, Proofs};

/// A flavour's name in the sources, and how else a test shows that it runs behind it.
const NFTABLES: (&str, &[&str]) =
    ("nftables", &["Flavour::Nftables", "NIXOS", "owned_nixos_table"]);
const IPTABLES: (&str, &[&str]) = ("iptables", &["Flavour::Iptables"]);
const NO_FIREWALL: (&str, &[&str]) = ("", &["(None)", "two_wires()", "machine_with_user()"]);

/// The tests of a source file that are run, each with its body. Those that `both_flavours!` makes
/// have the flavour before their names, as in the output of a run.
pub fn tests(source: &str) -> BTreeMap<String, String> {
    let body = |name: &str| {
        let start = source.find(&format!("fn {name}("))?;
        let rest = &source[start..];
        // Ends at the next closing brace of the function's own depth.
        let line = source[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let indent: String = source[line..].chars().take_while(|c| *c == ' ').collect();
        let end = rest.find(&format!("\n{indent}}}\n")).unwrap_or(rest.len());
        Some(rest[..end].to_owned())
    };
    let mut found = BTreeMap::new();
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line.starts_with("both_flavours!(") {
            for name in lines.by_ref().take_while(|line| *line != ");") {
                let name = name.trim_end_matches(',');
                for (flavour, _) in [NFTABLES, IPTABLES] {
                    found.extend(body(name).map(|body| (format!("{flavour}::{name}"), body)));
                }
            }
        } else if line == "#[test]" || line.starts_with("#[tokio::test") {
            let mut ignored = false;
            let name = lines.by_ref().find_map(|line| {
                ignored |= line.starts_with("#[ignore");
                let name = line.trim_start_matches("async ").strip_prefix("fn ")?;
                Some(name.split('(').next()?.to_owned())
            });
            let name = name.filter(|_| !ignored);
            found.extend(name.and_then(|name| Some((name.clone(), body(&name)?))));
        }
    }
    found
}

/// Why a file's tests are not run by `make test`, if so.
pub fn left_out(path: &str) -> Option<String> {
    let levels = read("tests/scripts/levels");
    if let Some(name) = path.strip_prefix("helper/tests/contract/") {
        let module = format!("mod {};", name.trim_end_matches(".rs"));
        let main = read("helper/tests/contract/main.rs");
        return (!main.contains(&module)).then(|| format!("{path} is in no module"));
    }
    // Of the test program: `firewall/named.rs` is a part of `firewall.rs`.
    let name = path.strip_prefix("tests/tests/")?.split(['/', '.']).next()?;
    // Level 4 runs all but those that other levels name.
    let others = levels.lines().find(|line| line.contains(") ;; *) echo")).unwrap();
    let elsewhere = others.split(['(', ')', '|', ' ']).any(|word| word == name);
    let named = levels.lines().any(|line| {
        line.contains(&format!("--test {name}"))
            || line.trim_start().starts_with("laboratory ")
                && line.split_whitespace().any(|word| word == name)
    });
    (elsewhere && !named).then(|| format!("{path} is on no level"))
}

/// What is wrong with one column of a promise.
fn faults(number: usize, proofs: Proofs, column: Option<(&str, &[&str])>) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, names) in proofs {
        let tests = tests(&read(path));
        faults.extend(left_out(path));
        for name in *names {
            let place = format!("P{number}: {path}: {name}");
            let plain = tests.get(*name);
            let flavour = column.map_or("", |(flavour, _)| flavour);
            let of_both = tests.get(&format!("{flavour}::{name}"));
            match (plain, of_both, column) {
                (None, None, _) => faults.push(format!("{place} is no test that is run")),
                (Some(body), _, Some((_, signs)))
                    if !signs.iter().any(|sign| body.contains(sign)) =>
                {
                    faults.push(format!("{place} has none of {signs:?}: wrong column?"));
                }
                _ => {}
            }
        }
    }
    faults
}

#[test]
fn every_test_that_proves_a_promise_is_there_and_is_run() {
    let mut wrong = Vec::new();
    for (number, promise) in (1..).zip(&PROMISES) {
        wrong.extend(faults(number, promise.nftables, Some(NFTABLES)));
        wrong.extend(faults(number, promise.iptables, Some(IPTABLES)));
        wrong.extend(faults(number, promise.none, Some(NO_FIREWALL)));
        wrong.extend(faults(number, promise.apart, None));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let source = "
both_flavours!(\"strace\";
    p1_twice,
);
fn p1_twice(flavour: Flavour) {}
#[test]
#[ignore = \"slow\"]
fn p1_ignored() {}
// #[test]
fn p1_helper() {}
mod tests {
    #[tokio::test(flavor = \"current_thread\")]
    async fn p1_inside() {
        Flavour::Iptables
    }
    fn other() { Flavour::Nftables }
}
";
    let found = tests(source);
    let names: Vec<_> = found.keys().collect();
    assert_eq!(names, ["iptables::p1_twice", "nftables::p1_twice", "p1_inside"]);
    let body = &found["p1_inside"];
    assert!(body.contains("Iptables") && !body.contains("Nftables"), "{body}");
    assert_eq!(faults(1, &[(KILL, &["p1_absent"])], None).len(), 1);
    let misplaced = faults(2, &[(KILL, &["p2_client_killed_iptables"])], Some(NFTABLES));
    assert_eq!(misplaced.len(), 1, "{misplaced:?}");
}
