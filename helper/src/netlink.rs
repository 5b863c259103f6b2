//! One netlink socket: requests out, answers in (netlink(7)).
//!
//! Guarantees: close-on-exec; every wait ends ([`limits::NETLINK`]); no answer grows without bound
//! ([`limits::DUMP_MESSAGES`]); an answer to an earlier request is never taken for one to this.
//! Trusts: the kernel, and only messages that came from it. Never: looks into a message's body.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, getsockname,
    netlink::SocketAddrNetlink,
    recv, recvfrom, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use crate::{
    attribute::{field, malformed},
    limits,
};

/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
/// The kernel is to answer also when all went well.
pub const NLM_F_ACK: u16 = 0x4;
/// Everything of one kind is asked for.
pub const NLM_F_DUMP: u16 = 0x300;
/// The dump is torn: what it lists changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;

/// A message without its header's bookkeeping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`; that of a request is added on the way out.
    pub flags: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// A socket of a protocol family, one of `rustix::net::netlink`; it listens to multicast groups, if any.
///
/// # Errors
/// What socket(2) or bind(2) answered.
pub fn socket(family: Option<Protocol>, flags: SocketFlags, groups: u32) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, family)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// A socket for questions.
pub struct Socket {
    descriptor: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket of a family, one of `rustix::net::netlink`.
    ///
    /// # Errors
    /// What socket(2), bind(2) or setsockopt(2) answered.
    pub fn open(family: Option<Protocol>) -> io::Result<Self> {
        let descriptor = socket(family, SocketFlags::empty(), 0)?;
        set_socket_timeout(&descriptor, Timeout::Recv, Some(limits::NETLINK))?;
        Ok(Self { descriptor, sequence: 0 })
    }

    /// The address that the kernel knows this socket by (and the owner of its tables).
    ///
    /// # Errors
    /// What getsockname(2) answered.
    pub fn port(&self) -> io::Result<u32> {
        Ok(SocketAddrNetlink::try_from(getsockname(&self.descriptor)?)?.pid())
    }

    /// Sends messages in one datagram and waits for the kernel's word on the last of those that
    /// ask for one. The answers other than acknowledgements are returned.
    ///
    /// # Errors
    /// The first error that the kernel reports for any of the messages; `TimedOut`; `InvalidData`.
    pub fn transact(&mut self, messages: &[Message]) -> io::Result<Vec<Message>> {
        let mut answers = Vec::new();
        self.exchange(messages, &mut |answer| {
            if answers.len() >= limits::DUMP_MESSAGES {
                return Err(too_many());
            }
            answers.push(answer);
            Ok(())
        })?;
        Ok(answers)
    }

