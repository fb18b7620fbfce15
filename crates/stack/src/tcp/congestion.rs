//! Congestion control: NewReno (RFC 5681) and CUBIC (RFC 9438).
//!
//! Windows are bytes. What is acknowledged counts in full (RFC 3465 with a limit as wide as the
//! window), since one acknowledgement of a peer with large receive covers many segments.

use std::time::{Duration, Instant};

/// How the window grows and shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// RFC 9438.
    #[default]
    Cubic,
    /// RFC 5681 and RFC 6582.
    NewReno,
}

/// RFC 6928: segments in the first flight, and the bytes that they must not exceed.
const INITIAL_SEGMENTS: u32 = 10;
const INITIAL_BYTES: u32 = 14_600;
/// No window is wider, bytes: beyond what a scaled window can be.
const MAX_WINDOW: u32 = 1 << 30;

/// RFC 9438 section 4.6: what remains of the window after a loss.
const BETA: f64 = 0.7;
/// RFC 9438 section 5: segments per cubic second.
const C: f64 = 0.4;
/// RFC 9438 section 4.3: as fast as NewReno with this `BETA`.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

#[derive(Debug)]
pub(super) struct Congestion {
    algorithm: Algorithm,
    pub(super) window: u32,
    pub(super) threshold: u32,
    mss: u32,
    /// NewReno: bytes acknowledged since the window last grew.
    credit: u32,
    /// There once slow start has ended.
    cubic: Option<Box<Cubic>>,
}

/// Windows are segments here, as in the RFC.
#[derive(Debug, Default)]
struct Cubic {
    epoch: Option<Instant>,
    w_max: f64,
    /// The window when it last shrank.
    w_prior: f64,
    w_est: f64,
    k: f64,
}

impl Congestion {
    pub(super) fn new(algorithm: Algorithm, mss: u16) -> Self {
        let mss = u32::from(mss).max(1);
        Self { algorithm, window: initial(mss), threshold: MAX_WINDOW, mss, credit: 0, cubic: None }
    }

    /// The path takes other segments than was thought.
    pub(super) fn set_mss(&mut self, mss: u16) {
        let mss = u32::from(mss).max(1);
        if self.window == initial(self.mss) {
            self.window = initial(mss);
        }
        self.mss = mss;
    }

    /// `acked` bytes were acknowledged while the window was what held the sender back.
    pub(super) fn on_ack(&mut self, now: Instant, acked: u32, rtt: Option<Duration>) {
        if self.window < self.threshold {
            self.window = self.window.saturating_add(acked).min(MAX_WINDOW);
            return;
        }
        match self.algorithm {
            Algorithm::NewReno => {
                self.credit = self.credit.saturating_add(acked);
                if self.credit >= self.window {
                    self.credit -= self.window;
                    self.window = self.window.saturating_add(self.mss).min(MAX_WINDOW);
                }
            }
            Algorithm::Cubic => {
                let window = f64::from(self.window) / f64::from(self.mss);
                let acked = f64::from(acked) / f64::from(self.mss);
                let cubic = self.cubic.get_or_insert_default();
                let grown = cubic.grow(now, window, acked, rtt.unwrap_or_default());
                self.window = bytes(grown, self.mss).clamp(self.window, MAX_WINDOW);
            }
        }
    }

    /// A loss was found with `flight` bytes on their way. The caller decides how the window gets to
    /// the new threshold.
    pub(super) fn on_loss(&mut self, flight: u32) {
        let flight = flight.min(self.window);
        let reduced = match self.algorithm {
            Algorithm::NewReno => flight / 2,
            Algorithm::Cubic => {
                let window = f64::from(self.window) / f64::from(self.mss);
                self.cubic.get_or_insert_default().shrink(window);
                bytes(f64::from(flight) / f64::from(self.mss) * BETA, self.mss)
            }
        };
        self.threshold = reduced.max(2 * self.mss);
        self.credit = 0;
    }

    /// The timer ran out: everything is taken for lost (RFC 5681 section 3.1).
    pub(super) fn on_timeout(&mut self, flight: u32, again: bool) {
        if !again {
            self.on_loss(flight);
        }
        self.window = self.mss;
        self.end_epoch();
    }

    /// Nothing was sent for longer than the timeout: the path is not known any more (RFC 5681
    /// section 4.1).
    pub(super) fn on_idle(&mut self) {
        self.window = self.window.min(initial(self.mss));
        self.end_epoch();
    }

    /// CUBIC begins to count time anew.
    fn end_epoch(&mut self) {
        if let Some(cubic) = &mut self.cubic {
            cubic.epoch = None;
        }
    }
}

fn initial(mss: u32) -> u32 {
    (INITIAL_SEGMENTS * mss).min(INITIAL_BYTES.max(2 * mss))
}

/// Segments as bytes.
fn bytes(segments: f64, mss: u32) -> u32 {
    // Saturates; a window is never negative.
    (segments * f64::from(mss)) as u32
}

