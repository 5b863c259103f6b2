//! Level 4: the live view on a real terminal (tmux), as somebody sits before it who boots a machine:
//! packets of a machine in, keys in, and what the screen shows.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs,
    boot_client::{ask, message, option},
    download::connect,
    host::Site,
    need_host,
    netns::Netns,
    nixos::Flavour,
    process::{send, wait_until},
    scene::{HOST, HTTP, Scene},
    screen::Screen,
};

/// Longest time for anything that is waited for.
const SOON: Duration = Duration::from_secs(40);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// What is typed to serve.
const SERVE: &str = "portcullis boot /mnt -i eth0 --no-ask-password";
/// The bar, where more than ASCII can be shown.
const BAR: &str = "\u{2591}";

/// The view is on the screen, or is not.
#[track_caller]
fn is_taken(screen: &Screen<'_>, taken: bool) {
    let wanted = if taken { "1" } else { "0" };
    let now = || screen.tmux(&["display-message", "-p", "#{alternate_on}"]).unwrap();
    assert!(wait_until(SOON, || now().trim() == wanted), "{}", screen.text().unwrap());
}

/// The shell has the terminal, and shows what is typed.
#[track_caller]
fn is_the_shells(screen: &Screen<'_>) {
    is_taken(screen, false);
    screen.enter("clear; stty -a | grep -o ' echo ' && echo with$((40 + 2))out").unwrap();
    screen.shows(&["with42out"]).unwrap();
}

