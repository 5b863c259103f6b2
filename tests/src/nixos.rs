//! NixOS' own firewall, both flavours, with the chain layout and the command order of its modules
//! (nixpkgs: nixos/modules/services/networking/firewall-{iptables,nftables}.nix), in our own words.
//!
//! Faithful where it matters to somebody who adds a rule: which chains are flushed when, `set -e`,
//! the drop chain around a reload, the fall through to "stop" when a reload fails, and one
//! transaction that deletes and makes the table again for nftables. Both IP versions.

use std::fmt::Write;

use crate::{Result, netns::Netns};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `firewall.service` with iptables (nf_tables variant): NixOS' default.
    Iptables,
    /// `nftables.service` with `table inet nixos-fw`.
    Nftables,
}

impl Flavour {
    /// Both, for tests that run once for each.
    pub const BOTH: [Self; 2] = [Self::Iptables, Self::Nftables];
}

/// The part of `networking.firewall.*` that tests vary. The default is that of NixOS.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `allowedTCPPorts`.
    pub allowed_tcp: Vec<u16>,
    /// `allowedUDPPorts`.
    pub allowed_udp: Vec<u16>,
    /// `rejectPackets`: refuse with an error instead of silence.
    pub reject: bool,
    /// `extraCommands` (iptables: shell) or `extraInputRules` (nftables: rules).
    pub extra: String,
    /// `extraStopCommands` (iptables only).
    pub extra_stop: String,
}

/// Starts it.
pub fn start(netns: &Netns, flavour: Flavour, settings: &Settings) -> Result<()> {
    netns.sh(&start_script(flavour, settings)).map(|_| ())
}

/// Reloads it, with these settings from now on.
pub fn reload(netns: &Netns, flavour: Flavour, settings: &Settings) -> Result<()> {
    netns.sh(&reload_script(flavour, settings)).map(|_| ())
}

/// Stops it: everything is let in.
pub fn stop(netns: &Netns, flavour: Flavour, settings: &Settings) -> Result<()> {
    netns.sh(&stop_script(flavour, settings)).map(|_| ())
}

/// What the unit runs on start, for `sh`.
#[must_use]
pub fn start_script(flavour: Flavour, settings: &Settings) -> String {
    match flavour {
        Flavour::Iptables => format!("set -e\n{BOTH_VERSIONS}{}", iptables_rules(settings)),
        Flavour::Nftables => nft_transaction(settings),
    }
}

/// What the unit runs on reload, for `sh`. Ends with an error when the firewall could not be made
/// again; with iptables the machine then has none.
#[must_use]
pub fn reload_script(flavour: Flavour, settings: &Settings) -> String {
    match flavour {
        // The start script is a program of its own there: `set -e` has no force inside `if` otherwise.
        Flavour::Iptables => format!(
            "set -e
{BOTH_VERSIONS}start() {{
sh <<'END-OF-START'
{start}END-OF-START
}}
ip46tables -D INPUT -j nixos-drop 2>/dev/null || true
ip46tables -F nixos-drop 2>/dev/null || true
ip46tables -X nixos-drop 2>/dev/null || true
ip46tables -N nixos-drop
ip46tables -A nixos-drop -j DROP
ip46tables -A INPUT -j nixos-drop
{extra_stop}
if start; then
  ip46tables -D INPUT -j nixos-drop 2>/dev/null || true
  ip46tables -F nixos-drop 2>/dev/null || true
  ip46tables -X nixos-drop 2>/dev/null || true
else
  echo 'the firewall could not be made again: stopping it' >&2
  {stop}
  exit 1
fi
",
            start = start_script(flavour, settings),
            extra_stop = settings.extra_stop,
            stop = iptables_stop(settings),
        ),
        Flavour::Nftables => nft_transaction(settings),
    }
}

