//! What is measured: each row of the table, and how one figure of it is taken.

use std::{
    io,
    net::UdpSocket,
    sync::Mutex,
    time::{Duration, Instant},
};

use portcullis_lab::{
    LabError, Result,
    load::{Enough, Fetched, dhcp, http, tftp},
    middle::{Middle, Way},
};

use crate::{
    origin::Origin,
    servers::{MIB, Server, address, at},
    usage::{self, Cpu},
};

/// `blksize` of an Ethernet frame: what firmware asks for.
pub const BLOCK: u16 = 1428;
/// What a machine sleeps before each ACK where [`Measure::Tftp`] is `far`. With the 16 us that this
/// kernel adds to a sleep and the way through two namespaces it makes a round trip of some 90 us:
/// chosen so that the others, which send a block for each, give the 13 to 18 MiB/s that they gave to
/// firmware. Between namespaces alone it takes 7 us, which no wire does.
const PAUSE: Duration = Duration::from_micros(60);
/// What lies between our start and the first machine that asks for a file, at least: firmware and iPXE
/// take longer.
const FIRMWARE: Duration = Duration::from_secs(1);
/// Machines of a storm.
const LAB: u16 = 1000;
/// No answer for so long: nothing more will come.
const QUIET: Duration = Duration::from_secs(3);

/// What is done.
#[derive(Clone, Copy, Debug)]
pub enum Measure {
    /// Machines fetch by TFTP while others have fallen silent in the middle of a transfer.
    /// Or they do it `far` away: with the round trip of a real wire and firmware.
    Tftp { window: u16, machines: u8, stalled: u8, far: bool },
    /// Machines fetch by HTTP while others have stopped reading; perhaps while our web page is open.
    Http { machines: u8, stalled: u8, watched: bool },
    /// Machines fetch by HTTP what another server has, from one that has never seen it, or has kept it: at
    /// once when our program has started, or some time after.
    Relay { machines: u8, kept: Option<Duration> },
    /// A thousand machines ask in the same instant, perhaps while others download by HTTP.
    Storm { downloads: u8 },
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub what: Measure,
    pub way: Option<Way>,
    /// Who can do it.
    pub servers: &'static [&'static str],
    /// How many times the best other we want to be.
    pub target: Option<f64>,
}

/// One figure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// MiB/s, or machines answered.
    pub value: f64,
    /// CPU seconds of the server's processes for each GiB; of a storm, for all of it.
    pub cpu: f64,
    /// MiB that were resident at most.
    pub peak: f64,
    /// Milliseconds until the last was answered.
    pub last: f64,
    /// MiB that the server which has the image has sent.
    pub sent: f64,
}

const TFTP: &[&str] = &["dnsmasq", "tftpd-hpa", "Portcullis"];
const HTTP: &[&str] = &["nginx", "nginx+firewall", "Portcullis"];
const STORM: &[&str] = &["dnsmasq", "Portcullis"];
const RELAY: &[&str] = &["nginx", "nginx by slices", "Portcullis"];
/// Who serves both DHCP and HTTP.
const BOTH: &[&str] = &["Portcullis"];

const fn tftp(window: u16, machines: u8, target: Option<f64>) -> Row {
    let what = Measure::Tftp { window, machines, stalled: 0, far: false };
    Row { what, way: None, servers: TFTP, target }
}

const fn far(window: u16, machines: u8, target: f64) -> Row {
    let what = Measure::Tftp { window, machines, stalled: 0, far: true };
    Row { what, way: None, servers: TFTP, target: Some(target) }
}

const fn http(machines: u8, target: Option<f64>) -> Row {
    let what = Measure::Http { machines, stalled: 0, watched: false };
    Row { what, way: None, servers: HTTP, target }
}

const fn relay(machines: u8, kept: Option<Duration>) -> Row {
    Row { what: Measure::Relay { machines, kept }, way: None, servers: RELAY, target: None }
}

