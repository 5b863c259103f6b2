//! The firewall of a namespace as text, and what changed between two texts.
//!
//! The text is `nft -s -a list ruleset`: stateless (no counters), with handles, so that a rule that
//! was removed and put back does not pass for one that was left alone.

use std::process::Command;

use crate::{Result, netns::Netns};

/// A ruleset at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(String);

impl Snapshot {
    /// Takes it.
    pub fn take(netns: &Netns) -> Result<Self> {
        let mut command = Command::new("nft");
        command.args(["-s", "-a", "list", "ruleset"]);
        netns.finish(command).map(Self)
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The text without handles, for comparing across a reload, which numbers everything anew.
    #[must_use]
    pub fn without_handles(&self) -> Self {
        Self(
            self.0
                .lines()
                .map(|line| line.split(" # handle ").next().unwrap_or(line))
                .flat_map(|line| [line, "\n"])
                .collect(),
        )
    }

    /// Lines that went (`-`) and came (`+`), each below the chain that it stands in; empty when
    /// nothing changed.
    #[must_use]
    pub fn changes(&self, later: &Self) -> String {
        let before: Vec<&str> = self.0.lines().collect();
        let after: Vec<&str> = later.0.lines().collect();
        render(&before, &after)
    }
}

/// Fails the test with the difference when two snapshots are not the same.
///
/// # Panics
/// When they differ.
#[track_caller]
pub fn assert_same(before: &Snapshot, after: &Snapshot) {
    let changes = before.changes(after);
    assert!(changes.is_empty(), "the ruleset has changed:\n{changes}");
}

/// A line of a difference.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Kept,
    Gone,
    New,
}

/// Difference of two lists of lines by their longest common subsequence.
fn difference<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<(Line, &'a str)> {
    // common[i][j]: length of the longest common subsequence of before[i..] and after[j..].
    let mut common = vec![vec![0_usize; after.len() + 1]; before.len() + 1];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            common[i][j] = if before[i] == after[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && before[i] == after[j] {
            lines.push((Line::Kept, before[i]));
            i += 1;
            j += 1;
        } else if j == after.len() || (i < before.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push((Line::Gone, before[i]));
            i += 1;
        } else {
            lines.push((Line::New, after[j]));
            j += 1;
        }
    }
    lines
}

/// Changed lines, each run of them below the last line that opened a block.
fn render(before: &[&str], after: &[&str]) -> String {
    let mut text = String::new();
    let mut heading = None;
    for (kind, line) in difference(before, after) {
        let sign = match kind {
            Line::Kept => {
                if line.contains('{') && !line.contains('}') {
                    heading = Some(line);
                } else if line == "}" {
                    // The end of a table: what follows does not stand in its last chain.
                    heading = None;
                }
                continue;
            }
            Line::Gone => '-',
            Line::New => '+',
        };
        if let Some(block) = heading.take() {
            text.push_str(&format!("  {block}\n"));
        }
        text.push_str(&format!("{sign} {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_rule_is_shown_below_its_chain_and_nothing_else() {
        let before =
            Snapshot("table t {\n chain a {\n  one # handle 2\n  two # handle 3\n }\n}\n".into());
        let after =
            Snapshot("table t {\n chain a {\n  two # handle 3\n  one # handle 4\n }\n}\n".into());
        assert_eq!(
            before.changes(&after),
            "   chain a {\n-   one # handle 2\n+   one # handle 4\n"
        );
        assert_eq!(before.changes(&before), "");
        let more = Snapshot(format!("{}table u {{\n}}\n", before.text()));
        assert_eq!(before.changes(&more), "+ table u {\n+ }\n");
        assert_eq!(after.without_handles().text(), "table t {\n chain a {\n  two\n  one\n }\n}\n");
    }

    #[test]
    fn a_ruleset_put_back_rule_by_rule_is_not_the_same() {
        crate::need_root!("nft", "ip");
        let netns = Netns::new("snapshot").unwrap();
        netns.sh("nft 'table inet t { chain c { tcp dport 1 accept; }; }'").unwrap();
        let before = Snapshot::take(&netns).unwrap();
        assert_same(&before, &Snapshot::take(&netns).unwrap());
        netns.sh("nft flush chain inet t c && nft add rule inet t c tcp dport 1 accept").unwrap();
        let after = Snapshot::take(&netns).unwrap();
        assert_ne!(before.changes(&after), "");
        assert_same(&before.without_handles(), &after.without_handles());
    }
}
