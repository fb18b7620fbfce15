//! Processes: clone, launch, watch, signal and reap them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;

use crate::call;
use crate::capability::{self, Capabilities};

/// The effective user id of this process.
#[must_use]
pub fn effective_user() -> u32 {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::geteuid() }
}

/// The real user id of this process: whoever started it, whatever its program file grants.
#[must_use]
pub fn real_user() -> u32 {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::getuid() }
}

/// The effective group id of this process.
#[must_use]
pub fn effective_group() -> u32 {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::getegid() }
}

/// Keeps the descriptors that this process was started with, but the standard three, from the
/// programs that it starts: whoever started us may hold pipes and locks open that are nobody
/// else's. Kernels before 5.11 cannot, and nothing changes there.
pub fn close_inherited_on_exec() {
    let first: libc::c_uint = 3;
    // SAFETY: no pointers; no descriptor is closed.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// From the status of wait(2); `None` if the process has not ended.
    fn from_status(status: libc::c_int) -> Option<Self> {
        if libc::WIFEXITED(status) {
            Some(Self::Code(libc::WEXITSTATUS(status)))
        } else if libc::WIFSIGNALED(status) {
            Some(Self::Signal(libc::WTERMSIG(status)))
        } else {
            None
        }
    }
}

/// A process held by a descriptor: its number cannot come to mean another one. The descriptor is
/// readable once the process has ended.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// Holds the process that has this number now.
    ///
    /// # Errors
    /// `ESRCH`: there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = number(pid)?;
        // SAFETY: no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = libc::c_int::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        call::own(fd).map(|fd| Self { fd })
    }

    /// Its number as this process sees it; `None` once it has been reaped.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn pid(&self) -> io::Result<Option<u32>> {
        let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let info = std::fs::read_to_string(path)?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        // -1: reaped; 0: not visible from here.
        Ok(pid.and_then(|pid| pid.trim().parse().ok()).filter(|pid| *pid != 0))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// `ESRCH`: it has ended and was reaped; `EPERM`.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let null = ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo asks for that of kill(2).
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), signal, null, 0)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reaps it if it is our child and has ended; `None` while it runs.
    ///
    /// # Errors
    /// `ECHILD`: not our child, or reaped already.
    pub fn reap(&self) -> io::Result<Option<Exit>> {
        let id =
            libc::id_t::try_from(self.fd.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: siginfo_t holds integers and unions of them; all zeros is a valid value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG;
        // SAFETY: waitid writes one siginfo_t, which outlives the call.
        call::check(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, options) })?;
        // SAFETY: waitid fills in the fields of SIGCHLD, or leaves our zeros.
        let pid = unsafe { info.si_pid() };
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        Ok(match (pid, info.si_code) {
            (0, _) => None,
            (_, libc::CLD_EXITED) => Some(Exit::Code(status)),
            _ => Some(Exit::Signal(status)),
        })
    }
}

impl From<OwnedFd> for PidFd {
    /// Adopts a descriptor that another process has opened.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// Which of the two processes returned from [`clone_sibling`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloned {
    /// The caller; the new process has this number.
    Caller(u32),
    /// The new process.
    New,
}

/// Makes a copy of this process whose parent is this process's own parent.
///
/// # Errors
/// `InvalidInput`: this process has several threads (a copy of one of them would find the locks
/// of the others closed for ever); `EAGAIN`, `ENOSPC`: too many processes.
pub fn clone_sibling() -> io::Result<Cloned> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a process with several threads cannot be copied",
        ));
    }
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without CLONE_VM the new process has a copy of our memory and goes on on a copy of
    // this stack, as after fork(2); there is no other thread whose state could be lost.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match u32::try_from(result) {
        Ok(0) => Ok(Cloned::New),
        Ok(pid) => Ok(Cloned::Caller(pid)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel kill the calling process when the thread that started it ends.
///
/// That thread may have ended already: check afterwards that it is still there.
///
/// # Errors
/// What the kernel said.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: no pointers.
    call::check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// Never gains privileges by executing a set-user-id program.
///
/// # Errors
/// What the kernel said.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no pointers.
    call::check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Forbids other processes of this user to trace this one and to read its memory.
///
/// # Errors
/// What the kernel said.
pub fn forbid_tracing() -> io::Result<()> {
    // SAFETY: no pointers.
    call::check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Takes all signals in this thread, whatever whoever started the program has blocked.
///
/// # Errors
/// What the kernel said.
pub fn unblock_signals() -> io::Result<()> {
    let none = signal_set(&[])?;
    // SAFETY: reads `none`; a null pointer says that the old mask is not wanted.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    Ok(())
}

/// What a launched program gets of terminals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Stays in ours, with our terminal and its Ctrl-C.
    Ours,
    /// One of its own, without a terminal.
    Own,
    /// One of its own; its standard input is its terminal.
    Terminal,
}

/// How to launch a program.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// What it gets of terminals.
    pub session: Session,
    /// The capabilities that file capabilities can give it; it starts with none.
    pub bounding: Capabilities,
    /// Whether it is killed when the calling thread ends.
    pub die_with_us: bool,
}

