//! What routers have said about the MTU of paths (RFC 1191, RFC 8201).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{NicIndex, has_zone};

/// Most destinations remembered. When full, an entry that is over makes room, or the new one is not
/// remembered: the router will say it again.
const MAX_ENTRIES: usize = 4096;

/// After this time a larger MTU is tried again (RFC 1191 section 6.3).
const LIFETIME: Duration = Duration::from_secs(600);

/// RFC 791: every host takes this, bytes. Less is not believed; Linux has `min_pmtu` 552 to keep
/// others from making every packet tiny.
const MIN4: u32 = 552;
/// RFC 8201 section 4: no IPv6 link has less, bytes.
const MIN6: u32 = 1280;

/// RFC 1191 section 7: what links usually take, bytes, for routers that do not tell.
const PLATEAUS: [u32; 10] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_280, 1_006, 576, MIN4];

/// MTUs of paths that take less than their first link.
#[derive(Debug, Default)]
pub(crate) struct PathMtu {
    by_destination: HashMap<Key, (u32, Instant)>,
}

/// A destination, and its link if it means nothing without.
type Key = (IpAddr, Option<NicIndex>);

fn key(destination: IpAddr, nic: Option<NicIndex>) -> Key {
    (destination, nic.filter(|_| has_zone(destination)))
}

impl PathMtu {
    /// A router said on a link that packets to `destination` may be `told` bytes long (0: it did not say),
    /// about one of `len` bytes. True if that is news.
    pub(crate) fn learn(
        &mut self,
        now: Instant,
        destination: IpAddr,
        nic: Option<NicIndex>,
        told: u32,
        len: u32,
    ) -> bool {
        let mtu = match destination {
            IpAddr::V4(_) if told == 0 => {
                PLATEAUS.into_iter().find(|plateau| *plateau < len).unwrap_or(MIN4)
            }
            IpAddr::V4(_) => told.max(MIN4),
            IpAddr::V6(_) => told.max(MIN6),
        };
        let known = self.get(now, destination, nic);
        if known.is_some_and(|known| known <= mtu) || mtu >= len.max(MIN4) {
            // It never grows by being told (RFC 8201 section 4), and the packet was not too big.
            return false;
        }
        if self.by_destination.len() >= MAX_ENTRIES
            && !self.by_destination.contains_key(&key(destination, nic))
        {
            self.by_destination.retain(|_, (_, until)| *until > now);
            if self.by_destination.len() >= MAX_ENTRIES {
                return false;
            }
        }
        self.by_destination.insert(key(destination, nic), (mtu, now + LIFETIME));
        true
    }

    /// What the path by a link to `destination` is known to take, bytes, if it is less than the link does.
    pub(crate) fn get(
        &self,
        now: Instant,
        destination: IpAddr,
        nic: Option<NicIndex>,
    ) -> Option<u32> {
        let (mtu, until) = self.by_destination.get(&key(destination, nic))?;
        (*until > now).then_some(*mtu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_shrinks_and_is_forgotten() {
        let now = Instant::now();
        let mut mtus = PathMtu::default();
        let (four, six) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        assert!(mtus.learn(now, four, None, 1400, 1500));
        assert!(!mtus.learn(now, four, None, 1450, 1500), "larger than known");
        assert!(!mtus.learn(now, six, None, 1500, 1500), "the packet was not larger");
        assert!(mtus.learn(now, six, None, 100, 1500));
        assert_eq!(mtus.get(now, four, None), Some(1400));
        assert_eq!(mtus.get(now, six, None), Some(MIN6));
        assert!(mtus.learn(now, four, None, 10, 1400));
        assert_eq!(mtus.get(now, four, None), Some(MIN4));
        assert_eq!(mtus.get(now + LIFETIME, four, None), None);
    }

    #[test]
    fn neighbours_of_one_address_on_two_links_are_two() {
        let now = Instant::now();
        let mut mtus = PathMtu::default();
        let (near, far) = ("fe80::2".parse().unwrap(), "fd00::2".parse().unwrap());
        let links = [0, 1].map(|nic| Some(NicIndex(nic)));
        for (destination, other) in [(near, None), (far, Some(1300))] {
            assert!(mtus.learn(now, destination, links[0], 1300, 1500));
            assert_eq!(mtus.get(now, destination, links[0]), Some(1300));
            assert_eq!(mtus.get(now, destination, links[1]), other);
        }
    }

    #[test]
    fn routers_that_do_not_tell_are_guessed() {
        let now = Instant::now();
        let mut mtus = PathMtu::default();
        let to = "10.0.0.1".parse().unwrap();
        for (len, mtu) in [(1500, 1492), (1492, 1280), (1280, 1006), (1006, 576)] {
            assert!(mtus.learn(now, to, None, 0, len));
            assert_eq!(mtus.get(now, to, None), Some(mtu));
        }
    }

    #[test]
    fn it_is_bounded() {
        let now = Instant::now();
        let mut mtus = PathMtu::default();
        let learnt = (0..10_000u32)
            .filter(|n| mtus.learn(now, IpAddr::from(n.to_be_bytes()), None, 600, 1500))
            .count();
        assert_eq!(learnt, MAX_ENTRIES);
        assert!(mtus.learn(now + LIFETIME, "1.2.3.4".parse().unwrap(), None, 600, 1500));
        assert_eq!(mtus.by_destination.len(), 1);
    }
}
