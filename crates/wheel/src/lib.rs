//! A hierarchical timing wheel: deadlines by key, constant cost to set and to expire.
//!
//! Four levels of 64 slots; a tick is one millisecond, so the wheel spans 4.6 hours and later
//! deadlines are clamped to its end. Each key has at most one deadline and sits in at most one
//! slot, as a link of that slot's list. Setting a deadline later than the one in the wheel only
//! writes it down: when the old slot comes up the entry moves on. That makes "push the timer back
//! on every packet" free.

mod recent;

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

pub use self::recent::Recent;

const LEVELS: usize = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_MASK: u64 = 0x3f;
/// Ticks from now to the last slot.
const SPAN: u64 = 1 << 24;
/// The end of a list.
const NIL: u32 = u32::MAX;

/// Deadlines of small integer keys (slab indices).
#[derive(Debug)]
pub struct Wheel {
    epoch: Instant,
    /// The tick up to which everything has expired.
    current: u64,
    /// First key of each slot's list.
    heads: [u32; LEVELS * SLOTS],
    /// One bit for each slot of a level that holds anything.
    occupied: [u64; LEVELS],
    entries: Vec<Entry>,
}

/// Small, for there is one for each key. No deadline is at tick 0: the wheel has passed it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// The tick that is wanted; `None` when the key has no deadline.
    deadline: Option<NonZeroU64>,
    /// The tick for which it sits in a slot, if it does.
    placed: Option<NonZeroU64>,
    /// That slot, by its place in `heads`.
    slot: u16,
    previous: u32,
    next: u32,
}

const VACANT: Entry = Entry { deadline: None, placed: None, slot: 0, previous: NIL, next: NIL };

