//! Who may send what to whom: the hub's table of peers, and where each packet goes.
//!
//! A peer sends from its own address, from those of the subnets behind it that the hub's administrator has
//! accepted, and from no other. What it sends to another peer, or to what is behind one, goes to that peer's
//! queue without touching the hub's own network; the rest goes to the hub, or to the peer that the sender has
//! chosen as its exit. There is no other way between peers.
//!
//! With a [policy](crate::policy) a packet goes its way only if that allows it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use netyard_wire::ip::IpPacket;
use serde::{Deserialize, Serialize};

use crate::addresses::{Plan, Slot};
use crate::policy::{Acl, End, Whose};

/// Which peer: the number of its node in the store.
pub type NodeId = i64;

/// Why packets were dropped, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Drops {
    /// They came from an address that is not the sender's.
    pub spoof: u64,
    /// Nobody has the address that they were for.
    pub no_route: u64,
    /// They were for another peer, and peers are kept apart; or for another network of the hub, or from it.
    pub isolated: u64,
    /// No rule of the policy allows them.
    #[serde(default)]
    pub refused: u64,
    /// Header and packet do not fit each other.
    pub bad_packet: u64,
    /// They were larger than the network's packets may be; their senders were told.
    #[serde(default)]
    pub too_big: u64,
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

/// A peer that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its addresses.
    pub slot: Slot,
    /// What is behind it; `/0`: everything, for those who choose it as their exit.
    pub subnets: Vec<IpNet>,
    /// Who leads what it sends to the outside; `None`: the hub.
    pub exit: Option<NodeId>,
}

/// The table.
#[derive(Debug)]
pub struct Relay {
    plan: Plan,
    isolate: bool,
    members: HashMap<NodeId, Member>,
    by_address: HashMap<IpAddr, NodeId>,
    /// What is behind members, the longest prefixes first.
    behind: Vec<(IpNet, NodeId)>,
    /// Addresses of other networks of the hub: its kernel must not carry packets from one to another.
    foreign: Vec<IpNet>,
    acl: Option<Acl>,
    drops: Drops,
}

impl Relay {
    /// Without peers. With `isolate` they reach the hub, and not each other.
    #[must_use]
    pub fn new(plan: Plan, isolate: bool) -> Self {
        Self {
            plan,
            isolate,
            members: HashMap::new(),
            by_address: HashMap::new(),
            behind: Vec::new(),
            foreign: Vec::new(),
            acl: None,
            drops: Drops::default(),
        }
    }

    /// A peer is here from now on. The other one that has had its addresses until now, if there is one.
    pub fn insert(&mut self, peer: NodeId, member: Member) -> Option<NodeId> {
        self.remove(peer);
        let mut displaced = None;
        for address in own(member.slot) {
            displaced = self.by_address.insert(address, peer).or(displaced);
        }
        self.members.insert(peer, member);
        self.look_behind();
        displaced
    }

    /// The peer has gone. What another one has meanwhile stays with that.
    pub fn remove(&mut self, peer: NodeId) {
        let Some(member) = self.members.remove(&peer) else { return };
        for address in own(member.slot) {
            if self.by_address.get(&address) == Some(&peer) {
                self.by_address.remove(&address);
            }
        }
        self.look_behind();
    }

    /// These subnets are behind a peer, and no others.
    pub fn set_subnets(&mut self, peer: NodeId, subnets: Vec<IpNet>) {
        if let Some(member) = self.members.get_mut(&peer)
            && member.subnets != subnets
        {
            member.subnets = subnets;
            self.look_behind();
        }
    }

    /// These are addresses of other networks of the hub, and no others.
    pub fn set_foreign(&mut self, foreign: Vec<IpNet>) {
        self.foreign = foreign;
    }

    /// These are addresses of another network of the hub, too.
    pub fn add_foreign(&mut self, foreign: &[IpNet]) {
        self.foreign.extend(foreign);
    }

    fn is_foreign(&self, address: IpAddr) -> bool {
        self.foreign.iter().any(|net| net.contains(&address))
    }

    /// What the policy says from now on; `None`: there is none.
    pub(crate) fn set_acl(&mut self, acl: Option<Acl>) {
        self.acl = acl;
    }

    /// The same policy with the peers that there are now: what it has let pass is answered on.
    pub(crate) fn renew_acl(&mut self, acl: Option<Acl>) {
        let before = self.acl.take();
        self.acl = acl.map(|acl| acl.with_flows_of(before));
    }

