//! Words for a machine that has stopped: the step it took last, and likely reasons, most likely
//! first, each with what to try. Holds no text that came from a machine.

use super::book::Step;
use crate::{
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
    let platform = situation.arch.and_then(table::row).map(|row| row.platform);
    let uefi = platform == Some(Platform::Uefi);
    let (step, advice): (&str, &[&str]) = match situation.step {
        Step::Offered(_) if situation.address == Address::None && situation.served.dhcp_server => {
            ("it was offered an address, and has not taken it", ADDRESS_NOT_TAKEN)
        }
        Step::Offered(_) if situation.address == Address::None => {
            ("it asks again and again, and no DHCP server gives it an address", NO_DHCP_SERVER)
        }
        Step::Offered(OfferForm::Script) => {
            ("iPXE was told where its script is, and has not fetched it", IPXE_BUT_NO_SCRIPT)
        }
        Step::Offered(OfferForm::BootServer) => {
            ("it was offered the boot server, and has not asked it", OFFERED_BOOT_SERVER)
        }
        Step::Offered(OfferForm::Http) => {
            ("it was told where the EFI program is, and has not fetched it", OFFERED_HTTP)
        }
        Step::Offered(OfferForm::Folder) | Step::Files => {
            ("it was told that its boot files are here, and has not fetched any", OFFERED_FOLDER)
        }
        Step::Asked | Step::Offered(OfferForm::Complete) if uefi => {
            ("it was offered a loader, and has not fetched it", OFFERED_UEFI)
        }
        Step::Asked | Step::Offered(OfferForm::Complete) => {
            ("it was offered a loader, and has not fetched it", OFFERED_BIOS)
        }
        Step::BootServer => (
            "the boot server told it which loader to fetch, and it has not begun",
            BOOT_SERVER_BUT_NO_TFTP,
        ),
        Step::Loading => ("the loader's download has stopped", TFTP_STOPPED),
        Step::Loaded if situation.firmware == Some(Firmware::Ipxe) => (
            "the loader was fetched by the machine's own iPXE and nothing followed",
            LOADED_BY_IPXE,
        ),
        Step::Loaded | Step::ScriptDone if uefi && situation.served.chain => {
            ("shim was fetched, and what it was to load did not follow", LOADED_CHAIN)
        }
        Step::Loaded if uefi => ("the loader was fetched and nothing followed", LOADED_UEFI),
        Step::Loaded => ("the loader was fetched and nothing followed", LOADED_BIOS),
        Step::Script => ("the script's download has stopped", HTTP_STOPPED),
        Step::ScriptDone => {
            ("iPXE has the script, and has not asked for the kernel", SCRIPT_BUT_NO_KERNEL)
        }
        Step::HandedOver => unheard(situation),
        Step::Images if situation.kernel => {
            ("it has the kernel, and has not fetched every initrd", KERNEL_BUT_NO_INITRD)
        }
        Step::Images if situation.firmware == Some(Firmware::Http) => {
            ("the EFI program's download has stopped", EFI_STOPPED)
        }
        Step::Images => ("the kernel's download has stopped", HTTP_STOPPED),
    };
    Statement::Stalled {
        step: step.to_owned(),
        advice: advice
            .iter()
            .filter(|line| situation.address != Address::Taken || **line != NO_ADDRESS)
            .map(|&line| line.to_owned())
            .collect(),
    }
}

/// For one whose firmware asks again although it has just got all of an EFI program.
pub fn returned(situation: &Situation) -> Statement {
    let advice = if situation.served.signed { RETURNED_SIGNED } else { RETURNED_UNSIGNED };
    Statement::Stalled {
        step: "its firmware fetched the whole EFI program, refused it, and asks again".to_owned(),
        advice: advice.iter().map(|&line| line.to_owned()).collect(),
    }
}

