//! ARP, neighbour discovery, ICMP and UDP between two stacks, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::{CLIENT, Link, NIC, SERVER, Sim, mac, pattern};
use netyard_stack::{Error, Event, Medium, Settings, Stack, UdpId};
use netyard_wire::arp::{Arp, Operation};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, Ndp, Prefix, Resolvers, solicited_node};
use netyard_wire::ip::IpPacket;
use netyard_wire::{Checksum, Frame, FrameBuf, MacAddr, Offload, build};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const SERVERS: [&str; 2] = ["10.0.0.2:53", "[fd00::2]:53"];

fn bind(sim: &mut Sim, side: usize, at: &str) -> UdpId {
    sim.stacks[side].udp_bind(at.parse().unwrap()).unwrap()
}

fn recv(sim: &mut Sim, side: usize, id: UdpId) -> Result<(Vec<u8>, SocketAddr), Error> {
    let mut buffer = vec![0; 65_536];
    let (len, from) = sim.stacks[side].udp_recv(id, &mut buffer, false)?;
    buffer.truncate(len);
    Ok((buffer, from))
}

#[test]
fn datagrams_go_there_and_back() {
    for to in SERVERS {
        let mut sim = Sim::new(1, Link::default());
        let server = bind(&mut sim, SERVER, to);
        let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let client = bind(&mut sim, CLIENT, any);
        let peer: SocketAddr = to.parse().unwrap();
        for len in [0, 1, 1000, 1440, 1480, 9000, 65_507] {
            let data = pattern(len);
            sim.stacks[CLIENT].udp_send(sim.now, client, Some(peer), &data).unwrap();
            sim.run(SECOND);
            assert!(sim.events[SERVER].contains(&Event::Udp(server)));
            let (got, from) = recv(&mut sim, SERVER, server).unwrap();
            assert_eq!(got, data);
            sim.stacks[SERVER].udp_send(sim.now, server, Some(from), &got).unwrap();
            sim.run(SECOND);
            assert_eq!(recv(&mut sim, CLIENT, client).unwrap(), (data, peer));
        }
        let long = sim.stacks[CLIENT].udp_send(sim.now, client, Some(peer), &[0; 65_536]);
        assert_eq!(long, Err(Error::MessageTooLong));
        let unbound = sim.stacks[CLIENT].udp_send(sim.now, client, None, b"x");
        assert_eq!(unbound, Err(Error::DestinationRequired));
    }
}

#[test]
fn a_socket_of_both_families_hears_both_and_shows_mapped_addresses() {
    let mut sim = Sim::new(2, Link::default());
    let server = bind(&mut sim, SERVER, "[::]:53");
    for (to, shown) in [("10.0.0.2:53", "::ffff:10.0.0.1"), ("[fd00::2]:53", "fd00::1")] {
        let client = bind(&mut sim, CLIENT, "[::]:0");
        sim.stacks[CLIENT].udp_send(sim.now, client, to.parse().ok(), b"hello").unwrap();
        sim.run(SECOND);
        let (got, from) = recv(&mut sim, SERVER, server).unwrap();
        assert_eq!((got.as_slice(), from.ip()), (&b"hello"[..], shown.parse().unwrap()));
        sim.stacks[SERVER].udp_send(sim.now, server, Some(from), b"answer").unwrap();
        sim.run(SECOND);
        assert_eq!(recv(&mut sim, CLIENT, client).unwrap().0, b"answer");
    }
}

#[test]
fn a_connected_socket_hears_of_its_errors_and_of_nobody_else() {
    for to in SERVERS {
        let mut sim = Sim::new(3, Link::default());
        let client = bind(&mut sim, CLIENT, "[::]:0");
        sim.stacks[CLIENT].udp_connect(sim.now, client, to.parse().unwrap()).unwrap();
        sim.stacks[CLIENT].udp_send(sim.now, client, None, b"anybody?").unwrap();
        sim.run(SECOND);
        assert_eq!(recv(&mut sim, CLIENT, client), Err(Error::ConnectionRefused));
        assert_eq!(recv(&mut sim, CLIENT, client), Err(Error::WouldBlock), "told once");
        // Somebody else's datagram is not for it.
        let (local, _) = sim.stacks[CLIENT].udp_addresses(client).unwrap();
        let other = bind(&mut sim, SERVER, "[::]:0");
        sim.stacks[SERVER].udp_send(sim.now, other, Some(local), b"intruder").unwrap();
        sim.run(SECOND);
        assert_eq!(recv(&mut sim, CLIENT, client), Err(Error::WouldBlock));
    }
}

