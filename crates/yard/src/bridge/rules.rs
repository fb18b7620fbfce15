//! The nftables table of a network: what is translated, what passes, what is refused.
//!
//! # Theory of operation
//!
//! The rules never change; what changes are the elements of sets and maps (forwards, services,
//! guests, bridges of other networks) and the few rules of each service's turns. One table for
//! IPv4 and IPv6:
//!
//! * `prerouting` and `output` send new connections through the same two chains. `virtual` leads
//!   from the services' virtual addresses, for guests of this network and the host itself;
//!   `arriving` from published host addresses, for everybody. Both lead into one chain for each
//!   service, so that there is one counter of turns, wherever a connection comes from.
//! * `postrouting` gives connections that come back into the segment translated the gateway's
//!   address: their answers would else go straight to the client, which does not know the address
//!   that they come from. What leaves is masqueraded.
//! * `forward` looks at what passes between the segment and other links, `input` at what guests
//!   want of this machine. Frames within the segment pass here only with `br_netfilter`, and are let
//!   through before anything else is asked.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netyard_engine::config::Uplink;
use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::KernelService;
use netyard_engine::policy::{METADATA4, METADATA6};
use netyard_link::nft::{
    Batch, Chain, CtState, Element, Family, Hook, LOCAL, Priority, Reject, Rule, Selector, Set,
    Table, Type, Value, Verdict,
};
use netyard_link::rtnetlink::LinkName;

use super::counters::{dropped, judged};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IGMP: u8 = 2;

const DNS: u16 = 53;
/// Where DHCP and DHCPv6 servers listen.
const DHCP: u16 = 67;
const DHCPV6: u16 = 547;

/// The mark of connections that a network process answers itself, of any network: what is published
/// is for everybody, guests of other networks among them, and each network's rules are asked. Marks
/// of turns differ: their lower half is never 0.
pub(super) const ANSWERED: u32 = 0x6e79_0000;

/// Both network protocols, as `meta nfproto` says them.
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;

/// What the rules of a network are about.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) bridge: LinkName,
    /// Only guests are on the bridge: it was made for this network, and no card joins it.
    pub(super) alone: bool,
    pub(super) subnet4: Ipv4Net,
    pub(super) subnet6: Ipv6Net,
    pub(super) gateway4: Ipv4Addr,
    pub(super) gateway6: Ipv6Addr,
    /// `host.<zone>`.
    pub(super) alias: [IpAddr; 2],
    pub(super) uplink: Uplink,
    pub(super) isolate: bool,
    /// Services of the host that guests may reach.
    pub(super) host: Vec<SocketAddr>,
}

/// The table with its sets and the chains that others refer to.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    facts: Facts,
    pub(super) table: Table,
    /// The network's own bridge, for others to read.
    pub(super) bridge: Set,
    /// Bridges of other networks.
    pub(super) others: Set,
    /// Links of this machine that lead to remote machines.
    pub(super) tunnels: Set,
    /// Virtual addresses.
    pub(super) virtual_addresses: Pair,
    /// The guests' addresses, where others are on the bridge too.
    pub(super) guests: Pair,
    /// Virtual address, protocol and port of each service.
    pub(super) services: Pair,
    /// Published services, by host address, and those of every address.
    pub(super) published: Pair,
    pub(super) published_everywhere: Pair,
    /// Forwards, by host address, and those of every address.
    pub(super) forwards: Pair,
    pub(super) forwards_everywhere: Pair,
    /// Published services that have no instance, the same way.
    pub(super) refused: Pair,
    pub(super) refused_everywhere: Pair,
    /// Where the network process answers what services lead to it: address, protocol and port.
    pub(super) answered: Pair,
}

/// The same for IPv4 and IPv6.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) v4: Set,
    pub(super) v6: Set,
}

impl Pair {
    pub(super) fn new(name: &str, set: impl Fn(&str, Type) -> Set) -> Self {
        Self { v4: set(&format!("{name}4"), Type::Ipv4), v6: set(&format!("{name}6"), Type::Ipv6) }
    }

