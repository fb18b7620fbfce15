//! Daemons: one handler behind servers on many addresses.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use serde::{Serialize, Serializer};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::pipe::{Message, Pipe, PipeBuilder, PipeError, PipeOptions, Proto};
use crate::tls::Identity;
use crate::{Bind, BindError, Interface};

/// How many ports the kernel is asked for, until one is free on every address.
const PORTS: usize = 16;

/// What a daemon does with what comes in.
///
/// Messages of one TCP client come one after the other, those of others at the same time. Messages of one
/// UDP socket come one after the other, whoever sends them. A handler that panics loses what it is at: over TCP
/// the client, over UDP the message.
pub trait Handler: Send + Sync + 'static {
    /// A message came. [`Pipe::answer`] answers it, over TCP and UDP, from the address that it was sent to.
    fn msg(&self, message: Message, pipe: &Pipe) -> impl Future<Output = ()> + Send;

    /// A TCP client is there.
    fn up(&self, _pipe: &Pipe) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// A TCP client has nothing more to say; its pipe is closed behind this.
    fn end(&self, _pipe: &Pipe) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Why nobody listens on an address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// Another program does.
    #[error("{0} is taken by another program; `ss -lnptu` shows which")]
    InUse(SocketAddr),
    /// The address is not this machine's, or not ready.
    #[error("{0} is not an address of this machine, or not ready yet")]
    NotHere(SocketAddr),
    /// The user may not.
    #[error(
        "this user may not listen on {0}; ports below net.ipv4.ip_unprivileged_port_start are root's"
    )]
    NotPermitted(SocketAddr),
    /// Something else.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// What is wrong.
        source: PipeError,
    },
}

impl DaemonError {
    fn new(address: SocketAddr, error: PipeError) -> Self {
        let kind = match &error {
            PipeError::Bind(error) => BindError::io_kind(error),
            PipeError::Io(error) => Some(error.kind()),
            _ => None,
        };
        match kind {
            Some(io::ErrorKind::AddrInUse) => Self::InUse(address),
            Some(io::ErrorKind::AddrNotAvailable) => Self::NotHere(address),
            Some(io::ErrorKind::PermissionDenied) => Self::NotPermitted(address),
            _ => Self::Other { address, source: error },
        }
    }
}

/// As its text.
impl Serialize for DaemonError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One address that was to be listened on.
#[derive(Debug, Serialize)]
pub struct Listened {
    /// The address, with the port that the kernel chose where none was named.
    pub address: SocketAddr,
    /// The kernel holds it to its card: nobody reaches it by another one.
    pub pinned: bool,
    /// Why nobody listens; `None`: the daemon does.
    pub error: Option<DaemonError>,
}

/// What came of listening on several addresses.
#[derive(Debug, Serialize)]
pub struct ListenReport {
    /// Over what.
    pub proto: Proto,
    /// Each address.
    pub addresses: Vec<Listened>,
}

impl ListenReport {
    /// The addresses that are listened on.
    pub fn listening(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().filter(|it| it.error.is_none()).map(|it| it.address)
    }

    /// True if every address is listened on, and there is one.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.addresses.is_empty() && self.addresses.iter().all(|it| it.error.is_none())
    }
}

/// Servers with one handler. They close when it is dropped; [`Daemon::close`] waits for that.
#[derive(Debug)]
pub struct Daemon<H> {
    handler: Arc<H>,
    options: PipeOptions,
    identity: Option<Identity>,
    stop: watch::Sender<bool>,
    servers: Mutex<Vec<(Proto, SocketAddr, JoinHandle<()>)>>,
}

impl<H: Handler> Daemon<H> {
    /// A daemon that listens nowhere yet.
    pub fn new(handler: H) -> Self {
        Self {
            handler: Arc::new(handler),
            options: PipeOptions::default(),
            identity: None,
            stop: watch::Sender::new(false),
            servers: Mutex::default(),
        }
    }

    /// With these options for its pipes.
    #[must_use]
    pub fn options(mut self, options: PipeOptions) -> Self {
        self.options = options;
        self
    }

