//! HTTP over loopback.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use portcullis::{
    event::{Fact, Protocol, Role},
    http::{Settings, serve_http},
    image::{Blob, EfiImage, Generation, MenuItem, Signature},
    read::{Content, Piece},
    source::Same,
    template::Template,
};

use super::{AllButOne, Facts, UNWANTED, blob, blob_of, content, run, runtime};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

struct Server {
    address: SocketAddr,
    facts: Arc<Facts>,
    /// Serves until it is dropped.
    _runtime: tokio::runtime::Runtime,
}

/// Headers in memory, then two files with padding behind the first.
fn in_pieces() -> Blob {
    let all = content(300_000);
    let pieces = [0..1000, 1000..150_001, 150_001..150_500, 150_500..300_000].map(|part| {
        let octets = &all[part];
        match octets.len() {
            ..=1000 => vec![Piece::Memory(octets.to_vec().into())],
            _ => blob(octets).content.pieces().to_vec(),
        }
    });
    Blob { length: 300_000, content: Content::new(pieces.concat()), ..blob(&all) }
}

fn serve(kernel: Blob) -> Server {
    serve_within(kernel, Duration::from_secs(60))
}

fn serve_within(kernel: Blob, limit: Duration) -> Server {
    serve_paced(kernel, limit, 0)
}

fn generation(kernel: Blob) -> Generation {
    Generation {
        token: TOKEN.into(),
        kernel: Some(kernel.into()),
        initrds: vec![blob(b"first").into(), blob(b"second one").into()],
        cmdline: "init=/x".into(),
        efi: Ok(EfiImage { machine: 0x8664, stub: None, signature: Signature::Missing }),
        ..Generation::default()
    }
}

fn serve_this(generation: Generation) -> Server {
    serve_so(generation, Duration::from_secs(60), 0)
}

fn serve_paced(kernel: Blob, limit: Duration, least: u64) -> Server {
    serve_so(generation(kernel), limit, least)
}

fn serve_so(generation: Generation, limit: Duration, least: u64) -> Server {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut settings = Settings::new(SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port()));
    settings.header = limit;
    settings.stall = limit;
    settings.least = least;
    let facts = Arc::new(Facts::default());
    let runtime = runtime();
    runtime.spawn(serve_http(
        listener,
        settings,
        Arc::new(Same(Arc::new(generation))),
        facts.clone(),
        Arc::new(AllButOne),
    ));
    Server { address, facts, _runtime: runtime }
}

impl Server {
    fn url(&self, file: &str) -> String {
        format!("http://{}/{TOKEN}/52-54-00-12-34-fe/{file}", self.address)
    }

    /// One raw exchange on a connection of its own: header and body.
    fn raw(&self, method: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
        let mut stream = self.connect();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let body = answer.split_off(end + 4);
        (String::from_utf8(answer).unwrap().to_lowercase(), body)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }
}

fn path(file: &str) -> String {
    format!("/{TOKEN}/52-54-00-12-34-fe/{file}")
}

/// The header without the date, which may differ between two answers.
fn without_date(header: &str) -> Vec<&str> {
    // Nor does a 304 to GET need the length that HEAD is told (RFC 9110 section 8.6).
    let not_modified = header.starts_with("http/1.1 304");
    let mut lines: Vec<&str> = header
        .lines()
        .filter(|line| !line.starts_with("date:"))
        .filter(|line| !(not_modified && line.starts_with("content-length:")))
        .collect();
    lines.sort_unstable();
    lines
}

