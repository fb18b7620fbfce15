//! Buffers for packets, used again and again.

use crate::frame;

/// Up to this long a packet is kept in a small buffer, bytes.
const SMALL: usize = 2048;
/// Buffers kept for later, of each size: for one lane's worth of packets; the rest is given back.
const KEPT: usize = 64;

/// Buffers of two sizes, so that a small packet does not occupy the room of a large one.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

impl Pool {
    /// An empty buffer with room for a packet of `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let (kept, room) = match len <= SMALL {
            true => (&mut self.small, SMALL),
            false => (&mut self.large, frame::MAX_PACKET_LEN),
        };
        kept.pop().unwrap_or_else(|| Vec::with_capacity(room))
    }

    /// Takes a buffer back.
    pub(crate) fn give(&mut self, mut buffer: Vec<u8>) {
        let kept = match buffer.capacity() {
            SMALL => &mut self.small,
            frame::MAX_PACKET_LEN.. => &mut self.large,
            // Neither: it would have the room of the one, and hold the other.
            _ => return,
        };
        if kept.len() < KEPT {
            buffer.clear();
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_with_the_room_they_had() {
        let mut pool = Pool::default();
        for len in [40, 60_000] {
            let mut buffer = pool.take(len);
            buffer.resize(len, 1);
            let place = buffer.as_ptr();
            pool.give(buffer);
            let again = pool.take(len);
            assert_eq!((again.as_ptr(), again.len()), (place, 0));
        }
        for _ in 0..1000 {
            pool.give(Vec::with_capacity(SMALL));
        }
        assert_eq!(pool.small.len(), KEPT);
    }
}
