//! Where iPXE is on this system.
//!
//! Guarantees: every loader was opened once, is not empty, and a UEFI one is a program for x64
//! machines. Trusts the system's directories and those that the user names.

use std::path::{Path, PathBuf};

use crate::{
    dhcp::table,
    exit::{Code, Failure},
    image::{Blob, EfiImage, Loader, Loaders, NoEfiImage},
    source::{is_x64_efi, open_blob, read_head},
};

/// Directory that the package fixed when it was built (NixOS: that of pkgs.ipxe).
const BUILT_IN: Option<&str> = option_env!("PORTCULLIS_IPXE_DIR");
/// Directories of distributions: NixOS' system profile; Arch, Fedora; Debian, Ubuntu.
const SYSTEM: [&str; 3] = ["/run/current-system/sw/share/ipxe", "/usr/share/ipxe", "/usr/lib/ipxe"];
/// What is looked for.
const ALL: [Loader; 4] = [Loader::Undionly, Loader::IpxePxe, Loader::SnponlyX64, Loader::IpxeX64];

/// What the user said about loaders.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Looked into first.
    pub directory: Option<PathBuf>,
    /// Takes the place of `undionly.kpxe`.
    pub bios: Option<PathBuf>,
    /// Takes the place of `ipxe.pxe`.
    pub ipxe: Option<PathBuf>,
    /// Takes the place of both UEFI loaders.
    pub efi64: Option<PathBuf>,
    /// None at all will do as well, because there are machines that need none.
    pub optional: bool,
}

/// Finds the loaders.
///
/// # Errors
/// [`Code::NoLoader`]: none was found and one is needed, or a file that the user named will not do.
pub fn find(wishes: &Wishes) -> Result<Loaders, Failure> {
    let directories: Vec<&Path> = wishes
        .directory
        .as_deref()
        .into_iter()
        .chain(BUILT_IN.map(Path::new))
        .chain(SYSTEM.map(Path::new))
        .collect();
    find_in(wishes, &directories)
}

fn find_in(wishes: &Wishes, directories: &[&Path]) -> Result<Loaders, Failure> {
    let mut loaders = Loaders::default();
    if let Some(directory) = &wishes.directory
        && !directory.is_dir()
    {
        let text = format!("--ipxe-dir {} is not a directory", directory.display());
        return Err(Failure::new(Code::NoLoader, text));
    }
    for loader in ALL {
        let named = match loader {
            Loader::Undionly => &wishes.bios,
            Loader::IpxePxe => &wishes.ipxe,
            Loader::SnponlyX64 | Loader::IpxeX64 => &wishes.efi64,
            // Made with the generation, and none of `ALL`.
            Loader::Image => &None,
        };
        let blob = match named {
            Some(path) => {
                Some(open(loader, path).map_err(|text| Failure::new(Code::NoLoader, text))?)
            }
            None => directories
                .iter()
                .find_map(|directory| open(loader, &directory.join(loader.file_name())).ok()),
        };
        if let Some(blob) = blob {
            loaders.0.insert(loader, blob);
        }
    }
    if loaders.0.is_empty() && !wishes.optional {
        let searched: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::new(
            Code::NoLoader,
            format!("the boot loader iPXE was not found; looked into {}", searched.join(", ")),
        )
        .advise("Debian, Ubuntu: apt install ipxe")
        .advise("NixOS: environment.systemPackages = [ pkgs.ipxe ], or --ipxe-dir $(nix build --print-out-paths nixpkgs#ipxe)")
        .advise("elsewhere: --ipxe-dir DIR with undionly.kpxe (BIOS) and snponly.efi or ipxe.efi (UEFI) in it"));
    }
    Ok(loaders)
}

fn open(loader: Loader, path: &Path) -> Result<Blob, String> {
    let blob = open_blob(path).map_err(|error| error.failure("boot loader").message)?;
    let efi = matches!(loader, Loader::SnponlyX64 | Loader::IpxeX64);
    let head = read_head(&blob, 4096).map_err(|error| format!("{}: {error}", path.display()))?;
    if efi && !is_x64_efi(&head) {
        return Err(format!("{} is not a UEFI program for 64-bit PCs (x64)", path.display()));
    }
    if !efi && is_x64_efi(&head) {
        return Err(format!(
            "{} is a UEFI program, and BIOS machines cannot run it",
            path.display()
        ));
    }
    Ok(blob)
}

