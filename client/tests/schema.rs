//! Every object that `--json` can write is one of those in `docs/events.schema.json`, with exactly
//! the fields that stand there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use portcullis::{
    codes,
    event::{Event, Fact, Firmware, Ignored, OfferForm, Protocol, Role, Sign, Statement, What},
    exit::{Code, Failure},
    interfaces::{Interface, Kind},
    mac::MacAddr,
    report::{Asking, Ready, Served, json},
    session::{Facts, Lease},
    source::cache::Record,
};
use serde_json::{Value, json};

/// The keywords that the schema uses; any other is an error of this test.
fn valid(schema: &Value, root: &Value, value: &Value) -> bool {
    schema.as_object().unwrap().iter().all(|(keyword, rule)| match keyword.as_str() {
        "title" | "$schema" | "description" | "$defs" => true,
        "$ref" => {
            let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
            valid(&root["$defs"][name], root, value)
        }
        "type" => match rule.as_str().unwrap() {
            "string" => value.is_string(),
            "integer" => value.is_u64() || value.is_i64(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("type {other}"),
        },
        "minimum" => value.as_i64() >= rule.as_i64(),
        "maximum" => value.as_u64() <= rule.as_u64(),
        "const" => value == rule,
        "enum" => rule.as_array().unwrap().contains(value),
        // The one pattern is that of hardware addresses.
        "pattern" => value.as_str().unwrap().parse::<MacAddr>().is_ok(),
        "items" => {
            value.as_array().is_none_or(|items| items.iter().all(|one| valid(rule, root, one)))
        }
        "anyOf" => rule.as_array().unwrap().iter().any(|one| valid(one, root, value)),
        "oneOf" => {
            rule.as_array().unwrap().iter().filter(|one| valid(one, root, value)).count() == 1
        }
        "required" => rule.as_array().unwrap().iter().all(|name| {
            !value[name.as_str().unwrap()].is_null() || value.get(name.as_str().unwrap()).is_some()
        }),
        // Stricter than the standard: a field that is written and not described is an error here.
        "properties" => value.as_object().is_none_or(|fields| {
            fields.iter().all(|(name, field)| {
                rule.get(name).is_some_and(|described| valid(described, root, field))
            })
        }),
        other => panic!("keyword {other}"),
    })
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../../docs/events.schema.json")).unwrap()
}

fn text() -> String {
    "x".to_owned()
}

/// One of each. What is new and not named here does not compile.
fn facts() -> Vec<Fact> {
    let all = vec![
        Fact::Seen { arch: 7, firmware: Firmware::Pxe },
        Fact::Seen { arch: 7, firmware: Firmware::Ipxe },
        Fact::Seen { arch: 16, firmware: Firmware::Http },
        Fact::Offered { form: OfferForm::Complete, file: text() },
        Fact::Offered { form: OfferForm::BootServer, file: text() },
        Fact::Offered { form: OfferForm::Script, file: text() },
        Fact::Offered { form: OfferForm::Http, file: text() },
        Fact::Offered { form: OfferForm::Folder, file: text() },
        Fact::Ignored(Ignored::NotSelected),
        Fact::Ignored(Ignored::AlreadyBooted),
        Fact::Ignored(Ignored::NoLoader { arch: 11 }),
        Fact::Ignored(Ignored::NoEfiImage { arch: 16, reason: text() }),
        Fact::Ignored(Ignored::OtherPlatform { arch: 11 }),
        Fact::Ignored(Ignored::UnknownArchitecture { arch: 65535 }),
        Fact::Ignored(Ignored::Source { reason: text() }),
        Fact::NotSent { reason: text() },
        Fact::BootServer { file: text() },
        Fact::Selected { server: Ipv4Addr::LOCALHOST, address: None },
        Fact::Selected { server: Ipv4Addr::LOCALHOST, address: Some(Ipv4Addr::LOCALHOST) },
        Fact::Leased { address: Ipv4Addr::LOCALHOST },
        Fact::TransferProgress { transfer: 1, sent: 1, retransmissions: 1 },
        Fact::TransferDone { transfer: 1, sent: 1, milliseconds: 1, retransmissions: 0 },
        Fact::TransferEnded { transfer: 1, sent: 1, reason: text() },
        Fact::Upstream { file: text(), problem: text() },
        Fact::NotFound { protocol: Protocol::Tftp, file: text() },
        Fact::Fetched { file: text(), octets: 1, milliseconds: 1, kept: true },
        Fact::Reused { file: text(), octets: 1 },
        Fact::Up { sign: Sign::Dhcp },
        Fact::Up { sign: Sign::Url },
    ];
    let roles = [
        Role::Loader,
        Role::Script,
        Role::Autoexec,
        Role::Kernel,
        Role::Efi,
        Role::Firmware,
        Role::Initrd(3),
        Role::Other,
    ];
    let downloads = roles.into_iter().map(|role| {
        let (protocol, file) = (Protocol::Http, text());
        Fact::TransferStarted { transfer: 1, protocol, role, file, size: u64::MAX >> 1, sent: 0 }
    });
    let all: Vec<_> = all.into_iter().chain(downloads).collect();
    for fact in &all {
        match fact {
            Fact::Seen { .. }
            | Fact::Offered { .. }
            | Fact::Ignored(
                Ignored::NotSelected
                | Ignored::AlreadyBooted
                | Ignored::NoLoader { .. }
                | Ignored::NoEfiImage { .. }
                | Ignored::OtherPlatform { .. }
                | Ignored::UnknownArchitecture { .. }
                | Ignored::Source { .. },
            )
            | Fact::NotSent { .. }
            | Fact::BootServer { .. }
            | Fact::Selected { .. }
            | Fact::Leased { .. }
            | Fact::TransferStarted { .. }
            | Fact::TransferProgress { .. }
            | Fact::TransferDone { .. }
            | Fact::TransferEnded { .. }
            | Fact::Upstream { .. }
            | Fact::Fetched { .. }
            | Fact::Reused { .. }
            | Fact::NotFound { .. }
            | Fact::Up { .. } => {}
        }
    }
    all
}

fn statements() -> [Statement; 2] {
    let (screen, advice) = (vec![text()], vec![text(), text()]);
    [Statement::HandedOver, Statement::Stalled { step: text(), screen, advice }]
}

fn objects() -> Vec<Value> {
    let whats = facts().into_iter().map(What::Fact).chain(statements().map(What::Statement));
    let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xfe]);
    let mut objects: Vec<_> = whats
        .flat_map(|what| {
            let event = Event { at: 1, mac, what };
            [None, Some("Maker")]
                .map(|vendor| json::machine("eth0", &event, vendor))
                .map(|line| serde_json::from_str(&line).unwrap())
        })
        .collect();
    for (max_seconds, address, uid) in
        [(None, None, None), (Some(1), Some(Ipv4Addr::LOCALHOST), Some(1000))]
    {
        let interface = "eth0".to_owned();
        let (udp_ports, tcp_ports) = (vec![67, 69], vec![64172]);
        objects.push(json::page("http://127.0.0.1:64173/0/", max_seconds.is_some()));
        objects.push(json::asking(&Asking {
            interface: interface.clone(),
            udp_ports: udp_ports.clone(),
            tcp_ports: tcp_ports.clone(),
            max_seconds,
            dhcp_server: uid.is_some(),
        }));
        let facts = Facts { interface, udp_ports, tcp_ports, address, uid, ..Facts::default() };
        let lease = Lease { number: 7, facts };
        let served = |bytes| Served { name: text(), bytes };
        objects.push(json::ready(&Ready {
            lease: &lease,
            begun: Instant::now(),
            last: true,
            api: uid.map(|_| "http://api"),
            kernel: uid.map(|_| served(None)),
            initrds: vec![served(Some(1)), served(None)],
            menu: vec![text()],
            cmdline: text(),
            loaders: vec![text()],
            can: vec![],
            cannot: vec![],
            addresses: uid.map(|_| 9),
            only: vec![],
        }));
        objects.push(json::closed(&lease, "closed"));
        objects.push(json::lease(&lease, 5));
    }
    objects.push(json::note("a\nb"));
    objects.push(json::failure(&Failure::new(Code::Usage, "no").advise("yes")));
    for kind in [Kind::Wired, Kind::Wireless, Kind::Loopback, Kind::Virtual] {
        let one = Interface {
            name: text(),
            kind,
            up: true,
            carrier: false,
            addresses: vec![Ipv4Addr::LOCALHOST],
            bridge: None,
        };
        objects.push(json::interface(&one, Some("x")));
        objects.push(json::interface(&Interface { bridge: Some(text()), ..one }, None));
    }
    objects.push(json::copy(
        &Record {
            url: text(),
            length: 1,
            etag: None,
            last_modified: None,
            tag: text(),
            parts_sha256: text(),
        },
        Duration::from_secs(7),
    ));
    objects.extend(codes::data().codes.iter().map(json::code));
    objects
}

#[test]
fn what_is_written_is_described() {
    let schema = schema();
    for object in objects() {
        assert!(valid(&schema, &schema, &object), "{object}");
    }
}

#[test]
fn what_is_described_is_written() {
    let schema = schema();
    let objects = objects();
    for one in schema["oneOf"].as_array().unwrap() {
        assert!(objects.iter().any(|object| valid(one, &schema, object)), "{one}");
    }
}

#[test]
fn what_is_wrong_is_found() {
    let schema = schema();
    let note = json!({"event": "note", "text": "x"});
    assert!(valid(&schema, &schema, &note));
    for wrong in [
        json!({"event": "note"}),
        json!({"event": "note", "text": 1}),
        json!({"event": "note", "text": "x", "more": 1}),
        json!({"event": "machine", "at": 1, "interface": "e", "mac": "1", "statement": "handed-over"}),
        json!({"event": "machine", "at": -1, "interface": "e", "mac": "52:54:00:12:34:56", "statement": "handed-over"}),
        json!({"event": "machine", "at": 1, "interface": "e", "mac": "52:54:00:12:34:56", "fact": "up", "sign": "x"}),
    ] {
        assert!(!valid(&schema, &schema, &wrong), "{wrong}");
    }
}
