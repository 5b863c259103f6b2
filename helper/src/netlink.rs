//! One netlink socket: requests out, answers in (netlink(7)).
//!
//! Guarantees: close-on-exec; every wait ends ([`limits::NETLINK`]); no answer grows without bound
//! ([`limits::DUMP_MESSAGES`]); an answer to an earlier request is never taken for one to this.
//! Trusts: the kernel, and only messages that came from it. Never: looks into a message's body.

use std::{io, ops::RangeInclusive};

use socket2::SockRef;

use crate::limits;

/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// The dump is torn: what it lists changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

/// A message without its header's bookkeeping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// A netlink socket of one protocol family.
pub struct Socket {
    raw: netlink_sys::Socket,
    port: u32,
    sequence: u32,
}

impl Socket {
    /// Opens a socket; `protocol` is one of `netlink_sys::protocols`.
    ///
    /// # Errors
    /// What socket(2), bind(2) or setsockopt(2) answered.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = netlink_sys::Socket::new(protocol)?;
        let port = raw.bind_auto()?.port_number();
        // Errors come without a copy of the request: they always fit into the buffer.
        raw.set_cap_ack(true)?;
        SockRef::from(&raw).set_read_timeout(Some(limits::NETLINK))?;
        Ok(Self { raw, port, sequence: 0 })
    }

    /// The address that the kernel knows this socket by (and the owner of its tables).
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends messages in one datagram and waits for the kernel's word on the last of those that
    /// ask for one. The answers other than acknowledgements are returned.
    ///
    /// # Errors
    /// The first error that the kernel reports for any of the messages; `TimedOut`; `InvalidData`.
    pub fn transact(&mut self, messages: &[Message]) -> io::Result<Vec<Message>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut last = first;
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            if message.flags & NLM_F_ACK != 0 {
                last = self.sequence;
            }
            bytes.extend(encode(message, self.sequence)?);
        }
        self.raw.send(&bytes, 0)?;
        self.receive(&(first..=self.sequence), last)
    }

    /// One request with one answer.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub fn ask(&mut self, kind: u16, body: Vec<u8>) -> io::Result<Vec<Message>> {
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.transact(&[Message { kind, flags, body }])
    }

    /// Everything of one kind, read again while others change it.
    ///
    /// # Errors
    /// As [`Self::transact`]; `Interrupted` when it never held still.
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<Message>> {
        let request = Message { kind, flags: NLM_F_REQUEST | NLM_F_DUMP, body: body.to_vec() };
        for _ in 0..limits::COMMIT_ATTEMPTS {
            let answers = self.transact(std::slice::from_ref(&request))?;
            if answers.iter().all(|one| one.flags & NLM_F_DUMP_INTR == 0) {
                return Ok(answers);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn receive(&self, ours: &RangeInclusive<u32>, last: u32) -> io::Result<Vec<Message>> {
        let mut answers = Vec::new();
        let mut buffer = Vec::with_capacity(limits::NETLINK_BUFFER);
        loop {
            buffer.clear();
            let (_, sender) = self.raw.recv_from(&mut buffer, 0).map_err(|error| {
                if error.kind() == io::ErrorKind::WouldBlock {
                    io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer")
                } else {
                    error
                }
            })?;
            if sender.port_number() != 0 {
                continue;
            }
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let (sequence, message, following) = decode(rest).ok_or_else(garbled)?;
                rest = following;
                if !ours.contains(&sequence) {
                    continue;
                }
                match message.kind {
                    NLMSG_ERROR => match error_code(&message.body).ok_or_else(garbled)? {
                        0 if sequence == last => return Ok(answers),
                        0 => {}
                        errno => return Err(io::Error::from_raw_os_error(errno)),
                    },
                    NLMSG_DONE => return Ok(answers),
                    _ if answers.len() >= limits::DUMP_MESSAGES => {
                        return Err(io::Error::other(
                            "the kernel lists more than the helper reads",
                        ));
                    }
                    _ => answers.push(message),
                }
            }
        }
    }
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a netlink message")
}

/// The error number, positive, of an `NLMSG_ERROR`; 0 is an acknowledgement.
#[must_use]
pub fn error_code(body: &[u8]) -> Option<i32> {
    let (code, _) = body.split_first_chunk::<4>()?;
    i32::from_ne_bytes(*code).checked_neg()
}

fn encode(message: &Message, sequence: u32) -> io::Result<Vec<u8>> {
    let length = HEADER.saturating_add(message.body.len());
    let stated = u32::try_from(length).map_err(|_| garbled())?;
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend(stated.to_ne_bytes());
    bytes.extend(message.kind.to_ne_bytes());
    bytes.extend(message.flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The kernel fills the sender's port in.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(&message.body);
    bytes.resize(length.next_multiple_of(4), 0);
    Ok(bytes)
}

/// The first message of a datagram: its sequence number, itself, and the bytes after it.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<(u32, Message, &[u8])> {
    let (length, _) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    let (header, body) = bytes.get(..length)?.split_first_chunk::<HEADER>()?;
    let rest = bytes.get(length.checked_next_multiple_of(4)?..);
    let [_, _, _, _, k0, k1, f0, f1, s0, s1, s2, s3, _, _, _, _] = *header;
    let message = Message {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        body: body.to_vec(),
    };
    let sequence = u32::from_ne_bytes([s0, s1, s2, s3]);
    Some((sequence, message, rest.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Message {
        Message { kind, flags: 5, body: body.to_vec() }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn messages_have_the_kernels_form() {
        let bytes = encode(&message(0x0a10, b"abc"), 7).unwrap();
        assert_eq!(bytes, b"\x13\0\0\0\x10\x0a\x05\0\x07\0\0\0\0\0\0\0abc\0".as_slice());
    }

    #[test]
    fn two_messages_in_one_datagram_are_two() {
        let mut bytes = encode(&message(16, b"abc"), 7).unwrap();
        bytes.extend(encode(&message(17, b""), 8).unwrap());
        let (sequence, first, rest) = decode(&bytes).unwrap();
        assert_eq!((sequence, first), (7, message(16, b"abc")));
        let (sequence, second, rest) = decode(rest).unwrap();
        assert_eq!((sequence, second), (8, message(17, b"")));
        assert_eq!(rest, b"");
    }

    #[test]
    fn a_cut_or_lying_message_is_refused() {
        let bytes = encode(&message(16, b"abcd"), 7).unwrap();
        for length in 0..bytes.len() {
            assert_eq!(decode(bytes.get(..length).unwrap()), None, "{length}");
        }
        let mut lying = bytes.clone();
        *lying.first_mut().unwrap() = 15;
        assert_eq!(decode(&lying), None);
    }

    #[test]
    fn errors_are_errno_and_zero_is_an_acknowledgement() {
        assert_eq!(error_code(&(-2_i32).to_ne_bytes()), Some(2));
        assert_eq!(error_code(&[0; 4]), Some(0));
        assert_eq!(error_code(&[0; 3]), None);
        assert_eq!(error_code(&i32::MIN.to_ne_bytes()), None);
    }
}
