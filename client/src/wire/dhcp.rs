//! DHCP messages, reading: a checked view over the octets of one datagram (RFC 2131 section 2).
//!
//! Guarantees: no input panics or makes the work grow beyond a constant number of passes over the
//! datagram; an option is either whole or absent, never a shortened one; options that are split,
//! also with others between the parts, are joined (RFC 3396), and overloaded fields are followed
//! (RFC 2132 section 9.3). Trusts nothing. Never decides who is answered: that is `crate::dhcp`.
//!
//! Why an own codec: dhcproto 0.15 panics on hlen > 16, loses every option after a malformed one,
//! joins only adjacent parts, ignores overload and keeps one architecture of a list.

use std::{borrow::Cow, net::Ipv4Addr};

use crate::mac::MacAddr;

/// Octets before the options: the fixed header and the magic cookie.
pub const HEADER: usize = 240;
/// The magic cookie (RFC 2131 section 3).
pub const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// Octets of the field `chaddr`.
pub const CHADDR: usize = 16;
/// `op` of a message from a client.
pub const BOOTREQUEST: u8 = 1;
/// `op` of a message to a client.
pub const BOOTREPLY: u8 = 2;

const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

/// Option codes (IANA "BOOTP Vendor Extensions and DHCP Options").
pub mod option {
    /// Padding: one octet, no length.
    pub const PAD: u8 = 0;
    /// Subnet mask.
    pub const SUBNET_MASK: u8 = 1;
    /// Routers.
    pub const ROUTER: u8 = 3;
    /// Name servers.
    pub const DNS: u8 = 6;
    /// Broadcast address.
    pub const BROADCAST: u8 = 28;
    /// Vendor-specific information; for PXE clients a list of sub-options (PXE 2.1 section 2.4).
    pub const VENDOR: u8 = 43;
    /// The address that a client asks for.
    pub const REQUESTED_ADDRESS: u8 = 50;
    /// Seconds for which an address is given.
    pub const LEASE_TIME: u8 = 51;
    /// Option overload (RFC 2132 section 9.3).
    pub const OVERLOAD: u8 = 52;
    /// DHCP message type.
    pub const MESSAGE_TYPE: u8 = 53;
    /// Server identifier.
    pub const SERVER_ID: u8 = 54;
    /// Seconds after which a client asks its server for more time (T1).
    pub const RENEWAL_TIME: u8 = 58;
    /// Seconds after which a client asks any server (T2).
    pub const REBINDING_TIME: u8 = 59;
    /// Vendor class: `PXEClient...` or `HTTPClient...` from a boot client.
    pub const VENDOR_CLASS: u8 = 60;
    /// Client identifier, echoed (RFC 6842).
    pub const CLIENT_ID: u8 = 61;
    /// Boot file name.
    pub const BOOT_FILE: u8 = 67;
    /// User class (RFC 3004; iPXE writes it bare).
    pub const USER_CLASS: u8 = 77;
    /// Relay agent information (RFC 3046).
    pub const RELAY: u8 = 82;
    /// Client system architectures, a list of 16-bit codes (RFC 4578 section 2.1).
    pub const ARCHITECTURE: u8 = 93;
    /// Client machine identifier (RFC 4578 section 2.3).
    pub const MACHINE_ID: u8 = 97;
    /// iPXE's own sub-options.
    pub const IPXE: u8 = 175;
    /// End of the options.
    pub const END: u8 = 255;
}

/// Values of option 53 (RFC 2132 section 9.6).
pub mod message_type {
    /// DHCPDISCOVER.
    pub const DISCOVER: u8 = 1;
    /// DHCPOFFER.
    pub const OFFER: u8 = 2;
    /// DHCPREQUEST.
    pub const REQUEST: u8 = 3;
    /// DHCPDECLINE.
    pub const DECLINE: u8 = 4;
    /// DHCPACK.
    pub const ACK: u8 = 5;
    /// DHCPNAK.
    pub const NAK: u8 = 6;
    /// DHCPRELEASE.
    pub const RELEASE: u8 = 7;
    /// DHCPINFORM.
    pub const INFORM: u8 = 8;
}

