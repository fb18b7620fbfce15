//! The user-mode network: switch, gateway, flows, forwards, services, DNS, policy.

pub mod forward;
