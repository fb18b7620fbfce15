//! Services over UDP, as a network in virtual time serves them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::{GATEWAY_MAC, Sim};
use netyard_engine::control::{Plugged, ServiceInstance, ServiceSpec, TurnPolicy};
use netyard_engine::edge::{PlugId, Readiness, SocketId};
use netyard_engine::forward::Protocol;
use netyard_wire::ethernet::Ethernet;
use netyard_wire::icmp::{Icmp, IcmpError};
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Frame, FrameBuf, build};

const PORT: u16 = 5300;
const PUBLISHED: &str = "127.0.0.1:5353";

/// A datagram that came out of a plug.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    plug: PlugId,
    source: SocketAddr,
    destination: SocketAddr,
    payload: Vec<u8>,
}

/// Three instances of a service, and a client.
struct Yard {
    sim: Sim,
    web: [Plugged; 3],
    client: Plugged,
    fronts: [SocketAddr; 2],
}

impl Yard {
    fn new() -> Self {
        let mut sim = Sim::new();
        let web = ["web-1", "web-2", "web-3"].map(|name| sim.plug(name));
        let client = sim.plug("client");
        let mut yard = Self { sim, web, client, fronts: [SocketAddr::from(([0; 4], PORT)); 2] };
        yard.set(|_| {});
        yard
    }

    /// Sets the service with what `change` makes of it.
    fn set(&mut self, change: impl FnOnce(&mut ServiceSpec)) {
        let instances = self.web.iter().zip(1..).map(|(plugged, number)| ServiceInstance {
            name: format!("web-{number}"),
            address4: plugged.address4,
            address6: plugged.address6,
            weight: 1,
            eligible: true,
        });
        let mut spec = ServiceSpec {
            name: "names".into(),
            protocol: Protocol::Udp,
            port: PORT,
            publish: Some(PUBLISHED.parse().unwrap()),
            delivery: Default::default(),
            policy: TurnPolicy::RoundRobin,
            affinity: None,
            instances: instances.collect(),
        };
        change(&mut spec);
        let port = spec.port;
        let Sim { network, world, now } = &mut self.sim;
        let (addresses, _) = network.set_service(*now, "test", spec, world).unwrap();
        self.fronts = [0, 1].map(|family| SocketAddr::new(addresses[family], port));
    }

    fn set_eligible(&mut self, number: usize, eligible: bool) {
        let Sim { network, world, now } = &mut self.sim;
        let name = format!("web-{number}");
        network.set_eligible(*now, "test", "names", &name, eligible, world).unwrap();
    }

    fn unplug(&mut self, number: usize) {
        let Sim { network, world, now } = &mut self.sim;
        assert!(network.remove_plug(*now, "test", self.web[number - 1].plug, world));
    }

    /// The bound host port.
    fn door(&self) -> SocketId {
        let open = self.sim.world.streams.iter().filter(|(_, socket)| !socket.closed);
        let all: Vec<_> = open.map(|(id, _)| SocketId(*id)).collect();
        assert_eq!(all.len(), 1);
        all[0]
    }

    fn frame(&mut self, from: &Plugged, frame: &FrameBuf) {
        let (plug, frame) = (from.plug, frame.clone());
        self.sim.frame(plug, Frame { bytes: &frame.bytes, offload: frame.offload });
    }

    fn send(&mut self, from: &Plugged, ends: (SocketAddr, SocketAddr), payload: &[u8]) {
        let mut bytes = Vec::new();
        let offload =
            build::udp_frame(&mut bytes, from.mac, GATEWAY_MAC, ends.0, ends.1, 64, payload);
        self.frame(from, &FrameBuf { bytes, offload });
    }

    /// The client asks from a port.
    fn ask(&mut self, port: u16, front: SocketAddr, payload: &[u8]) {
        let client = self.client.clone();
        let ip: IpAddr = match front {
            SocketAddr::V4(_) => client.address4.into(),
            SocketAddr::V6(_) => client.address6.into(),
        };
        self.send(&client, (SocketAddr::new(ip, port), front), payload);
    }

    /// Somebody on the host asks from a port.
    fn ask_published(&mut self, port: u16, payload: &[u8]) {
        let door = self.door();
        let from = SocketAddr::from(([127, 0, 0, 1], port));
        self.sim.world.stream(door).datagrams.push_back((from, payload.to_vec()));
        self.sim.host(door, Readiness { readable: true, ..Readiness::default() });
    }

