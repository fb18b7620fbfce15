//! A hub's control API: HTTP over a Unix socket, and its [client](Client).
//!
//! ```text
//! GET    /v1/health                  {"healthy": true}
//! GET    /v1/hub                     HubStatus
//! GET    /v1/peers                   [PeerStatus]
//! GET    /v1/peers/{name}            PeerStatus
//! POST   /v1/peers/{name}/revoke     the name
//! POST   /v1/peers/{name}/subnets    SubnetJudged -> the same
//! GET    /v1/tokens                  [Token]
//! POST   /v1/tokens                  TokenWanted -> TokenCreated
//! POST   /v1/tokens/{id}/revoke      the token's name
//! GET    /v1/policy                  Policy, or null
//! PUT    /v1/policy                  Policy -> the same
//! DELETE /v1/policy                  null
//! GET    /v1/audit?most=N            [Deed], the latest first
//! POST   /v1/backup                  BackupWanted -> the same
//! GET    /metrics                    Prometheus text
//! ```
//!
//! Every answer that is not a success is an [`Error`]. The socket is open to its owner alone.

mod client;
mod metrics;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netyard_sys::socket_path::SocketPath;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use crate::addresses::Addressing;
use crate::error::{Blame, Error, Result};
pub use crate::lane::Traffic;
use crate::policy::Policy;
use crate::queue::Losses;
use crate::relay::Drops;
use crate::store::{Deed, Subnet, Token};

pub use self::client::Client;

/// Requests that wait for the hub; more wait in their connections.
pub(crate) const WAITING_ASKS: usize = 64;

const SOCKET: &str = "hub.sock";

/// A hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubStatus {
    /// Its name on this machine.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether packets may go by UDP, on the same port.
    #[serde(default)]
    pub udp: bool,
    /// What join strings say: host and port.
    pub reached_as: String,
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
    /// How long it lives, milliseconds; `None`: for ever.
    pub life_ms: Option<i64>,
    /// How many nodes may join with it; `None`: any number.
    pub uses: Option<u32>,
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

/// How much of the audit is wanted.
#[derive(Debug, Clone, Copy, Deserialize)]
struct AuditWanted {
    #[serde(default = "all")]
    most: u32,
}

const fn all() -> u32 {
    u32::MAX
}

/// Where an answer goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T>>;

/// What is asked of a hub.
#[derive(Debug)]
pub(crate) enum Ask {
    Hub(Answer<HubStatus>),
    Peers(Answer<Vec<PeerStatus>>),
    RevokePeer { name: String, answer: Answer<String> },
    Tokens(Answer<Vec<Token>>),
    CreateToken { wanted: TokenWanted, answer: Answer<TokenCreated> },
    RevokeToken { id: String, answer: Answer<String> },
    JudgeSubnet { name: String, judged: SubnetJudged, answer: Answer<SubnetJudged> },
    SetPolicy { policy: Option<Policy>, answer: Answer<Option<Policy>> },
    Audit { most: u32, answer: Answer<Vec<Deed>> },
    BackUp { wanted: BackupWanted, answer: Answer<BackupWanted> },
}

type Asks = mpsc::Sender<Ask>;

/// Opens the socket, for us alone. The journal's lock says that no other hub of that name lives.
pub(crate) fn listen(runtime: &Path) -> Result<UnixListener> {
    let socket = runtime.join(SOCKET);
    let open = || {
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(SocketPath::new(&socket)?)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    open().map_err(|error| Error::io(format!("open {}", socket.display()), &error))
}

/// Answers requests until the task is dropped.
pub(crate) async fn serve(listener: UnixListener, asks: Asks) {
    let router = Router::new()
        .route("/v1/hub", get(|State(asks)| ask(asks, Ask::Hub)))
        .route("/v1/peers", get(|State(asks)| ask(asks, Ask::Peers)))
        .route("/v1/health", get(health))
        .route("/v1/peers/{name}", get(peer))
        .route("/v1/peers/{name}/revoke", post(revoke_peer))
        .route("/v1/peers/{name}/subnets", post(judge_subnet))
        .route("/v1/tokens", get(|State(asks)| ask(asks, Ask::Tokens)).post(create_token))
        .route("/v1/tokens/{id}/revoke", post(revoke_token))
        .route("/v1/policy", get(policy).put(set_policy).delete(remove_policy))
        .route("/v1/audit", get(audit))
        .route("/v1/backup", post(back_up))
        .route("/metrics", get(prometheus))
        .with_state(asks);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the control API has ended");
    }
}

