//! A panic while the live view has the terminal. The released program ends at once then
//! (`panic = "abort"`), so nothing is dropped: the hook alone gives the terminal back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    time::Instant,
};

use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        signal::Signal,
        termios::{LocalFlags, tcgetattr},
    },
};
use portcullis::report::view::View;

/// Set in the process that panics: this test, once more.
const PANICS: &str = "PORTCULLIS_TEST_PANICS";
const NAME: &str = "a_panic_gives_the_terminal_back_before_it_is_told";

/// Takes the terminal, panics beside it, and ends as the released program does.
fn panic_in_the_view() -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let _view = View::enter(false, Vec::new(), Instant::now()).unwrap();
    let raw = !tcgetattr(std::io::stdin()).unwrap().local_flags.contains(LocalFlags::ECHO);
    let _its_end = std::thread::spawn(move || panic!("an accident, raw: {raw}")).join();
    std::process::abort();
}

/// A terminal that says where its cursor is when it is asked (DSR 6). Ends when nobody has it open any
/// more, behind all that was shown.
fn show(mut screen: File) -> String {
    let mut shown = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = screen.read(&mut piece) {
        shown.extend_from_slice(&piece[..count]);
        if shown.ends_with(b"\x1b[6n") {
            screen.write_all(b"\x1b[1;1R").unwrap();
        }
    }
    String::from_utf8_lossy(&shown).into_owned()
}

#[test]
fn a_panic_gives_the_terminal_back_before_it_is_told() {
    if std::env::var_os(PANICS).is_some() {
        panic_in_the_view();
    }
    let size = Winsize { ws_row: 25, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
    let before = tcgetattr(&slave).unwrap();
    let screen = std::thread::spawn(move || show(File::from(master)));
    let line = || Stdio::from(slave.try_clone().unwrap());
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(PANICS, "1")
        .env("RUST_BACKTRACE", "0")
        .env("TERM", "xterm")
        .stdin(line())
        .stdout(line())
        .stderr(line())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{status}");
    assert_eq!(tcgetattr(&slave).unwrap(), before);

    drop(slave);
    let shown = screen.join().unwrap();
    let at = |text: &str| shown.find(text).unwrap_or_else(|| panic!("no {text:?} in {shown:?}"));
    // xterm's alternate screen, on and off; then what happened, on the screen that stays.
    let (taken, left) = (at("\x1b[?1049h"), at("\x1b[?1049l"));
    assert!(taken < left && left < at("an accident, raw: true"), "{shown:?}");
}