    /// As [`Self::transact`], each answer in its turn: for what is more than is kept.
    ///
    /// # Errors
    /// As [`Self::transact`], and the first of `take`.
    pub fn exchange(
        &mut self,
        messages: &[Message],
        take: &mut dyn FnMut(Message) -> io::Result<()>,
    ) -> io::Result<()> {
        // What an earlier request that failed has left unread: the kernel refuses a dump before the
        // last one is read to its end (EBUSY).
        while recv(&self.descriptor, [0; HEADER].as_mut_slice(), RecvFlags::DONTWAIT).is_ok() {}
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut last = first;
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            if message.flags & NLM_F_ACK != 0 {
                last = self.sequence;
            }
            bytes.extend(encode(message, self.sequence));
        }
        send(&self.descriptor, &bytes, SendFlags::empty())?;
        let ours = first..=self.sequence;
        let mut buffer = vec![0; limits::NETLINK_BUFFER];
        loop {
            let received = recvfrom(&self.descriptor, buffer.as_mut_slice(), RecvFlags::empty());
            let (length, _, sender) = received.map_err(|error| match error {
                rustix::io::Errno::AGAIN => {
                    io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer")
                }
                other => other.into(),
            })?;
            let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
            if sender.is_none_or(|sender| sender.pid() != 0) {
                continue;
            }
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let (sequence, message);
                (sequence, message, rest) = decode(rest)?;
                match message.kind {
                    _ if !ours.contains(&sequence) => {}
                    NLMSG_ERROR => match error_code(&message.body)? {
                        0 if sequence == last => return Ok(()),
                        0 => {}
                        errno => return Err(io::Error::from_raw_os_error(errno)),
                    },
                    NLMSG_DONE => return Ok(()),
                    _ => take(message)?,
                }
            }
        }
    }

    /// One request with one answer.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub fn ask(&mut self, kind: u16, body: Vec<u8>) -> io::Result<Vec<Message>> {
        self.transact(&[Message { kind, flags: NLM_F_ACK, body }])
    }

    /// Everything of one kind, read again while others change it.
    ///
    /// # Errors
    /// As [`Self::transact`]; `Interrupted` when it never held still.
    pub fn dump(&mut self, kind: u16, body: Vec<u8>) -> io::Result<Vec<Message>> {
        let request = Message { kind, flags: NLM_F_DUMP, body };
        for _ in 0..limits::COMMIT_ATTEMPTS {
            let answers = self.transact(std::slice::from_ref(&request))?;
            if answers.iter().all(|one| one.flags & NLM_F_DUMP_INTR == 0) {
                return Ok(answers);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }
}

/// More than is kept of one kind ([`limits::DUMP_MESSAGES`]).
pub fn too_many() -> io::Error {
    io::Error::other("the kernel lists more than the helper reads")
}

/// The error number, positive, of an `NLMSG_ERROR`; 0 is an acknowledgement.
///
/// # Errors
/// `InvalidData`.
pub fn error_code(body: &[u8]) -> io::Result<i32> {
    i32::from_ne_bytes(field(body, 0)?).checked_neg().ok_or_else(malformed)
}

/// The kernel fills the sender's port in. It refuses a message that is too long to say so.
fn encode(message: &Message, sequence: u32) -> Vec<u8> {
    let length = message.body.len().saturating_add(HEADER);
    let mut bytes = u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    bytes.extend(message.kind.to_ne_bytes());
    bytes.extend((message.flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(&message.body);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// Sequence number, message, and the bytes after it.
///
/// # Errors
/// `InvalidData`.
pub fn decode(bytes: &[u8]) -> io::Result<(u32, Message, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(field(bytes, 0)?)).unwrap_or(usize::MAX);
    let body = bytes.get(HEADER..length).ok_or_else(malformed)?.to_vec();
    let kind = u16::from_ne_bytes(field(bytes, 4)?);
    let flags = u16::from_ne_bytes(field(bytes, 6)?);
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Ok((u32::from_ne_bytes(field(bytes, 8)?), Message { kind, flags, body }, rest))
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
        let bytes = encode(&message(0x0a10, b"abc"), 7);
        assert_eq!(bytes, b"\x13\0\0\0\x10\x0a\x05\0\x07\0\0\0\0\0\0\0abc\0".as_slice());
    }

    #[test]
    fn two_messages_in_one_datagram_are_two() {
        let mut bytes = encode(&message(16, b"abc"), 7);
        bytes.extend(encode(&message(17, b""), 8));
        let (sequence, first, rest) = decode(&bytes).unwrap();
        assert_eq!((sequence, first), (7, message(16, b"abc")));
        let (sequence, second, rest) = decode(rest).unwrap();
        assert_eq!((sequence, second), (8, message(17, b"")));
        assert_eq!(rest, b"");
    }

    #[test]
    fn a_cut_or_lying_message_is_refused() {
        let bytes = encode(&message(16, b"abcd"), 7);
        for length in 0..bytes.len() {
            assert!(decode(bytes.get(..length).unwrap()).is_err(), "{length}");
        }
        let mut lying = bytes.clone();
        *lying.first_mut().unwrap() = 15;
        assert!(decode(&lying).is_err());
    }

    #[test]
    fn errors_are_errno_and_zero_is_an_acknowledgement() {
        assert_eq!(error_code(&(-2_i32).to_ne_bytes()).unwrap(), 2);
        assert_eq!(error_code(&[0; 4]).unwrap(), 0);
        assert!(error_code(&[0; 3]).is_err());
        assert!(error_code(&i32::MIN.to_ne_bytes()).is_err());
    }
}
