//! TFTP over loopback.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use portcullis::{
    chain::Chain,
    event::{Fact, Protocol, Role},
    image::{Blob, EfiImage, Generation, Loader, Loaders, Signature},
    source::Same,
    tftp::{Settings, serve_tftp},
};

use super::{AllButOne, Facts, UNWANTED, blob, blob_of, content, run, runtime};

const NAME: &str = "52-54-00-12-34-fe/undionly.kpxe";
const PROGRAM: &[u8] = b"an EFI program";

struct Server {
    address: SocketAddr,
    facts: Arc<Facts>,
    /// Serves until it is dropped.
    _runtime: tokio::runtime::Runtime,
}

fn serve(blob: Blob) -> Server {
    serve_with(blob, None)
}

fn serve_with(blob: Blob, chain: Option<Chain>) -> Server {
    serve_on(blob, chain, false, 1500)
}

fn serve_from_one_port(blob: Blob) -> Server {
    serve_on(blob, None, true, 1500)
}

fn serve_on(blob: Blob, chain: Option<Chain>, single_port: bool, mtu: u16) -> Server {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    let settings = Settings {
        folder: Arc::default(),
        address: Ipv4Addr::LOCALHOST,
        interface: "lo".into(),
        mtu,
        single_port,
        scripts: "http://127.0.0.1:1/token".into(),
        source: Arc::new(Same(Arc::new(Generation {
            kernel: Some(super::blob(PROGRAM).into()),
            efi: Ok(EfiImage { machine: 0x8664, stub: None, signature: Signature::Missing }),
            initrds: vec![super::blob(b"initrd").into()],
            cmdline: "a=b".into(),
            ..Generation::default()
        }))),
        chain: chain.map(Arc::new),
    };
    let facts = Arc::new(Facts::default());
    let files = Arc::new(Loaders([(Loader::Undionly, blob)].into()));
    let runtime = runtime();
    runtime.spawn(serve_tftp(socket, settings, files, facts.clone(), Arc::new(AllButOne)));
    Server { address, facts, _runtime: runtime }
}

impl Server {
    fn port(&self) -> String {
        self.address.port().to_string()
    }
}

/// A machine's socket.
struct Machine(UdpSocket);

impl Machine {
    fn new() -> Self {
        Self::at(1)
    }

    /// With the address 127.0.0.`last`.
    fn at(last: u8) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        Self(socket)
    }

    fn ask(&self, server: &Server, name: &str, options: &[u8]) {
        let packet = [b"\0\x01", name.as_bytes(), b"\0octet\0", options].concat();
        self.send(&packet, server.address);
    }

    fn send(&self, packet: &[u8], to: SocketAddr) {
        self.0.send_to(packet, to).unwrap();
    }

    fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        let (length, from) = self.0.recv_from(&mut buffer).unwrap();
        (buffer[..length].to_vec(), from)
    }

    fn silent(&self) -> bool {
        self.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        self.0.recv_from(&mut [0; 16]).is_err()
    }
}

fn assert_one_download(facts: &[Fact], length: u64) {
    let [
        Fact::TransferStarted {
            transfer,
            protocol: Protocol::Tftp,
            role: Role::Loader,
            file,
            size,
            ..
        },
        Fact::TransferDone { transfer: done, sent, .. },
    ] = facts
    else {
        panic!("{facts:?}");
    };
    assert_eq!((transfer, *size, *sent), (done, length, length));
    assert!(file.ends_with(".efi") || file.ends_with(".kpxe"), "{file}");
}

