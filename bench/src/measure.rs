//! The measures.

use std::fmt;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use netyard_testbed::traffic::Latency;
use netyard_testbed::{Background, Outside, binary, output, peer};
use serde::{Deserialize, Serialize};

use crate::engine::{FORWARDED, Running};
use crate::process::resident;
use crate::processors::Processors;

/// Port of `netyard-traffic serve` in the outside.
const TRAFFIC_PORT: u16 = 7000;

/// Round trips on one connection for each figure.
const ROUND_TRIPS: u32 = 20_000;

/// Whole connections for each figure; far fewer than there are ports, which stay occupied for a
/// minute after a close.
const CONNECTIONS: u32 = 3_000;

/// Connections that are open while memory is read.
const HELD: u32 = 1_000;

/// What a guest connects to.
pub(crate) fn server() -> SocketAddr {
    (Outside::ADDRESS4, TRAFFIC_PORT).into()
}

/// The servers in the outside; they end when this value goes.
pub(crate) struct Servers {
    bulk: Background,
    traffic: Background,
}

impl Servers {
    /// Starts them and waits until they listen.
    pub(crate) fn start(outside: &Outside) -> Self {
        let deadline = Duration::from_secs(10);
        let mut bulk =
            Background::start(outside.command(peer("iperf3")).args(["-s", "--forceflush"]));
        bulk.wait_for_line("listening", deadline);
        let mut traffic = outside.command(binary("netyard-traffic"));
        let mut traffic = Background::start(traffic.arg("serve").arg(server().to_string()));
        traffic.wait_for_line("listening", deadline);
        Self { bulk, traffic }
    }

    /// Their process ids.
    pub(crate) fn processes(&self) -> [u32; 2] {
        [self.bulk.id(), self.traffic.id()]
    }
}

/// How the stage is set for some of the measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    /// MTU of guest and veth, bytes.
    pub(crate) mtu: u32,
    /// Where everything runs.
    pub(crate) processors: Processors,
}

impl Setting {
    const USUAL: Self = Self { mtu: 1500, processors: Processors::All };
    const ONE: Self = Self { mtu: 1500, processors: Processors::One };
    const JUMBO: Self = Self { mtu: 65_520, processors: Processors::All };

    /// All, in the order of the run.
    pub(crate) const ALL: [Self; 3] = [Self::USUAL, Self::ONE, Self::JUMBO];
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MTU {}, {}", self.mtu, self.processors)
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    /// Bulk TCP from the guest, MTU 1500, Gbit/s
    GuestToHost,
    /// Bulk TCP to the guest, MTU 1500, Gbit/s
    HostToGuest,
    /// Bulk TCP from the guest, MTU 65520, Gbit/s
    GuestToHostJumbo,
    /// Bulk TCP to the guest, MTU 65520, Gbit/s
    HostToGuestJumbo,
    /// Half of the TCP round trips are faster, microseconds
    RoundTripP50,
    /// 99 % of the TCP round trips are faster, microseconds
    RoundTripP99,
    /// TCP connect, request, answer, close; one after the other; per second
    ConnectionRate,
    /// Bulk TCP from the host's loopback into the guest, Gbit/s
    ForwardIn,
    /// Bulk TCP out of the guest to the host's loopback, Gbit/s
    ForwardOut,
    /// Connections from the host's loopback into the guest, as above
    ForwardRate,
    /// Resident memory of the engine with 1,000 open connections, MiB
    Memory,
}

impl Measure {
    /// All, in the order of the table.
    pub(crate) const ALL: [Self; 11] = [
        Self::GuestToHost,
        Self::HostToGuest,
        Self::GuestToHostJumbo,
        Self::HostToGuestJumbo,
        Self::RoundTripP50,
        Self::RoundTripP99,
        Self::ConnectionRate,
        Self::ForwardIn,
        Self::ForwardOut,
        Self::ForwardRate,
        Self::Memory,
    ];

    /// How the stage is set for it.
    pub(crate) fn setting(self) -> Setting {
        match self {
            Self::GuestToHostJumbo | Self::HostToGuestJumbo => Setting::JUMBO,
            Self::RoundTripP50 | Self::RoundTripP99 | Self::ConnectionRate | Self::ForwardRate => {
                Setting::ONE
            }
            Self::GuestToHost
            | Self::HostToGuest
            | Self::ForwardIn
            | Self::ForwardOut
            | Self::Memory => Setting::USUAL,
        }
    }

    /// Whether more is better.
    pub(crate) fn more_is_better(self) -> bool {
        !matches!(self, Self::RoundTripP50 | Self::RoundTripP99 | Self::Memory)
    }

