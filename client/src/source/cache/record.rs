//! What is known of a copy of another server's file, and what follows from it: may it be shared, may it
//! be kept, is it still what it was, and which copies go when there is no room.
//!
//! Guarantees: pure. An octet that was changed in a record makes it unreadable, or another record,
//! which then does not fit its file: what is read is never trusted without the hashes being looked at.

use std::{fmt::Write as _, time::SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{CACHE_CONTROL, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, VARY},
};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::parts::List;

/// Ends every copy that is kept. The number is that of the form of records.
const MAGIC: &[u8] = b"portcullis-copy-2";
/// Ended the copies of earlier versions, which had one hash for all: nobody reads them any more.
pub const OUTDATED: &[u8] = b"portcullis-copy-1";
/// Octets of a record at most, all of its end included: addresses and entity tags are short.
pub const TAIL: usize = 16 * 1024;
/// Longest address of which a copy is kept.
const ADDRESS: usize = 4096;
/// Longest entity tag or date that is remembered.
const VALIDATOR: usize = 512;

/// What a server says about keeping its answer (RFC 9111), and what names that content (RFC 9110
/// section 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// It may not be stored (RFC 9111 section 5.2.2.5).
    pub no_store: bool,
    /// Entity tag, strong or weak.
    pub etag: Option<String>,
    /// Date of the last change.
    pub last_modified: Option<String>,
    /// It may be another one for the next who asks (RFC 9110 section 12.5.5).
    varies: bool,
}

impl Terms {
    /// Read from the head of an answer.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| {
            let value = headers.get(name)?.to_str().ok()?.trim();
            (!value.is_empty() && value.len() <= VALIDATOR).then(|| value.to_owned())
        };
        let says = |name: HeaderName, word: &str| {
            let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            let mut words = values.flat_map(|value| value.split(','));
            words.any(|one| one.trim().eq_ignore_ascii_case(word))
        };
        Self {
            no_store: says(CACHE_CONTROL, "no-store"),
            etag: text(ETAG),
            last_modified: text(LAST_MODIFIED),
            varies: says(VARY, "*"),
        }
    }

    /// The entity tag, if octets that have it are the same ones (RFC 9110 section 8.8.1).
    #[must_use]
    pub fn strong(&self) -> Option<&str> {
        self.etag.as_deref().filter(|tag| tag.starts_with('"'))
    }

    /// Whether octets of the one are those of the other, wherever they are.
    #[must_use]
    pub fn is_surely(&self, other: &Self) -> bool {
        self.strong().is_some() && self.strong() == other.strong()
    }

    /// Whether its server can be asked if it is still the same.
    #[must_use]
    pub fn can_be_asked(&self) -> bool {
        !self.varies && (self.etag.is_some() || self.last_modified.is_some())
    }

    /// Whether a copy may be there for later runs, too. What stands behind a `?` may be a secret that
    /// is good for a while (a signed address), and is not written down.
    #[must_use]
    pub fn may_be_kept(&self, address: &Uri) -> bool {
        let plain = address.query().is_none() && address.to_string().len() <= ADDRESS;
        plain && !self.no_store && self.can_be_asked()
    }

    /// Asks whether it is still the same (RFC 9110 section 13.1): by both, of which a server that knows
    /// entity tags takes that one.
    #[must_use]
    pub fn conditions(&self) -> HeaderMap {
        let pairs = [(IF_NONE_MATCH, &self.etag), (IF_MODIFIED_SINCE, &self.last_modified)];
        let value = |text: &String| HeaderValue::from_str(text).ok();
        pairs
            .into_iter()
            .filter_map(|(name, text)| Some((name, text.as_ref().and_then(value)?)))
            .collect()
    }
}

/// What is written behind the octets of a copy, and the list of the hashes of their parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The address that was asked for, before redirects.
    pub url: String,
    /// Octets.
    pub length: u64,
    /// As its server said.
    pub etag: Option<String>,
    /// As its server said.
    pub last_modified: Option<String>,
    /// Strong entity tag for machines.
    pub tag: String,
    /// Names the octets: of the list of the SHA-256 of each MiB, in hexadecimal digits.
    pub parts_sha256: String,
}

impl Record {
    /// The record as it stands at the end of its file. None, if it would be too long.
    #[must_use]
    pub fn tail(&self) -> Option<Vec<u8>> {
        let mut tail = serde_json::to_vec(self).ok()?;
        let length = u32::try_from(tail.len()).ok()?;
        tail.extend(length.to_le_bytes());
        tail.extend(MAGIC);
        (tail.len() <= TAIL).then_some(tail)
    }

    /// Reads the record that `end`, the last octets of a file of `size` octets called `name`, ends with.
    #[must_use]
    pub fn read(end: &[u8], size: u64, name: &str) -> Option<Self> {
        let rest = end.strip_suffix(MAGIC)?;
        let (rest, length) = rest.split_last_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let text = rest.get(rest.len().checked_sub(length)?..)?;
        let record: Self = serde_json::from_slice(text).ok()?;
        let own = u64::try_from(length + 4 + MAGIC.len()).ok()?;
        let whole = own.checked_add(record.length)?.checked_add(List::size(record.length))?;
        (whole == size && file_name(&record.url) == name).then_some(record)
    }

    /// What its server said.
    #[must_use]
    pub fn terms(&self) -> Terms {
        let (etag, last_modified) = (self.etag.clone(), self.last_modified.clone());
        Terms { etag, last_modified, ..Terms::default() }
    }
}

/// The name of the file that has the copy of what lies at this address.
#[must_use]
pub fn file_name(url: &str) -> String {
    hex(digest(&SHA256, url.as_bytes()).as_ref())
}

/// Two digits for each octet.
#[must_use]
pub fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::with_capacity(octets.len() * 2), |mut text, octet| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{octet:02x}");
        text
    })
}

