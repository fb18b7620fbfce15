//! Becoming a process of its own that outlives its parent.

use std::io;

use crate::call;

/// Goes on in a copy of this process, in a session of its own, and ends the original with exit
/// code 0: whoever started and awaits the original goes on, and the copy belongs to the system.
///
/// # Errors
/// As [`require_one_thread`] (a copy of one of several would find the locks of the others closed for
/// ever); `EAGAIN`: too many processes.
pub fn detach() -> io::Result<()> {
    require_one_thread()?;
    // SAFETY: there is no other thread whose state could be lost in the copy.
    if call::check(unsafe { libc::fork() })? > 0 {
        // SAFETY: ends the process; nothing is unwound and no exit handler runs twice.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: no pointers.
    call::check(unsafe { libc::setsid() }).map(drop)
}

/// Refuses what holds for the calling thread alone, or copies it alone, to a process with others.
///
/// # Errors
/// `InvalidInput`: there are others.
pub fn require_one_thread() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() == 1 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "this process has several threads"))
}

/// Raises the number of descriptors that this process may open to the most it is allowed, which is
/// returned.
///
/// # Errors
/// What the kernel said.
pub fn raise_descriptor_limit() -> io::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call and is ours to write.
    call::check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` outlives the call, which only reads it.
    call::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}
