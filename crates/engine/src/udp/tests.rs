use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use netyard_wire::ethernet::Ethernet;
use netyard_wire::fragment::complete_and_cut;
use netyard_wire::icmp::Icmp;
use netyard_wire::reassembly::{Reassembly, join};
use netyard_wire::{Checksum, Features, Frame, FrameBuf, GsoKind, fit};

use super::inward::RECEIVE_BUDGET;
use super::table::{ACCEPTED_PER_GUEST, LASTING, ONE_WAY, OPENED_PER_GUEST, TWO_WAY};
use super::*;
use crate::config::Uplink;
use crate::edge::DatagramError;
use crate::fake::{Bench, FakeSocket, GUEST_MAC, PLUG, guest};
use crate::guests::Guest;
use crate::sending::ERROR_BUDGET;

const REMOTE: &str = "198.51.100.1:53";
const REMOTE6: &str = "[2001:db8::1]:53";
const READABLE: Readiness =
    Readiness { readable: true, writable: false, read_closed: false, hangup: false, error: false };

struct World {
    bench: Bench,
    services: Services,
    udp: UdpFlows,
    /// What guests send waits for [`World::flush`].
    gathers: bool,
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl World {
    fn new() -> Self {
        let bench = Bench::new();
        let udp = UdpFlows::new(bench.now);
        Self { bench, services: Services::default(), udp, gathers: false }
    }

    /// The guest sends a datagram from `port`.
    fn send(&mut self, port: u16, to: SocketAddr, payload: &[u8]) {
        self.send_with(port, to, payload, 64, None);
    }

    fn send_with(
        &mut self,
        port: u16,
        to: SocketAddr,
        payload: &[u8],
        hop_limit: u8,
        size: Option<u16>,
    ) {
        let from: IpAddr = match to {
            SocketAddr::V4(_) => guest().address4.into(),
            SocketAddr::V6(_) => guest().address6.into(),
        };
        self.send_from(SocketAddr::new(from, port), to, payload, hop_limit, size);
    }

    fn send_from(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        hop_limit: u8,
        size: Option<u16>,
    ) {
        let mut bytes = Vec::new();
        let mac = self.bench.config.gateway_mac;
        let offload = build::udp_frame(&mut bytes, GUEST_MAC, mac, from, to, hop_limit, payload);
        let (ethernet, packet) = Ethernet::parse(&bytes).unwrap();
        let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
        let datagram = Datagram::parse(&packet, offload.checksum).unwrap();
        let gso = size.map(|size| Gso { kind: GsoKind::Udp, size, header_len: 42, ecn: false });
        let (udp, services) = (&mut self.udp, &mut self.services);
        self.bench.with(|cx| {
            udp.handle_datagram(cx, services, PLUG, GUEST_MAC, &packet, &datagram, gso);
            if !self.gathers {
                udp.depart_all(cx);
            }
        });
    }

    /// The only open socket.
    fn only_socket(&self) -> SocketId {
        assert_eq!(self.bench.edge.sockets.len(), 1);
        *self.bench.edge.sockets.keys().next().unwrap()
    }

    fn socket(&mut self, id: SocketId) -> &mut FakeSocket {
        self.bench.edge.sockets.get_mut(&id).unwrap()
    }

    fn ready(&mut self, id: SocketId) {
        let (udp, services) = (&mut self.udp, &mut self.services);
        self.bench.with(|cx| udp.handle_socket(cx, services, id, READABLE));
    }

    /// Something waits in the error queue of a host socket.
    fn fail(&mut self, id: SocketId) {
        let (udp, services) = (&mut self.udp, &mut self.services);
        let ready = Readiness { error: true, ..Readiness::default() };
        self.bench.with(|cx| udp.handle_socket(cx, services, id, ready));
    }

    /// Somebody on the host's side sends a datagram to a host socket.
    fn arrive(&mut self, id: SocketId, from: SocketAddr, payload: &[u8]) {
        self.socket(id).inbox.push_back((from, payload.to_vec()));
        self.ready(id);
    }

    /// The one datagram that reached the guest.
    fn delivered(&mut self) -> (SocketAddr, SocketAddr, Vec<u8>) {
        let (plug, frame) = self.bench.transmitted();
        assert_eq!(plug, PLUG);
        read_datagram(&frame)
    }

    /// The one ICMP error that reached the guest: who reported, the message, and the ends of the
    /// datagram in question.
    fn error(&mut self) -> (IpAddr, String, SocketAddr, SocketAddr) {
        let (_, frame) = self.bench.transmitted();
        let (ethernet, packet) = Ethernet::parse(&frame.bytes).unwrap();
        assert_eq!(ethernet.destination, GUEST_MAC);
        let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
        let (what, original) = match Icmp::parse(&packet, frame.offload.checksum).unwrap() {
            Icmp::Unreachable { code, original } => (format!("unreachable {code}"), original),
            Icmp::PacketTooBig { mtu, original } => (format!("too big {mtu}"), original),
            Icmp::TimeExceeded { code, original } => (format!("time {code}"), original),
            other => panic!("{other:?}"),
        };
        let inner = IpPacket::parse(ethernet.ethertype, original).unwrap();
        let datagram = Datagram::parse(&inner, Checksum::Valid).unwrap();
        (
            packet.source,
            what,
            SocketAddr::new(inner.source, datagram.source_port),
            SocketAddr::new(inner.destination, datagram.destination_port),
        )
    }

    fn pass(&mut self, time: Duration) {
        self.bench.pass(time);
        let (udp, services) = (&mut self.udp, &mut self.services);
        self.bench.with(|cx| udp.handle_timeout(cx, services));
    }

    fn bind(&mut self, host: &str, port: u16) -> SocketId {
        self.try_bind(host, "one", port).unwrap()
    }

    fn try_bind(&mut self, host: &str, name: &str, port: u16) -> io::Result<SocketId> {
        let (udp, name) = (&mut self.udp, name.to_owned());
        self.bench.with(|cx| udp.bind(cx, at(host), Target::Guest { name, port }))
    }

    /// True if there is more to do at once.
    fn flush(&mut self) -> bool {
        let (udp, services) = (&mut self.udp, &mut self.services);
        self.bench.with(|cx| udp.flush(cx, services))
    }
}

fn read_datagram(frame: &FrameBuf) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let (ethernet, packet) = Ethernet::parse(&frame.bytes).unwrap();
    assert_eq!(ethernet.destination, GUEST_MAC);
    let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
    let datagram = Datagram::parse(&packet, frame.offload.checksum).unwrap();
    (
        SocketAddr::new(packet.source, datagram.source_port),
        SocketAddr::new(packet.destination, datagram.destination_port),
        datagram.payload.to_vec(),
    )
}

