//! Waiting for descriptors: `epoll(7)` with nanosecond timeouts where the kernel has them.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
#[derive(Debug)]
pub struct Poll {
    epoll: OwnedFd,
    /// False once the kernel has said that it lacks `epoll_pwait2(2)` (Linux 5.11).
    precise: AtomicBool,
}

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let epoll = call::own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { epoll, precise: AtomicBool::new(true) })
    }

    /// Watches a descriptor. Closing its last copy ends that by itself; while another process
    /// holds a copy, [`Poll::remove`] must come first.
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
    /// happened); `None` waits for ever. A signal ends the wait with no events.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.len = 0;
        let waited = if timeout.is_none_or(|timeout| timeout.is_zero()) {
            self.wait_milliseconds(events, timeout)
        } else if self.precise.load(Ordering::Relaxed) {
            match self.wait_nanoseconds(events, timeout.unwrap_or_default()) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                    self.precise.store(false, Ordering::Relaxed);
                    self.wait_milliseconds(events, timeout)
                }
                waited => waited,
            }
        } else {
            self.wait_milliseconds(events, timeout)
        };
        match waited {
            Ok(len) => events.len = len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn wait_nanoseconds(&self, events: &mut Events, timeout: Duration) -> io::Result<usize> {
        // struct __kernel_timespec.
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let limit = [seconds, i64::from(timeout.subsec_nanos())];
        let (list, room) = (events.list.as_mut_ptr(), events.list.len());
        let fd = self.epoll.as_raw_fd();
        let no_signals = std::ptr::null::<libc::sigset_t>();
        // SAFETY: `list` has room for `room` events; `limit` outlives the call; a null signal set
        // is not read.
        let count = unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, fd, list, room, limit.as_ptr(), no_signals, 0)
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    fn wait_milliseconds(
        &self,
        events: &mut Events,
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        let limit = timeout.map_or(-1, |timeout| {
            libc::c_int::try_from(timeout.as_nanos().div_ceil(1_000_000))
                .unwrap_or(libc::c_int::MAX)
        });
        let room = libc::c_int::try_from(events.list.len()).unwrap_or(libc::c_int::MAX);
        let (fd, list) = (self.epoll.as_raw_fd(), events.list.as_mut_ptr());
        // SAFETY: `list` has room for `room` events.
        let count = call::check(unsafe { libc::epoll_wait(fd, list, room, limit) })?;
        Ok(usize::try_from(count).unwrap_or_default())
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
        for precise in [true, false] {
            let poll = Poll::new().unwrap();
            poll.precise.store(precise, Ordering::Relaxed);
            let timeout = Duration::from_micros(1_300);
            let start = Instant::now();
            poll.wait(&mut Events::new(), Some(timeout)).unwrap();
            assert!(start.elapsed() >= timeout);
        }
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
