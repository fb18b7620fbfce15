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

#[derive(Debug, Clone, Copy)]
struct Record {
    start: SeqNumber,
    end: SeqNumber,
    sent: Instant,
    sacked: bool,
    lost: bool,
    /// Sent more than once.
    again: bool,
}

impl Record {
    fn len(&self) -> u32 {
        distance(self.start, self.end)
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

    /// Something new was sent, right behind the last.
    pub(super) fn push(&mut self, now: Instant, start: SeqNumber, end: SeqNumber) {
        let record = Record { start, end, sent: now, sacked: false, lost: false, again: false };
        self.records.push_back(record);
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
        if ambiguous {
            // What stood behind a hole has waited for its repair, not for the path.
            delivered.rtt = None;
        }
        if self.rack.round.is_some_and(|round| round.le(una)) {
            self.rack.round = None;
        }
    }

    /// What lies in `range` has arrived, ahead of a gap.
    pub(super) fn sack(
        &mut self,
        now: Instant,
        (left, right): Range,
        min_rtt: Option<Duration>,
        delivered: &mut Delivered,
    ) {
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

    /// The last bytes that have not arrived, at most `len`, to be sent again as a probe.
    pub(super) fn tail(&self, len: u32) -> Option<Range> {
        let last = self.records.iter().rev().find(|record| !record.sacked)?;
        Some((last.end - last.len().min(len), last.end))
    }

    /// A range of one record was sent again.
    pub(super) fn resent(&mut self, now: Instant, (start, end): Range) {
        self.split(start);
        self.split(end);
        let place = self.place(start);
        if let Some(record) = self.records.get_mut(place) {
            if std::mem::take(&mut record.lost) {
                self.lost -= distance(record.start, record.end);
            }
            record.sent = now;
            record.again = true;
        }
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
            board.push(sent, at(n * 1000), at((n + 1) * 1000));
        }
        board
    }

    fn sack(board: &mut Board, now: Instant, from: u32, until: u32) -> u32 {
        let mut delivered = Delivered::default();
        board.sack(now, (at(from), at(until)), Some(RTT), &mut delivered);
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
        board.resent(now, (at(0), at(1000)));
        assert_eq!(board.next_lost(), None);
        assert_eq!(board.pipe(), 7000);
        // The retransmission is lost, too: what was sent after it arrives.
        board.push(now + Duration::from_millis(1), at(10_000), at(11_000));
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
        board.push(start, at(0), at(60_000));
        let now = start + RTT;
        sack(&mut board, now, 10_000, 20_000);
        sack(&mut board, now, 30_000, 60_000);
        detect(&mut board, now);
        assert_eq!(board.next_lost(), Some((at(0), at(10_000))));
        board.resent(now, (at(0), at(4_000)));
        assert_eq!(board.next_lost(), Some((at(4_000), at(10_000))));
        board.resent(now, (at(4_000), at(10_000)));
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
        let mut board = board(start, 5);
        assert_eq!(board.tail(300), Some((at(4700), at(5000))));
        board.resent(start + RTT, (at(4700), at(5000)));
        assert_eq!(board.records.len(), 6);
        assert_eq!(board.pipe(), 5000);
    }
}
