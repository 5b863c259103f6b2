//! `portcullis`: serves boot images to other machines as an ordinary user.
//!
//! The data's way: arguments (`cli`) -> what is served (`source`, `image`) -> sockets (`session` on the
//! bus) -> packets (`dhcp`, `tftp`, `http`; their octets in `wire`) -> facts about each machine (`event`,
//! `machines`) -> what a person sees (`board`, `report`, `web`). `serve` leads through all of it.

pub mod admission;
pub mod agent;
pub mod board;
pub mod chain;
pub mod cli;
pub mod codes;
pub mod commands;
pub mod dhcp;
pub mod doctor;
pub mod download;
pub mod event;
pub mod exit;
pub mod fetch;
pub mod grub;
pub mod http;
pub mod image;
pub mod inhibit;
pub mod interfaces;
pub mod ipxe;
pub mod loaders;
pub mod mac;
pub mod machines;
pub mod nixos;
pub mod notify;
pub mod once;
pub mod oui;
pub mod pixiecore_v1;
pub mod read;
pub mod report;
pub mod rpi;
pub mod serve;
pub mod session;
pub mod sign;
pub mod source;
mod start;
pub mod template;
pub mod tftp;
pub mod uki;
pub mod web;
pub mod wire;
