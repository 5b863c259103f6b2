//! The TFTP and HTTP servers over real sockets, with the clients that people have: tftp-hpa,
//! atftp, curl; and by hand where a client would be too polite. Loopback only, no privileges.

// A helper of a test fails by panicking, like the test itself.
#![allow(clippy::unwrap_used, clippy::panic)]

mod http;
mod tftp;

use std::{
    fs::File,
    io::Write,
    process::{Command, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use portcullis::{
    admission::Admission,
    event::{Fact, Witness},
    image::Blob,
    mac::MacAddr,
    read::Content,
};

/// Any machine.
const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xfe]);

/// The one machine that is not admitted.
const UNWANTED: &str = "52-54-00-00-00-01";

/// Keeps the facts, in their order.
#[derive(Default)]
struct Facts(Mutex<Vec<Fact>>);

impl Witness for Facts {
    fn fact(&self, mac: MacAddr, fact: Fact) {
        assert_eq!(mac, MAC);
        self.0.lock().unwrap().push(fact);
    }
}

impl Facts {
    /// All facts but progress, once there are `count` of them.
    fn wait(&self, count: usize) -> Vec<Fact> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let mut facts = self.0.lock().unwrap().clone();
            facts.retain(|fact| !matches!(fact, Fact::TransferProgress { .. }));
            if facts.len() >= count || Instant::now() > end {
                return facts;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

struct AllButOne;

impl Admission for AllButOne {
    fn admitted(&self, mac: MacAddr) -> bool {
        mac.hyphenated() != UNWANTED
    }
}

/// Content in which every misplaced block shows.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251).to_le_bytes()[0]).collect()
}

fn blob(content: &[u8]) -> Blob {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    blob_of(file, content.len() as u64)
}

fn blob_of(file: File, length: u64) -> Blob {
    Blob {
        name: "file".into(),
        content: Content::file(file, length),
        length,
        etag: format!("\"{length:x}\""),
        last_modified: "Sun, 06 Nov 1994 08:49:37 GMT".into(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Runs a program that has to be installed: packages tftp-hpa, atftp, curl.
fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}
