//! What is sent to the guest: sequence space, loss recovery, congestion.
//!
//! No payload is kept here. Everything the guest has not acknowledged is still in the receive
//! queue of the host socket; a retransmission is another peek at an offset (`seq - una`).
//! Recovery follows RFC 6675 where the guest does SACK and RFC 6582 where it does not. The link
//! to a guest normally loses nothing, so there is no congestion window until the first loss.

use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;
use netyard_wire::tcp::Segment;

/// RFC 6298 section 2.4 asks for 1 s; the link is short, and Linux uses 200 ms.
const RTO_FLOOR: Duration = Duration::from_millis(200);
/// RFC 6298 section 2.1: before a round trip was measured.
const RTO_INITIAL: Duration = Duration::from_secs(1);
const RTO_CEILING: Duration = Duration::from_secs(60);
/// Retransmissions without an answer before the flow is given up (Linux `tcp_retries2` is 15; a
/// guest on this machine that is silent for two minutes is gone or frozen).
const MAX_BACKOFF: u32 = 9;
/// Acknowledged ranges remembered beyond `una`.
const MAX_SACKED: usize = 32;
/// RFC 5681 section 3.2.
const DUPLICATE_THRESHOLD: u32 = 3;

/// Half-open range of sequence numbers.
type Range = (SeqNumber, SeqNumber);

/// What may be sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) seq: SeqNumber,
    /// At most so many bytes; the FIN counts for one and comes alone or last.
    pub(super) len: usize,
    pub(super) again: bool,
}

#[derive(Debug)]
pub(super) struct Sender {
    pub(super) una: SeqNumber,
    /// Sequence numbers that were acknowledged since the opening.
    pub(super) acked: u64,
    /// One past the highest sequence number sent.
    pub(super) next: SeqNumber,
    /// The sequence number of our FIN, once the end of the stream is known.
    pub(super) fin: Option<SeqNumber>,
    /// Largest payload of one segment.
    pub(super) mss: u16,
    /// The guest does SACK.
    sack: bool,
    /// Shift of the guest's window (RFC 7323 section 2.2).
    scale: u8,
    window: u32,
    /// Sequence and acknowledgement number of the last window update (RFC 9293 3.10.7.4).
    updated: (SeqNumber, SeqNumber),
    sacked: Vec<Range>,
    duplicates: u32,
    recovery: Option<Recovery>,
    congestion: Option<Congestion>,
    /// Smoothed round trip, and its variation.
    pub(super) rtt: Option<(Duration, Duration)>,
    /// The segment whose round trip is being measured (never a retransmitted one: Karn).
    timed: Option<(SeqNumber, Instant)>,
    backoff: u32,
    /// When the oldest unacknowledged byte is taken for lost, or a closed window is probed.
    deadline: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Recovery {
    /// Over when everything up to here is acknowledged.
    high: SeqNumber,
    /// Where the search for the next hole goes on.
    cursor: SeqNumber,
    /// Begun by the timer: everything up to `high` that is not SACKed is lost.
    timeout: bool,
    /// Nothing was sent again yet: the first segment goes whatever the window says (RFC 6675
    /// section 5, step 4.3).
    fresh: bool,
}

#[derive(Debug, Clone, Copy)]
struct Congestion {
    window: u32,
    threshold: u32,
}

/// What an acknowledgement did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acked {
    /// So many bytes of payload can be dropped (0 for a window update or a duplicate).
    Bytes(usize),
    /// It acknowledges what was never sent.
    Unsent,
}

impl Sender {
    /// `iss` is our initial sequence number; the SYN takes it.
    pub(super) fn new(iss: SeqNumber, mss: u16) -> Self {
        Self {
            una: iss,
            acked: 0,
            next: iss + 1u32,
            fin: None,
            mss,
            sack: false,
            scale: 0,
            window: 0,
            updated: (SeqNumber(0), SeqNumber(0)),
            sacked: Vec::new(),
            duplicates: 0,
            recovery: None,
            congestion: None,
            rtt: None,
            timed: None,
            backoff: 0,
            deadline: None,
        }
    }

    /// Takes what the guest's SYN says of its receiving side.
    pub(super) fn negotiate(&mut self, syn: &Segment<'_>, our_mss: u16) {
        // RFC 9293 3.7.1: 536 (IPv6: 1220, RFC 8200) when the guest says nothing; below 64 no
        // network works, and a lie must not make us send a segment for every byte.
        let theirs = syn.options.mss.unwrap_or(536).max(64);
        self.mss = theirs.min(our_mss);
        self.sack = syn.options.sack_permitted;
        // RFC 7323 section 2.3: more than 14 is taken as 14.
        self.scale = syn.options.window_scale.unwrap_or(0).min(14);
        // A SYN's window is never scaled.
        self.window = u32::from(syn.window);
        self.updated = (syn.seq, self.una);
    }

