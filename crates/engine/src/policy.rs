//! The one place that decides whether a new flow may leave the network.
//!
//! Every protocol asks here before it touches a host socket: each TCP connection, each new remote
//! of a UDP mapping, each echo request. What is decided is the destination itself, after all the
//! forms in which one address can be written were undone, so there is no second spelling of a
//! refused destination.
//!
//! Refused by default are the host and its neighbourhood: loopback, unspecified addresses (the
//! kernel takes them for loopback), every address that the host has now, link-local ones, the
//! metadata services of the clouds, multicast, broadcast and reserved ranges, and addresses in
//! the network's own prefixes that no guest has (they would otherwise leave by the host's default
//! route). Host services that the configuration names are reached by `host.<zone>` only.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::{Config, Uplink};

/// What a new flow speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// A remote of a UDP mapping.
    Udp,
    /// An ICMP or ICMPv6 echo request; it has no port.
    Icmp,
}

/// What was decided about a new flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may go; the host socket goes to this address, which differs from the one that the
    /// guest used when that was `host.<zone>`.
    Allow(SocketAddr),
    /// It may not, by this rule.
    Deny(&'static str),
}

/// Metadata services of clouds that stand outside the link-local ranges: Alibaba, Azure, Oracle.
pub const METADATA4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// The same for IPv6: AWS, Google.
pub const METADATA6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// The rules of one network and how often each decided.
#[derive(Debug)]
pub struct Policy {
    uplink: Uplink,
    host4: Ipv4Addr,
    host6: Ipv6Addr,
    host_services: Vec<SocketAddr>,
    subnet4: Ipv4Net,
    subnet6: Ipv6Net,
    host_addresses: HashSet<IpAddr>,
    counts: BTreeMap<&'static str, u64>,
}

impl Policy {
    /// The policy of `config` on a host that has these addresses.
    #[must_use]
    pub fn new(config: &Config, host_addresses: Vec<IpAddr>) -> Self {
        Self {
            uplink: config.uplink.clone(),
            host4: config.host4(),
            host6: config.host6(),
            host_services: config.host.clone(),
            subnet4: config.subnet4,
            subnet6: config.subnet6,
            host_addresses: host_addresses.into_iter().collect(),
            counts: BTreeMap::new(),
        }
    }

    /// Replaces the host's own addresses. Flows that are open already are not looked at again.
    pub fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.host_addresses = addresses.into_iter().collect();
    }

    /// Decides about a new flow of `guest` to `to`, an address that no guest, no service and not
    /// the gateway has.
    pub fn decide_out(&mut self, protocol: Protocol, guest: IpAddr, to: SocketAddr) -> Decision {
        let (rule, decision) = match self.judge(protocol, to) {
            Ok((rule, to)) => (rule, Decision::Allow(to)),
            Err(rule) => (rule, Decision::Deny(rule)),
        };
        let count = self.counts.entry(rule).or_default();
        *count += 1;
        // A guest can ask as fast as it likes: the log grows with the logarithm of that.
        if matches!(decision, Decision::Deny(_)) && count.is_power_of_two() {
            tracing::info!(rule, count = *count, ?protocol, %guest, %to, "flow refused by policy");
        }
        decision
    }

    /// Whether guests may hear of an address: one outside, and none of the host and its neighbourhood.
    #[must_use]
    pub fn is_outside(&self, address: IpAddr) -> bool {
        self.refused(address).is_none()
    }

    /// How often each rule decided.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.iter().map(|(rule, count)| ((*rule).to_owned(), *count)).collect()
    }

    fn judge(
        &self,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Result<(&'static str, SocketAddr), &'static str> {
        if to.ip() == IpAddr::V4(self.host4) || to.ip() == IpAddr::V6(self.host6) {
            return match self.host_service(to) {
                Some(service) if protocol != Protocol::Icmp => Ok(("host-service", service)),
                _ => Err("host-closed"),
            };
        }
        if self.uplink == Uplink::None {
            return Err("uplink-none");
        }
        match self.refused(to.ip()) {
            Some(rule) => Err(rule),
            // Ports are a flow's own from 1 to 65535 (RFC 6335 section 6).
            None if to.port() == 0 && protocol != Protocol::Icmp => Err("port-zero"),
            None => Ok(("outside", to)),
        }
    }

    /// The named host service behind a port of `host.<zone>`, by preference of the same family.
    fn host_service(&self, to: SocketAddr) -> Option<SocketAddr> {
        let services = || self.host_services.iter().filter(|service| service.port() == to.port());
        let service = services()
            .find(|service| service.is_ipv4() == to.is_ipv4())
            .or_else(|| services().next())?;
        let address = match service.ip() {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        Some(SocketAddr::new(address, service.port()))
    }

    /// The rule that refuses an address.
    fn refused(&self, address: IpAddr) -> Option<&'static str> {
        match address {
            IpAddr::V4(address) => self.refused4(address),
            IpAddr::V6(address) => self.refused6(address),
        }
    }

    fn refused4(&self, address: Ipv4Addr) -> Option<&'static str> {
        if self.host_addresses.contains(&address.into()) {
            return Some("host-address");
        }
        if METADATA4.contains(&address) {
            return Some("metadata");
        }
        if self.subnet4.contains(&address) {
            return Some("no-such-guest");
        }
        match address.octets() {
            [127, ..] => Some("loopback"),
            [0, ..] => Some("unspecified"),
            [169, 254, ..] => Some("link-local"),
            [255, 255, 255, 255] => Some("broadcast"),
            [224..=239, ..] => Some("multicast"),
            [240..=255, ..] => Some("reserved"),
            _ => None,
        }
    }

    fn refused6(&self, address: Ipv6Addr) -> Option<&'static str> {
        if self.host_addresses.contains(&address.into()) {
            return Some("host-address");
        }
        if METADATA6.contains(&address) {
            return Some("metadata");
        }
        if self.subnet6.contains(&address) {
            return Some("no-such-guest");
        }
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
            [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
            // IPv4-mapped and IPv4-compatible (RFC 4291 section 2.5.5): a second spelling of an
            // IPv4 address, never on a wire.
            [0, 0, 0, 0, 0, 0xffff | 0, ..] => Some("v4-mapped"),
            // NAT64 (RFC 6052 section 2.1, RFC 8215) leads to the IPv4 address at its end.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => {
                self.refused4(embedded(high, low)).map(|_| "nat64")
            }
            // 6to4 (RFC 3056 section 2) leads to the IPv4 address behind its prefix.
            [0x2002, high, low, ..] => self.refused4(embedded(high, low)).map(|_| "6to4"),
            [0xfe80..=0xfebf, ..] => Some("link-local"),
            [0xff00..=0xffff, ..] => Some("multicast"),
            _ => None,
        }
    }
}