#[test]
fn a_neighbour_that_does_not_answer_is_told_to_the_socket() {
    for to in ["10.0.0.9:53", "[fd00::9]:53"] {
        let mut sim = Sim::new(4, Link::default());
        let client = bind(&mut sim, CLIENT, "[::]:0");
        sim.stacks[CLIENT].udp_connect(sim.now, client, to.parse().unwrap()).unwrap();
        sim.stacks[CLIENT].udp_send(sim.now, client, None, b"anybody?").unwrap();
        sim.run(5 * SECOND);
        assert_eq!(recv(&mut sim, CLIENT, client), Err(Error::HostUnreachable));
    }
}

#[test]
fn ports_belong_to_one_socket_and_are_bounded_in_what_they_hold() {
    let mut sim = Sim::new(5, Link::default());
    let stack = &mut sim.stacks[SERVER];
    let bind = |stack: &mut Stack, at: &str| stack.udp_bind(at.parse().unwrap());
    let first = bind(stack, "10.0.0.2:53").unwrap();
    for taken in ["10.0.0.2:53", "0.0.0.0:53", "[::]:53"] {
        assert_eq!(bind(stack, taken), Err(Error::AddressInUse), "{taken}");
    }
    assert!(bind(stack, "[fd00::2]:53").is_ok());
    assert_eq!(bind(stack, "192.0.2.1:53"), Err(Error::AddressNotAvailable));
    let client = bind(&mut sim.stacks[CLIENT], "0.0.0.0:0").unwrap();
    let to = "10.0.0.2:53".parse().ok();
    sim.stacks[CLIENT].udp_send(sim.now, client, to, b"x").unwrap();
    sim.run(SECOND);
    for _ in 0..1000 {
        sim.stacks[CLIENT].udp_send(sim.now, client, to, &[0; 1000]).unwrap();
        sim.flush();
    }
    sim.run(SECOND);
    let mut held = 0;
    while recv(&mut sim, SERVER, first).is_ok() {
        held += 1;
    }
    assert!((100..300).contains(&held), "{held}");
    assert_eq!(sim.stacks[SERVER].drops()["udp-queue-full"], 1001 - held);
    sim.stacks[SERVER].udp_close(first);
    assert!(bind(&mut sim.stacks[SERVER], "10.0.0.2:53").is_ok());
}

#[test]
fn groups_are_heard_by_those_who_joined() {
    for (group, at) in [("239.1.2.3", "0.0.0.0:5353"), ("ff02::1234", "[::]:5353")] {
        let group: IpAddr = group.parse().unwrap();
        let mut sim = Sim::new(6, Link::default());
        let server = bind(&mut sim, SERVER, at);
        let client = bind(&mut sim, CLIENT, at);
        let to = SocketAddr::new(group, 5353);
        sim.stacks[CLIENT].udp_send(sim.now, client, Some(to), b"one").unwrap();
        sim.run(SECOND);
        assert_eq!(recv(&mut sim, SERVER, server), Err(Error::WouldBlock), "not joined");
        sim.stacks[SERVER].udp_join(server, NIC, group).unwrap();
        assert_eq!(sim.stacks[SERVER].udp_join(server, NIC, group), Err(Error::AddressInUse));
        sim.stacks[CLIENT].udp_join(client, NIC, group).unwrap();
        sim.stacks[CLIENT].udp_send(sim.now, client, Some(to), b"two").unwrap();
        sim.run(SECOND);
        assert_eq!(recv(&mut sim, SERVER, server).unwrap().0, b"two");
        assert_eq!(recv(&mut sim, CLIENT, client).unwrap().0, b"two", "its own socket, too");
        sim.stacks[CLIENT].udp_set_multicast(client, 1, false).unwrap();
        sim.stacks[SERVER].udp_leave(server, NIC, group).unwrap();
        sim.stacks[CLIENT].udp_send(sim.now, client, Some(to), b"three").unwrap();
        sim.run(SECOND);
        assert_eq!(recv(&mut sim, SERVER, server), Err(Error::WouldBlock), "left");
        assert_eq!(recv(&mut sim, CLIENT, client), Err(Error::WouldBlock), "not looped");
    }
}

