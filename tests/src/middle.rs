//! What lies between a server and its machines on a worse network than ours: a slower link, packets
//! that are lost, a long way.
//!
//! Built from what every kernel has: a token bucket for the link (tc-tbf(8)), nftables' random
//! numbers for the loss, two threads with packet sockets for the way (many kernels come without
//! sch_netem). What is sent over the middle is packets as on a wire: the offloads by which veth
//! carries 64 KiB at once are off. Guarantees: all is as before when it is dropped.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendto,
        setsockopt, socket, sockopt,
    },
    time::TimeVal,
};

use crate::{
    LabError, Result,
    lan::{BRIDGE, Lan},
    netns::Netns,
    probe,
};

/// How the way between a server and its machines is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// 1 Gbit/s towards the machines.
    Gigabit,
    /// One packet of a hundred is lost, in each direction.
    Lossy,
    /// 20 ms there and back.
    Long,
}

/// Half of [`Way::Long`].
const DELAY: Duration = Duration::from_millis(10);
/// Frames on their way: 64 MiB hold 10 ms of any link that user space can keep up with.
const BUFFER: usize = 64 << 20;
/// How often a thread looks whether it is still wanted.
const LOOK: TimeVal = TimeVal::new(0, 50_000);

/// A worse network, until it is dropped.
#[derive(Debug)]
pub struct Middle<'a> {
    lan: &'a Lan,
    ends: [&'a Netns; 2],
    way: Way,
    carriers: Option<(Arc<AtomicBool>, Vec<JoinHandle<()>>)>,
}

impl<'a> Middle<'a> {
    /// Between the two that were attached to `lan` first and second, each by an interface `eth0`:
    /// the server, then the machines.
    pub fn put(lan: &'a Lan, server: &'a Netns, machines: &'a Netns, way: Way) -> Result<Self> {
        // Made first, so that what is half done is undone.
        let mut middle = Self { lan, ends: [server, machines], way, carriers: None };
        middle.offloads("off")?;
        let switch = lan.switch();
        match way {
            Way::Gigabit => {
                switch.sh("tc qdisc add dev port1 root tbf rate 1gbit burst 256k limit 1m")?;
            }
            Way::Lossy => {
                switch.sh("nft 'table bridge middle { chain forward { \
                     type filter hook forward priority 0; numgen random mod 100 == 0 drop; }; }'")?;
            }
            Way::Long => {
                switch.ip("link set port0 nomaster")?;
                switch.ip("link set port1 nomaster")?;
                let wanted = Arc::new(AtomicBool::new(true));
                let threads = long_way(switch, &wanted)?;
                middle.carriers = Some((wanted, threads));
            }
        }
        Ok(middle)
    }

    fn offloads(&self, word: &str) -> Result<()> {
        for end in self.ends {
            end.sh(&format!("ethtool -K eth0 tx {word} tso {word} gso {word} >/dev/null"))?;
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        let switch = self.lan.switch();
        match self.way {
            Way::Gigabit => switch.sh("tc qdisc del dev port1 root").map(|_| ())?,
            Way::Lossy => switch.sh("nft delete table bridge middle").map(|_| ())?,
            Way::Long => {
                if let Some((wanted, threads)) = self.carriers.take() {
                    wanted.store(false, Ordering::Relaxed);
                    for thread in threads {
                        let _its_panic_was_shown = thread.join();
                    }
                }
                switch.plug("port0", BRIDGE)?;
                switch.plug("port1", BRIDGE)?;
            }
        }
        self.offloads("on")
    }
}

impl Drop for Middle<'_> {
    fn drop(&mut self) {
        // What was not put cannot be removed, either.
        let _best_effort = self.remove();
    }
}

/// Carries frames between two ports, both ways, each [`DELAY`] later than it came.
fn long_way(switch: &Netns, wanted: &Arc<AtomicBool>) -> Result<Vec<JoinHandle<()>>> {
    let what = |error: std::io::Error| LabError::of("a long way between two ports", error);
    let ports = switch.run(|| Ok([port("port0")?, port("port1")?]))?.map_err(what)?;
    let [left, right] = ports.map(Arc::new);
    let mut threads = one_way(&left, &right, wanted);
    threads.extend(one_way(&right, &left, wanted));
    Ok(threads)
}

/// A packet socket that hears what comes in by an interface, and its address. It does not hear what
/// it sends itself.
fn port(interface: &str) -> std::io::Result<(OwnedFd, LinkAddr)> {
    let link = probe::link_address(interface)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = Some(SockProtocol::EthAll);
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, protocol)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::SndBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &LOOK)?;
    bind(socket.as_raw_fd(), &link)?;
    Ok((socket, link))
}

