//! The decision: a question, what is allowed, and what is remembered -> an answer, or none and why.
//!
//! Guarantees: pure; the same machine gets the same answer after a restart, because nothing that a
//! client must repeat is remembered (the two memories of [`Memory`] only ever change which loader
//! or whether one is offered). A reply goes to a port and in a form that the output guard of the
//! helper lets pass.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use portcullis_dbus::{BOOT_SERVER_PORT, DHCP_PORT};

use super::{
    query::{BootItem, Client, Ipxe, Port, Query},
    table::{self, Platform, RASPBERRY_PI, Row},
};
use crate::{
    event::{Fact, Ignored, OfferForm},
    image::{Cpu, EfiImage, Generation, Loader, MenuItem, NoEfiImage, menu_folder},
    mac::MacAddr,
    wire::{
        dhcp::{Header, message_type},
        dhcp_reply::{self, BootFileTooLong, Item, Kind, Reply, Vendor},
    },
};

/// UDP port of DHCP clients (RFC 2131 section 4.1).
pub(super) const CLIENT_PORT: u16 = 68;

/// The one item of the menu that sends a machine to its disk.
const LOCAL_DISK: &str = "Boot from the local disk";

/// How UEFI machines are told what to load (`--uefi-offer`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UefiOffer {
    /// As the table says for the architecture.
    #[default]
    Auto,
    /// Everything on 67: option 43 = 06 01 08 FF, and the file.
    Complete,
    /// No option 43, so that the machine asks 4011. Some firmware ignores the complete form.
    BootServer,
}

/// How many machines are to be handed over, and how many were: one for all interfaces of a run.
#[derive(Debug, Default)]
pub struct Count {
    limit: u64,
    handed_over: AtomicU64,
}

impl Count {
    /// None was handed over yet.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, ..Self::default() })
    }

    /// One more was handed over.
    pub fn add(&self) {
        // Wraps after 2^64 machines.
        self.handed_over.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether those that come now are left alone.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.handed_over.load(Ordering::Relaxed) >= self.limit
    }
}

/// What is served, to whom, and where on one interface. Fixed for a run, but for the count.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `--for-mac`: only these machines; empty means all.
    pub for_mac: BTreeSet<MacAddr>,
    /// `--once`: a machine that has booted boots from its own disk afterwards.
    pub once: bool,
    /// `--count`: so many machines are handed over; those that come later are left alone.
    pub count: Option<Arc<Count>>,
    /// How many initrds make a machine complete.
    pub initrds: usize,
    /// The loaders that can be served by TFTP.
    pub loaders: BTreeSet<Loader>,
    /// Our address on the segment.
    pub address: Ipv4Addr,
    /// TCP port of the script and the images.
    pub http_port: u16,
    /// First path element of the URLs.
    pub token: String,
    /// Form of offers to UEFI machines.
    pub uefi_offer: UefiOffer,
    /// Whether 4011 is served. If not, [`UefiOffer::BootServer`] counts as `Complete`.
    pub boot_server: bool,
    /// `--chain`: UEFI machines of this kind are given this file, whose maker Secure Boot knows.
    pub chain: Option<(Cpu, String)>,
    /// Secure Boot may take the EFI program that is the same for every machine.
    pub signed: bool,
    /// `--dhcp-server`: addresses are handed out, too.
    pub dhcp_server: bool,
}

impl Policy {
    /// Whether this machine is served at all.
    #[must_use]
    pub fn admits(&self, mac: MacAddr) -> bool {
        self.for_mac.is_empty() || self.for_mac.contains(&mac)
    }

    /// URL of a machine's script.
    #[must_use]
    pub fn script_url(&self, mac: MacAddr) -> String {
        self.url(mac, "boot.ipxe")
    }

    /// URL of the EFI program. With an address literal, since firmware may have no DNS server: 88
    /// octets at most.
    #[must_use]
    pub fn efi_url(&self, mac: MacAddr) -> String {
        self.url(mac, &Loader::Image.file_name())
    }

