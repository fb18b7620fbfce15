//! The one place that decides whether a new flow may leave the network, or come to one of its instances.
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
//!
//! About the rest the members of the network have [`Rules`], each about its own guests. What they say of
//! names is judged by what the guest was told by the network's DNS. Rules about who comes, and about other
//! instances, are in the module `entry`.

mod entry;
mod learned;
mod remote;
pub mod rules;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use netyard_wire::dns::{Data, Name, Record};
use serde::{Deserialize, Serialize};

use self::entry::Book;
pub(crate) use self::entry::Client;
pub use self::entry::{Comer, Gate};
use self::learned::Learned;
use self::rules::{Asked, Direction, Other, Pattern, Rules, Verdict, What};
use crate::config::{Config, Uplink};

/// What a new flow speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    /// It may not, by this rule; [`RULE`] and [`OTHERWISE`] are those of members.
    Deny(&'static str),
}

/// An address outside, about which members may have rules.
const OUTSIDE: &str = "outside";
/// A rule of a member refuses it.
pub const RULE: &str = "rule";
/// No rule of a member allows it.
pub const OTHERWISE: &str = "otherwise";
/// No rule is about it.
const NO_RULE: &str = "no-rule";

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
    book: Book,
    /// The same for other threads.
    gate: Gate,
    learned: HashMap<String, Learned>,
    counts: Counts,
}

/// How often each rule decided.
type Counts = BTreeMap<Cow<'static, str>, u64>;

/// What [`Policy::test`] finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// What would be decided.
    pub decision: Decision,
    /// The rule that decides, by the name that it is counted by.
    pub rule: String,
    /// What it is about, for people.
    pub meaning: &'static str,
}

/// Who has an address of the network.
#[derive(Debug, Clone)]
struct Asker {
    member: String,
    name: String,
    addresses: Vec<IpAddr>,
}

impl Asker {
    /// As the other end of a flow.
    fn as_other(&self) -> Other<'_> {
        Other::Instance { name: &self.name, addresses: &self.addresses }
    }
}

