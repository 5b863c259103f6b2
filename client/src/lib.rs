//! `portcullis`: serves boot images to other machines as an ordinary user.
//!
//! The data's way: arguments -> source (`image`) -> session on the bus (sockets) -> packets
//! (`wire` -> decision -> reply) -> facts about each machine (`event`) -> what a person sees.

pub mod dhcp;
pub mod event;
pub mod image;
pub mod mac;
pub mod machines;
pub mod wire;