    fn url(&self, mac: MacAddr, file: &str) -> String {
        let Self { address, http_port, token, .. } = self;
        format!("http://{address}:{http_port}/{token}/{}/{file}", mac.hyphenated())
    }

    fn loader_name(mac: MacAddr, loader: Loader) -> String {
        format!("{}/{}", mac.hyphenated(), loader.file_name())
    }

    /// The program of a menu's item.
    fn item_name(mac: MacAddr, number: usize) -> String {
        let program = Loader::Image.file_name();
        format!("{}/{}/{program}", mac.hyphenated(), menu_folder(number))
    }
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

/// What is remembered of a machine and bears on the decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// It has booted, or enough machines have: it is left to boot from its disk.
    pub local_boot: bool,
    /// It was handed over in this run, so that it is ours to send on to its disk; others than those
    /// are nobody's but other servers'.
    pub booted: bool,
    /// An iPXE on it that cannot run the script was given a loader, and loaded it: whatever comes
    /// now gets the script, so that there is no loop.
    pub chained: bool,
    /// So many loaders were loaded and nothing followed: the next one in the row is tried.
    pub failed_loaders: usize,
}

/// Why a boot client gets no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ignore {
    /// Told to people.
    #[error("{}", words(.0))]
    Machine(Ignored),
    /// A message type that is not for us: the DHCP server's business.
    #[error("DHCP message type {0} is not answered on this port")]
    MessageType(u8),
    /// Asks another server.
    #[error("meant for the server {0}")]
    OtherServer(Ipv4Addr),
    /// Asks for a boot item that we do not have: type 0 is the local disk.
    #[error("asks for boot item {} of layer {:#06x}", .0.kind, .0.layer)]
    BootItem(BootItem),
    /// Came from where no answer can be sent to.
    #[error("no answer can be sent to {0}")]
    Unanswerable(SocketAddrV4),
    /// The run's own values do not fit the message.
    #[error(transparent)]
    BootFile(#[from] BootFileTooLong),
}

fn words(ignored: &Ignored) -> String {
    match ignored {
        Ignored::NoEfiImage { reason, .. } => reason.clone(),
        Ignored::OtherPlatform { arch } => {
            format!("{}: what is served does not run there", table::architecture_name(*arch))
        }
        Ignored::NotSelected => "not one of the selected machines".to_owned(),
        Ignored::AlreadyBooted => "has booted, and is left to its disk".to_owned(),
        Ignored::NoLoader { arch } | Ignored::UnknownArchitecture { arch } => {
            format!("{}: no loader", table::architecture_name(*arch))
        }
        Ignored::Source { reason } => reason.clone(),
    }
}

/// Answer or silence.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Send this.
    Reply {
        /// The payload.
        bytes: Vec<u8>,
        /// Where to, from the port that the question came to.
        destination: SocketAddrV4,
        /// What it means to the machine.
        fact: Fact,
    },
    /// Send nothing: never an empty offer, which would keep other servers' offers from winning.
    Ignore(Ignore),
}

/// Whether one question is to be answered, as far as that can be told before it is known what the
/// machine boots.
///
/// # Errors
/// Why not.
pub fn screen(query: &Query, port: Port, policy: &Policy, memory: Memory) -> Result<(), Ignore> {
    asks_us(query, port, policy)?;
    admit(query, policy, memory)?;
    destination(query, port).map(drop)
}

/// The part of [`screen`] that is about the machine, not the message.
///
/// # Errors
/// Why it gets nothing to boot.
pub fn admit(query: &Query, policy: &Policy, memory: Memory) -> Result<(), Ignore> {
    if !policy.admits(query.ask.mac) {
        return Err(Ignore::Machine(Ignored::NotSelected));
    }
    if memory.local_boot {
        return Err(Ignore::Machine(Ignored::AlreadyBooted));
    }
    row(query, policy).map(drop)
}

