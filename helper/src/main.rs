//! Start of the privileged helper: privileges, configuration, sweep, bus, in this order.

use std::{error::Error, path::Path, process::ExitCode};

use portcullis_helper::{
    config::{self, Config},
    firewall::{Firewall, Nftables},
    kernel::Linux,
    log,
    notify::Notifier,
    privileges, run,
    state::State,
};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "\
portcullis-helper: opens the netboot ports for portcullis (started by the system bus)

  portcullis-helper            serve org.portcullis.Netboot1 on the system bus
  portcullis-helper --sweep    remove what a helper that died has left in the firewall, and exit
  portcullis-helper --check-config [FILE]
                               say whether the configuration is good, by the exit code, too
  portcullis-helper --version
  portcullis-helper --help
";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_str()).collect();
    let outcome = match arguments.as_slice() {
        [] => serve(),
        [Some("--sweep")] => sweep(),
        [Some("--check-config")] => check_config(None),
        [Some("--check-config"), Some(file)] => check_config(Some(file)),
        [Some("--version")] => {
            print(concat!("portcullis-helper ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        [Some("--help")] => print(USAGE),
        _ => {
            log::fatal(
                &"portcullis-helper takes --sweep, --check-config [FILE], --version, --help, or nothing",
            );
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::fatal(&error);
            Notifier::from_environment().failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    privileges::settle()?;
    let config = config::load()?;
    let mut firewall = Nftables::new(&config)?;
    firewall.sweep()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Signals first: a stop that comes while the bus is being asked is not lost.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        let connection = zbus::Connection::system().await?;
        let linux = Linux(config.marks);
        let state = State::new(config, Box::new(linux), Box::new(firewall));
        Ok(run::run(connection, state, &Notifier::from_environment(), stop).await?)
    })
}

fn sweep() -> Result<(), Box<dyn Error>> {
    privileges::settle()?;
    // A configuration that became bad keeps nothing of ours in the firewall.
    let config = config::load().unwrap_or_else(|error| {
        log::fatal(&error);
        Config::default()
    });
    let removed = Nftables::new(&config)?.sweep()?;
    log::note(&format!("swept removed={removed}"));
    Ok(())
}

/// Reads what the helper would read, or one file alone; needs no privilege.
fn check_config(file: Option<&str>) -> Result<(), Box<dyn Error>> {
    match file {
        Some(file) => config::check(Path::new(file))?,
        None => config::load()?,
    };
    print(&format!("{}: good\n", file.unwrap_or(config::FILE)))
}

fn print(text: &str) -> Result<(), Box<dyn Error>> {
    use std::io::Write;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
