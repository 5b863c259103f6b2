//! What is served: from a machine to what it boots ([`Source`]). What the user named is opened by
//! [`open`], once; recipes, an API and mirrors have files of their own.
//!
//! Trusts the user's own files; never writes them.

pub mod api;
pub mod cache;
mod directory;
mod efi;
mod file;
pub mod fresh;
pub mod kernel;
pub mod mirror;
pub mod netboot_ipxe;
mod open;
mod opener;
pub mod quick;
pub mod url;

use std::{fmt::Write as _, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt as _};

pub use self::{
    efi::{add_efi_image, efi_program},
    file::{OpenError, open_blob, read_head, text_blob},
    kernel::{HEAD, pe_machine},
    open::{Order, check_script, complete, open, open_script},
    opener::small_blob,
};
use crate::{
    event::Firmware,
    exit::{Code, Failure},
    image::Generation,
    mac::MacAddr,
};

/// Decides what each machine boots.
pub trait Source: Send + Sync {
    /// First path element of every machine's URLs.
    fn token(&self) -> &str;

    /// What `mac` says of itself, before [`Self::generation`] is asked about its DISCOVER: read out of
    /// it only for who wants to know.
    fn meet(&self, mac: MacAddr, traits: &dyn Fn() -> Traits) {
        let _ = (mac, traits);
    }

    /// What `mac` boots, now that it takes this step. May take as long as a network's answer does.
    fn generation(
        &self,
        mac: MacAddr,
        step: Step,
    ) -> BoxFuture<'_, Result<Arc<Generation>, Refusal>>;

    /// What `mac` boots, where that is known without asking anybody.
    fn known(&self, mac: MacAddr) -> Option<Arc<Generation>>;
}

/// What a machine says of itself when it asks for network boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traits {
    /// DHCP option 93.
    pub arch: u16,
    /// What asks.
    pub firmware: Firmware,
    /// DHCP option 97 in the usual form, as SMBIOS has it.
    pub uuid: Option<String>,
}

/// How far a machine is that [`Source::generation`] is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It asks for network boot.
    Discover,
    /// It fetches its script, or the EFI program that needs none.
    Script,
    /// It fetches a file that the script named.
    File,
}

/// Why there is nothing for a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// The same for every machine.
#[derive(Clone, Debug)]
pub struct Same(pub Arc<Generation>);

impl Source for Same {
    fn token(&self) -> &str {
        &self.0.token
    }

    fn generation(&self, _: MacAddr, _: Step) -> BoxFuture<'_, Result<Arc<Generation>, Refusal>> {
        std::future::ready(Ok(Arc::clone(&self.0))).boxed()
    }

    fn known(&self, _: MacAddr) -> Option<Arc<Generation>> {
        Some(Arc::clone(&self.0))
    }
}

/// 128 random bits as 32 hexadecimal digits.
pub(crate) fn token() -> Result<String, Failure> {
    let mut octets = [0; 16];
    let got = rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty());
    // Up to 256 octets come whole once the pool is seeded (getrandom(2)).
    if got != Ok(octets.len()) {
        return Err(Failure::new(Code::Internal, "the kernel gave no random numbers"));
    }
    Ok(octets.iter().fold(String::with_capacity(32), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    }))
}

