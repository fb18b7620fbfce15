//! Hub and peers beside other tunnels, in namespaces of their own.

mod contender;
mod gaps;
mod measure;
mod report;
mod stage;

use clap::{Args, ValueEnum};

use self::contender::Contender;
pub(crate) use self::report::Row;
use crate::table::{Contender as _, Table};

/// All figures of a run.
pub(crate) type Report = Table<Row>;

/// Rows that are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Links {
    /// Pairs of veth: bulk TCP, its cost, ping
    Fast,
    /// 100 Mbit/s, 20 ms: ping beside bulk TCP
    Slow,
    /// 100 Mbit/s, 50 ms, 1 % lost: bulk TCP
    Lossy,
    /// Pairs of veth, a peer's address that changes, a hub that starts again or falls silent: longest gaps
    Broken,
    /// Many peers that say nothing
    Idle,
}

/// How tunnels are measured.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Tunnels to measure, in this order in each round
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Contender::ALL.to_vec())]
    tunnels: Vec<Contender>,
    /// Links on which tunnels are measured
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Links::Fast, Links::Slow, Links::Lossy, Links::Broken, Links::Idle])]
    links: Vec<Links>,
    /// How many peers a hub has that say nothing
    #[arg(long, default_value_t = 1000)]
    idle_peers: u16,
}

impl Options {
    /// Takes a round of all figures, one tunnel after the other. What cannot be taken is told and left out.
    pub(crate) fn round(&self, seconds: u32, report: &mut Report) {
        for links in self.links.iter().copied().filter(|links| *links != Links::Idle) {
            for contender in self.tunnels.iter().copied() {
                eprintln!("  {links:?} links: {}", contender.name());
                let figures = match links {
                    Links::Fast => measure::fast(contender, seconds),
                    Links::Slow => measure::slow(contender, seconds),
                    Links::Lossy | Links::Idle => measure::lossy(contender, seconds),
                    Links::Broken => gaps::broken(contender),
                };
                add(report, contender, figures);
            }
        }
    }

    /// Takes the figures that need no rounds.
    pub(crate) fn once(&self, report: &mut Report) {
        if self.links.contains(&Links::Idle) && self.tunnels.contains(&Contender::Netyard) {
            eprintln!("{} idle peers", self.idle_peers);
            add(report, Contender::Netyard, measure::idle(self.idle_peers));
        }
    }
}

fn add(report: &mut Report, contender: Contender, figures: Result<measure::Figures, String>) {
    match figures {
        Ok(figures) => report.add(contender, figures),
        Err(message) => eprintln!("{}: {message}", contender.name()),
    }
}