    /// Everything that came out of plugs since the last look.
    fn seen(&mut self) -> Vec<Seen> {
        let frames = std::mem::take(&mut self.sim.world.frames);
        let seen = frames.into_iter().filter_map(|(plug, frame)| {
            let (ethernet, rest) = Ethernet::parse(&frame.bytes).unwrap();
            let packet = IpPacket::parse(ethernet.ethertype, rest).unwrap();
            // The router advertises itself from time to time.
            let datagram = (packet.protocol == ip::UDP)
                .then(|| Datagram::parse(&packet, frame.offload.checksum).unwrap())?;
            Some(Seen {
                plug,
                source: SocketAddr::new(packet.source, datagram.source_port),
                destination: SocketAddr::new(packet.destination, datagram.destination_port),
                payload: datagram.payload.to_vec(),
            })
        });
        seen.collect()
    }

    /// The one datagram that reached an instance, and the instance's number.
    fn led(&mut self) -> (usize, Seen) {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        let number = self.web.iter().position(|plugged| plugged.plug == seen[0].plug);
        (number.unwrap() + 1, seen[0].clone())
    }

    /// An instance answers what it got.
    fn answer(&mut self, number: usize, got: &Seen, payload: &[u8]) {
        let from = self.web[number - 1].clone();
        self.send(&from, (got.destination, got.source), payload);
    }

    /// An instance's kernel says that nobody has the port.
    fn refuse(&mut self, number: usize, got: &Seen) {
        let from = self.web[number - 1].clone();
        let mut original = Vec::new();
        let (source, destination) = (got.source, got.destination);
        build::udp_frame(
            &mut original,
            GATEWAY_MAC,
            from.mac,
            source,
            destination,
            63,
            &got.payload,
        );
        // Kernels repeat only the beginning.
        original.truncate(original.len() - 1);
        let mut bytes = Vec::new();
        let own: IpAddr =
            if source.is_ipv4() { from.address4.into() } else { from.address6.into() };
        let offload = build::icmp_error(
            &mut bytes,
            from.mac,
            GATEWAY_MAC,
            own,
            source.ip(),
            IcmpError::PortUnreachable,
            &original[14..],
        );
        self.frame(&from, &FrameBuf { bytes, offload });
    }

    /// The one ICMP error that reached the client: about which datagram.
    fn told(&mut self) -> (SocketAddr, SocketAddr) {
        let (plug, frame) = self.sim.world.frames.pop_front().expect("a frame");
        assert!(self.sim.world.frames.is_empty());
        assert_eq!(plug, self.client.plug);
        let (ethernet, rest) = Ethernet::parse(&frame.bytes).unwrap();
        let packet = IpPacket::parse(ethernet.ethertype, rest).unwrap();
        let message = Icmp::parse(&packet, Checksum::Present).unwrap();
        let Some((quote, true)) = message.unreachable() else { panic!("{message:?}") };
        (quote.sender(), quote.receiver())
    }

    /// Turns, failed turns and open flows of each instance.
    fn counted(&self) -> Vec<(u64, u64, u64)> {
        let state = self.sim.network.state();
        let instances = state.services[0].instances.iter();
        instances.map(|it| (it.turns, it.failed, it.open)).collect()
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        self.sim.network.state().drops
    }
}

#[test]
fn each_flow_takes_a_turn_and_keeps_its_instance() {
    let mut yard = Yard::new();
    for round in 0..2 {
        for (turn, front) in yard.fronts.into_iter().cycle().take(6).enumerate() {
            let port = 40_000 + u16::try_from(round * 6 + turn).unwrap();
            yard.ask(port, front, b"one");
            let (number, got) = yard.led();
            assert_eq!(number, turn % 3 + 1);
            assert_eq!(got.destination.port(), PORT);
            assert_eq!(got.source.port(), port, "the client's own, if it is free");
            assert!(yard.sim.network.config().is_gateway(got.source.ip()));
            yard.answer(number, &got, b"uno");
            let answers = yard.seen();
            assert_eq!((answers[0].source, answers[0].plug), (front, yard.client.plug));
            assert_eq!((answers[0].destination.port(), answers.len()), (port, 1));
            yard.ask(port, front, b"two");
            assert_eq!(yard.led().0, number);
        }
    }
    assert_eq!(yard.counted(), [(4, 0, 4); 3]);
    assert_eq!(yard.sim.network.state().udp_flows, 12);
    assert!(yard.drops().is_empty(), "{:?}", yard.drops());
    // All of it ends by itself, and a client that comes again takes another turn.
    yard.sim.advance(Duration::from_secs(121));
    assert_eq!(yard.counted(), [(4, 0, 0); 3]);
    assert_eq!(yard.sim.network.state().udp_flows, 0);
    let front = yard.fronts[0];
    yard.ask(40_001, front, b"again");
    assert_eq!(yard.led().0, 1);
}

