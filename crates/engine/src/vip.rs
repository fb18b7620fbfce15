//! Virtual addresses of services inside the network: connections of guests to a service are
//! translated to its instances.
//!
//! # Theory of operation
//!
//! A guest connects to `service:port`. The SYN is held, a turn is taken, and the SYN goes on to
//! that instance as if the gateway had sent it, from a port that names the connection. The
//! gateway as the source brings the instance's answers back here even when client and instance
//! are neighbours, or the same guest (hairpin).
//!
//! ```text
//! client:p -> virtual:port      becomes   gateway:n -> instance:port
//! instance:port -> gateway:n    becomes   virtual:port -> client:p
//! ```
//!
//! The client is answered by the first SYN of an instance and by nothing before: an instance that
//! refuses, is silent for [`PATIENCE`] or dies costs its turn, and the held SYN goes to the next
//! one. When nobody is left the client is refused. From then on segments pass with new addresses
//! and ports and nothing else changed; super-frames stay whole and checksums that were left to
//! others stay left. The ends negotiate options with each other.
//!
//! A client that comes by IPv6 to a program that refuses there is led to the same instance's IPv4
//! address within the same turn: the IP header is then replaced instead of patched. The other way
//! round there is no such help, because IPv6 headers are longer and a full segment would not fit.
//!
//! An entry ends some time after a RST or after both FINs were acknowledged, or when it was idle
//! for [`IDLE`].

mod rewrite;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netyard_wire::ethernet::Ethernet;
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::{Flags, Segment};
use netyard_wire::{Frame, FrameBuf, SeqNumber};
use rand::RngExt as _;
use slab::Slab;

use self::rewrite::Path;
use crate::context::Context;
use crate::control::{FlowKind, FlowPhase, FlowState};
use crate::forward::Protocol;
use crate::guests::Guest;
use crate::policy::rules::What;
use crate::policy::{self, Comer};
use crate::service::{Service, ServiceId, Services, TurnKey};
use crate::wheel::Wheel;

/// How long an instance may be silent before the next one is asked. Guests are one hop away.
const PATIENCE: Duration = Duration::from_secs(1);
/// First retransmission of a held SYN; sooner than the client's own (RFC 6298: 1 s), so that one
/// lost frame does not cost an instance its turn.
const SYN_RETRY: Duration = Duration::from_millis(250);
/// How long an ended connection is still translated: for lost last acknowledgements.
const LINGER: Duration = Duration::from_secs(10);
/// RFC 5382 REQ-5: an idle connection is kept at least 2 hours and 4 minutes.
const IDLE: Duration = Duration::from_secs(2 * 60 * 60 + 4 * 60);
/// Gateway ports that name connections. Those above belong to connections from the host.
const FIRST_PORT: u16 = 1024;
const LAST_PORT: u16 = 32_767;
/// Most entries of one network: half the ports, so that a free one is found soon.
const MAX_ENTRIES: usize = 16 * 1024;
/// Most entries of one client, so that one guest cannot fill the table.
const MAX_PER_CLIENT: u32 = 4 * 1024;
/// The longest SYN that is held, bytes: headers with all options, and some data (RFC 7413).
const MAX_SYN: usize = 2048;

/// All translated connections of one network.
#[derive(Debug)]
pub(crate) struct Vip {
    entries: Slab<Entry>,
    /// By client and virtual address.
    by_client: HashMap<(SocketAddr, SocketAddr), u32>,
    /// By instance and gateway port.
    by_instance: HashMap<(SocketAddr, u16), u32>,
    per_client: HashMap<IpAddr, u32>,
    wheel: Wheel,
    /// The gateway port given out last; 0 before the first.
    last_port: u16,
}

#[derive(Debug)]
struct Entry {
    service: ServiceId,
    client: SocketAddr,
    /// What the client connected to.
    front: SocketAddr,
    turn: TurnKey,
    instance: SocketAddr,
    /// Who the instance sees.
    gateway: SocketAddr,
    phase: Phase,
    began: Instant,
}

