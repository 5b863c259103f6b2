//! The host's own firewall: which one it is, and our rules in it.
//!
//! Guarantees: a firewall that is not known is never taken for none, and nothing is guessed: `None`
//! is said only when no input chain of the families ip and inet can refuse a packet. Our rules are
//! found by their comment, never by a remembered handle. All but [`has_legacy_filter`] is pure: listings
//! in, findings out. Not looked at: chains at other hooks (prerouting, ingress).

use std::{fs, io, path::PathBuf};

use super::{
    Backend, Opening,
    expr::{self, NF_ACCEPT, NF_DROP},
    nft::{self, AT_HEAD, Change, Family, INPUT, OUTPUT, Path},
    table,
};
use crate::{
    attribute::{Attributes, until_nul},
    config::{self, NamedChain},
    limits,
    mark::LeaseMark,
    request::word,
};

/// The chain of NixOS' nftables firewall that openings belong into, and the base chain before it.
pub const NIXOS_NFTABLES: Path<'_> = path(Family::INET, "nixos-fw", "input-allow");
const NIXOS_NFTABLES_BASE: Path<'_> = path(Family::INET, "nixos-fw", "input");
/// What filters outgoing packets there (`networking.firewall.filterOutput`): it would refuse our
/// answers, which have no conntrack entry.
const NIXOS_NFTABLES_OUTPUT: Path<'_> = path(Family::INET, "nixos-fw", "output");
/// The chain of NixOS' iptables firewall, to which INPUT jumps.
pub const NIXOS_IPTABLES: Path<'_> = path(Family::IPV4, "filter", "nixos-fw");

/// The base chain of firewalld, with its nftables back end.
pub const FIREWALLD: Path<'_> = path(Family::INET, "firewalld", "filter_INPUT");

const fn path<'a>(family: Family, table: &'a str, name: &'a str) -> Path<'a> {
    Path { family, table, name }
}

/// The chain that the configuration names. Its names live as long as the process, as those of
/// the firewalls that are known do: there is one configuration.
pub fn named(chain: &NamedChain) -> Path<'static> {
    let family = match chain.family {
        config::Family::Ip => Family::IPV4,
        config::Family::Inet => Family::INET,
    };
    let [table, chain] = [&chain.table, &chain.chain].map(|name| &*name.as_str().to_owned().leak());
    path(family, table, chain)
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
    /// The hook that it is a base chain at, if IPv4 passes there.
    pub hook: Option<u32>,
    /// Whether its policy is to drop.
    pub drops: bool,
}

impl Chain {
    /// From the kernel's attributes.
    pub fn read(family: Family, attributes: &Attributes<'_>) -> io::Result<Self> {
        let hook = attributes.nested(4)?.number(1)?;
        Ok(Self {
            family,
            table: attributes.text(1),
            name: attributes.text(3),
            handle: attributes.array(2)?.map_or(0, u64::from_be_bytes),
            hook: hook.filter(|_| [Family::IPV4, Family::INET].contains(&family)),
            drops: attributes.number(5)? == Some(NF_DROP),
        })
    }

    /// Where it is.
    pub fn path(&self) -> Path<'_> {
        path(self.family, &self.table, &self.name)
    }

    /// Whether it is a base chain at hook input.
    pub fn is_input(&self) -> bool {
        self.hook == Some(INPUT)
    }

    /// Whether it is in our own table.
    fn is_ours(&self) -> bool {
        self.family == table::FAMILY && self.table == table::NAME
    }

    /// Whether it is in the table of this place.
    fn is_beside(&self, path: Path<'_>) -> bool {
        self.family == path.family && self.table == path.table
    }
}

