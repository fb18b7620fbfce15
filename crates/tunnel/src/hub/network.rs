//! One network of a hub: its machines, addresses, tokens, policy and names.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netyard_wire::{Offload, VNET_HEADER_LEN};
use tokio::sync::Notify;
use tokio::{task, time};

use super::book::Book;
use super::knowledge::Knowledge;
use super::names::Names;
use super::networks::Networks;
use super::session::Sessions;
use super::udp::HubUdp;
use super::wanted::NetworkOptions;
use crate::addresses::Plan;
use crate::device::{BUDGET, Device};
use crate::dns::Server;
use crate::error::{Error, Result};
use crate::folder::make_folder;
use crate::frame;
use crate::identity::Pin;
use crate::join::Endpoint;
use crate::message::Dns;
use crate::mtu;
use crate::pool::Pool;
use crate::relay::{Relay, Way, own};
use crate::routes::{Entry, Routes};
use crate::store::{Sqlite, Store};
use crate::through::Through;

/// What all networks of a hub have in common: where lanes come in.
#[derive(Debug)]
pub(super) struct Door {
    /// The hub's name on this machine.
    pub(super) hub: String,
    /// Where it listens.
    pub(super) listen: SocketAddr,
    /// How many descriptors the kernel lets it have; `None`: that is not known.
    pub(super) descriptors: Option<usize>,
    /// What join strings say.
    pub(super) endpoint: Endpoint,
    pub(super) pin: Pin,
    /// The same port by UDP.
    pub(super) udp: Option<HubUdp>,
    /// Whether super-packets are asked of the kernel.
    pub(super) offload: bool,
}

/// Where a network keeps what is its own.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The owner of its routes.
    pub(super) owner: String,
    /// The folder of its database.
    pub(super) state: PathBuf,
    /// The folder of its journal.
    pub(super) runtime: PathBuf,
    /// The ledger of settings that all owners share.
    pub(super) ledger: PathBuf,
}

impl Place {
    /// Opens its journal, and undoes what a killed hub has left there.
    pub(super) fn open_routes(&self, network: &str) -> Result<Routes> {
        make_folder(&self.runtime)?;
        let opened = Routes::open(&self.owner, &self.runtime, &self.ledger, true);
        opened.map_err(|error| {
            let told = Error::link(format!("start the network {network}"), &error);
            match error {
                netyard_link::Error::InUse { .. } => told.next(IN_USE),
                _ => told,
            }
        })
    }
}

