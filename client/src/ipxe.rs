//! The script that our iPXE runs: fetch the kernel and the initrds, then boot with the command
//! line, or say in words what failed.
//!
//! Guarantees: the kernel gets the command line exactly as it was given, whatever it contains, or
//! there is no script. iPXE splits a line at blanks, takes the words `||`, `&&` and `;` and any
//! word that begins with `#` as its own, and only then replaces `${name}` in each word, again and
//! again until none is left (ipxe: src/core/exec.c `system`, src/core/settings.c
//! `expand_settings`). So such words are written with one character from a setting, and a word
//! that holds `${` and a later `}` cannot be written at all. Options end at the first argument
//! (src/core/getopt.c), so words that begin with `-` need nothing.

use std::fmt::Write as _;

use crate::{image::Generation, mac::MacAddr};

/// A command line that iPXE cannot pass on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// A line break, tabulator or other control character.
    #[error(
        "the kernel command line contains the control character U+{0:04X}: write it on one line, \
         with blanks between the arguments"
    )]
    Control(u32),
    /// A word with `${...}`.
    #[error(
        "the kernel command line contains \"{0}\": iPXE would replace ${{...}} by a setting of its \
         own and has no way to write it literally; leave it out"
    )]
    Expansion(String),
}

/// Characters that are written by way of a setting: name of the setting, character.
const ESCAPES: [(&str, char); 5] = [
    ("blank", ' '),
    ("hash", '#'),
    ("pipe", '|'),
    ("amp", '&'),
    ("semicolon", ';'),
];

/// The URL under which `mac` finds its files: `base` is `http://ADDRESS:PORT`.
#[must_use]
pub fn machine_url(generation: &Generation, base: &str, mac: MacAddr) -> String {
    format!("{base}/{}/{}", generation.token, mac.hyphenated())
}

/// The script for `mac`, the same for BIOS and UEFI. `base` is `http://ADDRESS:PORT`.
///
/// # Errors
/// The command line cannot be written in a script.
pub fn script(generation: &Generation, base: &str, mac: MacAddr) -> Result<String, CmdlineError> {
    let url = machine_url(generation, base, mac);
    let cmdline = quote(&generation.cmdline)?;
    let mut script = String::from("#!ipxe\n");
    for (name, character) in ESCAPES {
        if cmdline.contains(&reference(name)) {
            // Writing to a String cannot fail.
            let _ = writeln!(script, "set {name}:hex {:02x}", u32::from(character));
        }
    }
    let _ = writeln!(
        script,
        "kernel --name kernel {url}/kernel || goto no_kernel"
    );
    let mut arguments = String::from("kernel");
    for number in 0..generation.initrds.len() {
        let _ = writeln!(
            script,
            "initrd --name initrd{number} {url}/initrd{number} || goto no_initrd"
        );
        let _ = write!(arguments, " initrd=initrd{number}");
    }
    if !cmdline.is_empty() {
        let _ = write!(arguments, " {cmdline}");
    }
    let _ = writeln!(script, "boot {arguments} || goto no_boot");
    script.push_str(FAILURES);
    Ok(script)
}

/// What a person at the machine reads; five minutes, or a key, then the next boot device.
const FAILURES: &str = "\
exit
:no_kernel
echo Portcullis: the kernel could not be fetched. Is portcullis still running?
goto failed
:no_initrd
echo Portcullis: an initrd could not be fetched. Is portcullis still running, and is there memory enough?
goto failed
:no_boot
echo Portcullis: the kernel was fetched but did not start. Is it made for this kind of machine?
echo With Secure Boot on, the firmware refuses a kernel that it does not trust.
:failed
prompt --timeout 300000 Press a key to go on with the next boot device. || exit 1
exit 1
";

fn reference(name: &str) -> String {
    format!("${{{name}:string}}")
}

/// The command line as words of an iPXE script line.
fn quote(cmdline: &str) -> Result<String, CmdlineError> {
    if let Some(control) = cmdline.chars().find(|character| character.is_control()) {
        return Err(CmdlineError::Control(control.into()));
    }
    let mut words = Vec::new();
    // Blanks beyond the first of a run (they may matter inside quotes) are put before the next word.
    let mut blanks = String::new();
    for word in cmdline.trim_matches(' ').split(' ') {
        if word.is_empty() {
            blanks.push_str(&reference("blank"));
            continue;
        }
        if word
            .split_once("${")
            .is_some_and(|(_, after)| after.contains('}'))
        {
            return Err(CmdlineError::Expansion(word.into()));
        }
        let special = matches!(word, "||" | "&&" | ";") || word.starts_with('#');
        let escape = ESCAPES
            .iter()
            .find(|(_, character)| special && word.starts_with(*character));
        let quoted = match escape {
            Some((name, character)) => {
                reference(name) + word.strip_prefix(*character).unwrap_or(word)
            }
            None => word.to_owned(),
        };
        words.push(std::mem::take(&mut blanks) + &quoted);
    }
    Ok(words.join(" "))
}
