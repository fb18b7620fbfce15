//! Whether an instance of a service is well: counts the probes of its check.
//!
//! No IO, no clock. The keeper runs the probes that [`Checker::handle_timeout`] asks for, and
//! comes back with [`Checker::handle_probe`]. While the program does not run there is nothing to
//! probe: [`Checker::stop`]. One probe runs at a time; one that takes longer than the check's
//! time-out has failed, and what it says later is ignored.

use std::time::{Duration, Instant};

use crate::model::Check;

/// From one probe to the next until the first one passes, so that `up --wait` does not wait for
/// a whole interval of the check.
const EAGER_EVERY: Duration = Duration::from_millis(100);

/// What probes have found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Too few probes have passed since the program started.
    Unknown,
    /// It is well: it may get connections.
    Healthy,
    /// It was well and is no more, or has had the time of [`Check::fall`] probes to become well.
    Unhealthy,
}

/// One probe: it is given back with what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeId(u64);

/// The state of one check of one instance.
#[derive(Debug, Clone)]
pub struct Checker {
    check: Check,
    health: Health,
    /// From when on an instance that was never well counts as not well.
    overdue: Option<Instant>,
    /// When the running probe has failed, or the next one starts.
    next: Option<Instant>,
    /// The running probe with its start.
    running: Option<(ProbeId, Instant)>,
    last: ProbeId,
    /// Whether a probe has passed since the start.
    passed_once: bool,
    /// Probes in a row with the same outcome.
    row: u32,
    row_passed: bool,
    problem: Option<String>,
}

impl Checker {
    /// For an instance whose program does not run yet.
    #[must_use]
    pub fn new(check: Check) -> Self {
        Self {
            check,
            health: Health::Unknown,
            overdue: None,
            next: None,
            running: None,
            last: ProbeId(0),
            passed_once: false,
            row: 0,
            row_passed: false,
            problem: None,
        }
    }

    /// What probes have found so far.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// Why the last finished probe failed; `None` if it passed.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The program has started: the first probe is due at once.
    pub fn start(&mut self, now: Instant) {
        self.stop();
        self.next = Some(now);
        self.overdue = Some(now + self.check.every * self.check.fall);
    }

    /// The program has ended. Everything found is forgotten; a running probe is void.
    pub fn stop(&mut self) {
        *self = Self { last: self.last, ..Self::new(self.check.clone()) };
    }

    /// When to call [`Checker::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Lets time pass. Returns the probe that is to start now, which has the check's time-out to
    /// end.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<ProbeId> {
        if self.next.is_none_or(|next| now < next) {
            return None;
        }
        if let Some((_, started)) = self.running.take() {
            let problem =
                format!("no answer within {}", humantime::format_duration(self.check.timeout));
            self.count(now, started, Err(problem));
            if self.next.is_none_or(|next| now < next) {
                return None;
            }
        }
        self.last = ProbeId(self.last.0.wrapping_add(1));
        self.running = Some((self.last, now));
        self.next = Some(now + self.check.timeout);
        Some(self.last)
    }

    /// A probe has ended: passed, or failed with a reason for people. A void one is ignored.
    pub fn handle_probe(&mut self, now: Instant, probe: ProbeId, outcome: Result<(), String>) {
        if let Some((_, started)) = self.running.take_if(|(running, _)| *running == probe) {
            self.count(now, started, outcome);
        }
    }

    /// Counts the outcome of the probe that began at `started`, and sets when the next one is due.
    fn count(&mut self, now: Instant, started: Instant, outcome: Result<(), String>) {
        let passed = outcome.is_ok();
        self.row = if self.row_passed == passed { self.row.saturating_add(1) } else { 1 };
        self.row_passed = passed;
        self.passed_once |= passed;
        self.problem = outcome.err();
        if passed && self.row >= self.check.rise {
            self.health = Health::Healthy;
        } else if !passed && self.row >= self.check.fall {
            let overdue = self.overdue.is_some_and(|overdue| now >= overdue);
            if self.health == Health::Healthy || overdue {
                self.health = Health::Unhealthy;
            }
        }
        self.next = Some(if self.passed_once {
            now.max(started + self.check.every)
        } else {
            now + EAGER_EVERY.min(self.check.every)
        });
    }
}