/// A rule as the kernel lists it, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
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
    pub fn read(family: Family, attributes: &Attributes<'_>) -> io::Result<Self> {
        let mut rule = Self {
            family,
            table: attributes.text(1),
            chain: attributes.text(2),
            handle: attributes.array(3)?.map_or(0, u64::from_be_bytes),
            lease: lease_in_userdata(attributes.get(7).unwrap_or_default()),
            ..Self::default()
        };
        for (_, expression) in attributes.nested(4)?.iter() {
            let expression = Attributes::read(expression)?;
            rule.read_expression(&expression.text(expr::NAME), &expression.nested(expr::DATA)?)?;
        }
        Ok(rule)
    }

    fn read_expression(&mut self, name: &str, data: &Attributes<'_>) -> io::Result<()> {
        /// Conditions and statements that never refuse a packet.
        const HARMLESS: &str = "bitwise byteorder cmp connlimit counter ct exthdr fib hash last limit \
            log match meta notrack payload quota range rt socket";
        const MAP: u16 = 3;
        match name {
            "immediate" => {
                let verdict = data.nested(expr::IMMEDIATE_DATA)?.nested(expr::VERDICT)?;
                let code = verdict.number(expr::CODE)?;
                self.refuses |= code.is_some_and(|code| !GOES_ON.contains(&code));
                self.jumps.extend(verdict.get(expr::CHAIN).map(until_nul));
            }
            // A verdict map: its elements are not read here.
            "lookup" => self.refuses |= data.get(MAP).is_some(),
            _ => self.refuses |= HARMLESS.split(' ').all(|one| one != name),
        }
        // What iptables-restore makes of our comment: the xt match of that name (`NFTA_MATCH_NAME`),
        // whose data (`NFTA_MATCH_INFO`) is the text (`struct xt_comment_info`).
        if name == "match" && data.text(1) == "comment" && self.lease.is_none() {
            self.lease = lease_in_comment(&data.text(3));
        }
        Ok(())
    }
}

/// Verdicts after which a packet is accepted or looked at further: `NFT_CONTINUE`, `NFT_BREAK`,
/// `NFT_RETURN`.
const GOES_ON: [u32; 4] =
    [NF_ACCEPT, (-1_i32).cast_unsigned(), (-2_i32).cast_unsigned(), (-5_i32).cast_unsigned()];

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
            return lease_in_comment(&until_nul(value));
        }
        bytes = following;
    }
    None
}

/// Whether legacy iptables, which is no part of nf_tables, had a table `filter` when the helper was
/// started: only root may list its tables (/proc/net/ip_tables_names), so systemd hands the list over
/// as a credential (systemd.exec(5), `LoadCredential=`).
pub fn has_legacy_filter() -> bool {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let list =
        directory.and_then(|directory| fs::read_to_string(directory.join("ip-tables-names")).ok());
    list.is_some_and(|list| list.lines().any(|table| table == "filter"))
}

/// Chains whose rules decide which firewall this is.
pub fn decisive(chain: &Chain, named: Option<Path<'_>>) -> bool {
    let known = [NIXOS_NFTABLES, NIXOS_NFTABLES_OUTPUT, NIXOS_IPTABLES];
    // The way from the hook to a named chain may lead through any other of its table.
    let on_the_way = named.is_some_and(|path| chain.is_beside(path));
    !chain.is_ours() && (chain.is_input() || known.contains(&chain.path()) || on_the_way)
}

