//! Who may send what to whom: the hub's table of peers, and where each packet goes.
//!
//! A peer sends from its own address and no other. What it sends to another peer goes to that peer's queue
//! without touching the hub's own network; the rest goes to the hub. There is no other way between peers.

use std::collections::HashMap;
use std::net::IpAddr;

use netyard_wire::ip::IpPacket;
use serde::{Deserialize, Serialize};

use crate::addresses::{Plan, Slot};

/// Which peer: the number of its node in the store.
pub type NodeId = i64;

/// Why packets were dropped, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Drops {
    /// They came from an address that is not the sender's.
    pub spoof: u64,
    /// Nobody has the address that they were for.
    pub no_route: u64,
    /// They were for another peer, and peers are kept apart.
    pub isolated: u64,
    /// Header and packet do not fit each other.
    pub bad_packet: u64,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the hub itself, or by it to the outside.
    Hub,
    /// To a peer.
    Peer(NodeId),
    /// Nowhere; it is counted.
    Dropped,
}

/// The table.
#[derive(Debug)]
pub struct Relay {
    plan: Plan,
    isolate: bool,
    by_address: HashMap<IpAddr, NodeId>,
    drops: Drops,
}

impl Relay {
    /// Without peers. With `isolate` they reach the hub, and not each other.
    #[must_use]
    pub fn new(plan: Plan, isolate: bool) -> Self {
        Self { plan, isolate, by_address: HashMap::new(), drops: Drops::default() }
    }

    /// A peer has these addresses from now on.
    pub fn insert(&mut self, slot: Slot, peer: NodeId) {
        self.by_address.extend(own(slot).map(|address| (address, peer)));
    }

    /// The peer has gone.
    pub fn remove(&mut self, slot: Slot) {
        for address in own(slot) {
            self.by_address.remove(&address);
        }
    }

    /// What was dropped so far.
    #[must_use]
    pub const fn drops(&self) -> Drops {
        self.drops
    }

    /// Something came that is no packet.
    pub const fn count_bad_packet(&mut self) {
        self.drops.bad_packet += 1;
    }

    /// Where a packet of the peer with these addresses goes.
    pub fn from_peer(&mut self, slot: Slot, packet: &IpPacket<'_>) -> Way {
        if !own(slot).any(|address| address == packet.source) {
            self.drops.spoof += 1;
            return Way::Dropped;
        }
        if !self.is_peer(packet.destination) {
            return Way::Hub;
        }
        if self.isolate {
            self.drops.isolated += 1;
            return Way::Dropped;
        }
        self.to(packet.destination)
    }

    /// Where a packet of the hub, or of what is behind it, goes.
    pub fn from_hub(&mut self, packet: &IpPacket<'_>) -> Way {
        // What peers send each other does not come here: this is somebody who plays one.
        if self.is_peer(packet.source) {
            self.drops.spoof += 1;
            return Way::Dropped;
        }
        self.to(packet.destination)
    }

    /// Whether an address is in the network and not the hub's.
    fn is_peer(&self, address: IpAddr) -> bool {
        let within = match address {
            IpAddr::V4(address) => self.plan.network().contains(&address),
            IpAddr::V6(address) => self.plan.network6().is_some_and(|net| net.contains(&address)),
        };
        within && !own(self.plan.hub()).any(|hub| hub == address)
    }

    fn to(&mut self, destination: IpAddr) -> Way {
        match self.by_address.get(&destination) {
            Some(peer) => Way::Peer(*peer),
            None => {
                self.drops.no_route += 1;
                Way::Dropped
            }
        }
    }
}

/// The addresses that a slot's node sends from.
fn own(slot: Slot) -> impl Iterator<Item = IpAddr> {
    [Some(IpAddr::V4(slot.address)), slot.address6.map(IpAddr::V6)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use netyard_wire::ip::UDP;

    use super::*;
    use crate::addresses::Addressing;

    const HUB: &str = "10.1.1.1";
    const A: &str = "10.1.1.3";
    const B: &str = "10.1.1.5";

    fn packet(source: &str, destination: &str) -> IpPacket<'static> {
        IpPacket {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            hop_limit: 64,
            traffic_class: 0,
            protocol: UDP,
            fragment: None,
            header: &[],
            payload: &[],
        }
    }

    /// A relay with two peers, and the addresses of the first.
    fn relay(isolate: bool) -> (Relay, Slot) {
        let plan = Plan::new("10.1.1.0/24".parse().unwrap(), Addressing::Pair).unwrap();
        let plan = plan.with_ipv6("fd00::/64".parse().unwrap()).unwrap();
        let mut relay = Relay::new(plan, isolate);
        relay.insert(plan.slot(1).unwrap(), 1);
        relay.insert(plan.slot(2).unwrap(), 2);
        (relay, plan.slot(1).unwrap())
    }

    #[test]
    fn peers_reach_each_other_the_hub_and_what_is_behind_it() {
        let (mut relay, a) = relay(false);
        assert_eq!(relay.from_peer(a, &packet(A, B)), Way::Peer(2));
        assert_eq!(relay.from_peer(a, &packet(A, HUB)), Way::Hub);
        assert_eq!(relay.from_peer(a, &packet(A, "192.0.2.1")), Way::Hub);
        assert_eq!(relay.from_hub(&packet(HUB, A)), Way::Peer(1));
        assert_eq!(relay.from_hub(&packet("192.0.2.1", B)), Way::Peer(2));
        assert_eq!(relay.from_peer(a, &packet("fd00::3", "fd00::5")), Way::Peer(2));
        assert_eq!(relay.from_peer(a, &packet("fd00::3", "fd00::1")), Way::Hub);
        assert_eq!(relay.from_peer(a, &packet("fd00::3", "2001:db8::1")), Way::Hub);
        assert_eq!(relay.from_hub(&packet("fd00::1", "fd00::3")), Way::Peer(1));
        assert_eq!(relay.drops(), Drops::default());
        assert_eq!(relay.from_peer(a, &packet(A, "10.1.1.9")), Way::Dropped);
        relay.remove(relay.plan.slot(2).unwrap());
        assert_eq!(relay.from_hub(&packet(HUB, B)), Way::Dropped);
        assert_eq!(relay.drops(), Drops { no_route: 2, ..Drops::default() });
    }

    #[test]
    fn nobody_sends_with_an_address_that_is_not_its_own() {
        let (mut relay, a) = relay(false);
        for source in [B, HUB, "192.0.2.1", "10.1.1.4", "fd00::1", "fe80::1"] {
            assert_eq!(relay.from_peer(a, &packet(source, B)), Way::Dropped, "{source}");
        }
        assert_eq!(relay.from_hub(&packet(A, B)), Way::Dropped, "by the hub's own network");
        assert_eq!(relay.drops(), Drops { spoof: 7, ..Drops::default() });
    }

    #[test]
    fn isolated_peers_reach_the_hub_alone() {
        let (mut relay, a) = relay(true);
        assert_eq!(relay.from_peer(a, &packet(A, B)), Way::Dropped);
        assert_eq!(relay.from_peer(a, &packet(HUB, B)), Way::Dropped, "as the hub");
        assert_eq!(relay.from_peer(a, &packet(A, HUB)), Way::Hub);
        assert_eq!(relay.drops(), Drops { isolated: 1, spoof: 1, ..Drops::default() });
    }
}
