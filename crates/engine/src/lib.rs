//! The user-mode network: switch, gateway, flows, forwards, services, DNS, policy.

pub mod config;
mod context;
pub mod control;
mod counters;
pub mod edge;
pub mod forward;
mod guests;
pub mod network;
pub mod policy;
pub mod service;
mod shaper;
mod switch;
mod tcp;
mod wheel;
