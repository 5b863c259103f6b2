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
const ESCAPES: [(&str, char); 5] =
    [("blank", ' '), ("hash", '#'), ("pipe", '|'), ("amp", '&'), ("semicolon", ';')];

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
    if let Some(script) = &generation.script {
        return Ok(script.text(&url));
    }
    let cmdline = quote(&generation.cmdline.text(&url))?;
    // A message that cannot be written is no reason not to boot.
    let message = generation.message.as_deref().and_then(|text| quote(text).ok());
    let message = message.unwrap_or_default();
    let mut script = String::from("#!ipxe\n");
    for (name, character) in ESCAPES {
        if cmdline.contains(&reference(name)) || message.contains(&reference(name)) {
            // Writing to a String cannot fail.
            let _ = writeln!(script, "set {name}:hex {:02x}", u32::from(character));
        }
    }
    if !message.is_empty() {
        // After a word of ours, for a message may begin with a hyphen.
        let _ = writeln!(script, "echo Portcullis: {message}");
    }
    let _ = writeln!(script, "kernel --name kernel {url}/kernel || goto no_kernel");
    let mut arguments = String::from("kernel");
    for number in 0..generation.initrds.len() {
        let _ =
            writeln!(script, "initrd --name initrd{number} {url}/initrd{number} || goto no_initrd");
        let _ = write!(arguments, " initrd=initrd{number}");
    }
    if !cmdline.is_empty() {
        let _ = write!(arguments, " {cmdline}");
    }
    let _ = writeln!(script, "boot {arguments} || goto no_boot");
    script.push_str(FAILURES);
    Ok(script)
}

/// The script that an iPXE finds beside its own binary as `autoexec.ipxe`, and runs instead of
/// booting by itself: so that a build without a script of its own (a signed one) comes to `url`, and
/// is known as ours (option 77) if it asks by DHCP again. The card that the firmware booted from need
/// not be the first one that gets an address: then every card is tried, and finds us by our offer.
#[must_use]
pub fn autoexec(url: &str) -> String {
    format!(
        "#!ipxe\n\
         set user-class portcullis\n\
         dhcp || goto each\n\
         imgfetch --name boot.ipxe {url} || goto each\n\
         imgexec boot.ipxe || exit 1\n\
         exit\n\
         :each\n\
         autoboot || exit 1\n"
    )
}

