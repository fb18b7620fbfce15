//! Hardware addresses of neighbours: one state machine for ARP and neighbour discovery (RFC 4861
//! section 7.3), with packets that wait for an answer.
//!
//! Each neighbour is asked for by itself, so that one that does not answer holds nobody up. What it
//! costs is bounded: [`MAX_NEIGHBORS`] entries, [`MAX_HELD`] frames for each that is unresolved.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netyard_wheel::Wheel;
use netyard_wire::{FrameBuf, MacAddr};
use slab::Slab;

use super::NicIndex;

/// Most neighbours known. When full, one that is not in use makes room; if none is, the new one is
/// not learnt.
const MAX_NEIGHBORS: usize = 1024;
/// Most frames that wait for one neighbour (RFC 4861 section 7.2.2 asks for at least one; the largest
/// datagram is 45 of them); the oldest makes room for a new one.
const MAX_HELD: usize = 48;

/// RFC 4861 section 10: time between questions.
const RETRANSMIT: Duration = Duration::from_secs(1);
/// RFC 4861 section 10: questions to everybody.
const MULTICAST_QUESTIONS: u8 = 3;
/// RFC 4861 section 10: questions to the known address.
const UNICAST_QUESTIONS: u8 = 3;
/// RFC 4861 section 10: how long an answer holds.
const REACHABLE: Duration = Duration::from_secs(30);
/// RFC 4861 section 10: how long upper layers have to confirm, before a question.
const DELAY: Duration = Duration::from_secs(5);
/// How long a neighbour that did not answer is taken to be gone, before it is asked again.
const FAILED: Duration = Duration::from_secs(3);

/// Who is a neighbour where.
pub(crate) type Key = (NicIndex, IpAddr);

/// What to do with a frame for a neighbour.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// Send it there.
    Known(MacAddr),
    /// It is kept (see [`Neighbors::hold`]) until the address is known.
    Wait,
    /// The neighbour does not answer, or the table is full.
    Unreachable,
}

/// A question to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) nic: NicIndex,
    pub(crate) target: IpAddr,
    /// Whom to ask; `None`: everybody.
    pub(crate) to: Option<MacAddr>,
}

#[derive(Debug)]
struct Neighbor {
    key: Key,
    mac: Option<MacAddr>,
    state: State,
}

