//! Writes the man pages and the shell completions into a folder, from the same table that parses
//! the command line: `cargo run -p portcullis --example generate -- FOLDER`.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::PathBuf,
};

use clap::{CommandFactory as _, ValueEnum as _};
use clap_complete::{Shell, generate_to};
use portcullis::cli::{Cli, fish_codes};

fn main() -> io::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "which folder?"))?;
    std::fs::create_dir_all(&folder)?;
    clap_mangen::generate_to(Cli::command(), &folder)?;
    for shell in Shell::value_variants() {
        let file = generate_to(*shell, &mut Cli::command(), "portcullis", &folder)?;
        if *shell == Shell::Fish {
            OpenOptions::new().append(true).open(file)?.write_all(fish_codes().as_bytes())?;
        }
    }
    Ok(())
}
