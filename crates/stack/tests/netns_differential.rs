//! The same applications on our stack and on the kernel's, over a TAP behind which a thread loses, delays and
//! repeats frames: what one end sends the other receives, and every connection ends.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod application;

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use application::{Application, Ours, Socket, is_open, pair};
use netyard_stack::device::{BUFFER_LEN, Device, Received};
use netyard_stack::driver::Driver;
use netyard_stack::{ListenerId, Settings, Stack, TcpId};
use netyard_sys::poll::{Events, Interest, Poll};
use netyard_sys::tap::Layer;
use netyard_testbed::{isolate, peer, run};
use netyard_wire::{FrameBuf, MacAddr};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const LONG: Duration = Duration::from_secs(120);
const MAC: MacAddr = MacAddr([0xfe, 0xe1, 0xba, 0xd0, 0x33, 0x33]);
const KERNEL_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
/// Connections at the same time, half of them opened by the kernel.
const CONNECTIONS: u64 = 24;

/// Carries frames between two devices until it is told to stop: some are lost, some come twice, some late.
fn carry(mut devices: [Device; 2], seed: u64, stop: &AtomicBool) -> io::Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let poll = Poll::new()?;
    for (device, token) in devices.iter().zip(0..) {
        poll.add(device.as_fd(), token, Interest::Readable)?;
    }
    let mut events = Events::new();
    let mut buffer = vec![0; BUFFER_LEN];
    let mut flying: BTreeMap<(Instant, u64), (usize, FrameBuf)> = BTreeMap::new();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = flying.keys().next().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        poll.wait(&mut events, Some(due.unwrap_or(LONG).min(Duration::from_millis(50))))?;
        let now = Instant::now();
        for (from, device) in devices.iter_mut().enumerate() {
            loop {
                let frame = match device.receive(&mut buffer)? {
                    Received::Frame(frame) => frame,
                    Received::Nothing => break,
                    Received::Taken | Received::Malformed(_) => continue,
                };
                let copies = match rng.random_range(0..100) {
                    0..3 => 0,
                    3..5 => 2,
                    _ => 1,
                };
                for _ in 0..copies {
                    let late = if rng.random_bool(0.05) { rng.random_range(1..5) } else { 0 };
                    count += 1;
                    let arrives = (now + Duration::from_millis(1 + late), count);
                    flying.insert(arrives, (1 - from, frame.into()));
                }
            }
        }
        while let Some(entry) = flying.first_entry().filter(|entry| entry.key().0 <= now) {
            let (to, frame) = entry.remove();
            if devices[to].flush()? {
                devices[to].send(frame.as_frame())?;
                devices[to].flush()?;
            }
        }
    }
    Ok(())
}

impl Socket for &TcpStream {
    fn send(&mut self, bytes: &[u8]) -> Option<usize> {
        or_block(self.write(bytes))
    }

    fn recv(&mut self, into: &mut [u8]) -> Option<usize> {
        or_block(self.read(into))
    }

    fn finish(&mut self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

fn or_block(done: io::Result<usize>) -> Option<usize> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        done => Some(done.unwrap()),
    }
}

/// A connection: both of its ends as far as they are there, and what they do.
struct Pair {
    what: String,
    listener: Option<ListenerId>,
    ours: Option<TcpId>,
    kernel_listener: Option<TcpListener>,
    kernel: Option<TcpStream>,
    applications: [Application; 2],
}

impl Pair {
    /// Begins: a half of them is opened by us, the other one by the kernel, from a thread, as it waits.
    fn new(stack: &mut Stack, now: Instant, number: u64) -> Self {
        let (ours, kernels) = match number % 2 {
            0 => ("192.168.1.100:0", "192.168.1.1:0"),
            _ => ("[fd00::100]:0", "[fd00::1]:0"),
        };
        let applications = pair(number, now, 150_000);
        let mut pair = Self {
            what: format!("connection {number}, {ours}"),
            listener: None,
            ours: None,
            kernel_listener: None,
            kernel: None,
            applications,
        };
        if number % 4 < 2 {
            let listener = TcpListener::bind(kernels).unwrap();
            listener.set_nonblocking(true).unwrap();
            let to = listener.local_addr().unwrap();
            pair.ours = Some(stack.tcp_connect(now, to, None).unwrap());
            pair.kernel_listener = Some(listener);
        } else {
            let listener = stack.tcp_listen(ours.parse().unwrap(), 1).unwrap();
            pair.listener = Some(listener);
        }
        pair
    }

