//! The small commands: `status`, `close`, `interfaces`, `cache`, `explain`, and what all commands share.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, IsTerminal as _, Write},
};

use nix::time::{ClockId, clock_gettime};
use portcullis_dbus::Error;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;

use crate::{
    agent::Agent,
    cli::{CacheAction, Common, Serving},
    codes,
    exit::{Code, Failure},
    interfaces::{Choice, Interface, choose, collect, direct_cable_advice},
    report::{Report, units::size},
    session::Session,
    source::cache::{self, Store},
};

/// Threads that read image files for all machines together: more would only queue at the disk, and
/// each holds its chunk in memory.
const FILE_READERS: usize = 8;

/// Files and sockets without which nothing can be served: some twenty of its own, and two for each of
/// a handful of machines. The usual limit is 1,024.
const DESCRIPTORS: u64 = 64;

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
                    let numbers: Vec<_> =
                        several.iter().map(|lease| lease.number.to_string()).collect();
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

/// `cache`: what earlier runs have kept of other web servers' files.
///
/// # Errors
/// The folder cannot be used.
pub fn cache(action: CacheAction, report: &mut Report) -> Result<(), Failure> {
    let place = cache::place(|name| std::env::var_os(name));
    // Where there is no folder, it is not made for this.
    let Some(place) = place.filter(|place| place.exists()) else {
        report.note("No copies are kept.");
        return Ok(());
    };
    let fault = |error: io::Error| {
        Failure::new(Code::Internal, format!("{} cannot be used: {error}", place.display()))
    };
    let store = Store::open(&place, cache::budget(cache::LIMIT)).map_err(fault)?;
    match action {
        CacheAction::List => {
            let copies = store.list().map_err(fault)?;
            if copies.is_empty() {
                report.note(&format!("No copies are kept in {}.", place.display()));
            }
            report.copies(&copies);
        }
        CacheAction::Clear => {
            let (files, octets, left) = store.clear().map_err(fault)?;
            let left = match left {
                0 => String::new(),
                left => format!("; {left} in use stayed"),
            };
            report.note(&format!("Removed: {files} copies, {}{left}.", size(octets)));
        }
    }
    Ok(())
}

/// `explain`. Without a code: lists all.
///
/// # Errors
/// [`Code::Usage`]: nothing is known of it; the nearest ones are named.
pub fn explain(asked: &str, report: &mut Report) -> Result<(), Failure> {
    if asked.trim().is_empty() {
        report.codes();
        return Ok(());
    }
    let found = codes::find(asked);
    if !found.is_empty() {
        report.explanations(&found);
        return Ok(());
    }
    let failure = Failure::new(Code::Usage, format!("nothing is known of {asked:?}"));
    let failure = codes::nearest(asked).into_iter().fold(failure, |failure, entry| {
        failure.advise(format!("portcullis explain {}: {}", entry.code, entry.text))
    });
    Err(match codes::ipxe_number(asked) {
        Some(number) => failure.advise(format!("iPXE's own page: https://ipxe.org/{number}")),
        None => failure.advise("all of them: portcullis explain"),
    })
}

/// The interfaces that `boot` serves on: those that were named, the one that has the named address,
/// or the one that the rule chooses, if need be by asking. At least one, and none twice.
///
/// # Errors
/// [`Code::Interface`].
pub fn pick_interfaces(boot: &Serving, report: &mut Report) -> Result<Vec<String>, Failure> {
    let mut named = boot.interface.clone();
    let mut known = BTreeSet::new();
    named.retain(|name| known.insert(name.clone()));
    match named.is_empty() {
        true => pick_interface(boot, report).map(|name| vec![name]),
        false => Ok(named),
    }
}