#[test]
fn wire_35_head_and_get_agree() {
    let server = serve(blob(&content(300_000)));
    for file in ["boot.ipxe", "kernel", "boot.efi", "initrd0", "initrd1", "initrd2", "nothing"] {
        for headers in ["", "If-None-Match: *\r\n", "If-Match: \"x\"\r\n"] {
            let (head, nothing) = server.raw("HEAD", &path(file), headers);
            let (get, body) = server.raw("GET", &path(file), headers);
            assert_eq!(without_date(&head), without_date(&get), "{file} {headers}");
            assert_eq!(nothing, b"");
            if !get.starts_with("http/1.1 304") {
                let length = format!("content-length: {}\r\n", body.len());
                assert!(get.contains(&length), "{file}: {get}");
            }
            assert!(!get.contains("transfer-encoding"), "{get}");
        }
    }
    let (header, body) = server.raw("GET", &path("kernel"), "");
    assert!(body == content(300_000));
    for line in [
        "http/1.1 200 ok",
        "content-type: application/octet-stream",
        "content-length: 300000",
        "etag: \"493e0\"",
        "last-modified: sun, 06 nov 1994 08:49:37 gmt",
        "accept-ranges: bytes",
    ] {
        assert!(header.lines().any(|got| got == line), "{line}: {header}");
    }
    let (header, body) = server.raw("GET", &path("boot.ipxe"), "");
    assert!(header.contains("content-type: text/plain"), "{header}");
    assert!(body.starts_with(b"#!ipxe\n"));
    let (header, _) = server.raw("POST", &path("kernel"), "Content-Length: 0\r\n");
    assert!(header.starts_with("http/1.1 405"), "{header}");
}

#[test]
fn wire_36_the_efi_image_is_sent_as_one_file_that_firmware_knows() {
    let server = serve(in_pieces());
    let (header, body) = server.raw("GET", &path("boot.efi"), "");
    for line in ["http/1.1 200 ok", "content-type: application/efi", "content-length: 300000"] {
        assert!(header.lines().any(|got| got == line), "{line}: {header}");
    }
    assert!(body == content(300_000));
    let facts = server.facts.wait(2);
    assert!(
        matches!(facts[0], Fact::TransferStarted { role: Role::Efi, size: 300_000, .. }),
        "{facts:?}"
    );
    // As EDK2 goes on after a lost connection; this part lies in all four pieces.
    let (header, body) =
        server.raw("GET", &path("boot.efi"), "Range: bytes=999-150500\r\nIf-Match: \"493e0\"\r\n");
    assert!(header.starts_with("http/1.1 206"), "{header}");
    assert!(header.contains("content-range: bytes 999-150500/300000\r\n"), "{header}");
    assert!(body == content(300_000)[999..=150_500]);
}

#[test]
fn wire_37_doubled_slashes_are_answered_in_place() {
    let server = serve(blob(b"kernel"));
    let doubled = format!("//{TOKEN}///52-54-00-12-34-fe//kernel");
    let (header, body) = server.raw("GET", &doubled, "");
    assert!(header.starts_with("http/1.1 200"), "{header}");
    assert_eq!(body, b"kernel");
}

#[test]
fn wire_38_curl_resumes() {
    let server = serve(blob(&content(300_000)));
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("kernel");
    std::fs::write(&local, &content(300_000)[..123_456]).unwrap();
    let output = run("curl", &["-sSfC", "-", "-o", local.to_str().unwrap(), &server.url("kernel")]);
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read(&local).unwrap() == content(300_000));
    let facts = server.facts.wait(2);
    assert!(matches!(facts[1], Fact::TransferDone { sent: 300_000, .. }), "{facts:?}");

    let ranged = |range: &str| server.raw("GET", &path("kernel"), &format!("Range: {range}\r\n"));
    let (header, body) = ranged("bytes=10-19");
    assert!(header.starts_with("http/1.1 206"), "{header}");
    assert!(header.contains("content-range: bytes 10-19/300000\r\n"), "{header}");
    assert!(header.contains("content-length: 10\r\n"), "{header}");
    assert_eq!(body, content(300_000)[10..20]);
    let (header, body) = ranged("bytes=300000-");
    assert!(header.starts_with("http/1.1 416"), "{header}");
    assert!(header.contains("content-range: bytes */300000\r\n"), "{header}");
    assert!(header.contains(&format!("content-length: {}\r\n", body.len())));
    for range in ["bytes=0-1,4-5", "0-299999", "bytes=x"] {
        let (header, body) = ranged(range);
        assert!(header.starts_with("http/1.1 200"), "{range}: {header}");
        assert_eq!(body.len(), 300_000);
    }
}

