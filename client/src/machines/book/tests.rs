//! Machines on their way, told by facts and times (milliseconds).

use std::net::Ipv4Addr;

use super::*;
use crate::{
    event::{Ignored, Protocol},
    image::Cpu,
};

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const UEFI: u16 = 7;
const BIOS: u16 = 0;

fn policy() -> Policy {
    Policy { initrds: 2, ..Policy::plain() }
}

#[test]
fn an_efi_program_is_everything_whatever_brought_it() {
    for (firmware, form, role) in [
        (Firmware::Http, OfferForm::Http, Role::Efi),
        (Firmware::Pxe, OfferForm::Complete, Role::Efi),
    ] {
        let mut book = book();
        ask(&mut book, 0, A, UEFI, firmware, form);
        let told = load(&mut book, 1_000, A, 1, role);
        assert_eq!(told.last(), Some(&What::Statement(Statement::HandedOver)));
        book.heard(A);
        assert_eq!(book.tick(500_000), []);
        // The next boot begins anew.
        ask(&mut book, 600_000, A, UEFI, firmware, form);
        let told = load(&mut book, 601_000, A, 2, Role::Kernel);
        assert_eq!(told.len(), 1, "{told:?}");
    }
}

#[test]
fn http_boot_that_does_not_come_for_the_program_is_told_what_to_try() {
    let mut book = book();
    ask(&mut book, 0, A, 16, Firmware::Http, OfferForm::Http);
    let told = book.tick(31_000);
    let [(_, Statement::Stalled { step, advice, .. })] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert!(step.contains("EFI program"), "{step}");
    assert!(advice.iter().any(|line| line.contains("plain HTTP")), "{advice:?}");
    book.fact(40_000, A, started(1, Role::Efi));
    let told = book.tick(71_000);
    let [(_, Statement::Stalled { step, advice, .. })] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert!(step.contains("EFI program's download"), "{step}");
    assert!(advice[0].contains("memory"), "{advice:?}");
}

fn book() -> Book {
    Book::new(&policy())
}

fn seen(arch: u16, firmware: Firmware) -> Fact {
    Fact::Seen { arch, firmware }
}

fn offered(form: OfferForm) -> Fact {
    let file = "file".to_owned();
    Fact::Offered { form, file }
}

fn started(transfer: u64, role: Role) -> Fact {
    let protocol = match role {
        Role::Loader => Protocol::Tftp,
        _ => Protocol::Http,
    };
    Fact::TransferStarted { transfer, protocol, role, file: String::new(), size: 10, sent: 0 }
}

fn done(transfer: u64) -> Fact {
    Fact::TransferDone { transfer, sent: 10, milliseconds: 1, retransmissions: 0 }
}

fn load(book: &mut Book, now: u64, mac: MacAddr, number: u64, role: Role) -> Vec<What> {
    book.fact(now, mac, started(number, role));
    book.fact(now, mac, done(number))
}

fn ask(
    book: &mut Book,
    now: u64,
    mac: MacAddr,
    arch: u16,
    firmware: Firmware,
    form: OfferForm,
) -> usize {
    book.fact(now, mac, seen(arch, firmware)).len() + book.fact(now, mac, offered(form)).len()
}

/// From the first packet to the script, in one instant.
fn up_to_script(book: &mut Book, now: u64, mac: MacAddr) {
    ask(book, now, mac, UEFI, Firmware::Pxe, OfferForm::Complete);
    load(book, now, mac, 1, Role::Loader);
    ask(book, now, mac, UEFI, Firmware::Ipxe, OfferForm::Script);
    load(book, now, mac, 2, Role::Script);
}

fn boot(book: &mut Book, now: u64, mac: MacAddr) {
    up_to_script(book, now, mac);
    load(book, now, mac, 3, Role::Kernel);
    load(book, now, mac, 4, Role::Initrd(0));
    let told = load(book, now, mac, 5, Role::Initrd(1));
    assert_eq!(told.last(), Some(&What::Statement(Statement::HandedOver)));
}