/// A file in the cache, as far as room goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelved {
    /// The file's name.
    pub name: String,
    /// What it takes on the disk.
    pub octets: u64,
    /// When it was last used.
    pub used: SystemTime,
}

/// How much there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Octets of all files together.
    pub octets: u64,
    /// Files.
    pub files: usize,
}

impl Budget {
    /// Whether so many files are not too many, and `needed` octets fit beside `octets`.
    #[must_use]
    pub fn fits(&self, files: usize, octets: u64, needed: u64) -> bool {
        files <= self.files && octets.saturating_add(needed) <= self.octets
    }
}

/// The order in which they go: what was not used for longest first.
pub fn oldest_first(shelf: &mut [Shelved]) {
    shelf.sort_by(|one, two| (one.used, &one.name).cmp(&(two.used, &two.name)));
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn terms(fields: &[(HeaderName, &str)]) -> Terms {
        let pairs = fields.iter().map(|(name, text)| (name.clone(), text.parse().unwrap()));
        Terms::of(&pairs.collect())
    }

    #[test]
    fn what_may_be_kept_and_how_it_is_asked_about() {
        let plain = Uri::from_static("http://h/k");
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (fields, kept, strong) in [
            (vec![(ETAG, "\"a\"")], true, true),
            (vec![(ETAG, "W/\"a\"")], true, false),
            (vec![(LAST_MODIFIED, date)], true, false),
            (vec![], false, false),
            (vec![(ETAG, "")], false, false),
            (vec![(ETAG, "\"a\""), (CACHE_CONTROL, "private, No-Store")], false, true),
            (vec![(ETAG, "\"a\""), (CACHE_CONTROL, "no-cache, max-age=0")], true, true),
            (vec![(ETAG, "\"a\""), (VARY, "*")], false, true),
            (vec![(ETAG, "\"a\""), (VARY, "Accept-Encoding")], true, true),
        ] {
            let terms = terms(&fields);
            assert_eq!(terms.may_be_kept(&plain), kept, "{fields:?}");
            assert_eq!(terms.strong().is_some(), strong, "{fields:?}");
        }
        let signed = Uri::from_static("http://h/k?signature=secret");
        assert!(!terms(&[(ETAG, "\"a\"")]).may_be_kept(&signed));
        let long: Uri = format!("http://h/{}", "x".repeat(ADDRESS)).parse().unwrap();
        assert!(!terms(&[(ETAG, "\"a\"")]).may_be_kept(&long));
        let asked = terms(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, date)]).conditions();
        assert_eq!(asked[IF_NONE_MATCH], "W/\"a\"");
        assert_eq!(asked[IF_MODIFIED_SINCE], date);
        assert!(Terms::default().conditions().is_empty());
    }

    fn record() -> Record {
        Record {
            url: "http://h/k".to_owned(),
            length: 10,
            etag: Some("\"a\"".to_owned()),
            last_modified: None,
            tag: "\"a\"".to_owned(),
            parts_sha256: hex(&[0xab; 32]),
        }
    }

    #[test]
    fn a_record_is_read_back_from_the_end_of_its_file_alone() {
        let (record, name) = (record(), file_name("http://h/k"));
        let tail = record.tail().unwrap();
        let size = 10 + 32 + tail.len() as u64;
        let end = [b"0123456789".as_slice(), &[0; 32], &tail].concat();
        assert_eq!(Record::read(&end, size, &name), Some(record.clone()));
        assert_eq!(Record::read(&tail, size, &name), Some(record.clone()));
        for (end, size, name) in [
            (&end[..], size + 1, name.as_str()),
            (&end[..end.len() - 1], size - 1, &name),
            (&end[..], size, "other"),
            (&tail[20..], size, &name),
            (b"", 0, &name),
            (MAGIC, 17, &name),
        ] {
            assert_eq!(Record::read(end, size, name), None);
        }
        let long = Record { etag: Some("x".repeat(TAIL)), ..record };
        assert_eq!(long.tail(), None);
        // echo -n http://h/k | sha256sum
        assert_eq!(name.len(), 64);
        assert_eq!(
            file_name(""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let shelved = |name: &str, used: u64| Shelved {
            name: name.to_owned(),
            octets: 1,
            used: UNIX_EPOCH + Duration::from_secs(used),
        };
        let mut shelf = [shelved("c", 3), shelved("b", 1), shelved("a", 3), shelved("d", 2)];
        oldest_first(&mut shelf);
        let names: Vec<_> = shelf.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["b", "d", "a", "c"]);
        let budget = Budget { octets: 10, files: 2 };
        assert!(budget.fits(2, 4, 6) && !budget.fits(2, 4, 7) && !budget.fits(3, 0, 1));
        assert!(!budget.fits(1, u64::MAX, u64::MAX));
    }

    proptest! {
        /// Whatever octet of a file is another one: there is no record, or one that says so.
        #[test]
        fn a_changed_octet_never_gives_the_same_record(at in 0_usize..300, to: u8) {
            let record = record();
            let mut tail = record.tail().unwrap();
            let size = 10 + 32 + tail.len() as u64;
            let at = at % tail.len();
            prop_assume!(tail[at] != to);
            tail[at] = to;
            let read = Record::read(&tail, size, &file_name("http://h/k"));
            prop_assert!(read.is_none_or(|read| read != record));
        }

        #[test]
        fn any_octets_are_a_record_or_none(end: Vec<u8>, size: u64) {
            prop_assert_eq!(Record::read(&end, size, "x"), None);
            let framed = [end.as_slice(), &u32::try_from(end.len()).unwrap().to_le_bytes(), MAGIC];
            prop_assert_eq!(Record::read(&framed.concat(), size, "x"), None);
        }
    }
}
