//! With `--dhcp-server`: may addresses be handed out on an interface, and what hands them out.
//!
//! Guarantees: no addresses on an interface where another DHCP server answers.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
};

use super::{Plan, outlet::served_on};
use crate::{
    dhcp::{
        Authority,
        pool::{NoAddresses, Pool, Subnet},
        probe::Prober,
        server::{self, Server},
    },
    exit::{Code, Failure},
    interfaces::{collect, direct_cable_advice},
    report::Report,
    session::Lease,
};

/// With `--dhcp-server`: what hands out addresses, if no other DHCP server answers.
pub(super) async fn authority(
    plan: &Plan<'_>,
    lease: &Lease,
    dhcp: &UdpSocket,
    report: &mut Report,
) -> Result<Option<Authority>, Failure> {
    if !plan.boot.dhcp_server {
        return Ok(None);
    }
    let interface = &lease.facts.interface;
    let address = served_on(lease)?;
    let networks = networks(interface)?;
    let (_, mask) = networks.iter().find(|(one, _)| *one == address).ok_or_else(|| {
        Failure::new(Code::Interface, format!("{interface} has lost its address {address}"))
    })?;
    let subnet = Subnet::new(address, *mask).map_err(|error| no_addresses(interface, error))?;
    report.note(&format!("Looking for other DHCP servers on {interface} ..."));
    let look = async {
        let prober = Prober::new(interface, address)?;
        let rival = prober.look(dhcp, address).await?;
        Ok((prober, rival))
    };
    let (prober, rival) = look.await.map_err(|error: io::Error| {
        let text = format!("other DHCP servers cannot be looked for on {interface}: {error}");
        Failure::new(Code::Internal, text)
    })?;
    if let Some(rival) = rival {
        let text = format!("{interface} has a DHCP server already, {rival}: two would disturb it");
        return Err(Failure::new(Code::OtherDhcpServer, text)
            .advise("leave out --dhcp-server: machines then boot with its addresses"));
    }
    let (router, dns) = (plan.boot.router, plan.boot.dns.clone());
    let kept_free = networks.iter().map(|(one, _)| *one).chain(router).chain(dns.iter().copied());
    let server = Server::new(Pool::new(subnet, kept_free), server::Settings { router, dns });
    Ok(Some(Authority::new(server, prober)))
}

/// Whether the interface is one to hand out addresses on, before anybody is asked.
pub(super) fn can_hand_out(interface: &str) -> Result<(), Failure> {
    let networks = networks(interface)?;
    let mut verdicts =
        networks.iter().map(|(address, mask)| Subnet::new(*address, *mask).map(drop));
    match verdicts.clone().find(Result::is_ok).or_else(|| verdicts.next()) {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(no_addresses(interface, error)),
        None => {
            let text = format!("{interface} has no IPv4 address to hand out others from");
            Err(with_cable_advice(Failure::new(Code::Interface, text), interface))
        }
    }
}

fn networks(interface: &str) -> Result<Vec<(Ipv4Addr, Ipv4Addr)>, Failure> {
    collect::networks(interface).map_err(|error| {
        let text = format!("the addresses of {interface} cannot be read: {error}");
        Failure::new(Code::Internal, text)
    })
}

fn no_addresses(interface: &str, error: NoAddresses) -> Failure {
    let text = format!("no addresses can be handed out on {interface}: {error}");
    with_cable_advice(Failure::new(Code::Interface, text), interface)
}

fn with_cable_advice(failure: Failure, interface: &str) -> Failure {
    direct_cable_advice(interface).into_iter().fold(failure, Failure::advise)
}
