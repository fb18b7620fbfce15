//! Byte ranges that arrived ahead of a gap: held, bounded, and told to the sender as SACK blocks.

use std::collections::VecDeque;

use netyard_wire::SeqNumber;

/// Most separate ranges; a further one is refused.
const MAX_RANGES: usize = 32;
/// Most bytes held for one flow; what lies beyond is for the guest to send again.
const MAX_BYTES: usize = 256 * 1024;

#[derive(Debug)]
struct Range {
    start: SeqNumber,
    bytes: Vec<u8>,
}

impl Range {
    fn end(&self) -> SeqNumber {
        self.start + self.bytes.len()
    }
}

/// Out-of-order data of one direction of one flow.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// Sorted, never touching or overlapping.
    ranges: VecDeque<Range>,
    held: usize,
    /// Start of the range that changed last: the first SACK block (RFC 2018 section 4).
    latest: Option<SeqNumber>,
}

impl Assembler {
    /// Bytes that are held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Holds `bytes` that start at `start`. False if there is no room; nothing is kept then.
    pub(super) fn insert(&mut self, start: SeqNumber, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        if self.held + bytes.len() > MAX_BYTES {
            return false;
        }
        let end = start + bytes.len();
        // Ranges before the new one, neither touching nor overlapping.
        let first = self.ranges.iter().take_while(|range| (start - range.end()) > 0).count();
        let touching =
            self.ranges.iter().skip(first).take_while(|range| (range.start - end) <= 0).count();
        if touching == 0 {
            if self.ranges.len() >= MAX_RANGES {
                return false;
            }
            self.held += bytes.len();
            self.ranges.insert(first, Range { start, bytes: bytes.to_vec() });
            self.latest = Some(start);
            return true;
        }
        let mut merged: Vec<Range> = self.ranges.drain(first..first + touching).collect();
        self.held -= merged.iter().map(|range| range.bytes.len()).sum::<usize>();
        merged.push(Range { start, bytes: bytes.to_vec() });
        merged.sort_by(|a, b| (a.start - b.start).cmp(&0));
        let mut all = merged.into_iter();
        let Some(mut whole) = all.next() else { return false };
        for range in all {
            let overlap = usize::try_from(whole.end() - range.start).unwrap_or(0);
            whole.bytes.extend_from_slice(range.bytes.get(overlap..).unwrap_or_default());
        }
        self.held += whole.bytes.len();
        self.latest = Some(whole.start);
        self.ranges.insert(first, whole);
        true
    }

    /// Takes the bytes that follow on `next`, if the gap before them is closed.
    pub(super) fn take(&mut self, next: SeqNumber) -> Option<Vec<u8>> {
        while let Some(range) = self.ranges.front() {
            let skip = usize::try_from(next - range.start).ok()?;
            let mut range = self.ranges.pop_front()?;
            self.held -= range.bytes.len();
            if skip < range.bytes.len() {
                range.bytes.drain(..skip);
                return Some(range.bytes);
            }
        }
        None
    }

    /// Up to three SACK blocks, the one that changed last first (RFC 2018 section 4).
    pub(super) fn blocks(&self) -> [Option<(SeqNumber, SeqNumber)>; 4] {
        let mut blocks = [None; 4];
        let latest = self.ranges.iter().filter(|range| Some(range.start) == self.latest);
        let others = self.ranges.iter().filter(|range| Some(range.start) != self.latest);
        for (block, range) in blocks.iter_mut().take(3).zip(latest.chain(others)) {
            *block = Some((range.start, range.end()));
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_close_in_any_order() {
        let text: Vec<u8> = (0..=255).collect();
        let base = SeqNumber(u32::MAX - 100);
        for order in [[3usize, 1, 2], [2, 1, 3], [1, 3, 2]] {
            let mut assembler = Assembler::default();
            for part in order {
                let at = part * 50;
                assert!(assembler.insert(base + at, &text[at..at + 60]));
            }
            assert_eq!(assembler.take(base), None, "the gap is open");
            assert_eq!(assembler.blocks()[0], Some((base + 50usize, base + 210usize)));
            assert_eq!(assembler.take(base + 50usize).unwrap(), &text[50..210]);
            assert!(assembler.is_empty());
            assert_eq!(assembler.held, 0);
        }
    }

    #[test]
    fn what_was_received_meanwhile_is_cut_off() {
        let mut assembler = Assembler::default();
        assert!(assembler.insert(SeqNumber(10), b"abcdef"));
        assert!(assembler.insert(SeqNumber(30), b"z"));
        assert_eq!(assembler.take(SeqNumber(13)).unwrap(), b"def");
        assert_eq!(assembler.take(SeqNumber(40)), None);
        assert!(assembler.is_empty());
    }

    #[test]
    fn it_is_bounded_in_ranges_and_bytes() {
        let mut assembler = Assembler::default();
        let kept = (0..100usize).filter(|i| assembler.insert(SeqNumber(0) + i * 10, b"x")).count();
        assert_eq!(kept, MAX_RANGES);
        let mut assembler = Assembler::default();
        let big = vec![0; 100_000];
        let kept =
            (0..10usize).filter(|i| assembler.insert(SeqNumber(0) + i * 200_000, &big)).count();
        assert_eq!(kept, 2);
        assert_eq!(assembler.held, 200_000);
    }
}
