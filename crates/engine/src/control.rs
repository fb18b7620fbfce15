//! Control messages between a keeper and a network process: typed, versioned, one JSON value per
//! SEQPACKET message, descriptors attached as `SCM_RIGHTS`.
//!
//! One connection is one *member*. What a member made (plugs, forwards, services, names) goes
//! when its connection closes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use crate::capture::Filter;
use crate::config::Config;
use crate::delivery::Delivery;
use crate::edge::PlugId;
use crate::forward::{Forward, Protocol};
use crate::policy::{self, rules::Rules};

/// Version of these messages; both sides must agree.
pub const VERSION: u32 = 15;

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

/// Who begins a flow to a plug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opener {
    /// A client outside.
    Client(IpAddr),
    /// The plug of this name.
    Plug(String),
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
    /// Brings the connection by which a plug's instance hands out sockets of its network namespace
    /// (`netyard_sys::supply`), for connections that come in by host ports. User mode only.
    SetSupply {
        /// The plug, one of this member's.
        plug: PlugId,
    },
    /// Takes a plug out.
    RemovePlug {
        /// Which.
        plug: PlugId,
    },
    /// Opens a forward from the host into the network. One that begins at a Unix socket brings it: made by the
    /// member, which may keep it, and listening.
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
    /// Replaces the rules of this member about what its plugs may reach, and who may reach them. Flows that they do
    /// not allow end. User mode only.
    SetRules(Rules),
    /// Asks what these rules, and those that every network has, would say of a new flow, and which decides. User
    /// mode only.
    TestRules {
        /// The name of the plug that it would be of.
        guest: String,
        /// What it would speak.
        protocol: policy::Protocol,
        /// Where it would go.
        to: SocketAddr,
    },
    /// The same of a flow that comes to a plug. User mode only.
    TestEntry {
        /// Who would begin it.
        from: Opener,
        /// The name of the plug that it would come to.
        guest: String,
        /// What it would speak.
        protocol: policy::Protocol,
        /// The plug's port; means nothing for pings.
        port: u16,
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
    /// Tells of the remote machines that this member brings, in place of what it has told before. In user mode
    /// their socket comes with it the first time: a frame socket, see [`PlugKind::Socket`], on which
    /// hardware addresses mean nothing.
    SetRemote(Remote),
    /// The names and addresses of what is in the network: plugs, and services.
    Names,
    /// Everything there is to see.
    Inspect,
    /// The flows that there are. User mode only.
    Flows,
    /// Writes what passes the plugs, as pcapng, to the one descriptor that comes with it, until the member
    /// leaves or nobody reads. User mode only.
    Capture(Filter),
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
    Welcome(Box<Welcome>),
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
    /// To `TestRules`.
    Decided {
        /// Whether it may leave.
        allowed: bool,
        /// The rule that decides, by the name that it is counted by in [`State::policy`].
        rule: String,
        /// What it is about, for people.
        meaning: String,
    },
    /// To `Dial`; one descriptor comes with it.
    Dialed,
    /// To `Inspect`.
    State(Box<State>),
    /// To `Flows`.
    Flows(Vec<FlowState>),
    /// To `Services`.
    Services(Vec<ServiceState>),
    /// To `Names`.
    Names(Vec<Name>),
    /// The whole answer is too long for a message: it is in the file that comes with this one.
    Elsewhere,
    /// To everything else.
    Done,
}

/// What a network is, for who joins it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The configuration.
    pub config: Config,
    /// As in [`State::warnings`].
    pub warnings: Vec<String>,
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
    /// A Unix stream socket that listens: whoever connects is plugged in, one after the other. Before each frame
    /// its length, 4 bytes in network order; no header, so frames are whole and checksummed both ways. QEMU's
    /// `-netdev stream`. User mode only.
    Listener,
    /// A Unix stream socket that listens: front ends of vhost-user connect, one after the other, each with
    /// a network device of virtio with one pair of rings. User mode only.
    VhostUser,
    /// A Unix socket of datagrams, bound to a path: each is a frame, without a header, and whoever sent last gets what
    /// is for the guest. QEMU's `-netdev dgram`. User mode only.
    Datagrams,
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
    /// Shaping of the link. User mode only.
    pub link: Link,
    /// Name of the host's end of the link; chosen if absent. Bridge mode only.
    pub interface: Option<String>,
    /// Name of the instance's end of the link, if the network makes that: `eth0` if absent.
    pub guest_interface: Option<String>,
    /// It does not report which multicast groups it listens to, and hears all of them. User mode only.
    pub silent: bool,
}

impl PlugRequest {
    /// A plug with this name, without anything else that may be asked for.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: PlugKind) -> Self {
        Self {
            name: name.into(),
            aliases: Vec::new(),
            kind,
            features: 0,
            mac: None,
            address: None,
            address6: None,
            link: Link::default(),
            interface: None,
            guest_interface: None,
            silent: false,
        }
    }

    /// The socket of remote machines, which gets neither name nor address.
    pub(crate) fn remote() -> Self {
        Self::new("", PlugKind::Socket)
    }
}

/// Shaping of one plug's link.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Link {
    /// What the guest sends.
    pub up: Shape,
    /// What the guest gets.
    pub down: Shape,
}

/// Shaping of one direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Shape {
    /// Added to each frame.
    pub delay: Duration,
    /// Probability that a frame is lost, 0 to 1.
    pub loss: f64,
    /// Bits per second; `None` is unlimited.
    pub rate: Option<u64>,
    /// Frames per second; `None` is unlimited.
    pub packets: Option<u64>,
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
    /// How connections that come in there are handed over.
    #[serde(default, skip_serializing_if = "Delivery::is_default")]
    pub delivery: Delivery,
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

