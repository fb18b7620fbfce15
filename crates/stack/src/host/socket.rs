//! What the sockets of a host share, whatever they speak.

use std::io;
use std::task::{Context, Poll};
use std::time::Instant;

use netyard_wire::build;

use super::state::State;
use super::{Awaited, Host};
use crate::{Error, Event, Stack};

/// A socket's place in its host.
#[derive(Debug)]
pub(crate) struct Socket {
    host: Host,
    awaited: Awaited,
}

impl Socket {
    pub(crate) fn new(host: &Host, event: Event) -> Self {
        Self { host: host.clone(), awaited: Awaited::Socket(event) }
    }

    pub(super) const fn host(&self) -> &Host {
        &self.host
    }

    /// A call that waits; see [`Host::wait`].
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut call: impl FnMut(&mut Stack, Instant) -> Result<T, Error>,
    ) -> io::Result<T> {
        self.host.wait(self.awaited, deadline, |state, now| call(state.stack().0, now))
    }

    /// A call that leaves a waker; see [`Host::poll`].
    pub(crate) fn poll<T>(
        &self,
        context: &Context<'_>,
        call: impl FnOnce(&mut Stack, Instant) -> Result<T, Error>,
    ) -> Poll<io::Result<T>> {
        self.host.poll(context, self.awaited, |state, now| call(state.stack().0, now))
    }

    /// Calls `io` each time that something has happened to the socket, as long as it comes to `WouldBlock`.
    pub(crate) fn poll_io<T>(
        &self,
        context: &Context<'_>,
        io: impl FnOnce() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        // The waker is left first: what happens meanwhile is not missed.
        if let Poll::Ready(over) = self.poll(context, |_, _| Err::<T, _>(Error::WouldBlock)) {
            return Poll::Ready(over);
        }
        match io() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            result => Poll::Ready(result),
        }
    }

    /// A call that does neither.
    pub(crate) fn call<T>(
        &self,
        call: impl FnOnce(&mut Stack, Instant) -> Result<T, Error>,
    ) -> io::Result<T> {
        self.host.call(call)
    }

    /// Wakes who waits: it was changed from here.
    pub(super) fn wake(&self) {
        self.host.wake(self.awaited);
    }

    /// Ends it.
    pub(crate) fn close(&self, call: impl FnOnce(&mut Stack, Instant)) {
        self.host.close(self.awaited, |state: &mut State, now| call(state.stack().0, now));
    }
}

/// A hop limit, as programs write one.
///
/// # Errors
/// `InvalidInput`: not 1 to 255.
pub(crate) fn hop_limit(ttl: u32) -> io::Result<u8> {
    u8::try_from(ttl).ok().filter(|hops| *hops > 0).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("a TTL is 1 to 255, found {ttl}"))
    })
}

/// A hop limit, as programs read it; that of the interfaces where none was set.
pub(crate) fn ttl(hops: Option<u8>) -> u32 {
    hops.unwrap_or(build::HOP_LIMIT).into()
}
