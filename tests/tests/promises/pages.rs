//! What README and docs/promises.md show of the promises is made of the list, and found wrong when it is not.

use portcullis_lab::repository::{assert_made, read};

use super::{
    MAKE,
    list::{PROMISES, Proofs},
};

const BEGIN: &str = "<!-- made by tests/tests/promises; UPDATE=1 makes it again -->\n";
const END: &str = "<!-- end of what is made -->\n";

/// How many tests in which file, for a glance.
fn cell(proofs: Proofs) -> String {
    let files = proofs.iter().map(|(path, names)| {
        let (_, file) = path.rsplit_once('/').unwrap();
        format!("{} in [{file}]({path})", names.len())
    });
    let files: Vec<_> = files.collect();
    if files.is_empty() { "-".to_owned() } else { files.join(", ") }
}

fn table() -> String {
    let mut text = "\
| | promise | NixOS nftables | NixOS iptables | no firewall | any firewall |
|---|---|---|---|---|---|
"
    .to_owned();
    for (number, promise) in (1..).zip(&PROMISES) {
        let columns = [promise.nftables, promise.iptables, promise.none, promise.apart].map(cell);
        let link = format!("[P{number}](docs/promises.md#p{number})");
        text += &format!("| {link} | {} | {} |\n", promise.text, columns.join(" | "));
    }
    text
}

/// The page with every test by its name.
fn page() -> String {
    let mut text = "\
# Promises

Each promise, the tests that prove it behind each firewall, and what is not proven. Made by `tests/tests/promises`
(`UPDATE=1 cargo test -p portcullis-tests --test promises` makes it again), which also checks that each test is there and is run.
"
    .to_owned();
    for (number, promise) in (1..).zip(&PROMISES) {
        text += &format!("\n## P{number}\n\n{}\n\n", promise.text);
        for (column, proofs) in [
            ("NixOS nftables", promise.nftables),
            ("NixOS iptables", promise.iptables),
            ("no firewall", promise.none),
            ("any firewall", promise.apart),
        ] {
            for (path, names) in proofs {
                let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                text += &format!("* {column}, [{path}](../{path}): {}\n", names.join(", "));
            }
        }
        if !promise.gap.is_empty() {
            text += &format!("* **What is open:** {}\n", promise.gap);
        }
    }
    text
}

#[test]
fn the_readme_shows_this_table() {
    let readme = read("README.md");
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    assert_made("README.md", &[before, BEGIN, &table(), END, after].concat(), MAKE);
}

#[test]
fn the_page_of_promises_is_this() {
    assert_made("docs/promises.md", &page(), MAKE);
}
