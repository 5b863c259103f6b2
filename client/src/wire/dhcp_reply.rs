//! DHCP messages, writing: an answer names a boot file ([`Boot`]), gives an address ([`Lease`]), or
//! both.
//!
//! Guarantees for every reply, because the helper's output guard drops anything else: op 2, [`MIN`]
//! to [`MAX`] octets, option 53 first behind the cookie. Without a [`Lease`], `yiaddr` is 0 and there
//! is no option that belongs to one (1, 3, 6, 28, 51, 58, 59). Whether the client asked for a larger
//! or smaller datagram (57) does not matter: no legal value lies below 576.

use std::net::Ipv4Addr;

use super::dhcp::{BOOTREPLY, COOKIE, HEADER, Header, message_type, option};
use crate::image::MENU_SECONDS;

/// Octets below which old relays and clients drop a message (RFC 1542 section 2.1).
pub const MIN: usize = 300;
/// Most octets that the output guard lets pass: 479 of UDP without its header of 8. Also below the
/// 548 that every client accepts (RFC 2131 section 2).
pub const MAX: usize = 471;
/// Octets of the longest boot file name: the header field, whose last octet stays NUL.
pub const BOOT_FILE_MAX: usize = 127;

/// What kind of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// DHCPOFFER, the answer on port 67.
    Offer,
    /// DHCPACK, the answer on port 4011, and to a REQUEST for an address.
    Ack,
    /// DHCPNAK: the address that was asked for is not to be used.
    Nak,
}

/// The address that a machine is given, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// `yiaddr`; 0 tells the rest to a machine that has an address (DHCPINFORM).
    pub address: Ipv4Addr,
    /// Option 51 in seconds, with 58 and 59 (half and seven eighths of it); none with DHCPINFORM.
    pub seconds: Option<u32>,
    /// Option 1.
    pub mask: Ipv4Addr,
    /// Option 28.
    pub broadcast: Ipv4Addr,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6, at most [`DNS_MAX`].
    pub dns: Vec<Ipv4Addr>,
}

/// Most name servers that are told: the resolver of most systems asks no more.
pub const DNS_MAX: usize = 3;

/// What is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Option 60.
    pub vendor_class: &'static str,
    /// Option 43.
    pub vendor: Vendor,
    /// Header field `file` and option 67, at most [`BOOT_FILE_MAX`] octets; neither, if it is empty.
    pub file: String,
}

/// What PXE clients find in option 43 (PXE 2.1 section 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// No option 43.
    Absent,
    /// Discovery control, bit 3: take the file of this message and ask nobody else.
    TakeThisFile,
    /// The boot item that was asked for: type and layer.
    BootItem([u8; 4]),
    /// A menu of one item of type 0, to be taken without waiting: the local disk, and what a
    /// Raspberry Pi's boot ROM looks for. Discovery control 3: nobody is asked by broadcast or
    /// multicast. At most 100 octets.
    Menu(&'static str),
    /// A menu to choose from, whose choice is asked for on port 4011 of this server and of no other
    /// (discovery control 7). The first one is taken when nobody asks for the menu in time.
    Choice(Vec<Item>),
}

/// One line of a menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Boot server type, by which it is asked for.
    pub kind: u16,
    /// For people. Shown as far as there is room, and in ASCII: a firmware's console has no more.
    pub name: String,
}

/// What the firmware shows before the menu, with the seconds that are left behind it. EDK2 takes F8,
/// Ctrl-M and M; ROMs F8 or Ctrl-M.
const PROMPT: &[u8] = b"F8: menu";
/// Octets of a menu beside its items: discovery control, boot servers, menu, prompt with its time, END.
const MENU_FRAME: usize = 3 + 2 + 2 + 2 + 1 + PROMPT.len() + 1;
/// Octets of an item beside its name: type, count and address of the server; type and length.
const MENU_ITEM: usize = 7 + 3;
/// Names are not cut to less than this: items that have no room for it are left out.
const NAME_MIN: usize = 8;
/// Longest name. EDK2 writes behind a buffer of 70 octets for a longer one (PxeBcBoot.c
/// `PxeBcSelectBootMenu`).
const NAME_MAX: usize = 60;

