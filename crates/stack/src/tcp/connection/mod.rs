//! One connection: the state machine of RFC 9293 section 3.10, with the stricter checks of RFC 5961. The
//! segments that it sends are made in [`segments`].

mod segments;

use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;
use netyard_wire::tcp::{Flags, Segment};

use super::Shared;
use super::ends::Ends;
use super::peer::Peer;
use super::receiver::{Received, Receiver};
use super::sender::{Acked, Sender};
use super::settings::{Options, Settings};
use super::timestamps::Timestamps;
use crate::Error;
use crate::bucket::Bucket;
use crate::ip::Path;

/// SYNs that are sent again before an open is given up (Linux's `tcp_syn_retries`).
const MAX_SYNS: u32 = 6;
/// How long the peer of a connection that no program has any more may acknowledge nothing new, whether it is silent or
/// keeps its window closed (more than the 100 seconds of RFC 1122 section 4.2.3.5).
const ORPHAN_PATIENCE: Duration = Duration::from_secs(120);
/// RFC 5961 section 7: challenges are limited, for each connection by itself so that nobody learns
/// anything from it.
const CHALLENGES_PER_SECOND: u32 = 10;
const CHALLENGES_AT_ONCE: u32 = 10;

/// The states of RFC 9293 section 3.3.2. LISTEN has no connection; SYN-RECEIVED is one only where
/// both ends open at once; TIME-WAIT lasts until the table of connections has noted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A SYN was sent.
    SynSent,
    /// Both ends have sent a SYN.
    SynReceived,
    /// Open.
    Established,
    /// This end has sent a FIN.
    FinWait1,
    /// It was acknowledged.
    FinWait2,
    /// The other end has sent a FIN.
    CloseWait,
    /// Both have, and ours is not acknowledged.
    Closing,
    /// The same, after the other end was first.
    LastAck,
    /// Both have finished; late segments are expected.
    TimeWait,
    /// Over.
    Closed,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(in crate::tcp) ends: Ends,
    pub(in crate::tcp) state: State,
    pub(in crate::tcp) path: Path,
    /// The generation of routes that `path` is from.
    pub(in crate::tcp) generation: u64,
    pub(in crate::tcp) sender: Sender,
    pub(in crate::tcp) receiver: Receiver,
    pub(in crate::tcp) options: Options,
    timestamps: Timestamps,
    /// The largest payload that the peer takes, without options.
    peer_mss: u16,
    /// Why it ended; told once.
    pub(in crate::tcp) error: Option<Error>,
    /// What an ICMP error said that does not end it (RFC 1122 section 4.2.3.9).
    soft_error: Option<Error>,
    /// When the program has closed it.
    pub(in crate::tcp) orphan: Option<Instant>,
    /// There until our SYN is acknowledged.
    handshake: Option<Box<Handshake>>,
    /// When something that was believed last came from the peer, and how often it was asked since.
    heard: Instant,
    questions: u32,
    keepalive_due: bool,
    /// When an orphan gives up waiting for the peer's FIN.
    pub(in crate::tcp) fin_wait_at: Option<Instant>,
    challenges: Bucket<CHALLENGES_PER_SECOND, CHALLENGES_AT_ONCE>,
    pub(in crate::tcp) told: bool,
    /// The program found no room, and waits for some.
    pub(in crate::tcp) wants_room: bool,
    /// It is in the list of those that have something to send.
    pub(in crate::tcp) queued: bool,
}

/// Our SYNs.
#[derive(Debug, Default)]
struct Handshake {
    /// One is to be sent.
    due: bool,
    /// When the next one is.
    at: Option<Instant>,
    /// When the first one was sent, and how many were since.
    first: Option<Instant>,
    sent: u32,
}

/// What a segment did, beyond the state of the connection itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reaction {
    /// The program may want to know.
    pub(in crate::tcp) changed: bool,
    /// The peer has taken something: its way works.
    pub(in crate::tcp) progress: bool,
    /// Answer with this RST.
    pub(in crate::tcp) reset: Option<Reset>,
}

/// A RST to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reset {
    pub(in crate::tcp) seq: SeqNumber,
    /// With an acknowledgement.
    pub(in crate::tcp) ack: Option<SeqNumber>,
}

