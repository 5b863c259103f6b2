//! What is known about each machine. One model feeds the terminal and `--json`.
//!
//! Facts are observed by the servers (a packet came, so many bytes went) and told to a
//! [`Witness`]; statements ("it stopped here, try this") are drawn from facts and time, in one
//! place. Text that came from a machine is never part of a fact unless it was reduced to
//! printable ASCII first.

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::mac::MacAddr;

/// Receives facts as they happen. Must not block.
pub trait Witness: Send + Sync {
    /// `mac` did, or was given, `fact`.
    fn fact(&self, mac: MacAddr, fact: Fact);
}

/// What asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// A PXE ROM or UEFI's PXE.
    Pxe,
    /// iPXE, ours or a ROM's.
    Ipxe,
    /// UEFI HTTP boot.
    Http,
}

impl Firmware {
    /// As in `--json`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pxe => "pxe",
            Self::Ipxe => "ipxe",
            Self::Http => "http",
        }
    }
}

/// How the machine was told what to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OfferForm {
    /// Everything is in the offer (PXE_DISCOVERY_CONTROL bit 3).
    Complete,
    /// The machine is sent to the boot server on UDP 4011.
    BootServer,
    /// iPXE is given the URL of its script.
    Script,
    /// UEFI HTTP boot is given the URL of an EFI program.
    Http,
    /// A Raspberry Pi's boot ROM is told that its files are here.
    Folder,
    /// The firmware shows a menu, and asks the boot server on UDP 4011 for what was chosen.
    Menu,
}

/// Why a machine that asked was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub enum Ignored {
    /// `--for-mac` does not name it.
    NotSelected,
    /// `--once` or `--count`: it has booted, and now boots from its disk.
    AlreadyBooted,
    /// No loader for its architecture (DHCP option 93, RFC 4578 section 2.1).
    NoLoader {
        /// The architecture's number.
        arch: u16,
    },
    /// Asks by UEFI HTTP boot, and there is no EFI program for it.
    NoEfiImage {
        /// The architecture's number.
        arch: u16,
        /// Why there is none, with what to do.
        reason: String,
    },
    /// An EFI program is served, and this machine cannot run it.
    OtherPlatform {
        /// The architecture's number.
        arch: u16,
    },
    /// An architecture that is not in the table.
    UnknownArchitecture {
        /// Its number.
        arch: u16,
    },
    /// The API that decides about machines has nothing for it, or did not answer.
    Source {
        /// What it said, in words.
        reason: String,
    },
}

/// How bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// RFC 1350.
    Tftp,
    /// RFC 9110.
    Http,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// First-stage loader.
    Loader,
    /// iPXE script.
    Script,
    /// The script that iPXE looks for beside its own binary: it leads to [`Role::Script`].
    Autoexec,
    /// Kernel.
    Kernel,
    /// Program with everything in it, or all that it needs: an EFI program, but on BIOS machines.
    Efi,
    /// One of the files that a Raspberry Pi's boot ROM fetches.
    Firmware,
    /// The initrd with this number, from 0.
    Initrd(usize),
    /// Any other.
    Other,
}

/// One observed step of one machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "fact")]
pub enum Fact {
    /// It asked for network boot.
    Seen {
        /// DHCP option 93.
        arch: u16,
        /// What asked.
        firmware: Firmware,
    },
    /// It was offered something.
    Offered {
        /// How.
        form: OfferForm,
        /// File name or URL.
        file: String,
    },
    /// It asked, and was left alone.
    Ignored(Ignored),
    /// It was to be answered, and the answer could not be sent.
    NotSent {
        /// What the system said.
        reason: String,
    },
    /// It asked the boot server on 4011 and was answered.
    BootServer {
        /// File name.
        file: String,
    },
    /// It took the address that a DHCP server of the network had offered it.
    Selected {
        /// The server.
        server: Ipv4Addr,
        /// The address, if the machine named it.
        address: Option<Ipv4Addr>,
    },
    /// We gave it this address (`--dhcp-server`).
    Leased {
        /// The address.
        address: Ipv4Addr,
    },
    /// A download began.
    TransferStarted {
        /// Number of this download, unique in the run.
        transfer: u64,
        /// How.
        protocol: Protocol,
        /// What for.
        role: Role,
        /// The file's name, printable ASCII, shortened.
        file: String,
        /// Octets in all.
        size: u64,
        /// Octets of it that were sent so far: what goes on where another one stopped begins there.
        sent: u64,
    },
    /// So much of it has been sent (at most a few of these a second).
    TransferProgress {
        /// The download.
        transfer: u64,
        /// Octets.
        sent: u64,
        /// Packets or windows sent again so far (TFTP).
        retransmissions: u32,
    },
    /// It was sent whole.
    TransferDone {
        /// The download.
        transfer: u64,
        /// Octets.
        sent: u64,
        /// How long it took.
        milliseconds: u64,
        /// Packets or windows sent again (TFTP).
        retransmissions: u32,
    },
    /// It ended early.
    TransferEnded {
        /// The download.
        transfer: u64,
        /// Octets.
        sent: u64,
        /// Why, in words.
        reason: String,
    },
    /// Something is wrong with a file that it is given, on a web server or on this computer.
    Upstream {
        /// The file's address, or its name.
        file: String,
        /// What, in words.
        problem: String,
    },
    /// A file of a web server that it asked for, first of all machines, was fetched whole.
    Fetched {
        /// Its address.
        file: String,
        /// Octets.
        octets: u64,
        /// How long it took.
        milliseconds: u64,
        /// A copy is kept for later runs.
        kept: bool,
    },
    /// A file of a web server that it asked for, first of all machines, is not fetched: the copy of an
    /// earlier run is the same.
    Reused {
        /// Its address.
        file: String,
        /// Octets.
        octets: u64,
    },
    /// It asked for a file that there is not.
    NotFound {
        /// How.
        protocol: Protocol,
        /// The name, printable ASCII, shortened.
        file: String,
    },
    /// After it got everything, its own system gave a sign of life.
    Up {
        /// Which.
        sign: Sign,
    },
}

/// How a booted system was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// It asked for an address, as an ordinary DHCP client.
    Dhcp,
    /// It fetched `/up`.
    Url,
}

/// What follows from the facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "statement")]
pub enum Statement {
    /// It has the kernel and every initrd, or the EFI program: the rest is the image's own work.
    HandedOver,
    /// Nothing has come from it for a while.
    Stalled {
        /// The last step that it took, in words.
        step: String,
        /// What its screen shows most likely: names of entries of `codes`. Empty if nothing is known.
        screen: Vec<String>,
        /// Likely reasons, most likely first, each with what to try.
        advice: Vec<String>,
    },
}

/// A fact or statement about a machine, in the order in which they happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Milliseconds since the run began.
    pub at: u64,
    /// The machine.
    pub mac: MacAddr,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// See [`Event`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum What {
    /// Observed.
    Fact(Fact),
    /// Concluded.
    Statement(Statement),
}
