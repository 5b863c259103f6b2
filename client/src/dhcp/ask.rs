//! What any DHCP client asks, read out of a message once and for all: who it is, and what its answer
//! repeats. A boot client asks more: `query`.
//!
//! Guarantees: nothing of it is text that is shown to people. Trusts nothing: which of it counts is
//! for `decide` and `server` to say.

use std::net::Ipv4Addr;

use crate::{
    mac::MacAddr,
    wire::dhcp::{Header, Message, option},
};

/// A DHCP client's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Option 53.
    pub message_type: u8,
    /// The header's fields.
    pub header: Header,
    /// What the machine is called: [`Header::mac`].
    pub mac: MacAddr,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server_id: Option<Ipv4Addr>,
    /// Option 61.
    pub client_id: Option<Vec<u8>>,
    /// Option 97.
    pub machine_id: Option<Vec<u8>>,
    /// Option 82.
    pub relay: Option<Vec<u8>>,
}

impl Ask {
    /// Reads a datagram; `None` if it is no DHCP message from a client.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        Self::read(&Message::parse(datagram).ok()?)
    }

    /// The same of a message that was checked; `None` if it has no message type.
    #[must_use]
    pub fn read(message: &Message<'_>) -> Option<Self> {
        let header = message.header();
        Some(Self {
            message_type: message.message_type()?,
            header,
            mac: header.mac(),
            requested: message.address(option::REQUESTED_ADDRESS),
            server_id: message.address(option::SERVER_ID),
            client_id: message.option(option::CLIENT_ID).map(Into::into),
            machine_id: message.option(option::MACHINE_ID).map(Into::into),
            relay: message.option(option::RELAY).map(Into::into),
        })
    }
}
