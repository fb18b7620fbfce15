//! Who has which address: plans of networks.
//!
//! A network's hosts are counted in *slots*. Slot 0 is the hub's; each node has one for life.
//!
//! * `pair`: a slot is two addresses, an odd one and the next. The first is the node's, the second the far
//!   end of its point-to-point link, which is there so that the route to the network has a next hop: hub
//!   10.1.1.1 and 10.1.1.2, first node 10.1.1.3 and 10.1.1.4.
//! * `single`: a slot is one address, and the link itself is the route.
//!
//! A network may have an IPv6 prefix beside: the address of a slot there has the number of the IPv4 address
//! in its network, and the link itself is the route.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// How many addresses a node takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing {
    /// Two: its own, and the far end of its link.
    #[default]
    Pair,
    /// One.
    Single,
}

impl FromStr for Addressing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pair" => Ok(Self::Pair),
            "single" => Ok(Self::Single),
            _ => Err("expected pair or single".into()),
        }
    }
}

/// A place in a network that somebody has chosen: one of its addresses, or the number of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Said", into = "String")]
pub enum Chosen {
    /// A node's own address, of either family.
    Address(IpAddr),
    /// A slot.
    Number(u32),
}

impl FromStr for Chosen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().map(Self::Number);
        let either = number.or_else(|_| text.parse().map(Self::Address));
        either.map_err(|_| "expected an address of the network, or a machine's number".into())
    }
}

/// How a place may be said in JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Number(u32),
    Text(String),
}

impl TryFrom<Said> for Chosen {
    type Error = String;

    fn try_from(said: Said) -> Result<Self, String> {
        match said {
            Said::Number(number) => Ok(Self::Number(number)),
            Said::Text(text) => text.parse(),
        }
    }
}

impl From<Chosen> for String {
    fn from(chosen: Chosen) -> Self {
        chosen.to_string()
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// A network's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    network: Ipv4Net,
    network6: Option<Ipv6Net>,
    addressing: Addressing,
}

/// The addresses of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The node's own.
    pub address: Ipv4Addr,
    /// The far end of its link.
    pub far: Option<Ipv4Addr>,
    /// The node's own IPv6 address.
    pub address6: Option<Ipv6Addr>,
}

impl Plan {
    /// Of a network with room for the hub and at least one node.
    ///
    /// # Errors
    /// The prefix has none, or is not a network of unicast addresses.
    pub fn new(network: Ipv4Net, addressing: Addressing) -> Result<Self, String> {
        let network = network.trunc();
        let plan = Self { network, network6: None, addressing };
        if plan.capacity() < 1 {
            return Err(format!("{network} has no room for a hub and a node"));
        }
        let first = network.network();
        if first.is_multicast() || first.is_loopback() || first.octets().first() == Some(&0) {
            return Err(format!("{network} is not a network of unicast addresses"));
        }
        Ok(plan)
    }

    /// The same with IPv6.
    ///
    /// # Errors
    /// The prefix has fewer addresses than the IPv4 network, or is not one of unicast addresses.
    pub fn with_ipv6(self, network: Ipv6Net) -> Result<Self, String> {
        let network = network.trunc();
        let host_bits = |len: u8, all: u8| all.saturating_sub(len);
        let wanted = host_bits(self.network.prefix_len(), 32);
        if host_bits(network.prefix_len(), 128) < wanted {
            return Err(format!("{network} has fewer addresses than {}", self.network));
        }
        let first = network.network();
        if first.is_multicast() || first.is_unspecified() || first.is_unicast_link_local() {
            return Err(format!("{network} is not a network of unicast addresses"));
        }
        Ok(Self { network6: Some(network), ..self })
    }

    /// Its IPv6 prefix.
    #[must_use]
    pub const fn network6(&self) -> Option<Ipv6Net> {
        self.network6
    }