/// A menu of at most `room` octets; none if not even one item fits.
fn choice(items: &[Item], server: Ipv4Addr, room: usize) -> Option<Vec<u8>> {
    let room = room.min(255).checked_sub(MENU_FRAME)?;
    let count = items.len().min(room / (MENU_ITEM + NAME_MIN));
    let longest = (room.checked_div(count)? - MENU_ITEM).min(NAME_MAX);
    let (mut servers, mut lines) = (Vec::new(), Vec::new());
    for Item { kind, name } in items.iter().take(count) {
        servers.extend_from_slice(&kind.to_be_bytes());
        servers.push(1);
        servers.extend_from_slice(&server.octets());
        let shown = |one: char| if matches!(one, ' '..='~') { one } else { '?' };
        let name: String = name.chars().map(shown).take(longest).collect();
        lines.extend_from_slice(&kind.to_be_bytes());
        lines.push(u8::try_from(name.len()).ok()?);
        lines.extend_from_slice(name.as_bytes());
    }
    let mut octets = vec![6, 1, 7, 8, u8::try_from(servers.len()).ok()?];
    octets.append(&mut servers);
    octets.extend_from_slice(&[9, u8::try_from(lines.len()).ok()?]);
    octets.append(&mut lines);
    octets.extend_from_slice(&[10, u8::try_from(PROMPT.len() + 1).ok()?, MENU_SECONDS]);
    octets.extend_from_slice(PROMPT);
    octets.push(255);
    Some(octets)
}

impl Vendor {
    /// Option 43, in at most `room` octets.
    fn octets(&self, server: Ipv4Addr, room: usize) -> Option<Vec<u8>> {
        match self {
            Self::Absent => None,
            Self::TakeThisFile => Some(vec![6, 1, 8, 255]),
            Self::BootItem([a, b, c, d]) => Some(vec![71, 4, *a, *b, *c, *d, 255]),
            Self::Choice(items) => choice(items, server, room),
            Self::Menu(item) => {
                let mut octets = vec![6, 1, 3, 10, 4, 0, b'P', b'X', b'E'];
                let text = u8::try_from(item.len()).ok()?;
                octets.extend_from_slice(&[9, text.checked_add(3)?, 0, 0, text]);
                octets.extend_from_slice(item.as_bytes());
                octets.push(255);
                Some(octets)
            }
        }
    }
}

/// An answer. Fields that are not named here are zero on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// OFFER, ACK or NAK.
    pub kind: Kind,
    /// Copied from the question, but for `ciaddr`: that of a question only in an ACK, zero in an
    /// OFFER and a NAK (RFC 2131 table 3).
    pub header: Header,
    /// Our address on the client's segment: option 54 and, with a boot file, siaddr and `sname`.
    pub server: Ipv4Addr,
    /// The address.
    pub lease: Option<Lease>,
    /// What is loaded.
    pub boot: Option<Boot>,
    /// Option 97, echoed if it fits.
    pub machine_id: Option<Vec<u8>>,
    /// Option 61, echoed if it fits.
    pub client_id: Option<Vec<u8>>,
    /// Option 82, echoed as the last one if it fits: the boot data go first.
    pub relay: Option<Vec<u8>>,
}

/// The boot file name does not fit its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the boot file name is longer than {BOOT_FILE_MAX} octets")]
pub struct BootFileTooLong;

