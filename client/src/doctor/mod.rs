//! `doctor`: what would keep machines from booting, found before anything is opened.
//!
//! Guarantees: without `--probe` nothing is opened or sent (the addresses of web servers that are to be
//! served apart), no dialog appears, and nothing is left; with it UDP 67 is open on the interface for
//! five seconds. What is known is said as a fact; what is wrong as a finding, each with what to do. Pure
//! functions judge (`asked`, `image`, `network`); `host` reads.

mod asked;
mod host;
mod image;
mod network;

use std::{net::Ipv4Addr, path::Path};

use portcullis_dbus::keys::{authorization, backend};

use crate::{
    cli, codes,
    commands::{pick_interfaces, runtime, with_agent},
    dhcp::probe::{Heard, Prober},
    exit::{Code, Failure},
    image::Generation,
    interfaces::collect,
    report::Report,
    serve::{find_loaders, request},
    session::{Checked, Session},
    source::{self, Order},
};

/// Something that was found out and is in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is about, in one word.
    pub about: &'static str,
    /// The fact.
    pub text: String,
}

/// Something that is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name, for programs.
    pub name: &'static str,
    /// What is wrong.
    pub text: String,
    /// What can be done, the first thing to try first; never empty.
    pub remedies: Vec<String>,
}

impl Finding {
    fn new(name: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, text: text.into(), remedies: vec![remedy.into()] }
    }

    /// A failure that a command would have ended with.
    fn of(name: &'static str, failure: Failure) -> Self {
        let mut finding = Self { name, text: failure.message, remedies: failure.advice };
        if finding.remedies.is_empty() {
            // Such a message says itself what is expected.
            finding.remedies.push("mend that, and run it again".to_owned());
        }
        finding
    }

    fn or(mut self, remedy: impl Into<String>) -> Self {
        self.remedies.push(remedy.into());
        self
    }
}

/// What was found at one interface, or of none.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// The interface; none for what concerns all.
    pub interface: Option<String>,
    /// What is known.
    pub facts: Vec<Fact>,
    /// What servers offer, if they were asked.
    pub offers: Vec<Heard>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    fn fact(&mut self, about: &'static str, text: impl Into<String>) {
        self.facts.push(Fact { about, text: text.into() });
    }
}

/// `doctor`.
///
/// # Errors
/// [`Code::Found`]: something is wrong; it has been said.
pub fn doctor(arguments: &cli::Doctor, report: &mut Report) -> Result<(), Failure> {
    let runtime = runtime()?;
    let mut diagnoses = Vec::new();
    match pick_interfaces(&arguments.serving, report) {
        Ok(interfaces) => {
            for interface in interfaces {
                if arguments.probe {
                    report.note(&format!(
                        "Opening UDP 67 on {interface} for five seconds, to hear what servers offer ..."
                    ));
                }
                diagnoses.push(runtime.block_on(interface_of(arguments, interface)));
            }
        }
        Err(failure) => {
            let findings = vec![Finding::of("interface", failure)];
            diagnoses.push(Diagnosis { findings, ..Diagnosis::default() });
        }
    }
    diagnoses.push(runtime.block_on(served(arguments)));
    report.diagnoses(&diagnoses);
    if diagnoses.iter().all(|one| one.findings.is_empty()) {
        return Ok(());
    }
    Err(Failure::new(Code::Found, "what is marked with ! may keep machines from booting"))
}

/// What can be known of serving on one interface.
async fn interface_of(arguments: &cli::Doctor, name: String) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    let all = collect::interfaces().unwrap_or_default();
    if let Some(one) = all.iter().find(|one| one.name == name) {
        let link = if one.carrier { "connected" } else { "not connected" };
        diagnosis.fact("interface", format!("{}, {link}", one.describe()));
        if one.up && !one.carrier {
            let text = format!("nothing is connected to {name}");
            diagnosis.findings.push(Finding::new("no-carrier", text, remedy("link")));
        }
    }
    let asked = async {
        let session = Session::connect().await?;
        let checked = session.check(&request(&arguments.serving, name.clone())).await?;
        Ok::<_, Failure>((session, checked))
    };
    match asked.await {
        Ok((session, checked)) => {
            asked::judge(&checked, &name, &mut diagnosis);
            ways(&name, checked.address, &checked.backend, &mut diagnosis);
            if arguments.probe {
                probe(arguments, &session, &name, &checked, &mut diagnosis).await;
            } else {
                diagnosis.fact("network", "not asked: --probe does, and opens UDP 67 for that");
            }
        }
        Err(failure) => {
            let address = all.iter().find(|one| one.name == name);
            let address = address.and_then(|one| one.addresses.first().copied());
            diagnosis.findings.push(Finding::of("helper", failure));
            diagnosis.findings.extend(host::ports_taken(arguments.serving.port, address));
            ways(&name, address, "", &mut diagnosis);
        }
    }
    diagnosis.fact(
        "not seen",
        "single rules of other firewall tables, and filters before the input hook such as NixOS' \
         checkReversePath (`sudo nft list ruleset` shows them); iptables-legacy beside another firewall",
    );
    Diagnosis { interface: Some(name), ..diagnosis }
}

