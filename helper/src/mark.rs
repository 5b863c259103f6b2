//! Marks: how the kernel tells our sockets, and the packets that they may receive, from all others.
//!
//! A socket of a lease carries `tag | lease slot` (SO_MARK, which an unprivileged holder cannot
//! change). A packet carries the tag alone, and only between our own input chain and the host's. The
//! slot stays within 8 bits, so that no lease looks like a mark that others test for with a mask:
//! Tailscale 0x00ff0000, Kubernetes 0x4000 and 0x8000, Cilium 0x0f00; and the tag of [`Marks`]'
//! default keeps a whole value away from wg-quick's 0xca6c and Mullvad's 0x6d6f6c65.

use std::num::NonZeroU8;

/// The bits of a mark that are ours, and their value: one choice for the life of the helper, the
/// same for its sockets, its rules and what it looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Marks {
    tag: u32,
    mask: u32,
}

impl Default for Marks {
    fn default() -> Self {
        Self { tag: 0x5a00_0000, mask: 0xff00_0000 }
    }
}

impl Marks {
    /// The fewest bits of a mask: with less, a mark of somebody else's is soon taken for ours.
    const LEAST_BITS: u32 = 4;
    /// The low bits that hold the slot of a lease.
    const SLOT_BITS: u32 = 8;

    /// A choice of tag and mask.
    ///
    /// # Errors
    /// Why the two cannot be used.
    pub fn new(tag: u32, mask: u32) -> Result<Self, &'static str> {
        let ones = mask.leading_ones();
        if ones.checked_add(mask.trailing_zeros()) != Some(u32::BITS)
            || ones < Self::LEAST_BITS
            || mask.trailing_zeros() < Self::SLOT_BITS
        {
            return Err("mask must be 4 to 24 bits without a gap, from the highest bit on \
                        (0xf0000000 to 0xffffff00): the lowest 8 bits number the leases");
        }
        if tag == 0 || tag & !mask != 0 {
            return Err("tag must not be 0, and all its bits must be within mask");
        }
        Ok(Self { tag, mask })
    }

    /// The value of our bits on a tagged socket or packet.
    #[must_use]
    pub fn tag(self) -> u32 {
        self.tag
    }

    /// The bits of a mark that are ours.
    #[must_use]
    pub fn mask(self) -> u32 {
        self.mask
    }

    /// The mark for a slot, 1 to 255.
    #[must_use]
    pub fn lease(self, slot: NonZeroU8) -> LeaseMark {
        LeaseMark { marks: self, slot }
    }

    /// The lease mark in a socket's mark, if it is one of ours.
    #[must_use]
    pub fn of_socket(self, mark: u32) -> Option<LeaseMark> {
        if mark & self.mask != self.tag {
            return None;
        }
        let slot = u8::try_from(mark & !self.mask).ok()?;
        NonZeroU8::new(slot).map(|slot| self.lease(slot))
    }
}

/// The mark of one lease's sockets. A slot is not used again while a socket with its mark lives
/// (`sockdiag::tagged`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseMark {
    /// The tag and mask that it is made with.
    pub marks: Marks,
    /// The slot.
    pub slot: NonZeroU8,
}

impl LeaseMark {
    /// The whole 32-bit mark of the lease's sockets.
    #[must_use]
    pub fn value(self) -> u32 {
        self.marks.tag | u32::from(self.slot.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tagged_marks_with_a_slot_are_ours() {
        let marks = Marks::default();
        let one = marks.lease(NonZeroU8::MIN);
        assert_eq!(one.value(), 0x5a00_0001);
        assert_eq!(marks.of_socket(0x5a00_0001), Some(one));
        for foreign in [0, 1, 0x5a00_0000, 0x5b00_0001, 0x5a00_0101, 0xca6c, 0x6d6f_6c65] {
            assert_eq!(marks.of_socket(foreign), None, "{foreign:#x}");
        }
        let other = Marks::new(0x1230_0000, 0xfff0_0000).unwrap();
        assert_eq!(other.lease(NonZeroU8::MIN).value(), 0x1230_0001);
        assert_eq!(other.of_socket(0x5a00_0001), None);
        assert_eq!(other.of_socket(0x1230_00ff).unwrap().slot, NonZeroU8::MAX);
    }

    #[test]
    fn a_mask_is_high_bits_without_a_gap_that_leave_the_slots_free_and_hold_the_tag() {
        for (tag, mask) in [
            (0x5a00_0000, 0xff00_0000),
            (0xf000_0000, 0xf000_0000),
            (0x0000_0100, 0xffff_ff00),
            (0x8000_0000, 0xfff0_0000),
        ] {
            assert!(Marks::new(tag, mask).is_ok(), "{tag:#x} {mask:#x}");
        }
        for mask in [0, u32::MAX, 0xe000_0000, 0xff00_ff00, 0x0ff0_0000, 0xffff_ff80, 0x00ff_ff00] {
            let error = Marks::new(mask & 0xff00_0000, mask).unwrap_err();
            assert!(error.starts_with("mask must"), "{mask:#x}: {error}");
        }
        for tag in [0, 0x0100_0000, 0x5a00_0001, 0x5a80_0000] {
            let error = Marks::new(tag, 0xfe00_0000).unwrap_err();
            assert!(error.starts_with("tag must"), "{tag:#x}: {error}");
        }
    }
}
