//! What each command that serves is given, beside what all of them have in common (`serving`): files,
//! addresses, a service, a recipe, a system of a flake.
//!
//! Guarantees: a command line that cannot be passed on, or a file that cannot be fetched, is refused in words
//! before anything is opened.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    serving::Serving,
    values::{menu_item, milliseconds},
};

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