#[test]
fn wire_39_what_is_not_there_is_404_at_once() {
    let server = serve(blob(b"kernel"));
    let wrong_token = path("kernel").replace("0123", "3210");
    let unwanted = path("kernel").replace("52-54-00-12-34-fe", UNWANTED);
    let no_mac = format!("/{TOKEN}/kernel");
    let climbing = path("../../etc/passwd");
    let unwanted_script = path("autoexec.ipxe").replace("52-54-00-12-34-fe", UNWANTED);
    let quiet = [
        "/",
        "/kernel",
        "/favicon.ico",
        "/autoexec.ipxe",
        &wrong_token,
        &unwanted,
        &unwanted_script,
        &no_mac,
    ];
    for file in quiet {
        let (header, body) = server.raw("GET", file, "");
        assert!(header.starts_with("http/1.1 404"), "{file}: {header}");
        assert!(body.len() < 100);
    }
    assert_eq!(server.facts.wait(0), []);
    let (header, _) = server.raw("GET", &climbing, "");
    assert!(header.starts_with("http/1.1 404"), "{header}");
    let not_found = Fact::NotFound { protocol: Protocol::Http, file: "../../etc/passwd".into() };
    assert_eq!(server.facts.wait(1), [not_found]);
}

#[test]
fn wire_20_autoexec_beside_the_loader_leads_to_the_machines_script() {
    let server = serve(blob(b"kernel"));
    let (header, body) = server.raw("GET", &path("autoexec.ipxe"), "");
    assert!(header.starts_with("http/1.1 200"), "{header}");
    assert_eq!(body, portcullis::ipxe::autoexec(&server.url("boot.ipxe")).into_bytes());
    let facts = server.facts.wait(2);
    assert!(matches!(facts[0], Fact::TransferStarted { role: Role::Autoexec, .. }), "{facts:?}");
}

#[test]
fn each_item_of_a_menu_has_a_folder_of_its_own() {
    let item = |name: &str, kernel: &[u8]| MenuItem {
        name: name.into(),
        generation: Arc::new(generation(blob(kernel))),
    };
    let server = serve_this(Generation {
        token: TOKEN.into(),
        menu: vec![item("One", b"kernel one"), item("Two", b"kernel two")],
        ..Generation::default()
    });
    let get = |file: &str| {
        let (header, body) = server.raw("GET", &path(file), "");
        (header.starts_with("http/1.1 200"), String::from_utf8(body).unwrap())
    };
    let (_, menu) = get("boot.ipxe");
    assert!(menu.contains("\nitem menu0 One\nitem menu1 Two\nchoose "), "{menu}");
    let (_, script) = get("menu1/boot.ipxe");
    let url = server.url("menu1/kernel");
    assert!(script.contains(&format!("\nkernel --name kernel {url} || goto")), "{script}");
    assert_eq!(get("menu0/kernel"), (true, "kernel one".to_owned()));
    assert_eq!(get("menu1/kernel"), (true, "kernel two".to_owned()));
    assert_eq!(get("menu1/initrd1"), (true, "second one".to_owned()));
    for file in ["kernel", "menu2/kernel", "menu01/kernel", "kernel/kernel", "menu0/menu1/kernel"] {
        assert!(!get(file).0, "{file}");
    }
    // The machine is handed over by its menu, and once.
    let roles: Vec<_> = (server.facts.wait(0).into_iter())
        .filter_map(|fact| match fact {
            Fact::TransferStarted { role, .. } => Some(role),
            _ => None,
        })
        .collect();
    assert_eq!(roles[..2], [Role::Script, Role::Autoexec]);
    assert!(!roles[2..].contains(&Role::Script), "{roles:?}");
}

