//! Zones: which link an address belongs to that means something on one link only (RFC 4007).
//!
//! Programs name a zone by the scope id of a [`SocketAddrV6`]: the [number](NicIndex::number) of the interface. Inside
//! the stack every address of a socket is in one form, so that equal ones are equal: without flow label, with a
//! scope id where it has a meaning, and there always. [`Ip::settle`] makes that form of what a program gives,
//! [`on_link`] of what comes in.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use super::{Ip, NicIndex, is_link_local};
use crate::Error;

impl NicIndex {
    /// What programs call the interface: its place, from 1. It is the scope id of addresses on its link.
    #[must_use]
    pub fn number(self) -> u32 {
        u32::from(self.0) + 1
    }

    /// The interface that programs call so; `None`: 0, or more than there can be.
    #[must_use]
    pub fn of_number(number: u32) -> Option<Self> {
        number.checked_sub(1).and_then(|place| u16::try_from(place).ok()).map(Self)
    }
}

/// True for addresses that say nothing without a zone: IPv6 ones of one link, and groups on one.
pub(crate) fn has_zone(ip: IpAddr) -> bool {
    ip.is_ipv6() && is_link_local(ip)
}

/// The zone of an address, if it has one.
pub(crate) fn zone(address: SocketAddr) -> Option<NicIndex> {
    match address {
        SocketAddr::V6(address) if has_zone((*address.ip()).into()) => {
            NicIndex::of_number(address.scope_id())
        }
        _ => None,
    }
}

/// An address as it is on the link of `nic`.
pub(crate) fn on_link(ip: IpAddr, port: u16, nic: Option<NicIndex>) -> SocketAddr {
    match (ip, nic) {
        (IpAddr::V6(v6), Some(nic)) if has_zone(ip) => {
            SocketAddrV6::new(v6, port, 0, nic.number()).into()
        }
        _ => SocketAddr::new(ip, port),
    }
}

impl Ip {
    /// A program's address with its zone. One that is left out is that of the link that the socket is `bound` to,
    /// or of the one interface that does IPv6.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: there is no such interface; [`Error::InvalidInput`]: another zone than the socket's, or
    /// none where there are several.
    pub(crate) fn settle(
        &self,
        address: SocketAddr,
        bound: Option<NicIndex>,
    ) -> Result<SocketAddr, Error> {
        let (ip, port) = (address.ip(), address.port());
        let named = match address {
            SocketAddr::V6(address) if has_zone(ip) => address.scope_id(),
            _ => return Ok(SocketAddr::new(ip, port)),
        };
        let nic = if named == 0 {
            bound.or_else(|| self.only_zone())
        } else {
            let known = NicIndex::of_number(named).filter(|nic| self.nic(*nic).is_some());
            let known = known.ok_or(Error::NoDevice)?;
            Some(known).filter(|known| bound.is_none_or(|bound| bound == *known))
        };
        Ok(on_link(ip, port, Some(nic.ok_or(Error::InvalidInput)?)))
    }

    /// The interface that an address without a zone is taken to be on: the only one with IPv6 addresses.
    pub(super) fn only_zone(&self) -> Option<NicIndex> {
        let mut zones = self
            .indexes()
            .filter(|(_, nic)| nic.addresses().iter().any(|address| address.net.addr().is_ipv6()));
        let (only, _) = zones.next()?;
        zones.next().is_none().then_some(only)
    }

    /// True if `ip` is this host's; one that has a zone must be that of `nic`.
    pub(crate) fn is_own_on(&self, nic: Option<NicIndex>, ip: IpAddr) -> bool {
        match nic.filter(|_| has_zone(ip)) {
            Some(nic) => self.nic(nic).is_some_and(|nic| nic.has(ip)),
            None => self.is_own(ip),
        }
    }
}
