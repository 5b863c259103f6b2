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

use std::{
    fmt::Write as _,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::{
    image::{Generation, MENU_SECONDS, MenuItem, Payload, Script, menu_folder},
    mac::MacAddr,
    source::mirror,
    template::Machine,
};

/// Milliseconds without an octet after which iPXE leaves a mirror for the next one (ipxe:
/// src/core/monojob.c `monojob_wait`): longer than a server's disk takes to wake up.
const MIRROR_STALL: u32 = 20_000;

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

/// The script for a machine, the same for BIOS and UEFI.
///
/// # Errors
/// The command line cannot be written in a script.
pub fn script(generation: &Generation, machine: &Machine) -> Result<String, CmdlineError> {
    let url = &machine.url;
    if !generation.menu.is_empty() {
        return menu(&generation.menu, url);
    }
    let cmdline = quote(&generation.cmdline.text(machine))?;
    match &generation.script {
        Some(Script::AsItIs(script)) => return Ok(script.text(machine)),
        Some(Script::Named(script)) => {
            return Ok(named(&cmdline, machine) + &script.text(machine) + "\n");
        }
        None => {}
    }
    let mirrors = spread(&generation.mirrors, machine.mac);
    // One line: fetched from the first that has all of it.
    let fetch = |command: &str, payload: Option<&Payload>, name: &str| {
        let mut line = String::new();
        for base in &mirrors {
            let address = mirror::address(base, payload.map_or(name, Payload::name));
            let _ = write!(line, "{command} --timeout {MIRROR_STALL} --name {name} {address} || ");
        }
        let last = payload.and_then(Payload::elsewhere).unwrap_or_else(|| format!("{url}/{name}"));
        line + &format!("{command} --name {name} {last}")
    };
    // A message that cannot be written is no reason not to boot.
    let message = generation.message.as_deref().and_then(|text| quote(text).ok());
    let message = message.unwrap_or_default();
    let mut script = head(&[&cmdline, &message]);
    if !message.is_empty() {
        // After a word of ours, for a message may begin with a hyphen.
        let _ = writeln!(script, "echo Portcullis: {message}");
    }
    let kernel = fetch("kernel", generation.kernel.as_ref(), "kernel");
    let _ = writeln!(script, "{kernel} || goto no_kernel");
    let mut arguments = String::from("kernel");
    for (number, initrd) in generation.initrds.iter().enumerate() {
        let initrd = fetch("initrd", Some(initrd), &format!("initrd{number}"));
        let _ = writeln!(script, "{initrd} || goto no_initrd");
        let _ = write!(arguments, " initrd=initrd{number}");
    }
    if !cmdline.is_empty() {
        let _ = write!(arguments, " {cmdline}");
    }
    let _ = writeln!(script, "boot {arguments} || goto no_boot");
    script.push_str(FAILURES);
    Ok(script)
}

/// A menu, whose choice is an item's own script. The first one is taken when nobody touches a key.
fn menu(items: &[MenuItem], url: &str) -> Result<String, CmdlineError> {
    let names = items.iter().map(|item| quote(&item.name)).collect::<Result<Vec<_>, _>>()?;
    let mut script = head(&names.iter().map(String::as_str).collect::<Vec<_>>());
    script.push_str("menu Portcullis: what shall this machine boot?\n");
    let folders: Vec<_> = (0..items.len()).map(menu_folder).collect();
    for (folder, name) in folders.iter().zip(&names) {
        // The name stands behind a word of ours, for it may begin with a hyphen.
        let _ = writeln!(script, "item {folder} {name}");
    }
    let _ = write!(
        script,
        "choose --timeout {MENU_SECONDS}000 portcullis-choice || exit 1\n\
         chain --replace {url}/${{portcullis-choice}}/boot.ipxe || goto no_script\n\
         :no_script\n\
         echo Portcullis: that could not be fetched. Is portcullis still running?\n\
         prompt --timeout 300000 Press a key to go on with the next boot device. || exit 1\n\
         exit 1\n"
    );
    Ok(script)
}

/// The mirrors in the order in which this machine tries them: the same at every boot, and another one
/// first for other machines.
fn spread(mirrors: &[String], mac: MacAddr) -> Vec<&String> {
    let mut hasher = DefaultHasher::new();
    mac.0.hash(&mut hasher);
    let count = u64::try_from(mirrors.len()).unwrap_or(u64::MAX).max(1);
    let first = usize::try_from(hasher.finish() % count).unwrap_or_default();
    mirrors.iter().cycle().skip(first).take(mirrors.len()).collect()
}

/// The first line, and the settings that quoted texts refer to.
fn head(quoted: &[&str]) -> String {
    let mut script = String::from("#!ipxe\n");
    for (name, character) in ESCAPES {
        if quoted.iter().any(|text| text.contains(&reference(name))) {
            // Writing to a String cannot fail.
            let _ = writeln!(script, "set {name}:hex {:02x}", u32::from(character));
        }
    }
    script
}

/// What stands before a script of the user's: the settings that it may use. A `dhcp` in it is
/// answered as to ours. `cmdline` is what the scripts of NixOS' netboot builds leave room for.
fn named(cmdline: &str, machine: &Machine) -> String {
    let mut script = head(&[cmdline]);
    let _ = writeln!(script, "set user-class portcullis");
    let _ = writeln!(script, "set portcullis-url {}", machine.url);
    if !cmdline.is_empty() {
        let _ = writeln!(script, "set cmdline {cmdline}");
    }
    script
}

/// The script that makes iPXE tell what only it knows of its machine, and then go on with `url`, that
/// of the script proper. `hexraw` writes each octet as two digits (ipxe: src/core/settings.c
/// `format_hexraw_setting`), so that no value means anything in a script or an address: `uristring`
/// leaves quotation marks as they are in iPXE of 2019. Whatever arrives is made harmless here.
#[must_use]
pub fn introduction(url: &str) -> String {
    format!(
        "#!ipxe\n\
         chain --replace {url}?uuid=${{uuid}}&serial=${{serial:hexraw}}&hostname=${{hostname:hexraw}} || exit 1\n"
    )
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
mod reader;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::{
        reader::{as_ipxe_reads, expand},
        *,
    };
    use crate::{
        image::{Blob, Remote},
        read::Content,
        template::{Identity, Said, Template},
    };

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

    fn machine(generation: &Generation, base: &str) -> Machine {
        Machine { mac: MAC, ..Machine::at(&machine_url(generation, base, MAC)) }
    }

    fn script(generation: &Generation, base: &str) -> Result<String, CmdlineError> {
        super::script(generation, &machine(generation, base))
    }

    fn written(initrds: usize, cmdline: &str) -> String {
        script(&generation(initrds, cmdline), "http://10.0.0.1:64172").unwrap()
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
    fn mirrors_are_tried_before_ourselves_and_spread_over_the_machines() {
        let mut generation = generation(1, "");
        generation.mirrors = vec!["http://a/x".into(), "https://b".into(), "http://c:8".into()];
        let mut first = std::collections::BTreeSet::new();
        for last in 0..64 {
            let mac = MacAddr([2, 0, 0, 0, 0, last]);
            let url = machine_url(&generation, "http://h:1", mac);
            let machine = Machine { mac, ..Machine::at(&url) };
            let text = super::script(&generation, &machine).unwrap();
            assert_eq!(text, super::script(&generation, &machine).unwrap());
            let order = |command: &str| {
                let line = text.lines().find(|line| line.starts_with(command)).unwrap();
                let mut tries: Vec<String> = line.split(" || ").map(str::to_owned).collect();
                assert!(tries.pop().unwrap().starts_with("goto no_"));
                let ours = tries.pop().unwrap();
                assert!(ours.ends_with(&format!(
                    " {url}/{}",
                    if command == "kernel" { "kernel" } else { "initrd0" }
                )));
                assert!(!ours.contains("--timeout"), "an iPXE without that option comes to us");
                tries
            };
            let (kernel, initrd) = (order("kernel"), order("initrd"));
            assert_eq!(kernel.len(), 3);
            for (kernel, initrd) in kernel.iter().zip(&initrd) {
                let (command, address) = kernel.rsplit_once(' ').unwrap();
                assert_eq!(command, "kernel --timeout 20000 --name kernel");
                assert_eq!(*initrd, format!("initrd --timeout 20000 --name initrd0 {address}"));
            }
            first.insert(kernel[0].clone());
        }
        assert_eq!(first.len(), 3, "{first:?}");
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
        let script = script(&generation, "http://10.0.0.1:64172").unwrap();
        assert!(script.starts_with("#!ipxe\nset hash:hex 23\nset pipe:hex 7c\necho Portcullis: -n hello ${pipe:string}| ${hash:string}1\nkernel "), "{script}");
        generation.message = Some("two\nlines".into());
        assert!(
            !super::script(&generation, &machine(&generation, "http://h:1"))
                .unwrap()
                .contains("\necho Portcullis: two")
        );
    }

    #[test]
    fn section_7_ipxe_script_is_used_verbatim() {
        let mut generation = generation(1, "");
        generation.script = Some(Script::AsItIs("#!ipxe\nchain ${x} || shell\n".into()));
        assert_eq!(script(&generation, "http://h:1").unwrap(), "#!ipxe\nchain ${x} || shell\n");
    }

    #[test]
    fn a_script_of_the_users_follows_a_head_with_what_it_may_use() {
        let mut generation = generation(0, "a || {{b");
        generation.script = Some(Script::Named("chain ${portcullis-url}/other0".into()));
        assert_eq!(
            script(&generation, "http://h:1").unwrap(),
            "#!ipxe\nset pipe:hex 7c\nset user-class portcullis\n\
             set portcullis-url http://h:1/0123456789abcdef0123456789abcdef/52-54-00-12-34-fe\n\
             set cmdline a ${pipe:string}| {{b\n\
             chain ${portcullis-url}/other0\n"
        );
    }

    #[test]
    fn what_machines_fetch_elsewhere_is_named_by_its_own_address() {
        let mut generation = generation(2, "");
        let remote = |address: &'static str| Remote {
            name: String::new(),
            address: http::Uri::from_static(address),
            facts: Default::default(),
            direct: true,
            cache: Default::default(),
        };
        generation.kernel = Some(remote("https://o/k?a=1&b").into());
        generation.initrds[1] = remote("http://o/i").into();
        assert!(!generation.is_followed());
        let script = script(&generation, "http://h:1").unwrap();
        assert!(script.contains("\nkernel --name kernel https://o/k?a=1&b || goto"), "{script}");
        assert!(script.contains("\ninitrd --name initrd0 http://h:1/"), "{script}");
        assert!(script.contains("\ninitrd --name initrd1 http://o/i || goto"), "{script}");
    }

    #[test]
    fn a_menu_names_its_items_and_leads_to_the_script_of_the_one_that_is_chosen() {
        let item = |name: &str| MenuItem {
            name: name.into(),
            generation: std::sync::Arc::new(generation(0, "")),
        };
        let mut menu = generation(0, "");
        menu.menu = vec![item("NixOS"), item("-x # || shell")];
        assert_eq!(
            script(&menu, "http://h:1").unwrap(),
            "#!ipxe\nset hash:hex 23\nset pipe:hex 7c\n\
             menu Portcullis: what shall this machine boot?\n\
             item menu0 NixOS\n\
             item menu1 -x ${hash:string} ${pipe:string}| shell\n\
             choose --timeout 30000 portcullis-choice || exit 1\n\
             chain --replace http://h:1/0123456789abcdef0123456789abcdef/52-54-00-12-34-fe/\
             ${portcullis-choice}/boot.ipxe || goto no_script\n\
             :no_script\n\
             echo Portcullis: that could not be fetched. Is portcullis still running?\n\
             prompt --timeout 300000 Press a key to go on with the next boot device. || exit 1\n\
             exit 1\n"
        );
        menu.menu.push(item("${net0/mac}"));
        assert_eq!(script(&menu, "http://h:1"), Err(CmdlineError::Expansion("${net0/mac}".into())));
    }

    #[test]
    fn ipxe_is_asked_for_what_only_it_knows() {
        assert_eq!(
            introduction("http://h:1/t/m/boot.ipxe"),
            "#!ipxe\nchain --replace http://h:1/t/m/boot.ipxe?uuid=${uuid}\
             &serial=${serial:hexraw}&hostname=${hostname:hexraw} || exit 1\n"
        );
    }

    #[test]
    fn addresses_of_extra_files_are_each_machines_own() {
        let mut generation = generation(0, "");
        generation.cmdline = Template::parse("a={{ ID \"f\" }}", "ID", |_| 3).unwrap();
        let script = script(&generation, "http://h:1").unwrap();
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

    proptest! {
        #[test]
        fn the_kernel_gets_exactly_the_command_line(cmdline in "[-ab#|&; ${}=\"\\\\é]{0,24}") {
            match script(&generation(0, &cmdline), "http://10.0.0.1:1") {
                Ok(script) => {
                    let read = as_ipxe_reads(&script);
                    let expected = format!("kernel {}", cmdline.trim_matches(' '));
                    prop_assert_eq!(read, expected.trim_end_matches(' '));
                }
                Err(error) => {
                    let expands = cmdline
                        .split(' ')
                        .any(|word| expand(word, &HashMap::new()) != word);
                    prop_assert!(expands, "refused for nothing: {}", error);
                }
            }
        }

        /// What a machine says of itself stays within its word, whatever it is.
        #[test]
        fn a_machine_cannot_add_to_its_script(
            serial in proptest::collection::vec(any::<u8>(), 0..80),
            hostname in "[-ab#|&; ${}=\"\\\\é\n\r]{0,24}",
            uuid in any::<[u8; 16]>(),
        ) {
            let text = "s={{ SERIAL }} h={{ HOSTNAME }} u={{ UUID }} end";
            let cmdline = Template::parse(text, "ID", |_| 0).unwrap();
            let generation = Generation { cmdline, ..generation(0, "") };
            let identity = Identity {
                serial: Said::new(&serial),
                hostname: Said::new(hostname.as_bytes()),
                uuid: Said::new(&uuid),
                arch: Said::default(),
            };
            let url = machine_url(&generation, "http://h", MAC);
            let script = super::script(&generation, &Machine { url, mac: MAC, identity }).unwrap();
            let plain = written(0, "s= h= u= end");
            prop_assert_eq!(script.lines().count(), plain.lines().count());
            prop_assert!(!script.contains("${"), "nothing had to be quoted");
            let read = as_ipxe_reads(&script);
            let words: Vec<&str> = read.split(' ').collect();
            let ["kernel", s, h, u, "end"] = words.as_slice() else { panic!("{words:?}") };
            let word = |word: &str| {
                word.bytes().all(|o| o.is_ascii_alphanumeric() || b".-_:=".contains(&o))
            };
            prop_assert!(s.starts_with("s=") && h.starts_with("h=") && u.starts_with("u="));
            prop_assert!(word(s) && word(h) && word(u), "{}", read);
        }
    }
}
