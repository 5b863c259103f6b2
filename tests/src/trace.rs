//! What a program could leave on a computer: files, accounts, processes, and rules of the firewall.
//!
//! Guarantees: every file is compared by place, kind, mode, owner, size and time of its last change;
//! accounts by their text; what is compared to is waited for. Trusts its caller to name what others
//! write meanwhile.

use std::time::Duration;

use crate::{Result, nspawn::Debian, process::wait_until, snapshot::Snapshot};

/// How long what others do of themselves, as a login's end, may take.
const SOON: Duration = Duration::from_secs(60);

/// What systemd, logins and the journal write all the time; and accounts, which are compared as text.
const APART: [&str; 11] = [
    "/var/log",
    "/var/lib/systemd",
    "/run/systemd",
    "/run/user",
    "/run/log",
    "/run/utmp",
    "/run/udev",
    "/etc/passwd*",
    "/etc/group*",
    "/etc/shadow*",
    "/etc/gshadow*",
];

/// All of it at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// One file or account a line, one process a line.
    lines: Vec<String>,
    rules: Snapshot,
}

impl Trace {
    /// Takes it, without the files that `apart` names (patterns of find(1)).
    pub fn take(debian: &Debian<'_>, apart: &[&str]) -> Result<Self> {
        let apart: Vec<_> =
            APART.iter().chain(apart).map(|pattern| format!("-path '{pattern}'")).collect();
        let lines = debian.sh(&format!(
            "find / /run /tmp -xdev \\( {} \\) -prune -o ! -type d -printf '%p %y %m %u:%g %s %T@\\n' |
                 sort -u
             cat /etc/passwd /etc/group /etc/shadow /etc/gshadow
             ps -e --no-headers -o user:20,comm | sort",
            apart.join(" -o ")
        ))?;
        let lines = lines.lines().map(str::to_owned).collect();
        Ok(Self { lines, rules: Snapshot::take(debian.netns())? })
    }

    /// Fails the test if it is not the same again soon, with what came and what went.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn assert_restored(&self, debian: &Debian<'_>, apart: &[&str]) {
        let mut now = Self::take(debian, apart);
        wait_until(SOON, || {
            now = Self::take(debian, apart);
            now.as_ref() == Ok(self)
        });
        let now = now.unwrap_or_else(|error| panic!("{error}"));
        let only = |one: &Self, other: &Self| -> Vec<String> {
            one.lines.iter().filter(|line| !other.lines.contains(line)).cloned().collect()
        };
        let (came, went) = (only(&now, self), only(self, &now));
        let rules = self.rules.changes(&now.rules);
        assert!(now == *self, "came: {came:#?}\nwent: {went:#?}\nrules: {rules}");
    }
}