/// What the unit runs on stop, for `sh`.
#[must_use]
pub fn stop_script(flavour: Flavour, settings: &Settings) -> String {
    match flavour {
        Flavour::Iptables => format!("set -e\n{BOTH_VERSIONS}{}", iptables_stop(settings)),
        Flavour::Nftables => format!("nft '{FORGET_TABLE}'\n"),
    }
}

/// Every rule is made for both IP versions unless it is only meant for one.
const BOTH_VERSIONS: &str = "ip46tables() { iptables -w \"$@\"; ip6tables -w \"$@\"; }\n";

/// Deletes the table whether or not it is there.
const FORGET_TABLE: &str = "table inet nixos-fw; delete table inet nixos-fw;";

/// The chains and rules, from nothing, in the order of the start script.
fn iptables_rules(settings: &Settings) -> String {
    let mut script = String::from(
        "ip46tables -D INPUT -j nixos-fw 2>/dev/null || true
for chain in nixos-fw nixos-fw-accept nixos-fw-log-refuse nixos-fw-refuse; do
  ip46tables -F $chain 2>/dev/null || true
  ip46tables -X $chain 2>/dev/null || true
done
ip46tables -N nixos-fw-accept
ip46tables -A nixos-fw-accept -j ACCEPT
ip46tables -N nixos-fw-refuse
",
    );
    script.push_str(if settings.reject {
        "ip46tables -A nixos-fw-refuse -p tcp ! --syn -j REJECT --reject-with tcp-reset
ip46tables -A nixos-fw-refuse -j REJECT
"
    } else {
        "ip46tables -A nixos-fw-refuse -j DROP\n"
    });
    script.push_str(
        "ip46tables -N nixos-fw-log-refuse
ip46tables -A nixos-fw-log-refuse -p tcp --syn -j LOG --log-level info --log-prefix 'refused connection: '
ip46tables -A nixos-fw-log-refuse -m pkttype ! --pkt-type unicast -j nixos-fw-refuse
ip46tables -A nixos-fw-log-refuse -j nixos-fw-refuse
ip46tables -N nixos-fw
ip46tables -t mangle -D PREROUTING -j nixos-fw-rpfilter 2>/dev/null || true
ip46tables -t mangle -F nixos-fw-rpfilter 2>/dev/null || true
ip46tables -t mangle -X nixos-fw-rpfilter 2>/dev/null || true
ip46tables -t mangle -N nixos-fw-rpfilter
ip46tables -t mangle -A nixos-fw-rpfilter -m rpfilter --validmark -j RETURN
iptables -w -t mangle -A nixos-fw-rpfilter -p udp --sport 67 --dport 68 -j RETURN
iptables -w -t mangle -A nixos-fw-rpfilter -s 0.0.0.0 -d 255.255.255.255 -p udp --sport 68 --dport 67 -j RETURN
ip46tables -t mangle -A nixos-fw-rpfilter -j DROP
ip46tables -t mangle -A PREROUTING -j nixos-fw-rpfilter
ip46tables -A nixos-fw -i lo -j nixos-fw-accept
for interface in ve-+ vz-+ vt-+ ns-+; do
  ip46tables -A nixos-fw -p udp --dport 67 -i $interface -j nixos-fw-accept
done
ip46tables -A nixos-fw -m conntrack --ctstate ESTABLISHED,RELATED -j nixos-fw-accept
",
    );
    for (protocol, ports) in [("tcp", &settings.allowed_tcp), ("udp", &settings.allowed_udp)] {
        for port in ports {
            line(
                &mut script,
                format_args!(
                    "ip46tables -A nixos-fw -p {protocol} --dport {port} -j nixos-fw-accept"
                ),
            );
        }
    }
    script.push_str(
        "iptables -w -A nixos-fw -p icmp --icmp-type echo-request -j nixos-fw-accept
ip6tables -A nixos-fw -p icmpv6 --icmpv6-type redirect -j DROP
ip6tables -A nixos-fw -p icmpv6 --icmpv6-type 139 -j DROP
ip6tables -A nixos-fw -p icmpv6 -j nixos-fw-accept
ip6tables -A nixos-fw -d fe80::/64 -p udp --dport 546 -j nixos-fw-accept
",
    );
    line(&mut script, format_args!("{}", settings.extra));
    script.push_str(
        "ip46tables -A nixos-fw -j nixos-fw-log-refuse
ip46tables -A INPUT -j nixos-fw
",
    );
    script
}

