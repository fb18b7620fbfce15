//! What the hub knows from its database while packets pass: what is behind whom, names, the policy.

use std::net::IpAddr;

use ipnet::IpNet;

use super::names::HUB;
use super::network::Network;
use crate::addresses::Slot;
use crate::error::Result;
use crate::message::{Message, Name, News};
use crate::policy::{Acl, Policy};
use crate::relay::NodeId;
use crate::store::Node;

/// As of the last look.
#[derive(Debug, Default)]
pub(super) struct Knowledge {
    pub(super) policy: Option<Policy>,
    /// What is behind nodes, accepted and offered.
    open: Vec<(NodeId, IpNet)>,
    /// The hub and the nodes.
    names: Vec<Name>,
}

impl Knowledge {
    /// What is behind others than this node, and not everything.
    pub(super) fn subnets_for(&self, node: Option<NodeId>) -> Vec<IpNet> {
        let others = self.open.iter().filter(|(of, _)| Some(*of) != node);
        let mut subnets: Vec<IpNet> =
            others.map(|(_, subnet)| *subnet).filter(|subnet| subnet.prefix_len() > 0).collect();
        subnets.sort();
        subnets.dedup();
        subnets
    }

    /// What is behind a node.
    pub(super) fn subnets_of(&self, node: NodeId) -> Vec<IpNet> {
        let own = self.open.iter().filter(|(of, _)| *of == node);
        own.map(|(_, subnet)| *subnet).collect()
    }

    /// What a node may know of others, with their names if it wants them.
    pub(super) fn news_for(&self, node: NodeId, names: bool) -> News {
        let names = if names { self.names.clone() } else { Vec::new() };
        let own = self.open.iter().filter(|(of, _)| *of == node);
        let accepted = own.map(|(_, subnet)| *subnet).collect();
        News { subnets: self.subnets_for(Some(node)), accepted, names }.fit()
    }
}

/// Whether a name is one label (RFC 1123 section 2.1).
fn is_label(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(plain)
}

impl Network {
    /// Looks at the database, and has relay, kernel and peers know what is new.
    pub(super) async fn refresh(&self) -> Result<()> {
        // One after the other, so that nobody applies what is older.
        let _turn = self.refreshing.lock().await;
        let known =
            self.with_store(|store| Ok((store.nodes()?, store.subnets()?, store.policy()?)));
        let (nodes, subnets, policy) = known.await?;
        let mut names = self.names(&nodes);
        let peers: Vec<_> = nodes.into_iter().map(|node| (node.name, node.id)).collect();
        let acl = policy.as_ref().map(|policy| Acl::new(policy, &peers));
        let open: Vec<_> = (subnets.into_iter())
            .filter(|(_, subnet)| subnet.is_open())
            .map(|(node, subnet)| (node, subnet.prefix))
            .collect();
        names.extend(self.names_behind(&peers, &open));
        {
            let mut relay = self.relay.borrow_mut();
            match self.knowledge.borrow().policy == policy {
                true => relay.renew_acl(acl),
                false => relay.set_acl(acl),
            }
            for node in self.sessions.nodes() {
                let behind = open.iter().filter(|(of, _)| *of == node);
                relay.set_subnets(node, behind.map(|(_, subnet)| *subnet).collect());
            }
        }
        self.names.set(&names);
        let before = self.knowledge.replace(Knowledge { policy, open, names });
        let knowledge = self.knowledge.borrow();
        if (&before.open, &before.names) != (&knowledge.open, &knowledge.names) {
            self.sessions.tell(|node, names| Message::News(knowledge.news_for(node, names)));
        }
        match self.others.upgrade() {
            Some(networks) if before.open != knowledge.open || !self.is_led_to() => {
                networks.keep_apart()
            }
            _ => Ok(()),
        }
    }

    /// The names of what is behind nodes that are here, as they say, below their own: of what was accepted alone.
    fn names_behind(&self, nodes: &[(String, NodeId)], open: &[(NodeId, IpNet)]) -> Vec<Name> {
        let mut all = Vec::new();
        // A database of an older version may have machines with such names: they come first.
        let dotted: Vec<_> = nodes.iter().filter(|(node, _)| node.contains('.')).collect();
        let is_machines =
            |name: &str| dotted.iter().any(|(node, _)| node.eq_ignore_ascii_case(name));
        for (node, id) in nodes {
            let is_accepted = |address: &IpAddr| {
                open.iter().any(|(of, subnet)| {
                    of == id && subnet.prefix_len() > 0 && subnet.contains(address)
                })
            };
            for Name { name, mut addresses } in self.sessions.behind(*id) {
                addresses.retain(is_accepted);
                if addresses.is_empty() || !is_label(&name) {
                    continue;
                }
                let name = format!("{name}.{node}");
                if is_machines(&name) {
                    tracing::warn!(name, "it is a machine's name: what is behind another has none");
                } else {
                    all.push(Name { name: format!("{name}.{}", self.options.zone), addresses });
                }
            }
        }
        all
    }

    /// The names of the hub and of the nodes that have addresses, in the network's zone.
    fn names(&self, nodes: &[Node]) -> Vec<Name> {
        let plan = &self.plan;
        let name = |name: &str, slot: Slot| {
            let six = slot.address6.map(IpAddr::V6);
            let addresses = [Some(IpAddr::V4(slot.address)), six].into_iter().flatten().collect();
            Name { name: format!("{name}.{}", self.options.zone), addresses }
        };
        let others = nodes.iter().filter_map(|node| {
            // The hub's own name is nobody else's.
            let slot = plan.slot(node.slot?).filter(|_| node.name != HUB)?;
            Some(name(&node.name, slot))
        });
        [name(HUB, plan.hub())].into_iter().chain(others).collect()
    }
}
