//! What programs ask of sockets.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::Stack;
use crate::Error;
use crate::ip::NicIndex;
use crate::raw::RawId;
use crate::tcp::{Info, ListenerId, Options, Settings, TcpId};
use crate::udp::UdpId;

/// TCP.
impl Stack {
    /// Listens on an address; port 0 takes a free one. The unspecified IPv6 address stands for IPv4,
    /// too. At most `backlog` connections wait to be accepted.
    ///
    /// # Errors
    /// [`Error::AddressInUse`], [`Error::AddressNotAvailable`], [`Error::InvalidInput`], [`Error::NoDevice`].
    pub fn tcp_listen(&mut self, local: SocketAddr, backlog: usize) -> Result<ListenerId, Error> {
        self.tcp.listen(&mut self.ip, local, backlog)
    }

    /// The address of a listener.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn tcp_listener_address(&self, id: ListenerId) -> Result<SocketAddr, Error> {
        self.tcp.listener_address(id)
    }

    /// Takes the connection that has waited longest, and who is at its other end.
    ///
    /// # Errors
    /// [`Error::WouldBlock`]: there is none; [`Error::BadSocket`].
    pub fn tcp_accept(&mut self, id: ListenerId) -> Result<(TcpId, SocketAddr), Error> {
        self.tcp.accept(id)
    }

    /// Ends listening. Connections that nobody has accepted are reset.
    pub fn tcp_close_listener(&mut self, now: Instant, id: ListenerId) {
        self.tcp.close_listener(&mut self.ip, now, id);
    }

    /// Begins to open a connection; an event tells when it is open or has failed.
    ///
    /// # Errors
    /// [`Error::NetworkUnreachable`], [`Error::AddressNotAvailable`], [`Error::AddressInUse`],
    /// [`Error::InvalidInput`], [`Error::NoDevice`].
    pub fn tcp_connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Result<TcpId, Error> {
        self.tcp.connect(&mut self.ip, now, remote, local)
    }

    /// Queues bytes to be sent; returns how many had room.
    ///
    /// # Errors
    /// [`Error::WouldBlock`]: no room, or not open yet; [`Error::BrokenPipe`]; what ended the
    /// connection, once.
    pub fn tcp_send(&mut self, id: TcpId, bytes: &[u8]) -> Result<usize, Error> {
        self.tcp.send(id, bytes)
    }

    /// Takes bytes that have come; returns how many. `Ok(0)`: the other end has finished. With `peek`
    /// they stay.
    ///
    /// # Errors
    /// [`Error::WouldBlock`]: there are none yet; what ended the connection, once.
    pub fn tcp_recv(
        &mut self,
        now: Instant,
        id: TcpId,
        into: &mut [u8],
        peek: bool,
    ) -> Result<usize, Error> {
        self.tcp.recv(now, id, into, peek)
    }

    /// Ends reading, writing, or both. The other end sees an end of the stream behind everything that
    /// was written.
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::BadSocket`].
    pub fn tcp_shutdown(&mut self, id: TcpId, read: bool, write: bool) -> Result<(), Error> {
        self.tcp.shutdown(id, read, write)
    }

    /// Gives a connection back. What was written still goes out, and is acknowledged or given up
    /// without the program. The id means nothing any more.
    pub fn tcp_close(&mut self, now: Instant, id: TcpId) {
        self.tcp.close(&mut self.ip, now, id);
    }

    /// The settings of all connections.
    #[must_use]
    pub fn tcp_settings(&self) -> &Settings {
        self.tcp.settings()
    }

    /// Sets the options of a connection.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn tcp_set_options(&mut self, id: TcpId, options: Options) -> Result<(), Error> {
        self.tcp.set_options(id, options)
    }

    /// The options of a connection.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn tcp_options(&self, id: TcpId) -> Result<Options, Error> {
        self.tcp.options(id)
    }

    /// Acknowledges what comes next at once, or lets it wait for company, as `TCP_QUICKACK` does: for a
    /// while.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn tcp_set_quick_ack(&mut self, id: TcpId, quick: bool) -> Result<(), Error> {
        self.tcp.set_quick_ack(id, quick)
    }

    /// Whether what comes next is acknowledged at once.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn tcp_quick_ack(&self, id: TcpId) -> Result<bool, Error> {
        self.tcp.quick_ack(id)
    }

    /// What has gone wrong with a connection, once.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn tcp_take_error(&mut self, id: TcpId) -> Result<Option<Error>, Error> {
        self.tcp.take_error(id)
    }

    /// True if [`tcp_recv`](Self::tcp_recv) has something to say but [`Error::WouldBlock`].
    #[must_use]
    pub fn tcp_is_readable(&self, id: TcpId) -> bool {
        self.tcp.is_readable(id)
    }

    /// True if [`tcp_send`](Self::tcp_send) has a good deal of room, or something to say but
    /// [`Error::WouldBlock`]. If not, an event tells when it has.
    #[must_use]
    pub fn tcp_is_writable(&mut self, id: TcpId) -> bool {
        self.tcp.is_writable(id)
    }

    /// True if [`tcp_accept`](Self::tcp_accept) has something to say but [`Error::WouldBlock`].
    #[must_use]
    pub fn tcp_is_acceptable(&self, id: ListenerId) -> bool {
        self.tcp.is_acceptable(id)
    }

    /// What is known about a connection.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn tcp_info(&self, id: TcpId) -> Result<Info, Error> {
        self.tcp.info(id)
    }
}

/// UDP.
impl Stack {
    /// Makes a UDP socket; port 0 takes a free one. The unspecified IPv6 address stands for IPv4, too.
    ///
    /// # Errors
    /// [`Error::AddressInUse`], [`Error::AddressNotAvailable`], [`Error::InvalidInput`], [`Error::NoDevice`].
    pub fn udp_bind(&mut self, local: SocketAddr) -> Result<UdpId, Error> {
        self.udp.bind(&mut self.ip, local)
    }

    /// Connects a socket to one peer: only that one is heard, and errors about it are told.
    ///
    /// # Errors
    /// [`Error::NetworkUnreachable`], [`Error::BadSocket`], [`Error::InvalidInput`], [`Error::NoDevice`].
    pub fn udp_connect(
        &mut self,
        now: Instant,
        id: UdpId,
        remote: SocketAddr,
    ) -> Result<(), Error> {
        self.udp.connect(&self.ip, now, id, remote)
    }

    /// Sends a datagram, to the connected peer if `to` is not given.
    ///
    /// # Errors
    /// [`Error::MessageTooLong`], [`Error::DestinationRequired`], [`Error::PermissionDenied`] (a broadcast that
    /// was not asked for), [`Error::NetworkUnreachable`], [`Error::HostUnreachable`], [`Error::NoBuffers`],
    /// [`Error::InvalidInput`], [`Error::NoDevice`]; what an ICMP error has told, once.
    pub fn udp_send(
        &mut self,
        now: Instant,
        id: UdpId,
        to: Option<SocketAddr>,
        payload: &[u8],
    ) -> Result<(), Error> {
        self.udp.send(&mut self.ip, now, id, to, payload)
    }

    /// Takes a datagram: its length, and who sent it. What does not fit `into` is cut off. With
    /// `peek` it stays.
    ///
    /// # Errors
    /// [`Error::WouldBlock`]: there is none; what an ICMP error has told, once.
    pub fn udp_recv(
        &mut self,
        id: UdpId,
        into: &mut [u8],
        peek: bool,
    ) -> Result<(usize, SocketAddr), Error> {
        self.udp.recv(id, into, !peek)
    }

    /// The socket's address, and that of its peer if it is connected.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn udp_addresses(&self, id: UdpId) -> Result<(SocketAddr, Option<SocketAddr>), Error> {
        self.udp.addresses(id)
    }

    /// Lets a socket send to broadcast addresses, or not.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn udp_set_broadcast(&mut self, id: UdpId, on: bool) -> Result<(), Error> {
        self.udp.set_broadcast(id, on)
    }

    /// How far a socket's multicast datagrams go, and whether this host's own sockets hear them.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn udp_set_multicast(&mut self, id: UdpId, hops: u8, looped: bool) -> Result<(), Error> {
        self.udp.set_multicast(id, hops, looped)
    }

    /// Joins a multicast group.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: no group, or no such interface; [`Error::AddressInUse`]: joined
    /// already; [`Error::NoBuffers`]: too many.
    pub fn udp_join(&mut self, id: UdpId, nic: NicIndex, group: IpAddr) -> Result<(), Error> {
        self.udp.join(&mut self.ip, id, nic, group)
    }

    /// Leaves a multicast group.
    ///
    /// # Errors
    /// [`Error::AddressNotAvailable`]: not joined.
    pub fn udp_leave(&mut self, id: UdpId, nic: NicIndex, group: IpAddr) -> Result<(), Error> {
        self.udp.leave(&mut self.ip, id, nic, group)
    }

    /// How many routers a socket's datagrams to single hosts may pass; `None`: as the interface has it.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn udp_set_hop_limit(&mut self, id: UdpId, hops: Option<u8>) -> Result<(), Error> {
        self.udp.set_hop_limit(id, hops)
    }

    /// The type of service, or traffic class, of a socket's datagrams.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn udp_set_traffic_class(&mut self, id: UdpId, class: u8) -> Result<(), Error> {
        self.udp.set_traffic_class(id, class)
    }

    /// True if [`udp_recv`](Self::udp_recv) has something to say but [`Error::WouldBlock`].
    #[must_use]
    pub fn udp_is_readable(&self, id: UdpId) -> bool {
        self.udp.is_readable(id)
    }

    /// What has gone wrong with a socket, once.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn udp_take_error(&mut self, id: UdpId) -> Result<Option<Error>, Error> {
        self.udp.take_error(id)
    }

    /// Gives a socket back.
    pub fn udp_close(&mut self, id: UdpId) {
        self.udp.close(&mut self.ip, id);
    }
}

/// Packets of one IP protocol, without their IP header.
impl Stack {
    /// Opens a raw socket on an address, or with the unspecified one on all of its family; the port means nothing. It
    /// hears every packet of `protocol` (ICMP is 1, ICMPv6 58) that is for one host or a group, beside whoever else
    /// takes it. Of ICMPv6 only what has a right checksum (RFC 3542 section 3.1); TCP and UDP as the device brings them:
    /// several segments in one, with checksums that are left to be filled in, where it does that.
    ///
    /// # Errors
    /// [`Error::AddressNotAvailable`], [`Error::InvalidInput`], [`Error::NoDevice`]; [`Error::NoBuffers`]: there
    /// are 64 already.
    pub fn raw_open(&mut self, local: SocketAddr, protocol: u8) -> Result<RawId, Error> {
        self.raw.open(&self.ip, local, protocol)
    }

    /// Sends what is behind the IP header. Of ICMPv6 the checksum is filled in, else everything is as it is given.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: an address of the other family, or one that does not say of which link;
    /// [`Error::MessageTooLong`], [`Error::NetworkUnreachable`], [`Error::HostUnreachable`],
    /// [`Error::NoBuffers`], [`Error::NoDevice`], [`Error::BadSocket`].
    pub fn raw_send(
        &mut self,
        now: Instant,
        id: RawId,
        to: SocketAddr,
        payload: &[u8],
    ) -> Result<(), Error> {
        self.raw.send(&mut self.ip, now, id, to, payload)
    }

    /// Takes what was behind the IP header of a packet: its length, and who sent it, with port 0. What does not fit
    /// `into` is cut off. With `peek` it stays.
    ///
    /// # Errors
    /// [`Error::WouldBlock`]: there is none; [`Error::BadSocket`].
    pub fn raw_recv(
        &mut self,
        id: RawId,
        into: &mut [u8],
        peek: bool,
    ) -> Result<(usize, SocketAddr), Error> {
        self.raw.recv(id, into, !peek)
    }

    /// The socket's address, with port 0.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn raw_address(&self, id: RawId) -> Result<SocketAddr, Error> {
        self.raw.local(id)
    }

    /// Joins a multicast group, which a socket on one address hears from then on, too. What is sent to the group without
    /// naming a link goes to this one.
    ///
    /// # Errors
    /// As [`udp_join`](Self::udp_join).
    pub fn raw_join(&mut self, id: RawId, nic: NicIndex, group: IpAddr) -> Result<(), Error> {
        self.raw.join(&mut self.ip, id, nic, group)
    }

    /// Leaves a multicast group.
    ///
    /// # Errors
    /// [`Error::AddressNotAvailable`]: not joined.
    pub fn raw_leave(&mut self, id: RawId, nic: NicIndex, group: IpAddr) -> Result<(), Error> {
        self.raw.leave(&mut self.ip, id, nic, group)
    }

    /// How many routers a socket's packets may pass; `None`: as the interface has it, and none where they go to a group.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn raw_set_hop_limit(&mut self, id: RawId, hops: Option<u8>) -> Result<(), Error> {
        self.raw.set_hop_limit(id, hops)
    }

    /// Gives a socket back.
    pub fn raw_close(&mut self, id: RawId) {
        self.raw.close(&mut self.ip, id);
    }
}
