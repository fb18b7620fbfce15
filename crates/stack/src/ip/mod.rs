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
mod output;
mod path;
mod path_mtu;
mod route;
mod zone;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use netyard_wire::ip::IpPacket;
use netyard_wire::reassembly::Reassembly;
use netyard_wire::{FrameBuf, MacAddr, build};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use self::neighbor::Neighbors;
use self::nic::{Address, Nic, Origin};
use self::path_mtu::PathMtu;
use self::route::{Route, Routes};
use crate::Error;
use crate::bucket::Bucket;

pub use self::nic::Medium;
pub(crate) use self::nic::{Destination, is_link_local};
pub(crate) use self::output::Sent;
pub(crate) use self::path::{Path, Way};
pub(crate) use self::zone::{has_zone, on_link, zone};

/// Where resolvers listen (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;
/// RFC 4443 section 2.4 (f) asks for a limit; Linux sends a thousand errors each second, 50 at once.
const ERRORS_PER_SECOND: u32 = 1000;
const ERRORS_AT_ONCE: u32 = 50;

/// The place of an interface in the stack, from 0 in the order they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NicIndex(pub u16);

#[derive(Debug)]
pub(crate) struct Ip {
    nics: Vec<Nic>,
    routes: Routes,
    neighbors: Neighbors,
    path_mtu: PathMtu,
    /// By the link that the addresses belong to, if they belong to one.
    reassembly: BTreeMap<Option<NicIndex>, Reassembly>,
    output: VecDeque<(NicIndex, FrameBuf)>,
    /// With the link that their addresses belong to.
    looped: VecDeque<(Option<NicIndex>, FrameBuf)>,
    errors: Bucket<ERRORS_PER_SECOND, ERRORS_AT_ONCE>,
    pub(crate) drops: BTreeMap<&'static str, u64>,
    pub(crate) rng: StdRng,
    /// Counts changes of addresses, routes and path MTUs: a [`Path`] holds until the next one.
    pub(crate) generation: u64,
    /// Frames that waited for neighbours that do not answer.
    lost: Vec<(NicIndex, FrameBuf)>,
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
            reassembly: BTreeMap::new(),
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
    /// addresses, by whatever interface it comes (RFC 1122 section 3.3.4.2, the weak model); those of one link
    /// are this host's there only.
    pub(crate) fn destination(&self, nic: Option<NicIndex>, ip: IpAddr) -> Option<Destination> {
        if ip.is_loopback() || self.is_own_on(nic, ip) {
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

    /// The groups that an interface hears: those that every host is in, those of its addresses, and what sockets have
    /// joined.
    pub(crate) fn groups(&self, nic: NicIndex) -> Vec<IpAddr> {
        self.nic(nic).map(Nic::groups).unwrap_or_default()
    }

    /// All routes, longest prefixes first.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
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

    /// True if a packet may come from `ip`: one host has it, and it says what family that host speaks. A mapped address
    /// would pass for an IPv4 one (draft-itojun-v6ops-v4mapped-harmful section 4).
    pub(crate) fn may_be_source(&self, ip: IpAddr) -> bool {
        !ip.is_multicast() && !self.is_broadcast(ip) && ip.to_canonical() == ip
    }

    /// True if a socket may be bound to an address, which has its zone.
    pub(crate) fn may_bind(&self, local: SocketAddr) -> bool {
        let ip = local.ip();
        ip.is_unspecified()
            || ip.is_loopback()
            || ip.is_multicast()
            || self.is_own_on(zone(local), ip)
    }

    /// Resolvers that DHCP servers and routers have named, each once.
    pub(crate) fn resolvers(&self, now: Instant) -> Vec<SocketAddr> {
        let mut found: Vec<SocketAddr> = Vec::new();
        for (index, nic) in self.indexes() {
            let leased = nic.dhcp.iter().flat_map(|client| client.resolvers());
            let leased = leased.map(|ip| SocketAddr::from((ip, DNS_PORT)));
            let advertised = nic.autoconf.resolvers(now);
            let advertised = advertised.map(|ip| on_link(ip.into(), DNS_PORT, Some(index)));
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

    /// A router said on a link that a packet was too big; true if that is news.
    pub(crate) fn learn_path_mtu(
        &mut self,
        now: Instant,
        destination: IpAddr,
        nic: Option<NicIndex>,
        told: u32,
        len: u32,
    ) -> bool {
        let news = self.path_mtu.learn(now, destination, nic, told, len);
        self.generation += u64::from(news);
        news
    }

    /// Takes a fragment that was on a link; the payload of its datagram, if that is whole now.
    pub(crate) fn reassemble(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
    ) -> Option<Vec<u8>> {
        let fragment = packet.fragment?;
        let link = nic.filter(|_| has_zone(packet.source) || has_zone(packet.destination));
        self.reassembly.entry(link).or_default().handle(now, packet, fragment)
    }

    /// The next hop of a path has taken what was sent to it.
    pub(crate) fn confirm(&mut self, now: Instant, path: &Path) {
        if let Way::By(nic) = path.way {
            self.neighbors.confirm(now, (nic, path.next_hop));
        }
    }

    /// Frames that waited for a neighbour that did not answer, and where it was looked for.
    pub(crate) fn take_lost(&mut self) -> Vec<(NicIndex, FrameBuf)> {
        std::mem::take(&mut self.lost)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let nics = self.nics.iter().filter_map(autoconf::poll_timeout).min();
        let fragments = self.reassembly.values().filter_map(Reassembly::poll_timeout).min();
        [nics, self.neighbors.poll_timeout(), fragments].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.reassembly.values_mut().for_each(|parts| parts.handle_timeout(now));
        self.neighbors.handle_timeout(now, &mut self.lost);
        self.ask_neighbors(now);
        self.handle_autoconf_timeout(now);
    }
}