/// Ticks every second up to `until` and returns what was said, with the second.
fn silence(book: &mut Book, from: u64, until: u64) -> Vec<(u64, String, String)> {
    let mut said = Vec::new();
    for second in from.div_ceil(1000)..=until / 1000 {
        for (mac, statement) in book.tick(second * 1000) {
            let Statement::Stalled { step, advice, .. } = statement else {
                panic!("{statement:?}")
            };
            assert_eq!(mac, A);
            said.push((second, step, advice[0].clone()));
        }
    }
    said
}

/// One statement, at that second, with that step and that most likely reason.
#[track_caller]
fn says(book: &mut Book, from: u64, second: u64, step: &str, reason: &str) {
    let said = silence(book, from, from + 200_000);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0].0, second);
    assert!(said[0].1.contains(step), "{said:?}");
    assert!(said[0].2.contains(reason), "{said:?}");
}

#[test]
fn a_menu_may_be_read_and_a_program_ends_what_is_known_of_a_boot() {
    let mut book = book();
    ask(&mut book, 0, A, UEFI, Firmware::Pxe, OfferForm::Menu);
    book.needs(A, Needs::Script);
    assert_eq!(book.tick(299_000), []);
    book.fact(299_000, A, Fact::BootServer { file: "m/menu1/boot.efi".to_owned() });
    let told = load(&mut book, 299_500, A, 1, Role::Efi);
    assert_eq!(told.last(), Some(&What::Statement(Statement::HandedOver)));
    assert!(book.memory(299_600, A).booted);
    // Firmware that refused it asks again.
    let told = book.fact(301_000, A, seen(UEFI, Firmware::Pxe));
    assert!(matches!(told[0], What::Statement(Statement::Stalled { .. })), "{told:?}");
    ask(&mut book, 400_000, A, UEFI, Firmware::Pxe, OfferForm::Menu);
    assert_eq!(book.tick(700_000).len(), 1, "nobody chose");
}

#[test]
fn a_program_that_is_an_ipxe_itself_goes_its_own_way() {
    let mut book = book();
    ask(&mut book, 0, A, BIOS, Firmware::Pxe, OfferForm::Complete);
    book.needs(A, Needs::Script);
    let told = load(&mut book, 1_000, A, 1, Role::Efi);
    assert_eq!(told.last(), Some(&What::Statement(Statement::HandedOver)));
    assert_eq!(ask(&mut book, 9_000, A, BIOS, Firmware::Ipxe, OfferForm::Script), 0);
    assert_eq!(book.tick(700_000), [], "a menu is waited at");
    // The machine starts anew.
    assert_eq!(ask(&mut book, 800_000, A, BIOS, Firmware::Pxe, OfferForm::Complete), 2);
}

#[test]
fn what_the_screen_shows_depends_on_what_asked_last() {
    for (arch, firmware, form, codes) in [
        (BIOS, Firmware::Pxe, OfferForm::Complete, &["PXE-E53", "PXE-E32"][..]),
        (UEFI, Firmware::Pxe, OfferForm::Complete, &["PXE-E18", "PXE-E16"]),
        (UEFI, Firmware::Ipxe, OfferForm::Script, &["ipxe-4c0a6", "ipxe-040ee1"]),
        (41, Firmware::Pxe, OfferForm::Folder, &[]),
    ] {
        let mut book = book();
        ask(&mut book, 0, A, arch, firmware, form);
        let told = book.tick(60_000);
        let [(_, Statement::Stalled { screen, .. })] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!(screen, codes);
    }
    // It asks again and takes no address: nobody gave it one.
    let mut book = book();
    for now in [0, 4_000, 8_000] {
        ask(&mut book, now, A, BIOS, Firmware::Pxe, OfferForm::Complete);
    }
    let told = book.tick(60_000);
    let [(_, Statement::Stalled { screen, .. })] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(screen, &["PXE-E52"]);
}

