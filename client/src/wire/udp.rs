//! A UDP datagram in its IPv4 packet, as a raw socket gives it (RFC 791 section 3.1, RFC 768).
//!
//! Guarantees: any octets are read without a panic. Trusts the kernel that it is one whole packet, for
//! UDP. The checksum is not looked at: between virtual machines and their host it is often left to
//! hardware that there is not, and the kernel knows that and tells no raw socket; a cable has its own.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Octets of a UDP header.
const HEADER: usize = 8;

/// Who sent it, and what. `None` if a header is cut or lies about its length.
#[must_use]
pub fn datagram(packet: &[u8]) -> Option<(SocketAddrV4, &[u8])> {
    let words = usize::from(packet.first()? & 0x0f);
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let udp = packet.get(words.checked_mul(4).filter(|length| *length >= 20)?..)?;
    let number = |at| Some(u16::from_be_bytes(*udp.get(at..)?.first_chunk()?));
    let payload = udp.get(HEADER..usize::from(number(4)?))?;
    Some((SocketAddrV4::new(Ipv4Addr::from(source), number(0)?), payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 192.0.2.7:68 to 255.255.255.255:67, with two octets.
    const PACKET: [u8; 30] = [
        0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 7, 255, 255, 255, 255, // IPv4
        0, 68, 0, 67, 0, 10, 0xde, 0xad, b'a', b'b', // UDP
    ];

    #[test]
    fn the_sender_and_what_it_sent_are_read() {
        let sender = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 68);
        assert_eq!(datagram(&PACKET), Some((sender, &b"ab"[..])));
        // Padding behind it, as of a short Ethernet frame, is no part of it.
        assert_eq!(datagram(&[&PACKET[..], &[0; 16]].concat()), Some((sender, &b"ab"[..])));
        // Four octets of options in the IPv4 header.
        let mut long = PACKET.to_vec();
        long[0] = 0x46;
        long.splice(20..20, [1, 1, 1, 0]);
        assert_eq!(datagram(&long), Some((sender, &b"ab"[..])));
    }

    #[test]
    fn what_is_cut_or_lies_about_its_length_is_nothing() {
        for length in 0..PACKET.len() {
            assert_eq!(datagram(&PACKET[..length]), None, "{length}");
        }
        for (at, value) in [(0, 0x44), (0, 0x4f), (25, 7), (25, 11), (24, 1)] {
            let mut wrong = PACKET;
            wrong[at] = value;
            assert_eq!(datagram(&wrong), None, "{at}: {value}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_read(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some((_, payload)) = datagram(&packet) {
                prop_assert!(payload.len() <= packet.len() - 28);
            }
        }
    }
}
