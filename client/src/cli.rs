//! The command line: what a person may write, and nothing about what it does.
//!
//! Pixiecore's spelling of `boot`, `api` and `quick` is part of it, so that an old command line keeps
//! working with the program's name changed, or with this program called as `pixiecore`. Flags of
//! Pixiecore that have no meaning here are taken and explained by [`Serving::notes`]; what this
//! version cannot do yet is refused by [`Boot::refusal`] before anything is opened.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    net::Ipv4Addr,
    path::PathBuf,
    time::Duration,
};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
};
use portcullis_dbus::DEFAULT_HTTP_PORT;

use crate::{
    codes,
    mac::MacAddr,
    web::{self, Port, Wish},
};

/// Boots another machine over the network, without sudo.
#[derive(Debug, Parser)]
#[command(
    name = "portcullis",
    version,
    about,
    max_term_width = 100,
    after_help = "Examples:\n  \
        portcullis boot ./result\n  \
        portcullis boot bzImage initrd --cmdline \"init=/nix/store/...-nixos/init loglevel=4\"\n\n\
        Set the other machine to boot from the network (often F12 when it is switched on)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a system to machines that boot from the network, until Ctrl-C.
    Boot(Box<Boot>),
    /// Show what is open, since when and until when.
    Status(Common),
    /// Close what `boot` opened, from another terminal.
    Close {
        /// Number of the lease, as `status` shows it; not needed when there is only one.
        lease: Option<u64>,
        /// Options of all commands.
        #[command(flatten)]
        common: Common,
    },
    /// List the network interfaces and say which one `boot` would take.
    Interfaces(Common),
    /// Look, before anything is opened, for what would keep machines from booting.
    #[command(after_help = "Examples:\n  \
        portcullis doctor\n  \
        portcullis doctor ./result -i enp3s0 --probe\n\n\
        Exit code 34: something was found. The other options are those of boot.")]
    Doctor(Box<Doctor>),
    /// Say what a code or message on the other machine's screen means, and what to try.
    #[command(after_help = "Examples:\n  \
        portcullis explain PXE-E53\n  \
        portcullis explain https://ipxe.org/4c0a6092\n  \
        portcullis explain Access Denied")]
    Explain {
        /// The code, iPXE's number or its address, or words of the screen; all are listed without.
        #[arg(value_name = "CODE", value_parser = ScreenCode, hide_possible_values = true)]
        code: Vec<String>,
        /// Options of all commands.
        #[command(flatten)]
        common: Common,
    },
    /// Ask a web service what each machine boots (Pixiecore's API, version 1).
    Api(Box<Api>),
    /// Boot a distribution's installer or live system from its mirror.
    Quick(Box<Quick>),
    /// Build a NixOS system with nix and serve it; build it anew while it is served.
    #[command(after_help = "Examples:\n  \
        portcullis nixos .#installer\n  \
        portcullis nixos .#installer --watch -i enp3s0\n  \
        portcullis nixos -f system.nix\n  \
        portcullis nixos --new ./installer\n\n\
        While it serves, r and Enter builds anew (without a terminal: SIGHUP).")]
    Nixos(Box<Nixos>),
    /// Show or remove the copies of web servers' files that earlier runs have kept.
    Cache {
        /// What to do with them.
        #[arg(value_enum, default_value_t)]
        action: CacheAction,
        /// Options of all commands.
        #[command(flatten)]
        common: Common,
    },
    /// Pixiecore's IPv6 modes: not in this version.
    #[command(hide = true, disable_help_flag = true, name = "bootipv6", alias = "ipv6api")]
    Ipv6(Ignored),
}

/// `cache`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CacheAction {
    /// Show what is kept.
    #[default]
    List,
    /// Remove all but what is in use.
    Clear,
}

/// What the generator of fish's completions leaves out: it writes no values of arguments without a dash.
#[must_use]
pub fn fish_codes() -> String {
    let names: BTreeSet<_> = codes::data().codes.iter().map(|entry| entry.code.as_str()).collect();
    let names: Vec<_> = names.into_iter().collect();
    format!(
        "complete -c portcullis -n \"__fish_portcullis_using_subcommand explain\" -f -a \"{}\"\n",
        names.join(" ")
    )
}

