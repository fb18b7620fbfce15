//! A token bucket: at most so many events each second, and so many at once.

use std::time::{Duration, Instant};

/// Lets `PER_SECOND` events happen each second, and `AT_ONCE` together.
#[derive(Debug)]
pub(crate) struct Bucket<const PER_SECOND: u32, const AT_ONCE: u32> {
    /// When everything that was taken will have been given back.
    full_at: Instant,
}

impl<const PER_SECOND: u32, const AT_ONCE: u32> Bucket<PER_SECOND, AT_ONCE> {
    /// Time that one event takes up.
    const COST: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);

    pub(crate) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// True if one more event may happen now.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + Self::COST;
        let allowed = full_at - now <= Self::COST * AT_ONCE;
        if allowed {
            self.full_at = full_at;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_and_rate_are_bounded() {
        let now = Instant::now();
        let mut bucket = Bucket::<100, 5>::new(now);
        assert_eq!((0..20).filter(|_| bucket.take(now)).count(), 5);
        let later = now + Duration::from_millis(30);
        assert_eq!((0..20).filter(|_| bucket.take(later)).count(), 3);
        let rested = now + Duration::from_secs(60);
        assert_eq!((0..20).filter(|_| bucket.take(rested)).count(), 5);
    }
}
