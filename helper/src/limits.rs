//! Every number that bounds the helper, each with its reason.

use std::time::Duration;

/// Leases at once, all users together: the slots of [`crate::mark::LeaseMark`] are 255, and a slot
/// rests while a socket of its last lease lives.
pub const LEASES: usize = 64;
/// Leases at once of one user: more interfaces than a desktop has.
pub const LEASES_PER_USER: usize = 8;
/// Most leases at once that a site can configure: two or three sockets of each stay with the helper, whose
/// unit allows 512 descriptors; and half of the slots, since slots rest.
pub const LEASES_CEILING: usize = 128;
/// Questions of one user that wait for an answer at once: one dialog is what a person can answer.
pub const QUESTIONS_PER_USER: usize = 1;
/// The most that a site can configure: seats and remote sessions of one user.
pub const QUESTIONS_CEILING: usize = 8;
/// Lowest TCP port for boot images: those below are other services' (80, 443, 22), and opening one to
/// the network is more than the action promises in its dialog.
pub const HTTP_PORT_FLOOR: u16 = 1024;
/// Largest configuration file, bytes: the documented one, with every key set, is a twentieth.
pub const CONFIG_BYTES: u64 = 64 * 1024;
/// Drop-ins of the configuration: more is a mistake.
pub const CONFIG_DROP_INS: usize = 64;
/// Longest name of a table or chain in the configuration, bytes: iptables allows 28, and nft's longer
/// ones are not written by people.
pub const CHAIN_NAME: usize = 64;
/// Longest lease, seconds: a backstop, since a lease ends with its client. One week.
pub const MAX_SECONDS_CEILING: u32 = 7 * 24 * 60 * 60;
/// Shortest lease, seconds: below this a machine cannot load an image.
pub const MAX_SECONDS_FLOOR: u32 = 10;
/// Keys in a request: as many as are defined.
pub const REQUEST_KEYS: usize = 7;
/// Longest interface name, bytes (IFNAMSIZ without the NUL).
pub const INTERFACE_NAME: usize = 15;
/// How long a person may think about a dialog before the question is withdrawn.
pub const DIALOG: Duration = Duration::from_secs(120);
/// How long polkit may take to answer a question that shows no dialog.
pub const POLKIT: Duration = Duration::from_secs(10);
/// Questions without a dialog (`Check`, and `List` when there are leases of others) that one user may
/// cause in a burst: as many as are earned, one per second, in this time.
pub const CHECK_BURST: Duration = Duration::from_secs(20);
/// Users whose `Check` rate is remembered; the oldest is forgotten first.
pub const CHECK_USERS: usize = 64;
/// How long the helper stays without a lease before it leaves the bus.
pub const IDLE: Duration = Duration::from_secs(10);
/// How often leases are held against the world: interface, address, sockets, firewall, end. Half of
/// the second within which a reload of the firewall has to be repaired.
pub const TICK: Duration = Duration::from_millis(500);
/// How long changes of the firewall are gathered before it is looked at, so that a burst of them (a
/// reload by iptables is about eighty) costs a few looks.
pub const BURST: Duration = Duration::from_millis(20);
/// How soon a firewall that is being reloaded, or has something of ours left, is looked at again; and
/// how long a helper that leaves waits for calls that are already here.
pub const SOON: Duration = Duration::from_millis(100);
/// How long a firewall may be away before its leases end, and how long the removal of an opening is
/// tried again before the helper gives up (its end takes the table along).
pub const FIREWALL_PATIENCE: Duration = Duration::from_secs(5);
/// How long firewalld keeps a rule that is not renewed, seconds: what a helper that died leaves open.
pub const FIREWALLD_RULE_SECONDS: i32 = 60;
/// How often its rules are looked at and renewed: three times in their life.
pub const FIREWALLD_RENEWAL: Duration = Duration::from_secs(20);
/// Longest conversation with firewalld: a reload that it is busy with, and well below the watchdog.
pub const FIREWALLD: Duration = Duration::from_secs(5);
/// How long broadcasts are let in for a raw socket after a helper that hangs has last said so: the kernel
/// cannot tell whether that socket still lives.
pub const HEARING: Duration = Duration::from_secs(10);
/// How often that is said: three times in it.
pub const HEARING_RENEWAL: Duration = Duration::from_secs(3);
/// Ended leases whose user is remembered, so that closing twice succeeds.
pub const ENDED_LEASES: usize = 256;
/// How long calls that were on their way may take when the helper leaves the bus.
pub const DRAIN: Duration = Duration::from_secs(1);
/// Receive buffer of UDP 67 and 4011, bytes: a thousand machines that power on at once, each a
/// datagram that the kernel accounts with about 2 KiB.
pub const DHCP_RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// Receive buffer of UDP 69, bytes: a thousand read requests, each accounted with under 1 KiB.
pub const TFTP_RECEIVE_BUFFER: usize = 1024 * 1024;
/// Backlog of the TCP listener: a lab of machines that fetch their script at once.
pub const TCP_BACKLOG: i32 = 512;
/// User ids for a helper that is started for one run: the last 64 of those that systemd gives to
/// services with DynamicUser= (systemd's UIDS-GIDS.md), which no distribution gives to anybody else.
pub const ONCE_UIDS: std::ops::RangeInclusive<u32> = 65_456..=65_519;
/// Longest wait for one answer of the kernel on a netlink socket.
pub const NETLINK: Duration = Duration::from_secs(2);
/// Largest netlink answer that is read, bytes (the kernel's own dump limit is 32 KiB a message).
pub const NETLINK_BUFFER: usize = 64 * 1024;
/// Messages of one netlink dump: a host with more rules, links or sockets is beyond what is read,
/// and the request is refused.
pub const DUMP_MESSAGES: usize = 65_536;
/// Chains of the host's firewall that `Check` names: more than anybody would read.
pub const DROPS: usize = 16;
/// Attempts to commit a firewall change while others commit theirs (each fails with ERESTART).
pub const COMMIT_ATTEMPTS: u32 = 20;
