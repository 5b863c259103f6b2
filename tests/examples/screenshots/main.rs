//! Pictures of the web page and the terminal for the documentation. The page's are from real boots:
//! alice serves, a UEFI and a BIOS machine boot in QEMU, and a third, of a kind that nothing is there
//! for, asks. Run by `make screenshots`; the argument is the directory that the pictures go to.

mod terminal;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    LabError, Result,
    boot_client::{ask, message},
    browser::{Browser, Look},
    host::Site,
    machine::{Firmware, Machine},
    nixos::Flavour,
    require::{Needs, missing},
    scene::Scene,
};

const DESK: Look = Look { width: 1080, height: 720, dark: false };
const NIGHT: Look = Look { width: 1080, height: 1000, dark: true };
const PHONE: Look = Look { width: 390, height: 900, dark: false };
/// Tries to catch a bar while it moves.
const TRIES: usize = 20;

fn main() -> Result<()> {
    let tools = ["chromium", "tmux"].map(Needs::Tool);
    let needs = [&[Needs::Root, Needs::Built("portcullis")][..], &tools].concat();
    if let Some(what) = missing(&needs) {
        return Err(LabError(format!("the pictures need {what}")));
    }
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or_else(|| LabError("which directory?".to_owned()))?;
    let save = |name: &str, picture: Vec<u8>| {
        let path = directory.join(name);
        std::fs::write(&path, picture).map_err(|error| LabError::of(path.display(), error))
    };
    terminal::one(&save)?;
    for machines in [8, 60] {
        terminal::many(machines, &save)?;
    }
    page(&save)
}

/// Where a picture goes: its name and what is in it.
type Save<'a> = &'a dyn Fn(&str, Vec<u8>) -> Result<()>;

fn page(save: Save<'_>) -> Result<()> {
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice)?;
    // So slow that there is something to see of a small image.
    scene.host.netns().sh("tc qdisc add dev eth0 root tbf rate 20mbit burst 64kb latency 200ms")?;
    let mut client = scene.serve(&["--web"])?;
    let told = client.events().into_iter().find(|event| event["event"] == "page");
    let address = told.as_ref().and_then(|event| event["url"].as_str()).unwrap_or_default();
    let mut browser = Browser::start(scene.host.netns())?;
    browser.look(DESK)?;
    browser.open(address)?;
    stranger(&scene)?;

    let mut first = Machine::start(&scene.lan, Firmware::Uefi, "52:54:00:a1:00:01")?;
    save("web-light.png", moving(&mut browser, 1)?)?;
    first.up()?;
    let mut second = Machine::start(&scene.lan, Firmware::Bios, "52:54:00:a1:00:02")?;
    browser.look(PHONE)?;
    save("web-narrow.png", moving(&mut browser, 2)?)?;
    second.up()?;
    browser.look(NIGHT)?;
    browser.eval("[...document.querySelectorAll('.row')].at(-1).click()")?;
    browser.wait("document.querySelector('.log li')")?;
    save("web-dark.png", browser.picture()?)?;
    client.signal(Signal::SIGINT)?;
    client.end().map(drop)
}

/// A machine that asks, and for which there is no boot loader: 32-bit ARM.
fn stranger(scene: &Scene) -> Result<()> {
    let class = b"PXEClient:Arch:00010:UNDI:003016";
    let bytes = message([0x52, 0x54, 0, 0xa1, 0, 3], &[(53, &[1]), (60, class), (93, &[0, 10])]);
    let everybody = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    let limit = Duration::from_secs(1);
    ask(&scene.outsider, "eth0", 68, &bytes, &everybody, (2, limit)).map(drop)
}

/// A picture with a bar in it that has come some way.
fn moving(browser: &mut Browser, boot: usize) -> Result<Vec<u8>> {
    let bar = "document.querySelector('.kernel progress')?.position > 0.2";
    browser.wait(&format!("document.querySelectorAll('#list > li').length > {boot}"))?;
    for _ in 0..TRIES {
        browser.wait(bar)?;
        let picture = browser.picture()?;
        if browser.eval(bar)? == true {
            return Ok(picture);
        }
    }
    Err(LabError(format!("no bar stood still for a picture of boot {boot}")))
}
