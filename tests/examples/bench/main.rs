//! The measurements of `make bench`: Portcullis and others in one run, one after the other in random
//! order, several rounds. Prints tables of medians and ratios, whether they please or not, and writes
//! every sample as JSON. Needs root; works in namespaces of its own. How to read it:
//! docs/performance.md.
//!
//! `ROUNDS` (5) and `QUICK=1` (2 rounds, small images) say how much; `SEED` repeats an order;
//! `ONLY` names words that a row's title must hold. `bench instructions` counts instructions only.

mod alone;
mod figures;
mod opening;
mod origin;
mod rows;
mod servers;
mod usage;

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use portcullis_lab::{
    LabError, Result,
    host::built,
    require::{Needs, missing},
};
use serde_json::json;

use figures::{Figures, extremes, median, short};
use origin::Proxy;
use rows::ROWS;
use servers::{Images, Server};

/// Instructions of the hot paths as they were when this was last written.
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/instructions.txt");

fn main() -> Result<()> {
    let tools = ["nft", "tc", "ethtool", "dnsmasq", "in.tftpd", "nginx", "atftp", "curl", "strace"];
    let mut needs: Vec<_> = tools.into_iter().map(Needs::Tool).collect();
    needs.extend([Needs::Root, Needs::Built("portcullis"), Needs::Built("portcullis-helper")]);
    if let Some(what) = missing(&needs) {
        return Err(LabError(format!("the measurements need {what}")));
    }
    match std::env::args().nth(1).as_deref() {
        None => bench(),
        Some("instructions") => instructions(),
        Some(word) => Err(LabError(format!("what is {word}? there is: instructions"))),
    }
}

/// The whole run.
fn bench() -> Result<()> {
    let begun = Instant::now();
    let quick = number("QUICK") == Some(1);
    let rounds = number("ROUNDS").unwrap_or(if quick { 2 } else { 5 });
    let seed = number("SEED").unwrap_or_else(now);
    let images = Images::new()?;
    let mut servers = [
        Server::dnsmasq(&images)?,
        Server::tftpd_hpa(&images)?,
        Server::nginx(&images)?,
        Server::portcullis(&images)?,
        Server::proxy(&images, Proxy::Whole)?,
        Server::proxy(&images, Proxy::Slices)?,
        Server::portcullis_before_another(&images)?,
        Server::nginx_behind_firewall(&images)?,
    ];
    let machine = machine();
    say(&format!("{machine}; {rounds} rounds, SEED={seed}\n\nEach at its best:"));
    for server in &servers {
        say(&format!("  {}: {}", server.name, server.how));
    }
    say("\nThe generators beside ordinary clients:");
    let [dnsmasq, tftpd_hpa, nginx, ours, ..] = &servers;
    let alone = [dnsmasq, tftpd_hpa, nginx, ours];
    for line in alone::check(&alone, &images)? {
        say(&format!("  {line}"));
    }

    let mut figures = Figures::default();
    let mut dice = Dice(seed | 1);
    for round in 1..=rounds {
        for (row, server) in order(&mut dice, &servers) {
            match (ROWS.get(row), servers.get_mut(server)) {
                (Some(what), Some(who)) => {
                    let sample = what.measure(who)?;
                    figures.add(row, who.name, sample);
                }
                _ => continue,
            }
        }
        say(&format!(
            "round {round} of {rounds} after {} s, load {}",
            begun.elapsed().as_secs(),
            load()
        ));
    }
    say(&format!("\n{}", figures.table()));

    let mut calls = Vec::new();
    for server in servers.iter().filter(|server| server.origin.is_none()) {
        let windows: &[Option<u16>] = match server.name {
            "nginx" | "nginx+firewall" => &[None],
            "Portcullis" => &[Some(1), Some(4), Some(16), None],
            _ => &[Some(1)],
        };
        for window in windows {
            let what = window.map_or("HTTP".to_owned(), |window| format!("TFTP, window {window}"));
            let line = match alone::calls(server, &images, *window) {
                Ok(calls) => format!("{} {what}: {}", server.name, short(calls)),
                Err(error) => format!("{} {what}: not counted: {error}", server.name),
            };
            calls.push(line);
        }
    }
    say(&format!("System calls per MiB: {}\n", calls.join("; ")));

    let [_, _, _, ours, ..] = &mut servers;
    let [cold, warm] = alone::start(ours, &images, usize::try_from(rounds).unwrap_or(1))?;
    for (what, wanted, times) in [("cold", 150, &cold), ("warm", 50, &warm)] {
        let (least, most) = extremes(times);
        say(&format!(
            "Start to ready, helper {what}: {} ms ({} to {}; wanted {wanted})",
            short(median(times.iter().copied())),
            short(least),
            short(most)
        ));
    }
    let opening = opening::measure()?;
    for line in &opening {
        say(&format!("Firewall, {line}"));
    }
    let memory = alone::memory(ours, &images, quick)?;
    say(
        "\n| image | machines | client: peak MiB | own | helper: peak MiB | own | MiB/s |\n|---|---|---|---|---|---|---|",
    );
    for line in &memory {
        say(line);
    }

    let report = json!({
        "machine": machine, "rounds": rounds, "seed": seed, "load": load(),
        "servers": servers.iter().map(|server| json!({"name": server.name, "how": server.how}))
            .collect::<Vec<_>>(),
        "rows": figures.json(), "system_calls_per_mib": calls,
        "start_ms": {"cold": cold, "warm": warm}, "firewall": opening, "memory": memory,
    });
    let path = target()?.join("bench.json");
    std::fs::write(&path, format!("{report:#}\n"))
        .map_err(|error| LabError::of(path.display(), error))?;
    say(&format!("\n{} s in all; every sample: {}", begun.elapsed().as_secs(), path.display()));
    Ok(())
}

