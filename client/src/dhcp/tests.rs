//! The wire checklist for ports 67 and 4011, item by item, with literal octets and with packets
//! that real firmware sent (`testdata`).

use std::net::{Ipv4Addr, SocketAddrV4};

use proptest::prelude::*;

use super::*;
use crate::{
    event::{Fact, Firmware, Ignored, OfferForm},
    image::{Cpu, EfiImage, Generation, Loader, MenuItem, NoEfiImage, Signature},
    mac::MacAddr,
    source::{Traits, text_blob},
    wire::{
        dhcp::{COOKIE, HEADER, Options},
        dhcp_reply,
    },
};

const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const ASKER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 63), 4011);
const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 9]);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const SCRIPT: &str =
    "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-09/boot.ipxe";
const GUID: [u8; 17] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

fn policy() -> Policy {
    Policy {
        for_mac: [].into(),
        once: false,
        count: None,
        initrds: 1,
        loaders: [
            Loader::Undionly,
            Loader::IpxePxe,
            Loader::Snponly(Cpu::X64),
            Loader::Ipxe(Cpu::X64),
        ]
        .into(),
        address: OURS,
        http_port: 64172,
        token: TOKEN.to_owned(),
        uefi_offer: UefiOffer::Auto,
        boot_server: true,
        chain: None,
        signed: true,
        dhcp_server: false,
    }
}

/// A message with these options and END.
fn message(options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..4].copy_from_slice(&[1, 1, 6, 3]);
    bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    bytes[8..12].copy_from_slice(&[0, 4, 0x80, 0]);
    bytes[28..34].copy_from_slice(&MAC.0);
    bytes[236..].copy_from_slice(&COOKIE);
    for (code, data) in options {
        bytes.push(*code);
        bytes.push(u8::try_from(data.len()).unwrap());
        bytes.extend_from_slice(data);
    }
    bytes.push(255);
    bytes
}

const DISCOVER: (u8, &[u8]) = (53, &[1]);
const REQUEST: (u8, &[u8]) = (53, &[3]);
const PXE: (u8, &[u8]) = (60, b"PXEClient:Arch:00007:UNDI:003000");
const BIOS: (u8, &[u8]) = (93, &[0, 0]);
const X64: (u8, &[u8]) = (93, &[0, 7]);
const IPXE: (u8, &[u8]) = (77, b"iPXE");
const HTTP_BZIMAGE: (u8, &[u8]) = (175, &[0x13, 1, 1, 0x18, 1, 1]);

