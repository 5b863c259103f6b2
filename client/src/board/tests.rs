//! Boards that are told of boots, and what a person sees then.

use std::net::Ipv4Addr;

use super::*;
use crate::event::{Fact, Firmware, Ignored, OfferForm, Protocol, Role, Sign, Statement};

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const MIB: u64 = 1 << 20;

fn tell(board: &mut Board, at: u64, fact: Fact) {
    tell_of(board, A, at, fact);
}

fn tell_of(board: &mut Board, mac: MacAddr, at: u64, fact: Fact) {
    board.apply("eth0", &Event { at, mac, what: What::Fact(fact) });
}

fn say(board: &mut Board, at: u64, statement: Statement) {
    board.apply("eth0", &Event { at, mac: A, what: What::Statement(statement) });
}

fn seen(firmware: Firmware) -> Fact {
    Fact::Seen { arch: 7, firmware }
}

fn started(transfer: u64, role: Role, size: u64) -> Fact {
    let file = "images/initrd".to_owned();
    Fact::TransferStarted { transfer, protocol: Protocol::Http, role, file, size, sent: 0 }
}

fn progress(transfer: u64, sent: u64) -> Fact {
    Fact::TransferProgress { transfer, sent, retransmissions: 3 }
}

fn done(transfer: u64, sent: u64) -> Fact {
    Fact::TransferDone { transfer, sent, milliseconds: 100, retransmissions: 0 }
}

fn stalled() -> Statement {
    let words = |text: &str| vec![text.to_owned()];
    Statement::Stalled {
        step: "the boot loader was fetched".to_owned(),
        screen: words("PXE-E53"),
        advice: words("switch Secure Boot off"),
    }
}

fn machine(board: &Board) -> &Machine {
    board.machines().next().expect("a machine")
}

fn step(board: &Board) -> Step {
    machine(board).step
}

#[test]
fn a_boot_goes_up_the_steps_in_order() {
    let mut board = Board::default();
    let address = Ipv4Addr::new(192, 0, 2, 7);
    let server = Ipv4Addr::new(192, 0, 2, 1);
    let boot = [
        (seen(Firmware::Pxe), Step::Seen),
        (Fact::Offered { form: OfferForm::BootServer, file: String::new() }, Step::Offered),
        (Fact::Selected { server, address: Some(address) }, Step::Offered),
        (Fact::BootServer { file: "snponly.efi".to_owned() }, Step::BootServer),
        (started(1, Role::Loader, 10), Step::Loader),
        (done(1, 10), Step::Loader),
        (seen(Firmware::Ipxe), Step::Ipxe),
        (Fact::Offered { form: OfferForm::Script, file: String::new() }, Step::Ipxe),
        (started(2, Role::Script, 10), Step::Ipxe),
        (done(2, 10), Step::Ipxe),
        (started(3, Role::Kernel, 10), Step::Kernel),
        (done(3, 10), Step::Kernel),
        (started(4, Role::Initrd(0), 10), Step::Initrd),
        (done(4, 10), Step::Initrd),
    ];
    for (at, (fact, then)) in (0..).zip(boot) {
        tell(&mut board, at * 100, fact.clone());
        assert_eq!(step(&board), then, "{fact:?}");
    }
    say(&mut board, 1400, Statement::HandedOver);
    let one = machine(&board);
    assert_eq!(
        (one.step, one.boots, one.since, one.address),
        (Step::HandedOver, 1, 1400, Some(address))
    );
    assert_eq!(one.architecture.as_deref(), Some("64-bit UEFI"));
    tell(&mut board, 9000, Fact::Up { sign: Sign::Dhcp });
    assert_eq!(step(&board), Step::Up);
    assert_eq!(board.totals().steps, [(Step::Up, 1)].into());
    // The next boot of the same machine is the same machine.
    tell(&mut board, 60_000, seen(Firmware::Pxe));
    let one = machine(&board);
    assert_eq!((one.step, one.began, one.appeared, one.address), (Step::Seen, 60_000, 0, None));
    assert_eq!(board.machines().len(), 1);
}

#[test]
fn a_rom_that_is_an_ipxe_may_be_given_another_one() {
    let mut board = Board::default();
    tell(&mut board, 0, seen(Firmware::Ipxe));
    assert_eq!(step(&board), Step::Ipxe);
    tell(&mut board, 1, started(1, Role::Loader, 10));
    assert_eq!(step(&board), Step::Loader);
    tell(&mut board, 2, done(1, 10));
    tell(&mut board, 3, seen(Firmware::Ipxe));
    assert_eq!(step(&board), Step::Ipxe);
}

