//! What one event may touch: the time, the edge, and the parts of the network that all share.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wire::build;
use netyard_wire::icmp::IcmpError;
use netyard_wire::{Frame, MacAddr};
use rand::rngs::SmallRng;

use crate::config::Config;
use crate::counters::Counters;
use crate::edge::{Edge, PlugId};
use crate::guests::Guests;
use crate::policy::Policy;

/// Hop limit of packets that the gateway originates (RFC 1700's successor registry: 64).
pub(crate) const HOP_LIMIT: u8 = 64;

/// The shared parts, lent to the module that handles one event.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) edge: &'a mut dyn Edge,
    pub(crate) config: &'a Config,
    pub(crate) guests: &'a Guests,
    pub(crate) policy: &'a mut Policy,
    pub(crate) counters: &'a mut Counters,
    pub(crate) rng: &'a mut SmallRng,
    /// Where frames are built; contents are nobody's between calls.
    pub(crate) scratch: &'a mut Vec<u8>,
}

impl Context<'_> {
    /// Sends one UDP datagram to a guest, from the gateway's hardware address.
    pub(crate) fn send_udp(
        &mut self,
        plug: PlugId,
        mac: MacAddr,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
    ) -> bool {
        let offload = build::udp_frame(
            self.scratch,
            self.config.gateway_mac,
            mac,
            source,
            destination,
            HOP_LIMIT,
            payload,
        );
        self.edge.transmit(plug, Frame { bytes: self.scratch, offload })
    }

    /// Tells a guest what became of a packet it sent; `original` is that packet from its IP
    /// header on, `source` who reports.
    pub(crate) fn send_icmp_error(
        &mut self,
        plug: PlugId,
        mac: MacAddr,
        source: IpAddr,
        destination: IpAddr,
        kind: IcmpError,
        original: &[u8],
    ) -> bool {
        let offload = build::icmp_error(
            self.scratch,
            self.config.gateway_mac,
            mac,
            source,
            destination,
            kind,
            original,
        );
        self.edge.transmit(plug, Frame { bytes: self.scratch, offload })
    }
}
