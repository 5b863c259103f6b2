//! Makes the fuzzers' corpora from what is real: every firmware of the laboratory boots once, and what
//! it says to DHCP, TFTP and HTTP becomes one file for each different message; and the kernel lists
//! its links, addresses, sockets and both firewalls of NixOS.
//!
//! `cargo run -p portcullis-tests --example capture -- tests/fuzz/corpus`, as root.

use std::{collections::BTreeSet, fs, path::Path, process::ExitCode};

use portcullis_helper::netlink::{Message, Socket};
use portcullis_lab::{
    LabError, Result,
    host::Site,
    lan::dissect,
    machine::{Firmware, Machine},
    netns::Netns,
    nixos::{self, Flavour, Settings},
    scene::{HTTP, Scene},
};
use rustix::net::{Protocol, netlink};

const MAC: &str = "02:00:00:00:00:01";
/// What takes the place of a run's token, so that the fuzzed server knows it (tests/fuzz/src/wire.rs).
const TOKEN: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

fn main() -> ExitCode {
    let Some(corpus) = std::env::args_os().nth(1) else {
        eprintln!("capture: name the directory of the corpora");
        return ExitCode::FAILURE;
    };
    let corpus = Path::new(&corpus);
    if let Err(error) = kernel(corpus) {
        eprintln!("capture: the kernel: {error:?}");
        return ExitCode::FAILURE;
    }
    for (name, firmware, offer) in [
        ("ipxe-rom", Firmware::Bios, "auto"),
        ("ovmf-complete", Firmware::Uefi, "complete"),
        ("ovmf-boot-server", Firmware::Uefi, "boot-server"),
        ("ovmf-http", Firmware::UefiHttp, "auto"),
    ] {
        match capture(corpus, name, firmware, offer) {
            Ok(files) => println!("{name}: {files} files"),
            Err(error) => {
                eprintln!("capture: {name}: {error:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Boots one machine and keeps what it said. Returns the number of files.
fn capture(corpus: &Path, name: &str, firmware: Firmware, offer: &str) -> Result<usize> {
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice)?;
    let directory = tempfile::tempdir().map_err(|error| LabError::of("a directory", error))?;
    let file = directory.path().join("capture");
    let recording = scene.lan.capture(&file, "ether src 02:00:00:00:00:01 and (udp or tcp)")?;
    let _client = scene.serve(&["--uefi-offer", offer])?;
    let mut machine = Machine::start(&scene.lan, firmware, MAC)?;
    machine.up()?;
    recording.end()?;

    let tcp = format!("tcp.dstport == {HTTP} && tcp.len > 0");
    // A first octet says what the message came to (tests/fuzz/src/wire.rs).
    let kinds = [
        ("dhcp", "udp.dstport == 67", "udp.payload", "00"),
        ("dhcp", "udp.dstport == 4011", "udp.payload", "01"),
        ("tftp", "udp.dstport == 69", "udp.payload", ""),
        ("http", tcp.as_str(), "tcp.payload", ""),
    ];
    let mut written = 0;
    for (target, filter, field, prefix) in kinds {
        let messages: BTreeSet<String> = dissect(&file, filter, &[field])?.into_iter().collect();
        for (number, message) in messages.iter().enumerate() {
            let port = if prefix == "01" { "-4011" } else { "" };
            let octets = with_our_token(octets(&format!("{prefix}{message}")));
            write(corpus, target, &format!("{name}{port}-{number}"), &octets)?;
            written += 1;
        }
    }
    Ok(written)
}

fn write(corpus: &Path, target: &str, name: &str, octets: &[u8]) -> Result<()> {
    let directory = corpus.join(target);
    let path = directory.join(name);
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&path, octets))
        .map_err(|error| LabError::of(path.display(), error))
}

/// Hexadecimal digits, as tshark prints them with or without colons.
fn octets(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let octet = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok();
    digits.chunks_exact(2).filter_map(octet).collect()
}

/// The first path element of an HTTP request, if it is one.
fn with_our_token(mut octets: Vec<u8>) -> Vec<u8> {
    let start = octets.iter().position(|octet| *octet == b'/').map_or(octets.len(), |at| at + 1);
    if let Some(token) = octets.get_mut(start..start + TOKEN.len())
        && token.iter().all(u8::is_ascii_hexdigit)
    {
        token.copy_from_slice(TOKEN);
    }
    octets
}

/// What a real kernel lists, as datagrams.
fn kernel(corpus: &Path) -> Result<()> {
    // Protocol, type and body of the request (netlink(7), rtnetlink(7), sock_diag(7)).
    let mut sockets = vec![2, 17, 0, 0];
    sockets.extend(u32::MAX.to_ne_bytes());
    sockets.resize(56, 0);
    for flavour in Flavour::BOTH {
        let host = Netns::new("host")?;
        host.address("lo", "192.0.2.1/24")?;
        nixos::start(&host, flavour, &Settings::default())?;
        host.run(|| {
            let _bound = std::net::UdpSocket::bind("192.0.2.1:69");
            for (name, protocol, kind, body) in [
                ("links", None, 18, vec![0; 16]),
                ("addresses", None, 22, vec![2, 0, 0, 0, 0, 0, 0, 0]),
                ("sockets", Some(netlink::SOCK_DIAG), 20, sockets.clone()),
            ] {
                write(corpus, "netlink", name, &datagram(&list(protocol, kind, body)?))?;
            }
            let chains = match flavour {
                Flavour::Nftables => [(1, "nixos-fw", "input"), (1, "nixos-fw", "input-allow")],
                Flavour::Iptables => [(2, "filter", "INPUT"), (2, "filter", "nixos-fw")],
            };
            let mut whole = Vec::new();
            for (family, table, chain) in chains {
                let mut listed = list(Some(netlink::NETFILTER), 0x0a04, vec![family, 0, 0, 0])?;
                let named = |message: &Message| {
                    let name = format!("{chain}\0");
                    message.body.windows(name.len()).any(|part| part == name.as_bytes())
                };
                listed.retain(named);
                let mut body = vec![family, 0, 0, 0];
                for (attribute, name) in [(1_u16, table), (2, chain)] {
                    let length = u16::try_from(name.len() + 5).unwrap_or(u16::MAX);
                    body.extend(length.to_ne_bytes());
                    body.extend(attribute.to_ne_bytes());
                    body.extend(name.bytes());
                    body.push(0);
                    body.resize(body.len().next_multiple_of(4), 0);
                }
                listed.extend(list(Some(netlink::NETFILTER), 0x0a07, body)?);
                let name = format!("{table}-{chain}");
                write(corpus, "nftables", &name, &datagram(&listed))?;
                whole.extend(listed);
            }
            write(corpus, "nftables", &format!("{flavour:?}").to_lowercase(), &datagram(&whole))
        })??;
    }
    Ok(())
}

fn list(protocol: Option<Protocol>, kind: u16, body: Vec<u8>) -> Result<Vec<Message>> {
    let listed = Socket::open(protocol).and_then(|mut socket| socket.dump(kind, body));
    listed.map_err(|error| LabError::of("a listing of the kernel", error))
}

/// The messages as they came.
fn datagram(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Message { kind, flags, body } in messages {
        let length = u32::try_from(body.len() + 16).unwrap_or(u32::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}