fn pick_interface(boot: &Serving, report: &mut Report) -> Result<String, Failure> {
    let all = read_interfaces()?;
    if let Some(address) = boot.listen_addr.filter(|address| !address.is_unspecified()) {
        let owner = all.iter().find(|one| one.addresses.contains(&address));
        return owner.map(|one| one.name.clone()).ok_or_else(|| {
            list(
                Failure::new(Code::Interface, format!("no interface has the address {address}")),
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
            .advise(format!("the machine is on the Wi-Fi's network: -i {}", wireless.name))
            .advise(format!("the machine is at the cable of {}: as follows", wired.name));
            Err(direct_cable_advice(&wired.name).into_iter().fold(failure, Failure::advise))
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
    question(several, io::stdin().lock(), io::stderr())
}

/// Repeats the question until the answer is one of the numbers or names, or there is none.
fn question(
    several: &[&Interface],
    answers: impl BufRead,
    mut screen: impl Write,
) -> Result<String, Failure> {
    for (index, one) in several.iter().enumerate() {
        let _ = writeln!(screen, "  {}  {}", index + 1, one.describe());
    }
    let mut answers = answers.lines();
    loop {
        let _ =
            write!(screen, "Which one is the other machine connected to? [1-{}] ", several.len());
        let _ = screen.flush();
        let Some(Ok(answer)) = answers.next() else {
            return Err(
                Failure::new(Code::Interface, "no interface was chosen").advise("name it: -i NAME")
            );
        };
        let answer = answer.trim();
        let number: Option<usize> = answer.parse().ok();
        let numbered = number.and_then(|number| several.get(number.checked_sub(1)?));
        let named = several.iter().find(|one| one.name == answer);
        if let Some(one) = numbered.or(named) {
            return Ok(one.name.clone());
        }
    }
}

fn read_interfaces() -> Result<Vec<Interface>, Failure> {
    collect::interfaces().map_err(|error| {
        Failure::new(Code::Internal, format!("the network interfaces cannot be read: {error}"))
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
            .advise("polkit's text agent, pkttyagent (package pkexec or polkit), is missing or could not register"));
    };
    ask().await
}

/// Sees to it that this program may open enough files and sockets: the runtime's, the lease's, and some
/// for each machine. Where fewer are given to begin with than are allowed, it takes what is allowed.
///
/// # Errors
/// Fewer are allowed. Said here, since in the middle of a call nobody could tell whose fault it is.
pub fn descriptors() -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    // None is no limit.
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= DESCRIPTORS);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if enough(limit.current) || enough(limit.maximum) && setrlimit(Resource::Nofile, raised).is_ok()
    {
        return Ok(());
    }
    let few = limit.maximum.unwrap_or_default();
    Err(Failure::new(
        Code::Internal,
        format!("this program may open {few} files and sockets at once, and needs {DESCRIPTORS}"),
    )
    .advise("ulimit -Hn shows the limit; the service or shell that starts this program sets it"))
}

/// A runtime for the bus and the servers.
///
/// # Errors
/// The system gives no threads or descriptors.
pub fn runtime() -> Result<Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.max_blocking_threads(FILE_READERS).enable_all();
    builder.build().map_err(|error| {
        Failure::new(Code::Internal, format!("the program cannot start its tasks: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interfaces::Kind;

    #[test]
    fn the_question_takes_a_number_or_a_name_and_nothing_else() {
        let interface = |name: &str| Interface {
            name: name.to_owned(),
            kind: Kind::Wired,
            up: true,
            carrier: true,
            addresses: vec![std::net::Ipv4Addr::new(10, 0, 0, 1)],
            bridge: None,
        };
        let (first, second) = (interface("eth0"), interface("eth1"));
        let several = [&first, &second];
        for (typed, chosen, asked) in [
            ("2\n", Some("eth1"), 1),
            (" eth0 \n", Some("eth0"), 1),
            ("0\n3\n\nwlan0\n1\n", Some("eth0"), 5),
            ("", None, 1),
        ] {
            let mut screen = Vec::new();
            let answer = question(&several, typed.as_bytes(), &mut screen);
            assert_eq!(answer.as_deref().ok(), chosen, "{typed:?}");
            let screen = String::from_utf8(screen).unwrap();
            assert!(screen.starts_with("  1  eth0 (wired, 10.0.0.1)\n  2  eth1"), "{screen}");
            assert_eq!(screen.matches("[1-2]").count(), asked);
        }
    }

    #[test]
    fn without_an_agent_the_helpers_answer_stands() {
        let common = Common { no_ask_password: true, ..Common::default() };
        let mut asked = 0;
        let answer: Result<(), Failure> =
            runtime().unwrap().block_on(with_agent(&common, async || {
                asked += 1;
                Err(Error::NoAgent("nobody".to_owned()).into())
            }));
        assert_eq!((answer.unwrap_err().code, asked), (12, 1));
    }
}
