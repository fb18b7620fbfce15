//! When to look: after the kernel's notices have ended, but not much later.

use std::time::{Duration, Instant};

/// No notice for so long is the end of a change. A card that comes up makes some dozens of notices.
pub const QUIET: Duration = Duration::from_millis(250);

/// A change that does not end is looked at after so long.
pub const LONGEST: Duration = Duration::from_millis(400);

/// Two clocks that part by more than this: the machine has slept. Far above what reading them takes.
const ASLEEP: Duration = Duration::from_secs(2);

/// Gathers notices that belong together. It has no clock of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Debounce {
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Debounce {
    /// Something has changed.
    pub fn handle_notice(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    /// When [`Debounce::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some((self.last? + QUIET).min(self.first? + LONGEST))
    }

    /// True if it is time to look; then all notices up to now are done with.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let due = self.poll_timeout().is_some_and(|at| at <= now);
        if due {
            *self = Self::default();
        }
        due
    }
}

/// Notices when the machine has slept: the time since it was started goes on (`CLOCK_BOOTTIME`), the clock
/// of [`Instant`] stands still.
#[derive(Debug, Clone, Copy)]
pub struct Sleeper {
    now: Instant,
    since_start: Duration,
}

impl Sleeper {
    /// Begins with both clocks.
    #[must_use]
    pub const fn new(now: Instant, since_start: Duration) -> Self {
        Self { now, since_start }
    }

    /// Both clocks again; how long the machine has slept since the last time, if it did.
    pub fn handle_clocks(&mut self, now: Instant, since_start: Duration) -> Option<Duration> {
        let awake = now.saturating_duration_since(self.now);
        let asleep = since_start.saturating_sub(self.since_start).saturating_sub(awake);
        *self = Self { now, since_start };
        (asleep >= ASLEEP).then_some(asleep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    #[test]
    fn notices_that_belong_together_are_one_change() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        assert_eq!(debounce.poll_timeout(), None);
        assert!(!debounce.handle_timeout(start));
        for number in 0..10 {
            debounce.handle_notice(start + STEP * number);
        }
        let due = start + STEP * 9 + QUIET;
        assert_eq!(debounce.poll_timeout(), Some(due));
        assert!(!debounce.handle_timeout(due - STEP));
        assert!(debounce.handle_timeout(due));
        assert_eq!(debounce.poll_timeout(), None, "done with");
    }

    #[test]
    fn a_change_without_an_end_is_looked_at_all_the_same() {
        let start = Instant::now();
        let (mut debounce, mut looks) = (Debounce::default(), Vec::new());
        for number in 0..100 {
            let now = start + STEP * number;
            if debounce.handle_timeout(now) {
                looks.push(now - start);
            }
            debounce.handle_notice(now);
        }
        assert_eq!(looks, [LONGEST, LONGEST * 2], "a look begins the next change");
    }

    #[test]
    fn sleep_is_where_the_clocks_part() {
        let start = Instant::now();
        let mut sleeper = Sleeper::new(start, Duration::from_secs(1000));
        let minute = Duration::from_secs(60);
        assert_eq!(sleeper.handle_clocks(start + minute, Duration::from_secs(1060)), None);
        let woken = sleeper.handle_clocks(start + minute * 2, Duration::from_secs(1060 + 60 + 900));
        assert_eq!(woken, Some(Duration::from_secs(900)));
        assert_eq!(sleeper.handle_clocks(start + minute * 3, Duration::from_secs(2081)), None);
    }
}
