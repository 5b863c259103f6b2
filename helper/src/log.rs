//! What the helper tells an administrator: one entry for each decision, and lines about itself.
//!
//! Guarantees: decisions have fixed fields (JOURNAL.md), in the journal or, where it is not there or
//! takes nothing, as a line on standard error with the priority prefix of sd-daemon(3); every value
//! is a number, a word of ours, or a name that was validated. Never a text that a client chose, and
//! never waits: what cannot be written at once is given up.

use std::{
    fmt::Display,
    io::{self, Write},
    os::fd::AsFd,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portcullis_dbus::Error;
use zbus::DBusError;

use crate::{
    caller::Caller,
    facts, journal,
    lease::Lease,
    request::{Request, word},
};

/// What was decided.
#[derive(Debug)]
pub enum Decision<'d> {
    /// A lease was opened.
    Granted,
    /// A call of this method was refused, with this error.
    Refused(&'static str, &'d Error),
    /// The end of a lease was moved.
    Extended,
    /// Somebody with the manage action ends another's lease; its own entry follows.
    Managed,
    /// A lease is over, for this reason, after so many seconds.
    Ended(&'static str, u64),
}

impl Decision<'_> {
    /// The word for it, and the MESSAGE_ID by which it is found and explained (portcullis.catalog).
    fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::Granted => ("granted", "150783d880d24208a7a0727e1e2059db"),
            Self::Refused(..) => ("refused", "506650eaaac842b595f7f99b47b9d6f5"),
            Self::Extended => ("extended", "a6334bb2ffe845c7a5877183e59ad0e5"),
            Self::Managed => ("managed", "d83e5d10a8d443908b21d4dc4d88ddbb"),
            Self::Ended(..) => ("ended", "e3995dcf1c554863a80cba7b874ef6ff"),
        }
    }
}

/// What a decision is about, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub enum About<'a> {
    /// A request that was not understood.
    Nothing,
    /// A request.
    Request(&'a Request),
    /// The number that was given for a lease.
    Number(u64),
    /// A lease and its number.
    Lease(u64, &'a Lease),
}

/// One decision about a caller.
pub fn decision(decision: &Decision<'_>, caller: &Caller, about: About<'_>) {
    let (kind, id) = decision.kind();
    let fields = fields(decision, caller, about);
    let message = message(kind, &fields);
    let priority = NOTICE.to_string();
    let mut entry = vec![
        ("MESSAGE", message.as_str()),
        ("MESSAGE_ID", id),
        ("PRIORITY", &priority),
        ("SYSLOG_IDENTIFIER", "portcullis-helper"),
        ("PORTCULLIS_DECISION", kind),
    ];
    entry.extend(fields.iter().map(|(name, value)| (*name, value.as_str())));
    if journal::send(&entry).is_err() {
        write(NOTICE, &message);
    }
}

/// Names and values, apart from those that every entry of the journal has.
type Fields = Vec<(&'static str, String)>;

fn fields(decision: &Decision<'_>, caller: &Caller, about: About<'_>) -> Fields {
    let mut fields = vec![
        ("PORTCULLIS_UID", caller.uid.to_string()),
        ("PORTCULLIS_SENDER", caller.name.to_string()),
    ];
    if let About::Number(id) | About::Lease(id, _) = about {
        fields.push(("PORTCULLIS_LEASE", id.to_string()));
    }
    let request = match about {
        About::Nothing | About::Number(_) => None,
        About::Request(request) => Some(request),
        About::Lease(_, lease) => {
            fields.push(("PORTCULLIS_BACKEND", facts::backend(lease.backend).to_owned()));
            Some(&lease.request)
        }
    };
    let mut lasts = None;
    if let Some(request) = request {
        let [interface, http_port, dhcp, seconds] = request.details();
        fields.push(("PORTCULLIS_INTERFACE", interface));
        fields.push(("PORTCULLIS_DHCP", dhcp));
        fields.push(("PORTCULLIS_HTTP_PORT", http_port));
        fields.push(("PORTCULLIS_PORTS", ports(request)));
        lasts = Some(seconds);
    }
    match decision {
        Decision::Granted | Decision::Extended | Decision::Managed => {}
        Decision::Refused(method, error) => {
            let name = error.name();
            let result = name.rsplit('.').next().unwrap_or_default();
            fields.push(("PORTCULLIS_METHOD", (*method).to_owned()));
            fields.push(("PORTCULLIS_RESULT", result.to_owned()));
        }
        Decision::Ended(reason, seconds) => {
            lasts = Some(seconds.to_string());
            fields.push(("PORTCULLIS_REASON", (*reason).to_owned()));
        }
    }
    fields.extend(lasts.map(|seconds| ("PORTCULLIS_SECONDS", seconds)));
    fields
}

fn ports(request: &Request) -> String {
    let words = request.ports().map(|(protocol, port)| format!("{}/{port}", word(protocol)));
    words.collect::<Vec<_>>().join(",")
}

/// The same as one line: `decision=granted uid=1000 ...`.
fn message(kind: &str, fields: &Fields) -> String {
    let mut line = format!("decision={kind}");
    for (name, value) in fields {
        let key = name.trim_start_matches("PORTCULLIS_").to_lowercase().replace('_', "-");
        line.push_str(&format!(" {key}={value}"));
    }
    line
}

/// The kernel did not do what it was asked for; the helper goes on.
pub fn kernel(step: &'static str, error: &io::Error) {
    write(WARNING, &format!("kernel step=\"{step}\" error=\"{error}\""));
}

/// The firewall could not be changed or read; the helper goes on.
pub fn firewall(step: &'static str, error: &dyn Display) {
    write(ERROR, &format!("firewall step=\"{step}\" error=\"{error}\""));
}

/// What the helper itself is doing.
pub fn note(text: &str) {
    write(INFO, text);
}

/// Why the helper ends.
pub fn fatal(error: &dyn Display) {
    write(ERROR, &format!("{error}"));
}

/// Waits for nobody: a journal that is stuck must not stop the helper.
fn write(priority: u8, line: &str) {
    let stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut room, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        let _ = stderr.lock().write_all(format!("<{priority}>{line}\n").as_bytes());
    }
}

// sd-daemon(3)
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;
const INFO: u8 = 6;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Decision, Error};

    /// Names of fields in a text.
    fn names(text: &str) -> BTreeSet<&str> {
        text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'))
            .filter(|word| word.len() > "PORTCULLIS_".len() && word.starts_with("PORTCULLIS_"))
            .collect()
    }

    #[test]
    fn p12_every_field_and_kind_is_documented_and_no_other_is() {
        let documented = include_str!("../JOURNAL.md");
        let catalogue = include_str!("../../systemd/portcullis.catalog");
        let here = include_str!("log.rs");
        assert!(names(here).len() > 10);
        assert_eq!(names(here), names(documented));
        assert!(names(catalogue).is_subset(&names(here)));
        let error = &Error::Busy(String::new());
        for decision in [
            Decision::Granted,
            Decision::Refused("Open", error),
            Decision::Extended,
            Decision::Managed,
            Decision::Ended("closed", 10),
        ] {
            let (kind, id) = decision.kind();
            assert!(documented.contains(&format!("| `{kind}` | `{id}` |")), "{kind} {id}");
            assert!(catalogue.contains(&format!("-- {id}\n")), "{kind} {id}");
        }
    }
}
