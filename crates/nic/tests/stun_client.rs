//! The client and the NAT test against servers that behave, and against servers that do not (C9, C10).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a world that breaks is a failed test")]

mod world;

use std::net::SocketAddr;
use std::time::Duration;

use netyard_nic::nat::simulate::{Allocation, Behaviour};
use netyard_nic::nat::{Confidence, Filtering, Mapping, NatReport, Plan, examine};
use netyard_nic::stun::server::Response;
use netyard_nic::stun::{
    Answer, Builder, Class, Failure, Kind, Lookup, Machine, Message, Method, Port, Question,
    Schedule, Server, lookup,
};
use netyard_nic::{Agreement, Verdict};
use world::{EXTERNAL, World, at, seed, server};

const SERVER: &str = "198.51.100.9:3478";

/// Asks one server one question.
fn ask(world: &mut World, question: Question, schedule: Schedule) -> Result<Answer, Failure> {
    let machine = Machine::new(seed(1), world.start, move |line| async move {
        let socket = line.open(Port::Any).await.expect("ports are free");
        socket.ask(question, schedule).await
    });
    world.run(machine)
}

fn plain() -> Question {
    Question::plain(at(SERVER), false)
}

/// A server that answers with what `answer` makes of the request.
fn answering(mut answer: impl FnMut(Message<'_>, SocketAddr) -> Vec<Vec<u8>> + 'static) -> World {
    World::new(1).host(vec![at(SERVER)], move |local, from, bytes| {
        let request = Message::parse(bytes).expect("requests are good");
        let answers = answer(request, from).into_iter();
        answers.map(|bytes| Response { from: local, to: from, bytes }).collect()
    })
}

fn success(request: &Message<'_>, mapped: SocketAddr) -> Vec<u8> {
    Builder::new(Class::Success, Method::BINDING, request.id()).xor_mapped(mapped).finish()
}

#[test]
fn c9_an_address_takes_one_round_trip() {
    let mut world = World::new(1).single(SERVER);
    let answer = ask(&mut world, plain(), Schedule::STANDARD).unwrap();
    assert_eq!(answer.mapped.ip().to_string(), world::CLIENT);
    assert_eq!((answer.copies, answer.rtt), (1, Duration::from_millis(20)));
    assert!(answer.software.unwrap().starts_with("netyard "));
}

#[test]
fn c9_silence_takes_the_time_that_rfc_8489_says() {
    let mut world = World::new(1);
    let failure = ask(&mut world, plain(), Schedule::STANDARD).unwrap_err();
    let waited = Duration::from_millis(39_500);
    assert_eq!(failure, Failure::Timeout { copies: 7, waited });
    assert_eq!((world.passed(), world.sent), (waited, 7));
}

#[test]
fn c9_half_of_all_packets_may_be_lost() {
    let answered = (0..100).filter(|number| {
        let mut world = World::new(*number).single(SERVER).over(Duration::from_millis(10), 500);
        ask(&mut world, plain(), Schedule::STANDARD).is_ok()
    });
    // 1 − 0.75^7 of them, less what 100 throws of dice may deviate.
    assert!(answered.count() > 75);
}

#[test]
fn c9_answers_from_elsewhere_are_no_answers() {
    let mut world = World::new(1).host(vec![at(SERVER)], |_, from, bytes| {
        let request = Message::parse(bytes).unwrap();
        vec![Response { from: at("198.51.100.66:3478"), to: from, bytes: success(&request, from) }]
    });
    let failure = ask(&mut world, plain(), Schedule::QUICK).unwrap_err();
    assert_eq!(failure, Failure::WrongSource(at("198.51.100.66:3478")));
}

#[test]
fn c9_what_does_not_carry_the_id_in_its_place_is_no_answer() {
    let mut world = answering(|request, from| {
        let other = netyard_nic::stun::TransactionId::modern([9; 12]);
        let wrong = Builder::new(Class::Success, Method::BINDING, other).xor_mapped(from).finish();
        // The right id, in the middle of something else.
        let mut hidden = vec![0; 40];
        hidden.extend(request.id().as_bytes());
        let of_other_kind = [Class::Request, Class::Indication]
            .map(|class| Builder::new(class, Method::BINDING, request.id()).finish());
        let mut cut = success(&request, from);
        cut.pop();
        [vec![wrong, hidden, cut], of_other_kind.to_vec()].concat()
    });
    let failure = ask(&mut world, plain(), Schedule::QUICK).unwrap_err();
    assert!(matches!(failure, Failure::Timeout { copies: 8, .. }), "{failure}");
}

#[test]
fn c9_errors_are_told() {
    let error = |code, reason: &'static str| {
        answering(move |request, _| {
            let message = Builder::new(Class::Error, Method::BINDING, request.id());
            vec![message.error_code(code, reason).unknown_attributes(&[Kind(0x7777)]).finish()]
        })
    };
    let failure = ask(&mut error(401, "Unauthenticated"), plain(), Schedule::QUICK).unwrap_err();
    assert_eq!(failure.to_string(), "the server answered with error 401: Unauthenticated");
    let failure = ask(&mut error(420, ""), plain(), Schedule::QUICK).unwrap_err();
    assert_eq!(failure.to_string(), "the server does not know attribute 0x7777");

    let mut empty = answering(|request, _| {
        vec![Builder::new(Class::Success, Method::BINDING, request.id()).finish()]
    });
    assert_eq!(ask(&mut empty, plain(), Schedule::QUICK), Err(Failure::NoAddress));
    let mut strange = answering(|request, from| {
        let message = Builder::new(Class::Success, Method::BINDING, request.id());
        vec![message.xor_mapped(from).attribute(Kind(0x7777), &[]).finish()]
    });
    let failure = ask(&mut strange, plain(), Schedule::QUICK);
    assert_eq!(failure, Err(Failure::NotUnderstood(vec![Kind(0x7777)])));
}

