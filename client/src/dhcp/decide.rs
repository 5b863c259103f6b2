//! The decision: a question, what is allowed, and what is remembered -> an answer, or none and why.
//!
//! Guarantees: pure; the same machine gets the same answer after a restart, because nothing that a
//! client must repeat is remembered (the two memories of [`Memory`] only ever change which loader
//! or whether one is offered). A reply goes to a port and in a form that the output guard of the
//! helper lets pass.

use std::net::{Ipv4Addr, SocketAddrV4};

use portcullis_dbus::{BOOT_SERVER_PORT, DHCP_PORT};

use super::{
    choice::{boot_data, row},
    policy::{Memory, Policy},
    query::{BootItem, Client, Port, Query},
    table::{self, RASPBERRY_PI},
};
use crate::{
    event::{Fact, Ignored},
    image::{Generation, Loader},
    wire::{
        dhcp::{Header, message_type},
        dhcp_reply::{self, BootFileTooLong, Kind, Reply, Vendor},
    },
};

/// UDP port of DHCP clients (RFC 2131 section 4.1).
pub(super) const CLIENT_PORT: u16 = 68;

/// The one item of the menu that sends a machine to its disk.
const LOCAL_DISK: &str = "Boot from the local disk";

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
