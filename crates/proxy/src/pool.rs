//! Connections to instances, kept open and used again.
//!
//! A connection is in the pool while nothing is under way on it. The one that was used last is
//! taken first, so that those that are not needed grow old and are closed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;

use crate::body::RequestBody;
use crate::head::{MAX_FIELDS, MAX_HEAD};
use crate::stream::Way;

/// Connections without a request that are kept for one instance.
const MAX_IDLE: usize = 256;

/// How long a connection is kept without a request.
const KEEP: Duration = Duration::from_secs(60);

/// A request that cannot be sent twice goes over a connection that was used within this time, or
/// over a new one: an instance that closes a quiet connection does so after seconds, and then
/// nobody knows whether it has seen the request.
const FRESH: Duration = Duration::from_secs(1);

/// The connections of one service to its instances.
#[derive(Debug)]
pub(crate) struct Pool {
    way: Way,
    /// How long an instance may be silent.
    silence: Duration,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By instance.
    idle: HashMap<u64, Vec<Idle>>,
    /// The instances whose connections are kept; `None`: all.
    instances: Option<Vec<u64>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection to an instance, open for one request at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<RequestBody>,
}

impl Connection {
    /// Sends a request. The error has it back if nothing of it was sent.
    #[allow(clippy::result_large_err, reason = "it is hyper's, and has the request back")]
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.sender.try_send_request(request).await
    }
}

impl Pool {
    pub(crate) fn new(way: Way, silence: Duration) -> Self {
        Self { way, silence, kept: Mutex::default() }
    }

    /// A connection to the instance that is open already. With `only_fresh` one that was used just
    /// now.
    pub(crate) async fn take(&self, instance: u64, only_fresh: bool) -> Option<Connection> {
        loop {
            let connection = self.pop(instance, only_fresh)?;
            if connection.sender.is_ready() {
                return Some(connection);
            }
            // Its task may not have seen yet that the last response is complete.
            tokio::task::yield_now().await;
            if connection.sender.is_ready() {
                return Some(connection);
            }
        }
    }

    fn pop(&self, instance: u64, only_fresh: bool) -> Option<Connection> {
        let mut kept = self.lock();
        let kept = kept.idle.get_mut(&instance)?;
        while let Some(newest) = kept.pop() {
            if newest.connection.sender.is_closed() {
                continue;
            }
            if only_fresh && newest.since.elapsed() > FRESH {
                kept.push(newest);
                return None;
            }
            return Some(newest.connection);
        }
        None
    }

    /// Opens a connection to the instance of these addresses.
    pub(crate) async fn open(
        &self,
        addresses: &[SocketAddr],
    ) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TokioIo::new(self.way.open(addresses, self.silence).await?);
        let mut builder = http1::Builder::new();
        builder.max_headers(MAX_FIELDS).max_buf_size(MAX_HEAD);
        let (sender, connection) = builder.handshake(stream).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                // Whoever waits for a response is told too.
                tracing::debug!(%error, "the connection to an instance has ended");
            }
        });
        Ok(Connection { sender })
    }

    /// Gives a connection back, when the response was received whole.
    pub(crate) fn put(&self, instance: u64, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut kept = self.lock();
        if kept.instances.as_ref().is_some_and(|instances| !instances.contains(&instance)) {
            return;
        }
        let kept = kept.idle.entry(instance).or_default();
        if kept.len() < MAX_IDLE {
            kept.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Keeps connections to these instances only.
    pub(crate) fn keep(&self, instances: &[u64]) {
        let mut kept = self.lock();
        kept.idle.retain(|instance, _| instances.contains(instance));
        kept.instances = Some(instances.to_vec());
    }

    /// Closes what was not used for long.
    pub(crate) fn tidy(&self) {
        self.lock().idle.retain(|_, kept| {
            kept.retain(|idle| !idle.connection.sender.is_closed() && idle.since.elapsed() < KEEP);
            !kept.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
