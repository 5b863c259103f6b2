//! nf_tables over one netlink socket: changes in, listings out.
//!
//! Guarantees: changes are applied all or none, and only to the ruleset that was read (its
//! generation is the one named); what is listed is bounded. The socket's life is the life of the
//! table that it owns. Format: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
//!
//! Attributes are written by their numbers there (`enum nft_*_attributes`):
//!
//! | of | numbers |
//! |---|---|
//! | a table | 1 name, 2 flags, 4 handle, 7 owner |
//! | a chain | 1 table, 2 handle, 3 name, 4 hook (1 number, 2 priority), 5 policy, 7 type |
//! | a rule | 1 table, 2 chain, 3 handle, 4 expressions, 7 userdata |
//! | a set | 1 table, 2 name, 3 flags, 4 type of its keys, 5 their length, 10 id, 13 userdata |
//! | elements | 1 table, 2 set, 3 elements; of each: 1 key, 4 its time, milliseconds |
//! | a generation | 1 id |

use std::{io, time::Duration};

use rustix::net::netlink::NETFILTER;

use super::expr;
use crate::{
    attribute::{Attributes, bytes, field, malformed, nested, number, text},
    netlink::{Message, NLM_F_ACK, Socket},
};

/// `NFNL_SUBSYS_NFTABLES`: of which all messages are, and which a batch names as its target.
const SUBSYSTEM: u8 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
/// `enum nf_tables_msg_types`
const NEW_TABLE: u8 = 0;
/// What is listed: tables.
pub const GET_TABLE: u8 = 1;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
/// What is listed: chains.
pub const GET_CHAIN: u8 = 4;
const NEW_RULE: u8 = 6;
/// What is listed: rules.
pub const GET_RULE: u8 = 7;
const DELETE_RULE: u8 = 8;
const NEW_SET: u8 = 9;
const NEW_ELEMENT: u8 = 12;
const DELETE_ELEMENT: u8 = 14;
const GET_GENERATION: u8 = 16;
/// Flags of what is new (include/uapi/linux/netlink.h).
const EXCLUSIVELY: u16 = 0x200;
const CREATE: u16 = 0x400;

/// The family of a table, `NFPROTO_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Family(u8);

impl Family {
    /// IPv4 and IPv6 together.
    pub const INET: Self = Self(1);
    /// IPv4, and what iptables makes.
    pub const IPV4: Self = Self(2);
    /// Of whatever family.
    pub const ALL: Self = Self(0);
}

/// Hooks of the families ip and inet, `enum nf_inet_hooks`: what comes in, before it is known for whom.
pub const PREROUTING: u32 = 0;
/// What is for this host.
pub const INPUT: u32 = 1;
/// What this host sends.
pub const OUTPUT: u32 = 3;

/// Where a chain or a set is: family, table, name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    /// Family of the table.
    pub family: Family,
    /// Table.
    pub table: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// One change of the ruleset.
pub type Change = Message;

/// A table that dies with the socket that makes it, and that nobody else can edit.
pub fn add_owned_table(family: Family, table: &str) -> Change {
    const NFT_TABLE_F_OWNER: u32 = 2;
    let attributes = [text(1, table), number(2, NFT_TABLE_F_OWNER)];
    message(NEW_TABLE, CREATE | EXCLUSIVELY, family, &attributes)
}

/// Deletes a table with all that is in it.
pub fn delete_table(family: Family, table: &str) -> Change {
    message(DELETE_TABLE, 0, family, &[text(1, table)])
}

/// A chain; with a hook and a priority, a base chain of type filter that accepts by policy.
pub fn add_chain(chain: Path<'_>, hook: Option<(u32, i32)>) -> Change {
    let mut attributes = vec![text(1, chain.table), text(3, chain.name)];
    if let Some((hook, priority)) = hook {
        let hook = nested(4, &[number(1, hook), number(2, priority.cast_unsigned())]);
        attributes.extend([hook, text(7, "filter"), number(5, expr::NF_ACCEPT)]);
    }
    message(NEW_CHAIN, CREATE | EXCLUSIVELY, chain.family, &attributes)
}

/// A type of nft, for its listings: of a mark, and of the index of an interface.
pub const TYPE_MARK: u32 = 19;
/// See [`TYPE_MARK`].
pub const TYPE_INTERFACE: u32 = 20;

/// How long what is put into a set stays there, `enum nft_set_flags`: until it is taken out.
pub const FOREVER: u32 = 0;
/// For a time. See [`FOREVER`].
pub const TIMED: u32 = 0x10;

/// A set whose keys are numbers of 32 bits of these types; `id` tells it from others of the same
/// transaction.
pub fn add_set(set: Path<'_>, id: u32, flags: u32, types: &[u32]) -> Change {
    // nft writes the types of a joint key into one number, 6 bits each.
    let (kind, length) = types
        .iter()
        .fold((0, 0_u32), |(kind, length), one| (kind << 6 | one, length.saturating_add(4)));
    // NFTNL_UDATA_SET_KEYBYTEORDER, host order: nft prints the elements as numbers.
    let userdata = [[0, 4].as_slice(), &1_u32.to_ne_bytes()].concat();
    let key = [number(3, flags), number(4, kind), number(5, length)].concat();
    let name = [text(1, set.table), text(2, set.name)].concat();
    let attributes = [name, key, number(10, id), bytes(13, &userdata)];
    message(NEW_SET, CREATE | EXCLUSIVELY, set.family, &attributes)
}

