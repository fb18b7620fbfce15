//! Frames that a device has no room for yet.

use std::collections::VecDeque;

use netyard_wire::{Frame, FrameBuf};

/// Bounds of one plug's queue towards its guest.
const MAX_FRAMES: usize = 1_024;
pub(super) const MAX_BYTES: usize = 4 << 20;

/// Frames that wait for room in the device.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) frames: VecDeque<FrameBuf>,
    pub(super) bytes: usize,
}

impl Queue {
    /// Copies a frame to the end; false if the queue is full.
    pub(super) fn push(&mut self, frame: Frame<'_>) -> bool {
        let bytes = self.bytes + frame.bytes.len();
        if self.frames.len() >= MAX_FRAMES || bytes > MAX_BYTES {
            return false;
        }
        self.bytes = bytes;
        self.frames.push_back(frame.into());
        true
    }

    /// Drops the frame at the front; memory goes with the last one.
    pub(super) fn pop(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.bytes.len();
        }
        if self.frames.is_empty() {
            *self = Self::default();
        }
    }
}
