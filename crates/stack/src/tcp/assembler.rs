//! Bytes that arrived ahead of a gap, and the SACK blocks that tell of them (RFC 2018).

use std::collections::VecDeque;

use netyard_wire::SeqNumber;

/// Most separate pieces of one connection; a further one is refused, and comes again.
const MAX_PIECES: usize = 256;
/// A piece is added to up to this size, bytes.
const MAX_PIECE: usize = 64 * 1024;
/// SACK blocks that are told: three beside timestamps (RFC 7323 section 3).
const MAX_BLOCKS: usize = 3;

/// Half-open range of sequence numbers.
pub(super) type Range = (SeqNumber, SeqNumber);

#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// By sequence number, never overlapping.
    pieces: VecDeque<(SeqNumber, Vec<u8>)>,
    /// Where bytes came last, newest first.
    recent: [Option<SeqNumber>; MAX_BLOCKS],
}

fn end(piece: &(SeqNumber, Vec<u8>)) -> SeqNumber {
    piece.0 + piece.1.len()
}

impl Assembler {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Holds bytes that start at `start`: those that are not here yet. False if some had no room.
    pub(super) fn insert(&mut self, start: SeqNumber, bytes: &[u8]) -> bool {
        let last = start + bytes.len();
        let mut at = start;
        let mut place = self.pieces.partition_point(|piece| end(piece).le(start));
        while at.lt(last) {
            let next = self.pieces.get(place);
            if let Some(piece) = next.filter(|piece| piece.0.le(at)) {
                at = end(piece);
                place += 1;
                continue;
            }
            let until = next.map_or(last, |piece| piece.0.min(last));
            let part = slice(bytes, start, at, until);
            let full = self.pieces.len() >= MAX_PIECES;
            let before = place.checked_sub(1).and_then(|place| self.pieces.get_mut(place));
            match before.filter(|piece| end(piece) == at && piece.1.len() < MAX_PIECE) {
                Some(piece) => piece.1.extend_from_slice(part),
                None if full => return false,
                None => {
                    self.pieces.insert(place, (at, part.to_vec()));
                    place += 1;
                }
            }
            at = until;
        }
        self.note(start);
        true
    }

    /// Remembers where bytes came last.
    fn note(&mut self, start: SeqNumber) {
        let known = self.recent.iter().position(|recent| *recent == Some(start));
        let until = known.unwrap_or(MAX_BLOCKS - 1);
        if let Some(front) = self.recent.get_mut(..=until) {
            front.rotate_right(1);
        }
        if let Some(first) = self.recent.first_mut() {
            *first = Some(start);
        }
    }

    /// Takes the next bytes that follow on `next`, if the gap before them is closed.
    pub(super) fn take(&mut self, next: SeqNumber) -> Option<Vec<u8>> {
        while self.pieces.front().is_some_and(|piece| piece.0.le(next)) {
            let (start, mut bytes) = self.pieces.pop_front()?;
            let known = usize::try_from(next - start).unwrap_or(0);
            if known < bytes.len() {
                bytes.drain(..known);
                return Some(bytes);
            }
        }
        if self.pieces.is_empty() {
            *self = Self::default();
        }
        None
    }

    /// The SACK blocks to tell, the one that changed last first (RFC 2018 section 4), behind that of
    /// what came twice (RFC 2883).
    pub(super) fn blocks(&self, duplicate: Option<Range>) -> [Option<Range>; 4] {
        let mut blocks = [None; 4];
        let mut count = 0;
        let mut add = |range: Range| {
            if !blocks.iter().skip(usize::from(duplicate.is_some())).any(|old| *old == Some(range))
                && let Some(slot) = blocks.get_mut(count).filter(|_| count < MAX_BLOCKS)
            {
                *slot = Some(range);
                count += 1;
            }
        };
        if let Some(duplicate) = duplicate {
            add(duplicate);
        }
        for recent in self.recent.iter().flatten() {
            if let Some(range) = self.range(*recent) {
                add(range);
            }
        }
        blocks
    }

    /// The whole range around `at`.
    fn range(&self, at: SeqNumber) -> Option<Range> {
        let place = self.pieces.partition_point(|piece| end(piece).le(at));
        let piece = self.pieces.get(place).filter(|piece| piece.0.le(at))?;
        let (mut left, mut right) = (piece.0, end(piece));
        for piece in self.pieces.iter().take(place).rev() {
            if end(piece) != left {
                break;
            }
            left = piece.0;
        }
        for piece in self.pieces.iter().skip(place + 1) {
            if piece.0 != right {
                break;
            }
            right = end(piece);
        }
        Some((left, right))
    }
}

/// The part of `bytes`, which start at `start`, that lies in a range within them.
fn slice(bytes: &[u8], start: SeqNumber, from: SeqNumber, until: SeqNumber) -> &[u8] {
    let offset = |at: SeqNumber| usize::try_from(at - start).unwrap_or(0);
    bytes.get(offset(from)..offset(until)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_are_told_newest_first() {
        let base = SeqNumber(u32::MAX - 50);
        let mut assembler = Assembler::default();
        for offset in [100usize, 300, 500, 700] {
            assert!(assembler.insert(base + offset, &[1; 50]));
        }
        let range = |from: usize, until: usize| Some((base + from, base + until));
        let wanted = [range(700, 750), range(500, 550), range(300, 350), None];
        assert_eq!(assembler.blocks(None), wanted);
        // The first range grows on both sides, and swallows the second.
        assert!(assembler.insert(base + 150usize, &[1; 150]));
        assert!(assembler.insert(base + 80usize, &[1; 20]));
        assert_eq!(assembler.blocks(None)[0], range(80, 350));
        let duplicate = range(10, 20);
        let wanted = [duplicate, range(80, 350), range(700, 750), None];
        assert_eq!(assembler.blocks(duplicate), wanted);
    }

    #[test]
    fn pieces_are_bounded() {
        let mut assembler = Assembler::default();
        let kept = (0..1000usize).filter(|n| assembler.insert(SeqNumber(0) + n * 2, &[7])).count();
        assert_eq!(kept, MAX_PIECES);
    }

    proptest! {
        #[test]
        fn a_stream_comes_out_as_it_went_in(
            pieces in proptest::collection::vec((0..2000usize, 1..300usize), 1..80),
            base in any::<u32>(),
        ) {
            let stream: Vec<u8> = (0..2300usize).map(|n| (n * 7 % 251) as u8).collect();
            let base = SeqNumber(base);
            let mut assembler = Assembler::default();
            let mut present = vec![false; stream.len()];
            for (start, len) in pieces {
                prop_assert!(assembler.insert(base + start, &stream[start..start + len]));
                present[start..start + len].fill(true);
                let [first, ..] = assembler.blocks(None);
                let (left, right) = first.unwrap();
                let (left, right) = ((left - base) as usize, (right - base) as usize);
                prop_assert!(left <= start && start + len <= right);
                prop_assert!(present[left..right].iter().all(|here| *here));
                prop_assert!(left == 0 || !present[left - 1]);
                prop_assert!(right == present.len() || !present[right]);
            }
            let mut got = 0;
            while got < stream.len() {
                match assembler.take(base + got) {
                    Some(bytes) => {
                        prop_assert_eq!(&bytes[..], &stream[got..got + bytes.len()]);
                        prop_assert!(present[got..got + bytes.len()].iter().all(|here| *here));
                        got += bytes.len();
                    }
                    None => {
                        prop_assert!(!present[got]);
                        got += 1;
                    }
                }
            }
            prop_assert!(assembler.is_empty());
        }
    }
}
