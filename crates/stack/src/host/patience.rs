//! Whether calls on a socket wait.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Whether calls on a socket wait, and for how long.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    nonblocking: AtomicBool,
    read: Limit,
    write: Limit,
}

/// How long calls of one direction wait, nanoseconds; 0: as long as it takes.
#[derive(Debug, Default)]
struct Limit(AtomicU64);

impl Patience {
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    pub(crate) fn waits(&self) -> bool {
        !self.nonblocking.load(Ordering::Relaxed)
    }

    pub(crate) fn read(&self) -> Option<Duration> {
        self.read.get()
    }

    pub(crate) fn write(&self) -> Option<Duration> {
        self.write.get()
    }

    /// # Errors
    /// `InvalidInput`: no time at all.
    pub(crate) fn set_read(&self, limit: Option<Duration>) -> io::Result<()> {
        self.read.set(limit)
    }

    /// # Errors
    /// `InvalidInput`: no time at all.
    pub(crate) fn set_write(&self, limit: Option<Duration>) -> io::Result<()> {
        self.write.set(limit)
    }

    /// When a call that begins now gives up; `limit` is that of its direction.
    pub(crate) fn deadline(&self, limit: Option<Duration>) -> Option<Instant> {
        let now = Instant::now();
        if self.waits() { limit.and_then(|limit| now.checked_add(limit)) } else { Some(now) }
    }
}

impl Limit {
    fn get(&self) -> Option<Duration> {
        let nanoseconds = self.0.load(Ordering::Relaxed);
        (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
    }

    fn set(&self, limit: Option<Duration>) -> io::Result<()> {
        if limit.is_some_and(|limit| limit.is_zero()) {
            let message = "a timeout of no time; `None` waits for ever, `set_nonblocking` never";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let nanoseconds = limit.map_or(0, |limit| limit.as_nanos());
        self.0.store(u64::try_from(nanoseconds).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(())
    }
}
