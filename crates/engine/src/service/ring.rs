//! The order of turns: whose comes when, however weights and instances change.
//!
//! # Theory of operation
//!
//! A ring is one cycle of turns, given over and over. In a cycle every instance has as many turns as
//! its weight, spread evenly: after any number of turns each instance is less than one turn away
//! from its share. That is scheduling by deadlines. Of `w` turns in a cycle of `n`, an instance's
//! turn `k` may come from place `k * n / w` (rounded down) on and must have come before place
//! `(k + 1) * n / w` (rounded up); of those that may come, the one that must come first does, and the
//! first instance of the list among equals. Instances of the same weight so take turns in the order of
//! the list.
//!
//! When instances or weights change, the new ring goes on with the turn that would have been next, or
//! with the first one behind it that is still there. A turn is known by its instance and its number
//! in the cycle. A ring of which no turn was given begins anew.

/// The highest weight of an instance.
pub const MAX_WEIGHT: u32 = 100;

/// Turns in a cycle at most: the kernel has a map with all of them in bridge mode.
pub const MAX_CYCLE: u32 = 10_000;

/// A cycle of turns, and where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring {
    names: Vec<String>,
    turns: Vec<Turn>,
    /// Index in `turns` of the next one.
    position: usize,
    /// Some turn was given.
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    /// Index in `names`.
    instance: usize,
    /// How many turns the instance has before it in the cycle.
    number: u64,
}

impl Ring {
    /// The ring of instances with these names and weights, at its beginning.
    #[must_use]
    pub fn new<'a>(instances: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let (names, weights): (Vec<String>, Vec<u64>) = instances
            .into_iter()
            .map(|(name, weight)| (name.to_owned(), u64::from(weight)))
            .unzip();
        Self { names, turns: spread(&weights), position: 0, begun: false }
    }

    /// The ring of other instances that goes on where this one is.
    #[must_use]
    pub fn change_to<'a>(&self, instances: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut next = Self::new(instances);
        if !self.begun {
            return next;
        }
        let known = |turn: &Turn| self.names.get(turn.instance).map(|name| (name, turn.number));
        let (before, behind) = self.turns.split_at(self.position.min(self.turns.len()));
        let goes_on = behind.iter().chain(before).find_map(|turn| {
            let (wanted, number) = known(turn)?;
            let instance = next.names.iter().position(|name| name == wanted)?;
            next.turns.iter().position(|turn| *turn == Turn { instance, number })
        });
        next.position = goes_on.unwrap_or(0);
        next.begun = true;
        next
    }

    /// One whole cycle of names, beginning with whose turn is next.
    pub fn upcoming(&self) -> impl Iterator<Item = &str> {
        let (before, behind) = self.turns.split_at(self.position.min(self.turns.len()));
        let turns = behind.iter().chain(before);
        turns.filter_map(|turn| self.names.get(turn.instance).map(String::as_str))
    }

    /// So many turns are given.
    pub fn advance(&mut self, turns: u64) {
        let count = u64::try_from(self.turns.len()).unwrap_or(u64::MAX);
        let position = u64::try_from(self.position).unwrap_or_default();
        // Less than the number of turns, which is a `usize`.
        let next = (position + turns % count.max(1)).checked_rem(count).unwrap_or_default();
        self.position = usize::try_from(next).unwrap_or_default();
        self.begun |= turns > 0;
    }

    /// The instances in the ring, each once, in the order of the list.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Turns in a cycle.
    #[must_use]
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    /// True if nobody gets turns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

