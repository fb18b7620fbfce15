//! What host sockets receive, and bound host ports.

use std::net::{IpAddr, SocketAddr};
use std::{io, mem};

use netyard_sys::segments::{self, Batch};
use netyard_wire::udp;
use rand::RngExt as _;

use super::table::{Flow, FlowId, Side, Table, Via};
use super::{FIRST_USER_PORT, Listener, Outlet, Role, Target, UdpFlows, pieces};
use crate::context::Context;
use crate::edge::SocketId;
use crate::icmp::is_group;
use crate::policy::rules::What;
use crate::policy::{Comer, Protocol};
use crate::service::{ServiceId, Services, TurnKey};

/// Datagrams read from one socket before others get their turn, and no more than one call brings beyond.
pub(super) const RECEIVE_BUDGET: usize = 64;

/// How many random ports are tried for a client that cannot have its own.
const PORT_ATTEMPTS: usize = 16;

impl UdpFlows {
    /// Binds a host port, which takes clients at once.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn bind(
        &mut self,
        cx: &mut Context<'_>,
        at: SocketAddr,
        target: Target,
    ) -> io::Result<SocketId> {
        let socket = cx.edge.udp_bind(at)?;
        cx.edge.udp_take_many(socket);
        let listener = Listener { target, accepted: 0, wanted: true, open: true, whole: None };
        self.sockets.insert(socket, Role::Listener(listener));
        Ok(socket)
    }

    /// Sets to which service a bound host port leads from now on.
    pub(crate) fn retarget(&mut self, listener: SocketId, service: ServiceId) {
        if let Some(Role::Listener(listener)) = self.sockets.get_mut(&listener) {
            listener.target = Target::Service(service);
        }
    }

    /// Sets whether a bound host port takes new clients. If not, its port stays ours and they are
    /// refused, once those before have left.
    pub(crate) fn set_listening(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        listening: bool,
    ) {
        if let Some(Role::Listener(listener)) = self.sockets.get_mut(&socket) {
            listener.wanted = listening;
        }
        self.update_listener(cx, socket);
    }

    /// Opens or closes a bound host port as is wanted. Its clients' answers leave by it, too.
    pub(super) fn update_listener(&mut self, cx: &mut Context<'_>, socket: SocketId) {
        let used = self.table.of_socket(socket).next().is_some();
        let Some(Role::Listener(listener)) = self.sockets.get_mut(&socket) else { return };
        let open = listener.wanted || used;
        if listener.open != open && cx.edge.set_listening(socket, open).is_ok() {
            listener.open = open;
        }
    }

    /// Closes a host port opened with [`UdpFlows::bind`]; its flows end, as they leave by it.
    pub(crate) fn unbind(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        listener: SocketId,
    ) {
        if !matches!(self.sockets.get(&listener), Some(Role::Listener(_))) {
            return;
        }
        let flows: Vec<FlowId> = self.table.of_socket(listener).collect();
        for id in flows {
            self.end(cx, services, id);
        }
        self.close(cx, listener);
    }

    /// How many flows clients have opened through a bound port so far.
    pub(crate) fn accepted(&self, listener: SocketId) -> u64 {
        match self.sockets.get(&listener) {
            Some(Role::Listener(listener)) => listener.accepted,
            _ => 0,
        }
    }

    /// Passes what a socket has received on to guests.
    pub(super) fn receive(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        socket: SocketId,
    ) {
        let (mut buffer, mut came) = (mem::take(&mut self.buffer), mem::take(&mut self.came));
        let (mut failed, mut more) = (false, true);
        let mut left = RECEIVE_BUDGET;
        while left > 0 && more {
            match cx.edge.udp_recv_many(socket, &mut buffer, &mut came) {
                Ok(again) => {
                    (failed, more) = (false, again);
                    let datagrams = |batch: &Batch| batch.len.div_ceil(batch.size.max(1)).max(1);
                    left = left.saturating_sub(came.iter().map(datagrams).sum());
                    self.pass_all(cx, services, socket, &buffer, &came);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => more = false,
                // A pending error stands before the datagrams once; what stays is the socket's end.
                Err(_) if self.report_errors(cx, socket) == 0 && failed => more = false,
                Err(_) => {
                    failed = true;
                    left -= 1;
                }
            }
        }
        if more {
            self.unread.insert(socket);
        }
        (self.buffer, self.came) = (buffer, came);
    }

    /// Passes batches on to guests, each at the beginning of a piece of `buffer`.
    fn pass_all(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        socket: SocketId,
        buffer: &[u8],
        mut came: &[Batch],
    ) {
        let mut places = buffer.chunks_exact(segments::ROOM);
        while let Some(Batch { size, from, .. }) = came.first().copied() {
            let (group, rest) = came.split_at_checked(together(came)).unwrap_or((came, &[]));
            came = rest;
            let parts = group.iter().zip(places.clone());
            let parts = parts.map(|(batch, place)| place.get(..batch.len).unwrap_or_default());
            places.nth(group.len() - 1);
            if !self.pass_together(cx, services, (socket, from), size, parts.clone()) {
                for payload in parts.flat_map(|part| pieces(part, size)) {
                    if let Err(reason) = self.inward(cx, services, socket, from, payload) {
                        cx.counters.drop(reason);
                    }
                }
            }
        }
    }

    /// Passes several datagrams of `size` bytes, the last of which may be shorter, on to a guest in one frame; false
    /// if each is to be looked at.
    fn pass_together<'a>(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        (socket, from): (SocketId, SocketAddr),
        size: usize,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> bool {
        let len: usize = parts.clone().map(<[u8]>::len).sum();
        let Some(each) = u16::try_from(size).ok().filter(|_| len > size) else { return false };
        let Some(id) = self.still_led(cx, services, Via::Socket(socket), from) else {
            return false;
        };
        let Some(flow) = self.table.get(id).copied() else { return false };
        if self.openings.get(id).is_some() || size + headers(flow.guest) > cx.config.mtu.into() {
            return false;
        }
        self.table.touch(cx.now, id, Side::Peer, len);
        cx.send_udp_together(flow.plug, flow.mac, flow.remote, flow.guest, parts, each);
        true
    }

    /// Passes a datagram that a host socket has received on to the guest.
    fn inward(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        socket: SocketId,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Result<(), &'static str> {
        let via = Via::Socket(socket);
        let known = self.still_led(cx, services, via, peer);
        let id = match (known, self.sockets.get_mut(&socket)) {
            (Some(id), _) => id,
            (None, Some(Role::Listener(listener))) => {
                let opened = match listener.target.clone() {
                    Target::Service(service) => {
                        let entered = self.enter(cx, services, service, via, peer, payload);
                        entered.map_err(|refusal| refusal.reason)?;
                        Ok(())
                    }
                    Target::Guest { name, port } => {
                        let id = self.accept(cx, services, via, peer, &name, port)?;
                        self.deliver(cx, id, peer, payload)
                    }
                };
                if let Some(Role::Listener(listener)) = self.sockets.get_mut(&socket) {
                    listener.accepted += 1;
                }
                return opened;
            }
            (None, Some(Role::Mapping { outlet: Outlet::World, .. })) => {
                self.table.by_peer_address(socket, peer.ip()).ok_or("udp-filtered")?
            }
            (None, Some(Role::Mapping { .. })) => return Err("udp-filtered"),
            (None, None) => return Err("udp-closed-socket"),
        };
        self.hold(cx, services, id, payload);
        self.deliver(cx, id, peer, payload)
    }

    /// Sends a guest the datagram of who is at the other end of its flow, by whatever port of theirs.
    pub(super) fn deliver(
        &mut self,
        cx: &mut Context<'_>,
        id: FlowId,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Result<(), &'static str> {
        let Some(flow) = self.table.get(id).copied() else { return Err("udp-filtered") };
        self.table.touch(cx.now, id, Side::Peer, payload.len());
        let mut source = flow.remote;
        if peer != flow.peer {
            source.set_port(peer.port());
        }
        cx.send_udp(flow.plug, flow.mac, source, flow.guest, payload);
        Ok(())
    }

    /// Opens a flow that a client of a forward wants.
    fn accept(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        via: Via,
        peer: SocketAddr,
        name: &str,
        port: u16,
    ) -> Result<FlowId, &'static str> {
        let target = cx.guests.by_name(name).ok_or("forward-without-guest")?;
        let guest: IpAddr = match peer.ip().to_canonical() {
            IpAddr::V4(_) => target.address4.into(),
            IpAddr::V6(_) => target.address6.into(),
        };
        if !cx.policy.decide_entry(comer(via, peer), guest, What::to(Protocol::Udp, port)) {
            return Err("udp-policy");
        }
        self.open_to(cx, services, via, peer, SocketAddr::new(guest, port), None)
    }

    /// Opens a flow from a client to a port of a guest.
    pub(super) fn open_to(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        via: Via,
        peer: SocketAddr,
        guest: SocketAddr,
        turn: Option<TurnKey>,
    ) -> Result<FlowId, &'static str> {
        let target = cx.guests.by_address(guest.ip()).ok_or("forward-without-guest")?;
        let (plug, mac) = (target.plug, target.mac);
        for id in self.table.in_the_way_of_client(plug) {
            self.end(cx, services, id);
        }
        let client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let remote = visible_client(cx, &self.table, guest, client).ok_or("udp-clients-full")?;
        let opened_by = Side::Peer;
        let flow = Flow { plug, mac, guest, remote, via, peer, opened_by, turn };
        self.table.insert(cx.now, flow).ok_or("udp-clients-full")
    }
}

