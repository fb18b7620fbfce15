//! When a program that ended starts again. No IO, no clock: the keeper says when things happened.

use std::time::{Duration, Instant};

use crate::model::Restart;

/// Pause before the first restart; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A program that ran this long was well: the next pause is [`FIRST_PAUSE`] again.
const WELL_AFTER: Duration = Duration::from_secs(10);

/// The pauses between the starts of one program.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: Restart,
    pause: Duration,
    started: Option<Instant>,
}

impl Backoff {
    /// For a program that has not run yet.
    #[must_use]
    pub fn new(policy: Restart) -> Self {
        Self { policy, pause: FIRST_PAUSE, started: None }
    }

    /// Replaces the policy; it counts from the next end of the program.
    pub fn set_policy(&mut self, policy: Restart) {
        self.policy = policy;
    }

    /// The program has started.
    pub fn handle_start(&mut self, now: Instant) {
        self.started = Some(now);
    }

    /// The program has ended, or could not be started; `success` is exit code 0. Returns when it
    /// is to start again; `None`: it stays ended.
    pub fn handle_exit(&mut self, now: Instant, success: bool) -> Option<Instant> {
        let ran = self.started.take().map(|started| now.saturating_duration_since(started));
        if ran.is_some_and(|ran| ran >= WELL_AFTER) {
            self.pause = FIRST_PAUSE;
        }
        let again = match self.policy {
            Restart::No => false,
            Restart::OnFailure => !success,
            Restart::Always => true,
        };
        again.then(|| {
            let pause = self.pause;
            self.pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            now + pause
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pauses of a program that ends `ends` times after running for `runs` each time.
    fn pauses(backoff: &mut Backoff, runs: Duration, ends: usize) -> Vec<Duration> {
        let mut now = Instant::now();
        (0..ends)
            .map(|_| {
                backoff.handle_start(now);
                let ended = now + runs;
                now = backoff.handle_exit(ended, false).unwrap();
                now - ended
            })
            .collect()
    }

    #[test]
    fn pauses_double_up_to_thirty_seconds() {
        let pauses = pauses(&mut Backoff::new(Restart::Always), Duration::ZERO, 11);
        let expected = [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000];
        assert_eq!(pauses, expected.map(Duration::from_millis));
    }

    #[test]
    fn ten_seconds_alive_reset_the_pause() {
        let mut backoff = Backoff::new(Restart::OnFailure);
        pauses(&mut backoff, Duration::from_millis(9_999), 5);
        let after = pauses(&mut backoff, Duration::from_secs(10), 2);
        assert_eq!(after, [FIRST_PAUSE, FIRST_PAUSE]);
    }

    #[test]
    fn the_policy_decides_whether_it_starts_again() {
        let now = Instant::now();
        let again = |policy, success| Backoff::new(policy).handle_exit(now, success).is_some();
        assert_eq!([again(Restart::No, true), again(Restart::No, false)], [false, false]);
        assert_eq!(
            [again(Restart::OnFailure, true), again(Restart::OnFailure, false)],
            [false, true]
        );
        assert_eq!([again(Restart::Always, true), again(Restart::Always, false)], [true, true]);
    }
}
