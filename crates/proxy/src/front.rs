//! Connections of clients that one thread has: watched over, and ended.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Version;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::sync::watch;
use tokio::time::{self, Instant};

use crate::Limits;
use crate::exchange;
use crate::head::{MAX_FIELDS, MAX_HEAD};
use crate::pool::Pool;
use crate::seats::Seat;
use crate::stream::{Breaker, Stream, Way};
use crate::turns::{Asker, Turns};

/// How often connections to instances that are not needed are looked for.
const TIDY: Duration = Duration::from_secs(5);

/// Requests of one HTTP/2 connection at once.
const MAX_STREAMS: u32 = 128;

/// What the clients of one service meet on one thread.
#[derive(Debug)]
pub(crate) struct Front {
    name: String,
    turns: Arc<dyn Turns>,
    pool: Pool,
    limits: Limits,
}

/// The sign that a service ends.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<()>);

impl Stop {
    pub(crate) fn new(stopped: watch::Receiver<()>) -> Self {
        Self(stopped)
    }

    pub(crate) async fn given(&mut self) {
        // Nothing is ever sent; the sender goes with the service.
        while self.0.changed().await.is_ok() {}
    }
}

impl Front {
    pub(crate) fn new(name: &str, turns: Arc<dyn Turns>, way: Way, limits: Limits) -> Self {
        let pool = Pool::new(way, limits.silence);
        Self { name: name.to_owned(), turns, pool, limits }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn turns(&self) -> &Arc<dyn Turns> {
        &self.turns
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Closes connections to instances that nobody needs, until the service ends.
    pub(crate) async fn keep_tidy(self: Arc<Self>, mut stop: Stop) {
        while time::timeout(TIDY, stop.given()).await.is_err() {
            self.pool.tidy();
        }
        self.pool.keep(&[]);
    }

    /// Serves a connection, which has a seat.
    pub(crate) fn admit(self: &Arc<Self>, stream: Stream, asker: Asker, seat: Seat, stop: Stop) {
        let client = Client {
            front: Arc::clone(self),
            asker,
            stop,
            breaker: stream.breaker(),
            under_way: AtomicUsize::new(0),
            last: Mutex::new(Instant::now()),
            _seat: seat,
        };
        tokio::spawn(serve(Arc::new(client), stream));
    }
}

/// One connection of a client.
#[derive(Debug)]
pub(crate) struct Client {
    front: Arc<Front>,
    asker: Asker,
    stop: Stop,
    breaker: Breaker,
    /// Requests that are not answered completely.
    under_way: AtomicUsize,
    /// When there was one last, or the connection began.
    last: Mutex<Instant>,
    _seat: Seat,
}

impl Client {
    pub(crate) fn front(&self) -> &Arc<Front> {
        &self.front
    }

    pub(crate) fn asker(&self) -> Asker {
        self.asker
    }

    pub(crate) fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// A request has come, in this version of HTTP.
    pub(crate) fn begin(self: &Arc<Self>, version: Version) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay { client: Arc::clone(self), alone: version != Version::HTTP_2 }
    }

    /// Until when the connection may stay if nothing happens; `None` if it may not.
    fn stays_until(&self, now: Instant) -> Option<Instant> {
        let idle = self.front.limits.idle;
        if self.under_way.load(Ordering::Relaxed) > 0 {
            return Some(now + idle);
        }
        let until = *self.last.lock().unwrap_or_else(PoisonError::into_inner) + idle;
        (until > now).then_some(until)
    }
}

/// A request that is under way; dropping it says that it is not any more.
#[derive(Debug)]
pub(crate) struct UnderWay {
    client: Arc<Client>,
    /// No other request is under way on the connection.
    alone: bool,
}

impl UnderWay {
    /// The response cannot be completed. A stream of HTTP/2 can say so by itself.
    pub(crate) fn broke_off(&self) {
        if self.alone {
            self.client.breaker.break_off();
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *self.client.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.client.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection until it ends.
async fn serve(client: Arc<Client>, stream: Stream) {
    let limits = client.front.limits;
    let mut stop = client.stop();
    let service = {
        let client = Arc::clone(&client);
        service_fn(move |request| exchange::answer(Arc::clone(&client), request))
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS);
    builder
        .http2()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // When to look whether it may stay, or, when the service has ended, when it is over.
    let mut alarm = std::pin::pin!(time::sleep(limits.idle));
    let mut ends = std::pin::pin!(stop.given());
    let mut ending = false;
    loop {
        tokio::select! {
            biased;
            served = connection.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!(%error, client = %client.asker.address, "a connection has ended");
                }
                return;
            }
            () = ends.as_mut(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
                alarm.as_mut().reset(Instant::now() + limits.drain);
            }
            () = alarm.as_mut() => {
                let now = Instant::now();
                match client.stays_until(now) {
                    Some(until) if !ending => alarm.as_mut().reset(until),
                    _ => return,
                }
            }
        }
    }
}