impl Cubic {
    /// RFC 9438 sections 4.2 to 4.5; returns the new window.
    fn grow(&mut self, now: Instant, window: f64, acked: f64, rtt: Duration) -> f64 {
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => {
                self.epoch = Some(now);
                self.w_est = window;
                if window < self.w_max {
                    self.k = ((self.w_max - window) / C).cbrt();
                } else {
                    self.k = 0.0;
                    self.w_max = window;
                }
                now
            }
        };
        let elapsed = now.saturating_duration_since(epoch).as_secs_f64();
        let cubic = |t: f64| C * (t - self.k).powi(3) + self.w_max;
        let alpha = if self.w_est < self.w_prior { ALPHA } else { 1.0 };
        let w_est = self.w_est + alpha * acked / window;
        let target = cubic(elapsed + rtt.as_secs_f64()).clamp(window, 1.5 * window);
        let friendly = cubic(elapsed) < w_est;
        self.w_est = w_est;
        if friendly { w_est.max(window) } else { window + (target - window) / window * acked }
    }

    /// RFC 9438 sections 4.6 and 4.7 (fast convergence).
    fn shrink(&mut self, window: f64) {
        self.epoch = None;
        self.w_prior = window;
        self.w_max = if window < self.w_max { window * (1.0 + BETA) / 2.0 } else { window };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u16 = 1000;
    const RTT: Duration = Duration::from_millis(50);

    /// Windows at the end of each of so many round trips.
    fn run(congestion: &mut Congestion, now: &mut Instant, rounds: usize) -> Vec<u32> {
        (0..rounds)
            .map(|_| {
                *now += RTT;
                let mut left = congestion.window;
                while left > 0 {
                    let part = left.min(2 * u32::from(MSS));
                    congestion.on_ack(*now, part, Some(RTT));
                    left -= part;
                }
                congestion.window
            })
            .collect()
    }

    #[test]
    fn the_first_flight_has_ten_segments() {
        assert_eq!(Congestion::new(Algorithm::Cubic, 1460).window, 14_600);
        assert_eq!(Congestion::new(Algorithm::Cubic, 536).window, 5_360);
        assert_eq!(Congestion::new(Algorithm::Cubic, 9_000).window, 18_000);
        let mut congestion = Congestion::new(Algorithm::Cubic, 536);
        congestion.set_mss(1460);
        assert_eq!(congestion.window, 14_600);
    }

    #[test]
    fn slow_start_doubles_and_new_reno_adds_a_segment_each_round() {
        let mut now = Instant::now();
        let mut congestion = Congestion::new(Algorithm::NewReno, MSS);
        assert_eq!(run(&mut congestion, &mut now, 3), [20_000, 40_000, 80_000]);
        congestion.on_loss(80_000);
        assert_eq!(congestion.threshold, 40_000);
        congestion.window = congestion.threshold;
        assert_eq!(run(&mut congestion, &mut now, 3), [41_000, 42_000, 43_000]);
        congestion.on_timeout(43_000, false);
        assert_eq!((congestion.window, congestion.threshold), (1_000, 21_500));
        congestion.on_timeout(1_000, true);
        assert_eq!(congestion.threshold, 21_500, "a second timeout of the same flight");
    }

    #[test]
    fn cubic_comes_back_to_where_it_was_and_then_goes_on() {
        let mut now = Instant::now();
        let mut congestion = Congestion::new(Algorithm::Cubic, MSS);
        while congestion.window < 1_000_000 {
            run(&mut congestion, &mut now, 1);
        }
        let before = congestion.window;
        congestion.on_loss(before);
        congestion.window = congestion.threshold;
        assert!(congestion.window.abs_diff(before / 10 * 7) < 2_000);
        // K = cbrt(W_max * (1 - beta) / C): 9.9 s for 1280 segments.
        let windows = run(&mut congestion, &mut now, 400);
        assert!(windows.is_sorted());
        let back = windows.iter().position(|window| *window >= before / 100 * 99).unwrap();
        assert!((100..220).contains(&back), "back after {back} round trips");
        assert!(*windows.last().unwrap() > before + before / 10);
        let step = |at: usize| windows[at + 1] - windows[at];
        assert!(step(2) > 4 * step(back - 10), "concave before");
        assert!(step(398) > 4 * step(back - 10), "convex behind");
    }

    #[test]
    fn a_small_cubic_window_grows_at_least_as_new_reno_does() {
        let mut now = Instant::now();
        let mut congestion = Congestion::new(Algorithm::Cubic, MSS);
        congestion.on_loss(10_000);
        congestion.window = congestion.threshold;
        let start = congestion.window;
        let windows = run(&mut congestion, &mut now, 20);
        let wanted = f64::from(start) + 20.0 * ALPHA * f64::from(MSS) * 0.9;
        assert!(f64::from(*windows.last().unwrap()) >= wanted, "{windows:?}");
    }
}
