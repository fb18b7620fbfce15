//! Who is plugged in: the addresses and names of the network's guests.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netyard_wire::MacAddr;

use crate::edge::PlugId;

/// One plugged-in guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    /// Its plug.
    pub(crate) plug: PlugId,
    /// Its hardware address.
    pub(crate) mac: MacAddr,
    /// Its IPv4 address.
    pub(crate) address4: Ipv4Addr,
    /// Its IPv6 address.
    pub(crate) address6: Ipv6Addr,
    /// Name in the network's zone.
    pub(crate) name: String,
    /// More names for the same addresses.
    pub(crate) aliases: Vec<String>,
}

impl Guest {
    /// True if `address` may be the source of a packet of this guest: its own addresses,
    /// link-local ones, and the unspecified address (duplicate address detection, DHCP).
    #[must_use]
    pub(crate) fn may_send_from(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.address4 || address.is_unspecified(),
            IpAddr::V6(address) => {
                address == self.address6
                    || address.is_unspecified()
                    || address.is_unicast_link_local()
            }
        }
    }
}

/// All guests, found by plug, address or name.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    by_plug: BTreeMap<PlugId, Guest>,
    by_address: HashMap<IpAddr, PlugId>,
}

impl Guests {
    /// Adds a guest. Its addresses must be free; see [`Guests::by_address`].
    pub(crate) fn insert(&mut self, guest: Guest) {
        self.by_address.insert(guest.address4.into(), guest.plug);
        self.by_address.insert(guest.address6.into(), guest.plug);
        self.by_plug.insert(guest.plug, guest);
    }

    /// Takes a guest out.
    pub(crate) fn remove(&mut self, plug: PlugId) -> Option<Guest> {
        let guest = self.by_plug.remove(&plug)?;
        self.by_address.remove(&guest.address4.into());
        self.by_address.remove(&guest.address6.into());
        Some(guest)
    }

    /// The guest behind a plug.
    #[must_use]
    pub(crate) fn by_plug(&self, plug: PlugId) -> Option<&Guest> {
        self.by_plug.get(&plug)
    }

    /// The guest that has this address.
    #[must_use]
    pub(crate) fn by_address(&self, address: IpAddr) -> Option<&Guest> {
        self.by_plug.get(self.by_address.get(&address)?)
    }

    /// The guests of this name or alias, in the order of their plugs.
    pub(crate) fn by_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Guest> {
        self.by_plug.values().filter(move |guest| {
            guest.name.eq_ignore_ascii_case(name)
                || guest.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
        })
    }

    /// All guests, in the order of their plugs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Guest> {
        self.by_plug.values()
    }
}
