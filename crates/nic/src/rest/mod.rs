//! The cards, their routes and pipes as an HTTP service, for programs of any language.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/interfaces` | every card, `nic/1`, with what it is good for |
//! | `GET /v1/interfaces/NAME` | one card; `?ask=true`: with the addresses that servers see |
//! | `GET /v1/interfaces/NAME/routes` | its routes; `?ask=true` |
//! | `POST /v1/interfaces/NAME/nat` | what a test says of the NAT in front of it |
//! | `GET /v1/mapping` | a local address, and as which a server sees it |
//! | `GET /v1/events` | what changes, as it does (server-sent events) |
//! | `GET`, `POST /v1/pipes` | the pipes; opens one |
//! | `GET`, `DELETE /v1/pipes/ID` | one pipe, what it carried; closes it |
//! | `GET`, `POST /v1/pipes/ID/messages` | the next message; sends one |
//! | `GET /v1/pipes/ID/tunnel` | makes this connection the pipe's (`Upgrade: netyard-pipe`) |
//!
//! Whoever asks needs the token (`Authorization: Bearer`); where there is none, `X-Netyard` with any value, which
//! no web page can send. Requests that a browser sends for somebody else's page are refused, by `Host`, `Origin`
//! and `Sec-Fetch-Site`. Errors are JSON, with the status that they have.

mod cards;
mod guard;
mod pipes;
mod refusal;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinSet;

use self::pipes::Pipes;
use self::refusal::Refusal;
use crate::error::Result;
use crate::watch::Monitor;
use crate::{Agreement, PublicPolicy};

/// The port of the service, unless another one is chosen.
pub const PORT: u16 = 12333;
/// The longest body of a request, bytes.
const MAX_BODY: usize = 1 << 20;
/// How long a request may take to come in: its head, and then its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// Behind an error of the system, such as too few descriptors, nothing is accepted for so long.
const PAUSE: Duration = Duration::from_millis(100);
/// Behind an error of the kernel about the cards, it is not asked again for so long.
const AGAIN: Duration = Duration::from_secs(1);
/// Changes that a slow reader of events may be behind; further ones are left out, and it is told.
const EVENTS: usize = 64;

/// What the service may do, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestOptions {
    /// The STUN servers that are asked where a request wants that; none: nothing is sent.
    pub servers: Vec<String>,
    /// How many of them have to see the same address.
    pub wanted: usize,
    /// Which addresses count as public.
    pub policy: PublicPolicy,
    /// What requests have to show; `None`: any program that reaches the service may use it.
    pub token: Option<String>,
}

impl RestOptions {
    /// For whoever shows this token; nobody is asked for anything.
    #[must_use]
    pub fn new(token: Option<String>) -> Self {
        let policy = PublicPolicy::default();
        Self { servers: Vec::new(), wanted: Agreement::WANTED, policy, token }
    }
}

/// A token that nobody can guess: 256 random bits in hexadecimal.
#[must_use]
pub fn new_token() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What requests share.
#[derive(Debug)]
struct Service {
    options: RestOptions,
    pipes: Pipes,
    changes: broadcast::Sender<Arc<str>>,
}

type Shared = Arc<Service>;

/// Answers on these listeners until one of them breaks, or the future is dropped; pipes that were opened
/// close with it. Has to run in a tokio runtime with IO and time, on a thread that stays in the network
/// namespace.
///
/// # Errors
/// The cards cannot be watched.
pub async fn serve(listeners: Vec<TcpListener>, options: RestOptions) -> Result<()> {
    let monitor = Monitor::open()?;
    let changes = broadcast::Sender::new(EVENTS);
    let service = Arc::new(Service { options, pipes: Pipes::new(), changes });
    let router = router(service.clone());
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept(listener, router.clone(), room.clone()));
    }
    tokio::select! {
        () = watch(monitor, &service) => Ok(()),
        _ = tasks.join_next() => Ok(()),
    }
}

/// Tells those who want to know what changes.
async fn watch(mut monitor: Monitor, service: &Service) {
    loop {
        let Ok(change) = monitor.changed().await else {
            // What the kernel cannot tell now it may tell later; the rest of the service goes on.
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let text = serde_json::to_string(&change).unwrap_or_default();
        // Nobody may be there.
        _ = service.changes.send(Arc::from(text));
    }
}

fn router(service: Shared) -> Router {
    Router::new()
        .route("/v1/interfaces", get(cards::list))
        .route("/v1/interfaces/{name}", get(cards::show))
        .route("/v1/interfaces/{name}/routes", get(cards::routes))
        .route("/v1/interfaces/{name}/nat", post(cards::nat))
        .route("/v1/mapping", get(cards::mapping))
        .route("/v1/events", get(cards::events))
        .route("/v1/pipes", get(pipes::list).post(pipes::open))
        .route("/v1/pipes/{id}", get(pipes::show).delete(pipes::close))
        .route("/v1/pipes/{id}/messages", get(pipes::receive).post(pipes::send))
        .route("/v1/pipes/{id}/tunnel", get(pipes::tunnel))
        .fallback(|| async { Refusal::unknown("find that path", "the service has no such path") })
        .method_not_allowed_fallback(|| async { Refusal::method() })
        .layer(from_fn(guard::in_time))
        .layer(from_fn_with_state(service.clone(), guard::check))
        .with_state(service)
}

async fn accept(listener: TcpListener, router: Router, room: Arc<Semaphore>) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let place = room.clone().acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()))
            .with_upgrades();
        connections.spawn(async move {
            let _place = place;
            // What is wrong with a connection is its client's matter.
            _ = serving.await;
        });
    }
}
