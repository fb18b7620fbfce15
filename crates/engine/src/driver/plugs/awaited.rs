//! A plug by the path of a socket: whoever connects is plugged in, one after the other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use netyard_sys::framed::Framed;
use netyard_sys::poll::{Interest, Poll};
use netyard_wire::MAX_FRAME_LEN;

/// Where a guest connects to, and the one that has. Others wait until that one is gone.
#[derive(Debug)]
pub(super) struct Awaited {
    listener: UnixListener,
    guest: Option<Framed>,
}

impl Awaited {
    /// Takes over a socket that listens.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let listener = UnixListener::from(fd);
        listener.local_addr()?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, guest: None })
    }

    /// Lets the next guest in, if there is none and one waits; it is watched as `token`.
    ///
    /// # Errors
    /// `WouldBlock`: none has connected; out of descriptors.
    pub(super) fn admit(&mut self, poll: &Poll, token: u64) -> io::Result<()> {
        if self.guest.is_none() {
            let (stream, _) = self.listener.accept()?;
            let guest = Framed::adopt(stream.into(), MAX_FRAME_LEN)?;
            poll.add(guest.as_fd(), token, Interest::Changes)?;
            self.guest = Some(guest);
        }
        Ok(())
    }

    /// The guest's next frame. `Ok(None)`: it has gone.
    ///
    /// # Errors
    /// As [`Framed::read`]; `WouldBlock` without a guest, too.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(guest) = &mut self.guest else { return Err(io::ErrorKind::WouldBlock.into()) };
        let read = guest.read(into);
        if let Ok(None) | Err(_) = &read
            && !matches!(&read, Err(error) if is_passing(error))
        {
            self.guest = None;
            return Ok(None);
        }
        read
    }

    /// Takes a frame in for the guest.
    ///
    /// # Errors
    /// `WouldBlock`: the guest is behind; `HostUnreachable`: there is none.
    pub(super) fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        self.with_guest(|guest| guest.write(frame))
    }

    /// Writes what the guest takes.
    pub(super) fn flush(&mut self) {
        // Who is not there any more gets nothing.
        let _ = self.with_guest(|guest| guest.flush().map(drop));
    }

    fn with_guest(&mut self, call: impl FnOnce(&mut Framed) -> io::Result<()>) -> io::Result<()> {
        let absent = || io::Error::from(io::ErrorKind::HostUnreachable);
        match call(self.guest.as_mut().ok_or_else(absent)?) {
            Err(error) if !is_passing(&error) => Err(absent()),
            done => done,
        }
    }
}

/// Whether the connection goes on after this. (That it is over is told by the next read.)
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, InvalidData, WouldBlock};
    matches!(error.kind(), Interrupted | InvalidData | WouldBlock)
}

impl AsFd for Awaited {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
