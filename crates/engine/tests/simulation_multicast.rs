//! Who hears what is sent to a multicast group, and what the gateway asks to know it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use common::{GATEWAY_MAC, Sim, config};
use netyard_engine::config::Config;
use netyard_engine::control::Plugged;
use netyard_wire::ethernet::Ethernet;
use netyard_wire::icmp::{Icmp, Ndp};
use netyard_wire::ip::{ICMPV6, IGMP, IpPacket};
use netyard_wire::membership::Membership;
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Frame, FrameBuf, MacAddr, build};

const SSDP: &str = "239.255.255.250";
const SSDP6: &str = "ff05::c";
/// After that a new plug has been asked, and has had its time to answer.
const SETTLED: Duration = Duration::from_secs(42);

const V1: u8 = 0x12;
const V2: u8 = 0x16;
const LEAVE: u8 = 0x17;
const CHANGE_TO_INCLUDE: u8 = 3;
const CHANGE_TO_EXCLUDE: u8 = 4;

/// Three guests, who have been asked.
fn three() -> (Sim, [Plugged; 3]) {
    of(config())
}

fn of(config: Config) -> (Sim, [Plugged; 3]) {
    let mut sim = Sim::with(config);
    let plugs = ["one", "two", "three"].map(|name| sim.plug(name));
    sim.advance(SETTLED);
    sim.world.frames.clear();
    (sim, plugs)
}

fn mac_of(group: IpAddr) -> MacAddr {
    match group {
        IpAddr::V4(group) => MacAddr::ipv4_multicast(group),
        IpAddr::V6(group) => MacAddr::ipv6_multicast(group),
    }
}

/// A guest sends a packet to a group.
fn send(sim: &mut Sim, from: &Plugged, source: IpAddr, to: IpAddr, protocol: u8, bytes: &[u8]) {
    let mut frame = Vec::new();
    let offload =
        build::raw_frame(&mut frame, from.mac, mac_of(to), source, to, 1, protocol, bytes);
    sim.frame(from.plug, Frame { bytes: &frame, offload });
}

fn igmp(sim: &mut Sim, from: &Plugged, message: &[u8]) {
    let mut message = message.to_vec();
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
    }
    let sum = netyard_wire::checksum::finish(netyard_wire::checksum::sum(&message));
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    let routers = Ipv4Addr::new(224, 0, 0, 22).into();
    send(sim, from, from.address4.into(), routers, IGMP, &message);
}

/// A message of versions 1 and 2.
fn igmp_word(sim: &mut Sim, from: &Plugged, kind: u8, group: &str) {
    let group: Ipv4Addr = group.parse().unwrap();
    igmp(sim, from, &[&[kind, 0, 0, 0][..], &group.octets()].concat());
}

/// A message of the newest version of either family with one record.
fn report(sim: &mut Sim, from: &Plugged, kind: u8, group: &str) {
    match group.parse().unwrap() {
        IpAddr::V4(group) => {
            let header = [0x22, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0];
            igmp(sim, from, &[&header[..], &group.octets()].concat());
        }
        IpAddr::V6(group) => {
            let header = [143, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0];
            mld(sim, from, &[&header[..], &group.octets()].concat());
        }
    }
}

fn mld(sim: &mut Sim, from: &Plugged, message: &[u8]) {
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16).into();
    send(sim, from, from.mac.link_local().into(), routers, ICMPV6, message);
}

fn join(sim: &mut Sim, from: &Plugged, group: &str) {
    report(sim, from, CHANGE_TO_EXCLUDE, group);
}

fn leave(sim: &mut Sim, from: &Plugged, group: &str) {
    report(sim, from, CHANGE_TO_INCLUDE, group);
}

