//! The receiving side of a connection: the window, what has come, and when to acknowledge it.

use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;

use super::Shared;
use super::assembler::{Assembler, Range};
use super::board::distance;
use super::queue::{ByteQueue, Spare};
use super::settings::Settings;

/// Room for a program that has not read yet, bytes (Linux's `tcp_rmem`).
const INITIAL_BUFFER: usize = 128 * 1024;
/// A program may not have less room than this, bytes (about Linux's `SOCK_MIN_RCVBUF`).
const MIN_LIMIT: u32 = 2048;
/// A window without scaling, and that of a SYN, is at most this, bytes.
const MAX_UNSCALED: usize = 65_535;
/// Segments that are acknowledged at once in the beginning, while the peer's window is small (as
/// Linux's quick acknowledgements).
const QUICK_SEGMENTS: u8 = 16;
/// RFC 9293 section 3.8.6.3: at least every second full segment is acknowledged.
const SEGMENTS_PER_ACK: usize = 2;

#[derive(Debug)]
pub(super) struct Receiver {
    /// The next sequence number expected.
    pub(super) next: SeqNumber,
    /// Right edge of the window offered; it never moves back.
    edge: SeqNumber,
    /// What the peer was last told: `next` (Last.ACK.sent) and the right edge.
    told: SeqNumber,
    told_edge: SeqNumber,
    /// In order, not read yet.
    queue: ByteQueue,
    /// Ahead of a gap; nothing most of the time.
    ahead: Option<Box<Assembler>>,
    /// What came twice, to be told once (RFC 2883).
    duplicate: Option<Range>,
    /// The sequence number of the peer's FIN, once seen.
    fin: Option<SeqNumber>,
    /// Everything up to the FIN is here.
    pub(super) finished: bool,
    /// The program reads no more: what comes is acknowledged and dropped.
    pub(super) shut: bool,
    scale: u8,
    sack: bool,
    /// Bytes that may wait for the program now, and how many it wants at most.
    capacity: usize,
    wanted: u32,
    /// Since when so many bytes were read: for the growth of `capacity`.
    measured: (Instant, usize),
    /// Bytes that came in order since the last acknowledgement.
    unacknowledged: usize,
    /// The largest segment that came, bytes.
    segment: usize,
    quick: u8,
    pub(super) ack_due: bool,
    ack_at: Option<Instant>,
}

/// What a segment brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// Bytes or the FIN that come next.
    Next,
    /// Nothing that could be used now.
    Nothing,
}

impl Receiver {
    /// `irs` is the peer's initial sequence number.
    pub(super) fn new(now: Instant, irs: SeqNumber, settings: &Settings) -> Self {
        let next = irs + 1u32;
        let capacity = INITIAL_BUFFER.min(settings.receive_buffer);
        let edge = next + capacity.min(MAX_UNSCALED);
        Self {
            next,
            edge,
            told: next,
            told_edge: edge,
            queue: ByteQueue::default(),
            ahead: None,
            duplicate: None,
            fin: None,
            finished: false,
            shut: false,
            scale: 0,
            sack: false,
            capacity,
            wanted: u32::MAX,
            measured: (now, 0),
            unacknowledged: 0,
            segment: 0,
            quick: QUICK_SEGMENTS,
            ack_due: false,
            ack_at: None,
        }
    }

    /// The connection is open: what both sides do.
    pub(super) fn open(&mut self, scale: u8, sack: bool) {
        (self.scale, self.sack) = (scale, sack);
        self.widen();
    }

    /// The window field of a SYN: never scaled.
    pub(super) fn syn_window(settings: &Settings) -> u16 {
        let window = INITIAL_BUFFER.min(settings.receive_buffer).min(MAX_UNSCALED);
        u16::try_from(window).unwrap_or(u16::MAX)
    }