#[test]
fn published_and_virtual_address_share_one_turn() {
    let mut yard = Yard::new();
    let front = yard.fronts[0];
    for turn in 0..6 {
        let port = 40_000 + u16::try_from(turn).unwrap();
        match turn % 2 {
            0 => yard.ask_published(port, b"who?"),
            _ => yard.ask(port, front, b"who?"),
        }
        let (number, got) = yard.led();
        assert_eq!((number, &got.payload[..]), (turn % 3 + 1, &b"who?"[..]));
        if turn % 2 == 0 {
            yard.answer(number, &got, b"me");
            let door = yard.door();
            let socket = yard.sim.world.stream(door);
            assert_eq!((socket.to.unwrap().port(), &socket.outbox[..]), (port, &b"me"[..]));
        }
    }
}

#[test]
fn an_instance_that_refuses_costs_its_turn_and_the_client_notices_nothing() {
    let mut yard = Yard::new();
    let front = yard.fronts[0];
    yard.ask(40_000, front, b"one");
    let (_, first) = yard.led();
    yard.ask(40_000, front, b"two");
    assert_eq!(yard.led().0, 1);
    yard.refuse(1, &first);
    let moved = yard.seen();
    let payloads: Vec<_> = moved.iter().map(|it| &it.payload[..]).collect();
    assert_eq!(payloads, [b"one", b"two"], "in this order");
    assert!(moved.iter().all(|it| it.plug == yard.web[1].plug));
    // What the first says of the second datagram concerns nobody any more.
    yard.refuse(1, &first);
    assert!(yard.seen().is_empty());
    yard.answer(2, &moved[0], b"dos");
    assert_eq!(yard.seen()[0].source, front);
    assert_eq!(yard.counted(), [(1, 1, 0), (1, 0, 1), (0, 0, 0)]);

    // By the published port, too.
    yard.ask_published(41_000, b"three");
    let (number, got) = yard.led();
    yard.refuse(number, &got);
    let (next, again) = yard.led();
    assert_eq!((number, next, &again.payload[..]), (3, 1, &b"three"[..]));

    // Nobody is left: the client is told.
    yard.ask(42_000, front, b"four");
    let mut client = None;
    for _ in 0..3 {
        let (number, got) = yard.led();
        client = Some(SocketAddr::new(yard.client.address4.into(), 42_000));
        yard.refuse(number, &got);
    }
    assert_eq!(yard.told(), (client.unwrap(), front));
    assert_eq!(yard.drops().get("udp-no-instance"), Some(&1));
}

#[test]
fn a_burst_before_the_refusal_goes_to_the_next_one_as_far_as_it_is_kept() {
    let mut yard = Yard::new();
    let front = yard.fronts[0];
    for _ in 0..10 {
        yard.ask(40_000, front, b"x");
    }
    let first = yard.seen();
    assert_eq!(first.len(), 10);
    yard.refuse(1, &first[0]);
    let moved = yard.seen();
    assert_eq!(moved.len(), 4);
    assert!(moved.iter().all(|it| it.plug == yard.web[1].plug));
    yard.answer(2, &moved[0], b"y");
    assert_eq!(yard.counted(), [(1, 1, 0), (1, 0, 1), (0, 0, 0)]);
}

#[test]
fn what_is_not_answered_yet_is_under_way() {
    let mut yard = Yard::new();
    let front = yard.fronts[0];
    yard.ask(40_000, front, b"x");
    let (_, got) = yard.led();
    yard.set_eligible(1, false);
    let state = |yard: &Yard| yard.sim.network.state().services[0].instances[0];
    assert_eq!((state(&yard).opening, state(&yard).open, state(&yard).draining), (1, 0, true));
    yard.answer(1, &got, b"y");
    assert_eq!(yard.seen().len(), 1);
    assert_eq!((state(&yard).opening, state(&yard).open, state(&yard).draining), (0, 1, true));
}

