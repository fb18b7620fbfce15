//! Who is plugged in: the addresses and names of the network's guests.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netyard_wire::MacAddr;

use crate::config::Config;
use crate::control::{ControlError, ControlErrorKind, PlugRequest, Plugged};
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
    /// What its member is told.
    #[must_use]
    pub(crate) fn plugged(&self) -> Plugged {
        let Self { plug, mac, address4, address6, .. } = *self;
        Plugged { plug, mac, address4, address6 }
    }

    /// Its name and its aliases.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.name).chain(&self.aliases)
    }

    /// True if this is its name or an alias, in letters of either case.
    #[must_use]
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.names().any(|own| own.eq_ignore_ascii_case(name))
    }

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
    /// The IPv4 addresses, in order.
    addresses4: BTreeSet<Ipv4Addr>,
    by_mac: HashMap<MacAddr, PlugId>,
    /// Names and aliases, in small letters.
    by_name: HashMap<String, PlugId>,
}

impl Guests {
    /// Who a new guest behind `plug` will be: names that nobody has, and free addresses. `in_use`
    /// tells which addresses others than guests have.
    ///
    /// # Errors
    /// `Taken` if a wanted name or address is another's, `Malformed` if an address is not of this
    /// network, `Exhausted` if no address is free.
    pub(crate) fn plan(
        &self,
        plug: PlugId,
        config: &Config,
        request: &PlugRequest,
        in_use: &dyn Fn(IpAddr) -> bool,
    ) -> Result<Guest, ControlError> {
        for name in std::iter::once(&request.name).chain(&request.aliases) {
            if let Some(other) = self.by_name(name) {
                return Err(ControlError {
                    kind: ControlErrorKind::Taken,
                    message: format!(
                        "`{name}` is already plugged into network `{}` (as {}): choose another \
                         name (`run --name`) or take that one out",
                        config.name, other.address4
                    ),
                });
            }
        }
        let free = |address: IpAddr| self.by_address(address).is_none() && !in_use(address);
        let (address4, address6) = choose_addresses(config, request, &self.addresses4, &free)?;
        let seed = format!("{}/{}", config.name, request.name);
        Ok(Guest {
            plug,
            mac: request.mac.unwrap_or_else(|| MacAddr::from_seed(&seed)),
            address4,
            address6,
            name: request.name.clone(),
            aliases: request.aliases.clone(),
        })
    }

    /// Adds a guest. Its addresses and names must be free, see [`Guests::plan`], and so must its
    /// hardware address.
    pub(crate) fn insert(&mut self, guest: Guest) {
        self.by_address.insert(guest.address4.into(), guest.plug);
        self.addresses4.insert(guest.address4);
        self.by_address.insert(guest.address6.into(), guest.plug);
        self.by_mac.insert(guest.mac, guest.plug);
        for name in guest.names() {
            self.by_name.insert(name.to_ascii_lowercase(), guest.plug);
        }
        self.by_plug.insert(guest.plug, guest);
    }

    /// Takes a guest out.
    pub(crate) fn remove(&mut self, plug: PlugId) -> Option<Guest> {
        let guest = self.by_plug.remove(&plug)?;
        self.by_address.remove(&guest.address4.into());
        self.addresses4.remove(&guest.address4);
        self.by_address.remove(&guest.address6.into());
        self.by_mac.remove(&guest.mac);
        for name in guest.names() {
            self.by_name.remove(&name.to_ascii_lowercase());
        }
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

    /// The guest that has this hardware address.
    #[must_use]
    pub(crate) fn by_mac(&self, mac: MacAddr) -> Option<&Guest> {
        self.by_plug.get(self.by_mac.get(&mac)?)
    }

    /// The guest of this name or alias, in letters of either case.
    #[must_use]
    pub(crate) fn by_name(&self, name: &str) -> Option<&Guest> {
        self.by_plug.get(self.by_name.get(&name.to_ascii_lowercase())?)
    }

    /// All guests, in the order of their plugs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Guest> {
        self.by_plug.values()
    }
}

