//! UDP sockets that answer from the address that was asked, also where they are bound to every address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use netyard_sys::arrival;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A datagram that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Came {
    /// Its length, bytes.
    pub(crate) len: usize,
    /// Who sent it.
    pub(crate) from: SocketAddr,
    /// The address and port of this machine that it was sent to.
    pub(crate) to: SocketAddr,
}

/// A bound UDP socket.
#[derive(Debug)]
pub(crate) struct Datagrams {
    socket: UdpSocket,
    local: SocketAddr,
}

impl Datagrams {
    /// Has to be called in a tokio runtime with IO. On every address it is told where datagrams arrive if
    /// the socket is that of a [server](crate::Bind::datagram_server).
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let socket = UdpSocket::from_std(socket)?;
        Ok(Self { local: socket.local_addr()?, socket })
    }

    /// Where it is bound.
    pub(crate) const fn local(&self) -> SocketAddr {
        self.local
    }

    fn is_everywhere(&self) -> bool {
        self.local.ip().is_unspecified()
    }

    /// Hears and talks to this other end only.
    pub(crate) async fn connect(&mut self, to: SocketAddr) -> io::Result<()> {
        self.socket.connect(to).await?;
        self.local = self.socket.local_addr()?;
        Ok(())
    }

    /// Waits for a datagram.
    pub(crate) async fn recv(&self, into: &mut [u8]) -> io::Result<Came> {
        if !self.is_everywhere() {
            let (len, from) = self.socket.recv_from(into).await?;
            return Ok(Came { len, from, to: self.local });
        }
        let take = || arrival::receive(self.socket.as_fd(), into);
        let arrival::Arrived { len, from, at } =
            self.socket.async_io(Interest::READABLE, take).await?;
        let mut to = at.unwrap_or(self.local);
        to.set_port(self.local.port());
        Ok(Came { len, from, to })
    }

    /// Sends to the other end that it is connected to.
    pub(crate) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send(bytes).await.map(drop)
    }

    /// Sends, on every address from this one of them.
    pub(crate) async fn send_from(
        &self,
        bytes: &[u8],
        from: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<()> {
        if !self.is_everywhere() || from.ip().is_unspecified() {
            return self.socket.send_to(bytes, to).await.map(drop);
        }
        let give = || arrival::send(self.socket.as_fd(), bytes, from, to);
        self.socket.async_io(Interest::WRITABLE, give).await.map(drop)
    }
}
