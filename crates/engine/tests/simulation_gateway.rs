//! Guests, the switch between them, and the gateway as their neighbour, in virtual time.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::{GATEWAY_MAC, Sim, config};
use netyard_engine::control::Plugged;
use netyard_engine::edge::{PlugId, SocketId};
use netyard_wire::arp::{Arp, Operation};
use netyard_wire::dhcp::{v4, v6};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, Ndp, solicited_node};
use netyard_wire::ip::IpPacket;
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Frame, FrameBuf, Gso, GsoKind, MacAddr, Offload, build};
use proptest::prelude::*;
use proptest::sample::Index;

fn frame(write: impl FnOnce(&mut Vec<u8>) -> Offload) -> FrameBuf {
    let mut bytes = Vec::new();
    let offload = write(&mut bytes);
    FrameBuf { bytes, offload }
}

fn udp(from: &Plugged, to_mac: MacAddr, to: SocketAddr, payload: &[u8]) -> FrameBuf {
    let ip = if to.is_ipv4() { from.address4.into() } else { from.address6.into() };
    let source = SocketAddr::new(ip, 40_000);
    frame(|out| build::udp_frame(out, from.mac, to_mac, source, to, 64, payload))
}

fn ping(from: &Plugged, to: IpAddr) -> FrameBuf {
    let source = if to.is_ipv4() { from.address4.into() } else { from.address6.into() };
    let message = Icmp::EchoRequest { id: 1, seq: 2, data: b"data" };
    frame(|out| build::icmp_frame(out, from.mac, GATEWAY_MAC, source, to, 64, &message))
}

fn who_has(from: &Plugged, target: Ipv4Addr) -> FrameBuf {
    let arp = Arp {
        operation: Operation::Request,
        sender_mac: from.mac,
        sender_ip: from.address4,
        target_mac: MacAddr([0; 6]),
        target_ip: target,
    };
    frame(|out| build::arp_frame(out, from.mac, MacAddr::BROADCAST, &arp))
}

/// Sends a frame; what came out, on which plugs.
fn send(sim: &mut Sim, from: &Plugged, frame: &FrameBuf) -> Vec<(PlugId, FrameBuf)> {
    sim.frame(from.plug, frame.as_frame());
    sim.world.frames.drain(..).collect()
}

fn drops(sim: &Sim, reason: &str) -> u64 {
    sim.network.state().drops.get(reason).copied().unwrap_or_default()
}

fn three() -> (Sim, [Plugged; 3]) {
    let mut sim = Sim::new();
    let plugs = ["a", "b", "c"].map(|name| sim.plug(name));
    (sim, plugs)
}

#[test]
fn guests_reach_each_other_and_nobody_else_listens() {
    let (mut sim, [a, b, c]) = three();
    let to_b = udp(&a, b.mac, SocketAddr::new(b.address4.into(), 9), b"hello");
    assert_eq!(send(&mut sim, &a, &to_b), [(b.plug, to_b.clone())]);
    // A super-frame passes whole, with its offload metadata.
    let mut large = udp(&a, b.mac, SocketAddr::new(b.address6.into(), 9), &[7; 5000]);
    large.offload.gso = Some(Gso { kind: GsoKind::Udp, size: 1000, header_len: 62, ecn: false });
    assert_eq!(send(&mut sim, &a, &large), [(b.plug, large)]);
    let group = udp(&a, MacAddr::BROADCAST, "255.255.255.255:9".parse().unwrap(), b"all");
    assert_eq!(send(&mut sim, &a, &group), [(b.plug, group.clone()), (c.plug, group)]);
    // Their questions for each other are theirs to answer.
    let question = who_has(&a, b.address4);
    assert_eq!(send(&mut sim, &a, &question), [(b.plug, question.clone()), (c.plug, question)]);
    assert!(sim.network.state().drops.is_empty());
}

#[test]
fn the_gateway_answers_where_it_is_asked() {
    let (mut sim, [a, ..]) = three();
    let answers = |sim: &mut Sim, question: &FrameBuf| -> Vec<FrameBuf> {
        let all = send(sim, &a, question);
        all.into_iter().filter(|(plug, _)| *plug == a.plug).map(|(_, frame)| frame).collect()
    };
    let arp = answers(&mut sim, &who_has(&a, config().gateway4()));
    let [reply] = arp.as_slice() else { panic!("{arp:?}") };
    let reply = Arp::parse(&reply.bytes[ethernet::HEADER_LEN..]).unwrap();
    assert_eq!((reply.sender_mac, reply.sender_ip), (GATEWAY_MAC, config().gateway4()));

    let group = solicited_node(config().gateway6());
    let message = Icmp::Ndp(Ndp::NeighborSolicitation {
        target: config().gateway6(),
        source_mac: Some(a.mac),
    });
    let (mac, source) = (MacAddr::ipv6_multicast(group), a.address6.into());
    let question =
        frame(|out| build::icmp_frame(out, a.mac, mac, source, group.into(), 255, &message));
    let ndp = answers(&mut sim, &question);
    let [reply] = ndp.as_slice() else { panic!("{ndp:?}") };
    assert_eq!(reply.bytes[..6], a.mac.0);

    for to in [config().gateway4().into(), IpAddr::from(config().gateway6())] {
        let pong = answers(&mut sim, &ping(&a, to));
        let [reply] = pong.as_slice() else { panic!("{pong:?}") };
        let (header, packet) = Ethernet::parse(&reply.bytes).unwrap();
        let ip = IpPacket::parse(header.ethertype, packet).unwrap();
        assert_eq!(ip.source, to);
        let message = Icmp::parse(&ip, Checksum::Present).unwrap();
        assert_eq!(message, Icmp::EchoReply { id: 1, seq: 2, data: b"data" });
    }
}