#[test]
fn datagrams_go_out_and_answers_come_back_from_the_real_remote() {
    for (remote, port) in [(REMOTE, 40_000), (REMOTE6, 40_000)] {
        let (mut world, remote) = (World::new(), at(remote));
        world.send_with(port, remote, b"question", 17, None);
        let socket = world.only_socket();
        assert_eq!(world.socket(socket).at.port(), port);
        let sent = world.socket(socket).sent.pop_front();
        assert_eq!(sent, Some((remote, Some(16), b"question".to_vec())));
        assert!(world.udp.owns(socket));
        world.arrive(socket, remote, b"answer");
        let (source, destination, payload) = world.delivered();
        assert_eq!((source, payload), (remote, b"answer".to_vec()));
        assert_eq!(destination.port(), port);
        world.send(port, remote, b"");
        let sent = world.socket(socket).sent.pop_front();
        assert_eq!(sent, Some((remote, Some(63), Vec::new())));
        assert_eq!(world.udp.len(), 1);
        assert!(world.bench.counters.all().is_empty());
    }
}

#[test]
fn one_port_of_a_guest_has_one_socket_for_all_remotes() {
    let mut world = World::new();
    for last in 1..=20 {
        world.send(40_000, SocketAddr::from(([198, 51, 100, last], 9000)), b"x");
    }
    let socket = world.only_socket();
    assert_eq!(world.socket(socket).sent.len(), 20);
    assert_eq!(world.udp.len(), 20);
    world.send(40_001, at(REMOTE), b"x");
    assert_eq!(world.bench.edge.sockets.len(), 2);
}

#[test]
fn a_taken_or_privileged_port_is_replaced() {
    let mut world = World::new();
    world.bench.edge.taken.insert(40_000);
    for port in [40_000, 53] {
        world.send(port, at(REMOTE), b"x");
    }
    let ports: Vec<u16> =
        world.bench.edge.sockets.values().map(|socket| socket.at.port()).collect();
    assert_eq!(ports.len(), 2);
    assert!(ports.iter().all(|port| *port > 50_000), "{ports:?}");
}

#[test]
fn strangers_are_filtered_by_address_but_not_by_port() {
    let mut world = World::new();
    world.send(40_000, at(REMOTE), b"x");
    let socket = world.only_socket();
    world.arrive(socket, at("198.51.100.2:53"), b"stranger");
    world.arrive(socket, at("127.0.0.1:53"), b"stranger");
    assert_eq!(world.bench.counters.of("udp-filtered"), 2);
    world.arrive(socket, at("198.51.100.1:9999"), b"same host");
    let (source, _, payload) = world.delivered();
    assert_eq!((source, payload), (at("198.51.100.1:9999"), b"same host".to_vec()));

    let mut world = World::new();
    world.send(40_000, at(REMOTE6), b"x");
    let socket = world.only_socket();
    world.arrive(socket, at("[2001:db8::2]:53"), b"stranger");
    assert_eq!(world.bench.counters.of("udp-filtered"), 1);
    world.arrive(socket, at("[2001:db8::1]:1"), b"same host");
    assert_eq!(world.delivered().0, at("[2001:db8::1]:1"));
}

