//! What is to be served, held against the machines that there are boot loaders for. Looks at the first
//! octets of kernel and initrds alone.

use super::{Diagnosis, Finding, remedy};
use crate::{
    exit::Failure,
    image::{Blob, Cpu, Generation, Loader, Loaders, Payload},
    loaders::coverage,
    report::units::size,
    source::{HEAD, kernel, read_head},
};

/// What a small machine of today has. One with less can be right: it is told, not refused.
const USUAL_MEMORY: u64 = 4 << 30;
/// iPXE holds kernel and initrd, and Linux unpacks the initrd beside them.
const MEMORY_FACTOR: u64 = 2;

/// A kind of machine that a kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bios,
    Uefi(Cpu),
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Bios => "BIOS PCs",
            Self::Uefi(cpu) => cpu.machines(),
        }
    }

    fn has_loader(self, loaders: &Loaders) -> bool {
        let any = |wanted: [Loader; 2]| wanted.iter().any(|one| loaders.0.contains_key(one));
        match self {
            Self::Bios => any([Loader::Undionly, Loader::IpxePxe]),
            Self::Uefi(cpu) => any([Loader::Snponly(cpu), Loader::Ipxe(cpu)]),
        }
    }
}

/// Adds what can be said of a source, if there is one, and of the loaders that were found.
pub fn judge(generation: Option<&Generation>, loaders: &Loaders, diagnosis: &mut Diagnosis) {
    let Some(generation) = generation else {
        let (can, _) = coverage(loaders, None, &[]);
        diagnosis.fact("loaders", format!("iPXE for {}", can.join(", ")));
        return;
    };
    let files = || generation.kernel.iter().chain(&generation.initrds);
    let named: Vec<_> = files()
        .map(|file| match file.length() {
            Some(length) => format!("{} ({})", file.name(), size(length)),
            None => file.name().to_owned(),
        })
        .collect();
    let Some(payload) = &generation.kernel else {
        let what = if generation.menu.is_empty() { "an iPXE script" } else { "a menu" };
        diagnosis.fact("image", what);
        return;
    };
    diagnosis.fact("image", named.join(", "));
    let memory = files().filter_map(Payload::length).sum::<u64>().saturating_mul(MEMORY_FACTOR);
    diagnosis.fact("memory", format!("kernel and initrd take {} of the machine's", size(memory)));
    if memory > USUAL_MEMORY {
        let text = format!("kernel and initrd need {}, more than many machines have", size(memory));
        diagnosis.findings.push(Finding::new("memory", text, remedy("memory-initrd")));
    }
    for initrd in &generation.initrds {
        if let Payload::Local(blob) = initrd
            && head(blob).is_ok_and(|head| !kernel::is_initrd(&head))
        {
            let text = format!("{} begins like no archive that Linux unpacks", blob.name);
            diagnosis.findings.push(
                Finding::new("initrd", text, "kernel first, then the initrds: is it another file?")
                    .or("the command file says what it is"),
            );
        }
    }
    kernel_of(generation, payload, loaders, diagnosis);
}

/// For whom the kernel is, and who of them can load it.
fn kernel_of(
    generation: &Generation,
    payload: &Payload,
    loaders: &Loaders,
    diagnosis: &mut Diagnosis,
) {
    let (can, _) = coverage(loaders, Some(&generation.efi), &[]);
    let efi = generation.efi.as_ref().ok();
    if efi.is_some_and(crate::image::EfiImage::is_named) {
        diagnosis.fact("machines", can.join(", "));
        return;
    }
    let Some(kinds) = kinds(generation.machine, payload) else {
        // Nothing can be said of it but that it is a kernel.
        diagnosis.fact("machines", format!("perhaps {}", can.join(", ")));
        return;
    };
    let served = |kind: &Kind| match kind {
        Kind::Uefi(cpu) if efi.is_some_and(|image| image.machine == cpu.pe_machine()) => true,
        kind => kind.has_loader(loaders),
    };
    let names =
        |kinds: &[Kind]| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
    let loaded: Vec<_> = kinds.iter().copied().filter(served).collect();
    // Loaders that the user named go by numbers; what they are for is the user's knowledge.
    let named = loaders.0.keys().any(|loader| matches!(loader, Loader::Given(_)));
    if loaded.is_empty() && !named {
        let text = format!(
            "{} is a kernel for {}, and there is no boot loader for them here: iPXE was found for {}",
            payload.name(),
            names(&kinds),
            coverage(loaders, None, &[]).0.join(", ")
        );
        diagnosis.findings.push(
            Finding::new(
                "wrong-architecture",
                text,
                "serve a kernel for the machines that you have",
            )
            .or("--ipxe-dir with iPXE for them; docs/architectures.md says how to get it"),
        );
    } else {
        diagnosis.fact("machines", names(&loaded));
    }
    if kinds == [Kind::Bios] {
        let text = format!("{} has no EFI stub: UEFI machines cannot start it", payload.name());
        let remedy = "build it with CONFIG_EFI_STUB, or serve BIOS machines alone";
        diagnosis.findings.push(Finding::new("no-efi-stub", text, remedy));
    }
}

