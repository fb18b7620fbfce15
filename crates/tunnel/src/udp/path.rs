//! Whether datagrams get through to the other end, and where it is.
//!
//! A peer knows where its hub is, and asks. A hub hears from a peer, asks back, and believes that the peer is
//! there when it answers. What either sends is only believed to get there while questions on the same way
//! are answered. Datagrams from somewhere else, newer than all before, are followed in the same manner.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::keepalive::{Due, Keepalive, Rhythm};

/// That of a peer: asked below what NATs forget (RFC 4787 section 4.3 has two minutes, many have 30 seconds).
const PEER: Rhythm = Rhythm {
    idle: Duration::from_secs(25),
    doubt: Duration::from_secs(1),
    silence: Duration::from_secs(3),
};
/// That of a hub, which does not ask while it has nothing to send.
const HUB: Rhythm = Rhythm { idle: Duration::from_secs(24 * 3600), ..PEER };
/// Questions that nobody answers are this far apart.
const AGAIN: Duration = Duration::from_secs(1);
/// After so many of them it is silent.
const QUESTIONS: u32 = 3;
/// What is silent is asked this often.
const SILENT: Duration = Duration::from_secs(15);

/// Nothing came for so long: the other end may be gone, and not the path alone.
const QUIET: Duration = Duration::from_millis(500);

/// What has become of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Datagrams get there.
    Up(SocketAddr),
    /// They do not any more.
    Down,
    /// They did not from the beginning.
    Silent,
}

/// Questions without an answer.
#[derive(Debug, Clone, Copy)]
struct Asked {
    to: SocketAddr,
    /// The counters of the first and the last.
    first: u64,
    last: u64,
    at: Instant,
}

/// One end's view of the path.
#[derive(Debug)]
pub(crate) struct Path {
    rhythm: Rhythm,
    spread: u8,
    /// Where the other end is known to be without having been heard; a peer's hub.
    home: Option<SocketAddr>,
    /// Where it has answered, and when to ask it again.
    proved: Option<(SocketAddr, Keepalive)>,
    /// When anything came from there.
    heard: Option<Instant>,
    asked: Option<Asked>,
    /// Somebody to ask at once.
    due: Option<SocketAddr>,
    /// When to ask at home.
    retry: Option<Instant>,
    tries: u32,
}

impl Path {
    /// A peer's, to its hub; the first question is due at once.
    pub(crate) fn to_hub(now: Instant, hub: SocketAddr, spread: u8) -> Self {
        Self { home: Some(hub), retry: Some(now), rhythm: PEER, ..Self::to_peer(spread) }
    }

    /// A hub's, to a peer that it hears from.
    pub(crate) const fn to_peer(spread: u8) -> Self {
        Self {
            rhythm: HUB,
            spread,
            home: None,
            proved: None,
            heard: None,
            asked: None,
            due: None,
            retry: None,
            tries: 0,
        }
    }

    /// Where to send; `None`: it does not get through.
    pub(crate) fn to(&self) -> Option<SocketAddr> {
        self.proved.map(|(to, _)| to)
    }

