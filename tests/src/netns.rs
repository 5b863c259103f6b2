//! A network namespace with cables, bridges and programs in it.
//!
//! Guarantees: it has no name in the file system and is held by a descriptor of this process alone,
//! so the kernel removes it when the process ends, however it ends; on drop everything that runs in
//! it is killed first. Never touches the namespace that the test was started in.

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{
    LabError, Result,
    process::{Process, finish, mortal, send},
};

/// Work for the thread that lives in the namespace.
type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of our own.
#[derive(Debug)]
pub struct Netns {
    label: String,
    file: File,
    jobs: Option<Sender<Job>>,
    resident: Option<JoinHandle<()>>,
}

impl Netns {
    /// Makes an empty namespace with its loopback up. `label` is for messages alone.
    pub fn new(label: &str) -> Result<Self> {
        let (jobs, inbox) = channel::<Job>();
        let (ready, made) = channel();
        // Processes are started by this thread, since a process started with PDEATHSIG ends with
        // the thread, not the process, that started it.
        let resident = std::thread::Builder::new()
            .name(label.to_owned())
            .spawn(move || live_in_new_namespace(&ready, &inbox))
            .map_err(|error| LabError::of(label, error))?;
        let file = made
            .recv()
            .map_err(|error| LabError::of(label, error))?
            .map_err(|error| LabError::of(format!("a network namespace for {label}"), error))?;
        let made =
            Self { label: label.to_owned(), file, jobs: Some(jobs), resident: Some(resident) };
        // An IPv6 address is usable at once: duplicate detection would cost seconds per test.
        made.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        made.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        made.ip("link set lo up")?;
        Ok(made)
    }

    /// What it is called in messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A path that `nsenter --net=` and `ip link set netns` take while this process lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// Runs `work` inside, on a fresh thread, and returns what it returns. A panic goes on here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside =
                scope.spawn(|| setns(&self.file, CloneFlags::CLONE_NEWNET).map(|()| work()));
            match inside.join() {
                Ok(result) => {
                    result.map_err(|error| LabError::of(format!("entering {}", self.label), error))
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a command inside; see [`mortal`] for commands that end with the test in any case.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        let (answer, started) = channel();
        let job: Job = Box::new(move || {
            // The asker waits for the answer; it cannot have gone.
            let _asker_gone = answer.send(Process::start(command));
        });
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .ok_or_else(|| LabError(format!("{} has ended", self.label)))?;
        started.recv().map_err(|error| LabError::of(&self.label, error))?
    }

    /// Runs a command inside to its end; see [`finish`].
    pub fn finish(&self, command: Command) -> Result<String> {
        self.run(|| finish(command))?
    }

    /// `ip` with these words, inside.
    pub fn ip(&self, words: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(words.split_whitespace());
        self.finish(command)
    }

    /// A shell script, inside.
    pub fn sh(&self, script: &str) -> Result<String> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        self.finish(command)
    }

    /// A program that runs in the background, silent, until it is dropped.
    pub fn daemon(&self, program: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = mortal(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.spawn(command)
    }

    /// Writes a value under /proc/sys.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{path}"), value))?
            .map_err(|error| LabError::of(format!("{}: {path}", self.label), error))
    }

    /// A cable: interface `here` in this namespace, `there` in the other, both up.
    pub fn cable(&self, here: &str, other: &Self, there: &str) -> Result<()> {
        let path = other.path();
        self.ip(&format!("link add {here} type veth peer name {there} netns {}", path.display()))?;
        self.ip(&format!("link set {here} up"))?;
        other.ip(&format!("link set {there} up"))?;
        Ok(())
    }

