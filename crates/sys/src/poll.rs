//! Waiting for descriptors: `epoll(7)`, with timeouts by `timerfd_create(2)`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::call;

/// Events taken in one wait.
pub const BATCH: usize = 256;

/// What to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Each change of readability, writability or closing, once (edge-triggered).
    Changes,
    /// Each time something comes to be read, once (edge-triggered).
    Arrivals,
    /// For as long as there is something to read.
    Readable,
    /// For as long as there is something to read or room to write.
    ReadableOrWritable,
}

impl Interest {
    fn mask(self) -> u32 {
        let bits = match self {
            Self::Changes => libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET,
            Self::Arrivals => libc::EPOLLIN | libc::EPOLLET,
            Self::Readable => libc::EPOLLIN,
            Self::ReadableOrWritable => libc::EPOLLIN | libc::EPOLLOUT,
        };
        bits.cast_unsigned()
    }
}

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// As given to [`Poll::add`].
    pub token: u64,
    /// Something can be read (`EPOLLIN`).
    pub readable: bool,
    /// There is room to write (`EPOLLOUT`).
    pub writable: bool,
    /// The other end has finished sending (`EPOLLRDHUP`).
    pub read_closed: bool,
    /// Both directions are over (`EPOLLHUP`).
    pub hangup: bool,
    /// An error waits (`EPOLLERR`).
    pub error: bool,
}

/// Room for one batch of events.
pub struct Events {
    list: Vec<libc::epoll_event>,
    len: usize,
}

impl Events {
    /// Room for [`BATCH`] events.
    #[must_use]
    pub fn new() -> Self {
        Self { list: vec![libc::epoll_event { events: 0, u64: 0 }; BATCH], len: 0 }
    }

    /// What the last wait brought.
    pub fn iter(&self) -> impl Iterator<Item = Event> {
        self.list.iter().take(self.len).map(|event| {
            let has = |bit: libc::c_int| event.events & bit.cast_unsigned() != 0;
            Event {
                token: event.u64,
                readable: has(libc::EPOLLIN),
                writable: has(libc::EPOLLOUT),
                read_closed: has(libc::EPOLLRDHUP),
                hangup: has(libc::EPOLLHUP),
                error: has(libc::EPOLLERR),
            }
        })
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A set of watched descriptors.
///
/// Who waits for an answer has it most often long before a timeout, and a timeout that is set and taken back each time
/// is dear where the next one to come has to be told to the processor, more so in a virtual machine. So there is
/// a timer beside the descriptors: while it rings early enough it is left as it is, and where it has rung too early
/// nothing was lost.
#[derive(Debug)]
pub struct Poll {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the timer rings.
    rings: Mutex<Option<Instant>>,
}

/// Of the timer.
const TIMER: u64 = u64::MAX;

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let epoll = call::own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: no pointers.
        let timer = call::own(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        let poll = Self { epoll, timer, rings: Mutex::new(None) };
        poll.add(poll.timer.as_fd(), TIMER, Interest::Arrivals)?;
        Ok(poll)
    }

    /// Watches a descriptor, of which is told as `token` (not `u64::MAX`). Closing its last copy ends that by itself; while
    /// another process holds a copy, [`Poll::remove`] must come first.
    ///
    /// # Errors
    /// `AlreadyExists`, `PermissionDenied` (a file that cannot be waited for), out of watches.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest.mask())
    }

