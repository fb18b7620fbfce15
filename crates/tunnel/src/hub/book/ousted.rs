//! Nodes that are turned out while logins are looked up: what the database has said of them before is not true
//! any more.

use std::cell::{Cell, RefCell};

use crate::message::RejectCode;
use crate::relay::NodeId;

/// Those nodes, as long as a login is looked up that may not know.
#[derive(Debug, Default)]
pub(super) struct Ousted {
    /// In the order in which that was.
    nodes: RefCell<Vec<(NodeId, RejectCode)>>,
    tickets: Cell<usize>,
}

/// A login that is looked up.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    ousted: &'a Ousted,
    /// How many had been turned out before it.
    before: usize,
}

impl Ousted {
    /// A login begins.
    pub(super) fn ticket(&self) -> Ticket<'_> {
        self.tickets.set(self.tickets.get() + 1);
        Ticket { ousted: self, before: self.nodes.borrow().len() }
    }

    /// A node is turned out, and told this.
    pub(super) fn oust(&self, node: NodeId, code: RejectCode) {
        if self.tickets.get() > 0 {
            self.nodes.borrow_mut().push((node, code));
        }
    }
}

impl Ticket<'_> {
    /// What a node is told, if it was turned out since.
    pub(super) fn verdict(&self, node: NodeId) -> Option<RejectCode> {
        let nodes = self.ousted.nodes.borrow();
        let mut since = nodes.iter().skip(self.before).rev();
        since.find(|(ousted, _)| *ousted == node).map(|(_, code)| *code)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let left = self.ousted.tickets.get().saturating_sub(1);
        self.ousted.tickets.set(left);
        if left == 0 {
            self.ousted.nodes.borrow_mut().clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_hears_of_those_who_were_turned_out_since_it_began() {
        let ousted = Ousted::default();
        ousted.oust(1, RejectCode::Revoked);
        let first = ousted.ticket();
        assert_eq!(first.verdict(1), None, "that was before");
        ousted.oust(2, RejectCode::Busy);
        let second = ousted.ticket();
        ousted.oust(2, RejectCode::Revoked);
        assert_eq!((first.verdict(2), first.verdict(3)), (Some(RejectCode::Revoked), None));
        drop(first);
        assert_eq!(second.verdict(2), Some(RejectCode::Revoked));
        drop(second);
        assert_eq!(ousted.ticket().verdict(2), None);
        assert!(ousted.nodes.borrow().is_empty());
    }
}
