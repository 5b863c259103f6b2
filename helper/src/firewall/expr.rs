//! The few words of nf_tables that our rules are made of, and what the kernel calls them.
//!
//! A rule is a text of phrases, nearly as nft writes them: conditions, then a statement. It is made
//! of our own words and of numbers (and the name of an interface, which has neither blank nor comma).
//! A phrase that is not known becomes an expression that no kernel has: then the whole transaction is
//! refused. A condition that does not hold, or cannot be asked of this packet, ends the rule.
//!
//! | phrase | nft |
//! |---|---|
//! | `FIELD VALUE`, `FIELD != VALUE`, `>=`, `<=`, `FIELD & MASK = VALUE` | the same, with the fields of [`Field::named`] |
//! | `FIELD in SET`, `FIELD not-in SET`, `socket-mark . iif not-in SET` | `FIELD @SET`, `!= @SET` |
//! | `iifname NAME` | the whole name |
//! | `mark set & MASK ^ BITS`, `sport set PORT` | `meta mark set meta mark & MASK ^ BITS`, `udp sport set PORT` |
//! | `notrack`, `reset`, `accept`, `drop`, `jump CHAIN` | the same; `reject with tcp reset` |
//!
//! Everything goes through register 1. Numbers: include/uapi/linux/netfilter/nf_tables.h.
//!
//! | expression | its attributes (`enum nft_*_attributes`) |
//! |---|---|
//! | meta | 1 register to load into, 2 key (`enum nft_meta_keys`), 3 register to set it from |
//! | payload | 1 register, 2 header (1 network, 2 transport), 3 offset, 4 length |
//! | cmp | 1 register, 2 operator (`enum nft_cmp_ops`), 3 data |
//! | bitwise | 1 register read, 2 register written, 3 length, 4 mask, 5 xor |
//! | lookup | 1 set, 2 register read, 3 register written (a map), 5 flags |
//! | immediate | 1 register, 2 data |
//! | payload, written | 2 header, 3 offset, 4 length, 5 register, 6 kind of checksum, 7 its offset |
//! | socket | 1 key, 2 register |
//! | fib | 1 register, 2 result, 3 flags |
//! | reject | 1 type |

use crate::{
    attribute::{bytes, nested, number, text},
    limits,
};

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
const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const EQUAL: u32 = 0;

/// One expression, as an element of a rule's list.
type Expr = Vec<u8>;

/// The expressions of a rule.
pub fn rule(phrases: &str) -> Vec<Expr> {
    let unknown = || vec![expression("portcullis", &[])];
    phrases.split(", ").flat_map(|one| phrase(one).unwrap_or_else(unknown)).collect()
}

fn phrase(phrase: &str) -> Option<Vec<Expr>> {
    let words: Vec<&str> = phrase.split(' ').collect();
    Some(match *words.as_slice() {
        ["accept"] => verdict(&[number(CODE, NF_ACCEPT)]),
        ["drop"] => verdict(&[number(CODE, NF_DROP)]),
        ["jump", chain] => verdict(&[number(CODE, NFT_JUMP), text(CHAIN, chain)]),
        ["notrack"] => vec![expression("notrack", &[])],
        ["reset"] => {
            const NFT_REJECT_TCP_RST: u32 = 1;
            vec![expression("reject", &[number(1, NFT_REJECT_TCP_RST)])]
        }
        ["mark", "set", "&", kept, "^", bits] => {
            let field = Field::named("mark")?;
            let set = expression("meta", &[number(2, META_MARK), number(3, REGISTER)]);
            let changed = bitwise(&field.octets(kept)?, &field.octets(bits)?);
            vec![field.load, changed, set]
        }
        ["sport", "set", port] => set_udp_sport(&Field::named("sport")?.octets(port)?),
        ["iifname", name] => {
            // Padded with NULs to IFNAMSIZ.
            let mut whole = name.as_bytes().to_vec();
            whole.resize(limits::INTERFACE_NAME.saturating_add(1), 0);
            vec![Field::named("iifname")?.load, compare(EQUAL, &whole)]
        }
        ["socket-mark", ".", "iif", "not-in", set] => {
            // `NFT_REG32_01`: what is in it is the second quarter of what is in register 1.
            let iif = expression("meta", &[number(1, 9), number(2, META_IIF)]);
            vec![Field::named("socket-mark")?.load, iif, lookup(set, false)]
        }
        [field, "in", set] => vec![Field::named(field)?.load, lookup(set, true)],
        [field, "not-in", set] => vec![Field::named(field)?.load, lookup(set, false)],
        [field, "&", mask, "=", value] => {
            let field = Field::named(field)?;
            let (mask, value) = (field.octets(mask)?, field.octets(value)?);
            vec![field.load, bitwise(&mask, &vec![0; mask.len()]), compare(EQUAL, &value)]
        }
        [field, value] => Field::named(field)?.compared(EQUAL, value)?,
        [field, "!=", value] => Field::named(field)?.compared(1, value)?,
        [field, "<=", value] => Field::named(field)?.compared(3, value)?,
        [field, ">=", value] => Field::named(field)?.compared(5, value)?,
        _ => return None,
    })
}