/// Why a datagram is no DHCP message from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than [`HEADER`].
    #[error("shorter than a DHCP message")]
    Short,
    /// `op` is another one.
    #[error("not a request")]
    NotRequest,
    /// The magic cookie is not there: plain BOOTP, or not DHCP at all.
    #[error("no DHCP cookie")]
    Cookie,
    /// `hlen` is larger than the field that it measures, or too small to tell machines apart.
    #[error("a hardware address of impossible length")]
    HardwareAddress,
}

/// What the header of a question says; its answer repeats it (RFC 2131 table 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Type of the hardware address; 1 is Ethernet.
    pub htype: u8,
    /// Octets of `chaddr` that count, 6 to 16.
    pub hlen: u8,
    /// Transaction.
    pub xid: [u8; 4],
    /// Flags; the first bit asks for a broadcast answer.
    pub flags: [u8; 2],
    /// The client's address, if it says that it has one. Trusted for nothing.
    pub ciaddr: Ipv4Addr,
    /// The relay agent that passed the message on, if any.
    pub giaddr: Ipv4Addr,
    /// The whole field; only the first `hlen` octets count.
    pub chaddr: [u8; CHADDR],
}

impl Header {
    /// The octets of `chaddr` that count.
    #[must_use]
    pub fn hardware_address(&self) -> &[u8] {
        &self.chaddr[..usize::from(self.hlen).min(CHADDR)]
    }

    /// What the machine is called: its hardware address, or the last six octets of it when it is
    /// longer. (EDK2 can send a GUID there; a version 1 GUID ends with the Ethernet address.)
    #[must_use]
    pub fn mac(&self) -> MacAddr {
        MacAddr(self.hardware_address().last_chunk().copied().unwrap_or_default())
    }
}

/// A message whose fixed part was checked.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    header: &'a [u8; HEADER],
    options: &'a [u8],
    /// Bit 0: `file` holds options; bit 1: `sname` does.
    overload: u8,
}

