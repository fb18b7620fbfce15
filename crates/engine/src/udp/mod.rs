//! UDP between guests and the host's own sockets.
//!
//! # Theory of operation
//!
//! A *flow* is one guest address and port with one remote address and port. It has a host socket,
//! and knows the remote's address on both sides, which differ for `host.<zone>` and for clients
//! whose address means nothing to guests.
//!
//! Outward, a guest's address and port have one host socket for all remotes (a *mapping*), bound to
//! the same port if it is free and not privileged: endpoint-independent mapping (RFC 4787
//! section 4.1). Every new remote passes the policy and makes a flow. From outside, a datagram
//! reaches the guest if the guest has a flow with its sender's address, on whatever port:
//! address-dependent filtering (section 5). `host.<zone>` is apart: each named service has a
//! mapping of its own, and only the service itself gets through.
//!
//! Inward ([`inward`]), a *listener* is a bound host port that leads to one instance. Each client makes
//! a flow; the guest sees the client's own address where it can route to it, else the gateway's with
//! the client's port, or a free one. Answers leave from the listener.
//!
//! A service ([`service`]) has a listener where it is published, and its virtual addresses, where other
//! guests are the clients: the same flows, but that their turn says to whom they lead.
//!
//! A flow ends [`table::ONE_WAY`] after its last datagram, or [`table::TWO_WAY`] once there was an
//! answer. One of a client must have gone on for [`table::LASTING`] for that, too: most ask one question and
//! never come back. When a guest has too many clients, those leave first that have been still for the longest
//! time. A mapping ends with its last flow. Errors that come back about datagrams become ICMP
//! errors to the guest. Datagrams keep their hop limit on the way out, less one, and the wish not to be cut
//! into fragments. What is bigger than the network's MTU is cut on the way in.

mod departing;
mod inward;
mod opening;
mod service;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use netyard_sys::segments::{self, Batch};
use netyard_wire::icmp::IcmpError;
use netyard_wire::ip::IpPacket;
use netyard_wire::udp::Datagram;
use netyard_wire::{Gso, MacAddr, build, ethernet};

use self::inward::comer;
use crate::context::Context;
use crate::control::FlowState;
use crate::edge::{DatagramError, PlugId, Readiness, SocketId};
use crate::guests::Guest;
use crate::icmp::{is_group, refuse};
use crate::policy::rules::What;
use crate::policy::{Decision, Protocol};
use crate::sending::{self, Reasons, Refusal, pass_on, take_reports};
use crate::service::{ServiceId, Services};
use departing::{Departing, Departures};
use opening::Openings;
use table::{Flow, FlowId, Side, Table, Via};

/// Host sockets for what one guest sends: each is a descriptor.
const MAPPINGS_PER_GUEST: usize = 1024;

/// Ports below are the system's (RFC 6335 section 6): guests' mappings leave them to the host.
const FIRST_USER_PORT: u16 = 1024;

/// What is received with one call.
const BUFFER_LEN: usize = segments::BATCHES * segments::ROOM;

/// All UDP of a network but its DNS.
#[derive(Debug)]
pub(crate) struct UdpFlows {
    table: Table,
    sockets: HashMap<SocketId, Role>,
    mappings: HashMap<(SocketAddr, Outlet), SocketId>,
    mappings_of: HashMap<PlugId, usize>,
    /// Flows of services that are not known to be answered.
    openings: Openings,
    /// Sockets that had more to read than fits one turn.
    unread: BTreeSet<SocketId>,
    buffer: Box<[u8]>,
    /// What was received.
    came: Vec<Batch>,
    /// What guests have sent since the last [`UdpFlows::flush`].
    departures: Departures,
}

/// What a host socket is for.
#[derive(Debug)]
enum Role {
    Mapping { plug: PlugId, guest: SocketAddr, outlet: Outlet, flows: usize, whole: Option<bool> },
    Listener(Listener),
}

impl Role {
    /// Whether the socket keeps what it sends in one piece; `None`: it was not told.
    fn whole(&mut self) -> &mut Option<bool> {
        match self {
            Self::Mapping { whole, .. } | Self::Listener(Listener { whole, .. }) => whole,
        }
    }
}

