//! The rows of bridge mode, and their promises.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::contender::Contender;
use crate::table::{self, Contender as _};

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// One more plug, the first ones
    AddFirst,
    /// One more plug beside many
    AddBeside,
    /// The second of these by the first
    AddGrowth,
    /// Many plugs and the network removed, by their number
    RemoveEach,
    /// Bulk TCP between two instances
    BetweenInstances,
    /// Bulk TCP from an instance through NAT to the outside
    ToOutside,
    /// Connections through a published service
    Connections,
    /// Requests of HTTP through one that takes a turn for each
    Requests,
    /// Ten thousand ports forwarded
    Ports,
}

impl table::Row for Row {
    type Contender = Contender;
    const ABOUT: &str = "bridge mode";

    fn name(self) -> &'static str {
        match self {
            Self::AddFirst => "add one plug",
            Self::AddBeside => "add one plug beside many",
            Self::AddGrowth => "  by the first ones",
            Self::RemoveEach => "remove them all, for each",
            Self::BetweenInstances => "TCP between instances",
            Self::ToOutside => "TCP to outside, NAT",
            Self::Connections => "connections to a service",
            Self::Requests => "requests to a service",
            Self::Ports => "forward 10,000 ports",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::AddFirst | Self::AddBeside | Self::RemoveEach | Self::Ports => "ms",
            Self::AddGrowth => "",
            Self::BetweenInstances | Self::ToOutside => "Gb/s",
            Self::Connections | Self::Requests => "1/s",
        }
    }

    fn verdicts(self, medians: &BTreeMap<Contender, f64>) -> Vec<(bool, String)> {
        self.promises().iter().filter_map(|promise| promise.look(medians)).collect()
    }
}

impl Row {
    /// What netyard's figure is to be, by those of others.
    fn promises(self) -> &'static [Promise] {
        use Contender::{Cni, HandMade, Haproxy, Netavark, Nginx};
        match self {
            Self::AddFirst | Self::AddBeside => {
                &[Promise::AtMost(0.1, Cni), Promise::AtMost(0.2, Netavark)]
            }
            Self::AddGrowth => &[Promise::Below(1.3)],
            Self::RemoveEach => &[Promise::AtMost(0.33, Cni), Promise::AtMost(0.33, Netavark)],
            Self::BetweenInstances | Self::ToOutside => &[Promise::AtLeast(0.95, HandMade)],
            Self::Connections => &[Promise::AtLeast(2.0, Nginx), Promise::AtLeast(2.0, Haproxy)],
            Self::Requests => &[Promise::AtLeast(0.8, Nginx)],
            Self::Ports => &[Promise::Below(200.0)],
        }
    }
}

/// What is promised of netyard's figure.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Promise {
    /// Not more than so much of somebody's.
    AtMost(f64, Contender),
    /// At least so much of somebody's.
    AtLeast(f64, Contender),
    /// Less than this.
    Below(f64),
}

impl Promise {
    /// Whether it is kept, and with what; `None`: it was not measured.
    fn look(self, figures: &BTreeMap<Contender, f64>) -> Option<(bool, String)> {
        let ours = figures.get(&Contender::Netyard)?;
        let of = |peer: Contender| figures.get(&peer).map(|theirs| ours / theirs);
        Some(match self {
            Self::AtMost(part, peer) => {
                let is = of(peer)?;
                (is <= part, format!("{is:.3} of {} (<= {part})", peer.name()))
            }
            Self::AtLeast(part, peer) => {
                let is = of(peer)?;
                (is >= part, format!("{is:.2} of {} (>= {part})", peer.name()))
            }
            Self::Below(limit) => (*ours < limit, format!("{ours:.2} (< {limit})")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_looked_at_where_both_were_measured() {
        let figures = BTreeMap::from([(Contender::Netyard, 2.0), (Contender::Cni, 20.0)]);
        let kept = |promise: Promise| promise.look(&figures).map(|(kept, _)| kept);
        assert_eq!(kept(Promise::AtMost(0.1, Contender::Cni)), Some(true));
        assert_eq!(kept(Promise::AtMost(0.09, Contender::Cni)), Some(false));
        assert_eq!(kept(Promise::AtMost(0.2, Contender::Netavark)), None);
        assert_eq!(kept(Promise::Below(2.0)), Some(false));
    }
}
