//! Types of the control API: JSON over HTTP on the keeper's socket.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/yard` | [`YardStatus`] |
//! | `GET /v1/instances` | list of [`InstanceStatus`] |
//! | `POST /v1/instances/{name}/start`, `stop`, `restart` | [`InstanceStatus`] |
//! | `GET /v1/instances/{name}/logs` ([`LogsQuery`]) | lines of text, chunked |
//! | `GET /v1/services` | list of [`ServiceStatus`] |
//! | `GET /v1/forwards` | list of [`ForwardStatus`] |
//! | `POST /v1/forwards/add`, `/v1/forwards/remove` ([`ForwardRequest`]) | [`ForwardChanged`] |
//! | `GET /v1/networks` | list of [`NetworkStatus`] |
//! | `POST /v1/apply` ([`ApplyRequest`]) | [`Applied`] |
//! | `POST /v1/down` | [`Down`] |
//! | `GET /v1/wait` ([`WaitQuery`]) | [`Waited`] |
//!
//! Everything that fails answers with a [`crate::error::YardError`] and the status of its kind.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use netyard_engine::control::{State, TurnPolicy, TurnState};
use netyard_engine::forward::{Forward, Protocol};
use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use crate::model::SocketProtocol;

/// One yard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct YardStatus {
    /// Its name.
    pub name: String,
    /// Its yard file.
    pub file: PathBuf,
    /// Process id of its keeper.
    pub keeper_pid: u32,
    /// Instances in the order of the file.
    pub instances: Vec<InstanceStatus>,
    /// Services in the order of the file.
    pub services: Vec<ServiceStatus>,
    /// Networks by name.
    pub networks: Vec<NetworkStatus>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: InstanceState,
    /// What it is, if it is a virtual machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<MachineStatus>,
    /// Whether its program has a TCP/IP stack of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_stack: bool,
    /// The TAPs that it is plugged in by, if somebody else starts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<Vec<TapStatus>>,
    /// The sockets that it is plugged in by, if somebody else starts it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<SocketStatus>,
    /// The program's process id on the host, while it runs.
    pub pid: Option<u32>,
    /// Process id on the host of the instance's init, while there is one; its namespaces are the
    /// instance's.
    pub init_pid: Option<u32>,
    /// Its addresses, those of the first plug first.
    pub addresses: Vec<IpAddr>,
    /// How often it was started again.
    pub restarts: u32,
    /// How long the program has run, milliseconds.
    pub uptime_ms: Option<u64>,
    /// How the program last ended, for people: `code 1`, `signal 9 (SIGKILL)`, `no such program`.
    pub exit: Option<String>,
    /// Sockets that it listens on.
    pub ports: Vec<Listening>,
    /// What is likely wrong with it, for people.
    pub warnings: Vec<String>,
}

/// A TAP of something that somebody else starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapStatus {
    /// Its name.
    pub name: String,
    /// The hardware address that whoever opens it must use.
    pub mac: MacAddr,
    /// The user who may open it; root may in any case.
    pub owner: u32,
    /// Whether somebody has it open.
    pub open: bool,
    /// Whether it is gone: somebody has deleted it, and it could not be made again yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

/// A socket of something that somebody else starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStatus {
    /// Its path.
    pub path: PathBuf,
    /// What is spoken over it.
    pub protocol: SocketProtocol,
    /// The hardware address that whoever connects must use.
    pub mac: MacAddr,
    /// The user who may connect; root may in any case.
    pub owner: u32,
}

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MachineStatus {
    /// MiB.
    pub memory: u32,
    /// Processors.
    pub cpus: u16,
    /// Release of its kernel, or the disk that it boots from, once that is known.
    pub kernel: Option<String>,
    /// What executes its instructions, while it runs.
    pub accelerator: Option<Accelerator>,
    /// Its state as QEMU calls it, while it runs: `running`, `paused`, `shutdown`, ...
    pub state: Option<String>,
    /// How long it took from the start of the machine to that of its program, milliseconds.
    pub boot_ms: Option<u64>,
    /// Its TAPs that somebody has deleted: it is cut off from their networks until it starts again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_taps: Vec<String>,
}