#[test]
fn one_way_flows_end_after_30_seconds_and_answered_ones_after_120() {
    let nanosecond = Duration::from_nanos(1);
    let mut world = World::new();
    world.send(40_000, at(REMOTE), b"x");
    world.pass(ONE_WAY - nanosecond);
    assert_eq!(world.udp.len(), 1);
    world.send(40_000, at(REMOTE), b"x");
    world.pass(ONE_WAY - nanosecond);
    assert_eq!(world.udp.len(), 1, "sending keeps it alive");
    world.pass(nanosecond + Duration::from_millis(1));
    assert_eq!((world.udp.len(), world.bench.edge.sockets.len()), (0, 0));
    assert_eq!(world.udp.poll_timeout(), None);

    world.send(40_000, at(REMOTE), b"x");
    let socket = world.only_socket();
    world.arrive(socket, at(REMOTE), b"y");
    world.pass(TWO_WAY - nanosecond);
    assert_eq!(world.udp.len(), 1);
    world.pass(Duration::from_millis(2));
    assert_eq!((world.udp.len(), world.bench.edge.sockets.len()), (0, 0));
    assert!(!world.udp.owns(socket));
}

#[test]
fn a_mapping_lives_as_long_as_its_last_flow() {
    let mut world = World::new();
    world.send(40_000, at(REMOTE), b"x");
    world.pass(Duration::from_secs(20));
    world.send(40_000, at("198.51.100.2:53"), b"x");
    let socket = world.only_socket();
    world.pass(Duration::from_secs(11));
    assert_eq!(world.udp.len(), 1);
    world.arrive(socket, at(REMOTE), b"late");
    assert_eq!(world.bench.counters.of("udp-filtered"), 1);
    world.pass(Duration::from_secs(20));
    assert!(world.bench.edge.sockets.is_empty());
}

#[test]
fn timers_say_when_they_are_due() {
    let mut world = World::new();
    assert_eq!(world.udp.poll_timeout(), None);
    world.send(40_000, at(REMOTE), b"x");
    let mut wakes = 0;
    while let Some(due) = world.udp.poll_timeout() {
        wakes += 1;
        world.pass(due - world.bench.now);
    }
    assert_eq!(world.udp.len(), 0);
    assert!(wakes <= 4, "{wakes} wake-ups");
}

#[test]
fn the_policy_is_asked_for_each_new_remote_and_refusals_are_told() {
    let mut world = World::new();
    for (to, what) in [
        ("127.0.0.1:53", "unreachable 13"),
        ("203.0.113.7:53", "unreachable 13"),
        ("169.254.169.254:80", "unreachable 13"),
        ("[::1]:53", "unreachable 1"),
        ("192.168.127.77:53", "unreachable 1"),
        ("[fd00:1:2:3::77]:53", "unreachable 3"),
    ] {
        world.send(40_000, at(to), b"x");
        let (reporter, found, _, quoted) = world.error();
        assert_eq!((found.as_str(), quoted), (what, at(to)));
        assert!(world.bench.config.is_gateway(reporter));
    }
    assert_eq!(world.bench.counters.of("udp-policy"), 6);
    assert!(world.bench.edge.sockets.is_empty());
    world.send(40_000, at(REMOTE), b"x");
    world.send(40_000, at(REMOTE), b"x");
    assert_eq!(world.bench.policy.counts().get("outside"), Some(&1));
}

#[test]
fn a_closed_network_lets_nothing_out() {
    let mut world = World::new();
    world.bench.config.uplink = Uplink::None;
    world.bench.policy = crate::policy::Policy::new(&world.bench.config, Vec::new());
    world.send(40_000, at(REMOTE), b"x");
    assert_eq!(world.error().1, "unreachable 13");
    assert!(world.bench.edge.sockets.is_empty());
}

#[test]
fn host_services_are_reached_by_their_alias_only_and_answer_from_it() {
    // The second service listens on IPv6 only: the families of both sides may differ.
    for (alias, service) in [
        ("192.168.127.254:5432", "127.0.0.1:5432"),
        ("[fd00:1:2:3::fe]:6379", "[::1]:6379"),
        ("192.168.127.254:6379", "[::1]:6379"),
    ] {
        let (mut world, alias, service) = (World::new(), at(alias), at(service));
        world.send_with(40_000, alias, b"query", 1, None);
        let socket = world.only_socket();
        let sent = world.socket(socket).sent.pop_front();
        assert_eq!(sent, Some((service, None, b"query".to_vec())));
        world.arrive(socket, service, b"rows");
        let (source, _, payload) = world.delivered();
        assert_eq!((source, payload), (alias, b"rows".to_vec()));
        // Other ports of the same address are not the service.
        world.arrive(socket, SocketAddr::new(service.ip(), 1), b"intruder");
        assert_eq!(world.bench.counters.of("udp-filtered"), 1);
        // What goes to the world from the same port has a socket of its own.
        world.send(40_000, if alias.is_ipv4() { at(REMOTE) } else { at(REMOTE6) }, b"x");
        assert_eq!(world.bench.edge.sockets.len(), 2);
        world.send(40_000, SocketAddr::new(alias.ip(), 1), b"closed");
        assert_eq!(world.error().3, SocketAddr::new(alias.ip(), 1));
        assert_eq!(world.bench.counters.of("udp-policy"), 1);
    }
}

