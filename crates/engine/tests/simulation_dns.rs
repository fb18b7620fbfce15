//! The gateway's DNS server by TCP, through the whole network.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::{GATEWAY_MAC, Guest, Seen, Sim, config};
use netyard_engine::config::{Config, Dns, Uplink};
use netyard_engine::control::Plugged;
use netyard_wire::dns::{A, Data, Flags as DnsFlags, IN, Query, Question, Rcode, Record, Response};
use netyard_wire::ethernet::Ethernet;
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::Flags;
use netyard_wire::udp::Datagram;
use netyard_wire::{Frame, build};

const RESOLVER: &str = "198.51.100.1:53";
/// The gateway's addresses of the network that is tested.
const GATEWAYS: [&str; 2] = ["192.168.127.1:53", "[fd00:1:2:3::1]:53"];

fn query(id: u16, name: &str) -> Query {
    let question = Question { name: name.parse().unwrap(), kind: A, class: IN };
    Query { id, flags: DnsFlags::RECURSION_DESIRED, question, edns: None }
}

/// A message as it is in a stream.
fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

fn ask(id: u16, name: &str) -> Vec<u8> {
    framed(&query(id, name).emit())
}

/// A resolver's answer with this many addresses.
fn resolved(asked: &Query, count: u8) -> Response {
    let mut response = Response::to(asked, Rcode::NoError);
    response.answers = (0..count)
        .map(|n| Record {
            name: asked.question.name.clone(),
            ttl: 300,
            data: Data::A([203, 0, 113, n].into()),
        })
        .collect();
    response
}

/// Opens a connection to the gateway's DNS server.
fn connect(sim: &mut Sim, plug: &Plugged, port: u16, gateway: &str) -> Guest {
    let mut guest = Guest::new(plug.clone(), gateway);
    guest.own.set_port(port);
    guest.send(sim, Flags::SYN, b"");
    let answer = sim.expect();
    assert_eq!(answer.flags, Flags::SYN | Flags::ACK);
    guest.acknowledge(sim, &answer);
    assert_eq!(receive(sim, &mut guest), (Vec::new(), false));
    guest
}

/// Takes in all that was sent to the guest, acknowledging it: the answers, and whether the gateway
/// has finished.
fn receive(sim: &mut Sim, guest: &mut Guest) -> (Vec<Response>, bool) {
    let (mut bytes, mut finished) = (Vec::new(), false);
    while let Some(seen) = sim.segment() {
        assert!(!seen.has(Flags::RST), "{seen:?}");
        if seen.end() == seen.seq {
            continue;
        }
        assert_eq!(seen.seq, guest.ack);
        bytes.extend(&seen.payload);
        finished |= seen.has(Flags::FIN);
        guest.acknowledge(sim, &seen);
    }
    let mut answers = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((len, tail)) = rest.split_first_chunk() {
        let (message, tail) = tail.split_at(u16::from_be_bytes(*len).into());
        answers.push(Response::parse(message).unwrap());
        rest = tail;
    }
    (answers, finished)
}

fn addresses(response: &Response) -> Vec<IpAddr> {
    let address = |data: &Data| match data {
        Data::A(address) => Some(IpAddr::V4(*address)),
        _ => None,
    };
    response.answers.iter().filter_map(|record| address(&record.data)).collect()
}

/// The network has let go of everything.
fn assert_all_over(sim: &Sim) {
    assert_eq!(sim.network.state().tcp_flows, 0);
    assert!(sim.world.streams.values().all(|stream| stream.closed));
}

#[test]
fn names_are_asked_for_over_both_addresses_in_any_network() {
    for uplink in [Uplink::Nat, Uplink::None] {
        let mut sim = Sim::with(Config { uplink, ..config() });
        let plug = sim.plug("asker");
        for gateway in GATEWAYS {
            let mut guest = connect(&mut sim, &plug, 40_000, gateway);
            guest.send(&mut sim, Flags::ACK | Flags::PSH, &ask(7, "asker.test"));
            let (answers, finished) = receive(&mut sim, &mut guest);
            assert!(answers[0].answers(&query(7, "asker.test")) && !finished);
            assert_eq!(addresses(&answers[0]), [plug.address4]);
            guest.send(&mut sim, Flags::FIN | Flags::ACK, b"");
            assert_eq!(receive(&mut sim, &mut guest), (Vec::new(), true));
            assert_all_over(&sim);
        }
        assert!(sim.network.state().policy.is_empty(), "no question of the outside");
        assert!(sim.network.state().drops.is_empty());
    }
}

