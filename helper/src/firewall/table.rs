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
//!     tcp, socket mark & MASK == TAG, socket mark != @live  reject with tcp reset
//!     udp|tcp, socket mark & MASK == TAG  jump admit
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
    expr::{self, Expr},
    nft::{self, At, Change, Family, Path, Place},
};
use crate::{
    limits,
    mark::{LeaseMark, Marks},
    sockdiag::Protocol,
};

/// Family of our table.
pub const FAMILY: Family = Family::INET;
/// Name of our table.
pub const NAME: &str = "portcullis";

const LIVE: &str = "live";
const SHARED: &str = "shared";
const HOMES: &str = "homes";
const HEARING: &str = "hearing";
const INPUT: &str = "input";
const ADMIT: &str = "admit";
const UNTRACK_IN: &str = "untrack_in";
const UNTRACK_OUT: &str = "untrack_out";
const GUARD: &str = "guard";
const LEASED: &str = "leased";
const BOOT_ANSWER: &str = "boot_answer";

/// Values of option 53 (RFC 2132 section 9.6).
const DHCPOFFER: u8 = 2;
const DHCPACK: u8 = 5;
const DHCPNAK: u8 = 6;

/// The port of DHCP clients (RFC 2131 section 4.1).
const DHCP_CLIENT_PORT: u16 = 68;
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

/// The comment of every rule that belongs to a lease.
pub fn comment(mark: LeaseMark) -> String {
    format!("portcullis lease {}", mark.slot())
}

/// The table without any lease.
pub fn skeleton(marks: Marks) -> Vec<Change> {
    let udp = || expr::protocol(Protocol::Udp);
    let tcp = || expr::protocol(Protocol::Tcp);
    let tagged = || expr::socket_is_tagged(marks);
    let base = |name, hook, priority| nft::add_chain(FAMILY, NAME, name, Some((hook, priority)));
    let plain = |name| nft::add_chain(FAMILY, NAME, name, None);
    let set = |name, stay, id, types: &[u32]| nft::add_set(FAMILY, NAME, (name, stay), id, types);
    let away = || expr::socket_mark_and_iif_not_in(HOMES);
    let not_live = || expr::socket_mark_in(LIVE, false);
    let udp_67 = || expr::dport(DHCP_PORT);
    let untag = || expr::set_tag_bits(marks, 0);
    let tag = || expr::set_tag_bits(marks, marks.tag());
    // What a raw socket hears is another's, or nobody's, to the look-up of a socket.
    let heard = [expr::ipv4(), expr::iif_in(HEARING), expr::to_everybody(), tag(), expr::accept()];
    vec![
        nft::add_owned_table(FAMILY, NAME),
        set(LIVE, nft::FOREVER, 1, &[nft::TYPE_MARK]),
        set(SHARED, nft::FOREVER, 2, &[nft::TYPE_MARK]),
        set(HOMES, nft::FOREVER, 3, &[nft::TYPE_MARK, nft::TYPE_INTERFACE]),
        set(HEARING, nft::TIMED, 4, &[nft::TYPE_INTERFACE]),
        plain(ADMIT),
        plain(LEASED),
        plain(BOOT_ANSWER),
        base(INPUT, At::INPUT, BEFORE_FIREWALLS),
        base(UNTRACK_IN, At::PREROUTING, RAW),
        base(UNTRACK_OUT, At::OUTPUT, RAW),
        base(GUARD, At::OUTPUT, LATE),
        rule(INPUT, None, [expr::packet_is_tagged(marks), untag()]),
        rule(INPUT, None, [vec![udp(), udp_67()], heard.into()].concat()),
        rule(INPUT, None, [tcp(), tagged(), not_live(), expr::reset()]),
        rule(INPUT, None, [udp(), tagged(), expr::jump(ADMIT)]),
        rule(INPUT, None, [tcp(), tagged(), expr::jump(ADMIT)]),
        rule(INPUT, None, [udp(), expr::socket_mark_in(SHARED, true), udp_67(), expr::accept()]),
        rule(INPUT, None, [udp(), away(), udp_67(), expr::accept()]),
        rule(INPUT, None, [udp(), tagged(), expr::drop()]),
        rule(INPUT, None, [tcp(), tagged(), expr::drop()]),
        rule(BOOT_ANSWER, None, answer(DHCPOFFER)),
        rule(BOOT_ANSWER, None, answer(DHCPACK)),
        rule(GUARD, None, [tagged(), expr::jump(LEASED)]),
        rule(GUARD, None, [tagged(), expr::drop()]),
    ]
}

