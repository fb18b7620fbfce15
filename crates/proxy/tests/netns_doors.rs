//! Ports of a service: how they close, and what is said of them.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::Bench;
use netyard_proxy::{Asker, Limits, Proxy, Turn, Turns, Way};
use netyard_testbed::{isolate, peer, run, wait_for};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const LONG: Duration = Duration::from_secs(30);

/// The answer is everything until the end.
const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";

/// Turns that come when the test says so; the proxy's thread waits for them.
#[derive(Debug)]
struct Late {
    asked: mpsc::Sender<Asker>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Turns for Late {
    fn next(&self, asker: Asker, _: &[u64]) -> Option<Turn> {
        self.asked.send(asker).unwrap();
        // The test has gone on, or has failed.
        let _ = self.go.lock().unwrap().recv_timeout(LONG);
        None
    }

    fn opened(&self, _: u64) {}

    fn closed(&self, _: u64) {}

    fn failed(&self, _: u64) {}

    fn abandoned(&self, _: u64) {}
}

fn get(at: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(at).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    client.write_all(GET.as_bytes()).unwrap();
    client
}

#[test]
fn a_port_closes_while_the_proxy_is_busy() {
    isolate(|| {
        let (asked, came) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let turns: Arc<dyn Turns> = Arc::new(Late { asked, go: Mutex::new(gone) });
        let proxy = Proxy::start(Limits::of(1_024)).unwrap();
        let service = proxy.serve("web", turns, Way::Host);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let door = service.listen(listener).unwrap();
        let client = get(at);
        came.recv_timeout(LONG).unwrap();

        drop(door);
        let refused = TcpStream::connect(at).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // It can be opened again, and the first one's end does not close it.
        let _door = service.listen(TcpListener::bind(at).unwrap()).unwrap();
        let second = get(at);
        go.send(()).unwrap();
        go.send(()).unwrap();
        for answer in [client, second] {
            assert!(io::read_to_string(answer).unwrap().starts_with("HTTP/1.1 503 "));
        }
    });
}

#[test]
fn who_has_come_by_a_port_is_told_from_who_was_handed_over() {
    isolate(|| {
        let (asked, came) = mpsc::channel();
        let (_, at_once) = mpsc::channel();
        let turns: Arc<dyn Turns> = Arc::new(Late { asked, go: Mutex::new(at_once) });
        let proxy = Proxy::start(Limits::of(1_024)).unwrap();
        let service = proxy.serve("web", turns, Way::Host);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _door = service.listen(listener).unwrap();
        let _client = get(at);
        let asker = Asker { address: at.ip(), handed_over: false };
        assert_eq!(came.recv_timeout(LONG), Ok(asker));
        let (mut client, theirs) = UnixStream::pair().unwrap();
        service.accept(theirs, at);
        client.write_all(GET.as_bytes()).unwrap();
        assert_eq!(came.recv_timeout(LONG), Ok(Asker { handed_over: true, ..asker }));
    });
}

/// What the proxy says, as lines.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    fn count(&self, line: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|said| *said == line).count()
    }

    fn wait_for(&self, line: &str, times: usize) {
        wait_for(line, LONG, || (self.count(line) >= times).then_some(()));
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl Subscriber for Said {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("netyard_proxy")
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Opens files until this process can open no more.
fn all_descriptors() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// How many descriptors this process has.
fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn that_connections_cannot_be_taken_is_said_once() {
    isolate(|| {
        let said = Said::default();
        tracing::subscriber::set_global_default(said.clone()).unwrap();
        let this = std::process::id().to_string();
        run(Command::new(peer("prlimit")).args(["--pid", &this, "--nofile=128:128"]));
        let bench = Bench::new();
        // It keeps no connection for the next request.
        bench.instance(1, |mut peer| {
            if peer.request().is_some() {
                peer.answer("1");
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _door = bench.service.as_ref().unwrap().listen(listener).unwrap();
        let before = open_files();
        for times in [1, 2] {
            // What is closed while none is left could be used to take a connection, and nothing else.
            wait_for("the last connections to be closed", LONG, || {
                (open_files() == before).then_some(())
            });
            let mut taken = all_descriptors();
            // One for the client, and none for who takes its connection.
            taken.pop();
            let client = get(at);
            said.wait_for("still none can be taken", 3 * times);
            drop(taken);
            assert!(io::read_to_string(client).unwrap().ends_with('1'));
            said.wait_for("connections are taken again", times);
            assert_eq!(said.count("connections cannot be taken"), times);
        }
    });
}
