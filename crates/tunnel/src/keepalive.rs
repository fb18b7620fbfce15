//! When to ask whether the other end is there, and when to believe that it is not.
//!
//! An idle lane is asked every [`IDLE`]; one on which we sent something and heard nothing is asked after
//! [`DOUBT`]. It is dead after [`SILENCE`] without a word while something is outstanding.

use std::time::{Duration, Instant};

/// An idle lane is asked this often; below what proxies and NATs forget.
const IDLE: Duration = Duration::from_secs(15);
/// We sent, and heard nothing for so long: ask.
const DOUBT: Duration = Duration::from_secs(3);
/// Something is outstanding, and we heard nothing for so long: dead.
const SILENCE: Duration = Duration::from_secs(9);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// A ping is to be sent.
    Ping,
    /// The lane is dead.
    Dead,
}

/// The clockwork of one end of a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keepalive {
    heard: Instant,
    /// The first thing sent since then.
    outstanding: Option<Instant>,
    /// The last ping.
    asked: Instant,
    /// Of the idle interval, so that a thousand lanes do not ask at once.
    idle: Duration,
}

impl Keepalive {
    /// Of a lane that is just up. `spread` from 0 to 255 makes the idle interval up to a fifth shorter.
    pub(crate) fn new(now: Instant, spread: u8) -> Self {
        let idle = IDLE.saturating_sub(IDLE.mul_f32(f32::from(spread) / (5.0 * 256.0)));
        Self { heard: now, outstanding: None, asked: now, idle }
    }

    /// Anything came.
    pub(crate) fn handle_received(&mut self, now: Instant) {
        self.heard = now;
        self.outstanding = None;
    }

    /// Something was sent that the other end answers or acknowledges: data or a ping.
    pub(crate) fn handle_sent(&mut self, now: Instant) {
        self.outstanding.get_or_insert(now);
    }

    /// When to call [`Keepalive::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Instant {
        match self.outstanding {
            Some(since) => self.question(since).min(since + SILENCE),
            None => self.heard.max(self.asked) + self.idle,
        }
    }

    /// The time has come, or not yet.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Due> {
        match self.outstanding {
            Some(since) if now >= since + SILENCE => return Some(Due::Dead),
            Some(since) if now < self.question(since) => return None,
            None if now < self.heard.max(self.asked) + self.idle => return None,
            _ => {}
        }
        self.asked = now;
        self.handle_sent(now);
        Some(Due::Ping)
    }

    /// When to ask about what is outstanding: once after it was sent, and again while there is silence.
    fn question(&self, since: Instant) -> Instant {
        self.asked.max(since) + DOUBT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_idle_lane_is_asked_and_lives_while_it_answers() {
        let start = Instant::now();
        let mut lane = Keepalive::new(start, 0);
        let mut now = start;
        for _ in 0..5 {
            assert_eq!(lane.poll_timeout(), now + seconds(15));
            now = lane.poll_timeout();
            assert_eq!(lane.handle_timeout(now - seconds(1)), None);
            assert_eq!(lane.handle_timeout(now), Some(Due::Ping));
            lane.handle_received(now);
        }
        assert!(Keepalive::new(start, 255).poll_timeout() < start + seconds(13));
    }

    #[test]
    fn silence_after_data_is_noticed_within_ten_seconds() {
        let start = Instant::now();
        let mut lane = Keepalive::new(start, 0);
        lane.handle_sent(start);
        let mut pings = 0;
        loop {
            let now = lane.poll_timeout();
            match lane.handle_timeout(now) {
                Some(Due::Ping) => pings += 1,
                Some(Due::Dead) => break assert!(now <= start + seconds(10)),
                None => panic!("nothing is due at the time that was told"),
            }
            lane.handle_sent(now);
        }
        assert!(pings >= 2);
    }

    #[test]
    fn an_answer_ends_the_doubt() {
        let start = Instant::now();
        let mut lane = Keepalive::new(start, 0);
        lane.handle_sent(start);
        lane.handle_received(start + seconds(2));
        assert_eq!(lane.handle_timeout(start + seconds(9)), None);
        assert_eq!(lane.poll_timeout(), start + seconds(17));
    }
}