/// Takes any text, and offers the codes that are known to the shells' completion.
#[derive(Clone, Debug)]
struct ScreenCode;

impl TypedValueParser for ScreenCode {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names: BTreeSet<_> =
            codes::data().codes.iter().map(|entry| entry.code.as_str()).collect();
        Some(Box::new(names.into_iter().map(PossibleValue::new)))
    }
}

/// Anything, for commands that are known and refused.
#[derive(Debug, Args)]
pub struct Ignored {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// Write one JSON object per line (see JSON.md) instead of text.
    #[arg(long)]
    pub json: bool,
    /// When to use colour. The variable NO_COLOR, if set, turns `auto` into `never`.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub color: Color,
    /// Never ask for a password in this terminal; a dialog of the desktop may still appear.
    #[arg(long)]
    pub no_ask_password: bool,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// If the output is a terminal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

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

/// `boot`.
#[derive(Debug, Args)]
pub struct Boot {
    /// The kernel (a file, or an http or https address); or a directory: a NixOS netboot build
    /// (bzImage or Image, initrd, netboot.ipxe), Debian's netboot archive, a live system, or a kernel
    /// beside its initrd; or an EFI program with everything in it (a unified kernel image); or an
    /// iPXE script; or netboot.xyz, from its site or a directory with its files.
    #[arg(value_name = "KERNEL|DIR|EFI|IPXE")]
    pub kernel: PathBuf,
    /// Initial ramdisks (files or addresses), in the order in which the kernel gets them.
    #[arg(value_name = "INITRD")]
    pub initrds: Vec<PathBuf>,
    /// Kernel command line; with a directory it is added to the directory's own, with an iPXE script
    /// it is ${cmdline} there. {{ ID "file or address" }} serves that file, too, and stands for its
    /// address; {{ SERVER }}, {{ MAC }}, {{ UUID }}, {{ ARCH }}, {{ SERIAL }} and {{ HOSTNAME }} stand
    /// for this computer's address and for what each machine says of itself.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Another source beside the first: a directory, an EFI program or an iPXE script, each with its own
    /// command line. The machine shows a menu of all, and takes the first after half a minute.
    /// May be given several times.
    #[arg(long, value_name = "NAME=SOURCE", value_parser = menu_item)]
    pub menu: Vec<(String, PathBuf)>,
    /// Shown on the machine's screen before it fetches the kernel.
    #[arg(long, value_name = "TEXT")]
    pub bootmsg: Option<String>,
    /// Folder on a web server that has copies of kernel and initrds under their own names: machines
    /// with iPXE fetch them from there, and from this computer only if that fails. May be given
    /// several times: the machines are spread over the mirrors, and each one tries all of them.
    #[arg(long, value_name = "URL")]
    pub mirror: Vec<String>,
    /// Where, for whom and how.
    #[command(flatten)]
    pub serving: Serving,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// What is to be served, as for boot: a kernel and its initrds, a directory, an EFI program or an
    /// iPXE script. Without it, what is served is not looked at.
    #[arg(value_name = "KERNEL|DIR|EFI|IPXE")]
    pub source: Option<PathBuf>,
    /// Initial ramdisks (files or addresses).
    #[arg(value_name = "INITRD")]
    pub initrds: Vec<PathBuf>,
    /// Kernel command line, as for boot.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Ask the network as a machine would that boots from it, and show what every server offers. To
    /// hear the answers UDP 67 is opened on the interface, for five seconds; polkit may ask for a
    /// password.
    #[arg(long)]
    pub probe: bool,
    /// Where, and with what.
    #[command(flatten)]
    pub serving: Serving,
}

/// `api`.
#[derive(Debug, Args)]
pub struct Api {
    /// The service: URL/v1/boot/MAC is asked about each machine. It is told more if URL ends with
    /// ?arch&firmware&uuid or some of these.
    #[arg(value_name = "URL")]
    pub url: String,
    /// How long the service may take for an answer: 5s, 500ms, 1m.
    #[arg(long, value_name = "TIME", value_parser = milliseconds, default_value = "5s")]
    pub api_request_timeout: Duration,
    /// Where, for whom and how.
    #[command(flatten)]
    pub serving: Serving,
}

/// `quick`.
#[derive(Debug, Args)]
pub struct Quick {
    /// Which one.
    #[arg(value_name = "NAME",
          value_parser = ["arch", "centos", "coreos", "debian", "fedora", "ubuntu", "xyz"])]
    pub recipe: String,
    /// Its version, such as stable or 44; arch and xyz need none.
    #[arg(value_name = "VERSION")]
    pub version: Option<String>,
    /// Architecture in the distribution's spelling [default: 64-bit x86].
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// Another mirror.
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Added to the recipe's kernel command line, with {{ ID "file or address" }} and the other names
    /// as for boot.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Shown on the machine's screen before it fetches the kernel.
    #[arg(long, value_name = "TEXT")]
    pub bootmsg: Option<String>,
    /// Where, for whom and how.
    #[command(flatten)]
    pub serving: Serving,
}

