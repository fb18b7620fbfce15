//! Round trips and the retransmission timeout (RFC 6298).

use std::time::Duration;

/// RFC 6298 section 2.4 asks for 1 s; every stack that is in use goes lower, Linux to this.
pub(super) const RTO_FLOOR: Duration = Duration::from_millis(200);
/// RFC 6298 section 2.1: before a round trip was measured.
const RTO_INITIAL: Duration = Duration::from_secs(1);
/// RFC 6298 section 2.5 allows 60 s or more; Linux has 120 s.
const RTO_CEILING: Duration = Duration::from_secs(120);

/// Times are microseconds: every connection has one of these.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rtt {
    smoothed: Option<u32>,
    variation: u32,
    min: u32,
    floor: u32,
    /// How often the timeout has doubled since the last acknowledgement.
    backoff: u32,
}

impl Rtt {
    pub(super) fn new(floor: Duration) -> Self {
        let floor = micros(floor);
        Self { smoothed: None, variation: 0, min: u32::MAX, floor, backoff: 0 }
    }

    /// Takes a measured round trip (RFC 6298 sections 2.2 and 2.3).
    pub(super) fn measure(&mut self, rtt: Duration) {
        // A third of the range leaves room for the sums below: twenty minutes.
        let rtt = micros(rtt).min(u32::MAX / 3);
        self.min = self.min.min(rtt);
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                let mean = |old: u32, new: u32, weight: u64| {
                    let sum = u64::from(old) * (weight - 1) + u64::from(new);
                    u32::try_from(sum / weight).unwrap_or(u32::MAX)
                };
                self.variation = mean(self.variation, smoothed.abs_diff(rtt), 4);
                self.smoothed = Some(mean(smoothed, rtt, 8));
            }
        }
    }

    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(|smoothed| Duration::from_micros(smoothed.into()))
    }

    pub(super) fn min(&self) -> Option<Duration> {
        self.smoothed.map(|_| Duration::from_micros(self.min.into()))
    }

    /// The timeout, with its back-off. The variation counts for at least the floor, as in Linux, so
    /// that a steady round trip leaves room for an acknowledgement that is delayed.
    pub(super) fn timeout(&self) -> Duration {
        let base = match self.smoothed {
            None => RTO_INITIAL,
            Some(smoothed) => {
                let variation = (u64::from(self.variation) * 4).max(self.floor.into());
                Duration::from_micros(u64::from(smoothed) + variation)
            }
        };
        base.saturating_mul(1 << self.backoff.min(16)).min(RTO_CEILING)
    }

    /// The timer has run out (RFC 6298 section 5.5).
    pub(super) fn back_off(&mut self) {
        self.backoff += 1;
    }

    /// Something new was acknowledged.
    pub(super) fn progress(&mut self) {
        self.backoff = 0;
    }

    pub(super) fn backoff(&self) -> u32 {
        self.backoff
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_path() {
        let mut rtt = Rtt::new(RTO_FLOOR);
        assert_eq!(rtt.timeout(), RTO_INITIAL);
        rtt.measure(Duration::from_millis(100));
        assert_eq!(rtt.timeout(), Duration::from_millis(300));
        for _ in 0..100 {
            rtt.measure(Duration::from_millis(100));
        }
        assert_eq!(rtt.timeout(), Duration::from_millis(300), "the floor of the variation");
        rtt.measure(Duration::from_millis(500));
        assert!(rtt.timeout() > Duration::from_millis(500));
        assert_eq!(rtt.min(), Some(Duration::from_millis(100)));
        let before = rtt.timeout();
        rtt.back_off();
        assert_eq!(rtt.timeout(), before * 2);
        for _ in 0..100 {
            rtt.back_off();
        }
        assert_eq!(rtt.timeout(), RTO_CEILING);
        rtt.progress();
        assert_eq!(rtt.timeout(), before);
    }
}
