//! Which loader or program a machine is given: by its kind, by what it runs already, and by what there is.

use super::*;

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
fn the_table_names_each_architecture_once() {
    let mut codes: Vec<u16> = table::ROWS.iter().map(|row| row.arch).collect();
    codes.sort_unstable();
    assert!(codes.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(table::architecture_name(300), "unknown architecture (300)");
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
        (
            include_str!("../testdata/ovmf.hex"),
            347,
            Firmware::Pxe,
            7,
            "52-54-00-77-00-03/snponly.efi",
        ),
        (
            include_str!("../testdata/ipxe-rom-bios.hex"),
            400,
            Firmware::Ipxe,
            0,
            "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-01/boot.ipxe",
        ),
        (
            include_str!("../testdata/ipxe-rom-uefi.hex"),
            388,
            Firmware::Ipxe,
            7,
            "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-04/boot.ipxe",
        ),
        (
            include_str!("../testdata/ipxe-undionly-bios.hex"),
            400,
            Firmware::Ipxe,
            0,
            "http://10.77.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-77-00-02/boot.ipxe",
        ),
        (
            include_str!("../testdata/ipxe-snponly-uefi.hex"),
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
        assert_eq!(option(&answer, 61), query.ask.client_id);
    }
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