/// Machines that can be served with these loaders and this image, and those that cannot, with why.
#[must_use]
pub fn coverage(
    loaders: &Loaders,
    efi: &Result<EfiImage, NoEfiImage>,
) -> (Vec<&'static str>, Vec<String>) {
    let has = |loader| loaders.0.contains_key(&loader);
    let x64 = efi.as_ref().is_ok_and(|image| table::pe_machine(7) == Some(image.machine));
    let named = efi.as_ref().is_ok_and(|image| image.named);
    let missing = if named {
        "what is served does not run there".to_owned()
    } else {
        "no iPXE for them was found (see --ipxe-dir)".to_owned()
    };
    let no_http = efi.as_ref().err().map_or_else(|| missing.clone(), ToString::to_string);
    let mut can = Vec::new();
    let mut cannot = Vec::new();
    for (machines, served, why) in [
        ("BIOS PCs", has(Loader::Undionly) || has(Loader::IpxePxe), &missing),
        ("64-bit UEFI PCs", has(Loader::SnponlyX64) || has(Loader::IpxeX64) || x64, &missing),
        ("UEFI HTTP boot", efi.is_ok(), &no_http),
    ] {
        if served {
            can.push(machines);
        } else {
            cannot.push(format!("{machines}: {why}"));
        }
    }
    (can, cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn efi(machine: u16) -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..2].copy_from_slice(b"MZ");
        head[0x3c] = 0x80;
        head[0x80..0x84].copy_from_slice(b"PE\0\0");
        head[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
        head
    }

    fn names(loaders: &Loaders) -> Vec<&str> {
        loaders.0.keys().map(|loader| loader.file_name()).collect()
    }

    #[test]
    fn the_first_directory_wins_and_what_will_not_do_is_passed_over() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(first.path().join("undionly.kpxe"), b"first").unwrap();
        std::fs::write(first.path().join("ipxe.efi"), efi(0xaa64)).unwrap();
        std::fs::write(second.path().join("undionly.kpxe"), b"second!").unwrap();
        std::fs::write(second.path().join("ipxe.efi"), efi(0x8664)).unwrap();
        std::fs::write(second.path().join("snponly.efi"), b"").unwrap();
        let loaders = find_in(&Wishes::default(), &[first.path(), second.path()]).unwrap();
        assert_eq!(names(&loaders), ["undionly.kpxe", "ipxe.efi"]);
        assert_eq!(loaders.0[&Loader::Undionly].length, 5);
        assert_eq!(loaders.0[&Loader::IpxeX64].length, 512);
    }

    #[test]
    fn none_says_what_to_install_and_some_says_what_is_missing() {
        let empty = tempfile::tempdir().unwrap();
        let failure = find_in(&Wishes::default(), &[empty.path()]).unwrap_err();
        assert_eq!(failure.code, 31);
        let advice = failure.advice.join("\n");
        assert!(
            ["apt install ipxe", "pkgs.ipxe", "--ipxe-dir"]
                .iter()
                .all(|word| advice.contains(word))
        );
        std::fs::write(empty.path().join("ipxe.efi"), efi(0x8664)).unwrap();
        let loaders = find_in(&Wishes::default(), &[empty.path()]).unwrap();
        let (can, cannot) = coverage(&loaders, &Err(NoEfiImage::Kernel));
        assert_eq!(can, ["64-bit UEFI PCs"]);
        assert_eq!(
            cannot,
            [
                "BIOS PCs: no iPXE for them was found (see --ipxe-dir)",
                "UEFI HTTP boot: the kernel is not an EFI program (it needs CONFIG_EFI_STUB)",
            ]
        );
    }

    #[test]
    fn with_an_efi_image_none_is_needed() {
        let empty = tempfile::tempdir().unwrap();
        let optional = Wishes { optional: true, ..Wishes::default() };
        let loaders = find_in(&optional, &[empty.path()]).unwrap();
        let image = |machine, named| {
            let path = empty.path().join("image");
            std::fs::write(&path, efi(machine)).unwrap();
            Ok(EfiImage { blob: open_blob(&path).unwrap(), machine, named })
        };
        let (can, cannot) = coverage(&loaders, &image(0x8664, false));
        assert_eq!(can, ["64-bit UEFI PCs", "UEFI HTTP boot"]);
        assert_eq!(cannot, ["BIOS PCs: no iPXE for them was found (see --ipxe-dir)"]);
        let (can, cannot) = coverage(&loaders, &image(0xaa64, true));
        assert_eq!(can, ["UEFI HTTP boot"]);
        assert_eq!(
            cannot,
            [
                "BIOS PCs: what is served does not run there",
                "64-bit UEFI PCs: what is served does not run there",
            ]
        );
    }

    #[test]
    fn a_named_file_that_will_not_do_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (bios, uefi) = (directory.path().join("b"), directory.path().join("u"));
        std::fs::write(&bios, b"x86 code").unwrap();
        std::fs::write(&uefi, efi(0x8664)).unwrap();
        let wish = |bios: Option<&PathBuf>, efi64: Option<&PathBuf>| Wishes {
            bios: bios.cloned(),
            efi64: efi64.cloned(),
            ..Wishes::default()
        };
        assert!(find_in(&wish(Some(&bios), Some(&uefi)), &[]).is_ok());
        assert_eq!(find_in(&wish(Some(&uefi), None), &[]).unwrap_err().code, 31);
        assert_eq!(find_in(&wish(None, Some(&bios)), &[]).unwrap_err().code, 31);
        let missing = directory.path().join("none");
        assert_eq!(find_in(&wish(Some(&missing), None), &[]).unwrap_err().code, 31);
    }
}
