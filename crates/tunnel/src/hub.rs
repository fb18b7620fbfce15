//! The hub: listens, lets peers in, and carries packets between them and its own TUN device.
//!
//! One thread does everything but the database, so nothing on the way of a packet is locked. A login, a
//! request and a departure wait for the database on another thread, one at a time.

mod control;
mod knowledge;
mod names;
mod session;
mod udp;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use netyard_wire::{Offload, VNET_HEADER_LEN};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{self, LocalSet};
use tokio_rustls::TlsAcceptor;

use self::knowledge::Knowledge;
use self::names::Names;
use self::session::Sessions;
use self::udp::HubUdp;
use crate::addresses::Plan;
use crate::admin::{self, Ask, HubStatus};
use crate::device::{BUDGET, Device};
use crate::dns::Server;
use crate::error::{Blame, Error, Result};
use crate::folder::{make_folder, write_private};
use crate::frame;
use crate::identity::{HubCertificates, Pin};
use crate::join::Endpoint;
use crate::message::Dns;
use crate::mtu;
use crate::pool::Pool;
use crate::relay::{Relay, Way};
use crate::routes::{Entry, Routes};
use crate::store::Store;
use crate::through::Through;
use crate::tls;

/// Connections that are not lanes yet; more wait in the kernel.
const HANDSHAKES: usize = 64;

/// What a hub is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name on this machine.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What join strings say; `None`: the first address of this machine that others may reach.
    pub advertise: Option<Endpoint>,
    /// The network.
    pub plan: Plan,
    /// The largest packet, bytes.
    pub mtu: u32,
    /// How many packets wait in the kernel for the tunnel.
    pub queue_length: u32,
    /// Peers reach the hub, and not each other.
    pub isolate: bool,
    /// What peers send to the outside is let on from here, with this machine's address.
    pub exit: bool,
    /// The zone of the machines' names.
    pub zone: String,
    /// Whether it answers questions about names by DNS; with [`exit`](Self::exit) about all.
    pub dns: bool,
    /// The TUN device; with `%d` in it the first free number.
    pub tun: String,
    /// Whether super-packets are asked of the kernel.
    pub offload: bool,
    /// Whether packets may go by UDP, on the port that it listens on.
    pub udp: bool,
    /// Where its database and keys are kept.
    pub state: PathBuf,
    /// Where its socket and journal are, a folder of its own.
    pub runtime: PathBuf,
    /// The ledger of settings that all owners share.
    pub ledger: PathBuf,
}

/// A running hub.
struct Hub {
    options: Options,
    endpoint: Endpoint,
    pin: Pin,
    store: Arc<Mutex<Store>>,
    acceptor: TlsAcceptor,
    udp: Option<HubUdp>,
    device: Device,
    routes: Rc<RefCell<Routes>>,
    knowledge: RefCell<Knowledge>,
    names: Rc<Names>,
    dns: Option<Server>,
    refreshing: tokio::sync::Mutex<()>,
    relay: RefCell<Relay>,
    sessions: Sessions,
    pool: Rc<RefCell<Pool>>,
    device_refused: Cell<u64>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Runs a hub until a signal comes (SIGINT, SIGTERM); `ready` is called when peers can join.
///
/// # Errors
/// It cannot start; what it had made is undone.
pub fn run(options: Options, ready: impl FnOnce(&HubStatus)) -> Result<()> {
    let failed = |error: io::Error| Error::io("start the hub", &error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.map_err(failed)?, async move {
        let mut stop = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        make_folder(&options.state)?;
        make_folder(&options.runtime)?;
        let owner = format!("hub-{}", options.name);
        let routes = Routes::open(&owner, &options.runtime, &options.ledger, true)
            .map_err(|error| Error::link("start the hub", &error))?;
        let routes = Rc::new(RefCell::new(routes));
        let started = Hub::start(options, &routes).await;
        let result = match started {
            Ok((hub, listener, asks)) => {
                ready(&hub.status());
                tokio::select! {
                    result = Rc::clone(&hub).serve(listener, asks) => result,
                    _ = stop.recv() => Ok(()),
                    _ = interrupt.recv() => Ok(()),
                }
                .and(hub.close().await)
            }
            Err(error) => Err(error),
        };
        let undone = routes.borrow_mut().undo();
        let undone = undone.map_err(|error| Error::link("undo the hub's routes", &error));
        result.and(undone)
    })
}

impl Hub {
    async fn start(
        options: Options,
        routes: &Rc<RefCell<Routes>>,
    ) -> Result<(Rc<Self>, TcpListener, mpsc::Receiver<Ask>)> {
        let control = admin::listen(&options.runtime)?;
        let store = Store::open(&options.state.join("hub.db"))?;
        let (config, pin) = tls::hub(&certificates(&options.state)?)?;
        let listen = options.listen;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Error::io(format!("listen on {listen}"), &error).next("choose another --listen")
        })?;
        let udp = listener.local_addr().ok().filter(|_| options.udp).and_then(HubUdp::open);
        let endpoint = match &options.advertise {
            Some(endpoint) => endpoint.clone(),
            None => own_endpoint(&listener)?,
        };
        let device =
            Device::create(&options.tun, options.offload, options.mtu, options.queue_length)?;
        let (network, network6) = (options.plan.network(), options.plan.network6());
        let slot = options.plan.hub();
        let entry = Entry { device: device.name(), network, network6, slot, redirect: false };
        let failed = |error| Error::link(format!("route the network {network}"), &error);
        routes.borrow_mut().enter(entry).map_err(failed)?;
        if options.exit {
            let everything = EVERYTHING.iter().filter_map(|net| net.parse().ok());
            let subnets: Vec<IpNet> = everything.collect();
            let subnets = if network6.is_some() {
                &subnets[..]
            } else {
                subnets.get(..1).unwrap_or_default()
            };
            let through = Through { device: device.name(), network, network6, subnets };
            routes.borrow_mut().let_through(&through).map_err(failed)?;
        }
        let own: Vec<IpAddr> = [Some(slot.address.into()), slot.address6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
            .collect();
        let networks: Vec<IpNet> =
            [Some(network.into()), network6.map(IpNet::V6)].into_iter().flatten().collect();
        let names = Rc::new(Names::new(&options.zone, networks, own.clone(), options.exit));
        let dns = match options.dns {
            true => serve_names(own, &names),
            false => None,
        };
        let pool = Rc::new(RefCell::new(Pool::default()));
        let hub = Rc::new(Self {
            relay: RefCell::new(Relay::new(options.plan, options.isolate)),
            options,
            endpoint,
            pin,
            store: Arc::new(Mutex::new(store)),
            acceptor: TlsAcceptor::from(Arc::new(config)),
            udp,
            device,
            routes: Rc::clone(routes),
            knowledge: RefCell::default(),
            names,
            dns,
            refreshing: tokio::sync::Mutex::default(),
            sessions: Sessions::default(),
            pool,
            device_refused: Cell::new(0),
        });
        hub.refresh().await?;
        let (asks, receiver) = mpsc::channel(admin::WAITING_ASKS);
        task::spawn_local(admin::serve(control, asks));
        Ok((hub, listener, receiver))
    }

