//! What a yard is: networks, instances, services. Plain, checked values; [`crate::file`] makes
//! them from a yard file, `netyard run` from its flags.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use netyard_engine::config::{Config, Dhcp, Dns, Mdns, Mode, Uplink};
use netyard_engine::control::{Link, PlugKind, TurnPolicy};
use netyard_engine::delivery::Delivery;
use netyard_engine::forward::{Forward, Protocol};
use netyard_engine::policy::rules::Rules;
use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use crate::address;

/// Prefix of a network that does not name one.
pub const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 127, 0), 24);

/// Largest IP packet of a network that does not say, bytes: Ethernet's (RFC 894).
pub const DEFAULT_MTU: u16 = 1500;

/// Longest name of a yard. Together with [`MAX_NETWORK_NAME`] it keeps the path of a network's
/// socket in `/run/user/<uid>/netyard/.networks/<yard>.<network>/` below the 108 bytes of
/// `sun_path`, unix(7).
pub const MAX_YARD_NAME: usize = 32;

/// Longest name of a network; see [`MAX_YARD_NAME`].
pub const MAX_NETWORK_NAME: usize = 24;

/// What stands in a network's search list for the domains that the host searches.
pub const SEARCH_OF_HOST: &str = "host";

/// Most domains of a network's search list, beside its zone.
pub const MAX_SEARCH: usize = 8;

/// Most bytes of them with the zone, as in a message: they fit one option of DHCP, and a file that every resolver
/// reads whole.
pub const MAX_SEARCH_BYTES: usize = 255;

/// What a name without a dot at its end takes in a message, bytes.
pub(crate) fn name_bytes(name: &str) -> usize {
    name.len().saturating_add(2)
}

/// Memory of a virtual machine that does not say, MiB.
pub const DEFAULT_MEMORY: u32 = 512;

/// Longest name of an instance or a service: a DNS label (RFC 1035 section 2.3.4).
pub const MAX_LABEL: usize = 63;

/// Everything that one yard file describes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Yard {
    /// The yard's name, unique among the running yards of one user.
    pub name: String,
    /// The yard file, absolute.
    pub path: PathBuf,
    /// Networks by their name in the file.
    pub networks: BTreeMap<String, NetworkSpec>,
    /// Instances in the order of the file, each `count` spelled out.
    pub instances: Vec<InstanceSpec>,
    /// Services in the order of the file.
    pub services: Vec<ServiceSpec>,
}

impl Yard {
    /// A yard without anything in it.
    #[must_use]
    pub fn empty(name: String, path: &Path) -> Self {
        Self {
            name,
            path: path.to_owned(),
            networks: BTreeMap::new(),
            instances: Vec::new(),
            services: Vec::new(),
        }
    }

    /// The instance of that name.
    #[must_use]
    pub fn instance(&self, name: &str) -> Option<&InstanceSpec> {
        self.instances.iter().find(|instance| instance.name == name)
    }

    /// The service of that name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&ServiceSpec> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The services that an instance answers for.
    pub fn services_of(&self, instance: &str) -> impl Iterator<Item = &ServiceSpec> {
        self.services
            .iter()
            .filter(move |service| service.instances.iter().any(|name| name == instance))
    }
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Its name in the yard, e.g. `lan`.
    pub name: String,
    /// Its name among all networks of one user, e.g. `hello.lan`.
    pub global: String,
    /// IPv4 prefix.
    pub subnet: Ipv4Net,
    /// IPv6 prefix, /64.
    pub subnet6: Ipv6Net,
    /// Who moves the packets.
    pub mode: Mode,
    /// The gateway's IPv4 address, if it is not the first of the prefix.
    pub gateway: Option<Ipv4Addr>,
    /// DNS zone, without dots at its ends.
    pub zone: String,
    /// What its DNS knows beside who is there.
    #[serde(default)]
    pub dns: Dns,
    /// DHCP and router advertisements; `None`: guests get none.
    pub dhcp: Option<Dhcp>,
    /// Where traffic that leaves goes.
    pub uplink: Uplink,
    /// Host services that guests may reach as `host.<zone>`.
    pub host: Vec<SocketAddr>,
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// User mode: whether what is sent to a multicast group goes to those alone who have joined it.
    #[serde(default = "on")]
    pub snooping: bool,
    /// User mode: on which of the host's links questions for names in `.local` are asked once more.
    #[serde(default)]
    pub mdns: Mdns,
    /// What the yard's instances may reach, and who may reach them.
    #[serde(default)]
    pub rules: Rules,
    /// The hub that it joins.
    pub hub: Option<HubSpec>,
}

