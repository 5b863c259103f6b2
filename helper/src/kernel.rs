//! What the helper asks of the kernel apart from the firewall, as one small trait.
//!
//! Guarantees: nothing here decides anything. [`Linux`] is the real kernel; tests have one that
//! fails on demand and whose clock they move.

use std::{io, net::Ipv4Addr, time::Duration};

use crate::{
    firewall::Opening,
    interface::{InterfaceName, Link},
    mark::Marks,
    rtnetlink,
    sockdiag::{self, Found, Protocol},
    sockets::{self, BindError, Bound},
};

/// The kernel, as the helper sees it.
pub trait Kernel: Send {
    /// The interface of this name, if there is one.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn link(&mut self, name: &InterfaceName) -> io::Result<Option<Link>>;

    /// Makes the sockets of an opening. On an error nothing is left.
    ///
    /// # Errors
    /// The first socket that could not be made.
    fn bind(&mut self, opening: &Opening, address: Ipv4Addr) -> Result<Bound, BindError>;

    /// Every living socket with a mark of ours.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn tagged(&mut self) -> io::Result<Vec<Found>>;

    /// Who has a port.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn holders(&mut self, protocol: Protocol, port: u16) -> io::Result<Vec<Found>>;

    /// Time since boot, suspend included (CLOCK_BOOTTIME): no setting of the clock moves it.
    fn boottime(&self) -> Duration;
}

/// The real kernel, and the marks by which our sockets are known in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux(pub Marks);

impl Kernel for Linux {
    fn link(&mut self, name: &InterfaceName) -> io::Result<Option<Link>> {
        rtnetlink::link(name)
    }

    fn bind(&mut self, opening: &Opening, address: Ipv4Addr) -> Result<Bound, BindError> {
        sockets::bind(opening, address)
    }

    fn tagged(&mut self) -> io::Result<Vec<Found>> {
        sockdiag::tagged(self.0)
    }

    fn holders(&mut self, protocol: Protocol, port: u16) -> io::Result<Vec<Found>> {
        sockdiag::holders(protocol, port)
    }

    fn boottime(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // It is positive for this clock.
        Duration::try_from(now).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// proc(5): /proc/uptime counts what no setting of the clock moves, suspend included.
    #[test]
    fn the_clock_of_leases_is_the_one_that_nobody_sets() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let difference = Linux(Marks::default()).boottime().as_secs_f64() - uptime;
        assert!(difference.abs() < 5.0, "{difference} s apart");
    }

    /// The same where a day of suspend lies behind (time_namespaces(7)): the clock that does not count
    /// it is a day behind there.
    #[test]
    fn the_clock_of_leases_counts_suspend() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: the_clock_of_leases_counts_suspend: needs root");
            return;
        }
        let test = "kernel::tests::the_clock_of_leases_is_the_one_that_nobody_sets";
        let output = std::process::Command::new("unshare")
            .args(["--time", "--fork", "--boottime", "86400"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
