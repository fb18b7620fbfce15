//! Two stacks and the link between them, in virtual time.

// Each test binary uses its own part; a test fails by panicking.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netyard_stack::{Error, Event, Medium, NicIndex, Settings, Stack, TcpId};
use netyard_wire::build::TcpFrame;
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{Features, FrameBuf, MacAddr, SeqNumber, fit};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

pub const NIC: NicIndex = NicIndex(0);
pub const CLIENT: usize = 0;
pub const SERVER: usize = 1;
pub const FAMILIES: [&str; 2] = ["10.0.0.2:80", "[fd00::2]:80"];

/// One direction of a link.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub delay: Duration,
    /// Probability that a frame is lost, comes twice, is late by up to another delay.
    pub loss: f64,
    pub duplicate: f64,
    pub late: f64,
    /// Bytes per second, and how many bytes wait for their turn.
    pub rate: Option<u64>,
    pub buffer: usize,
    /// What arrives as it was sent; everything else is cut and completed.
    pub features: Features,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(5),
            loss: 0.0,
            duplicate: 0.0,
            late: 0.0,
            rate: None,
            buffer: 256 * 1024,
            features: Features::NONE,
        }
    }
}

type Filter = Box<dyn FnMut(usize, &FrameBuf) -> bool>;

pub struct Sim {
    pub start: Instant,
    pub now: Instant,
    pub stacks: [Stack; 2],
    /// By sender.
    pub links: [Link; 2],
    /// Frames that are on their way: when and in which order they arrive, and at whom.
    flying: BTreeMap<(Instant, u64), (usize, FrameBuf)>,
    /// When a link of a rate has sent what it has.
    free: [Instant; 2],
    count: u64,
    pub rng: SmallRng,
    /// Frames that leave, by sender; those for which it says false are lost.
    pub filter: Option<Filter>,
    /// Frames that were sent and arrived, by sender.
    pub sent: [usize; 2],
    pub lost: [usize; 2],
    pub events: [Vec<Event>; 2],
}

pub fn mac(side: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, u8::try_from(side).unwrap() + 1])
}

impl Sim {
    pub fn new(seed: u64, link: Link) -> Self {
        Self::with(seed, link, Settings::default(), 1500)
    }

