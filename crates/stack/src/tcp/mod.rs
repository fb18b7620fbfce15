//! TCP (RFC 9293): the table of connections and what programs ask of it.
//!
//! # Theory of operation
//!
//! One keyed hash table leads from the two ends of a segment to its place: a connection, one that is
//! being opened ([`listener`]), or one that is over ([`time_wait`]). Only what is in none of them is
//! looked up among listeners, by port. Deadlines sit in timing wheels. So what a segment or a timer
//! costs does not depend on how many connections there are, and an idle connection has no buffers.
//!
//! Nothing is sent from where it is decided: a connection that has something to send is put into a
//! list, once, and [`Tcp::poll_transmit`] takes turns among those in it, one unit of at most 64 KiB
//! each, when the device has room. So a slow device holds data back where it can still be
//! acknowledged together, and nothing waits in queues.
//!
//! A connection begins in [`opening`], or in [`sockets`] with a program's call. It is [`connection`], whose two
//! directions are [`sender`] and [`receiver`].

mod assembler;
mod board;
mod congestion;
mod connection;
mod ends;
mod keys;
mod listener;
mod opening;
mod peer;
mod queue;
mod receiver;
mod rtt;
mod sender;
mod settings;
mod sockets;
mod time_wait;
mod timestamps;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use netyard_wheel::Wheel;
use netyard_wire::tcp::{Flags, Segment, TcpOptions};
use netyard_wire::{FrameBuf, Gso, SeqNumber};
use slab::Slab;

use self::connection::{Connection, Reaction, Reset};
use self::keys::{Keyed, Keys};
use self::listener::{Listener, MAX_ANSWERS, Opening};
use self::queue::Spare;
use self::time_wait::{TimeWait, Verdict};
use crate::Error;
use crate::bucket::Bucket;
use crate::event::{Event, Events};
use crate::ip::{Ip, NicIndex, Path, Sent};

pub use self::congestion::Algorithm;
pub use self::connection::State;
pub(crate) use self::ends::Ends;
pub use self::settings::{Keepalive, Options, Settings};
pub use self::sockets::{Info, ListenerId, TcpId};

/// Connections that no program has any more, and whose peers have not acknowledged everything; a further one is reset
/// when its program closes it (Linux's `tcp_max_orphans`).
const MAX_ORPHANS: usize = 4096;
/// Those whose peers have everything, and have yet to finish: the oldest makes room, for nothing is lost with it.
const MAX_FIN_WAITS: usize = 4096;
/// Resets to segments that belong to nothing.
const RESETS_PER_SECOND: u32 = 1000;
const RESETS_AT_ONCE: u32 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Connection(usize),
    Opening(usize),
    TimeWait(usize),
}

/// What all connections of a stack have in common.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    spare: Spare,
}

#[derive(Debug)]
pub(crate) struct Tcp {
    shared: Shared,
    places: HashMap<Ends, Place, Keyed>,
    /// Each by itself: a table that grows moves none of them.
    connections: Slab<Box<Connection>>,
    /// How many of them no program has any more.
    orphans: usize,
    /// Those of them that only wait for a FIN, and until when.
    fin_waits: BTreeSet<(Instant, usize)>,
    listeners: Slab<Listener>,
    by_port: HashMap<u16, Vec<usize>>,
    openings: Slab<Opening>,
    time_wait: TimeWait,
    wheel: Wheel,
    opening_wheel: Wheel,
    /// Connections that may have something to send, each once.
    ready: VecDeque<usize>,
    keys: Keys,
    resets: Bucket<RESETS_PER_SECOND, RESETS_AT_ONCE>,
}

/// What comes with a segment.
pub(crate) struct Arrival<'a> {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) segment: Segment<'a>,
    pub(crate) gso: Option<Gso>,
}

