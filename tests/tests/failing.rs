//! Machines that fail on purpose: real firmware, real iPXE and a real kernel stop where something is
//! wrong, and the client says at which step, what the screen shows and what to try
//! (docs/failing.md). What Secure Boot refuses is in `secureboot.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{path::Path, thread, time::Duration};

use portcullis_lab::{
    Needs,
    host::{Client, Site},
    machine::{self, Firmware, MEMORY, Machine, OVMF, OVMF32},
    need_host,
    nixos::Flavour,
    process::wait_until,
    scene::{HTTP, Scene},
};
use serde_json::Value;

const CMDLINE: &str = "console=ttyS0 panic=1 loglevel=4 no_timer_check";
/// Firmware takes its time to give up, and a busy machine takes more.
const LONG: Duration = machine::BOOT.saturating_mul(2);

/// A machine, and what becomes of it.
struct Case {
    firmware: Firmware,
    mac: &'static str,
    mebibytes: u32,
    /// What its screen shows (here: its serial console).
    screen: &'static str,
    expected: Expected,
}

enum Expected {
    /// The client says that it has stopped.
    Stalled {
        /// Words of the step.
        step: &'static str,
        /// A code that it says the screen shows; nothing where it says none.
        code: &'static str,
        /// Words of a reason and of what to try.
        advice: [&'static str; 2],
    },
    /// It is left alone, for this reason.
    Ignored(&'static str),
}

impl Expected {
    fn is(&self, event: &Value) -> bool {
        match self {
            Self::Stalled { step, code, advice } => {
                let words = |key: &str| -> Vec<String> {
                    let list = event[key].as_array().cloned().unwrap_or_default();
                    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
                };
                let screen = words("screen");
                event["statement"] == "stalled"
                    && event["step"].as_str().is_some_and(|told| told.contains(step))
                    && (screen.iter().any(|shown| shown == code)
                        || code.is_empty() && screen.is_empty())
                    && words("advice").iter().any(|line| advice.iter().all(|w| line.contains(w)))
            }
            Self::Ignored(why) => event["fact"] == "ignored" && event["why"] == *why,
        }
    }
}

/// Switches all on at once, and waits until each shows what it is to show, and the client says what it
/// is to say.
fn fail(scene: &Scene, client: &Client, cases: &[Case]) {
    let fails = |case: &Case| {
        let Case { firmware, mac, .. } = case;
        let machine = Machine::with_memory(&scene.lan, *firmware, mac, case.mebibytes).unwrap();
        let events = || client.events().into_iter().filter(|event| event["mac"] == *mac);
        let told = wait_until(LONG, || events().any(|event| case.expected.is(&event)));
        let console = machine.console();
        let list = || events().map(|event| format!("{event}\n")).collect::<String>();
        assert!(told, "{firmware:?} {mac}: it is not told\n{}{console}", list());
        let shown = wait_until(LONG, || machine.console().contains(case.screen));
        let console = machine.console();
        assert!(shown, "{firmware:?} {mac}: no {}:\n{}{console}", case.screen, list());
        assert!(!console.contains("PORTCULLIS-UP"), "{console}");
    };
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| fails(case));
        }
    });
}

/// A box between the host and the machines drops what these rules say (nft(8)).
fn drop_between(scene: &Scene, rules: &str) {
    let chain = "type filter hook forward priority 0";
    let table = format!("table bridge middle {{ chain forward {{ {chain}; {rules} }}; }}");
    scene.lan.switch().sh(&format!("nft '{table}'")).unwrap();
}

fn readable(directory: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory, mode).unwrap();
}

