//! From paths to a [`Generation`]: what is served is opened here, once, and checked.
//!
//! Guarantees: when [`open`] returns, every file was readable, not empty, and what it should be;
//! nothing has been asked of anybody. Trusts the user's own files; never writes.

mod efi;
mod file;
mod kernel;
mod netboot_ipxe;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

pub use efi::add_efi_image;
pub use file::{OpenError, open_blob, read_head, text_blob};
pub use kernel::pe_machine;

use crate::{
    exit::{Code, Failure},
    image::{Blob, Generation, NoEfiImage},
};

/// Longest command line that the kernel takes (`COMMAND_LINE_SIZE` of x86 and arm64, with its NUL).
const CMDLINE_LIMIT: usize = 2048;
/// A netboot.ipxe is a few lines; more than this is something else.
const SCRIPT_LIMIT: u64 = 64 * 1024;

/// Opens what is to be served; [`add_efi_image`] completes it.
///
/// # Errors
/// A [`Failure`] with [`Code::Source`] that names the file.
pub fn open(
    kernel: &Path,
    initrds: &[PathBuf],
    cmdline: Option<&str>,
) -> Result<Generation, Failure> {
    let (kernel, initrds, cmdline) = if kernel.is_dir() {
        if !initrds.is_empty() {
            return Err(Failure::new(
                Code::Source,
                format!("{} is a directory, and initrds were named beside it", kernel.display()),
            )
            .advise("name the directory alone, or the kernel file and its initrds"));
        }
        directory(kernel, cmdline)?
    } else {
        (open_kernel(kernel)?, open_all(initrds)?, cmdline.unwrap_or_default().trim().to_owned())
    };
    if cmdline.len() >= CMDLINE_LIMIT {
        return Err(Failure::new(
            Code::Source,
            format!(
                "the command line is {} characters long, and Linux takes at most {}",
                cmdline.len(),
                CMDLINE_LIMIT - 1
            ),
        ));
    }
    Ok(Generation { token: token()?, kernel, initrds, cmdline, efi: Err(NoEfiImage::Kernel) })
}

/// A NixOS netboot build: `<kernel target>`, `initrd`, `netboot.ipxe`
/// (nixpkgs, nixos/release.nix, job `netboot`).
fn directory(directory: &Path, extra: Option<&str>) -> Result<(Blob, Vec<Blob>, String), Failure> {
    let Some(kernel) = ["bzImage", "Image"]
        .map(|name| directory.join(name))
        .into_iter()
        .find(|path| path.exists())
    else {
        return Err(Failure::new(
            Code::Source,
            format!(
                "{} is a directory without a kernel (bzImage or Image) in it",
                directory.display()
            ),
        )
        .advise(
            "give the directory of a NixOS netboot build, or the kernel file and its initrds",
        ));
    };
    let kernel = open_kernel(&kernel)?;
    let initrd = open_blob(&directory.join("initrd")).map_err(|error| error.failure("initrd"))?;
    let script = directory.join("netboot.ipxe");
    let extra = extra.map(str::trim).filter(|text| !text.is_empty());
    let own = match (script.exists(), extra) {
        (true, _) => Some(read_script(&script)?),
        (false, Some(_)) => None,
        (false, None) => {
            return Err(Failure::new(
                Code::Source,
                format!(
                    "{} does not exist, so the kernel's command line is not known",
                    script.display()
                ),
            )
            .advise("build netboot.ipxe too (config.system.build.netbootIpxeScript)")
            .advise(
                "or give the command line: --cmdline \"init=/nix/store/...-nixos-system/init\"",
            ));
        }
    };
    let cmdline = own.as_deref().into_iter().chain(extra).collect::<Vec<_>>().join(" ");
    Ok((kernel, vec![initrd], cmdline))
}

fn read_script(path: &Path) -> Result<String, Failure> {
    let fault = |what: String| Failure::new(Code::Source, format!("{}: {what}", path.display()));
    let blob = open_blob(path).map_err(|error| error.failure("script"))?;
    if blob.length > SCRIPT_LIMIT {
        return Err(fault(format!("larger than {SCRIPT_LIMIT} octets: that is no netboot.ipxe")));
    }
    let text = read_head(&blob, SCRIPT_LIMIT).map_err(|error| fault(error.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| fault("not a text".to_owned()))?;
    netboot_ipxe::cmdline(&text).map_err(|error| {
        fault(error.to_string()).advise("or name the kernel, the initrd and --cmdline yourself")
    })
}

fn open_kernel(path: &Path) -> Result<Blob, Failure> {
    let blob = open_blob(path).map_err(|error| error.failure("kernel"))?;
    let head = read_head(&blob, kernel::HEAD)
        .map_err(|error| Failure::new(Code::Source, format!("{}: {error}", path.display())))?;
    if kernel::is_kernel(&head) {
        Ok(blob)
    } else {
        Err(Failure::new(
            Code::Source,
            format!("{} is not a kernel that a machine could boot", path.display()),
        )
        .advise("a Linux kernel for this is a file named bzImage, Image or vmlinuz-..., not vmlinux, an ISO or an initrd")
        .advise("kernel first, then the initrds: portcullis boot KERNEL INITRD"))
    }
}

fn open_all(paths: &[PathBuf]) -> Result<Vec<Blob>, Failure> {
    paths.iter().map(|path| open_blob(path).map_err(|error| error.failure("initrd"))).collect()
}

/// 128 random bits as 32 hexadecimal digits.
fn token() -> Result<String, Failure> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(generation.cmdline, "init=/nix/store/x/init loglevel=4 console=ttyS0");
        assert_eq!((generation.kernel.name.as_str(), generation.kernel.length), ("bzImage", 1024));
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
        assert_eq!(read_head(&generation.initrds[0], 16).unwrap(), b"old");
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
    fn a_directory_without_script_needs_a_command_line() {
        let build = build(&[("Image", &bzimage()), ("initrd", b"cpio")]);
        assert!(open(build.path(), &[], None).unwrap_err().message.contains("netboot.ipxe"));
        assert_eq!(open(build.path(), &[], Some("init=/i")).unwrap().cmdline, "init=/i");
    }
}
