//! The ordinary DHCP server of a LAN: dnsmasq, as a home router runs it.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::{
    LabError, Result,
    netns::Netns,
    process::{Process, mortal, wait_until},
};

/// A running dnsmasq.
#[derive(Debug)]
pub struct Rival {
    // Dropped in this order: the process, then its directory.
    _process: Process,
    directory: TempDir,
}

impl Rival {
    /// Serves addresses `192.0.2.100` to `.150` on `interface`, announces the IPv6 prefix that the
    /// interface has, and nothing about network boot, unless
    /// `more` arguments say so.
    pub fn start(router: &Netns, interface: &str, more: &[String]) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-rival-")
            .tempdir()
            .map_err(|error| LabError::of("a directory for dnsmasq", error))?;
        let leases = directory.path().join("leases");
        let log = directory.path().join("log");
        let mut command = mortal("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
                // Not another user or group: that would take the death signal away.
                "--user=root",
                "--group=root",
            ])
            .args(["--no-hosts", "--no-resolv", "--bind-interfaces", "--pid-file="])
            // Looking for a user of an address by ping would cost three seconds per machine.
            .args(["--dhcp-authoritative", "--no-ping", "--log-dhcp"])
            .args(["--dhcp-range=192.0.2.100,192.0.2.150,255.255.255.0,1h"])
            // Announces a prefix, as home routers do; iPXE waits long for a router that does not.
            .arg("--enable-ra")
            .arg(format!("--dhcp-range=::,constructor:{interface},ra-only,64,1h"))
            .arg(format!("--interface={interface}"))
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .arg(format!("--log-facility={}", log.display()))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = router.spawn(command)?;
        let listens = || {
            let mut command = Command::new("ss");
            command.args(["-Hlun", "sport = :67"]);
            router.finish(command).is_ok_and(|sockets| !sockets.is_empty())
        };
        let rival = Self { _process: process, directory };
        if wait_until(std::time::Duration::from_secs(10), listens) {
            Ok(rival)
        } else {
            Err(LabError(format!("dnsmasq does not listen:\n{}", rival.log())))
        }
    }

    /// Everything it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Its leases, one `MAC IP` per line.
    #[must_use]
    pub fn leases(&self) -> Vec<String> {
        std::fs::read_to_string(self.directory.path().join("leases"))
            .unwrap_or_default()
            .lines()
            .map(|line| line.split(' ').skip(1).take(2).collect::<Vec<_>>().join(" "))
            .collect()
    }
}
