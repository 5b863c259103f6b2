//! What UEFI machines load without iPXE: the EFI program that was named, or a unified kernel image
//! made of kernel, initrds and command line.
//!
//! Guarantees: whatever comes out is checked as far as its headers go, and matches its machine type.
//! Trusts the system's directories and the file that the user names. No stub is no failure: only
//! machines that need one are left alone.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    kernel,
    open::{CMDLINE_LIMIT, longest},
    open_blob, read_head,
};
use crate::{
    exit::{Code, Failure},
    image::{Blob, EfiImage, Generation, NoEfiImage, Payload, Signature},
    read::{Content, Piece},
    sign::Signer,
    template::Machine,
    uki,
};

/// Directory that the package fixed when it was built (NixOS: that of pkgs.systemd).
const BUILT_IN: Option<&str> = option_env!("PORTCULLIS_STUB_DIR");
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

/// Says of what the generation's EFI program is made, or why there is none. The user's own stub comes
/// first. With a `signer` the program will carry its signature.
///
/// # Errors
/// [`Code::Source`]: an EFI program was named beside what it already contains.
pub fn add_efi_image(
    generation: &mut Generation,
    stub: Option<&Path>,
    signer: Option<&Arc<Signer>>,
) -> Result<(), Failure> {
    let directories: Vec<PathBuf> = BUILT_IN.into_iter().chain(SYSTEM).map(PathBuf::from).collect();
    add(generation, stub, &directories)?;
    if let (Ok(image), Some(signer)) = (&mut generation.efi, signer) {
        image.signature = Signature::By(Arc::clone(signer));
    }
    Ok(())
}

/// The EFI program for a machine. Reads nothing but memory, except that whatever is signed for the
/// first time is read whole.
///
/// # Errors
/// Why there is none.
pub async fn efi_program(generation: &Generation, machine: &Machine) -> Result<Blob, NoEfiImage> {
    let image = generation.efi.as_ref().map_err(Clone::clone)?;
    let kernel = local(generation.kernel.as_ref().ok_or(NoEfiImage::Script)?)?;
    let program = match &image.stub {
        Some(stub) => assemble(generation, kernel, stub, machine)?,
        None => kernel.clone(),
    };
    match &image.signature {
        Signature::By(signer) => signer.signed(program).await.map_err(NoEfiImage::Unsigned),
        Signature::Missing | Signature::InFile => Ok(program),
    }
}

fn local(payload: &Payload) -> Result<&Blob, NoEfiImage> {
    match payload {
        Payload::Local(blob) => Ok(blob),
        Payload::Remote(_) => Err(NoEfiImage::Remote),
    }
}

fn add(
    generation: &mut Generation,
    stub: Option<&Path>,
    directories: &[PathBuf],
) -> Result<(), Failure> {
    let kernel = match generation.kernel.as_ref().ok_or(NoEfiImage::Script).and_then(local) {
        Ok(kernel) => kernel,
        Err(reason) => {
            generation.efi = Err(reason);
            return Ok(());
        }
    };
    let name = &kernel.name;
    let head = read_head(kernel, kernel::HEAD)
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
        generation.cmdline = own_cmdline(kernel, &head).into();
        let signed = uki::unhashed(&head).is_ok_and(|unhashed| unhashed.signed);
        let signature = if signed { Signature::InFile } else { Signature::Missing };
        generation.efi = Ok(EfiImage { machine, stub: None, signature });
        return Ok(());
    }
    generation.efi = prepare(generation, kernel, machine, stub, directories);
    Ok(())
}

/// The command line inside a unified kernel image, on one line; any other EFI program has none.
fn own_cmdline(program: &Blob, head: &[u8]) -> String {
    let found = uki::find_section(head, b".cmdline").ok().flatten();
    let read = found.and_then(|place| {
        let length = usize::try_from(place.end - place.start).ok()?;
        let length = length.min(CMDLINE_LIMIT);
        program.content.read_at(place.start, length, Vec::new()).ok()
    });
    let text = String::from_utf8(read.unwrap_or_default()).unwrap_or_default();
    text.trim_end_matches('\0').replace(char::is_control, " ").trim().to_owned()
}

