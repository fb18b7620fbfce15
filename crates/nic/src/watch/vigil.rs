//! When to look from outside, and what is different: a core without IO or clock.

use std::time::{Duration, Instant};

use super::difference::{Change, Event, Weight};
use crate::nat::NatType;
use crate::{External, Family, Seen};

/// How often the external address is looked up where nothing changes, unless the user says otherwise. A NAT
/// may get another one, and nobody tells.
pub const EVERY: Duration = Duration::from_secs(300);
/// What is not known is looked up again after so long, and then twice as long each time.
const AGAIN: Duration = Duration::from_secs(2);

/// Between two looks because cards have changed: a card that comes and goes makes no storm of questions.
const APART: Duration = Duration::from_secs(5);

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The external address.
    Address,
    /// The external address, and what the NAT does.
    Everything,
}

/// Watches how the outside sees this machine in one family.
///
/// It looks at once, after every major change of cards and addresses, and from time to time. The NAT is tested
/// again when a change or another external address says that it may be another one.
#[derive(Debug, Clone)]
pub struct Vigil {
    family: Family,
    every: Duration,
    due: Option<Instant>,
    /// When the last look began.
    looked: Option<Instant>,
    wanted: Wanted,
    misses: u32,
    known: Option<External>,
    nat: Option<NatType>,
}

impl Vigil {
    /// Begins; the first look is due at once.
    #[must_use]
    pub const fn new(family: Family, every: Duration, now: Instant) -> Self {
        let (due, wanted) = (Some(now), Wanted::Everything);
        Self { family, every, due, looked: None, wanted, misses: 0, known: None, nat: None }
    }

    /// What it watches.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The cards have changed. A look that is under way is of no use any more if the change is major.
    pub fn handle_change(&mut self, now: Instant, change: &Change) {
        if change.weight == Weight::Major {
            let due = self.looked.map_or(now, |looked| now.max(looked + APART));
            (self.due, self.wanted, self.misses) = (Some(due), Wanted::Everything, 0);
        }
    }

