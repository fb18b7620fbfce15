//! Answers of resolvers, kept for whoever asks the same again.
//!
//! An answer is kept for as long as its records say (RFC 1035 section 3.2.1), or the zone if there is none
//! (RFC 2308), and told with what is left of that. It is found by its question and by what else its content
//! depends on ([`Manner`]). There is room for so many answers and bytes; whoever comes then takes the place of
//! those that came first, however long they may be kept: nobody fills it for the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use netyard_wire::dns::{Kept, Manner, Query, Question};

use crate::control::DnsState;

/// Answers of one network, and bytes of them with what they are found by.
const MAX_ANSWERS: usize = 4_096;
const MAX_BYTES: usize = 1024 * 1024;
/// The longest that is kept, bytes: those that are longer are rare.
const MAX_ANSWER: usize = 8 * 1024;
/// What an answer takes beside its message and names: the tables' own, bytes.
const OVERHEAD: usize = 384;

/// What an answer is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    question: Question,
    manner: Manner,
}

impl Key {
    fn of(query: &Query, message: &[u8]) -> Option<Self> {
        Some(Self { question: query.question.clone(), manner: Manner::of(message)? })
    }
}

/// When an answer ends, and its number: those that came later have higher ones.
type End = (Instant, u64);

#[derive(Debug)]
struct Entry {
    kept: Kept,
    since: Instant,
    end: End,
    /// What it takes, bytes.
    size: usize,
}

/// All answers that are kept.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    by_number: BTreeMap<u64, Key>,
    by_end: BTreeSet<End>,
    bytes: usize,
    next: u64,
    hits: u64,
    misses: u64,
}

impl Cache {
    /// The answer to a query, which is `message`.
    pub(super) fn get(&mut self, now: Instant, query: &Query, message: &[u8]) -> Option<Vec<u8>> {
        self.end(now);
        let found = Key::of(query, message).and_then(|key| self.entries.get(&key));
        let answer = found.map(|entry| {
            let age = now.saturating_duration_since(entry.since).as_secs();
            entry.kept.answer(query, u32::try_from(age).unwrap_or(u32::MAX))
        });
        match answer {
            Some(_) => self.hits += 1,
            None => self.misses += 1,
        }
        answer
    }

    /// Keeps the answer to a query, which was `message`, if it may be kept.
    pub(super) fn keep(&mut self, now: Instant, query: &Query, message: &[u8], answer: &[u8]) {
        let Some(key) = Key::of(query, message) else { return };
        let Some(kept) = Kept::of(answer).filter(|kept| kept.size() <= MAX_ANSWER) else { return };
        let lifetime = Duration::from_secs(kept.lifetime().into());
        let end @ (_, number) = (now + lifetime, self.next);
        self.next += 1;
        self.forget(&key);
        // The key is there twice.
        let size = kept.size() + 2 * key.question.name.wire_len() + OVERHEAD;
        self.bytes += size;
        self.by_end.insert(end);
        self.by_number.insert(number, key.clone());
        self.entries.insert(key, Entry { kept, since: now, end, size });
        while self.entries.len() > MAX_ANSWERS || self.bytes > MAX_BYTES {
            let Some((_, first)) = self.by_number.first_key_value() else { return };
            let first = first.clone();
            self.forget(&first);
        }
    }

    /// Forgets everything: who is asked from now on may know other answers.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.by_number.clear();
        self.by_end.clear();
        self.bytes = 0;
    }

    /// What `inspect` shows.
    pub(super) fn state(&self) -> DnsState {
        let Self { hits, misses, bytes, .. } = *self;
        DnsState { hits, misses, answers: self.entries.len(), bytes }
    }

    /// Forgets what has come to its end.
    fn end(&mut self, now: Instant) {
        while let Some((_, number)) = self.by_end.first().copied().filter(|(at, _)| *at <= now) {
            let Some(first) = self.by_number.get(&number).cloned() else { return };
            self.forget(&first);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_end.remove(&entry.end);
            self.by_number.remove(&entry.end.1);
            self.bytes = self.bytes.saturating_sub(entry.size);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netyard_wire::dns::{A, Data, Flags, IN, Rcode, Record, Response};

    use super::*;

    fn query(name: &str) -> Query {
        let question = Question { name: name.parse().unwrap(), kind: A, class: IN };
        Query { id: 7, flags: Flags::RECURSION_DESIRED, question, edns: None }
    }

    fn keep(cache: &mut Cache, now: Instant, name: &str, ttl: u32) {
        let (asked, address) = (query(name), IpAddr::from([203, 0, 113, 1]));
        let mut answer = Response::to(&asked, Rcode::NoError);
        let name = asked.question.name.clone();
        answer.answers = vec![Record { name, ttl, data: Data::from(address) }; 20];
        cache.keep(now, &asked, &asked.emit(), &answer.emit(4_096));
    }

    fn has(cache: &mut Cache, now: Instant, name: &str) -> bool {
        let asked = query(name);
        cache.get(now, &asked, &asked.emit()).is_some()
    }

    #[test]
    fn it_is_bounded_and_what_came_first_goes_first() {
        let now = Instant::now();
        let mut cache = Cache::default();
        for number in 0..10_000_u32 {
            keep(&mut cache, now, &format!("{number}.example"), 20_000 - number);
            assert!(cache.bytes <= MAX_BYTES && cache.entries.len() <= MAX_ANSWERS);
            assert_eq!(cache.by_end.len(), cache.entries.len());
            assert_eq!(cache.by_number.len(), cache.entries.len());
        }
        assert!(cache.entries.len() > 1_000, "{}", cache.entries.len());
        // However long it may be kept.
        assert!(!has(&mut cache, now, "0.example") && has(&mut cache, now, "9999.example"));
        // The same again takes no more room.
        let before = cache.bytes;
        keep(&mut cache, now, "9999.EXAMPLE", 30_000);
        assert_eq!(cache.bytes, before);
        cache.end(now + Duration::from_secs(30_000));
        assert_eq!((cache.bytes, cache.by_end.len(), cache.entries.len()), (0, 0, 0));
        assert!(cache.by_number.is_empty());
    }
}
