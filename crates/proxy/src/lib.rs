//! HTTP services whose instances take turns for each request.
//!
//! # Theory of operation
//!
//! A [`Proxy`] is one thread with its own event loop. It takes connections of clients, by ports of
//! the host ([`Service::listen`]) or handed over by who has taken them ([`Service::accept`]), speaks
//! HTTP/1.1 or HTTP/2 with them, and sends each request to the instance whose turn it is, over
//! HTTP/1.1 connections that are kept open and used again (`pool`).
//!
//! It knows nothing of networks. Whose turn it is says [`Turns`], which is asked once for each
//! request and told what came of it; how to reach an instance says [`Way`].
//!
//! ```text
//! client ── front ── exchange ── pool ── instance
//!            │          │
//!          seats      Turns
//! ```
//!
//! * `front` takes connections and watches over them: each needs a *seat*, of which there are so
//!   many; a connection without a request under way is closed after a while.
//! * `stream` gives up who has vanished, and who takes nothing of what is sent to it.
//! * `exchange` carries one request: it takes turns until an instance answers. What may have
//!   reached an instance is sent again once, and only if it is idempotent and has no body.
//! * Bodies are passed on as they come, in both directions, and never kept: who does not read stops
//!   who sends. A response that breaks off breaks the client's connection off too, so that nobody
//!   takes a part for the whole.
//!
//! A service that is dropped ends its connections gracefully: requests under way have
//! [`Limits::drain`] to complete.

mod body;
mod exchange;
mod front;
mod head;
mod pool;
mod seats;
mod stream;
mod tunnel;
mod turns;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;
use tokio::runtime::{self, Handle};
use tokio::sync::{oneshot, watch};

use self::front::{Front, Stop};
pub use self::head::MAX_HEAD;
use self::seats::Seats;
pub use self::stream::{Dial, Way};
pub use self::turns::{Turn, Turns};

/// What a proxy may have, and how patient it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of clients at once, of all services. One client, by its address, may have as
    /// many as are still free for everybody.
    pub connections: usize,
    /// How long a connection may be without a request under way, before the first one too. So a
    /// head that comes slower than this does not come.
    pub idle: Duration,
    /// How long a client or an instance may be silent where its kernel would answer, and how long
    /// it may take none of what is sent to it. Whole seconds.
    pub silence: Duration,
    /// How long a connection that has changed its protocol may be without a byte.
    pub tunnel: Duration,
    /// How long requests may take to complete when their service ends.
    pub drain: Duration,
}

impl Limits {
    /// For a process that may have so many descriptors.
    #[must_use]
    pub fn of(descriptors: usize) -> Self {
        // A request under way costs the client's and the instance's, and in a network that moves
        // its own packets the other ends of both; the rest is for everything else.
        let connections = (descriptors / 8).clamp(1, 16 * 1024);
        Self {
            connections,
            idle: Duration::from_secs(60),
            silence: Duration::from_secs(60),
            tunnel: Duration::from_secs(60 * 60),
            drain: Duration::from_secs(30),
        }
    }
}

/// A thread that serves HTTP services. Dropping it ends everything at once.
#[derive(Debug)]
pub struct Proxy {
    handle: Handle,
    limits: Limits,
    seats: Arc<Seats>,
    /// Dropped first: the thread ends.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the kernel said: out of descriptors or threads.
    pub fn start(limits: Limits) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            // The other end is dropped, never used.
            let _ = runtime.block_on(stopped);
        })?;
        let seats = Arc::new(Seats::new(limits.connections));
        Ok(Self { handle, limits, seats, stop: Some(stop), thread: Some(thread) })
    }

    /// A new service, without a port yet. `name` is for people: it is in the answers that the proxy
    /// gives itself.
    #[must_use]
    pub fn serve(&self, name: &str, turns: Arc<dyn Turns>, way: Way) -> Service {
        let front = Arc::new(Front::new(name, turns, way, Arc::clone(&self.seats), self.limits));
        let (stop, stopped) = watch::channel(());
        self.handle.spawn(Arc::clone(&front).keep_tidy(Stop::new(stopped.clone())));
        Service { handle: self.handle.clone(), front, stopped, _stop: stop }
    }

    /// Connections of clients that are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.seats.taken()
    }

    /// Connections of clients that were refused because there were too many.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.seats.refused()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was told on standard error.
            let _ = thread.join();
        }
    }
}

/// A service that is served. Dropping it closes its ports and ends its connections gracefully.
#[derive(Debug)]
pub struct Service {
    handle: Handle,
    front: Arc<Front>,
    stopped: watch::Receiver<()>,
    /// Its end is everybody's sign.
    _stop: watch::Sender<()>,
}

/// A port of a service. Dropping it closes the port at once, without waiting for the thread;
/// connections that it took stay.
#[derive(Debug)]
pub struct Door {
    close: Option<oneshot::Sender<()>>,
    /// The socket that the thread takes connections from.
    listener: TcpListener,
}

impl Drop for Door {
    fn drop(&mut self) {
        // First, so that the thread knows why there is nothing to take any more.
        self.close = None;
        // The thread lets go of the socket when it gets there. Until then it does not listen, and
        // who binds the same port again, with SO_REUSEADDR, can.
        if let Err(error) = SockRef::from(&self.listener).shutdown(Shutdown::Read) {
            tracing::debug!(%error, "a port is closed later");
        }
    }
}

impl Service {
    /// Takes connections from a listening socket. To be closed at once it has SO_REUSEADDR.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn listen(&self, listener: TcpListener) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        let taken = {
            let _inside = self.handle.enter();
            tokio::net::TcpListener::from_std(listener.try_clone()?)?
        };
        let (close, closed) = oneshot::channel();
        let stop = Stop::new(self.stopped.clone());
        self.handle.spawn(Arc::clone(&self.front).accept_all(taken, closed, stop));
        Ok(Door { close: Some(close), listener })
    }

    /// Takes over a connection of `client`, of which this is our end. If there are too many it is
    /// closed, and counted.
    pub fn accept(&self, stream: UnixStream, client: SocketAddr) {
        let front = Arc::clone(&self.front);
        let stop = Stop::new(self.stopped.clone());
        self.handle.spawn(async move {
            match stream::Stream::adopt(stream, front.limits().silence) {
                Ok(stream) => front.admit(stream, client, stop),
                Err(error) => tracing::warn!(%error, "a connection cannot be taken over"),
            }
        });
    }

    /// Keeps connections without a request open to these instances only.
    pub fn keep(&self, instances: &[u64]) {
        self.front.pool().keep(instances);
    }
}

/// How long an instance may take until its connection is open. Instances are one hop away.
const PATIENCE: Duration = Duration::from_secs(1);
