//! The bridge with the gateway's addresses: what is in the way of it, and the plan that makes it.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netyard_engine::config::{Config, Mode, Uplink};
use netyard_engine::control::{ControlError, ControlErrorKind};
use netyard_link::Features;
use netyard_link::plan::{Kernel, Owner, Place, Plan, Step};
use netyard_link::rtnetlink::{BridgeOptions, Link, LinkName, MAIN_TABLE, PortOptions, Route};
use netyard_link::sysctl::Key;
use netyard_wire::MacAddr;

use super::{failed, names, refused};
use crate::model::DEFAULT_MTU;

/// Shorter prefixes are ways out to everywhere, not somebody's networks: VPNs split the default
/// route into halves.
const WIDE4: u8 = 8;
const WIDE6: u8 = 16;

/// `FE80::/10` as interfaces have it.
const LINK_LOCAL_PREFIX: u8 = 64;

/// The segment as it is to be.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) bridge: LinkName,
    /// There is one of that name, which is not ours.
    pub(super) joined: Option<Link>,
    /// The card that becomes its port.
    pub(super) card: Option<Link>,
    pub(super) mac: MacAddr,
    pub(super) mtu: u16,
    /// The host has IPv6.
    pub(super) ipv6: bool,
    gateway: [IpNet; 2],
    link_local: IpNet,
    /// Settings of other links that forwarding would change.
    advertised: Vec<Key>,
}

impl Wanted {
    /// Looks at the machine; refuses what cannot be.
    pub(super) fn look(
        config: &Config,
        owner: &Owner,
        kernel: &mut Kernel,
    ) -> Result<Self, ControlError> {
        let Mode::Bridge(wanted) = &config.mode else {
            return Err(refused(ControlErrorKind::Malformed, "this is no network in bridge mode"));
        };
        check_features(kernel.features())?;
        let bridge = match &wanted.name {
            Some(name) => name.parse().map_err(|error| failed(&error))?,
            None => names::bridge(&config.name)?,
        };
        let links = kernel.here().and_then(|here| here.links()).map_err(|error| failed(&error))?;
        let joined = joined(&bridge, &links, owner)?;
        let card = match &config.uplink {
            Uplink::Card(name) => Some(card(name, &bridge, &links, owner)?),
            _ => None,
        };
        let gateway = [
            net(config.gateway4().into(), config.subnet4.prefix_len())?,
            net(config.gateway6().into(), config.subnet6.prefix_len())?,
        ];
        let routes = kernel.here().and_then(|here| here.routes(None));
        let routes = routes.map_err(|error| failed(&error))?;
        // The networks of the bridge and of the card are this one's.
        let own: Vec<_> = joined.iter().chain(&card).map(|link| link.index).collect();
        let foreign = |route: &&Route| route.link.is_none_or(|link| !own.contains(&link));
        overlaps(config, routes.iter().filter(foreign), &links)?;
        if let Some(card) = &card {
            on_card(config, card, kernel)?;
        }
        let mac = match (&joined, &card) {
            (Some(link), _) | (None, Some(link)) => link.mac.unwrap_or(config.gateway_mac),
            (None, None) => config.gateway_mac,
        };
        let mtu = match (&joined, &card) {
            (Some(link), _) | (None, Some(link)) => fit(link.mtu),
            (None, None) => mtu(config, &routes, &links),
        };
        let link_local = net(config.gateway_link_local().into(), LINK_LOCAL_PREFIX)?;
        let ipv6 = has_ipv6()?;
        let advertised = if ipv6 { advertised(&links)? } else { Vec::new() };
        Ok(Self { bridge, joined, card, mac, mtu, ipv6, gateway, link_local, advertised })
    }

    /// How a bridge of ours behaves. Groups go to their members: each new guest reports the groups of its
    /// addresses, and a thousand others would have to look at that. On a card's network asking for
    /// memberships is for the routers there.
    fn options(&self) -> BridgeOptions {
        /// Members spread their answers over it, seconds.
        const RESPONSE: u32 = 1;
        BridgeOptions {
            multicast_snooping: Some(self.card.is_none()),
            multicast_querier: self.card.is_none().then_some(RESPONSE),
            ..BridgeOptions::default()
        }
    }

