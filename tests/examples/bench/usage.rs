//! What processes have used, as the kernel counts it: CPU time of user and system, and memory.

use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::{Pid, SysconfVar, sysconf},
};

/// Seconds of CPU, user and system, of some processes and their ended children.
pub struct Cpu(Vec<(u32, f64)>);

impl Cpu {
    /// Until now.
    pub fn of(pids: &[u32]) -> Self {
        let used = |pid| own(pid).unwrap_or_default() + children(pid).unwrap_or_default();
        Self(pids.iter().map(|pid| (*pid, used(*pid))).collect())
    }

    /// What was used since `before`: one that came meanwhile counts from its beginning, one that went
    /// does not count.
    pub fn since(&self, before: &Self) -> f64 {
        let then = |pid| before.0.iter().find(|(other, _)| *other == pid).map_or(0.0, |one| one.1);
        self.0.iter().map(|(pid, now)| now - then(*pid)).sum()
    }
}

/// Of all threads, to the nanosecond.
fn own(pid: u32) -> Option<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid).ok()?)).ok()?;
    let time = clock_gettime(clock).ok()?;
    Some(std::time::Duration::from(time).as_secs_f64())
}

/// Of ended children, to the tick: `cutime` and `cstime` of proc_pid_stat(5).
fn children(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the third field comes after it.
    let (_, rest) = stat.rsplit_once(") ")?;
    let ticks: f64 =
        rest.split(' ').skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    let per_second = u32::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(ticks / f64::from(per_second))
}

/// MiB of memory of some processes together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// The most that was resident, files' pages included (`VmHWM`).
    pub peak: f64,
    /// Their own at this moment (`RssAnon`).
    pub anonymous: f64,
}

impl Memory {
    /// Of these processes; [`forget_peak`] sets the beginning.
    pub fn of(pids: &[u32]) -> Self {
        let mut sum = Self::default();
        for pid in pids {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let field = |key: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(key));
                let number = line.and_then(|line| line.split_whitespace().next());
                number.and_then(|number| number.parse::<f64>().ok()).unwrap_or_default() / 1024.0
            };
            sum.peak += field("VmHWM:");
            sum.anonymous += field("RssAnon:");
        }
        sum
    }
}

/// Lets `VmHWM` begin anew (proc_pid_clear_refs(5)).
pub fn forget_peak(pids: &[u32]) {
    for pid in pids {
        // One that is gone has no peak.
        let _gone = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
}
