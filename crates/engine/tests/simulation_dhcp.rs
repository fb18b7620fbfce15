//! Guests that configure themselves, through the whole network, in virtual time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use common::{GATEWAY_MAC, Sim, config};
use netyard_engine::config::{Config, Dhcp, Dns};
use netyard_engine::control::Plugged;
use netyard_engine::edge::PlugId;
use netyard_wire::dhcp::v4::{self, option};
use netyard_wire::dhcp::v6;
use netyard_wire::ethernet::Ethernet;
use netyard_wire::icmp::{Icmp, Ndp};
use netyard_wire::ip::IpPacket;
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Frame, FrameBuf, MacAddr, Offload, build};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

fn frame(write: impl FnOnce(&mut Vec<u8>) -> Offload) -> FrameBuf {
    let mut bytes = Vec::new();
    let offload = write(&mut bytes);
    FrameBuf { bytes, offload }
}

fn udp(mac: MacAddr, from: SocketAddr, to_mac: MacAddr, to: SocketAddr, data: &[u8]) -> FrameBuf {
    frame(|out| build::udp_frame(out, mac, to_mac, from, to, 64, data))
}

/// Sends a frame; returns what came of it.
fn send(sim: &mut Sim, plug: PlugId, frame: &FrameBuf) -> Vec<(PlugId, FrameBuf)> {
    sim.world.frames.clear();
    sim.frame(plug, Frame { bytes: &frame.bytes, offload: frame.offload });
    sim.world.frames.drain(..).collect()
}

fn drops(sim: &Sim, reason: &str) -> u64 {
    sim.network.state().drops.get(reason).copied().unwrap_or_default()
}

/// A datagram with its addresses; its checksum must be complete.
fn read(frame: &FrameBuf) -> (Ethernet, SocketAddr, SocketAddr, Vec<u8>) {
    assert_eq!(frame.offload, Offload::default());
    let (header, packet) = Ethernet::parse(&frame.bytes).unwrap();
    let ip = IpPacket::parse(header.ethertype, packet).unwrap();
    let datagram = Datagram::parse(&ip, Checksum::Present).unwrap();
    let from = SocketAddr::new(ip.source, datagram.source_port);
    let to = SocketAddr::new(ip.destination, datagram.destination_port);
    (header, from, to, datagram.payload.to_vec())
}

fn message4(guest: &Plugged, kind: v4::MessageType) -> v4::Message {
    let mut options = v4::Options::default();
    options.set(option::MESSAGE_TYPE, [kind.code()]);
    v4::Message {
        operation: v4::Operation::Request,
        xid: 7,
        secs: 0,
        broadcast: false,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: Ipv4Addr::UNSPECIFIED,
        chaddr: guest.mac,
        options,
    }
}

/// A message to the gateway, by broadcast, with the answers that this guest gets.
fn ask4(sim: &mut Sim, guest: &Plugged, message: &v4::Message) -> Vec<FrameBuf> {
    let from = SocketAddr::new(message.ciaddr.into(), v4::CLIENT_PORT);
    let to = SocketAddr::from((Ipv4Addr::BROADCAST, v4::SERVER_PORT));
    let sent = udp(guest.mac, from, MacAddr::BROADCAST, to, &message.emit());
    let seen = send(sim, guest.plug, &sent).into_iter();
    seen.filter(|(plug, _)| *plug == guest.plug).map(|(_, frame)| frame).collect()
}