/// Whether an HTTP status passes a check: 200 to 399.
#[must_use]
pub fn passes(status: u16) -> bool {
    (200..400).contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checker on a clock of milliseconds.
    struct Bench {
        epoch: Instant,
        checker: Checker,
    }

    impl Bench {
        fn new(rise: u32, fall: u32) -> Self {
            let epoch = Instant::now();
            let mut checker = Checker::new(Check { rise, fall, ..Check::default() });
            checker.start(epoch);
            Self { epoch, checker }
        }

        fn next(&self) -> u128 {
            (self.checker.poll_timeout().unwrap() - self.epoch).as_millis()
        }

        fn at(&self, ms: u128) -> Instant {
            self.epoch + Duration::from_millis(u64::try_from(ms).unwrap())
        }

        /// Runs the next probe when it is due; it ends at once.
        fn probe(&mut self, passes: bool) -> Health {
            let due = self.at(self.next());
            let probe = self.checker.handle_timeout(due).unwrap();
            let outcome = if passes { Ok(()) } else { Err("refused".to_owned()) };
            self.checker.handle_probe(due, probe, outcome);
            self.checker.health()
        }
    }

    #[test]
    fn probes_are_eager_until_one_passes() {
        let mut bench = Bench::new(1, 2);
        assert_eq!(bench.next(), 0);
        assert_eq!(bench.probe(false), Health::Unknown);
        assert_eq!(bench.next(), 100);
        assert_eq!(bench.probe(false), Health::Unknown);
        assert_eq!(bench.next(), 200);
        assert_eq!(bench.probe(true), Health::Healthy);
        assert_eq!(bench.next(), 2_200);
    }

    #[test]
    fn what_never_becomes_well_is_unhealthy_after_the_time_of_its_probes() {
        // Two probes, one every 2 s.
        let mut bench = Bench::new(1, 2);
        while bench.next() < 4_000 {
            assert_eq!(bench.probe(false), Health::Unknown);
        }
        assert_eq!(bench.probe(false), Health::Unhealthy);
        assert_eq!(bench.next(), 4_100, "a start that takes long is still found at once");
        assert_eq!(bench.probe(true), Health::Healthy);
    }

    #[test]
    fn rise_and_fall_count_outcomes_in_a_row() {
        let mut bench = Bench::new(2, 3);
        let outcomes = [true, false, true, true, false, false, true, false, false, false, true];
        let found: Vec<_> = outcomes.map(|passes| bench.probe(passes)).into();
        use Health::{Healthy as H, Unhealthy as D, Unknown as U};
        assert_eq!(found, [U, U, U, H, H, H, H, H, H, D, D]);
        assert_eq!(bench.probe(true), H);
    }

    #[test]
    fn a_probe_without_answer_fails_at_the_time_out() {
        let mut bench = Bench::new(1, 1);
        bench.probe(true);
        let probe = bench.checker.handle_timeout(bench.at(2_000)).unwrap();
        assert_eq!(bench.next(), 3_000);
        assert_eq!(bench.checker.handle_timeout(bench.at(2_999)), None);
        assert_eq!(bench.checker.handle_timeout(bench.at(3_000)), None);
        assert_eq!(bench.checker.health(), Health::Unhealthy);
        assert_eq!(bench.checker.problem(), Some("no answer within 1s"));
        bench.checker.handle_probe(bench.at(3_100), probe, Ok(()));
        assert_eq!(bench.checker.health(), Health::Unhealthy, "a late answer counts for nothing");
        assert_eq!(bench.next(), 4_000);
    }

    #[test]
    fn a_program_that_ended_is_unknown_and_not_probed() {
        let mut bench = Bench::new(1, 2);
        bench.probe(true);
        let probe = bench.checker.handle_timeout(bench.at(2_000)).unwrap();
        bench.checker.stop();
        assert_eq!(bench.checker.poll_timeout(), None);
        bench.checker.handle_probe(bench.at(2_001), probe, Ok(()));
        assert_eq!(bench.checker.health(), Health::Unknown);
        bench.checker.start(bench.at(5_000));
        bench.checker.handle_probe(bench.at(5_000), probe, Ok(()));
        assert_eq!(bench.checker.health(), Health::Unknown, "a probe of the program before");
        assert_eq!(bench.probe(true), Health::Healthy);
    }
}