    /// RFC 9293 section 3.10.7.4, first check; `len` counts SYN and FIN.
    pub(super) fn acceptable(&self, seq: SeqNumber, len: usize) -> bool {
        let inside = |at: SeqNumber| at.between(self.next, self.edge);
        match len {
            0 => seq == self.next || inside(seq),
            // What fits in no window may still acknowledge something.
            _ if self.next == self.edge => seq == self.next,
            len => {
                let last = seq + (len - 1);
                inside(seq) || inside(last) || (seq.lt(self.next) && last.ge(self.edge))
            }
        }
    }

    /// Remembers what came twice and is to be told.
    pub(super) fn note_duplicate(&mut self, seq: SeqNumber, len: usize) {
        let end = (seq + len).min(self.next);
        if self.sack && seq.lt(end) {
            self.duplicate = Some((seq, end));
        }
    }

    /// Takes the payload and FIN of an acceptable segment. `segment`: how long the segments were that
    /// it came in, bytes.
    pub(super) fn take(
        &mut self,
        now: Instant,
        seq: SeqNumber,
        payload: &[u8],
        fin: bool,
        segment: usize,
        shared: &mut Shared,
    ) -> Received {
        let end = seq + payload.len();
        if fin && self.fin.is_none() && end.ge(self.next) {
            self.fin = Some(end);
        }
        let before = self.next;
        self.note_duplicate(seq, payload.len());
        // What lies outside the window, or beyond the FIN, does not exist.
        let last = self.fin.map_or(end, |fin| fin.min(end)).min(self.edge);
        let from = seq.max(self.next);
        let part = offset(seq, from)
            .zip(offset(seq, last))
            .and_then(|(from, until)| payload.get(from..until))
            .unwrap_or_default();
        if seq.gt(self.next) && !part.is_empty() {
            // What has no room is not acknowledged, and comes again.
            self.ahead.get_or_insert_default().insert(from, part);
        } else if !part.is_empty() {
            self.accept(part, &mut shared.spare);
        }
        let mut filled = false;
        while let Some(bytes) = self.ahead.as_mut().and_then(|ahead| ahead.take(self.next)) {
            filled = true;
            self.accept(&bytes, &mut shared.spare);
        }
        self.ahead = self.ahead.take().filter(|ahead| !ahead.is_empty());
        let arrived = distance(before, self.next);
        let ended = !self.finished && self.fin == Some(self.next);
        if ended {
            self.finished = true;
            self.next += 1u32;
            self.edge = self.edge.max(self.next);
        }
        if arrived > 0 {
            self.segment = self.segment.max(segment.min(payload.len()));
        }
        let in_order = arrived > 0 && !filled && self.ahead.is_none() && !ended;
        if in_order {
            self.owe(now, usize::try_from(arrived).unwrap_or(0), shared.settings.ack_delay);
        } else if !payload.is_empty() || fin {
            // RFC 5681 section 4.2: at once where a gap is there or was closed.
            self.ack_due = true;
        }
        if self.next == before { Received::Nothing } else { Received::Next }
    }

    fn accept(&mut self, bytes: &[u8], spare: &mut Spare) {
        self.next += bytes.len();
        if !self.shut {
            self.queue.push(bytes, spare);
        }
    }

    /// Bytes in order are to be acknowledged, soon (RFC 9293 section 3.8.6.3).
    fn owe(&mut self, now: Instant, len: usize, delay: Duration) {
        self.unacknowledged += len;
        if self.quick > 0 || self.unacknowledged >= SEGMENTS_PER_ACK * self.segment {
            self.quick = self.quick.saturating_sub(1);
            self.ack_due = true;
        } else {
            self.ack_at.get_or_insert(now + delay);
        }
    }

    /// Bytes that wait for the program.
    pub(super) fn unread(&self) -> usize {
        self.queue.len()
    }

    /// Hands bytes to the program; with `peek` they stay.
    pub(super) fn read(
        &mut self,
        now: Instant,
        into: &mut [u8],
        peek: bool,
        rtt: Option<Duration>,
        shared: &mut Shared,
    ) -> usize {
        if peek {
            return self.queue.copy(0, into);
        }
        let count = self.queue.take(into, &mut shared.spare);
        self.measured.1 += count;
        self.grow(now, rtt.unwrap_or_default(), self.limit(&shared.settings));
        self.widen();
        self.ack_due |= self.has_opened();
        count
    }