impl Reset {
    /// The answer to a segment that belongs to nothing (RFC 9293 section 3.10.7.1).
    pub(in crate::tcp) fn answer(segment: &Segment<'_>) -> Self {
        if segment.flags.contains(Flags::ACK) {
            Self { seq: segment.ack, ack: None }
        } else {
            Self { seq: SeqNumber(0), ack: Some(segment.seq + segment.len()) }
        }
    }
}

impl Connection {
    /// A connection that is to be opened, its SYN not sent yet.
    pub(in crate::tcp) fn new(
        now: Instant,
        ends: Ends,
        path: Path,
        iss: SeqNumber,
        timestamps: Timestamps,
        settings: &Settings,
    ) -> Self {
        Self {
            ends,
            state: State::SynSent,
            path,
            generation: 0,
            sender: Sender::new(now, iss, settings),
            receiver: Receiver::new(now, SeqNumber(0), settings),
            options: Options::default(),
            timestamps,
            peer_mss: 0,
            error: None,
            soft_error: None,
            orphan: None,
            handshake: Some(Box::new(Handshake { due: true, ..Handshake::default() })),
            heard: now,
            questions: 0,
            keepalive_due: false,
            fin_wait_at: None,
            challenges: Bucket::new(now),
            told: false,
            wants_room: false,
            queued: false,
        }
    }

    /// The handshake is over as far as the peer's SYN goes.
    pub(in crate::tcp) fn open(&mut self, now: Instant, peer: &Peer, settings: &Settings) {
        self.peer_mss = peer.mss;
        self.timestamps.negotiate(now, peer.timestamp);
        self.receiver = Receiver::new(now, peer.seq, settings);
        self.receiver.set_limit(self.options.receive_buffer, settings);
        let scale = if peer.scaled { settings.window_scale() } else { 0 };
        self.receiver.open(scale, peer.sack && settings.sack);
        let scaled = peer.scaled && settings.window_scaling;
        let peer = Peer {
            scale: if scaled { peer.scale } else { 0 },
            sack: peer.sack && settings.sack,
            ..*peer
        };
        self.sender.open(now, &peer, self.segment_len());
        self.heard = now;
    }

    /// The path is another than before, or takes less. `too_big`: what is on its way did not fit.
    pub(in crate::tcp) fn set_path(&mut self, now: Instant, path: Path, too_big: bool) {
        self.path = path;
        if self.is_open() {
            let before = self.sender.mss;
            self.sender.set_mss(self.segment_len());
            if too_big && self.sender.mss < before {
                self.sender.resend(now);
            }
        }
    }

    fn is_open(&self) -> bool {
        !matches!(self.state, State::SynSent | State::Closed)
    }

    /// True if the program can still read or be told of an end.
    pub(in crate::tcp) fn is_readable(&self) -> bool {
        let over = self.receiver.finished || self.receiver.shut;
        self.receiver.unread() > 0
            || (over && self.state != State::SynReceived)
            || self.error.is_some()
            || matches!(self.state, State::Closed | State::TimeWait)
    }

    /// RFC 9293 section 3.10.7. `size`: how long the segments were that the payload came in.
    pub(in crate::tcp) fn handle(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        size: usize,
        shared: &mut Shared,
    ) -> Reaction {
        match self.state {
            State::Closed | State::TimeWait => Reaction::default(),
            State::SynSent => self.handle_syn_sent(now, segment, &shared.settings),
            _ => self.handle_synchronized(now, segment, size, shared),
        }
    }

