//! The answer to a DISCOVER, octet by octet, and who hears none.

use super::*;

#[test]
fn wire_04_only_discover_is_answered_on_67() {
    for kind in (0..=255).filter(|&kind| kind != 1) {
        let bytes = message(&[(53, &[kind]), PXE, X64]);
        assert_eq!(ignored(on_67(&bytes)), Ignore::MessageType(kind));
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
