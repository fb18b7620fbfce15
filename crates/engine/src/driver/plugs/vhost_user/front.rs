//! A front end that has connected: its messages, and the rings that it has set up.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netyard_sys::poll::{Interest, Poll};
use netyard_sys::stream;
use netyard_sys::wait::{self, Want};
use netyard_wire::Frame;
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};
use vhost::vhost_user::{BackendReqHandler, VhostUserBackendReqHandlerMut as _};

use super::backend::{Backend, FROM_GUEST, TO_GUEST};
use super::frames::{self, Pieces, Placed, Sent};
use super::ring::Broken;
use crate::driver::plugs::device::Arrival;

/// Bytes before each message: its kind, flags, and how long it is.
const HEADER_LEN: usize = 12;
const FLAGS_AT: usize = 4;
const LENGTH_AT: usize = 8;

/// Of the messages, in their flags.
const VERSION: u32 = 1;

/// The longest message that is believed, without its header: as long as any is.
const MAX_MESSAGE_LEN: usize = 4_096;

/// A connection with a front end.
pub(super) struct Front {
    /// The connection, to look at.
    stream: UnixStream,
    messages: BackendReqHandler<Mutex<Backend>>,
    backend: Arc<Mutex<Backend>>,
    /// There may be messages.
    called: bool,
    pieces: Pieces,
}

