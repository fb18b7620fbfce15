//! What was sent and is not acknowledged: the scoreboard of SACK (RFC 6675), and RACK's view of what
//! is lost (RFC 8985).
//!
//! A record is what was sent at once, up to a whole super-frame; it is split where selective
//! acknowledgements or retransmissions cut through it. Records are sorted and leave no gaps.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;

use super::assembler::Range;

/// RFC 5681 section 3.2, RFC 8985 section 6.2.
pub(super) const DUPLICATE_THRESHOLD: u32 = 3;
/// RFC 8985 section 6.2 step 4: the most quarters of a round trip to wait for reordered segments.
const MAX_MULTIPLIER: u32 = 20;
/// RFC 8985: recoveries after which a widened window is given up.
const PERSIST: u32 = 16;

/// Records up to which selective acknowledgements cut, and what is sent has one to itself: every segment of the largest
/// window that is set by default, and some. Beyond it only whole records are marked, more is sent again than need be,
/// and round trips are not measured.
const MAX_RECORDS: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Record {
    start: SeqNumber,
    end: SeqNumber,
    sent: Instant,
    /// How long the segments are that it was cut into, bytes; the last one may be shorter.
    segment: u16,
    sacked: bool,
    lost: bool,
    /// Sent more than once, or at several times.
    again: bool,
}

impl Record {
    fn len(&self) -> u32 {
        distance(self.start, self.end)
    }

    /// The last cut between segments at or before a distance from its start.
    fn cut(&self, at: u32) -> u32 {
        at - at % u32::from(self.segment.max(1))
    }
}

/// What an acknowledgement has brought.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delivered {
    /// Bytes that were acknowledged or selectively acknowledged for the first time.
    pub(super) bytes: u32,
    /// The shortest round trip of a segment that was sent once.
    pub(super) rtt: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Board {
    records: VecDeque<Record>,
    sacked: u32,
    lost: u32,
    /// No lost record begins before this.
    cursor: SeqNumber,
    rack: Rack,
}

/// RFC 8985 section 5.2.
#[derive(Debug, Default)]
struct Rack {
    /// When the segment that was sent last, of those that have arrived, was sent; its end.
    newest: Option<(Instant, SeqNumber)>,
    rtt: Duration,
    /// The highest sequence number that has arrived.
    forward: Option<SeqNumber>,
    reordered: bool,
    multiplier: u32,
    persist: u32,
    /// One widening for each round trip: until this is acknowledged.
    round: Option<SeqNumber>,
}

impl Board {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes that are thought to be on their way (RFC 6675 section 4).
    pub(super) fn pipe(&self) -> u32 {
        let first = self.records.front().map(|record| record.start);
        let last = self.records.back().map(|record| record.end);
        let all = first.zip(last).map_or(0, |(first, last)| distance(first, last));
        all.saturating_sub(self.sacked).saturating_sub(self.lost)
    }

    pub(super) fn sacked(&self) -> u32 {
        self.sacked
    }

    pub(super) fn any_lost(&self) -> bool {
        self.lost > 0
    }

    /// Something new was sent, right behind the last, in segments of so many bytes.
    pub(super) fn push(&mut self, now: Instant, (start, end): Range, segment: u16) {
        let (sacked, lost, again) = (false, false, false);
        self.records.push_back(Record { start, end, sent: now, segment, sacked, lost, again });
        self.join(self.records.len() - 1);
    }

    /// Where there are too many records, makes one of two neighbours that are on their way: of the one at `place`,
    /// which was sent just now, and the one before it.
    fn join(&mut self, place: usize) {
        let Some(before) = place.checked_sub(1).filter(|_| self.records.len() > MAX_RECORDS) else {
            return;
        };
        let pending = |place| {
            let record: Option<&Record> = self.records.get(place);
            record.copied().filter(|record| !record.sacked && !record.lost)
        };
        let Some((one, other)) = pending(before).zip(pending(place)) else { return };
        if let Some(joined) = self.records.get_mut(before) {
            let segment = one.segment.min(other.segment);
            *joined = Record { start: one.start, segment, again: true, ..other };
            self.records.remove(place);
        }
    }