/// Puts a key into a set; what is there already keeps its time.
pub fn put(set: Path<'_>, key: &[u32], time: Option<Duration>) -> Change {
    element(NEW_ELEMENT, CREATE, set, key, time)
}

/// Takes a key out of a set.
pub fn take(set: Path<'_>, key: &[u32]) -> Change {
    element(DELETE_ELEMENT, 0, set, key, None)
}

fn element(kind: u8, flags: u16, set: Path<'_>, key: &[u32], time: Option<Duration>) -> Change {
    let key: Vec<u8> = key.iter().flat_map(|number| number.to_ne_bytes()).collect();
    let mut one = vec![expr::data(1, &key)];
    one.extend(time.map(|time| {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        bytes(4, &milliseconds.to_be_bytes())
    }));
    let elements = nested(3, &[nested(expr::ELEMENT, &one)]);
    message(kind, flags, set.family, &[text(1, set.table), text(2, set.name), elements])
}

/// Where in its chain a new rule is put: before all others.
pub const AT_HEAD: u16 = 0;
/// After all others (`NLM_F_APPEND`).
pub const AT_END: u16 = 0x800;

/// A rule, in the phrases of `expr.rs`, with a comment by which it is found again.
pub fn add_rule(chain: Path<'_>, place: u16, comment: Option<&str>, phrases: &str) -> Change {
    let list = nested(4, &expr::rule(phrases));
    let mut attributes = vec![text(1, chain.table), text(2, chain.name), list];
    // nft's own form of a comment: type 0, length with the NUL, text, NUL.
    attributes.extend(comment.map(|comment| {
        let length = u8::try_from(comment.len().saturating_add(1)).unwrap_or(u8::MAX);
        bytes(7, &[[0, length].as_slice(), comment.as_bytes(), &[0]].concat())
    }));
    message(NEW_RULE, CREATE | place, chain.family, &attributes)
}

/// Deletes a rule by the handle that was just read.
pub fn delete_rule(chain: Path<'_>, handle: u64) -> Change {
    let attributes = [text(1, chain.table), text(2, chain.name), bytes(3, &handle.to_be_bytes())];
    message(DELETE_RULE, 0, chain.family, &attributes)
}

fn message(kind: u8, flags: u16, family: Family, attributes: &[Vec<u8>]) -> Message {
    let kind = u16::from_be_bytes([SUBSYSTEM, kind]);
    // struct nfgenmsg.
    let body = [[family.0, 0, 0, 0].as_slice(), &attributes.concat()].concat();
    Message { kind, flags, body }
}

/// Opens or closes a batch. One that is opened with a generation fails when the ruleset has another.
fn batch(kind: u16, generation: Option<u32>) -> Message {
    const NFNL_BATCH_GENID: u16 = 1;
    let generation = generation.map_or(Vec::new(), |id| number(NFNL_BATCH_GENID, id));
    let body = [[0, 0, 0, SUBSYSTEM].as_slice(), &generation].concat();
    Message { kind, flags: 0, body }
}

/// A table as the kernel lists it ([`GET_TABLE`]).
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: String,
    /// Another one after it was deleted and made again.
    pub handle: u64,
    /// The socket whose end is its end, if any.
    pub owner: Option<u32>,
}

impl Table {
    /// From the kernel's attributes.
    pub fn read(family: Family, attributes: &Attributes<'_>) -> io::Result<Self> {
        let handle = attributes.array(4)?.map_or(0, u64::from_be_bytes);
        Ok(Self { family, name: attributes.text(1), handle, owner: attributes.number(7)? })
    }
}

/// The kernel's ruleset of this network namespace.
pub struct Ruleset {
    socket: Socket,
    /// What the kernel calls the owner of the tables made here.
    pub owner: u32,
}

impl Ruleset {
    /// Opens the socket.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn open() -> io::Result<Self> {
        let socket = Socket::open(Some(NETFILTER))?;
        Ok(Self { owner: socket.port()?, socket })
    }

    /// The number of the ruleset's present state: it changes with every change by anybody.
    pub fn generation(&mut self) -> io::Result<u32> {
        let request = message(GET_GENERATION, 0, Family::ALL, &[]);
        let answers = self.socket.ask(request.kind, request.body)?;
        let (_, attributes) = parse(answers.first().ok_or_else(malformed)?)?;
        attributes.number(1)?.ok_or_else(malformed)
    }

    /// Applies the changes, all or none; with a generation, only if the ruleset still has it
    /// (`ERESTART` otherwise).
    pub fn commit(&mut self, changes: &[Change], generation: Option<u32>) -> io::Result<()> {
        let mut messages = vec![batch(NFNL_MSG_BATCH_BEGIN, generation)];
        messages.extend_from_slice(changes);
        // The kernel reports every error; the word on the last change says that all are done.
        if let Some(last) = messages.last_mut() {
            last.flags |= NLM_F_ACK;
        }
        messages.push(batch(NFNL_MSG_BATCH_END, None));
        self.socket.transact(&messages).map(drop)
    }

    /// Lists what is of a kind, of a family, in what is named (a table, then a chain), in its order.
    pub fn list<T>(
        &mut self,
        kind: u8,
        family: Family,
        of: &[&str],
        read: impl Fn(Family, &Attributes<'_>) -> io::Result<T>,
    ) -> io::Result<Vec<T>> {
        let names: Vec<_> = (1..).zip(of).map(|(number, name)| text(number, name)).collect();
        let request = message(kind, 0, family, &names);
        let answers = self.socket.dump(request.kind, request.body)?;
        let read = |answer| {
            let (family, attributes) = parse(answer)?;
            read(family, &attributes)
        };
        answers.iter().map(read).collect()
    }
}

