//! How packets get to where they are to go.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use netyard_wire::ip::IpPacket;
use netyard_wire::{MacAddr, build};

use super::{Ip, NicIndex, has_zone, is_link_local};
use crate::Error;

/// MTU of the way from this host to itself, bytes: the largest IP packet.
const LOOPBACK_MTU: u32 = 65_535;

/// How packets get to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) way: Way,
    pub(crate) source_mac: MacAddr,
    pub(crate) source: IpAddr,
    pub(crate) next_hop: IpAddr,
    /// The largest packet, bytes.
    pub(crate) mtu: u32,
    pub(crate) hop_limit: u8,
}

/// Where packets leave this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    By(NicIndex),
    /// Nowhere: they are for this host itself. The link that their addresses belong to, if they belong to one.
    Back(Option<NicIndex>),
}

impl Path {
    /// The link that the addresses of packets belong to.
    pub(crate) fn link(&self) -> Option<NicIndex> {
        match self.way {
            Way::By(nic) => Some(nic),
            Way::Back(nic) => nic,
        }
    }
}

impl Ip {
    /// How packets get to `destination`, from `source` and by `nic` where those are given.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: it is on one link only, and nothing tells on which;
    /// [`Error::NetworkUnreachable`], [`Error::AddressNotAvailable`].
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
        let nic = nic.or_else(|| self.nic_of_scope(source, destination));
        let nic = match has_zone(destination) {
            true => Some(nic.or_else(|| self.only_zone()).ok_or(Error::InvalidInput)?),
            false => nic,
        };
        if destination.is_loopback() || self.is_own_on(nic, destination) {
            return Ok(Path {
                way: Way::Back(nic),
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
        let (index, next_hop) = match self.routes.find(destination, nic) {
            // No router leads to addresses of a link (RFC 4291 section 2.5.6).
            Some(route) if !has_zone(destination) => {
                (route.nic, route.gateway.unwrap_or(destination))
            }
            // Groups, broadcasts and the link's own addresses need no route.
            _ if is_link_local(destination)
                || destination.is_multicast()
                || self.is_broadcast(destination) =>
            {
                (nic.unwrap_or(NicIndex(0)), destination)
            }
            _ => return Err(Error::NetworkUnreachable),
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
        let mtu =
            self.path_mtu.get(now, destination, Some(index)).map_or(link, |mtu| mtu.min(link));
        Ok(Path {
            way: Way::By(index),
            source_mac: found.mac(),
            source,
            next_hop,
            mtu,
            hop_limit: match destination {
                IpAddr::V4(_) => build::HOP_LIMIT,
                IpAddr::V6(_) => found.hop_limit,
            },
        })
    }

    /// The interface that an address without meaning elsewhere belongs to: of the source's owner, if that is known. IPv4
    /// addresses say nothing of their link, and their owner may have others: the one counts that the destination is on
    /// (RFC 3927 section 2.6.2: no router leads there).
    fn nic_of_scope(&self, source: Option<IpAddr>, destination: IpAddr) -> Option<NicIndex> {
        let scoped = is_link_local(destination) || is_for_many(destination);
        let source = source.filter(|_| scoped)?;
        let owner = self.indexes().find(|(_, nic)| nic.has(source)).map(|(index, _)| index);
        if has_zone(destination) || is_for_many(destination) {
            return owner;
        }
        let on_link = |nic: Option<NicIndex>| {
            let route = self.routes.find(destination, nic).filter(|route| route.gateway.is_none());
            route.map(|route| route.nic)
        };
        on_link(owner).or_else(|| on_link(None)).or(owner)
    }

    /// How an answer gets to who sent a packet, which came by `nic`.
    pub(super) fn path_back(
        &self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
    ) -> Result<Path, Error> {
        let bound = is_link_local(packet.source) || has_zone(packet.destination);
        self.path(now, Some(packet.destination), nic.filter(|_| bound), packet.source)
    }
}

/// True for groups, and for everybody on a link.
fn is_for_many(ip: IpAddr) -> bool {
    ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}
