//! The control API: HTTP over the keeper's Unix socket.
//!
//! It translates: a request becomes an [`Ask`], the keeper answers it, the answer becomes JSON.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::channel::{Channel, Sender as BodySender};
use hyper::body::Bytes;
use netyard_engine::forward::Forward;
use netyard_sys::socket_path::SocketPath;
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};

use crate::api::{
    Applied, ApplyRequest, Down, ForwardChanged, ForwardRequest, ForwardStatus, InstanceStatus,
    LogsQuery, NetworkStatus, ServiceStatus, WaitQuery, Waited, YardStatus,
};
use crate::error::{ErrorKind, YardError};
use crate::logs::Log;

/// Requests that wait for the keeper; more wait in their connections.
pub(crate) const WAITING_ASKS: usize = 64;

/// Pieces of a log on their way to a reader.
const LOG_PIECES: usize = 16;

/// Where an answer goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, YardError>>;

/// What is asked of the keeper.
#[derive(Debug)]
pub(crate) enum Ask {
    Yard(Answer<YardStatus>),
    Instances(Answer<Vec<InstanceStatus>>),
    Services(Answer<Vec<ServiceStatus>>),
    Forwards(Answer<Vec<ForwardStatus>>),
    /// Whether it is to be there.
    Forward {
        forward: Forward,
        wanted: bool,
        answer: Answer<ForwardChanged>,
    },
    Networks(Answer<Vec<NetworkStatus>>),
    Change {
        instance: String,
        change: Change,
        answer: Answer<InstanceStatus>,
    },
    Log {
        instance: String,
        answer: Answer<Arc<Log>>,
    },
    Apply {
        file: PathBuf,
        answer: Answer<Applied>,
    },
    Down(Answer<Down>),
    Wait {
        within: Option<Duration>,
        answer: Answer<Waited>,
    },
}

/// What can be done to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Start,
    Stop,
    Restart,
}

impl Change {
    fn named(name: &str) -> Option<Self> {
        match name {
            "start" => Some(Self::Start),
            "stop" => Some(Self::Stop),
            "restart" => Some(Self::Restart),
            _ => None,
        }
    }
}

type Asks = mpsc::Sender<Ask>;

