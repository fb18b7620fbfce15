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
//! Inward, a *listener* is a bound host port that leads to one instance. Each client makes a flow;
//! the guest sees the client's own address where it can route to it, else the gateway's with the
//! client's port, or a free one. Answers leave from the listener.
//!
//! A flow ends [`table::ONE_WAY`] after its last datagram, or [`table::TWO_WAY`] once there was an
//! answer; a mapping ends with its last flow. Errors that come back about datagrams become ICMP
//! errors to the guest. Datagrams keep their hop limit on the way out, less one. What is bigger
//! than the network's MTU is dropped on the way in, as nothing here makes fragments.

mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use netyard_wire::icmp::IcmpError;
use netyard_wire::ip::IpPacket;
use netyard_wire::udp::Datagram;
use netyard_wire::{Gso, MacAddr, build, ethernet};
use rand::RngExt as _;

use crate::context::Context;
use crate::edge::{DatagramErrorKind, PlugId, Readiness, SocketId};
use crate::icmp::{is_group, send_error};
use crate::policy::{Decision, Protocol};
use table::{Flow, FlowId, Side, Table};

/// Host sockets for what one guest sends: each is a descriptor.
const MAPPINGS_PER_GUEST: usize = 1024;

/// Datagrams read from one socket before others get their turn.
const RECEIVE_BUDGET: usize = 64;

/// Entries read from a socket's error queue in one go.
const ERROR_BUDGET: usize = 64;

/// Ports below are the system's (RFC 6335 section 6): guests' mappings leave them to the host.
const FIRST_USER_PORT: u16 = 1024;

/// How many random ports are tried for a client that cannot have its own.
const PORT_ATTEMPTS: usize = 16;

/// The largest UDP datagram, rounded up.
const BUFFER_LEN: usize = 65_536;

/// All UDP of a network but its DNS.
#[derive(Debug)]
pub(crate) struct UdpFlows {
    table: Table,
    sockets: HashMap<SocketId, Role>,
    mappings: HashMap<(SocketAddr, Outlet), SocketId>,
    mappings_of: HashMap<PlugId, usize>,
    /// Sockets that had more to read than fits one turn.
    unread: BTreeSet<SocketId>,
    buffer: Box<[u8]>,
}

/// What a host socket is for.
#[derive(Debug)]
enum Role {
    Mapping { plug: PlugId, guest: SocketAddr, outlet: Outlet, flows: usize },
    Listener { instance: String, port: u16, accepted: u64 },
}

/// Where a mapping leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outlet {
    /// To every remote that the policy lets through.
    World,
    /// To one service of the host.
    Service(SocketAddr),
}

/// Why a guest's datagram goes nowhere.
struct Refusal {
    /// The name of the drop counter.
    reason: &'static str,
    /// What the guest is told.
    error: Option<IcmpError>,
}

impl Refusal {
    fn silent(reason: &'static str) -> Self {
        Self { reason, error: None }
    }

    fn told(reason: &'static str, error: IcmpError) -> Self {
        Self { reason, error: Some(error) }
    }

    /// What became of a datagram that the kernel did not take.
    fn from_send(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::silent("udp-send-queue-full"),
            io::ErrorKind::HostUnreachable => {
                Self::told("udp-unreachable", IcmpError::HostUnreachable)
            }
            io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::AddrNotAvailable => {
                Self::told("udp-unreachable", IcmpError::NetworkUnreachable)
            }
            io::ErrorKind::PermissionDenied => {
                Self::told("udp-host-firewall", IcmpError::Prohibited)
            }
            _ => Self::silent("udp-send-failed"),
        }
    }
}