/// A guest says something to a group: the names of those who hear it.
fn heard(sim: &mut Sim, plugs: &[Plugged; 3], from: usize, group: &str) -> Vec<usize> {
    let from = &plugs[from];
    let group: IpAddr = group.parse().unwrap();
    let source = if group.is_ipv4() { from.address4.into() } else { from.address6.into() };
    let mut frame = Vec::new();
    let (source, to) = (SocketAddr::new(source, 1900), SocketAddr::new(group, 1900));
    let offload = build::udp_frame(&mut frame, from.mac, mac_of(group), source, to, 1, b"hello");
    sim.world.frames.clear();
    sim.frame(from.plug, Frame { bytes: &frame, offload });
    let frames = std::mem::take(&mut sim.world.frames);
    let is_it = |frame: &FrameBuf| {
        packet(frame, |ip| {
            let datagram = Datagram::parse(ip, frame.offload.checksum);
            ip.destination == group && datagram.is_ok_and(|it| it.payload == b"hello")
        })
    };
    let of = |plug| plugs.iter().position(|it| it.plug == plug).unwrap();
    frames.iter().filter(|(_, frame)| is_it(frame)).map(|(plug, _)| of(*plug)).collect()
}

fn packet<T>(frame: &FrameBuf, read: impl FnOnce(&IpPacket<'_>) -> T) -> T {
    let (header, payload) = Ethernet::parse(&frame.bytes).unwrap();
    read(&IpPacket::parse(header.ethertype, payload).unwrap())
}

/// The questions that the gateway has asked: whom, and where to. Nothing else was sent.
fn asked(sim: &mut Sim, plugs: &[Plugged; 3]) -> Vec<(usize, String)> {
    let frames = std::mem::take(&mut sim.world.frames);
    let questions = frames.iter().filter_map(|(plug, frame)| {
        let (header, _) = Ethernet::parse(&frame.bytes).unwrap();
        assert_eq!(header.source, GATEWAY_MAC);
        let to = packet(frame, |ip| {
            let message = Membership::parse(ip, Checksum::Present)?;
            assert_eq!(message, Ok(Membership::Query));
            Some(ip.destination.to_string())
        })?;
        Some((plugs.iter().position(|it| it.plug == *plug).unwrap(), to))
    });
    questions.collect()
}

fn dropped(sim: &Sim, reason: &str) -> u64 {
    sim.network.state().drops.get(reason).copied().unwrap_or_default()
}

#[test]
fn everybody_is_asked_in_the_rhythm_of_the_standards() {
    let mut sim = Sim::new();
    let plugs = ["one", "two", "three"].map(|name| sim.plug(name));
    let general = |sim: &mut Sim| {
        let mut asked = asked(sim, &plugs);
        asked.sort();
        let each = |who| [(who, "224.0.0.1".to_owned()), (who, "ff02::1".to_owned())];
        asked == [0, 1, 2].map(each).concat()
    };
    sim.advance(Duration::ZERO);
    assert!(general(&mut sim), "at once");
    for pause in [31_250, 125_000, 125_000] {
        sim.advance(Duration::from_millis(pause - 1));
        assert_eq!(asked(&mut sim, &plugs), [], "{pause}");
        sim.advance(Duration::from_millis(1));
        assert!(general(&mut sim), "{pause}");
    }
}

#[test]
fn a_group_is_heard_by_those_who_have_joined_and_by_all_if_nobody_has() {
    for group in [SSDP, SSDP6] {
        let (mut sim, plugs) = three();
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1, 2]);
        join(&mut sim, &plugs[1], group);
        assert_eq!(sim.world.frames.len(), 0, "nobody else hears who listens");
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1]);
        assert_eq!(heard(&mut sim, &plugs, 1, group), [0usize; 0], "not its own words");
        join(&mut sim, &plugs[0], group);
        assert_eq!(heard(&mut sim, &plugs, 2, group), [0, 1]);
        let other = if group == SSDP { "239.1.2.3" } else { "ff05::d" };
        assert_eq!(heard(&mut sim, &plugs, 0, other), [1, 2], "another group");
        let states = sim.network.state().plugs;
        let groups: Vec<_> = states.into_iter().map(|plug| plug.groups).collect();
        let group: IpAddr = group.parse().unwrap();
        assert_eq!(groups, [vec![group], vec![group], vec![]]);
    }
}

