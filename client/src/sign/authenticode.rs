//! The place of a signature in an EFI program: what of the program is hashed, and the table behind it that
//! holds the signature.
//!
//! Formats: "Windows Authenticode Portable Executable Signature Format" (Microsoft, 2008), UEFI
//! specification section 32.2.4. Pure but for reading the image. Guarantees: what is hashed is what
//! firmware hashes, or there is an error.

use std::io;

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use crate::{
    read::{Content, Piece},
    uki::Unhashed,
};

/// Octets that are hashed at a time.
const CHUNK: usize = 1 << 20;
/// The table of certificates begins on such a boundary, and ends on one (PE Format, "The Attribute
/// Certificate Table").
const ALIGNMENT: u64 = 8;
/// Header of an entry of that table: its length, WIN_CERT_REVISION_2_0 and
/// WIN_CERT_TYPE_PKCS_SIGNED_DATA.
const ENTRY: usize = 8;

/// SHA-256 of an image, padded to where its signature will stand. Reads all of it.
pub(super) fn hash(image: &Content, unhashed: Unhashed) -> io::Result<[u8; 32]> {
    let at = |place: usize| u64::try_from(place).unwrap_or(u64::MAX);
    let holes = [at(unhashed.checksum), at(unhashed.certificates), image.length()];
    let (mut context, mut buffer) = (Context::new(&SHA256), Vec::new());
    let mut start = 0;
    for (end, size) in holes.into_iter().zip([4, 8, 0]) {
        while start < end {
            let count = usize::try_from(end - start).map_or(CHUNK, |left| left.min(CHUNK));
            buffer = image.read_at(start, count, buffer)?;
            context.update(&buffer);
            start += at(count);
        }
        start = end + size;
    }
    context.update(&padding(image.length()));
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Ok(hash)
}

/// Zeros up to the next boundary.
fn padding(length: u64) -> Vec<u8> {
    let missing = length.next_multiple_of(ALIGNMENT) - length;
    vec![0; usize::try_from(missing).unwrap_or_default()]
}

/// The image with a signature behind it; `head` is its beginning, with the data directory in it.
/// `None` if the whole is beyond 4 GiB.
pub(super) fn append(
    image: &Content,
    mut head: Vec<u8>,
    unhashed: Unhashed,
    signature: &[u8],
) -> Option<io::Result<Content>> {
    let padded = image.length().next_multiple_of(ALIGNMENT);
    let length = u32::try_from(ENTRY + signature.len()).ok()?;
    let mut entry = length.to_le_bytes().to_vec();
    entry.extend([0x00, 0x02, 0x02, 0x00]);
    entry.extend(signature);
    entry.extend(padding(u64::from(length)));
    let size = u32::try_from(entry.len()).ok()?;
    let start = u32::try_from(padded).ok().filter(|start| start.checked_add(size).is_some())?;
    let place = head.get_mut(unhashed.certificates..)?.get_mut(..8)?;
    place.copy_from_slice(&[start.to_le_bytes(), size.to_le_bytes()].concat());
    Some(image.with_head(Bytes::from(head)).map(|image| {
        let mut pieces = image.pieces().to_vec();
        pieces.push(Piece::Memory(padding(image.length()).into()));
        pieces.push(Piece::Memory(entry.into()));
        Content::new(pieces)
    }))
}
