//! Where, for whom, how long and how: the options of all commands that serve.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use portcullis_dbus::DEFAULT_HTTP_PORT;

use super::{
    Common,
    values::{duration, loader, octets},
};
use crate::{
    mac::MacAddr,
    web::{self, Port, Wish},
};

/// What starts a helper where none is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// sudo(8).
    Sudo,
    /// polkit's pkexec(1).
    Pkexec,
    /// systemd's run0(1).
    Run0,
    /// Nothing does: without an installed helper, that is an error.
    Never,
}

/// Which form of offer UEFI machines get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum UefiOffer {
    /// Whichever suits the kind of machine.
    #[default]
    Auto,
    /// Everything in the offer itself.
    Complete,
    /// The machine is sent to the boot server on UDP 4011.
    BootServer,
}

/// What all commands that serve have in common.
#[derive(Debug, Args)]
pub struct Serving {
    /// Network interface to serve on; may be given several times. Without it, the only one that
    /// will do is taken.
    #[arg(
        short,
        long,
        value_name = "INTERFACE",
        conflicts_with = "listen_addr",
        help_heading = "Where"
    )]
    pub interface: Vec<String>,
    /// Serve on the interface that has this IPv4 address.
    #[arg(short, long, value_name = "IPV4", help_heading = "Where")]
    pub listen_addr: Option<Ipv4Addr>,
    /// TCP port for kernel and initrd.
    #[arg(
        short, long, value_name = "PORT", default_value_t = DEFAULT_HTTP_PORT,
        value_parser = clap::value_parser!(u16).range(1024..), help_heading = "Where"
    )]
    pub port: u16,
    /// Machines fetch files that lie on other web servers from there themselves, not through this
    /// computer.
    #[arg(long, help_heading = "Where")]
    pub direct: bool,
    /// Keep no copies of files of web servers when this ends. Machines that ask at once share one
    /// download all the same.
    #[arg(long, help_heading = "Files of web servers")]
    pub no_cache: bool,
    /// How much the copies of files of web servers may take on this computer's disk, those of earlier
    /// runs included: 500M, 20G. What was not used for longest goes first.
    #[arg(long, value_name = "SIZE", value_parser = octets, default_value = "8G",
          help_heading = "Files of web servers")]
    pub cache_size: u64,
    /// Close after this long at the latest: 45s, 30m, 2h, 1h30m [default: 12h].
    #[arg(long = "for", visible_alias = "max-seconds", value_name = "TIME", value_parser = duration,
          help_heading = "Where")]
    pub duration: Option<Duration>,

    /// Serve this machine only; may be given several times.
    #[arg(long, value_name = "MAC", help_heading = "Which machines")]
    pub for_mac: Vec<MacAddr>,
    /// Boot each machine once; after that it starts from its own disk.
    #[arg(long, help_heading = "Which machines")]
    pub once: bool,
    /// Boot so many machines, then leave all others alone.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..),
          help_heading = "Which machines")]
    pub count: Option<u32>,
    /// Hand out addresses, too, where there is no DHCP server, as on a cable that goes straight to
    /// the machine. Looks for one first, and stops as soon as another one is there. The site must
    /// allow it (full-dhcp in /etc/portcullis/helper.toml).
    #[arg(long, conflicts_with = "dhcp_no_bind", help_heading = "Addresses")]
    pub dhcp_server: bool,
    /// The router that machines are told, if there is one.
    #[arg(long, value_name = "IPV4", requires = "dhcp_server", help_heading = "Addresses")]
    pub router: Option<Ipv4Addr>,
    /// A name server that machines are told; may be given three times.
    #[arg(long, value_name = "IPV4", requires = "dhcp_server", help_heading = "Addresses")]
    pub dns: Vec<Ipv4Addr>,
    /// How UEFI machines are told what to load.
    #[arg(long, value_name = "FORM", value_enum, default_value_t, help_heading = "Which machines")]
    pub uefi_offer: UefiOffer,
    /// Send files by TFTP from port 69 itself, where something between here and the machines lets no
    /// other port pass. Slower.
    #[arg(long, help_heading = "Boot loader")]
    pub tftp_single_port: bool,

    /// Directory with iPXE (undionly.kpxe, ipxe.pxe, snponly.efi, ipxe.efi; for other processors in
    /// folders such as arm64, or with names such as snponly-arm64.efi).
    #[arg(long, value_name = "DIR", help_heading = "Boot loader")]
    pub ipxe_dir: Option<PathBuf>,
    /// iPXE for BIOS machines.
    #[arg(long, value_name = "FILE", help_heading = "Boot loader")]
    pub ipxe_bios: Option<PathBuf>,
    /// iPXE for BIOS machines whose ROM is an iPXE that lacks something.
    #[arg(long, value_name = "FILE", help_heading = "Boot loader")]
    pub ipxe_ipxe: Option<PathBuf>,
    /// iPXE for 64-bit UEFI machines.
    #[arg(long, value_name = "FILE", help_heading = "Boot loader")]
    pub ipxe_efi64: Option<PathBuf>,
    /// iPXE for 32-bit UEFI machines.
    #[arg(long, value_name = "FILE", help_heading = "Boot loader")]
    pub ipxe_efi32: Option<PathBuf>,
    /// systemd's boot stub, which makes kernel and initrds one program for UEFI HTTP boot [default:
    /// the system's].
    #[arg(long, value_name = "FILE", help_heading = "Boot loader")]
    pub stub: Option<PathBuf>,
    /// RSA key (PEM) that signs the program for UEFI machines, so that Secure Boot takes it where
    /// CERT is enrolled. They then load it instead of iPXE.
    #[arg(long, value_name = "KEY", requires = "sign_cert", help_heading = "Secure Boot")]
    pub sign_key: Option<PathBuf>,
    /// The key's certificate (PEM or DER).
    #[arg(long, value_name = "CERT", requires = "sign_key", help_heading = "Secure Boot")]
    pub sign_cert: Option<PathBuf>,
    /// Give UEFI machines that boot by PXE shim and GRUB, which Secure Boot knows, instead of iPXE:
    /// those of the system (packages shim-signed and grub-efi-amd64-signed), or of DIR; or iPXE's
    /// own signed release, if DIR holds it. The kernel must be signed by their maker; and GRUB before 2.12 asks the router where its files are
    /// (docs/secureboot.md).
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true,
          help_heading = "Secure Boot")]
    pub chain: Option<Option<PathBuf>>,
    /// Any boot loader for machines of architecture ARCH, the number that firmware sends in DHCP
    /// option 93 (11: arm64 UEFI); takes the place of iPXE there. May be given several times.
    #[arg(long, value_name = "ARCH=FILE", value_parser = loader, help_heading = "Boot loader")]
    pub loader: Vec<(u16, PathBuf)>,

    /// Folder with the boot files of a Raspberry Pi (what its system has at /boot/firmware), for
    /// machines with that boot ROM. A folder of its own in there, named by its serial number, goes
    /// first.
    #[arg(long, value_name = "DIR", help_heading = "Boot loader")]
    pub rpi: Option<PathBuf>,

    /// Show every detail.
    #[arg(short, long, conflicts_with = "quiet", help_heading = "Output")]
    pub debug: bool,
    /// Show only errors, and machines that need attention.
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
    /// Write lines also where a terminal could show the live view, as --debug, --quiet and
    /// --log-timestamps do.
    #[arg(long, help_heading = "Output")]
    pub plain: bool,
    /// Begin each line with date and time (UTC).
    #[arg(short = 't', long, help_heading = "Output")]
    pub log_timestamps: bool,

    /// Show a notification on the desktop when a machine is up, or has stopped.
    #[arg(long, help_heading = "Output")]
    pub notify: bool,
    /// Show what happens on a web page, too, on this computer alone; its address is printed at the start
    /// [default port: 64173, or any other while that is taken].
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true,
          value_parser = clap::value_parser!(u16).range(1024..), help_heading = "Output")]
    pub web: Option<Option<u16>>,
    /// Have that page at this address of this computer instead, for others on that network who know the
    /// page's whole address. It is not encrypted, and no firewall is opened for it.
    #[arg(long, value_name = "IPV4", help_heading = "Output")]
    pub web_listen: Option<Ipv4Addr>,

    /// Pixiecore's port of the status page: --web there, or at another port while that is taken.
    #[arg(long, value_name = "PORT", hide = true)]
    pub status_port: Option<u16>,
    /// Pixiecore's directory of its status page.
    #[arg(long, value_name = "DIR", hide = true)]
    pub ui_assets_dir: Option<PathBuf>,
    /// Serve beside another DHCP server on this same computer, on the same interface.
    #[arg(long, help_heading = "Where")]
    pub dhcp_no_bind: bool,

    /// Where no helper is installed: start the one that lies beside this program, or in ../libexec, for
    /// this run alone, by this tool, which asks for a password itself. Nothing is installed, and the
    /// helper ends with this program [default: asked at a terminal].
    #[arg(long, value_name = "TOOL", value_enum, help_heading = "Without installing")]
    pub via: Option<Via>,

    /// Options of all commands.
    #[command(flatten)]
    pub common: Common,
}

impl Serving {
    /// What is taken and could be left out, one sentence each.
    #[must_use]
    pub fn notes(&self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if self.dhcp_no_bind {
            notes.push(
                "--dhcp-no-bind shares UDP 67 with a DHCP server on this same computer; without one \
                 (your router is no problem) leave it out: machines behind a DHCP relay are then \
                 heard, too",
            );
        }
        if self.ui_assets_dir.is_some() {
            notes.push("--ui-assets-dir is not needed: the status page is part of this program");
        }
        notes
    }

    /// Where the web page is wanted, if it is. Pixiecore's port 0 is none.
    #[must_use]
    pub fn page(&self) -> Option<Wish> {
        let status = self.status_port.filter(|port| *port != 0);
        let port = match (self.web, status) {
            (Some(Some(port)), _) => Port::Exactly(port),
            (_, Some(port)) => Port::Rather(port),
            (Some(None), None) => Port::Rather(web::PORT),
            (None, None) => self.web_listen.map(|_| Port::Rather(web::PORT))?,
        };
        Some(Wish { address: self.web_listen.unwrap_or(Ipv4Addr::LOCALHOST), port })
    }
}
