//! Namespaces: make them, enter them, give a user namespace its ids.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::ops::BitOr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::call;

/// A set of kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces(libc::c_int);

impl Namespaces {
    /// User and group ids, capabilities.
    pub const USER: Self = Self(libc::CLONE_NEWUSER);
    /// Links, addresses, routes, sockets.
    pub const NETWORK: Self = Self(libc::CLONE_NEWNET);
    /// Mounts.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS);
    /// Process ids; holds for children only.
    pub const PID: Self = Self(libc::CLONE_NEWPID);
    /// System V and POSIX message queues, semaphores, shared memory.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC);
    /// Host name.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS);
    /// All that an instance has of its own.
    pub const INSTANCE: Self = Self(
        libc::CLONE_NEWUSER
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS,
    );
}

impl BitOr for Namespaces {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Moves the calling thread into new namespaces; its next child, for [`Namespaces::PID`].
///
/// # Errors
/// `EPERM`, `EACCES`: not permitted; `ENOSPC`, `EUSERS`: too many namespaces; `EINVAL`: a user
/// namespace was asked for in a process with several threads, or the kernel lacks a kind.
pub fn unshare(kinds: Namespaces) -> io::Result<()> {
    // SAFETY: no pointers. A new mount namespace also stops sharing the working folder and the
    // root with other threads, which breaks no memory.
    call::check(unsafe { libc::unshare(kinds.0) }).map(drop)
}

/// Moves the calling thread into the namespaces that a process is in; its next child, for
/// [`Namespaces::PID`].
///
/// # Errors
/// `EPERM`: not permitted; `ESRCH`: the process is dead; `EINVAL`: several threads.
pub fn enter(process: BorrowedFd<'_>, kinds: Namespaces) -> io::Result<()> {
    // SAFETY: no pointers; see `unshare`.
    call::check(unsafe { libc::setns(process.as_raw_fd(), kinds.0) }).map(drop)
}

/// The user namespace whose capabilities count in a namespace, given by its file.
///
/// # Errors
/// `EPERM`: it is none of the caller's own, nor of one that was made in that.
pub fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `NS_GET_USERNS` of ioctl_nsfs(2), which the kernel numbers itself.
    const GET_OWNER: u32 = 0xb701;
    // SAFETY: no pointers; the call returns a new descriptor.
    call::own(unsafe { libc::ioctl(namespace.as_raw_fd(), GET_OWNER as _) })
}

/// Runs `work` on a thread of its own that is in the namespaces which `holder` stands for: a
/// process, or the file of one namespace. The calling thread stays where it is.
///
/// # Errors
/// As [`enter`]; `EAGAIN`: no thread can be made.
pub fn within<T: Send>(
    holder: BorrowedFd<'_>,
    kinds: Namespaces,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    apart(|| enter(holder, kinds).map(|()| work()))
}

/// Runs `work` on a thread of its own in new namespaces. They go when nothing made in `work`
/// holds them any more. The calling thread stays where it is.
///
/// # Errors
/// As [`unshare`]; `EAGAIN`: no thread can be made.
pub fn within_new<T: Send>(kinds: Namespaces, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    apart(|| unshare(kinds).map(|()| work()))
}

/// Runs `work` on a thread of its own and waits for it.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sets the host name of the calling thread's UTS namespace.
///
/// # Errors
/// `EPERM`: the namespace is not ours; `EINVAL`: longer than 64 bytes.
pub fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and length describe `name`, which the kernel only reads.
    call::check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// The id maps of a new user namespace, in the text form of user_namespaces(7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    users: String,
    groups: String,
    /// Whether setgroups(2) must be forbidden, as the kernel wants it for unprivileged maps.
    deny_setgroups: bool,
}

impl IdMaps {
    /// Every id that the calling process has, each mapped to itself. Needs `CAP_SETUID` and
    /// `CAP_SETGID` to be written.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn every() -> io::Result<Self> {
        Ok(Self {
            users: identity(&fs::read_to_string("/proc/self/uid_map")?),
            groups: identity(&fs::read_to_string("/proc/self/gid_map")?),
            deny_setgroups: false,
        })
    }

    /// The calling process's own user and group, each mapped to itself. Needs no privilege.
    #[must_use]
    pub fn own() -> Self {
        let (user, group) = (crate::process::effective_user(), crate::process::effective_group());
        Self {
            users: format!("{user} {user} 1\n"),
            groups: format!("{group} {group} 1\n"),
            deny_setgroups: true,
        }
    }

    /// Gives them to the user namespace that process `pid` has just made.
    ///
    /// # Errors
    /// `EPERM`: not permitted, or already done; `NotFound`: no such process.
    pub fn write(&self, pid: u32) -> io::Result<()> {
        if self.deny_setgroups {
            fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        }
        fs::write(format!("/proc/{pid}/uid_map"), &self.users)?;
        fs::write(format!("/proc/{pid}/gid_map"), &self.groups)
    }
}

/// Turns a map as `/proc/self/uid_map` shows it into one that maps each inner id to itself.
fn identity(map: &str) -> String {
    map.lines().fold(String::new(), |mut text, line| {
        let mut words = line.split_whitespace();
        if let (Some(first), Some(_), Some(count)) = (words.next(), words.next(), words.next()) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{first} {first} {count}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_a_map_has_its_inner_ids_on_both_sides() {
        assert_eq!(identity("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(identity("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
        assert_eq!(identity("nonsense\n"), "");
    }

    #[test]
    fn a_thread_of_many_cannot_have_a_user_namespace() {
        // The test harness has threads; what matters is that the error arrives.
        std::thread::spawn(|| assert!(unshare(Namespaces::USER).is_err())).join().unwrap();
    }
}
