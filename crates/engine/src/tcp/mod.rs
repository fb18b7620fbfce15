//! TCP between guests and host streams, by translation.
//!
//! # Theory of operation
//!
//! A guest's connection is joined to one host stream. The gateway speaks TCP to the guest, the
//! host's kernel speaks TCP to the world; no payload is kept in between but one bounded slice:
//!
//! * *guest to host*: payload goes from the frame to the host socket with one send. What the socket
//!   does not take waits in the flow's bounded slice, and the window offered follows the socket's
//!   room, so nothing accepted is ever thrown away ([`receiver`]).
//! * *host to guest*: the receive queue of the host socket is the retransmit buffer. Data is peeked
//!   into a frame, and taken off the queue when the guest acknowledges it ([`sender`]).
//!
//! A connection of a guest is answered when the host's connect has finished, so the guest sees the
//! true outcome. A connection from the host is accepted by the kernel and its data held until a
//! guest answers ([`inbound`], [`open`]); some go without frames ([`splice`]), and some begin with a header of ours ([`preamble`]). A connection to the gateway's own DNS server is joined to a pair of
//! streams, whose other end the server reads ([`local`]), and so is one to a service whose requests are
//! answered here.
//!
//! Work is done in batches: a segment or a readiness event marks its flow, [`Tcp::flush`] then
//! drops what was acknowledged, sends what the windows allow and acknowledges what arrived, once
//! per flow and batch. There is no sweep over all flows; deadlines sit in a timing wheel.

mod assembler;
mod flow;
mod inbound;
mod local;
mod memory;
mod open;
mod preamble;
mod receiver;
mod segments;
mod sender;
mod share;
mod splice;
mod unreachable;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hasher as _;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netyard_wire::icmp::IcmpError;
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::{Flags, Segment};
use netyard_wire::{MAX_FRAME_LEN, MacAddr, SeqNumber};
use rand::RngExt as _;
use siphasher::sip::SipHasher13;
use slab::Slab;

use self::flow::{Flow, Key, Origin, Phase, answering_ack, length_of, mss_of};
use self::inbound::{FIRST_PORT, Listener};
pub(crate) use self::inbound::{ListenerId, ListenerTarget};
use self::local::Local;
use self::memory::Memory;
pub use self::open::DialId;
pub(crate) use self::open::Target;
use self::receiver::{Placed, Receiver};
use self::segments::{Reply, probe, send_ack, send_piece, send_syn};
use self::sender::{Acked, Sender};
use self::share::Shares;
use crate::context::Context;
use crate::control::{FlowState, Spliced};
use crate::dns::{self, Client, Transport};
use crate::edge::{PlugId, Readiness, SocketId};
use crate::icmp;
use crate::policy::rules::What;
use crate::policy::{Comer, Decision, Protocol};
use crate::sending::Refusal;
use crate::service::{ServiceId, Services, TurnKey};
use crate::wheel::Wheel;

/// Frames sent for one flow before the others get their turn.
const BURST: usize = 4;
/// Most flows of one network. Each costs a host descriptor, of which there are fewer as a rule.
const MAX_FLOWS: usize = 256 * 1024;
/// RFC 9293 3.8.4 wants at least two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(2 * 60 * 60);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(75);
const KEEPALIVE_TRIES: u32 = 5;
/// How much longer than its retransmission timer a guest that connects may be silent.
const CONNECT_GRACE: Duration = Duration::from_secs(4);

/// What the table tells its owner.
#[derive(Debug)]
pub(crate) enum TcpEvent {
    /// A `dial` is open, or has failed with this reason.
    Dialed(DialId, Result<(), String>),
    /// A guest has connected to a service whose requests are answered here; the socket is the other
    /// end of its stream.
    Entered {
        /// The service.
        service: ServiceId,
        /// Who.
        client: SocketAddr,
        /// To be read by who answers.
        socket: SocketId,
    },
}

/// Who reads a socket.
#[derive(Debug, Clone, Copy)]
enum Owner {
    Flow(u32),
    /// The socket inside of a flow that is spliced.
    Inside(u32),
    Listener(u32),
}

