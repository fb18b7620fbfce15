//! The user-mode network: switch, gateway, flows, forwards, services, DNS, policy.

pub mod config;
pub mod control;
pub mod edge;
pub mod forward;
pub mod policy;
pub mod service;
mod shaper;
mod switch;
