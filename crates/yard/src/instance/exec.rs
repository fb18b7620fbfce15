//! `exec`: another program inside a running instance.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use netyard_sys::namespace::{self, Namespaces};
use netyard_sys::process::{self, Launch, PidFd, Session, Signals};
use netyard_sys::pty::{self, Pty, RawMode};
use netyard_sys::wait;

use super::init::BOUNDING;
use super::{program, signal};
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
/// namespace.
///
/// # Errors
/// The instance is gone, there is no such program, it cannot be started.
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
    let mut command = Command::new(path);
    command.arg0(name).args(options.argv.iter().skip(1)).current_dir(cwd);
    command.env("PATH", program::search_path(&[]));

    let init = PidFd::open(options.init_pid).map_err(gone)?;
    let pty = if options.terminal { Some(Pty::open().map_err(failed)?) } else { None };
    let signals = Signals::take(&WATCHED).map_err(failed)?;
    namespace::enter(init.as_fd(), Namespaces::INSTANCE).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => failed(error)
            .next("the instance belongs to another user: run this command as that user"),
        _ => gone(error),
    })?;
    let session = if options.terminal { Session::Terminal } else { Session::Ours };
    let launch = Launch { session, bounding: BOUNDING, die_with_us: true };
    if let Some(pty) = &pty {
        let terminal = || pty.terminal.try_clone().map(Stdio::from).map_err(failed);
        command.stdin(terminal()?).stdout(terminal()?).stderr(terminal()?);
    } else if !options.input {
        command.stdin(Stdio::null());
    }
    let child = launch.spawn(&mut command).map_err(failed)?;
    // The command holds descriptors of the terminal, whose end we want to see.
    drop(command);
    let code = match pty {
        Some(Pty { controller, terminal }) => {
            drop(terminal);
            on_terminal(child, &signals, controller, options.input).map_err(failed)?
        }
        None => with_our_stdio(child, &signals).map_err(failed)?,
    };
    Ok(ExitCode::from(code))
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
        if let Some(code) = handle_signals(&mut child, signals, |_| {})? {
            return Ok(code);
        }
    }
}

/// Carries bytes between a program's terminal and ours until it ends.
fn on_terminal(
    mut child: Child,
    signals: &Signals,
    controller: OwnedFd,
    input: bool,
) -> io::Result<u8> {
    let stdin = io::stdin();
    // Raw, so that keys such as Ctrl-C reach the program's terminal. Without a terminal of our
    // own there is nothing to switch.
    let _raw = if input { RawMode::enter(&stdin).ok() } else { None };
    let follow_size = |_| {
        if let Ok(size) = pty::size(io::stdout().as_fd()).or_else(|_| pty::size(stdin.as_fd())) {
            // A terminal that has gone needs no size.
            let _ = pty::set_size(controller.as_fd(), size);
        }
    };
    follow_size(signal::SIZE_CHANGED);
    if input {
        let terminal = File::from(controller.try_clone()?);
        // Blocks in reads and writes, so it has a thread; it ends with the process.
        thread::spawn(move || carry_input(terminal));
    }
    let mut output = File::from(controller.try_clone()?);
    let mut open = true;
    loop {
        if !open {
            wait::readable([signals.as_fd()], None)?;
        } else {
            let [_, said] = wait::readable([signals.as_fd(), controller.as_fd()], None)?;
            if said {
                open = carry_output(&mut output);
            }
        }
        if let Some(code) = handle_signals(&mut child, signals, follow_size)? {
            // What it said last; what its leftover children may say later is not waited for.
            let at_once = Some(Duration::ZERO);
            while open && wait::readable([controller.as_fd()], at_once)? == [true] {
                open = carry_output(&mut output);
            }
            return Ok(code);
        }
    }
}

/// Copies our standard input to the program's terminal until either ends.
fn carry_input(mut terminal: File) {
    let mut buffer = [0; 4096];
    let mut stdin = io::stdin().lock();
    while let Ok(len @ 1..) = stdin.read(&mut buffer) {
        if terminal.write_all(buffer.get(..len).unwrap_or_default()).is_err() {
            return;
        }
    }
    /// `VEOF` of a terminal in its usual mode: the end of the input, typed.
    const CTRL_D: u8 = 4;
    if !stdin.is_terminal() {
        // The program's terminal may be gone.
        let _ = terminal.write_all(&[CTRL_D]);
    }
}

/// Copies what is there from the program's terminal to our standard output; false at its end.
fn carry_output(terminal: &mut File) -> bool {
    let mut buffer = [0; 16384];
    match terminal.read(&mut buffer) {
        // The kernel says EIO once nobody has the terminal open.
        Ok(0) | Err(_) => false,
        Ok(len) => {
            let mut stdout = io::stdout().lock();
            stdout
                .write_all(buffer.get(..len).unwrap_or_default())
                .and_then(|()| stdout.flush())
                .is_ok()
        }
    }
}

/// Passes signals on; the exit code once the program has ended.
fn handle_signals(
    child: &mut Child,
    signals: &Signals,
    mut size_changed: impl FnMut(i32),
) -> io::Result<Option<u8>> {
    let mut code = None;
    while let Some(signal) = signals.next()? {
        match signal {
            signal::CHILD_ENDED => {
                code = child.try_wait()?.map(|status| {
                    let code = status.code().or_else(|| status.signal().map(|it| it + 128));
                    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
                });
            }
            signal::SIZE_CHANGED => size_changed(signal),
            // The terminal sends these to the program too, unless it has its own terminal.
            signal::INTERRUPT | signal::QUIT if pty::is_foreground(io::stdin().as_fd()) => {}
            _ => {
                if let Ok(pid) = i32::try_from(child.id()) {
                    // It may have ended in this moment.
                    let _ = process::kill(pid, signal);
                }
            }
        }
    }
    Ok(code)
}
