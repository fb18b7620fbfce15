//! The machine's real interfaces: their addresses, routes to the outside and external addresses, and how
//! the NAT in front of them behaves.
//!
//! The cores take time, randomness and bytes as arguments; sockets and clocks are at the edge.

mod agreement;
mod family;
pub mod nat;
mod range;
mod scope;
pub mod stun;

pub use agreement::{Agreement, Answer, Confidence, Probe, ProbeError, Prober, Verdict};
pub use family::Family;
pub use range::{Count, IpRange, RangeError, RangeIter};
pub use scope::{AddressClass, PublicPolicy};