    fn look_behind(&mut self) {
        let all = self
            .members
            .iter()
            .flat_map(|(peer, member)| member.subnets.iter().map(|subnet| (*subnet, *peer)));
        self.behind = all.collect();
        self.behind.sort_by_key(|(subnet, peer)| (std::cmp::Reverse(subnet.prefix_len()), *peer));
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

    /// Something came for a peer that is too big.
    pub const fn count_too_big(&mut self) {
        self.drops.too_big += 1;
    }

    /// Where a packet of this peer goes.
    pub fn from_peer(&mut self, peer: NodeId, packet: &IpPacket<'_>, now: Instant) -> Way {
        let member = self.members.get(&peer);
        let is_own = member.is_some_and(|it| own(it.slot).any(|address| address == packet.source));
        if !is_own && !self.is_behind(packet.source, peer) {
            self.drops.spoof += 1;
            return Way::Dropped;
        }
        let whose = if is_own { Whose::Node(peer) } else { Whose::Other };
        let exit = member.and_then(|member| member.exit);
        let Some((way, to)) = self.way(packet.destination, Some(peer), exit) else {
            self.drops.no_route += 1;
            return Way::Dropped;
        };
        let is_apart = match way {
            // The hub's kernel would carry it there, or an answer to it.
            Way::Hub => self.is_foreign(packet.destination) || self.is_foreign(packet.source),
            Way::Peer(_) => self.isolate,
            Way::Dropped => false,
        };
        if is_apart {
            self.drops.isolated += 1;
            return Way::Dropped;
        }
        self.judge(way, whose, to, packet, now)
    }

    /// Where a packet of the hub, or of what is behind it, goes.
    pub fn from_hub(&mut self, packet: &IpPacket<'_>, now: Instant) -> Way {
        // What peers send each other does not come here: this is somebody who plays one.
        if self.is_peer(packet.source) {
            self.drops.spoof += 1;
            return Way::Dropped;
        }
        if self.is_foreign(packet.source) {
            self.drops.isolated += 1;
            return Way::Dropped;
        }
        match self.way(packet.destination, None, None) {
            Some((way @ Way::Peer(_), to)) => {
                let is_hub = own(self.plan.hub()).any(|address| address == packet.source);
                let whose = if is_hub { Whose::Hub } else { Whose::Other };
                self.judge(way, whose, to, packet, now)
            }
            _ => {
                self.drops.no_route += 1;
                Way::Dropped
            }
        }
    }

    /// What the policy says to a packet on its way.
    fn judge(
        &mut self,
        way: Way,
        from: Whose,
        to: Whose,
        packet: &IpPacket<'_>,
        now: Instant,
    ) -> Way {
        let Some(acl) = &mut self.acl else { return way };
        let from = End { whose: from, address: packet.source };
        let to = End { whose: to, address: packet.destination };
        if acl.allows(from, to, packet, now) {
            return way;
        }
        self.drops.refused += 1;
        Way::Dropped
    }

    /// Where a destination is, and whose it is; `None`: nowhere.
    fn way(
        &self,
        destination: IpAddr,
        from: Option<NodeId>,
        exit: Option<NodeId>,
    ) -> Option<(Way, Whose)> {
        if self.is_peer(destination) {
            let peer = *self.by_address.get(&destination)?;
            return Some((Way::Peer(peer), Whose::Node(peer)));
        }
        if own(self.plan.hub()).any(|hub| hub == destination) {
            return Some((Way::Hub, Whose::Hub));
        }
        let leads = |(subnet, _): &&(IpNet, NodeId)| {
            subnet.prefix_len() > 0 && subnet.contains(&destination)
        };
        if let Some((_, peer)) = self.behind.iter().find(leads) {
            return (Some(*peer) != from).then_some((Way::Peer(*peer), Whose::Other));
        }
        match exit {
            None => Some((Way::Hub, Whose::Other)),
            Some(exit) => {
                let leads = |(subnet, peer): &(IpNet, NodeId)| {
                    *peer == exit && subnet.prefix_len() == 0 && subnet.contains(&destination)
                };
                self.behind.iter().any(leads).then_some((Way::Peer(exit), Whose::Other))
            }
        }
    }

    /// Whether an address is in the network and not the hub's.
    fn is_peer(&self, address: IpAddr) -> bool {
        let within = match address {
            IpAddr::V4(address) => self.plan.network().contains(&address),
            IpAddr::V6(address) => self.plan.network6().is_some_and(|net| net.contains(&address)),
        };
        within && !own(self.plan.hub()).any(|hub| hub == address)
    }

    /// Whether an address is behind a peer, and not behind another by a longer prefix.
    fn is_behind(&self, address: IpAddr, peer: NodeId) -> bool {
        let within = match address {
            IpAddr::V4(address) => self.plan.network().contains(&address),
            IpAddr::V6(address) => self.plan.network6().is_some_and(|net| net.contains(&address)),
        };
        let mut leading = self.behind.iter().filter(|(subnet, _)| subnet.contains(&address));
        let longest = leading.clone().next().map(|(subnet, _)| subnet.prefix_len());
        !within && leading.any(|(subnet, it)| *it == peer && Some(subnet.prefix_len()) == longest)
    }
}

/// The addresses that a slot's node sends from.
pub(crate) fn own(slot: Slot) -> impl Iterator<Item = IpAddr> {
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

    /// A relay with two peers.
    fn relay(isolate: bool) -> Relay {
        let plan = Plan::new("10.1.1.0/24".parse().unwrap(), Addressing::Pair).unwrap();
        let plan = plan.with_ipv6("fd00::/64".parse().unwrap()).unwrap();
        let mut relay = Relay::new(plan, isolate);
        for peer in [1, 2] {
            relay.insert(peer.into(), member(plan.slot(peer).unwrap(), &[]));
        }
        relay
    }

    fn member(slot: Slot, subnets: &[&str]) -> Member {
        let subnets = subnets.iter().map(|net| net.parse().unwrap()).collect();
        Member { slot, subnets, exit: None }
    }

    impl Relay {
        fn of_peer(&mut self, peer: NodeId, source: &str, destination: &str) -> Way {
            self.from_peer(peer, &packet(source, destination), Instant::now())
        }

        fn of_hub(&mut self, source: &str, destination: &str) -> Way {
            self.from_hub(&packet(source, destination), Instant::now())
        }
    }

    #[test]
    fn peers_reach_each_other_the_hub_and_what_is_behind_it() {
        let mut relay = relay(false);
        assert_eq!(relay.of_peer(1, A, B), Way::Peer(2));
        assert_eq!(relay.of_peer(1, A, HUB), Way::Hub);
        assert_eq!(relay.of_peer(1, A, "192.0.2.1"), Way::Hub);
        assert_eq!(relay.of_hub(HUB, A), Way::Peer(1));
        assert_eq!(relay.of_hub("192.0.2.1", B), Way::Peer(2));
        assert_eq!(relay.of_peer(1, "fd00::3", "fd00::5"), Way::Peer(2));
        assert_eq!(relay.of_peer(1, "fd00::3", "fd00::1"), Way::Hub);
        assert_eq!(relay.of_peer(1, "fd00::3", "2001:db8::1"), Way::Hub);
        assert_eq!(relay.of_hub("fd00::1", "fd00::3"), Way::Peer(1));
        assert_eq!(relay.drops(), Drops::default());
        assert_eq!(relay.of_peer(1, A, "10.1.1.9"), Way::Dropped);
        assert_eq!(relay.insert(3, member(relay.plan.slot(2).unwrap(), &[])), Some(2));
        assert_eq!(relay.insert(3, member(relay.plan.slot(2).unwrap(), &[])), None, "its own");
        relay.remove(2);
        assert_eq!(relay.of_hub(HUB, B), Way::Peer(3), "another one's address");
        relay.insert(3, member(relay.plan.slot(4).unwrap(), &[]));
        assert_eq!(relay.of_hub(HUB, B), Way::Dropped, "it has another address now");
        assert_eq!(relay.of_hub(HUB, "10.1.1.9"), Way::Peer(3));
        relay.remove(3);
        assert_eq!(relay.of_hub(HUB, "10.1.1.9"), Way::Dropped);
        assert_eq!(relay.drops(), Drops { no_route: 3, ..Drops::default() });
    }

    #[test]
    fn nobody_sends_with_an_address_that_is_not_its_own() {
        let mut relay = relay(false);
        for source in [B, HUB, "192.0.2.1", "10.1.1.4", "fd00::1", "fe80::1"] {
            assert_eq!(relay.of_peer(1, source, B), Way::Dropped, "{source}");
        }
        assert_eq!(relay.of_hub(A, B), Way::Dropped, "by the hub's own network");
        assert_eq!(relay.drops(), Drops { spoof: 7, ..Drops::default() });
    }

    #[test]
    fn isolated_peers_reach_the_hub_alone() {
        let mut relay = relay(true);
        assert_eq!(relay.of_peer(1, A, B), Way::Dropped);
        assert_eq!(relay.of_peer(1, HUB, B), Way::Dropped, "as the hub");
        assert_eq!(relay.of_peer(1, A, HUB), Way::Hub);
        assert_eq!(relay.drops(), Drops { isolated: 1, spoof: 1, ..Drops::default() });
    }

    #[test]
    fn other_networks_of_the_hub_are_out_of_reach() {
        let mut relay = relay(false);
        relay.set_foreign(vec!["10.2.0.0/16".parse().unwrap(), "fd00:2::/64".parse().unwrap()]);
        for to in ["10.2.0.1", "10.2.9.9"] {
            assert_eq!(relay.of_peer(1, A, to), Way::Dropped, "{to}");
        }
        assert_eq!(relay.of_peer(1, "fd00::3", "fd00:2::1"), Way::Dropped);
        assert_eq!(relay.of_hub("10.2.0.3", A), Way::Dropped, "by the hub's kernel");
        assert_eq!(relay.of_hub("10.2.0.1", A), Way::Dropped, "as the hub in the other one");
        assert_eq!(relay.of_peer(1, A, "10.3.0.1"), Way::Hub);
        assert_eq!(relay.drops(), Drops { isolated: 5, ..Drops::default() });
        // What is behind a peer of this network is this network's, and goes no further.
        relay.set_subnets(2, vec!["10.2.1.0/24".parse().unwrap()]);
        assert_eq!(relay.of_peer(1, A, "10.2.1.7"), Way::Peer(2));
        assert_eq!(relay.of_peer(2, "10.2.1.7", A), Way::Peer(1));
        for to in [HUB, "203.0.113.1"] {
            assert_eq!(relay.of_peer(2, "10.2.1.7", to), Way::Dropped, "answered elsewhere: {to}");
        }
        assert_eq!(relay.drops(), Drops { isolated: 7, ..Drops::default() });
        relay.add_foreign(&["10.3.0.0/16".parse().unwrap()]);
        assert_eq!(relay.of_peer(1, A, "10.3.0.1"), Way::Dropped);
        relay.set_foreign(Vec::new());
        assert_eq!(relay.of_peer(1, A, "10.3.0.1"), Way::Hub);
    }

    #[test]
    fn subnets_are_behind_the_peer_that_has_them_and_exits_serve_who_chose_them() {
        let mut relay = relay(false);
        relay.set_subnets(2, vec!["192.168.7.0/24".parse().unwrap(), "0.0.0.0/0".parse().unwrap()]);
        assert_eq!(relay.of_peer(1, A, "192.168.7.9"), Way::Peer(2));
        assert_eq!(relay.of_peer(2, "192.168.7.9", A), Way::Peer(1));
        assert_eq!(relay.of_hub(HUB, "192.168.7.9"), Way::Peer(2));
        assert_eq!(relay.of_peer(1, A, "203.0.113.1"), Way::Hub, "nobody chose an exit");
        assert_eq!(relay.of_peer(2, "203.0.113.1", A), Way::Peer(1), "answers to those who did");
        assert_eq!(relay.of_peer(2, B, "192.168.7.9"), Way::Dropped, "back where it came from");
        assert_eq!(relay.of_peer(1, "192.168.7.9", B), Way::Dropped, "behind another");
        assert_eq!(relay.of_peer(2, A, HUB), Way::Dropped, "another peer's is behind nobody");
        assert_eq!(relay.drops(), Drops { spoof: 2, no_route: 1, ..Drops::default() });
        let slot = relay.plan.slot(1).unwrap();
        relay.insert(1, Member { exit: Some(2), ..member(slot, &["192.168.7.0/25"]) });
        assert_eq!(relay.of_peer(1, A, "203.0.113.1"), Way::Peer(2));
        assert_eq!(relay.of_peer(1, A, HUB), Way::Hub);
        assert_eq!(relay.of_peer(2, B, "192.168.7.9"), Way::Peer(1), "the longer prefix");
        assert_eq!(relay.of_peer(2, "192.168.7.9", A), Way::Dropped, "is not behind it any more");
        relay.remove(2);
        assert_eq!(relay.of_peer(1, A, "203.0.113.1"), Way::Dropped, "and not beside its exit");
    }

    #[test]
    fn what_the_policy_does_not_allow_is_refused_and_counted() {
        let mut relay = relay(false);
        let policy =
            r#"{"allow": [{"from": ["a"], "to": ["b", "203.0.113.0/24"], "protocol": "icmp"}]}"#;
        let policy = serde_json::from_str(policy).unwrap();
        relay.set_acl(Some(Acl::new(&policy, &[("a".into(), 1), ("b".into(), 2)])));
        let mut ping = |peer, from, to| {
            let packet = IpPacket { protocol: 1, payload: &[8], ..packet(from, to) };
            relay.from_peer(peer, &packet, Instant::now())
        };
        assert_eq!(ping(1, A, B), Way::Peer(2));
        assert_eq!(ping(1, A, "203.0.113.9"), Way::Hub);
        assert_eq!(ping(1, A, HUB), Way::Dropped);
        assert_eq!(ping(2, B, A), Way::Dropped);
        assert_eq!(relay.drops(), Drops { refused: 2, ..Drops::default() });
        relay.set_acl(None);
        assert_eq!(relay.of_peer(2, B, A), Way::Peer(1));
    }
}
