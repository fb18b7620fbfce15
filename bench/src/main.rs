//! Measures netyard beside other networks, in one run: see README.md in this folder for what is
//! measured and how.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod alone;
mod bridge;
mod engine;
mod figures;
mod link;
mod measure;
mod nic;
mod process;
mod processors;
mod report;
mod stack;
mod table;
mod take;
mod tunnel;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use netyard_testbed::{Outside, isolate_main, peer, run};

use crate::bridge::Group;
use crate::engine::{Engine, Running};
use crate::measure::{Measure, Servers, Setting};
use crate::processors::Processors;
use crate::report::{Machine, Report};

/// Measure netyard beside other networks
#[derive(Debug, Parser)]
#[command(name = "bench/run")]
struct Arguments {
    /// Modes to measure
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Mode::User, Mode::Bridge, Mode::Nic, Mode::Tunnel, Mode::Stack])]
    modes: Vec<Mode>,
    /// Engines to measure in user mode, in this order in each round
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Engine::ALL)]
    engines: Vec<Engine>,
    /// What to measure in user mode
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Measure::ALL)]
    measures: Vec<Measure>,
    /// What to measure in bridge mode
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Group::ALL)]
    groups: Vec<Group>,
    #[command(flatten)]
    bridge: bridge::Options,
    #[command(flatten)]
    tunnel: tunnel::Options,
    #[command(flatten)]
    stack: stack::Options,
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

/// How a network works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Without privilege
    User,
    /// On bridges of the kernel
    Bridge,
    /// The machine's cards, their external addresses, NAT
    Nic,
    /// Hub and peers
    Tunnel,
    /// The stack inside a program
    Stack,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(code) = arguments.bridge.contend(arguments.seconds) {
        return code;
    }
    if let Some(code) = arguments.stack.play(arguments.seconds) {
        return code;
    }
    if let Some(code) = isolate_main() {
        return code;
    }
    let has = |mode| arguments.modes.contains(&mode);
    let user = if has(Mode::User) { measure_user_mode(&arguments) } else { Report::default() };
    let bridge =
        if has(Mode::Bridge) { measure_bridge_mode(&arguments) } else { Default::default() };
    let nic = if has(Mode::Nic) { measure_nic(&arguments) } else { Default::default() };
    let tunnel = if has(Mode::Tunnel) { measure_tunnels(&arguments) } else { Default::default() };
    let stack = if has(Mode::Stack) { measure_stacks(&arguments) } else { Default::default() };
    if arguments.json {
        user.print_json(&bridge, &nic, &tunnel, &stack);
        return ExitCode::SUCCESS;
    }
    Machine::print();
    user.print();
    bridge.print();
    nic.print();
    tunnel.print();
    stack.print();
    ExitCode::SUCCESS
}

fn measure_user_mode(arguments: &Arguments) -> Report {
    let outside = Outside::new();
    outside.set_congestion_control("cubic");
    // Tens of thousands of connections of a minute must not use up the ports of all engines' sockets.
    for setting in ["net.ipv4.ip_local_port_range=10000 65000", "net.ipv4.tcp_tw_reuse=1"] {
        run(Command::new(peer("sysctl")).args(["-q", "-w", setting]));
    }
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
    Processors::All.use_for(&[]);
    report
}

fn measure_nic(arguments: &Arguments) -> nic::Report {
    let mut report = nic::Report::default();
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}: cards and NAT", arguments.rounds);
        report.round();
    }
    report
}

fn measure_tunnels(arguments: &Arguments) -> tunnel::Report {
    let mut report = tunnel::Report::default();
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}: tunnels", arguments.rounds);
        arguments.tunnel.round(arguments.seconds, &mut report);
    }
    arguments.tunnel.once(&mut report);
    report
}

fn measure_stacks(arguments: &Arguments) -> stack::Report {
    let mut report = stack::Report::default();
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}: stacks", arguments.rounds);
        arguments.stack.round(arguments.seconds, &mut report);
    }
    report
}

fn measure_bridge_mode(arguments: &Arguments) -> bridge::Report {
    let mut report = bridge::Report::default();
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}: bridge mode", arguments.rounds);
        for group in &arguments.groups {
            arguments.bridge.round(*group, arguments.seconds, &mut report);
        }
    }
    report
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
