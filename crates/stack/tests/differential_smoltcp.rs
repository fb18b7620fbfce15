//! The same applications on our stack and on smoltcp, over a link that loses, delays and repeats packets, in
//! virtual time: what one end sends the other receives, and every connection ends.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod application;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use application::{Application, Ours, Socket, is_open, pair};
use netyard_stack::{ListenerId, Medium, NicIndex, Settings, Stack, TcpId};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::{Features, Frame, FrameBuf, MacAddr, Offload, fit};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium as SmolMedium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

const MTU: usize = 1500;
const PORT: u16 = 80;
const NIC: NicIndex = NicIndex(0);
/// Of both families: ours, theirs.
const ADDRESSES: [[&str; 2]; 2] = [["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]];
/// No connection takes so long, whatever is lost.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What a link does to packets of one direction.
#[derive(Debug, Clone, Copy)]
struct Link {
    delay: Duration,
    loss: f64,
    duplicate: f64,
    late: f64,
}

const LINKS: [Link; 4] = [
    Link { delay: Duration::from_millis(1), loss: 0.0, duplicate: 0.0, late: 0.0 },
    Link { delay: Duration::from_millis(5), loss: 0.0, duplicate: 0.05, late: 0.2 },
    Link { delay: Duration::from_millis(20), loss: 0.02, duplicate: 0.02, late: 0.02 },
    Link { delay: Duration::from_millis(50), loss: 0.08, duplicate: 0.05, late: 0.1 },
];

/// The device of smoltcp.
#[derive(Default)]
struct Queues {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct Taken(Vec<u8>);

struct Given<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Taken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Given<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Taken;
    type TxToken<'a> = Given<'a>;

    fn receive(&mut self, _now: SmolInstant) -> Option<(Taken, Given<'_>)> {
        let packet = self.incoming.pop_front()?;
        Some((Taken(packet), Given(&mut self.outgoing)))
    }

    fn transmit(&mut self, _now: SmolInstant) -> Option<Given<'_>> {
        Some(Given(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = SmolMedium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

struct Lab {
    start: Instant,
    now: Instant,
    link: Link,
    rng: SmallRng,
    ours: Stack,
    id: Option<TcpId>,
    listener: Option<ListenerId>,
    device: Queues,
    theirs: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// When and in which order packets arrive, and whether at smoltcp.
    flying: BTreeMap<(Instant, u64), (bool, Vec<u8>)>,
    count: u64,
}

impl Socket for tcp::Socket<'_> {
    fn send(&mut self, bytes: &[u8]) -> Option<usize> {
        if !self.may_send() {
            assert!(!self.may_recv(), "it has ended early");
            return None;
        }
        Some(self.send_slice(bytes).unwrap()).filter(|taken| *taken > 0)
    }

    fn recv(&mut self, into: &mut [u8]) -> Option<usize> {
        match self.recv_slice(into) {
            Ok(0) => None,
            Ok(len) => Some(len),
            Err(tcp::RecvError::Finished) => Some(0),
            Err(error) => panic!("it has ended early, in {}: {error:?}", self.state()),
        }
    }

    fn finish(&mut self) {
        self.close();
    }
}

impl Lab {
    fn new(seed: u64, link: Link, family: usize, we_connect: bool) -> Self {
        let now = Instant::now();
        let [our_address, their_address] =
            ADDRESSES[family].map(|ip| ip.parse::<IpAddr>().unwrap());
        let len = if family == 0 { 24 } else { 64 };
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut ours = Stack::new(now, rng.random(), Settings::default());
        ours.add_nic(Medium::Ip, MTU as u32).unwrap();
        ours.add_address(now, NIC, ipnet::IpNet::new(our_address, len).unwrap()).unwrap();

        let mut device = Queues::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = rng.random();
        let mut theirs = Interface::new(config, &mut device, SmolInstant::ZERO);
        theirs.update_ip_addrs(|list| {
            list.push(IpCidr::new(IpAddress::from(their_address), len)).unwrap()
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 128 * 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        let (mut id, mut listener) = (None, None);
        if we_connect {
            socket.listen(PORT).unwrap();
            id = Some(ours.tcp_connect(now, SocketAddr::new(their_address, PORT), None).unwrap());
        } else {
            let at = SocketAddr::new(our_address, PORT);
            listener = Some(ours.tcp_listen(at, 4).unwrap());
            let to = IpEndpoint::new(our_address.into(), PORT);
            socket.connect(theirs.context(), to, 49_152).unwrap();
        }
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        let (flying, count) = (BTreeMap::new(), 0);
        Self {
            start: now,
            now,
            link,
            rng,
            ours,
            id,
            listener,
            device,
            theirs,
            sockets,
            handle,
            flying,
            count,
        }
    }

    fn smol_now(&self) -> SmolInstant {
        SmolInstant::from_micros(i64::try_from((self.now - self.start).as_micros()).unwrap())
    }

    fn launch(&mut self, to_them: bool, packet: Vec<u8>) {
        let Link { delay, loss, duplicate, late } = self.link;
        if self.rng.random_bool(loss) {
            return;
        }
        for _ in 0..=usize::from(self.rng.random_bool(duplicate)) {
            let more = if self.rng.random_bool(late) {
                delay.mul_f64(self.rng.random())
            } else {
                Duration::ZERO
            };
            self.count += 1;
            self.flying.insert((self.now + delay + more, self.count), (to_them, packet.clone()));
        }
    }

    /// Lets both stacks send what they have.
    fn flush(&mut self) {
        let (mut frame, mut scratch) = (FrameBuf::default(), Vec::new());
        while self.ours.poll_transmit(self.now, &mut frame).is_some() {
            let mut cut = Vec::new();
            fit(frame.as_frame(), Features::NONE, &mut scratch, &mut |part| {
                cut.push(part.bytes[ethernet::HEADER_LEN..].to_vec());
            })
            .unwrap();
            for packet in cut {
                self.launch(true, packet);
            }
        }
        let now = self.smol_now();
        self.theirs.poll(now, &mut self.device, &mut self.sockets);
        while let Some(packet) = self.device.outgoing.pop_front() {
            self.launch(false, packet);
        }
    }

    fn arrive(&mut self) {
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= self.now)
        {
            let (to_them, packet) = entry.remove();
            if to_them {
                self.device.incoming.push_back(packet);
                continue;
            }
            let none = MacAddr([0; 6]);
            let ethertype = if packet[0] >> 4 == 4 { ethernet::IPV4 } else { ethernet::IPV6 };
            let mut bytes = Ethernet { destination: none, source: none, ethertype }.emit().to_vec();
            bytes.extend(packet);
            let frame = Frame { bytes: &bytes, offload: Offload::default() };
            self.ours.handle_frame(self.now, NIC, frame);
        }
        self.ours.handle_timeout(self.now);
    }

    /// Runs two applications to their end, and until neither stack remembers anything.
    fn run(&mut self, mine: &mut Application, other: &mut Application) {
        loop {
            self.flush();
            while self.ours.poll_event().is_some() {}
            if let Some(listener) = self.listener.filter(|_| self.id.is_none()) {
                self.id = self.ours.tcp_accept(listener).ok().map(|(id, _)| id);
            }
            let mut due = Vec::new();
            if let Some(id) = self.id.filter(|id| is_open(&self.ours, *id)) {
                due.push(mine.drive(self.now, &mut Ours(&mut self.ours, id, self.now)));
            }
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
            let opening = [tcp::State::Listen, tcp::State::SynSent, tcp::State::SynReceived];
            if !opening.contains(&socket.state()) {
                due.push(other.drive(self.now, socket));
            }
            if let Some(id) = self.id.filter(|_| mine.is_over()) {
                self.ours.tcp_close(self.now, id);
                (self.id, self.listener) = (None, None);
            }
            self.flush();
            let theirs = self.theirs.poll_at(self.smol_now(), &self.sockets);
            due.push(theirs.map(|at| self.start + Duration::from_micros(at.total_micros() as u64)));
            due.push(self.ours.poll_timeout());
            due.push(self.flying.keys().next().map(|(at, _)| *at));
            let Some(next) = due.into_iter().flatten().min() else { return };
            assert!(next - self.start < PATIENCE, "it goes on and on: {:?}", self.ours.drops());
            self.now = self.now.max(next);
            self.arrive();
        }
    }
}

#[test]
fn what_one_end_sends_the_other_receives_and_all_connections_end() {
    for seed in 0..16 {
        let link = LINKS[seed as usize % LINKS.len()];
        let (family, we_connect) = (seed as usize / 4 % 2, seed / 8 % 2 == 0);
        let what =
            format!("seed {seed}, {link:?}, {}, we connect: {we_connect}", ADDRESSES[family][0]);
        let mut lab = Lab::new(seed, link, family, we_connect);
        let [mut mine, mut other] = pair(seed, lab.now, 100_000);
        lab.run(&mut mine, &mut other);
        mine.assert_heard(&other, &what);
        other.assert_heard(&mine, &what);
        assert_eq!(lab.ours.counts(), Default::default(), "{what}");
        let state = lab.sockets.get::<tcp::Socket<'_>>(lab.handle).state();
        assert_eq!(state, tcp::State::Closed, "{what}");
    }
}