/// Whether packets find their way through this host.
fn ways(interface: &str, address: Option<Ipv4Addr>, backend: &str, diagnosis: &mut Diagnosis) {
    let is_nixos = [backend::NIXOS_NFTABLES, backend::NIXOS_IPTABLES].contains(&backend);
    if let Some(twins) = address.and_then(|address| host::twins(interface, address)) {
        let finding = twins.finding(interface);
        if finding.is_none() && is_nixos {
            diagnosis.fact(
                "way back",
                format!(
                    "{interface} and {} are both in the network {}, and the way there leads over the \
                     latter: NixOS' firewall then drops what comes in by {interface}, unless \
                     networking.firewall.checkReversePath is \"loose\" or false",
                    twins.other, twins.network
                ),
            );
        }
        diagnosis.findings.extend(finding);
    }
    if host::bridge_is_filtered(interface) {
        diagnosis.fact(
            "bridge",
            format!(
                "what goes from one port of {interface} to another passes this host's firewall, too \
                 (br_netfilter): a machine at one port may not reach a server at another"
            ),
        );
    }
}

/// Opens UDP 67, asks as machines do, closes it again.
async fn probe(
    arguments: &cli::Doctor,
    session: &Session,
    interface: &str,
    checked: &Checked,
    diagnosis: &mut Diagnosis,
) {
    let Some(address) = checked.address else {
        return;
    };
    let taken =
        |(protocol, port, _): &(String, u16, u32)| (protocol.as_str(), *port) == ("udp", 67);
    if arguments.serving.dhcp_no_bind {
        diagnosis
            .fact("network", "not asked: UDP 67 is shared, and the other server gets the answers");
        return;
    }
    if checked.authorization == authorization::NO || checked.taken.iter().any(taken) {
        diagnosis.fact("network", "not asked, since UDP 67 cannot be opened");
        return;
    }
    let asked = async {
        let common = &arguments.serving.common;
        let (lease, dhcp) = with_agent(common, async || session.listen(interface).await).await?;
        let heard = async { Prober::new(interface, address)?.offers(&dhcp).await }.await;
        drop(dhcp);
        session.close(lease.number).await?;
        heard.map_err(|error| {
            Failure::new(
                Code::Internal,
                format!("{interface}: the network cannot be asked: {error}"),
            )
        })
    };
    match asked.await {
        Ok(heard) => network::judge(heard, address, arguments.serving.dhcp_server, diagnosis),
        Err(failure) => diagnosis.findings.push(Finding::of("probe", failure)),
    }
}

/// What is to be served, and the boot loaders for it.
async fn served(arguments: &cli::Doctor) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    let generation = match open(arguments).await {
        Ok(generation) => generation,
        Err(failure) => {
            diagnosis.findings.push(Finding::of("source", failure));
            None
        }
    };
    let chain = arguments.serving.chain.is_some();
    match find_loaders(&arguments.serving, generation.as_ref(), chain).await {
        Ok((loaders, _)) => image::judge(generation.as_ref(), &loaders, &mut diagnosis),
        Err(failure) => diagnosis.findings.push(Finding::of("no-loader", failure)),
    }
    diagnosis
}

/// As `boot` opens it; nothing, if nothing was named.
async fn open(arguments: &cli::Doctor) -> Result<Option<Generation>, Failure> {
    let Some(kernel) = &arguments.source else {
        return Ok(None);
    };
    let direct = arguments.serving.direct;
    let generation = match source::quick::netboot_xyz(Path::new(kernel)).await? {
        Some(script) => source::open_script(&script, direct, &Default::default()).await?,
        None => {
            source::open(&Order {
                kernel: kernel.clone(),
                initrds: arguments.initrds.clone(),
                cmdline: arguments.cmdline.clone(),
                direct,
                ..Order::default()
            })
            .await?
        }
    };
    let stub = arguments.serving.stub.as_deref();
    source::complete(generation, stub, None).await.map(Some)
}

/// What to do about a reason of the data that `explain` and the advice for machines come from.
fn remedy(key: &str) -> String {
    codes::data().reasons.get(key).map_or_else(String::new, |reason| reason.remedy.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_has_a_remedy() {
        for key in [
            "link",
            "memory-initrd",
            "no-dhcp-server",
            "dhcp-off",
            "option-60",
            "router-http",
            "other-server-ipxe",
            "other-server-bios",
        ] {
            assert!(!remedy(key).is_empty(), "{key} is not in codes.json");
        }
        let bare = Finding::of("source", Failure::new(Code::Source, "it is not there"));
        assert_eq!(bare.remedies.len(), 1);
        let advised = Failure::new(Code::Source, "it is not there").advise("look elsewhere");
        assert_eq!(Finding::of("source", advised).remedies, ["look elsewhere"]);
    }
}