/// One cycle of turns for these weights.
fn spread(weights: &[u64]) -> Vec<Turn> {
    let cycle: u64 = weights.iter().sum();
    let mut given = vec![0_u64; weights.len()];
    let mut turns = Vec::with_capacity(usize::try_from(cycle).unwrap_or_default());
    for place in 0..cycle {
        // Turn `k` of `w` is spread over the `k`th part of the cycle.
        let next = weights.iter().zip(&given).enumerate().filter_map(|(instance, (w, k))| {
            let from = (k * cycle).checked_div(*w)?;
            let deadline = ((k + 1) * cycle).div_ceil(*w);
            (from <= place).then_some((deadline, instance))
        });
        let Some((_, instance)) = next.min() else { break };
        if let Some(number) = given.get_mut(instance) {
            turns.push(Turn { instance, number: *number });
            *number += 1;
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `"a3 b"`: a with weight 3, b with weight 1.
    fn members(text: &str) -> Vec<(&str, u32)> {
        text.split_whitespace()
            .map(|word| {
                let (name, weight) = word.split_at(1);
                (name, weight.parse().unwrap_or(1))
            })
            .collect()
    }

    fn order(ring: &Ring) -> String {
        ring.upcoming().collect()
    }

    #[test]
    fn turns_are_spread() {
        for (instances, cycle) in [
            ("", ""),
            ("a", "a"),
            ("a b c", "abc"),
            ("a2 b2", "abab"),
            ("a3 b", "aaab"),
            ("a b3", "bbab"),
            ("a3 b2", "abaab"),
            ("a5 b c", "aaabaac"),
            ("a2 b2 c", "ababc"),
        ] {
            assert_eq!(order(&Ring::new(members(instances))), cycle, "{instances}");
        }
    }

    #[test]
    fn a_ring_goes_on_where_it_was() {
        for (from, turns, to, next) in [
            ("a b c", 0, "b a c", "bac"),
            ("a b c", 1, "a b c", "bca"),
            ("a b c", 1, "a c", "ca"),
            ("a b c", 1, "a b c d", "bcda"),
            ("a b c", 301, "c b a", "bac"),
            ("a b c", 1, "x y", "xy"),
            ("a b c", 1, "", ""),
            ("", 1, "a b", "ab"),
            // The third of three.
            ("a3 b", 2, "a3 b c", "acaab"),
            // The second turn of b is next, and there is none any more.
            ("a3 b2", 4, "a3 b", "aaab"),
            ("a3 b2", 3, "a b", "ab"),
        ] {
            let mut ring = Ring::new(members(from));
            ring.advance(turns);
            let changed = ring.change_to(members(to));
            assert_eq!(order(&changed), next, "{from} after {turns}, to {to}");
        }
    }

    #[test]
    fn the_largest_ring_is_made() {
        let names: Vec<String> = (0..100).map(|number| format!("i{number}")).collect();
        let ring = Ring::new(names.iter().map(|name| (name.as_str(), MAX_WEIGHT)));
        assert_eq!(ring.len(), usize::try_from(MAX_CYCLE).unwrap());
        assert!(ring.upcoming().take(100).eq(names.iter().map(String::as_str)));
    }

    proptest! {
        /// After any number of turns everybody is less than one turn from its share, and a cycle is
        /// exact wherever it begins.
        #[test]
        fn shares_are_exact(weights in prop::collection::vec(1..=12_u32, 1..8), turns in 0..500_u64) {
            let names: Vec<String> = (0..weights.len()).map(|number| number.to_string()).collect();
            let weighted = || names.iter().map(String::as_str).zip(weights.iter().copied());
            let cycle: u32 = weights.iter().sum();
            let mut ring = Ring::new(weighted());
            let mut given = vec![0_u32; weights.len()];
            for (place, name) in (1_u32..).zip(ring.upcoming()) {
                given[name.parse::<usize>().unwrap()] += 1;
                for (has, weight) in given.iter().zip(&weights) {
                    let (has, share) = (has * cycle, weight * place);
                    prop_assert!(has.abs_diff(share) < cycle, "{:?}", weights);
                }
            }
            ring.advance(turns);
            for (name, weight) in weighted() {
                let turns = ring.upcoming().filter(|other| *other == name).count();
                prop_assert_eq!(u32::try_from(turns).unwrap(), weight);
            }
        }
    }
}