#[test]
fn c9_a_late_answer_counts_for_its_own_question_only() {
    // Later than the second copy: it answers the first one.
    let mut world = World::new(1).single(SERVER).over(Duration::from_millis(150), 0);
    let answer = ask(&mut world, plain(), Schedule::QUICK).unwrap();
    assert_eq!((answer.copies, answer.rtt), (2, Duration::from_millis(300)));

    // Later than the whole question: it arrives while another one waits on the same socket.
    let mut world = World::new(1).single(SERVER).over(Duration::from_millis(2500), 0);
    let machine = Machine::new(seed(1), world.start, |line| async move {
        let socket = line.open(Port::Any).await.expect("ports are free");
        let first = socket.ask(plain(), Schedule::QUICK).await;
        (first, socket.ask(plain(), Schedule::QUICK).await)
    });
    let (first, second) = world.run(machine);
    for failure in [first.unwrap_err(), second.unwrap_err()] {
        assert!(matches!(failure, Failure::Timeout { copies: 8, .. }), "{failure}");
    }
}

#[test]
fn c9_a_box_that_rewrites_addresses_is_seen() {
    let mut world = answering(|request, from| {
        let message = Builder::new(Class::Success, Method::BINDING, request.id());
        let rewritten = at("10.0.0.2:4000");
        vec![message.xor_mapped(from).address(Kind::MAPPED_ADDRESS, rewritten).finish()]
    });
    let answer = ask(&mut world, plain(), Schedule::QUICK).unwrap();
    assert!(answer.rewritten);
    assert_eq!(answer.mapped.ip().to_string(), world::CLIENT);
}

/// Looks the address up with servers that each see what is said.
fn lookup_with(world: &mut World, servers: &[&str]) -> netyard_nic::stun::External {
    let servers = servers.iter().map(|server| ((*server).to_owned(), at(server))).collect();
    let machine = Machine::new(seed(2), world.start, |line| {
        lookup(line, Lookup::new(servers), Agreement::new(Agreement::WANTED))
    });
    world.run(machine)
}

