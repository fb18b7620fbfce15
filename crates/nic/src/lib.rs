//! The machine's real interfaces: their addresses, routes to the outside and external addresses, and how
//! the NAT in front of them behaves.
//!
//! The cores take time, randomness and bytes as arguments; sockets and clocks are at the edge.
//!
//! Read first:
//!
//! * [`cards`]: every card, and what it is good for. Nothing is sent.
//! * [`Interface`]: a card with its routes; [`Interface::default_lite`] for those in a hurry.
//! * [`Route`] and [`RoutePool`]: by which addresses of a card the outside knows this machine under which
//!   addresses. [`Discovery`] finds out, by asking servers through a [`Prober`].
//! * [`Pipe`]: sockets that leave by a route; [`Daemon`]: a handler behind many of them.
//! * [`watch::Monitor`], [`NatMonitor`]: what changes. [`rest`]: all of this over HTTP.
//! * [`StunClient`], [`stun`] and [`nat`]: who is asked, and what stands in between. [`portmap`]: what the gateway lets be done
//!   about it. [`lab`]: the same on one machine.

mod agreement;
mod bind;
mod card;
mod daemon;
mod datagrams;
mod discover;
mod enumerate;
mod error;
mod family;
mod interface;
pub mod lab;
mod load;
pub mod nat;
mod outside;
pub mod pipe;
mod pool;
pub mod portmap;
mod range;
mod resolve;
pub mod rest;
mod route;
mod schema;
mod scope;
pub mod stun;
pub mod tls;
pub mod watch;

pub use agreement::{Agreement, Answer, Confidence, Probe, ProbeError, Prober, Verdict};
pub use bind::{Bind, BindError, Pin};
pub use card::{AddressState, Card, CardAddress, CardKind, Gateway, PerFamily, Standing, Unusable};
pub use daemon::{Daemon, DaemonError, Handler, ListenReport, Listened};
pub use discover::{Discovery, discover};
pub use enumerate::{card_named, cards, default_card};
pub use error::{NicError, Result};
pub use family::Family;
pub use interface::{AfGroup, Interface};
pub use load::{LoadOptions, Within, load_interfaces};
pub use outside::{Look, Seen};
pub use pipe::Pipe;
pub use pool::{PoolIter, RoutePool};
pub use range::{Count, IpRange, RangeError, RangeIter};
pub use resolve::{DnsError, resolvers};
pub use route::{CardId, External, Route, Unknown};
pub use schema::{InOrder, SCHEMA, SchemaError};
pub use scope::{AddressClass, PublicPolicy};
pub use stun::StunClient;
pub use watch::NatMonitor;
