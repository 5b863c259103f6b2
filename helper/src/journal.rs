//! Entries for the journal, with fields, in its native protocol (systemd, `JOURNAL_NATIVE_PROTOCOL`).
//!
//! Guarantees: never waits; an entry is one datagram; every value is sent with its length, so that none
//! can begin another field. Writes there only when the service manager has connected standard error
//! to the journal, as `JOURNAL_STREAM` says (systemd.exec(5)). Trusts the socket at that path.

use std::{
    env,
    fs::File,
    io,
    os::{
        fd::AsFd,
        linux::fs::MetadataExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Hands an entry over.
///
/// # Errors
/// When there is no journal, or it does not take the entry at once. The caller has another way.
pub fn send(fields: &[(&str, &str)]) -> io::Result<()> {
    if !listens()? {
        return Err(io::ErrorKind::NotConnected.into());
    }
    send_now(&SocketAddr::from_pathname(SOCKET)?, &encode(fields))
}

/// Sends a datagram, or fails where that would mean to wait.
///
/// # Errors
/// What socket(2) or sendto(2) answered.
pub fn send_now(address: &SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(bytes, address).map(drop)
}

/// Whether what is written to standard error ends in the journal, too.
fn listens() -> io::Result<bool> {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return Ok(false);
    };
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?).metadata()?;
    Ok(stream == format!("{}:{}", stderr.st_dev(), stderr.st_ino()))
}

/// For each field its name, a newline, the length of the value as 64 bits in little endian, the value,
/// a newline.
fn encode(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut entry = Vec::new();
    for (name, value) in fields {
        let length = u64::try_from(value.len()).unwrap_or(u64::MAX);
        entry.extend_from_slice(name.as_bytes());
        entry.push(b'\n');
        entry.extend_from_slice(&length.to_le_bytes());
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn an_entry_is_the_bytes_of_the_protocol_and_no_value_becomes_a_field() {
        let entry = encode(&[("PRIORITY", "5"), ("MESSAGE", "a\nPORTCULLIS_UID=0")]);
        assert_eq!(
            entry,
            b"PRIORITY\n\x01\0\0\0\0\0\0\x005\nMESSAGE\n\x12\0\0\0\0\0\0\0a\nPORTCULLIS_UID=0\n"
        );
        assert_eq!(encode(&[]), b"");
    }
}