/// Whether the machine cannot run this kernel: to be left alone rather than sent into an error. A loader
/// that the user named for its architecture is the user's own business.
///
/// # Errors
/// It cannot.
pub fn fits(query: &Query, policy: &Policy, machine: Option<u16>) -> Result<(), Ignore> {
    let arch = row(query, policy)?.arch;
    let fits = machine.is_none_or(|machine| table::can_run(arch, machine));
    let given = policy.loaders.contains(&Loader::Given(arch));
    (fits || given).then_some(()).ok_or(Ignore::Machine(Ignored::OtherPlatform { arch }))
}

/// Decides about one question of a machine for which this is served.
#[must_use]
pub fn decide(
    query: &Query,
    port: Port,
    policy: &Policy,
    memory: Memory,
    served: &Generation,
) -> Decision {
    answer(query, port, policy, memory, served).unwrap_or_else(Decision::Ignore)
}

fn answer(
    query: &Query,
    port: Port,
    policy: &Policy,
    memory: Memory,
    served: &Generation,
) -> Result<Decision, Ignore> {
    screen(query, port, policy, memory)?;
    let (boot, form) = boot_data(query, port, policy, memory, served)?;
    let file = boot.file.clone();
    let fact = match port {
        Port::Dhcp => Fact::Offered { form, file },
        Port::BootServer { .. } => Fact::BootServer { file },
    };
    reply(query, port, policy, boot, fact)
}

/// What a PXE ROM is told whose machine has booted and is to start from its disk now: a menu of one
/// item of type 0, which is the next boot device of the firmware (PXE 2.1 section 2.4; EDK2:
/// NetworkPkg/UefiPxeBcDxe/PxeBcBoot.c `PxeBcDiscoverBootFile`). Without it EDK2 asks for a minute.
/// iPXE goes on by itself when nothing is offered; UEFI HTTP boot and a Raspberry Pi know no such word.
#[must_use]
pub fn local_disk(query: &Query, memory: Memory) -> Option<dhcp_reply::Boot> {
    let knows =
        query.client == Client::Pxe && query.ipxe.is_none() && query.architecture() != RASPBERRY_PI;
    (memory.local_boot && memory.booted && knows).then(|| dhcp_reply::Boot {
        vendor_class: "PXEClient",
        vendor: Vendor::Menu(LOCAL_DISK),
        file: String::new(),
    })
}

/// What becomes of a question that [`screen`] found this against: silence, but for a machine that is
/// to be sent to its disk.
#[must_use]
pub fn leave(
    query: &Query,
    port: Port,
    policy: &Policy,
    memory: Memory,
    reason: Ignore,
) -> Decision {
    match (local_disk(query, memory), port, &reason) {
        (Some(boot), Port::Dhcp, Ignore::Machine(ignored @ Ignored::AlreadyBooted)) => {
            reply(query, port, policy, boot, Fact::Ignored(ignored.clone()))
                .unwrap_or_else(Decision::Ignore)
        }
        _ => Decision::Ignore(reason),
    }
}

fn reply(
    query: &Query,
    port: Port,
    policy: &Policy,
    boot: dhcp_reply::Boot,
    fact: Fact,
) -> Result<Decision, Ignore> {
    let destination = destination(query, port)?;
    let ask = &query.ask;
    let (kind, ciaddr) = match port {
        Port::Dhcp => (Kind::Offer, Ipv4Addr::UNSPECIFIED),
        Port::BootServer { .. } => (Kind::Ack, ask.header.ciaddr),
    };
    let reply = Reply {
        kind,
        header: Header { ciaddr, ..ask.header },
        server: policy.address,
        lease: None,
        boot: Some(boot),
        machine_id: ask.machine_id.clone(),
        client_id: ask.client_id.clone(),
        relay: ask.relay.clone(),
    };
    let bytes = reply.emit()?;
    Ok(Decision::Reply { bytes, destination, fact })
}

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

