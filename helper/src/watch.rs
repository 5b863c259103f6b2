//! Notices at once that somebody changes nf_tables, so that a reload need not wait for the tick.
//!
//! Guarantees: a message is a reason to look, and nothing else: what it says is never read, so one
//! that is lost (ENOBUFS) means the same. Whoever changes the firewall all the time is looked at no
//! more often than [`limits::BURST`] allows. Trusts nothing: without it, the tick sees all.
//! Format: `NFNLGRP_NFTABLES` of include/uapi/linux/netfilter/nfnetlink.h.

use std::{io, os::fd::OwnedFd};

use rustix::net::{RecvFlags, SocketFlags, netlink::NETFILTER, recv};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{limits, netlink::socket};

/// `NFNLGRP_NFTABLES`, 7, the multicast group that hears of every change of the ruleset, as a mask.
const CHANGES: u32 = 1 << 6;

/// A netlink socket that listens.
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Listens from now on, in this thread's network namespace.
    ///
    /// # Errors
    /// What socket(2) or bind(2) answered: without CAP_NET_ADMIN, EPERM.
    pub fn open() -> io::Result<Self> {
        let socket = socket(Some(NETFILTER), SocketFlags::NONBLOCK, CHANGES)?;
        // Its heir is unsafe, since a type might change its descriptor; this one keeps it.
        #[expect(deprecated, reason = "the safe way for a type that is known")]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self(socket))
    }

    /// Completes when the ruleset has changed since the last time, [`limits::BURST`] after the first
    /// of the changes that were made meanwhile.
    ///
    /// # Errors
    /// What epoll(7) answered.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.readable().await?.retain_ready();
        tokio::time::sleep(limits::BURST).await;
        let mut ready = self.0.readable().await?;
        // Each read empties one message, however little of it is taken.
        for _ in 0..limits::DUMP_MESSAGES {
            let mut taken = [0_u8; 1];
            let read = |one: &AsyncFd<OwnedFd>| {
                Ok(recv(one.get_ref(), &mut taken, RecvFlags::empty()).map(drop)?)
            };
            if ready.try_io(read).is_err() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use super::*;

    /// In a network namespace of this thread alone.
    #[tokio::test]
    async fn a_change_is_noticed_once_also_when_its_messages_are_lost() {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: a_change_is_noticed_once: needs root: {error}");
            return;
        }
        let watch = Watch::open().unwrap();
        let noticed = |limit| tokio::time::timeout(Duration::from_millis(limit), watch.changed());
        let nft =
            |script: &str| assert!(Command::new("nft").arg(script).status().unwrap().success());
        assert!(noticed(100).await.is_err(), "nothing has changed");
        nft("add table inet t; add chain inet t c");
        noticed(5000).await.expect("noticed").unwrap();
        assert!(noticed(100).await.is_err(), "noticed twice");
        // More than the buffer takes.
        socket2::SockRef::from(watch.0.get_ref()).set_recv_buffer_size(1).unwrap();
        for _ in 0..50 {
            nft("add chain inet t d; delete chain inet t d");
        }
        let lost = recv(watch.0.get_ref(), &mut [0_u8; 1], RecvFlags::PEEK).unwrap_err();
        assert_eq!(lost, rustix::io::Errno::NOBUFS);
        nft("add chain inet t d");
        noticed(5000).await.expect("noticed").unwrap();
        assert!(noticed(100).await.is_err(), "noticed twice");
    }
}
