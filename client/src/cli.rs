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

/// Command lines as people write them, Pixiecore's among them.
#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use clap::CommandFactory as _;

    use super::*;
    use crate::web::{Port, Wish};

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
    fn the_cache_is_kept_within_its_usual_size() {
        assert_eq!(boot("k").serving.cache_size, crate::source::cache::LIMIT);
        assert!(!boot("k").serving.no_cache);
    }
}
