//! The sending side of a connection: sequence space, windows, what to send next, and recovery.
//!
//! Losses are found by RACK with tail probes (RFC 8985) where the peer does SACK, by duplicate
//! acknowledgements (RFC 6582) where it does not, and by the timer (RFC 6298). While the holes of a
//! flight are filled, the window shrinks in proportion to what arrives (RFC 6937).

use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;
use netyard_wire::tcp::Segment;

use super::assembler::Range;
use super::board::{Board, DUPLICATE_THRESHOLD, Delivered, distance};
use super::congestion::Congestion;
use super::queue::ByteQueue;
use super::rtt::Rtt;
use super::settings::Settings;

/// Timeouts in a row without an answer after which a connection is given up (Linux's `tcp_retries2`):
/// with back-off a quarter of an hour.
const MAX_TIMEOUTS: u32 = 15;
/// RFC 8985 section 7.2: how long a peer may keep an acknowledgement to itself.
const MAX_ACK_DELAY: Duration = Duration::from_millis(200);
/// RFC 8985 section 7.2: the probe timeout before a round trip was measured.
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// RFC 9293 section 3.7.1: what a peer takes that says nothing, over IPv4 and IPv6.
const DEFAULT_MSS4: u16 = 536;
const DEFAULT_MSS6: u16 = 1220;
/// A peer that announces less would make us send a segment for every few bytes (Linux's
/// `tcp_min_snd_mss` is 48).
const MIN_MSS: u16 = 64;
/// Bytes that a program may queue before anything was acknowledged.
const INITIAL_BUFFER: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Sender {
    pub(super) una: SeqNumber,
    /// One past the highest sequence number sent.
    pub(super) next: SeqNumber,
    /// The peer's window from `una` on, bytes; and the widest that it ever offered.
    window: u32,
    widest: u32,
    /// Sequence and acknowledgement number of the last window update (SND.WL1, SND.WL2).
    updated: (SeqNumber, SeqNumber),
    scale: u8,
    pub(super) sack: bool,
    /// Largest payload with timestamps but without other options, bytes.
    pub(super) mss: u16,
    /// Data from `una` on.
    pub(super) buffer: ByteQueue,
    /// Bytes that a program may queue now, and ever.
    capacity: usize,
    max_capacity: usize,
    /// The program writes no more: a FIN follows the data.
    pub(super) closing: bool,
    fin_sent: bool,
    board: Board,
    pub(super) congestion: Congestion,
    pub(super) rtt: Rtt,
    recovery: Recovery,
    duplicates: u32,
    /// The window of congestion has kept data back since the last acknowledgement.
    limited: bool,
    /// End of the last segment that was not full (Minshall's variant of RFC 896).
    small: SeqNumber,
    last_sent: Option<Instant>,
    /// When the peer last acknowledged something new, or the flight began.
    pub(super) progress: Instant,
    timer: Option<(Instant, Timer)>,
    /// A tail probe is on its way: up to where, and whether it was sent before.
    probe: Option<(SeqNumber, bool)>,
    /// The probe timer has run out: the next piece is a probe.
    probe_due: bool,
    /// A closed window is to be asked after; how often that was done without an answer.
    pub(super) window_probe_due: bool,
    unanswered: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    Retransmit,
    Probe,
    Reorder,
    Persist,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recovery {
    None,
    /// Until `point` is acknowledged. The rest is RFC 6937's.
    Fast {
        point: SeqNumber,
        flight: u32,
        delivered: u32,
        out: u32,
    },
    Timeout {
        point: SeqNumber,
    },
}

/// Something to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) seq: SeqNumber,
    /// Bytes of payload.
    pub(super) len: usize,
    pub(super) fin: bool,
    again: bool,
}

impl Piece {
    fn end(&self) -> SeqNumber {
        self.seq + self.len + u32::from(self.fin)
    }
}

/// What an acknowledgement was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acked {
    /// Of so many new sequence numbers.
    New(u32),
    /// Nothing new.
    Old,
}

