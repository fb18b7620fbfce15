//! See the package description.

mod attribute;
mod connection;
pub mod conntrack;
mod error;
mod features;
pub mod netns;
pub mod nft;
pub mod plan;
pub mod rtnetlink;
pub mod sysctl;

pub use error::{Error, Result};
pub use features::{BridgeFilter, Features};
