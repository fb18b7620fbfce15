//! The figures of user mode, where the run took place, and the two ways to print them.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use netyard_testbed::{output, peer};
use serde::Serialize;

use crate::engine::Engine;
use crate::figures::{Figure, Samples};
use crate::measure::Measure;
use crate::{bridge, nic, stack, tunnel};

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Report {
    samples: Samples<Measure, Engine>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    machine: Machine,
    rows: Vec<Row>,
    bridge_mode: &'a bridge::Report,
    cards_and_nat: &'a nic::Report,
    tunnels: &'a tunnel::Report,
    stacks: &'a stack::Report,
}

/// Where the run took place.
#[derive(Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    /// First line of what each program says to `--version`.
    versions: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Row {
    measure: Measure,
    unit: &'static str,
    more_is_better: bool,
    figures: BTreeMap<Engine, Figure>,
}

impl Report {
    /// Adds one round's figures of an engine.
    pub(crate) fn add(&mut self, engine: Engine, figures: BTreeMap<Measure, f64>) {
        self.samples.add(engine, figures);
    }

    /// Prints one JSON value, with the rows of bridge mode, of cards and NAT, of tunnels and of stacks.
    pub(crate) fn print_json(
        &self,
        bridge: &bridge::Report,
        nic: &nic::Report,
        tunnel: &tunnel::Report,
        stack: &stack::Report,
    ) {
        let rows = self.samples.figures().map(|(measure, figures)| Row {
            measure,
            unit: measure.unit(),
            more_is_better: measure.more_is_better(),
            figures,
        });
        let document = Document {
            machine: Machine::look(),
            rows: rows.collect(),
            bridge_mode: bridge,
            cards_and_nat: nic,
            tunnels: tunnel,
            stacks: stack,
        };
        match serde_json::to_string_pretty(&document) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("cannot print the figures: {error}"),
        }
    }

    /// Prints a table for people: medians, netyard's ratio to veth and to the best peer, and what
    /// is promised; nothing if there is no row.
    pub(crate) fn print(&self) {
        if self.samples.is_empty() {
            return;
        }
        print!("{:<27}{:>7}", "user mode", "");
        for engine in Engine::ALL {
            print!("{:>13}", engine.to_string());
        }
        println!("{:>9}{:>11}  promise", "/ veth", "/ best");
        for (measure, medians) in self.samples.medians() {
            let of = |engine: Engine| medians.get(&engine).copied();
            print!("{:<27}{:>7}", measure.to_string(), measure.unit());
            for engine in Engine::ALL {
                match of(engine) {
                    Some(figure) => print!("{figure:>13.2}"),
                    None => print!("{:>13}", "-"),
                }
            }
            let peers = [Engine::Pasta, Engine::Slirp4netns].into_iter().filter_map(of);
            let best = peers.reduce(if measure.more_is_better() { f64::max } else { f64::min });
            let ratio = |other: Option<f64>| match (of(Engine::Netyard), other) {
                (Some(ours), Some(other)) => format!("{:.2}", ours / other),
                _ => "-".to_owned(),
            };
            let verdict = of(Engine::Netyard)
                .and_then(|ours| promise(measure, ours, of(Engine::Veth), best))
                .map_or("", |kept| if kept { "kept" } else { "MISSED" });
            println!("{:>9}{:>11}  {verdict}", ratio(of(Engine::Veth)), ratio(best));
        }
    }
}

/// Whether netyard keeps what the README of this folder promises; `None` where it promises
/// nothing, or what is needed for the comparison was not measured.
fn promise(measure: Measure, ours: f64, veth: Option<f64>, best: Option<f64>) -> Option<bool> {
    match measure {
        Measure::GuestToHost | Measure::HostToGuest => {
            Some(ours >= 10.0 || veth.is_some_and(|veth| ours >= veth / 3.0))
        }
        Measure::RoundTripP50 => best.map(|best| ours <= 1.2 * best),
        Measure::ForwardIn | Measure::ForwardOut => best.map(|best| ours >= 0.95 * best),
        Measure::Memory => Some(ours < 16.0),
        _ => None,
    }
}

impl Machine {
    /// Prints what was measured where.
    pub(crate) fn print() {
        let machine = Self::look();
        println!("{}, {} x {}", machine.kernel, machine.processors, machine.processor);
        for version in machine.versions.values() {
            println!("{version}");
        }
        println!();
    }

    fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processors = read("/proc/cpuinfo");
        let models = processors.lines().filter_map(|line| line.strip_prefix("model name"));
        let models: Vec<_> = models.map(|rest| rest.trim_start_matches([' ', '\t', ':'])).collect();
        let version = |program: &str| {
            let done = output(Command::new(peer(program)).arg("--version"));
            let text = String::from_utf8_lossy(&done.stdout).into_owned();
            text.lines().next().unwrap_or_default().to_owned()
        };
        Self {
            kernel: read("/proc/version").split(' ').take(3).collect::<Vec<_>>().join(" "),
            processor: models.first().copied().unwrap_or("unknown").to_owned(),
            processors: models.len(),
            versions: ["pasta", "slirp4netns", "iperf3"].map(|name| (name, version(name))).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises() {
        assert_eq!(promise(Measure::GuestToHost, 10.0, Some(99.0), None), Some(true));
        assert_eq!(promise(Measure::HostToGuest, 5.0, Some(15.0), None), Some(true));
        assert_eq!(promise(Measure::HostToGuest, 4.9, Some(15.0), None), Some(false));
        assert_eq!(promise(Measure::RoundTripP50, 12.0, None, Some(10.0)), Some(true));
        assert_eq!(promise(Measure::RoundTripP50, 12.1, None, Some(10.0)), Some(false));
        assert_eq!(promise(Measure::RoundTripP50, 12.1, None, None), None);
        assert_eq!(promise(Measure::ForwardIn, 9.5, None, Some(10.0)), Some(true));
        assert_eq!(promise(Measure::ForwardOut, 9.4, None, Some(10.0)), Some(false));
        assert_eq!(promise(Measure::Memory, 16.0, None, None), Some(false));
        assert_eq!(promise(Measure::ConnectionRate, 1.0, None, None), None);
    }
}