    /// Everything a hub does, until something of it fails.
    async fn serve(self: Rc<Self>, listener: TcpListener, asks: mpsc::Receiver<Ask>) -> Result<()> {
        tokio::select! {
            result = self.carry() => result,
            never = self.carry_udp() => match never {},
            () = Rc::clone(&self).accept(listener) => Ok(()),
            () = Rc::clone(&self).answer(asks) => Ok(()),
        }
    }

    /// Carries what the hub's own kernel sends.
    async fn carry(&self) -> Result<()> {
        let mut scratch = vec![0; frame::MAX_PACKET_LEN];
        loop {
            let read = self.device.read(&mut scratch, BUDGET, |bytes| self.handle_outgoing(bytes));
            read.await.map_err(|error| Error::io("read the TUN device", &error))?;
            task::yield_now().await;
        }
    }

    fn handle_outgoing(&self, bytes: &[u8]) {
        let mut relay = self.relay.borrow_mut();
        let Some((header, bytes)) = bytes.split_first_chunk::<VNET_HEADER_LEN>() else { return };
        let Ok((offload, packet)) = Offload::parse_packet(header, bytes) else { return };
        if packet.destination.is_multicast() {
            // What the kernel tells its neighbours: there are none.
            return;
        }
        if let Way::Peer(peer) = relay.from_hub(&packet, Instant::now())
            && let Some(outbox) = self.sessions.outbox(peer)
        {
            let clamped = mtu::clamp(self.options.mtu, &offload, bytes, &packet);
            let bytes = clamped.as_deref().unwrap_or(bytes);
            outbox.push(Instant::now(), (header, bytes), (&offload, &packet));
        }
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

    /// What it answers by DNS.
    fn dns(&self) -> Option<Dns> {
        self.dns.as_ref().map(|_| self.names.told())
    }

    /// Asks the database, away from the packets.
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.store);
        let done = task::spawn_blocking(move || {
            // A panic elsewhere left the database as it was before: changes are transactions.
            work(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await.map_err(|error| Error::new(Blame::System, "use the hub's database", error))?
    }
}

/// Answers questions about names. A hub whose machine has another server there goes on without.
fn serve_names(own: Vec<IpAddr>, names: &Rc<Names>) -> Option<Server> {
    let served = Server::start(own, names);
    served
        .inspect_err(|error| {
            tracing::warn!(%error, "names are not answered: another program has port 53 of every address");
        })
        .ok()
}

/// What an exit leads to.
const EVERYTHING: [&str; 2] = ["0.0.0.0/0", "::/0"];

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

/// An address of this machine that others may reach.
fn own_endpoint(listener: &TcpListener) -> Result<Endpoint> {
    let wanted = || "find out where others reach this hub";
    let failed = |error| Error::io(wanted(), &error);
    let listen = listener.local_addr().map_err(failed)?;
    let addresses = match listen.ip() {
        ip if ip.is_unspecified() => netyard_sys::interface::addresses().map_err(failed)?,
        ip => vec![ip],
    };
    let usable = |address: &&IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => {
            listen.is_ipv6() && !address.is_loopback() && !address.is_unicast_link_local()
        }
    };
    let best = addresses.iter().filter(usable).min_by_key(|address| address.is_ipv6());
    let address = best.or(addresses.first().filter(|_| !listen.ip().is_unspecified()));
    let Some(address) = address else {
        return Err(Error::new(Blame::Input, wanted(), "this machine has no address but loopback")
            .next("say it with --advertise HOST"));
    };
    Ok(Endpoint { host: address.to_string(), port: listen.port() })
}