#[test]
fn questions_that_are_repeated_are_told_once() {
    let mut book = book();
    let news: Vec<usize> = [0, 4_000, 12_000, 28_000]
        .map(|now| ask(&mut book, now, A, UEFI, Firmware::Pxe, OfferForm::Complete))
        .into();
    assert_eq!(news, [2, 0, 0, 0]);
    // A new boot after a minute of silence, or something else that asks.
    assert_eq!(ask(&mut book, 88_000, A, UEFI, Firmware::Pxe, OfferForm::Complete), 2);
    assert_eq!(ask(&mut book, 89_000, A, UEFI, Firmware::Ipxe, OfferForm::Script), 2);
    // Another machine is another story.
    assert_eq!(ask(&mut book, 89_000, B, UEFI, Firmware::Ipxe, OfferForm::Script), 2);
}

#[test]
fn a_machine_that_is_left_alone_is_told_once_and_never_stalls() {
    let mut book = book();
    let mut news = 0;
    for now in (0..600_000).step_by(10_000) {
        news += book.fact(now, A, seen(11, Firmware::Pxe)).len();
        let ignored = Ignored::NoLoader { arch: 11 };
        news += book.fact(now, A, Fact::Ignored(ignored)).len();
    }
    assert_eq!(news, 2);
    assert_eq!(silence(&mut book, 600_000, 900_000), []);
}

#[test]
fn a_machine_is_handed_over_when_it_has_the_kernel_and_every_initrd() {
    let mut book = book();
    boot(&mut book, 0, A);
    // Once, and nothing is said about it afterwards.
    assert_eq!(load(&mut book, 1, A, 6, Role::Kernel).len(), 1);
    assert_eq!(silence(&mut book, 1, 900_000), []);
    // Another boot of the same machine is handed over again.
    boot(&mut book, 1_000_000, A);
}

#[test]
fn an_initrd_twice_or_without_the_kernel_is_not_everything() {
    let mut book = book();
    up_to_script(&mut book, 0, A);
    for (number, role) in [
        (10, Role::Kernel),
        (11, Role::Initrd(0)),
        (12, Role::Initrd(0)),
        (13, Role::Initrd(2)),
        (14, Role::Other),
    ] {
        assert_eq!(load(&mut book, 0, A, number, role).len(), 1, "{role:?}");
    }
    up_to_script(&mut book, 1, A);
    assert_eq!(load(&mut book, 1, A, 20, Role::Initrd(0)).len(), 1);
    assert_eq!(load(&mut book, 1, A, 21, Role::Initrd(1)).len(), 1);
    assert_eq!(load(&mut book, 1, A, 22, Role::Kernel).len(), 2);
}

#[test]
fn a_kernel_that_was_cut_off_is_not_a_kernel() {
    let mut book = book();
    up_to_script(&mut book, 0, A);
    book.fact(0, A, started(3, Role::Kernel));
    let reason = "reset".to_owned();
    book.fact(0, A, Fact::TransferEnded { transfer: 3, sent: 1, reason });
    assert_eq!(book.fact(0, A, done(3)).len(), 1);
    load(&mut book, 0, A, 4, Role::Initrd(0));
    assert_eq!(load(&mut book, 0, A, 5, Role::Initrd(1)).len(), 1);
}

#[test]
fn stalled_after_a_complete_offer_names_the_address_first() {
    let mut book = book();
    ask(&mut book, 0, A, UEFI, Firmware::Pxe, OfferForm::Complete);
    says(&mut book, 0, 30, "offered a loader", "No DHCP server gave it an address");
}

#[test]
fn who_asks_again_and_takes_no_address_has_no_dhcp_server() {
    for (dhcp_server, step, reason) in [
        (false, "no DHCP server gives it an address", "--dhcp-server"),
        (true, "offered an address, and has not taken it", "drops packets"),
    ] {
        let mut book = Book::new(&Policy { dhcp_server, ..policy() });
        for now in [0, 4_000, 12_000] {
            ask(&mut book, now, A, UEFI, Firmware::Pxe, OfferForm::Complete);
        }
        says(&mut book, 12_000, 30, step, reason);
    }
}

