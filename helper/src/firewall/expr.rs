//! The few nf_tables expressions that our rules are made of.
//!
//! Each function returns one condition or one statement as a sentence of expressions; a rule is
//! their concatenation. A condition that does not hold, or cannot be asked of this packet, ends the
//! rule. Everything goes through register 1. Numbers: include/uapi/linux/netfilter/nf_tables.h.
//!
//! | expression | its attributes (`enum nft_*_attributes`) |
//! |---|---|
//! | meta | 1 register to load into, 2 key, 3 register to set it from |
//! | payload | 1 register, 2 header, 3 offset, 4 length |
//! | cmp | 1 register, 2 operator, 3 data |
//! | bitwise | 1 register read, 2 register written, 3 length, 4 mask, 5 xor |
//! | lookup | 1 set, 2 register read, 3 register written (a map), 5 flags |
//! | immediate | 1 register, 2 data |
//! | payload, written | 2 header, 3 offset, 4 length, 5 register, 6 kind of checksum, 7 its offset |
//! | socket | 1 key, 2 register |
//! | fib | 1 register, 2 result, 3 flags |
//! | reject | 1 type |

use crate::{
    attribute::{bytes, nested, number, text},
    interface::InterfaceName,
    limits,
    mark::Marks,
    sockdiag::Protocol,
};

/// One expression, as an element of a rule's list.
pub type Expr = Vec<u8>;

/// `NFTA_LIST_ELEM`: each element of a list.
pub const ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME`
pub const NAME: u16 = 1;
/// `NFTA_EXPR_DATA`
pub const DATA: u16 = 2;
/// `NFTA_IMMEDIATE_DATA`
pub const IMMEDIATE_DATA: u16 = 2;
/// `NFTA_DATA_VERDICT`
pub const VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE`
pub const CODE: u16 = 1;
/// `NFTA_VERDICT_CHAIN`
pub const CHAIN: u16 = 2;
/// Verdicts.
pub const NF_DROP: u32 = 0;
/// The packet may go on to the next hook.
pub const NF_ACCEPT: u32 = 1;
const NFT_JUMP: u32 = (-3_i32).cast_unsigned();

/// `NFT_REG_1`
const REGISTER: u32 = 1;
/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `enum nft_meta_keys`
const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_IIFNAME: u32 = 6;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `enum nft_cmp_ops`
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const NFT_LOOKUP_F_INV: u32 = 1;

/// `meta nfproto ipv4`
pub fn ipv4() -> Vec<Expr> {
    const NFPROTO_IPV4: u8 = 2;
    meta_is(META_NFPROTO, &[NFPROTO_IPV4])
}

/// `meta l4proto udp|tcp`
pub fn protocol(protocol: Protocol) -> Vec<Expr> {
    meta_is(META_L4PROTO, &[protocol.number()])
}

/// `iif INDEX`
pub fn iif(index: u32) -> Vec<Expr> {
    meta_is(META_IIF, &index.to_ne_bytes())
}

/// `oif INDEX`
pub fn oif(index: u32) -> Vec<Expr> {
    meta_is(META_OIF, &index.to_ne_bytes())
}

/// `iifname "NAME"`, the whole name: padded with NULs to IFNAMSIZ.
pub fn iifname(name: &InterfaceName) -> Vec<Expr> {
    let mut bytes = name.as_str().as_bytes().to_vec();
    bytes.resize(limits::INTERFACE_NAME.saturating_add(1), 0);
    meta_is(META_IIFNAME, &bytes)
}

/// `th sport PORT`
pub fn sport(port: u16) -> Vec<Expr> {
    transport(0, EQUAL, &port.to_be_bytes())
}

/// `th sport != PORT`
pub fn sport_is_not(port: u16) -> Vec<Expr> {
    transport(0, NOT_EQUAL, &port.to_be_bytes())
}

/// `udp sport set PORT`, with the checksum (RFC 768: the last two octets of the header's eight).
pub fn set_udp_sport(port: u16) -> Vec<Expr> {
    const NFT_PAYLOAD_CSUM_INET: u32 = 1;
    let port = port.to_be_bytes();
    let place = [number(2, TRANSPORT), number(3, 0), number(4, length(&port))];
    let checksum = [number(5, REGISTER), number(6, NFT_PAYLOAD_CSUM_INET), number(7, 6)];
    vec![
        expression("immediate", &[number(1, REGISTER), data(IMMEDIATE_DATA, &port)]),
        expression("payload", &[place, checksum].concat()),
    ]
}