impl Launch {
    /// Starts `command` this way. The caller reaps it.
    ///
    /// # Errors
    /// What the kernel said of the first step that failed; `NotFound`: no such program.
    pub fn spawn(self, command: &mut Command) -> io::Result<Child> {
        // SAFETY: between fork and exec only system calls are made: no memory is allocated and no
        // lock is taken.
        unsafe { command.pre_exec(move || self.prepare()) };
        command.spawn()
    }

    /// Runs in the new process.
    fn prepare(self) -> io::Result<()> {
        unblock_signals()?;
        if self.session != Session::Ours {
            // SAFETY: no pointers.
            call::check(unsafe { libc::setsid() })?;
        }
        if self.session == Session::Terminal {
            // SAFETY: TIOCSCTTY takes its argument by value.
            call::check(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) })?;
        }
        capability::limit(Capabilities::NONE, self.bounding)?;
        if self.die_with_us {
            // Last: a change of credentials takes the wish back.
            die_with_parent()?;
        }
        Ok(())
    }
}

/// A copy of the descriptor with this number, which whoever started this program has opened for it.
///
/// # Errors
/// `EBADF`: there is none.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a number that is no descriptor is an error of the call.
    call::own(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })
}

/// The same, and nothing is left under its number: whoever waits for its end sees it when the copy goes.
///
/// # Errors
/// As [`inherited`]; `InvalidInput`: a standard descriptor.
pub fn take_inherited(number: i32) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let copy = inherited(number)?;
    // SAFETY: whoever started this program opened the number for it: nothing here owns it.
    call::check(unsafe { libc::close(number) })?;
    Ok(copy)
}