#[test]
fn who_has_taken_an_address_is_not_told_to_look_for_one() {
    let server = Ipv4Addr::new(192, 0, 2, 1);
    for taken in [Fact::Selected { server, address: None }, Fact::Leased { address: server }] {
        let mut book = book();
        for now in [0, 4_000] {
            ask(&mut book, now, A, UEFI, Firmware::Pxe, OfferForm::Complete);
            // Told once.
            let news = book.fact(now, A, taken.clone());
            assert_eq!(news.len(), usize::from(now == 0), "{news:?}");
        }
        says(&mut book, 4_000, 30, "offered a loader", "Another network boot server");
        // The next boot is another story.
        for now in [200_000, 204_000] {
            ask(&mut book, now, A, UEFI, Firmware::Pxe, OfferForm::Complete);
        }
        says(&mut book, 204_000, 230, "no DHCP server gives it an address", "--dhcp-server");
    }
}

#[test]
fn stalled_after_a_boot_server_offer_names_the_other_form() {
    let mut book = book();
    ask(&mut book, 0, A, UEFI, Firmware::Pxe, OfferForm::BootServer);
    let (_, statement) = book.tick(30_000).remove(0);
    let Statement::Stalled { advice, .. } = statement else { panic!("{statement:?}") };
    assert!(advice[1].contains("--uefi-offer complete"));
}

#[test]
fn stalled_after_4011_names_tftp() {
    let mut book = book();
    ask(&mut book, 0, A, UEFI, Firmware::Pxe, OfferForm::BootServer);
    let file = "file".to_owned();
    book.fact(5_000, A, Fact::BootServer { file });
    says(&mut book, 5_000, 25, "the boot server told it", "UDP 69");
}

#[test]
fn a_download_that_moves_is_not_stalled_and_one_that_stands_is() {
    let mut book = book();
    ask(&mut book, 0, A, BIOS, Firmware::Pxe, OfferForm::Complete);
    book.fact(1_000, A, started(1, Role::Loader));
    for now in (2_000..100_000).step_by(15_000) {
        let (transfer, sent) = (1, now);
        book.fact(now, A, Fact::TransferProgress { transfer, sent, retransmissions: 0 });
        assert_eq!(book.tick(now + 14_000), []);
    }
    says(&mut book, 93_000, 112, "download has stopped", "Packets are lost");
}

#[test]
fn a_loader_without_consequence_names_secure_boot_and_the_next_try_gets_another() {
    let mut book = book();
    ask(&mut book, 0, A, UEFI, Firmware::Pxe, OfferForm::Complete);
    load(&mut book, 2_000, A, 1, Role::Loader);
    assert_eq!(book.memory(3_000, A).failed_loaders, 0);
    says(&mut book, 2_000, 32, "nothing followed", "Secure Boot");
    assert_eq!(book.memory(40_000, A).failed_loaders, 1);
    // The next boot does not count the same failure again.
    ask(&mut book, 40_000, A, UEFI, Firmware::Pxe, OfferForm::Complete);
    assert_eq!(book.memory(40_000, A).failed_loaders, 1);
    // A quick reboot counts without a statement.
    load(&mut book, 41_000, A, 2, Role::Loader);
    ask(&mut book, 42_000, A, UEFI, Firmware::Pxe, OfferForm::Complete);
    assert_eq!(book.memory(42_000, A).failed_loaders, 2);
}

#[test]
fn the_end_of_a_download_from_before_a_restart_is_no_step_of_the_new_boot() {
    let mut book = book();
    ask(&mut book, 0, A, UEFI, Firmware::Pxe, OfferForm::Complete);
    book.fact(1_000, A, started(1, Role::Loader));
    ask(&mut book, 2_000, A, UEFI, Firmware::Pxe, OfferForm::Complete);
    book.fact(3_000, A, done(1));
    says(&mut book, 3_000, 32, "offered a loader", "No DHCP server");
}