    /// Over TLS, where it listens over TCP, as this.
    #[must_use]
    pub fn tls(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Listens on one address more.
    ///
    /// # Errors
    /// Why not.
    pub async fn add_listener(&self, proto: Proto, bind: Bind) -> Result<Listened, DaemonError> {
        let pipe = self.open(proto, bind).await?;
        Ok(self.serve(pipe))
    }

    /// Listens on every address of this machine, of the families that the interface has routes of. Port 0 is
    /// one that the kernel chooses, the same for each address.
    pub async fn listen_all(&self, proto: Proto, port: u16, nic: &Interface) -> ListenReport {
        let binds = nic.supported().map(Bind::every).collect();
        self.listen(proto, port, binds).await
    }

    /// Listens where only this machine reaches it. As for [`Daemon::listen_all`].
    pub async fn listen_loopback(&self, proto: Proto, port: u16, nic: &Interface) -> ListenReport {
        let binds = nic.supported().map(|family| Bind::every(family).loopback()).collect();
        self.listen(proto, port, binds).await
    }

    /// Listens where only the neighbours of the interface reach it: on its own IPv4 addresses, of a block on
    /// the first, and its link-local IPv6 ones. What does not come by its card is not heard, not even
    /// from this machine itself. As for [`Daemon::listen_all`].
    pub async fn listen_local(&self, proto: Proto, port: u16, nic: &Interface) -> ListenReport {
        self.listen(proto, port, nic.local_binds()).await
    }

    /// Where it listens: those whose socket has failed are not there any more.
    pub fn servers(&self) -> Vec<(Proto, SocketAddr)> {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let running = servers.iter().filter(|(_, _, task)| !task.is_finished());
        running.map(|(proto, address, _)| (*proto, *address)).collect()
    }

    /// Closes everything: what the handler is at is given up, and when this returns the sockets are no more.
    pub async fn close(self) {
        self.stop.send_replace(true);
        let servers =
            std::mem::take(&mut *self.servers.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, _, task) in servers {
            // It ends by itself, and has nothing to say.
            _ = task.await;
        }
    }

    async fn listen(&self, proto: Proto, port: u16, binds: Vec<Bind>) -> ListenReport {
        let mut opened = Vec::new();
        for _ in 0..PORTS {
            opened = self.open_all(proto, port, &binds).await;
            let taken = |it: &Result<Pipe, DaemonError>| matches!(it, Err(DaemonError::InUse(_)));
            if port != 0 || !opened.iter().any(taken) {
                break;
            }
            // The kernel's choice for the first address is taken on another one.
        }
        let addresses = opened.into_iter().zip(binds).map(|(opened, bind)| match opened {
            Ok(pipe) => self.serve(pipe),
            Err(error) => {
                Listened { address: bind.port(port).address(), pinned: false, error: Some(error) }
            }
        });
        ListenReport { proto, addresses: addresses.collect() }
    }

    /// Opens a server on each address, with the port that the kernel chose for the first one if none is
    /// named.
    async fn open_all(
        &self,
        proto: Proto,
        mut port: u16,
        binds: &[Bind],
    ) -> Vec<Result<Pipe, DaemonError>> {
        let mut opened = Vec::new();
        for bind in binds {
            let server = self.open(proto, bind.clone().port(port)).await;
            if let Ok(server) = &server {
                port = server.local().port();
            }
            opened.push(server);
        }
        opened
    }

    async fn open(&self, proto: Proto, bind: Bind) -> Result<Pipe, DaemonError> {
        let address = bind.address();
        let pipe: PipeBuilder = match proto {
            Proto::Tcp => Pipe::tcp(),
            Proto::Udp => Pipe::udp(),
        };
        let pipe = pipe.options(self.options.clone()).bind(bind);
        let opened = match &self.identity {
            Some(identity) if proto == Proto::Tcp => pipe.listen_tls(identity.clone()).await,
            _ => pipe.listen().await,
        };
        opened.map_err(|error| DaemonError::new(address, error))
    }

    /// Has a server answered from now on.
    fn serve(&self, server: Pipe) -> Listened {
        let (proto, address, pinned) = (server.proto(), server.local(), server.is_pinned());
        let (handler, stop) = (self.handler.clone(), self.stop.subscribe());
        let task = match proto {
            Proto::Tcp => tokio::spawn(streams(server, handler, stop)),
            Proto::Udp => tokio::spawn(datagrams(server, handler, stop)),
        };
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.push((proto, address, task));
        Listened { address, pinned, error: None }
    }
}

/// Waits until the daemon is closed or gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error is that it is gone.
    _ = stop.wait_for(|stop| *stop).await;
}

async fn streams<H: Handler>(server: Pipe, handler: Arc<H>, stop: watch::Receiver<bool>) {
    let mut clients = JoinSet::new();
    let mut stopping = stop.clone();
    loop {
        let client = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(_) = clients.join_next() => continue,
            client = server.accept() => client,
        };
        let Ok(client) = client else { break };
        clients.spawn(talk(client, handler.clone(), stop.clone()));
    }
    server.close().await;
    while clients.join_next().await.is_some() {}
}

/// One client.
async fn talk<H: Handler>(client: Pipe, handler: Arc<H>, mut stop: watch::Receiver<bool>) {
    let talking = async {
        handler.up(&client).await;
        while let Ok(Some(message)) = client.next().await {
            handler.msg(message, &client).await;
        }
        handler.end(&client).await;
    };
    tokio::select! {
        () = stopped(&mut stop) => {}
        () = talking => {}
    }
    client.close().await;
}

/// Runs a handler's work to its end, or to its panic, which the panic hook has told.
async fn contained(work: impl Future<Output = ()>) {
    let mut work = pin!(work);
    poll_fn(|context| {
        // Behind a panic it is not polled again.
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))).unwrap_or(Poll::Ready(()))
    })
    .await;
}

async fn datagrams<H: Handler>(server: Pipe, handler: Arc<H>, mut stop: watch::Receiver<bool>) {
    let talking = async {
        while let Ok(Some(message)) = server.next().await {
            contained(handler.msg(message, &server)).await;
        }
    };
    tokio::select! {
        () = stopped(&mut stop) => {}
        () = talking => {}
    }
    server.close().await;
}