/// The machines that a kernel runs on, if it says so: by its PE header, and an x86 one on BIOS as well.
fn kinds(machine: Option<u16>, payload: &Payload) -> Option<Vec<Kind>> {
    let uefi = Cpu::ALL.into_iter().find(|cpu| Some(cpu.pe_machine()) == machine);
    let bzimage = match payload {
        Payload::Local(blob) => head(blob).is_ok_and(|head| kernel::is_bzimage(&head)),
        Payload::Remote(_) => matches!(uefi, Some(Cpu::X64 | Cpu::Ia32)),
    };
    let kinds: Vec<_> =
        bzimage.then_some(Kind::Bios).into_iter().chain(uefi.map(Kind::Uefi)).collect();
    (!kinds.is_empty()).then_some(kinds)
}

fn head(blob: &Blob) -> Result<Vec<u8>, Failure> {
    read_head(blob, HEAD)
        .map_err(|error| Failure::new(crate::exit::Code::Source, format!("{}: {error}", blob.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::text_blob;

    /// A kernel with these magic numbers and this PE machine.
    fn kernel(bzimage: bool, machine: Option<u16>) -> Payload {
        let mut head = vec![0_u8; 1024];
        if bzimage {
            head[0x202..0x206].copy_from_slice(b"HdrS");
        }
        if let Some(machine) = machine {
            head[..2].copy_from_slice(b"MZ");
            head[0x3c] = 0x40;
            head[0x40..0x44].copy_from_slice(b"PE\0\0");
            let [low, high] = machine.to_le_bytes();
            // Text, so that a blob can be made of it: the machine is given beside it.
            head[0x44..0x46].copy_from_slice(&[low & 0x7f, high & 0x7f]);
        }
        text_blob("k", String::from_utf8(head).unwrap()).into()
    }

    fn loaders(these: &[Loader]) -> Loaders {
        let blob = text_blob("l", "x".to_owned());
        Loaders(these.iter().map(|one| (*one, blob.clone())).collect())
    }

    fn judged(machine: Option<u16>, bzimage: bool, loaders: &Loaders) -> Diagnosis {
        let generation =
            Generation { kernel: Some(kernel(bzimage, machine)), machine, ..Generation::default() };
        let mut diagnosis = Diagnosis::default();
        judge(Some(&generation), loaders, &mut diagnosis);
        diagnosis
    }

    fn names(diagnosis: &Diagnosis) -> Vec<&str> {
        diagnosis.findings.iter().map(|finding| finding.name).collect()
    }

    fn fact<'a>(diagnosis: &'a Diagnosis, about: &str) -> &'a str {
        let found = diagnosis.facts.iter().find(|fact| fact.about == about);
        found.map_or("", |fact| &fact.text)
    }

    #[test]
    fn a_kernel_is_held_against_the_loaders() {
        let pc = loaders(&[Loader::Undionly, Loader::Snponly(Cpu::X64)]);
        let x64 = judged(Some(0x8664), true, &pc);
        assert_eq!(names(&x64), <[&str; 0]>::default());
        assert_eq!(fact(&x64, "machines"), "BIOS PCs, 64-bit UEFI PCs");
        let arm64 = judged(Some(0xaa64), false, &pc);
        assert_eq!(names(&arm64), ["wrong-architecture"]);
        assert!(arm64.findings[0].text.contains("for arm64 UEFI machines"), "{:?}", arm64.findings);
        let both = loaders(&[Loader::Undionly, Loader::Ipxe(Cpu::Arm64)]);
        assert_eq!(names(&judged(Some(0xaa64), false, &both)), <[&str; 0]>::default());
        let given = loaders(&[Loader::Undionly, Loader::Given(11)]);
        assert_eq!(names(&judged(Some(0xaa64), false, &given)), <[&str; 0]>::default());
        assert_eq!(names(&judged(None, true, &pc)), ["no-efi-stub"]);
        assert_eq!(
            names(&judged(None, true, &loaders(&[Loader::Snponly(Cpu::X64)]))),
            ["wrong-architecture", "no-efi-stub"]
        );
        // Compressed as a whole: nothing is known.
        assert_eq!(names(&judged(None, false, &pc)), <[&str; 0]>::default());
    }

    #[test]
    fn initrds_are_looked_at_and_weighed() {
        let initrd = |text: &str| Payload::from(text_blob("i", text.to_owned()));
        let judged = |initrds: Vec<Payload>| {
            let generation = Generation {
                kernel: Some(kernel(true, Some(0x8664))),
                machine: Some(0x8664),
                initrds,
                ..Generation::default()
            };
            let mut diagnosis = Diagnosis::default();
            judge(Some(&generation), &loaders(&[Loader::Undionly]), &mut diagnosis);
            diagnosis
        };
        let good = judged(vec![initrd("070701 and more")]);
        assert_eq!(names(&good), <[&str; 0]>::default());
        assert_eq!(fact(&good, "memory"), "kernel and initrd take 2.0 KiB of the machine's");
        assert_eq!(names(&judged(vec![initrd("<html>")])), ["initrd"]);
        let large = |length| match initrd("070701") {
            Payload::Local(blob) => Payload::Local(Blob { length, ..blob }),
            remote @ Payload::Remote(_) => remote,
        };
        assert_eq!(names(&judged(vec![large(3 << 30)])), ["memory"]);
        assert_eq!(names(&judged(vec![large(1 << 30)])), <[&str; 0]>::default());
    }

    #[test]
    fn without_a_source_the_loaders_are_told() {
        let mut diagnosis = Diagnosis::default();
        judge(None, &loaders(&[Loader::Undionly]), &mut diagnosis);
        assert_eq!(fact(&diagnosis, "loaders"), "iPXE for BIOS PCs");
        assert_eq!(diagnosis.findings, []);
    }
}
