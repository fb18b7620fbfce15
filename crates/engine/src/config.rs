//! What one network is: names, prefixes, addresses of its own, rules. Plain values, no IO.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

/// Where traffic that leaves the network goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Uplink {
    /// Out with the host's own addresses: through its sockets (user mode) or translated by its
    /// kernel (bridge mode).
    #[default]
    Nat,
    /// Nowhere: the network is closed.
    None,
    /// Bridge mode only: out as it is, the host is a router.
    Routed,
    /// Bridge mode only: through this card of the host, which becomes a port of the bridge and
    /// whose addresses move to the bridge.
    Card(String),
}

/// As the yard file says it.
impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nat => f.write_str("nat"),
            Self::None => f.write_str("none"),
            Self::Routed => f.write_str("routed"),
            Self::Card(name) => write!(f, "card:{name}"),
        }
    }
}

/// Who moves the packets of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The network process.
    #[default]
    User,
    /// The kernel, on a bridge.
    Bridge(Bridge),
}

/// What a bridge-mode network says of its bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The bridge's name: joined if it is there, else made. Chosen from the network's name if
    /// absent.
    pub name: Option<String>,
    /// Whether nothing passes between this network and others.
    pub isolate: bool,
    /// Largest IP packet, bytes, if somebody asks for one; else what the uplink takes.
    #[serde(default)]
    pub mtu: Option<u16>,
}

impl Default for Bridge {
    /// A bridge of its own, isolated, for what the uplink takes.
    fn default() -> Self {
        Self { name: None, isolate: true, mtu: None }
    }
}

/// How guests get their addresses by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dhcp {
    /// How long an address is lent.
    pub lease: Duration,
    /// IPv4 addresses for clients that nobody has plugged in, in bridge mode; a part of the prefix
    /// that plugs and services come to last if absent.
    #[serde(default)]
    pub range: Option<Range>,
}

/// IPv4 addresses that follow each other, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first.
    pub first: Ipv4Addr,
    /// The last, included.
    pub last: Ipv4Addr,
}

impl Range {
    /// Whether an address is one of them.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// How many they are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.last.to_bits().saturating_sub(self.first.to_bits()).saturating_add(1)
    }
}

/// As the yard file says it.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Default for Dhcp {
    /// Half a day, as other gateways do.
    fn default() -> Self {
        Self { lease: Duration::from_secs(12 * 3_600), range: None }
    }
}

/// What the DNS of a network knows beside who is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Records of its own.
    pub records: Vec<DnsRecord>,
    /// Who is asked for names below some domains, in place of the host's resolvers.
    pub split: Vec<DnsSplit>,
    /// Whether answers of resolvers are kept.
    pub cache: bool,
    /// Domains that guests look short names up in, after the network's zone; without dots at their ends.
    pub search: Vec<String>,
}

impl Default for Dns {
    /// Nothing of its own; answers are kept.
    fn default() -> Self {
        Self { records: Vec::new(), split: Vec::new(), cache: true, search: Vec::new() }
    }
}

/// Resolvers for the names of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSplit {
    /// The domain, without a dot at its end; `.` for all names.
    pub domain: String,
    /// The resolvers, in the order in which they are to be asked.
    pub servers: Vec<SocketAddr>,
}

/// A record of a network's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    /// The whole name, in the network's zone or not, without a dot at its end.
    pub name: String,
    /// How long it may be kept, seconds.
    pub ttl: u32,
    /// What it says.
    pub data: DnsData,
}

/// What a record says. Names are whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnsData {
    /// An address.
    Address(IpAddr),
    /// The name that it stands for: one of the network's zone, or one with records here.
    Alias(String),
    /// Where a service is (RFC 2782).
    Srv {
        /// Those with the lowest number are tried first.
        priority: u16,
        /// Among equals: how often this one is taken.
        weight: u16,
        /// The port.
        port: u16,
        /// The machine.
        target: String,
    },
    /// A text.
    Text(String),
}

