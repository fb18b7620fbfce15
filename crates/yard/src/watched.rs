//! Descriptors of our own whose readiness the runtime watches.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram as StdSocket;

use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Something with a descriptor, and its readiness.
///
/// The runtime's own type for this, `AsyncFd`, can only be made with unsafe code. A socket of the
/// runtime can be made from any descriptor, and this one serves for nothing but its readiness: it
/// is a duplicate, which the kernel reports ready when the original is.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    inner: T,
    readiness: UnixDatagram,
}

impl<T: AsFd> Watched<T> {
    /// Watches a descriptor, which becomes non-blocking.
    ///
    /// # Errors
    /// Out of descriptors, or one that cannot be waited for.
    pub(crate) fn new(inner: T) -> io::Result<Self> {
        let duplicate = StdSocket::from(inner.as_fd().try_clone_to_owned()?);
        duplicate.set_nonblocking(true)?;
        Ok(Self { inner, readiness: UnixDatagram::from_std(duplicate)? })
    }

    /// Calls `attempt` whenever the descriptor may be readable, until it does not say
    /// `WouldBlock`. Can be cancelled.
    ///
    /// # Errors
    /// What `attempt` said.
    pub(crate) async fn read<R>(
        &self,
        mut attempt: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        self.readiness.async_io(Interest::READABLE, || attempt(&self.inner)).await
    }

    /// Waits until the descriptor is readable, which is the end of what a pidfd holds.
    pub(crate) async fn ended(&self) {
        // An error is the end, too.
        let _ = self.readiness.readable().await;
    }

    /// The same for writing.
    ///
    /// # Errors
    /// What `attempt` said.
    pub(crate) async fn write<R>(
        &self,
        mut attempt: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        self.readiness.async_io(Interest::WRITABLE, || attempt(&self.inner)).await
    }
}

impl<T> Watched<T> {
    pub(crate) fn get(&self) -> &T {
        &self.inner
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use netyard_sys::process::{Exit, PidFd};
    use netyard_sys::seqpacket::SeqPacket;

    use super::*;

    #[tokio::test]
    #[expect(clippy::zombie_processes, reason = "reaped by descriptor")]
    async fn the_end_of_a_process_is_seen() {
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let held = Watched::new(PidFd::open(child.id()).unwrap()).unwrap();
        let reap = |held: &PidFd| held.reap()?.ok_or(io::ErrorKind::WouldBlock.into());
        assert_eq!(held.read(reap).await.unwrap(), Exit::Code(3));
    }

    #[tokio::test]
    async fn messages_are_awaited() {
        let (one, other) = SeqPacket::pair().unwrap();
        let other = Watched::new(other).unwrap();
        let mut buffer = [0; 8];
        let receive = other.read(|other| other.recv(&mut buffer));
        let (received, sent) = tokio::join!(receive, async { one.send(b"hi", &[]) });
        sent.unwrap();
        assert_eq!(received.unwrap().0, 2);
    }
}
