//! What is to be in the database and may not be.

use std::collections::{BTreeMap, VecDeque};

use crate::relay::NodeId;
use crate::store::{Deed, Presence};

/// Deeds that wait at most; the oldest are dropped, and that is logged.
const MOST_DEEDS: usize = 256;

/// Nodes of which the database may not know whether they are here, and deeds.
#[derive(Debug, Clone, Default)]
pub(super) struct Unwritten {
    nodes: BTreeMap<NodeId, Doubt>,
    /// How often there was a doubt.
    count: u64,
    deeds: VecDeque<Deed>,
}

/// What is not sure of a node.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// The login that is the last.
    epoch: u64,
    /// When something happened to it, milliseconds of Unix time.
    seen_ms: i64,
    /// Which doubt this is, by count.
    number: u64,
}

impl Unwritten {
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.deeds.is_empty()
    }

    /// Something happened to a node with this login.
    pub(super) fn doubt(&mut self, node: NodeId, epoch: u64, at_ms: i64) {
        self.count += 1;
        let doubt = Doubt { epoch, seen_ms: at_ms, number: self.count };
        let known = self.nodes.entry(node).or_insert(doubt);
        *known = Doubt {
            epoch: known.epoch.max(epoch),
            seen_ms: known.seen_ms.max(at_ms),
            number: self.count,
        };
    }

    /// Something was done.
    pub(super) fn note(&mut self, deed: Deed) {
        if self.deeds.len() >= MOST_DEEDS {
            let lost = self.deeds.pop_front();
            tracing::error!(?lost, "the audit cannot be written");
        }
        self.deeds.push_back(deed);
    }

    /// What is to be written, if these are here.
    pub(super) fn said(&self, is_here: impl Fn(NodeId) -> bool) -> (Vec<Presence>, Vec<Deed>) {
        let nodes = self.nodes.iter().map(|(node, Doubt { epoch, seen_ms, .. })| Presence {
            node: *node,
            epoch: *epoch,
            is_here: is_here(*node),
            seen_ms: *seen_ms,
        });
        (nodes.collect(), self.deeds.iter().cloned().collect())
    }

    /// This is written; what came since is not.
    pub(super) fn written(&mut self, written: &Self) {
        let is_written = |node: &NodeId, doubt: &Doubt| {
            written.nodes.get(node).is_some_and(|written| written.number == doubt.number)
        };
        self.nodes.retain(|node, doubt| !is_written(node, doubt));
        for deed in &written.deeds {
            if self.deeds.front() == Some(deed) {
                self.deeds.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(number: usize) -> Deed {
        let subject = number.to_string();
        Deed { at_ms: 1, who: "hub".into(), action: "duplicate-node".into(), subject }
    }

    #[test]
    fn what_comes_while_it_is_written_stays() {
        let mut unwritten = Unwritten::default();
        unwritten.doubt(1, 4, 10);
        unwritten.doubt(2, 1, 11);
        unwritten.note(deed(1));
        let before = unwritten.clone();
        let (nodes, deeds) = before.said(|node| node == 2);
        let here: Vec<_> = nodes.iter().map(|it| (it.node, it.epoch, it.is_here)).collect();
        assert_eq!((here, deeds.len()), (vec![(1, 4, false), (2, 1, true)], 1));
        unwritten.doubt(1, 5, 20);
        // It has left and is back within a millisecond, and the clock may go back.
        unwritten.doubt(2, 1, 9);
        unwritten.note(deed(2));
        unwritten.written(&before);
        let (nodes, deeds) = unwritten.said(|_| true);
        let said: Vec<_> = nodes.iter().map(|it| (it.node, it.epoch, it.seen_ms)).collect();
        assert_eq!(said, [(1, 5, 20), (2, 1, 11)]);
        assert_eq!(deeds, [deed(2)]);
        let before = unwritten.clone();
        unwritten.written(&before);
        assert!(unwritten.is_empty());
    }

    #[test]
    fn the_oldest_deeds_are_dropped_when_too_many_wait() {
        let mut unwritten = Unwritten::default();
        (0..=MOST_DEEDS).for_each(|number| unwritten.note(deed(number)));
        let (_, deeds) = unwritten.said(|_| true);
        assert_eq!((deeds.len(), deeds.first()), (MOST_DEEDS, Some(&deed(1))));
    }
}
