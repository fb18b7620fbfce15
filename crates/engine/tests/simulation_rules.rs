//! Rules about what goes from one instance to another and what comes in, in virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::{GATEWAY_MAC, Seen, Sim, config};
use netyard_engine::config::Config;
use netyard_engine::control::{Plugged, ServiceInstance, ServiceSpec, TurnPolicy};
use netyard_engine::delivery::Delivery;
use netyard_engine::edge::{PlugId, SocketId};
use netyard_engine::forward::Forward;
use netyard_engine::policy::Protocol;
use netyard_engine::policy::rules::{Direction, Rule, Rules, Verdict};
use netyard_wire::arp::{Arp, Operation};
use netyard_wire::build::TcpFrame;
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, IcmpError, Ndp, solicited_node};
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{Checksum, FrameBuf, MacAddr, Offload, SeqNumber, build, fragment};

/// `web` and `db`, and a third who only listens.
struct Yard {
    sim: Sim,
    web: Plugged,
    db: Plugged,
    other: Plugged,
}

fn rule(name: &str, verdict: Verdict, direction: Direction, others: &[&str]) -> Rule {
    Rule {
        name: name.into(),
        verdict,
        direction,
        instances: Vec::new(),
        others: others.iter().map(|it| it.parse().unwrap()).collect(),
        protocol: None,
        ports: Vec::new(),
    }
}

fn at(verdict: Verdict, protocol: Protocol, port: u16, others: &[&str]) -> Rule {
    let protocol = Some(protocol);
    Rule { protocol, ports: vec![port..=port], ..rule("port", verdict, Direction::Out, others) }
}

/// Nobody reaches `db`.
fn closed() -> Rule {
    rule("closed", Verdict::Deny, Direction::Out, &["instance:db"])
}

impl Yard {
    fn new(rules: Vec<Rule>) -> Self {
        Self::with(config(), rules)
    }

    fn with(config: Config, rules: Vec<Rule>) -> Self {
        let mut sim = Sim::with(config);
        let [web, db, other] = ["web", "db", "other"].map(|name| sim.plug(name));
        let mut yard = Self { sim, web, db, other };
        yard.rules(rules);
        yard
    }

    fn rules(&mut self, list: Vec<Rule>) {
        let rules = Rules { list, otherwise: Verdict::Allow };
        self.sim.network.set_rules(self.sim.now, "test", rules, &mut self.sim.world);
        self.sim.flush();
    }

    /// Sends a frame; what came out, on which plugs.
    fn send(&mut self, from: &Plugged, frame: &FrameBuf) -> Vec<(PlugId, FrameBuf)> {
        self.sim.frame(from.plug, frame.as_frame());
        self.sim.world.frames.drain(..).collect()
    }

    /// Whether a frame comes to a plug as it was sent.
    fn passes(&mut self, from: &Plugged, to: &Plugged, frame: &FrameBuf) -> bool {
        self.send(from, frame).contains(&(to.plug, frame.clone()))
    }

    /// Whether anything comes to a plug.
    fn reaches(&mut self, from: &Plugged, to: &Plugged, frame: &FrameBuf) -> bool {
        self.send(from, frame).iter().any(|(plug, _)| *plug == to.plug)
    }

    fn counted(&self, rule: &str) -> u64 {
        self.sim.network.state().policy.get(rule).copied().unwrap_or_default()
    }
}

fn address(plug: &Plugged, like: IpAddr) -> IpAddr {
    if like.is_ipv4() { plug.address4.into() } else { plug.address6.into() }
}

fn frame(write: impl FnOnce(&mut Vec<u8>) -> Offload) -> FrameBuf {
    let mut bytes = Vec::new();
    let offload = write(&mut bytes);
    FrameBuf { bytes, offload }
}

fn datagram(from: &Plugged, mac: MacAddr, ports: (u16, u16), to: IpAddr, len: usize) -> FrameBuf {
    let source = SocketAddr::new(address(from, to), ports.0);
    let to = SocketAddr::new(to, ports.1);
    frame(|out| build::udp_frame(out, from.mac, mac, source, to, 64, &vec![7; len]))
}

fn message(from: &Plugged, mac: MacAddr, to: IpAddr, message: &Icmp<'_>) -> FrameBuf {
    frame(|out| build::icmp_frame(out, from.mac, mac, address(from, to), to, 64, message))
}

const PING: Icmp<'_> = Icmp::EchoRequest { id: 7, seq: 1, data: b"data" };
const PONG: Icmp<'_> = Icmp::EchoReply { id: 7, seq: 1, data: b"data" };

/// A segment of which only addresses, ports and flags matter; its numbers are 1000 and 2000.
fn segment(from: &Plugged, mac: MacAddr, ports: (u16, u16), to: IpAddr, flags: Flags) -> FrameBuf {
    let header = TcpFrame {
        source_mac: from.mac,
        destination_mac: mac,
        source: SocketAddr::new(address(from, to), ports.0),
        destination: SocketAddr::new(to, ports.1),
        seq: SeqNumber(1000),
        ack: SeqNumber(2000),
        flags,
        window: u16::MAX,
        options: TcpOptions::default(),
        hop_limit: 64,
        traffic_class: 0,
        ip_id: 7,
    };
    frame(|out| {
        out.resize(header.header_len(), 0);
        header.emit(out, 1460)
    })
}

