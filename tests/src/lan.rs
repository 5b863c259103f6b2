//! A virtual LAN: a switch, and what is plugged into it.
//!
//! The switch is a bridge in a namespace of its own that has no address and no firewall. It forwards
//! from the first packet on.

use std::{
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    Result,
    netns::Netns,
    process::{Process, mortal, wait_until},
};

/// The switch.
#[derive(Debug)]
pub struct Lan {
    switch: Netns,
    ports: AtomicU32,
}

/// Name of the bridge, for captures.
pub const BRIDGE: &str = "lan";

impl Lan {
    /// An empty switch.
    pub fn new() -> Result<Self> {
        let switch = Netns::new("switch")?;
        // The switch itself says nothing on the wire.
        switch.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        switch.bridge(BRIDGE)?;
        Ok(Self { switch, ports: AtomicU32::new(0) })
    }

    /// The namespace of the switch, where taps live and captures are taken.
    #[must_use]
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// A name that no other port has.
    fn port(&self) -> String {
        format!("port{}", self.ports.fetch_add(1, Ordering::Relaxed))
    }

    /// Plugs a namespace in by a new interface, with an address such as `192.0.2.1/24` or none.
    pub fn attach(&self, netns: &Netns, interface: &str, address: Option<&str>) -> Result<()> {
        let port = self.port();
        netns.cable(interface, &self.switch, &port)?;
        self.switch.plug(&port, BRIDGE)?;
        if let Some(address) = address {
            netns.address(interface, address)?;
        }
        Ok(())
    }

    /// A computer without a system on it, by `eth0`, which has this address.
    pub fn machine(&self, address: &str) -> Result<Netns> {
        let machine = Netns::new("machine")?;
        self.attach(&machine, "eth0", Some(address))?;
        Ok(machine)
    }

    /// A port for a machine: the name of a tap interface in the switch.
    pub fn tap(&self) -> Result<String> {
        let port = self.port();
        self.switch.tap(&port, BRIDGE)?;
        Ok(port)
    }

    /// Records what matches `filter` (pcap-filter(7)) into `file` until the capture is dropped.
    /// Returns when the recording has begun.
    pub fn capture(&self, file: &Path, filter: &str) -> Result<Capture> {
        let mut command = mortal("tcpdump");
        command
            .args(["-i", BRIDGE, "--immediate-mode", "-U", "-Z", "root", "-w"])
            .arg(file)
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = self.switch.spawn(command)?;
        // tcpdump writes the header of the file once it listens.
        let begun = wait_until(std::time::Duration::from_secs(10), || {
            file.metadata().is_ok_and(|facts| facts.len() >= 24)
        });
        if begun {
            Ok(Capture { process })
        } else {
            Err(crate::LabError(format!("tcpdump does not record {filter}")))
        }
    }
}

/// A recording under way.
#[derive(Debug)]
pub struct Capture {
    process: Process,
}

impl Capture {
    /// Ends the recording; the file is whole afterwards.
    pub fn end(mut self) -> Result<()> {
        self.process.signal(nix::sys::signal::Signal::SIGTERM)?;
        self.process.wait(std::time::Duration::from_secs(5)).map(|_| ())
    }
}

/// What tshark makes of a recording: one line per packet that matches the display filter, the named
/// fields separated by a comma.
pub fn dissect(file: &Path, filter: &str, fields: &[&str]) -> Result<Vec<String>> {
    let mut command = std::process::Command::new("tshark");
    command.arg("-r").arg(file).args(["-n", "-Y", filter, "-T", "fields", "-E", "separator=,"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let text = crate::process::finish(command)?;
    Ok(text.lines().map(str::to_owned).collect())
}
