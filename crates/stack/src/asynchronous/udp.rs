//! UDP sockets.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll, ready};

use tokio::io::{Interest, ReadBuf, Ready};

use super::{ToSocketAddrs, address, first, in_turn, last};
use crate::host::{Place, UdpHandle};
use crate::{Error, Host};

/// A UDP socket, as `tokio::net::UdpSocket`. Sending never waits.
pub struct UdpSocket(UdpHandle);

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
        UdpHandle::bind(host, at).map(Self)
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

    /// Sends a datagram to the connected peer.
    ///
    /// # Errors
    /// `NotConnected`; what ICMP has told, once.
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
        self.0.socket.call(|stack, _| stack.udp_recv(self.0.id(), into, false))
    }

    /// As [`recv`](Self::recv), and leaves it where it is.
    ///
    /// # Errors
    /// As there.
    pub async fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        self.peek_from(into).await.map(|(len, _)| len)
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

    /// Lets it send to broadcast addresses, or not.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
        self.0.change(|settings| settings.broadcast = broadcast)
    }

    /// Whether it may send to broadcast addresses.
    ///
    /// # Errors
    /// None.
    pub fn broadcast(&self) -> io::Result<bool> {
        Ok(self.0.settings().broadcast)
    }

    /// Lets this host's own sockets hear what it sends to groups, or not.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_multicast_loop_v4(&self, looped: bool) -> io::Result<()> {
        self.0.change(|settings| settings.multicast_loop = looped)
    }

    /// Whether this host's own sockets hear what it sends to groups.
    ///
    /// # Errors
    /// None.
    pub fn multicast_loop_v4(&self) -> io::Result<bool> {
        Ok(self.0.settings().multicast_loop)
    }

    /// The same for IPv6: there is one setting for both.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_multicast_loop_v6(&self, looped: bool) -> io::Result<()> {
        self.set_multicast_loop_v4(looped)
    }

    /// The same for IPv6.
    ///
    /// # Errors
    /// None.
    pub fn multicast_loop_v6(&self) -> io::Result<bool> {
        self.multicast_loop_v4()
    }

    /// Sets how many routers datagrams to groups may pass.
    ///
    /// # Errors
    /// `InvalidInput`: more than 255.
    pub fn set_multicast_ttl_v4(&self, ttl: u32) -> io::Result<()> {
        let hops = u8::try_from(ttl).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.0.change(|settings| settings.multicast_hops = hops)
    }

    /// How many routers datagrams to groups may pass.
    ///
    /// # Errors
    /// None.
    pub fn multicast_ttl_v4(&self) -> io::Result<u32> {
        Ok(self.0.settings().multicast_hops.into())
    }

    /// Sets how many routers datagrams to single hosts may pass.
    ///
    /// # Errors
    /// `InvalidInput`: not 1 to 255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        let hops = crate::host::hop_limit(ttl)?;
        self.0.change(|settings| settings.hops = Some(hops))
    }

    /// How many routers datagrams to single hosts may pass.
    ///
    /// # Errors
    /// None.
    pub fn ttl(&self) -> io::Result<u32> {
        Ok(crate::host::ttl(self.0.settings().hops))
    }

    /// Joins a group, on the interface with this address; the unspecified one is the first interface.
    ///
    /// # Errors
    /// `InvalidInput`: no group; `AddrNotAvailable`: no such interface; `AddrInUse`: joined already.
    pub fn join_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.0.member(true, IpAddr::V4(group), Place::Address(IpAddr::V4(interface)))
    }

    /// Joins a group, on the interface with this number, from 1; 0 is the first interface.
    ///
    /// # Errors
    /// As [`join_multicast_v4`](Self::join_multicast_v4).
    pub fn join_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.0.member(true, IpAddr::V6(*group), Place::Number(interface))
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// `AddrNotAvailable`: not joined.
    pub fn leave_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.0.member(false, IpAddr::V4(group), Place::Address(IpAddr::V4(interface)))
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// `AddrNotAvailable`: not joined.
    pub fn leave_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.0.member(false, IpAddr::V6(*group), Place::Number(interface))
    }

    /// What has gone wrong, once.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.0.take_error()
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
