//! A hub's control API as HTTP: requests to questions, answers to JSON.

use std::cell::RefCell;
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use axum::extract::{
    Extension, FromRequest, FromRequestParts, Path as UrlPath, Query, Request as HttpRequest,
};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use netyard_sys::socket_path::SocketPath;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::{task, time};

use super::places::{Places, STRANGERS_LIFE, Standing};
use super::{
    Ask, BackupWanted, Caller, NetworkAsk, PinWanted, Request, Role, Roles, SubnetJudged,
    TokenWanted,
};
use crate::error::{Blame, Error, Result};
use crate::hub::NetworkOptions;
use crate::policy::Policy;

/// Where questions go.
type Asks = mpsc::Sender<Request>;

/// A socket that this process has made at a path; it is removed with this value, if it is still there.
#[derive(Debug)]
pub(crate) struct Opened {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Drop for Opened {
    fn drop(&mut self) {
        let there = fs::symlink_metadata(&self.path).map(|there| (there.dev(), there.ino()));
        if there.is_ok_and(|there| there == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a socket is left");
        }
    }
}

/// Opens a socket that users connect to as its mode says, in place of one that a hub which was killed has left.
pub(crate) fn listen(socket: &Path, mode: u32) -> Result<(UnixListener, Opened)> {
    let open = || {
        match fs::symlink_metadata(socket) {
            Ok(there) if there.file_type().is_socket() => {
                // Somebody who lives answers.
                if UnixStream::connect(SocketPath::new(socket)?).is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                fs::remove_file(socket)?;
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // Somebody's file stays, and is in the way.
            _ => {}
        }
        let listener = UnixListener::bind(SocketPath::new(socket)?)?;
        let made = fs::symlink_metadata(socket)?;
        let opened = Opened { path: socket.to_owned(), id: (made.dev(), made.ino()) };
        fs::set_permissions(socket, fs::Permissions::from_mode(mode))?;
        Ok((listener, opened))
    };
    open().map_err(|error| Error::io(format!("open {}", socket.display()), &error))
}

/// How long the head of a request, or its body, may take; so long a connection may be idle.
const PATIENCE: Duration = Duration::from_secs(30);
/// After an attempt to take a connection that failed, when descriptors are used up.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until the task is dropped; users have the roles that are told, as of each connection.
pub(crate) async fn serve(listener: UnixListener, asks: Asks, roles: Rc<RefCell<Roles>>) {
    let router = router(asks);
    let places = Places::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control API cannot take a connection");
                time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(by) = stream.peer_cred().map(Caller::from) else { continue };
        let standing = by.standing(&roles.borrow());
        let Some(place) = places.take(by.user(), standing) else {
            // Who does not read it sees the end.
            _ = stream.try_write(TOO_MANY.as_bytes());
            continue;
        };
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(router.clone().layer(Extension(by))),
            );
        task::spawn_local(async move {
            let _place = place;
            // What is wrong with a connection is its client's matter.
            match standing {
                Standing::Stranger => _ = time::timeout(STRANGERS_LIFE, serving).await,
                Standing::Own | Standing::Known => _ = serving.await,
            }
        });
    }
}

/// What somebody is answered who has too many connections, whatever was asked.
const TOO_MANY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    connection: close\r\n\r\n{\"blame\":\"conflict\",\"wanted\":\"ask the hub\",\
    \"found\":\"there are too many connections of this user\",\"next\":\"end some\"}";

fn router(asks: Asks) -> Router {
    Router::new()
        .route("/v1/health", get(health))
        .route("/v1/hub", get(|to: To| to.ask(NetworkAsk::Status)))
        .route("/v1/networks", get(|to: To| to.ask_hub(Ask::Networks)).post(add_network))
        .route("/v1/networks/{name}", delete(remove_network))
        .route("/v1/peers", get(|to: To| to.ask(NetworkAsk::Peers)))
        .route("/v1/peers/{name}", get(|to: To, name: Name| to.ask(NetworkAsk::Peer(name.0))))
        .route("/v1/peers/{name}/revoke", post(revoke_peer))
        .route("/v1/peers/{name}/pin", put(pin).delete(unpin))
        .route("/v1/peers/{name}/subnets", post(judge_subnet))
        .route("/v1/tokens", get(|to: To| to.ask(NetworkAsk::Tokens)).post(create_token))
        .route("/v1/tokens/{id}/revoke", post(revoke_token))
        .route(
            "/v1/policy",
            get(|to: To| to.ask(NetworkAsk::Policy))
                .put(set_policy)
                .delete(|to: To| to.ask(NetworkAsk::SetPolicy(None))),
        )
        .route("/v1/audit", get(audit))
        .route("/v1/backup", post(back_up))
        .route("/v1/roles", get(|to: To| to.ask_hub(Ask::Roles)))
        .route("/v1/roles/{user}", put(set_role).delete(remove_role))
        .route("/metrics", get(prometheus))
        .fallback(|| async { refused(Blame::Unknown, &"there is nothing of that name") })
        .method_not_allowed_fallback(|| async {
            refused(Blame::Input, &"that cannot be done to it")
        })
        .with_state(asks)
}

type Name = UrlPath<String>;
type Answer = Result<Json<Value>, Refusal>;

/// Whom a request is for: the hub, and which of its networks (`?network=NAME`); and whose it is.
#[derive(Debug)]
struct To {
    asks: Asks,
    network: Option<String>,
    most: Option<u32>,
    by: Caller,
}

/// What a request may say behind its path.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    network: Option<String>,
    /// How much of the audit is wanted.
    most: Option<u32>,
}