#[test]
fn what_ipxe_says_of_its_machine_is_asked_for_and_stays_harmless() {
    let server = serve_this(Generation {
        cmdline: Template::parse("s={{ SERIAL }} h={{ HOSTNAME }} m={{ MAC }}", "ID", |_| 0)
            .unwrap(),
        ..generation(blob(b"kernel"))
    });
    let url = server.url("boot.ipxe");
    let (_, asked) = server.raw("GET", &path("boot.ipxe"), "");
    assert_eq!(
        String::from_utf8(asked).unwrap(),
        format!(
            "#!ipxe\nchain --replace {url}?uuid=${{uuid}}&serial=${{serial:hexraw}}&hostname=${{hostname:hexraw}} || exit 1\n"
        )
    );
    let facts = server.facts.wait(2);
    assert!(matches!(facts[0], Fact::TransferStarted { role: Role::Autoexec, .. }), "{facts:?}");
    let hex = |text: &str| text.bytes().map(|octet| format!("{octet:02x}")).collect::<String>();
    // The last digit is none, and half of one is nothing.
    let query = format!("?uuid=&serial={}&hostname={}zz1", hex("VM 1\n\"evil\""), hex("${x}"));
    let (_, script) = server.raw("GET", &(path("boot.ipxe") + &query), "");
    let script = String::from_utf8(script).unwrap();
    let line = "boot kernel initrd=initrd0 initrd=initrd1 \
                s=VM_1__evil_ h=__x_ m=52:54:00:12:34:fe || goto no_boot\n";
    assert!(script.contains(line), "{script}");
}

#[test]
fn a_file_that_was_written_to_is_refused_and_said() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1000).unwrap();
    let writer = file.try_clone().unwrap();
    let server = serve(blob_of(file, 1000));
    assert!(server.raw("HEAD", &path("kernel"), "").0.starts_with("http/1.1 200"));
    writer.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let (header, text) = server.raw("GET", &path("kernel"), "");
    assert!(header.starts_with("http/1.1 409"), "{header}");
    assert!(String::from_utf8(text).unwrap().contains("start the machine again"));
    let facts = server.facts.wait(1);
    assert!(matches!(facts[0], Fact::Upstream { .. }), "{facts:?}");
}

#[test]
fn wire_40_lengths_beyond_4_gib_are_exact() {
    let length = 5_000_000_000;
    let file = tempfile::tempfile().unwrap();
    file.set_len(length).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", length - 3).unwrap();
    let server = serve(blob_of(file, length));
    let (header, _) = server.raw("HEAD", &path("kernel"), "");
    assert!(header.contains("content-length: 5000000000\r\n"), "{header}");
    let (header, body) = server.raw("GET", &path("kernel"), "Range: bytes=-5\r\n");
    assert!(
        header.contains("content-range: bytes 4999999995-4999999999/5000000000\r\n"),
        "{header}"
    );
    assert_eq!(body, b"\0\0end");
}

/// Marks at the ends and around the places where a counter may turn; holes elsewhere.
#[test]
fn wire_40_images_of_all_sizes_arrive_intact() {
    let (two, four) = (1_u64 << 31, 1_u64 << 32);
    for length in [0, 1, two - 1, two + 1, four + 1_000_003] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        let places = [0, two - 2, two - 1, two, four - 2, four - 1, four, length.saturating_sub(1)];
        let marks: BTreeMap<u64, u8> =
            places.into_iter().filter(|place| *place < length).zip(b'a'..).collect();
        for (place, mark) in &marks {
            std::os::unix::fs::FileExt::write_all_at(&file, &[*mark], *place).unwrap();
        }
        let server = serve(blob_of(file, length));
        let mut stream = server.connect();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let request =
            format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path("kernel"));
        stream.write_all(request.as_bytes()).unwrap();
        let mut reader = BufReader::with_capacity(1 << 20, stream);
        let mut announced = false;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            announced |= line.to_lowercase() == format!("content-length: {length}\r\n");
            if line == "\r\n" {
                break;
            }
        }
        assert!(announced, "{length}");
        let zeros = vec![0; 1 << 20];
        let (mut at, mut found) = (0, BTreeMap::new());
        loop {
            let part = reader.fill_buf().unwrap();
            if part.is_empty() {
                break;
            }
            let count = part.len();
            if part != &zeros[..count] {
                let octets = (at..).zip(part.iter().copied());
                found.extend(octets.filter(|(_, octet)| *octet != 0));
            }
            at += count as u64;
            reader.consume(count);
        }
        assert_eq!((at, found), (length, marks), "{length}");
        let facts = server.facts.wait(2);
        assert!(
            matches!(facts[1], Fact::TransferDone { sent, .. } if sent == length),
            "{length}: {facts:?}"
        );
    }
}