fn seeing(world: World, endpoint: &str, seen: &'static str) -> World {
    world.host(vec![at(endpoint)], move |local, from, bytes| {
        let request = Message::parse(bytes).unwrap();
        vec![Response { from: local, to: from, bytes: success(&request, at(seen)) }]
    })
}

#[test]
fn c9_two_servers_that_agree_take_one_round_trip() {
    let (one, two) = ("198.51.100.1:3478", "198.51.100.2:3478");
    let mut world = World::new(1).single(one).single(two);
    let external = lookup_with(&mut world, &[one, two, "198.51.100.3:3478"]);
    assert!(external.agreement.is_settled());
    assert_eq!(external.took, Duration::from_millis(20));
}

#[test]
fn c9_a_dead_server_costs_little_and_one_voice_is_marked() {
    let (dead, two, three) = ("198.51.100.1:3478", "198.51.100.2:3478", "198.51.100.3:3478");
    let mut world = World::new(1).single(two).single(three);
    let external = lookup_with(&mut world, &[dead, two, three]);
    assert!(external.agreement.is_settled());
    assert!(external.took <= Duration::from_millis(20 + 50), "{:?}", external.took);

    let mut world = World::new(1).single(two);
    let external = lookup_with(&mut world, &[dead, two, three]);
    let alone = Verdict::Seen(world::CLIENT.parse().unwrap(), netyard_nic::Confidence::Single);
    assert_eq!(external.agreement.verdict(), alone);
    assert!(external.took < Duration::from_millis(500), "{:?}", external.took);
}

#[test]
fn c9_a_liar_is_outvoted_and_liars_among_themselves_decide_nothing() {
    let (one, two, three) = ("198.51.100.1:3478", "198.51.100.2:3478", "198.51.100.3:3478");
    let servers = [one, two, three];
    let lie = "192.0.2.66:1";
    let mut world = seeing(World::new(1), one, lie).single(two).single(three);
    let external = lookup_with(&mut world, &servers);
    let truth = Verdict::Seen(world::CLIENT.parse().unwrap(), netyard_nic::Confidence::Proven);
    assert_eq!(external.agreement.verdict(), truth);
    assert_eq!(external.replies.len(), 3, "the lie is kept as evidence");

    let mut world = seeing(seeing(World::new(1), one, lie), two, "192.0.2.67:1").single(three);
    let external = lookup_with(&mut world, &servers);
    assert_eq!(external.agreement.verdict(), Verdict::Disagreement);
}

#[test]
fn c9_a_server_that_sends_on_is_followed_but_not_for_ever() {
    let (first, last) = ("198.51.100.1:3478", "198.51.100.2:3478");
    let sends_on = |world: World, from: &str, to: &'static str| {
        world.host(vec![at(from)], move |local, from, bytes| {
            let request = Message::parse(bytes).unwrap();
            let bytes = Builder::new(Class::Error, Method::BINDING, request.id())
                .error_code(300, "Try Alternate")
                .address(Kind::ALTERNATE_SERVER, at(to))
                .finish();
            vec![Response { from: local, to: from, bytes }]
        })
    };
    let mut world = sends_on(World::new(1), first, last).single(last);
    let external = lookup_with(&mut world, &[first]);
    assert!(matches!(external.agreement.verdict(), Verdict::Seen(..)));

    let mut world = sends_on(sends_on(World::new(1), first, last), last, first);
    let external = lookup_with(&mut world, &[first]);
    assert_eq!(external.agreement.verdict(), Verdict::Silence);
    assert_eq!(world.sent, 2);
}

/// The careful NAT that liars make look open.
fn port_restricted() -> Behaviour {
    Behaviour::new(
        Mapping::EndpointIndependent,
        Filtering::AddressAndPortDependent,
        Allocation::Random,
    )
}

fn nat_with(mut world: World) -> NatReport {
    let plan = Plan::new(vec![at("198.51.100.1:3478")]);
    let machine = Machine::new(seed(3), world.start, |line| examine(line, plan));
    world.run(machine)
}

