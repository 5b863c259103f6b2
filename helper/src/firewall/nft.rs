//! nf_tables over one netlink socket: changes in, listings out.
//!
//! Guarantees: changes are applied all or none, and only to the ruleset that was read (its
//! generation is the one named); what is listed is bounded. The socket's life is the life of the
//! table that it owns. Format: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.

use std::io;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL,
    NLM_F_REQUEST, NetlinkSerializable, NlaBuffer, NlasIterator, Parseable, ParseableParametrized,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        ChainAttribute, ChainMessage, GenAttribute, GenMessage, Hook, HookNumber, ListAttribute,
        NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute,
        SetElementList, SetElementMessage, SetMessage, TableAttribute, TableFlags, TableMessage,
    },
    none::ControlMessage,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::expr::Expr;
use crate::netlink::{Message, Socket};

pub use netlink_packet_netfilter::{
    NetfilterProtoFamily as Family, nftables::InetHookNumber as At,
};

/// `NFNL_SUBSYS_NFTABLES`, which a batch names as its target.
const SUBSYSTEM: u16 = 10;

/// One change of the ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    family: Family,
    flags: u16,
    message: NfTablesMessage,
}

/// A table that dies with the socket that makes it, and that nobody else can edit.
pub fn add_owned_table(family: Family, table: &str) -> Change {
    let attributes =
        vec![TableAttribute::Name(table.to_owned()), TableAttribute::Flags(TableFlags::Owner)];
    let message = NfTablesMessage::NewTable(TableMessage { attributes });
    change(family, NLM_F_CREATE | NLM_F_EXCL, message)
}

/// Deletes a table with all that is in it.
pub fn delete_table(family: Family, table: &str) -> Change {
    let attributes = vec![TableAttribute::Name(table.to_owned())];
    let message = NfTablesMessage::DeleteTable(TableMessage { attributes });
    change(family, 0, message)
}

/// A chain; with a hook and a priority, a base chain of type filter that accepts by policy.
pub fn add_chain(family: Family, table: &str, chain: &str, hook: Option<(At, i32)>) -> Change {
    const NF_ACCEPT: u32 = 1;
    let mut attributes =
        vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.to_owned())];
    if let Some((at, priority)) = hook {
        attributes.extend([
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(at)),
                Hook::Priority(priority.cast_unsigned()),
            ]),
            ChainAttribute::Type("filter".to_owned()),
            ChainAttribute::Policy(NF_ACCEPT),
        ]);
    }
    let message = NfTablesMessage::NewChain(ChainMessage { attributes });
    change(family, NLM_F_CREATE | NLM_F_EXCL, message)
}

/// A set of packet marks.
pub fn add_mark_set(family: Family, table: &str, set: &str) -> Change {
    /// The `mark` type of nft, for its listings.
    const TYPE_MARK: u32 = 19;
    let attributes = vec![
        SetAttribute::Table(table.to_owned()),
        SetAttribute::Name(set.to_owned()),
        SetAttribute::KeyType(TYPE_MARK),
        SetAttribute::KeyLen(4),
        SetAttribute::Id(1),
        // NFTNL_UDATA_SET_KEYBYTEORDER, host order: nft prints the elements as numbers.
        SetAttribute::UserData([[0, 4].as_slice(), &1_u32.to_ne_bytes()].concat()),
    ];
    let message = NfTablesMessage::NewSet(SetMessage { attributes });
    change(family, NLM_F_CREATE | NLM_F_EXCL, message)
}

/// Puts a mark into a set.
pub fn add_mark(family: Family, table: &str, set: &str, mark: u32) -> Change {
    let message = NfTablesMessage::NewSetElement(element(table, set, mark));
    change(family, NLM_F_CREATE, message)
}

/// Takes a mark out of a set.
pub fn delete_mark(family: Family, table: &str, set: &str, mark: u32) -> Change {
    let message = NfTablesMessage::DeleteSetElement(element(table, set, mark));
    change(family, 0, message)
}

/// Where in its chain a new rule is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    Head,
    /// After all others.
    End,
}