    /// The one for this address.
    pub(super) fn of(&self, address: IpAddr) -> &Set {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

fn answered_at<'a>(services: impl IntoIterator<Item = &'a KernelService>) -> BTreeSet<SocketAddr> {
    services.into_iter().flat_map(|service| &service.answered_at).copied().collect()
}

/// Before a network's name, in the names of its tables.
const TABLE: &str = "netyard-";

/// Whether a table is that of a network's rules.
pub(super) fn is_networks(table: &Table) -> bool {
    table.family() == Family::Inet && table.name().starts_with(TABLE)
}

/// The set with the bridge of the network that has this table.
pub(super) fn bridge_of(table: &Table) -> Set {
    Set::new(table, "bridge", [Type::LinkName])
}

/// Address, protocol and port as a key.
pub(super) fn at(address: IpAddr, protocol: Protocol, port: u16) -> Value {
    Value::concat([address.into(), Value::byte(number(protocol)), Value::port(port)])
}

/// Protocol and port as a key.
pub(super) fn everywhere(protocol: Protocol, port: u16) -> Value {
    Value::concat([Value::byte(number(protocol)), Value::port(port)])
}

/// Address and port, as translations lead to them.
pub(super) fn to(address: IpAddr, port: u16) -> Value {
    Value::concat([address.into(), Value::port(port)])
}

/// Every address of the same family.
pub(super) fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The number of a transport protocol.
pub(super) const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

impl Rules {
    pub(super) fn new(network: &str, facts: Facts) -> Self {
        let table = Table::inet(&format!("{TABLE}{network}")).owned(true);
        let set = |name: &str, key: &[Type]| Set::new(&table, name, key.iter().copied());
        let verdicts = |name: &str, key: &[Type]| Set::verdict_map(&table, name, key.to_vec());
        let port = [Type::Protocol, Type::Port];
        let address_port = |address| [address, Type::Protocol, Type::Port];
        let targets = |name: &str, key: &[Type], address| {
            Set::map(&table, name, key.to_vec(), [address, Type::Port]).counted()
        };
        Self {
            bridge: bridge_of(&table),
            others: set("others", &[Type::LinkName]),
            tunnels: set("tunnels", &[Type::LinkName]),
            virtual_addresses: Pair::new("virtual", |name, address| set(name, &[address])),
            guests: Pair::new("guests", |name, address| set(name, &[address])),
            services: Pair::new("services", |name, address| verdicts(name, &address_port(address))),
            published: Pair::new("published", |name, address| {
                verdicts(name, &address_port(address))
            }),
            published_everywhere: Pair::new("published_everywhere", |name, _| {
                verdicts(name, &port)
            }),
            forwards: Pair::new("forwards", |name, address| {
                targets(name, &address_port(address), address)
            }),
            forwards_everywhere: Pair::new("forwards_everywhere", |name, address| {
                targets(name, &port, address)
            }),
            refused: Pair::new("refused", |name, address| set(name, &address_port(address))),
            refused_everywhere: Pair::new("refused_everywhere", |name, _| set(name, &port)),
            answered: Pair::new("answered", |name, address| set(name, &address_port(address))),
            table,
            facts,
        }
    }

    /// Whether somebody on the segment has this address.
    pub(super) fn is_of_segment(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.facts.subnet4.contains(&address),
            IpAddr::V6(address) => self.facts.subnet6.contains(&address),
        }
    }

    fn pairs(&self) -> [&Pair; 10] {
        [
            &self.virtual_addresses,
            &self.guests,
            &self.services,
            &self.published,
            &self.published_everywhere,
            &self.forwards,
            &self.forwards_everywhere,
            &self.refused,
            &self.refused_everywhere,
            &self.answered,
        ]
    }

