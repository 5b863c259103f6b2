//! What happens while it is served, to the report: machines, leases that end, changed files, builds,
//! and the user's wishes.

use std::time::{Duration, Instant};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Beside, Interrupts,
    outlet::{Happening, Outlet, Remark, next},
    run::CLOSING,
};
use crate::{
    exit::Failure,
    nixos::{Told, Workshop},
    report::Report,
    session::Session,
};

/// How often silence is judged.
const TICK: Duration = Duration::from_secs(1);

/// Shows what happens until the user ends it. A lease that ends takes only its own interface along.
///
/// # Errors
/// The last lease has ended; why.
pub(super) async fn watch(
    session: &mut Session,
    outlets: &mut Vec<Outlet>,
    beside: &mut Beside,
    interrupts: &mut Interrupts,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Those that serve no more, and why.
        let (over, word, why) = tokio::select! {
            biased;
            () = interrupts.next() => return Ok(()),
            (number, end) = session.ended() => {
                let ended = |outlet: &mut Outlet| number.is_none_or(|it| it == outlet.lease.number);
                let over: Vec<_> = outlets.extract_if(.., ended).collect();
                let Some(first) = over.first() else { continue };
                let failure = end.failure(&first.lease.facts.interface);
                (over, end.word().to_owned(), failure)
            }
            _ = tick.tick() => {
                outlets.iter().for_each(|outlet| outlet.machines.tick(Instant::now()));
                continue;
            }
            wish = report.attend() => {
                if report.obey(wish) {
                    return Ok(());
                }
                continue;
            }
            text = change(&mut beside.changes) => {
                report.note(&text);
                continue;
            }
            told = build(&mut beside.workshop) => {
                report.build(&told);
                continue;
            }
            (index, happening) = next(outlets) => match happening {
                Happening::Machine(event) => {
                    beside.desktop.iter().for_each(|desktop| desktop.tell(&event));
                    report.machine(&outlets[index].lease.facts.interface, &event);
                    continue;
                }
                Happening::Remark(Remark::Detail(text)) => {
                    report.detail(&text);
                    continue;
                }
                Happening::Remark(Remark::Note(text)) => {
                    report.note(&text);
                    continue;
                }
                Happening::Failed(failure) => {
                    let outlet = outlets.remove(index);
                    // Best effort: if it is the last one, the end of the session closes it.
                    let _ = timeout(CLOSING, session.close(outlet.lease.number)).await;
                    (vec![outlet], "failed".to_owned(), failure)
                }
            },
        };
        for mut outlet in over {
            outlet.stop(report).await;
            report.closed(&outlet.lease, &word);
            if !outlets.is_empty() {
                let interface = &outlet.lease.facts.interface;
                report.attention(&format!("{interface}: {}", why.message));
            }
        }
        if outlets.is_empty() {
            return Err(why);
        }
    }
}

/// What is said of files that have changed; nothing, for ever, where none are looked at.
async fn change(changes: &mut Option<mpsc::Receiver<String>>) -> String {
    let received = match changes {
        Some(changes) => changes.recv().await,
        None => None,
    };
    match received {
        Some(text) => text,
        None => std::future::pending().await,
    }
}

/// How a build goes; nothing, for ever, where none is made.
async fn build(workshop: &mut Option<Workshop>) -> Told {
    match workshop {
        Some(workshop) => workshop.next().await,
        None => std::future::pending().await,
    }
}