#[test]
fn a_get_is_one_download_and_head_or_a_look_inside_is_none() {
    let server = serve(blob(&content(1_000_000)));
    server.raw("HEAD", &path("kernel"), "");
    server.raw("GET", &path("kernel"), "Range: bytes=0-0\r\n");
    for file in ["boot.ipxe", "kernel", "initrd1"] {
        server.raw("GET", &path(file), "");
    }
    let facts = server.facts.wait(6);
    let mut done = Vec::new();
    for pair in facts.chunks(2) {
        let [
            Fact::TransferStarted { transfer, protocol: Protocol::Http, role, size, .. },
            Fact::TransferDone { transfer: same, sent, .. },
        ] = pair
        else {
            panic!("{facts:?}");
        };
        assert_eq!((transfer, size), (same, sent));
        done.push((*role, *size));
    }
    assert_eq!(done.len(), 3);
    assert_eq!(done[0].0, Role::Script);
    assert_eq!(done[1], (Role::Kernel, 1_000_000));
    assert_eq!(done[2], (Role::Initrd(1), 10));
}

#[test]
fn a_machine_that_goes_away_ends_its_download() {
    let server = serve(blob(&content(20_000_000)));
    let mut stream = server.connect();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path("kernel"));
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    drop(stream);
    let facts = server.facts.wait(2);
    let Fact::TransferEnded { sent, reason, .. } = &facts[1] else {
        panic!("{facts:?}");
    };
    assert!(*sent < 20_000_000);
    assert_eq!(reason, "the connection was closed before the end of the file");
}

/// As iPXE does that has no room for a file: it closes its side and takes what comes.
#[test]
fn a_machine_that_has_closed_its_side_is_sent_no_more() {
    let length = 64 << 20;
    let server = serve(blob(&content(length)));
    let mut stream = server.connect();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path("kernel"));
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let (mut taken, mut octets) = (0, vec![0; 64 << 10]);
    while let Ok(count @ 1..) = stream.read(&mut octets) {
        taken += count;
        // Slower than what is sent, as any machine.
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(taken < length, "{taken}");
    let facts = server.facts.wait(2);
    assert!(matches!(facts[1], Fact::TransferEnded { .. }), "{facts:?}");
}

#[test]
fn wire_41_a_machine_that_takes_nothing_is_cut_off() {
    let server = serve_within(blob(&content(20_000_000)), Duration::from_secs(2));
    let mut stream = server.connect();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path("kernel"));
    stream.write_all(request.as_bytes()).unwrap();
    let began = Instant::now();
    let facts = server.facts.wait(2);
    assert!(matches!(facts[1], Fact::TransferEnded { .. }), "{facts:?}");
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[test]
fn wire_41_a_machine_that_takes_next_to_nothing_is_cut_off() {
    // More than the kernel takes over for a machine that does not read.
    let blob = blob(&content(64 << 20));
    let limit = Duration::from_secs(1);
    for (least, cut) in [(u64::MAX, true), (0, false)] {
        let server = serve_paced(blob.clone(), limit, least);
        let mut machine = server.connect();
        let request = format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", path("kernel"));
        machine.write_all(request.as_bytes()).unwrap();
        let mut octets = vec![0; 256 * 1024];
        let begun = Instant::now();
        // What is cut is told as ended; what is not goes on for several windows.
        let ended = || server.facts.wait(0).iter().any(|f| matches!(f, Fact::TransferEnded { .. }));
        while !ended() && begun.elapsed() < limit * if cut { 30 } else { 5 } {
            std::thread::sleep(limit / 4);
            let _ = machine.read(&mut octets);
        }
        assert_eq!(ended(), cut, "at least {least} octets");
    }
}

#[test]
fn one_machine_has_32_connections_and_the_next_is_closed() {
    let server = serve(blob(&content(100)));
    let places: Vec<TcpStream> = (0..32).map(|_| server.connect()).collect();
    let mut one_more = server.connect();
    assert_eq!(one_more.read(&mut [0]).unwrap_or(0), 0, "closed without a word");
    // Each of the others is served.
    for mut place in places {
        let request = format!("HEAD {} HTTP/1.1\r\nHost: h\r\n\r\n", path("kernel"));
        place.write_all(request.as_bytes()).unwrap();
        assert!(place.read(&mut [0; 9]).unwrap() > 0);
    }
    let again = || {
        let (header, _) = server.raw("HEAD", &path("kernel"), "");
        header.starts_with("http/1.1 200")
    };
    assert!((0..100).any(|_| again() || {
        std::thread::sleep(Duration::from_millis(100));
        false
    }));
}

