//! Names, services and the policy through the whole network.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::{GATEWAY_MAC, Guest, Seen, Sim, config};
use netyard_engine::config::{Config, Dns, DnsData, DnsRecord, Uplink};
use netyard_engine::control::{Plugged, ServiceInstance, ServiceSpec, TurnPolicy};
use netyard_engine::edge::SocketId;
use netyard_engine::forward::Protocol;
use netyard_engine::policy::rules::{Direction, Rule, Rules, Verdict};
use netyard_wire::dns::{
    A, AAAA, Data, Flags as DnsFlags, IN, Query, Question, Rcode, Record, Response,
};
use netyard_wire::ethernet::Ethernet;
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::Flags;
use netyard_wire::udp::Datagram;
use netyard_wire::{Frame, SeqNumber, build};

/// A network with a published service of three instances and a client.
struct Lab {
    sim: Sim,
    instances: Vec<Plugged>,
    client: Plugged,
    listener: SocketId,
}

impl Lab {
    fn new() -> Self {
        let mut sim = Sim::new();
        let instances: Vec<_> = ["web-1", "web-2", "web-3"].map(|name| sim.plug(name)).into();
        let spec = ServiceSpec {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: 8080,
            publish: Some("127.0.0.1:8080".parse().unwrap()),
            delivery: Default::default(),
            policy: TurnPolicy::RoundRobin,
            affinity: None,
            instances: instances
                .iter()
                .zip(1..)
                .map(|(plug, number)| ServiceInstance {
                    name: format!("web-{number}"),
                    address4: plug.address4,
                    address6: plug.address6,
                    weight: 1,
                    eligible: true,
                })
                .collect(),
        };
        sim.network.set_service(sim.now, "test", spec, &mut sim.world).unwrap();
        let listener = sim.world.last();
        let client = sim.plug("client");
        Self { sim, instances, client, listener }
    }

    /// The next segment with the number of the instance that it goes to.
    fn syn(&mut self) -> (usize, Seen) {
        let seen = self.sim.expect();
        assert_eq!(seen.flags, Flags::SYN);
        let to = seen.destination.ip();
        let index = self.instances.iter().position(|plug| plug.address4 == to);
        (index.expect("an instance"), seen)
    }

    fn answer(&mut self, index: usize, syn: &Seen, flags: Flags) {
        let mut guest = Guest::new(self.instances[index].clone(), "192.0.2.1:1");
        (guest.own, guest.remote) = (syn.destination, syn.source);
        (guest.seq, guest.ack) = (SeqNumber(500), syn.end());
        guest.send(&mut self.sim, flags, b"");
    }

    /// A guest connects to the virtual address.
    fn connect(&mut self, plug: &Plugged, port: u16, front: &str) -> Guest {
        let mut guest = Guest::new(plug.clone(), front);
        guest.own.set_port(port);
        guest.send(&mut self.sim, Flags::SYN, b"");
        guest
    }

    /// A client of the host connects to the published port.
    fn connect_from_host(&mut self) {
        let socket = self.sim.world.open();
        let from = "127.0.0.1:50000".parse().unwrap();
        self.sim.world.stream(self.listener).waiting.push_back((socket, from));
        self.sim.readable(self.listener);
    }
}

/// Asks the gateway.
fn ask(sim: &mut Sim, plug: &Plugged, name: &str, kind: u16) -> Query {
    let question = Question { name: name.parse().unwrap(), kind, class: IN };
    let query = Query { id: 9, flags: DnsFlags::RECURSION_DESIRED, question, edns: None };
    let mut bytes = Vec::new();
    let offload = build::udp_frame(
        &mut bytes,
        plug.mac,
        GATEWAY_MAC,
        SocketAddr::new(plug.address4.into(), 40_000),
        SocketAddr::new(config().gateway4().into(), 53),
        64,
        &query.emit(),
    );
    sim.frame(plug.plug, Frame { bytes: &bytes, offload });
    query
}

