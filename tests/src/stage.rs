//! The stage of what needs a whole system: a Debian with systemd, bus and polkitd on a LAN, and a
//! neighbour who looks at its ports.
//!
//! Guarantees: nothing of Portcullis is installed unless a test does it; what is booted there, in
//! `/srv/image`, and the addresses are the same for all tests. As [`crate::scene`] is for tests that
//! can do without systemd and logins.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use portcullis_dbus::{BOOT_SERVER_PORT, DEFAULT_HTTP_PORT, DHCP_PORT, TFTP_PORT};

use crate::{
    LabError, Result,
    lan::Lan,
    machine::{self, Firmware, Machine},
    netns::Netns,
    nixos::{self, Flavour, Settings},
    nspawn::{Bus, Debian, Login, Session},
    probe::{self, Answer},
    rival::Rival,
};

/// The Debian's address on the LAN, on its interface `eth0`.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What a user types to serve.
pub const SERVE: [&str; 6] = ["portcullis", "boot", "/srv/image", "-i", "eth0", "--json"];
/// What `--json` says once it serves.
pub const READY: &str = "\"event\":\"ready\"";

/// See the module.
#[derive(Debug)]
pub struct Stage {
    // Dropped in this order: what runs, then where it runs.
    /// The Debian.
    pub debian: Debian,
    /// The switch.
    pub lan: Lan,
    /// The neighbour, 192.0.2.2.
    pub outside: Netns,
}

impl Stage {
    /// Sets it; with `None` the Debian has no firewall.
    pub fn start(firewall: Option<Flavour>) -> Result<Self> {
        Self::with_bus(firewall, Bus::Daemon)
    }

    /// The same with another bus.
    pub fn with_bus(firewall: Option<Flavour>, bus: Bus) -> Result<Self> {
        let lan = Lan::new()?;
        let (host, outside) = (Netns::new("debian")?, Netns::new("outside")?);
        lan.attach(&host, "eth0", Some("192.0.2.1/24"))?;
        lan.attach(&outside, "eth0", Some("192.0.2.2/24"))?;
        if let Some(flavour) = firewall {
            nixos::start(&host, flavour, &Settings::default())?;
        }
        let debian = Debian::boot_with(Arc::new(host), bus)?;
        debian.copy(&machine::image()?, "/srv/image")?;
        Ok(Self { debian, lan, outside })
    }

    /// A user's program, once it serves. What the helper and polkit said is in the error if it does not.
    pub fn serve(&self, login: Login, limit: Duration) -> Result<Session<'_>> {
        let mut session = self.debian.without_terminal(login, &SERVE)?;
        self.expect(&mut session, READY, limit)?;
        Ok(session)
    }

    /// As [`Session::expect`], with the journal in the error.
    pub fn expect(&self, session: &mut Session<'_>, text: &str, limit: Duration) -> Result<()> {
        session
            .expect(text, limit)
            .map_err(|error| LabError(format!("{error}\n{}", self.journal())))
    }

    /// How the port for boot images looks from outside.
    pub fn http(&self) -> Result<Answer> {
        probe::tcp(&self.outside, (HOST, DEFAULT_HTTP_PORT).into())
    }

    /// Looks from outside at all ports, which are refused: UDP without a word.
    pub fn refuses(&self) -> Result<()> {
        if self.http()? == Answer::Open {
            return Err(LabError(format!("TCP {DEFAULT_HTTP_PORT} is open")));
        }
        for port in [DHCP_PORT, TFTP_PORT, BOOT_SERVER_PORT] {
            let answer = probe::udp(&self.outside, (HOST, port).into(), b"?")?;
            if answer != Answer::Silent {
                return Err(LabError(format!("UDP {port}: {answer:?}")));
            }
        }
        Ok(())
    }

    /// Open sockets of the host, whoever holds them, one a line.
    pub fn sockets(&self) -> Result<String> {
        self.debian.netns().sh("ss -Hlntuwp")
    }

    /// The last lines of the journal; why there are none, if there are none.
    #[must_use]
    pub fn journal(&self) -> String {
        let lines = self.debian.sh("journalctl --no-pager --lines=60 --output=short-monotonic");
        lines.unwrap_or_else(|error| error.to_string())
    }

    /// A machine with a BIOS comes up with what is served, while a router's DHCP server gives it an
    /// address; then both are gone again.
    pub fn boot(&self, mac: &str) -> Result<()> {
        let router = Netns::new("router")?;
        self.lan.attach(&router, "eth0", Some("192.0.2.254/24"))?;
        let _rival = Rival::start(&router, "eth0", &[])?;
        let mut machine = Machine::start(&self.lan, Firmware::Bios, mac)?;
        let (cmdline, _) = machine.up()?;
        let (initrd, marker) = (machine.initrd()?, machine::marker(&machine::image()?)?);
        if cmdline.contains("init=/nix/store/") && initrd == marker {
            return Ok(());
        }
        Err(LabError(format!("{mac} has another kernel or initrd ({initrd}): {cmdline}")))
    }
}

/// Leaves the test, saying so aloud, when a whole Debian cannot be booted here; or one of the tools
/// that are named.
#[macro_export]
macro_rules! need_debian {
    ($($tool:expr),* $(,)?) => {
        $crate::need_root!(
            "systemd-nspawn", "debootstrap", "nsenter", "unshare", "setpriv", "ip" $(, $tool)*
        )
    };
}
