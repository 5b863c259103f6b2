//! Packets as octets: checked when read, built when written. No sockets, no clock, no decisions.

pub mod dhcp;
pub mod dhcp_reply;
pub mod tftp;
pub mod udp;
