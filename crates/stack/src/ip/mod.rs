//! The IP layer: interfaces, routes, neighbours, fragments, and what goes out.
//!
//! Packets leave as whole frames, built for their path by [`netyard_wire::build`] with the
//! destination's hardware address still open. [`Ip::transmit`] fills it in, keeps the frame until the
//! neighbour has answered, or loops it back when it is for this host itself. Frames that no
//! connection can be asked for again when there is room (everything but TCP's) wait in a bounded
//! queue.

mod autoconf;
mod control;
mod dhcp;
mod neighbor;
mod nic;
mod path_mtu;
mod route;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use netyard_wire::icmp::{Icmp, IcmpError};
use netyard_wire::ip::IpPacket;
use netyard_wire::reassembly::Reassembly;
use netyard_wire::{FrameBuf, MacAddr, build, ethernet, fragment, icmp};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use self::neighbor::{Neighbors, Resolution};
use self::nic::{Address, Nic, Origin};
use self::path_mtu::PathMtu;
use self::route::{Route, Routes};
use crate::Error;
use crate::bucket::Bucket;

pub use self::nic::Medium;
pub(crate) use self::nic::{Destination, is_link_local};

/// Where resolvers listen (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;
/// Frames that wait to be sent; a further one is dropped and counted.
const MAX_OUTPUT: usize = 1024;
/// Frames to this host itself that wait to be received; a further one is dropped and counted.
const MAX_LOOPED: usize = 1024;
/// MTU of the way from this host to itself, bytes: the largest IP packet.
const LOOPBACK_MTU: u32 = 65_535;
/// RFC 4443 section 2.4 (f) asks for a limit; Linux sends a thousand errors each second, 50 at once.
const ERRORS_PER_SECOND: u32 = 1000;
const ERRORS_AT_ONCE: u32 = 50;

/// The place of an interface in the stack, from 0 in the order they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NicIndex(pub u16);

/// How packets get to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    /// `None`: the destination is this host itself.
    pub(crate) nic: Option<NicIndex>,
    pub(crate) source_mac: MacAddr,
    pub(crate) source: IpAddr,
    pub(crate) next_hop: IpAddr,
    /// The largest packet, bytes.
    pub(crate) mtu: u32,
    pub(crate) hop_limit: u8,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is ready to leave by this interface.
    By(NicIndex),
    /// It was taken: it waits for its neighbour, or is for this host itself.
    Taken,
    /// The next hop does not answer.
    Unreachable,
}

#[derive(Debug)]
pub(crate) struct Ip {
    nics: Vec<Nic>,
    routes: Routes,
    neighbors: Neighbors,
    path_mtu: PathMtu,
    reassembly: Reassembly,
    output: VecDeque<(NicIndex, FrameBuf)>,
    looped: VecDeque<FrameBuf>,
    errors: Bucket<ERRORS_PER_SECOND, ERRORS_AT_ONCE>,
    pub(crate) drops: BTreeMap<&'static str, u64>,
    pub(crate) rng: StdRng,
    /// Counts changes of addresses, routes and path MTUs: a [`Path`] holds until the next one.
    pub(crate) generation: u64,
    /// Frames that waited for neighbours that do not answer.
    lost: Vec<FrameBuf>,
    /// Addresses that were given up because somebody else has them.
    pub(crate) duplicates: VecDeque<(NicIndex, IpAddr)>,
}

impl Ip {
    pub(crate) fn new(seed: [u8; 32], now: Instant) -> Self {
        Self {
            nics: Vec::new(),
            routes: Routes::default(),
            neighbors: Neighbors::new(now),
            path_mtu: PathMtu::default(),
            reassembly: Reassembly::default(),
            output: VecDeque::new(),
            looped: VecDeque::new(),
            errors: Bucket::new(now),
            drops: BTreeMap::new(),
            rng: StdRng::from_seed(seed),
            generation: 0,
            lost: Vec::new(),
            duplicates: VecDeque::new(),
        }
    }

    pub(crate) fn drop(&mut self, reason: &'static str) {
        *self.drops.entry(reason).or_default() += 1;
    }

    pub(crate) fn nic(&self, nic: NicIndex) -> Option<&Nic> {
        self.nics.get(usize::from(nic.0))
    }

    fn nic_mut(&mut self, nic: NicIndex) -> Option<&mut Nic> {
        self.nics.get_mut(usize::from(nic.0))
    }

    pub(crate) fn indexes(&self) -> impl Iterator<Item = (NicIndex, &Nic)> {
        (0..).map(NicIndex).zip(&self.nics)
    }

    pub(crate) fn add_nic(&mut self, medium: Medium, mtu: u32) -> Result<NicIndex, Error> {
        let index = u16::try_from(self.nics.len()).map_err(|_| Error::NoBuffers)?;
        self.nics.push(Nic::new(medium, mtu, build::HOP_LIMIT));
        Ok(NicIndex(index))
    }

