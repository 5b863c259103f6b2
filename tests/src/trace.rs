//! What a program could leave on a computer: files, accounts, processes, and rules of the firewall.
//!
//! Guarantees: every file is compared by place, kind, mode, owner, size and time of its last change;
//! accounts by their text; what is compared to is waited for. Trusts its caller to name what others
//! write meanwhile.

use std::time::Duration;

use crate::{LabError, Result, nspawn::Debian, process::wait_until, snapshot::Snapshot};

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
    pub fn take(debian: &Debian, apart: &[&str]) -> Result<Self> {
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

    /// Waits until it is the same again; the error says what came and what went.
    pub fn restored(&self, debian: &Debian, apart: &[&str]) -> Result<()> {
        let mut now = Self::take(debian, apart);
        wait_until(SOON, || {
            now = Self::take(debian, apart);
            now.as_ref() == Ok(self)
        });
        let now = now?;
        if now == *self {
            return Ok(());
        }
        let only = |one: &Self, other: &Self| -> String {
            let lines = one.lines.iter().filter(|line| !other.lines.contains(line));
            lines.flat_map(|line| [line, "\n"]).collect()
        };
        let (came, went) = (only(&now, self), only(self, &now));
        let rules = self.rules.changes(&now.rules);
        Err(LabError(format!("came:\n{came}went:\n{went}rules:\n{rules}")))
    }
}