#[test]
fn the_gateway_has_no_open_ports_of_its_own() {
    let mut world = World::new();
    let gateway = SocketAddr::new(world.bench.config.gateway4().into(), 9);
    world.send(40_000, gateway, b"x");
    assert_eq!(world.error().1, "unreachable 3");
    assert_eq!(world.bench.counters.of("udp-closed-port"), 1);
}

#[test]
fn datagrams_without_a_future_are_dropped() {
    let mut world = World::new();
    world.send_with(40_000, at(REMOTE), b"x", 1, None);
    assert_eq!(world.error().1, "time 0");
    world.send(0, at(REMOTE), b"x");
    for group in ["224.0.0.251:5353", "255.255.255.255:67", "192.168.127.255:1", "[ff02::fb]:1"] {
        world.send(5353, at(group), b"x");
    }
    world.send_from(at("[fe80::2]:1"), at(REMOTE6), b"x", 64, None);
    world.send_from(at("192.168.127.3:1"), at(REMOTE), b"x", 64, None);
    let counters = &world.bench.counters;
    assert_eq!(
        ["hop-limit", "udp-source-port", "udp-source-address"].map(|reason| counters.of(reason)),
        [1, 1, 2]
    );
    assert!(world.bench.edge.frames.is_empty());
    assert!(world.bench.edge.sockets.is_empty());
}

#[test]
fn a_super_frame_becomes_its_datagrams() {
    let mut world = World::new();
    let payload: Vec<u8> = (0..=255).collect();
    world.send_with(40_000, at(REMOTE), &payload, 64, Some(100));
    let socket = world.only_socket();
    let sent: Vec<Vec<u8>> =
        world.socket(socket).sent.drain(..).map(|(_, _, bytes)| bytes).collect();
    assert_eq!(sent, [&payload[..100], &payload[100..200], &payload[200..]]);
}

#[test]
fn what_the_network_reports_becomes_an_icmp_error() {
    let mut world = World::new();
    let gateway: IpAddr = world.bench.config.gateway4().into();
    let router: IpAddr = "198.18.0.1".parse().unwrap();
    world.send(40_000, at(REMOTE), b"x");
    let socket = world.only_socket();
    for (kind, reporter, what) in [
        (IcmpError::PortUnreachable, at(REMOTE).ip(), "unreachable 3"),
        (IcmpError::HostUnreachable, router, "unreachable 1"),
        (IcmpError::NetworkUnreachable, router, "unreachable 0"),
        (IcmpError::Prohibited, router, "unreachable 13"),
        (IcmpError::TooBig(1400), router, "too big 1400"),
        (IcmpError::TimeExceeded, router, "time 0"),
    ] {
        world.socket(socket).errors.push_back(DatagramError::reported(kind, at(REMOTE), reporter));
        world.fail(socket);
        let from = SocketAddr::new(guest().address4.into(), 40_000);
        assert_eq!(world.error(), (reporter, what.to_owned(), from, at(REMOTE)));
    }
    // What this host reports the gateway does, and nobody inside is believed.
    for reporter in ["203.0.113.7", "127.0.0.1", "192.168.127.9", "fe80::1"] {
        let reporter = reporter.parse().unwrap();
        let error = DatagramError::reported(IcmpError::HostUnreachable, at(REMOTE), reporter);
        world.socket(socket).errors.push_back(error);
        world.fail(socket);
        assert_eq!(world.error().0, gateway, "{reporter}");
    }
    // About nothing that is known: nobody is told.
    let destination = at("198.51.100.99:1");
    let error = DatagramError::reported(IcmpError::PortUnreachable, destination, destination.ip());
    world.socket(socket).errors.push_back(error);
    world.fail(socket);
    assert!(world.bench.edge.frames.is_empty());
}

#[test]
fn ipv6_errors_quote_ipv6() {
    let mut world = World::new();
    world.send(40_000, at(REMOTE6), b"x");
    let socket = world.only_socket();
    let reporter = at(REMOTE6).ip();
    let mut error = DatagramError::reported(IcmpError::TooBig(1280), at(REMOTE6), reporter);
    // The kernel says it of what it has just refused, and again of the same a second time.
    error.reporter = None;
    for _ in 0..2 {
        world.socket(socket).failures.push_back(io::ErrorKind::Other);
    }
    world.socket(socket).errors.extend(vec![error; ERROR_BUDGET + 1]);
    world.send(40_000, at(REMOTE6), b"x");
    let (reporter, what, _, quoted) = world.error();
    assert_eq!((what.as_str(), quoted), ("too big 1280", at(REMOTE6)));
    assert_eq!(reporter, IpAddr::from(world.bench.config.gateway6()));
}