#[test]
fn broadcasts_are_heard_where_that_was_asked_for() {
    let mut sim = Sim::new(7, Link::default());
    let server = bind(&mut sim, SERVER, "0.0.0.0:67");
    let client = bind(&mut sim, CLIENT, "0.0.0.0:68");
    for to in ["255.255.255.255:67", "10.0.0.255:67"] {
        let to = to.parse().ok();
        sim.stacks[CLIENT].udp_set_broadcast(client, false).unwrap();
        let refused = sim.stacks[CLIENT].udp_send(sim.now, client, to, b"x");
        assert_eq!(refused, Err(Error::PermissionDenied));
        sim.stacks[CLIENT].udp_set_broadcast(client, true).unwrap();
        sim.stacks[CLIENT].udp_send(sim.now, client, to, b"x").unwrap();
        sim.run(SECOND);
        assert_eq!(recv(&mut sim, SERVER, server).unwrap().0, b"x", "{to:?}");
    }
}

/// One stack, and frames made by hand.
struct Bench {
    sim: Sim,
}

const PEER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

impl Bench {
    fn new() -> Self {
        let mut sim = Sim::new(8, Link::default());
        // The other stack is not there: only we speak.
        sim.filter = Some(Box::new(|_, _| false));
        sim.run(5 * SECOND);
        Self { sim }
    }

    fn inject(&mut self, bytes: &[u8], offload: Offload) {
        let frame = Frame { bytes, offload };
        self.sim.stacks[CLIENT].handle_frame(self.sim.now, NIC, frame);
    }

    fn icmp(&mut self, to: MacAddr, source: &str, destination: &str, hops: u8, icmp: &Icmp<'_>) {
        let mut bytes = Vec::new();
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let offload = build::icmp_frame(&mut bytes, PEER_MAC, to, source, destination, hops, icmp);
        self.inject(&bytes, offload);
    }

    /// The frames that the stack sends now.
    fn sent(&mut self) -> Vec<FrameBuf> {
        let mut all = Vec::new();
        let mut frame = FrameBuf::default();
        while self.sim.stacks[CLIENT].poll_transmit(self.sim.now, &mut frame).is_some() {
            all.push(frame.clone());
        }
        all
    }

    fn answer<T>(&mut self, read: impl Fn(&Ethernet, &IpPacket<'_>, Icmp<'_>) -> T) -> T {
        let sent = self.sent();
        assert_eq!(sent.len(), 1, "one answer");
        let (ethernet, packet) = Ethernet::parse(&sent[0].bytes).unwrap();
        let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
        read(&ethernet, &packet, Icmp::parse(&packet, Checksum::Present).unwrap())
    }
}

#[test]
fn arp_is_answered_for_our_addresses_only() {
    let mut bench = Bench::new();
    for (target, answered) in [("10.0.0.1", true), ("10.0.0.3", false)] {
        let target = target.parse().unwrap();
        let ask = Arp {
            operation: Operation::Request,
            sender_mac: PEER_MAC,
            sender_ip: "10.0.0.2".parse().unwrap(),
            target_mac: MacAddr([0; 6]),
            target_ip: target,
        };
        let mut bytes = Vec::new();
        let offload = build::arp_frame(&mut bytes, PEER_MAC, MacAddr::BROADCAST, &ask);
        bench.inject(&bytes, offload);
        let sent = bench.sent();
        assert_eq!(sent.len(), usize::from(answered));
        if let Some(answer) = sent.first() {
            let (ethernet, packet) = Ethernet::parse(&answer.bytes).unwrap();
            let answer = Arp::parse(packet).unwrap();
            assert_eq!(ethernet.destination, PEER_MAC);
            assert_eq!((answer.operation, answer.sender_ip), (Operation::Reply, target));
            assert_eq!(answer.sender_mac, mac(CLIENT));
        }
    }
}

