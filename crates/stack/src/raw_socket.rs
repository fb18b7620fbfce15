//! Raw sockets of a host, as programs hold them. Neither the standard library nor tokio has such.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::host::{Patience, Place, Socket, hop_limit};
use crate::{Event, Host, RawId};

/// A socket for packets of one IP protocol, such as ICMP (1, for IPv6 58), OSPF (89) or one of the program's own,
/// without their IP header. It ends when it is dropped.
pub struct RawSocket {
    socket: Socket,
    id: RawId,
    patience: Patience,
}

impl RawSocket {
    /// A socket of the host of this process; see [`Stack::raw_open`](crate::Stack::raw_open).
    ///
    /// # Errors
    /// `AddrNotAvailable`, `InvalidInput`; what [`Host::of_process`] says.
    pub fn open(local: SocketAddr, protocol: u8) -> io::Result<Self> {
        Self::open_on(&Host::of_process()?, local, protocol)
    }

    /// A socket of another host.
    ///
    /// # Errors
    /// `AddrNotAvailable`, `InvalidInput`.
    pub fn open_on(host: &Host, local: SocketAddr, protocol: u8) -> io::Result<Self> {
        let id = host.call(|stack, _| stack.raw_open(local, protocol))?;
        let socket = Socket::new(host, Event::Raw(id));
        Ok(Self { socket, id, patience: Patience::default() })
    }

    /// Waits for a packet: how long it was behind its IP header, and who sent it, with port 0. What does not fit is
    /// cut off.
    ///
    /// # Errors
    /// `WouldBlock`: there is none in time.
    pub fn recv_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let deadline = self.patience.deadline(self.patience.read());
        self.socket.wait(deadline, |stack, _| stack.raw_recv(self.id, into, false))
    }

    /// As [`recv_from`](Self::recv_from), without holding up the thread, on any executor.
    ///
    /// # Errors
    /// The stack has ended.
    #[cfg(feature = "tokio")]
    pub async fn recv_from_async(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        std::future::poll_fn(|context| {
            self.socket.poll(context, |stack, _| stack.raw_recv(self.id, into, false))
        })
        .await
    }

    /// Sends what is behind the IP header; see [`Stack::raw_send`](crate::Stack::raw_send). It never waits.
    ///
    /// # Errors
    /// `NetworkUnreachable`, `EMSGSIZE`; `InvalidInput`: an address of the other family.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.socket.call(|stack, now| stack.raw_send(now, self.id, to, bytes))?;
        Ok(bytes.len())
    }

    /// Its own address, with port 0.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.call(|stack, _| stack.raw_address(self.id))
    }

    /// Joins a group, on the interface with this address; the unspecified one is the first interface. What is sent to
    /// the group goes there.
    ///
    /// # Errors
    /// `InvalidInput`: no group; `AddrInUse`: joined already; there is no such interface.
    pub fn join_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        self.member(true, IpAddr::V4(*group), Place::Address(IpAddr::V4(*interface)))
    }

    /// Joins a group, on the interface with this number, from 1; 0 is the first interface.
    ///
    /// # Errors
    /// As [`join_multicast_v4`](Self::join_multicast_v4).
    pub fn join_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.member(true, IpAddr::V6(*group), Place::Number(interface))
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// `AddrNotAvailable`: not joined; there is no such interface.
    pub fn leave_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        self.member(false, IpAddr::V4(*group), Place::Address(IpAddr::V4(*interface)))
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// As [`leave_multicast_v4`](Self::leave_multicast_v4).
    pub fn leave_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.member(false, IpAddr::V6(*group), Place::Number(interface))
    }

    fn member(&self, joins: bool, group: IpAddr, place: Place) -> io::Result<()> {
        self.socket.call(|stack, _| {
            let nic = place.find(stack)?;
            match joins {
                true => stack.raw_join(self.id, nic, group),
                false => stack.raw_leave(self.id, nic, group),
            }
        })
    }

    /// How many routers its packets may pass, those to groups, too.
    ///
    /// # Errors
    /// `InvalidInput`: not 1 to 255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        let hops = hop_limit(ttl)?;
        self.socket.call(|stack, _| stack.raw_set_hop_limit(self.id, Some(hops)))
    }

    /// How long receiving waits: then it ends with `WouldBlock`.
    ///
    /// # Errors
    /// `InvalidInput`: no time at all.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.patience.set_read(limit)
    }

    /// Whether receiving waits at all.
    ///
    /// # Errors
    /// None.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.patience.set_nonblocking(nonblocking);
        Ok(())
    }
}

impl Drop for RawSocket {
    fn drop(&mut self) {
        let id = self.id;
        self.socket.close(|stack, _| stack.raw_close(id));
    }
}

impl fmt::Debug for RawSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawSocket").field("id", &self.id).finish_non_exhaustive()
    }
}
