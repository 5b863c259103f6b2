//! Text for people about what `doctor` found. Pure. Lines are broken for a terminal of 80 columns.

use super::{
    explain::broken,
    text::{Line, Tone},
};
use crate::doctor::Diagnosis;

/// Columns before a fact.
const MARGIN: usize = 13;

/// What is known, then what is wrong.
#[must_use]
pub fn diagnoses(all: &[Diagnosis]) -> Vec<Line> {
    let mut lines = Vec::new();
    for fact in all.iter().flat_map(|one| &one.facts) {
        let mut text = broken(&fact.text, MARGIN, MARGIN).into_iter();
        let first = text.next().unwrap_or_default();
        let first = format!("  {:<11}{}", fact.about, first.trim_start());
        lines.extend(std::iter::once(first).chain(text).map(Line::plain));
    }
    let findings: Vec<_> = all.iter().flat_map(|one| &one.findings).collect();
    for finding in &findings {
        let text = broken(&format!("! {}", finding.text), 0, 2);
        lines.extend(text.into_iter().map(|text| Line::toned(Tone::Attention, text)));
        for remedy in &finding.remedies {
            lines.extend(broken(&format!("- {remedy}"), 4, 6).into_iter().map(Line::plain));
        }
    }
    if findings.is_empty() {
        lines.push(Line::toned(Tone::Good, "Nothing wrong was found, and nothing is open."));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Fact, Finding};

    #[test]
    fn facts_stand_in_a_column_and_findings_have_their_remedies() {
        let facts = vec![
            Fact { about: "interface", text: "eth0 (wired, 192.0.2.2), connected".to_owned() },
            Fact { about: "not seen", text: "word ".repeat(20) },
        ];
        let findings = vec![Finding {
            name: "port-taken",
            text: "udp port 69 is in use ".repeat(5),
            remedies: vec!["stop it".to_owned(), "or not".to_owned()],
        }];
        let second = Diagnosis { facts: vec![facts[0].clone()], ..Diagnosis::default() };
        let lines = diagnoses(&[Diagnosis { facts, findings, ..Diagnosis::default() }, second]);
        let text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(text[0], "  interface  eth0 (wired, 192.0.2.2), connected");
        assert!(text[1].starts_with("  not seen   word word"));
        assert!(text[2].starts_with(&format!("{}word", " ".repeat(13))), "{text:#?}");
        // Facts of all come first.
        assert_eq!(text[3], text[0]);
        assert!(text[4].starts_with("! udp port 69") && text[5].starts_with("  "), "{text:#?}");
        assert_eq!(text[text.len() - 2..], ["    - stop it", "    - or not"]);
        assert!(text.iter().all(|line| line.chars().count() < 80), "{text:#?}");
        let lines = diagnoses(&[Diagnosis::default()]);
        assert_eq!(lines[0].text, "Nothing wrong was found, and nothing is open.");
    }
}
