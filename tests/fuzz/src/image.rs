//! What kernels, stubs and other files of the user begin with.

use portcullis::{
    read::{Content, Piece},
    source::kernel::{is_kernel, is_linux, pe_machine},
    uki::{assemble, find_section},
};

fn content(octets: &'static [u8]) -> Content {
    Content::new(vec![Piece::Memory(octets.into())])
}

/// Any file as boot stub and as kernel: refused, or put together into a program in which each part
/// is found again, whole, and that has the length that was announced.
pub fn uki(octets: &[u8]) {
    assert!(is_kernel(octets) || !is_linux(octets));
    assert!(is_kernel(octets) || pe_machine(octets).is_none());
    for name in [b".linux\0\0", b".cmdline", b".initrd\0"] {
        let _ = find_section(octets, name);
    }
    let (kernel, first, second) = (content(b"KERNEL"), content(b"one"), content(b"two.."));
    let Ok(program) = assemble(octets, &kernel, &[&first, &second], "quiet a=b") else {
        return;
    };
    let length = usize::try_from(program.length()).unwrap();
    // Four sections, each padded by less than the largest alignment, and the stub.
    assert!(length < octets.len() + 6 * 0x1_0000 + 256);
    let whole = program.read_at(0, length, Vec::new()).unwrap();
    for (name, expected) in [
        (b".cmdline", &b"quiet a=b"[..]),
        (b".initrd\0", b"one\0two..\0\0\0"),
        (b".linux\0\0", b"KERNEL"),
    ] {
        // A stub may have sections of these names: the first one counts, for tools and here.
        if find_section(octets, name) == Ok(None) {
            let found = find_section(&whole, name).unwrap().unwrap();
            let found = usize::try_from(found.start).unwrap()..usize::try_from(found.end).unwrap();
            assert_eq!(&whole[found], expected);
        }
    }
}