#[test]
fn solicitations_are_answered_and_probes_told_to_everybody() {
    let mut bench = Bench::new();
    let target = "fd00::1".parse().unwrap();
    let group = solicited_node(target);
    for (source, to, solicited) in [("fe80::2", "fe80::2", true), ("::", "ff02::1", false)] {
        let source_mac = solicited.then_some(PEER_MAC);
        let ask = Icmp::Ndp(Ndp::NeighborSolicitation { target, source_mac });
        bench.icmp(MacAddr::ipv6_multicast(group), source, &group.to_string(), 255, &ask);
        bench.answer(|_, packet, answer| {
            assert_eq!(packet.destination, to.parse::<IpAddr>().unwrap());
            assert_eq!(packet.hop_limit, 255);
            let wanted = Ndp::NeighborAdvertisement {
                target,
                target_mac: Some(mac(CLIENT)),
                router: false,
                solicited,
                override_: true,
            };
            assert_eq!(answer, Icmp::Ndp(wanted));
        });
    }
    let ask = Icmp::Ndp(Ndp::NeighborSolicitation { target, source_mac: Some(PEER_MAC) });
    bench.icmp(MacAddr::ipv6_multicast(group), "fe80::2", &group.to_string(), 254, &ask);
    assert!(bench.sent().is_empty(), "it has crossed a router");
}

#[test]
fn pings_are_answered() {
    let mut bench = Bench::new();
    let data = pattern(1000);
    for (from, to) in [("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1")] {
        bench.sim.stacks[CLIENT].set_neighbor(NIC, from.parse().unwrap(), PEER_MAC);
        let ask = Icmp::EchoRequest { id: 7, seq: 8, data: &data };
        bench.icmp(mac(CLIENT), from, to, 64, &ask);
        bench.answer(|ethernet, packet, answer| {
            assert_eq!(ethernet.destination, PEER_MAC);
            assert_eq!(packet.source, to.parse::<IpAddr>().unwrap());
            assert_eq!(answer, Icmp::EchoReply { id: 7, seq: 8, data: &data });
        });
    }
    let ask = Icmp::EchoRequest { id: 7, seq: 8, data: &data };
    bench.icmp(MacAddr::BROADCAST, "10.0.0.2", "10.0.0.1", 64, &ask);
    bench.icmp(MacAddr::BROADCAST, "10.0.0.2", "10.0.0.255", 64, &ask);
    bench.icmp(PEER_MAC, "10.0.0.2", "10.0.0.1", 64, &ask);
    bench.icmp(mac(CLIENT), "127.0.0.1", "10.0.0.1", 64, &ask);
    bench.icmp(mac(CLIENT), "10.0.0.255", "10.0.0.1", 64, &ask);
    assert!(bench.sent().is_empty(), "not for us, or not from anybody");
}

#[test]
fn errors_are_limited_and_never_answer_errors() {
    let mut bench = Bench::new();
    bench.sim.stacks[CLIENT].set_neighbor(NIC, "10.0.0.2".parse().unwrap(), PEER_MAC);
    let source = "10.0.0.2:9".parse().unwrap();
    let mut bytes = Vec::new();
    let mut datagram = |bench: &mut Bench, mac, to: &str| {
        let to = to.parse().unwrap();
        let offload = build::udp_frame(&mut bytes, PEER_MAC, mac, source, to, 64, b"hello");
        bench.inject(&bytes, offload);
    };
    datagram(&mut bench, mac(CLIENT), "10.0.0.1:9");
    bench.answer(|_, _, answer| assert!(matches!(answer, Icmp::Unreachable { code: 3, .. })));
    datagram(&mut bench, MacAddr::BROADCAST, "10.0.0.255:9");
    assert!(bench.sent().is_empty());
    for _ in 0..500 {
        datagram(&mut bench, mac(CLIENT), "10.0.0.1:9");
    }
    assert!(bench.sent().len() <= 50);
    assert!(bench.sim.stacks[CLIENT].drops()["icmp-rate"] >= 450);
}

