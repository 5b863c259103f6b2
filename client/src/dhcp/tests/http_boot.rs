//! UEFI HTTP boot.

use super::*;

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
