//! Kernel plumbing: links, addresses, routes, rules, nftables, connection tracking; made by plans that
//! can be undone, also by the next process after a kill.
//!
//! Everything goes over netlink from this process, and no command is run. The calls block; they return
//! when the kernel has done what was asked or has said why not. To act in another network namespace a
//! socket is opened there, on a thread of its own; the process never moves.
//!
//! Read first:
//!
//! * [`plan::Plan`] and [`plan::Host`]: what is to be made, checked, applied, undone, recovered. The
//!   [theory of operation](plan) says what makes an object ours.
//! * [`rtnetlink::Rtnetlink`]: the verbs for links, addresses, routes, rules and neighbours.
//! * [`nft::Rule`] and [`nft::Batch`]: rulesets as values, changed in transactions.
//!
//! [`conntrack::Conntrack`] lists and removes connections, [`sysctl::Key`] reads and changes settings,
//! [`wireless::links`] tells which links are radio, [`Features`] is what this kernel can do.

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
pub mod wireless;

pub use error::{Error, Result};
pub use features::{BridgeFilter, Features};
