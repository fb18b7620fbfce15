//! Pings of guests to the outside, by the host's ping sockets.
//!
//! # Theory of operation
//!
//! A *flow* is one address and identifier of a guest with one remote address. It passes the policy and has a
//! ping socket of its own, whose identifier is the kernel's: answers and errors of that socket belong to that
//! flow, and what is put back in them is the guest's identifier. Hop limits go on both ways, less one, and so
//! does the wish not to be cut into fragments.
//!
//! A flow ends [`LIFETIME`] after its last ping; the next one opens another, and nobody notices. Of a guest
//! with too many flows the one that was still for the longest time leaves.
//!
//! A host allows ping sockets to groups (`net.ipv4.ping_group_range`), often to none. Then pings are refused,
//! counted and told of, never answered by somebody else.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netyard_wire::icmp::{Icmp, IcmpError};
use netyard_wire::ip::IpPacket;
use netyard_wire::{MacAddr, build, ethernet};
use slab::Slab;

use crate::context::Context;
use crate::control::{FlowKind, FlowPhase, FlowState};
use crate::edge::{DatagramError, Edge, PlugId, Readiness, SocketId};
use crate::policy::{Decision, Protocol};
use crate::sending::{self, Reasons, Refusal, onward, pass_on, take_reports};
use crate::wheel::Wheel;

/// How long a flow lives after its last ping (as in Linux's connection tracking).
const LIFETIME: Duration = Duration::from_secs(30);

/// Flows of one guest: each is a descriptor.
const FLOWS_PER_GUEST: usize = 128;

/// Answers read from one socket in one go.
const RECEIVE_BUDGET: usize = 64;

/// The largest ICMP message, rounded up.
const BUFFER_LEN: usize = 65_536;

const REASONS: Reasons = Reasons {
    queue_full: "icmp-send-queue-full",
    unreachable: "icmp-unreachable",
    firewall: "icmp-host-firewall",
    too_big: "icmp-too-big",
    failed: "icmp-send-failed",
};

/// What is told where the host allows no ping sockets.
const FORBIDDEN: &str = "pings to the outside are refused: `net.ipv4.ping_group_range` allows them to no \
                         group of the network's process; `sysctl -w net.ipv4.ping_group_range=\"0 \
                         2147483647\"` allows them to all";

/// The guest's end of a flow and the other one: address, identifier, address.
type Ends = (IpAddr, u16, IpAddr);

/// A ping of a guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ping<'a> {
    pub(crate) id: u16,
    pub(crate) seq: u16,
    pub(crate) data: &'a [u8],
}

/// All pings of a network that leave it.
#[derive(Debug)]
pub(crate) struct Pings {
    flows: Slab<Flow>,
    by_ends: HashMap<Ends, u32>,
    by_socket: HashMap<SocketId, u32>,
    of_plug: HashMap<PlugId, Vec<u32>>,
    deadlines: Wheel,
    expired: Vec<u32>,
    /// The host has refused the last socket.
    forbidden: bool,
    /// A guest has met that.
    refused: bool,
    buffer: Box<[u8]>,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    plug: PlugId,
    mac: MacAddr,
    guest: IpAddr,
    id: u16,
    remote: IpAddr,
    socket: SocketId,
    began: Instant,
    touched: Instant,
    /// Whether its socket keeps what it sends whole; `None`: it was not told.
    whole: Option<bool>,
}

