//! Control messages between a keeper and a network process: typed, versioned, one JSON value per
//! SEQPACKET message, descriptors attached as `SCM_RIGHTS`.
//!
//! One connection is one *member*. What a member made (plugs, forwards, services, names) goes
//! when its connection closes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::edge::PlugId;
use crate::forward::{Forward, Protocol};

/// Version of these messages; both sides must agree.
pub const VERSION: u32 = 6;

/// Longest control message, bytes. (A SEQPACKET message is atomic; this bounds both buffers.)
pub const MAX_MESSAGE: usize = 160 * 1024;

/// A request with the number that its reply carries.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the caller; echoed in the reply.
    pub id: u64,
    /// What is wanted.
    pub request: Request,
}

/// A reply to the call of the same number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// The call's number.
    pub id: u64,
    /// What came of it.
    pub reply: Result<Reply, ControlError>,
}

/// What a member may ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Must come first.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Who joins: the yard's name; shown by `inspect`.
        member: String,
    },
    /// Plugs something in; one descriptor comes with it.
    AddPlug(PlugRequest),
    /// Takes a plug out.
    RemovePlug {
        /// Which.
        plug: PlugId,
    },
    /// Opens a forward from the host into the network.
    AddForward(Forward),
    /// Closes a forward of this member.
    RemoveForward {
        /// As given to `AddForward`.
        forward: Forward,
    },
    /// Makes or replaces a service of this member (by name). Turns keep their position, open
    /// connections of instances that stay are not touched, those of removed instances drain.
    SetService(ServiceSpec),
    /// Removes a service of this member.
    RemoveService {
        /// Its name.
        name: String,
    },
    /// Says whether an instance of a service may get new connections. When it says no because the
    /// process is dead, connections that are still opening move to the next instance at once.
    SetEligible {
        /// The service.
        service: String,
        /// The instance.
        instance: String,
        /// Whether it may.
        eligible: bool,
    },
    /// The program of an instance has ended. Its kernel tells that to connections, if anybody; flows over
    /// UDP that services have led there end, and their clients go on to other instances.
    ProgramEnded {
        /// The instance: the name of its plug.
        instance: String,
    },
    /// An instance that may get no new connections of a service runs, and does not answer its checks. Flows
    /// over UDP to it that were never answered end, and their clients go on to other instances.
    InstanceHangs {
        /// The service.
        service: String,
        /// The instance.
        instance: String,
    },
    /// Opens a TCP connection into the network, from the gateway. The reply comes when it is open
    /// (with one stream descriptor) or has failed.
    Dial {
        /// Where to.
        to: SocketAddr,
        /// How long to try.
        within: Duration,
    },
    /// Everything there is to see.
    Inspect,
    /// The services of this member alone, for who asks often.
    Services,
    /// Sets whether the network stays when its last plug leaves.
    SetPermanent {
        /// Whether.
        permanent: bool,
    },
}

/// What comes back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To `Hello`.
    Welcome(Config),
    /// To `AddPlug`.
    Plugged(Plugged),
    /// To `AddForward`: what was bound.
    Forwarding {
        /// The bound host addresses, first and last port of the range.
        at: Vec<SocketAddr>,
    },
    /// To `SetService`.
    Serving {
        /// The service's virtual addresses inside the network.
        addresses: Vec<IpAddr>,
        /// Its published host address.
        published: Option<SocketAddr>,
    },
    /// To `Dial`; one descriptor comes with it.
    Dialed,
    /// To `Inspect`.
    State(Box<State>),
    /// To `Services`.
    Services(Vec<ServiceState>),
    /// The whole answer is too long for a message: it is in the file that comes with this one.
    Elsewhere,
    /// To everything else.
    Done,
}

