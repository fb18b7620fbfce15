//! TCP connections.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ToSocketAddrs;
use crate::host::{Manner, TcpHandle};
use crate::{Error, Host, Stack};

/// A TCP connection, as `std::net::TcpStream`.
pub struct TcpStream(pub(crate) Arc<TcpHandle>);

impl TcpStream {
    /// Opens a connection to the first of the addresses that takes one.
    ///
    /// # Errors
    /// What the last address came to: `ConnectionRefused`, `TimedOut`, `NetworkUnreachable`,
    /// `HostUnreachable`; what the addresses themselves say.
    pub fn connect<A: ToSocketAddrs>(to: A) -> io::Result<Self> {
        let host = Host::of_process()?;
        super::first(to.to_socket_addrs()?, |to| Self::connect_on(&host, to))
    }

    /// Opens a connection on another host than that of this process.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_on(host: &Host, to: SocketAddr) -> io::Result<Self> {
        Self::open(host, to, None)
    }

    /// Opens a connection, and gives up after some time.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `TimedOut`: after `limit`; `InvalidInput`: `limit` is no time at all.
    pub fn connect_timeout(to: &SocketAddr, limit: Duration) -> io::Result<Self> {
        Self::connect_timeout_on(&Host::of_process()?, *to, limit)
    }

    /// Opens a connection on another host than that of this process, and gives up after some time.
    ///
    /// # Errors
    /// As [`connect_timeout`](Self::connect_timeout).
    pub fn connect_timeout_on(host: &Host, to: SocketAddr, limit: Duration) -> io::Result<Self> {
        if limit.is_zero() {
            let message = "cannot set a 0 duration timeout";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Self::open(host, to, Instant::now().checked_add(limit))
    }

    fn open(host: &Host, to: SocketAddr, deadline: Option<Instant>) -> io::Result<Self> {
        let handle = TcpHandle::open(host, to, None, Manner::default())?;
        handle.wait_open(deadline).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, "connection timed out")
            }
            _ => error,
        })?;
        Ok(Self::new(handle))
    }

    pub(super) fn new(handle: TcpHandle) -> Self {
        Self(Arc::new(handle))
    }

    /// The other end's address.
    ///
    /// # Errors
    /// `NotConnected`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }

    /// This end's address.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Ends reading, writing, or both.
    ///
    /// # Errors
    /// `NotConnected`.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.shutdown(how)
    }

    /// Another handle to the same connection, which shares its options and timeouts.
    ///
    /// # Errors
    /// None.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(Arc::clone(&self.0)))
    }

    /// How long reads wait: then they end with `WouldBlock`.
    ///
    /// # Errors
    /// `InvalidInput`: no time at all.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.0.patience.set_read(limit)
    }

    /// How long writes wait: then they end with `WouldBlock`.
    ///
    /// # Errors
    /// `InvalidInput`: no time at all.
    pub fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.0.patience.set_write(limit)
    }

    /// How long reads wait.
    ///
    /// # Errors
    /// None.
    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.0.patience.read())
    }

    /// How long writes wait.
    ///
    /// # Errors
    /// None.
    pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.0.patience.write())
    }

    /// Reads, and leaves what was read where it is.
    ///
    /// # Errors
    /// As reading.
    pub fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        self.receive(|handle, stack, now| stack.tcp_recv(now, handle.id(), into, true))
    }

    /// Sets `SO_LINGER`: without time, closing resets the connection; with some, it waits so long for the
    /// other end to have everything.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.0.set_linger(linger)
    }

    /// `SO_LINGER`.
    ///
    /// # Errors
    /// None.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        Ok(self.0.linger())
    }

    /// Lets small segments go at once (`TCP_NODELAY`), or not.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.0.change(|options| options.no_delay = nodelay)
    }

    /// `TCP_NODELAY`.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn nodelay(&self) -> io::Result<bool> {
        Ok(self.0.options()?.no_delay)
    }

    /// Sets how many routers packets may pass.
    ///
    /// # Errors
    /// `InvalidInput`: not 1 to 255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        let hops = crate::host::hop_limit(ttl)?;
        self.0.change(|options| options.hop_limit = Some(hops))
    }

    /// How many routers packets may pass.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn ttl(&self) -> io::Result<u32> {
        Ok(crate::host::ttl(self.0.options()?.hop_limit))
    }

    /// What has gone wrong, once.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.0.take_error()
    }

    /// Makes calls that would wait end with `WouldBlock`, or wait.
    ///
    /// # Errors
    /// None.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.patience.set_nonblocking(nonblocking);
        Ok(())
    }

    fn receive(
        &self,
        mut call: impl FnMut(&TcpHandle, &mut Stack, Instant) -> Result<usize, Error>,
    ) -> io::Result<usize> {
        let handle = &*self.0;
        let deadline = handle.patience.deadline(handle.patience.read());
        handle.socket.wait(deadline, |stack, now| call(handle, stack, now))
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let handle = &*self.0;
        let deadline = handle.patience.deadline(handle.patience.write());
        handle.socket.wait(deadline, |stack, _| handle.send_parts(stack, parts))
    }
}

impl Read for &TcpStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(into)])
    }

    fn read_vectored(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.receive(|handle, stack, now| handle.receive_parts(stack, now, parts))
    }
}

impl Write for &TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for TcpStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self).read(into)
    }

    fn read_vectored(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(parts)
    }
}

impl Write for TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("TcpStream");
        if let Ok(local) = self.local_addr() {
            text.field("addr", &local);
        }
        if let Ok(peer) = self.peer_addr() {
            text.field("peer", &peer);
        }
        text.finish()
    }
}
