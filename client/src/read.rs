//! Positioned reads from a shared descriptor: many machines read one file, none moves its offset.

use std::{fs::File, io};

/// Reads exactly `count` octets at `offset` into `buffer`, whose old content is dropped and whose
/// memory is used again. Blocks: call it off the runtime's own threads.
///
/// # Errors
/// The file cannot be read, or has become shorter.
pub fn read_at(file: &File, offset: u64, count: usize, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
    buffer.clear();
    buffer.resize(count, 0);
    std::os::unix::fs::FileExt::read_exact_at(file, &mut buffer, offset).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            io::Error::new(
                error.kind(),
                "the file became shorter while it was being sent",
            )
        } else {
            error
        }
    })?;
    Ok(buffer)
}