/// Healthy is a hub that answers, whose database can be read.
async fn health(State(asks): State<Asks>) -> Result<Json<serde_json::Value>, Refusal> {
    let Json(_) = ask(asks, |answer| Ask::Audit { most: 1, answer }).await?;
    Ok(Json(serde_json::json!({ "healthy": true })))
}

async fn peer(
    State(asks): State<Asks>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<PeerStatus>, Refusal> {
    let Json(peers) = ask(asks, Ask::Peers).await?;
    let found = peers.into_iter().find(|peer| peer.name == name);
    found.map(Json).ok_or_else(|| {
        let wanted = format!("look at the peer {name}");
        Refusal(Error::new(Blame::Unknown, wanted, "no peer has that name"))
    })
}

async fn judge_subnet(
    State(asks): State<Asks>,
    UrlPath(name): UrlPath<String>,
    Json(judged): Json<SubnetJudged>,
) -> Result<Json<SubnetJudged>, Refusal> {
    ask(asks, |answer| Ask::JudgeSubnet { name, judged, answer }).await
}

async fn policy(State(asks): State<Asks>) -> Result<Json<Option<Policy>>, Refusal> {
    let Json(hub) = ask(asks, Ask::Hub).await?;
    Ok(Json(hub.policy))
}

async fn set_policy(
    State(asks): State<Asks>,
    Json(policy): Json<Policy>,
) -> Result<Json<Option<Policy>>, Refusal> {
    ask(asks, |answer| Ask::SetPolicy { policy: Some(policy), answer }).await
}

async fn remove_policy(State(asks): State<Asks>) -> Result<Json<Option<Policy>>, Refusal> {
    ask(asks, |answer| Ask::SetPolicy { policy: None, answer }).await
}

async fn audit(
    State(asks): State<Asks>,
    Query(AuditWanted { most }): Query<AuditWanted>,
) -> Result<Json<Vec<Deed>>, Refusal> {
    ask(asks, |answer| Ask::Audit { most, answer }).await
}

async fn back_up(
    State(asks): State<Asks>,
    Json(wanted): Json<BackupWanted>,
) -> Result<Json<BackupWanted>, Refusal> {
    ask(asks, |answer| Ask::BackUp { wanted, answer }).await
}

async fn prometheus(State(asks): State<Asks>) -> Result<Response, Refusal> {
    let Json(hub) = ask(asks.clone(), Ask::Hub).await?;
    let Json(peers) = ask(asks, Ask::Peers).await?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, metrics::text(&hub, &peers)).into_response())
}

async fn revoke_peer(
    State(asks): State<Asks>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<String>, Refusal> {
    ask(asks, |answer| Ask::RevokePeer { name, answer }).await
}

async fn revoke_token(
    State(asks): State<Asks>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<String>, Refusal> {
    ask(asks, |answer| Ask::RevokeToken { id, answer }).await
}

async fn create_token(
    State(asks): State<Asks>,
    Json(wanted): Json<TokenWanted>,
) -> Result<Json<TokenCreated>, Refusal> {
    ask(asks, |answer| Ask::CreateToken { wanted, answer }).await
}

async fn ask<T>(asks: Asks, make: impl FnOnce(Answer<T>) -> Ask) -> Result<Json<T>, Refusal> {
    let gone = || Refusal(Error::new(Blame::Conflict, "ask the hub", "it is going down"));
    let (answer, receiver) = oneshot::channel();
    asks.send(make(answer)).await.map_err(|_| gone())?;
    receiver.await.map_err(|_| gone())?.map(Json).map_err(Refusal)
}

/// An error as the answer to a request.
struct Refusal(Error);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.0.blame {
            Blame::Input => StatusCode::BAD_REQUEST,
            Blame::Unknown => StatusCode::NOT_FOUND,
            Blame::Conflict => StatusCode::CONFLICT,
            Blame::NotPermitted => StatusCode::FORBIDDEN,
            Blame::Peer => StatusCode::BAD_GATEWAY,
            Blame::System => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self.0)).into_response()
    }
}
