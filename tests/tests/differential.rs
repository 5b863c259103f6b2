//! The same datagrams to Portcullis and to dnsmasq in proxy mode, the oracle of fifteen years: who
//! answers, and what differs in the answers, field by field. Every difference has its reason here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    process::Stdio,
    time::Duration,
};

use portcullis_lab::{
    boot_client::{Answer, ask, message, options},
    host::Site,
    need_host,
    netns::Netns,
    process::{Process, mortal, wait_until},
    scene::{HOST, Scene},
};

const ORACLE: [u8; 4] = [192, 0, 2, 4];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x44];
const FOLDER: &str = "02-00-00-00-00-44";
/// Both answer within this, on a busy machine; silence is judged by it as well.
const PATIENCE: Duration = Duration::from_millis(1500);

type Option_ = (u8, &'static [u8]);
const DISCOVER: Option_ = (53, &[1]);
const REQUEST: Option_ = (53, &[3]);
const PXE_BIOS: Option_ = (60, b"PXEClient:Arch:00000:UNDI:002001");
const PXE_X64: Option_ = (60, b"PXEClient:Arch:00007:UNDI:003016");
const BIOS: Option_ = (93, &[0, 0]);
const X64: Option_ = (93, &[0, 7]);
const UNDI: Option_ = (94, &[1, 2, 1]);
const GUID: Option_ = (97, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
const IPXE: Option_ = (77, b"iPXE");
const FEATURES: Option_ = (175, &[0x13, 1, 1, 0x18, 1, 1]);
const ITEM: Option_ = (43, &[71, 4, 0x80, 0, 0, 0, 255]);
const DISK: Option_ = (43, &[71, 4, 0, 0, 0, 0, 255]);
const WANTED: Option_ = (55, &[1, 3, 6, 43, 54, 60, 66, 67, 97]);

/// Why a field is not as dnsmasq has it.
mod reason {
    pub const SERVER: &str = "named everywhere: shim and GRUB read siaddr, some ROMs only sname";
    pub const FILE_OPTION: &str =
        "67 beside the header: EDK2 prefers it, U-Boot and shim read the header; dnsmasq sends one";
    pub const COMPLETE: &str =
        "take this file, ask nobody: dnsmasq shows a menu of one entry first";
    pub const ONE_STEP: &str = "UEFI is told everything at once: dnsmasq sends it to 4011";
    pub const FLAGS: &str = "copied from the question: dnsmasq sets the broadcast bit";
    pub const CLIENT_ID: &str = "61 comes back (RFC 6842)";
    pub const URL: &str = "the script's address carries this run's token";
    pub const PROMPT: &str = "no menu prompt where there is no menu";
    pub const ADDRESS: &str =
        "ciaddr is copied and yiaddr stays 0, always: dnsmasq moves the one to the other";
    pub const NO_MENU: &str = "a file, where dnsmasq repeats its menu";
}

/// One question and what is known of the answers.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    port: u16,
    ours: bool,
    theirs: bool,
    /// Field, reason.
    differences: &'static [(&'static str, &'static str)],
}

/// dnsmasq as a proxy that serves the same files.
fn oracle(netns: &Netns, log: &std::path::Path) -> Process {
    let mut command = mortal("dnsmasq");
    command
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root"])
        .args(["--group=root", "--no-hosts", "--no-resolv", "--bind-interfaces", "--pid-file="])
        .args(["--no-ping", "--log-dhcp", "--interface=eth0", "--leasefile-ro"])
        .args(["--dhcp-range=192.0.2.0,proxy,255.255.255.0", "--dhcp-userclass=set:ipxe,iPXE"])
        .arg(format!("--pxe-service=tag:!ipxe,x86PC,Portcullis,{FOLDER}/undionly.kpxe"))
        .arg(format!("--pxe-service=tag:!ipxe,X86-64_EFI,Portcullis,{FOLDER}/snponly.efi"))
        .arg("--dhcp-boot=tag:ipxe,http://192.0.2.2:64172/boot.ipxe")
        .arg(format!("--log-facility={}", log.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let process = netns.spawn(command).unwrap();
    let listens = || {
        let sockets = netns.sh("ss -Hlun 'sport = :67 or sport = :4011'").unwrap_or_default();
        sockets.lines().count() == 2
    };
    assert!(
        wait_until(Duration::from_secs(10), listens),
        "{}",
        std::fs::read_to_string(log).unwrap_or_default()
    );
    process
}

/// Every field of a message by name, the server's own address and padding aside.
fn fields(message: &[u8], server: [u8; 4]) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for (name, range) in [
        ("op", 0..1),
        ("htype", 1..2),
        ("hlen", 2..3),
        ("hops", 3..4),
        ("xid", 4..8),
        ("secs", 8..10),
        ("flags", 10..12),
        ("ciaddr", 12..16),
        ("yiaddr", 16..20),
        ("siaddr", 20..24),
        ("giaddr", 24..28),
        ("chaddr", 28..44),
        ("sname", 44..108),
        ("file", 108..236),
        ("cookie", 236..240),
    ] {
        found.insert(name.to_owned(), message[range].to_vec());
    }
    for (code, data) in options(message) {
        found.insert(code.to_string(), data);
    }
    let text = Ipv4Addr::from(server).to_string();
    for value in found.values_mut() {
        let named = value.strip_prefix(text.as_bytes());
        let as_text = named.is_some_and(|rest| rest.iter().all(|&octet| octet == 0));
        if *value == server || as_text {
            *value = b"the server".to_vec();
        }
    }
    found
}

fn from(answers: &[Answer], server: [u8; 4]) -> Option<&[u8]> {
    let mut mine = answers.iter().filter(|(source, _)| source.ip().octets() == server);
    let first = mine.next().map(|(_, bytes)| bytes.as_slice());
    assert!(mine.next().is_none(), "one answer to one question");
    first
}

fn cases() -> Vec<Case> {
    let discover = |options: &[Option_]| message(MAC, options);
    let bios = &[DISCOVER, PXE_BIOS, BIOS, UNDI, GUID, WANTED];
    let x64 = &[DISCOVER, PXE_X64, X64, UNDI, GUID, WANTED];
    // By now it has an address.
    let mut chosen = discover(&[REQUEST, PXE_BIOS, BIOS, UNDI, GUID, ITEM, WANTED]);
    chosen[12..16].copy_from_slice(&[192, 0, 2, 60]);
    let mut unicast = discover(bios);
    unicast[10] = 0;
    let end = unicast.len() - 1;
    unicast.splice(end..end, [61, 3, 1, 2, 3]);
    vec![
        Case {
            name: "BIOS",
            bytes: discover(bios),
            port: 67,
            ours: true,
            theirs: true,
            differences: &[
                ("43", reason::COMPLETE),
                ("67", reason::FILE_OPTION),
                ("file", reason::COMPLETE),
                ("siaddr", reason::SERVER),
                ("sname", reason::SERVER),
            ],
        },
        Case {
            name: "BIOS that asks for a unicast answer and names itself",
            bytes: unicast,
            port: 67,
            ours: true,
            theirs: true,
            differences: &[
                ("43", reason::COMPLETE),
                ("61", reason::CLIENT_ID),
                ("67", reason::FILE_OPTION),
                ("file", reason::COMPLETE),
                ("flags", reason::FLAGS),
                ("siaddr", reason::SERVER),
                ("sname", reason::SERVER),
            ],
        },
        Case {
            name: "x64 UEFI",
            bytes: discover(x64),
            port: 67,
            ours: true,
            theirs: true,
            differences: &[
                ("43", reason::ONE_STEP),
                ("67", reason::FILE_OPTION),
                ("file", reason::ONE_STEP),
                ("sname", reason::SERVER),
            ],
        },
        Case {
            name: "iPXE",
            bytes: discover(&[DISCOVER, PXE_BIOS, BIOS, UNDI, GUID, IPXE, FEATURES, WANTED]),
            port: 67,
            ours: true,
            theirs: true,
            differences: &[
                ("43", reason::PROMPT),
                ("67", reason::FILE_OPTION),
                ("file", reason::URL),
                ("siaddr", reason::SERVER),
                ("sname", reason::SERVER),
            ],
        },
        Case {
            name: "an ordinary DHCP client",
            bytes: discover(&[DISCOVER, (60, b"MSFT 5.0"), WANTED]),
            port: 67,
            ours: false,
            theirs: false,
            differences: &[],
        },
        // An empty offer would keep the machine from a server that has something for it.
        Case {
            name: "an architecture that nobody serves",
            bytes: discover(&[DISCOVER, PXE_X64, (93, &[0x12, 0x34]), UNDI, WANTED]),
            port: 67,
            ours: false,
            theirs: true,
            differences: &[],
        },
        Case {
            name: "REQUEST on 67",
            bytes: discover(&[REQUEST, PXE_X64, X64, UNDI, GUID, WANTED]),
            port: 67,
            ours: false,
            theirs: false,
            differences: &[],
        },
        Case {
            name: "BIOS on 4011",
            bytes: discover(&[REQUEST, PXE_BIOS, BIOS, UNDI, GUID, WANTED]),
            port: 4011,
            ours: true,
            theirs: true,
            differences: &[
                ("43", reason::NO_MENU),
                ("67", reason::FILE_OPTION),
                ("file", reason::NO_MENU),
                ("siaddr", reason::SERVER),
                ("sname", reason::SERVER),
            ],
        },
        Case {
            name: "BIOS that has chosen on 4011",
            bytes: chosen,
            port: 4011,
            ours: true,
            theirs: true,
            differences: &[
                ("67", reason::FILE_OPTION),
                ("ciaddr", reason::ADDRESS),
                ("sname", reason::SERVER),
                ("yiaddr", reason::ADDRESS),
            ],
        },
        Case {
            name: "BIOS that wants its disk on 4011",
            bytes: discover(&[REQUEST, PXE_BIOS, BIOS, UNDI, GUID, DISK, WANTED]),
            port: 4011,
            ours: false,
            theirs: false,
            differences: &[],
        },
        Case {
            name: "x64 UEFI on 4011",
            bytes: discover(&[REQUEST, PXE_X64, X64, UNDI, GUID, WANTED]),
            port: 4011,
            ours: true,
            theirs: true,
            differences: &[("67", reason::FILE_OPTION)],
        },
    ]
}

#[test]
fn wire_27_two_proxies_answer_the_same_questions_and_each_difference_has_its_reason() {
    need_host!();
    let scene = Scene::start(None, Site::AllowsAlice).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let netns = Netns::new("oracle").unwrap();
    scene.lan.attach(&netns, "eth0", Some("192.0.2.4/24")).unwrap();
    let _oracle = oracle(&netns, &log);
    let machine = scene.lan.machine("192.0.2.60/24").unwrap();
    let client = scene.serve(&[]).unwrap();

    let mut wrong = Vec::new();
    for case in cases() {
        let destinations = match case.port {
            67 => vec![SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)],
            port => [HOST, ORACLE].map(|server| SocketAddrV4::new(server.into(), port)).to_vec(),
        };
        // The router's own DHCP server answers on 67, too.
        let wanted = if case.port == 67 { 3 } else { 2 };
        let answers =
            ask(&machine, "eth0", 68, &case.bytes, &destinations, (wanted, PATIENCE)).unwrap();
        let (ours, theirs) = (from(&answers, HOST), from(&answers, ORACLE));
        let who = (ours.is_some(), theirs.is_some());
        if who != (case.ours, case.theirs) {
            wrong.push(format!("{}: answers of (ours, dnsmasq): {who:?}", case.name));
        }
        let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
        let (ours, theirs) = (fields(ours, HOST), fields(theirs, ORACLE));
        let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let differ: Vec<&String> =
            names.into_iter().filter(|name| ours.get(*name) != theirs.get(*name)).collect();
        let known: Vec<&str> = case.differences.iter().map(|(field, _)| *field).collect();
        if differ != known {
            let values: Vec<String> = differ
                .iter()
                .map(|name| format!("  {name}: {:?} / {:?}", ours.get(*name), theirs.get(*name)))
                .collect();
            wrong.push(format!("{}: known {known:?}, found:\n{}", case.name, values.join("\n")));
        }
    }
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(wrong.is_empty(), "{}\n{}\n{log}", wrong.join("\n"), client.stderr());
}
