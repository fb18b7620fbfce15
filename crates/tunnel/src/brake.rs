//! Keeps a connection from filling a queue that stands on its way.
//!
//! # Theory of operation
//!
//! What a bulk flow has in the queue of somebody's router, everything else waits behind, and what is sent by UDP is
//! lost when that queue is full. Our own queue is the better place: there a ping overtakes. Congestion control fills
//! the other one all the same: Cubic until something is lost, and BBR, which takes in a bit more than there is, until it
//! has twice under way what the way holds.
//!
//! So when the round trip is longer than the shortest by more than jitter, with enough under way for
//! a queue and more that waits here, the connection is told to send less for a moment than was delivered of late, and
//! it is let go as soon as the queue is short. The way is busy nearly all the time.
//!
//! Once the queue is short, it may send what the way takes, and a bit more each round trip: what congestion control
//! believes in is too much by then, as acknowledgements come in bursts. When the queue is long again the connection
//! is held back again. When it stays short, the way takes more than was known, and congestion control may find out.
//!
//! If the round trip does not come down, or is long again before much more is sent than the way takes, the queue is that of
//! others, or of the way back, or the way has become longer or slower. Then to yield is to give others all, and what is
//! known of the way is wrong: congestion control is left alone for a while, and for longer each time. And after each
//! time that it was held back, that does not happen again for as long: a connection that shares a queue with those who
//! fill it until something is lost is held back half of the time at most.

use std::time::{Duration, Instant};

use netyard_sys::tcp_info::TcpInfo;

/// A queue is too long from this on, or from a quarter of the shortest round trip on.
const LONG: Duration = Duration::from_millis(5);
/// It is short up to this, or to a sixth of the shortest round trip.
const SHORT: Duration = Duration::from_millis(3);
/// What is delivered is counted for so long at least, but not while it is held back. The second most of so many times
/// is what the way takes: after a program on the way has stood still, what waited comes at once. A connection that is
/// faster and faster has not filled its way yet.
const COUNTED: Duration = Duration::from_millis(40);
const TIMES: usize = 6;
/// After more than so many times of it, nothing was sent for a while.
const PAUSED: u32 = 5;
/// With fewer segments under way it waits for acknowledgements, and not in a queue.
const FEW: u32 = 16;
/// What a connection may send while it is held back, bytes in a second.
const LEAST: u64 = 64 * 1024;
/// After so many round trips, and so long, without a shorter queue it was of no use.
const ROUND_TRIPS: u32 = 6;
const AT_LEAST: Duration = Duration::from_millis(50);
/// Each round trip it may send more by such a part of what the way takes, up to the other part. With no more than one
/// of them a queue is not its own.
const MORE: u64 = 32;
const MUCH_MORE: u64 = 4;
/// For how long it is let alone if it was of no use to hold it back, the first time and at most; not shorter than it was
/// held back.
const LET_ALONE: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(16);

/// Whether a connection is held back.
#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Free,
    /// Its way `takes` that many bytes in a second.
    Held {
        takes: u64,
        since: Instant,
        until: Instant,
    },
    /// It may send `rate` bytes in a second, which was `grown` then, and is not held back before `free`.
    Eased {
        takes: u64,
        rate: u64,
        grown: Instant,
        free: Instant,
    },
    LetAlone {
        until: Instant,
    },
}

/// What is known of the queue on the way of a connection.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    state: State,
    /// Until when it was let alone last, and for how long; `None`: it was held back for its own queue since.
    vain: Option<(Instant, Duration)>,
    /// Since when segments are counted, and how many had been delivered.
    counted: Option<(Instant, u32)>,
    /// Bytes delivered in a second, the last times that the way was busy; 0 is not known.
    delivered: [u64; TIMES],
    /// Which of them is the oldest.
    oldest: usize,
}

