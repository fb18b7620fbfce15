//! What was noted lately, by key.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// What is known of keys that were noted or asked for lately: for one slice of time at least, and two at most. So
/// forgetting costs nothing, but when a slice has too many keys, what is from before it is forgotten at once.
#[derive(Debug)]
pub struct Recent<K, V> {
    slice: Duration,
    most: usize,
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    since: Option<Instant>,
}

impl<K: Eq + Hash, V: Copy> Recent<K, V> {
    /// Nothing yet; with at most so many keys in one slice.
    #[must_use]
    pub fn new(slice: Duration, most: usize) -> Self {
        Self { slice, most, young: HashMap::new(), old: HashMap::new(), since: None }
    }

    /// Notes a key, or what is known of it now.
    pub fn note(&mut self, now: Instant, key: K, value: V) {
        let since = *self.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age >= self.slice || self.young.len() >= self.most && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
            if age >= self.slice * 2 {
                self.old.clear();
            }
            self.since = Some(now);
        }
        self.young.insert(key, value);
    }

    /// What is known of a key, which is noted by that.
    pub fn get(&mut self, now: Instant, key: K) -> Option<V> {
        let age = now.saturating_duration_since(self.since?);
        let young = self.young.get(&key).filter(|_| age < self.slice * 2);
        let value = *young.or_else(|| self.old.get(&key).filter(|_| age < self.slice))?;
        self.note(now, key, value);
        Some(value)
    }

    /// Forgets a key; what was known of it.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let old = self.old.remove(key);
        self.young.remove(key).or(old)
    }

    /// Keeps what `wanted` says, and forgets the rest. It may change what is known.
    pub fn retain(&mut self, mut wanted: impl FnMut(&K, &mut V) -> bool) {
        // What is known of a key is what was noted last.
        self.old.retain(|key, _| !self.young.contains_key(key));
        self.young.retain(&mut wanted);
        self.old.retain(wanted);
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.keys().filter(|key| !self.young.contains_key(*key)).count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_secs(60);

    #[test]
    fn a_key_is_known_for_a_slice_and_not_for_more_than_two() {
        let start = Instant::now();
        let mut recent = Recent::new(SLICE, 8);
        recent.note(start, 1, 'a');
        recent.note(start + SLICE, 2, 'b');
        assert_eq!(recent.get(start + SLICE, 1), Some('a'));
        assert_eq!(recent.get(start + SLICE * 2, 2), Some('b'));
        assert_eq!(recent.get(start + SLICE * 4, 1), None);
        assert_eq!(recent.get(start + SLICE * 4, 3), None);
        // The slice after it is no longer for those of the one before.
        let mut recent = Recent::new(SLICE, 8);
        recent.note(start, 1, 'a');
        recent.note(start + SLICE, 2, 'b');
        let late = start + SLICE * 2 + Duration::from_secs(1);
        assert_eq!([recent.get(late, 1), recent.get(late, 2)], [None, Some('b')]);
        assert_eq!([recent.remove(&2), recent.get(late, 2)], [Some('b'), None]);
    }

    #[test]
    fn there_are_never_many_more_than_are_let() {
        let now = Instant::now();
        let mut recent = Recent::new(SLICE, 4);
        for key in 0..100 {
            recent.note(now, key, ());
            assert!(recent.len() <= 8);
        }
        // What was noted again and again displaces nobody.
        for _ in 0..100 {
            recent.note(now, 99, ());
        }
        assert_eq!(recent.get(now, 98), Some(()));
        assert_eq!(recent.get(now, 0), None);
    }

    #[test]
    fn what_is_known_may_change_and_be_forgotten() {
        let start = Instant::now();
        let mut recent = Recent::new(SLICE, 8);
        assert!(recent.is_empty());
        recent.note(start, 1, 'a');
        recent.note(start, 2, 'b');
        recent.note(start + SLICE, 1, 'c');
        assert_eq!(recent.len(), 2);
        let mut seen = Vec::new();
        recent.retain(|key, value| {
            seen.push((*key, *value));
            *value = 'd';
            *key == 1
        });
        seen.sort_unstable();
        assert_eq!(seen, [(1, 'c'), (2, 'b')]);
        assert_eq!(recent.get(start + SLICE, 1), Some('d'));
        assert_eq!(recent.get(start + SLICE, 2), None);
    }
}