    /// A plan with the steps that make it behind those that it has.
    pub(super) fn steps(&self, config: &Config, mut plan: Plan) -> Result<Plan, ControlError> {
        let here = || Place::here(self.bridge.clone());
        let set = |key: String, value: &str| {
            let key: Key = key.parse().map_err(|error| failed(&error))?;
            Ok::<_, ControlError>(Step::Sysctl { namespace: None, key, value: value.into() })
        };
        plan = plan.step(set("net/ipv4/ip_forward".into(), "1")?);
        if self.ipv6 {
            // First: switching forwarding on forgets what routers have advertised, and does not
            // listen to them any more, but where this says otherwise.
            for key in &self.advertised {
                plan = plan.step(Step::Sysctl {
                    namespace: None,
                    key: key.clone(),
                    value: "2".into(),
                });
            }
            plan = plan.step(set("net/ipv6/conf/all/forwarding".into(), "1")?);
        }
        if self.joined.is_some() {
            plan = plan.step(Step::Up { at: here() });
        } else {
            plan = plan.step(Step::Bridge {
                name: self.bridge.clone(),
                mac: Some(self.mac),
                mtu: Some(self.mtu.into()),
                options: self.options(),
            });
            if self.ipv6 {
                // A card's routers advertise to the bridge now; else there is none but us.
                let accept = if self.card.is_some() { "2" } else { "0" };
                let own = |name: &str| format!("net/ipv6/conf/{}/{name}", self.bridge);
                plan = plan.step(set(own("accept_ra"), accept)?);
                // Usable at once: whoever else had it would be an impostor.
                if self.card.is_none() {
                    plan = plan.step(Step::Address { at: here(), net: self.link_local });
                }
            }
        }
        if let Some(card) = &self.card {
            let link = LinkName::try_from(card.name.clone()).map_err(|error| failed(&error))?;
            plan = plan
                .step(Step::Up { at: Place::here(link.clone()) })
                .step(Step::Move { from: link.clone(), to: self.bridge.clone() })
                .step(Step::Join {
                    link,
                    bridge: self.bridge.clone(),
                    port: PortOptions::default(),
                });
        }
        for net in self.gateway {
            if self.ipv6 || net.addr().is_ipv4() {
                plan = plan.step(Step::Address { at: here(), net });
            }
        }
        // Somebody listens there for those that guests may reach.
        let alias = [IpAddr::V4(config.host4()), IpAddr::V6(config.host6())];
        for address in alias.into_iter().filter(|_| !config.host.is_empty()) {
            if self.ipv6 || address.is_ipv4() {
                plan = plan.step(Step::Address { at: here(), net: IpNet::from(address) });
            }
        }
        Ok(plan)
    }
}

fn net(address: IpAddr, len: u8) -> Result<IpNet, ControlError> {
    IpNet::new(address, len)
        .map_err(|_| refused(ControlErrorKind::Malformed, format!("{address}/{len} is no prefix")))
}

fn fit(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

/// What no network in bridge mode can be without.
fn check_features(features: &Features) -> Result<(), ControlError> {
    let needed = [
        (features.bridge, "bridges", "CONFIG_BRIDGE"),
        (features.nftables, "nf_tables for IPv4 and IPv6", "CONFIG_NF_TABLES_INET"),
        (features.nat, "address translation by nf_tables", "CONFIG_NFT_NAT and CONFIG_NFT_MASQ"),
        (features.fib, "route lookups by nf_tables", "CONFIG_NFT_FIB_INET"),
        (features.turns, "turns by nf_tables", "CONFIG_NFT_NUMGEN"),
    ];
    match needed.into_iter().find(|(there, ..)| !there) {
        None => Ok(()),
        Some((_, feature, option)) => Err(refused(
            ControlErrorKind::Failed,
            format!(
                "this kernel has no {feature}: it needs {option}, built in or as a module; mode = \
                 \"user\" works without"
            ),
        )),
    }
}

/// The bridge that is there already, if there is one.
fn joined(bridge: &LinkName, links: &[Link], owner: &Owner) -> Result<Option<Link>, ControlError> {
    let Some(link) = links.iter().find(|link| link.name == bridge.as_str()) else {
        return Ok(None);
    };
    let taken = |what: String| Err(refused(ControlErrorKind::Taken, what));
    if link.kind.as_deref() != Some("bridge") {
        return taken(format!("the link {bridge} is there already, and it is not a bridge"));
    }
    match link.alias.as_deref().and_then(|alias| alias.strip_prefix("netyard/")) {
        Some(tag) if !owner.owns(link) => {
            let other = tag.split('/').next().unwrap_or(tag);
            taken(format!(
                "the bridge {bridge} is that of the network {other}: join that one by its name, or \
                 name another bridge"
            ))
        }
        _ => Ok(Some(link.clone())),
    }
}

/// The card that is to be a port of the bridge.
fn card(
    name: &str,
    bridge: &LinkName,
    links: &[Link],
    owner: &Owner,
) -> Result<Link, ControlError> {
    let wrong = |why: &str| {
        let message = format!("the card {name} cannot become a port of {bridge}: {why}");
        refused(ControlErrorKind::Failed, message)
    };
    let Some(link) = links.iter().find(|link| link.name == name) else {
        let known: Vec<_> =
            links.iter().map(|link| link.name.as_str()).filter(|name| *name != "lo").collect();
        let why = format!("there is none of that name; there are {}", known.join(", "));
        return Err(ControlError { kind: ControlErrorKind::Unknown, ..wrong(&why) });
    };
    let master = links.iter().find(|other| Some(other.index) == link.master);
    let why = if link.kind.as_deref() == Some("bridge") {
        "it is a bridge itself: join it with `bridge = ` its name".to_owned()
    } else if owner.owns(link) || link.mac.is_none() || name == "lo" {
        "it is no Ethernet card".to_owned()
    } else if let Some(master) = master.filter(|master| master.name != bridge.as_str()) {
        format!("it is a port of {} already: join that one with `bridge = `", master.name)
    } else if is_wireless(Path::new("/sys/class/net"), name) {
        "it is a Wi-Fi card, and a station may send with its own hardware address only (IEEE 802.11 \
         frames have no room for another): use uplink = \"nat\" or \"routed\""
            .to_owned()
    } else {
        return Ok(link.clone());
    };
    Err(wrong(&why))
}

fn is_wireless(links: &Path, name: &str) -> bool {
    ["phy80211", "wireless"].iter().any(|file| links.join(name).join(file).exists())
}

/// With a card the network's prefix is the card's, and the gateway its address.
fn on_card(config: &Config, card: &Link, kernel: &mut Kernel) -> Result<(), ControlError> {
    let addresses = kernel.here().and_then(|here| here.addresses(Some(card.index)));
    let addresses = addresses.map_err(|error| failed(&error))?;
    let own: Vec<_> = addresses.iter().filter(|it| it.net.addr().is_ipv4()).collect();
    let gateway = IpAddr::V4(config.gateway4());
    let prefix = IpNet::V4(config.subnet4);
    if own.is_empty() || own.iter().any(|it| it.net.addr() == gateway && it.net.trunc() == prefix) {
        return Ok(());
    }
    let is: Vec<_> = own
        .iter()
        .map(|it| format!("subnet = \"{}\", gateway = \"{}\"", it.net.trunc(), it.net.addr()))
        .collect();
    let message = format!(
        "the card {} has another address than the network's gateway, {gateway} in {prefix}, and \
         takes it along to the bridge: write {}",
        card.name,
        is.join(" or ")
    );
    Err(refused(ControlErrorKind::Failed, message))
}

/// Prefixes that lead elsewhere already.
fn overlaps<'r>(
    config: &Config,
    routes: impl Iterator<Item = &'r Route>,
    links: &[Link],
) -> Result<(), ControlError> {
    let wanted = [IpNet::V4(config.subnet4), IpNet::V6(config.subnet6)];
    let narrow = |net: &IpNet| match net {
        IpNet::V4(net) => net.prefix_len() >= WIDE4,
        IpNet::V6(net) => net.prefix_len() >= WIDE6,
    };
    for route in routes.filter(|route| route.table == MAIN_TABLE && narrow(&route.destination)) {
        let there = &route.destination;
        for wanted in &wanted {
            if wanted.contains(there) || there.contains(wanted) {
                let by = links.iter().find(|link| Some(link.index) == route.link);
                let by = by.map_or(String::new(), |link| format!(" by {}", link.name));
                let message = format!(
                    "the network's prefix {wanted} overlaps with {there}, to which this machine has \
                     a route{by}: choose another subnet"
                );
                return Err(refused(ControlErrorKind::Taken, message));
            }
        }
    }
    Ok(())
}