#[derive(Debug)]
enum Phase {
    /// The client waits.
    Opening(Box<Opening>),
    /// Established.
    Open(Ends),
    /// Over; late segments are still translated.
    Lingering,
}

#[derive(Debug)]
struct Opening {
    syn: FrameBuf,
    seq: SeqNumber,
    /// Behind the SYN and its data: what an answer acknowledges at most.
    end: SeqNumber,
    /// Instances that were asked, or may not be.
    tried: Vec<TurnKey>,
    /// Another address of the instance whose turn it is, for when it refuses at the first.
    other: Option<SocketAddr>,
    retry_at: Instant,
    retry_after: Duration,
    gives_up_at: Instant,
}

#[derive(Debug)]
struct Ends {
    client: End,
    instance: End,
}

/// What one end of an established connection has sent.
#[derive(Debug)]
struct End {
    /// Behind the last byte.
    next: SeqNumber,
    /// Behind the FIN, if there was one.
    fin: Option<SeqNumber>,
    fin_acked: bool,
}

impl End {
    fn new(next: SeqNumber) -> Self {
        Self { next, fin: None, fin_acked: false }
    }

    fn sent(&mut self, segment: &Segment<'_>) {
        let end = segment.seq + segment.len();
        self.next = self.next.max(end);
        if segment.flags.contains(Flags::FIN) {
            self.fin = Some(end);
        }
    }

    fn heard(&mut self, segment: &Segment<'_>) {
        if segment.flags.contains(Flags::ACK) && self.fin.is_some_and(|fin| segment.ack.ge(fin)) {
            self.fin_acked = true;
        }
    }
}

/// Which end a segment comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Instance,
}

/// Why an attempt is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Refused,
    Gone,
}

