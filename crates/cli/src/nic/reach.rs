//! Under which addresses of this machine's cards a forward can be reached.

use std::net::IpAddr;

use netyard_nic::{AddressClass, AddressState, Card, Family, cards};
use netyard_yard::api::ForwardStatus;
use serde::Serialize;

/// A forward, and the addresses that lead to it.
#[derive(Debug, Serialize)]
pub(crate) struct Reached {
    #[serde(flatten)]
    pub(crate) status: ForwardStatus,
    /// The addresses and blocks of this machine that it can be reached under, loopback aside.
    pub(crate) addresses: Vec<String>,
}

/// The forwards with the addresses that lead to them now. Where the cards cannot be listed there are
/// none.
pub(crate) fn reached(forwards: Vec<ForwardStatus>) -> Vec<Reached> {
    let cards = cards().unwrap_or_default();
    let with = |status: ForwardStatus| {
        let addresses = addresses(status.forward.host, &cards);
        Reached { status, addresses }
    };
    forwards.into_iter().map(with).collect()
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
}