/// All rows, in the order of the table.
pub const ROWS: &[Row] = &[
    tftp(1, 1, Some(1.2)),
    tftp(4, 1, Some(3.0)),
    tftp(16, 1, Some(10.0)),
    tftp(1, 16, None),
    tftp(4, 16, Some(3.0)),
    tftp(16, 16, None),
    Row {
        what: Measure::Tftp { window: 4, machines: 16, stalled: 64, far: false },
        ..tftp(4, 16, None)
    },
    far(1, 1, 1.2),
    far(4, 1, 3.0),
    far(16, 1, 10.0),
    far(4, 16, 3.0),
    http(1, Some(1.0)),
    http(8, Some(1.0)),
    Row { what: Measure::Http { machines: 8, stalled: 64, watched: false }, ..http(8, None) },
    Row { what: Measure::Http { machines: 8, stalled: 0, watched: true }, ..http(8, None) },
    relay(8, None),
    relay(8, Some(Duration::ZERO)),
    relay(8, Some(FIRMWARE)),
    Row { what: Measure::Storm { downloads: 0 }, way: None, servers: STORM, target: Some(1.0) },
    Row { what: Measure::Storm { downloads: 64 }, way: None, servers: BOTH, target: None },
    Row { way: Some(Way::Gigabit), ..tftp(4, 16, None) },
    Row { way: Some(Way::Gigabit), ..http(8, None) },
    Row { way: Some(Way::Lossy), ..tftp(1, 1, Some(3.0)) },
    Row { way: Some(Way::Lossy), ..tftp(4, 1, Some(3.0)) },
    Row { way: Some(Way::Lossy), ..tftp(16, 1, Some(3.0)) },
    Row { way: Some(Way::Lossy), ..http(1, None) },
    Row { way: Some(Way::Long), ..tftp(1, 1, None) },
    Row { way: Some(Way::Long), ..tftp(4, 1, None) },
    Row { way: Some(Way::Long), ..tftp(16, 1, None) },
    Row { way: Some(Way::Long), ..http(1, None) },
];

impl Row {
    /// For people.
    pub fn title(&self) -> String {
        let machines = |count: u8| match count {
            1 => "1 machine".to_owned(),
            count => format!("{count} machines"),
        };
        let stalled = |count: u8| match count {
            0 => String::new(),
            count => format!(", {count} more stalled"),
        };
        let what = match self.what {
            Measure::Tftp { window, machines: count, stalled: more, far } => {
                let far = if far { "; a round trip of 90 us" } else { "" };
                format!("TFTP, window {window}, {}{}{far}", machines(count), stalled(more))
            }
            Measure::Http { machines: count, stalled: more, watched } => {
                let page = if watched { ", our web page open" } else { "" };
                format!("HTTP, {}{}{page}", machines(count), stalled(more))
            }
            Measure::Relay { machines: count, kept } => {
                let kept = match kept {
                    None => "for the first time",
                    Some(Duration::ZERO) => "kept before",
                    Some(_) => "kept before, a second after our start",
                };
                format!("HTTP, {}; the image is another server's, {kept}", machines(count))
            }
            Measure::Storm { downloads: 0 } => format!("{LAB} DISCOVERs at once: answered"),
            Measure::Storm { downloads } => {
                format!("{LAB} DISCOVERs at once, {downloads} downloads by HTTP: answered")
            }
        };
        match self.way {
            None => what,
            Some(Way::Gigabit) => format!("{what}; link of 1 Gbit/s"),
            Some(Way::Lossy) => format!("{what}; 1 % of all packets lost"),
            Some(Way::Long) => format!("{what}; 20 ms there and back"),
        }
    }

    /// Whether this one is to be measured with it.
    pub fn fits(&self, server: &Server) -> bool {
        let passes_on = matches!(self.what, Measure::Relay { .. });
        passes_on == server.origin.is_some() && self.servers.contains(&server.name)
    }

    /// The unit of its figures.
    pub fn unit(&self) -> &'static str {
        match self.what {
            Measure::Storm { .. } => "machines",
            _ => "MiB/s",
        }
    }

    /// How much of the image is fetched.
    fn enough(&self) -> Enough {
        let mib = match (self.what, self.way) {
            (Measure::Tftp { machines: 1, .. }, None) => 16,
            (Measure::Tftp { .. }, None) => 8,
            (Measure::Tftp { .. }, Some(_)) => 4,
            (_, None) => return Enough::ALL,
            (_, Some(Way::Gigabit)) => 32,
            (_, Some(_)) => 64,
        };
        Enough { octets: mib * MIB, time: Duration::from_secs(3) }
    }

    /// One figure of one server.
    pub fn measure(&self, server: &mut Server) -> Result<Sample> {
        if let Measure::Relay { kept, .. } = self.what {
            server.relay(kept)?;
        }
        let server = &*server;
        let _middle = self
            .way
            .map(|way| Middle::put(&server.lan, server.netns(), &server.machines, way))
            .transpose()?;
        usage::forget_peak(&server.pids()?);
        let enough = self.enough();
        match self.what {
            Measure::Tftp { window, machines, stalled, far } => {
                let pause = if far { PAUSE } else { Duration::ZERO };
                let silent = stall(server, machines, stalled, |machine| {
                    tftp::stall(&request(machine, &server.file(machine), window))
                })?;
                let sample = together(server, machines, |machine| {
                    let file = server.file(machine);
                    let ended = tftp::fetch(
                        &tftp::Request { pause, ..request(machine, &file, window) },
                        enough,
                        |_| {},
                    )?;
                    Ok((ended.fetched, Some(ended)))
                });
                let _kept_until_here: Vec<UdpSocket> = silent;
                sample
            }
            Measure::Http { machines, stalled, watched } => {
                let _page = if watched { server.watch()? } else { None };
                let silent = stall(server, machines, stalled, |machine| {
                    let (to, path) = server.url(machine);
                    http::begin(address(machine), to, &path)
                })?;
                let sample = together(server, machines, |machine| {
                    let (to, path) = server.url(machine);
                    Ok((http::fetch(address(machine), to, &path, enough)?, None::<()>))
                });
                let _kept_until_here: Vec<http::Waiting> = silent;
                sample
            }
            Measure::Relay { machines, .. } => {
                let sent = || server.origin.as_ref().map_or(0, Origin::sent);
                let before = sent();
                let sample = together(server, machines, |machine| {
                    let (to, path) = server.url(machine);
                    Ok((http::fetch(address(machine), to, &path, enough)?, ()))
                })?;
                Ok(Sample { sent: mebibytes(sent().saturating_sub(before)), ..sample })
            }
            Measure::Storm { downloads } => {
                let waiting = stall(server, 0, downloads, |machine| {
                    let (to, path) = server.url(machine);
                    http::begin(address(machine), to, &path)
                })?;
                let before = Cpu::of(&server.pids()?);
                let storm = server.machines.run(|| beside(waiting, enough))?;
                let storm = storm.map_err(|error| LabError::of("a storm", error))?;
                let pids = server.pids()?;
                let cpu = Cpu::of(&pids).since(&before);
                let value = f64::from(u32::try_from(storm.answered).unwrap_or(u32::MAX));
                let peak = usage::Memory::of(&pids).peak;
                let last = storm.time.as_secs_f64() * 1000.0;
                Ok(Sample { value, cpu, peak, last, sent: 0.0 })
            }
        }
    }
}

