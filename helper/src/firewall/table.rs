//! Our own table, as a list of changes that is drawn from openings alone.
//!
//! What the table promises, in the words of nft (`TAG`, `MASK`: mark.rs; `LEASE`: a lease's mark):
//!
//! ```text
//! table inet portcullis {                # flags owner: dies with the helper, editable by nobody
//!   set live { type mark; }              # leases that are open; taken out first when one ends
//!   set shared { type mark; }            # leases beside another DHCP server, open or ended
//!   set hearing { type iface_index; timeout; }  # where a raw socket hears, for ten seconds more
//!   set homes { type mark . iface_index; }  # where each lease is, or was: its sockets' filter
//!   chain input {                        # input, -5: before every firewall's own chain
//!     meta mark & MASK == TAG  meta mark set meta mark & ~MASK      # a foreign mark opens nothing
//!     ipv4, iif @hearing, udp dport 67, to 255.255.255.255 -> packet mark TAG, accept
//!     tcp|udp, socket mark & MASK == TAG  jump admit
//!     tcp, socket mark & MASK == TAG, socket mark != @live  reject with tcp reset
//!     udp, socket mark @shared, dport 67  accept      # the other server's, too: as if we were not
//!     udp, socket mark . iif != @homes, dport 67  accept  # moved: its filter drops it, others hear it
//!     udp|tcp, socket mark & MASK == TAG  drop                      # deaf for everything else
//!   }
//!   chain admit      per lease and port: ipv4, iif, protocol, dport, socket mark LEASE, in @live
//!                    -> packet mark TAG, accept (the host's chain accepts what has it)
//!                  and for UDP 67: ipv4, iif, to 255.255.255.255, another tagged socket -> the same
//!   chain untrack_in, untrack_out        # raw: no conntrack entry outlives a lease's UDP
//!   chain guard {                        # output, 300: what it sees is what leaves
//!     socket mark & MASK == TAG  jump leased                        # all address families
//!     socket mark & MASK == TAG  drop
//!     per lease: ipv4, oif, udp dport 68, sport != 67  drop         # whoever sends it
//!   }
//!   chain leased     beside a server that keeps UDP 67: socket mark LEASE, ipv4, oif, udp, from 4011 to
//!                    255.255.255.255:68 -> from 67 (and then as whatever leaves from there)
//!                    per lease: socket mark LEASE, in @live, ipv4, oif, no options, no fragment,
//!                    a source address of that interface, and: from 67 to 67 or 68, from 4011 to
//!                    67, 68 or 4011 -> boot_answer, yiaddr 0 (full DHCP: any from 67, and NAK); from 69, not to 68; from the HTTP port, no SYN
//!   chain boot_answer  UDP length 248..479, BOOTREPLY, cookie, option 53 first: OFFER or ACK
//! }
//! ```
//!
//! Sockets that are not whole have no mark to the kernel: the SYN-ACK and the last ACK of a
//! connection pass the guard, and carry nothing that their holder chose. A connection of a lease
//! that has ended is reset at its next packet. ICMP is left alone: an error for one of our
//! connections (a smaller MTU) must reach it.

use portcullis_dbus::{BOOT_SERVER_PORT, DHCP_PORT, TFTP_PORT};

use super::{
    Dhcp, Opening,
    nft::{self, AT_END, Change, FOREVER, Family, Path, TIMED, TYPE_INTERFACE, TYPE_MARK},
};
use crate::{
    limits,
    mark::{LeaseMark, Marks},
    request::word,
    sockdiag::Protocol,
};

/// Family of our table.
pub const FAMILY: Family = Family::INET;
/// Name of our table.
pub const NAME: &str = "portcullis";

