//! HTTP services whose instances take turns for each request.
//!
//! # Theory of operation
//!
//! A [`Proxy`] takes connections of clients, by ports of the host ([`Service::listen`]) or handed over
//! by who has taken them ([`Service::accept`]), speaks HTTP/1.1 or HTTP/2 with them, and sends each
//! request to the instance whose turn it is, over HTTP/1.1 connections that are kept open and used
//! again (`pool`).
//!
//! It is some threads, each with an event loop of its own. Connections of clients go round among
//! them (`crew`) and stay where they are, with the connections to instances that carry their
//! requests: the threads share nothing but whose turn it is and how many connections there are.
//!
//! It knows nothing of networks. Whose turn it is says [`Turns`], which is asked once for each
//! request and told what came of it; how to reach an instance says [`Way`].
//!
//! ```text
//! client ── crew ── front ── exchange ── pool ── instance
//!            │                  │
//!          seats              Turns
//! ```
//!
//! * `crew` takes connections, each of which needs a *seat*; there are so many.
//! * `front` watches over them: one without a request under way is closed after a while.
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
mod crew;
mod exchange;
mod front;
mod head;
mod pool;
mod seats;
mod stream;
mod thread;
mod tunnel;
mod turns;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::sync::{oneshot, watch};

use self::crew::Crew;
use self::front::{Front, Stop};
pub use self::head::MAX_HEAD;
use self::seats::Seats;
pub use self::stream::{Dial, Way};
use self::thread::Thread;
pub use self::turns::{Asker, Turn, Turns};

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
    /// How many threads share the work.
    pub threads: NonZeroUsize,
}

impl Limits {
    /// For a process that may have so many descriptors, with a thread for each processor that it may
    /// use, four at most.
    #[must_use]
    pub fn of(descriptors: usize) -> Self {
        const THREADS: NonZeroUsize = NonZeroUsize::new(4).unwrap();
        // A request under way costs the client's and the instance's, and in a network that moves
        // its own packets the other ends of both; the rest is for everything else.
        let connections = (descriptors / 8).clamp(1, 16 * 1024);
        Self {
            connections,
            idle: Duration::from_secs(60),
            silence: Duration::from_secs(60),
            tunnel: Duration::from_secs(60 * 60),
            drain: Duration::from_secs(30),
            threads: std::thread::available_parallelism()
                .map_or(NonZeroUsize::MIN, |it| it.min(THREADS)),
        }
    }
}

/// Threads that serve HTTP services. Dropping it ends everything at once.
#[derive(Debug)]
pub struct Proxy {
    threads: Vec<Thread>,
    limits: Limits,
    seats: Arc<Seats>,
}

impl Proxy {
    /// Starts the threads.
    ///
    /// # Errors
    /// What the kernel said: out of descriptors or threads.
    pub fn start(limits: Limits) -> io::Result<Self> {
        let threads =
            (0..limits.threads.get()).map(|_| Thread::start()).collect::<io::Result<_>>()?;
        Ok(Self { threads, limits, seats: Arc::new(Seats::new(limits.connections)) })
    }

    /// A new service, without a port yet. `name` is for people: it is in the answers that the proxy
    /// gives itself.
    #[must_use]
    pub fn serve(&self, name: &str, turns: Arc<dyn Turns>, way: Way) -> Service {
        let (stop, stopped) = watch::channel(());
        let stopped = Stop::new(stopped);
        let front = || Front::new(name, Arc::clone(&turns), way.clone(), self.limits);
        let members = self.threads.iter().map(|thread| (thread.handle().clone(), front()));
        let crew = Arc::new(Crew::new(members, Arc::clone(&self.seats), &stopped));
        Service { crew, stopped, _stop: stop }
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

/// A service that is served. Dropping it closes its ports and ends its connections gracefully.
#[derive(Debug)]
pub struct Service {
    crew: Arc<Crew>,
    stopped: Stop,
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
        let (close, closed) = oneshot::channel();
        self.crew.listen(listener.try_clone()?, closed, &self.stopped)?;
        Ok(Door { close: Some(close), listener })
    }

    /// Takes over a connection of `client`, of which this is our end. If there are too many it is
    /// closed, and counted.
    pub fn accept(&self, stream: UnixStream, client: SocketAddr) {
        self.crew.adopt(stream, client, &self.stopped);
    }

    /// Keeps connections without a request open to these instances only.
    pub fn keep(&self, instances: &[u64]) {
        self.crew.keep(instances);
    }
}

/// How long an instance may take until its connection is open. Instances are one hop away.
const PATIENCE: Duration = Duration::from_secs(1);
