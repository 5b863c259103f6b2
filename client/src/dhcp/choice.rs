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
    let case = Case { query, row: row(query, policy)?, policy, memory, served };
    let item = query.boot_item.filter(|_| port != Port::Dhcp);
    let boot = match (case.menu(), item) {
        (Some(menu), item) => case.menu_boot(port, &menu, item)?,
        (None, Some(item)) if item.number() != Some(0) => return Err(Ignore::BootItem(item)),
        (None, _) => case.boot()?,
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

/// Everything that a choice depends on: who asks, as what the table knows it, what is set for all
/// machines, what is remembered of this one, and what there is for it.
struct Case<'a> {
    query: &'a Query,
    row: Row,
    policy: &'a Policy,
    memory: Memory,
    served: &'a Generation,
}

impl<'a> Case<'a> {
    fn has(&self, loader: Loader) -> bool {
        self.policy.loaders.contains(&loader)
    }

    /// The EFI program that UEFI can load without iPXE, or why there is none.
    fn efi(&self) -> &'a Result<EfiImage, NoEfiImage> {
        &self.served.efi
    }

    /// Whether this machine can run an EFI program, if there is one.
    fn runs(&self, efi: &Result<EfiImage, NoEfiImage>) -> bool {
        let machine = efi.as_ref().ok().map(|image| image.machine);
        machine.is_some() && table::cpu(self.row.arch).map(Cpu::pe_machine) == machine
    }

    /// The items of a menu that this machine's own firmware can show and start, with their numbers; none
    /// if it is given iPXE, which shows all of them. iPXE comes first where there is one, for it needs no
    /// key to show its menu and loads by HTTP; but not before programs that are all signed: Secure Boot
    /// refuses iPXE.
    fn menu(&self) -> Option<Vec<(usize, &'a MenuItem)>> {
        let firmware = self.query.client == Client::Pxe && self.query.ipxe.is_none();
        let given = self.has(Loader::Given(self.row.arch));
        if !firmware || given || self.row.platform != Platform::Uefi {
            return None;
        }
        let menu = &self.served.menu;
        let items = menu.iter().enumerate();
        let items: Vec<_> = items.filter(|(_, item)| self.runs(&item.generation.efi)).collect();
        let signed = |item: &MenuItem| item.generation.efi.as_ref().is_ok_and(EfiImage::is_signed);
        let all_signed = items.len() == menu.len() && items.iter().all(|(_, one)| signed(one));
        let without_ipxe = all_signed || self.pick(self.row.loaders).is_none();
        (without_ipxe && !items.is_empty()).then_some(items)
    }

    /// The menu itself, or what was chosen from it.
    fn menu_boot(
        &self,
        port: Port,
        items: &[(usize, &MenuItem)],
        chosen: Option<BootItem>,
    ) -> Result<Choice, Ignore> {
        let file = |number| Policy::item_name(self.query.ask.mac, number);
        if let Some(item) = chosen {
            let found = items.iter().find(|(number, _)| item.number() == Some(*number));
            let (number, _) = found.ok_or(Ignore::BootItem(item))?;
            return Ok(Choice::of(file(*number), OfferForm::Complete));
        }
        // Asked without a word of the menu, the boot server names the first one.
        if items.len() < 2 || !self.policy.boot_server || port != Port::Dhcp {
            let (first, _) = items.first().ok_or(self.no_loader())?;
            return Ok(Choice::of(file(*first), self.form()));
        }
        let line = |(number, item): &(usize, &MenuItem)| {
            Some(Item { kind: BootItem::kind_of(*number)?, name: item.name.clone() })
        };
        let menu = items.iter().filter_map(line).collect();
        Ok(Choice { file: String::new(), form: OfferForm::Menu, menu })
    }

    fn boot(&self) -> Result<Choice, Ignore> {
        let efi = self.efi();
        let other = efi.as_ref().is_ok_and(EfiImage::is_named) && !self.runs(efi);
        if other && !has_folder(&self.row, self.policy) {
            return Err(self.other_platform());
        }
        match (self.row.client, self.query.ipxe) {
            (Client::Http, _) => self.boot_http(),
            (Client::Pxe, Some(ipxe)) => Ok(self.boot_ipxe(ipxe)),
            (Client::Pxe, None) => self.boot_firmware(),
        }
    }

    fn boot_http(&self) -> Result<Choice, Ignore> {
        match self.efi() {
            efi @ Ok(_) if self.runs(efi) => {
                Ok(Choice::of(self.policy.efi_url(self.query.ask.mac), OfferForm::Http))
            }
            Ok(_) => Err(self.other_platform()),
            Err(reason) => {
                let reason = reason.to_string();
                Err(Ignore::Machine(Ignored::NoEfiImage { arch: self.row.arch, reason }))
            }
        }
    }

    fn boot_ipxe(&self, ipxe: Ipxe) -> Choice {
        let mac = self.query.ask.mac;
        let loader = self
            .pick(self.row.ipxe_loaders)
            .filter(|_| !self.row.can_run_script(ipxe) && !self.memory.chained);
        match loader {
            Some(loader) => Choice::of(Policy::loader_name(mac, loader), OfferForm::Complete),
            None => Choice::of(self.policy.script_url(mac), OfferForm::Script),
        }
    }

    fn boot_firmware(&self) -> Result<Choice, Ignore> {
        let mac = self.query.ask.mac;
        let given = Loader::Given(self.row.arch);
        if let Some((cpu, file)) = &self.policy.chain
            && table::cpu(self.row.arch) == Some(*cpu)
            && !self.has(given)
        {
            return Ok(Choice::of(format!("{}/{file}", mac.hyphenated()), self.form()));
        }
        // What the user signed goes before iPXE, which is not: Secure Boot would refuse it.
        let efi = self.efi();
        let signed = efi.as_ref().is_ok_and(EfiImage::is_signed) && self.runs(efi);
        let loader = [(given, true), (Loader::Image, signed)]
            .into_iter()
            .find(|(loader, fits)| *fits && self.has(*loader))
            .map(|(loader, _)| loader)
            .or_else(|| self.pick(self.row.loaders))
            .ok_or(self.no_loader())?;
        if loader == Loader::Folder {
            // The files' names are the machine's own.
            return Ok(Choice::of(String::new(), self.row.offer));
        }
        Ok(Choice::of(Policy::loader_name(mac, loader), self.form()))
    }

    /// How firmware is told of one file.
    fn form(&self) -> OfferForm {
        match (self.row.platform, self.policy.uefi_offer) {
            // The machine's whole attempt fails when nobody answers on 4011.
            _ if !self.policy.boot_server => OfferForm::Complete,
            (Platform::Uefi, UefiOffer::Complete) => OfferForm::Complete,
            (Platform::Uefi, UefiOffer::BootServer) => OfferForm::BootServer,
            _ => self.row.offer,
        }
    }

    /// The first of these loaders that we have, or a later one after failures, in turn. Without any, the
    /// EFI program itself, if TFTP has it.
    fn pick(&self, loaders: &[Loader]) -> Option<Loader> {
        let have = || loaders.iter().filter(|loader| self.has(**loader));
        match self.memory.failed_loaders.checked_rem(have().count()) {
            Some(turn) => have().nth(turn).copied(),
            None => {
                let whole = Loader::Whole(self.row.arch);
                let programs = [(whole, true), (Loader::Image, self.runs(self.efi()))];
                let mut fit = programs.into_iter().filter(|(one, runs)| *runs && self.has(*one));
                fit.next().map(|(loader, _)| loader)
            }
        }
    }

    fn no_loader(&self) -> Ignore {
        Ignore::Machine(Ignored::NoLoader { arch: self.row.arch })
    }

    fn other_platform(&self) -> Ignore {
        Ignore::Machine(Ignored::OtherPlatform { arch: self.row.arch })
    }
}
