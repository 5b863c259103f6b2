//! Positioned reads from a shared descriptor: many machines read one file, none moves its offset.

use std::{fs::File, io};

use rustix::{buffer::spare_capacity, io::Errno};

/// Reads exactly `count` octets at `offset` into `buffer`, whose old content is dropped and whose
/// memory is used again. Blocks: call it off the runtime's own threads.
///
/// # Errors
/// The file cannot be read, or has become shorter.
pub fn read_at(file: &File, offset: u64, count: usize, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
    buffer.clear();
    buffer.reserve_exact(count);
    let mut at = offset;
    while buffer.len() < count {
        // The kernel writes into memory that was never set to zero first. It may be more than
        // `count`, if the old buffer was larger.
        match rustix::io::pread(file, spare_capacity(&mut buffer), at) {
            Ok(0) => return Err(shorter()),
            Ok(read) => at = at.saturating_add(u64::try_from(read).unwrap_or(u64::MAX)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(count);
    Ok(buffer)
}

fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was being sent")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn exactly_what_was_asked() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        assert_eq!(read_at(&file, 3, 4, Vec::new()).unwrap(), b"3456");
        let large = Vec::with_capacity(100);
        assert_eq!(read_at(&file, 8, 2, large).unwrap(), b"89");
        assert_eq!(read_at(&file, 10, 0, b"old".to_vec()).unwrap(), b"");
        let error = read_at(&file, 8, 3, Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
