//! Who may fetch anything. The servers ask before they open or count anything for a machine.

use crate::mac::MacAddr;

/// Decides whether a machine is served. Must not block.
pub trait Admission: Send + Sync {
    /// False: the machine is answered as if there were no file for it.
    fn admitted(&self, mac: MacAddr) -> bool;
}
