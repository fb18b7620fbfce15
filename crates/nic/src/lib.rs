//! The machine's real interfaces: their addresses, routes to the outside and external addresses, and how
//! the NAT in front of them behaves.
//!
//! The cores take time, randomness and bytes as arguments; sockets and clocks are at the edge.

mod family;

pub use family::Family;
