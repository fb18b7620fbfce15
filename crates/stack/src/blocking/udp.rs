//! UDP sockets.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::ToSocketAddrs;
use crate::Host;
use crate::host::{Place, UdpHandle, udp_options};

/// A UDP socket, as `std::net::UdpSocket`.
pub struct UdpSocket(pub(crate) Arc<UdpHandle>);

udp_options!(UdpSocket);

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
        UdpHandle::bind(host, at).map(|handle| Self(Arc::new(handle)))
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
        let handle = &*self.0;
        let deadline = handle.patience.deadline(handle.patience.read());
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
        self.0.send(Some(to), bytes)
    }

    /// Sends a datagram to the connected peer.
    ///
    /// # Errors
    /// `EDESTADDRREQ`: it has no peer; what ICMP has told, once.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(None, bytes)
    }

    /// Gives it a peer: only that one is heard, and errors about it are told.
    ///
    /// # Errors
    /// `NetworkUnreachable`; what the addresses themselves say.
    pub fn connect<A: ToSocketAddrs>(&self, to: A) -> io::Result<()> {
        super::first(to.to_socket_addrs()?, |to| self.0.connect(to))
    }

    /// The peer.
    ///
    /// # Errors
    /// `NotConnected`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }

    /// Its own address.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
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

    /// Joins a group, on the interface with this address; the unspecified one is the first interface.
    ///
    /// # Errors
    /// `InvalidInput`: no group; `AddrNotAvailable`: no such interface; `AddrInUse`: joined already.
    pub fn join_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        let place = Place::Address(IpAddr::V4(*interface));
        self.0.member(true, IpAddr::V4(*group), place)
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// `AddrNotAvailable`: not joined.
    pub fn leave_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        let place = Place::Address(IpAddr::V4(*interface));
        self.0.member(false, IpAddr::V4(*group), place)
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