impl<'a> Message<'a> {
    /// Checks length, `op`, cookie and `hlen` (6 to 16: EDK2 can send a GUID as `chaddr`).
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        Self::parse_op(datagram, BOOTREQUEST)
    }

    /// The same for the answer of another server.
    pub fn parse_reply(datagram: &'a [u8]) -> Result<Self, Malformed> {
        Self::parse_op(datagram, BOOTREPLY)
    }

    fn parse_op(datagram: &'a [u8], op: u8) -> Result<Self, Malformed> {
        let (header, options) = datagram.split_first_chunk::<HEADER>().ok_or(Malformed::Short)?;
        let message = Self { header, options, overload: overload(options) };
        if message.header[0] != op {
            return Err(Malformed::NotRequest);
        }
        if message.field::<4>(236) != COOKIE {
            return Err(Malformed::Cookie);
        }
        if !(6..=CHADDR).contains(&usize::from(message.header().hlen)) {
            return Err(Malformed::HardwareAddress);
        }
        Ok(message)
    }

    /// The fields of the fixed part that an answer repeats.
    #[must_use]
    pub fn header(&self) -> Header {
        Header {
            htype: self.header[1],
            hlen: self.header[2],
            xid: self.field(4),
            flags: self.field(10),
            ciaddr: self.field::<4>(12).into(),
            giaddr: self.field::<4>(24).into(),
            chaddr: self.field(28),
        }
    }

    /// The address that a server gives; zero from a proxy.
    #[must_use]
    pub fn yiaddr(&self) -> Ipv4Addr {
        self.field::<4>(16).into()
    }

    /// The field `file`, padded with zeros; nothing if it holds options.
    #[must_use]
    pub fn file(&self) -> Cow<'a, [u8]> {
        Cow::Borrowed(if self.overload & 1 == 1 { &[] } else { &self.header[FILE] })
    }

    /// An option that is one address; `None` also when it is malformed.
    #[must_use]
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let data = self.option(code)?;
        <[u8; 4]>::try_from(&*data).ok().map(Ipv4Addr::from)
    }

    /// Option 53; `None` also when it is malformed.
    #[must_use]
    pub fn message_type(&self) -> Option<u8> {
        match self.option(option::MESSAGE_TYPE).as_deref() {
            Some(&[kind]) => Some(kind),
            _ => None,
        }
    }

    /// All parts of one option, joined in the order options, `file`, `sname` (RFC 3396 section 7).
    /// `None` when it is absent.
    #[must_use]
    pub fn option(&self, code: u8) -> Option<Cow<'a, [u8]>> {
        let file = &self.header[FILE];
        let sname = &self.header[SNAME];
        let fields = [
            self.options,
            if self.overload & 1 == 1 { file } else { &[] },
            if self.overload & 2 == 2 { sname } else { &[] },
        ];
        let mut whole: Option<Cow<'a, [u8]>> = None;
        for field in fields {
            for (_, data) in Options::new(field).filter(|(found, _)| *found == code) {
                match &mut whole {
                    None => whole = Some(Cow::Borrowed(data)),
                    Some(whole) => whole.to_mut().extend_from_slice(data),
                }
            }
        }
        whole
    }

    /// Callers pass offsets of the fixed header, so that the octets are always there.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        self.header[at..].first_chunk().copied().unwrap_or([0; N])
    }
}

/// Which fields hold options, too. Only the options field itself may say so.
fn overload(options: &[u8]) -> u8 {
    Options::new(options)
        .find(|&(code, _)| code == option::OVERLOAD)
        .and_then(|(_, data)| <[u8; 1]>::try_from(data).ok())
        .map_or(0, |[value]| if value <= 3 { value } else { 0 })
}

