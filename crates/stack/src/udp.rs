//! UDP sockets (RFC 768).
//!
//! A port belongs to the sockets that are bound to it on different addresses, nearly always to one;
//! what comes in is looked up by port. Each socket keeps a bounded queue of datagrams; when it is full
//! the newcomer is dropped and counted.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wire::udp::Datagram;
use netyard_wire::{FrameBuf, Gso, MacAddr, build, ethernet, ip as protocol};
use rand::RngExt as _;
use slab::Slab;

use crate::Error;
use crate::event::{Event, Events};
use crate::inbox::Inbox;
use crate::ip::{Destination, Ip, NicIndex, on_link, zone};
use crate::membership::Memberships;
use crate::port;

/// The longest payload over IPv4 and IPv6, bytes.
const MAX_PAYLOAD4: usize = 65_535 - 20 - 8;
const MAX_PAYLOAD6: usize = 65_535 - 8;

/// A UDP socket of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UdpId(pub(crate) usize);

#[derive(Debug)]
struct Socket {
    local: SocketAddr,
    remote: Option<SocketAddr>,
    inbox: Inbox,
    /// From an ICMP error; told once.
    error: Option<Error>,
    groups: Memberships,
    broadcast: bool,
    multicast_loop: bool,
    /// Hop limit of multicast datagrams: 1 unless the program says otherwise (RFC 1112 section 6.1).
    multicast_hops: u8,
    /// Hop limit of others; `None`: as the interface has it.
    hops: Option<u8>,
    traffic_class: u8,
    /// An event waits to be taken.
    told: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Udp {
    sockets: Slab<Socket>,
    by_port: HashMap<u16, Vec<usize>>,
}

/// A datagram that has come in, with what is known about it.
pub(crate) struct Arrival<'a> {
    pub(crate) nic: Option<NicIndex>,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) kind: Destination,
    pub(crate) datagram: Datagram<'a>,
    /// Several datagrams in one, each of this size.
    pub(crate) gso: Option<Gso>,
}

impl Udp {
    pub(crate) fn bind(&mut self, ip: &mut Ip, local: SocketAddr) -> Result<UdpId, Error> {
        let mut local = ip.settle(local, None)?;
        if !ip.may_bind(local) {
            return Err(Error::AddressNotAvailable);
        }
        let port = match local.port() {
            0 => {
                let first = ip.rng.random();
                port::pick(first, |port| self.is_free(local, port))
                    .ok_or(Error::AddressNotAvailable)?
            }
            port if self.is_free(local, port) => port,
            _ => return Err(Error::AddressInUse),
        };
        local.set_port(port);
        let place = self.sockets.insert(Socket {
            local,
            remote: None,
            inbox: Inbox::default(),
            error: None,
            groups: Memberships::default(),
            broadcast: false,
            multicast_loop: true,
            multicast_hops: 1,
            hops: None,
            traffic_class: 0,
            told: false,
        });
        self.by_port.entry(port).or_default().push(place);
        Ok(UdpId(place))
    }

    fn is_free(&self, mut local: SocketAddr, port: u16) -> bool {
        local.set_port(port);
        let clash = |other: SocketAddr| {
            other == local || takes_all(other, local.ip()) || takes_all(local, other.ip())
        };
        !self.on(port).any(|(_, socket)| clash(socket.local))
    }

    fn on(&self, port: u16) -> impl Iterator<Item = (usize, &Socket)> {
        let places = self.by_port.get(&port).into_iter().flatten();
        places.filter_map(|place| Some((*place, self.sockets.get(*place)?)))
    }

    fn get(&self, id: UdpId) -> Result<&Socket, Error> {
        self.sockets.get(id.0).ok_or(Error::BadSocket)
    }

    fn get_mut(&mut self, id: UdpId) -> Result<&mut Socket, Error> {
        self.sockets.get_mut(id.0).ok_or(Error::BadSocket)
    }

    pub(crate) fn connect(
        &mut self,
        ip: &Ip,
        now: Instant,
        id: UdpId,
        remote: SocketAddr,
    ) -> Result<(), Error> {
        let socket = self.get_mut(id)?;
        let bound = zone(socket.local);
        let remote = ip.settle(plain(remote), bound)?;
        let source = Some(socket.local.ip()).filter(|source| !source.is_unspecified());
        let path = ip.path(now, source, zone(remote).or(bound), remote.ip())?;
        socket.local = on_link(path.source, socket.local.port(), path.link());
        socket.remote = Some(remote);
        Ok(())
    }

