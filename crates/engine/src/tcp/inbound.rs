//! Connections into the network: host ports that lead to a guest or a service, and dials.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use netyard_wire::{MacAddr, SeqNumber};
use rand::RngExt as _;

use super::flow::{Flow, Key, Origin, Phase, mss_of};
use super::open::{DialId, Opening, Target};
use super::preamble::Preamble;
use super::receiver::Receiver;
use super::segments::send_syn;
use super::sender::Sender;
use super::{KEEPALIVE_IDLE, MAX_FLOWS, Owner, Tcp, TcpEvent, key_of};
use crate::context::Context;
use crate::delivery::Delivery;
use crate::edge::{PlugId, SocketId};
use crate::policy::rules::What;
use crate::policy::{Comer, Protocol};
use crate::service::Services;

/// First port of those that stand for clients whose own address cannot be shown to guests.
pub(super) const FIRST_PORT: u16 = 32_768;

/// A bound host port that leads into the network.
#[derive(Debug)]
pub(super) struct Listener {
    socket: SocketId,
    target: ListenerTarget,
    delivery: Delivery,
    accepted: u64,
}

/// Where a listener's connections lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenerTarget {
    /// The guest of this name, whoever has it when a client comes.
    Guest {
        /// Name or alias.
        name: String,
        /// TCP port.
        port: u16,
    },
    /// A service.
    Service(Target),
}

/// Names one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ListenerId(u32);

impl Tcp {
    /// Binds a host port. Connections are refused until [`Tcp::set_listening`].
    pub(crate) fn bind(
        &mut self,
        cx: &mut Context<'_>,
        at: SocketAddr,
        target: ListenerTarget,
        delivery: Delivery,
    ) -> io::Result<ListenerId> {
        let socket = cx.edge.tcp_bind(at)?;
        Ok(self.listen(socket, target, delivery))
    }

    /// Takes in a socket whose connections lead into the network.
    pub(crate) fn listen(
        &mut self,
        socket: SocketId,
        target: ListenerTarget,
        delivery: Delivery,
    ) -> ListenerId {
        let listener = Listener { socket, target, delivery, accepted: 0 };
        let index = key_of(self.listeners.insert(listener));
        self.by_socket.insert(socket, Owner::Listener(index));
        ListenerId(index)
    }

    /// Opens or closes a listener; closed, its port stays taken and clients are refused.
    pub(crate) fn set_listening(
        &mut self,
        cx: &mut Context<'_>,
        listener: ListenerId,
        listening: bool,
    ) -> io::Result<()> {
        match self.listeners.get(listener.0 as usize) {
            Some(listener) => cx.edge.set_listening(listener.socket, listening),
            None => Ok(()),
        }
    }

    /// Sets where a listener's connections lead from now on, and how.
    pub(crate) fn retarget(&mut self, listener: ListenerId, target: Target, delivery: Delivery) {
        if let Some(listener) = self.listeners.get_mut(listener.0 as usize) {
            listener.target = ListenerTarget::Service(target);
            listener.delivery = delivery;
        }
    }

    /// Gives a port back. Open connections stay.
    pub(crate) fn unbind(&mut self, cx: &mut Context<'_>, listener: ListenerId) {
        if let Some(listener) = self.listeners.try_remove(listener.0 as usize) {
            self.by_socket.remove(&listener.socket);
            cx.edge.close(listener.socket);
        }
    }

    /// Connections that a listener has taken.
    pub(crate) fn accepted(&self, listener: ListenerId) -> u64 {
        self.listeners.get(listener.0 as usize).map_or(0, |listener| listener.accepted)
    }

    /// Opens a connection from the gateway; `stream` is joined to it.
    pub(crate) fn dial(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        to: SocketAddr,
        within: Duration,
        stream: OwnedFd,
    ) -> io::Result<DialId> {
        let socket = cx.edge.adopt_stream(stream)?;
        self.next_dial += 1;
        let dial = DialId(self.next_dial);
        let client = match to {
            SocketAddr::V4(_) => SocketAddr::new(cx.config.gateway4().into(), 0),
            SocketAddr::V6(_) => SocketAddr::new(cx.config.gateway6().into(), 0),
        };
        let until = Some((dial, cx.now + within));
        let target = Target::Address(to);
        let opening = Opening::new(cx.now, client, target, Delivery::default(), until);
        self.open_inbound(cx, services, socket, opening, None, None);
        Ok(dial)
    }