impl Wheel {
    /// An empty wheel that stands at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            current: 0,
            heads: [NIL; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            entries: Vec::new(),
        }
    }

    /// Sets or clears the deadline of `key`.
    pub fn set(&mut self, key: u32, deadline: Option<Instant>) {
        let index = key as usize;
        if index >= self.entries.len() {
            if deadline.is_none() {
                return;
            }
            self.entries.resize(index + 1, VACANT);
        }
        let tick = deadline.map(|at| self.tick_of(at).max(self.current + 1));
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.deadline = tick.and_then(NonZeroU64::new);
        let Some(tick) = tick else { return };
        match entry.placed {
            // An earlier placement serves: the entry moves on when its slot comes up.
            Some(placed) if placed.get() <= tick => {}
            Some(_) => {
                self.unlink(key);
                self.place(key, tick);
            }
            None => self.place(key, tick),
        }
    }

    /// When [`Wheel::expire`] has something to do; may be earlier than the earliest deadline.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.next_tick().map(|tick| self.epoch + Duration::from_millis(tick))
    }

    /// Moves the wheel to `now` and appends the keys whose deadline has passed to `expired`;
    /// their deadlines are cleared.
    pub fn expire(&mut self, now: Instant, expired: &mut Vec<u32>) {
        // Rounded down: a deadline is over only when its whole millisecond is.
        let target = u64::try_from(now.saturating_duration_since(self.epoch).as_millis())
            .unwrap_or(u64::MAX);
        while let Some(tick) = self.next_tick().filter(|tick| *tick <= target) {
            self.current = tick;
            for level in (0..LEVELS).rev() {
                let shift = shift(level);
                if self.current & ((1u64 << shift) - 1) == 0 {
                    let slot = (self.current >> shift) & SLOT_MASK;
                    self.turn(level * SLOTS + slot as usize, expired);
                }
            }
        }
        self.current = self.current.max(target);
    }

    /// The next tick at which an occupied slot of some level comes up.
    fn next_tick(&self) -> Option<u64> {
        let mut best: Option<u64> = None;
        for (level, bits) in self.occupied.iter().enumerate() {
            if *bits == 0 {
                continue;
            }
            let position = self.current >> shift(level);
            let slot = (position & SLOT_MASK) as u32;
            // Slots after the current one come first, wrapped; the current one comes last.
            let ahead = u64::from(bits.rotate_right((slot + 1) % 64).trailing_zeros()) + 1;
            let tick = (position + ahead) << shift(level);
            best = Some(best.map_or(tick, |best| best.min(tick)));
        }
        best
    }

    /// Empties one slot: what is due expires, the rest moves on.
    fn turn(&mut self, slot: usize, expired: &mut Vec<u32>) {
        let Some(mut key) = self.heads.get(slot).copied() else { return };
        while key != NIL {
            let Some(entry) = self.entries.get(key as usize).copied() else { return };
            self.unlink(key);
            match entry.deadline {
                None => {}
                Some(deadline) if deadline.get() <= self.current => {
                    if let Some(entry) = self.entries.get_mut(key as usize) {
                        entry.deadline = None;
                    }
                    expired.push(key);
                }
                // Never back into this slot: its next round lies a whole turn ahead.
                Some(deadline) => self.place(key, deadline.get()),
            }
            key = entry.next;
        }
    }

    fn place(&mut self, key: u32, tick: u64) {
        let tick = tick.min(self.current + SPAN - SLOTS as u64 * SLOTS as u64 * SLOTS as u64);
        let distance = tick.saturating_sub(self.current);
        let level =
            (0..LEVELS).find(|level| distance < 1u64 << shift(level + 1)).unwrap_or(LEVELS - 1);
        let slot = level * SLOTS + ((tick >> shift(level)) & SLOT_MASK) as usize;
        let head = self.heads.get(slot).copied().unwrap_or(NIL);
        if let Some(entry) = self.entries.get_mut(key as usize) {
            entry.placed = NonZeroU64::new(tick);
            entry.slot = slot as u16;
            entry.previous = NIL;
            entry.next = head;
        }
        if let Some(entry) = self.entries.get_mut(head as usize) {
            entry.previous = key;
        }
        if let Some(head) = self.heads.get_mut(slot) {
            *head = key;
        }
        if let Some(bits) = self.occupied.get_mut(level) {
            *bits |= 1u64 << (slot % SLOTS);
        }
    }

    fn unlink(&mut self, key: u32) {
        let Some(entry) = self.entries.get_mut(key as usize) else { return };
        if entry.placed.take().is_none() {
            return;
        }
        let slot = usize::from(entry.slot);
        let (previous, next) = (entry.previous, entry.next);
        (entry.previous, entry.next) = (NIL, NIL);
        if let Some(entry) = self.entries.get_mut(next as usize) {
            entry.previous = previous;
        }
        if let Some(entry) = self.entries.get_mut(previous as usize) {
            entry.next = next;
            return;
        }
        if let Some(head) = self.heads.get_mut(slot) {
            *head = next;
        }
        if next == NIL
            && let Some(bits) = self.occupied.get_mut(slot / SLOTS)
        {
            *bits &= !(1u64 << (slot % SLOTS));
        }
    }

    fn tick_of(&self, at: Instant) -> u64 {
        // Rounded up: never early.
        let micros = at.saturating_duration_since(self.epoch).as_micros();
        u64::try_from(micros.div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

/// Ticks of one slot of a level, as a shift.
fn shift(level: usize) -> u32 {
    SLOT_BITS * u32::try_from(level).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(wheel: &mut Wheel, at: Instant) -> Vec<u32> {
        let mut expired = Vec::new();
        wheel.expire(at, &mut expired);
        expired
    }

    #[test]
    fn expires_at_its_millisecond_and_not_before() {
        let start = Instant::now();
        for after in [1u64, 2, 63, 64, 65, 100, 4095, 4096, 4097, 300_000, 7_200_000] {
            let mut wheel = Wheel::new(start);
            let deadline = start + Duration::from_millis(after);
            wheel.set(7, Some(deadline));
            let mut polls = 0;
            let fired = loop {
                let at = wheel.next().expect("a deadline is set");
                polls += 1;
                if !run(&mut wheel, at).is_empty() {
                    break at;
                }
            };
            assert_eq!(fired, deadline, "deadline after {after} ms");
            assert!(polls <= LEVELS, "{polls} wake-ups for {after} ms");
            assert_eq!(wheel.next(), None);
        }
    }

    #[test]
    fn a_later_deadline_moves_on_and_a_cleared_one_never_fires() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut wheel = Wheel::new(start);
        wheel.set(1, Some(ms(10)));
        wheel.set(2, Some(ms(10)));
        wheel.set(1, Some(ms(500)));
        wheel.set(2, None);
        assert_eq!(run(&mut wheel, ms(499)), Vec::<u32>::new());
        assert_eq!(run(&mut wheel, ms(500)), vec![1]);
        wheel.set(3, Some(ms(10_000)));
        wheel.set(3, Some(ms(510)));
        assert_eq!(run(&mut wheel, ms(510)), vec![3]);
        assert_eq!(run(&mut wheel, ms(20_000)), Vec::<u32>::new());
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn agrees_with_a_sorted_map_over_random_schedules() {
        use rand::{RngExt as _, SeedableRng as _};
        let mut rng = rand::rngs::SmallRng::seed_from_u64(3);
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let mut model = std::collections::BTreeMap::new();
        let mut now = 0u64;
        for _ in 0..20_000 {
            let key = rng.random_range(0..50u32);
            let deadline =
                now + rng.random_range(1..200_000u64) / rng.random_range(1..2_000u64) + 1;
            wheel.set(key, Some(start + Duration::from_millis(deadline)));
            model.insert(key, deadline);
            now += rng.random_range(0..40u64);
            let mut fired = run(&mut wheel, start + Duration::from_millis(now));
            let mut due: Vec<u32> =
                model.iter().filter(|(_, at)| **at <= now).map(|(key, _)| *key).collect();
            model.retain(|_, at| *at > now);
            fired.sort_unstable();
            due.sort_unstable();
            assert_eq!(fired, due);
        }
    }
}
