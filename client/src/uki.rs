//! A unified kernel image (UAPI.5), put together: systemd's boot stub with the kernel, the initrds
//! and the command line as further sections of it, and nothing else changed.
//!
//! Guarantees: only the stub's headers are in memory, and its own few octets; kernel and initrds
//! stay the open files that they are, so that an initrd of any size costs nothing here. Sections lie
//! one after the other in the file and in memory, aligned as the stub's header says. Offsets and
//! fields: Microsoft's "PE Format". Trusts nothing that it reads: every offset is checked.

use std::ops::Range;

use bytes::Bytes;

use crate::read::{Content, Piece};

/// Octets of a section's header.
const SECTION: usize = 40;
/// IMAGE_SCN_CNT_INITIALIZED_DATA and IMAGE_SCN_MEM_READ.
const DATA: u32 = 0x4000_0040;
/// IMAGE_SCN_CNT_CODE, IMAGE_SCN_MEM_EXECUTE and IMAGE_SCN_MEM_READ.
const CODE: u32 = 0x6000_0020;
/// Alignment of each archive in an initrd of several
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
const ARCHIVE: u64 = 4;
/// What is said of the image to tools that look into it (os-release(5)).
const OS_RELEASE: &str = "ID=linux\nPRETTY_NAME=\"Linux, put together by Portcullis\"\n";

/// Why there is no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The stub is no EFI program, or one that was cut short.
    #[error("not a whole EFI program")]
    NotPe,
    /// The stub is signed, or already has what is to be added: it is somebody's finished image.
    #[error("a signed or finished EFI program, not a stub")]
    Finished,
    /// The stub's header ends before the new section headers would.
    #[error("no room for more sections in its header")]
    NoRoom,
    /// Beyond 4 GiB.
    #[error("larger than the 4 GiB of an EFI program")]
    TooLarge,
    /// Its sections leave octets between them that firmware does not hash, or it has no place for a
    /// signature.
    #[error("an EFI program whose layout cannot be signed")]
    Unsignable,
}

/// Puts an image together. An empty command line and no initrds are left out.
///
/// # Errors
/// The stub will not do, or the whole is too large.
pub fn assemble(
    stub: &[u8],
    kernel: &Content,
    initrds: &[&Content],
    cmdline: &str,
) -> Result<Content, Error> {
    let text = |text: &str| Content::new(vec![Piece::Memory(text.to_owned().into())]);
    let mut sections = vec![(b".osrel\0\0", text(OS_RELEASE), DATA)];
    if !cmdline.is_empty() {
        sections.push((b".cmdline", text(cmdline), DATA));
    }
    if !initrds.is_empty() {
        sections.push((b".initrd\0", concatenated(initrds)?, DATA));
    }
    // The last one, as in ukify(1): behind it a kernel may have room to unpack itself.
    sections.push((b".linux\0\0", kernel.clone(), CODE));

    let pe = Headers::parse(stub)?;
    let old = pe.sections(stub)?;
    let names = old.iter().map(|section| section.name);
    if pe.is_signed(stub)? || names.into_iter().any(|name| name == *b".linux\0\0") {
        return Err(Error::Finished);
    }
    let memory_alignment = alignment(u32_at(stub, pe.optional + 32)?)?;
    let file_alignment = alignment(u32_at(stub, pe.optional + 36)?)?;
    let raw_ends = old.iter().map(|section| u64::from(section.raw) + u64::from(section.raw_size));
    // What lies behind the last section is a symbol table, which firmware does not load.
    let end = raw_ends.max().ok_or(Error::NotPe)?;
    let mut header = pe.table + old.len() * SECTION;
    // Sections that end before their own headers do.
    if position(end)? < header {
        return Err(Error::NotPe);
    }
    let mut head = stub.get(..position(end)?).ok_or(Error::NotPe)?.to_vec();
    let mut raw = end.next_multiple_of(file_alignment);
    head.resize(position(raw)?, 0);
    let address_ends =
        old.iter().map(|section| u64::from(section.address) + u64::from(section.virtual_size));
    let mut address = address_ends.max().ok_or(Error::NotPe)?.next_multiple_of(memory_alignment);

    let room = u32_at(stub, pe.optional + 60)?;
    let first_raw = old.iter().filter(|section| section.raw_size > 0).map(|section| section.raw);
    let room = first_raw.min().map_or(room, |first| first.min(room));
    if header + sections.len() * SECTION > position(room.into())? {
        return Err(Error::NoRoom);
    }
    let count = u16::try_from(old.len() + sections.len()).map_err(|_| Error::NoRoom)?;
    let mut data = u32_at(stub, pe.optional + 8)?;
    let mut body = Vec::new();
    for (name, content, flags) in &sections {
        let length = content.length();
        let padded = length.next_multiple_of(file_alignment);
        let fields = [number(length)?, number(address)?, number(padded)?, number(raw)?];
        put(&mut head, header, *name)?;
        for (at, field) in (header + 8..).step_by(4).zip(fields) {
            put(&mut head, at, &field.to_le_bytes())?;
        }
        // No relocations and no line numbers.
        put(&mut head, header + 24, &[0; 12])?;
        put(&mut head, header + 36, &flags.to_le_bytes())?;
        body.extend_from_slice(content.pieces());
        body.extend(zeros(padded - length)?);
        data = data.saturating_add(number(padded)?);
        header += SECTION;
        raw += padded;
        address = (address + length).next_multiple_of(memory_alignment);
    }
    // The end of the file, too, is counted with 32 bits.
    number(raw)?;
    put(&mut head, pe.coff + 6, &count.to_le_bytes())?;
    // No symbol table.
    put(&mut head, pe.coff + 12, &[0; 8])?;
    put(&mut head, pe.optional + 8, &data.to_le_bytes())?;
    put(&mut head, pe.optional + 56, &number(address)?.to_le_bytes())?;
    // No checksum: UEFI has no use for it, and it would cost reading everything.
    put(&mut head, pe.optional + 64, &[0; 4])?;
    body.insert(0, Piece::Memory(head.into()));
    Ok(Content::new(body))
}