/// A bound host port that leads into the network.
#[derive(Debug)]
struct Listener {
    target: Target,
    accepted: u64,
    /// Whether new clients are taken.
    wanted: bool,
    /// Whether datagrams are taken: also as long as there are flows of clients before.
    open: bool,
    whole: Option<bool>,
}

/// Where a bound host port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// To the guest of this name, which need not exist yet.
    Guest {
        /// Name or alias.
        name: String,
        /// UDP port.
        port: u16,
    },
    /// To the instances of a service in turn.
    Service(ServiceId),
}

/// Where a mapping leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outlet {
    /// To every remote that the policy lets through.
    World,
    /// To one service of the host.
    Service(SocketAddr),
}

const REASONS: Reasons = Reasons {
    queue_full: "udp-send-queue-full",
    unreachable: "udp-unreachable",
    firewall: "udp-host-firewall",
    too_big: "udp-too-big",
    failed: "udp-send-failed",
};

impl UdpFlows {
    /// No flows.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            table: Table::new(now),
            sockets: HashMap::new(),
            mappings: HashMap::new(),
            mappings_of: HashMap::new(),
            openings: Openings::default(),
            unread: BTreeSet::new(),
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            came: Vec::with_capacity(segments::BATCHES),
            departures: Departures::default(),
        }
    }

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// The flows as they are shown.
    pub(crate) fn states(&self, now: Instant) -> impl Iterator<Item = FlowState> {
        self.table.states(now)
    }

    /// Whether a host socket is one of these flows'.
    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.sockets.contains_key(&socket)
    }

    /// Ends all flows of a guest that was unplugged. A service's client whose datagrams it has not
    /// answered yet is led to the next instance.
    pub(crate) fn remove_guest(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        guest: &Guest,
    ) {
        for id in self.table.asked_by([guest.address4.into(), guest.address6.into()]) {
            self.end(cx, services, id);
        }
        for id in self.table.of_plug(guest.plug) {
            self.instance_gone(cx, services, id);
        }
    }

    /// Ends the flows that the policy does not allow any more: to the outside, from there, and to services.
    pub(crate) fn end_refused(&mut self, cx: &mut Context<'_>, services: &mut Services) {
        let is_refused = |flow: &Flow| {
            if flow.opened_by == Side::Peer {
                let what = What::to(Protocol::Udp, flow.guest.port());
                return !cx.policy.permits_entry(comer(flow.via, flow.peer), flow.guest.ip(), what);
            }
            !cx.config.is_local(flow.remote.ip())
                && !cx.policy.permits_open(Protocol::Udp, flow.guest.ip(), flow.remote)
        };
        for id in self.table.matching(is_refused) {
            self.end(cx, services, id);
        }
        // Those that are not answered may not go on to an instance that is refused now.
        for (id, opening) in self.openings.iter_mut() {
            if let Some(flow) = self.table.get(id) {
                let comer = comer(flow.via, flow.peer);
                opening.bar(services.barred_now(cx.policy, comer, opening.service));
            }
        }
    }

    /// Handles a datagram of a guest to the gateway, to `host.<zone>`, to a service or to the outside;
    /// with `gso`, it is several of that size.
    #[expect(clippy::too_many_arguments, reason = "what a frame was taken apart into")]
    pub(crate) fn handle_datagram(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        plug: PlugId,
        mac: MacAddr,
        packet: &IpPacket<'_>,
        datagram: &Datagram<'_>,
        gso: Option<Gso>,
    ) {
        let Err(refusal) = self.outward(cx, services, plug, mac, packet, datagram, gso) else {
            return;
        };
        refuse(cx, plug, mac, packet, refusal);
    }

    #[expect(clippy::too_many_arguments, reason = "what a frame was taken apart into")]
    fn outward(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        plug: PlugId,
        mac: MacAddr,
        packet: &IpPacket<'_>,
        datagram: &Datagram<'_>,
        gso: Option<Gso>,
    ) -> Result<(), Refusal> {
        let guest = SocketAddr::new(packet.source, datagram.source_port);
        let remote = SocketAddr::new(packet.destination, datagram.destination_port);
        // What goes to a group concerns the guests only.
        if is_group(cx.config, remote.ip()) {
            return Ok(());
        }
        // Answers go to a guest's address: link-local ones have no meaning here.
        if cx.station(guest.ip()).is_none_or(|(owner, _)| owner != plug) {
            return Err(Refusal::silent("udp-source-address"));
        }
        if guest.port() == 0 {
            return Err(Refusal::silent("udp-source-port"));
        }
        let leaves = !cx.config.is_local(remote.ip());
        if leaves && packet.hop_limit <= 1 {
            return Err(Refusal::told("hop-limit", IcmpError::TimeExceeded));
        }
        let mut outcome = Ok(());
        if !leaves && self.is_front(services, guest, remote) {
            for payload in pieces(datagram.payload, size(datagram.payload, gso)) {
                outcome = self.ask(cx, services, guest, remote, payload).and(outcome);
            }
            return outcome;
        }
        let id = match self.table.by_guest(guest, remote) {
            Some(id) => id,
            None => self.open(cx, plug, mac, guest, remote)?,
        };
        self.table.touch(cx.now, id, Side::Guest, datagram.payload.len());
        self.answered(services, id);
        let Some(flow) = self.table.get(id).copied() else { return Ok(()) };
        let hop_limit = leaves.then(|| packet.hop_limit.saturating_sub(1));
        if let Via::Front(front) = flow.via {
            for payload in pieces(datagram.payload, size(datagram.payload, gso)) {
                outcome = send_to_client(cx, front, flow.peer, payload).and(outcome);
            }
            return outcome;
        }
        self.keep_whole(cx, &flow, packet.stays_whole());
        for payload in pieces(datagram.payload, size(datagram.payload, gso)) {
            if let Some(before) = self.departures.push(id, hop_limit, payload) {
                self.depart(cx, before);
            }
        }
        outcome
    }

    /// Opens a flow that a guest wants.
    fn open(
        &mut self,
        cx: &mut Context<'_>,
        plug: PlugId,
        mac: MacAddr,
        guest: SocketAddr,
        remote: SocketAddr,
    ) -> Result<FlowId, Refusal> {
        if cx.config.is_gateway(remote.ip()) {
            return Err(Refusal::told("udp-closed-port", IcmpError::PortUnreachable));
        }
        let peer = match cx.policy.decide_out(cx.now, Protocol::Udp, guest.ip(), remote) {
            Decision::Allow(peer) => peer,
            Decision::Deny(_) => {
                let local = cx.config.is_local(remote.ip()) && !cx.config.is_host(remote.ip());
                let error = if local { IcmpError::HostUnreachable } else { IcmpError::Prohibited };
                return Err(Refusal::told("udp-policy", error));
            }
        };
        if !self.table.has_room(plug, Side::Guest) {
            return Err(Refusal::silent("udp-flows-full"));
        }
        let outlet = if peer == remote { Outlet::World } else { Outlet::Service(peer) };
        let socket = self.mapping(cx, plug, guest, outlet, peer)?;
        let (via, opened_by, turn) = (Via::Socket(socket), Side::Guest, None);
        let flow = Flow { plug, mac, guest, remote, via, peer, opened_by, turn };
        if let Some(Role::Mapping { flows, .. }) = self.sockets.get_mut(&socket) {
            *flows += 1;
        }
        let id = self.table.insert(cx.now, flow);
        if id.is_none() {
            self.release(cx, &flow);
        }
        id.ok_or(Refusal::silent("udp-flows-full"))
    }

    /// The host socket for what a guest's port sends.
    fn mapping(
        &mut self,
        cx: &mut Context<'_>,
        plug: PlugId,
        guest: SocketAddr,
        outlet: Outlet,
        peer: SocketAddr,
    ) -> Result<SocketId, Refusal> {
        if let Some(socket) = self.mappings.get(&(guest, outlet)) {
            return Ok(*socket);
        }
        let used = self.mappings_of.get(&plug).copied().unwrap_or_default();
        if used >= MAPPINGS_PER_GUEST {
            return Err(Refusal::silent("udp-mappings-full"));
        }
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let same = match outlet {
            Outlet::World if guest.port() >= FIRST_USER_PORT => {
                cx.edge.udp_bind(SocketAddr::new(any, guest.port())).ok()
            }
            _ => None,
        };
        let socket = match same {
            Some(socket) => socket,
            None => cx
                .edge
                .udp_bind(SocketAddr::new(any, 0))
                .map_err(|_| Refusal::silent("udp-no-socket"))?,
        };
        cx.edge.udp_take_many(socket);
        let role = Role::Mapping { plug, guest, outlet, flows: 0, whole: None };
        self.sockets.insert(socket, role);
        self.mappings.insert((guest, outlet), socket);
        self.mappings_of.insert(plug, used + 1);
        Ok(socket)
    }

    /// Tells the socket of a flow whether what it sends must stay in one piece, if it does not know.
    fn keep_whole(&mut self, cx: &mut Context<'_>, flow: &Flow, whole: bool) {
        let Via::Socket(socket) = flow.via else { return };
        if self.sockets.get_mut(&socket).is_none_or(|role| *role.whole() == Some(whole)) {
            return;
        }
        // What was sent before was not sent so.
        self.depart_all(cx);
        if let Some(role) = self.sockets.get_mut(&socket)
            && cx.edge.set_whole(socket, whole).is_ok()
        {
            *role.whole() = Some(whole);
        }
    }

    /// Sends what has waited.
    fn depart_all(&mut self, cx: &mut Context<'_>) {
        while let Some(departing) = self.departures.take_any() {
            self.depart(cx, departing);
        }
    }

    /// Sends datagrams of one flow, together if the kernel takes them so.
    fn depart(&mut self, cx: &mut Context<'_>, departing: Departing) {
        if let Some(flow) = self.table.get(departing.id).copied()
            && let Via::Socket(socket) = flow.via
            && !self.send_together(cx, (socket, flow.peer), &departing)
        {
            for payload in departing.pieces() {
                self.send(cx, (socket, &flow), departing.hop_limit, payload);
            }
        }
        self.departures.give_back(departing);
    }

    /// Sends several datagrams with one call; false if it may be that they can be sent one by one.
    fn send_together(
        &self,
        cx: &mut Context<'_>,
        (socket, to): (SocketId, SocketAddr),
        Departing { hop_limit, size, bytes, .. }: &Departing,
    ) -> bool {
        let Some(each) = u16::try_from(*size).ok().filter(|_| bytes.len() > *size) else {
            return false;
        };
        match cx.edge.udp_send_many(socket, to, *hop_limit, bytes, each) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bytes.chunks(*size).for_each(|_| cx.counters.drop(REASONS.queue_full));
                true
            }
            Err(_) => false,
        }
    }

    /// Sends a datagram; the guest is told if that cannot be.
    fn send(
        &self,
        cx: &mut Context<'_>,
        (socket, flow): (SocketId, &Flow),
        hop_limit: Option<u8>,
        payload: &[u8],
    ) {
        let to = (socket, flow.peer);
        let mut tell = |cx: &mut Context<'_>, error: &DatagramError| {
            report(cx, &self.table, socket, error);
        };
        let Err(refusal) = sending::send(cx, &REASONS, to, hop_limit, payload, &mut tell) else {
            return;
        };
        let original = packet((flow.guest, flow.remote), payload);
        match IpPacket::parse_bare(&original) {
            Ok(original) => refuse(cx, flow.plug, flow.mac, &original, refusal),
            Err(_) => cx.counters.drop(refusal.reason),
        }
    }

    /// Handles readiness of a host socket.
    pub(crate) fn handle_socket(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        socket: SocketId,
        ready: Readiness,
    ) {
        if ready.error {
            self.report_errors(cx, socket);
        }
        if ready.readable || ready.error {
            self.receive(cx, services, socket);
        }
    }

    /// Sends what has waited, and reads on where sockets had more than fits one turn. True if there is more to do
    /// at once.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>, services: &mut Services) -> bool {
        self.depart_all(cx);
        for socket in std::mem::take(&mut self.unread) {
            self.receive(cx, services, socket);
        }
        !self.unread.is_empty()
    }

    /// Ends flows whose time is over.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>, services: &mut Services) {
        self.openings.handle_timeout(cx.now);
        while let Some(id) = self.table.next_expired(cx.now) {
            self.end(cx, services, id);
        }
    }

    /// When [`UdpFlows::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.table.next_expiry().into_iter().chain(self.openings.poll_timeout()).min()
    }

    /// Tells guests what was reported about their datagrams; how many reports there were.
    fn report_errors(&mut self, cx: &mut Context<'_>, socket: SocketId) -> usize {
        let table = &self.table;
        take_reports(cx, socket, &mut |cx, error| report(cx, table, socket, error)).count
    }

    /// Takes a flow out of the table; what waits leaves before.
    fn take_out(&mut self, cx: &mut Context<'_>, id: FlowId) -> Option<Flow> {
        if let Some(departing) = self.departures.take(id) {
            self.depart(cx, departing);
        }
        self.table.remove(id)
    }

    /// Ends a flow.
    fn end(&mut self, cx: &mut Context<'_>, services: &mut Services, id: FlowId) {
        let Some(flow) = self.take_out(cx, id) else { return };
        if let Some(turn) = flow.turn {
            match self.openings.remove(id) {
                Some(_) => services.abandoned(turn),
                None => services.closed(turn),
            }
        }
        self.release(cx, &flow);
    }

    /// A flow has gone: a mapping ends with its last one, a listener may close.
    fn release(&mut self, cx: &mut Context<'_>, flow: &Flow) {
        let Via::Socket(socket) = flow.via else { return };
        match self.sockets.get_mut(&socket) {
            Some(Role::Mapping { flows, .. }) => {
                *flows = flows.saturating_sub(1);
                if *flows == 0 {
                    self.close(cx, socket);
                }
            }
            Some(Role::Listener(_)) => self.update_listener(cx, socket),
            None => {}
        }
    }

    fn close(&mut self, cx: &mut Context<'_>, socket: SocketId) {
        if let Some(Role::Mapping { plug, guest, outlet, .. }) = self.sockets.remove(&socket) {
            self.mappings.remove(&(guest, outlet));
            if let Some(used) = self.mappings_of.get_mut(&plug) {
                *used = used.saturating_sub(1);
                if *used == 0 {
                    self.mappings_of.remove(&plug);
                }
            }
        }
        self.unread.remove(&socket);
        cx.edge.close(socket);
    }
}