#[test]
fn wire_43_tftp_hpa_atftp_and_curl_fetch_the_file() {
    for length in [0, 1, 511, 512, 1024, 1468 * 3, 100_003] {
        let file = content(length);
        let server = serve(blob(&file));
        let folder = tempfile::tempdir().unwrap();
        let port = server.port();
        let url = format!("tftp://127.0.0.1:{port}//{NAME}");
        let to = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let hpa = to("hpa");
        let clients: [(&str, &str, Vec<&str>); 5] = [
            ("hpa", "tftp", vec!["-m", "binary", "127.0.0.1", &port, "-c", "get", NAME, &hpa]),
            ("atftp", "atftp", vec!["-g", "-r", NAME, "-l", "atftp", "127.0.0.1", &port]),
            (
                "windowed",
                "atftp",
                vec![
                    "--option",
                    "blksize 1468",
                    "--option",
                    "windowsize 8",
                    "--option",
                    "timeout 3",
                    "-g",
                    "-r",
                    NAME,
                    "-l",
                    "windowed",
                    "127.0.0.1",
                    &port,
                ],
            ),
            ("curl", "curl", vec!["-s", &url, "-o", "curl"]),
            ("blocks", "curl", vec!["-s", "--tftp-blksize", "1468", &url, "-o", "blocks"]),
        ];
        // curl takes a true size of 0 for an error.
        let usable = |program: &str| program != "curl" || length > 0;
        let clients = clients.into_iter().filter(|client| usable(client.1));
        for (number, (name, program, arguments)) in clients.enumerate() {
            let arguments: Vec<String> = arguments
                .into_iter()
                .map(|word| if word == name { to(name) } else { word.into() })
                .collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output = run(program, &arguments);
            let got = std::fs::read(to(name)).unwrap_or_else(|_| panic!("{name}: {output:?}"));
            assert!(got == file, "{name}, {length} octets: {output:?}");
            let facts = server.facts.wait(2 * number + 2);
            assert_one_download(&facts[2 * number..], length as u64);
        }
    }
}

#[test]
fn wire_43_what_is_not_a_read_request_for_a_file_is_refused() {
    let server = serve(blob(b"loader"));
    let long = [b"\0\x01".to_vec(), vec![b'a'; 600]].concat();
    let missing = &b"\0\x05\0\x01no such file\0"[..];
    let illegal = &b"\0\x05\0\x04not a read request\0"[..];
    let unwanted = format!("\0\x01{UNWANTED}/undionly.kpxe\0octet\0");
    let unwanted_script = format!("\0\x01{UNWANTED}/autoexec.ipxe\0octet\0");
    for (packet, answer) in [
        (&b"\0\x02f\0octet\0"[..], &b"\0\x05\0\x02files are read only\0"[..]),
        (b"\0\x09", illegal),
        (b"\0\x03\0\x01data", illegal),
        (b"\0\x01f\0octet", illegal),
        (b"\0\x01f\0mail\0", illegal),
        (&long, illegal),
        (b"\0\x04\0\x01", b"\0\x05\0\x05no such transfer\0"),
        (b"\0\x01undionly.kpxe\0octet\0", missing),
        (b"\0\x01../../etc/passwd\0octet\0", missing),
        (b"\0\x01autoexec.ipxe\0octet\0", missing),
        (b"\0\x01efi/boot/autoexec.ipxe\0octet\0", missing),
        (unwanted_script.as_bytes(), missing),
        (unwanted.as_bytes(), missing),
    ] {
        let machine = Machine::new();
        machine.send(packet, server.address);
        assert_eq!(machine.receive().0, answer, "{packet:?}");
    }
    for packet in [&b""[..], b"\0", b"\0\x04\0", b"\0\x05\0\x01no\0"] {
        let machine = Machine::new();
        machine.send(packet, server.address);
        assert!(machine.silent(), "{packet:?}");
    }
    assert_eq!(server.facts.wait(0), []);
    let machine = Machine::new();
    machine.ask(&server, "52-54-00-12-34-fe/x.efi", b"");
    assert_eq!(machine.receive().0, missing);
    let not_found =
        Fact::NotFound { protocol: Protocol::Tftp, file: "52-54-00-12-34-fe/x.efi".into() };
    assert_eq!(server.facts.wait(1), [not_found]);
}

#[test]
fn wire_20_autoexec_beside_the_loader_leads_to_the_machines_script() {
    let server = serve(blob(b"loader"));
    let machine = Machine::new();
    // As iPXE asks: block size and true size.
    let name = "52-54-00-12-34-fe/autoexec.ipxe";
    machine.ask(&server, name, b"blksize\x001432\0tsize\x000\0");
    let (oack, from) = machine.receive();
    let text = portcullis::ipxe::autoexec("http://127.0.0.1:1/token/52-54-00-12-34-fe/boot.ipxe");
    assert_eq!(oack, format!("\0\x06blksize\x001432\0tsize\0{}\0", text.len()).into_bytes());
    machine.send(b"\0\x04\0\0", from);
    assert_eq!(machine.receive().0, [b"\0\x03\0\x01", text.as_bytes()].concat());
    machine.send(b"\0\x04\0\x01", from);
    let facts = server.facts.wait(2);
    assert!(matches!(facts[0], Fact::TransferStarted { role: Role::Autoexec, .. }), "{facts:?}");
    assert!(matches!(facts[1], Fact::TransferDone { .. }), "{facts:?}");
}