    /// Changes what is told of a descriptor.
    ///
    /// # Errors
    /// `NotFound`: it is not watched.
    pub fn change(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest.mask())
    }

    /// Stops watching a descriptor.
    ///
    /// # Errors
    /// `NotFound`: it is not watched.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// Waits until something happens, at most for `timeout` (never shorter unless something
    /// happened); `None` waits for ever. A signal ends the wait with no events. One thread waits at a time, while
    /// others may add, change and remove.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.len = 0;
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            self.collect(events, 0)?;
            return Ok(());
        }
        let due = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(due) = due {
                self.ring(due)?;
            }
            let is_whole = self.collect(events, -1)?;
            let is_late = || due.is_some_and(|due| Instant::now() >= due);
            if events.len > 0 || !is_whole || is_late() {
                return Ok(());
            }
        }
    }

    fn rings(&self) -> MutexGuard<'_, Option<Instant>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that the timer rings at `due`, or before.
    fn ring(&self, due: Instant) -> io::Result<()> {
        let mut rings = self.rings();
        if rings.is_some_and(|rings| rings <= due) {
            return Ok(());
        }
        // None at all would stop it.
        let left = due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let once = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        let timer = self.timer.as_raw_fd();
        // SAFETY: `once` outlives the call, which only reads it; what was set before is not asked for.
        call::check(unsafe { libc::timerfd_settime(timer, 0, &raw const once, ptr::null_mut()) })?;
        *rings = Some(due);
        Ok(())
    }

    /// Waits so long, milliseconds, or for ever (-1), for the kernel's list, without the timer; false if a signal came.
    fn collect(&self, events: &mut Events, limit: libc::c_int) -> io::Result<bool> {
        let room = libc::c_int::try_from(events.list.len()).unwrap_or(libc::c_int::MAX);
        let (fd, list) = (self.epoll.as_raw_fd(), events.list.as_mut_ptr());
        // SAFETY: `list` has room for `room` events.
        let count = match call::check(unsafe { libc::epoll_wait(fd, list, room, limit) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            count => usize::try_from(count?).unwrap_or_default(),
        };
        events.len = count;
        let mut came = events.list.iter().take(count);
        if let Some(place) = came.position(|event| event.u64 == TIMER) {
            *self.rings() = None;
            events.len -= 1;
            events.list.swap(place, events.len);
        }
        Ok(true)
    }

    fn control(
        &self,
        verb: libc::c_int,
        fd: BorrowedFd<'_>,
        token: u64,
        mask: u32,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: mask, u64: token };
        let epoll = self.epoll.as_raw_fd();
        // SAFETY: `event` outlives the call, which only reads it.
        call::check(unsafe { libc::epoll_ctl(epoll, verb, fd.as_raw_fd(), &raw mut event) })
            .map(drop)
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Makes reads and writes of a descriptor (and of all its copies) fail with `WouldBlock` where they
/// would wait.
///
/// # Errors
/// What the kernel said.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    call::set_nonblocking(fd, true)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;
    use crate::wait;

    #[test]
    fn a_change_is_told_once_and_a_level_each_time() {
        let poll = Poll::new().unwrap();
        let mut events = Events::new();
        let (mut near, far) = UnixStream::pair().unwrap();
        poll.add(far.as_fd(), 7, Interest::Changes).unwrap();
        poll.wait(&mut events, None).unwrap();
        let first: Vec<Event> = events.iter().collect();
        assert!(first[0].token == 7 && first[0].writable && !first[0].readable);

        near.write_all(b"x").unwrap();
        poll.wait(&mut events, None).unwrap();
        assert!(events.iter().next().unwrap().readable);
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.iter().count(), 0);

        poll.change(far.as_fd(), 8, Interest::Readable).unwrap();
        for _ in 0..2 {
            poll.wait(&mut events, None).unwrap();
            let event = events.iter().next().unwrap();
            assert!(event.token == 8 && event.readable && !event.writable);
        }
        (&far).read_exact(&mut [0]).unwrap();
        poll.remove(far.as_fd()).unwrap();
        drop(near);
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.iter().count(), 0);
    }

    #[test]
    fn a_timeout_is_never_cut_short() {
        let (poll, mut events) = (Poll::new().unwrap(), Events::new());
        // The first sets the timer, the second finds it set too early, the third too late.
        for microseconds in [1_300, 20_000, 700] {
            let (timeout, start) = (Duration::from_micros(microseconds), Instant::now());
            poll.wait(&mut events, Some(timeout)).unwrap();
            assert!(start.elapsed() >= timeout);
            assert_eq!(events.iter().count(), 0);
        }
    }

    #[test]
    fn what_happens_before_a_timeout_leaves_the_timer_to_the_next_one() {
        let (poll, mut events) = (Poll::new().unwrap(), Events::new());
        let (mut near, far) = UnixStream::pair().unwrap();
        poll.add(far.as_fd(), 7, Interest::Arrivals).unwrap();
        near.write_all(b"x").unwrap();
        poll.wait(&mut events, Some(Duration::from_secs(60))).unwrap();
        assert_eq!(events.iter().map(|event| event.token).collect::<Vec<_>>(), [7]);
        let rings = *poll.rings();
        near.write_all(b"x").unwrap();
        poll.wait(&mut events, Some(Duration::from_secs(90))).unwrap();
        assert!(rings.is_some());
        assert_eq!(*poll.rings(), rings);
        // It rings for nobody, and the next one is not cut short by it.
        poll.ring(Instant::now() + Duration::from_millis(5)).unwrap();
        let start = Instant::now();
        poll.wait(&mut events, Some(Duration::from_millis(30))).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(events.iter().count(), 0);
        // One that is there with what else has come is not told.
        poll.wait(&mut events, Some(Duration::from_micros(1))).unwrap();
        near.write_all(b"x").unwrap();
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.iter().map(|event| event.token).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn the_end_of_a_stream_is_told() {
        let poll = Poll::new().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        drop(near);
        wait::gone(far.as_fd());
        poll.add(far.as_fd(), 1, Interest::Changes).unwrap();
        let mut events = Events::new();
        poll.wait(&mut events, None).unwrap();
        let event = events.iter().next().unwrap();
        assert!(event.hangup && event.read_closed && event.readable);
    }
}