/// What a plug brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlugKind {
    /// A TAP device with `IFF_VNET_HDR`, 12-byte header.
    Tap,
    /// A frame socket: SEQPACKET, feature word first, then 12-byte header and frame per message.
    /// User mode only.
    Socket,
    /// A network namespace, in which the link appears. Bridge mode only.
    Namespace,
    /// A stream socket: before each frame its length, 4 bytes in network order; no header, so
    /// frames are whole and checksummed both ways. QEMU's `-netdev stream`. User mode only.
    Stream,
    /// A Unix stream socket that listens: whoever connects is plugged in as with `Stream`, one after the
    /// other. User mode only.
    Listener,
    /// No descriptor: the network makes a persistent TAP with the wanted name, which another program
    /// opens by it. Bridge mode only.
    Device {
        /// The user who may open it without privilege.
        owner: u32,
    },
}

/// A plug to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlugRequest {
    /// Name of the instance behind it: its DNS name in the zone.
    pub name: String,
    /// More DNS names for the same addresses.
    pub aliases: Vec<String>,
    /// Kind of the descriptor.
    pub kind: PlugKind,
    /// Offloads that the descriptor takes (`netyard_wire::Features` bits).
    pub features: u32,
    /// The wanted hardware address; chosen from the name if absent.
    pub mac: Option<MacAddr>,
    /// The wanted IPv4 address; the lowest free one if absent.
    pub address: Option<Ipv4Addr>,
    /// The wanted IPv6 address; the one with the number of the IPv4 address if absent.
    pub address6: Option<Ipv6Addr>,
    /// Shaping of the link, both directions. User mode only.
    pub link: Link,
    /// Name of the host's end of the link; chosen if absent. Bridge mode only.
    pub interface: Option<String>,
    /// Name of the instance's end of the link, if the network makes that: `eth0` if absent.
    pub guest_interface: Option<String>,
}

/// Shaping of one plug's link.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Link {
    /// Added to each frame, one way.
    pub delay: Duration,
    /// Probability that a frame is lost, 0 to 1.
    pub loss: f64,
    /// Bits per second; `None` is unlimited.
    pub rate: Option<u64>,
}

/// A plug that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    /// Its number.
    pub plug: PlugId,
    /// Hardware address that the instance must use.
    pub mac: MacAddr,
    /// IPv4 address.
    pub address4: Ipv4Addr,
    /// IPv6 address.
    pub address6: Ipv6Addr,
}

/// A service: one name and address, several instances in turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its name; DNS `name.<zone>`.
    pub name: String,
    /// What its clients speak.
    pub protocol: Protocol,
    /// Port of the virtual address, and of the instances.
    pub port: u16,
    /// Host address that leads to it.
    pub publish: Option<SocketAddr>,
    /// What takes a turn.
    pub policy: TurnPolicy,
    /// How long a client is led to the same instance after its last new connection; `None`: every
    /// connection takes a turn.
    pub affinity: Option<Duration>,
    /// Its instances; among equals this is the order of turns.
    pub instances: Vec<ServiceInstance>,
}

/// What takes a turn of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TurnPolicy {
    /// A connection of a client, which is then joined to one instance. Over UDP: a flow, which is all
    /// that goes between one address and port of a client and the service, until it is still for long.
    #[default]
    RoundRobin,
    /// A request of HTTP: the network ends the client's connection, and speaks with the instances
    /// itself.
    PerRequest,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInstance {
    /// Its name.
    pub name: String,
    /// Its IPv4 address in the network.
    pub address4: Ipv4Addr,
    /// Its IPv6 address in the network.
    pub address6: Ipv6Addr,
    /// How many turns it has in each cycle, from 1 to [`crate::service::ring::MAX_WEIGHT`].
    pub weight: u32,
    /// Whether it may get new connections.
    pub eligible: bool,
}