    /// Takes all waiting connections: readiness is told once, and the kernel bounds the queue.
    pub(super) fn accept(&mut self, cx: &mut Context<'_>, services: &mut Services, index: u32) {
        loop {
            let Some(listener) = self.listeners.get_mut(index as usize) else { return };
            let Ok((socket, client)) = cx.edge.tcp_accept(listener.socket) else { return };
            listener.accepted += 1;
            if self.flows.len() >= MAX_FLOWS {
                cx.counters.drop("tcp-flows-full");
                cx.edge.reset(socket);
                continue;
            }
            let comer = Comer::Outside(client.ip());
            let mut barred = Vec::new();
            let target = match &listener.target {
                ListenerTarget::Service(target) => {
                    if let Target::Service { service, .. } = *target {
                        barred = services.barred(cx.policy, comer, service);
                    }
                    *target
                }
                ListenerTarget::Guest { name, port } => match cx.guests.by_name(name) {
                    Some(guest)
                        if !cx.policy.decide_entry(
                            comer,
                            guest.address4.into(),
                            What::to(Protocol::Tcp, *port),
                        ) =>
                    {
                        cx.counters.drop("tcp-policy");
                        cx.edge.reset(socket);
                        continue;
                    }
                    Some(guest) => Target::Guest {
                        address4: guest.address4,
                        address6: guest.address6,
                        port: *port,
                    },
                    None => {
                        cx.counters.drop("forward-without-guest");
                        cx.edge.reset(socket);
                        continue;
                    }
                },
            };
            let delivery = listener.delivery;
            let preamble = match delivery.proxy.map(|version| (version, cx.edge.tcp_local(socket)))
            {
                None => None,
                Some((version, Ok(at))) => Some(Box::new(Preamble::new(version, client, at))),
                // It is over already.
                Some((_, Err(_))) => {
                    cx.edge.reset(socket);
                    continue;
                }
            };
            let mut opening = Opening::new(cx.now, client, target, delivery, None);
            opening.tried = barred;
            self.open_inbound(cx, services, socket, opening, preamble, Some(client.ip()));
        }
    }

    fn open_inbound(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        socket: SocketId,
        opening: Opening,
        preamble: Option<Box<Preamble>>,
        client: Option<IpAddr>,
    ) {
        let unset = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
        let flow = Flow {
            key: Key { guest: unset, remote: unset },
            plug: PlugId(0),
            mac: MacAddr::BROADCAST,
            socket,
            phase: Phase::SynSent,
            sender: Sender::new(SeqNumber(0), 0),
            receiver: Receiver::new(SeqNumber(0)),
            readable: true,
            ended: false,
            writable: true,
            shut: false,
            discard: 0,
            dirty: false,
            blocked_until: None,
            keepalive_at: cx.now + KEEPALIVE_IDLE,
            keepalives: 0,
            ip_id: cx.rng.random(),
            opening: Some(Box::new(opening)),
            preamble,
            splice: None,
            turn: None,
            origin: Origin::Host,
            client,
            held: 0,
            began: cx.now,
        };
        let index = key_of(self.flows.insert(flow));
        self.by_socket.insert(socket, Owner::Flow(index));
        self.opening.insert(index);
        self.next_attempt(cx, services, index);
    }

    /// Asks the next address, or the next instance, or gives up.
    pub(super) fn next_attempt(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
    ) {
        self.drop_inside(cx, index, false);
        loop {
            let Some(flow) = self.flows.get_mut(index as usize) else { return };
            let Some(opening) = flow.opening.as_mut() else { return };
            let candidate =
                if opening.expired(cx.now) { None } else { opening.candidates.pop_front() };
            if let Some(to) = candidate {
                if self.attempt(cx, index, to) {
                    return;
                }
                continue;
            }
            if let Some(turn) = flow.turn.take() {
                services.failed(turn);
            }
            let exhausted = match opening.target {
                _ if opening.expired(cx.now) => true,
                Target::Address(to) => {
                    opening.candidates.push_back(to);
                    std::mem::replace(&mut opening.asked, true)
                }
                Target::Guest { address4, address6, port } => {
                    opening.set_candidates(address4, address6, port);
                    std::mem::replace(&mut opening.asked, true)
                }
                Target::Service { service, port } => {
                    let client = opening.client.ip();
                    match services.next_for(cx.now, client, service, &opening.tried) {
                        Some(turn) => {
                            opening.tried.push(turn.key);
                            opening.set_candidates(turn.address4, turn.address6, port);
                            flow.turn = Some(turn.key);
                            false
                        }
                        None => true,
                    }
                }
            };
            if exhausted {
                cx.counters.drop("connection-without-answer");
                if let Some((dial, _)) = opening.dial {
                    let why = "nobody answered: refused, or silent until the time was up";
                    self.events.push_back(TcpEvent::Dialed(dial, Err(why.to_owned())));
                }
                cx.edge.reset(flow.socket);
                self.forget(index, services);
                return;
            }
        }
    }

