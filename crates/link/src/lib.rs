//! See the package description.

#![expect(dead_code, unused_imports, reason = "for the plans, which come next")]

mod attribute;
mod connection;
pub mod conntrack;
mod error;
mod features;
pub mod netns;
pub mod nft;
pub mod rtnetlink;
pub mod sysctl;

pub use error::{Error, Result};
pub use features::{BridgeFilter, Features};