/// A storm while these downloads run, which last longer than it does.
fn beside(downloads: Vec<http::Waiting>, enough: Enough) -> io::Result<dhcp::Storm> {
    std::thread::scope(|scope| {
        let running: Vec<_> = downloads
            .into_iter()
            .map(|download| scope.spawn(move || download.finish(enough)))
            .collect();
        let storm = dhcp::storm("eth0", LAB, QUIET);
        for download in running {
            download.join().map_err(|_| io::Error::other("a machine panicked"))??;
        }
        storm
    })
}

/// As firmware asks.
pub fn request(machine: u8, file: &str, window: u16) -> tftp::Request<'_> {
    tftp::Request {
        from: address(machine),
        server: at(69),
        file,
        block: BLOCK,
        window,
        pause: Duration::ZERO,
    }
}

/// Machines beside those that fetch, which begin and go no further.
fn stall<T: Send>(
    server: &Server,
    first: u8,
    count: u8,
    begin: impl Fn(u8) -> io::Result<T> + Send,
) -> Result<Vec<T>> {
    server
        .machines
        .run(|| (first..first + count).map(begin).collect::<io::Result<Vec<_>>>())?
        .map_err(|error| LabError::of(format!("{}: a machine that stalls", server.name), error))
}

/// Machines fetch at the same time, each in a thread of its own. What a download gives back beside
/// its figures is kept until CPU time has been read: a server's process for one transfer may end
/// with it, and its time is told to nobody.
pub fn together<T: Send>(
    server: &Server,
    machines: u8,
    fetch: impl Fn(u8) -> io::Result<(Fetched, T)> + Sync,
) -> Result<Sample> {
    let all = Mutex::new(Ok((0_u64, Vec::new())));
    let before = Cpu::of(&server.pids()?);
    let begun = Instant::now();
    server.machines.run(|| {
        std::thread::scope(|scope| {
            for machine in 0..machines {
                let (fetch, all) = (&fetch, &all);
                scope.spawn(move || {
                    let got = fetch(machine);
                    if let Ok(mut all) = all.lock() {
                        match (got, all.as_mut()) {
                            (Ok((got, rest)), Ok((sum, kept))) => {
                                *sum += got.octets;
                                kept.push(rest);
                            }
                            (Err(error), Ok(_)) => *all = Err(error),
                            (_, Err(_)) => {}
                        }
                    }
                });
            }
        });
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let pids = server.pids()?;
    let cpu = Cpu::of(&pids).since(&before);
    let (octets, _kept_until_here) = all
        .into_inner()
        .map_err(|_| LabError("a machine panicked".to_owned()))?
        .map_err(|error| LabError::of(format!("{}: a machine", server.name), error))?;
    let mib = mebibytes(octets);
    Ok(Sample {
        value: mib / seconds,
        cpu: cpu / (mib / 1024.0),
        peak: usage::Memory::of(&pids).peak,
        last: 0.0,
        sent: 0.0,
    })
}

/// Octets as MiB.
pub fn mebibytes(octets: u64) -> f64 {
    u32::try_from(octets / 1024).map_or(f64::INFINITY, f64::from) / 1024.0
}
