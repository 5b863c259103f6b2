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
        let text = format!(
            "{server} offers network boot as well ({file}): each machine takes whichever answers first"
        );
        return Some(Finding::new("other-boot-server", text, remedy("other-server-ipxe")));
    }
    let file = offers.iter().find_map(|one| one.offer.file.as_deref())?;
    let text = format!(
        "{server} hands out addresses and names a boot file of its own ({file}): UEFI prefers our \
         offer, but some ROMs load that file, and shim and GRUB ask that server for theirs"
    );
    Some(Finding::new("router-boot-file", text, remedy("other-server-bios")))
}
