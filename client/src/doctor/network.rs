//! What the servers of a network offer to machines that boot from it, as facts and findings. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::{Diagnosis, Finding, remedy};
use crate::dhcp::{
    offers::{Asker, Class, Offer, Verdict, verdict},
    probe::Heard,
};

/// Adds what was heard, on an interface with the address `ours`. `dhcp_server`: addresses are to be handed
/// out here.
pub fn judge(heard: Vec<Heard>, ours: Ipv4Addr, dhcp_server: bool, diagnosis: &mut Diagnosis) {
    let heard: Vec<_> = heard.into_iter().filter(|one| one.offer.server != ours).collect();
    let mut servers: BTreeMap<Ipv4Addr, Vec<&Heard>> = BTreeMap::new();
    for one in &heard {
        servers.entry(one.offer.server).or_default().push(one);
    }
    let of = |asker| -> Vec<&Offer> {
        heard.iter().filter(|one| one.asker == asker).map(|one| &one.offer).collect()
    };
    let verdicts = Asker::ALL.map(|asker| (asker, verdict(asker, &of(asker))));
    let gives = |offers: &&Vec<&Heard>| offers.iter().any(|one| one.offer.address.is_some());
    let givers: Vec<Ipv4Addr> =
        servers.iter().filter_map(|(server, offers)| gives(&offers).then_some(*server)).collect();
    match (givers.first(), dhcp_server) {
        (None, false) => {
            let text = "no DHCP server answers on this network: machines get no address";
            let finding = Finding::new("no-dhcp", text, remedy("no-dhcp-server"));
            diagnosis.findings.push(finding.or(format!(
                "otherwise the router's DHCP is off, has no address left, or answers machines alone. \
                 {}",
                remedy("dhcp-off")
            )));
        }
        (Some(server), true) => diagnosis.findings.push(Finding::new(
            "other-dhcp-server",
            format!("{server} hands out addresses here already: two would disturb each other"),
            "leave out --dhcp-server: machines then boot with its addresses",
        )),
        (Some(_), false) | (None, true) => {}
    }
    for (server, offers) in &servers {
        diagnosis.fact("offer", format!("{server}: {}", told(offers)));
        diagnosis.findings.extend(finding(*server, offers, &verdicts));
    }
    let won: Vec<_> = verdicts
        .iter()
        .filter(|(_, verdict)| *verdict == Verdict::Ours)
        .map(|(asker, _)| asker.name())
        .collect();
    if !won.is_empty() {
        diagnosis.fact("network", format!("machines will take our offer: {}", won.join(", ")));
    }
    diagnosis.offers = heard;
}

/// One server's offers, in words.
fn told(offers: &[&Heard]) -> String {
    let address = offers.iter().find_map(|one| one.offer.address);
    let mut parts = vec![match address {
        Some(address) => format!("an address ({address})"),
        None => "no address (a proxy)".to_owned(),
    }];
    // What is the same for several askers is said once.
    let mut said: Vec<(String, Vec<&str>)> = Vec::new();
    for one in offers {
        let class = match one.offer.class {
            Class::Plain => None,
            Class::Pxe => Some("\"PXEClient\"".to_owned()),
            Class::Http => Some("\"HTTPClient\"".to_owned()),
        };
        let file = one.offer.file.as_ref().map(|file| format!("boot file {file}"));
        let whole = (!one.offer.is_whole).then(|| "in a form that UEFI ignores".to_owned());
        let text = class.into_iter().chain(file).chain(whole).collect::<Vec<_>>().join(", ");
        match said.iter_mut().find(|(known, _)| *known == text) {
            _ if text.is_empty() => {}
            Some((_, askers)) => askers.push(one.asker.name()),
            None => said.push((text, vec![one.asker.name()])),
        }
    }
    parts
        .extend(said.into_iter().map(|(text, askers)| format!("to {}: {text}", askers.join(", "))));
    parts.join("; ")
}

