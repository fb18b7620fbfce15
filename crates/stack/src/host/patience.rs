//! Whether calls on a socket wait.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whether calls on a socket wait, and for how long.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    nonblocking: AtomicBool,
    read: Mutex<Option<Duration>>,
    write: Mutex<Option<Duration>>,
}

impl Patience {
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    pub(crate) fn waits(&self) -> bool {
        !self.nonblocking.load(Ordering::Relaxed)
    }

    pub(crate) fn read(&self) -> Option<Duration> {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> Option<Duration> {
        *self.write.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `InvalidInput`: no time at all.
    pub(crate) fn set_read(&self, limit: Option<Duration>) -> io::Result<()> {
        set(&self.read, limit)
    }

    /// # Errors
    /// `InvalidInput`: no time at all.
    pub(crate) fn set_write(&self, limit: Option<Duration>) -> io::Result<()> {
        set(&self.write, limit)
    }

    /// When a call that begins now gives up; `limit` is that of its direction.
    pub(crate) fn deadline(&self, limit: Option<Duration>) -> Option<Instant> {
        let now = Instant::now();
        if self.waits() { limit.and_then(|limit| now.checked_add(limit)) } else { Some(now) }
    }
}

fn set(place: &Mutex<Option<Duration>>, limit: Option<Duration>) -> io::Result<()> {
    if limit.is_some_and(|limit| limit.is_zero()) {
        let message = "a timeout of no time; `None` waits for ever, `set_nonblocking` never";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    *place.lock().unwrap_or_else(PoisonError::into_inner) = limit;
    Ok(())
}
