//! What waits for a peer: a queue for each of its flows, and a rule for what is dropped.
//!
//! # Theory of operation
//!
//! This is FQ-CoDel (RFC 8290). A packet's flow, a keyed hash of its addresses, protocol and ports, picks
//! one of [`FLOWS`] queues. Queues take turns, 8 KiB each; one that was empty takes its first
//! turn before the others, so that what is sparse (a ping, a key press, an acknowledgement) does not wait
//! behind a download. In each queue CoDel (RFC 8289) watches how long packets have waited: when none was
//! fast for an interval, the one at the head is marked with "congestion experienced" if its ends
//! understand that (RFC 3168), and dropped else, and again, at a growing rate, until the queue is short.
//!
//! The memory of all queues is bounded, counted as the room of the buffers that packets are in; beyond the
//! bound the longest queue loses at its head. A super-packet is one packet: a mark on it is a mark on each
//! of its segments.
//!
//! Time is an argument. Nothing here knows where packets come from or go to.

use std::collections::VecDeque;
use std::hash::Hasher as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netyard_wire::VNET_HEADER_LEN;
use netyard_wire::ip::{self, IpPacket};
use siphasher::sip::SipHasher13;

/// How many queues there are.
pub const FLOWS: usize = 64;
/// What a queue may send in a turn, bytes. Packets are up to 64 KiB, which takes eight turns.
const QUANTUM: i64 = 8 * 1024;
/// Where a packet comes to so many bytes, it waits for longer than a copy of it takes.
const BACKLOG: usize = 128 * 1024;
/// Memory for what waits for one peer, bytes, where nothing else is said.
pub(crate) const LIMIT: usize = 1024 * 1024;
/// How long a packet may wait, if it is not for a moment only (RFC 8289 section 4.4), where nothing else is said.
pub(crate) const TARGET: Duration = Duration::from_millis(5);
/// For how long it may be longer (section 4.3): the round trip of most paths, or the target, if that is more.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// Explicit congestion notification, the low two bits of the traffic class (RFC 3168 section 5).
const ECN_MASK: u8 = 3;
const CONGESTED: u8 = 3;

/// Why packets were lost here, and how many; and how many were marked instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Losses {
    /// There was no room.
    pub queue_full: u64,
    /// They had waited for too long.
    pub codel: u64,
    /// Marked, and not lost.
    pub marked: u64,
}

/// A packet with its virtio-net header before it, and since when it waits.
#[derive(Debug)]
struct Waiting {
    packet: Vec<u8>,
    since: Instant,
}

/// CoDel's state (RFC 8289 section 5.3).
#[derive(Debug, Default)]
struct Codel {
    first_above: Option<Instant>,
    drop_next: Option<Instant>,
    count: u32,
    last_count: u32,
    dropping: bool,
}

/// What CoDel holds packets against.
#[derive(Debug)]
struct Limits {
    target: Duration,
    interval: Duration,
    /// The largest packet there was, bytes.
    largest: usize,
}

/// Which list of turns a queue is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Listed {
    #[default]
    Not,
    New,
    Old,
}

#[derive(Debug, Default)]
struct Flow {
    waiting: VecDeque<Waiting>,
    /// The room of what waits, and what it is.
    bytes: usize,
    len: usize,
    deficit: i64,
    listed: Listed,
    codel: Codel,
}

/// The queues of one peer.
#[derive(Debug)]
pub struct Queue {
    key: u128,
    limit: usize,
    /// How long a packet may wait, if it is not for a moment only.
    target: Duration,
    flows: Vec<Flow>,
    new: VecDeque<usize>,
    old: VecDeque<usize>,
    bytes: usize,
    largest: usize,
    losses: Losses,
    /// Buffers of packets that were dropped, to be used again.
    dropped: Vec<Vec<u8>>,
}