#[test]
fn an_error_of_another_datagram_does_not_cost_this_one() {
    let mut world = World::new();
    let other = at("198.51.100.2:53");
    world.send(40_000, other, b"first");
    let socket = world.only_socket();
    let error = DatagramError::reported(IcmpError::PortUnreachable, other, other.ip());
    world.socket(socket).errors.push_back(error);
    world.socket(socket).failures.push_back(io::ErrorKind::ConnectionRefused);
    world.send(40_000, at(REMOTE), b"second");
    assert_eq!(world.error().3, other);
    let last = world.socket(socket).sent.pop_back().map(|(to, _, bytes)| (to, bytes));
    assert_eq!(last, Some((at(REMOTE), b"second".to_vec())));
    assert!(world.bench.counters.all().is_empty());
}

#[test]
fn what_the_kernel_does_not_take_is_counted_and_told() {
    let mut world = World::new();
    world.send(40_000, at(REMOTE), b"x");
    let socket = world.only_socket();
    for (kind, reason, what) in [
        (io::ErrorKind::WouldBlock, "udp-send-queue-full", None),
        (io::ErrorKind::HostUnreachable, "udp-unreachable", Some("unreachable 1")),
        (io::ErrorKind::NetworkUnreachable, "udp-unreachable", Some("unreachable 0")),
        (io::ErrorKind::PermissionDenied, "udp-host-firewall", Some("unreachable 13")),
        (io::ErrorKind::Other, "udp-send-failed", None),
    ] {
        let before = world.bench.counters.of(reason);
        world.socket(socket).failures.push_back(kind);
        world.send(40_000, at(REMOTE), b"x");
        assert_eq!(world.bench.counters.of(reason), before + 1, "{kind:?}");
        match what {
            Some(what) => assert_eq!(world.error().1, what),
            None => assert!(world.bench.edge.frames.is_empty()),
        }
    }
}

#[test]
fn clients_of_a_forward_are_seen_as_themselves_where_guests_can_route_to_them() {
    let mut world = World::new();
    let config = world.bench.config.clone();
    let listener = world.bind("0.0.0.0:5300", 53);
    let guest_end = SocketAddr::new(guest().address4.into(), 53);
    let gateway = SocketAddr::new(config.gateway4().into(), 6000);
    for (client, seen) in [
        ("198.51.100.9:6000", at("198.51.100.9:6000")),
        ("127.0.0.1:6000", gateway),
        ("[::ffff:198.51.100.10]:6000", at("198.51.100.10:6000")),
    ] {
        let client = at(client);
        world.arrive(listener, client, b"hello");
        assert_eq!(world.delivered(), (seen, guest_end, b"hello".to_vec()));
        // An answer of the guest leaves by the listener, to the client as the host knows it.
        if client.is_ipv4() {
            world.send(53, seen, b"welcome");
            let sent = world.socket(listener).sent.pop_front();
            let (to, _, bytes) = sent.unwrap();
            assert_eq!((to, bytes), (client, b"welcome".to_vec()));
        }
    }
    // A second loopback client cannot have the same port at the gateway.
    world.arrive(listener, at("127.0.0.2:6000"), b"hello");
    let (seen, ..) = world.delivered();
    assert_eq!(seen.ip(), gateway.ip());
    assert_ne!(seen.port(), gateway.port());
    world.send(53, seen, b"welcome");
    let (to, ..) = world.socket(listener).sent.pop_front().unwrap();
    assert_eq!(to, at("127.0.0.2:6000"));
    // A client inside of the network's prefix would be looked for on the segment.
    world.arrive(listener, at("192.168.127.77:6001"), b"hello");
    assert_eq!(world.delivered().0, SocketAddr::new(gateway.ip(), 6001));
    assert_eq!((world.udp.accepted(listener), world.udp.len()), (5, 5));
    // The policy has no say in what the host lets in.
    assert!(world.bench.policy.counts().is_empty());
    assert_eq!(world.only_socket(), listener);
}

#[test]
fn ipv6_clients_reach_the_guest_by_ipv6() {
    let mut world = World::new();
    let listener = world.bind("[::]:5300", 53);
    world.arrive(listener, at("[::1]:7000"), b"hello");
    let (seen, destination, _) = world.delivered();
    assert_eq!(seen, SocketAddr::new(world.bench.config.gateway6().into(), 7000));
    assert_eq!(destination, SocketAddr::new(guest().address6.into(), 53));
    world.arrive(listener, at("[2001:db8::5]:7000"), b"hello");
    assert_eq!(world.delivered().0, at("[2001:db8::5]:7000"));
}

