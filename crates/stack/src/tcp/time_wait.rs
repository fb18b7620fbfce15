//! Connections that are over, for as long as late segments of them may come (RFC 9293 section 3.4.2).
//!
//! An entry is small and holds no buffers. There is a bounded number of them; the oldest makes room. They are links of a
//! list, oldest first: all last equally long, so nothing that is done with one depends on how many there are.

use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;
use netyard_wire::tcp::{Flags, Segment};
use slab::Slab;

use super::ends::Ends;
use super::timestamps::Timestamps;

/// Most entries (Linux's `tcp_max_tw_buckets` on a small machine).
const MAX_ENTRIES: usize = 16_384;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) ends: Ends,
    pub(super) next_seq: SeqNumber,
    pub(super) next_ack: SeqNumber,
    pub(super) timestamps: Timestamps,
    until: Instant,
    /// The entries that were noted before and after it.
    older: Option<usize>,
    newer: Option<usize>,
}

/// What to do with a segment of a connection that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A new connection may use the same ends; its first sequence number lies behind this.
    Reuse(SeqNumber),
    /// Acknowledge it again.
    Acknowledge,
    Ignore,
}

#[derive(Debug)]
pub(super) struct TimeWait {
    entries: Slab<Entry>,
    oldest: Option<usize>,
    newest: Option<usize>,
    lifetime: Duration,
}

impl TimeWait {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { entries: Slab::new(), oldest: None, newest: None, lifetime }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Remembers a connection; with it the ends of another one that had to go for it.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        ends: Ends,
        (next_seq, next_ack, timestamps): (SeqNumber, SeqNumber, Timestamps),
    ) -> (usize, Option<Ends>) {
        let full = self.entries.len() >= MAX_ENTRIES;
        let gone = self.oldest.filter(|_| full).and_then(|place| self.remove(place));
        let until = now + self.lifetime;
        let (older, newer) = (None, None);
        let entry = Entry { ends, next_seq, next_ack, timestamps, until, older, newer };
        let place = self.entries.insert(entry);
        self.link(place);
        (place, gone)
    }

    /// Makes an entry the newest.
    fn link(&mut self, place: usize) {
        let older = self.newest.replace(place);
        if let Some(entry) = self.entries.get_mut(place) {
            (entry.older, entry.newer) = (older, None);
        }
        match older.and_then(|older| self.entries.get_mut(older)) {
            Some(older) => older.newer = Some(place),
            None => self.oldest = Some(place),
        }
    }

    /// Takes an entry out of the list.
    fn unlink(&mut self, place: usize) {
        let Some(entry) = self.entries.get(place) else { return };
        let (older, newer) = (entry.older, entry.newer);
        match older.and_then(|older| self.entries.get_mut(older)) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match newer.and_then(|newer| self.entries.get_mut(newer)) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
    }

    pub(super) fn get(&self, place: usize) -> Option<&Entry> {
        self.entries.get(place)
    }

    /// Forgets an entry; its ends.
    pub(super) fn remove(&mut self, place: usize) -> Option<Ends> {
        self.unlink(place);
        self.entries.try_remove(place).map(|entry| entry.ends)
    }

    pub(super) fn handle(&mut self, now: Instant, place: usize, segment: &Segment<'_>) -> Verdict {
        let Some(entry) = self.entries.get_mut(place) else { return Verdict::Ignore };
        let flags = segment.flags;
        if flags.contains(Flags::RST) {
            // RFC 1337: a reset must not shorten the wait.
            return Verdict::Ignore;
        }
        if flags.contains(Flags::SYN) && !flags.contains(Flags::ACK) {
            // RFC 6191 section 2: new for sure.
            let later = segment.seq.gt(entry.next_ack);
            let newer = match segment.options.timestamps {
                Some((value, _)) if entry.timestamps.len() > 0 => {
                    entry.timestamps.is_newer(value, later)
                }
                _ => later,
            };
            if newer {
                return Verdict::Reuse(entry.next_seq);
            }
        }
        let asked = !(segment.is_empty() && segment.seq == entry.next_ack);
        if flags.contains(Flags::FIN) && segment.seq + segment.len() == entry.next_ack {
            // RFC 9293 section 3.10.7.4: our last acknowledgement was lost.
            entry.until = now + self.lifetime;
            self.unlink(place);
            self.link(place);
        }
        if asked { Verdict::Acknowledge } else { Verdict::Ignore }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.oldest.and_then(|place| self.entries.get(place)).map(|entry| entry.until)
    }

    /// Forgets one that has waited long enough; its ends.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Ends> {
        let over = self.poll_timeout().is_some_and(|until| until <= now);
        self.oldest.filter(|_| over).and_then(|place| self.remove(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    use netyard_wire::tcp::TcpOptions;
    use proptest::prelude::*;

    const LIFETIME: Duration = Duration::from_secs(60);

    fn ends(number: u32) -> Ends {
        let [a, b, c, d] = number.to_be_bytes();
        Ends::new(([10, 0, 0, 1], 80).into(), ([10, b, c, d], u16::from(a) + 1).into())
    }

    /// The last segment of the peers of these connections.
    fn fin() -> Segment<'static> {
        Segment {
            source_port: 1,
            destination_port: 80,
            seq: SeqNumber(0),
            ack: SeqNumber(1),
            flags: Flags::FIN | Flags::ACK,
            window: 0,
            urgent: 0,
            options: TcpOptions::default(),
            payload: &[],
        }
    }

    fn insert(table: &mut TimeWait, now: Instant, number: u32) -> (usize, Option<Ends>) {
        let timestamps = Timestamps::new(now, 0);
        table.insert(now, ends(number), (SeqNumber(1), SeqNumber(1), timestamps))
    }

    #[test]
    fn the_oldest_makes_room() {
        let now = Instant::now();
        let mut table = TimeWait::new(LIFETIME);
        let most = u32::try_from(MAX_ENTRIES).unwrap();
        assert!((0..most).all(|number| insert(&mut table, now, number).1.is_none()));
        assert_eq!(insert(&mut table, now, most).1, Some(ends(0)));
        assert_eq!(table.len(), MAX_ENTRIES);
    }

    proptest! {
        #[test]
        fn they_go_in_the_order_in_which_they_came(
            steps in proptest::collection::vec((0..4u8, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut now = Instant::now();
            let mut table = TimeWait::new(LIFETIME);
            let mut model: VecDeque<(Instant, usize, Ends)> = VecDeque::new();
            for (number, (step, which)) in (0..).zip(steps) {
                now += Duration::from_secs(7);
                while let Some(gone) = table.expire(now) {
                    let (until, _, ends) = model.pop_front().unwrap();
                    prop_assert!(until <= now);
                    prop_assert_eq!(gone, ends);
                }
                let chosen = (!model.is_empty()).then(|| which.index(model.len()));
                match (step, chosen) {
                    (2, Some(chosen)) => {
                        let (_, place, ends) = model.remove(chosen).unwrap();
                        prop_assert_eq!(table.remove(place), Some(ends));
                    }
                    (3, Some(chosen)) => {
                        // The peer's FIN once more.
                        let (_, place, ends) = model.remove(chosen).unwrap();
                        prop_assert_eq!(table.handle(now, place, &fin()), Verdict::Acknowledge);
                        model.push_back((now + LIFETIME, place, ends));
                    }
                    _ => {
                        let (place, _) = insert(&mut table, now, number);
                        model.push_back((now + LIFETIME, place, ends(number)));
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.poll_timeout(), model.front().map(|(until, ..)| *until));
            }
        }
    }
}
