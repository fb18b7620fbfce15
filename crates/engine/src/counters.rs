//! Drop counters: every frame that goes nowhere is counted by reason.

use std::collections::BTreeMap;

/// Counts drops by reason. Reasons are short constant names such as `spoofed-mac`.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    drops: BTreeMap<&'static str, u64>,
}

impl Counters {
    /// Counts one drop.
    pub(crate) fn drop(&mut self, reason: &'static str) {
        *self.drops.entry(reason).or_default() += 1;
    }

    /// How often `reason` was counted.
    #[cfg(test)]
    pub(crate) fn of(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or_default()
    }

    /// All reasons that were counted at least once.
    pub(crate) fn all(&self) -> BTreeMap<String, u64> {
        self.drops.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
    }
}