/// Without a wish, no packet is larger than those that can leave.
fn mtu(config: &Config, routes: &[Route], links: &[Link]) -> u16 {
    if config.mtu != DEFAULT_MTU || config.uplink == Uplink::None {
        return config.mtu;
    }
    let default = routes.iter().filter(|route| {
        route.destination.prefix_len() == 0
            && route.destination.addr().is_ipv4()
            && route.table == MAIN_TABLE
    });
    let best = default.min_by_key(|route| route.metric.unwrap_or_default());
    let uplink = best.and_then(|route| links.iter().find(|link| Some(link.index) == route.link));
    uplink.map_or(config.mtu, |link| fit(link.mtu).clamp(SMALLEST_MTU, DEFAULT_MTU))
}

/// Every IPv6 link has at least this (RFC 8200 section 5).
const SMALLEST_MTU: u16 = 1280;

fn has_ipv6() -> Result<bool, ControlError> {
    let read = |key: &str| key.parse::<Key>()?.get(None);
    let off = read("net/ipv6/conf/default/disable_ipv6").map_err(|error| failed(&error))?;
    Ok(off.is_some_and(|off| off == "0"))
}

/// Links that listen to router advertisements as long as they do not forward, and those that listen
/// because another network has told them to.
fn advertised(links: &[Link]) -> Result<Vec<Key>, ControlError> {
    let mut keys = Vec::new();
    for name in links.iter().map(|link| link.name.as_str()).chain(["default"]) {
        let read = |setting: &str| {
            let key: Key = format!("net/ipv6/conf/{name}/{setting}").parse()?;
            Ok::<_, netyard_link::Error>((key.get(None)?, key))
        };
        let (accepts, key) = read("accept_ra").map_err(|error| failed(&error))?;
        let (forwards, _) = read("forwarding").map_err(|error| failed(&error))?;
        let listens = match accepts.as_deref() {
            Some("1") => forwards.as_deref() == Some("0"),
            accepts => accepts == Some("2"),
        };
        if listens && name != "lo" {
            keys.push(key);
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wireless_cards_are_known_by_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("wlan0/phy80211")).unwrap();
        std::fs::create_dir_all(folder.path().join("eth0")).unwrap();
        assert!(is_wireless(folder.path(), "wlan0"));
        assert!(!is_wireless(folder.path(), "eth0") && !is_wireless(folder.path(), "eth1"));
    }
}