/// What one opening adds to the table.
pub fn lease(opening: &Opening) -> Vec<Change> {
    let comment = comment(opening.mark);
    let rule = |chain, expressions: Vec<Vec<Expr>>| rule(chain, Some(&comment), expressions);
    let index = opening.index;
    let marks = opening.mark.marks();
    let udp = || expr::protocol(Protocol::Udp);
    let mark = opening.mark.value();
    let admit = || [expr::set_tag_bits(marks, marks.tag()), expr::accept()].concat();
    let mut out = vec![
        nft::add_mark(FAMILY, NAME, LIVE, mark),
        nft::add_mark_and_index(FAMILY, NAME, HOMES, (mark, index)),
        nft::add_mark(FAMILY, NAME, SHARED, mark),
    ];
    if opening.dhcp != Dhcp::Shared {
        // The slot's last lease may have left it there: added twice is there once, and deletable.
        out.push(nft::delete_number(FAMILY, NAME, SHARED, mark));
    }
    if opening.dhcp == Dhcp::Raw {
        out.extend(hear(opening));
        let from_the_shared_port = vec![
            expr::socket_mark_is(mark),
            expr::ipv4(),
            expr::oif(index),
            udp(),
            expr::sport(BOOT_SERVER_PORT),
            expr::dport(DHCP_CLIENT_PORT),
            expr::to_everybody(),
            expr::set_udp_sport(DHCP_PORT),
        ];
        out.push(rule(LEASED, from_the_shared_port));
    }
    for (protocol, port) in opening.ports() {
        let admitted = vec![
            expr::socket_mark_is(opening.mark.value()),
            expr::socket_mark_in(LIVE, true),
            expr::ipv4(),
            expr::iif(index),
            expr::protocol(protocol),
            expr::dport(port),
            admit(),
        ];
        out.push(rule(ADMIT, admitted));
    }
    if opening.dhcp != Dhcp::None {
        // The holder of another lease's socket can move it here, and the kernel may find that one
        // first. A broadcast comes to both all the same, and there the other's own filter drops it.
        let beside_another = vec![
            expr::socket_mark_is_not(mark),
            expr::ipv4(),
            expr::iif(index),
            udp(),
            expr::dport(DHCP_PORT),
            expr::to_everybody(),
            admit(),
        ];
        out.push(rule(ADMIT, beside_another));
    }
    out.extend(departures(opening).into_iter().map(|one| rule(LEASED, one)));
    for (_, port) in opening.ports().filter(|(protocol, _)| *protocol == Protocol::Udp) {
        let on = |interface, end| vec![expr::ipv4(), interface, udp(), end, expr::notrack()];
        out.push(rule(UNTRACK_IN, on(expr::iif(index), expr::dport(port))));
        out.push(rule(UNTRACK_OUT, on(expr::oif(index), expr::sport(port))));
    }
    let from_elsewhere = vec![
        expr::ipv4(),
        expr::oif(index),
        udp(),
        expr::dport(DHCP_CLIENT_PORT),
        expr::sport_is_not(DHCP_PORT),
        expr::drop(),
    ];
    out.push(rule(GUARD, from_elsewhere));
    out
}