#[test]
fn flows_of_a_forward_expire_and_the_listener_stays() {
    let mut world = World::new();
    let listener = world.bind("127.0.0.1:5300", 53);
    world.arrive(listener, at("127.0.0.1:6000"), b"hello");
    let (seen, ..) = world.delivered();
    world.pass(ONE_WAY + Duration::from_millis(1));
    assert_eq!(world.udp.len(), 0);
    assert_eq!(world.only_socket(), listener);
    // The guest's late answer goes to a port of the gateway where nobody is any more.
    world.send(53, seen, b"late");
    assert_eq!(world.error().1, "unreachable 3");
    world.arrive(listener, at("127.0.0.1:6000"), b"again");
    world.delivered();
    let (udp, services) = (&mut world.udp, &mut world.services);
    world.bench.with(|cx| udp.unbind(cx, services, listener));
    assert_eq!(world.udp.len(), 0);
    assert!(world.bench.edge.sockets.is_empty());
}

#[test]
fn a_forward_waits_for_its_guest() {
    let mut world = World::new();
    let listener = world.try_bind("127.0.0.1:5300", "two", 53).unwrap();
    world.arrive(listener, at("127.0.0.1:6000"), b"hello");
    assert_eq!(world.bench.counters.of("forward-without-guest"), 1);
    world.bench.guests.insert(Guest {
        plug: PlugId(2),
        mac: MacAddr([2, 0, 0, 0, 0, 3]),
        address4: "192.168.127.3".parse().unwrap(),
        address6: "fd00:1:2:3::3".parse().unwrap(),
        name: "two".into(),
        aliases: Vec::new(),
    });
    world.arrive(listener, at("127.0.0.1:6000"), b"hello");
    assert_eq!(world.bench.transmitted().0, PlugId(2));
    assert!(world.try_bind("127.0.0.1:5300", "one", 1).is_err());
}

#[test]
fn what_does_not_fit_the_mtu_comes_in_fragments() {
    for (remote, room) in [(REMOTE, 1500 - 28), (REMOTE6, 1500 - 48)] {
        let mut world = World::new();
        world.send(40_000, at(remote), b"x");
        let socket = world.only_socket();
        world.arrive(socket, at(remote), &vec![7; room]);
        assert_eq!(world.delivered().2.len(), room);
        let data: Vec<u8> = (0..=255).cycle().take(65_507).collect();
        for len in [room + 1, 9000, data.len()] {
            world.arrive(socket, at(remote), &data[..len]);
            let (mut parts, mut whole) = (Reassembly::default(), None);
            for (_, frame) in world.bench.edge.frames.drain(..) {
                assert!(frame.bytes.len() <= 1500 + ethernet::HEADER_LEN);
                let packet = IpPacket::parse_bare(&frame.bytes[ethernet::HEADER_LEN..]).unwrap();
                assert_eq!(whole, None);
                let payload = parts.handle(world.bench.now, &packet, packet.fragment.unwrap());
                whole = payload.map(|payload| join(&packet, &payload).unwrap());
            }
            let whole = whole.unwrap();
            let packet = IpPacket::parse_bare(&whole).unwrap();
            let datagram = Datagram::parse(&packet, Checksum::Present).unwrap();
            assert!(datagram.payload == &data[..len], "{len} bytes");
        }
        assert!(world.bench.counters.all().is_empty());
    }
}

#[test]
fn the_wish_to_stay_whole_goes_with_the_datagram() {
    let mut world = World::new();
    world.send(40_000, at(REMOTE6), b"x");
    let socket = world.only_socket();
    assert_eq!(world.socket(socket).whole, Some(true));
    // As it looks when it was put together from fragments.
    let mut fragments = Vec::new();
    let (from, mac) = (SocketAddr::new(guest().address6.into(), 40_000), GUEST_MAC);
    let mut bytes = Vec::new();
    let offload = build::udp_frame(&mut bytes, mac, mac, from, at(REMOTE6), 64, &[7; 2000]);
    let frame = Frame { bytes: &bytes, offload };
    complete_and_cut(frame, 1500, 1, &mut |bytes| fragments.push(bytes.to_vec())).unwrap();
    let first = IpPacket::parse_bare(&fragments[0][ethernet::HEADER_LEN..]).unwrap();
    let mut whole = Vec::new();
    fit(frame, Features::NONE, &mut Vec::new(), &mut |frame| whole = frame.bytes.to_vec()).unwrap();
    let whole = join(&first, &whole[ethernet::HEADER_LEN + 40..]).unwrap();
    let packet = IpPacket::parse_bare(&whole).unwrap();
    let datagram = Datagram::parse(&packet, Checksum::Present).unwrap();
    let (udp, services) = (&mut world.udp, &mut world.services);
    world.bench.with(|cx| {
        udp.handle_datagram(cx, services, PLUG, mac, &packet, &datagram, None);
        udp.depart_all(cx);
    });
    assert_eq!(world.socket(socket).whole, Some(false));
    assert_eq!(world.socket(socket).sent.pop_back().map(|(.., bytes)| bytes.len()), Some(2000));
}