    /// Everything before `una` has arrived.
    pub(super) fn acknowledge(
        &mut self,
        now: Instant,
        una: SeqNumber,
        min_rtt: Option<Duration>,
        delivered: &mut Delivered,
    ) {
        self.split(una);
        let mut ambiguous = false;
        while let Some(record) = self.records.front().copied()
            && record.end.le(una)
        {
            self.records.pop_front();
            ambiguous |= record.again;
            if record.lost {
                self.lost -= record.len();
            }
            if record.sacked {
                self.sacked -= record.len();
            } else {
                delivered.bytes += record.len();
                self.arrived(now, &record, min_rtt, delivered);
            }
        }
        if self.records.is_empty() {
            // An idle connection has no buffers.
            self.records = VecDeque::new();
        }
        if ambiguous {
            // What stood behind a hole has waited for its repair, not for the path.
            delivered.rtt = None;
        }
        if self.rack.round.is_some_and(|round| round.le(una)) {
            self.rack.round = None;
        }
    }

    /// What lies in `range` has arrived, ahead of a gap. `fin`: the last number of all is a FIN.
    pub(super) fn sack(
        &mut self,
        now: Instant,
        range: Range,
        fin: bool,
        min_rtt: Option<Duration>,
        delivered: &mut Delivered,
    ) {
        let Some((left, right)) = self.whole_segments(range, fin) else { return };
        self.split(left);
        self.split(right);
        let first = self.place(left);
        let mut place = first;
        while let Some(record) = self.records.get_mut(place).filter(|record| record.end.le(right)) {
            if !record.sacked {
                record.sacked = true;
                let lost = std::mem::take(&mut record.lost);
                let record = *record;
                self.sacked += record.len();
                self.lost -= if lost { record.len() } else { 0 };
                delivered.bytes += record.len();
                self.arrived(now, &record, min_rtt, delivered);
            }
            place += 1;
        }
        self.merge(first, place);
    }

    /// The whole segments in a range. A peer has received none but those: one that tells of single bytes wants them
    /// to be remembered, and what lies between them to be sent, each by itself (CVE-2019-11478).
    fn whole_segments(&self, (left, right): Range, fin: bool) -> Option<Range> {
        let full = self.records.len() >= MAX_RECORDS;
        let around = |at: SeqNumber| {
            self.records.get(self.place(at)).filter(|record| record.start.lt(at)).copied()
        };
        let left = match around(left) {
            Some(Record { end, .. }) if full => end,
            Some(record) => {
                let inside = distance(record.start, left) - 1;
                let next = record.cut(inside) + u32::from(record.segment.max(1));
                (record.start + next).min(record.end)
            }
            None => left,
        };
        let last = self.records.back().map(|record| record.end);
        let right = match around(right) {
            // Not every peer counts the FIN that came with the last data.
            Some(Record { end, .. }) if fin && last == Some(end) && end == right + 1u32 => end,
            Some(Record { start, .. }) if full => start,
            Some(record) => record.start + record.cut(distance(record.start, right)),
            None => right,
        };
        left.lt(right).then_some((left, right))
    }

    /// Joins neighbours that have arrived, so that a long gap does not cost a record for each of the
    /// segments behind it.
    fn merge(&mut self, first: usize, last: usize) {
        let mut place = first.max(1);
        let mut until = last;
        while place <= until {
            let Some((before, record)) = place
                .checked_sub(1)
                .and_then(|before| Some((*self.records.get(before)?, *self.records.get(place)?)))
            else {
                break;
            };
            if before.sacked && record.sacked {
                if let Some(joined) = self.records.get_mut(place - 1) {
                    joined.end = record.end;
                }
                self.records.remove(place);
                until = until.saturating_sub(1);
            } else {
                place += 1;
            }
        }
    }