    /// Begins to connect to `to`. False if there is no such guest, or no way to it.
    fn attempt(&mut self, cx: &mut Context<'_>, index: u32, to: SocketAddr) -> bool {
        let Some(guest) = cx.guests.by_address(to.ip()) else { return false };
        let begun = self.attempt_inside(cx, index, guest.plug, to);
        if begun == Some(true) {
            self.begin_attempt(cx, index);
        }
        begun.unwrap_or_else(|| self.attempt_by_frames(cx, index, to))
    }

    /// Lets the time of an attempt run.
    fn begin_attempt(&mut self, cx: &Context<'_>, index: u32) {
        let flow = self.flows.get_mut(index as usize);
        if let Some(opening) = flow.and_then(|flow| flow.opening.as_mut()) {
            opening.begin_attempt(cx.now);
        }
        self.schedule(index);
    }

    /// Sends the first SYN to `to`. False if there is no such guest.
    pub(super) fn attempt_by_frames(
        &mut self,
        cx: &mut Context<'_>,
        index: u32,
        to: SocketAddr,
    ) -> bool {
        let Some(guest) = cx.guests.by_address(to.ip()) else { return false };
        let Some(client) = self
            .flows
            .get(index as usize)
            .and_then(|flow| flow.opening.as_ref())
            .map(|opening| opening.client)
        else {
            return false;
        };
        let Some(remote) = self.remote_for(cx, client, to) else { return false };
        let key = Key { guest: to, remote };
        let iss = self.initial_sequence(cx.now, key);
        let Some(flow) = self.flows.get_mut(index as usize) else { return false };
        if self.by_key.get(&flow.key) == Some(&index) {
            self.by_key.remove(&flow.key);
        }
        self.by_key.insert(key, index);
        flow.key = key;
        flow.plug = guest.plug;
        flow.mac = guest.mac;
        flow.sender = Sender::new(iss, mss_of(cx.config.mtu, to.ip()));
        flow.sender.syn_sent(cx.now, true);
        send_syn(cx, flow, &mut self.frame);
        self.begin_attempt(cx, index);
        true
    }

    /// The address that a guest sees as the other end: the client's own where the guest would
    /// answer to us, else the gateway with a port that is free.
    fn remote_for(
        &mut self,
        cx: &Context<'_>,
        client: SocketAddr,
        guest: SocketAddr,
    ) -> Option<SocketAddr> {
        let ip = client.ip();
        let own = ip.is_ipv4() == guest.is_ipv4()
            && client.port() != 0
            && !ip.is_loopback()
            && !ip.is_unspecified()
            && !cx.config.is_local(ip)
            && !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
            && !matches!(ip, IpAddr::V4(ip) if ip.is_link_local());
        if own && !self.by_key.contains_key(&Key { guest, remote: client }) {
            return Some(client);
        }
        let gateway = match guest {
            SocketAddr::V4(_) => IpAddr::V4(cx.config.gateway4()),
            SocketAddr::V6(_) => IpAddr::V6(cx.config.gateway6()),
        };
        let ports = u32::from(u16::MAX - FIRST_PORT);
        for _ in 0..ports {
            self.next_port =
                if self.next_port == u16::MAX { FIRST_PORT } else { self.next_port + 1 };
            let remote = SocketAddr::new(gateway, self.next_port);
            if !self.by_key.contains_key(&Key { guest, remote }) {
                return Some(remote);
            }
        }
        None
    }
}
