//! What the NAT in front of this machine does to UDP.
//!
//! [`kind`] has the words, [`report`] what a test found.

pub mod kind;
pub mod report;

pub use kind::{DeltaType, Filtering, Mapping, NatType};
pub use report::{Confidence, Delta, NatReport};