    /// Everything in the table that never changes, and the sets without elements.
    pub(super) fn content(&self) -> Batch {
        let mut batch = Batch::new();
        batch.add_set(&self.bridge).add_set(&self.others).add_set(&self.tunnels);
        batch.add_elements(&self.bridge, [Element::new(&self.facts.bridge)]);
        for pair in self.pairs() {
            batch.add_set(&pair.v4).add_set(&pair.v6);
        }
        self.translate(&mut batch);
        self.leave(&mut batch);
        self.pass(&mut batch);
        self.enter_host(&mut batch);
        batch
    }

    fn chain(&self, name: &str) -> Chain {
        Chain::regular(&self.table, name)
    }

    /// Destinations: services and forwards.
    fn translate(&self, batch: &mut Batch) {
        let (virtual_, arriving) = (self.chain("virtual"), self.chain("arriving"));
        let prerouting =
            Chain::base(&self.table, "prerouting", Hook::NatPrerouting, Priority::DNAT);
        let output = Chain::base(&self.table, "output", Hook::NatOutput, Priority::DNAT);
        for chain in [&virtual_, &arriving, &prerouting, &output] {
            batch.add_chain(chain);
        }
        const PORT: [Selector; 2] = [Selector::L4Protocol, Selector::DestinationPort];
        let with = |address| [address, Selector::L4Protocol, Selector::DestinationPort];
        let families = [
            (Selector::Ip4Destination, IpNet::new_assert([127, 0, 0, 0].into(), 8)),
            (Selector::Ip6Destination, IpNet::new_assert(Ipv6Addr::LOCALHOST.into(), 128)),
        ];
        for (address, loopback) in families {
            let of = |pair: &Pair| match address {
                Selector::Ip4Destination => pair.v4.clone(),
                _ => pair.v6.clone(),
            };
            let service = Rule::new(&virtual_).comment("virtual addresses of services");
            batch.add_rule(&service.load(with(address)).vmap(&of(&self.services)));
            // What is not a service's port there is nobody's.
            let kept = Rule::new(&arriving).load([address]).in_set(&of(&self.virtual_addresses));
            batch.add_rule(&kept.verdict(Verdict::Return));
            let published = Rule::new(&arriving).comment("published services");
            batch.add_rule(&published.load(with(address)).vmap(&of(&self.published)));
            let forward = Rule::new(&arriving).comment("forwards");
            let forward = forward.load(with(address)).map(&of(&self.forwards));
            batch.add_rule(&forward.dnat_loaded());
            // Connections to loopback addresses belong to the network process: they have a source
            // that no other host may see.
            let local = |what: &str| {
                let rule = Rule::new(&arriving).comment(what).outside(address, loopback);
                rule.is(Selector::FibDestinationType, LOCAL).load(PORT)
            };
            let published = local("services published at every address");
            batch.add_rule(&published.vmap(&of(&self.published_everywhere)));
            let forward = local("forwards of every address");
            batch.add_rule(&forward.map(&of(&self.forwards_everywhere)).dnat_loaded());
        }
        let bridge = &self.facts.bridge;
        batch.add_rule(&Rule::new(&prerouting).is(Selector::InputName, bridge).jump(&virtual_));
        let remote = Rule::new(&prerouting).load([Selector::InputName]).in_set(&self.tunnels);
        batch.add_rule(&remote.jump(&virtual_));
        batch.add_rule(&Rule::new(&prerouting).jump(&arriving));
        batch
            .add_rule(&Rule::new(&output).jump(&virtual_))
            .add_rule(&Rule::new(&output).jump(&arriving));
    }