/// The family of an answer, and its attributes.
///
/// # Errors
/// `InvalidData`.
pub fn parse(answer: &Message) -> io::Result<(Family, Attributes<'_>)> {
    let [family, ..] = field::<4>(&answer.body, 0)?;
    Ok((Family(family), Attributes::read(answer.body.get(4..).unwrap_or_default())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn an_element_has_the_kernels_form() {
        let live = Path { family: Family::INET, table: "portcullis", name: "live" };
        let Message { kind, body, .. } = put(live, &[0x5a00_0001], None);
        assert_eq!(kind, 0x0a0c);
        let expected = [
            // struct nfgenmsg; NFTA_SET_ELEM_LIST_TABLE, _SET, padded to 4 octets each.
            b"\x01\0\0\0\x0f\0\x01\0portcullis\0\0\x09\0\x02\0live\0\0\0\0".as_slice(),
            // _ELEMENTS, NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, all nested; NFTA_DATA_VALUE.
            b"\x14\0\x03\x80\x10\0\x01\x80\x0c\0\x01\x80\x08\0\x01\0\x01\0\0\x5a",
        ];
        assert_eq!(body, expected.concat());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_rule_has_the_kernels_form_and_its_place() {
        let rule = |place| {
            let path = Path { family: Family::INET, table: "t", name: "c" };
            add_rule(path, place, Some("ab"), "notrack")
        };
        let (head, end) = (rule(AT_HEAD), rule(AT_END));
        // NLM_F_CREATE, and NLM_F_APPEND for the end.
        assert_eq!((head.flags, end.flags), (0x400, 0xc00));
        let Message { kind, body, .. } = head;
        assert_eq!(kind, 0x0a06);
        let expected = [
            // struct nfgenmsg; NFTA_RULE_TABLE, NFTA_RULE_CHAIN.
            b"\x01\0\0\0\x06\0\x01\0t\0\0\0\x06\0\x02\0c\0\0\0".as_slice(),
            // NFTA_RULE_EXPRESSIONS, NFTA_LIST_ELEM; NFTA_EXPR_NAME and an empty NFTA_EXPR_DATA.
            b"\x18\0\x04\x80\x14\0\x01\x80\x0c\0\x01\0notrack\0\x04\0\x02\x80",
            // NFTA_RULE_USERDATA: comment, 3 octets.
            b"\x09\0\x07\0\0\x03ab\0\0\0\0",
        ];
        assert_eq!(body, expected.concat());
    }

    #[test]
    fn a_batch_names_the_generation_that_it_is_for() {
        let begin = batch(NFNL_MSG_BATCH_BEGIN, Some(0x0102));
        assert_eq!(begin.kind, 16);
        assert_eq!(begin.body, b"\0\0\0\x0a\x08\0\x01\0\0\0\x01\x02");
        let end = batch(NFNL_MSG_BATCH_END, None);
        assert_eq!((end.kind, end.body.as_slice()), (17, b"\0\0\0\x0a".as_slice()));
    }

    /// In a network namespace of this thread alone.
    #[test]
    fn a_change_of_another_generation_is_refused_whole() {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!(
                "SKIPPED: a_change_of_another_generation_is_refused_whole: needs root: {error}"
            );
            return;
        }
        let tables = |ruleset: &mut Ruleset| {
            ruleset.list(GET_TABLE, Family::ALL, &[], Table::read).unwrap().len()
        };
        let mut ruleset = Ruleset::open().unwrap();
        let before = ruleset.generation().unwrap();
        let table = |name| add_owned_table(Family::INET, name);
        ruleset.commit(&[table("first")], Some(before)).unwrap();
        assert_ne!(ruleset.generation().unwrap(), before);
        let late = ruleset.commit(&[table("second")], Some(before));
        assert_eq!(late.unwrap_err().raw_os_error(), Some(libc::ERESTART));
        let now = ruleset.generation().unwrap();
        // One that the kernel refuses takes those before it along.
        let refused = ruleset.commit(&[table("second"), table("first")], Some(now));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert_eq!(tables(&mut ruleset), 1);
        ruleset.commit(&[table("second")], Some(now)).unwrap();
        assert_eq!(tables(&mut ruleset), 2);
    }
}
