//! What is said of a machine that has stopped: the step it took last, what its screen shows most
//! likely, and likely reasons, most likely first, each with what to try. The words are in `codes`.
//! Holds no text that came from a machine.

use super::book::Step;
use crate::{
    codes::{self, Reason, Speaker, Stop},
    dhcp::table::{self, Platform},
    event::{Firmware, OfferForm, Statement},
};

/// What is known about a machine that has stopped.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// The last step.
    pub step: Step,
    /// DHCP option 93, if it asked by DHCP.
    pub arch: Option<u16>,
    /// What asked last.
    pub firmware: Option<Firmware>,
    /// It has the kernel.
    pub kernel: bool,
    /// Whether it has an address.
    pub address: Address,
    /// What it was given, and how.
    pub served: Served,
}

/// What is served, as far as it bears on reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The EFI program is signed by somebody.
    pub signed: bool,
    /// UEFI machines that boot by PXE are given shim and what it starts.
    pub chain: bool,
    /// Addresses are handed out here.
    pub dhcp_server: bool,
}

/// What its DHCP messages say of its address. The answers of other servers are not heard, but what
/// a machine takes is: it says so to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// It has asked once.
    Unknown,
    /// It took one.
    Taken,
    /// It asked again and took none.
    None,
}

/// The statement for people.
pub fn stalled(situation: &Situation) -> Statement {
    let stops = &codes::data().stops;
    let uefi = is_uefi(situation);
    let stop = match situation.step {
        Step::Offered(_) if situation.address == Address::None && situation.served.dhcp_server => {
            &stops.address_not_taken
        }
        Step::Offered(_) if situation.address == Address::None => &stops.no_dhcp_server,
        Step::Offered(OfferForm::Script) => &stops.script_not_fetched,
        Step::Offered(OfferForm::BootServer | OfferForm::Menu) => &stops.boot_server_not_asked,
        Step::Offered(OfferForm::Http) => &stops.efi_not_fetched,
        Step::Offered(OfferForm::Folder) | Step::Files => &stops.folder_not_fetched,
        Step::Asked | Step::Offered(OfferForm::Complete) if uefi => &stops.loader_not_fetched_uefi,
        Step::Asked | Step::Offered(OfferForm::Complete) => &stops.loader_not_fetched_bios,
        Step::BootServer => &stops.boot_server_no_tftp,
        Step::Loading => &stops.loader_stopped,
        Step::Loaded if situation.firmware == Some(Firmware::Ipxe) => &stops.loaded_by_ipxe,
        Step::Loaded | Step::ScriptDone if uefi && situation.served.chain => &stops.loaded_chain,
        Step::Loaded if uefi => &stops.loaded_uefi,
        Step::Loaded => &stops.loaded_bios,
        Step::Script => &stops.script_stopped,
        Step::ScriptDone => &stops.no_kernel,
        Step::HandedOver if situation.served.signed => &stops.unheard_signed,
        Step::HandedOver => &stops.unheard_unsigned,
        Step::Images if situation.kernel => &stops.no_initrd,
        Step::Images if situation.firmware == Some(Firmware::Http) => &stops.efi_stopped,
        Step::Images => &stops.kernel_stopped,
    };
    statement(stop, situation)
}

/// For one whose firmware asks again although it has just got all of an EFI program.
pub fn returned(situation: &Situation) -> Statement {
    let stops = &codes::data().stops;
    let signed = situation.served.signed;
    statement(if signed { &stops.returned_signed } else { &stops.returned_unsigned }, situation)
}

/// For one that has just got kernel and initrds, and boots from the network again.
pub fn restarted(situation: &Situation) -> Statement {
    statement(&codes::data().stops.returned_system, situation)
}

fn statement(stop: &Stop, situation: &Situation) -> Statement {
    let reasons = &codes::data().reasons;
    let speaker = match situation.firmware {
        Some(Firmware::Ipxe) => Speaker::Ipxe,
        Some(Firmware::Http) => Speaker::Http,
        _ if is_uefi(situation) => Speaker::Uefi,
        _ => Speaker::Bios,
    };
    Statement::Stalled {
        step: stop.step.clone(),
        screen: stop.screen.get(&speaker).cloned().unwrap_or_default(),
        advice: stop
            .reasons
            .iter()
            .filter(|key| situation.address != Address::Taken || *key != NO_ADDRESS)
            .filter_map(|key| reasons.get(key))
            .map(Reason::advice)
            .collect(),
    }
}

fn is_uefi(situation: &Situation) -> bool {
    let platform = situation.arch.and_then(table::row).map(|row| row.platform);
    platform == Some(Platform::Uefi)
}

/// The reason that is none for a machine that was seen to take an address.
const NO_ADDRESS: &str = "no-address";
