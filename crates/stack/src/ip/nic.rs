//! A network interface of the stack: its medium, addresses and groups.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net};
use netyard_wire::MacAddr;
use netyard_wire::icmp::solicited_node;

use super::autoconf::Autoconf;
use super::dhcp::Client;

/// Most addresses of one interface; further ones are refused.
pub(crate) const MAX_ADDRESSES: usize = 64;
/// Most groups that sockets have joined on one interface; further ones are refused.
const MAX_GROUPS: usize = 256;

/// The group of all IPv6 nodes of a link (RFC 4291 section 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The group of all IPv4 hosts of a link (RFC 1112 section 4).
const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);

/// What an interface carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Ethernet frames: the interface has this hardware address, and neighbours are asked for
    /// theirs.
    Ethernet(MacAddr),
    /// IP packets, as a TUN device has them. Frames in and out of the stack have an Ethernet header
    /// all the same, whose hardware addresses say nothing.
    Ip,
}

/// Where an address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Configured,
    LinkLocal,
    /// A router's prefix (RFC 4862).
    Advertised,
    /// A DHCP server.
    Dhcp,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) net: IpNet,
    pub(crate) origin: Origin,
    /// Until when nobody else may claim it (RFC 4862 section 5.4). It is used meanwhile, but nobody's
    /// knowledge of another owner is overwritten (RFC 4429).
    pub(crate) tentative_until: Option<Instant>,
    /// When it is not used for new connections any more; `None`: never.
    pub(crate) preferred_until: Option<Instant>,
    /// When it goes; `None`: never.
    pub(crate) valid_until: Option<Instant>,
}

impl Address {
    pub(crate) fn permanent(net: IpNet, origin: Origin) -> Self {
        Self { net, origin, tentative_until: None, preferred_until: None, valid_until: None }
    }
}

/// What a packet's destination is to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    Own,
    Group,
    Broadcast,
}

#[derive(Debug)]
pub(crate) struct Nic {
    pub(crate) medium: Medium,
    /// The largest IP packet, bytes.
    pub(crate) mtu: u32,
    /// The same for IPv6, which a router may lower.
    pub(crate) mtu6: u32,
    /// What a router advertised for outgoing IPv6 packets, or the default.
    pub(crate) hop_limit: u8,
    addresses: Vec<Address>,
    /// Groups and how many sockets have joined each.
    groups: BTreeMap<IpAddr, usize>,
    pub(crate) autoconf: Autoconf,
    pub(crate) dhcp: Option<Box<Client>>,
}

impl Nic {
    pub(crate) fn new(medium: Medium, mtu: u32, hop_limit: u8) -> Self {
        let autoconf = Autoconf::default();
        let (addresses, groups) = (Vec::new(), BTreeMap::new());
        Self { medium, mtu, mtu6: mtu, hop_limit, addresses, groups, autoconf, dhcp: None }
    }

    /// The hardware address; all zeros where there is none.
    pub(crate) fn mac(&self) -> MacAddr {
        match self.medium {
            Medium::Ethernet(mac) => mac,
            Medium::Ip => MacAddr([0; 6]),
        }
    }

    pub(crate) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub(crate) fn addresses_mut(&mut self) -> &mut [Address] {
        &mut self.addresses
    }

    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|address| address.net.addr() == ip)
    }

    /// False if there is no room. An address that is there already is replaced.
    pub(crate) fn add(&mut self, address: Address) -> bool {
        self.addresses.retain(|other| other.net.addr() != address.net.addr());
        if self.addresses.len() >= MAX_ADDRESSES {
            return false;
        }
        self.addresses.push(address);
        true
    }

    /// Takes out the addresses that `remove` names, and returns them.
    pub(crate) fn remove(&mut self, remove: impl Fn(&Address) -> bool) -> Vec<Address> {
        let (gone, stay) = self.addresses.iter().partition(|address| remove(address));
        self.addresses = stay;
        gone
    }

    /// What a packet to `ip` is to this interface; `None`: not for it.
    pub(crate) fn destination(&self, ip: IpAddr) -> Option<Destination> {
        if self.has(ip) {
            return Some(Destination::Own);
        }
        if self.groups.contains_key(&ip) {
            return Some(Destination::Group);
        }
        match ip {
            IpAddr::V4(ip) if ip.is_broadcast() || self.is_subnet_broadcast(ip) => {
                Some(Destination::Broadcast)
            }
            IpAddr::V4(ip) => (ip == ALL_HOSTS).then_some(Destination::Group),
            IpAddr::V6(ip) => {
                let solicited = |address: &Address| match address.net.addr() {
                    IpAddr::V6(own) => solicited_node(own) == ip,
                    IpAddr::V4(_) => false,
                };
                let all = ip == ALL_NODES || self.addresses.iter().any(solicited);
                all.then_some(Destination::Group)
            }
        }
    }

    /// The directed broadcast address of one of the interface's subnets (RFC 922).
    pub(crate) fn is_subnet_broadcast(&self, ip: Ipv4Addr) -> bool {
        let of = |net: Ipv4Net| net.prefix_len() < 31 && net.broadcast() == ip;
        self.addresses.iter().any(|address| matches!(address.net, IpNet::V4(net) if of(net)))
    }

    /// The groups that it hears.
    pub(crate) fn groups(&self) -> Vec<IpAddr> {
        let mut groups = BTreeSet::new();
        for address in &self.addresses {
            match address.net.addr() {
                IpAddr::V4(_) => groups.extend([IpAddr::from(ALL_HOSTS)]),
                IpAddr::V6(own) => {
                    groups.extend([ALL_NODES, solicited_node(own)].map(IpAddr::from))
                }
            }
        }
        groups.extend(self.groups.keys());
        groups.into_iter().collect()
    }

    /// One more socket wants what goes to a group; false if there is no room.
    pub(crate) fn join(&mut self, group: IpAddr) -> bool {
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group) {
            return false;
        }
        *self.groups.entry(group).or_default() += 1;
        true
    }

    /// One socket less wants it; false if none did.
    pub(crate) fn leave(&mut self, group: IpAddr) -> bool {
        let Some(count) = self.groups.get_mut(&group) else { return false };
        *count -= 1;
        if *count == 0 {
            self.groups.remove(&group);
        }
        true
    }

    /// The address to send from to `destination` (RFC 6724 section 5: same address, scope, not
    /// deprecated, longest prefix; then the first).
    pub(crate) fn source(&self, now: Instant, destination: IpAddr) -> Option<IpAddr> {
        let rank = |address: &Address| {
            let own = address.net.addr();
            let deprecated = address.preferred_until.is_some_and(|until| until <= now);
            let same_scope = is_link_local(own) == is_link_local(destination);
            (own == destination, same_scope, !deprecated, common_prefix(own, destination))
        };
        let family = |address: &&Address| address.net.addr().is_ipv4() == destination.is_ipv4();
        // `max_by_key` returns the last of equals; the first is wanted.
        let best = self.addresses.iter().rev().filter(family).max_by_key(|address| rank(address));
        best.map(|address| address.net.addr())
    }
}