#[test]
fn wire_53_each_transfer_has_its_own_port_on_the_address_that_was_asked() {
    let server = serve(blob(b"loader"));
    let machines = [Machine::new(), Machine::new()];
    let ports = machines.each_ref().map(|machine| {
        machine.ask(&server, NAME, b"");
        let (data, from) = machine.receive();
        assert_eq!(data, b"\0\x03\0\x01loader");
        assert_eq!(from.ip(), server.address.ip());
        from.port()
    });
    assert_ne!(ports[0], ports[1]);
    assert!(!ports.contains(&server.address.port()));
}

#[test]
fn wire_47_a_repeated_request_is_forgotten_once_the_transfer_goes_on() {
    let server = serve(blob(&content(1200)));
    let machine = Machine::new();
    machine.ask(&server, NAME, b"");
    machine.ask(&server, NAME, b"");
    let (_, from) = machine.receive();
    assert_eq!(machine.receive().0[..4], *b"\0\x03\0\x01");
    machine.send(b"\0\x04\0\x01", from);
    assert_eq!(machine.receive().0[..4], *b"\0\x03\0\x02");
    // Its next ACK is late: the same block comes again, from the same transfer.
    let (data, again) = machine.receive();
    assert_eq!((&data[..4], again), (&b"\0\x03\0\x02"[..], from));
}

#[test]
fn wire_45_a_windowed_transfer_octet_by_octet() {
    let server = serve(blob(b"0123456789abcdefXY"));
    let machine = Machine::new();
    machine.ask(&server, NAME, b"blksize\x008\0tsize\x000\0windowsize\x002\0");
    let (oack, from) = machine.receive();
    assert_eq!(oack, b"\0\x06blksize\x008\0tsize\x0018\0windowsize\x002\0");
    assert_ne!(from.port(), server.address.port());
    machine.send(b"\0\x04\0\0", from);
    assert_eq!(machine.receive(), (b"\0\x03\0\x0101234567".to_vec(), from));
    assert_eq!(machine.receive(), (b"\0\x03\0\x0289abcdef".to_vec(), from));
    machine.send(b"\0\x04\0\x01", from);
    assert_eq!(machine.receive(), (b"\0\x03\0\x0289abcdef".to_vec(), from));
    assert_eq!(machine.receive(), (b"\0\x03\0\x03XY".to_vec(), from));
    machine.send(b"\0\x04\0\x03", from);
    assert_one_download(&server.facts.wait(2), 18);
}

#[test]
fn wire_53_from_one_port_octet_by_octet() {
    let server = serve_from_one_port(blob(b"0123456789abcdefXY"));
    let (machine, other) = (Machine::new(), Machine::new());
    for machine in [&machine, &other] {
        machine.ask(&server, NAME, b"blksize\x008\0windowsize\x002\0");
        let (oack, from) = machine.receive();
        assert_eq!(oack, b"\0\x06blksize\x008\0windowsize\x002\0");
        assert_eq!(from, server.address);
    }
    let from = server.address;
    machine.send(b"\0\x04\0\0", from);
    assert_eq!(machine.receive(), (b"\0\x03\0\x0101234567".to_vec(), from));
    assert_eq!(machine.receive(), (b"\0\x03\0\x0289abcdef".to_vec(), from));
    // Neither a stranger nor another transfer moves this one.
    let stranger = Machine::new();
    stranger.send(b"\0\x04\0\x02", from);
    assert_eq!(stranger.receive(), (b"\0\x05\0\x05no such transfer\0".to_vec(), from));
    other.send(b"\0\x05\0\x08no more\0", from);
    machine.send(b"\0\x04\0\x02", from);
    assert_eq!(machine.receive(), (b"\0\x03\0\x03XY".to_vec(), from));
    machine.send(b"\0\x04\0\x03", from);
    assert_one_download(&server.facts.wait(2), 18);
    // The transfer is over, and the same port may ask again.
    machine.ask(&server, NAME, b"");
    assert_eq!(machine.receive(), (b"\0\x03\0\x010123456789abcdefXY".to_vec(), from));
}

