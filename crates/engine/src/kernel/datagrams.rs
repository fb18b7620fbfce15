//! UDP datagrams of the host, relayed into the network.
//!
//! Each client of a host port has a *flow*: a socket of its own, from which its datagrams go to the
//! instance and on which the answers come back. Answers of anybody else are dropped. A flow ends
//! when nothing has moved for some time; when there are too many, those leave first that were still for the
//! longest time.
//!
//! A flow to a service leads to its virtual address, and the kernel gives its socket a turn. It ends when
//! the instance refuses, too: the client's next datagram takes another turn.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use netyard_wire::icmp::IcmpError;
use slab::Slab;

use super::Io;
use crate::edge::{PlugId, SocketId};
use crate::wheel::Wheel;

/// Flows at most, of one network. Each costs a descriptor.
const MAX_FLOWS: usize = 4_096;
/// One of so many goes when there are too many.
const CROWD: usize = 16;
/// How long a flow may be still: as long as the kernel tracks its socket's, which has the turn. One that was
/// answered after it had gone on for [`LASTING`] may be so for longer.
const STILL: Duration = Duration::from_secs(30);
const LASTING_STILL: Duration = Duration::from_secs(120);
const LASTING: Duration = Duration::from_secs(2);
/// Datagrams taken from one socket before the others get their turn.
pub(super) const BURST: usize = 64;
/// The longest datagram, bytes.
pub(super) const MAX_DATAGRAM: usize = 65_535;

