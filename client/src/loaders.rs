//! Where iPXE is on this system.
//!
//! Guarantees: every loader was opened once, is not empty, and a UEFI one is a program for the
//! machines that it is offered to, whoever named it. Trusts the system's directories and those that the
//! user names, and the file that the user names for an architecture without UEFI (`--loader`).

use std::path::{Path, PathBuf};

use crate::{
    dhcp::{
        Client,
        table::{self, architecture_name, cpu, row},
    },
    exit::{Code, Failure},
    image::{Blob, Cpu, EfiImage, Loader, Loaders, NoEfiImage},
    source::{self, open_blob, pe_machine, read_head},
};

/// Directory that the package fixed when it was built (NixOS: that of pkgs.ipxe).
const BUILT_IN: Option<&str> = option_env!("PORTCULLIS_IPXE_DIR");
/// Directories of distributions: NixOS' system profile; Arch, Fedora; Debian, Ubuntu.
const SYSTEM: [&str; 3] = ["/run/current-system/sw/share/ipxe", "/usr/share/ipxe", "/usr/lib/ipxe"];

/// What the user said about loaders.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Looked into first.
    pub directory: Option<PathBuf>,
    /// Takes the place of `undionly.kpxe`.
    pub bios: Option<PathBuf>,
    /// Takes the place of `ipxe.pxe`.
    pub ipxe: Option<PathBuf>,
    /// Takes the place of both loaders for 64-bit UEFI PCs.
    pub efi64: Option<PathBuf>,
    /// Takes the place of both loaders for 32-bit UEFI PCs.
    pub efi32: Option<PathBuf>,
    /// For an architecture (DHCP option 93), whatever it is.
    pub given: Vec<(u16, PathBuf)>,
    /// None at all will do as well, because there are machines that need none.
    pub optional: bool,
}

impl Wishes {
    fn named(&self, loader: Loader) -> Option<&PathBuf> {
        match loader {
            Loader::Undionly => self.bios.as_ref(),
            Loader::IpxePxe => self.ipxe.as_ref(),
            Loader::Snponly(Cpu::X64) | Loader::Ipxe(Cpu::X64) => self.efi64.as_ref(),
            Loader::Snponly(Cpu::Ia32) | Loader::Ipxe(Cpu::Ia32) => self.efi32.as_ref(),
            // The image is made with the generation; the folder is opened by itself.
            Loader::Snponly(_)
            | Loader::Ipxe(_)
            | Loader::Image
            | Loader::Whole(_)
            | Loader::Folder => None,
            // The last one counts, as with other flags.
            Loader::Given(arch) => {
                self.given.iter().rev().find(|(given, _)| *given == arch).map(|(_, path)| path)
            }
        }
    }
}

/// What is looked for.
fn wanted(wishes: &Wishes) -> impl Iterator<Item = Loader> {
    let uefi = Cpu::ALL.into_iter().flat_map(|cpu| [Loader::Snponly(cpu), Loader::Ipxe(cpu)]);
    let given = wishes.given.iter().map(|(arch, _)| Loader::Given(*arch));
    [Loader::Undionly, Loader::IpxePxe].into_iter().chain(uefi).chain(given)
}

