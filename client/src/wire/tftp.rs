//! TFTP packets (RFC 1350, options of RFC 2347, 2348, 2349 and 7440).
//!
//! Guarantees: any octets are read without a panic and without allocation beyond the file name.
//! Never judges: which options are accepted is decided in `tftp::transfer`.

/// Largest request (RFC 2347 section 2).
pub const MAX_REQUEST: usize = 512;

/// Octets before the payload of a DATA packet.
pub const DATA_HEADER: usize = 4;

/// Smallest block (RFC 2348 section 2).
const MIN_BLOCK: u16 = 8;

/// Error codes of RFC 1350 section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// 0: see the message.
    Undefined,
    /// 1: file not found.
    NotFound,
    /// 2: access violation.
    AccessViolation,
    /// 4: illegal TFTP operation.
    IllegalOperation,
    /// 5: unknown transfer ID.
    UnknownTransfer,
}

impl ErrorCode {
    fn number(self) -> u8 {
        match self {
            Self::Undefined => 0,
            Self::NotFound => 1,
            Self::AccessViolation => 2,
            Self::IllegalOperation => 4,
            Self::UnknownTransfer => 5,
        }
    }
}

/// What a reader asks for. Values out of their range are as if they had not been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `blksize`, octets, at least 8 (RFC 2348).
    pub block: Option<u16>,
    /// `timeout`, seconds, 1 to 255 (RFC 2349).
    pub timeout: Option<u8>,
    /// `tsize` (RFC 2349).
    pub size: bool,
    /// `windowsize`, blocks, at least 1 (RFC 7440).
    pub window: Option<u16>,
}

/// A read request. Mode `netascii` is read as `octet`: boot files are never text to be converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The name up to its NUL, as it came.
    pub file: Vec<u8>,
    /// The options.
    pub options: Options,
}

/// A packet that a reader may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ.
    Read(Request),
    /// WRQ.
    Write,
    /// ACK of this block; 0 acknowledges an OACK.
    Ack(u16),
    /// ERROR.
    Error {
        /// See [`ErrorCode`].
        code: u16,
        /// Up to its NUL, as it came.
        message: &'a [u8],
    },
}

/// Not a packet that a reader may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Too short for what it says it is.
    #[error("packet cut short")]
    Short,
    /// An operation that a server of files for reading does not know.
    #[error("operation not known")]
    Operation,
    /// A request longer than 512 octets.
    #[error("request longer than 512 octets")]
    TooLong,
    /// A file name, mode or option without its NUL, or an option without a value.
    #[error("request without its terminating zero octet")]
    Unterminated,
    /// Mode is neither octet nor netascii.
    #[error("transfer mode not known")]
    Mode,
}

impl<'a> Packet<'a> {
    /// Reads one datagram.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let Some((&[high, low], rest)) = datagram.split_first_chunk() else {
            return Err(Malformed::Short);
        };
        match (u16::from_be_bytes([high, low]), rest) {
            (1 | 2, _) if datagram.len() > MAX_REQUEST => Err(Malformed::TooLong),
            (1, rest) => parse_read(rest).map(Self::Read),
            (2, _) => Ok(Self::Write),
            (4, &[high, low, ..]) => Ok(Self::Ack(u16::from_be_bytes([high, low]))),
            (5, &[high, low, ref message @ ..]) => Ok(Self::Error {
                code: u16::from_be_bytes([high, low]),
                message: message.split(|&octet| octet == 0).next().unwrap_or(&[]),
            }),
            (4 | 5, _) => Err(Malformed::Short),
            _ => Err(Malformed::Operation),
        }
    }
}

fn parse_read(rest: &[u8]) -> Result<Request, Malformed> {
    let (file, rest) = take_string(rest)?;
    let (mode, mut rest) = take_string(rest)?;
    if !mode.eq_ignore_ascii_case(b"octet") && !mode.eq_ignore_ascii_case(b"netascii") {
        return Err(Malformed::Mode);
    }
    let mut options = Options::default();
    while !rest.is_empty() {
        let (name, after) = take_string(rest)?;
        let (value, after) = take_string(after)?;
        rest = after;
        match name.to_ascii_lowercase().as_slice() {
            b"blksize" => {
                let asked = decimal(value).filter(|&octets| octets >= u64::from(MIN_BLOCK));
                options.block = options.block.or(asked.map(saturate));
            }
            b"timeout" => {
                let asked = decimal(value).and_then(|seconds| u8::try_from(seconds).ok());
                options.timeout = options.timeout.or(asked.filter(|&seconds| seconds > 0));
            }
            b"tsize" => options.size |= decimal(value).is_some(),
            b"windowsize" => {
                let asked = decimal(value).filter(|&blocks| blocks > 0);
                options.window = options.window.or(asked.map(saturate));
            }
            _ => {}
        }
    }
    Ok(Request { file: file.to_vec(), options })
}

/// Splits behind the first NUL.
fn take_string(octets: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = octets.iter().position(|&octet| octet == 0).ok_or(Malformed::Unterminated)?;
    let (string, rest) = octets.split_at(end);
    Ok((string, rest.get(1..).unwrap_or(&[])))
}

/// A number in ASCII digits alone; one that is too large for 64 bits counts as the largest.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    })
}

fn saturate(number: u64) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// The first four octets of a DATA packet. Blocks count from 1; the number on the wire is its low
/// 16 bits, so that it goes on with 0 after 65535.
#[must_use]
pub fn data_header(block: u64) -> [u8; DATA_HEADER] {
    let [.., high, low] = block.to_be_bytes();
    [0, 3, high, low]
}