    /// RFC 8985 section 6.2 steps 1 to 3: a segment has arrived.
    fn arrived(
        &mut self,
        now: Instant,
        record: &Record,
        min_rtt: Option<Duration>,
        delivered: &mut Delivered,
    ) {
        let rtt = now.saturating_duration_since(record.sent);
        if record.again {
            // Most likely the first copy is what was acknowledged.
            if min_rtt.is_some_and(|min| rtt < min) {
                return;
            }
        } else {
            delivered.rtt = Some(delivered.rtt.map_or(rtt, |shortest| shortest.min(rtt)));
        }
        let rack = &mut self.rack;
        if rack.newest.is_none_or(|newest| sent_after((record.sent, record.end), newest)) {
            rack.newest = Some((record.sent, record.end));
            rack.rtt = rtt;
        }
        match rack.forward {
            Some(forward) if record.end.gt(forward) => rack.forward = Some(record.end),
            Some(forward) if record.end.lt(forward) && !record.again => rack.reordered = true,
            Some(_) => {}
            None => rack.forward = Some(record.end),
        }
    }

    /// A segment came twice (RFC 2883): something was sent again in vain, so reordering is wider than
    /// was thought (RFC 8985 section 6.2 step 4).
    pub(super) fn duplicate(&mut self, next: SeqNumber) {
        if self.rack.round.is_none() {
            self.rack.round = Some(next);
            self.rack.multiplier = (self.rack.multiplier + 1).min(MAX_MULTIPLIER);
            self.rack.persist = PERSIST;
        }
    }

    /// A recovery is over.
    pub(super) fn recovered(&mut self) {
        self.rack.persist = self.rack.persist.saturating_sub(1);
        if self.rack.persist == 0 {
            self.rack.multiplier = 0;
        }
    }

    /// RFC 8985 section 6.2 steps 4 and 5: marks what is lost. If more may turn out to be, the time
    /// after which to look again.
    pub(super) fn detect(
        &mut self,
        now: Instant,
        mss: u16,
        recovering: bool,
        smoothed: Option<Duration>,
        min_rtt: Option<Duration>,
    ) -> Option<Duration> {
        let newest = self.rack.newest?;
        if self.sacked == 0 && !self.records.iter().take(1).any(|record| record.again) {
            // Nothing has overtaken anything.
            return None;
        }
        let many = self.sacked >= DUPLICATE_THRESHOLD * u32::from(mss);
        let window = if !self.rack.reordered && (recovering || many) {
            Duration::ZERO
        } else {
            let quarter = min_rtt.unwrap_or_default() / 4;
            (quarter * (self.rack.multiplier + 1)).min(smoothed.unwrap_or_default())
        };
        let patience = self.rack.rtt + window;
        let mut again_in: Option<Duration> = None;
        for record in &mut self.records {
            if record.sacked || record.lost || !sent_after(newest, (record.sent, record.end)) {
                continue;
            }
            let waited = now.saturating_duration_since(record.sent);
            if waited >= patience {
                record.lost = true;
                self.lost += distance(record.start, record.end);
                self.cursor = self.cursor.min(record.start);
            } else {
                let left = patience - waited;
                again_in = Some(again_in.map_or(left, |longest| longest.max(left)));
            }
        }
        again_in
    }

    /// Marks the first `len` bytes lost, for peers without SACK.
    pub(super) fn lose_first(&mut self, len: u32) {
        let Some(first) = self.records.front().map(|record| record.start) else { return };
        self.split(first + len);
        if let Some(record) = self.records.front_mut()
            && !record.lost
            && !record.sacked
        {
            record.lost = true;
            self.lost += distance(record.start, record.end);
            self.cursor = record.start;
        }
    }

