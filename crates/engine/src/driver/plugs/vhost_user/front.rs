//! A front end that has connected: its messages, and the rings that it has set up.

use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use netyard_sys::poll::{Interest, Poll};
use netyard_sys::wait::{self, Want};
use netyard_wire::Frame;

use super::backend::{Backend, FROM_GUEST, TO_GUEST};
use super::frames::{self, Pieces, Placed, Sent};
use super::messages::{self, Message, wrong};
use crate::driver::plugs::device::Arrival;

/// A connection with a front end.
#[derive(Debug)]
pub(super) struct Front {
    stream: UnixStream,
    backend: Backend,
    /// There may be messages.
    called: bool,
    /// Why it is over, where that was found while nobody read.
    fault: Option<io::Error>,
    pieces: Pieces,
}

impl Front {
    /// Takes over a connection; it is watched as `token`, and so is what comes by it.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn new(stream: UnixStream, poll: &Poll, token: u64) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let backend = Backend::new()?;
        poll.add(stream.as_fd(), token, Interest::Changes)?;
        Ok(Self { stream, backend, called: true, fault: None, pieces: Pieces::default() })
    }

    /// Something has happened to what is watched.
    pub(super) fn woken(&mut self) {
        self.called = true;
    }

    /// Does what one message asks, or reads one frame of the guest. `None`: there is nothing now.
    ///
    /// # Errors
    /// The connection is over: the front end is gone or says nonsense, or the guest does.
    pub(super) fn receive(
        &mut self,
        poll: &Poll,
        token: u64,
        into: &mut [u8],
    ) -> io::Result<Option<Arrival>> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if self.called && self.handle_message(poll, token)? {
            return Ok(Some(Arrival::Features(self.backend.guest_features())));
        }
        // Each page that is gone and touched costs a mapping, of which there are not many.
        self.backend.check_memory()?;
        let Backend { memory: Some(memory), rings, .. } = &mut self.backend else {
            return Ok(None);
        };
        let Some(ring) = rings.get_mut(FROM_GUEST).filter(|ring| ring.is_live()) else {
            return Ok(None);
        };
        match frames::receive(ring, memory.bytes(), &mut self.pieces, into)? {
            Sent::Frame(len) => Ok(Some(Arrival::Frame(len))),
            Sent::Malformed(reason) => Ok(Some(Arrival::Malformed(reason))),
            Sent::Nothing => Ok(None),
        }
    }

    /// Does what a message asks, if there is a whole one.
    fn handle_message(&mut self, poll: &Poll, token: u64) -> io::Result<bool> {
        let Some(message) = Message::take(self.stream.as_fd())? else {
            self.called = false;
            return Ok(false);
        };
        // An answer must go out at once.
        let [ready] = wait::ready([(self.stream.as_fd(), Want::Write)], Some(Duration::ZERO))?;
        if !ready.write {
            return Err(wrong("it does not read answers"));
        }
        // A message can take a ring or the memory out of use, where nothing is told any more.
        self.backend.tell()?;
        let (kind, wanted) = (message.kind, message.wants_answer);
        let done = self.backend.handle(message);
        if done.is_ok() {
            self.watch_kicks(poll, token)?;
        }
        let wanted = wanted && self.backend.answers();
        let word = match &done {
            Ok(Some(answer)) => Some(*answer),
            Ok(None) => wanted.then_some(0_u64.to_ne_bytes()),
            Err(_) => wanted.then_some(1_u64.to_ne_bytes()),
        };
        if let Some(word) = word {
            self.stream.write_all(&messages::answer(kind, word))?;
        }
        done.map(|_| true)
    }

    /// Watches what the guest tells by, as the last message wants it.
    fn watch_kicks(&mut self, poll: &Poll, token: u64) -> io::Result<()> {
        for ring in &mut self.backend.rings {
            let Some(new) = ring.new_kick.take() else { continue };
            if let Some(old) = ring.kick.take() {
                // The front end has a copy of it.
                poll.remove(old.as_fd())?;
            }
            if let Some(new) = &new {
                poll.add(new.as_fd(), token, Interest::Changes)?;
            }
            ring.kick = new;
        }
        self.backend.settle();
        Ok(())
    }

    /// Puts a frame where the guest finds it; it is told with [`Front::tell`].
    ///
    /// # Errors
    /// `WouldBlock`: the guest has no room now; `HostUnreachable`: it is not there; `InvalidData`: it does
    /// not take this frame.
    pub(super) fn send(&mut self, frame: Frame<'_>) -> io::Result<()> {
        if self.fault.is_some() {
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        let merge = self.backend.merges();
        let Backend { memory: Some(memory), rings, .. } = &mut self.backend else {
            return Err(io::ErrorKind::HostUnreachable.into());
        };
        let ring = rings.get_mut(TO_GUEST).filter(|ring| ring.is_live());
        let ring = ring.ok_or(io::ErrorKind::HostUnreachable)?;
        let placed = frames::send(ring, memory.bytes(), &mut self.pieces, merge, frame);
        if let Err(fault) = self.backend.check_memory() {
            self.give_up(fault);
        }
        match placed {
            Ok(Placed::Yes) => Ok(()),
            Ok(Placed::NoRoom) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(Placed::Unfit) => Err(io::ErrorKind::InvalidData.into()),
            Err(broken) => {
                self.give_up(broken.into());
                Err(io::ErrorKind::HostUnreachable.into())
            }
        }
    }

    /// Tells the guest what it has got, and got back.
    pub(super) fn tell(&mut self) {
        if let Err(fault) = self.backend.tell() {
            self.give_up(fault);
        }
    }

    /// Ends the connection: the next read finds that it is over, and why.
    fn give_up(&mut self, fault: io::Error) {
        self.fault.get_or_insert(fault);
        // One that is over already needs no end.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Stops watching everything. (The front end has copies of it.)
    pub(super) fn leave(&self, poll: &Poll) {
        let kicks = self.backend.rings.iter().filter_map(|ring| ring.kick.as_ref());
        for fd in kicks.map(|kick| kick.as_fd()).chain([self.stream.as_fd()]) {
            if let Err(error) = poll.remove(fd) {
                tracing::warn!(%error, "a front end that is gone is still watched");
            }
        }
    }
}
