//! The load generators beside the clients that people have: from the same server the same octets.
//! What they measure is only worth something if they fetch what others fetch.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
    time::Duration,
};

use portcullis_lab::{
    LabError, Result,
    lan::Lan,
    load::{Enough, dhcp, http, tftp},
    need_root,
    netns::Netns,
    process::{Process, wait_until},
};
use tempfile::TempDir;

/// The machine's only address.
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// Octets of the file: its last block of 1428 is short.
const LENGTH: usize = 3_000_001;

/// A server's network and a machine's, 192.0.2.2 and 192.0.2.100, and a file that is served.
struct Scene {
    machine: Netns,
    server: Netns,
    _lan: Lan,
    directory: TempDir,
    content: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new().unwrap();
        let [server, machine] = ["server", "machine"].map(|label| Netns::new(label).unwrap());
        lan.attach(&server, "eth0", Some("192.0.2.2/24")).unwrap();
        lan.attach(&machine, "eth0", Some("192.0.2.100/24")).unwrap();
        let directory = TempDir::new().unwrap();
        // In which every misplaced block shows.
        let content: Vec<u8> =
            (0..LENGTH).map(|at| (at * 31 + at / 251).to_le_bytes()[0]).collect();
        std::fs::write(directory.path().join("file"), &content).unwrap();
        Self { machine, server, _lan: lan, directory, content }
    }

    fn serve(&self, program: &str, arguments: &str, port: u16) -> Process {
        let arguments = arguments.replace("DIR", &self.directory.path().display().to_string());
        let words: Vec<_> = arguments.split_whitespace().collect();
        let process = self.server.daemon(program, &words).unwrap();
        assert!(wait_until(Duration::from_secs(15), || {
            let sockets = self.server.sh(&format!("ss -Hlntu 'sport = :{port}'"));
            sockets.is_ok_and(|lines| !lines.is_empty())
        }));
        process
    }

    /// What a command writes into the file `got`.
    fn fetched_by(&self, program: &str, arguments: &str) -> Result<Vec<u8>> {
        let got = self.directory.path().join("got");
        let _not_there = std::fs::remove_file(&got);
        let mut command = Command::new(program);
        command.current_dir(self.directory.path()).args(arguments.split_whitespace());
        self.machine.finish(command)?;
        std::fs::read(&got).map_err(|error| LabError::of(program, error))
    }
}

fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new([192, 0, 2, 2].into(), port)
}

#[test]
fn a_tftp_generator_fetches_what_atftp_and_tftp_hpa_fetch() {
    need_root!("ip", "ss", "dnsmasq", "atftp", "tftp");
    let scene = Scene::new();
    let _dnsmasq = scene.serve(
        "dnsmasq",
        "--keep-in-foreground --conf-file=/dev/null --port=0 --user=root --group=root --pid-file= \
         --no-hosts --no-resolv --bind-interfaces --interface=eth0 --log-facility=/dev/null \
         --enable-tftp --tftp-root=DIR",
        69,
    );
    for block in [512, 1428] {
        let request = tftp::Request {
            from: NOBODY,
            server: at(69),
            file: "file",
            block,
            window: 4,
            pause: Duration::ZERO,
        };
        let mut got = Vec::new();
        let ended = scene
            .machine
            .run(|| tftp::fetch(&request, Enough::ALL, |data| got.extend_from_slice(data)))
            .unwrap()
            .unwrap();
        assert_eq!(ended.fetched.octets, 3_000_001);
        assert!(got == scene.content, "blocks of {block}: not what is served");
        assert_eq!(
            scene.machine.run(|| tftp::agreement(&request)).unwrap().unwrap().0,
            usize::from(block)
        );
    }
    let atftp = scene.fetched_by("atftp", "--get --remote-file file --local-file got 192.0.2.2");
    assert!(atftp.unwrap() == scene.content, "atftp");
    let hpa = scene.fetched_by("tftp", "-m binary 192.0.2.2 -c get file got");
    assert!(hpa.unwrap() == scene.content, "tftp-hpa");
}

#[test]
fn an_http_generator_counts_what_curl_fetches() {
    need_root!("ip", "ss", "python3", "curl");
    let scene = Scene::new();
    let _python = scene.serve(
        "python3",
        "-m http.server --protocol HTTP/1.1 --bind 192.0.2.2 --directory DIR 80",
        80,
    );
    let got =
        scene.machine.run(|| http::fetch(NOBODY, at(80), "/file", Enough::ALL)).unwrap().unwrap();
    assert_eq!(got.octets, 3_000_001);
    scene.machine.run(|| http::heads(NOBODY, at(80), "/file", 10)).unwrap().unwrap();
    assert!(
        scene
            .machine
            .run(|| http::fetch(NOBODY, at(80), "/not-there", Enough::ALL))
            .unwrap()
            .is_err()
    );
    let curl = scene.fetched_by("curl", "--silent --fail --output got http://192.0.2.2/file");
    assert!(curl.unwrap() == scene.content, "curl");
}

/// dnsmasq answers a storm that its socket has room for completely; nobody is no answer.
#[test]
fn a_storm_counts_the_offers_of_dnsmasq() {
    need_root!("ip", "ss", "dnsmasq");
    let scene = Scene::new();
    let storm = |machines| {
        let quiet = Duration::from_secs(10);
        scene.machine.run(|| dhcp::storm("eth0", machines, quiet)).unwrap().unwrap().answered
    };
    let dnsmasq = scene.serve(
        "dnsmasq",
        "--keep-in-foreground --conf-file=/dev/null --port=0 --user=root --group=root --pid-file= \
         --no-hosts --no-resolv --bind-interfaces --interface=eth0 --log-facility=/dev/null \
         --dhcp-leasefile=DIR/leases --no-ping --dhcp-range=192.0.2.0,proxy --pxe-service=7,boot,file",
        67,
    );
    assert_eq!(storm(20), 20);
    drop(dnsmasq);
    let quiet = Duration::from_secs(1);
    let silence = scene.machine.run(|| dhcp::storm("eth0", 20, quiet)).unwrap().unwrap();
    assert_eq!(silence.answered, 0);
}