    /// Marks everything that has not arrived lost. A peer that has given up what it had selectively
    /// acknowledged has the first record missing for ever: nothing of it is believed then (RFC 2018
    /// section 8).
    pub(super) fn lose_all(&mut self) {
        let reneged = self.records.front().is_some_and(|record| record.sacked);
        for record in &mut self.records {
            record.sacked &= !reneged;
            record.lost = !record.sacked;
        }
        let sum = |wanted: fn(&Record) -> bool| {
            self.records.iter().filter(|record| wanted(record)).map(Record::len).sum()
        };
        (self.sacked, self.lost) = (sum(|record| record.sacked), sum(|record| record.lost));
        if let Some(first) = self.records.front() {
            self.cursor = first.start;
        }
    }

    /// The next range to be sent again.
    pub(super) fn next_lost(&mut self) -> Option<Range> {
        if self.lost == 0 {
            return None;
        }
        let place = self.place(self.cursor);
        let lost = self.records.iter().skip(place).find(|record| record.lost)?;
        self.cursor = lost.start;
        Some((lost.start, lost.end))
    }

    /// The last segment that has not arrived, to be sent again as a probe: as it was cut then, so that what the peer
    /// tells of it is told of whole segments. `fin`: the last byte is no data, and lengthens its segment.
    pub(super) fn tail(&self, fin: bool) -> Option<Range> {
        let last = self.records.iter().rev().find(|record| !record.sacked)?;
        let data = last.len().saturating_sub(u32::from(fin));
        Some((last.start + last.cut(data.saturating_sub(1)), last.end))
    }

    /// A range of one record was sent again, in segments of so many bytes.
    pub(super) fn resent(&mut self, now: Instant, (start, end): Range, segment: u16) {
        self.split(start);
        self.split(end);
        let place = self.place(start);
        if let Some(record) = self.records.get_mut(place) {
            if std::mem::take(&mut record.lost) {
                self.lost -= distance(record.start, record.end);
            }
            (record.sent, record.segment) = (now, segment);
            record.again = true;
        }
        self.join(place);
    }

    /// The first record that ends behind `at`.
    fn place(&self, at: SeqNumber) -> usize {
        self.records.partition_point(|record| record.end.le(at))
    }

    /// Cuts the record that holds `at` in its middle, if there is one.
    fn split(&mut self, at: SeqNumber) {
        let place = self.place(at);
        let Some(record) = self.records.get_mut(place).filter(|record| record.start.lt(at)) else {
            return;
        };
        let behind = Record { start: at, ..*record };
        record.end = at;
        self.records.insert(place + 1, behind);
    }
}

/// RFC 8985 section 6.2: which of two was sent later.
fn sent_after(one: (Instant, SeqNumber), other: (Instant, SeqNumber)) -> bool {
    one.0 > other.0 || (one.0 == other.0 && one.1.gt(other.1))
}

