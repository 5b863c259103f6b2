//! What a machine is told to load, and in which form: by the table, by what there is, and by what it said
//! of itself. Pure. Whether it is answered at all is `decide`'s to say.

use super::{
    decide::Ignore,
    policy::{Memory, Policy, UefiOffer},
    query::{BootItem, Client, Ipxe, Port, Query},
    table::{self, Platform, Row},
};
use crate::{
    event::{Ignored, OfferForm},
    image::{Cpu, EfiImage, Generation, Loader, MenuItem, NoEfiImage},
    wire::dhcp_reply::{self, Item, Vendor},
};

/// What an answer tells a machine to load, and in which form.
///
/// # Errors
/// Why there is nothing for it.
pub fn boot_data(
    query: &Query,
    port: Port,
    policy: &Policy,
    memory: Memory,
    served: &Generation,
) -> Result<(dhcp_reply::Boot, OfferForm), Ignore> {
    let row = row(query, policy)?;
    let item = query.boot_item.filter(|_| port != Port::Dhcp);
    let boot = match (menu(query, &row, policy, memory, served), item) {
        (Some(menu), item) => menu_boot(query, port, &row, policy, &menu, item)?,
        (None, Some(item)) if item.number() != Some(0) => return Err(Ignore::BootItem(item)),
        (None, _) => boot(query, &row, policy, memory, &served.efi)?,
    };
    let form = match port {
        Port::Dhcp => boot.form,
        Port::BootServer { .. } => OfferForm::BootServer,
    };
    let data = dhcp_reply::Boot {
        vendor_class: match query.client {
            Client::Pxe => "PXEClient",
            Client::Http => "HTTPClient",
        },
        vendor: match (port, form, query.boot_item) {
            (Port::BootServer { .. }, _, Some(item)) => Vendor::BootItem(item.octets()),
            (_, OfferForm::BootServer | OfferForm::Http, _) => Vendor::Absent,
            (_, OfferForm::Folder, _) => Vendor::Menu(query.raspberry_pi_item()),
            (_, OfferForm::Menu, _) => Vendor::Choice(boot.menu),
            (_, OfferForm::Complete | OfferForm::Script, _) => Vendor::TakeThisFile,
        },
        file: boot.file,
    };
    Ok((data, form))
}

/// The EFI program that UEFI can load without iPXE, or why there is none.
type Efi = Result<EfiImage, NoEfiImage>;

/// Whether machines of this row can run the EFI program, if there is one.
fn runs(efi: &Efi, row: &Row) -> bool {
    let machine = efi.as_ref().ok().map(|image| image.machine);
    machine.is_some() && table::cpu(row.arch).map(Cpu::pe_machine) == machine
}

/// Whether machines of this row fetch files of a folder, and there is one.
fn has_folder(row: &Row, policy: &Policy) -> bool {
    row.loaders.contains(&Loader::Folder) && policy.loaders.contains(&Loader::Folder)
}

/// The first architecture of the list that is known, by the table or by `--loader`.
pub(super) fn row(query: &Query, policy: &Policy) -> Result<Row, Ignore> {
    // Loaders travel by TFTP.
    let given = |arch| query.client == Client::Pxe && policy.loaders.contains(&Loader::Given(arch));
    let found = query.architectures.iter().find_map(|&arch| {
        table::row(arch).copied().or_else(|| given(arch).then(|| table::unnamed(arch)))
    });
    found
        .ok_or_else(|| Ignored::UnknownArchitecture { arch: query.architecture() })
        .and_then(|row| {
            let served = match row.client {
                Client::Pxe if row.loaders == [Loader::Folder] => {
                    has_folder(&row, policy) || given(row.arch)
                }
                Client::Pxe => !row.loaders.is_empty() || given(row.arch),
                Client::Http => table::cpu(row.arch).is_some(),
            };
            (row.client == query.client && served)
                .then_some(row)
                .ok_or(Ignored::NoLoader { arch: row.arch })
        })
        .map_err(Ignore::Machine)
}

/// What the machine loads, and the form of an offer on 67.
struct Choice {
    file: String,
    form: OfferForm,
    menu: Vec<Item>,
}

impl Choice {
    fn of(file: String, form: OfferForm) -> Self {
        Self { file, form, menu: Vec::new() }
    }
}

/// The items of a menu that this machine's own firmware can show and start, with their numbers; none
/// if it is given iPXE, which shows all of them. iPXE comes first where there is one, for it needs no
/// key to show its menu and loads by HTTP; but not before programs that are all signed: Secure Boot
/// refuses iPXE.
fn menu<'a>(
    query: &Query,
    row: &Row,
    policy: &Policy,
    memory: Memory,
    served: &'a Generation,
) -> Option<Vec<(usize, &'a MenuItem)>> {
    let firmware = query.client == Client::Pxe && query.ipxe.is_none();
    let given = policy.loaders.contains(&Loader::Given(row.arch));
    if !firmware || given || row.platform != Platform::Uefi {
        return None;
    }
    let items = served.menu.iter().enumerate();
    let items: Vec<_> = items.filter(|(_, item)| runs(&item.generation.efi, row)).collect();
    let signed = |item: &MenuItem| item.generation.efi.as_ref().is_ok_and(EfiImage::is_signed);
    let all_signed = items.len() == served.menu.len() && items.iter().all(|(_, one)| signed(one));
    let without_ipxe = all_signed || pick(row, row.loaders, policy, memory, &served.efi).is_none();
    (without_ipxe && !items.is_empty()).then_some(items)
}

