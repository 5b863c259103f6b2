//! Writes the man pages and the shell completions into a folder, from the same table that parses
//! the command line: `cargo run -p portcullis --example generate -- FOLDER`.

use std::{fs, io, path::PathBuf};

use clap::{CommandFactory as _, ValueEnum as _};
use clap_complete::{Shell, generate_to};
use portcullis::cli::{Cli, fish_codes};

fn main() -> io::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "which folder?"))?;
    fs::create_dir_all(&folder)?;
    clap_mangen::generate_to(Cli::command(), &folder)?;
    for shell in Shell::value_variants() {
        let file = generate_to(*shell, &mut Cli::command(), "portcullis", &folder)?;
        let script = fs::read_to_string(&file)?;
        if let Some(better) = with_interfaces(*shell, &script) {
            if better == script {
                let what = format!("no place for interfaces in the completions for {shell}");
                return Err(io::Error::other(what));
            }
            fs::write(&file, better)?;
        }
    }
    Ok(())
}

/// Completions that also offer this computer's interfaces, a kind of value that clap does not have; and,
/// for fish, the codes of `explain`.
fn with_interfaces(shell: Shell, script: &str) -> Option<String> {
    match shell {
        Shell::Bash => {
            let any = "COMPREPLY=($(compgen -f \"${cur}\"))";
            let names = "COMPREPLY=($(compgen -W \"$(ls /sys/class/net)\" -- \"${cur}\"))";
            let mut follows = false;
            let lines = script.lines().map(|line| {
                let value = follows && line.trim() == any;
                follows = matches!(line.trim(), "--interface)" | "-i)");
                if value { line.replace(any, names) } else { line.to_owned() }
            });
            Some(lines.collect::<Vec<_>>().join("\n") + "\n")
        }
        Shell::Zsh => Some(script.replace(":INTERFACE:_default", ":INTERFACE:_net_interfaces")),
        Shell::Fish => {
            let names =
                "complete -c portcullis -s i -l interface -x -a \"(command ls /sys/class/net)\"\n";
            Some([script, names, &fish_codes()].concat())
        }
        _ => None,
    }
}
