//! The nftables table that keeps guests honest: each plug sends with its own addresses only.
//!
//! It sees frames before the bridge does, and before `br_netfilter`. What comes in by a plug must
//! have the plug's hardware address; then, by what the frame carries:
//!
//! * ARP (RFC 826): sender's addresses are the plug's, or the IPv4 address is not yet known and the
//!   plug's is asked for (RFC 5227 section 2.1.1);
//! * IPv4: the source is the plug's, or a DHCP client's before it has one. DHCP servers' answers
//!   and all else is dropped;
//! * IPv6: the source is the plug's or a link-local one, but not the gateway's; neighbour
//!   advertisements speak of such addresses only, and so do solicitations that ask whether an
//!   address is free (RFC 4862 section 5.4.2); router advertisements, redirects and DHCPv6 servers'
//!   answers are dropped (RFC 6105, RFC 7610);
//! * everything else, VLAN tags included, is dropped.
//!
//! With `br_netfilter` a connection whose destination is translated into the same segment is bridged
//! and not routed. So that an instance can reach itself by its service, ports are hairpins; what
//! an instance says to everybody is kept from coming back to it here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netyard_engine::control::Plugged;
use netyard_link::nft::{
    Batch, Chain, Element, Family, Hook, Priority, Rule, Selector, Set, Table, Type, Value,
};
use netyard_link::rtnetlink::LinkName;

use super::counters::dropped;

const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Ports of DHCP servers and clients (RFC 2131 section 4.1).
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// The port of DHCPv6 servers (RFC 8415 section 7.2).
const DHCPV6_SERVER: u16 = 547;

/// ICMPv6 types (RFC 4861 section 4).
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// The table with its sets.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    pub(super) table: Table,
    plugs: Set,
    senders: Set,
    senders4: Set,
    senders6: Set,
    /// Addresses that a plug may claim.
    targets4: Set,
    targets6: Set,
    /// Each plug, twice.
    back: Set,
    /// The gateway's, which nobody else may have.
    link_local: Ipv6Addr,
}

/// One plug as it may send.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    pub(super) link: LinkName,
    pub(super) plugged: Plugged,
}

impl Guard {
    pub(super) fn new(network: &str, link_local: Ipv6Addr) -> Self {
        let table = Table::new(Family::Bridge, &format!("netyard-{network}")).owned(true);
        let set = |name: &str, key: &[Type]| Set::new(&table, name, key.iter().copied());
        Self {
            plugs: set("plugs", &[Type::LinkName]),
            senders: set("senders", &[Type::LinkName, Type::Mac]),
            senders4: set("senders4", &[Type::LinkName, Type::Mac, Type::Ipv4]),
            senders6: set("senders6", &[Type::LinkName, Type::Mac, Type::Ipv6]),
            targets4: set("targets4", &[Type::LinkName, Type::Ipv4]),
            targets6: set("targets6", &[Type::LinkName, Type::Ipv6]),
            back: set("back", &[Type::LinkName, Type::LinkName]),
            link_local,
            table,
        }
    }