#[test]
fn a_loader_that_was_only_slow_has_not_failed() {
    let mut book = book();
    ask(&mut book, 0, A, BIOS, Firmware::Pxe, OfferForm::Complete);
    load(&mut book, 2_000, A, 1, Role::Loader);
    says(&mut book, 2_000, 32, "nothing followed", "network card's ROM");
    ask(&mut book, 50_000, A, BIOS, Firmware::Ipxe, OfferForm::Script);
    assert_eq!(book.memory(50_000, A).failed_loaders, 0);
}

#[test]
fn an_ipxe_that_loaded_our_ipxe_is_remembered_until_it_has_the_script() {
    let mut book = book();
    ask(&mut book, 0, A, BIOS, Firmware::Ipxe, OfferForm::Complete);
    assert!(!book.memory(0, A).chained);
    load(&mut book, 1_000, A, 1, Role::Loader);
    assert!(book.memory(1_000, A).chained);
    ask(&mut book, 5_000, A, BIOS, Firmware::Ipxe, OfferForm::Script);
    assert!(book.memory(5_000, A).chained);
    load(&mut book, 6_000, A, 2, Role::Script);
    assert!(!book.memory(6_000, A).chained);
    // Nor for ever: what does not come for the script may begin anew.
    ask(&mut book, 100_000, A, BIOS, Firmware::Ipxe, OfferForm::Complete);
    load(&mut book, 100_000, A, 4, Role::Loader);
    ask(&mut book, 101_000, A, BIOS, Firmware::Ipxe, OfferForm::Script);
    assert!(book.memory(101_000, A).chained);
    assert_eq!(book.tick(131_000).len(), 1);
    assert!(!book.memory(131_000, A).chained);
    // A ROM that is no iPXE and loads ours is no loop.
    ask(&mut book, 0, B, BIOS, Firmware::Pxe, OfferForm::Complete);
    load(&mut book, 1_000, B, 3, Role::Loader);
    assert!(!book.memory(1_000, B).chained);
}

#[test]
fn stalled_before_and_after_the_script() {
    let mut early = book();
    ask(&mut early, 0, A, UEFI, Firmware::Ipxe, OfferForm::Script);
    says(&mut early, 0, 30, "where its script is", "drops TCP");
    let mut late = book();
    up_to_script(&mut late, 0, A);
    says(&mut late, 0, 20, "has not asked for the kernel", "stopped at the script");
}

#[test]
fn stalled_between_kernel_and_initrd_names_memory() {
    let mut book = book();
    up_to_script(&mut book, 0, A);
    load(&mut book, 1_000, A, 3, Role::Kernel);
    says(&mut book, 1_000, 31, "not fetched every initrd", "too little memory");
}

#[test]
fn once_leaves_a_machine_alone_that_has_booted() {
    let mut book = Book::new(&Policy { once: true, ..policy() });
    up_to_script(&mut book, 0, A);
    assert!(!book.memory(0, A).local_boot);
    boot(&mut book, 0, A);
    assert!(book.memory(1, A).local_boot);
    assert!(book.memory(1_000_000, A).local_boot);
    assert!(!book.memory(1, B).local_boot);
}

#[test]
fn count_counts_the_machines_of_all_interfaces() {
    let policy = Policy { count: Some(Count::new(1)), ..policy() };
    let [mut near, far] = [(); 2].map(|()| Book::new(&policy));
    assert!(!near.memory(0, B).local_boot && !far.memory(0, B).local_boot);
    boot(&mut near, 10, A);
    assert!(near.memory(20, B).local_boot && far.memory(20, B).local_boot);
}

