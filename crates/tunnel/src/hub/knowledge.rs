//! What the hub knows from its database while packets pass: what is behind whom, names, the policy.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Hub;
use super::names::HUB;
use crate::addresses::Slot;
use crate::error::{Error, Result};
use crate::message::{Message, Name, News};
use crate::policy::{Acl, Policy};
use crate::relay::NodeId;
use crate::routes::Entry;
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

    /// What a node may know of others, with their names if it wants them.
    pub(super) fn news_for(&self, node: NodeId, names: bool) -> News {
        let names = if names { self.names.clone() } else { Vec::new() };
        News { subnets: self.subnets_for(Some(node)), names }.fit()
    }
}

impl Hub {
    /// Looks at the database, and has relay, kernel and peers know what is new.
    pub(super) async fn refresh(&self) -> Result<()> {
        // One after the other, so that nobody applies what is older.
        let _turn = self.refreshing.lock().await;
        let known =
            self.with_store(|store| Ok((store.nodes()?, store.subnets()?, store.policy()?)));
        let (nodes, subnets, policy) = known.await?;
        let names = self.names(&nodes);
        let peers: Vec<_> = nodes.into_iter().map(|node| (node.name, node.id)).collect();
        let acl = policy.as_ref().map(|policy| Acl::new(policy, &peers));
        let open: Vec<_> = (subnets.into_iter())
            .filter(|(_, subnet)| subnet.is_open())
            .map(|(node, subnet)| (node, subnet.prefix))
            .collect();
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
        if before.open == knowledge.open {
            return Ok(());
        }
        let plan = &self.options.plan;
        let entry = Entry {
            device: self.device.name(),
            network: plan.network(),
            network6: plan.network6(),
            slot: plan.hub(),
            redirect: false,
        };
        let led = self.routes.borrow_mut().lead_to(entry, &knowledge.subnets_for(None));
        led.map_err(|error| Error::link("lead subnets to peers", &error))
    }

    /// The names of the hub and of the nodes that have addresses, in the network's zone.
    fn names(&self, nodes: &[Node]) -> Vec<Name> {
        let plan = &self.options.plan;
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
