//! Attributes of netlink messages: `struct nlattr` of include/uapi/linux/netlink.h.
//!
//! Guarantees: bytes that are cut, or lie about their length, are an error and never half a list;
//! nothing is read past its end. Knows no attribute by its number. Numbers of nf_tables are sent in
//! network order ([`number`]), all others' in the host's ([`bytes`]).

use std::io;

/// Size of `struct nlattr`: length and type, 16 bits each. Values are padded to 4 bytes.
const HEADER: usize = 4;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// One attribute. The kernel refuses one that is too long to say so.
pub fn bytes(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = value.len().saturating_add(HEADER);
    let stated = u16::try_from(length).unwrap_or(u16::MAX);
    let mut whole = [&stated.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    whole.resize(length.next_multiple_of(4), 0);
    whole
}

/// A number of 32 bits in network order.
pub fn number(kind: u16, value: u32) -> Vec<u8> {
    bytes(kind, &value.to_be_bytes())
}

/// A text with its NUL.
pub fn text(kind: u16, value: &str) -> Vec<u8> {
    bytes(kind, &[value.as_bytes(), b"\0"].concat())
}

/// Attributes in an attribute.
pub fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    bytes(kind | NLA_F_NESTED, &attributes.concat())
}

/// Attributes that were received, in their order.
#[derive(Default)]
pub struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Reads all of them.
    ///
    /// # Errors
    /// `InvalidData`.
    pub fn read(mut bytes: &'a [u8]) -> io::Result<Self> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = usize::from(u16::from_ne_bytes(field(bytes, 0)?));
            let kind = u16::from_ne_bytes(field(bytes, 2)?) & NLA_TYPE_MASK;
            found.push((kind, bytes.get(HEADER..length).ok_or_else(malformed)?));
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(Self(found))
    }

    /// Types and values.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        self.0.iter().copied()
    }

    /// The value of the first of a type.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find_map(|(one, value)| (one == kind).then_some(value))
    }

    /// As text, up to its NUL; empty when it is not there.
    pub fn text(&self, kind: u16) -> String {
        until_nul(self.get(kind).unwrap_or_default())
    }

    /// As a fixed number of bytes.
    pub fn array<const N: usize>(&self, kind: u16) -> io::Result<Option<[u8; N]>> {
        self.get(kind).map(|value| field(value, 0)).transpose()
    }

    /// As a number of 32 bits in network order.
    pub fn number(&self, kind: u16) -> io::Result<Option<u32>> {
        Ok(self.array(kind)?.map(u32::from_be_bytes))
    }

    /// The attributes in it; none when it is not there.
    pub fn nested(&self, kind: u16) -> io::Result<Self> {
        Self::read(self.get(kind).unwrap_or_default())
    }
}

/// The bytes at a place.
///
/// # Errors
/// `InvalidData` when there are not so many.
pub fn field<const N: usize>(bytes: &[u8], offset: usize) -> io::Result<[u8; N]> {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(malformed)
}

/// A text that ends with a NUL, or with the bytes. What is not UTF-8 in it equals nothing.
pub fn until_nul(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// What is said of an answer that cannot be read.
pub fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer of the kernel was not understood")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn attributes_have_the_kernels_form_and_are_read_as_they_were_written() {
        let inner = nested(4, &[text(1, "ab"), number(2, 0x0102)]);
        let all = [inner, bytes(3, &[9])].concat();
        let expected =
            b"\x14\0\x04\x80\x07\0\x01\0ab\0\0\x08\0\x02\0\0\0\x01\x02\x05\0\x03\0\x09\0\0\0";
        assert_eq!(all, expected);
        let read = Attributes::read(&all).unwrap();
        assert_eq!(read.get(3), Some([9].as_slice()));
        assert_eq!(read.array::<4>(3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let inner = read.nested(4).unwrap();
        assert_eq!((inner.text(1).as_str(), inner.number(2).unwrap()), ("ab", Some(0x0102)));
        assert_eq!((inner.text(7).as_str(), inner.number(7).unwrap()), ("", None));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn what_is_cut_or_lies_is_an_error_and_never_half_a_list() {
        let whole = [number(1, 1), bytes(2, b"abcde")].concat();
        for length in (1..8).chain(9..17) {
            assert!(Attributes::read(whole.get(..length).unwrap()).is_err(), "{length}");
        }
        for lie in [0, 3, 200] {
            let mut lying = whole.clone();
            *lying.get_mut(8).unwrap() = lie;
            assert!(Attributes::read(&lying).is_err(), "{lie}");
        }
    }

    proptest! {
        #[test]
        fn p11_any_bytes_are_read_without_a_crash(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            if let Ok(read) = Attributes::read(&bytes) {
                prop_assert!(read.iter().all(|(_, value)| value.len() <= bytes.len()));
            }
        }
    }
}