#[test]
fn hosts_of_every_version_are_heard() {
    let (mut sim, plugs) = three();
    igmp_word(&mut sim, &plugs[1], V1, "239.0.1.1");
    igmp_word(&mut sim, &plugs[1], V2, "239.0.1.2");
    let group: Ipv6Addr = SSDP6.parse().unwrap();
    mld(&mut sim, &plugs[1], &[&[131, 0, 0, 0, 0, 0, 0, 0][..], &group.octets()].concat());
    for group in ["239.0.1.1", "239.0.1.2", SSDP6] {
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1], "{group}");
    }
    // One of the first version never says that it leaves; what is said is said by another one.
    igmp_word(&mut sim, &plugs[1], LEAVE, "239.0.1.1");
    igmp_word(&mut sim, &plugs[1], LEAVE, "239.0.1.2");
    mld(&mut sim, &plugs[1], &[&[132, 0, 0, 0, 0, 0, 0, 0][..], &group.octets()].concat());
    sim.advance(Duration::from_secs(3));
    assert_eq!(heard(&mut sim, &plugs, 0, "239.0.1.1"), [1]);
    assert_eq!(heard(&mut sim, &plugs, 0, "239.0.1.2"), [1, 2]);
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP6), [1, 2]);
}

#[test]
fn one_that_leaves_is_asked_twice_whether_another_stays() {
    for group in [SSDP, SSDP6] {
        let (mut sim, plugs) = three();
        join(&mut sim, &plugs[1], group);
        join(&mut sim, &plugs[2], group);
        leave(&mut sim, &plugs[1], group);
        sim.advance(Duration::ZERO);
        assert_eq!(asked(&mut sim, &plugs), [(1, group.to_owned())]);
        sim.advance(Duration::from_millis(999));
        assert_eq!(asked(&mut sim, &plugs), []);
        sim.advance(Duration::from_millis(1));
        assert_eq!(asked(&mut sim, &plugs), [(1, group.to_owned())]);
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1, 2], "until it is known");
        sim.advance(Duration::from_secs(1));
        assert_eq!(heard(&mut sim, &plugs, 0, group), [2]);
        sim.advance(Duration::from_secs(5));
        assert_eq!(asked(&mut sim, &plugs), []);
        // Another one behind the same plug answers.
        join(&mut sim, &plugs[1], group);
        leave(&mut sim, &plugs[1], group);
        sim.advance(Duration::from_millis(500));
        report(&mut sim, &plugs[1], 2, group);
        sim.advance(Duration::from_secs(10));
        assert_eq!(asked(&mut sim, &plugs), [(1, group.to_owned())]);
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1, 2]);
    }
}

#[test]
fn who_stays_silent_is_forgotten() {
    let (mut sim, plugs) = three();
    join(&mut sim, &plugs[1], SSDP);
    sim.advance(Duration::from_secs(100));
    join(&mut sim, &plugs[2], SSDP);
    sim.advance(Duration::from_millis(159_999));
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1, 2]);
    sim.advance(Duration::from_millis(1));
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [2]);
    sim.advance(Duration::from_secs(100));
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1, 2], "nobody has joined");
    sim.advance(Duration::from_secs(125));
    assert!(sim.network.state().plugs.iter().all(|plug| plug.groups.is_empty()));
}

