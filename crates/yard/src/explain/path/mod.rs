//! The way of a packet from one end to another and back, hop by hop.
//!
//! Where the kernel moves packets (`kernel`) each hop is what its routes and rules, as they are now,
//! do with this packet. Where a network process does (`user`) it is what that process's own switch,
//! services and policy say.

mod kernel;
mod question;
mod trip;
mod user;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netyard_engine::forward::Protocol;
pub use netyard_link::nft::trace::Decision;
use serde::{Deserialize, Serialize};

pub use self::question::split;
use self::question::{Door, Leads, Resolved};
use self::trip::Trip;
use super::facts::Facts;
use crate::api::ServiceStatus;
use crate::error::YardError;

/// An address outside of every network of anybody (RFC 5737, RFC 3849).
const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);

/// One end of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// An instance.
    Instance(String),
    /// A service, by its virtual address.
    Service(String),
    /// This machine.
    Host,
    /// Somewhere that this machine reaches by its default route.
    Outside,
    /// Whoever has this address.
    Address(IpAddr),
}

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speech {
    /// A TCP connection.
    Tcp,
    /// UDP.
    Udp,
    /// An echo request and its answer, of ICMP or ICMPv6.
    Ping,
}

impl Speech {
    fn number(self, v4: bool) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Ping if v4 => 1,
            Self::Ping => 58,
        }
    }

    fn protocol(self) -> Option<Protocol> {
        match self {
            Self::Tcp => Some(Protocol::Tcp),
            Self::Udp => Some(Protocol::Udp),
            Self::Ping => None,
        }
    }
}

impl fmt::Display for Speech {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ping => "ping",
        })
    }
}

/// Which way is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who asks.
    pub from: End,
    /// Who is asked.
    pub to: End,
    /// The port that is asked.
    pub port: Option<u16>,
    /// TCP unless given; without a port too: a ping.
    pub protocol: Option<Protocol>,
    /// By IPv6, where the ends have both.
    pub ipv6: bool,
}

/// The two addresses of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Where from.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
}

impl Addresses {
    fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// Without ports where there are none.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.destination.port() == 0 {
            write!(f, "{} -> {}", self.source.ip(), self.destination.ip())
        } else {
            write!(f, "{} -> {}", self.source, self.destination)
        }
    }
}

/// One place that a packet passes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Where: an instance, a bridge, a network process, this machine.
    pub at: String,
    /// What happens there.
    pub text: String,
    /// The packet's addresses behind it.
    pub packet: Addresses,
    /// Whether they were rewritten here.
    pub rewritten: bool,
    /// The rules that did something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Decision>,
}

/// How it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It gets where it was to go: this end.
    Arrives(String),
    /// It does not, for this reason.
    Refused(String),
}

/// A way, there and back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Who asks.
    pub from: String,
    /// Who is asked.
    pub to: String,
    /// What is spoken.
    pub speech: Speech,
    /// The addresses that the asker uses.
    pub asked: Addresses,
    /// How it ends.
    pub outcome: Outcome,
    /// The hops there.
    pub there: Vec<Hop>,
    /// The hops of the answer; none if there is nobody to answer.
    pub back: Vec<Hop>,
    /// Who the connection may be given to, one after the other; the hops are those to the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<String>,
    /// What could not be worked out, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(name) | Self::Service(name) => f.write_str(name),
            Self::Host => f.write_str("host"),
            Self::Outside => f.write_str("outside"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// What a network process does that answers for a service itself.
const BY_REQUEST: &str = "it speaks HTTP with the client itself, and sends each request to the \
                          instance whose turn it is, on a connection of its own";

/// The instances of a service that get turns.
fn eligible(service: &ServiceStatus) -> Vec<String> {
    let eligible = service.instances.iter().filter(|it| it.eligible);
    eligible.map(|it| it.name.clone()).collect()
}

/// Follows a packet.
///
/// # Errors
/// One of the ends has no address.
pub fn follow(facts: &Facts, question: &Question) -> Result<Path, YardError> {
    let resolved = Resolved::new(facts, question)?;
    let mode = resolved.network.map(|network| network.state.interface.is_some());
    let mut trip = Trip::new(facts, &resolved);
    let outcome = match mode {
        Some(true) => kernel::follow(&mut trip, &resolved)?,
        _ => user::follow(&mut trip, &resolved),
    };
    Ok(Path {
        from: question.from.to_string(),
        to: question.to.to_string(),
        speech: resolved.speech,
        asked: trip.asked,
        outcome,
        there: trip.there,
        back: trip.back,
        turns: trip.turns,
        doubts: trip.doubts,
    })
}