/// An ERROR packet.
#[must_use]
pub fn error(code: ErrorCode, message: &str) -> Vec<u8> {
    let mut packet = vec![0, 5, 0, code.number()];
    packet.extend_from_slice(message.as_bytes());
    packet.push(0);
    packet
}

/// An OACK packet with these options.
#[must_use]
pub fn oack(options: &[(&str, u64)]) -> Vec<u8> {
    let mut packet = vec![0, 6];
    for (name, value) in options {
        packet.extend_from_slice(name.as_bytes());
        packet.push(0);
        packet.extend_from_slice(value.to_string().as_bytes());
        packet.push(0);
    }
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(file: &[u8], options: Options) -> Result<Packet<'static>, Malformed> {
        Ok(Packet::Read(Request { file: file.to_vec(), options }))
    }

    #[test]
    fn wire_43_packets_are_read_or_refused() {
        for (octets, expected) in [
            (&b"\0\x01boot\0octet\0"[..], read(b"boot", Options::default())),
            (b"\0\x02boot\0octet\0", Ok(Packet::Write)),
            (b"\0\x04\x12\x34", Ok(Packet::Ack(0x1234))),
            (b"\0\x04\x12\x34padding", Ok(Packet::Ack(0x1234))),
            (b"\0\x05\0\x08no\0thing", Ok(Packet::Error { code: 8, message: b"no" })),
            (b"\0\x05\0\x08no", Ok(Packet::Error { code: 8, message: b"no" })),
            (b"", Err(Malformed::Short)),
            (b"\0", Err(Malformed::Short)),
            (b"\0\x04\0", Err(Malformed::Short)),
            (b"\0\x05\0", Err(Malformed::Short)),
            (b"\0\x03\0\x01data", Err(Malformed::Operation)),
            (b"\0\x06", Err(Malformed::Operation)),
            (b"\0\x00", Err(Malformed::Operation)),
            (b"\x01\x01boot\0octet\0", Err(Malformed::Operation)),
            (b"\0\x01", Err(Malformed::Unterminated)),
            (b"\0\x01boot", Err(Malformed::Unterminated)),
            (b"\0\x01boot\0octet", Err(Malformed::Unterminated)),
            (b"\0\x01boot\0octet\0tsize\0", Err(Malformed::Unterminated)),
            (b"\0\x01boot\0octet\0tsize\x000", Err(Malformed::Unterminated)),
            (b"\0\x01boot\0mail\0", Err(Malformed::Mode)),
        ] {
            assert_eq!(Packet::parse(octets), expected, "{octets:?}");
        }
        let mut long = b"\0\x01".to_vec();
        long.resize(MAX_REQUEST - 6, b'a');
        long.extend_from_slice(b"\0octet\0");
        assert_eq!(Packet::parse(&long), Err(Malformed::TooLong));
        long.remove(2);
        assert!(matches!(Packet::parse(&long), Ok(Packet::Read(_))));
    }

    #[test]
    fn wire_44_names_of_options_and_mode_in_any_case() {
        let all = Options { block: Some(1468), timeout: Some(3), size: true, window: Some(4) };
        for octets in [
            &b"\0\x01f\0octet\0blksize\x001468\0timeout\x003\0tsize\x000\0windowsize\x004\0"[..],
            b"\0\x01f\0OcTeT\0BLKSIZE\x001468\0TimeOut\x003\0TSIZE\x000\0WindowSize\x004\0",
            b"\0\x01f\0NetASCII\0multicast\0\0tsize\x000\0windowsize\x004\0blksize\x001468\0timeout\x003\0",
        ] {
            assert_eq!(Packet::parse(octets), read(b"f", all), "{octets:?}");
        }
    }

    #[test]
    fn wire_46_values_out_of_range_are_ignored() {
        for octets in [
            &b"\0\x01f\0octet\0blksize\x007\0"[..],
            b"\0\x01f\0octet\0blksize\0\0",
            b"\0\x01f\0octet\0blksize\0-512\0",
            b"\0\x01f\0octet\0blksize\x00512 \0",
            b"\0\x01f\0octet\0windowsize\x000\0",
            b"\0\x01f\0octet\0timeout\x000\0",
            b"\0\x01f\0octet\0timeout\x00256\0",
            b"\0\x01f\0octet\0tsize\0what\0",
        ] {
            assert_eq!(Packet::parse(octets), read(b"f", Options::default()), "{octets:?}");
        }
        let huge = b"\0\x01f\0octet\0blksize\x0099999999999999999999999\0windowsize\x0070000\0";
        let capped = Options { block: Some(65535), window: Some(65535), ..Options::default() };
        assert_eq!(Packet::parse(huge), read(b"f", capped));
    }

    #[test]
    fn packets_are_written_octet_by_octet() {
        assert_eq!(data_header(1), [0, 3, 0, 1]);
        assert_eq!(data_header(65535), [0, 3, 255, 255]);
        assert_eq!(data_header(65536), [0, 3, 0, 0]);
        assert_eq!(error(ErrorCode::NotFound, "no such file"), b"\0\x05\0\x01no such file\0");
        assert_eq!(
            oack(&[("blksize", 1468), ("tsize", 5_000_000_000)]),
            b"\0\x06blksize\x001468\0tsize\x005000000000\0"
        );
    }

    proptest! {
        #[test]
        fn any_octets_are_read_without_panic(octets in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = Packet::parse(&octets);
        }

        #[test]
        fn any_request_is_read_without_panic(tail in proptest::collection::vec(
            prop_oneof![Just(0_u8), Just(b'9'), Just(b'o'), any::<u8>()], 0..520)) {
            let mut octets = b"\0\x01f\0octet\0blksize\0".to_vec();
            octets.extend_from_slice(&tail);
            let _ = Packet::parse(&octets);
        }
    }
}
