//! A plug by vhost-user: machine monitors connect to a socket by its path, one after the other, and share
//! the memory of their machine, in which the rings of a network device of virtio lie.
//!
//! # Theory of operation
//!
//! The front end (QEMU, Cloud Hypervisor) sends messages over the connection: what the guest has agreed to,
//! the memory as open files, where the rings are, and an eventfd for each ring and direction of telling
//! ([`front`], [`backend`]). Everything is watched by the network's poll and served by its one thread, a
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
//! be, so that no call on them waits.

mod backend;
mod frames;
mod front;
mod ring;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use netyard_sys::poll::Poll;
use netyard_wire::{Features, Frame};

use self::front::Front;
use super::device::Arrival;

/// Where front ends connect to, and the one that has. Others wait until that one is gone.
#[derive(Debug)]
pub(super) struct VhostUser {
    listener: UnixListener,
    front: Option<Front>,
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
        Ok(Self { listener, front: None })
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
    /// `WouldBlock`.
    pub(super) fn read(&mut self, poll: &Poll, token: u64, into: &mut [u8]) -> io::Result<Arrival> {
        let Some(front) = &mut self.front else { return self.admit(poll, token) };
        match front.receive(poll, token, into) {
            Ok(arrival) => arrival.ok_or_else(|| io::ErrorKind::WouldBlock.into()),
            Err(error) => {
                self.leave(poll);
                if error.kind() == io::ErrorKind::UnexpectedEof {
                    return Ok(Arrival::Features(Features::NONE));
                }
                tracing::warn!(%error, "the connection with a vhost-user front end is ended");
                Ok(Arrival::Malformed("vhost-user"))
            }
        }
    }

    fn admit(&mut self, poll: &Poll, token: u64) -> io::Result<Arrival> {
        let come = self.listener.accept();
        match come.and_then(|(stream, _)| Front::new(stream, poll, token)) {
            Ok(front) => {
                self.front = Some(front);
                Ok(Arrival::Features(Features::NONE))
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, "a vhost-user front end cannot be let in");
                }
                Err(io::ErrorKind::WouldBlock.into())
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
    pub(super) fn flush(&self) {
        if let Some(front) = &self.front {
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

impl AsFd for VhostUser {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
