//! What only concerns us: start to ready, memory while image and lab grow, system calls per MiB,
//! instructions of the hot paths.

use std::{
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    LabError, Result,
    host::SOON,
    load::{Enough, dhcp, http, tftp},
    process::{mortal, wait_until},
};

use crate::{
    figures::{median, short},
    rows::{self, BLOCK},
    servers::{Images, MIB, Server, address},
    usage::{self, Memory},
};

/// Milliseconds from the start of `portcullis` until it serves: without and with a helper that runs.
pub fn start(server: &mut Server, images: &Images, rounds: usize) -> Result<[Vec<f64>; 2]> {
    let image = images.image();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (warm, times) in times.iter_mut().enumerate() {
            if let Some(ours) = server.ours() {
                ours.close()?;
                if warm == 0 {
                    ours.end_helper()?;
                }
            }
            times.push(server.serve(&image)?.as_secs_f64() * 1000.0);
        }
    }
    Ok(times)
}

/// Peak memory of client and helper while image and lab grow, a line for each case.
pub fn memory(server: &mut Server, images: &Images, quick: bool) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let sizes = [10, 128, 1024, 4096].map(|mib| (mib, 1));
    let labs = [1, 8, 64].map(|machines| (2048, machines));
    for (mib, machines) in sizes.into_iter().chain(labs) {
        if quick && mib > 1024 {
            continue;
        }
        let image = images.make("growing.efi", mib * MIB)?;
        server.serve(&image)?;
        // Of a lab, each machine takes a part: what is held does not depend on how much has gone.
        let octets = if machines == 1 { u64::MAX } else { 256 * MIB };
        let enough = Enough { octets, time: Duration::from_secs(60) };
        let (sample, [client, helper]) = watched(server, || {
            rows::together(server, machines, |machine| {
                let (to, path) = server.url(machine);
                Ok((http::fetch(address(machine), to, &path, enough)?, ()))
            })
        })?;
        lines.push(format!(
            "| {mib} MiB | {machines} | {} | {} | {} | {} | {} |",
            short(client.peak),
            short(client.anonymous),
            short(helper.peak),
            short(helper.anonymous),
            short(sample.value),
        ));
    }
    server.serve(&images.image())?;
    Ok(lines)
}

/// Does `work` and watches the memory of client and helper meanwhile: the most of each.
fn watched<T>(server: &Server, work: impl FnOnce() -> Result<T>) -> Result<(T, [Memory; 2])> {
    let pids = server.pids()?;
    usage::forget_peak(&pids);
    let (client, helper) = pids.split_at(pids.len().min(1));
    let at_work = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = [Memory::default(); 2];
            while at_work.load(Ordering::Relaxed) {
                for (most, pids) in most.iter_mut().zip([client, helper]) {
                    let now = Memory::of(pids);
                    most.peak = most.peak.max(now.peak);
                    most.anonymous = most.anonymous.max(now.anonymous);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            most
        });
        let done = work();
        at_work.store(false, Ordering::Relaxed);
        let most = watcher.join().map_err(|_| LabError("the watcher panicked".to_owned()))?;
        Ok((done?, most))
    })
}

/// System calls per MiB of one transfer, by strace: HTTP, and TFTP with this window.
pub fn calls(server: &Server, images: &Images, window: Option<u16>) -> Result<f64> {
    let file = images.path().join("calls");
    let mut command = mortal("strace");
    command.args(["-f", "-c", "-o"]).arg(&file);
    for pid in server.pids()? {
        command.args(["-p", &pid.to_string()]);
    }
    let said = images.path().join("strace");
    let stderr = std::fs::File::create(&said).map_err(|error| LabError::of("strace", error))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    let mut strace = server.netns().spawn(command)?;
    // It says so for each process.
    let attached = || std::fs::read_to_string(&said).is_ok_and(|text| text.contains("attached"));
    if !wait_until(SOON, attached) {
        return Err(LabError(format!("strace does not reach {}", server.name)));
    }
    let (to, path) = server.url(0);
    let (octets, file_name) = (16 * MIB, server.file(0));
    let enough = Enough { octets, time: SOON };
    let got = server.machines.run(|| match window {
        None => http::fetch(address(0), to, &path, Enough { octets: 256 * MIB, ..enough }),
        Some(window) => {
            let request = rows::request(0, &file_name, window);
            tftp::fetch(&request, enough, |_| {}).map(|ended| ended.fetched)
        }
    })?;
    let got = got.map_err(|error| LabError::of(server.name, error))?;
    strace.signal(Signal::SIGINT)?;
    strace.wait(SOON)?;
    let text = std::fs::read_to_string(&file).map_err(|error| LabError::of("strace", error))?;
    let total = text.lines().find(|line| line.trim_end().ends_with(" total"));
    // % time, seconds, usecs/call, calls, perhaps errors, "total".
    let calls = total.and_then(|line| line.split_whitespace().nth(3)?.parse::<f64>().ok());
    let calls = calls.ok_or_else(|| LabError(format!("strace tells no total:\n{text}")))?;
    Ok(calls / rows::mebibytes(got.octets))
}

