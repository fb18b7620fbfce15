//! Lookups in virtual time, against resolvers that do what a test says.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use netyard_wire::dns::{A, AAAA, Data, HEADER_LEN, Name, Query, Rcode, Record, Response};
use netyard_wire::{FrameBuf, MacAddr};

use super::{Hosts, Resolver};
use crate::config::Dns;
use crate::{Event, ListenerId, Medium, Settings, Stack, TcpId, UdpId};

/// What a resolver does with a question: `None` is silence.
type Answers = Box<dyn FnMut(&Query, bool) -> Option<Response>>;

struct Lab {
    now: Instant,
    client: Stack,
    server: Stack,
    resolver: Resolver,
    datagrams: Vec<UdpId>,
    listener: ListenerId,
    streams: Vec<TcpId>,
    /// Of the resolvers on ports 53 and 54.
    answers: [Answers; 2],
    /// How many questions came over UDP and TCP.
    asked: [usize; 2],
}

fn stack(now: Instant, number: u8, address: &str) -> Stack {
    let mut stack = Stack::new(now, [number; 32], Settings::default());
    let nic = stack.add_nic(Medium::Ethernet(MacAddr([2, 0, 0, 0, 0, number])), 1500).unwrap();
    stack.add_address(now, nic, address.parse().unwrap()).unwrap();
    stack
}

fn settings(text: &str) -> Dns {
    crate::config::Config::parse(text).unwrap().config.dns
}

impl Lab {
    fn new(dns: &str, one: Answers, other: Answers) -> Self {
        let now = Instant::now();
        let client = stack(now, 1, "10.0.0.1/24");
        let mut server = stack(now, 2, "10.0.0.2/24");
        let at = |port: u16| SocketAddr::from(([10, 0, 0, 2], port));
        let datagrams = [53, 54].map(|port| server.udp_bind(at(port)).unwrap()).to_vec();
        let listener = server.tcp_listen(at(53), 8).unwrap();
        let hosts = Hosts::parse("10.9.9.9 printer\n");
        let resolver = Resolver::new(settings(dns), hosts, [3; 32]);
        let (streams, answers) = (Vec::new(), [one, other]);
        Self { now, client, server, resolver, datagrams, listener, streams, answers, asked: [0; 2] }
    }

    /// Lets frames cross and the resolvers answer, as long as something happens.
    fn settle(&mut self) {
        let mut frame = FrameBuf::default();
        loop {
            let mut idle = true;
            while let Some(nic) = self.client.poll_transmit(self.now, &mut frame) {
                self.server.handle_frame(self.now, nic, frame.as_frame());
                idle = false;
            }
            while let Some(nic) = self.server.poll_transmit(self.now, &mut frame) {
                self.client.handle_frame(self.now, nic, frame.as_frame());
                idle = false;
            }
            while let Some(event) = self.client.poll_event() {
                assert!(self.resolver.handle_event(&mut self.client, self.now, event));
                idle = false;
            }
            while let Some(event) = self.server.poll_event() {
                self.serve(event);
                idle = false;
            }
            if idle {
                return;
            }
        }
    }

    fn serve(&mut self, event: Event) {
        let mut buffer = [0; 2000];
        match event {
            Event::Udp(id) => {
                let which = self.datagrams.iter().position(|other| *other == id).unwrap();
                while let Ok((len, from)) = self.server.udp_recv(id, &mut buffer, false) {
                    self.asked[0] += 1;
                    let query = Query::parse(&buffer[..len]).unwrap();
                    if let Some(answer) = self.answers[which](&query, false) {
                        let message = answer.emit(1232);
                        self.server.udp_send(self.now, id, Some(from), &message).unwrap();
                    }
                }
            }
            Event::Listener(_) => {
                while let Ok((id, _)) = self.server.tcp_accept(self.listener) {
                    self.streams.push(id);
                    self.serve(Event::Tcp(id));
                }
            }
            Event::Tcp(id) => {
                let Ok(len) = self.server.tcp_recv(self.now, id, &mut buffer, false) else {
                    return;
                };
                if len == 0 {
                    return self.server.tcp_close(self.now, id);
                }
                self.asked[1] += 1;
                let query = Query::parse(&buffer[2..len]).unwrap();
                let answer = self.answers[0](&query, true).unwrap().emit(65_535);
                let len = u16::try_from(answer.len()).unwrap().to_be_bytes();
                self.server.tcp_send(id, &[&len, answer.as_slice()].concat()).unwrap();
            }
            event => panic!("{event:?}"),
        }
    }