/// The configuration of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The network's name, unique among the networks of one user, e.g. `lab` or `hello.lan`.
    pub name: String,
    /// IPv4 prefix of the segment.
    pub subnet4: Ipv4Net,
    /// IPv6 prefix of the segment, /64.
    pub subnet6: Ipv6Net,
    /// Who moves the packets.
    #[serde(default)]
    pub mode: Mode,
    /// The gateway's IPv4 address, if it is not the first of the prefix.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// The gateway's hardware address.
    pub gateway_mac: MacAddr,
    /// DNS zone of the network without dots at its ends, e.g. `lan`.
    pub zone: String,
    /// What its DNS knows beside who is there.
    #[serde(default)]
    pub dns: Dns,
    /// Largest IP packet on the segment, bytes. In bridge mode that of [`Bridge::mtu`], or the bridge's
    /// once it is there.
    pub mtu: u16,
    /// Where traffic that leaves goes.
    pub uplink: Uplink,
    /// Host services that guests may reach as `host.<zone>`; none unless named.
    pub host: Vec<SocketAddr>,
    /// DHCP, DHCPv6 and router advertisements; `None`: guests get none.
    pub dhcp: Option<Dhcp>,
    /// User mode: whether what is sent to a multicast group goes to those alone who have joined it, if anybody has.
    #[serde(default = "on")]
    pub snooping: bool,
    /// User mode: where guests' questions for names in `.local` go on to.
    #[serde(default)]
    pub mdns: Mdns,
    /// Stay when the last plug leaves (`network create`).
    pub permanent: bool,
}

/// For serde.
fn on() -> bool {
    true
}

/// On which of the host's links questions by multicast for names in `.local` are asked once more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mdns {
    /// On none.
    #[default]
    Off,
    /// On those of all cards that take multicast.
    Everywhere,
    /// On those of these cards, by their names.
    Cards(BTreeSet<String>),
}

impl Mdns {
    /// Whether a card's link is asked.
    #[must_use]
    pub fn has(&self, card: &str) -> bool {
        match self {
            Self::Off => false,
            Self::Everywhere => true,
            Self::Cards(cards) => cards.contains(card),
        }
    }
}

impl Config {
    /// The domains that guests look short names up in: the zone first.
    pub fn search(&self) -> impl Iterator<Item = &str> {
        let others = self.dns.search.iter().filter(|domain| **domain != self.zone);
        std::iter::once(&self.zone).chain(others).map(String::as_str)
    }

    /// The gateway's IPv4 address: the first of the prefix unless another is given.
    #[must_use]
    pub fn gateway4(&self) -> Ipv4Addr {
        self.gateway.unwrap_or_else(|| self.nth4(1))
    }

    /// The gateway's IPv6 address: `<prefix>::1`.
    #[must_use]
    pub fn gateway6(&self) -> Ipv6Addr {
        self.nth6(1)
    }

    /// `host.<zone>`: the last usable IPv4 address of the prefix.
    #[must_use]
    pub fn host4(&self) -> Ipv4Addr {
        self.nth4(self.usable4())
    }

    /// `host.<zone>`: the IPv6 address with the same number as [`Config::host4`].
    #[must_use]
    pub fn host6(&self) -> Ipv6Addr {
        self.nth6(self.usable4())
    }

    /// How many IPv4 addresses can be used on the segment (network and broadcast excluded).
    #[must_use]
    pub fn usable4(&self) -> u32 {
        let bits = 32 - u32::from(self.subnet4.prefix_len());
        2u32.checked_pow(bits).map_or(u32::MAX - 2, |all| all.saturating_sub(2))
    }

    /// The `n`th IPv4 address of the prefix; 0 is the prefix itself.
    #[must_use]
    pub fn nth4(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet4.network().to_bits().wrapping_add(n))
    }

    /// The `n`th IPv6 address of the prefix; 0 is the prefix itself.
    #[must_use]
    pub fn nth6(&self, n: u32) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.subnet6.network().to_bits().wrapping_add(u128::from(n)))
    }

    /// True for the gateway's own addresses.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway4(),
            IpAddr::V6(address) => {
                address == self.gateway6() || address == self.gateway_link_local()
            }
        }
    }

    /// True for the address of `host.<zone>`.
    #[must_use]
    pub fn is_host(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.host4(),
            IpAddr::V6(address) => address == self.host6(),
        }
    }

    /// True for IPv4 addresses that are set aside for clients without a plug: nobody else gets one
    /// who does not ask for it.
    #[must_use]
    pub fn is_set_aside(&self, address: Ipv4Addr) -> bool {
        self.dhcp.and_then(|dhcp| dhcp.range).is_some_and(|range| range.contains(address))
    }

    /// True when the address lies inside the segment's prefixes.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.subnet4.contains(&address),
            IpAddr::V6(address) => self.subnet6.contains(&address),
        }
    }

    /// The gateway's link-local address, from its hardware address (RFC 4291 appendix A).
    #[must_use]
    pub fn gateway_link_local(&self) -> Ipv6Addr {
        self.gateway_mac.link_local()
    }
}