impl Front {
    /// Takes over a connection; it is watched as `token`, and so is what comes by it.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn new(stream: UnixStream, poll: &Poll, token: u64) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let backend = Arc::new(Mutex::new(Backend::new()?));
        let messages = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&backend));
        poll.add(stream.as_fd(), token, Interest::Changes)?;
        Ok(Self { stream, messages, backend, called: true, pieces: Pieces::default() })
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
        if self.called && self.handle_message(poll, token)? {
            return Ok(Some(Arrival::Features(lock(&self.backend).guest_features())));
        }
        let mut backend = lock(&self.backend);
        let Backend { memory: Some(memory), rings, .. } = &mut *backend else { return Ok(None) };
        let Some(ring) = rings.get_mut(FROM_GUEST).filter(|ring| ring.is_live()) else {
            return Ok(None);
        };
        match frames::receive(ring, memory.bytes(), &mut self.pieces, into).map_err(broken)? {
            Sent::Frame(len) => Ok(Some(Arrival::Frame(len))),
            Sent::Malformed(reason) => Ok(Some(Arrival::Malformed(reason))),
            Sent::Nothing => Ok(None),
        }
    }

    /// Does what a message asks, if there is a whole one. Half of one must not be read: who reads it would
    /// wait for the rest, and the network with it.
    fn handle_message(&mut self, poll: &Poll, token: u64) -> io::Result<bool> {
        let mut header = [0; HEADER_LEN];
        let (copied, waiting) = match stream::look_ahead(self.stream.as_fd(), &mut header) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.called = false;
                return Ok(false);
            }
            looked => looked?,
        };
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if waiting >= HEADER_LEN && copied < HEADER_LEN {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a torn message"));
        }
        let len = header.get(LENGTH_AT..).and_then(|len| len.try_into().ok());
        let len = usize::try_from(len.map_or(0, u32::from_ne_bytes)).unwrap_or(usize::MAX);
        if copied == HEADER_LEN && len > MAX_MESSAGE_LEN {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
        }
        if waiting < HEADER_LEN + len {
            self.called = false;
            return Ok(false);
        }
        // An answer that does not go out at once would be waited for, too.
        let [ready] = wait::ready([(self.stream.as_fd(), Want::Write)], Some(Duration::ZERO))?;
        if !ready.write {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not read answers"));
        }
        if !self.handle_early_enable(&header)? {
            self.messages.handle_request().map_err(io::Error::other)?;
        }
        self.watch_kicks(poll, token)?;
        Ok(true)
    }

    /// QEMU enables rings before it says what was agreed to, which [`BackendReqHandler`] takes for a fault. Does
    /// that if it is what waits.
    fn handle_early_enable(&mut self, header: &[u8; HEADER_LEN]) -> io::Result<bool> {
        const LEN: usize = 8;
        let word = |at: usize, bytes: &[u8]| {
            let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map_or(0, u32::from_ne_bytes)
        };
        let kind = u32::from(FrontendReq::SET_VRING_ENABLE);
        let mut backend = lock(&self.backend);
        if word(0, header) != kind || word(LENGTH_AT, header) != 8 || backend.has_agreed() {
            return Ok(false);
        }
        let mut message = [0; HEADER_LEN + LEN];
        self.stream.read_exact(&mut message)?;
        let (ring, enable) = (word(HEADER_LEN, &message), word(HEADER_LEN + 4, &message));
        backend.set_vring_enable(ring, enable == 1).map_err(io::Error::other)?;
        if backend.answers() && word(FLAGS_AT, header) & VhostUserHeaderFlag::NEED_REPLY.bits() != 0
        {
            let mut answer = [0; HEADER_LEN + LEN];
            let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
            for (place, word) in answer.as_chunks_mut().0.iter_mut().zip([kind, flags, 8]) {
                *place = word.to_ne_bytes();
            }
            self.stream.write_all(&answer)?;
        }
        Ok(true)
    }

    /// Watches what the guest tells by, as the last message wants it.
    fn watch_kicks(&mut self, poll: &Poll, token: u64) -> io::Result<()> {
        let mut backend = lock(&self.backend);
        for ring in &mut backend.rings {
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
        backend.settle();
        Ok(())
    }

    /// Puts a frame where the guest finds it; it is told with [`Front::tell`].
    ///
    /// # Errors
    /// `WouldBlock`: the guest has no room now; `HostUnreachable`: it is not there; `InvalidData`: it does
    /// not take this frame.
    pub(super) fn send(&mut self, frame: Frame<'_>) -> io::Result<()> {
        let mut backend = lock(&self.backend);
        let merge = backend.merges();
        let Backend { memory: Some(memory), rings, .. } = &mut *backend else {
            return Err(io::ErrorKind::HostUnreachable.into());
        };
        let ring = rings.get_mut(TO_GUEST).filter(|ring| ring.is_live());
        let ring = ring.ok_or(io::ErrorKind::HostUnreachable)?;
        match frames::send(ring, memory.bytes(), &mut self.pieces, merge, frame) {
            Ok(Placed::Yes) => Ok(()),
            Ok(Placed::NoRoom) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(Placed::Unfit) => Err(io::ErrorKind::InvalidData.into()),
            Err(Broken) => {
                ring.stop();
                self.give_up();
                Err(io::ErrorKind::HostUnreachable.into())
            }
        }
    }

    /// Tells the guest what it has got, and got back.
    pub(super) fn tell(&self) {
        if !lock(&self.backend).tell() {
            self.give_up();
        }
    }

    /// Ends the connection: the next read finds that it is over.
    fn give_up(&self) {
        // One that is over already needs no end.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Stops watching everything. (The front end has copies of it.)
    pub(super) fn leave(&self, poll: &Poll) {
        let backend = lock(&self.backend);
        let kicks = backend.rings.iter().filter_map(|ring| ring.kick.as_ref());
        for fd in kicks.map(|kick| kick.as_fd()).chain([self.stream.as_fd()]) {
            if let Err(error) = poll.remove(fd) {
                tracing::warn!(%error, "a front end that is gone is still watched");
            }
        }
    }
}

/// Nobody else has the lock: the messages are handled by the same thread.
fn lock(backend: &Mutex<Backend>) -> MutexGuard<'_, Backend> {
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(_: Broken) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a ring of the machine is broken")
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front").field("backend", &self.backend).finish_non_exhaustive()
    }
}