    /// Sources: what comes back into the segment, and what leaves.
    fn leave(&self, batch: &mut Batch) {
        let facts = &self.facts;
        let chain = Chain::base(&self.table, "postrouting", Hook::NatPostrouting, Priority::SNAT);
        batch.add_chain(&chain);
        let families: [(IpAddr, IpNet, _, _); 2] = [
            (
                facts.gateway4.into(),
                facts.subnet4.into(),
                Selector::Ip4Source,
                Selector::Ip4Destination,
            ),
            (
                facts.gateway6.into(),
                facts.subnet6.into(),
                Selector::Ip6Source,
                Selector::Ip6Destination,
            ),
        ];
        for (gateway, subnet, source, destination) in families {
            batch.add_rule(
                &Rule::new(&chain)
                    .comment("what comes back into the network answers through the gateway")
                    .is(Selector::OutputName, &facts.bridge)
                    .within(source, subnet)
                    .within(destination, subnet)
                    .destination_translated()
                    .snat(gateway),
            );
            if facts.uplink == Uplink::Nat {
                // Networks that are open to each other see each other's true addresses, and so do remote machines.
                batch.add_rule(
                    &Rule::new(&chain)
                        .comment("what leaves has the address of the link that it leaves by")
                        .is_not(Selector::OutputName, &facts.bridge)
                        .within(source, subnet)
                        .load([Selector::OutputName])
                        .not_in_set(&self.others)
                        .load([Selector::OutputName])
                        .not_in_set(&self.tunnels)
                        .masquerade(),
                );
            }
        }
    }

    /// What passes between the segment and other links.
    fn pass(&self, batch: &mut Batch) {
        let facts = &self.facts;
        let forward = Chain::base(&self.table, "forward", Hook::Forward, Priority::FILTER);
        let (leaving, entering) = (self.chain("leaving"), self.chain("entering"));
        for chain in [&leaving, &entering, &forward] {
            batch.add_chain(chain);
        }
        let by = |link: Selector| Rule::new(&forward).is(link, &facts.bridge);
        let inside = by(Selector::InputName).comment("between instances of one network");
        batch.add_rule(&inside.is(Selector::OutputName, &facts.bridge).accept());
        batch.add_rule(&by(Selector::InputName).jump(&leaving));
        batch.add_rule(&by(Selector::OutputName).jump(&entering));
        for chain in [&leaving, &entering] {
            let rule = |what: &str| Rule::new(chain).comment(what);
            batch.add_rule(&rule("segments fit the way").clamp_mss_to_route());
            let invalid = Rule::new(chain).ct_state(CtState::INVALID);
            batch.add_rule(&dropped(invalid, "invalid"));
            let known = CtState::ESTABLISHED | CtState::RELATED;
            let known = rule("answers, and what goes on").ct_state(known);
            batch.add_rule(&known.accept());
            // What is published is for everybody, isolated or not.
            let published = rule("published services, forwards and services");
            batch.add_rule(&published.destination_translated().accept());
        }
        for (chain, link) in [(&leaving, Selector::OutputName), (&entering, Selector::InputName)] {
            let remote = Rule::new(chain).comment("remote machines").load([link]);
            batch.add_rule(&remote.in_set(&self.tunnels).accept());
        }
        let open = "other networks are open";
        let to_others = || {
            let rule = Rule::new(&leaving).comment(open);
            rule.load([Selector::OutputName]).in_set(&self.others)
        };
        let from_others = || {
            let rule = Rule::new(&entering).comment(open);
            rule.load([Selector::InputName]).in_set(&self.others)
        };
        if facts.isolate {
            let to_others = judged(to_others(), "other-network");
            batch.add_rule(&to_others.reject(Reject::Prohibited));
            batch.add_rule(&dropped(from_others(), "other-network"));
        } else {
            batch.add_rule(&to_others().accept()).add_rule(&from_others().accept());
        }
        match facts.uplink {
            Uplink::None => {
                let leaves = judged(Rule::new(&leaving), "uplink-none");
                batch.add_rule(&leaves.reject(Reject::Prohibited));
                batch.add_rule(&dropped(Rule::new(&entering), "uninvited"));
            }
            Uplink::Nat => {
                // A cloud's metadata service speaks with this machine, not with its guests.
                let first = Ipv4Addr::new(169, 254, 169, 254);
                let metadata4 = METADATA4.into_iter().chain([first]).map(IpAddr::V4);
                let metadata = metadata4.chain(METADATA6.map(IpAddr::V6));
                let metadata = metadata.map(|address| (IpNet::from(address), "metadata"));
                let link_local = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
                for (net, name) in metadata.chain([(link_local.into(), "link-local")]) {
                    let field = match net {
                        IpNet::V4(_) => Selector::Ip4Destination,
                        IpNet::V6(_) => Selector::Ip6Destination,
                    };
                    let rule = judged(Rule::new(&leaving).within(field, net), name);
                    batch.add_rule(&rule.reject(Reject::Prohibited));
                }
                // Nobody outside can know these addresses.
                batch.add_rule(&dropped(Rule::new(&entering), "uninvited"));
            }
            Uplink::Routed | Uplink::Card(_) => {}
        }
        batch.add_rule(&judged(Rule::new(&leaving), "outside"));
    }

