//! What a network process in user mode may still do, once it is made: its duties, and nothing else.
//!
//! # Theory of operation
//!
//! It reads what guests and strangers send, so a mistake in it must not become a way into the host. Two
//! fences of the kernel stand behind it, and hold for all threads that it starts from then on:
//!
//! - **Landlock** (landlock(7)): of the file system it reads `/etc`, where else resolvers are written down,
//!   and what it removes when it ends; nothing can be written, and it signals nobody outside of itself.
//! - **seccomp** (seccomp(2)): of the system calls it has those of the list below, some with a part of their
//!   arguments. The others answer ENOSYS, as if this were a kernel without them: the standard library
//!   then does without, or reports an error. No program can be started, no namespace entered, no
//!   other process looked at or connected to.
//!
//! A kernel without one of the two is said so in the log, and the other one stands alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// The kernel interface that is asked for; of an older one what it has.
const LANDLOCK: ABI = ABI::V6;

/// Where resolvers are written down, and where the programs live that `/etc/resolv.conf` may be a link to.
const RESOLVERS: [&str; 6] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/netconfig",
    "/run/connman",
];

/// Folders that hold much else: of these only the file itself is opened.
const SHARED: [&str; 4] = ["/", "/run", "/tmp", "/var/run"];

/// Opened to have a descriptor in reserve.
const NULL: &str = "/dev/null";

/// Locks this process in; `folder` is the network's, which it removes when it ends.
///
/// To be called while it has one thread, and may not gain privileges.
pub(super) fn lock_down(folder: &Path) {
    match restrict_files(folder) {
        Ok(RulesetStatus::NotEnforced) => {
            tracing::warn!("this kernel has no Landlock: the network's process may open files");
        }
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => {}
        Err(error) => tracing::warn!(%error, "the network's process may open files"),
    }
    if let Err(error) = restrict_calls() {
        tracing::warn!(%error, "the network's process may use all system calls");
    }
}

fn restrict_files(folder: &Path) -> Result<RulesetStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let remove = AccessFs::RemoveFile | AccessFs::ReadFile;
    let resolvers = RESOLVERS.map(PathBuf::from).into_iter();
    // Where the file is a link to today.
    let target = Path::new("/etc/resolv.conf").canonicalize();
    let target = target.ok().and_then(|file| {
        let parent = file.parent()?.to_owned();
        let shared = SHARED.iter().any(|shared| parent == Path::new(shared));
        Some(if shared { (file, AccessFs::ReadFile.into()) } else { (parent, read) })
    });
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    let places = resolvers
        .map(|place| (place, read))
        .chain(target)
        .chain([(PathBuf::from(NULL), AccessFs::ReadFile.into())])
        .chain([(folder.to_owned(), remove)])
        // A folder is removed from the one that it is in; others there are not empty.
        .chain(folder.parent().map(|parent| (parent.to_owned(), AccessFs::RemoveDir.into())));
    for (place, access) in places {
        // What is not there needs no way in.
        if let Ok(opened) = PathFd::new(&place) {
            ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
        }
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

fn restrict_calls() -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter(&calls()?)
}

/// The program that judges a call.
fn calls() -> Result<BpfProgram, BackendError> {
    let free = CALLS.iter().map(|call| (*call, Vec::new()));
    let limited = limited()?;
    let rules: BTreeMap<i64, Vec<SeccompRule>> = free.chain(limited).collect();
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?.try_into()
}

// Requests of ioctl(2) that have a descriptor's events told by signals (asm-generic/ioctls.h, sockios.h).
const FIOASYNC: i64 = 0x5452;
const FIOSETOWN: i64 = 0x8901;
const SIOCSPGRP: i64 = 0x8902;

