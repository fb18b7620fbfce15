//! A link that is slow, long or lossy: two devices, and a thread that carries packets between them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netyard_sys::poll::{Events, Interest, Poll};
use netyard_sys::tap::{Device, Layer};

/// Longest packet, bytes.
const MTU: usize = 1500;
/// While anything is under way, devices are looked at this often.
const TICK: Duration = Duration::from_millis(1);
/// Packets taken from a device before the other one has its turn.
const BATCH: usize = 64;

/// What a link does, in each direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Impairment {
    /// Bits in a second.
    pub(crate) rate: u32,
    /// How long a packet is on the way.
    pub(crate) delay: Duration,
    /// The part of packets that is lost, in thousandths.
    pub(crate) loss: u64,
}

/// One direction. What is sent waits its turn, travels, and arrives in order. The queue holds what the
/// link sends in a round trip, as routers are advised to; what comes then is lost.
#[derive(Debug)]
struct Direction {
    impairment: Impairment,
    under_way: VecDeque<(Instant, Vec<u8>)>,
    busy_until: Option<Instant>,
    random: u64,
}

impl Direction {
    fn new(impairment: Impairment, seed: u64) -> Self {
        Self { impairment, under_way: VecDeque::new(), busy_until: None, random: seed }
    }

    /// A packet has come since `before`. A link does not stand still when its thread does: it has been sending
    /// since then. What it sends has all of its way before it.
    fn push(&mut self, (before, now): (Instant, Instant), packet: &[u8]) {
        let Impairment { rate, delay, loss } = self.impairment;
        let start = self.busy_until.map_or(before, |busy| busy.max(before));
        if start.saturating_duration_since(now) > 2 * delay {
            return;
        }
        let sent = start + Duration::from_secs(8 * packet.len() as u64) / rate;
        self.busy_until = Some(sent);
        if self.random() % 1000 >= loss {
            self.under_way.push_back((sent.max(now) + delay, packet.to_vec()));
        }
    }

    /// The same numbers in each run (xorshift64).
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn next(&self) -> Option<Instant> {
        self.under_way.front().map(|(then, _)| *then)
    }

    fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.next().filter(|then| *then <= now)?;
        self.under_way.pop_front().map(|(_, packet)| packet)
    }
}

/// A link; it goes when this value goes.
#[derive(Debug)]
pub(crate) struct Link {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Link {
    /// Makes the devices with these names, here.
    pub(crate) fn new(names: [&str; 2], impairment: Impairment) -> io::Result<Self> {
        let [one, other] = names.map(|name| Device::create(name, Layer::Packets, false));
        let (stop, stopped) = UnixStream::pair()?;
        let devices = [one?, other?].map(|device| File::from(device.fd));
        let thread = thread::spawn(move || carry(devices, impairment, &stopped));
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a link broke: {error}");
        }
    }
}

fn carry(mut devices: [File; 2], impairment: Impairment, stop: &UnixStream) -> io::Result<()> {
    const STOP: u64 = 2;
    let poll = Poll::new()?;
    for (device, token) in devices.iter().zip(0..) {
        poll.add(device.as_fd(), token, Interest::Readable)?;
    }
    poll.add(stop.as_fd(), STOP, Interest::Readable)?;
    let mut events = Events::new();
    let mut directions =
        [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9].map(|seed| Direction::new(impairment, seed));
    let mut buffer = [0; MTU];
    let mut emptied = [Instant::now(); 2];
    loop {
        let next = directions.iter().filter_map(Direction::next).min();
        poll.wait(&mut events, next.map(|_| TICK))?;
        if events.iter().any(|event| event.token == STOP) {
            return Ok(());
        }
        let now = Instant::now();
        for ((device, direction), emptied) in
            devices.iter_mut().zip(&mut directions).zip(&mut emptied)
        {
            // The clock has ticked, and what is less than two ticks is no delay.
            let late = next.map_or(Duration::ZERO, |_| (now - *emptied).saturating_sub(2 * TICK));
            let since = (now.checked_sub(late).unwrap_or(now), now);
            for _ in 0..BATCH {
                match device.read(&mut buffer) {
                    Ok(len) => direction.push(since, buffer.get(..len).unwrap_or_default()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        *emptied = now;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for (device, direction) in devices.iter_mut().rev().zip(&mut directions) {
            while let Some(packet) = direction.pop(Instant::now()) {
                // A device that is down takes no packet.
                _ = device.write(&packet);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_arrive_at_the_rate_after_the_delay() {
        let start = Instant::now();
        let delay = Duration::from_millis(10);
        let mut link = Direction::new(Impairment { rate: 8_000_000, delay, loss: 0 }, 1);
        // A millisecond each; the queue holds twenty and one that is being sent.
        for _ in 0..30 {
            link.push((start, start), &[0; 1000]);
        }
        let arrived = |link: &mut Direction, milliseconds| {
            let now = start + Duration::from_millis(milliseconds);
            std::iter::from_fn(|| link.pop(now)).count()
        };
        assert_eq!(arrived(&mut link, 10), 0);
        assert_eq!(arrived(&mut link, 15), 5);
        assert_eq!(arrived(&mut link, 1000), 16);
    }

    #[test]
    fn a_thread_that_was_late_does_not_make_the_link_slower() {
        let start = Instant::now();
        let delay = Duration::from_millis(10);
        let mut link = Direction::new(Impairment { rate: 8_000_000, delay, loss: 0 }, 1);
        // What it sends in fifty milliseconds, and its queue.
        let now = start + Duration::from_millis(50);
        for _ in 0..80 {
            link.push((start, now), &[0; 1000]);
        }
        let arrived = |link: &mut Direction, now| std::iter::from_fn(|| link.pop(now)).count();
        assert_eq!(arrived(&mut link, now), 0);
        assert_eq!(arrived(&mut link, now + delay), 50);
        assert_eq!(arrived(&mut link, now + Duration::from_secs(1)), 21);
    }

    #[test]
    fn about_as_many_are_lost_as_was_said() {
        let impairment = Impairment { rate: u32::MAX, delay: Duration::ZERO, loss: 10 };
        let mut link = Direction::new(impairment, 0x9e37_79b9_7f4a_7c15);
        let start = Instant::now();
        for number in 0..10_000 {
            let now = start + Duration::from_millis(number);
            link.push((now, now), &[0; 100]);
        }
        assert!((9_850..9_950).contains(&link.under_way.len()), "{}", link.under_way.len());
    }
}