    /// What guests want of this machine: the gateway's services, and what is named.
    fn enter_host(&self, batch: &mut Batch) {
        let facts = &self.facts;
        let input = Chain::base(&self.table, "input", Hook::Input, Priority::FILTER);
        let host = self.chain("host");
        batch.add_chain(&host).add_chain(&input);
        // Answers first: this machine asks by its own addresses, virtual ones among them.
        let known = CtState::ESTABLISHED | CtState::RELATED;
        let answers = Rule::new(&input).comment("answers to what this machine has asked");
        batch.add_rule(&answers.ct_state(known).accept());
        let requests = Rule::new(&input).comment("services that a network process answers itself");
        let requests = requests.is(Selector::CtMark, Value::number(ANSWERED));
        batch.add_rule(&requests.destination_translated().accept());
        let families = [
            (Selector::Ip4Destination, Selector::Ip4Source, IPV4),
            (Selector::Ip6Destination, Selector::Ip6Source, IPV6),
        ];
        for (address, _, family) in families {
            let of = |pair: &Pair| if family == IPV4 { pair.v4.clone() } else { pair.v6.clone() };
            let with = [address, Selector::L4Protocol, Selector::DestinationPort];
            const NOBODY: &str = "no instance of this service is healthy";
            for how in [Reject::TcpReset, Reject::PortUnreachable] {
                let refused = Rule::new(&input).comment(NOBODY);
                let refused = refused.load(with).in_set(&of(&self.refused));
                batch.add_rule(&refused.reject(how));
                let refused = Rule::new(&input)
                    .comment(NOBODY)
                    .is(Selector::NetworkProtocol, Value::byte(family))
                    .is(Selector::FibDestinationType, LOCAL)
                    .load([Selector::L4Protocol, Selector::DestinationPort])
                    .in_set(&of(&self.refused_everywhere));
                batch.add_rule(&refused.reject(how));
            }
            let direct = Rule::new(&input).comment("reached by its service only");
            let direct = direct.load(with).in_set(&of(&self.answered));
            batch.add_rule(&direct.reject(Reject::TcpReset));
            // A virtual address has nothing but its service, which has been translated by now.
            let bare = |protocol: Option<u8>| {
                let rule = Rule::new(&input).comment("the virtual address of a service, itself");
                let rule = match protocol {
                    Some(protocol) => rule.is(Selector::L4Protocol, Value::byte(protocol)),
                    None => rule,
                };
                rule.load([address]).in_set(&of(&self.virtual_addresses))
            };
            let echo = if family == IPV4 { ICMP } else { ICMPV6 };
            batch.add_rule(&bare(Some(echo)).accept());
            batch.add_rule(&bare(Some(TCP)).reject(Reject::TcpReset));
            batch.add_rule(&bare(None).reject(Reject::PortUnreachable));
        }
        if facts.alone {
            batch.add_rule(&Rule::new(&input).is(Selector::InputName, &facts.bridge).jump(&host));
        } else {
            for (source, set) in
                [(Selector::Ip4Source, &self.guests.v4), (Selector::Ip6Source, &self.guests.v6)]
            {
                let guest = Rule::new(&input).is(Selector::InputName, &facts.bridge);
                batch.add_rule(&guest.load([source]).in_set(set).jump(&host));
            }
        }
        self.host_services(&host, batch);
        let remote = || {
            let rule = Rule::new(&input).comment("this machine is closed to remote machines");
            rule.load([Selector::InputName]).in_set(&self.tunnels)
        };
        for protocol in [ICMP, ICMPV6] {
            let rule = remote().comment("ping and errors");
            batch.add_rule(&rule.is(Selector::L4Protocol, Value::byte(protocol)).accept());
        }
        batch.add_rule(&remote().reject(Reject::TcpReset));
        batch.add_rule(&remote().reject(Reject::Prohibited));
    }