impl Vip {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            entries: Slab::new(),
            by_client: HashMap::new(),
            by_instance: HashMap::new(),
            per_client: HashMap::new(),
            wheel: Wheel::new(now),
            last_port: 0,
        }
    }

    /// Translates a TCP segment that is addressed to the gateway's hardware address. False: it is
    /// for no virtual address and belongs to no translated connection.
    pub(crate) fn handle_frame(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        frame: Frame<'_>,
        packet: &IpPacket<'_>,
        segment: &Segment<'_>,
    ) -> bool {
        let source = SocketAddr::new(packet.source, segment.source_port);
        let destination = SocketAddr::new(packet.destination, segment.destination_port);
        if cx.config.is_gateway(destination.ip()) {
            let Some(index) = self.by_instance.get(&(source, destination.port())).copied() else {
                return false;
            };
            self.handle_instance(cx, services, index, frame, packet, segment);
            return true;
        }
        if !cx.config.is_local(destination.ip()) {
            return false;
        }
        if let Some(index) = self.by_client.get(&(source, destination)).copied() {
            self.handle_client(cx, services, index, frame, packet, segment);
            return true;
        }
        let Some(service) = services.by_address(destination.ip()) else { return false };
        if services.get(service).is_some_and(Service::is_per_request) {
            // Such a connection ends at the gateway.
            return false;
        }
        self.unknown(cx, services, service, frame, packet, segment);
        true
    }

    /// An instance has died: whoever waits for its answer asks the next one at once.
    pub(crate) fn instance_down(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        turn: TurnKey,
    ) {
        let waiting =
            self.indices(|entry| entry.turn == turn && matches!(entry.phase, Phase::Opening(_)));
        for index in waiting {
            self.attempt_failed(cx, services, index, Failure::Gone);
        }
    }

    /// A guest was unplugged: its connections end, those that wait for it ask the next instance.
    pub(crate) fn remove_guest(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        guest: &Guest,
    ) {
        let has = |address: IpAddr| address == guest.address4 || address == guest.address6;
        for index in self.indices(|entry| has(entry.client.ip())) {
            self.reset_instance(cx, index);
            self.remove(services, index);
        }
        for index in self.indices(|entry| has(entry.instance.ip())) {
            let Some(entry) = self.entries.get(index as usize) else { continue };
            if let Phase::Opening(_) = &entry.phase {
                self.attempt_failed(cx, services, index, Failure::Gone);
            } else {
                self.reset_client(cx, index);
                self.remove(services, index);
            }
        }
    }

    /// Ends the connections that the policy does not allow any more.
    pub(crate) fn end_refused(&mut self, cx: &mut Context<'_>, services: &mut Services) {
        let is_refused = |entry: &Entry| {
            let (client, to) = (Comer::Guest(entry.client.ip()), entry.instance);
            let what = What::to(policy::Protocol::Tcp, to.port());
            !cx.policy.permits_entry(client, to.ip(), what)
        };
        for index in self.indices(is_refused) {
            self.reset_client(cx, index);
            self.reset_instance(cx, index);
            self.remove(services, index);
        }
        // Those that wait may not go on to an instance that is refused now.
        for (_, entry) in &mut self.entries {
            if let Phase::Opening(opening) = &mut entry.phase {
                let comer = Comer::Guest(entry.client.ip());
                opening.tried.extend(services.barred_now(cx.policy, comer, entry.service));
            }
        }
    }

    /// Tells the client of a connection that it is over.
    fn reset_client(&self, cx: &mut Context<'_>, index: u32) {
        let Some(entry) = self.entries.get(index as usize) else { return };
        let (seq, ack) = match &entry.phase {
            Phase::Opening(opening) => (SeqNumber(0), opening.end),
            Phase::Open(ends) => (ends.instance.next, ends.client.next),
            Phase::Lingering => return,
        };
        send_reset(cx, entry.front, entry.client, seq, Some(ack));
    }

    /// Tells the instance of an open connection that it is over.
    fn reset_instance(&self, cx: &mut Context<'_>, index: u32) {
        let Some(entry) = self.entries.get(index as usize) else { return };
        if let Phase::Open(ends) = &entry.phase {
            let (seq, ack) = (ends.client.next, ends.instance.next);
            send_reset(cx, entry.gateway, entry.instance, seq, Some(ack));
        }
    }

    /// Retransmits held SYNs, gives up silent instances, forgets what is over.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>, services: &mut Services) {
        let mut expired = Vec::new();
        self.wheel.expire(cx.now, &mut expired);
        for index in expired {
            let Some(entry) = self.entries.get_mut(index as usize) else { continue };
            match &mut entry.phase {
                Phase::Opening(opening) if cx.now >= opening.gives_up_at => {
                    self.attempt_failed(cx, services, index, Failure::Gone);
                }
                Phase::Opening(opening) => {
                    opening.retry_after *= 2;
                    opening.retry_at = cx.now + opening.retry_after;
                    self.wheel.set(index, Some(opening.retry_at.min(opening.gives_up_at)));
                    send_syn(cx, entry);
                }
                Phase::Open(_) | Phase::Lingering => self.remove(services, index),
            }
        }
    }

    /// When [`Vip::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// How many connections are translated now.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The connections as their clients see them.
    pub(crate) fn states(&self, now: Instant) -> impl Iterator<Item = FlowState> {
        self.entries.iter().map(move |(_, entry)| FlowState {
            outbound: true,
            state: match &entry.phase {
                Phase::Opening(_) => FlowPhase::Opening,
                Phase::Open(_) => FlowPhase::Open,
                Phase::Lingering => FlowPhase::Closing,
            },
            ..FlowState::new(FlowKind::Tcp, entry.client, entry.front, now, entry.began)
        })
    }

    /// A segment to a virtual address that belongs to no connection: the first of one, or late.
    fn unknown(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        service: ServiceId,
        frame: Frame<'_>,
        packet: &IpPacket<'_>,
        segment: &Segment<'_>,
    ) {
        if segment.flags.contains(Flags::RST) {
            cx.counters.drop("vip-unknown-connection");
            return;
        }
        let is_opening = segment.flags.contains(Flags::SYN)
            && !segment.flags.intersects(Flags::ACK | Flags::FIN)
            && services
                .get(service)
                .is_some_and(|it| it.is_at(Protocol::Tcp, segment.destination_port));
        if !is_opening {
            refuse(cx, packet, segment);
            return;
        }
        let client = SocketAddr::new(packet.source, segment.source_port);
        let of_client = self.per_client.get(&client.ip()).copied().unwrap_or_default();
        if cx.station(client.ip()).is_none() {
            cx.counters.drop("vip-unknown-client");
        } else if frame.bytes.len() > MAX_SYN {
            cx.counters.drop("vip-syn-too-long");
        } else if self.entries.len() >= MAX_ENTRIES || of_client >= MAX_PER_CLIENT {
            // The client tries again; no turn was taken.
            cx.counters.drop("vip-full");
        } else {
            self.open(cx, services, service, frame, packet, segment);
        }
    }

    fn open(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        service: ServiceId,
        frame: Frame<'_>,
        packet: &IpPacket<'_>,
        segment: &Segment<'_>,
    ) {
        let client = SocketAddr::new(packet.source, segment.source_port);
        let mut tried = services.barred(cx.policy, Comer::Guest(client.ip()), service);
        let Some(turn) = services.next_for(cx.now, client.ip(), service, &tried) else {
            refuse(cx, packet, segment);
            return;
        };
        tried.push(turn.key);
        let front = SocketAddr::new(packet.destination, segment.destination_port);
        let (instance, other) = turn.candidates(front.ip());
        let opening = Opening {
            syn: frame.into(),
            seq: segment.seq,
            end: segment.seq + segment.len(),
            tried,
            other,
            retry_at: cx.now,
            retry_after: SYN_RETRY,
            gives_up_at: cx.now,
        };
        let entry = Entry {
            service,
            client,
            front,
            turn: turn.key,
            instance,
            gateway: instance,
            phase: Phase::Opening(Box::new(opening)),
            began: cx.now,
        };
        let Ok(index) = u32::try_from(self.entries.insert(entry)) else { return };
        self.by_client.insert((client, front), index);
        *self.per_client.entry(client.ip()).or_default() += 1;
        if !self.attempt(cx, index) {
            self.attempt_failed(cx, services, index, Failure::Gone);
        }
    }

    /// Sends the held SYN to the entry's instance from a new port. False when nobody is plugged
    /// in there or no port is free.
    fn attempt(&mut self, cx: &mut Context<'_>, index: u32) -> bool {
        let Some(instance) = self.entries.get(index as usize).map(|entry| entry.instance) else {
            return false;
        };
        let Some(port) = self.free_port(cx, instance) else {
            cx.counters.drop("vip-ports-full");
            return false;
        };
        let Some(entry) = self.entries.get_mut(index as usize) else { return false };
        let Phase::Opening(opening) = &mut entry.phase else { return false };
        let gateway: IpAddr = match instance {
            SocketAddr::V4(_) => cx.config.gateway4().into(),
            SocketAddr::V6(_) => cx.config.gateway6().into(),
        };
        entry.gateway = SocketAddr::new(gateway, port);
        opening.retry_after = SYN_RETRY;
        opening.retry_at = cx.now + SYN_RETRY;
        opening.gives_up_at = cx.now + PATIENCE;
        self.wheel.set(index, Some(opening.retry_at));
        self.by_instance.insert((instance, port), index);
        send_syn(cx, entry)
    }

    /// The attempt that an opening entry is at has failed: on to the next address or instance,
    /// or the client is refused.
    fn attempt_failed(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
        mut failure: Failure,
    ) {
        loop {
            self.release_port(index);
            let Some(entry) = self.entries.get_mut(index as usize) else { return };
            let Phase::Opening(opening) = &mut entry.phase else { return };
            let other = opening.other.take().filter(|_| failure == Failure::Refused);
            if let Some(other) = other {
                entry.instance = other;
            } else {
                services.failed(entry.turn);
                let client = entry.client.ip();
                let turn = services.next_for(cx.now, client, entry.service, &opening.tried);
                let Some(turn) = turn else {
                    let (front, client, end) = (entry.front, entry.client, opening.end);
                    send_reset(cx, front, client, SeqNumber(0), Some(end));
                    self.forget(index);
                    return;
                };
                opening.tried.push(turn.key);
                entry.turn = turn.key;
                (entry.instance, opening.other) = turn.candidates(entry.front.ip());
            }
            if self.attempt(cx, index) {
                return;
            }
            failure = Failure::Gone;
        }
    }

    fn handle_client(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
        frame: Frame<'_>,
        packet: &IpPacket<'_>,
        segment: &Segment<'_>,
    ) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        let is_syn = segment.flags.contains(Flags::SYN);
        let is_reset = segment.flags.contains(Flags::RST);
        match &mut entry.phase {
            Phase::Opening(opening) if is_syn && segment.seq == opening.seq => {
                // A retransmission: our own are enough.
                cx.counters.drop("vip-syn-held");
            }
            Phase::Opening(_) if is_reset => {
                translate(cx, entry, Side::Client, frame, packet);
                self.remove(services, index);
            }
            // The client has begun another connection at the same port.
            Phase::Opening(_) | Phase::Lingering if is_syn => {
                let service = entry.service;
                self.remove(services, index);
                self.unknown(cx, services, service, frame, packet, segment);
            }
            Phase::Opening(_) => cx.counters.drop("vip-not-open"),
            Phase::Open(_) | Phase::Lingering => {
                translate(cx, entry, Side::Client, frame, packet);
                self.track(cx, services, index, Side::Client, segment);
            }
        }
    }

    fn handle_instance(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
        frame: Frame<'_>,
        packet: &IpPacket<'_>,
        segment: &Segment<'_>,
    ) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        let Phase::Opening(opening) = &entry.phase else {
            translate(cx, entry, Side::Instance, frame, packet);
            self.track(cx, services, index, Side::Instance, segment);
            return;
        };
        // RFC 9293 section 3.10.7.3: only an acknowledgement of the SYN counts.
        let answers = segment.flags.contains(Flags::ACK)
            && segment.ack.gt(opening.seq)
            && segment.ack.le(opening.end);
        if segment.flags.contains(Flags::RST) {
            if answers {
                self.attempt_failed(cx, services, index, Failure::Refused);
            } else {
                cx.counters.drop("vip-not-open");
            }
        } else if segment.flags.contains(Flags::SYN | Flags::ACK) && answers {
            let ends = Ends {
                client: End::new(opening.end),
                instance: End::new(segment.seq + segment.len()),
            };
            entry.phase = Phase::Open(ends);
            services.opened(entry.turn);
            self.wheel.set(index, Some(cx.now + IDLE));
            translate(cx, entry, Side::Instance, frame, packet);
        } else if segment.flags.contains(Flags::ACK) {
            // An old connection of the same port, in TIME-WAIT: it ends, and the SYN that is sent
            // again finds the port free.
            let (gateway, instance) = (entry.gateway, entry.instance);
            send_reset(cx, gateway, instance, segment.ack, None);
        } else {
            cx.counters.drop("vip-not-open");
        }
    }

    /// Follows the state of a connection that is or was open.
    fn track(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
        from: Side,
        segment: &Segment<'_>,
    ) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        let Phase::Open(ends) = &mut entry.phase else { return };
        let (sender, receiver) = match from {
            Side::Client => (&mut ends.client, &mut ends.instance),
            Side::Instance => (&mut ends.instance, &mut ends.client),
        };
        sender.sent(segment);
        receiver.heard(segment);
        let over = segment.flags.contains(Flags::RST) || sender.fin_acked && receiver.fin_acked;
        let lifetime = if over { LINGER } else { IDLE };
        self.wheel.set(index, Some(cx.now + lifetime));
        if over {
            entry.phase = Phase::Lingering;
            services.closed(entry.turn);
        }
    }

    /// Ends an entry in whatever state it is.
    fn remove(&mut self, services: &mut Services, index: u32) {
        let Some(entry) = self.entries.get(index as usize) else { return };
        match entry.phase {
            Phase::Opening(_) => services.abandoned(entry.turn),
            Phase::Open(_) => services.closed(entry.turn),
            Phase::Lingering => {}
        }
        self.forget(index);
    }

    fn forget(&mut self, index: u32) {
        self.release_port(index);
        let Some(entry) = self.entries.try_remove(index as usize) else { return };
        self.by_client.remove(&(entry.client, entry.front));
        self.wheel.set(index, None);
        if let Some(count) = self.per_client.get_mut(&entry.client.ip()) {
            *count -= 1;
            if *count == 0 {
                self.per_client.remove(&entry.client.ip());
            }
        }
    }

    /// Gives back the gateway port of the current attempt, if it got one.
    fn release_port(&mut self, index: u32) {
        let Some(entry) = self.entries.get(index as usize) else { return };
        let key = (entry.instance, entry.gateway.port());
        if self.by_instance.get(&key) == Some(&index) {
            self.by_instance.remove(&key);
        }
    }

    /// The next gateway port that is not in use towards `instance`. They are given out in turn,
    /// so that one that was just used, and may be in TIME-WAIT there, comes last.
    fn free_port(&mut self, cx: &mut Context<'_>, instance: SocketAddr) -> Option<u16> {
        if self.last_port == 0 {
            self.last_port = cx.rng.random_range(FIRST_PORT..=LAST_PORT);
        }
        for _ in FIRST_PORT..=LAST_PORT {
            let next = self.last_port + 1;
            self.last_port = if next > LAST_PORT { FIRST_PORT } else { next };
            if !self.by_instance.contains_key(&(instance, self.last_port)) {
                return Some(self.last_port);
            }
        }
        None
    }

    fn indices(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<u32> {
        self.entries
            .iter()
            .filter(|(_, entry)| wanted(entry))
            .filter_map(|(index, _)| u32::try_from(index).ok())
            .collect()
    }
}