/// Which firewall this is: the back end, and the chain that our rules go into. A named chain is the
/// administrator's word, and counts alone. `legacy`: [`has_legacy_filter`].
///
/// # Errors
/// Why it cannot be opened, with what was found.
pub fn judge(
    listing: &[(Chain, Vec<Rule>)],
    named: Option<Path<'static>>,
    legacy: bool,
) -> Result<(Backend, Option<Path<'static>>), String> {
    let unsupported = |text: &str| Err(text.to_owned());
    if let Some(path) = named {
        return match is_reached(listing, path) {
            true => Ok((Backend::NamedChain, Some(path))),
            false => Err(format!(
                "no input chain leads to {}, which [firewall] in {} names: it is not there, or no \
                 rule jumps to it (jumps in a verdict map do not count)",
                place(path),
                config::FILE
            )),
        };
    }
    let is = |path, what: fn(&Chain) -> bool| {
        listing.iter().any(|(chain, _)| chain.path() == path && what(chain))
    };
    let nftables = is(NIXOS_NFTABLES, |_| true) && is(NIXOS_NFTABLES_BASE, Chain::is_input);
    match (nftables, is_reached(listing, NIXOS_IPTABLES)) {
        (true, true) => unsupported(
            "both firewalls of NixOS are active, table inet nixos-fw and chain nixos-fw in table \
             ip filter, and each refuses what the other accepts: stop one of them",
        ),
        (true, false) if is(NIXOS_NFTABLES_OUTPUT, |output| output.drops) => unsupported(
            "the firewall of NixOS also filters what leaves this host \
             (networking.firewall.filterOutput), and this version cannot open that",
        ),
        (true, false) => Ok((Backend::NixosNftables, Some(NIXOS_NFTABLES))),
        (false, true) => Ok((Backend::NixosIptables, Some(NIXOS_IPTABLES))),
        (false, false) => match listing.iter().find_map(obstacle) {
            Some(text) => Err(text),
            None if is(FIREWALLD, Chain::is_input) => Ok((Backend::Firewalld, Some(FIREWALLD))),
            None if legacy => unsupported(
                "legacy iptables (iptables-legacy) filters on this host, and this version cannot \
                 open that: use its nf_tables variant, or name the chain that decides under \
                 [firewall] in the configuration",
            ),
            None => Ok((Backend::None, None)),
        },
    }
}

/// Whether packets for this host come to a chain: it is a base chain at hook input, or one from
/// which rules jump there.
fn is_reached(listing: &[(Chain, Vec<Rule>)], path: Path<'_>) -> bool {
    let beside = || listing.iter().filter(|(chain, _)| chain.is_beside(path));
    let base = beside().filter(|(chain, _)| chain.is_input());
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
    reached.contains(&path.name)
}

fn place(path: Path<'_>) -> String {
    let family = if path.family == Family::INET { "inet" } else { "ip" };
    format!("table {family} {}, chain {}", path.table, path.name)
}

/// Why this chain may refuse packets, in words.
fn obstacle((chain, rules): &(Chain, Vec<Rule>)) -> Option<String> {
    if !chain.is_input() || chain.path() == FIREWALLD {
        return None;
    }
    let place = place(chain.path());
    let what = if chain.drops {
        "drops by policy".to_owned()
    } else if let Some(target) = rules.iter().find_map(|rule| rule.jumps.first()) {
        if target == "nixos-drop" {
            return Some(format!(
                "the firewall of NixOS is being reloaded ({place} jumps to nixos-drop): try again"
            ));
        }
        format!("jumps to {target}")
    } else if rules.iter().any(|rule| rule.refuses) {
        "has a rule that may refuse packets".to_owned()
    } else {
        return None;
    };
    Some(format!(
        "{place} {what}, and the helper opens the firewall of NixOS, or the chain that [firewall] \
         in {} names",
        config::FILE
    ))
}

/// Of base chains that drop what they do not name, those that an opening does not open, in words: it is
/// dropped there all the same. `opened`: the chain that our rules go into. Without one, an input chain is
/// an obstacle already, of which `judge` tells.
pub fn other_drops(chains: &[Chain], opened: Option<Path<'_>>) -> Vec<String> {
    let closed = chains.iter().filter(|chain| chain.hook.is_some() && chain.drops);
    let told = closed.filter(|chain| !chain.is_ours()).filter(|chain| match opened {
        Some(path) => !chain.is_beside(path) || chain.hook == Some(OUTPUT),
        None => !chain.is_input(),
    });
    told.take(limits::DROPS).map(|chain| place(chain.path())).collect()
}

/// The rules of an opening for the host's chain, one per port, at its head. Only forms that
/// iptables and nft print, compare and save exactly: no sets, no conntrack state.
pub fn head_rules(opening: &Opening, path: Path<'_>) -> Vec<Change> {
    let comment = table::comment(opening.mark);
    let (interface, marks) = (&opening.interface, opening.mark.marks);
    let (tag, mask) = (marks.tag(), marks.mask());
    let family = if path.family == Family::INET { "nfproto ipv4, " } else { "" };
    let rule = |(protocol, port)| {
        let wanted = format!("iifname {interface}, protocol {}, dport {port}", word(protocol));
        let phrases = format!("{family}{wanted}, mark & {mask} = {tag}, accept");
        nft::add_rule(path, AT_HEAD, Some(&comment), &phrases)
    };
    opening.ports().map(rule).collect()
}

