//! What is different between two looks at the cards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::nat::NatType;
use crate::{AddressClass, AddressState, Card, CardAddress, Family, IpRange};

/// The machine has slept so long that NATs have forgotten it, and it may be elsewhere.
const LONG_ASLEEP: Duration = Duration::from_secs(600);

/// One thing that has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// A card came.
    CardAdded {
        /// Its name.
        card: String,
    },
    /// A card went.
    CardRemoved {
        /// Its name.
        card: String,
    },
    /// A card is different.
    CardChanged {
        /// Its name.
        card: String,
        /// What is now: `up`, `down`, `carrier`, `no carrier`, `was eth0`, `mtu 1400`.
        now: Vec<String>,
    },
    /// An address came.
    AddressAdded {
        /// The card's name.
        card: String,
        /// The address, or the block.
        address: String,
        /// How it is.
        state: AddressState,
    },
    /// An address went.
    AddressRemoved {
        /// The card's name.
        card: String,
        /// The address, or the block.
        address: String,
    },
    /// An address can be used now, or no longer.
    AddressChanged {
        /// The card's name.
        card: String,
        /// The address, or the block.
        address: String,
        /// How it is.
        state: AddressState,
    },
    /// What goes to the outside leaves otherwise.
    DefaultChanged {
        /// The family.
        family: Family,
        /// How it left before; `None`: not at all.
        was: Option<Way>,
        /// How it leaves now.
        now: Option<Way>,
    },
    /// The outside knows this machine under another address.
    ExternalChanged {
        /// The family.
        family: Family,
        /// What was seen before: an address, or why none was; `None`: nothing.
        was: Option<String>,
        /// What is seen now; `None`: nothing leaves this machine.
        now: Option<String>,
    },
    /// The NAT does something else.
    NatChanged {
        /// The family.
        family: Family,
        /// Its type before, if that was known.
        was: Option<NatType>,
        /// Its type now, if it is known.
        now: Option<NatType>,
    },
    /// The machine has slept.
    Woke {
        /// For how long, seconds.
        asleep_s: u64,
    },
}

/// How traffic to the outside leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The card's name.
    pub card: String,
    /// The source address.
    pub source: Option<IpAddr>,
    /// The next hop of the card's first default route.
    pub gateway: Option<IpAddr>,
}

impl Way {
    /// How traffic of a family leaves; `None`: it does not.
    #[must_use]
    pub fn outwards(cards: &[Card], family: Family) -> Option<Self> {
        let card = cards.iter().find(|card| *card.default.get(family) == Some(true))?;
        let gateway = card.gateways.iter().find(|way| way.family == family);
        Some(Self {
            card: card.name.clone(),
            source: *card.source.get(family),
            gateway: gateway.and_then(|way| way.address),
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.card)?;
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CardAdded { card } => write!(f, "{card} came"),
            Self::CardRemoved { card } => write!(f, "{card} went"),
            Self::CardChanged { card, now } => write!(f, "{card} is {}", now.join(", ")),
            Self::AddressAdded { card, address, state: AddressState::Ready } => {
                write!(f, "{card} has {address}")
            }
            Self::AddressAdded { card, address, state } => {
                write!(f, "{card} has {address}, which is {state}")
            }
            Self::AddressRemoved { card, address } => write!(f, "{card} has {address} no longer"),
            Self::AddressChanged { card, address, state } => {
                write!(f, "{card}: {address} is {state}")
            }
            Self::DefaultChanged { family, was, now } => {
                let name =
                    |way: &Option<Way>| way.as_ref().map_or("nowhere".into(), Way::to_string);
                write!(f, "default of {family}: {}, was {}", name(now), name(was))
            }
            Self::ExternalChanged { family, was, now } => {
                let name = |address: &Option<String>| address.clone().unwrap_or("not known".into());
                write!(f, "external address of {family}: {}, was {}", name(now), name(was))
            }
            Self::NatChanged { family, was, now } => {
                let name = |kind: &Option<NatType>| kind.map_or("not known", NatType::label);
                write!(f, "NAT of {family}: {}, was {}", name(now), name(was))
            }
            Self::Woke { asleep_s } => write!(f, "woke up after {asleep_s} s"),
        }
    }
}

/// What a change means for what is known of the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// It stays true.
    Minor,
    /// External addresses and NAT are to be found out again.
    Major,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minor => "minor",
            Self::Major => "major",
        })
    }
}

