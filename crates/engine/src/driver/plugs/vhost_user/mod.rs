//! A plug by vhost-user: machine monitors connect to a socket by its path, one after the other, and share
//! the memory of their machine, in which the rings of a network device of virtio lie.
//!
//! # Theory of operation
//!
//! The front end (QEMU, Cloud Hypervisor) sends messages over the connection: what the guest has agreed to,
//! the memory as open files, where the rings are, and an eventfd for each ring and direction of telling
//! ([`messages`], [`front`], [`backend`]). Everything is watched by the network's poll and served by its one thread, a
//! message or a frame at a time, so that a machine gets no more than its turn.
//!
//! A frame is copied once, between its buffers and the network's own, with its header: super-frames and
//! partial checksums stay as they are both ways ([`frames`]). The guest gets its buffers back, and is woken,
//! at the end of a turn ([`ring`]).
//!
//! # Trust
//!
//! The guest writes to its memory what it likes at any time, and the monitor can do more. A chain that is wrong
//! is given back and its frame counted as dropped; a ring that is wrong, or a message, ends the connection. Memory
//! that is taken away is survived ([`netyard_sys::guest_memory`]). Descriptors must be what they should
//! be, so that a call on them waits only where the monitor sees to it: it has the other end of what wakes
//! the guest, and can make that a thing to wait for.

mod backend;
mod frames;
mod front;
mod messages;
mod ring;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use netyard_sys::poll::Poll;
use netyard_wire::Frame;

use self::front::Front;
use super::device::Arrival;

/// Where front ends connect to, and the one that has. Others wait until that one is gone.
#[derive(Debug)]
pub(super) struct VhostUser {
    listener: UnixListener,
    front: Option<Front>,
    /// The front end before has left, which nobody was told yet.
    left: bool,
    /// A descriptor that is given up where there are no more, to turn away who else would wait for ever: the poll
    /// tells only once that somebody has come.
    reserve: Option<OwnedFd>,
}

impl VhostUser {
    /// Takes over a socket that listens.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let listener = UnixListener::from(fd);
        listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let reserve = Some(listener.as_fd().try_clone_to_owned()?);
        Ok(Self { listener, front: None, left: false, reserve })
    }

    /// Something has happened to what is watched.
    pub(super) fn woken(&mut self) {
        if let Some(front) = &mut self.front {
            front.woken();
        }
    }

    /// Reads a frame, or does what the front end asks; lets the next one in. What is needed is watched as
    /// `token`.
    ///
    /// # Errors
    /// `WouldBlock`; `Interrupted`: there may be more all the same.
    pub(super) fn read(&mut self, poll: &Poll, token: u64, into: &mut [u8]) -> io::Result<Arrival> {
        if std::mem::take(&mut self.left) {
            return Ok(Arrival::Other);
        }
        let Some(front) = &mut self.front else { return self.admit(poll, token) };
        match front.receive(poll, token, into) {
            Ok(arrival) => arrival.ok_or_else(|| io::ErrorKind::WouldBlock.into()),
            Err(error) => {
                self.leave(poll);
                if is_end(&error) {
                    return Ok(Arrival::Other);
                }
                self.left = true;
                tracing::warn!(%error, "the connection with a vhost-user front end is ended");
                Ok(Arrival::Malformed("vhost-user"))
            }
        }
    }

    fn admit(&mut self, poll: &Poll, token: u64) -> io::Result<Arrival> {
        if self.reserve.is_none() {
            self.reserve = self.listener.as_fd().try_clone_to_owned().ok();
        }
        let (stream, full) = match self.listener.accept() {
            Ok((stream, _)) => (stream, None),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => return Err(error),
            Err(error) => {
                self.reserve = None;
                let turned_away = self.listener.accept().map_err(|_| {
                    tracing::warn!(%error, "a vhost-user front end cannot be let in");
                    io::ErrorKind::WouldBlock
                })?;
                (turned_away.0, Some(error))
            }
        };
        let front = full.map_or_else(|| Front::new(stream, poll, token), Err);
        match front {
            Ok(front) => {
                self.front = Some(front);
                Ok(Arrival::Other)
            }
            Err(error) => {
                tracing::warn!(%error, "a vhost-user front end is turned away");
                // Others may wait behind it.
                Err(io::ErrorKind::Interrupted.into())
            }
        }
    }

    /// Puts a frame into the guest's buffers.
    ///
    /// # Errors
    /// `WouldBlock`: it has none now; `HostUnreachable`: there is none; else the frame is lost.
    pub(super) fn write(&mut self, frame: Frame<'_>) -> io::Result<()> {
        self.front.as_mut().ok_or(io::ErrorKind::HostUnreachable)?.send(frame)
    }

    /// Tells the guest what it has got.
    pub(super) fn flush(&mut self) {
        if let Some(front) = &mut self.front {
            front.tell();
        }
    }

    /// Ends the connection, if there is one.
    pub(super) fn leave(&mut self, poll: &Poll) {
        if let Some(front) = self.front.take() {
            front.leave(poll);
        }
    }
}

/// Whether a front end has just gone.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

impl AsFd for VhostUser {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
