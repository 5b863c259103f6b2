//! The serving tasks with real sockets between two network namespaces: a thousand machines at
//! once, the source address, the boot server, and packets that cannot be answered. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs::File,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use nix::sched::{CloneFlags, setns};
use portcullis::{
    dhcp::{Note, Policy, UefiOffer, What, serve_boot_server, serve_dhcp},
    event::{self, Fact, Ignored, OfferForm},
    image::{Cpu, Generation, Loader},
    mac::MacAddr,
    machines::Machines,
    source::{Refusal, Same, Source, Step},
};
use socket2::{Domain, Socket, Type};
use tokio::sync::mpsc;

/// Not the address that the kernel would choose by itself.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 5);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 9);

fn run(command: &str) {
    let mut words = command.split(' ');
    let program = words.next().unwrap();
    let status = Command::new(program).args(words).status().unwrap();
    assert!(status.success(), "{command}");
}

/// Two namespaces with a link between them, removed on drop.
struct Lan {
    server: String,
    client: String,
}

impl Lan {
    fn new(name: &str) -> Self {
        let id = std::process::id();
        let lan = Self {
            server: format!("pc-dhcp-{id}-{name}-s"),
            client: format!("pc-dhcp-{id}-{name}-c"),
        };
        let Self { server, client } = &lan;
        for command in [
            format!("ip netns add {server}"),
            format!("ip netns add {client}"),
            format!("ip -n {server} link add lan0 type veth peer name lan0 netns {client}"),
            format!("ip -n {server} addr add 10.78.0.1/24 dev lan0"),
            format!("ip -n {server} addr add {SERVER}/24 dev lan0"),
            format!("ip -n {client} addr add {CLIENT}/24 dev lan0"),
            format!("ip -n {server} link set lan0 up"),
            format!("ip -n {client} link set lan0 up"),
        ] {
            run(&command);
        }
        lan.wait_until_up();
        lan
    }

