//! Who may fetch anything, and what is known of who asks. The servers ask before they open or count
//! anything for a machine.

use crate::{mac::MacAddr, template::Identity};

/// Decides whether a machine is served. Must not block.
pub trait Admission: Send + Sync {
    /// False: the machine is answered as if there were no file for it.
    fn admitted(&self, mac: MacAddr) -> bool;

    /// What the machine said of itself when it asked by DHCP; nothing, where nobody keeps that.
    fn identity(&self, mac: MacAddr) -> Identity {
        let _ = mac;
        Identity::default()
    }
}
