//! Ways around rules that were tried elsewhere, each by its name, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod common;

use std::net::{IpAddr, SocketAddr};

use common::{GATEWAY_MAC, Guest, Sim, config};
use netyard_engine::control::Plugged;
use netyard_engine::policy::Protocol;
use netyard_engine::policy::rules::{Direction, Rule, Rules, Verdict};
use netyard_wire::dns::{
    A, AAAA, Data, Flags as DnsFlags, IN, Query, Question, Rcode, Record, Response,
};
use netyard_wire::ethernet;
use netyard_wire::icmp::Icmp;
use netyard_wire::tcp::Flags;
use netyard_wire::{FrameBuf, Offload, build, fragment};

const RESOLVER: &str = "198.51.100.1:53";

/// A guest, another one, and a host with an address of its own.
struct Lab {
    sim: Sim,
    guest: Plugged,
    other: Plugged,
    port: u16,
}

fn rule(verdict: Verdict, others: &[&str]) -> Rule {
    Rule {
        name: "rule".into(),
        verdict,
        direction: Direction::Out,
        instances: Vec::new(),
        others: others.iter().map(|it| it.parse().unwrap()).collect(),
        protocol: None,
        ports: Vec::new(),
    }
}

/// A rule about a port of anybody.
fn port(verdict: Verdict, protocol: Protocol, port: u16) -> Rule {
    Rule { protocol: Some(protocol), ports: vec![port..=port], ..rule(verdict, &[]) }
}

fn frame(write: impl FnOnce(&mut Vec<u8>) -> Offload) -> FrameBuf {
    let mut bytes = Vec::new();
    let offload = write(&mut bytes);
    FrameBuf { bytes, offload }
}

impl Lab {
    fn new(list: Vec<Rule>, otherwise: Verdict) -> Self {
        let mut sim = Sim::new();
        sim.network.set_upstreams(vec![RESOLVER.parse().unwrap()]);
        sim.network.set_host_addresses(vec!["192.0.2.7".parse().unwrap()]);
        let [guest, other] = ["guest", "other"].map(|name| sim.plug(name));
        let rules = Rules { list, otherwise };
        sim.network.set_rules(sim.now, "test", rules, &mut sim.world);
        Self { sim, guest, other, port: 10_000 }
    }

    /// The guest asks for a name, and a resolver says that it stands for these addresses. False if it was not asked.
    fn learns(&mut self, name: &str, addresses: &[&str]) -> bool {
        let answers = addresses.iter().map(|address| match address.parse().unwrap() {
            IpAddr::V4(address) => (name, Data::A(address)),
            IpAddr::V6(address) => (name, Data::Aaaa(address)),
        });
        let answers: Vec<_> = answers.collect();
        let kind = if addresses.iter().any(|it| it.contains(':')) { AAAA } else { A };
        self.is_told(name, kind, &answers)
    }

    fn is_told(&mut self, name: &str, kind: u16, answers: &[(&str, Data)]) -> bool {
        let question = Question { name: name.parse().unwrap(), kind, class: IN };
        self.port += 1;
        let flags = DnsFlags::RECURSION_DESIRED;
        let query = Query { id: self.port, flags, question, edns: None };
        let before = self.sim.world.last();
        let gateway = SocketAddr::new(config().gateway4().into(), 53);
        self.send(self.datagram(gateway, &query.emit()));
        let socket = self.sim.world.last();
        if socket == before {
            return false;
        }
        let asked = Query::parse(&self.sim.world.stream(socket).outbox).unwrap();
        let mut response = Response::to(&asked, Rcode::NoError);
        let record = |(name, data): &(&str, Data)| Record {
            name: name.parse().unwrap(),
            ttl: 300,
            data: data.clone(),
        };
        response.answers = answers.iter().map(record).collect();
        self.sim.datagram(socket, RESOLVER.parse().unwrap(), &response.emit(1232));
        true
    }

