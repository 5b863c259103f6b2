//! Boot loaders that somebody else signed: shim, and what shim starts. Firmware with Secure Boot
//! knows shim by Microsoft's signature, and shim knows the rest by its own maker's.
//!
//! Guarantees: every file was opened once and is an EFI program; the first one is for the kernel's
//! kind of machine. Trusts the system's directories and the one that the user names. Says nothing of
//! the signatures themselves: firmware and shim judge them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    exit::{Code, Failure},
    image::{Blob, Cpu},
    source::{open_blob, pe_machine, read_head},
};

/// Files of a directory that are served at most.
const FILES: usize = 64;
/// shim asks for these beside itself and does without: lists of what was revoked, and further
/// certificates (shim.c, `load_revocations_file`, `load_unbundled_trust`).
const OPTIONAL: [&str; 2] = ["revocations", "shim_certificate"];

/// iPXE's own release of signed programs (ipxeboot.tar.gz, `x86_64-sb` and `arm64-sb`): its shim starts
/// what is named as itself without `-shim`.
const IPXE: &str = "ipxe.efi";
const IPXE_SHIM: &str = "ipxe-shim.efi";

/// Of a kind of machine: how shim ends its names, and where Debian and Ubuntu have shim and GRUB's
/// net image (packages shim-signed and grub-efi-amd64-signed or grub-efi-arm64-signed).
struct System {
    cpu: Cpu,
    suffix: &'static str,
    shim: &'static str,
    grub: &'static str,
}

const SYSTEMS: [System; 2] = [
    System {
        cpu: Cpu::X64,
        suffix: "x64.efi",
        shim: "/usr/lib/shim/shimx64.efi.signed",
        grub: "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
    },
    System {
        cpu: Cpu::Arm64,
        suffix: "aa64.efi",
        shim: "/usr/lib/shim/shimaa64.efi.signed",
        grub: "/usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed",
    },
];

/// The files of a chain.
#[derive(Clone, Debug)]
pub struct Chain {
    /// For machines of this kind.
    pub cpu: Cpu,
    /// Name of what firmware loads.
    pub first: String,
    /// By their names, in small letters.
    files: BTreeMap<String, Blob>,
}

impl Chain {
    /// The system's shim and GRUB for a kernel of this machine type, or all EFI programs of a
    /// directory: shim, and beside it what it starts.
    ///
    /// # Errors
    /// [`Code::NoLoader`]: they are not there, or are for other machines.
    pub fn find(directory: Option<&Path>, machine: u16) -> Result<Self, Failure> {
        let fault = |text: String| Failure::new(Code::NoLoader, format!("--chain: {text}"));
        let system = SYSTEMS.iter().find(|system| system.cpu.pe_machine() == machine);
        let system = system.ok_or_else(|| {
            fault("the kernel is not for 64-bit PCs or arm64 machines, and shim is".to_owned())
        })?;
        let paths = match directory {
            Some(directory) => list(directory)
                .map_err(|error| fault(format!("{}: {error}", directory.display())))?,
            None => [system.shim, system.grub].map(PathBuf::from).to_vec(),
        };
        let mut files = BTreeMap::new();
        for path in paths {
            let blob = open_blob(&path).map_err(|error| {
                fault(error.failure("signed boot loader").message)
                    .advise("Debian, Ubuntu: apt install shim-signed grub-efi-amd64-signed (arm64: grub-efi-arm64-signed)")
                    .advise("or name a directory: --chain=DIR with shimx64.efi and grubx64.efi in it")
            })?;
            let head = read_head(&blob, 4096)
                .map_err(|error| fault(format!("{}: {error}", path.display())))?;
            if pe_machine(&head) == Some(machine) {
                files.entry(served_name(&blob.name)).or_insert(blob);
            }
        }
        let shim = format!("shim{}", system.suffix);
        let named = files.keys().find(|name| name.ends_with(&shim));
        let first = named.filter(|_| !files.contains_key(IPXE_SHIM)).map(String::as_str);
        let first = first.or(files.contains_key(IPXE_SHIM).then_some(IPXE_SHIM));
        let first = first
            .map(str::to_owned)
            .ok_or_else(|| fault(format!("no {shim} for the kernel's kind of machine is there")))?;
        if files.len() < 2 {
            return Err(fault(format!("beside {first} there is nothing that it could start")));
        }
        // GRUB's net image by the name under which shim looks for it.
        if let Some(grub) = files.get(&format!("grubnet{}", system.suffix)).cloned() {
            files.entry(format!("grub{}", system.suffix)).or_insert(grub);
        }
        Ok(Self { cpu: system.cpu, first, files })
    }

