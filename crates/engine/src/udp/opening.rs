//! Flows of services that are not known to be answered, and the datagrams that are kept for the next
//! instance.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::table::FlowId;
use crate::service::{ServiceId, TurnKey};

/// How long an instance may take to refuse. Guests are one hop away.
const PATIENCE: Duration = Duration::from_secs(1);

/// Datagrams of one flow that are kept for that long: a question for each family, and each once more.
const HELD: usize = 4;

/// Bytes of all of them together. What is above is not kept: clients ask again.
const HELD_BYTES: usize = 4 << 20;

/// The state of a flow of a service that is not known to be answered.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) service: ServiceId,
    /// Instances that may not be asked, and behind them those that were; the last one is asked now.
    pub(super) tried: Vec<TurnKey>,
    /// How many of them may not be asked.
    barred: usize,
    /// Another address of that one, for when it refuses at the first.
    pub(super) other: Option<SocketAddr>,
    pub(super) held: Vec<Box<[u8]>>,
    /// Until when it may refuse.
    until: Instant,
}

impl Opening {
    /// A client's first datagram, for which nobody was asked yet, and which instances may not be.
    pub(super) fn new(
        now: Instant,
        service: ServiceId,
        tried: Vec<TurnKey>,
        payload: &[u8],
    ) -> Self {
        let (barred, other, held) = (tried.len(), None, vec![payload.into()]);
        Self { service, tried, barred, other, held, until: now }
    }

    /// Some more instances may not be asked.
    pub(super) fn bar(&mut self, instances: Vec<TurnKey>) {
        self.barred += instances.len();
        self.tried.splice(0..0, instances);
    }

    /// Whose turn it is.
    pub(super) fn turn(&self) -> Option<TurnKey> {
        self.tried.get(self.barred..)?.last().copied()
    }

    /// Whether the instance may still refuse.
    pub(super) fn may_refuse(&self, now: Instant) -> bool {
        now < self.until
    }

    fn held_bytes(&self) -> usize {
        self.held.iter().map(|payload| payload.len()).sum()
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Openings {
    flows: HashMap<FlowId, Opening>,
    /// Of what is held.
    bytes: usize,
    /// When what is held for a flow is of no use any more, in that order. The flow may have gone before.
    due: VecDeque<(Instant, FlowId)>,
}

impl Openings {
    /// Begins the time in which an instance may refuse.
    pub(super) fn insert(&mut self, now: Instant, id: FlowId, mut opening: Opening) {
        opening.until = now + PATIENCE;
        if self.bytes + opening.held_bytes() > HELD_BYTES {
            opening.held.clear();
        }
        self.bytes += opening.held_bytes();
        self.due.push_back((opening.until, id));
        self.flows.insert(id, opening);
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (FlowId, &mut Opening)> {
        self.flows.iter_mut().map(|(id, opening)| (*id, opening))
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&Opening> {
        self.flows.get(&id)
    }

    pub(super) fn remove(&mut self, id: FlowId) -> Option<Opening> {
        let opening = self.flows.remove(&id)?;
        self.bytes -= opening.held_bytes();
        Some(opening)
    }

    /// Keeps one more datagram, if there is room for it.
    pub(super) fn hold(&mut self, id: FlowId, payload: &[u8]) {
        let Some(opening) = self.flows.get_mut(&id) else { return };
        if opening.held.len() < HELD && self.bytes + payload.len() <= HELD_BYTES {
            self.bytes += payload.len();
            opening.held.push(payload.into());
        }
    }

    /// The instance is not there any more, with no address.
    pub(super) fn forget_other_address(&mut self, id: FlowId) {
        if let Some(opening) = self.flows.get_mut(&id) {
            opening.other = None;
        }
    }

    /// Lets go of what is held for instances that have had their time.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some((until, id)) = self.due.front().copied().filter(|(until, _)| *until <= now) {
            self.due.pop_front();
            if let Some(opening) = self.flows.get_mut(&id).filter(|it| it.until == until) {
                self.bytes -= opening.held_bytes();
                opening.held = Vec::new();
            }
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.front().map(|(until, _)| *until)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_fits_and_for_no_longer_than_it_is_of_use() {
        let now = Instant::now();
        let payload = vec![0; HELD_BYTES / 8];
        let mut openings = Openings::default();
        for number in 0..3 {
            let opening = Opening::new(now, ServiceId(1), Vec::new(), &payload);
            openings.insert(now, FlowId(number), opening);
            for _ in 0..HELD {
                openings.hold(FlowId(number), &payload);
            }
        }
        assert_eq!([0, 1, 2].map(|number| held_of(&openings, number)), [4, 4, 0]);
        assert_eq!(openings.remove(FlowId(0)).unwrap().held.len(), 4);
        openings.hold(FlowId(2), &payload);
        assert_eq!(held_of(&openings, 2), 1);
        assert_eq!(openings.poll_timeout(), Some(now + PATIENCE));
        openings.handle_timeout(now + PATIENCE);
        assert_eq!((held_of(&openings, 1), held_of(&openings, 2)), (0, 0));
        assert_eq!((openings.bytes, openings.poll_timeout()), (0, None));
    }

    fn held_of(openings: &Openings, number: u32) -> usize {
        openings.get(FlowId(number)).unwrap().held.len()
    }
}