    /// Looks a name up, and says how long it took.
    fn look_up(&mut self, text: &str) -> (Result<Vec<String>, std::io::Error>, Duration) {
        let start = self.now;
        let id = match self.resolver.start(&mut self.client, self.now, text) {
            Ok(id) => id,
            Err(error) => return (Err(error), Duration::ZERO),
        };
        let found = loop {
            self.settle();
            if self.resolver.poll_finished() == Some(id) {
                break self.resolver.take(id).unwrap();
            }
            let due = [self.client.poll_timeout(), self.resolver.poll_timeout()];
            self.now = due.into_iter().flatten().min().unwrap().max(self.now);
            self.client.handle_timeout(self.now);
            self.server.handle_timeout(self.now);
            self.resolver.handle_timeout(&mut self.client, self.now);
        };
        assert!(self.resolver.sockets.is_empty(), "every socket was given back");
        assert!(self.resolver.lookups.is_empty());
        (found.map(|ips| ips.iter().map(ToString::to_string).collect()), self.now - start)
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn record(of: &str, data: Data) -> Record {
    Record { name: name(of), ttl: 60, data }
}

/// Knows `web.lan`, with both kinds of addresses, and `www.lan`, which stands for it.
fn knows() -> Answers {
    Box::new(|query, _| {
        let asked = &query.question;
        let mut response = Response::to(query, Rcode::NoError);
        let alias = asked.name == name("www.lan");
        if alias {
            response.answers.push(record("www.lan", Data::Cname(name("web.lan"))));
        }
        match asked.kind {
            _ if !alias && asked.name != name("web.lan") => {
                return Some(Response::to(query, Rcode::NameError));
            }
            A => response.answers.push(record("web.lan", Data::A([10, 0, 0, 7].into()))),
            AAAA => {
                response.answers.push(record("web.lan", Data::Aaaa("fd00::7".parse().unwrap())))
            }
            kind => panic!("asked for {kind}"),
        }
        Some(response)
    })
}

fn silent() -> Answers {
    Box::new(|_, _| None)
}

fn says(rcode: Rcode) -> Answers {
    Box::new(move |query, _| Some(Response::to(query, rcode)))
}

const BOTH: &str = "dns ip=10.0.0.2 ip=10.0.0.2:54";
const ONE: &str = "dns ip=10.0.0.2";

#[test]
fn a_name_has_its_addresses_and_those_that_can_be_reached_come_first() {
    let mut lab = Lab::new(ONE, knows(), silent());
    let (found, took) = lab.look_up("web.lan");
    assert_eq!(found.unwrap(), ["10.0.0.7", "fd00::7"]);
    assert_eq!((lab.asked, took), ([2, 0], Duration::ZERO));
    // Once more it is remembered, until its time is over.
    assert_eq!(lab.look_up("WEB.lan").0.unwrap(), ["10.0.0.7", "fd00::7"]);
    assert_eq!(lab.asked, [2, 0]);
    lab.now += Duration::from_secs(61);
    assert!(lab.look_up("web.lan").0.is_ok());
    assert_eq!(lab.asked, [4, 0]);
}

#[test]
fn both_kinds_of_addresses_are_asked_for_at_once() {
    let kinds = Rc::new(RefCell::new(Vec::new()));
    let asked = Rc::clone(&kinds);
    let silent: Answers = Box::new(move |query, _| {
        asked.borrow_mut().push(query.question.kind);
        None
    });
    let mut lab = Lab::new(ONE, silent, knows());
    lab.resolver.start(&mut lab.client, lab.now, "web.lan").unwrap();
    // No time passes, and nothing is answered.
    lab.settle();
    kinds.borrow_mut().sort();
    assert_eq!(*kinds.borrow(), [A, AAAA]);
}

#[test]
fn an_alias_is_followed() {
    let mut lab = Lab::new(ONE, knows(), silent());
    assert_eq!(lab.look_up("www.lan").0.unwrap(), ["10.0.0.7", "fd00::7"]);
}

#[test]
fn what_needs_no_asking_asks_nobody() {
    let mut lab = Lab::new("", silent(), silent());
    assert_eq!(lab.look_up("192.0.2.1").0.unwrap(), ["192.0.2.1"]);
    assert_eq!(lab.look_up("fd00::1").0.unwrap(), ["fd00::1"]);
    assert_eq!(lab.look_up("Printer").0.unwrap(), ["10.9.9.9"]);
    assert_eq!(lab.look_up("localhost").0.unwrap(), ["127.0.0.1", "::1"]);
    let error = lab.look_up("web.lan").0.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
    assert!(error.to_string().contains("dns ip=ADDRESS"), "{error}");
    assert_eq!(lab.look_up("two..dots").0.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn a_long_answer_is_fetched_over_tcp() {
    let long: Answers = Box::new(|query, stream| {
        let mut response = Response::to(query, Rcode::NoError);
        if query.question.kind == A {
            let address = |n: u8| record("many.lan", Data::A([10, 0, 1, n].into()));
            response.answers.extend((0..=255).map(address));
        }
        assert!(stream || query.edns.is_some());
        Some(response)
    });
    let mut lab = Lab::new(ONE, long, silent());
    assert_eq!(lab.look_up("many.lan").0.unwrap().len(), 256);
    assert_eq!(lab.asked, [2, 1]);
}

#[test]
fn a_silent_resolver_costs_its_time_and_the_next_is_asked() {
    let mut lab = Lab::new(BOTH, silent(), knows());
    let (found, took) = lab.look_up("web.lan");
    assert_eq!((found.unwrap().len(), took), (2, Duration::from_secs(5)));
    let mut lab = Lab::new("dns ip=10.0.0.2 timeout=2 attempts=3", silent(), silent());
    let (found, took) = lab.look_up("web.lan");
    assert_eq!(found.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert_eq!((lab.asked, took), ([6, 0], Duration::from_secs(6)));
}

#[test]
fn a_resolver_that_cannot_answer_costs_no_time() {
    for trouble in [Rcode::ServerFailure, Rcode::Refused, Rcode::Other(9)] {
        let mut lab = Lab::new(BOTH, says(trouble), knows());
        let (found, took) = lab.look_up("web.lan");
        assert_eq!((found.unwrap().len(), took), (2, Duration::ZERO), "{trouble:?}");
        let mut lab = Lab::new(ONE, says(trouble), silent());
        let error = lab.look_up("web.lan").0.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable);
    }
    // Nobody is there: ICMP says so.
    let mut lab = Lab::new("dns ip=10.0.0.2:99 ip=10.0.0.2", knows(), silent());
    let (found, took) = lab.look_up("web.lan");
    assert_eq!((found.unwrap().len(), took), (2, Duration::ZERO));
}

#[test]
fn a_resolver_from_before_edns_is_asked_without() {
    let mut inner = knows();
    let old: Answers = Box::new(move |query, stream| match query.edns {
        Some(_) => Some(Response { edns: None, ..Response::to(query, Rcode::FormatError) }),
        None => inner(query, stream),
    });
    let mut lab = Lab::new(ONE, old, silent());
    assert_eq!(lab.look_up("web.lan").0.unwrap().len(), 2);
}

#[test]
fn a_short_name_is_looked_for_in_the_domains() {
    let mut lab = Lab::new("dns ip=10.0.0.2 search=example search=lan", knows(), silent());
    assert_eq!(lab.look_up("web").0.unwrap().len(), 2);
    assert_eq!(lab.asked, [4, 0], "web.example, then web.lan");
    let error = lab.look_up("web.").0.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(lab.asked, [6, 0], "a dot at the end says that nothing is to follow");
    assert_eq!(lab.look_up("nobody").0.unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn what_is_no_answer_to_the_question_is_not_believed() {
    let mut tries = 0;
    let mut inner = knows();
    let liar: Answers = Box::new(move |query, stream| {
        tries += 1;
        let mut response = inner(query, stream)?;
        if tries <= 2 {
            response.id = response.id.wrapping_add(1);
        }
        Some(response)
    });
    let mut lab = Lab::new(ONE, liar, silent());
    let (found, took) = lab.look_up("web.lan");
    assert_eq!((found.unwrap().len(), took), (2, Duration::from_secs(5)), "the second attempt");
}

#[test]
fn who_wants_no_answer_any_more_leaves_nothing() {
    let mut lab = Lab::new(ONE, silent(), silent());
    let id = lab.resolver.start(&mut lab.client, lab.now, "web.lan").unwrap();
    assert!(lab.resolver.poll_timeout().is_some());
    lab.resolver.cancel(&mut lab.client, lab.now, id);
    assert!(lab.resolver.sockets.is_empty() && lab.resolver.poll_timeout().is_none());
    assert!(lab.resolver.take(id).is_none());
}

#[test]
fn headers_alone_are_no_answers() {
    let mut lab = Lab::new(ONE, silent(), silent());
    let id = lab.resolver.start(&mut lab.client, lab.now, "web.lan").unwrap();
    lab.settle();
    let sockets: Vec<UdpId> = lab
        .resolver
        .sockets
        .keys()
        .map(|event| match event {
            Event::Udp(id) => *id,
            event => panic!("{event:?}"),
        })
        .collect();
    for socket in sockets {
        let (local, _) = lab.client.udp_addresses(socket).unwrap();
        for len in [0, 1, HEADER_LEN, 40] {
            let message = vec![0xff; len];
            let from = lab.datagrams[0];
            lab.server.udp_send(lab.now, from, Some(local), &message).unwrap();
        }
    }
    lab.settle();
    assert!(lab.resolver.take(id).is_none(), "it goes on waiting");
}