    pub(crate) fn addresses(&self, id: UdpId) -> Result<(SocketAddr, Option<SocketAddr>), Error> {
        self.get(id).map(|socket| (socket.local, socket.remote))
    }

    pub(crate) fn set_broadcast(&mut self, id: UdpId, on: bool) -> Result<(), Error> {
        self.get_mut(id).map(|socket| socket.broadcast = on)
    }

    pub(crate) fn set_multicast(&mut self, id: UdpId, hops: u8, looped: bool) -> Result<(), Error> {
        self.get_mut(id).map(|socket| {
            (socket.multicast_hops, socket.multicast_loop) = (hops, looped);
        })
    }

    pub(crate) fn set_traffic_class(&mut self, id: UdpId, class: u8) -> Result<(), Error> {
        self.get_mut(id).map(|socket| socket.traffic_class = class)
    }

    pub(crate) fn set_hop_limit(&mut self, id: UdpId, hops: Option<u8>) -> Result<(), Error> {
        self.get_mut(id).map(|socket| socket.hops = hops)
    }

    pub(crate) fn is_readable(&self, id: UdpId) -> bool {
        self.get(id).map_or(true, |socket| !socket.inbox.is_empty() || socket.error.is_some())
    }

    pub(crate) fn join(
        &mut self,
        ip: &mut Ip,
        id: UdpId,
        nic: NicIndex,
        group: IpAddr,
    ) -> Result<(), Error> {
        self.get_mut(id)?.groups.join(ip, nic, group)
    }

    pub(crate) fn leave(
        &mut self,
        ip: &mut Ip,
        id: UdpId,
        nic: NicIndex,
        group: IpAddr,
    ) -> Result<(), Error> {
        self.get_mut(id)?.groups.leave(ip, nic, group)
    }

    pub(crate) fn send(
        &mut self,
        ip: &mut Ip,
        now: Instant,
        id: UdpId,
        to: Option<SocketAddr>,
        payload: &[u8],
    ) -> Result<(), Error> {
        let socket = self.get_mut(id)?;
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        let bound = socket.zone();
        let to = match to.map(plain) {
            Some(to) => {
                let nowhere = zone(to).is_none();
                let joined = || socket.groups.link_of(to.ip()).filter(|_| nowhere);
                ip.settle(to, bound.or_else(joined))?
            }
            None => socket.remote.ok_or(Error::DestinationRequired)?,
        };
        let max = if to.is_ipv4() { MAX_PAYLOAD4 } else { MAX_PAYLOAD6 };
        if to.port() == 0 {
            return Err(Error::InvalidInput);
        }
        if payload.len() > max {
            return Err(Error::MessageTooLong);
        }
        if ip.is_broadcast(to.ip()) && !socket.broadcast {
            return Err(Error::PermissionDenied);
        }
        let own = socket.local.ip();
        let source = Some(own).filter(|own| !own.is_unspecified() && !own.is_multicast());
        let nic = zone(to).or(bound).or_else(|| socket.groups.link_of(to.ip()));
        let path = ip.path(now, source, nic, to.ip())?;
        let hops = if to.ip().is_multicast() {
            socket.multicast_hops
        } else {
            socket.hops.unwrap_or(path.hop_limit)
        };
        let traffic_class = socket.traffic_class;
        let mut frame = FrameBuf::default();
        frame.offload = build::udp_frame(
            &mut frame.bytes,
            path.source_mac,
            MacAddr([0; 6]),
            SocketAddr::new(path.source, socket.local.port()),
            to,
            hops,
            payload,
        );
        if let Some(packet) = frame.bytes.get_mut(ethernet::HEADER_LEN..) {
            protocol::set_traffic_class(packet, traffic_class);
        }
        let looped = to.ip().is_multicast() && socket.multicast_loop;
        ip.send_datagram(now, &path, to.ip(), frame, looped)
    }

    pub(crate) fn recv(
        &mut self,
        id: UdpId,
        into: &mut [u8],
        take: bool,
    ) -> Result<(usize, SocketAddr), Error> {
        let socket = self.get_mut(id)?;
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        // What does not fit is cut off, as everywhere.
        socket.inbox.read(into, take).ok_or(Error::WouldBlock)
    }

    pub(crate) fn take_error(&mut self, id: UdpId) -> Result<Option<Error>, Error> {
        self.get_mut(id).map(|socket| socket.error.take())
    }

    pub(crate) fn close(&mut self, ip: &mut Ip, id: UdpId) {
        let Some(socket) = self.sockets.try_remove(id.0) else { return };
        socket.groups.leave_all(ip);
        if let Some(places) = self.by_port.get_mut(&socket.local.port()) {
            places.retain(|place| *place != id.0);
            if places.is_empty() {
                self.by_port.remove(&socket.local.port());
            }
        }
    }

