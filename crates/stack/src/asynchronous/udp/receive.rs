//! What UDP sockets take.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use tokio::io::{Interest, ReadBuf};

use super::UdpSocket;
use crate::asynchronous::{fill, in_turn};

impl UdpSocket {
    /// Waits for a datagram; what does not fit is cut off.
    ///
    /// # Errors
    /// What ICMP has told about what was sent, once.
    pub async fn recv(&self, into: &mut [u8]) -> io::Result<usize> {
        self.recv_from(into).await.map(|(len, _)| len)
    }

    /// As [`recv`](Self::recv).
    ///
    /// # Errors
    /// As there.
    pub fn poll_recv(
        &self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_receive(context, into, false).map_ok(drop)
    }

    /// Takes a datagram that is there.
    ///
    /// # Errors
    /// `WouldBlock`: none is.
    pub fn try_recv(&self, into: &mut [u8]) -> io::Result<usize> {
        self.try_recv_from(into).map(|(len, _)| len)
    }

    /// As [`recv`](Self::recv), to the end of a buffer.
    ///
    /// # Errors
    /// As there.
    pub async fn recv_buf<B: BufMut>(&self, into: &mut B) -> io::Result<usize> {
        self.recv_buf_from(into).await.map(|(len, _)| len)
    }

    /// As [`try_recv`](Self::try_recv), to the end of a buffer.
    ///
    /// # Errors
    /// As there.
    pub fn try_recv_buf<B: BufMut>(&self, into: &mut B) -> io::Result<usize> {
        self.try_recv_buf_from(into).map(|(len, _)| len)
    }

    /// As [`recv`](Self::recv), with who sent it.
    ///
    /// # Errors
    /// As there.
    pub async fn recv_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut buffer = ReadBuf::new(into);
        let from = poll_fn(|context| self.poll_recv_from(context, &mut buffer)).await?;
        Ok((buffer.filled().len(), from))
    }

    /// As [`recv_from`](Self::recv_from).
    ///
    /// # Errors
    /// As there.
    pub fn poll_recv_from(
        &self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        self.poll_receive(context, into, false)
    }

    /// As [`try_recv`](Self::try_recv), with who sent it.
    ///
    /// # Errors
    /// As there.
    pub fn try_recv_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.try_receive(into, false)
    }

    /// As [`recv_from`](Self::recv_from), to the end of a buffer.
    ///
    /// # Errors
    /// As there.
    pub async fn recv_buf_from<B: BufMut>(&self, into: &mut B) -> io::Result<(usize, SocketAddr)> {
        self.async_io(Interest::READABLE, || self.try_recv_buf_from(into)).await
    }

    /// As [`try_recv_from`](Self::try_recv_from), to the end of a buffer.
    ///
    /// # Errors
    /// As there.
    pub fn try_recv_buf_from<B: BufMut>(&self, into: &mut B) -> io::Result<(usize, SocketAddr)> {
        fill(into, |room| self.try_recv_from(room))
    }

    /// As [`recv`](Self::recv), and leaves it where it is.
    ///
    /// # Errors
    /// As there.
    pub async fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        self.peek_from(into).await.map(|(len, _)| len)
    }

    /// As [`peek`](Self::peek).
    ///
    /// # Errors
    /// As there.
    pub fn poll_peek(
        &self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_receive(context, into, true).map_ok(drop)
    }

    /// As [`try_recv`](Self::try_recv), and leaves it where it is.
    ///
    /// # Errors
    /// As there.
    pub fn try_peek(&self, into: &mut [u8]) -> io::Result<usize> {
        self.try_peek_from(into).map(|(len, _)| len)
    }

    /// As [`recv_from`](Self::recv_from), and leaves it where it is.
    ///
    /// # Errors
    /// As there.
    pub async fn peek_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut buffer = ReadBuf::new(into);
        let from = poll_fn(|context| self.poll_peek_from(context, &mut buffer)).await?;
        Ok((buffer.filled().len(), from))
    }

    /// As [`try_recv_from`](Self::try_recv_from), and leaves it where it is.
    ///
    /// # Errors
    /// As there.
    pub fn try_peek_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.try_receive(into, true)
    }

    /// Waits for a datagram, and says who sent it.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn peek_sender(&self) -> io::Result<SocketAddr> {
        poll_fn(|context| self.poll_peek_sender(context)).await
    }

    /// As [`peek_sender`](Self::peek_sender).
    ///
    /// # Errors
    /// As there.
    pub fn poll_peek_sender(&self, context: &mut Context<'_>) -> Poll<io::Result<SocketAddr>> {
        self.poll_receive(context, &mut ReadBuf::new(&mut []), true)
    }

    /// Who sent the datagram that is there.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn try_peek_sender(&self) -> io::Result<SocketAddr> {
        self.try_receive(&mut [], true).map(|(_, from)| from)
    }

    /// As [`peek_from`](Self::peek_from).
    ///
    /// # Errors
    /// As there.
    pub fn poll_peek_from(
        &self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        self.poll_receive(context, into, true)
    }

    fn try_receive(&self, into: &mut [u8], peek: bool) -> io::Result<(usize, SocketAddr)> {
        self.0.socket.call(|stack, _| stack.udp_recv(self.0.id(), into, peek))
    }

    fn poll_receive(
        &self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
        peek: bool,
    ) -> Poll<io::Result<SocketAddr>> {
        in_turn(context, |context| {
            let room = into.initialize_unfilled();
            let received =
                self.0.socket.poll(context, |stack, _| stack.udp_recv(self.0.id(), room, peek));
            let (len, from) = ready!(received)?;
            into.advance(len);
            Poll::Ready(Ok(from))
        })
    }
}
