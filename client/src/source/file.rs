//! One file: opened once, measured from its descriptor, named for HTTP.

use std::{
    fs::{self, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    exit::{Code, Failure},
    image::Blob,
    read::{Content, Piece},
};

/// Why a file cannot be served.
#[derive(Debug)]
pub struct OpenError {
    path: PathBuf,
    what: What,
}

#[derive(Debug)]
enum What {
    Io(io::Error),
    Directory,
    NotRegular,
    Empty,
}

impl OpenError {
    /// As a failure of the source; `role` is the word for what the file should have been.
    pub fn failure(&self, role: &str) -> Failure {
        let path = self.path.display();
        let failure = |text: String| Failure::new(Code::Source, text);
        match &self.what {
            What::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                failure(format!("the {role} {path} does not exist"))
            }
            What::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => failure(format!(
                "the {role} {path} cannot be read: permission denied"
            ))
            .advise(
                "portcullis reads it as you do: make it readable, or copy it to a place of yours",
            ),
            What::Io(error) => failure(format!("the {role} {path} cannot be read: {error}")),
            What::Directory => {
                failure(format!("the {role} {path} is a directory, and a file is needed"))
            }
            What::NotRegular => failure(format!("the {role} {path} is not a regular file")),
            What::Empty => failure(format!("the {role} {path} is empty")),
        }
    }
}

/// Opens a regular file that is not empty.
///
/// # Errors
/// [`OpenError`], which knows the path.
pub fn open_blob(path: &Path) -> Result<Blob, OpenError> {
    let fault = |what| OpenError { path: path.to_owned(), what };
    // O_NONBLOCK: a FIFO in the place of a file must not hold the program; no effect on files.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|error| fault(What::Io(error)))?;
    let facts = file.metadata().map_err(|error| fault(What::Io(error)))?;
    if facts.is_dir() {
        return Err(fault(What::Directory));
    }
    if !facts.is_file() {
        return Err(fault(What::NotRegular));
    }
    if facts.len() == 0 {
        return Err(fault(What::Empty));
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(Blob {
        name,
        content: Content::file(file, facts.len()),
        length: facts.len(),
        etag: etag(&facts),
        last_modified: http_date(facts.mtime()),
    })
}

/// What changes when a file is written to, or another one takes its place.
fn etag(facts: &Metadata) -> String {
    let (device, inode, length) = (facts.dev(), facts.ino(), facts.len());
    format!("\"{device:x}-{inode:x}-{length:x}-{:x}.{:x}\"", facts.mtime(), facts.mtime_nsec())
}

/// Whether the file at `path` is still the one that had this entity tag when it was opened.
pub fn is_same(path: &Path, tag: &str) -> bool {
    fs::metadata(path).is_ok_and(|facts| etag(&facts) == tag)
}

/// A text of our own making.
#[must_use]
pub fn text_blob(name: &str, text: String) -> Blob {
    let content = Content::new(vec![Piece::Memory(text.into())]);
    Blob {
        name: name.to_owned(),
        length: content.length(),
        content,
        etag: String::new(),
        last_modified: String::new(),
    }
}

/// The first octets of a file, at most `limit`.
///
/// # Errors
/// Whatever reading gives.
pub fn read_head(blob: &Blob, limit: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(blob.length.min(limit)).unwrap_or(usize::MAX);
    blob.content.read_at(0, length, Vec::new())
}

/// Seconds since 1970 as IMF-fixdate (RFC 9110 section 5.6.7), which has no word for times before
/// 1970 and after 9999: the nearest that it has.
fn http_date(seconds: i64) -> String {
    const LAST: u64 = 253_402_300_799;
    let seconds = u64::try_from(seconds).unwrap_or(0).min(LAST);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_in_the_form_of_http() {
        for (seconds, text) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (1, "Thu, 01 Jan 1970 00:00:01 GMT"),
            (-5, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (i64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(http_date(seconds), text);
        }
    }

    #[test]
    fn the_entity_tag_changes_with_the_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("initrd");
        fs::write(&path, b"one").unwrap();
        let first = open_blob(&path).unwrap();
        assert_eq!(open_blob(&path).unwrap().etag, first.etag);
        assert!(first.etag.starts_with('"') && first.etag.ends_with('"'));
        fs::write(&path, b"three").unwrap();
        assert_ne!(open_blob(&path).unwrap().etag, first.etag);
    }

    #[test]
    fn a_fifo_does_not_hold_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let failure = open_blob(&path).unwrap_err().failure("kernel");
        assert!(failure.message.contains("not a regular file"), "{failure}");
    }
}
