//! Servers over TCP: who is taken in, and where clients are kept.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::ReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::shared::{About, Connection, Membership, Shared};
use super::{Filter, Pipe};

/// Behind an error of the system, such as too few descriptors, nobody is taken in for so long.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a connection may be silent before the other end is probed, how often it is, and how many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);
/// How long a client that has nothing more to say can still be answered, where its server keeps it.
const HALF_OPEN: Duration = Duration::from_secs(30);

/// The clients of a server.
#[derive(Debug)]
pub(super) struct Clients {
    /// The server keeps them; else they wait to be accepted.
    kept: bool,
    known: Mutex<Known>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Known {
    by_address: HashMap<SocketAddr, Weak<Shared>>,
    /// Nothing is read of those that nobody has accepted: the kernel's buffers bound what they say.
    waiting: VecDeque<(Pipe, ReadHalf<Connection>)>,
    kept: HashMap<SocketAddr, Pipe>,
}

impl Clients {
    pub(super) fn new(kept: bool) -> Self {
        Self { kept, known: Mutex::default(), arrived: Notify::new() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is locked.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn are_kept(&self) -> bool {
        self.kept
    }

    pub(super) fn get(&self, address: SocketAddr) -> Option<Arc<Shared>> {
        self.known().by_address.get(&address).and_then(Weak::upgrade)
    }

    /// Has a client wait to be accepted.
    fn wait(&self, address: SocketAddr, pipe: Pipe, reader: ReadHalf<Connection>) {
        let mut known = self.known();
        known.by_address.insert(address, Arc::downgrade(&pipe.shared));
        known.waiting.push_back((pipe, reader));
        drop(known);
        self.arrived.notify_one();
    }

    fn keep(&self, address: SocketAddr, pipe: Pipe) {
        let mut known = self.known();
        known.by_address.insert(address, Arc::downgrade(&pipe.shared));
        let before = known.kept.insert(address, pipe);
        drop(known);
        // Dropped without the lock, which a pipe that goes takes.
        drop(before);
    }

    /// The next client that waits.
    pub(super) async fn next(&self) -> Pipe {
        loop {
            let mut arrived = pin!(self.arrived.notified());
            arrived.as_mut().enable();
            let first = self.known().waiting.pop_front();
            if let Some((pipe, reader)) = first {
                pipe.shared.run(pipe.shared.clone().read_stream(reader));
                return pipe;
            }
            arrived.await;
        }
    }

    /// Lets go of a client that is kept.
    fn release(&self, address: SocketAddr) {
        let pipe = self.known().kept.remove(&address);
        drop(pipe);
    }

    /// A client is no more.
    pub(super) fn forget(&self, address: SocketAddr) {
        let mut known = self.known();
        // Another one may have its address already.
        let gone = |client: &Weak<Shared>| client.strong_count() == 0;
        if known.by_address.get(&address).is_some_and(gone) {
            known.by_address.remove(&address);
        }
    }

    /// Closes those that nobody has accepted. Boxed, as a client is a pipe that closes in the same way.
    pub(super) fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let pipes: Vec<_> = {
            let mut known = self.known();
            let kept: Vec<_> = known.kept.drain().map(|(_, pipe)| pipe).collect();
            known.waiting.drain(..).map(|(pipe, _)| pipe).chain(kept).collect()
        };
        Box::pin(async {
            let mut closing: JoinSet<_> = pipes.into_iter().map(Pipe::close).collect();
            while closing.join_next().await.is_some() {}
        })
    }
}

/// How clients are taken in.
#[derive(Clone)]
pub(super) struct Manners {
    /// What they have to speak.
    pub(super) tls: Option<TlsAcceptor>,
    /// How long that may take to begin.
    pub(super) tls_timeout: Duration,
    /// How many there are at a time.
    pub(super) max_clients: usize,
    /// Those that are accepted have an inbox.
    pub(super) inbox: bool,
}

/// Takes clients in, until the server closes.
pub(super) async fn run(server: Arc<Shared>, listener: TcpListener, manners: Manners) {
    let places = Arc::new(Semaphore::new(manners.max_clients.min(Semaphore::MAX_PERMITS)));
    let mut greetings = JoinSet::new();
    let taking = async {
        loop {
            while greetings.try_join_next().is_some() {}
            // The semaphore is never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let server = Arc::downgrade(&server);
                    greetings.spawn(greet(server, stream, from, place, manners.clone()));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    };
    tokio::select! {
        biased;
        () = server.closing() => {}
        () = taking => {}
    }
    greetings.shutdown().await;
    server.hub.end(&super::queue::End::Closed);
}

/// Has small messages leave at once, and another end that is no more noticed. What the kernel refuses here is
/// of no harm.
pub(super) fn settle(stream: &TcpStream) {
    let (time, interval, retries) = KEEPALIVE;
    let keepalive =
        TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
    _ = stream.set_nodelay(true);
}

/// Makes a client's connection a pipe.
async fn greet(
    server: Weak<Shared>,
    stream: TcpStream,
    from: SocketAddr,
    place: OwnedSemaphorePermit,
    manners: Manners,
) {
    settle(&stream);
    let Ok(local) = stream.local_addr() else { return };
    let connection: Connection = match manners.tls {
        None => Box::new(stream),
        Some(tls) => match timeout(manners.tls_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => Box::new(stream),
            // Who does not speak TLS, or not in time, is no client.
            _ => return,
        },
    };
    let Some(server) = server.upgrade() else { return };
    let about = About {
        proto: server.proto,
        local,
        peer: Some(from),
        bind: server.bind.clone(),
        pinned: server.pinned,
        limits: server.limits,
    };
    let kept = server.clients.as_ref().is_some_and(Clients::are_kept);
    let (shared, reader) =
        Shared::stream(about, connection, Some(Membership::new(&server, from, place)));
    let inbox =
        (!kept && manners.inbox).then(|| shared.hub.subscribe(Filter::all(), shared.limits));
    let pipe = Pipe::new(shared.clone(), inbox);
    let Some(clients) = &server.clients else { return };
    if kept {
        clients.keep(from, pipe);
        let reading = shared.clone().read_stream(reader);
        let (client, server) = (Arc::downgrade(&shared), Arc::downgrade(&server));
        shared.run(async move {
            reading.await;
            if let Some(client) = client.upgrade() {
                _ = timeout(HALF_OPEN, client.closing()).await;
            }
            if let Some(clients) = server.upgrade().as_ref().and_then(|it| it.clients.as_ref()) {
                clients.release(from);
            }
        });
    } else {
        clients.wait(from, pipe, reader);
    }
}