#[test]
fn a_duplicate_address_is_given_up_and_told() {
    let mut sim = Sim::new(9, Link::default());
    let now = sim.now;
    for side in [CLIENT, SERVER] {
        let net = "fd00::77/64".parse().unwrap();
        sim.stacks[side].add_address(now, NIC, net).unwrap();
    }
    sim.run(5 * SECOND);
    let duplicate = Event::Duplicate(NIC, "fd00::77".parse().unwrap());
    assert!(sim.events[CLIENT].contains(&duplicate) || sim.events[SERVER].contains(&duplicate));
    // Later claims are not believed.
    let mut bench = Bench::new();
    let claim = Icmp::Ndp(Ndp::NeighborAdvertisement {
        target: "fd00::1".parse().unwrap(),
        target_mac: Some(PEER_MAC),
        router: false,
        solicited: false,
        override_: true,
    });
    bench.icmp(MacAddr::BROADCAST, "fe80::2", "ff02::1", 255, &claim);
    let addresses = bench.sim.stacks[CLIENT].addresses(NIC);
    assert!(addresses.contains(&"fd00::1/64".parse().unwrap()));
    assert_eq!(bench.sim.stacks[CLIENT].drops()["ndp-conflict"], 1);
}

#[test]
fn a_host_makes_itself_addresses_of_what_routers_advertise() {
    let mut bench = Bench::new();
    let now = bench.sim.now;
    bench.sim.stacks[CLIENT].enable_autoconf(now, NIC).unwrap();
    bench.sim.now += SECOND;
    let now = bench.sim.now;
    bench.sim.stacks[CLIENT].handle_timeout(now);
    let asked = bench.answer(|_, packet, question| {
        (packet.destination, matches!(question, Icmp::Ndp(Ndp::RouterSolicitation { .. })))
    });
    assert_eq!(asked, ("ff02::2".parse().unwrap(), true));
    let outside: SocketAddr = "[2001:db8:9::9]:80".parse().unwrap();
    let connect = |bench: &mut Bench| {
        let now = bench.sim.now;
        let id = bench.sim.stacks[CLIENT].tcp_connect(now, outside, None)?;
        let local = bench.sim.stacks[CLIENT].tcp_info(id).unwrap().local.ip();
        bench.sim.stacks[CLIENT].tcp_close(now, id);
        Ok(local)
    };
    assert_eq!(connect(&mut bench), Err(Error::NetworkUnreachable));
    let advertise = |bench: &mut Bench, lifetime, valid, preferred| {
        let message = Icmp::Ndp(Ndp::RouterAdvertisement {
            hop_limit: 64,
            lifetime,
            source_mac: Some(PEER_MAC),
            mtu: Some(1400),
            prefix: Some(Prefix {
                address: "2001:db8:1::".parse().unwrap(),
                len: 64,
                on_link: true,
                autonomous: true,
                valid,
                preferred,
            }),
            resolvers: Some(Resolvers {
                addresses: ["2001:db8:1::53", "fe80::53", ""].map(|ip| ip.parse().ok()),
                lifetime: valid,
            }),
        });
        bench.icmp(MacAddr::BROADCAST, "fe80::2", "ff02::1", 255, &message);
    };
    advertise(&mut bench, 1800, 86_400, 3600);
    let own: IpAddr = "2001:db8:1::ff:fe00:1".parse().unwrap();
    assert_eq!(connect(&mut bench), Ok(own));
    let resolvers = |bench: &Bench| bench.sim.stacks[CLIENT].resolvers(bench.sim.now);
    let told = ["[2001:db8:1::53]:53", "[fe80::53%1]:53"].map(|at| at.parse().unwrap());
    assert_eq!(resolvers(&bench), told, "one is of this link");
    // Nobody makes it go by a forged message, but the router stops being one.
    advertise(&mut bench, 0, 1, 1);
    assert_eq!(connect(&mut bench), Err(Error::NetworkUnreachable));
    let has =
        |bench: &Bench| bench.sim.stacks[CLIENT].addresses(NIC).iter().any(|net| net.addr() == own);
    bench.sim.run(Duration::from_secs(7000));
    assert_eq!(resolvers(&bench), [], "its time is over");
    assert!(has(&bench), "it lives for two hours yet");
    bench.sim.run(Duration::from_secs(300));
    assert!(!has(&bench));
}