/// The chains stay behind; nothing jumps to them any more.
fn iptables_stop(settings: &Settings) -> String {
    format!(
        "ip46tables -D INPUT -j nixos-drop 2>/dev/null || true
ip46tables -D INPUT -j nixos-fw 2>/dev/null || true
ip46tables -t mangle -D PREROUTING -j nixos-fw-rpfilter 2>/dev/null || true
{}
",
        settings.extra_stop
    )
}

/// Start and reload alike: one transaction that deletes the table and makes it again.
fn nft_transaction(settings: &Settings) -> String {
    format!(
        "set -e
nft -f - <<'END-OF-RULES'
{FORGET_TABLE}
{}END-OF-RULES
",
        nft_table(settings)
    )
}

/// The table, as `nft -f` reads it.
fn nft_table(settings: &Settings) -> String {
    let mut allow = String::new();
    for (protocol, ports) in [("tcp", &settings.allowed_tcp), ("udp", &settings.allowed_udp)] {
        if !ports.is_empty() {
            let list: Vec<String> = ports.iter().map(u16::to_string).collect();
            line(&mut allow, format_args!("    {protocol} dport {{ {} }} accept", list.join(", ")));
        }
    }
    let reject = if settings.reject {
        "    meta l4proto tcp reject with tcp reset\n    reject\n"
    } else {
        ""
    };
    format!(
        "table inet nixos-fw {{
  set temp-ports {{
    comment \"Temporarily opened ports\"
    type inet_proto . inet_service
    flags interval
    auto-merge
  }}
  chain rpfilter {{
    type filter hook prerouting priority mangle + 10; policy drop;
    meta nfproto ipv4 udp sport . udp dport {{ 67 . 68, 68 . 67 }} accept comment \"DHCPv4 client/server\"
    fib saddr . mark . iif oif exists accept
    jump rpfilter-allow
  }}
  chain rpfilter-allow {{
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname {{ \"lo\" }} accept comment \"trusted interfaces\"
    ct state vmap {{ invalid : drop, established : accept, related : accept, new : jump input-allow, untracked : jump input-allow }}
    tcp flags & (fin | syn | rst | ack) == syn log level info prefix \"refused connection: \"
{reject}  }}
  chain input-allow {{
{allow}    meta l4proto . th dport @temp-ports accept
    icmp type echo-request accept comment \"allow ping\"
    icmpv6 type != {{ nd-redirect, 139 }} accept comment \"accept all ICMPv6 messages except redirects and node information queries\"
    ip6 daddr fe80::/64 udp dport 546 accept comment \"DHCPv6 client\"
{extra}
  }}
}}
",
        extra = settings.extra,
    )
}