/// Whether the message is one that this port answers.
fn asks_us(query: &Query, port: Port, policy: &Policy) -> Result<(), Ignore> {
    use message_type::{DISCOVER, INFORM, REQUEST};
    match (port, query.ask.message_type, query.client) {
        (Port::Dhcp, DISCOVER, _) => return Ok(()),
        // UEFI HTTP boot has no boot server.
        (Port::BootServer { .. }, DISCOVER | REQUEST | INFORM, Client::Pxe) => {}
        (_, other, _) => return Err(Ignore::MessageType(other)),
    }
    match (query.ask.server_id, query.boot_item) {
        (Some(server), _) if server != policy.address => Err(Ignore::OtherServer(server)),
        (_, Some(item)) if item.number().is_none() => Err(Ignore::BootItem(item)),
        _ => Ok(()),
    }
}

/// The first architecture of the list that is known, by the table or by `--loader`.
fn row(query: &Query, policy: &Policy) -> Result<Row, Ignore> {
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
struct Boot {
    file: String,
    form: OfferForm,
    menu: Vec<Item>,
}

impl Boot {
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
) -> Result<Boot, Ignore> {
    let file = |number| Policy::item_name(query.ask.mac, number);
    if let Some(item) = chosen {
        let found = items.iter().find(|(number, _)| item.number() == Some(*number));
        let (number, _) = found.ok_or(Ignore::BootItem(item))?;
        return Ok(Boot::of(file(*number), OfferForm::Complete));
    }
    // Asked without a word of the menu, the boot server names the first one.
    if items.len() < 2 || !policy.boot_server || port != Port::Dhcp {
        let (first, _) =
            items.first().ok_or(Ignored::NoLoader { arch: row.arch }).map_err(Ignore::Machine)?;
        return Ok(Boot::of(file(*first), form(row, policy)));
    }
    let line = |(number, item): &(usize, &MenuItem)| {
        Some(Item { kind: BootItem::kind_of(*number)?, name: item.name.clone() })
    };
    let menu = items.iter().filter_map(line).collect();
    Ok(Boot { file: String::new(), form: OfferForm::Menu, menu })
}

fn boot(
    query: &Query,
    row: &Row,
    policy: &Policy,
    memory: Memory,
    efi: &Efi,
) -> Result<Boot, Ignore> {
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

fn boot_http(query: &Query, row: &Row, policy: &Policy, efi: &Efi) -> Result<Boot, Ignore> {
    let arch = row.arch;
    match efi {
        Ok(_) if runs(efi, row) => Ok(Boot::of(policy.efi_url(query.ask.mac), OfferForm::Http)),
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
) -> Boot {
    let loader = pick(row, row.ipxe_loaders, policy, memory, efi)
        .filter(|_| !row.can_run_script(ipxe) && !memory.chained);
    match loader {
        Some(loader) => Boot::of(Policy::loader_name(query.ask.mac, loader), OfferForm::Complete),
        None => Boot::of(policy.script_url(query.ask.mac), OfferForm::Script),
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
) -> Result<Boot, Ignore> {
    let given = Loader::Given(row.arch);
    let form = form(row, policy);
    if let Some((cpu, file)) = &policy.chain
        && table::cpu(row.arch) == Some(*cpu)
        && !policy.loaders.contains(&given)
    {
        let file = format!("{}/{file}", query.ask.mac.hyphenated());
        return Ok(Boot::of(file, form));
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
        return Ok(Boot::of(String::new(), row.offer));
    }
    Ok(Boot::of(Policy::loader_name(query.ask.mac, loader), form))
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

/// Where the answer goes (RFC 2131 section 4.1; PXE 2.1 for 4011).
fn destination(query: &Query, port: Port) -> Result<SocketAddrV4, Ignore> {
    let relay = query.ask.header.giaddr;
    let destination = match port {
        _ if !relay.is_unspecified() => SocketAddrV4::new(relay, DHCP_PORT),
        Port::Dhcp => return Ok(SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)),
        Port::BootServer { asker } => asker,
    };
    let address = destination.ip();
    let one_machine = !address.is_unspecified()
        && !address.is_broadcast()
        && !address.is_multicast()
        && !address.is_loopback();
    let passes_guard = [DHCP_PORT, CLIENT_PORT, BOOT_SERVER_PORT].contains(&destination.port());
    (one_machine && passes_guard).then_some(destination).ok_or(Ignore::Unanswerable(destination))
}
