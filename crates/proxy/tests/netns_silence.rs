//! Clients and instances that vanish without a word, or take nothing of what is sent to them.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{Bench, GET, Peer};
use netyard_proxy::{Asker, Door, Limits, Proxy, Turn, Turns, Way};
use netyard_sys::namespace::{Namespaces, within};
use netyard_testbed::{Outside, isolate, wait_for};

const LONG: Duration = Duration::from_secs(30);

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";

/// Nothing else ends a connection within the time of a test.
fn limits() -> Limits {
    Limits { connections: 100, silence: Duration::from_secs(1), ..Limits::of(0) }
}

fn in_outside<T: Send>(outside: &Outside, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(outside.namespace().path()).unwrap();
    within(namespace.as_fd(), Namespaces::NETWORK, work).unwrap()
}

/// The far end of the link is gone, and nobody is told.
fn cut(outside: &Outside) {
    outside.namespace().ip(&["link", "set", "inside", "down"]);
}

fn open(bench: &Bench) -> (SocketAddr, Door) {
    let listener = TcpListener::bind((Outside::HOST4, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    (at, bench.service.as_ref().unwrap().listen(listener).unwrap())
}

/// The turns of a single instance.
#[derive(Debug)]
struct Only(SocketAddr);

impl Turns for Only {
    fn next(&self, _: Asker, tried: &[u64]) -> Option<Turn> {
        tried.is_empty().then_some(Turn { key: 1, addresses: [self.0; 2] })
    }

    fn opened(&self, _: u64) {}

    fn closed(&self, _: u64) {}

    fn failed(&self, _: u64) {}

    fn abandoned(&self, _: u64) {}
}

fn wait_for_seats(bench: &Bench) {
    let free = || (bench.proxy.connections() == 0).then_some(());
    wait_for("the seats of those who have gone", LONG, free);
}

#[test]
fn a_client_that_vanished_gives_its_seat_back() {
    isolate(|| {
        let outside = Outside::new();
        let bench = Bench::with(limits());
        let (asked, came) = mpsc::channel();
        let (ended, end) = mpsc::channel();
        bench.instance(1, move |mut peer: Peer| {
            if peer.request().unwrap().field("upgrade").is_some() {
                peer.send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: echo\r\n\r\n",
                );
            }
            asked.send(()).unwrap();
            ended.send(peer.rest()).unwrap();
        });
        let (at, _door) = open(&bench);
        let clients = [GET, UPGRADE].map(|request| {
            let mut client = in_outside(&outside, || TcpStream::connect(at)).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            came.recv_timeout(LONG).unwrap();
            client
        });
        assert_eq!(bench.proxy.connections(), 2);
        cut(&outside);
        wait_for_seats(&bench);
        assert_eq!([(); 2].map(|()| end.recv_timeout(LONG).unwrap()), ["", ""]);
        drop(clients);
    });
}

#[test]
fn a_client_that_takes_nothing_gives_its_seat_back() {
    isolate(|| {
        let outside = Outside::new();
        let bench = Bench::with(limits());
        let (ended, end) = mpsc::channel();
        bench.instance(1, move |mut peer: Peer| {
            peer.request();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n");
            while peer.stream.write_all(&[b'x'; 65_536]).is_ok() {}
            ended.send(()).unwrap();
        });
        let (at, _door) = open(&bench);
        let mut far = in_outside(&outside, || TcpStream::connect(at)).unwrap();
        far.write_all(GET.as_bytes()).unwrap();
        let mut near: UnixStream = bench.connect("192.0.2.7:1234");
        near.write_all(GET.as_bytes()).unwrap();
        for _ in [1, 2] {
            end.recv_timeout(LONG).unwrap();
        }
        wait_for_seats(&bench);
    });
}

#[test]
fn an_instance_that_vanished_is_not_waited_for() {
    isolate(|| {
        let outside = Outside::new();
        let at = SocketAddr::new(Outside::ROUTER4.into(), 80);
        let listener = in_outside(&outside, || TcpListener::bind(at)).unwrap();
        let proxy = Proxy::start(limits()).unwrap();
        let turns: Arc<dyn Turns> = Arc::new(Only(at));
        let service = proxy.serve("web", turns, Way::Host);
        let (mut client, theirs) = UnixStream::pair().unwrap();
        service.accept(theirs, "192.0.2.7:1234".parse().unwrap());
        client.set_read_timeout(Some(LONG)).unwrap();
        client.write_all(GET.as_bytes()).unwrap();
        let (mut instance, _) = listener.accept().unwrap();
        assert!(instance.read(&mut [0; 1024]).unwrap() > 0);
        cut(&outside);
        let mut answer = [0; 12];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(str::from_utf8(&answer).unwrap(), "HTTP/1.1 502");
    });
}