fn syn(from: &Plugged, to: &Plugged, port: u16) -> FrameBuf {
    segment(from, to.mac, (40_000, port), to.address4.into(), Flags::SYN)
}

/// The segments among frames, with whom they came to.
fn segments(frames: &[(PlugId, FrameBuf)]) -> Vec<(PlugId, Seen)> {
    frames.iter().filter_map(|(plug, frame)| Some((*plug, Seen::parse(frame)?))).collect()
}

/// Whether a guest is told that it may not.
fn is_told(frames: &[(PlugId, FrameBuf)], guest: &Plugged) -> bool {
    let says_so = |frame: &FrameBuf| {
        let (header, payload) = Ethernet::parse(&frame.bytes).unwrap();
        let ip = IpPacket::parse(header.ethertype, payload).unwrap();
        let Ok(Icmp::Unreachable { code, .. }) = Icmp::parse(&ip, Checksum::Present) else {
            return false;
        };
        let prohibited = IcmpError::Prohibited.message(ip.source.is_ipv4(), &[]);
        matches!(prohibited, Icmp::Unreachable { code: wanted, .. } if wanted == code)
    };
    frames.iter().any(|(plug, frame)| *plug == guest.plug && says_so(frame))
}

#[test]
fn what_is_denied_between_instances_is_refused_and_answers_pass() {
    let mut yard = Yard::new(vec![
        at(Verdict::Allow, Protocol::Tcp, 5432, &["instance:db"]),
        at(Verdict::Allow, Protocol::Udp, 53, &["instance:db"]),
        closed(),
    ]);
    let (web, db, other) = (yard.web.clone(), yard.db.clone(), yard.other.clone());
    // TCP: the one port, and its answers from whatever is there.
    assert!(yard.passes(&web, &db, &syn(&web, &db, 5432)));
    let both = Flags::SYN | Flags::ACK;
    let answer = segment(&db, web.mac, (5432, 40_000), web.address4.into(), both);
    assert!(yard.passes(&db, &web, &answer));
    let data = segment(&web, db.mac, (40_000, 5432), db.address4.into(), Flags::ACK);
    assert!(yard.passes(&web, &db, &data));
    let out = yard.send(&web, &syn(&web, &db, 22));
    let [(plug, reset)] = &segments(&out)[..] else { panic!("{out:?}") };
    assert_eq!((*plug, reset.flags, out.len()), (web.plug, Flags::RST | Flags::ACK, 1));
    assert_eq!((reset.source.port(), reset.ack), (22, SeqNumber(1001)));
    // UDP.
    let asks = datagram(&web, db.mac, (4000, 53), db.address6.into(), 9);
    assert!(yard.passes(&web, &db, &asks));
    assert!(yard.passes(&db, &web, &datagram(&db, web.mac, (53, 4000), web.address6.into(), 9)));
    let out = yard.send(&web, &datagram(&web, db.mac, (4000, 54), db.address6.into(), 9));
    assert!(is_told(&out, &web) && out.len() == 1, "{out:?}");
    // Pings: the other way they are allowed, and answered.
    assert!(!yard.reaches(&web, &db, &message(&web, db.mac, db.address4.into(), &PING)));
    assert!(!yard.reaches(&web, &db, &message(&web, db.mac, db.address4.into(), &PONG)));
    assert!(yard.passes(&db, &web, &message(&db, web.mac, web.address4.into(), &PING)));
    assert!(yard.passes(&web, &db, &message(&web, db.mac, db.address4.into(), &PONG)));
    // Nobody else is concerned.
    assert!(yard.passes(&web, &other, &syn(&web, &other, 22)));
    assert_eq!((yard.counted("test/port"), yard.counted("test/closed")), (2, 4));
    assert_eq!(yard.sim.network.state().drops["instance-policy"], 4);
}

#[test]
fn errors_about_what_was_let_pass_come_back() {
    let mut yard =
        Yard::new(vec![rule("in", Verdict::Deny, Direction::In, &["instance:*"]), closed()]);
    let (web, db, other) = (yard.web.clone(), yard.db.clone(), yard.other.clone());
    let mut only = at(Verdict::Allow, Protocol::Udp, 53, &["instance:web"]);
    (only.direction, only.instances) = (Direction::In, vec!["db".into()]);
    yard.rules(vec![only, rule("in", Verdict::Deny, Direction::In, &["instance:*"])]);
    let asks = datagram(&web, db.mac, (4000, 53), db.address4.into(), 9);
    assert!(yard.passes(&web, &db, &asks));
    let original = &asks.bytes[ethernet::HEADER_LEN..];
    let closed_port = IcmpError::PortUnreachable.message(true, original);
    let error = message(&db, web.mac, web.address4.into(), &closed_port);
    assert!(yard.passes(&db, &web, &error));
    // The same from somebody whom it does not concern, and about what was refused.
    assert!(!yard.reaches(
        &other,
        &web,
        &message(&other, web.mac, web.address4.into(), &closed_port)
    ));
    let refused = datagram(&web, db.mac, (4000, 54), db.address4.into(), 9);
    assert!(!yard.reaches(&web, &db, &refused));
    let original = &refused.bytes[ethernet::HEADER_LEN..];
    let error = IcmpError::PortUnreachable.message(true, original);
    assert!(!yard.reaches(&db, &web, &message(&db, web.mac, web.address4.into(), &error)));
}

