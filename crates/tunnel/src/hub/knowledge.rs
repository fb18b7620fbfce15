//! What the hub knows from its database while packets pass: what is behind whom, and the policy.

use ipnet::IpNet;

use super::Hub;
use crate::error::{Error, Result};
use crate::message::{Message, Subnets};
use crate::policy::{Acl, Policy};
use crate::relay::NodeId;
use crate::routes::Entry;

/// As of the last look.
#[derive(Debug, Default)]
pub(super) struct Knowledge {
    pub(super) policy: Option<Policy>,
    /// What is behind nodes, accepted and offered.
    open: Vec<(NodeId, IpNet)>,
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
}

impl Hub {
    /// Looks at the database, and has relay, kernel and peers know what is new.
    pub(super) async fn refresh(&self) -> Result<()> {
        // One after the other, so that nobody applies what is older.
        let _turn = self.refreshing.lock().await;
        let known =
            self.with_store(|store| Ok((store.nodes()?, store.subnets()?, store.policy()?)));
        let (nodes, subnets, policy) = known.await?;
        let names: Vec<_> = nodes.into_iter().map(|node| (node.name, node.id)).collect();
        let acl = policy.as_ref().map(|policy| Acl::new(policy, &names));
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
        let before = self.knowledge.replace(Knowledge { policy, open });
        let knowledge = self.knowledge.borrow();
        if before.open == knowledge.open {
            return Ok(());
        }
        for node in self.sessions.nodes() {
            if let Some(outbox) = self.sessions.outbox(node) {
                let subnets = knowledge.subnets_for(Some(node));
                outbox.tell(Message::Subnets(Subnets { subnets }));
            }
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
}