#[derive(Debug)]
enum State {
    Incomplete {
        asked: u8,
        held: VecDeque<FrameBuf>,
    },
    Reachable,
    Stale,
    Delay,
    Probe {
        asked: u8,
    },
    Failed,
    /// Configured; it never changes.
    Static,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Neighbors {
    places: HashMap<Key, usize>,
    entries: Slab<Neighbor>,
    wheel: Wheel,
    questions: VecDeque<Question>,
}

impl Neighbors {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            places: HashMap::new(),
            entries: Slab::new(),
            wheel: Wheel::new(now),
            questions: VecDeque::new(),
        }
    }

    /// Looks a neighbour up in order to send to it.
    pub(crate) fn resolve(&mut self, now: Instant, key: Key) -> Resolution {
        let Some(place) = self.places.get(&key).copied() else {
            return match self.insert(
                key,
                None,
                State::Incomplete { asked: 1, held: VecDeque::new() },
            ) {
                Some(place) => {
                    self.ask(now, place, None);
                    Resolution::Wait
                }
                None => Resolution::Unreachable,
            };
        };
        let Some(entry) = self.entries.get_mut(place) else { return Resolution::Unreachable };
        match (&entry.state, entry.mac) {
            (State::Incomplete { .. }, _) | (_, None) => match entry.state {
                State::Failed => Resolution::Unreachable,
                _ => Resolution::Wait,
            },
            (State::Stale, Some(mac)) => {
                // RFC 4861 section 7.3.3: the first packet goes, and starts the delay.
                entry.state = State::Delay;
                self.set(place, now + DELAY);
                Resolution::Known(mac)
            }
            (_, Some(mac)) => Resolution::Known(mac),
        }
    }

    /// Keeps a frame for a neighbour that is being asked for; false if an older one had to go.
    pub(crate) fn hold(&mut self, key: Key, frame: FrameBuf) -> bool {
        let entry = self.places.get(&key).and_then(|place| self.entries.get_mut(*place));
        let Some(Neighbor { state: State::Incomplete { held, .. }, .. }) = entry else {
            return false;
        };
        let full = held.len() >= MAX_HELD;
        if full {
            held.pop_front();
        }
        held.push_back(frame);
        !full
    }

    /// A neighbour has answered, or said that its address has changed. `solicited`: it answered a
    /// question; `override_`: an address that differs counts (RFC 4861 section 7.2.5; always for
    /// ARP). Returns frames that waited for it, to be sent to `mac`.
    pub(crate) fn answer(
        &mut self,
        now: Instant,
        key: Key,
        mac: MacAddr,
        solicited: bool,
        override_: bool,
    ) -> VecDeque<FrameBuf> {
        let Some(place) = self.places.get(&key).copied() else { return VecDeque::new() };
        let Some(entry) = self.entries.get_mut(place) else { return VecDeque::new() };
        let held = match &mut entry.state {
            State::Static => return VecDeque::new(),
            State::Incomplete { held, .. } => std::mem::take(held),
            _ if entry.mac.is_some_and(|known| known != mac) && !override_ => {
                if matches!(entry.state, State::Reachable) {
                    entry.state = State::Stale;
                }
                return VecDeque::new();
            }
            _ => VecDeque::new(),
        };
        let same = entry.mac == Some(mac);
        entry.mac = Some(mac);
        if solicited {
            entry.state = State::Reachable;
            self.set(place, now + REACHABLE);
        } else if !same {
            entry.state = State::Stale;
        }
        held
    }

    /// A neighbour has asked for us, and told its own address: it will want an answer. Returns frames
    /// that waited for it.
    pub(crate) fn heard(&mut self, now: Instant, key: Key, mac: MacAddr) -> VecDeque<FrameBuf> {
        if self.places.contains_key(&key) {
            return self.answer(now, key, mac, false, true);
        }
        // Whoever asks must not push out those that we talk to.
        if self.entries.len() < MAX_NEIGHBORS {
            self.insert(key, Some(mac), State::Stale);
        }
        VecDeque::new()
    }

    /// Sets an address that never changes.
    pub(crate) fn set_static(&mut self, key: Key, mac: MacAddr) {
        match self.places.get(&key).copied() {
            Some(place) => {
                if let Some(entry) = self.entries.get_mut(place) {
                    entry.mac = Some(mac);
                    entry.state = State::Static;
                }
            }
            None => drop(self.insert(key, Some(mac), State::Static)),
        }
    }

    /// The neighbour has taken what was sent to it: upper layers make progress (RFC 4861 section
    /// 7.3.1).
    pub(crate) fn confirm(&mut self, now: Instant, key: Key) {
        let Some(place) = self.places.get(&key).copied() else { return };
        let Some(entry) = self.entries.get_mut(place) else { return };
        if matches!(entry.state, State::Stale | State::Delay | State::Probe { .. }) {
            entry.state = State::Reachable;
            self.set(place, now + REACHABLE);
        }
    }

    /// The next question to be asked.
    pub(crate) fn poll_question(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// Lets what is due happen; what waited for neighbours that do not answer goes to `lost`.
    pub(crate) fn handle_timeout(&mut self, now: Instant, lost: &mut Vec<(NicIndex, FrameBuf)>) {
        let mut expired = Vec::new();
        self.wheel.expire(now, &mut expired);
        for place in expired.into_iter().filter_map(|key| usize::try_from(key).ok()) {
            let Some(entry) = self.entries.get_mut(place) else { continue };
            let known = entry.mac;
            match &mut entry.state {
                State::Incomplete { asked, .. } if *asked < MULTICAST_QUESTIONS => {
                    *asked += 1;
                    self.ask(now, place, None);
                }
                State::Incomplete { held, .. } => {
                    let (nic, _) = entry.key;
                    lost.extend(std::mem::take(held).into_iter().map(|frame| (nic, frame)));
                    entry.state = State::Failed;
                    self.set(place, now + FAILED);
                }
                State::Reachable => entry.state = State::Stale,
                State::Delay => {
                    entry.state = State::Probe { asked: 1 };
                    self.ask(now, place, known);
                }
                State::Probe { asked } if *asked < UNICAST_QUESTIONS => {
                    *asked += 1;
                    self.ask(now, place, known);
                }
                // RFC 4861 section 7.3.3: forgotten, so that the next packet asks everybody.
                State::Probe { .. } | State::Failed => self.remove(place),
                State::Stale | State::Static => {}
            }
        }
    }

    fn insert(&mut self, key: Key, mac: Option<MacAddr>, state: State) -> Option<usize> {
        if self.entries.len() >= MAX_NEIGHBORS {
            let idle = |entry: &Neighbor| matches!(entry.state, State::Stale | State::Failed);
            let place =
                self.entries.iter().find(|(_, entry)| idle(entry)).map(|(place, _)| place)?;
            self.remove(place);
        }
        let place = self.entries.insert(Neighbor { key, mac, state });
        self.places.insert(key, place);
        Some(place)
    }

    fn remove(&mut self, place: usize) {
        let entry = self.entries.remove(place);
        self.places.remove(&entry.key);
        self.wheel.set(wheel_key(place), None);
    }

    fn ask(&mut self, now: Instant, place: usize, to: Option<MacAddr>) {
        if let Some(entry) = self.entries.get(place) {
            let (nic, target) = entry.key;
            self.questions.push_back(Question { nic, target, to });
            self.set(place, now + RETRANSMIT);
        }
    }

    fn set(&mut self, place: usize, deadline: Instant) {
        self.wheel.set(wheel_key(place), Some(deadline));
    }
}