impl Brake {
    /// Takes in what was seen. From now on the connection is to send that many bytes in a second at most, `u64::MAX` is
    /// any; `None`: as before.
    pub(crate) fn see(&mut self, now: Instant, info: &TcpInfo) -> Option<u64> {
        self.count(now, info);
        let shortest = info.shortest_round_trip;
        let queued = info.round_trip.saturating_sub(shortest);
        let is_short = queued <= SHORT.max(shortest / 6);
        let is_long = queued >= LONG.max(shortest / 4) && info.under_way >= FEW && info.unsent > 0;
        let (state, rate) = match self.state {
            // Nothing was sent, and what the way takes is not known any more.
            State::Held { .. } | State::Eased { .. } if self.delivered == [0; TIMES] => {
                (State::Free, u64::MAX)
            }
            State::Held { takes, since, until } if is_short => {
                let held = now.min(until).saturating_duration_since(since);
                (State::Eased { takes, rate: takes, grown: now, free: now + held }, takes)
            }
            State::Held { since, until, .. } if now >= until => self.let_alone(now, until - since),
            State::Eased { takes, rate, free, .. } if is_long && now >= free => {
                if rate <= takes.saturating_add(takes / MORE) {
                    self.let_alone(now, Duration::ZERO)
                } else {
                    self.vain = None;
                    held(now, info, self.takes().unwrap_or(takes))
                }
            }
            State::Eased { takes, rate, grown, free }
                if !is_long && now >= grown + info.round_trip =>
            {
                let rate = rate.saturating_add(takes / MORE);
                match rate > takes.saturating_add(takes / MUCH_MORE) {
                    true => (State::Free, u64::MAX),
                    false => (State::Eased { takes, rate, grown: now, free }, rate),
                }
            }
            State::LetAlone { until } if now < until => return None,
            State::Free | State::LetAlone { .. } if is_long => held(
                now,
                info,
                self.takes().filter(|takes| self.latest() <= takes.saturating_add(takes / 8))?,
            ),
            _ => return None,
        };
        self.state = state;
        Some(rate)
    }

    /// It was of no use to hold it back, for so long.
    fn let_alone(&mut self, now: Instant, held: Duration) -> (State, u64) {
        let lasts = match self.vain {
            Some((until, lasted)) if now < until + LONGEST => (lasted * 2).min(LONGEST),
            _ => LET_ALONE,
        };
        let lasts = lasts.max(held);
        self.vain = Some((now + lasts, lasts));
        (State::LetAlone { until: now + lasts }, u64::MAX)
    }

    /// What the way takes, bytes in a second; `None` before it was busy for as many times.
    fn takes(&self) -> Option<u64> {
        let mut delivered = self.delivered;
        delivered.sort_unstable();
        let [least, .., second, _] = delivered;
        (least > 0).then_some(second)
    }

    /// What was delivered the last time, bytes in a second.
    fn latest(&self) -> u64 {
        let latest = (self.oldest + TIMES - 1) % TIMES;
        self.delivered.get(latest).copied().unwrap_or_default()
    }

    fn count(&mut self, now: Instant, info: &TcpInfo) {
        let (since, before) = *self.counted.get_or_insert((now, info.delivered));
        let passed = now.saturating_duration_since(since);
        let least = COUNTED.max(info.shortest_round_trip.min(Duration::from_secs(1)));
        let has_paused = passed > least * PAUSED;
        // In the first round trip after it, there arrives what was sent before.
        let is_held = match self.state {
            State::Held { .. } => true,
            State::Eased { takes, rate, .. } => rate == takes,
            State::Free | State::LetAlone { .. } => false,
        };
        if passed < least && !is_held {
            return;
        }
        self.counted = Some((now, info.delivered));
        if has_paused {
            self.delivered = [0; TIMES];
        }
        // With few under way the way was not busy.
        if is_held || has_paused || info.under_way < FEW {
            return;
        }
        let segments = info.delivered.wrapping_sub(before);
        let bytes = u128::from(segments) * u128::from(info.segment_len);
        let rate = bytes * 1_000_000 / passed.as_micros().max(1);
        if let Some(oldest) = self.delivered.get_mut(self.oldest) {
            *oldest = u64::try_from(rate).unwrap_or(u64::MAX);
        }
        self.oldest = (self.oldest + 1) % TIMES;
    }
}

