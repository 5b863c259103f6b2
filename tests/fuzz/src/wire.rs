//! What machines on the network send: DHCP, TFTP, HTTP.

use std::{
    cell::RefCell,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use portcullis::{
    admission::Admission,
    dhcp::{
        Decision, Memory, Policy, Port, Query, UefiOffer, decide, leave, offers::Offer, screen,
    },
    event::{Fact, OfferForm, Witness},
    http::{Server, Settings},
    image::{Blob, Cpu, EfiImage, Generation, Loader, Loaders, MenuItem, NoEfiImage, Signature},
    mac::MacAddr,
    read::{Content, Piece},
    source::Same,
    tftp::{
        name::Name,
        transfer::{Action, Agreement, GIVE_UP, MAX_WINDOW_OCTETS, Transfer},
    },
    wire::{
        dhcp::{COOKIE, HEADER, Message, option},
        dhcp_reply::{MAX, MIN},
        tftp::{MAX_REQUEST, Packet},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The token in the corpora of HTTP.
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn policy(octet: u8) -> Policy {
    let all = [Loader::Undionly, Loader::IpxePxe, Loader::Image, Loader::Given(40)];
    let cpus = Cpu::ALL.into_iter().flat_map(|cpu| [Loader::Snponly(cpu), Loader::Ipxe(cpu)]);
    Policy {
        for_mac: [].into(),
        once: false,
        count: None,
        initrds: 1,
        loaders: if octet & 0x10 == 0 { all.into_iter().chain(cpus).collect() } else { [].into() },
        address: SERVER,
        http_port: 64172,
        token: TOKEN.to_owned(),
        uefi_offer: match octet & 0x60 {
            0x20 => UefiOffer::Complete,
            0x40 => UefiOffer::BootServer,
            _ => UefiOffer::Auto,
        },
        boot_server: octet & 0x80 == 0,
        dhcp_server: false,
        chain: None,
        signed: false,
    }
}

/// A message on port 67 or 4011: the first octet says which, and what is offered; the rest is the
/// datagram. Silence, or a reply that the output guard of the helper lets pass, that is read back as
/// what was decided, and that no server would answer in turn. The same question has the same answer.
pub fn dhcp(octets: &[u8]) {
    let Some((&octet, datagram)) = octets.split_first() else {
        return;
    };
    if let Some(offer) = Offer::parse(datagram, SERVER) {
        // What `doctor` shows of it.
        let file = offer.file.unwrap_or_default();
        assert!(file.chars().count() <= 128 && !file.contains(char::is_control), "{file:?}");
    }
    let Ok(query) = Query::parse(datagram) else {
        return;
    };
    let port = match octet & 1 {
        0 => Port::Dhcp,
        _ => Port::BootServer { asker: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 4011) },
    };
    let program = match octet & 2 {
        0 => Ok(efi((octet & 4 == 0).then(|| blob(b"stub")))),
        _ => Err(NoEfiImage::Script),
    };
    // This alone, or a menu.
    let item = |name: &str, efi| MenuItem {
        name: name.to_owned(),
        generation: Arc::new(Generation { efi, ..Generation::default() }),
    };
    let menu = match datagram.last() {
        Some(128..) => vec![item("one", program.clone()), item("tw\u{f6}", Ok(efi(None)))],
        _ => Vec::new(),
    };
    let served = Generation { efi: program, menu, ..Generation::default() };
    let memory = Memory {
        local_boot: octet & 8 != 0,
        booted: octet & 16 != 0,
        chained: query.ask.header.xid[0] & 1 != 0,
        failed_loaders: query.ask.header.xid[1].into(),
    };
    let policy = policy(octet);
    let answer = || match screen(&query, port, &policy, memory) {
        Ok(()) => decide(&query, port, &policy, memory, &served),
        Err(reason) => leave(&query, port, &policy, memory, reason),
    };
    let decision = answer();
    assert_eq!(decision, answer());
    let Decision::Reply { bytes, destination, fact } = decision else {
        return;
    };
    assert_eq!(memory.local_boot, matches!(fact, Fact::Ignored(_)));
    assert!(!memory.local_boot || memory.booted);
    assert!((MIN..=MAX).contains(&bytes.len()), "{}", bytes.len());
    assert_eq!((bytes[0], &bytes[16..20], &bytes[236..240]), (2, &[0; 4][..], &COOKIE[..]));
    assert_eq!(bytes[4..8], query.ask.header.xid);
    let kind = if octet & 1 == 0 { 2 } else { 5 };
    assert_eq!(bytes[HEADER..HEADER + 3], [option::MESSAGE_TYPE, 1, kind]);
    assert!(matches!(destination.port(), 67 | 68 | 4011), "{destination}");
    assert!(Query::parse(&bytes).is_err(), "an answer is no question");

    // Read as its receiver does.
    let mut turned = bytes.clone();
    turned[0] = 1;
    let read = Message::parse(&turned).unwrap();
    assert_eq!(read.option(option::SERVER_ID).as_deref(), Some(&SERVER.octets()[..]));
    let file = match &fact {
        Fact::Offered { form, file } => {
            let class = read.option(option::VENDOR_CLASS).unwrap();
            assert_eq!(*form == OfferForm::Http, *class == *b"HTTPClient");
            file.as_str()
        }
        Fact::BootServer { file } => file.as_str(),
        // To its disk.
        Fact::Ignored(_) => "",
        other => panic!("{other:?}"),
    };
    let named = (!file.is_empty()).then(|| format!("{file}\0").into_bytes());
    assert_eq!(read.option(option::BOOT_FILE).as_deref(), named.as_deref());
    assert!(file.bytes().all(|octet| octet.is_ascii_graphic()), "{file:?}");
    for (code, theirs) in [
        (option::MACHINE_ID, query.ask.machine_id),
        (option::CLIENT_ID, query.ask.client_id),
        (option::RELAY, query.ask.relay),
    ] {
        // What a machine wants back comes back whole or not at all.
        assert!(read.option(code).is_none_or(|ours| Some(&*ours) == theirs.as_deref()), "{code}");
    }
}

/// A datagram on port 69: read within its bounds, and its name leads to one of our files or to
/// nothing; what is shown of it is printable.
pub fn tftp(octets: &[u8]) {
    let Ok(packet) = Packet::parse(octets) else {
        return;
    };
    let Packet::Read(request) = packet else {
        return;
    };
    assert!(octets.len() <= MAX_REQUEST && request.file.len() < octets.len());
    let options = request.options;
    assert!(options.block.is_none_or(|block| block >= 8));
    assert!(options.window != Some(0) && options.timeout != Some(0));
    let loaders = Loaders([(Loader::Undionly, blob(b"loader"))].into());
    match Name::parse(&request.file, &loaders) {
        Name::Loader(_, loader) => assert!(matches!(loader, Loader::Undionly | Loader::Image)),
        // Not more than the request has room for.
        Name::Item(_, number) => assert!(number.to_string().len() < request.file.len()),
        Name::Autoexec(_) => assert!(!request.file.windows(4).any(|four| four == b"/../")),
        Name::Unknown { file, .. } => {
            assert!(file.len() <= 64 && file.bytes().all(|octet| matches!(octet, b' '..=b'~')));
        }
    }
}

/// A whole transfer: length of the file, MTU, a request up to a mark, then what the reader and the
/// clock do. Never more in flight than agreed, nothing beyond the end, no pause without end, and
/// done only when all was acknowledged.
pub fn transfer(octets: &[u8]) {
    let Some((&[a, b, c, d, e, f], rest)) = octets.split_first_chunk() else {
        return;
    };
    let length = u64::from(u32::from_be_bytes([a, b, c, d]));
    let mtu = u16::from_be_bytes([e, f]);
    let mark = rest.iter().position(|octet| *octet == 0xff).unwrap_or(rest.len());
    let (asks, events) = rest.split_at(mark);
    let Ok(Packet::Read(request)) = Packet::parse(asks) else {
        return;
    };
    let agreement = Agreement::new(request.options, length, mtu);
    let (block, window) = (u64::from(agreement.block), u64::from(agreement.window));
    assert!((8..=65464).contains(&block) && (1..=64).contains(&window));
    assert!(block * window <= MAX_WINDOW_OCTETS as u64 || window == 1);
    let last = length / block + 1;

    let (mut now, mut progress) = (Duration::ZERO, Duration::ZERO);
    let (mut transfer, mut action) = Transfer::begin(agreement, length, now);
    let mut sent = 0;
    let mut events = events.iter().copied();
    loop {
        match &action {
            Action::Wait => {}
            Action::Oack(packet) => assert!(packet.starts_with(b"\0\x06") && sent == 0),
            Action::Window { first, count } => {
                let count = u64::from(*count);
                assert!((1..=window).contains(&count) && first + count - 1 <= last);
                assert_eq!((first - 1) * block, transfer.octets(), "from the first not confirmed");
                sent = first + count - 1;
            }
            Action::Done => {
                assert_eq!((transfer.octets(), sent), (length, last));
                return;
            }
            Action::Refused { .. } | Action::TooSlow => return,
            Action::GivenUp => {
                assert!(now - progress >= GIVE_UP);
                return;
            }
        }
        assert!(transfer.deadline() <= now + Duration::from_secs(5), "the pause is bounded");
        let octets = transfer.octets();
        let Some(event) = events.next() else {
            return;
        };
        action = match event & 7 {
            0 | 1 => {
                now = now.max(transfer.deadline());
                transfer.time_out(now)
            }
            2 => transfer.repeat(now),
            // An acknowledgement of what was sent, or near it.
            3..=5 => {
                now += Duration::from_millis(u64::from(event >> 4));
                let near = u64::from(event >> 3 & 1);
                let [.., high, low] = (sent.wrapping_sub(near)).to_be_bytes();
                transfer.receive(&[0, 4, high, low], now)
            }
            6 => {
                let any = [0, 4, events.next().unwrap_or(0), events.next().unwrap_or(0)];
                transfer.receive(&any, now)
            }
            _ => {
                let any = [0, event >> 3, events.next().unwrap_or(0), events.next().unwrap_or(0)];
                transfer.receive(&any, now)
            }
        };
        assert!(transfer.octets() >= octets && transfer.octets() <= length);
        // The OACK was confirmed: the first window follows.
        let agreed = sent == 0 && matches!(action, Action::Window { .. });
        if transfer.octets() > octets || agreed {
            progress = now;
        }
    }
}

fn efi(stub: Option<Blob>) -> EfiImage {
    EfiImage { machine: 0x8664, stub, signature: Signature::Missing }
}

fn blob(octets: &'static [u8]) -> Blob {
    Blob {
        name: "file".into(),
        content: Content::new(vec![Piece::Memory(octets.into())]),
        length: octets.len() as u64,
        etag: "\"1\"".into(),
        last_modified: "Sun, 06 Nov 1994 08:49:37 GMT".into(),
    }
}

#[derive(Default)]
struct Facts(Mutex<Vec<Fact>>);

impl Witness for Facts {
    fn fact(&self, _mac: MacAddr, fact: Fact) {
        self.0.lock().unwrap().push(fact);
    }
}

struct Everybody;

impl Admission for Everybody {
    fn admitted(&self, _mac: MacAddr) -> bool {
        true
    }
}

thread_local! {
    static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
    );
}

/// What a connection says, whole: every answer is HTTP, of bounded length; nothing is served to who
/// does not know the token; what is told of it is printable.
pub fn http(octets: &[u8]) {
    const KERNEL: &[u8] = b"KERNEL-KERNEL-KERNEL";
    let generation = Generation {
        token: TOKEN.into(),
        kernel: Some(blob(KERNEL).into()),
        initrds: vec![blob(b"initrd").into()],
        cmdline: "init=/x".into(),
        efi: Ok(efi(None)),
        ..Generation::default()
    };
    let facts = Arc::new(Facts::default());
    let settings = Settings::new(SocketAddrV4::new(SERVER, 64172));
    let source = Arc::new(Same(Arc::new(generation)));
    let server = Server::new(settings, source, facts.clone(), Arc::new(Everybody));
    let answer = RUNTIME.with_borrow(|runtime| {
        runtime.block_on(async {
            let (theirs, ours) = std::os::unix::net::UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            ours.set_nonblocking(true).unwrap();
            // Any stream socket will do.
            let ours = TcpStream::from_std(OwnedFd::from(ours).into()).unwrap();
            let (mut reading, mut writing) = UnixStream::from_std(theirs).unwrap().into_split();
            let mut answer = Vec::new();
            let talk = async {
                let _ = writing.write_all(octets).await;
                let _ = writing.shutdown().await;
            };
            let listen = reading.read_to_end(&mut answer);
            let (_, (), read) = tokio::join!(server.converse(ours), talk, listen);
            read.unwrap();
            answer
        })
    });
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{answer:?}");
    // A request of 20 octets gets no more than the longest script.
    assert!(answer.len() <= 4096 * (1 + octets.len() / 16), "{} octets", answer.len());
    let told = facts.0.lock().unwrap();
    let known = octets.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes());
    let holds = |what: &[u8]| answer.windows(what.len()).any(|part| part == what);
    if !known {
        assert!(told.is_empty(), "{told:?}");
        assert!(!holds(b" 200 OK") && !holds(b" 206 ") && !holds(KERNEL));
    }
    for fact in told.iter() {
        if let Fact::NotFound { file, .. } = fact {
            assert!(file.len() <= 64 && file.bytes().all(|octet| matches!(octet, b' '..=b'~')));
        }
    }
}