/// True for addresses that mean something on one link only.
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => {
            let [first, second, ..] = ip.octets();
            ip.is_unicast_link_local() || (first == 0xff && matches!(second & 0xf, 1 | 2))
        }
    }
}

fn common_prefix(one: IpAddr, other: IpAddr) -> u32 {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        // RFC 6724 section 2.2: the interface identifier does not count.
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            (one.to_bits() ^ other.to_bits()).leading_zeros().min(64)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(addresses: &[&str]) -> Nic {
        let mut nic = Nic::new(Medium::Ip, 1500, 64);
        for address in addresses {
            let net = address.parse().unwrap();
            assert!(nic.add(Address::permanent(net, Origin::Configured)));
        }
        nic
    }

    #[test]
    fn sources_suit_their_destination() {
        let nic =
            nic(&["10.0.0.1/24", "192.168.0.1/24", "fe80::1/64", "fd00::1/64", "2001:db8::1/64"]);
        for (to, from) in [
            ("10.0.0.9", "10.0.0.1"),
            ("192.168.0.9", "192.168.0.1"),
            ("8.8.8.8", "10.0.0.1"),
            ("fe80::9", "fe80::1"),
            ("ff02::1", "fe80::1"),
            ("fd00::9", "fd00::1"),
            ("2001:db8:1::9", "2001:db8::1"),
        ] {
            let source = nic.source(Instant::now(), to.parse().unwrap());
            assert_eq!(source, Some(from.parse().unwrap()), "to {to}");
        }
    }

    #[test]
    fn a_deprecated_address_is_used_only_where_there_is_no_other() {
        let now = Instant::now();
        let mut nic = nic(&["fd00::2/64"]);
        let old = Address {
            preferred_until: Some(now),
            ..Address::permanent("fd00::1/64".parse().unwrap(), Origin::Advertised)
        };
        assert!(nic.add(old));
        assert_eq!(nic.source(now, "fd00::9".parse().unwrap()), "fd00::2".parse().ok());
        nic.remove(|address| address.origin == Origin::Configured);
        assert_eq!(nic.source(now, "fd00::9".parse().unwrap()), "fd00::1".parse().ok());
    }

    #[test]
    fn destinations_are_told_apart() {
        let mut nic = nic(&["10.0.0.1/24", "10.1.0.1/31", "fd00::1:2:3/64"]);
        let of = |nic: &Nic, ip: &str| nic.destination(ip.parse().unwrap());
        assert_eq!(of(&nic, "10.0.0.1"), Some(Destination::Own));
        assert_eq!(of(&nic, "10.0.0.2"), None);
        assert_eq!(of(&nic, "10.0.0.255"), Some(Destination::Broadcast));
        assert_eq!(of(&nic, "255.255.255.255"), Some(Destination::Broadcast));
        assert_eq!(of(&nic, "10.1.0.0"), None, "RFC 3021: no broadcast in a /31");
        assert_eq!(of(&nic, "224.0.0.1"), Some(Destination::Group));
        assert_eq!(of(&nic, "ff02::1:ff02:3"), Some(Destination::Group));
        assert_eq!(of(&nic, "ff02::1"), Some(Destination::Group));
        assert_eq!(of(&nic, "239.1.2.3"), None);
        let group = "239.1.2.3".parse().unwrap();
        assert!(nic.join(group) && nic.join(group) && nic.leave(group));
        assert_eq!(of(&nic, "239.1.2.3"), Some(Destination::Group));
        assert!(nic.leave(group) && !nic.leave(group));
        assert_eq!(of(&nic, "239.1.2.3"), None);
    }
}