impl Pings {
    /// None.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            flows: Slab::new(),
            by_ends: HashMap::new(),
            by_socket: HashMap::new(),
            of_plug: HashMap::new(),
            deadlines: Wheel::new(now),
            expired: Vec::new(),
            forbidden: false,
            refused: false,
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
        }
    }

    /// How many flows there are; `None` where the host allows none.
    pub(crate) fn len(&self) -> Option<usize> {
        (!self.forbidden).then_some(self.flows.len())
    }

    /// The flows as they are shown.
    pub(crate) fn states(&self, now: Instant) -> impl Iterator<Item = FlowState> {
        self.flows.iter().map(move |(_, flow)| {
            let guest = SocketAddr::new(flow.guest, flow.id);
            let remote = SocketAddr::new(flow.remote, 0);
            FlowState {
                outbound: true,
                state: FlowPhase::Open,
                ..FlowState::new(FlowKind::Ping, guest, remote, now, flow.began)
            }
        })
    }

    /// Looks whether the host allows ping sockets.
    pub(crate) fn check(&mut self, edge: &mut dyn Edge) {
        if let Ok(socket) = self.socket(edge, true) {
            edge.close(socket);
        }
    }

    /// Opens a ping socket.
    fn socket(&mut self, edge: &mut dyn Edge, ipv4: bool) -> io::Result<SocketId> {
        let socket = edge.ping_open(ipv4);
        self.forbidden =
            matches!(&socket, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
        socket
    }

    /// Whether a host socket is one of these.
    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.by_socket.contains_key(&socket)
    }

    /// What was in the way of a guest's ping and still is, with the next step. (Most guests never ping.)
    pub(crate) fn warning(&self) -> Option<&'static str> {
        (self.refused && self.forbidden).then_some(FORBIDDEN)
    }

    /// Sends a guest's ping on to an address that is none of the gateway's, in a packet whose hop limit is more
    /// than one.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub(crate) fn handle_request(
        &mut self,
        cx: &mut Context<'_>,
        (plug, mac): (PlugId, MacAddr),
        packet: &IpPacket<'_>,
        ping: Ping<'_>,
    ) -> Result<(), Refusal> {
        let (guest, remote) = (packet.source, packet.destination);
        // Answers go to a guest's address: link-local ones have no meaning here.
        if cx.guests.by_address(guest).is_none_or(|owner| owner.plug != plug) {
            return Err(Refusal::silent("icmp-source-address"));
        }
        let ends = (guest, ping.id, remote);
        let key = match self.by_ends.get(&ends) {
            Some(key) => *key,
            None => self.open(cx, (plug, mac), ends)?,
        };
        let Some(flow) = self.flows.get_mut(key as usize) else { return Ok(()) };
        flow.touched = cx.now;
        self.deadlines.set(key, Some(cx.now + LIFETIME));
        let whole = packet.stays_whole();
        if flow.whole != Some(whole) && cx.edge.set_whole(flow.socket, whole).is_ok() {
            flow.whole = Some(whole);
        }
        let Ping { seq, data, .. } = ping;
        let mut message = Vec::new();
        // The kernel puts the socket's identifier there.
        Icmp::EchoRequest { id: 0, seq, data }.emit(guest.is_ipv4(), &mut message);
        let to = (flow.socket, SocketAddr::new(remote, 0));
        let hop_limit = Some(packet.hop_limit.saturating_sub(1));
        let flow = *flow;
        sending::send(cx, &REASONS, to, hop_limit, &message, &mut |cx, error| {
            report(cx, &flow, error);
        })
    }

    /// Opens a flow that a guest wants.
    fn open(
        &mut self,
        cx: &mut Context<'_>,
        (plug, mac): (PlugId, MacAddr),
        ends: Ends,
    ) -> Result<u32, Refusal> {
        let (guest, id, remote) = ends;
        let to = SocketAddr::new(remote, 0);
        if let Decision::Deny(_) = cx.policy.decide_out(cx.now, Protocol::Icmp, guest, to) {
            return Err(if cx.config.is_local(remote) {
                Refusal::told("icmp-no-such-guest", IcmpError::HostUnreachable)
            } else {
                Refusal::told("icmp-policy", IcmpError::Prohibited)
            });
        }
        self.make_room(cx, plug);
        let socket = self.socket(cx.edge, guest.is_ipv4());
        if self.forbidden && !self.refused {
            tracing::warn!("{FORBIDDEN}");
        }
        self.refused = self.forbidden;
        let socket = socket.map_err(|_| match self.forbidden {
            true => Refusal::told("icmp-ping-group-range", IcmpError::Prohibited),
            false => Refusal::silent("icmp-no-socket"),
        })?;
        let (began, touched) = (cx.now, cx.now);
        let flow = Flow { plug, mac, guest, id, remote, socket, began, touched, whole: None };
        let key = u32::try_from(self.flows.insert(flow)).unwrap_or(u32::MAX);
        self.by_ends.insert(ends, key);
        self.by_socket.insert(socket, key);
        self.of_plug.entry(plug).or_default().push(key);
        Ok(key)
    }

    /// Ends the flow of a guest that was still for the longest time, if it has too many.
    fn make_room(&mut self, cx: &mut Context<'_>, plug: PlugId) {
        let of_plug = self.of_plug.get(&plug).map(Vec::as_slice).unwrap_or_default();
        if of_plug.len() < FLOWS_PER_GUEST {
            return;
        }
        let touched = |key: &u32| self.flows.get(*key as usize).map(|flow| flow.touched);
        if let Some(key) = of_plug.iter().copied().min_by_key(touched) {
            self.end(cx, key);
        }
    }

    /// Handles readiness of a host socket.
    pub(crate) fn handle_socket(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        ready: Readiness,
    ) {
        let key = self.by_socket.get(&socket).copied();
        let Some(flow) = key.and_then(|key| self.flows.get(key as usize)).copied() else { return };
        let mut tell = |cx: &mut Context<'_>, error: &DatagramError| report(cx, &flow, error);
        if ready.error {
            take_reports(cx, socket, &mut tell);
        }
        let mut failed = false;
        // More than that are no answers to what the guest has just asked: they may be late.
        for _ in 0..RECEIVE_BUDGET {
            match cx.edge.ping_recv(socket, &mut self.buffer) {
                Ok(echoed) => {
                    failed = false;
                    let message = self.buffer.get(..echoed.len).unwrap_or_default();
                    match Icmp::parse_echo(flow.guest.is_ipv4(), message) {
                        Some(Icmp::EchoReply { seq, data, .. }) if echoed.from == flow.remote => {
                            answer(cx, &flow, onward(echoed.hop_limit), seq, data);
                        }
                        _ => cx.counters.drop("icmp-filtered"),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A pending error stands before the answers once; what stays is the socket's end.
                Err(_) if take_reports(cx, socket, &mut tell).count == 0 && failed => break,
                Err(_) => failed = true,
            }
        }
    }

    /// Ends flows whose time is over.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        let mut expired = std::mem::take(&mut self.expired);
        self.deadlines.expire(cx.now, &mut expired);
        for key in expired.drain(..) {
            self.end(cx, key);
        }
        self.expired = expired;
    }

    /// When [`Pings::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Ends all flows of a guest that was unplugged.
    pub(crate) fn remove_guest(&mut self, cx: &mut Context<'_>, plug: PlugId) {
        for key in self.of_plug.remove(&plug).unwrap_or_default() {
            self.end(cx, key);
        }
    }

    /// Ends the flows to the outside that the policy does not allow any more.
    pub(crate) fn end_refused(&mut self, cx: &mut Context<'_>) {
        let refused = self.flows.iter().filter(|(_, flow)| {
            let to = SocketAddr::new(flow.remote, 0);
            !cx.policy.permits_open(Protocol::Icmp, flow.guest, to)
        });
        let refused: Vec<u32> = refused.filter_map(|(key, _)| u32::try_from(key).ok()).collect();
        for key in refused {
            self.end(cx, key);
        }
    }

    fn end(&mut self, cx: &mut Context<'_>, key: u32) {
        let Some(flow) = self.flows.try_remove(key as usize) else { return };
        self.deadlines.set(key, None);
        self.by_ends.remove(&(flow.guest, flow.id, flow.remote));
        self.by_socket.remove(&flow.socket);
        if let Some(keys) = self.of_plug.get_mut(&flow.plug) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.of_plug.remove(&flow.plug);
            }
        }
        cx.edge.close(flow.socket);
    }
}

