//! The shaper: delay, loss and rates of one direction of one plug's link.
//!
//! Sans-IO. A frame first waits its turn to be *sent* at the link's rate, then travels for the
//! link's delay; frames leave in the order they came. Loss falls on a frame before it waits, as in
//! Linux's netem. Frames waiting to be sent are bounded like a card's queue and those on the way
//! by memory; a full queue drops the newcomer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use netyard_wire::FrameBuf;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::control::Shape;

/// Frames waiting to be sent (Linux's default `txqueuelen`).
const MAX_WAITING_FRAMES: usize = 1000;
/// Bytes waiting to be sent: never reached by frames of 1500 bytes, fewer of larger ones wait.
const MAX_WAITING_BYTES: usize = 2 << 20;
/// Frames waiting and on the way.
const MAX_FRAMES: usize = 65_536;
/// Bytes waiting and on the way: 2.6 Gbit/s over 100 ms.
const MAX_BYTES: usize = 32 << 20;
/// Longer delays are taken for this one.
const MAX_DELAY: Duration = Duration::from_secs(60);

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// One direction of a shaped link.
#[derive(Debug)]
pub(crate) struct Shaper {
    delay: Duration,
    loss: f64,
    /// What takes time on the way to being sent: bits, and frames.
    rates: [Rate; 2],
    rng: SmallRng,
    queue: VecDeque<Queued>,
    /// Bytes of all frames in the queue.
    bytes: usize,
    /// How many frames at the front have been sent and are on the way.
    sent: usize,
    /// Bytes of the frames behind those.
    waiting_bytes: usize,
}

/// So many of something each second.
#[derive(Debug)]
struct Rate {
    /// `None` is unlimited.
    per_second: Option<u64>,
    /// When the last frame will have been sent.
    busy_until: Option<Instant>,
    /// What that instant lacks: a fraction of a nanosecond, in units of 1/`per_second` nanoseconds, so
    /// that rounding never adds up.
    remainder: u128,
}

#[derive(Debug)]
struct Queued {
    frame: FrameBuf,
    sent: Instant,
    arrives: Instant,
}

impl Shaper {
    /// A direction as described; the same `seed` loses the same frames. A rate of 0 is taken for 1.
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        Self {
            delay: shape.delay.min(MAX_DELAY),
            loss: shape.loss,
            rates: [shape.rate, shape.packets].map(Rate::new),
            rng: SmallRng::seed_from_u64(seed),
            queue: VecDeque::new(),
            bytes: 0,
            sent: 0,
            waiting_bytes: 0,
        }
    }

    /// True if a frame of `len` bytes, cut into packets of `packet` bytes at least, has room in the
    /// queue.
    pub(crate) fn has_room(&mut self, now: Instant, len: usize, packet: usize) -> bool {
        self.advance(now);
        let frames = len.div_ceil(packet.max(1));
        let waiting = self.queue.len() - self.sent;
        self.queue.len() + frames <= MAX_FRAMES
            && self.bytes + len <= MAX_BYTES
            && waiting + frames <= MAX_WAITING_FRAMES
            && self.waiting_bytes + len <= MAX_WAITING_BYTES
    }

    /// Hands a frame to the link. Returns false if it was lost or the queue is full.
    ///
    /// Its size is what it takes on the wire: a super-frame must be cut first.
    #[must_use]
    pub(crate) fn push(&mut self, now: Instant, frame: FrameBuf) -> bool {
        self.advance(now);
        let len = frame.bytes.len();
        let waiting = self.queue.len() - self.sent;
        if self.queue.len() >= MAX_FRAMES
            || self.bytes + len > MAX_BYTES
            || waiting >= MAX_WAITING_FRAMES
            || self.waiting_bytes + len > MAX_WAITING_BYTES
        {
            return false;
        }
        if self.rng.random::<f64>() < self.loss {
            return false;
        }
        let sent = self.send(now, len);
        self.bytes += len;
        self.waiting_bytes += len;
        self.queue.push_back(Queued { frame, sent, arrives: sent + self.delay });
        true
    }

    /// The next frame that has arrived by `now`.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<FrameBuf> {
        self.advance(now);
        if self.queue.front()?.arrives > now {
            return None;
        }
        let Queued { frame, .. } = self.queue.pop_front()?;
        self.bytes -= frame.bytes.len();
        self.sent = self.sent.saturating_sub(1);
        Some(frame)
    }

    /// When [`Shaper::pop`] has a frame next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.front().map(|queued| queued.arrives)
    }

    /// When a frame of `len` bytes that comes now will have been sent: when the slower one is done.
    fn send(&mut self, now: Instant, len: usize) -> Instant {
        let [bits, frames] = &mut self.rates;
        // usize is at most 64 bits wide, so none of this overflows 128.
        bits.send(now, len as u128 * 8).max(frames.send(now, 1))
    }

    /// Moves frames that have been sent by `now` out of the waiting count.
    fn advance(&mut self, now: Instant) {
        while let Some(queued) = self.queue.get(self.sent).filter(|queued| queued.sent <= now) {
            self.waiting_bytes -= queued.frame.bytes.len();
            self.sent += 1;
        }
    }
}