/// Where in the file the content of a section stands. `head` is the file's beginning.
///
/// # Errors
/// Not an EFI program, or its headers are not within `head`.
pub fn find_section(head: &[u8], name: &[u8; 8]) -> Result<Option<Range<u64>>, Error> {
    let sections = Headers::parse(head)?.sections(head)?;
    Ok(sections.into_iter().find(|section| section.name == *name).map(|section| {
        let start = u64::from(section.raw);
        start..start + u64::from(section.virtual_size.min(section.raw_size))
    }))
}

/// Where an EFI program has what its signature does not cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unhashed {
    /// Its checksum, 4 octets.
    pub checksum: usize,
    /// The entry of the data directory that says where the signatures are, 8 octets.
    pub certificates: usize,
    /// Whether there are any.
    pub signed: bool,
}

/// Finds it. `head` is the file's beginning.
///
/// # Errors
/// Not an EFI program, its headers are not within `head`, or firmware would not hash it from its
/// first octet to its last (EDK2, `HashPeImage`: headers, then sections by their place in the file,
/// then what lies behind).
pub fn unhashed(head: &[u8]) -> Result<Unhashed, Error> {
    let pe = Headers::parse(head)?;
    if u32_at(head, pe.directories - 4)? <= 4 || pe.directories + 5 * 8 > pe.table {
        return Err(Error::Unsignable);
    }
    let mut sections = pe.sections(head)?;
    sections.retain(|section| section.raw_size > 0);
    sections.sort_by_key(|section| section.raw);
    let headers = u64::from(u32_at(head, pe.optional + 60)?);
    sections.iter().try_fold(headers, |end, section| {
        let start = u64::from(section.raw);
        (start == end).then(|| start + u64::from(section.raw_size)).ok_or(Error::Unsignable)
    })?;
    Ok(Unhashed {
        checksum: pe.optional + 64,
        certificates: pe.directories + 4 * 8,
        signed: pe.is_signed(head)?,
    })
}

/// Several initrds as one, each on its boundary.
fn concatenated(initrds: &[&Content]) -> Result<Content, Error> {
    let mut pieces = Vec::new();
    for initrd in initrds {
        let length = initrd.length();
        pieces.extend_from_slice(initrd.pieces());
        let padded = length.checked_next_multiple_of(ARCHIVE).ok_or(Error::TooLarge)?;
        pieces.extend(zeros(padded - length)?);
    }
    Ok(Content::new(pieces))
}

/// Where the parts of a PE header begin.
struct Headers {
    /// `PE\0\0`, followed by the COFF header.
    coff: usize,
    optional: usize,
    table: usize,
    count: usize,
    /// Of the data directories.
    directories: usize,
}

/// What is read of a section's header.
struct Section {
    name: [u8; 8],
    virtual_size: u32,
    address: u32,
    raw_size: u32,
    raw: u32,
}

