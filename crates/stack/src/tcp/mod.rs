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
//! A connection is [`connection`], whose two directions are [`sender`] and [`receiver`].

mod assembler;
mod board;
mod congestion;
mod connection;
mod keys;
mod listener;
mod queue;
mod receiver;
mod rtt;
mod sender;
mod settings;
mod sockets;
mod time_wait;
mod timestamps;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wheel::Wheel;
use netyard_wire::tcp::{Flags, Segment, TcpOptions};
use netyard_wire::{FrameBuf, Gso, SeqNumber};
use slab::Slab;

use self::connection::{Connection, Reaction, Reset};
use self::keys::{Keyed, Keys};
use self::listener::{Listener, MAX_ANSWERS, Opening};
use self::sender::Peer;
use self::time_wait::{TimeWait, Verdict};
use self::timestamps::Timestamps;
use crate::Error;
use crate::bucket::Bucket;
use crate::event::{Event, Events};
use crate::ip::{Ip, NicIndex, Path, Sent, is_link_local};

pub use self::congestion::Algorithm;
pub(crate) use self::connection::Ends;
pub use self::connection::State;
pub use self::settings::{Keepalive, Options, Settings};
pub use self::sockets::{Info, ListenerId, TcpId};

/// How far behind an old connection's last sequence number a new one begins (as Linux).
const REUSE_GAP: u32 = 65_537;
/// Resets to segments that belong to nothing.
const RESETS_PER_SECOND: u32 = 1000;
const RESETS_AT_ONCE: u32 = 100;
/// A cookie is not looked for when none was given out for so long.
const COOKIE_LIFETIME: std::time::Duration = std::time::Duration::from_secs(128);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Connection(usize),
    Opening(usize),
    TimeWait(usize),
}

#[derive(Debug)]
pub(crate) struct Tcp {
    settings: Settings,
    places: HashMap<Ends, Place, Keyed>,
    connections: Slab<Connection>,
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
    pub(crate) nic: Option<NicIndex>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) segment: Segment<'a>,
    pub(crate) gso: Option<Gso>,
}