#[test]
fn a_guest_that_lies_about_itself_is_not_heard() {
    let (mut sim, [a, b, _]) = three();
    let to_b = udp(&a, b.mac, SocketAddr::new(b.address4.into(), 9), b"hello");
    let with = |change: &dyn Fn(&mut Plugged)| {
        let mut liar = a.clone();
        change(&mut liar);
        liar
    };
    let other_mac = with(&|liar| liar.mac = b.mac);
    let gateway_mac = with(&|liar| liar.mac = GATEWAY_MAC);
    let other_ip = with(&|liar| {
        liar.address4 = b.address4;
        liar.address6 = b.address6;
    });
    let gateway_ip = with(&|liar| {
        liar.address4 = config().gateway4();
        liar.address6 = config().gateway6();
    });
    for liar in [&other_mac, &gateway_mac] {
        let frame = udp(liar, b.mac, SocketAddr::new(b.address4.into(), 9), b"lie");
        assert_eq!(send(&mut sim, &a, &frame), []);
    }
    assert_eq!(drops(&sim, "spoofed-mac"), 2);
    for liar in [&other_ip, &gateway_ip] {
        for to in [IpAddr::from(b.address4), b.address6.into()] {
            let frame = udp(liar, b.mac, SocketAddr::new(to, 9), b"lie");
            assert_eq!(send(&mut sim, &a, &frame), []);
        }
        assert_eq!(send(&mut sim, &a, &who_has(liar, b.address4)), []);
    }
    assert_eq!((drops(&sim, "spoofed-ip"), drops(&sim, "spoofed-arp")), (4, 2));
    // What a receiver would find behind a tag.
    let hidden = udp(&other_ip, b.mac, SocketAddr::new(b.address4.into(), 9), b"lie");
    for tag in [[0x81, 0x00, 0x00, 0x00], [0x88, 0xa8, 0x00, 0x01]] {
        let mut tagged = hidden.clone();
        tagged.bytes.splice(12..12, tag);
        assert_eq!(send(&mut sim, &a, &tagged), []);
    }
    assert_eq!(drops(&sim, "vlan-tag"), 2);
    let advertisement = Icmp::Ndp(Ndp::NeighborAdvertisement {
        target: config().gateway6(),
        target_mac: Some(a.mac),
        router: true,
        solicited: false,
        override_: true,
    });
    let (from, to) = (a.address6.into(), b.address6.into());
    let lie = frame(|out| build::icmp_frame(out, a.mac, b.mac, from, to, 255, &advertisement));
    assert_eq!(send(&mut sim, &a, &lie), []);
    assert_eq!(drops(&sim, "spoofed-ndp"), 1);
    assert_eq!(send(&mut sim, &a, &to_b).len(), 1, "the truth still passes");
}

#[test]
fn a_plug_that_is_out_is_neither_heard_nor_reached() {
    let (mut sim, [a, b, c]) = three();
    assert!(sim.network.remove_plug(sim.now, "test", b.plug, &mut sim.world));
    let to_b = udp(&a, b.mac, SocketAddr::new(b.address4.into(), 9), b"hello");
    assert_eq!(send(&mut sim, &a, &to_b), [(c.plug, to_b)], "unknown: flooded");
    let from_b = udp(&b, a.mac, SocketAddr::new(a.address4.into(), 9), b"ghost");
    assert_eq!(send(&mut sim, &b, &from_b), []);
    assert_eq!(drops(&sim, "unknown-plug"), 1);
}

#[test]
fn udp_flows_are_shown_and_end() {
    let (mut sim, [a, ..]) = three();
    for remote in ["198.51.100.1:53", "[2001:db8::1]:53"] {
        let question = udp(&a, GATEWAY_MAC, remote.parse().unwrap(), b"question");
        assert_eq!(send(&mut sim, &a, &question), []);
    }
    assert_eq!(sim.network.state().udp_flows, 2);
    sim.advance(Duration::from_secs(31));
    assert_eq!(sim.network.state().udp_flows, 0);
    assert!(sim.world.streams.values().all(|socket| socket.closed));
    // Readiness that comes too late is nobody's.
    sim.readable(SocketId(1));
}