/// Where a loader may stand below a directory, the plainest name first. A plain `snponly.efi` counts
/// for the processor that it is made for: packages of other processors use that name, too.
fn places(loader: Loader) -> Vec<String> {
    let (stem, cpu) = match loader {
        Loader::Snponly(cpu) => ("snponly", cpu),
        Loader::Ipxe(cpu) => ("ipxe", cpu),
        Loader::Undionly
        | Loader::IpxePxe
        | Loader::Given(_)
        | Loader::Whole(_)
        | Loader::Image
        | Loader::Folder => {
            return vec![loader.file_name().into_owned()];
        }
    };
    let cpu = cpu.name();
    vec![
        format!("{stem}.efi"),
        format!("{cpu}/{stem}.efi"),
        // iPXE's own build and site; Fedora.
        format!("bin-{cpu}-efi/{stem}.efi"),
        format!("{cpu}-efi/{stem}.efi"),
        format!("{stem}-{cpu}.efi"),
        format!("ipxe-{stem}-{cpu}.efi"),
    ]
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
    for loader in wanted(wishes) {
        let blob = match wishes.named(loader) {
            Some(path) => {
                Some(open(loader, path).map_err(|text| Failure::new(Code::NoLoader, text))?)
            }
            None => directories
                .iter()
                .flat_map(|directory| places(loader).into_iter().map(|name| directory.join(name)))
                .find_map(|path| open(loader, &path).ok()),
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

/// Adds what machines are given for which no iPXE was found ([`crate::image::Generation::instead`]).
/// Returns what could not be had, in words.
pub async fn add_instead(loaders: &mut Loaders, instead: &[(u16, PathBuf)]) -> Vec<String> {
    let mut missing = Vec::new();
    for (arch, place) in instead {
        let usual = row(*arch).map_or(&[][..], |row| row.loaders);
        if usual.iter().any(|loader| loaders.0.contains_key(loader)) {
            continue;
        }
        let loader = Loader::Whole(*arch);
        let found = source::small_blob(place, PROGRAM_LIMIT).await;
        match found.and_then(|blob| checked(loader, blob, place)) {
            Ok(blob) => drop(loaders.0.insert(loader, blob)),
            Err(text) => missing.push(format!("{}: {text}", architecture_name(*arch))),
        }
    }
    missing
}

/// netboot.xyz' largest has 1.2 MiB; this stays in memory.
const PROGRAM_LIMIT: usize = 16 << 20;

fn open(loader: Loader, path: &Path) -> Result<Blob, String> {
    let blob = open_blob(path).map_err(|error| error.failure("boot loader").message)?;
    checked(loader, blob, path)
}

/// It is for the machines that would get it, as far as can be seen.
fn checked(loader: Loader, blob: Blob, path: &Path) -> Result<Blob, String> {
    let head = read_head(&blob, 4096).map_err(|error| format!("{}: {error}", path.display()))?;
    let machine = pe_machine(&head);
    match loader {
        Loader::Snponly(cpu) | Loader::Ipxe(cpu) if machine != Some(cpu.pe_machine()) => {
            Err(format!("{} is not a UEFI program for {}", path.display(), cpu.machines()))
        }
        // Where firmware runs UEFI programs only, and those of its own processor.
        Loader::Given(arch) | Loader::Whole(arch)
            if uefi_cpu(arch).is_some_and(|cpu| machine != Some(cpu.pe_machine())) =>
        {
            Err(format!(
                "{} is not a UEFI program for {}: such machines would refuse it",
                path.display(),
                architecture_name(arch)
            ))
        }
        Loader::Undionly | Loader::IpxePxe if machine.is_some() => {
            Err(format!("{} is a UEFI program, and BIOS machines cannot run it", path.display()))
        }
        _ => Ok(blob),
    }
}

/// The processor of an architecture whose firmware is UEFI and whose loaders travel by TFTP.
fn uefi_cpu(arch: u16) -> Option<Cpu> {
    let is_pxe = row(arch).is_some_and(|row| row.client == Client::Pxe);
    cpu(arch).filter(|_| is_pxe)
}

/// Machines that can be served with these loaders and this EFI program, and those that cannot, with
/// why. Only ordinary PCs and HTTP boot are named among the latter. `efi` is `None` if each machine
/// may be given another program or none; `menu` are the programs to choose from.
#[must_use]
pub fn coverage(
    loaders: &Loaders,
    efi: Option<&Result<EfiImage, NoEfiImage>>,
    menu: &[&EfiImage],
) -> (Vec<String>, Vec<String>) {
    let has = |loader| loaders.0.contains_key(&loader);
    let image = efi.and_then(|efi| efi.as_ref().ok());
    let bios = [Loader::Undionly, Loader::IpxePxe, Loader::Whole(0)];
    let bios = ("BIOS PCs", bios.into_iter().any(has));
    let uefi = Cpu::ALL.map(|cpu| {
        let mut programs = image.into_iter().chain(menu.iter().copied());
        let runs = programs.any(|image| image.machine == cpu.pe_machine());
        let whole = loaders.0.keys().any(|loader| match loader {
            Loader::Whole(arch) => table::cpu(*arch) == Some(cpu),
            _ => false,
        });
        let ipxe = has(Loader::Snponly(cpu)) || has(Loader::Ipxe(cpu));
        (cpu.machines(), ipxe || whole || runs)
    });
    let (can, cannot): (Vec<_>, Vec<_>) =
        std::iter::once(bios).chain(uefi).partition(|(_, served)| *served);
    let given = loaders.0.keys().filter_map(|loader| match loader {
        Loader::Given(arch) => Some(architecture_name(*arch)),
        _ => None,
    });
    let http = "UEFI HTTP boot";
    let can = can.into_iter().map(|(name, _)| name.to_owned()).chain(given);
    let can = can.chain(image.map(|_| http.to_owned()));
    let why = if image.is_some_and(EfiImage::is_named) {
        "what is served does not run there"
    } else {
        "no iPXE for them was found (see --ipxe-dir)"
    };
    let ordinary = ["BIOS PCs", Cpu::X64.machines()];
    let cannot = cannot.into_iter().filter(|(name, _)| ordinary.contains(name));
    let cannot = cannot.map(|(name, _)| format!("{name}: {why}"));
    let no_http = efi.and_then(|efi| efi.as_ref().err());
    let no_http = no_http.map(|reason| format!("{http}: {reason}"));
    (can.collect(), cannot.chain(no_http).collect())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{image::Signature, source::text_blob};

    fn efi(machine: u16) -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..2].copy_from_slice(b"MZ");
        head[0x3c] = 0x80;
        head[0x80..0x84].copy_from_slice(b"PE\0\0");
        head[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
        head
    }

    fn names(loaders: &Loaders) -> Vec<String> {
        loaders.0.keys().map(|loader| loader.file_name().into_owned()).collect()
    }

    #[test]
    fn each_processor_finds_its_own_in_the_places_that_packages_use() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, machine| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, efi(machine)).unwrap();
        };
        // An arm64 system's own package, and others beside it.
        put("snponly.efi", 0xaa64);
        put("arm64/ipxe.efi", 0xaa64);
        put("ipxe-i386.efi", 0x014c);
        put("ipxe-snponly-i386.efi", 0x014c);
        put("bin-arm32-efi/snponly.efi", 0x01c2);
        put("riscv64-efi/snponly.efi", 0x5064);
        put("riscv32/ipxe.efi", 0x5032);
        put("loong64/snponly.efi", 0x6264);
        // Not what its place says.
        put("x86_64/ipxe.efi", 0xaa64);
        let loaders = find_in(&Wishes::default(), &[directory.path()]).unwrap();
        assert_eq!(
            names(&loaders),
            [
                "snponly-i386.efi",
                "snponly-arm32.efi",
                "snponly-arm64.efi",
                "snponly-riscv64.efi",
                "snponly-loong64.efi",
                "ipxe-i386.efi",
                "ipxe-arm64.efi",
                "ipxe-riscv32.efi",
            ]
        );
    }

    #[test]
    fn a_loader_for_an_architecture_is_taken_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("any");
        std::fs::write(&path, b"anything").unwrap();
        let missing = directory.path().join("none");
        let given = |list: &[(u16, &PathBuf)]| {
            list.iter().map(|(arch, path)| (*arch, (*path).clone())).collect()
        };
        let wishes = Wishes {
            given: given(&[(41, &missing), (41, &path), (300, &path)]),
            ..Wishes::default()
        };
        let loaders = find_in(&wishes, &[]).unwrap();
        assert_eq!(names(&loaders), ["loader-41", "loader-300"]);
        let (can, cannot) = coverage(&loaders, Some(&Err(NoEfiImage::Kernel)), &[]);
        assert_eq!(can, ["Raspberry Pi boot ROM (41)", "unknown architecture (300)"]);
        assert!(cannot[0].starts_with("BIOS PCs: no iPXE"), "{cannot:?}");
        assert!(cannot[1].starts_with("64-bit UEFI PCs: no iPXE"), "{cannot:?}");
        let wishes = Wishes { given: given(&[(41, &missing)]), ..Wishes::default() };
        assert_eq!(find_in(&wishes, &[]).unwrap_err().code, 31);
    }

    #[test]
    fn a_loader_that_the_machines_firmware_would_refuse_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loader");
        for (content, arch, fits) in [
            (efi(0x8664), 7, true),
            (efi(0x8664), 9, true),
            (efi(0xaa64), 11, true),
            (efi(0x8664), 11, false),
            (efi(0xaa64), 7, false),
            (b"#!ipxe".to_vec(), 7, false),
            (b"anything".to_vec(), 0, true),
            (b"anything".to_vec(), 21, true),
        ] {
            std::fs::write(&path, content).unwrap();
            let wishes = Wishes { given: vec![(arch, path.clone())], ..Wishes::default() };
            let found = find_in(&wishes, &[]);
            assert_eq!(found.is_ok(), fits, "{arch}: {found:?}");
            if let Err(failure) = found {
                assert_eq!(failure.code, 31);
                assert!(failure.message.contains("UEFI program for"), "{failure}");
            }
        }
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
        assert_eq!(names(&loaders), ["undionly.kpxe", "ipxe.efi", "ipxe-arm64.efi"]);
        assert_eq!(loaders.0[&Loader::Undionly].length, 5);
        assert_eq!(loaders.0[&Loader::Ipxe(Cpu::X64)].length, 512);
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
        let (can, cannot) = coverage(&loaders, Some(&Err(NoEfiImage::Kernel)), &[]);
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
        let image = |machine, stub| Ok(EfiImage { machine, stub, signature: Signature::Missing });
        let stub = text_blob("stub", String::new());
        let (can, cannot) = coverage(&loaders, Some(&image(0x8664, Some(stub))), &[]);
        assert_eq!(can, ["64-bit UEFI PCs", "UEFI HTTP boot"]);
        assert_eq!(cannot, ["BIOS PCs: no iPXE for them was found (see --ipxe-dir)"]);
        let (can, cannot) = coverage(&loaders, Some(&image(0xaa64, None)), &[]);
        assert_eq!(can, ["arm64 UEFI machines", "UEFI HTTP boot"]);
        assert_eq!(
            cannot,
            [
                "BIOS PCs: what is served does not run there",
                "64-bit UEFI PCs: what is served does not run there",
            ]
        );
    }

    #[test]
    fn what_does_ipxes_work_is_for_machines_that_have_none() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let bios = put("x.kpxe", b"x86 code");
        let (x64, arm64) = (put("x.efi", &efi(0x8664)), put("x-arm64.efi", &efi(0xaa64)));
        let optional = Wishes { optional: true, ..Wishes::default() };
        let mut loaders = find_in(&optional, &[]).unwrap();
        let snponly = open_blob(&x64).unwrap();
        loaders.0.insert(Loader::Snponly(Cpu::X64), snponly);
        let missing = directory.path().join("missing");
        let instead =
            [(0, bios), (7, x64.clone()), (9, x64.clone()), (11, arm64), (10, x64), (27, missing)];
        let said = add_instead(&mut loaders, &instead).now_or_never().unwrap();
        let found = ["snponly.efi", "program-0", "program-11"];
        assert_eq!(names(&loaders), found);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("arm32 UEFI (10): ") && said[0].contains("UEFI program for"));
        assert!(said[1].starts_with("RISC-V 64 UEFI (27): ") && said[1].contains("does not exist"));
        let (can, cannot) = coverage(&loaders, Some(&Err(NoEfiImage::Script)), &[]);
        assert_eq!(can, ["BIOS PCs", "64-bit UEFI PCs", "arm64 UEFI machines"]);
        assert_eq!(cannot.len(), 1, "HTTP boot: {cannot:?}");
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