#[test]
fn a_stop_is_shown_until_the_machine_gets_on() {
    let mut board = Board::default();
    tell(&mut board, 0, seen(Firmware::Pxe));
    tell(&mut board, 1, started(1, Role::Loader, 10));
    tell(&mut board, 2, done(1, 10));
    say(&mut board, 30_000, stalled());
    let one = machine(&board);
    assert_eq!((one.step, one.reached), (Step::Stopped, Step::Loader));
    let stop = one.stop.as_ref().expect("a stop");
    assert_eq!((stop.screen.as_slice(), stop.advice.len()), (&["PXE-E53".to_owned()][..], 1));
    assert_eq!(one.attention.as_deref(), Some("nothing more since: the boot loader was fetched"));
    // It was only slow.
    tell(&mut board, 40_000, seen(Firmware::Ipxe));
    let one = machine(&board);
    assert_eq!((one.step, &one.stop, &one.attention), (Step::Ipxe, &None, &None));
    // What is said because the next boot begins stays while that one goes the same way.
    say(&mut board, 50_000, stalled());
    tell(&mut board, 50_000, seen(Firmware::Pxe));
    let one = machine(&board);
    assert_eq!(one.step, Step::Seen);
    assert!(one.stop.is_some() && one.attention.is_some());
    say(&mut board, 60_000, Statement::HandedOver);
    assert_eq!((&machine(&board).stop, &machine(&board).attention), (&None, &None));
}

#[test]
fn who_is_left_alone_is_shown_so_and_may_come_back() {
    let mut board = Board::default();
    tell(&mut board, 0, seen(Firmware::Pxe));
    tell(&mut board, 0, Fact::Ignored(Ignored::NotSelected));
    assert_eq!((step(&board), &machine(&board).attention), (Step::LeftAlone, &None));
    tell(&mut board, 1, Fact::Ignored(Ignored::NoLoader { arch: 11 }));
    assert!(machine(&board).attention.as_ref().is_some_and(|text| text.contains("no boot loader")));
    tell(&mut board, 2, Fact::Offered { form: OfferForm::Complete, file: String::new() });
    assert_eq!((step(&board), &machine(&board).attention), (Step::Offered, &None));
}

#[test]
fn a_download_has_a_rate_and_an_end_that_follow_its_course() {
    let mut board = Board::default();
    tell(&mut board, 0, started(1, Role::Initrd(0), 100 * MIB));
    let run = |board: &Board| machine(board).downloads[0].clone();
    assert_eq!((run(&board).octets_per_second, run(&board).remaining), (None, None));
    for quarter in 1..=16 {
        tell(&mut board, quarter * 250, progress(1, quarter * MIB));
    }
    let one = run(&board);
    assert_eq!((one.sent, one.octets_per_second), (16 * MIB, Some(4 * MIB)));
    assert_eq!((one.remaining, one.retransmissions), (Some(21_000), 3));
    assert_eq!((one.file.as_str(), one.thousandths()), ("images/initrd", Some(160)));
    // Nothing more comes: the rate falls, within the window to nothing.
    board.tick(5_500);
    let one = run(&board);
    assert!(one.octets_per_second.is_some_and(|rate| rate > 0 && rate < 3 * MIB), "{one:?}");
    board.tick(8_000);
    assert_eq!((run(&board).octets_per_second, run(&board).remaining), (Some(0), None));
    // It goes on twice as fast.
    for quarter in 0..16 {
        tell(&mut board, 10_000 + quarter * 250, progress(1, (16 + 2 * quarter) * MIB));
    }
    assert_eq!(run(&board).octets_per_second, Some(8 * MIB));
    tell(&mut board, 14_000, done(1, 100 * MIB));
    assert_eq!(machine(&board).downloads, []);
}

#[test]
fn what_goes_on_where_another_stopped_counts_from_there() {
    let mut board = Board::default();
    let (protocol, role, file) = (Protocol::Http, Role::Kernel, String::new());
    let sent = 90 * MIB;
    tell(
        &mut board,
        0,
        Fact::TransferStarted { transfer: 1, protocol, role, file, size: 100 * MIB, sent },
    );
    tell(&mut board, 1_000, progress(1, 91 * MIB));
    assert_eq!(machine(&board).downloads[0].octets_per_second, Some(MIB));
    assert_eq!(board.totals().octets, MIB);
}

#[test]
fn the_chart_has_each_seconds_octets() {
    let mut board = Board::default();
    tell(&mut board, 0, started(1, Role::Kernel, 100 * MIB));
    tell(&mut board, 500, progress(1, MIB));
    tell(&mut board, 1_500, progress(1, 4 * MIB));
    tell(&mut board, 3_200, done(1, 10 * MIB));
    board.tick(4_000);
    assert_eq!(board.traffic().collect::<Vec<_>>(), [MIB, 3 * MIB, 0, 6 * MIB]);
    let totals = board.totals();
    assert_eq!((totals.octets, totals.octets_per_second), (10 * MIB, 3 * MIB));
    board.tick(40_000_000);
    assert_eq!(board.traffic().len(), CHART);
    assert_eq!(board.totals().octets_per_second, 0);
    // An event of another interface that was a little late.
    tell(&mut board, 39_999_000, seen(Firmware::Pxe));
    assert_eq!(board.now(), 40_000_000);
}

