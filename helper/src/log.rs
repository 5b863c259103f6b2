//! Log lines on standard error, with the priority prefix of sd-daemon(3): one per decision.
//!
//! Guarantees: fixed keys; every value is a number, a word of ours, or a name that was validated.
//! Never a text that a client chose. A line that cannot be written is given up.

use std::{
    fmt::Display,
    io::{self, Write},
};

use portcullis_dbus::Error;
use zbus::DBusError;

use crate::{
    caller::Caller,
    request::{self, Request},
};

/// What was decided.
#[derive(Debug)]
pub enum Decision<'d> {
    /// A lease was opened.
    Granted,
    /// A request was refused.
    Refused {
        /// The method.
        method: &'static str,
        /// Why.
        error: &'d Error,
    },
    /// The end of a lease was moved.
    Extended {
        /// Which.
        lease: u64,
        /// To so many seconds from now.
        seconds: u32,
    },
    /// Somebody with the manage action ends another's lease; its own line follows.
    Managed {
        /// Which.
        lease: u64,
    },
    /// A lease is over.
    Ended {
        /// Which.
        lease: u64,
        /// Why.
        reason: &'static str,
    },
}

/// One decision about a caller; `request` where it was understood.
pub fn decision(decision: &Decision<'_>, caller: &Caller, request: Option<&Request>) {
    let what = match decision {
        Decision::Granted => "decision=granted".to_owned(),
        Decision::Refused { method, error } => {
            let name = error.name();
            let result = name.rsplit('.').next().unwrap_or_default();
            format!("decision=refused method={method} result={result}")
        }
        Decision::Extended { lease, seconds } => {
            format!("decision=extended lease={lease} seconds={seconds}")
        }
        Decision::Managed { lease } => format!("decision=managed lease={lease}"),
        Decision::Ended { lease, reason } => {
            format!("decision=ended lease={lease} reason={reason}")
        }
    };
    let asked = request.map_or_else(String::new, |request| {
        let ports: Vec<String> = request
            .ports()
            .map(|(protocol, port)| format!("{}/{port}", request::word(protocol)))
            .collect();
        format!(
            " interface={} ports={} seconds={}",
            request.interface(),
            ports.join(","),
            request.max_seconds()
        )
    });
    write(NOTICE, &format!("{what} uid={} sender={}{asked}", caller.uid, caller.name));
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

fn write(priority: u8, line: &str) {
    let _ = writeln!(io::stderr().lock(), "<{priority}>{line}");
}

// sd-daemon(3)
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;
const INFO: u8 = 6;