    /// RFC 9293 section 3.10.7.3.
    fn handle_syn_sent(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        settings: &Settings,
    ) -> Reaction {
        let flags = segment.flags;
        let acks = flags.contains(Flags::ACK);
        if acks && segment.ack != self.sender.next {
            let reset = (!flags.contains(Flags::RST)).then(|| Reset::answer(segment));
            return Reaction { reset, ..Reaction::default() };
        }
        if flags.contains(Flags::RST) {
            return if acks { self.fail(Error::ConnectionRefused) } else { Reaction::default() };
        }
        if !flags.contains(Flags::SYN) {
            return Reaction::default();
        }
        // RFC 7323 section 2.2: what we did not offer cannot be agreed on.
        let mut peer = Peer::of(segment, self.ends.is_ipv4());
        peer.timestamp = peer.timestamp.filter(|_| settings.timestamps);
        let una = self.sender.una;
        self.open(now, &peer, settings);
        if acks {
            // Karn: only a SYN that was sent once tells the round trip.
            let once = self.handshake.take().filter(|handshake| handshake.sent == 1);
            if let Some(sent) = once.and_then(|handshake| handshake.first) {
                self.sender.rtt.measure(now.saturating_duration_since(sent));
            }
            self.establish(now);
            self.receiver.ack_due = true;
            return Reaction { changed: true, progress: true, reset: None };
        }
        // Both ends open at once (RFC 9293 section 3.5): answer with a SYN that acknowledges.
        self.state = State::SynReceived;
        self.sender.una = una;
        self.answer_syn();
        Reaction::default()
    }

    /// RFC 9293 section 3.10.7.4.
    fn handle_synchronized(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        size: usize,
        shared: &mut Shared,
    ) -> Reaction {
        let flags = segment.flags;
        let crossed = self.state == State::SynReceived
            && flags.contains(Flags::SYN)
            && !flags.contains(Flags::RST);
        if crossed && segment.seq + 1u32 == self.receiver.next {
            return self.handle_crossed_syn(now, segment);
        }
        // RFC 7323 section 5.3, R1: an old duplicate. A reset has no timestamp to go by.
        if !flags.contains(Flags::RST) && self.timestamps.is_old(now, segment) {
            self.receiver.note_duplicate(segment.seq, segment.payload.len());
            return self.challenge(now);
        }
        if !self.receiver.acceptable(segment.seq, segment.len()) {
            if !flags.contains(Flags::RST) {
                self.receiver.note_duplicate(segment.seq, segment.payload.len());
                return self.challenge(now);
            }
            return Reaction::default();
        }
        if flags.contains(Flags::RST) {
            // RFC 5961 section 3.2: only the exact number is believed, others are asked about.
            if segment.seq != self.receiver.next {
                return self.challenge(now);
            }
            return match self.state {
                State::SynReceived => self.fail(Error::ConnectionRefused),
                State::CloseWait => self.fail(Error::BrokenPipe),
                State::Closing | State::LastAck => self.end(),
                _ => self.fail(Error::ConnectionReset),
            };
        }
        if flags.contains(Flags::SYN) {
            // RFC 5961 section 4.2.
            return self.challenge(now);
        }
        if !flags.contains(Flags::ACK) {
            return Reaction::default();
        }
        let opened = self.state == State::SynReceived;
        if opened {
            if segment.ack != self.sender.next {
                let reset = Some(Reset::answer(segment));
                return Reaction { reset, ..Reaction::default() };
            }
            self.establish(now);
        }
        if !self.sender.acceptable(segment.ack) {
            return self.challenge(now);
        }
        (self.heard, self.questions) = (now, 0);
        // Only of what is believed: else one forged clock would make all that follows old duplicates.
        if self.receiver.echoes(segment.seq) {
            self.timestamps.learn(now, segment);
        }
        let reaction = self.handle_accepted(now, segment, size, shared);
        Reaction { changed: reaction.changed || opened, ..reaction }
    }

    /// The peer's SYN once more, with an acknowledgement of ours: both ends opened at once.
    fn handle_crossed_syn(&mut self, now: Instant, segment: &Segment<'_>) -> Reaction {
        if segment.flags.contains(Flags::ACK) && segment.ack == self.sender.next {
            self.establish(now);
            self.receiver.ack_due = true;
            return Reaction { changed: true, progress: true, reset: None };
        }
        self.answer_syn();
        Reaction::default()
    }

    /// The peer's SYN is acknowledged with ours.
    fn answer_syn(&mut self) {
        if let Some(handshake) = &mut self.handshake {
            (handshake.due, handshake.at) = (true, None);
        }
    }

    /// The peer has acknowledged our SYN.
    pub(in crate::tcp) fn establish(&mut self, now: Instant) {
        // The program may have closed it meanwhile.
        self.state = if self.sender.closing { State::FinWait1 } else { State::Established };
        self.sender.una = self.sender.next;
        self.sender.progress = now;
        self.handshake = None;
    }