/// Where pieces in memory lie between files, and where several requests come at once.
#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let server = serve(in_pieces());
    let mut stream = server.connect();
    let mut requests = String::new();
    for (range, close) in [("0-299999", ""), ("149000-299999", ""), ("998-150600", "close")] {
        requests += &format!(
            "GET {} HTTP/1.1\r\nHost: x\r\nRange: bytes={range}\r\nConnection: {close}\r\n\r\n",
            path("kernel")
        );
    }
    stream.write_all(requests.as_bytes()).unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).unwrap();
    let whole = content(300_000);
    for part in [0..300_000, 149_000..300_000, 998..150_601] {
        let head = answers.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert!(answers[head..].starts_with(&whole[part.clone()]), "{part:?}");
        answers.drain(..head + part.len());
    }
    assert!(answers.is_empty());
}

#[test]
fn a_head_that_comes_octet_by_octet_is_answered_like_another() {
    let server = serve(blob(b"kernel"));
    let mut stream = server.connect();
    stream.set_nodelay(true).unwrap();
    let request = format!("GET {} HTTP/1.1\r\nConnection: close\r\n\r\n", path("kernel"));
    for octet in request.as_bytes() {
        stream.write_all(&[*octet]).unwrap();
        std::thread::yield_now();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(b"\r\n\r\nkernel"));
}

/// What is sent, the heads that come back but for their dates, and whether that ends the connection.
#[test]
fn connections_end_when_they_should_and_not_before() {
    let server = serve(blob(b"kernel"));
    let get = |version: &str, fields: &str| {
        format!("GET {} HTTP/{version}\r\nHost: x\r\n{fields}\r\n", path("initrd0"))
    };
    let head = |line: &str, field: &str| {
        format!(
            "http/{line}\r\ncontent-type: application/octet-stream\r\netag: \"5\"\r\n\
             accept-ranges: bytes\r\nlast-modified: sun, 06 nov 1994 08:49:37 gmt\r\n\
             content-length: 5\r\n{field}\r\nfirst"
        )
    };
    let refused = |line: &str, field: &str| {
        format!("http/1.1 {line}\r\n{field}content-length: 0\r\nconnection: close\r\n\r\n")
    };
    let (bad, method) = (refused("400 bad request", ""), "405 method not allowed");
    for (octets, answer, ends) in [
        (get("1.1", ""), head("1.1 200 ok", ""), false),
        (get("1.1", "Connection: close\r\n"), head("1.1 200 ok", "connection: close\r\n"), true),
        (get("1.1", "Expect: 100-continue\r\n"), head("1.1 200 ok", ""), false),
        (get("1.0", ""), head("1.0 200 ok", ""), true),
        (
            get("1.0", "Connection: keep-alive\r\n"),
            head("1.0 200 ok", "connection: keep-alive\r\n"),
            false,
        ),
        // No request may hide in another's content.
        (get("1.1", "Content-Length: 5\r\n") + &get("1.1", ""), bad.clone(), true),
        (get("1.1", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", bad.clone(), true),
        (get("1.1", "A: b\r\n c\r\n"), bad.clone(), true),
        (
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
            refused(method, "allow: get, head\r\n"),
            true,
        ),
        ("PRI * HTTP/2.0\r\n\r\n".to_owned(), refused("505 http version not supported", ""), true),
        (
            format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(20_000)),
            refused("431 request header fields too large", ""),
            true,
        ),
        ("\0\u{1}\r\n\r\n".to_owned(), bad, true),
    ] {
        let mut stream = server.connect();
        stream.write_all(octets.as_bytes()).unwrap();
        let mut came = vec![0; answer.len() + DATE];
        stream.read_exact(&mut came).unwrap();
        let came = String::from_utf8(came).unwrap().to_lowercase();
        let dated = came.lines().position(|line| line.starts_with("date: ")).unwrap();
        let came: String = came
            .split_inclusive("\r\n")
            .enumerate()
            .filter(|(line, _)| *line != dated)
            .map(|(_, text)| text)
            .collect();
        assert_eq!(came, answer, "{octets:.200}");
        if !ends {
            stream.write_all(b"HEAD / HTTP/1.1\r\n\r\n").unwrap();
            let mut next = [0; 12];
            stream.read_exact(&mut next).unwrap();
            assert_eq!(&next, b"HTTP/1.1 404");
        } else {
            // An end, and no reset.
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{octets:.200}");
        }
    }
}

/// Octets of a `Date` line.
const DATE: usize = "date: sun, 06 nov 1994 08:49:37 gmt\r\n".len();

#[test]
fn a_file_that_is_not_in_the_page_cache_arrives_whole() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let local = folder.path().join("image");
    let octets = content(9_000_001);
    std::fs::write(&local, &octets).unwrap();
    let file = std::fs::File::open(&local).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let server = serve(blob_of(file, 9_000_001));
    let (_, body) = server.raw("GET", &path("kernel"), "");
    assert!(body == octets);
}

