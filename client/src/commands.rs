//! The small commands: `status`, `close`, `interfaces`, and what all commands share.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use nix::time::{ClockId, clock_gettime};
use portcullis_dbus::Error;
use tokio::runtime::Runtime;

use crate::{
    agent::Agent,
    cli::{Boot, Common},
    exit::{Code, Failure},
    interfaces::{Choice, Interface, choose, collect, direct_cable_advice},
    report::Report,
    session::Session,
};

/// `status`.
///
/// # Errors
/// The helper cannot be asked.
pub fn status(report: &mut Report) -> Result<(), Failure> {
    let leases = runtime()?.block_on(async { Session::connect().await?.list().await })?;
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_err(|error| Failure::new(Code::Internal, format!("no clock: {error}")))?;
    let microseconds = i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1000;
    report.leases(&leases, u64::try_from(microseconds).unwrap_or_default());
    Ok(())
}

/// `close`. Without a number: the only lease there is.
///
/// # Errors
/// The helper refuses, or it is not clear which lease is meant.
pub fn close(lease: Option<u64>, common: &Common, report: &mut Report) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let session = Session::connect().await?;
        let number = match lease {
            Some(number) => number,
            None => match session.list().await?.as_slice() {
                [] => {
                    report.note("Nothing is open that you may see.");
                    return Ok(());
                }
                [one] => one.number,
                several => {
                    let numbers: Vec<_> = several
                        .iter()
                        .map(|lease| lease.number.to_string())
                        .collect();
                    let text = format!("several leases are open: {}", numbers.join(", "));
                    return Err(Failure::new(Code::Usage, text)
                        .advise("say which: portcullis close NUMBER")
                        .advise("portcullis status shows what each of them is"));
                }
            },
        };
        with_agent(common, async || session.close(number).await).await?;
        report.note(&format!("Lease {number} is closed."));
        Ok(())
    })
}

/// `interfaces`.
///
/// # Errors
/// They cannot be read.
pub fn interfaces(report: &mut Report) -> Result<(), Failure> {
    let all = read_interfaces()?;
    let chosen = match choose(&all) {
        Choice::One(one) => Some(one.name.as_str()),
        Choice::Several(_) | Choice::DirectCable { .. } | Choice::None => None,
    };
    report.interfaces(&all, chosen);
    Ok(())
}

/// The interface that `boot` serves on: the one that was named, the one that has the named address,
/// or the one that the rule chooses, if need be by asking.
///
/// # Errors
/// [`Code::Interface`].
pub fn pick_interface(boot: &Boot, report: &mut Report) -> Result<String, Failure> {
    if let Some(name) = &boot.interface {
        return Ok(name.clone());
    }
    let all = read_interfaces()?;
    if let Some(address) = boot.listen_addr.filter(|address| !address.is_unspecified()) {
        let owner = all.iter().find(|one| one.addresses.contains(&address));
        return owner.map(|one| one.name.clone()).ok_or_else(|| {
            list(
                Failure::new(
                    Code::Interface,
                    format!("no interface has the address {address}"),
                ),
                &all,
            )
        });
    }
    match choose(&all) {
        Choice::One(one) => {
            report.note(&format!("Using {} (another: -i NAME).", one.describe()));
            Ok(one.name.clone())
        }
        Choice::Several(several) => ask(&several, &boot.common),
        Choice::DirectCable { wired, wireless } => {
            let failure = Failure::new(
                Code::Interface,
                format!(
                    "{} has a cable but no IPv4 address, and {} has one: which is meant?",
                    wired.name, wireless.name
                ),
            )
            .advise(format!(
                "the machine is on the Wi-Fi's network: -i {}",
                wireless.name
            ));
            Err(direct_cable_advice(&wired.name)
                .into_iter()
                .fold(failure, Failure::advise))
        }
        Choice::None => Err(list(
            Failure::new(
                Code::Interface,
                "no network interface will do: one must be connected and have an IPv4 address",
            ),
            &all,
        )
        .advise("one of them is right nevertheless: -i NAME")),
    }
}

/// Asks at a terminal which one; elsewhere that is an error that lists them.
fn ask(several: &[&Interface], common: &Common) -> Result<String, Failure> {
    if common.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let failure = Failure::new(Code::Interface, "several network interfaces will do");
        return Err(several.iter().fold(failure, |failure, one| {
            failure.advise(format!("-i {} for {}", one.name, one.describe()))
        }));
    }
    let mut stderr = io::stderr();
    for (index, one) in several.iter().enumerate() {
        let _ = writeln!(stderr, "  {}  {}", index + 1, one.describe());
    }
    let mut lines = io::stdin().lock().lines();
    loop {
        let _ = write!(
            stderr,
            "Which interface is the other machine connected to? [1-{}] ",
            several.len()
        );
        let Some(Ok(answer)) = lines.next() else {
            return Err(Failure::new(Code::Interface, "no interface was chosen"));
        };
        let answer = answer.trim();
        let numbered = answer
            .parse::<usize>()
            .ok()
            .and_then(|number| several.get(number.checked_sub(1)?));
        let named = several.iter().find(|one| one.name == answer);
        if let Some(one) = numbered.or(named) {
            return Ok(one.name.clone());
        }
    }
}

fn read_interfaces() -> Result<Vec<Interface>, Failure> {
    collect::interfaces().map_err(|error| {
        Failure::new(
            Code::Internal,
            format!("the network interfaces cannot be read: {error}"),
        )
    })
}

fn list(failure: Failure, all: &[Interface]) -> Failure {
    all.iter().fold(failure, |failure, one| {
        let reason = one.unfit().unwrap_or_else(|| "would do".to_owned());
        failure.advise(format!("{}: {reason}", one.describe()))
    })
}

/// Asks the helper; if it says that nobody is there to be asked for a password, and a person sits at
/// this terminal, asks again with polkit's text agent here.
///
/// # Errors
/// Those of `ask`.
pub async fn with_agent<T>(
    common: &Common,
    mut ask: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let failure = match ask().await {
        Err(failure) if failure.code == Error::NoAgent(String::new()).exit_code() => failure,
        answer => return answer,
    };
    let person = io::stdin().is_terminal() && io::stderr().is_terminal();
    if common.no_ask_password || !person {
        return Err(failure);
    }
    let Some(_agent) = Agent::start().await else {
        return Err(failure
            .advise("or install pkttyagent (package pkexec or polkit), which asks in a terminal"));
    };
    ask().await
}

/// A runtime for the bus and the servers.
///
/// # Errors
/// The system gives no threads or descriptors.
pub fn runtime() -> Result<Runtime, Failure> {
    Runtime::new().map_err(|error| {
        Failure::new(
            Code::Internal,
            format!("the program cannot start its tasks: {error}"),
        )
    })
}