#[test]
fn nothing_gets_around_a_deny() {
    let mut yard = Yard::new(vec![closed()]);
    let (web, db) = (yard.web.clone(), yard.db.clone());
    let (db4, db6): (IpAddr, IpAddr) = (db.address4.into(), db.address6.into());
    let mapped: IpAddr = db.address4.to_ipv6_mapped().into();
    let link_local: IpAddr = "fe80::9".parse().unwrap();
    let strange: IpAddr = "203.0.113.9".parse().unwrap();
    // Whatever address is written, the plug is the same; and so is everybody's, and a group's.
    let group: IpAddr = "224.0.0.251".parse().unwrap();
    let group6: IpAddr = "ff02::1".parse().unwrap();
    let all: IpAddr = "255.255.255.255".parse().unwrap();
    let subnet: IpAddr = "192.168.127.255".parse().unwrap();
    for to in [db4, db6, mapped, link_local, strange, group, group6, all, subnet] {
        for mac in [db.mac, MacAddr::BROADCAST, MacAddr::ipv6_multicast("ff02::1".parse().unwrap())]
        {
            let sent = [
                datagram(&web, mac, (4000, 53), to, 9),
                message(&web, mac, to, &PING),
                segment(&web, mac, (40_000, 80), to, Flags::SYN),
                segment(&web, mac, (40_000, 80), to, Flags::ACK),
                segment(&web, mac, (40_000, 80), to, Flags::SYN | Flags::ACK),
                segment(&web, mac, (80, 40_000), to, Flags::SYN | Flags::FIN),
            ];
            for frame in sent {
                assert!(!yard.reaches(&web, &db, &frame), "{to} by {mac}: {frame:?}");
            }
        }
    }
    // From its other addresses.
    let source = SocketAddr::new(link_local, 4000);
    let frame6 = frame(|out| {
        build::udp_frame(out, web.mac, db.mac, source, SocketAddr::new(db6, 53), 64, b"hello")
    });
    assert!(!yard.reaches(&web, &db, &frame6));
    // By way of the gateway.
    for to in [db4, db6] {
        let sent = [
            datagram(&web, GATEWAY_MAC, (4000, 53), to, 9),
            message(&web, GATEWAY_MAC, to, &PING),
            segment(&web, GATEWAY_MAC, (40_000, 80), to, Flags::SYN),
        ];
        for frame in sent {
            assert!(!yard.reaches(&web, &db, &frame), "{to} by the gateway");
        }
    }
    // What is neither IPv4 nor IPv6, and other protocols over them.
    let header = Ethernet { destination: db.mac, source: web.mac, ethertype: 0x88b5 };
    let unknown = frame(|out| {
        out.extend_from_slice(&header.emit());
        out.extend_from_slice(&[0; 46]);
        Offload::default()
    });
    assert!(!yard.reaches(&web, &db, &unknown));
    for protocol in [4, 41, 47, 50, 132] {
        let mut bytes = datagram(&web, db.mac, (4000, 53), db4, 64).bytes;
        bytes[ethernet::HEADER_LEN + 9] = protocol;
        fix_header(&mut bytes);
        let frame = FrameBuf { bytes, offload: Offload::default() };
        assert!(!yard.reaches(&web, &db, &frame), "protocol {protocol}");
    }
    // A source route is dropped wherever it leads.
    let mut bytes = datagram(&web, db.mac, (4000, 53), db4, 64).bytes;
    bytes[ethernet::HEADER_LEN] = 0x47;
    let option = [0x83, 7, 4, 192, 168, 127, 2, 0];
    bytes.splice(ethernet::HEADER_LEN + 20..ethernet::HEADER_LEN + 20, option);
    let len = u16::try_from(bytes.len() - ethernet::HEADER_LEN).unwrap().to_be_bytes();
    bytes[ethernet::HEADER_LEN + 2..ethernet::HEADER_LEN + 4].copy_from_slice(&len);
    fix_header(&mut bytes);
    let routed = FrameBuf { bytes, offload: Offload::default() };
    assert!(!yard.reaches(&web, &db, &routed));
    assert_eq!(yard.sim.network.state().drops["ipv4-source-route"], 1);
}

#[test]
fn a_protocol_behind_a_fragments_first_header_gets_around_no_deny() {
    for denied in [
        Rule { protocol: Some(Protocol::Udp), ..closed() },
        at(Verdict::Deny, Protocol::Udp, 53, &["instance:db"]),
    ] {
        let mut yard = Yard::new(vec![denied]);
        let (web, db) = (yard.web.clone(), yard.db.clone());
        for mac in [db.mac, MacAddr::BROADCAST] {
            let mut bytes = datagram(&web, mac, (4000, 53), db.address6.into(), 64).bytes;
            let behind = ethernet::HEADER_LEN + 40;
            // The first of several; options for the destination, of eight bytes, before UDP.
            let headers = [60, 0, 0, 1, 0, 0, 0, 7, 17, 0, 1, 4, 0, 0, 0, 0];
            bytes.splice(behind..behind, headers);
            let len = u16::try_from(bytes.len() - behind).unwrap().to_be_bytes();
            bytes[ethernet::HEADER_LEN + 4..ethernet::HEADER_LEN + 6].copy_from_slice(&len);
            bytes[ethernet::HEADER_LEN + 6] = 44;
            let frame = FrameBuf { bytes, offload: Offload::default() };
            assert!(!yard.reaches(&web, &db, &frame), "{mac}");
        }
    }
}

