//! docs/faults.md: every fault and every mistake has a test that is run, or the reason why there is none.

use portcullis_lab::repository::read;

use super::proofs::{left_out, tests};

/// What is wrong with a page of faults: rows `| F1 | what | what happens | FILE: `TEST`, `TEST`; FILE: ... |`,
/// the last cell `-` where the third says why there is no test.
fn wrong_rows(page: &str, source: impl Fn(&str) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut numbers = Vec::new();
    for row in page.lines() {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, number, _, outcome, proofs, _] = *cells else { continue };
        if !number.starts_with(['F', 'M']) {
            continue;
        }
        numbers.push(number.to_owned());
        if proofs == "-" {
            let reason = outcome.starts_with("no test: ");
            wrong.extend((!reason).then(|| format!("{number}: neither test nor reason")));
            continue;
        }
        for proof in proofs.split("; ") {
            let Some((path, names)) = proof.split_once(": `") else {
                wrong.push(format!("{number}: {proof}"));
                continue;
            };
            wrong.extend(left_out(path));
            let tests = tests(&source(path));
            for name in names.trim_end_matches('`').split("`, `") {
                let of_both = format!("nftables::{name}");
                if !tests.contains_key(name) && !tests.contains_key(&of_both) {
                    wrong.push(format!("{number}: {path}: {name} is no test that is run"));
                }
            }
        }
    }
    let all = |letter, last| (1..=last).map(move |number| format!("{letter}{number}"));
    let expected: Vec<_> = all('F', 36).chain(all('M', 33)).collect();
    wrong.extend((numbers != expected).then(|| format!("not F1 to F36, M1 to M33: {numbers:?}")));
    wrong
}

#[test]
fn every_fault_and_mistake_has_a_test_or_a_reason() {
    let page = read("docs/faults.md");
    let wrong = wrong_rows(&page, read);
    assert!(wrong.is_empty(), "{wrong:#?}");
    // What is wrong is found.
    for (right, wrong) in [
        ("`p1_without_polkit_nothing_opens`, `p1_open", "`p1_absent`, `p1_open"),
        ("no test: neither NixOS", "neither NixOS"),
        ("| F7 |", "| F8 |"),
    ] {
        assert!(page.contains(right), "{right}");
        assert!(!wrong_rows(&page.replacen(right, wrong, 1), read).is_empty(), "{wrong}");
    }
}
