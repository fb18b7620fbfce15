//! Which questions for names in `.local` go on to the host's links, and which answers come back.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::{GATEWAY_MAC, Sim, config};
use netyard_engine::config::{Config, Dns, DnsData, DnsRecord, Mdns};
use netyard_engine::control::Plugged;
use netyard_engine::edge::SocketId;
use netyard_engine::policy::rules::{Direction, Rule, Rules, Verdict};
use netyard_wire::dns::{MulticastQuery, MulticastResponse, PTR, Question};
use netyard_wire::ethernet::Ethernet;
use netyard_wire::ip::IpPacket;
use netyard_wire::udp::Datagram;
use netyard_wire::{Frame, MacAddr, build};

const GROUP4: &str = "224.0.0.251:5353";
const GROUP6: &str = "[ff02::fb]:5353";

/// Two guests on a network whose questions go on to two cards.
fn two() -> (Sim, [Plugged; 2]) {
    let mut sim = Sim::with(Config { mdns: Mdns::Everywhere, ..config() });
    let plugs = ["one", "two"].map(|name| sim.plug(name));
    sim.network.set_mdns_cards(sim.now, &BTreeSet::from([2, 7]), &mut sim.world);
    sim.advance(Duration::from_secs(42));
    sim.world.frames.clear();
    (sim, plugs)
}

fn questions(names: &[&str]) -> Vec<Question> {
    let question = |name: &&str| Question { name: name.parse().unwrap(), kind: PTR, class: 1 };
    names.iter().map(question).collect()
}

/// A response with one record about a name.
fn response(name: &str) -> Vec<u8> {
    responses(&[name])
}

/// A response with a record about each name: the last one is an additional one.
fn responses(names: &[&str]) -> Vec<u8> {
    let more = u8::from(names.len() > 1);
    let answers = u8::try_from(names.len()).unwrap() - more;
    let mut message = vec![0, 0, 0x84, 0, 0, 0, 0, answers, 0, 0, 0, more];
    for name in names {
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.extend(b"\0\0\x01\x80\x01\0\0\0\x78\0\x04\xc0\0\x02\x01");
    }
    message
}

/// A guest sends a message to the group of a family.
fn send(sim: &mut Sim, from: &Plugged, (to, port): (&str, u16), message: &[u8]) {
    let to: SocketAddr = to.parse().unwrap();
    let (source, mac): (IpAddr, _) = match to.ip() {
        IpAddr::V4(group) => (from.address4.into(), MacAddr::ipv4_multicast(group)),
        IpAddr::V6(group) => (from.mac.link_local().into(), MacAddr::ipv6_multicast(group)),
    };
    let (mut frame, source) = (Vec::new(), SocketAddr::new(source, port));
    let offload = build::udp_frame(&mut frame, from.mac, mac, source, to, 255, message);
    sim.frame(from.plug, Frame { bytes: &frame, offload });
    // The other guest hears it, too.
    sim.world.frames.clear();
}

fn ask(sim: &mut Sim, from: &Plugged, to: &str, names: &[&str]) {
    send(sim, from, (to, 5353), &MulticastQuery::emit(&questions(names)));
}

fn card(sim: &Sim, number: u32, ipv4: bool) -> SocketId {
    sim.world.members[&(number, ipv4)]
}

/// What a card's link was asked last, if it was asked.
fn asked(sim: &mut Sim, socket: SocketId) -> Option<Vec<Question>> {
    let socket = sim.world.stream(socket);
    let message = std::mem::take(&mut socket.outbox);
    let query = (!message.is_empty()).then(|| MulticastQuery::parse(&message).unwrap().unwrap());
    query.map(|query| query.questions)
}

/// Who of the guests has heard what, and from where.
fn heard(sim: &mut Sim) -> Vec<(u32, SocketAddr, SocketAddr, Vec<u8>)> {
    let frames = std::mem::take(&mut sim.world.frames).into_iter();
    let heard = frames.filter_map(|(plug, frame)| {
        let (header, payload) = Ethernet::parse(&frame.bytes).ok()?;
        let ip = IpPacket::parse(header.ethertype, payload).ok()?;
        let datagram = Datagram::parse(&ip, frame.offload.checksum).ok()?;
        assert_eq!((header.source, ip.hop_limit), (GATEWAY_MAC, 255));
        let source = SocketAddr::new(ip.source, datagram.source_port);
        let to = SocketAddr::new(ip.destination, datagram.destination_port);
        Some((plug.0, source, to, datagram.payload.to_vec()))
    });
    heard.collect()
}

