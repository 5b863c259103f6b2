//! The usual scene: a LAN with a router that hands out addresses, the host behind NixOS' firewall,
//! and somebody outside who tries the host's ports.

use std::{net::SocketAddr, time::Duration};

use nix::sys::signal::Signal;

use crate::{
    LabError, Result,
    host::{Client, Host, Site},
    lan::Lan,
    machine::{self, Firmware, Machine},
    netns::Netns,
    nixos::{self, Flavour, Settings},
    probe::{self, Answer},
    process::wait_until,
    rival::Rival,
    snapshot::Snapshot,
};

/// Address of the host on the LAN.
pub const HOST: [u8; 4] = [192, 0, 2, 2];
/// TCP port of the boot images.
pub const HTTP: u16 = portcullis_dbus::DEFAULT_HTTP_PORT;

/// Everything on one LAN. The host's interface is `eth0`.
#[derive(Debug)]
pub struct Scene {
    /// The host.
    pub host: Host,
    /// Its router's DHCP server.
    pub rival: Rival,
    /// The router, 192.0.2.1.
    pub router: Netns,
    /// A neighbour without intentions of its own, 192.0.2.3.
    pub outsider: Netns,
    /// The switch.
    pub lan: Lan,
    /// The ruleset before anything was opened.
    pub before: Snapshot,
    /// The sockets before anything was opened.
    pub sockets: String,
}

/// What the outsider hears from the four ports, in the order 67, 69, 4011, TCP.
pub type Heard = [Answer; 4];

/// Every port refused without a word.
pub const CLOSED: Heard = [Answer::Silent; 4];

impl Scene {
    /// Sets the scene; with `None` the host has no firewall.
    pub fn start(flavour: Option<Flavour>, site: Site) -> Result<Self> {
        Self::start_beside(flavour, site, &[])
    }

    /// The same with more arguments for the router's dnsmasq.
    pub fn start_beside(
        flavour: Option<Flavour>,
        site: Site,
        router_arguments: &[String],
    ) -> Result<Self> {
        let lan = Lan::new()?;
        let router = Netns::new("router")?;
        lan.attach(&router, "eth0", Some("192.0.2.1/24"))?;
        router.address("eth0", "fd00::1/64")?;
        let rival = Rival::start(&router, "eth0", router_arguments)?;
        let outsider = Netns::new("outsider")?;
        lan.attach(&outsider, "eth0", Some("192.0.2.3/24"))?;
        let host = Host::start("host", site)?;
        lan.attach(host.netns(), "eth0", Some("192.0.2.2/24"))?;
        if let Some(flavour) = flavour {
            nixos::start(host.netns(), flavour, &Settings::default())?;
        }
        Ok(Self {
            before: Snapshot::take(host.netns())?,
            sockets: host.sockets()?,
            host,
            rival,
            router,
            outsider,
            lan,
        })
    }

    /// `portcullis boot` by alice, of the laboratory's image, until it serves.
    pub fn serve(&self, more: &[&str]) -> Result<Client> {
        self.serve_this("/mnt", more)
    }

    /// The same of any other file or directory.
    pub fn serve_this(&self, what: &str, more: &[&str]) -> Result<Client> {
        self.serve_by(&["boot", what], more)
    }

    /// The same by any other command.
    pub fn serve_by(&self, command: &[&str], more: &[&str]) -> Result<Client> {
        let arguments =
            [command, &["--interface", "eth0", "--json", "--no-ask-password"], more].concat();
        let mut client = self.host.client("alice", &arguments)?;
        client.ready()?;
        Ok(client)
    }

    /// What the outsider hears from the four ports at this moment; all are tried at once.
    pub fn try_ports(&self) -> Result<Heard> {
        let outsider = &self.outsider;
        let at = |port: u16| SocketAddr::from((HOST, port));
        // A TFTP read request for a file that there is not (RFC 1350): a server answers it.
        let read = b"\0\x01no-such-file\0octet\0";
        std::thread::scope(|scope| {
            let probes = [
                scope.spawn(|| probe::udp(outsider, at(67), b"?")),
                scope.spawn(|| probe::udp(outsider, at(69), read)),
                scope.spawn(|| probe::udp(outsider, at(4011), b"?")),
                scope.spawn(|| probe::tcp(outsider, at(HTTP))),
            ];
            let mut heard = CLOSED;
            for (place, probe) in heard.iter_mut().zip(probes) {
                *place = probe.join().map_err(|_| LabError("a probe panicked".to_owned()))??;
            }
            Ok(heard)
        })
    }

    /// Switches a machine on that `client` serves, and waits until it is up with the laboratory's initrd:
    /// the machine, and its kernel's command line. How long it took is printed.
    pub fn boot(
        &self,
        firmware: Firmware,
        mac: &str,
        client: &Client,
    ) -> Result<(Machine, String)> {
        let mut machine = Machine::start(&self.lan, firmware, mac)?;
        let (cmdline, time) = machine.up().map_err(|error| {
            let (said, told) = (client.stdout(), client.stderr());
            LabError(format!("{error}\nclient:\n{said}{told}\nhost:\n{}", self.host.log()))
        })?;
        println!("{firmware:?}: {time:.1?} to userspace");
        let marker = machine::marker(&machine::image_for(firmware.processor())?)?;
        let initrd = machine.initrd()?;
        if initrd == marker {
            return Ok((machine, cmdline));
        }
        Err(LabError(format!("{mac} has the initrd {initrd}, not {marker}")))
    }

    /// Ends a client as Ctrl-C does: it says that all is well, the ports are closed, and within `limit`
    /// everything is as it was.
    pub fn end(&self, client: &mut Client, limit: Duration) -> Result<()> {
        client.signal(Signal::SIGINT)?;
        let code = client.end()?.code();
        if code != Some(0) {
            return Err(LabError(format!("exit code {code:?}: {}", client.stderr())));
        }
        let heard = self.try_ports()?;
        if heard != CLOSED {
            return Err(LabError(format!("after the client's end: {heard:?}")));
        }
        self.assert_restored(limit)
    }

    /// Waits at most `limit` until ruleset and sockets are what they were, then says what is not.
    pub fn assert_restored(&self, limit: Duration) -> Result<()> {
        let mut ruleset = self.before.clone();
        let mut sockets = String::new();
        let mut look = || -> Result<bool> {
            ruleset = Snapshot::take(self.host.netns())?;
            sockets = self.host.sockets()?;
            Ok(ruleset == self.before && sockets == self.sockets)
        };
        if wait_until(limit, || matches!(look(), Ok(true))) {
            return Ok(());
        }
        Err(LabError(format!(
            "after {limit:?} the host is not as it was:\nruleset:\n{}sockets before:\n{}sockets now:\n{sockets}log:\n{}",
            self.before.changes(&ruleset),
            self.sockets,
            self.host.log()
        )))
    }
}