    pub(crate) fn add_address(
        &mut self,
        now: Instant,
        nic: NicIndex,
        net: IpNet,
    ) -> Result<(), Error> {
        if net.addr().is_multicast() || net.addr().is_unspecified() {
            return Err(Error::InvalidInput);
        }
        self.assign(now, nic, Address::permanent(net, Origin::Configured))
    }

    /// Gives an interface an address, with the on-link route of its prefix.
    fn assign(&mut self, now: Instant, nic: NicIndex, address: Address) -> Result<(), Error> {
        let known = self.nic_mut(nic).ok_or(Error::InvalidInput)?;
        if !known.add(address) {
            return Err(Error::NoBuffers);
        }
        let prefix = address.net.trunc();
        // Prefixes of advertised addresses are on the link only where the router says so (RFC 4862).
        if address.origin != Origin::Advertised {
            self.add_route(prefix, nic, None)?;
        }
        if address.net.addr().is_ipv6() {
            self.start_duplicate_detection(now, nic, address.net.addr());
        }
        self.generation += 1;
        Ok(())
    }

    pub(crate) fn add_route(
        &mut self,
        prefix: IpNet,
        nic: NicIndex,
        gateway: Option<IpAddr>,
    ) -> Result<(), Error> {
        if self.nic(nic).is_none() {
            return Err(Error::InvalidInput);
        }
        if gateway.is_some_and(|gateway| gateway.is_ipv4() != prefix.addr().is_ipv4()) {
            return Err(Error::InvalidInput);
        }
        self.generation += 1;
        let route = Route { prefix: prefix.trunc(), nic, gateway };
        if self.routes.add(route) { Ok(()) } else { Err(Error::NoBuffers) }
    }

    pub(crate) fn set_neighbor(&mut self, nic: NicIndex, ip: IpAddr, mac: MacAddr) {
        self.neighbors.set_static((nic, ip), mac);
    }

    /// What a packet that came in by `nic` is to this host. A host takes what is for any of its
    /// addresses, by whatever interface it comes (RFC 1122 section 3.3.4.2, the weak model).
    pub(crate) fn destination(&self, nic: Option<NicIndex>, ip: IpAddr) -> Option<Destination> {
        if ip.is_loopback() || self.is_own(ip) {
            return Some(Destination::Own);
        }
        match nic {
            Some(nic) => self.nic(nic).and_then(|nic| nic.destination(ip)),
            None => self.nics.iter().find_map(|nic| nic.destination(ip)),
        }
    }

    /// The addresses of an interface.
    pub(crate) fn addresses(&self, nic: NicIndex) -> Vec<IpNet> {
        let addresses = self.nic(nic).map(Nic::addresses).unwrap_or_default();
        addresses.iter().map(|address| address.net).collect()
    }

    pub(crate) fn join(&mut self, nic: NicIndex, group: IpAddr) -> Result<(), Error> {
        let nic = self.nic_mut(nic).ok_or(Error::InvalidInput)?;
        if nic.join(group) { Ok(()) } else { Err(Error::NoBuffers) }
    }

    pub(crate) fn leave(&mut self, nic: NicIndex, group: IpAddr) {
        if let Some(nic) = self.nic_mut(nic) {
            nic.leave(group);
        }
    }