/// Deletes those rules that carry the comment of a lease that `ended` names.
pub fn delete_rules<'a>(
    rules: impl IntoIterator<Item = &'a Rule>,
    ended: impl Fn(u8) -> bool,
) -> Vec<Change> {
    let ours = rules.into_iter().filter(|rule| rule.lease.is_some_and(&ended));
    let place = |rule: &'a Rule| path(rule.family, &rule.table, &rule.chain);
    ours.map(|rule| nft::delete_rule(place(rule), rule.handle)).collect()
}

/// How many rules carry a lease's comment.
pub fn count(rules: &[Rule], mark: LeaseMark) -> usize {
    let slot = Some(mark.slot.get());
    rules.iter().filter(|rule| rule.lease == slot).count()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use super::*;
    use crate::{
        attribute::{bytes, nested, number, text},
        firewall::nft::PREROUTING,
        mark::Marks,
    };

    const NIXOS_IPTABLES_BASE: Path<'_> = path(Family::IPV4, "filter", "INPUT");

    fn chain(path: Path<'_>, input: bool, drops: bool) -> Chain {
        Chain {
            family: path.family,
            table: path.table.to_owned(),
            name: path.name.to_owned(),
            handle: 1,
            hook: input.then_some(INPUT),
            drops,
        }
    }

    /// A rule of one expression, from the bytes that the kernel lists.
    fn rule(name: &str, data: &[Vec<u8>]) -> Rule {
        let expression = nested(1, &[text(1, name), nested(2, data)]);
        Rule::read(Family::INET, &Attributes::read(&nested(4, &[expression])).unwrap()).unwrap()
    }

    fn verdict(code: i32) -> Rule {
        let code = number(1, code.cast_unsigned());
        rule("immediate", &[number(1, 0), nested(2, &[nested(2, &[code])])])
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
            [bytes(1, name), bytes(2, &[0, 0, 0, 0]), bytes(3, &info)]
        };
        let ours = rule("match", &attributes(b"comment\0", b"portcullis lease 9"));
        assert_eq!((ours.lease, ours.refuses), (Some(9), false));
        let foreign = rule("match", &attributes(b"string\0", b"portcullis lease 9"));
        assert_eq!(foreign.lease, None);
    }

    #[test]
    fn what_may_refuse_a_packet_is_known_and_what_is_not_known_may() {
        let (accept, returns, goes_on, breaks) = (1, -5, -1, -2);
        for harmless in [accept, returns, goes_on, breaks] {
            assert!(!verdict(harmless).refuses, "{harmless}");
        }
        let (drop, queue, jump, goto) = (0, 3, -3, -4);
        for refusing in [drop, queue, jump, goto] {
            assert!(verdict(refusing).refuses, "{refusing}");
        }
        for harmless in ["bitwise", "byteorder", "ct", "limit", "match", "socket"] {
            assert!(!rule(harmless, &[]).refuses, "{harmless}");
        }
        for refusing in ["reject", "invented", "target", "bit", "ct exthdr", ""] {
            assert!(rule(refusing, &[]).refuses, "{refusing}");
        }
        let set = text(1, "s");
        assert!(!rule("lookup", &[set.clone(), number(2, 1)]).refuses);
        assert!(rule("lookup", &[set, number(2, 1), number(3, 0)]).refuses);
        let jump = nested(2, &[nested(2, &[number(1, (-3_i32).cast_unsigned()), text(2, "c")])]);
        assert_eq!(rule("immediate", &[number(1, 0), jump]).jumps, ["c"]);
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
        let found = judge(&listing(vec![jump]), None, false).unwrap();
        assert_eq!(found, (Backend::NixosIptables, Some(NIXOS_IPTABLES)));
        let stopped = judge(&listing(vec![]), None, false).unwrap();
        assert_eq!(stopped, (Backend::None, None));
    }

    #[test]
    fn an_nftables_firewall_counts_only_with_its_base_chain() {
        let allow = (chain(NIXOS_NFTABLES, false, false), vec![]);
        let base = (chain(NIXOS_NFTABLES_BASE, true, true), vec![]);
        let found = judge(&[base.clone(), allow.clone()], None, false).unwrap();
        assert_eq!(found, (Backend::NixosNftables, Some(NIXOS_NFTABLES)));
        assert_eq!(judge(&[allow], None, false).unwrap(), (Backend::None, None));
        let Err(text) = judge(&[base], None, false) else {
            panic!("a base chain that drops was taken for none");
        };
        assert!(text.contains("inet nixos-fw, chain input drops by policy"), "{text}");
    }

    #[test]
    fn a_named_chain_counts_only_where_the_input_hook_leads_to_it() {
        let in_filter = |name| path(Family::IPV4, "filter", name);
        let to = |name: &str| vec![Rule { jumps: vec![name.to_owned()], ..Rule::default() }];
        let listing = |rules: [Vec<Rule>; 3]| {
            let [input, before, user] = rules;
            [
                (chain(in_filter("INPUT"), true, true), input),
                (chain(in_filter("before"), false, false), before),
                (chain(in_filter("user"), false, false), user),
                // One of the same name elsewhere leads nowhere.
                (chain(path(Family::INET, "filter", "before"), true, true), to("user")),
            ]
        };
        let judged = |rules, name| judge(&listing(rules), Some(in_filter(name)), false);
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
            let Err(text) = judged(rules, name) else {
                panic!("{name} is not reached");
            };
            assert!(text.contains(&format!("table ip filter, chain {name}, which [firewall]")));
        }
        // It counts alone: an administrator who names one has decided.
        let nixos = [
            (chain(NIXOS_NFTABLES, false, false), vec![]),
            (chain(NIXOS_NFTABLES_BASE, true, true), vec![]),
        ];
        assert!(judge(&nixos, Some(in_filter("INPUT")), false).is_err());
    }

    #[test]
    fn chains_that_drop_beside_the_one_that_is_opened_are_told() {
        let at = |family, table, name, hook| {
            let chain = chain(path(family, table, name), false, true);
            Chain { hook: Some(hook), ..chain }
        };
        let closed = [
            at(Family::INET, "nixos-fw", "input", INPUT),
            at(Family::INET, "nixos-fw", "rpfilter", PREROUTING),
            at(Family::INET, "nixos-fw", "output", OUTPUT),
            at(Family::INET, "vpn", "output", OUTPUT),
            at(Family::IPV4, "filter", "INPUT", INPUT),
        ];
        assert_eq!(
            other_drops(&closed, Some(NIXOS_NFTABLES)),
            [
                "table inet nixos-fw, chain output",
                "table inet vpn, chain output",
                "table ip filter, chain INPUT",
            ]
        );
        // Without a chain to open, those at input are the obstacle that is told of.
        assert_eq!(other_drops(&closed, None).len(), 3);
        let ours = at(table::FAMILY, table::NAME, "guard", OUTPUT);
        let open = Chain { drops: false, ..at(Family::INET, "vpn", "output", OUTPUT) };
        let elsewhere = chain(path(Family::INET, "vpn", "rules"), false, true);
        assert!(other_drops(&[ours, open, elsewhere], None).is_empty());
        let many = vec![at(Family::INET, "vpn", "output", OUTPUT); 100];
        assert_eq!(other_drops(&many, None).len(), limits::DROPS);
    }

    #[test]
    fn only_rules_of_ended_leases_are_deleted_each_in_its_chain() {
        let of = |handle, lease| {
            let (table, chain) = ("t".to_owned(), "c".to_owned());
            Rule { family: Family::INET, table, chain, handle, lease, ..Rule::default() }
        };
        let rules = [of(4, None), of(5, Some(1)), of(6, Some(2))];
        let changes = delete_rules(&rules, |slot| slot == 2);
        assert_eq!(changes, [nft::delete_rule(path(Family::INET, "t", "c"), 6)]);
        assert_eq!(count(&rules, Marks::default().lease(NonZeroU8::MIN)), 1);
    }
}
