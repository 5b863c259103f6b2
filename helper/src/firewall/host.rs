//! The host's own firewall: which one it is, and our rules in it.
//!
//! Guarantees: a firewall that is not known is never taken for none, and nothing is guessed: `None`
//! is said only when no input chain of the families ip and inet can refuse a packet. Our rules are
//! found by their comment, never by a remembered handle. Everything here is pure: listings in,
//! findings out. Not looked at: legacy iptables (not part of nf_tables) and chains at other hooks
//! (prerouting, ingress).

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, DataAttribute, ExpressionAttribute, Expressions, Hook, HookNumber, Immediate,
    InetHookNumber, ListAttribute, Lookup, RuleAttribute, Verdict, VerdictAttribute,
};

use super::{
    Backend, FirewallError, Opening, expr,
    nft::{self, Change, Family, Place},
    table,
};
use crate::{
    config::{self, NamedChain},
    mark::LeaseMark,
};

/// Where a chain is: family, table, name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Family.
    pub family: Family,
    /// Table.
    pub table: &'static str,
    /// Chain.
    pub chain: &'static str,
}

/// The chain of NixOS' nftables firewall that openings belong into, and the base chain before it.
pub const NIXOS_NFTABLES: Path = path(Family::Inet, "nixos-fw", "input-allow");
const NIXOS_NFTABLES_BASE: Path = path(Family::Inet, "nixos-fw", "input");
/// What filters outgoing packets there (`networking.firewall.filterOutput`): it would refuse our
/// answers, which have no conntrack entry.
const NIXOS_NFTABLES_OUTPUT: Path = path(Family::Inet, "nixos-fw", "output");
/// The same for NixOS' iptables firewall.
pub const NIXOS_IPTABLES: Path = path(Family::IPv4, "filter", "nixos-fw");
const NIXOS_IPTABLES_BASE: Path = path(Family::IPv4, "filter", "INPUT");

impl Path {
    /// The chain that the configuration names. Its names live as long as the process, as those of
    /// the firewalls that are known do: there is one configuration.
    pub fn named(chain: &NamedChain) -> Self {
        let family = match chain.family {
            config::Family::Ip => Family::IPv4,
            config::Family::Inet => Family::Inet,
        };
        let [table, chain] =
            [&chain.table, &chain.chain].map(|name| &*name.as_str().to_owned().leak());
        path(family, table, chain)
    }
}

const fn path(family: Family, table: &'static str, chain: &'static str) -> Path {
    Path { family, table, chain }
}

/// A chain as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its handle: another one after it was deleted and made again in the same table.
    pub handle: u64,
    /// Whether it is a base chain at hook input.
    pub input: bool,
    /// Whether its policy is to drop.
    pub drops: bool,
}

impl Chain {
    /// From the kernel's attributes; `None` for one without a name.
    pub fn parse(family: Family, attributes: Vec<ChainAttribute>) -> Option<Self> {
        const NF_DROP: u32 = 0;
        let (mut table, mut name, mut handle) = (None, None, 0);
        let (mut input, mut drops) = (false, false);
        for attribute in attributes {
            match attribute {
                ChainAttribute::Table(text) => table = Some(text),
                ChainAttribute::Name(text) => name = Some(text),
                ChainAttribute::Handle(number) => handle = number,
                ChainAttribute::Policy(policy) => drops = policy == NF_DROP,
                ChainAttribute::Hook(hook) => {
                    let local_in = HookNumber::Inet(InetHookNumber::LocalIn);
                    input = hook.contains(&Hook::Number(local_in));
                }
                _ => {}
            }
        }
        Some(Self {
            family,
            table: table?,
            name: name?,
            handle,
            input: input && matches!(family, Family::IPv4 | Family::Inet),
            drops,
        })
    }

    /// Whether it is the chain at this place.
    pub fn is(&self, path: Path) -> bool {
        self.is_beside(path) && self.name == path.chain
    }

    /// Whether it is in the table of this place.
    fn is_beside(&self, path: Path) -> bool {
        self.family == path.family && self.table == path.table
    }
}

/// A rule as the kernel lists it, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: String,
    /// Its handle, good for this listing only.
    pub handle: u64,
    /// The slot of the lease that its comment names.
    pub lease: Option<u8>,
    /// Chains that it jumps or goes to.
    pub jumps: Vec<String>,
    /// Whether it may end in anything but accepting or going on.
    pub refuses: bool,
}