/// For serde.
fn on() -> bool {
    true
}

/// How a network joins a hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubSpec {
    /// Where the join string is, which is a secret.
    pub join: JoinSource,
    /// What the network's machine calls itself there.
    pub name: String,
    /// The folder with its key; `None`: below that of the user's state.
    pub state: Option<PathBuf>,
}

/// Where a join string is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinSource {
    /// In a file, absolute.
    File(PathBuf),
    /// In a variable of the keeper's environment.
    Env(String),
}

impl fmt::Display for JoinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Env(name) => write!(f, "the variable {name}"),
        }
    }
}

impl NetworkSpec {
    /// A network with the default of everything. `global` is its name among all networks of the
    /// user; the IPv6 prefix follows from it.
    #[must_use]
    pub fn new(name: &str, global: &str) -> Self {
        Self {
            name: name.to_owned(),
            global: global.to_owned(),
            subnet: DEFAULT_SUBNET,
            subnet6: address::unique_local(global),
            mode: Mode::default(),
            gateway: None,
            zone: name.to_owned(),
            dns: Dns::default(),
            dhcp: Some(Dhcp::default()),
            uplink: Uplink::default(),
            host: Vec::new(),
            mtu: DEFAULT_MTU,
            snooping: true,
            mdns: Mdns::default(),
            rules: Rules::default(),
            hub: None,
        }
    }

    /// The same network as the network process wants to hear it.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            name: self.global.clone(),
            subnet4: self.subnet,
            subnet6: self.subnet6,
            gateway_mac: self.gateway_mac(),
            zone: self.zone.clone(),
            dns: self.dns.clone(),
            mtu: self.mtu,
            dhcp: self.dhcp,
            uplink: self.uplink.clone(),
            mode: self.mode.clone(),
            gateway: self.gateway,
            host: self.host.clone(),
            snooping: self.snooping,
            mdns: self.mdns.clone(),
            permanent: false,
        }
    }

    /// Whether the kernel moves its packets.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        matches!(self.mode, Mode::Bridge(_))
    }

    /// The gateway's hardware address: the same for the same global name.
    #[must_use]
    pub fn gateway_mac(&self) -> MacAddr {
        MacAddr::from_seed(&format!("gateway of {}", self.global))
    }
}

/// One instance: a program, a virtual machine, or something external, on one or several networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Its name, e.g. `web-1`.
    pub name: String,
    /// The name that it has in the yard file, e.g. `web` for `web-1` to `web-3`.
    pub group: String,
    /// What runs.
    pub kind: Kind,
    /// Program and arguments; empty only for a virtual machine with an image of its own and for
    /// what somebody else starts.
    pub run: Vec<String>,
    /// Variables set on top of the keeper's environment.
    pub env: BTreeMap<String, String>,
    /// Working folder, absolute.
    pub cwd: PathBuf,
    /// What happens when the program ends.
    pub restart: Restart,
    /// What must be healthy before the program starts.
    pub needs: Vec<Need>,
    /// Its plugs, `eth0` first; never empty.
    pub plugs: Vec<PlugSpec>,
    /// Host ports that lead to it, through its first plug.
    pub forwards: Vec<Forward>,
}

