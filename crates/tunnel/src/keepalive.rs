//! When to ask whether the other end is there, and when to believe that it is not.
//!
//! A way to it that is idle is asked now and then; one on which we sent something and heard nothing is asked
//! soon, and is dead after a while without a word while something is outstanding.

use std::time::{Duration, Instant};

/// How long is what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rhythm {
    /// An idle way is asked this often.
    pub(crate) idle: Duration,
    /// We sent, and heard nothing for so long: ask.
    pub(crate) doubt: Duration,
    /// Something is outstanding, and we heard nothing for so long: dead.
    pub(crate) silence: Duration,
}

/// That of a WebSocket at a peer: asked below what proxies forget, most of which have a minute, and after a
/// question by UDP, with which this way is asked, too.
pub(crate) const AT_PEER: Rhythm = Rhythm {
    idle: Duration::from_secs(32),
    doubt: Duration::from_secs(3),
    // With the second after which UDP doubts, silence is noticed well within ten.
    silence: Duration::from_secs(8),
};
/// That of a hub, which has many peers: it asks those alone that have not asked.
pub(crate) const AT_HUB: Rhythm = Rhythm { idle: Duration::from_secs(45), ..AT_PEER };

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// A ping is to be sent.
    Ping,
    /// The lane is dead.
    Dead,
}

/// The clockwork of one end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keepalive {
    rhythm: Rhythm,
    heard: Instant,
    /// The first thing sent since then.
    outstanding: Option<Instant>,
    /// The last ping.
    asked: Instant,
    /// Of the idle interval, so that a thousand lanes do not ask at once.
    idle: Duration,
}

impl Keepalive {
    /// Of a way that is just up. `spread` from 0 to 255 makes the idle interval up to a fifth shorter.
    pub(crate) fn new(rhythm: Rhythm, now: Instant, spread: u8) -> Self {
        let idle = rhythm.idle;
        let idle = idle.saturating_sub(idle.mul_f32(f32::from(spread) / (5.0 * 256.0)));
        Self { rhythm, heard: now, outstanding: None, asked: now, idle }
    }

    /// Anything came.
    pub(crate) fn handle_received(&mut self, now: Instant) {
        self.heard = now;
        self.outstanding = None;
    }

    /// Something was sent that the other end answers or acknowledges: data or a ping. True if it is the first
    /// since something was heard.
    pub(crate) fn handle_sent(&mut self, now: Instant) -> bool {
        let is_first = self.outstanding.is_none();
        self.outstanding.get_or_insert(now);
        is_first
    }

    /// When to call [`Keepalive::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Instant {
        match self.outstanding {
            Some(since) => self.question(since).min(since + self.rhythm.silence),
            None => self.heard.max(self.asked) + self.idle,
        }
    }

    /// The time has come, or not yet.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Due> {
        match self.outstanding {
            Some(since) if now >= since + self.rhythm.silence => return Some(Due::Dead),
            Some(since) if now < self.question(since) => return None,
            None if now < self.heard.max(self.asked) + self.idle => return None,
            _ => {}
        }
        self.handle_asked(now);
        Some(Due::Ping)
    }

    /// A ping is sent, whoever wanted it.
    pub(crate) fn handle_asked(&mut self, now: Instant) {
        self.asked = now;
        self.handle_sent(now);
    }

    /// When to ask about what is outstanding: once after it was sent, and again while there is silence.
    fn question(&self, since: Instant) -> Instant {
        self.asked.max(since) + self.rhythm.doubt
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
        let mut lane = Keepalive::new(AT_PEER, start, 0);
        let mut now = start;
        for _ in 0..5 {
            assert_eq!(lane.poll_timeout(), now + seconds(32));
            now = lane.poll_timeout();
            assert_eq!(lane.handle_timeout(now - seconds(1)), None);
            assert_eq!(lane.handle_timeout(now), Some(Due::Ping));
            lane.handle_received(now);
        }
        assert!(Keepalive::new(AT_PEER, start, 255).poll_timeout() < start + seconds(26));
    }

    #[test]
    fn silence_after_data_is_noticed_within_ten_seconds() {
        let start = Instant::now();
        let mut lane = Keepalive::new(AT_PEER, start, 0);
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
    fn silence_after_a_question_of_somebody_else_is_noticed_too() {
        let start = Instant::now();
        let mut lane = Keepalive::new(AT_PEER, start, 0);
        lane.handle_asked(start + seconds(1));
        assert_eq!(lane.handle_timeout(start + seconds(3)), None);
        assert_eq!(lane.handle_timeout(start + seconds(4)), Some(Due::Ping));
        assert_eq!(lane.handle_timeout(start + seconds(9)), Some(Due::Dead));
    }

    #[test]
    fn an_answer_ends_the_doubt() {
        let start = Instant::now();
        let mut lane = Keepalive::new(AT_PEER, start, 0);
        lane.handle_sent(start);
        lane.handle_received(start + seconds(2));
        assert_eq!(lane.handle_timeout(start + seconds(8)), None);
        assert_eq!(lane.poll_timeout(), start + seconds(34));
    }
}