#[test]
fn an_interface_without_ethernet_needs_no_neighbours() {
    let mut sim = Sim::new(10, Link::default());
    let mut stack = Stack::new(sim.now, [1; 32], Settings::default());
    let nic = stack.add_nic(Medium::Ip, 1400).unwrap();
    stack.add_address(sim.now, nic, "10.9.0.1/24".parse().unwrap()).unwrap();
    stack.add_address(sim.now, nic, "fd09::1/64".parse().unwrap()).unwrap();
    for to in ["10.9.0.2:80", "[fd09::2]:80"] {
        stack.tcp_connect(sim.now, to.parse().unwrap(), None).unwrap();
        let mut frame = FrameBuf::default();
        assert_eq!(stack.poll_transmit(sim.now, &mut frame), Some(nic));
        let (header, packet) = Ethernet::parse(&frame.bytes).unwrap();
        let packet = IpPacket::parse(header.ethertype, packet).unwrap();
        assert_eq!(packet.protocol, netyard_wire::ip::TCP);
    }
    sim.run(SECOND);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever comes, nothing panics, and time goes on.
    #[test]
    fn arbitrary_bytes_do_no_harm(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..5),
        kinds in proptest::collection::vec(0..6u8, 5),
    ) {
        let mut sim = Sim::new(11, Link::default());
        let _listener = sim.stacks[CLIENT].tcp_listen("[::]:80".parse().unwrap(), 4).unwrap();
        let _socket = sim.stacks[CLIENT].udp_bind("[::]:80".parse().unwrap()).unwrap();
        for (mut bytes, kind) in frames.into_iter().zip(kinds) {
            // Most random bytes end at the first check: some are led further.
            let header = Ethernet {
                destination: mac(CLIENT),
                source: PEER_MAC,
                ethertype: [0, ethernet::ARP, ethernet::IPV4, ethernet::IPV6, ethernet::IPV4, ethernet::IPV6]
                    [usize::from(kind)],
            };
            if kind > 0 {
                bytes.splice(..0, header.emit());
            }
            let (source, destination): (IpAddr, IpAddr) = if kind == 4 {
                ("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap())
            } else {
                ("fd00::2".parse().unwrap(), "fd00::1".parse().unwrap())
            };
            if kind >= 4 {
                // A right packet of TCP, UDP or ICMP with random contents.
                let payload = bytes.split_off(14);
                let protocol = [6, 17, if kind == 4 { 1 } else { 58 }][payload.len() % 3];
                bytes = packet(header, source, destination, protocol, &payload);
            }
            let offload = Offload { checksum: Checksum::Valid, gso: None };
            let now = sim.now;
            sim.stacks[CLIENT].handle_frame(now, NIC, Frame { bytes: &bytes, offload });
            sim.run(Duration::from_millis(300));
        }
    }
}

/// A packet whose IP header is right.
fn packet(
    header: Ethernet,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = header.emit().to_vec();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let len = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
            let mut ip = vec![0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0];
            ip.extend(source.octets());
            ip.extend(destination.octets());
            let sum = netyard_wire::checksum::finish(netyard_wire::checksum::sum(&ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes.extend(ip);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
            bytes.extend([0x60, 0, 0, 0, len[0], len[1], protocol, 255]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        _ => unreachable!("both of one family"),
    }
    bytes.extend(payload);
    bytes
}
