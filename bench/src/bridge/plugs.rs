//! One more plug, beside none and beside many; all of them removed.

use std::collections::BTreeMap;
use std::time::Instant;

use super::contender::{Contender, Guest};
use super::report::Row;
use crate::figures::median;

/// Who takes part.
pub(super) const CONTENDERS: [Contender; 4] =
    [Contender::Netyard, Contender::HandMade, Contender::Netavark, Contender::Cni];

/// How many are plugged in one after the other; the median counts.
const SAMPLES: u16 = 20;

/// Takes the figures here, in a namespace that plays the host.
pub(super) fn take(contender: Contender, many: u16) -> BTreeMap<Row, f64> {
    let Some(mut plugs) = contender.plugs() else { return BTreeMap::new() };
    let mut guests = Vec::new();
    let mut plug = |count: u16| -> Vec<f64> {
        let next = u16::try_from(guests.len()).unwrap_or(u16::MAX);
        let numbers = next..next.saturating_add(count);
        let times = numbers.map(|number| {
            let begin = Instant::now();
            let guest = Guest::new(number);
            plugs.plug(&guest);
            let took = begin.elapsed();
            guests.push(guest);
            took.as_secs_f64() * 1e3
        });
        times.collect()
    };
    // The bridge comes with the first one, for some.
    plug(1);
    let first = median(&plug(SAMPLES));
    plug(many.saturating_sub(SAMPLES + 1));
    let beside = median(&plug(SAMPLES));
    let begin = Instant::now();
    plugs.clear(&guests);
    for guest in &guests {
        guest.remove();
    }
    let removed = begin.elapsed().as_secs_f64() * 1e3 / f64::from(many + SAMPLES);
    BTreeMap::from([
        (Row::AddFirst, first),
        (Row::AddBeside, beside),
        (Row::AddGrowth, beside / first),
        (Row::RemoveEach, removed),
    ])
}
