//! The measures.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use netyard_testbed::{Background, Outside, binary, peer};
use serde::{Deserialize, Serialize};

use crate::alone;
use crate::engine::{Engine, Running};
use crate::processors::Processors;
use crate::take::{self, Direction};

/// Port of `netyard-traffic serve` in the outside.
const TRAFFIC_PORT: u16 = 7000;

/// Connections that are open at once: some, and as many as there is to be room for.
const SOME: u32 = 1_000;
const MANY: u32 = 10_000;
const MOST: u32 = 100_000;

/// Clients that connect at once.
const AT_ONCE: u32 = 32;

/// Streams at once.
const STREAMS: u32 = 4;

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
        // Of all addresses of the outside, it answers datagrams from this one.
        let at = server().ip().to_string();
        let mut bulk = Background::start(outside.command(peer("iperf3")).args([
            "-s",
            "--forceflush",
            "-B",
            &at,
        ]));
        bulk.wait_for_line("listening", deadline);
        let mut traffic = outside.command(peer("prlimit"));
        traffic.arg(take::MANY_FILES).arg(binary("netyard-traffic"));
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
    /// Four streams from the guest, MTU 1500, Gbit/s
    GuestToHostFour,
    /// Four streams to the guest, MTU 1500, Gbit/s
    HostToGuestFour,
    /// Processor time of the engine for bulk TCP from the guest, MTU 1500, seconds for each GB
    GuestToHostCost,
    /// Processor time of the engine for bulk TCP to the guest, MTU 1500, seconds for each GB
    HostToGuestCost,
    /// Bulk TCP from the guest, MTU 65520, Gbit/s
    GuestToHostJumbo,
    /// Bulk TCP to the guest, MTU 65520, Gbit/s
    HostToGuestJumbo,
    /// Datagrams of 1,400 bytes from the guest: the highest rate with less than 0.5 % lost, Mbit/s
    GuestToHostDatagrams,
    /// Datagrams of 1,400 bytes to the guest: the highest rate with less than 0.5 % lost, Mbit/s
    HostToGuestDatagrams,
    /// Half of the TCP round trips are faster, microseconds
    RoundTripP50,
    /// 99 % of the TCP round trips are faster, microseconds
    RoundTripP99,
    /// Half of the UDP round trips are faster, microseconds
    DatagramP50,
    /// 99 % of the UDP round trips are faster, microseconds
    DatagramP99,
    /// TCP connect, request, answer, close; one after the other; per second
    ConnectionRate,
    /// The same by 32 clients at once
    ConnectionRateMany,
    /// Bulk TCP from the host's loopback into the guest, Gbit/s
    ForwardIn,
    /// Bulk TCP out of the guest to the host's loopback, Gbit/s
    ForwardOut,
    /// Connections from the host's loopback into the guest, as above
    ForwardRate,
    /// The same by 32 clients at once
    ForwardRateMany,
    /// From the start of the engine to the first connection of a program in a namespace, milliseconds
    Start,
    /// Resident memory of the engine that has done nothing yet, MiB
    MemoryIdle,
    /// Resident memory of the engine with 1,000 open connections, MiB
    Memory,
    /// Resident memory of the engine with 10,000 open connections, MiB
    MemoryMany,
    /// What a round trip costs the engine among 10,000 open connections, in terms of what it costs among 10
    WorkAmongMany,
    /// The same among 100,000, of netyard's engine alone: guest and host are in its memory
    WorkAmongMost,
}

impl Measure {
    /// All, in the order of the table.
    pub(crate) const ALL: [Self; 26] = [
        Self::GuestToHost,
        Self::HostToGuest,
        Self::GuestToHostFour,
        Self::HostToGuestFour,
        Self::GuestToHostCost,
        Self::HostToGuestCost,
        Self::GuestToHostJumbo,
        Self::HostToGuestJumbo,
        Self::GuestToHostDatagrams,
        Self::HostToGuestDatagrams,
        Self::RoundTripP50,
        Self::RoundTripP99,
        Self::DatagramP50,
        Self::DatagramP99,
        Self::ConnectionRate,
        Self::ConnectionRateMany,
        Self::ForwardIn,
        Self::ForwardOut,
        Self::ForwardRate,
        Self::ForwardRateMany,
        Self::Start,
        Self::MemoryIdle,
        Self::Memory,
        Self::MemoryMany,
        Self::WorkAmongMany,
        Self::WorkAmongMost,
    ];

    /// How the stage is set for it.
    pub(crate) fn setting(self) -> Setting {
        match self {
            Self::GuestToHostJumbo | Self::HostToGuestJumbo => Setting::JUMBO,
            Self::RoundTripP50
            | Self::RoundTripP99
            | Self::DatagramP50
            | Self::DatagramP99
            | Self::ConnectionRate
            | Self::ForwardRate
            | Self::WorkAmongMany
            | Self::WorkAmongMost => Setting::ONE,
            _ => Setting::USUAL,
        }
    }

