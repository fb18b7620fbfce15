//! The stack inside a program beside another one, and beside the kernel.

mod client;
mod contender;
mod kernel;
mod measure;
mod ours;
mod report;
mod smol;
mod stage;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use self::contender::{Contender, Program};
use self::report::Row;
use crate::table::{self, Table};

/// All figures of a run.
pub(crate) type Report = Table<Row>;

/// Rows that are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Loads {
    /// One stream each way
    Bulk,
    /// One byte there and back
    RoundTrip,
    /// Thousands of connections
    Many,
    /// A long way that loses packets
    Lossy,
}

/// How stacks are measured.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Stacks to measure, in this order in each round
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = <Contender as table::Contender>::ALL.to_vec())]
    stacks: Vec<Contender>,
    /// What stacks are measured with
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Loads::Bulk, Loads::RoundTrip, Loads::Many, Loads::Lossy])]
    loads: Vec<Loads>,
    /// For a part of the stage that is a process of its own
    #[arg(long, hide = true)]
    stack_program: Option<Program>,
}

impl Options {
    /// What came of a part of the stage, if this is one.
    pub(crate) fn play(&self, seconds: u32) -> Option<ExitCode> {
        match self.stack_program?.run(seconds) {
            Ok(()) => Some(ExitCode::SUCCESS),
            Err(error) => {
                eprintln!("{error}");
                Some(ExitCode::FAILURE)
            }
        }
    }

    /// Takes a round of all figures, one stack after the other. What cannot be taken is told and left out.
    pub(crate) fn round(&self, seconds: u32, report: &mut Report) {
        for load in &self.loads {
            for contender in self.stacks.iter().copied() {
                eprintln!("  {load:?}: {contender}");
                let figures = match load {
                    Loads::Bulk => measure::bulk(contender, seconds),
                    Loads::RoundTrip => measure::round_trip(contender),
                    Loads::Many => measure::many(contender, seconds),
                    Loads::Lossy => measure::lossy(contender, seconds),
                };
                match figures {
                    Ok(figures) => report.add(contender, figures),
                    Err(error) => eprintln!("{contender}: {error}"),
                }
            }
        }
    }
}
