//! The terminal's pictures, as it was read back with its colours: what one machine that boots in QEMU
//! makes of it, and 8 and 60 machines of the load generators, which ask and download as machines do.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use portcullis_lab::{
    LabError, Result,
    boot_client::{self, ask, message},
    host::Site,
    load::{Enough, http, tftp},
    machine::{BOOT, Firmware, Machine},
    netns::Netns,
    nixos::Flavour,
    process::wait_until,
    scene::{HOST, HTTP, Scene},
    screen::Screen,
};

use super::Save;

/// What alice types.
const SERVE: &str = "portcullis boot /mnt -i eth0 --no-ask-password";
/// Longest time for an answer, and for the view to come.
const SOON: Duration = Duration::from_secs(40);
/// How long a frame stands on the screen, and more.
const FRAME: Duration = Duration::from_millis(600);
/// Hundredths of a file that a bar has come in a picture.
const FAR: u8 = 30;
const TFTP: u16 = 69;
const ROUTER: [u8; 4] = [192, 0, 2, 1];

/// Who asks by DHCP.
static TURN: Mutex<()> = Mutex::new(());

/// A real boot.
pub(super) fn one(save: Save<'_>) -> Result<()> {
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice)?;
    slow(&scene, "20mbit")?;
    let screen = Screen::open(&scene)?;
    screen.enter(SERVE)?;
    screen.shows(&["no machine yet"])?;
    let mut machine = Machine::start(&scene.lan, Firmware::Uefi, "52:54:00:a1:00:01")?;
    screen.shows_that("bar", BOOT, |text| far(text) >= 1)?;
    save_both(&screen, 1, 24, save)?;
    machine.up()?;
    screen.press("q")?;
    screen.shows(&["Closed:"])
}

/// So many machines at once: some are done, one has broken off, one is of a kind that nothing is there
/// for, and the others download.
pub(super) fn many(count: u8, save: Save<'_>) -> Result<()> {
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice)?;
    let lab = Netns::new("lab")?;
    scene.lan.attach(&lab, "eth0", Some("192.0.2.80/24"))?;
    let screen = Screen::open(&scene)?;
    screen.enter(SERVE)?;
    screen.shows(&["no machine yet"])?;

    let done = count / 5;
    let machines = (0..count).map(|number| Client { number, lab: &lab });
    let (first, others): (Vec<_>, Vec<_>) = machines.partition(|one| one.number < done + 2);
    for machine in &first {
        match machine.number.checked_sub(done) {
            None => {
                machine.fetch(&machine.script()?, Enough::ALL)?;
                if machine.number % 2 == 0 {
                    machine.starts_its_system()?;
                }
            }
            Some(0) => {
                let url = machine.script()?;
                machine.fetch(&url, Enough { octets: 4 << 20, ..Enough::ALL })?;
            }
            Some(_) => machine.of_another_kind()?,
        }
    }
    screen.shows(&["stopped fetching"])?;
    // All are so far before the network is slow, so that their downloads run side by side.
    let scripts = others.iter().map(Client::script).collect::<Result<Vec<_>>>()?;
    slow(&scene, if count > 20 { "100mbit" } else { "40mbit" })?;
    std::thread::scope(|scope| {
        for (machine, script) in others.iter().zip(&scripts) {
            // Broken off when the server ends.
            scope.spawn(move || drop(machine.fetch(script, Enough::ALL)));
            std::thread::sleep(Duration::from_millis(100));
        }
        let pictures = screen
            .shows_that("bars", SOON, |text| far(text) * 3 > others.len())
            .and_then(|()| save_both(&screen, count, if count > 20 { 48 } else { 24 }, save));
        screen.press("q")?;
        pictures.and_then(|()| screen.shows(&["Closed:"]))
    })
}

/// So slow that there is something to see of a small image.
fn slow(scene: &Scene, rate: &str) -> Result<()> {
    let shape = format!("tc qdisc add dev eth0 root tbf rate {rate} burst 64kb latency 200ms");
    scene.host.netns().sh(&shape).map(drop)
}

/// How many kernels have come some way.
fn far(text: &str) -> usize {
    let percent = |line: &str| line.split('%').next()?.rsplit(' ').next()?.parse::<u8>().ok();
    let bars = text
        .lines()
        .filter(|line| line.contains(" kernel ") && line.contains('%'))
        .filter_map(percent);
    bars.filter(|percent| *percent >= FAR).count()
}

