//! What other servers offer to a machine that boots from the network, and whose offer its firmware takes
//! while ours is there, too. Pure: the octets of answers in, a verdict out.
//!
//! The rules are EDK2's (NetworkPkg/UefiPxeBcDxe/PxeBcDhcp4.c, PxeBcSelectOffer; HttpBootDxe/
//! HttpBootDhcp4.c, HttpBootSelectDhcpOffer), with ours as what it is: an offer of a proxy that is
//! complete (sub-option 6 of option 43), or an HTTP address of digits. A BIOS ROM and iPXE prefer a
//! proxy in the same way, and take the first. Trusts nothing that came from the network.

use std::{borrow::Cow, net::Ipv4Addr};

use crate::wire::dhcp::{Message, Options, message_type, option};

/// Characters of a boot file's name that are kept.
const LONGEST_NAME: usize = 128;

/// Who asks, in the question that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asker {
    /// A PXE ROM of a BIOS machine.
    Bios,
    /// The PXE client of 64-bit UEFI.
    Uefi,
    /// The HTTP boot client of 64-bit UEFI.
    Http,
}

impl Asker {
    /// Everybody.
    pub const ALL: [Self; 3] = [Self::Bios, Self::Uefi, Self::Http];

    /// Option 60, as its firmware writes it, and option 93.
    #[must_use]
    pub fn class(self) -> (&'static [u8], u16) {
        match self {
            Self::Bios => (b"PXEClient:Arch:00000:UNDI:002001", 0),
            Self::Uefi => (b"PXEClient:Arch:00007:UNDI:003016", 7),
            Self::Http => (b"HTTPClient:Arch:00016:UNDI:003016", 16),
        }
    }

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
            Self::Http => "HTTP boot",
        }
    }
}

/// What the sender of an offer says that it is (option 60).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A DHCP server.
    Plain,
    /// A PXE server.
    Pxe,
    /// A server for UEFI HTTP boot.
    Http,
}

/// An answer to a DISCOVER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Option 54; without it whom the datagram came from.
    pub server: Ipv4Addr,
    /// The address that it gives; a proxy gives none.
    pub address: Option<Ipv4Addr>,
    /// What it says that it is.
    pub class: Class,
    /// The name of a boot file, or an address of one.
    pub file: Option<String>,
    /// It is an OFFER with a server identifier. UEFI takes no other.
    pub is_whole: bool,
    /// Option 43 tells how to discover a boot server (sub-options 6 to 10): "PXE 1.0".
    discovery: bool,
    /// Option 43 has the settings of MTFTP (sub-options 1 to 5).
    mtftp: bool,
}

impl Offer {
    /// Reads an answer that came from `source`; `None` if it is none to a DISCOVER.
    #[must_use]
    pub fn parse(datagram: &[u8], source: Ipv4Addr) -> Option<Self> {
        let message = Message::parse_reply(datagram).ok()?;
        let kind = message.message_type();
        if kind.is_some_and(|kind| kind != message_type::OFFER) {
            return None;
        }
        let id = message.address(option::SERVER_ID);
        let class = message.option(option::VENDOR_CLASS).unwrap_or_default();
        let vendor = message.option(option::VENDOR).unwrap_or_default();
        let has = |codes: std::ops::RangeInclusive<u8>| {
            Options::new(&vendor).any(|(code, _)| codes.contains(&code))
        };
        Some(Self {
            server: id.unwrap_or(source),
            address: Some(message.yiaddr()).filter(|address| !address.is_unspecified()),
            class: match &*class {
                class if class.starts_with(b"PXEClient") => Class::Pxe,
                class if class.starts_with(b"HTTPClient") => Class::Http,
                _ => Class::Plain,
            },
            file: name(message.option(option::BOOT_FILE).unwrap_or_default())
                .or_else(|| name(message.file())),
            is_whole: kind.is_some() && id.is_some(),
            discovery: has(6..=10),
            mtftp: has(1..=5),
        })
    }

    /// Whether it gives an address, and firmware reads it.
    fn gives_address(&self) -> bool {
        self.address.is_some() && self.is_whole
    }

    /// Whether it is a proxy that offers `class`.
    fn is_proxy(&self, class: Class) -> bool {
        self.address.is_none() && self.is_whole && self.class == class
    }
}