impl Headers {
    fn parse(image: &[u8]) -> Result<Self, Error> {
        if !image.starts_with(b"MZ") {
            return Err(Error::NotPe);
        }
        let coff = position(u32_at(image, 0x3c)?.into())?;
        if coff > image.len() || array_at(image, coff)? != *b"PE\0\0" {
            return Err(Error::NotPe);
        }
        let optional = coff + 24;
        let directories = match u16_at(image, optional)? {
            // PE32 and PE32+.
            0x10b => optional + 96,
            0x20b => optional + 112,
            _ => return Err(Error::NotPe),
        };
        let table = optional + usize::from(u16_at(image, coff + 20)?);
        if table < directories {
            return Err(Error::NotPe);
        }
        Ok(Self { coff, optional, table, count: u16_at(image, coff + 6)?.into(), directories })
    }

    fn sections(&self, image: &[u8]) -> Result<Vec<Section>, Error> {
        let starts = (self.table..).step_by(SECTION).take(self.count);
        starts
            .map(|at| {
                Ok(Section {
                    name: array_at(image, at)?,
                    virtual_size: u32_at(image, at + 8)?,
                    address: u32_at(image, at + 12)?,
                    raw_size: u32_at(image, at + 16)?,
                    raw: u32_at(image, at + 20)?,
                })
            })
            .collect()
    }

    /// Whether the fifth data directory, the certificates, is there and not empty.
    fn is_signed(&self, image: &[u8]) -> Result<bool, Error> {
        let known = u32_at(image, self.directories - 4)?;
        Ok(known > 4 && u32_at(image, self.directories + 4 * 8 + 4)? != 0)
    }
}

fn array_at<const N: usize>(octets: &[u8], at: usize) -> Result<[u8; N], Error> {
    octets.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Error::NotPe)
}

fn u16_at(octets: &[u8], at: usize) -> Result<u16, Error> {
    array_at(octets, at).map(u16::from_le_bytes)
}

fn u32_at(octets: &[u8], at: usize) -> Result<u32, Error> {
    array_at(octets, at).map(u32::from_le_bytes)
}

fn put(octets: &mut [u8], at: usize, value: &[u8]) -> Result<(), Error> {
    let place = octets.get_mut(at..).and_then(|rest| rest.get_mut(..value.len()));
    place.ok_or(Error::NotPe)?.copy_from_slice(value);
    Ok(())
}

/// An alignment that a header names: a power of two, at most 64 KiB.
fn alignment(value: u32) -> Result<u64, Error> {
    (value.is_power_of_two() && value <= 0x1_0000).then_some(value.into()).ok_or(Error::NotPe)
}

/// A place in the stub.
fn position(value: u64) -> Result<usize, Error> {
    usize::try_from(value).map_err(|_| Error::NotPe)
}

/// A field of a PE header.
fn number(value: u64) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| Error::TooLarge)
}

