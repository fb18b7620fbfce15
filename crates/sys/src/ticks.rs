//! The processor's time stamp counter.

#[cfg(target_arch = "x86_64")]
use std::time::{Duration, Instant};

/// How long the counter is watched: long enough for the clock's own grain not to matter.
#[cfg(target_arch = "x86_64")]
const WATCH: Duration = Duration::from_millis(5);

/// How often the counter ticks, kHz, measured; `None` on processors without one.
///
/// A measurement that was interrupted is made again, and of several the median counts.
#[must_use]
pub fn per_millisecond() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        let mut measured = [measure()?, measure()?, measure()?];
        measured.sort_unstable();
        measured.get(1).copied()
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

#[cfg(target_arch = "x86_64")]
fn measure() -> Option<u64> {
    let (started, first) = read_both();
    let (mut now, mut last) = read_both();
    while now.duration_since(started) < WATCH {
        (now, last) = read_both();
    }
    let nanoseconds = now.duration_since(started).as_nanos();
    let ticks = u128::from(last.checked_sub(first)?) * 1_000_000;
    u64::try_from(ticks.checked_div(nanoseconds)?).ok()
}

/// Clock and counter, read within so short a time that nothing came between.
#[cfg(target_arch = "x86_64")]
fn read_both() -> (Instant, u64) {
    /// Ticks from before to after; a system call or interrupt takes longer.
    const CLOSE: u64 = 2_000;
    /// Good enough if it never is so short.
    const TRIES: usize = 20;
    let mut best = (Instant::now(), read(), u64::MAX);
    for _ in 0..TRIES {
        let before = read();
        let now = Instant::now();
        let apart = read().saturating_sub(before);
        if apart < best.2 {
            best = (now, before + apart / 2, apart);
        }
        if apart < CLOSE {
            break;
        }
    }
    (best.0, best.1)
}

#[cfg(target_arch = "x86_64")]
fn read() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (one, other) = (per_millisecond().unwrap(), per_millisecond().unwrap());
        assert!(one > 100_000, "more than 100 MHz: {one}");
        assert!(one.abs_diff(other) < one / 100, "{one} and {other}");
    }
}