const LIVE: Path<'_> = ours("live");
const SHARED: Path<'_> = ours("shared");
const HOMES: Path<'_> = ours("homes");
const HEARING: Path<'_> = ours("hearing");
const INPUT: Path<'_> = ours("input");
const ADMIT: Path<'_> = ours("admit");
const UNTRACK_IN: Path<'_> = ours("untrack_in");
const UNTRACK_OUT: Path<'_> = ours("untrack_out");
const GUARD: Path<'_> = ours("guard");
const LEASED: Path<'_> = ours("leased");
const BOOT_ANSWER: Path<'_> = ours("boot_answer");

const fn ours(name: &str) -> Path<'_> {
    Path { family: FAMILY, table: NAME, name }
}

/// Values of option 53 (RFC 2132 section 9.6).
const DHCPOFFER: u8 = 2;
const DHCPACK: u8 = 5;
const DHCPNAK: u8 = 6;

/// The port of DHCP clients (RFC 2131 section 4.1).
const CLIENT_PORT: u16 = 68;
/// Before the firewalls' own input chains (priority 0).
const BEFORE_FIREWALLS: i32 = -5;
/// Before conntrack (-200).
const RAW: i32 = -300;
/// After every mangle and nat hook.
const LATE: i32 = 300;
/// Least UDP length of a BOOTP message with its cookie: 8 + 240 octets (RFC 951, RFC 2132).
const BOOTP_LEAST: u16 = 248;
/// Most: one octet less than two of them, so that segmentation offload (UDP_SEGMENT, which cuts
/// into pieces of one size) cannot make a second message of it.
const BOOTP_MOST: u16 = 479;
/// Most for TFTP from port 69: what fits, with a header of 20, into an Ethernet frame of 1500.
const TFTP_MOST: u16 = 1480;

const TO_EVERYBODY: &str = "daddr 0xffffffff";
/// A header without options; no fragment, and none to follow (MF 0, offset 0).
const PLAIN_HEADER: &str = "ip-header 0x45, ip-fragment & 0x3fff = 0";
const NO_SYN: &str = "tcp-flags & 0x02 = 0";

/// The comment of every rule that belongs to a lease.
pub fn comment(mark: LeaseMark) -> String {
    format!("portcullis lease {}", mark.slot)
}

/// The table without any lease.
pub fn skeleton(marks: Marks) -> Vec<Change> {
    let tagged = format!("socket-mark {}", is_tagged(marks));
    let packet_tagged = format!("mark {}", is_tagged(marks));
    let untag = format!("mark set & {} ^ 0", !marks.mask());
    let admit = admit(marks);
    // What a raw socket hears is another's, or nobody's, to the look-up of a socket.
    let heard = format!("nfproto ipv4, iif in hearing, {TO_EVERYBODY}, {admit}");
    let rules = [
        (INPUT, format!("{packet_tagged}, {untag}")),
        (INPUT, format!("protocol udp, dport {DHCP_PORT}, {heard}")),
        (INPUT, format!("protocol tcp, {tagged}, jump admit")),
        (INPUT, format!("protocol udp, {tagged}, jump admit")),
        (INPUT, format!("protocol tcp, {tagged}, socket-mark not-in live, reset")),
        (INPUT, format!("protocol udp, socket-mark in shared, dport {DHCP_PORT}, accept")),
        (INPUT, format!("protocol udp, socket-mark . iif not-in homes, dport {DHCP_PORT}, accept")),
        (INPUT, format!("protocol udp, {tagged}, drop")),
        (INPUT, format!("protocol tcp, {tagged}, drop")),
        (BOOT_ANSWER, answer(DHCPOFFER)),
        (BOOT_ANSWER, answer(DHCPACK)),
        (GUARD, format!("{tagged}, jump leased")),
        (GUARD, format!("{tagged}, drop")),
    ];
    let mut out = vec![
        nft::add_owned_table(FAMILY, NAME),
        nft::add_set(LIVE, 1, FOREVER, &[TYPE_MARK]),
        nft::add_set(SHARED, 2, FOREVER, &[TYPE_MARK]),
        nft::add_set(HOMES, 3, FOREVER, &[TYPE_MARK, TYPE_INTERFACE]),
        nft::add_set(HEARING, 4, TIMED, &[TYPE_INTERFACE]),
        nft::add_chain(ADMIT, None),
        nft::add_chain(LEASED, None),
        nft::add_chain(BOOT_ANSWER, None),
        nft::add_chain(INPUT, Some((nft::INPUT, BEFORE_FIREWALLS))),
        nft::add_chain(UNTRACK_IN, Some((nft::PREROUTING, RAW))),
        nft::add_chain(UNTRACK_OUT, Some((nft::OUTPUT, RAW))),
        nft::add_chain(GUARD, Some((nft::OUTPUT, LATE))),
    ];
    out.extend(rules.map(|(chain, rule)| nft::add_rule(chain, AT_END, None, &rule)));
    out
}

