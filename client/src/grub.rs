//! The configuration that GRUB's net image runs: fetch the kernel and the initrds by TFTP, then boot
//! with the command line, or say in words what failed.
//!
//! Guarantees: nothing in a command line is GRUB's own language, and the kernel understands the words
//! that were given, or there is no configuration. GRUB takes what stands between single quotes as it
//! is. Its `linux` command then writes the words one after the other, those with a blank between
//! double quotes, and a backslash before each backslash and quotation mark (grub:
//! grub-core/lib/cmdline.c); the kernel knows double quotes, but no backslash (linux:
//! lib/cmdline.c, `next_arg`). So quotation marks are taken out and left to GRUB, and a word with a
//! backslash or an apostrophe cannot be passed on.

use std::{fmt::Write as _, net::Ipv4Addr};

use crate::mac::MacAddr;

/// A command line that GRUB cannot pass on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel command line contains {0:?}: GRUB would hand it on with a backslash before it, which \
     the kernel takes literally; leave it out"
)]
pub struct Unpassable(char);

/// The configuration for `mac`, whose files are at `server` in its folder.
///
/// # Errors
/// The command line cannot be passed on.
pub fn config(
    server: Ipv4Addr,
    mac: MacAddr,
    initrds: usize,
    cmdline: &str,
) -> Result<String, Unpassable> {
    let folder = format!("(tftp,{server})/{}", mac.hyphenated());
    let mut linux = format!("linux {folder}/kernel");
    for word in words(cmdline)? {
        // Writing to a String cannot fail.
        let _ = write!(linux, " '{word}'");
    }
    let mut initrd = String::from("initrd");
    for number in 0..initrds {
        let _ = write!(initrd, " {folder}/initrd{number}");
    }
    let initrd = if initrds == 0 { "true" } else { &initrd };
    Ok(format!(
        "echo 'Portcullis: loading the kernel'\n\
         if {linux}; then\n\
         \x20 echo 'Portcullis: loading the rest'\n\
         \x20 if {initrd}; then boot; fi\n\
         fi\n\
         echo 'Portcullis: GRUB could not load it; what it says stands above.'\n\
         echo 'With Secure Boot, the kernel must be signed by the maker of this GRUB.'\n"
    ))
}

/// The words of a command line as the kernel divides it, without the quotation marks that hold them
/// together.
fn words(cmdline: &str) -> Result<Vec<String>, Unpassable> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut begun) = (String::new(), false, false);
    for character in cmdline.chars() {
        match character {
            '\\' | '\'' => return Err(Unpassable(character)),
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            // A control character would end the line; the kernel takes it for a blank.
            _ if character.is_whitespace() || character.is_control() => {
                if quoted {
                    word.push(' ');
                } else if begun {
                    words.push(std::mem::take(&mut word));
                    begun = false;
                }
            }
            _ => {
                word.push(character);
                begun = true;
            }
        }
    }
    words.extend(begun.then_some(word));
    Ok(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    #[test]
    fn the_whole_configuration() {
        let text = config(SERVER, MAC, 2, "init=/x  a=\"b c\" $d;reboot {e}").unwrap();
        assert_eq!(
            text,
            "echo 'Portcullis: loading the kernel'\n\
             if linux (tftp,192.0.2.2)/02-00-00-00-00-01/kernel 'init=/x' 'a=b c' '$d;reboot' '{e}'; then\n\
             \x20 echo 'Portcullis: loading the rest'\n\
             \x20 if initrd (tftp,192.0.2.2)/02-00-00-00-00-01/initrd0 (tftp,192.0.2.2)/02-00-00-00-00-01/initrd1; then boot; fi\n\
             fi\n\
             echo 'Portcullis: GRUB could not load it; what it says stands above.'\n\
             echo 'With Secure Boot, the kernel must be signed by the maker of this GRUB.'\n"
        );
        assert!(config(SERVER, MAC, 0, "").unwrap().contains("/kernel; then\n"));
        assert!(config(SERVER, MAC, 0, "").unwrap().contains("if true; then boot"));
    }

    #[test]
    fn what_grub_would_change_is_refused() {
        for (cmdline, character) in [("a=b\\x20c", '\\'), ("it's", '\'')] {
            let error = config(SERVER, MAC, 0, cmdline).unwrap_err();
            assert_eq!(error, Unpassable(character));
            assert!(error.to_string().contains("leave it out"));
        }
    }

    proptest! {
        /// Apostrophes are ours alone and stand in pairs on each line: nothing gets out of them.
        #[test]
        fn no_command_line_adds_to_the_language(cmdline in any::<String>()) {
            if let Ok(text) = config(SERVER, MAC, 1, &cmdline) {
                let plain = config(SERVER, MAC, 1, "").unwrap();
                prop_assert_eq!(text.lines().count(), plain.lines().count());
                let outside = |text: &str| {
                    let parts: Vec<_> = text.split('\'').collect();
                    assert_eq!(parts.len() % 2, 1);
                    let outside: String = parts.into_iter().step_by(2).collect();
                    outside.replace(' ', "")
                };
                prop_assert_eq!(outside(&text), outside(&plain));
            }
        }
    }
}
