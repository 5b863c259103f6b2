//! The few nf_tables expressions that our rules are made of.
//!
//! Each function returns one condition or one statement as a sentence of expressions; a rule is
//! their concatenation. A condition that does not hold, or cannot be asked of this packet, ends the
//! rule. Everything goes through register 1. Numbers: include/uapi/linux/netfilter/nf_tables.h.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute,
    Lookup, Meta, MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use crate::{interface::InterfaceName, limits, mark::Marks, sockdiag::Protocol};

/// One expression.
pub type Expr = ListAttribute<ExpressionAttribute>;

const REGISTER: Register = Register::Reg1;
/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFPROTO_IPV4: u8 = 2;

/// `meta nfproto ipv4`
pub fn ipv4() -> Vec<Expr> {
    meta_is(MetaKey::Nfproto, &[NFPROTO_IPV4])
}

/// `meta l4proto udp|tcp`
pub fn protocol(protocol: Protocol) -> Vec<Expr> {
    meta_is(MetaKey::L4Proto, &[protocol.number()])
}

/// `iif INDEX`
pub fn iif(index: u32) -> Vec<Expr> {
    meta_is(MetaKey::Iif, &index.to_ne_bytes())
}

/// `oif INDEX`
pub fn oif(index: u32) -> Vec<Expr> {
    meta_is(MetaKey::Oif, &index.to_ne_bytes())
}

/// `iifname "NAME"`, the whole name: padded with NULs to IFNAMSIZ.
pub fn iifname(name: &InterfaceName) -> Vec<Expr> {
    let mut bytes = name.as_str().as_bytes().to_vec();
    bytes.resize(limits::INTERFACE_NAME.saturating_add(1), 0);
    meta_is(MetaKey::Iifname, &bytes)
}

/// `th sport PORT`
pub fn sport(port: u16) -> Vec<Expr> {
    transport(0, Operator::Equal, &port.to_be_bytes())
}

/// `th sport != PORT`
pub fn sport_is_not(port: u16) -> Vec<Expr> {
    transport(0, Operator::NotEqual, &port.to_be_bytes())
}

/// `th dport PORT`
pub fn dport(port: u16) -> Vec<Expr> {
    transport(2, Operator::Equal, &port.to_be_bytes())
}

/// `th dport != PORT`
pub fn dport_is_not(port: u16) -> Vec<Expr> {
    transport(2, Operator::NotEqual, &port.to_be_bytes())
}

/// `udp length >= LEAST`, `udp length <= MOST`: header and payload, octets (RFC 768).
pub fn udp_length(least: u16, most: u16) -> Vec<Expr> {
    let mut out = transport(4, Operator::GreatherThanEqual, &least.to_be_bytes());
    out.push(compare(Operator::LessThanEqual, &most.to_be_bytes()));
    out
}

/// These octets at this offset of the transport header.
pub fn transport_bytes(offset: u32, bytes: &[u8]) -> Vec<Expr> {
    transport(offset, Operator::Equal, bytes)
}

/// TCP without SYN: nothing that begins a connection (RFC 9293 section 3.1, octet 13).
pub fn not_syn() -> Vec<Expr> {
    vec![load(TRANSPORT, 13, 1), mask(&[0x02], &[0]), compare(Operator::Equal, &[0])]
}

/// An IPv4 header without options that is no fragment and has none to follow (RFC 791 section 3.1:
/// version 4, IHL 5; MF 0, offset 0).
pub fn plain_ip_header() -> Vec<Expr> {
    vec![
        load(NETWORK, 0, 1),
        compare(Operator::Equal, &[0x45]),
        load(NETWORK, 6, 2),
        mask(&[0x3f, 0xff], &[0, 0]),
        compare(Operator::Equal, &[0, 0]),
    ]
}

/// `fib saddr . oif type local`: the source is an address of the interface that it leaves by.
pub fn source_is_our_own() -> Vec<Expr> {
    const RESULT_ADDRTYPE: u32 = 3;
    const SADDR_AND_OIF: u32 = 1 | (1 << 4);
    const RTN_LOCAL: u32 = 2;
    vec![
        raw("fib", &[(1, 1), (2, RESULT_ADDRTYPE), (3, SADDR_AND_OIF)]),
        compare(Operator::Equal, &RTN_LOCAL.to_ne_bytes()),
    ]
}

