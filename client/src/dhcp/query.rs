//! What a boot client asks beyond what any DHCP client does, read out of its message once and for all.
//!
//! Guarantees: a [`Query`] exists only for a message that carries the marks of a boot client
//! (options 60 and 93, RFC 4578 section 2), so that an ordinary DHCP client is never answered.
//! Nothing of it is text that is shown to people.

use std::net::SocketAddrV4;

use super::{
    ask::Ask,
    table::{self, RASPBERRY_PI},
};
use crate::{
    event::Firmware,
    mac::{MacAddr, hexadecimal},
    source::Traits,
    template::{Identity, Said},
    wire::dhcp::{Malformed, Message, Options, option},
};

/// The port that a message came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// UDP 67.
    Dhcp,
    /// UDP 4011, where the answer goes back to the asker.
    BootServer {
        /// Address and port that the message came from.
        asker: SocketAddrV4,
    },
}

/// What option 60 begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// `PXEClient`: loads by TFTP.
    Pxe,
    /// `HTTPClient`: UEFI HTTP boot.
    Http,
}

/// What is known of an iPXE that asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ipxe {
    /// It carries our marker as user class: it was told so by a script of ours.
    pub ours: bool,
    /// Option 175 lists HTTP (0x13).
    pub http: bool,
    /// Option 175 lists bzImage (0x18).
    pub bzimage: bool,
    /// Option 175 lists EFI images (0x24).
    pub efi: bool,
}

/// The boot item that a client names in 43.71 on port 4011 (PXE 2.1 section 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootItem {
    /// Boot server type; 0 boots from the local disk.
    pub kind: u16,
    /// Layer; the highest bit asks for credentials.
    pub layer: u16,
}

impl BootItem {
    /// The first type that is free for vendors; those below are named products.
    const OURS: u16 = 0x8000;
    const CREDENTIALS: u16 = 0x8000;

    /// Which of the sources of a menu it is, asked for without credentials. Without a menu, 0 is the
    /// image that is served.
    #[must_use]
    pub fn number(self) -> Option<usize> {
        let number = self.kind.checked_sub(Self::OURS).map(usize::from);
        number.filter(|_| self.layer & Self::CREDENTIALS == 0)
    }

    /// The type by which that source is asked for.
    #[must_use]
    pub fn kind_of(number: usize) -> Option<u16> {
        u16::try_from(number).ok()?.checked_add(Self::OURS)
    }

    /// Type and layer as they stand in 43.71.
    #[must_use]
    pub fn octets(self) -> [u8; 4] {
        let [a, b] = self.kind.to_be_bytes();
        let [c, d] = self.layer.to_be_bytes();
        [a, b, c, d]
    }
}

/// Why a message is none of ours. Not worth a line to people: every DHCP client on the segment
/// sends such messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotBootClient {
    /// No DHCP message from a client.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// No or an odd option 53.
    #[error("no message type")]
    MessageType,
    /// Option 60 begins with neither `PXEClient` nor `HTTPClient`.
    #[error("not a boot client")]
    VendorClass,
    /// Option 93 is absent, empty or of odd length.
    #[error("a boot client that names no architecture")]
    Architecture,
    /// Option 97 is not 17 octets with type 0. Such a packet is refused.
    #[error("a machine identifier that is not a GUID")]
    MachineId,
}

/// A boot client's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// What any DHCP client asks. Option 97, if it is there, is a GUID.
    pub ask: Ask,
    /// Option 60.
    pub client: Client,
    /// Option 93, at least one; that of a Raspberry Pi is put right.
    pub architectures: Vec<u16>,
    /// Options 77 and 175, if it is iPXE.
    pub ipxe: Option<Ipxe>,
    /// Option 43.71.
    pub boot_item: Option<BootItem>,
}

/// Codes of option 93.
const X86_BIOS: u16 = 0;

/// The first three octets of the Ethernet addresses of Raspberry Pis, whose boot ROM called itself
/// an x86 BIOS before it had a code of its own (rpi-eeprom issue 182).
const RASPBERRY_PI_OUIS: [[u8; 3]; 7] = [
    [0xb8, 0x27, 0xeb],
    [0xdc, 0xa6, 0x32],
    [0xe4, 0x5f, 0x01],
    [0x28, 0xcd, 0xc1],
    [0xd8, 0x3a, 0xdd],
    [0x2c, 0xcf, 0x67],
    [0x88, 0xa2, 0x9e],
];

/// Of those, the one whose ROM cannot be renewed, and finds its menu's item with three blanks only
/// (Raspberry Pi 3 and before; firmware issue 941).
const BLANKS_OUI: [u8; 3] = [0xb8, 0x27, 0xeb];

fn is_raspberry_pi(mac: MacAddr) -> bool {
    mac.0.first_chunk().is_some_and(|oui| RASPBERRY_PI_OUIS.contains(oui))
}

/// User class of an iPXE that a script of ours has marked (`set user-class portcullis`).
const OUR_USER_CLASS: &[u8] = b"portcullis";
/// User class that iPXE sends by itself.
const IPXE_USER_CLASS: &[u8] = b"iPXE";