    /// A segment that has passed all checks: its acknowledgement, payload and FIN.
    fn handle_accepted(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        size: usize,
        shared: &mut Shared,
    ) -> Reaction {
        let carries = !segment.is_empty();
        let echoed = self.timestamps.round_trip(now, segment);
        let acked = self.sender.handle_ack(now, segment, !carries, echoed, shared);
        let mut reaction = Reaction { progress: matches!(acked, Acked::New(_)), ..<_>::default() };
        reaction.changed = reaction.progress && self.has_made_room();
        if self.sender.finished() {
            match self.state {
                State::FinWait1 => {
                    self.state = State::FinWait2;
                    self.wait_for_fin(now, &shared.settings);
                    reaction.changed = true;
                }
                State::Closing => {
                    self.state = State::TimeWait;
                    reaction.changed = true;
                }
                State::LastAck => return self.end(),
                _ => {}
            }
        }
        let receives = matches!(self.state, State::Established | State::FinWait1 | State::FinWait2);
        if !receives || !carries {
            // RFC 9293 section 3.10.7.4: a FIN that comes again is acknowledged again.
            self.receiver.ack_due |= carries;
            return reaction;
        }
        if self.orphan.is_some()
            && !segment.payload.is_empty()
            && segment.seq.ge(self.receiver.next)
        {
            // RFC 1122 section 4.2.2.13: nobody will ever read this, and the peer should know.
            self.state = State::Closed;
            let reset = Reset { seq: self.sender.next, ack: Some(self.receiver.next) };
            return Reaction { reset: Some(reset), ..reaction };
        }
        let fin = segment.flags.contains(Flags::FIN);
        let received = self.receiver.take(now, segment.seq, segment.payload, fin, size, shared);
        reaction.changed |= received == Received::Next;
        if self.receiver.finished {
            self.state = match self.state {
                State::Established => State::CloseWait,
                State::FinWait1 => State::Closing,
                _ => State::TimeWait,
            };
            reaction.changed = true;
        }
        reaction
    }

    /// RFC 5961: whoever sent this is asked by an acknowledgement whether it is really the peer.
    fn challenge(&mut self, now: Instant) -> Reaction {
        self.receiver.ack_due |= self.challenges.take(now);
        Reaction::default()
    }

    /// It ends with an error that the program gets to know.
    pub(in crate::tcp) fn fail(&mut self, error: Error) -> Reaction {
        self.state = State::Closed;
        self.error = Some(error);
        Reaction { changed: true, ..Reaction::default() }
    }

    fn end(&mut self) -> Reaction {
        self.state = State::Closed;
        Reaction { changed: true, ..Reaction::default() }
    }

    fn wait_for_fin(&mut self, now: Instant, settings: &Settings) {
        if self.orphan.is_some() && self.state == State::FinWait2 {
            self.fin_wait_at = Some(now + settings.fin_wait);
        }
    }

    /// An ICMP error came back (RFC 5461: it ends an open, but not an open connection).
    pub(in crate::tcp) fn handle_icmp(&mut self, error: Error) -> Reaction {
        match self.state {
            State::SynSent => self.fail(error),
            _ => {
                self.soft_error = Some(error);
                Reaction::default()
            }
        }
    }

    /// The program writes no more.
    pub(in crate::tcp) fn shut_write(&mut self) {
        self.sender.closing = true;
        self.state = match self.state {
            State::Established => State::FinWait1,
            State::CloseWait => State::LastAck,
            state => state,
        };
    }

    /// The program is done with it. `Some`: the peer is to hear a RST, and it is over.
    pub(in crate::tcp) fn close(&mut self, now: Instant, settings: &Settings) -> Option<Reset> {
        self.orphan = Some(now);
        match self.state {
            State::Closed | State::TimeWait => return None,
            State::SynSent => {
                self.state = State::Closed;
                return None;
            }
            _ => {}
        }
        // RFC 2525 section 2.17: the peer must not take unread data for read.
        if self.options.reset_on_close || self.receiver.unread() > 0 {
            self.state = State::Closed;
            return Some(Reset { seq: self.sender.next, ack: Some(self.receiver.next) });
        }
        self.shut_write();
        self.wait_for_fin(now, settings);
        None
    }

