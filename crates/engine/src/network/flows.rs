//! The flows of a network, for who looks at them.

use std::time::Instant;

use super::Network;
use crate::control::FlowState;

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
        FlowState { instance, name, ..flow }
    }
}
