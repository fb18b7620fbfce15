//! `exec`: another program inside a running instance.

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use netyard_sys::namespace::{self, Namespaces};
use netyard_sys::process::{self, Launch, PidFd, Session, Signals};
use netyard_sys::wait;

use super::init::BOUNDING;
use super::{program, signal, terminal};
use crate::error::{ErrorKind, YardError};

/// What is to be run, and how it is connected to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOptions {
    /// The instance's name, for errors.
    pub instance: String,
    /// The host's process id of the instance's init.
    pub init_pid: u32,
    /// Program and arguments; looked up like an instance's program.
    pub argv: Vec<String>,
    /// Whether it reads our standard input; otherwise it reads nothing.
    pub input: bool,
    /// Whether it has a terminal of its own, shown on ours.
    pub terminal: bool,
}

/// Runs a program in the namespaces of an instance, without capabilities, and waits for its end;
/// its exit code, 128 + signal if a signal ended it. It ends with us and with the instance.
///
/// Must be called while the process has one thread: the kernel lets no other into a user
/// namespace. From then on the process can start none: its children are born in another PID
/// namespace, and threads cannot be.
///
/// # Errors
/// The instance is gone; [`ErrorKind::NoProgram`], [`ErrorKind::NotExecutable`].
pub fn exec(options: &ExecOptions) -> Result<ExitCode, YardError> {
    let name = options
        .argv
        .first()
        .ok_or_else(|| YardError::new(ErrorKind::Input, "run a program", "none is given"))?;
    let wanted = || format!("run {name} in instance {}", options.instance);
    let failed = |error: io::Error| YardError::io(wanted(), &error);
    let gone = |_| YardError::new(ErrorKind::Conflict, wanted(), "the instance has just ended");
    let cwd = env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let path = program::find(name, &[], &cwd)?;
    let mut command = Command::new(&path);
    command.arg0(name).args(options.argv.iter().skip(1)).current_dir(&cwd);
    command.env("PATH", program::search_path(&[]));

    let init = PidFd::open(options.init_pid).map_err(gone)?;
    let pty = if options.terminal { Some(terminal::open().map_err(failed)?) } else { None };
    let signals = Signals::take(&WATCHED).map_err(failed)?;
    namespace::enter(init.as_fd(), Namespaces::INSTANCE).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => failed(error)
            .next("the instance belongs to another user: run this command as that user"),
        _ => gone(error),
    })?;
    if !cwd.is_dir() {
        let found = format!("the instance does not see the folder {}", cwd.display());
        return Err(YardError::new(ErrorKind::Unknown, wanted(), found)
            .next("run the command from another folder"));
    }
    let session = if options.terminal { Session::Terminal } else { Session::Ours };
    let launch = Launch { session, bounding: BOUNDING, die_with_us: true };
    if let Some(pty) = &pty {
        let terminal = || pty.terminal.try_clone().map(Stdio::from).map_err(failed);
        command.stdin(terminal()?).stdout(terminal()?).stderr(terminal()?);
    } else if !options.input {
        command.stdin(Stdio::null());
    }
    let child = launch.spawn(&mut command).map_err(|error| {
        let path = path.display().to_string();
        program::not_started(wanted(), &path, error.raw_os_error(), &error.to_string())
    })?;
    let code = match pty {
        Some(pty) => terminal::carry(pty, child, &signals, options.input),
        None => with_our_stdio(child, &signals),
    };
    code.map(ExitCode::from).map_err(failed)
}

/// The signals that are for the program.
const WATCHED: [i32; 6] = [
    signal::CHILD_ENDED,
    signal::HANGUP,
    signal::INTERRUPT,
    signal::QUIT,
    signal::TERMINATE,
    signal::SIZE_CHANGED,
];

/// Waits for a program that has our standard input, output and error.
fn with_our_stdio(mut child: Child, signals: &Signals) -> io::Result<u8> {
    loop {
        wait::readable([signals.as_fd()], None)?;
        while let Some(signal) = signals.next()? {
            match signal.number {
                signal::CHILD_ENDED => {
                    if let Some(code) = exit_code(&mut child)? {
                        return Ok(code);
                    }
                }
                // Our terminal's: it sends these to the program too.
                signal::INTERRUPT | signal::QUIT | signal::SIZE_CHANGED if signal.by_kernel => {}
                number => pass_on(&child, number),
            }
        }
    }
}

/// The exit code of a program that has ended; 128 + signal if a signal ended it.
pub(super) fn exit_code(program: &mut Child) -> io::Result<Option<u8>> {
    Ok(program.try_wait()?.map(|status| {
        let code = status.code().or_else(|| status.signal().map(|signal| signal + 128));
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
    }))
}

/// Passes a signal on to the program.
pub(super) fn pass_on(program: &Child, signal: i32) {
    if let Ok(pid) = i32::try_from(program.id()) {
        // It may have ended in this moment.
        let _ = process::kill(pid, signal);
    }
}
