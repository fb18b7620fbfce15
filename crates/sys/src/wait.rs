//! Waiting for a handful of descriptors, where an epoll instance would be too much.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::call;

/// Waits until at least one descriptor can be read, has ended or has failed, or the time is
/// over. Says for each whether it did.
///
/// # Errors
/// What the kernel said; a signal only ends the wait early.
pub fn readable<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    within: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut wanted =
        descriptors.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let count = libc::nfds_t::try_from(N).map_err(|_| io::ErrorKind::InvalidInput)?;
    let timeout = within
        .map_or(-1, |within| i32::try_from(within.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    // SAFETY: the pointer and count describe `wanted`, which is ours to write.
    match call::check(unsafe { libc::poll(wanted.as_mut_ptr(), count, timeout) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        result => result.map(|_| wanted.map(|one| one.revents != 0)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
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
        assert_eq!(readable([a.as_fd(), b.as_fd()], None).unwrap(), [true, true]);
    }
}
