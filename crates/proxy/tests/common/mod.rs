//! A service with scripted instances, and clients that speak HTTP by hand. Everything goes over
//! pairs of streams: no port is opened.

// Each test binary uses its own part; a test fails by panicking.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use netyard_proxy::{Asker, Dial, Limits, Proxy, Service, Turn, Turns, Way};

/// Longer than anything takes that does not hang.
const DEADLINE: Duration = Duration::from_secs(20);

/// What became of turns, for each instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub turns: u64,
    pub failed: u64,
    pub abandoned: u64,
    pub open: u64,
}

/// A ring of turns that counts.
#[derive(Debug, Default)]
pub struct Ring(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    order: Vec<u64>,
    position: usize,
    counts: HashMap<u64, Counts>,
}

impl Ring {
    pub fn set(&self, order: impl IntoIterator<Item = u64>) {
        self.0.lock().unwrap().order = order.into_iter().collect();
    }

    pub fn counts(&self, key: u64) -> Counts {
        self.0.lock().unwrap().counts.get(&key).copied().unwrap_or_default()
    }

    /// Waits until the counts of an instance are these.
    pub fn wait_for(&self, key: u64, expected: Counts) {
        let until = Instant::now() + DEADLINE;
        while self.counts(key) != expected {
            assert!(Instant::now() < until, "{:?}, not {expected:?}", self.counts(key));
            thread::yield_now();
        }
    }

    fn count(&self, key: u64, change: impl FnOnce(&mut Counts)) {
        change(self.0.lock().unwrap().counts.entry(key).or_default());
    }
}

impl Turns for Ring {
    fn next(&self, _: Asker, tried: &[u64]) -> Option<Turn> {
        let mut inner = self.0.lock().unwrap();
        let len = inner.order.len();
        let places = (0..len).map(|step| (inner.position + step) % len);
        let place = places.into_iter().find(|place| !tried.contains(&inner.order[*place]))?;
        inner.position = (place + 1) % len;
        let key = inner.order[place];
        inner.counts.entry(key).or_default().turns += 1;
        let port = u16::try_from(key).unwrap();
        let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), port);
        Some(Turn { key, addresses: [address("192.0.2.1"), address("2001:db8::1")] })
    }

    fn opened(&self, key: u64) {
        self.count(key, |counts| counts.open += 1);
    }

    fn closed(&self, key: u64) {
        self.count(key, |counts| counts.open -= 1);
    }

    fn failed(&self, key: u64) {
        self.count(key, |counts| counts.failed += 1);
    }

    fn abandoned(&self, key: u64) {
        self.count(key, |counts| counts.abandoned += 1);
    }
}

type Script = Arc<dyn Fn(Peer) + Send + Sync>;