#[test]
fn other_ports_of_the_gateway_are_refused_still() {
    let mut sim = Sim::new();
    let plug = sim.plug("asker");
    for remote in ["192.168.127.1:54", "192.168.127.254:53", "[fd00:1:2:3::fe]:53"] {
        let mut guest = Guest::new(plug.clone(), remote);
        guest.send(&mut sim, Flags::SYN, b"");
        assert!(sim.expect().has(Flags::RST), "{remote}");
        assert!(sim.world.streams.is_empty());
    }
}

#[test]
fn a_client_that_finishes_at_once_gets_all_its_answers() {
    let mut sim = Sim::new();
    let plug = sim.plug("asker");
    let mut guest = connect(&mut sim, &plug, 40_000, GATEWAYS[0]);
    let queries: Vec<u8> = (1..=20).flat_map(|id| ask(id, "asker.test")).collect();
    guest.send(&mut sim, Flags::FIN | Flags::ACK, &queries);
    let (answers, finished) = receive(&mut sim, &mut guest);
    assert!(answers.iter().map(|answer| answer.id).eq(1..=20) && finished);
    assert_all_over(&sim);
}

/// Asks the gateway by datagram.
fn ask_by_datagram(sim: &mut Sim, plug: &Plugged, query: &Query) {
    let mut bytes = Vec::new();
    let source = SocketAddr::new(plug.address4.into(), 40_000);
    let gateway = GATEWAYS[0].parse().unwrap();
    let offload =
        build::udp_frame(&mut bytes, plug.mac, GATEWAY_MAC, source, gateway, 64, &query.emit());
    sim.frame(plug.plug, Frame { bytes: &bytes, offload });
}

/// Plays the resolver, whose answer is too long for a datagram.
fn resolve(sim: &mut Sim, count: u8) {
    let socket = sim.world.last();
    let asked = Query::parse(&sim.world.stream(socket).outbox).unwrap();
    let cut = resolved(&asked, count).emit(512);
    sim.datagram(socket, RESOLVER.parse().unwrap(), &cut);
    let stream = sim.world.last();
    assert_eq!(sim.world.stream(stream).to, Some(RESOLVER.parse().unwrap()));
    sim.writable(stream);
    let asked = Query::parse(&sim.world.stream(stream).outbox[2..]).unwrap();
    sim.arrives(stream, &framed(&resolved(&asked, count).emit(65_535)));
}

#[test]
fn an_answer_that_is_truncated_by_datagram_is_whole_by_stream() {
    let dns = Dns { cache: false, ..Dns::default() };
    let mut sim = Sim::with(Config { dns, ..config() });
    sim.network.set_upstreams(vec![RESOLVER.parse().unwrap()]);
    let plug = sim.plug("asker");
    let query = query(7, "long.example");
    ask_by_datagram(&mut sim, &plug, &query);
    resolve(&mut sim, 200);
    let (_, frame) = sim.world.frames.pop_front().expect("an answer");
    let (header, payload) = Ethernet::parse(&frame.bytes).unwrap();
    let packet = IpPacket::parse(header.ethertype, payload).unwrap();
    let datagram = Datagram::parse(&packet, frame.offload.checksum).unwrap();
    let answer = Response::parse(datagram.payload).unwrap();
    assert!(answer.answers(&query) && answer.flags.contains(DnsFlags::TRUNCATED));

    let mut guest = connect(&mut sim, &plug, 40_000, GATEWAYS[0]);
    guest.send(&mut sim, Flags::ACK, &framed(&query.emit()));
    assert_eq!(sim.expect().flags, Flags::ACK);
    resolve(&mut sim, 200);
    let (answers, _) = receive(&mut sim, &mut guest);
    assert!(answers[0].answers(&query) && !answers[0].flags.contains(DnsFlags::TRUNCATED));
    assert_eq!(addresses(&answers[0]).len(), 200);
}