/// What decides about a flow.
#[derive(Debug)]
struct Judgement<'a> {
    decision: Decision,
    /// The name that it is counted by.
    rule: Cow<'a, str>,
    /// What [`meaning`] explains.
    reason: &'static str,
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
            book: Book::default(),
            gate: Gate::default(),
            learned: HashMap::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Replaces the host's own addresses; true if they are others. Flows that are open already are not looked at
    /// again.
    pub fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) -> bool {
        let addresses = addresses.into_iter().collect();
        let before = std::mem::replace(&mut self.host_addresses, addresses);
        before != self.host_addresses
    }

    /// Replaces the rules of a member. Flows that are open already are not looked at again; see
    /// [`Policy::permits_open`].
    pub fn set_rules(&mut self, member: &str, rules: Rules) {
        self.change(|book| book.set_rules(member, &rules));
    }

    /// The rules of each member that has any.
    #[must_use]
    pub fn rules(&self) -> &BTreeMap<String, Rules> {
        &self.book.rules
    }

    /// A guest of this name has these addresses from now on; `member` has plugged it in.
    pub fn add_guest(
        &mut self,
        member: &str,
        name: &str,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) {
        let addresses = addresses.into_iter().collect();
        let asker = Asker { member: member.to_owned(), name: name.to_owned(), addresses };
        let asker = Arc::new(asker);
        self.change(|book| book.add_guest(&asker));
    }

    /// The guest of this name is gone, and with it what it was told.
    pub fn remove_guest(&mut self, name: &str) {
        self.change(|book| book.remove_guest(name));
        self.learned.remove(name);
    }

    /// Whether a guest may have this name looked up outside.
    #[must_use]
    pub fn lets_ask(&self, guest: IpAddr, name: &Name) -> bool {
        self.rules_for(guest).is_none_or(|(asker, rules)| rules.lets_ask(&asker.name, name))
    }

    /// The network's DNS tells a guest what a name that it has asked for stands for.
    pub fn learn(&mut self, now: Instant, guest: IpAddr, asked: &Name, answers: &[Record]) {
        // Also of who has no rules yet: they may come, and what is open by a name goes on.
        let Some(asker) = self.book.guests.get(&guest) else { return };
        let name = asker.name.clone();
        let learned = self.learned.entry(name).or_default();
        for record in answers {
            let address = match record.data {
                Data::A(address) => address.into(),
                Data::Aaaa(address) => address.into(),
                _ => continue,
            };
            learned.learn(now, asked, address, Duration::from_secs(record.ttl.into()));
        }
    }

    /// Decides about a new flow of `guest` to `to`, an address that no guest, no service and not
    /// the gateway has.
    pub fn decide_out(
        &mut self,
        now: Instant,
        protocol: Protocol,
        guest: IpAddr,
        to: SocketAddr,
    ) -> Decision {
        let Judgement { decision, rule, .. } = self.judge(Some(now), protocol, guest, to);
        let rule = rule.into_owned();
        let refused = matches!(decision, Decision::Deny(_));
        let count = count(&mut self.counts, rule.clone());
        // A guest can ask as fast as it likes: the log grows with the logarithm of that.
        if refused && count.is_power_of_two() {
            tracing::info!(rule, count, ?protocol, %guest, %to, "flow refused by policy");
        }
        decision
    }

    /// What would be decided about a new flow, without counting it.
    #[must_use]
    pub fn test(&self, now: Instant, protocol: Protocol, guest: IpAddr, to: SocketAddr) -> Tested {
        let Judgement { decision, rule, reason } = self.judge(Some(now), protocol, guest, to);
        Tested { decision, rule: rule.into_owned(), meaning: meaning(reason) }
    }

    /// Whether a flow that is open may go on. A name that it was opened by counts even if its time is over.
    #[must_use]
    pub fn permits_open(&self, protocol: Protocol, guest: IpAddr, to: SocketAddr) -> bool {
        matches!(self.judge(None, protocol, guest, to).decision, Decision::Allow(_))
    }

    /// The rule by which a flow that is open may go on, or may not.
    #[must_use]
    pub fn rule_of_open(&self, protocol: Protocol, guest: IpAddr, to: SocketAddr) -> String {
        self.judge(None, protocol, guest, to).rule.into_owned()
    }

    /// Whether guests may hear of an address: one outside, and none of the host and its neighbourhood.
    #[must_use]
    pub fn is_outside(&self, address: IpAddr) -> bool {
        self.refused(address).is_none()
    }

    /// How often each rule decided.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.counts.iter().map(|(rule, count)| (rule.clone().into_owned(), *count));
        let mut counts = counts.collect();
        self.count_gate(&mut counts);
        counts
    }

    /// The rules for a guest, and who that is.
    fn rules_for(&self, guest: IpAddr) -> Option<(&Asker, &Rules)> {
        let asker = self.book.guests.get(&guest)?.as_ref();
        Some((asker, self.book.rules.get(&asker.member)?))
    }

    fn judge(
        &self,
        at: Option<Instant>,
        protocol: Protocol,
        guest: IpAddr,
        to: SocketAddr,
    ) -> Judgement<'_> {
        let (rule, leads) = match self.leads(protocol, to) {
            Ok((OUTSIDE, leads)) => (OUTSIDE, leads),
            Ok((rule, leads)) => {
                let decision = Decision::Allow(leads);
                return Judgement { decision, rule: rule.into(), reason: rule };
            }
            Err(rule) => {
                let decision = Decision::Deny(rule);
                return Judgement { decision, rule: rule.into(), reason: rule };
            }
        };
        // RFC 4291 sections 2.5.2 and 2.5.6, RFC 1122 section 3.2.1.3: nothing from there is forwarded. It is
        // nobody's address, and so no rule would be about it.
        let from_nowhere = match guest {
            IpAddr::V6(guest) if guest.is_unicast_link_local() => Some("link-local-source"),
            guest if guest.is_unspecified() => Some("unspecified-source"),
            _ => None,
        };
        if let Some(rule) = from_nowhere {
            return Judgement { decision: Decision::Deny(rule), rule: rule.into(), reason: rule };
        }
        let Some((asker, rules)) = self.rules_for(guest) else {
            let decision = Decision::Allow(leads);
            return Judgement { decision, rule: rule.into(), reason: rule };
        };
        let learned = self.learned.get(&asker.name);
        let is_known_as = |pattern: &Pattern| {
            learned.is_some_and(|learned| learned.is_known_as(to.ip(), pattern, at))
        };
        let asked = Asked {
            direction: Direction::Out,
            instance: &asker.name,
            other: Other::Outside(to.ip()),
            what: What::to(protocol, to.port()),
        };
        let decides = rules.deciding(&asked, is_known_as);
        let (verdict, name, reason) = match decides {
            Some(rule) => (rule.verdict, rule.name.as_str(), RULE),
            None if rules.otherwise == Verdict::Allow => (Verdict::Allow, OTHERWISE, OUTSIDE),
            None => (Verdict::Deny, OTHERWISE, OTHERWISE),
        };
        let decision = match verdict {
            Verdict::Allow => Decision::Allow(leads),
            Verdict::Deny => Decision::Deny(reason),
        };
        Judgement { decision, rule: format!("{}/{name}", asker.member).into(), reason }
    }

    /// Where a destination leads, and by which rule that every network has.
    fn leads(
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
            None => Ok((OUTSIDE, to)),
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
            [0x64, ..] => self.refused4(embedded(address)?).map(|_| "nat64"),
            [0x2002, ..] => self.refused4(embedded(address)?).map(|_| "6to4"),
            [0xfe80..=0xfebf, ..] => Some("link-local"),
            [0xff00..=0xffff, ..] => Some("multicast"),
            _ => None,
        }
    }
}

