//! How many bytes of guests wait here, and how many of each may.
//!
//! What a guest has sent waits where the host's socket does not take it, or where something before it is missing. A flow
//! bounds that for itself; a guest with tens of thousands of flows would have gigabytes all the same. So there
//! is a bound for all guests together, of which a guest may have three times what is free, as of connections (see
//! [`super::share`]). Beyond that nothing more is held: what the socket does not take at once is not
//! accepted, and its sender sends it again.

use std::collections::HashMap;

use crate::edge::PlugId;

/// Bytes that wait for all guests of a network: a few hundred full flows.
const LIMIT: usize = 64 * 1024 * 1024;
/// A guest has at most so many times what is free.
const GREED: usize = 3;

/// What waits, for each plug.
#[derive(Debug, Default)]
pub(super) struct Memory {
    total: usize,
    per_plug: HashMap<PlugId, usize>,
}

impl Memory {
    /// Whether something more of this guest may wait.
    pub(super) fn allows(&self, plug: PlugId) -> bool {
        let share = LIMIT.saturating_sub(self.total).saturating_mul(GREED);
        // Nobody has more than there is.
        self.total < share || self.per_plug.get(&plug).is_none_or(|own| *own < share)
    }

    /// A flow of this guest had so many bytes wait when it was last counted, and has so many now.
    pub(super) fn count(&mut self, plug: PlugId, before: usize, now: usize) {
        if before == now {
            return;
        }
        let own = self.per_plug.entry(plug).or_default();
        *own = (*own + now).saturating_sub(before);
        self.total = (self.total + now).saturating_sub(before);
        if *own == 0 {
            self.per_plug.remove(&plug);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_all_it_can_leaves_a_part() {
        let mut memory = Memory::default();
        let (greedy, late) = (PlugId(1), PlugId(2));
        let mut flows = 0;
        while memory.allows(greedy) {
            memory.count(greedy, 0, 256 * 1024);
            flows += 1;
        }
        assert_eq!(flows, 192);
        assert!(memory.allows(late));
        memory.count(late, 0, 1024);
        assert!(!memory.allows(greedy) && memory.allows(late));
        (0..flows).for_each(|_| memory.count(greedy, 256 * 1024, 0));
        memory.count(late, 1024, 0);
        assert!(memory.allows(greedy) && memory.per_plug.is_empty());
        assert_eq!(memory.total, 0);
    }
}