#[test]
fn a_guest_learns_what_is_planned_for_its_plug() {
    let mut sim = Sim::new();
    let (first, guest) = (sim.plug("first"), sim.plug("web-1"));
    let answers = ask4(&mut sim, &guest, &message4(&guest, v4::MessageType::Discover));
    let [offer] = answers.as_slice() else { panic!("{answers:?}") };
    let (header, from, to, payload) = read(offer);
    assert_eq!((header.source, header.destination), (GATEWAY_MAC, guest.mac));
    assert_eq!(from, SocketAddr::from((config().gateway4(), 67)));
    assert_eq!(to, SocketAddr::from((guest.address4, 68)));
    let offer = v4::Message::parse(&payload).unwrap();
    assert_eq!(offer.options.kind(), Some(v4::MessageType::Offer));
    assert_eq!(offer.yiaddr, guest.address4);
    assert_eq!(offer.options.address(option::SERVER), Some(config().gateway4()));
    assert_eq!(offer.options.address(option::ROUTER), Some(config().gateway4()));
    assert_eq!(offer.options.address(option::DNS), Some(config().gateway4()));
    assert_eq!(offer.options.number16(option::MTU), Some(1500));
    assert_eq!(offer.options.number32(option::LEASE_TIME), Some(12 * 3_600));
    assert_eq!(offer.options.get(option::HOST_NAME), Some(&b"web-1"[..]));
    assert_eq!(offer.options.get(option::DOMAIN_NAME), Some(&b"test"[..]));

    let mut request = message4(&guest, v4::MessageType::Request);
    request.options.set(option::REQUESTED_ADDRESS, guest.address4.octets());
    request.options.set(option::SERVER, config().gateway4().octets());
    let answers = ask4(&mut sim, &guest, &request);
    let kinds = |answers: &[FrameBuf]| {
        let read = |frame| v4::Message::parse(&read(frame).3).unwrap().options.kind().unwrap();
        answers.iter().map(read).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&answers), [v4::MessageType::Ack]);
    // Another's address is refused.
    request.options.set(option::REQUESTED_ADDRESS, first.address4.octets());
    assert_eq!(kinds(&ask4(&mut sim, &guest, &request)), [v4::MessageType::Nak]);
    // Renewal is unicast.
    let mut renewal = message4(&guest, v4::MessageType::Request);
    renewal.ciaddr = guest.address4;
    let from = SocketAddr::from((guest.address4, 68));
    let to = SocketAddr::from((config().gateway4(), 67));
    let frame = udp(guest.mac, from, GATEWAY_MAC, to, &renewal.emit());
    let answers = send(&mut sim, guest.plug, &frame);
    let [(plug, ack)] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!((*plug, read(ack).2), (guest.plug, from));
}

#[test]
fn what_is_no_dhcp_message_is_counted_and_harms_nothing() {
    let mut sim = Sim::new();
    let guest = sim.plug("one");
    let mut relayed = message4(&guest, v4::MessageType::Discover);
    relayed.giaddr = guest.address4;
    assert_eq!(ask4(&mut sim, &guest, &relayed), []);
    let mut other = message4(&guest, v4::MessageType::Discover);
    other.chaddr = MacAddr([2, 9, 9, 9, 9, 9]);
    assert_eq!(ask4(&mut sim, &guest, &other), []);
    let to = SocketAddr::from((config().gateway4(), 67));
    let noise = udp(guest.mac, "0.0.0.0:68".parse().unwrap(), GATEWAY_MAC, to, b"noise");
    assert_eq!(send(&mut sim, guest.plug, &noise), []);
    let counted = ["dhcp-relayed", "dhcp-spoofed-mac", "dhcp-truncated"];
    assert_eq!(counted.map(|reason| drops(&sim, reason)), [1, 1, 1]);
}

fn link_local(guest: &Plugged, port: u16) -> SocketAddr {
    SocketAddr::from((guest.mac.link_local(), port))
}

fn ask6(sim: &mut Sim, guest: &Plugged, message: &v6::Message) -> v6::Message {
    let to = SocketAddr::from((v6::ALL_SERVERS, v6::SERVER_PORT));
    let mac = MacAddr::ipv6_multicast(v6::ALL_SERVERS);
    let from = link_local(guest, v6::CLIENT_PORT);
    let sent = udp(guest.mac, from, mac, to, &message.emit());
    let answers = send(sim, guest.plug, &sent);
    let answers: Vec<_> = answers.iter().filter(|(plug, _)| *plug == guest.plug).collect();
    let [(_, answer)] = answers.as_slice() else { panic!("{answers:?}") };
    let (header, server, client, payload) = read(answer);
    assert_eq!((header.source, header.destination), (GATEWAY_MAC, guest.mac));
    assert_eq!(server, SocketAddr::from((config().gateway_link_local(), 547)));
    assert_eq!(client, from);
    v6::Message::parse(&payload).unwrap()
}

