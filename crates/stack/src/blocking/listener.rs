//! Listening TCP sockets.

use std::fmt;
use std::io;
use std::iter::FusedIterator;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{TcpStream, ToSocketAddrs};
use crate::Host;
use crate::host::{ListenerHandle, Manner};

/// Connections that wait to be accepted (that of the standard library).
const BACKLOG: usize = 128;

/// A listening TCP socket, as `std::net::TcpListener`.
pub struct TcpListener(pub(crate) Arc<ListenerHandle>);

/// The connections of a listener, without end.
#[derive(Debug)]
pub struct Incoming<'a>(&'a TcpListener);

impl TcpListener {
    /// Listens on the first of the addresses that can be had.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`; what the addresses themselves say.
    pub fn bind<A: ToSocketAddrs>(at: A) -> io::Result<Self> {
        let host = Host::of_process()?;
        super::first(at.to_socket_addrs()?, |at| Self::bind_on(&host, at))
    }

    /// Listens on another host than that of this process.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`.
    pub fn bind_on(host: &Host, at: SocketAddr) -> io::Result<Self> {
        let handle = ListenerHandle::bind(host, at, BACKLOG, Manner::default())?;
        Ok(Self(Arc::new(handle)))
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// None.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local_addr())
    }

    /// Another handle to the same socket.
    ///
    /// # Errors
    /// None.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(Arc::clone(&self.0)))
    }

    /// Waits for a connection: it, and who is at its other end.
    ///
    /// # Errors
    /// `WouldBlock`: it is not to wait, and there is none.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (handle, remote) = self.0.accept()?;
        Ok((TcpStream::new(handle), remote))
    }

    /// The connections, one after the other.
    #[must_use]
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming(self)
    }

    /// Sets how many routers packets of accepted connections may pass.
    ///
    /// # Errors
    /// `InvalidInput`: not 1 to 255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.0.set_hop_limit(Some(crate::host::hop_limit(ttl)?));
        Ok(())
    }

    /// How many routers packets of accepted connections may pass.
    ///
    /// # Errors
    /// None.
    pub fn ttl(&self) -> io::Result<u32> {
        Ok(crate::host::ttl(self.0.hop_limit()))
    }

    /// Tells what the standard library's does not do either: whoever listens has chosen already.
    ///
    /// # Errors
    /// `InvalidInput`: always.
    #[deprecated(note = "as the standard library's: it comes too late")]
    pub fn set_only_v6(&self, _only_v6: bool) -> io::Result<()> {
        let message = "a socket that listens keeps the families that it has";
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }

    /// Whether it listens for IPv6 alone: the unspecified address stands for both.
    ///
    /// # Errors
    /// None.
    #[deprecated(note = "as the standard library's: it cannot be set")]
    pub fn only_v6(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// What has gone wrong: nothing does.
    ///
    /// # Errors
    /// None.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(None)
    }

    /// Makes [`accept`](Self::accept) end with `WouldBlock` where it would wait, or wait.
    ///
    /// # Errors
    /// None.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.patience.set_nonblocking(nonblocking);
        Ok(())
    }
}

impl Iterator for Incoming<'_> {
    type Item = io::Result<TcpStream>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.accept().map(|(stream, _)| stream))
    }
}

impl FusedIterator for Incoming<'_> {}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener").field("addr", &self.0.local_addr()).finish()
    }
}
