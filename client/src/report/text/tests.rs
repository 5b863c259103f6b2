//! The lines, word by word.

use super::*;
use crate::{
    board::Board,
    event::{Event, Fact, Firmware, Ignored, OfferForm, Protocol, Role, Statement, What},
    mac::MacAddr,
};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

fn at(at: u64, fact: Fact) -> Event {
    Event { at, mac: MAC, what: What::Fact(fact) }
}

const PLAIN: Narrator = Narrator { debug: false, live: false, several: false };
const DEBUG: Narrator = Narrator { debug: true, ..PLAIN };

fn lines(narrator: Narrator, board: &mut Board, event: &Event) -> Vec<Line> {
    narrator.lines("eth0", event, board.apply("eth0", event))
}

fn told_by(
    narrator: Narrator,
    board: &mut Board,
    events: impl IntoIterator<Item = Event>,
) -> Vec<String> {
    events
        .into_iter()
        .flat_map(|event| lines(narrator, board, &event))
        .map(|line| line.render(false))
        .collect()
}

fn told(narrator: Narrator, events: impl IntoIterator<Item = Event>) -> Vec<String> {
    told_by(narrator, &mut Board::default(), events)
}

fn first(event: &Event) -> Vec<Line> {
    lines(PLAIN, &mut Board::default(), event)
}

/// Found by fuzzing: an API's answer `{"cmdline": {"a\u0007b": 7}, ...}` rang the terminal's bell.
#[test]
fn what_others_say_is_shown_without_its_control_characters() {
    let reason = "cmdline: \"a\u{7}b\" is neither \u{1b}[2J\r\n\u{9b}31m".to_owned();
    let lines = told(
        DEBUG,
        [
            at(0, Fact::Ignored(Ignored::Source { reason: reason.clone() })),
            at(0, Fact::Upstream { file: reason.clone(), problem: reason }),
        ],
    );
    assert_eq!(lines.len(), 2);
    assert!(lines[0].ends_with("cmdline: \"a?b\" is neither ?[2J???31m"), "{lines:?}");
    assert!(!lines[1].contains(char::is_control), "{lines:?}");
}

fn a_boot() -> Vec<Event> {
    vec![
        at(0, Fact::Seen { arch: 7, firmware: Firmware::Pxe }),
        at(
            1,
            Fact::Offered {
                form: OfferForm::Complete,
                file: "52-54-00-12-34-56/snponly.efi".to_owned(),
            },
        ),
        at(
            20,
            Fact::TransferStarted {
                transfer: 1,
                protocol: Protocol::Tftp,
                role: Role::Loader,
                file: "f".to_owned(),
                size: 231_424,
                sent: 0,
            },
        ),
        at(
            400,
            Fact::TransferDone {
                transfer: 1,
                sent: 231_424,
                milliseconds: 380,
                retransmissions: 2,
            },
        ),
        at(2_000, Fact::Seen { arch: 7, firmware: Firmware::Ipxe }),
        at(2_001, Fact::Offered { form: OfferForm::Script, file: "http://h/boot.ipxe".to_owned() }),
        at(
            2_100,
            Fact::TransferStarted {
                transfer: 2,
                protocol: Protocol::Http,
                role: Role::Script,
                file: "f".to_owned(),
                size: 90,
                sent: 0,
            },
        ),
        at(
            2_101,
            Fact::TransferDone { transfer: 2, sent: 90, milliseconds: 1, retransmissions: 0 },
        ),
        at(
            2_200,
            Fact::TransferStarted {
                transfer: 3,
                protocol: Protocol::Http,
                role: Role::Initrd(0),
                file: "f".to_owned(),
                size: 100 << 20,
                sent: 0,
            },
        ),
        at(2_500, Fact::TransferProgress { transfer: 3, sent: 20 << 20, retransmissions: 0 }),
        at(2_700, Fact::TransferProgress { transfer: 3, sent: 30 << 20, retransmissions: 0 }),
        at(2_900, Fact::TransferProgress { transfer: 3, sent: 40 << 20, retransmissions: 0 }),
        at(
            3_200,
            Fact::TransferDone {
                transfer: 3,
                sent: 100 << 20,
                milliseconds: 1000,
                retransmissions: 0,
            },
        ),
        Event { at: 3_200, mac: MAC, what: What::Statement(Statement::HandedOver) },
    ]
}

#[test]
fn a_boot_in_plain_text() {
    let lines = told(PLAIN, a_boot());
    assert_eq!(
        lines,
        [
            "   0.0 s  52:54:00:12:34:56  asks for network boot (64-bit UEFI)",
            "   0.0 s  52:54:00:12:34:56  is told to load snponly.efi",
            "   0.4 s  52:54:00:12:34:56  has the boot loader: 226 KiB in 0.3 s, 594 KiB/s, TFTP, 2 packets sent again",
            "   2.0 s  52:54:00:12:34:56  iPXE runs and asks what to boot",
            "   2.2 s  52:54:00:12:34:56  fetches the initrd (100 MiB)",
            "   2.7 s  52:54:00:12:34:56  initrd: 30.0 MiB of 100 MiB",
            "   3.2 s  52:54:00:12:34:56  has the initrd: 100 MiB in 1.0 s, 100 MiB/s",
            "   3.2 s  52:54:00:12:34:56  has everything: its own system starts now",
        ]
    );
}

