//! Under which addresses a forward can be reached: those of this machine's cards, and those under which the
//! outside knows them.

use std::net::IpAddr;

use netyard_nic::{
    AddressClass, AddressState, Card, External, Family, Interface, IpRange, Route, Standing,
};
use netyard_yard::api::ForwardStatus;
use netyard_yard::error::YardError;
use serde::Serialize;
use tokio::task::JoinSet;

use super::asked::Asked;
use super::leaves::there;
use crate::output::patiently;

/// A forward, and the addresses that lead to it.
#[derive(Debug, Serialize)]
pub(crate) struct Reached {
    #[serde(flatten)]
    pub(crate) status: ForwardStatus,
    /// The addresses and blocks of this machine that it can be reached under, loopback aside.
    pub(crate) addresses: Vec<String>,
    /// The external ones, if servers were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) external: Option<Vec<Outer>>,
}

/// An external address or block that leads to a forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Outer {
    pub(crate) address: String,
    /// The card that it belongs to, or that its NAT stands before.
    pub(crate) card: String,
    /// It is this machine's own. If not, a NAT has it, which must be told to let others in.
    pub(crate) direct: bool,
    /// The address of this machine that the NAT has to forward to; with a block its first one.
    pub(crate) near: IpAddr,
}

/// The forwards with the addresses that lead to them now. Servers are asked for external ones if any are
/// named.
///
/// # Errors
/// Nobody can be asked.
pub(crate) fn reached(
    forwards: Vec<ForwardStatus>,
    asked: &Asked,
) -> Result<Vec<Reached>, YardError> {
    let cards = there();
    let interfaces = match asked.nobody() {
        true => None,
        false => Some(patiently("asking STUN servers", || super::run(outwards(&cards, asked)))?),
    };
    let with = |status: ForwardStatus| {
        // Nothing of another machine leads to a Unix socket.
        let host = status.forward.host.address();
        let addresses = host.map(|host| addresses(host, &cards)).unwrap_or_default();
        let external = interfaces
            .as_ref()
            .map(|interfaces| host.map(|host| outer(host, interfaces)).unwrap_or_default());
        Reached { status, addresses, external }
    };
    Ok(forwards.into_iter().map(with).collect())
}

/// The cards that lead to the outside, with what servers see; all are asked about at once.
async fn outwards(cards: &[Card], asked: &Asked) -> Vec<Interface> {
    let leads = |card: &&Card| {
        let standing = Family::BOTH.map(|family| card.standing(family));
        standing.iter().any(|it| matches!(it, Standing::Default | Standing::Outside))
    };
    let mut loading = JoinSet::new();
    for card in cards.iter().filter(leads).cloned() {
        let asked = asked.clone();
        loading.spawn(async move { asked.load(card).await });
    }
    let mut interfaces = loading.join_all().await;
    interfaces.sort_by_key(|interface| interface.card().index);
    interfaces
}

/// What of the outside leads to a socket that listens on `host`.
fn outer(host: IpAddr, interfaces: &[Interface]) -> Vec<Outer> {
    let mut found = Vec::new();
    for interface in interfaces {
        for route in interface.rp(Family::of(host)).routes() {
            let External::Known(external) = route.external() else { continue };
            let Some(near) = near(host, route) else { continue };
            let address = match route.is_direct() && !host.is_unspecified() {
                true => host.to_string(),
                false => external.to_string(),
            };
            let card = interface.name().to_owned();
            let outer = Outer { address, card, direct: route.is_direct(), near };
            if !found.contains(&outer) {
                found.push(outer);
            }
        }
    }
    found
}

/// The address of a route's near side on which a socket on `host` hears.
fn near(host: IpAddr, route: &Route) -> Option<IpAddr> {
    if host.is_unspecified() {
        return Some(route.bind_address());
    }
    let own = |range: &&IpRange| range.contains(host);
    // Of IPv6 the far side of a direct route is the card's own address.
    let ranges = if route.is_direct() { route.ext_ips().into_iter().collect() } else { Vec::new() };
    route.nic_ips().iter().chain(ranges).find(own).map(|_| host)
}

/// What leads to a socket that listens on `host`.
fn addresses(host: IpAddr, cards: &[Card]) -> Vec<String> {
    let family = Family::of(host);
    let beyond = |class| !matches!(class, AddressClass::LinkLocal | AddressClass::Loopback);
    cards
        .iter()
        .filter(|card| card.is_usable())
        .flat_map(|card| card.addresses(family))
        .filter(|address| address.state == AddressState::Ready && beyond(address.class()))
        .filter(|address| host.is_unspecified() || address.range.contains(host))
        .map(|address| match host.is_unspecified() {
            true => address.range.to_string(),
            false => host.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use netyard_nic::CardAddress;

    use super::*;

    #[test]
    fn a_forward_is_reached_by_what_its_socket_listens_on() {
        let all = ["192.168.0.20/24", "8.8.0.0/16", "fe80::1/64", "2020::1/64", "2020::2/64"];
        let mut addresses_of: Vec<_> =
            all.iter().map(|text| CardAddress::new(text.parse().unwrap())).collect();
        addresses_of[4].state = AddressState::Deprecated;
        let card = |name| Card { up: true, carrier: true, ..Card::named(name) };
        let eth0 = Card { addresses: addresses_of, ..card("eth0") };
        let down = Card { up: false, ..eth0.clone() };
        let to =
            |host: &str, card: &Card| addresses(host.parse().unwrap(), std::slice::from_ref(card));
        assert_eq!(to("0.0.0.0", &eth0), ["192.168.0.20", "8.8.0.0/16"]);
        assert_eq!(to("::", &eth0), ["2020::1"], "not the deprecated one, nor the link-local one");
        assert_eq!(to("8.8.3.7", &eth0), ["8.8.3.7"]);
        assert!(to("127.0.0.1", &eth0).is_empty(), "this machine only");
        assert!(to("0.0.0.0", &down).is_empty());
    }

    #[test]
    fn a_nat_is_told_where_to_forward_and_own_addresses_need_none() {
        let card = |name| netyard_nic::CardId { name: std::sync::Arc::from(name), index: None };
        let range = |text: &str| -> IpRange { text.parse().unwrap() };
        let near = ["192.168.0.20", "7.7.7.7"].map(range).to_vec();
        let behind = Route::translated(card("eth0"), Family::Ip4, near, range("1.3.3.7"));
        let block = Route::direct(card("eth0"), range("8.8.0.0/16"), &[]);
        let own6 = Route::direct(card("eth0"), range("2020::1"), &[range("fe80::1")]);
        let ip4 = netyard_nic::RoutePool::new([behind, block]);
        let rp = netyard_nic::PerFamily { ip4, ip6: netyard_nic::RoutePool::new([own6]) };
        let interfaces = [Interface::new(Card::named("eth0"), rp)];
        let to = |host: &str| {
            let found = outer(host.parse().unwrap(), &interfaces);
            let text = |it: Outer| format!("{} {} {}", it.address, it.direct, it.near);
            found.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(to("0.0.0.0"), ["1.3.3.7 false 192.168.0.20", "8.8.0.0/16 true 8.8.0.1"]);
        assert_eq!(to("7.7.7.7"), ["1.3.3.7 false 7.7.7.7"]);
        assert_eq!(to("8.8.3.7"), ["8.8.3.7 true 8.8.3.7"]);
        assert_eq!(to("2020::1"), ["2020::1 true 2020::1"]);
        assert!(to("127.0.0.1").is_empty() && to("9.9.9.9").is_empty());
    }
}
