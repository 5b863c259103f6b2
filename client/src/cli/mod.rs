//! The command line: what a person may write, and nothing about what it does. Here the commands and
//! what is common to all; in `orders` what each serves, in `serving` where, for whom and how.
//!
//! Pixiecore's spelling of `boot`, `api` and `quick` is part of it, so that an old command line keeps
//! working with the program's name changed, or with this program called as `pixiecore`. Flags of
//! Pixiecore that have no meaning here are taken and explained by [`Serving::notes`]; what this
//! version cannot do yet is refused by [`Boot::refusal`] before anything is opened.

mod codes;
mod orders;
mod serving;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::codes::ScreenCode;
pub use self::{
    codes::fish_codes,
    orders::{Api, Boot, Doctor, Nixos, Quick, Starter},
    serving::{Serving, UefiOffer, Via},
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