/// What one opening adds to the table.
pub fn lease(opening: &Opening) -> Vec<Change> {
    let (mark, index) = (opening.mark.value(), opening.index);
    let mut out = vec![
        nft::put(LIVE, &[mark], None),
        nft::put(HOMES, &[mark, index], None),
        nft::put(SHARED, &[mark], None),
    ];
    if opening.dhcp != Dhcp::Shared {
        // The slot's last lease may have left it there: added twice is there once, and deletable.
        out.push(nft::take(SHARED, &[mark]));
    }
    if opening.dhcp == Dhcp::Raw {
        out.extend(hear(opening));
    }
    let comment = comment(opening.mark);
    let rule = |(chain, rule): (_, String)| nft::add_rule(chain, AT_END, Some(&comment), &rule);
    out.extend(rules(opening).into_iter().map(rule));
    out
}

/// The rules of one opening. In each, the conditions that most packets fail come first.
fn rules(opening: &Opening) -> Vec<(Path<'static>, String)> {
    let (mark, index) = (opening.mark.value(), opening.index);
    let admit = admit(opening.mark.marks);
    let mut out = Vec::new();
    if opening.dhcp == Dhcp::Raw {
        let leaves = format!("socket-mark {mark}, nfproto ipv4, oif {index}, protocol udp");
        let broadcast = format!("sport {BOOT_SERVER_PORT}, dport {CLIENT_PORT}, {TO_EVERYBODY}");
        out.push((LEASED, format!("{leaves}, {broadcast}, sport set {DHCP_PORT}")));
    }
    let comes = format!("nfproto ipv4, iif {index}");
    for (protocol, port) in opening.ports() {
        let to = format!("protocol {}, dport {port}, socket-mark {mark}", word(protocol));
        // A look into a set costs most.
        out.push((ADMIT, format!("{to}, {comes}, socket-mark in live, {admit}")));
    }
    if opening.dhcp != Dhcp::None {
        // The holder of another lease's socket can move it here, and the kernel may find that one
        // first. A broadcast comes to both all the same, and there the other's own filter drops it.
        let broadcast = format!("{comes}, protocol udp, dport {DHCP_PORT}, {TO_EVERYBODY}");
        out.push((ADMIT, format!("socket-mark != {mark}, {broadcast}, {admit}")));
    }
    out.extend(departures(opening).into_iter().map(|rule| (LEASED, rule)));
    let goes = format!("nfproto ipv4, oif {index}");
    for (_, port) in opening.ports().filter(|(protocol, _)| *protocol == Protocol::Udp) {
        out.push((UNTRACK_IN, format!("protocol udp, dport {port}, {comes}, notrack")));
        out.push((UNTRACK_OUT, format!("protocol udp, sport {port}, {goes}, notrack")));
    }
    out.push((
        GUARD,
        format!("protocol udp, dport {CLIENT_PORT}, sport != {DHCP_PORT}, {goes}, drop"),
    ));
    out
}

