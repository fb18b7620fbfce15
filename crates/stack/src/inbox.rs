//! What waits in a socket of datagrams.

use std::collections::VecDeque;
use std::net::SocketAddr;

/// Bytes that wait in one socket, overhead counted (Linux's `rmem_default`).
const MAX_QUEUED: usize = 212_992;
/// What a datagram counts for beyond its payload, bytes.
const OVERHEAD: usize = 256;

/// A bounded queue of datagrams, each with who sent it. When it is full the newcomer is refused.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    queue: VecDeque<(SocketAddr, Vec<u8>)>,
    queued: usize,
}

impl Inbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// False if there is no room.
    pub(crate) fn push(&mut self, from: SocketAddr, payload: &[u8]) -> bool {
        let size = payload.len() + OVERHEAD;
        if self.queued + size > MAX_QUEUED {
            return false;
        }
        self.queue.push_back((from, payload.to_vec()));
        self.queued += size;
        true
    }

    /// Copies the oldest one, as far as it fits: its length there, and who sent it. With `take` it goes.
    pub(crate) fn read(&mut self, into: &mut [u8], take: bool) -> Option<(usize, SocketAddr)> {
        let (from, payload) = self.queue.front()?;
        let (from, len) = (*from, payload.len().min(into.len()));
        if let (Some(into), Some(payload)) = (into.get_mut(..len), payload.get(..len)) {
            into.copy_from_slice(payload);
        }
        if take && let Some((_, payload)) = self.queue.pop_front() {
            self.queued -= payload.len() + OVERHEAD;
        }
        Some((len, from))
    }
}
