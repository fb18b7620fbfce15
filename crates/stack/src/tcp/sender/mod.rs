//! The sending side of a connection: what may be sent, and what acknowledgements say.
//!
//! What is sent next is in [`pieces`], what is done about losses and silence in [`recovery`].

mod pieces;
mod recovery;

use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;
use netyard_wire::tcp::Segment;

use super::Shared;
use super::assembler::Range;
use super::board::{Board, Delivered, distance};
use super::congestion::Congestion;
use super::peer::{DEFAULT_MSS4, Peer};
use super::queue::ByteQueue;
use super::rtt::Rtt;
use super::settings::Settings;

pub(super) use self::pieces::Piece;

/// Bytes that a program may queue before anything was acknowledged.
const INITIAL_BUFFER: usize = 64 * 1024;
/// Bytes that a program may queue ahead of what was sent: what is sent then is still in the processor's cache, and no
/// more waits than it takes to keep the device busy.
const MAX_UNSENT: usize = 512 * 1024;

/// A program may not have less room than this, bytes (about Linux's `SOCK_MIN_SNDBUF`).
const MIN_LIMIT: u32 = 4096;

#[derive(Debug)]
pub(super) struct Sender {
    pub(in crate::tcp) una: SeqNumber,
    /// One past the highest sequence number sent.
    pub(in crate::tcp) next: SeqNumber,
    /// The peer's window from `una` on, bytes; and the widest that it ever offered.
    window: u32,
    widest: u32,
    /// Sequence and acknowledgement number of the last window update (SND.WL1, SND.WL2).
    updated: (SeqNumber, SeqNumber),
    scale: u8,
    pub(in crate::tcp) sack: bool,
    /// Largest payload with timestamps but without other options, bytes.
    pub(in crate::tcp) mss: u16,
    /// Data from `una` on.
    pub(in crate::tcp) buffer: ByteQueue,
    /// Bytes that a program may queue now, and how many it wants at most.
    capacity: usize,
    wanted: u32,
    /// The program writes no more: a FIN follows the data.
    pub(in crate::tcp) closing: bool,
    fin_sent: bool,
    board: Board,
    pub(in crate::tcp) congestion: Congestion,
    pub(in crate::tcp) rtt: Rtt,
    recovery: Recovery,
    duplicates: u32,
    /// The window of congestion has kept data back since the last acknowledgement.
    limited: bool,
    /// End of the last segment that was not full (Minshall's variant of RFC 896).
    small: SeqNumber,
    last_sent: Option<Instant>,
    /// When the peer last acknowledged something new, or the flight began.
    pub(in crate::tcp) progress: Instant,
    timer: Option<(Instant, Timer)>,
    /// A tail probe is on its way: up to where, and whether it was sent before.
    probe: Option<(SeqNumber, bool)>,
    /// The probe timer has run out: the next piece is a probe.
    probe_due: bool,
    /// A closed window is to be asked after; how often that was done without an answer.
    pub(in crate::tcp) window_probe_due: bool,
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
    pub(in crate::tcp) fn new(now: Instant, iss: SeqNumber, settings: &Settings) -> Self {
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
            wanted: u32::MAX,
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
    pub(in crate::tcp) fn open(&mut self, now: Instant, peer: &Peer, segment_len: u16) {
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

    pub(in crate::tcp) fn set_mss(&mut self, mss: u16) {
        self.mss = mss.max(1);
        self.congestion.set_mss(self.mss);
    }

    /// Room for data of the program, bytes.
    pub(in crate::tcp) fn room(&self) -> usize {
        if self.closing {
            return 0;
        }
        let unsent = usize::try_from(distance(self.next, self.data_end())).unwrap_or(0);
        let room = self.capacity.saturating_sub(self.buffer.len());
        room.min(MAX_UNSENT.saturating_sub(unsent))
    }

    /// True once there is so much room that a program that waits should hear of it.
    pub(in crate::tcp) fn is_roomy(&self) -> bool {
        self.room() > self.capacity.min(MAX_UNSENT) / 3
    }

    /// One past the last byte of data.
    fn data_end(&self) -> SeqNumber {
        self.una + self.buffer.len()
    }

    /// The sequence number of the FIN was acknowledged.
    pub(in crate::tcp) fn finished(&self) -> bool {
        self.fin_sent && self.una == self.next && self.buffer.is_empty()
    }

    /// Nothing is on its way.
    pub(in crate::tcp) fn is_idle(&self) -> bool {
        self.una == self.next
    }

    fn flight(&self) -> u32 {
        distance(self.una, self.next)
    }

    /// RFC 5961 section 5.2: an acknowledgement too old or too new is not to be believed.
    pub(in crate::tcp) fn acceptable(&self, ack: SeqNumber) -> bool {
        ack.ge(self.una - self.widest) && ack.le(self.next)
    }

    /// True if `seq` is on its way: only then an ICMP error speaks of this connection.
    pub(in crate::tcp) fn is_in_flight(&self, seq: SeqNumber) -> bool {
        seq.ge(self.una) && seq.lt(self.next)
    }

    /// Takes the acknowledgement of a segment, which is [`acceptable`](Self::acceptable). `plain`:
    /// the segment carries nothing else, so that it may be a duplicate. `echoed`: the round trip by the
    /// segment's timestamp.
    pub(in crate::tcp) fn handle_ack(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        plain: bool,
        echoed: Option<Duration>,
        shared: &mut Shared,
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
            self.advance(now, ack, newly, shared);
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

    fn advance(&mut self, now: Instant, ack: SeqNumber, newly: u32, shared: &mut Shared) {
        let fin = self.fin_sent && ack == self.next;
        let data = newly.saturating_sub(u32::from(fin));
        self.buffer.discard(usize::try_from(data).unwrap_or(usize::MAX), &mut shared.spare);
        self.una = ack;
        // What is acknowledged is no small segment under way, however far the numbers go round.
        self.small = self.small.max(ack);
        self.duplicates = 0;
        self.progress = now;
        self.rtt.progress();
        // Twice what the window takes keeps it full while the program runs behind.
        let wanted = usize::try_from(self.congestion.window).unwrap_or(usize::MAX);
        let wanted = wanted.saturating_mul(2).min(self.limit(&shared.settings));
        self.capacity = self.capacity.max(wanted);
    }

    /// The program wants no more than this to be queued.
    pub(in crate::tcp) fn set_limit(&mut self, wanted: Option<u32>, settings: &Settings) {
        self.wanted = wanted.map_or(u32::MAX, |wanted| wanted.max(MIN_LIMIT));
        self.capacity = self.capacity.min(self.limit(settings));
    }

    fn limit(&self, settings: &Settings) -> usize {
        usize::try_from(self.wanted).unwrap_or(usize::MAX).min(settings.send_buffer)
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
                let (range, fin) = ((left, right), self.fin_sent);
                self.board.sack(now, range, fin, min_rtt, delivered);
            }
        }
        duplicate
    }

    /// No data is queued and nothing is on its way.
    pub(in crate::tcp) fn is_quiet(&self) -> bool {
        self.is_idle() && self.buffer.is_empty() && self.board.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_segment_of_long_ago_keeps_nothing_back() {
        let (now, settings) = (Instant::now(), Settings::default());
        let mut sender = Sender::new(now, SeqNumber(0), &settings);
        let mut shared = Shared { settings, spare: Default::default() };
        // Full segments only, until the numbers have gone round half the way and more.
        for _ in 0..9 {
            sender.next += 1_u32 << 29;
            sender.advance(now, sender.next, 0, &mut shared);
            assert!(!sender.small.gt(sender.una), "nothing small is on its way");
        }
    }
}
