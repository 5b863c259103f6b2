//! What a machine asks and says of itself, and what makes it none that boots by network.

use super::*;

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
    assert_eq!(parse(&GUID).unwrap().ask.machine_id, Some(GUID.to_vec()));
    let mut wrong_type = GUID;
    wrong_type[0] = 255;
    for id in [&wrong_type[..], &GUID[..16], &[0; 18], &[]] {
        assert_eq!(parse(id), Err(NotBootClient::MachineId), "{id:?}");
    }
    let absent = reply(on_67(&message(&[DISCOVER, PXE, BIOS]))).0;
    assert_eq!(option(&absent, 97), None);
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
fn what_a_machine_says_of_itself_is_written_as_its_own_tools_write_it() {
    let said = |options: &[(u8, &[u8])]| Query::parse(&message(options)).unwrap().identity();
    let identity = said(&[DISCOVER, PXE, X64, (97, &GUID)]);
    assert_eq!(identity.uuid.as_str(), "04030201-0605-0807-090a-0b0c0d0e0f10");
    assert_eq!(identity.arch.as_str(), "x86_64");
    assert_eq!(said(&[DISCOVER, PXE, BIOS]).arch.as_str(), "bios");
    assert_eq!(said(&[DISCOVER, PXE, BIOS]).uuid.as_str(), "");
    assert_eq!(said(&[DISCOVER, PXE, (93, &[0, 11])]).arch.as_str(), "arm64");
}
