//! How many connections there may be, and how many of one client.
//!
//! A client, by its address, may have as many as are still free for everybody: one that opens all
//! it can gets half, a second one a third each, and there is always room for those who come late.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections of clients.
#[derive(Debug)]
pub(crate) struct Seats {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    per_client: HashMap<IpAddr, usize>,
    refused: u64,
}

/// The right to one connection; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    client: IpAddr,
}

impl Seats {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, taken: Mutex::default() }
    }

    /// One more connection of `client`; `None`, and counted, if it may have no more.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr) -> Option<Seat> {
        let mut taken = self.lock();
        let own = taken.per_client.get(&client).copied().unwrap_or_default();
        if own >= self.limit.saturating_sub(taken.total) {
            taken.refused += 1;
            return None;
        }
        taken.per_client.insert(client, own + 1);
        taken.total += 1;
        Some(Seat { seats: Arc::clone(self), client })
    }

    pub(crate) fn taken(&self) -> usize {
        self.lock().total
    }

    pub(crate) fn refused(&self) -> u64 {
        self.lock().refused
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.total -= 1;
        let left = taken.per_client.get_mut(&self.client).map(|own| {
            *own -= 1;
            *own
        });
        if left == Some(0) {
            taken.per_client.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_all_it_can_leaves_a_part() {
        let seats = Arc::new(Seats::new(16));
        let client = |number: u8| IpAddr::from([192, 0, 2, number]);
        let all =
            |number| -> Vec<Seat> { (0..100).filter_map(|_| seats.take(client(number))).collect() };
        let (greedy, second, late) = (all(1), all(2), all(3));
        assert_eq!((greedy.len(), second.len(), late.len()), (8, 4, 2));
        assert_eq!((seats.taken(), seats.refused()), (14, 92 + 96 + 98));
        drop((greedy, second, late));
        assert_eq!(seats.taken(), 0);
        assert_eq!(all(1).len(), 8);
    }
}