impl Tcp {
    pub(crate) fn new(now: Instant, ip: &mut Ip, settings: Settings) -> Self {
        let settings = settings.bounded();
        Self {
            shared: Shared { settings, spare: Spare::default() },
            places: HashMap::with_hasher(Keys::table(&mut ip.rng)),
            connections: Slab::new(),
            orphans: 0,
            fin_waits: BTreeSet::new(),
            listeners: Slab::new(),
            by_port: HashMap::new(),
            openings: Slab::new(),
            time_wait: TimeWait::new(settings.time_wait),
            wheel: Wheel::new(now),
            opening_wheel: Wheel::new(now),
            ready: VecDeque::new(),
            keys: Keys::new(now, &mut ip.rng),
            resets: Bucket::new(now),
        }
    }

    /// Takes a segment that is for this host.
    pub(crate) fn handle(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        arrival: &Arrival<'_>,
    ) {
        let ends = Ends::new(arrival.destination, arrival.source);
        match self.places.get(&ends).copied() {
            Some(Place::Connection(slot)) => {
                self.handle_connection(ip, events, now, slot, arrival);
            }
            Some(Place::Opening(slot)) => self.handle_opening(ip, events, now, slot, arrival),
            Some(Place::TimeWait(slot)) => {
                self.handle_time_wait(ip, events, now, slot, &ends, arrival);
            }
            None => self.handle_unknown(ip, events, now, &ends, arrival, None),
        }
    }

