//! What a bridge-mode network asks of the kernel: links, addresses, rules.
//!
//! In bridge mode the kernel moves the packets. This crate keeps the books (who is plugged in, with
//! which addresses and names, which forwards and services there are) and serves DNS, DHCP and
//! router advertisements; whoever can make links and rules implements [`Plumbing`]. Everything is
//! told as it is to be, never as a change: the implementation finds what differs and does it in
//! one transaction, or leaves everything as it was.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use netyard_wire::MacAddr;

use crate::config::Config;
use crate::control::{ControlError, PlugRequest, Plugged, Traffic, TurnState};
use crate::edge::PlugId;
use crate::forward::{Forward, Protocol};

/// The segment as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Name of the bridge's own interface, which has the gateway's addresses.
    pub interface: String,
    /// Its number.
    pub index: u32,
    /// Its hardware address: the gateway's.
    pub mac: MacAddr,
    /// Largest IP packet on the segment, bytes.
    pub mtu: u16,
    /// The bridge was there already: others live on it, who do not wait for a DHCP server and a router.
    pub joined: bool,
    /// What could not be done and can be lived without, or what is in the way of traffic (another
    /// firewall that drops what is forwarded), each with the next step, for people.
    pub warnings: Vec<String>,
}

/// A forward from a host address that is not a loopback one, which the kernel translates. (Those
/// of loopback addresses are listened on by the network process.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelForward {
    /// As it was asked for: host address, ports, protocol.
    pub forward: Forward,
    /// The instance's IPv4 address.
    pub address4: Ipv4Addr,
    /// Its IPv6 address.
    pub address6: Ipv6Addr,
}

/// A service to which the kernel leads connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelService {
    /// Its name, unique in the network.
    pub name: String,
    /// What its clients speak.
    pub protocol: Protocol,
    /// Port of the virtual addresses and of the instances.
    pub port: u16,
    /// Its virtual IPv4 address.
    pub address4: Ipv4Addr,
    /// Its virtual IPv6 address.
    pub address6: Ipv6Addr,
    /// Host address that leads to it, unless that is a loopback one.
    pub publish: Option<SocketAddr>,
    /// How long a client is led to the same instance after its last new connection.
    pub affinity: Option<Duration>,
    /// Where connections end that are answered by the network process, which gives the turns then:
    /// at most one address of each family. Else none.
    pub answered_at: Vec<SocketAddr>,
    /// Instances to which it leads new connections, in the order of the list; none: connections are
    /// refused, unless the network process answers them.
    pub instances: Vec<KernelInstance>,
    /// Names of its instances that get no new connections now, and keep their counters.
    pub resting: Vec<String>,
}

/// One instance of a [`KernelService`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelInstance {
    /// Its name.
    pub name: String,
    /// Its IPv4 address.
    pub address4: Ipv4Addr,
    /// Its IPv6 address.
    pub address6: Ipv6Addr,
    /// How many turns it has in each cycle, see [`crate::service::ring`].
    pub weight: u32,
}

/// What the kernel has refused, and what it has let pass that is looked at, by the same names as in
/// user mode.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusals {
    /// Packets that were dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// New connections, by the rule of the policy that decided. (Those that the kernel refuses are
    /// counted again when the client tries again.)
    pub policy: BTreeMap<String, u64>,
}

/// What the kernel tracks that comes from the segment or goes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flows {
    /// Open TCP connections.
    pub tcp: usize,
    /// UDP flows.
    pub udp: usize,
}

/// What comes of one look at what the kernel tracks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tracked {
    /// How much there is of the segment.
    pub flows: Flows,
    /// Counters of the services, by name.
    pub services: BTreeMap<String, ServiceTraffic>,
}

