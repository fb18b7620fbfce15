//! What the NAT in front of this machine does to UDP.
//!
//! [`kind`] has the words, [`report`] what a test found. [`examine`](examine::examine) is the test,
//! [`delta`] reads series of ports, [`simulate`] is a NAT of any behaviour without IO. [`live`] runs the
//! test on this machine's sockets, [`PortalCheck`] looks who answers in the place of others.

pub mod delta;
pub mod examine;
mod filter;
pub mod kind;
pub mod live;
mod measure;
mod portal;
pub mod report;
pub mod simulate;

pub use examine::{Plan, Rules, examine};
pub use kind::{DeltaType, Filtering, Mapping, NatType};
pub use portal::PortalCheck;
pub use report::{Confidence, Delta, NatReport};
