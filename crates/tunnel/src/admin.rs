//! A hub's control API: HTTP over a Unix socket, and its [client](Client).
//!
//! ```text
//! GET    /v1/health                  {"healthy": true}
//! GET    /v1/hub                     HubStatus
//! GET    /v1/networks                [HubStatus], of each network
//! POST   /v1/networks                NetworkOptions -> HubStatus
//! DELETE /v1/networks/{name}         the name; its machines and tokens are forgotten
//! GET    /v1/peers                   [PeerStatus]
//! GET    /v1/peers/{name}            PeerStatus
//! PUT    /v1/peers/{name}/pin        PinWanted -> PeerStatus
//! DELETE /v1/peers/{name}/pin        PeerStatus
//! POST   /v1/peers/{name}/revoke     the name
//! POST   /v1/peers/{name}/subnets    SubnetJudged -> the same
//! GET    /v1/tokens                  [TokenStatus]
//! POST   /v1/tokens                  TokenWanted -> TokenCreated
//! POST   /v1/tokens/{id}/revoke      the token's name
//! GET    /v1/policy                  Policy, or null
//! PUT    /v1/policy                  Policy -> the same
//! DELETE /v1/policy                  null
//! GET    /v1/audit?most=N            [Deed], the latest first
//! POST   /v1/backup                  BackupWanted -> the same
//! GET    /v1/roles                   {"USER": "operator", ..}, users by number
//! PUT    /v1/roles/{user}            "operator" -> all of them
//! DELETE /v1/roles/{user}            all of them
//! GET    /metrics                    Prometheus text
//! ```
//!
//! Peers, tokens, the policy, the audit and backups are the main network's, or with `?network=NAME` another's; so is
//! the status of the hub. Metrics are of all networks.
//! Every answer that is not a success is an [`Error`](crate::Error). Who may ask for what says [`Role`].

mod client;
pub(crate) mod metrics;
mod places;
mod roles;
mod serve;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::addresses::{Addressing, Chosen};
use crate::error::Result;
use crate::hub::NetworkOptions;
pub use crate::lane::Traffic;
use crate::policy::Policy;
use crate::queue::Losses;
use crate::relay::Drops;
use crate::store::{Subnet, Token};

pub use self::client::Client;
pub(crate) use self::roles::Caller;
pub use self::roles::{Role, Roles};
pub(crate) use self::serve::{Opened, listen, serve};

/// Requests that wait for the hub; more wait in their connections.
pub(crate) const WAITING_ASKS: usize = 64;

/// A hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubStatus {
    /// Its name on this machine.
    pub name: String,
    /// The name of the network that the rest is about.
    pub network_name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether packets may go by UDP, on the same port.
    #[serde(default)]
    pub udp: bool,
    /// What join strings say: host and port.
    pub reached_as: String,
    /// The addresses of its machine's cards at which it listens.
    #[serde(default)]
    pub reached_at: Vec<ReachedAt>,
    /// How many descriptors the kernel lets it have, one for each connection and a few more; `None`: that is not known.
    #[serde(default)]
    pub descriptors: Option<usize>,
    /// The SHA-256 of its authority's certificate, base64url.
    pub pin: String,
    /// The network.
    pub network: Ipv4Net,
    /// Its IPv6 prefix.
    pub network6: Option<Ipv6Net>,
    /// How addresses are given.
    pub addressing: Addressing,
    /// Its own address there.
    pub address: Ipv4Addr,
    /// Its own IPv6 address there.
    pub address6: Option<Ipv6Addr>,
    /// Its TUN device.
    pub device: String,
    /// The largest packet, bytes.
    pub mtu: u32,
    /// Whether what peers send to the outside is let on from here.
    #[serde(default)]
    pub exit: bool,
    /// The zone of the machines' names.
    #[serde(default)]
    pub zone: String,
    /// Whether it answers questions about them by DNS.
    #[serde(default)]
    pub dns: bool,
    /// Who may reach whom; `None`: everybody.
    #[serde(default)]
    pub policy: Option<Policy>,
    /// How many peers are connected.
    pub connected: usize,
    /// How many there can be.
    pub capacity: u32,
    /// Packets of peers that were dropped, by reason.
    pub drops: Drops,
    /// Packets that the hub's own kernel did not take.
    pub device_refused: u64,
}

/// An address where a hub listens. Whether others get there, nobody outside was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachedAt {
    /// The address and the port.
    pub address: SocketAddr,
    /// The card that has it.
    pub card: String,
}