/// At 80 and at 160 columns.
fn save_both(screen: &Screen<'_>, machines: u8, lines: u16, save: Save<'_>) -> Result<()> {
    for (width, height) in [(80, 24), (160, lines)] {
        screen.resize(width, height)?;
        screen.shows_that("bar at this width", SOON, |text| {
            text.contains("Portcullis") == (width > 80) && text.contains('\u{2591}')
        })?;
        std::thread::sleep(FRAME);
        save(&format!("terminal-{width}-{machines}.txt"), screen.colored()?.into_bytes())?;
    }
    Ok(())
}

/// A machine of the lab.
#[derive(Clone, Copy)]
struct Client<'a> {
    number: u8,
    lab: &'a Netns,
}

impl Client<'_> {
    /// Two makers' cards.
    fn mac(&self) -> [u8; 6] {
        let maker = if self.number.is_multiple_of(3) { [0, 0x14, 0x22] } else { [0, 0x1b, 0x21] };
        let [a, b, c] = maker;
        [a, b, c, 0x3c, 0x10, self.number]
    }

    /// Asks until the host offers this machine something, and returns that file's name.
    fn offered(&self, class: &[u8], arch: u8, ipxe: bool) -> Result<String> {
        let mut options: Vec<(u8, &[u8])> = vec![(53, &[1]), (60, class)];
        let kind = [0, arch];
        options.push((93, &kind));
        if ipxe {
            options.extend([(77, &b"iPXE"[..]), (175, &[0x13, 1, 1, 0x18, 1, 1])]);
        }
        let bytes = message(self.mac(), &options);
        let mut file = None;
        wait_until(SOON, || {
            let everybody = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
            // On the one port that there is, one after the other.
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = (1, Duration::from_millis(500));
            let answers = ask(self.lab, "eth0", 68, &bytes, &everybody, wait).unwrap_or_default();
            file = answers.into_iter().find_map(|(from, answer)| {
                let ours = from.ip().octets() == HOST && answer.get(28..34) == Some(&self.mac());
                let option = boot_client::option(&answer, 67);
                let name = option.or_else(|| answer.get(108..236).map(<[u8]>::to_vec))?;
                ours.then(|| String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
            });
            file.is_some()
        });
        file.ok_or_else(|| LabError(format!("machine {} is offered nothing", self.number)))
    }

    /// From the ROM through iPXE to the address of its script.
    fn script(&self) -> Result<String> {
        let class = b"PXEClient:Arch:00000:UNDI:002001";
        let file = self.offered(class, 0, false)?;
        let server = SocketAddrV4::new(HOST.into(), TFTP);
        let from = Ipv4Addr::UNSPECIFIED;
        let request = tftp::Request {
            from,
            server,
            file: &file,
            block: 1428,
            window: 1,
            pause: Duration::ZERO,
        };
        let loader = self.lab.run(|| tftp::fetch(&request, Enough::ALL, |_| {}).map(drop))?;
        loader.map_err(|error| LabError::of(&file, error))?;
        let script = self.offered(class, 0, true)?;
        // It takes the router's offer.
        let address = [192, 0, 2, self.number.saturating_add(100)];
        self.tell(&[(53, &[3]), (50, &address), (54, &ROUTER), (60, class), (93, &[0, 0])])?;
        Ok(script)
    }

    /// All that is loaded, in order, each until it is enough.
    fn fetch(&self, script: &str, enough: Enough) -> Result<()> {
        let path = format!("/{}", script.splitn(4, '/').nth(3).unwrap_or_default());
        let server = SocketAddrV4::new(HOST.into(), HTTP);
        for file in ["boot.ipxe", "kernel", "initrd0"] {
            let path = path.replace("boot.ipxe", file);
            let fetch = || http::fetch(Ipv4Addr::UNSPECIFIED, server, &path, enough);
            let got = self.lab.run(fetch)?.map_err(|error| LabError::of(&path, error))?;
            if got.octets >= enough.octets {
                break;
            }
        }
        Ok(())
    }

    /// The first DHCP of the system that it booted.
    fn starts_its_system(&self) -> Result<()> {
        self.tell(&[(53, &[1]), (12, b"machine")])
    }

    /// 32-bit ARM, for which there is no boot loader.
    fn of_another_kind(&self) -> Result<()> {
        self.tell(&[(53, &[1]), (60, b"PXEClient:Arch:00010:UNDI:003016"), (93, &[0, 10])])
    }

    /// Says this to everybody, whatever comes back.
    fn tell(&self, options: &[(u8, &[u8])]) -> Result<()> {
        let everybody = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = message(self.mac(), options);
        ask(self.lab, "eth0", 68, &bytes, &everybody, (1, Duration::from_millis(50))).map(drop)
    }
}
