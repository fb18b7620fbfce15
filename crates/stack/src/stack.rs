//! The stack: frames and time in, frames and events out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use netyard_wire::arp::Arp;
use netyard_wire::dhcp::v4::CLIENT_PORT;
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, IcmpError};
use netyard_wire::ip::{self as protocol, IpPacket};
use netyard_wire::tcp::Segment;
use netyard_wire::udp::{Datagram, destination_port};
use netyard_wire::{Checksum, Frame, FrameBuf, MacAddr, Offload, Quoted};

use crate::Error;
use crate::event::{Event, Events};
use crate::ip::{Destination, Ip, Medium, NicIndex};
use crate::tcp::{self, Info, ListenerId, Settings, Tcp, TcpId};
use crate::udp::{self, Udp, UdpId};

/// A TCP/IP host: interfaces, addresses, routes, sockets. No IO, no clock, no randomness of its own.
///
/// The program hands in what the devices bring ([`handle_frame`](Self::handle_frame)) and lets time pass
/// ([`handle_timeout`](Self::handle_timeout) at [`poll_timeout`](Self::poll_timeout)); after that, and
/// after each call on a socket, it sends what [`poll_transmit`](Self::poll_transmit) has as long as
/// the devices have room, and looks at what [`poll_event`](Self::poll_event) tells.
///
/// Frames have an Ethernet header in any case, and may be super-frames of up to 64 KiB with the
/// meaning of a virtio-net header, in both directions. Who cannot take them cuts them with
/// [`netyard_wire::fit`].
#[derive(Debug)]
pub struct Stack {
    ip: Ip,
    tcp: Tcp,
    udp: Udp,
    events: Events,
}

/// What a stack has in its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// TCP connections.
    pub connections: usize,
    /// TCP connections that a peer is opening.
    pub opening: usize,
    /// TCP connections that are over and remembered.
    pub time_wait: usize,
}

impl Stack {
    /// A stack without interfaces. `seed` must be unpredictable: sequence numbers and ports are made
    /// of it.
    #[must_use]
    pub fn new(now: Instant, seed: [u8; 32], settings: Settings) -> Self {
        let mut ip = Ip::new(seed, now);
        let tcp = Tcp::new(now, &mut ip, settings);
        Self { ip, tcp, udp: Udp::default(), events: Events::default() }
    }

    // ------------------------------------------------------------------------- interfaces --

    /// Adds an interface. `mtu`: the largest IP packet, bytes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: less than IPv4 needs (68 bytes, RFC 791), or more than a packet can
    /// have.
    pub fn add_nic(&mut self, medium: Medium, mtu: u32) -> Result<NicIndex, Error> {
        if !(68..=65_535).contains(&mtu) {
            return Err(Error::InvalidInput);
        }
        self.ip.add_nic(medium, mtu)
    }

    /// Gives an interface an address, with a route to the prefix that it is in. With IPv6 and
    /// Ethernet the interface asks whether somebody else has it, and gets a link-local address, too.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: no such interface, or an address that no host has;
    /// [`Error::NoBuffers`]: too many.
    pub fn add_address(&mut self, now: Instant, nic: NicIndex, net: IpNet) -> Result<(), Error> {
        self.ip.add_address(now, nic, net)
    }

    /// Adds a route. `gateway`: the next hop; without one, destinations are on the link.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: no such interface, or a gateway of the other family;
    /// [`Error::NoBuffers`]: too many.
    pub fn add_route(
        &mut self,
        prefix: IpNet,
        nic: NicIndex,
        gateway: Option<IpAddr>,
    ) -> Result<(), Error> {
        self.ip.add_route(prefix, nic, gateway)
    }

    /// Makes an Ethernet interface ask for IPv6 routers, and make itself addresses of what they
    /// advertise (RFC 4862).
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: no such interface, or no Ethernet.
    pub fn enable_autoconf(&mut self, now: Instant, nic: NicIndex) -> Result<(), Error> {
        self.ip.enable_autoconf(now, nic)
    }

    /// Makes an Ethernet interface ask for its IPv4 address by DHCP (RFC 2131).
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: no such interface, or no Ethernet.
    pub fn enable_dhcp(&mut self, now: Instant, nic: NicIndex) -> Result<(), Error> {
        self.ip.enable_dhcp(now, nic)
    }

    /// Sets the hardware address of a neighbour, which is not asked for any more.
    pub fn set_neighbor(&mut self, nic: NicIndex, ip: IpAddr, mac: MacAddr) {
        self.ip.set_neighbor(nic, ip, mac);
    }

