//! Entry point: arguments in, exit code out.

use std::{ffi::OsString, process::ExitCode};

use clap::Parser as _;
use portcullis::{
    cli::{Cli, Command},
    commands, doctor,
    exit::{Code, Failure},
    pixiecore_v1,
    report::Report,
    serve,
};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let arguments = pixiecore_v1::translate(&arguments).unwrap_or(arguments);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Help and version are such "errors", too, with exit code 0.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Code::Usage as u8));
        }
    };
    let mut report = match &cli.command {
        Command::Boot(boot) => Report::for_serving(&boot.serving),
        Command::Api(api) => Report::for_serving(&api.serving),
        Command::Quick(quick) => Report::for_serving(&quick.serving),
        Command::Doctor(doctor) => Report::for_serving(&doctor.serving),
        // nix writes to the terminal by itself.
        Command::Nixos(nixos) => Report::for_serving(&nixos.serving).in_lines(),
        Command::Status(common)
        | Command::Interfaces(common)
        | Command::Cache { common, .. }
        | Command::Close { common, .. }
        | Command::Explain { common, .. } => Report::new(common),
        Command::Ipv6(_) => Report::new(&Default::default()),
    };
    match commands::descriptors().and_then(|()| run(&cli.command, &mut report)) {
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
        Command::Cache { action, .. } => commands::cache(*action, report),
        Command::Doctor(arguments) => doctor::doctor(arguments, report),
        Command::Explain { code, .. } => commands::explain(&code.join(" "), report),
        Command::Api(api) => serve::api(api, report),
        Command::Quick(quick) => serve::quick(quick, report),
        Command::Nixos(nixos) => serve::nixos(nixos, report),
        Command::Ipv6(_) => Err(Failure::new(
            Code::Usage,
            "the IPv6 commands are not in this version: only IPv4 is served",
        )),
    }
}