#[test]
fn wire_53_blocks_from_one_port_fit_a_frame_that_the_guard_lets_out() {
    let file = content(9000);
    let server = serve_on(blob(&file), None, true, 9000);
    let machine = Machine::new();
    machine.ask(&server, NAME, b"blksize\08192\0");
    assert_eq!(machine.receive().0, b"\0\x06blksize\x001468\0");
}

#[test]
fn wire_53_real_clients_fetch_from_one_port() {
    let file = content(1468 * 100 + 7);
    let server = serve_from_one_port(blob(&file));
    let folder = tempfile::tempdir().unwrap();
    let port = server.port();
    let to = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let url = format!("tftp://127.0.0.1:{port}//{NAME}");
    let (hpa, atftp, curl) = (to("hpa"), to("atftp"), to("curl"));
    run("tftp", &["-m", "binary", "127.0.0.1", &port, "-c", "get", NAME, &hpa]);
    let window = ["--option", "blksize 1468", "--option", "windowsize 8"];
    let rest = ["-g", "-r", NAME, "-l", &atftp, "127.0.0.1", &port];
    run("atftp", &[&window[..], &rest[..]].concat());
    run("curl", &["-s", &url, "-o", &curl]);
    for got in [hpa, atftp, curl] {
        assert!(std::fs::read(&got).unwrap() == file, "{got}");
    }
}

/// The kernel refuses to cut what would not fit the device's MTU (EINVAL), as it refuses on devices
/// that cannot; one by one the same blocks leave in fragments.
#[test]
fn a_window_that_the_kernel_does_not_cut_leaves_block_by_block() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root for a network namespace");
        return;
    }
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        run("ip", &["link", "set", "lo", "mtu", "1000", "up"]);
        let file = content(1400 * 3 + 5);
        let server = serve(blob(&file));
        let machine = Machine::new();
        machine.ask(&server, NAME, b"blksize\x001400\0windowsize\x004\0");
        let (_, from) = machine.receive();
        machine.send(b"\0\x04\0\0", from);
        for (number, payload) in (1_u8..).zip(file.chunks(1400)) {
            let packet = [&[0, 3, 0, number], payload].concat();
            assert!(machine.receive() == (packet, from), "block {number}");
        }
        machine.send(b"\0\x04\0\x04", from);
        assert_one_download(&server.facts.wait(2), 1400 * 3 + 5);
    })
    .join()
    .unwrap();
}

#[test]
fn wire_50_a_file_of_more_than_65535_blocks() {
    // 32 MiB of blocks as of old, and 92 MiB of those that firmware asks for.
    for block in [512, 1428] {
        more_than_65535_blocks(block, block * 68_000 + 1);
    }
}

fn more_than_65535_blocks(block: u64, length: u64) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(length).unwrap();
    let marks = [0, block * 65_535, block * 65_536, length - 1];
    for at in marks {
        std::os::unix::fs::FileExt::write_all_at(&file, b"m", at).unwrap();
    }
    let server = serve(blob_of(file, length));
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("file");
    let port = server.port();
    let size = format!("blksize {block}");
    let output = run(
        "atftp",
        &[
            "--option",
            &size,
            "--option",
            "windowsize 64",
            "-g",
            "-r",
            NAME,
            "-l",
            local.to_str().unwrap(),
            "127.0.0.1",
            &port,
        ],
    );
    let got = std::fs::read(&local).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(got.len() as u64, length);
    let set: Vec<u64> =
        (0..length).zip(&got).filter_map(|(at, octet)| (*octet != 0).then_some(at)).collect();
    assert_eq!(set, marks);
    assert_one_download(&server.facts.wait(2), length);
}

