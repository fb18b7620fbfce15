//! Which names a guest was told that addresses stand for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netyard_wire::dns::Name;

use super::rules::Pattern;

/// Names of addresses that are kept for one guest.
const MOST: usize = 4096;
/// Names of one address: of those behind a large front a guest asks for a few.
const MOST_OF_ADDRESS: usize = 64;
/// How long a guest may take from an answer to the connection, beyond the time to live: programs ask
/// first, and then try one address after the other.
const GRACE: Duration = Duration::from_secs(60);
/// The longest time that an answer counts (RFC 8767 section 4 says a week; names move faster).
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The names of one guest.
#[derive(Debug, Default)]
pub(super) struct Learned {
    /// With the time up to which new flows may go by it.
    by_address: HashMap<IpAddr, Vec<(Name, Instant)>>,
    count: usize,
}

impl Learned {
    /// The guest is told that a name stands for an address for so long.
    pub(super) fn learn(&mut self, now: Instant, name: &Name, address: IpAddr, ttl: Duration) {
        let until = now + ttl.min(LONGEST) + GRACE;
        if let Some(names) = self.by_address.get_mut(&address) {
            if let Some((_, known)) = names.iter_mut().find(|(known, _)| known == name) {
                *known = until.max(*known);
                return;
            }
            if names.len() >= MOST_OF_ADDRESS
                && let Some(first) = names.iter_mut().min_by_key(|(_, until)| *until)
            {
                *first = (name.clone(), until);
                return;
            }
        }
        if self.count >= MOST {
            self.forget_half();
        }
        self.by_address.entry(address).or_default().push((name.clone(), until));
        self.count += 1;
    }

    /// Whether an address stands for a name of this pattern at a time; at any time: `None`.
    pub(super) fn is_known_as(
        &self,
        address: IpAddr,
        pattern: &Pattern,
        at: Option<Instant>,
    ) -> bool {
        let names = self.by_address.get(&address).map(Vec::as_slice).unwrap_or_default();
        let holds = |until: Instant| at.is_none_or(|at| at < until);
        names.iter().any(|(name, until)| holds(*until) && pattern.means(name))
    }

    /// Forgets the half that ends first.
    fn forget_half(&mut self) {
        let mut ends: Vec<Instant> =
            self.by_address.values().flatten().map(|(_, until)| *until).collect();
        let (_, middle, _) = ends.select_nth_unstable(MOST / 2);
        let middle = *middle;
        self.by_address.retain(|_, names| {
            names.retain(|(_, until)| *until > middle);
            !names.is_empty()
        });
        self.count = self.by_address.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::Remote;
    use super::*;

    fn pattern(text: &str) -> Pattern {
        match text.parse() {
            Ok(Remote::Name(pattern)) => pattern,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_stands_for_an_address_as_long_as_the_answer_says() {
        let (mut learned, now) = (Learned::default(), Instant::now());
        let address = "203.0.113.7".parse().unwrap();
        let name: Name = "www.example.org".parse().unwrap();
        learned.learn(now, &name, address, Duration::from_secs(5));
        let wanted = pattern("*.example.org");
        assert!(learned.is_known_as(address, &wanted, Some(now)));
        assert!(!learned.is_known_as(address, &pattern("example.org"), Some(now)));
        assert!(!learned.is_known_as("203.0.113.8".parse().unwrap(), &wanted, Some(now)));
        let late = now + GRACE + Duration::from_secs(6);
        assert!(!learned.is_known_as(address, &wanted, Some(late)));
        assert!(learned.is_known_as(address, &wanted, None), "what is open goes on");
        // Another answer, and a shorter one that does not take it back.
        learned.learn(late, &name, address, Duration::from_secs(600));
        learned.learn(late, &name, address, Duration::ZERO);
        assert!(learned.is_known_as(address, &wanted, Some(late + Duration::from_secs(600))));
        assert_eq!(learned.count, 1);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut learned, now) = (Learned::default(), Instant::now());
        let name = |number: usize| -> Name { format!("n{number}.example.org").parse().unwrap() };
        let address = |number: usize| IpAddr::from([10, 0, (number >> 8) as u8, number as u8]);
        for number in 0..3 * MOST {
            let ttl = Duration::from_secs(number as u64);
            learned.learn(now, &name(number), address(number), ttl);
            assert!(learned.count <= MOST);
        }
        let knows = |learned: &Learned, number: usize, address| {
            learned.is_known_as(address, &pattern(&format!("n{number}.example.org")), Some(now))
        };
        let last = 3 * MOST - 1;
        assert!(knows(&learned, last, address(last)));
        assert!(!knows(&learned, 0, address(0)));
        // All of one age.
        let mut learned = Learned::default();
        for number in 0..2 * MOST {
            learned.learn(now, &name(number), address(number), Duration::ZERO);
            assert!(learned.count <= MOST);
        }
        // All of one address.
        let mut learned = Learned::default();
        for number in 0..2 * MOST_OF_ADDRESS {
            let ttl = Duration::from_secs(number as u64);
            learned.learn(now, &name(number), address(0), ttl);
        }
        assert_eq!(learned.count, MOST_OF_ADDRESS);
        assert!(knows(&learned, 2 * MOST_OF_ADDRESS - 1, address(0)));
        assert!(!knows(&learned, 0, address(0)));
    }
}
