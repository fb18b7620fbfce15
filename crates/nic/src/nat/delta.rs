//! How external ports follow each other, from a series of them.
//!
//! Two series are taken, one port after the other, so that a NAT which counts is seen counting: from
//! local ports far apart, and where that shows nothing, from consecutive ones. A class is told when about
//! half of a series shows it; the rest may be other people's traffic.

use std::collections::BTreeMap;

use super::kind::DeltaType;
use super::report::{Delta, Ports, Scope};

/// A local port, and the external one that a server saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Local.
    pub local: u16,
    /// External.
    pub mapped: u16,
}

impl Sample {
    /// What the external port is above the local one.
    fn offset(&self) -> i32 {
        distance(self.local, self.mapped)
    }
}

/// Samples below which nothing is said.
pub const FEWEST: usize = 6;
/// Samples in a series.
pub const SERIES: usize = 12;

/// From one port to another the shorter way around, −32768 to 32767.
fn distance(from: u16, to: u16) -> i32 {
    i32::from(to.wrapping_sub(from).cast_signed())
}

/// How many of `count` samples must show a class: half, less one.
fn threshold(count: usize) -> usize {
    (count / 2).saturating_sub(1).max(3)
}

/// The most frequent value, and how frequent it is.
fn mode<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<(T, usize)> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_insert(0_usize) += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count)
}

/// The most frequent step from one external port to the next, if it is frequent enough.
fn step(samples: &[Sample]) -> Option<i32> {
    let steps = samples.windows(2).filter_map(|pair| match pair {
        [before, after] => Some(distance(before.mapped, after.mapped)),
        _ => None,
    });
    let (step, count) = mode(steps)?;
    (step != 0 && count >= threshold(samples.len())).then_some(step)
}

/// The class that local ports far apart show. `None`: they show nothing.
pub fn far_apart(samples: &[Sample]) -> Option<Delta> {
    if samples.len() < FEWEST {
        return None;
    }
    let (offset, count) = mode(samples.iter().map(Sample::offset))?;
    if count >= threshold(samples.len()) {
        let kind = if offset == 0 { DeltaType::Equal } else { DeltaType::Preserving };
        let delta = Delta::new(kind, offset, Scope::Socket);
        // Both are written without a value: the local port says it all. The offset has its own field.
        return Some(Delta { value: 0, ..delta });
    }
    step(samples).map(|step| Delta::new(DeltaType::Independent, step, Scope::Socket))
}

/// The class of consecutive local ports, where [`far_apart`] shows nothing. `None`: too few samples.
pub fn consecutive(samples: &[Sample]) -> Option<Delta> {
    if samples.len() < FEWEST {
        return None;
    }
    Some(match step(samples) {
        Some(step) => Delta::new(DeltaType::Dependent, step, Scope::Socket),
        None => Delta { value: 0, ..Delta::new(DeltaType::Random, 0, Scope::Socket) },
    })
}

/// The step from destination to destination, if it is always the same. Takes at least three steps.
pub fn next_destination(mapped: &[u16]) -> Option<i32> {
    let mut steps = mapped.windows(2).filter_map(|pair| match pair {
        [before, after] => Some(distance(*before, *after)),
        _ => None,
    });
    let first = steps.next()?;
    (mapped.len() >= 4 && first != 0 && steps.all(|step| step == first)).then_some(first)
}

/// What is to be said of the ports themselves.
pub fn ports(samples: &[Sample]) -> Option<Ports> {
    if samples.len() < FEWEST {
        return None;
    }
    let offset = samples.first()?.offset();
    Some(Ports {
        preserve: samples.iter().all(|sample| sample.offset() == 0),
        parity: samples.iter().all(|sample| sample.offset() % 2 == 0),
        offset: samples.iter().all(|sample| sample.offset() == offset).then_some(offset),
        min: samples.iter().map(|sample| sample.mapped).min()?,
        max: samples.iter().map(|sample| sample.mapped).max()?,
    })
}
