//! UDP sockets (RFC 768).
//!
//! A port belongs to the sockets that are bound to it on different addresses, nearly always to one;
//! what comes in is looked up by port. Each socket keeps a bounded queue of datagrams; when it is full
//! the newcomer is dropped and counted.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wire::udp::Datagram;
use netyard_wire::{FrameBuf, Gso, MacAddr, build};
use rand::RngExt as _;
use slab::Slab;

use crate::Error;
use crate::event::{Event, Events};
use crate::ip::{Destination, Ip, NicIndex};
use crate::port;

/// Bytes that wait in one socket, overhead counted (Linux's `rmem_default`).
const MAX_QUEUED: usize = 212_992;
/// What a datagram counts for beyond its payload, bytes.
const OVERHEAD: usize = 256;
/// The longest payload over IPv4 and IPv6, bytes.
const MAX_PAYLOAD4: usize = 65_535 - 20 - 8;
const MAX_PAYLOAD6: usize = 65_535 - 8;
/// Groups that one socket may be in (Linux's `igmp_max_memberships`).
const MAX_GROUPS: usize = 20;

/// A UDP socket of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UdpId(pub(crate) usize);

#[derive(Debug)]
struct Socket {
    local: SocketAddr,
    remote: Option<SocketAddr>,
    queue: VecDeque<(SocketAddr, Vec<u8>)>,
    queued: usize,
    /// From an ICMP error; told once.
    error: Option<Error>,
    groups: Vec<(NicIndex, IpAddr)>,
    broadcast: bool,
    multicast_loop: bool,
    /// Hop limit of multicast datagrams: 1 unless the program says otherwise (RFC 1112 section 6.1).
    multicast_hops: u8,
    /// Hop limit of others; `None`: as the interface has it.
    hops: Option<u8>,
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
        if !ip.may_bind(local.ip()) {
            return Err(Error::AddressNotAvailable);
        }
        let port = match local.port() {
            0 => {
                let first = ip.rng.random();
                port::pick(first, |port| self.is_free(local.ip(), port))
                    .ok_or(Error::AddressNotAvailable)?
            }
            port if self.is_free(local.ip(), port) => port,
            _ => return Err(Error::AddressInUse),
        };
        let place = self.sockets.insert(Socket {
            local: SocketAddr::new(local.ip(), port),
            remote: None,
            queue: VecDeque::new(),
            queued: 0,
            error: None,
            groups: Vec::new(),
            broadcast: false,
            multicast_loop: true,
            multicast_hops: 1,
            hops: None,
            told: false,
        });
        self.by_port.entry(port).or_default().push(place);
        Ok(UdpId(place))
    }

    fn is_free(&self, ip: IpAddr, port: u16) -> bool {
        let clash = |other: IpAddr| {
            other == ip
                || (other.is_unspecified() && covers(other, ip))
                || (ip.is_unspecified() && covers(ip, other))
        };
        !self.on(port).any(|(_, socket)| clash(socket.local.ip()))
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
        let source = Some(socket.local.ip()).filter(|source| !source.is_unspecified());
        let path = ip.path(now, source, None, plain(remote).ip())?;
        socket.local.set_ip(path.source);
        socket.remote = Some(plain(remote));
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

    pub(crate) fn set_hop_limit(&mut self, id: UdpId, hops: Option<u8>) -> Result<(), Error> {
        self.get_mut(id).map(|socket| socket.hops = hops)
    }

    pub(crate) fn is_readable(&self, id: UdpId) -> bool {
        self.get(id).map_or(true, |socket| !socket.queue.is_empty() || socket.error.is_some())
    }

    pub(crate) fn join(
        &mut self,
        ip: &mut Ip,
        id: UdpId,
        nic: NicIndex,
        group: IpAddr,
    ) -> Result<(), Error> {
        let socket = self.get_mut(id)?;
        if !group.is_multicast() {
            return Err(Error::InvalidInput);
        }
        if socket.groups.contains(&(nic, group)) {
            return Err(Error::AddressInUse);
        }
        if socket.groups.len() >= MAX_GROUPS {
            return Err(Error::NoBuffers);
        }
        ip.join(nic, group)?;
        socket.groups.push((nic, group));
        Ok(())
    }

    pub(crate) fn leave(
        &mut self,
        ip: &mut Ip,
        id: UdpId,
        nic: NicIndex,
        group: IpAddr,
    ) -> Result<(), Error> {
        let socket = self.get_mut(id)?;
        let place = socket.groups.iter().position(|joined| *joined == (nic, group));
        socket.groups.swap_remove(place.ok_or(Error::AddressNotAvailable)?);
        ip.leave(nic, group);
        Ok(())
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
        let to = to.map(plain).or(socket.remote).ok_or(Error::NotConnected)?;
        let max = if to.is_ipv4() { MAX_PAYLOAD4 } else { MAX_PAYLOAD6 };
        if to.port() == 0 {
            return Err(Error::InvalidInput);
        }
        if payload.len() > max {
            return Err(Error::MessageTooLong);
        }
        if ip.is_broadcast(to.ip()) && !socket.broadcast {
            // Linux answers EACCES; it is as invalid here.
            return Err(Error::InvalidInput);
        }
        let bound = socket.local.ip();
        let source = Some(bound).filter(|bound| !bound.is_unspecified() && !bound.is_multicast());
        let nic = socket.groups.iter().find(|(_, group)| *group == to.ip()).map(|(nic, _)| *nic);
        let path = ip.path(now, source, nic, to.ip())?;
        let hops = if to.ip().is_multicast() {
            socket.multicast_hops
        } else {
            socket.hops.unwrap_or(path.hop_limit)
        };
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
        let (from, payload) = socket.queue.front().ok_or(Error::WouldBlock)?;
        // What does not fit is cut off, as everywhere.
        let len = payload.len().min(into.len());
        if let (Some(into), Some(payload)) = (into.get_mut(..len), payload.get(..len)) {
            into.copy_from_slice(payload);
        }
        let from = *from;
        if take && let Some((_, payload)) = socket.queue.pop_front() {
            socket.queued -= payload.len() + OVERHEAD;
        }
        Ok((len, from))
    }

    pub(crate) fn take_error(&mut self, id: UdpId) -> Result<Option<Error>, Error> {
        self.get_mut(id).map(|socket| socket.error.take())
    }

    pub(crate) fn close(&mut self, ip: &mut Ip, id: UdpId) {
        let Some(socket) = self.sockets.try_remove(id.0) else { return };
        for (nic, group) in socket.groups {
            ip.leave(nic, group);
        }
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
        let destination = arrival.destination.ip();
        let rank = |socket: &Socket| {
            let local = socket.local.ip();
            let here =
                local == destination || (local.is_unspecified() && covers(local, destination));
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
                && socket.local.ip() == local.ip()
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
        let size = payload.len() + OVERHEAD;
        if self.queued + size > MAX_QUEUED {
            return false;
        }
        // A socket of both families sees IPv4 peers as mapped addresses (RFC 4291 section 2.5.5.2).
        let from = match from.ip() {
            IpAddr::V4(ip) if self.local.is_ipv6() => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), from.port())
            }
            _ => from,
        };
        self.queue.push_back((from, payload.to_vec()));
        self.queued += size;
        true
    }

    /// True if the socket is to get what was sent to a group or to everybody.
    fn takes_group(&self, arrival: &Arrival<'_>) -> bool {
        let (local, group) = (self.local.ip(), arrival.destination.ip());
        let here = local == group || (local.is_unspecified() && covers(local, group));
        let from = self.remote.is_none_or(|remote| remote == arrival.source);
        let joined = self.groups.iter().any(|(nic, joined)| {
            *joined == group && arrival.nic.is_none_or(|arrived| arrived == *nic)
        });
        here && from && (joined || arrival.kind == Destination::Broadcast)
    }
}

/// True if a socket bound to the unspecified address `wild` takes what is for `ip`: IPv6 ones take
/// IPv4, too.
fn covers(wild: IpAddr, ip: IpAddr) -> bool {
    wild.is_ipv6() || ip.is_ipv4()
}

/// An address without flow label and scope; a mapped one as the IPv4 address that it is.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An address without flow label and scope.
pub(crate) fn without_scope(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}