    /// When to look.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// What to look for, if it is time; then [`Vigil::handle_seen`] is waited for.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Wanted> {
        self.due.take_if(|due| *due <= now)?;
        self.looked = Some(now);
        Some(self.wanted)
    }

    /// What was seen; `None`: nothing leaves this machine. Returns what is different from the last time.
    pub fn handle_seen(&mut self, now: Instant, seen: Option<&Seen>) -> Vec<Event> {
        let mut events = Vec::new();
        let external = seen.map(|seen| seen.external.clone());
        let is_other = external != self.known;
        if is_other {
            let text = |external: &Option<External>| external.as_ref().map(External::to_string);
            let (was, now) = (text(&self.known), text(&external));
            events.push(Event::ExternalChanged { family: self.family, was, now });
        }
        let tested = seen.and_then(|seen| seen.nat.as_ref());
        let nat = tested.map_or(self.nat, |report| report.kind).filter(|_| external.is_some());
        if nat != self.nat {
            events.push(Event::NatChanged { family: self.family, was: self.nat, now: nat });
        }
        (self.known, self.nat) = (external, nat);
        self.plan(now, is_other && tested.is_none() && seen.is_some());
        events
    }

    fn plan(&mut self, now: Instant, test_too: bool) {
        let pause = match self.known {
            Some(External::Known(_)) if test_too => {
                (self.wanted, self.misses) = (Wanted::Everything, 0);
                Duration::ZERO
            }
            Some(External::Known(_)) => {
                // A test without a verdict is made again.
                let wanted = if self.nat.is_none() { Wanted::Everything } else { Wanted::Address };
                (self.wanted, self.misses) = (wanted, 0);
                self.every
            }
            Some(External::Unknown(_)) => {
                let pause = AGAIN.saturating_mul(2_u32.saturating_pow(self.misses));
                self.misses = self.misses.saturating_add(1);
                pause.min(self.every)
            }
            // Nothing leaves; a change of the cards says when something does.
            None => return self.due = None,
        };
        // A time that the clock does not have never comes.
        self.due = now.checked_add(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Unknown;
    use crate::nat::NatReport;

    fn seen(address: &str, nat: Option<NatType>) -> Seen {
        let external = External::Known(address.parse().unwrap());
        let nat = nat.map(|kind| NatReport { kind: Some(kind), ..NatReport::default() });
        Seen { external, nat }
    }

    fn told(events: &[Event]) -> Vec<String> {
        events.iter().map(Event::to_string).collect()
    }

    const CONE: Option<NatType> = Some(NatType::PortRestricted);

    #[test]
    fn it_looks_at_once_then_from_time_to_time_and_tells_what_is_different() {
        let mut now = Instant::now();
        let mut vigil = Vigil::new(Family::Ip4, EVERY, now);
        assert_eq!(vigil.handle_timeout(now), Some(Wanted::Everything));
        assert_eq!(vigil.handle_timeout(now), None, "a look is under way");
        let first = vigil.handle_seen(now, Some(&seen("1.3.3.7", CONE)));
        let lines = [
            "external address of IPv4: 1.3.3.7, was not known",
            "NAT of IPv4: restricted by address and port, was not known",
        ];
        assert_eq!(told(&first), lines);
        assert_eq!(vigil.poll_timeout(), Some(now + EVERY));
        now += EVERY;
        assert_eq!(vigil.handle_timeout(now), Some(Wanted::Address), "the NAT is the same");
        assert!(vigil.handle_seen(now, Some(&seen("1.3.3.7", None))).is_empty());
        now += EVERY;
        assert!(vigil.handle_timeout(now).is_some());
        let moved = vigil.handle_seen(now, Some(&seen("1.3.3.8", None)));
        assert_eq!(told(&moved), ["external address of IPv4: 1.3.3.8, was 1.3.3.7"]);
        assert_eq!(vigil.handle_timeout(now), Some(Wanted::Everything), "another NAT, perhaps");
        assert!(vigil.handle_seen(now, Some(&seen("1.3.3.8", CONE))).is_empty());
        assert_eq!(vigil.poll_timeout(), Some(now + EVERY));
    }

    #[test]
    fn a_major_change_is_looked_at_and_a_minor_one_is_not() {
        let mut now = Instant::now();
        let mut vigil = Vigil::new(Family::Ip4, EVERY, now);
        vigil.handle_timeout(now);
        vigil.handle_seen(now, Some(&seen("1.3.3.7", CONE)));
        now += APART;
        let change = |weight| Change { weight, events: Vec::new() };
        vigil.handle_change(now, &change(Weight::Minor));
        assert_eq!(vigil.handle_timeout(now), None);
        vigil.handle_change(now, &change(Weight::Major));
        assert_eq!(vigil.handle_timeout(now), Some(Wanted::Everything));
        let gone = vigil.handle_seen(now, None);
        let lines = [
            "external address of IPv4: not known, was 1.3.3.7",
            "NAT of IPv4: not known, was restricted by address and port",
        ];
        assert_eq!(told(&gone), lines);
        assert_eq!(vigil.poll_timeout(), None, "nothing leaves: the next change says when to look");
    }

    #[test]
    fn a_test_without_a_verdict_is_made_again() {
        let mut now = Instant::now();
        let mut vigil = Vigil::new(Family::Ip4, EVERY, now);
        for verdict in [None, None, CONE] {
            assert_eq!(vigil.handle_timeout(now), Some(Wanted::Everything));
            vigil.handle_seen(now, Some(&seen("1.3.3.7", verdict)));
            now += EVERY;
        }
        assert_eq!(vigil.handle_timeout(now), Some(Wanted::Address));
    }

    #[test]
    fn cards_that_come_and_go_make_no_storm_of_questions() {
        let mut now = Instant::now();
        let began = now;
        let mut vigil = Vigil::new(Family::Ip4, EVERY, now);
        let major = Change { weight: Weight::Major, events: Vec::new() };
        let mut looks = 0;
        for _ in 0..100 {
            if vigil.handle_timeout(now).is_some() {
                looks += 1;
                vigil.handle_seen(now, Some(&seen("1.3.3.7", CONE)));
            }
            vigil.handle_change(now, &major);
            now += Duration::from_millis(300);
        }
        assert_eq!(looks, 6, "one each five seconds, of {:?}", now - began);
    }

    #[test]
    fn a_pause_that_is_longer_than_the_clock_has_is_for_ever() {
        let now = Instant::now();
        let mut vigil = Vigil::new(Family::Ip4, Duration::MAX, now);
        vigil.handle_timeout(now);
        vigil.handle_seen(now, Some(&seen("1.3.3.7", CONE)));
        assert_eq!(vigil.poll_timeout(), None);
    }

    #[test]
    fn what_is_not_known_is_looked_up_again_ever_later() {
        let mut now = Instant::now();
        let mut vigil = Vigil::new(Family::Ip6, Duration::from_secs(10), now);
        let silence = Seen { external: External::Unknown(Unknown::NoAnswer), nat: None };
        let mut pauses = Vec::new();
        for _ in 0..5 {
            assert_eq!(vigil.handle_timeout(now), Some(Wanted::Everything));
            let events = vigil.handle_seen(now, Some(&silence));
            assert_eq!(events.len(), usize::from(pauses.is_empty()), "told once: {events:?}");
            let next = vigil.poll_timeout().unwrap();
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [2, 4, 8, 10, 10]);
    }
}