/// Asks the gateway and returns its answer.
fn resolve(sim: &mut Sim, plug: &Plugged, name: &str, kind: u16) -> Response {
    let query = ask(sim, plug, name, kind);
    let (to, frame) = sim.world.frames.pop_front().expect("an answer");
    assert_eq!(to, plug.plug);
    let (header, payload) = Ethernet::parse(&frame.bytes).unwrap();
    let packet = IpPacket::parse(header.ethertype, payload).unwrap();
    let datagram = Datagram::parse(&packet, frame.offload.checksum).unwrap();
    let response = Response::parse(datagram.payload).unwrap();
    assert!(response.answers(&query));
    response
}

fn addresses(response: &Response) -> Vec<IpAddr> {
    let address = |data: &Data| match data {
        Data::A(address) => Some(IpAddr::V4(*address)),
        Data::Aaaa(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    response.answers.iter().filter_map(|record| address(&record.data)).collect()
}

#[test]
fn the_published_and_the_virtual_address_share_the_turns() {
    let mut lab = Lab::new();
    let client = lab.client.clone();
    let mut order = Vec::new();
    for round in 0..9 {
        if round % 2 == 0 {
            lab.connect_from_host();
        } else {
            lab.connect(&client, 40_000 + round, "192.168.127.253:8080");
        }
        let (index, syn) = lab.syn();
        lab.answer(index, &syn, Flags::SYN | Flags::ACK);
        while lab.sim.segment().is_some() {}
        order.push(index);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    let service = lab.sim.network.state().services.remove(0);
    assert!(service.instances.iter().all(|turn| (turn.turns, turn.open) == (3, 3)));
}

#[test]
fn with_affinity_guests_and_the_host_stay_with_their_instances() {
    let mut lab = Lab::new();
    let mut spec = lab.sim.network.state().services.remove(0).spec;
    spec.affinity = Some(Duration::from_secs(60));
    let now = lab.sim.now;
    lab.sim.network.set_service(now, "test", spec, &mut lab.sim.world).unwrap();
    let client = lab.client.clone();
    let mut order = Vec::new();
    for round in 0..8 {
        if round % 2 == 0 {
            lab.connect_from_host();
        } else {
            lab.connect(&client, 40_000 + round, "192.168.127.253:8080");
        }
        let (index, syn) = lab.syn();
        lab.answer(index, &syn, Flags::SYN | Flags::ACK);
        while lab.sim.segment().is_some() {}
        order.push(index);
    }
    assert_eq!(order, [0, 1, 0, 1, 0, 1, 0, 1]);
    assert_eq!(lab.sim.network.state().services.remove(0).clients, 2);
}

#[test]
fn a_guest_finds_a_service_by_name_and_speaks_to_an_instance() {
    let mut lab = Lab::new();
    let client = lab.client.clone();
    let found = addresses(&resolve(&mut lab.sim, &client, "WEB.test", A));
    let front = SocketAddr::new(found[0], 8080).to_string();
    let mut guest = lab.connect(&client, 40_000, &front);
    let (index, syn) = lab.syn();
    assert_eq!(syn.source.ip(), config().gateway4());
    lab.answer(index, &syn, Flags::SYN | Flags::ACK);
    let (to, _) = lab.sim.world.frames.front().expect("a frame");
    assert_eq!(*to, client.plug);
    let answer = lab.sim.expect();
    assert_eq!((answer.source, answer.destination), (front.parse().unwrap(), guest.own));
    guest.acknowledge(&mut lab.sim, &answer);
    assert_eq!(lab.sim.expect().flags, Flags::ACK);
    guest.send(&mut lab.sim, Flags::ACK | Flags::PSH, b"GET /");
    let request = lab.sim.expect();
    assert_eq!((request.destination, request.payload.as_slice()), (syn.destination, &b"GET /"[..]));
}

#[test]
fn an_instance_may_use_its_own_service() {
    let mut lab = Lab::new();
    let own = lab.instances[0].clone();
    lab.connect(&own, 40_000, "[fd00:1:2:3::fd]:8080");
    let (to, _) = lab.sim.world.frames.front().expect("a frame");
    assert_eq!(*to, own.plug);
    let syn = lab.sim.expect();
    assert_eq!(syn.destination.ip(), own.address6);
    lab.answer(0, &syn, Flags::SYN | Flags::ACK);
    assert_eq!(lab.sim.expect().source.to_string(), "[fd00:1:2:3::fd]:8080");
}

#[test]
fn a_client_is_refused_only_when_all_instances_have_failed() {
    let mut lab = Lab::new();
    let client = lab.client.clone();
    let guest = lab.connect(&client, 40_000, "192.168.127.253:8080");
    let (index, syn) = lab.syn();
    lab.answer(index, &syn, Flags::RST | Flags::ACK);
    let (index, _) = lab.syn();
    assert_eq!(index, 1);
    // It dies while it is asked.
    lab.sim
        .network
        .set_eligible(lab.sim.now, "test", "web", "web-2", false, &mut lab.sim.world)
        .unwrap();
    let (index, _) = lab.syn();
    assert_eq!(index, 2);
    lab.sim.advance(Duration::from_secs(1));
    let mut last = lab.sim.expect();
    while let Some(seen) = lab.sim.segment() {
        last = seen;
    }
    assert_eq!((last.flags, last.destination), (Flags::RST | Flags::ACK, guest.own));
    let service = lab.sim.network.state().services.remove(0);
    let turns: Vec<_> = service.instances.iter().map(|turn| (turn.turns, turn.failed)).collect();
    assert_eq!((turns, service.refused), (vec![(1, 1); 3], 1));
}

#[test]
fn names_come_and_go_with_plugs() {
    let mut sim = Sim::new();
    let asker = sim.plug("asker");
    assert_eq!(resolve(&mut sim, &asker, "db.test", A).flags.rcode(), Rcode::NameError);
    let db = sim.plug("db");
    let found = addresses(&resolve(&mut sim, &asker, "db.test", AAAA));
    assert_eq!(found, [IpAddr::V6(db.address6)]);
    assert!(sim.network.remove_plug(sim.now, "test", db.plug, &mut sim.world));
    assert_eq!(resolve(&mut sim, &asker, "db.test", A).flags.rcode(), Rcode::NameError);
}

#[test]
fn a_closed_network_still_knows_its_own_names_and_services() {
    let mut sim = Sim::with(Config { uplink: Uplink::None, ..config() });
    let asker = sim.plug("asker");
    assert_eq!(resolve(&mut sim, &asker, "example.org", A).flags.rcode(), Rcode::Refused);
    assert_eq!(addresses(&resolve(&mut sim, &asker, "asker.test", A)), [asker.address4]);
    let mut guest = Guest::new(asker, "203.0.113.1:80");
    guest.send(&mut sim, Flags::SYN, b"");
    assert!(sim.expect().has(Flags::RST));
    assert_eq!(sim.network.state().policy["uplink-none"], 1);
}

#[test]
fn a_rule_about_a_name_is_about_what_a_record_says_of_it() {
    let record = DnsRecord {
        name: "api.shop.example".into(),
        ttl: 60,
        data: DnsData::Address("203.0.113.5".parse().unwrap()),
    };
    let dns = Dns { records: vec![record], ..Dns::default() };
    let mut sim = Sim::with(Config { dns, ..config() });
    let plug = sim.plug("asker");
    let rule = Rule {
        name: "shop".into(),
        verdict: Verdict::Allow,
        others: vec!["api.shop.example".parse().unwrap()],
        direction: Direction::Out,
        instances: Vec::new(),
        protocol: None,
        ports: Vec::new(),
    };
    let rules = Rules { list: vec![rule], otherwise: Verdict::Deny };
    sim.network.set_rules(sim.now, "test", rules, &mut sim.world);
    let mut guest = Guest::new(plug.clone(), "203.0.113.5:443");
    guest.send(&mut sim, Flags::SYN, b"");
    assert!(sim.expect().has(Flags::RST), "nothing has told it that name");
    let found = addresses(&resolve(&mut sim, &plug, "api.shop.example", A));
    assert_eq!(found, ["203.0.113.5".parse::<IpAddr>().unwrap()]);
    guest = Guest::new(plug, "203.0.113.5:443");
    guest.own.set_port(40_001);
    guest.send(&mut sim, Flags::SYN, b"");
    assert_eq!(sim.world.stream(sim.world.last()).to, Some(guest.remote));
}

#[test]
fn a_kept_answer_opens_a_name_for_each_guest_that_asks() {
    let mut sim = Sim::new();
    sim.network.set_upstreams(vec!["198.51.100.1:53".parse().unwrap()]);
    let [one, other] = ["one", "other"].map(|name| sim.plug(name));
    let rule = Rule {
        name: "shop".into(),
        verdict: Verdict::Allow,
        others: vec!["shop.example".parse().unwrap()],
        direction: Direction::Out,
        instances: Vec::new(),
        protocol: None,
        ports: Vec::new(),
    };
    let rules = Rules { list: vec![rule], otherwise: Verdict::Deny };
    sim.network.set_rules(sim.now, "test", rules, &mut sim.world);
    ask(&mut sim, &one, "shop.example", A);
    let socket = sim.world.last();
    let asked = Query::parse(&sim.world.stream(socket).outbox).unwrap();
    let mut response = Response::to(&asked, Rcode::NoError);
    let address = Data::A([203, 0, 113, 5].into());
    response.answers = vec![Record { name: asked.question.name, ttl: 300, data: address }];
    sim.datagram(socket, "198.51.100.1:53".parse().unwrap(), &response.emit(512));
    sim.world.frames.clear();

    let connects = |sim: &mut Sim, plug: &Plugged, port: u16| {
        let mut guest = Guest::new(plug.clone(), "203.0.113.5:443");
        guest.own.set_port(port);
        guest.send(sim, Flags::SYN, b"");
        sim.world.stream(sim.world.last()).to == Some(guest.remote)
    };
    assert!(connects(&mut sim, &one, 40_000));
    let before = sim.world.last();
    assert!(!connects(&mut sim, &other, 40_000) || sim.world.last() == before);
    while sim.segment().is_some() {}
    sim.world.frames.clear();
    // It is told what the other one has fetched, and so may go there.
    let found = addresses(&resolve(&mut sim, &other, "shop.example", A));
    assert_eq!(found, ["203.0.113.5".parse::<IpAddr>().unwrap()]);
    assert!(connects(&mut sim, &other, 40_001) && sim.world.last() != before);
}

#[test]
fn where_the_host_has_other_addresses_what_was_answered_is_forgotten() {
    let mut sim = Sim::new();
    sim.network.set_upstreams(vec!["127.0.0.53:53".parse().unwrap()]);
    let address = || vec!["192.0.2.7".parse().unwrap()];
    sim.network.set_host_addresses(address());
    let plug = sim.plug("guest");
    let fetched = |sim: &mut Sim| {
        let before = sim.world.streams.len();
        ask(sim, &plug, "shop.example", A);
        if sim.world.streams.len() == before {
            return false;
        }
        let socket = sim.world.last();
        let asked = Query::parse(&sim.world.stream(socket).outbox).unwrap();
        let mut response = Response::to(&asked, Rcode::NoError);
        let data = Data::A([203, 0, 113, 5].into());
        response.answers = vec![Record { name: asked.question.name, ttl: 300, data }];
        sim.datagram(socket, "127.0.0.53:53".parse().unwrap(), &response.emit(512));
        true
    };
    assert!(fetched(&mut sim) && !fetched(&mut sim));
    sim.network.set_host_addresses(address());
    assert!(!fetched(&mut sim), "they are the same");
    sim.network.set_host_addresses(vec!["198.51.100.7".parse().unwrap()]);
    assert!(fetched(&mut sim));
}

#[test]
fn guests_cannot_reach_the_host_by_any_address() {
    let mut sim = Sim::new();
    sim.network.set_host_addresses(vec!["203.0.113.7".parse().unwrap()]);
    let plug = sim.plug("guest");
    for (port, to) in [
        "127.0.0.1:22",
        "0.0.0.0:22",
        "[::1]:22",
        "[::]:22",
        "[::ffff:127.0.0.1]:22",
        "[64:ff9b::7f00:1]:22",
        "203.0.113.7:22",
        "169.254.169.254:80",
        "[fd00:ec2::254]:80",
        "192.168.127.254:22",
        "192.168.127.99:22",
    ]
    .iter()
    .enumerate()
    {
        let mut guest = Guest::new(plug.clone(), to);
        guest.own.set_port(40_000 + u16::try_from(port).unwrap());
        guest.send(&mut sim, Flags::SYN, b"");
        assert!(sim.world.streams.is_empty(), "{to}: a host socket was opened");
    }
}
