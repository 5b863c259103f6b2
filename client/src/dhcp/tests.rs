//! The wire checklist for ports 67 and 4011, item by item, with literal octets and with packets
//! that real firmware sent (`testdata`).

mod boot_server;
mod http_boot;
mod loaders;
mod menu;
mod offer;
mod properties;
mod query;
mod raspberry_pi;

use std::net::{Ipv4Addr, SocketAddrV4};

use proptest::prelude::*;

use super::*;
use crate::{
    event::{Fact, Firmware, Ignored, OfferForm},
    image::{Cpu, EfiImage, Generation, Loader, MenuItem, NoEfiImage, Signature},
    mac::MacAddr,
    source::{Traits, text_blob},
    wire::{
        dhcp::{COOKIE, HEADER, Options},
        dhcp_reply,
    },
};

const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const ASKER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 63), 4011);
const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 9]);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const SCRIPT: &str =
    "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-09/boot.ipxe";
const GUID: [u8; 17] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

fn policy() -> Policy {
    Policy {
        initrds: 1,
        loaders: [
            Loader::Undionly,
            Loader::IpxePxe,
            Loader::Snponly(Cpu::X64),
            Loader::Ipxe(Cpu::X64),
        ]
        .into(),
        address: OURS,
        http_port: 64172,
        token: TOKEN.to_owned(),
        ..Policy::plain()
    }
}

/// A message from this machine's firmware, with hops, seconds and flags that an answer may not take over
/// by mistake.
fn message(options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = message_from(MAC.0, options);
    bytes[3] = 3;
    bytes[8..12].copy_from_slice(&[0, 4, 0x80, 0]);
    bytes
}

/// A message with these options and END, and nothing else.
pub(super) fn message_from(mac: [u8; 6], options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    bytes[28..34].copy_from_slice(&mac);
    bytes[236..].copy_from_slice(&COOKIE);
    for (code, data) in options {
        bytes.push(*code);
        bytes.push(u8::try_from(data.len()).unwrap());
        bytes.extend_from_slice(data);
    }
    bytes.push(255);
    bytes
}

const DISCOVER: (u8, &[u8]) = (53, &[1]);
const REQUEST: (u8, &[u8]) = (53, &[3]);
const PXE: (u8, &[u8]) = (60, b"PXEClient:Arch:00007:UNDI:003000");
const BIOS: (u8, &[u8]) = (93, &[0, 0]);
const X64: (u8, &[u8]) = (93, &[0, 7]);
const IPXE: (u8, &[u8]) = (77, b"iPXE");
const HTTP_BZIMAGE: (u8, &[u8]) = (175, &[0x13, 1, 1, 0x18, 1, 1]);

fn fixture(text: &str) -> Vec<u8> {
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Nothing is served but this program, or none.
fn only(efi: &Efi) -> Generation {
    Generation { efi: efi.clone(), ..Generation::default() }
}

fn ask(bytes: &[u8], port: Port, policy: &Policy, memory: Memory) -> Decision {
    decide(&Query::parse(bytes).unwrap(), port, policy, memory, &only(&Err(NoEfiImage::Kernel)))
}

fn on_67(bytes: &[u8]) -> Decision {
    ask(bytes, Port::Dhcp, &policy(), Memory::default())
}

fn on_4011(bytes: &[u8]) -> Decision {
    let port = Port::BootServer { asker: ASKER };
    ask(bytes, port, &policy(), Memory::default())
}

#[track_caller]
fn reply(decision: Decision) -> (Vec<u8>, SocketAddrV4, Fact) {
    match decision {
        Decision::Reply { bytes, destination, fact } => (bytes, destination, fact),
        Decision::Ignore(reason) => panic!("ignored: {reason}"),
    }
}

#[track_caller]
fn ignored(decision: Decision) -> Ignore {
    match decision {
        Decision::Ignore(reason) => reason,
        Decision::Reply { fact, .. } => panic!("answered: {fact:?}"),
    }
}

#[track_caller]
fn offered(decision: Decision) -> (OfferForm, String) {
    match reply(decision).2 {
        Fact::Offered { form, file } => (form, file),
        other => panic!("{other:?}"),
    }
}

/// Every option of a reply, in order.
fn options(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    Options::new(&bytes[HEADER..]).map(|(code, data)| (code, data.to_vec())).collect()
}

fn option(bytes: &[u8], code: u8) -> Option<Vec<u8>> {
    let found = options(bytes).into_iter().find(|(found, _)| *found == code);
    found.map(|(_, data)| data)
}

/// What the helper's output guard asks of a datagram from 67 or 4011: the same offsets, counted
/// from the UDP header.
fn guard_passes(payload: &[u8], source: u16, destination: SocketAddrV4) -> bool {
    let udp = [&[0; 8], payload].concat();
    let ports: &[u16] = match source {
        67 => &[67, 68],
        _ => &[67, 68, 4011],
    };
    (248..=479).contains(&udp.len())
        && udp[8] == 2
        && udp[24..28] == [0; 4]
        && udp[244..248] == [0x63, 0x82, 0x53, 0x63]
        && udp[248..250] == [53, 1]
        && (udp[250] == 2 || udp[250] == 5)
        && ports.contains(&destination.port())
}

const HTTP: (u8, &[u8]) = (60, b"HTTPClient:Arch:00016:UNDI:003001");
const X64_HTTP: (u8, &[u8]) = (93, &[0, 16]);
const EFI: &str =
    "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-09/boot.efi";

type Efi = Result<EfiImage, NoEfiImage>;

/// Made of kernel and initrd.
fn made(machine: u16) -> Efi {
    Ok(EfiImage {
        machine,
        stub: Some(text_blob("stub", String::new())),
        signature: Signature::Missing,
    })
}

/// An x64 EFI program, and nothing but that.
const NAMED: Efi = Ok(EfiImage { machine: 0x8664, stub: None, signature: Signature::Missing });

fn with_loaders(loaders: &[Loader]) -> Policy {
    Policy { loaders: loaders.iter().copied().collect(), ..policy() }
}

fn on_67_with(efi: &Efi, policy: &Policy, options: &[(u8, &[u8])]) -> Decision {
    let query = Query::parse(&message(options)).unwrap();
    decide(&query, Port::Dhcp, policy, Memory::default(), &only(efi))
}