/// What the sockets of a lease may send: the rules of the guard.
fn departures(opening: &Opening) -> Vec<String> {
    let (mark, index) = (opening.mark.value(), opening.index);
    let leaves = format!("nfproto ipv4, oif {index}, {PLAIN_HEADER}, source-type local");
    let from = |protocol, port: u16, to: &str, then: &str| {
        let first = format!("socket-mark {mark}, protocol {protocol}, sport {port}, {to}");
        format!("{first}, socket-mark in live, {leaves}, {then}")
    };
    let boot_answer = |port, to: u16, then: &str| from("udp", port, &format!("dport {to}"), then);
    let no_address = "bootp-yiaddr 0, jump boot_answer";
    let mut out = Vec::new();
    if let Some(port) = opening.http {
        out.push(from("tcp", port, NO_SYN, "accept"));
    }
    let full = opening.dhcp == Dhcp::Full;
    for to in [DHCP_PORT, CLIENT_PORT] {
        if opening.dhcp != Dhcp::None {
            let then = if full { "jump boot_answer" } else { no_address };
            out.push(boot_answer(DHCP_PORT, to, then));
        }
        if full {
            out.push(boot_answer(DHCP_PORT, to, &answer(DHCPNAK)));
        }
    }
    if opening.boot_server {
        // BIOS ROMs and iPXE ask from 68, some from 4011; relays from 67.
        let ports = [DHCP_PORT, CLIENT_PORT, BOOT_SERVER_PORT];
        out.extend(ports.map(|to| boot_answer(BOOT_SERVER_PORT, to, no_address)));
    }
    if opening.tftp {
        let then = format!("udp-length >= 8, udp-length <= {TFTP_MOST}, accept");
        out.push(from("udp", TFTP_PORT, &format!("dport != {CLIENT_PORT}"), &then));
    }
    out
}

fn is_tagged(marks: Marks) -> String {
    format!("& {} = {}", marks.mask(), marks.tag())
}

/// The tag, by which the host's own chain knows what it is to accept.
fn admit(marks: Marks) -> String {
    format!("mark set & {} ^ {}, accept", !marks.mask(), marks.tag())
}

/// A BOOTREPLY that is this kind of DHCP message, and accepts it: length, op, cookie, and option 53
/// first, with one octet (RFC 2132 sections 2 and 9.6).
fn answer(kind: u8) -> String {
    let length = format!("udp-length >= {BOOTP_LEAST}, udp-length <= {BOOTP_MOST}");
    format!("protocol udp, {length}, bootp-op 2, bootp-options 0x638253633501{kind:02x}, accept")
}

/// Lets the broadcasts in that a raw socket hears, for [`limits::HEARING`] from now on.
pub fn hear(opening: &Opening) -> [Change; 3] {
    let put = || nft::put(HEARING, &[opening.index], Some(limits::HEARING));
    // Added twice is there once, and deletable; only what is new has its whole time.
    [put(), nft::take(HEARING, &[opening.index]), put()]
}

/// Takes a lease out of `live` and `hearing`: nothing goes in or out for it any more.
pub fn kill(opening: &Opening) -> Vec<Change> {
    let mut out = vec![nft::take(LIVE, &[opening.mark.value()])];
    if opening.dhcp == Dhcp::Raw {
        out.extend(hear(opening));
        out.push(nft::take(HEARING, &[opening.index]));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use super::*;
    use crate::{firewall::expr, interface::InterfaceName};

    #[test]
    fn every_phrase_of_every_opening_is_known() {
        let mark = Marks::default().lease(NonZeroU8::MIN);
        let unknown = expr::rule("no such phrase").concat();
        for dhcp in [Dhcp::None, Dhcp::Proxy, Dhcp::Shared, Dhcp::Raw, Dhcp::Full] {
            let opening = Opening {
                mark,
                interface: InterfaceName::parse("eth0").unwrap(),
                index: 7,
                dhcp,
                boot_server: true,
                tftp: true,
                http: Some(64172),
            };
            let rules = [skeleton(mark.marks), lease(&opening)].concat();
            for change in rules {
                let known = !change.body.windows(unknown.len()).any(|part| part == unknown);
                assert!(known, "{change:?}");
            }
        }
    }
}