#[test]
fn wire_51_probe_abort_and_request_from_the_same_port_is_one_download() {
    let server = serve(blob(b"loader"));
    let machine = Machine::new();
    machine.ask(&server, NAME, b"tsize\x000\0");
    let (oack, from) = machine.receive();
    assert_eq!(oack, b"\0\x06tsize\x006\0");
    machine.send(b"\0\x05\0\x08User aborted the transfer\0", from);
    machine.ask(&server, NAME, b"blksize\x001468\0");
    let (oack, from) = machine.receive();
    assert_eq!(oack, b"\0\x06blksize\x001468\0");
    machine.send(b"\0\x04\0\0", from);
    assert_eq!(machine.receive().0, b"\0\x03\0\x01loader");
    machine.send(b"\0\x04\0\x01", from);
    assert_one_download(&server.facts.wait(2), 6);
}

#[test]
fn wire_47_a_repeated_request_is_answered_by_the_same_transfer() {
    let server = serve(blob(b"loader"));
    let machine = Machine::new();
    machine.ask(&server, NAME, b"tsize\x000\0");
    let first = machine.receive();
    machine.ask(&server, NAME, b"tsize\x000\0");
    let second = machine.receive();
    assert_eq!(first, second);
    machine.send(b"\0\x04\0\0", first.1);
    assert_eq!(machine.receive(), (b"\0\x03\0\x01loader".to_vec(), first.1));
    machine.send(b"\0\x04\0\x01", first.1);
    assert_one_download(&server.facts.wait(2), 6);
}

/// Its answers do not arrive: it is told that it asked, though nothing was acknowledged yet.
#[test]
fn a_request_that_is_repeated_again_and_again_is_told_as_a_download() {
    let server = serve(blob(b"loader"));
    let machine = Machine::new();
    let mut from = server.address;
    for _ in 0..4 {
        machine.ask(&server, NAME, b"tsize\x000\0");
        from = machine.receive().1;
    }
    let facts = server.facts.wait(1);
    assert!(matches!(facts[..], [Fact::TransferStarted { .. }]), "{facts:?}");
    machine.send(b"\0\x04\0\0", from);
    // Answers that were sent again may be before it.
    while machine.receive().0 != b"\0\x03\0\x01loader" {}
    machine.send(b"\0\x04\0\x01", from);
    assert_one_download(&server.facts.wait(2), 6);
}

#[test]
fn a_machine_that_starts_again_in_the_middle_is_served_anew() {
    let server = serve(blob(&content(5000)));
    let machine = Machine::new();
    machine.ask(&server, NAME, b"");
    let (_, first) = machine.receive();
    machine.send(b"\0\x04\0\x01", first);
    assert_eq!(machine.receive().0[..4], *b"\0\x03\0\x02");
    machine.ask(&server, NAME, b"");
    let (data, second) = machine.receive();
    assert_eq!(data[..4], *b"\0\x03\0\x01");
    assert_ne!(first, second);
    let facts = server.facts.wait(2);
    let Fact::TransferEnded { sent, reason, .. } = &facts[1] else {
        panic!("{facts:?}");
    };
    assert_eq!((*sent, reason.as_str()), (512, "the machine asked for a file again"));
}

/// The next octets are read while the machine takes the last ones: those have to be read again here,
/// the more so where the read-ahead of 64 KiB ends.
#[test]
fn a_window_of_which_half_is_lost_goes_on_behind_the_other_half() {
    let (file, block) = (content(200_000), 1428);
    let last = file.len() / block + 1;
    let server = serve(blob(&file));
    let machine = Machine::new();
    machine.ask(&server, NAME, b"blksize\x001428\0windowsize\x004\0");
    let (_, from) = machine.receive();
    let mut acknowledged = 0_u8;
    loop {
        machine.send(&[0, 4, 0, acknowledged], from);
        let first = usize::from(acknowledged) + 1;
        if first > last {
            break;
        }
        let blocks = file.chunks(block).zip(1..).skip(first - 1).take(4);
        for (payload, number) in blocks {
            assert!(machine.receive().0 == [&[0, 3, 0, number], payload].concat(), "{number}");
        }
        acknowledged += if first + 2 > last { u8::try_from(last - first + 1).unwrap() } else { 2 };
    }
    assert_one_download(&server.facts.wait(2), file.len() as u64);
}