#[test]
fn questions_go_to_every_link_and_answers_come_back_to_all_guests() {
    let (mut sim, [one, two]) = two();
    for (group, ipv4, gateway) in [
        (GROUP4, true, "192.168.127.1:5353".parse().unwrap()),
        (GROUP6, false, SocketAddr::new(GATEWAY_MAC.link_local().into(), 5353)),
    ] {
        ask(&mut sim, &one, group, &["_http._tcp.local", "web.local"]);
        for number in [2, 7] {
            let socket = card(&sim, number, ipv4);
            let wanted = questions(&["_http._tcp.local", "web.local"]);
            assert_eq!(asked(&mut sim, socket), Some(wanted));
            assert_eq!(sim.world.stream(socket).to, Some(group.parse().unwrap()));
            let other = card(&sim, number, !ipv4);
            assert_eq!(asked(&mut sim, other), None);
        }
        // Letter case means nothing; and from whom it comes does not, either, as long as they are a responder.
        let message = response("WEB.local");
        let from: SocketAddr =
            if ipv4 { "192.0.2.9:5353" } else { "[fe80::9]:5353" }.parse().unwrap();
        let socket = card(&sim, 7, ipv4);
        sim.datagram(socket, SocketAddr::new(from.ip(), 5354), &message);
        assert_eq!(heard(&mut sim), []);
        sim.datagram(socket, from, &message);
        let to = group.parse().unwrap();
        let wanted = [one.plug, two.plug].map(|plug| (plug.0, gateway, to, message.clone()));
        assert_eq!(heard(&mut sim), wanted);
    }
}

#[test]
fn what_nobody_asked_for_stays_outside_and_an_answer_is_let_in_for_so_long() {
    let (mut sim, [one, _]) = two();
    let from = "192.0.2.9:5353".parse().unwrap();
    let socket = card(&sim, 2, true);
    sim.datagram(socket, from, &response("web.local"));
    ask(&mut sim, &one, GROUP4, &["web.local"]);
    sim.datagram(socket, from, &response("www.local"));
    assert_eq!(heard(&mut sim), []);
    for _ in 0..2 {
        sim.datagram(socket, from, &response("web.local"));
        assert_eq!(heard(&mut sim).len(), 2);
        sim.advance(Duration::from_secs(75 * 60 - 1));
        sim.world.frames.clear();
    }
    sim.datagram(socket, from, &response("web.local"));
    assert_eq!(heard(&mut sim), []);
}

#[test]
fn names_of_guests_and_other_names_stay_inside() {
    let (mut sim, [one, two]) = two();
    let socket = card(&sim, 2, true);
    // An announcement, and who asks because it is about to claim a name.
    send(&mut sim, &one, (GROUP4, 5353), &response("one.local"));
    let mut probe = MulticastQuery::emit(&questions(&["one.local"]));
    probe[9] = 1;
    send(&mut sim, &one, (GROUP4, 5353), &probe);
    ask(&mut sim, &one, GROUP4, &["www.example.com", "1.127.168.192.in-addr.arpa"]);
    assert_eq!(asked(&mut sim, socket), None);
    // Of a question what is known already is left out: it may be a guest's.
    let mut message = MulticastQuery::emit(&questions(&["www.example.com", "_http._tcp.local"]));
    message[7] = 1;
    message.extend(&response("one.local")[12..]);
    send(&mut sim, &one, (GROUP4, 5353), &message);
    assert_eq!(asked(&mut sim, socket), Some(questions(&["_http._tcp.local"])));
    // Who wants an answer to itself would not hear any.
    let message = MulticastQuery::emit(&questions(&["web.local"]));
    send(&mut sim, &one, (GROUP4, 40_000), &message);
    assert_eq!(asked(&mut sim, socket), None);
    assert_eq!(sim.network.state().drops["mdns-one-shot"], 1);
    // What a guest may not ask the network's DNS it may not ask here.
    let only = Rule {
        name: "only".into(),
        direction: Direction::Out,
        instances: vec!["two".to_owned()],
        verdict: Verdict::Allow,
        others: vec!["printer.local".parse().unwrap()],
        ports: Vec::new(),
        protocol: None,
    };
    sim.network.set_rules(
        sim.now,
        "test",
        Rules { list: vec![only], otherwise: Verdict::Deny },
        &mut sim.world,
    );
    ask(&mut sim, &two, GROUP4, &["web.local", "printer.local"]);
    assert_eq!(asked(&mut sim, socket), Some(questions(&["printer.local"])));
}

