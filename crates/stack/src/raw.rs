//! Raw sockets: packets of one IP protocol, without their IP header.
//!
//! A socket hears every packet of its protocol that is for this host, beside whoever else takes it: the stack's own
//! TCP, UDP and ICMP go on as if it were not there. What it sends gets an IP header and is cut to the path.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wire::ip::IpPacket;
use netyard_wire::{FrameBuf, MacAddr, build};
use slab::Slab;

use crate::Error;
use crate::event::{Event, Events};
use crate::inbox::Inbox;
use crate::ip::{Ip, NicIndex, on_link, zone};
use crate::membership::Memberships;

/// Most raw sockets: each packet is shown to all of them.
const MAX_SOCKETS: usize = 64;
/// The longest payload over IPv4 and IPv6, bytes.
const MAX_PAYLOAD4: usize = 65_535 - 20;
const MAX_PAYLOAD6: usize = 65_535;

/// A raw socket of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RawId(pub(crate) usize);

#[derive(Debug)]
struct Socket {
    /// Its family, and its address if it is not the unspecified one. Its port is 0.
    local: SocketAddr,
    protocol: u8,
    inbox: Inbox,
    groups: Memberships,
    /// Hop limit; `None`: as the interface has it, and 1 to groups (RFC 1112 section 6.1).
    hops: Option<u8>,
    /// An event waits to be taken.
    told: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Raw {
    sockets: Slab<Socket>,
}

impl Socket {
    /// True if it is bound to all addresses of the family of this one.
    fn takes_all(&self, ip: IpAddr) -> bool {
        let own = self.local.ip();
        own.is_unspecified() && own.is_ipv4() == ip.is_ipv4()
    }
}

impl Raw {
    pub(crate) fn open(
        &mut self,
        ip: &Ip,
        mut local: SocketAddr,
        protocol: u8,
    ) -> Result<RawId, Error> {
        local.set_port(0);
        let local = ip.settle(local, None)?;
        if !ip.may_bind(local) || local.ip().is_multicast() {
            return Err(Error::AddressNotAvailable);
        }
        if self.sockets.len() >= MAX_SOCKETS {
            return Err(Error::NoBuffers);
        }
        let (inbox, groups) = (Inbox::default(), Memberships::default());
        let socket = Socket { local, protocol, inbox, groups, hops: None, told: false };
        Ok(RawId(self.sockets.insert(socket)))
    }

    fn get_mut(&mut self, id: RawId) -> Result<&mut Socket, Error> {
        self.sockets.get_mut(id.0).ok_or(Error::BadSocket)
    }

    pub(crate) fn set_hop_limit(&mut self, id: RawId, hops: Option<u8>) -> Result<(), Error> {
        self.get_mut(id).map(|socket| socket.hops = hops)
    }

    pub(crate) fn join(
        &mut self,
        ip: &mut Ip,
        id: RawId,
        nic: NicIndex,
        group: IpAddr,
    ) -> Result<(), Error> {
        self.get_mut(id)?.groups.join(ip, nic, group)
    }

    pub(crate) fn leave(
        &mut self,
        ip: &mut Ip,
        id: RawId,
        nic: NicIndex,
        group: IpAddr,
    ) -> Result<(), Error> {
        self.get_mut(id)?.groups.leave(ip, nic, group)
    }

    pub(crate) fn send(
        &mut self,
        ip: &mut Ip,
        now: Instant,
        id: RawId,
        to: SocketAddr,
        payload: &[u8],
    ) -> Result<(), Error> {
        let socket = self.get_mut(id)?;
        let own = socket.local.ip();
        let (bound, joined) = (zone(socket.local), socket.groups.link_of(to.ip()));
        let to = ip.settle(to, bound.or(joined.filter(|_| zone(to).is_none())))?;
        let max = if to.is_ipv4() { MAX_PAYLOAD4 } else { MAX_PAYLOAD6 };
        if payload.len() > max {
            return Err(Error::MessageTooLong);
        }
        if own.is_ipv4() != to.is_ipv4() {
            return Err(Error::InvalidInput);
        }
        let source = Some(own).filter(|own| !own.is_unspecified());
        let path = ip.path(now, source, zone(to).or(bound).or(joined), to.ip())?;
        let usual = if to.ip().is_multicast() { 1 } else { path.hop_limit };
        let mut frame = FrameBuf::default();
        frame.offload = build::raw_frame(
            &mut frame.bytes,
            path.source_mac,
            MacAddr([0; 6]),
            path.source,
            to.ip(),
            socket.hops.unwrap_or(usual),
            socket.protocol,
            payload,
        );
        ip.send_datagram(now, &path, to.ip(), frame, false)
    }

    pub(crate) fn recv(
        &mut self,
        id: RawId,
        into: &mut [u8],
        take: bool,
    ) -> Result<(usize, SocketAddr), Error> {
        self.get_mut(id)?.inbox.read(into, take).ok_or(Error::WouldBlock)
    }

    pub(crate) fn local(&self, id: RawId) -> Result<SocketAddr, Error> {
        self.sockets.get(id.0).map(|socket| socket.local).ok_or(Error::BadSocket)
    }

    pub(crate) fn close(&mut self, ip: &mut Ip, id: RawId) {
        if let Some(socket) = self.sockets.try_remove(id.0) {
            socket.groups.leave_all(ip);
        }
    }

    /// True if a socket can have sent a packet of this protocol from this address.
    pub(crate) fn may_have_sent(&self, local: SocketAddr, protocol: u8) -> bool {
        self.sockets.iter().any(|(_, socket)| {
            socket.protocol == protocol && (socket.local == local || socket.takes_all(local.ip()))
        })
    }

    /// Shows a packet that is for this host. False if no socket wants it.
    pub(crate) fn handle(
        &mut self,
        ip: &mut Ip,
        events: &mut Events,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
    ) -> bool {
        let mut wanted = false;
        if self.sockets.is_empty() {
            return wanted;
        }
        let source = on_link(packet.source, 0, nic);
        let destination = on_link(packet.destination, 0, nic);
        for (place, socket) in &mut self.sockets {
            let here = socket.local == destination
                || socket.takes_all(packet.destination)
                || socket.groups.hears(nic, packet.destination);
            if socket.protocol != packet.protocol || !here {
                continue;
            }
            wanted = true;
            if !socket.inbox.push(source, packet.payload) {
                ip.drop("raw-queue-full");
            }
            events.tell(&mut socket.told, Event::Raw(RawId(place)));
        }
        wanted
    }

    pub(crate) fn taken(&mut self, id: RawId) {
        if let Some(socket) = self.sockets.get_mut(id.0) {
            socket.told = false;
        }
    }
}