/// A name and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// In a network's zone without it, of remote machines the whole.
    pub name: String,
    /// Where it is.
    pub addresses: Vec<IpAddr>,
}

/// Remote machines that a member brings to the network: those of a hub that it has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// The hub, host and port.
    pub hub: String,
    /// Whether it is reached.
    pub link: RemoteLink,
    /// What the hub calls this network's machine.
    pub name: Option<String>,
    /// The addresses of this network's machine at the hub.
    pub addresses: Vec<IpAddr>,
    /// What leads there: the hub's network, and what is behind others of its machines.
    pub networks: Vec<IpNet>,
    /// What of this network the hub's administrator has not accepted: nobody is reached from there.
    pub unaccepted: Vec<IpNet>,
    /// The zone of the hub's names.
    pub zone: Option<String>,
    /// The names in it, whole.
    pub names: Vec<Name>,
    /// The link of this machine that leads there. Bridge mode only.
    pub interface: Option<String>,
}

/// Whether a hub is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "why", rename_all = "kebab-case")]
pub enum RemoteLink {
    /// It is being tried; why it failed the last time, if it did.
    Connecting(Option<String>),
    /// It is.
    Connected,
    /// It has refused for good, and is not tried any more.
    Refused(String),
}

/// Remote machines as `inspect` shows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteState {
    /// As it was told last.
    #[serde(flatten)]
    pub remote: Remote,
    /// The member that brings them.
    pub member: String,
    /// Frames and bytes from them. User mode only.
    pub from_remote: Traffic,
    /// Frames and bytes to them. User mode only.
    pub to_remote: Traffic,
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
    /// Remote machines.
    pub remotes: Vec<RemoteState>,
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
    /// Answers of resolvers that the network's DNS keeps; `None`: it keeps none.
    #[serde(default)]
    pub dns: Option<DnsState>,
    /// Frames that were dropped, by reason; reasons without drops are left out.
    pub drops: std::collections::BTreeMap<String, u64>,
    /// Policy decisions by rule: how often it decided.
    pub policy: std::collections::BTreeMap<String, u64>,
    /// The rules of each member that has any.
    #[serde(default)]
    pub rules: std::collections::BTreeMap<String, Rules>,
}

/// Answers of resolvers that are kept for whoever asks the same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsState {
    /// Questions that were answered by them.
    pub hits: u64,
    /// Questions that were not.
    pub misses: u64,
    /// How many there are.
    pub answers: usize,
    /// What they take, bytes.
    pub bytes: usize,
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
    /// What went without frames, by splicing.
    #[serde(default)]
    pub spliced: Spliced,
    /// The multicast groups that the instance has joined, where that is followed: in user mode, and none of the
    /// link's own (224.0.0.0/24, ff02::1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<IpAddr>,
}

/// What went to and from an instance by splicing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spliced {
    /// Whether there is a way: the instance hands out sockets of its namespace.
    pub possible: bool,
    /// Connections that were opened.
    pub connections: u64,
    /// Bytes from the instance.
    pub guest_to_host: u64,
    /// Bytes to the instance.
    pub host_to_guest: u64,
}

/// One flow through the gateway, or to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowState {
    /// What it is.
    pub protocol: FlowKind,
    /// The instance.
    pub instance: String,
    /// The instance's end.
    pub guest: SocketAddr,
    /// The other end, as the instance sees it.
    pub remote: SocketAddr,
    /// What the network's zone calls the other end, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether the instance has begun it.
    pub outbound: bool,
    /// Who has begun it from outside, whomever the instance sees as the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// The rule of the policy by which it may go on, as it is counted. `None`: none is asked, for what goes to the
    /// gateway, to services and between instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How far it is.
    pub state: FlowPhase,
    /// How long ago it began, milliseconds.
    pub age_ms: u64,
    /// Payload from the instance, bytes. `None`: it is not counted, for what goes from instance to instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_to_host: Option<u64>,
    /// Payload to the instance, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_to_guest: Option<u64>,
    /// The round trip to the instance, once one was measured, microseconds. TCP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Whether it goes without frames, by splicing.
    #[serde(default)]
    pub spliced: bool,
}

impl FlowState {
    /// A flow that has not got far, began then, and belongs to nobody yet.
    pub(crate) fn new(
        protocol: FlowKind,
        guest: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        began: Instant,
    ) -> Self {
        Self {
            protocol,
            instance: String::new(),
            guest,
            remote,
            name: None,
            outbound: false,
            client: None,
            rule: None,
            state: FlowPhase::Opening,
            age_ms: whole(now.saturating_duration_since(began).as_millis()),
            guest_to_host: None,
            host_to_guest: None,
            rtt_us: None,
            spliced: false,
        }
    }
}

/// A time as a number; those that fit no number are as good as for ever.
pub(crate) fn whole(time: u128) -> u64 {
    u64::try_from(time).unwrap_or(u64::MAX)
}

/// Classes of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowKind {
    /// A TCP connection.
    Tcp,
    /// Datagrams between two ends.
    Udp,
    /// Pings to one address; ports are their identifier, and 0.
    Ping,
}

/// How far a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowPhase {
    /// It is not open yet, or only one side has said something.
    Opening,
    /// Both sides talk.
    Open,
    /// One side has finished.
    Closing,
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
