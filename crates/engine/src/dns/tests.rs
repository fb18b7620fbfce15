use std::time::Duration;

use netyard_wire::dns::{
    A, AAAA, ANY, CNAME, Data, Edns, IN, Name, PTR, Question, Record, SOA, SRV, TXT,
};
use netyard_wire::ethernet::Ethernet;
use netyard_wire::icmp::IcmpError;
use netyard_wire::ip::IpPacket;
use netyard_wire::udp::Datagram;

mod stream;

use super::*;
use crate::config::{DnsData, DnsRecord, DnsSplit};
use crate::control::{ServiceSpec, TurnPolicy};
use crate::edge::DatagramError;
use crate::fake::{self, GUEST_MAC, PLUG};
use crate::forward::Protocol;

const FIRST: &str = "198.51.100.1:53";
const SECOND: &str = "[2001:db8::2]:53";
const READABLE: Readiness =
    Readiness { readable: true, writable: false, read_closed: false, hangup: false, error: false };
const WRITABLE: Readiness = Readiness { writable: true, ..READABLE };

struct Bench {
    world: fake::Bench,
    services: Services,
    dns: Dns,
}

impl Bench {
    fn new() -> Self {
        let mut world = fake::Bench::new();
        let mut guest = world.guests.remove(PLUG).unwrap();
        guest.name = "Web-1".into();
        guest.aliases = vec!["api".into()];
        world.guests.insert(guest);
        let mut services = Services::default();
        let spec = ServiceSpec {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: 80,
            publish: None,
            delivery: Default::default(),
            policy: TurnPolicy::RoundRobin,
            affinity: None,
            instances: Vec::new(),
        };
        services.set("hello", spec, &world.config, |_| false).unwrap();
        // Most tests ask the same again and again.
        world.config.dns.cache = false;
        let mut dns = Dns::new(&world.config, world.now);
        dns.set_upstreams(vec![FIRST.parse().unwrap(), SECOND.parse().unwrap()]);
        Self { world, services, dns }
    }

    /// The same with records of the network's own.
    fn with_records(records: &[(&str, DnsData)]) -> Self {
        let mut bench = Self::new();
        let record = |(name, data): &(&str, DnsData)| DnsRecord {
            name: (*name).into(),
            ttl: 300,
            data: data.clone(),
        };
        bench.world.config.dns.records = records.iter().map(record).collect();
        bench.again()
    }

    /// The same as the configuration is by now.
    fn again(mut self) -> Self {
        self.dns = Dns::new(&self.world.config, self.world.now);
        self.dns.set_upstreams(vec![FIRST.parse().unwrap(), SECOND.parse().unwrap()]);
        self
    }

    /// With answers that are kept.
    fn keeping() -> Self {
        let mut bench = Self::new();
        bench.world.config.dns.cache = true;
        bench.again()
    }

    /// Asks for a name outside; whether a resolver was asked, which answers so.
    fn fetch(&mut self, asked: &Query, answer: impl Fn(&Query) -> Response) -> bool {
        self.give(&asked.emit());
        if self.open_sockets() == 0 {
            return false;
        }
        let (socket, to, asked) = self.asked();
        self.receive(socket, &to.to_string(), answer(&asked).emit(512));
        true
    }

    fn give(&mut self, message: &[u8]) {
        self.give_from(40_000, message);
    }

    fn give_from(&mut self, port: u16, message: &[u8]) {
        let client = Client {
            plug: Some(PLUG),
            source: SocketAddr::new(fake::guest().address4.into(), port),
            destination: SocketAddr::new(self.world.config.gateway4().into(), PORT),
            transport: Transport::Frame(PLUG, GUEST_MAC),
        };
        let (dns, services) = (&mut self.dns, &self.services);
        self.world.with(|cx| dns.handle_query(cx, services, client, message));
    }

    /// What the client was answered, if it was.
    fn message(&mut self) -> Option<Vec<u8>> {
        let (plug, frame) = self.world.edge.frames.pop_front()?;
        let (ethernet, payload) = Ethernet::parse(&frame.bytes).unwrap();
        let packet = IpPacket::parse(ethernet.ethertype, payload).unwrap();
        let datagram = Datagram::parse(&packet, frame.offload.checksum).unwrap();
        assert_eq!((plug, datagram.source_port), (PLUG, PORT));
        assert_eq!(packet.source, self.world.config.gateway4());
        Some(datagram.payload.to_vec())
    }

    fn answer(&mut self) -> Response {
        let message = self.message().expect("an answer");
        Response::parse(&message).unwrap()
    }

    /// Asks for a name of our own.
    fn ask(&mut self, name: &str, kind: u16) -> Response {
        self.give(&query(7, name, kind).emit());
        let answer = self.answer();
        assert!(answer.answers(&query(7, name, kind)));
        assert!(answer.flags.contains(Flags::AUTHORITATIVE));
        answer
    }