/// How many of these batches, the first ones, go to a guest in one frame.
fn together(came: &[Batch]) -> usize {
    let Some(first) = came.first() else { return 0 };
    let (mut len, mut count) = (first.len, 1);
    for next in came.iter().skip(1) {
        let goes_on = next.from == first.from
            && len.is_multiple_of(first.size.max(1))
            && (next.size == first.size || next.len < first.size && next.size == next.len)
            && next.len > 0
            && len + next.len <= segments::MOST_BYTES
            && (len + next.len).div_ceil(first.size.max(1)) <= segments::MOST;
        if !goes_on {
            break;
        }
        (len, count) = (len + next.len, count + 1);
    }
    count
}

/// The length of the headers before a datagram to a guest, bytes.
const fn headers(guest: SocketAddr) -> usize {
    let ip = if guest.is_ipv4() { 20 } else { 40 };
    ip + udp::HEADER_LEN
}

/// The other end of a flow that it has opened, as the policy knows it.
pub(super) fn comer(via: Via, peer: SocketAddr) -> Comer {
    match via {
        Via::Socket(_) => Comer::Outside(peer.ip()),
        Via::Front(_) => Comer::Guest(peer.ip()),
    }
}

/// The address that a guest sees for a client: the client's own if the guest's answers to it come
/// to the gateway, else the gateway's. `None` if no port is free.
fn visible_client(
    cx: &mut Context<'_>,
    table: &Table,
    guest: SocketAddr,
    client: SocketAddr,
) -> Option<SocketAddr> {
    let free = |remote: &SocketAddr| table.by_guest(guest, *remote).is_none();
    let own_family = client.is_ipv4() == guest.is_ipv4();
    if own_family && is_routable(cx, client.ip()) && free(&client) {
        return Some(client);
    }
    let gateway: IpAddr = match guest {
        SocketAddr::V4(_) => cx.config.gateway4().into(),
        SocketAddr::V6(_) => cx.config.gateway6().into(),
    };
    let own = Some(client.port()).filter(|port| *port >= FIRST_USER_PORT);
    let random = std::iter::repeat_with(|| cx.rng.random_range(FIRST_USER_PORT..=u16::MAX));
    let ports = own.into_iter().chain(random.take(PORT_ATTEMPTS));
    ports.map(|port| SocketAddr::new(gateway, port)).find(free)
}

