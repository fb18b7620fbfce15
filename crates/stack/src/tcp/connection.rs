//! One connection: the state machine of RFC 9293 section 3.10, with the stricter checks of RFC 5961.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netyard_wire::build::TcpFrame;
use netyard_wire::tcp::{Flags, Segment, TcpOptions};
use netyard_wire::{FrameBuf, MacAddr, SeqNumber};

use super::receiver::{Received, Receiver};
use super::sender::{Acked, Peer, Piece, Sender};
use super::settings::{Options, Settings};
use super::timestamps::Timestamps;
use crate::Error;
use crate::bucket::Bucket;
use crate::ip::{NicIndex, Path};

/// Length of a TCP header without options, bytes.
const HEADER_LEN: u32 = 20;
/// The same with all options.
const MAX_HEADER_LEN: u16 = 60;
/// The largest IP packet, bytes: how much goes at once is cut to segments later.
const MAX_PACKET: u16 = u16::MAX;
/// SYNs that are sent again before an open is given up (Linux's `tcp_syn_retries`).
const MAX_SYNS: u32 = 6;
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

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ends: Ends,
    pub(super) state: State,
    pub(super) path: Path,
    /// The generation of routes that `path` is from.
    pub(super) generation: u64,
    /// Where addresses mean something on one link only, that link.
    pub(super) nic: Option<NicIndex>,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) options: Options,
    timestamps: Timestamps,
    /// The largest payload that the peer takes, without options.
    peer_mss: u16,
    /// Why it ended; told once.
    pub(super) error: Option<Error>,
    /// What an ICMP error said that does not end it (RFC 1122 section 4.2.3.9).
    soft_error: Option<Error>,
    /// The program has closed it.
    pub(super) orphan: bool,
    /// A SYN is to be sent; then when the next one is, and how many were.
    syn_due: bool,
    syn_at: Option<Instant>,
    syns: u32,
    first_syn: Option<Instant>,
    /// When something last came from the peer, and how often it was asked since.
    heard: Instant,
    questions: u32,
    keepalive_due: bool,
    /// When an orphan gives up waiting for the peer's FIN.
    fin_wait_at: Option<Instant>,
    fin_wait: Duration,
    challenges: Bucket<CHALLENGES_PER_SECOND, CHALLENGES_AT_ONCE>,
    pub(super) told: bool,
    /// The program found no room, and waits for some.
    pub(super) wants_room: bool,
    /// It is in the list of those that have something to send.
    pub(super) queued: bool,
}

/// What a segment did, beyond the state of the connection itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reaction {
    /// The program may want to know.
    pub(super) changed: bool,
    /// The peer has taken something: its way works.
    pub(super) progress: bool,
    /// Answer with this RST.
    pub(super) reset: Option<Reset>,
}

/// A RST to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reset {
    pub(super) seq: SeqNumber,
    /// With an acknowledgement.
    pub(super) ack: Option<SeqNumber>,
}

impl Reset {
    /// The answer to a segment that belongs to nothing (RFC 9293 section 3.10.7.1).
    pub(super) fn answer(segment: &Segment<'_>) -> Self {
        if segment.flags.contains(Flags::ACK) {
            Self { seq: segment.ack, ack: None }
        } else {
            Self { seq: SeqNumber(0), ack: Some(segment.seq + segment.len()) }
        }
    }
}

