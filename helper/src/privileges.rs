//! The privileges that the helper runs with: its own user and exactly two capabilities.
//!
//! Guarantees: after [`settle`] the process is not uid 0, has no supplementary group, no other
//! capability in any set (a site may add CAP_NET_RAW), and cannot gain one; or [`settle`] has failed and nothing else happens.
//! Must run before any other thread exists, since Linux keeps capabilities per thread.

use std::fmt::Display;

use nix::unistd::{self, Gid, Group, Uid, User};
use rustix::{
    io::Errno,
    process::getpriority_user,
    thread::{self, CapabilitySet, CapabilitySets},
};

use crate::limits;

/// The user that the helper runs as.
pub const USER: &str = "portcullis";

/// What the helper needs: CAP_NET_ADMIN for marks, filters and the firewall, CAP_NET_BIND_SERVICE
/// for ports below 1024.
pub const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_BIND_SERVICE);

/// Becomes a user ([`installed`] or [`free_id`]) if started by root, and makes sure of the capabilities in
/// any case.
///
/// Returns whether CAP_NET_RAW is there, too, as a site may want it for UDP 67.
///
/// # Errors
/// When the process would have more or less than it needs: why, and what to do.
pub fn settle(user: fn() -> Result<(Uid, Gid), String>) -> Result<bool, String> {
    if unistd::geteuid().is_root() || unistd::getuid().is_root() {
        let (uid, gid) = user()?;
        become_user(uid, gid)?;
    }
    let held = thread::capabilities(None).map_err(step("read capabilities"))?;
    let raw = held.permitted.contains(CapabilitySet::NET_RAW);
    let needed = if raw { NEEDED.union(CapabilitySet::NET_RAW) } else { NEEDED };
    if held.permitted != needed || held.effective != needed {
        return Err(format!(
            "the helper needs exactly CAP_NET_ADMIN and CAP_NET_BIND_SERVICE and has {:?}: it is \
             started by the bus through its unit, not by hand",
            held.permitted
        ));
    }
    // Nothing is ever executed, so nothing is to be handed on. (The unit's system call filter leaves
    // no capset(2); an inheritable set without an ambient one gives nobody anything.)
    thread::clear_ambient_capability_set().map_err(step("clear the ambient capabilities"))?;
    thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    Ok(raw)
}

/// The user [`USER`], which comes with the package.
///
/// # Errors
/// When it is not there, or is root.
pub fn installed() -> Result<(Uid, Gid), String> {
    let Some(user) = User::from_name(USER).map_err(step("look up the user"))? else {
        return Err(format!(
            "there is no user {USER}: install the sysusers file and run systemd-sysusers, or make a \
             system user of that name"
        ));
    };
    if user.uid.is_root() || user.gid.as_raw() == 0 {
        return Err(format!("the user {USER} has uid or gid 0: the helper never runs as root"));
    }
    Ok((user.uid, user.gid))
}

/// A user id that nobody has, for one run: nothing is installed, so nobody made a user; `nobody` is
/// shared, and who shares a user id can stop and kill the helper. The first that is no user's, no group's
/// and no process's. Two that start at once may find the same: they can then end each other, and nothing
/// else.
///
/// # Errors
/// When each has somebody.
pub fn free_id() -> Result<(Uid, Gid), String> {
    for id in limits::ONCE_UIDS {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        let known = User::from_uid(uid).map_err(step("look up a user"))?.is_some()
            || Group::from_gid(gid).map_err(step("look up a group"))?.is_some();
        // The kernel finds no process of that user (getpriority(2)).
        let unused = || getpriority_user(rustix::process::Uid::from_raw(id)) == Err(Errno::SRCH);
        if !known && unused() {
            return Ok((uid, gid));
        }
    }
    Err(format!(
        "no user id of {:?} is free: end a helper of another run, or install the package",
        limits::ONCE_UIDS
    ))
}

/// Root's way down: bounding set first (needs CAP_SETPCAP), then groups, gid and uid (need
/// CAP_SETGID and CAP_SETUID); keep-capabilities carries the permitted set over the last step.
fn become_user(uid: Uid, gid: Gid) -> Result<(), String> {
    for capability in CapabilitySet::all().difference(NEEDED) {
        // EINVAL: newer than this kernel, so not there to be dropped.
        match thread::remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(step("shrink the bounding set")(errno)),
        }
    }
    thread::set_keep_capabilities(true).map_err(step("keep capabilities"))?;
    unistd::setgroups(&[]).map_err(step("drop groups"))?;
    unistd::setresgid(gid, gid, gid).map_err(step("set the gid"))?;
    unistd::setresuid(uid, uid, uid).map_err(step("set the uid"))?;
    thread::set_keep_capabilities(false).map_err(step("stop keeping capabilities"))?;
    let sets = CapabilitySets {
        effective: NEEDED,
        permitted: NEEDED,
        inheritable: CapabilitySet::empty(),
    };
    thread::set_capabilities(None, sets).map_err(step("set capabilities"))
}

fn step<E: Display>(step: &'static str) -> impl Fn(E) -> String {
    move |error| format!("the kernel refused to {step}: {error}")
}
