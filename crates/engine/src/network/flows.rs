//! The flows of a network, for who looks at them.

use std::time::Instant;

use super::Network;
use crate::control::{FlowKind, FlowState};
use crate::policy::rules::What;
use crate::policy::{Comer, Protocol};

impl Network {
    /// All flows that pass the gateway or a service's virtual address, in the order of their ends.
    pub fn flows(&self, now: Instant) -> Vec<FlowState> {
        let tcp = self.tcp.states(now).chain(self.vip.states(now));
        let others = self.udp.states(now).chain(self.pings.states(now));
        let mut flows: Vec<_> = tcp.chain(others).map(|flow| self.named(flow)).collect();
        flows.sort_by(|one, other| {
            let key = |flow: &FlowState| (flow.protocol, flow.guest, flow.remote);
            one.instance.cmp(&other.instance).then_with(|| key(one).cmp(&key(other)))
        });
        flows
    }

    fn named(&self, flow: FlowState) -> FlowState {
        let guest = self.guests.by_address(flow.guest.ip());
        let instance = guest.map(|guest| guest.name.clone()).unwrap_or_default();
        let name = self.dns.name_of(&self.config, &self.guests, &self.services, flow.remote.ip());
        FlowState { instance, name, rule: self.rule_of(&flow), ..flow }
    }

    /// The rule by which a flow may go on, if one is asked.
    fn rule_of(&self, flow: &FlowState) -> Option<String> {
        let protocol = match flow.protocol {
            FlowKind::Tcp => Protocol::Tcp,
            FlowKind::Udp => Protocol::Udp,
            FlowKind::Ping => Protocol::Icmp,
        };
        let FlowState { guest, remote, client, .. } = *flow;
        if let Some(client) = client {
            let what = What::to(protocol, guest.port());
            return Some(self.policy.test_entry(Comer::Outside(client), guest, what).rule);
        }
        let leaves = self.config.is_host(remote.ip()) || !self.config.is_local(remote.ip());
        let asked = flow.outbound && leaves;
        asked.then(|| self.policy.rule_of_open(protocol, guest.ip(), remote))
    }
}