impl Sender {
    /// `iss` is our initial sequence number; the SYN takes it.
    pub(super) fn new(now: Instant, iss: SeqNumber, settings: &Settings) -> Self {
        Self {
            una: iss,
            next: iss + 1u32,
            window: 0,
            widest: 0,
            updated: (SeqNumber(0), SeqNumber(0)),
            scale: 0,
            sack: false,
            mss: DEFAULT_MSS4,
            buffer: ByteQueue::default(),
            capacity: INITIAL_BUFFER.min(settings.send_buffer),
            max_capacity: settings.send_buffer,
            closing: false,
            fin_sent: false,
            board: Board::default(),
            congestion: Congestion::new(settings.congestion, DEFAULT_MSS4),
            rtt: Rtt::new(settings.min_rto),
            recovery: Recovery::None,
            duplicates: 0,
            limited: false,
            small: iss,
            last_sent: None,
            progress: now,
            timer: None,
            probe: None,
            probe_due: false,
            window_probe_due: false,
            unanswered: 0,
        }
    }

    /// The connection is open: the peer's SYN said this, and `segment_len` bytes of payload fit the
    /// path.
    pub(super) fn open(&mut self, now: Instant, peer: &Peer, segment_len: u16) {
        self.una = self.next;
        self.small = self.una;
        self.scale = peer.scale;
        self.sack = peer.sack;
        self.window = peer.window;
        self.widest = peer.window;
        self.updated = (peer.seq, self.una);
        self.progress = now;
        self.set_mss(segment_len);
    }

    pub(super) fn set_mss(&mut self, mss: u16) {
        self.mss = mss.max(1);
        self.congestion.set_mss(self.mss);
    }

    /// Room for data of the program, bytes.
    pub(super) fn room(&self) -> usize {
        if self.closing { 0 } else { self.capacity.saturating_sub(self.buffer.len()) }
    }

    /// True once there is so much room that a program that waits should hear of it.
    pub(super) fn is_roomy(&self) -> bool {
        self.room() > self.capacity / 3
    }

    /// One past the last byte of data.
    fn data_end(&self) -> SeqNumber {
        self.una + self.buffer.len()
    }

    /// The sequence number of the FIN was acknowledged.
    pub(super) fn finished(&self) -> bool {
        self.fin_sent && self.una == self.next && self.buffer.is_empty()
    }

