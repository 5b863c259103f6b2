//! Pictures of boards at the sizes that people use, and keys.

use std::net::Ipv4Addr;

use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{Event as Typed, KeyCode, KeyEvent, KeyModifiers},
    style::Color,
};

use super::{
    draw::{Head, Look, Scene, draw},
    is_utf8,
    state::{Page, State, Wish},
};
use crate::{
    board::Board,
    event::{Event, Fact, Firmware, Ignored, Protocol, Role, Statement, What},
    mac::MacAddr,
    report::text::Line,
};

const PLAIN: Look = Look { color: false, unicode: true };
const MIB: u64 = 1 << 20;

fn tell(board: &mut Board, number: u8, at: u64, what: What) {
    let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, number]);
    board.apply("eth0", &Event { at, mac, what });
}

/// So many machines, each at another step: downloading, stopped, handed over, left alone, asking.
fn board(machines: u8) -> Board {
    let mut board = Board::default();
    for number in 0..machines {
        let mut fact = |at, fact| tell(&mut board, number, at, What::Fact(fact));
        fact(0, Fact::Seen { arch: 7, firmware: Firmware::Pxe });
        let transfer = u64::from(number);
        let (role, file) = (Role::Initrd(0), "initrd".to_owned());
        let protocol = Protocol::Http;
        let size = 800 * MIB;
        match number % 5 {
            0 => {
                fact(10, Fact::TransferStarted { transfer, protocol, role, file, size, sent: 0 });
                let sent = 200 * MIB;
                fact(2_010, Fact::TransferProgress { transfer, sent, retransmissions: 7 });
            }
            1 => {
                let words = |text: &str| vec![text.to_owned()];
                let stalled = Statement::Stalled {
                    step: "the boot loader was fetched".to_owned(),
                    screen: words("PXE-E53"),
                    advice: words("switch Secure Boot off"),
                };
                tell(&mut board, number, 2_000, What::Statement(stalled));
            }
            2 => tell(&mut board, number, 2_000, What::Statement(Statement::HandedOver)),
            3 => fact(20, Fact::Ignored(Ignored::NotSelected)),
            _ => {}
        }
    }
    board
}

fn heads() -> Vec<Head> {
    vec![Head {
        interface: "eth0".to_owned(),
        address: Some(Ipv4Addr::new(192, 0, 2, 2)),
        ports: (vec![67, 69, 4011], vec![64172]),
        ends: 43_200_000,
    }]
}

/// The picture as lines of text.
fn picture(board: &Board, state: &mut State, look: Look, size: (u16, u16)) -> Vec<String> {
    let message = Line::attention("eth1: the time is over");
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    let (heads, message) = (heads(), Some(&message));
    let scene = Scene { board, heads: &heads, message, look };
    terminal.draw(|frame| draw(frame.buffer_mut(), &scene, state)).unwrap();
    let buffer = terminal.backend().buffer();
    if !look.color {
        assert!(buffer.content.iter().all(|cell| cell.fg == Color::Reset));
    }
    (0..size.1)
        .map(|y| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>())
        .map(|line| line.trim_end().to_owned())
        .collect()
}

