//! From the first question to the helper to the last socket: opens, serves, closes.
//!
//! Guarantees: all interfaces are opened or none; an interrupt is heard at every step, and sockets
//! are dropped before the leases are closed.

use std::time::Duration;

use portcullis_dbus::{Error, keys::reason};
use tokio::time::timeout;

use super::{
    Beside, Interrupts, Plan, authority::authority, outlet::Outlet, ready::ready, watch::watch,
};
use crate::{
    commands::with_agent,
    exit::Failure,
    image::Generation,
    inhibit,
    nixos::Workshop,
    notify::Desktop,
    once::Way,
    report::{Asking, Report},
    session::{Lease, Request, Session, Sockets},
};

/// How long closing may take; after that the connection is dropped, which closes as well.
pub(super) const CLOSING: Duration = Duration::from_secs(5);

/// How much later than its effects a Ctrl-C may be noticed.
const NOTICED: Duration = Duration::from_millis(200);

pub(super) async fn run(
    plan: &Plan<'_>,
    way: Way,
    beside: &mut Beside,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut interrupts = match beside.interrupts.take() {
        Some(interrupts) => interrupts,
        None => Interrupts::new()?,
    };
    let session = unless_dismissed(way.session(), &mut interrupts).await;
    let (mut session, started) = session.ok_or_else(|| dismissed(report))??;
    let result = hold(plan, &mut session, beside, &mut interrupts, report).await;
    drop(session);
    if let Some(started) = started {
        started.end().await;
    }
    result
}

/// What came of asking the user; nothing, if they pressed Ctrl-C. That ends the agent or tool that asks,
/// too, and what then fails may be noticed first.
async fn unless_dismissed<T>(
    asking: impl Future<Output = Result<T, Failure>>,
    interrupts: &mut Interrupts,
) -> Option<Result<T, Failure>> {
    let result = tokio::select! {
        biased;
        () = interrupts.next() => return None,
        result = asking => result,
    };
    let is_dismissed = result.is_err() && timeout(NOTICED, interrupts.next()).await.is_ok();
    (!is_dismissed).then_some(result)
}

/// The user ended it before anything was open.
fn dismissed(report: &mut Report) -> Failure {
    report.interrupted();
    let text = "you ended it before it was allowed: nothing was opened".to_owned();
    Error::AuthenticationDismissed(text).into()
}

/// Opens, serves, and closes.
async fn hold(
    plan: &Plan<'_>,
    session: &mut Session,
    beside: &mut Beside,
    interrupts: &mut Interrupts,
    report: &mut Report,
) -> Result<(), Failure> {
    let opened = unless_dismissed(open(plan, session, report), interrupts).await;
    let opened = opened.ok_or_else(|| dismissed(report))??;
    // Of all that is open, also when it does not come to serving.
    let mut leases: Vec<Lease> = opened.iter().map(|(lease, _)| lease.clone()).collect();
    let started = tokio::select! {
        biased;
        () = interrupts.next() => None,
        outlets = start(plan, opened, report) => Some(outlets?),
    };
    let mut outlets = started.unwrap_or_default();
    for (index, outlet) in outlets.iter().enumerate() {
        report.ready(&ready(plan, outlet, index + 1 == outlets.len()));
    }
    // While machines are switched on.
    let kept = plan.content.generation().into_iter().flat_map(Generation::passed_on);
    let kept: Vec<_> = kept.cloned().collect();
    tokio::spawn(async move {
        for remote in kept {
            remote.cache.prepare(&remote).await;
        }
    });
    let _awake = match session.bus() {
        Some(bus) => inhibit::sleep(bus).await,
        None => None,
    };
    if plan.boot.notify {
        beside.desktop = Desktop::of_session().await;
        if beside.desktop.is_none() {
            report.note("--notify does nothing here: there is no desktop session.");
        }
    }
    if !outlets.is_empty() {
        if beside.workshop.as_ref().is_some_and(Workshop::listen) {
            report.note("r and Enter builds anew, for machines that start after that.");
        }
        watch(session, &mut outlets, beside, interrupts, report).await?;
        leases = outlets.iter().map(|outlet| outlet.lease.clone()).collect();
    }
    for outlet in &mut outlets {
        outlet.stop(report).await;
    }
    report.interrupted();
    let close = async {
        for lease in &leases {
            if let Ok(Err(failure)) = timeout(CLOSING, session.close(lease.number)).await {
                report.detail(&failure.message);
            }
        }
    };
    tokio::select! {
        () = interrupts.next() => {}
        () = close => {}
    }
    for lease in &leases {
        report.closed(lease, reason::CLOSED);
    }
    Ok(())
}

/// Asks for one interface after the other: nobody can answer two dialogs at once, and the helper
/// hears one question at a time. All of them or none: what was opened closes with the session.
async fn open(
    plan: &Plan<'_>,
    session: &mut Session,
    report: &mut Report,
) -> Result<Vec<(Lease, Sockets)>, Failure> {
    let mut opened = Vec::with_capacity(plan.requests.len());
    for request in &plan.requests {
        report.asking(&Asking {
            interface: request.interface.clone(),
            udp_ports: Request::UDP.to_vec(),
            tcp_ports: vec![request.http_port],
            max_seconds: request.max_seconds,
            dhcp_server: request.full_dhcp,
        });
        opened.push(with_agent(&plan.boot.common, async || session.open(request).await).await?);
    }
    Ok(opened)
}

/// Begins to serve, on all interfaces or none.
async fn start(
    plan: &Plan<'_>,
    opened: Vec<(Lease, Sockets)>,
    report: &mut Report,
) -> Result<Vec<Outlet>, Failure> {
    let mut outlets = Vec::with_capacity(opened.len());
    for (lease, sockets) in opened {
        let authority = authority(plan, &lease, &sockets.dhcp, report).await?;
        outlets.push(Outlet::start(plan, lease, sockets, authority)?);
    }
    Ok(outlets)
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;
    use crate::exit::Code;

    #[tokio::test]
    async fn what_fails_by_the_users_own_interrupt_is_a_dismissal() {
        let mut interrupts = Interrupts::new().unwrap();
        // The runtime looks at signals only when it has nothing else to do.
        let ended_with_it = async {
            kill_process(getpid(), Signal::INT).unwrap();
            Err::<(), _>(Failure::new(Code::Internal, "the tool that asked is gone"))
        };
        assert!(unless_dismissed(ended_with_it, &mut interrupts).await.is_none());
        let refused = async { Err::<(), _>(Failure::new(Code::Internal, "no")) };
        assert!(matches!(unless_dismissed(refused, &mut interrupts).await, Some(Err(_))));
        assert!(matches!(unless_dismissed(async { Ok(1) }, &mut interrupts).await, Some(Ok(1))));
    }
}
