//! What a stack is to be: interfaces, addresses, routes, resolvers, TCP settings.
//!
//! A [`Config`] is built by hand, or read from text ([`Config::parse`], [`Config::from_environment`]);
//! as text it reads back ([`fmt::Display`]).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use netyard_wire::MacAddr;

use crate::tcp::{Algorithm, Settings};

pub use crate::grammar::{Note, Notes, Parsed, VARIABLES};
pub use crate::sniffer::Detail;

/// What a stack is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// The configuration is to be printed at the start.
    pub verbose: bool,
    /// Interfaces.
    pub nics: Vec<Nic>,
    /// Routes beyond those that come with addresses.
    pub routes: Vec<Route>,
    /// Resolvers, and how they are asked.
    pub dns: Dns,
    /// Settings of TCP.
    pub tcp: Settings,
}

/// Where names are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Resolvers, in the order in which they are asked.
    pub resolvers: Vec<SocketAddr>,
    /// Domains that a name without one may be in.
    pub search: Vec<String>,
    /// A name with fewer dots than this is looked for in the domains first.
    pub ndots: usize,
    /// How long an answer is waited for, each time.
    pub timeout: Duration,
    /// How often each resolver is asked.
    pub attempts: usize,
    /// A file like `/etc/hosts`, which is asked first. It is read at the start.
    pub hosts: Option<PathBuf>,
}

impl Default for Dns {
    /// As resolv.conf(5) has it: a dot, 5 seconds, twice. No resolver.
    fn default() -> Self {
        Self {
            resolvers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            hosts: None,
        }
    }
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// What addresses and routes call it; not 0.
    pub id: u32,
    /// The hardware address. With one the device is a TAP, without one a TUN.
    pub mac: Option<MacAddr>,
    /// The largest IP packet, bytes; `None`: as the device has it.
    pub mtu: Option<u32>,
    /// The device.
    pub device: Source,
    /// Every packet is told, with so much detail.
    pub sniff: Option<Detail>,
    /// The kernel may leave work on packets undone, and leave work to us: checksums, segmentation.
    pub offload: bool,
    /// Every packet is written to this file, in pcapng.
    pub capture: Option<String>,
    /// Addresses, each with the length of its prefix.
    pub addresses: Vec<IpNet>,
    /// IPv6 addresses are made of what routers advertise.
    pub autoconf: bool,
    /// The IPv4 address is asked for by DHCP.
    pub dhcp: bool,
}

/// Where an interface's device comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A TAP or TUN device of this name.
    Name(String),
    /// A network behind the Unix socket of this path; see [`Device::connect`](crate::device::Device::connect).
    Socket(PathBuf),
    /// A descriptor that whoever started the program has opened.
    Descriptor(i32),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "device {name}"),
            Self::Socket(path) => write!(f, "socket {}", path.display()),
            Self::Descriptor(number) => write!(f, "descriptor {number}"),
        }
    }
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// By which interface.
    pub nic: u32,
    /// Where to.
    pub prefix: IpNet,
    /// The next hop; `None`: destinations are on the link.
    pub gateway: Option<IpAddr>,
}

impl Config {
    /// Adds an interface.
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// Adds a route by the interface of this id.
    #[must_use]
    pub fn route(mut self, nic: u32, prefix: IpNet, gateway: Option<IpAddr>) -> Self {
        self.routes.push(Route { nic, prefix: prefix.trunc(), gateway });
        self
    }

    /// Adds a resolver.
    #[must_use]
    pub fn resolver(mut self, at: SocketAddr) -> Self {
        self.dns.resolvers.push(at);
        self
    }
}

impl Nic {
    /// An interface on this device, without hardware address.
    #[must_use]
    pub fn new(id: u32, device: Source) -> Self {
        Self {
            id,
            mac: None,
            mtu: None,
            device,
            sniff: None,
            offload: true,
            capture: None,
            addresses: Vec::new(),
            autoconf: false,
            dhcp: false,
        }
    }

    /// With this hardware address.
    #[must_use]
    pub fn mac(self, mac: MacAddr) -> Self {
        Self { mac: Some(mac), ..self }
    }

    /// With this MTU, bytes.
    #[must_use]
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu: Some(mtu), ..self }
    }

    /// With one more address.
    #[must_use]
    pub fn address(mut self, net: IpNet) -> Self {
        self.addresses.push(net);
        self
    }
}

impl fmt::Display for Config {
    /// One statement a line, in the grammar of [`Config::parse`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.verbose {
            writeln!(f, "verbose;")?;
        }
        let tcp = &self.tcp;
        let congestion = match tcp.congestion {
            Algorithm::Cubic => "cubic",
            Algorithm::NewReno => "newreno",
        };
        let (rmem, wmem, rto) = (tcp.receive_buffer, tcp.send_buffer, tcp.min_rto.as_millis());
        writeln!(f, "tcp cc={congestion} rmem={rmem} wmem={wmem} rto_min={rto};")?;
        for nic in &self.nics {
            write!(f, "{nic}")?;
        }
        for route in &self.routes {
            write!(f, "{route}")?;
        }
        write!(f, "{}", self.dns)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nic, prefix, gateway } = self;
        write!(f, "route nic={nic} ipnet={prefix}")?;
        if let Some(gateway) = gateway {
            write!(f, " gw={gateway}")?;
        }
        writeln!(f, ";")
    }
}

impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return Ok(());
        }
        write!(f, "dns")?;
        for resolver in &self.resolvers {
            write!(f, " ip={resolver}")?;
        }
        for domain in &self.search {
            write!(f, " search={domain}")?;
        }
        let (ndots, timeout, attempts) = (self.ndots, self.timeout.as_secs(), self.attempts);
        write!(f, " ndots={ndots} timeout={timeout} attempts={attempts}")?;
        if let Some(file) = &self.hosts {
            write!(f, " hosts={}", file.display())?;
        }
        writeln!(f, ";")
    }
}

impl fmt::Display for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nic id={}", self.id)?;
        if let Some(mac) = self.mac {
            write!(f, " ether={mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu={mtu}")?;
        }
        match &self.device {
            Source::Name(name) => write!(f, " dev={name}")?,
            Source::Socket(path) => write!(f, " dev=unix:{}", path.display())?,
            Source::Descriptor(number) => write!(f, " fd={number}")?,
        }
        let sniff = match self.sniff {
            None => "false",
            Some(Detail::Brief) => "brief",
            Some(Detail::Usual) => "true",
            Some(Detail::Full) => "full",
            Some(Detail::Json) => "json",
        };
        write!(f, " sniff={sniff}")?;
        if !self.offload {
            write!(f, " offload=off")?;
        }
        if let Some(file) = &self.capture {
            write!(f, " pcap={file}")?;
        }
        writeln!(f, ";")?;
        if self.addresses.is_empty() && !self.autoconf && !self.dhcp {
            return Ok(());
        }
        write!(f, "ip nic={}", self.id)?;
        for address in &self.addresses {
            write!(f, " addr={address}")?;
        }
        if self.autoconf {
            write!(f, " addr=slaac")?;
        }
        if self.dhcp {
            write!(f, " addr=dhcp")?;
        }
        writeln!(f, ";")
    }
}
