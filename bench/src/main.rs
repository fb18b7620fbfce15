//! Measures netyard beside the kernel's veth, pasta and slirp4netns, in one run: see README.md in
//! this folder for what is measured and how.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod engine;
mod measure;
mod processors;
mod report;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Parser;
use netyard_testbed::{Outside, isolate_main};

use crate::engine::{Engine, Running};
use crate::measure::{Measure, Servers, Setting};
use crate::report::Report;

/// Measure netyard beside other user-mode networks
#[derive(Debug, Parser)]
#[command(name = "bench/run")]
struct Arguments {
    /// Engines to measure, in this order in each round
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Engine::ALL)]
    engines: Vec<Engine>,
    /// What to measure
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Measure::ALL)]
    measures: Vec<Measure>,
    /// How often each figure is taken; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of one bulk transfer, seconds
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(code) = isolate_main() {
        return code;
    }
    let outside = Outside::new();
    outside.set_congestion_control("cubic");
    let servers = Servers::start(&outside);
    let mut report = Report::default();
    for round in 1..=arguments.rounds {
        for setting in Setting::ALL {
            let measures = arguments.measures.iter().copied();
            let measures: Vec<_> =
                measures.filter(|measure| measure.setting() == setting).collect();
            if measures.is_empty() {
                continue;
            }
            let Setting { mtu, processors } = setting;
            outside.set_mtu(mtu);
            processors.use_for(&servers.processes());
            for engine in &arguments.engines {
                eprintln!("round {round} of {}: {engine}, {setting}", arguments.rounds);
                let figures = take(*engine, mtu, &measures, arguments.seconds);
                report.add(*engine, figures);
            }
        }
    }
    if arguments.json {
        report.print_json()
    } else {
        report.print_table()
    }
    ExitCode::SUCCESS
}

/// All figures of one engine at one MTU. What cannot be taken is told and left out.
fn take(engine: Engine, mtu: u32, measures: &[Measure], seconds: u32) -> BTreeMap<Measure, f64> {
    let running = match Running::start(engine, mtu) {
        Ok(running) => running,
        Err(message) => {
            eprintln!("{engine} did not start: {message}");
            return BTreeMap::new();
        }
    };
    let mut figures = BTreeMap::new();
    for measure in measures {
        match measure.take(&running, seconds) {
            Ok(Some(figure)) => {
                figures.insert(*measure, figure);
            }
            Ok(None) => {}
            Err(message) => eprintln!("{engine}, {measure}: {message}"),
        }
    }
    figures
}