#[test]
fn machines_behind_a_box_that_drops_and_one_with_too_little_memory_are_told_what_to_try() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::File(OVMF[0]));
    let directory = tempfile::tempdir().unwrap();
    readable(directory.path());
    let large = directory.path().join("large");
    std::fs::File::create(&large).unwrap().set_len(300 << 20).unwrap();
    let large = large.display().to_string();
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let arguments = ["/mnt/initrd", &large, "--cmdline", CMDLINE];
    let client = scene.serve_this("/mnt/bzImage", &arguments).unwrap();
    drop_between(
        &scene,
        &format!(
            "ether saddr {{ 02:00:00:00:00:01, 02:00:00:00:00:02 }} udp dport 69 drop; \
             ether saddr {{ 02:00:00:00:00:03, 02:00:00:00:00:04 }} tcp dport {HTTP} drop;"
        ),
    );
    let no_loader = "was offered a loader, and has not fetched it";
    let between = ["Something between the two drops packets", "the same switch"];
    let port = ["A firewall between the two drops TCP", "--port"];
    fail(
        &scene,
        &client,
        &[
            Case {
                firmware: Firmware::Uefi,
                mac: "02:00:00:00:00:01",
                mebibytes: MEMORY,
                screen: "PXE-E18: Server response timeout.",
                expected: Expected::Stalled { step: no_loader, code: "PXE-E18", advice: between },
            },
            // What runs there is an iPXE, whatever it says: it shows a number of its own.
            Case {
                firmware: Firmware::BiosPlain,
                mac: "02:00:00:00:00:02",
                mebibytes: MEMORY,
                screen: "ipxe.org/4c126",
                expected: Expected::Stalled { step: no_loader, code: "PXE-E32", advice: between },
            },
            Case {
                firmware: Firmware::Bios,
                mac: "02:00:00:00:00:03",
                mebibytes: MEMORY,
                screen: "ipxe.org/4c0a6",
                expected: Expected::Stalled {
                    step: "was told where its script is, and has not fetched it",
                    code: "ipxe-4c0a6",
                    advice: port,
                },
            },
            Case {
                firmware: Firmware::UefiHttp,
                mac: "02:00:00:00:00:04",
                mebibytes: MEMORY,
                screen: "Error: Could not retrieve NBP file size from HTTP server.",
                expected: Expected::Stalled {
                    step: "was told where the EFI program is, and has not fetched it",
                    code: "could-not-retrieve-nbp-file-size",
                    advice: port,
                },
            },
            Case {
                firmware: Firmware::Bios,
                mac: "02:00:00:00:00:05",
                mebibytes: 128,
                screen: "No space left on device (http://ipxe.org/34",
                expected: Expected::Stalled {
                    step: "has not fetched every initrd",
                    code: "ipxe-34",
                    advice: ["too little memory for the initrd", "a smaller initrd"],
                },
            },
        ],
    );
    let handed_over = |event: &Value| event["statement"] == "handed-over";
    assert!(!client.events().iter().any(handed_over), "{}", client.stdout());
}

#[test]
fn a_damaged_initrd_lost_tftp_answers_and_a_kernel_for_another_processor_are_told() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::File(OVMF[0]), Needs::File(OVMF32[0]));
    let directory = tempfile::tempdir().unwrap();
    readable(directory.path());
    let mut octets = std::fs::read(machine::image().unwrap().join("initrd")).unwrap();
    let half = octets.len() / 2;
    octets[half..].fill(0x55);
    let damaged = directory.path().join("initrd");
    std::fs::write(&damaged, octets).unwrap();
    let damaged = damaged.display().to_string();
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let client = scene.serve_this("/mnt/bzImage", &[&damaged, "--cmdline", CMDLINE]).unwrap();
    // As a firewall without a memory does it: the request goes through, and the answer, which comes
    // from another port, does not.
    drop_between(
        &scene,
        "ether daddr 02:00:00:00:00:02 ip saddr 192.0.2.2 udp sport != { 67, 69, 4011 } drop;",
    );
    fail(
        &scene,
        &client,
        &[
            Case {
                firmware: Firmware::Bios,
                mac: "02:00:00:00:00:01",
                mebibytes: MEMORY,
                screen: "Kernel panic - not syncing: VFS: Unable to mount root fs",
                expected: Expected::Stalled {
                    step: "the system did not come up",
                    code: "",
                    advice: ["an initrd is damaged", "Make the image anew"],
                },
            },
            Case {
                firmware: Firmware::Uefi,
                mac: "02:00:00:00:00:02",
                mebibytes: MEMORY,
                screen: "PXE-E18: Server response timeout.",
                expected: Expected::Stalled {
                    step: "the loader's download has stopped",
                    code: "PXE-E18",
                    advice: ["lets UDP 69 pass and drops the data", "the same switch"],
                },
            },
            Case {
                firmware: Firmware::Uefi32,
                mac: "02:00:00:00:00:03",
                mebibytes: MEMORY,
                screen: "PXE-E16: No valid offer received.",
                expected: Expected::Ignored("other-platform"),
            },
        ],
    );
}
