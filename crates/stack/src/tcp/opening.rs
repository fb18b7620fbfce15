//! How peers open connections: SYNs, what is answered, cookies, and the step that makes a connection.

use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;
use netyard_wire::tcp::{Flags, Segment};

use super::connection::Connection;
use super::ends::Ends;
use super::listener::{self, Listener, MAX_ANSWERS, Opening};
use super::peer::Peer;
use super::receiver::Receiver;
use super::rtt::Rtt;
use super::timestamps::Timestamps;
use super::{Arrival, ListenerId, Place, Tcp, keys, wheel_key};
use crate::event::{Event, Events};
use crate::ip::{Ip, Path};

/// How far behind an old connection's last sequence number a new one begins (as Linux).
const REUSE_GAP: u32 = 65_537;
/// A cookie is not looked for when none was given out for so long.
const COOKIE_LIFETIME: Duration = Duration::from_secs(128);

impl Tcp {
    #[expect(clippy::too_many_arguments, reason = "what is known about a SYN")]
    pub(super) fn handle_syn(
        &mut self,
        ip: &mut Ip,
        now: Instant,
        ends: &Ends,
        path: &Path,
        place: usize,
        segment: &Segment<'_>,
        old: Option<SeqNumber>,
    ) {
        let Some(listener) = self.listeners.get_mut(place) else { return };
        if listener.is_full() {
            return ip.drop("tcp-backlog-full");
        }
        let mut peer = Peer::of(segment, ends.is_ipv4());
        peer.timestamp = peer.timestamp.filter(|_| self.shared.settings.timestamps);
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
            let frame = listener::answer(ends, path, &peer, iss, clock, &self.shared.settings);
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
    pub(super) fn answer_syn(&mut self, ip: &mut Ip, now: Instant, slot: usize) {
        let Some(opening) = self.openings.get_mut(slot) else { return };
        let clock = opening.timestamps.option(now);
        let Opening { ends, path, peer, iss, .. } = &*opening;
        let frame = listener::answer(ends, path, peer, *iss, clock, &self.shared.settings);
        let path = *path;
        let wait = Rtt::new(self.shared.settings.min_rto).timeout() * (1 << opening.answers.min(6));
        opening.answers += 1;
        self.opening_wheel.set(wheel_key(slot), Some(now + wait));
        // What cannot be sent was counted, and goes again.
        let _ = ip.send(now, &path, frame);
    }

    pub(super) fn handle_opening(
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
        let window = u32::from(Receiver::syn_window(&self.shared.settings));
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

    pub(super) fn remove_opening(&mut self, slot: usize) -> Option<Opening> {
        let opening = self.openings.try_remove(slot)?;
        self.places.remove(&opening.ends);
        self.opening_wheel.set(wheel_key(slot), None);
        if let Some(listener) = self.listeners.get_mut(opening.listener) {
            listener.openings = listener.openings.saturating_sub(1);
        }
        Some(opening)
    }

    /// What a cookie remembers, if a segment acknowledges one of ours.
    pub(super) fn opening_of_cookie(
        &self,
        now: Instant,
        ends: &Ends,
        path: &Path,
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
            peer,
            iss,
            timestamps,
            since: now,
            answers: 0,
        })
    }

    /// The peer has acknowledged our SYN: a connection is there, and waits to be accepted.
    pub(super) fn open(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        now: Instant,
        opening: Opening,
        arrival: &Arrival<'_>,
    ) {
        let Some(listener) = self.listeners.get_mut(opening.listener) else { return };
        let Opening { ends, path, iss, timestamps, peer, .. } = opening;
        let mut connection =
            Connection::new(now, ends, path, iss, timestamps, &self.shared.settings);
        connection.generation = ip.generation;
        connection.open(now, &peer, &self.shared.settings);
        connection.establish(now);
        // Nobody knows its name yet: nothing is told of it before it is accepted.
        connection.told = true;
        if opening.answers == 1 {
            // Karn: only an answer that was sent once tells the round trip.
            connection.sender.rtt.measure(now.saturating_duration_since(opening.since));
        }
        let slot = self.connections.insert(Box::new(connection));
        self.places.insert(ends, Place::Connection(slot));
        listener.waiting.push_back(slot);
        let id = ListenerId(opening.listener);
        events.tell(&mut listener.told, Event::Listener(id));
        self.handle_connection(ip, events, now, slot, arrival);
    }
}