#[test]
fn of_an_answer_guests_hear_what_was_asked_for_and_what_they_may_ask() {
    let (mut sim, [one, two]) = two();
    let from = "192.0.2.9:5353".parse().unwrap();
    let socket = card(&sim, 2, true);
    ask(&mut sim, &one, GROUP4, &["web.local", "printer.local"]);
    let said = ["bank.local", "web.local", "two.test", "gateway.local"];
    sim.datagram(socket, from, &responses(&said));
    // Who has not asked may have heard the question of the other.
    let what = |sim: &mut Sim| {
        let heard = heard(sim).into_iter();
        heard.map(|(plug, _, _, message)| (plug, message)).collect::<Vec<_>>()
    };
    let web = [&one, &two].map(|it| (it.plug.0, response("web.local")));
    assert_eq!(what(&mut sim), web);
    // Who may not ask for a name does not hear what others are told of it.
    let only = |verdict, others: &[&str]| Rule {
        name: format!("{verdict:?}"),
        direction: Direction::Out,
        instances: vec!["two".to_owned()],
        verdict,
        others: others.iter().map(|other| other.parse().unwrap()).collect(),
        ports: Vec::new(),
        protocol: None,
    };
    let list = vec![only(Verdict::Allow, &["printer.local"]), only(Verdict::Deny, &[])];
    let rules = Rules { list, otherwise: Verdict::Allow };
    sim.network.set_rules(sim.now, "test", rules, &mut sim.world);
    sim.datagram(socket, from, &responses(&["web.local", "bank.local", "printer.local"]));
    let [first, second] = what(&mut sim).try_into().unwrap();
    assert_eq!((first.0, second), (one.plug.0, (two.plug.0, response("printer.local"))));
    let read = MulticastResponse::parse(&first.1).unwrap().unwrap().records;
    let names: Vec<_> = read.iter().map(|record| record.name.to_string()).collect();
    assert_eq!(names, ["web.local", "printer.local"]);
    sim.datagram(socket, from, &response("web.local"));
    assert_eq!(what(&mut sim), web[..1]);
}

#[test]
fn names_that_are_the_networks_own_are_not_asked_for() {
    let record = DnsRecord {
        name: "nas.local".into(),
        ttl: 60,
        data: DnsData::Address([192, 0, 2, 7].into()),
    };
    let dns = Dns { records: vec![record], ..Dns::default() };
    let zone = "home.local".to_owned();
    let mut sim = Sim::with(Config { mdns: Mdns::Everywhere, zone, dns, ..config() });
    let one = sim.plug("one");
    sim.network.set_mdns_cards(sim.now, &BTreeSet::from([2]), &mut sim.world);
    let socket = card(&sim, 2, true);
    ask(&mut sim, &one, GROUP4, &["one.home.local", "home.LOCAL", "nas.local"]);
    assert_eq!(asked(&mut sim, socket), None);
    ask(&mut sim, &one, GROUP4, &["two.home.local", "athome.local"]);
    assert_eq!(asked(&mut sim, socket), Some(questions(&["athome.local"])));
    sim.datagram(socket, "192.0.2.9:5353".parse().unwrap(), &response("one.home.local"));
    assert_eq!(heard(&mut sim), []);
}

#[test]
fn a_guest_that_asks_for_many_names_takes_none_of_the_others() {
    let (mut sim, [one, two]) = two();
    let from = "192.0.2.9:5353".parse().unwrap();
    let socket = card(&sim, 2, true);
    ask(&mut sim, &two, GROUP4, &["web.local"]);
    let names: Vec<String> = (0..600).map(|number| format!("n{number}.local")).collect();
    for names in names.chunks(50) {
        sim.advance(Duration::from_secs(1));
        ask(&mut sim, &one, GROUP4, &names.iter().map(String::as_str).collect::<Vec<_>>());
    }
    sim.world.frames.clear();
    for (name, listeners) in [("web.local", 2), ("n599.local", 2), ("n0.local", 0)] {
        sim.datagram(socket, from, &response(name));
        assert_eq!(heard(&mut sim).len(), listeners, "{name}");
    }
    assert_eq!(sim.network.state().drops["mdns-names-forgotten"], 600 - 128);
    ask(&mut sim, &two, GROUP4, &["www.local"]);
    assert_eq!(asked(&mut sim, socket), Some(questions(&["www.local"])));
}

