//! The ROMs of Raspberry Pis.

use super::*;

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
