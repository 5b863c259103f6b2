//! Positioned reads from what is served: many machines read one file, none moves its offset.
//!
//! Guarantees: a [`Content`] reads as the concatenation of its pieces, whatever part is asked for;
//! its length never changes, and a file that became shorter is an error, never filled up. The end of
//! a file that was written to since it was opened is not given out, so that no reader takes a mixture
//! for the whole.

use std::{fs::File, io, sync::Arc, time::SystemTime};

use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::Errno};

/// A part of a [`Content`].
#[derive(Clone, Debug)]
pub enum Piece {
    /// Octets in memory: headers and padding.
    Memory(Bytes),
    /// `length` octets of an open file.
    File {
        /// The descriptor.
        file: Arc<File>,
        /// Where they begin.
        start: u64,
        /// Octets.
        length: u64,
        /// When it had last been written to, as it was opened; none of a file that is still written
        /// to, and only ever grows.
        modified: Option<SystemTime>,
    },
}

impl Piece {
    /// The first `length` octets of a file that was just opened.
    #[must_use]
    pub fn file(file: File, length: u64) -> Self {
        let modified = modified(&file);
        Self::File { file: Arc::new(file), start: 0, length, modified }
    }

    /// Whether its file was not written to since it was opened.
    pub(crate) fn is_unchanged(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::File { file, modified: then, .. } => then.is_none() || modified(file) == *then,
        }
    }

    fn length(&self) -> u64 {
        match self {
            Self::Memory(octets) => u64::try_from(octets.len()).unwrap_or(u64::MAX),
            Self::File { length, .. } => *length,
        }
    }

    /// What is left of it behind its first `gone` octets, of which it has so many.
    fn without(&self, gone: u64) -> Self {
        match self {
            Self::Memory(octets) => {
                let gone = usize::try_from(gone).unwrap_or(usize::MAX).min(octets.len());
                Self::Memory(octets.slice(gone..))
            }
            Self::File { file, start, length, modified } => Self::File {
                file: Arc::clone(file),
                start: start.saturating_add(gone),
                length: length.saturating_sub(gone),
                modified: *modified,
            },
        }
    }

    /// Appends `count` octets from `offset` on to `buffer`.
    fn append(&self, offset: u64, count: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Memory(octets) => {
                let part = usize::try_from(offset).ok().and_then(|start| {
                    let end = start.checked_add(count)?;
                    octets.get(start..end)
                });
                buffer.extend_from_slice(part.ok_or_else(shorter)?);
                Ok(())
            }
            Self::File { file, start, length, .. } => {
                append(file, start.saturating_add(offset), count, buffer)?;
                let end = u64::try_from(count).ok().and_then(|count| offset.checked_add(count));
                if count > 0 && end == Some(*length) && !self.is_unchanged() {
                    return Err(changed());
                }
                Ok(())
            }
        }
    }
}

/// The octets of something that is served: one file, or several pieces that read as one.
#[derive(Clone, Debug)]
pub struct Content(Arc<[Piece]>);

impl Content {
    /// These pieces, one after the other.
    #[must_use]
    pub fn new(pieces: Vec<Piece>) -> Self {
        Self(pieces.into())
    }

    /// The first `length` octets of a file.
    #[must_use]
    pub fn file(file: File, length: u64) -> Self {
        Self::new(vec![Piece::file(file, length)])
    }

    /// Whether no file of it was written to since it was opened.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.0.iter().all(Piece::is_unchanged)
    }

    /// What it is made of.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// Octets.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.0.iter().map(Piece::length).fold(0, u64::saturating_add)
    }

    /// What is left behind its first `offset` octets of the piece that they end in; nothing, if they
    /// are all.
    pub(crate) fn behind(&self, offset: u64) -> Option<Piece> {
        let mut offset = offset;
        for piece in &*self.0 {
            if offset < piece.length() {
                return Some(piece.without(offset));
            }
            offset -= piece.length();
        }
        None
    }

    /// The same with other octets at its beginning, as many as `head` has.
    ///
    /// # Errors
    /// It is shorter than that.
    pub fn with_head(&self, head: Bytes) -> io::Result<Self> {
        let mut covered = Piece::Memory(head.clone()).length();
        let mut pieces = vec![Piece::Memory(head)];
        for piece in &*self.0 {
            let gone = covered.min(piece.length());
            pieces.push(piece.without(gone));
            covered -= gone;
        }
        if covered == 0 { Ok(Self::new(pieces)) } else { Err(shorter()) }
    }

    /// Reads exactly `count` octets at `offset` into `buffer`, whose old content is dropped and
    /// whose memory is used again. Blocks: call it off the runtime's own threads.
    ///
    /// # Errors
    /// A file cannot be read, or has become shorter.
    pub fn read_at(&self, offset: u64, count: usize, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        buffer.clear();
        buffer.reserve_exact(count);
        // Where the rest begins, counted from the piece at hand.
        let mut offset = offset;
        for piece in &*self.0 {
            let Some(rest) = piece.length().checked_sub(offset) else {
                offset -= piece.length();
                continue;
            };
            let wanted = count - buffer.len();
            let wanted = usize::try_from(rest).map_or(wanted, |rest| rest.min(wanted));
            piece.append(offset, wanted, &mut buffer)?;
            offset = 0;
        }
        if buffer.len() == count { Ok(buffer) } else { Err(shorter()) }
    }
}