/// All TCP flows and listeners of one network.
#[derive(Debug)]
pub(crate) struct Tcp {
    flows: Slab<Flow>,
    by_key: HashMap<Key, u32>,
    by_socket: HashMap<SocketId, Owner>,
    listeners: Slab<Listener>,
    /// Flows whose SYN to a guest is unanswered.
    opening: BTreeSet<u32>,
    local: Local,
    /// What was spliced, for each plug.
    spliced: HashMap<PlugId, Spliced>,
    shares: Shares,
    memory: Memory,
    wheel: Wheel,
    /// Flows with work for [`Tcp::flush`].
    dirty: Vec<u32>,
    /// Where frames are built: headers in front, payload peeked behind.
    frame: Vec<u8>,
    expired: Vec<u32>,
    events: VecDeque<TcpEvent>,
    /// Key and clock of initial sequence numbers (RFC 6528).
    secret: (u64, u64),
    epoch: Instant,
    next_port: u16,
    next_dial: u64,
}

impl Tcp {
    pub(crate) fn new(now: Instant, secret: (u64, u64)) -> Self {
        Self {
            flows: Slab::new(),
            by_key: HashMap::new(),
            by_socket: HashMap::new(),
            listeners: Slab::new(),
            opening: BTreeSet::new(),
            local: Local::default(),
            spliced: HashMap::new(),
            shares: Shares::new(),
            memory: Memory::default(),
            wheel: Wheel::new(now),
            dirty: Vec::new(),
            frame: vec![0; MAX_FRAME_LEN],
            expired: Vec::new(),
            events: VecDeque::new(),
            secret,
            epoch: now,
            next_port: FIRST_PORT,
            next_dial: 0,
        }
    }

    /// How many descriptors there are for everything.
    pub(crate) fn set_descriptors(&mut self, descriptors: usize) {
        self.shares.set_descriptors(descriptors);
    }

    /// Flows that are open or opening.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// The flows as they are shown.
    pub(crate) fn states(&self, now: Instant) -> impl Iterator<Item = FlowState> {
        self.flows.iter().map(move |(_, flow)| flow.state(now))
    }