#[test]
fn a_transfer_ends_with_its_server_also_in_the_middle() {
    for server in [serve(blob(&content(5000))), serve_from_one_port(blob(&content(5000)))] {
        let machine = Machine::new();
        machine.ask(&server, NAME, b"");
        let (_, from) = machine.receive();
        machine.send(b"\0\x04\0\x01", from);
        assert_eq!(machine.receive().0[..4], *b"\0\x03\0\x02");
        let Server { facts, _runtime, .. } = server;
        drop(_runtime);
        let facts = facts.wait(2);
        let Fact::TransferEnded { sent: 512, reason, .. } = &facts[1] else {
            panic!("{facts:?}");
        };
        assert_eq!(reason, "the connection was closed before the end of the file");
        machine.send(b"\0\x04\0\x02", from);
        // A repetition of block 2 may have left before.
        machine.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut buffer = [0; 2048];
        while let Ok(count) = machine.0.recv(&mut buffer) {
            assert_eq!(buffer[..count][..4], *b"\0\x03\0\x02");
        }
    }
}

#[test]
fn wire_51_an_error_in_the_middle_ends_the_download() {
    let server = serve(blob(&content(5000)));
    let machine = Machine::new();
    machine.ask(&server, NAME, b"");
    let (_, from) = machine.receive();
    machine.send(b"\0\x04\0\x01", from);
    machine.receive();
    machine.send(b"\0\x05\0\x03disk full \x1b[31m\0", from);
    let facts = server.facts.wait(2);
    let Fact::TransferEnded { reason, .. } = &facts[1] else {
        panic!("{facts:?}");
    };
    assert_eq!(reason, "the machine broke off: TFTP error 3 \"disk full ?[31m\"");
    assert!(machine.silent());
}

#[test]
fn wire_52_a_stranger_gets_error_5_and_the_transfer_goes_on() {
    let server = serve(blob(&content(600)));
    let machine = Machine::new();
    machine.ask(&server, NAME, b"");
    let (_, from) = machine.receive();
    let stranger = Machine::new();
    stranger.send(b"\0\x04\0\x01", from);
    assert_eq!(stranger.receive().0, b"\0\x05\0\x05not your transfer\0");
    stranger.send(b"\0\x05\0\0stop\0", from);
    assert!(stranger.silent());
    machine.send(b"\0\x04\0\x01", from);
    assert_eq!(machine.receive().0[..4], *b"\0\x03\0\x02");
    machine.send(b"\0\x04\0\x02", from);
    assert_one_download(&server.facts.wait(2), 600);
}

#[test]
fn a_file_that_became_shorter_ends_the_transfer() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(500).unwrap();
    let server = serve(blob_of(file, 200_000));
    let machine = Machine::new();
    machine.ask(&server, NAME, b"");
    assert_eq!(machine.receive().0, b"\0\x05\0\0the file cannot be read\0");
    let facts = server.facts.wait(2);
    let Fact::TransferEnded { reason, .. } = &facts[1] else {
        panic!("{facts:?}");
    };
    assert_eq!(reason, "the file became shorter while it was being sent");
}

#[test]
fn more_than_256_transfers_at_once_are_told_to_wait() {
    let server = serve(blob(b"loader"));
    let machines: Vec<Machine> = (0..=255).map(|number| Machine::at(2 + number / 16)).collect();
    let mut places = Vec::new();
    for machine in &machines {
        machine.ask(&server, NAME, b"tsize\x000\0");
        let (oack, from) = machine.receive();
        assert_eq!(oack, b"\0\x06tsize\x006\0");
        places.push(from);
    }
    let late = Machine::new();
    late.ask(&server, NAME, b"");
    assert_eq!(late.receive().0, b"\0\x05\0\0busy, try again\0");
    machines[0].send(b"\0\x05\0\0stop\0", places[0]);
    std::thread::sleep(Duration::from_millis(200));
    late.ask(&server, NAME, b"");
    assert_eq!(late.receive().0, b"\0\x03\0\x01loader");
}

