//! UDP sockets: what they are and send; what they take is in [`receive`], what can be set in [`options`].

mod options;
mod receive;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{Interest, Ready};

use super::blocking::conversions;
use super::{ToSocketAddrs, address, first, in_turn, last};
use crate::host::UdpHandle;
use crate::{Error, Host};

/// A UDP socket, as `tokio::net::UdpSocket`. Sending never waits.
pub struct UdpSocket(Arc<UdpHandle>);

conversions!(UdpSocket);

impl UdpSocket {
    /// A socket on the first of the addresses that can be had.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`; what the addresses themselves say.
    pub async fn bind<A: ToSocketAddrs>(at: A) -> io::Result<Self> {
        let addresses = address::addresses(at).await?;
        let host = Host::of_process()?;
        first(addresses, |at| Self::bind_on(&host, at))
    }

    /// A socket of another host than that of this process.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`.
    pub fn bind_on(host: &Host, at: SocketAddr) -> io::Result<Self> {
        UdpHandle::bind(host, at).map(|handle| Self(Arc::new(handle)))
    }

    /// Its own address.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// The peer.
    ///
    /// # Errors
    /// `NotConnected`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }

    /// Gives it a peer: only that one is heard, and errors about it are told.
    ///
    /// # Errors
    /// `NetworkUnreachable`; what the addresses themselves say.
    pub async fn connect<A: ToSocketAddrs>(&self, to: A) -> io::Result<()> {
        first(address::addresses(to).await?, |to| self.0.connect(to))
    }

    /// Waits until one of these is possible; sending always is.
    ///
    /// # Errors
    /// The stack has ended.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        if !interest.is_writable() {
            return self.readable().await.map(|()| Ready::READABLE);
        }
        let readable = self.0.socket.call(|stack, _| Ok(stack.udp_is_readable(self.0.id())))?;
        Ok(if readable && interest.is_readable() {
            Ready::READABLE | Ready::WRITABLE
        } else {
            Ready::WRITABLE
        })
    }

    /// Waits until there is a datagram.
    ///
    /// # Errors
    /// The stack has ended.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_recv_ready(context)).await
    }

    /// Waits for nothing.
    ///
    /// # Errors
    /// None.
    pub async fn writable(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether there is a datagram.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn poll_recv_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.socket.poll(context, |stack, _| match stack.udp_is_readable(self.0.id()) {
            true => Ok(()),
            false => Err(Error::WouldBlock),
        })
    }

    /// Sending is always possible.
    ///
    /// # Errors
    /// None.
    pub fn poll_send_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
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

    /// Sends a datagram to the connected peer.
    ///
    /// # Errors
    /// `EDESTADDRREQ`: it has no peer; what ICMP has told, once.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(None, bytes)
    }

    /// As [`send`](Self::send).
    ///
    /// # Errors
    /// As there.
    pub fn poll_send(&self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.send(None, bytes))
    }

    /// As [`send`](Self::send).
    ///
    /// # Errors
    /// As there.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(None, bytes)
    }

    /// Sends a datagram to the first of the addresses.
    ///
    /// # Errors
    /// `NetworkUnreachable`, `EMSGSIZE`; what the addresses themselves say.
    pub async fn send_to<A: ToSocketAddrs>(&self, bytes: &[u8], to: A) -> io::Result<usize> {
        let to = address::addresses(to).await?.first().copied().ok_or_else(|| last(None))?;
        self.0.send(Some(to), bytes)
    }

    /// Sends a datagram to an address.
    ///
    /// # Errors
    /// As [`send_to`](Self::send_to).
    pub fn poll_send_to(
        &self,
        _: &mut Context<'_>,
        bytes: &[u8],
        to: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.send(Some(to), bytes))
    }

    /// Sends a datagram to an address.
    ///
    /// # Errors
    /// As [`send_to`](Self::send_to).
    pub fn try_send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.0.send(Some(to), bytes)
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("UdpSocket");
        if let Ok(local) = self.local_addr() {
            text.field("addr", &local);
        }
        text.finish()
    }
}
