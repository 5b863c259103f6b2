//! Preconditions and ranges: which part of a file answers a request (RFC 9110 sections 13 and 14).
//!
//! Guarantees: pure; the same answer for HEAD and GET but for Range, which only GET knows; an
//! unreadable precondition or range is as if it had not been sent, several ranges get the whole.

use std::ops::Range;

use http::{
    HeaderMap, HeaderName,
    header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE},
};

/// What identifies the content of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Validators<'a> {
    /// Strong entity tag with its quotes.
    pub etag: &'a str,
    /// In the form of `Last-Modified`.
    pub last_modified: Option<&'a str>,
    /// Octets.
    pub length: u64,
}

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// 200.
    Whole,
    /// 206 with these octets.
    Part(Range<u64>),
    /// 304.
    NotModified,
    /// 412.
    Failed,
    /// 416.
    Unsatisfiable,
}

/// Evaluates in the order of RFC 9110 section 13.2.2.
pub(super) fn select(headers: &HeaderMap, is_get: bool, file: Validators<'_>) -> Selection {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.contains_key(IF_MATCH) {
        if !listed(headers, &IF_MATCH, file.etag, Comparison::Strong) {
            return Selection::Failed;
        }
    } else if modified_since(text(IF_UNMODIFIED_SINCE), file) == Some(true) {
        return Selection::Failed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        if listed(headers, &IF_NONE_MATCH, file.etag, Comparison::Weak) {
            return Selection::NotModified;
        }
    } else if modified_since(text(IF_MODIFIED_SINCE), file) == Some(false) {
        return Selection::NotModified;
    }
    let single = headers.get_all(RANGE).iter().count() == 1;
    match text(RANGE) {
        Some(range) if is_get && single && continues(text(IF_RANGE), headers, file) => {
            parse_range(range, file.length)
        }
        _ => Selection::Whole,
    }
}

#[derive(Clone, Copy)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags names `etag`, which is strong and has no comma inside.
fn listed(headers: &HeaderMap, name: &HeaderName, etag: &str, comparison: Comparison) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .map(|tag| match comparison {
            Comparison::Strong => tag,
            Comparison::Weak => tag.strip_prefix("W/").unwrap_or(tag),
        })
        .any(|tag| tag == "*" || tag == etag)
}

/// None: no date was sent, or one that cannot be read, or the file has none.
fn modified_since(date: Option<&str>, file: Validators<'_>) -> Option<bool> {
    let date = httpdate::parse_http_date(date?).ok()?;
    let modified = httpdate::parse_http_date(file.last_modified?).ok()?;
    Some(modified > date)
}

/// Whether the part that is asked for belongs to what the machine has (RFC 9110 section 13.1.5).
fn continues(if_range: Option<&str>, headers: &HeaderMap, file: Validators<'_>) -> bool {
    match if_range.map(str::trim) {
        None => !headers.contains_key(IF_RANGE),
        Some(tag) if tag.starts_with('"') => tag == file.etag,
        Some(date) => file.last_modified == Some(date),
    }
}

/// `bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-SUFFIX` (RFC 9110 section 14.1.2).
fn parse_range(value: &str, length: u64) -> Selection {
    let Some((unit, range)) = value.split_once('=') else {
        return Selection::Whole;
    };
    let Some((first, last)) = range.trim().split_once('-') else {
        return Selection::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Selection::Whole;
    }
    let part = match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() => first..length,
        (Some(first), Some(last)) if first <= last => first..length.min(last.saturating_add(1)),
        (None, Some(suffix)) if first.is_empty() => length.saturating_sub(suffix)..length,
        _ => return Selection::Whole,
    };
    if part.is_empty() { Selection::Unsatisfiable } else { Selection::Part(part) }
}

/// The first octet that is asked for, and whether everything behind it is, too. None, where that depends
/// on the length.
pub(super) fn beginning(headers: &HeaderMap) -> Option<(u64, bool)> {
    let Some(range) = headers.get(RANGE) else { return Some((0, true)) };
    let (first, last) = range.to_str().ok()?.trim().strip_prefix("bytes=")?.split_once('-')?;
    (last.is_empty() || number(last).is_some()).then_some((number(first)?, last.is_empty()))
}