    /// True if events of this socket belong here.
    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.by_socket.contains_key(&socket)
    }

    pub(crate) fn poll_event(&mut self) -> Option<TcpEvent> {
        self.events.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// Handles a segment that a guest sent to somebody who is not a guest. If it opens a
    /// connection to the gateway's DNS server, returns who asks there.
    pub(crate) fn handle_segment(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        plug: PlugId,
        mac: MacAddr,
        ip: &IpPacket<'_>,
        segment: &Segment<'_>,
    ) -> Option<Client> {
        let key = Key {
            guest: SocketAddr::new(ip.source, segment.source_port),
            remote: SocketAddr::new(ip.destination, segment.destination_port),
        };
        let Some(index) = self.by_key.get(&key).copied() else {
            if ip.hop_limit <= 1 && !cx.config.is_local(ip.destination) {
                let refusal = Refusal::told("hop-limit", IcmpError::TimeExceeded);
                icmp::refuse(cx, plug, mac, ip, refusal);
                return None;
            }
            return self.handle_stranger(cx, services, plug, mac, key, segment);
        };
        let flow = self.flows.get_mut(index as usize)?;
        if flow.plug != plug {
            cx.counters.drop("spoofed-ip");
            return None;
        }
        flow.keepalive_at = cx.now + KEEPALIVE_IDLE;
        flow.keepalives = 0;
        match flow.phase {
            Phase::Connecting => {
                if segment.flags.contains(Flags::RST) {
                    let socket = flow.socket;
                    cx.edge.reset(socket);
                    self.forget(index, services);
                } else {
                    // The next SYN comes after as long again (RFC 6298 section 5.5).
                    let waited = cx.now.saturating_duration_since(flow.began);
                    flow.keepalive_at = cx.now + waited + CONNECT_GRACE;
                    self.schedule(index);
                }
            }
            Phase::SynReceived => self.handle_handshake(cx, services, index, segment),
            Phase::SynSent => self.handle_answer(cx, services, index, segment),
            Phase::Open => self.handle_open(cx, services, index, segment),
        }
        None
    }

    /// A segment of no flow: a new connection, or a reset (RFC 9293 3.10.7.1).
    fn handle_stranger(
        &mut self,
        cx: &mut Context<'_>,
        services: &Services,
        plug: PlugId,
        mac: MacAddr,
        key: Key,
        segment: &Segment<'_>,
    ) -> Option<Client> {
        if segment.flags.contains(Flags::RST) {
            return None;
        }
        if !segment.flags.contains(Flags::SYN) || segment.flags.contains(Flags::ACK) {
            self.refuse(cx, plug, mac, key, segment);
            return None;
        }
        if self.flows.len() >= MAX_FLOWS {
            cx.counters.drop("tcp-flows-full");
            self.refuse(cx, plug, mac, key, segment);
            return None;
        }
        let local = cx.config.is_gateway(key.remote.ip()) && key.remote.port() == dns::PORT;
        let service = entered(cx, services, key.remote);
        let (origin, opened) = if local {
            (Origin::Local, self.local.open(cx, plug).map(|(near, far)| (near, Some(far))))
        } else if self.shares.take(plug) {
            let opened = match service {
                Some(_) => cx.edge.stream_pair().ok().map(|(near, far)| (near, Some(far))),
                None => connect(cx, key, (plug, mac), segment.seq).map(|socket| (socket, None)),
            };
            if opened.is_none() {
                self.shares.give_back(plug);
            }
            (Origin::Guest, opened)
        } else {
            cx.counters.drop("tcp-share-used");
            (Origin::Guest, None)
        };
        let Some((socket, server)) = opened else {
            self.refuse(cx, plug, mac, key, segment);
            return None;
        };
        let iss = self.initial_sequence(cx.now, key);
        let our_mss = mss_of(cx.config.mtu, key.guest.ip());
        let mut sender = Sender::new(iss, our_mss);
        sender.negotiate(segment, our_mss);
        let mut receiver = Receiver::new(segment.seq);
        receiver.scaled = segment.options.window_scale.is_some();
        receiver.sack = segment.options.sack_permitted;
        let flow = Flow {
            key,
            plug,
            mac,
            socket,
            phase: Phase::Connecting,
            sender,
            receiver,
            readable: false,
            ended: false,
            writable: false,
            shut: false,
            discard: 0,
            dirty: false,
            blocked_until: None,
            keepalive_at: cx.now + CONNECT_GRACE,
            keepalives: 0,
            ip_id: cx.rng.random(),
            opening: None,
            preamble: None,
            splice: None,
            turn: None,
            origin,
            client: None,
            held: 0,
            began: cx.now,
        };
        let deadline = flow.deadline();
        let index = key_of(self.flows.insert(flow));
        self.by_key.insert(key, index);
        self.by_socket.insert(socket, Owner::Flow(index));
        self.wheel.set(index, deadline);
        if let (Some(service), Some(socket)) = (service, server) {
            self.events.push_back(TcpEvent::Entered { service, client: key.guest, socket });
            return None;
        }
        server.map(|server| Client {
            plug: Some(plug),
            source: key.guest,
            destination: key.remote,
            transport: Transport::Stream(server),
        })
    }

    /// The guest's answer to our SYN-ACK.
    fn handle_handshake(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
        segment: &Segment<'_>,
    ) {
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        if segment.flags.contains(Flags::RST) {
            if segment.seq == flow.receiver.next {
                let socket = flow.socket;
                cx.edge.reset(socket);
                self.forget(index, services);
            }
            return;
        }
        if segment.flags.contains(Flags::SYN) {
            // Our SYN-ACK was lost.
            send_syn(cx, flow, &mut self.frame);
            return;
        }
        if !segment.flags.contains(Flags::ACK) {
            return;
        }
        if segment.ack != flow.sender.next {
            let (plug, mac, key) = (flow.plug, flow.mac, flow.key);
            self.refuse(cx, plug, mac, key, segment);
            return;
        }
        flow.phase = Phase::Open;
        flow.sender.open(cx.now, segment);
        flow.blocked_until = None;
        self.handle_open(cx, services, index, segment);
        self.mark(index);
    }

    /// The guest's answer to our SYN (RFC 9293 3.10.7.3).
    fn handle_answer(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
        segment: &Segment<'_>,
    ) {
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        if !segment.flags.contains(Flags::ACK) || segment.ack != flow.sender.next {
            if !segment.flags.contains(Flags::RST) && segment.flags.contains(Flags::ACK) {
                let (plug, mac, key) = (flow.plug, flow.mac, flow.key);
                self.refuse(cx, plug, mac, key, segment);
            }
            return;
        }
        if segment.flags.contains(Flags::RST) {
            self.next_attempt(cx, services, index);
            return;
        }
        if !segment.flags.contains(Flags::SYN) {
            return;
        }
        let our_mss = mss_of(cx.config.mtu, flow.key.guest.ip());
        flow.sender.negotiate(segment, our_mss);
        flow.sender.open(cx.now, segment);
        flow.receiver = Receiver::new(segment.seq);
        flow.receiver.scaled = segment.options.window_scale.is_some();
        flow.receiver.sack = segment.options.sack_permitted;
        flow.receiver.ack_due = true;
        self.opened(services, index);
    }

    /// The guest has answered a connection from the host.
    fn opened(&mut self, services: &mut Services, index: u32) {
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        flow.phase = Phase::Open;
        flow.readable = true;
        flow.writable = true;
        if let Some(turn) = flow.turn {
            services.opened(turn);
        }
        let dialed = flow.opening.take().and_then(|opening| opening.dial);
        if let Some((dial, _)) = dialed {
            self.events.push_back(TcpEvent::Dialed(dial, Ok(())));
        }
        self.opening.remove(&index);
        self.mark(index);
    }

    /// RFC 9293 3.10.7.4, for every state from ESTABLISHED on.
    fn handle_open(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
        segment: &Segment<'_>,
    ) {
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        let acceptable = flow.receiver.acceptable(segment.seq, length_of(segment));
        if segment.flags.contains(Flags::RST) {
            // RFC 5961 section 3.2: exactly in order, or it is asked again.
            if segment.seq == flow.receiver.next {
                let socket = flow.socket;
                cx.edge.reset(socket);
                self.forget(index, services);
            } else if acceptable {
                self.acknowledge(cx, index);
            }
            return;
        }
        // RFC 5961 section 4.2: a SYN never ends an open connection.
        if !acceptable || segment.flags.contains(Flags::SYN) {
            // A probe of a window that is closed lies just outside of it; its acknowledgement
            // number counts all the same.
            if segment.flags.contains(Flags::ACK) && !segment.flags.contains(Flags::SYN) {
                self.take_ack(cx, index, segment);
            }
            self.acknowledge(cx, index);
            return;
        }
        if !segment.flags.contains(Flags::ACK) {
            cx.counters.drop("tcp-without-ack");
            return;
        }
        if !self.take_ack(cx, index, segment) {
            self.acknowledge(cx, index);
            return;
        }
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        let fin = segment.flags.contains(Flags::FIN);
        if segment.payload.is_empty() && !fin {
            self.mark(index);
            return;
        }
        let gap_before = !flow.receiver.ahead.is_empty();
        let mut broken = false;
        let mut in_order = false;
        let may_hold = self.memory.allows(flow.plug);
        match flow.receiver.place(segment.seq, segment.payload, fin, may_hold) {
            Placed::InOrder(bytes) => {
                let delivered = deliver(cx, flow, bytes, may_hold);
                broken = delivered.is_err();
                in_order = delivered.unwrap_or(false);
                if !in_order && !broken {
                    cx.counters.drop("tcp-memory");
                }
                // What is here already takes no more room where it goes now.
                while in_order
                    && !broken
                    && let Some(bytes) = flow.receiver.ahead.take(flow.receiver.next)
                {
                    broken = deliver(cx, flow, &bytes, true).is_err();
                }
            }
            Placed::Elsewhere => {}
            Placed::Refused if !may_hold => cx.counters.drop("tcp-memory"),
            Placed::Refused => cx.counters.drop("tcp-outside-window"),
        }
        if broken {
            self.abort(cx, services, index);
            return;
        }
        if flow.receiver.finish() && flow.receiver.pending.is_empty() {
            shut(cx, flow);
        }
        if in_order && !fin {
            flow.receiver.owe(cx.now, flow.sender.mss);
        } else {
            flow.receiver.ack_due = true;
        }
        // RFC 5681 section 4.2: at once when there is or was a gap, one for each segment.
        if gap_before || !flow.receiver.ahead.is_empty() {
            self.acknowledge(cx, index);
        }
        self.mark(index);
    }

    /// Handles the acknowledgement of a segment. False if it acknowledges what was never sent.
    fn take_ack(&mut self, cx: &mut Context<'_>, index: u32, segment: &Segment<'_>) -> bool {
        let Some(flow) = self.flows.get_mut(index as usize) else { return true };
        let carries = length_of(segment) > 0;
        match flow.sender.on_ack(cx.now, segment, carries) {
            Acked::Unsent => false,
            Acked::Bytes(count) => {
                flow.acknowledge(count);
                self.mark(index);
                true
            }
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
        let index = match self.by_socket.get(&socket) {
            Some(Owner::Flow(index)) => *index,
            Some(Owner::Listener(index)) => return self.accept(cx, services, *index),
            Some(Owner::Inside(index)) => return self.handle_inside(cx, services, *index, ready),
            None => return,
        };
        if self.handle_client(cx, index, ready) {
            return;
        }
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        if flow.phase == Phase::Connecting {
            if !ready.writable && !ready.error && !ready.hangup {
                return;
            }
            if let Err(error) = cx.edge.take_error(socket) {
                if let Some(error) = unreachable::error_of(&error) {
                    let syn = SeqNumber(flow.receiver.next.0.wrapping_sub(1));
                    unreachable::report(cx, flow.key, (flow.plug, flow.mac), syn, error);
                }
                self.abort(cx, services, index);
                return;
            }
            flow.phase = Phase::SynReceived;
            // Its patience was about the host's answer, which is here.
            flow.keepalive_at = cx.now + KEEPALIVE_IDLE;
            flow.ended = ready.read_closed || ready.hangup;
            flow.readable = true;
            flow.writable = true;
            flow.receiver.offer(cx.edge.send_room(socket));
            send_syn(cx, flow, &mut self.frame);
            flow.sender.syn_sent(cx.now, true);
            flow.blocked_until = Some(cx.now + flow.sender.rto());
            self.schedule(index);
            return;
        }
        flow.ended |= ready.read_closed || ready.hangup;
        if ready.error && cx.edge.take_error(socket).is_err() {
            self.abort(cx, services, index);
            return;
        }
        if ready.hangup && flow.phase == Phase::SynSent {
            // The client has gone before anybody answered.
            self.abort(cx, services, index);
            return;
        }
        if ready.readable || ready.read_closed || ready.hangup {
            flow.readable = true;
        }
        if ready.writable {
            flow.writable = true;
            if drain(cx, flow).is_err() {
                self.abort(cx, services, index);
                return;
            }
        }
        if flow.phase == Phase::Open {
            self.mark(index);
        }
    }

    /// Does what is due. Call [`Tcp::flush`] after.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>, services: &mut Services) {
        let mut expired = std::mem::take(&mut self.expired);
        self.wheel.expire(cx.now, &mut expired);
        for index in expired.drain(..) {
            self.handle_deadline(cx, services, index);
        }
        self.expired = expired;
    }

    fn handle_deadline(&mut self, cx: &mut Context<'_>, services: &mut Services, index: u32) {
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        if flow.phase == Phase::Connecting && flow.keepalive_at <= cx.now {
            // The guest asks no more, so it waits no more.
            cx.edge.reset(flow.socket);
            self.forget(index, services);
            return;
        }
        if flow.phase == Phase::SynSent {
            let Some(opening) = &mut flow.opening else { return };
            if opening.overdue(cx.now) {
                self.next_attempt(cx, services, index);
                return;
            }
            if opening.retry_due(cx.now) {
                opening.retried(cx.now);
                if flow.splice.is_some() {
                    self.retry_inside(cx, services, index);
                } else {
                    flow.sender.syn_sent(cx.now, false);
                    send_syn(cx, flow, &mut self.frame);
                }
            }
            self.schedule(index);
            return;
        }
        if flow.blocked_until.is_some_and(|at| at <= cx.now) {
            flow.blocked_until = None;
            if flow.phase == Phase::SynReceived {
                // The same clock as for data, RFC 6298: doubled each time, then given up.
                if flow.keepalives >= KEEPALIVE_TRIES {
                    self.abort(cx, services, index);
                    return;
                }
                flow.keepalives += 1;
                flow.sender.syn_sent(cx.now, false);
                send_syn(cx, flow, &mut self.frame);
                flow.blocked_until = Some(cx.now + flow.sender.rto() * (1 << flow.keepalives));
            }
            self.mark(index);
        }
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        if flow.sender.deadline().is_some_and(|at| at <= cx.now) {
            match flow.sender.on_timeout(cx.now) {
                Ok(true) => self.mark(index),
                Ok(false) => {
                    probe(cx, flow, &mut self.frame);
                    self.mark(index);
                }
                Err(()) => {
                    self.abort(cx, services, index);
                    return;
                }
            }
        }
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        if flow.receiver.ack_at().is_some_and(|at| at <= cx.now) {
            flow.receiver.stop_waiting();
            self.mark(index);
        }
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        if flow.keepalive_at <= cx.now {
            if flow.keepalives >= KEEPALIVE_TRIES {
                self.abort(cx, services, index);
                return;
            }
            flow.keepalives += 1;
            flow.keepalive_at = cx.now + KEEPALIVE_AGAIN;
            if flow.phase == Phase::Open {
                probe(cx, flow, &mut self.frame);
            }
        }
        self.schedule(index);
    }

    /// Does the work that events have left: drops acknowledged bytes, sends what the windows
    /// allow, acknowledges. True if there is more to do at once.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>, services: &mut Services) -> bool {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            let Some(flow) = self.flows.get_mut(index as usize) else { continue };
            flow.dirty = false;
            if flow.phase != Phase::Open {
                continue;
            }
            let worked = match &mut flow.splice {
                Some(splice) => {
                    let counted = self.spliced.entry(flow.plug).or_default();
                    splice.work(cx, flow.socket, &mut flow.preamble, counted).ok()
                }
                None => work(cx, flow, &mut self.frame).ok(),
            };
            match worked {
                Some(Work::Done) => {}
                Some(Work::More) => self.mark(index),
                None => {
                    self.abort(cx, services, index);
                    continue;
                }
            }
            let Some(flow) = self.flows.get_mut(index as usize) else { continue };
            let held = flow.receiver.held();
            self.memory.count(flow.plug, std::mem::replace(&mut flow.held, held), held);
            if flow.over() {
                cx.edge.close(flow.socket);
                self.drop_inside(cx, index, false);
                self.forget(index, services);
            } else {
                self.schedule(index);
            }
        }
        if self.dirty.is_empty() {
            // Keep the allocation.
            self.dirty = dirty;
        }
        !self.dirty.is_empty()
    }

    /// An instance of a service has died: whoever waits for its answer asks the next one.
    pub(crate) fn instance_down(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        turn: impl Fn(TurnKey) -> bool,
    ) {
        let waiting: Vec<u32> = self
            .opening
            .iter()
            .copied()
            .filter(|index| {
                self.flows.get(*index as usize).and_then(|flow| flow.turn).is_some_and(&turn)
            })
            .collect();
        for index in waiting {
            self.next_attempt(cx, services, index);
        }
    }

    /// A plug has gone: its flows end, connections that wait for it go on to the next instance.
    pub(crate) fn remove_guest(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        plug: PlugId,
    ) {
        let of_plug: Vec<u32> = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.plug == plug)
            .map(|(index, _)| key_of(index))
            .collect();
        for index in of_plug {
            let Some(flow) = self.flows.get(index as usize) else { continue };
            if flow.phase == Phase::SynSent {
                self.next_attempt(cx, services, index);
            } else {
                cx.edge.reset(flow.socket);
                self.drop_inside(cx, index, true);
                self.forget(index, services);
            }
        }
        self.spliced.remove(&plug);
    }

    /// Ends the connections with the outside, both ways, that the policy does not allow any more.
    pub(crate) fn end_refused(&mut self, cx: &mut Context<'_>, services: &mut Services) {
        let is_refused = |flow: &Flow| {
            let Key { guest, remote } = flow.key;
            if let Some(client) = flow.client {
                let what = What::to(Protocol::Tcp, guest.port());
                return !cx.policy.permits_entry(Comer::Outside(client), guest.ip(), what);
            }
            flow.origin == Origin::Guest
                && !cx.config.is_local(remote.ip())
                && !cx.policy.permits_open(Protocol::Tcp, guest.ip(), remote)
        };
        let refused: Vec<u32> = self
            .flows
            .iter()
            .filter(|(_, flow)| is_refused(flow))
            .map(|(index, _)| key_of(index))
            .collect();
        for index in refused {
            self.abort(cx, services, index);
        }
        // Those that wait may not go on to an instance that is refused now.
        for index in &self.opening {
            let Some(flow) = self.flows.get_mut(*index as usize) else { continue };
            if let (Some(client), Some(opening)) = (flow.client, &mut flow.opening)
                && let Target::Service { service, .. } = opening.target
            {
                let comer = Comer::Outside(client);
                opening.tried.extend(services.barred_now(cx.policy, comer, service));
            }
        }
    }

    /// Both sides are told that the connection is broken.
    fn abort(&mut self, cx: &mut Context<'_>, services: &mut Services, index: u32) {
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        let (seq, ack) = (flow.sender.next, flow.receiver.next);
        // In SYN-SENT nothing of the guest is known that could be acknowledged.
        let flags = if flow.phase == Phase::SynSent { Flags::RST } else { Flags::RST | Flags::ACK };
        let seq = if flow.phase == Phase::Connecting { SeqNumber(0) } else { seq };
        let reply = Reply { key: flow.key, plug: flow.plug, mac: flow.mac, seq, ack, flags };
        let by_frames = flow.splice.is_none() && !flow.key.guest.ip().is_unspecified();
        if by_frames {
            reply.send(cx, &mut self.frame);
        }
        if let Some((dial, _)) = flow.opening.as_ref().and_then(|opening| opening.dial) {
            let gone = "the caller has gone".to_owned();
            self.events.push_back(TcpEvent::Dialed(dial, Err(gone)));
        }
        cx.edge.reset(flow.socket);
        self.drop_inside(cx, index, true);
        self.forget(index, services);
    }

    /// Answers a segment that belongs to nothing with RST (RFC 9293 3.10.7.1).
    fn refuse(
        &mut self,
        cx: &mut Context<'_>,
        plug: PlugId,
        mac: MacAddr,
        key: Key,
        segment: &Segment<'_>,
    ) {
        let (seq, ack, flags) = if segment.flags.contains(Flags::ACK) {
            (segment.ack, SeqNumber(0), Flags::RST)
        } else {
            (SeqNumber(0), answering_ack(segment), Flags::RST | Flags::ACK)
        };
        Reply { key, plug, mac, seq, ack, flags }.send(cx, &mut self.frame);
    }

    /// Acknowledges now.
    fn acknowledge(&mut self, cx: &mut Context<'_>, index: u32) {
        if let Some(flow) = self.flows.get_mut(index as usize) {
            send_ack(cx, flow, &mut self.frame);
        }
    }

    fn mark(&mut self, index: u32) {
        if let Some(flow) = self.flows.get_mut(index as usize)
            && !flow.dirty
        {
            flow.dirty = true;
            self.dirty.push(index);
        }
    }

    fn schedule(&mut self, index: u32) {
        if let Some(flow) = self.flows.get(index as usize) {
            self.wheel.set(index, flow.deadline());
        }
    }

    /// Takes a flow out of the table; its socket is closed by the caller.
    fn forget(&mut self, index: u32, services: &mut Services) {
        let Some(flow) = self.flows.try_remove(index as usize) else { return };
        if self.by_key.get(&flow.key) == Some(&index) {
            self.by_key.remove(&flow.key);
        }
        self.by_socket.remove(&flow.socket);
        self.opening.remove(&index);
        self.wheel.set(index, None);
        self.memory.count(flow.plug, flow.held, 0);
        match flow.origin {
            Origin::Guest => self.shares.give_back(flow.plug),
            Origin::Local => self.local.close(flow.plug),
            Origin::Host => {}
        }
        if let Some(turn) = flow.turn {
            if flow.phase == Phase::Open {
                services.closed(turn);
            } else {
                services.abandoned(turn);
            }
        }
    }

    /// RFC 6528: a keyed hash of the connection plus a clock of 4 microseconds.
    fn initial_sequence(&self, now: Instant, key: Key) -> SeqNumber {
        use std::hash::Hash as _;
        let mut hasher = SipHasher13::new_with_keys(self.secret.0, self.secret.1);
        key.hash(&mut hasher);
        let clock = now.saturating_duration_since(self.epoch).as_micros() / 4;
        let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
        let [e, f, g, h, ..] = clock.to_le_bytes();
        SeqNumber(u32::from_le_bytes([a, b, c, d]).wrapping_add(u32::from_le_bytes([e, f, g, h])))
    }
}