/// A network.
pub(super) struct Network {
    pub(super) options: NetworkOptions,
    pub(super) plan: Plan,
    pub(super) door: Rc<Door>,
    /// Another one if somebody has removed it.
    device: RefCell<Rc<Device>>,
    pub(super) knowledge: RefCell<Knowledge>,
    pub(super) names: Rc<Names>,
    pub(super) refreshing: tokio::sync::Mutex<()>,
    pub(super) relay: RefCell<Relay>,
    pub(super) sessions: Sessions,
    /// Its database.
    pub(super) book: Rc<Book>,
    /// What is behind peers has changed.
    pub(super) stale: Notify,
    pub(super) pool: Rc<RefCell<Pool>>,
    pub(super) device_refused: Cell<u64>,
    pub(super) others: Weak<Networks>,
    /// Until it is closed: another network of its name may be wanted then.
    routes: RefCell<Option<Routes>>,
    /// The subnets behind peers that the kernel leads here; `None`: it could not lead those that it was to.
    led: RefCell<Option<Vec<IpNet>>>,
    dns: RefCell<Option<Server>>,
    is_closing: Cell<bool>,
    closed: Notify,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Network {
    /// Starts it; what was made is undone if that fails.
    pub(super) async fn start(
        options: NetworkOptions,
        place: &Place,
        door: Rc<Door>,
        others: Weak<Networks>,
    ) -> Result<Rc<Self>> {
        let plan = options.plan()?;
        options.check_zone()?;
        make_folder(&place.state)?;
        let mut routes = place.open_routes(&options.name)?;
        let store = Sqlite::open(&place.state.join("hub.db"))?;
        let device = match enter(&options, &options.tun, plan, door.offload, &mut routes) {
            Ok(device) => device,
            Err(error) => {
                // The first error is the one that matters.
                _ = routes.undo();
                return Err(error);
            }
        };
        let names =
            Names::new(&options.zone, plan.prefixes(), own(plan.hub()).collect(), options.exit);
        let network = Rc::new(Self {
            relay: RefCell::new(Relay::new(plan, options.isolate)),
            options,
            plan,
            door,
            device: RefCell::new(Rc::new(device)),
            knowledge: RefCell::default(),
            names: Rc::new(names),
            refreshing: tokio::sync::Mutex::default(),
            sessions: Sessions::default(),
            book: Rc::new(Book::new(store)),
            stale: Notify::new(),
            pool: Rc::new(RefCell::new(Pool::default())),
            device_refused: Cell::new(0),
            others,
            routes: RefCell::new(Some(routes)),
            led: RefCell::new(Some(Vec::new())),
            dns: RefCell::default(),
            is_closing: Cell::new(false),
            closed: Notify::new(),
        });
        if network.options.dns {
            network.dns.replace(network.serve_names());
        }
        if let Err(error) = network.refresh().await {
            _ = network.undo();
            return Err(error);
        }
        Ok(network)
    }

    /// Answers questions about names. Where the machine has another server, it goes on without.
    fn serve_names(&self) -> Option<Server> {
        let served = Server::start(own(self.plan.hub()), &self.names);
        let told = served.inspect_err(|error| {
            let network = &self.options.name;
            tracing::warn!(network, %error, "names are not answered: another program has port 53 of every address");
        });
        told.ok()
    }

    /// What it answers by DNS.
    pub(super) fn dns(&self) -> Option<Dns> {
        self.dns.borrow().as_ref().map(|_| self.names.told())
    }

    /// Its TUN device.
    pub(super) fn device(&self) -> Rc<Device> {
        Rc::clone(&self.device.borrow())
    }

    /// What is behind its peers.
    pub(super) fn behind_peers(&self) -> Vec<IpNet> {
        self.knowledge.borrow().subnets_for(None)
    }

    /// Has the kernel lead these subnets here, and no others.
    pub(super) fn lead_to(&self, subnets: &[IpNet]) -> Result<()> {
        let mut routes = self.routes.borrow_mut();
        let is_new = self.led.borrow().as_deref() != Some(subnets);
        let Some(routes) = routes.as_mut().filter(|_| is_new) else { return Ok(()) };
        let led = routes.lead_to(entry(&self.device(), self.plan), subnets);
        self.led.replace(matches!(led, Ok(true)).then(|| subnets.to_vec()));
        led.map(drop).map_err(|error| Error::link("lead subnets to peers", &error))
    }

    /// Whether the kernel leads here what it was to.
    pub(super) fn is_led_to(&self) -> bool {
        self.led.borrow().is_some()
    }

    /// Has the kernel lead no subnets here any more but these.
    pub(super) fn lead_only(&self, subnets: &[IpNet]) -> Result<()> {
        let mut routes = self.routes.borrow_mut();
        let Some(routes) = routes.as_mut() else { return Ok(()) };
        let kept = routes.lead_only(entry(&self.device(), self.plan), subnets);
        kept.map_err(|error| Error::link("lead subnets to peers no more", &error))
    }

    /// Carries what the hub's own kernel sends, until the network is closed.
    pub(super) async fn carry(&self) {
        tokio::select! {
            never = self.read_device() => match never {},
            never = self.renew() => match never {},
            never = self.hold() => match never {},
            never = self.keep_book() => match never {},
            () = self.closed() => {}
        }
    }

    /// Takes what the hub's own kernel sends; does not end.
    async fn read_device(&self) -> Infallible {
        let mut scratch = vec![0; frame::MAX_PACKET_LEN];
        loop {
            let device = self.device();
            let read = device.read(&mut scratch, BUDGET, |bytes| self.handle_outgoing(bytes));
            match read.await {
                Ok(()) => task::yield_now().await,
                Err(error) => {
                    tracing::warn!(%error, device = device.name(), "the TUN device cannot be read");
                    time::sleep(REMADE).await;
                    while let Err(error) = self.remake() {
                        tracing::error!(%error, "there is no TUN device");
                        time::sleep(UNMADE).await;
                    }
                }
            }
        }
    }

    /// Makes the device again, with all that leads to it; its name is the same if nobody has taken that.
    fn remake(&self) -> Result<()> {
        let Some(routes) = &mut *self.routes.borrow_mut() else { return Ok(()) };
        let failed = |error| Error::link("take back what led to the TUN device", &error);
        routes.leave().map_err(failed)?;
        let former = self.device();
        let mut make =
            |name: &str| enter(&self.options, name, self.plan, self.door.offload, routes);
        let device = Rc::new(make(former.name()).or_else(|_| make(&self.options.tun))?);
        self.device.replace(Rc::clone(&device));
        tracing::info!(device = device.name(), "there is a TUN device again");
        let mut led = self.led.borrow_mut();
        let again = led.as_deref().map(|led| routes.lead_to(entry(&device, self.plan), led));
        if let Some(Err(error)) = &again {
            tracing::error!(%error, "subnets are not led to peers");
        }
        if !matches!(again, Some(Ok(true))) {
            *led = None;
            self.stale.notify_one();
        }
        Ok(())
    }

    /// Makes again what somebody else has undone on this machine; does not end.
    async fn hold(&self) -> Infallible {
        loop {
            time::sleep(LOOKED).await;
            let device = self.device();
            let Some(routes) = &mut *self.routes.borrow_mut() else { continue };
            if let Err(error) = device.hold().and_then(|()| routes.hold()) {
                tracing::warn!(%error, "the hub's routes are not held");
            }
        }
    }

    /// Looks again whenever what is behind peers has changed, but not all the time; does not end.
    async fn renew(&self) -> Infallible {
        loop {
            self.stale.notified().await;
            if let Err(error) = self.refresh().await {
                tracing::error!(%error, "what is behind peers is not known");
            }
            time::sleep(RENEWED).await;
        }
    }

    /// Writes down what is not in the database yet, when that is possible; does not end.
    async fn keep_book(&self) -> Infallible {
        loop {
            self.book.came().await;
            let mut is_told = false;
            while let Err(error) = self.settle().await {
                if !is_told {
                    tracing::error!(%error, "who is here is not written down yet");
                }
                is_told = true;
                time::sleep(UNWRITTEN).await;
            }
            if is_told {
                tracing::info!("who is here is written down");
            }
        }
    }

    async fn settle(&self) -> Result<()> {
        if self.book.settle(|node| self.sessions.is_here(node)).await? {
            // What those offer who have logged in meanwhile.
            self.stale.notify_one();
        }
        Ok(())
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

    /// Asks the database, away from the packets.
    pub(super) async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.book.ask(work).await
    }

    /// Until it is closed, if it is not yet.
    pub(super) async fn closed(&self) {
        if !self.is_closing() {
            self.closed.notified().await;
        }
    }

    /// Nobody is let in any more.
    pub(super) const fn is_closing(&self) -> bool {
        self.is_closing.get()
    }

    /// Says goodbye to everybody, and undoes what it has made on this machine.
    ///
    /// # Errors
    /// Something of it cannot be undone.
    pub(super) async fn close(&self) -> Result<()> {
        self.is_closing.set(true);
        self.say_bye().await;
        // The next start takes those for gone who are not written down.
        _ = time::timeout(UNWRITTEN, self.settle()).await;
        self.closed.notify_waiters();
        self.dns.take();
        self.undo()
    }

    fn undo(&self) -> Result<()> {
        let undone = self.routes.take().map_or(Ok(()), |mut routes| routes.undo());
        undone.map_err(|error| Error::link("undo the hub's routes", &error))
    }
}

/// What helps where a hub of this name runs already.
const IN_USE: &str = "a hub of this name runs on this machine already, perhaps in another network namespace: stop that \
    one, or give this one a name of its own: --name NAME";

fn entry(device: &Device, plan: Plan) -> Entry<'_> {
    Entry {
        device: device.name(),
        network: plan.network(),
        network6: plan.network6(),
        slot: plan.hub(),
        redirect: false,
    }
}