/// The menu itself, or what was chosen from it.
fn menu_boot(
    query: &Query,
    port: Port,
    row: &Row,
    policy: &Policy,
    items: &[(usize, &MenuItem)],
    chosen: Option<BootItem>,
) -> Result<Choice, Ignore> {
    let file = |number| Policy::item_name(query.ask.mac, number);
    if let Some(item) = chosen {
        let found = items.iter().find(|(number, _)| item.number() == Some(*number));
        let (number, _) = found.ok_or(Ignore::BootItem(item))?;
        return Ok(Choice::of(file(*number), OfferForm::Complete));
    }
    // Asked without a word of the menu, the boot server names the first one.
    if items.len() < 2 || !policy.boot_server || port != Port::Dhcp {
        let (first, _) =
            items.first().ok_or(Ignored::NoLoader { arch: row.arch }).map_err(Ignore::Machine)?;
        return Ok(Choice::of(file(*first), form(row, policy)));
    }
    let line = |(number, item): &(usize, &MenuItem)| {
        Some(Item { kind: BootItem::kind_of(*number)?, name: item.name.clone() })
    };
    let menu = items.iter().filter_map(line).collect();
    Ok(Choice { file: String::new(), form: OfferForm::Menu, menu })
}

fn boot(
    query: &Query,
    row: &Row,
    policy: &Policy,
    memory: Memory,
    efi: &Efi,
) -> Result<Choice, Ignore> {
    let other = efi.as_ref().is_ok_and(EfiImage::is_named) && !runs(efi, row);
    if other && !has_folder(row, policy) {
        return Err(Ignore::Machine(Ignored::OtherPlatform { arch: row.arch }));
    }
    match (row.client, query.ipxe) {
        (Client::Http, _) => boot_http(query, row, policy, efi),
        (Client::Pxe, Some(ipxe)) => Ok(boot_ipxe(query, row, ipxe, policy, memory, efi)),
        (Client::Pxe, None) => boot_firmware(query, row, policy, memory, efi),
    }
}

fn boot_http(query: &Query, row: &Row, policy: &Policy, efi: &Efi) -> Result<Choice, Ignore> {
    let arch = row.arch;
    match efi {
        Ok(_) if runs(efi, row) => Ok(Choice::of(policy.efi_url(query.ask.mac), OfferForm::Http)),
        Ok(_) => Err(Ignore::Machine(Ignored::OtherPlatform { arch })),
        Err(reason) => {
            let reason = reason.to_string();
            Err(Ignore::Machine(Ignored::NoEfiImage { arch, reason }))
        }
    }
}

fn boot_ipxe(
    query: &Query,
    row: &Row,
    ipxe: Ipxe,
    policy: &Policy,
    memory: Memory,
    efi: &Efi,
) -> Choice {
    let loader = pick(row, row.ipxe_loaders, policy, memory, efi)
        .filter(|_| !row.can_run_script(ipxe) && !memory.chained);
    match loader {
        Some(loader) => Choice::of(Policy::loader_name(query.ask.mac, loader), OfferForm::Complete),
        None => Choice::of(policy.script_url(query.ask.mac), OfferForm::Script),
    }
}

/// How firmware is told of one file.
fn form(row: &Row, policy: &Policy) -> OfferForm {
    match (row.platform, policy.uefi_offer) {
        // The machine's whole attempt fails when nobody answers on 4011.
        _ if !policy.boot_server => OfferForm::Complete,
        (Platform::Uefi, UefiOffer::Complete) => OfferForm::Complete,
        (Platform::Uefi, UefiOffer::BootServer) => OfferForm::BootServer,
        _ => row.offer,
    }
}

fn boot_firmware(
    query: &Query,
    row: &Row,
    policy: &Policy,
    memory: Memory,
    efi: &Efi,
) -> Result<Choice, Ignore> {
    let given = Loader::Given(row.arch);
    let form = form(row, policy);
    if let Some((cpu, file)) = &policy.chain
        && table::cpu(row.arch) == Some(*cpu)
        && !policy.loaders.contains(&given)
    {
        let file = format!("{}/{file}", query.ask.mac.hyphenated());
        return Ok(Choice::of(file, form));
    }
    // What the user signed goes before iPXE, which is not: Secure Boot would refuse it.
    let signed = efi.as_ref().is_ok_and(EfiImage::is_signed) && runs(efi, row);
    let loader = [(given, true), (Loader::Image, signed)]
        .into_iter()
        .find(|(loader, fits)| *fits && policy.loaders.contains(loader))
        .map(|(loader, _)| loader)
        .or_else(|| pick(row, row.loaders, policy, memory, efi))
        .ok_or(Ignore::Machine(Ignored::NoLoader { arch: row.arch }))?;
    if loader == Loader::Folder {
        // The files' names are the machine's own.
        return Ok(Choice::of(String::new(), row.offer));
    }
    Ok(Choice::of(Policy::loader_name(query.ask.mac, loader), form))
}

/// The first loader that we have, or a later one after failures, in turn. Without any, the EFI
/// program itself, if TFTP has it.
fn pick(
    row: &Row,
    loaders: &[Loader],
    policy: &Policy,
    memory: Memory,
    efi: &Efi,
) -> Option<Loader> {
    let have = || loaders.iter().filter(|loader| policy.loaders.contains(loader));
    match memory.failed_loaders.checked_rem(have().count()) {
        Some(turn) => have().nth(turn).copied(),
        None => {
            let whole = Loader::Whole(row.arch);
            let programs = [(whole, true), (Loader::Image, runs(efi, row))];
            let mut fit =
                programs.into_iter().filter(|(one, runs)| *runs && policy.loaders.contains(one));
            fit.next().map(|(loader, _)| loader)
        }
    }
}
