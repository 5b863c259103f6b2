//! DER (X.690), as far as a signature and a certificate need it. Pure.

/// Universal tags.
pub(super) mod tag {
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const NULL: u8 = 0x05;
    pub const OID: u8 = 0x06;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
    /// Context-specific and constructed.
    pub const CONTEXT_0: u8 = 0xa0;
    /// The same with number 2.
    pub const CONTEXT_2: u8 = 0xa2;
    /// Context-specific and primitive.
    pub const CONTEXT_0_PRIMITIVE: u8 = 0x80;
}

/// One value: tag, length, and its parts one after the other.
pub(super) fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let octets = length.to_be_bytes();
            let used = octets.iter().skip_while(|&&octet| octet == 0).count();
            out.push(0x80 | u8::try_from(used).unwrap_or_default());
            out.extend(octets.iter().skip(octets.len() - used));
        }
    }
    out.extend(parts.iter().copied().flatten());
    out
}

/// Splits the first value off: its tag, its content, all of it, and what follows. `None` when it is
/// not whole, or not DER.
pub(super) fn split(octets: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let (&tag, rest) = octets.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    let whole = octets.get(..octets.len() - rest.len())?;
    Some((Value { tag, content, whole }, rest))
}

/// One value, read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'a> {
    pub tag: u8,
    pub content: &'a [u8],
    /// With tag and length.
    pub whole: &'a [u8],
}

impl<'a> Value<'a> {
    /// The values inside it, as far as they are DER.
    pub fn values(self) -> impl Iterator<Item = Value<'a>> {
        let mut rest = self.content;
        std::iter::from_fn(move || {
            let (value, after) = split(rest)?;
            rest = after;
            Some(value)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_as_x_690_writes_them() {
        for (length, header) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (256, &[4, 0x82, 1, 0]),
            (0x1_0000, &[4, 0x83, 1, 0, 0]),
        ] {
            let content = vec![9; length];
            let written = value(tag::OCTET_STRING, &[&content]);
            assert_eq!(written[..header.len()], *header);
            let (read, rest) = split(&written).unwrap();
            assert_eq!((read.content, read.whole, rest.len()), (&content[..], &written[..], 0));
        }
        for cut in [&[][..], &[4], &[4, 1], &[4, 0x80], &[4, 0x81], &[4, 0x85, 0, 0, 0, 0, 0]] {
            assert!(split(cut).is_none(), "{cut:?}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_without_panic(octets in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some((value, _)) = split(&octets) {
                let _ = value.values().count();
            }
        }
    }
}