/// What executes the instructions of a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The processor, by the kernel's KVM.
    Kvm,
    /// QEMU, by translating them: several times slower.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Waits for what it needs.
    Pending,
    /// Its namespaces and plugs are being made.
    Starting,
    /// Its program runs; nothing checks it, or no check has passed yet.
    Running,
    /// Its program runs and every check of its services passes.
    Healthy,
    /// Its program runs and a check that had passed, fails.
    Unhealthy,
    /// Its program ended and will be started again.
    Backoff,
    /// Its program ended and stays ended.
    Exited {
        /// Exit code; 128 + signal when a signal ended it.
        code: i32,
    },
    /// Stopped on request.
    Stopped,
    /// It could not be started.
    Failed,
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Backoff => "backoff",
            Self::Exited { code } => return f.pad(&format!("exited {code}")),
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        };
        f.pad(word)
    }
}

/// A socket that an instance's program listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Listening {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address and port inside the instance.
    pub address: SocketAddr,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its network.
    pub network: String,
    /// What its clients speak.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// Its virtual addresses inside the network.
    pub addresses: Vec<IpAddr>,
    /// The host address that leads to it.
    pub published: Option<SocketAddr>,
    /// What takes a turn: a connection or a request.
    pub policy: TurnPolicy,
    /// How long a client is led to the same instance after its last new connection, milliseconds.
    pub affinity_ms: Option<u64>,
    /// Its instances in the order of the file, draining ones last.
    pub instances: Vec<ServiceInstanceStatus>,
    /// Connections, or requests, that found no instance.
    pub refused: u64,
    /// Clients that are led to the same instance again.
    pub clients: u64,
    /// Connections whose client is not: there were too many clients.
    pub clients_not_kept: u64,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInstanceStatus {
    /// Its name.
    pub name: String,
    /// How many turns it has in each cycle.
    pub weight: u32,
    /// Whether it gets new connections.
    pub eligible: bool,
    /// Why its last probe failed, if it did.
    pub problem: Option<String>,
    /// Its turns and connections.
    pub turns: TurnState,
}

/// One forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardStatus {
    /// The network it leads into.
    pub network: String,
    /// As it was asked for; names the instance.
    pub forward: Forward,
    /// Connections or flows so far.
    pub connections: u64,
}

/// Body of `POST /v1/forwards/add` and `/v1/forwards/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// Which; names the instance.
    pub forward: Forward,
}

/// What came of adding or removing a forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardChanged {
    /// The network it leads into.
    pub network: String,
    /// Which; names the instance.
    pub forward: Forward,
    /// False if it was as asked for already.
    pub changed: bool,
}

/// One network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name in the yard.
    pub name: String,
    /// What its network process says; only the configuration if it does not answer.
    pub state: State,
    /// Why there is no more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Query of `GET /v1/instances/{name}/logs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LogsQuery {
    /// Stay and send what comes.
    pub follow: bool,
    /// Only so many of the lines that are there; all of them if absent.
    pub tail: Option<usize>,
}

/// Body of `POST /v1/apply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// The yard file, absolute.
    pub file: PathBuf,
}

/// What `POST /v1/apply` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The steps, for people; empty when nothing differed.
    pub steps: Vec<String>,
}

/// The answer to `POST /v1/down`: sent before the keeper stops anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Down {
    /// The keeper, which is gone when everything is undone.
    pub keeper_pid: u32,
}

/// Query of `GET /v1/wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WaitQuery {
    /// At most so long, milliseconds; for ever if absent.
    pub timeout_ms: Option<u64>,
}

/// The answer to `GET /v1/wait`: sent when everything is well, when something cannot become so,
/// or when the time is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// Whether every instance is healthy; running is enough for one without a check.
    pub healthy: bool,
    /// The instances that failed or ended.
    pub failed: Vec<InstanceStatus>,
    /// Those that are neither well nor have failed.
    pub waiting: Vec<InstanceStatus>,
}