    fn drive(&mut self, stack: &mut Stack, now: Instant) {
        if let Some(listener) = self.listener.filter(|_| self.ours.is_none()) {
            self.ours = stack.tcp_accept(listener).ok().map(|(id, _)| id);
        }
        if let (Some(listener), None) = (&self.kernel_listener, &self.kernel) {
            self.kernel = listener.accept().ok().map(|(stream, _)| stream);
            self.kernel.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
        }
        let [mine, other] = &mut self.applications;
        if let Some(id) = self.ours.filter(|id| is_open(stack, *id)) {
            mine.drive(now, &mut Ours(stack, id, now));
        }
        if let Some(stream) = &self.kernel {
            other.drive(now, &mut &*stream);
        }
    }

    fn is_over(&self) -> bool {
        self.applications.iter().all(Application::is_over)
    }
}

#[test]
fn what_one_end_sends_the_other_receives_and_all_connections_end() {
    isolate(|| {
        let tap = Device::open("dev0", Layer::Frames).unwrap();
        let ip = |arguments: &str| run(Command::new(peer("ip")).args(arguments.split(' ')));
        ip("address add 192.168.1.1/24 dev dev0");
        ip("address add fd00::1/64 dev dev0 nodad");
        ip(&format!("link set dev0 address {KERNEL_MAC}"));
        ip("link set dev0 up");
        // Neighbours are given up after three lost questions; that is not what is tested.
        for address in ["192.168.1.100", "fd00::100"] {
            ip(&format!("neigh replace {address} lladdr {MAC} dev dev0 nud permanent"));
        }
        let (near, far) = Device::pair().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let carrier = thread::spawn(move || carry([far, tap], 7, &stopped));

        let mut driver =
            Driver::new(Stack::new(Instant::now(), [7; 32], Settings::default())).unwrap();
        let nic = driver.attach(near, Some(MAC), 1500).unwrap();
        let (stack, now) = driver.stack();
        for net in ["192.168.1.100/24", "fd00::100/64"] {
            stack.add_address(now, nic, net.parse().unwrap()).unwrap();
        }
        for address in ["192.168.1.1", "fd00::1"] {
            stack.set_neighbor(nic, address.parse().unwrap(), KERNEL_MAC);
        }
        let mut pairs: Vec<Pair> =
            (0..CONNECTIONS).map(|number| Pair::new(stack, now, number)).collect();
        let (tell, connected) = std::sync::mpsc::channel();
        for (number, pair) in pairs.iter().enumerate() {
            let Some(listener) = pair.listener else { continue };
            let to: SocketAddr = stack.tcp_listener_address(listener).unwrap();
            let tell = tell.clone();
            thread::spawn(move || {
                tell.send((number, TcpStream::connect_timeout(&to, LONG).unwrap()))
            });
        }
        let mut events = Events::new();
        let start = Instant::now();
        while !pairs.iter().all(Pair::is_over) {
            driver.turn(&mut events, Some(Duration::from_millis(2))).unwrap();
            let (stack, now) = driver.stack();
            while stack.poll_event().is_some() {}
            for (number, stream) in connected.try_iter() {
                stream.set_nonblocking(true).unwrap();
                pairs[number].kernel = Some(stream);
            }
            pairs.iter_mut().for_each(|pair| pair.drive(stack, now));
            let open: Vec<_> =
                pairs.iter().filter(|pair| !pair.is_over()).map(|pair| &pair.what).collect();
            assert!(start.elapsed() < LONG, "{open:?} go on and on: {:?}", stack.drops());
        }
        for pair in &pairs {
            let [mine, other] = &pair.applications;
            mine.assert_heard(other, &pair.what);
            other.assert_heard(mine, &pair.what);
        }
        // Whoever has finished and heard the end of the other one is not remembered for long: closed or waiting.
        let (stack, now) = driver.stack();
        pairs.iter().filter_map(|pair| pair.ours).for_each(|id| stack.tcp_close(now, id));
        while driver.stack().0.counts().connections > 0 {
            driver.turn(&mut events, Some(Duration::from_millis(20))).unwrap();
            assert!(start.elapsed() < LONG, "{:?}", driver.stack().0.counts());
        }
        stop.store(true, Ordering::Relaxed);
        carrier.join().unwrap().unwrap();
    });
}