    pub fn with(seed: u64, link: Link, settings: Settings, mtu: u32) -> Self {
        let now = Instant::now();
        let mut rng = SmallRng::seed_from_u64(seed);
        let stacks = [0, 1].map(|side| {
            let mut stack = Stack::new(now, rng.random(), settings);
            let nic = stack.add_nic(Medium::Ethernet(mac(side)), mtu).unwrap();
            assert_eq!(nic, NIC);
            for net in [format!("10.0.0.{}/24", side + 1), format!("fd00::{}/64", side + 1)] {
                stack.add_address(now, nic, net.parse().unwrap()).unwrap();
            }
            if link.loss > 0.0 {
                // Neighbours are given up after three lost questions; that is not what is tested.
                for ip in [format!("10.0.0.{}", 2 - side), format!("fd00::{}", 2 - side)] {
                    stack.set_neighbor(nic, ip.parse().unwrap(), mac(1 - side));
                }
            }
            stack
        });
        Self {
            start: now,
            now,
            stacks,
            links: [link; 2],
            flying: BTreeMap::new(),
            free: [now; 2],
            count: 0,
            rng,
            filter: None,
            sent: [0; 2],
            lost: [0; 2],
            events: [Vec::new(), Vec::new()],
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Sends what the stacks have.
    pub fn flush(&mut self) {
        let mut frame = FrameBuf::default();
        let mut scratch = Vec::new();
        for side in [CLIENT, SERVER] {
            while let Some(nic) = self.stacks[side].poll_transmit(self.now, &mut frame) {
                assert_eq!(nic, NIC);
                let mut cut = Vec::new();
                let features = self.links[side].features;
                fit(frame.as_frame(), features, &mut scratch, &mut |frame| cut.push(frame.into()))
                    .unwrap();
                for frame in cut {
                    self.launch(side, frame);
                }
            }
            while let Some(event) = self.stacks[side].poll_event() {
                self.events[side].push(event);
            }
        }
    }

    fn launch(&mut self, side: usize, frame: FrameBuf) {
        self.sent[side] += 1;
        let link = self.links[side];
        let kept = self.filter.as_mut().is_none_or(|filter| filter(side, &frame));
        if !kept || self.rng.random_bool(link.loss) {
            self.lost[side] += 1;
            return;
        }
        let mut leaves = self.now;
        if let Some(rate) = link.rate {
            let waiting = self.free[side].saturating_duration_since(self.now);
            let backlog = waiting.as_secs_f64() * rate as f64;
            if backlog > link.buffer as f64 {
                self.lost[side] += 1;
                return;
            }
            let takes = Duration::from_secs_f64(frame.bytes.len() as f64 / rate as f64);
            self.free[side] = self.free[side].max(self.now) + takes;
            leaves = self.free[side];
        }
        let copies = 1 + usize::from(self.rng.random_bool(link.duplicate));
        for _ in 0..copies {
            let late = self.rng.random_bool(link.late);
            let more = if late { link.delay.mul_f64(self.rng.random()) } else { Duration::ZERO };
            self.count += 1;
            let arrives = (leaves + link.delay + more, self.count);
            self.flying.insert(arrives, (1 - side, frame.clone()));
        }
    }

    /// Lets the next thing happen, at most until `limit`. False: nothing is left before it.
    pub fn step(&mut self, limit: Instant) -> bool {
        let told = self.events.iter().map(Vec::len).sum::<usize>();
        self.flush();
        if self.events.iter().map(Vec::len).sum::<usize>() > told {
            // A host that talks to itself takes no time.
            return true;
        }
        let arrival = self.flying.keys().next().map(|(at, _)| *at);
        let timers = self.stacks.iter().map(Stack::poll_timeout);
        let next = timers.chain([arrival]).flatten().min();
        let Some(next) = next.filter(|next| *next <= limit) else {
            self.now = self.now.max(limit);
            return false;
        };
        self.now = self.now.max(next);
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= self.now)
        {
            let (side, frame) = entry.remove();
            self.stacks[side].handle_frame(self.now, NIC, frame.as_frame());
        }
        for stack in &mut self.stacks {
            if stack.poll_timeout().is_some_and(|at| at <= self.now) {
                stack.handle_timeout(self.now);
            }
        }
        self.flush();
        true
    }

    pub fn run(&mut self, time: Duration) {
        let limit = self.now + time;
        while self.step(limit) {}
    }

    /// Runs until `done` gives a value.
    pub fn until<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let limit = self.now + within;
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            assert!(self.step(limit), "{what}: not within {within:?}");
        }
    }

    pub fn listen(&mut self, at: &str) -> netyard_stack::ListenerId {
        self.stacks[SERVER].tcp_listen(at.parse().unwrap(), 16).unwrap()
    }

    pub fn connect(&mut self, to: &str) -> TcpId {
        let to: SocketAddr = to.parse().unwrap();
        self.stacks[CLIENT].tcp_connect(self.now, to, None).unwrap()
    }

    /// An open connection: the client's end and the server's.
    pub fn open(&mut self, to: &str) -> (TcpId, TcpId) {
        let listener = self.listen(to);
        let client = self.connect(to);
        let server = self.until("accept", Duration::from_secs(60), |sim| {
            sim.stacks[SERVER].tcp_accept(listener).ok().map(|(id, _)| id)
        });
        self.stacks[SERVER].tcp_close_listener(self.now, listener);
        (client, server)
    }

    pub fn recv(&mut self, side: usize, id: TcpId) -> Result<Vec<u8>, Error> {
        let mut buffer = vec![0; 65_536];
        let len = self.stacks[side].tcp_recv(self.now, id, &mut buffer, false)?;
        buffer.truncate(len);
        Ok(buffer)
    }

    /// Moves `data` from one end to the other, whose program reads at once; the stream ends with it.
    pub fn transfer(
        &mut self,
        from: usize,
        (sender, receiver): (TcpId, TcpId),
        data: &[u8],
        within: Duration,
    ) -> Vec<u8> {
        let mut sent = 0;
        let mut got = Vec::new();
        self.until("transfer", within, |sim| {
            while sent < data.len() {
                let rest = &data[sent..(sent + 65_536).min(data.len())];
                match sim.stacks[from].tcp_send(sender, rest) {
                    Ok(count) => sent += count,
                    Err(Error::WouldBlock) => break,
                    Err(error) => panic!("send after {sent} bytes: {error}"),
                }
                if sent == data.len() {
                    sim.stacks[from].tcp_shutdown(sender, false, true).unwrap();
                }
            }
            loop {
                match sim.recv(1 - from, receiver) {
                    Ok(bytes) if bytes.is_empty() => return Some(()),
                    Ok(bytes) => got.extend(bytes),
                    Err(Error::WouldBlock) => return None,
                    Err(error) => panic!("receive after {} bytes: {error}", got.len()),
                }
            }
        });
        got
    }
}

/// A stack with a TUN device for each of some addresses, and nobody at their other ends.
pub fn alone<const LINKS: usize>(nets: [&str; LINKS]) -> (Instant, Stack, [NicIndex; LINKS]) {
    let now = Instant::now();
    let mut stack = Stack::new(now, [1; 32], Settings::default());
    let nics = nets.map(|net| {
        let nic = stack.add_nic(Medium::Ip, 1500).unwrap();
        stack.add_address(now, nic, net.parse().unwrap()).unwrap();
        nic
    });
    (now, stack, nics)
}

/// A SYN without options.
pub fn syn(to: MacAddr, source: SocketAddr, destination: SocketAddr) -> FrameBuf {
    segment(to, source, destination, Flags::SYN, (SeqNumber(7), SeqNumber(0)), 1000)
}

/// A segment without options and payload, with its number and what it acknowledges.
pub fn segment(
    to: MacAddr,
    source: SocketAddr,
    destination: SocketAddr,
    flags: Flags,
    (seq, ack): (SeqNumber, SeqNumber),
    window: u16,
) -> FrameBuf {
    let header = TcpFrame {
        source_mac: MacAddr([0; 6]),
        destination_mac: to,
        source,
        destination,
        seq,
        ack,
        flags,
        window,
        options: TcpOptions::default(),
        hop_limit: 64,
        traffic_class: 0,
        ip_id: 0,
    };
    let mut bytes = vec![0; header.header_len()];
    let offload = header.emit(&mut bytes, u16::MAX);
    FrameBuf { bytes, offload }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16).wrapping_mul(31)) as u8).collect()
}