    /// Takes what has come in. False if no socket wants it.
    pub(crate) fn handle(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        arrival: &Arrival<'_>,
    ) -> bool {
        let wanted: Vec<usize> = match arrival.kind {
            Destination::Own => self.best(arrival).into_iter().collect(),
            Destination::Group | Destination::Broadcast => self
                .on(arrival.destination.port())
                .filter(|(_, socket)| socket.takes_group(arrival))
                .map(|(place, _)| place)
                .collect(),
        };
        for place in &wanted {
            let Some(socket) = self.sockets.get_mut(*place) else { continue };
            let payload = arrival.datagram.payload;
            let size = arrival.gso.map_or(payload.len(), |gso| usize::from(gso.size)).max(1);
            let mut parts = payload.chunks(size);
            let first = parts.next().unwrap_or_default();
            for part in std::iter::once(first).chain(parts) {
                if !socket.push(arrival.source, part) {
                    ip.drop("udp-queue-full");
                }
            }
            events.tell(&mut socket.told, Event::Udp(UdpId(*place)));
        }
        !wanted.is_empty()
    }

    /// The one socket for a datagram to an address of ours: the most exact one.
    fn best(&self, arrival: &Arrival<'_>) -> Option<usize> {
        let destination = arrival.destination;
        let rank = |socket: &Socket| {
            let local = socket.local;
            let here = local == destination || takes_all(local, destination.ip());
            let from = socket.remote.is_none_or(|remote| remote == arrival.source);
            (here && from).then_some((
                socket.remote.is_some(),
                local == destination,
                local.is_ipv4(),
            ))
        };
        self.on(arrival.destination.port())
            .filter_map(|(place, socket)| Some((rank(socket)?, place)))
            .max()
            .map(|(_, place)| place)
    }

    /// True if a socket can have sent a datagram from and to these addresses.
    pub(crate) fn may_have_sent(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.on(local.port()).any(|(_, socket)| {
            let here = socket.local == local || takes_all(socket.local, local.ip());
            here && socket.remote.is_none_or(|known| known == remote)
        })
    }

    /// An ICMP error came back about a datagram of ours. RFC 1122 section 4.1.3.3: the socket hears
    /// of it, if it is connected (as Linux does it: else nobody could tell which datagram is meant).
    pub(crate) fn handle_error(
        &mut self,
        events: &mut Events,
        local: SocketAddr,
        remote: SocketAddr,
        error: Error,
    ) {
        let places = self.by_port.get(&local.port()).into_iter().flatten();
        for place in places {
            if let Some(socket) = self.sockets.get_mut(*place)
                && socket.local == local
                && socket.remote == Some(remote)
            {
                socket.error = Some(error);
                events.tell(&mut socket.told, Event::Udp(UdpId(*place)));
            }
        }
    }

    pub(crate) fn taken(&mut self, id: UdpId) {
        if let Some(socket) = self.sockets.get_mut(id.0) {
            socket.told = false;
        }
    }
}

impl Socket {
    fn push(&mut self, from: SocketAddr, payload: &[u8]) -> bool {
        // A socket of both families sees IPv4 peers as mapped addresses (RFC 4291 section 2.5.5.2).
        let from = match from.ip() {
            IpAddr::V4(ip) if self.local.is_ipv6() => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), from.port())
            }
            _ => from,
        };
        self.inbox.push(from, payload)
    }

    /// The link that the socket is bound to, by its own address or by its peer's.
    fn zone(&self) -> Option<NicIndex> {
        zone(self.local).or_else(|| self.remote.and_then(zone))
    }

    /// True if the socket is to get what was sent to a group or to everybody.
    fn takes_group(&self, arrival: &Arrival<'_>) -> bool {
        let group = arrival.destination.ip();
        let here = self.local == arrival.destination || takes_all(self.local, group);
        let from = self.remote.is_none_or(|remote| remote == arrival.source);
        let joined = self.groups.hears(arrival.nic, group);
        here && from && (joined || arrival.kind == Destination::Broadcast)
    }
}

/// True if a socket bound to `local` takes whatever `ip` a datagram is for: it is bound to the unspecified
/// address. IPv6 ones take IPv4, too.
fn takes_all(local: SocketAddr, ip: IpAddr) -> bool {
    local.ip().is_unspecified() && (local.is_ipv6() || ip.is_ipv4())
}

/// A mapped address as the IPv4 address that it is.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
