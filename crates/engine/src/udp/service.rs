//! Services over UDP: each flow of a client takes a turn.
//!
//! A flow begins with the first datagram of a client's address and port, by the service's published
//! port or by a virtual address, and ends like every other when it has been still. Whose turn it is
//! gets the datagram as if the gateway, or the client itself, had sent it.
//!
//! Nothing tells that a datagram has been taken. So an instance that has not answered is asked to have
//! refused for a second: if it says that nobody has the port, or goes, what it was sent goes to the
//! next instance, and the client notices nothing. The first datagrams are kept for that ([`super::opening`]). A
//! client that comes by IPv6 to a program that refuses there is led to the same instance's IPv4 address
//! within the same turn, as over TCP.
//!
//! Later a refusal ends the flow, and the client is told; its next datagram takes another turn. So does
//! that of a client who was never answered once the instance may get no new flows.

use std::net::SocketAddr;

use netyard_wire::Quoted;
use netyard_wire::icmp::IcmpError;

use super::inward::comer;
use super::opening::Opening;
use super::table::{FlowId, Via};
use super::{UdpFlows, packet};
use crate::context::{Context, HOP_LIMIT};
use crate::edge::PlugId;
use crate::forward::Protocol;
use crate::sending::Refusal;
use crate::service::{ServiceId, Services};

impl UdpFlows {
    /// Whether what a guest sends there goes to a service, or to an address that is there for one.
    pub(super) fn is_front(
        &self,
        services: &Services,
        guest: SocketAddr,
        front: SocketAddr,
    ) -> bool {
        self.table.by_peer(Via::Front(front), guest).is_some()
            || services.by_address(front.ip()).is_some()
    }

    /// Handles a guest's datagram to a virtual address.
    pub(super) fn ask(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        client: SocketAddr,
        front: SocketAddr,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let via = Via::Front(front);
        if let Some(id) = self.still_led(cx, services, via, client) {
            self.hold(cx, services, id, payload);
            return self.deliver(cx, id, client, payload).map_err(Refusal::silent);
        }
        let service = services.by_address(front.ip());
        let is_there = |id: &ServiceId| {
            services.get(*id).is_some_and(|it| it.is_at(Protocol::Udp, front.port()))
        };
        let Some(service) = service.filter(is_there) else {
            return Err(Refusal::told("udp-closed-port", IcmpError::PortUnreachable));
        };
        for id in self.table.in_the_way_of_asker(client.ip()) {
            self.end(cx, services, id);
        }
        self.enter(cx, services, service, via, client, payload)
    }

    /// Leads a client of a service to whose turn it is.
    pub(super) fn enter(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        service: ServiceId,
        via: Via,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let barred = services.barred(cx.policy, comer(via, peer), service);
        let opening = Opening::new(cx.now, service, barred, payload);
        self.lead(cx, services, via, peer, opening)
    }

    /// Leads a client to the next address or instance, and sends it what is held. When nobody is left,
    /// the client is refused.
    fn lead(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        via: Via,
        peer: SocketAddr,
        mut opening: Opening,
    ) -> Result<(), Refusal> {
        loop {
            let instance = match opening.other.take() {
                Some(other) => other,
                None => {
                    if let Some(turn) = opening.turn() {
                        services.failed(turn);
                    }
                    let client = peer.ip().to_canonical();
                    let tried = &opening.tried;
                    let Some(turn) = services.next_for(cx.now, client, opening.service, tried)
                    else {
                        return Err(Refusal::told("udp-no-instance", IcmpError::PortUnreachable));
                    };
                    opening.tried.push(turn.key);
                    let (first, other) = turn.candidates(client);
                    opening.other = other;
                    first
                }
            };
            let turn = opening.turn();
            match self.open_to(cx, services, via, peer, instance, turn) {
                Ok(id) => {
                    for payload in &opening.held {
                        if let Err(reason) = self.deliver(cx, id, peer, payload) {
                            cx.counters.drop(reason);
                        }
                    }
                    self.openings.insert(cx.now, id, opening);
                    return Ok(());
                }
                Err(reason) => cx.counters.drop(reason),
            }
        }
    }