/// Calls of which an argument is looked at.
fn limited() -> Result<Vec<(i64, Vec<SeccompRule>)>, BackendError> {
    let is = |argument, values: &[i64]| {
        let values = values.iter().map(|value| {
            let value = value.cast_unsigned() & u64::from(u32::MAX);
            let one =
                SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
            SeccompRule::new(vec![one])
        });
        values.collect::<Result<Vec<_>, BackendError>>()
    };
    let word = |argument, operation, value: i64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value.cast_unsigned())
    };
    let equal = |argument, value: libc::c_int| word(argument, SeccompCmpOp::Eq, value.into());
    // No socket that could connect to another program's: those of pairs are connected already.
    let mut sockets = is(0, &[libc::AF_INET.into(), libc::AF_INET6.into()])?;
    sockets
        .push(SeccompRule::new(vec![equal(0, libc::AF_NETLINK)?, equal(2, libc::NETLINK_ROUTE)?])?);
    let pair = |kind: libc::c_int| {
        // Without the flags beside it.
        let kind = word(1, SeccompCmpOp::MaskedEq(0xf), kind.into())?;
        SeccompRule::new(vec![equal(0, libc::AF_UNIX)?, kind])
    };
    // No signals by what is open.
    let other = |request: i64| word(1, SeccompCmpOp::Ne, request);
    let requests = [FIOASYNC, FIOSETOWN, SIOCSPGRP].map(other);
    let requests = requests.into_iter().collect::<Result<Vec<_>, BackendError>>()?;
    let descriptors = [
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_GETPIPE_SZ,
        libc::F_SETPIPE_SZ,
        libc::F_ADD_SEALS,
    ];
    // A thread, and not a process.
    let thread = i64::from(libc::CLONE_THREAD).cast_unsigned();
    let thread =
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)?;
    // Nothing that is not code already becomes code.
    let executable = i64::from(libc::PROT_EXEC).cast_unsigned();
    let data =
        SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(executable), 0)?;
    let data = SeccompRule::new(vec![data])?;
    let own = i64::from(std::process::id());
    Ok(vec![
        (libc::SYS_socket, sockets),
        (libc::SYS_socketpair, vec![pair(libc::SOCK_STREAM)?, pair(libc::SOCK_SEQPACKET)?]),
        (libc::SYS_ioctl, vec![SeccompRule::new(requests)?]),
        (libc::SYS_fcntl, is(1, &descriptors.map(i64::from))?),
        (libc::SYS_clone, vec![SeccompRule::new(vec![thread])?]),
        (libc::SYS_mmap, vec![data.clone()]),
        (libc::SYS_mprotect, vec![data]),
        (libc::SYS_prctl, is(0, &[libc::PR_SET_NAME.into()])?),
        // Its own limits.
        (libc::SYS_prlimit64, is(0, &[0])?),
        // What `abort` does.
        (libc::SYS_tgkill, is(0, &[own])?),
    ])
}

/// Calls that are free. None of them takes a path that Landlock does not look at, or another process.
const CALLS: &[i64] = &[
    // Waiting, and time where the kernel's page for it cannot be used.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // Sockets.
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // What is open, whatever it is.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pipe2,
    libc::SYS_splice,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_close,
    // Files, as far as Landlock lets it.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_unlinkat,
    libc::SYS_getdents64,
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

    use std::fs;
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::process::Command;
    use std::thread;

    use netyard_sys::namespace::{self, Namespaces};

    use super::*;

    /// Both fences hold for the thread that makes them, and for those that it starts.
    fn inside(body: impl FnOnce() + Send + 'static) {
        thread::spawn(body).join().unwrap();
    }

    #[test]
    fn files_are_closed_but_for_resolvers_and_what_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("network");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("lock"), "").unwrap();
        let beside = place.path().join("of-another-network");
        fs::write(&beside, "").unwrap();
        inside(move || {
            if restrict_files(&folder).unwrap() == RulesetStatus::NotEnforced {
                return;
            }
            let refused = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
            assert!(fs::read("/etc/resolv.conf").is_ok_and(|file| !file.is_empty()));
            assert!(fs::File::open("/dev/null").is_ok());
            assert!(fs::read("/proc/self/environ").is_err_and(refused));
            assert!(fs::read_dir("/").is_err_and(refused));
            assert!(fs::write(folder.join("new"), "").is_err_and(refused));
            assert!(fs::remove_file(beside).is_err_and(refused));
            assert!(fs::write(folder.join("lock"), "").is_err_and(refused));
            assert!(Command::new("/bin/true").status().is_err_and(refused));
            assert!(
                thread::spawn(move || fs::read("/proc/version").is_err_and(refused))
                    .join()
                    .unwrap()
            );
            assert!(fs::File::open(folder.join("lock")).is_ok());
            fs::remove_file(folder.join("lock")).unwrap();
            fs::remove_dir(&folder).unwrap();
        });
    }

    #[test]
    fn calls_are_closed_but_for_packets_and_connections() {
        inside(|| {
            restrict_calls().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"!").unwrap();
            let (mut server, _) = listener.accept().unwrap();
            server.read_exact(&mut [0]).unwrap();
            UdpSocket::bind("[::1]:0").or_else(|_| UdpSocket::bind("127.0.0.1:0")).unwrap();
            UnixStream::pair().unwrap();
            assert!(UnixDatagram::pair().is_err() && UnixStream::connect("/dev/log").is_err());
            assert!(UnixListener::bind("/dev/netyard-test").is_err());
            // Addresses and interfaces of the host, by netlink and by name.
            assert!(netyard_sys::interface::addresses().is_ok());
            let server = netyard_sys::resolv_conf::servers("nameserver fe80::1%lo");
            assert_eq!(server, ["[fe80::1%1]:53".parse().unwrap()]);
            // Threads come and go, and use memory of their own.
            let sum =
                thread::spawn(|| vec![1_u8; 1 << 20].iter().map(|it| u32::from(*it)).sum::<u32>());
            assert_eq!(sum.join().unwrap(), 1 << 20);
            assert!(Command::new("/bin/true").status().is_err());
            assert!(netyard_sys::process::PidFd::open(1).is_err());
            let refused = |error: std::io::Error| error.raw_os_error() == Some(libc::ENOSYS);
            assert!(namespace::unshare(Namespaces::NETWORK).is_err_and(refused));
            assert!(fs::create_dir("/proc/nowhere").is_err_and(refused));
            assert!(fs::rename("/proc/nowhere", "/proc/elsewhere").is_err_and(refused));
        });
    }
}