/// What can be asked of a packet.
struct Field {
    /// Loads it into the register.
    load: Expr,
    size: usize,
    network_order: bool,
}

impl Field {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "mark" => Self::meta(META_MARK, 4),
            "iif" => Self::meta(META_IIF, 4),
            "oif" => Self::meta(5, 4),
            "iifname" => Self::meta(6, 16),
            "nfproto" => Self::meta(15, 1),
            "protocol" => Self::meta(16, 1),
            // NFT_SOCKET_MARK. Sockets that are not whole (TIME_WAIT, a connection that is being
            // opened) have no mark to the kernel, and the rule ends.
            "socket-mark" => Self::host("socket", &[(1, 1), (2, REGISTER)], 4),
            // The type of the source address at the interface that it leaves by (`fib saddr . oif
            // type`): NFT_FIB_RESULT_ADDRTYPE, of NFTA_FIB_F_SADDR and _OIF.
            "source-type" => Self::host("fib", &[(1, REGISTER), (2, 3), (3, 1 | (1 << 4))], 4),
            // RFC 791 section 3.1: version and length of the header; flags and offset; destination.
            "ip-header" => Self::payload(NETWORK, 0, 1),
            "ip-fragment" => Self::payload(NETWORK, 6, 2),
            "daddr" => Self::payload(NETWORK, 16, 4),
            // RFC 768, RFC 9293.
            "sport" => Self::payload(TRANSPORT, 0, 2),
            "dport" => Self::payload(TRANSPORT, 2, 2),
            "udp-length" => Self::payload(TRANSPORT, 4, 2),
            "tcp-flags" => Self::payload(TRANSPORT, 13, 1),
            // RFC 951, behind the header of UDP; RFC 2132: the cookie, and option 53 as the first.
            "bootp-op" => Self::payload(TRANSPORT, 8, 1),
            "bootp-yiaddr" => Self::payload(TRANSPORT, 8 + 16, 4),
            "bootp-options" => Self::payload(TRANSPORT, 8 + 236, 7),
            _ => return None,
        })
    }

    fn host(name: &str, attributes: &[(u16, u32)], size: usize) -> Self {
        let attributes: Vec<_> = attributes.iter().map(|(kind, one)| number(*kind, *one)).collect();
        Self { load: expression(name, &attributes), size, network_order: false }
    }

    fn meta(key: u32, size: usize) -> Self {
        Self::host("meta", &[(1, REGISTER), (2, key)], size)
    }

    fn payload(header: u32, offset: u32, size: u8) -> Self {
        let place = [(1, REGISTER), (2, header), (3, offset), (4, size.into())];
        Self { network_order: true, ..Self::host("payload", &place, size.into()) }
    }

    fn compared(self, operator: u32, value: &str) -> Option<Vec<Expr>> {
        let value = self.octets(value)?;
        Some(vec![self.load, compare(operator, &value)])
    }

    /// A value of it: a name, or a number in decimal or hexadecimal digits.
    fn octets(&self, value: &str) -> Option<Vec<u8>> {
        let value = match (value, value.strip_prefix("0x")) {
            // NFPROTO_IPV4, RTN_LOCAL
            ("ipv4" | "local", _) => 2,
            ("udp", _) => 17,
            ("tcp", _) => 6,
            (_, Some(digits)) => u64::from_str_radix(digits, 16).ok()?,
            (digits, None) => digits.parse().ok()?,
        };
        let octets = value.to_le_bytes();
        let (octets, rest) = octets.split_at_checked(self.size)?;
        let mut octets = rest.iter().all(|octet| *octet == 0).then(|| octets.to_vec())?;
        if self.network_order || cfg!(target_endian = "big") {
            octets.reverse();
        }
        Some(octets)
    }
}

