//! Is this the beginning of something that a machine can boot? Pure functions over octets.

/// How much of a file is enough to tell.
pub const HEAD: u64 = 4096;

/// Whether these octets begin a kernel: an x86 bzImage, a PE/COFF image (a kernel with EFI stub, or
/// a unified kernel image), an arm64 or RISC-V `Image`, or one of these compressed with gzip.
#[must_use]
pub fn is_kernel(head: &[u8]) -> bool {
    // RFC 1952 section 2.3.1, deflate: arm64's Image.gz.
    let gzip = starts(head, 0, &[0x1f, 0x8b, 0x08]);
    is_linux(head) || gzip || pe_machine(head).is_some()
}

/// Whether these octets begin a Linux kernel, with EFI stub or without, that is not compressed as a
/// whole.
#[must_use]
pub fn is_linux(head: &[u8]) -> bool {
    // Documentation/arch/arm64/booting.rst and riscv/boot-image-header.rst: magic at 56.
    let image = starts(head, 56, b"ARM\x64") || starts(head, 56, b"RSC\x05");
    // include/linux/pe.h, LINUX_PE_MAGIC: LoongArch, and every kernel that unpacks itself under EFI.
    is_bzimage(head) || image || starts(head, 56, &[0xcd, 0x23, 0x82, 0x81])
}

/// Whether these octets begin an x86 kernel that BIOS machines boot.
#[must_use]
pub fn is_bzimage(head: &[u8]) -> bool {
    // Documentation/arch/x86/boot.rst: the header's magic, from protocol 2.00.
    starts(head, 0x202, b"HdrS")
}

/// Whether these octets begin an initial ramdisk: a cpio archive (Documentation/driver-api/early-userspace/
/// buffer-format.rst), as it is or compressed in a way that Linux unpacks (lib/decompress.c).
#[must_use]
pub fn is_initrd(head: &[u8]) -> bool {
    const MAGIC: [&[u8]; 10] = [
        b"070701",
        b"070702",
        &[0x1f, 0x8b],
        &[0x1f, 0x9e],
        b"BZh",
        &[0x5d, 0x00, 0x00],
        &[0xfd, b'7', b'z', b'X', b'Z'],
        &[0x89, b'L', b'Z', b'O'],
        &[0x02, 0x21, 0x4c, 0x18],
        &[0x28, 0xb5, 0x2f, 0xfd],
    ];
    MAGIC.iter().any(|magic| head.starts_with(magic))
}

/// The machine type of a PE/COFF image, as EFI programs are. The offset of its header stands at
/// 0x3c (PE/COFF specification, "MS-DOS stub").
#[must_use]
pub fn pe_machine(head: &[u8]) -> Option<u16> {
    if !starts(head, 0, b"MZ") {
        return None;
    }
    let offset = head.get(0x3c..0x40)?.try_into().ok().map(u32::from_le_bytes)?;
    let offset = usize::try_from(offset).ok()?;
    let header = head.get(offset..)?;
    if !header.starts_with(b"PE\0\0") {
        return None;
    }
    header.get(4..6)?.try_into().ok().map(u16::from_le_bytes)
}

fn starts(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    head.get(offset..).is_some_and(|rest| rest.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 1024];
        head[offset..offset + magic.len()].copy_from_slice(magic);
        head
    }

    fn pe(machine: u16) -> Vec<u8> {
        let mut head = with(0, b"MZ");
        head[0x3c] = 0x80;
        head[0x80..0x84].copy_from_slice(b"PE\0\0");
        head[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
        head
    }

    #[test]
    fn kernels_are_known_by_their_magic() {
        for kernel in [
            with(0x202, b"HdrS"),
            with(56, b"ARM\x64"),
            with(56, b"RSC\x05"),
            with(0, &[0x1f, 0x8b, 8, 0]),
            pe(0x8664),
            pe(0xaa64),
        ] {
            assert!(is_kernel(&kernel));
        }
    }

    #[test]
    fn an_efi_program_is_no_linux_kernel_without_linuxs_own_magic() {
        assert!(!is_linux(&pe(0x8664)));
        for (offset, magic) in
            [(0x202, &b"HdrS"[..]), (56, b"ARM\x64"), (56, b"RSC\x05"), (56, b"\xcd\x23\x82\x81")]
        {
            let mut kernel = pe(0x8664);
            kernel.resize(1024, 0);
            kernel[offset..offset + magic.len()].copy_from_slice(magic);
            assert!(is_linux(&kernel), "{magic:?}");
        }
    }

    #[test]
    fn initrds_are_known_by_their_magic() {
        let gzip = [0x1f, 0x8b, 8, 0];
        let zstd = [0x28, 0xb5, 0x2f, 0xfd];
        for initrd in [&b"070701000"[..], &gzip, &zstd, &[0xfd, b'7', b'z', b'X', b'Z', 0]] {
            assert!(is_initrd(initrd), "{initrd:?}");
        }
        for other in [&b""[..], b"07070", b"MZ", b"<html>", &with(0x202, b"HdrS")] {
            assert!(!is_initrd(other), "{other:?}");
        }
    }

    #[test]
    fn other_files_are_not_kernels() {
        for other in [
            vec![],
            b"MZ".to_vec(),
            with(0, b"MZ"),
            with(0, b"\x7fELF"),
            with(0, b"070701"),
            with(0, &[0x28, 0xb5, 0x2f, 0xfd]),
            with(0x201, b"HdrS"),
            with(0, b"HdrS"),
            vec![0; 4096],
        ] {
            assert!(!is_kernel(&other), "{:?}", &other[..other.len().min(8)]);
        }
        let mut outside = with(0, b"MZ");
        outside[0x3c..0x40].copy_from_slice(&[0xff; 4]);
        assert!(!is_kernel(&outside));
    }

    #[test]
    fn a_pe_image_says_for_which_machine_it_is() {
        assert_eq!(pe_machine(&pe(0x8664)), Some(0x8664));
        assert_eq!(pe_machine(&pe(0xaa64)), Some(0xaa64));
        assert_eq!(pe_machine(&with(0x202, b"HdrS")), None);
    }
}