    /// Room for twice what a program reads in a round trip: then the window does not hold the peer
    /// back, though it doubles its own.
    fn grow(&mut self, now: Instant, rtt: Duration, most: usize) {
        let (since, read) = self.measured;
        if now.saturating_duration_since(since) >= rtt {
            let wanted = read.saturating_mul(2).min(most);
            self.capacity = self.capacity.max(wanted);
            self.measured = (now, 0);
        }
    }

    /// The program wants no more than this to wait. What was offered stays offered.
    pub(super) fn set_limit(&mut self, wanted: Option<u32>, settings: &Settings) {
        self.wanted = wanted.map_or(u32::MAX, |wanted| wanted.max(MIN_LIMIT));
        self.capacity = self.capacity.min(self.limit(settings));
    }

    fn limit(&self, settings: &Settings) -> usize {
        usize::try_from(self.wanted).unwrap_or(usize::MAX).min(settings.receive_buffer)
    }

    /// The program wants what comes next to be acknowledged at once, or not.
    pub(super) fn set_quick(&mut self, quick: bool) {
        self.quick = if quick { QUICK_SEGMENTS } else { 0 };
        self.ack_due |= quick && self.unacknowledged > 0;
    }

    pub(super) fn is_quick(&self) -> bool {
        self.quick > 0
    }

    /// Moves the right edge of the window to what there is room for. Not by a little (RFC 9293
    /// section 3.8.6.2.2), and never back.
    fn widen(&mut self) {
        let room = self.capacity.saturating_sub(self.queue.len());
        let edge = self.next + room.min(MAX_UNSCALED << self.scale);
        let step = usize::try_from(edge - self.edge).unwrap_or(0);
        if step > 0 && step >= self.segment.max(1).min(self.capacity / 2) {
            self.edge = edge;
        }
    }

    /// True if the peer should hear that the window has grown: by much, or from next to nothing.
    fn has_opened(&self) -> bool {
        let step = usize::try_from(distance(self.told_edge, self.edge)).unwrap_or(0);
        let known = usize::try_from(distance(self.next, self.told_edge)).unwrap_or(0);
        !self.finished && (step >= self.capacity / 2 || (step > 0 && known < 2 * self.segment))
    }

    /// RFC 7323 section 4.3: whether a segment's timestamp is the one to echo.
    pub(super) fn echoes(&self, seq: SeqNumber) -> bool {
        seq.le(self.told)
    }

    /// When an acknowledgement that waits is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.ack_at
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.ack_due |= self.ack_at.is_some_and(|at| at <= now);
    }

    /// The acknowledgement number and window field of a segment sent now.
    pub(super) fn announce(&mut self) -> (SeqNumber, u16) {
        self.widen();
        self.ack_due = false;
        self.ack_at = None;
        self.unacknowledged = 0;
        self.told = self.next;
        // Rounded up: an edge that was told never moves back, not even by a rounding.
        let window = distance(self.next, self.edge).div_ceil(1 << self.scale);
        let field = u16::try_from(window).unwrap_or(u16::MAX);
        self.told_edge = self.next + (u32::from(field) << self.scale);
        self.edge = self.edge.max(self.told_edge);
        (self.next, field)
    }

    /// The selective acknowledgements of a segment sent now.
    pub(super) fn take_blocks(&mut self) -> [Option<Range>; 4] {
        match (&self.ahead, self.duplicate.take()) {
            (Some(ahead), duplicate) if self.sack => ahead.blocks(duplicate),
            (None, duplicate) if self.sack => [duplicate, None, None, None],
            _ => [None; 4],
        }
    }

    /// The program reads no more.
    pub(super) fn shut(&mut self) {
        self.shut = true;
        self.queue = ByteQueue::default();
        self.widen();
    }
}

fn offset(from: SeqNumber, to: SeqNumber) -> Option<usize> {
    usize::try_from(to - from).ok()
}
