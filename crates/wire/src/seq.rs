//! TCP sequence numbers (RFC 9293 section 3.4).

#![allow(clippy::arithmetic_side_effects, reason = "sequence arithmetic wraps by definition")]

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// A position in a TCP stream, modulo 2^32.
///
/// There is no total order on a circle, hence no `Ord`: [`lt`](Self::lt) and its siblings compare
/// by the shorter way round, which is right while both numbers lie within 2^31 of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// True if `self` comes before `other`.
    #[must_use]
    pub fn lt(self, other: Self) -> bool {
        self - other < 0
    }

    /// True if `self` comes before `other` or is the same.
    #[must_use]
    pub fn le(self, other: Self) -> bool {
        self - other <= 0
    }

    /// True if `self` comes after `other`.
    #[must_use]
    pub fn gt(self, other: Self) -> bool {
        self - other > 0
    }

    /// True if `self` comes after `other` or is the same.
    #[must_use]
    pub fn ge(self, other: Self) -> bool {
        self - other >= 0
    }

    /// True if `self` lies in the half-open range from `low` to `high`: the shape of a window,
    /// RCV.NXT =< SEG.SEQ < RCV.NXT+RCV.WND. Right for ranges of any length below 2^32.
    #[must_use]
    pub fn between(self, low: Self, high: Self) -> bool {
        self.0.wrapping_sub(low.0) < high.0.wrapping_sub(low.0)
    }

    /// The later of the two.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if self.lt(other) { other } else { self }
    }

    /// The earlier of the two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if self.lt(other) { self } else { other }
    }
}

impl Add<u32> for SeqNumber {
    type Output = Self;

    fn add(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }
}

impl Add<usize> for SeqNumber {
    type Output = Self;

    fn add(self, count: usize) -> Self {
        // Sequence space is modulo 2^32: only the low 32 bits of the count matter.
        let [.., a, b, c, d] = count.to_be_bytes();
        self + u32::from_be_bytes([a, b, c, d])
    }
}

impl AddAssign<u32> for SeqNumber {
    fn add_assign(&mut self, count: u32) {
        *self = *self + count;
    }
}

impl AddAssign<usize> for SeqNumber {
    fn add_assign(&mut self, count: usize) {
        *self = *self + count;
    }
}

impl Sub<u32> for SeqNumber {
    type Output = Self;

    fn sub(self, count: u32) -> Self {
        Self(self.0.wrapping_sub(count))
    }
}

/// The signed distance from `other` to `self`.
impl Sub for SeqNumber {
    type Output = i32;

    fn sub(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }
}

impl fmt::Display for SeqNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_distance_hold_across_the_wrap() {
        let before = SeqNumber(u32::MAX - 9);
        let after = before + 20usize;
        assert_eq!(after, SeqNumber(10));
        assert_eq!(after - before, 20);
        assert_eq!(before - after, -20);
        assert!(before.lt(after) && before.le(after) && after.gt(before) && after.ge(before));
        assert!(before.le(before) && before.ge(before) && !before.lt(before) && !before.gt(before));
        assert_eq!(before.max(after), after);
        assert_eq!(before.min(after), before);
        assert_eq!(after - 20u32, before);
    }

    #[test]
    fn windows_are_half_open_and_may_wrap() {
        let low = SeqNumber(u32::MAX - 4);
        let high = low + 10u32;
        assert!(low.between(low, high));
        assert!(SeqNumber(0).between(low, high));
        assert!(!high.between(low, high));
        assert!(!(low - 1u32).between(low, high));
        assert!(!low.between(low, low), "an empty window holds nothing");
        assert!((low + 0x9000_0000_u32).between(low, low + 0xa000_0000_u32));
    }
}