fn fixture(text: &str) -> Vec<u8> {
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Nothing is served but this program, or none.
fn only(efi: &Efi) -> Generation {
    Generation { efi: efi.clone(), ..Generation::default() }
}

fn ask(bytes: &[u8], port: Port, policy: &Policy, memory: Memory) -> Decision {
    decide(&Query::parse(bytes).unwrap(), port, policy, memory, &only(&Err(NoEfiImage::Kernel)))
}

fn on_67(bytes: &[u8]) -> Decision {
    ask(bytes, Port::Dhcp, &policy(), Memory::default())
}

fn on_4011(bytes: &[u8]) -> Decision {
    let port = Port::BootServer { asker: ASKER };
    ask(bytes, port, &policy(), Memory::default())
}

#[track_caller]
fn reply(decision: Decision) -> (Vec<u8>, SocketAddrV4, Fact) {
    match decision {
        Decision::Reply { bytes, destination, fact } => (bytes, destination, fact),
        Decision::Ignore(reason) => panic!("ignored: {reason}"),
    }
}

#[track_caller]
fn ignored(decision: Decision) -> Ignore {
    match decision {
        Decision::Ignore(reason) => reason,
        Decision::Reply { fact, .. } => panic!("answered: {fact:?}"),
    }
}

#[track_caller]
fn offered(decision: Decision) -> (OfferForm, String) {
    match reply(decision).2 {
        Fact::Offered { form, file } => (form, file),
        other => panic!("{other:?}"),
    }
}

/// Every option of a reply, in order.
fn options(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    Options::new(&bytes[HEADER..]).map(|(code, data)| (code, data.to_vec())).collect()
}

fn option(bytes: &[u8], code: u8) -> Option<Vec<u8>> {
    let found = options(bytes).into_iter().find(|(found, _)| *found == code);
    found.map(|(_, data)| data)
}

/// What the helper's output guard asks of a datagram from 67 or 4011: the same offsets, counted
/// from the UDP header.
fn guard_passes(payload: &[u8], source: u16, destination: SocketAddrV4) -> bool {
    let udp = [&[0; 8], payload].concat();
    let ports: &[u16] = match source {
        67 => &[67, 68],
        _ => &[67, 68, 4011],
    };
    (248..=479).contains(&udp.len())
        && udp[8] == 2
        && udp[24..28] == [0; 4]
        && udp[244..248] == [0x63, 0x82, 0x53, 0x63]
        && udp[248..250] == [53, 1]
        && (udp[250] == 2 || udp[250] == 5)
        && ports.contains(&destination.port())
}

#[test]
fn wire_02_both_the_vendor_class_and_an_architecture_make_a_boot_client() {
    let parse = |options: &[(u8, &[u8])]| Query::parse(&message(options));
    assert!(parse(&[DISCOVER, PXE, BIOS]).is_ok());
    assert!(parse(&[DISCOVER, (60, b"PXEClient"), BIOS]).is_ok());
    assert_eq!(
        parse(&[DISCOVER, (60, b"HTTPClient"), (93, &[0, 16])]).unwrap().client,
        Client::Http
    );
    for class in [&b"MSFT 5.0"[..], b"PXEClien", b"pxeclient", b"HTTPClien", b""] {
        assert_eq!(parse(&[DISCOVER, (60, class), BIOS]), Err(NotBootClient::VendorClass));
    }
    assert_eq!(parse(&[DISCOVER, BIOS]), Err(NotBootClient::VendorClass));
    for architectures in [&[][..], &[0], &[0, 0, 7]] {
        assert_eq!(parse(&[DISCOVER, PXE, (93, architectures)]), Err(NotBootClient::Architecture));
    }
    assert_eq!(parse(&[DISCOVER, PXE]), Err(NotBootClient::Architecture));
    assert_eq!(parse(&[PXE, BIOS]), Err(NotBootClient::MessageType));
    assert_eq!(parse(&[(53, &[1, 1]), PXE, BIOS]), Err(NotBootClient::MessageType));
}

#[test]
fn wire_03_a_machine_identifier_is_absent_or_a_guid() {
    let parse = |id: &[u8]| Query::parse(&message(&[DISCOVER, PXE, BIOS, (97, id)]));
    assert_eq!(parse(&GUID).unwrap().machine_id, Some(GUID.to_vec()));
    let mut wrong_type = GUID;
    wrong_type[0] = 255;
    for id in [&wrong_type[..], &GUID[..16], &[0; 18], &[]] {
        assert_eq!(parse(id), Err(NotBootClient::MachineId), "{id:?}");
    }
    let absent = reply(on_67(&message(&[DISCOVER, PXE, BIOS]))).0;
    assert_eq!(option(&absent, 97), None);
}

#[test]
fn wire_04_only_discover_is_answered_on_67() {
    for kind in (0..=255).filter(|&kind| kind != 1) {
        let bytes = message(&[(53, &[kind]), PXE, X64]);
        assert_eq!(ignored(on_67(&bytes)), Ignore::MessageType(kind));
    }
}

#[test]
fn wire_05_an_address_in_a_discover_is_not_trusted() {
    let mut bytes = message(&[DISCOVER, PXE, X64]);
    bytes[12..16].copy_from_slice(&[192, 0, 2, 1]);
    let (bytes, destination, _) = reply(on_67(&bytes));
    assert_eq!(destination, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
    assert_eq!(bytes[12..16], [0; 4]);
}

#[test]
fn wire_06_the_first_known_architecture_of_the_list_wins() {
    let file = |list: &[u8]| offered(on_67(&message(&[DISCOVER, PXE, (93, list)]))).1;
    assert_eq!(file(&[0, 0]), "52-54-00-77-00-09/undionly.kpxe");
    assert_eq!(file(&[0, 7]), "52-54-00-77-00-09/snponly.efi");
    assert_eq!(file(&[0, 9]), "52-54-00-77-00-09/snponly.efi");
    assert_eq!(file(&[0x12, 0x34, 0, 7, 0, 0]), "52-54-00-77-00-09/snponly.efi");

    let silence = |list: &[u8]| ignored(on_67(&message(&[DISCOVER, PXE, (93, list)])));
    assert_eq!(
        silence(&[0x12, 0x34, 0x56, 0x78]),
        Ignore::Machine(Ignored::UnknownArchitecture { arch: 0x1234 })
    );
    assert_eq!(silence(&[0, 11]), Ignore::Machine(Ignored::NoLoader { arch: 11 }));
    assert_eq!(silence(&[0, 11]).to_string(), "arm64 UEFI (11): no loader");
    assert_eq!(silence(&[0, 2]), Ignore::Machine(Ignored::NoLoader { arch: 2 }));
    // No loader is offered to HTTP boot by mistake, and no URL to PXE.
    for (class, arch) in [(&b"HTTPClient"[..], 7), (b"PXEClient", 16)] {
        let bytes = message(&[DISCOVER, (60, class), (93, &[0, arch])]);
        let arch = u16::from(arch);
        assert_eq!(ignored(on_67(&bytes)), Ignore::Machine(Ignored::NoLoader { arch }));
    }
}

#[test]
fn wire_06_each_processor_gets_its_own_loader() {
    let uefi = |cpu| [Loader::Snponly(cpu), Loader::Ipxe(cpu)];
    let loaders = Cpu::ALL.into_iter().flat_map(uefi).collect();
    let policy = Policy { loaders, ..policy() };
    let first = |class: u16, memory| {
        let vendor_class = format!("PXEClient:Arch:{class:05}:UNDI:003016");
        let bytes = message(&[DISCOVER, (60, vendor_class.as_bytes()), (93, &class.to_be_bytes())]);
        offered(ask(&bytes, Port::Dhcp, &policy, memory)).1
    };
    let failed = Memory { failed_loaders: 1, ..Memory::default() };
    for (arch, snponly, ipxe) in [
        (6, "snponly-i386.efi", "ipxe-i386.efi"),
        (7, "snponly.efi", "ipxe.efi"),
        (9, "snponly.efi", "ipxe.efi"),
        (10, "snponly-arm32.efi", "ipxe-arm32.efi"),
        (11, "snponly-arm64.efi", "ipxe-arm64.efi"),
        (25, "snponly-riscv32.efi", "ipxe-riscv32.efi"),
        (27, "snponly-riscv64.efi", "ipxe-riscv64.efi"),
        (39, "snponly-loong64.efi", "ipxe-loong64.efi"),
    ] {
        let folder = "52-54-00-77-00-09";
        assert_eq!(first(arch, Memory::default()), format!("{folder}/{snponly}"), "{arch}");
        assert_eq!(first(arch, failed), format!("{folder}/{ipxe}"), "{arch}");
    }
}

#[test]
fn wire_06_a_named_loader_overrides_the_table_and_serves_codes_that_are_not_in_it() {
    let given = |arch: u16, loaders: &[Loader]| {
        let policy = Policy { loaders: loaders.iter().copied().collect(), ..policy() };
        let bytes = message(&[DISCOVER, PXE, (93, &arch.to_be_bytes())]);
        ask(&bytes, Port::Dhcp, &policy, Memory::default())
    };
    for arch in [7, 11, 29, 37, 300] {
        let loaders = [Loader::Snponly(Cpu::X64), Loader::Given(arch)];
        let file = format!("52-54-00-77-00-09/loader-{arch}");
        assert_eq!(offered(given(arch, &loaders)), (OfferForm::Complete, file));
    }
    // It is for that code only.
    let other = [Loader::Given(299)];
    let unknown = Ignored::UnknownArchitecture { arch: 300 };
    assert_eq!(ignored(given(300, &other)), Ignore::Machine(unknown));
    assert_eq!(ignored(given(29, &other)), Ignore::Machine(Ignored::NoLoader { arch: 29 }));
    // An HTTP client does not speak TFTP.
    let policy = Policy { loaders: [Loader::Given(16)].into(), ..policy() };
    let bytes = message(&[DISCOVER, (60, b"HTTPClient"), (93, &[0, 16])]);
    let http = ignored(ask(&bytes, Port::Dhcp, &policy, Memory::default()));
    assert!(matches!(http, Ignore::Machine(Ignored::NoEfiImage { arch: 16, .. })), "{http:?}");
}

#[test]
fn wire_21_a_raspberry_pi_is_known_by_its_code_or_its_address_and_gets_no_pcs_loader() {
    let from = |mac: [u8; 6], arch: [u8; 2]| {
        let mut bytes =
            message(&[DISCOVER, (60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &arch)]);
        bytes[28..34].copy_from_slice(&mac);
        on_67(&bytes)
    };
    let no_loader = Ignore::Machine(Ignored::NoLoader { arch: 41 });
    assert_eq!(ignored(from(MAC.0, [0, 41])), no_loader);
    for oui in [
        [0xb8, 0x27, 0xeb],
        [0xdc, 0xa6, 0x32],
        [0xe4, 0x5f, 0x01],
        [0x28, 0xcd, 0xc1],
        [0xd8, 0x3a, 0xdd],
        [0x2c, 0xcf, 0x67],
        [0x88, 0xa2, 0x9e],
    ] {
        let mac = [oui[0], oui[1], oui[2], 1, 2, 3];
        assert_eq!(ignored(from(mac, [0, 0])), no_loader);
        // Its UEFI is a UEFI as any other.
        assert_eq!(ignored(from(mac, [0, 11])), Ignore::Machine(Ignored::NoLoader { arch: 11 }));
    }
    assert_eq!(offered(from(MAC.0, [0, 0])).1, "52-54-00-77-00-09/undionly.kpxe");
}

#[test]
fn a_machine_says_its_uuid_as_smbios_has_it() {
    let traits = |id: Option<&[u8]>| {
        let mut options = vec![DISCOVER, PXE, X64];
        options.extend(id.map(|id| (97, id)));
        Query::parse(&message(&options)).unwrap().traits()
    };
    let uuid = Some("04030201-0605-0807-090a-0b0c0d0e0f10".to_owned());
    assert_eq!(traits(Some(&GUID)), Traits { arch: 7, firmware: Firmware::Pxe, uuid });
    assert_eq!(traits(None).uuid, None);
}

/// What the ROM of a Raspberry Pi 3 asks: the fields of a public capture (firmware issue 1265), 322
/// octets in its order.
fn raspberry_pi() -> Vec<u8> {
    let mut guid = vec![0];
    guid.extend_from_slice(&[0xeb, 0xaa, 0x2f, 0xb2].repeat(4));
    let mut bytes = message(&[
        DISCOVER,
        (55, &[43, 60, 67, 128, 129, 130, 131, 132, 133, 134, 135, 66, 1, 3]),
        (93, &[0, 0]),
        (94, &[1, 2, 1]),
        (97, &guid),
        (60, b"PXEClient:Arch:00000:UNDI:002001"),
    ]);
    bytes[3] = 0;
    bytes[4..8].copy_from_slice(&[0x26, 0xf3, 0x03, 0x39]);
    bytes[8..12].fill(0);
    bytes[28..34].copy_from_slice(&[0xb8, 0x27, 0xeb, 0x2f, 0xaa, 0xeb]);
    assert_eq!(bytes.len(), 322);
    bytes
}

#[test]
fn wire_21_a_raspberry_pi_is_given_the_menu_that_it_looks_for_octet_by_octet() {
    let policy = Policy { loaders: [Loader::Undionly, Loader::Folder].into(), ..policy() };
    let asked = raspberry_pi();
    let on_67 = |bytes: &[u8]| reply(ask(bytes, Port::Dhcp, &policy, Memory::default()));
    let (bytes, destination, fact) = on_67(&asked);
    assert!(guard_passes(&bytes, 67, destination));
    assert_eq!(destination, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
    assert_eq!(fact, Fact::Offered { form: OfferForm::Folder, file: String::new() });
    let mut expected = vec![0; HEADER];
    expected[..8].copy_from_slice(&[2, 1, 6, 0, 0x26, 0xf3, 0x03, 0x39]);
    expected[20..24].copy_from_slice(&[10, 77, 0, 1]);
    expected[28..34].copy_from_slice(&[0xb8, 0x27, 0xeb, 0x2f, 0xaa, 0xeb]);
    expected[44..53].copy_from_slice(b"10.77.0.1");
    expected[236..].copy_from_slice(&COOKIE);
    expected.extend([53, 1, 2, 54, 4, 10, 77, 0, 1, 60, 9]);
    expected.extend(b"PXEClient");
    expected.extend([43, 35, 6, 1, 3, 10, 4, 0, b'P', b'X', b'E', 9, 23, 0, 0, 20]);
    expected.extend(b"Raspberry Pi Boot   \xff");
    expected.extend([97, 17, 0]);
    expected.extend([0xeb, 0xaa, 0x2f, 0xb2].repeat(4));
    expected.push(255);
    expected.resize(expected.len().max(300), 0);
    assert_eq!(bytes, expected);

    // A newer one, whose ROM was renewed: 32 octets, as dnsmasq sends them.
    let mut newer = asked;
    newer[28..31].copy_from_slice(&[0xdc, 0xa6, 0x32]);
    let mut menu = vec![6, 1, 3, 10, 4, 0, b'P', b'X', b'E', 9, 20, 0, 0, 17];
    menu.extend(b"Raspberry Pi Boot\xff");
    assert_eq!(menu.len(), 32);
    assert_eq!(option(&on_67(&newer).0, 43), Some(menu));
}

#[test]
fn wire_21_a_raspberry_pi_is_left_alone_without_a_folder_and_served_beside_any_program() {
    let no_loader = Ignore::Machine(Ignored::NoLoader { arch: 41 });
    assert_eq!(ignored(on_67(&raspberry_pi())), no_loader);
    let query = Query::parse(&raspberry_pi()).unwrap();
    assert_eq!(screen(&query, Port::Dhcp, &policy(), Memory::default()), Err(no_loader));
    // A program for other machines is what is served.
    let policy = Policy { loaders: [Loader::Folder].into(), ..policy() };
    let efi =
        Ok(EfiImage { machine: Cpu::X64.pe_machine(), stub: None, signature: Signature::Missing });
    let answer = decide(&query, Port::Dhcp, &policy, Memory::default(), &only(&efi));
    assert_eq!(offered(answer).0, OfferForm::Folder);
}

#[test]
fn the_table_names_each_architecture_once() {
    let mut codes: Vec<u16> = table::ROWS.iter().map(|row| row.arch).collect();
    codes.sort_unstable();
    assert!(codes.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(table::architecture_name(300), "unknown architecture (300)");
}

#[test]
fn wire_07_malformed_options_make_no_boot_client_and_no_crash() {
    for code in [43, 77, 82, 93, 94, 97] {
        for length in [0, 255] {
            let mut bytes = message(&[DISCOVER, PXE, X64]);
            bytes.pop();
            bytes.extend_from_slice(&[code, length]);
            if let Ok(query) = Query::parse(&bytes) {
                assert_eq!(query.firmware(), Firmware::Pxe, "{code} {length}");
            }
        }
    }
    let no_end = message(&[DISCOVER, PXE, X64]);
    assert_eq!(on_67(&no_end[..no_end.len() - 1]), on_67(&no_end));
}

#[test]
fn wire_08_the_user_class_is_read_bare_and_as_a_list() {
    let firmware = |class: &[u8]| {
        let bytes = message(&[DISCOVER, PXE, BIOS, (77, class)]);
        Query::parse(&bytes).unwrap().firmware()
    };
    assert_eq!(firmware(b"iPXE"), Firmware::Ipxe);
    assert_eq!(firmware(b"\x04iPXE"), Firmware::Ipxe);
    assert_eq!(firmware(b"\x03lab\x04iPXE"), Firmware::Ipxe);
    assert_eq!(firmware(b"portcullis"), Firmware::Ipxe);
    for class in [&b"ipxe"[..], b"iPXE2", b"\x05iPXE", b"\xff", b"", b"\x00\x00"] {
        assert_eq!(firmware(class), Firmware::Pxe, "{class:?}");
    }
}

#[test]
fn wire_10_to_16_an_offer_octet_by_octet() {
    let query = message(&[DISCOVER, PXE, X64, (97, &GUID), (61, &[1, 2, 3])]);
    let (bytes, destination, fact) = reply(on_67(&query));
    let mut expected = Vec::new();
    expected.extend_from_slice(&[2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0x80, 0]);
    expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 10, 77, 0, 1, 0, 0, 0, 0]);
    expected.extend_from_slice(&[0x52, 0x54, 0, 0x77, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend_from_slice(b"10.77.0.1");
    expected.resize(108, 0);
    expected.extend_from_slice(b"52-54-00-77-00-09/snponly.efi");
    expected.resize(236, 0);
    expected.extend_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    expected.extend_from_slice(&[53, 1, 2, 54, 4, 10, 77, 0, 1]);
    expected.extend_from_slice(b"\x3c\x09PXEClient");
    expected.extend_from_slice(&[43, 4, 6, 1, 8, 255]);
    expected.extend_from_slice(b"\x43\x1e52-54-00-77-00-09/snponly.efi\0");
    expected.extend_from_slice(&[97, 17]);
    expected.extend_from_slice(&GUID);
    expected.extend_from_slice(&[61, 3, 1, 2, 3, 255]);
    assert_eq!(bytes, expected);
    assert_eq!(destination, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
    assert_eq!(
        fact,
        Fact::Offered {
            form: OfferForm::Complete,
            file: "52-54-00-77-00-09/snponly.efi".to_owned()
        }
    );
}

#[test]
fn wire_01_a_guid_as_hardware_address_comes_back_whole() {
    let mut query = message(&[DISCOVER, PXE, X64]);
    query[2] = 16;
    query[28..44].copy_from_slice(&GUID[1..]);
    let (bytes, _, fact) = reply(on_67(&query));
    assert_eq!(bytes[2], 16);
    assert_eq!(bytes[28..44], GUID[1..]);
    // The machine is called by the last six octets.
    let file = "0b-0c-0d-0e-0f-10/snponly.efi".to_owned();
    let form = OfferForm::Complete;
    assert_eq!(fact, Fact::Offered { form, file });
}

#[test]
fn wire_10_octets_of_the_hardware_address_beyond_its_length_are_not_echoed() {
    let mut query = message(&[DISCOVER, PXE, X64]);
    query[34..44].copy_from_slice(&[0xaa; 10]);
    query[44..236].fill(0xbb);
    let bytes = reply(on_67(&query)).0;
    assert_eq!(bytes[34..44], [0; 10]);
    assert!(bytes[..236].iter().all(|&octet| octet != 0xbb));
}

#[test]
fn wire_11_every_answer_has_its_type_first_and_names_its_server() {
    for bytes in [&[DISCOVER, PXE, BIOS][..], &[DISCOVER, PXE, X64], &[DISCOVER, PXE, BIOS, IPXE]] {
        let offer = options(&reply(on_67(&message(bytes))).0);
        assert_eq!(offer[..2], [(53, vec![2]), (54, vec![10, 77, 0, 1])]);
        let ack = options(&reply(on_4011(&message(bytes))).0);
        assert_eq!(ack[..2], [(53, vec![5]), (54, vec![10, 77, 0, 1])]);
    }
}

#[test]
fn wire_12_the_bare_class_comes_back_and_identifiers_octet_by_octet_or_not_at_all() {
    let client_id = [0, 0xff, 1, 2, 0, 3];
    let query = message(&[DISCOVER, (61, &client_id), PXE, X64, (97, &GUID)]);
    let with = reply(on_67(&query)).0;
    assert_eq!(option(&with, 60), Some(b"PXEClient".to_vec()));
    assert_eq!(option(&with, 97), Some(GUID.to_vec()));
    assert_eq!(option(&with, 61), Some(client_id.to_vec()));
    let without = reply(on_67(&message(&[DISCOVER, PXE, X64, (61, &[])]))).0;
    assert!(!options(&without).iter().any(|(code, _)| [61, 97].contains(code)));
}

#[test]
fn wire_14_the_file_stands_in_the_header_and_in_67_which_ends_in_nul() {
    for query in [
        &[DISCOVER, PXE, BIOS][..],
        &[DISCOVER, PXE, X64],
        &[DISCOVER, PXE, X64, IPXE, HTTP_BZIMAGE],
    ] {
        for bytes in [reply(on_67(&message(query))).0, reply(on_4011(&message(query))).0] {
            let file = option(&bytes, 67).unwrap();
            let (nul, name) = file.split_last().unwrap();
            assert_eq!(*nul, 0);
            assert!(!name.is_empty() && !name.contains(&0));
            assert_eq!(&bytes[108..108 + name.len()], name);
            assert!(bytes[108 + name.len()..236].iter().all(|&octet| octet == 0));
            assert_eq!(bytes[20..24], [10, 77, 0, 1]);
            assert_eq!(bytes[44..54], *b"10.77.0.1\0");
            assert_eq!(option(&bytes, 66), None);
        }
    }
}

#[test]
fn wire_16_a_complete_uefi_offer_says_that_nobody_else_need_be_asked() {
    let (bytes, _, fact) = reply(on_67(&message(&[DISCOVER, PXE, X64])));
    assert_eq!(option(&bytes, 43), Some(vec![6, 1, 8, 255]));
    assert_eq!(bytes[20..24], [10, 77, 0, 1]);
    let file = "52-54-00-77-00-09/snponly.efi".to_owned();
    assert_eq!(fact, Fact::Offered { form: OfferForm::Complete, file });
}

#[test]
fn wire_18_vendor_options_say_what_to_load_and_end() {
    let item = (43, &[71, 4, 0x80, 0, 0, 0, 255][..]);
    let asked = [
        on_67(&message(&[DISCOVER, PXE, BIOS])),
        on_67(&message(&[DISCOVER, PXE, X64])),
        on_67(&message(&[DISCOVER, PXE, BIOS, IPXE])),
        on_4011(&message(&[REQUEST, PXE, BIOS, item])),
    ];
    for decision in asked {
        let vendor = option(&reply(decision).0, 43).unwrap();
        assert_eq!(vendor.last(), Some(&255));
        // MTFTP's, 1 to 5, make EDK2 throw the offer away.
        assert!([6, 71].contains(&vendor[0]), "{vendor:?}");
        assert_eq!(usize::from(vendor[1]), vendor.len() - 3);
    }
}

#[test]
fn wire_27_what_other_servers_say_is_not_answered_and_what_is_meant_for_them_is_left() {
    let mut offer = message(&[(53, &[2]), (54, &[10, 77, 0, 2]), PXE, BIOS]);
    offer[0] = 2;
    assert!(matches!(Query::parse(&offer), Err(NotBootClient::Malformed(_))));
    let theirs = (54, &[10, 77, 0, 2][..]);
    for port in [Port::Dhcp, Port::BootServer { asker: ASKER }] {
        let bytes = message(&[REQUEST, theirs, PXE, BIOS]);
        assert!(matches!(ask(&bytes, port, &policy(), Memory::default()), Decision::Ignore(_)));
    }
}

#[test]
fn wire_13_a_proxy_hands_out_no_lease() {
    for query in [&[DISCOVER, PXE, BIOS][..], &[DISCOVER, PXE, X64, IPXE, HTTP_BZIMAGE]] {
        let codes: Vec<u8> =
            options(&reply(on_67(&message(query))).0).into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, [53, 54, 60, 43, 67]);
    }
}

#[test]
fn wire_15_bios_is_told_to_take_the_file_and_never_sent_to_the_boot_server() {
    let policy = Policy { uefi_offer: UefiOffer::BootServer, ..policy() };
    let query = message(&[DISCOVER, PXE, BIOS]);
    let (bytes, _, fact) = reply(ask(&query, Port::Dhcp, &policy, Memory::default()));
    assert_eq!(option(&bytes, 43), Some(vec![6, 1, 8, 255]));
    let file = "52-54-00-77-00-09/undionly.kpxe".to_owned();
    let form = OfferForm::Complete;
    assert_eq!(fact, Fact::Offered { form, file });
}

#[test]
fn wire_17_the_boot_server_form_has_no_43_and_needs_4011_open() {
    let query = message(&[DISCOVER, PXE, X64]);
    let with = |uefi_offer, boot_server| {
        let policy = Policy { uefi_offer, boot_server, ..policy() };
        let (bytes, _, fact) = reply(ask(&query, Port::Dhcp, &policy, Memory::default()));
        let Fact::Offered { form, .. } = fact else { panic!("{fact:?}") };
        (form, option(&bytes, 43).is_some())
    };
    assert_eq!(with(UefiOffer::BootServer, true), (OfferForm::BootServer, false));
    assert_eq!(with(UefiOffer::BootServer, false), (OfferForm::Complete, true));
    assert_eq!(with(UefiOffer::Complete, true), (OfferForm::Complete, true));
    assert_eq!(with(UefiOffer::Auto, true), (OfferForm::Complete, true));
}

#[test]
fn wire_20_an_ipxe_that_can_gets_the_script_and_one_that_cannot_gets_a_loader_once() {
    let given = |arch: u8, features: &[u8], memory| {
        let bytes = message(&[DISCOVER, PXE, (93, &[0, arch]), IPXE, (175, features)]);
        offered(ask(&bytes, Port::Dhcp, &policy(), memory))
    };
    let script = (OfferForm::Script, SCRIPT.to_owned());
    let loader = |name| {
        let file = format!("52-54-00-77-00-09/{name}");
        (OfferForm::Complete, file)
    };
    let new = Memory::default();
    assert_eq!(given(0, &[0x13, 1, 1, 0x18, 1, 1], new), script);
    assert_eq!(given(7, &[0x13, 1, 1, 0x24, 1, 1], new), script);
    assert_eq!(given(7, &[0x13, 1, 1, 0x18, 1, 1], new), script);
    // BIOS cannot start EFI programs; without HTTP there is no script.
    for features in [&[0x13, 1, 1, 0x24, 1, 1][..], &[0x18, 1, 1], &[0x13, 1, 0, 0x18, 1, 1], &[]] {
        assert_eq!(given(0, features, new), loader("ipxe.pxe"), "{features:?}");
    }
    assert_eq!(given(7, &[0x24, 1, 1], new), loader("ipxe.efi"));
    // Once: what comes back after it was loaded gets the script, whatever it lists.
    let chained = Memory { chained: true, ..new };
    assert_eq!(given(0, &[], chained), script);
    // The marker says that a script of ours has run.
    let marked = message(&[DISCOVER, PXE, BIOS, (77, b"portcullis")]);
    assert_eq!(offered(on_67(&marked)), script);
    // Without a loader for it, the script is the best there is.
    let no_loaders = Policy { loaders: [].into(), ..policy() };
    let bytes = message(&[DISCOVER, PXE, BIOS, IPXE]);
    assert_eq!(offered(ask(&bytes, Port::Dhcp, &no_loaders, new)), script);
    let bytes = message(&[DISCOVER, PXE, BIOS]);
    assert_eq!(
        ignored(ask(&bytes, Port::Dhcp, &no_loaders, new)),
        Ignore::Machine(Ignored::NoLoader { arch: 0 })
    );
}

#[test]
fn the_next_loader_is_tried_after_one_that_came_to_nothing() {
    let file = |failed_loaders, loaders: &[Loader]| {
        let policy = Policy { loaders: loaders.iter().copied().collect(), ..policy() };
        let memory = Memory { failed_loaders, ..Memory::default() };
        let query = message(&[DISCOVER, PXE, X64]);
        offered(ask(&query, Port::Dhcp, &policy, memory)).1
    };
    let both = [Loader::Snponly(Cpu::X64), Loader::Ipxe(Cpu::X64)];
    assert_eq!(file(0, &both), "52-54-00-77-00-09/snponly.efi");
    assert_eq!(file(1, &both), "52-54-00-77-00-09/ipxe.efi");
    assert_eq!(file(2, &both), "52-54-00-77-00-09/snponly.efi");
    assert_eq!(file(1, &both[..1]), "52-54-00-77-00-09/snponly.efi");
    assert_eq!(file(0, &both[1..]), "52-54-00-77-00-09/ipxe.efi");
}

#[test]
fn wire_20_real_firmware_gets_what_it_can_use() {
    for (packet, length, firmware, arch, file) in [
        (include_str!("testdata/ovmf.hex"), 347, Firmware::Pxe, 7, "52-54-00-77-00-03/snponly.efi"),
        (
            include_str!("testdata/ipxe-rom-bios.hex"),
            400,
            Firmware::Ipxe,
            0,
            "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-01/boot.ipxe",
        ),
        (
            include_str!("testdata/ipxe-rom-uefi.hex"),
            388,
            Firmware::Ipxe,
            7,
            "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-04/boot.ipxe",
        ),
        (
            include_str!("testdata/ipxe-undionly-bios.hex"),
            400,
            Firmware::Ipxe,
            0,
            "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-02/boot.ipxe",
        ),
        (
            include_str!("testdata/ipxe-snponly-uefi.hex"),
            388,
            Firmware::Ipxe,
            7,
            "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-03/boot.ipxe",
        ),
    ] {
        let bytes = fixture(packet);
        assert_eq!(bytes.len(), length);
        let query = Query::parse(&bytes).unwrap();
        assert_eq!((query.firmware(), query.architecture()), (firmware, arch));
        let (answer, ..) = reply(on_67(&bytes));
        assert_eq!(offered(on_67(&bytes)).1, file);
        assert_eq!(option(&answer, 97), Some(vec![0; 17]));
        assert_eq!(option(&answer, 61), query.client_id);
    }
}

#[test]
fn wire_22_replies_are_padded_to_300_and_never_longer_than_the_guard_allows() {
    // Without 43, 295 octets and five of padding.
    let small = reply(on_4011(&message(&[REQUEST, PXE, BIOS]))).0;
    assert_eq!(small[294..], [255, 0, 0, 0, 0, 0]);
    // 57 neither stretches nor shrinks a reply: values below 576 are not legal.
    for asked in [[0, 100], [0x05, 0xc0], [0xff, 0]] {
        let query = message(&[REQUEST, PXE, BIOS, (57, &asked)]);
        assert_eq!(reply(on_4011(&query)).0, small);
    }
    // The longest script URL, a GUID, and 61 that just fits: 471 octets.
    let longest = |client_id: &[u8]| {
        let policy = Policy { address: Ipv4Addr::new(192, 168, 100, 200), ..policy() };
        let query =
            message(&[DISCOVER, PXE, X64, IPXE, HTTP_BZIMAGE, (97, &GUID), (61, client_id)]);
        reply(ask(&query, Port::Dhcp, &policy, Memory::default())).0
    };
    let room = dhcp_reply::MAX - longest(&[]).len() - 2;
    let full = longest(&vec![7; room]);
    assert_eq!(full.len(), 471);
    assert_eq!(full.last(), Some(&255));
    let over = longest(&vec![7; room + 1]);
    assert_eq!(option(&over, 61), None);
    assert_eq!(over, longest(&[]));
}

#[test]
fn wire_23_relay_information_comes_back_last_and_unchanged_or_not_at_all() {
    // Sub-options out of order, one unknown: not to be sorted or understood.
    let relay = [2, 3, b'e', b't', b'h', 1, 1, 9, 200, 0];
    let query = message(&[(82, &relay), DISCOVER, PXE, X64, (97, &GUID), (61, &[1, 2])]);
    let bytes = reply(on_67(&query)).0;
    assert_eq!(options(&bytes).last(), Some(&(82, relay.to_vec())));
    let boot_data = |bytes: &[u8]| (option(bytes, 67), option(bytes, 43), option(bytes, 97));
    let query = message(&[(82, &[5; 255]), DISCOVER, PXE, X64, (97, &GUID), (61, &[1, 2])]);
    let large = reply(on_67(&query)).0;
    assert_eq!(option(&large, 82), None);
    assert_eq!(boot_data(&large), boot_data(&bytes));
}

#[test]
fn wire_24_a_relayed_question_is_answered_to_the_relay() {
    let relayed = |address: [u8; 4]| {
        let mut bytes = message(&[DISCOVER, PXE, X64]);
        bytes[24..28].copy_from_slice(&address);
        on_67(&bytes)
    };
    let (bytes, destination, _) = reply(relayed([10, 9, 8, 7]));
    assert_eq!(destination, SocketAddrV4::new(Ipv4Addr::new(10, 9, 8, 7), 67));
    assert_eq!(bytes[24..28], [10, 9, 8, 7]);
    for address in [[255; 4], [224, 0, 0, 1], [127, 0, 0, 1]] {
        assert_eq!(
            ignored(relayed(address)),
            Ignore::Unanswerable(SocketAddrV4::new(address.into(), 67))
        );
    }
}

#[test]
fn wire_25_the_address_of_the_segment_stands_everywhere() {
    let address = Ipv4Addr::new(192, 168, 7, 6);
    let policy = Policy { address, ..policy() };
    let query = message(&[DISCOVER, PXE, X64, IPXE, HTTP_BZIMAGE]);
    let bytes = reply(ask(&query, Port::Dhcp, &policy, Memory::default())).0;
    assert_eq!(bytes[20..24], [192, 168, 7, 6]);
    assert_eq!(bytes[44..56], *b"192.168.7.6\0");
    assert_eq!(option(&bytes, 54), Some(vec![192, 168, 7, 6]));
    assert!(option(&bytes, 67).unwrap().starts_with(b"http://192.168.7.6:64172/"));
}

#[test]
fn wire_26_a_machine_that_is_not_meant_hears_nothing() {
    let named = Policy { for_mac: [MacAddr([1; 6])].into(), ..policy() };
    let booted = Memory { local_boot: true, ..Memory::default() };
    for (port, kind) in [(Port::Dhcp, DISCOVER), (Port::BootServer { asker: ASKER }, REQUEST)] {
        let query = message(&[kind, PXE, X64]);
        assert_eq!(
            ignored(ask(&query, port, &named, Memory::default())),
            Ignore::Machine(Ignored::NotSelected)
        );
        assert_eq!(
            ignored(ask(&query, port, &policy(), booted)),
            Ignore::Machine(Ignored::AlreadyBooted)
        );
        let chosen = Policy { for_mac: [MAC].into(), ..policy() };
        reply(ask(&query, port, &chosen, Memory::default()));
    }
}

#[test]
fn wire_26_a_machine_that_has_booted_is_sent_to_its_disk_octet_by_octet() {
    let booted = Memory { local_boot: true, booted: true, ..Memory::default() };
    let already = || Ignore::Machine(Ignored::AlreadyBooted);
    let left = |bytes: &[u8], port, memory| {
        let query = Query::parse(bytes).unwrap();
        let reason = screen(&query, port, &policy(), memory).unwrap_err();
        leave(&query, port, &policy(), memory, reason)
    };
    let (bytes, destination, fact) =
        reply(left(&message(&[DISCOVER, PXE, X64, (97, &GUID)]), Port::Dhcp, booted));
    assert_eq!(fact, Fact::Ignored(Ignored::AlreadyBooted));
    assert_eq!(destination, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
    assert!(guard_passes(&bytes, 67, destination));
    let mut expected = vec![0; HEADER];
    expected[..8].copy_from_slice(&[2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
    expected[10] = 0x80;
    expected[20..24].copy_from_slice(&[10, 77, 0, 1]);
    expected[28..34].copy_from_slice(&MAC.0);
    expected[44..53].copy_from_slice(b"10.77.0.1");
    expected[236..].copy_from_slice(&COOKIE);
    expected.extend([53, 1, 2, 54, 4, 10, 77, 0, 1, 60, 9]);
    expected.extend(b"PXEClient");
    expected.extend([43, 39, 6, 1, 3, 10, 4, 0, b'P', b'X', b'E', 9, 27, 0, 0, 24]);
    expected.extend(b"Boot from the local disk\xff");
    expected.extend([97, 17]);
    expected.extend(GUID);
    expected.push(255);
    expected.resize(expected.len().max(300), 0);
    assert_eq!(bytes, expected);
    reply(left(&message(&[DISCOVER, PXE, BIOS]), Port::Dhcp, booted));

    // Whoever goes on by itself, or knows no such menu, hears nothing; nor does a stranger.
    let http = message(&[DISCOVER, (60, b"HTTPClient:Arch:00016:UNDI:003000"), (93, &[0, 16])]);
    let ipxe = message(&[DISCOVER, PXE, X64, IPXE, HTTP_BZIMAGE]);
    for silent in [&http, &ipxe] {
        assert_eq!(ignored(left(silent, Port::Dhcp, booted)), already());
    }
    let four = Port::BootServer { asker: ASKER };
    assert_eq!(ignored(left(&message(&[REQUEST, PXE, X64]), four, booted)), already());
    let stranger = Memory { booted: false, ..booted };
    let asks = message(&[DISCOVER, PXE, X64]);
    assert_eq!(ignored(left(&asks, Port::Dhcp, stranger)), already());
}

#[test]
fn wire_29_the_boot_server_answers_requests_that_are_meant_for_it() {
    for kind in [1, 3, 8] {
        reply(on_4011(&message(&[(53, &[kind]), PXE, X64])));
        reply(on_4011(&message(&[(53, &[kind]), PXE, X64, (54, &[10, 77, 0, 1])])));
    }
    for kind in [2, 4, 5, 6, 7] {
        let bytes = message(&[(53, &[kind]), PXE, X64]);
        assert_eq!(ignored(on_4011(&bytes)), Ignore::MessageType(kind));
    }
    let other = message(&[REQUEST, PXE, X64, (54, &[10, 77, 0, 2])]);
    assert_eq!(ignored(on_4011(&other)), Ignore::OtherServer(Ipv4Addr::new(10, 77, 0, 2)));
}

#[test]
fn wire_30_the_boot_server_answers_to_where_the_question_came_from() {
    let from = |asker: SocketAddrV4| {
        let query = message(&[REQUEST, PXE, X64]);
        let port = Port::BootServer { asker };
        ask(&query, port, &policy(), Memory::default())
    };
    for port in [67, 68, 4011] {
        let asker = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 63), port);
        assert_eq!(reply(from(asker)).1, asker);
    }
    // The guard lets nothing else out, and nobody else asks.
    for asker in ["10.77.0.63:40000", "10.77.0.63:69", "0.0.0.0:68", "255.255.255.255:68"] {
        let asker = asker.parse().unwrap();
        assert_eq!(ignored(from(asker)), Ignore::Unanswerable(asker));
    }
    let mut relayed = message(&[REQUEST, PXE, X64]);
    relayed[24..28].copy_from_slice(&[10, 9, 8, 7]);
    let relay = SocketAddrV4::new(Ipv4Addr::new(10, 9, 8, 7), 67);
    assert_eq!(reply(on_4011(&relayed)).1, relay);
}

#[test]
fn wire_31_the_boot_servers_answer_octet_by_octet() {
    let mut query = message(&[REQUEST, PXE, X64, (97, &GUID)]);
    query[12..16].copy_from_slice(&[10, 77, 0, 63]);
    let (bytes, _, fact) = reply(on_4011(&query));
    assert_eq!(bytes[0], 2);
    assert_eq!(bytes[12..24], [10, 77, 0, 63, 0, 0, 0, 0, 10, 77, 0, 1]);
    assert_eq!(bytes[108..138], *b"52-54-00-77-00-09/snponly.efi\0");
    let mut expected = vec![53, 1, 5, 54, 4, 10, 77, 0, 1];
    expected.extend_from_slice(b"\x3c\x09PXEClient");
    expected.extend_from_slice(b"\x43\x1e52-54-00-77-00-09/snponly.efi\0");
    expected.extend_from_slice(&[97, 17]);
    expected.extend_from_slice(&GUID);
    expected.push(255);
    assert_eq!(bytes[240..240 + expected.len()], expected);
    let file = "52-54-00-77-00-09/snponly.efi".to_owned();
    assert_eq!(fact, Fact::BootServer { file });
}

#[test]
fn wire_29_and_30_the_question_that_ovmf_asks_on_4011_is_answered() {
    let bytes = fixture(include_str!("testdata/ovmf-boot-server.hex"));
    let asker = "10.77.0.61:4011".parse().unwrap();
    let port = Port::BootServer { asker };
    let (answer, destination, fact) = reply(ask(&bytes, port, &policy(), Memory::default()));
    assert_eq!(destination, asker);
    assert_eq!(answer[..12], [&[2, 1, 6, 0], &bytes[4..8], &[0; 4]].concat());
    assert_eq!(answer[12..16], [10, 77, 0, 61]);
    let file = "52-54-00-77-01-02/snponly.efi".to_owned();
    assert_eq!(fact, Fact::BootServer { file });
}

#[test]
fn wire_33_what_is_no_boot_client_is_dropped_on_4011() {
    let class: (u8, &[u8]) = (60, b"MSFT 5.0");
    for query in [&[REQUEST, class, X64][..], &[REQUEST, X64], &[REQUEST, PXE], &[PXE, X64]] {
        assert!(Query::parse(&message(query)).is_err(), "{query:?}");
    }
}

#[test]
fn wire_32_a_boot_item_of_ours_is_echoed_and_any_other_unanswered() {
    let asks = |item: &[u8]| on_4011(&message(&[REQUEST, PXE, X64, (43, item)]));
    let bytes = reply(asks(&[71, 4, 0x80, 0, 0, 3, 255])).0;
    assert_eq!(option(&bytes, 43), Some(vec![71, 4, 0x80, 0, 0, 3, 255]));
    for (item, kind, layer) in [
        (&[71, 4, 0, 0, 0, 0, 255], 0, 0),
        (&[71, 4, 0, 1, 0, 0, 255], 1, 0),
        (&[71, 4, 0x80, 0, 0x80, 0, 255], 0x8000, 0x8000),
    ] {
        assert_eq!(ignored(asks(item)), Ignore::BootItem(BootItem { kind, layer }));
    }
    // Without 71 it is not a question about an item.
    let bytes = reply(asks(&[255])).0;
    assert_eq!(option(&bytes, 43), None);
}

#[test]
fn wire_34_bios_is_answered_on_4011_like_uefi() {
    let (_, _, fact) = reply(on_4011(&message(&[REQUEST, PXE, BIOS])));
    let file = "52-54-00-77-00-09/undionly.kpxe".to_owned();
    assert_eq!(fact, Fact::BootServer { file });
}

const HTTP: (u8, &[u8]) = (60, b"HTTPClient:Arch:00016:UNDI:003001");
const X64_HTTP: (u8, &[u8]) = (93, &[0, 16]);
const EFI: &str =
    "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-09/boot.efi";

type Efi = Result<EfiImage, NoEfiImage>;

/// Made of kernel and initrd.
fn made(machine: u16) -> Efi {
    Ok(EfiImage {
        machine,
        stub: Some(text_blob("stub", String::new())),
        signature: Signature::Missing,
    })
}

/// An x64 EFI program, and nothing but that.
const NAMED: Efi = Ok(EfiImage { machine: 0x8664, stub: None, signature: Signature::Missing });

fn with_loaders(loaders: &[Loader]) -> Policy {
    Policy { loaders: loaders.iter().copied().collect(), ..policy() }
}

fn on_67_with(efi: &Efi, policy: &Policy, options: &[(u8, &[u8])]) -> Decision {
    let query = Query::parse(&message(options)).unwrap();
    decide(&query, Port::Dhcp, policy, Memory::default(), &only(efi))
}

#[test]
fn what_the_user_signed_goes_before_ipxe_to_machines_that_run_it() {
    let policy = with_loaders(&[Loader::Undionly, Loader::Snponly(Cpu::X64), Loader::Image]);
    let signed = Ok(EfiImage {
        machine: 0x8664,
        stub: Some(text_blob("stub", String::new())),
        signature: Signature::InFile,
    });
    let file = |efi: &Efi, policy: &Policy, arch| {
        let (_, _, fact) = reply(on_67_with(efi, policy, &[DISCOVER, PXE, arch]));
        let Fact::Offered { file, .. } = fact else { panic!("{fact:?}") };
        file.rsplit('/').next().unwrap().to_owned()
    };
    assert_eq!(file(&signed, &policy, X64), "boot.efi");
    assert_eq!(file(&made(0x8664), &policy, X64), "snponly.efi");
    assert_eq!(file(&signed, &policy, BIOS), "undionly.kpxe");
    let given = with_loaders(&[Loader::Given(7), Loader::Image]);
    assert_eq!(file(&signed, &given, X64), "loader-7");
}

#[test]
fn a_program_that_does_ipxes_work_is_for_machines_without_ipxe() {
    let policy = with_loaders(&[Loader::Whole(0), Loader::Whole(11), Loader::Snponly(Cpu::X64)]);
    let script = Err(NoEfiImage::Script);
    for (options, file) in [
        (&[DISCOVER, PXE, BIOS][..], "52-54-00-77-00-09/program-0"),
        // An iPXE that cannot run the script, and one that can.
        (&[DISCOVER, PXE, BIOS, IPXE], "52-54-00-77-00-09/program-0"),
        (&[DISCOVER, PXE, BIOS, IPXE, HTTP_BZIMAGE], SCRIPT),
        (&[DISCOVER, PXE, (93, &[0, 11])], "52-54-00-77-00-09/program-11"),
        (&[DISCOVER, PXE, X64], "52-54-00-77-00-09/snponly.efi"),
    ] {
        assert_eq!(offered(on_67_with(&script, &policy, options)).1, file);
    }
    let arm32 = ignored(on_67_with(&script, &policy, &[DISCOVER, PXE, (93, &[0, 10])]));
    assert_eq!(arm32, Ignore::Machine(Ignored::NoLoader { arch: 10 }));
}

/// A menu of these programs.
fn menu(items: &[(&str, Efi)]) -> Generation {
    let item = |(name, efi): &(&str, Efi)| MenuItem {
        name: (*name).to_owned(),
        generation: std::sync::Arc::new(only(efi)),
    };
    let efi = Err(NoEfiImage::Menu);
    Generation { efi, menu: items.iter().map(item).collect(), ..Generation::default() }
}

fn signed(machine: u16) -> Efi {
    Ok(EfiImage { machine, stub: None, signature: Signature::InFile })
}

/// The question for a boot item, as EDK2 asks it.
fn item_question(kind: u16, layer: u16) -> Vec<u8> {
    let [a, b] = kind.to_be_bytes();
    let [c, d] = layer.to_be_bytes();
    message(&[REQUEST, PXE, X64, (43, &[71, 4, a, b, c, d, 255]), (97, &GUID)])
}

fn menu_answer(bytes: &[u8], port: Port, policy: &Policy, menu: &Generation) -> Decision {
    decide(&Query::parse(bytes).unwrap(), port, policy, Memory::default(), menu)
}

#[test]
fn a_menu_of_signed_programs_is_shown_by_the_firmware_octet_by_octet() {
    let policy = with_loaders(&[Loader::Undionly, Loader::Snponly(Cpu::X64), Loader::Image]);
    let menu = menu(&[("NixOS", signed(0x8664)), ("Zw\u{f6}lf \u{1b}", signed(0x8664))]);
    let question = message(&[DISCOVER, PXE, X64, (97, &GUID)]);
    let (bytes, destination, fact) = reply(menu_answer(&question, Port::Dhcp, &policy, &menu));
    assert_eq!(fact, Fact::Offered { form: OfferForm::Menu, file: String::new() });
    assert!(guard_passes(&bytes, 67, destination));
    assert_eq!(bytes[20..24], [10, 77, 0, 1]);
    assert_eq!(bytes[108..236], [0; 128], "no file");
    let mut vendor = vec![6, 1, 7];
    vendor.extend([8, 14, 0x80, 0, 1, 10, 77, 0, 1, 0x80, 1, 1, 10, 77, 0, 1]);
    vendor.extend([9, 18, 0x80, 0, 5]);
    vendor.extend(b"NixOS");
    vendor.extend([0x80, 1, 7]);
    // One for each character that a console may not have.
    vendor.extend(b"Zw?lf ?");
    vendor.extend([10, 9, 30]);
    vendor.extend(b"F8: menu\xff");
    let expected: Vec<(u8, Vec<u8>)> = vec![
        (53, vec![2]),
        (54, vec![10, 77, 0, 1]),
        (60, b"PXEClient".to_vec()),
        (43, vendor),
        (97, GUID.to_vec()),
    ];
    // As they stand, whatever else is there.
    assert_eq!(options(&bytes), expected);

    // The choice comes to the boot server by unicast, and is answered with its type.
    let chosen = |kind, layer| {
        let port = Port::BootServer { asker: ASKER };
        menu_answer(&item_question(kind, layer), port, &policy, &menu)
    };
    let (bytes, destination, fact) = reply(chosen(0x8001, 0));
    let file = "52-54-00-77-00-09/menu1/boot.efi";
    assert_eq!(fact, Fact::BootServer { file: file.to_owned() });
    assert_eq!(destination, ASKER);
    assert_eq!(bytes[20..24], [10, 77, 0, 1]);
    assert_eq!(bytes[108..108 + file.len()], *file.as_bytes());
    assert_eq!(option(&bytes, 53), Some(vec![5]));
    assert_eq!(option(&bytes, 43), Some(vec![71, 4, 0x80, 1, 0, 0, 255]));
    let (_, _, fact) = reply(chosen(0x8000, 0));
    assert!(matches!(fact, Fact::BootServer { file } if file.ends_with("/menu0/boot.efi")));
    for (kind, layer) in [(0, 0), (0x8002, 0), (0x8000, 0x8000), (0xffff, 0), (1, 0)] {
        let item = BootItem { kind, layer };
        assert_eq!(ignored(chosen(kind, layer)), Ignore::BootItem(item));
    }
    // A boot server that is asked without a word of the menu names the first.
    let port = Port::BootServer { asker: ASKER };
    let plain = message(&[REQUEST, PXE, X64]);
    let (_, _, fact) = reply(menu_answer(&plain, port, &policy, &menu));
    assert!(matches!(fact, Fact::BootServer { file } if file.ends_with("/menu0/boot.efi")));
}

#[test]
fn a_menu_is_ipxes_where_the_machine_can_have_ipxe_and_is_not_only_signed() {
    let question = |arch: u16| {
        let [a, b] = arch.to_be_bytes();
        message(&[DISCOVER, PXE, (93, &[a, b])])
    };
    let all = with_loaders(&[Loader::Undionly, Loader::Snponly(Cpu::X64), Loader::Image]);
    let none = with_loaders(&[Loader::Image]);
    let script: Efi = Err(NoEfiImage::Script);
    let two = menu(&[("a", made(0x8664)), ("b", signed(0x8664))]);
    let mixed = menu(&[("a", script), ("b", made(0x8664)), ("c", made(0x8664))]);
    let lone = menu(&[("a", signed(0xaa64)), ("b", signed(0x8664))]);
    for (policy, menu, arch, form, file) in [
        (&all, &two, 7, OfferForm::Complete, "snponly.efi"),
        (&all, &two, 0, OfferForm::Complete, "undionly.kpxe"),
        (&none, &two, 7, OfferForm::Menu, ""),
        (&none, &mixed, 7, OfferForm::Menu, ""),
        // One that it can run is no menu.
        (&none, &lone, 7, OfferForm::Complete, "menu1/boot.efi"),
        (&none, &lone, 11, OfferForm::Complete, "menu0/boot.efi"),
        (&all, &lone, 7, OfferForm::Complete, "snponly.efi"),
        (&all, &lone, 11, OfferForm::Complete, "menu0/boot.efi"),
    ] {
        let (found, name) = offered(menu_answer(&question(arch), Port::Dhcp, policy, menu));
        assert_eq!(found, form, "{arch} {file}");
        assert!(name.ends_with(file), "{name}");
        let port = Port::BootServer { asker: ASKER };
        let other = menu_answer(&item_question(0x8002, 0), port, policy, menu);
        let known = form == OfferForm::Menu && menu.menu.len() == 3;
        assert_eq!(matches!(other, Decision::Reply { .. }), known, "{arch} {file}");
    }
    // Without a boot server nobody could be asked for a choice.
    let alone = Policy { boot_server: false, ..none.clone() };
    let (form, file) = offered(menu_answer(&question(7), Port::Dhcp, &alone, &two));
    assert_eq!((form, file.as_str()), (OfferForm::Complete, "52-54-00-77-00-09/menu0/boot.efi"));
    // Nothing that runs there.
    let nothing = ignored(menu_answer(&question(10), Port::Dhcp, &none, &two));
    assert_eq!(nothing, Ignore::Machine(Ignored::NoLoader { arch: 10 }));
    // iPXE and a loader of the user's have nothing to do with it.
    let ipxe = message(&[DISCOVER, PXE, X64, IPXE, HTTP_BZIMAGE]);
    assert_eq!(offered(menu_answer(&ipxe, Port::Dhcp, &none, &two)).0, OfferForm::Script);
    let given = with_loaders(&[Loader::Given(7), Loader::Image]);
    assert!(offered(menu_answer(&question(7), Port::Dhcp, &given, &two)).1.ends_with("loader-7"));
}

#[test]
fn a_menu_of_any_length_fits_and_its_names_are_cut_to_what_there_is_room_for() {
    let policy = with_loaders(&[Loader::Image]);
    for (count, relay, shown, length) in
        [(2, 0, 2, 60), (3, 0, 3, 46), (8, 0, 8, 11), (9, 0, 9, 8), (40, 0, 9, 8), (2, 200, 2, 60)]
    {
        let names: Vec<String> =
            (0..count).map(|one| format!("{one:02}") + &"x".repeat(80)).collect();
        let items: Vec<_> = names.iter().map(|name| (name.as_str(), signed(0x8664))).collect();
        let question = message(&[DISCOVER, PXE, X64, (97, &GUID), (82, &vec![7; relay])]);
        let decision = menu_answer(&question, Port::Dhcp, &policy, &menu(&items));
        let (bytes, destination, _) = reply(decision);
        assert!(guard_passes(&bytes, 67, destination), "{count}");
        assert!(bytes.len() <= dhcp_reply::MAX);
        assert_eq!(option(&bytes, 97), Some(GUID.to_vec()), "{count}");
        let vendor = option(&bytes, 43).unwrap();
        let parts: Vec<_> = Options::new(&vendor).collect();
        let [(6, [7]), (8, servers), (9, lines), (10, [30, ..])] = parts.as_slice() else {
            panic!("{parts:?}")
        };
        assert_eq!((servers.len(), lines.len()), (7 * shown, (3 + length) * shown), "{count}");
        assert_eq!(vendor.last(), Some(&255));
    }
}

#[test]
fn a_chain_goes_to_uefi_machines_of_its_kind_that_boot_by_pxe() {
    let policy = Policy {
        chain: Some((Cpu::X64, "shimx64.efi".to_owned())),
        ..with_loaders(&[
            Loader::Undionly,
            Loader::Snponly(Cpu::X64),
            Loader::Snponly(Cpu::Arm64),
            Loader::Image,
        ])
    };
    let efi = made(0x8664);
    for (options, file) in [
        (&[DISCOVER, PXE, X64][..], "shimx64.efi"),
        (&[DISCOVER, PXE, (93, &[0, 9])], "shimx64.efi"),
        (&[DISCOVER, PXE, (93, &[0, 11])], "snponly-arm64.efi"),
        (&[DISCOVER, PXE, BIOS], "undionly.kpxe"),
        (&[DISCOVER, HTTP, X64_HTTP], "boot.efi"),
    ] {
        let (bytes, _, fact) = reply(on_67_with(&efi, &policy, options));
        let Fact::Offered { file: found, .. } = fact else { panic!("{fact:?}") };
        assert!(found.ends_with(&format!("/{file}")), "{found}");
        // shim reads the server and its own folder from the header's fields.
        assert_eq!(bytes[20..24], [10, 77, 0, 1]);
        assert_eq!(bytes[108..108 + found.len()], *found.as_bytes());
    }
    let own = Policy {
        loaders: [Loader::Given(7)].into(),
        chain: policy.chain.clone(),
        ..self::policy()
    };
    let (_, _, fact) = reply(on_67_with(&efi, &own, &[DISCOVER, PXE, X64]));
    assert!(matches!(fact, Fact::Offered { file, .. } if file.ends_with("loader-7")));
}

#[test]
fn wire_19_http_boot_is_given_a_url_octet_by_octet() {
    let (bytes, destination, fact) =
        reply(on_67_with(&made(0x8664), &policy(), &[DISCOVER, HTTP, X64_HTTP, (97, &GUID)]));
    assert_eq!(destination, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
    assert_eq!(fact, Fact::Offered { form: OfferForm::Http, file: EFI.to_owned() });
    assert_eq!(bytes[16..20], [0; 4], "no address");
    assert_eq!(bytes[108..108 + EFI.len()], *EFI.as_bytes());
    assert_eq!(bytes[108 + EFI.len()], 0);
    let url = [EFI.as_bytes(), &[0]].concat();
    let expected: Vec<(u8, Vec<u8>)> = vec![
        (53, vec![2]),
        (54, vec![10, 77, 0, 1]),
        (60, b"HTTPClient".to_vec()),
        (67, url),
        (97, GUID.to_vec()),
    ];
    assert_eq!(options(&bytes), expected, "and no 43");
    assert!(guard_passes(&bytes, 67, destination));
}

#[test]
fn wire_19_http_boot_has_no_boot_server() {
    for kind in [1, 3, 8] {
        let bytes = message(&[(53, &[kind]), HTTP, X64_HTTP]);
        let port = Port::BootServer { asker: ASKER };
        let query = Query::parse(&bytes).unwrap();
        let decision = decide(&query, port, &policy(), Memory::default(), &only(&made(0x8664)));
        assert_eq!(ignored(decision), Ignore::MessageType(kind));
    }
}

#[test]
fn wire_19_http_boot_is_answered_on_machines_that_run_the_program_only() {
    let machine = |arch: u8, efi: &Efi| match ignored(on_67_with(
        efi,
        &policy(),
        &[DISCOVER, HTTP, (93, &[0, arch])],
    )) {
        Ignore::Machine(why) => why,
        other => panic!("{other:?}"),
    };
    for arch in [15, 18, 19, 28] {
        let other = Ignored::OtherPlatform { arch: arch.into() };
        assert_eq!(machine(arch, &made(0x8664)), other);
        assert_eq!(machine(arch, &NAMED), other);
        let arm64 = made(0xaa64);
        if arch == 19 {
            let answer = on_67_with(&arm64, &policy(), &[DISCOVER, HTTP, (93, &[0, arch])]);
            assert_eq!(offered(answer), (OfferForm::Http, EFI.to_owned()));
        } else {
            assert_eq!(machine(arch, &arm64), other);
        }
    }
    for none in [NoEfiImage::Kernel, NoEfiImage::Remote, NoEfiImage::Script] {
        let reason = none.to_string();
        assert_eq!(machine(16, &Err(none)), Ignored::NoEfiImage { arch: 16, reason });
    }
    // Not UEFI: BIOS HTTP boot, and a PXE architecture that calls itself HTTPClient.
    assert_eq!(machine(20, &made(0x8664)), Ignored::NoLoader { arch: 20 });
    assert_eq!(machine(7, &made(0x8664)), Ignored::NoLoader { arch: 7 });
}

#[test]
fn an_efi_program_goes_by_tftp_to_uefi_pxe_and_to_nobody_who_cannot_run_it() {
    const NAME: &str = "52-54-00-77-00-09/boot.efi";
    let only = with_loaders(&[Loader::Image]);
    for arch in [7, 9] {
        let answer = on_67_with(&NAMED, &only, &[DISCOVER, PXE, (93, &[0, arch])]);
        assert_eq!(offered(answer), (OfferForm::Complete, NAME.to_owned()));
    }
    for ipxe in [&[IPXE][..], &[IPXE, HTTP_BZIMAGE], &[]] {
        let bios = [&[DISCOVER, PXE, BIOS], ipxe].concat();
        let other = Ignore::Machine(Ignored::OtherPlatform { arch: 0 });
        assert_eq!(ignored(on_67_with(&NAMED, &only, &bios)), other);
    }
    let able = on_67_with(&NAMED, &only, &[DISCOVER, PXE, X64, IPXE, HTTP_BZIMAGE]);
    assert_eq!(offered(able), (OfferForm::Script, SCRIPT.to_owned()));
    let unable = on_67_with(&NAMED, &only, &[DISCOVER, PXE, X64, IPXE]);
    assert_eq!(offered(unable), (OfferForm::Complete, NAME.to_owned()));
    let http = on_67_with(&NAMED, &only, &[DISCOVER, HTTP, X64_HTTP]);
    assert_eq!(offered(http), (OfferForm::Http, EFI.to_owned()));
}

#[test]
fn the_image_takes_the_place_of_a_loader_that_there_is_not() {
    let file = |efi: &Efi, policy: &Policy, arch: u8| {
        offered(on_67_with(efi, policy, &[DISCOVER, PXE, (93, &[0, arch])])).1
    };
    let both = with_loaders(&[Loader::Snponly(Cpu::X64), Loader::Image]);
    assert_eq!(file(&made(0x8664), &both, 7), "52-54-00-77-00-09/snponly.efi");
    let bare = with_loaders(&[Loader::Image]);
    assert_eq!(file(&made(0x8664), &bare, 7), "52-54-00-77-00-09/boot.efi");
    assert_eq!(file(&made(0xaa64), &bare, 11), "52-54-00-77-00-09/boot.efi");
    let none = |efi: &Efi, policy: &Policy, arch: u8| {
        let answer = ignored(on_67_with(efi, policy, &[DISCOVER, PXE, (93, &[0, arch])]));
        assert_eq!(answer, Ignore::Machine(Ignored::NoLoader { arch: arch.into() }));
    };
    none(&made(0x8664), &bare, 0);
    // What differs from machine to machine is not to be had by TFTP.
    none(&made(0xaa64), &policy(), 11);
}

fn options_strategy() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let code = prop_oneof![
        prop::sample::select(vec![43, 52, 53, 54, 57, 60, 61, 77, 82, 93, 94, 97, 175]),
        any::<u8>()
    ];
    prop::collection::vec((code, prop::collection::vec(any::<u8>(), 0..255)), 0..8)
}

fn port_strategy() -> impl Strategy<Value = Port> {
    let from = (any::<u32>(), prop_oneof![Just(68), Just(4011), any::<u16>()]);
    prop_oneof![
        Just(Port::Dhcp),
        from.prop_map(|(address, port)| Port::BootServer {
            asker: SocketAddrV4::new(address.into(), port)
        }),
    ]
}

/// Whatever was asked: silence, or a reply that the guard lets pass.
fn holds(bytes: &[u8], port: Port, policy: &Policy) -> Result<bool, TestCaseError> {
    let Ok(query) = Query::parse(bytes) else {
        return Ok(false);
    };
    let Decision::Reply { bytes, destination, .. } =
        decide(&query, port, policy, Memory::default(), &only(&Err(NoEfiImage::Kernel)))
    else {
        return Ok(false);
    };
    let source = if port == Port::Dhcp { 67 } else { 4011 };
    prop_assert!(guard_passes(&bytes, source, destination));
    prop_assert!((dhcp_reply::MIN..=dhcp_reply::MAX).contains(&bytes.len()));
    let file = option(&bytes, 67).unwrap();
    let (nul, name) = file.split_last().unwrap();
    prop_assert_eq!(*nul, 0);
    prop_assert_eq!(&bytes[108..108 + name.len()], name);
    prop_assert_eq!(bytes[108 + name.len()], 0);
    Ok(true)
}

proptest! {
    #[test]
    fn random_octets_are_met_with_silence(
        bytes in prop::collection::vec(any::<u8>(), 0..700),
        port in port_strategy(),
    ) {
        prop_assert!(!holds(&bytes, port, &policy())?);
    }

    #[test]
    fn mutated_packets_never_panic_and_never_break_the_guard(
        packet in prop::sample::select(vec![
            include_str!("testdata/ovmf.hex"),
            include_str!("testdata/ipxe-rom-bios.hex"),
            include_str!("testdata/ipxe-snponly-uefi.hex"),
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        port in port_strategy(),
    ) {
        let mut bytes = fixture(packet);
        for (at, octet) in changes {
            let at = at.index(bytes.len());
            bytes[at] = octet;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        holds(&bytes, port, &policy())?;
    }

    #[test]
    fn every_answer_to_a_boot_client_passes_the_guard(
        header in prop::collection::vec(any::<u8>(), 234),
        relayed in any::<bool>(),
        hlen in 6_u8..=16,
        arch in prop::sample::select(vec![0_u8, 7, 9]),
        extra in options_strategy(),
        address in any::<u32>(),
        http_port in any::<u16>(),
        port in port_strategy(),
    ) {
        let kind = if port == Port::Dhcp { DISCOVER } else { REQUEST };
        let arch = [0, arch];
        let mut all: Vec<(u8, &[u8])> = vec![kind, PXE, (93, &arch)];
        // Options that stand twice are joined, and then are something else.
        let rest = extra.iter().filter(|(code, _)| ![52, 53, 60, 93, 97].contains(code));
        all.extend(rest.map(|(code, data)| (*code, data.as_slice())));
        let mut bytes = message(&all);
        bytes[2..236].copy_from_slice(&header);
        bytes[2] = hlen;
        if !relayed {
            bytes[24..28].fill(0);
        }
        let policy = Policy { address: address.into(), http_port, ..policy() };
        let answered = holds(&bytes, port, &policy)?;
        // A PAD or END among the random options can hide what follows, nothing before.
        prop_assert!(answered || relayed || port != Port::Dhcp);
    }
}

#[test]
fn a_kernel_for_another_processor_is_kept_from_machines_that_cannot_run_it() {
    let fits = |arch: u8, machine, policy: &Policy| {
        let bytes = message(&[DISCOVER, PXE, (93, &[0, arch])]);
        fits(&Query::parse(&bytes).unwrap(), policy, machine)
    };
    let other = |arch| Err(Ignore::Machine(Ignored::OtherPlatform { arch }));
    let (ia32, x64, arm64) = (Some(0x014c), Some(0x8664), Some(0xaa64));
    for (arch, machine, right) in [
        (0, x64, Ok(())),
        (0, ia32, Ok(())),
        (0, arm64, other(0)),
        (7, x64, Ok(())),
        (7, ia32, other(7)),
        (9, arm64, other(9)),
        (11, arm64, Ok(())),
        (11, x64, other(11)),
        // Compressed as a whole: what it is for is not known.
        (11, None, Ok(())),
    ] {
        assert_eq!(fits(arch, machine, &policy()), right, "{arch} {machine:?}");
    }
    // What the user's own loader starts is not known either.
    assert_eq!(fits(11, x64, &with_loaders(&[Loader::Given(11)])), Ok(()));
}

#[test]
fn what_a_machine_says_of_itself_is_written_as_its_own_tools_write_it() {
    let said = |options: &[(u8, &[u8])]| Query::parse(&message(options)).unwrap().identity();
    let identity = said(&[DISCOVER, PXE, X64, (97, &GUID)]);
    assert_eq!(identity.uuid.as_str(), "04030201-0605-0807-090a-0b0c0d0e0f10");
    assert_eq!(identity.arch.as_str(), "x86_64");
    assert_eq!(said(&[DISCOVER, PXE, BIOS]).arch.as_str(), "bios");
    assert_eq!(said(&[DISCOVER, PXE, BIOS]).uuid.as_str(), "");
    assert_eq!(said(&[DISCOVER, PXE, (93, &[0, 11])]).arch.as_str(), "arm64");
}
