//! How long the firewall takes to open and to close, without bus and dialog, behind each flavour of
//! NixOS' firewall.

use std::{
    num::NonZeroU8,
    time::{Duration, Instant},
};

use portcullis_helper::{
    config::Config,
    firewall::{Dhcp, Firewall, Nftables, Opening},
    interface::InterfaceName,
    mark::Marks,
};
use portcullis_lab::{
    LabError, Result,
    netns::Netns,
    nixos::{self, Flavour, Settings},
};

const ROUNDS: usize = 200;

/// A line for each flavour.
pub fn measure() -> Result<Vec<String>> {
    Flavour::BOTH.into_iter().map(flavour).collect()
}

fn flavour(flavour: Flavour) -> Result<String> {
    let host = Netns::new("host")?;
    nixos::start(&host, flavour, &Settings::default())?;
    let (open, close) = host.run(rounds)??;
    Ok(format!("{flavour:?}: open {}, close {}", show(open), show(close)))
}

fn rounds() -> Result<(Vec<Duration>, Vec<Duration>)> {
    let failed = |error: &dyn std::fmt::Debug| LabError(format!("the firewall: {error:?}"));
    let mut firewall = Nftables::new(&Config::default()).map_err(|error| failed(&error))?;
    let opening = Opening {
        mark: Marks::default().lease(NonZeroU8::MIN),
        interface: InterfaceName::parse("lo").ok_or_else(|| failed(&"lo"))?,
        index: 1,
        dhcp: Dhcp::Proxy,
        boot_server: true,
        tftp: true,
        http: Some(64172),
    };
    let (mut open, mut close) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        firewall.open(&opening).map_err(|error| failed(&error))?;
        open.push(start.elapsed());
        let start = Instant::now();
        firewall.close(&opening).map_err(|error| failed(&error))?;
        close.push(start.elapsed());
    }
    Ok((open, close))
}

fn show(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    format!("median {:.1?}, 95 % {:.1?}, most {:.1?}", at(50), at(95), at(99))
}