/// What a rule of the policy, or a reason for which something was dropped, is about, for people.
#[must_use]
pub fn meaning(rule: &str) -> &'static str {
    match rule {
        "outside" => "an address outside",
        "host-service" => "a service of this machine that the network's `host` names",
        "host-closed" => "a port of this machine that the network's `host` does not name",
        "host-address" => "an address of this machine",
        "uplink-none" => "the network has no uplink",
        "metadata" => "a metadata service of a cloud",
        "no-such-guest" => "an address of the network that nobody has",
        "port-zero" => "no port",
        "loopback" => "a loopback address",
        "unspecified" => "the unspecified address",
        "link-local" => "a link-local address",
        "broadcast" => "everybody",
        "multicast" => "a group of multicast",
        "reserved" => "a reserved address",
        "v4-mapped" => "an IPv4 address written as an IPv6 one",
        "nat64" | "6to4" => "a refused IPv4 address behind an IPv6 one",
        "other-network" => "networks are closed to each other",
        "uninvited" => "nobody outside knows these addresses",
        "invalid" => "belongs to no connection",
        "spoofed-mac" => "another hardware address than the plug's",
        "spoofed-ip" => "another address than the plug's",
        "spoofed-arp" | "spoofed-ndp" => "speaks of another address than the plug's",
        "unknown-ethertype" => "neither IPv4 nor IPv6 nor ARP",
        "rogue-dhcp" => "only the gateway lends addresses",
        "rogue-router" | "rogue-redirect" => "only the gateway is a router",
        _ => "something else",
    }
}

