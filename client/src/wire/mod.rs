//! Packets as bytes: checked views for reading, plain values for writing. No sockets, no clock.

pub mod dhcp;
pub mod dhcp_reply;
