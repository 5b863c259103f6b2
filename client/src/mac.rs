//! Hardware addresses.

use std::{cmp::Ordering, fmt, str::FromStr};

/// An Ethernet address (htype 1, hlen 6). Written with colons; read with colons or hyphens in
/// either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

/// As a number: machines of one maker differ in the last octets only, and are looked up by their
/// address several times for each packet.
impl Ord for MacAddr {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for MacAddr {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl MacAddr {
    /// `52-54-00-12-34-56`: the form used in TFTP names and URLs, where a colon would need quoting.
    #[must_use]
    pub fn hyphenated(self) -> String {
        self.written(b'-').as_str().to_owned()
    }

    fn number(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    fn written(self, between: u8) -> Written {
        let mut text = [between; Written::LENGTH];
        for (place, octet) in text.chunks_mut(3).zip(self.0) {
            for (digit, one) in place.iter_mut().zip(hexadecimal(octet)) {
                *digit = one;
            }
        }
        Written(text)
    }
}

/// An address as it is written.
struct Written([u8; Self::LENGTH]);

impl Written {
    const LENGTH: usize = 17;

    fn as_str(&self) -> &str {
        // It is ASCII throughout.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The two digits of an octet, small letters: what `{:02x}` writes, in a hundredth of the time.
#[must_use]
pub fn hexadecimal(octet: u8) -> [u8; 2] {
    let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + (value - 10) };
    [digit(octet >> 4), digit(octet & 15)]
}

impl fmt::Display for MacAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.written(b':').as_str())
    }
}

impl serde::Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.written(b':').as_str())
    }
}

/// The text is not six hexadecimal pairs with colons or hyphens between them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hardware address looks like 52:54:00:12:34:56")]
pub struct ParseMacError;

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut octets = [0; 6];
        let mut pairs = text.split([':', '-']);
        for octet in &mut octets {
            let pair = pairs.next().filter(|pair| {
                pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit())
            });
            *octet =
                pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or(ParseMacError)?;
        }
        if pairs.next().is_some() {
            return Err(ParseMacError);
        }
        Ok(Self(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_the_order_of_their_octets() {
        for (less, more) in
            [([0; 6], [0, 0, 0, 0, 0, 1]), ([1, 2, 3, 4, 5, 255], [1, 2, 3, 4, 6, 0])]
        {
            assert!(MacAddr(less) < MacAddr(more));
            assert_eq!(MacAddr(more).cmp(&MacAddr(more)), Ordering::Equal);
        }
        assert!(MacAddr([2, 0, 0, 0, 0, 0]) > MacAddr([1, 255, 255, 255, 255, 255]));
    }

    #[test]
    fn reads_both_spellings_and_writes_one() {
        let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xfe]);
        assert_eq!("52:54:00:12:34:FE".parse(), Ok(mac));
        assert_eq!("52-54-00-12-34-fe".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "52:54:00:12:34:fe");
        assert_eq!(mac.hyphenated(), "52-54-00-12-34-fe");
        for octet in 0..=u8::MAX {
            assert_eq!(hexadecimal(octet), *format!("{octet:02x}").as_bytes());
        }
        for wrong in
            ["", "52:54:00:12:34", "52:54:00:12:34:fe:00", "5:54:00:12:34:fe", "+2:54:00:12:34:fe"]
        {
            assert_eq!(wrong.parse::<MacAddr>(), Err(ParseMacError), "{wrong}");
        }
    }
}