    /// The flow by which a client goes on to its instance, if there is one and it may.
    pub(super) fn still_led(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        via: Via,
        peer: SocketAddr,
    ) -> Option<FlowId> {
        let id = self.table.by_peer(via, peer)?;
        let Some(turn) = self.table.get(id)?.turn else { return Some(id) };
        let is_fresh = self.openings.get(id).is_some_and(|opening| opening.may_refuse(cx.now));
        if is_fresh || self.table.is_two_way(id) || services.is_eligible(turn) {
            return Some(id);
        }
        self.end(cx, services, id);
        None
    }

    /// Keeps a datagram that goes to an instance as long as that may refuse it. One that has had its
    /// time is taken to be there.
    pub(super) fn hold(
        &mut self,
        cx: &Context<'_>,
        services: &mut Services,
        id: FlowId,
        payload: &[u8],
    ) {
        let Some(opening) = self.openings.get(id) else { return };
        if !opening.may_refuse(cx.now) {
            self.answered(services, id);
        } else if payload.len() <= usize::from(cx.config.mtu) {
            self.openings.hold(id, payload);
        }
    }

    /// An instance is there for a flow.
    pub(super) fn answered(&mut self, services: &mut Services, id: FlowId) {
        let opening = self.openings.remove(id);
        if let Some(turn) = opening.and_then(|opening| opening.turn()) {
            services.opened(turn);
        }
    }

    /// A guest says that nobody has the port that a datagram was for. False: it was no service's.
    pub(crate) fn handle_closed_port(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        plug: PlugId,
        quoted: &Quoted,
    ) -> bool {
        let Some(id) = self.table.by_guest(quoted.receiver(), quoted.sender()) else {
            return false;
        };
        let Some(flow) = self.table.get(id).copied() else { return false };
        if flow.plug != plug || flow.turn.is_none() {
            return false;
        }
        if !self.pass_over(cx, services, id)
            && let Via::Front(front) = flow.via
            && let Some(to) = cx.station(flow.peer.ip())
        {
            let error = IcmpError::PortUnreachable;
            let original = packet((flow.peer, front), &[]);
            cx.send_icmp_error(to, (front.ip(), HOP_LIMIT), flow.peer.ip(), error, &original);
        }
        true
    }

    /// The program of a guest has ended: what services have led there goes on to others.
    pub(crate) fn program_ended(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        plug: PlugId,
    ) {
        for id in self.table.of_plug(plug) {
            if self.table.get(id).is_some_and(|flow| flow.turn.is_some()) {
                self.instance_gone(cx, services, id);
            }
        }
    }

    /// The guest that a flow leads to has gone. (Whether its client waits for an answer is not known, so
    /// it is told nothing.)
    pub(super) fn instance_gone(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        id: FlowId,
    ) {
        self.openings.forget_other_address(id);
        self.pass_over(cx, services, id);
    }

    /// Ends a flow to a guest that did not take what it was sent. True if its client was led to the next
    /// instance.
    fn pass_over(&mut self, cx: &mut Context<'_>, services: &mut Services, id: FlowId) -> bool {
        let opening = self.openings.remove(id);
        let Some(flow) = self.take_out(cx, id) else { return false };
        let led = match (opening, flow.turn) {
            (Some(opening), _) if opening.may_refuse(cx.now) => {
                match self.lead(cx, services, flow.via, flow.peer, opening) {
                    Ok(()) => true,
                    Err(refusal) => {
                        cx.counters.drop(refusal.reason);
                        false
                    }
                }
            }
            (Some(_), Some(turn)) => {
                services.failed(turn);
                false
            }
            (None, Some(turn)) => {
                services.closed(turn);
                false
            }
            (_, None) => false,
        };
        self.release(cx, &flow);
        led
    }

    /// Ends all flows of a service that is not there any more, or elsewhere.
    pub(crate) fn remove_service(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        service: ServiceId,
    ) {
        for id in self.table.of_service(service) {
            self.end(cx, services, id);
        }
    }
}