/// Digits alone; a number beyond 64 bits counts as the largest.
fn number(digits: &str) -> Option<u64> {
    let digits_only = !digits.is_empty() && digits.bytes().all(|octet| octet.is_ascii_digit());
    digits_only.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sunday, 06-Nov-94 08:49:38 GMT";

    fn ask(headers: &[(HeaderName, &str)], length: u64) -> Selection {
        let file = Validators { etag: "\"a\"", last_modified: Some(DATE), length };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value.parse().unwrap());
        }
        select(&map, true, file)
    }

    #[test]
    fn wire_38_one_range() {
        for (range, expected) in [
            ("bytes=0-0", Selection::Part(0..1)),
            ("bytes=0-99", Selection::Part(0..100)),
            ("bytes=10-", Selection::Part(10..100)),
            ("bytes=10-1000", Selection::Part(10..100)),
            ("bytes=-1", Selection::Part(99..100)),
            ("bytes=-1000", Selection::Part(0..100)),
            ("BYTES = 5-6", Selection::Part(5..7)),
            ("bytes=5-99999999999999999999999999", Selection::Part(5..100)),
            ("bytes=100-", Selection::Unsatisfiable),
            ("bytes=100-200", Selection::Unsatisfiable),
            ("bytes=99999999999999999999999999-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=5-4", Selection::Whole),
            ("bytes=0-1,5-6", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("bytes", Selection::Whole),
            ("lines=1-2", Selection::Whole),
            // An iPXE build sends the length where the last octet belongs, without a unit.
            ("0-100", Selection::Whole),
        ] {
            assert_eq!(ask(&[(RANGE, range)], 100), expected, "{range}");
        }
        assert_eq!(ask(&[(RANGE, "bytes=0-")], 0), Selection::Unsatisfiable);
        let twice = [(RANGE, "bytes=0-1"), (RANGE, "bytes=2-3")];
        assert_eq!(ask(&twice, 100), Selection::Whole);
    }

    #[test]
    fn wire_40_ranges_beyond_4_gib() {
        let range = [(RANGE, "bytes=5000000000-5000000001")];
        assert_eq!(ask(&range, 6_000_000_000), Selection::Part(5_000_000_000..5_000_000_002));
    }

    #[test]
    fn wire_38_preconditions() {
        let part = Selection::Part(1..100);
        let whole = Selection::Whole;
        for (headers, expected) in [
            (vec![(IF_MATCH, "\"a\"")], whole.clone()),
            (vec![(IF_MATCH, "\"b\", \"a\"")], whole.clone()),
            (vec![(IF_MATCH, "*")], whole.clone()),
            (vec![(IF_MATCH, "\"b\"")], Selection::Failed),
            (vec![(IF_MATCH, "W/\"a\"")], Selection::Failed),
            (vec![(IF_UNMODIFIED_SINCE, DATE)], whole.clone()),
            (vec![(IF_UNMODIFIED_SINCE, AFTER)], whole.clone()),
            (vec![(IF_UNMODIFIED_SINCE, BEFORE)], Selection::Failed),
            (vec![(IF_UNMODIFIED_SINCE, "yesterday")], whole.clone()),
            // The entity tag decides where both are there.
            (vec![(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, BEFORE)], whole.clone()),
            (vec![(IF_NONE_MATCH, "\"a\"")], Selection::NotModified),
            (vec![(IF_NONE_MATCH, "W/\"a\"")], Selection::NotModified),
            (vec![(IF_NONE_MATCH, "\"b\"")], whole.clone()),
            (vec![(IF_MODIFIED_SINCE, DATE)], Selection::NotModified),
            (vec![(IF_MODIFIED_SINCE, AFTER)], Selection::NotModified),
            (vec![(IF_MODIFIED_SINCE, BEFORE)], whole.clone()),
            (vec![(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, AFTER)], whole.clone()),
            (vec![(RANGE, "bytes=1-"), (IF_RANGE, "\"a\"")], part.clone()),
            (vec![(RANGE, "bytes=1-"), (IF_RANGE, DATE)], part.clone()),
            (vec![(RANGE, "bytes=1-"), (IF_RANGE, "\"b\"")], whole.clone()),
            (vec![(RANGE, "bytes=1-"), (IF_RANGE, "W/\"a\"")], whole.clone()),
            (vec![(RANGE, "bytes=1-"), (IF_RANGE, BEFORE)], whole.clone()),
            (vec![(RANGE, "bytes=1-"), (IF_MATCH, "\"b\"")], Selection::Failed),
            (vec![(RANGE, "bytes=1-"), (IF_MATCH, "\"a\"")], part.clone()),
        ] {
            assert_eq!(ask(&headers, 100), expected, "{headers:?}");
        }
    }

    #[test]
    fn wire_35_head_has_no_ranges() {
        let mut headers = HeaderMap::new();
        headers.append(RANGE, "bytes=1-2".parse().unwrap());
        let file = Validators { etag: "\"a\"", last_modified: None, length: 100 };
        assert_eq!(select(&headers, false, file), Selection::Whole);
        assert_eq!(select(&headers, true, file), Selection::Part(1..3));
    }

    #[test]
    fn where_a_range_begins_whatever_the_length() {
        let beginning =
            |range: &str| beginning(&std::iter::once((RANGE, range.parse().unwrap())).collect());
        assert_eq!(super::beginning(&HeaderMap::new()), Some((0, true)));
        assert_eq!(beginning("bytes=7-"), Some((7, true)));
        assert_eq!(beginning("bytes=7-8"), Some((7, false)));
        for range in ["bytes=-7", "bytes=1-2,7-", "bytes=", "7-", "bytes=+7-"] {
            assert_eq!(beginning(range), None, "{range}");
        }
    }

    proptest! {
        #[test]
        fn any_range_is_inside_the_file(value in "(bytes)?[=a]?[0-9]{0,22}-?[0-9]{0,22}", length: u64) {
            if let Selection::Part(part) = parse_range(&value, length) {
                prop_assert!(part.start < part.end && part.end <= length);
            }
        }
    }
}