/// Appends one line.
fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _infallible = writeln!(text, "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        need_root,
        probe::{self, Answer},
        snapshot::{Snapshot, assert_same},
    };

    /// A walled host and a neighbour on a cable.
    fn two() -> (Netns, Netns) {
        let host = Netns::new("host").unwrap();
        let neighbour = Netns::new("neighbour").unwrap();
        host.cable("eth0", &neighbour, "eth0").unwrap();
        host.address("eth0", "192.0.2.1/24").unwrap();
        neighbour.address("eth0", "192.0.2.2/24").unwrap();
        (host, neighbour)
    }

    #[test]
    fn both_flavours_refuse_what_they_do_not_allow_and_survive_a_reload() {
        need_root!("ip", "nft", "iptables", "ip6tables");
        for flavour in Flavour::BOTH {
            let (host, neighbour) = two();
            let settings = Settings { allowed_tcp: vec![80], ..Settings::default() };
            let open = |port| probe::tcp(&neighbour, ([192, 0, 2, 1], port).into()).unwrap();
            assert_eq!(open(80), Answer::Refused, "{flavour:?}: nothing listens there yet");
            start(&host, flavour, &settings).unwrap();
            let _listeners = host
                .run(|| {
                    [80_u16, 81].map(|port| std::net::TcpListener::bind(("0.0.0.0", port)).unwrap())
                })
                .unwrap();
            assert_eq!(open(80), Answer::Open, "{flavour:?}");
            assert_eq!(open(81), Answer::Silent, "{flavour:?}");
            // The first reload moves the chains behind those that stay; from then on all is equal.
            reload(&host, flavour, &settings).unwrap();
            let before = Snapshot::take(&host).unwrap();
            reload(&host, flavour, &settings).unwrap();
            let after = Snapshot::take(&host).unwrap();
            assert_same(&before.without_handles(), &after.without_handles());
            assert_eq!(open(80), Answer::Open, "{flavour:?}");
            assert_eq!(open(81), Answer::Silent, "{flavour:?}");
            stop(&host, flavour, &settings).unwrap();
            assert_eq!(open(81), Answer::Open, "{flavour:?}");
        }
    }

    #[test]
    fn a_chain_that_cannot_be_made_again_breaks_the_iptables_reload_and_leaves_no_firewall() {
        need_root!("ip", "iptables", "ip6tables");
        let (host, neighbour) = two();
        let settings = Settings::default();
        start(&host, Flavour::Iptables, &settings).unwrap();
        let _listener = host.run(|| std::net::TcpListener::bind("0.0.0.0:81").unwrap()).unwrap();
        let address = ([192, 0, 2, 1], 81).into();
        assert_eq!(probe::tcp(&neighbour, address).unwrap(), Answer::Silent);
        host.sh("iptables -N foreign && iptables -A foreign -j nixos-fw-accept").unwrap();
        assert!(reload(&host, Flavour::Iptables, &settings).is_err());
        assert_eq!(probe::tcp(&neighbour, address).unwrap(), Answer::Open);
    }

    #[test]
    fn refusing_with_an_error_is_not_silence() {
        need_root!("ip", "nft", "iptables", "ip6tables");
        for flavour in Flavour::BOTH {
            let (host, neighbour) = two();
            let settings = Settings { reject: true, ..Settings::default() };
            start(&host, flavour, &settings).unwrap();
            let _listener =
                host.run(|| std::net::TcpListener::bind("0.0.0.0:81").unwrap()).unwrap();
            let answer = probe::tcp(&neighbour, ([192, 0, 2, 1], 81).into()).unwrap();
            assert_eq!(answer, Answer::Refused, "{flavour:?}");
        }
    }

    #[test]
    fn a_discover_from_nobody_arrives_where_67_is_allowed_and_only_there() {
        need_root!("ip", "nft", "iptables", "ip6tables");
        for flavour in Flavour::BOTH {
            for allowed in [false, true] {
                let (host, neighbour) = two();
                let settings = Settings {
                    allowed_udp: if allowed { vec![67] } else { Vec::new() },
                    ..Settings::default()
                };
                start(&host, flavour, &settings).unwrap();
                let holder = host.run(|| std::net::UdpSocket::bind("0.0.0.0:67").unwrap()).unwrap();
                assert_eq!(
                    probe::discover_arrives(&neighbour, "eth0", &holder).unwrap(),
                    allowed,
                    "{flavour:?}"
                );
                let unicast = probe::udp_arrives(&neighbour, ([192, 0, 2, 1], 67).into(), &holder);
                assert_eq!(unicast.unwrap(), allowed, "{flavour:?}");
            }
        }
    }
}