    /// Whether more is better.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self.unit(), "Gbit/s" | "Mbit/s" | "1/s")
    }

    /// The unit.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::GuestToHost
            | Self::HostToGuest
            | Self::GuestToHostFour
            | Self::HostToGuestFour
            | Self::GuestToHostJumbo
            | Self::HostToGuestJumbo
            | Self::ForwardIn
            | Self::ForwardOut => "Gbit/s",
            Self::GuestToHostCost | Self::HostToGuestCost => "s/GB",
            Self::GuestToHostDatagrams | Self::HostToGuestDatagrams => "Mbit/s",
            Self::RoundTripP50 | Self::RoundTripP99 | Self::DatagramP50 | Self::DatagramP99 => "us",
            Self::ConnectionRate
            | Self::ConnectionRateMany
            | Self::ForwardRate
            | Self::ForwardRateMany => "1/s",
            Self::Start => "ms",
            Self::MemoryIdle | Self::Memory | Self::MemoryMany => "MiB",
            Self::WorkAmongMany | Self::WorkAmongMost => "x",
        }
    }

    /// Takes the figure once; `None` where it has no meaning (the memory of no engine).
    ///
    /// # Errors
    /// What went wrong, for people.
    pub(crate) fn take(self, running: &Running, seconds: u32) -> Result<Option<f64>, String> {
        use Direction::{In, Out};
        match self {
            Self::GuestToHost | Self::GuestToHostJumbo => {
                take::bulk(running, seconds, Out, 1).map(Some)
            }
            Self::HostToGuest | Self::HostToGuestJumbo => {
                take::bulk(running, seconds, In, 1).map(Some)
            }
            Self::GuestToHostFour => take::bulk(running, seconds, Out, STREAMS).map(Some),
            Self::HostToGuestFour => take::bulk(running, seconds, In, STREAMS).map(Some),
            Self::GuestToHostCost => take::cost(running, seconds, Out),
            Self::HostToGuestCost => take::cost(running, seconds, In),
            Self::GuestToHostDatagrams => take::datagram_rate(running, Out).map(Some),
            Self::HostToGuestDatagrams => take::datagram_rate(running, In).map(Some),
            Self::RoundTripP50 => take::round_trips(running).map(|latency| Some(latency.p50)),
            Self::RoundTripP99 => take::round_trips(running).map(|latency| Some(latency.p99)),
            Self::DatagramP50 => take::datagrams(running).map(|latency| Some(latency.p50)),
            Self::DatagramP99 => take::datagrams(running).map(|latency| Some(latency.p99)),
            Self::ConnectionRate => take::connections(running, 1).map(Some),
            Self::ConnectionRateMany => take::connections(running, AT_ONCE).map(Some),
            Self::ForwardIn | Self::ForwardOut | Self::ForwardRate | Self::ForwardRateMany
                if !running.engine.forwards() =>
            {
                Ok(None)
            }
            Self::ForwardIn => take::forwarded(running, seconds, Out).map(Some),
            Self::ForwardOut => take::forwarded(running, seconds, In).map(Some),
            Self::ForwardRate => take::forwarded_connections(running, 1).map(Some),
            Self::ForwardRateMany => take::forwarded_connections(running, AT_ONCE).map(Some),
            Self::Start => take::start(running.engine),
            Self::MemoryIdle => take::memory(running, 0),
            Self::Memory => take::memory(running, SOME),
            Self::MemoryMany => take::memory(running, MANY),
            Self::WorkAmongMany => take::work_among(running, MANY),
            Self::WorkAmongMost if running.engine != Engine::Netyard => Ok(None),
            Self::WorkAmongMost => Ok(Some(alone::work_among(MOST))),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestToHost => "TCP guest->host, MTU 1500",
            Self::HostToGuest => "TCP host->guest, MTU 1500",
            Self::GuestToHostFour => "4 x TCP guest->host",
            Self::HostToGuestFour => "4 x TCP host->guest",
            Self::GuestToHostCost => "processor, guest->host",
            Self::HostToGuestCost => "processor, host->guest",
            Self::GuestToHostJumbo => "TCP guest->host, MTU 65520",
            Self::HostToGuestJumbo => "TCP host->guest, MTU 65520",
            Self::GuestToHostDatagrams => "UDP guest->host, < 0.5 %",
            Self::HostToGuestDatagrams => "UDP host->guest, < 0.5 %",
            Self::RoundTripP50 => "TCP round trip, p50",
            Self::RoundTripP99 => "TCP round trip, p99",
            Self::DatagramP50 => "UDP round trip, p50",
            Self::DatagramP99 => "UDP round trip, p99",
            Self::ConnectionRate => "TCP connections",
            Self::ConnectionRateMany => "TCP connections, 32 at once",
            Self::ForwardIn => "TCP forward, into guest",
            Self::ForwardOut => "TCP forward, out of guest",
            Self::ForwardRate => "TCP forward, connections",
            Self::ForwardRateMany => "TCP forward, 32 at once",
            Self::Start => "start to first connection",
            Self::MemoryIdle => "memory, idle",
            Self::Memory => "memory, 1,000 connections",
            Self::MemoryMany => "memory, 10,000 connections",
            Self::WorkAmongMany => "work among 10,000 / 10",
            Self::WorkAmongMost => "work among 100,000 / 10, alone",
        })
    }
}
