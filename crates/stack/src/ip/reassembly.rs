//! Fragments that wait for the rest of their datagram (RFC 791 section 3.2, RFC 8200 section 4.5).
//!
//! Bounded in datagrams, fragments and bytes; when full, the oldest datagram makes room. Fragments
//! that overlap end the whole datagram (RFC 5722 section 4; done for IPv4, too: honest routers make
//! none).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netyard_wire::ip::{Fragment, IpPacket};

/// Datagrams in the making.
const MAX_DATAGRAMS: usize = 64;
/// Bytes of all of them.
const MAX_BYTES: usize = 1 << 20;
/// Fragments of one datagram: one of 64 KiB in pieces of 512 bytes.
const MAX_FRAGMENTS: usize = 128;
/// RFC 8200 section 4.5 says 60 s, RFC 1122 section 3.3.2 60 to 120 s; what has not come after half
/// a minute (Linux) does not.
const LIFETIME: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

#[derive(Debug, Default)]
struct Datagram {
    /// By offset, not overlapping.
    fragments: Vec<(u16, Vec<u8>)>,
    bytes: usize,
    /// Length of the whole, once the last fragment is here.
    total: Option<usize>,
    /// An overlap has shown that somebody lies: everything that follows is dropped.
    broken: bool,
}

/// Datagrams in the making.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    datagrams: HashMap<Key, Datagram>,
    /// When each is given up, oldest first; some are gone already.
    order: VecDeque<(Instant, Key)>,
    bytes: usize,
}

impl Reassembly {
    /// Takes a fragment. The payload of the datagram, if it is whole now.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        packet: &IpPacket<'_>,
        fragment: Fragment,
    ) -> Option<Vec<u8>> {
        self.handle_timeout(now);
        let key = Key {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            id: fragment.id,
        };
        let more = usize::from(!self.datagrams.contains_key(&key));
        while self.datagrams.len() + more > MAX_DATAGRAMS
            || self.bytes + packet.payload.len() > MAX_BYTES
        {
            let (_, oldest) = self.order.pop_front()?;
            self.remove(&oldest);
        }
        if !self.datagrams.contains_key(&key) {
            self.order.push_back((now + LIFETIME, key));
        }
        let datagram = self.datagrams.entry(key).or_default();
        let before = datagram.bytes;
        let whole = datagram.insert(fragment, packet.payload);
        self.bytes = self.bytes + datagram.bytes - before;
        if !whole {
            return None;
        }
        let datagram = self.remove(&key)?;
        self.order.retain(|(_, other)| *other != key);
        Some(datagram.fragments.into_iter().flat_map(|(_, bytes)| bytes).collect())
    }

    /// When datagrams are given up next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.order.front().map(|(until, _)| *until)
    }

    /// Gives up what has waited for too long.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((until, key)) = self.order.front().copied()
            && until <= now
        {
            self.order.pop_front();
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Datagram> {
        let datagram = self.datagrams.remove(key)?;
        self.bytes -= datagram.bytes;
        Some(datagram)
    }
}

impl Datagram {
    /// True if nothing is missing any more.
    fn insert(&mut self, fragment: Fragment, payload: &[u8]) -> bool {
        let start = usize::from(fragment.offset);
        let end = start + payload.len();
        let place = self.fragments.partition_point(|(offset, _)| *offset < fragment.offset);
        let before = place.checked_sub(1).and_then(|place| self.fragments.get(place));
        let behind = self.fragments.get(place);
        // The same fragment twice is no attack.
        if behind.is_some_and(|(offset, bytes)| *offset == fragment.offset && bytes == payload) {
            return false;
        }
        let overlaps = before
            .is_some_and(|(offset, bytes)| usize::from(*offset) + bytes.len() > start)
            || behind.is_some_and(|(offset, _)| usize::from(*offset) < end)
            || self.total.is_some_and(|total| end > total || (!fragment.more && end != total))
            || (!fragment.more && self.end() > end);
        if overlaps || payload.is_empty() || self.fragments.len() >= MAX_FRAGMENTS {
            self.broken = true;
            self.fragments = Vec::new();
            self.bytes = 0;
        }
        if self.broken {
            return false;
        }
        if !fragment.more {
            self.total = Some(end);
        }
        self.bytes += payload.len();
        self.fragments.insert(place, (fragment.offset, payload.to_vec()));
        self.total == Some(self.bytes)
    }

    /// Where the last fragment that is here ends.
    fn end(&self) -> usize {
        self.fragments.last().map_or(0, |(offset, bytes)| usize::from(*offset) + bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: &[u8]) -> IpPacket<'_> {
        IpPacket {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            hop_limit: 64,
            traffic_class: 0,
            protocol: 17,
            fragment: None,
            header: &[],
            payload,
        }
    }

    fn fragment(offset: u16, more: bool, id: u32) -> Fragment {
        Fragment { offset, more, id }
    }

    #[test]
    fn datagrams_are_put_together_in_any_order() {
        let now = Instant::now();
        let whole: Vec<u8> = (0..=255).cycle().take(40).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            let mut reassembly = Reassembly::default();
            let mut result = None;
            for part in order {
                let start = part * 16;
                let bytes = &whole[start..(start + 16).min(40)];
                let fragment = fragment(u16::try_from(start).unwrap(), part != 2, 7);
                assert_eq!(result, None);
                result = reassembly.handle(now, &packet(bytes), fragment);
                if result.is_none() {
                    // Duplicates change nothing.
                    assert_eq!(reassembly.handle(now, &packet(bytes), fragment), None);
                }
            }
            assert_eq!(result.as_deref(), Some(&whole[..]), "{order:?}");
            assert_eq!((reassembly.bytes, reassembly.poll_timeout()), (0, None));
        }
    }

    #[test]
    fn overlaps_end_the_datagram() {
        let now = Instant::now();
        for second in [fragment(8, false, 1), fragment(0, false, 1), fragment(8, true, 1)] {
            let mut reassembly = Reassembly::default();
            assert_eq!(reassembly.handle(now, &packet(&[1; 16]), fragment(0, true, 1)), None);
            assert_eq!(reassembly.handle(now, &packet(&[2; 16]), second), None);
            let rest = fragment(16, false, 1);
            assert_eq!(reassembly.handle(now, &packet(&[3; 8]), rest), None);
            assert_eq!(reassembly.bytes, 0);
        }
    }

    #[test]
    fn it_is_bounded_and_forgets() {
        let now = Instant::now();
        let mut reassembly = Reassembly::default();
        for id in 0..10_000 {
            let offset = u16::try_from(id % 500).unwrap() * 8;
            reassembly.handle(now, &packet(&[0; 1400]), fragment(offset, true, id));
            reassembly.handle(now, &packet(&[0; 800]), fragment(30_000, true, id / 100));
            assert!(reassembly.bytes <= MAX_BYTES && reassembly.datagrams.len() <= MAX_DATAGRAMS);
        }
        reassembly.handle_timeout(now + LIFETIME);
        assert_eq!((reassembly.bytes, reassembly.datagrams.len()), (0, 0));
        for n in 0..500u16 {
            reassembly.handle(now, &packet(&[0; 8]), fragment(n * 16, true, 1));
        }
        assert_eq!(reassembly.bytes, 0, "too many fragments");
    }
}