#[test]
fn long_questions_go_in_messages_that_links_take_and_each_counts() {
    let (mut sim, [one, _]) = two();
    let socket = card(&sim, 2, true);
    // 64 names of 243 bytes, of which all but the first say little.
    let mut message = vec![0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0];
    let long = [61, 61, 61, 50].map(|len| [&[len][..], &vec![b'x'; usize::from(len)]].concat());
    message.extend(long.concat());
    message.extend(b"\x05local\0\0\x0c\0\x01");
    for number in 1..64 {
        message.extend([2, b'a', number, 0xc0, 12, 0, 12, 0, 1]);
    }
    // Five fit into each of 13 messages.
    for (round, last) in [(0, Some(4)), (1, Some(4)), (2, Some(4)), (3, Some(5)), (4, None)] {
        send(&mut sim, &one, (GROUP4, 5353), &message);
        assert!(sim.world.stream(socket).outbox.len() <= 1_452);
        let asked = asked(&mut sim, socket).map(|questions| questions.len());
        assert_eq!(asked, last, "{round}");
    }
    assert_eq!(sim.network.state().drops["mdns-queries-too-often"], 2);
}

#[test]
fn there_is_so_much_in_a_time() {
    let (mut sim, [one, two]) = two();
    let socket = card(&sim, 2, true);
    let went = |sim: &mut Sim, from: &Plugged| {
        let times = (0..100).filter(|_| {
            ask(sim, from, GROUP4, &["web.local"]);
            asked(sim, socket).is_some()
        });
        times.count()
    };
    // Each guest has its own share.
    assert_eq!([went(&mut sim, &one), went(&mut sim, &two)], [50, 50]);
    sim.advance(Duration::from_secs(1));
    assert_eq!(went(&mut sim, &one), 10);
    let from: SocketAddr = "192.0.2.9:5353".parse().unwrap();
    for _ in 0..300 {
        sim.world.stream(socket).datagrams.push_back((from, response("web.local")));
    }
    sim.readable(socket);
    assert_eq!(heard(&mut sim).len(), 2 * 200);
    let drops = sim.network.state().drops;
    assert_eq!((drops["mdns-queries-too-often"], drops["mdns-responses-too-often"]), (190, 100));
}

#[test]
fn cards_come_and_go() {
    let (mut sim, [one, _]) = two();
    let gone = card(&sim, 2, true);
    sim.network.set_mdns_cards(sim.now, &BTreeSet::from([7, 9]), &mut sim.world);
    ask(&mut sim, &one, GROUP4, &["web.local"]);
    for number in [7, 9] {
        let socket = card(&sim, number, true);
        assert!(asked(&mut sim, socket).is_some(), "{number}");
    }
    assert!(sim.world.stream(gone).closed && asked(&mut sim, gone).is_none());
    // One that takes no socket is tried again.
    sim.world.mute = BTreeSet::from([(11, true), (11, false)]);
    let cards = BTreeSet::from([7, 11]);
    sim.network.set_mdns_cards(sim.now, &cards, &mut sim.world);
    assert!(!sim.world.members.contains_key(&(11, true)));
    sim.world.mute.remove(&(11, true));
    sim.network.set_mdns_cards(sim.now, &cards, &mut sim.world);
    ask(&mut sim, &one, GROUP4, &["web.local"]);
    let late = card(&sim, 11, true);
    assert!(asked(&mut sim, late).is_some());
    // Without the option nothing goes on.
    let mut sim = Sim::new();
    let one = sim.plug("one");
    sim.network.set_mdns_cards(sim.now, &BTreeSet::from([2]), &mut sim.world);
    ask(&mut sim, &one, GROUP4, &["web.local"]);
    assert!(sim.world.members.is_empty());
}