#[test]
fn count_lets_machines_finish_that_are_on_their_way() {
    let mut book = Book::new(&Policy { count: Some(Count::new(1)), ..policy() });
    ask(&mut book, 0, B, UEFI, Firmware::Pxe, OfferForm::Complete);
    boot(&mut book, 10, A);
    assert!(book.memory(20, A).local_boot);
    assert!(!book.memory(20, B).local_boot);
    assert!(book.memory(20, MacAddr([2; 6])).local_boot);
    // One that was never offered anything is not on its way by asking again.
    let late = MacAddr([2; 6]);
    book.fact(30, late, seen(UEFI, Firmware::Pxe));
    book.fact(30, late, Fact::Ignored(Ignored::AlreadyBooted));
    assert!(book.memory(40, late).local_boot);
    // Not one that went away and comes back later.
    assert!(book.memory(100_000, B).local_boot);
}

#[test]
fn inventions_push_out_inventions_and_not_machines_that_are_served() {
    let mut book = Book::new(&Policy { once: true, ..policy() });
    boot(&mut book, 0, A);
    ask(&mut book, 0, B, UEFI, Firmware::Pxe, OfferForm::Complete);
    load(&mut book, 0, B, 9, Role::Loader);
    for number in 0..6_000_u32 {
        let [a, b, c, d] = number.to_be_bytes();
        let stranger = MacAddr([6, 6, a, b, c, d]);
        ask(&mut book, 1 + u64::from(number), stranger, UEFI, Firmware::Pxe, OfferForm::Complete);
    }
    assert_eq!(book.machines.len(), MACHINES);
    assert!(book.memory(7_000, A).local_boot);
    assert_eq!(book.machines[&B].step, Step::Loaded);
}

#[test]
fn a_machine_that_probes_for_many_names_is_cut_short() {
    let mut book = book();
    let told: usize = (0..100)
        .map(|number| {
            let file = format!("{number}");
            let protocol = Protocol::Tftp;
            book.fact(0, A, Fact::NotFound { protocol, file }).len()
        })
        .sum();
    assert_eq!(told, NOT_FOUND);
    for transfer in 0..100 {
        book.fact(0, A, started(transfer, Role::Other));
    }
    assert_eq!(book.machines[&A].transfers.len(), TRANSFERS);
}

/// Words of the statement that a machine's return brings, `after` it had its EFI program.
fn returned(book: &mut Book, after: u64, firmware: Firmware) -> Option<Vec<String>> {
    ask(book, 0, A, UEFI, Firmware::Pxe, OfferForm::Complete);
    load(book, 1_000, A, 1, Role::Efi);
    let told = book.fact(1_000 + after, A, seen(16, firmware));
    told.into_iter().find_map(|what| match what {
        What::Statement(Statement::Stalled { step, advice, .. }) => {
            assert!(step.contains("refused"), "{step}");
            Some(advice)
        }
        _ => None,
    })
}

#[test]
fn firmware_that_asks_again_after_it_had_the_program_has_refused_it() {
    let unsigned = Policy { signed: false, ..policy() };
    let advice = returned(&mut Book::new(&unsigned), 5_000, Firmware::Pxe).unwrap();
    assert!(advice[0].contains("not signed") && advice[0].contains("--sign-key"), "{advice:?}");
    let advice = returned(&mut Book::new(&policy()), 5_000, Firmware::Http).unwrap();
    assert!(advice[0].contains("not enrolled"), "{advice:?}");
    // The next entry comes after a minute for IPv6; a restart begins with the same one as before.
    assert!(returned(&mut Book::new(&unsigned), 90_000, Firmware::Http).is_some());
    assert_eq!(returned(&mut Book::new(&unsigned), 90_000, Firmware::Pxe), None);
    assert_eq!(returned(&mut Book::new(&unsigned), 300_000, Firmware::Http), None);
    assert_eq!(returned(&mut Book::new(&unsigned), 5_000, Firmware::Ipxe), None);
}