    /// Nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.una == self.next
    }

    fn flight(&self) -> u32 {
        distance(self.una, self.next)
    }

    /// RFC 5961 section 5.2: an acknowledgement too old or too new is not to be believed.
    pub(super) fn acceptable(&self, ack: SeqNumber) -> bool {
        ack.ge(self.una - self.widest) && ack.le(self.next)
    }

    /// True if `seq` is on its way: only then an ICMP error speaks of this connection.
    pub(super) fn is_in_flight(&self, seq: SeqNumber) -> bool {
        seq.ge(self.una) && seq.lt(self.next)
    }

    /// Takes the acknowledgement of a segment, which is [`acceptable`](Self::acceptable). `plain`:
    /// the segment carries nothing else, so that it may be a duplicate. `echoed`: the round trip by the
    /// segment's timestamp.
    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        plain: bool,
        echoed: Option<Duration>,
    ) -> Acked {
        let ack = segment.ack;
        if ack.lt(self.una) {
            return Acked::Old;
        }
        let before = self.board.pipe();
        let window_changed = self.update_window(segment);
        let newly = distance(self.una, ack);
        let duplicates = self.duplicates;
        self.unanswered = 0;
        let mut delivered = Delivered::default();
        let min_rtt = self.rtt.min();
        self.board.acknowledge(now, ack, min_rtt, &mut delivered);
        if newly > 0 {
            self.advance(now, ack, newly);
        }
        let duplicate = self.take_sack(now, segment, &mut delivered);
        // RFC 7323 section 4.1: a timestamp tells even of what was sent twice.
        if let Some(rtt) = delivered.rtt.or(echoed.filter(|_| newly > 0)) {
            self.rtt.measure(rtt);
        }
        if newly == 0 && plain && !window_changed && !self.is_idle() {
            self.duplicates = self.duplicates.saturating_add(1);
        }
        if !self.sack {
            // Each duplicate told of one segment; what is acknowledged now has those among it (RFC
            // 6937 section 2).
            let mss = u32::from(self.mss);
            let told = duplicates.saturating_mul(mss);
            let more = self.duplicates > duplicates;
            delivered.bytes = if more { mss } else { delivered.bytes.saturating_sub(told) };
        }
        self.end_probe(segment, newly, duplicate.is_some());
        self.recover(now, before, newly, delivered.bytes);
        if newly > 0 || delivered.bytes > 0 {
            self.limited = false;
        }
        self.arm(now, newly > 0);
        if newly > 0 { Acked::New(newly) } else { Acked::Old }
    }

    /// RFC 9293 section 3.10.7.4. True if the window is another than before.
    fn update_window(&mut self, segment: &Segment<'_>) -> bool {
        let (seq, ack) = self.updated;
        if !(segment.seq.gt(seq) || (segment.seq == seq && segment.ack.ge(ack))) {
            return false;
        }
        let window = u32::from(segment.window) << self.scale;
        let changed = window != self.window;
        if self.window == 0 && window > 0 {
            self.rtt.progress();
        }
        self.window = window;
        self.widest = self.widest.max(window);
        self.updated = (segment.seq, segment.ack);
        changed
    }

    fn advance(&mut self, now: Instant, ack: SeqNumber, newly: u32) {
        let fin = self.fin_sent && ack == self.next;
        let data = newly.saturating_sub(u32::from(fin));
        self.buffer.discard(usize::try_from(data).unwrap_or(usize::MAX));
        self.una = ack;
        self.duplicates = 0;
        self.progress = now;
        self.rtt.progress();
        // Twice what the window takes keeps it full while the program runs behind.
        let wanted = usize::try_from(self.congestion.window).unwrap_or(usize::MAX);
        self.capacity = self.capacity.max(wanted.saturating_mul(2).min(self.max_capacity));
    }

    /// Takes the selective acknowledgements; the first block if it tells of what came twice (RFC 2883
    /// section 4).
    fn take_sack(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        delivered: &mut Delivered,
    ) -> Option<Range> {
        if !self.sack {
            return None;
        }
        let [first, second, ..] = segment.options.sack;
        let duplicate = first.filter(|(left, right)| {
            let inside =
                |(outer_left, outer_right): Range| left.ge(outer_left) && right.le(outer_right);
            right.le(segment.ack) || second.is_some_and(inside)
        });
        if duplicate.is_some() {
            self.board.duplicate(self.next);
        }
        let min_rtt = self.rtt.min();
        // The newest block stands first. In the order of the stream (RFC 8985 section 6.2 step 3): what one
        // acknowledgement tells of has not overtaken itself.
        let mut blocks = segment.options.sack;
        blocks.sort_by_key(|block| block.map(|(left, _)| distance(self.una, left)));
        for (left, right) in blocks.into_iter().flatten() {
            let left = left.max(self.una);
            if left.lt(right) && right.le(self.next) {
                self.board.sack(now, (left, right), min_rtt, delivered);
            }
        }
        duplicate
    }

    /// RFC 8985 section 7.4: whether a tail probe has shown a loss.
    fn end_probe(&mut self, segment: &Segment<'_>, newly: u32, duplicate: bool) {
        let Some((end, again)) = self.probe else { return };
        if segment.ack.lt(end) {
            return;
        }
        let no_loss = !again || duplicate || (newly == 0 && self.board.sacked() == 0);
        if !no_loss && segment.ack.gt(end) && self.recovery == Recovery::None {
            self.congestion.on_loss(self.flight());
            self.congestion.window = self.congestion.threshold;
        }
        if no_loss || segment.ack.gt(end) || self.is_idle() {
            self.probe = None;
        }
    }

    /// Finds losses, and moves the window of congestion.
    fn recover(&mut self, now: Instant, before: u32, newly: u32, delivered: u32) {
        let had_lost = self.board.any_lost();
        self.find_losses(now, newly);
        match self.recovery {
            Recovery::Fast { point, .. } | Recovery::Timeout { point } if self.una.ge(point) => {
                let fast = matches!(self.recovery, Recovery::Fast { .. });
                self.recovery = Recovery::None;
                self.board.recovered();
                if fast && !self.board.any_lost() {
                    // What this acknowledgement covers was sent by the old window.
                    self.congestion.window = self.congestion.threshold;
                    return;
                }
            }
            Recovery::Fast { .. } => {
                let safe = newly > 0 && (had_lost || !self.board.any_lost());
                return self.reduce(delivered, safe);
            }
            Recovery::Timeout { .. } | Recovery::None => {}
        }
        if self.recovery == Recovery::None && self.board.any_lost() {
            return self.enter_recovery(delivered);
        }
        // Growing a window that nobody fills says nothing about the path (RFC 7661).
        let slow_start = self.congestion.window < self.congestion.threshold;
        let used = if slow_start { before.saturating_mul(2) } else { before };
        if newly > 0 && (self.limited || used >= self.congestion.window) {
            self.congestion.on_ack(now, newly, self.rtt.smoothed());
        }
    }

    fn find_losses(&mut self, now: Instant, newly: u32) {
        let recovering = self.recovery != Recovery::None;
        if self.sack {
            let (smoothed, min) = (self.rtt.smoothed(), self.rtt.min());
            let again_in = self.board.detect(now, self.mss, recovering, smoothed, min);
            self.timer = match again_in {
                Some(wait) => Some((now + wait, Timer::Reorder)),
                None => self.timer.filter(|(_, timer)| *timer != Timer::Reorder),
            };
        } else if newly > 0 {
            // RFC 6582: a partial acknowledgement shows the next hole.
            if let Recovery::Fast { point, .. } = self.recovery
                && self.una.lt(point)
            {
                self.board.lose_first(self.mss.into());
            }
        } else if !recovering && self.duplicates >= DUPLICATE_THRESHOLD {
            self.board.lose_first(self.mss.into());
        }
    }

    fn enter_recovery(&mut self, delivered: u32) {
        self.congestion.on_loss(self.flight());
        self.recovery =
            Recovery::Fast { point: self.next, flight: self.flight().max(1), delivered: 0, out: 0 };
        self.reduce(delivered, false);
    }

    /// RFC 6937 with the slow start reduction bound that its successor made the default.
    fn reduce(&mut self, newly_delivered: u32, safe: bool) {
        let pipe = self.pipe();
        let mss = u32::from(self.mss);
        let threshold = self.congestion.threshold;
        let Recovery::Fast { flight, delivered, out, .. } = &mut self.recovery else { return };
        *delivered = delivered.saturating_add(newly_delivered);
        let count = if pipe > threshold {
            let share = u64::from(*delivered) * u64::from(threshold);
            let share = share.div_ceil(u64::from(*flight));
            u32::try_from(share).unwrap_or(u32::MAX).saturating_sub(*out)
        } else {
            let more = delivered.saturating_sub(*out).max(newly_delivered);
            let more = if safe { more.saturating_add(mss) } else { more };
            more.min(threshold - pipe)
        };
        // The first retransmission goes in any case.
        let count = if *out == 0 { count.max(mss) } else { count };
        self.congestion.window = pipe.saturating_add(count);
    }

    /// Bytes that are thought to be on their way.
    fn pipe(&self) -> u32 {
        let left = if self.sack { 0 } else { self.duplicates.saturating_mul(self.mss.into()) };
        self.board.pipe().saturating_sub(left)
    }

    /// Sets the timer for what is on its way now. `restart`: something new was acknowledged or sent.
    fn arm(&mut self, now: Instant, restart: bool) {
        if self.is_idle() {
            self.probe = None;
            self.probe_due = false;
            self.duplicates = 0;
            let blocked = !self.buffer.is_empty() && self.window == 0;
            self.timer = match self.timer {
                Some((at, Timer::Persist)) if blocked && !restart => Some((at, Timer::Persist)),
                _ => blocked.then(|| (now + self.rtt.timeout(), Timer::Persist)),
            };
            return;
        }
        if matches!(self.timer, Some((_, Timer::Reorder))) {
            return;
        }
        let probing = self.sack
            && self.recovery == Recovery::None
            && self.probe.is_none()
            && self.board.sacked() == 0
            && self.rtt.backoff() == 0;
        let set = match self.timer {
            Some((_, Timer::Retransmit)) => true,
            // RFC 8985 section 7.2: not while there is something else to go by.
            Some((_, Timer::Probe)) => probing,
            _ => false,
        };
        if set && !restart {
            return;
        }
        let timeout = now + self.rtt.timeout();
        self.timer = if probing {
            Some((self.probe_at(now).min(timeout), Timer::Probe))
        } else {
            Some((timeout, Timer::Retransmit))
        };
    }

    /// RFC 8985 section 7.2.
    fn probe_at(&self, now: Instant) -> Instant {
        let Some(smoothed) = self.rtt.smoothed() else { return now + FIRST_PROBE };
        let alone = self.flight() <= u32::from(self.mss);
        now + smoothed * 2 + if alone { MAX_ACK_DELAY } else { Duration::ZERO }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timer.map(|(at, _)| at)
    }

    /// The timer has run out, if it was due. False: the peer has been silent for too long.
    pub(super) fn handle_timeout(&mut self, now: Instant, user_timeout: Option<Duration>) -> bool {
        let Some((at, timer)) = self.timer.filter(|(at, _)| *at <= now) else { return true };
        self.timer = None;
        let silent = now.saturating_duration_since(self.progress);
        match timer {
            Timer::Reorder => {
                self.recover(now, 0, 0, 0);
                self.arm(now, true);
            }
            Timer::Probe => {
                self.probe_due = true;
                self.timer = Some((at.max(now) + self.rtt.timeout(), Timer::Retransmit));
            }
            Timer::Persist => {
                // A window may stay closed as long as the peer answers (RFC 9293 section 3.8.6.1),
                // unless the program has set a limit (RFC 5482).
                let limit = user_timeout.is_some_and(|limit| silent >= limit);
                if limit || self.unanswered >= MAX_TIMEOUTS {
                    return false;
                }
                self.unanswered += 1;
                self.rtt.back_off();
                self.window_probe_due = true;
                self.timer = Some((now + self.rtt.timeout(), Timer::Persist));
            }
            Timer::Retransmit => {
                let limit = user_timeout.is_some_and(|limit| silent >= limit);
                if limit || self.rtt.backoff() >= MAX_TIMEOUTS {
                    return false;
                }
                let again = self.rtt.backoff() > 0;
                self.congestion.on_timeout(self.flight(), again);
                self.rtt.back_off();
                self.board.lose_all();
                self.duplicates = 0;
                self.probe = None;
                self.probe_due = false;
                self.recovery = Recovery::Timeout { point: self.next };
                self.timer = Some((now + self.rtt.timeout(), Timer::Retransmit));
            }
        }
        true
    }

    /// The path takes less than was thought: what is on its way was too big (RFC 1191 section 6.5).
    /// That is no congestion.
    pub(super) fn resend(&mut self, now: Instant) {
        if !self.is_idle() {
            self.board.lose_all();
            if self.recovery == Recovery::None {
                self.recovery = Recovery::Timeout { point: self.next };
            }
            self.arm(now, true);
        }
    }

    /// The next piece that may be sent; `unit` bounds its payload, bytes. `None`: windows forbid, or
    /// there is nothing.
    pub(super) fn next_piece(&mut self, now: Instant, unit: usize, nagle: bool) -> Option<Piece> {
        if std::mem::take(&mut self.probe_due)
            && let Some(piece) = self.probe_piece()
        {
            return Some(piece);
        }
        let mss = usize::from(self.mss);
        let pipe = self.pipe();
        let budget = self.congestion.window.saturating_sub(pipe);
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        if let Some((start, end)) = self.board.next_lost() {
            if budget < mss && pipe > 0 {
                self.limited = true;
                return None;
            }
            let whole = (budget / mss).max(1).saturating_mul(mss);
            return Some(self.again(start, end, whole.min(unit)));
        }
        if self.fin_sent {
            return None;
        }
        if self.is_idle() && self.has_rested(now) {
            self.congestion.on_idle();
        }
        let data_end = self.data_end();
        let available = usize::try_from(distance(self.next, data_end)).unwrap_or(0);
        let room = distance(self.next, self.una + self.window);
        let room = usize::try_from(room).unwrap_or(0);
        if available == 0 {
            let fin = Piece { seq: self.next, len: 0, fin: true, again: false };
            return self.closing.then_some(fin);
        }
        let budget = if pipe == 0 { budget.max(mss) } else { budget };
        let mut len = available.min(room).min(unit);
        if budget < len {
            self.limited = true;
            len = budget;
        }
        if len < available || (len % mss != 0 && nagle && !self.closing && self.small.gt(self.una))
        {
            // Only what ends the data may end in a segment that is not full.
            let whole = len - len % mss;
            // Silly window syndrome (RFC 9293 section 3.8.6.2.1): a small window is used when nothing
            // is on its way that could open it, or when it is the best the peer has.
            let cramped = whole == 0
                && len == room
                && (self.is_idle() || len >= usize::try_from(self.widest).unwrap_or(0) / 2);
            len = if cramped { len } else { whole };
        }
        if len == 0 {
            if self.is_idle() && room == 0 {
                self.arm(now, false);
            }
            return None;
        }
        let fin = self.closing && len == available;
        Some(Piece { seq: self.next, len, fin, again: false })
    }

    fn has_rested(&self, now: Instant) -> bool {
        self.last_sent.is_some_and(|at| now.saturating_duration_since(at) > self.rtt.timeout())
    }

    /// RFC 8985 section 7.3: new data if there is any, else the last segment once more.
    fn probe_piece(&mut self) -> Option<Piece> {
        let mss = u32::from(self.mss);
        let room = distance(self.next, self.una + self.window);
        let available = distance(self.next, self.data_end());
        let len = available.min(room).min(mss);
        if len > 0 && !self.fin_sent {
            self.probe = Some((self.next + len, false));
            let fin = self.closing && len == available;
            let len = usize::try_from(len).unwrap_or(0);
            return Some(Piece { seq: self.next, len, fin, again: false });
        }
        let (start, end) = self.board.tail(mss)?;
        self.probe = Some((self.next, true));
        Some(self.again(start, end, usize::from(self.mss)))
    }

    /// A range that was sent before, at most so many bytes of it.
    fn again(&self, start: SeqNumber, end: SeqNumber, most: usize) -> Piece {
        let data = distance(start, end.min(self.data_end()));
        let data = usize::try_from(data).unwrap_or(0);
        let len = data.min(most);
        let fin = self.fin_sent && end == self.next && len == data;
        Piece { seq: start, len, fin, again: true }
    }

    /// Copies the payload of a piece.
    pub(super) fn copy(&self, piece: &Piece, into: &mut [u8]) {
        let offset = usize::try_from(distance(self.una, piece.seq)).unwrap_or(0);
        self.buffer.copy(offset, into);
    }

    /// A piece was sent.
    pub(super) fn sent(&mut self, now: Instant, piece: &Piece) {
        let end = piece.end();
        if let Recovery::Fast { out, .. } = &mut self.recovery {
            *out = out.saturating_add(distance(piece.seq, end));
        }
        self.last_sent = Some(now);
        if piece.again {
            self.board.resent(now, (piece.seq, end));
            if self.timer.is_none() {
                self.arm(now, true);
            }
            return;
        }
        if self.is_idle() {
            self.progress = now;
        }
        self.board.push(now, self.next, end);
        self.next = end;
        self.fin_sent |= piece.fin;
        if !piece.len.is_multiple_of(usize::from(self.mss)) {
            self.small = end;
        }
        // RFC 8985 section 7.2: new data pushes the probe back, but not the retransmission.
        let probing = matches!(self.timer, None | Some((_, Timer::Probe | Timer::Persist)));
        if probing {
            self.arm(now, true);
        }
    }

    /// The sequence number of a question after the window: the byte before it, which the peer must
    /// answer (RFC 9293 section 3.8.6.1).
    pub(super) fn window_probe(&mut self) -> SeqNumber {
        self.window_probe_due = false;
        self.una - 1u32
    }

    /// No data is queued and nothing is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_idle() && self.buffer.is_empty() && self.board.is_empty()
    }
}

/// What a peer's SYN said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its initial sequence number.
    pub(super) seq: SeqNumber,
    /// Bytes, scaled already where that applies.
    pub(super) window: u32,
    /// The largest payload that it takes, without options.
    pub(super) mss: u16,
    /// Shift of its window; `None`: ours must not be scaled either.
    pub(super) scale: u8,
    pub(super) scaled: bool,
    pub(super) sack: bool,
    /// Its clock, if it does timestamps.
    pub(super) timestamp: Option<u32>,
}

impl Peer {
    pub(super) fn of(syn: &Segment<'_>, ipv4: bool) -> Self {
        let default = if ipv4 { DEFAULT_MSS4 } else { DEFAULT_MSS6 };
        Self {
            seq: syn.seq,
            window: syn.window.into(),
            mss: syn.options.mss.unwrap_or(default).max(MIN_MSS),
            scale: syn.options.window_scale.unwrap_or(0),
            scaled: syn.options.window_scale.is_some(),
            sack: syn.options.sack_permitted,
            timestamp: syn.options.timestamps.map(|(value, _)| value),
        }
    }
}