    /// What is sent before the kernel has noticed the link is dropped without an error.
    fn wait_until_up(&self) {
        for namespace in [&self.server, &self.client] {
            let begun = Instant::now();
            loop {
                let output = Command::new("ip")
                    .args(["-n", namespace, "-o", "link", "show", "dev", "lan0"])
                    .output()
                    .unwrap();
                if String::from_utf8_lossy(&output.stdout).contains("state UP") {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(5), "{output:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// A socket in one of the namespaces. It stays there, wherever it is used from.
    fn socket(namespace: &str, address: Ipv4Addr, port: u16) -> UdpSocket {
        let path = format!("/run/netns/{namespace}");
        std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            socket.bind_device(Some(b"lan0")).unwrap();
            socket.set_broadcast(true).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            nix::sys::socket::setsockopt(
                &socket,
                nix::sys::socket::sockopt::RcvBufForce,
                &(16 << 20),
            )
            .unwrap();
            let address = SocketAddr::V4(SocketAddrV4::new(address, port));
            socket.bind(&address.into()).unwrap();
            socket.into()
        })
        .join()
        .unwrap()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.client] {
            // A failure here must not hide the test's own.
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// What a server under test has said.
struct Server {
    _runtime: tokio::runtime::Runtime,
    notes: Arc<Mutex<Vec<Note>>>,
    events: mpsc::Receiver<event::Event>,
}

impl Server {
    fn start(lan: &Lan) -> Self {
        Self::with_source(lan, Arc::new(Same(Arc::default())))
    }

    fn with_source(lan: &Lan, source: Arc<dyn Source>) -> Self {
        let policy = Policy {
            for_mac: BTreeSet::new(),
            once: false,
            count: None,
            initrds: 1,
            loaders: [Loader::Undionly, Loader::Snponly(Cpu::X64)].into(),
            address: SERVER,
            http_port: 64172,
            token: "0".repeat(32),
            uefi_offer: UefiOffer::Auto,
            boot_server: true,
            chain: None,
            signed: true,
            dhcp_server: false,
        };
        let (sender, events) = mpsc::channel(8192);
        let machines = Machines::new(policy, Instant::now(), sender);
        let dhcp = Lan::socket(&lan.server, Ipv4Addr::UNSPECIFIED, 67);
        let boot_server = Lan::socket(&lan.server, SERVER, 4011);
        let notes = Arc::new(Mutex::new(Vec::new()));
        let note = |notes: &Arc<Mutex<Vec<Note>>>| {
            let notes = Arc::clone(notes);
            move |note| notes.lock().unwrap().push(note)
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let for_dhcp = Arc::clone(&source);
        runtime.spawn(serve_dhcp(dhcp, None, Arc::clone(&machines), for_dhcp, None, note(&notes)));
        runtime.spawn(serve_boot_server(boot_server, machines, source, note(&notes)));
        Self { _runtime: runtime, notes, events }
    }

    fn wait_for_note(&self) {
        let begun = Instant::now();
        while self.notes.lock().unwrap().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for so many facts of this sort: they are told after the answer was sent.
    fn wait_for_facts(&mut self, count: usize, sort: impl Fn(&Fact) -> bool) {
        let begun = Instant::now();
        let mut found = 0;
        while found < count {
            match self.events.try_recv() {
                Ok(event) => {
                    found +=
                        usize::from(matches!(event.what, event::What::Fact(fact) if sort(&fact)));
                }
                Err(_) => {
                    assert!(begun.elapsed() < Duration::from_secs(5), "{found} of {count}");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

/// A message of an x64 UEFI machine; the number is xid and part of the hardware address.
fn message(kind: u8, number: u32) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&number.to_be_bytes());
    bytes[28..30].copy_from_slice(&[2, 0]);
    bytes[30..34].copy_from_slice(&number.to_be_bytes());
    bytes[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    bytes.extend_from_slice(&[53, 1, kind, 93, 2, 0, 7]);
    bytes.extend_from_slice(b"\x3c\x20PXEClient:Arch:00007:UNDI:003000\xff");
    bytes
}

/// The same of a client that does not boot from the network.
fn ordinary(kind: u8, number: u32) -> Vec<u8> {
    let mut bytes = message(kind, number);
    let class = bytes.len() - 33;
    bytes[class..class + 8].copy_from_slice(b"MSFT 5.0");
    bytes
}

fn number(reply: &[u8]) -> u32 {
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

fn skipped() -> bool {
    let skipped = !nix::unistd::geteuid().is_root();
    if skipped {
        eprintln!("SKIPPED: needs root for network namespaces");
    }
    skipped
}

#[test]
fn wire_09_a_thousand_machines_that_ask_at_once_are_all_answered() {
    if skipped() {
        return;
    }
    const MACHINES: u32 = 1000;
    let lan = Lan::new("many");
    let mut server = Server::start(&lan);
    let client = Lan::socket(&lan.client, Ipv4Addr::UNSPECIFIED, 68);
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    // An ordinary DHCP client among them is not answered.
    client.send_to(&ordinary(1, MACHINES), to).unwrap();
    let begun = Instant::now();
    for number in 0..MACHINES {
        client.send_to(&message(1, number), to).unwrap();
    }
    let mut answered = BTreeSet::new();
    let mut reply = [0; 1024];
    while answered.len() < 1000 {
        let (length, from) = client.recv_from(&mut reply).unwrap();
        assert_eq!(from, SocketAddr::V4(SocketAddrV4::new(SERVER, 67)));
        assert!((300..=471).contains(&length));
        assert_eq!(reply[20..24], SERVER.octets());
        assert!(number(&reply) < MACHINES);
        answered.insert(number(&reply));
    }
    let took = begun.elapsed();
    // The window of iPXE; every one is to be answered.
    assert!(took < Duration::from_secs(2), "{took:?}");
    server.wait_for_facts(1000, |fact| {
        matches!(fact, Fact::Offered { form: OfferForm::Complete, file } if file.ends_with("/snponly.efi"))
    });
    let notes = server.notes.lock().unwrap();
    let strangers = notes.iter().filter(|note| matches!(note.what, What::NotBootClient(_)));
    assert_eq!(strangers.count(), 1);
}

/// Takes its time about machine 1, refuses machine 2, and has something for all others.
struct Slow;

impl Source for Slow {
    fn token(&self) -> &str {
        "token"
    }

    fn known(&self, _: MacAddr) -> Option<Arc<Generation>> {
        None
    }

    fn generation(&self, mac: MacAddr, _: Step) -> BoxFuture<'_, Result<Arc<Generation>, Refusal>> {
        Box::pin(async move {
            match mac.0 {
                [.., 1] => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Ok(Arc::default())
                }
                [.., 2] => Err(Refusal("not today".to_owned())),
                _ => Ok(Arc::default()),
            }
        })
    }
}

#[test]
fn a_source_that_is_slow_about_one_machine_keeps_no_other_waiting() {
    if skipped() {
        return;
    }
    let lan = Lan::new("slow");
    let mut server = Server::with_source(&lan, Arc::new(Slow));
    let client = Lan::socket(&lan.client, Ipv4Addr::UNSPECIFIED, 68);
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    let begun = Instant::now();
    for number in [1, 2, 3] {
        client.send_to(&message(1, number), to).unwrap();
    }
    let mut reply = [0; 1024];
    client.recv_from(&mut reply).unwrap();
    assert_eq!(number(&reply), 3);
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    client.recv_from(&mut reply).unwrap();
    assert_eq!(number(&reply), 1);
    server.wait_for_facts(1, |fact| {
        let Fact::Ignored(Ignored::Source { reason }) = fact else { return false };
        reason == "not today"
    });
}

#[test]
fn wire_28_30_33_the_boot_server_needs_no_earlier_packet_and_answers_boot_clients_only() {
    if skipped() {
        return;
    }
    let lan = Lan::new("boot");
    let server = Server::start(&lan);
    let to = SocketAddrV4::new(SERVER, 4011);
    let stranger = Lan::socket(&lan.client, CLIENT, 40_000);
    stranger.send_to(&message(3, 1), to).unwrap();
    let ordinary_client = Lan::socket(&lan.client, CLIENT, 67);
    ordinary_client.send_to(&ordinary(3, 1), to).unwrap();
    let mut reply = [0; 1024];
    for port in [4011, 68] {
        let client = Lan::socket(&lan.client, CLIENT, port);
        client.send_to(&message(3, 2), to).unwrap();
        let (_, from) = client.recv_from(&mut reply).unwrap();
        assert_eq!(from, SocketAddr::V4(to));
        assert_eq!(reply[240..243], [53, 1, 5]);
    }
    for unanswered in [stranger, ordinary_client] {
        unanswered.set_nonblocking(true).unwrap();
        assert!(unanswered.recv_from(&mut reply).is_err());
    }
    let notes = server.notes.lock().unwrap();
    assert!(matches!(notes[0].what, What::Ignored(_)), "{notes:?}");
    assert!(matches!(notes[1].what, What::NotBootClient(_)), "{notes:?}");
}

#[test]
fn an_answer_that_cannot_be_sent_is_told_and_serving_goes_on() {
    if skipped() {
        return;
    }
    let lan = Lan::new("lost");
    let mut server = Server::start(&lan);
    let client = Lan::socket(&lan.client, Ipv4Addr::UNSPECIFIED, 68);
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    // The interface's address goes and comes back; then noise; then a machine.
    run(&format!("ip -n {} addr del {SERVER}/24 dev lan0", lan.server));
    client.send_to(&message(1, 1), to).unwrap();
    server.wait_for_note();
    run(&format!("ip -n {} addr add {SERVER}/24 dev lan0", lan.server));
    client.send_to(&[], to).unwrap();
    client.send_to(&[0; 1400], to).unwrap();
    client.send_to(&message(1, 2), to).unwrap();
    let mut reply = [0; 1024];
    client.recv_from(&mut reply).unwrap();
    assert_eq!(number(&reply), 2);
    server.wait_for_facts(1, |fact| matches!(fact, Fact::NotSent { .. }));
}
