//! Rules as a network heeds them: set, asked, and held against what goes from one guest to another.

use std::net::SocketAddr;
use std::time::Instant;

use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::Icmp;
use netyard_wire::ip::IpPacket;
use netyard_wire::{Checksum, Frame, Offload};

use super::frames::Content;
use super::{Network, Parts};
use crate::control::{ControlError, ControlErrorKind, Opener};
use crate::edge::{Edge, PlugId};
use crate::guests::Guest;
use crate::policy::rules::{Port, Rules, What};
use crate::policy::{self, Comer, Gate, Tested};

impl Network {
    /// Handles a frame from one guest to another one where rules are about that.
    pub(super) fn handle_judged(
        &mut self,
        now: Instant,
        (from, to): (PlugId, PlugId),
        frame: Frame<'_>,
        header: &Ethernet,
        content: &Content<'_>,
        edge: &mut dyn Edge,
    ) {
        let sender = (from, header.source);
        let Content::Ip(ip @ IpPacket { fragment: Some(fragment), .. }) = content else {
            let Parts { mut cx, between, .. } = self.parts(now, edge);
            if between.admits(&mut cx, sender, to, content) {
                cx.edge.transmit(to, frame);
            }
            return;
        };
        let Some(whole) = self.reassemble(now, from, frame, ip, *fragment) else { return };
        let payload = whole.get(ethernet::HEADER_LEN..).unwrap_or_default();
        let content = match self.examine(from, header, payload, Checksum::Present) {
            // RFC 6980 section 5, as at the gateway.
            Ok(Content::Icmp(_, Icmp::Ndp(_))) => return self.counters.drop("fragment"),
            Ok(content) => content,
            Err(reason) => return self.counters.drop(reason),
        };
        let Parts { mut cx, between, .. } = self.parts(now, edge);
        if between.admits(&mut cx, sender, to, &content) {
            cx.scratch.clone_from(&whole);
            cx.transmit_cut(to, Offload::default());
        }
    }

    /// Replaces the rules of `member` about what its guests may reach, and who may reach them. Flows that they do not
    /// allow end.
    pub fn set_rules(&mut self, now: Instant, member: &str, rules: Rules, edge: &mut dyn Edge) {
        self.policy.set_rules(member, rules);
        let Parts { mut cx, services, tcp, udp, pings, vip, between, .. } = self.parts(now, edge);
        between.end_refused(&mut cx);
        vip.end_refused(&mut cx, services);
        tcp.end_refused(&mut cx, services);
        udp.end_refused(&mut cx, services);
        pings.end_refused(&mut cx);
    }

    /// The rules about who comes, for those who let clients in on other threads.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.policy.gate()
    }

    /// What the policy would say of a new flow of a guest.
    ///
    /// # Errors
    /// `Unknown` if there is no such guest.
    pub fn test_policy(
        &self,
        now: Instant,
        guest: &str,
        protocol: policy::Protocol,
        to: SocketAddr,
    ) -> Result<Tested, ControlError> {
        let guest = self.guest(guest)?;
        let own = match to {
            SocketAddr::V4(_) => guest.address4.into(),
            SocketAddr::V6(_) => guest.address6.into(),
        };
        Ok(self.policy.test(now, protocol, own, to))
    }

    /// What the policy would say of a new flow to a guest.
    ///
    /// # Errors
    /// `Unknown` if there is no such guest.
    pub fn test_entry(
        &self,
        from: &Opener,
        guest: &str,
        what: What,
    ) -> Result<Tested, ControlError> {
        let comer = match from {
            Opener::Client(address) => Comer::Outside(*address),
            Opener::Plug(name) => Comer::Guest(self.guest(name)?.address4.into()),
        };
        let to = self.guest(guest)?.address4;
        let port = if let Port::At(port) = what.port { port } else { 0 };
        Ok(self.policy.test_entry(comer, SocketAddr::new(to.into(), port), what))
    }

    fn guest(&self, name: &str) -> Result<&Guest, ControlError> {
        self.guests.by_name(name).ok_or_else(|| ControlError {
            kind: ControlErrorKind::Unknown,
            message: format!("the network has no plug `{name}`"),
        })
    }
}
