//! A queue of bytes in chunks: nothing while it is empty, no ring to outgrow, no copy to grow.

use std::collections::VecDeque;

/// Bytes in each chunk but the last: a few segments, and a page multiple.
const CHUNK: usize = 16 * 1024;

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

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let room = match self.chunks.back_mut() {
                Some(chunk) if chunk.len() < CHUNK => chunk,
                _ => {
                    self.chunks.push_back(Vec::new());
                    continue;
                }
            };
            let (part, rest) = bytes.split_at_checked(CHUNK - room.len()).unwrap_or((bytes, &[]));
            room.extend_from_slice(part);
            bytes = rest;
        }
    }

    /// Copies bytes from `offset` on; returns how many there were.
    pub(super) fn copy(&self, offset: usize, into: &mut [u8]) -> usize {
        let mut position = self.head + offset;
        let mut done = 0;
        while let Some(into) = into.get_mut(done..).filter(|into| !into.is_empty()) {
            let chunk = self.chunks.get(position / CHUNK);
            let Some(from) = chunk.and_then(|chunk| chunk.get(position % CHUNK..)) else { break };
            let count = from.len().min(into.len());
            if count == 0 {
                break;
            }
            if let (Some(into), Some(from)) = (into.get_mut(..count), from.get(..count)) {
                into.copy_from_slice(from);
            }
            done += count;
            position += count;
        }
        done
    }

    /// Drops bytes from the front, at most all.
    pub(super) fn discard(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.head += count;
        while self.head >= CHUNK {
            self.head -= CHUNK;
            self.chunks.pop_front();
        }
        if self.len == 0 {
            *self = Self::default();
        }
    }

    /// Takes bytes from the front; returns how many.
    pub(super) fn take(&mut self, into: &mut [u8]) -> usize {
        let count = self.copy(0, into);
        self.discard(count);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_queue(steps in proptest::collection::vec((0..3u8, 0..50_000usize), 1..60)) {
            let mut queue = ByteQueue::default();
            let mut model = VecDeque::new();
            let mut counter = 0u8;
            for (step, count) in steps {
                match step {
                    0 => {
                        let bytes: Vec<u8> = (0..count)
                            .map(|_| { counter = counter.wrapping_mul(31).wrapping_add(7); counter })
                            .collect();
                        queue.push(&bytes);
                        model.extend(bytes);
                    }
                    1 => {
                        let mut into = vec![0; count];
                        let taken = queue.take(&mut into);
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
            }
        }
    }
}
