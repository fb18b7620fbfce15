//! Terminals: make one, size it, switch one to raw.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::call;

/// A new pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    /// The side that a terminal program holds.
    pub controller: OwnedFd,
    /// The side that the program inside uses as its terminal.
    pub terminal: OwnedFd,
}

/// Size of a terminal, characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

impl Pty {
    /// Opens a new one.
    ///
    /// # Errors
    /// Too many terminals, `/dev/ptmx` missing.
    pub fn open() -> io::Result<Self> {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: no pointers.
        let controller = call::own(unsafe { libc::posix_openpt(flags) })?;
        // SAFETY: no pointers.
        call::check(unsafe { libc::unlockpt(controller.as_raw_fd()) })?;
        // By descriptor, not by path: /dev/pts may be another one here.
        // SAFETY: TIOCGPTPEER takes its argument by value.
        let terminal =
            call::own(unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
        Ok(Self { controller, terminal })
    }
}

/// The size of a terminal.
///
/// # Errors
/// `ENOTTY`: it is none.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    call::check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Sets the size of a terminal; its foreground programs get `SIGWINCH`.
///
/// # Errors
/// `ENOTTY`: it is none.
pub fn set_size(terminal: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let size =
        libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    call::check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .map(drop)
}

/// True when the calling process is in the group that a terminal sends Ctrl-C to.
#[must_use]
pub fn is_foreground(terminal: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers.
    let foreground = unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) };
    // SAFETY: no pointers.
    foreground == unsafe { libc::getpgrp() }
}

/// Sends `SIGINT`, `SIGQUIT` or `SIGTSTP` to the foreground programs of a terminal, given by its
/// controller, as the terminal's own keys do.
///
/// # Errors
/// `EINVAL`: another signal; `ENOTTY`: not the controller of a terminal.
pub fn send_signal(controller: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: TIOCSIG takes its argument by value.
    call::check(unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCSIG, signal) }).map(drop)
}

/// The key that ends the input of a terminal (`VEOF`, Ctrl-D unless changed); `None` if it has
/// none. Typed after an unfinished line it only hands over that line.
///
/// # Errors
/// `ENOTTY`: it is none.
pub fn end_key(terminal: BorrowedFd<'_>) -> io::Result<Option<u8>> {
    /// `_POSIX_VDISABLE` of Linux.
    const NO_KEY: u8 = 0;
    let key = mode(terminal)?.c_cc.get(libc::VEOF).copied();
    Ok(key.filter(|key| *key != NO_KEY))
}

/// A terminal in raw mode: each key comes at once and as it is. Dropping it restores the terminal.
#[derive(Debug)]
pub struct RawMode<'a> {
    terminal: BorrowedFd<'a>,
    before: libc::termios,
}

impl<'a> RawMode<'a> {
    /// Switches a terminal to raw.
    ///
    /// # Errors
    /// `ENOTTY`: it is none.
    pub fn enter(terminal: &'a impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd();
        let before = mode(terminal)?;
        let mut raw = before;
        // SAFETY: cfmakeraw changes the termios it is given.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        set_mode(terminal, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = set_mode(self.terminal, &self.before);
    }
}

fn mode(terminal: BorrowedFd<'_>) -> io::Result<libc::termios> {
    let mut mode = MaybeUninit::uninit();
    // SAFETY: tcgetattr writes one termios, which `mode` has room for.
    call::check(unsafe { libc::tcgetattr(terminal.as_raw_fd(), mode.as_mut_ptr()) })?;
    // SAFETY: tcgetattr succeeded, so it has filled `mode` in.
    Ok(unsafe { mode.assume_init() })
}

fn set_mode(terminal: BorrowedFd<'_>, mode: &libc::termios) -> io::Result<()> {
    // SAFETY: tcsetattr reads one termios, which outlives the call.
    call::check(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSADRAIN, mode) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IsTerminal, Read, Write};

    use super::*;

    #[test]
    fn what_is_written_inside_comes_out_and_sizes_are_shared() {
        let pty = Pty::open().unwrap();
        assert!(pty.terminal.is_terminal());
        let wanted = Size { rows: 40, columns: 132 };
        set_size(pty.controller.as_fd(), wanted).unwrap();
        assert_eq!(size(pty.terminal.as_fd()).unwrap(), wanted);
        File::from(pty.terminal).write_all(b"hi\n").unwrap();
        let mut text = [0; 4];
        File::from(pty.controller).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hi\r\n", "a terminal that is not raw ends lines its own way");
    }

    #[test]
    fn raw_mode_is_undone() {
        let pty = Pty::open().unwrap();
        let raw = RawMode::enter(&pty.terminal).unwrap();
        let mut inside = File::from(pty.terminal.try_clone().unwrap());
        inside.write_all(b"a\n").unwrap();
        drop(raw);
        inside.write_all(b"b\n").unwrap();
        let mut text = [0; 5];
        File::from(pty.controller).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"a\nb\r\n");
    }

    #[test]
    fn the_end_key_ends_the_input() {
        let pty = Pty::open().unwrap();
        let key = end_key(pty.controller.as_fd()).unwrap().unwrap();
        File::from(pty.controller.try_clone().unwrap()).write_all(&[b'a', b'\n', key]).unwrap();
        let mut text = String::new();
        File::from(pty.terminal).read_to_string(&mut text).unwrap();
        assert_eq!(text, "a\n");
    }

    #[test]
    fn signals_of_the_keys_can_be_sent_without_a_key() {
        let pty = Pty::open().unwrap();
        send_signal(pty.controller.as_fd(), libc::SIGINT).unwrap();
        let error = send_signal(pty.controller.as_fd(), libc::SIGTERM).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_socket_is_no_terminal() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(size(one.as_fd()).is_err());
        assert!(RawMode::enter(&one).is_err());
        assert!(!is_foreground(one.as_fd()));
    }
}
