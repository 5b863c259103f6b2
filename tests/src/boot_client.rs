//! A machine's firmware, as far as DHCP goes: asks as it asks, and keeps every answer.
//!
//! Guarantees: what is sent is what the test wrote, octet by octet; an answer is kept with the
//! address that it came from.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::{LabError, Result, netns::Netns};

/// Octets before the options (RFC 2131 section 2).
const HEADER: usize = 240;

/// A datagram and where it came from.
pub type Answer = (SocketAddrV4, Vec<u8>);

/// A DHCP message from `mac` with these options and END: the broadcast bit set, all else zero.
#[must_use]
pub fn message(mac: [u8; 6], options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    bytes[10] = 0x80;
    bytes[28..34].copy_from_slice(&mac);
    bytes[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    for (code, data) in options {
        bytes.push(*code);
        bytes.push(u8::try_from(data.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(data);
    }
    bytes.push(255);
    bytes
}

/// The options of a message, in order, those inside 43 not taken apart.
#[must_use]
pub fn options(message: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = message.get(HEADER..).unwrap_or_default();
    while let [code, after @ ..] = rest {
        rest = match (code, after) {
            (0, _) => after,
            (255, _) | (_, []) => break,
            (_, [length, data @ ..]) => {
                let Some((data, after)) = data.split_at_checked(usize::from(*length)) else {
                    break;
                };
                found.push((*code, data.to_vec()));
                after
            }
        };
    }
    found
}

/// One option of a message.
#[must_use]
pub fn option(message: &[u8], code: u8) -> Option<Vec<u8>> {
    options(message).into_iter().find(|(found, _)| *found == code).map(|(_, data)| data)
}

/// Sends `bytes` from `port` of `interface` to each destination, and collects what comes back: until
/// there are `wanted` answers, or `limit` has passed.
pub fn ask(
    from: &Netns,
    interface: &str,
    port: u16,
    bytes: &[u8],
    destinations: &[SocketAddrV4],
    (wanted, limit): (usize, Duration),
) -> Result<Vec<Answer>> {
    let what = |error| LabError::of(format!("{}: asking from port {port}", from.label()), error);
    from.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_broadcast(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        let socket = UdpSocket::from(socket);
        for destination in destinations {
            socket.send_to(bytes, destination)?;
        }
        let end = Instant::now() + limit;
        let mut answers = Vec::new();
        let mut buffer = [0; 2048];
        while answers.len() < wanted {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv_from(&mut buffer) {
                Ok((length, SocketAddr::V4(source))) => {
                    answers.push((source, buffer.get(..length).unwrap_or_default().to_vec()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    })?
    .map_err(what)
}
