//! What the helper reads: requests from the bus, answers of the kernel, the site's configuration.

use std::{collections::HashMap, path::Path};

use portcullis_dbus::Error;
use portcullis_helper::{
    attribute::Attributes,
    config,
    firewall::{
        Backend,
        host::{self, Chain, Rule},
        nft,
    },
    interface::InterfaceName,
    limits,
    netlink::{self, Message},
    request::Request,
    rtnetlink,
    sockdiag::{self, Protocol},
};
use zbus::{
    OwnedVariant,
    wire::{
        BE, LE,
        serialized::{Context, Data},
    },
};

/// The body of a call of `Open`: the first octet is the byte order, the rest an `a{sv}`. Whatever the
/// bus library makes of it is a request within its limits, or InvalidRequest with a sentence of ours.
pub fn request(octets: &[u8]) {
    let Some((order, body)) = octets.split_first() else {
        return;
    };
    let order = if order & 1 == 0 { LE } else { BE };
    let data = Data::new(body, Context::new(order, 0));
    let Ok((options, _)) = data.deserialize::<HashMap<String, OwnedVariant>>() else {
        return;
    };
    match Request::parse(&options, limits::MAX_SECONDS_CEILING) {
        Ok(request) => {
            assert!(InterfaceName::parse(request.interface.as_str()).is_some());
            assert!(request.http.is_none_or(|port| port >= limits::HTTP_PORT_FLOOR));
            let seconds = limits::MAX_SECONDS_FLOOR..=limits::MAX_SECONDS_CEILING;
            assert!(seconds.contains(&request.max_seconds));
            assert!((1..=4).contains(&request.ports().count()));
            assert!(options.len() <= limits::REQUEST_KEYS);
            for text in request.details() {
                assert!(text.bytes().all(|octet| octet.is_ascii_graphic()), "{text:?}");
            }
        }
        Err(Error::InvalidRequest(sentence)) => {
            assert!(sentence.len() < 200 && sentence.is_ascii(), "{sentence}");
            let text = |value: &OwnedVariant| <&str>::try_from(value).ok().map(str::to_owned);
            let theirs = options.keys().cloned().chain(options.values().filter_map(text));
            // A caller's text of some length is never repeated.
            let repeated =
                theirs.into_iter().find(|text| text.len() > 12 && sentence.contains(text.as_str()));
            assert_eq!(repeated, None, "{sentence}");
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// The messages of a netlink datagram, each with its body.
fn messages(datagram: &[u8]) -> impl Iterator<Item = Message> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let (_, message, following) = netlink::decode(rest).ok()?;
        assert!(following.len() + message.body.len() < rest.len(), "reading gets on");
        rest = following;
        Some(message)
    })
}

/// A datagram of netlink: each body is read as a link, as an address, as a socket and as an error.
/// What is read is bounded by what came.
pub fn netlink(octets: &[u8]) {
    for message in messages(octets) {
        let body = message.body.as_slice();
        let _ = netlink::error_code(body);
        if let Ok((link, _)) = rtnetlink::parse_link(body) {
            assert!(body.len() >= 16);
            // Each octet that is no UTF-8 is shown by three.
            assert!(link.name.len() <= 3 * body.len() && !link.name.contains('\0'));
            let kind = link.master.map_or(0, |master| master.kind.len());
            assert!(kind <= 3 * body.len());
        }
        if let Ok((_, Some(address))) = rtnetlink::parse_address(body) {
            let own = address.octets();
            assert!(body.windows(4).any(|four| four == own));
        }
        if let Ok(found) = sockdiag::parse(Protocol::Udp, body) {
            assert!(body.len() >= 72 && found.address.is_ipv6() == (body[0] == 10));
        }
        if let Ok(attributes) = Attributes::read(body) {
            let read: usize = attributes.iter().map(|(_, value)| value.len() + 4).sum();
            assert!(read <= body.len());
        }
    }
}

/// A listing of nf_tables: chains (NFT_MSG_NEWCHAIN) and the rules that follow them. No firewall is
/// taken for none that has an input chain which drops by policy, has a rule that may refuse, or jumps.
pub fn nftables(octets: &[u8]) {
    const NEW_CHAIN: u16 = 0x0a03;
    let mut listing: Vec<(Chain, Vec<Rule>)> = Vec::new();
    for message in messages(octets) {
        let Ok((family, attributes)) = nft::parse(&message) else {
            continue;
        };
        if message.kind == NEW_CHAIN {
            listing.extend(Chain::read(family, &attributes).map(|chain| (chain, Vec::new())));
        } else if let (Ok(rule), Some((_, rules))) =
            (Rule::read(family, &attributes), listing.last_mut())
        {
            rules.push(rule);
        }
    }
    listing.retain(|(chain, _)| host::decisive(chain, None));
    if let Ok((backend, path)) = host::judge(&listing, None, false) {
        assert_eq!(path.is_none(), backend == Backend::None);
        if backend == Backend::None {
            let refusing = listing.iter().find(|(chain, rules)| {
                let harmful = |rule: &Rule| rule.refuses || !rule.jumps.is_empty();
                chain.is_input() && (chain.drops || rules.iter().any(harmful))
            });
            assert_eq!(refusing, None);
        }
    }
    let named = host::NIXOS_IPTABLES;
    if let Ok((backend, path)) = host::judge(&listing, Some(named), false) {
        assert_eq!((backend, path), (Backend::NamedChain, Some(named)));
        assert!(listing.iter().any(|(chain, _)| chain.is_input()));
    }
    for (_, rules) in &listing {
        let deleted = host::delete_rules(rules, |_| true);
        let ours = rules.iter().filter(|rule| rule.lease.is_some());
        assert_eq!(deleted.len(), ours.count(), "only rules with our comment are deleted");
    }
}

/// A configuration file: what is accepted is within the limits, what is not is one line with the
/// file's name.
pub fn config(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else {
        return;
    };
    match config::check_text(Path::new("helper.toml"), text) {
        Ok(config) => {
            let seconds = limits::MAX_SECONDS_FLOOR..=limits::MAX_SECONDS_CEILING;
            assert!(seconds.contains(&config.max_seconds));
            for count in [config.leases, config.leases_per_user] {
                assert!((1..=limits::LEASES_CEILING).contains(&count));
            }
            let questions = config.questions_per_user;
            assert!((1..=limits::QUESTIONS_CEILING).contains(&questions));
            assert_ne!(config.marks.tag() & config.marks.mask(), 0);
            let eth0 = InterfaceName::parse("eth0").unwrap();
            let _ = config.interfaces.iter().any(|glob| glob.matches(&eth0));
        }
        Err(error) => {
            let line = error.to_string();
            assert!(line.starts_with("helper.toml:"), "{line}");
            assert!(!line.contains('\n'), "{line:?}");
        }
    }
}
