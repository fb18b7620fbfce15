//! A queue of bytes in chunks: nothing while it is empty, no ring to outgrow, no copy to grow.

use std::collections::VecDeque;

/// Bytes in each chunk but the last: a few segments, and a page multiple.
const CHUNK: usize = 16 * 1024;

/// Chunks that are kept for others when nobody needs them: 1 MiB. Memory that goes back to the system and comes from it
/// again with each batch costs more than what is done with it.
const MAX_SPARE: usize = 64;

/// Whole chunks that nobody needs at the moment, for all queues of a stack.
#[derive(Debug, Default)]
pub(super) struct Spare(Vec<Vec<u8>>);

impl Spare {
    /// An empty chunk with room for a whole one.
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK))
    }

    fn give(&mut self, mut chunk: Vec<u8>) {
        if chunk.capacity() == CHUNK && self.0.len() < MAX_SPARE {
            chunk.clear();
            self.0.push(chunk);
        }
    }
}

/// Bytes in order. Every chunk but the last is full, so that any offset is found at once.
#[derive(Debug, Default)]
pub(super) struct ByteQueue {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that are gone already.
    head: usize,
    len: usize,
}

impl ByteQueue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, mut bytes: &[u8], spare: &mut Spare) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let room = match self.chunks.back_mut() {
                Some(chunk) if chunk.len() < CHUNK => chunk,
                last => {
                    // The first one grows with what is in it.
                    let chunk = if last.is_some() { spare.take() } else { Vec::new() };
                    self.chunks.push_back(chunk);
                    continue;
                }
            };
            let (part, rest) = bytes.split_at_checked(CHUNK - room.len()).unwrap_or((bytes, &[]));
            if room.capacity() < CHUNK && room.len() + part.len() >= CHUNK / 2 {
                let few = std::mem::replace(room, spare.take());
                room.extend_from_slice(&few);
            }
            room.extend_from_slice(part);
            bytes = rest;
        }
    }

    /// Copies bytes from `offset` on; returns how many there were.
    pub(super) fn copy(&self, offset: usize, into: &mut [u8]) -> usize {
        let mut rest = into;
        let mut done = 0;
        for part in self.parts(offset, rest.len()) {
            let Some((room, behind)) = rest.split_at_mut_checked(part.len()) else { break };
            room.copy_from_slice(part);
            done += part.len();
            rest = behind;
        }
        done
    }

    /// Appends `len` bytes from `offset` on to `out`, as far as there are so many.
    pub(super) fn append(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
        self.parts(offset, len).for_each(|part| out.extend_from_slice(part));
    }

    /// `len` bytes from `offset` on, as far as there are so many, as they lie in memory.
    fn parts(&self, offset: usize, len: usize) -> impl Iterator<Item = &[u8]> {
        let mut position = self.head + offset;
        let mut left = len;
        std::iter::from_fn(move || {
            let chunk = self.chunks.get(position / CHUNK)?;
            let part = chunk.get(position % CHUNK..)?;
            let part = part.get(..left).unwrap_or(part);
            position += part.len();
            left -= part.len();
            (!part.is_empty()).then_some(part)
        })
    }

    /// Drops bytes from the front, at most all.
    pub(super) fn discard(&mut self, count: usize, spare: &mut Spare) {
        let count = count.min(self.len);
        self.len -= count;
        self.head += count;
        while self.head >= CHUNK {
            self.head -= CHUNK;
            self.chunks.pop_front().into_iter().for_each(|chunk| spare.give(chunk));
        }
        if self.len == 0 {
            self.clear(spare);
        }
    }

    /// Drops everything.
    pub(super) fn clear(&mut self, spare: &mut Spare) {
        self.chunks.drain(..).for_each(|chunk| spare.give(chunk));
        *self = Self::default();
    }

    /// Takes bytes from the front; returns how many.
    pub(super) fn take(&mut self, into: &mut [u8], spare: &mut Spare) -> usize {
        let count = self.copy(0, into);
        self.discard(count, spare);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chunks_are_used_again_however_small_the_pieces_that_fill_them() {
        let mut spare = Spare::default();
        for round in 0..3 {
            let mut queue = ByteQueue::default();
            (0..500).for_each(|_| queue.push(&[7; 1448], &mut spare));
            let whole = queue.chunks.iter().filter(|chunk| chunk.capacity() == CHUNK).count();
            assert_eq!(whole, queue.chunks.len());
            assert_eq!(spare.0.len(), 0, "round {round}");
            queue.discard(usize::MAX, &mut spare);
            assert_eq!(spare.0.len(), whole);
        }
        let mut few = ByteQueue::default();
        few.push(&[7; 1448], &mut spare);
        assert!(few.chunks[0].capacity() < 2 * 1448, "little takes little");
    }

    proptest! {
        #[test]
        fn it_is_a_queue(steps in proptest::collection::vec((0..3u8, 0..50_000usize), 1..60)) {
            let mut queue = ByteQueue::default();
            let mut spare = Spare::default();
            let mut model = VecDeque::new();
            let mut counter = 0u8;
            for (step, count) in steps {
                match step {
                    0 => {
                        let bytes: Vec<u8> = (0..count)
                            .map(|_| { counter = counter.wrapping_mul(31).wrapping_add(7); counter })
                            .collect();
                        queue.push(&bytes, &mut spare);
                        model.extend(bytes);
                    }
                    1 => {
                        let mut into = vec![0; count];
                        let taken = queue.take(&mut into, &mut spare);
                        let wanted: Vec<u8> = model.drain(..count.min(model.len())).collect();
                        prop_assert_eq!(&into[..taken], &wanted[..]);
                    }
                    _ => {
                        let mut into = vec![0; 3000];
                        let copied = queue.copy(count, &mut into);
                        let wanted: Vec<u8> = model.iter().skip(count).take(3000).copied().collect();
                        prop_assert_eq!(&into[..copied], &wanted[..]);
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert!(!queue.is_empty() || queue.chunks.is_empty(), "empty costs nothing");
                prop_assert!(spare.0.len() <= MAX_SPARE, "what is kept is bounded");
            }
        }
    }
}
