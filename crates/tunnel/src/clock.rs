//! This machine's clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds of Unix time.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Less than this is no news of another's clock.
const SKEW: i64 = 60_000;

/// How far ahead of ours another clock is, seconds (negative: behind), if that is worth a word. Zero is no clock.
pub(crate) fn skew(own_ms: i64, others_ms: u64) -> Option<i64> {
    let ahead = i64::try_from(others_ms).ok()?.saturating_sub(own_ms);
    (others_ms != 0 && ahead.abs() > SKEW).then_some(ahead / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_by_more_than_a_minute_are_told() {
        assert_eq!(skew(1_000_000, 1_060_000), None);
        assert_eq!(skew(1_000_000, 1_061_000), Some(61));
        assert_eq!(skew(1_000_000, 1), Some(-999));
        assert_eq!(skew(1_000_000, 0), None);
        assert_eq!(skew(0, u64::MAX), None);
    }
}
