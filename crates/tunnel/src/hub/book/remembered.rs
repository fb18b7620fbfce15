//! The nodes that were let in since the hub's start: they may come back while its database cannot be used, with
//! what they had. Who is new must wait.

use std::collections::HashMap;

use ipnet::IpNet;

use crate::hub::session::Entrant;
use crate::login::Guest;
use crate::relay::NodeId;

/// The nodes, by their public keys.
#[derive(Debug, Default)]
pub(super) struct Remembered(HashMap<[u8; 32], Known>);

/// A node, with what it has wished at its last login that the database has seen.
#[derive(Debug)]
struct Known {
    entrant: Entrant,
    exit: Option<String>,
    subnets: Vec<IpNet>,
}

impl Remembered {
    /// A node was let in. Whoever had its address before has none.
    pub(super) fn insert(&mut self, guest: &Guest, entrant: &Entrant) {
        self.0.retain(|_, other| other.entrant.node.slot != entrant.node.slot);
        let Guest { key, exit, subnets, .. } = guest.clone();
        self.0.insert(key, Known { entrant: entrant.clone(), exit, subnets });
    }

    /// Which login of a node was the last, by count.
    pub(super) fn epoch(&self, guest: &Guest) -> u64 {
        self.0.get(&guest.key).map_or(0, |known| known.entrant.node.epoch)
    }

    /// A node is not let in any more.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.0.retain(|_, known| known.entrant.node.id != node);
    }

    /// The node of this name, if it is known.
    pub(super) fn named(&self, name: &str) -> Option<NodeId> {
        let mut nodes = self.0.values().map(|known| &known.entrant.node);
        nodes.find(|node| node.name == name).map(|node| node.id)
    }

    /// A node comes back. `None`: it is not known, or it wishes another exit than it has, or offers other subnets, of which
    /// the database has to hear.
    pub(super) fn come_back(&mut self, guest: &Guest) -> Option<Entrant> {
        let known = self.0.get_mut(&guest.key)?;
        if (&known.exit, &known.subnets) != (&guest.exit, &guest.subnets) {
            return None;
        }
        let entrant = &mut known.entrant;
        entrant.node.epoch += 1;
        entrant.names = guest.names;
        entrant.by_udp = guest.by_udp;
        entrant.run = guest.run;
        Some(entrant.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ByUdp;
    use crate::store::Node;

    fn entrant(id: NodeId, slot: u32) -> Entrant {
        let name = format!("node-{id}");
        let node =
            Node { id, name, slot: Some(slot), pinned: false, epoch: 4, created_ms: 0, seen_ms: 0 };
        Entrant { node, exit: None, names: false, by_udp: ByUdp::Nothing, run: 0 }
    }

    fn guest(key: u8) -> Guest {
        Guest {
            key: [key; 32],
            name: "x".into(),
            token: None,
            subnets: Vec::new(),
            exit: None,
            names: true,
            by_udp: ByUdp::NotTcp,
            network: None,
            run: 9,
            clock_ms: 0,
        }
    }

    #[test]
    fn who_was_here_comes_back_until_revoked_or_its_address_is_anothers() {
        let mut remembered = Remembered::default();
        assert!(remembered.come_back(&guest(1)).is_none());
        for (key, slot) in [(1, 1), (2, 2), (3, 3)] {
            remembered.insert(&guest(key), &entrant(key.into(), slot));
        }
        let back = remembered.come_back(&guest(1)).unwrap();
        assert_eq!((back.node.id, back.node.slot, back.node.epoch), (1, Some(1), 5));
        assert!(back.names && back.by_udp == ByUdp::NotTcp, "what it wishes now");
        assert_eq!(remembered.come_back(&guest(1)).unwrap().node.epoch, 6);
        assert_eq!((remembered.named("node-2"), remembered.named("node-9")), (Some(2), None));
        assert_eq!((remembered.epoch(&guest(1)), remembered.epoch(&guest(9))), (6, 0));
        let moved = Guest { exit: Some("node-3".into()), ..guest(1) };
        assert!(remembered.come_back(&moved).is_none(), "its exit is another one");
        let offers = Guest { subnets: vec!["10.9.0.0/16".parse().unwrap()], ..guest(1) };
        assert!(remembered.come_back(&offers).is_none(), "nobody has heard of that");
        remembered.insert(&offers, &entrant(1, 1));
        assert!(
            remembered.come_back(&offers).is_some() && remembered.come_back(&guest(1)).is_none()
        );
        remembered.forget(2);
        assert!(remembered.come_back(&guest(2)).is_none());
        remembered.insert(&guest(4), &entrant(4, 3));
        assert!(remembered.come_back(&guest(3)).is_none());
        assert!(remembered.come_back(&guest(4)).is_some());
    }
}
