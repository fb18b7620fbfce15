//! Pipes by number.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Shared;
use super::cards::{body, card};
use super::refusal::Refusal;
use crate::pipe::{ClientTls, Pipe, PipeError, Proto, Target};
use crate::stun::names;
use crate::{Bind, Family, Interface, Route, tls};

/// Pipes at a time, those that are being opened and those that have become connections too.
const MAX_PIPES: usize = 256;
/// What a connection says that becomes a pipe's.
const TUNNEL: &str = "netyard-pipe";
/// How long a request waits for a message, or to send one, most.
const LONGEST: Duration = Duration::from_secs(60);

/// The open pipes.
#[derive(Debug)]
pub(super) struct Pipes {
    places: Arc<Semaphore>,
    numbered: Mutex<Numbered>,
}

/// A pipe and its place.
#[derive(Debug)]
struct Held {
    pipe: Arc<Pipe>,
    place: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
struct Numbered {
    last: u64,
    pipes: BTreeMap<u64, Held>,
    /// Pipes that have become connections; they end with the service.
    tunnels: JoinSet<()>,
}

impl Pipes {
    fn lock(&self) -> MutexGuard<'_, Numbered> {
        // Nothing panics while it is locked.
        self.numbered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_PIPES)), numbered: Mutex::default() }
    }

    /// A place for one more.
    fn place(&self, wanted: &str) -> Result<OwnedSemaphorePermit, Refusal> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            Refusal::conflict(wanted, format!("{MAX_PIPES} pipes are open")).next("close one")
        })
    }

    fn add(&self, pipe: Pipe, place: OwnedSemaphorePermit) -> (u64, Arc<Pipe>) {
        let mut numbered = self.lock();
        numbered.last += 1;
        let (id, pipe) = (numbered.last, Arc::new(pipe));
        numbered.pipes.insert(id, Held { pipe: pipe.clone(), place });
        (id, pipe)
    }

    fn get(&self, wanted: &str, id: u64) -> Result<Arc<Pipe>, Refusal> {
        let found = self.lock().pipes.get(&id).map(|held| held.pipe.clone());
        found.ok_or_else(|| Refusal::unknown(wanted, format!("there is no pipe {id}")))
    }

    fn take(&self, wanted: &str, id: u64) -> Result<Held, Refusal> {
        let found = self.lock().pipes.remove(&id);
        found.ok_or_else(|| Refusal::unknown(wanted, format!("there is no pipe {id}")))
    }
}

fn described(id: u64, pipe: &Pipe) -> Value {
    json!({
        "id": id,
        "proto": pipe.proto(),
        "local": pipe.local(),
        "peer": pipe.peer(),
        "card": pipe.bound().card().map(|card| card.name.to_string()),
        "pinned": pipe.is_pinned(),
        "stats": pipe.stats(),
    })
}

/// The number in the path.
type Id = Result<Path<u64>, PathRejection>;

fn number(wanted: &str, id: Id) -> Result<u64, Refusal> {
    id.map(|Path(id)| id).map_err(|error| Refusal::input(wanted, error.body_text()))
}

/// The pipe that is wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default = "tcp")]
    proto: Proto,
    /// `HOST:PORT`, for a client.
    to: Option<String>,
    /// The port, for a server; on loopback, or on the address of the card that is named.
    listen: Option<u16>,
    /// The card; the kernel's choice unless given.
    card: Option<String>,
    family: Option<Family>,
    /// Over TLS.
    #[serde(default)]
    tls: bool,
}

const fn tcp() -> Proto {
    Proto::Tcp
}

impl Wanted {
    /// From where it may leave; nothing: the kernel's choice.
    fn binds(&self, wanted: &str, to: Option<Family>) -> Result<Vec<Bind>, Refusal> {
        let Some(name) = &self.card else {
            return Ok(self.family.map(Bind::every).into_iter().collect());
        };
        let ways = Interface::unasked(card(wanted, name)?).ways(self.family.or(to));
        let ways = ways.map_err(|error| Refusal::card(wanted, &error))?;
        Ok(ways.iter().map(Route::bind).collect())
    }
}

pub(super) async fn list(State(service): State<Shared>) -> Json<Value> {
    let pipes: Vec<_> = {
        let numbered = service.pipes.lock();
        numbered.pipes.iter().map(|(id, held)| described(*id, &held.pipe)).collect()
    };
    Json(Value::from(pipes))
}

pub(super) async fn open(
    State(service): State<Shared>,
    json: Result<Json<Wanted>, JsonRejection>,
) -> Result<Response, Refusal> {
    const WANTED: &str = "open a pipe";
    let wanted = body(WANTED, json)?;
    let place = service.pipes.place(WANTED)?;
    let pipe = match wanted.proto {
        Proto::Tcp => Pipe::tcp(),
        Proto::Udp => Pipe::udp(),
    };
    let opened = match (&wanted.to, wanted.listen) {
        (Some(to), None) => {
            let (host, port) = match names::split(to, 0) {
                (host, port @ 1..) => (host.to_owned(), port),
                _ => return Err(Refusal::input(WANTED, format!("{to:?} is not HOST:PORT"))),
            };
            let to = Target::from((host, port));
            let pipe = pipe.among(wanted.binds(WANTED, to.family())?);
            match wanted.tls {
                true => {
                    let tls = ClientTls { trust: tls::load_system_trust().await, name: None };
                    pipe.connect_tls(to, tls).await
                }
                false => pipe.connect(to).await,
            }
        }
        (None, Some(_)) if wanted.tls => {
            return Err(Refusal::input(WANTED, "a server over TLS needs a certificate")
                .next("use `netyard nic pipe --listen`"));
        }
        (None, Some(port)) => {
            let bind = wanted.binds(WANTED, None)?.into_iter().next();
            let bind = match bind.filter(|_| wanted.card.is_some()) {
                Some(bind) => bind,
                None => Bind::every(wanted.family.unwrap_or(Family::Ip4)).loopback(),
            };
            pipe.bind(bind.port(port)).gathered().listen().await
        }
        _ => return Err(Refusal::input(WANTED, "say either `to` or `listen`")),
    };
    let pipe = opened.map_err(|error| Refusal::pipe(WANTED, &error))?;
    let (id, pipe) = service.pipes.add(pipe, place);
    Ok((StatusCode::CREATED, Json(described(id, &pipe))).into_response())
}

