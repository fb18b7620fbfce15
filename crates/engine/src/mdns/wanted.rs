//! The names that guests have asked for, each within a share of its own.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use netyard_wire::dns::Name;

use crate::edge::PlugId;

/// How long answers to a name are let in after it was asked for: who goes on to want to know asks again before records of
/// the usual lifetime of 75 minutes are over (RFC 6762 sections 5.2 and 10).
pub(super) const WANTED: Duration = Duration::from_secs(75 * 60);

/// Names of one guest. A browser of an office asks for some dozens of services and machines; what it asked for first is
/// answered by the time that it asks for so many more.
const MAX_NAMES: usize = 128;

/// The names whose answers are let in.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Of each guest, with the end of that time.
    by_plug: HashMap<PlugId, HashMap<Name, Instant>>,
    /// Who has asked for a name.
    askers: HashMap<Name, BTreeSet<PlugId>>,
}

impl Wanted {
    /// Notes that a guest wants answers to a name. If it has too many the one that it has not asked for for the longest
    /// time gives way: false if that one was wanted still.
    pub(super) fn note(&mut self, now: Instant, plug: PlugId, name: &Name) -> bool {
        let names = self.by_plug.entry(plug).or_default();
        if let Some(until) = names.get_mut(name) {
            *until = now + WANTED;
            return true;
        }
        let mut oldest = None;
        if names.len() >= MAX_NAMES {
            let first = names.iter().min_by_key(|(_, until)| **until);
            oldest = first.map(|(name, until)| (name.clone(), *until));
        }
        if let Some((oldest, _)) = &oldest {
            names.remove(oldest);
            self.leave(plug, oldest);
        }
        self.by_plug.entry(plug).or_default().insert(name.clone(), now + WANTED);
        self.askers.entry(name.clone()).or_default().insert(plug);
        oldest.is_none_or(|(_, until)| until <= now)
    }

    /// Whether somebody wants answers to a name.
    pub(super) fn has(&self, now: Instant, name: &Name) -> bool {
        let until = |plug| self.by_plug.get(plug).and_then(|names| names.get(name));
        let mut askers = self.askers.get(name).into_iter().flatten();
        askers.any(|plug| until(plug).is_some_and(|until| *until > now))
    }

    pub(super) fn remove_plug(&mut self, plug: PlugId) {
        for name in self.by_plug.remove(&plug).unwrap_or_default().into_keys() {
            self.leave(plug, &name);
        }
    }

    fn leave(&mut self, plug: PlugId, name: &Name) {
        if let Some(askers) = self.askers.get_mut(name) {
            askers.remove(&plug);
            if askers.is_empty() {
                self.askers.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Name {
        format!("n{number}.local").parse().unwrap()
    }

    #[test]
    fn each_has_a_share_and_what_it_asked_for_first_gives_way() {
        let now = Instant::now();
        let later = |number: usize| now + Duration::from_millis(u64::try_from(number).unwrap());
        let mut wanted = Wanted::default();
        let (one, two) = (PlugId(1), PlugId(2));
        assert!(wanted.note(now, two, &name(0)) && wanted.note(now, two, &name(5_000)));
        assert!((0..MAX_NAMES).all(|number| wanted.note(later(number), one, &name(number))));
        // What is asked for again is not the oldest any more.
        assert!(wanted.note(later(MAX_NAMES), one, &name(1)));
        assert!((1_000..1_003).all(|number| !wanted.note(later(number), one, &name(number))));
        let at = later(2_000);
        for (number, has) in [(1, true), (2, false), (3, false), (4, true), (1_002, true)] {
            assert_eq!(wanted.has(at, &name(number)), has, "{number}");
        }
        // The other one has what it asked for, also where the first has lost it.
        assert!(wanted.has(at, &name(0)) && wanted.has(at, &name(5_000)));
        wanted.remove_plug(one);
        assert!(!wanted.has(at, &name(1)) && wanted.has(at, &name(0)));
        wanted.remove_plug(two);
        assert!(wanted.askers.is_empty() && wanted.by_plug.is_empty());
    }

    #[test]
    fn after_its_time_a_name_is_not_wanted_and_its_place_is_free() {
        let now = Instant::now();
        let mut wanted = Wanted::default();
        assert!((0..MAX_NAMES).all(|number| wanted.note(now, PlugId(1), &name(number))));
        let late = now + WANTED;
        assert!(!wanted.has(late, &name(1)));
        assert!(wanted.note(late, PlugId(1), &name(1_000)) && wanted.has(late, &name(1_000)));
    }
}