/// `nixos`.
#[derive(Debug, Args)]
pub struct Nixos {
    /// A flake and a system of its nixosConfigurations, as nix and nixos-rebuild take them
    /// [default: the only system of the flake in this folder]. With --file: the attribute that is the
    /// system, if the file's value is none itself.
    #[arg(value_name = "FLAKE#NAME")]
    pub reference: Option<String>,
    /// A file whose value is a NixOS system, for those without flakes.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Build anew whenever a file of the flake's folder has changed (with --file: of that file's
    /// folder).
    #[arg(long)]
    pub watch: bool,
    /// Added to the system's own kernel command line, with {{ ID "file or address" }} and the other
    /// names as for boot.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Shown on the machine's screen before it fetches the kernel.
    #[arg(long, value_name = "TEXT")]
    pub bootmsg: Option<String>,
    /// Write a flake to begin with into DIR, and do nothing else.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["reference", "file", "watch"],
          help_heading = "A new flake")]
    pub new: Option<PathBuf>,
    /// What it makes of the machine.
    #[arg(
        long,
        value_name = "KIND",
        value_enum,
        default_value_t,
        requires = "new",
        help_heading = "A new flake"
    )]
    pub kind: Starter,
    /// SSH public key that may log in as root, or a file with it [default: those in ~/.ssh].
    #[arg(long, value_name = "KEY", requires = "new", help_heading = "A new flake")]
    pub ssh_key: Option<String>,
    /// The system's name [default: that of DIR].
    #[arg(long, value_name = "NAME", requires = "new", help_heading = "A new flake")]
    pub host_name: Option<String>,
    /// Where, for whom and how.
    #[command(flatten)]
    pub serving: Serving,
    /// Further arguments for nix, such as --impure or --override-input.
    #[arg(last = true, value_name = "NIX ARGUMENTS")]
    pub nix: Vec<OsString>,
}

/// What a new flake makes of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Starter {
    /// NixOS' installer.
    #[default]
    Installer,
    /// A small system that lives in the machine's memory.
    System,
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

impl Boot {
    /// Why this version cannot do what was asked, if it cannot.
    #[must_use]
    pub fn refusal(&self) -> Option<&'static str> {
        let mut paths = self.initrds.iter().chain([&self.kernel]).filter_map(|path| path.to_str());
        if paths.any(|path| path.starts_with("tftp://")) {
            Some("tftp:// addresses are not in this version: use http://, or download the files")
        } else {
            one_line(self.cmdline.as_deref())
        }
    }
}

/// Why this command line cannot be passed on.
fn one_line(cmdline: Option<&str>) -> Option<&'static str> {
    cmdline
        .is_some_and(|text| text.trim().contains(char::is_control))
        .then_some("--cmdline must be one line without control characters")
}

impl Quick {
    /// Why this version cannot do what was asked, if it cannot.
    #[must_use]
    pub fn refusal(&self) -> Option<&'static str> {
        one_line(self.cmdline.as_deref())
    }
}