#[test]
fn the_log_has_the_words_of_the_terminal_and_details_but_no_progress() {
    let mut board = Board::default();
    tell(&mut board, 10, seen(Firmware::Pxe));
    tell(&mut board, 20, started(1, Role::Initrd(0), 100 * MIB));
    tell(&mut board, 30, progress(1, 60 * MIB));
    tell(&mut board, 40, Fact::NotFound { protocol: Protocol::Tftp, file: "x".to_owned() });
    let log: Vec<_> =
        machine(&board).log.iter().map(|line| (line.at, line.text.as_str(), line.tone)).collect();
    assert_eq!(
        log,
        [
            (10, "asks for network boot (64-bit UEFI)", Tone::Plain),
            (40, "asks for x, which there is not", Tone::Dim)
        ]
    );
}

#[test]
fn no_text_on_the_board_has_a_control_character() {
    let mut board = Board::default();
    let evil = "\u{1b}[2J\r\n\u{9b}31m\u{7f}".to_owned();
    let (protocol, role) = (Protocol::Tftp, Role::Other);
    let facts = [
        Fact::Ignored(Ignored::Source { reason: evil.clone() }),
        Fact::Upstream { file: evil.clone(), problem: evil.clone() },
        Fact::NotSent { reason: evil.clone() },
        Fact::TransferStarted { transfer: 1, protocol, role, file: evil.clone(), size: 9, sent: 0 },
        Fact::NotFound { protocol, file: evil.clone() },
    ];
    for fact in facts {
        tell(&mut board, 0, fact);
    }
    let one = machine(&board);
    let texts = one.log.iter().map(|line| &line.text);
    let texts: Vec<_> =
        texts.chain(&one.attention).chain(one.downloads.iter().map(|one| &one.file)).collect();
    assert_eq!(texts.len(), 7, "{texts:?}");
    assert!(texts.iter().all(|text| !text.contains(char::is_control)), "{texts:?}");
}

#[test]
fn the_board_is_bounded_and_strangers_push_out_strangers() {
    let mut board = Board::default();
    tell(&mut board, 0, started(1, Role::Loader, 10));
    for number in 0..u16::try_from(MACHINES).unwrap() + 50 {
        let [high, low] = number.to_be_bytes();
        tell_of(&mut board, MacAddr([6, 0, 0, 0, high, low]), 1, seen(Firmware::Pxe));
    }
    assert_eq!((board.machines().len(), board.numbers.len()), (MACHINES, MACHINES));
    assert_eq!(machine(&board).mac, A);
    let reason = "x".repeat(10_000);
    for at in 0..500 {
        tell(&mut board, at, Fact::NotSent { reason: reason.clone() });
        tell(&mut board, at, started(at, Role::Other, 10));
        for sent in 0..10 {
            tell(&mut board, at, progress(at, sent));
        }
    }
    let one = machine(&board);
    assert_eq!((one.downloads.len(), one.log.len()), (DOWNLOADS, LINES_OF_ONE.0));
    assert_eq!(one.downloads[DOWNLOADS - 1].samples.len(), 11);
    assert!(one.log.iter().all(|line| line.text.len() <= LINE));
    // Alone, it has more room.
    let mut board = Board::default();
    for at in 0..500 {
        tell(&mut board, at, Fact::NotSent { reason: reason.clone() });
    }
    assert_eq!(machine(&board).log.len(), LINES_OF_ONE.1);
}

#[test]
fn the_same_address_on_two_interfaces_is_two_machines() {
    let mut board = Board::default();
    for interface in ["eth0", "eth1", "eth0"] {
        let what = What::Fact(seen(Firmware::Pxe));
        board.apply(interface, &Event { at: 0, mac: A, what });
    }
    let interfaces: Vec<_> = board.machines().map(|one| (one.id, one.interface.as_str())).collect();
    assert_eq!(interfaces, [(0, "eth0"), (1, "eth1")]);
    assert_eq!(board.machine(1).map(|one| one.revision), Some(2));
    assert_eq!(board.revision(), 3);
}

#[test]
fn the_names_of_fields_stay() {
    let mut board = Board::default();
    tell(&mut board, 5, seen(Firmware::Pxe));
    tell(&mut board, 6, started(1, Role::Kernel, 8));
    say(&mut board, 7, stalled());
    let value = serde_json::to_value(machine(&board)).unwrap();
    let names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "address",
            "appeared",
            "arch",
            "architecture",
            "attention",
            "began",
            "boots",
            "downloads",
            "firmware",
            "heard",
            "id",
            "interface",
            "log",
            "mac",
            "reached",
            "revision",
            "since",
            "step",
            "stop",
            "vendor"
        ]
    );
    assert_eq!((&value["step"], &value["reached"]), (&"stopped".into(), &"kernel".into()));
    assert_eq!(value["log"][0]["tone"], "plain");
    let download = value["downloads"][0].as_object().unwrap();
    let names: Vec<_> = download.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "file",
            "octets_per_second",
            "protocol",
            "remaining",
            "retransmissions",
            "role",
            "sent",
            "size",
            "transfer"
        ]
    );
    let totals = serde_json::to_value(board.totals()).unwrap();
    assert_eq!(totals["steps"]["stopped"], 1);
    for step in Step::ALL {
        assert!((1..=11).contains(&step.words().len()), "{step:?}");
    }
}
