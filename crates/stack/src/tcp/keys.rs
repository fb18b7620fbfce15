//! Secrets of a stack: what others must not be able to guess (RFC 6528, RFC 4987).

use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;
use rand::RngExt as _;
use rand::rngs::StdRng;
use siphasher::sip::SipHasher13;

use super::ends::Ends;
use super::peer::Peer;

/// How long a cookie can be used: one to two of these.
const COOKIE_PERIOD: Duration = Duration::from_secs(64);
/// The largest segments that a cookie can tell of, without options (as Linux's `msstab`, with that of
/// IPv6 over Ethernet and of jumbo frames).
const COOKIE_MSS: [u16; 8] = [64, 536, 1220, 1300, 1440, 1460, 4312, 8960];
/// No window scaling, in the four bits for it.
const NOT_SCALED: u8 = 15;
/// Bits of a timestamp that carry what a cookie has no room for.
const OPTION_BITS: u32 = 5;

/// The keyed hash of the table of connections: nobody can make all of theirs fall into one place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keyed(u64, u64);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

#[derive(Debug)]
pub(super) struct Keys {
    epoch: Instant,
    numbers: Keyed,
    clocks: Keyed,
    cookies: Keyed,
}

impl Keys {
    pub(super) fn new(now: Instant, rng: &mut StdRng) -> Self {
        let mut keyed = || Keyed(rng.random(), rng.random());
        Self { epoch: now, numbers: keyed(), clocks: keyed(), cookies: keyed() }
    }

    pub(super) fn table(rng: &mut StdRng) -> Keyed {
        Keyed(rng.random(), rng.random())
    }

    /// The epoch of all clocks.
    pub(super) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// The initial sequence number of a connection: a clock of 4 µs, moved by a secret for each pair of
    /// ends (RFC 6528 section 3).
    pub(super) fn isn(&self, now: Instant, ends: &Ends) -> SeqNumber {
        let ticks = now.saturating_duration_since(self.epoch).as_micros() / 4;
        let [.., a, b, c, d] = ticks.to_be_bytes();
        SeqNumber(u32::from_be_bytes([a, b, c, d])) + low(self.numbers.hash_one(ends))
    }

    /// Where the clock of a connection's timestamps begins.
    pub(super) fn clock_offset(&self, ends: &Ends) -> u32 {
        low(self.clocks.hash_one(ends))
    }

    /// The sequence number of an answer to a SYN that is not remembered: it is the memory.
    pub(super) fn cookie(&self, now: Instant, ends: &Ends, peer: &Peer) -> SeqNumber {
        let index = COOKIE_MSS.iter().rposition(|mss| *mss <= peer.mss).unwrap_or(0);
        self.cookie_of(self.period(now), ends, peer.seq, index)
    }

    /// A cookie: 24 bits of hash, 5 of time, 3 that say which MSS.
    fn cookie_of(&self, period: u64, ends: &Ends, seq: SeqNumber, index: usize) -> SeqNumber {
        let hash = self.cookies.hash_one((ends, seq, period, index));
        let index = u32::try_from(index).unwrap_or(0);
        SeqNumber(low(hash) << 8 | low(period & 0x1f) << 3 | index)
    }

    /// The largest segment of a peer that acknowledges a cookie of ours; `seq`: its initial sequence
    /// number. `None`: it is none, or too old.
    pub(super) fn check_cookie(
        &self,
        now: Instant,
        ends: &Ends,
        seq: SeqNumber,
        cookie: SeqNumber,
    ) -> Option<u16> {
        let index = usize::try_from(cookie.0 & 7).unwrap_or(0);
        let current = self.period(now);
        let fits = |period| self.cookie_of(period, ends, seq, index) == cookie;
        let known = fits(current) || current.checked_sub(1).is_some_and(fits);
        COOKIE_MSS.get(index).copied().filter(|_| known)
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_secs() / COOKIE_PERIOD.as_secs()
    }
}

/// A clock value with the peer's options in its low bits, not later than `clock`.
pub(super) fn clock_with_options(clock: u32, peer: &Peer) -> u32 {
    let scale = if peer.scaled { peer.scale.min(14) } else { NOT_SCALED };
    let bits = u32::from(scale) << 1 | u32::from(peer.sack);
    let marked = clock >> OPTION_BITS << OPTION_BITS | bits;
    if marked > clock { marked.wrapping_sub(1 << OPTION_BITS) } else { marked }
}

/// The options in the echo of such a value: window shift and SACK.
pub(super) fn options_of_clock(echo: u32) -> (Option<u8>, bool) {
    let scale = u8::try_from(echo >> 1 & 0xf).unwrap_or(NOT_SCALED);
    (Some(scale).filter(|scale| *scale != NOT_SCALED), echo & 1 != 0)
}

fn low(number: u64) -> u32 {
    let [.., a, b, c, d] = number.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    fn keys(now: Instant) -> Keys {
        Keys::new(now, &mut StdRng::from_seed([7; 32]))
    }

    fn ends(port: u16) -> Ends {
        Ends::new(([10, 0, 0, 1], 80).into(), ([10, 0, 0, 2], port).into())
    }

    fn peer(mss: u16) -> Peer {
        Peer {
            seq: SeqNumber(77),
            window: 1000,
            mss,
            scale: 7,
            scaled: true,
            sack: true,
            timestamp: None,
        }
    }

    #[test]
    fn cookies_hold_for_a_while_and_for_their_connection() {
        let now = Instant::now();
        let keys = keys(now);
        for (told, kept) in [(1460, 1460), (1450, 1440), (65_495, 8960), (100, 64)] {
            let cookie = keys.cookie(now, &ends(1), &peer(told));
            let check = |after: u64, ends: &Ends, seq: u32, cookie| {
                keys.check_cookie(now + Duration::from_secs(after), ends, SeqNumber(seq), cookie)
            };
            assert_eq!(check(0, &ends(1), 77, cookie), Some(kept));
            assert_eq!(check(100, &ends(1), 77, cookie), Some(kept));
            assert_eq!(check(200, &ends(1), 77, cookie), None, "too old");
            assert_eq!(check(0, &ends(2), 77, cookie), None, "another's");
            assert_eq!(check(0, &ends(1), 78, cookie), None, "of another SYN");
            assert_eq!(check(0, &ends(1), 77, cookie + 1u32), None, "forged");
        }
    }

    #[test]
    fn options_travel_in_the_clock() {
        for clock in [5, 31, 32, 1000, u32::MAX] {
            for peer in [peer(1), Peer { scaled: false, sack: false, ..peer(1) }] {
                let marked = clock_with_options(clock, &peer);
                assert!(clock.wrapping_sub(marked) < 64, "{clock} became {marked}");
                let scale = peer.scaled.then_some(peer.scale);
                assert_eq!(options_of_clock(marked), (scale, peer.sack));
            }
        }
    }

    #[test]
    fn sequence_numbers_grow_for_one_pair_of_ends_and_differ_between_pairs() {
        let now = Instant::now();
        let keys = keys(now);
        let first = keys.isn(now, &ends(1));
        let second = keys.isn(now + Duration::from_secs(1), &ends(1));
        assert_eq!(second - first, 250_000);
        assert_ne!(keys.isn(now, &ends(2)), first);
    }
}
