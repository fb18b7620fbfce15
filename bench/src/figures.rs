//! The figures of all rounds, and their medians.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// All figures of a run: of each row those of each contender, a figure a round.
#[derive(Debug)]
pub(crate) struct Samples<Row, Contender>(BTreeMap<Row, BTreeMap<Contender, Vec<f64>>>);

/// What was measured, each time.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    median: f64,
    samples: Vec<f64>,
}

/// What `--json` prints of a row.
#[derive(Serialize)]
struct Line<Row, Contender: Ord> {
    row: Row,
    unit: &'static str,
    figures: BTreeMap<Contender, Figure>,
}

impl<Row: Copy + Ord, Contender: Copy + Ord> Samples<Row, Contender> {
    /// Adds one round's figures of a contender.
    pub(crate) fn add(&mut self, contender: Contender, figures: BTreeMap<Row, f64>) {
        for (row, figure) in figures {
            self.0.entry(row).or_default().entry(contender).or_default().push(figure);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rows in their order, with each contender's median.
    pub(crate) fn medians(&self) -> impl Iterator<Item = (Row, BTreeMap<Contender, f64>)> {
        self.0.iter().map(|(row, contenders)| {
            let medians = contenders.iter().map(|(who, samples)| (*who, median(samples)));
            (*row, medians.collect())
        })
    }

    /// The rows in their order, with each contender's figures.
    pub(crate) fn figures(&self) -> impl Iterator<Item = (Row, BTreeMap<Contender, Figure>)> {
        self.0.iter().map(|(row, contenders)| {
            let figure =
                |samples: &Vec<f64>| Figure { median: median(samples), samples: samples.clone() };
            (*row, contenders.iter().map(|(who, samples)| (*who, figure(samples))).collect())
        })
    }
}

impl<Row: Copy + Ord + Serialize, Contender: Copy + Ord + Serialize> Samples<Row, Contender> {
    /// For programs: a list of rows. `unit` says a row's.
    pub(crate) fn serialize<S: Serializer>(
        &self,
        serializer: S,
        unit: impl Fn(Row) -> &'static str,
    ) -> Result<S::Ok, S::Error> {
        let lines = self.figures();
        serializer.collect_seq(lines.map(|(row, figures)| Line { row, unit: unit(row), figures }))
    }
}

impl<Row, Contender> Default for Samples<Row, Contender> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        at(middle)
    } else {
        f64::midpoint(at(middle.wrapping_sub(1)), at(middle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