    fn addresses(&mut self, name: &str, kind: u16) -> Vec<String> {
        let answer = self.ask(name, kind);
        assert_eq!(answer.flags.rcode(), Rcode::NoError, "{name}");
        answer.answers.iter().map(|record| show(&record.data)).collect()
    }

    /// The newest question at a resolver: its socket, where it went, and the message.
    fn asked(&mut self) -> (SocketId, SocketAddr, Query) {
        let (id, socket) = self.world.edge.sockets.iter_mut().next_back().expect("a socket");
        let (to, _, message) = socket.sent.pop_front().expect("a question");
        (*id, to, Query::parse(&message).unwrap())
    }

    fn receive(&mut self, socket: SocketId, from: &str, message: Vec<u8>) {
        let socket_state = self.world.edge.sockets.get_mut(&socket).expect("an open socket");
        socket_state.inbox.push_back((from.parse().unwrap(), message));
        self.ready(socket, READABLE);
    }

    fn ready(&mut self, socket: SocketId, ready: Readiness) {
        assert!(self.dns.owns(socket));
        self.world.with(|cx| self.dns.handle_socket(cx, socket, ready));
        self.flush();
    }

    fn flush(&mut self) {
        while self.world.with(|cx| self.dns.flush(cx, &self.services)) {}
    }

    fn advance(&mut self, time: Duration) {
        let until = self.world.now + time;
        while let Some(at) = self.dns.poll_timeout().filter(|at| *at <= until) {
            self.world.now = at;
            self.world.with(|cx| self.dns.handle_timeout(cx));
            self.flush();
        }
        self.world.now = until;
    }

    fn open_sockets(&self) -> usize {
        self.world.edge.sockets.len() + self.world.edge.streams.len()
    }
}

fn query(id: u16, name: &str, kind: u16) -> Query {
    let question = Question { name: name.parse().unwrap(), kind, class: IN };
    Query { id, flags: Flags::RECURSION_DESIRED, question, edns: None }
}

/// A resolver's answer to `asked` with this many addresses.
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