/// What is opened, and what is refused in which words.
#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{open::CMDLINE_LIMIT, *};
    use crate::{
        image::{Blob, NoEfiImage, Payload, Script},
        template::Machine,
    };

    fn open(
        kernel: &Path,
        initrds: &[PathBuf],
        cmdline: Option<&str>,
    ) -> Result<Generation, Failure> {
        let order = Order {
            kernel: kernel.to_owned(),
            initrds: initrds.to_vec(),
            cmdline: cmdline.map(str::to_owned),
            ..Order::default()
        };
        super::open(&order).now_or_never().unwrap_or_else(|| panic!("waits for nothing"))
    }

    fn local(payload: &Payload) -> &Blob {
        let Payload::Local(blob) = payload else { panic!("{payload:?}") };
        blob
    }

    /// The first sector and setup header of a bzImage, as far as it is looked at.
    pub fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image
    }

    fn build(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    const SCRIPT: &[u8] =
        b"#!ipxe\nkernel bzImage init=/nix/store/x/init initrd=initrd loglevel=4 ${cmdline}\ninitrd initrd\nboot\n";

    #[test]
    fn a_nixos_build_directory_is_one_generation() {
        let build =
            build(&[("bzImage", &bzimage()), ("initrd", b"cpio"), ("netboot.ipxe", SCRIPT)]);
        let link = build.path().join("result");
        std::os::unix::fs::symlink(build.path(), &link).unwrap();
        let generation = open(&link, &[], Some(" console=ttyS0 ")).unwrap();
        assert_eq!(
            generation.cmdline.text(&Machine::at("")),
            "init=/nix/store/x/init loglevel=4 console=ttyS0"
        );
        let kernel = generation.kernel.as_ref().unwrap();
        assert_eq!((kernel.name(), kernel.length()), ("bzImage", Some(1024)));
        assert_eq!(generation.initrds.len(), 1);
        assert_eq!(generation.token.len(), 32);
        assert!(generation.token.bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert_ne!(generation.token, open(&link, &[], None).unwrap().token);
    }

    #[test]
    fn what_was_opened_stays_when_the_build_is_replaced() {
        let build = build(&[("k", &bzimage()), ("i", b"old")]);
        let initrd = build.path().join("i");
        let generation =
            open(&build.path().join("k"), std::slice::from_ref(&initrd), Some("a=b")).unwrap();
        std::fs::remove_file(&initrd).unwrap();
        std::fs::write(&initrd, b"new one").unwrap();
        assert_eq!(read_head(local(&generation.initrds[0]), 16).unwrap(), b"old");
    }

    #[test]
    fn each_fault_of_a_source_names_the_file_and_what_is_wrong() {
        let build =
            build(&[("k", &bzimage()), ("empty", b""), ("text", b"#!/bin/sh\n"), ("i", b"cpio")]);
        let at = |name: &str| build.path().join(name);
        let bare = tempfile::tempdir().unwrap();
        for (kernel, initrds, word) in [
            (at("missing"), vec![], "does not exist"),
            (at("empty"), vec![], "is empty"),
            (at("text"), vec![], "not a kernel"),
            (at("k"), vec![at("missing")], "does not exist"),
            (at("k"), vec![at("empty")], "is empty"),
            (at("k"), vec![bare.path().to_owned()], "is a directory"),
            (bare.path().to_owned(), vec![], "without a kernel"),
            (bare.path().to_owned(), vec![at("i")], "initrds were named"),
            (PathBuf::from("/dev/null"), vec![], "not a regular file"),
        ] {
            let failure = open(&kernel, &initrds, None).unwrap_err();
            assert_eq!(failure.code, 30, "{failure}");
            assert!(failure.message.contains(word), "{word}: {failure}");
        }
        let long = "x".repeat(CMDLINE_LIMIT);
        assert!(open(&at("k"), &[], Some(&long)).unwrap_err().message.contains("2047"));
        assert!(open(&at("k"), &[], Some(&long[1..])).is_ok());
    }

    #[test]
    fn section_1_4_id_opens_extra_files_once() {
        let build = build(&[("k", &bzimage()), ("seed", b"x"), ("key", b"y")]);
        let at = |name: &str| build.path().join(name).display().to_string();
        let text = format!(
            "a={{{{ ID \"{}\" }}}} b={{{{ID `{}`}}}} c={{{{ID `{0}`}}}}",
            at("seed"),
            at("key")
        );
        let generation = open(&build.path().join("k"), &[], Some(&text)).unwrap();
        let names: Vec<_> = generation.others.iter().map(Payload::name).collect();
        assert_eq!(names, ["seed", "key"]);
        assert_eq!(generation.cmdline.text(&Machine::at("u")), "a=u/other0 b=u/other1 c=u/other0");
        let missing =
            open(&build.path().join("k"), &[], Some("{{ ID \"/missing\" }}")).unwrap_err();
        assert!(missing.message.contains("the extra file /missing does not exist"), "{missing}");
        let wrong = open(&build.path().join("k"), &[], Some("{{ X }}")).unwrap_err();
        assert_eq!(wrong.code, 2, "{wrong}");
    }

    #[test]
    fn a_directory_without_script_needs_a_command_line() {
        let build = build(&[("Image", &bzimage()), ("initrd", b"cpio")]);
        assert!(open(build.path(), &[], None).unwrap_err().message.contains("netboot.ipxe"));
        assert_eq!(open(build.path(), &[], Some("init=/i")).unwrap().cmdline, "init=/i".into());
    }

    #[test]
    fn an_ipxe_script_is_a_source_with_files_and_a_command_line() {
        let build = build(&[
            ("k", &bzimage()),
            ("i", b"cpio"),
            ("own.ipxe", b"#!ipxe  \nkernel {{ ID \"FOLDER/k\" }} ${cmdline}\nboot\n"),
        ]);
        let at = |name: &str| build.path().join(name);
        let text = std::fs::read_to_string(at("own.ipxe")).unwrap();
        let text = text.replace("FOLDER", &build.path().display().to_string());
        std::fs::write(at("own.ipxe"), text).unwrap();
        let generation = open(&at("own.ipxe"), &[], Some("quiet")).unwrap();
        let Some(Script::Named(script)) = &generation.script else { panic!("{generation:?}") };
        assert_eq!(script.text(&Machine::at("u")), "kernel u/other0 ${cmdline}\nboot");
        assert_eq!(generation.cmdline, "quiet".into());
        assert_eq!(generation.files.len(), 2);
        assert!(!generation.is_followed());
        let beside = open(&at("own.ipxe"), &[at("i")], None).unwrap_err();
        assert!(beside.message.contains("initrds were named beside"), "{beside}");
        std::fs::write(at("bad.ipxe"), "#!ipxe\n{{ X }}").unwrap();
        assert_eq!(open(&at("bad.ipxe"), &[], None).unwrap_err().code, 2);
    }

    #[test]
    fn several_sources_are_a_menu_of_generations() {
        let build =
            build(&[("k", &bzimage()), ("own.ipxe", b"#!ipxe\nchain {{ ID \"FOLDER/k\" }}\n")]);
        let at = |name: &str| build.path().join(name);
        let text = std::fs::read_to_string(at("own.ipxe")).unwrap();
        let text = text.replace("FOLDER", &build.path().display().to_string());
        std::fs::write(at("own.ipxe"), text).unwrap();
        let open = |name: &str| {
            let order = Order {
                kernel: at("k"),
                cmdline: Some("quiet".to_owned()),
                menu: vec![(name.to_owned(), at("own.ipxe"))],
                ..Order::default()
            };
            super::open(&order).now_or_never().unwrap()
        };
        let whole = open("Another").unwrap();
        let names: Vec<_> = whole.menu.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["k", "Another"]);
        assert_eq!(whole.menu[0].generation.cmdline, "quiet".into());
        assert_eq!(whole.menu[1].generation.others.len(), 1);
        // A change of any of them is noticed.
        assert_eq!(whole.files.len(), 3);
        assert!(!whole.is_followed() && whole.kernel.is_none());
        assert_eq!(open("${net0/mac}").unwrap_err().code, 2);
    }

    #[test]
    fn each_source_of_a_menu_is_completed_and_its_fault_names_it() {
        let build = build(&[("k", &bzimage()), ("own.ipxe", b"#!ipxe\nshell\n")]);
        let at = |name: &str| build.path().join(name);
        let order = Order {
            kernel: at("k"),
            menu: vec![("Another".to_owned(), at("own.ipxe"))],
            ..Order::default()
        };
        let whole = super::open(&order).now_or_never().unwrap().unwrap();
        let completed = complete(whole.clone(), None, None).now_or_never().unwrap().unwrap();
        assert_eq!(completed.efi.as_ref().err(), Some(&NoEfiImage::Menu));
        let why = |number: usize| completed.menu[number].generation.efi.as_ref().err().cloned();
        assert_eq!((why(0), why(1)), (Some(NoEfiImage::Kernel), Some(NoEfiImage::Script)));
        assert_eq!(completed.programs().count(), 0);
    }

    #[test]
    fn what_is_known_of_a_machine_counts_as_long_as_it_can_become() {
        let build = build(&[("k", &bzimage())]);
        let cmdline = |length: usize| "x".repeat(length) + "{{ SERIAL }}";
        assert!(open(&build.path().join("k"), &[], Some(&cmdline(CMDLINE_LIMIT - 65))).is_ok());
        let failure = open(&build.path().join("k"), &[], Some(&cmdline(CMDLINE_LIMIT - 64)));
        assert!(failure.unwrap_err().message.contains("2047"));
    }
}