/// A BOOTREPLY that is this kind of DHCP message, and accepts it: length, op, cookie, and option 53
/// first, with one octet (RFC 2132 sections 2 and 9.6).
fn answer(kind: u8) -> [Vec<Expr>; 5] {
    [
        expr::protocol(Protocol::Udp),
        expr::udp_length(BOOTP_LEAST, BOOTP_MOST),
        expr::transport_bytes(8, &[2]),
        expr::transport_bytes(8 + 236, &[0x63, 0x82, 0x53, 0x63, 53, 1, kind]),
        expr::accept(),
    ]
}

/// What the sockets of a lease may send: the conditions of each rule of the guard.
fn departures(opening: &Opening) -> Vec<Vec<Vec<Expr>>> {
    // The conditions that most packets fail come first.
    let from = |protocol, port, to: Vec<Expr>| {
        vec![
            expr::socket_mark_is(opening.mark.value()),
            expr::protocol(protocol),
            expr::sport(port),
            to,
            expr::socket_mark_in(LIVE, true),
            expr::ipv4(),
            expr::oif(opening.index),
            expr::plain_ip_header(),
            expr::source_is_our_own(),
        ]
    };
    let boot_answer = |port, to, yiaddr: Vec<Expr>| {
        let rest = [yiaddr, expr::jump(BOOT_ANSWER)];
        [from(Protocol::Udp, port, expr::dport(to)), rest.into()].concat()
    };
    let no_address = || expr::transport_bytes(8 + 16, &[0; 4]);
    let mut out = Vec::new();
    if let Some(port) = opening.http {
        let rest = [expr::not_syn(), expr::accept()];
        out.push([from(Protocol::Tcp, port, Vec::new()), rest.into()].concat());
    }
    if opening.dhcp != Dhcp::None {
        for to in [DHCP_PORT, DHCP_CLIENT_PORT] {
            let full = opening.dhcp == Dhcp::Full;
            let yiaddr = if full { Vec::new() } else { no_address() };
            out.push(boot_answer(DHCP_PORT, to, yiaddr));
            if full {
                let refusal = from(Protocol::Udp, DHCP_PORT, expr::dport(to));
                out.push([refusal, answer(DHCPNAK).into()].concat());
            }
        }
    }
    if opening.boot_server {
        // BIOS ROMs and iPXE ask from 68, some from 4011; relays from 67.
        for to in [DHCP_PORT, DHCP_CLIENT_PORT, BOOT_SERVER_PORT] {
            out.push(boot_answer(BOOT_SERVER_PORT, to, no_address()));
        }
    }
    if opening.tftp {
        let to = expr::dport_is_not(DHCP_CLIENT_PORT);
        let rest = [expr::udp_length(8, TFTP_MOST), expr::accept()];
        out.push([from(Protocol::Udp, TFTP_PORT, to), rest.into()].concat());
    }
    out
}

fn rule(
    chain: &str,
    comment: Option<&str>,
    expressions: impl IntoIterator<Item = Vec<Expr>>,
) -> Change {
    let list: Vec<Expr> = expressions.into_iter().flatten().collect();
    let path = Path { family: FAMILY, table: NAME, chain };
    nft::add_rule(path, Place::End, comment, &list)
}

/// Lets the broadcasts in that a raw socket hears, for [`limits::HEARING`] from now on.
pub fn hear(opening: &Opening) -> [Change; 3] {
    nft::put_index(FAMILY, NAME, HEARING, opening.index, limits::HEARING)
}

/// Takes a lease out of `live` and `hearing`: nothing goes in or out for it any more.
pub fn kill(opening: &Opening) -> Vec<Change> {
    let mut out = vec![nft::delete_number(FAMILY, NAME, LIVE, opening.mark.value())];
    if opening.dhcp == Dhcp::Raw {
        out.extend(hear(opening));
        out.push(nft::delete_number(FAMILY, NAME, HEARING, opening.index));
    }
    out
}