fn show(data: &Data) -> String {
    match data {
        Data::A(address) => address.to_string(),
        Data::Aaaa(address) => address.to_string(),
        Data::Ptr(name) => name.to_string(),
        Data::Cname(name) => format!("alias of {name}"),
        Data::Srv(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
        Data::Other { kind: TXT, bytes } => String::from_utf8_lossy(bytes).into_owned(),
        data => format!("{data:?}"),
    }
}

#[test]
fn names_of_the_network_are_known() {
    let mut bench = Bench::new();
    for (name, address4, address6) in [
        ("web-1.lan", "192.168.127.2", "fd00:1:2:3::2"),
        ("WEB-1.Lan", "192.168.127.2", "fd00:1:2:3::2"),
        ("api.lan", "192.168.127.2", "fd00:1:2:3::2"),
        ("web.lan", "192.168.127.253", "fd00:1:2:3::fd"),
        ("gateway.lan", "192.168.127.1", "fd00:1:2:3::1"),
        ("host.lan", "192.168.127.254", "fd00:1:2:3::fe"),
        ("localhost", "127.0.0.1", "::1"),
    ] {
        assert_eq!(bench.addresses(name, A), [address4], "{name}");
        assert_eq!(bench.addresses(name, AAAA), [address6], "{name}");
        assert_eq!(bench.addresses(name, ANY), [address4, address6], "{name}");
    }
    assert_eq!(bench.open_sockets(), 0, "nobody else was asked");
}

#[test]
fn what_is_not_there_is_said_with_the_zones_record() {
    let mut bench = Bench::new();
    for (name, kind, rcode, zone) in [
        ("nobody.lan", A, Rcode::NameError, "lan"),
        ("a.web-1.lan", A, Rcode::NameError, "lan"),
        ("web-1.lan", PTR, Rcode::NoError, "lan"),
        ("lan", A, Rcode::NoError, "lan"),
        ("99.127.168.192.in-addr.arpa", PTR, Rcode::NameError, "127.168.192.in-addr.arpa"),
        ("127.168.192.in-addr.arpa", PTR, Rcode::NoError, "127.168.192.in-addr.arpa"),
        ("x.127.168.192.in-addr.arpa", PTR, Rcode::NameError, "127.168.192.in-addr.arpa"),
    ] {
        let answer = bench.ask(name, kind);
        assert_eq!(answer.flags.rcode(), rcode, "{name}");
        assert!(answer.answers.is_empty(), "{name}");
        let [record] = answer.authority.as_slice() else { panic!("one record for {name}") };
        assert_eq!(record.name, zone.parse::<Name>().unwrap());
        assert!(matches!(record.data, Data::Soa(_)) && record.ttl == 1);
    }
    let top = bench.ask("lan", SOA);
    assert!(matches!(top.answers.as_slice(), [Record { data: Data::Soa(_), .. }]));
}

fn at(address: &str) -> DnsData {
    DnsData::Address(address.parse().unwrap())
}

fn alias(of: &str) -> DnsData {
    DnsData::Alias(of.into())
}

#[test]
fn the_networks_own_records_are_answered_for() {
    let srv = DnsData::Srv { priority: 1, weight: 2, port: 389, target: "printer.lan".into() };
    let mut bench = Bench::with_records(&[
        ("printer.lan", at("192.168.127.77")),
        ("printer.lan", DnsData::Text("second floor".into())),
        ("deep.below.lan", at("192.168.127.78")),
        ("_ldap._tcp.lan", srv),
        ("lan", DnsData::Text("ours".into())),
        ("api.shop.test", at("203.0.113.5")),
        ("api.shop.test", at("2001:db8::5")),
        // Who is there has its own addresses.
        ("web-1.lan", at("203.0.113.9")),
        ("web-1.lan", DnsData::Text("an instance".into())),
    ]);
    for (name, kind, expected) in [
        ("printer.lan", A, &["192.168.127.77"][..]),
        ("Printer.LAN", TXT, &["\u{c}second floor"]),
        ("deep.below.lan", A, &["192.168.127.78"]),
        ("below.lan", A, &[]),
        ("_ldap._tcp.lan", SRV, &["1 2 389 printer.lan"]),
        ("lan", TXT, &["\u{4}ours"]),
        ("API.shop.test", A, &["203.0.113.5"]),
        ("api.shop.test", AAAA, &["2001:db8::5"]),
        ("api.shop.test", ANY, &["203.0.113.5", "2001:db8::5"]),
        ("web-1.lan", A, &["192.168.127.2"]),
        ("web-1.lan", TXT, &["\u{b}an instance"]),
        ("77.127.168.192.in-addr.arpa", PTR, &["printer.lan"]),
    ] {
        assert_eq!(bench.addresses(name, kind), expected, "{name}");
    }
    assert_eq!(bench.ask("printer.lan", A).answers[0].ttl, 300);
    // Of these names nothing else is known to anybody.
    for (name, zone) in [("printer.lan", "lan"), ("api.shop.test", "api.shop.test")] {
        let answer = bench.ask(name, SRV);
        assert_eq!(answer.flags.rcode(), Rcode::NoError);
        assert!(answer.answers.is_empty() && answer.authority[0].name == zone.parse().unwrap());
    }
    assert_eq!(bench.open_sockets(), 0, "nobody else was asked");
    bench.give(&query(7, "www.shop.test", A).emit());
    assert_eq!(bench.asked().2.question.name.to_string(), "www.shop.test");
}

#[test]
fn an_alias_answers_with_what_it_stands_for() {
    let mut bench = Bench::with_records(&[
        ("www.lan", alias("web.lan")),
        ("old.shop.test", alias("api.shop.test")),
        ("api.shop.test", at("203.0.113.5")),
        ("gone.lan", alias("nobody.lan")),
    ]);
    assert_eq!(bench.addresses("www.lan", A), ["alias of web.lan", "192.168.127.253"]);
    assert_eq!(bench.addresses("www.lan", CNAME), ["alias of web.lan"]);
    assert_eq!(bench.addresses("old.shop.test", A), ["alias of api.shop.test", "203.0.113.5"]);
    let answer = bench.ask("www.lan", A);
    assert_eq!(answer.answers[1].name, "web.lan".parse().unwrap());
    let other = bench.ask("www.lan", TXT);
    assert_eq!(
        (other.answers.len(), other.authority.len()),
        (1, 1),
        "an alias without such a record"
    );
    let gone = bench.ask("gone.lan", A);
    assert_eq!((gone.flags.rcode(), gone.answers.len()), (Rcode::NameError, 1));
}

#[test]
fn services_say_where_they_are() {
    let mut bench = Bench::new();
    assert_eq!(bench.addresses("_web._tcp.lan", SRV), ["0 0 80 web.lan"]);
    assert_eq!(bench.addresses("_tcp.lan", SRV), [""; 0]);
    for name in ["_web._udp.lan", "_udp.lan", "_mail._tcp.lan", "_http._tcp.web.lan"] {
        assert_eq!(bench.ask(name, SRV).flags.rcode(), Rcode::NameError, "{name}");
    }
    // Where requests take turns it is HTTP for sure.
    let mut spec = bench.services.state().remove(0).spec;
    spec.policy = TurnPolicy::PerRequest;
    bench.services.set("hello", spec, &bench.world.config, |_| false).unwrap();
    assert_eq!(bench.addresses("_http._tcp.web.lan", SRV), ["0 0 80 web.lan"]);
    assert_eq!(bench.addresses("_tcp.web.lan", SRV), [""; 0]);
}

#[test]
fn addresses_have_names() {
    let mut bench = Bench::new();
    for (address, name) in [
        ("192.168.127.2", "Web-1.lan"),
        ("fd00:1:2:3::2", "Web-1.lan"),
        ("192.168.127.253", "web.lan"),
        ("fd00:1:2:3::fd", "web.lan"),
        ("192.168.127.1", "gateway.lan"),
        ("fd00:1:2:3::fe", "host.lan"),
    ] {
        let reverse = Name::reverse(address.parse().unwrap()).to_string();
        let found = bench.addresses(&reverse, PTR);
        assert_eq!(found, [name], "{address}");
    }
    // The middle of the IPv6 zone exists; nobody has this address.
    let middle = bench.ask("0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", PTR);
    assert_eq!(middle.flags.rcode(), Rcode::NoError);
    let nobody = Name::reverse("fd00:1:2:3::77".parse().unwrap()).to_string();
    assert_eq!(bench.ask(&nobody, PTR).flags.rcode(), Rcode::NameError);
}

#[test]
fn other_names_are_asked_of_the_hosts_resolvers() {
    let mut bench = Bench::new();
    bench.give(&query(7, "Example.org", A).emit());
    let (socket, to, asked) = bench.asked();
    assert_eq!(to, FIRST.parse().unwrap());
    assert_ne!(asked.id, 7, "the identification is our own");
    assert!(bench.message().is_none());
    bench.receive(socket, FIRST, resolved(&asked, 1).emit(512));
    let answer = bench.answer();
    assert!(answer.answers(&query(7, "example.org", A)));
    assert_eq!(show(&answer.answers[0].data), "203.0.113.0");
    assert!(!answer.flags.contains(Flags::AUTHORITATIVE));
    assert_eq!(bench.open_sockets(), 0);
    bench.advance(Duration::from_secs(60));
    assert!(bench.message().is_none());
}

#[test]
fn forged_answers_are_refused() {
    let mut bench = Bench::new();
    bench.give(&query(7, "example.org", A).emit());
    let (socket, _, asked) = bench.asked();
    let good = resolved(&asked, 1);
    let other = query(asked.id, "example.com", A);
    for (from, forged) in [
        ("198.51.100.9:53", good.emit(512)),
        ("198.51.100.1:54", good.emit(512)),
        (FIRST, Response { id: asked.id ^ 1, ..good.clone() }.emit(512)),
        (FIRST, Response { question: Some(other.question), ..good.clone() }.emit(512)),
        (FIRST, Response { question: None, ..good.clone() }.emit(512)),
        (FIRST, asked.emit()),
        (FIRST, vec![0; 5]),
    ] {
        bench.receive(socket, from, forged);
        assert!(bench.message().is_none());
    }
    assert_eq!(bench.world.counters.of("dns-stray-answer"), 7);
    bench.receive(socket, FIRST, good.emit(512));
    assert_eq!(bench.answer().answers.len(), 1);
}

#[test]
fn somebody_who_guesses_ends_the_attempt() {
    let mut bench = Bench::new();
    bench.give(&query(7, "example.org", A).emit());
    let (socket, _, asked) = bench.asked();
    for _ in 0..64 {
        let guess = Response { id: asked.id ^ 1, ..resolved(&asked, 1) };
        bench.receive(socket, FIRST, guess.emit(512));
    }
    let (next, to, again) = bench.asked();
    assert_eq!(to, SECOND.parse().unwrap());
    assert!(next != socket && again.id != asked.id);
}

#[test]
fn a_silent_resolver_is_passed_over_and_asked_last_from_then_on() {
    let mut bench = Bench::new();
    bench.give(&query(7, "example.org", A).emit());
    assert_eq!(bench.asked().1, FIRST.parse().unwrap());
    bench.advance(Duration::from_millis(1500));
    let (socket, to, asked) = bench.asked();
    assert_eq!(to, SECOND.parse().unwrap());
    bench.receive(socket, SECOND, resolved(&asked, 1).emit(512));
    assert_eq!(bench.answer().flags.rcode(), Rcode::NoError);
    bench.give(&query(8, "example.org", A).emit());
    assert_eq!(bench.asked().1, SECOND.parse().unwrap());
}

#[test]
fn when_all_are_silent_the_client_is_told() {
    let mut bench = Bench::new();
    bench.give(&query(7, "example.org", A).emit());
    bench.advance(Duration::from_millis(2999));
    assert!(bench.message().is_none());
    bench.advance(Duration::from_millis(1));
    assert_eq!(bench.answer().flags.rcode(), Rcode::ServerFailure);
    assert_eq!(bench.open_sockets(), 0);
}

#[test]
fn errors_of_resolvers_and_of_the_network_go_to_the_next_at_once() {
    let mut bench = Bench::new();
    bench.give(&query(7, "example.org", A).emit());
    let (socket, to, _) = bench.asked();
    let error = DatagramError::reported(IcmpError::PortUnreachable, to, to.ip());
    bench.world.edge.sockets.get_mut(&socket).unwrap().errors.push_back(error);
    bench.ready(socket, Readiness { error: true, ..Readiness::default() });
    let (socket, to, asked) = bench.asked();
    assert_eq!(to, SECOND.parse().unwrap());
    // The last one's own error is what the client gets.
    let refused = Response::to(&asked, Rcode::Refused);
    bench.receive(socket, SECOND, refused.emit(512));
    let answer = bench.answer();
    assert_eq!((answer.id, answer.flags.rcode()), (7, Rcode::Refused));
}

#[test]
fn beside_one_that_is_silent_for_a_moment_the_next_is_asked() {
    let mut bench = Bench::new();
    bench.give(&query(7, "example.org", A).emit());
    let (first, to, asked) = bench.asked();
    assert_eq!(to, FIRST.parse().unwrap());
    bench.advance(Duration::from_millis(299));
    assert_eq!(bench.open_sockets(), 1);
    bench.advance(Duration::from_millis(1));
    let (second, to, asked_second) = bench.asked();
    assert!(second != first && to == SECOND.parse().unwrap());
    // The first one was slow only.
    bench.receive(first, FIRST, resolved(&asked, 1).emit(512));
    assert_eq!(bench.answer().flags.rcode(), Rcode::NoError);
    assert_eq!(bench.open_sockets(), 0);
    assert_ne!(asked.id, asked_second.id);
    // Now it says nothing, and then has its turn after the other.
    bench.give(&query(8, "example.org", A).emit());
    assert_eq!(bench.asked().1, FIRST.parse().unwrap());
    bench.advance(Duration::from_millis(300));
    let (second, _, asked) = bench.asked();
    bench.receive(second, SECOND, resolved(&asked, 2).emit(512));
    assert_eq!(bench.answer().answers.len(), 2);
    assert_eq!(bench.open_sockets(), 0);
    bench.give(&query(9, "example.org", A).emit());
    assert_eq!(bench.asked().1, SECOND.parse().unwrap());
}

#[test]
fn an_error_of_one_does_not_end_the_wait_for_another() {
    let mut bench = Bench::new();
    bench.give(&query(7, "example.org", A).emit());
    let (first, _, asked) = bench.asked();
    bench.advance(Duration::from_millis(300));
    let (second, _, asked_second) = bench.asked();
    bench.receive(second, SECOND, Response::to(&asked_second, Rcode::ServerFailure).emit(512));
    assert!(bench.message().is_none());
    bench.advance(Duration::from_millis(1000));
    bench.receive(first, FIRST, resolved(&asked, 1).emit(512));
    assert_eq!(bench.answer().flags.rcode(), Rcode::NoError);
    assert_eq!(bench.open_sockets(), 0);
}

#[test]
fn that_something_is_not_there_waits_for_those_that_were_asked_before() {
    let gone = |asked: &Query| Response::to(asked, Rcode::NameError).emit(512);
    let empty = |asked: &Query| Response::to(asked, Rcode::NoError).emit(512);
    let mut bench = Bench::new();
    for (id, negative) in [(1, &gone as &dyn Fn(&Query) -> Vec<u8>), (2, &empty)] {
        // The first one knows it, and stays the first.
        bench.give(&query(id, "inside.example", A).emit());
        let (first, to, asked) = bench.asked();
        assert_eq!(to, FIRST.parse().unwrap());
        bench.advance(Duration::from_millis(300));
        let (second, _, asked_second) = bench.asked();
        bench.receive(second, SECOND, negative(&asked_second));
        assert!(bench.message().is_none());
        bench.receive(first, FIRST, resolved(&asked, 1).emit(512));
        assert_eq!(bench.answer().answers.len(), 1);
        assert_eq!(bench.open_sockets(), 0);
    }
    // It has failed: then it counts.
    bench.give(&query(3, "no.example", A).emit());
    let (first, to, asked) = bench.asked();
    assert_eq!(to, FIRST.parse().unwrap());
    bench.advance(Duration::from_millis(300));
    let (second, _, asked_second) = bench.asked();
    bench.receive(second, SECOND, gone(&asked_second));
    bench.receive(first, FIRST, Response::to(&asked, Rcode::ServerFailure).emit(512));
    let answer = bench.answer();
    assert_eq!((answer.id, answer.flags.rcode()), (3, Rcode::NameError));
    // Or it stays silent, and has its turn after the other from then on.
    bench.give(&query(4, "no.example", A).emit());
    assert_eq!(bench.asked().1, FIRST.parse().unwrap());
    bench.advance(Duration::from_millis(300));
    let (second, _, asked_second) = bench.asked();
    bench.receive(second, SECOND, gone(&asked_second));
    bench.advance(Duration::from_millis(2699));
    assert!(bench.message().is_none());
    bench.advance(Duration::from_millis(1));
    assert_eq!(bench.answer().flags.rcode(), Rcode::NameError);
    assert_eq!(bench.open_sockets(), 0);
    bench.give(&query(5, "example.org", A).emit());
    assert_eq!(bench.asked().1, SECOND.parse().unwrap());
}

#[test]
fn names_below_a_domain_are_asked_of_its_resolvers() {
    let mut bench = Bench::new();
    let split = |domain: &str, server: &str| DnsSplit {
        domain: domain.into(),
        servers: vec![server.parse().unwrap()],
    };
    bench.world.config.dns.split = vec![
        split("corp.example", "10.0.0.53:53"),
        split("lab.corp.example", "10.1.0.53:5353"),
        split("10.in-addr.arpa", "10.0.0.54:53"),
    ];
    let mut bench = bench.again();
    for (id, (name, server)) in [
        ("corp.example", "10.0.0.53:53"),
        ("wiki.CORP.example", "10.0.0.53:53"),
        ("a.b.lab.corp.example", "10.1.0.53:5353"),
        ("2.1.0.10.in-addr.arpa", "10.0.0.54:53"),
        ("xcorp.example", FIRST),
        ("example", FIRST),
    ]
    .into_iter()
    .enumerate()
    {
        bench.give(&query(u16::try_from(id).unwrap(), name, A).emit());
        let (socket, to, asked) = bench.asked();
        assert_eq!(to, server.parse().unwrap(), "{name}");
        bench.receive(socket, server, resolved(&asked, 1).emit(512));
        assert_eq!(bench.answer().answers.len(), 1);
    }
    // Nobody else hears of these names, also where that one does not answer.
    bench.give(&query(7, "corp.example", A).emit());
    bench.advance(Duration::from_millis(1500));
    assert!(bench.world.edge.sockets.values().all(|socket| {
        socket.sent.iter().all(|(to, ..)| *to == "10.0.0.53:53".parse().unwrap())
    }));
    bench.advance(Duration::from_millis(1500));
    assert_eq!(bench.answer().flags.rcode(), Rcode::ServerFailure);
    // All names can be asked elsewhere than of the host's resolvers.
    bench.world.config.dns.split = vec![split(".", "10.2.0.53:53")];
    let mut bench = bench.again();
    bench.give(&query(8, "example", A).emit());
    assert_eq!(bench.asked().1, "10.2.0.53:53".parse().unwrap());
}

#[test]
fn answers_are_kept_for_as_long_as_they_say() {
    let mut bench = Bench::keeping();
    let good = |asked: &Query| resolved(asked, 2);
    assert!(bench.fetch(&query(7, "example.org", A), good));
    assert_eq!(bench.answer().answers[0].ttl, 300);
    bench.advance(Duration::from_secs(100));
    assert!(!bench.fetch(&query(8, "EXAMPLE.org", A), good));
    let answer = bench.answer();
    assert!(answer.answers(&query(8, "example.org", A)));
    assert_eq!(answer.question.unwrap().name.to_string(), "EXAMPLE.org");
    assert!(answer.answers.iter().all(|record| record.ttl == 200) && answer.answers.len() == 2);
    // Another type, another manner.
    assert!(bench.fetch(&query(9, "example.org", AAAA), good));
    let edns = Some(Edns { udp_size: 1232 });
    assert!(bench.fetch(&Query { edns, ..query(10, "example.org", A) }, good));
    bench.advance(Duration::from_secs(199));
    assert!(!bench.fetch(&query(11, "example.org", A), good));
    bench.advance(Duration::from_secs(1));
    assert!(bench.fetch(&query(12, "example.org", A), good), "its time is over");
    let state = bench.dns.state().unwrap();
    assert_eq!((state.hits, state.misses), (2, 4));
    assert!(state.answers >= 2 && state.bytes > 0);
    // What the network itself answers for is never kept.
    bench.world.edge.frames.clear();
    assert_eq!(bench.addresses("web-1.lan", A), ["192.168.127.2"]);
    bench.world.guests.remove(PLUG);
    assert_eq!(bench.ask("web-1.lan", A).flags.rcode(), Rcode::NameError);
}

#[test]
fn that_something_is_not_there_is_kept_and_errors_are_not() {
    let mut bench = Bench::keeping();
    let mut record = bench.ask("lan", SOA).answers.remove(0);
    (record.name, record.ttl) = ("example".parse().unwrap(), 60);
    let Data::Soa(soa) = &mut record.data else { panic!("the zone's record") };
    soa.minimum = 30;
    let gone = |asked: &Query| {
        let mut response = Response::to(asked, Rcode::NameError);
        response.authority.push(record.clone());
        response
    };
    assert!(bench.fetch(&query(7, "no.example", A), gone));
    assert!(!bench.fetch(&query(8, "no.example", A), gone));
    bench.message();
    let answer = bench.answer();
    assert_eq!((answer.id, answer.flags.rcode()), (8, Rcode::NameError));
    bench.advance(Duration::from_secs(30));
    assert!(bench.fetch(&query(9, "no.example", A), gone), "the zone has said for how long");
    let failing = |asked: &Query| Response::to(asked, Rcode::ServerFailure);
    for id in 20..22 {
        assert!(bench.fetch(&query(id, "broken.example", A), failing));
        let (socket, to, asked) = bench.asked();
        bench.receive(socket, &to.to_string(), failing(&asked).emit(512));
        assert_eq!(bench.open_sockets(), 0);
    }
}

#[test]
fn other_resolvers_may_know_other_answers() {
    let mut bench = Bench::keeping();
    let good = |asked: &Query| resolved(asked, 1);
    let [first, second] = [FIRST, SECOND].map(|at| at.parse().unwrap());
    assert!(bench.fetch(&query(7, "example.org", A), good));
    bench.dns.set_upstreams(vec![first, second]);
    assert!(!bench.fetch(&query(8, "example.org", A), good), "they are the same");
    bench.dns.set_upstreams(vec![second]);
    assert!(bench.fetch(&query(9, "example.org", A), good));
}

#[test]
fn answers_to_what_was_asked_before_others_became_resolvers_are_not_kept() {
    let mut bench = Bench::keeping();
    let good = |asked: &Query| resolved(asked, 1);
    bench.give(&query(7, "example.org", A).emit());
    let (socket, _, asked) = bench.asked();
    bench.dns.set_upstreams(vec![SECOND.parse().unwrap()]);
    bench.receive(socket, FIRST, good(&asked).emit(512));
    assert_eq!(bench.answer().answers.len(), 1);
    assert!(bench.fetch(&query(8, "example.org", A), good), "it was not kept");
    assert!(!bench.fetch(&query(9, "example.org", A), good));
}

#[test]
fn a_truncated_answer_is_fetched_over_tcp_and_cut_to_what_the_client_takes() {
    let mut bench = Bench::new();
    let edns = Some(Edns { udp_size: 1232 });
    let big = Query { edns, ..query(7, "example.org", A) };
    for (wanted, count, cut) in [(&big, 40, false), (&query(8, "example.org", A), 40, true)] {
        bench.give(&wanted.emit());
        let (socket, _, asked) = bench.asked();
        bench.receive(socket, FIRST, resolved(&asked, 100).emit(512));
        let (stream, state) = bench.world.edge.streams.first_key_value().expect("a stream");
        assert_eq!(state.to, FIRST.parse().unwrap());
        let stream = *stream;
        bench.ready(stream, WRITABLE);
        let state = bench.world.edge.streams.get_mut(&stream).unwrap();
        let asked = Query::parse(&state.sent[2..]).unwrap();
        assert_eq!(usize::from(state.sent[1]), state.sent.len() - 2);
        // It comes in pieces.
        let message = resolved(&asked, count).emit(65_535);
        let framed = [&u16::try_from(message.len()).unwrap().to_be_bytes(), &message[..]].concat();
        for piece in framed.chunks(300) {
            assert!(bench.message().is_none());
            bench.world.edge.streams.get_mut(&stream).unwrap().inbox.extend_from_slice(piece);
            bench.ready(stream, READABLE);
        }
        let answer = bench.answer();
        assert!(answer.answers(wanted));
        assert_eq!(answer.flags.contains(Flags::TRUNCATED), cut);
        assert_eq!(answer.answers.len(), if cut { 0 } else { usize::from(count) });
        assert_eq!(bench.open_sockets(), 0);
    }
}

#[test]
fn where_tcp_fails_the_truncated_answer_is_better_than_none() {
    let mut bench = Bench::new();
    bench.dns.set_upstreams(vec![FIRST.parse().unwrap()]);
    bench.give(&query(7, "example.org", A).emit());
    for _ in 0..2 {
        let (socket, _, asked) = bench.asked();
        bench.receive(socket, FIRST, resolved(&asked, 100).emit(512));
        let (stream, state) = bench.world.edge.streams.iter_mut().next().expect("a stream");
        state.failure = Some(std::io::ErrorKind::ConnectionRefused);
        let stream = *stream;
        bench.ready(stream, Readiness { error: true, ..WRITABLE });
    }
    let answer = bench.answer();
    assert!(answer.id == 7 && answer.flags.contains(Flags::TRUNCATED));
    assert_eq!(bench.open_sockets(), 0);
}

#[test]
fn a_client_that_repeats_itself_is_not_asked_for_twice() {
    let mut bench = Bench::new();
    bench.give(&query(7, "example.org", A).emit());
    bench.give(&query(7, "example.org", A).emit());
    assert_eq!(bench.open_sockets(), 1);
    bench.give(&query(8, "example.org", AAAA).emit());
    assert_eq!(bench.open_sockets(), 2);
}

#[test]
fn lookups_are_bounded_and_end_with_their_guest() {
    let mut bench = Bench::new();
    for port in 1..=200 {
        bench.give_from(port, &query(7, "example.org", A).emit());
    }
    assert_eq!(bench.open_sockets(), 128);
    assert_eq!(bench.world.counters.of("dns-lookups-full"), 72);
    bench.world.with(|cx| bench.dns.remove_guest(cx, PLUG));
    assert_eq!(bench.open_sockets(), 0);
    bench.advance(Duration::from_secs(10));
    assert!(bench.message().is_none());
}

#[test]
fn a_guest_that_asks_much_has_nobody_asked_beside_others() {
    let mut bench = Bench::new();
    for port in 1..=100 {
        bench.give_from(port, &query(7, "example.org", A).emit());
    }
    bench.advance(Duration::from_millis(300));
    assert_eq!(bench.open_sockets(), 128);
    bench.advance(Duration::from_millis(2000));
    assert_eq!(bench.open_sockets(), 128);
}

#[test]
fn without_descriptors_or_resolvers_the_client_is_told() {
    let mut bench = Bench::new();
    bench.world.edge.descriptors = Some(0);
    bench.give(&query(7, "example.org", A).emit());
    assert_eq!(bench.answer().flags.rcode(), Rcode::ServerFailure);
    bench.dns.set_upstreams(Vec::new());
    bench.give(&query(7, "example.org", A).emit());
    assert_eq!(bench.answer().flags.rcode(), Rcode::ServerFailure);
}

#[test]
fn a_closed_network_refuses_what_is_not_its_own() {
    let mut bench = Bench::new();
    bench.world.config.uplink = Uplink::None;
    bench.give(&query(7, "example.org", A).emit());
    assert_eq!(bench.answer().flags.rcode(), Rcode::Refused);
    assert_eq!(bench.addresses("web-1.lan", A), ["192.168.127.2"]);
    // Not even the reverse names of addresses that are not ours leave.
    bench.give(&query(7, "1.1.168.192.in-addr.arpa", PTR).emit());
    assert_eq!(bench.answer().flags.rcode(), Rcode::Refused);
    assert_eq!(bench.open_sockets(), 0);
}

#[test]
fn nonsense_is_answered_or_counted() {
    let mut bench = Bench::new();
    bench.give(b"x");
    assert_eq!(bench.world.counters.of("dns-not-a-query"), 1);
    bench.give(&resolved(&query(7, "web-1.lan", A), 1).emit(512));
    assert_eq!(bench.world.counters.of("dns-not-a-query"), 2);
    assert!(bench.message().is_none());
    let mut two_questions = query(7, "web-1.lan", A).emit();
    two_questions[5] = 2;
    bench.give(&two_questions);
    assert_eq!(bench.answer().flags.rcode(), Rcode::FormatError);
    let mut update = query(7, "web-1.lan", A);
    update.flags = Flags(5 << 11);
    bench.give(&update.emit());
    assert_eq!(bench.answer().flags.rcode(), Rcode::NotImplemented);
    let mut long = query(7, "example.org", A).emit();
    long.resize(5000, 0);
    bench.give(&long);
    assert_eq!(bench.answer().flags.rcode(), Rcode::FormatError);
    assert_eq!(bench.open_sockets(), 0);
}

#[test]
fn whatever_comes_in_nothing_breaks_and_all_ends() {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};
    let mut rng = SmallRng::seed_from_u64(5);
    let mut bench = Bench::new();
    let spoil = |mut message: Vec<u8>, rng: &mut SmallRng| {
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..message.len());
            message[at] = rng.random();
        }
        message.truncate(rng.random_range(0..=message.len()));
        message
    };
    for round in 0..6000 {
        if round == 3000 {
            bench.advance(Duration::from_secs(60));
            assert_eq!(bench.open_sockets(), 0);
            bench = Bench::keeping();
        }
        let names = ["web.lan", "example.org", "1.127.168.192.in-addr.arpa", "a.b.c.localhost"];
        let name = names[rng.random_range(0..names.len())];
        let message = spoil(query(rng.random(), name, A).emit(), &mut rng);
        bench.give(&message);
        if let Some((id, socket)) = bench.world.edge.sockets.iter_mut().next_back()
            && let Some((to, _, asked)) = socket.sent.pop_front()
            && let Ok(asked) = Query::parse(&asked)
        {
            let id = *id;
            let answer = spoil(resolved(&asked, 3).emit(512), &mut rng);
            bench.receive(id, &to.to_string(), answer);
        }
        while bench.world.edge.frames.pop_front().is_some() {}
        bench.advance(Duration::from_millis(rng.random_range(0..100)));
    }
    bench.advance(Duration::from_secs(60));
    assert_eq!(bench.open_sockets(), 0);
}
