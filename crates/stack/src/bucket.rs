//! A token bucket: at most so many events each second, and so many at once.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Bucket {
    /// Time that one event takes up.
    cost: Duration,
    /// How much unused time is saved up.
    depth: Duration,
    /// When the bucket will have been full again.
    full_at: Instant,
}

impl Bucket {
    pub(crate) fn new(now: Instant, per_second: u32, at_once: u32) -> Self {
        let cost = Duration::from_secs(1) / per_second.max(1);
        Self { cost, depth: cost * at_once, full_at: now }
    }

    /// True if one more event may happen now.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + self.cost;
        let allowed = full_at - now <= self.depth;
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
        let mut bucket = Bucket::new(now, 100, 5);
        assert_eq!((0..20).filter(|_| bucket.take(now)).count(), 5);
        let later = now + Duration::from_millis(30);
        assert_eq!((0..20).filter(|_| bucket.take(later)).count(), 3);
        let rested = now + Duration::from_secs(60);
        assert_eq!((0..20).filter(|_| bucket.take(rested)).count(), 5);
    }
}
