//! The hub: listens, lets peers in, and carries packets between them and its own TUN devices, one for each of its
//! networks.
//!
//! One thread does everything but the database, so nothing on the way of a packet is locked. A login, a
//! request and a departure wait for the database on another thread, one at a time.

mod book;
mod control;
mod knowledge;
mod names;
mod network;
mod networks;
mod reached;
mod session;
mod udp;
mod wanted;

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{self, LocalSet};
use tokio_rustls::TlsAcceptor;

use self::network::{Door, Network, Place};
use self::networks::Networks;
use self::udp::HubUdp;
use crate::admin::{self, HubStatus, Request, Roles};
use crate::error::{Error, Result};
use crate::folder::{make_folder, write_private};
use crate::identity::HubCertificates;
use crate::join::Endpoint;
use crate::tls;

pub use self::wanted::{MAIN, NetworkOptions};

/// The socket of the control API of the hub with this runtime folder, for its own user alone.
#[must_use]
pub fn socket(runtime: &Path) -> PathBuf {
    runtime.join("hub.sock")
}

/// Connections that are not lanes yet; more wait in the kernel.
const HANDSHAKES: usize = 64;

/// In the hub's folders: those of its networks but the main one.
const NETWORKS: &str = "networks";

/// What a hub is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name on this machine.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What join strings say; `None`: the first address of this machine that others may reach.
    pub advertise: Option<Endpoint>,
    /// Its main network.
    pub network: NetworkOptions,
    /// Whether super-packets are asked of the kernel.
    pub offload: bool,
    /// Whether packets may go by UDP, on the port that it listens on.
    pub udp: bool,
    /// Where its databases and keys are kept.
    pub state: PathBuf,
    /// Where its socket and journals are, a folder of its own.
    pub runtime: PathBuf,
    /// Another socket of its control API, that all users of the machine may connect to.
    pub socket: Option<PathBuf>,
    /// The ledger of settings that all owners share.
    pub ledger: PathBuf,
}

/// A running hub.
struct Hub {
    options: Options,
    door: Rc<Door>,
    acceptor: TlsAcceptor,
    networks: Rc<Networks>,
    /// The users who have roles at it, as the main network's database says.
    roles: Rc<RefCell<Roles>>,
    /// Where its control API is.
    sockets: RefCell<Vec<admin::Opened>>,
}