    /// Nothing has come of late from where it sends to.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.heard.is_none_or(|heard| now.saturating_duration_since(heard) >= QUIET)
    }

    /// Something was sent; true if the time of [`Path::poll_timeout`] is another now.
    pub(crate) fn handle_sent(&mut self, now: Instant) -> bool {
        let Some((_, keepalive)) = &mut self.proved else { return false };
        keepalive.handle_sent(now)
    }

    /// Something came that only the other end can have sealed; true if somebody is to be asked.
    pub(crate) fn handle_heard(&mut self, now: Instant, from: SocketAddr, is_newest: bool) -> bool {
        if self.to() == Some(from) {
            self.heard = Some(now);
        }
        let is_asked = self.asked.is_some_and(|asked| asked.to == from && now < asked.at + AGAIN);
        if !is_newest || self.to() == Some(from) || is_asked || self.home.is_some() {
            return false;
        }
        self.due = Some(from);
        true
    }

    /// A question was answered.
    pub(crate) fn handle_answer(
        &mut self,
        now: Instant,
        from: SocketAddr,
        counter: u64,
    ) -> Option<Change> {
        let asked = self
            .asked
            .filter(|asked| asked.to == from && (asked.first..=asked.last).contains(&counter));
        asked?;
        self.asked = None;
        self.retry = None;
        self.tries = 0;
        match &mut self.proved {
            Some((to, keepalive)) if *to == from => {
                keepalive.handle_received(now);
                None
            }
            other => {
                *other = Some((from, Keepalive::new(self.rhythm, now, self.spread)));
                Some(Change::Up(from))
            }
        }
    }

    /// The kernel refused to send.
    pub(crate) fn handle_broken(&mut self, now: Instant) -> Option<Change> {
        self.proved.take()?;
        self.asked = None;
        self.retry = self.home.map(|_| now + AGAIN);
        Some(Change::Down)
    }

    /// When to call [`Path::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match &self.proved {
            Some((_, keepalive)) => Some(keepalive.poll_timeout()),
            None => self.retry,
        }
    }

    /// The time has come, or not yet.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Change> {
        if let Some((to, keepalive)) = &mut self.proved {
            match keepalive.handle_timeout(now) {
                None => return None,
                Some(Due::Ping) => {
                    self.due = Some(*to);
                    return None;
                }
                Some(Due::Dead) => {
                    self.handle_broken(now);
                    return Some(Change::Down);
                }
            }
        }
        self.retry.filter(|retry| now >= *retry)?;
        self.due = self.home;
        self.tries = self.tries.saturating_add(1);
        self.retry = Some(now + if self.tries <= QUESTIONS { AGAIN } else { SILENT });
        (self.tries == QUESTIONS + 1).then_some(Change::Silent)
    }

    /// Whom to ask now, whether this gets there.
    pub(crate) fn poll_question(&mut self) -> Option<SocketAddr> {
        self.due.take()
    }

    /// It was asked, by a datagram with this counter.
    pub(crate) fn handle_asked(&mut self, now: Instant, to: SocketAddr, counter: u64) {
        let first = self.asked.filter(|asked| asked.to == to).map_or(counter, |asked| asked.first);
        self.asked = Some(Asked { to, first, last: counter, at: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    fn hub() -> SocketAddr {
        at("192.0.2.1:6441")
    }

    /// Asks whoever is to be asked.
    fn ask(path: &mut Path, now: Instant, counter: u64) -> Option<SocketAddr> {
        let to = path.poll_question()?;
        path.handle_asked(now, to, counter);
        Some(to)
    }

    #[test]
    fn a_peer_asks_until_it_is_answered() {
        let start = Instant::now();
        let mut path = Path::to_hub(start, hub(), 0);
        let mut changes = Vec::new();
        let mut times = Vec::new();
        for counter in 0..6 {
            let now = path.poll_timeout().unwrap();
            times.push((now - start).as_secs());
            changes.extend(path.handle_timeout(now));
            assert_eq!(ask(&mut path, now, counter), Some(hub()));
            assert_eq!(path.to(), None);
        }
        assert_eq!((times, changes), (vec![0, 1, 2, 3, 18, 33], vec![Change::Silent]));
        let now = start + 40 * SECOND;
        assert_eq!(path.handle_answer(now, hub(), 6), None, "that was never asked");
        assert_eq!(path.handle_answer(now, at("192.0.2.2:6441"), 5), None, "nor there");
        assert_eq!(path.handle_answer(now, hub(), 4), Some(Change::Up(hub())));
        assert_eq!(path.to(), Some(hub()));
    }

    #[test]
    fn a_way_that_dies_under_traffic_is_given_up_after_three_seconds() {
        let start = Instant::now();
        let mut path = Path::to_hub(start, hub(), 0);
        path.handle_timeout(start);
        ask(&mut path, start, 0);
        path.handle_answer(start, hub(), 0);
        let mut now = start + 5 * SECOND;
        assert!(path.handle_sent(now));
        assert!(!path.handle_sent(now));
        assert!(path.is_silent(now));
        path.handle_heard(now, hub(), true);
        assert!(!path.is_silent(now) && path.is_silent(now + QUIET));
        let mut questions = 0;
        let change = loop {
            now = path.poll_timeout().unwrap();
            match path.handle_timeout(now) {
                None => questions += usize::from(ask(&mut path, now, 9).is_some()),
                change => break change,
            }
        };
        assert_eq!((change, now, questions), (Some(Change::Down), start + 8 * SECOND, 2));
        assert_eq!(path.to(), None);
        now = path.poll_timeout().unwrap();
        path.handle_timeout(now);
        assert_eq!((ask(&mut path, now, 10), now), (Some(hub()), start + 9 * SECOND));
    }

    #[test]
    fn a_hub_follows_its_peer_when_that_answers_and_asks_sparingly() {
        let (one, two) = (at("198.51.1.1:1000"), at("198.51.1.1:2000"));
        let start = Instant::now();
        let mut path = Path::to_peer(0);
        assert_eq!((path.to(), path.poll_timeout()), (None, None));
        assert!(!path.handle_heard(start, one, false), "somebody replays what was late");
        assert!(path.handle_heard(start, one, true));
        assert_eq!(ask(&mut path, start, 0), Some(one));
        assert!(!path.handle_heard(start + SECOND / 2, one, true), "it was asked just now");
        assert_eq!(path.handle_answer(start, one, 0), Some(Change::Up(one)));
        assert!(!path.handle_heard(start, one, true));
        // The NAT on the way has forgotten.
        assert!(path.handle_heard(start, two, true));
        assert_eq!(ask(&mut path, start, 1), Some(two));
        assert_eq!(path.to(), Some(one), "until it has answered");
        assert_eq!(path.handle_answer(start, one, 1), None, "that came from elsewhere");
        assert_eq!(path.handle_answer(start, two, 1), Some(Change::Up(two)));
        assert_eq!(path.to(), Some(two));
    }

    #[test]
    fn a_kernel_that_refuses_is_asked_again() {
        let start = Instant::now();
        let mut path = Path::to_hub(start, hub(), 0);
        assert_eq!(path.handle_broken(start), None, "it was not up");
        path.handle_timeout(start);
        ask(&mut path, start, 0);
        path.handle_answer(start, hub(), 0);
        assert_eq!(path.handle_broken(start), Some(Change::Down));
        assert_eq!((path.to(), path.poll_timeout()), (None, Some(start + SECOND)));
    }
}
