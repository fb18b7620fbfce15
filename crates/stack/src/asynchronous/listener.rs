//! Listening TCP sockets.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::blocking::conversions;
use super::{TcpStream, ToSocketAddrs, address, first, in_turn};
use crate::Host;
use crate::host::{ListenerHandle, Manner};

/// Connections that wait to be accepted (that of tokio).
const BACKLOG: usize = 1024;

/// A listening TCP socket, as `tokio::net::TcpListener`.
pub struct TcpListener(Arc<ListenerHandle>);

conversions!(TcpListener);

impl TcpListener {
    /// Listens on the first of the addresses that can be had.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`; what the addresses themselves say.
    pub async fn bind<A: ToSocketAddrs>(at: A) -> io::Result<Self> {
        let addresses = address::addresses(at).await?;
        let host = Host::of_process()?;
        first(addresses, |at| Self::bind_on(&host, at))
    }

    /// Listens on another host than that of this process.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`.
    pub fn bind_on(host: &Host, at: SocketAddr) -> io::Result<Self> {
        ListenerHandle::bind(host, at, BACKLOG, Manner::default()).map(Self::new)
    }

    pub(super) fn new(handle: ListenerHandle) -> Self {
        Self(Arc::new(handle))
    }

    /// Waits for a connection: it, and who is at its other end.
    ///
    /// # Errors
    /// The stack has ended.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|context| self.poll_accept(context)).await
    }

    /// As [`accept`](Self::accept).
    ///
    /// # Errors
    /// As there.
    pub fn poll_accept(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let accepted = ready!(in_turn(context, |context| self.0.poll_accept(context)));
        Poll::Ready(accepted.map(|(handle, remote)| (TcpStream::new(handle), remote)))
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// None.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local_addr())
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
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener").field("addr", &self.0.local_addr()).finish()
    }
}