impl FromRequestParts<Asks> for To {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, asks: &Asks) -> Result<Self, Refusal> {
        let Query(Said { network, most }) = Query::from_request_parts(parts, asks)
            .await
            .map_err(|error| refused(Blame::Input, &error.body_text()))?;
        let Extension(by) = Extension::<Caller>::from_request_parts(parts, asks)
            .await
            .map_err(|error| refused(Blame::System, &error))?;
        Ok(Self { asks: asks.clone(), network, most, by })
    }
}

/// The JSON that a request carries.
struct Body<T>(T);

impl<T: DeserializeOwned> FromRequest<Asks> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: HttpRequest, asks: &Asks) -> Result<Self, Refusal> {
        let read = time::timeout(PATIENCE, Json::from_request(request, asks)).await;
        let read = read.map_err(|_| refused(Blame::Input, &"the rest of it does not come"))?;
        read.map(|Json(body)| Self(body)).map_err(|error| refused(Blame::Input, &error.body_text()))
    }
}

fn refused(blame: Blame, found: &dyn Display) -> Refusal {
    Refusal(Error::new(blame, "read a request", found.to_string()))
}

impl To {
    async fn ask(mut self, ask: NetworkAsk) -> Answer {
        let network = self.network.take();
        self.ask_hub(Ask::Of { network, ask }).await
    }

    async fn ask_hub(self, ask: Ask) -> Answer {
        let gone = || Refusal(Error::new(Blame::Conflict, "ask the hub", "it is going down"));
        let (answer, receiver) = oneshot::channel();
        self.asks.send(Request { ask, by: self.by, answer }).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?.map(Json).map_err(Refusal)
    }
}

/// Healthy is a hub that answers, whose database can be written.
async fn health(to: To) -> Answer {
    let Json(_) = to.ask(NetworkAsk::Health).await?;
    Ok(Json(json!({ "healthy": true })))
}

async fn add_network(to: To, Body(wanted): Body<NetworkOptions>) -> Answer {
    to.ask_hub(Ask::AddNetwork(wanted)).await
}

async fn remove_network(to: To, UrlPath(name): Name) -> Answer {
    to.ask_hub(Ask::RemoveNetwork(name)).await
}

async fn revoke_peer(to: To, UrlPath(name): Name) -> Answer {
    to.ask(NetworkAsk::RevokePeer(name)).await
}

async fn pin(to: To, UrlPath(name): Name, Body(wanted): Body<PinWanted>) -> Answer {
    to.ask(NetworkAsk::Pin { name, address: Some(wanted.address) }).await
}

async fn unpin(to: To, UrlPath(name): Name) -> Answer {
    to.ask(NetworkAsk::Pin { name, address: None }).await
}

async fn judge_subnet(to: To, UrlPath(name): Name, Body(judged): Body<SubnetJudged>) -> Answer {
    to.ask(NetworkAsk::JudgeSubnet { name, judged }).await
}

async fn create_token(to: To, Body(wanted): Body<TokenWanted>) -> Answer {
    to.ask(NetworkAsk::CreateToken(wanted)).await
}

async fn revoke_token(to: To, UrlPath(id): Name) -> Answer {
    to.ask(NetworkAsk::RevokeToken(id)).await
}

async fn set_policy(to: To, Body(policy): Body<Policy>) -> Answer {
    to.ask(NetworkAsk::SetPolicy(Some(policy))).await
}

async fn audit(to: To) -> Answer {
    let most = to.most.unwrap_or(u32::MAX);
    to.ask(NetworkAsk::Audit { most }).await
}

async fn back_up(to: To, Body(wanted): Body<BackupWanted>) -> Answer {
    to.ask(NetworkAsk::BackUp(wanted)).await
}

async fn set_role(to: To, name: Name, Body(role): Body<Role>) -> Answer {
    to.ask_hub(Ask::SetRole { user: user(&name)?, role: Some(role) }).await
}

async fn remove_role(to: To, name: Name) -> Answer {
    to.ask_hub(Ask::SetRole { user: user(&name)?, role: None }).await
}

/// A user, who is known by number here.
fn user(text: &str) -> Result<u32, Refusal> {
    text.parse().map_err(|_| refused(Blame::Input, &format!("{text} is no number of a user")))
}

async fn prometheus(to: To) -> Result<Response, Refusal> {
    let Json(text) = to.ask_hub(Ask::Metrics).await?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, text.as_str().unwrap_or_default().to_owned()).into_response())
}

/// An error as the answer to a request.
#[derive(Debug)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_of_somebody_who_lives_and_a_file_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.sock");
        let (listener, opened) = listen(&path, 0o600).unwrap();
        assert_eq!(listen(&path, 0o600).unwrap_err().blame, Blame::Conflict);
        assert!(path.exists());
        // As a killed one leaves it.
        drop(listener);
        std::mem::forget(opened);
        let (_listener, opened) = listen(&path, 0o600).unwrap();
        drop(opened);
        assert!(!path.exists());
        fs::write(&path, "mine").unwrap();
        assert!(listen(&path, 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