/// Padding, less than an alignment.
fn zeros(count: u64) -> Result<Option<Piece>, Error> {
    let count = position(count)?;
    Ok((count > 0).then(|| Piece::Memory(Bytes::from(vec![0; count]))))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// A stub with one section, `.text`, at address 0x1000 and in the file at 0x200; 16 octets of
    /// symbols behind it.
    pub(crate) fn stub(machine: u16) -> Vec<u8> {
        let mut stub = vec![0; 0x410];
        let mut put = |at: usize, value: &[u8]| stub[at..at + value.len()].copy_from_slice(value);
        put(0, b"MZ");
        put(0x3c, &[0x40]);
        put(0x40, b"PE\0\0");
        put(0x44, &machine.to_le_bytes());
        put(0x46, &[1]);
        // Symbol table at 0x400, one symbol.
        put(0x4c, &[0, 4, 0, 0, 1]);
        // Size of the optional header 0xf0; executable.
        put(0x54, &[0xf0, 0, 0x06, 0x02]);
        put(0x58, &[0x0b, 0x02]);
        // Entry point; alignments 0x1000 and 0x200; size of image 0x2000, of headers 0x200.
        put(0x68, &[0, 0x10]);
        put(0x78, &[0, 0x10, 0, 0, 0, 2]);
        put(0x90, &[0, 0x20, 0, 0, 0, 2, 0, 0, 0xaa, 0xbb, 0xcc, 0xdd, 10]);
        put(0xc4, &[16]);
        put(0x148, b".text\0\0\0");
        put(0x150, &[0x80, 1, 0, 0, 0, 0x10, 0, 0, 0, 2, 0, 0, 0, 2]);
        put(0x16c, &CODE.to_le_bytes());
        put(0x200, &[0xc3; 0x180]);
        put(0x400, b"symbol table, 16");
        // Its header holds two more sections: make it wider by moving the section down.
        stub[0x96..0x98].copy_from_slice(&[0, 0]);
        stub[0x94..0x96].copy_from_slice(&[0, 4]);
        stub.splice(0x200..0x200, [0; 0x200]);
        stub[0x15c..0x15e].copy_from_slice(&[0, 4]);
        stub[0x4d] = 6;
        stub
    }

    fn content(octets: &[u8]) -> Content {
        Content::new(vec![Piece::Memory(octets.to_vec().into())])
    }

    fn whole(content: &Content) -> Vec<u8> {
        content.read_at(0, usize::try_from(content.length()).unwrap(), Vec::new()).unwrap()
    }

    fn section(image: &[u8], name: &[u8; 8]) -> Option<Vec<u8>> {
        let range = find_section(image, name).unwrap()?;
        let bounds = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        Some(image[bounds].to_vec())
    }

    #[test]
    fn the_whole_image_octet_by_octet() {
        let stub = stub(0x8664);
        let initrds = [&content(b"070701first"), &content(b"second")];
        let kernel = content(&[7; 0x201]);
        let image = whole(&assemble(&stub, &kernel, &initrds, "init=/x é").unwrap());

        // The stub's own header and section, but for the fields that change.
        let mut head = stub[..0x170].to_vec();
        head[0x46] = 5;
        head[0x4c..0x54].fill(0);
        // 3 sections of one unit of 0x200 octets and one of two.
        head[0x60..0x64].copy_from_slice(&0xa00_u32.to_le_bytes());
        head[0x90..0x94].copy_from_slice(&0x6000_u32.to_le_bytes());
        head[0x98..0x9c].fill(0);
        assert_eq!(image[..0x170], head);
        assert_eq!(image[0x400..0x600], stub[0x400..0x600]);
        let header = |name: &[u8; 8], fields: [u32; 4], flags: u32| {
            let fields: Vec<u8> = fields.into_iter().flat_map(u32::to_le_bytes).collect();
            [name, &fields[..], &[0; 12], &flags.to_le_bytes()].concat()
        };
        let os_release = u32::try_from(OS_RELEASE.len()).unwrap();
        let headers = [
            header(b".osrel\0\0", [os_release, 0x2000, 0x200, 0x600], DATA),
            header(b".cmdline", [10, 0x3000, 0x200, 0x800], DATA),
            header(b".initrd\0", [20, 0x4000, 0x200, 0xa00], DATA),
            header(b".linux\0\0", [0x201, 0x5000, 0x400, 0xc00], CODE),
        ];
        assert_eq!(image[0x170..0x210], headers.concat());
        assert!(image[0x210..0x400].iter().all(|&octet| octet == 0));
        assert_eq!(image[0x800..0x80b], *"init=/x é\0".as_bytes());
        assert_eq!(image[0xa00..0xa15], *b"070701first\0second\0\0\0");
        assert_eq!(image[0xc00..0xe01], [7; 0x201]);
        assert_eq!(image.len(), 0x1000);
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let image = whole(&assemble(&stub(0x8664), &content(b"kernel"), &[], "").unwrap());
        assert_eq!(section(&image, b".linux\0\0").unwrap(), b"kernel");
        assert_eq!(section(&image, b".initrd\0"), None);
        assert_eq!(section(&image, b".cmdline"), None);
    }

    #[test]
    fn a_stub_that_will_not_do_is_refused() {
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut stub = stub(0x8664);
            change(&mut stub);
            assemble(&stub, &content(b"kernel"), &[], "a").err()
        };
        assert_eq!(with(&|_| {}), None);
        assert_eq!(with(&|stub| stub[0] = 0), Some(Error::NotPe));
        assert_eq!(with(&|stub| stub[0x3c..0x40].fill(0xff)), Some(Error::NotPe));
        assert_eq!(with(&|stub| stub[0x58] = 0), Some(Error::NotPe));
        assert_eq!(with(&|stub| stub[0x46] = 0), Some(Error::NotPe));
        assert_eq!(with(&|stub| stub[0x78..0x7c].fill(0)), Some(Error::NotPe));
        assert_eq!(with(&|stub| stub.truncate(0x5ff)), Some(Error::NotPe));
        // Found by fuzzing: an empty section that ends at octet 65, so that the rest was cut off.
        let early =
            |stub: &mut Vec<u8>| stub[0x158..0x160].copy_from_slice(&[0, 0, 0, 0, 65, 0, 0, 0]);
        assert_eq!(with(&early), Some(Error::NotPe));
        assert_eq!(
            with(&|stub| stub[0x94..0x98].copy_from_slice(&[0xe7, 1, 0, 0])),
            Some(Error::NoRoom)
        );
        assert_eq!(with(&|stub| stub[0xec] = 8), Some(Error::Finished));
        assert_eq!(
            with(&|stub| stub[0x148..0x150].copy_from_slice(b".linux\0\0")),
            Some(Error::Finished)
        );
    }

    #[test]
    fn an_initrd_of_4_gib_is_too_large_and_one_of_less_costs_no_memory() {
        let file = |length: u64| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            Content::file(file, length)
        };
        let kernel = content(b"kernel");
        let large = assemble(&stub(0x8664), &kernel, &[&file(3 << 30)], "").unwrap();
        assert_eq!(large.length(), 0x800 + (3 << 30) + 0x200);
        let in_memory = large.pieces().iter().map(|piece| match piece {
            Piece::Memory(octets) => octets.len(),
            Piece::File { .. } => 0,
        });
        assert!(in_memory.sum::<usize>() < 0x1000);
        let error = assemble(&stub(0x8664), &kernel, &[&file(1 << 32)], "").unwrap_err();
        assert_eq!(error, Error::TooLarge);
        let half = file(1 << 31);
        let error = assemble(&stub(0x8664), &kernel, &[&half, &half], "").unwrap_err();
        assert_eq!(error, Error::TooLarge);
    }

    /// A reader that was not written here (package binutils) sees the sections of the real stub,
    /// and each on its place.
    #[test]
    fn objdump_reads_the_image_made_with_systemds_stub() {
        const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
        let Ok(stub) = std::fs::read(STUB) else {
            eprintln!("SKIPPED: needs {STUB} (package systemd-boot-efi)");
            return;
        };
        let kernel = content(&[9; 70_000]);
        let initrd = content(&[8; 1_000_001]);
        let image = assemble(&stub, &kernel, &[&initrd], "console=ttyS0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uki.efi");
        std::fs::write(&path, whole(&image)).unwrap();
        let Ok(output) = Command::new("objdump").arg("-h").arg(&path).output() else {
            eprintln!("SKIPPED: needs objdump (package binutils)");
            return;
        };
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("pei-x86-64") && output.stderr.is_empty(), "{text}");
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|words| words.len() == 7 && words[1].starts_with('.'))
            .collect();
        let sizes: Vec<(&str, &str)> = rows.iter().map(|words| (words[1], words[2])).collect();
        assert!(sizes.contains(&(".sdmagic", "00000034")), "{text}");
        assert_eq!(
            sizes[sizes.len() - 3..],
            [(".cmdline", "0000000d"), (".initrd", "000f4244"), (".linux", "00011170"),]
        );
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        for pair in rows.windows(2) {
            assert!(hex(pair[0][3]) + hex(pair[0][2]) <= hex(pair[1][3]), "{text}");
            assert!(hex(pair[0][5]) + hex(pair[0][2]) <= hex(pair[1][5]), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_stub_is_taken_or_refused_without_panic(
            changes in proptest::collection::vec((0_usize..0x180, any::<u8>()), 0..8),
            length in 0_usize..0x700,
        ) {
            let mut stub = stub(0x8664);
            for (at, octet) in changes {
                stub[at] = octet;
            }
            stub.truncate(length);
            if let Ok(image) = assemble(&stub, &content(b"kernel"), &[&content(b"initrd")], "a") {
                let image = whole(&image);
                prop_assert_eq!(section(&image, b".linux\0\0"), Some(b"kernel".to_vec()));
            }
        }

        #[test]
        fn every_section_comes_back_as_it_was_given(
            kernel in proptest::collection::vec(any::<u8>(), 1..3000),
            initrd in proptest::collection::vec(any::<u8>(), 1..3000),
            cmdline in "[ -~]{1,600}",
        ) {
            let image = assemble(&stub(0xaa64), &content(&kernel), &[&content(&initrd)], &cmdline);
            let image = whole(&image.unwrap());
            prop_assert_eq!(section(&image, b".linux\0\0"), Some(kernel));
            prop_assert_eq!(section(&image, b".cmdline"), Some(cmdline.into_bytes()));
            let mut found = section(&image, b".initrd\0").unwrap();
            prop_assert_eq!(found.len() % 4, 0);
            found.truncate(initrd.len());
            prop_assert_eq!(found, initrd);
        }
    }
}