impl Rule {
    /// From the kernel's attributes.
    pub fn parse(attributes: Vec<RuleAttribute>) -> Self {
        let mut rule = Self::default();
        for attribute in attributes {
            match attribute {
                RuleAttribute::Chain(name) => rule.chain = name,
                RuleAttribute::Handle(handle) => rule.handle = handle,
                RuleAttribute::UserData(bytes) => rule.lease = lease_in_userdata(&bytes),
                RuleAttribute::Expressions(list) => {
                    for expression in list {
                        rule.read(expression);
                    }
                }
                _ => {}
            }
        }
        rule
    }

    fn read(&mut self, expression: ListAttribute<ExpressionAttribute>) {
        /// Conditions and statements that never refuse a packet.
        const HARMLESS: [&str; 16] = [
            "byteorder",
            "connlimit",
            "counter",
            "ct",
            "exthdr",
            "fib",
            "hash",
            "last",
            "limit",
            "log",
            "match",
            "notrack",
            "quota",
            "range",
            "rt",
            "socket",
        ];
        let ListAttribute::Element(attributes) = expression else {
            return;
        };
        for attribute in attributes {
            let ExpressionAttribute::Data(data) = attribute else {
                continue;
            };
            match data {
                Expressions::Immediate(immediate) => self.read_immediate(immediate),
                // A verdict map: its elements are not read here.
                Expressions::Lookup(lookup) => {
                    let map = |one: &Lookup| matches!(one, Lookup::DestinationRegister(_));
                    self.refuses |= lookup.iter().any(map);
                }
                Expressions::Bitwise(_)
                | Expressions::Cmp(_)
                | Expressions::Meta(_)
                | Expressions::Payload(_) => {}
                Expressions::Other { expression_type, attributes } => {
                    self.refuses |= !HARMLESS.contains(&expression_type.as_str());
                    if expression_type == "match" && self.lease.is_none() {
                        self.lease = lease_in_match(&attributes);
                    }
                }
                _ => self.refuses = true,
            }
        }
    }

    fn read_immediate(&mut self, immediate: Vec<Immediate>) {
        const NF_ACCEPT: u32 = 1;
        for attribute in immediate {
            let Immediate::Data(DataAttribute::Verdict(verdict)) = attribute else {
                continue;
            };
            for part in verdict {
                match part {
                    VerdictAttribute::Code(
                        Verdict::Continue
                        | Verdict::Break
                        | Verdict::Return
                        | Verdict::Other(NF_ACCEPT),
                    ) => {}
                    VerdictAttribute::Code(_) => self.refuses = true,
                    VerdictAttribute::Chain(name) => self.jumps.push(name),
                    _ => {}
                }
            }
        }
    }
}

/// The slot in a comment of ours.
fn lease_in_comment(text: &str) -> Option<u8> {
    text.strip_prefix("portcullis lease ")?.parse().ok()
}

/// nft's comment: type 0, length, text, NUL; other types may stand before it.
fn lease_in_userdata(mut bytes: &[u8]) -> Option<u8> {
    const COMMENT: u8 = 0;
    while let Some(([kind, length], rest)) = bytes.split_first_chunk::<2>() {
        let (value, following) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            return lease_in_comment(until_nul(value)?);
        }
        bytes = following;
    }
    None
}

/// What iptables-restore makes of it: the xt match `comment`, whose data is the text
/// (`struct xt_comment_info`).
fn lease_in_match(attributes: &[DefaultNla]) -> Option<u8> {
    const NFTA_MATCH_NAME: u16 = 1;
    const NFTA_MATCH_INFO: u16 = 3;
    let value = |kind| {
        let attribute = attributes.iter().find(|one| one.kind() == kind)?;
        let mut bytes = vec![0; attribute.value_len()];
        attribute.emit_value(&mut bytes);
        Some(bytes)
    };
    if until_nul(&value(NFTA_MATCH_NAME)?)? != "comment" {
        return None;
    }
    lease_in_comment(until_nul(&value(NFTA_MATCH_INFO)?)?)
}

fn until_nul(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
}

/// Chains whose rules decide which firewall this is.
pub fn decisive(chain: &Chain, named: Option<Path>) -> bool {
    let ours = chain.family == table::FAMILY && chain.table == table::NAME;
    let known = [NIXOS_NFTABLES, NIXOS_NFTABLES_OUTPUT, NIXOS_IPTABLES];
    // The way from the hook to a named chain may lead through any other of its table.
    !ours
        && (chain.input
            || known.into_iter().any(|path| chain.is(path))
            || named.is_some_and(|path| chain.is_beside(path)))
}

