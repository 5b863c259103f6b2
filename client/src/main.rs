//! Entry point: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use portcullis::{
    cli::{Cli, Command},
    commands,
    exit::{Code, Failure},
    report::Report,
    serve,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are such "errors", too, with exit code 0.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Code::Usage as u8));
        }
    };
    let mut report = match &cli.command {
        Command::Boot(boot) => Report::for_boot(boot),
        Command::Status(common) | Command::Interfaces(common) | Command::Close { common, .. } => {
            Report::new(common)
        }
        Command::Api(_) | Command::Quick(_) | Command::Ipv6(_) => Report::new(&Default::default()),
    };
    match run(&cli.command, &mut report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn run(command: &Command, report: &mut Report) -> Result<(), Failure> {
    match command {
        Command::Boot(boot) => serve::boot(boot, report),
        Command::Status(_) => commands::status(report),
        Command::Close { lease, common } => commands::close(*lease, common, report),
        Command::Interfaces(_) => commands::interfaces(report),
        Command::Api(_) => Err(not_yet("api", "machines cannot be asked about one by one yet")),
        Command::Quick(_) => Err(not_yet("quick", "download a kernel and an initrd, and use boot")),
        Command::Ipv6(_) => Err(not_yet("bootipv6", "only IPv4 is served")),
    }
}

fn not_yet(command: &str, why: &str) -> Failure {
    Failure::new(Code::Usage, format!("the command {command} is not in this version: {why}"))
}