/// The service that is at this address and port, if its requests are answered here.
fn entered(cx: &Context<'_>, services: &Services, remote: SocketAddr) -> Option<ServiceId> {
    if !cx.config.is_local(remote.ip()) {
        return None;
    }
    let id = services.by_address(remote.ip())?;
    let service = services.get(id)?;
    (service.is_per_request() && service.port() == remote.port()).then_some(id)
}

/// Starts to connect a guest with the outside, if the policy allows it and the host can. The SYN that asks for
/// it has this number.
fn connect(
    cx: &mut Context<'_>,
    key: Key,
    guest: (PlugId, MacAddr),
    syn: SeqNumber,
) -> Option<SocketId> {
    let Decision::Allow(to) =
        cx.policy.decide_out(cx.now, Protocol::Tcp, key.guest.ip(), key.remote)
    else {
        return None;
    };
    let error = match cx.edge.tcp_connect(to) {
        Ok(socket) => return Some(socket),
        Err(error) => error,
    };
    if let Some(error) = unreachable::error_of(&error) {
        unreachable::report(cx, key, guest, syn, error);
    }
    None
}

/// Whether a flow has more to do at once.
enum Work {
    Done,
    More,
}

/// The work of one flow in one batch.
fn work(cx: &mut Context<'_>, flow: &mut Flow, frame: &mut [u8]) -> io::Result<Work> {
    if flow.discard > 0 {
        // At once: what is left of a large buffer keeps all of it, and with that the window closed.
        cx.edge.discard(flow.socket, std::mem::take(&mut flow.discard))?;
    }
    if flow.receiver.wants_room() {
        flow.receiver.offer(cx.edge.send_room(flow.socket));
    }
    let mut more = Work::Done;
    for sent in 0..=BURST {
        if flow.blocked_until.is_some() {
            break;
        }
        if sent == BURST {
            more = Work::More;
            break;
        }
        if !send_piece(cx, flow, frame)? {
            break;
        }
    }
    if flow.receiver.ack_due || flow.receiver.window_opened() {
        send_ack(cx, flow, frame);
    }
    Ok(more)
}