/// `socket mark & MASK == TAG`. Sockets that are not whole (TIME_WAIT, a connection that is being
/// opened) have no mark to the kernel, and the rule ends.
pub fn socket_is_tagged(marks: Marks) -> Vec<Expr> {
    let mut out = vec![socket_mark()];
    out.extend(tagged(marks));
    out
}

/// `socket mark MARK`
pub fn socket_mark_is(mark: u32) -> Vec<Expr> {
    vec![socket_mark(), compare(Operator::Equal, &mark.to_ne_bytes())]
}

/// `socket mark @SET`, or `socket mark != @SET`.
pub fn socket_mark_in(set: &str, within: bool) -> Vec<Expr> {
    const NFT_LOOKUP_F_INV: u32 = 1;
    let mut lookup = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(REGISTER)];
    if !within {
        lookup.push(Lookup::Flags(NFT_LOOKUP_F_INV));
    }
    vec![socket_mark(), Expressions::Lookup(lookup).into()]
}

/// `meta mark & MASK == TAG`
pub fn packet_is_tagged(marks: Marks) -> Vec<Expr> {
    let mut out = vec![meta(MetaKey::Mark)];
    out.extend(tagged(marks));
    out
}

/// `meta mark set meta mark & ~MASK | bits`
pub fn set_tag_bits(marks: Marks, bits: u32) -> Vec<Expr> {
    vec![
        meta(MetaKey::Mark),
        mask(&(!marks.mask()).to_ne_bytes(), &bits.to_ne_bytes()),
        Expressions::Meta(vec![Meta::Key(MetaKey::Mark), Meta::SourceRegister(REGISTER)]).into(),
    ]
}

/// `notrack`
pub fn notrack() -> Vec<Expr> {
    vec![raw("notrack", &[])]
}

/// An expression that no kernel has.
#[cfg(test)]
pub fn unknown() -> Vec<Expr> {
    vec![raw("portcullis", &[])]
}

/// `reject with tcp reset`
pub fn reset() -> Vec<Expr> {
    const NFT_REJECT_TCP_RST: u32 = 1;
    vec![raw("reject", &[(1, NFT_REJECT_TCP_RST)])]
}

/// `accept`
pub fn accept() -> Vec<Expr> {
    verdict(vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))])
}

/// `drop`
pub fn drop() -> Vec<Expr> {
    verdict(vec![VerdictAttribute::Code(Verdict::Other(NF_DROP))])
}

/// `jump CHAIN`
pub fn jump(chain: &str) -> Vec<Expr> {
    verdict(vec![VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain(chain.to_owned())])
}

fn verdict(attributes: Vec<VerdictAttribute>) -> Vec<Expr> {
    let immediate = vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ];
    vec![Expressions::Immediate(immediate).into()]
}

fn meta(key: MetaKey) -> Expr {
    Expressions::Meta(vec![Meta::DestinationRegister(REGISTER), Meta::Key(key)]).into()
}

fn meta_is(key: MetaKey, value: &[u8]) -> Vec<Expr> {
    vec![meta(key), compare(Operator::Equal, value)]
}

fn load(base: u32, offset: u32, length: u32) -> Expr {
    Expressions::Payload(vec![
        Payload::DestinationRegister(REGISTER),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
    .into()
}

fn transport(offset: u32, operator: Operator, value: &[u8]) -> Vec<Expr> {
    // A value is a few octets; one that no length can state would be refused by the kernel.
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    vec![load(TRANSPORT, offset, length), compare(operator, value)]
}

fn compare(operator: Operator, value: &[u8]) -> Expr {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(REGISTER),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ])
    .into()
}

/// Register = register & mask ^ xor.
fn mask(mask: &[u8], xor: &[u8]) -> Expr {
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(REGISTER),
        Bitwise::DestinationRegister(REGISTER),
        Bitwise::Length(length),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(xor.to_vec())),
    ])
    .into()
}

fn tagged(marks: Marks) -> Vec<Expr> {
    let tag = compare(Operator::Equal, &marks.tag().to_ne_bytes());
    vec![mask(&marks.mask().to_ne_bytes(), &[0; 4]), tag]
}

fn socket_mark() -> Expr {
    const NFT_SOCKET_MARK: u32 = 1;
    raw("socket", &[(1, NFT_SOCKET_MARK), (2, 1)])
}

/// An expression that the crate does not know: attributes of 32 bits.
fn raw(name: &str, attributes: &[(u16, u32)]) -> Expr {
    let attribute = |&(kind, value): &(u16, u32)| DefaultNla::new(kind, value.to_be_bytes().into());
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: attributes.iter().map(attribute).collect(),
    }
    .into()
}
