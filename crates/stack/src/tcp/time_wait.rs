//! Connections that are over, for as long as late segments of them may come (RFC 9293 section 3.4.2).
//!
//! An entry is small and holds no buffers. There is a bounded number of them; the oldest makes room.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;
use netyard_wire::tcp::{Flags, Segment};
use slab::Slab;

use super::connection::Ends;
use super::timestamps::Timestamps;
use crate::ip::NicIndex;

/// Most entries (Linux's `tcp_max_tw_buckets` on a small machine).
const MAX_ENTRIES: usize = 16_384;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) ends: Ends,
    pub(super) nic: Option<NicIndex>,
    pub(super) next_seq: SeqNumber,
    pub(super) next_ack: SeqNumber,
    pub(super) timestamps: Timestamps,
    until: Instant,
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
    /// When to look at an entry again, oldest first.
    order: VecDeque<(Instant, usize)>,
    lifetime: Duration,
}

impl TimeWait {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { entries: Slab::new(), order: VecDeque::new(), lifetime }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Remembers a connection; with it the ends of another one that had to go for it.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        ends: Ends,
        nic: Option<NicIndex>,
        (next_seq, next_ack, timestamps): (SeqNumber, SeqNumber, Timestamps),
    ) -> (usize, Option<Ends>) {
        let mut gone = None;
        while self.entries.len() >= MAX_ENTRIES {
            let Some((_, place)) = self.order.pop_front() else { break };
            gone = self.entries.try_remove(place).map(|entry| entry.ends);
        }
        let until = now + self.lifetime;
        let entry = Entry { ends, nic, next_seq, next_ack, timestamps, until };
        let place = self.entries.insert(entry);
        self.order.push_back((until, place));
        (place, gone)
    }

    pub(super) fn get(&self, place: usize) -> Option<&Entry> {
        self.entries.get(place)
    }

    /// Forgets an entry whose ends are used again.
    pub(super) fn remove(&mut self, place: usize) {
        if self.entries.try_remove(place).is_some() {
            self.order.retain(|(_, other)| *other != place);
        }
    }

    pub(super) fn handle(&mut self, now: Instant, place: usize, segment: &Segment<'_>) -> Verdict {
        let Some(entry) = self.entries.get_mut(place) else { return Verdict::Ignore };
        let flags = segment.flags;
        if flags.contains(Flags::RST) {
            // RFC 1337: a reset must not shorten the wait.
            return Verdict::Ignore;
        }
        if flags.contains(Flags::SYN) && !flags.contains(Flags::ACK) {
            // RFC 6191: new for sure.
            let later = segment.seq.gt(entry.next_ack);
            let newer = match segment.options.timestamps {
                Some((value, _)) if entry.timestamps.len() > 0 => entry.timestamps.is_newer(value),
                _ => later,
            };
            if newer || later {
                return Verdict::Reuse(entry.next_seq);
            }
        }
        if flags.contains(Flags::FIN) && segment.seq + segment.len() == entry.next_ack {
            // RFC 9293 section 3.10.7.4: our last acknowledgement was lost.
            entry.until = now + self.lifetime;
        }
        if segment.is_empty() && segment.seq == entry.next_ack {
            return Verdict::Ignore;
        }
        Verdict::Acknowledge
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.order.front().map(|(until, _)| *until)
    }

    /// Forgets what has waited long enough; the ends of it.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Ends> {
        while let Some((_, place)) = self.order.front().copied().filter(|(until, _)| *until <= now)
        {
            self.order.pop_front();
            let Some(entry) = self.entries.get(place) else { continue };
            if entry.until <= now {
                return self.entries.try_remove(place).map(|entry| entry.ends);
            }
            self.order.push_back((entry.until, place));
        }
        None
    }
}
