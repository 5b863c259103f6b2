//! helper/README.md: each line that it quotes is where it says, and the helper is as long as it says.

use portcullis_lab::repository::{assert_made, read, script};

use super::MAKE;

/// The anchors of a page: `[FILE:LINE](FILE#LLINE) `WORDS``, where exactly one line of the file, this
/// one, has the words. Gives the page with the right numbers, and how many anchors it has.
fn with_right_lines(page: &str, source: impl Fn(&str) -> String) -> (String, usize) {
    let mut parts = page.split("#L");
    let mut right = parts.next().unwrap().to_owned();
    let mut count = 0;
    for part in parts {
        let (_, quote) = part.split_once(") `").unwrap();
        let (quote, rest) = quote.split_once('`').unwrap();
        let label = right.rfind('[').unwrap();
        let (file, _) = right[label + 1..].split_once(':').unwrap();
        let file = file.to_owned();
        let text = source(&file);
        let mut lines = (1..).zip(text.lines()).filter(|(_, line)| line.contains(quote));
        let (line, _) = lines.next().unwrap_or_else(|| panic!("{file} has no line with {quote}"));
        assert_eq!(lines.next(), None, "{file} has more than one line with {quote}");
        right.truncate(label);
        right += &format!("[{file}:{line}]({file}#L{line}) `{quote}`{rest}");
        count += 1;
    }
    (right, count)
}

#[test]
fn an_anchor_follows_its_words() {
    let source = |file: &str| {
        assert_eq!(file, "src/a.rs");
        "one\ntwo\n".to_owned()
    };
    let page = "a [src/a.rs:9](src/a.rs#L8) `two`, b";
    let (right, count) = with_right_lines(page, source);
    assert_eq!((right.as_str(), count), ("a [src/a.rs:2](src/a.rs#L2) `two`, b", 1));
    for wrong in ["`o`", "`three`"] {
        let page = page.replace("`two`", wrong);
        let result = std::panic::catch_unwind(|| with_right_lines(&page, source));
        assert!(result.is_err(), "{wrong}");
    }
}

/// The auditor's questions are answered by lines that are there and say what is quoted.
#[test]
fn the_audit_names_lines_that_are_there() {
    let page = read("helper/README.md");
    let (right, count) = with_right_lines(&page, |file| read(&format!("helper/{file}")));
    assert!(count > 30, "{count} anchors are not all");
    assert_made("helper/README.md", &right, MAKE);
}

/// What tests/scripts/helper-size counts is what the audit's page says.
#[test]
fn the_audit_says_how_long_the_helper_is() {
    let output = script("helper-size").output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let (mut firewall, mut all) = (0, 0);
    for line in output.lines() {
        let (lines, file) = line.trim().split_once(' ').unwrap();
        let lines: usize = lines.parse().unwrap();
        match file {
            "in all" => all = lines,
            file if file.starts_with("firewall/") => firewall += lines,
            _ => {}
        }
    }
    assert!(firewall > 0 && all > firewall, "{output}");
    let page = read("helper/README.md");
    let (before, rest) = page.split_once("lines it is **").unwrap();
    let (_, after) = rest.split_once(" of them the firewall's").unwrap();
    let length = format!("lines it is **{all} lines**, {firewall} of them the firewall's");
    let right = [before, &length, after].concat();
    assert_made("helper/README.md", &right, MAKE);
}