    /// The unit.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::GuestToHost
            | Self::HostToGuest
            | Self::GuestToHostJumbo
            | Self::HostToGuestJumbo
            | Self::ForwardIn
            | Self::ForwardOut => "Gbit/s",
            Self::RoundTripP50 | Self::RoundTripP99 => "us",
            Self::ConnectionRate | Self::ForwardRate => "1/s",
            Self::Memory => "MiB",
        }
    }

    /// Takes the figure once; `None` where it has no meaning (the memory of no engine).
    ///
    /// # Errors
    /// What went wrong, for people.
    pub(crate) fn take(self, running: &Running, seconds: u32) -> Result<Option<f64>, String> {
        match self {
            Self::GuestToHost | Self::GuestToHostJumbo => bulk(running, seconds, &[]).map(Some),
            Self::HostToGuest | Self::HostToGuestJumbo => bulk(running, seconds, &["-R"]).map(Some),
            Self::RoundTripP50 => round_trips(running).map(|latency| Some(latency.p50)),
            Self::RoundTripP99 => round_trips(running).map(|latency| Some(latency.p99)),
            Self::ConnectionRate => {
                latency(running, "connections", CONNECTIONS).map(|latency| Some(latency.rate))
            }
            Self::ForwardIn | Self::ForwardOut | Self::ForwardRate
                if !running.engine.forwards() =>
            {
                Ok(None)
            }
            Self::ForwardIn => forwarded(running, seconds, &[]).map(Some),
            Self::ForwardOut => forwarded(running, seconds, &["-R"]).map(Some),
            Self::ForwardRate => forwarded_connections(running).map(|latency| Some(latency.rate)),
            Self::Memory => memory(running),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestToHost => "TCP guest->host, MTU 1500",
            Self::HostToGuest => "TCP host->guest, MTU 1500",
            Self::GuestToHostJumbo => "TCP guest->host, MTU 65520",
            Self::HostToGuestJumbo => "TCP host->guest, MTU 65520",
            Self::RoundTripP50 => "TCP round trip, p50",
            Self::RoundTripP99 => "TCP round trip, p99",
            Self::ConnectionRate => "TCP connections",
            Self::ForwardIn => "TCP forward, into guest",
            Self::ForwardOut => "TCP forward, out of guest",
            Self::ForwardRate => "TCP forward, connections",
            Self::Memory => "memory, 1,000 connections",
        })
    }
}

/// One iperf3 stream; what the receiver got, Gbit/s.
fn bulk(running: &Running, seconds: u32, direction: &[&str]) -> Result<f64, String> {
    let server = Outside::ADDRESS4.to_string();
    stream(running.command(&peer("timeout")), seconds, &[direction, &["-c", &server]].concat())
}

/// The same from the host's loopback to a server in the guest.
fn forwarded(running: &Running, seconds: u32, direction: &[&str]) -> Result<f64, String> {
    let port = FORWARDED.to_string();
    let mut server = running.command(&peer("iperf3"));
    let mut server = Background::start(server.args(["-s", "--forceflush", "-p", &port]));
    server.wait_for_line("listening", Duration::from_secs(10));
    let arguments = [direction, &["-c", "127.0.0.1", "-p", &port]].concat();
    stream(Command::new(peer("timeout")), seconds, &arguments)
}

fn forwarded_connections(running: &Running) -> Result<Latency, String> {
    let mut server = running.command(&binary("netyard-traffic"));
    let mut server = Background::start(server.arg("serve").arg(format!("0.0.0.0:{FORWARDED}")));
    server.wait_for_line("listening", Duration::from_secs(10));
    let mut client = Command::new(binary("netyard-traffic"));
    client.arg("connections").arg(format!("127.0.0.1:{FORWARDED}"));
    client.args(["--count", &CONNECTIONS.to_string()]);
    serde_json::from_value(json(&mut client)?).map_err(|error| error.to_string())
}

/// One iperf3 stream by a `timeout` command.
fn stream(mut command: Command, seconds: u32, arguments: &[&str]) -> Result<f64, String> {
    // The first second is left out: it belongs to slow start.
    let limit = (seconds + 20).to_string();
    command.arg(limit).arg(peer("iperf3")).args(["-J", "-O1", "-C", "cubic"]);
    command.args(["-t", &seconds.to_string()]).args(arguments);
    let answer = json(&mut command)?;
    answer["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .map(|bits| bits / 1e9)
        .ok_or_else(|| format!("iperf3 said {}", answer["error"]))
}

fn round_trips(running: &Running) -> Result<Latency, String> {
    latency(running, "round-trips", ROUND_TRIPS)
}

fn latency(running: &Running, verb: &str, count: u32) -> Result<Latency, String> {
    let mut command = running.command(&binary("netyard-traffic"));
    command.arg(verb).arg(server().to_string()).args(["--count", &count.to_string()]);
    serde_json::from_value(json(&mut command)?).map_err(|error| error.to_string())
}

fn memory(running: &Running) -> Result<Option<f64>, String> {
    let Some(process) = running.process else { return Ok(None) };
    let mut command = running.command(&binary("netyard-traffic"));
    command.arg("hold").arg(server().to_string()).args(["--count", &HELD.to_string()]);
    let mut holder = Background::start(&mut command);
    holder.wait_for_line("holding", Duration::from_secs(30));
    resident(process).map(|kib| Some(kib / 1024.0)).ok_or_else(|| "the engine is gone".to_owned())
}

fn json(command: &mut Command) -> Result<serde_json::Value, String> {
    let done = output(command);
    serde_json::from_slice(&done.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        format!("{command:?} failed ({}): {said}", done.status)
    })
}