#[test]
fn refused_destinations_are_told_and_counted() {
    let (mut sim, [a, ..]) = three();
    let question = udp(&a, GATEWAY_MAC, "127.0.0.1:53".parse().unwrap(), b"question");
    let told = send(&mut sim, &a, &question);
    let [(plug, error)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(*plug, a.plug);
    let (header, packet) = Ethernet::parse(&error.bytes).unwrap();
    let ip = IpPacket::parse(header.ethertype, packet).unwrap();
    let Icmp::Unreachable { code: 13, original } = Icmp::parse(&ip, Checksum::Present).unwrap()
    else {
        panic!("{ip:?}");
    };
    let inner = IpPacket::parse(header.ethertype, original).unwrap();
    assert_eq!(Datagram::parse(&inner, Checksum::Valid).unwrap().payload, b"question");
    let state = sim.network.state();
    assert_eq!(state.policy.get("loopback"), Some(&1));
    assert_eq!(state.drops.get("udp-policy"), Some(&1));
    assert_eq!(state.udp_flows, 0);
}

/// A DHCP message that is answered.
fn discover(from: &Plugged) -> Vec<u8> {
    let mut options = v4::Options::default();
    options.set(v4::option::MESSAGE_TYPE, [v4::MessageType::Discover.code()]);
    let none = Ipv4Addr::UNSPECIFIED;
    let message = v4::Message {
        operation: v4::Operation::Request,
        xid: 1,
        secs: 0,
        broadcast: true,
        ciaddr: none,
        yiaddr: none,
        siaddr: none,
        giaddr: none,
        chaddr: from.mac,
        options,
    };
    message.emit()
}

/// A DHCPv6 message that is answered.
fn solicit() -> Vec<u8> {
    let mut message = v6::Message::new(v6::MessageType::Solicit, 1);
    message.client = Some(vec![0, 4, 1, 2]);
    message.emit()
}

/// Sound frames of every kind, to be spoiled.
fn sound_frames(a: &Plugged, b: &Plugged) -> Vec<FrameBuf> {
    let group = solicited_node(config().gateway6());
    let solicitation = Icmp::Ndp(Ndp::NeighborSolicitation {
        target: config().gateway6(),
        source_mac: Some(a.mac),
    });
    let mac = MacAddr::ipv6_multicast(group);
    let source = a.address6.into();
    vec![
        who_has(a, config().gateway4()),
        frame(|out| build::icmp_frame(out, a.mac, mac, source, group.into(), 255, &solicitation)),
        ping(a, config().gateway4().into()),
        ping(a, config().gateway6().into()),
        ping(a, IpAddr::from([198, 51, 100, 1])),
        udp(a, GATEWAY_MAC, SocketAddr::from(([198, 51, 100, 1], 53)), &[1; 100]),
        udp(a, GATEWAY_MAC, SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 53)), &[2; 100]),
        udp(a, GATEWAY_MAC, SocketAddr::new(config().gateway4().into(), 53), &[3; 40]),
        udp(a, b.mac, SocketAddr::new(b.address4.into(), 9), b"hello"),
        udp(a, GATEWAY_MAC, SocketAddr::new(config().gateway4().into(), 67), &discover(a)),
        udp(a, GATEWAY_MAC, SocketAddr::new(config().gateway6().into(), 547), &solicit()),
    ]
}

proptest! {
    /// Whatever a guest sends, the network lives on and still answers it.
    #[test]
    fn no_frame_brings_the_network_down(
        which in any::<Index>(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<Index>()),
        checksum in 0..3u8,
        gso in prop::option::of(0..70u16),
    ) {
        let (mut sim, [a, b, _]) = three();
        let frames = sound_frames(&a, &b);
        let mut spoiled = which.get(&frames).clone();
        // The addresses stay, so that most of it gets past the switch.
        for (at, value) in changes {
            let at = ethernet::HEADER_LEN + at.index(spoiled.bytes.len() - ethernet::HEADER_LEN);
            spoiled.bytes[at] = value;
        }
        if let Some(cut) = cut {
            spoiled.bytes.truncate(cut.index(spoiled.bytes.len()));
        }
        spoiled.offload.checksum = match checksum {
            0 => Checksum::Present,
            1 => Checksum::Valid,
            _ => spoiled.offload.checksum,
        };
        spoiled.offload.gso =
            gso.map(|size| Gso { kind: GsoKind::Udp, size, header_len: 42, ecn: false });
        sim.frame(a.plug, Frame { bytes: &spoiled.bytes, offload: spoiled.offload });
        sim.world.frames.clear();
        let pong = send(&mut sim, &a, &ping(&a, config().gateway4().into()));
        prop_assert_eq!(pong.len(), 1);
        sim.advance(Duration::from_secs(200));
        prop_assert_eq!(sim.network.state().udp_flows, 0);
    }
}
