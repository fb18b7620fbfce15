//! What is there: namespaces with their links, addresses and routes, as values.

use std::net::IpAddr;

use ipnet::IpNet;
use netyard_link::BridgeFilter;
use netyard_link::nft::trace::Ruleset;
use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use crate::api::{InstanceStatus, NetworkStatus, ServiceStatus};
use netyard_engine::control::PlugState;

/// Everything that an explanation is made of.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The yard's name; `None`: a network without one.
    pub yard: Option<String>,
    /// Instances in the order of the file.
    pub instances: Vec<InstanceFacts>,
    /// Services in the order of the file.
    pub services: Vec<ServiceStatus>,
    /// Networks by name.
    pub networks: Vec<NetworkStatus>,
    /// This machine.
    pub host: Namespace,
    /// The hardware addresses that bridges know, each with the number of the port behind which it is.
    pub known: Vec<(MacAddr, u32)>,
    /// The machine's rules, where a network is on a bridge; else why there is nothing to say of
    /// them.
    pub rules: Result<Ruleset, String>,
    /// Which frames within a bridge the machine's rules see.
    pub filter: BridgeFilter,
}

/// One instance.
#[derive(Debug, Clone)]
pub struct InstanceFacts {
    /// What the keeper says.
    pub status: InstanceStatus,
    /// Its network namespace; else why there is nothing to say of it.
    pub inside: Result<Namespace, String>,
}

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Namespace {
    /// The kernel's number of it, as in `net:[4026531840]`.
    pub inode: u64,
    /// A process in it.
    pub pid: u32,
    /// Its links.
    pub links: Vec<Card>,
    /// Its routes, those of the main table.
    pub routes: Vec<Way>,
    /// Where names are asked for: `/etc/resolv.conf`, as what runs there sees it.
    pub resolvers: Vec<IpAddr>,
    /// The names that are tried first: `search` of that file.
    pub search: Vec<String>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// Its number in its namespace.
    pub index: u32,
    /// `veth`, `bridge`, `tun`; `None` for physical cards and loopback.
    pub kind: Option<String>,
    /// Its hardware address.
    pub mac: Option<MacAddr>,
    /// The largest IP packet that it carries, bytes.
    pub mtu: u32,
    /// It is switched on.
    pub up: bool,
    /// The number of the bridge that it is a port of.
    pub bridge: Option<u32>,
    /// The number of its other end, in the other end's namespace.
    pub peer: Option<u32>,
    /// The text beside it: whose it is.
    pub alias: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Where to.
    pub destination: IpNet,
    /// The next hop; `None`: it is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The link's name.
    pub link: Option<String>,
    /// The source address of what is sent this way.
    pub source: Option<IpAddr>,
    /// Of several to one destination the lowest is taken.
    pub metric: u32,
    /// Packets are refused or vanish here.
    pub closed: bool,
}

impl Namespace {
    /// The link of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Card> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The link with this number.
    #[must_use]
    pub fn by_index(&self, index: u32) -> Option<&Card> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The ports of a bridge.
    pub fn ports(&self, bridge: u32) -> impl Iterator<Item = &Card> {
        self.links.iter().filter(move |link| link.bridge == Some(bridge))
    }

    /// The link that has this address.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&Card> {
        let has = |link: &&Card| link.addresses.iter().any(|net| net.addr() == address);
        self.links.iter().find(has)
    }

    /// True if packets to this address end here.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.holder(address).is_some()
    }

    /// The route to an address: the longest prefix, of those the lowest metric.
    #[must_use]
    pub fn route(&self, to: IpAddr) -> Option<&Way> {
        let leads = self.routes.iter().filter(|way| way.destination.contains(&to));
        leads.min_by_key(|way| (u8::MAX - way.destination.prefix_len(), way.metric))
    }

    /// The source address of what is sent to an address by a route: the route's own, else the
    /// link's address in whose prefix the next hop lies, else its first.
    #[must_use]
    pub fn source(&self, way: &Way, to: IpAddr) -> Option<IpAddr> {
        let link = self.link(way.link.as_deref()?)?;
        let next = way.gateway.unwrap_or(to);
        let same = || link.addresses.iter().filter(|net| net.addr().is_ipv4() == to.is_ipv4());
        let near =
            same().find(|net| net.contains(&next) && net.prefix_len() < net.max_prefix_len());
        way.source.or_else(|| Some(near.or_else(|| same().next())?.addr()))
    }

    /// The link of the default route.
    #[must_use]
    pub fn uplink(&self, v4: bool) -> Option<&Card> {
        let to = self.routes.iter().filter(|way| {
            way.destination.prefix_len() == 0 && way.destination.addr().is_ipv4() == v4
        });
        self.link(to.min_by_key(|way| way.metric)?.link.as_deref()?)
    }
}

impl Card {
    /// Its first address of a family.
    #[must_use]
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        let of = |net: &&IpNet| net.addr().is_ipv4() == v4;
        self.addresses.iter().find(of).map(IpNet::addr)
    }
}

/// One plug of an instance: everything that belongs together, found by what the kernel says.
#[derive(Debug, Clone, Copy)]
pub struct Cable<'a> {
    /// The network.
    pub network: &'a NetworkStatus,
    /// What the network process says of the plug.
    pub plug: &'a PlugState,
    /// The instance's card.
    pub inside: Option<&'a Card>,
    /// The host's end of it, in bridge mode.
    pub outside: Option<&'a Card>,
}