/// A device of this name, with its addresses and routes.
fn enter(
    options: &NetworkOptions,
    name: &str,
    plan: Plan,
    offload: bool,
    routes: &mut Routes,
) -> Result<Device> {
    let device = Device::create(name, offload, options.mtu, options.queue_length)?;
    let (network, network6) = (plan.network(), plan.network6());
    let failed = |error| Error::link(format!("route the network {network}"), &error);
    routes.enter(entry(&device, plan)).map_err(failed)?;
    if options.exit {
        let everything = EVERYTHING.iter().filter_map(|net| net.parse().ok());
        let families = if network6.is_some() { 2 } else { 1 };
        let subnets: Vec<IpNet> = everything.take(families).collect();
        let subnets = &subnets;
        let through =
            Through { device: device.name(), network, network6, subnets, translate: true };
        routes.let_through(&through).map_err(failed)?;
    }
    Ok(device)
}

/// How often a hub looks whether its device, its routes and its rules are there.
const LOOKED: Duration = Duration::from_secs(5);

/// After a look at what is behind peers: a peer that says something new all the time costs no more than this.
const RENEWED: Duration = Duration::from_millis(250);

/// After a device has failed, so that one that does so all the time costs little; and after it could not be made again.
const REMADE: Duration = Duration::from_millis(100);
const UNMADE: Duration = Duration::from_secs(1);

/// After an attempt to write what is not in the database.
const UNWRITTEN: Duration = Duration::from_secs(1);

/// What an exit leads to.
const EVERYTHING: [&str; 2] = ["0.0.0.0/0", "::/0"];
