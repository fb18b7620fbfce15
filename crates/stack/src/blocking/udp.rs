//! UDP sockets.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::ToSocketAddrs;
use crate::Host;
use crate::host::{Patience, Place, UdpHandle};

/// A UDP socket, as `std::net::UdpSocket`.
pub struct UdpSocket(Arc<Inner>);

struct Inner {
    handle: UdpHandle,
    patience: Patience,
}

impl UdpSocket {
    /// A socket on the first of the addresses that can be had.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`; what the addresses themselves say.
    pub fn bind<A: ToSocketAddrs>(at: A) -> io::Result<Self> {
        let host = Host::of_process()?;
        super::first(at.to_socket_addrs()?, |at| Self::bind_on(&host, at))
    }

    /// A socket of another host than that of this process.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`.
    pub fn bind_on(host: &Host, at: SocketAddr) -> io::Result<Self> {
        let handle = UdpHandle::bind(host, at)?;
        Ok(Self(Arc::new(Inner { handle, patience: Patience::default() })))
    }

    /// Waits for a datagram: its length, and who sent it. What does not fit is cut off.
    ///
    /// # Errors
    /// `WouldBlock`: there is none in time; what ICMP has told about what was sent, once.
    pub fn recv_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.receive(into, false)
    }

    /// As [`recv_from`](Self::recv_from), and leaves it where it is.
    ///
    /// # Errors
    /// As there.
    pub fn peek_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.receive(into, true)
    }

    /// As [`recv_from`](Self::recv_from), without the sender.
    ///
    /// # Errors
    /// As there.
    pub fn recv(&self, into: &mut [u8]) -> io::Result<usize> {
        self.receive(into, false).map(|(len, _)| len)
    }

    /// As [`recv`](Self::recv), and leaves it where it is.
    ///
    /// # Errors
    /// As there.
    pub fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        self.receive(into, true).map(|(len, _)| len)
    }

    fn receive(&self, into: &mut [u8], peek: bool) -> io::Result<(usize, SocketAddr)> {
        let Inner { handle, patience } = &*self.0;
        let deadline = patience.deadline(patience.read());
        handle.socket.wait(deadline, |stack, _| stack.udp_recv(handle.id(), into, peek))
    }

    /// Sends a datagram to the first of the addresses.
    ///
    /// # Errors
    /// `NetworkUnreachable`, `EMSGSIZE`; `InvalidInput`: no address.
    pub fn send_to<A: ToSocketAddrs>(&self, bytes: &[u8], to: A) -> io::Result<usize> {
        let to = to.to_socket_addrs()?.next();
        let to = to.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "no addresses to send data to")
        })?;
        self.0.handle.send(Some(to), bytes)
    }

    /// Sends a datagram to the connected peer.
    ///
    /// # Errors
    /// `NotConnected`; what ICMP has told, once.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.handle.send(None, bytes)
    }

    /// Gives it a peer: only that one is heard, and errors about it are told.
    ///
    /// # Errors
    /// `NetworkUnreachable`; what the addresses themselves say.
    pub fn connect<A: ToSocketAddrs>(&self, to: A) -> io::Result<()> {
        super::first(to.to_socket_addrs()?, |to| self.0.handle.connect(to))
    }

    /// The peer.
    ///
    /// # Errors
    /// `NotConnected`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.handle.peer_addr()
    }

    /// Its own address.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.handle.local_addr()
    }

    /// Another handle to the same socket.
    ///
    /// # Errors
    /// None.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(Arc::clone(&self.0)))
    }

    /// How long receiving waits: then it ends with `WouldBlock`.
    ///
    /// # Errors
    /// `InvalidInput`: no time at all.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.0.patience.set_read(limit)
    }

    /// How long sending waits: it never does.
    ///
    /// # Errors
    /// `InvalidInput`: no time at all.
    pub fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.0.patience.set_write(limit)
    }

    /// How long receiving waits.
    ///
    /// # Errors
    /// None.
    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.0.patience.read())
    }

    /// How long sending waits.
    ///
    /// # Errors
    /// None.
    pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.0.patience.write())
    }

    /// Lets it send to broadcast addresses, or not.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
        self.0.handle.change(|settings| settings.broadcast = broadcast)
    }

    /// Whether it may send to broadcast addresses.
    ///
    /// # Errors
    /// None.
    pub fn broadcast(&self) -> io::Result<bool> {
        Ok(self.0.handle.settings().broadcast)
    }

    /// Lets this host's own sockets hear what it sends to groups, or not.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn set_multicast_loop_v4(&self, looped: bool) -> io::Result<()> {
        self.0.handle.change(|settings| settings.multicast_loop = looped)
    }

    /// Whether this host's own sockets hear what it sends to groups.
    ///
    /// # Errors
    /// None.
    pub fn multicast_loop_v4(&self) -> io::Result<bool> {
        Ok(self.0.handle.settings().multicast_loop)
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
        self.0.handle.change(|settings| settings.multicast_hops = hops)
    }

    /// How many routers datagrams to groups may pass.
    ///
    /// # Errors
    /// None.
    pub fn multicast_ttl_v4(&self) -> io::Result<u32> {
        Ok(self.0.handle.settings().multicast_hops.into())
    }

    /// Sets how many routers datagrams to single hosts may pass.
    ///
    /// # Errors
    /// `InvalidInput`: not 1 to 255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        let hops = crate::host::hop_limit(ttl)?;
        self.0.handle.change(|settings| settings.hops = Some(hops))
    }

    /// How many routers datagrams to single hosts may pass.
    ///
    /// # Errors
    /// None.
    pub fn ttl(&self) -> io::Result<u32> {
        Ok(crate::host::ttl(self.0.handle.settings().hops))
    }

    /// Joins a group, on the interface with this address; the unspecified one is the first interface.
    ///
    /// # Errors
    /// `InvalidInput`: no group; `AddrNotAvailable`: no such interface; `AddrInUse`: joined already.
    pub fn join_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        let place = Place::Address(IpAddr::V4(*interface));
        self.0.handle.member(true, IpAddr::V4(*group), place)
    }

    /// Joins a group, on the interface with this number, from 1; 0 is the first interface.
    ///
    /// # Errors
    /// As [`join_multicast_v4`](Self::join_multicast_v4).
    pub fn join_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.0.handle.member(true, IpAddr::V6(*group), Place::Number(interface))
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// `AddrNotAvailable`: not joined.
    pub fn leave_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        let place = Place::Address(IpAddr::V4(*interface));
        self.0.handle.member(false, IpAddr::V4(*group), place)
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// `AddrNotAvailable`: not joined.
    pub fn leave_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.0.handle.member(false, IpAddr::V6(*group), Place::Number(interface))
    }

    /// What has gone wrong, once.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.0.handle.take_error()
    }

    /// Makes receiving end with `WouldBlock` where it would wait, or wait.
    ///
    /// # Errors
    /// None.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.patience.set_nonblocking(nonblocking);
        Ok(())
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