/// The addresses that a request wants, or the lowest free ones; both have the same number unless
/// the request says otherwise. Those of guests, `taken`, are
/// passed over.
fn choose_addresses(
    config: &Config,
    request: &PlugRequest,
    taken: &BTreeSet<Ipv4Addr>,
    free: &dyn Fn(IpAddr) -> bool,
) -> Result<(Ipv4Addr, Ipv6Addr), ControlError> {
    let (name, network) = (&request.name, &config.name);
    let check = |address: IpAddr, fits: bool, bounds: [IpAddr; 2]| {
        let (kind, why) = if !fits {
            let [first, last] = bounds;
            (
                ControlErrorKind::Malformed,
                format!(
                    "is not free for instances of network `{network}`: choose one from {first} to \
                     {last}"
                ),
            )
        } else if !free(address) {
            let why = format!("is already used in network `{network}`: choose another");
            (ControlErrorKind::Taken, why)
        } else {
            return Ok(());
        };
        Err(ControlError { kind, message: format!("address {address} of `{name}` {why}") })
    };
    let last = config.usable4().saturating_sub(1);
    let number = |address: Ipv4Addr| address.to_bits().wrapping_sub(config.nth4(0).to_bits());
    let fits4 = |address: Ipv4Addr| {
        (2..=last).contains(&number(address)) && !config.is_gateway(address.into())
    };
    let fits6 = |address: Ipv6Addr| {
        let reserved = [config.nth6(0), config.gateway6(), config.host6()].contains(&address);
        config.subnet6.contains(&address) && !reserved
    };
    let check4 = |address: Ipv4Addr| {
        let bounds = [config.nth4(2), config.nth4(last)].map(IpAddr::from);
        check(address.into(), fits4(address), bounds)
    };
    let check6 = |address: Ipv6Addr| {
        let bounds = [config.nth6(2), config.subnet6.broadcast()].map(IpAddr::from);
        check(address.into(), fits6(address), bounds)
    };
    let pair =
        |address4| (address4, request.address6.unwrap_or_else(|| config.nth6(number(address4))));
    if let Some(address6) = request.address6 {
        check6(address6)?;
    }
    if let Some(address4) = request.address {
        check4(address4)?;
        let (address4, address6) = pair(address4);
        check6(address6)?;
        return Ok((address4, address6));
    }
    let mut taken = taken.iter().peekable();
    let others = (2..=last).map(|number| config.nth4(number)).filter(|address| {
        while taken.next_if(|guest| *guest < address).is_some() {}
        taken.next_if_eq(&address).is_none()
    });
    let both = others
        .filter(|address| fits4(*address) && !config.is_set_aside(*address))
        .filter(|address| free((*address).into()))
        .map(pair)
        .find(|(_, address6)| fits6(*address6) && free((*address6).into()));
    both.ok_or_else(|| ControlError {
        kind: ControlErrorKind::Exhausted,
        message: format!(
            "network `{network}` ({}) has no free address for `{name}`: give it a larger `subnet`",
            config.subnet4
        ),
    })
}

/// Why a guest cannot have its hardware address.
pub(crate) fn mac_refused(config: &Config, guest: &Guest) -> ControlError {
    ControlError {
        kind: ControlErrorKind::Taken,
        message: format!(
            "hardware address {} for `{}` is already used in network `{}`, or is not a station's: \
             choose another `mac`",
            guest.mac, guest.name, config.name
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::PlugKind;

    fn config() -> Config {
        Config {
            name: "lab".into(),
            subnet4: "10.0.0.0/29".parse().unwrap(),
            subnet6: "fd00:1:2:3::/64".parse().unwrap(),
            mode: crate::config::Mode::User,
            gateway: Some("10.0.0.3".parse().unwrap()),
            gateway_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            zone: "lab".into(),
            dns: Default::default(),
            mtu: 1500,
            uplink: crate::config::Uplink::Nat,
            host: Vec::new(),
            dhcp: None,
            snooping: true,
            mdns: Default::default(),
            permanent: false,
        }
    }

    fn request(name: &str, address: Option<&str>, address6: Option<&str>) -> PlugRequest {
        PlugRequest {
            address: address.map(|text| text.parse().unwrap()),
            address6: address6.map(|text| text.parse().unwrap()),
            ..PlugRequest::new(name, PlugKind::Tap)
        }
    }

    /// Plugs guests in, each as asked for; returns their addresses or how they were refused.
    fn plug(requests: &[PlugRequest]) -> Vec<Result<String, ControlErrorKind>> {
        let mut guests = Guests::default();
        let in_use = |address| address == IpAddr::from(config().nth4(5));
        let plan = |request: &PlugRequest| {
            let plug = PlugId(u32::try_from(guests.by_plug.len()).unwrap());
            let guest = guests.plan(plug, &config(), request, &in_use).map_err(|it| it.kind)?;
            let addresses = format!("{} {}", guest.address4, guest.address6);
            guests.insert(guest);
            Ok(addresses)
        };
        requests.iter().map(plan).collect()
    }

    #[test]
    fn the_lowest_free_addresses_are_given_until_there_are_none() {
        let requests = ["a", "b", "c"].map(|name| request(name, None, None));
        let expected = [
            Ok("10.0.0.2 fd00:1:2:3::2".to_owned()),
            // 3 is the gateway's.
            Ok("10.0.0.4 fd00:1:2:3::4".to_owned()),
            // 5 is a service's, 6 the host's.
            Err(ControlErrorKind::Exhausted),
        ];
        assert_eq!(plug(&requests), expected);
    }

    #[test]
    fn wanted_addresses_are_given_or_the_reason_is_told() {
        let requests = [
            request("a", Some("10.0.0.2"), Some("fd00:1:2:3::4")),
            request("b", Some("10.0.0.4"), None),
            request("b", None, Some("fd00:1:2:3::77")),
            request("a", None, None),
            request("c", Some("10.0.0.3"), None),
            request("c", Some("10.0.1.2"), None),
            request("c", None, Some("fd00:1:2:3::1")),
            request("c", None, Some("fd00::1")),
            request("c", Some("10.0.0.2"), None),
        ];
        let expected = [
            Ok("10.0.0.2 fd00:1:2:3::4".to_owned()),
            Err(ControlErrorKind::Taken),
            Ok("10.0.0.4 fd00:1:2:3::77".to_owned()),
            Err(ControlErrorKind::Taken),
            Err(ControlErrorKind::Malformed),
            Err(ControlErrorKind::Malformed),
            Err(ControlErrorKind::Malformed),
            Err(ControlErrorKind::Malformed),
            Err(ControlErrorKind::Taken),
        ];
        assert_eq!(plug(&requests), expected);
    }
}