impl Reply {
    /// The datagram's payload.
    pub fn emit(&self) -> Result<Vec<u8>, BootFileTooLong> {
        if self.boot.as_ref().is_some_and(|boot| boot.file.len() > BOOT_FILE_MAX) {
            return Err(BootFileTooLong);
        }
        let mut out = Vec::with_capacity(MAX);
        self.emit_header(&mut out);

        let kind = match self.kind {
            Kind::Offer => message_type::OFFER,
            Kind::Ack => message_type::ACK,
            Kind::Nak => message_type::NAK,
        };
        push(&mut out, option::MESSAGE_TYPE, &[kind]);
        push(&mut out, option::SERVER_ID, &self.server.octets());
        if let Some(lease) = &self.lease {
            lease.push(&mut out);
        }
        if let Some(boot) = &self.boot {
            push(&mut out, option::VENDOR_CLASS, boot.vendor_class.as_bytes());
            // EDK2 writes a NUL behind a name that has none, over the next option's code.
            let file = (!boot.file.is_empty()).then(|| format!("{}\0", boot.file));
            // What PXE wants back (97) goes before a menu's names.
            let others = [file.as_ref().map(String::len), self.machine_id.as_ref().map(Vec::len)];
            let others: usize = others.into_iter().flatten().map(|length| length + 2).sum();
            let room = MAX.saturating_sub(out.len() + 2 + others + 1);
            if let Some(vendor) = boot.vendor.octets(self.server, room) {
                push(&mut out, option::VENDOR, &vendor);
            }
            if let Some(file) = file {
                push(&mut out, option::BOOT_FILE, file.as_bytes());
            }
        }
        push_echo(&mut out, option::MACHINE_ID, self.machine_id.as_deref());
        push_echo(&mut out, option::CLIENT_ID, self.client_id.as_deref());
        push_echo(&mut out, option::RELAY, self.relay.as_deref());
        out.push(option::END);
        if out.len() < MIN {
            out.resize(MIN, option::PAD);
        }
        Ok(out)
    }

    fn emit_header(&self, out: &mut Vec<u8>) {
        let header = &self.header;
        out.extend_from_slice(&[BOOTREPLY, header.htype, header.hlen, 0]);
        out.extend_from_slice(&header.xid);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&header.flags);
        out.extend_from_slice(&header.ciaddr.octets());
        let address = self.lease.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |lease| lease.address);
        out.extend_from_slice(&address.octets());
        let next = self.boot.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |_| self.server);
        out.extend_from_slice(&next.octets());
        out.extend_from_slice(&header.giaddr.octets());
        out.extend_from_slice(header.hardware_address());
        out.resize(44, 0);
        if let Some(boot) = &self.boot {
            out.extend_from_slice(self.server.to_string().as_bytes());
            out.resize(108, 0);
            out.extend_from_slice(boot.file.as_bytes());
        }
        out.resize(HEADER - COOKIE.len(), 0);
        out.extend_from_slice(&COOKIE);
    }
}

impl Lease {
    fn push(&self, out: &mut Vec<u8>) {
        if let Some(seconds) = self.seconds {
            push(out, option::LEASE_TIME, &seconds.to_be_bytes());
            push(out, option::RENEWAL_TIME, &(seconds / 2).to_be_bytes());
            push(out, option::REBINDING_TIME, &(seconds - seconds / 8).to_be_bytes());
        }
        push(out, option::SUBNET_MASK, &self.mask.octets());
        push(out, option::BROADCAST, &self.broadcast.octets());
        if let Some(router) = self.router {
            push(out, option::ROUTER, &router.octets());
        }
        let dns: Vec<u8> = self.dns.iter().take(DNS_MAX).flat_map(Ipv4Addr::octets).collect();
        if !dns.is_empty() {
            push(out, option::DNS, &dns);
        }
    }
}

/// Appends an option that always fits: at most 255 octets.
fn push(out: &mut Vec<u8>, code: u8, data: &[u8]) {
    if let Ok(length) = u8::try_from(data.len()) {
        out.extend_from_slice(&[code, length]);
        out.extend_from_slice(data);
    }
}

/// Appends an option of the client's making, unless it is empty (a length that readers of these
/// options refuse) or the message would outgrow [`MAX`] with it and the END.
fn push_echo(out: &mut Vec<u8>, code: u8, data: Option<&[u8]>) {
    if let Some(data) = data.filter(|data| !data.is_empty())
        && out.len() + 2 + data.len() < MAX
    {
        push(out, code, data);
    }
}
