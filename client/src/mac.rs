//! Hardware addresses.

use std::{fmt, str::FromStr};

/// An Ethernet address (htype 1, hlen 6). Written with colons; read with colons or hyphens in
/// either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `52-54-00-12-34-56`: the form used in TFTP names and URLs, where a colon would need quoting.
    #[must_use]
    pub fn hyphenated(self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl serde::Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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
    fn reads_both_spellings_and_writes_one() {
        let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xfe]);
        assert_eq!("52:54:00:12:34:FE".parse(), Ok(mac));
        assert_eq!("52-54-00-12-34-fe".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "52:54:00:12:34:fe");
        assert_eq!(mac.hyphenated(), "52-54-00-12-34-fe");
        for wrong in
            ["", "52:54:00:12:34", "52:54:00:12:34:fe:00", "5:54:00:12:34:fe", "+2:54:00:12:34:fe"]
        {
            assert_eq!(wrong.parse::<MacAddr>(), Err(ParseMacError), "{wrong}");
        }
    }
}