    /// The SYN was acknowledged.
    pub(super) fn open(&mut self, now: Instant, segment: &Segment<'_>) {
        self.una += 1u32;
        self.updated = (segment.seq, segment.ack);
        if !segment.flags.contains(netyard_wire::tcp::Flags::SYN) {
            self.window = u32::from(segment.window) << self.scale;
        }
        if let Some((_, at)) = self.timed.take() {
            self.measure(now.saturating_duration_since(at));
        }
        self.backoff = 0;
        self.deadline = None;
    }

    /// The SYN (or SYN-ACK) was sent; `first` unless it is a retransmission.
    pub(super) fn syn_sent(&mut self, now: Instant, first: bool) {
        self.timed = first.then_some((self.una, now));
    }

    fn in_flight(&self) -> u32 {
        distance(self.una, self.next)
    }

    /// Everything is sent and acknowledged, the FIN included.
    pub(super) fn finished(&self) -> bool {
        self.fin.is_some_and(|fin| (self.una - fin) > 0)
    }

    /// Nothing waits for an acknowledgement.
    pub(super) fn idle(&self) -> bool {
        self.una == self.next
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Handles the acknowledgement side of a segment.
    pub(super) fn on_ack(&mut self, now: Instant, segment: &Segment<'_>, carries: bool) -> Acked {
        let ack = segment.ack;
        if (ack - self.next) > 0 {
            return Acked::Unsent;
        }
        if (ack - self.una) < 0 {
            return Acked::Bytes(0);
        }
        let mut window_changed = false;
        let (seq, acked) = self.updated;
        // What acknowledges more is newer whatever its number: a sender that goes back after a timeout sends from there,
        // and the window last told would otherwise count from what is acknowledged now.
        let newer = (segment.seq - seq) > 0 || (segment.seq == seq && (ack - acked) >= 0);
        if newer || (ack - self.una) > 0 {
            let window = u32::from(segment.window) << self.scale;
            window_changed = window != self.window;
            if self.window == 0 && window > 0 && self.idle() {
                self.deadline = None;
                self.backoff = 0;
            }
            self.window = window;
            self.updated = (segment.seq, ack);
        }
        if self.sack {
            for (start, end) in segment.options.sack.iter().flatten() {
                self.mark_sacked(*start, *end);
            }
        }
        let newly = distance(self.una, ack);
        if newly > 0 {
            self.advance(now, ack, newly);
            // The FIN is a sequence number, not a byte of the stream.
            let fin = u32::from(self.fin.is_some_and(|fin| (ack - fin) > 0));
            return Acked::Bytes((newly - fin) as usize);
        }
        // RFC 5681 section 2: what a duplicate acknowledgement is.
        if !self.idle() && !carries && !window_changed {
            self.duplicates = self.duplicates.saturating_add(1);
            let sacked_much = self.sacked_bytes() >= DUPLICATE_THRESHOLD * u32::from(self.mss);
            if self.recovery.is_none() && (self.duplicates >= DUPLICATE_THRESHOLD || sacked_much) {
                self.enter_recovery(false);
            } else if !self.sack
                && let Some(congestion) = &mut self.congestion
            {
                // RFC 6582: each further duplicate means that one segment has left the network.
                if self.recovery.is_some() {
                    congestion.window = congestion.window.saturating_add(u32::from(self.mss));
                }
            }
        }
        Acked::Bytes(0)
    }

    fn advance(&mut self, now: Instant, ack: SeqNumber, newly: u32) {
        self.una = ack;
        self.acked += u64::from(newly);
        self.duplicates = 0;
        self.backoff = 0;
        self.sacked.retain_mut(|(start, end)| {
            if (*start - ack) < 0 {
                *start = ack;
            }
            (*end - *start) > 0
        });
        if let Some((seq, at)) = self.timed
            && (ack - seq) > 0
        {
            self.timed = None;
            self.measure(now.saturating_duration_since(at));
        }
        match &mut self.recovery {
            Some(recovery) if (ack - recovery.high) >= 0 => {
                if let Some(congestion) = &mut self.congestion
                    && !recovery.timeout
                {
                    congestion.window = congestion.threshold;
                }
                self.recovery = None;
            }
            Some(recovery) => {
                if !self.sack || (recovery.cursor - ack) < 0 {
                    // RFC 6582: a partial acknowledgement shows the next hole.
                    recovery.cursor = ack;
                }
                if recovery.timeout
                    && let Some(congestion) = &mut self.congestion
                {
                    congestion.grow(newly, self.mss);
                }
            }
            None => {
                if let Some(congestion) = &mut self.congestion {
                    congestion.grow(newly, self.mss);
                }
            }
        }
        self.deadline = (!self.idle()).then(|| now + self.rto());
    }

    /// The next piece that may be sent: a hole first, then new data. `None` when windows forbid.
    /// `largest` bounds the piece.
    pub(super) fn next_piece(&mut self, largest: usize) -> Option<Piece> {
        let pipe = self.pipe();
        let room =
            self.congestion.map_or(u32::MAX, |congestion| congestion.window.saturating_sub(pipe));
        if let Some((start, end)) = self.hole() {
            let fresh = self.recovery.is_some_and(|recovery| recovery.fresh);
            if room < u32::from(self.mss) && pipe > 0 && !fresh {
                return None;
            }
            let len = (distance(start, end) as usize).min(largest).min(whole(room, self.mss));
            return Some(Piece { seq: start, len, again: true });
        }
        if self.fin.is_some_and(|fin| (self.next - fin) > 0) {
            return None;
        }
        let room = room.min(self.window.saturating_sub(self.in_flight()));
        // Silly window avoidance (RFC 9293 3.8.6.2.1): wait for room for a segment while
        // something is on its way.
        if room == 0 || (room < u32::from(self.mss) && !self.idle()) {
            // A FIN needs no window.
            let fin_only = self.fin == Some(self.next);
            return fin_only.then_some(Piece { seq: self.next, len: 1, again: false });
        }
        Some(Piece { seq: self.next, len: (room as usize).min(largest), again: false })
    }

    /// A piece was sent; `len` counts the FIN if it was in it.
    pub(super) fn sent(&mut self, now: Instant, piece: Piece, len: usize) {
        let end = piece.seq + len;
        if piece.again {
            if let Some(recovery) = &mut self.recovery {
                recovery.cursor = end;
                recovery.fresh = false;
            }
            self.timed = None;
        } else {
            self.next = end;
            if self.timed.is_none() && self.recovery.is_none() {
                self.timed = Some((piece.seq, now));
            }
        }
        if self.deadline.is_none() || piece.again {
            self.deadline = Some(now + self.rto());
        }
    }

    /// Data waits but the window is closed: probe it later (RFC 9293 3.8.6.1).
    pub(super) fn wait_for_window(&mut self, now: Instant) {
        if self.idle() && self.deadline.is_none() {
            self.deadline = Some(now + self.rto());
        }
    }

    /// The deadline passed. `Ok(true)`: something may be sent again; `Ok(false)`: probe the
    /// window with [`Sender::probe`]; `Err`: the guest has not answered for too long.
    pub(super) fn on_timeout(&mut self, now: Instant) -> Result<bool, ()> {
        self.deadline = None;
        if self.idle() {
            // A guest may keep its window closed as long as it answers; every answer that
            // carries a window resets the count.
            self.backoff = (self.backoff + 1).min(MAX_BACKOFF - 1);
            self.deadline = Some(now + self.rto());
            return Ok(false);
        }
        self.backoff += 1;
        if self.backoff > MAX_BACKOFF {
            return Err(());
        }
        // RFC 6675 section 5.1: what the guest SACKed may have been thrown away since.
        self.sacked.clear();
        self.enter_recovery(true);
        Ok(true)
    }

    /// Sequence number of a window probe: the byte before the window, which the guest must
    /// answer (RFC 9293 3.10.7.4 step 1).
    pub(super) fn probe(&self) -> SeqNumber {
        SeqNumber(self.una.0.wrapping_sub(1))
    }

    pub(super) fn window_is_closed(&self) -> bool {
        self.idle() && self.window == 0
    }

    fn enter_recovery(&mut self, timeout: bool) {
        // RFC 5681 equation 4. A second timeout of the same flight keeps the threshold.
        let mss = u32::from(self.mss);
        let again = timeout && self.recovery.is_some_and(|recovery| recovery.timeout);
        let half = (self.in_flight().saturating_sub(self.sacked_bytes()) / 2).max(2 * mss);
        let threshold = match self.congestion {
            Some(congestion) if again => congestion.threshold,
            _ => half,
        };
        let window = if timeout { mss } else { threshold };
        self.congestion = Some(Congestion { window, threshold });
        self.recovery = Some(Recovery { high: self.next, cursor: self.una, timeout, fresh: true });
        self.timed = None;
    }

    /// The next range to send again, if one is known to be lost.
    fn hole(&self) -> Option<Range> {
        let recovery = self.recovery?;
        let lost_until = self.lost_until(recovery);
        let mut start = if (recovery.cursor - self.una) < 0 { self.una } else { recovery.cursor };
        for (from, until) in &self.sacked {
            if (*until - start) <= 0 {
                continue;
            }
            if (*from - start) > 0 {
                let end = if (*from - lost_until) < 0 { *from } else { lost_until };
                return ((end - start) > 0).then_some((start, end));
            }
            start = *until;
        }
        ((lost_until - start) > 0).then_some((start, lost_until))
    }

    fn lost_until(&self, recovery: Recovery) -> SeqNumber {
        if recovery.timeout {
            return recovery.high;
        }
        match self.sacked.last() {
            Some((start, _)) => *start,
            // Nothing SACKed: the first segment is the one that is missing.
            None => {
                let end = self.una + u32::from(self.mss);
                if (end - recovery.high) < 0 { end } else { recovery.high }
            }
        }
    }

    /// Bytes on the way (RFC 6675 section 4): sent, neither acknowledged nor lost.
    fn pipe(&self) -> u32 {
        let mut pipe = self.in_flight().saturating_sub(self.sacked_bytes());
        if let Some(recovery) = self.recovery {
            let lost_until = self.lost_until(recovery);
            let cursor = if (recovery.cursor - self.una) < 0 { self.una } else { recovery.cursor };
            if (lost_until - cursor) > 0 {
                let sacked: u32 = self
                    .sacked
                    .iter()
                    .filter(|(start, _)| (*start - cursor) >= 0 && (*start - lost_until) < 0)
                    .map(|(start, end)| distance(*start, *end))
                    .sum();
                pipe = pipe.saturating_sub(distance(cursor, lost_until).saturating_sub(sacked));
            }
        }
        pipe
    }

    fn sacked_bytes(&self) -> u32 {
        self.sacked.iter().map(|(start, end)| distance(*start, *end)).sum()
    }

    /// Remembers a SACK block that lies inside what was sent (RFC 2018; D-SACK blocks lie below
    /// `una` and are passed over).
    fn mark_sacked(&mut self, start: SeqNumber, end: SeqNumber) {
        if (end - start) <= 0 || (start - self.una) <= 0 || (end - self.next) > 0 {
            return;
        }
        let first = self.sacked.iter().take_while(|(_, until)| (start - *until) > 0).count();
        let touching =
            self.sacked.iter().skip(first).take_while(|(from, _)| (*from - end) <= 0).count();
        if touching == 0 && self.sacked.len() >= MAX_SACKED {
            return;
        }
        let mut merged = (start, end);
        for (from, until) in self.sacked.drain(first..first + touching) {
            if (from - merged.0) < 0 {
                merged.0 = from;
            }
            if (until - merged.1) > 0 {
                merged.1 = until;
            }
        }
        self.sacked.insert(first, merged);
    }

    /// RFC 6298 section 2.
    fn measure(&mut self, sample: Duration) {
        self.rtt = Some(match self.rtt {
            None => (sample, sample / 2),
            Some((smoothed, variance)) => {
                let error = smoothed.abs_diff(sample);
                ((smoothed * 7 + sample) / 8, (variance * 3 + error) / 4)
            }
        });
    }

    pub(super) fn rto(&self) -> Duration {
        let base = self
            .rtt
            .map_or(RTO_INITIAL, |(smoothed, variance)| (smoothed + variance * 4).max(RTO_FLOOR));
        (base * (1 << self.backoff.min(16))).min(RTO_CEILING)
    }
}

impl Congestion {
    /// Slow start, then congestion avoidance (RFC 5681 section 3.1).
    fn grow(&mut self, newly: u32, mss: u16) {
        let mss = u32::from(mss);
        let step = if self.window < self.threshold {
            newly
        } else {
            let part = u64::from(mss) * u64::from(newly) / u64::from(self.window.max(1));
            u32::try_from(part.max(1)).unwrap_or(mss)
        };
        self.window = self.window.saturating_add(step);
    }
}

/// `room` cut to whole segments, at least one.
fn whole(room: u32, mss: u16) -> usize {
    let mss = u32::from(mss.max(1));
    ((room / mss).max(1) as usize).saturating_mul(mss as usize)
}

/// Bytes from `from` on to `to`; 0 if `to` lies before.
fn distance(from: SeqNumber, to: SeqNumber) -> u32 {
    u32::try_from(to - from).unwrap_or(0)
}
