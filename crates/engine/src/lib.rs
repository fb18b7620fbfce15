//! The user-mode network: switch, gateway, flows, forwards, services, DNS, DHCP, policy.

pub mod client;
pub mod config;
mod context;
pub mod control;
mod counters;
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
mod neighbor;
pub mod network;
pub mod plumbing;
pub mod policy;
pub mod process;
pub mod router;
pub mod service;
mod shaper;
mod switch;
mod tcp;
mod udp;
mod vip;
mod wheel;
