//! Queries that come by stream.

use netyard_wire::dns::framed;

use super::super::stream::{Front, front};
use super::*;
use crate::edge::Edge as _;

/// What is announced when the client has finished.
const ENDED: Readiness = Readiness { read_closed: true, ..READABLE };

impl Bench {
    /// A client connects.
    fn connect(&mut self) -> SocketId {
        let source = SocketAddr::new(fake::guest().address4.into(), 40_000);
        let socket = self.world.edge.tcp_connect(source).unwrap();
        let client = Client {
            plug: Some(PLUG),
            source,
            destination: SocketAddr::new(self.world.config.gateway4().into(), PORT),
            transport: Transport::Stream(socket),
        };
        self.world.with(|cx| self.dns.open(cx, client));
        self.ready(socket, WRITABLE);
        socket
    }

    /// The client sends.
    fn say(&mut self, socket: SocketId, bytes: &[u8]) {
        self.stream(socket).inbox.extend_from_slice(bytes);
        self.ready(socket, READABLE);
    }

    fn finish(&mut self, socket: SocketId) {
        self.stream(socket).ended = true;
        self.ready(socket, ENDED);
    }

    fn stream(&mut self, socket: SocketId) -> &mut fake::FakeStream {
        self.world.edge.streams.get_mut(&socket).expect("an open stream")
    }

    fn is_open(&self, socket: SocketId) -> bool {
        self.world.edge.streams.contains_key(&socket)
    }

    /// What the client was answered since the last look.
    fn said(&mut self, socket: SocketId) -> Vec<Response> {
        let sent = std::mem::take(&mut self.stream(socket).sent);
        let mut rest = sent.as_slice();
        let mut answers = Vec::new();
        while let Front::Whole(message) = front(rest, 65_535) {
            answers.push(Response::parse(message).unwrap());
            rest = &rest[2 + message.len()..];
        }
        assert!(rest.is_empty(), "only whole messages");
        answers
    }

    fn ids(&mut self, socket: SocketId) -> Vec<u16> {
        self.said(socket).iter().map(|answer| answer.id).collect()
    }

    /// The question that is under way at a resolver, of those with this name.
    fn asked_for(&mut self, name: &str) -> (SocketId, Query) {
        let name: Name = name.parse().unwrap();
        let mut sockets = self.world.edge.sockets.iter();
        let found = sockets.find_map(|(id, socket)| {
            let asked = Query::parse(&socket.sent.front()?.2).ok()?;
            (asked.question.name == name).then_some((*id, asked))
        });
        found.expect("a question")
    }
}

fn ask(id: u16, name: &str) -> Vec<u8> {
    framed(&query(id, name, A).emit()).unwrap()
}

#[test]
fn messages_are_cut_at_their_lengths() {
    assert_eq!(front(&[], 9), Front::Part);
    assert_eq!(front(&[0], 9), Front::Part);
    assert_eq!(front(&[0, 3, 1, 2], 9), Front::Part);
    assert_eq!(front(&[0, 3, 1, 2, 3], 9), Front::Whole(&[1, 2, 3]));
    assert_eq!(front(&[0, 3, 1, 2, 3, 0], 9), Front::Whole(&[1, 2, 3]));
    assert_eq!(front(&[0, 0, 7], 9), Front::Whole(&[]));
    assert_eq!(front(&[0, 9], 9), Front::Part);
    assert_eq!(front(&[0, 10], 9), Front::TooLong);
    assert_eq!(framed(&[5, 6]), Some(vec![0, 2, 5, 6]));
    assert_eq!(framed(&[0; 65_535]).map(|bytes| bytes.len()), Some(65_537));
    assert_eq!(framed(&[0; 65_536]), None);
}

#[test]
fn a_query_in_pieces_is_answered_when_it_is_whole() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    let bytes = ask(7, "web-1.lan");
    let (last, first) = bytes.split_last().unwrap();
    for byte in first {
        bench.say(socket, &[*byte]);
        assert!(bench.said(socket).is_empty());
    }
    bench.say(socket, &[*last]);
    let answers = bench.said(socket);
    assert!(answers.len() == 1 && answers[0].answers(&query(7, "web-1.lan", A)));
    assert!(bench.is_open(socket));
}

#[test]
fn queries_in_one_go_are_answered_in_any_order() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    let names = [(1, "one.org"), (2, "two.org"), (3, "web-1.lan"), (4, "web.lan")];
    bench.say(socket, &names.map(|(id, name)| ask(id, name)).concat());
    // Our own names need nobody.
    assert_eq!(bench.ids(socket), [3, 4]);
    for (id, name) in [(2, "two.org"), (1, "one.org")] {
        let (at, asked) = bench.asked_for(name);
        bench.receive(at, FIRST, resolved(&asked, 1).emit(512));
        assert_eq!(bench.ids(socket), [id]);
    }
    assert!(bench.is_open(socket));
}

#[test]
fn many_queries_are_all_answered() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    let ids: Vec<u16> = (0..500).collect();
    bench.say(socket, &ids.iter().flat_map(|id| ask(*id, "web-1.lan")).collect::<Vec<_>>());
    assert_eq!(bench.ids(socket), ids);
}