    fn own(&self, like: SocketAddr) -> SocketAddr {
        let ip =
            if like.is_ipv4() { self.guest.address4.into() } else { self.guest.address6.into() };
        SocketAddr::new(ip, self.port)
    }

    fn datagram(&self, to: SocketAddr, payload: &[u8]) -> FrameBuf {
        let own = self.own(to);
        frame(|out| build::udp_frame(out, self.guest.mac, GATEWAY_MAC, own, to, 64, payload))
    }

    fn send(&mut self, frame: FrameBuf) {
        self.sim.frame(self.guest.plug, frame.as_frame());
    }

    /// Whether something of the host's was opened, or came to the other guest.
    fn gets_out(&mut self, act: impl FnOnce(&mut Self)) -> bool {
        self.port += 1;
        self.sim.world.frames.clear();
        let before = self.sim.world.last();
        act(self);
        let other = self.other.plug;
        let heard = self.sim.world.frames.drain(..).any(|(plug, _)| plug == other);
        heard || self.sim.world.last() != before
    }

    fn connects(&mut self, to: &str) -> bool {
        self.gets_out(|lab| {
            let mut guest = Guest::new(lab.guest.clone(), to);
            guest.own.set_port(lab.port);
            guest.send(&mut lab.sim, Flags::SYN, b"");
        })
    }

    fn tells(&mut self, to: &str) -> bool {
        self.gets_out(|lab| {
            let frame = lab.datagram(to.parse().unwrap(), b"hello");
            lab.send(frame);
        })
    }

    fn pings(&mut self, to: &str) -> bool {
        self.gets_out(|lab| {
            let to: SocketAddr = to.parse().unwrap();
            let message = Icmp::EchoRequest { id: lab.port, seq: 1, data: b"data" };
            let (own, mac) = (lab.own(to).ip(), lab.guest.mac);
            let ping =
                frame(|out| build::icmp_frame(out, mac, GATEWAY_MAC, own, to.ip(), 64, &message));
            lab.send(ping);
        })
    }

    fn reaches(&mut self, to: &str) -> bool {
        // Each by itself: none of them may.
        let ways = [self.connects(to), self.tells(to), self.pings(to)];
        assert!(ways == [ways[0]; 3], "{to}: {ways:?}");
        ways[0]
    }
}

#[test]
fn dns_rebinding_opens_nothing_of_the_host_and_its_neighbourhood() {
    let inside4 = [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "169.254.169.254",
        "100.100.100.200",
        "192.0.2.7",
        "192.168.127.254",
        "192.168.127.99",
        "255.255.255.255",
        "224.0.0.1",
    ];
    let inside6 = [
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::c000:207",
        "2002:7f00:1::1",
        "2002:c000:207::1",
        "fd00:ec2::254",
        "fe80::1",
        "ff02::1",
    ];
    // By name, and everything: a rule that allows does not open what every network keeps closed.
    for (list, otherwise) in [
        (vec![rule(Verdict::Allow, &["*.rebind.example"])], Verdict::Deny),
        (Vec::new(), Verdict::Allow),
    ] {
        let mut lab = Lab::new(list, otherwise);
        for addresses in [&inside4[..], &inside6] {
            for (number, address) in addresses.iter().enumerate() {
                assert!(lab.learns(&format!("n{number}.rebind.example"), &[address]));
                let text = SocketAddr::new(address.parse().unwrap(), 80).to_string();
                assert!(!lab.reaches(&text), "{text}");
            }
        }
        // The same name, first with an honest address, then with others.
        assert!(lab.learns("twice.rebind.example", &["203.0.113.5"]));
        assert!(lab.connects("203.0.113.5:80"));
        assert!(!lab.connects("127.0.0.1:80") && !lab.connects("192.0.2.7:80"));
    }
}