/// What is wrong with a server's offers: the worst alone.
fn finding(server: Ipv4Addr, offers: &[&Heard], verdicts: &[(Asker, Verdict)]) -> Option<Finding> {
    let wins = |asker: Asker| {
        verdicts.iter().any(|(one, verdict)| *one == asker && *verdict == Verdict::Theirs(server))
    };
    if wins(Asker::Bios) || wins(Asker::Uefi) {
        return Some(Finding::new(
            "router-is-pxe-server",
            format!(
                "{server} hands out addresses and says that it is a PXE server itself (option 60 \
                 \"PXEClient\"): machines that boot by PXE ask it and nobody else, and no offer of \
                 another computer can win"
            ),
            format!("{} It is a setting of the DHCP server.", remedy("option-60")),
        ));
    }
    if wins(Asker::Http) {
        let text = format!(
            "{server} hands out addresses and answers UEFI HTTP boot with an address of its own, which \
             outranks ours"
        );
        return Some(Finding::new("router-http", text, remedy("router-http")));
    }
    let proxy = |one: &&&Heard| {
        let is_server = one.offer.class != Class::Plain || one.offer.file.is_some();
        one.offer.address.is_none() && is_server
    };
    if let Some(one) = offers.iter().find(proxy) {
        let file = one.offer.file.as_deref().unwrap_or("its own boot server");
        let is_first = |(_, verdict): &&(Asker, Verdict)| matches!(verdict, Verdict::First(rivals) if rivals.contains(&server));
        let first: Vec<_> =
            verdicts.iter().filter(is_first).map(|(asker, _)| asker.name()).collect();
        let outcome = match first.is_empty() {
            true => "firmware prefers our offer, iPXE takes whichever comes first".to_owned(),
            false => format!("whichever offer comes first is taken ({})", first.join(", ")),
        };
        let text = format!("{server} offers network boot as well ({file}): {outcome}");
        return Some(Finding::new("other-boot-server", text, remedy("other-server-ipxe")));
    }
    let file = offers.iter().find_map(|one| one.offer.file.as_deref())?;
    let text = format!(
        "{server} hands out addresses and names a boot file of its own ({file}): UEFI prefers our \
         offer, but some ROMs load that file, and shim and GRUB ask that server for theirs"
    );
    Some(Finding::new("router-boot-file", text, remedy("other-server-bios")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::offers::tests::datagram;

    const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const ROUTER: [u8; 4] = [192, 0, 2, 1];
    const OTHER: [u8; 4] = [192, 0, 2, 3];
    const PXE: &[u8] = b"\x3c\x09PXEClient";
    const HTTP: &[u8] = b"\x3c\x0aHTTPClient";
    const COMPLETE: &[u8] = b"\x2b\x03\x06\x01\x08";
    const FILE: &[u8] = b"\x43\x03a/b";

    /// The same offer to everybody.
    fn offers(server: [u8; 4], gives: bool, options: &[&[u8]]) -> Vec<Heard> {
        let all = [&[53, 1, 2, 54, 4], &server[..], &options.concat()].concat();
        let address = if gives { [192, 0, 2, 100] } else { [0; 4] };
        let offer = Offer::parse(&datagram(address, b"", &all), server.into()).unwrap();
        Asker::ALL.map(|asker| Heard { asker, offer: offer.clone() }).to_vec()
    }

    fn judged(heard: &[Vec<Heard>], dhcp_server: bool) -> (Vec<&'static str>, Vec<String>) {
        let mut diagnosis = Diagnosis::default();
        judge(heard.concat(), OURS, dhcp_server, &mut diagnosis);
        assert!(
            diagnosis.findings.iter().all(|one| one.remedies.iter().all(|one| !one.is_empty()))
        );
        let facts = diagnosis.facts.iter().map(|fact| fact.text.clone()).collect();
        (diagnosis.findings.iter().map(|finding| finding.name).collect(), facts)
    }

    #[test]
    fn each_server_has_the_worst_that_it_does_told() {
        let plain = || offers(ROUTER, true, &[]);
        for (heard, dhcp_server, names) in [
            (vec![], false, vec!["no-dhcp"]),
            (vec![], true, vec![]),
            (vec![plain()], false, vec![]),
            (vec![plain()], true, vec!["other-dhcp-server"]),
            (vec![offers(ROUTER, true, &[PXE])], false, vec!["router-is-pxe-server"]),
            (vec![offers(ROUTER, true, &[HTTP, FILE])], false, vec!["router-http"]),
            (vec![offers(ROUTER, true, &[FILE])], false, vec!["router-boot-file"]),
            (
                vec![plain(), offers(OTHER, false, &[PXE, COMPLETE, FILE])],
                false,
                vec!["other-boot-server"],
            ),
            // Our own, from another run of this program on this computer.
            (vec![plain(), offers(OURS.octets(), false, &[PXE, FILE])], false, vec![]),
        ] {
            let heard: Vec<Vec<Heard>> = heard;
            assert_eq!(judged(&heard, dhcp_server).0, names, "{heard:?}");
        }
    }

    #[test]
    fn offers_are_told_server_by_server_and_the_same_once() {
        let heard = [offers(ROUTER, true, &[]), offers(OTHER, false, &[PXE, FILE])];
        let (_, facts) = judged(&heard, false);
        assert_eq!(
            facts,
            [
                "192.0.2.1: an address (192.0.2.100)",
                "192.0.2.3: no address (a proxy); to BIOS, UEFI, HTTP boot: \"PXEClient\", boot file \
                 a/b",
                "machines will take our offer: UEFI, HTTP boot",
            ]
        );
    }
}
