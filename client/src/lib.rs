//! `portcullis`: serves boot images to other machines as an ordinary user.
//!
//! The data's way: arguments -> source (`image`) -> session on the bus (sockets) -> packets
//! (`wire` -> decision -> reply) -> facts about each machine (`event`) -> what a person sees.

pub mod admission;
pub mod download;
pub mod event;
pub mod http;
pub mod image;
pub mod ipxe;
pub mod mac;
pub mod read;
pub mod tftp;
pub mod wire;