impl Tcp {
    pub(crate) fn new(now: Instant, ip: &mut Ip, settings: Settings) -> Self {
        Self {
            settings,
            places: HashMap::with_hasher(Keys::table(&mut ip.rng)),
            connections: Slab::new(),
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
        let segment = &arrival.segment;
        let ends = Ends {
            local: SocketAddr::new(arrival.destination, segment.destination_port),
            remote: SocketAddr::new(arrival.source, segment.source_port),
        };
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
        let reaction = connection.handle(now, segment, size, &self.settings);
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
        if reaction.changed && !connection.orphan {
            events.tell(&mut connection.told, Event::Tcp(TcpId(slot)));
        }
        if let Some(reset) = reaction.reset {
            let (path, frame) = (connection.path, connection.reset_frame(reset));
            // What cannot be sent was counted; the peer will ask again.
            let _ = ip.send(now, &path, frame);
        }
        if connection.state == State::Closed {
            self.finish(slot);
        } else {
            self.touch(slot);
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
        if connection.orphan {
            self.connections.remove(slot);
        }
    }

    /// Both ends of a connection have finished: a small entry remembers it.
    fn retire(&mut self, now: Instant, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.state = State::Closed;
        let (ends, nic, remembered) = (connection.ends, connection.nic, connection.remembered());
        self.finish(slot);
        let (place, gone) = self.time_wait.insert(now, ends, nic, remembered);
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
        match self.time_wait.handle(now, slot, &arrival.segment) {
            Verdict::Ignore => {}
            Verdict::Reuse(old) if self.listener_of(ends.local).is_some() => {
                self.time_wait.remove(slot);
                self.places.remove(ends);
                self.handle_unknown(ip, events, now, ends, arrival, Some(old));
            }
            Verdict::Reuse(_) | Verdict::Acknowledge => {
                let Some(entry) = self.time_wait.get(slot) else { return };
                let path = ip.path(now, Some(ends.local.ip()), entry.nic, ends.remote.ip());
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
            let bound = self.listeners.get(*place)?.local.ip();
            let wild = bound.is_unspecified() && (bound.is_ipv6() || local.is_ipv4());
            (bound == local.ip() || wild).then_some((bound == local.ip(), bound.is_ipv4(), *place))
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
        let nic = arrival.nic.filter(|_| is_link_local(ends.remote.ip()));
        let Ok(path) = ip.path(now, Some(ends.local.ip()), nic, ends.remote.ip()) else {
            return ip.drop("tcp-no-route");
        };
        let listener = self.listener_of(ends.local);
        match listener {
            Some(listener) if flags.contains(Flags::ACK) && !flags.contains(Flags::SYN) => {
                let opening = self.opening_of_cookie(now, ends, &path, nic, listener, segment);
                match opening {
                    Some(opening) => self.open(ip, events, now, opening, arrival),
                    None => self.refuse(ip, now, ends, &path, segment),
                }
            }
            Some(listener) if flags.contains(Flags::SYN) && !flags.contains(Flags::ACK) => {
                self.handle_syn(ip, now, ends, &path, nic, listener, segment, old);
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

    #[expect(clippy::too_many_arguments, reason = "what is known about a SYN")]
    fn handle_syn(
        &mut self,
        ip: &mut Ip,
        now: Instant,
        ends: &Ends,
        path: &Path,
        nic: Option<NicIndex>,
        place: usize,
        segment: &Segment<'_>,
        old: Option<SeqNumber>,
    ) {
        let Some(listener) = self.listeners.get_mut(place) else { return };
        if listener.is_full() {
            return ip.drop("tcp-backlog-full");
        }
        let mut peer = Peer::of(segment, ends.local.is_ipv4());
        peer.timestamp = peer.timestamp.filter(|_| self.settings.timestamps);
        let mut timestamps = Timestamps::new(self.keys.epoch(), self.keys.clock_offset(ends));
        timestamps.negotiate(now, peer.timestamp);
        if listener.wants_cookies() {
            listener.cookies_at = Some(now);
            let iss = self.keys.cookie(now, ends, &peer);
            let clock = timestamps
                .option(now)
                .map(|(clock, echo)| (keys::clock_with_options(clock, &peer), echo));
            if clock.is_none() {
                // There is no place to remember these.
                (peer.scaled, peer.sack) = (false, false);
            }
            let frame = listener::answer(ends, path, &peer, iss, clock, &self.settings);
            // What cannot be sent was counted; the peer will ask again.
            let _ = ip.send(now, path, frame);
            return;
        }
        listener.openings += 1;
        let isn = self.keys.isn(now, ends);
        let iss = old.map_or(isn, |old| isn.max(old + REUSE_GAP));
        let slot = self.openings.insert(Opening {
            ends: *ends,
            listener: place,
            path: *path,
            nic,
            peer,
            iss,
            timestamps,
            since: now,
            answers: 0,
        });
        self.places.insert(*ends, Place::Opening(slot));
        self.answer_syn(ip, now, slot);
    }

    /// Answers the SYN of an opening, once more.
    fn answer_syn(&mut self, ip: &mut Ip, now: Instant, slot: usize) {
        let Some(opening) = self.openings.get_mut(slot) else { return };
        let clock = opening.timestamps.option(now);
        let Opening { ends, path, peer, iss, .. } = &*opening;
        let frame = listener::answer(ends, path, peer, *iss, clock, &self.settings);
        let path = *path;
        let wait = rtt::Rtt::new(self.settings.min_rto).timeout() * (1 << opening.answers.min(6));
        opening.answers += 1;
        self.opening_wheel.set(wheel_key(slot), Some(now + wait));
        // What cannot be sent was counted, and goes again.
        let _ = ip.send(now, &path, frame);
    }

    fn handle_opening(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        slot: usize,
        arrival: &Arrival<'_>,
    ) {
        let Some(opening) = self.openings.get(slot) else { return };
        let segment = &arrival.segment;
        let first = opening.peer.seq + 1u32;
        if segment.flags.contains(Flags::RST) {
            // RFC 5961 section 3.2: only the exact number is believed.
            if segment.seq == first {
                self.remove_opening(slot);
            }
            return;
        }
        if segment.flags.contains(Flags::SYN) {
            // Our answer was lost; or it is somebody else's SYN, whom the answer tells so.
            if opening.answers < 2 * MAX_ANSWERS {
                self.answer_syn(ip, now, slot);
            }
            return;
        }
        let window = u32::from(receiver::Receiver::syn_window(&self.settings));
        let old = opening.timestamps.is_old(now, segment);
        if !segment.flags.contains(Flags::ACK) || old || !segment.seq.between(first, first + window)
        {
            return;
        }
        if segment.ack != opening.iss + 1u32 {
            let (ends, path) = (opening.ends, opening.path);
            return self.refuse(ip, now, &ends, &path, segment);
        }
        if self.listeners.get(opening.listener).is_none_or(Listener::is_full) {
            // The peer takes it for open, and sends again; so do we.
            return ip.drop("tcp-backlog-full");
        }
        if let Some(opening) = self.remove_opening(slot) {
            self.open(ip, events, now, opening, arrival);
        }
    }

    fn remove_opening(&mut self, slot: usize) -> Option<Opening> {
        let opening = self.openings.try_remove(slot)?;
        self.places.remove(&opening.ends);
        self.opening_wheel.set(wheel_key(slot), None);
        if let Some(listener) = self.listeners.get_mut(opening.listener) {
            listener.openings = listener.openings.saturating_sub(1);
        }
        Some(opening)
    }

    /// What a cookie remembers, if a segment acknowledges one of ours.
    fn opening_of_cookie(
        &self,
        now: Instant,
        ends: &Ends,
        path: &Path,
        nic: Option<NicIndex>,
        place: usize,
        segment: &Segment<'_>,
    ) -> Option<Opening> {
        let listener = self.listeners.get(place)?;
        let given = listener.cookies_at?;
        if now.saturating_duration_since(given) > COOKIE_LIFETIME || listener.is_full() {
            return None;
        }
        let (iss, seq) = (segment.ack - 1u32, segment.seq - 1u32);
        let mss = self.keys.check_cookie(now, ends, seq, iss)?;
        let mut timestamps = Timestamps::new(self.keys.epoch(), self.keys.clock_offset(ends));
        let told = segment.options.timestamps;
        timestamps.negotiate(now, told.map(|(value, _)| value));
        let (scale, sack) = told.map_or((None, false), |(_, echo)| keys::options_of_clock(echo));
        let peer = Peer {
            seq,
            window: u32::from(segment.window) << scale.unwrap_or(0),
            mss,
            scale: scale.unwrap_or(0),
            scaled: scale.is_some(),
            sack,
            timestamp: told.map(|(value, _)| value),
        };
        Some(Opening {
            ends: *ends,
            listener: place,
            path: *path,
            nic,
            peer,
            iss,
            timestamps,
            since: now,
            answers: 0,
        })
    }

    /// The peer has acknowledged our SYN: a connection is there, and waits to be accepted.
    fn open(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        opening: Opening,
        arrival: &Arrival<'_>,
    ) {
        let Some(listener) = self.listeners.get_mut(opening.listener) else { return };
        let Opening { ends, path, iss, timestamps, peer, .. } = opening;
        let mut connection = Connection::new(now, ends, path, iss, timestamps, &self.settings);
        connection.nic = opening.nic;
        connection.generation = ip.generation;
        connection.open(now, &peer, &self.settings);
        connection.state = State::Established;
        // Nobody knows its name yet: nothing is told of it before it is accepted.
        connection.told = true;
        if opening.answers == 1 {
            // Karn: only an answer that was sent once tells the round trip.
            connection.sender.rtt.measure(now.saturating_duration_since(opening.since));
        }
        let slot = self.connections.insert(connection);
        self.places.insert(ends, Place::Connection(slot));
        listener.waiting.push_back(slot);
        let id = ListenerId(opening.listener);
        events.tell(&mut listener.told, Event::Listener(id));
        self.handle_connection(ip, events, now, slot, arrival);
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
        if let Ok(path) = ip.path(now, Some(ends.local.ip()), connection.nic, ends.remote.ip()) {
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
                let Ends { local, remote } = connection.ends;
                let path = ip.path(now, Some(local.ip()), connection.nic, remote.ip());
                if let Ok(path) = path {
                    connection.set_path(now, path, false);
                }
            }
            if !connection.poll_transmit(now, &self.settings, frame) {
                match connection.state {
                    State::TimeWait => self.retire(now, slot),
                    _ => self.wheel.set(wheel_key(slot), connection.deadline()),
                }
                continue;
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