/// True for addresses that a guest sends to by way of the gateway.
fn is_routable(cx: &Context<'_>, address: IpAddr) -> bool {
    let scoped = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let local = cx.config.is_local(address) || is_group(cx.config, address);
    !(scoped || local || address.is_loopback() || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_of_one_sender_and_one_size_go_together_up_to_a_shorter_datagram() {
        let batch = |port: u16, len, size| {
            let from = SocketAddr::new([192, 0, 2, 1].into(), port);
            Batch { len, size, from }
        };
        for (came, expected) in [
            (vec![], 0),
            (vec![batch(1, 100, 100)], 1),
            (vec![batch(1, 100, 100), batch(1, 300, 100), batch(1, 100, 100)], 3),
            (vec![batch(1, 100, 100), batch(2, 100, 100)], 1),
            (vec![batch(1, 100, 100), batch(1, 40, 40), batch(1, 100, 100)], 2),
            (vec![batch(1, 250, 100), batch(1, 100, 100)], 1),
            (vec![batch(1, 100, 100), batch(1, 250, 100), batch(1, 100, 100)], 2),
            (vec![batch(1, 100, 100), batch(1, 40, 20)], 1),
            (vec![batch(1, 100, 100), batch(1, 200, 200)], 1),
            (vec![batch(1, 100, 100), batch(1, 0, 0)], 1),
            (vec![batch(1, 0, 0), batch(1, 0, 0)], 1),
            (vec![batch(1, 60_000, 1000), batch(1, 6000, 1000)], 1),
            (vec![batch(1, 630, 10), batch(1, 10, 10), batch(1, 10, 10)], 2),
        ] {
            assert_eq!(together(&came), expected, "{came:?}");
        }
    }
}