/// What packets go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneKind {
    /// A WebSocket.
    Websocket,
    /// UDP, and a WebSocket for what does not go by it.
    Udp,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its address; `None`: it has lost it.
    pub address: Option<Ipv4Addr>,
    /// Its IPv6 address, if the network has any.
    pub address6: Option<Ipv6Addr>,
    /// Its number, which its addresses follow from; `None`: it has lost it.
    #[serde(default)]
    pub number: Option<u32>,
    /// Whether an operator has chosen its address.
    #[serde(default)]
    pub pinned: bool,
    /// Whether it is connected.
    pub connected: bool,
    /// What its packets go by; `None`: it is not connected.
    #[serde(default)]
    pub lane: Option<LaneKind>,
    /// From where.
    pub remote: Option<SocketAddr>,
    /// Since when, milliseconds of Unix time.
    pub since_ms: Option<i64>,
    /// When it logged in or left, milliseconds of Unix time.
    pub seen_ms: i64,
    /// How often it has logged in.
    pub logins: u64,
    /// What is behind it.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
    /// What went to it in this session.
    pub to_peer: Traffic,
    /// What came from it in this session.
    pub from_peer: Traffic,
    /// The part of what went to it that went by UDP.
    #[serde(default)]
    pub to_peer_by_udp: Traffic,
    /// The part of what came from it that came by UDP.
    #[serde(default)]
    pub from_peer_by_udp: Traffic,
    /// What was lost on the way to it in this session.
    pub losses: Losses,
}

/// What a new token shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenWanted {
    /// How long it lives, milliseconds; `None`: for ever. Ten minutes where nothing is said.
    #[serde(default = "TokenWanted::short")]
    pub life_ms: Option<i64>,
    /// How many nodes may join with it; `None`: any number. One where nothing is said.
    #[serde(default = "TokenWanted::once")]
    pub uses: Option<u32>,
    /// The address of the one who joins with it; `None`: one that is free then.
    #[serde(default)]
    pub address: Option<Chosen>,
}

impl TokenWanted {
    const fn short() -> Option<i64> {
        Some(10 * 60 * 1000)
    }

    const fn once() -> Option<u32> {
        Some(1)
    }
}

/// A token that was made. Its join string is shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// Its name.
    pub id: String,
    /// What is given to the new peer.
    pub join: String,
    /// When it ends, milliseconds of Unix time; `None`: it does not.
    pub expires_ms: Option<i64>,
    /// How many nodes may join with it; `None`: any number.
    pub uses: Option<u32>,
}

/// A token, without what proves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// As the database has it.
    #[serde(flatten)]
    pub token: Token,
    /// The address that is kept for the one who joins with it; `None`: none is.
    pub address: Option<Ipv4Addr>,
}

/// The address that a peer shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinWanted {
    /// One of either family, or its number.
    pub address: Chosen,
}

/// A subnet behind a peer, and what the administrator says to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetJudged {
    /// Its prefix.
    pub prefix: IpNet,
    /// Whether packets may go there.
    pub accepted: bool,
}

/// Where a copy of the database shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupWanted {
    /// A file of the hub's machine that is not there yet.
    pub file: PathBuf,
}

/// What is asked of a hub.
#[derive(Debug)]
pub(crate) enum Ask {
    Networks,
    AddNetwork(NetworkOptions),
    RemoveNetwork(String),
    /// Text for Prometheus, of all networks.
    Metrics,
    Roles,
    SetRole {
        user: u32,
        role: Option<Role>,
    },
    /// About one of its networks; `None`: the main one.
    Of {
        network: Option<String>,
        ask: NetworkAsk,
    },
}

/// What is asked of a network.
#[derive(Debug)]
pub(crate) enum NetworkAsk {
    Status,
    /// Whether the database can be written.
    Health,
    Peers,
    Peer(String),
    RevokePeer(String),
    /// `None`: it is not pinned any more.
    Pin {
        name: String,
        address: Option<Chosen>,
    },
    JudgeSubnet {
        name: String,
        judged: SubnetJudged,
    },
    Tokens,
    CreateToken(TokenWanted),
    RevokeToken(String),
    Policy,
    SetPolicy(Option<Policy>),
    Audit {
        most: u32,
    },
    BackUp(BackupWanted),
}

/// A question to a hub, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) ask: Ask,
    pub(crate) by: Caller,
    pub(crate) answer: oneshot::Sender<Result<Value>>,
}