/// `th dport PORT`
pub fn dport(port: u16) -> Vec<Expr> {
    transport(2, EQUAL, &port.to_be_bytes())
}

/// `th dport != PORT`
pub fn dport_is_not(port: u16) -> Vec<Expr> {
    transport(2, NOT_EQUAL, &port.to_be_bytes())
}

/// `udp length >= LEAST`, `udp length <= MOST`: header and payload, octets (RFC 768).
pub fn udp_length(least: u16, most: u16) -> Vec<Expr> {
    [transport(4, AT_LEAST, &least.to_be_bytes()), vec![compare(AT_MOST, &most.to_be_bytes())]]
        .concat()
}

/// These octets at this offset of the transport header.
pub fn transport_bytes(offset: u32, bytes: &[u8]) -> Vec<Expr> {
    transport(offset, EQUAL, bytes)
}

/// TCP without SYN: nothing that begins a connection (RFC 9293 section 3.1, octet 13).
pub fn not_syn() -> Vec<Expr> {
    vec![load(TRANSPORT, 13, 1), mask(&[0x02], &[0]), compare(EQUAL, &[0])]
}

/// An IPv4 header without options that is no fragment and has none to follow (RFC 791 section 3.1:
/// version 4, IHL 5; MF 0, offset 0).
pub fn plain_ip_header() -> Vec<Expr> {
    vec![
        load(NETWORK, 0, 1),
        compare(EQUAL, &[0x45]),
        load(NETWORK, 6, 2),
        mask(&[0x3f, 0xff], &[0, 0]),
        compare(EQUAL, &[0, 0]),
    ]
}

/// `ip daddr 255.255.255.255`
pub fn to_everybody() -> Vec<Expr> {
    vec![load(NETWORK, 16, 4), compare(EQUAL, &[255; 4])]
}

/// `fib saddr . oif type local`: the source is an address of the interface that it leaves by.
pub fn source_is_our_own() -> Vec<Expr> {
    const RESULT_ADDRTYPE: u32 = 3;
    const SADDR_AND_OIF: u32 = 1 | (1 << 4);
    const RTN_LOCAL: u32 = 2;
    let fib = [number(1, REGISTER), number(2, RESULT_ADDRTYPE), number(3, SADDR_AND_OIF)];
    vec![expression("fib", &fib), compare(EQUAL, &RTN_LOCAL.to_ne_bytes())]
}

/// `socket mark & MASK == TAG`. Sockets that are not whole (TIME_WAIT, a connection that is being
/// opened) have no mark to the kernel, and the rule ends.
pub fn socket_is_tagged(marks: Marks) -> Vec<Expr> {
    [vec![socket_mark()], tagged(marks)].concat()
}

/// `socket mark MARK`
pub fn socket_mark_is(mark: u32) -> Vec<Expr> {
    vec![socket_mark(), compare(EQUAL, &mark.to_ne_bytes())]
}

/// `socket mark != MARK`
pub fn socket_mark_is_not(mark: u32) -> Vec<Expr> {
    vec![socket_mark(), compare(NOT_EQUAL, &mark.to_ne_bytes())]
}

/// `socket mark @SET`, or `socket mark != @SET`.
pub fn socket_mark_in(set: &str, within: bool) -> Vec<Expr> {
    let mut lookup = vec![text(1, set), number(2, REGISTER)];
    if !within {
        lookup.push(number(5, NFT_LOOKUP_F_INV));
    }
    vec![socket_mark(), expression("lookup", &lookup)]
}

/// `iif @SET`
pub fn iif_in(set: &str) -> Vec<Expr> {
    vec![meta(META_IIF), expression("lookup", &[text(1, set), number(2, REGISTER)])]
}