fn press(state: &mut State, code: KeyCode) -> Wish {
    state.typed(&Typed::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

#[test]
fn eight_machines_on_80_columns() {
    let lines = picture(&board(8), &mut State::default(), PLAIN, (80, 24));
    let bar = format!("{}{}", "\u{2588}".repeat(5), "\u{2591}".repeat(15));
    let expected = [
        "eth0 192.0.2.2, open: UDP 67, 69, 4011 and TCP 64172            11 h 59 min left",
        "8 machines, 2 stopped, 1 asking, 2 initrd, 2 starting, 1 left alone",
        "",
        &format!("> 52:54:00:12:34:00 initrd      {bar}  25%   100 MiB/s      6.0 s"),
        "  52:54:00:12:34:01 stopped     nothing more since: the boot loader was fetched",
        "  52:54:00:12:34:02 starting    has everything: its own system starts now",
        "  52:54:00:12:34:03 left alone  is not among --for-mac: left alone",
        "  52:54:00:12:34:04 asking      asks for network boot (64-bit UEFI)",
    ];
    assert_eq!(lines[..8], expected, "{lines:#?}");
    assert_eq!(lines[22], "eth1: the time is over");
    assert!(lines[23].contains("Enter: details") && lines[23].ends_with("q: close and end"));
    // What is cut off is seen to be.
    let lines = picture(&board(8), &mut State::default(), PLAIN, (40, 24));
    assert_eq!(lines[1], "8 machines, 2 stopped, 1 asking, 2 init\u{2026}");
    assert_eq!(lines[4], "  12:34:01 stopped     nothing more sin\u{2026}");
}

#[test]
fn every_size_shows_who_and_how_far_and_how_to_leave() {
    for machines in [1, 8, 60] {
        for (width, height) in [(40, 24), (80, 24), (160, 50), (40, 8)] {
            let board = board(machines);
            let lines = picture(&board, &mut State::default(), PLAIN, (width, height));
            let room = usize::from(height) - 5;
            match lines.iter().find(|line| line.contains("12:34:00 ")) {
                Some(line) => {
                    assert!(line.contains("25%") && line.contains('\u{2588}'), "{width}: {line}");
                    assert!(line.contains("initrd"), "{width}: {line}");
                    assert_eq!(line.contains("200 MiB of 800 MiB"), width == 160, "{line}");
                    assert_eq!(line.contains("7 again"), width == 160, "{line}");
                }
                None => {
                    assert_eq!((machines, height), (60, 8));
                    assert!(lines[3].contains("stopped"), "{lines:#?}");
                }
            }
            assert!(lines[usize::from(height) - 1].contains("q: "), "{lines:#?}");
            let shown = lines.iter().filter(|line| line.contains("12:34:")).count();
            assert_eq!(shown, room.min(machines.into()), "{width}x{height}: {lines:#?}");
        }
    }
    // Too small for anything, and no panic.
    for size in [(1, 1), (3, 2), (39, 3), (10, 4)] {
        for page in [Page::List, Page::Details(0), Page::Help] {
            let mut state = State { page, ..State::default() };
            picture(&board(60), &mut state, PLAIN, size);
        }
    }
}

#[test]
fn the_chosen_machine_of_60_is_always_shown() {
    let board = board(60);
    let mut state = State::default();
    let chosen = |state: &mut State| {
        let lines = picture(&board, state, PLAIN, (80, 24));
        let line = lines.iter().find(|line| line.starts_with('>')).expect("one is chosen");
        (line.get(17..19).expect("an address").to_owned(), lines[2].trim().to_owned())
    };
    for (keys, mac, shown) in [
        (&[][..], "01", "1-19 of 60"),
        (&[KeyCode::Down, KeyCode::Char('j')], "0b", "1-19 of 60"),
        (&[KeyCode::End], "3a", "42-60 of 60"),
        (&[KeyCode::Down], "3a", "42-60 of 60"),
        (&[KeyCode::PageUp, KeyCode::PageUp], "11", "40-58 of 60"),
        (&[KeyCode::Home], "01", "1-19 of 60"),
        (&[KeyCode::Char('k')], "01", "1-19 of 60"),
    ] {
        for key in keys {
            assert_eq!(press(&mut state, *key), Wish::Draw);
        }
        assert_eq!(chosen(&mut state), (mac.to_owned(), shown.to_owned()), "{keys:?}");
    }
}

#[test]
fn who_needs_somebody_comes_first_and_the_chosen_machine_stays_chosen() {
    let mut board = board(60);
    let mut state = State::default();
    let first = |board: &Board, state: &mut State| {
        let lines = picture(board, state, PLAIN, (80, 24));
        let numbers: Vec<_> =
            lines[3..22].iter().map(|line| line[17..19].to_owned() + &line[..1]).collect();
        numbers[..4].join(" ")
    };
    assert_eq!(first(&board, &mut state), "01> 06  0b  10 ");
    press(&mut state, KeyCode::Down);
    let (step, screen, advice) = ("it asked".to_owned(), Vec::new(), Vec::new());
    tell(&mut board, 4, 3_000, What::Statement(Statement::Stalled { step, screen, advice }));
    assert_eq!(first(&board, &mut state), "01  04  06> 0b ");
    press(&mut state, KeyCode::Enter);
    assert_eq!(state.page, Page::Details(6));
    press(&mut state, KeyCode::Enter);
    press(&mut state, KeyCode::Home);
    assert_eq!(first(&board, &mut state), "01> 04  06  0b ");
}

#[test]
fn details_tell_the_log_and_what_to_try() {
    let board = board(2);
    let mut state = State::default();
    picture(&board, &mut state, PLAIN, (80, 24));
    press(&mut state, KeyCode::Down);
    press(&mut state, KeyCode::Enter);
    assert_eq!(state.page, Page::Details(1));
    let text = picture(&board, &mut state, PLAIN, (80, 24)).join("\n");
    for part in [
        "52:54:00:12:34:01, 64-bit UEFI, on eth0",
        "stopped (asking) for",
        "Nothing more came since: the boot loader was fetched.",
        "its screen probably says PXE-E53 (portcullis explain PXE-E53)",
        "  - switch Secure Boot off",
        "   0.0 s  asks for network boot (64-bit UEFI)",
        "Enter: back",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // On few lines it scrolls, and not past its end.
    press(&mut state, KeyCode::End);
    let lines = picture(&board, &mut state, PLAIN, (80, 10));
    assert!(lines[7].contains("switch Secure Boot off"), "{lines:#?}");
    press(&mut state, KeyCode::Esc);
    assert_eq!(state.page, Page::List);
    // A running download has its bar there, too.
    press(&mut state, KeyCode::Home);
    press(&mut state, KeyCode::Enter);
    let text = picture(&board, &mut state, PLAIN, (80, 24)).join("\n");
    assert!(text.contains("initrd initrd") && text.contains("25%"), "{text}");
}

#[test]
fn keys_that_end_save_stop_and_help() {
    let board = Board::default();
    let mut state = State::default();
    let control = |key| Typed::Key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL));
    assert_eq!(press(&mut state, KeyCode::Char('q')), Wish::Quit);
    assert_eq!(state.typed(&control('c')), Wish::Quit);
    assert_eq!(state.typed(&control('z')), Wish::Suspend);
    assert_eq!(press(&mut state, KeyCode::Char('l')), Wish::Save);
    state.notice = Some("The log is in x".to_owned());
    let lines = picture(&board, &mut state, PLAIN, (80, 24));
    assert_eq!(lines[22], "The log is in x");
    assert!(lines.iter().any(|line| line.contains("often F12")), "{lines:#?}");
    assert_eq!(press(&mut state, KeyCode::Char('?')), Wish::Draw);
    let text = picture(&board, &mut state, PLAIN, (80, 24)).join("\n");
    assert!(text.contains("Ctrl-Z: stop for a while") && !text.contains("The log is in"), "{text}");
    press(&mut state, KeyCode::Char('x'));
    assert_eq!(state.page, Page::List);
    // Nothing to show the details of.
    press(&mut state, KeyCode::Enter);
    assert_eq!(state.page, Page::List);
}

#[test]
fn a_terminal_without_unicode_gets_ascii() {
    let ascii = Look { color: false, unicode: false };
    let mut board = board(1);
    let file = "caf\u{e9}".to_owned();
    tell(&mut board, 0, 3_000, What::Fact(Fact::Upstream { file, problem: "gone".to_owned() }));
    for page in [Page::List, Page::Details(0)] {
        let mut state = State { page, ..State::default() };
        let text = picture(&board, &mut state, ascii, (80, 24)).join("\n");
        assert!(text.is_ascii(), "{text}");
        assert!(text.contains("####") && text.contains("...."), "{text}");
    }
    let variables = |set: &'static [(&str, &str)]| {
        is_utf8(|name| {
            set.iter().find(|(one, _)| *one == name).map(|(_, value)| (*value).to_owned())
        })
    };
    assert!(variables(&[("LANG", "de_DE.UTF-8")]));
    assert!(variables(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8"), ("LANG", "C")]));
    assert!(!variables(&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]));
    assert!(!variables(&[]));
}

#[test]
fn what_a_machine_says_moves_no_cursor() {
    let mut board = Board::default();
    let reason = "\u{1b}[2J\u{7}\r\n".to_owned();
    tell(&mut board, 0, 0, What::Fact(Fact::Ignored(Ignored::Source { reason })));
    for page in [Page::List, Page::Details(0)] {
        let mut state = State { page, ..State::default() };
        let text = picture(&board, &mut state, PLAIN, (80, 24)).join("");
        assert!(text.contains("left alone: ?[2J???"), "{text}");
        assert!(!text.contains(char::is_control), "{text}");
    }
}

#[test]
fn colour_is_there_when_it_may_be() {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let (board, heads) = (board(3), heads());
    let look = Look { color: true, unicode: true };
    let scene = Scene { board: &board, heads: &heads, message: None, look };
    terminal.draw(|frame| draw(frame.buffer_mut(), &scene, &mut State::default())).unwrap();
    let buffer = terminal.backend().buffer();
    assert_eq!([buffer[(20, 4)].fg, buffer[(20, 5)].fg], [Color::Yellow, Color::Green]);
}
