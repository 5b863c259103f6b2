//! The demonstration: a user without any privilege boots a BIOS and a UEFI machine over a virtual
//! LAN, behind NixOS' firewall in its two flavours, and the firewall is shown before, during and
//! after. Real kernel, D-Bus, polkit, dnsmasq and QEMU; run by `make demo`.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    LabError, Result,
    host::{Client, SOON, Site},
    machine::{self, BOOT, Firmware, Machine},
    nixos::Flavour,
    probe::Answer,
    process::wait_until,
    scene::Scene,
    snapshot::Snapshot,
};

/// What alice adds to the image's command line, to find it again on the machine's console.
const WORD: &str = "greetings.from=alice";

fn main() -> Result<()> {
    let begun = Instant::now();
    let screen = Screen {
        colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    screen.say(&format!(
        "Two machines boot over the network. They are served by alice, who has no privilege and no
password for anything. Everything is real: the kernel's firewall, D-Bus, polkit, QEMU.

  192.0.2.1    router    hands out addresses (dnsmasq), knows nothing of network boot
  192.0.2.2    host      alice, behind NixOS' firewall
  192.0.2.3    outsider  tries the host's ports
  by DHCP      machine   no disk; what it boots: {}",
        image_in_words()?
    ));
    let chapters = [
        (Firmware::Bios, "a BIOS machine with an iPXE ROM", Flavour::Iptables),
        (Firmware::Uefi, "a UEFI machine with its own PXE", Flavour::Nftables),
    ];
    for (number, (firmware, name, flavour)) in chapters.into_iter().enumerate() {
        screen.title(&format!(
            "{} of 2: {name}; the firewall is NixOS' with {}",
            number + 1,
            match flavour {
                Flavour::Iptables => "iptables",
                Flavour::Nftables => "nftables",
            }
        ));
        // Our table is the same in both: shown once.
        chapter(&screen, firmware, flavour, number == 0)?;
    }
    screen.title(&format!(
        "Both machines ran what alice served. {:.0} s in all; nothing is left.",
        begun.elapsed().as_secs_f32()
    ));
    Ok(())
}

/// One machine, from switched off to userspace, and the firewall around it.
fn chapter(screen: &Screen, firmware: Firmware, flavour: Flavour, whole_table: bool) -> Result<()> {
    let scene = Scene::start(Some(flavour), Site::AllowsAlice)?;
    screen.heading("The firewall before: the chain of NixOS that decides");
    let list = match flavour {
        Flavour::Iptables => "iptables -S nixos-fw",
        Flavour::Nftables => "nft -s list chain inet nixos-fw input-allow",
    };
    for line in scene.host.netns().sh(list)?.lines() {
        screen.styled("2", &format!("  {}", line.replace('\t', "  ")));
    }
    screen.ports(&scene)?;

    screen.heading("alice@host$ portcullis boot ./image --interface eth0");
    let mut follow = Follow::start(screen, &scene)?;
    let mut during = scene.before.clone();
    let open = wait_until(SOON, || {
        follow.tell();
        during = Snapshot::take(scene.host.netns()).unwrap_or_else(|_| scene.before.clone());
        // Both tables: what is ours, and the rule in the host's chain.
        during.text().contains("table inet portcullis")
    });
    if !open {
        return Err(LabError(format!("nothing was opened:\n{}", scene.host.log())));
    }
    // The client speaks once it serves.
    std::thread::sleep(Duration::from_millis(500));
    follow.tell();

    screen.heading("The firewall while alice serves: what was added");
    let changes = scene
        .before
        .without_handles()
        .changes(&Snapshot::take(scene.host.netns())?.without_handles());
    screen.changes(&changes, whole_table);
    screen.ports(&scene)?;
    screen.heading("Who holds what");
    screen.privileges("portcullis", follow.client.pid()?)?;
    for helper in scene.host.helpers()? {
        screen.privileges("portcullis-helper", helper)?;
    }

    screen.heading("The machine is switched on");
    let mut machine = Machine::start(&scene.lan, firmware, "02:00:00:00:00:01")?;
    let (cmdline, time) = loop {
        follow.tell();
        match machine.line("PORTCULLIS-UP ", BOOT, Duration::from_millis(200))? {
            Some(up) => break up,
            None => continue,
        }
    };
    follow.tell();
    screen.heading(&format!(
        "The machine's console, {:.1} s after it was switched on",
        time.as_secs_f32()
    ));
    screen.say(&format!("  | PORTCULLIS-UP {cmdline}"));
    screen.say(&format!("  | PORTCULLIS-INITRD {}", machine.initrd()?));
    if !cmdline.contains(WORD) {
        return Err(LabError(format!("not the command line that alice gave: {cmdline}")));
    }

    screen.heading("alice presses Ctrl-C");
    follow.client.signal(Signal::SIGINT)?;
    let status = follow.client.end()?;
    follow.tell();
    if !status.success() {
        return Err(LabError(format!("portcullis ended with {status}")));
    }

    screen.heading("The firewall after");
    scene.assert_restored(Duration::from_secs(1))?;
    screen.say("  nft -s -a list ruleset, compared with before, line by line: no difference");
    screen.ports(&scene)
}

/// The files that are served.
fn image_in_words() -> Result<String> {
    let image = machine::image()?;
    let size = |name: &str| {
        std::fs::metadata(image.join(name))
            .map(|facts| format!("{name} ({:.1} MB)", facts.len() as f64 / 1e6))
            .map_err(|error| LabError::of(name, error))
    };
    Ok(format!("Debian's {}, {}", size("bzImage")?, size("initrd")?))
}

/// The client, and how much of what it said has been shown.
struct Follow<'a> {
    screen: &'a Screen,
    client: Client,
    shown: [usize; 2],
}

