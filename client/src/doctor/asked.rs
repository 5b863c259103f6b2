//! What the helper says of a request, as facts and findings. Pure, but for the names of users.

use nix::unistd::{Uid, User};
use portcullis_dbus::keys::{authorization, backend};

use super::{Diagnosis, Finding};
use crate::{
    report::{text, units::ports},
    session::Checked,
};

/// Adds what follows from the helper's answer about `interface`.
pub fn judge(checked: &Checked, interface: &str, diagnosis: &mut Diagnosis) {
    let mut problems = checked.problems.as_slice();
    if checked.address.is_none()
        && let Some((problem, rest)) = problems.split_first()
    {
        let remedy = "portcullis interfaces lists those that will do";
        diagnosis.findings.push(finding("interface", problem, remedy));
        problems = rest;
    } else {
        let free = |protocol: &str, all: &[u16]| -> Vec<u16> {
            let is_free = |port: &u16| {
                !checked.taken.iter().any(|(taken, at, _)| (taken.as_str(), at) == (protocol, port))
            };
            all.iter().copied().filter(is_free).collect()
        };
        let (udp, tcp) = (free("udp", &checked.udp_ports), free("tcp", &checked.tcp_ports));
        diagnosis.fact("ports", format!("free: {}", ports(&udp, &tcp)));
    }
    let mut others = Vec::new();
    for problem in problems {
        let holder = checked
            .taken
            .iter()
            .find(|(protocol, port, _)| problem.starts_with(&format!("{protocol} port {port} ")));
        match holder {
            Some((protocol, port, uid)) => {
                let mut finding = finding("port-taken", problem, "portcullis status shows it");
                finding.text.push_str(&user(*uid));
                if (protocol.as_str(), *port) == ("udp", 67) {
                    finding = finding.or(
                        "if it is a DHCP server that is to go on (NetworkManager's shared mode, \
                         libvirt): portcullis boot --dhcp-no-bind",
                    );
                }
                diagnosis.findings.push(finding);
            }
            None => others.push(problem),
        }
    }
    if checked.backend == backend::UNSUPPORTED {
        // The firewall is looked at last.
        if let Some(problem) = others.pop() {
            diagnosis.findings.push(Finding::new(
                "firewall",
                problem,
                "an administrator names the chain to open in /etc/portcullis/helper.toml, [firewall]; \
                 the README has the name for each firewall",
            ));
        }
    } else {
        diagnosis.fact("firewall", text::firewall_before(&checked.backend));
    }
    for problem in others {
        let remedy = "an administrator can allow it in /etc/portcullis/helper.toml";
        diagnosis.findings.push(finding("refused", problem, remedy));
    }
    for chain in &checked.other_drops {
        let text = format!(
            "another part of this host's firewall drops what it does not name ({}), and nothing is \
             opened there: answers to machines may be lost",
            chain.escape_debug()
        );
        let remedy = format!(
            "a VPN's kill switch: end the VPN, or let it leave the local network alone; otherwise \
             have UDP 67, 69, 4011 and the port of the images accepted there for {interface}"
        );
        let finding = Finding::new("other-table", text, remedy);
        diagnosis.findings.push(finding.or("sudo nft list ruleset shows what passes there"));
    }
    match checked.authorization.as_str() {
        authorization::YES => diagnosis.fact("permission", "polkit allows it without a question"),
        authorization::CHALLENGE => diagnosis.fact("permission", "polkit will ask for a password"),
        authorization::NO => diagnosis.findings.push(Finding::new(
            "not-allowed",
            "polkit says no: you may not open these ports here",
            "an administrator can add you to the group portcullis, or write a polkit rule",
        )),
        _ => diagnosis.findings.push(Finding::new(
            "polkit",
            "polkit does not answer, so that nothing can be allowed",
            "systemctl status polkit",
        )),
    }
}

/// A sentence of the helper's: what is wrong, often followed by a colon and what to do.
fn finding(name: &'static str, problem: &str, otherwise: &str) -> Finding {
    match problem.rsplit_once(": ") {
        Some((text, remedy)) => Finding::new(name, text, remedy),
        None => Finding::new(name, problem, otherwise),
    }
}

