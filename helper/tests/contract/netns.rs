//! Two hosts on two wires, in network namespaces of their own that end with the test.
//!
//! The calling thread becomes the host `pc-svc0` (192.0.2.1) and `pc-svc1` (198.51.100.1); the
//! machine on the other end is a thread that runs what it is given.

use std::{
    io::{self, Write},
    process::Command,
    sync::mpsc,
    thread,
};

use nix::sched::{CloneFlags, unshare};

type Task = Box<dyn FnOnce() + Send>;

/// The machine at the other end of both wires: 192.0.2.2 on `pc-peer0`, 198.51.100.2 on `pc-peer1`.
pub struct Peer {
    tasks: mpsc::Sender<Task>,
}

/// Moves the calling thread into a namespace with two wires; `None`, and a word, without root.
pub fn two_wires() -> Option<Peer> {
    if !nix::unistd::geteuid().is_root() {
        skipped("needs root, for network namespaces");
        return None;
    }
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let (tasks, inbox) = mpsc::channel::<Task>();
    let (ready, identified) = mpsc::channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ready.send(nix::unistd::gettid()).unwrap();
        for task in inbox {
            task();
        }
    });
    let namespace = identified.recv().unwrap();
    let peer = Peer { tasks };
    sh("ip link set lo up");
    for (wire, net) in [(0, "192.0.2"), (1, "198.51.100")] {
        sh(&format!(
            "ip link add pc-svc{wire} type veth peer name pc-peer{wire} netns {namespace} &&
             ip addr add {net}.1/24 dev pc-svc{wire} && ip link set pc-svc{wire} up"
        ));
        peer.run(move || {
            sh(&format!(
                "ip addr add {net}.2/24 dev pc-peer{wire} && ip link set pc-peer{wire} up"
            ));
        });
    }
    Some(peer)
}

/// Says aloud that a test has shown nothing: past the harness, which keeps the output of tests that
/// pass to itself.
pub fn skipped(why: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(io::stderr(), "SKIPPED: {test}: {why}");
    let forbidden = std::env::var_os("PORTCULLIS_NO_SKIP").is_some();
    assert!(!forbidden, "PORTCULLIS_NO_SKIP is set, and {test} {why}");
}

impl Peer {
    /// Runs something on the machine.
    pub fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let task = Box::new(move || done.send(task()).unwrap());
        self.tasks.send(task).unwrap();
        result.recv().unwrap()
    }
}

/// Runs a command in the calling thread's namespace and returns what it prints.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    text
}