    fn host_services(&self, host: &Chain, batch: &mut Batch) {
        let facts = &self.facts;
        for protocol in [ICMP, ICMPV6, IGMP] {
            // The bridge hears its own questions for memberships, too.
            let rule = Rule::new(host).comment("ping, errors and memberships");
            let rule = rule.is(Selector::L4Protocol, Value::byte(protocol));
            batch.add_rule(&rule.accept());
        }
        let mut accept = |address: Option<IpAddr>, protocol: u8, port: u16, name: Option<&str>| {
            let rule = Rule::new(host).comment("names and addresses");
            let rule = match address {
                Some(address @ IpAddr::V4(_)) => rule.is(Selector::Ip4Destination, address),
                Some(address @ IpAddr::V6(_)) => rule.is(Selector::Ip6Destination, address),
                None => rule,
            };
            let rule = rule.is(Selector::L4Protocol, Value::byte(protocol));
            let rule = rule.is(Selector::DestinationPort, Value::port(port));
            let rule = if let Some(name) = name { judged(rule, name) } else { rule };
            batch.add_rule(&rule.accept());
        };
        let named = Some("host-service");
        for gateway in [IpAddr::from(facts.gateway4), facts.gateway6.into()] {
            accept(Some(gateway), UDP, DNS, None);
            accept(Some(gateway), TCP, DNS, None);
        }
        accept(None, UDP, DHCP, None);
        accept(None, UDP, DHCPV6, None);
        for service in &facts.host {
            for protocol in [TCP, UDP] {
                for alias in facts.alias {
                    accept(Some(alias), protocol, service.port(), named);
                }
                if !service.ip().is_loopback() && !service.ip().is_unspecified() {
                    accept(Some(service.ip()), protocol, service.port(), named);
                }
            }
        }
        batch.add_rule(&judged(Rule::new(host), "host-address"));
        let closed = || Rule::new(host).comment("this machine is closed to instances");
        batch.add_rule(&closed().reject(Reject::TcpReset));
        batch.add_rule(&closed().reject(Reject::Prohibited));
    }

    /// From where the network process answers for some services to where it does for others.
    pub(super) fn answered_change<'a>(
        &self,
        before: impl IntoIterator<Item = &'a KernelService>,
        after: impl IntoIterator<Item = &'a KernelService>,
    ) -> Batch {
        let (before, after) = (answered_at(before), answered_at(after));
        let element = |to: &SocketAddr| Element::new(at(to.ip(), Protocol::Tcp, to.port()));
        let mut batch = Batch::new();
        for to in before.difference(&after) {
            batch.remove_elements(self.answered.of(to.ip()), [element(to)]);
        }
        for to in after.difference(&before) {
            batch.add_elements(self.answered.of(to.ip()), [element(to)]);
        }
        batch
    }

    /// Elements for links.
    pub(super) fn link_elements<'a>(
        others: impl IntoIterator<Item = &'a LinkName>,
    ) -> Vec<Element> {
        others.into_iter().map(Element::new).collect()
    }
}