#[test]
fn one_machine_has_16_transfers_at_once_and_takes_no_place_of_another() {
    let server = serve(blob(b"loader"));
    let sockets: Vec<Machine> = (0..16).map(|_| Machine::at(2)).collect();
    for socket in &sockets {
        socket.ask(&server, NAME, b"tsize\x000\0");
        assert_eq!(socket.receive().0, b"\0\x06tsize\x006\0");
    }
    let late = Machine::at(2);
    late.ask(&server, NAME, b"");
    assert_eq!(late.receive().0, b"\0\x05\0\0busy, try again\0");
    let other = Machine::at(3);
    other.ask(&server, NAME, b"");
    assert_eq!(other.receive().0, b"\0\x03\0\x01loader");
}

#[test]
fn the_efi_program_is_served_like_a_loader() {
    let server = serve(blob(b"loader"));
    let machine = Machine::new();
    machine.ask(&server, "52-54-00-12-34-fe/boot.efi", b"");
    let (data, from) = machine.receive();
    assert_eq!(data, [b"\0\x03\0\x01", PROGRAM].concat());
    machine.send(b"\0\x04\0\x01", from);
    let facts = server.facts.wait(2);
    assert!(matches!(facts[0], Fact::TransferStarted { role: Role::Efi, .. }), "{facts:?}");
}

/// An EFI program for x64, as far as its kind is looked at, with a word at its end.
fn program(word: &[u8]) -> Vec<u8> {
    let mut program = vec![0; 0x100];
    program[..2].copy_from_slice(b"MZ");
    program[0x3c] = 0x40;
    program[0x40..0x46].copy_from_slice(b"PE\0\0\x64\x86");
    [&program, word].concat()
}

#[test]
fn a_chain_is_served_by_the_names_that_shim_and_grub_ask_for() {
    let directory = tempfile::tempdir().unwrap();
    for (name, word) in [("shimx64.efi.signed", b"shim"), ("grubnetx64.efi.signed", b"grub")] {
        std::fs::write(directory.path().join(name), program(word)).unwrap();
    }
    let chain = Chain::find(Some(directory.path()), 0x8664).unwrap();
    let server = serve_with(blob(b"loader"), Some(chain));
    let get = |name: &str| {
        let machine = Machine::new();
        machine.ask(&server, name, b"");
        let (answer, from) = machine.receive();
        machine.send(&[&[0, 4], &answer[2..4]].concat(), from);
        answer
    };
    let missing = b"\0\x05\0\x01no such file\0".to_vec();
    let data = |content: &[u8]| [b"\0\x03\0\x01", content].concat();
    // Not known yet whose address this is.
    assert_eq!(get("/grub/grub.cfg"), missing);
    for (name, content) in [
        ("52-54-00-12-34-fe/shimx64.efi", &program(b"shim")[..]),
        ("52-54-00-12-34-fe/grubx64.efi", &program(b"grub")),
        ("52-54-00-12-34-fe//GRUBX64.EFI", &program(b"grub")),
        ("/52-54-00-12-34-fe/kernel", PROGRAM),
        ("/52-54-00-12-34-fe/initrd0", b"initrd"),
    ] {
        assert_eq!(get(name), data(content), "{name}");
    }
    for name in [
        "52-54-00-12-34-fe/revocations_sku.efi",
        "/grub/x86_64-efi/command.lst",
        "/grub/x86_64-efi/../../grub/none.cfg",
        "52-54-00-12-34-fe/initrd1",
        "52-54-00-12-34-fe/mmx64.efi",
    ] {
        assert_eq!(get(name), missing, "{name}");
    }
    for name in ["/grub/x86_64-efi/grub.cfg", "/grub/grub.cfg", "52-54-00-12-34-fe/grub.cfg"] {
        let text = String::from_utf8(get(name)[4..].to_vec()).unwrap();
        let linux = "if linux (tftp,127.0.0.1)/52-54-00-12-34-fe/kernel 'a=b'; then\n";
        assert!(text.contains(linux), "{text}");
        assert!(text.contains("/52-54-00-12-34-fe/initrd0; then boot"), "{text}");
    }
    let facts = server.facts.wait(18);
    let missed: Vec<_> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::NotFound { file, .. } => Some(file.as_str()),
            _ => None,
        })
        .collect();
    // What shim and GRUB do without is not told.
    assert_eq!(missed, ["52-54-00-12-34-fe/initrd1", "52-54-00-12-34-fe/mmx64.efi"]);
}