fn append(file: &File, offset: u64, count: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut at = offset;
    let end = buffer.len() + count;
    while buffer.len() < end {
        // The kernel writes into memory that was never set to zero first. It may be more than is
        // wanted, if there is more room.
        match rustix::io::pread(file, spare_capacity(buffer), at) {
            Ok(0) => return Err(shorter()),
            Ok(read) => at = at.saturating_add(u64::try_from(read).unwrap_or(u64::MAX)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(end);
    Ok(())
}

/// When a file was last written to, as far as its file system tells.
fn modified(file: &File) -> Option<SystemTime> {
    file.metadata().and_then(|facts| facts.modified()).ok()
}

/// The end of a file is not given out, since not all of it is the same file's any more.
pub(crate) fn changed() -> io::Error {
    io::Error::other("the file was changed while it was being sent")
}

/// There are fewer octets than were announced.
pub(crate) fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was being sent")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(octets: &[u8], length: usize) -> Piece {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(octets).unwrap();
        Piece::file(file, length as u64)
    }

    #[test]
    fn exactly_what_was_asked() {
        let content = Content::new(vec![file(b"0123456789", 10)]);
        assert_eq!(content.read_at(3, 4, Vec::new()).unwrap(), b"3456");
        let large = Vec::with_capacity(100);
        assert_eq!(content.read_at(8, 2, large).unwrap(), b"89");
        assert_eq!(content.read_at(10, 0, b"old".to_vec()).unwrap(), b"");
        let error = content.read_at(8, 3, Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_that_became_shorter_is_not_filled_up_with_the_next_piece() {
        let next = Piece::Memory(Bytes::from_static(b"next"));
        let content = Content::new(vec![file(b"012", 5), next]);
        assert_eq!(content.length(), 9);
        assert_eq!(content.read_at(0, 3, Vec::new()).unwrap(), b"012");
        let error = content.read_at(0, 9, Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(content.read_at(5, 4, Vec::new()).unwrap(), b"next");
    }

    #[test]
    fn the_end_of_a_file_that_was_written_to_is_not_given_out() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let writer = file.try_clone().unwrap();
        let content = Content::file(file, 10);
        assert!(content.is_unchanged());
        assert_eq!(content.read_at(0, 10, Vec::new()).unwrap(), [0; 10]);
        writer.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!content.is_unchanged());
        assert_eq!(content.read_at(0, 9, Vec::new()).unwrap(), [0; 9]);
        let error = content.read_at(9, 1, Vec::new()).unwrap_err();
        assert!(error.to_string().contains("was changed"), "{error}");
    }

    proptest! {
        /// Files are longer than their pieces: what lies behind the end must not show.
        #[test]
        fn any_part_of_pieces_reads_as_their_concatenation(
            pieces in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40), 0_usize..8),
                0..6,
            ),
            offset in 0_usize..100,
            count in 0_usize..100,
            room in 0_usize..200,
        ) {
            let mut whole = Vec::new();
            let mut made = Vec::new();
            for (in_file, octets, behind) in pieces {
                let cut = octets.len().saturating_sub(behind);
                whole.extend_from_slice(&octets[..cut]);
                made.push(if in_file {
                    file(&octets, cut)
                } else {
                    Piece::Memory(octets[..cut].to_vec().into())
                });
            }
            let content = Content::new(made);
            prop_assert_eq!(content.length(), whole.len() as u64);
            let read = content.read_at(offset as u64, count, Vec::with_capacity(room));
            match whole.get(offset..offset + count) {
                Some(part) => prop_assert_eq!(read.unwrap(), part),
                None if count == 0 => prop_assert_eq!(read.unwrap(), b""),
                None => prop_assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof),
            }
            let head: Vec<u8> = vec![7; offset];
            match content.with_head(head.clone().into()) {
                Ok(other) => {
                    whole[..offset].copy_from_slice(&head);
                    prop_assert_eq!(other.read_at(0, whole.len(), Vec::new()).unwrap(), whole);
                }
                Err(_) => prop_assert!(offset > whole.len()),
            }
        }
    }
}
