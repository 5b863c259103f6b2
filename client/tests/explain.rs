//! `portcullis explain`, as a person and as a script call it. It needs no helper and no bus.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::process::{Command, Output};

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};
use portcullis::cli::{Cli, fish_codes};
use serde_json::Value;

fn explain(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    // Nobody can be asked there.
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent");
    command.arg("explain").args(words).output().unwrap()
}

fn stdout(words: &[&str]) -> String {
    let output = explain(words);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn objects(words: &[&str]) -> Vec<Value> {
    stdout(words).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_code_is_explained_in_words() {
    let text = stdout(&["e53"]);
    assert!(text.starts_with("PXE-E53: No boot filename received.\n"), "{text}");
    assert_eq!(stdout(&["Access", "Denied"]), stdout(&["access-denied"]));
    let text = stdout(&["https://ipxe.org/4c0a6092"]);
    assert!(text.starts_with("ipxe-4c0a6: Connection timed out (TCP)\n"), "{text}");
    assert!(text.contains("--port 8080"), "{text}");
}

#[test]
fn without_a_code_all_are_listed() {
    let text = stdout(&[]);
    assert!(text.starts_with("Shown by the network card's ROM (BIOS)\n  PXE-E00 "), "{text}");
    assert!(text.lines().count() > 100, "{text}");
    assert!(objects(&["--json"]).len() > 100);
}

#[test]
fn json_holds_the_same() {
    let found = objects(&["--json", "PXE-E21"]);
    let by: Vec<_> = found.iter().map(|one| one["by"][0].as_str().unwrap()).collect();
    assert_eq!(by, ["bios", "uefi"]);
    for one in &found {
        assert_eq!((one["event"].as_str(), one["code"].as_str()), (Some("code"), Some("PXE-E21")));
        assert!(one["reasons"][0]["reason"].is_string() && one["reasons"][0]["try"].is_string());
        assert!(one["meaning"].is_string() && one["sources"][0].is_string(), "{one}");
    }
}

#[test]
fn an_unknown_code_ends_with_2_and_names_near_ones() {
    let output = explain(&["PXE-E54"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
    assert!(said.starts_with("portcullis: nothing is known of \"PXE-E54\"\n"), "{said}");
    assert!(
        said.contains("  - portcullis explain PXE-E53: No boot filename received.\n"),
        "{said}"
    );
    let said = String::from_utf8(explain(&["0x10000001"]).stderr).unwrap();
    assert!(said.ends_with("iPXE's own page: https://ipxe.org/10000001\n"), "{said}");
    // What was typed is shown without its control characters.
    let said = String::from_utf8(explain(&["\x1b[2J"]).stderr).unwrap();
    assert!(!said.contains('\x1b'), "{said}");
}

#[test]
fn shells_complete_codes() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "portcullis", &mut script);
        let mut script = String::from_utf8(script).unwrap();
        if shell == Shell::Fish {
            // The name of the generator's own function.
            assert!(script.contains("function __fish_portcullis_using_subcommand"), "{script}");
            script = fish_codes();
        }
        for code in ["PXE-E53", "ipxe-4c0a6", "access-denied"] {
            assert!(script.contains(code), "{shell}: {code}");
        }
    }
}