/// Files that the kernel makes when they are read cannot be sent by it (EINVAL of sendfile(2)).
#[test]
fn a_file_that_the_kernel_cannot_send_is_read() {
    let octets = std::fs::read("/proc/self/cmdline").unwrap();
    let length = octets.len() as u64;
    let server = serve(blob_of(std::fs::File::open("/proc/self/cmdline").unwrap(), length));
    let (_, body) = server.raw("GET", &path("kernel"), "");
    assert_eq!(body, octets);
    let facts = server.facts.wait(2);
    assert!(matches!(facts[1], Fact::TransferDone { sent, .. } if sent == length), "{facts:?}");
}

#[test]
fn the_end_of_a_file_that_is_written_to_while_it_is_sent_is_kept_back() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    let writer = file.try_clone().unwrap();
    let server = serve(blob_of(file, 64 << 20));
    let mut stream = server.connect();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path("kernel"));
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    writer.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 64 << 20);
    let facts = server.facts.wait(2);
    let Fact::TransferEnded { reason, .. } = &facts[1] else { panic!("{facts:?}") };
    assert_eq!(reason, "the file was changed while it was being sent");
}

#[test]
fn a_file_that_became_shorter_breaks_the_connection() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(200_000).unwrap();
    let server = serve(blob_of(file, 1_000_000));
    let output = run("curl", &["-s", "-o", "/dev/null", &server.url("kernel")]);
    // 18: partial file; 56: connection reset.
    assert!(matches!(output.status.code(), Some(18 | 56)), "{output:?}");
    let facts = server.facts.wait(2);
    let Fact::TransferEnded { reason, .. } = &facts[1] else {
        panic!("{facts:?}");
    };
    assert_eq!(reason, "the file became shorter while it was being sent");
}

#[test]
fn one_connection_serves_a_whole_boot() {
    let server = serve(blob(b"kernel"));
    let urls = ["boot.ipxe", "kernel", "initrd0", "initrd1"].map(|file| server.url(file));
    let mut arguments = vec!["-s", "-w", "%{num_connects}\n"];
    for url in &urls {
        arguments.extend(["-o", "/dev/null", url.as_str()]);
    }
    let output = run("curl", &arguments);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1\n0\n0\n0\n");
}

#[test]
fn wire_41_a_machine_that_asks_nothing_is_cut_off() {
    let server = serve_within(blob(b"kernel"), Duration::from_secs(1));
    let mut half = server.connect();
    half.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
    let mut idle = server.connect();
    let began = Instant::now();
    for stream in [&mut half, &mut idle] {
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(900), "{waited:?}");
    assert!(waited < Duration::from_secs(5), "{waited:?}");
}

#[test]
fn an_empty_file_is_done_at_once() {
    let server = serve(blob(b""));
    let (header, body) = server.raw("GET", &path("kernel"), "");
    assert!(header.contains("content-length: 0\r\n"), "{header}");
    assert_eq!(body, b"");
    let facts = server.facts.wait(2);
    assert!(matches!(facts[1], Fact::TransferDone { sent: 0, .. }), "{facts:?}");
}
