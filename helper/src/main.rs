//! Start of the privileged helper: privileges, configuration, sweep, bus, in this order.

use std::{
    error::Error,
    io::{stderr, stdin},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    process::ExitCode,
};

use nix::unistd::dup2_stdin;
use portcullis_helper::{
    caller::Caller,
    config::{self, Config},
    firewall::{Firewall, Nftables},
    guard,
    kernel::Linux,
    log, notify, privileges, run,
    state::State,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

const USAGE: &str = "\
portcullis-helper: opens the netboot ports for portcullis (started by the system bus)

  portcullis-helper            serve org.portcullis.Netboot1 on the system bus
  portcullis-helper --once     serve the program whose socket is standard input, and only that
                               (started by portcullis through sudo, pkexec or run0)
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
        [Some("--once")] => once(),
        [Some("--sweep")] => sweep(),
        [Some("--check-config")] => check_config(None),
        [Some("--check-config"), Some(file)] => check_config(Some(file)),
        [Some("--version")] => {
            print(concat!("portcullis-helper ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        [Some("--help")] => print(USAGE),
        _ => {
            log::fatal(
                &"portcullis-helper takes --once, --sweep, --check-config [FILE], --version, --help, or nothing",
            );
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::fatal(&error);
            notify::failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    let raw = privileges::settle(privileges::installed)?;
    let state = state(raw)?;
    runtime()?.block_on(async {
        let stop = stop()?;
        let connection = zbus::Connection::system().await?;
        Ok(run::run(connection, state, stop).await?)
    })
}

/// One process serves, the other looks after it. Neither keeps standard input, so that the end of
/// the first is seen by the program at the other end of the socket.
fn once() -> Result<(), Box<dyn Error>> {
    let socket = stdin().as_fd().try_clone_to_owned()?;
    let told = ["SUDO_UID", "PKEXEC_UID"].map(|name| std::env::var(name).ok());
    let told: Vec<u32> = told.iter().flatten().map(|uid| uid.parse()).collect::<Result<_, _>>()?;
    let caller = Caller::at_the_other_end(&socket, &told)?;
    dup2_stdin(stderr())?;
    // No file system is kept from being unmounted.
    std::env::set_current_dir("/")?;
    privileges::settle(privileges::free_id)?;
    if let Some(copy) = guard::split()? {
        drop(socket);
        return if guard::wait(copy)? { Ok(()) } else { sweep() };
    }
    let state = state(false)?;
    runtime()?
        .block_on(async { Ok(run::once(UnixStream::from(socket), caller, state, stop()?).await?) })
}

/// Completes when the helper is told to stop. Before the first await of all, so that a stop that comes
/// while the bus is being asked is not lost.
fn stop() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}

/// What the site allows, and a firewall without what an earlier helper has left; `raw`: with
/// CAP_NET_RAW.
fn state(raw: bool) -> Result<State, Box<dyn Error>> {
    let config = config::load()?;
    if raw && !config.raw_dhcp {
        return Err("the helper has CAP_NET_RAW and no use for it: say raw-dhcp = true in the \
                    configuration, or remove the drop-in that grants it"
            .into());
    }
    let mut firewall = Nftables::new(&config)?;
    firewall.sweep()?;
    let linux = Linux(config.marks);
    Ok(State::new(config, Box::new(linux), Box::new(firewall)))
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// By itself, or after a helper for one run, which has become somebody already.
fn sweep() -> Result<(), Box<dyn Error>> {
    privileges::settle(privileges::installed)?;
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
