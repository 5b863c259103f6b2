//! Text for people about what a screen shows. Pure. Lines are broken for a terminal of 80 columns.

use super::text::{Line, Tone};
use crate::codes::{self, Entry, Speaker};

/// Columns that are written to.
const WIDTH: usize = 79;

/// One or several explanations, with an empty line between two.
#[must_use]
pub fn explanations(entries: &[&Entry]) -> Vec<Line> {
    let mut lines = Vec::new();
    for entry in entries {
        if !lines.is_empty() {
            lines.push(Line::plain(""));
        }
        lines.extend(explanation(entry));
    }
    lines
}

fn explanation(entry: &Entry) -> Vec<Line> {
    let speakers: Vec<_> = entry.by.iter().map(|by| by.name()).collect();
    let title = format!("{}: {}", entry.code, entry.text);
    let mut lines: Vec<_> =
        broken(&title, 0, 2).into_iter().map(|text| Line::toned(Tone::Attention, text)).collect();
    let mut plain = |text: &str, first, hanging| {
        lines.extend(broken(text, first, hanging).into_iter().map(Line::plain));
    };
    plain(&format!("Shown by {}.", speakers.join("; ")), 0, 0);
    plain(&entry.meaning, 0, 0);
    plain("Likely reasons, most likely first:", 0, 0);
    for reason in entry.reasons() {
        plain(&format!("- {}", reason.reason), 2, 4);
        plain(&reason.remedy, 4, 4);
    }
    let sources: Vec<_> = entry.sources().collect();
    let source = broken(&format!("Source: {}", sources.join("; ")), 0, 2);
    lines.extend(source.into_iter().map(|text| Line::toned(Tone::Dim, text)));
    lines
}

/// All, by who shows them.
#[must_use]
pub fn list(all: &[Entry]) -> Vec<Line> {
    let mut lines = Vec::new();
    for speaker in Speaker::ALL {
        lines.push(Line::toned(Tone::Good, format!("Shown by {}", speaker.name())));
        for entry in all.iter().filter(|entry| entry.by.contains(&speaker)) {
            // Where the name is nothing but the words, it would be said twice.
            let coded = entry.code.starts_with(|first: char| first.is_uppercase())
                || speaker == Speaker::Ipxe;
            let (text, hanging) = match coded {
                true => (format!("{:<14}{}", entry.code, entry.text), 16),
                false => (entry.text.clone(), 4),
            };
            lines.extend(columns(&text, hanging).into_iter().map(Line::plain));
        }
    }
    lines.push(Line::plain("What one of them means: portcullis explain CODE, or its words."));
    lines
}

/// What the screen of a machine that has stopped shows most likely; nothing if that is not known.
pub(crate) fn probably(codes: &[String]) -> Option<Line> {
    let first = codes.first()?;
    let shown: Vec<_> =
        codes.iter().filter_map(|code| codes::entry(code)).map(Entry::shown).collect();
    Some(Line::attention(format!(
        "  its screen probably says {} (portcullis explain {first})",
        shown.join(" or ")
    )))
}

/// A list's line: two columns in, the blanks after its code kept.
fn columns(text: &str, hanging: usize) -> Vec<String> {
    let (code, rest) = text.split_at(text.len().min(hanging.saturating_sub(2)));
    let mut lines = broken(rest, hanging, hanging);
    if let Some(first) = lines.first_mut() {
        *first = format!("  {code}{}", first.trim_start());
    }
    lines
}

/// Breaks a text between words. `first` and `hanging` are the blanks before the first line and the
/// others. A word that is longer than a line stays whole.
pub(super) fn broken(text: &str, first: usize, hanging: usize) -> Vec<String> {
    broken_at(WIDTH, text, first, hanging)
}

/// The same, for so many columns.
pub(super) fn broken_at(width: usize, text: &str, first: usize, hanging: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = " ".repeat(first);
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(hanging)));
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_wider_than_80_columns() {
        let all: Vec<_> = codes::data().codes.iter().collect();
        for line in explanations(&all).iter().chain(&list(&codes::data().codes)) {
            assert!(line.text.chars().count() < 80, "{}", line.text);
        }
    }

    #[test]
    fn an_explanation_tells_meaning_reasons_remedies_and_source() {
        let lines = explanations(&codes::find("E52"));
        let text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        let text = text.join("\n");
        for part in [
            "PXE-E52: proxyDHCP offers were received. No DHCP offers were received.\nShown by the \
             network card's ROM (BIOS).\nThe machine heard",
            "\n  - There is no DHCP server on this network",
            "\n    Run it again with --dhcp-server",
            "\nSource: Preboot Execution Environment",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert_eq!(lines.iter().filter(|line| line.text.starts_with("  - ")).count(), 3);
    }

    #[test]
    fn the_list_holds_each_once_for_each_who_shows_it() {
        let lines = list(&codes::data().codes);
        let count = |text: &str| lines.iter().filter(|line| line.text.contains(text)).count();
        assert_eq!(count("PXE-E53       No boot filename received."), 2);
        assert_eq!(count("PXE-E52       proxyDHCP"), 1);
        assert_eq!(count("Access Denied"), 1);
        assert_eq!(count("access-denied"), 0);
        assert_eq!(count("Shown by"), Speaker::ALL.len());
    }

    #[test]
    fn long_texts_are_broken_between_words() {
        let word = "x".repeat(100);
        assert_eq!(broken(&format!("a {word} b"), 2, 4), ["  a", &format!("    {word}"), "    b"]);
        assert_eq!(broken("", 2, 4), ["  "]);
    }

    #[test]
    fn a_screen_of_which_nothing_is_known_is_not_spoken_of() {
        assert_eq!(probably(&[]), None);
    }
}
