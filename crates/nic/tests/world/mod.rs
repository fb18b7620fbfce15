//! A small Internet in virtual time: one machine behind a NAT, servers, paths that delay and lose.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken world is a failed test")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netyard_nic::nat::simulate::{Behaviour, Ends, Fate, Nat};
use netyard_nic::stun::machine::SocketId;
use netyard_nic::stun::server::Response;
use netyard_nic::stun::{Action, Machine, Port, Server};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

pub(crate) const CLIENT: &str = "10.0.0.2";
pub(crate) const EXTERNAL: &str = "203.0.113.1";

pub(crate) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// What answers at some endpoints; several answers may come of one request.
type Answers = Box<dyn FnMut(SocketAddr, SocketAddr, &[u8]) -> Vec<Response>>;

struct Host {
    endpoints: Vec<SocketAddr>,
    answers: Answers,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    bytes: Vec<u8>,
}

pub(crate) struct World {
    pub(crate) delay: Duration,
    /// Of a thousand packets on the way, in either direction.
    pub(crate) lost_of_1000: u32,
    pub(crate) nat: Option<Nat>,
    /// Datagrams that left the client.
    pub(crate) sent: usize,
    hosts: Vec<Host>,
    sockets: BTreeMap<SocketAddr, SocketId>,
    on_the_way: BinaryHeap<Reverse<(Instant, usize, Packet)>>,
    count: usize,
    pub(crate) start: Instant,
    now: Instant,
    rng: SmallRng,
}

impl World {
    /// With paths of 10 ms in each direction that lose nothing.
    pub(crate) fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self {
            delay: Duration::from_millis(10),
            lost_of_1000: 0,
            nat: None,
            sent: 0,
            hosts: Vec::new(),
            sockets: BTreeMap::new(),
            on_the_way: BinaryHeap::new(),
            count: 0,
            start,
            now: start,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    pub(crate) fn behind(mut self, behaviour: Behaviour) -> Self {
        let seed = self.rng.random();
        self.nat = Some(Nat::new(behaviour, EXTERNAL.parse().unwrap(), seed));
        self
    }

    pub(crate) fn over(mut self, delay: Duration, lost_of_1000: u32) -> Self {
        (self.delay, self.lost_of_1000) = (delay, lost_of_1000);
        self
    }

    pub(crate) fn host(
        mut self,
        endpoints: Vec<SocketAddr>,
        answers: impl FnMut(SocketAddr, SocketAddr, &[u8]) -> Vec<Response> + 'static,
    ) -> Self {
        self.hosts.push(Host { endpoints, answers: Box::new(answers) });
        self
    }

    /// A server of four endpoints at 198.51.100.1:3478 and 198.51.100.2:3479.
    pub(crate) fn server(self) -> Self {
        let server = server();
        self.host(server.endpoints(), move |local, from, bytes| {
            server.handle_datagram(local, from, bytes).into_iter().collect()
        })
    }

    /// A server with one endpoint.
    pub(crate) fn single(self, endpoint: &str) -> Self {
        self.host(vec![at(endpoint)], |local, from, bytes| {
            Server::single().handle_datagram(local, from, bytes).into_iter().collect()
        })
    }

    /// Runs a machine to its end.
    pub(crate) fn run<T>(&mut self, mut machine: Machine<T>) -> T {
        self.sockets.clear();
        loop {
            while let Some(action) = machine.poll_action() {
                self.act(&mut machine, action);
            }
            if let Some(result) = machine.poll_result() {
                return result;
            }
            let next = self.on_the_way.peek().map(|Reverse((when, ..))| *when);
            let timeout = machine.poll_timeout();
            match (next, timeout) {
                (Some(when), timeout) if timeout.is_none_or(|timeout| when <= timeout) => {
                    self.now = when.max(self.now);
                    self.deliver(&mut machine);
                }
                (_, Some(timeout)) => {
                    self.now = timeout.max(self.now);
                    machine.handle_timeout(self.now);
                }
                _ => panic!("the machine waits for nothing"),
            }
        }
    }

    /// The time that has passed.
    pub(crate) fn passed(&self) -> Duration {
        self.now.duration_since(self.start)
    }

    fn act<T>(&mut self, machine: &mut Machine<T>, action: Action) {
        match action {
            Action::Open { socket, port } => {
                let ip: IpAddr = CLIENT.parse().unwrap();
                let port = match port {
                    Port::Exact(port) => port,
                    Port::Any => self.rng.random_range(32_768..61_000),
                };
                let local = SocketAddr::new(ip, port);
                let outcome = match self.sockets.entry(local) {
                    std::collections::btree_map::Entry::Occupied(_) => {
                        Err(io::ErrorKind::AddrInUse)
                    }
                    std::collections::btree_map::Entry::Vacant(free) => {
                        free.insert(socket);
                        Ok(local)
                    }
                };
                machine.handle_opened(self.now, socket, outcome);
            }
            Action::Close(socket) => self.sockets.retain(|_, open| *open != socket),
            Action::Send { socket, to, bytes } => {
                self.sent += 1;
                let local = self.sockets.iter().find(|(_, open)| **open == socket);
                let source = *local.expect("only open sockets send").0;
                let ends = Ends { source, destination: to };
                let fate = match &mut self.nat {
                    Some(nat) => nat.handle_outbound(self.now, ends),
                    None => Fate::Out(ends),
                };
                match fate {
                    Fate::Out(Ends { source, destination })
                    | Fate::In(Ends { source, destination }) => {
                        self.send(Packet { source, destination, bytes });
                    }
                    Fate::Dropped => {}
                }
            }
        }
    }

    fn send(&mut self, packet: Packet) {
        if self.rng.random_range(0..1000) >= self.lost_of_1000 {
            self.count += 1;
            self.on_the_way.push(Reverse((self.now + self.delay, self.count, packet)));
        }
    }

    fn deliver<T>(&mut self, machine: &mut Machine<T>) {
        let Some(Reverse((_, _, packet))) = self.on_the_way.pop() else { return };
        let Packet { source, destination, bytes } = packet;
        if let Some(socket) = self.sockets.get(&destination)
            && self.nat.as_ref().is_some_and(|_| !self.is_host(source))
        {
            // Through a hairpin: translated already.
            return machine.handle_datagram(self.now, *socket, source, &bytes);
        }
        if let Some(host) = self.hosts.iter_mut().find(|host| host.endpoints.contains(&destination))
        {
            let responses = (host.answers)(destination, source, &bytes);
            for Response { from, to, bytes } in responses {
                self.send(Packet { source: from, destination: to, bytes });
            }
            return;
        }
        let ends = Ends { source, destination };
        let fate = match &mut self.nat {
            Some(nat) => nat.handle_inbound(self.now, ends),
            None => Fate::In(ends),
        };
        if let Fate::In(Ends { source, destination }) = fate
            && let Some(socket) = self.sockets.get(&destination)
        {
            machine.handle_datagram(self.now, *socket, source, &bytes);
        }
    }

    fn is_host(&self, address: SocketAddr) -> bool {
        self.hosts.iter().any(|host| host.endpoints.contains(&address))
    }
}

/// The server of four endpoints.
pub(crate) fn server() -> Server {
    Server::full(at("198.51.100.1:3478"), at("198.51.100.2:3479")).unwrap()
}

/// A seed for a machine.
pub(crate) fn seed(number: u64) -> [u8; 32] {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    seed
}