#[test]
fn groups_of_the_link_itself_are_heard_by_all() {
    let (mut sim, plugs) = three();
    for group in ["224.0.0.251", "224.0.0.1", "ff02::1", "ff01::5", "ff02::1:ff00:7"] {
        join(&mut sim, &plugs[1], group);
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1, 2], "{group}");
    }
    assert!(sim.network.state().plugs[1].groups.is_empty());
    // Others of the link are joined in IPv6.
    for group in ["ff02::fb", "ff02::1:fe00:7", "ff05::1:ff00:7"] {
        join(&mut sim, &plugs[1], group);
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1], "{group}");
    }
}

#[test]
fn who_joins_where_neighbours_are_looked_for_hides_nobody_and_fills_nothing() {
    let (mut sim, plugs) = three();
    for n in 0..300u16 {
        join(&mut sim, &plugs[1], &format!("ff02::1:ff00:{n:x}"));
    }
    assert!(sim.network.state().drops.is_empty());
    assert!(sim.network.state().plugs[1].groups.is_empty());
    // The third one has not said that it is in the group of its own address.
    let target = plugs[2].address6;
    let [.., a, b, c] = target.octets();
    let (ab, c) = (0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, ab, c);
    join(&mut sim, &plugs[1], &group.to_string());
    let (from, source_mac) = (&plugs[0], Some(plugs[0].mac));
    let question = Icmp::Ndp(Ndp::NeighborSolicitation { target, source_mac });
    let (source, to, mac) = (from.address6.into(), group.into(), mac_of(group.into()));
    let mut frame = Vec::new();
    let offload = build::icmp_frame(&mut frame, from.mac, mac, source, to, 255, &question);
    sim.frame(from.plug, Frame { bytes: &frame, offload });
    let heard = sim.world.frames.iter().map(|(plug, _)| *plug);
    assert_eq!(heard.collect::<Vec<_>>(), [plugs[1].plug, plugs[2].plug]);
}

#[test]
fn a_plug_that_reports_nothing_hears_all_and_is_not_asked() {
    let mut sim = Sim::new();
    let plugs = [("one", false), ("two", false), ("stack", true)];
    let plugs = plugs.map(|(name, silent)| sim.plug_as(name, silent));
    sim.advance(Duration::from_secs(300));
    let asked = asked(&mut sim, &plugs);
    assert!(asked.iter().any(|(who, _)| *who == 1) && asked.iter().all(|(who, _)| *who != 2));
    for group in [SSDP, SSDP6] {
        join(&mut sim, &plugs[1], group);
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1, 2]);
        assert_eq!(heard(&mut sim, &plugs, 1, group), [2]);
        // What it reports all the same would be held for ever.
        join(&mut sim, &plugs[2], group);
        leave(&mut sim, &plugs[2], group);
        sim.advance(Duration::from_secs(10));
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1, 2]);
    }
    assert!(sim.network.state().plugs[2].groups.is_empty());
    assert!(sim.network.remove_plug(sim.now, "test", plugs[2].plug, &mut sim.world));
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1]);
}

#[test]
fn a_new_plug_hears_everything_until_it_has_been_asked() {
    let (mut sim, plugs) = three();
    join(&mut sim, &plugs[1], SSDP);
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1]);
    let late = sim.plug("late");
    let plugs = [plugs[0].clone(), plugs[1].clone(), late];
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1, 2]);
    sim.advance(Duration::from_secs(41));
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1, 2]);
    sim.advance(Duration::from_secs(1));
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1]);
}

#[test]
fn a_plug_that_joins_too_much_hears_all_and_is_counted() {
    let (mut sim, plugs) = three();
    join(&mut sim, &plugs[1], SSDP);
    for n in 0..=256u16 {
        let [high, low] = n.to_be_bytes();
        join(&mut sim, &plugs[2], &format!("239.0.{high}.{low}"));
    }
    assert_eq!(dropped(&sim, "multicast-groups-full"), 1);
    assert_eq!(sim.network.state().plugs[2].groups.len(), 256);
    assert_eq!(heard(&mut sim, &plugs, 0, "239.0.1.0"), [1, 2], "the one that has no room");
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1, 2]);
    assert_eq!(heard(&mut sim, &plugs, 0, "239.0.0.7"), [2], "the others are as they were");
    sim.advance(Duration::from_secs(261));
    join(&mut sim, &plugs[1], SSDP);
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1]);
    // All others were forgotten, so there is room again.
    sim.advance(Duration::from_secs(125));
    join(&mut sim, &plugs[2], SSDP);
    assert_eq!(dropped(&sim, "multicast-groups-full"), 1);
}