    /// True if the program's bytes have room, or it would be told of an end. If not, it will hear of it.
    pub(in crate::tcp) fn is_writable(&mut self) -> bool {
        match self.state {
            State::SynSent | State::SynReceived => false,
            State::Established | State::CloseWait if !self.sender.closing => {
                self.wants_room = !self.sender.is_roomy();
                !self.wants_room || self.error.is_some()
            }
            _ => true,
        }
    }

    /// True if the program waits for room, and there is some now.
    pub(in crate::tcp) fn has_made_room(&mut self) -> bool {
        let roomy = self.wants_room && self.sender.is_roomy();
        self.wants_room &= !roomy;
        roomy
    }

    /// The error to tell the program, once.
    pub(in crate::tcp) fn take_error(&mut self) -> Option<Error> {
        self.error.take().or_else(|| self.soft_error.take())
    }

    /// When [`Connection::handle_timeout`] has something to do.
    pub(in crate::tcp) fn deadline(&self) -> Option<Instant> {
        let open = self.is_open() && self.state != State::TimeWait;
        [
            self.handshake.as_ref().and_then(|handshake| handshake.at),
            self.sender.deadline().filter(|_| open),
            self.receiver.deadline().filter(|_| open),
            self.keepalive_at().filter(|_| open),
            self.give_up_at(),
            self.fin_wait_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// When one that no program has any more is given up, unless the peer acknowledges something new before.
    fn give_up_at(&self) -> Option<Instant> {
        let since = self.orphan?.max(self.sender.progress);
        (self.is_open() && !self.sender.finished()).then(|| since + ORPHAN_PATIENCE)
    }

    fn keepalive_at(&self) -> Option<Instant> {
        let keepalive = self.options.keepalive?;
        // What is on its way is asked after by its own timer.
        let waits = self.sender.is_quiet();
        let silence = keepalive.interval.saturating_mul(self.questions);
        // What ends after all time never comes.
        self.heard.checked_add(keepalive.idle.saturating_add(silence)).filter(|_| waits)
    }

    /// Lets what is due happen.
    pub(in crate::tcp) fn handle_timeout(&mut self, now: Instant) -> Reaction {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.fin_wait_at) {
            self.state = State::Closed;
            return Reaction::default();
        }
        if due(self.give_up_at()) {
            return self.fail(Error::TimedOut);
        }
        if let Some(handshake) = self.handshake.as_mut().filter(|handshake| due(handshake.at)) {
            let limit = self.options.user_timeout.zip(handshake.first);
            let over = limit.is_some_and(|(limit, first)| waited(now, first) >= limit);
            if over || handshake.sent > MAX_SYNS {
                return self.fail(self.soft_error.unwrap_or(Error::TimedOut));
            }
            (handshake.due, handshake.at) = (true, None);
            self.sender.rtt.back_off();
        }
        if !self.is_open() || self.state == State::TimeWait {
            return Reaction::default();
        }
        if due(self.keepalive_at()) {
            let count = self.options.keepalive.map_or(0, |keepalive| keepalive.count);
            let silent = waited(now, self.heard);
            let limit = self.options.user_timeout.is_some_and(|limit| silent >= limit);
            if self.questions >= count || (limit && self.questions > 0) {
                return self.fail(Error::TimedOut);
            }
            self.questions += 1;
            self.keepalive_due = true;
        }
        self.receiver.handle_timeout(now);
        if !self.sender.handle_timeout(now, self.options.user_timeout) {
            return self.fail(self.soft_error.unwrap_or(Error::TimedOut));
        }
        Reaction::default()
    }

    /// What is remembered of it when both ends have finished.
    pub(in crate::tcp) fn remembered(&self) -> (SeqNumber, SeqNumber, Timestamps) {
        (self.sender.next, self.receiver.next, self.timestamps)
    }
}

fn waited(now: Instant, since: Instant) -> Duration {
    now.saturating_duration_since(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_takes_less_than_a_kibibyte() {
        // Its buffers are empty, and cost nothing; the tables add a few words.
        assert!(size_of::<Connection>() < 900, "{} bytes", size_of::<Connection>());
    }
}