/// Opens the socket, for us alone.
pub(crate) fn listen(socket: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(SocketPath::new(socket)?)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The same by a socket that listens already.
pub(crate) fn share(socket: BorrowedFd<'_>) -> io::Result<UnixListener> {
    let listener = StdListener::from(socket.try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Answers requests until the task is aborted.
pub(crate) async fn serve(listener: UnixListener, asks: Asks) {
    if let Err(error) = axum::serve(listener, router(asks)).await {
        tracing::error!(%error, "the control API has ended");
    }
}

fn router(asks: Asks) -> Router {
    Router::new()
        .route("/v1/yard", get(|State(asks)| ask(asks, Ask::Yard)))
        .route("/v1/instances", get(|State(asks)| ask(asks, Ask::Instances)))
        .route("/v1/instances/{name}/logs", get(logs))
        .route("/v1/instances/{name}/{change}", post(change))
        .route("/v1/services", get(|State(asks)| ask(asks, Ask::Services)))
        .route("/v1/forwards", get(|State(asks)| ask(asks, Ask::Forwards)))
        .route("/v1/forwards/add", post(|asks, body| forward(asks, body, true)))
        .route("/v1/forwards/remove", post(|asks, body| forward(asks, body, false)))
        .route("/v1/networks", get(|State(asks)| ask(asks, Ask::Networks)))
        .route("/v1/apply", post(apply))
        .route("/v1/down", post(|State(asks)| ask(asks, Ask::Down)))
        .route("/v1/wait", get(wait))
        .fallback(unknown)
        .with_state(asks)
}

/// An error as the answer to a request.
struct Refusal(YardError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// Asks the keeper.
async fn asked<T>(asks: Asks, make: impl FnOnce(Answer<T>) -> Ask) -> Result<T, Refusal> {
    let gone =
        || Refusal(YardError::new(ErrorKind::Conflict, "ask the keeper", "it is going down"));
    let (answer, receiver) = oneshot::channel();
    asks.send(make(answer)).await.map_err(|_| gone())?;
    receiver.await.map_err(|_| gone())?.map_err(Refusal)
}

async fn ask<T: Serialize>(
    asks: Asks,
    make: impl FnOnce(Answer<T>) -> Ask,
) -> Result<Json<T>, Refusal> {
    asked(asks, make).await.map(Json)
}

async fn change(
    State(asks): State<Asks>,
    UrlPath((instance, change)): UrlPath<(String, String)>,
    uri: Uri,
) -> Result<Json<InstanceStatus>, Refusal> {
    let Some(change) = Change::named(&change) else { return Err(no_route(&uri)) };
    ask(asks, |answer| Ask::Change { instance, change, answer }).await
}

async fn apply(
    State(asks): State<Asks>,
    body: Result<Json<ApplyRequest>, JsonRejection>,
) -> Result<Json<Applied>, Refusal> {
    let Json(ApplyRequest { file }) =
        body.map_err(|error| malformed("apply a yard file", &error))?;
    ask(asks, |answer| Ask::Apply { file, answer }).await
}

async fn forward(
    State(asks): State<Asks>,
    body: Result<Json<ForwardRequest>, JsonRejection>,
    wanted: bool,
) -> Result<Json<ForwardChanged>, Refusal> {
    let Json(ForwardRequest { forward }) =
        body.map_err(|error| malformed("change a forward", &error))?;
    ask(asks, |answer| Ask::Forward { forward, wanted, answer }).await
}

async fn wait(
    State(asks): State<Asks>,
    query: Result<Query<WaitQuery>, QueryRejection>,
) -> Result<Json<Waited>, Refusal> {
    let Query(query) = query.map_err(|error| malformed("wait", &error))?;
    let within = query.timeout_ms.map(Duration::from_millis);
    ask(asks, |answer| Ask::Wait { within, answer }).await
}

async fn logs(
    State(asks): State<Asks>,
    UrlPath(instance): UrlPath<String>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Body, Refusal> {
    let Query(query) = query.map_err(|error| malformed("show a log", &error))?;
    let wanted = format!("show the log of {instance}");
    let log = asked(asks, |answer| Ask::Log { instance, answer }).await?;
    let failed = |error| Refusal(YardError::io(wanted, &error));
    if !query.follow {
        return log.read(query.tail).map(Body::from).map_err(failed);
    }
    let (there, coming) = log.follow(query.tail).map_err(failed)?;
    let (sender, body) = Channel::<Bytes>::new(LOG_PIECES);
    tokio::spawn(follow(there, coming, sender));
    Ok(Body::new(body))
}

/// Sends a log until its reader or its instance goes.
async fn follow(there: Bytes, mut coming: Receiver<Bytes>, mut sender: BodySender<Bytes>) {
    let mut next = Ok(there);
    loop {
        let piece = match next {
            Ok(piece) => piece,
            Err(RecvError::Lagged(missed)) => {
                Bytes::from(format!("... {missed} writes are left out: the reader is slow\n"))
            }
            Err(RecvError::Closed) => return,
        };
        if !piece.is_empty() && sender.send_data(piece).await.is_err() {
            return;
        }
        next = coming.recv().await;
    }
}

async fn unknown(uri: Uri) -> Refusal {
    no_route(&uri)
}

fn no_route(uri: &Uri) -> Refusal {
    let found = "the control API has no such route";
    Refusal(YardError::new(ErrorKind::Unknown, format!("answer {uri}"), found))
}

fn malformed(wanted: &str, error: &dyn std::error::Error) -> Refusal {
    Refusal(YardError::new(ErrorKind::Input, wanted, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::runtime::Runtime;

    /// A server whose keeper answers with `answer`; what `call` of a client gives.
    async fn with_server<T: Send + 'static>(
        answer: impl Fn(Ask) + Send + 'static,
        call: impl FnOnce(&Client) -> T + Send + 'static,
    ) -> T {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::at(folder.path().join("netyard")).unwrap();
        let claimed = runtime.claim("hello").unwrap().unwrap();
        let client = Client::of(&runtime, "hello");
        let listener = listen(&claimed.socket()).unwrap();
        let mode = claimed.socket().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (asks, mut taken) = mpsc::channel(WAITING_ASKS);
        tokio::spawn(serve(listener, asks));
        tokio::spawn(async move {
            while let Some(ask) = taken.recv().await {
                answer(ask);
            }
        });
        tokio::task::spawn_blocking(move || call(&client)).await.unwrap()
    }

    #[tokio::test]
    async fn answers_and_errors_arrive_as_they_are() {
        let unknown = YardError::new(ErrorKind::Unknown, "stop x", "there is none").next("ps");
        let expected = unknown.clone();
        let answer = move |ask| match ask {
            Ask::Change { instance, change, answer } => {
                assert_eq!((instance.as_str(), change), ("x", Change::Stop));
                answer.send(Err(unknown.clone())).unwrap();
            }
            Ask::Apply { file, answer } => {
                let steps = vec![file.display().to_string()];
                answer.send(Ok(Applied { steps })).unwrap();
            }
            _ => {}
        };
        with_server(answer, move |client| {
            assert_eq!(client.stop("x").unwrap_err(), expected);
            assert_eq!(client.apply(Path::new("/a b")).unwrap().steps, ["/a b"]);
            let gone = client.services().unwrap_err();
            assert_eq!(gone.kind, ErrorKind::Conflict, "an ask that nobody answers: {gone}");
        })
        .await;
    }

    #[tokio::test]
    async fn logs_are_sent_and_followed_to_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(Log::open(folder.path()).unwrap());
        log.write(Bytes::from_static(b"one\ntwo\n")).unwrap();
        let kept = std::sync::Mutex::new(Some(log));
        let answer = move |ask| {
            let Ask::Log { answer, .. } = ask else { return };
            let log = kept.lock().unwrap().clone().unwrap();
            answer.send(Ok(Arc::clone(&log))).unwrap();
        };
        with_server(answer, |client| {
            let mut out = Vec::new();
            client.logs("x", LogsQuery { follow: false, tail: Some(1) }, &mut out).unwrap();
            assert_eq!(out, b"two\n");
        })
        .await;

        let log = Log::open(folder.path()).unwrap();
        let kept = std::sync::Mutex::new(Some(Arc::new(log)));
        let answer = move |ask| {
            let Ask::Log { answer, .. } = ask else { return };
            let log = kept.lock().unwrap().take().unwrap();
            answer.send(Ok(Arc::clone(&log))).unwrap();
            // Once the reader follows, something comes; then the log is no more.
            tokio::spawn(async move {
                while log.followers() == 0 {
                    tokio::task::yield_now().await;
                }
                log.write(Bytes::from_static(b"three\n")).unwrap();
            });
        };
        with_server(answer, |client| {
            let mut out = Vec::new();
            client.logs("x", LogsQuery { follow: true, tail: Some(1) }, &mut out).unwrap();
            assert_eq!(out, b"two\nthree\n");
        })
        .await;
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused_with_a_reason() {
        with_server(
            |_| {},
            |client| {
                let query = LogsQuery { follow: false, tail: None };
                let error = client.logs("x/../../nothing", query, &mut Vec::new()).unwrap_err();
                assert_eq!(error.kind, ErrorKind::Unknown, "{error}");
            },
        )
        .await;
    }
}