/// A hot path: its name, how often it is gone, and how.
type Path = (&'static str, u32, fn(&Server, u32) -> Result<()>);

const PATHS: [Path; 3] = [
    ("DHCP: a DISCOVER answered", 500, |server, count| {
        let machines = u16::try_from(count).unwrap_or(u16::MAX);
        let storm = server.machines.run(|| dhcp::storm("eth0", machines, SOON))?;
        let storm = storm.map_err(|error| LabError::of("a storm", error))?;
        if storm.answered == usize::from(machines) {
            Ok(())
        } else {
            Err(LabError(format!("{} of {machines} answered", storm.answered)))
        }
    }),
    ("TFTP: a window of 4 blocks sent", 1000, |server, count| {
        let file = server.file(0);
        let request = rows::request(0, &file, 4);
        let octets = u64::from(count) * 4 * u64::from(BLOCK);
        let enough = Enough { octets, time: 4 * SOON };
        let got = server.machines.run(|| tftp::fetch(&request, enough, |_| {}))?;
        got.map(|_| ()).map_err(|error| LabError::of("TFTP", error))
    }),
    ("HTTP: a head answered", 500, |server, count| {
        let (to, path) = server.url(0);
        let got = server.machines.run(|| http::heads(address(0), to, &path, count))?;
        got.map_err(|error| LabError::of("HTTP", error))
    }),
];

/// Instructions of the client for one time of each hot path, by callgrind: the difference of a run
/// with twice as many and one with as many, so that start and end do not count.
pub fn instructions(server: &mut Server, images: &Images) -> Result<Vec<(String, f64)>> {
    PATHS
        .iter()
        .map(|(name, count, work)| {
            let once = total(server, images, *count, *work)?;
            let twice = total(server, images, 2 * count, *work)?;
            Ok(((*name).to_owned(), (twice - once) / f64::from(*count)))
        })
        .collect()
}

fn total(
    server: &mut Server,
    images: &Images,
    count: u32,
    work: fn(&Server, u32) -> Result<()>,
) -> Result<f64> {
    let file = images.path().join("instructions");
    // It is alice's: a later run could not write over it otherwise.
    let _not_there = std::fs::remove_file(&file);
    let output = format!("--callgrind-out-file={}", file.display());
    let image = images.image().display().to_string();
    let tool = ["--tool=callgrind", "--quiet", &output, "portcullis", &image];
    server.serve_by("valgrind", &tool, 8 * SOON)?;
    work(server, count)?;
    if let Some(ours) = server.ours() {
        ours.close()?;
    }
    let text = std::fs::read_to_string(&file).map_err(|error| LabError::of("callgrind", error))?;
    text.lines()
        .find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
        .ok_or_else(|| LabError("callgrind tells no total".to_owned()))
}

/// How the generators compare with ordinary clients, on servers that are not ours; and that what
/// comes is what is served, from everybody.
pub fn check(servers: &[&Server], images: &Images) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let served = std::fs::read(images.path().join("small"))
        .map_err(|error| LabError::of("the image", error))?;
    for server in servers.iter().filter(|server| server.name != "nginx") {
        for window in [1, 4, 16] {
            let file = server.file(0);
            let request = rows::request(0, &file, window);
            let mut bytes = Vec::new();
            let enough = Enough { octets: 4 * MIB, time: 4 * SOON };
            let (agreed, got) = server.machines.run(|| {
                let agreed = tftp::agreement(&request);
                (agreed, tftp::fetch(&request, enough, |data| bytes.extend_from_slice(data)))
            })?;
            let failed = |error| LabError::of(server.name, error);
            let (agreed, _) = (agreed.map_err(failed)?, got.map_err(failed)?);
            if served.get(..bytes.len()) != Some(&bytes) {
                return Err(LabError(format!("{}: not what is served", server.name)));
            }
            lines.push(format!(
                "{}: asked for blocks of {BLOCK} and a window of {window}, agrees to {} and {}; {} octets are the image's",
                server.name, agreed.0, agreed.1, bytes.len()
            ));
        }
    }
    for server in servers {
        match server.name {
            "dnsmasq" => lines.push(beside_atftp(server)?),
            "nginx" => lines.push(beside_curl(server)?),
            _ => {}
        }
    }
    Ok(lines)
}

fn beside_atftp(server: &Server) -> Result<String> {
    let request = rows::request(0, "small", 1);
    let (mut own, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let got = server.machines.run(|| tftp::fetch(&request, Enough::ALL, |_| {}))?;
        let got = got.map_err(|error| LabError::of(server.name, error))?.fetched;
        own.push(rows::mebibytes(got.octets) / got.time.as_secs_f64());
        let begun = Instant::now();
        server.machines.sh(&format!(
            "atftp --option 'blksize {BLOCK}' --get --remote-file small --local-file /dev/null 192.0.2.2"
        ))?;
        theirs.push(rows::mebibytes(got.octets) / begun.elapsed().as_secs_f64());
    }
    Ok(format!(
        "from dnsmasq, by TFTP: our generator {} MiB/s, atftp {} MiB/s",
        short(median(own)),
        short(median(theirs))
    ))
}

fn beside_curl(server: &Server) -> Result<String> {
    let (to, path) = server.url(0);
    let (mut own, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let got = server.machines.run(|| http::fetch(address(0), to, &path, Enough::ALL))?;
        let got = got.map_err(|error| LabError::of(server.name, error))?;
        own.push(rows::mebibytes(got.octets) / got.time.as_secs_f64());
        let speed = server.machines.sh(&format!(
            "curl --silent --fail --output /dev/null --write-out '%{{speed_download}}' http://{to}{path}"
        ))?;
        theirs.push(speed.trim().parse::<f64>().unwrap_or(f64::NAN) / 1_048_576.0);
    }
    Ok(format!(
        "from nginx, by HTTP: our generator {} MiB/s, curl {} MiB/s",
        short(median(own)),
        short(median(theirs))
    ))
}