fn verdict(attributes: &[Vec<u8>]) -> Vec<Expr> {
    const NFT_REG_VERDICT: u32 = 0;
    let data = nested(IMMEDIATE_DATA, &[nested(VERDICT, attributes)]);
    vec![expression("immediate", &[number(1, NFT_REG_VERDICT), data])]
}

/// With the checksum (RFC 768: the last two octets of the header's eight).
fn set_udp_sport(port: &[u8]) -> Vec<Expr> {
    const NFT_PAYLOAD_CSUM_INET: u32 = 1;
    let place = [number(2, TRANSPORT), number(3, 0), number(4, 2)];
    let checksum = [number(5, REGISTER), number(6, NFT_PAYLOAD_CSUM_INET), number(7, 6)];
    vec![
        expression("immediate", &[number(1, REGISTER), data(IMMEDIATE_DATA, port)]),
        expression("payload", &[place, checksum].concat()),
    ]
}

fn compare(operator: u32, value: &[u8]) -> Expr {
    expression("cmp", &[number(1, REGISTER), number(2, operator), data(3, value)])
}

fn lookup(set: &str, within: bool) -> Expr {
    const NFT_LOOKUP_F_INV: u32 = 1;
    let mut attributes = vec![text(1, set), number(2, REGISTER)];
    attributes.extend((!within).then(|| number(5, NFT_LOOKUP_F_INV)));
    expression("lookup", &attributes)
}

/// Register = register & mask ^ xor.
fn bitwise(mask: &[u8], xor: &[u8]) -> Expr {
    // A few octets; a number that cannot be stated would be refused by the kernel.
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    let registers = [number(1, REGISTER), number(2, REGISTER), number(3, length)].concat();
    expression("bitwise", &[registers, data(4, mask), data(5, xor)])
}

/// A value as it is (`NFTA_DATA_VALUE`).
pub fn data(kind: u16, value: &[u8]) -> Vec<u8> {
    nested(kind, &[bytes(1, value)])
}

fn expression(name: &str, attributes: &[Vec<u8>]) -> Expr {
    nested(ELEMENT, &[text(NAME, name), nested(DATA, attributes)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_phrase_has_the_kernels_form() {
        let expected = [
            // NFTA_LIST_ELEM; NFTA_EXPR_NAME; NFTA_EXPR_DATA: header, offset, length behind the register.
            b"\x34\0\x01\x80\x0c\0\x01\0payload\0\x24\0\x02\x80\x08\0\x01\0\0\0\0\x01".as_slice(),
            b"\x08\0\x02\0\0\0\0\x02\x08\0\x03\0\0\0\0\x02\x08\0\x04\0\0\0\0\x02",
            // The value, in network order.
            b"\x2c\0\x01\x80\x08\0\x01\0cmp\0\x20\0\x02\x80\x08\0\x01\0\0\0\0\x01",
            b"\x08\0\x02\0\0\0\0\x01\x0c\0\x03\x80\x06\0\x01\0\0\x43\0\0",
        ];
        assert_eq!(rule("dport != 67").concat(), expected.concat());
        // In the host's.
        assert!(rule("iif 67").concat().ends_with(b"\x43\0\0\0"));
    }

    #[test]
    fn what_is_no_phrase_is_refused_by_every_kernel() {
        let unknown = rule("portcullis");
        assert_eq!(unknown, [expression("portcullis", &[])]);
        for phrase in [
            "",
            "dport",
            "dport  67",
            "dport 65536",
            "dport -1",
            "dport 0x",
            "port 67",
            "iif in",
            "jump",
            "accept drop",
            "mark set & 0x1ffffffff ^ 0",
            "iifname != eth0",
        ] {
            assert_eq!(rule(phrase), unknown, "{phrase:?}");
        }
        assert_eq!(rule("accept, dport x"), [rule("accept"), unknown].concat());
    }
}
