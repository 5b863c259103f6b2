//! Start of the privileged helper: privileges, sweep, bus, in this order.

use std::{error::Error, process::ExitCode};

use portcullis_helper::{
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
  portcullis-helper --version
  portcullis-helper --help
";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_str()).collect();
    let outcome = match arguments.as_slice() {
        [] => serve(),
        [Some("--sweep")] => sweep(),
        [Some("--version")] => {
            print(concat!("portcullis-helper ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        [Some("--help")] => print(USAGE),
        _ => {
            log::fatal(&"portcullis-helper takes --sweep, --version, --help, or nothing");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::fatal(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    privileges::settle()?;
    let mut firewall = Nftables::new()?;
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
        let state = State::new(Box::new(Linux), Box::new(firewall));
        Ok(run::run(connection, state, &Notifier::from_environment(), stop).await?)
    })
}

fn sweep() -> Result<(), Box<dyn Error>> {
    privileges::settle()?;
    let removed = Nftables::new()?.sweep()?;
    log::note(&format!("swept removed={removed}"));
    Ok(())
}

fn print(text: &str) -> Result<(), Box<dyn Error>> {
    use std::io::Write;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