/// Passes the answer to a ping on to who has asked.
fn answer(cx: &mut Context<'_>, flow: &Flow, hop_limit: u8, seq: u16, data: &[u8]) {
    let message = Icmp::EchoReply { id: flow.id, seq, data };
    let ours = cx.config.gateway_mac;
    let (from, to) = (flow.remote, flow.guest);
    let offload = build::icmp_frame(cx.scratch, ours, flow.mac, from, to, hop_limit, &message);
    cx.transmit_cut(flow.plug, offload);
}

/// Passes on what was reported about a ping.
fn report(cx: &mut Context<'_>, flow: &Flow, error: &DatagramError) {
    let quoted = Icmp::parse_echo(flow.guest.is_ipv4(), &error.quoted);
    let Some(Icmp::EchoRequest { seq, data, .. }) = quoted else {
        cx.counters.drop("icmp-report-without-ping");
        return;
    };
    let ping = Icmp::EchoRequest { id: flow.id, seq, data };
    let (gateway, guest, remote) = (cx.config.gateway_mac, flow.guest, flow.remote);
    let mut frame = Vec::new();
    build::icmp_frame(&mut frame, flow.mac, gateway, guest, remote, 1, &ping);
    let original = frame.get(ethernet::HEADER_LEN..).unwrap_or_default();
    pass_on(cx, (flow.plug, flow.mac), error, (guest, remote), original);
}