    /// A bridge that forwards at once: no spanning tree, no forwarding delay.
    pub fn bridge(&self, name: &str) -> Result<()> {
        self.ip(&format!(
            "link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ))?;
        self.ip(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Makes `port` a port of `bridge`.
    pub fn plug(&self, port: &str, bridge: &str) -> Result<()> {
        self.ip(&format!("link set {port} master {bridge}"))?;
        Ok(())
    }

    /// A tap interface, up, as a port of `bridge`.
    pub fn tap(&self, name: &str, bridge: &str) -> Result<()> {
        self.ip(&format!("tuntap add {name} mode tap"))?;
        self.plug(name, bridge)?;
        self.ip(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Gives an interface an address with prefix length, for example `192.0.2.1/24`.
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        // Without nodad an IPv6 address is tentative until a worker of the kernel comes to it, and
        // cannot be bound to meanwhile, whatever accept_dad says.
        let at_once = if address.contains(':') { "nodad" } else { "" };
        self.ip(&format!("address add {address} dev {interface} {at_once}"))?;
        Ok(())
    }

    /// Index of an interface.
    pub fn index(&self, interface: &str) -> Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(interface))?
            .map_err(|error| LabError::of(format!("{}: {interface}", self.label), error))
    }

    /// Ids of the processes that are in this namespace.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let ours = self.file.metadata().map_err(|error| LabError::of(&self.label, error))?.ino();
        let entries = std::fs::read_dir("/proc").map_err(|error| LabError::of("/proc", error))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != std::process::id())
            .filter(|pid| {
                std::fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|namespace| namespace.ino() == ours)
            })
            .collect())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Descendants of what was started may have outlived it.
        for pid in self.processes().unwrap_or_default() {
            let _already_gone = send(pid, nix::sys::signal::Signal::SIGKILL);
        }
        // Without its inbox the resident ends, and what it started with it.
        self.jobs = None;
        if let Some(resident) = self.resident.take() {
            let _its_panic_was_shown = resident.join();
        }
    }
}

/// The life of the thread in the namespace: make it, tell of it, work until nobody asks any more.
fn live_in_new_namespace(ready: &Sender<std::io::Result<File>>, inbox: &Receiver<Job>) {
    let made = unshare(CloneFlags::CLONE_NEWNET)
        .map_err(std::io::Error::from)
        .and_then(|()| File::open("/proc/thread-self/ns/net"));
    let failed = made.is_err();
    if ready.send(made).is_err() || failed {
        return;
    }
    while let Ok(job) = inbox.recv() {
        job();
    }
}

/// How long a packet may take to cross the laboratory before it counts as not arriving.
pub const CROSSING: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need_root;

    #[test]
    fn two_namespaces_reach_each_other_over_a_cable_and_vanish() {
        need_root!("ip", "setpriv");
        let left = Netns::new("left").unwrap();
        let right = Netns::new("right").unwrap();
        left.cable("eth0", &right, "eth0").unwrap();
        left.address("eth0", "192.0.2.1/24").unwrap();
        right.address("eth0", "192.0.2.2/24").unwrap();
        let listener = right.run(|| std::net::TcpListener::bind("192.0.2.2:80")).unwrap().unwrap();
        left.run(|| std::net::TcpStream::connect("192.0.2.2:80")).unwrap().unwrap();
        drop(listener);
        assert!(left.ip("link show dev no-such").is_err());

        let sleeper = left.daemon("sh", &["-c", "sleep 1000 & sleep 1000"]).unwrap();
        let pid = sleeper.pid();
        assert!(crate::process::wait_until(Duration::from_secs(2), || {
            left.processes().unwrap().len() >= 3
        }));
        let inode = left.file.metadata().unwrap().ino();
        drop(left);
        drop(sleeper);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        // The other end of the cable went with its namespace.
        assert!(crate::process::wait_until(Duration::from_secs(2), || {
            right.ip("link show dev eth0").is_err()
        }));
        let left_over = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::metadata(entry.path().join("ns/net")).is_ok_and(|ns| ns.ino() == inode)
        });
        assert!(!left_over, "a process is still in the removed namespace");
    }
}