#[test]
fn dns_rebinding_to_an_address_that_a_rule_denies_opens_nothing() {
    let list = vec![
        rule(Verdict::Deny, &["10.0.0.0/8", "192.168.0.0/16", "fd00::/8"]),
        rule(Verdict::Allow, &["*.rebind.example"]),
    ];
    let mut lab = Lab::new(list, Verdict::Deny);
    assert!(lab.learns("a.rebind.example", &["10.0.0.5", "192.168.1.1", "203.0.113.5"]));
    assert!(lab.learns("b.rebind.example", &["fd12::5", "::ffff:10.0.0.5", "64:ff9b::a00:5"]));
    let closed = ["10.0.0.5:80", "192.168.1.1:80", "[fd12::5]:80"];
    for to in closed.into_iter().chain(["[::ffff:10.0.0.5]:80", "[64:ff9b::a00:5]:80"]) {
        assert!(!lab.reaches(to), "{to}");
    }
    assert!(lab.reaches("203.0.113.5:80"));
}

#[test]
fn an_address_literal_is_not_open_by_a_name_that_stands_for_another_one() {
    let mut lab = Lab::new(vec![rule(Verdict::Allow, &["shop.example"])], Verdict::Deny);
    assert!(!lab.reaches("203.0.113.5:443"), "before it has asked");
    assert!(lab.learns("shop.example", &["203.0.113.5"]));
    assert!(lab.reaches("203.0.113.5:443"));
    for to in [
        "203.0.113.6:443",
        "[2001:db8::5]:443",
        "[::ffff:203.0.113.6]:443",
        "[64:ff9b::cb00:7106]:443",
        "[2002:cb00:7106::1]:443",
    ] {
        assert!(!lab.reaches(to), "{to}");
    }
    // Names that look alike are not asked for at all, and so stand for nothing.
    for name in ["evilshop.example", "shop.example.evil.test", "www.shop.example"] {
        assert!(!lab.learns(name, &["203.0.113.66"]), "{name}");
    }
    assert!(!lab.reaches("203.0.113.66:443"));
}

#[test]
fn other_forms_of_a_denied_address_are_denied() {
    let mut lab = Lab::new(vec![rule(Verdict::Deny, &["203.0.113.0/24"])], Verdict::Allow);
    for to in [
        "203.0.113.5:80",
        "[::ffff:203.0.113.5]:80",
        "[::203.0.113.5]:80",
        "[64:ff9b::cb00:7105]:80",
        "[64:ff9b:1::cb00:7105]:80",
        "[2002:cb00:7105::1]:80",
    ] {
        assert!(!lab.reaches(to), "{to}");
    }
    assert!(lab.reaches("198.51.100.9:80"));
}

#[test]
fn fragments_hide_no_port() {
    let denied =
        vec![port(Verdict::Deny, Protocol::Udp, 53), port(Verdict::Deny, Protocol::Tcp, 80)];
    for to in ["203.0.113.5:53", "[2001:db8::5]:53"] {
        let mut lab = Lab::new(denied.clone(), Verdict::Allow);
        let to: SocketAddr = to.parse().unwrap();
        let open = SocketAddr::new(to.ip(), 54);
        let cut = |lab: &Lab, to, id, mtu| {
            let mut parts = Vec::new();
            let emit = &mut |bytes: &[u8]| {
                parts.push(FrameBuf { bytes: bytes.to_vec(), offload: Offload::default() });
            };
            let whole = lab.datagram(to, &[7; 400]);
            fragment::complete_and_cut(whole.as_frame(), mtu, id, emit).unwrap();
            parts
        };
        // Whole, small, the last one first, and the smallest of all.
        let mtu = if to.is_ipv4() { 28 } else { 56 };
        for (id, mtu) in [(1, 300), (2, mtu)] {
            let mut parts = cut(&lab, to, id, mtu);
            assert!(!lab.gets_out(|lab| parts.iter().for_each(|part| lab.send(part.clone()))));
            parts.reverse();
            for part in &mut parts {
                // Others than before: the same would complete what is kept.
                let at = if to.is_ipv4() { 14 + 4 } else { 14 + 40 + 4 };
                part.bytes[at] ^= 0x40;
                if to.is_ipv4() {
                    part.bytes[14 + 10] ^= 0x40;
                }
            }
            assert!(!lab.gets_out(|lab| parts.into_iter().for_each(|part| lab.send(part))));
        }
        let allowed = cut(&lab, open, 3, 300);
        assert!(lab.gets_out(|lab| allowed.into_iter().for_each(|part| lab.send(part))));
        // A first fragment that is allowed, and the same again with the port that is not.
        let (allowed, hidden) = (cut(&lab, open, 4, 300), cut(&lab, to, 4, 300));
        let order = [&allowed[0], &hidden[0]].into_iter().chain(&hidden[1..]);
        assert!(!lab.gets_out(|lab| order.for_each(|part| lab.send(part.clone()))));
        let order = [&hidden[0], &allowed[0]].into_iter().chain(&allowed[1..]);
        assert!(!lab.gets_out(|lab| order.for_each(|part| lab.send(part.clone()))));
        assert!(!lab.gets_out(|lab| {
            // The header of a datagram to an open port, in one fragment of which more should follow.
            let mut alone = cut(lab, open, 5, 300).swap_remove(0);
            alone.bytes[ethernet::HEADER_LEN + if to.is_ipv4() { 8 } else { 7 }] = 64;
            lab.send(alone);
        }));
    }
}

