//! Running out of descriptors does not stop the HTTP server. A program of its own, for the limit
//! holds for the whole process.

// A helper of a test fails by panicking, like the test itself.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use portcullis::{
    admission::Admission,
    event::{Fact, Witness},
    http::{Settings, serve_http},
    image::{Blob, Generation, Payload},
    mac::MacAddr,
    read::Content,
    source::Same,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

struct Anybody;

impl Admission for Anybody {
    fn admitted(&self, _: MacAddr) -> bool {
        true
    }
}

impl Witness for Anybody {
    fn fact(&self, _: MacAddr, _: Fact) {}
}

#[test]
fn the_server_accepts_again_once_there_are_descriptors() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let generation = Generation {
        token: "token".into(),
        kernel: Some(Payload::Local(Blob {
            name: "kernel".into(),
            content: Content::new(Vec::new()),
            length: 0,
            etag: "\"\"".into(),
            last_modified: "Sun, 06 Nov 1994 08:49:37 GMT".into(),
        })),
        ..Generation::default()
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(serve_http(
        listener,
        Settings::new(SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port())),
        Arc::new(Same(Arc::new(generation))),
        Arc::new(Anybody),
        Arc::new(Anybody),
    ));
    assert!(answered(address));

    let before = getrlimit(Resource::Nofile);
    let low = Rlimit { current: Some(64), maximum: before.maximum };
    setrlimit(Resource::Nofile, low).unwrap();
    let mut spare = vec![File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap()];
    // Both ends of each connection are ours; the server's accept meets the limit as well.
    let mut held = Vec::new();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => held.push(stream),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(24), "{error}");
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // One more descriptor is enough for us to connect, and leaves none to accept with; unless the
    // server still has a connection to accept, and takes it first.
    let mut last = loop {
        assert!(spare.pop().is_some(), "no connection could be made");
        std::thread::sleep(Duration::from_millis(300));
        if let Ok(stream) = TcpStream::connect(address) {
            break stream;
        }
    };
    last.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    ask(&mut last);
    let starved = last.read(&mut [0; 16]).unwrap_err();
    assert_eq!(starved.kind(), ErrorKind::WouldBlock);

    held.clear();
    drop(last);
    assert!(answered(address));
}

fn ask(mut stream: impl Write) {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
}

fn answered(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    ask(&mut stream);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer.starts_with(b"HTTP/1.1 404")
}
