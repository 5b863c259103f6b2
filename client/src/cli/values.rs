//! Values of options, read or refused with an example of what is right: sizes, times, pairs.

use std::{path::PathBuf, time::Duration};

/// Reads `500M`, `20G`, or a bare number of octets.
pub fn octets(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.strip_suffix(|unit: char| unit.is_ascii_alphabetic()) {
        Some(number) if text.ends_with(['K', 'k']) => (number, 10),
        Some(number) if text.ends_with(['M', 'm']) => (number, 20),
        Some(number) if text.ends_with(['G', 'g']) => (number, 30),
        Some(number) if text.ends_with(['T', 't']) => (number, 40),
        _ => (text, 0),
    };
    let whole = number.bytes().all(|digit| digit.is_ascii_digit());
    let number: Option<u64> = number.parse().ok().filter(|_| whole);
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "write for example 500M or 20G".to_owned())
}

/// Reads `11=snponly.efi`.
pub fn loader(text: &str) -> Result<(u16, PathBuf), String> {
    text.split_once('=')
        .filter(|(_, file)| !file.is_empty())
        .and_then(|(arch, file)| Some((arch.parse().ok()?, file.into())))
        .ok_or_else(|| "write for example 11=grubaa64.efi (11: arm64 UEFI)".to_owned())
}

/// Reads `NixOS=./result`.
pub fn menu_item(text: &str) -> Result<(String, PathBuf), String> {
    text.split_once('=')
        .map(|(name, source)| (name.trim().to_owned(), source.into()))
        .filter(|(name, source): &(String, PathBuf)| {
            !name.is_empty() && !source.as_os_str().is_empty()
        })
        .ok_or_else(|| "write for example NixOS=./result".to_owned())
}

/// Reads `45s`, `30m`, `2h`, `1h30m`, or a bare number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    const RIGHT: &str = "write for example 45s, 30m, 2h or 1h30m (at least one second)";
    let time = milliseconds(text).map_err(|_| RIGHT.to_owned())?;
    if time.subsec_nanos() == 0 { Ok(time) } else { Err(RIGHT.to_owned()) }
}

/// As [`duration`], with parts such as `500ms`.
pub fn milliseconds(text: &str) -> Result<Duration, String> {
    const RIGHT: &str = "write for example 5s, 500ms or 1m30s";
    let mut sum: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| RIGHT.to_owned())?;
        let unit = |word: &str| tail.strip_prefix(word);
        let (unit, tail) = if let Some(tail) = unit("ms") {
            (1, tail)
        } else if let Some(tail) = unit("s") {
            (1000, tail)
        } else if let Some(tail) = unit("m") {
            (60_000, tail)
        } else if let Some(tail) = unit("h") {
            (3_600_000, tail)
        } else if tail.is_empty() && rest.len() == text.len() {
            (1000, tail)
        } else {
            return Err(RIGHT.to_owned());
        };
        sum = number
            .checked_mul(unit)
            .and_then(|part| sum.checked_add(part))
            .filter(|sum| u32::try_from(sum / 1000).is_ok())
            .ok_or_else(|| RIGHT.to_owned())?;
        rest = tail;
    }
    if sum == 0 { Err(RIGHT.to_owned()) } else { Ok(Duration::from_millis(sum)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [("0", 0), ("7", 7), ("1k", 1024), ("500M", 500 << 20), ("2T", 2 << 40)]
        {
            assert_eq!(octets(text), Ok(size), "{text}");
        }
        for wrong in ["", "G", "-1", "+1", "1.5G", "1GB", "1 G", "99999999T", "9X", "1é"] {
            assert!(octets(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("45s"), Ok(Duration::from_secs(45)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(milliseconds("1s500ms"), Ok(Duration::from_millis(1500)));
        for wrong in
            ["", "0", "h", "500ms", "1d", "1h30", "-1s", "99999999h", "99999999999999999999h", "1é"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
