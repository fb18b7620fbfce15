//! The cards of this machine, as the kernel tells them over netlink. Nothing is sent to any network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netyard_link::rtnetlink::{
    Address, Decision, LOCAL_TABLE, Link, LinkIndex, Route, RouteKind, Rtnetlink,
};
use netyard_link::wireless;

use crate::error::{NicError, Result};
use crate::{AddressState, Card, CardAddress, CardKind, Family, Gateway, IpRange, PerFamily};

/// Addresses of nobody (RFC 5737, RFC 3849), far away: the way to them is the way to the outside.
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Every card of the calling thread's network namespace, loopback and unusable ones too, in the kernel's
/// order.
///
/// # Errors
/// What the kernel said.
pub fn cards() -> Result<Vec<Card>> {
    let mut kernel = Rtnetlink::open()?;
    let links = kernel.links()?;
    let addresses = kernel.addresses(None)?;
    let routes = kernel.hops()?;
    let ways = PerFamily { ip4: way_out(&mut kernel, 0)?, ip6: way_out(&mut kernel, 1)? };
    // A kernel or sandbox that refuses has no wireless cards to show.
    let wireless = wireless::links().unwrap_or_default();
    let masters: HashMap<_, _> = links.iter().map(|link| (link.index, link)).collect();
    let mut cards = Vec::new();
    for link in &links {
        let mut card = card(link, &masters, wireless.contains(&link.index));
        for address in addresses.iter().filter(|address| address.link == link.index) {
            let block = is_own_block(&mut kernel, address)?;
            card.addresses.push(card_address(address, block));
        }
        card.gateways = gateways(&routes, link.index);
        for family in Family::BOTH {
            let way = ways.get(family).as_ref();
            let ours = way.filter(|way| way.link == link.index);
            *card.default.get_mut(family) = Some(ours.is_some());
            *card.source.get_mut(family) = ours.and_then(|way| way.source);
            let blocks = routes.iter().filter(|route| is_block(route, family));
            let here = blocks.filter(|route| match route.link.and_then(|on| masters.get(&on)) {
                // A block that the whole machine answers for is shown with the default card.
                Some(on) if on.loopback => ours.is_some(),
                _ => route.link == Some(link.index),
            });
            for range in here.map(|route| IpRange::block(route.destination)) {
                if !card.addresses.iter().any(|known| known.range.same(&range)) {
                    card.addresses.push(CardAddress::new(range));
                }
            }
        }
        cards.push(card);
    }
    Ok(cards)
}

/// The card with this name.
///
/// # Errors
/// There is none; what the kernel said.
pub fn card_named(name: &str) -> Result<Card> {
    let mut cards = cards()?;
    match cards.iter().position(|card| card.name == name) {
        Some(found) => Ok(cards.swap_remove(found)),
        None => Err(NicError::NotFound { name: name.to_owned(), there: names(&cards) }),
    }
}

/// The card by which the kernel sends what goes to the outside; of IPv4 if both families have one.
///
/// # Errors
/// There is none; what the kernel said.
pub fn default_card() -> Result<Card> {
    let mut cards = cards()?;
    let of = |family| cards.iter().position(|card| card.default.get(family) == &Some(true));
    match of(Family::Ip4).or_else(|| of(Family::Ip6)) {
        Some(found) => Ok(cards.swap_remove(found)),
        None => Err(NicError::NoDefault { there: names(&cards) }),
    }
}

/// Where the kernel would send what goes to the outside: the way itself, the link's name.
pub(crate) fn ways_out() -> Result<PerFamily<Option<Decision>>> {
    let mut kernel = Rtnetlink::open()?;
    Ok(PerFamily { ip4: way_out(&mut kernel, 0)?, ip6: way_out(&mut kernel, 1)? })
}

fn way_out(kernel: &mut Rtnetlink, family: usize) -> Result<Option<Decision>> {
    let Some(address) = OUTSIDE.get(family) else { return Ok(None) };
    let way = kernel.decide(*address, None)?;
    Ok(way.filter(|way| way.kind == RouteKind::Unicast))
}

fn names(cards: &[Card]) -> Vec<String> {
    cards.iter().map(|card| card.name.clone()).collect()
}

fn card(link: &Link, links: &HashMap<LinkIndex, &Link>, wireless: bool) -> Card {
    let name = |index: LinkIndex| links.get(&index).map(|link| link.name.clone());
    // A VRF chooses the routing table of its ports, which keep their addresses.
    let takes_addresses = |master: &LinkIndex| {
        let kind = links.get(master).and_then(|master| master.kind.as_deref());
        !matches!(kind, Some("vrf"))
    };
    let kind = CardKind::of(link.kind.as_deref(), link.hardware, wireless);
    let stacked = matches!(kind, CardKind::Vlan | CardKind::Sub) && link.peer_namespace.is_none();
    Card {
        index: Some(link.index.0),
        kind,
        mac: link.mac,
        mtu: Some(link.mtu),
        up: link.up,
        carrier: link.carrier,
        port_of: link.master.filter(takes_addresses).and_then(name),
        upon: link.peer.filter(|_| stacked).and_then(name),
        ..Card::named(link.name.clone())
    }
}

fn card_address(address: &Address, block: bool) -> CardAddress {
    let range = if block {
        IpRange::block(address.net)
    } else {
        IpRange::host(address.net.addr()).in_subnet(address.net.prefix_len())
    };
    let state = if address.duplicate {
        AddressState::Duplicate
    } else if address.tentative {
        AddressState::Tentative
    } else if address.deprecated {
        AddressState::Deprecated
    } else {
        AddressState::Ready
    };
    CardAddress {
        range,
        state,
        temporary: address.temporary,
        preferred: address.preferred,
        valid: address.valid,
    }
}

/// True if an address that is just its prefix stands for all of it: if the kernel takes what is sent to
/// the first usable address for its own.
fn is_own_block(kernel: &mut Rtnetlink, address: &Address) -> Result<bool> {
    let range = IpRange::assigned(address.net);
    if range.is_host() || address.net.addr().is_loopback() {
        return Ok(false);
    }
    let way = kernel.decide(range.first(), None)?;
    Ok(way.is_some_and(|way| way.kind == RouteKind::Local))
}

/// True for a route by which the kernel takes a whole prefix for its own addresses.
fn is_block(route: &Route, family: Family) -> bool {
    let net: IpNet = route.destination;
    route.kind == RouteKind::Local
        && route.table == LOCAL_TABLE
        && net.prefix_len() < net.max_prefix_len()
        && Family::of(net.addr()) == family
        && !net.addr().is_loopback()
        && !net.addr().is_unspecified()
}

fn gateways(routes: &[Route], link: LinkIndex) -> Vec<Gateway> {
    let default = |route: &&Route| {
        route.destination.prefix_len() == 0
            && route.kind == RouteKind::Unicast
            && route.link == Some(link)
    };
    let mut found: Vec<_> = routes
        .iter()
        .filter(default)
        .map(|route| Gateway {
            family: Family::of(route.destination.addr()),
            address: route.gateway,
            metric: route.metric.unwrap_or(0),
            table: route.table,
        })
        .collect();
    found.sort_by_key(|way| (way.family, way.metric));
    found
}