    /// The file of this name, which is in small letters.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&Blob> {
        self.files.get(name)
    }

    /// Whether a file of this name may be missing.
    #[must_use]
    pub fn does_without(name: &str) -> bool {
        OPTIONAL.iter().any(|word| name.starts_with(word))
    }
}

/// The machine type of the iPXE that a directory has for its shim: such a chain runs any script, and
/// needs nothing of GRUB's.
#[must_use]
pub fn ipxe_machine(directory: &Path) -> Option<u16> {
    let blob = open_blob(&directory.join(IPXE)).ok()?;
    pe_machine(&read_head(&blob, 4096).ok()?)
}

/// The EFI programs of a directory, by their names.
fn list(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if served_name(&name).ends_with(".efi") && path.is_file() {
            paths.push(path);
        }
    }
    // `NAME.signed` before `NAME`, from which it was made.
    paths.sort_by(|one, other| other.cmp(one));
    paths.truncate(FILES);
    Ok(paths)
}

/// Debian's `shimx64.efi.signed` is `shimx64.efi` to shim.
fn served_name(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    name.strip_suffix(".signed").unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uki::tests::stub;

    #[test]
    fn a_directory_is_served_by_the_names_that_shim_asks_for() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| {
            fs::write(directory.path().join(name), content).unwrap();
        };
        let find = |machine| Chain::find(Some(directory.path()), machine);
        let message = |machine| find(machine).unwrap_err().message;
        assert!(message(0x8664).contains("no shimx64.efi"), "{}", message(0x8664));
        put("ipxe-shimx64.efi", &stub(0x8664));
        assert!(message(0x8664).contains("nothing that it could start"));
        put("grubnetx64.efi.signed", &stub(0x8664));
        put("MMX64.EFI", &stub(0x8664));
        put("other.efi", &stub(0xaa64));
        put("notes.txt", b"text");
        let chain = find(0x8664).unwrap();
        assert_eq!((chain.cpu, chain.first.as_str()), (Cpu::X64, "ipxe-shimx64.efi"));
        let names: Vec<_> = chain.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["grubnetx64.efi", "grubx64.efi", "ipxe-shimx64.efi", "mmx64.efi"]);
        assert!(chain.file("grubx64.efi").is_some() && chain.file("notes.txt").is_none());
        assert!(message(0xaa64).contains("no shimaa64.efi"));
        assert_eq!(ipxe_machine(directory.path()), None);
        // iPXE's own release.
        for name in ["ipxe.efi", "ipxe-shim.efi", "shimx64.efi"] {
            put(name, &stub(0x8664));
        }
        assert_eq!(ipxe_machine(directory.path()), Some(0x8664));
        assert_eq!(find(0x8664).unwrap().first, "ipxe-shim.efi");
        assert!(message(0x5064).contains("64-bit PCs"));
        let missing = Chain::find(Some(Path::new("/missing")), 0x8664).unwrap_err();
        assert!(missing.code == 31 && missing.message.contains("/missing"), "{missing}");
    }

    /// What Debian's `shim.signed` is beside what it was made of.
    #[test]
    fn the_signed_file_goes_before_the_unsigned_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut signed = stub(0x8664);
        signed.push(0);
        for (name, content) in [
            ("shimx64.efi", stub(0x8664)),
            ("shimx64.efi.signed", signed),
            ("grubx64.efi", stub(0x8664)),
        ] {
            fs::write(directory.path().join(name), content).unwrap();
        }
        let chain = Chain::find(Some(directory.path()), 0x8664).unwrap();
        assert_eq!(chain.file("shimx64.efi").unwrap().name, "shimx64.efi.signed");
    }

    #[test]
    fn what_shim_can_do_without() {
        for (name, optional) in [
            ("revocations_sku.efi", true),
            ("shim_certificate_0.efi", true),
            ("grubx64.efi", false),
        ] {
            assert_eq!(Chain::does_without(name), optional, "{name}");
        }
    }
}