#[cfg(test)]
mod tests {
    use netyard_wire::ethernet::Ethernet;
    use netyard_wire::{Checksum, FrameBuf};

    use super::*;
    use crate::fake::{Bench, FakeSocket, GUEST_MAC, PLUG, guest};

    const REMOTES: [&str; 2] = ["198.51.100.1", "2001:db8::1"];
    const READABLE: Readiness = Readiness {
        readable: true,
        writable: false,
        read_closed: false,
        hangup: false,
        error: true,
    };

    struct World {
        bench: Bench,
        pings: Pings,
    }

    impl World {
        fn new() -> Self {
            let bench = Bench::new();
            Self { pings: Pings::new(bench.now), bench }
        }

        /// The guest pings; whether that goes anywhere.
        fn ping(&mut self, to: IpAddr, id: u16, seq: u16, hop_limit: u8) -> Result<(), Refusal> {
            let source = match to {
                IpAddr::V4(_) => guest().address4.into(),
                IpAddr::V6(_) => guest().address6.into(),
            };
            let (mut bytes, mac) = (Vec::new(), self.bench.config.gateway_mac);
            let message = Icmp::EchoRequest { id, seq, data: b"data" };
            build::icmp_frame(&mut bytes, GUEST_MAC, mac, source, to, hop_limit, &message);
            let (ethernet, packet) = Ethernet::parse(&bytes).unwrap();
            let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
            let ping = Ping { id, seq, data: b"data" };
            let pings = &mut self.pings;
            self.bench.with(|cx| pings.handle_request(cx, (PLUG, GUEST_MAC), &packet, ping))
        }

        fn only_socket(&mut self) -> (SocketId, &mut FakeSocket) {
            assert_eq!(self.bench.edge.sockets.len(), 1);
            let (id, socket) = self.bench.edge.sockets.iter_mut().next().unwrap();
            (*id, socket)
        }

        fn ready(&mut self) {
            let (id, _) = self.only_socket();
            assert!(self.pings.owns(id));
            let pings = &mut self.pings;
            self.bench.with(|cx| pings.handle_socket(cx, id, READABLE));
        }

