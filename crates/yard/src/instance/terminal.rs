//! The terminal of a program that `exec` runs, shown on ours.
//!
//! One loop on one thread: a process whose children are born in another PID namespace can have no
//! second thread (clone(2), `EINVAL`), so nothing here may wait for one side only. The controller
//! of the program's terminal never blocks. Our standard input and output stay as they are, because
//! other programs share them; they are read and written when poll(2) says that they are ready, one
//! piece at a time. Each direction holds one piece, and takes the next when it has passed that on:
//! a program that does not read holds up our input and nothing else.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use netyard_sys::poll;
use netyard_sys::process::Signals;
use netyard_sys::pty::{self, Pty, RawMode};
use netyard_sys::wait::{self, Want};

use super::exec::{exit_code, pass_on};
use super::signal;

/// Bytes carried at once: a pipe that is ready takes as much without blocking (`PIPE_BUF`).
const PIECE: usize = 4096;

/// Bytes carried after the program's end, several times what a terminal holds back (the kernel's
/// limit is 8 KiB and a line buffer of 4 KiB): what it said last is among them, and programs that
/// it left behind do not keep us for ever.
const LAST_WORDS: usize = 65_536;

/// How long a program that has lost its terminal may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A new terminal, as large as ours.
pub(super) fn open() -> io::Result<Pty> {
    let pty = Pty::open()?;
    poll::set_nonblocking(pty.controller.as_fd())?;
    follow_size(&pty.controller);
    Ok(pty)
}

/// Carries bytes between a program's terminal and ours until the program ends; its exit code.
/// When our side goes first, the program's terminal goes too.
pub(super) fn carry(
    pty: Pty,
    mut program: Child,
    signals: &Signals,
    input: bool,
) -> io::Result<u8> {
    let stdin = io::stdin();
    // Raw, so that keys such as Ctrl-C reach the program's terminal. Without a terminal of our
    // own there is nothing to switch.
    let raw = if input { RawMode::enter(&stdin).ok() } else { None };
    let end = Relay::new(pty, input)?.run(&mut program, signals)?;
    drop(raw);
    match end {
        End::Program(code) => Ok(code),
        End::OurSide => outlive(program, signals),
    }
}

/// Makes a program's terminal as large as ours.
fn follow_size(controller: &impl AsFd) {
    let ours = pty::size(io::stdout().as_fd()).or_else(|_| pty::size(io::stdin().as_fd()));
    if let Ok(size) = ours {
        // Of the wrong size it is still a terminal.
        let _ = pty::set_size(controller.as_fd(), size);
    }
}

/// Waits for the end of a program that has lost its terminal, which the kernel has told it by
/// `SIGHUP`.
fn outlive(mut program: Child, signals: &Signals) -> io::Result<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(code) = exit_code(&mut program)? {
            return Ok(code);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            program.kill()?;
            program.wait()?;
        } else {
            wait::readable([signals.as_fd()], Some(left))?;
            while signals.next()?.is_some() {}
        }
    }
}

/// What ended first.
enum End {
    /// The program, with this exit code; everything that it said is shown.
    Program(u8),
    /// Our terminal, or whoever read our output.
    OurSide,
}

/// The bytes on their way.
struct Relay {
    controller: File,
    /// Held so that the controller has an other side for as long as we look at it.
    terminal: OwnedFd,
    input: File,
    output: File,
    /// Whether there may be more input.
    open: bool,
    /// Whether the last line of the input is unfinished so far.
    unfinished: bool,
    /// From our input, not yet taken by the program's terminal.
    typed: Vec<u8>,
    /// From the program's terminal, not yet taken by our output.
    said: Vec<u8>,
}

impl Relay {
    fn new(Pty { controller, terminal }: Pty, input: bool) -> io::Result<Self> {
        Ok(Self {
            controller: controller.into(),
            terminal,
            // Not the standard library's own, which read ahead and write late.
            input: io::stdin().as_fd().try_clone_to_owned()?.into(),
            output: io::stdout().as_fd().try_clone_to_owned()?.into(),
            open: input,
            unfinished: false,
            typed: Vec::new(),
            said: Vec::new(),
        })
    }