#[test]
fn a_guest_learns_its_ipv6_address_too() {
    let dns = Dns { search: vec!["corp.example".into(), "test".into()], ..Dns::default() };
    let mut sim = Sim::with(Config { dns, ..config() });
    let (_, guest) = (sim.plug("first"), sim.plug("web-1"));
    let mut message = v6::Message::new(v6::MessageType::Solicit, 9);
    message.client = Some(vec![0, 4, 1, 2, 3]);
    message.associations.push(v6::Association {
        kind: v6::AssociationKind::NonTemporary,
        id: 5,
        renew: 0,
        rebind: 0,
        addresses: Vec::new(),
        status: None,
    });
    let advertise = ask6(&mut sim, &guest, &message);
    assert_eq!(advertise.kind, v6::MessageType::Advertise);
    message.kind = v6::MessageType::Request;
    message.server = advertise.server;
    let reply = ask6(&mut sim, &guest, &message);
    assert_eq!((reply.kind, reply.xid), (v6::MessageType::Reply, 9));
    assert_eq!(reply.associations[0].addresses[0].address, guest.address6);
    assert_eq!(reply.associations[0].addresses[0].valid, 12 * 3_600);
    assert_eq!(reply.dns, [config().gateway6()]);
    assert_eq!(reply.search, ["test", "corp.example"].map(|name| name.parse().unwrap()));
}

#[test]
fn a_guest_that_plays_a_server_is_not_heard() {
    let mut sim = Sim::new();
    let (rogue, other) = (sim.plug("rogue"), sim.plug("other"));
    let mut offer = message4(&other, v4::MessageType::Offer);
    offer.operation = v4::Operation::Reply;
    let mut count = 0;
    let mut refused = |sim: &mut Sim, frame: &FrameBuf| {
        assert_eq!(send(sim, rogue.plug, frame), []);
        count += 1;
        assert_eq!(drops(sim, "rogue-dhcp"), count);
    };
    for (to_mac, to) in [(other.mac, other.address4), (MacAddr::BROADCAST, Ipv4Addr::BROADCAST)] {
        // Whatever port it comes from: clients do not look at that.
        for port in [67, 4_000] {
            let from = SocketAddr::from((rogue.address4, port));
            let to = SocketAddr::from((to, v4::CLIENT_PORT));
            let lie = udp(rogue.mac, from, to_mac, to, &offer.emit());
            refused(&mut sim, &lie);
        }
    }
    let reply = v6::Message::new(v6::MessageType::Reply, 1).emit();
    let from = link_local(&rogue, v6::SERVER_PORT);
    let lie = udp(rogue.mac, from, other.mac, link_local(&other, v6::CLIENT_PORT), &reply);
    refused(&mut sim, &lie);

    // Nor in pieces: this is the first, and the kernel would put it together with the rest.
    let to = SocketAddr::from((other.address4, v4::CLIENT_PORT));
    let mut piece = udp(rogue.mac, (rogue.address4, 67).into(), other.mac, to, &[0; 24]);
    piece.offload = Offload::default();
    piece.bytes[20] = 0x20;
    piece.bytes[24..26].fill(0);
    let sum = netyard_wire::checksum::sum(&piece.bytes[14..34]);
    let sum = netyard_wire::checksum::finish(sum);
    piece.bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    refused(&mut sim, &piece);

    let advertisement = Icmp::Ndp(Ndp::RouterAdvertisement {
        hop_limit: 64,
        lifetime: 1_800,
        source_mac: Some(rogue.mac),
        mtu: None,
        prefix: None,
        resolvers: None,
    });
    let mac = MacAddr::ipv6_multicast(ALL_NODES);
    let source = IpAddr::V6(rogue.mac.link_local());
    let lie = frame(|out| {
        build::icmp_frame(out, rogue.mac, mac, source, ALL_NODES.into(), 255, &advertisement)
    });
    assert_eq!(send(&mut sim, rogue.plug, &lie), []);
    assert_eq!(drops(&sim, "rogue-router"), 1);
}

fn solicit(sim: &mut Sim, guest: &Plugged, source: Ipv6Addr) -> Vec<(PlugId, FrameBuf)> {
    let source_mac = (!source.is_unspecified()).then_some(guest.mac);
    let message = Icmp::Ndp(Ndp::RouterSolicitation { source_mac });
    let mac = MacAddr::ipv6_multicast(ALL_ROUTERS);
    let sent = frame(|out| {
        build::icmp_frame(out, guest.mac, mac, source.into(), ALL_ROUTERS.into(), 255, &message)
    });
    let mut seen = send(sim, guest.plug, &sent);
    // The others see the question, as they see every group's.
    seen.retain(|(_, seen)| *seen != sent);
    seen
}