    /// Everything in the table, without plugs.
    pub(super) fn content(&self) -> Batch {
        let mut batch = Batch::new();
        let Self { plugs, senders, senders4, senders6, targets4, targets6, back, .. } = self;
        for set in [plugs, senders, senders4, senders6, targets4, targets6, back] {
            batch.add_set(set);
        }
        let prerouting = Priority::BRIDGE_FILTER;
        let entry = Chain::base(&self.table, "prerouting", Hook::Prerouting, prerouting);
        let plug = Chain::regular(&self.table, "plug");
        let [ipv4, ipv6, source6] =
            ["ipv4", "ipv6", "source6"].map(|name| Chain::regular(&self.table, name));
        let forward = Chain::base(&self.table, "forward", Hook::Forward, Priority::BRIDGE_FILTER);
        for chain in [&source6, &ipv4, &ipv6, &plug, &entry, &forward] {
            batch.add_chain(chain);
        }
        // The first bit of a hardware address: for several (IEEE 802, section 8.2).
        let first = Selector::Payload { base: 0, offset: 0, len: 1 };
        let several = Rule::new(&forward).comment("nobody hears himself").bits(
            first,
            Value::byte(1),
            Value::byte(1),
        );
        let back = several.load([Selector::InputName, Selector::OutputName]);
        batch.add_rule(&back.in_set(&self.back).drop());
        let plugs = Rule::new(&entry).load([Selector::InputName]).in_set(&self.plugs);
        batch.add_rule(&plugs.goto(&plug));

        let sender = [Selector::InputName, Selector::EtherSource];
        let liar = Rule::new(&plug).load(sender).not_in_set(&self.senders);
        batch.add_rule(&dropped(liar, "spoofed-mac"));
        // As it is in the frame: what the kernel calls a frame's protocol is behind a VLAN tag.
        let kind = Selector::Payload { base: 0, offset: 12, len: 2 };
        let carries = |value| Rule::new(&plug).is(kind, Value::word(value));
        batch.add_rule(&carries(IPV4).goto(&ipv4)).add_rule(&carries(IPV6).goto(&ipv6));
        // Of ARP: the sender's hardware address is the plug's, and so is its address if it has one.
        let arp = [Selector::InputName, Selector::ArpSenderMac];
        let target = [Selector::InputName, Selector::ArpTargetIp];
        let probe = carries(ARP).comment("asks whether the plug's own address is free");
        let probe = probe.is(Selector::ArpSenderIp, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let probe = probe.load(arp).in_set(&self.senders).load(target).in_set(&self.targets4);
        batch.add_rule(&probe.accept());
        let arp = [Selector::InputName, Selector::ArpSenderMac, Selector::ArpSenderIp];
        let honest = |rule: Rule| rule.load(arp).in_set(&self.senders4).accept();
        batch.add_rule(&honest(carries(ARP)));
        batch.add_rule(&dropped(carries(ARP), "spoofed-arp"));
        batch.add_rule(&dropped(Rule::new(&plug), "unknown-ethertype"));
        self.ipv4(&ipv4, &mut batch);
        self.source6(&source6, &mut batch);
        self.ipv6(&ipv6, &source6, &mut batch);
        batch
    }

    fn ipv4(&self, chain: &Chain, batch: &mut Batch) {
        let udp = |rule: Rule, field, port| {
            let rule = rule.is(Selector::L4Protocol, Value::byte(UDP));
            rule.is(field, Value::port(port))
        };
        let server = udp(Rule::new(chain), Selector::SourcePort, DHCP_SERVER);
        batch.add_rule(&dropped(server, "rogue-dhcp"));
        let sender = [Selector::InputName, Selector::EtherSource, Selector::Ip4Source];
        let own = Rule::new(chain).comment("the plug's own address");
        batch.add_rule(&own.load(sender).in_set(&self.senders4).accept());
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let client = Rule::new(chain).is(Selector::Ip4Source, nobody);
        let client = udp(client, Selector::SourcePort, DHCP_CLIENT);
        let client = client.is(Selector::DestinationPort, Value::port(DHCP_SERVER));
        batch.add_rule(&client.accept());
        batch.add_rule(&dropped(Rule::new(chain), "spoofed-ip"));
    }

    fn ipv6(&self, chain: &Chain, source6: &Chain, batch: &mut Batch) {
        let icmp = |kind| {
            let rule = Rule::new(chain).is(Selector::L4Protocol, Value::byte(ICMPV6));
            rule.is(Selector::Icmp6Type, Value::byte(kind))
        };
        batch.add_rule(&dropped(icmp(ROUTER_ADVERTISEMENT), "rogue-router"));
        batch.add_rule(&dropped(icmp(REDIRECT), "rogue-redirect"));
        let server = Rule::new(chain).is(Selector::L4Protocol, Value::byte(UDP));
        let server = server.is(Selector::SourcePort, Value::port(DHCPV6_SERVER));
        batch.add_rule(&dropped(server, "rogue-dhcp"));
        let gateway = IpAddr::V6(self.link_local);
        let impostor = Rule::new(chain).is(Selector::Ip6Source, gateway);
        batch.add_rule(&dropped(impostor, "spoofed-ip"));
        // Advertisements of others' addresses end here, whoever sends them.
        let advertises = || icmp(NEIGHBOR_ADVERTISEMENT);
        let impostor = advertises().is(Selector::NeighborTarget, gateway);
        batch.add_rule(&dropped(impostor, "spoofed-ndp"));
        // Whoever has no address yet asks whether one is free: nobody else's.
        let probes = || {
            icmp(NEIGHBOR_SOLICITATION).is(Selector::Ip6Source, IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        };
        let impostor = probes().is(Selector::NeighborTarget, gateway);
        batch.add_rule(&dropped(impostor, "spoofed-ndp"));
        let target = [Selector::InputName, Selector::NeighborTarget];
        let link_local = Selector::Payload { base: 2, offset: 8, len: 2 };
        for claims in [&advertises as &dyn Fn() -> Rule, &probes] {
            let own = claims().load(target).in_set(&self.targets6);
            let on_link = claims().bits(link_local, Value::word(0xffc0), Value::word(0xfe80));
            batch.add_rule(&own.jump(source6)).add_rule(&on_link.jump(source6));
            batch.add_rule(&dropped(claims(), "spoofed-ndp"));
        }
        batch.add_rule(&Rule::new(chain).jump(source6));
        batch.add_rule(&dropped(Rule::new(chain), "spoofed-ip"));
    }

    /// The source addresses that a plug may send from; whoever returns from here may not.
    fn source6(&self, chain: &Chain, batch: &mut Batch) {
        let sender = [Selector::InputName, Selector::EtherSource, Selector::Ip6Source];
        let own = Rule::new(chain).comment("the plug's own address");
        batch.add_rule(&own.load(sender).in_set(&self.senders6).accept());
        let link = IpNet::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10);
        batch.add_rule(&Rule::new(chain).within(Selector::Ip6Source, link).accept());
        // Duplicate address detection and listener reports come before there is an address.
        let nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let early = Rule::new(chain).is(Selector::Ip6Source, nobody);
        batch.add_rule(&early.is(Selector::L4Protocol, Value::byte(ICMPV6)).accept());
    }

    /// Lets a plug send; the link need not be there yet.
    pub(super) fn add(&self, sender: &Sender, batch: &mut Batch) {
        for (set, key) in self.keys(sender) {
            batch.add_elements(set, [Element::new(key)]);
        }
    }

    /// Forgets a plug.
    pub(super) fn remove(&self, sender: &Sender, batch: &mut Batch) {
        // The other way round: a plug that is guarded and unknown sends nothing.
        for (set, key) in self.keys(sender).into_iter().rev() {
            batch.remove_elements(set, [Element::new(key)]);
        }
    }

    fn keys(&self, sender: &Sender) -> [(&Set, Value); 7] {
        let link = || Value::from(&sender.link);
        let Plugged { mac, address4, address6, .. } = sender.plugged;
        [
            (&self.back, Value::concat([link(), link()])),
            (&self.plugs, link()),
            (&self.senders, Value::concat([link(), mac.into()])),
            (&self.senders4, Value::concat([link(), mac.into(), address4.into()])),
            (&self.senders6, Value::concat([link(), mac.into(), address6.into()])),
            (&self.targets4, Value::concat([link(), address4.into()])),
            (&self.targets6, Value::concat([link(), address6.into()])),
        ]
    }
}