/// A service with instances that do what they are told.
pub struct Bench {
    pub proxy: Proxy,
    pub ring: Arc<Ring>,
    pub service: Option<Service>,
    scripts: Arc<Mutex<HashMap<u64, Script>>>,
    /// Connections that were opened to each instance.
    opened: Arc<Mutex<HashMap<u64, usize>>>,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(Limits { connections: 1_000, ..Limits::of(0) })
    }

    pub fn with(limits: Limits) -> Self {
        let proxy = Proxy::start(limits).unwrap();
        let ring = Arc::new(Ring::default());
        let scripts: Arc<Mutex<HashMap<u64, Script>>> = Arc::default();
        let opened: Arc<Mutex<HashMap<u64, usize>>> = Arc::default();
        let dial = {
            let (scripts, opened) = (Arc::clone(&scripts), Arc::clone(&opened));
            move |dial: Dial| {
                let key = u64::from(dial.to.port());
                let script = scripts.lock().unwrap().get(&key).cloned();
                let Some(script) = script.filter(|_| dial.to.is_ipv4()) else {
                    return dial.answer(Err(io::ErrorKind::ConnectionRefused.into()));
                };
                *opened.lock().unwrap().entry(key).or_default() += 1;
                let (ours, theirs) = UnixStream::pair().unwrap();
                thread::spawn(move || script(Peer::new(ours)));
                dial.answer(Ok(theirs));
            }
        };
        let turns: Arc<dyn Turns> = Arc::clone(&ring) as _;
        let service = proxy.serve("web", turns, Way::Asked(Arc::new(dial)));
        Self { proxy, ring, service: Some(service), scripts, opened }
    }

    /// Adds an instance that does this with each connection.
    pub fn instance(&self, key: u64, script: impl Fn(Peer) + Send + Sync + 'static) {
        self.scripts.lock().unwrap().insert(key, Arc::new(script));
        let mut order = self.ring.0.lock().unwrap();
        if !order.order.contains(&key) {
            order.order.push(key);
        }
    }

    /// Adds instances that answer every request with their number.
    pub fn well(&self, keys: impl IntoIterator<Item = u64>) {
        for key in keys {
            self.instance(key, move |mut peer| {
                while peer.request().is_some() {
                    peer.answer(&key.to_string());
                }
            });
        }
    }

    /// An instance in the ring that refuses connections.
    pub fn refuses(&self, key: u64) {
        self.instance(key, |_| {});
        self.scripts.lock().unwrap().remove(&key);
    }

    pub fn opened(&self, key: u64) -> usize {
        self.opened.lock().unwrap().get(&key).copied().unwrap_or_default()
    }

    pub fn client(&self) -> Peer {
        self.client_of("192.0.2.7:1234")
    }

    pub fn client_of(&self, address: &str) -> Peer {
        Peer::new(self.connect(address))
    }

    pub fn connect(&self, address: &str) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.service.as_ref().unwrap().accept(theirs, address.parse().unwrap());
        ours
    }
}

/// One end of a connection, spoken with by hand.
pub struct Peer {
    pub stream: UnixStream,
    buffer: Vec<u8>,
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The first line and the fields, as they came.
    pub head: String,
    pub body: String,
}

impl Message {
    /// The first line.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub fn status(&self) -> u16 {
        self.line().split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, text: &str) {
        // Who has gone shows it when it is read from.
        let _ = self.stream.write_all(text.as_bytes());
    }

    /// Reads some bytes; false at the end.
    fn more(&mut self) -> bool {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(len) => {
                self.buffer.extend_from_slice(&chunk[..len]);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing has come: {error}"),
        }
    }

    /// Reads a head, with the empty line behind it; `None` at the end.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.more() {
                assert!(self.buffer.is_empty(), "a part: {:?}", self.rest());
                return None;
            }
        }
    }

    /// Reads exactly so many bytes, or as many as there are.
    pub fn take(&mut self, len: usize) -> String {
        while self.buffer.len() < len && self.more() {}
        let len = len.min(self.buffer.len());
        String::from_utf8(self.buffer.drain(..len).collect()).unwrap()
    }

    /// Reads everything to the end.
    pub fn rest(&mut self) -> String {
        while self.more() {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    /// Reads a message whose length is told, or that has no body.
    fn message(&mut self) -> Option<Message> {
        let head = self.head()?;
        let mut message = Message { head, body: String::new() };
        if message.field("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.line();
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                let chunk = self.take(size);
                message.body.push_str(&chunk);
                self.line();
                if size == 0 {
                    return Some(message);
                }
            }
        }
        if let Some(len) = message.field("content-length") {
            let len = len.parse().unwrap();
            message.body = self.take(len);
        }
        Some(message)
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return String::from_utf8(line).unwrap();
            }
            assert!(self.more(), "the end, and no line");
        }
    }

    /// As an instance: the next request.
    pub fn request(&mut self) -> Option<Message> {
        self.message()
    }

    /// As an instance: answers with a text.
    pub fn answer(&mut self, text: &str) {
        self.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
    }

    /// As a client: asks, and reads the answer.
    pub fn ask(&mut self, request: &str) -> Message {
        self.send(request);
        self.message().expect("an answer")
    }

    /// As a client: gets `/`; the text of the answer.
    pub fn get(&mut self) -> String {
        let message = self.ask(GET);
        assert_eq!(message.status(), 200, "{message:?}");
        message.body
    }
}

pub const GET: &str = "GET / HTTP/1.1\r\nHost: web.lan\r\n\r\n";
pub const POST: &str = "POST / HTTP/1.1\r\nHost: web.lan\r\nContent-Length: 5\r\n\r\nhello";