pub(super) async fn show(State(service): State<Shared>, id: Id) -> Result<Json<Value>, Refusal> {
    const WANTED: &str = "show a pipe";
    let id = number(WANTED, id)?;
    let pipe = service.pipes.get(WANTED, id)?;
    Ok(Json(described(id, &pipe)))
}

pub(super) async fn close(State(service): State<Shared>, id: Id) -> Result<Json<Value>, Refusal> {
    const WANTED: &str = "close a pipe";
    let id = number(WANTED, id)?;
    let held = service.pipes.take(WANTED, id)?;
    // Requests that are at it learn of it.
    held.pipe.shut().await;
    Ok(Json(described(id, &held.pipe)))
}

/// How long a message is waited for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    #[serde(default)]
    wait_ms: u64,
}

/// The next message as the body, its sender as `X-From`; nothing (204) if none came in time.
pub(super) async fn receive(
    State(service): State<Shared>,
    id: Id,
    query: Result<Query<Wait>, QueryRejection>,
) -> Result<Response, Refusal> {
    const WANTED: &str = "receive a message";
    let id = number(WANTED, id)?;
    let Query(Wait { wait_ms }) = query.map_err(|error| Refusal::input(WANTED, error))?;
    let pipe = service.pipes.get(WANTED, id)?;
    match pipe.recv(Duration::from_millis(wait_ms).min(LONGEST)).await {
        Ok(Some(message)) => {
            let from = message.from.to_string();
            let headers = [(CONTENT_TYPE.as_str(), "application/octet-stream"), ("x-from", &from)];
            Ok((headers, message.bytes).into_response())
        }
        Ok(None) => Err(Refusal::gone(WANTED, "the other end is done")),
        Err(PipeError::Timeout { .. }) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(error) => Err(Refusal::pipe(WANTED, &error)),
    }
}

/// To whom a server sends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct To {
    to: Option<SocketAddr>,
}

pub(super) async fn send(
    State(service): State<Shared>,
    id: Id,
    query: Result<Query<To>, QueryRejection>,
    bytes: Bytes,
) -> Result<StatusCode, Refusal> {
    const WANTED: &str = "send a message";
    let id = number(WANTED, id)?;
    let Query(To { to }) = query.map_err(|error| Refusal::input(WANTED, error))?;
    let pipe = service.pipes.get(WANTED, id)?;
    let sending = async {
        match to {
            Some(to) => pipe.send_to(bytes, to).await,
            None => pipe.reply(bytes).await,
        }
    };
    let sent = timeout(LONGEST, sending).await;
    let late =
        PipeError::Timeout { what: "sending, of which a part may have been done,", after: LONGEST };
    sent.unwrap_or(Err(late)).map_err(|error| Refusal::pipe(WANTED, &error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes the connection of the request the pipe's: bytes of one are the other's from now on.
pub(super) async fn tunnel(
    State(service): State<Shared>,
    id: Id,
    headers: HeaderMap,
    mut request: Request,
) -> Result<Response, Refusal> {
    const WANTED: &str = "make the connection a pipe's";
    let id = number(WANTED, id)?;
    let asked = headers
        .get(UPGRADE)
        .is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(TUNNEL.as_bytes()));
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().filter(|_| asked);
    let Some(upgrade) = upgrade else {
        return Err(Refusal::input(WANTED, "the request does not ask for that")
            .next("send `Connection: upgrade` and `Upgrade: netyard-pipe`"));
    };
    let is_stream = |pipe: &Pipe| pipe.proto() == Proto::Tcp && pipe.peer().is_some();
    if !is_stream(&*service.pipes.get(WANTED, id)?) {
        return Err(Refusal::input(WANTED, "only a client over TCP carries bytes"));
    }
    let Held { pipe, place } = service.pipes.take(WANTED, id)?;
    let pipe = match Arc::try_unwrap(pipe) {
        Ok(pipe) => pipe,
        Err(pipe) => {
            service.pipes.lock().pipes.insert(id, Held { pipe, place });
            return Err(Refusal::conflict(WANTED, "another request is using the pipe"));
        }
    };
    {
        let tunnels = &mut service.pipes.lock().tunnels;
        while tunnels.try_join_next().is_some() {}
        tunnels.spawn(join(upgrade, pipe, place));
    }
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, TUNNEL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response())
}

async fn join(upgrade: OnUpgrade, mut pipe: Pipe, _place: OwnedSemaphorePermit) {
    if let Ok(connection) = upgrade.await {
        let mut connection = TokioIo::new(connection);
        // Whoever breaks off ends both.
        if copy_bidirectional(&mut connection, &mut pipe).await.is_ok() {
            _ = connection.shutdown().await;
        }
    }
    pipe.close().await;
}