    /// Its prefixes of both families.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        let six = self.network6.map(IpNet::V6);
        [Some(IpNet::V4(self.network)), six].into_iter().flatten().collect()
    }

    /// The network.
    #[must_use]
    pub const fn network(&self) -> Ipv4Net {
        self.network
    }

    /// How its addresses are given.
    #[must_use]
    pub const fn addressing(&self) -> Addressing {
        self.addressing
    }

    /// How many nodes there can be beside the hub.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        let host_bits = u32::from(32_u8.saturating_sub(self.network.prefix_len()));
        // Without the network's address and that of its broadcast.
        let hosts = 1_u32.checked_shl(host_bits).unwrap_or(0).wrapping_sub(2);
        let hosts = if host_bits < 2 { 0 } else { hosts };
        let slots = match self.addressing {
            Addressing::Pair => hosts / 2,
            Addressing::Single => hosts,
        };
        slots.saturating_sub(1)
    }

    /// The addresses of a slot; `None`: the network has no such slot.
    #[must_use]
    pub fn slot(&self, slot: u32) -> Option<Slot> {
        if slot > self.capacity() {
            return None;
        }
        let at =
            |offset: u32| u32::from(self.network.network()).checked_add(offset).map(Ipv4Addr::from);
        let (number, far) = match self.addressing {
            Addressing::Pair => {
                let first = slot.checked_mul(2)?.checked_add(1)?;
                (first, Some(at(first.checked_add(1)?)?))
            }
            Addressing::Single => (slot.checked_add(1)?, None),
        };
        let six = |network: Ipv6Net| {
            u128::from(network.network()).checked_add(number.into()).map(Ipv6Addr::from)
        };
        Some(Slot { address: at(number)?, far, address6: self.network6.and_then(six) })
    }

    /// The slot of a place that a node shall have.
    ///
    /// # Errors
    /// No node can have it, and why.
    pub fn chosen(&self, chosen: Chosen) -> Result<u32, String> {
        let slot = match chosen {
            Chosen::Number(slot) => slot,
            Chosen::Address(address) => {
                let offset = self.offset(address).ok_or_else(|| {
                    let prefixes: Vec<_> = self.prefixes().iter().map(IpNet::to_string).collect();
                    format!("{address} is not in the network {}", prefixes.join(" or "))
                })?;
                match self.addressing {
                    Addressing::Pair if offset % 2 == 0 && offset > 0 => {
                        return Err(format!("{address} is the far end of a machine's link"));
                    }
                    Addressing::Pair => offset.checked_sub(1).map_or(u32::MAX, |it| it / 2),
                    Addressing::Single => offset.checked_sub(1).unwrap_or(u32::MAX),
                }
            }
        };
        match slot {
            0 => Err(format!("{chosen} is the hub's own")),
            _ if slot > self.capacity() => {
                Err(format!("{chosen} is no machine's: their numbers are 1 to {}", self.capacity()))
            }
            _ => Ok(slot),
        }
    }

    /// How far behind the beginning of its prefix an address is; `None`: it is in none.
    fn offset(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => {
                let inside = self.network.contains(&address);
                u32::from(address).checked_sub(self.network.network().into()).filter(|_| inside)
            }
            IpAddr::V6(address) => {
                let network = self.network6.filter(|network| network.contains(&address))?;
                let offset = u128::from(address).checked_sub(network.network().into())?;
                Some(u32::try_from(offset).unwrap_or(u32::MAX))
            }
        }
    }

    /// The hub's addresses.
    #[must_use]
    pub fn hub(&self) -> Slot {
        // Every plan has slot 0.
        self.slot(0).unwrap_or(Slot { address: self.network.network(), far: None, address6: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(network: &str, addressing: Addressing) -> Plan {
        Plan::new(network.parse().unwrap(), addressing).unwrap()
    }

    fn slot(address: &str, far: Option<&str>) -> Option<Slot> {
        let far = far.map(|far| far.parse().unwrap());
        Some(Slot { address: address.parse().unwrap(), far, address6: None })
    }

    #[test]
    fn pairs_are_odd_and_even() {
        let plan = plan("10.1.1.0/24", Addressing::Pair);
        assert_eq!(Some(plan.hub()), slot("10.1.1.1", Some("10.1.1.2")));
        assert_eq!(plan.slot(1), slot("10.1.1.3", Some("10.1.1.4")));
        assert_eq!(plan.slot(2), slot("10.1.1.5", Some("10.1.1.6")));
        assert_eq!(plan.capacity(), 126);
        assert_eq!(plan.slot(126), slot("10.1.1.253", Some("10.1.1.254")));
        assert_eq!(plan.slot(127), None);
    }

    #[test]
    fn single_addresses_count_up() {
        let plan = plan("10.1.1.77/24", Addressing::Single);
        assert_eq!(Some(plan.hub()), slot("10.1.1.1", None));
        assert_eq!(plan.capacity(), 253);
        assert_eq!(plan.slot(253), slot("10.1.1.254", None));
        assert_eq!(plan.slot(254), None);
    }

    #[test]
    fn ipv6_addresses_have_the_numbers_of_ipv4() {
        let plan = plan("10.1.1.0/24", Addressing::Pair);
        let both = plan.with_ipv6("fd00:1::/64".parse().unwrap()).unwrap();
        assert_eq!(both.hub().address6, Some("fd00:1::1".parse().unwrap()));
        assert_eq!(both.slot(1).unwrap().address6, Some("fd00:1::3".parse().unwrap()));
        for bad in ["fd00:1::/121", "ff02::/64", "::/64", "fe80::/64"] {
            assert!(plan.with_ipv6(bad.parse().unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_place_is_chosen_by_either_address_or_by_its_number() {
        let pairs = plan("10.1.1.0/24", Addressing::Pair);
        let pairs = pairs.with_ipv6("fd00:1::/64".parse().unwrap()).unwrap();
        let single = plan("10.1.1.0/24", Addressing::Single);
        let of = |plan: &Plan, text: &str| plan.chosen(text.parse().unwrap());
        for number in 1..=pairs.capacity() {
            let slot = pairs.slot(number).unwrap();
            assert_eq!(of(&pairs, &slot.address.to_string()), Ok(number));
            assert_eq!(of(&pairs, &slot.address6.unwrap().to_string()), Ok(number));
            assert_eq!(of(&pairs, &number.to_string()), Ok(number));
        }
        assert_eq!(of(&single, "10.1.1.254"), Ok(253));
        for (plan, text, why) in [
            (&pairs, "10.1.1.1", "the hub's own"),
            (&pairs, "fd00:1::1", "the hub's own"),
            (&single, "0", "the hub's own"),
            (&pairs, "10.1.1.4", "far end"),
            (&pairs, "10.1.1.0", "no machine's"),
            (&pairs, "10.1.1.255", "1 to 126"),
            (&single, "10.1.1.255", "1 to 253"),
            (&single, "254", "no machine's"),
            (&pairs, "fd00:1::ffff:ffff:ffff", "no machine's"),
            (&pairs, "10.2.1.3", "not in the network 10.1.1.0/24 or fd00:1::/64"),
            (&single, "fd00:1::3", "not in the network 10.1.1.0/24"),
        ] {
            let error = of(plan, text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!("office".parse::<Chosen>().is_err());
        let json = |text| serde_json::from_str::<Chosen>(text);
        assert_eq!(json("38").unwrap(), json("\"38\"").unwrap());
        assert!(json("-1").is_err() && json("\"office\"").is_err() && json("null").is_err());
        assert_eq!(serde_json::to_string(&Chosen::Number(38)).unwrap(), "\"38\"");
    }

    #[test]
    fn prefixes_of_any_length_have_slots_of_their_own() {
        let large = plan("10.64.0.0/15", Addressing::Single);
        assert_eq!(large.slot(65_536), slot("10.65.0.1", None));
        assert_eq!(plan("10.0.0.0/30", Addressing::Single).capacity(), 1);
        for bad in ["10.0.0.0/32", "10.0.0.0/31", "0.0.0.0/0", "224.0.0.0/8", "127.0.0.0/24"] {
            assert!(Plan::new(bad.parse().unwrap(), Addressing::Single).is_err(), "{bad}");
        }
        assert!(Plan::new("10.0.0.0/30".parse().unwrap(), Addressing::Pair).is_err());
    }
}