/// Runs a hub until a signal comes (SIGINT, SIGTERM); `ready` is called when peers can join, with the status of its
/// main network.
///
/// # Errors
/// It cannot start; what it had made is undone.
pub fn run(options: Options, ready: impl FnOnce(&HubStatus)) -> Result<()> {
    options.network.plan()?;
    let failed = |error: io::Error| Error::io("start the hub", &error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.map_err(failed)?, async move {
        let mut stop = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        make_folder(&options.state)?;
        make_folder(&options.runtime)?;
        let (hub, listener) = Hub::prepare(options).await?;
        let result = match hub.start().await {
            Ok((status, asks)) => {
                ready(&status);
                tokio::select! {
                    () = Rc::clone(&hub).accept(listener) => {}
                    never = hub.door.carry_udp() => match never {},
                    () = Rc::clone(&hub).answer(asks) => {}
                    _ = stop.recv() => {}
                    _ = interrupt.recv() => {}
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        let closed = hub.close().await;
        result.and(closed)
    })
}

/// Undoes what a killed hub has left on this machine: routes, and what it did as an exit.
///
/// # Errors
/// It cannot be undone, or the hub lives.
pub fn undo(options: &Options) -> Result<()> {
    let undo = |name: &str| options.place(name).open_routes(name).map(drop);
    let main = undo(MAIN);
    // Of which others it had tells what they have left, whatever the state says of them today.
    let left = options.runtime.join(NETWORKS);
    let entries = match fs::read_dir(&left) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return main,
        entries => {
            entries.map_err(|error| Error::io(format!("read {}", left.display()), &error))?
        }
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.map(|name| undo(&name)).fold(main, Result::and)
}

impl Options {
    /// Where a network keeps what is its own.
    fn place(&self, name: &str) -> Place {
        let Self { name: hub, state, runtime, ledger, .. } = self;
        let below = |folder: &Path| match name {
            MAIN => folder.to_owned(),
            name => folder.join(NETWORKS).join(name),
        };
        let owner = match name {
            MAIN => format!("hub-{hub}"),
            // A name of a network has no dot: no two have the same owner.
            name => format!("hub.{name}.{hub}"),
        };
        Place { owner, state: below(state), runtime: below(runtime), ledger: ledger.clone() }
    }
}

impl Hub {
    /// A hub without networks, and the socket where it listens.
    async fn prepare(options: Options) -> Result<(Rc<Self>, TcpListener)> {
        let (config, pin) = tls::hub(&certificates(&options.state)?)?;
        let listen = options.listen;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Error::io(format!("listen on {listen}"), &error).next("choose another --listen")
        })?;
        // Each connection takes one; the limit of a login shell is 1024 at first.
        let descriptors = netyard_sys::daemon::raise_descriptor_limit().ok();
        if let Some(most) = descriptors {
            tracing::info!(most, "descriptors for connections and files");
        }
        let udp = listener.local_addr().ok().filter(|_| options.udp).and_then(HubUdp::open);
        let endpoint = match &options.advertise {
            Some(endpoint) => endpoint.clone(),
            None => reached::endpoint(&listener)?,
        };
        let door = Door {
            hub: options.name.clone(),
            listen,
            descriptors,
            endpoint,
            pin,
            udp,
            offload: options.offload,
        };
        let hub = Self {
            options,
            door: Rc::new(door),
            acceptor: TlsAcceptor::from(Arc::new(config)),
            networks: Rc::default(),
            roles: Rc::default(),
            sockets: RefCell::default(),
        };
        Ok((Rc::new(hub), listener))
    }

    /// Starts its networks, and the control API.
    async fn start(&self) -> Result<(HubStatus, mpsc::Receiver<Request>)> {
        // The main network's journal is locked: no other hub of that name lives.
        let main = self.open(self.options.network.clone()).await?;
        self.roles.replace(main.with_store(|store| store.roles()).await?);
        let mut sockets = vec![admin::listen(&socket(&self.options.runtime), 0o600)?];
        if let Some(socket) = &self.options.socket {
            sockets.push(admin::listen(socket, 0o666)?);
        }
        for wanted in wanted::kept(&self.options.state.join(NETWORKS))? {
            self.open(wanted).await?;
        }
        let (asks, receiver) = mpsc::channel(admin::WAITING_ASKS);
        for (listener, opened) in sockets {
            self.sockets.borrow_mut().push(opened);
            task::spawn_local(admin::serve(listener, asks.clone(), Rc::clone(&self.roles)));
        }
        Ok((main.status(), receiver))
    }

    /// Starts a network.
    async fn open(&self, wanted: NetworkOptions) -> Result<Rc<Network>> {
        self.networks.make_room(&wanted)?;
        let place = self.options.place(&wanted.name);
        let others = Rc::downgrade(&self.networks);
        let network = match Network::start(wanted, &place, Rc::clone(&self.door), others).await {
            Ok(network) => network,
            // What the others kept away from is nobody's.
            Err(error) => return self.networks.keep_apart().and(Err(error)),
        };
        self.networks.insert(Rc::clone(&network))?;
        let carried = Rc::clone(&network);
        task::spawn_local(async move { carried.carry().await });
        Ok(network)
    }

    /// Ends all networks.
    async fn close(&self) -> Result<()> {
        self.sockets.take();
        let mut result = Ok(());
        for network in self.networks.all() {
            result = result.and(network.close().await);
        }
        result
    }

    async fn accept(self: Rc<Self>, listener: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, remote)) => {
                    let hub = Rc::clone(&self);
                    task::spawn_local(hub.connection(socket, remote, permit));
                }
                Err(error) => {
                    // Out of descriptors, most likely: others may end meanwhile.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// After a failed accept.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// The hub's certificates, made if it has none.
fn certificates(state: &Path) -> Result<HubCertificates> {
    let files = ["hub.pem", "hub-key.pem", "authority-key.pem"].map(|name| state.join(name));
    let [chain, key, authority_key] = &files;
    if !chain.exists() {
        let made = HubCertificates::generate()?;
        // The chain last: who finds it, finds the others.
        write_private(authority_key, &made.authority_key)?;
        write_private(key, &made.key)?;
        write_private(chain, &made.chain)?;
    }
    let read = |path: &Path| {
        fs::read_to_string(path)
            .map_err(|error| Error::io(format!("read {}", path.display()), &error))
    };
    Ok(HubCertificates {
        chain: read(chain)?,
        key: read(key)?,
        authority_key: read(authority_key)?,
    })
}