/// Code, length, data in a row: the options of a message, and the sub-options inside 43 and 175.
/// Ends at END, at the end of the data, or before an option that is not all there.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// Iterates over `data`.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((&option::PAD, rest)) = self.0.split_first() {
            self.0 = rest;
        }
        let whole = match *self.0 {
            [code, length, ref rest @ ..] if code != option::END => {
                rest.split_at_checked(usize::from(length)).map(|(data, rest)| ((code, data), rest))
            }
            _ => None,
        };
        // What follows an incomplete option cannot be told apart from its data.
        let (item, rest) = whole.map_or((None, [].as_slice()), |(item, rest)| (Some(item), rest));
        self.0 = rest;
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request with these octets as options field.
    fn request(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[236..].copy_from_slice(&COOKIE);
        bytes.extend_from_slice(options);
        bytes
    }

    fn option_of(bytes: &[u8], code: u8) -> Option<Vec<u8>> {
        Message::parse(bytes).unwrap().option(code).map(Cow::into_owned)
    }

    #[test]
    fn wire_01_only_dhcp_requests_with_a_usable_hardware_address_are_read() {
        let whole = request(&[]);
        assert!(Message::parse(&whole).is_ok());
        let parse = |bytes: &[u8]| Message::parse(bytes).map(|_| ()).unwrap_err();
        assert_eq!(parse(&whole[..239]), Malformed::Short);
        assert_eq!(parse(&[]), Malformed::Short);
        for (at, value, error) in [
            (0, 2, Malformed::NotRequest),
            (0, 0, Malformed::NotRequest),
            (236, 0x64, Malformed::Cookie),
            (239, 0x62, Malformed::Cookie),
            (2, 17, Malformed::HardwareAddress),
            (2, 255, Malformed::HardwareAddress),
            (2, 5, Malformed::HardwareAddress),
            (2, 0, Malformed::HardwareAddress),
        ] {
            let mut wrong = whole.clone();
            wrong[at] = value;
            assert_eq!(parse(&wrong), error, "octet {at} = {value}");
        }
        let mut guid = whole.clone();
        guid[2] = 16;
        guid[28..44].copy_from_slice(&[7; 16]);
        assert_eq!(Message::parse(&guid).unwrap().header().hardware_address(), [7; 16]);
    }

    #[test]
    fn wire_07_split_options_are_joined_also_when_others_stand_between() {
        let bytes = request(&[77, 2, b'i', b'P', 0, 12, 1, b'x', 77, 2, b'X', b'E', 255]);
        assert_eq!(option_of(&bytes, 77), Some(b"iPXE".to_vec()));
        assert_eq!(option_of(&bytes, 12), Some(b"x".to_vec()));
        assert_eq!(option_of(&bytes, 78), None);
    }

    #[test]
    fn wire_07_overloaded_fields_are_read_in_order_file_then_sname() {
        for (overload, expected) in
            [(0, &b"a"[..]), (1, b"ab"), (2, b"ac"), (3, b"abc"), (4, b"a"), (7, b"a")]
        {
            let mut bytes = request(&[52, 1, overload, 77, 1, b'a', 255]);
            bytes[108..112].copy_from_slice(&[77, 1, b'b', 255]);
            bytes[44..48].copy_from_slice(&[77, 1, b'c', 255]);
            assert_eq!(option_of(&bytes, 77).unwrap(), expected, "overload {overload}");
        }
        // A field may not send the reader on to itself.
        let mut bytes = request(&[52, 1, 1, 255]);
        bytes[108..114].copy_from_slice(&[52, 1, 3, 77, 1, b'b']);
        bytes[44..48].copy_from_slice(&[77, 1, b'c', 255]);
        assert_eq!(option_of(&bytes, 77).unwrap(), b"b");
    }

    #[test]
    fn wire_07_incomplete_options_are_absent_and_end_is_not_needed() {
        assert_eq!(option_of(&request(&[53, 1, 1]), 53), Some(vec![1]));
        assert_eq!(option_of(&request(&[53, 2, 1]), 53), None);
        assert_eq!(option_of(&request(&[53]), 53), None);
        assert_eq!(option_of(&request(&[93, 255, 0, 7]), 93), None);
        assert_eq!(option_of(&request(&[93, 0, 53, 1, 1]), 93), Some(vec![]));
        assert_eq!(option_of(&request(&[93, 0, 53, 1, 1]), 53), Some(vec![1]));
        assert_eq!(option_of(&request(&[255, 53, 1, 1]), 53), None);
        assert_eq!(option_of(&request(&[0, 0, 53, 1, 1, 0]), 53), Some(vec![1]));
        assert_eq!(option_of(&request(&[0, 0]), 0), None);
    }

    #[test]
    fn header_fields_stand_where_rfc_2131_puts_them() {
        let mut bytes = request(&[]);
        for (at, octet) in (0_u8..44).enumerate().skip(3) {
            bytes[at] = octet;
        }
        let message = Message::parse(&bytes).unwrap();
        let header = message.header();
        assert_eq!((header.htype, header.hlen), (1, 6));
        assert_eq!(header.xid, [4, 5, 6, 7]);
        assert_eq!(header.flags, [10, 11]);
        assert_eq!(header.ciaddr, Ipv4Addr::new(12, 13, 14, 15));
        assert_eq!(message.yiaddr(), Ipv4Addr::new(16, 17, 18, 19));
        assert_eq!(header.giaddr, Ipv4Addr::new(24, 25, 26, 27));
        assert_eq!(header.chaddr.to_vec(), (28..44).collect::<Vec<u8>>());
        assert_eq!(header.mac(), MacAddr([28, 29, 30, 31, 32, 33]));
    }
}
