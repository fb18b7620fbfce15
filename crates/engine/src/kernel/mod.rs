//! A network in bridge mode: the kernel moves the packets, and this process keeps the books.
//!
//! # Theory of operation
//!
//! [`books::Books`] know who is plugged in, with which addresses and names, which forwards and
//! services there are, and whose they are. A verb of a member changes them, tells the
//! [`Plumbing`](crate::plumbing::Plumbing) how everything is to be, and takes the change back if
//! that fails.
//!
//! What guests ask of their gateway is answered here ([`serve`]), by the same DNS and DHCP servers
//! as in user mode: DNS on sockets of the gateway's addresses, confined to the bridge's interface,
//! DHCP and router solicitations on packet sockets, which tell the hardware address that a message
//! really came from, and need neither a port that the host's own server may have nor a hole in its
//! firewall.
//!
//! Host ports of forwards and services ([`doors`]) are bound by this process in any case, so that
//! nobody else takes them. The kernel translates what comes from other machines before it reaches
//! them. What connects to a loopback address arrives there, and is relayed ([`relay`],
//! [`datagrams`]): to an instance, or to the virtual address of a service, so that the kernel's one
//! counter gives all turns.

mod books;
mod datagrams;
mod dials;
mod doors;
mod driver;
mod relay;
mod segment;
mod serve;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

pub(crate) use self::driver::Driver;
use crate::config::Config;
use crate::counters::Counters;
use crate::dns;
use crate::edge::Edge;
use crate::forward::Protocol;

/// Ports of the host that a network in bridge mode cannot do without.
pub(crate) fn ports(config: &Config) -> [(Protocol, SocketAddr); 2] {
    let addresses: [IpAddr; 2] = [config.gateway4().into(), config.gateway6().into()];
    addresses.map(|address| (Protocol::Udp, SocketAddr::new(address, dns::PORT)))
}

/// What an event may touch.
struct Io<'a> {
    now: Instant,
    edge: &'a mut dyn Edge,
    counters: &'a mut Counters,
}