/// Things that have changed together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The weight of the heaviest of them.
    pub weight: Weight,
    /// What has changed.
    pub events: Vec<Event>,
}

/// What is different between two looks, and after a sleep; `None`: nothing that matters.
///
/// It is major if the default card, its gateway or the source address of a family is another one, if an
/// address that can be used came to or went from a card with a default route, and after ten minutes of
/// sleep.
#[must_use]
pub fn difference(before: &[Card], now: &[Card], asleep: Option<Duration>) -> Option<Change> {
    let mut found = Found { weight: Weight::Minor, events: Vec::new() };
    if let Some(asleep) = asleep {
        found.add(asleep >= LONG_ASLEEP, Event::Woke { asleep_s: asleep.as_secs() });
    }
    let (old, new) = (by_number(before), by_number(now));
    for card in old.iter().filter(|(number, _)| !new.contains_key(*number)).map(|(_, card)| card) {
        found.add(routed(card), Event::CardRemoved { card: card.name.clone() });
    }
    for (number, card) in &new {
        match old.get(number) {
            Some(was) => found.compare(was, card),
            None => {
                found.add(false, Event::CardAdded { card: card.name.clone() });
                found.compare_addresses(None, card);
            }
        }
    }
    for family in Family::BOTH {
        let (was, now) = (Way::outwards(before, family), Way::outwards(now, family));
        if was != now {
            found.add(true, Event::DefaultChanged { family, was, now });
        }
    }
    let Found { weight, events } = found;
    (!events.is_empty()).then_some(Change { weight, events })
}

struct Found {
    weight: Weight,
    events: Vec<Event>,
}

impl Found {
    fn add(&mut self, major: bool, event: Event) {
        if major {
            self.weight = Weight::Major;
        }
        self.events.push(event);
    }

    fn compare(&mut self, was: &Card, card: &Card) {
        let mut now = Vec::new();
        if was.name != card.name {
            now.push(format!("named so, was {}", was.name));
        }
        if was.up != card.up {
            now.push(if card.up { "up" } else { "down" }.to_owned());
        }
        // A card that is off has no carrier.
        if was.carrier != card.carrier && card.up {
            now.push(if card.carrier { "connected" } else { "without carrier" }.to_owned());
        }
        if was.port_of != card.port_of {
            now.push(match &card.port_of {
                Some(master) => format!("a port of {master}"),
                None => "on its own".to_owned(),
            });
        }
        if was.mtu != card.mtu {
            now.extend(card.mtu.map(|mtu| format!("of MTU {mtu}")));
        }
        if was.mac != card.mac {
            now.extend(card.mac.map(|mac| format!("known as {mac}")));
        }
        if !now.is_empty() {
            self.add(false, Event::CardChanged { card: card.name.clone(), now });
        }
        self.compare_addresses(Some(was), card);
    }

    fn compare_addresses(&mut self, was: Option<&Card>, card: &Card) {
        let old = by_range(was);
        let new = by_range(Some(card));
        let name = || card.name.clone();
        let matters = |address: &CardAddress| {
            (routed(card) || was.is_some_and(routed))
                && address.state == AddressState::Ready
                && address.class() != AddressClass::LinkLocal
                && !address.temporary
        };
        let ranges: BTreeSet<_> = old.keys().chain(new.keys()).collect();
        for range in ranges {
            let address = range.to_string();
            match (old.get(range), new.get(range)) {
                (Some(gone), None) => {
                    self.add(matters(gone), Event::AddressRemoved { card: name(), address });
                }
                (None, Some(came)) => {
                    let state = came.state;
                    self.add(matters(came), Event::AddressAdded { card: name(), address, state });
                }
                (Some(before), Some(now)) if before.state != now.state => {
                    let major = matters(before) || matters(now);
                    let state = now.state;
                    self.add(major, Event::AddressChanged { card: name(), address, state });
                }
                _ => {}
            }
        }
    }
}

/// True if there is a default route by the card.
fn routed(card: &Card) -> bool {
    !card.gateways.is_empty()
}

fn by_number(cards: &[Card]) -> BTreeMap<Option<u32>, &Card> {
    cards.iter().map(|card| (card.index, card)).collect()
}