/// Which firewall this is: the back end, and the chain that our rules go into. A named chain is the
/// administrator's word, and counts alone.
///
/// # Errors
/// `Unsupported`, with what was found.
pub fn judge(
    listing: &[(Chain, Vec<Rule>)],
    named: Option<Path>,
) -> Result<(Backend, Option<Path>), FirewallError> {
    if let Some(path) = named {
        return match is_reached(listing, path) {
            true => Ok((Backend::NamedChain, Some(path))),
            false => Err(FirewallError::Unsupported(format!(
                "no input chain leads to {}, which [firewall] in {} names: it is not there, or no \
                 rule jumps to it (jumps in a verdict map do not count)",
                place(path.family, path.table, path.chain),
                config::FILE
            ))),
        };
    }
    let find = |path| listing.iter().find(|(chain, _)| chain.is(path));
    let nftables = find(NIXOS_NFTABLES).is_some()
        && find(NIXOS_NFTABLES_BASE).is_some_and(|(base, _)| base.input);
    let jumped_to = |rules: &[Rule], name: &str| {
        let to = |rule: &Rule| rule.jumps.iter().any(|jump| jump == name);
        rules.iter().any(to)
    };
    let iptables = find(NIXOS_IPTABLES).is_some()
        && find(NIXOS_IPTABLES_BASE)
            .is_some_and(|(base, rules)| base.input && jumped_to(rules, NIXOS_IPTABLES.chain));
    match (nftables, iptables) {
        (true, true) => Err(FirewallError::Unsupported(
            "both firewalls of NixOS are active, table inet nixos-fw and chain nixos-fw in table \
             ip filter, and each refuses what the other accepts: stop one of them"
                .to_owned(),
        )),
        (true, false) if find(NIXOS_NFTABLES_OUTPUT).is_some_and(|(chain, _)| chain.drops) => {
            Err(FirewallError::Unsupported(
                "the firewall of NixOS also filters what leaves this host \
                 (networking.firewall.filterOutput), and this version cannot open that"
                    .to_owned(),
            ))
        }
        (true, false) => Ok((Backend::NixosNftables, Some(NIXOS_NFTABLES))),
        (false, true) => Ok((Backend::NixosIptables, Some(NIXOS_IPTABLES))),
        (false, false) => match listing.iter().find_map(obstacle) {
            Some(text) => Err(FirewallError::Unsupported(text)),
            None => Ok((Backend::None, None)),
        },
    }
}

/// Whether packets for this host come to a chain: it is a base chain at hook input, or one from
/// which rules jump there.
fn is_reached(listing: &[(Chain, Vec<Rule>)], path: Path) -> bool {
    let beside = || listing.iter().filter(|(chain, _)| chain.is_beside(path));
    let base = beside().filter(|(chain, _)| chain.input);
    let mut reached: Vec<&str> = base.map(|(chain, _)| chain.name.as_str()).collect();
    let mut seen = 0_usize;
    while let Some(name) = reached.get(seen).copied() {
        let rules = beside().filter(|(chain, _)| chain.name == name).flat_map(|(_, rules)| rules);
        for jump in rules.flat_map(|rule| &rule.jumps) {
            if !reached.contains(&jump.as_str()) {
                reached.push(jump);
            }
        }
        seen = seen.saturating_add(1);
    }
    reached.contains(&path.chain)
}

fn place(family: Family, table: &str, chain: &str) -> String {
    let family = if family == Family::Inet { "inet" } else { "ip" };
    format!("table {family} {table}, chain {chain}")
}

/// Why this chain may refuse packets, in words.
fn obstacle((chain, rules): &(Chain, Vec<Rule>)) -> Option<String> {
    if !chain.input {
        return None;
    }
    let place = place(chain.family, &chain.table, &chain.name);
    if chain.table == "firewalld" {
        return Some(format!(
            "firewalld is active ({place}), and this version cannot ask it to open ports"
        ));
    }
    let known = format!(
        "the helper opens the firewall of NixOS, or the chain that [firewall] in {} names",
        config::FILE
    );
    if chain.drops {
        return Some(format!("{place} drops by policy, and {known}"));
    }
    let jump = rules.iter().find_map(|rule| rule.jumps.first());
    if let Some(target) = jump {
        return Some(match target.as_str() {
            "nixos-drop" => {
                format!(
                    "the firewall of NixOS is being reloaded ({place} jumps to nixos-drop): try again"
                )
            }
            _ => format!("{place} jumps to {target}, and {known}"),
        });
    }
    let refuses = rules.iter().any(|rule| rule.refuses);
    refuses.then(|| format!("{place} has a rule that may refuse packets, and {known}"))
}

