//! Whose turn it is, and what came of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A turn that was given: an instance to send one request to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The instance; never that of another one.
    pub key: u64,
    /// Its addresses with the service's port, the one to try first in front.
    pub addresses: [SocketAddr; 2],
}

/// Who wants a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The client's address.
    pub address: IpAddr,
    /// Its connection was handed over ([`Service::accept`](crate::Service::accept)), and has not come by a port.
    pub handed_over: bool,
}

/// Gives the turns of one service.
///
/// Each turn is followed by one outcome: `opened` and later `closed`, `failed`, or `abandoned`.
pub trait Turns: fmt::Debug + Send + Sync {
    /// The next turn, for a request of `asker` that was not answered by the instances in `tried`.
    /// `None` if there is nobody left.
    fn next(&self, asker: Asker, tried: &[u64]) -> Option<Turn>;

    /// The instance has begun to answer.
    fn opened(&self, key: u64);

    /// The answer is complete, or has broken off.
    fn closed(&self, key: u64);

    /// The instance could not be reached, or ended the connection without an answer.
    fn failed(&self, key: u64);

    /// The client went away before the instance answered.
    fn abandoned(&self, key: u64);
}

/// A turn without its last outcome yet. Dropping it tells the outcome.
#[derive(Debug)]
pub(crate) struct Held {
    turns: Arc<dyn Turns>,
    key: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Open,
    Failed,
}

impl Held {
    pub(crate) fn new(turns: &Arc<dyn Turns>, key: u64) -> Self {
        Self { turns: Arc::clone(turns), key, state: State::Waiting }
    }

    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    pub(crate) fn opened(&mut self) {
        self.turns.opened(self.key);
        self.state = State::Open;
    }

    pub(crate) fn failed(mut self) {
        self.state = State::Failed;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match self.state {
            State::Waiting => self.turns.abandoned(self.key),
            State::Open => self.turns.closed(self.key),
            State::Failed => self.turns.failed(self.key),
        }
    }
}
