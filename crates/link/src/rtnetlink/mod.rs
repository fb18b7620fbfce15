//! Links, addresses, routes, rules and neighbours, over rtnetlink(7).
//!
//! [`Rtnetlink`] is a conversation with one network namespace: the verbs are its methods. A verb
//! returns when the kernel has done it or has said why not. Nothing is assumed about what is
//! there: look with [`Rtnetlink::link`] and the dumps.
//!
//! Everything made here that can carry a mark carries one, so that it can be told from what others
//! made: links their alias and group, addresses, routes, rules and neighbours [`PROTOCOL`].

mod address;
mod link;
mod neighbor;
mod route;
mod rule;
mod watch;

use ipnet::IpNet;
use netyard_sys::netlink::Protocol;

pub use address::Address;
pub(crate) use address::AddressRecord;
pub use link::{
    BridgeOptions, Kind, Link, LinkChange, LinkIndex, LinkName, LinkTraffic, NewLink, PeerEnd,
    PortOptions, VxlanOptions,
};
pub use neighbor::{ForwardingEntry, Neighbor};
pub(crate) use route::RouteRecord;
pub use route::{Decision, LOCAL_TABLE, MAIN_TABLE, Route, RouteKind};
pub use rule::{Rule, RuleAction};
pub use watch::{Change, Watch};

use crate::connection::Connection;
use crate::error::Result;
use crate::netns::Netns;

/// The mark on addresses (`IFA_PROTO`, Linux 5.18), routes (`rtm_protocol`), rules
/// (`FRA_PROTOCOL`) and neighbours (`NDA_PROTOCOL`) made here. Not in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 110;

/// `AF_UNSPEC`.
const UNSPECIFIED: u8 = 0;
/// `AF_INET`.
const INET: u8 = 2;
/// `AF_BRIDGE`.
const BRIDGE: u8 = 7;
/// `AF_INET6`.
const INET6: u8 = 10;

/// A conversation with the kernel about one network namespace.
#[derive(Debug)]
pub struct Rtnetlink {
    connection: Connection,
}

impl Rtnetlink {
    /// About the calling thread's namespace.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn open() -> Result<Self> {
        Ok(Self { connection: Connection::open(Protocol::Route, None)? })
    }

    /// About another namespace; the calling thread stays where it is.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Self> {
        Ok(Self { connection: Connection::open(Protocol::Route, Some(netns))? })
    }
}

/// `AF_INET` or `AF_INET6`.
fn family(net: &IpNet) -> u8 {
    match net {
        IpNet::V4(_) => INET,
        IpNet::V6(_) => INET6,
    }
}
