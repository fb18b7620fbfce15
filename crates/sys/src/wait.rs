//! Waiting for a handful of descriptors, where an epoll instance would be too much.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::call;

/// What to be told of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing: it is not looked at, not even for its end.
    Nothing,
    /// That nobody is at the other end any more.
    End,
    /// That the other end sends nothing more (`POLLRDHUP`), whatever it has sent; told as an end.
    ReadClosed,
    /// That it can be read, or has ended.
    Read,
    /// That it can be written to, or has ended.
    Write,
    /// Both.
    ReadOrWrite,
}

/// What a descriptor is ready for; nothing that was not wanted, its end aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// There is something to read.
    pub read: bool,
    /// There is room to write: a page in a pipe, at least a byte elsewhere.
    pub write: bool,
    /// It has failed or nobody is at the other end (`POLLERR`, `POLLHUP`); or no more comes, where that is wanted.
    pub ended: bool,
}

/// Waits until at least one descriptor is ready for what is wanted of it, or the time is over.
/// Takes what epoll does not: regular files are always ready.
///
/// # Errors
/// What the kernel said; a signal only ends the wait early.
pub fn ready<const N: usize>(
    wanted: [(BorrowedFd<'_>, Want); N],
    within: Option<Duration>,
) -> io::Result<[Ready; N]> {
    let mut list = wanted.map(|(fd, want)| {
        let events = match want {
            Want::Nothing | Want::End => 0,
            Want::ReadClosed => libc::POLLRDHUP,
            Want::Read => libc::POLLIN,
            Want::Write => libc::POLLOUT,
            Want::ReadOrWrite => libc::POLLIN | libc::POLLOUT,
        };
        // poll(2) passes over negative numbers.
        let fd = if want == Want::Nothing { -1 } else { fd.as_raw_fd() };
        libc::pollfd { fd, events, revents: 0 }
    });
    let count = libc::nfds_t::try_from(N).map_err(|_| io::ErrorKind::InvalidInput)?;
    let timeout = within
        .map_or(-1, |within| i32::try_from(within.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    // SAFETY: the pointer and count describe `list`, which is ours to write.
    match call::check(unsafe { libc::poll(list.as_mut_ptr(), count, timeout) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            list.iter_mut().for_each(|one| one.revents = 0);
        }
        result => {
            result?;
        }
    }
    Ok(list.map(|one| Ready {
        read: one.revents & libc::POLLIN != 0,
        write: one.revents & libc::POLLOUT != 0,
        ended: one.revents & !(libc::POLLIN | libc::POLLOUT) != 0,
    }))
}

/// Waits until at least one descriptor can be read, has ended or has failed, or the time is
/// over. Says for each whether it did.
///
/// # Errors
/// What the kernel said; a signal only ends the wait early.
pub fn readable<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    within: Option<Duration>,
) -> io::Result<[bool; N]> {
    let ready = ready(descriptors.map(|fd| (fd, Want::Read)), within)?;
    Ok(ready.map(|one| one.read || one.ended))
}

/// Waits until nobody has the other end of a connection open. A program that another test starts has a copy of
/// every descriptor of this process until it runs: what was dropped may be open for a while after that.
#[cfg(test)]
pub(crate) fn gone(connection: BorrowedFd<'_>) {
    ready([(connection, Want::End)], None).unwrap();
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn data_and_ends_are_seen_and_time_runs_out() {
        let (a, mut a_far) = UnixStream::pair().unwrap();
        let (b, b_far) = UnixStream::pair().unwrap();
        let soon = Some(Duration::from_millis(1));
        assert_eq!(readable([a.as_fd(), b.as_fd()], soon).unwrap(), [false, false]);
        a_far.write_all(b"x").unwrap();
        assert_eq!(readable([a.as_fd(), b.as_fd()], None).unwrap(), [true, false]);
        drop(b_far);
        gone(b.as_fd());
        assert_eq!(readable([a.as_fd(), b.as_fd()], None).unwrap(), [true, true]);
    }

    #[test]
    fn only_what_is_wanted_is_told() {
        let (a, mut a_far) = UnixStream::pair().unwrap();
        let soon = Some(Duration::from_millis(1));
        a_far.write_all(b"x").unwrap();
        let told = |want, within| ready([(a.as_fd(), want)], within).unwrap();
        let nothing = Ready { read: false, write: false, ended: false };
        assert_eq!(told(Want::Nothing, soon), [nothing]);
        assert_eq!(told(Want::End, soon), [nothing]);
        assert_eq!(told(Want::Read, None), [Ready { read: true, ..nothing }]);
        assert_eq!(told(Want::Write, None), [Ready { write: true, ..nothing }]);
        assert_eq!(
            told(Want::ReadOrWrite, None),
            [Ready { read: true, write: true, ended: false }]
        );
        assert_eq!(told(Want::ReadClosed, soon), [nothing]);
        a_far.shutdown(Shutdown::Write).unwrap();
        assert_eq!(told(Want::ReadClosed, None), [Ready { ended: true, ..nothing }]);
        assert_eq!(told(Want::End, soon), [nothing]);
        drop(a_far);
        assert_eq!(told(Want::End, None), [Ready { ended: true, ..nothing }]);
        assert_eq!(told(Want::Nothing, soon), [nothing]);
    }

    #[test]
    fn a_file_is_always_ready() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let [ready] = ready([(file.as_fd(), Want::Read)], None).unwrap();
        assert!(ready.read && !ready.ended);
    }
}