/// The rules of an opening for the host's chain, one per port, at its head. Only forms that
/// iptables and nft print, compare and save exactly: no sets, no conntrack state.
pub fn head_rules(opening: &Opening, path: Path) -> Vec<Change> {
    let comment = table::comment(opening.mark);
    let rule = |(protocol, port)| {
        let family = match path.family {
            Family::Inet => expr::ipv4(),
            _ => Vec::new(),
        };
        let expressions = [
            family,
            expr::iifname(&opening.interface),
            expr::protocol(protocol),
            expr::dport(port),
            expr::packet_is_tagged(opening.mark.marks()),
            expr::accept(),
        ];
        let place = (path.table, path.chain);
        nft::add_rule(path.family, place, Place::Head, Some(&comment), expressions.concat())
    };
    table::ports(opening).into_iter().map(rule).collect()
}

/// Deletes those rules of a chain or table that carry the comment of a lease that `ended` names.
pub fn delete_rules(
    family: Family,
    table: &str,
    rules: &[Rule],
    ended: impl Fn(u8) -> bool,
) -> Vec<Change> {
    let ours = rules.iter().filter(|rule| rule.lease.is_some_and(&ended));
    ours.map(|rule| nft::delete_rule(family, (table, &rule.chain), rule.handle)).collect()
}