impl Queue {
    /// Empty queues for buffers of at most `limit` bytes; `key` is of the hash, and must not be guessed.
    #[must_use]
    pub fn new(limit: usize, key: u128) -> Self {
        Self {
            key,
            limit,
            target: TARGET,
            flows: Vec::new(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            bytes: 0,
            largest: 0,
            losses: Losses::default(),
            dropped: Vec::new(),
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The room of what waits, bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// From now on packets may wait for so long, if it is not for a moment only, in buffers of at most `limit`
    /// bytes. What is there already stays.
    pub fn set_bounds(&mut self, target: Duration, limit: usize) {
        self.target = target;
        self.limit = limit.max(self.bytes);
    }

    /// What was lost so far.
    #[must_use]
    pub const fn losses(&self) -> Losses {
        self.losses
    }

    /// A buffer of a packet that was dropped, until there is none.
    pub fn reclaim(&mut self) -> Option<Vec<u8>> {
        self.dropped.pop()
    }

    /// Appends a packet, given with its virtio-net header before it; `parsed` is the packet.
    pub fn push(&mut self, now: Instant, packet: Vec<u8>, parsed: &FlowKey) {
        if self.flows.is_empty() {
            self.flows.resize_with(FLOWS, Flow::default);
        }
        let number = parsed.hash(self.key);
        let packet = self.fitted(packet);
        let Some(flow) = self.flows.get_mut(number) else { return };
        let room = room(&packet);
        self.bytes = self.bytes.saturating_add(room);
        self.largest = self.largest.max(packet.len());
        flow.bytes = flow.bytes.saturating_add(room);
        flow.len = flow.len.saturating_add(packet.len());
        flow.waiting.push_back(Waiting { packet, since: now });
        if flow.listed == Listed::Not {
            flow.listed = Listed::New;
            flow.deficit = QUANTUM;
            self.new.push_back(number);
        }
        while self.bytes > self.limit {
            let Some(longest) = self.flows.iter_mut().max_by_key(|flow| flow.bytes) else { break };
            let Some(lost) = longest.take(&mut self.bytes) else { break };
            self.losses.queue_full += 1;
            self.dropped.push(lost.packet);
        }
    }

    /// A packet in a buffer of its size, if it will wait and its own one is mostly empty: a small packet is
    /// read into room for a super-packet, and a queue of those would be full with a few of them.
    fn fitted(&mut self, packet: Vec<u8>) -> Vec<u8> {
        if self.bytes < BACKLOG || packet.len() > packet.capacity() / 2 {
            return packet;
        }
        let fitted = packet.as_slice().to_vec();
        self.dropped.push(packet);
        fitted
    }

    /// Takes the next packet, with its virtio-net header before it.
    pub fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        loop {
            let from_new = !self.new.is_empty();
            let turns = if from_new { &mut self.new } else { &mut self.old };
            let number = *turns.front()?;
            let flow = self.flows.get_mut(number)?;
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM;
                flow.listed = Listed::Old;
                turns.pop_front();
                self.old.push_back(number);
                continue;
            }
            let limits = Limits {
                target: self.target,
                interval: INTERVAL.max(self.target),
                largest: self.largest,
            };
            let taken =
                flow.pop(now, &limits, &mut self.bytes, &mut self.losses, &mut self.dropped);
            match taken {
                Some(packet) => {
                    flow.deficit -= i64::try_from(packet.len()).unwrap_or(i64::MAX);
                    return Some(packet);
                }
                // RFC 8290 section 4.2: a new queue that is empty waits for its turn among the old ones
                // once, so that it is not new again at once.
                None => {
                    turns.pop_front();
                    if from_new && !self.old.is_empty() {
                        flow.listed = Listed::Old;
                        self.old.push_back(number);
                    } else {
                        flow.listed = Listed::Not;
                    }
                }
            }
        }
    }

    /// Gives back the room of queues, if nothing waits: what they knew of their flows is not known any more.
    pub fn rest(&mut self) {
        if self.is_empty() {
            (self.flows, self.new, self.old) = Default::default();
        }
    }

    /// Drops everything that has waited since before `then`.
    pub fn expire(&mut self, then: Instant) {
        for flow in &mut self.flows {
            while flow.waiting.front().is_some_and(|head| head.since < then) {
                let Some(lost) = flow.take(&mut self.bytes) else { break };
                self.losses.codel += 1;
                self.dropped.push(lost.packet);
            }
        }
    }
}

impl Flow {
    /// Takes the head.
    fn take(&mut self, all: &mut usize) -> Option<Waiting> {
        let head = self.waiting.pop_front()?;
        let room = room(&head.packet);
        self.bytes = self.bytes.saturating_sub(room);
        self.len = self.len.saturating_sub(head.packet.len());
        *all = all.saturating_sub(room);
        Some(head)
    }

    /// Takes the head, and says whether it has waited for too long, for too long (`dodequeue` of RFC 8289
    /// section 5.5). With no more left than the `largest` packet is nothing is too long.
    fn judge(&mut self, now: Instant, limits: &Limits, all: &mut usize) -> (Option<Waiting>, bool) {
        let Some(head) = self.take(all) else {
            self.codel.first_above = None;
            return (None, false);
        };
        let waited = now.saturating_duration_since(head.since);
        if waited < limits.target || self.len <= limits.largest {
            self.codel.first_above = None;
            return (Some(head), false);
        }
        match self.codel.first_above {
            None => {
                self.codel.first_above = Some(now + limits.interval);
                (Some(head), false)
            }
            Some(above) => (Some(head), now >= above),
        }
    }

