//! The web page's server over real connections, as strangers on this computer use it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use portcullis::{
    board::Board,
    exit::Failure,
    oui::Vendors,
    web::{Door, Port, Wish, events::Feed},
};
use tokio::runtime::Runtime;

/// Longest wait on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Page {
    runtime: Runtime,
    address: SocketAddr,
    /// The path with the secret, `/.../`.
    path: String,
}

fn open(runtime: &Runtime, port: Port) -> Result<Door, Failure> {
    let _inside = runtime.enter();
    Door::open(Wish { address: Ipv4Addr::LOCALHOST, port }, None)
}

fn parts(url: &str) -> (SocketAddr, String) {
    let rest = url.strip_prefix("http://").unwrap();
    let (address, path) = rest.split_once('/').unwrap();
    (address.parse().unwrap(), format!("/{path}"))
}

impl Page {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let door = open(&runtime, Port::Rather(0)).unwrap();
        assert!(!door.is_public());
        let (address, path) = parts(&door.url());
        let board = Arc::new(Mutex::new(Board::new(Vendors::default())));
        let feed = Feed::new(board, Instant::now(), "run".to_owned());
        runtime.spawn(door.serve(feed));
        Self { runtime, address, path }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn get(&self, path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)
    }

    /// Everything that is answered, until the connection is closed.
    fn say(&self, octets: &str) -> String {
        let mut stream = self.connect();
        // What is too long may be answered, and the connection closed, before it is all written.
        let _ = stream.write_all(octets.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Reads up to this text.
    fn read_to(stream: &mut TcpStream, text: &str) -> String {
        let mut got = Vec::new();
        let mut byte = [0];
        while !got.ends_with(text.as_bytes()) {
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&got));
            got.push(byte[0]);
        }
        String::from_utf8(got).unwrap()
    }
}

#[test]
fn the_page_its_events_and_totals_are_there() {
    let page = Page::new();
    let answer = page.say(&page.get(&page.path));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("<!doctype html>"));
    let answer = page.say(&page.get("/metrics"));
    assert!(
        answer.contains("text/plain; version=0.0.4") && answer.contains("portcullis_build_info")
    );
    let mut stream = page.connect();
    stream.write_all(page.get(&format!("{}events", page.path)).as_bytes()).unwrap();
    let head = Page::read_to(&mut stream, "\r\n\r\n").to_ascii_lowercase();
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    let first = Page::read_to(&mut stream, "\n\n");
    assert!(first.contains("event: snapshot\n"), "{first}");
}

#[test]
fn what_is_not_a_request_of_the_page_is_refused() {
    let page = Page::new();
    let (own, path) = (page.address, page.path.as_str());
    let ask = |first: &str, fields: &str| {
        page.say(&format!("{first}\r\n{fields}Connection: close\r\n\r\n"))
    };
    let host = format!("Host: {own}\r\n");
    for (first, fields, status) in [
        (format!("GET {path} HTTP/1.1"), "Host: evil.example\r\n".to_owned(), 421),
        (format!("GET {path} HTTP/1.1"), format!("{host}Origin: http://evil.example\r\n"), 403),
        (format!("POST {path} HTTP/1.1"), format!("{host}Content-Length: 5000000000\r\n"), 405),
        (format!("GET {path}../../etc/passwd HTTP/1.1"), host.clone(), 404),
        (format!("GET {path}%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), host.clone(), 404),
        ("GET / HTTP/1.1".to_owned(), host.clone(), 404),
        (format!("GET {path} HTTP/1.1"), String::new(), 421),
        (format!("GET {path} HTTP/1.1"), format!("{host}X: {}\r\n", "x".repeat(100_000)), 431),
        (format!("GET /{} HTTP/1.1", "x".repeat(100_000)), host.clone(), 431),
        (format!("GET {path} HTTP/9.9"), host.clone(), 400),
        ("\0\x01\x02".to_owned(), host, 400),
    ] {
        let answer = ask(&first, &fields);
        let right = format!("HTTP/1.1 {status} ");
        // A head that is far too long may be cut off without a word.
        assert!(
            answer.starts_with(&right) || (status == 431 && answer.is_empty()),
            "{}: {answer}",
            first.chars().take(80).collect::<String>()
        );
        assert!(!answer.contains(path.trim_matches('/')), "the secret is told to nobody");
    }
    assert!(page.say(&page.get(path)).starts_with("HTTP/1.1 200 "), "it goes on");
}

/// Other users of this computer can connect as often as they like.
#[test]
fn four_hundred_strangers_keep_nobody_out_who_knows_the_address() {
    let page = Page::new();
    let mut open = page.connect();
    open.write_all(page.get(&format!("{}events", page.path)).as_bytes()).unwrap();
    Page::read_to(&mut open, "event: snapshot\n");
    let silent: Vec<_> = (0..400).map(|_| page.connect()).collect();
    // Before the strangers have timed out, one after the other: that would take longer than is waited.
    assert!(page.say(&page.get(&page.path)).starts_with("HTTP/1.1 200 "));
    // The page that was open still is: it hears that nothing happens.
    Page::read_to(&mut open, "event: update\n");
    drop(silent);
}

#[test]
fn a_port_that_is_taken_is_another_one_or_an_error_as_it_was_asked_for() {
    let page = Page::new();
    let taken = page.address.port();
    let other = open(&page.runtime, Port::Rather(taken)).unwrap();
    let (address, path) = parts(&other.url());
    assert_ne!(address.port(), taken);
    assert_ne!(path, page.path, "the secret is new");
    let failure = open(&page.runtime, Port::Exactly(taken)).unwrap_err();
    assert_eq!(failure.code, 14);
    assert!(failure.message.contains(&taken.to_string()), "{failure}");
    let _inside = page.runtime.enter();
    for (address, code) in [(Ipv4Addr::UNSPECIFIED, 2), (Ipv4Addr::new(192, 0, 2, 77), 32)] {
        let failure = Door::open(Wish { address, port: Port::Rather(0) }, None).unwrap_err();
        assert_eq!(failure.code, code, "{failure}");
    }
}