/// Holds a connection back whose way takes that many bytes in a second.
fn held(now: Instant, info: &TcpInfo, takes: u64) -> (State, u64) {
    let lasts = info.round_trip.saturating_mul(ROUND_TRIPS).max(AT_LEAST);
    let takes = takes.max(LEAST);
    (State::Held { takes, since: now, until: now + lasts }, (takes / 4 * 3).max(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    /// Bytes in a segment.
    const SEGMENT: u64 = 1448;

    /// A connection on a way with a queue, by the millisecond: it sends a bit more than there is, up to twice what
    /// the way holds, as BBR does.
    struct Sender {
        brake: Brake,
        start: Instant,
        limit: u64,
        /// Bytes in a millisecond that there are, that the way takes of ours, and how long it is.
        most: u64,
        rate: u64,
        length: Duration,
        /// Bytes in the queue, of ours and of others who never yield.
        queue: u64,
        others: u64,
        delivered: u64,
    }

    impl Sender {
        fn new(megabits: u64, length: Duration) -> Self {
            Self {
                brake: Brake::default(),
                start: Instant::now(),
                limit: u64::MAX,
                most: u64::MAX,
                rate: megabits * 125,
                length,
                queue: 0,
                others: 0,
                delivered: 0,
            }
        }

        fn info(&self) -> TcpInfo {
            TcpInfo {
                under_way: 10 * FEW,
                delivered: (self.delivered / SEGMENT) as u32,
                segment_len: SEGMENT as u32,
                unsent: 1,
                ..TcpInfo::default()
            }
        }

        fn queued(&self) -> Duration {
            MS * u32::try_from((self.queue + self.others) / self.rate).unwrap()
        }

        /// Sends for so long; what was delivered in a millisecond, and the longest wait in the second half.
        fn run(&mut self, milliseconds: u32) -> (u64, Duration) {
            let (before, mut longest) = (self.delivered, Duration::ZERO);
            let holds = self.rate * u64::try_from(self.length.as_millis()).unwrap();
            for at in 1..=milliseconds {
                let sends = (self.rate * 21 / 20).min(self.limit / 1000).min(self.most);
                let sends = if self.queue >= holds { sends.min(self.rate) } else { sends };
                let taken = self.rate.min(self.queue + sends);
                self.queue = self.queue + sends - taken;
                self.delivered += taken;
                if at > milliseconds / 2 {
                    longest = longest.max(self.queued());
                }
                let info = TcpInfo {
                    round_trip: self.length + self.queued(),
                    shortest_round_trip: self.length,
                    under_way: u32::try_from((taken * holds / self.rate + self.queue) / SEGMENT)
                        .unwrap(),
                    ..self.info()
                };
                self.start += MS;
                if (milliseconds < 10 || at % 10 == 0)
                    && let Some(limit) = self.brake.see(self.start, &info)
                {
                    self.limit = limit;
                }
            }
            ((self.delivered - before) / u64::from(milliseconds), longest)
        }
    }

    #[test]
    fn a_bulk_flow_fills_the_way_and_not_the_queue() {
        for (megabits, length) in [(100, 20), (20, 50), (1000, 30), (5, 150)] {
            let mut sender = Sender::new(megabits, MS * length);
            let (rate, longest) = sender.run(20_000);
            assert!(rate * 100 >= sender.rate * 97, "{rate} of {}", sender.rate);
            let bound = LONG.max(MS * length / 4) * 2;
            assert!(longest <= bound, "{longest:?} at {megabits} Mbit/s, {length} ms");
        }
    }

    #[test]
    fn a_way_that_becomes_four_times_as_fast_is_full_again_as_soon_as_congestion_control_would() {
        for length in [20, 50, 150] {
            let mut sender = Sender::new(100, MS * length);
            sender.run(200 * length);
            assert!(sender.limit < u64::MAX, "{:?}", sender.brake);
            sender.rate *= 4;
            sender.run(60 * length);
            let (rate, _) = sender.run(100 * length);
            assert!(rate * 100 >= sender.rate * 95, "{rate} of {} at {length} ms", sender.rate);
        }
    }

    #[test]
    fn a_way_that_becomes_slower_is_known_again_soon() {
        let mut sender = Sender::new(100, MS * 20);
        sender.run(10_000);
        sender.rate /= 2;
        sender.run(10_000);
        let (rate, longest) = sender.run(10_000);
        assert!(rate * 100 >= sender.rate * 97, "{rate} of {}", sender.rate);
        assert!(longest <= LONG * 2, "{longest:?}");
    }

    #[test]
    fn a_transfer_after_a_trickle_is_not_held_back_before_its_way_is_full() {
        for length in [20, 50, 150, 300] {
            let mut sender = Sender::new(100, MS * length);
            sender.most = 10;
            sender.run(100 * length);
            // It sends twice as much each round trip, and a late program looks like a queue meanwhile.
            for turn in 0..12 {
                sender.most *= 2;
                let late = u64::from(length / 2).max(15);
                sender.others = if turn == 7 { sender.rate * late } else { 0 };
                sender.run(length);
                assert!(sender.limit == u64::MAX || turn > 9, "{length} ms, turn {turn}");
                if turn == 7 {
                    assert!(sender.queued() >= LONG.max(MS * length / 4));
                    assert!(sender.most * u64::from(length) / SEGMENT >= FEW.into());
                }
            }
            sender.most = u64::MAX;
            sender.run(20 * length);
            let (rate, _) = sender.run(100 * length);
            assert!(rate * 100 >= sender.rate * 97, "{rate} of {} at {length} ms", sender.rate);
        }
    }

    #[test]
    fn what_comes_at_once_after_a_program_stood_still_is_not_what_the_way_takes() {
        let mut sender = Sender::new(100, MS * 20);
        let way = sender.rate * 1000;
        sender.run(1_000);
        // Less is counted once, and what waited the next time.
        sender.start += COUNTED;
        let info = sender.info();
        sender.brake.see(sender.start, &info);
        sender.delivered += 2 * sender.rate * u64::try_from(COUNTED.as_millis()).unwrap();
        sender.start += COUNTED;
        let info = sender.info();
        sender.brake.see(sender.start, &info);
        assert!(
            sender.brake.delivered.iter().max().unwrap() >= &(way * 3 / 2),
            "{:?}",
            sender.brake
        );
        let takes = sender.brake.takes().unwrap();
        assert!((way * 9 / 10..=way * 11 / 10).contains(&takes), "{takes} of {way}");
    }

    #[test]
    fn it_yields_to_others_who_do_not_for_a_moment_only() {
        let mut sender = Sender::new(100, MS * 20);
        sender.others = 100 * 125 * 80;
        let (rate, _) = sender.run(60_000);
        assert!(rate * 100 >= sender.rate * 97, "{rate} of {}", sender.rate);
        assert!(matches!(sender.brake.state, State::LetAlone { .. }));
        assert_eq!(sender.brake.vain.unwrap().1, LONGEST);
        // They go.
        sender.others = 0;
        let (_, longest) = sender.run(30_000);
        assert!(longest <= LONG * 2, "{longest:?}");
    }

    #[test]
    fn beside_others_who_come_and_go_it_is_held_back_half_of_the_time_at_most() {
        // They fill the queue, lose something, and do so again; or fill it for three quarters of the time.
        let saw = |turn: u64, period: u64, long: u64| (turn % period) * long / period;
        let block =
            |turn: u64, period: u64, long| if turn % period < period / 4 { 0 } else { long };
        let come_and_go: [(u32, &dyn Fn(u64) -> u64); 8] = [
            (20, &|turn| saw(turn, 50, 10)),
            (20, &|turn| saw(turn, 100, 10)),
            (20, &|turn| saw(turn, 150, 10)),
            (20, &|turn| saw(turn, 200, 30)),
            (20, &|turn| saw(turn, 300, 10)),
            (20, &|turn| saw(turn, 3000, 10)),
            (80, &|turn| block(turn, 2000, 40)),
            (150, &|turn| block(turn, 3000, 60)),
        ];
        for (case, (length, others)) in come_and_go.into_iter().enumerate() {
            let mut sender = Sender::new(100, MS * length);
            let (mut held, mut delivered) = (0, 0);
            for turn in 0..60_000 {
                sender.others = sender.rate * others(turn);
                delivered += sender.run(1).0;
                held += u32::from(matches!(sender.brake.state, State::Held { .. }));
            }
            // And the last time, which may have been a second.
            assert!(held < 31_000, "{held} of 60,000 ms, case {case}");
            let all = sender.rate * 60_000;
            assert!(delivered * 100 >= all * 85, "{delivered} of {all}, case {case}");
        }
    }

    #[test]
    fn who_gets_less_beside_others_is_held_back_to_less_the_next_time() {
        let now = Instant::now();
        let state = State::Eased { takes: 12_800_000, rate: 14_000_000, grown: now, free: now };
        let mut brake = Brake { state, delivered: [6_000_000; TIMES], ..Brake::default() };
        let info = TcpInfo {
            round_trip: MS * 40,
            shortest_round_trip: MS * 20,
            under_way: 100,
            unsent: 1,
            ..TcpInfo::default()
        };
        assert_eq!(brake.see(now, &info), Some(4_500_000));
    }

    #[test]
    fn a_connection_that_says_little_is_let_alone() {
        // Acknowledgements that are waited for look like a queue; and what is sent at once has others before it.
        for (under_way, unsent) in [(2, 1000), (100, 0)] {
            says_little(under_way, unsent);
        }
    }

    fn says_little(under_way: u32, unsent: u32) {
        let start = Instant::now();
        let mut brake = Brake::default();
        for at in 1..1000 {
            let info = TcpInfo {
                round_trip: MS * 60,
                shortest_round_trip: MS * 20,
                under_way,
                delivered: at,
                segment_len: 1448,
                unsent,
                ..TcpInfo::default()
            };
            assert_eq!(brake.see(start + MS * 10 * at, &info), None);
        }
    }

    #[test]
    fn a_connection_that_pauses_while_it_is_held_back_is_let_go() {
        let mut sender = Sender::new(100, MS * 20);
        while sender.limit == u64::MAX {
            sender.run(10);
        }
        let info = TcpInfo { round_trip: MS * 40, shortest_round_trip: MS * 20, ..sender.info() };
        let later = sender.start + Duration::from_secs(60);
        assert_eq!(sender.brake.see(later, &info), Some(u64::MAX));
        assert!(matches!(sender.brake.state, State::Free));
    }
}
