//! A hub's control API: HTTP over a Unix socket, and its client.
//!
//! ```text
//! GET  /v1/hub                    HubStatus
//! GET  /v1/peers                  [PeerStatus]
//! POST /v1/peers/{name}/revoke    the name
//! GET  /v1/tokens                 [Token]
//! POST /v1/tokens                 TokenWanted -> TokenCreated
//! POST /v1/tokens/{id}/revoke     the token's name
//! ```
//!
//! Every answer that is not a success is an [`Error`]. The socket is open to its owner alone.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use ipnet::{Ipv4Net, Ipv6Net};
use netyard_sys::socket_path::SocketPath;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::addresses::Addressing;
use crate::error::{Blame, Error, Result};
pub use crate::lane::Traffic;
use crate::queue::Losses;
use crate::relay::Drops;
use crate::store::Token;

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
    /// How many peers are connected.
    pub connected: usize,
    /// How many there can be.
    pub capacity: u32,
    /// Packets of peers that were dropped, by reason.
    pub drops: Drops,
    /// Packets that the hub's own kernel did not take.
    pub device_refused: u64,
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
    /// From where.
    pub remote: Option<SocketAddr>,
    /// Since when, milliseconds of Unix time.
    pub since_ms: Option<i64>,
    /// When it logged in or left, milliseconds of Unix time.
    pub seen_ms: i64,
    /// How often it has logged in.
    pub logins: u64,
    /// What went to it in this session.
    pub to_peer: Traffic,
    /// What came from it in this session.
    pub from_peer: Traffic,
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
        .route("/v1/peers/{name}/revoke", post(revoke_peer))
        .route("/v1/tokens", get(|State(asks)| ask(asks, Ask::Tokens)).post(create_token))
        .route("/v1/tokens/{id}/revoke", post(revoke_token))
        .with_state(asks);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the control API has ended");
    }
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

/// A running hub's control API. Blocking: each call runs a small runtime of its own.
#[derive(Debug, Clone)]
pub struct Client {
    hub: String,
    socket: PathBuf,
}

impl Client {
    /// Of the hub of this name, with this runtime folder, running or not.
    #[must_use]
    pub fn new(hub: &str, runtime: &Path) -> Self {
        Self { hub: hub.to_owned(), socket: runtime.join(SOCKET) }
    }

    /// The hub.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn hub(&self) -> Result<HubStatus> {
        self.call(Method::GET, "/v1/hub", None::<&()>)
    }

    /// The peers that may log in.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn peers(&self) -> Result<Vec<PeerStatus>> {
        self.call(Method::GET, "/v1/peers", None::<&()>)
    }

    /// Ends a peer's session, and lets it in no more.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn revoke_peer(&self, name: &str) -> Result<String> {
        self.call(Method::POST, &format!("/v1/peers/{}/revoke", segment(name)), None::<&()>)
    }

    /// The tokens.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn tokens(&self) -> Result<Vec<Token>> {
        self.call(Method::GET, "/v1/tokens", None::<&()>)
    }

    /// Makes a token.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn create_token(&self, wanted: TokenWanted) -> Result<TokenCreated> {
        self.call(Method::POST, "/v1/tokens", Some(&wanted))
    }

    /// Revokes a token.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn revoke_token(&self, id: &str) -> Result<String> {
        self.call(Method::POST, &format!("/v1/tokens/{}/revoke", segment(id)), None::<&()>)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let asked = || format!("ask the hub {}", self.hub);
        let nonsense = |error: serde_json::Error| Error::new(Blame::Peer, asked(), error);
        let gone = |error: &dyn std::fmt::Display| {
            Error::new(Blame::Unknown, asked(), error)
                .next("start it with `netyard hub`, or name another with --hub")
        };
        let body = body.map(serde_json::to_vec).transpose().map_err(nonsense)?.unwrap_or_default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::io(asked(), &error))?;
        let (status, body) = runtime.block_on(async {
            let socket = SocketPath::new(&self.socket).map_err(|error| gone(&error))?;
            let stream = UnixStream::connect(socket).await.map_err(|error| gone(&error))?;
            let io = TokioIo::new(stream);
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(io).await.map_err(|error| gone(&error))?;
            let connection = tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "hub")
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body)))
                .map_err(|error| Error::new(Blame::Input, asked(), error))?;
            let answer = sender.send_request(request).await.map_err(|error| gone(&error))?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(|error| gone(&error))?;
            connection.abort();
            Ok::<_, Error>((status, body.to_bytes()))
        })?;
        match status.is_success() {
            true => serde_json::from_slice(&body).map_err(nonsense),
            false => Err(serde_json::from_slice(&body).unwrap_or_else(|_| {
                Error::new(Blame::Peer, asked(), format!("it answered with status {status}"))
            })),
        }
    }
}

/// A name as a piece of a path: what is not plain is escaped.
fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let piece = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    name.bytes().map(piece).collect()
}