        /// Something arrives at the only socket, whose identifier is 999.
        fn arrive(&mut self, from: IpAddr, message: &Icmp<'_>) {
            let mut bytes = Vec::new();
            message.emit(from.is_ipv4(), &mut bytes);
            self.only_socket().1.inbox.push_back((SocketAddr::new(from, 0), bytes));
            self.ready();
        }

        fn pass(&mut self, time: Duration) {
            self.bench.pass(time);
            let pings = &mut self.pings;
            self.bench.with(|cx| pings.handle_timeout(cx));
        }

        fn frames(&mut self) -> Vec<FrameBuf> {
            self.bench.edge.frames.drain(..).map(|(_, frame)| frame).collect()
        }
    }

    fn packet(frame: &FrameBuf) -> IpPacket<'_> {
        let (ethernet, packet) = Ethernet::parse(&frame.bytes).unwrap();
        assert_eq!(ethernet.destination, GUEST_MAC);
        IpPacket::parse(ethernet.ethertype, packet).unwrap()
    }

    #[test]
    fn pings_leave_and_their_answers_come_back_under_the_guests_identifier() {
        for remote in REMOTES.map(|remote| remote.parse().unwrap()) {
            let mut world = World::new();
            for seq in [1, 2] {
                world.ping(remote, 7, seq, 9).unwrap();
                let (_, socket) = world.only_socket();
                let (to, hop_limit, bytes) = socket.sent.pop_front().unwrap();
                assert_eq!((to, hop_limit), (SocketAddr::new(remote, 0), Some(8)));
                let sent = Icmp::parse_echo(remote.is_ipv4(), &bytes);
                assert_eq!(sent, Some(Icmp::EchoRequest { id: 0, seq, data: b"data" }));
                socket.hop_limit = Some(57);
                world.arrive(remote, &Icmp::EchoReply { id: 999, seq, data: b"data" });
                let frames = world.frames();
                let [frame] = &frames[..] else { panic!("{frames:?}") };
                let packet = packet(frame);
                assert_eq!((packet.source, packet.hop_limit), (remote, 56));
                let answer = Icmp::parse(&packet, Checksum::Present).unwrap();
                assert_eq!(answer, Icmp::EchoReply { id: 7, seq, data: b"data" });
            }
            assert_eq!(world.pings.len(), Some(1));
            assert!(world.bench.counters.all().is_empty());
        }
    }

    #[test]
    fn what_is_no_answer_of_who_was_asked_does_not_get_in() {
        let mut world = World::new();
        let remote: IpAddr = REMOTES[0].parse().unwrap();
        world.ping(remote, 7, 1, 64).unwrap();
        let other = "198.51.100.2".parse().unwrap();
        world.arrive(other, &Icmp::EchoReply { id: 999, seq: 1, data: b"data" });
        world.arrive(remote, &Icmp::EchoRequest { id: 999, seq: 1, data: b"data" });
        world.arrive(remote, &Icmp::TimeExceeded { code: 0, original: &[] });
        assert!(world.frames().is_empty());
        assert_eq!(world.bench.counters.of("icmp-filtered"), 3);
    }

    #[test]
    fn what_is_reported_about_a_ping_quotes_it() {
        for (remote, router) in [(REMOTES[0], "198.18.0.1"), (REMOTES[1], "2001:db8:9::1")] {
            let (remote, router): (IpAddr, IpAddr) =
                (remote.parse().unwrap(), router.parse().unwrap());
            let mut world = World::new();
            world.ping(remote, 7, 3, 2).unwrap();
            let to = SocketAddr::new(remote, 0);
            let mut error = DatagramError::reported(IcmpError::TimeExceeded, to, router);
            error.hop_limit = Some(63);
            let ping = Icmp::EchoRequest { id: 999, seq: 3, data: b"data" };
            ping.emit(remote.is_ipv4(), &mut error.quoted);
            world.only_socket().1.errors.push_back(error.clone());
            error.quoted.truncate(7);
            world.only_socket().1.errors.push_back(error);
            world.ready();
            assert_eq!(world.bench.counters.of("icmp-report-without-ping"), 1);
            let frames = world.frames();
            let [frame] = &frames[..] else { panic!("{frames:?}") };
            let packet = packet(frame);
            assert_eq!((packet.source, packet.hop_limit), (router, 62));
            let message = Icmp::parse(&packet, Checksum::Present).unwrap();
            let Icmp::TimeExceeded { code: 0, original } = message else { panic!("{message:?}") };
            let original = IpPacket::parse_bare(original).unwrap();
            assert_eq!((original.source, original.destination), (packet.destination, remote));
            let quoted = Icmp::parse(&original, Checksum::Present).unwrap();
            assert_eq!(quoted, Icmp::EchoRequest { id: 7, seq: 3, data: b"data" });
        }
    }

    #[test]
    fn what_may_not_leave_does_not_and_is_told() {
        let mut world = World::new();
        for (to, reason, error) in [
            ("192.168.127.77", "icmp-no-such-guest", IcmpError::HostUnreachable),
            ("203.0.113.7", "icmp-policy", IcmpError::Prohibited),
            ("169.254.169.254", "icmp-policy", IcmpError::Prohibited),
            ("::1", "icmp-policy", IcmpError::Prohibited),
        ] {
            let refused = world.ping(to.parse().unwrap(), 1, 1, 64);
            assert_eq!(refused, Err(Refusal::told(reason, error)), "{to}");
        }
        assert!(world.bench.edge.sockets.is_empty());
        world.bench.edge.no_pings = true;
        world.pings.check(&mut world.bench.edge);
        assert_eq!((world.pings.warning(), world.pings.len()), (None, None), "nobody has met it");
        let remote = REMOTES[0].parse().unwrap();
        let refused = Refusal::told("icmp-ping-group-range", IcmpError::Prohibited);
        assert_eq!(world.ping(remote, 1, 1, 64), Err(refused));
        assert!(world.pings.warning().unwrap().contains("net.ipv4.ping_group_range"));
        assert_eq!(world.pings.len(), None);
        // An administrator has helped.
        world.bench.edge.no_pings = false;
        world.pings.check(&mut world.bench.edge);
        assert_eq!((world.pings.warning(), world.pings.len()), (None, Some(0)));
        assert!(world.bench.edge.sockets.is_empty());
        world.ping(remote, 1, 1, 64).unwrap();
    }

    #[test]
    fn flows_end_when_they_are_still_and_are_bounded() {
        let mut world = World::new();
        let remote: IpAddr = REMOTES[0].parse().unwrap();
        let most = u16::try_from(FLOWS_PER_GUEST).unwrap();
        for id in 0..most {
            world.ping(remote, id, 1, 64).unwrap();
            world.pass(Duration::from_millis(1));
        }
        // The first is used again, so the second is the one that leaves.
        world.ping(remote, 0, 2, 64).unwrap();
        world.ping(remote, most, 1, 64).unwrap();
        assert_eq!(world.bench.edge.sockets.len(), FLOWS_PER_GUEST);
        let ends = |id| (IpAddr::from(guest().address4), id, remote);
        assert!(world.pings.by_ends.contains_key(&ends(0)));
        assert!(!world.pings.by_ends.contains_key(&ends(1)));
        world.pass(LIFETIME - Duration::from_millis(1));
        assert_eq!(world.pings.len(), Some(2), "the last two to be used");
        world.pass(Duration::from_millis(2));
        assert_eq!((world.pings.len(), world.bench.edge.sockets.len()), (Some(0), 0));
        assert_eq!(world.pings.poll_timeout(), None);
        world.ping(remote, 7, 1, 64).unwrap();
        let pings = &mut world.pings;
        world.bench.with(|cx| pings.remove_guest(cx, PLUG));
        assert_eq!((world.pings.len(), world.bench.edge.sockets.len()), (Some(0), 0));
    }
}