fn assert_inconclusive(report: &NatReport, reason: &str) {
    assert_eq!(report.kind, None, "{report:#?}");
    assert_eq!(report.details.confidence, Confidence::Unknown);
    let told = report.details.inconclusive.as_deref().unwrap_or_default();
    assert!(told.contains(reason), "{told}");
}

#[test]
fn c10_a_server_that_ignores_change_requests_makes_nobody_a_full_cone() {
    let server = server();
    let world = World::new(1).behind(port_restricted()).host(
        server.endpoints(),
        move |local, from, bytes| {
            let response = server.handle_datagram(local, from, bytes);
            response.map(|response| Response { from: local, ..response }).into_iter().collect()
        },
    );
    let report = nat_with(world);
    assert_inconclusive(&report, "the server answers from 198.51.100.1:3478");
    assert_eq!(report.details.mapping, Some(Mapping::EndpointIndependent), "this much is known");
}

#[test]
fn c10_a_server_that_drops_change_requests_closes_no_nat() {
    let open = Behaviour { filtering: Filtering::EndpointIndependent, ..port_restricted() };
    let server = server();
    let world = World::new(1).behind(open).host(server.endpoints(), move |local, from, bytes| {
        let response = server.handle_datagram(local, from, bytes);
        response.filter(|response| response.from == local).into_iter().collect()
    });
    assert_inconclusive(&nat_with(world), "even where nothing stops it");
}

#[test]
fn c10_a_server_that_refuses_change_requests_tells_no_filter() {
    let (full, single) = (server(), Server::single());
    let world = World::new(1).behind(port_restricted()).host(
        full.endpoints(),
        move |local, from, bytes| {
            let request = Message::parse(bytes).unwrap();
            let refuses = request.value(Kind::CHANGE_REQUEST).is_some();
            let server = if refuses { &single } else { &full };
            server.handle_datagram(local, from, bytes).into_iter().collect()
        },
    );
    assert_inconclusive(&nat_with(world), "does not know attribute 0x0003");
}

#[test]
fn c10_an_other_address_that_is_none_is_not_believed() {
    for other in ["198.51.100.1:3479", "198.51.100.2:3478", "0.0.0.0:3479", "198.51.100.2:0"] {
        let world = World::new(1).behind(port_restricted()).host(
            vec![at("198.51.100.1:3478")],
            move |local, from, bytes| {
                let request = Message::parse(bytes).unwrap();
                let message = Builder::new(Class::Success, Method::BINDING, request.id());
                let message = message.xor_mapped(from).address(Kind::OTHER_ADDRESS, at(other));
                vec![Response { from: local, to: from, bytes: message.finish() }]
            },
        );
        assert_inconclusive(&nat_with(world), "as its other endpoint, which is none");
    }
}

#[test]
fn c10_an_other_address_where_nobody_listens_decides_nothing() {
    let world = World::new(1)
        .behind(port_restricted())
        .host(vec![at("198.51.100.1:3478")], |local, from, bytes| {
            server().handle_datagram(local, from, bytes).into_iter().collect()
        });
    assert_inconclusive(&nat_with(world), "198.51.100.2:3478 does not answer");
}

#[test]
fn c10_a_server_that_dies_in_the_middle_decides_nothing() {
    for answers in 1..12 {
        let server = server();
        let mut left = answers;
        let world = World::new(1).behind(port_restricted()).host(
            server.endpoints(),
            move |local, from, bytes| {
                let response = server.handle_datagram(local, from, bytes);
                let alive = left > 0;
                left -= i32::from(alive);
                response.filter(|_| alive).into_iter().collect()
            },
        );
        let report = nat_with(world);
        assert_eq!(report.kind, None, "after {answers} answers: {report:#?}");
        assert!(report.details.inconclusive.is_some());
    }
}

