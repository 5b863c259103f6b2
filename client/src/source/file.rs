//! One file: opened once, measured from its descriptor, named for HTTP.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    exit::{Code, Failure},
    image::Blob,
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
            What::Directory => failure(format!(
                "the {role} {path} is a directory, and a file is needed"
            )),
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
    let fault = |what| OpenError {
        path: path.to_owned(),
        what,
    };
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
    let name = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned();
    Ok(Blob {
        name,
        file: Arc::new(file),
        length: facts.len(),
        etag: format!(
            "\"{:x}-{:x}-{:x}-{:x}.{:x}\"",
            facts.dev(),
            facts.ino(),
            facts.len(),
            facts.mtime(),
            facts.mtime_nsec()
        ),
        last_modified: http_date(facts.mtime()),
    })
}

/// The first octets of a file, at most `limit`.
///
/// # Errors
/// Whatever reading gives.
pub fn read_head(blob: &Blob, limit: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(blob.length.min(limit)).unwrap_or(usize::MAX);
    let mut head = vec![0; length];
    let file: &File = &blob.file;
    file.read_exact_at(&mut head, 0)?;
    Ok(head)
}

/// Seconds since 1970 as IMF-fixdate (RFC 9110 section 5.6.7). Times before 1970 count as 1970.
#[must_use]
pub fn http_date(seconds: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let date = Civil::from_unix(seconds);
    let word = |words: &[&'static str], index: u64| {
        usize::try_from(index)
            .ok()
            .and_then(|index| words.get(index).copied())
            .unwrap_or_default()
    };
    format!(
        "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
        word(&DAYS, date.days % 7),
        date.day,
        word(&MONTHS, date.month - 1),
        date.year,
        date.hour,
        date.minute,
        date.second
    )
}

/// Seconds since 1970 as `2026-11-22 10:22:05`, in UTC.
#[must_use]
pub fn timestamp(seconds: i64) -> String {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        second,
        ..
    } = Civil::from_unix(seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// A moment in the proleptic Gregorian calendar, UTC.
struct Civil {
    /// Since 1970-01-01.
    days: u64,
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    fn from_unix(seconds: i64) -> Self {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        let days = seconds / 86_400;
        // Years are counted from 1 March, so that the leap day is the last of its year, in eras of
        // 400 years, each 146,097 days long. 719,468 days lie between 0000-03-01 and 1970-01-01.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        Self {
            days,
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * from_march + 2) / 5 + 1,
            hour: seconds / 3_600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_in_the_form_of_http() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (1, "Thu, 01 Jan 1970 00:00:01 GMT"),
            (-5, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (1_704_067_199, "Sun, 31 Dec 2023 23:59:59 GMT"),
        ] {
            assert_eq!(http_date(seconds), text);
        }
        assert_eq!(timestamp(784_111_777), "1994-11-06 08:49:37");
    }

    #[test]
    fn the_entity_tag_changes_with_the_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("initrd");
        std::fs::write(&path, b"one").unwrap();
        let first = open_blob(&path).unwrap();
        assert_eq!(open_blob(&path).unwrap().etag, first.etag);
        assert!(first.etag.starts_with('"') && first.etag.ends_with('"'));
        std::fs::write(&path, b"three").unwrap();
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