    /// True for this host's addresses, loopback aside.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        self.nics.iter().any(|nic| nic.has(ip))
    }

    /// True if `ip` is a broadcast address of a link.
    pub(crate) fn is_broadcast(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => {
                ip.is_broadcast() || self.nics.iter().any(|nic| nic.is_subnet_broadcast(ip))
            }
            IpAddr::V6(_) => false,
        }
    }

    /// True if a socket may be bound to `ip`.
    pub(crate) fn may_bind(&self, ip: IpAddr) -> bool {
        ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || self.is_own(ip)
    }

    /// How packets get to `destination`, from `source` and by `nic` where those are given.
    pub(crate) fn path(
        &self,
        now: Instant,
        source: Option<IpAddr>,
        nic: Option<NicIndex>,
        destination: IpAddr,
    ) -> Result<Path, Error> {
        if source.is_some_and(|source| source.is_ipv4() != destination.is_ipv4()) {
            return Err(Error::InvalidInput);
        }
        if destination.is_loopback() || self.is_own(destination) {
            return Ok(Path {
                nic: None,
                source_mac: MacAddr([0; 6]),
                source: source.unwrap_or(destination),
                next_hop: destination,
                mtu: LOOPBACK_MTU,
                hop_limit: build::HOP_LIMIT,
            });
        }
        if source.is_some_and(|source| source.is_loopback()) || destination.is_unspecified() {
            return Err(Error::InvalidInput);
        }
        let nic = nic.or_else(|| self.nic_of_scope(source, destination));
        let (index, next_hop) = match self.routes.find(destination, nic) {
            Some(route) => (route.nic, route.gateway.unwrap_or(destination)),
            // Groups, broadcasts and the link's own addresses need no route.
            None if is_link_local(destination)
                || destination.is_multicast()
                || self.is_broadcast(destination) =>
            {
                (nic.unwrap_or(NicIndex(0)), destination)
            }
            None => return Err(Error::NetworkUnreachable),
        };
        let found = self.nic(index).ok_or(Error::NetworkUnreachable)?;
        let next_hop = if destination.is_multicast() || self.is_broadcast(destination) {
            destination
        } else {
            next_hop
        };
        let source = match source {
            Some(source) => source,
            None => found.source(now, destination).ok_or(Error::AddressNotAvailable)?,
        };
        let link = if destination.is_ipv4() { found.mtu } else { found.mtu6 };
        let mtu = self.path_mtu.get(now, destination).map_or(link, |mtu| mtu.min(link));
        Ok(Path {
            nic: Some(index),
            source_mac: found.mac(),
            source,
            next_hop,
            mtu,
            hop_limit: found.hop_limit,
        })
    }

    /// The interface that an address without meaning elsewhere belongs to, if its owner is known.
    fn nic_of_scope(&self, source: Option<IpAddr>, destination: IpAddr) -> Option<NicIndex> {
        let source = source.filter(|_| is_link_local(destination))?;
        self.indexes().find(|(_, nic)| nic.has(source)).map(|(index, _)| index)
    }

    /// Resolvers that DHCP servers and routers have named, each once.
    pub(crate) fn resolvers(&self, now: Instant) -> Vec<SocketAddr> {
        let mut found: Vec<SocketAddr> = Vec::new();
        for (_, nic) in self.indexes() {
            let leased = nic.dhcp.iter().flat_map(|client| client.resolvers());
            let leased = leased.map(|ip| SocketAddr::from((ip, DNS_PORT)));
            let advertised = nic.autoconf.resolvers(now);
            let advertised = advertised.map(|ip| SocketAddr::from((ip, DNS_PORT)));
            found.extend(leased.chain(advertised));
        }
        let mut once = Vec::new();
        for at in found {
            if !once.contains(&at) {
                once.push(at);
            }
        }
        once
    }

    /// Fills in the destination's hardware address. Where the frame is taken, `frame` is left empty.
    pub(crate) fn transmit(&mut self, now: Instant, path: &Path, frame: &mut FrameBuf) -> Sent {
        let Some(index) = path.nic else {
            if self.looped.len() >= MAX_LOOPED {
                self.drop("loopback-full");
            } else {
                self.looped.push_back(std::mem::take(frame));
            }
            return Sent::Taken;
        };
        if self.nic(index).is_some_and(|nic| nic.medium == Medium::Ip) {
            return Sent::By(index);
        }
        let mac = match path.next_hop {
            IpAddr::V4(ip) if ip.is_multicast() => MacAddr::ipv4_multicast(ip),
            IpAddr::V6(ip) if ip.is_multicast() => MacAddr::ipv6_multicast(ip),
            ip if self.is_broadcast(ip) => MacAddr::BROADCAST,
            ip => match self.neighbors.resolve(now, (index, ip)) {
                Resolution::Known(mac) => mac,
                Resolution::Wait => {
                    if !self.neighbors.hold((index, ip), std::mem::take(frame)) {
                        self.drop("neighbor-queue-full");
                    }
                    self.ask_neighbors(now);
                    return Sent::Taken;
                }
                Resolution::Unreachable => return Sent::Unreachable,
            },
        };
        ethernet::set_destination(&mut frame.bytes, mac);
        Sent::By(index)
    }

    /// Sends a frame that nobody makes again: it waits in the queue.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        path: &Path,
        mut frame: FrameBuf,
    ) -> Result<(), Error> {
        match self.transmit(now, path, &mut frame) {
            Sent::By(nic) => self.queue(nic, frame),
            Sent::Taken => Ok(()),
            Sent::Unreachable => Err(Error::HostUnreachable),
        }
    }

    fn queue(&mut self, nic: NicIndex, frame: FrameBuf) -> Result<(), Error> {
        if self.output.len() >= MAX_OUTPUT {
            self.drop("output-full");
            return Err(Error::NoBuffers);
        }
        self.output.push_back((nic, frame));
        Ok(())
    }

    /// The next frame of the queue.
    pub(crate) fn poll_output(&mut self) -> Option<(NicIndex, FrameBuf)> {
        self.output.pop_front()
    }

    /// The next frame for this host itself.
    pub(crate) fn poll_looped(&mut self) -> Option<FrameBuf> {
        self.looped.pop_front()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty() || !self.looped.is_empty()
    }

    /// Answers a packet with an ICMP error, unless that is forbidden or too much.
    pub(crate) fn send_error(&mut self, now: Instant, packet: &IpPacket<'_>, error: IcmpError) {
        if !icmp::may_answer_with_error(packet)
            || self.is_broadcast(packet.destination)
            || packet.source.is_loopback()
        {
            return;
        }
        if !self.errors.take(now) {
            return self.drop("icmp-rate");
        }
        let Ok(path) = self.path(now, Some(packet.destination), None, packet.source) else {
            return self.drop("icmp-no-route");
        };
        let original = [packet.header, packet.payload].concat();
        let mut frame = FrameBuf::default();
        frame.offload = build::icmp_error(
            &mut frame.bytes,
            path.source_mac,
            MacAddr([0; 6]),
            path.source,
            packet.source,
            error,
            &original,
        );
        // What cannot be sent was counted.
        let _ = self.send(now, &path, frame);
    }

    /// Sends a datagram of a socket; `looped`: sockets of this host that are in the group hear it, too.
    pub(crate) fn send_datagram(
        &mut self,
        now: Instant,
        path: &Path,
        destination: IpAddr,
        frame: FrameBuf,
        looped: bool,
    ) -> Result<(), Error> {
        if looped && self.destination(path.nic, destination) == Some(Destination::Group) {
            if self.looped.len() < MAX_LOOPED {
                self.looped.push_back(frame.clone());
            } else {
                self.drop("loopback-full");
            }
        }
        let len = frame.bytes.len().saturating_sub(ethernet::HEADER_LEN);
        if u32::try_from(len).is_ok_and(|len| len <= path.mtu) {
            return self.send(now, path, frame);
        }
        self.send_fragments(now, path, &frame)
    }

    /// Sends a datagram that is longer than its path takes, in pieces.
    fn send_fragments(&mut self, now: Instant, path: &Path, frame: &FrameBuf) -> Result<(), Error> {
        let mtu = usize::try_from(path.mtu).unwrap_or(usize::MAX);
        let id = self.rng.random();
        let mut fragments = Vec::new();
        let keep = &mut |bytes: &[u8]| fragments.push(bytes.to_vec());
        fragment::complete_and_cut(frame.as_frame(), mtu, id, keep).ok_or(Error::MessageTooLong)?;
        for bytes in fragments {
            self.send(now, path, FrameBuf { bytes, ..FrameBuf::default() })?;
        }
        Ok(())
    }

    /// Answers an ICMP message with another one.
    pub(crate) fn answer(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
        message: &Icmp<'_>,
    ) {
        let nic = nic.filter(|_| is_link_local(packet.source));
        match self.path(now, Some(packet.destination), nic, packet.source) {
            // What cannot be sent was counted; who asked will ask again.
            Ok(path) => drop(self.send_icmp(now, &path, packet.source, message)),
            Err(_) => self.drop("icmp-no-route"),
        }
    }

    /// Sends an ICMP message that is no error.
    pub(crate) fn send_icmp(
        &mut self,
        now: Instant,
        path: &Path,
        destination: IpAddr,
        message: &Icmp<'_>,
    ) -> Result<(), Error> {
        let mut frame = FrameBuf::default();
        frame.offload = build::icmp_frame(
            &mut frame.bytes,
            path.source_mac,
            MacAddr([0; 6]),
            path.source,
            destination,
            path.hop_limit,
            message,
        );
        self.send(now, path, frame)
    }

    /// A router said that a packet was too big; true if that is news.
    pub(crate) fn learn_path_mtu(
        &mut self,
        now: Instant,
        destination: IpAddr,
        told: u32,
        len: u32,
    ) -> bool {
        let news = self.path_mtu.learn(now, destination, told, len);
        self.generation += u64::from(news);
        news
    }

    /// Takes a fragment; the payload of its datagram, if that is whole now.
    pub(crate) fn reassemble(&mut self, now: Instant, packet: &IpPacket<'_>) -> Option<Vec<u8>> {
        let fragment = packet.fragment?;
        self.reassembly.handle(now, packet, fragment)
    }

    /// The next hop of a path has taken what was sent to it.
    pub(crate) fn confirm(&mut self, now: Instant, path: &Path) {
        if let Some(nic) = path.nic {
            self.neighbors.confirm(now, (nic, path.next_hop));
        }
    }

    /// Frames that waited for a neighbour that did not answer.
    pub(crate) fn take_lost(&mut self) -> Vec<FrameBuf> {
        std::mem::take(&mut self.lost)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let nics = self.nics.iter().filter_map(autoconf::poll_timeout).min();
        [nics, self.neighbors.poll_timeout(), self.reassembly.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.reassembly.handle_timeout(now);
        self.neighbors.handle_timeout(now, &mut self.lost);
        self.ask_neighbors(now);
        self.handle_autoconf_timeout(now);
    }
}
