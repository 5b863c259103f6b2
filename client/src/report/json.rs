//! `--json`: one object per line. The form is described in JSON.md and only ever grows. Pure.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Asking, Ready};
use crate::{
    codes::{Entry, Reason},
    dhcp::probe::Heard,
    doctor::{self, Diagnosis, Finding},
    event::{Event, Fact, What},
    exit::Failure,
    interfaces::Interface,
    nixos::Told,
    session::Lease,
    source::cache::Record,
};

/// `page`.
#[must_use]
pub fn page(url: &str, is_public: bool) -> Value {
    json!({ "event": "page", "url": url, "public": is_public })
}

/// `asking`.
#[must_use]
pub fn asking(asking: &Asking) -> Value {
    json!({
        "event": "asking",
        "interface": asking.interface,
        "udp_ports": asking.udp_ports,
        "tcp_ports": asking.tcp_ports,
        "max_seconds": asking.max_seconds,
        "dhcp_server": asking.dhcp_server,
    })
}

/// `ready`.
#[must_use]
pub fn ready(ready: &Ready<'_>) -> Value {
    let facts = &ready.lease.facts;
    json!({
        "event": "ready",
        "lease": ready.lease.number,
        "interface": facts.interface,
        "interface_index": facts.interface_index,
        "address": facts.address,
        "backend": facts.backend,
        "dhcp": facts.dhcp,
        "udp_ports": facts.udp_ports,
        "tcp_ports": facts.tcp_ports,
        "max_seconds": facts.ends.saturating_sub(facts.opened) / 1_000_000,
        "api": ready.api,
        "kernel": ready.kernel,
        "initrds": ready.initrds,
        "menu": ready.menu,
        "cmdline": ready.cmdline,
        "loaders": ready.loaders,
        "addresses": ready.addresses,
    })
}

/// See [`machine`].
#[derive(Serialize)]
struct Machine<'a> {
    event: &'static str,
    interface: &'a str,
    #[serde(flatten)]
    what: &'a Event,
    #[serde(skip_serializing_if = "Option::is_none")]
    vendor: Option<Option<&'a str>>,
}

/// `machine`, as the text of a line: the event's own fields beside it, and who made the machine's network card.
/// There is one for each step of each machine, so it is written without an object in between.
#[must_use]
pub fn machine(interface: &str, event: &Event, vendor: Option<&str>) -> String {
    let seen = matches!(event.what, What::Fact(Fact::Seen { .. }));
    let vendor = seen.then_some(vendor);
    let machine = Machine { event: "machine", interface, what: event, vendor };
    // Every field of an event is a number, a text or a list of texts, which cannot fail.
    serde_json::to_string(&machine).unwrap_or_default()
}

/// `note`.
#[must_use]
pub fn note(text: &str) -> Value {
    json!({ "event": "note", "text": text })
}

/// `build`, of `nixos`.
#[must_use]
pub fn build(told: &Told) -> Value {
    json!({ "event": "build", "state": told.state, "text": told.text })
}

/// `closed`.
#[must_use]
pub fn closed(lease: &Lease, reason: &str) -> Value {
    json!({
        "event": "closed",
        "lease": lease.number,
        "reason": reason,
        "interface": lease.facts.interface,
        "udp_ports": lease.facts.udp_ports,
        "tcp_ports": lease.facts.tcp_ports,
    })
}

/// `error`.
#[must_use]
pub fn failure(failure: &Failure) -> Value {
    json!({
        "event": "error",
        "exit_code": failure.code,
        "message": failure.message,
        "advice": failure.advice,
    })
}

/// `lease`, of `status`. `now` is CLOCK_BOOTTIME in microseconds.
#[must_use]
pub fn lease(lease: &Lease, now: u64) -> Value {
    let facts = &lease.facts;
    json!({
        "event": "lease",
        "lease": lease.number,
        "uid": facts.uid,
        "interface": facts.interface,
        "interface_index": facts.interface_index,
        "address": facts.address,
        "backend": facts.backend,
        "dhcp": facts.dhcp,
        "udp_ports": facts.udp_ports,
        "tcp_ports": facts.tcp_ports,
        "open_seconds": now.saturating_sub(facts.opened) / 1_000_000,
        "seconds_left": facts.ends.saturating_sub(now) / 1_000_000,
    })
}

/// `interface`, of `interfaces`.
#[must_use]
pub fn interface(interface: &Interface, chosen: Option<&str>) -> Value {
    json!({
        "event": "interface",
        "name": interface.name,
        "kind": interface.kind,
        "up": interface.up,
        "carrier": interface.carrier,
        "addresses": interface.addresses,
        "bridge": interface.bridge,
        "unfit": interface.unfit(),
        "chosen": chosen == Some(&interface.name),
    })
}

