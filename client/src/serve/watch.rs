//! What happens while it is served, to the report: machines, leases that end, changed files, builds,
//! and the user's wishes.

use std::time::{Duration, Instant};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{
    Beside, Interrupts,
    outlet::{self, Happening, Outlet, Remark},
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
/// Events that are told one after the other before keys, signals and the bus are looked at again.
const AT_ONCE: usize = 256;
/// What comes sooner after an event that was told waits so long: a thousand machines that ask at once
/// wake who tells of it some times, not thousands of times, and nobody sees so short a time.
const PACE: Duration = Duration::from_millis(10);

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
    let mut not_before = tokio::time::Instant::now();
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
            (index, happening) = next(outlets, not_before) => match happening {
                Happening::Machine(event) => {
                    let outlet = &mut outlets[index];
                    let interface = outlet.lease.facts.interface.clone();
                    for event in std::iter::once(event).chain(outlet.waiting()).take(AT_ONCE) {
                        beside.desktop.iter().for_each(|desktop| desktop.tell(&event));
                        report.machine(&interface, &event);
                    }
                    not_before = tokio::time::Instant::now() + PACE;
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

/// The next thing that happens at one of them, once it may be told.
async fn next(outlets: &mut [Outlet], not_before: tokio::time::Instant) -> (usize, Happening) {
    sleep_until(not_before).await;
    outlet::next(outlets).await
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