impl UdpFlows {
    /// No flows.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            table: Table::new(now),
            sockets: HashMap::new(),
            mappings: HashMap::new(),
            mappings_of: HashMap::new(),
            unread: BTreeSet::new(),
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
        }
    }

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether a host socket is one of these flows'.
    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.sockets.contains_key(&socket)
    }

    /// Binds a host port that leads to `port` of the guest named `instance`, which need not exist
    /// yet.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn bind(
        &mut self,
        cx: &mut Context<'_>,
        at: SocketAddr,
        instance: &str,
        port: u16,
    ) -> io::Result<SocketId> {
        let socket = cx.edge.udp_bind(at)?;
        let role = Role::Listener { instance: instance.to_owned(), port, accepted: 0 };
        self.sockets.insert(socket, role);
        Ok(socket)
    }

    /// Closes a host port opened with [`UdpFlows::bind`]; its flows end, as they leave by it.
    pub(crate) fn unbind(&mut self, cx: &mut Context<'_>, listener: SocketId) {
        if !matches!(self.sockets.get(&listener), Some(Role::Listener { .. })) {
            return;
        }
        for id in self.table.of_socket(listener) {
            self.table.remove(id);
        }
        self.close(cx, listener);
    }

    /// How many flows clients have opened through a bound port so far.
    pub(crate) fn accepted(&self, listener: SocketId) -> u64 {
        match self.sockets.get(&listener) {
            Some(Role::Listener { accepted, .. }) => *accepted,
            _ => 0,
        }
    }

    /// Ends all flows of a guest.
    pub(crate) fn remove_guest(&mut self, cx: &mut Context<'_>, plug: PlugId) {
        for id in self.table.of_plug(plug) {
            if let Some(flow) = self.table.remove(id) {
                self.release(cx, &flow);
            }
        }
    }

    /// Handles a datagram of a guest to the gateway, to `host.<zone>` or to the outside; with
    /// `gso`, it is several of that size.
    pub(crate) fn handle_datagram(
        &mut self,
        cx: &mut Context<'_>,
        plug: PlugId,
        mac: MacAddr,
        packet: &IpPacket<'_>,
        datagram: &Datagram<'_>,
        gso: Option<Gso>,
    ) {
        let Err(refusal) = self.outward(cx, plug, mac, packet, datagram, gso) else { return };
        cx.counters.drop(refusal.reason);
        if let Some(error) = refusal.error {
            send_error(cx, plug, mac, packet, error);
        }
    }

    fn outward(
        &mut self,
        cx: &mut Context<'_>,
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
        if cx.guests.by_address(guest.ip()).is_none_or(|owner| owner.plug != plug) {
            return Err(Refusal::silent("udp-source-address"));
        }
        if guest.port() == 0 {
            return Err(Refusal::silent("udp-source-port"));
        }
        let leaves = !cx.config.is_local(remote.ip());
        if leaves && packet.hop_limit <= 1 {
            return Err(Refusal::told("hop-limit", IcmpError::TimeExceeded));
        }
        let id = match self.table.by_guest(guest, remote) {
            Some(id) => id,
            None => self.open(cx, plug, mac, guest, remote)?,
        };
        self.table.touch(cx.now, id, Side::Guest);
        let Some(flow) = self.table.get(id).copied() else { return Ok(()) };
        let hop_limit = leaves.then(|| packet.hop_limit.saturating_sub(1));
        let size = gso.map_or(0, |gso| usize::from(gso.size));
        if size == 0 || datagram.payload.len() <= size {
            return self.send(cx, &flow, hop_limit, datagram.payload);
        }
        let mut outcome = Ok(());
        for payload in datagram.payload.chunks(size) {
            if let Err(refusal) = self.send(cx, &flow, hop_limit, payload) {
                outcome = Err(refusal);
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
        let peer = match cx.policy.decide_out(Protocol::Udp, guest.ip(), remote) {
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
        let flow = Flow { plug, mac, guest, remote, socket, peer, opened_by: Side::Guest };
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
        self.sockets.insert(socket, Role::Mapping { plug, guest, outlet, flows: 0 });
        self.mappings.insert((guest, outlet), socket);
        self.mappings_of.insert(plug, used + 1);
        Ok(socket)
    }

    fn send(
        &mut self,
        cx: &mut Context<'_>,
        flow: &Flow,
        hop_limit: Option<u8>,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let Err(error) = cx.edge.udp_send(flow.socket, flow.peer, hop_limit, payload) else {
            return Ok(());
        };
        // The error may be an earlier datagram's: the kernel tells a socket's pending error once,
        // to whoever asks next, and keeps the details in the error queue.
        if error.kind() == io::ErrorKind::WouldBlock || self.report_errors(cx, flow.socket) == 0 {
            return Err(Refusal::from_send(&error));
        }
        match cx.edge.udp_send(flow.socket, flow.peer, hop_limit, payload) {
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal::from_send(&error)),
        }
    }

    /// Handles readiness of a host socket.
    pub(crate) fn handle_socket(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        ready: Readiness,
    ) {
        if ready.error {
            self.report_errors(cx, socket);
        }
        if ready.readable || ready.error {
            self.receive(cx, socket);
        }
    }

    /// Reads on where sockets had more than fits one turn. True if there is more to do at once.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>) -> bool {
        for socket in std::mem::take(&mut self.unread) {
            self.receive(cx, socket);
        }
        !self.unread.is_empty()
    }

    /// Ends flows whose time is over.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        while let Some(flow) = self.table.pop_expired(cx.now) {
            self.release(cx, &flow);
        }
    }

    /// When [`UdpFlows::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.table.next_expiry()
    }

    /// Passes what a socket has received on to guests.
    fn receive(&mut self, cx: &mut Context<'_>, socket: SocketId) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut failed = false;
        let mut left = RECEIVE_BUDGET;
        while left > 0 {
            left -= 1;
            match cx.edge.udp_recv(socket, &mut buffer) {
                Ok((len, peer)) => {
                    failed = false;
                    let payload = buffer.get(..len).unwrap_or_default();
                    if let Err(reason) = self.inward(cx, socket, peer, payload) {
                        cx.counters.drop(reason);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A pending error stands before the datagrams once; what stays is the socket's end.
                Err(_) if self.report_errors(cx, socket) == 0 && failed => break,
                Err(_) => failed = true,
            }
        }
        if left == 0 {
            self.unread.insert(socket);
        }
        self.buffer = buffer;
    }

    /// Passes a datagram that a host socket has received on to the guest.
    fn inward(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Result<(), &'static str> {
        let known = self.table.by_peer(socket, peer);
        let id = match (known, self.sockets.get(&socket)) {
            (Some(id), _) => id,
            (None, Some(Role::Listener { .. })) => self.accept(cx, socket, peer)?,
            (None, Some(Role::Mapping { outlet: Outlet::World, .. })) => {
                self.table.by_peer_address(socket, peer.ip()).ok_or("udp-filtered")?
            }
            (None, Some(Role::Mapping { .. })) => return Err("udp-filtered"),
            (None, None) => return Err("udp-closed-socket"),
        };
        let Some(flow) = self.table.get(id).copied() else { return Err("udp-filtered") };
        self.table.touch(cx.now, id, Side::Host);
        let headers = match flow.guest {
            SocketAddr::V4(_) => 20 + 8,
            SocketAddr::V6(_) => 40 + 8,
        };
        if payload.len() + headers > usize::from(cx.config.mtu) {
            return Err("udp-over-mtu");
        }
        let mut source = flow.remote;
        if peer != flow.peer {
            source.set_port(peer.port());
        }
        cx.send_udp(flow.plug, flow.mac, source, flow.guest, payload);
        Ok(())
    }

    /// Opens a flow that a client of a bound port wants.
    fn accept(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        peer: SocketAddr,
    ) -> Result<FlowId, &'static str> {
        let Some(Role::Listener { instance, port, accepted }) = self.sockets.get_mut(&socket)
        else {
            return Err("udp-closed-socket");
        };
        let target = cx.guests.by_name(instance).ok_or("forward-without-guest")?;
        if !self.table.has_room(target.plug, Side::Host) {
            return Err("udp-clients-full");
        }
        let client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let guest: IpAddr = match client {
            SocketAddr::V4(_) => target.address4.into(),
            SocketAddr::V6(_) => target.address6.into(),
        };
        let guest = SocketAddr::new(guest, *port);
        let remote = visible_client(cx, &self.table, guest, client).ok_or("udp-clients-full")?;
        let (plug, mac) = (target.plug, target.mac);
        let flow = Flow { plug, mac, guest, remote, socket, peer, opened_by: Side::Host };
        let id = self.table.insert(cx.now, flow).ok_or("udp-clients-full")?;
        *accepted += 1;
        Ok(id)
    }

    /// Tells guests what the network reported about their datagrams; how many reports there were.
    fn report_errors(&mut self, cx: &mut Context<'_>, socket: SocketId) -> usize {
        for count in 0..ERROR_BUDGET {
            let Some(error) = cx.edge.udp_error(socket) else { return count };
            let id = self.table.by_peer(socket, error.destination);
            let Some(flow) = id.and_then(|id| self.table.get(id)) else { continue };
            let kind = match error.kind {
                DatagramErrorKind::PortUnreachable => IcmpError::PortUnreachable,
                DatagramErrorKind::HostUnreachable => IcmpError::HostUnreachable,
                DatagramErrorKind::NetworkUnreachable => IcmpError::NetworkUnreachable,
                DatagramErrorKind::Prohibited => IcmpError::Prohibited,
                DatagramErrorKind::TooBig(mtu) => IcmpError::TooBig(mtu),
                DatagramErrorKind::TimeExceeded => IcmpError::TimeExceeded,
            };
            // Only the remote itself can say that a port is closed; else the gateway reports.
            let reporter = match kind {
                IcmpError::PortUnreachable => flow.remote.ip(),
                _ if flow.guest.is_ipv4() => cx.config.gateway4().into(),
                _ => cx.config.gateway6().into(),
            };
            // The datagram is gone; its headers are what guests need to find their socket.
            let mut frame = Vec::new();
            build::udp_frame(
                &mut frame,
                flow.mac,
                cx.config.gateway_mac,
                flow.guest,
                flow.remote,
                build::HOP_LIMIT,
                &[],
            );
            let original = frame.get(ethernet::HEADER_LEN..).unwrap_or_default();
            cx.send_icmp_error(flow.plug, flow.mac, reporter, flow.guest.ip(), kind, original);
        }
        ERROR_BUDGET
    }

    /// Closes the mapping of a flow that has ended, if it was its last.
    fn release(&mut self, cx: &mut Context<'_>, flow: &Flow) {
        let Some(Role::Mapping { flows, .. }) = self.sockets.get_mut(&flow.socket) else { return };
        *flows = flows.saturating_sub(1);
        if *flows == 0 {
            self.close(cx, flow.socket);
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

/// The address that a guest sees for a client: the client's own if the guest's answers to it come
/// to the gateway, else the gateway's. `None` if no port is free.
fn visible_client(
    cx: &mut Context<'_>,
    table: &Table,
    guest: SocketAddr,
    client: SocketAddr,
) -> Option<SocketAddr> {
    let free = |remote: &SocketAddr| table.by_guest(guest, *remote).is_none();
    if is_routable(cx, client.ip()) && free(&client) {
        return Some(client);
    }
    let gateway: IpAddr = match client {
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
