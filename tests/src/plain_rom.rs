//! A PXE ROM that is no iPXE: the stand-in for those of network cards that are bought.
//!
//! QEMU brings only iPXE's ROMs. One of them becomes a plain ROM on the wire: what it says by DHCP is
//! led past us on its way from the card to the LAN, and loses what only iPXE says (its user class and
//! its own options). What it is given it loads by TFTP and starts, with its PXE stack below it, as any
//! ROM does; from that request on nothing is changed, so that the loader speaks for itself.
//! Guarantees: a frame keeps its length and place in the order; ends with the machine.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::Command,
};

use crate::{LabError, Result};

/// Options that only iPXE sends: 77 (user class, RFC 3004) and 175 (iPXE's own).
const OURS: [u8; 2] = [77, 175];
/// Of Ethernet, and of IPv4 without options.
const HEADERS: usize = 14 + 20;
/// Where the options of a DHCP message begin in such a frame: after UDP's and BOOTP's header and the
/// cookie (RFC 2131 section 2).
const OPTIONS: usize = HEADERS + 8 + 240;
/// More than any frame.
const FRAME: usize = 65_536;

/// Leads what the card of the machine in `command` says on the network `lan` through us. `directory`
/// is the machine's own.
pub fn disguise(command: &mut Command, directory: &Path) -> Result<()> {
    let mut sockets = Vec::new();
    for name in ["said", "heard"] {
        let path = directory.join(name);
        let failed = |error| LabError::of(path.display(), error);
        sockets.push(UnixListener::bind(&path).map_err(failed)?);
        command.arg("-chardev").arg(format!("socket,id={name},path={}", path.display()));
    }
    // "rx" is what the LAN's side receives from the card.
    command
        .args(["-object", "filter-redirector,id=rom,netdev=lan,queue=rx,outdev=said,indev=heard"]);
    std::thread::spawn(move || relay(&sockets));
    Ok(())
}

/// QEMU connects to one after the other, and ends with an error on our side.
fn relay(sockets: &[UnixListener]) -> io::Result<()> {
    let [said, heard] = sockets else { return Ok(()) };
    let (mut said, _) = said.accept()?;
    let (mut heard, _) = heard.accept()?;
    let mut rom = true;
    loop {
        // Each frame follows its length (QEMU, net/filter-mirror.c).
        let mut length = [0; 4];
        said.read_exact(&mut length)?;
        let mut frame =
            vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap_or(FRAME).min(FRAME)];
        said.read_exact(&mut frame)?;
        rom &= udp_port(&frame) != Some(69);
        if rom && matches!(udp_port(&frame), Some(67 | 4011)) {
            plain(&mut frame);
        }
        heard.write_all(&length)?;
        heard.write_all(&frame)?;
    }
}

/// The port that a frame with UDP is for.
fn udp_port(frame: &[u8]) -> Option<u16> {
    // EtherType IPv4, a header of 20 octets, protocol UDP.
    let is_udp = frame.get(12..15)? == [0x08, 0x00, 0x45] && *frame.get(23)? == 17;
    let port = frame.get(HEADERS + 2..)?.first_chunk()?;
    is_udp.then_some(u16::from_be_bytes(*port))
}

/// Overwrites iPXE's options with padding (0, RFC 2132 section 3.1).
fn plain(frame: &mut [u8]) {
    // No checksum (RFC 768).
    if let Some(checksum) = frame.get_mut(HEADERS + 6..HEADERS + 8) {
        checksum.fill(0);
    }
    let mut rest = frame.get_mut(OPTIONS..).unwrap_or_default();
    while let [code, after @ ..] = rest {
        rest = match (*code, after) {
            (0, after) => after,
            (255, _) | (_, []) => break,
            (_, [length, after @ ..]) => {
                let Some((data, after)) = after.split_at_mut_checked(usize::from(*length)) else {
                    break;
                };
                if OURS.contains(code) {
                    (*code, *length) = (0, 0);
                    data.fill(0);
                }
                after
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_client::message;

    /// A frame around a DHCP message, as far as it is looked at.
    fn frame(port: u16, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut frame = vec![0; HEADERS];
        frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        frame[23] = 17;
        frame.extend([0, 68]);
        frame.extend(port.to_be_bytes());
        frame.extend([1, 2, 3, 4]);
        frame.extend(message([2; 6], options));
        frame
    }

    #[test]
    fn only_ipxes_own_options_are_lost_and_nothing_moves() {
        let mut changed = frame(
            67,
            &[(53, &[1]), (77, b"iPXE"), (60, b"PXEClient"), (175, &[1, 1, 1]), (97, &[0])],
        );
        let length = changed.len();
        assert_eq!(udp_port(&changed), Some(67));
        plain(&mut changed);
        assert_eq!(changed.len(), length);
        let left = crate::boot_client::options(&changed[HEADERS + 8..]);
        let codes: Vec<_> = left.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, [53, 60, 97]);
        assert_eq!(left[1].1, b"PXEClient");
        assert_eq!(changed[HEADERS + 4..HEADERS + 8], [1, 2, 0, 0], "length, no checksum");
        assert_eq!(udp_port(&frame(69, &[])), Some(69));
        assert_eq!(udp_port(&[0; 60]), None);
    }
}