/// A place of a bounded slab as a key of the wheel.
fn wheel_key(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 8]);

    fn key(n: u32) -> Key {
        (NicIndex(0), IpAddr::from((0x0a00_0000 + n).to_be_bytes()))
    }

    fn frame(n: u8) -> FrameBuf {
        FrameBuf { bytes: vec![n], ..FrameBuf::default() }
    }

    fn run(
        neighbors: &mut Neighbors,
        until: Instant,
    ) -> (Vec<Question>, Vec<(NicIndex, FrameBuf)>) {
        let (mut questions, mut lost) = (Vec::new(), Vec::new());
        while let Some(at) = neighbors.poll_timeout().filter(|at| *at <= until) {
            neighbors.handle_timeout(at, &mut lost);
        }
        while let Some(question) = neighbors.poll_question() {
            questions.push(question);
        }
        (questions, lost)
    }

    #[test]
    fn frames_wait_for_the_answer() {
        let now = Instant::now();
        let mut neighbors = Neighbors::new(now);
        assert_eq!(neighbors.resolve(now, key(1)), Resolution::Wait);
        assert!(neighbors.hold(key(1), frame(1)));
        assert_eq!(neighbors.resolve(now, key(1)), Resolution::Wait);
        assert!(neighbors.hold(key(1), frame(2)));
        let question = Question { nic: NicIndex(0), target: key(1).1, to: None };
        assert_eq!(neighbors.poll_question(), Some(question));
        assert_eq!(neighbors.poll_question(), None, "one question for both frames");
        let held = neighbors.answer(now, key(1), MAC, true, true);
        assert_eq!(held, [frame(1), frame(2)]);
        assert_eq!(neighbors.resolve(now, key(1)), Resolution::Known(MAC));
    }

    #[test]
    fn many_are_asked_for_at_once_and_each_holds_a_bounded_number() {
        let now = Instant::now();
        let mut neighbors = Neighbors::new(now);
        for n in 0..100 {
            assert_eq!(neighbors.resolve(now, key(n)), Resolution::Wait);
        }
        let (questions, _) = run(&mut neighbors, now);
        assert_eq!(questions.len(), 100, "nobody waits for another one's answer");
        let kept = (0..100).filter(|n| neighbors.hold(key(0), frame(*n))).count();
        assert_eq!(kept, MAX_HELD);
        let held = neighbors.answer(now, key(0), MAC, true, true);
        assert_eq!(held.back(), Some(&frame(99)), "the newest stay");
        assert_eq!(held.len(), MAX_HELD);
    }

    #[test]
    fn silence_is_told_after_three_questions_and_not_for_ever() {
        let now = Instant::now();
        let mut neighbors = Neighbors::new(now);
        neighbors.resolve(now, key(1));
        neighbors.hold(key(1), frame(1));
        let (questions, lost) = run(&mut neighbors, now + Duration::from_millis(3_500));
        assert_eq!(questions.len(), 3);
        assert_eq!(lost, [(NicIndex(0), frame(1))]);
        let later = now + Duration::from_secs(4);
        assert_eq!(neighbors.resolve(later, key(1)), Resolution::Unreachable);
        run(&mut neighbors, now + Duration::from_secs(7));
        assert_eq!(neighbors.resolve(now + Duration::from_secs(7), key(1)), Resolution::Wait);
    }

    #[test]
    fn an_old_answer_is_used_and_checked() {
        let now = Instant::now();
        let mut neighbors = Neighbors::new(now);
        neighbors.resolve(now, key(1));
        neighbors.answer(now, key(1), MAC, true, true);
        run(&mut neighbors, now + Duration::from_secs(40));
        let used = now + Duration::from_secs(40);
        assert_eq!(neighbors.resolve(used, key(1)), Resolution::Known(MAC));
        let (questions, _) = run(&mut neighbors, used + Duration::from_millis(5_001));
        assert_eq!(questions, [Question { nic: NicIndex(0), target: key(1).1, to: Some(MAC) }]);
        neighbors.confirm(used + Duration::from_millis(5_500), key(1));
        let (questions, _) = run(&mut neighbors, used + Duration::from_secs(20));
        assert_eq!(questions, [], "TCP has heard from it");
        // Unanswered, it is forgotten, and the next packet asks everybody.
        let used = now + Duration::from_secs(200);
        run(&mut neighbors, used);
        neighbors.resolve(used, key(1));
        let (questions, _) = run(&mut neighbors, used + Duration::from_secs(20));
        assert_eq!(questions.len(), 3);
        let later = used + Duration::from_secs(20);
        assert_eq!(neighbors.resolve(later, key(1)), Resolution::Wait);
    }

    #[test]
    fn addresses_change_only_when_they_may() {
        let now = Instant::now();
        let mut neighbors = Neighbors::new(now);
        neighbors.resolve(now, key(1));
        neighbors.answer(now, key(1), MAC, true, false);
        neighbors.answer(now, key(1), OTHER, false, false);
        assert_eq!(neighbors.resolve(now, key(1)), Resolution::Known(MAC), "no override");
        neighbors.answer(now, key(1), OTHER, false, true);
        assert_eq!(neighbors.resolve(now, key(1)), Resolution::Known(OTHER));
        neighbors.set_static(key(2), MAC);
        neighbors.heard(now, key(2), OTHER);
        assert_eq!(neighbors.resolve(now, key(2)), Resolution::Known(MAC));
        assert_eq!(neighbors.answer(now, key(3), MAC, true, true), [], "nobody asked");
        assert_eq!(neighbors.resolve(now, key(3)), Resolution::Wait);
    }

    #[test]
    fn strangers_do_not_push_out_those_that_are_used() {
        let now = Instant::now();
        let mut neighbors = Neighbors::new(now);
        for n in 0..5000 {
            neighbors.heard(now, key(n), MAC);
        }
        assert_eq!(neighbors.entries.len(), MAX_NEIGHBORS);
        assert_eq!(neighbors.resolve(now, key(9_000)), Resolution::Wait, "an idle one made room");
        assert_eq!(neighbors.entries.len(), MAX_NEIGHBORS);
    }
}