    fn handle_connection(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        slot: usize,
        arrival: &Arrival<'_>,
    ) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let segment = &arrival.segment;
        let size = arrival.gso.map_or(segment.payload.len(), |gso| usize::from(gso.size));
        let reaction = connection.handle(now, segment, size, &mut self.shared);
        if reaction.progress {
            ip.confirm(now, &connection.path);
        }
        self.react(ip, events, now, slot, reaction);
    }

    /// Does what a segment, a timer or an error has asked for.
    fn react(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        slot: usize,
        reaction: Reaction,
    ) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if reaction.changed && connection.orphan.is_none() {
            events.tell(&mut connection.told, Event::Tcp(TcpId(slot)));
        }
        if let Some(reset) = reaction.reset {
            let (path, frame) = (connection.path, connection.reset_frame(now, reset));
            // What cannot be sent was counted; the peer will ask again.
            let _ = ip.send(now, &path, frame);
        }
        if connection.state == State::Closed {
            self.finish(slot);
        } else {
            self.touch(slot);
            self.note_fin_wait(slot);
        }
    }

    /// Notes that a connection only waits for the peer's FIN, if it does. The one that has waited longest goes when
    /// there are too many.
    fn note_fin_wait(&mut self, slot: usize) {
        let until = self.connections.get(slot).and_then(|connection| connection.fin_wait_at);
        let news = until.is_some_and(|until| self.fin_waits.insert((until, slot)));
        if news
            && self.fin_waits.len() > MAX_FIN_WAITS
            && let Some((_, oldest)) = self.fin_waits.first().copied()
        {
            self.finish(oldest);
        }
    }

    /// Notes that a connection may have something to send, or a deadline that has changed.
    fn touch(&mut self, slot: usize) {
        if let Some(connection) = self.connections.get_mut(slot)
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.ready.push_back(slot);
        }
    }

    /// A connection is over: nothing comes for it any more. It goes when the program has closed it.
    fn finish(&mut self, slot: usize) {
        let Some(connection) = self.connections.get(slot) else { return };
        if self.places.get(&connection.ends) == Some(&Place::Connection(slot)) {
            self.places.remove(&connection.ends);
        }
        self.wheel.set(wheel_key(slot), None);
        if let Some(until) = connection.fin_wait_at {
            self.fin_waits.remove(&(until, slot));
        }
        if connection.orphan.is_some() {
            self.connections.remove(slot);
            self.orphans -= 1;
        }
    }

    /// Both ends of a connection have finished: a small entry remembers it.
    fn retire(&mut self, now: Instant, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.state = State::Closed;
        let (ends, remembered) = (connection.ends, connection.remembered());
        self.finish(slot);
        let (place, gone) = self.time_wait.insert(now, ends, remembered);
        self.forget(gone);
        self.places.insert(ends, Place::TimeWait(place));
    }

    fn forget(&mut self, gone: Option<Ends>) {
        if let Some(ends) = gone
            && matches!(self.places.get(&ends), Some(Place::TimeWait(_)))
        {
            self.places.remove(&ends);
        }
    }

    fn handle_time_wait(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        slot: usize,
        ends: &Ends,
        arrival: &Arrival<'_>,
    ) {
        let listener = self.listener_of(ends.local()).and_then(|place| self.listeners.get(place));
        match self.time_wait.handle(now, slot, &arrival.segment) {
            Verdict::Ignore => {}
            // The peer asks again; until then what is remembered serves.
            Verdict::Reuse(_) if listener.is_some_and(Listener::is_full) => {
                ip.drop("tcp-backlog-full");
            }
            Verdict::Reuse(old) if listener.is_some() => {
                self.time_wait.remove(slot);
                self.places.remove(ends);
                self.handle_unknown(ip, events, now, ends, arrival, Some(old));
            }
            Verdict::Reuse(_) | Verdict::Acknowledge => {
                let Some(entry) = self.time_wait.get(slot) else { return };
                let path = ends.path(ip, now);
                let options =
                    TcpOptions { timestamps: entry.timestamps.option(now), ..<_>::default() };
                let (seq, ack) = (entry.next_seq, entry.next_ack);
                if let Ok(path) = path
                    && self.resets.take(now)
                {
                    let frame = listener::bare(ends, &path, seq, ack, Flags::ACK, 0, options);
                    // What cannot be sent was counted; the peer will ask again.
                    let _ = ip.send(now, &path, frame);
                }
            }
        }
    }

    /// The listener for a local address: one on exactly this address before one on all.
    fn listener_of(&self, local: SocketAddr) -> Option<usize> {
        let places = self.by_port.get(&local.port())?;
        let rank = |place: &usize| {
            let bound = self.listeners.get(*place)?.local;
            let wild = bound.ip().is_unspecified() && (bound.is_ipv6() || local.is_ipv4());
            (bound == local || wild).then_some((bound == local, bound.is_ipv4(), *place))
        };
        places.iter().filter_map(rank).max().map(|(_, _, place)| place)
    }

    /// A segment that belongs to no connection (RFC 9293 sections 3.10.7.1 and 3.10.7.2). `old`: the
    /// last sequence number of an earlier connection of the same ends.
    fn handle_unknown(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        ends: &Ends,
        arrival: &Arrival<'_>,
        old: Option<SeqNumber>,
    ) {
        let segment = &arrival.segment;
        let flags = segment.flags;
        if flags.contains(Flags::RST) {
            return;
        }
        let Ok(path) = ends.path(ip, now) else {
            return ip.drop("tcp-no-route");
        };
        let listener = self.listener_of(ends.local());
        match listener {
            Some(listener) if flags.contains(Flags::ACK) && !flags.contains(Flags::SYN) => {
                let opening = self.opening_of_cookie(now, ends, &path, listener, segment);
                match opening {
                    Some(opening) => self.open(ip, events, now, opening, arrival),
                    None => self.refuse(ip, now, ends, &path, segment),
                }
            }
            Some(listener) if flags.contains(Flags::SYN) && !flags.contains(Flags::ACK) => {
                self.handle_syn(ip, now, ends, &path, listener, segment, old);
            }
            _ => self.refuse(ip, now, ends, &path, segment),
        }
    }

    fn refuse(
        &mut self,
        ip: &mut Ip,
        now: Instant,
        ends: &Ends,
        path: &Path,
        segment: &Segment<'_>,
    ) {
        if !self.resets.take(now) {
            return ip.drop("tcp-reset-rate");
        }
        let Reset { seq, ack } = Reset::answer(segment);
        let flags = if ack.is_some() { Flags::RST | Flags::ACK } else { Flags::RST };
        let ack = ack.unwrap_or_default();
        let frame = listener::bare(ends, path, seq, ack, flags, 0, TcpOptions::default());
        // What cannot be sent was counted; the peer will ask again.
        let _ = ip.send(now, path, frame);
    }

    /// An ICMP error came back about a segment of ours.
    pub(crate) fn handle_error(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        ends: &Ends,
        seq: SeqNumber,
        error: Error,
    ) {
        let Some(Place::Connection(slot)) = self.places.get(ends).copied() else { return };
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.sender.is_in_flight(seq) {
            let reaction = connection.handle_icmp(error);
            self.react(ip, events, now, slot, reaction);
        }
    }

    /// True if a segment of this number is on its way between these ends.
    pub(crate) fn is_in_flight(&self, ends: &Ends, seq: SeqNumber) -> bool {
        match self.places.get(ends) {
            Some(Place::Connection(slot)) => self
                .connections
                .get(*slot)
                .is_some_and(|connection| connection.sender.is_in_flight(seq)),
            _ => false,
        }
    }

    /// The path to the other end takes less than was thought.
    pub(crate) fn handle_too_big(&mut self, ip: &Ip, now: Instant, ends: &Ends) {
        let Some(Place::Connection(slot)) = self.places.get(ends).copied() else { return };
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if let Ok(path) = ends.path(ip, now) {
            connection.generation = ip.generation;
            connection.set_path(now, path, true);
            self.touch(slot);
        }
    }

    /// Writes the next unit into `frame`: the interface that it leaves by.
    pub(crate) fn poll_transmit(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        frame: &mut FrameBuf,
    ) -> Option<NicIndex> {
        while let Some(slot) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            connection.queued = false;
            if connection.generation != ip.generation {
                connection.generation = ip.generation;
                if let Ok(path) = connection.ends.path(ip, now) {
                    connection.set_path(now, path, false);
                }
            }
            if !connection.poll_transmit(now, &self.shared.settings, frame) {
                match connection.state {
                    State::TimeWait => self.retire(now, slot),
                    _ => self.wheel.set(wheel_key(slot), connection.deadline()),
                }
                continue;
            }
            if connection.has_made_room() && connection.orphan.is_none() {
                events.tell(&mut connection.told, Event::Tcp(TcpId(slot)));
            }
            let sent = ip.transmit(now, &connection.path, frame);
            if sent == Sent::Unreachable {
                let reaction = connection.handle_icmp(Error::HostUnreachable);
                self.react(ip, events, now, slot, reaction);
                continue;
            }
            // There may be more; the others have their turn first.
            self.touch(slot);
            if let Sent::By(nic) = sent {
                return Some(nic);
            }
        }
        None
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.wheel.next(), self.opening_wheel.next(), self.time_wait.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(crate) fn handle_timeout(&mut self, ip: &mut Ip, events: &mut Events, now: Instant) {
        let mut expired = Vec::new();
        self.wheel.expire(now, &mut expired);
        for slot in expired.drain(..).filter_map(|key| usize::try_from(key).ok()) {
            if let Some(connection) = self.connections.get_mut(slot) {
                let reaction = connection.handle_timeout(now);
                self.react(ip, events, now, slot, reaction);
            }
        }
        self.opening_wheel.expire(now, &mut expired);
        for slot in expired.into_iter().filter_map(|key| usize::try_from(key).ok()) {
            let Some(opening) = self.openings.get(slot) else { continue };
            if opening.answers >= MAX_ANSWERS {
                self.remove_opening(slot);
            } else {
                self.answer_syn(ip, now, slot);
            }
        }
        while let Some(ends) = self.time_wait.expire(now) {
            self.forget(Some(ends));
        }
    }
}

/// A place of a slab as a key of a wheel.
fn wheel_key(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}
