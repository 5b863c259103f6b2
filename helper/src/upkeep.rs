//! Whether a lease still fits into the world: one function for each way in which it may not, and the
//! reason that its owner is told.
//!
//! Guarantees: a question that the kernel does not answer ends no lease, except that a firewall that
//! cannot be seen counts as one that is away. Changes nothing but what was taken out of the host's
//! chain by a reload.

use std::{io, time::Duration};

use portcullis_dbus::keys::reason;

use crate::{
    firewall::{Firewall, Standing},
    interface::Link,
    lease::Lease,
    limits, log,
    sockdiag::Found,
};

/// Its time is over.
pub fn expired(lease: &Lease, now: Duration) -> Option<&'static str> {
    (now >= lease.ends).then_some(reason::EXPIRED)
}

/// The interface is another one, or has another address.
///
/// An interface that is down for a moment keeps its leases, as it keeps its index and address. One
/// unanswered question to the kernel ends nothing.
pub fn interface_changed(lease: &Lease, link: &io::Result<Option<Link>>) -> Option<&'static str> {
    let link = match link {
        Ok(link) => link.as_ref(),
        Err(error) => {
            log::kernel("look an interface up", error);
            return None;
        }
    };
    let same = |link: &&Link| {
        link.index == lease.opening.index
            && link.name == lease.opening.interface.as_str()
            && link.master.is_none()
    };
    let Some(link) = link.filter(same) else {
        return Some(reason::INTERFACE_CHANGED);
    };
    let keeps = link.addresses.contains(&lease.address);
    (!keeps).then_some(reason::ADDRESS_CHANGED)
}

/// A socket left the interface, or all are gone.
///
/// A lease whose last socket is gone was closed by its owner, or its sockets never arrived.
pub fn sockets_changed(lease: &Lease, living: Option<&[Found]>) -> Option<&'static str> {
    let living = living?;
    let mut own = living
        .iter()
        .filter(|socket| socket.mark == lease.opening.mark.value() && socket.held)
        .peekable();
    if own.peek().is_none() {
        return Some(reason::CLOSED);
    }
    own.any(|socket| socket.ifindex != lease.opening.index).then_some(reason::SOCKET_MOVED)
}

/// The firewall took the opening away: for good, or (a reload) until it is put back here.
pub fn firewall_changed(
    lease: &mut Lease,
    now: Duration,
    firewall: &mut dyn Firewall,
) -> Option<&'static str> {
    let whole = match firewall.standing(&lease.opening) {
        Ok(Standing::Whole) => true,
        Ok(Standing::Revoked) => return Some(reason::REVOKED),
        Ok(Standing::ChainGone) => {
            let restored = firewall
                .restore(&lease.opening)
                .inspect_err(|error| log::firewall("restore", error))
                .unwrap_or(false);
            if restored {
                // The host may have changed to its other firewall.
                lease.backend = firewall.backend().unwrap_or(lease.backend);
            }
            restored
        }
        Err(error) => {
            log::firewall("look at", &error);
            false
        }
    };
    if whole {
        lease.chain_gone_since = None;
        return None;
    }
    let since = *lease.chain_gone_since.get_or_insert(now);
    (now.saturating_sub(since) >= limits::FIREWALL_PATIENCE).then_some(reason::FIREWALL_GONE)
}