/// Counts a decision by its rule.
fn count(counts: &mut Counts, rule: String) -> u64 {
    let count = counts.entry(rule.into()).or_default();
    *count += 1;
    *count
}

/// What a rule of the policy, or a reason for which something was dropped, is about, for people.
#[must_use]
pub fn meaning(rule: &str) -> &'static str {
    match rule {
        OUTSIDE => "an address outside",
        RULE => "a rule of who has plugged it in",
        OTHERWISE => "no rule of who has plugged it in allows it",
        NO_RULE => "no rule is about it",
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
        "unspecified-source" => "from no address at all",
        "link-local-source" => "from a link-local address, which leads nowhere outside",
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

/// The IPv4 address that an IPv6 address leads to.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match address.segments() {
        // NAT64 (RFC 6052 section 2.1, RFC 8215): at its end.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => {
            (high, low)
        }
        // 6to4 (RFC 3056 section 2): behind its prefix.
        [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);

    fn config() -> Config {
        Config {
            name: "lab".into(),
            subnet4: "192.168.127.0/24".parse().unwrap(),
            subnet6: "fd00:1:2:3::/64".parse().unwrap(),
            mode: crate::config::Mode::User,
            gateway: None,
            gateway_mac: netyard_wire::MacAddr::from_seed("lab"),
            zone: "lan".into(),
            dns: Default::default(),
            mtu: 1500,
            uplink: Uplink::Nat,
            host: vec!["127.0.0.1:5432".parse().unwrap(), "[::]:6379".parse().unwrap()],
            dhcp: None,
            snooping: true,
            mdns: Default::default(),
            permanent: false,
        }
    }

    fn policy() -> Policy {
        let host = ["203.0.113.7", "2001:db8::7", "10.0.0.5"];
        Policy::new(&config(), host.map(|address| address.parse().unwrap()).to_vec())
    }

    fn ask(policy: &mut Policy, to: &str) -> Decision {
        let to = to.parse().unwrap();
        policy.decide_out(Instant::now(), Protocol::Tcp, GUEST.into(), to)
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
        let decided = policy.decide_out(Instant::now(), Protocol::Icmp, GUEST.into(), ping);
        assert_eq!(decided, Decision::Deny("host-closed"));
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
        let decided = policy().decide_out(Instant::now(), Protocol::Icmp, GUEST.into(), to);
        assert_eq!(decided, Decision::Allow(to));
    }

    #[test]
    fn rules_of_members_are_about_their_own_guests_and_what_is_left() {
        let mut policy = policy();
        let neighbour = Ipv4Addr::new(192, 168, 127, 3);
        policy.add_guest("yard", "web", [GUEST.into()]);
        policy.add_guest("other", "db", [neighbour.into()]);
        let rule = rules::Rule {
            name: "updates".into(),
            verdict: Verdict::Allow,
            direction: Direction::Out,
            instances: vec!["web".into()],
            others: vec!["*.example.org".parse().unwrap()],
            protocol: Some(Protocol::Tcp),
            ports: vec![443..=443],
        };
        policy.set_rules("yard", Rules { list: vec![rule], otherwise: Verdict::Deny });
        let to: SocketAddr = "198.51.100.9:443".parse().unwrap();
        let now = Instant::now();
        let ask = |policy: &mut Policy, guest: Ipv4Addr, to: &str| {
            policy.decide_out(now, Protocol::Tcp, guest.into(), to.parse().unwrap())
        };
        assert_eq!(ask(&mut policy, GUEST, "198.51.100.9:443"), Decision::Deny(OTHERWISE));
        assert_eq!(ask(&mut policy, neighbour, "198.51.100.9:443"), Decision::Allow(to));
        let asked: Name = "www.example.org".parse().unwrap();
        assert!(policy.lets_ask(GUEST.into(), &asked));
        assert!(!policy.lets_ask(GUEST.into(), &"example.net".parse().unwrap()));
        // An answer by way of another name counts for the one that was asked for.
        let cname = "cdn.example.net".parse().unwrap();
        let data = Data::A([198, 51, 100, 9].into());
        policy.learn(now, GUEST.into(), &asked, &[Record { name: cname, ttl: 60, data }]);
        assert_eq!(ask(&mut policy, GUEST, "198.51.100.9:443"), Decision::Allow(to));
        assert_eq!(ask(&mut policy, GUEST, "198.51.100.9:80"), Decision::Deny(OTHERWISE));
        assert!(policy.permits_open(Protocol::Tcp, GUEST.into(), to));
        let counts = policy.counts();
        assert_eq!((counts["yard/updates"], counts["yard/otherwise"]), (1, 2));
        // No rule opens what every network refuses.
        let inside = Data::A(Ipv4Addr::LOCALHOST);
        policy.learn(
            now,
            GUEST.into(),
            &asked,
            &[Record { name: asked.clone(), ttl: 60, data: inside }],
        );
        assert_eq!(ask(&mut policy, GUEST, "127.0.0.1:443"), Decision::Deny("loopback"));
        // Nobody has these addresses, and no rule is about them.
        for from in ["0.0.0.0", "::", "fe80::1"] {
            let from: IpAddr = from.parse().unwrap();
            let decided = policy.decide_out(now, Protocol::Tcp, from, to);
            assert!(matches!(decided, Decision::Deny(_)), "{from}");
            assert!(!policy.permits_open(Protocol::Tcp, from, to), "{from}");
        }
        policy.remove_guest("web");
        policy.add_guest("yard", "web", [GUEST.into()]);
        assert_eq!(ask(&mut policy, GUEST, "198.51.100.9:443"), Decision::Deny(OTHERWISE));
        policy.set_rules("yard", Rules::default());
        assert_eq!(
            ask(&mut policy, GUEST, "198.51.100.9:80"),
            Decision::Allow("198.51.100.9:80".parse().unwrap())
        );
    }
}