#[test]
fn guests_play_no_querier_and_lies_are_dropped() {
    let (mut sim, plugs) = three();
    join(&mut sim, &plugs[1], SSDP);
    let lies: [(&[u8], &str); 5] = [
        (&[0x11, 100, 0, 0, 0, 0, 0, 0], "rogue-querier"),
        (&[V2, 0, 0, 0, 239, 1], "igmp-truncated"),
        (&[V2, 0, 0, 0, 10, 0, 0, 1], "igmp-group"),
        (&[0x22, 0, 0, 0, 0, 0, 0xff, 0xff], "igmp-truncated"),
        (&[0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0xff, 0xff, 239, 1, 1, 1], "igmp-truncated"),
    ];
    for (message, reason) in lies {
        let before = dropped(&sim, reason);
        igmp(&mut sim, &plugs[2], message);
        assert_eq!(dropped(&sim, reason), before + 1, "{message:x?}");
    }
    mld(&mut sim, &plugs[2], &[&[130, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16]].concat());
    assert_eq!(dropped(&sim, "rogue-querier"), 2);
    mld(&mut sim, &plugs[2], &[&[131, 0, 0, 0, 0, 0, 0, 0][..], &[0xfd; 16]].concat());
    assert_eq!(dropped(&sim, "mld-group"), 1);
    assert_eq!(sim.world.frames.len(), 0, "none of it reaches anybody");
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1]);
}