/// An IPv4 address from two segments of an IPv6 address.
fn embedded(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            name: "lab".into(),
            subnet4: "192.168.127.0/24".parse().unwrap(),
            subnet6: "fd00:1:2:3::/64".parse().unwrap(),
            mode: crate::config::Mode::User,
            gateway: None,
            gateway_mac: netyard_wire::MacAddr::from_seed("lab"),
            zone: "lan".into(),
            mtu: 1500,
            uplink: Uplink::Nat,
            host: vec!["127.0.0.1:5432".parse().unwrap(), "[::]:6379".parse().unwrap()],
            dhcp: None,
            permanent: false,
        }
    }

    fn policy() -> Policy {
        let host = ["203.0.113.7", "2001:db8::7", "10.0.0.5"];
        Policy::new(&config(), host.map(|address| address.parse().unwrap()).to_vec())
    }

    fn ask(policy: &mut Policy, to: &str) -> Decision {
        let to = to.parse().unwrap();
        policy.decide_out(Protocol::Tcp, "192.168.127.2".parse().unwrap(), to)
    }

    #[test]
    fn every_spelling_of_a_refused_address_is_refused() {
        let mut policy = policy();
        for (to, rule) in [
            ("127.0.0.1:80", "loopback"),
            ("127.255.255.254:80", "loopback"),
            ("[::1]:80", "loopback"),
            ("0.0.0.0:80", "unspecified"),
            ("0.1.2.3:80", "unspecified"),
            ("[::]:80", "unspecified"),
            ("[::ffff:127.0.0.1]:80", "v4-mapped"),
            ("[::ffff:8.8.8.8]:80", "v4-mapped"),
            ("[::ffff:0.0.0.0]:80", "v4-mapped"),
            ("[::127.0.0.1]:80", "v4-mapped"),
            ("[64:ff9b::127.0.0.1]:80", "nat64"),
            ("[64:ff9b::7f00:1]:80", "nat64"),
            ("[64:ff9b::10.0.0.5]:80", "nat64"),
            ("[64:ff9b::169.254.169.254]:80", "nat64"),
            ("[64:ff9b::192.168.127.9]:80", "nat64"),
            ("[64:ff9b:1::127.0.0.1]:80", "nat64"),
            ("[2002:7f00:1::1]:80", "6to4"),
            ("203.0.113.7:80", "host-address"),
            ("10.0.0.5:22", "host-address"),
            ("[2001:db8::7]:80", "host-address"),
            ("169.254.169.254:80", "link-local"),
            ("169.254.0.1:80", "link-local"),
            ("[fe80::1]:80", "link-local"),
            ("[febf::1]:80", "link-local"),
            ("100.100.100.200:80", "metadata"),
            ("[fd00:ec2::254]:80", "metadata"),
            ("224.0.0.251:5353", "multicast"),
            ("[ff02::fb]:5353", "multicast"),
            ("255.255.255.255:67", "broadcast"),
            ("240.0.0.1:80", "reserved"),
            ("192.168.127.77:80", "no-such-guest"),
            ("[fd00:1:2:3::77]:80", "no-such-guest"),
            ("8.8.8.8:0", "port-zero"),
        ] {
            assert_eq!(ask(&mut policy, to), Decision::Deny(rule), "{to}");
        }
    }

    #[test]
    fn the_outside_is_open() {
        let mut policy = policy();
        for to in [
            "8.8.8.8:53",
            "10.0.0.6:22",
            "192.168.1.1:80",
            "[2001:db8::8]:443",
            "[fd00:1:2:4::1]:80",
            "[64:ff9b::8.8.8.8]:80",
            "[2002:808:808::1]:80",
        ] {
            assert_eq!(ask(&mut policy, to), Decision::Allow(to.parse().unwrap()), "{to}");
        }
    }

    #[test]
    fn the_host_alias_opens_only_named_services() {
        let mut policy = policy();
        let alias = config().host4();
        for (port, decision) in [
            (5432, Decision::Allow("127.0.0.1:5432".parse().unwrap())),
            (6379, Decision::Allow("[::1]:6379".parse().unwrap())),
            (22, Decision::Deny("host-closed")),
        ] {
            assert_eq!(ask(&mut policy, &format!("{alias}:{port}")), decision);
            assert_eq!(ask(&mut policy, &format!("[{}]:{port}", config().host6())), decision);
        }
        let ping = (alias, 0).into();
        let guest = "192.168.127.2".parse().unwrap();
        assert_eq!(policy.decide_out(Protocol::Icmp, guest, ping), Decision::Deny("host-closed"));
        assert_eq!(ask(&mut policy, "127.0.0.1:5432"), Decision::Deny("loopback"));
    }

    #[test]
    fn a_closed_uplink_refuses_everything_but_the_services_that_are_named() {
        let mut policy = Policy::new(&Config { uplink: Uplink::None, ..config() }, Vec::new());
        for to in ["8.8.8.8:53", "[2001:db8::8]:443", "127.0.0.1:5432"] {
            assert_eq!(ask(&mut policy, to), Decision::Deny("uplink-none"), "{to}");
        }
        let alias = SocketAddr::new(config().host4().into(), 5432);
        assert_eq!(
            ask(&mut policy, &alias.to_string()),
            Decision::Allow(([127, 0, 0, 1], 5432).into())
        );
    }

    #[test]
    fn new_host_addresses_count_at_once_and_decisions_are_counted() {
        let mut policy = policy();
        assert!(matches!(ask(&mut policy, "198.51.100.9:80"), Decision::Allow(_)));
        policy.set_host_addresses(vec!["198.51.100.9".parse().unwrap()]);
        assert_eq!(ask(&mut policy, "198.51.100.9:80"), Decision::Deny("host-address"));
        assert_eq!(ask(&mut policy, "198.51.100.9:81"), Decision::Deny("host-address"));
        let counts = policy.counts();
        assert_eq!((counts["outside"], counts["host-address"]), (1, 2));
    }

    #[test]
    fn echo_requests_have_no_port() {
        let to: SocketAddr = "8.8.8.8:0".parse().unwrap();
        let guest = "192.168.127.2".parse().unwrap();
        assert_eq!(policy().decide_out(Protocol::Icmp, guest, to), Decision::Allow(to));
    }
}