/// Sends the held SYN on. False when nobody is plugged in at the instance's address.
fn send_syn(cx: &mut Context<'_>, entry: &Entry) -> bool {
    let Phase::Opening(opening) = &entry.phase else { return false };
    let frame = opening.syn.as_frame();
    let Ok((ethernet, payload)) = Ethernet::parse(frame.bytes) else { return false };
    let Ok(packet) = IpPacket::parse(ethernet.ethertype, payload) else { return false };
    translate(cx, entry, Side::Client, frame, &packet)
}

/// Sends a frame of one end to the other. False when nobody is plugged in there.
fn translate(
    cx: &mut Context<'_>,
    entry: &Entry,
    from: Side,
    frame: Frame<'_>,
    packet: &IpPacket<'_>,
) -> bool {
    let (source, destination) = match from {
        Side::Client => (entry.gateway, entry.instance),
        Side::Instance => (entry.front, entry.client),
    };
    let Some((plug, mac)) = cx.station(destination.ip()) else {
        cx.counters.drop("vip-without-guest");
        return false;
    };
    let path =
        Path { source_mac: cx.config.gateway_mac, destination_mac: mac, source, destination };
    match path.rewrite(cx.scratch, frame.offload, packet) {
        Some(offload) => {
            cx.edge.transmit(plug, Frame { bytes: cx.scratch, offload });
        }
        None => cx.counters.drop("vip-untranslatable"),
    }
    true
}

/// Answers a segment of no connection with RST (RFC 9293 section 3.10.7.1).
fn refuse(cx: &mut Context<'_>, packet: &IpPacket<'_>, segment: &Segment<'_>) {
    let source = SocketAddr::new(packet.destination, segment.destination_port);
    let destination = SocketAddr::new(packet.source, segment.source_port);
    if segment.flags.contains(Flags::ACK) {
        send_reset(cx, source, destination, segment.ack, None);
    } else {
        send_reset(cx, source, destination, SeqNumber(0), Some(segment.seq + segment.len()));
    }
}

fn send_reset(
    cx: &mut Context<'_>,
    source: SocketAddr,
    destination: SocketAddr,
    seq: SeqNumber,
    ack: Option<SeqNumber>,
) {
    if let Some(to) = cx.station(destination.ip()) {
        cx.send_tcp(to, (source, destination), (seq, ack), Flags::RST);
    }
}

#[cfg(test)]
mod tests;