/// Datagrams of `size` bytes, the last of which may be shorter, one behind the other; one, if that is empty.
fn pieces(payload: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    let empty = payload.is_empty().then_some(payload);
    payload.chunks(size.max(1)).chain(empty)
}

/// Length of the datagrams that a frame has: one, or several of the size that its metadata says.
fn size(payload: &[u8], gso: Option<Gso>) -> usize {
    let size = gso.map(|gso| usize::from(gso.size)).filter(|size| *size > 0);
    size.unwrap_or(payload.len())
}

/// Passes an instance's datagram on to the guest that has asked its service.
fn send_to_client(
    cx: &mut Context<'_>,
    front: SocketAddr,
    client: SocketAddr,
    payload: &[u8],
) -> Result<(), Refusal> {
    let Some((plug, mac)) = cx.station(client.ip()) else {
        return Err(Refusal::silent("udp-without-guest"));
    };
    cx.send_udp(plug, mac, front, client, payload);
    Ok(())
}

/// Passes on what was reported about a datagram that a socket has sent.
fn report(cx: &mut Context<'_>, table: &Table, socket: SocketId, error: &DatagramError) {
    let id = table.by_peer(Via::Socket(socket), error.destination);
    let Some(flow) = id.and_then(|id| table.get(id)) else { return };
    let original = packet((flow.guest, flow.remote), &error.quoted);
    let between = (flow.guest.ip(), flow.remote.ip());
    pass_on(cx, (flow.plug, flow.mac), error, between, &original);
}

/// A datagram from the first address to the second that has gone out of hand, from its IP header on, as it
/// came to whom its hop limit was too low for.
fn packet((source, destination): (SocketAddr, SocketAddr), payload: &[u8]) -> Vec<u8> {
    let (mut frame, nobody) = (Vec::new(), MacAddr([0; 6]));
    build::udp_frame(&mut frame, nobody, nobody, source, destination, 1, payload);
    frame.split_off(ethernet::HEADER_LEN.min(frame.len()))
}