impl<'a> Follow<'a> {
    fn start(screen: &'a Screen, scene: &Scene) -> Result<Self> {
        let colour = if screen.colour { "always" } else { "never" };
        let arguments =
            ["boot", "/mnt", "--interface", "eth0", "--cmdline", WORD, "--color", colour];
        Ok(Self { screen, client: scene.host.client("alice", &arguments)?, shown: [0, 0] })
    }

    /// Shows the whole lines that have come since the last time.
    fn tell(&mut self) {
        let said = [self.client.stderr(), self.client.stdout()];
        for (text, shown) in said.iter().zip(&mut self.shown) {
            let fresh = text.get(*shown..).unwrap_or_default();
            let Some((whole, _)) = fresh.rsplit_once('\n') else {
                continue;
            };
            *shown += whole.len() + 1;
            for line in whole.lines() {
                self.screen.say(&format!("  | {line}"));
            }
        }
    }
}

/// Where it is shown.
struct Screen {
    colour: bool,
}

impl Screen {
    fn say(&self, text: &str) {
        // A reader who has left (`make demo | head`) is no reason to stop tidily ending.
        let _nobody_reads = writeln!(std::io::stdout(), "{text}");
    }

    fn styled(&self, style: &str, text: &str) {
        if self.colour {
            self.say(&format!("\x1b[{style}m{text}\x1b[0m"));
        } else {
            self.say(text);
        }
    }

    fn title(&self, text: &str) {
        self.styled("1;36", &format!("\n== {text} =="));
    }

    fn heading(&self, text: &str) {
        self.styled("1", &format!("\n{text}"));
    }

    /// A difference of two rulesets; of our own table perhaps only how many rules it has.
    fn changes(&self, changes: &str, whole_table: bool) {
        let (host, table) = match changes.split_once("+ table inet portcullis") {
            Some((host, _)) => (host, changes.get(host.len()..).unwrap_or_default()),
            None => (changes, ""),
        };
        let paint = |text: &str| {
            for line in text.lines().filter(|line| line.trim() != "+") {
                let style = if line.starts_with('+') { "32" } else { "2" };
                self.styled(style, &format!("  {}", line.replace('\t', "  ")));
            }
        };
        paint(host);
        if whole_table {
            paint(table);
        } else {
            let rules = table.lines().filter(|line| line.starts_with("+ \t\t")).count();
            paint(&format!("+ table inet portcullis ({rules} lines, as before)"));
        }
        self.say("  The kernel drops that table when the helper dies; the marks die with alice's sockets.");
    }

    /// What the outsider hears.
    fn ports(&self, scene: &Scene) -> Result<()> {
        let [_, tftp, _, http] = scene.try_ports()?;
        let word = |answer| match answer {
            Answer::Open => "answers",
            Answer::Refused => "refuses",
            Answer::Silent => "is silent",
        };
        self.say(&format!(
            "  tried from 192.0.2.3: UDP 69 {}, TCP 64172 {}",
            word(tftp),
            word(http)
        ));
        Ok(())
    }

    /// Who a process is and what it may do, from /proc.
    fn privileges(&self, name: &str, pid: u32) -> Result<()> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(|error| LabError::of(name, error))?;
        let field = |key: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .and_then(|rest| rest.split_whitespace().next())
                .unwrap_or("?")
        };
        let may = match u64::from_str_radix(field("CapEff:"), 16) {
            Ok(0) => "no capability".to_owned(),
            // Bits 10 and 12 of linux/capability.h.
            Ok(0x1400) => "CAP_NET_BIND_SERVICE and CAP_NET_ADMIN, nothing else".to_owned(),
            _ => format!("capabilities {}", field("CapEff:")),
        };
        self.say(&format!("  {name:18} uid {:6} {may}", field("Uid:")));
        Ok(())
    }
}