/// Bytes from one sequence number to a later one.
pub(super) fn distance(from: SeqNumber, to: SeqNumber) -> u32 {
    u32::try_from(to - from).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u16 = 1000;
    const RTT: Duration = Duration::from_millis(100);

    fn at(n: u32) -> SeqNumber {
        SeqNumber(u32::MAX - 3000) + n
    }

    /// A board with `count` segments, sent a millisecond apart.
    fn board(start: Instant, count: u32) -> Board {
        let mut board = Board::default();
        for n in 0..count {
            let sent = start + Duration::from_millis(n.into());
            board.push(sent, (at(n * 1000), at((n + 1) * 1000)), MSS);
        }
        board
    }

    fn sack(board: &mut Board, now: Instant, from: u32, until: u32) -> u32 {
        let mut delivered = Delivered::default();
        board.sack(now, (at(from), at(until)), false, Some(RTT), &mut delivered);
        delivered.bytes
    }

    fn detect(board: &mut Board, now: Instant) -> Option<Duration> {
        board.detect(now, MSS, false, Some(RTT), Some(RTT))
    }

    #[test]
    fn a_gap_with_three_segments_behind_it_is_lost() {
        let start = Instant::now();
        let mut board = board(start, 10);
        let now = start + RTT + Duration::from_millis(3);
        assert_eq!(sack(&mut board, now, 1000, 3000), 2000);
        assert!(detect(&mut board, now).is_some(), "two are not enough: it waits");
        assert!(!board.any_lost());
        assert_eq!(sack(&mut board, now, 1000, 4000), 1000, "told again, counted once");
        detect(&mut board, now);
        assert_eq!(board.next_lost(), Some((at(0), at(1000))));
        assert_eq!(board.pipe(), 6000);
        board.resent(now, (at(0), at(1000)), MSS);
        assert_eq!(board.next_lost(), None);
        assert_eq!(board.pipe(), 7000);
        // The retransmission is lost, too: what was sent after it arrives.
        board.push(now + Duration::from_millis(1), (at(10_000), at(11_000)), MSS);
        let later = now + RTT + Duration::from_millis(1);
        sack(&mut board, later, 10_000, 11_000);
        detect(&mut board, later);
        assert_eq!(board.next_lost(), Some((at(0), at(1000))));
    }

    #[test]
    fn reordering_is_waited_for() {
        let start = Instant::now();
        let mut board = board(start, 4);
        let now = start + RTT + Duration::from_millis(1);
        sack(&mut board, now, 1000, 2000);
        let wait = detect(&mut board, now).unwrap();
        assert!(wait <= RTT / 4 + Duration::from_millis(1), "{wait:?}");
        detect(&mut board, now + wait);
        assert!(board.any_lost());
        // It was only late; from now on the window stays open for others.
        let mut delivered = Delivered::default();
        board.acknowledge(now + wait, at(2000), Some(RTT), &mut delivered);
        assert_eq!(delivered.bytes, 1000);
        assert!(board.rack.reordered && !board.any_lost());
    }

    #[test]
    fn super_frames_are_split_where_acknowledgements_cut_them() {
        let start = Instant::now();
        let mut board = Board::default();
        board.push(start, (at(0), at(60_000)), MSS);
        let now = start + RTT;
        sack(&mut board, now, 10_000, 20_000);
        sack(&mut board, now, 30_000, 60_000);
        detect(&mut board, now);
        assert_eq!(board.next_lost(), Some((at(0), at(10_000))));
        board.resent(now, (at(0), at(4_000)), MSS);
        assert_eq!(board.next_lost(), Some((at(4_000), at(10_000))));
        board.resent(now, (at(4_000), at(10_000)), MSS);
        assert_eq!(board.next_lost(), Some((at(20_000), at(30_000))));
        assert_eq!(board.pipe(), 10_000);
        let mut delivered = Delivered::default();
        board.acknowledge(now + RTT, at(15_000), Some(RTT), &mut delivered);
        assert_eq!((delivered.bytes, board.sacked()), (10_000, 35_000));
        board.acknowledge(now + RTT, at(60_000), Some(RTT), &mut delivered);
        assert!(board.is_empty());
        assert_eq!((board.sacked, board.lost, board.pipe()), (0, 0, 0));
    }

    #[test]
    fn a_peer_that_tells_of_single_bytes_is_believed_whole_segments() {
        let start = Instant::now();
        let mut board = Board::default();
        board.push(start, (at(0), at(10_500)), MSS);
        let now = start + RTT;
        for n in 0..5_000 {
            assert_eq!(sack(&mut board, now, 2 * n + 1, 2 * n + 2), 0);
        }
        assert_eq!(board.records.len(), 1);
        assert_eq!(sack(&mut board, now, 1_001, 3_999), 1_000, "one lies whole in it");
        assert_eq!(sack(&mut board, now, 9_500, 10_499), 0, "not to its end");
        let (mut delivered, to_fin) = (Delivered::default(), (at(9_500), at(10_499)));
        board.sack(now, to_fin, true, Some(RTT), &mut delivered);
        assert_eq!(delivered.bytes, 500, "the last one is short, and has the FIN");
        assert_eq!(board.records.len(), 4);
        // Segments are what they were when they were sent: shorter beside other options.
        board.push(start, (at(10_500), at(13_500)), 900);
        assert_eq!(sack(&mut board, now, 11_400, 12_300), 900);
        detect(&mut board, now + RTT);
        assert_eq!(board.next_lost(), Some((at(0), at(2000))));
    }

    #[test]
    fn records_are_bounded_however_a_peer_cuts() {
        let start = Instant::now();
        let mut board = Board::default();
        let units = 300;
        for n in 0..units {
            board.push(start, (at(n * 64_000), at((n + 1) * 64_000)), MSS);
        }
        let now = start + RTT;
        for n in 0..units * 32 {
            sack(&mut board, now, n * 2000 + 1000, n * 2000 + 2000);
        }
        assert!(board.records.len() <= MAX_RECORDS + 2, "{}", board.records.len());
        // What is told whole is still believed.
        assert_eq!(sack(&mut board, now, (units - 1) * 64_000, units * 64_000), 64_000);
        // Nor does what is lost meanwhile, and sent again in pieces, make more.
        board.lose_all();
        while let Some((first, last)) = board.next_lost() {
            board.resent(now, (first, last.min(first + u32::from(MSS))), MSS);
            assert!(board.records.len() <= MAX_RECORDS + 4, "{}", board.records.len());
        }
        let mut delivered = Delivered::default();
        board.acknowledge(now, at(units * 64_000), Some(RTT), &mut delivered);
        assert_eq!((board.records.len(), board.sacked, board.lost), (0, 0, 0));
    }

    #[test]
    fn records_are_bounded_however_small_the_segments_are() {
        let start = Instant::now();
        let mut board = Board::default();
        for n in 0..80_000 {
            board.push(start + Duration::from_micros(n.into()), (at(n * 64), at((n + 1) * 64)), 64);
            if n % 3 == 0 {
                // The newest each time, so that the next one has a neighbour that has arrived.
                sack(&mut board, start + RTT, n * 64, (n + 1) * 64);
            }
        }
        assert!(board.records.len() <= MAX_RECORDS + 2, "{}", board.records.len());
        assert_eq!(board.pipe() + board.sacked(), 80_000 * 64);
        let mut delivered = Delivered::default();
        board.acknowledge(start + RTT, at(80_000 * 64), Some(RTT), &mut delivered);
        assert_eq!((board.records.len(), board.sacked, board.lost), (0, 0, 0));
        assert_eq!(delivered.rtt, None, "what was sent at several times tells no round trip");
    }

    #[test]
    fn a_timeout_loses_all_but_what_has_arrived() {
        let start = Instant::now();
        let mut board = board(start, 5);
        sack(&mut board, start + RTT, 3000, 4000);
        board.lose_all();
        assert_eq!((board.pipe(), board.sacked()), (0, 1000));
        assert_eq!(board.next_lost(), Some((at(0), at(1000))));
        // The first one arrives; the peer then forgets what it had.
        let mut delivered = Delivered::default();
        board.acknowledge(start + RTT, at(3000), Some(RTT), &mut delivered);
        board.lose_all();
        assert_eq!(board.sacked(), 0);
        assert_eq!(board.next_lost(), Some((at(3000), at(4000))));
    }

    #[test]
    fn the_last_bytes_serve_as_a_probe() {
        let start = Instant::now();
        let mut longer = board(start, 5);
        assert_eq!(longer.tail(false), Some((at(4000), at(5000))));
        longer.push(start, (at(5000), at(7501)), MSS);
        assert_eq!(longer.tail(false), Some((at(7000), at(7501))));
        longer.push(start, (at(7501), at(9502)), MSS);
        assert_eq!(longer.tail(true), Some((at(8501), at(9502))), "the segment with the FIN");
        let mut board = board(start, 5);
        board.resent(start + RTT, (at(4700), at(5000)), MSS);
        assert_eq!(board.records.len(), 6);
        assert_eq!(board.pipe(), 5000);
    }
}