impl Query {
    /// Reads a datagram.
    pub fn parse(datagram: &[u8]) -> Result<Self, NotBootClient> {
        let message = Message::parse(datagram)?;
        let ask = Ask::read(&message).ok_or(NotBootClient::MessageType)?;
        let client = match message.option(option::VENDOR_CLASS).as_deref() {
            Some(class) if class.starts_with(b"PXEClient") => Client::Pxe,
            Some(class) if class.starts_with(b"HTTPClient") => Client::Http,
            _ => return Err(NotBootClient::VendorClass),
        };
        let mut architectures =
            architectures(&message.option(option::ARCHITECTURE).unwrap_or_default())
                .ok_or(NotBootClient::Architecture)?;
        if architectures == [X86_BIOS] && is_raspberry_pi(ask.mac) {
            architectures = vec![RASPBERRY_PI];
        }
        if !matches!(
            ask.machine_id.as_deref(),
            None | Some(&[0, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _])
        ) {
            return Err(NotBootClient::MachineId);
        }
        Ok(Self {
            ask,
            client,
            architectures,
            ipxe: ipxe(&message),
            boot_item: message.option(option::VENDOR).and_then(|vendor| boot_item(&vendor)),
        })
    }

    /// What asks, for people.
    #[must_use]
    pub fn firmware(&self) -> Firmware {
        match (self.client, self.ipxe) {
            (_, Some(_)) => Firmware::Ipxe,
            (Client::Pxe, None) => Firmware::Pxe,
            (Client::Http, None) => Firmware::Http,
        }
    }

    /// The same for texts that are made for it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let arch = table::processor(self.architecture()).unwrap_or_default();
        Identity {
            uuid: Said::new(self.uuid().unwrap_or_default().as_bytes()),
            arch: Said::new(arch.as_bytes()),
            ..Identity::default()
        }
    }

    /// What it says of itself.
    #[must_use]
    pub fn traits(&self) -> Traits {
        Traits { arch: self.architecture(), firmware: self.firmware(), uuid: self.uuid() }
    }

    /// Option 97 as SMBIOS writes it: the first three fields are little-endian (RFC 4578 section 2.3).
    fn uuid(&self) -> Option<String> {
        let [_, a, b, c, d, e, f, g, h, rest @ ..] = self.ask.machine_id.as_deref()? else {
            return None;
        };
        let octets = [d, c, b, a, f, e, h, g].into_iter().chain(rest);
        let mut text = String::with_capacity(36);
        for (place, &octet) in octets.enumerate() {
            if [4, 6, 8, 10].contains(&place) {
                text.push('-');
            }
            text.extend(hexadecimal(octet).map(char::from));
        }
        Some(text)
    }

    /// The item of a menu that a Raspberry Pi's ROM looks for.
    #[must_use]
    pub fn raspberry_pi_item(&self) -> &'static str {
        if self.ask.mac.0.starts_with(&BLANKS_OUI) {
            "Raspberry Pi Boot   "
        } else {
            "Raspberry Pi Boot"
        }
    }

    /// The architecture for reports: the first of the list that is known, else the first.
    #[must_use]
    pub fn architecture(&self) -> u16 {
        let known = |arch: &&u16| table::row(**arch).is_some();
        let found = self.architectures.iter().find(known);
        found.or(self.architectures.first()).copied().unwrap_or_default()
    }
}

fn architectures(data: &[u8]) -> Option<Vec<u16>> {
    let (codes, []) = data.as_chunks::<2>() else {
        return None;
    };
    (!codes.is_empty()).then(|| codes.iter().copied().map(u16::from_be_bytes).collect())
}

fn ipxe(message: &Message<'_>) -> Option<Ipxe> {
    let classes = message.option(option::USER_CLASS)?;
    let has = |class: &[u8]| *classes == *class || user_classes(&classes).any(|one| one == class);
    let ours = has(OUR_USER_CLASS);
    if !ours && !has(IPXE_USER_CLASS) {
        return None;
    }
    let features = message.option(option::IPXE).unwrap_or_default();
    // A feature is a number that is not 0: a version, mostly 1.
    let lists = |code| {
        Options::new(&features)
            .any(|(found, data)| found == code && data.iter().any(|&octet| octet != 0))
    };
    Some(Ipxe { ours, http: lists(0x13), bzimage: lists(0x18), efi: lists(0x24) })
}

/// The form of RFC 3004 section 4: length, data, length, data.
fn user_classes(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&length, rest) = data.split_first()?;
        let (class, rest) = rest.split_at_checked(usize::from(length))?;
        data = rest;
        Some(class)
    })
}

fn boot_item(vendor: &[u8]) -> Option<BootItem> {
    let (_, data) = Options::new(vendor).find(|&(code, _)| code == 71)?;
    let &[a, b, c, d] = data else { return None };
    Some(BootItem { kind: u16::from_be_bytes([a, b]), layer: u16::from_be_bytes([c, d]) })
}