#[test]
fn extension_headers_hide_no_port() {
    let denied = vec![port(Verdict::Deny, Protocol::Udp, 53)];
    let mut lab = Lab::new(denied, Verdict::Allow);
    // Options for each hop, for the destination, and a routing header with nothing left to visit.
    for (kind, header) in [
        (0, [17, 0, 1, 4, 0, 0, 0, 0]),
        (60, [17, 0, 1, 4, 0, 0, 0, 0]),
        (43, [17, 0, 0, 0, 0, 0, 0, 0]),
        (44, [17, 0, 0, 0, 0, 0, 0, 9]),
    ] {
        assert!(
            !lab.gets_out(|lab| {
                let mut frame = lab.datagram("[2001:db8::5]:53".parse().unwrap(), &[7; 64]);
                let at = ethernet::HEADER_LEN;
                frame.bytes[at + 6] = kind;
                frame.bytes.splice(at + 40..at + 40, header);
                let len = u16::try_from(frame.bytes.len() - at - 40).unwrap().to_be_bytes();
                frame.bytes[at + 4..at + 6].copy_from_slice(&len);
                frame.offload = Offload { checksum: netyard_wire::Checksum::Valid, gso: None };
                lab.send(frame);
            }),
            "header {kind}"
        );
    }
}

/// What rules claim of other resolvers: that they are destinations like all others.
#[test]
fn other_resolvers_are_as_open_as_the_rules_say() {
    // Where names open addresses, those that were asked for elsewhere open none, and elsewhere is closed itself.
    let mut lab = Lab::new(vec![rule(Verdict::Allow, &["shop.example"])], Verdict::Deny);
    for to in ["192.0.2.53:53", "192.0.2.53:853", "192.0.2.53:443", "[2001:db8::53]:853"] {
        assert!(!lab.connects(to) && !lab.tells(to), "{to}");
    }
    // Where ports are denied, DNS over UDP, TCP, TLS, and QUIC is; over HTTPS it is a page like others.
    let mut list: Vec<_> = [53, 853].map(|it| port(Verdict::Deny, Protocol::Tcp, it)).into();
    list.extend([53, 853].map(|it| port(Verdict::Deny, Protocol::Udp, it)));
    let mut lab = Lab::new(list, Verdict::Allow);
    for to in ["192.0.2.53:53", "192.0.2.53:853", "[2001:db8::53]:53", "[2001:db8::53]:853"] {
        assert!(!lab.connects(to) && !lab.tells(to), "{to}");
    }
    assert!(lab.connects("192.0.2.53:443"));
}