/// The hot paths beside what they cost before; `UPDATE=1` writes them down.
fn instructions() -> Result<()> {
    if let Some(what) = missing(&[Needs::Tool("valgrind")]) {
        return Err(LabError(format!("counting instructions needs {what}")));
    }
    let images = Images::new()?;
    let mut server = Server::portcullis(&images)?;
    let known = std::fs::read_to_string(BASELINE).unwrap_or_default();
    let mut text = String::from(
        "# Instructions of the client, release build on x86-64, by callgrind: make bench-instructions\n",
    );
    for (name, count) in alone::instructions(&mut server, &images)? {
        let before =
            known.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<f64>().ok());
        let beside = before.map_or("not known before".to_owned(), |before| {
            format!("before {before:.0}, {:+.1} %", (count / before - 1.0) * 100.0)
        });
        say(&format!("{name}: {count:.0} ({beside})"));
        text += &format!("{name} {count:.0}\n");
    }
    if number("UPDATE") == Some(1) {
        std::fs::write(BASELINE, text).map_err(|error| LabError::of(BASELINE, error))?;
    }
    Ok(())
}

/// Every row with every server that can do it, shuffled (Fisher and Yates).
fn order(dice: &mut Dice, servers: &[Server]) -> Vec<(usize, usize)> {
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut all: Vec<_> = ROWS
        .iter()
        .enumerate()
        .filter(|(_, row)| only.split(',').all(|word| row.title().contains(word)))
        .flat_map(|(number, row)| {
            let fitting = servers.iter().enumerate().filter(move |(_, server)| row.fits(server));
            fitting.map(move |(server, _)| (number, server))
        })
        .collect();
    for last in (1..all.len()).rev() {
        all.swap(last, dice.below(last + 1));
    }
    all
}

/// Marsaglia's xorshift64: an order that can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        usize::try_from(self.0 % limit).unwrap_or_default()
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_secs()
}

/// The first word of /proc/loadavg: who else was busy.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Processor, their number and the kernel.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|rest| rest.split_once(": ")).map_or("?", |(_, name)| name);
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{count} x {model}, Linux {}, load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        load()
    )
}

/// cargo's directory.
fn target() -> Result<PathBuf> {
    let built = built()?;
    Ok(built.parent().map_or(built.clone(), Path::to_path_buf))
}

fn say(text: &str) {
    // A reader who has left is no reason to stop.
    let _nobody_reads = writeln!(std::io::stdout(), "{text}");
}
