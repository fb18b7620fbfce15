//! The rows of stacks, and their promises.

use std::collections::BTreeMap;

use serde::Serialize;

use super::contender::Contender;
use crate::table;

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// One stream to the kernel over IPv4
    From4,
    /// What the stack's process uses for it
    CostFrom4,
    /// One stream from the kernel over IPv4
    To4,
    /// What the stack's process uses for it
    CostTo4,
    /// The same over IPv6
    From6,
    CostFrom6,
    To6,
    CostTo6,
    /// Half of the round trips of a byte are faster
    RoundTrip,
    /// Pages in a second, beside a hundred connections that are still
    PagesFew,
    /// Pages in a second, beside ten thousand connections that are still
    PagesMany,
    /// What is left of the rate beside a hundred
    PagesKept,
    /// What the process holds for each connection that is still
    Memory,
    /// One stream to the kernel over a long way that loses packets
    Lossy,
    /// Processor time for each answer to ten thousand connections that ask once a second
    CostMany,
    /// How many of these requests were answered within a second
    Answered,
}

impl table::Row for Row {
    type Contender = Contender;
    const ABOUT: &str = "stacks, MTU 1500";

    fn name(self) -> &'static str {
        match self {
            Self::From4 => "TCP stack->kernel, IPv4",
            Self::To4 => "TCP kernel->stack, IPv4",
            Self::From6 => "TCP stack->kernel, IPv6",
            Self::To6 => "TCP kernel->stack, IPv6",
            Self::CostFrom4 | Self::CostTo4 | Self::CostFrom6 | Self::CostTo6 => "  processor time",
            Self::RoundTrip => "TCP round trip, p50",
            Self::PagesFew => "pages, 100 still",
            Self::PagesMany => "pages, 10,000 still",
            Self::PagesKept => "  of those beside 100",
            Self::Memory => "memory, still connection",
            Self::Lossy => "TCP, 1 % lost, 50 ms",
            Self::CostMany => "10,000 x 1 request/s",
            Self::Answered => "  answered in a second",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::From4 | Self::To4 | Self::From6 | Self::To6 => "Gbit/s",
            Self::CostFrom4 | Self::CostTo4 | Self::CostFrom6 | Self::CostTo6 => "s/GB",
            Self::RoundTrip | Self::CostMany => "us",
            Self::PagesFew | Self::PagesMany => "/s",
            Self::Memory => "KiB",
            Self::Lossy => "Mbit/s",
            Self::PagesKept | Self::Answered => "%",
        }
    }

    fn verdicts(self, medians: &BTreeMap<Contender, f64>) -> Vec<(bool, String)> {
        self.promises().iter().filter_map(|promise| promise.look(medians)).collect()
    }
}

impl Row {
    /// What netyard's figure is to be.
    fn promises(self) -> &'static [Promise] {
        use Contender::{Gvisor, Kernel, Smoltcp};
        use Promise::{NoLess, NoMore, TimesAtLeast, TimesAtMost};
        match self {
            Self::From4 | Self::To4 | Self::To6 => {
                &[TimesAtLeast(Smoltcp, 1.0), TimesAtLeast(Gvisor, 10.0)]
            }
            Self::From6 => &[TimesAtLeast(Smoltcp, 3.0), TimesAtLeast(Gvisor, 10.0)],
            Self::CostFrom4 | Self::CostTo4 | Self::CostTo6 => &[TimesAtMost(Smoltcp, 1.0)],
            Self::CostFrom6 => &[TimesAtMost(Smoltcp, 0.34)],
            Self::RoundTrip => &[TimesAtMost(Kernel, 1.2)],
            Self::PagesFew | Self::PagesMany | Self::Answered => &[],
            Self::PagesKept => &[NoLess(80.0)],
            Self::Memory => &[NoMore(1.0)],
            Self::Lossy => &[TimesAtLeast(Kernel, 0.9), TimesAtLeast(Smoltcp, 1.0)],
            Self::CostMany => &[TimesAtMost(Smoltcp, 0.2)],
        }
    }
}

/// What is promised of netyard's figure.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Promise {
    TimesAtLeast(Contender, f64),
    TimesAtMost(Contender, f64),
    NoMore(f64),
    NoLess(f64),
}

impl Promise {
    /// Whether it is kept, and with what; `None`: it was not measured.
    fn look(self, figures: &BTreeMap<Contender, f64>) -> Option<(bool, String)> {
        let ours = *figures.get(&Contender::Netyard)?;
        let ratio = |other: Contender| figures.get(&other).map(|theirs| ours / theirs);
        Some(match self {
            Self::TimesAtLeast(other, least) => {
                let is = ratio(other)?;
                (is >= least, format!("{is:.2} of {other} (>= {least})"))
            }
            Self::TimesAtMost(other, most) => {
                let is = ratio(other)?;
                (is <= most, format!("{is:.2} of {other} (<= {most})"))
            }
            Self::NoLess(least) => (ours >= least, format!("{ours:.2} (>= {least})")),
            Self::NoMore(most) => (ours <= most, format!("{ours:.2} (<= {most})")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_looked_at_where_both_were_measured() {
        let figures = BTreeMap::from([(Contender::Netyard, 4.0), (Contender::Smoltcp, 2.0)]);
        let kept = |promise: Promise| promise.look(&figures).map(|(kept, _)| kept);
        assert_eq!(kept(Promise::TimesAtLeast(Contender::Smoltcp, 2.0)), Some(true));
        assert_eq!(kept(Promise::TimesAtLeast(Contender::Smoltcp, 2.1)), Some(false));
        assert_eq!(kept(Promise::TimesAtMost(Contender::Smoltcp, 2.0)), Some(true));
        assert_eq!(kept(Promise::TimesAtMost(Contender::Kernel, 2.0)), None);
        assert_eq!(kept(Promise::NoMore(3.9)), Some(false));
    }
}
