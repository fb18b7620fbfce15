//! Who may send what to whom: the hub's table of peers, and where each packet goes.
//!
//! A peer sends from its own address and no other. What it sends to another peer goes to that peer's queue
//! without touching the hub's own network; the rest goes to the hub. There is no other way between peers.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use netyard_wire::ip::IpPacket;
use serde::{Deserialize, Serialize};

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
    network: Ipv4Net,
    hub: Ipv4Addr,
    isolate: bool,
    by_address: HashMap<Ipv4Addr, NodeId>,
    drops: Drops,
}

impl Relay {
    /// Without peers. With `isolate` they reach the hub, and not each other.
    #[must_use]
    pub fn new(network: Ipv4Net, hub: Ipv4Addr, isolate: bool) -> Self {
        Self { network, hub, isolate, by_address: HashMap::new(), drops: Drops::default() }
    }

    /// A peer has an address from now on.
    pub fn insert(&mut self, address: Ipv4Addr, peer: NodeId) {
        self.by_address.insert(address, peer);
    }

    /// The peer has gone.
    pub fn remove(&mut self, address: Ipv4Addr) {
        self.by_address.remove(&address);
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

    /// Where a packet of the peer with this address goes.
    pub fn from_peer(&mut self, address: Ipv4Addr, packet: &IpPacket<'_>) -> Way {
        if packet.source != IpAddr::V4(address) {
            self.drops.spoof += 1;
            return Way::Dropped;
        }
        let IpAddr::V4(destination) = packet.destination else {
            self.drops.no_route += 1;
            return Way::Dropped;
        };
        if destination == self.hub || !self.network.contains(&destination) {
            return Way::Hub;
        }
        if self.isolate {
            self.drops.isolated += 1;
            return Way::Dropped;
        }
        self.to(destination)
    }

    /// Where a packet of the hub, or of what is behind it, goes.
    pub fn from_hub(&mut self, packet: &IpPacket<'_>) -> Way {
        match packet.destination {
            // What peers send each other does not come here: this is somebody who plays one.
            _ if self.is_peer(packet.source) => {
                self.drops.spoof += 1;
                Way::Dropped
            }
            IpAddr::V4(destination) => self.to(destination),
            IpAddr::V6(_) => {
                self.drops.no_route += 1;
                Way::Dropped
            }
        }
    }

    fn is_peer(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if address != self.hub && self.network.contains(&address))
    }

    fn to(&mut self, destination: Ipv4Addr) -> Way {
        match self.by_address.get(&destination) {
            Some(peer) => Way::Peer(*peer),
            None => {
                self.drops.no_route += 1;
                Way::Dropped
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use netyard_wire::ip::UDP;

    use super::*;

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

    fn relay(isolate: bool) -> Relay {
        let mut relay = Relay::new("10.1.1.0/24".parse().unwrap(), HUB.parse().unwrap(), isolate);
        relay.insert(A.parse().unwrap(), 1);
        relay.insert(B.parse().unwrap(), 2);
        relay
    }

    #[test]
    fn peers_reach_each_other_the_hub_and_what_is_behind_it() {
        let mut relay = relay(false);
        let a = A.parse().unwrap();
        assert_eq!(relay.from_peer(a, &packet(A, B)), Way::Peer(2));
        assert_eq!(relay.from_peer(a, &packet(A, HUB)), Way::Hub);
        assert_eq!(relay.from_peer(a, &packet(A, "192.0.2.1")), Way::Hub);
        assert_eq!(relay.from_hub(&packet(HUB, A)), Way::Peer(1));
        assert_eq!(relay.from_hub(&packet("192.0.2.1", B)), Way::Peer(2));
        assert_eq!(relay.drops(), Drops::default());
        assert_eq!(relay.from_peer(a, &packet(A, "10.1.1.9")), Way::Dropped);
        relay.remove(B.parse().unwrap());
        assert_eq!(relay.from_hub(&packet(HUB, B)), Way::Dropped);
        assert_eq!(relay.drops(), Drops { no_route: 2, ..Drops::default() });
    }

    #[test]
    fn nobody_sends_with_an_address_that_is_not_its_own() {
        let mut relay = relay(false);
        let a = A.parse().unwrap();
        for source in [B, HUB, "192.0.2.1", "10.1.1.4", "fd00::1"] {
            assert_eq!(relay.from_peer(a, &packet(source, B)), Way::Dropped, "{source}");
        }
        assert_eq!(relay.from_hub(&packet(A, B)), Way::Dropped, "by the hub's own network");
        assert_eq!(relay.drops(), Drops { spoof: 6, ..Drops::default() });
    }

    #[test]
    fn isolated_peers_reach_the_hub_alone() {
        let mut relay = relay(true);
        let a = A.parse().unwrap();
        assert_eq!(relay.from_peer(a, &packet(A, B)), Way::Dropped);
        assert_eq!(relay.from_peer(a, &packet(HUB, B)), Way::Dropped, "as the hub");
        assert_eq!(relay.from_peer(a, &packet(A, HUB)), Way::Hub);
        assert_eq!(relay.drops(), Drops { isolated: 1, spoof: 1, ..Drops::default() });
    }
}