/// All flows.
#[derive(Debug)]
pub(super) struct Datagrams {
    flows: Slab<Flow>,
    by_client: HashMap<(SocketId, SocketAddr), u32>,
    by_socket: HashMap<SocketId, u32>,
    /// Sockets on which there may be more.
    readable: Vec<SocketId>,
    wheel: Wheel,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Flow {
    /// The host port that the client uses.
    door: SocketId,
    client: SocketAddr,
    socket: SocketId,
    target: SocketAddr,
    /// Whose plug that is; `None` for a service.
    plug: Option<PlugId>,
    answered: bool,
    refused: bool,
    lasting: bool,
    begun: Instant,
    expires_at: Instant,
}

impl Datagrams {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            flows: Slab::new(),
            by_client: HashMap::new(),
            by_socket: HashMap::new(),
            readable: Vec::new(),
            wheel: Wheel::new(now),
            buffer: vec![0; MAX_DATAGRAM],
        }
    }

    /// How many flows there are.
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Relays what a client has sent to a host port. True if that began a flow.
    pub(super) fn relay(
        &mut self,
        io: &mut Io<'_>,
        (door, client): (SocketId, SocketAddr),
        (plug, target): (Option<PlugId>, SocketAddr),
        payload: &[u8],
    ) -> bool {
        let known = self.by_client.get(&(door, client)).copied();
        let index = match known {
            // The instance may have got another address.
            Some(index) if self.flows.get(index as usize).is_some_and(|it| it.target == target) => {
                index
            }
            stale => {
                if let Some(index) = stale {
                    self.close(io, index);
                }
                let Some(index) = self.open(io, door, client, plug, target) else { return false };
                index
            }
        };
        let Some(flow) = self.flows.get_mut(index as usize) else { return false };
        flow.touch(io.now);
        if io.edge.udp_send(flow.socket, target, None, payload).is_err() {
            io.counters.drop("relay-datagram-unsent");
        }
        known != Some(index)
    }

    fn open(
        &mut self,
        io: &mut Io<'_>,
        door: SocketId,
        client: SocketAddr,
        plug: Option<PlugId>,
        target: SocketAddr,
    ) -> Option<u32> {
        if self.flows.len() >= MAX_FLOWS {
            self.make_room(io);
        }
        let any = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let Ok(socket) = io.edge.udp_bind(SocketAddr::new(any, 0)) else {
            io.counters.drop("relay-no-socket");
            return None;
        };
        let (answered, refused, lasting) = (false, false, false);
        let (begun, expires_at) = (io.now, io.now + STILL);
        let flow = Flow {
            door,
            client,
            socket,
            target,
            plug,
            answered,
            refused,
            lasting,
            begun,
            expires_at,
        };
        let index = self.flows.insert(flow);
        let index = u32::try_from(index).ok()?;
        self.by_client.insert((door, client), index);
        self.by_socket.insert(socket, index);
        self.wheel.set(index, Some(expires_at));
        Some(index)
    }

    /// Ends the flows that were still for the longest time, those that have not lasted before the others.
    fn make_room(&mut self, io: &mut Io<'_>) {
        let all = self.flows.iter();
        let all = all.filter_map(|(index, flow)| Some((flow, u32::try_from(index).ok()?)));
        let mut all: Vec<_> =
            all.map(|(flow, index)| (flow.lasting, flow.expires_at, index)).collect();
        all.sort_unstable();
        for (.., index) in all.into_iter().take(MAX_FLOWS / CROWD) {
            self.close(io, index);
        }
    }

    pub(super) fn owns(&self, socket: SocketId) -> bool {
        self.by_socket.contains_key(&socket)
    }

    /// Handles readiness of one of its sockets. Call [`Datagrams::flush`] after.
    pub(super) fn handle_socket(&mut self, io: &mut Io<'_>, socket: SocketId) {
        // Clients are told nothing of errors: they find out by silence, and the port of a program that
        // starts later is the same.
        while let Some(error) = io.edge.udp_error(socket) {
            let index = self.by_socket.get(&socket);
            if let Some(flow) = index.and_then(|index| self.flows.get_mut(*index as usize)) {
                flow.refused |= flow.plug.is_none() && error.kind == IcmpError::PortUnreachable;
            }
        }
        if !self.readable.contains(&socket) {
            self.readable.push(socket);
        }
    }

    /// Takes the answers that have come. True if there is more to do at once.
    pub(super) fn flush(&mut self, io: &mut Io<'_>) -> bool {
        let Self { flows, by_socket, readable, buffer, .. } = self;
        let mut refused = Vec::new();
        readable.retain(|socket| {
            let index = by_socket.get(socket);
            let Some((index, flow)) =
                index.and_then(|index| Some((*index, flows.get_mut(*index as usize)?)))
            else {
                return false;
            };
            for _ in 0..BURST {
                let Ok((len, from)) = io.edge.udp_recv(*socket, buffer) else {
                    refused.extend(flow.refused.then_some(index));
                    return false;
                };
                if (from.ip(), from.port()) != (flow.target.ip(), flow.target.port()) {
                    io.counters.drop("relay-stray-answer");
                    continue;
                }
                flow.answered = true;
                flow.touch(io.now);
                let answer = buffer.get(..len).unwrap_or_default();
                if io.edge.udp_send(flow.door, flow.client, None, answer).is_err() {
                    io.counters.drop("relay-datagram-unsent");
                }
            }
            true
        });
        for index in refused {
            self.close(io, index);
        }
        !self.readable.is_empty()
    }

    pub(super) fn handle_timeout(&mut self, io: &mut Io<'_>) {
        let mut expired = Vec::new();
        self.wheel.expire(io.now, &mut expired);
        for index in expired {
            match self.flows.get(index as usize) {
                Some(flow) if flow.expires_at > io.now => {
                    self.wheel.set(index, Some(flow.expires_at));
                }
                Some(_) => self.close(io, index),
                None => {}
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// Ends the flows of a guest that was unplugged.
    pub(super) fn remove_guest(&mut self, io: &mut Io<'_>, plug: PlugId) {
        self.close_all(io, |flow| flow.plug == Some(plug));
    }

    /// Whether there are flows of clients of a host port.
    pub(super) fn comes_by(&self, door: SocketId) -> bool {
        self.flows.iter().any(|(_, flow)| flow.door == door)
    }

    /// Ends the flows of a host port that is closed.
    pub(super) fn remove_door(&mut self, io: &mut Io<'_>, door: SocketId) {
        self.close_all(io, |flow| flow.door == door);
    }

    fn close_all(&mut self, io: &mut Io<'_>, gone: impl Fn(&Flow) -> bool) {
        let gone = self.flows.iter().filter(|(_, flow)| gone(flow));
        let gone: Vec<u32> = gone.filter_map(|(index, _)| u32::try_from(index).ok()).collect();
        for index in gone {
            self.close(io, index);
        }
    }

    fn close(&mut self, io: &mut Io<'_>, index: u32) {
        self.wheel.set(index, None);
        let Some(flow) = self.flows.try_remove(index as usize) else { return };
        self.by_client.remove(&(flow.door, flow.client));
        self.by_socket.remove(&flow.socket);
        io.edge.close(flow.socket);
    }
}

impl Flow {
    fn touch(&mut self, now: Instant) {
        self.lasting |= self.answered && now > self.begun + LASTING;
        self.expires_at = now + if self.lasting { LASTING_STILL } else { STILL };
    }
}
