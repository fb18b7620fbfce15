//! The user-mode network: switch, gateway, flows, forwards, services, DNS, policy.

pub mod config;
mod context;
pub mod control;
mod counters;
pub mod edge;
#[cfg(test)]
mod fake;
pub mod forward;
mod guests;
mod icmp;
mod neighbor;
pub mod network;
pub mod policy;
pub mod service;
mod shaper;
mod switch;
mod tcp;
mod udp;
mod vip;
mod wheel;
