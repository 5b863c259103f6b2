//! What UEFI machines load without iPXE: the EFI program that was named, or a unified kernel image
//! made of kernel, initrds and command line.
//!
//! Guarantees: whatever comes out is checked as far as its headers go, and matches its machine type.
//! Trusts the system's directories and the file that the user names. No stub is no failure: only
//! machines that need one are left alone.

use std::{
    ffi::OsStr,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use super::{kernel, open_blob, read_head};
use crate::{
    exit::{Code, Failure},
    image::{Blob, EfiImage, Generation, NoEfiImage},
    uki,
};

/// Where distributions put systemd's stub: NixOS; Debian, Fedora, Arch and most others.
const SYSTEM: [&str; 2] =
    ["/run/current-system/systemd/lib/systemd/boot/efi", "/usr/lib/systemd/boot/efi"];
/// A stub is about 100 KiB; more than this is something else.
const STUB_LIMIT: u64 = 4 * 1024 * 1024;
/// Machine type of a PE/COFF header, and what systemd calls its stub (src/boot/meson.build).
const STUBS: [(u16, &str); 5] = [
    (0x8664, "linuxx64.efi.stub"),
    (0x014c, "linuxia32.efi.stub"),
    (0xaa64, "linuxaa64.efi.stub"),
    (0x5064, "linuxriscv64.efi.stub"),
    (0x6264, "linuxloongarch64.efi.stub"),
];

/// Gives the generation its EFI image. The user's own stub comes first.
///
/// # Errors
/// [`Code::Source`]: the EFI program was named beside what it already contains, or the user's own
/// stub will not do.
pub fn add_efi_image(generation: &mut Generation, stub: Option<&Path>) -> Result<(), Failure> {
    let directories: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    add(generation, stub, &directories)
}

fn add(
    generation: &mut Generation,
    stub: Option<&Path>,
    directories: &[PathBuf],
) -> Result<(), Failure> {
    let name = generation.kernel.name.clone();
    let head = read_head(&generation.kernel, kernel::HEAD)
        .map_err(|error| Failure::new(Code::Source, format!("{name}: {error}")))?;
    let machine = kernel::pe_machine(&head);
    if let Some(machine) = machine
        && !kernel::is_linux(&head)
    {
        if !generation.initrds.is_empty() || !generation.cmdline.is_empty() {
            let text = format!(
                "{name} is an EFI program and not a Linux kernel: it brings its own command line \
                 and initrds, and takes no others"
            );
            return Err(Failure::new(Code::Source, text)
                .advise(format!("serve it alone: portcullis boot {name}"))
                .advise("or name the kernel that it was made of"));
        }
        // For a machine whose ROM is iPXE, which names a program its arguments in any case.
        generation.cmdline = own_cmdline(&generation.kernel, &head);
        generation.efi = Ok(EfiImage { blob: generation.kernel.clone(), machine, named: true });
        return Ok(());
    }
    generation.efi = match (make(generation, machine, stub, directories), stub) {
        (Err(NoEfiImage::BadStub(text)), Some(_)) => return Err(Failure::new(Code::Source, text)),
        (made, _) => made,
    };
    Ok(())
}

/// The command line inside a unified kernel image, on one line; any other EFI program has none.
fn own_cmdline(program: &Blob, head: &[u8]) -> String {
    let found = uki::find_section(head, b".cmdline").ok().flatten();
    let read = found.and_then(|place| {
        let length = usize::try_from(place.end - place.start).ok()?;
        let length = length.min(super::CMDLINE_LIMIT);
        program.content.read_at(place.start, length, Vec::new()).ok()
    });
    let text = String::from_utf8(read.unwrap_or_default()).unwrap_or_default();
    text.trim_end_matches('\0').replace(char::is_control, " ").trim().to_owned()
}

fn make(
    generation: &Generation,
    machine: Option<u16>,
    own: Option<&Path>,
    directories: &[PathBuf],
) -> Result<EfiImage, NoEfiImage> {
    let machine = machine.ok_or(NoEfiImage::Kernel)?;
    let name = STUBS.iter().find(|(known, _)| *known == machine).map(|(_, name)| *name);
    let found = match (own, name) {
        (Some(path), _) => path.to_owned(),
        (None, Some(name)) => directories
            .iter()
            .map(|directory| directory.join(name))
            .find(|path| path.exists())
            .ok_or(NoEfiImage::NoStub(name))?,
        (None, None) => return Err(NoEfiImage::Kernel),
    };
    let bad =
        |why: String| NoEfiImage::BadStub(format!("the boot stub {}: {why}", found.display()));
    let stub = open_blob(&found)
        .map_err(|error| NoEfiImage::BadStub(error.failure("boot stub").message))?;
    let octets = read_head(&stub, STUB_LIMIT).map_err(|error| bad(error.to_string()))?;
    if kernel::pe_machine(&octets) != Some(machine) {
        return Err(bad(
            "not an EFI program for the kind of machine that the kernel is for".to_owned()
        ));
    }
    let initrds: Vec<_> = generation.initrds.iter().map(|initrd| &initrd.content).collect();
    let kernel = &generation.kernel;
    let content = uki::assemble(&octets, &kernel.content, &initrds, &generation.cmdline).map_err(
        |error| match error {
            uki::Error::TooLarge => NoEfiImage::TooLarge,
            other => bad(other.to_string()),
        },
    )?;

    let parts = || [&stub, kernel].into_iter().chain(&generation.initrds);
    let mut hasher = DefaultHasher::new();
    parts().for_each(|part| part.etag.hash(&mut hasher));
    generation.cmdline.hash(&mut hasher);
    let newest = parts().max_by_key(|part| httpdate::parse_http_date(&part.last_modified).ok());
    let blob = Blob {
        name: Path::new(&kernel.name).with_extension("efi").file_name().map_or_else(
            || kernel.name.clone(),
            |name: &OsStr| name.to_string_lossy().into_owned(),
        ),
        length: content.length(),
        content,
        etag: format!("\"{:016x}\"", hasher.finish()),
        last_modified: newest.map(|part| part.last_modified.clone()).unwrap_or_default(),
    };
    Ok(EfiImage { blob, machine, named: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uki::tests::stub;

    /// A kernel with EFI stub, as far as it is looked at.
    fn kernel(machine: u16) -> Vec<u8> {
        let mut kernel = stub(machine);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel
    }

    struct Lab(tempfile::TempDir);

    impl Lab {
        fn new(files: &[(&str, &[u8])]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (name, content) in files {
                std::fs::write(directory.path().join(name), content).unwrap();
            }
            Self(directory)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn generation(&self, kernel: &str, initrds: &[&str], cmdline: &str) -> Generation {
            let initrds: Vec<_> = initrds.iter().map(|name| self.at(name)).collect();
            super::super::open(&self.at(kernel), &initrds, Some(cmdline)).unwrap()
        }

        /// Stubs are looked for beside the kernels.
        fn add(&self, generation: &mut Generation, stub: Option<&str>) -> Result<(), Failure> {
            let stub = stub.map(|name| self.at(name));
            add(generation, stub.as_deref(), &[self.at("none"), self.at("")])
        }
    }

    fn section(image: &EfiImage, name: &[u8; 8]) -> Vec<u8> {
        let head = read_head(&image.blob, 4096).unwrap();
        let place = uki::find_section(&head, name).unwrap().unwrap();
        let length = usize::try_from(place.end - place.start).unwrap();
        image.blob.content.read_at(place.start, length, Vec::new()).unwrap()
    }

    #[test]
    fn kernel_initrds_and_command_line_become_one_program() {
        let lab = Lab::new(&[
            ("bzImage", &kernel(0x8664)),
            ("i", b"initrd"),
            ("linuxx64.efi.stub", &stub(0x8664)),
        ]);
        let mut generation = lab.generation("bzImage", &["i", "i"], "init=/x");
        lab.add(&mut generation, None).unwrap();
        let image = generation.efi.as_ref().unwrap();
        assert_eq!((image.machine, image.named), (0x8664, false));
        assert_eq!(image.blob.length, image.blob.content.length());
        assert_eq!(section(image, b".linux\0\0"), kernel(0x8664));
        assert_eq!(section(image, b".initrd\0"), b"initrd\0\0initrd\0\0");
        assert_eq!(section(image, b".cmdline"), b"init=/x");
        let mut other = lab.generation("bzImage", &["i", "i"], "init=/y");
        lab.add(&mut other, None).unwrap();
        assert_ne!(other.efi.unwrap().blob.etag, image.blob.etag);
    }

    #[test]
    fn without_a_stub_or_a_kernel_for_it_there_is_a_reason_and_no_failure() {
        let mut plain = vec![0; 1024];
        plain[0x202..0x206].copy_from_slice(b"HdrS");
        let lab = Lab::new(&[
            ("x64", &kernel(0x8664)),
            ("arm64", &kernel(0xaa64)),
            ("plain", &plain),
            ("linuxx64.efi.stub", b"not a stub"),
        ]);
        let reason = |name: &str| {
            let mut generation = lab.generation(name, &[], "");
            lab.add(&mut generation, None).unwrap();
            generation.efi.unwrap_err().to_string()
        };
        assert!(reason("arm64").contains("linuxaa64.efi.stub was not found"));
        assert!(reason("arm64").contains("apt install systemd-boot-efi"));
        assert!(reason("x64").contains("not an EFI program for the kind"));
        assert!(reason("plain").contains("CONFIG_EFI_STUB"));
    }

    #[test]
    fn the_users_own_stub_must_do() {
        let lab = Lab::new(&[
            ("k", &kernel(0x8664)),
            ("linuxx64.efi.stub", b"not taken"),
            ("own", &stub(0x8664)),
            ("arm64", &stub(0xaa64)),
        ]);
        let mut generation = lab.generation("k", &[], "");
        lab.add(&mut generation, Some("own")).unwrap();
        assert!(generation.efi.is_ok());
        for (name, word) in [("none", "does not exist"), ("arm64", "kind of machine")] {
            let mut generation = lab.generation("k", &[], "");
            let failure = lab.add(&mut generation, Some(name)).unwrap_err();
            assert!(failure.code == 30 && failure.message.contains(word), "{failure}");
        }
    }

    #[test]
    fn an_efi_program_is_served_as_it_is_and_alone() {
        let lab = Lab::new(&[
            ("k", &kernel(0x8664)),
            ("i", b"initrd"),
            ("linuxx64.efi.stub", &stub(0x8664)),
            ("shell.efi", &stub(0xaa64)),
        ]);
        let mut made = lab.generation("k", &[], "a=b\tc");
        lab.add(&mut made, None).unwrap();
        let content = made.efi.unwrap().blob.content;
        let length = usize::try_from(content.length()).unwrap();
        std::fs::write(lab.at("system.efi"), content.read_at(0, length, Vec::new()).unwrap())
            .unwrap();
        for (name, machine, cmdline) in [("system.efi", 0x8664, "a=b c"), ("shell.efi", 0xaa64, "")]
        {
            let mut generation = lab.generation(name, &[], "");
            lab.add(&mut generation, None).unwrap();
            let image = generation.efi.unwrap();
            assert_eq!((image.machine, image.named), (machine, true));
            assert_eq!(image.blob.etag, generation.kernel.etag);
            assert_eq!(generation.cmdline, cmdline);
        }
        for (initrds, cmdline) in [(&["i"][..], ""), (&[], "a")] {
            let mut generation = lab.generation("shell.efi", initrds, cmdline);
            let failure = lab.add(&mut generation, None).unwrap_err();
            assert!(failure.code == 30 && failure.message.contains("takes no others"), "{failure}");
        }
    }
}