#[test]
fn a_question_reaches_nobody_whatever_it_is_sent_to() {
    let (mut sim, plugs) = three();
    let [from, victim, _] = &plugs;
    let link_local = from.mac.link_local();
    let (all4, all6) = (Ipv4Addr::new(224, 0, 0, 1), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    let query4: &[u8] = &[0x11, 100, 0xee, 0x9b, 0, 0, 0, 0];
    let query6 = [&[130, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16]].concat();
    let unknown = MacAddr([2, 9, 9, 9, 9, 9]);
    let macs = [victim.mac, unknown, MacAddr([0xff; 6]), mac_of(all4.into()), GATEWAY_MAC];
    let mut dropped_before = 0;
    for mac in macs {
        let questions: [(IpAddr, IpAddr, u8, &[u8]); 4] = [
            (from.address4.into(), all4.into(), IGMP, query4),
            (from.address4.into(), victim.address4.into(), IGMP, query4),
            (link_local.into(), all6.into(), ICMPV6, &query6),
            (link_local.into(), victim.mac.link_local().into(), ICMPV6, &query6),
        ];
        for (source, to, protocol, bytes) in questions {
            let mut frame = Vec::new();
            let offload =
                build::raw_frame(&mut frame, from.mac, mac, source, to, 1, protocol, bytes);
            sim.frame(from.plug, Frame { bytes: &frame, offload });
            dropped_before += 1;
            assert_eq!(dropped(&sim, "rogue-querier"), dropped_before, "{mac} {to}");
            assert_eq!(sim.world.frames.len(), 0, "{mac} {to}");
        }
    }
    // Who reports to one host keeps that one from reporting.
    let mut frame = Vec::new();
    let report = [&[131, 0, 0, 0, 0, 0, 0, 0][..], &SSDP6.parse::<Ipv6Addr>().unwrap().octets()];
    let (source, to) = (link_local.into(), SSDP6.parse().unwrap());
    let report = report.concat();
    let offload =
        build::raw_frame(&mut frame, from.mac, victim.mac, source, to, 1, ICMPV6, &report);
    sim.frame(from.plug, Frame { bytes: &frame, offload });
    assert_eq!(sim.world.frames.len(), 0);
    assert_eq!(sim.network.state().plugs[0].groups, [to]);
}

/// A guest sends the first fragment of something. In IPv6 it is of `protocol` behind the header for that.
fn send_fragment(sim: &mut Sim, from: &Plugged, mac: MacAddr, to: &str, protocol: u8) {
    let to: IpAddr = to.parse().unwrap();
    let mut frame = Vec::new();
    let offload = match to {
        IpAddr::V4(_) => {
            let source = from.address4.into();
            let offload =
                build::raw_frame(&mut frame, from.mac, mac, source, to, 1, protocol, &[0x11; 8]);
            frame[20] = 0x20;
            frame[24..26].fill(0);
            let sum = netyard_wire::checksum::sum(&frame[14..34]);
            let sum = netyard_wire::checksum::finish(sum).to_be_bytes();
            frame[24..26].copy_from_slice(&sum);
            offload
        }
        IpAddr::V6(_) => {
            let part = [&[protocol, 0, 0, 1, 0, 0, 0, 7][..], &[130; 16]].concat();
            let source = from.mac.link_local().into();
            build::raw_frame(&mut frame, from.mac, mac, source, to, 1, 44, &part)
        }
    };
    sim.frame(from.plug, Frame { bytes: &frame, offload });
}

#[test]
fn what_may_become_a_question_when_it_is_whole_reaches_nobody() {
    const UDP: u8 = 17;
    let (mut sim, plugs) = three();
    let [from, victim, _] = &plugs;
    let (to4, to6) = (victim.address4.to_string(), victim.address6.to_string());
    // Destination options, fragments, routing and hop-by-hop options: a question may be behind them.
    let hidden = [(to4.as_str(), IGMP), ("224.0.0.1", IGMP)].into_iter();
    let hidden = hidden.chain([ICMPV6, 60, 44, 43, 0].map(|protocol| ("ff02::1", protocol)));
    for (number, (to, protocol)) in (1..).zip(hidden) {
        let mac = if number % 2 == 0 { victim.mac } else { MacAddr([0xff; 6]) };
        send_fragment(&mut sim, from, mac, to, protocol);
        assert_eq!(dropped(&sim, "fragment"), number, "{to} {protocol}");
        assert_eq!(sim.world.frames.len(), 0, "{to} {protocol}");
    }
    // Others are what they were.
    let others = [(SSDP, UDP), (SSDP6, UDP), (&to4, UDP), (&to6, ICMPV6)];
    for (to, protocol) in others {
        send_fragment(&mut sim, from, victim.mac, to, protocol);
        let frames = std::mem::take(&mut sim.world.frames);
        assert_eq!(frames.len(), 1, "{to} {protocol}");
    }
}

#[test]
fn what_left_with_its_plug_is_gone() {
    let (mut sim, plugs) = three();
    join(&mut sim, &plugs[1], SSDP);
    leave(&mut sim, &plugs[1], SSDP);
    assert!(sim.network.remove_plug(sim.now, "test", plugs[1].plug, &mut sim.world));
    sim.advance(Duration::from_secs(2));
    assert_eq!(asked(&mut sim, &plugs), []);
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [2]);
}

#[test]
fn without_snooping_all_is_heard_by_all_and_nobody_is_asked() {
    let (mut sim, plugs) = of(Config { snooping: false, ..config() });
    sim.advance(Duration::from_secs(300));
    assert_eq!(asked(&mut sim, &plugs), []);
    sim.world.frames.clear();
    join(&mut sim, &plugs[1], SSDP);
    assert_eq!(sim.world.frames.len(), 2, "the report as well");
    assert_eq!(heard(&mut sim, &plugs, 0, SSDP), [1, 2]);
}
