//! Fragments that wait for the rest of their datagram (RFC 791 section 3.2, RFC 8200 section 4.5).
//!
//! Bounded in datagrams, fragments and bytes; when full, the oldest datagram makes room. Fragments
//! that overlap end the whole datagram (RFC 5722 section 4; done for IPv4, too: honest routers make
//! none).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::checksum;
use crate::ip::{self, Fragment, IpPacket};

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

/// Datagrams in the making: those of one host, or of one guest.
#[derive(Debug, Default)]
pub struct Reassembly {
    datagrams: HashMap<Key, Datagram>,
    /// When each is given up, oldest first; some are gone already.
    order: VecDeque<(Instant, Key)>,
    bytes: usize,
}

impl Reassembly {
    /// Takes a fragment. The payload of the datagram, if it is whole now.
    pub fn handle(
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
        while self.datagrams.len().saturating_add(more) > MAX_DATAGRAMS
            || self.bytes.saturating_add(packet.payload.len()) > MAX_BYTES
        {
            let (_, oldest) = self.order.pop_front()?;
            self.remove(&oldest);
        }
        if !self.datagrams.contains_key(&key) {
            self.order.push_back((now.checked_add(LIFETIME)?, key));
        }
        let datagram = self.datagrams.entry(key).or_default();
        let before = datagram.bytes;
        let whole = datagram.insert(fragment, packet.payload);
        self.bytes = self.bytes.saturating_add(datagram.bytes).saturating_sub(before);
        if !whole {
            return None;
        }
        let datagram = self.remove(&key)?;
        self.order.retain(|(_, other)| *other != key);
        Some(datagram.fragments.into_iter().flat_map(|(_, bytes)| bytes).collect())
    }

    /// When datagrams are given up next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.order.front().map(|(until, _)| *until)
    }

    /// Whether no datagram is in the making.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Gives up what has waited for too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((until, key)) = self.order.front().copied()
            && until <= now
        {
            self.order.pop_front();
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Datagram> {
        let datagram = self.datagrams.remove(key)?;
        self.bytes = self.bytes.saturating_sub(datagram.bytes);
        Some(datagram)
    }
}

impl Datagram {
    /// True if nothing is missing any more.
    fn insert(&mut self, fragment: Fragment, payload: &[u8]) -> bool {
        let start = usize::from(fragment.offset);
        let end = start.saturating_add(payload.len());
        let place = self.fragments.partition_point(|(offset, _)| *offset < fragment.offset);
        let before = place.checked_sub(1).and_then(|place| self.fragments.get(place));
        let behind = self.fragments.get(place);
        // The same fragment twice is no attack.
        if behind.is_some_and(|(offset, bytes)| *offset == fragment.offset && bytes == payload) {
            return false;
        }
        let overlaps = before.is_some_and(|(offset, bytes)| end_of(*offset, bytes) > start)
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
        self.bytes = self.bytes.saturating_add(payload.len());
        self.fragments.insert(place, (fragment.offset, payload.to_vec()));
        self.total == Some(self.bytes)
    }

    /// Where the last fragment that is here ends.
    fn end(&self) -> usize {
        self.fragments.last().map_or(0, |(offset, bytes)| end_of(*offset, bytes))
    }
}

fn end_of(offset: u16, bytes: &[u8]) -> usize {
    usize::from(offset).saturating_add(bytes.len())
}

/// A datagram that was put together, as its fragments would have been one packet: with the header of
/// `fragment`, one of them, without options. It is marked as one that routers may cut again: of IPv6 by a
/// fragment header that says that it is whole (RFC 6946). `None`: it is longer than a packet can be.
#[must_use]
pub fn join(fragment: &IpPacket<'_>, payload: &[u8]) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(payload.len().saturating_add(48));
    match *fragment.header.first_chunk::<20>()? {
        [first, tos, _, _, i0, i1, _, _, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3]
            if first >> 4 == 4 =>
        {
            let [l0, l1] = u16::try_from(payload.len().checked_add(20)?).ok()?.to_be_bytes();
            let with = |[c0, c1]: [u8; 2]| {
                [
                    0x45, tos, l0, l1, i0, i1, 0, 0, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1,
                    d2, d3,
                ]
            };
            let sum = checksum::finish(checksum::sum(&with([0, 0])));
            packet.extend_from_slice(&with(sum.to_be_bytes()));
        }
        _ => {
            let (&[v0, v1, v2, v3, _, _, _, hop_limit, ref addresses @ ..], _) =
                fragment.header.split_first_chunk::<40>()?;
            let [l0, l1] = u16::try_from(payload.len().checked_add(8)?).ok()?.to_be_bytes();
            packet.extend_from_slice(&[v0, v1, v2, v3, l0, l1, ip::FRAGMENT, hop_limit]);
            packet.extend_from_slice(addresses);
            packet.extend_from_slice(&[fragment.protocol, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
    packet.extend_from_slice(payload);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::udp::Datagram;
    use crate::{Checksum, Frame, ethernet, fragment};

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

    #[test]
    fn what_was_put_together_is_a_packet_that_may_be_cut_again() {
        let data = vec![7; 3000];
        for (from, to) in [("10.0.0.1:5", "10.0.0.2:6"), ("[fd00::1]:5", "[fd00::2]:6")] {
            let mac = crate::MacAddr([2; 6]);
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let mut frame = Vec::new();
            let offload = crate::build::udp_frame(&mut frame, mac, mac, from, to, 33, &data);
            let frame = Frame { bytes: &frame, offload };
            let (mut reassembly, mut whole) = (Reassembly::default(), None);
            fragment::complete_and_cut(frame, 1280, 9, &mut |bytes| {
                let packet = IpPacket::parse_bare(&bytes[ethernet::HEADER_LEN..]).unwrap();
                let payload = reassembly.handle(Instant::now(), &packet, packet.fragment.unwrap());
                whole = payload.and_then(|payload| join(&packet, &payload));
            })
            .unwrap();
            let whole = whole.unwrap();
            let packet = IpPacket::parse_bare(&whole).unwrap();
            assert_eq!((packet.source, packet.destination), (from.ip(), to.ip()));
            assert_eq!((packet.hop_limit, packet.fragment), (33, None));
            assert!(!packet.stays_whole());
            let datagram = Datagram::parse(&packet, Checksum::Present).unwrap();
            assert_eq!((datagram.source_port, datagram.payload), (5, &data[..]));
            assert!(reassembly.is_empty());
            assert_eq!(join(&packet, &[0; 65_530]), None);
        }
    }
}