/// The destination of a router advertisement of the gateway.
fn advertised(frame: &FrameBuf) -> (MacAddr, IpAddr) {
    let (header, packet) = Ethernet::parse(&frame.bytes).unwrap();
    assert_eq!(header.source, GATEWAY_MAC);
    let ip = IpPacket::parse(header.ethertype, packet).unwrap();
    assert_eq!(ip.source, IpAddr::V6(config().gateway_link_local()));
    let message = Icmp::parse(&ip, Checksum::Present).unwrap();
    let Icmp::Ndp(Ndp::RouterAdvertisement { lifetime, source_mac, mtu, prefix, .. }) = message
    else {
        panic!("{message:?}")
    };
    assert_eq!((lifetime, source_mac, mtu), (1_800, Some(GATEWAY_MAC), Some(1_500)));
    let prefix = prefix.unwrap();
    assert_eq!((prefix.address, prefix.len), (config().subnet6.network(), 64));
    assert!(prefix.on_link && !prefix.autonomous);
    // Managed, and other configuration.
    assert_eq!(ip.payload[5], 0xc0);
    (header.destination, ip.destination)
}

/// One that asks guests nothing by itself.
fn quiet() -> Config {
    Config { snooping: false, ..config() }
}

#[test]
fn solicitations_are_answered_at_once() {
    let mut sim = Sim::with(quiet());
    let (_, guest) = (sim.plug("first"), sim.plug("one"));
    let own = guest.mac.link_local();
    let answers = solicit(&mut sim, &guest, own);
    let [(plug, answer)] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!((*plug, advertised(answer)), (guest.plug, (guest.mac, own.into())));
    // Who has no address yet gets it with all the others, soon.
    assert_eq!(solicit(&mut sim, &guest, Ipv6Addr::UNSPECIFIED), []);
    sim.advance(Duration::from_millis(500));
    assert_eq!(sim.world.frames.len(), 2);
}

#[test]
fn advertisements_go_to_all_guests_in_time() {
    let mut sim = Sim::with(quiet());
    let guests = [sim.plug("one"), sim.plug("two")];
    for _ in 0..10 {
        sim.world.frames.clear();
        // No router is forgotten: its lifetime is three of these.
        sim.advance(Duration::from_secs(600));
        let plugs: Vec<PlugId> = sim.world.frames.iter().map(|(plug, _)| *plug).collect();
        assert!(guests.iter().all(|guest| plugs.contains(&guest.plug)), "{plugs:?}");
        assert!(plugs.len() <= 2 * 6, "{plugs:?}");
        for (_, frame) in &sim.world.frames {
            let all = (MacAddr::ipv6_multicast(ALL_NODES), IpAddr::V6(ALL_NODES));
            assert_eq!(advertised(frame), all);
        }
    }
}

#[test]
fn a_network_without_dhcp_leaves_guests_alone() {
    let mut sim = Sim::with(Config { dhcp: None, ..quiet() });
    let guest = sim.plug("one");
    let discover = message4(&guest, v4::MessageType::Discover);
    assert_eq!(ask4(&mut sim, &guest, &discover), []);
    assert_eq!(solicit(&mut sim, &guest, guest.mac.link_local()), []);
    sim.advance(Duration::from_secs(3_600));
    assert!(sim.world.frames.is_empty());
}

#[test]
fn the_lease_time_is_the_networks() {
    let lease = Duration::from_secs(600);
    let mut sim = Sim::with(Config { dhcp: Some(Dhcp { lease, range: None }), ..config() });
    let guest = sim.plug("one");
    let answers = ask4(&mut sim, &guest, &message4(&guest, v4::MessageType::Discover));
    let offer = v4::Message::parse(&read(&answers[0]).3).unwrap();
    assert_eq!(offer.options.number32(option::LEASE_TIME), Some(600));
    assert_eq!(offer.options.number32(option::RENEWAL), Some(300));
}