/// A thread that takes frames in and one that lets them out.
fn one_way(
    from: &Arc<(OwnedFd, LinkAddr)>,
    to: &Arc<(OwnedFd, LinkAddr)>,
    wanted: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let (sender, queue) = channel::<(Instant, Vec<u8>)>();
    let (from, to, wanted) = (Arc::clone(from), Arc::clone(to), Arc::clone(wanted));
    let take_in = move || {
        let mut frame = vec![0; usize::from(u16::MAX)];
        while wanted.load(Ordering::Relaxed) {
            match recv(from.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(count) => {
                    let octets = frame.get(..count).unwrap_or_default().to_vec();
                    if sender.send((Instant::now() + DELAY, octets)).is_err() {
                        return;
                    }
                }
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                Err(_) => return,
            }
        }
    };
    let let_out = move || {
        for (due, frame) in queue {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // A frame that cannot be sent is lost, as on any network.
            let _lost = sendto(to.0.as_raw_fd(), &frame, &to.1, MsgFlags::empty());
        }
    };
    vec![std::thread::spawn(take_in), std::thread::spawn(let_out)]
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{need_root, process::wait_until};

    /// A LAN with a server and machines, 192.0.2.2 and 192.0.2.100.
    fn network() -> (Lan, Netns, Netns) {
        let lan = Lan::new().unwrap();
        let [server, machines] = ["server", "machines"].map(|label| Netns::new(label).unwrap());
        lan.attach(&server, "eth0", Some("192.0.2.2/24")).unwrap();
        lan.attach(&machines, "eth0", Some("192.0.2.100/24")).unwrap();
        (lan, server, machines)
    }

    /// How many of `count` datagrams arrive, and how long each was on its way at least (of a few).
    fn send(server: &Netns, machines: &Netns, count: usize) -> (usize, Duration) {
        let ears = machines.run(|| UdpSocket::bind("192.0.2.100:9").unwrap()).unwrap();
        let mouth = server.run(|| UdpSocket::bind("192.0.2.2:0").unwrap()).unwrap();
        // The first finds out the hardware address, and may be lost.
        ears.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(wait_until(Duration::from_secs(10), || {
            mouth.send_to(b"?", "192.0.2.100:9").unwrap();
            ears.recv(&mut [0; 9]).is_ok()
        }));
        while ears.recv(&mut [0; 9]).is_ok() {}
        let (mut arrived, mut least) = (0, Duration::MAX);
        for number in 1..=count {
            let begun = Instant::now();
            mouth.send_to(b"!", "192.0.2.100:9").unwrap();
            // As many as a socket's buffer holds in any case.
            if count <= 10 || number % 100 == 0 {
                let wait = match number {
                    _ if count <= 10 => 10_000,
                    last if last == count => 2_000,
                    _ => 100,
                };
                ears.set_read_timeout(Some(Duration::from_millis(wait))).unwrap();
                let mut octet = [0];
                while arrived < number && ears.recv(&mut octet).is_ok() {
                    // A late one of those before is not counted.
                    if octet == *b"!" {
                        arrived += 1;
                        least = least.min(begun.elapsed());
                    }
                }
            }
        }
        (arrived, least)
    }

    #[test]
    fn a_long_way_is_long_a_lossy_one_loses_and_afterwards_all_is_as_before() {
        need_root!("ip", "nft", "tc", "ethtool");
        let (lan, server, machines) = network();
        let look = || {
            let switch = lan.switch().sh("ip link; tc qdisc; nft list ruleset").unwrap();
            let ends = [&server, &machines].map(|end| end.sh("ethtool -k eth0").unwrap());
            (switch, ends)
        };
        let before = look();
        {
            let _middle = Middle::put(&lan, &server, &machines, Way::Long).unwrap();
            assert!(send(&server, &machines, 5).1 >= DELAY);
        }
        {
            let _middle = Middle::put(&lan, &server, &machines, Way::Lossy).unwrap();
            // None lost of 2,000: once in 500 million runs. More than a tenth: never.
            let arrived = send(&server, &machines, 2_000).0;
            assert!((1_800..2_000).contains(&arrived), "{arrived}");
        }
        drop(Middle::put(&lan, &server, &machines, Way::Gigabit).unwrap());
        assert_eq!(look(), before);
        assert_eq!(send(&server, &machines, 5).0, 5);
    }
}