impl Nixos {
    /// Why this version cannot do what was asked, if it cannot.
    #[must_use]
    pub fn refusal(&self) -> Option<&'static str> {
        one_line(self.cmdline.as_deref())
    }
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

/// Reads `500M`, `20G`, or a bare number of octets.
fn octets(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.strip_suffix(|unit: char| unit.is_ascii_alphabetic()) {
        Some(number) if text.ends_with(['K', 'k']) => (number, 10),
        Some(number) if text.ends_with(['M', 'm']) => (number, 20),
        Some(number) if text.ends_with(['G', 'g']) => (number, 30),
        Some(number) if text.ends_with(['T', 't']) => (number, 40),
        _ => (text, 0),
    };
    let whole = number.bytes().all(|digit| digit.is_ascii_digit());
    let number: Option<u64> = number.parse().ok().filter(|_| whole);
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "write for example 500M or 20G".to_owned())
}

/// Reads `11=snponly.efi`.
fn loader(text: &str) -> Result<(u16, PathBuf), String> {
    text.split_once('=')
        .filter(|(_, file)| !file.is_empty())
        .and_then(|(arch, file)| Some((arch.parse().ok()?, file.into())))
        .ok_or_else(|| "write for example 11=grubaa64.efi (11: arm64 UEFI)".to_owned())
}

/// Reads `NixOS=./result`.
fn menu_item(text: &str) -> Result<(String, PathBuf), String> {
    text.split_once('=')
        .map(|(name, source)| (name.trim().to_owned(), source.into()))
        .filter(|(name, source): &(String, PathBuf)| {
            !name.is_empty() && !source.as_os_str().is_empty()
        })
        .ok_or_else(|| "write for example NixOS=./result".to_owned())
}

/// Reads `45s`, `30m`, `2h`, `1h30m`, or a bare number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    const RIGHT: &str = "write for example 45s, 30m, 2h or 1h30m (at least one second)";
    let time = milliseconds(text).map_err(|_| RIGHT.to_owned())?;
    if time.subsec_nanos() == 0 { Ok(time) } else { Err(RIGHT.to_owned()) }
}