/// A download that takes a minute or so, with so small a window that the server knows how far it is;
/// broken off when it is dropped.
struct Download {
    leave: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Download {
    fn of(machine: &Netns, url: &str) -> Self {
        let path = url.splitn(4, '/').nth(3).unwrap();
        let begin = || -> std::io::Result<_> {
            let mut stream = connect(SocketAddr::from((HOST, HTTP)))?;
            write!(stream, "GET /{path} HTTP/1.1\r\nHost: lab\r\n\r\n")?;
            Ok(stream)
        };
        let mut stream = machine.run(begin).unwrap().unwrap();
        let leave = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&leave);
        let thread = std::thread::spawn(move || {
            let mut step = [0; 32 * 1024];
            while !told.load(Ordering::Relaxed) && stream.read(&mut step).is_ok_and(|got| got > 0) {
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        Self { leave, thread: Some(thread) }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.leave.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Asks as firmware or as iPXE until there is an offer of ours; the file in it.
fn offered(machine: &Netns, ipxe: bool) -> String {
    let class = b"PXEClient:Arch:00007:UNDI:003016";
    let mut options: Vec<(u8, &[u8])> = vec![(53, &[1]), (60, class), (93, &[0, 7])];
    if ipxe {
        options.extend([(77, &b"iPXE"[..]), (175, &[0x13, 1, 1, 0x24, 1, 1])]);
    }
    let bytes = message(MAC, &options);
    let to = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    let mut file = None;
    wait_until(SOON, || {
        let answers =
            ask(machine, "eth0", 68, &bytes, &to, (4, Duration::from_millis(700))).unwrap();
        let ours = answers.iter().filter(|(from, _)| from.ip().octets() == [192, 0, 2, 2]);
        file = ours.filter_map(|(_, bytes)| option(bytes, 67)).next_back();
        file.is_some()
    });
    String::from_utf8(file.expect("an offer")).unwrap().trim_end_matches('\0').to_owned()
}

fn machine(scene: &Scene) -> Netns {
    scene.lan.machine("192.0.2.80/24").unwrap()
}

#[test]
fn a_machine_is_followed_chosen_and_left_and_the_terminal_is_as_it_was() {
    need_host!(Needs::Tool("tmux"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let machine = machine(&scene);
    let screen = Screen::open(&scene).unwrap();
    screen.enter(SERVE).unwrap();
    screen
        .shows(&["eth0 192.0.2.2", "UDP 67, 69, 4011 and TCP 64172", "no machine yet", "F12"])
        .unwrap();
    is_taken(&screen, true);

    offered(&machine, false);
    screen.shows(&["1 machine", "> 02:00:00:00:00:01 offered"]).unwrap();
    let script = offered(&machine, true);
    screen.shows(&["02:00:00:00:00:01 iPXE"]).unwrap();
    let download = Download::of(&machine, &script.replace("boot.ipxe", "kernel"));
    screen.shows(&["02:00:00:00:00:01 kernel", BAR, "%"]).unwrap();

    screen.press("Enter").unwrap();
    screen
        .shows(&["64-bit UEFI, on eth0", "iPXE runs and asks what to boot", "Enter: back", BAR])
        .unwrap();
    screen.press("Escape").unwrap();
    screen.press("?").unwrap();
    screen.shows(&["Ctrl-Z: stop for a while"]).unwrap();
    screen.press("x").unwrap();
    screen.press("l").unwrap();
    screen.shows(&["The log is in", "choose"]).unwrap();
    let logs = || {
        let files = std::fs::read_dir(screen.home()).unwrap().flatten();
        files.map(|file| file.path()).find(|path| path.extension().is_some_and(|end| end == "log"))
    };
    let log = std::fs::read_to_string(logs().expect("a log")).unwrap();
    assert!(log.contains("eth0  02:00:00:00:00:01  asks for network boot"), "{log}");

    // Another size, at once.
    screen.resize(40, 12).unwrap();
    screen.shows(&["> 00:00:01 kernel", BAR, "q: end"]).unwrap();
    screen.resize(80, 24).unwrap();
    screen.shows(&["> 02:00:00:00:00:01 kernel", BAR]).unwrap();

    screen.press("C-z").unwrap();
    is_the_shells(&screen);
    screen.enter("fg").unwrap();
    is_taken(&screen, true);
    screen.shows(&["02:00:00:00:00:01 kernel", BAR]).unwrap();
    drop(download);
    screen.shows(&["stopped fetching the kernel"]).unwrap();

    screen.press("q").unwrap();
    is_taken(&screen, false);
    screen
        .shows(&[
            "The log is in",
            "02:00:00:00:00:01  kernel: stopped fetching the kernel",
            "Closed: UDP 67, 69, 4011 and TCP 64172 on eth0",
        ])
        .unwrap();
    is_the_shells(&screen);
    scene.assert_restored(SOON).unwrap();
}

#[test]
fn without_colour_and_unicode_it_is_readable_and_a_signal_gives_the_terminal_back() {
    need_host!(Needs::Tool("tmux"));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let machine = machine(&scene);
    let screen = Screen::open(&scene).unwrap();
    screen.enter(&format!("LC_ALL=C NO_COLOR=1 {SERVE}")).unwrap();
    screen.shows(&["no machine yet"]).unwrap();
    offered(&machine, false);
    screen.shows(&["02:00:00:00:00:01 offered"]).unwrap();
    let colours = screen.colored().unwrap();
    // ECMA-48: 30 to 37 are the colours of letters, 38 those of a palette, 39 is none.
    let coloured = (0..9).any(|color| colours.contains(&format!("\u{1b}[3{color}")));
    assert!(!coloured, "{colours:?}");
    let inside = scene.host.netns().processes().unwrap();
    let named = |pid: &&u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "portcullis"
    };
    send(*inside.iter().find(named).expect("it runs"), Signal::SIGTERM).unwrap();
    screen.shows(&["02:00:00:00:00:01  offered", "Closed: UDP 67"]).unwrap();
    is_the_shells(&screen);

    // Lines, where they are wanted.
    screen.enter(&format!("{SERVE} --plain")).unwrap();
    screen.shows(&["Ctrl-C ends and closes."]).unwrap();
    is_taken(&screen, false);
    screen.press("C-c").unwrap();
    scene.assert_restored(SOON).unwrap();
}
