//! Waiting for a condition, with a deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at: short beside every deadline, long beside a system call.
pub(crate) const INTERVAL: Duration = Duration::from_millis(5);

/// Looks at `condition` until it gives a value, and returns that value.
///
/// # Panics
/// When `within` has passed; the message names `what`.
pub fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < within, "waited {within:?} in vain for: {what}");
        thread::sleep(INTERVAL);
    }
}

/// Sets a flag when it goes, also because a step has failed: threads that go on until it is set end, and
/// whoever waits for them learns of the failure.
#[derive(Debug)]
pub struct SetAtEnd<'f>(pub &'f AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_end_with_a_step_that_fails() {
        let stop = AtomicBool::new(false);
        let failed = std::panic::catch_unwind(|| {
            thread::scope(|scope| {
                let _end = SetAtEnd(&stop);
                scope.spawn(|| {
                    wait_for("the end", Duration::from_secs(20), || {
                        stop.load(Ordering::Acquire).then_some(())
                    });
                });
                panic!("a step");
            });
        });
        assert_eq!(failed.unwrap_err().downcast_ref::<&str>(), Some(&"a step"));
    }

    #[test]
    fn returns_the_value_once_it_is_there() {
        let mut looks = 0;
        let value = wait_for("three looks", Duration::from_secs(5), || {
            looks += 1;
            (looks == 3).then_some("seen")
        });
        assert_eq!((value, looks), ("seen", 3));
    }

    #[test]
    #[should_panic(expected = "in vain for: the impossible")]
    fn names_what_it_waited_for() {
        wait_for("the impossible", Duration::from_millis(20), || None::<()>);
    }
}