/// A name as text that a terminal can show: without what ends or pads it, and without control characters.
fn name(octets: Cow<'_, [u8]>) -> Option<String> {
    let end = octets.iter().position(|octet| matches!(octet, 0 | 0xff)).unwrap_or(octets.len());
    let text = String::from_utf8_lossy(octets.get(..end)?).trim().replace(char::is_control, "?");
    let text: String = text.chars().take(LONGEST_NAME).collect();
    (!text.is_empty()).then_some(text)
}

/// Whose offer the firmware takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ours.
    Ours,
    /// Whichever comes first, ours or one of these servers'.
    First(Vec<Ipv4Addr>),
    /// That of this DHCP server, whatever we do.
    Theirs(Ipv4Addr),
    /// No server gives an address: nobody's.
    NoAddress,
}

/// The verdict of the firmware that `asker` stands for, about all offers that it got.
#[must_use]
pub fn verdict(asker: Asker, offers: &[&Offer]) -> Verdict {
    let addresses = || offers.iter().filter(|offer| offer.gives_address());
    let class = match asker {
        Asker::Bios | Asker::Uefi => Class::Pxe,
        Asker::Http => Class::Http,
    };
    // A DHCP server that is a boot server itself: of PXE, with option 43, or of HTTP, with an address.
    let outranks = |offer: &&&Offer| {
        offer.class == class
            && match class {
                Class::Http => offer.file.is_some(),
                Class::Pxe | Class::Plain => offer.discovery || offer.mtftp,
            }
    };
    if let Some(theirs) = addresses().find(outranks) {
        return Verdict::Theirs(theirs.server);
    }
    // A proxy counts only beside an ordinary DHCP server.
    let is_plain = |offer: &&&Offer| class == Class::Http || offer.class != Class::Pxe;
    if addresses().find(is_plain).is_none() {
        let only = addresses().next();
        return only.map_or(Verdict::NoAddress, |offer| Verdict::Theirs(offer.server));
    }
    // One that is not complete, and leads to UDP 4011, ranks below ours in UEFI.
    let rivals = offers.iter().filter(|offer| {
        offer.is_proxy(class)
            && match asker {
                Asker::Bios => true,
                Asker::Uefi => offer.discovery,
                Asker::Http => offer.file.is_some(),
            }
    });
    let mut rivals: Vec<_> = rivals.map(|offer| offer.server).collect();
    rivals.sort_unstable();
    rivals.dedup();
    if rivals.is_empty() { Verdict::Ours } else { Verdict::First(rivals) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::dhcp::{COOKIE, HEADER};

    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

    /// An answer that gives this address, with this boot file in the header.
    pub(crate) fn datagram(address: [u8; 4], file: &[u8], options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2, 1, 6, 0];
        bytes.resize(16, 0);
        bytes.extend(address);
        bytes.resize(108, 0);
        bytes.extend(file);
        bytes.resize(HEADER - COOKIE.len(), 0);
        bytes.extend(COOKIE);
        bytes.extend(options);
        bytes.push(255);
        bytes
    }

    fn offer(server: Ipv4Addr, gives: bool, options: &[u8]) -> Offer {
        let mut all = vec![53, 1, 2, 54, 4];
        all.extend(server.octets());
        all.extend(options);
        let address = if gives { [192, 0, 2, 100] } else { [0; 4] };
        Offer::parse(&datagram(address, b"", &all), server).unwrap()
    }

    const PXE: &[u8] = &[60, 9, b'P', b'X', b'E', b'C', b'l', b'i', b'e', b'n', b't'];
    const HTTP: &[u8] = &[60, 10, b'H', b'T', b'T', b'P', b'C', b'l', b'i', b'e', b'n', b't'];
    /// Take the file of this offer.
    const COMPLETE: &[u8] = &[43, 4, 6, 1, 8, 255];
    const MTFTP: &[u8] = &[43, 4, 1, 1, 0, 255];
    const FILE: &[u8] = &[67, 3, b'a', b'/', b'b'];

    #[test]
    fn an_offer_octet_by_octet() {
        let options = [&[53, 1, 2, 54, 4, 192, 0, 2, 1][..], PXE, COMPLETE].concat();
        let bytes = datagram([192, 0, 2, 100], b"pxelinux.0\0rest", &options);
        let offer = Offer::parse(&bytes, OTHER).unwrap();
        assert_eq!((offer.server, offer.class), (ROUTER, Class::Pxe));
        assert_eq!(offer.address, Some(Ipv4Addr::new(192, 0, 2, 100)));
        assert_eq!(offer.file.as_deref(), Some("pxelinux.0"));
        assert!(offer.is_whole && offer.discovery && !offer.mtftp);
        // Option 67 wins over the header's field, and neither reaches a terminal as it is.
        let bytes = datagram([0; 4], b"header", &[53, 1, 2, 67, 3, 27, b'[', 0xff]);
        let offer = Offer::parse(&bytes, OTHER).unwrap();
        assert_eq!(offer.file.as_deref(), Some("?["));
        assert_eq!((offer.server, offer.address, offer.is_whole), (OTHER, None, false));
        // BOOTP's form is an answer, too; a NAK and a request are none.
        assert!(Offer::parse(&datagram([0; 4], b"f", &[]), OTHER).is_some());
        assert_eq!(Offer::parse(&datagram([0; 4], b"", &[53, 1, 6]), OTHER), None);
        let mut request = datagram([0; 4], b"", &[53, 1, 2]);
        request[0] = 1;
        assert_eq!(Offer::parse(&request, OTHER), None);
    }

    #[test]
    fn whose_offer_pxe_firmware_takes() {
        let plain = offer(ROUTER, true, &[]);
        let with_file = offer(ROUTER, true, FILE);
        let echoes = offer(ROUTER, true, PXE);
        let serves = offer(ROUTER, true, &[PXE, COMPLETE].concat());
        let multicast = offer(ROUTER, true, &[PXE, MTFTP].concat());
        let proxy = offer(OTHER, false, &[PXE, COMPLETE, FILE].concat());
        let binl = offer(OTHER, false, &[PXE, FILE].concat());
        let second = offer(Ipv4Addr::new(192, 0, 2, 9), true, &[]);
        let theirs = Verdict::Theirs(ROUTER);
        let rival = Verdict::First(vec![OTHER]);
        for (name, offers, uefi, bios) in [
            ("nobody", vec![], Verdict::NoAddress, Verdict::NoAddress),
            ("a proxy alone", vec![&proxy], Verdict::NoAddress, Verdict::NoAddress),
            ("a router", vec![&plain], Verdict::Ours, Verdict::Ours),
            ("one with a boot file", vec![&with_file], Verdict::Ours, Verdict::Ours),
            ("one that echoes PXEClient", vec![&echoes], theirs.clone(), theirs.clone()),
            ("the same beside another", vec![&echoes, &second], Verdict::Ours, Verdict::Ours),
            ("a router that serves", vec![&serves, &second], theirs.clone(), theirs.clone()),
            ("and by multicast", vec![&multicast, &second], theirs.clone(), theirs.clone()),
            ("a second proxy", vec![&plain, &proxy], rival.clone(), rival.clone()),
            ("one that wants 4011", vec![&plain, &binl], Verdict::Ours, rival.clone()),
        ] {
            assert_eq!(verdict(Asker::Uefi, &offers), uefi, "{name}");
            assert_eq!(verdict(Asker::Bios, &offers), bios, "{name}");
        }
        let partial = Offer { is_whole: false, ..proxy };
        assert_eq!(verdict(Asker::Uefi, &[&plain, &partial]), Verdict::Ours);
    }

    #[test]
    fn whose_offer_http_boot_takes() {
        let plain = offer(ROUTER, true, &[]);
        let echoes = offer(ROUTER, true, HTTP);
        let serves = offer(ROUTER, true, &[HTTP, FILE].concat());
        let proxy = offer(OTHER, false, &[HTTP, FILE].concat());
        let pxe = offer(OTHER, false, &[PXE, COMPLETE, FILE].concat());
        for (name, offers, expected) in [
            ("nobody", vec![], Verdict::NoAddress),
            ("a router", vec![&plain], Verdict::Ours),
            ("one that echoes HTTPClient", vec![&echoes], Verdict::Ours),
            ("one with an address", vec![&plain, &serves], Verdict::Theirs(ROUTER)),
            ("a second proxy", vec![&plain, &proxy], Verdict::First(vec![OTHER])),
            ("one for PXE", vec![&plain, &pxe], Verdict::Ours),
        ] {
            assert_eq!(verdict(Asker::Http, &offers), expected, "{name}");
        }
    }
}