#[test]
fn of_several_interfaces_each_machine_is_named_with_its_own() {
    let lines = told(Narrator { several: true, ..PLAIN }, a_boot());
    assert_eq!(lines[0], "   0.0 s  eth0  52:54:00:12:34:56  asks for network boot (64-bit UEFI)");
}

#[test]
fn on_a_terminal_a_running_download_is_a_status_line() {
    let (live, mut board) = (Narrator { live: true, ..PLAIN }, Board::default());
    let lines = told_by(live, &mut board, a_boot().into_iter().take(11));
    assert!(lines.iter().all(|line| !line.contains("30.0 MiB")), "{lines:?}");
    assert_eq!(
        status(&board).as_deref(),
        Some("          52:54:00:12:34:56  initrd: 30.0 MiB of 100 MiB  60.0 MiB/s")
    );
    told_by(live, &mut board, a_boot().into_iter().skip(12));
    assert_eq!(status(&board), None);
}

#[test]
fn details_come_with_debug_only() {
    let hidden = [
        Fact::NotFound { protocol: Protocol::Tftp, file: "x".to_owned() },
        Fact::Offered { form: OfferForm::Script, file: "http://h/boot.ipxe".to_owned() },
    ];
    for fact in hidden {
        assert!(told(PLAIN, [at(0, fact.clone())]).is_empty());
        assert_eq!(told(DEBUG, [at(0, fact)]).len(), 1);
    }
}

#[test]
fn what_went_wrong_is_marked_and_its_advice_follows() {
    let stalled = Event {
        at: 60_000,
        mac: MAC,
        what: What::Statement(Statement::Stalled {
            step: "the boot loader was fetched".to_owned(),
            screen: vec!["access-denied".to_owned(), "PXE-E53".to_owned()],
            advice: vec!["switch Secure Boot off".to_owned(), "try ipxe.efi".to_owned()],
        }),
    };
    let lines = first(&stalled);
    assert!(lines.iter().all(|line| line.tone == Tone::Attention));
    let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "nothing more since: the boot loader was fetched",
            "  its screen probably says \"Access Denied\" or PXE-E53 (portcullis explain access-denied)",
            "  - switch Secure Boot off",
            "  - try ipxe.efi"
        ]
    );
    let ended = Fact::TransferEnded { transfer: 9, sent: 2048, reason: "no answer".to_owned() };
    let lines = first(&at(5, ended));
    assert_eq!(lines[0].text, "stopped fetching the file after 2.0 KiB: no answer");
    let refused = Fact::Ignored(Ignored::NoLoader { arch: 11 });
    let lines = first(&at(5, refused));
    assert_eq!(
        lines[0].text,
        "asks, and cannot be served: no boot loader for 64-bit ARM UEFI (architecture 11; see \
         --ipxe-dir and --loader)"
    );
    let unknown = Fact::Ignored(Ignored::UnknownArchitecture { arch: 300 });
    let lines = first(&at(5, unknown));
    assert!(lines[0].text.contains("(architecture 300; see --loader)"), "{lines:?}");
}

#[test]
fn http_boot_and_why_not() {
    let file = "http://192.0.2.2:1/t/m/boot.efi".to_owned();
    let started = Fact::TransferStarted {
        transfer: 1,
        protocol: Protocol::Http,
        role: Role::Efi,
        file: "f".to_owned(),
        size: 10,
        sent: 0,
    };
    let done =
        Fact::TransferDone { transfer: 1, sent: 2048, milliseconds: 1000, retransmissions: 0 };
    let reason = "systemd's boot stub was not found".to_owned();
    let events = [
        Fact::Seen { arch: 16, firmware: Firmware::Http },
        Fact::Offered { form: OfferForm::Http, file },
        started,
        done,
        Fact::Ignored(Ignored::NoEfiImage { arch: 16, reason }),
        Fact::Ignored(Ignored::OtherPlatform { arch: 0 }),
    ];
    let lines = told(PLAIN, events.into_iter().map(|fact| at(0, fact)));
    let texts = [
        "asks for HTTP boot (64-bit UEFI, HTTP)",
        "is told to load boot.efi by HTTP",
        "has the whole program: 2.0 KiB in 1.0 s",
        "asks, and cannot be served: 64-bit UEFI, HTTP: systemd's boot stub was not found",
        "asks, and cannot be served: what is served does not run on BIOS",
    ];
    assert_eq!(lines.len(), texts.len(), "{lines:?}");
    for (line, text) in lines.iter().zip(texts) {
        assert!(line.contains(text), "{text}: {line}");
    }
}

#[test]
fn colour_is_only_there_when_asked_for() {
    let line = Line { head: "h ".to_owned(), text: "t".to_owned(), tone: Tone::Good };
    assert_eq!(line.render(false), "h t");
    assert_eq!(line.render(true), "h \x1b[32mt\x1b[0m");
    assert_eq!(Line::plain("t").render(true), "t");
}