/// For one that has all of an EFI program and has not said a word since.
fn unheard(situation: &Situation) -> (&'static str, &'static [&'static str]) {
    let advice = if situation.served.signed { UNHEARD_SIGNED } else { UNHEARD_UNSIGNED };
    ("it has the whole EFI program, and was not heard of again", advice)
}

const UNSIGNED: &str = "Secure Boot refuses the program, which is not signed (the machine's screen \
    says \"Access Denied\" or \"Security Violation\"). Sign it with a key that the machine knows \
    (--sign-key and --sign-cert), or give it the signed loaders of a distribution (--chain), or \
    switch Secure Boot off in its setup. See docs/secureboot.md.";
const NOT_ENROLLED: &str = "Secure Boot refuses the program: the certificate that it is signed with \
    is not enrolled in this machine (the list \"db\" in its setup), or is in its list of revoked \
    ones. See docs/secureboot.md.";
const RESTARTED: &str =
    "The system did start, and restarted the machine at once: look at its screen.";
const ALL_WELL: &str =
    "Its screen shows the system: then all is well, and it only asks for no address.";

const RETURNED_UNSIGNED: &[&str] = &[UNSIGNED, RESTARTED];
const RETURNED_SIGNED: &[&str] = &[NOT_ENROLLED, RESTARTED];
const UNHEARD_UNSIGNED: &[&str] = &[ALL_WELL, UNSIGNED];
const UNHEARD_SIGNED: &[&str] = &[ALL_WELL, NOT_ENROLLED];
const LOADED_CHAIN: &[&str] = &[
    "GRUB before 2.12 asks not us for its files, but the computer that the router names. Have the \
     router name this one (\"next server\", \"TFTP server\", siaddr; without a boot file; in dnsmasq: \
     dhcp-boot=,,ADDRESS). See docs/secureboot.md.",
    "Secure Boot refuses shim: many newer machines take it only when their setup allows \
     \"Microsoft 3rd-party UEFI CA\"; or an old shim has been revoked: update the packages.",
    "shim refuses what it was given: shim, GRUB and kernel must be of one maker, and of their last \
     update. The machine's screen says so.",
];
const NO_DHCP_SERVER: &[&str] = &[
    "There is no DHCP server on this network, as on a cable that goes straight to the machine: run \
     it again with --dhcp-server, and portcullis hands out the addresses.",
    "The router's DHCP is off, has no address left, or does not reach this segment: look there. Do \
     not use --dhcp-server beside it.",
    SPANNING_TREE,
];
const ADDRESS_NOT_TAKEN: &[&str] = &[FIREWALL_BETWEEN, SPANNING_TREE, CABLE];

const NO_ADDRESS: &str = "No DHCP server gave it an address: portcullis offers the image, the \
    address comes from the router. Check that the router's DHCP is on and reaches this segment.";
const FIREWALL_BETWEEN: &str = "Something between the two drops packets: a firewall, client \
    isolation on the access point, or a VLAN. Connect both to the same switch and try again.";
const SPANNING_TREE: &str = "The switch port was still blocked when it asked (spanning tree \
    without portfast takes 15 to 30 s). Try once more without switching it off.";
const CABLE: &str = "The machine was switched off or lost its link: look at its screen.";

const OFFERED_UEFI: &[&str] = &[
    NO_ADDRESS,
    "Another network boot server answered first, or the router itself answers as one (a boot file \
     in its DHCP settings). Switch that off there.",
    "This firmware ignores complete offers: try --uefi-offer boot-server.",
    FIREWALL_BETWEEN,
    SPANNING_TREE,
];
const OFFERED_HTTP: &[&str] = &[
    NO_ADDRESS,
    "This firmware takes https:// only: allow plain HTTP in its setup (often \"HTTP boot: allow \
     http\"), or let the machine boot by PXE, which is served as well.",
    "The router itself answers HTTP boot with an address of its own, which outranks ours. Switch \
     that off there.",
    FIREWALL_BETWEEN,
];
const OFFERED_FOLDER: &[&str] = &[
    NO_ADDRESS,
    "A Raspberry Pi 3 or older may ask the router for its files, whatever it was told: name this \
     computer as TFTP server there.",
    FIREWALL_BETWEEN,
    SPANNING_TREE,
];
const OFFERED_BIOS: &[&str] = &[
    NO_ADDRESS,
    "Another network boot server answered first, or the router names a boot file of its own. \
     Switch that off there.",
    FIREWALL_BETWEEN,
    SPANNING_TREE,
];
const OFFERED_BOOT_SERVER: &[&str] = &[
    NO_ADDRESS,
    "Another network boot server's complete offer outranks ours: try --uefi-offer complete.",
    FIREWALL_BETWEEN,
    SPANNING_TREE,
];
const BOOT_SERVER_BUT_NO_TFTP: &[&str] = &[
    "Its answer was lost: a firewall between the two lets UDP 4011 pass in one direction only, or \
     drops UDP 69. Connect both to the same switch and try again.",
    "This firmware wants everything in the offer: try --uefi-offer complete.",
    CABLE,
];
const TFTP_STOPPED: &[&str] = &[
    "Packets are lost on the way: a bad cable, Wi-Fi, or a firewall that lets UDP 69 pass and \
     drops the data that come from another port.",
    "The path carries only smaller packets than this interface (a VPN, VLANs): lower the \
     interface's MTU.",
    CABLE,
];
const LOADED_UEFI: &[&str] = &[
    "Secure Boot refuses iPXE, which is not signed: the machine then shows a short message or goes \
     on to the next boot entry. What it takes instead: --sign-key or --chain, see \
     docs/secureboot.md. To check, switch Secure Boot off in its firmware setup.",
    "The loader found no network through the firmware's driver. On its next try the machine gets \
     the full driver build (ipxe.efi), if there is one; to use it at once: --ipxe-efi64 FILE.",
    "iPXE runs and gets no address: look at the machine's screen.",
];
const LOADED_BIOS: &[&str] = &[
    "The loader does not get along with this network card's ROM. On its next try the machine gets \
     the full driver build (ipxe.pxe), if there is one; to use it at once: --ipxe-bios FILE.",
    "iPXE runs and gets no address: look at the machine's screen.",
    CABLE,
];
const LOADED_BY_IPXE: &[&str] = &[
    "iPXE's full driver build has no driver for this network card, or does not get along with the \
     iPXE that started it: try another build with --ipxe-ipxe FILE, or update the card's firmware.",
    "Secure Boot refuses iPXE, which is not signed. To check, switch it off in the firmware setup.",
    CABLE,
];
const IPXE_BUT_NO_SCRIPT: &[&str] = &[
    "A firewall between the two drops TCP to the port of the images. Try another one with --port, \
     for example --port 8080, or connect both to the same switch.",
    NO_ADDRESS,
    "Another network boot server answered this iPXE first: switch it off.",
    "This iPXE cannot load by HTTP, whatever it says: give it another build with --ipxe-ipxe FILE.",
];
const HTTP_STOPPED: &[&str] = &[
    "Packets are lost on the way: a bad cable, Wi-Fi, or a firewall that cuts long connections.",
    "The machine has too little memory for the file: compare its size with the machine's memory.",
    CABLE,
];
const EFI_STOPPED: &[&str] = &[
    "The machine has too little memory: it holds the program twice and the initrd once more, so \
     about three times its size.",
    "Packets are lost on the way: a bad cable, Wi-Fi, or a firewall that cuts long connections.",
    CABLE,
];
const SCRIPT_BUT_NO_KERNEL: &[&str] = &[
    "iPXE stopped at the script: the machine's screen says at which line and why.",
    "This iPXE lacks what the script needs: give it another build with --ipxe-ipxe FILE.",
    CABLE,
];
const KERNEL_BUT_NO_INITRD: &[&str] = &[
    "The machine has too little memory for the initrd: it needs at least twice the size of kernel \
     and initrd together.",
    "iPXE refused the kernel: on UEFI it must be built with its EFI stub (CONFIG_EFI_STUB) and for \
     this processor. The machine's screen says why.",
    CABLE,
];