#[test]
fn a_guest_has_a_bounded_number_of_mappings_and_flows() {
    let mut world = World::new();
    let mappings = u16::try_from(MAPPINGS_PER_GUEST).unwrap();
    for port in 1..=mappings + 5 {
        world.send(port, at(REMOTE), b"x");
    }
    assert_eq!(world.bench.edge.sockets.len(), MAPPINGS_PER_GUEST);
    assert_eq!(world.bench.counters.of("udp-mappings-full"), 5);
    let rest = OPENED_PER_GUEST - MAPPINGS_PER_GUEST;
    for port in 1..=u16::try_from(rest + 5).unwrap() {
        world.send(1, SocketAddr::from(([198, 51, 100, 2], port)), b"x");
    }
    assert_eq!(world.udp.len(), OPENED_PER_GUEST);
    assert_eq!(world.bench.counters.of("udp-flows-full"), 5);
    // What is open still works, and so does the way in.
    world.send(1, at(REMOTE), b"x");
    let listener = world.bind("127.0.0.1:5300", 53);
    world.arrive(listener, at("127.0.0.1:6000"), b"x");
    world.delivered();
    // All of it goes in time.
    world.pass(TWO_WAY);
    assert_eq!((world.udp.len(), world.only_socket()), (0, listener));
    world.send(2000, at(REMOTE), b"x");
    assert_eq!(world.udp.len(), 1);
}

#[test]
fn clients_are_bounded_and_cannot_use_up_what_the_guest_may_open() {
    let mut world = World::new();
    let listener = world.bind("0.0.0.0:5300", 53);
    let clients = u16::try_from(ACCEPTED_PER_GUEST).unwrap() + 5;
    for port in 1..=clients {
        world.socket(listener).inbox.push_back((SocketAddr::from(([127, 0, 0, 1], port)), vec![]));
    }
    world.ready(listener);
    while world.flush() {}
    let seen: BTreeSet<SocketAddr> =
        world.bench.edge.frames.drain(..).map(|(_, frame)| read_datagram(&frame).0).collect();
    assert!(seen.len() >= ACCEPTED_PER_GUEST, "two clients look the same to the guest");
    let accepted = world.udp.len();
    assert!((ACCEPTED_PER_GUEST / 2..=ACCEPTED_PER_GUEST).contains(&accepted), "{accepted}");
    world.send(40_000, at(REMOTE), b"x");
    assert_eq!(world.udp.len(), accepted + 1);
    // The one that came last is there, and who had come first is not.
    for (port, known) in [(1, false), (clients, true)] {
        let peer = SocketAddr::from(([127, 0, 0, 1], port));
        let flow = world.udp.table.by_peer(Via::Socket(listener), peer);
        assert_eq!(flow.is_some(), known, "{port}");
    }
}

#[test]
fn a_client_that_was_answered_once_leaves_soon_and_one_that_goes_on_stays() {
    let mut world = World::new();
    let listener = world.bind("127.0.0.1:5300", 53);
    let client = at("127.0.0.1:6000");
    world.arrive(listener, client, b"who?");
    let (seen, ..) = world.delivered();
    world.send(53, seen, b"me");
    world.pass(ONE_WAY - Duration::from_millis(1));
    assert_eq!(world.udp.len(), 1);
    world.pass(Duration::from_millis(2));
    assert_eq!(world.udp.len(), 0);
    world.arrive(listener, client, b"who?");
    let (seen, ..) = world.delivered();
    world.send(53, seen, b"me");
    world.pass(LASTING);
    world.arrive(listener, client, b"and now?");
    world.pass(TWO_WAY - Duration::from_millis(1));
    assert_eq!(world.udp.len(), 1);
    world.pass(Duration::from_millis(2));
    assert_eq!(world.udp.len(), 0);
}

#[test]
fn a_busy_socket_is_read_in_turns() {
    let mut world = World::new();
    world.send(40_000, at(REMOTE), b"x");
    let socket = world.only_socket();
    for _ in 0..RECEIVE_BUDGET + 1 {
        world.socket(socket).inbox.push_back((at(REMOTE), b"y".to_vec()));
    }
    let came = |world: &mut World| -> usize {
        let frames = world.bench.edge.frames.drain(..);
        frames.map(|(_, frame)| read_datagram(&frame).2.len()).sum()
    };
    world.ready(socket);
    assert_eq!(came(&mut world), RECEIVE_BUDGET);
    assert!(!world.flush());
    assert_eq!(came(&mut world), 1);
    assert!(!world.flush());
}