fn by_range(card: Option<&Card>) -> BTreeMap<IpRange, &CardAddress> {
    let addresses = card.map(|card| card.addresses.as_slice()).unwrap_or_default();
    addresses.iter().map(|address| (address.range, address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gateway;

    fn card(index: u32, name: &str, addresses: &[&str]) -> Card {
        let addresses = addresses.iter().map(|it| CardAddress::new(it.parse().unwrap())).collect();
        Card { index: Some(index), up: true, carrier: true, addresses, ..Card::named(name) }
    }

    fn default(mut card: Card, gateway: &str) -> Card {
        let address: IpAddr = gateway.parse().unwrap();
        let family = Family::of(address);
        card.gateways.push(Gateway { family, address: Some(address), metric: 0, table: 254 });
        *card.default.get_mut(family) = Some(true);
        *card.source.get_mut(family) = Some(card.addresses[0].range.base());
        card
    }

    fn told(before: &[Card], now: &[Card]) -> (Weight, Vec<String>) {
        let change = difference(before, now, None).unwrap();
        (change.weight, change.events.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn nothing_is_said_where_nothing_is_different() {
        let mut eth0 = card(2, "eth0", &["10.0.0.7/24"]);
        let before = [eth0.clone()];
        eth0.addresses[0].preferred = Some(7);
        assert_eq!(difference(&before, &[eth0], None), None, "lifetimes run all the time");
    }

    #[test]
    fn what_the_outside_cannot_see_is_minor() {
        let eth0 = default(card(2, "eth0", &["10.0.0.7/24"]), "10.0.0.1");
        let before = [eth0.clone(), card(3, "br0", &[])];
        let mut renamed = eth0.clone();
        renamed.mtu = Some(1400);
        let now = [renamed, card(3, "br1", &["172.17.0.1/16"]), card(4, "veth1", &[])];
        let lines =
            ["eth0 is of MTU 1400", "br1 is named so, was br0", "br1 has 172.17.0.1", "veth1 came"];
        assert_eq!(told(&before, &now), (Weight::Minor, lines.map(str::to_owned).to_vec()));
    }

    #[test]
    fn another_way_to_the_outside_is_major() {
        let (eth0, wlan0) = (card(2, "eth0", &["10.0.0.7/24"]), card(3, "wlan0", &["10.1.0.7/24"]));
        let before = [default(eth0.clone(), "10.0.0.1"), wlan0.clone()];
        let now = [eth0.clone(), default(wlan0, "10.1.0.1")];
        let line = "default of IPv4: wlan0 from 10.1.0.7 via 10.1.0.1, was eth0 from 10.0.0.7 via 10.0.0.1";
        assert_eq!(told(&before, &now), (Weight::Major, vec![line.to_owned()]));
        let (weight, lines) = told(&before, &now[..0]);
        assert_eq!(weight, Weight::Major);
        assert_eq!(lines[2], "default of IPv4: nowhere, was eth0 from 10.0.0.7 via 10.0.0.1");
        let other_gateway = [default(eth0, "10.0.0.2"), before[1].clone()];
        assert_eq!(told(&before, &other_gateway).0, Weight::Major);
    }

    #[test]
    fn an_address_that_is_used_is_major_and_one_for_a_while_is_not() {
        let eth0 = default(card(2, "eth0", &["2020::1/64"]), "fe80::9");
        let mut more = eth0.clone();
        more.addresses.push(CardAddress::new("2020::2/64".parse().unwrap()));
        let before = [eth0];
        assert_eq!(
            told(&before, &[more.clone()]),
            (Weight::Major, vec!["eth0 has 2020::2".into()])
        );
        more.addresses[1].temporary = true;
        assert_eq!(told(&before, &[more.clone()]).0, Weight::Minor);
        more.addresses[1].temporary = false;
        more.addresses[1].state = AddressState::Tentative;
        let (weight, lines) = told(&before, &[more.clone()]);
        assert_eq!(
            (weight, lines),
            (Weight::Minor, vec!["eth0 has 2020::2, which is tentative".into()])
        );
        let mut deprecated = before[0].clone();
        deprecated.addresses[0].state = AddressState::Deprecated;
        assert_eq!(told(&before, &[deprecated]).0, Weight::Major);
    }

    #[test]
    fn after_a_long_sleep_everything_is_to_be_found_out_again() {
        let woke =
            |seconds| difference(&[], &[], Some(Duration::from_secs(seconds))).unwrap().weight;
        assert_eq!((woke(599), woke(600)), (Weight::Minor, Weight::Major));
    }
}