impl Facts {
    /// The instance of this name.
    #[must_use]
    pub fn instance(&self, name: &str) -> Option<&InstanceFacts> {
        self.instances.iter().find(|instance| instance.status.name == name)
    }

    /// The plugs of an instance, the first one first.
    #[must_use]
    pub fn cables<'a>(&'a self, instance: &'a InstanceFacts) -> Vec<Cable<'a>> {
        let status = &instance.status;
        let place = |plug: &PlugState| {
            let own = |address: &IpAddr| plug.addresses.contains(address);
            status.addresses.iter().position(own)
        };
        let mut cables: Vec<_> = (self.networks.iter())
            .flat_map(|network| {
                let ours = |plug: &&PlugState| {
                    plug.name == status.name && plug.member == network.state.asked_by
                };
                network.state.plugs.iter().filter(ours).map(move |plug| (network, plug))
            })
            .map(|(network, plug)| self.cable(network, plug, instance.inside.as_ref().ok()))
            .collect();
        cables.sort_by_key(|cable| place(cable.plug));
        cables
    }

    /// One plug, and its ends.
    #[must_use]
    pub fn cable<'a>(
        &'a self,
        network: &'a NetworkStatus,
        plug: &'a PlugState,
        inside: Option<&'a Namespace>,
    ) -> Cable<'a> {
        let card = inside.and_then(|inside| {
            inside.links.iter().find(|link| link.mac == Some(plug.mac) && link.name != "lo")
        });
        let bridge = self.bridge(network);
        let ports = || {
            let ports = bridge.map(|bridge| self.host.ports(bridge.index));
            ports.into_iter().flatten()
        };
        // What was made for a plug says so; what others have made is where the bridge has heard it.
        let tag = format!("/plug {} {}", plug.plug.0, plug.name);
        let tagged = |port: &&Card| port.alias.as_ref().is_some_and(|it| it.ends_with(&tag));
        let heard = |port: &&Card| self.known.contains(&(plug.mac, port.index));
        let outside = ports().find(tagged).or_else(|| ports().find(heard));
        Cable { network, plug, inside: card, outside }
    }

    /// The bridge of a network in bridge mode.
    #[must_use]
    pub fn bridge(&self, network: &NetworkStatus) -> Option<&Card> {
        self.host.link(network.state.interface.as_deref()?)
    }

    /// The network on this bridge.
    #[must_use]
    pub fn on_bridge(&self, bridge: &str) -> Option<&NetworkStatus> {
        self.networks.iter().find(|it| it.state.interface.as_deref() == Some(bridge))
    }

    /// The instance that has an address, with the plug that has it.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Option<(&InstanceFacts, Cable<'_>)> {
        self.instances.iter().find_map(|instance| {
            let cables = self.cables(instance);
            let has = |cable: &Cable<'_>| cable.plug.addresses.contains(&address);
            cables.into_iter().find(has).map(|cable| (instance, cable))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace() -> Namespace {
        let card = |name: &str, index, addresses: &[&str]| Card {
            name: name.into(),
            index,
            kind: None,
            mac: None,
            mtu: 1500,
            up: true,
            bridge: None,
            peer: None,
            alias: None,
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        };
        let way = |destination: &str, gateway: Option<&str>, link: &str, metric| Way {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            link: Some(link.into()),
            source: None,
            metric,
            closed: false,
        };
        Namespace {
            links: vec![
                card("lo", 1, &["127.0.0.1/8"]),
                card("uplink", 2, &["198.51.100.1/24", "2001:db8::1/64"]),
                card("br1", 3, &["192.168.1.254/32", "192.168.1.10/24"]),
            ],
            routes: vec![
                way("0.0.0.0/0", Some("198.51.100.2"), "uplink", 100),
                way("0.0.0.0/0", Some("192.168.1.11"), "br1", 200),
                way("198.51.100.0/24", None, "uplink", 0),
                way("192.168.1.0/24", None, "br1", 0),
            ],
            ..Namespace::default()
        }
    }

    #[test]
    fn the_longest_prefix_and_then_the_lowest_metric_wins() {
        let host = namespace();
        let by = |to: &str| host.route(to.parse().unwrap()).map(|way| way.metric);
        assert_eq!(by("203.0.113.1"), Some(100));
        assert_eq!(by("192.168.1.12"), Some(0));
        assert_eq!(by("2001:db8::7"), None);
        assert_eq!(host.uplink(true).unwrap().name, "uplink");
        assert!(host.uplink(false).is_none());
    }

    #[test]
    fn the_source_is_an_address_near_the_next_hop() {
        let host = namespace();
        let source = |to: &str| {
            let to = to.parse().unwrap();
            host.source(host.route(to).unwrap(), to).unwrap().to_string()
        };
        assert_eq!(source("203.0.113.1"), "198.51.100.1");
        assert_eq!(source("192.168.1.12"), "192.168.1.10", "not the bare address");
        assert!(host.is_local("127.0.0.2".parse().unwrap()));
        assert!(host.is_local("192.168.1.254".parse().unwrap()));
        assert!(!host.is_local("192.168.1.12".parse().unwrap()));
    }
}