#[test]
fn what_came_together_reaches_the_guest_in_one_frame() {
    let mut world = World::new();
    world.send(40_000, at(REMOTE), b"x");
    world.send(40_000, at("198.51.100.2:53"), b"x");
    let socket = world.only_socket();
    let (other, stranger) = (at("198.51.100.2:53"), at("198.51.100.1:54"));
    let sent: [(SocketAddr, usize); 10] = [
        (at(REMOTE), 1400),
        (at(REMOTE), 1400),
        (at(REMOTE), 700),
        (at(REMOTE), 1400),
        (other, 1400),
        (other, 1400),
        (at(REMOTE), 2000),
        (at(REMOTE), 2000),
        (stranger, 100),
        (stranger, 0),
    ];
    for (from, len) in sent {
        world.socket(socket).inbox.push_back((from, vec![7; len]));
    }
    world.ready(socket);
    let frames: Vec<_> = std::mem::take(&mut world.bench.edge.frames).into();
    let mut seen = Vec::new();
    for (_, frame) in &frames {
        if let Some(gso) = frame.offload.gso {
            assert_eq!((gso.kind, gso.size), (GsoKind::Udp, 1400));
        }
        // What is longer than the network takes is in fragments.
        let Checksum::Partial { .. } = frame.offload.checksum else { continue };
        let (from, to, payload) = read_datagram(frame);
        assert_eq!(to, SocketAddr::new(guest().address4.into(), 40_000));
        seen.push((from, payload.len()));
    }
    let expected =
        [(at(REMOTE), 3500), (at(REMOTE), 1400), (other, 2800), (stranger, 100), (stranger, 0)];
    assert_eq!(seen, expected);
    assert_eq!(frames.len(), expected.len() + 4, "two in two fragments each");
}

#[test]
fn what_a_guest_sends_in_one_go_leaves_together() {
    let mut world = World::new();
    world.gathers = true;
    for (port, to, payload) in [
        (40_000, REMOTE, "a"),
        (40_001, REMOTE, "b"),
        (40_000, REMOTE, "c"),
        (40_000, "198.51.100.2:53", "d"),
        (40_000, REMOTE, ""),
        (40_000, REMOTE, "e"),
    ] {
        world.send(port, at(to), payload.as_bytes());
    }
    world.flush();
    let mut sent = Vec::new();
    for socket in world.bench.edge.sockets.values_mut() {
        let payloads = socket.sent.drain(..).map(|(to, _, payload)| (to, payload));
        sent.push((socket.at.port(), payloads.collect::<Vec<_>>()));
    }
    sent.sort_by_key(|(port, _)| *port);
    let of = |remote: &str, (_, all): &(u16, Vec<(SocketAddr, Vec<u8>)>)| -> Vec<String> {
        let to = all.iter().filter(|(to, _)| *to == at(remote));
        to.map(|(_, payload)| String::from_utf8(payload.clone()).unwrap()).collect()
    };
    assert_eq!(of(REMOTE, &sent[0]), ["a", "c", "", "e"], "a flow keeps its order");
    assert_eq!(of("198.51.100.2:53", &sent[0]), ["d"]);
    assert_eq!(of(REMOTE, &sent[1]), ["b"]);
}

#[test]
fn what_cannot_leave_together_leaves_one_by_one() {
    for (failure, drops, expected) in
        [(io::ErrorKind::InvalidInput, 0, 2), (io::ErrorKind::WouldBlock, 2, 0)]
    {
        let mut world = World::new();
        world.gathers = true;
        world.send(40_000, at(REMOTE), b"a");
        world.send(40_000, at(REMOTE), b"b");
        let socket = world.only_socket();
        world.socket(socket).failures.push_back(failure);
        world.flush();
        assert_eq!(world.socket(socket).sent.len(), expected);
        assert_eq!(world.bench.counters.of("udp-send-queue-full"), drops);
    }
}

#[test]
fn what_waits_leaves_before_its_flow_ends() {
    let mut world = World::new();
    let listener = world.bind("127.0.0.1:5300", 53);
    world.arrive(listener, at("127.0.0.1:6000"), b"who?");
    let (seen, ..) = world.delivered();
    world.gathers = true;
    world.send(53, seen, b"me");
    assert!(world.socket(listener).sent.is_empty());
    let (udp, services) = (&mut world.udp, &mut world.services);
    world.bench.with(|cx| udp.remove_guest(cx, services, &guest()));
    assert_eq!(world.socket(listener).sent.len(), 1);
}

#[test]
fn a_guest_that_leaves_takes_its_flows_along() {
    let mut world = World::new();
    let listener = world.bind("127.0.0.1:5300", 53);
    world.send(40_000, at(REMOTE), b"x");
    world.send(40_001, at(REMOTE6), b"x");
    world.arrive(listener, at("127.0.0.1:6000"), b"x");
    assert_eq!(world.udp.len(), 3);
    let (udp, services) = (&mut world.udp, &mut world.services);
    world.bench.with(|cx| udp.remove_guest(cx, services, &guest()));
    assert_eq!((world.udp.len(), world.only_socket()), (0, listener));
    assert!(world.udp.mappings_of.is_empty());
}

#[test]
fn without_descriptors_the_datagram_is_dropped_and_counted() {
    let mut world = World::new();
    world.bench.edge.descriptors = Some(0);
    world.send(40_000, at(REMOTE), b"x");
    assert_eq!(world.bench.counters.of("udp-no-socket"), 1);
    world.bench.edge.descriptors = None;
    world.send(40_000, at(REMOTE), b"x");
    assert_eq!(world.udp.len(), 1);
}