/// `copy`, of `cache`.
#[must_use]
pub fn copy(record: &Record, age: Duration) -> Value {
    json!({
        "event": "copy",
        "url": record.url,
        "bytes": record.length,
        "parts_sha256": record.parts_sha256,
        "unused_seconds": age.as_secs(),
    })
}

/// `code`, of `explain`.
#[must_use]
pub fn code(entry: &Entry) -> Value {
    let reason = |reason: &Reason| json!({ "reason": reason.reason, "try": reason.remedy });
    json!({
        "event": "code",
        "code": entry.code,
        "text": entry.text,
        "by": entry.by,
        "meaning": entry.meaning,
        "reasons": entry.reasons().map(reason).collect::<Vec<_>>(),
        "sources": entry.sources().collect::<Vec<_>>(),
    })
}

/// `fact`, `offer` and `finding`, of `doctor`.
#[must_use]
pub fn diagnosis(diagnosis: &Diagnosis) -> Vec<Value> {
    let interface = &diagnosis.interface;
    let fact = |fact: &doctor::Fact| {
        json!({
            "event": "fact",
            "interface": interface,
            "about": fact.about,
            "text": fact.text,
        })
    };
    let offer = |Heard { asker, offer }: &Heard| {
        json!({
            "event": "offer",
            "interface": interface,
            "asker": asker,
            "server": offer.server,
            "address": offer.address,
            "class": offer.class,
            "file": offer.file,
        })
    };
    let finding = |finding: &Finding| {
        json!({
            "event": "finding",
            "interface": interface,
            "finding": finding.name,
            "text": finding.text,
            "remedies": finding.remedies,
        })
    };
    let facts = diagnosis.facts.iter().map(fact);
    let offers = diagnosis.offers.iter().map(offer);
    facts.chain(offers).chain(diagnosis.findings.iter().map(finding)).collect()
}

/// `examined`, of `doctor`.
#[must_use]
pub fn examined(all: &[Diagnosis]) -> Value {
    let found: usize = all.iter().map(|one| one.findings.len()).sum();
    json!({ "event": "examined", "findings": found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Firmware, Ignored, Role, Statement},
        mac::MacAddr,
        nixos::State,
    };

    fn text(what: What) -> String {
        machine("eth0", &Event { at: 12, mac: MacAddr([2, 0, 0, 0, 0, 1]), what }, Some("Maker"))
    }

    #[test]
    fn events_keep_their_form() {
        assert_eq!(
            text(What::Fact(Fact::Seen { arch: 7, firmware: Firmware::Pxe })),
            concat!(
                r#"{"event":"machine","interface":"eth0","at":12,"mac":"02:00:00:00:00:01","#,
                r#""fact":"seen","arch":7,"firmware":"pxe","vendor":"Maker"}"#,
            )
        );
        assert_eq!(
            text(What::Fact(Fact::Ignored(Ignored::NoLoader { arch: 11 }))),
            concat!(
                r#"{"event":"machine","interface":"eth0","at":12,"mac":"02:00:00:00:00:01","#,
                r#""fact":"ignored","why":"no-loader","arch":11}"#,
            )
        );
        assert_eq!(
            text(What::Fact(Fact::TransferStarted {
                transfer: 1,
                protocol: crate::event::Protocol::Http,
                role: Role::Initrd(0),
                file: "i".to_owned(),
                size: 9,
                sent: 0,
            })),
            concat!(
                r#"{"event":"machine","interface":"eth0","at":12,"mac":"02:00:00:00:00:01","#,
                r#""fact":"transfer-started","transfer":1,"protocol":"http","role":{"initrd":0},"#,
                r#""file":"i","size":9,"sent":0}"#,
            )
        );
        assert_eq!(
            text(What::Statement(Statement::HandedOver)),
            concat!(
                r#"{"event":"machine","interface":"eth0","at":12,"mac":"02:00:00:00:00:01","#,
                r#""statement":"handed-over"}"#,
            )
        );
    }

    #[test]
    fn a_build_keeps_its_form() {
        for (state, word) in [
            (State::Started, "started"),
            (State::Output, "output"),
            (State::Done, "done"),
            (State::Same, "same"),
            (State::Failed, "failed"),
        ] {
            let text = build(&Told { state, text: "t".to_owned() }).to_string();
            assert_eq!(text, format!(r#"{{"event":"build","state":"{word}","text":"t"}}"#));
        }
    }

    #[test]
    fn one_object_is_one_line() {
        assert_eq!(note("a\nb").to_string(), r#"{"event":"note","text":"a\nb"}"#);
    }
}