/// A rule, with a comment by which it is found again.
pub fn add_rule(
    family: Family,
    (table, chain): (&str, &str),
    place: Place,
    comment: Option<&str>,
    expressions: Vec<Expr>,
) -> Change {
    let mut attributes = vec![
        RuleAttribute::Table(table.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions),
    ];
    if let Some(comment) = comment {
        attributes.push(RuleAttribute::UserData(comment_to_userdata(comment)));
    }
    let flags = match place {
        Place::Head => NLM_F_CREATE,
        Place::End => NLM_F_CREATE | NLM_F_APPEND,
    };
    let message = NfTablesMessage::NewRule(RuleMessage { attributes });
    change(family, flags, message)
}

/// Deletes a rule by the handle that was just read.
pub fn delete_rule(family: Family, (table, chain): (&str, &str), handle: u64) -> Change {
    let attributes = vec![
        RuleAttribute::Table(table.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Handle(handle),
    ];
    let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
    change(family, 0, message)
}

fn change(family: Family, flags: u16, message: NfTablesMessage) -> Change {
    Change { family, flags, message }
}

fn element(table: &str, set: &str, mark: u32) -> SetElementMessage {
    use netlink_packet_netfilter::nftables::DataAttribute;
    let key = SetElementAttribute::Key(DataAttribute::Value(mark.to_ne_bytes().into()));
    let attributes = vec![
        SetElementList::Table(table.to_owned()),
        SetElementList::Set(set.to_owned()),
        SetElementList::Elements(vec![ListAttribute::Element(vec![key])]),
    ];
    SetElementMessage { attributes }
}

/// nft's own form of a comment: type 0, length with the NUL, text, NUL.
fn comment_to_userdata(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len().saturating_add(1)).unwrap_or(u8::MAX);
    [[0, length].as_slice(), comment.as_bytes(), &[0]].concat()
}

/// The kernel's ruleset of this network namespace.
pub struct Ruleset {
    socket: Socket,
}

impl Ruleset {
    /// Opens the socket.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn open() -> io::Result<Self> {
        let socket = Socket::open(NETLINK_NETFILTER)?;
        Ok(Self { socket })
    }

    /// What the kernel calls the owner of the tables made here.
    pub fn owner(&self) -> u32 {
        self.socket.port()
    }

    /// The number of the ruleset's present state: it changes with every change by anybody.
    pub fn generation(&mut self) -> io::Result<u32> {
        let request = NfTablesMessage::GetGen(GenMessage { attributes: vec![] });
        let (kind, body) = emit(Family::Unspec, 0, request);
        for answer in self.socket.ask(kind, body)? {
            if let Some((_, NfTablesMessage::NewGen(message))) = parse(&answer)? {
                for attribute in message.attributes {
                    if let GenAttribute::Id(id) = attribute {
                        return Ok(id);
                    }
                }
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Applies the changes, all or none; with a generation, only if the ruleset still has it
    /// (`ERESTART` otherwise).
    pub fn commit(&mut self, changes: &[Change], generation: Option<u32>) -> io::Result<()> {
        let plain = NLM_F_REQUEST;
        let mut batch = vec![message(Family::Unspec, SUBSYSTEM, begin(generation), plain)];
        for (index, change) in changes.iter().enumerate() {
            // The kernel reports every error; the word on the last change says that all are done.
            let last = index.saturating_add(1) == changes.len();
            let flags = plain | change.flags | if last { NLM_F_ACK } else { 0 };
            batch.push(message(change.family, 0, change.message.clone(), flags));
        }
        batch.push(message(Family::Unspec, SUBSYSTEM, ControlMessage::BatchEnd, plain));
        self.socket.transact(&batch).map(drop)
    }

    /// Lists all tables.
    pub fn tables(&mut self) -> io::Result<Vec<(Family, Vec<TableAttribute>)>> {
        let request = NfTablesMessage::GetTable(TableMessage { attributes: vec![] });
        self.list(Family::Unspec, request, |answer| match answer {
            NfTablesMessage::NewTable(message) => Some(message.attributes),
            _ => None,
        })
    }

    /// Lists all chains.
    pub fn chains(&mut self) -> io::Result<Vec<(Family, Vec<ChainAttribute>)>> {
        let request = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
        self.list(Family::Unspec, request, |answer| match answer {
            NfTablesMessage::NewChain(message) => Some(message.attributes),
            _ => None,
        })
    }

    /// Lists the rules of a chain, in their order; or, without a chain, those of a whole table and
    /// without their expressions, whose decoding takes most of the time.
    pub fn rules(
        &mut self,
        family: Family,
        table: &str,
        chain: Option<&str>,
    ) -> io::Result<Vec<Vec<RuleAttribute>>> {
        let mut attributes = vec![RuleAttribute::Table(table.to_owned())];
        attributes.extend(chain.map(|name| RuleAttribute::Chain(name.to_owned())));
        let request = NfTablesMessage::GetRule(RuleMessage { attributes });
        let (kind, body) = emit(family, 0, request);
        let mut rules = Vec::new();
        for answer in self.socket.dump(kind, &body)? {
            rules.push(parse_rule(&answer.body, chain.is_some())?);
        }
        Ok(rules)
    }

    fn list<T>(
        &mut self,
        family: Family,
        request: NfTablesMessage,
        pick: impl Fn(NfTablesMessage) -> Option<T>,
    ) -> io::Result<Vec<(Family, T)>> {
        let (kind, body) = emit(family, 0, request);
        let mut picked = Vec::new();
        for answer in self.socket.dump(kind, &body)? {
            if let Some((family, message)) = parse(&answer)? {
                picked.extend(pick(message).map(|one| (family, one)));
            }
        }
        Ok(picked)
    }
}

/// Opens a batch; with a generation, one that fails when the ruleset has another.
fn begin(generation: Option<u32>) -> ControlMessage {
    const NFNL_MSG_BATCH_BEGIN: u8 = 16;
    const NFNL_BATCH_GENID: u16 = 1;
    generation.map_or(ControlMessage::BatchBegin, |id| ControlMessage::Other {
        message_type: NFNL_MSG_BATCH_BEGIN,
        attributes: vec![DefaultNla::new(NFNL_BATCH_GENID, id.to_be_bytes().into())],
    })
}

fn message<T: Into<NetfilterMessageInner>>(
    family: NetfilterProtoFamily,
    resource: u16,
    inner: T,
    flags: u16,
) -> Message {
    let (kind, body) = emit(family, resource, inner);
    Message { kind, flags, body }
}

fn emit<T: Into<NetfilterMessageInner>>(family: Family, resource: u16, inner: T) -> (u16, Vec<u8>) {
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, resource), inner);
    let mut body = vec![0; Emitable::buffer_len(&message)];
    message.emit(&mut body);
    (message.message_type(), body)
}