/// Hands in-order bytes to the host stream, or to the slice behind it if that may hold more: whether all were taken.
fn deliver(
    cx: &mut Context<'_>,
    flow: &mut Flow,
    bytes: &[u8],
    may_hold: bool,
) -> io::Result<bool> {
    let mut rest = bytes;
    if flow.receiver.pending.is_empty() && flow.writable {
        match cx.edge.send(flow.socket, bytes) {
            Ok(sent) => rest = bytes.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        flow.writable = rest.is_empty();
    }
    if !may_hold {
        flow.receiver.accept(bytes.len() - rest.len());
        return Ok(rest.is_empty());
    }
    flow.receiver.accept(bytes.len());
    flow.receiver.pending.extend(rest);
    Ok(true)
}

/// Empties the slice behind a host stream that takes bytes again.
fn drain(cx: &mut Context<'_>, flow: &mut Flow) -> io::Result<()> {
    while flow.writable && !flow.receiver.pending.is_empty() {
        let (bytes, _) = flow.receiver.pending.as_slices();
        let whole = bytes.len();
        match cx.edge.send(flow.socket, bytes) {
            Ok(sent) => {
                flow.receiver.pending.drain(..sent);
                flow.writable = sent == whole;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => flow.writable = false,
            Err(error) => return Err(error),
        }
    }
    if flow.receiver.pending.is_empty() {
        flow.receiver.shrink();
        if flow.receiver.finished && !flow.shut {
            shut(cx, flow);
        }
    }
    Ok(())
}

/// Passes the guest's FIN on.
fn shut(cx: &mut Context<'_>, flow: &mut Flow) {
    // An error here is the stream's own, and its event tells.
    let _ = cx.edge.shutdown_write(flow.socket);
    flow.shut = true;
}

/// Slab indices fit: the table is bounded by [`MAX_FLOWS`].
fn key_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