/// What `inspect` shows of a network.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// The configuration; `None` only before the first answer.
    pub config: Option<Config>,
    /// Bridge mode: the bridge's own interface.
    pub interface: Option<String>,
    /// What could not be done and can be lived without, or is in the way, with the next step.
    pub warnings: Vec<String>,
    /// Process id of the network process.
    pub pid: u32,
    /// Members by name.
    pub members: Vec<String>,
    /// The member who asked.
    pub asked_by: String,
    /// Plugs with their counters.
    pub plugs: Vec<PlugState>,
    /// Forwards.
    pub forwards: Vec<ForwardState>,
    /// Services with turns.
    pub services: Vec<ServiceState>,
    /// Addresses that are lent to clients without a plug. Bridge mode only.
    pub leases: Vec<LeaseState>,
    /// Open TCP flows.
    pub tcp_flows: usize,
    /// Open UDP flows.
    pub udp_flows: usize,
    /// Pings to the outside that are under way: addresses and identifiers of guests with the addresses that
    /// they ping. `None`: this host allows none, or the kernel carries them (bridge mode).
    pub pings: Option<usize>,
    /// Frames that were dropped, by reason; reasons without drops are left out.
    pub drops: std::collections::BTreeMap<String, u64>,
    /// Policy decisions by rule: how often it decided.
    pub policy: std::collections::BTreeMap<String, u64>,
}

/// One plug as `inspect` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlugState {
    /// Its number.
    pub plug: PlugId,
    /// The instance behind it.
    pub name: String,
    /// The member that made it.
    pub member: String,
    /// Hardware address.
    pub mac: MacAddr,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Frames and bytes from the instance.
    pub guest_to_host: Traffic,
    /// Frames and bytes to the instance.
    pub host_to_guest: Traffic,
    /// Frames to the instance that its full queue or the link's loss dropped.
    pub dropped: u64,
}

/// An address that is lent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseState {
    /// The address.
    pub address: IpAddr,
    /// Who has it: the identifier that it gives itself, in hexadecimal. `None`: its client has found
    /// somebody else there, and it rests.
    pub client: Option<String>,
    /// The hardware address that the client is known by, if it is.
    pub mac: Option<MacAddr>,
    /// When it ends, seconds since 1970.
    pub until: u64,
}

impl LeaseState {
    /// One whose client is not known by its hardware address.
    pub(crate) fn new(address: IpAddr, client: Option<String>, until: u64) -> Self {
        Self { address, client, mac: None, until }
    }
}

/// Counted traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Frames (a super-frame counts once).
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
}

/// One forward as `inspect` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForwardState {
    /// As it was asked for.
    pub forward: Forward,
    /// The member that made it.
    pub member: String,
    /// Connections or flows so far.
    pub connections: u64,
}

/// One service as `service ls` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceState {
    /// As it was asked for.
    pub spec: ServiceSpec,
    /// The member that made it.
    pub member: String,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Counters, one for each instance of `spec`.
    pub instances: Vec<TurnState>,
    /// Connections that found no instance.
    pub refused: u64,
    /// Clients that are led to the same instance again.
    pub clients: u64,
    /// Connections whose client is not: there were too many clients.
    pub clients_not_kept: u64,
}

/// Counters of one instance of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TurnState {
    /// Connections it was given.
    pub turns: u64,
    /// Turns that failed to open.
    pub failed: u64,
    /// Turns that the instance has not answered yet. On a bridge the kernel counts them among those open.
    pub opening: u64,
    /// Connections open now.
    pub open: u64,
    /// Gets no new connections, still has open ones, or some that it has not answered yet.
    pub draining: bool,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// For programs.
    pub kind: ControlErrorKind,
    /// For people: what was wanted, what was found, what to do.
    pub message: String,
}

/// The kinds of [`ControlError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlErrorKind {
    /// The other side speaks another version.
    Version,
    /// The message cannot be understood, or comes at the wrong time.
    Malformed,
    /// The name, address or port is in use.
    Taken,
    /// No address is free.
    Exhausted,
    /// There is no such thing.
    Unknown,
    /// The kernel does not permit it.
    NotPermitted,
    /// The connection could not be opened.
    Unreachable,
    /// The kernel refused for another reason.
    Failed,
}