impl Rate {
    fn new(per_second: Option<u64>) -> Self {
        let per_second = per_second.map(|rate| rate.max(1));
        Self { per_second, busy_until: None, remainder: 0 }
    }

    /// When so many that come now will have been sent.
    fn send(&mut self, now: Instant, count: u128) -> Instant {
        let Some(rate) = self.per_second else { return now };
        let start = match self.busy_until {
            Some(busy) if busy >= now => busy,
            _ => {
                self.remainder = 0;
                now
            }
        };
        let rate = u128::from(rate);
        let work = count * NANOS_PER_SECOND + self.remainder;
        self.remainder = work % rate;
        let nanos = u64::try_from(work / rate).unwrap_or(u64::MAX);
        let end = start.checked_add(Duration::from_nanos(nanos)).unwrap_or(start);
        self.busy_until = Some(end);
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netyard_wire::Offload;

    fn frame(number: u32, len: usize) -> FrameBuf {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        FrameBuf { bytes, offload: Offload::default() }
    }

    /// Runs the link dry in virtual time; when each frame arrives, and its number.
    fn arrivals(shaper: &mut Shaper, start: Instant) -> Vec<(Duration, u32)> {
        let mut all = Vec::new();
        while let Some(at) = shaper.next() {
            assert!(shaper.pop(at - Duration::from_nanos(1)).is_none(), "early");
            while let Some(frame) = shaper.pop(at) {
                let number = u32::from_be_bytes(frame.bytes[..4].try_into().unwrap());
                all.push((at - start, number));
            }
        }
        assert_eq!((shaper.bytes, shaper.waiting_bytes, shaper.sent), (0, 0, 0));
        all
    }

    #[test]
    fn an_unshaped_link_passes_at_once() {
        let now = Instant::now();
        let mut shaper = Shaper::new(Shape::default(), 1);
        for number in 0..3 {
            assert!(shaper.push(now, frame(number, 60)));
        }
        let zero = Duration::ZERO;
        assert_eq!(
            (0..4).map(|_| shaper.pop(now).map(|frame| frame.bytes[3])).collect::<Vec<_>>(),
            [Some(0), Some(1), Some(2), None]
        );
        assert_eq!(arrivals(&mut shaper, now), Vec::<(Duration, u32)>::new());
        assert!(shaper.push(now, frame(9, 60)));
        assert_eq!(arrivals(&mut shaper, now), [(zero, 9)]);
    }

    #[test]
    fn the_slower_of_two_rates_holds() {
        let start = Instant::now();
        // 1,000 bytes take a millisecond, and each frame two.
        let shape = Shape { rate: Some(8_000_000), packets: Some(500), ..Shape::default() };
        let mut shaper = Shaper::new(shape, 1);
        for (number, len) in [(0, 100), (1, 100), (2, 5_000), (3, 100)] {
            assert!(shaper.push(start, frame(number, len)));
        }
        let at = |micros, number| (Duration::from_micros(micros), number);
        assert_eq!(
            arrivals(&mut shaper, start),
            [at(2_000, 0), at(4_000, 1), at(6_000, 2), at(8_000, 3)]
        );
        assert!(shaper.push(start, frame(4, 50_000)));
        // Its 50 ms of bits begin where the 5.3 ms of the others end.
        assert_eq!(arrivals(&mut shaper, start), [at(55_300, 4)]);
    }

    #[test]
    fn delay_is_exact_for_every_frame() {
        let start = Instant::now();
        let delay = Duration::from_millis(20);
        let mut shaper = Shaper::new(Shape { delay, ..Shape::default() }, 1);
        for number in 0..5u32 {
            assert!(shaper.push(start + number * Duration::from_millis(3), frame(number, 1514)));
        }
        let wanted: Vec<_> =
            (0..5u32).map(|number| (delay + number * Duration::from_millis(3), number)).collect();
        assert_eq!(arrivals(&mut shaper, start), wanted);
    }

    #[test]
    fn rate_is_exact_over_a_burst_that_does_not_divide_evenly() {
        let start = Instant::now();
        // 1514 bytes at 7 Mbit/s: 1,730,285.714.. ns each.
        let mut shaper = Shaper::new(Shape { rate: Some(7_000_000), ..Shape::default() }, 1);
        for number in 0..1000 {
            assert!(shaper.push(start, frame(number, 1514)), "frame {number}");
        }
        let all = arrivals(&mut shaper, start);
        for (at, number) in all {
            let bits = u128::from(number + 1) * 1514 * 8;
            assert_eq!(at.as_nanos(), bits * 1_000_000_000 / 7_000_000);
        }
    }

    #[test]
    fn an_idle_link_starts_afresh() {
        let start = Instant::now();
        let delay = Duration::from_millis(5);
        let shape = Shape { delay, rate: Some(8_000_000), loss: 0.0, packets: None };
        let mut shaper = Shaper::new(shape, 1);
        assert!(shaper.push(start, frame(0, 1000)));
        assert!(shaper.push(start + Duration::from_secs(1), frame(1, 1000)));
        assert_eq!(
            arrivals(&mut shaper, start),
            [(Duration::from_millis(6), 0), (Duration::from_millis(1006), 1)]
        );
    }

    #[test]
    fn the_queue_is_bounded_in_frames_and_bytes_and_recovers() {
        let start = Instant::now();
        let shape =
            Shape { rate: Some(8_000), delay: Duration::from_secs(1), loss: 0.0, packets: None };
        let mut shaper = Shaper::new(shape, 1);
        let small = (0..2000).filter(|number| shaper.push(start, frame(*number, 60))).count();
        assert_eq!(small, MAX_WAITING_FRAMES);
        // One frame of 60 bytes is sent in 60 ms, which makes room for one.
        let later = start + Duration::from_millis(60);
        assert!(shaper.push(later, frame(0, 60)));
        assert!(!shaper.push(later, frame(0, 60)));

        let mut shaper = Shaper::new(shape, 1);
        let large = (0..2000).filter(|number| shaper.push(start, frame(*number, 9000))).count();
        assert_eq!(large, MAX_WAITING_BYTES / 9000);
    }

    #[test]
    fn frames_on_the_way_are_bounded() {
        let start = Instant::now();
        let mut shaper =
            Shaper::new(Shape { delay: Duration::from_secs(9), ..Shape::default() }, 1);
        let taken = (0..70_000).filter(|number| shaper.push(start, frame(*number, 60))).count();
        assert_eq!(taken, MAX_FRAMES);
        assert_eq!(arrivals(&mut shaper, start).len(), MAX_FRAMES);
    }

    #[test]
    fn loss_is_the_probability_and_repeats_with_the_seed() {
        let now = Instant::now();
        let run = |loss, seed| {
            let mut shaper = Shaper::new(Shape { loss, ..Shape::default() }, seed);
            (0..50_000u32)
                .filter(|number| {
                    let taken = shaper.push(now, frame(*number, 60));
                    shaper.pop(now);
                    taken
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(0.0, 1).len(), 50_000);
        assert_eq!(run(1.0, 1).len(), 0);
        let some = run(0.01, 1);
        // 500 expected, standard deviation 22.
        assert!((49_400..49_600).contains(&some.len()), "{} of 50000 passed", some.len());
        assert_eq!(some, run(0.01, 1));
        assert_ne!(some, run(0.01, 2));
    }

    #[test]
    fn absurd_links_do_not_panic() {
        let now = Instant::now();
        for shape in [
            Shape { delay: Duration::MAX, loss: f64::NAN, rate: Some(0), packets: Some(0) },
            Shape {
                delay: Duration::ZERO,
                loss: -1.0,
                rate: Some(u64::MAX),
                packets: Some(u64::MAX),
            },
        ] {
            let mut shaper = Shaper::new(shape, 0);
            for number in 0..100 {
                assert!(shaper.push(now, frame(number, 65_535)) || shape.rate == Some(0));
            }
            assert!(shaper.next().is_some());
        }
    }
}