/// What runs in an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The program, in namespaces of its own.
    #[default]
    Process,
    /// The program, which has a TCP/IP stack of its own, in namespaces without a network.
    Stack,
    /// A virtual machine that runs the program, or an image.
    Vm(VmSpec),
    /// Something that somebody else starts, and that opens the TAPs of its plugs by their names, or
    /// connects to their sockets.
    External(ExternalSpec),
    /// The network namespace of somebody else, in which the plug's link is made.
    Namespace(NamespaceSpec),
}

impl Kind {
    /// The virtual machine, if it is one.
    #[must_use]
    pub fn vm(&self) -> Option<&VmSpec> {
        match self {
            Self::Vm(vm) => Some(vm),
            _ => None,
        }
    }

    /// What is said of something external, if it is that.
    #[must_use]
    pub fn external(&self) -> Option<&ExternalSpec> {
        match self {
            Self::External(external) => Some(external),
            _ => None,
        }
    }

    /// What is said of the network namespace of somebody else, if it is one.
    #[must_use]
    pub fn namespace(&self) -> Option<&NamespaceSpec> {
        match self {
            Self::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }

    /// Whether a keeper starts a program for it; else somebody else does.
    #[must_use]
    pub fn has_program(&self) -> bool {
        !matches!(self, Self::External(_) | Self::Namespace(_))
    }

    /// Whether its network can have sockets of its network namespace, to splice connections to.
    #[must_use]
    pub fn hands_out_sockets(&self) -> bool {
        matches!(self, Self::Process | Self::Namespace(_))
    }

    /// Whether a cable leads to each plug, instead of a link in namespaces.
    #[must_use]
    pub fn has_cables(&self) -> bool {
        matches!(self, Self::Stack | Self::Vm(_))
    }
}

/// Something external.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalSpec {
    /// The user who may open its TAPs and sockets; root may in any case.
    pub owner: u32,
}

/// The network namespace of somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceSpec {
    /// The name of the link that is made in it.
    pub link: String,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// MiB.
    pub memory: u32,
    /// Processors.
    pub cpus: u16,
    /// A kernel (bzImage), absolute; one of the host's if absent.
    pub kernel: Option<PathBuf>,
    /// A first file system of the user's own, absolute.
    pub initrd: Option<PathBuf>,
    /// A disk image, absolute, raw or qcow2. Without kernel and initrd its boot loader is used.
    pub drive: Option<PathBuf>,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self { memory: DEFAULT_MEMORY, cpus: 1, kernel: None, initrd: None, drive: None }
    }
}

impl VmSpec {
    /// Whether it boots an image of the user's own instead of running a program.
    #[must_use]
    pub fn is_image(&self) -> bool {
        self.initrd.is_some() || self.drive.is_some()
    }
}

/// One plug of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlugSpec {
    /// Name of the network in the yard.
    pub network: String,
    /// IPv4 address.
    pub address: Address,
    /// IPv6 address; the one with the number of the IPv4 address if absent.
    pub address6: Option<Ipv6Addr>,
    /// Hardware address; chosen by the network process if absent.
    pub mac: Option<MacAddr>,
    /// Shaping of the link, both directions. User mode only.
    pub link: Link,
    /// Name of the host's end of the link; chosen if absent. Bridge mode only.
    pub tap: Option<String>,
    /// The socket that somebody else connects to. User mode only, and only of what is external, which has
    /// one there.
    pub socket: Option<SocketSpec>,
}

/// A socket that somebody else connects to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSpec {
    /// Its path, absolute.
    pub path: PathBuf,
    /// What is spoken over it.
    pub protocol: SocketProtocol,
}

impl SocketSpec {
    /// The same with its path taken from `folder`, unless it is absolute.
    #[must_use]
    pub fn within(self, folder: &Path) -> Self {
        Self { path: folder.join(self.path).components().collect(), ..self }
    }
}