/// As [`duration`], with parts such as `500ms`.
fn milliseconds(text: &str) -> Result<Duration, String> {
    const RIGHT: &str = "write for example 5s, 500ms or 1m30s";
    let mut sum: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| RIGHT.to_owned())?;
        let unit = |word: &str| tail.strip_prefix(word);
        let (unit, tail) = if let Some(tail) = unit("ms") {
            (1, tail)
        } else if let Some(tail) = unit("s") {
            (1000, tail)
        } else if let Some(tail) = unit("m") {
            (60_000, tail)
        } else if let Some(tail) = unit("h") {
            (3_600_000, tail)
        } else if tail.is_empty() && rest.len() == text.len() {
            (1000, tail)
        } else {
            return Err(RIGHT.to_owned());
        };
        sum = number
            .checked_mul(unit)
            .and_then(|part| sum.checked_add(part))
            .filter(|sum| u32::try_from(sum / 1000).is_ok())
            .ok_or_else(|| RIGHT.to_owned())?;
        rest = tail;
    }
    if sum == 0 { Err(RIGHT.to_owned()) } else { Ok(Duration::from_millis(sum)) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn boot(arguments: &str) -> Boot {
        let words = ["portcullis", "boot"].into_iter().chain(arguments.split_whitespace());
        match Cli::try_parse_from(words) {
            Ok(Cli { command: Command::Boot(boot) }) => *boot,
            other => panic!("{arguments}: {other:?}"),
        }
    }

    #[test]
    fn the_table_of_flags_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_recipe_of_the_wiki_runs_and_says_which_flag_it_can_leave_out() {
        let boot = boot(
            "bzImage initrd --cmdline loglevel=4 --debug --dhcp-no-bind --port 64172 --status-port 64172",
        );
        assert_eq!(boot.refusal(), None);
        let boot = boot.serving;
        assert_eq!((boot.port, boot.status_port, boot.debug), (64172, Some(64172), true));
        assert!(boot.notes()[0].starts_with("--dhcp-no-bind"));
        assert_eq!(boot.notes().len(), 1);
    }

    #[test]
    fn pixiecores_short_flags_have_their_meaning() {
        let boot = boot("-d -t -l 10.0.0.1 -p 8080 k i1 i2 --bootmsg=hello --ipxe-efi64 f");
        assert_eq!(boot.initrds.len(), 2);
        assert_eq!(boot.bootmsg.as_deref(), Some("hello"));
        assert_eq!(boot.refusal(), None);
        let boot = boot.serving;
        assert_eq!(boot.listen_addr, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(boot.port, 8080);
        assert!(boot.debug && boot.log_timestamps);
        assert_eq!(boot.ipxe_efi64, Some("f".into()));
    }

    #[test]
    fn the_page_is_there_if_asked_for_and_on_this_computer_alone_unless_told_otherwise() {
        let page = |arguments: &str| boot(&format!("k {arguments}")).serving.page();
        let here = |port| Some(Wish { address: Ipv4Addr::LOCALHOST, port });
        assert_eq!(page(""), None);
        assert_eq!(page("--web"), here(Port::Rather(64173)));
        assert_eq!(page("--web=8000"), here(Port::Exactly(8000)));
        assert_eq!(page("--status-port 64172"), here(Port::Rather(64172)));
        assert_eq!(page("--status-port 0"), None);
        assert_eq!(page("--status-port 80 --web=8000"), here(Port::Exactly(8000)));
        let address = Ipv4Addr::new(192, 0, 2, 2);
        let port = Port::Rather(64173);
        assert_eq!(page("--web-listen 192.0.2.2"), Some(Wish { address, port }));
    }

    #[test]
    fn what_this_version_cannot_do_is_refused() {
        for (arguments, word) in [
            ("tftp://host/k", "download"),
            ("k tftp://host/i", "download"),
            ("k --cmdline a\u{7}b", "one line"),
        ] {
            let boot = boot(arguments);
            let refusal = boot.refusal();
            assert!(refusal.is_some_and(|text| text.contains(word)), "{arguments}: {refusal:?}");
        }
    }

    #[test]
    fn wrong_values_are_usage_errors_that_say_what_is_right() {
        for (arguments, right) in [
            ("boot k --port 80", "1024"),
            ("boot k --web=80", "1024"),
            ("boot k --web-listen localhost", "--web-listen"),
            ("boot k --for-mac 1:2", "52:54:00:12:34:56"),
            ("boot k --for soon", "1h30m"),
            ("boot k --count 0", "1.."),
            ("boot k --uefi-offer x", "boot-server"),
            ("boot k --loader arm64=f", "11=grubaa64.efi"),
            ("boot k --loader 11=", "11=grubaa64.efi"),
            ("boot k --loader 65536=f", "11=grubaa64.efi"),
            ("boot k -i a -l 1.2.3.4", "--listen-addr"),
            ("boot", "KERNEL|DIR|EFI|IPXE"),
            ("boot k --router 10.77.0.1", "--dhcp-server"),
            ("boot k --dns 10.77.0.1", "--dhcp-server"),
            ("boot k --dhcp-server --dhcp-no-bind", "--dhcp-no-bind"),
        ] {
            let words = std::iter::once("portcullis").chain(arguments.split_whitespace());
            let error = Cli::try_parse_from(words).err();
            let text = error.as_ref().map(ToString::to_string).unwrap_or_default();
            assert!(text.contains(right), "{arguments}: {text}");
            assert_eq!(error.map(|error| error.exit_code()), Some(2));
        }
    }

    fn command(line: &str) -> Result<Command, clap::Error> {
        let words = std::iter::once("pixiecore").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.command)
    }

    #[test]
    fn section_1_1_api_with_the_flags_of_1_2() {
        let line = "api http://host/x --api-request-timeout 1m500ms -d -t -l 10.0.0.1 -p 8080 \
                    --status-port 8080 --dhcp-no-bind --ipxe-bios a --ipxe-ipxe b --ipxe-efi64 c --ipxe-efi32 e \
                    --ui-assets-dir d";
        let Ok(Command::Api(api)) = command(line) else { panic!("{:?}", command(line)) };
        assert_eq!(api.url, "http://host/x");
        assert_eq!(api.api_request_timeout, Duration::from_millis(60_500));
        assert_eq!(api.serving.port, 8080);
        assert_eq!(api.serving.notes().len(), 2);
        let Ok(Command::Api(api)) = command("api http://host") else { panic!() };
        assert_eq!(api.api_request_timeout, Duration::from_secs(5));
        assert!(command("api").is_err());
    }

    #[test]
    fn section_1_1_quick_with_its_recipes_and_flags() {
        let line =
            "quick debian stable --arch amd64 --mirror http://m --cmdline auto --bootmsg m -d";
        let Ok(Command::Quick(quick)) = command(line) else { panic!("{:?}", command(line)) };
        assert_eq!((quick.recipe.as_str(), quick.version.as_deref()), ("debian", Some("stable")));
        assert_eq!(
            (quick.arch.as_deref(), quick.mirror.as_deref()),
            (Some("amd64"), Some("http://m"))
        );
        assert!(quick.serving.debug && quick.refusal().is_none());
        for recipe in crate::source::quick::names().unwrap() {
            assert!(command(&format!("quick {recipe}")).is_ok(), "{recipe}");
        }
        assert!(command("quick plan9").is_err());
    }

    #[test]
    fn a_nixos_system_is_named_by_a_flake_or_a_file_and_nix_gets_what_follows() {
        let nixos = |line: &str| match command(&format!("nixos {line}")) {
            Ok(Command::Nixos(nixos)) => *nixos,
            other => panic!("{line}: {other:?}"),
        };
        let flake = nixos(".#a --watch -i eth0 --once -- --impure --override-input n path:/x");
        assert_eq!((flake.reference.as_deref(), flake.watch), (Some(".#a"), true));
        assert!(flake.serving.once && flake.serving.interface == ["eth0"]);
        assert_eq!(flake.nix, ["--impure", "--override-input", "n", "path:/x"]);
        let file = nixos("-f system.nix hosts.a");
        assert_eq!(file.file, Some("system.nix".into()));
        assert_eq!(file.reference.as_deref(), Some("hosts.a"));
        assert_eq!(nixos("").reference, None);
        let new = nixos("--new d --kind system --ssh-key k --host-name h");
        assert_eq!((new.new, new.kind), (Some("d".into()), Starter::System));
        for wrong in ["--kind system", "--ssh-key k", "--new d .#a", "--new d --watch", ".#a b"] {
            assert!(command(&format!("nixos {wrong}")).is_err(), "{wrong}");
        }
        assert!(nixos(". --cmdline a\u{7}b").refusal().is_some());
    }

    #[test]
    fn section_1_1_the_ipv6_commands_are_known_and_refused() {
        for line in ["bootipv6 --listen-addr x", "ipv6api x"] {
            assert!(matches!(command(line), Ok(Command::Ipv6(_))), "{line}");
        }
    }

    #[test]
    fn sizes_of_the_cache() {
        assert_eq!(boot("k").serving.cache_size, crate::source::cache::LIMIT);
        assert!(!boot("k").serving.no_cache);
        for (text, size) in [("0", 0), ("7", 7), ("1k", 1024), ("500M", 500 << 20), ("2T", 2 << 40)]
        {
            assert_eq!(octets(text), Ok(size), "{text}");
        }
        for wrong in ["", "G", "-1", "+1", "1.5G", "1GB", "1 G", "99999999T", "9X", "1é"] {
            assert!(octets(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("45s"), Ok(Duration::from_secs(45)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(milliseconds("1s500ms"), Ok(Duration::from_millis(1500)));
        for wrong in
            ["", "0", "h", "500ms", "1d", "1h30", "-1s", "99999999h", "99999999999999999999h", "1é"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