#[test]
fn a_long_answer_is_not_cut() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    bench.say(socket, &ask(7, "example.org"));
    let (at, _, asked) = bench.asked();
    bench.receive(at, FIRST, resolved(&asked, 100).emit(512));
    let (upstream, state) = bench.world.edge.streams.last_key_value().expect("a stream");
    assert_eq!(state.to, FIRST.parse().unwrap());
    let upstream = *upstream;
    bench.ready(upstream, WRITABLE);
    let asked = Query::parse(&bench.stream(upstream).sent[2..]).unwrap();
    let whole = framed(&resolved(&asked, 250).emit(65_535)).unwrap();
    bench.say(upstream, &whole);
    let answers = bench.said(socket);
    assert_eq!((answers.len(), answers[0].answers.len()), (1, 250));
    assert!(!answers[0].flags.contains(Flags::TRUNCATED));
}

#[test]
fn a_resolver_that_has_only_a_cut_answer_is_no_help() {
    let mut bench = Bench::new();
    bench.dns.set_upstreams(vec![FIRST.parse().unwrap()]);
    let socket = bench.connect();
    bench.say(socket, &ask(7, "example.org"));
    for _ in 0..2 {
        let (at, _, asked) = bench.asked();
        bench.receive(at, FIRST, resolved(&asked, 100).emit(512));
        let upstream = *bench.world.edge.streams.last_key_value().unwrap().0;
        bench.stream(upstream).failure = Some(std::io::ErrorKind::ConnectionRefused);
        bench.ready(upstream, Readiness { error: true, ..WRITABLE });
    }
    let answers = bench.said(socket);
    assert_eq!((answers.len(), answers[0].flags.rcode()), (1, Rcode::ServerFailure));
}

#[test]
fn a_client_that_has_finished_gets_its_answers() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    bench.stream(socket).inbox = [ask(1, "web-1.lan"), ask(2, "example.org")].concat();
    bench.finish(socket);
    assert_eq!(bench.ids(socket), [1]);
    let (at, _, asked) = bench.asked();
    bench.stream(socket).room = 10;
    bench.receive(at, FIRST, resolved(&asked, 1).emit(512));
    assert!(bench.is_open(socket), "the answer is not out yet");
    bench.stream(socket).room = usize::MAX;
    // The rest goes out, and that was the last of it.
    bench.ready(socket, Readiness { writable: true, ..Readiness::default() });
    assert_eq!(bench.open_sockets(), 0);
}

#[test]
fn a_client_that_finishes_within_a_query_ends_the_stream() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    let bytes = ask(1, "web-1.lan");
    bench.stream(socket).inbox = bytes[..9].to_vec();
    bench.finish(socket);
    assert!(!bench.is_open(socket));
    assert_eq!(bench.world.counters.of("dns-cut-query"), 1);
}

#[test]
fn what_cannot_be_a_query_ends_the_stream() {
    let answer = framed(&resolved(&query(7, "web-1.lan", A), 1).emit(512)).unwrap();
    for (reason, bytes) in [
        ("dns-oversize-query", vec![0x10, 1]),
        ("dns-oversize-query", b"GET / HTTP/1.1\r\n".to_vec()),
        ("dns-not-a-query", vec![0, 0]),
        ("dns-not-a-query", vec![0, 2, 1, 2]),
        ("dns-not-a-query", answer),
    ] {
        let mut bench = Bench::new();
        let socket = bench.connect();
        bench.say(socket, &bytes);
        assert!(!bench.is_open(socket), "{bytes:?}");
        assert_eq!(bench.world.counters.of(reason), 1, "{bytes:?}");
    }
    // A query that is only malformed is told so.
    let mut bench = Bench::new();
    let socket = bench.connect();
    let mut two_questions = ask(7, "web-1.lan");
    two_questions[2 + 5] = 2;
    bench.say(socket, &two_questions);
    assert_eq!(bench.said(socket)[0].flags.rcode(), Rcode::FormatError);
    assert!(bench.is_open(socket));
}

#[test]
fn a_still_stream_is_closed() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    bench.advance(Duration::from_secs(9));
    bench.say(socket, &ask(1, "web-1.lan"));
    bench.advance(Duration::from_secs(9));
    assert!(bench.is_open(socket));
    // A part of a query does not count.
    bench.say(socket, &[0]);
    bench.advance(Duration::from_secs(1));
    assert!(!bench.is_open(socket));
    assert_eq!(bench.dns.poll_timeout(), None);
}

#[test]
fn a_stream_that_waits_for_us_is_not_still() {
    let mut bench = Bench::new();
    let servers = ["198.51.100.1:53", "198.51.100.2:53", "198.51.100.3:53", "198.51.100.4:53"];
    bench.dns.set_upstreams(servers.map(|server| server.parse().unwrap()).into());
    let socket = bench.connect();
    bench.advance(Duration::from_secs(6));
    bench.say(socket, &ask(1, "example.org"));
    bench.advance(Duration::from_millis(2_999));
    assert!(bench.said(socket).is_empty());
    bench.advance(Duration::from_millis(1));
    assert_eq!(bench.said(socket)[0].flags.rcode(), Rcode::ServerFailure);
    bench.advance(Duration::from_millis(9_999));
    assert!(bench.is_open(socket));
    bench.advance(Duration::from_millis(1));
    assert!(!bench.is_open(socket));
}

