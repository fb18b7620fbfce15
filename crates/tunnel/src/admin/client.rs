//! The client of a hub's control API.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use netyard_sys::socket_path::SocketPath;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{
    BackupWanted, HubStatus, PeerStatus, PinWanted, Role, Roles, SubnetJudged, TokenCreated,
    TokenStatus, TokenWanted,
};
use crate::error::{Blame, Error, Result};
use crate::hub::NetworkOptions;
use crate::policy::Policy;
use crate::store::Deed;

/// A running hub's control API. Blocking: each call runs a small runtime of its own.
#[derive(Debug, Clone)]
pub struct Client {
    hub: String,
    network: Option<String>,
    socket: PathBuf,
}

impl Client {
    /// Of a network of the hub of this name, at this socket, running or not; `None`: its main network.
    #[must_use]
    pub fn new(hub: &str, network: Option<&str>, socket: &Path) -> Self {
        let network = network.map(str::to_owned);
        Self { hub: hub.to_owned(), network, socket: socket.to_owned() }
    }

    /// The hub.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn hub(&self) -> Result<HubStatus> {
        self.call(Method::GET, "/v1/hub", None::<&()>)
    }

    /// All networks of the hub.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn networks(&self) -> Result<Vec<HubStatus>> {
        self.call(Method::GET, "/v1/networks", None::<&()>)
    }

    /// Has the hub serve one more network.
    ///
    /// # Errors
    /// It cannot be, or overlaps with another.
    pub fn add_network(&self, wanted: &NetworkOptions) -> Result<HubStatus> {
        self.call(Method::POST, "/v1/networks", Some(wanted))
    }

    /// Ends a network; its machines and tokens are forgotten.
    ///
    /// # Errors
    /// There is none of that name, or it is the main one.
    pub fn remove_network(&self, name: &str) -> Result<String> {
        self.call(Method::DELETE, &format!("/v1/networks/{}", segment(name)), None::<&()>)
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

    /// Gives a peer an address, which it keeps; `None`: it keeps its own as others do.
    ///
    /// # Errors
    /// There is no such peer; the address is no machine's, or somebody else's.
    pub fn pin_peer(&self, name: &str, wanted: Option<PinWanted>) -> Result<PeerStatus> {
        let method = if wanted.is_some() { Method::PUT } else { Method::DELETE };
        self.call(method, &format!("/v1/peers/{}/pin", segment(name)), wanted.as_ref())
    }

    /// The tokens.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn tokens(&self) -> Result<Vec<TokenStatus>> {
        self.call(Method::GET, "/v1/tokens", None::<&()>)
    }

    /// Makes a token.
    ///
    /// # Errors
    /// The address that it is for is no machine's, or somebody's.
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

    /// Accepts what is behind a peer, or takes that back.
    ///
    /// # Errors
    /// There is no such peer, or it does not offer that; the same subnet of another one is accepted.
    pub fn judge_subnet(&self, name: &str, judged: SubnetJudged) -> Result<SubnetJudged> {
        self.call(Method::POST, &format!("/v1/peers/{}/subnets", segment(name)), Some(&judged))
    }

    /// Says who may reach whom; `None`: everybody everybody.
    ///
    /// # Errors
    /// The policy makes no sense.
    pub fn set_policy(&self, policy: Option<&Policy>) -> Result<Option<Policy>> {
        match policy {
            Some(policy) => self.call(Method::PUT, "/v1/policy", Some(policy)),
            None => self.call(Method::DELETE, "/v1/policy", None::<&()>),
        }
    }

    /// What was done, the latest first.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn audit(&self, most: u32) -> Result<Vec<Deed>> {
        self.call(Method::GET, &format!("/v1/audit?most={most}"), None::<&()>)
    }

    /// Has a copy of the database written.
    ///
    /// # Errors
    /// The file is there already, or cannot be written.
    pub fn back_up(&self, wanted: &BackupWanted) -> Result<BackupWanted> {
        self.call(Method::POST, "/v1/backup", Some(wanted))
    }

    /// The users with roles.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn roles(&self) -> Result<Roles> {
        self.call(Method::GET, "/v1/roles", None::<&()>)
    }

    /// Gives a user a role in place of the one before, or takes it away. The users with roles then.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn set_role(&self, user: u32, role: Option<Role>) -> Result<Roles> {
        let method = if role.is_some() { Method::PUT } else { Method::DELETE };
        self.call(method, &format!("/v1/roles/{user}"), role.as_ref())
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
        let path = match &self.network {
            Some(network) => {
                let sign = if path.contains('?') { '&' } else { '?' };
                format!("{path}{sign}network={}", segment(network))
            }
            None => path.to_owned(),
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
