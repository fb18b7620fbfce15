//! What the gateway lets be done with its NAT: its own external address, and ports that lead in.
//!
//! Three protocols are spoken: [`pcp`] (RFC 6887), [`pmp`] (NAT-PMP, RFC 6886) and [`upnp`] (an Internet Gateway
//! Device). [`ask`](ask::ask) only asks, and leaves nothing behind; a port is mapped on the user's word, by
//! [`live::Mapper`], which gives it back. Only the gateway itself is heard: what another machine answers, or
//! a description that lies elsewhere, is ignored.
//!
//! The codecs take and give bytes, [`ask`] is a story over sockets (see
//! [`machine`](crate::stun::machine)), [`live`] has the sockets and clocks. IPv4 only: of IPv6 nothing is translated.

pub mod ask;
pub(crate) mod http;
pub mod live;
pub mod pcp;
pub mod pmp;
pub mod upnp;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its number in IP (`IPPROTO_*`).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// By what a gateway is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// The Port Control Protocol.
    Pcp,
    /// NAT-PMP.
    NatPmp,
    /// An Internet Gateway Device of UPnP.
    Upnp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// What a gateway said when it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portmap {
    /// Who was asked.
    pub gateway: IpAddr,
    /// It speaks PCP.
    pub pcp: bool,
    /// It speaks NAT-PMP.
    pub pmp: bool,
    /// It is an Internet Gateway Device.
    pub upnp: bool,
    /// Its external address, if it told one.
    pub external: Option<Ipv4Addr>,
}

impl Portmap {
    /// One of which nothing was heard.
    #[must_use]
    pub const fn silent(gateway: IpAddr) -> Self {
        Self { gateway, pcp: false, pmp: false, upnp: false, external: None }
    }

    /// What it speaks.
    pub fn protocols(&self) -> impl Iterator<Item = Protocol> {
        [(self.pcp, Protocol::Pcp), (self.pmp, Protocol::NatPmp), (self.upnp, Protocol::Upnp)]
            .into_iter()
            .filter_map(|(speaks, protocol)| speaks.then_some(protocol))
    }
}

/// A port that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// TCP or UDP.
    pub transport: Transport,
    /// The port of this machine that it leads to.
    pub port: u16,
    /// The external port that would be best; gateways may give another.
    pub external_port: u16,
    /// For how long. Gateways may give less.
    pub lifetime: Duration,
}

impl Wanted {
    /// In whole seconds, as the protocols have it.
    fn seconds(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }
}

/// A port that a gateway has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Granted {
    /// By what it was asked.
    pub by: Protocol,
    /// TCP or UDP.
    pub transport: Transport,
    /// Where others send to. The address is `None` if the gateway does not tell it.
    pub external: Option<Ipv4Addr>,
    /// The external port.
    pub external_port: u16,
    /// Where it leads.
    pub local: SocketAddr,
    /// How long it stays unless it is renewed, seconds; 0: until it is given back.
    pub lifetime_s: u32,
}

/// Why there is no mapping, or no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortmapError {
    /// The card has no IPv4 gateway.
    #[error("{card} has no IPv4 gateway that could be asked")]
    NoGateway {
        /// The card.
        card: String,
    },
    /// The gateway speaks none of the protocols.
    #[error(
        "the gateway {gateway} answers neither PCP nor NAT-PMP nor UPnP; they may be switched off in it"
    )]
    Silent {
        /// The gateway.
        gateway: IpAddr,
    },
    /// It said no, by every protocol that it speaks.
    #[error("the gateway {gateway} refuses: {}", .reasons.join("; "))]
    Refused {
        /// The gateway.
        gateway: IpAddr,
        /// What it said, by protocol.
        reasons: Vec<String>,
    },
    /// It is wanted for less than a second, which the protocols take as giving it back.
    #[error("a port is mapped for a second at least")]
    Lifetime,
    /// A socket failed.
    #[error("cannot ask the gateway: {0}")]
    Socket(String),
}