#[test]
fn a_system_that_starts_from_the_network_again_did_not_come_up_unless_it_was_heard() {
    let told = |firmware, after: u64, system: bool| {
        let mut book = book();
        boot(&mut book, 0, A);
        if system {
            book.heard(A);
        }
        let told = book.fact(after, A, seen(UEFI, firmware));
        told.into_iter().find_map(|what| match what {
            What::Statement(Statement::Stalled { step, advice, .. }) => Some((step, advice)),
            _ => None,
        })
    };
    for firmware in [Firmware::Pxe, Firmware::Ipxe] {
        let (step, advice) = told(firmware, 20_000, false).unwrap();
        assert!(step.contains("did not come up"), "{step}");
        assert!(advice[0].contains("initrd is damaged"), "{advice:?}");
        assert!(advice[1].contains("too little memory"), "{advice:?}");
        assert_eq!(told(firmware, 20_000, true), None);
        assert_eq!(told(firmware, 100_000, false), None);
    }
    // After a script all may be as it should be: an iPXE that it loads asks again, too.
    let mut book = book();
    ask(&mut book, 0, A, UEFI, Firmware::Ipxe, OfferForm::Script);
    book.needs(A, Needs::Script);
    assert_eq!(load(&mut book, 0, A, 1, Role::Script).len(), 2);
    assert_eq!(book.fact(5_000, A, seen(UEFI, Firmware::Ipxe)).len(), 1);
}

#[test]
fn a_program_after_which_all_is_silent_is_told_unless_a_system_was_heard() {
    let told = |system: bool| {
        let mut book = Book::new(&Policy { signed: false, ..policy() });
        ask(&mut book, 0, A, 16, Firmware::Http, OfferForm::Http);
        load(&mut book, 1_000, A, 1, Role::Efi);
        if system {
            book.heard(A);
        }
        assert_eq!(book.tick(170_000), []);
        (book.tick(190_000), book.tick(400_000))
    };
    let (once, again) = told(false);
    let [(_, Statement::Stalled { advice, .. })] = once.as_slice() else { panic!("{once:?}") };
    assert!(advice[0].contains("all is well") && advice[1].contains("not signed"), "{advice:?}");
    assert_eq!(again, []);
    assert_eq!(told(true), (vec![], vec![]));
}

#[test]
fn a_loader_that_secure_boot_refuses_is_told_as_soon_as_the_firmware_asks_again() {
    for (chain, word) in [(None, "not signed"), (Some((Cpu::X64, "shimx64.efi".into())), "GRUB")] {
        let mut book = Book::new(&Policy { chain, ..policy() });
        ask(&mut book, 0, A, UEFI, Firmware::Pxe, OfferForm::Complete);
        load(&mut book, 1_000, A, 1, Role::Loader);
        let told = book.fact(3_000, A, seen(16, Firmware::Http));
        let [What::Statement(Statement::Stalled { advice, .. }), What::Fact(_)] = told.as_slice()
        else {
            panic!("{told:?}")
        };
        assert!(advice[0].contains(word), "{advice:?}");
        assert_eq!(book.tick(60_000), []);
    }
}

#[test]
fn a_system_is_up_once_and_only_after_everything_came_from_here() {
    let up = || Fact::Up { sign: crate::event::Sign::Dhcp };
    let mut book = book();
    // A stranger, and one that has not booted from here.
    assert_eq!(book.fact(0, B, up()), []);
    assert!(!book.machines.contains_key(&B));
    up_to_script(&mut book, 0, A);
    assert_eq!(book.fact(1, A, up()), []);
    boot(&mut book, 10, A);
    assert_eq!(book.fact(20_000, A, up()), [What::Fact(up())]);
    assert_eq!(book.fact(30_000, A, up()), []);
    // The next boot is news again, and a system that has spoken is not missed.
    boot(&mut book, 100_000, A);
    assert_eq!(book.fact(120_000, A, up()), [What::Fact(up())]);
    assert_eq!(book.tick(900_000), []);
}