fn garbled(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Reads a rule, with or without its expressions.
///
/// # Errors
/// `InvalidData`.
pub fn parse_rule(body: &[u8], expressions: bool) -> io::Result<Vec<RuleAttribute>> {
    const NFTA_RULE_EXPRESSIONS: u16 = 4;
    // What follows struct nfgenmsg.
    let bytes = body.get(4..).unwrap_or_default();
    let mut rule = Vec::new();
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute.map_err(garbled)?;
        let is_list = attribute.kind() == NFTA_RULE_EXPRESSIONS;
        if is_list && expressions {
            check_expressions(attribute.value()).map_err(garbled)?;
        }
        if expressions || !is_list {
            rule.push(RuleAttribute::parse(&attribute).map_err(garbled)?);
        }
    }
    Ok(rule)
}

/// Whether the values in a list of expressions are whole. The crate reads those of `cmp`, `bitwise`
/// and `immediate` without a look at their length, and would panic (found by fuzzing).
fn check_expressions(list: &[u8]) -> Result<(), DecodeError> {
    const NFTA_EXPR_NAME: u16 = 1;
    const NFTA_EXPR_DATA: u16 = 2;
    for element in NlasIterator::new(list) {
        let element = element?;
        let mut name = Vec::new();
        for attribute in NlasIterator::new(element.value()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                NFTA_EXPR_NAME => name = value.strip_suffix(b"\0").unwrap_or(value).to_vec(),
                NFTA_EXPR_DATA => check_data(&name, value)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn check_data(expression: &[u8], bytes: &[u8]) -> Result<(), DecodeError> {
    // NFTA_CMP_DATA; NFTA_BITWISE_MASK, _XOR, _DATA; NFTA_IMMEDIATE_DATA.
    let holds_value = |kind| match expression {
        b"cmp" => kind == 3,
        b"bitwise" => matches!(kind, 4 | 5 | 7),
        b"immediate" => kind == 2,
        _ => false,
    };
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute?;
        if holds_value(attribute.kind()) {
            NlaBuffer::new_checked(attribute.value())?;
        }
    }
    Ok(())
}

/// Reads a message that lists a table or chain or names the generation, with its family; `None` for
/// any other.
///
/// # Errors
/// `InvalidData`.
pub fn parse(answer: &Message) -> io::Result<Option<(Family, NfTablesMessage)>> {
    // NFT_MSG_NEWTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWGEN. What else there is may hold expressions.
    if !matches!(answer.kind, 0x0a00 | 0x0a03 | 0x0a0f) {
        return Ok(None);
    }
    let message = NetfilterMessage::parse_with_param(&answer.body, answer.kind).map_err(garbled)?;
    Ok(match message.inner {
        NetfilterMessageInner::NfTables(inner) => Some((message.header.family, inner)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn an_element_has_the_kernels_form() {
        let change = add_mark(Family::Inet, "portcullis", "live", 0x5a00_0001);
        let (kind, body) = emit(change.family, 0, change.message);
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
            let expressions = super::super::expr::notrack();
            add_rule(Family::Inet, ("t", "c"), place, Some("ab"), expressions)
        };
        let (head, end) = (rule(Place::Head), rule(Place::End));
        // NLM_F_CREATE, and NLM_F_APPEND for the end.
        assert_eq!((head.flags, end.flags), (0x400, 0xc00));
        let (kind, body) = emit(head.family, 0, head.message);
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
        let (kind, body) = emit(Family::Unspec, SUBSYSTEM, begin(Some(0x0102)));
        assert_eq!(kind, 16);
        assert_eq!(body, b"\0\0\0\x0a\x08\0\x01\0\0\0\x01\x02");
        let (kind, body) = emit(Family::Unspec, SUBSYSTEM, begin(None));
        assert_eq!((kind, body.as_slice()), (16, b"\0\0\0\x0a".as_slice()));
    }

    /// Found by fuzzing: the crate would read 0x3a03 octets of the few that there are.
    #[test]
    #[cfg(target_endian = "little")]
    fn p11_a_value_that_states_more_than_there_is_is_an_error() {
        let attribute = |kind: u16, value: &[u8]| {
            let length = u16::try_from(value.len().saturating_add(4)).unwrap();
            let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        // NFTA_RULE_EXPRESSIONS, NFTA_LIST_ELEM, NFTA_EXPR_NAME and _DATA, NFTA_DATA_VALUE.
        let rule = |stated: u16, name: &[u8], kind: u16| {
            let mut value = attribute(1, &[1, 2, 3, 4]);
            value.splice(..2, stated.to_ne_bytes());
            let data = attribute(2, &attribute(kind, &value));
            let list = attribute(4, &attribute(1, &[attribute(1, name), data].concat()));
            parse_rule(&[[2, 0, 0, 0].as_slice(), &list].concat(), true)
        };
        for (name, kinds) in [
            (b"cmp\0".as_slice(), [3].as_slice()),
            (b"bitwise\0", &[4, 5, 7]),
            (b"immediate\0", &[2]),
        ] {
            for kind in kinds {
                assert!(rule(8, name, *kind).is_ok(), "{name:?} {kind}");
                for wrong in [0, 3, 9, 0x3a07] {
                    assert!(rule(wrong, name, *kind).is_err(), "{name:?} {kind} {wrong}");
                }
            }
        }
        let empty = Message { kind: 0x0a06, flags: 0, body: vec![2, 0, 0, 0] };
        assert_eq!(parse(&empty).unwrap(), None, "what was not asked for is not read");
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
        let mut ruleset = Ruleset::open().unwrap();
        let before = ruleset.generation().unwrap();
        let table = |name| add_owned_table(Family::Inet, name);
        ruleset.commit(&[table("first")], Some(before)).unwrap();
        assert_ne!(ruleset.generation().unwrap(), before);
        let late = ruleset.commit(&[table("second")], Some(before));
        assert_eq!(late.unwrap_err().raw_os_error(), Some(libc::ERESTART));
        let now = ruleset.generation().unwrap();
        // One that the kernel refuses takes those before it along.
        let refused = ruleset.commit(&[table("second"), table("first")], Some(now));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert_eq!(ruleset.tables().unwrap().len(), 1);
        ruleset.commit(&[table("second")], Some(now)).unwrap();
        assert_eq!(ruleset.tables().unwrap().len(), 2);
    }
}