/// `unixgram:PATH` for datagrams; `unix:PATH` for a stream, or the path alone.
impl From<&str> for SocketSpec {
    fn from(text: &str) -> Self {
        let (protocol, path) = match text.strip_prefix("unixgram:") {
            Some(path) => (SocketProtocol::Datagram, path),
            None => (SocketProtocol::Stream, text.strip_prefix("unix:").unwrap_or(text)),
        };
        Self { path: PathBuf::from(path), protocol }
    }
}

/// How frames go over a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketProtocol {
    /// Frames with their length before them, 4 bytes in network order, as QEMU's `-netdev stream` has it.
    #[default]
    Stream,
    /// Each is a datagram: QEMU's `-netdev dgram`.
    Datagram,
    /// vhost-user: a machine monitor shares the memory of its machine, with the rings of a network device of
    /// virtio in it.
    VhostUser,
}

impl SocketProtocol {
    /// What the network makes of such a socket.
    pub(crate) const fn kind(self) -> PlugKind {
        match self {
            Self::Stream => PlugKind::Listener,
            Self::Datagram => PlugKind::Datagrams,
            Self::VhostUser => PlugKind::VhostUser,
        }
    }
}

/// Where an instance's IPv4 address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Address {
    /// The network process gives out the lowest free one.
    #[default]
    Any,
    /// The yard's address plan chose it; see [`crate::address`].
    Planned(Ipv4Addr),
    /// The yard file or a flag names it.
    Fixed(Ipv4Addr),
}

impl Address {
    /// The address, once there is one.
    #[must_use]
    pub fn get(self) -> Option<Ipv4Addr> {
        match self {
            Self::Any => None,
            Self::Planned(address) | Self::Fixed(address) => Some(address),
        }
    }
}

/// What happens when an instance's program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It stays ended.
    No,
    /// It starts again unless it ended with code 0.
    #[default]
    OnFailure,
    /// It starts again.
    Always,
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "no",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
        })
    }
}

/// What an instance waits for before it starts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// An instance: its program runs and, if it is in a service, the service's check passes.
    Instance(String),
    /// A service: the check of at least one of its instances passes.
    Service(String),
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(name) => write!(f, "instance {name}"),
            Self::Service(name) => write!(f, "service {name}"),
        }
    }
}

/// One service: a name and an address, answered by several instances in exact turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its name; DNS `name.<zone>`.
    pub name: String,
    /// Name of its network in the yard.
    pub network: String,
    /// Names of its instances; never empty. Among equals this is the order of turns.
    pub instances: Vec<String>,
    /// How many turns those instances have in each cycle that have more than one.
    pub weights: BTreeMap<String, u32>,
    /// What its clients speak.
    pub protocol: Protocol,
    /// Port of its virtual address and of its instances.
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
    /// How to find out whether an instance is well.
    pub check: Check,
}

impl ServiceSpec {
    /// How many turns an instance has in each cycle.
    #[must_use]
    pub fn weight(&self, instance: &str) -> u32 {
        self.weights.get(instance).copied().unwrap_or(1)
    }
}

/// A health check: how an instance of a service is found to be well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is tried.
    pub probe: Probe,
    /// The TCP port that it is tried on, if that is another than the service's.
    pub port: Option<u16>,
    /// From the start of one probe to the start of the next.
    pub every: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// Passed probes in a row that make an instance healthy, at least 1.
    pub rise: u32,
    /// Failed probes in a row that make it unhealthy, at least 1.
    pub fall: u32,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            probe: Probe::Tcp,
            port: None,
            every: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 2,
        }
    }
}

/// What a health check tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// A connection opens.
    Tcp,
    /// `GET path` over HTTP/1.1 is answered with a status from 200 to 399.
    Http {
        /// Path and query, with the leading `/`.
        path: String,
    },
    /// The program has the service's UDP port open, as the kernel lists it; nothing is sent. Of a
    /// program on another kernel, or of somebody else's, it is enough that it runs.
    Bound,
}
