//! Architecture and kind of client -> loader and form of offer. The table that grows: support for one more kind of
//! machine is one more loader in its row.
//!
//! Codes: IANA "Processor Architecture Types" (RFC 4578 section 2.1, RFC 5970 section 3.3).

use super::query::{Client, Ipxe};
use crate::{
    event::OfferForm,
    image::{Cpu, Loader},
};

/// The code of a Raspberry Pi's boot ROM; older ones call themselves x86 BIOS.
pub const RASPBERRY_PI: u16 = 41;

/// What runs on the machine, as far as loading goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// x86 BIOS: boots a kernel in bzImage form.
    Bios,
    /// UEFI: boots a kernel that is an EFI program.
    Uefi,
    /// Anything else.
    Other,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Option 93.
    pub arch: u16,
    /// Option 60.
    pub client: Client,
    /// For people, as in "arm64 UEFI".
    pub name: &'static str,
    /// What its iPXE needs.
    pub platform: Platform,
    /// How the machine's own firmware is told, unless `--uefi-offer` says otherwise.
    pub offer: OfferForm,
    /// For the machine's own firmware, the preferred one first; the next one is tried when a
    /// machine has loaded one and nothing followed.
    pub loaders: &'static [Loader],
    /// For an iPXE that cannot run our script.
    pub ipxe_loaders: &'static [Loader],
}

impl Row {
    /// Whether an iPXE on this machine has what the script needs: HTTP, and a kernel format.
    #[must_use]
    pub fn can_run_script(&self, ipxe: Ipxe) -> bool {
        let kernel = match self.platform {
            Platform::Bios => ipxe.bzimage,
            // Builds for EFI list either (pixiecore #55).
            Platform::Uefi => ipxe.efi || ipxe.bzimage,
            Platform::Other => false,
        };
        ipxe.ours || (ipxe.http && kernel)
    }
}

const fn known(arch: u16, client: Client, name: &'static str, platform: Platform) -> Row {
    Row {
        arch,
        client,
        name,
        platform,
        offer: OfferForm::Complete,
        loaders: &[],
        ipxe_loaders: &[],
    }
}

const X64: Row = Row {
    arch: 7,
    name: "x64 UEFI",
    ..uefi(
        &[Loader::Snponly(Cpu::X64), Loader::Ipxe(Cpu::X64)],
        &[Loader::Ipxe(Cpu::X64), Loader::Snponly(Cpu::X64)],
    )
};

/// A row of UEFI's PXE, for which iPXE is built. In EDK2 a complete offer outranks those that lead
/// to 4011.
const fn uefi(loaders: &'static [Loader], ipxe_loaders: &'static [Loader]) -> Row {
    Row { loaders, ipxe_loaders, ..known(0, Client::Pxe, "", Platform::Uefi) }
}

