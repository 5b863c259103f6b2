//! What is said of an interface once it is served.

use std::net::Ipv4Addr;

use super::{Content, Plan, outlet::Outlet};
use crate::{
    cli::Serving,
    image::{Generation, Payload},
    loaders::coverage,
    report::{Ready, Served},
    template::Machine,
};

pub(super) fn ready<'a>(plan: &'a Plan<'_>, outlet: &'a Outlet, last: bool) -> Ready<'a> {
    let lease = &outlet.lease;
    let served = |file: &Payload| Served { name: file.name().to_owned(), bytes: file.length() };
    let generation = plan.content.generation();
    let programs: Vec<_> = plan.content.programs().collect();
    let efi = generation.map(|generation| &generation.efi);
    let (mut can, cannot) = coverage(&plan.loaders, efi, &programs);
    can.extend((!plan.folder.is_empty()).then(|| "Raspberry Pis".to_owned()));
    let address = lease.facts.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let url = |generation: &Generation| {
        let port = plan.boot.port;
        format!("http://{address}:{port}/{}/MAC", generation.token)
    };
    Ready {
        lease,
        begun: plan.begun,
        last,
        api: match plan.content {
            Content::Same(_) | Content::Fresh(..) => None,
            Content::Api(_, address) => Some(address),
        },
        kernel: generation.and_then(|generation| generation.kernel.as_ref()).map(served),
        initrds: generation.map_or(Vec::new(), |one| one.initrds.iter().map(served).collect()),
        menu: generation
            .map_or(Vec::new(), |one| one.menu.iter().map(|item| item.name.clone()).collect()),
        cmdline: generation
            .map(|generation| generation.cmdline.text(&Machine::at(&url(generation))))
            .unwrap_or_default(),
        loaders: (plan.chain.iter().map(|chain| chain.first.clone()))
            .chain(plan.loaders().map(|loader| loader.file_name().into_owned()))
            .collect(),
        can,
        cannot,
        addresses: outlet.addresses,
        only: only(plan.boot),
    }
}

/// What the user limits it to, in words.
fn only(boot: &Serving) -> Vec<String> {
    let macs: Vec<_> = boot.for_mac.iter().map(ToString::to_string).collect();
    let macs = (!macs.is_empty()).then(|| macs.join(", "));
    let once = boot.once.then(|| "each machine once".to_owned());
    let count = boot.count.map(|count| match count {
        1 => "one machine".to_owned(),
        count => format!("{count} machines"),
    });
    [macs, once, count].into_iter().flatten().collect()
}
