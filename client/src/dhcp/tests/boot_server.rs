//! Port 4011.

use super::*;

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
    let bytes = fixture(include_str!("../testdata/ovmf-boot-server.hex"));
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
