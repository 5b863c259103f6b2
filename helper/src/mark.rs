//! Marks: how the kernel tells our sockets, and the packets that they may receive, from all others.
//!
//! A socket of a lease carries `TAG | lease slot` (SO_MARK, which an unprivileged holder cannot
//! change). A packet carries `TAG` alone, and only between our own input chain and `nixos-fw`.
//! The slot stays within 8 bits, so that no lease looks like a mark that others test for with a
//! mask: Tailscale 0x00ff0000, Kubernetes 0x4000 and 0x8000, Cilium 0x0f00; and the tag keeps a
//! whole value away from wg-quick's 0xca6c and Mullvad's 0x6d6f6c65.

use std::num::NonZeroU8;

/// The bits of a mark that are ours.
pub const MASK: u32 = 0xff00_0000;
/// Their value on a tagged socket or packet.
pub const TAG: u32 = 0x5a00_0000;

/// The mark of one lease's sockets. A slot is not used again while a socket with its mark lives
/// (`sockdiag::tagged`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseMark(NonZeroU8);

impl LeaseMark {
    /// The mark for a slot, 1 to 255.
    #[must_use]
    pub fn new(slot: NonZeroU8) -> Self {
        Self(slot)
    }

    /// The slot.
    #[must_use]
    pub fn slot(self) -> NonZeroU8 {
        self.0
    }

    /// The whole 32-bit mark of the lease's sockets.
    #[must_use]
    pub fn value(self) -> u32 {
        TAG | u32::from(self.0.get())
    }

    /// The lease mark in a socket's mark, if it is one of ours.
    #[must_use]
    pub fn from_socket(mark: u32) -> Option<Self> {
        if mark & MASK != TAG {
            return None;
        }
        let slot = u8::try_from(mark & !MASK).ok()?;
        NonZeroU8::new(slot).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tagged_marks_with_a_slot_are_ours() {
        let one = LeaseMark::new(NonZeroU8::MIN);
        assert_eq!(one.value(), 0x5a00_0001);
        assert_eq!(LeaseMark::from_socket(0x5a00_0001), Some(one));
        for foreign in [0, 1, TAG, 0x5b00_0001, 0x5a00_0101, 0xca6c, 0x6d6f_6c65] {
            assert_eq!(LeaseMark::from_socket(foreign), None, "{foreign:#x}");
        }
    }
}
