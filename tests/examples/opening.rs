//! How long opening and closing take, without the dialog: 200 rounds behind each flavour of NixOS'
//! firewall. Needs root. `cargo run --release -p portcullis-tests --example opening`

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
    need_root,
    netns::Netns,
    nixos::{self, Flavour, Settings},
};

fn main() {
    need_root!("ip", "nft", "iptables");
    for flavour in Flavour::BOTH {
        let host = Netns::new("host").expect("a network namespace");
        nixos::start(&host, flavour, &Settings::default()).expect("the firewall");
        let (mut open, mut close) = (Vec::new(), Vec::new());
        host.run(|| {
            let mut firewall = Nftables::new(&Config::default()).expect("a netlink socket");
            let opening = Opening {
                mark: Marks::default().lease(NonZeroU8::MIN),
                interface: InterfaceName::parse("lo").expect("a name"),
                index: 1,
                dhcp: Dhcp::Proxy,
                boot_server: true,
                tftp: true,
                http: Some(64172),
            };
            for _ in 0..200 {
                let start = Instant::now();
                firewall.open(&opening).expect("opened");
                open.push(start.elapsed());
                let start = Instant::now();
                firewall.close(&opening).expect("closed");
                close.push(start.elapsed());
            }
        })
        .expect("inside");
        println!("{flavour:?}: open {}, close {}", show(open), show(close));
    }
}

fn show(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    format!("median {:?}, 95 % {:?}, most {:?}", at(50), at(95), at(99))
}
