//! Datagrams of guests that leave together.
//!
//! A call for each datagram is most of what sending them costs. So those of one flow wait for each other for as
//! long as frames are read, as many as the kernel takes at once, and leave with one call. They are of one
//! length, but for the last. What a flow sends keeps its order.

use netyard_sys::segments;

use super::pieces;
use super::table::FlowId;

/// Flows whose datagrams are gathered at a time. With one more those of the first leave.
const FLOWS: usize = 16;
/// Room that is kept for the next ones, bytes.
const KEPT: usize = 256 * 1024;

/// Datagrams of one flow, one behind the other.
#[derive(Debug)]
pub(super) struct Departing {
    pub(super) id: FlowId,
    pub(super) hop_limit: Option<u8>,
    /// Length of each but the last, bytes.
    pub(super) size: usize,
    pub(super) bytes: Vec<u8>,
}

impl Departing {
    /// Whether a datagram can leave with these.
    fn takes(&self, hop_limit: Option<u8>, payload: &[u8]) -> bool {
        let len = self.bytes.len();
        self.hop_limit == hop_limit
            && (1..=self.size).contains(&payload.len())
            // The one before it is no shorter one, which is the last.
            && len.is_multiple_of(self.size)
            && len / self.size < segments::MOST
            && len + payload.len() <= segments::MOST_BYTES
    }

    /// The datagrams.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        pieces(&self.bytes, self.size)
    }
}

/// All that have not left yet, at most one of each flow.
#[derive(Debug, Default)]
pub(super) struct Departures {
    list: Vec<Departing>,
    spare: Vec<Vec<u8>>,
}

impl Departures {
    /// Takes a datagram; what has to leave before more can be taken, to be sent now.
    pub(super) fn push(
        &mut self,
        id: FlowId,
        hop_limit: Option<u8>,
        payload: &[u8],
    ) -> Option<Departing> {
        if let Some(waiting) = self.list.iter_mut().find(|waiting| waiting.id == id)
            && waiting.takes(hop_limit, payload)
        {
            waiting.bytes.extend_from_slice(payload);
            return None;
        }
        let mut before = self.take(id);
        if self.list.len() == FLOWS {
            // Who has waited for the longest.
            before = Some(self.list.remove(0));
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.extend_from_slice(payload);
        self.list.push(Departing { id, hop_limit, size: payload.len(), bytes });
        before
    }

    /// Takes what waits of a flow.
    pub(super) fn take(&mut self, id: FlowId) -> Option<Departing> {
        let place = self.list.iter().position(|waiting| waiting.id == id)?;
        Some(self.list.remove(place))
    }

    /// Takes anything that waits.
    pub(super) fn take_any(&mut self) -> Option<Departing> {
        self.list.pop()
    }

    /// Takes back the room of what has left.
    pub(super) fn give_back(&mut self, left: Departing) {
        let Departing { mut bytes, .. } = left;
        let kept: usize = self.spare.iter().map(Vec::capacity).sum();
        if kept + bytes.capacity() <= KEPT {
            bytes.clear();
            self.spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: FlowId = FlowId(1);

    fn lengths(departing: &Departing) -> Vec<usize> {
        departing.pieces().map(<[u8]>::len).collect()
    }

    #[test]
    fn those_of_one_length_leave_together_and_a_shorter_one_is_the_last() {
        let mut departures = Departures::default();
        for len in [100, 100, 60] {
            assert!(departures.push(FLOW, Some(9), &[1; 200][..len]).is_none());
        }
        let first = departures.push(FLOW, Some(9), &[2; 100]).unwrap();
        assert_eq!(lengths(&first), [100, 100, 60]);
        departures.give_back(first);
        for (hop_limit, len) in [(Some(9), 101), (Some(8), 101), (Some(8), 0), (Some(8), 5)] {
            assert_eq!(
                departures.push(FLOW, hop_limit, &[3; 200][..len]).unwrap().pieces().count(),
                1
            );
        }
        assert_eq!(lengths(&departures.take(FLOW).unwrap()), [5]);
        assert!(departures.take_any().is_none());
    }

    #[test]
    fn no_more_are_gathered_than_a_call_takes() {
        let mut departures = Departures::default();
        for (len, together) in
            [(10, segments::MOST), (1400, segments::MOST_BYTES / 1400), (60_000, 1)]
        {
            for _ in 0..together {
                assert!(departures.push(FLOW, None, &vec![1; len]).is_none(), "{len}");
            }
            let full = departures.push(FLOW, None, &vec![1; len]).unwrap();
            assert_eq!(lengths(&full), vec![len; together]);
            departures.take(FLOW).unwrap();
        }
    }

    #[test]
    fn flows_do_not_mix_and_are_bounded() {
        let mut departures = Departures::default();
        let flows = u32::try_from(FLOWS).unwrap();
        for flow in 0..flows {
            assert!(departures.push(FlowId(flow), None, &[1; 10]).is_none());
            assert!(departures.push(FlowId(flow), None, &[1; 10]).is_none());
        }
        let other = departures.push(FlowId(flows), None, &[1; 10]).unwrap();
        assert_eq!(lengths(&other), [10, 10]);
        assert_eq!(std::iter::from_fn(|| departures.take_any()).count(), FLOWS);
    }
}
