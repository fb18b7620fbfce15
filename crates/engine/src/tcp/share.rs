//! How many connections each guest may have to the outside.
//!
//! Each costs a descriptor of the network process, and those are finite. A guest may have three times
//! as many as are still free for everybody: one that opens all it can gets three quarters, a second one
//! that of the rest, and there is room for those who come late. Connections into the network (forwards,
//! services, dials) do not count here; what guests may take together leaves them their part.

use std::collections::HashMap;

use super::MAX_FLOWS;
use crate::edge::PlugId;

/// A guest has at most so many times what is free.
const GREED: usize = 3;

/// The connections of guests to the outside.
#[derive(Debug)]
pub(super) struct Shares {
    limit: usize,
    total: usize,
    /// With more descriptors than that in use, no connection takes a second one that can do without.
    spared: usize,
    per_plug: HashMap<PlugId, usize>,
}

impl Shares {
    pub(super) fn new() -> Self {
        Self { limit: MAX_FLOWS, total: 0, spared: MAX_FLOWS, per_plug: HashMap::new() }
    }

    /// Sets how many there may be in all, of so many descriptors: three quarters.
    pub(super) fn set_descriptors(&mut self, descriptors: usize) {
        self.limit = (descriptors / 4 * 3).min(MAX_FLOWS);
        self.spared = descriptors / 2;
    }

    /// Whether a connection may take a second descriptor, with so many in use.
    pub(super) fn spares(&self, used: usize) -> bool {
        used < self.spared
    }

    /// Counts one more of `plug`; false if it may have no more.
    pub(super) fn take(&mut self, plug: PlugId) -> bool {
        let own = self.per_plug.get(&plug).copied().unwrap_or_default();
        let left = self.limit.saturating_sub(self.total).saturating_sub(1);
        if own >= left.saturating_mul(GREED) {
            return false;
        }
        self.per_plug.insert(plug, own + 1);
        self.total += 1;
        true
    }

    /// One of `plug` is over.
    pub(super) fn give_back(&mut self, plug: PlugId) {
        let Some(own) = self.per_plug.get_mut(&plug) else { return };
        *own -= 1;
        self.total -= 1;
        if *own == 0 {
            self.per_plug.remove(&plug);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_take_all_they_can_leave_a_part() {
        let mut shares = Shares::new();
        shares.set_descriptors(64);
        let take_all = |shares: &mut Shares, plug| (0..100).filter(|_| shares.take(plug)).count();
        let (greedy, second, late) = (PlugId(1), PlugId(2), PlugId(3));
        assert_eq!(take_all(&mut shares, greedy), 36);
        assert_eq!(take_all(&mut shares, second), 9);
        assert_eq!(take_all(&mut shares, late), 2);
        shares.give_back(greedy);
        assert!(!shares.take(greedy), "what it gives back is for the others first");
        assert!(shares.take(PlugId(4)));
    }
}