    fn run(mut self, program: &mut Child, signals: &Signals) -> io::Result<End> {
        let mut ended = None;
        let mut last_words = LAST_WORDS;
        loop {
            if let Some(code) = ended
                && self.said.is_empty()
            {
                let len = read_piece(&mut self.controller, &mut self.said)?.unwrap_or_default();
                if len == 0 || last_words == 0 {
                    return Ok(End::Program(code));
                }
                last_words = last_words.saturating_sub(len);
            }
            let [signal, input, controller, output] = self.wait(signals, ended.is_some())?;
            if signal.read {
                while let Some(signal) = signals.next()? {
                    match (signal.number, ended) {
                        (signal::CHILD_ENDED, _) => ended = exit_code(program)?,
                        (signal::SIZE_CHANGED, _) => follow_size(&self.controller),
                        // Nobody is left to tell: it ends the wait for our output.
                        (_, Some(code)) => return Ok(End::Program(code)),
                        (signal::HANGUP, None) => return Ok(End::OurSide),
                        (number @ (signal::INTERRUPT | signal::QUIT), None) => {
                            // Nobody in the foreground is fine.
                            let _ = pty::send_signal(self.controller.as_fd(), number);
                        }
                        (number, None) => pass_on(program, number),
                    }
                }
            }
            let gone = output.ended
                || (output.write && !self.show()?)
                || ((input.read || input.ended) && !self.take_input()?);
            if gone {
                return Ok(ended.map_or(End::OurSide, End::Program));
            }
            if controller.write {
                pass_piece(&mut self.typed, &mut self.controller)?;
            }
            if controller.read {
                read_piece(&mut self.controller, &mut self.said)?;
            }
        }
    }

    /// Waits for a signal, or until bytes can go on in one direction.
    fn wait(&self, signals: &Signals, ended: bool) -> io::Result<[wait::Ready; 4]> {
        let input = self.open && self.typed.is_empty() && !ended;
        let controller = match (self.said.is_empty(), self.typed.is_empty()) {
            _ if ended => Want::Nothing,
            (true, true) => Want::Read,
            (true, false) => Want::ReadOrWrite,
            (false, false) => Want::Write,
            (false, true) => Want::Nothing,
        };
        let wanted = [
            (signals.as_fd(), Want::Read),
            (self.input.as_fd(), if input { Want::Read } else { Want::Nothing }),
            (self.controller.as_fd(), controller),
            (self.output.as_fd(), if self.said.is_empty() { Want::End } else { Want::Write }),
        ];
        wait::ready(wanted, None)
    }

    /// Takes a piece of our input, or its end; false if that is the end of our terminal.
    fn take_input(&mut self) -> io::Result<bool> {
        match read_piece(&mut self.input, &mut self.typed) {
            Ok(None) => {}
            Ok(Some(1..)) => self.unfinished = self.typed.last() != Some(&b'\n'),
            // A terminal in raw mode has no end but this.
            Ok(Some(0)) | Err(_) if self.input.is_terminal() => return Ok(false),
            Ok(Some(0)) | Err(_) => {
                self.open = false;
                if let Some(key) = pty::end_key(self.terminal.as_fd())? {
                    // The first one only hands over an unfinished line.
                    self.typed.extend(iter::repeat_n(key, 1 + usize::from(self.unfinished)));
                }
            }
        }
        Ok(true)
    }

    /// Passes on what the program said; false if nobody reads our output.
    fn show(&mut self) -> io::Result<bool> {
        match pass_piece(&mut self.said, &mut self.output) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            result => result.map(|()| true),
        }
    }
}

/// Takes a piece if there is one now; its length, 0 at the end.
fn read_piece(from: &mut File, into: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut piece = [0; PIECE];
    match from.read(&mut piece) {
        Ok(len) => {
            into.extend_from_slice(piece.get(..len).unwrap_or_default());
            Ok(Some(len))
        }
        Err(error) if is_passing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Passes on as much of a piece as is taken now.
fn pass_piece(piece: &mut Vec<u8>, to: &mut File) -> io::Result<()> {
    match to.write(piece) {
        Ok(len) => {
            piece.drain(..len);
            Ok(())
        }
        Err(error) if is_passing(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Not now, but soon: readiness may be gone when it is used, since others have these descriptors.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
