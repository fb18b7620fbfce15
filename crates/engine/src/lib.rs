//! One network. In user mode its switch, gateway, flows and policy; in bridge mode the books of what
//! the kernel does; in both its members, forwards, services, DNS and DHCP.

mod between;
pub mod capture;
pub mod client;
pub mod config;
mod context;
pub mod control;
mod counters;
pub mod delivery;
pub mod dhcp;
mod dns;
mod drive;
mod driver;
pub mod edge;
#[cfg(test)]
mod fake;
pub mod forward;
mod guests;
pub mod holder;
mod icmp;
mod kernel;
mod mdns;
mod multicast;
mod neighbor;
pub mod network;
mod ping;
pub mod plumbing;
pub mod policy;
pub mod process;
mod remote;
mod requests;
pub mod router;
mod sending;
pub mod service;
mod shaper;
mod switch;
mod tcp;
mod udp;
mod vip;

use netyard_wheel as wheel;
