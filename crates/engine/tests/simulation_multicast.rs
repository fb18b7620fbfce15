//! Who hears what is sent to a multicast group, and what the gateway asks to know it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use common::{GATEWAY_MAC, Sim, config};
use netyard_engine::config::Config;
use netyard_engine::control::Plugged;
use netyard_wire::ethernet::Ethernet;
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
    for group in ["224.0.0.251", "224.0.0.1", "ff02::1", "ff01::5"] {
        join(&mut sim, &plugs[1], group);
        assert_eq!(heard(&mut sim, &plugs, 0, group), [1, 2], "{group}");
    }
    assert!(sim.network.state().plugs[1].groups.is_empty());
    // Those of MLD are joined: neighbours look for each other there.
    join(&mut sim, &plugs[1], "ff02::fb");
    assert_eq!(heard(&mut sim, &plugs, 0, "ff02::fb"), [1]);
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