fn prepare(
    generation: &Generation,
    kernel: &Blob,
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
    let stub = open_blob(&found)
        .map_err(|error| NoEfiImage::BadStub(error.failure("boot stub").message))?;
    let stub = Blob { name: found.display().to_string(), ..stub };
    let octets = read_head(&stub, STUB_LIMIT).map_err(|error| bad(&stub, &error.to_string()))?;
    if kernel::pe_machine(&octets) != Some(machine) {
        let why = "not an EFI program for the kind of machine that the kernel is for";
        return Err(bad(&stub, why));
    }
    let content = Content::new(vec![Piece::Memory(octets.into())]);
    let stub = Blob { length: content.length(), content, ..stub };
    // Whether it fits, with addresses as long as they can become.
    assemble(generation, kernel, &stub, &longest())?;
    Ok(EfiImage { machine, stub: Some(stub), signature: Signature::Missing })
}

fn bad(stub: &Blob, why: &str) -> NoEfiImage {
    NoEfiImage::BadStub(format!("the boot stub {}: {why}", stub.name))
}

/// One program of kernel, initrds, the machine's command line, and the stub.
fn assemble(
    generation: &Generation,
    kernel: &Blob,
    stub: &Blob,
    machine: &Machine,
) -> Result<Blob, NoEfiImage> {
    let initrds = generation.initrds.iter().map(local).collect::<Result<Vec<_>, _>>()?;
    let contents: Vec<_> = initrds.iter().map(|initrd| &initrd.content).collect();
    let cmdline = generation.cmdline.text(machine);
    let octets = read_head(stub, STUB_LIMIT).map_err(|error| bad(stub, &error.to_string()))?;
    let content = uki::assemble(&octets, &kernel.content, &contents, &cmdline).map_err(
        |error| match error {
            uki::Error::TooLarge => NoEfiImage::TooLarge,
            other => bad(stub, &other.to_string()),
        },
    )?;
    let parts = || [stub, kernel].into_iter().chain(initrds.iter().copied());
    let mut hasher = DefaultHasher::new();
    parts().for_each(|part| part.etag.hash(&mut hasher));
    cmdline.hash(&mut hasher);
    let newest = parts().max_by_key(|part| httpdate::parse_http_date(&part.last_modified).ok());
    Ok(Blob {
        name: Path::new(&kernel.name)
            .with_extension("efi")
            .file_name()
            .map_or_else(|| kernel.name.clone(), |name| name.to_string_lossy().into_owned()),
        length: content.length(),
        content,
        etag: format!("\"{:016x}\"", hasher.finish()),
        last_modified: newest.map(|part| part.last_modified.clone()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        source::{Order, cache::Cache},
        uki::tests::stub,
    };

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
            let initrds = initrds.iter().map(|name| self.at(name)).collect();
            let order = Order {
                kernel: self.at(kernel),
                initrds,
                cmdline: Some(cmdline.to_owned()),
                ..Order::default()
            };
            super::super::open(&order).now_or_never().unwrap().unwrap()
        }

        /// Stubs are looked for beside the kernels.
        fn add(&self, generation: &mut Generation, stub: Option<&str>) -> Result<(), Failure> {
            let stub = stub.map(|name| self.at(name));
            add(generation, stub.as_deref(), &[self.at("none"), self.at("")])
        }
    }

    const URL: &str = "http://10.0.0.1:64172/token/02-00-00-00-00-01";

    fn program(generation: &Generation) -> Blob {
        efi_program(generation, &Machine::at(URL)).now_or_never().unwrap().unwrap()
    }

    fn section(program: &Blob, name: &[u8; 8]) -> Vec<u8> {
        let head = read_head(program, 4096).unwrap();
        let place = uki::find_section(&head, name).unwrap().unwrap();
        let length = usize::try_from(place.end - place.start).unwrap();
        program.content.read_at(place.start, length, Vec::new()).unwrap()
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
        assert_eq!((image.machine, image.is_named()), (0x8664, false));
        let made = program(&generation);
        assert_eq!(made.length, made.content.length());
        assert_eq!(section(&made, b".linux\0\0"), kernel(0x8664));
        assert_eq!(section(&made, b".initrd\0"), b"initrd\0\0initrd\0\0");
        assert_eq!(section(&made, b".cmdline"), b"init=/x");
        assert_eq!(made.etag, program(&generation).etag);
        let mut other = lab.generation("bzImage", &["i", "i"], "init=/y");
        lab.add(&mut other, None).unwrap();
        assert_ne!(program(&other).etag, made.etag);
    }

    #[test]
    fn each_machine_has_its_own_addresses_in_the_command_line() {
        let lab = Lab::new(&[
            ("k", &kernel(0x8664)),
            ("seed", b"seed"),
            ("linuxx64.efi.stub", &stub(0x8664)),
        ]);
        let cmdline = format!("seed={{{{ ID `{}` }}}} quiet", lab.at("seed").display());
        let mut generation = lab.generation("k", &[], &cmdline);
        lab.add(&mut generation, None).unwrap();
        let mine = program(&generation);
        assert_eq!(section(&mine, b".cmdline"), format!("seed={URL}/other0 quiet").as_bytes());
        let other = efi_program(&generation, &Machine::at("http://h/t/m")).now_or_never().unwrap();
        let other = other.unwrap();
        assert_eq!(section(&other, b".cmdline"), b"seed=http://h/t/m/other0 quiet");
        assert_ne!(mine.etag, other.etag);
    }

    #[test]
    fn nothing_is_made_of_another_servers_files_nor_of_a_script() {
        let lab = Lab::new(&[
            ("k", &kernel(0x8664)),
            ("linuxx64.efi.stub", &stub(0x8664)),
            ("shell.efi", &stub(0x8664)),
        ]);
        let remote = || {
            let address = "http://h/file".parse().unwrap();
            Payload::from(super::super::opener::remote(address, &Cache::default()))
        };
        let reason = |mut generation: Generation| {
            lab.add(&mut generation, None).unwrap();
            assert!(efi_program(&generation, &Machine::at(URL)).now_or_never().unwrap().is_err());
            generation.efi.unwrap_err()
        };
        let kernel = Generation { kernel: Some(remote()), ..Generation::default() };
        assert_eq!(reason(kernel), NoEfiImage::Remote);
        let initrd = Generation { initrds: vec![remote()], ..lab.generation("k", &[], "") };
        assert_eq!(reason(initrd), NoEfiImage::Remote);
        let script = Generation {
            script: Some(crate::image::Script::AsItIs("#!ipxe".into())),
            ..Generation::default()
        };
        assert_eq!(reason(script), NoEfiImage::Script);
        let mut beside = lab.generation("shell.efi", &[], "");
        beside.initrds.push(remote());
        assert!(lab.add(&mut beside, None).is_err());
        // What the command line names is fetched by the booted system: it may lie anywhere.
        let mut extra = lab.generation("k", &[], "");
        extra.others.push(remote());
        lab.add(&mut extra, None).unwrap();
        assert!(efi_program(&extra, &Machine::at(URL)).now_or_never().unwrap().is_ok());
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
            lab.add(&mut generation, Some(name)).unwrap();
            let reason = generation.efi.unwrap_err();
            assert!(
                matches!(&reason, NoEfiImage::BadStub(text) if text.contains(word)),
                "{reason}"
            );
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
        let content = program(&made).content;
        let length = usize::try_from(content.length()).unwrap();
        std::fs::write(lab.at("system.efi"), content.read_at(0, length, Vec::new()).unwrap())
            .unwrap();
        for (name, machine, cmdline) in [("system.efi", 0x8664, "a=b c"), ("shell.efi", 0xaa64, "")]
        {
            let mut generation = lab.generation(name, &[], "");
            lab.add(&mut generation, None).unwrap();
            let image = generation.efi.as_ref().unwrap();
            assert_eq!((image.machine, image.is_named()), (machine, true));
            assert_eq!(program(&generation).etag, open_blob(&lab.at(name)).unwrap().etag);
            assert_eq!(generation.cmdline, cmdline.into());
        }
        for (initrds, cmdline) in [(&["i"][..], ""), (&[], "a")] {
            let mut generation = lab.generation("shell.efi", initrds, cmdline);
            let failure = lab.add(&mut generation, None).unwrap_err();
            assert!(failure.code == 30 && failure.message.contains("takes no others"), "{failure}");
        }
    }
}
