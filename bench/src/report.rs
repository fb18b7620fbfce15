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
        print!("{:<31}{:>7}", "user mode", "");
        for engine in Engine::ALL {
            print!("{:>13}", engine.to_string());
        }
        println!("{:>9}{:>11}  promise", "/ veth", "/ best");
        for (measure, medians) in self.samples.medians() {
            let of = |engine: Engine| medians.get(&engine).copied();
            print!("{:<31}{:>7}", measure.to_string(), measure.unit());
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
    let veth = |part: f64| veth.map(|veth| ours >= part * veth);
    let more = |times: f64| best.map(|best| ours >= times * best);
    let less = |times: f64| best.map(|best| ours <= times * best);
    let both = |one: Option<bool>, other: Option<bool>| Some(one? && other?);
    match measure {
        Measure::GuestToHost | Measure::HostToGuest => both(veth(0.5), more(5.0)),
        Measure::GuestToHostFour | Measure::HostToGuestFour => veth(0.5),
        Measure::GuestToHostCost | Measure::HostToGuestCost => {
            both(Some(ours <= 0.5), less(1.0 / 3.0))
        }
        Measure::GuestToHostJumbo | Measure::HostToGuestJumbo => more(1.0),
        Measure::GuestToHostDatagrams
        | Measure::HostToGuestDatagrams
        | Measure::ConnectionRate
        | Measure::ConnectionRateMany
        | Measure::ForwardRate
        | Measure::ForwardRateMany => more(1.5),
        Measure::RoundTripP50
        | Measure::RoundTripP99
        | Measure::DatagramP50
        | Measure::DatagramP99 => less(1.0),
        Measure::ForwardIn | Measure::ForwardOut => more(0.95),
        Measure::Start => Some(ours <= 10.0),
        Measure::MemoryIdle => Some(ours < 8.0),
        Measure::Memory | Measure::MemoryMany => Some(ours < 16.0),
        Measure::WorkAmongMany | Measure::WorkAmongMost => Some(ours <= 1.15),
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
        assert_eq!(promise(Measure::GuestToHost, 10.0, Some(20.0), Some(2.0)), Some(true));
        assert_eq!(promise(Measure::HostToGuest, 9.9, Some(20.0), Some(1.0)), Some(false));
        assert_eq!(promise(Measure::HostToGuest, 10.0, Some(20.0), Some(2.1)), Some(false));
        assert_eq!(promise(Measure::HostToGuest, 10.0, Some(20.0), None), None);
        assert_eq!(promise(Measure::HostToGuestFour, 10.0, Some(20.0), None), Some(true));
        assert_eq!(promise(Measure::GuestToHostCost, 0.39, None, Some(1.2)), Some(true));
        assert_eq!(promise(Measure::GuestToHostCost, 0.6, None, Some(9.0)), Some(false));
        assert_eq!(promise(Measure::RoundTripP50, 10.0, None, Some(10.0)), Some(true));
        assert_eq!(promise(Measure::RoundTripP50, 10.1, None, Some(10.0)), Some(false));
        assert_eq!(promise(Measure::RoundTripP50, 10.1, None, None), None);
        assert_eq!(promise(Measure::ForwardIn, 9.5, None, Some(10.0)), Some(true));
        assert_eq!(promise(Measure::ForwardOut, 9.4, None, Some(10.0)), Some(false));
        assert_eq!(promise(Measure::Memory, 16.0, None, None), Some(false));
        assert_eq!(promise(Measure::ConnectionRate, 1.0, None, None), None);
        assert_eq!(promise(Measure::ConnectionRate, 3.0, None, Some(2.0)), Some(true));
        assert_eq!(promise(Measure::Start, 10.1, None, None), Some(false));
    }
}