/// The name of a user, if it has one.
pub fn user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!(" ({})", user.name),
        Ok(None) | Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked() -> Checked {
        Checked {
            backend: backend::NIXOS_NFTABLES.to_owned(),
            address: Some([192, 0, 2, 2].into()),
            udp_ports: vec![67, 69, 4011],
            tcp_ports: vec![64172],
            authorization: authorization::YES.to_owned(),
            ..Checked::default()
        }
    }

    fn judged(checked: &Checked) -> Diagnosis {
        let mut diagnosis = Diagnosis::default();
        judge(checked, "eth0", &mut diagnosis);
        assert!(diagnosis.findings.iter().all(|finding| !finding.remedies.is_empty()));
        diagnosis
    }

    fn names(diagnosis: &Diagnosis) -> Vec<&str> {
        diagnosis.findings.iter().map(|finding| finding.name).collect()
    }

    #[test]
    fn where_all_is_well_three_facts_say_so() {
        let diagnosis = judged(&checked());
        assert_eq!(diagnosis.findings, []);
        let facts: Vec<_> = diagnosis.facts.iter().map(|fact| fact.about).collect();
        assert_eq!(facts, ["ports", "firewall", "permission"]);
        assert_eq!(diagnosis.facts[0].text, "free: UDP 67, 69, 4011 and TCP 64172");
    }

    #[test]
    fn each_port_has_its_holder_and_what_to_do() {
        let problem = |port| {
            format!("udp port {port} is in use by a program of uid 0: stop it (`ss -lnp` names it)")
        };
        let taken = [67, 69].map(|port| ("udp".to_owned(), port, 0)).to_vec();
        let problems = vec![problem(67), problem(69)];
        let diagnosis = judged(&Checked { taken, problems, ..checked() });
        assert_eq!(names(&diagnosis), ["port-taken", "port-taken"]);
        let [first, second] = diagnosis.findings.as_slice() else { panic!() };
        assert!(first.text.ends_with("of uid 0 (root)"), "{}", first.text);
        assert!(first.remedies[1].contains("--dhcp-no-bind"));
        assert_eq!(second.remedies, ["stop it (`ss -lnp` names it)"]);
        assert_eq!(diagnosis.facts[0].text, "free: UDP 4011 and TCP 64172");
        let leased = "tcp port 64172 of this interface is leased to uid 0 (`portcullis status`)";
        let taken = vec![("tcp".to_owned(), 64172, 0)];
        let diagnosis = judged(&Checked { taken, problems: vec![leased.into()], ..checked() });
        assert_eq!(diagnosis.findings[0].remedies, ["portcullis status shows it"]);
    }

    #[test]
    fn each_refusal_has_its_name() {
        let no_address = Checked {
            address: None,
            problems: vec!["eth0 is down: `ip link set eth0 up`, or connect it".to_owned()],
            ..checked()
        };
        assert_eq!(names(&judged(&no_address)), ["interface"]);
        let unknown = Checked {
            backend: backend::UNSUPPORTED.to_owned(),
            problems: vec!["the site says no".to_owned(), "table ip x drops".to_owned()],
            ..checked()
        };
        assert_eq!(names(&judged(&unknown)), ["firewall", "refused"]);
        assert_eq!(judged(&unknown).findings[0].text, "table ip x drops");
        let kill_switch =
            Checked { other_drops: vec!["table inet vpn, chain o\u{1b}".to_owned()], ..checked() };
        let diagnosis = judged(&kill_switch);
        assert_eq!(names(&diagnosis), ["other-table"]);
        assert!(diagnosis.findings[0].text.contains("(table inet vpn, chain o\\u{1b})"));
        for (word, name) in [
            (authorization::NO, "not-allowed"),
            (authorization::UNAVAILABLE, "polkit"),
            ("", "polkit"),
        ] {
            let refused = Checked { authorization: word.to_owned(), ..checked() };
            assert_eq!(names(&judged(&refused)), [name]);
        }
        let asks = Checked { authorization: authorization::CHALLENGE.to_owned(), ..checked() };
        assert_eq!(judged(&asks).findings, []);
    }
}