    /// `dequeue` of RFC 8289 section 5.6.
    fn pop(
        &mut self,
        now: Instant,
        limits: &Limits,
        all: &mut usize,
        losses: &mut Losses,
        dropped: &mut Vec<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        let (mut head, mut late) = self.judge(now, limits, all);
        if self.codel.dropping {
            if !late {
                self.codel.dropping = false;
            }
            while self.codel.dropping && self.codel.drop_next.is_some_and(|next| now >= next) {
                let Some(mut lost) = head else { break };
                self.codel.count = self.codel.count.saturating_add(1);
                let next = self.codel.drop_next.unwrap_or(now);
                self.codel.drop_next = Some(control_law(next, limits.interval, self.codel.count));
                if mark(&mut lost.packet) {
                    losses.marked += 1;
                    return Some(lost.packet);
                }
                losses.codel += 1;
                dropped.push(lost.packet);
                (head, late) = self.judge(now, limits, all);
                if !late {
                    self.codel.dropping = false;
                }
            }
        } else if late && let Some(mut lost) = head.take() {
            let marked = mark(&mut lost.packet);
            match marked {
                true => {
                    losses.marked += 1;
                    head = Some(lost);
                }
                false => {
                    losses.codel += 1;
                    dropped.push(lost.packet);
                    (head, _) = self.judge(now, limits, all);
                }
            }
            self.codel.dropping = true;
            // Where it was before, if that is not long ago.
            let recent = self.codel.drop_next.is_some_and(|next| now < next + limits.interval * 16);
            let delta = self.codel.count.saturating_sub(self.codel.last_count);
            self.codel.count = if recent && delta > 1 { delta } else { 1 };
            self.codel.last_count = self.codel.count;
            self.codel.drop_next = Some(control_law(now, limits.interval, self.codel.count));
        }
        head.map(|head| head.packet)
    }
}

/// What a packet that waits occupies, bytes.
fn room(packet: &Vec<u8>) -> usize {
    packet.capacity() + size_of::<Waiting>()
}

/// The time of the next drop (RFC 8289 section 3.3).
fn control_law(then: Instant, interval: Duration, count: u32) -> Instant {
    then + interval.div_f64(f64::from(count.max(1)).sqrt())
}

/// Marks a packet, given with its virtio-net header before it; false: its ends do not understand that.
fn mark(packet: &mut [u8]) -> bool {
    let Some(bytes) = packet.get_mut(VNET_HEADER_LEN..) else { return false };
    match bytes {
        [first, class, _, _, _, _, _, _, _, _, high, low, ..] if *first >> 4 == 4 => {
            if *class & ECN_MASK == 0 {
                return false;
            }
            // RFC 1624 equation 3, for the word of version, header length and class.
            let before = u16::from_be_bytes([*first, *class]);
            *class |= CONGESTED;
            let after = u16::from_be_bytes([*first, *class]);
            let sum = !u16::from_be_bytes([*high, *low]);
            let sum = u32::from(sum) + u32::from(!before) + u32::from(after);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            // Two folds leave sixteen bits.
            [*high, *low] = (!(sum as u16)).to_be_bytes();
            true
        }
        // The class is the low half of the first byte and the high half of the second.
        [first, second, ..] if *first >> 4 == 6 => {
            if (*second >> 4) & ECN_MASK == 0 {
                return false;
            }
            *second |= CONGESTED << 4;
            true
        }
        _ => false,
    }
}

/// What tells a packet's flow from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKey {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: [u8; 4],
}

impl FlowKey {
    /// Of a packet. Fragments have no ports, and are one flow for each pair of addresses.
    #[must_use]
    pub fn of(packet: &IpPacket<'_>) -> Self {
        let has_ports = packet.fragment.is_none() && matches!(packet.protocol, ip::TCP | ip::UDP);
        let ports = packet.payload.first_chunk().filter(|_| has_ports).copied();
        Self {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            ports: ports.unwrap_or_default(),
        }
    }

    /// The number of its queue.
    fn hash(&self, key: u128) -> usize {
        let mut hasher = SipHasher13::new_with_key(&key.to_ne_bytes());
        for address in [self.source, self.destination] {
            match address {
                IpAddr::V4(address) => hasher.write(&address.octets()),
                IpAddr::V6(address) => hasher.write(&address.octets()),
            }
        }
        hasher.write_u8(self.protocol);
        hasher.write(&self.ports);
        (hasher.finish() % FLOWS as u64) as usize
    }
}

#[cfg(test)]
mod tests;