#[test]
fn a_stream_that_is_gone_takes_its_lookups_with_it() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    bench.say(socket, &ask(1, "example.org"));
    bench.give(&query(2, "example.com", A).emit());
    assert_eq!(bench.world.edge.sockets.len(), 2);
    bench.ready(socket, Readiness { hangup: true, ..ENDED });
    assert!(!bench.is_open(socket));
    assert_eq!(bench.world.edge.sockets.len(), 1, "the other client still waits");
    let other = bench.connect();
    bench.say(other, &ask(1, "example.org"));
    bench.world.with(|cx| bench.dns.remove_guest(cx, PLUG));
    assert_eq!(bench.open_sockets(), 0);
    bench.advance(Duration::from_secs(60));
    assert_eq!(bench.dns.poll_timeout(), None);
}

#[test]
fn a_stream_with_much_under_way_is_read_later() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    let ids: Vec<u16> = (0..40).collect();
    bench.say(socket, &ids.iter().flat_map(|id| ask(*id, "example.org")).collect::<Vec<_>>());
    assert_eq!(bench.world.edge.sockets.len(), 32);
    let mut answered = Vec::new();
    while !bench.world.edge.sockets.is_empty() {
        let (at, asked) = bench.asked_for("example.org");
        bench.receive(at, FIRST, resolved(&asked, 1).emit(512));
        answered.extend(bench.ids(socket));
    }
    assert_eq!(answered, ids);
}

#[test]
fn each_query_has_an_answer_even_when_there_are_too_many() {
    let mut bench = Bench::new();
    for port in 1..=128 {
        bench.give_from(port, &query(7, "example.org", A).emit());
    }
    let socket = bench.connect();
    bench.say(socket, &ask(1, "example.org"));
    let answers = bench.said(socket);
    assert_eq!((answers.len(), answers[0].flags.rcode()), (1, Rcode::ServerFailure));
}

#[test]
fn who_does_not_read_is_not_read() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    bench.stream(socket).room = 100;
    bench.say(socket, &(0..50).flat_map(|id| ask(id, "web-1.lan")).collect::<Vec<_>>());
    assert!(!bench.stream(socket).inbox.is_empty());
    bench.stream(socket).room = usize::MAX;
    bench.ready(socket, Readiness { writable: true, ..Readiness::default() });
    assert_eq!(bench.ids(socket), (0..50).collect::<Vec<_>>());
    // Who never does is given up.
    bench.stream(socket).room = 0;
    bench.say(socket, &ask(1, "web-1.lan"));
    bench.advance(Duration::from_secs(10));
    assert!(!bench.is_open(socket));
}

#[test]
fn answers_that_pile_up_end_the_stream() {
    let mut bench = Bench::new();
    let socket = bench.connect();
    bench.stream(socket).room = 0;
    bench.say(socket, &(0..32).flat_map(|id| ask(id, "example.org")).collect::<Vec<_>>());
    let mut answered = 0;
    while bench.is_open(socket) {
        let (at, asked) = bench.asked_for("example.org");
        let mut answer = resolved(&asked, 1).emit(512);
        answer.resize(60_000, 0);
        bench.receive(at, FIRST, answer);
        answered += 1;
    }
    assert_eq!((answered, bench.world.counters.of("dns-answers-unread")), (5, 1));
    assert_eq!(bench.open_sockets(), 0);
}

#[test]
fn whatever_comes_in_by_stream_nothing_breaks_and_all_ends() {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};
    let mut rng = SmallRng::seed_from_u64(6);
    let mut bench = Bench::new();
    let mut sockets = Vec::new();
    for _ in 0..3000 {
        if sockets.len() < 4 {
            sockets.push(bench.connect());
        }
        let socket = sockets[rng.random_range(0..sockets.len())];
        let mut bytes = ask(rng.random(), ["web.lan", "example.org"][rng.random_range(0..2)]);
        if rng.random_ratio(1, 8) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
            bytes.truncate(rng.random_range(0..=bytes.len()));
        }
        bench.stream(socket).room = rng.random_range(0..2000);
        bench.say(socket, &bytes);
        if bench.is_open(socket) && rng.random_ratio(1, 16) {
            bench.finish(socket);
        }
        if let Some((id, state)) = bench.world.edge.sockets.iter_mut().next()
            && let Some((to, _, asked)) = state.sent.pop_front()
        {
            let id = *id;
            let answer = resolved(&Query::parse(&asked).unwrap(), 3).emit(512);
            bench.receive(id, &to.to_string(), answer);
        }
        bench.advance(Duration::from_millis(rng.random_range(0..50)));
        sockets.retain(|socket| bench.is_open(*socket));
    }
    bench.advance(Duration::from_secs(60));
    assert_eq!(bench.open_sockets(), 0);
}