/// Counters of one service, read from its rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceTraffic {
    /// Of its instances, by name, with those that have left and still have open connections.
    pub instances: Vec<(String, TurnState)>,
    /// Connections that found no instance.
    pub refused: u64,
    /// Clients that are led to the same instance again.
    pub clients: u64,
    /// Connections whose client is not: there were too many.
    pub clients_not_kept: u64,
}

/// Counters of one plug, read from its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlugTraffic {
    /// Frames and bytes from the instance.
    pub guest_to_host: Traffic,
    /// Frames and bytes to the instance.
    pub host_to_guest: Traffic,
    /// Frames to the instance that were dropped.
    pub dropped: u64,
}

/// Makes what a bridge-mode network needs in the kernel. Dropping it undoes everything it made.
///
/// Errors say what was wanted, what was found, and what to do; after an error everything is as it
/// was before the call.
pub trait Plumbing: fmt::Debug {
    /// Makes the segment: the bridge (or joins one that is there), the gateway's addresses,
    /// forwarding, translation, isolation. Comes first, once.
    ///
    /// # Errors
    /// See [`Plumbing`].
    fn open(&mut self, config: &Config) -> Result<Segment, ControlError>;

    /// Plugs in what `descriptor` leads to: a network namespace, in which the link appears with
    /// the wanted name, or a TAP device that joins the bridge. Without one it makes the TAP.
    ///
    /// # Errors
    /// See [`Plumbing`].
    fn add_plug(
        &mut self,
        plugged: &Plugged,
        request: &PlugRequest,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), ControlError>;

    /// Takes plugs out, all at once. One that has gone by itself is no error.
    fn remove_plugs(&mut self, plugs: &[PlugId]);

    /// Takes forwards away, and adds others: what it costs does not grow with those that stay. One
    /// to be taken away that is not there is no error.
    ///
    /// # Errors
    /// See [`Plumbing`].
    fn change_forwards(
        &mut self,
        gone: &[KernelForward],
        new: &[KernelForward],
    ) -> Result<(), ControlError>;

    /// Sets which services there are. Turns keep their position, open connections of instances
    /// that stay or drain are not touched.
    ///
    /// # Errors
    /// See [`Plumbing`].
    fn set_services(&mut self, services: &[KernelService]) -> Result<(), ControlError>;

    /// Sets which links of this machine lead to remote machines: what passes between them and the segment is let
    /// through both ways, with the addresses that it has.
    ///
    /// # Errors
    /// See [`Plumbing`].
    fn set_tunnels(&mut self, links: &[String]) -> Result<(), ControlError>;

    /// Forgets the flows over UDP that services have led to a plug: nobody is there any more, and their
    /// clients take other turns.
    fn forget_flows(&mut self, plug: PlugId);

    /// Forgets the flows over UDP that a service has led to an instance which gets no new ones, and which was
    /// never heard on them: their clients take other turns.
    fn forget_unanswered(&mut self, service: &str, instance: &str);

    /// Counters of a plug; `None` if it has gone.
    fn traffic(&mut self, plug: PlugId) -> Option<PlugTraffic>;

    /// Connections so far by each host address and port of the forwards that are set, and protocol.
    /// What was set anew begins at 0.
    fn forward_traffic(&mut self) -> BTreeMap<(Protocol, SocketAddr), u64>;

    /// What is tracked of the segment, and the counters of the services; `None` if they cannot be
    /// read. One look at everything that the machine tracks.
    fn tracked(&mut self) -> Option<Tracked>;

    /// What was refused.
    fn refusals(&mut self) -> Refusals;

    /// Counters of the services that are set, by name; `None` if they cannot be read. A look at the
    /// connections of services only.
    fn services(&mut self) -> Option<BTreeMap<String, ServiceTraffic>>;

    /// What to wait on for changes that others make to links and rules.
    fn watched(&self) -> Vec<BorrowedFd<'_>>;

    /// Looks at what others have changed, and repairs what is ours. Returns the plugs that have
    /// gone.
    fn handle_changes(&mut self) -> Vec<PlugId>;
}