/// Every code that has a name, with a loader or without.
pub const ROWS: &[Row] = &[
    Row {
        arch: 0,
        client: Client::Pxe,
        name: "x86 BIOS",
        platform: Platform::Bios,
        offer: OfferForm::Complete,
        loaders: &[Loader::Undionly, Loader::IpxePxe],
        // undionly.kpxe drives the card through the ROM's UNDI, which an iPXE has taken away.
        ipxe_loaders: &[Loader::IpxePxe],
    },
    X64,
    // An erratum of RFC 4578 swapped 7 and 9; firmware sends both.
    Row { arch: 9, ..X64 },
    known(1, Client::Pxe, "NEC PC-98", Platform::Other),
    known(2, Client::Pxe, "Itanium UEFI", Platform::Uefi),
    Row {
        arch: 6,
        name: "x86 UEFI (32 bit)",
        ..uefi(
            &[Loader::Snponly(Cpu::Ia32), Loader::Ipxe(Cpu::Ia32)],
            &[Loader::Ipxe(Cpu::Ia32), Loader::Snponly(Cpu::Ia32)],
        )
    },
    Row {
        arch: 10,
        name: "arm32 UEFI",
        ..uefi(
            &[Loader::Snponly(Cpu::Arm32), Loader::Ipxe(Cpu::Arm32)],
            &[Loader::Ipxe(Cpu::Arm32), Loader::Snponly(Cpu::Arm32)],
        )
    },
    Row {
        arch: 11,
        name: "arm64 UEFI",
        ..uefi(
            &[Loader::Snponly(Cpu::Arm64), Loader::Ipxe(Cpu::Arm64)],
            &[Loader::Ipxe(Cpu::Arm64), Loader::Snponly(Cpu::Arm64)],
        )
    },
    known(12, Client::Pxe, "PowerPC Open Firmware", Platform::Other),
    known(13, Client::Pxe, "PowerPC ePAPR", Platform::Other),
    known(14, Client::Pxe, "PowerPC OPAL", Platform::Other),
    known(15, Client::Http, "x86 UEFI (32 bit) HTTP boot", Platform::Uefi),
    known(16, Client::Http, "x64 UEFI HTTP boot", Platform::Uefi),
    known(18, Client::Http, "arm32 UEFI HTTP boot", Platform::Uefi),
    known(19, Client::Http, "arm64 UEFI HTTP boot", Platform::Uefi),
    known(20, Client::Http, "x86 BIOS HTTP boot", Platform::Bios),
    known(21, Client::Pxe, "arm32 U-Boot", Platform::Other),
    known(22, Client::Pxe, "arm64 U-Boot", Platform::Other),
    known(23, Client::Http, "arm32 U-Boot HTTP boot", Platform::Other),
    known(24, Client::Http, "arm64 U-Boot HTTP boot", Platform::Other),
    Row {
        arch: 25,
        name: "RISC-V 32 UEFI",
        ..uefi(
            &[Loader::Snponly(Cpu::Riscv32), Loader::Ipxe(Cpu::Riscv32)],
            &[Loader::Ipxe(Cpu::Riscv32), Loader::Snponly(Cpu::Riscv32)],
        )
    },
    known(26, Client::Http, "RISC-V 32 UEFI HTTP boot", Platform::Uefi),
    Row {
        arch: 27,
        name: "RISC-V 64 UEFI",
        ..uefi(
            &[Loader::Snponly(Cpu::Riscv64), Loader::Ipxe(Cpu::Riscv64)],
            &[Loader::Ipxe(Cpu::Riscv64), Loader::Snponly(Cpu::Riscv64)],
        )
    },
    known(28, Client::Http, "RISC-V 64 UEFI HTTP boot", Platform::Uefi),
    known(29, Client::Pxe, "RISC-V 128 UEFI", Platform::Uefi),
    known(30, Client::Http, "RISC-V 128 UEFI HTTP boot", Platform::Uefi),
    known(31, Client::Pxe, "s390 Basic", Platform::Other),
    known(32, Client::Pxe, "s390 Extended", Platform::Other),
    known(33, Client::Pxe, "MIPS 32 UEFI", Platform::Uefi),
    known(34, Client::Pxe, "MIPS 64 UEFI", Platform::Uefi),
    known(35, Client::Pxe, "Sunway 32 UEFI", Platform::Uefi),
    known(36, Client::Pxe, "Sunway 64 UEFI", Platform::Uefi),
    known(37, Client::Pxe, "LoongArch 32 UEFI", Platform::Uefi),
    known(38, Client::Http, "LoongArch 32 UEFI HTTP boot", Platform::Uefi),
    Row {
        arch: 39,
        name: "LoongArch 64 UEFI",
        ..uefi(
            &[Loader::Snponly(Cpu::Loong64), Loader::Ipxe(Cpu::Loong64)],
            &[Loader::Ipxe(Cpu::Loong64), Loader::Snponly(Cpu::Loong64)],
        )
    },
    known(40, Client::Http, "LoongArch 64 UEFI HTTP boot", Platform::Uefi),
    Row {
        offer: OfferForm::Folder,
        loaders: &[Loader::Folder],
        ..known(RASPBERRY_PI, Client::Pxe, "Raspberry Pi boot ROM", Platform::Other)
    },
];

/// The processor that UEFI programs for this architecture are made for.
#[must_use]
pub fn cpu(arch: u16) -> Option<Cpu> {
    Some(match arch {
        6 | 15 => Cpu::Ia32,
        7 | 9 | 16 => Cpu::X64,
        10 | 18 => Cpu::Arm32,
        11 | 19 => Cpu::Arm64,
        25 | 26 => Cpu::Riscv32,
        27 | 28 => Cpu::Riscv64,
        39 | 40 => Cpu::Loong64,
        _ => return None,
    })
}

/// What a machine of this architecture is called in texts: `bios`, or its processor as iPXE names it.
#[must_use]
pub fn processor(arch: u16) -> Option<&'static str> {
    match row(arch) {
        Some(Row { platform: Platform::Bios, .. }) => Some("bios"),
        _ => cpu(arch).map(Cpu::name),
    }
}

/// Whether a kernel can run on a machine of this architecture, as far as the machine type of its
/// PE/COFF header tells. BIOS machines are x86, and start a kernel whatever its header says for UEFI.
#[must_use]
pub fn can_run(arch: u16, machine: u16) -> bool {
    match (row(arch).map(|row| row.platform), cpu(arch)) {
        (Some(Platform::Bios), _) => [Cpu::Ia32, Cpu::X64].map(Cpu::pe_machine).contains(&machine),
        (_, Some(cpu)) => cpu.pe_machine() == machine,
        _ => true,
    }
}

/// The row for a code that has no name and for which the user names a loader.
#[must_use]
pub const fn unnamed(arch: u16) -> Row {
    known(arch, Client::Pxe, "unknown architecture", Platform::Other)
}

/// The row of a code, whatever kind of client sends it. Codes are unique in the table.
#[must_use]
pub fn row(arch: u16) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.arch == arch)
}

/// What a code is called, for people: `arm64 UEFI (11)`, or `unknown architecture (300)`.
#[must_use]
pub fn architecture_name(arch: u16) -> String {
    let name = row(arch).map_or("unknown architecture", |row| row.name);
    format!("{name} ({arch})")
}
