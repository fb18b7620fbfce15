//! What the host and the init of a virtual machine have to know of each other: what the guest is
//! ([`Config`]), and what is said while it runs ([`protocol`]).

pub mod protocol;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Where the guest's init is, in the guest.
pub const INIT: &str = "/init";

/// Where the guest's [`Config`] is, as JSON.
pub const CONFIG: &str = "/netyard/config.json";

/// Name of the virtio-serial port that the [`protocol`] is spoken on.
pub const PORT: &str = "netyard";

/// Everything that the guest's init sets up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Host name.
    pub host_name: String,
    /// Files of kernel modules, in the order in which they are loaded.
    pub modules: Vec<PathBuf>,
    /// Network cards; the first one has the default route.
    pub plugs: Vec<Plug>,
    /// The text of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// The text of `/etc/hosts`.
    pub hosts: String,
    /// What runs.
    pub program: Program,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plug {
    /// Hardware address: which card it is.
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// IPv4 address with the length of its prefix.
    pub address4: Ipv4Net,
    /// IPv6 address with the length of its prefix.
    pub address6: Ipv6Net,
    /// The gateway's addresses.
    pub gateway: (Ipv4Addr, Ipv6Addr),
}

/// The program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Absolute path in the guest.
    pub path: PathBuf,
    /// `argv`, the name it is called by first.
    pub argv: Vec<String>,
    /// All of its variables.
    pub env: Vec<(String, String)>,
    /// Working folder, absolute; made if it is not there.
    pub cwd: PathBuf,
}
