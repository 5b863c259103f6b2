//! The signature of an EFI program: PKCS #7 SignedData over the hash of its image.
//!
//! Formats: "Windows Authenticode Portable Executable Signature Format" (Microsoft, 2008), RFC 2315,
//! UEFI specification section 32.2.4. Pure but for reading the image. Guarantees: what is hashed is
//! what firmware hashes, or there is an error.

use std::io;

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use super::der::{tag, value};
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

/// Object identifiers, as DER writes them.
mod oid {
    /// 1.3.6.1.4.1.311.2.1.4, SPC_INDIRECT_DATA.
    pub const INDIRECT_DATA: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 1, 4];
    /// 1.3.6.1.4.1.311.2.1.15, SPC_PE_IMAGE_DATA.
    pub const PE_IMAGE_DATA: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 1, 15];
    /// 2.16.840.1.101.3.4.2.1.
    pub const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
    /// 1.2.840.113549.1.1.1.
    pub const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
    /// 1.2.840.113549.1.7.2.
    pub const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
    /// 1.2.840.113549.1.9.3.
    pub const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3];
    /// 1.2.840.113549.1.9.4.
    pub const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4];
}

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

/// Who signs.
pub(super) struct Identity<'a> {
    /// The certificate.
    pub certificate: &'a [u8],
    /// Its issuer, a DER value.
    pub issuer: &'a [u8],
    /// Its serial number, a DER value.
    pub serial: &'a [u8],
}

/// The signature for an image of this hash. `sign` makes an RSA signature (PKCS #1 v1.5, SHA-256).
pub(super) fn signature<E>(
    hash: &[u8; 32],
    identity: &Identity<'_>,
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let sequence = |parts: &[&[u8]]| value(tag::SEQUENCE, parts);
    let oid = |octets: &[u8]| value(tag::OID, &[octets]);
    let algorithm = |octets: &[u8]| sequence(&[&oid(octets), &value(tag::NULL, &[])]);
    let attribute =
        |kind: &[u8], content: &[u8]| sequence(&[&oid(kind), &value(tag::SET, &[content])]);
    let one = value(tag::INTEGER, &[&[1]]);
    let sha256 = algorithm(oid::SHA256);

    // SpcPeImageData: no flags, and a file name in UTF-16 that has had no meaning since long.
    let name: Vec<u8> = "<<<Obsolete>>>".encode_utf16().flat_map(u16::to_be_bytes).collect();
    let name = value(tag::CONTEXT_0_PRIMITIVE, &[&name]);
    let link = value(tag::CONTEXT_0, &[&value(tag::CONTEXT_2, &[&name])]);
    let about = sequence(&[&value(tag::BIT_STRING, &[&[0]]), &link]);
    let about = sequence(&[&oid(oid::PE_IMAGE_DATA), &about]);
    let digest = sequence(&[&sha256, &value(tag::OCTET_STRING, &[hash])]);
    let digested = ring::digest::digest(&SHA256, &[about.as_slice(), &digest].concat());
    let indirect = sequence(&[&about, &digest]);

    // In the order of their encodings, as DER wants a set.
    let attributes = [
        attribute(oid::CONTENT_TYPE, &oid(oid::INDIRECT_DATA)),
        attribute(oid::MESSAGE_DIGEST, &value(tag::OCTET_STRING, &[digested.as_ref()])),
    ]
    .concat();
    // Signed as a set, sent with another tag (RFC 2315 section 9.3).
    let signed = sign(&value(tag::SET, &[&attributes]))?;
    let signer = sequence(&[
        &one,
        &sequence(&[identity.issuer, identity.serial]),
        &sha256,
        &value(tag::CONTEXT_0, &[&attributes]),
        &algorithm(oid::RSA),
        &value(tag::OCTET_STRING, &[&signed]),
    ]);
    let data = sequence(&[
        &one,
        &value(tag::SET, &[&sha256]),
        &sequence(&[&oid(oid::INDIRECT_DATA), &value(tag::CONTEXT_0, &[&indirect])]),
        &value(tag::CONTEXT_0, &[identity.certificate]),
        &value(tag::SET, &[&signer]),
    ]);
    Ok(sequence(&[&oid(oid::SIGNED_DATA), &value(tag::CONTEXT_0, &[&data])]))
}
