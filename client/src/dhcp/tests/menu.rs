//! A menu that the firmware shows, or iPXE.

use super::*;

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
