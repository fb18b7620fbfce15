//! A table for people: medians of rows by contenders, and what came of each row's promises.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::figures::Samples;

/// A row of a table.
pub(crate) trait Row: Copy + Ord + Serialize {
    type Contender: Contender;
    /// What the table is about.
    const ABOUT: &str;

    fn name(self) -> &'static str;

    fn unit(self) -> &'static str;

    /// What came of each promise about netyard's figure: whether it is kept, and with what. One that
    /// cannot be looked at, as something was not measured, is left out.
    fn verdicts(self, medians: &BTreeMap<Self::Contender, f64>) -> Vec<(bool, String)>;
}

/// A column.
pub(crate) trait Contender: Copy + Ord + Serialize + 'static {
    /// All, in the order of the table.
    const ALL: &[Self];

    fn name(self) -> &'static str;
}

/// The figures of a table.
pub(crate) struct Table<R: Row>(Samples<R, R::Contender>);

impl<R: Row> Default for Table<R> {
    fn default() -> Self {
        Self(Samples::default())
    }
}

impl<R: Row> Table<R> {
    /// Adds one round's figures of a contender.
    pub(crate) fn add(&mut self, contender: R::Contender, figures: BTreeMap<R, f64>) {
        self.0.add(contender, figures);
    }

    /// For people; nothing if there is no row.
    pub(crate) fn print(&self) {
        if self.0.is_empty() {
            return;
        }
        print!("{:<29}{:>7}", R::ABOUT, "");
        for contender in R::Contender::ALL {
            print!("{:>11}", contender.name());
        }
        println!("  promise");
        for (row, medians) in self.0.medians() {
            print!("{:<29}{:>7}", row.name(), row.unit());
            for contender in R::Contender::ALL {
                match medians.get(contender) {
                    Some(figure) => print!("{figure:>11.2}"),
                    None => print!("{:>11}", "-"),
                }
            }
            let verdicts = row.verdicts(&medians);
            let verdict = match verdicts.iter().all(|(kept, _)| *kept) {
                _ if verdicts.is_empty() => "",
                true => "kept: ",
                false => "MISSED: ",
            };
            let seen: Vec<String> = verdicts.into_iter().map(|(_, is)| is).collect();
            println!("  {verdict}{}", seen.join(", "));
        }
    }
}

impl<R: Row> Serialize for Table<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer, R::unit)
    }
}