#[test]
fn a_program_that_has_ipv4_only_is_found_from_ipv6_within_its_turn() {
    let mut yard = Yard::new();
    let front = yard.fronts[1];
    yard.ask(40_000, front, b"six");
    let (number, got) = yard.led();
    assert!(got.destination.is_ipv6());
    yard.refuse(number, &got);
    let (same, again) = yard.led();
    assert_eq!((same, again.destination.is_ipv4(), &again.payload[..]), (1, true, &b"six"[..]));
    yard.answer(1, &again, b"four");
    assert_eq!(yard.seen()[0].source, front);
    assert_eq!(yard.counted()[0], (1, 0, 1));
}

#[test]
fn an_open_flow_that_is_refused_ends_and_the_client_is_told() {
    let mut yard = Yard::new();
    let front = yard.fronts[0];
    yard.ask(40_000, front, b"one");
    let (number, got) = yard.led();
    yard.answer(number, &got, b"uno");
    yard.seen();
    yard.ask(40_000, front, b"two");
    yard.led();
    yard.refuse(1, &got);
    yard.told();
    assert_eq!(yard.counted()[0], (1, 0, 0));
    yard.ask(40_000, front, b"three");
    assert_eq!(yard.led().0, 2);
    // Nobody else may say so.
    let (_, second) = {
        yard.ask(40_001, front, b"four");
        yard.led()
    };
    yard.refuse(1, &second);
    assert!(yard.seen().is_empty());
    assert_eq!(yard.drops().get("icmp-unwanted"), Some(&1));
}

#[test]
fn who_drains_keeps_its_flows_and_who_is_gone_loses_them() {
    let mut yard = Yard::new();
    let front = yard.fronts[0];
    for port in [40_000, 40_001] {
        yard.ask(port, front, b"one");
        let (number, got) = yard.led();
        yard.answer(number, &got, b"uno");
        yard.seen();
    }
    yard.set_eligible(1, false);
    yard.ask(40_000, front, b"two");
    assert_eq!(yard.led().0, 1, "an open flow stays");
    for port in 40_002..40_006 {
        yard.ask(port, front, b"new");
        assert_ne!(yard.led().0, 1);
    }
    // Instance 2 has had flows that it has not answered: they go on to the next one at once.
    yard.unplug(2);
    let moved = yard.seen();
    assert_eq!(moved.len(), 2, "{moved:?}");
    assert!(moved.iter().all(|it| it.plug == yard.web[2].plug && it.payload == b"new"));
    yard.ask(40_001, front, b"three");
    assert_eq!(yard.led().0, 3, "an open one, with the client's next datagram");

    // Taken out of the list it drains, too.
    yard.set(|spec| spec.instances.retain(|it| it.name != "web-1"));
    yard.ask(40_000, front, b"four");
    assert_eq!(yard.led().0, 1);
    let state = yard.sim.network.state();
    let drains = |it: &(&ServiceInstance, bool)| it.0.name == "web-1" && it.1;
    let service = &state.services[0];
    let draining = service.instances.iter().map(|it| it.draining);
    assert!(service.spec.instances.iter().zip(draining).any(|it| drains(&it)));
}

#[test]
fn a_client_that_was_never_answered_leaves_who_may_get_no_flows() {
    let mut yard = Yard::new();
    let front = yard.fronts[0];
    yard.ask(40_000, front, b"log 1");
    assert_eq!(yard.led().0, 1);
    yard.sim.advance(Duration::from_secs(2));
    yard.ask(40_000, front, b"log 2");
    assert_eq!(yard.led().0, 1);
    assert_eq!(yard.counted()[0], (1, 0, 1), "it was not refused, so it is open");
    yard.set_eligible(1, false);
    yard.ask(40_000, front, b"log 3");
    assert_eq!(yard.led().0, 2);
    assert_eq!(yard.counted()[0], (1, 0, 0));
}