/// Whether [`script`] can write this command line: to be asked before anything is opened.
///
/// # Errors
/// It cannot.
pub fn check_cmdline(cmdline: &str) -> Result<(), CmdlineError> {
    quote(cmdline).map(drop)
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
        if word.split_once("${").is_some_and(|(_, after)| after.contains('}')) {
            return Err(CmdlineError::Expansion(word.into()));
        }
        let special = matches!(word, "||" | "&&" | ";") || word.starts_with('#');
        let escape = ESCAPES.iter().find(|(_, character)| special && word.starts_with(*character));
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{image::Blob, read::Content, template::Template};

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xfe]);

    fn generation(initrds: usize, cmdline: &str) -> Generation {
        let blob = Blob {
            name: "file".into(),
            content: Content::new(Vec::new()),
            length: 0,
            etag: String::new(),
            last_modified: String::new(),
        };
        Generation {
            token: "0123456789abcdef0123456789abcdef".into(),
            kernel: Some(blob.clone().into()),
            initrds: vec![blob.into(); initrds],
            cmdline: cmdline.into(),
            ..Generation::default()
        }
    }

    fn written(initrds: usize, cmdline: &str) -> String {
        script(&generation(initrds, cmdline), "http://10.0.0.1:64172", MAC).unwrap()
    }

    #[test]
    fn the_whole_script() {
        let url = "http://10.0.0.1:64172/0123456789abcdef0123456789abcdef/52-54-00-12-34-fe";
        let head = format!(
            "#!ipxe\n\
             kernel --name kernel {url}/kernel || goto no_kernel\n\
             initrd --name initrd0 {url}/initrd0 || goto no_initrd\n\
             initrd --name initrd1 {url}/initrd1 || goto no_initrd\n\
             boot kernel initrd=initrd0 initrd=initrd1 init=/nix/store/x/init loglevel=4 \
             || goto no_boot\n"
        );
        let script = written(2, "init=/nix/store/x/init loglevel=4");
        assert_eq!(script, head + FAILURES);
        for label in ["no_kernel", "no_initrd", "no_boot", "failed"] {
            assert!(FAILURES.contains(&format!(":{label}\n")), "{label}");
        }
    }

    #[test]
    fn wire_20_autoexec_marks_ipxe_as_ours_and_leads_to_the_script() {
        assert_eq!(
            autoexec("http://10.0.0.1:1/t/m/boot.ipxe"),
            "#!ipxe\nset user-class portcullis\ndhcp || goto each\n\
             imgfetch --name boot.ipxe http://10.0.0.1:1/t/m/boot.ipxe || goto each\n\
             imgexec boot.ipxe || exit 1\nexit\n:each\nautoboot || exit 1\n"
        );
    }

    #[test]
    fn without_initrd_and_command_line() {
        assert!(written(0, "").contains("\nboot kernel || goto no_boot\n"));
    }

    #[test]
    fn section_7_message_is_shown_before_the_kernel_is_fetched() {
        let mut generation = generation(0, "a");
        generation.message = Some("-n hello || #1".into());
        let script = script(&generation, "http://10.0.0.1:64172", MAC).unwrap();
        assert!(script.starts_with("#!ipxe\nset hash:hex 23\nset pipe:hex 7c\necho Portcullis: -n hello ${pipe:string}| ${hash:string}1\nkernel "), "{script}");
        generation.message = Some("two\nlines".into());
        assert!(
            !super::script(&generation, "http://h:1", MAC)
                .unwrap()
                .contains("\necho Portcullis: two")
        );
    }

    #[test]
    fn section_7_ipxe_script_is_used_verbatim() {
        let mut generation = generation(1, "${not writable}");
        generation.script = Some("#!ipxe\nchain ${x} || shell\n".into());
        assert_eq!(
            script(&generation, "http://h:1", MAC).unwrap(),
            "#!ipxe\nchain ${x} || shell\n"
        );
    }

    #[test]
    fn addresses_of_extra_files_are_each_machines_own() {
        let mut generation = generation(0, "");
        generation.cmdline = Template::parse("a={{ ID \"f\" }}", "ID", |_| 3).unwrap();
        let script = script(&generation, "http://h:1", MAC).unwrap();
        let url = "http://h:1/0123456789abcdef0123456789abcdef/52-54-00-12-34-fe";
        assert!(script.contains(&format!("boot kernel a={url}/other3 ||")), "{script}");
    }

    #[test]
    fn special_words_are_written_with_a_setting() {
        let script = written(0, "a || b #c; ; d  e");
        assert!(script.starts_with(
            "#!ipxe\nset blank:hex 20\nset hash:hex 23\nset pipe:hex 7c\nset semicolon:hex 3b\n"
        ));
        assert!(script.contains(
            "\nboot kernel a ${pipe:string}| b ${hash:string}c; ${semicolon:string} d \
             ${blank:string}e || goto no_boot\n"
        ));
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let expansion = |word: &str| Err(CmdlineError::Expansion(word.into()));
        assert_eq!(check_cmdline("a ${net0/mac} b"), expansion("${net0/mac}"));
        assert_eq!(check_cmdline("x=${${}"), expansion("x=${${}"));
        assert_eq!(check_cmdline("a\nb"), Err(CmdlineError::Control(10)));
        assert_eq!(check_cmdline("a\tb"), Err(CmdlineError::Control(9)));
        assert_eq!(check_cmdline("a\rb"), Err(CmdlineError::Control(13)));
        assert_eq!(check_cmdline("$a ${b c} }${ \\ é"), Ok(()));
    }

    /// What iPXE does with the `boot` line: words, terminator, expansion, joined by blanks.
    fn as_ipxe_reads(script: &str) -> String {
        let mut settings = HashMap::new();
        for line in script.lines().filter_map(|line| line.strip_prefix("set ")) {
            let (name, hex) = line.split_once(":hex ").unwrap();
            let octet = u8::from_str_radix(hex, 16).unwrap();
            settings.insert(format!("{name}:string"), char::from(octet).to_string());
        }
        let boot = script.lines().find(|line| line.starts_with("boot ")).unwrap();
        let words = boot.split([' ', '\t', '\r', '\x0b', '\x0c']).filter(|word| !word.is_empty());
        words
            .take_while(|word| !matches!(*word, "||" | "&&" | ";") && !word.starts_with('#'))
            .map(|word| expand(word, &settings))
            .skip(2)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The last `${` before the first `}` that follows one, replaced until there is none.
    fn expand(word: &str, settings: &HashMap<String, String>) -> String {
        let mut word = word.to_owned();
        while let Some(first) = word.find("${") {
            let Some(end) = word[first..].find('}').map(|end| first + end) else {
                break;
            };
            let start = word[..end].rfind("${").unwrap();
            let value = settings.get(&word[start + 2..end]).cloned().unwrap_or_default();
            word.replace_range(start..=end, &value);
        }
        word
    }

    proptest! {
        #[test]
        fn the_kernel_gets_exactly_the_command_line(cmdline in "[-ab#|&; ${}=\"\\\\é]{0,24}") {
            match script(&generation(0, &cmdline), "http://10.0.0.1:1", MAC) {
                Ok(script) => prop_assert_eq!(as_ipxe_reads(&script), cmdline.trim_matches(' ')),
                Err(error) => {
                    let expands = cmdline
                        .split(' ')
                        .any(|word| expand(word, &HashMap::new()) != word);
                    prop_assert!(expands, "refused for nothing: {}", error);
                }
            }
        }
    }
}