/// Sets the checksum of an IPv4 header.
fn fix_header(bytes: &mut [u8]) {
    let len = usize::from(bytes[ethernet::HEADER_LEN] & 15) * 4;
    let header = &mut bytes[ethernet::HEADER_LEN..ethernet::HEADER_LEN + len];
    header[10..12].fill(0);
    let words = header.chunks(2).map(|it| u32::from(u16::from_be_bytes([it[0], it[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
}

fn cut(whole: &FrameBuf, mtu: usize) -> Vec<FrameBuf> {
    let mut fragments = Vec::new();
    let emit = &mut |bytes: &[u8]| {
        fragments.push(FrameBuf { bytes: bytes.to_vec(), offload: Offload::default() });
    };
    fragment::complete_and_cut(whole.as_frame(), mtu, 7, emit).unwrap();
    fragments
}

#[test]
fn fragments_are_judged_when_they_are_whole() {
    let mut yard =
        Yard::new(vec![at(Verdict::Allow, Protocol::Udp, 53, &["instance:db"]), closed()]);
    let (web, db) = (yard.web.clone(), yard.db.clone());
    for to in [IpAddr::from(db.address4), db.address6.into()] {
        let allowed = cut(&datagram(&web, db.mac, (4000, 53), to, 3000), 1400);
        let (last, first) = allowed.split_last().unwrap();
        for part in first {
            assert_eq!(yard.send(&web, part), []);
        }
        let came = yard.send(&web, last);
        assert!(came.len() > 1 && came.iter().all(|(plug, _)| *plug == db.plug), "{came:?}");
        let payload: usize = came.iter().map(|(_, frame)| frame.bytes.len()).sum();
        assert!(payload > 3000, "{payload} bytes");
        for part in cut(&datagram(&web, db.mac, (4000, 54), to, 3000), 1400) {
            assert!(!yard.reaches(&web, &db, &part));
        }
    }
    // Those of TCP are not put together, and those for everybody show no ports.
    let mut syn = syn(&web, &db, 53);
    syn.bytes.extend_from_slice(&[0; 64]);
    let len = u16::try_from(syn.bytes.len() - ethernet::HEADER_LEN).unwrap().to_be_bytes();
    syn.bytes[ethernet::HEADER_LEN + 2..ethernet::HEADER_LEN + 4].copy_from_slice(&len);
    syn.bytes[ethernet::HEADER_LEN + 6] = 0x20;
    fix_header(&mut syn.bytes);
    syn.offload = Offload::default();
    assert!(!yard.reaches(&web, &db, &syn));
    let all =
        datagram(&web, MacAddr::BROADCAST, (4000, 53), "255.255.255.255".parse().unwrap(), 3000);
    for part in cut(&all, 1400) {
        assert!(!yard.reaches(&web, &db, &part));
    }
}

#[test]
fn the_network_itself_works_on() {
    let mut yard = Yard::new(vec![rule("none", Verdict::Deny, Direction::Out, &["instance:*"])]);
    let (web, db) = (yard.web.clone(), yard.db.clone());
    let arp = Arp {
        operation: Operation::Request,
        sender_mac: web.mac,
        sender_ip: web.address4,
        target_mac: MacAddr([0; 6]),
        target_ip: db.address4,
    };
    let asks = frame(|out| build::arp_frame(out, web.mac, MacAddr::BROADCAST, &arp));
    assert!(yard.passes(&web, &db, &asks));
    let group = solicited_node(db.address6);
    let solicits =
        Icmp::Ndp(Ndp::NeighborSolicitation { target: db.address6, source_mac: Some(web.mac) });
    let asks = frame(|out| {
        let mac = MacAddr::ipv6_multicast(group);
        build::icmp_frame(out, web.mac, mac, web.address6.into(), group.into(), 255, &solicits)
    });
    assert!(yard.reaches(&web, &db, &asks));
    let gateway: IpAddr = "192.168.127.1".parse().unwrap();
    let pong = yard.send(&web, &message(&web, GATEWAY_MAC, gateway, &PING));
    assert!(matches!(&pong[..], [(plug, _)] if *plug == web.plug), "{pong:?}");
    // What everybody hears comes to the gateway all the same, and to nobody else.
    let all = datagram(&web, MacAddr::BROADCAST, (9, 9), "255.255.255.255".parse().unwrap(), 9);
    assert_eq!(yard.send(&web, &all), []);
    let outside = yard
        .send(&web, &segment(&web, GATEWAY_MAC, (40_000, 80), [203, 0, 113, 9].into(), Flags::SYN));
    assert_eq!(outside, [], "it connects by a socket");
    assert_eq!(
        yard.sim.world.stream(yard.sim.world.last()).to,
        Some(([203, 0, 113, 9], 80).into())
    );
}

#[test]
fn rules_that_change_end_connections_between_instances() {
    let mut yard = Yard::new(vec![at(Verdict::Deny, Protocol::Udp, 1, &["instance:db"])]);
    let (web, db) = (yard.web.clone(), yard.db.clone());
    assert!(yard.passes(&web, &db, &syn(&web, &db, 5432)));
    let answer = segment(&db, web.mac, (5432, 40_000), web.address4.into(), Flags::ACK);
    let data = segment(&web, db.mac, (40_000, 5432), db.address4.into(), Flags::ACK);
    assert!(yard.passes(&db, &web, &answer) && yard.passes(&web, &db, &data));
    yard.rules(vec![closed()]);
    // Both ends are asked where they are, and their answers are reset.
    let probes: Vec<_> = yard.sim.world.frames.drain(..).collect();
    let probes = segments(&probes);
    let plugs: Vec<PlugId> = probes.iter().map(|(plug, _)| *plug).collect();
    assert_eq!(plugs, [db.plug, web.plug]);
    assert!(probes.iter().all(|(_, probe)| probe.flags == Flags::ACK), "{probes:?}");
    for (from, frame) in [(&db, &answer), (&web, &data)] {
        let out = segments(&yard.send(from, frame));
        assert!(out.iter().all(|(_, it)| it.has(Flags::RST)) && out.len() == 2, "{out:?}");
        // The sender's own number is what it waits for, and the receiver is told in its order.
        let of = |plug: &Plugged| out.iter().find(|(to, _)| *to == plug.plug).unwrap().1.clone();
        assert_eq!(of(from).seq, SeqNumber(2000));
        let receiver = if from.plug == web.plug { &db } else { &web };
        assert_eq!((of(receiver).seq, of(receiver).ack), (SeqNumber(1000), SeqNumber(2000)));
    }
    // A reset is not answered with another one.
    let reset = segment(&web, db.mac, (40_000, 5432), db.address4.into(), Flags::RST | Flags::ACK);
    assert_eq!(yard.send(&web, &reset), []);
    // Allowed again, it begins anew.
    yard.rules(vec![at(Verdict::Deny, Protocol::Udp, 1, &["instance:db"])]);
    assert!(yard.passes(&web, &db, &syn(&web, &db, 5432)));
    // UDP ends without a word, both ways: answers are no flow of their own.
    let mut deny_both = rule("both", Verdict::Deny, Direction::Out, &["instance:*"]);
    deny_both.protocol = Some(Protocol::Udp);
    let asks = datagram(&web, db.mac, (4000, 53), db.address4.into(), 9);
    let tells = datagram(&db, web.mac, (53, 4000), web.address4.into(), 9);
    assert!(yard.passes(&web, &db, &asks) && yard.passes(&db, &web, &tells));
    yard.rules(vec![deny_both]);
    assert!(!yard.reaches(&web, &db, &asks) && !yard.reaches(&db, &web, &tells));
}

#[test]
fn a_connection_older_than_the_rules_goes_on_if_either_end_might_have_begun_it() {
    let mut yard = Yard::new(Vec::new());
    let (web, db) = (yard.web.clone(), yard.db.clone());
    let data = segment(&web, db.mac, (40_000, 5432), db.address4.into(), Flags::ACK);
    let answer = segment(&db, web.mac, (5432, 40_000), web.address4.into(), Flags::ACK);
    assert!(yard.passes(&web, &db, &data));
    let mut only_back = rule("no-web", Verdict::Deny, Direction::Out, &["instance:web"]);
    only_back.instances = vec!["db".into()];
    // Nobody knows any more who has: its ports say nothing.
    yard.rules(vec![only_back.clone()]);
    assert!(!yard.passes(&db, &web, &answer) && !yard.passes(&web, &db, &data));
    let mut elsewhere = rule("no-other", Verdict::Deny, Direction::Out, &["instance:other"]);
    elsewhere.instances = vec!["web".into()];
    yard.rules(vec![elsewhere]);
    assert!(yard.passes(&db, &web, &answer) && yard.passes(&web, &db, &data));
    // Known now, by who has sent first since.
    yard.rules(vec![closed()]);
    assert!(!yard.passes(&db, &web, &answer) && !yard.passes(&web, &db, &data));
    // Nor may anybody seem to be in the middle of one.
    yard.rules(vec![rule("none", Verdict::Deny, Direction::In, &["instance:*"])]);
    let out = segments(&yard.send(
        &yard.other.clone(),
        &segment(&yard.other, db.mac, (80, 40_000), db.address4.into(), Flags::ACK),
    ));
    let [(plug, reset)] = &out[..] else { panic!("{out:?}") };
    assert_eq!((*plug, reset.flags, reset.seq), (yard.other.plug, Flags::RST, SeqNumber(2000)));
}

#[test]
fn a_connection_that_is_still_for_an_hour_goes_on_until_an_end_ends_it() {
    let mut no_web = rule("no-web", Verdict::Deny, Direction::Out, &["instance:web"]);
    no_web.instances = vec!["db".into()];
    let mut yard = Yard::new(vec![no_web]);
    let (web, db) = (yard.web.clone(), yard.db.clone());
    // The server has the higher port.
    let sent = |flags| segment(&web, db.mac, (4000, 50_051), db.address4.into(), flags);
    let answer = segment(&db, web.mac, (50_051, 4000), web.address4.into(), Flags::ACK);
    assert!(yard.passes(&web, &db, &sent(Flags::SYN)));
    yard.sim.advance(Duration::from_secs(3600));
    // The gateway has advertised itself meanwhile.
    yard.sim.world.frames.clear();
    assert!(yard.passes(&db, &web, &answer) && yard.passes(&web, &db, &sent(Flags::ACK)));
    assert!(yard.passes(&web, &db, &sent(Flags::FIN | Flags::ACK)));
    yard.sim.advance(Duration::from_secs(600));
    yard.sim.world.frames.clear();
    assert!(yard.passes(&db, &web, &answer), "the other half goes on");
    let last = Flags::FIN | Flags::ACK;
    assert!(yard.passes(
        &db,
        &web,
        &segment(&db, web.mac, (50_051, 4000), web.address4.into(), last)
    ));
    assert!(yard.passes(&db, &web, &answer), "what is on its way");
    // Another one with the same ports is a connection of its own, and is not forgotten with the former.
    assert!(yard.passes(&web, &db, &sent(Flags::SYN)));
    yard.sim.advance(Duration::from_secs(600));
    yard.sim.world.frames.clear();
    assert!(yard.passes(&db, &web, &answer));
    assert!(yard.passes(&web, &db, &sent(Flags::RST)));
    yard.sim.advance(Duration::from_secs(600));
    yard.sim.world.frames.clear();
    assert!(!yard.passes(&db, &web, &answer));
}

#[test]
fn what_was_still_for_long_is_judged_anew_and_a_plug_takes_its_flows_along() {
    let mut no_web = rule("no-web", Verdict::Deny, Direction::Out, &["instance:web"]);
    no_web.instances = vec!["db".into()];
    let mut yard = Yard::new(vec![no_web]);
    let (web, db) = (yard.web.clone(), yard.db.clone());
    let asks = datagram(&web, db.mac, (4000, 53), db.address4.into(), 9);
    let tells = datagram(&db, web.mac, (53, 4000), web.address4.into(), 9);
    assert!(!yard.reaches(&db, &web, &tells));
    assert!(yard.passes(&web, &db, &asks) && yard.passes(&db, &web, &tells));
    yard.sim.advance(Duration::from_secs(600));
    // The gateway has advertised itself meanwhile.
    yard.sim.world.frames.clear();
    assert!(!yard.reaches(&db, &web, &tells));
    assert!(yard.passes(&web, &db, &asks) && yard.passes(&db, &web, &tells));
    let now = yard.sim.now;
    assert!(yard.sim.network.remove_plug(now, "test", web.plug, &mut yard.sim.world));
    yard.web = yard.sim.plug("web");
    assert_eq!(yard.web.address4, web.address4);
    let web = yard.web.clone();
    let tells = datagram(&db, web.mac, (53, 4000), web.address4.into(), 9);
    assert!(!yard.reaches(&db, &web, &tells));
}

#[test]
fn who_begins_very_many_flows_makes_only_their_own_forgotten() {
    let mut no_web = rule("no-web", Verdict::Deny, Direction::Out, &["instance:web"]);
    no_web.instances = vec!["db".into()];
    let mut yard = Yard::new(vec![no_web]);
    let (web, db, other) = (yard.web.clone(), yard.db.clone(), yard.other.clone());
    let asks = datagram(&web, db.mac, (4000, 53), db.address4.into(), 9);
    let tells = datagram(&db, web.mac, (53, 4000), web.address4.into(), 9);
    assert!(yard.passes(&web, &db, &asks));
    for port in 1_000..=40_000 {
        let to = db.address4.into();
        assert!(yard.passes(&other, &db, &datagram(&other, db.mac, (4000, port), to, 1)));
    }
    assert!(yard.passes(&db, &web, &tells));
}

/// A forward to `web`, spliced or not.
fn forward(yard: &mut Yard, text: &str) -> SocketId {
    let forward = Forward { instance: "web".into(), ..text.parse::<Forward>().unwrap() };
    yard.sim.network.add_forward(yard.sim.now, "test", forward, None, &mut yard.sim.world).unwrap();
    yard.sim.world.last()
}

#[test]
fn clients_whom_the_rules_do_not_let_in_are_refused_before_a_byte() {
    let near = || rule("near", Verdict::Allow, Direction::In, &["192.0.2.0/24", "127.0.0.1"]);
    let rest = || rule("rest", Verdict::Deny, Direction::In, &[]);
    let mut yard = Yard::new(vec![near(), rest()]);
    let web = yard.web.clone();
    let listener = forward(&mut yard, "0.0.0.0:8080:80");
    yard.sim.world.inside.insert(web.plug, 8);
    for (client, admitted) in [
        ("192.0.2.9:5000", true),
        ("198.51.100.9:5000", false),
        ("[::ffff:192.0.2.9]:5001", true),
        ("[::ffff:198.51.100.9]:5001", false),
        ("[::1]:5000", false),
    ] {
        let socket = yard.sim.client(listener, client);
        assert_eq!(yard.sim.world.stream(socket).reset, !admitted, "{client}");
        assert_eq!(yard.sim.segment().is_some(), admitted, "{client}");
    }
    // A client of this machine is spliced, and goes when the rules say so; so does one by frames.
    let here = yard.sim.client(listener, "127.0.0.1:5000");
    let inside = yard.sim.world.last();
    assert_ne!(here, inside);
    yard.sim.writable(inside);
    let there = yard.sim.client(listener, "192.0.2.9:6000");
    yard.rules(vec![rule("near", Verdict::Allow, Direction::In, &["192.0.2.0/24"]), rest()]);
    assert!(yard.sim.world.stream(here).reset && yard.sim.world.stream(inside).reset);
    assert!(!yard.sim.world.stream(there).reset);
    let refused = yard.sim.client(listener, "127.0.0.1:5001");
    assert!(yard.sim.world.stream(refused).reset);
    assert_eq!(yard.sim.world.last(), refused, "nobody was asked inside");
    yard.rules(vec![rest()]);
    assert!(yard.sim.world.stream(there).reset);
    // The network's own connections, for checks, are no clients'.
    assert!(yard.counted("test/near") >= 4 && yard.counted("test/rest") >= 4);
}

#[test]
fn datagrams_of_clients_are_judged_too() {
    let mut yard =
        Yard::new(vec![rule("rest", Verdict::Deny, Direction::In, &["198.51.100.0/24"])]);
    let web = yard.web.clone();
    let socket = forward(&mut yard, "0.0.0.0:5353:53/udp");
    let (near, far) = ("192.0.2.9:5000".parse().unwrap(), "198.51.100.9:5000".parse().unwrap());
    yard.sim.datagram(socket, far, b"question");
    assert!(yard.sim.world.frames.is_empty());
    yard.sim.datagram(socket, near, b"question");
    assert_eq!(yard.sim.world.frames.drain(..).filter(|(plug, _)| *plug == web.plug).count(), 1);
    yard.rules(vec![rule("none", Verdict::Deny, Direction::In, &[])]);
    yard.sim.datagram(socket, near, b"question");
    assert!(yard.sim.world.frames.is_empty());
    assert_eq!((yard.counted("test/rest"), yard.counted("test/none")), (1, 1));
    assert_eq!(yard.sim.network.state().drops["udp-policy"], 2);
}

/// Publishes a service over `web` and `other`; its IPv4 address and its listener.
fn publish(yard: &mut Yard) -> (IpAddr, SocketId) {
    let (web, other) = (yard.web.clone(), yard.other.clone());
    let instances = [("web", &web), ("other", &other)].map(|(name, plug)| ServiceInstance {
        name: name.into(),
        address4: plug.address4,
        address6: plug.address6,
        weight: 1,
        eligible: true,
    });
    let spec = ServiceSpec {
        name: "front".into(),
        protocol: netyard_engine::forward::Protocol::Tcp,
        port: 80,
        publish: Some("0.0.0.0:8080".parse().unwrap()),
        delivery: Delivery { splice: Some(false), ..Delivery::default() },
        policy: TurnPolicy::RoundRobin,
        affinity: None,
        instances: instances.to_vec(),
    };
    let now = yard.sim.now;
    let (fronts, _) = yard.sim.network.set_service(now, "test", spec, &mut yard.sim.world).unwrap();
    (fronts[0], yard.sim.world.last())
}

#[test]
fn who_waits_does_not_go_on_to_an_instance_that_is_refused_meanwhile() {
    let mut yard = Yard::new(Vec::new());
    let (front, listener) = publish(&mut yard);
    let (web, db) = (yard.web.clone(), yard.db.clone());
    let client = yard.sim.client(listener, "192.0.2.9:5000");
    let asked = segments(&yard.sim.world.frames.drain(..).collect::<Vec<_>>());
    let [(plug, syn)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(*plug, web.plug);
    let refuse = |yard: &mut Yard, plug: &Plugged, syn: &Seen| {
        let header = TcpFrame {
            source_mac: plug.mac,
            destination_mac: GATEWAY_MAC,
            source: syn.destination,
            destination: syn.source,
            seq: SeqNumber(0),
            ack: syn.end(),
            flags: Flags::RST | Flags::ACK,
            window: 0,
            options: TcpOptions::default(),
            hop_limit: 64,
            traffic_class: 0,
            ip_id: 0,
        };
        let frame = frame(|out| {
            out.resize(header.header_len(), 0);
            header.emit(out, 1460)
        });
        segments(&yard.send(plug, &frame))
    };
    let no_other = |direction, others: &[&str]| {
        let instances = if direction == Direction::In { vec!["other".into()] } else { Vec::new() };
        Rule { instances, ..rule("no-other", Verdict::Deny, direction, others) }
    };
    yard.rules(vec![no_other(Direction::In, &[])]);
    assert_eq!(refuse(&mut yard, &web, syn), []);
    assert!(yard.sim.world.stream(client).reset);
    // The same of an instance that asks. The next turn is the other's.
    yard.rules(Vec::new());
    let syns = |port| segment(&db, GATEWAY_MAC, (port, 80), front, Flags::SYN);
    let first = segments(&yard.send(&db, &syns(5000)));
    let [(plug, syn)] = &first[..] else { panic!("{first:?}") };
    let (asked, refused) = match *plug == web.plug {
        true => (web.clone(), "instance:other"),
        false => (yard.other.clone(), "instance:web"),
    };
    yard.rules(vec![no_other(Direction::Out, &[refused])]);
    let told = refuse(&mut yard, &asked, syn);
    let [(plug, reset)] = &told[..] else { panic!("{told:?}") };
    assert!(*plug == db.plug && reset.has(Flags::RST), "{told:?}");
}

#[test]
fn a_service_is_judged_by_its_instances() {
    let mut yard = Yard::new(Vec::new());
    let (front, listener) = publish(&mut yard);
    let (web, db, other) = (yard.web.clone(), yard.db.clone(), yard.other.clone());
    let ask = |yard: &mut Yard, port: u16| {
        let frame = segment(&db, GATEWAY_MAC, (port, 80), front, Flags::SYN);
        let out = segments(&yard.send(&db, &frame));
        out.into_iter().map(|(plug, seen)| (plug, seen.flags)).collect::<Vec<_>>()
    };
    assert_eq!(ask(&mut yard, 5000), [(web.plug, Flags::SYN)]);
    assert_eq!(ask(&mut yard, 5001), [(other.plug, Flags::SYN)]);
    // Whom it may not reach is passed over, and costs nobody a turn.
    let no_web = rule("no-web", Verdict::Deny, Direction::Out, &["instance:web"]);
    yard.rules(vec![no_web.clone()]);
    // The connection that the instance had is over: its client is told.
    let told: Vec<_> = yard.sim.world.frames.drain(..).collect();
    assert!(segments(&told).iter().any(|(plug, it)| *plug == db.plug && it.has(Flags::RST)));
    for port in 5002..5006 {
        assert_eq!(ask(&mut yard, port), [(other.plug, Flags::SYN)], "{port}");
    }
    let turns = |yard: &Yard| -> Vec<u64> {
        let state = yard.sim.network.state();
        state.services[0].instances.iter().map(|it| it.turns).collect()
    };
    assert_eq!(turns(&yard), [1, 5]);
    yard.rules(vec![rule("nobody", Verdict::Deny, Direction::In, &["instance:*"])]);
    yard.sim.world.frames.clear();
    assert_eq!(ask(&mut yard, 5010), [(db.plug, Flags::RST | Flags::ACK)]);
    assert!(yard.counted("test/nobody") >= 1);
    // A client outside is another matter.
    let client = yard.sim.client(listener, "192.0.2.9:5000");
    assert!(!yard.sim.world.stream(client).reset && yard.sim.segment().is_some());
    yard.rules(vec![rule("in", Verdict::Deny, Direction::In, &["192.0.2.0/24"])]);
    assert!(yard.sim.world.stream(client).reset);
    let client = yard.sim.client(listener, "192.0.2.9:5001");
    assert!(yard.sim.world.stream(client).reset);
}

#[test]
fn without_rules_about_instances_nothing_is_remembered_or_counted() {
    let mut yard = Yard::new(vec![rule("out", Verdict::Deny, Direction::Out, &[])]);
    let (web, db) = (yard.web.clone(), yard.db.clone());
    assert!(yard.passes(&web, &db, &syn(&web, &db, 22)));
    let fragments = cut(&datagram(&web, db.mac, (4000, 53), db.address4.into(), 3000), 1400);
    for part in fragments {
        assert!(yard.passes(&web, &db, &part));
    }
    let state = yard.sim.network.state();
    assert!(state.policy.is_empty() && state.drops.is_empty(), "{state:?}");
}

#[test]
fn flows_tell_the_rule_by_which_they_may_go_on() {
    const OUTSIDE: &str = "203.0.113.5";
    let allowed = at(Verdict::Allow, Protocol::Udp, 53, &[OUTSIDE]);
    let from_outside = rule("clients", Verdict::Allow, Direction::In, &["198.51.100.0/24"]);
    let config = Config { host: vec!["127.0.0.1:5432".parse().unwrap()], ..config() };
    let mut yard = Yard::with(config, vec![allowed, from_outside]);
    let (web, db) = (yard.web.clone(), yard.db.clone());
    let (outside, gateway) = (OUTSIDE.parse().unwrap(), yard.sim.network.config().host4().into());
    for (from, port, to) in [(&web, 53, outside), (&db, 54, outside), (&db, 5432, gateway)] {
        yard.send(from, &datagram(from, GATEWAY_MAC, (1000 + port, port), to, 8));
    }
    let (_, listener) = yard.sim.publish(&["shop"], Delivery::default());
    yard.sim.client(listener, "198.51.100.9:5000");
    let flows = yard.sim.network.flows(yard.sim.now);
    let told: Vec<_> =
        flows.iter().map(|flow| (flow.remote.port(), flow.rule.as_deref())).collect();
    // Those of `db`, `shop` and `web`, in that order; a client is seen at a port of the gateway.
    let rules: Vec<_> = told.iter().map(|(_, rule)| *rule).collect();
    assert_eq!(
        rules,
        [Some("test/otherwise"), Some("host-service"), Some("test/clients"), Some("test/port"),],
        "{told:?}"
    );
    assert_eq!(flows[2].client, Some("198.51.100.9".parse().unwrap()));
}