/// How many rules carry a lease's comment.
pub fn count(rules: &[Rule], mark: LeaseMark) -> usize {
    let slot = Some(mark.slot().get());
    rules.iter().filter(|rule| rule.lease == slot).count()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use netlink_packet_netfilter::nftables::Register;

    use super::*;
    use crate::mark::Marks;

    fn chain(path: Path, input: bool, drops: bool) -> Chain {
        Chain {
            family: path.family,
            table: path.table.to_owned(),
            name: path.chain.to_owned(),
            handle: 1,
            input,
            drops,
        }
    }

    fn rule(expressions: Vec<Expressions>) -> Rule {
        let list = expressions.into_iter().map(Into::into).collect();
        Rule::parse(vec![RuleAttribute::Expressions(list)])
    }

    fn verdict(code: Verdict) -> Rule {
        rule(vec![Expressions::Immediate(vec![Immediate::Data(DataAttribute::Verdict(vec![
            VerdictAttribute::Code(code),
        ]))])])
    }

    fn other(name: &str, attributes: Vec<DefaultNla>) -> Rule {
        rule(vec![Expressions::Other { expression_type: name.to_owned(), attributes }])
    }

    #[test]
    fn our_comment_is_read_in_nfts_form_and_no_other_is() {
        assert_eq!(lease_in_userdata(b"\0\x13portcullis lease 7\0"), Some(7));
        let after_another_type = b"\x01\x02ab\0\x15portcullis lease 255\0";
        assert_eq!(lease_in_userdata(after_another_type), Some(255));
        for foreign in [
            b"".as_slice(),
            b"\0",
            b"\0\x13portcullis lease",
            b"\0\x0bportcullis\0",
            b"\0\x15portcullis lease 256\0",
            b"\x01\x13portcullis lease 7\0",
            b"\0\x15not portcullis lease 7\0",
        ] {
            assert_eq!(lease_in_userdata(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn our_comment_is_read_in_iptables_form() {
        let attributes = |name: &[u8], text: &[u8]| {
            let mut info = text.to_vec();
            info.resize(256, 0);
            vec![
                DefaultNla::new(1, name.to_vec()),
                DefaultNla::new(2, vec![0, 0, 0, 0]),
                DefaultNla::new(3, info),
            ]
        };
        let ours = other("match", attributes(b"comment\0", b"portcullis lease 9"));
        assert_eq!((ours.lease, ours.refuses), (Some(9), false));
        let foreign = other("match", attributes(b"string\0", b"portcullis lease 9"));
        assert_eq!(foreign.lease, None);
    }

    #[test]
    fn what_may_refuse_a_packet_is_known_and_what_is_not_known_may() {
        let accept = Verdict::Other(1);
        for harmless in [accept, Verdict::Return, Verdict::Continue] {
            assert!(!verdict(harmless).refuses, "{harmless:?}");
        }
        let (drop, queue) = (Verdict::Other(0), Verdict::Other(3));
        for refusing in [drop, queue, Verdict::Jump, Verdict::Goto] {
            assert!(verdict(refusing).refuses, "{refusing:?}");
        }
        assert!(!other("ct", vec![]).refuses);
        assert!(other("reject", vec![]).refuses);
        assert!(other("invented", vec![]).refuses);
        let set = vec![Lookup::Set("s".to_owned())];
        assert!(!rule(vec![Expressions::Lookup(set.clone())]).refuses);
        let map = [set, vec![Lookup::DestinationRegister(Register::Verdict)]].concat();
        assert!(rule(vec![Expressions::Lookup(map)]).refuses);
    }

    #[test]
    fn an_iptables_firewall_counts_only_while_input_jumps_to_it() {
        let jump = Rule { jumps: vec!["nixos-fw".to_owned()], refuses: true, ..Rule::default() };
        let listing = |rules| {
            [
                (chain(NIXOS_IPTABLES_BASE, true, false), rules),
                (chain(NIXOS_IPTABLES, false, false), vec![]),
            ]
        };
        let found = judge(&listing(vec![jump]), None).unwrap();
        assert_eq!(found, (Backend::NixosIptables, Some(NIXOS_IPTABLES)));
        let stopped = judge(&listing(vec![]), None).unwrap();
        assert_eq!(stopped, (Backend::None, None));
    }

    #[test]
    fn an_nftables_firewall_counts_only_with_its_base_chain() {
        let allow = (chain(NIXOS_NFTABLES, false, false), vec![]);
        let base = (chain(NIXOS_NFTABLES_BASE, true, true), vec![]);
        let found = judge(&[base.clone(), allow.clone()], None).unwrap();
        assert_eq!(found, (Backend::NixosNftables, Some(NIXOS_NFTABLES)));
        assert_eq!(judge(&[allow], None).unwrap(), (Backend::None, None));
        let Err(FirewallError::Unsupported(text)) = judge(&[base], None) else {
            panic!("a base chain that drops was taken for none");
        };
        assert!(text.contains("inet nixos-fw, chain input drops by policy"), "{text}");
    }

    #[test]
    fn a_named_chain_counts_only_where_the_input_hook_leads_to_it() {
        let in_filter = |name| path(Family::IPv4, "filter", name);
        let to = |name: &str| vec![Rule { jumps: vec![name.to_owned()], ..Rule::default() }];
        let listing = |rules: [Vec<Rule>; 3]| {
            let [input, before, user] = rules;
            [
                (chain(in_filter("INPUT"), true, true), input),
                (chain(in_filter("before"), false, false), before),
                (chain(in_filter("user"), false, false), user),
                // One of the same name elsewhere leads nowhere.
                (chain(path(Family::Inet, "filter", "before"), true, true), to("user")),
            ]
        };
        let judged = |rules, name| judge(&listing(rules), Some(in_filter(name)));
        let through = || [to("before"), to("user"), to("before")];
        for name in ["INPUT", "before", "user"] {
            let found = judged(through(), name).unwrap();
            assert_eq!(found, (Backend::NamedChain, Some(in_filter(name))));
        }
        for (rules, name) in [
            (through(), "absent"),
            ([to("before"), vec![], vec![]], "user"),
            ([vec![], to("user"), vec![]], "user"),
        ] {
            let Err(FirewallError::Unsupported(text)) = judged(rules, name) else {
                panic!("{name} is not reached");
            };
            assert!(text.contains(&format!("table ip filter, chain {name}, which [firewall]")));
        }
        // It counts alone: an administrator who names one has decided.
        let nixos = [
            (chain(NIXOS_NFTABLES, false, false), vec![]),
            (chain(NIXOS_NFTABLES_BASE, true, true), vec![]),
        ];
        assert!(judge(&nixos, Some(in_filter("INPUT"))).is_err());
    }

    #[test]
    fn only_rules_of_ended_leases_are_deleted_each_in_its_chain() {
        let of = |handle, lease| Rule { chain: "c".to_owned(), handle, lease, ..Rule::default() };
        let rules = [of(4, None), of(5, Some(1)), of(6, Some(2))];
        let changes = delete_rules(Family::Inet, "t", &rules, |slot| slot == 2);
        assert_eq!(changes, [nft::delete_rule(Family::Inet, ("t", "c"), 6)]);
        assert_eq!(count(&rules, Marks::default().lease(NonZeroU8::MIN)), 1);
    }
}