/// The same descriptor under this number.
///
/// # Errors
/// `AlreadyExists`: something else has the number; `EINVAL`: there are no such numbers.
pub fn renumber(descriptor: OwnedFd, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is ours.
    let renumbered =
        call::own(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) })?;
    if renumbered.as_raw_fd() == number {
        Ok(renumbered)
    } else {
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// Lets the program that `command` starts have these descriptors, under the numbers that they have
/// here.
pub fn inherit(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let share = move || {
        for descriptor in &descriptors {
            // SAFETY: no pointers; changes the new process's copy only.
            call::check(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made: no memory is allocated and no
    // lock is taken.
    unsafe { command.pre_exec(share) };
}

/// Sends a signal to a process, or to a process group if `pid` is negative.
///
/// # Errors
/// `ESRCH`: there is none; `EPERM`.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    call::check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Reaps any child that has ended: its number and how it ended. `None`: none has, or there are
/// no children.
///
/// # Errors
/// What the kernel said.
pub fn reap_any() -> io::Result<Option<(u32, Exit)>> {
    let mut status = 0;
    // SAFETY: waitpid writes one int, which outlives the call.
    match call::check(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        Err(error) => Err(error),
        Ok(pid) => Ok(match (u32::try_from(pid), Exit::from_status(status)) {
            (Ok(pid @ 1..), Some(exit)) => Some((pid, exit)),
            _ => None,
        }),
    }
}

/// Waits until any child has ended, and reaps it.
///
/// # Errors
/// `ECHILD`: there is no child.
pub fn wait_any() -> io::Result<(u32, Exit)> {
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes one int, which outlives the call.
        let waited = call::check(unsafe { libc::waitpid(-1, &raw mut status, 0) });
        match waited.map(u32::try_from) {
            Ok(Ok(pid)) => {
                if let Some(exit) = Exit::from_status(status) {
                    return Ok((pid, exit));
                }
            }
            Ok(Err(_)) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether this process has children, ended ones among them.
///
/// # Errors
/// What the kernel said.
pub fn has_children() -> io::Result<bool> {
    // SAFETY: siginfo_t holds integers and unions of them; all zeros is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: waitid writes one siginfo_t, which outlives the call.
    match call::check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// Whether the kernel sent it of itself, as it does for the keys of a terminal; otherwise a
    /// process did.
    pub by_kernel: bool,
}

/// Signals that are read from a descriptor instead of interrupting the process.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Takes over these signals of the calling thread. Programs that it starts with [`Launch`]
    /// begin with no signal blocked; with [`Command`] alone they would not get these.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn take(signals: &[i32]) -> io::Result<Self> {
        let set = signal_set(signals)?;
        // SAFETY: reads `set`; a null pointer says that the old mask is not wanted.
        let blocked =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: reads `set`, which outlives the call.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        call::own(fd).map(|fd| Self { fd })
    }

    /// The next signal that came, if any.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        // SAFETY: signalfd_siginfo holds integers only; all zeros is a valid value.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the pointer and size describe `info`, which is ours to write.
        let read = call::check_len(unsafe {
            libc::read(self.fd.as_raw_fd(), (&raw mut info).cast(), size)
        });
        match read {
            Ok(_) => Ok(i32::try_from(info.ssi_signo)
                .ok()
                .map(|number| Signal { number, by_kernel: info.ssi_code == libc::SI_KERNEL })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn signal_set(signals: &[i32]) -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is an array of integers; sigemptyset then gives it its empty value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` outlives the call.
    call::check(unsafe { libc::sigemptyset(&raw mut set) })?;
    for signal in signals {
        // SAFETY: `set` outlives the call.
        call::check(unsafe { libc::sigaddset(&raw mut set, *signal) })?;
    }
    Ok(set)
}

fn number(pid: u32) -> io::Result<libc::pid_t> {
    libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use super::*;
    use crate::wait;

    #[test]
    #[expect(clippy::zombie_processes, reason = "reaped by descriptor")]
    fn the_end_of_a_process_is_seen_at_once_and_reaped() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let held = PidFd::open(child.id()).unwrap();
        assert_eq!(held.pid().unwrap(), Some(child.id()));
        assert_eq!(held.reap().unwrap(), None);
        drop(child.stdin.take());
        assert_eq!(wait::readable([held.as_fd()], Some(Duration::from_secs(10))).unwrap(), [true]);
        assert_eq!(held.reap().unwrap(), Some(Exit::Code(0)));
        assert!(held.reap().is_err(), "only once");
        assert_eq!(held.pid().unwrap(), None);
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "reaped by descriptor")]
    fn a_killed_process_says_by_what() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let held = PidFd::open(child.id()).unwrap();
        held.signal(libc::SIGKILL).unwrap();
        wait::readable([held.as_fd()], Some(Duration::from_secs(10))).unwrap();
        assert_eq!(held.reap().unwrap(), Some(Exit::Signal(libc::SIGKILL)));
    }

    #[test]
    fn launched_programs_start_without_capabilities_in_their_own_session() {
        let launch =
            Launch { session: Session::Own, bounding: Capabilities::NONE, die_with_us: true };
        let mut command = Command::new("sh");
        command.args(["-c", "grep CapEff /proc/self/status; cut -d' ' -f6 /proc/$$/stat; echo $$"]);
        command.stdout(std::process::Stdio::piped());
        let child = launch.spawn(&mut command).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("CapEff:\t0000000000000000"));
        assert_eq!(lines.next(), lines.next(), "the session is the program's own");
    }

    #[test]
    fn launched_programs_get_the_signals_that_we_took() {
        std::thread::spawn(|| {
            let _signals = Signals::take(&[libc::SIGTERM]).unwrap();
            let launch =
                Launch { session: Session::Own, bounding: Capabilities::NONE, die_with_us: true };
            let mut child = launch.spawn(Command::new("sleep").arg("60")).unwrap();
            PidFd::open(child.id()).unwrap().signal(libc::SIGTERM).unwrap();
            let status = child.wait().unwrap();
            assert_eq!(status.signal(), Some(libc::SIGTERM));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_missing_program_is_an_error_of_the_launch() {
        let launch =
            Launch { session: Session::Ours, bounding: Capabilities::NONE, die_with_us: false };
        let error = launch.spawn(&mut Command::new("/no/such/program")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn signals_are_read_in_turn() {
        std::thread::spawn(|| {
            let signals = Signals::take(&[libc::SIGUSR1]).unwrap();
            assert_eq!(signals.next().unwrap(), None);
            // SAFETY: no pointers.
            let thread = unsafe { libc::pthread_self() };
            // SAFETY: the thread is this one; the signal is blocked in it and goes to it alone.
            call::check(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }).unwrap();
            let signal = Signal { number: libc::SIGUSR1, by_kernel: false };
            assert_eq!(signals.next().unwrap(), Some(signal));
            assert_eq!(signals.next().unwrap(), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_process_with_threads_is_not_copied() {
        let error = std::thread::spawn(clone_sibling).join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