#[test]
fn what_was_fetched_for_one_guest_is_told_to_all_as_it_fits() {
    let mut sim = Sim::new();
    sim.network.set_upstreams(vec![RESOLVER.parse().unwrap()]);
    let [plug, other] = ["asker", "other"].map(|name| sim.plug(name));
    let query = query(7, "long.example");
    ask_by_datagram(&mut sim, &plug, &query);
    resolve(&mut sim, 200);
    sim.world.frames.clear();
    let sockets = sim.world.last();
    // The other one asks by stream, and nobody is asked for it.
    let mut guest = connect(&mut sim, &other, 40_000, GATEWAYS[0]);
    guest.send(&mut sim, Flags::ACK, &framed(&query.emit()));
    let (answers, _) = receive(&mut sim, &mut guest);
    assert!(answers[0].answers(&query) && addresses(&answers[0]).len() == 200);
    assert!(sim.world.streams.range(sockets.0 + 1..).all(|(_, stream)| stream.to.is_none()));
    let state = sim.network.state().dns.unwrap();
    assert_eq!((state.hits, state.misses, state.answers), (1, 1, 1));
}

#[test]
fn a_still_connection_ends_and_is_not_waited_for() {
    let mut sim = Sim::new();
    let plug = sim.plug("asker");
    let mut guest = connect(&mut sim, &plug, 40_000, GATEWAYS[0]);
    sim.advance(Duration::from_millis(9_990));
    sim.silent();
    sim.advance(Duration::from_millis(10));
    assert_eq!(receive(&mut sim, &mut guest), (Vec::new(), true));
    assert_all_over(&sim);
    // What it says too late belongs to nothing.
    guest.send(&mut sim, Flags::ACK, &ask(1, "asker.test"));
    assert_eq!(sim.expect().flags, Flags::RST);
}

#[test]
fn what_is_no_query_resets_the_connection() {
    let mut sim = Sim::new();
    let plug = sim.plug("asker");
    let mut guest = connect(&mut sim, &plug, 40_000, GATEWAYS[0]);
    guest.send(&mut sim, Flags::ACK, b"GET / HTTP/1.1\r\n\r\n");
    let mut last: Seen = sim.expect();
    while let Some(seen) = sim.segment() {
        last = seen;
    }
    assert!(last.has(Flags::RST));
    assert_eq!(sim.network.state().drops["dns-oversize-query"], 1);
    assert_all_over(&sim);
}

#[test]
fn a_guest_that_resets_or_leaves_takes_its_streams_along() {
    let mut sim = Sim::new();
    sim.network.set_upstreams(vec![RESOLVER.parse().unwrap()]);
    let plug = sim.plug("asker");
    let mut one = connect(&mut sim, &plug, 40_000, GATEWAYS[0]);
    let mut two = connect(&mut sim, &plug, 40_001, GATEWAYS[1]);
    one.send(&mut sim, Flags::ACK, &ask(1, "example.org"));
    two.send(&mut sim, Flags::ACK, &ask(1, "example.org"));
    one.send(&mut sim, Flags::RST, b"");
    assert_eq!(sim.network.state().tcp_flows, 1);
    sim.network.remove_plug(sim.now, "test", plug.plug, &mut sim.world);
    sim.flush();
    assert_all_over(&sim);
}

#[test]
fn connections_are_bounded_for_each_guest() {
    let mut sim = Sim::new();
    let [plug, other] = ["asker", "other"].map(|name| sim.plug(name));
    let mut guests: Vec<Guest> =
        (0..64).map(|n| connect(&mut sim, &plug, 40_000 + n, GATEWAYS[0])).collect();
    let mut refused = Guest::new(plug.clone(), GATEWAYS[1]);
    refused.send(&mut sim, Flags::SYN, b"");
    assert_eq!(sim.expect().flags, Flags::RST | Flags::ACK);
    assert_eq!(sim.network.state().drops["dns-streams-full"], 1);
    connect(&mut sim, &other, 40_000, GATEWAYS[0]);
    // One ends, one more may come.
    let last = guests.last_mut().unwrap();
    last.send(&mut sim, Flags::FIN | Flags::ACK, b"");
    assert_eq!(receive(&mut sim, last), (Vec::new(), true));
    connect(&mut sim, &plug, 50_000, GATEWAYS[0]);
}