/// `socket mark . iif != @SET`
pub fn socket_mark_and_iif_not_in(set: &str) -> Vec<Expr> {
    /// `NFT_REG32_01`: what is in it is the second quarter of what is in [`REGISTER`].
    const SECOND: u32 = 9;
    let iif = expression("meta", &[number(1, SECOND), number(2, META_IIF)]);
    let lookup = [text(1, set), number(2, REGISTER), number(5, NFT_LOOKUP_F_INV)];
    vec![socket_mark(), iif, expression("lookup", &lookup)]
}

/// `meta mark & MASK == TAG`
pub fn packet_is_tagged(marks: Marks) -> Vec<Expr> {
    [vec![meta(META_MARK)], tagged(marks)].concat()
}

/// `meta mark set meta mark & ~MASK | bits`
pub fn set_tag_bits(marks: Marks, bits: u32) -> Vec<Expr> {
    vec![
        meta(META_MARK),
        mask(&(!marks.mask()).to_ne_bytes(), &bits.to_ne_bytes()),
        expression("meta", &[number(2, META_MARK), number(3, REGISTER)]),
    ]
}

/// `notrack`
pub fn notrack() -> Vec<Expr> {
    vec![expression("notrack", &[])]
}

/// An expression that no kernel has.
#[cfg(test)]
pub fn unknown() -> Vec<Expr> {
    vec![expression("portcullis", &[])]
}

/// `reject with tcp reset`
pub fn reset() -> Vec<Expr> {
    const NFT_REJECT_TCP_RST: u32 = 1;
    vec![expression("reject", &[number(1, NFT_REJECT_TCP_RST)])]
}

/// `accept`
pub fn accept() -> Vec<Expr> {
    verdict(&[number(CODE, NF_ACCEPT)])
}

/// `drop`
pub fn drop() -> Vec<Expr> {
    verdict(&[number(CODE, NF_DROP)])
}

/// `jump CHAIN`
pub fn jump(chain: &str) -> Vec<Expr> {
    verdict(&[number(CODE, NFT_JUMP), text(CHAIN, chain)])
}

fn verdict(attributes: &[Vec<u8>]) -> Vec<Expr> {
    const NFT_REG_VERDICT: u32 = 0;
    let data = nested(IMMEDIATE_DATA, &[nested(VERDICT, attributes)]);
    vec![expression("immediate", &[number(1, NFT_REG_VERDICT), data])]
}

fn meta(key: u32) -> Expr {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

fn meta_is(key: u32, value: &[u8]) -> Vec<Expr> {
    vec![meta(key), compare(EQUAL, value)]
}

fn load(base: u32, offset: u32, length: u32) -> Expr {
    let place = [number(1, REGISTER), number(2, base), number(3, offset), number(4, length)];
    expression("payload", &place)
}

fn transport(offset: u32, operator: u32, value: &[u8]) -> Vec<Expr> {
    vec![load(TRANSPORT, offset, length(value)), compare(operator, value)]
}

fn compare(operator: u32, value: &[u8]) -> Expr {
    expression("cmp", &[number(1, REGISTER), number(2, operator), data(3, value)])
}

/// Register = register & mask ^ xor.
fn mask(mask: &[u8], xor: &[u8]) -> Expr {
    let registers = [number(1, REGISTER), number(2, REGISTER), number(3, length(mask))].concat();
    expression("bitwise", &[registers, data(4, mask), data(5, xor)])
}

fn tagged(marks: Marks) -> Vec<Expr> {
    let tag = compare(EQUAL, &marks.tag().to_ne_bytes());
    vec![mask(&marks.mask().to_ne_bytes(), &[0; 4]), tag]
}

fn socket_mark() -> Expr {
    const NFT_SOCKET_MARK: u32 = 1;
    expression("socket", &[number(1, NFT_SOCKET_MARK), number(2, REGISTER)])
}

/// A value is a few octets; one that no length can state would be refused by the kernel.
fn length(value: &[u8]) -> u32 {
    u32::try_from(value.len()).unwrap_or(u32::MAX)
}

/// A value as it is (`NFTA_DATA_VALUE`).
pub fn data(kind: u16, value: &[u8]) -> Vec<u8> {
    nested(kind, &[bytes(1, value)])
}

fn expression(name: &str, attributes: &[Vec<u8>]) -> Expr {
    nested(ELEMENT, &[text(NAME, name), nested(DATA, attributes)])
}