    /// The addresses of an interface; none if there is no such interface.
    #[must_use]
    pub fn addresses(&self, nic: NicIndex) -> Vec<IpNet> {
        self.ip.addresses(nic)
    }

    /// Resolvers that DHCP servers and routers have named (RFC 2132 section 3.8, RFC 8106).
    #[must_use]
    pub fn resolvers(&self, now: Instant) -> Vec<SocketAddr> {
        self.ip.resolvers(now)
    }

    /// The interfaces, in the order in which they were added.
    pub fn nics(&self) -> impl Iterator<Item = NicIndex> {
        self.ip.indexes().map(|(index, _)| index)
    }

    /// The address that packets to `destination` leave with; `None`: no route leads there.
    #[must_use]
    pub fn source(&self, now: Instant, destination: IpAddr) -> Option<IpAddr> {
        self.ip.path(now, None, None, destination.to_canonical()).ok().map(|path| path.source)
    }

    /// How many packets were dropped for which reason.
    #[must_use]
    pub fn drops(&self) -> &BTreeMap<&'static str, u64> {
        &self.ip.drops
    }

    /// Counts a packet that was dropped before it got here.
    pub fn count_drop(&mut self, reason: &'static str) {
        self.ip.drop(reason);
    }

    /// What is in the tables.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (connections, opening, time_wait) = self.tcp.counts();
        Counts { connections, opening, time_wait }
    }

    // ----------------------------------------------------------------------- frames and time --

    /// Takes a frame that an interface has received.
    pub fn handle_frame(&mut self, now: Instant, nic: NicIndex, frame: Frame<'_>) {
        let Some(interface) = self.ip.nic(nic) else { return };
        let (medium, own) = (interface.medium, interface.mac());
        let (header, packet) = match Ethernet::parse(frame.bytes) {
            Ok(parts) => parts,
            Err(error) => return self.ip.drop(error.reason()),
        };
        if medium != Medium::Ip {
            if header.destination != own && !header.destination.is_multicast() {
                return self.ip.drop("ethernet-destination");
            }
            if header.ethertype == ethernet::ARP {
                return match Arp::parse(packet) {
                    Ok(arp) => self.ip.handle_arp(now, nic, &arp),
                    Err(error) => self.ip.drop(error.reason()),
                };
            }
        }
        let group = medium != Medium::Ip && header.destination.is_multicast();
        match IpPacket::parse(header.ethertype, packet) {
            Ok(packet) => self.handle_packet(now, Some(nic), &packet, frame.offload, group),
            Err(error) => self.ip.drop(error.reason()),
        }
    }

    /// Takes a frame that this host has sent to itself.
    fn handle_looped(&mut self, now: Instant, frame: &FrameBuf) {
        let packet = Ethernet::parse(&frame.bytes)
            .and_then(|(header, packet)| IpPacket::parse(header.ethertype, packet));
        match packet {
            Ok(packet) => self.handle_packet(now, None, &packet, frame.offload, false),
            Err(error) => self.ip.drop(error.reason()),
        }
    }

    /// `group`: it came in a frame to a group of stations.
    fn handle_packet(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
        offload: Offload,
        group: bool,
    ) {
        let source = packet.source;
        let strange = source.is_multicast() || self.ip.is_broadcast(source);
        let loops = source.is_loopback() || packet.destination.is_loopback();
        if strange || (nic.is_some() && loops) {
            return self.ip.drop("ip-source");
        }
        // A server writes to an address that is not ours yet.
        if let Some(nic) = nic.filter(|nic| self.ip.has_dhcp(*nic))
            && destination_port(packet) == Some(CLIENT_PORT)
            && packet.source.is_ipv4()
        {
            return match Datagram::parse(packet, offload.checksum) {
                Ok(datagram) => self.ip.handle_dhcp(now, nic, datagram.payload),
                Err(error) => self.ip.drop(error.reason()),
            };
        }
        let Some(kind) = self.ip.destination(nic, packet.destination) else {
            // Groups that nobody here is in are everyday traffic of a link.
            if !packet.destination.is_multicast() {
                self.ip.drop("ip-destination");
            }
            return;
        };
        if group && kind == Destination::Own {
            // RFC 1122 section 3.3.6: not for one host, whatever the packet says.
            return self.ip.drop("ip-group-frame");
        }
        if packet.fragment.is_none() {
            return self.deliver(now, nic, packet, offload, kind);
        }
        if let Some(payload) = self.ip.reassemble(now, packet) {
            let whole = IpPacket { fragment: None, payload: &payload, ..*packet };
            let offload = Offload { checksum: Checksum::Present, gso: None };
            self.deliver(now, nic, &whole, offload, kind);
        }
    }

    fn deliver(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
        offload: Offload,
        kind: Destination,
    ) {
        let (source, destination) = (packet.source, packet.destination);
        let parsed = match packet.protocol {
            protocol::TCP if kind != Destination::Own || source.is_unspecified() => {
                return self.ip.drop("tcp-group");
            }
            protocol::TCP => Segment::parse(packet, offload.checksum).map(|segment| {
                let gso = offload.gso;
                let arrival = tcp::Arrival { nic, source, destination, segment, gso };
                self.tcp.handle(&mut self.ip, &mut self.events, now, &arrival);
            }),
            protocol::UDP => Datagram::parse(packet, offload.checksum).map(|datagram| {
                let arrival = udp::Arrival {
                    nic,
                    source: SocketAddr::new(source, datagram.source_port),
                    destination: SocketAddr::new(destination, datagram.destination_port),
                    kind,
                    datagram,
                    gso: offload.gso,
                };
                if !self.udp.handle(&mut self.ip, &mut self.events, &arrival) {
                    self.ip.drop("udp-port");
                    if kind == Destination::Own {
                        self.ip.send_error(now, packet, IcmpError::PortUnreachable);
                    }
                }
            }),
            protocol::ICMP | protocol::ICMPV6 => Icmp::parse(packet, offload.checksum)
                .map(|message| self.handle_icmp(now, nic, packet, message, kind)),
            _ => {
                self.ip.drop("ip-protocol");
                return;
            }
        };
        if let Err(error) = parsed {
            self.ip.drop(error.reason());
        }
    }

    fn handle_icmp(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
        message: Icmp<'_>,
        kind: Destination,
    ) {
        match message {
            Icmp::EchoRequest { id, seq, data } => {
                // RFC 1122 section 3.2.2.6: a ping to everybody need not be answered.
                if kind == Destination::Own {
                    let answer = Icmp::EchoReply { id, seq, data };
                    self.ip.answer(now, nic, packet, &answer);
                }
            }
            Icmp::EchoReply { .. } | Icmp::Other { .. } => self.ip.drop("icmp-unasked"),
            Icmp::Unreachable { code, original } => {
                let error = unreachable_error(packet.source.is_ipv4(), code);
                self.handle_error(now, original, error);
            }
            Icmp::TimeExceeded { original, .. } => {
                self.handle_error(now, original, Error::HostUnreachable);
            }
            Icmp::PacketTooBig { mtu, original } => self.handle_too_big(now, mtu, original),
            Icmp::Ndp(message) => {
                if let Some(nic) = nic {
                    self.ip.handle_ndp(now, nic, packet, message);
                }
            }
        }
    }

    /// An error about a packet of ours, quoted from its IP header.
    fn handle_error(&mut self, now: Instant, original: &[u8], error: Error) {
        let Some(quoted) = Quoted::parse(original) else { return self.ip.drop("icmp-quote") };
        let local = SocketAddr::new(quoted.source, quoted.source_port);
        let remote = SocketAddr::new(quoted.destination, quoted.destination_port);
        if quoted.protocol == protocol::UDP {
            self.udp.handle_error(&mut self.events, local, remote, error);
        } else {
            let ends = tcp::Ends { local, remote };
            let (ip, events) = (&mut self.ip, &mut self.events);
            self.tcp.handle_error(ip, events, now, &ends, quoted.seq, error);
        }
    }

    fn handle_too_big(&mut self, now: Instant, mtu: u32, original: &[u8]) {
        let Some(quoted) = Quoted::parse(original) else { return self.ip.drop("icmp-quote") };
        let local = SocketAddr::new(quoted.source, quoted.source_port);
        let remote = SocketAddr::new(quoted.destination, quoted.destination_port);
        let ends = tcp::Ends { local, remote };
        let is_tcp = quoted.protocol == protocol::TCP;
        // Only what is on its way is believed: anybody can send such a message.
        if is_tcp && !self.tcp.is_in_flight(&ends, quoted.seq) {
            return self.ip.drop("icmp-stale");
        }
        if !self.ip.is_own(quoted.source)
            || !self.ip.learn_path_mtu(now, quoted.destination, mtu, quoted.len)
        {
            return;
        }
        if is_tcp {
            self.tcp.handle_too_big(&self.ip, now, &ends);
        } else {
            self.udp.handle_error(&mut self.events, local, remote, Error::MessageTooLong);
        }
    }

    /// Lets what is due happen; see [`poll_timeout`](Self::poll_timeout).
    pub fn handle_timeout(&mut self, now: Instant) {
        self.ip.handle_timeout(now);
        for frame in self.ip.take_lost() {
            let original = frame.bytes.get(ethernet::HEADER_LEN..).unwrap_or_default();
            self.handle_error(now, original, Error::HostUnreachable);
        }
        self.tcp.handle_timeout(&mut self.ip, &mut self.events, now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do; `None`: never, as things
    /// are.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.ip.poll_timeout(), self.tcp.poll_timeout()].into_iter().flatten().min()
    }

    /// The next frame to be sent, and the interface to send it by. Its bytes replace those of
    /// `frame`. What this host sends to itself arrives here, too.
    pub fn poll_transmit(&mut self, now: Instant, frame: &mut FrameBuf) -> Option<NicIndex> {
        loop {
            if let Some((nic, queued)) = self.ip.poll_output() {
                *frame = queued;
                return Some(nic);
            }
            match self.ip.poll_looped() {
                Some(looped) => self.handle_looped(now, &looped),
                None => {
                    let (ip, events) = (&mut self.ip, &mut self.events);
                    if let Some(nic) = self.tcp.poll_transmit(ip, events, now, frame) {
                        return Some(nic);
                    }
                    if !self.ip.has_output() {
                        return None;
                    }
                }
            }
        }
    }

    /// True if [`poll_transmit`](Self::poll_transmit) may have something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.ip.has_output() || self.tcp.has_output()
    }

    /// The next thing that a program may have waited for.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some((nic, ip)) = self.ip.duplicates.pop_front() {
            return Some(Event::Duplicate(nic, ip));
        }
        let event = self.events.take()?;
        match event {
            Event::Tcp(id) => self.tcp.taken(id),
            Event::Listener(id) => self.tcp.listener_taken(id),
            Event::Udp(id) => self.udp.taken(id),
            Event::Duplicate(..) => {}
        }
        Some(event)
    }

    // --------------------------------------------------------------------------------- TCP --

    /// Listens on an address; port 0 takes a free one. The unspecified IPv6 address stands for IPv4,
    /// too. At most `backlog` connections wait to be accepted.
    ///
    /// # Errors
    /// [`Error::AddressInUse`], [`Error::AddressNotAvailable`].
    pub fn tcp_listen(&mut self, local: SocketAddr, backlog: usize) -> Result<ListenerId, Error> {
        self.tcp.listen(&mut self.ip, udp::without_scope(local), backlog)
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

    /// Begins to open a connection; an event tells when it is open or has failed. `nic`: by which
    /// interface, for addresses that mean something on one link only.
    ///
    /// # Errors
    /// [`Error::NetworkUnreachable`], [`Error::AddressNotAvailable`], [`Error::AddressInUse`],
    /// [`Error::InvalidInput`].
    pub fn tcp_connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local: Option<SocketAddr>,
        nic: Option<NicIndex>,
    ) -> Result<TcpId, Error> {
        self.tcp.connect(&mut self.ip, now, remote, local, nic)
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

    /// Sets the options of a connection.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn tcp_set_options(&mut self, id: TcpId, options: tcp::Options) -> Result<(), Error> {
        self.tcp.set_options(id, options)
    }

    /// The options of a connection.
    ///
    /// # Errors
    /// [`Error::BadSocket`].
    pub fn tcp_options(&self, id: TcpId) -> Result<tcp::Options, Error> {
        self.tcp.options(id)
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

    // --------------------------------------------------------------------------------- UDP --

    /// Makes a UDP socket; port 0 takes a free one. The unspecified IPv6 address stands for IPv4, too.
    ///
    /// # Errors
    /// [`Error::AddressInUse`], [`Error::AddressNotAvailable`].
    pub fn udp_bind(&mut self, local: SocketAddr) -> Result<UdpId, Error> {
        self.udp.bind(&mut self.ip, udp::without_scope(local))
    }

    /// Connects a socket to one peer: only that one is heard, and errors about it are told.
    ///
    /// # Errors
    /// [`Error::NetworkUnreachable`], [`Error::BadSocket`].
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
    /// [`Error::MessageTooLong`], [`Error::NotConnected`], [`Error::NetworkUnreachable`],
    /// [`Error::HostUnreachable`], [`Error::NoBuffers`]; what an ICMP error has told, once.
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

/// What an unreachable destination means to a socket (RFC 1122 section 4.2.3.9, RFC 4443 section 3.1;
/// as Linux maps them).
fn unreachable_error(ipv4: bool, code: u8) -> Error {
    match (ipv4, code) {
        (true, 3) | (false, 4) => Error::ConnectionRefused,
        (true, 2) => Error::ProtocolUnreachable,
        (true, 0 | 6 | 9 | 11) | (false, 0) => Error::NetworkUnreachable,
        _ => Error::HostUnreachable,
    }
}