#[test]
fn c9_the_server_answers_from_each_of_its_endpoints_as_it_is_asked() {
    let server = server();
    let client = at(&format!("{EXTERNAL}:4000"));
    for classic in [false, true] {
        for local in server.endpoints() {
            for (change, address, port) in
                [(0, false, false), (2, false, true), (6, true, true), (4, true, false)]
            {
                let id = if classic {
                    netyard_nic::stun::TransactionId::classic([3; 16])
                } else {
                    netyard_nic::stun::TransactionId::modern([3; 12])
                };
                let request = Builder::request(id)
                    .attribute(Kind::CHANGE_REQUEST, &[0, 0, 0, change])
                    .finish();
                let response = server.handle_datagram(local, client, &request).unwrap();
                assert_eq!(response.to, client);
                assert_eq!(response.from.ip() != local.ip(), address);
                assert_eq!(response.from.port() != local.port(), port);
                let answer = Message::parse(&response.bytes).unwrap();
                assert_eq!(answer.mapped(), Some(client));
                let (origin, other) = if classic {
                    (Kind::SOURCE_ADDRESS, Kind::CHANGED_ADDRESS)
                } else {
                    (Kind::RESPONSE_ORIGIN, Kind::OTHER_ADDRESS)
                };
                assert_eq!(answer.address(origin), Some(response.from));
                let other = answer.address(other).unwrap();
                assert!(other.ip() != local.ip() && other.port() != local.port());
            }
        }
    }
}

#[test]
fn c9_the_server_refuses_what_it_cannot_do() {
    let client = at("203.0.113.1:4000");
    let id = netyard_nic::stun::TransactionId::modern([3; 12]);
    let code = |server: Server, request: Vec<u8>| {
        let response = server.handle_datagram(at(SERVER), client, &request).unwrap();
        let answer = Message::parse(&response.bytes).unwrap();
        let unknown: Vec<Kind> = answer.unknown_attributes().collect();
        (answer.error_code().unwrap().map(|error| error.code), unknown)
    };
    let change = Builder::request(id).change(netyard_nic::stun::Change::BOTH);
    let refused = (Some(420), vec![Kind::CHANGE_REQUEST]);
    assert_eq!(code(Server::single(), change.clone().finish()), refused);
    assert_eq!(
        code(server(), Builder::request(id).attribute(Kind(0x7fff), &[]).finish()).0,
        Some(420)
    );
    assert_eq!(
        code(server(), Builder::request(id).attribute(Kind::CHANGE_REQUEST, &[1]).finish()).0,
        Some(400)
    );
    let both = Builder::request(id).response_port(9).attribute(Kind::PADDING, &[0; 64]);
    assert_eq!(code(server(), both.finish()).0, Some(400));
    let optional = Builder::request(id).attribute(Kind(0x9999), &[1, 2, 3]);
    assert_eq!(code(Server::single(), optional.finish()).0, None);
    // On a stream there is nowhere else to answer from.
    let answer = server().handle_message(at(SERVER), client, &change.finish()).unwrap();
    let answer = Message::parse(&answer).unwrap();
    assert_eq!(answer.error_code().unwrap().unwrap().code, 420);
    // Answers and noise are not answered: two servers could go on for ever.
    let answer = Builder::new(Class::Success, Method::BINDING, id).finish();
    assert!(server().handle_datagram(at(SERVER), client, &answer).is_none());
    assert!(server().handle_datagram(at(SERVER), client, b"hello").is_none());
}

#[test]
fn c9_response_port_and_padding_are_done() {
    let client = at("203.0.113.1:4000");
    let id = netyard_nic::stun::TransactionId::modern([3; 12]);
    for value in [&[0x12, 0x34][..], &[0x12, 0x34, 0, 0]] {
        let request = Builder::request(id).attribute(Kind::RESPONSE_PORT, value).finish();
        let response = server().handle_datagram(at("198.51.100.1:3478"), client, &request).unwrap();
        assert_eq!(response.to, at("203.0.113.1:4660"));
        assert_eq!(Message::parse(&response.bytes).unwrap().mapped(), Some(client));
    }
    let request = Builder::request(id).attribute(Kind::PADDING, &[0; 1000]).finish();
    let response = server().handle_datagram(at("198.51.100.1:3478"), client, &request).unwrap();
    let answer = Message::parse(&response.bytes).unwrap();
    assert_eq!(answer.value(Kind::PADDING).map(<[u8]>::len), Some(1000));
}
