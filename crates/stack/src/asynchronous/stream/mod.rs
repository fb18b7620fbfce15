//! TCP connections; what can be set for them is in [`options`].

mod options;

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

use super::blocking::conversions;
use super::tcp::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
use super::{ToSocketAddrs, address, fill, in_turn, last};
use crate::host::{Manner, TcpHandle};
use crate::{Error, Host, Stack, State};

/// A TCP connection, as `tokio::net::TcpStream`.
pub struct TcpStream(Arc<TcpHandle>);

conversions!(TcpStream);

impl TcpStream {
    /// Opens a connection to the first of the addresses that takes one.
    ///
    /// # Errors
    /// What the last address came to: `ConnectionRefused`, `TimedOut`, `NetworkUnreachable`,
    /// `HostUnreachable`; what the addresses themselves say.
    pub async fn connect<A: ToSocketAddrs>(to: A) -> io::Result<Self> {
        let addresses = address::addresses(to).await?;
        let host = Host::of_process()?;
        let mut failed = None;
        for to in addresses {
            match Self::connect_on(&host, to).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = Some(error),
            }
        }
        Err(last(failed))
    }

    /// Opens a connection on another host than that of this process.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_on(host: &Host, to: SocketAddr) -> io::Result<Self> {
        Self::open(TcpHandle::open(host, to, None, Manner::default())?).await
    }

    pub(super) async fn open(handle: TcpHandle) -> io::Result<Self> {
        poll_fn(|context| handle.poll_open(context)).await?;
        Ok(Self::new(handle))
    }

    pub(super) fn new(handle: TcpHandle) -> Self {
        Self(Arc::new(handle))
    }

    /// Another handle to the same connection.
    pub(super) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Whether it is another handle to the same connection.
    pub(super) fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// This end's address.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// The other end's address.
    ///
    /// # Errors
    /// `NotConnected`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }

    /// What has gone wrong, once.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.0.take_error()
    }

    /// Waits until one of these is possible.
    ///
    /// # Errors
    /// The stack has ended.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        poll_fn(|context| {
            self.0.socket.poll(context, |stack, _| match self.readiness(stack, interest) {
                Ready::EMPTY => Err(Error::WouldBlock),
                ready => Ok(ready),
            })
        })
        .await
    }

    fn readiness(&self, stack: &mut Stack, interest: Interest) -> Ready {
        let state = stack.tcp_info(self.0.id()).map_or(State::Closed, |info| info.state);
        let ended =
            matches!(state, State::LastAck | State::Closing | State::TimeWait | State::Closed);
        let mut ready = Ready::EMPTY;
        if interest.is_readable() {
            if stack.tcp_is_readable(self.0.id()) {
                ready |= Ready::READABLE;
            }
            if ended || state == State::CloseWait {
                ready |= Ready::READ_CLOSED;
            }
        }
        if interest.is_writable() {
            if stack.tcp_is_writable(self.0.id()) {
                ready |= Ready::WRITABLE;
            }
            if ended {
                ready |= Ready::WRITE_CLOSED;
            }
        }
        ready
    }

    /// Waits until there is something to read, or an end.
    ///
    /// # Errors
    /// The stack has ended.
    pub async fn readable(&self) -> io::Result<()> {
        self.ready(Interest::READABLE).await.map(drop)
    }

    /// Waits until there is room to write, or an end.
    ///
    /// # Errors
    /// The stack has ended.
    pub async fn writable(&self) -> io::Result<()> {
        self.ready(Interest::WRITABLE).await.map(drop)
    }

    /// Whether there is something to read.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(context, Interest::READABLE)
    }

    /// Whether there is room to write.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(context, Interest::WRITABLE)
    }

    fn poll_ready(&self, context: &Context<'_>, interest: Interest) -> Poll<io::Result<()>> {
        self.0.socket.poll(context, |stack, _| match self.readiness(stack, interest) {
            Ready::EMPTY => Err(Error::WouldBlock),
            _ => Ok(()),
        })
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is; what has ended the connection, once.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.try_read_vectored(&mut [IoSliceMut::new(into)])
    }

    /// Reads what is there into several buffers.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn try_read_vectored(&self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.socket.call(|stack, now| self.0.receive_parts(stack, now, parts))
    }

    /// Reads what is there to the end of a buffer.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn try_read_buf<B: BufMut>(&self, into: &mut B) -> io::Result<usize> {
        fill(into, |room| Ok((self.try_read(room)?, ()))).map(|(len, ())| len)
    }

    /// Writes what has room.
    ///
    /// # Errors
    /// `WouldBlock`: nothing has; what has ended the connection, once.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write_vectored(&[IoSlice::new(bytes)])
    }

    /// Writes what has room, of several buffers.
    ///
    /// # Errors
    /// As [`try_write`](Self::try_write).
    pub fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.socket.call(|stack, _| self.0.send_parts(stack, parts))
    }

    /// Calls `io`: readiness is looked up each time, so there is nothing to clear.
    ///
    /// # Errors
    /// What `io` says.
    pub fn try_io<R>(
        &self,
        _interest: Interest,
        io: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        io()
    }

    /// Waits until one of these is possible and calls `io`, again and again as long as that comes to `WouldBlock`.
    ///
    /// # Errors
    /// What `io` says; the stack has ended.
    pub async fn async_io<R>(
        &self,
        interest: Interest,
        mut io: impl FnMut() -> io::Result<R>,
    ) -> io::Result<R> {
        self.ready(interest).await?;
        poll_fn(|context| in_turn(context, |context| self.0.socket.poll_io(context, &mut io))).await
    }

    /// Waits for something to read, and leaves it where it is.
    ///
    /// # Errors
    /// What has ended the connection, once.
    pub async fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(into);
        poll_fn(|context| self.poll_peek(context, &mut buffer)).await
    }

    /// As [`peek`](Self::peek).
    ///
    /// # Errors
    /// As there.
    pub fn poll_peek(
        &self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        self.poll_receive(context, into, true)
    }

    pub(super) fn poll_receive(
        &self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
        peek: bool,
    ) -> Poll<io::Result<usize>> {
        if into.remaining() == 0 {
            return Poll::Ready(Ok(0));
        }
        in_turn(context, |context| {
            let room = into.initialize_unfilled();
            let received = self
                .0
                .socket
                .poll(context, |stack, now| stack.tcp_recv(now, self.0.id(), room, peek));
            let len = ready!(received)?;
            into.advance(len);
            Poll::Ready(Ok(len))
        })
    }

    pub(super) fn poll_send(
        &self,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        in_turn(context, |context| {
            self.0.socket.poll(context, |stack, _| self.0.send_parts(stack, parts))
        })
    }

    pub(super) fn end_writing(&self) -> io::Result<()> {
        match self.0.shutdown(Shutdown::Write) {
            // It is over already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    /// A reader and a writer, for as long as this is borrowed.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (ReadHalf(self), WriteHalf(self))
    }

    /// A reader and a writer, which may go to different tasks. The writer ends writing when it goes.
    #[must_use]
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        (OwnedReadHalf(self.share()), OwnedWriteHalf::new(self))
    }
}

impl AsRef<Self> for TcpStream {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_receive(context, into, false).map_ok(drop)
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end_writing())
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
