//! Capabilities of the calling thread: see them, give them up.

use std::io;
use std::ops::BitOr;

use crate::call;

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None.
    pub const NONE: Self = Self(0);
    /// May bind ports below `ip_unprivileged_port_start`.
    pub const NET_BIND_SERVICE: Self = Self(1 << 10);
    /// May change links, addresses, routes and rules.
    pub const NET_ADMIN: Self = Self(1 << 12);
    /// May open raw and packet sockets.
    pub const NET_RAW: Self = Self(1 << 13);

    /// May enter namespaces and make them, among much else.
    pub const SYS_ADMIN: Self = Self(1 << 21);

    /// True when every capability of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are in one set or the other.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    const fn has(self, number: u32) -> bool {
        self.0 >> number & 1 == 1
    }

    /// The low and high words, as capget(2) and capset(2) carry them.
    const fn words(self) -> [u32; 2] {
        let [a, b, c, d, e, f, g, h] = self.0.to_le_bytes();
        [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
    }

    fn from_words(low: u32, high: u32) -> Self {
        Self(u64::from(low) | u64::from(high) << 32)
    }
}

impl BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`; version 3 has two of them, low words first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

/// One more than the highest capability number that any kernel may have (two 32-bit words).
const NUMBERS: u32 = 64;

/// `SECBIT_NOROOT` and its lock: programs get no capabilities for being executed by user 0.
const NO_ROOT: libc::c_ulong = 0b11;

/// What the calling thread may use or switch on (its permitted set).
///
/// # Errors
/// What the kernel said.
pub fn permitted() -> io::Result<Capabilities> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: capget reads the header and writes two data structures, which `data` has room for.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    check(result)?;
    let [low, high] = data;
    Ok(Capabilities::from_words(low.permitted, high.permitted))
}

/// Gives up for good every capability that is not in `keep`, of this thread and of every program
/// that it executes: bounding, ambient, inheritable, permitted and effective sets.
///
/// `bounding` stays reachable for programs that the thread executes, by their file capabilities.
/// (The kernel refuses to execute a program whose file capabilities are outside of the bounding
/// set.) Being user 0 means nothing any more.
///
/// # Errors
/// What the kernel said; some may be gone already.
pub fn limit(keep: Capabilities, bounding: Capabilities) -> io::Result<()> {
    // SAFETY: no pointers.
    match call::check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NO_ROOT, 0, 0, 0) }) {
        // Without CAP_SETPCAP we are not the user 0 of our user namespace, or it means nothing.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        result => result.map(drop)?,
    }
    for number in (0..NUMBERS).filter(|number| !(keep | bounding).has(*number)) {
        // SAFETY: no pointers.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
        if known != 1 {
            continue; // Gone already, or a number that this kernel does not have.
        }
        // SAFETY: no pointers.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
        match call::check(dropped) {
            // Without CAP_SETPCAP the bounding set stays, and means nothing: an unprivileged
            // thread had that bounding set before us.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
            result => result.map(drop)?,
        }
    }
    // SAFETY: no pointers.
    call::check(unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    })?;
    let [low, high] = permitted()?.and(keep).words();
    let data = [low, high].map(|word| Data { effective: word, permitted: word, inheritable: 0 });
    let mut header = Header { version: VERSION, pid: 0 };
    // SAFETY: capset reads the header and two data structures.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    check(result)
}

/// The result of a raw system call that returns nothing else.
fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line such as `CapEff:` of this thread's status.
    fn status(field: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    }

    #[test]
    fn what_is_given_up_is_gone_from_every_set() {
        // In a thread of its own: capabilities belong to threads.
        std::thread::spawn(|| {
            let before = permitted().unwrap();
            assert_eq!(before.0, status("CapPrm"));
            limit(Capabilities::NET_BIND_SERVICE, Capabilities::NET_RAW).unwrap();
            let kept = before.and(Capabilities::NET_BIND_SERVICE);
            assert_eq!(permitted().unwrap(), kept);
            assert_eq!(status("CapEff"), kept.0);
            assert_eq!(status("CapInh"), 0);
            assert_eq!(status("CapAmb"), 0);
            if before != Capabilities::NONE {
                let both = Capabilities::NET_BIND_SERVICE | Capabilities::NET_RAW;
                assert!(both.contains(Capabilities(status("CapBnd"))));
            }
        })
        .join()
        .unwrap();
    }
}