#[test]
fn without_instances_clients_are_refused_and_the_port_stays_taken() {
    let mut yard = Yard::new();
    let (front, door) = (yard.fronts[0], yard.door());
    let listens = |yard: &mut Yard| yard.sim.world.stream(door).listening;
    yard.ask_published(41_000, b"one");
    let (number, got) = yard.led();
    yard.answer(number, &got, b"uno");
    for number in 1..=3 {
        yard.set_eligible(number, false);
    }
    yard.ask(40_000, front, b"two");
    assert_eq!(yard.told().1, front);
    // Who was there before goes on; then the port closes.
    yard.ask_published(41_000, b"three");
    assert_eq!(yard.led().0, number);
    assert!(listens(&mut yard));
    yard.ask_published(41_001, b"four");
    assert!(yard.seen().is_empty());
    yard.sim.advance(Duration::from_secs(121));
    assert!(!listens(&mut yard));
    assert!(!yard.sim.world.stream(door).closed);
    yard.set_eligible(2, true);
    assert!(listens(&mut yard));
    yard.ask_published(41_001, b"five");
    assert_eq!(yard.led().0, 2);
    assert_eq!(yard.drops().get("udp-no-instance"), Some(&2));
}

#[test]
fn weights_and_affinity_hold_for_flows() {
    let mut yard = Yard::new();
    yard.set(|spec| spec.instances[0].weight = 2);
    let front = yard.fronts[0];
    let mut next = 40_000;
    let mut order = |yard: &mut Yard, count: usize| -> Vec<usize> {
        let mut led = || {
            next += 1;
            yard.ask(next, front, b"x");
            yard.led().0
        };
        (0..count).map(|_| led()).collect()
    };
    let eight = order(&mut yard, 8);
    assert_eq!(eight[..4], eight[4..]);
    assert_eq!(eight.iter().filter(|number| **number == 1).count(), 4);
    yard.set(|spec| spec.affinity = Some(Duration::from_secs(60)));
    let kept = order(&mut yard, 5);
    assert_eq!(kept, [kept[0]; 5]);
    yard.set_eligible(kept[0], false);
    let moved = order(&mut yard, 5);
    assert!(moved[0] != kept[0] && moved == [moved[0]; 5]);
}

#[test]
fn a_virtual_address_has_nothing_but_its_service() {
    let mut yard = Yard::new();
    let other = SocketAddr::new(yard.fronts[0].ip(), PORT + 1);
    yard.ask(40_000, other, b"x");
    assert_eq!(yard.told().1, other);
    assert_eq!(yard.drops().get("udp-closed-port"), Some(&1));
    // The same port over TCP neither, and over UDP no more once it is TCP's.
    let front = yard.fronts[0];
    yard.ask(40_001, front, b"x");
    yard.led();
    yard.set(|spec| spec.protocol = Protocol::Tcp);
    assert_eq!(yard.sim.network.state().udp_flows, 0);
    yard.ask(40_001, front, b"x");
    yard.told();
    let open: Vec<_> = yard.sim.world.streams.values().filter(|it| !it.closed).collect();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].bound, Some(PUBLISHED.parse().unwrap()), "a TCP port");
}

#[test]
fn one_guest_cannot_use_up_what_others_may_have() {
    let mut yard = Yard::new();
    let front = yard.fronts[0];
    yard.ask_published(41_000, b"x");
    yard.led();
    for port in 0..3000 {
        yard.ask(20_000 + port, front, b"x");
    }
    // Each has its turn, and for the latest ones those leave that were still for the longest time.
    assert_eq!(yard.seen().len(), 3000);
    assert!(yard.drops().is_empty(), "{:?}", yard.drops());
    let flows = yard.sim.network.state().udp_flows;
    assert!((513..=1025).contains(&flows), "{flows}");
    let before = yard.counted();
    yard.ask(22_999, front, b"x");
    yard.ask_published(41_000, b"x");
    assert_eq!((yard.seen().len(), yard.counted()), (2, before), "both have theirs still");
    yard.ask(20_000, front, b"x");
    yard.led();
    assert_eq!(yard.counted().iter().map(|it| it.0).sum::<u64>(), 3002);
    assert!(yard.counted().iter().all(|it| it.1 == 0), "nobody has failed");
}

#[test]
fn requests_over_udp_are_refused() {
    let mut yard = Yard::new();
    let Sim { network, world, now } = &mut yard.sim;
    let spec = ServiceSpec {
        name: "pages".into(),
        protocol: Protocol::Udp,
        port: PORT,
        publish: None,
        delivery: Default::default(),
        policy: TurnPolicy::PerRequest,
        affinity: None,
        instances: Vec::new(),
    };
    let error = network.set_service(*now, "test", spec, world).unwrap_err();
    assert!(error.message.contains("HTTP over TCP"), "{error}");
}