impl Connection {
    /// A connection that is to be opened, its SYN not sent yet.
    pub(super) fn new(
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
            nic: None,
            sender: Sender::new(now, iss, settings),
            receiver: Receiver::new(now, SeqNumber(0), settings),
            options: Options::default(),
            timestamps,
            peer_mss: 0,
            error: None,
            soft_error: None,
            orphan: false,
            syn_due: true,
            syn_at: None,
            syns: 0,
            first_syn: None,
            heard: now,
            questions: 0,
            keepalive_due: false,
            fin_wait_at: None,
            fin_wait: settings.fin_wait,
            challenges: Bucket::new(now),
            told: false,
            wants_room: false,
            queued: false,
        }
    }

    /// The handshake is over as far as the peer's SYN goes.
    pub(super) fn open(&mut self, now: Instant, peer: &Peer, settings: &Settings) {
        self.peer_mss = peer.mss;
        self.timestamps.negotiate(now, peer.timestamp);
        self.receiver = Receiver::new(now, peer.seq, settings);
        let scale = if peer.scaled { settings.window_scale() } else { 0 };
        self.receiver.open(scale, peer.sack && settings.sack);
        let scaled = peer.scaled && settings.window_scaling;
        let peer = Peer {
            scale: if scaled { peer.scale } else { 0 },
            sack: peer.sack && settings.sack,
            ..*peer
        };
        self.sender.open(now, &peer, self.segment_len());
        self.syn_due = false;
        self.syn_at = None;
        self.heard = now;
    }

    /// Bytes of payload in a full segment, if it has no options but timestamps; at most what fits a
    /// packet with all options.
    fn segment_len(&self) -> u16 {
        self.payload_room(self.timestamps.len()).min(self.unit())
    }

    /// Bytes of payload that fit the largest packet, whatever its options.
    fn unit(&self) -> u16 {
        let header = if self.ends.local.is_ipv4() { 20 } else { 40 };
        MAX_PACKET - header - MAX_HEADER_LEN
    }

    /// Bytes of payload in a segment with so many bytes of options (RFC 9293 section 3.7.1, RFC 6691).
    fn payload_room(&self, options: usize) -> u16 {
        let header = if self.ends.local.is_ipv4() { 20 } else { 40 };
        let path = self.path.mtu.saturating_sub(header + HEADER_LEN);
        let path = u16::try_from(path).unwrap_or(u16::MAX);
        let options = u16::try_from(options).unwrap_or(u16::MAX);
        path.min(self.peer_mss).saturating_sub(options).max(1)
    }

    /// The path is another than before, or takes less. `too_big`: what is on its way did not fit.
    pub(super) fn set_path(&mut self, now: Instant, path: Path, too_big: bool) {
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
    pub(super) fn is_readable(&self) -> bool {
        self.receiver.unread() > 0
            || self.receiver.finished
            || self.error.is_some()
            || matches!(self.state, State::Closed | State::TimeWait)
    }

    /// RFC 9293 section 3.10.7. `size`: how long the segments were that the payload came in.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        size: usize,
        settings: &Settings,
    ) -> Reaction {
        self.heard = now;
        self.questions = 0;
        match self.state {
            State::Closed | State::TimeWait => Reaction::default(),
            State::SynSent => self.handle_syn_sent(now, segment, settings),
            _ => self.handle_synchronized(now, segment, size),
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
        let mut peer = Peer::of(segment, self.ends.local.is_ipv4());
        peer.timestamp = peer.timestamp.filter(|_| settings.timestamps);
        let (una, first_syn) = (self.sender.una, self.first_syn);
        self.open(now, &peer, settings);
        if acks {
            self.state = State::Established;
            // Karn: only a SYN that was sent once tells the round trip.
            if let Some(sent) = first_syn.filter(|_| self.syns == 1) {
                self.sender.rtt.measure(now.saturating_duration_since(sent));
            }
            self.receiver.ack_due = true;
            return Reaction { changed: true, progress: true, reset: None };
        }
        // Both ends open at once (RFC 9293 section 3.5): answer with a SYN that acknowledges.
        self.state = State::SynReceived;
        self.sender.una = una;
        self.syn_due = true;
        Reaction::default()
    }

    /// RFC 9293 section 3.10.7.4.
    fn handle_synchronized(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        size: usize,
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
        if self.receiver.echoes(segment.seq) {
            self.timestamps.learn(now, segment);
        }
        if self.state == State::SynReceived {
            if segment.ack != self.sender.next {
                let reset = Some(Reset::answer(segment));
                return Reaction { reset, ..Reaction::default() };
            }
            self.establish(now);
        }
        if !self.sender.acceptable(segment.ack) {
            return self.challenge(now);
        }
        self.handle_accepted(now, segment, size)
    }

    /// The peer's SYN once more, with an acknowledgement of ours: both ends opened at once.
    fn handle_crossed_syn(&mut self, now: Instant, segment: &Segment<'_>) -> Reaction {
        if segment.flags.contains(Flags::ACK) && segment.ack == self.sender.next {
            self.establish(now);
            self.receiver.ack_due = true;
            return Reaction { changed: true, progress: true, reset: None };
        }
        self.syn_due = true;
        Reaction::default()
    }

    fn establish(&mut self, now: Instant) {
        self.state = State::Established;
        self.sender.una = self.sender.next;
        self.sender.progress = now;
        self.syn_due = false;
        self.syn_at = None;
    }

    /// A segment that has passed all checks: its acknowledgement, payload and FIN.
    fn handle_accepted(&mut self, now: Instant, segment: &Segment<'_>, size: usize) -> Reaction {
        let carries = !segment.is_empty();
        let echoed = self.timestamps.round_trip(now, segment);
        let acked = self.sender.handle_ack(now, segment, !carries, echoed);
        let mut reaction = Reaction { progress: matches!(acked, Acked::New(_)), ..<_>::default() };
        if reaction.progress && self.wants_room && self.sender.is_roomy() {
            self.wants_room = false;
            reaction.changed = true;
        }
        if self.sender.finished() {
            match self.state {
                State::FinWait1 => {
                    self.state = State::FinWait2;
                    self.wait_for_fin(now);
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
        if self.orphan && !segment.payload.is_empty() && segment.seq.ge(self.receiver.next) {
            // RFC 1122 section 4.2.2.13: nobody will ever read this, and the peer should know.
            self.state = State::Closed;
            let reset = Reset { seq: self.sender.next, ack: Some(self.receiver.next) };
            return Reaction { reset: Some(reset), ..reaction };
        }
        let fin = segment.flags.contains(Flags::FIN);
        let received = self.receiver.take(now, segment.seq, segment.payload, fin, size);
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
    pub(super) fn fail(&mut self, error: Error) -> Reaction {
        self.state = State::Closed;
        self.error = Some(error);
        Reaction { changed: true, ..Reaction::default() }
    }

    fn end(&mut self) -> Reaction {
        self.state = State::Closed;
        Reaction { changed: true, ..Reaction::default() }
    }

    fn wait_for_fin(&mut self, now: Instant) {
        if self.orphan && self.state == State::FinWait2 {
            self.fin_wait_at = Some(now + self.fin_wait);
        }
    }

    /// An ICMP error came back (RFC 5461: it ends an open, but not an open connection).
    pub(super) fn handle_icmp(&mut self, error: Error) -> Reaction {
        match self.state {
            State::SynSent => self.fail(error),
            _ => {
                self.soft_error = Some(error);
                Reaction::default()
            }
        }
    }

    /// The program writes no more.
    pub(super) fn shut_write(&mut self) {
        self.sender.closing = true;
        self.state = match self.state {
            State::Established | State::SynReceived => State::FinWait1,
            State::CloseWait => State::LastAck,
            state => state,
        };
    }

    /// The program is done with it. `Some`: the peer is to hear a RST, and it is over.
    pub(super) fn close(&mut self, now: Instant) -> Option<Reset> {
        self.orphan = true;
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
        self.wait_for_fin(now);
        None
    }

    /// True if the program's bytes have room, or it would be told of an end. If not, it will hear of it.
    pub(super) fn is_writable(&mut self) -> bool {
        match self.state {
            State::SynSent | State::SynReceived => false,
            State::Established | State::CloseWait if !self.sender.closing => {
                self.wants_room = !self.sender.is_roomy();
                !self.wants_room || self.error.is_some()
            }
            _ => true,
        }
    }

    /// The error to tell the program, once.
    pub(super) fn take_error(&mut self) -> Option<Error> {
        self.error.take().or_else(|| self.soft_error.take())
    }

    /// When [`Connection::handle_timeout`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let open = self.is_open() && self.state != State::TimeWait;
        [
            self.syn_at,
            self.sender.deadline().filter(|_| open),
            self.receiver.deadline().filter(|_| open),
            self.keepalive_at().filter(|_| open),
            self.fin_wait_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn keepalive_at(&self) -> Option<Instant> {
        let keepalive = self.options.keepalive?;
        // What is on its way is asked after by its own timer.
        let waits = self.sender.is_quiet();
        waits.then(|| self.heard + keepalive.idle + keepalive.interval * self.questions)
    }

    /// Lets what is due happen.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Reaction {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.fin_wait_at) {
            self.state = State::Closed;
            return Reaction::default();
        }
        if due(self.syn_at) {
            let limit = self.options.user_timeout.zip(self.first_syn);
            let over = limit.is_some_and(|(limit, first)| first + limit <= now);
            if over || self.syns > MAX_SYNS {
                return self.fail(self.soft_error.unwrap_or(Error::TimedOut));
            }
            self.sender.rtt.back_off();
            self.syn_at = None;
            self.syn_due = true;
        }
        if !self.is_open() || self.state == State::TimeWait {
            return Reaction::default();
        }
        if due(self.keepalive_at()) {
            let count = self.options.keepalive.map_or(0, |keepalive| keepalive.count);
            let limit = self.options.user_timeout.is_some_and(|limit| self.heard + limit <= now);
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

    /// Writes the next segment into `frame`; false if there is none.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        settings: &Settings,
        frame: &mut FrameBuf,
    ) -> bool {
        match self.state {
            State::Closed => false,
            State::SynSent | State::SynReceived => self.transmit_syn(now, settings, frame),
            _ => self.transmit_data(now, frame),
        }
    }

    fn transmit_syn(&mut self, now: Instant, settings: &Settings, frame: &mut FrameBuf) -> bool {
        if !std::mem::take(&mut self.syn_due) {
            return false;
        }
        let header = if self.ends.local.is_ipv4() { 20 } else { 40 };
        let mss = self.path.mtu.saturating_sub(header + HEADER_LEN);
        let answer = self.state == State::SynReceived;
        let options = TcpOptions {
            mss: Some(u16::try_from(mss).unwrap_or(u16::MAX)),
            window_scale: settings.window_scaling.then(|| settings.window_scale()),
            sack_permitted: settings.sack,
            timestamps: if answer {
                self.timestamps.option(now)
            } else {
                settings.timestamps.then(|| self.timestamps.first(now))
            },
            ..TcpOptions::default()
        };
        let seq = self.sender.next - 1u32;
        let (ack, flags) = if answer {
            (self.receiver.next, Flags::SYN | Flags::ACK)
        } else {
            (SeqNumber(0), Flags::SYN)
        };
        let window = Receiver::syn_window(settings);
        self.emit(frame, seq, ack, flags, window, options, &|_| (), 0);
        self.syns += 1;
        self.first_syn.get_or_insert(now);
        self.syn_at = Some(now + self.sender.rtt.timeout());
        true
    }

    fn transmit_data(&mut self, now: Instant, frame: &mut FrameBuf) -> bool {
        let unit = self.unit();
        let unit = usize::from(unit - unit % self.sender.mss);
        let piece = self.sender.next_piece(now, unit, !self.options.no_delay);
        let probe = piece.is_none()
            && (self.sender.window_probe_due || std::mem::take(&mut self.keepalive_due));
        let seq = match &piece {
            Some(piece) => piece.seq,
            None if probe => self.sender.window_probe(),
            None if self.receiver.ack_due => self.sender.next,
            None => return false,
        };
        let (ack, window) = self.receiver.announce();
        let options = TcpOptions {
            timestamps: self.timestamps.option(now),
            sack: self.receiver.take_blocks(),
            ..TcpOptions::default()
        };
        match piece {
            Some(piece) => {
                let flags = self.flags_of(&piece);
                let sender = &self.sender;
                let copy = |into: &mut [u8]| sender.copy(&piece, into);
                self.emit(frame, seq, ack, flags, window, options, &copy, piece.len);
                self.sender.sent(now, &piece);
            }
            None => self.emit(frame, seq, ack, Flags::ACK, window, options, &|_| (), 0),
        }
        true
    }

    fn flags_of(&self, piece: &Piece) -> Flags {
        let flags = if piece.fin { Flags::ACK | Flags::FIN } else { Flags::ACK };
        // RFC 9293 section 3.9.1: pushed where nothing follows.
        let ends = piece.seq + piece.len == self.sender.una + self.sender.buffer.len();
        if ends && piece.len > 0 { flags | Flags::PSH } else { flags }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
    fn emit(
        &self,
        frame: &mut FrameBuf,
        seq: SeqNumber,
        ack: SeqNumber,
        flags: Flags,
        window: u16,
        options: TcpOptions,
        payload: &dyn Fn(&mut [u8]),
        len: usize,
    ) {
        let header = TcpFrame {
            source_mac: self.path.source_mac,
            destination_mac: MacAddr([0; 6]),
            source: self.ends.local,
            destination: self.ends.remote,
            seq,
            ack,
            flags,
            window,
            options,
            hop_limit: self.options.hop_limit.unwrap_or(self.path.hop_limit),
            traffic_class: 0,
            ip_id: 0,
        };
        let header_len = header.header_len();
        frame.bytes.clear();
        frame.bytes.resize(header_len + len, 0);
        if let Some(room) = frame.bytes.get_mut(header_len..) {
            payload(room);
        }
        let network = 14 + if self.ends.local.is_ipv4() { 20 } else { 40 };
        let size = self.payload_room(header_len - network - 20);
        frame.offload = header.emit(&mut frame.bytes, size);
    }

    /// A RST of this connection.
    pub(super) fn reset_frame(&self, reset: Reset) -> FrameBuf {
        let mut frame = FrameBuf::default();
        let flags = if reset.ack.is_some() { Flags::RST | Flags::ACK } else { Flags::RST };
        let ack = reset.ack.unwrap_or_default();
        self.emit(&mut frame, reset.seq, ack, flags, 0, TcpOptions::default(), &|_| (), 0);
        frame
    }

    /// What is remembered of it when both ends have finished.
    pub(super) fn remembered(&self) -> (SeqNumber, SeqNumber, Timestamps) {
        (self.sender.next, self.receiver.next, self.timestamps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_takes_less_than_a_kibibyte() {
        // Its buffers are empty, and cost nothing; the tables add a few words.
        assert!(size_of::<Connection>() < 1000, "{} bytes", size_of::<Connection>());
    }
}
