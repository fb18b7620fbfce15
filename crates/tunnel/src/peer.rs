//! A peer: logs in to its hub, brings the network to this machine, and comes back when the lane breaks.
//!
//! The device, its address and its routes stay while there is no lane, so programs see silence and not
//! errors, and what they send meanwhile waits for two seconds.

mod machine;
mod meet;
mod moves;
mod plug;
mod site;

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netyard_wire::Offload;
use netyard_wire::ip::IpPacket;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::{self, JoinHandle, LocalSet};
use tokio::time;
use tokio_rustls::rustls::ClientConfig;

use self::machine::Machine;
use self::moves::{Moves, Way};
use self::plug::Plugged;
use self::site::{Port, Site};
use crate::dial::Finder;
use crate::error::{Blame, Error, Result};
use crate::folder::{make_folder, write_private};
use crate::frame::Record;
use crate::identity::NodeKey;
use crate::join::Join;
use crate::lane::{self, Ended, Inbox, Outbox, Receive};
use crate::login::{Failure, PeerStream};
use crate::message::{ByUdp, ByeReason, Connected, Message, Name, Names, News};
use crate::pool::Pool;
use crate::proxy::{Proxy, ProxyError};
use crate::udp::{self, UdpLane};
use crate::{text, tls};

/// The first pause before another attempt, and the longest. Between them it is this part of the time that the hub
/// is away: so one that comes back is found again within not much more than that.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const PAUSE_PART: u32 = 4;
/// A lane that was there for less before this machine had another way is followed by a pause.
const STEADY: Duration = Duration::from_secs(1);
/// How often a peer looks whether its routes and rules are there.
const LOOKED: Duration = Duration::from_secs(5);

/// What a peer is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What its operator was given.
    pub join: Join,
    /// What it calls itself.
    pub name: String,
    /// The proxy on the way to the hub.
    pub proxy: Option<Proxy>,
    /// Whether everything goes through the hub, and not the network alone.
    pub redirect: bool,
    /// Whether routes are in the main table, and not in one of their own.
    pub main_table: bool,
    /// Nothing leaves this machine but by the tunnel, and to these networks; `None`: no such rule.
    pub kill_switch: Option<Vec<IpNet>>,
    /// What is behind this machine: offered to the hub, and what comes for it is let through; `/0`: everything.
    pub subnets: Vec<IpNet>,
    /// Whether what comes for them has this machine's address there, so that nobody there needs to know of the
    /// hub's network.
    pub translate: bool,
    /// The peer by which it leaves the network; `None`: the hub.
    pub exit: Option<String>,
    /// Whether what is behind other peers is led to the tunnel.
    pub accept_subnets: bool,
    /// Whether programs of this machine ask the hub for the network's names, and for all names if everything goes
    /// through it and it knows them.
    pub dns: bool,
    /// The hosts file that shall have the names of the network's machines.
    pub hosts: Option<PathBuf>,
    /// Whether the names of the network's machines are told to who runs this.
    pub tell_names: bool,
    /// The TUN device; with `%d` in it the first free number.
    pub tun: String,
    /// Whether super-packets are asked of the kernel.
    pub offload: bool,
    /// What goes by UDP, if that gets through.
    pub by_udp: ByUdp,
    /// Where its key is kept.
    pub state: PathBuf,
    /// Where its journal is, a folder of its own.
    pub runtime: PathBuf,
    /// The owner of its routes: one name for each peer on this machine.
    pub owner: String,
    /// The ledger of settings that all owners share.
    pub ledger: PathBuf,
}

impl Options {
    /// A peer that brings its network to this machine and does nothing else. `state`: where its key is kept,
    /// `runtime`: its journal; `owner` and `ledger` as there.
    #[must_use]
    pub fn new(
        join: Join,
        name: String,
        (state, runtime): (PathBuf, PathBuf),
        (owner, ledger): (String, PathBuf),
    ) -> Self {
        Self {
            join,
            name,
            proxy: None,
            redirect: false,
            main_table: false,
            kill_switch: None,
            subnets: Vec::new(),
            translate: true,
            exit: None,
            accept_subnets: true,
            dns: false,
            hosts: None,
            tell_names: false,
            tun: "tun%d".to_owned(),
            offload: true,
            by_udp: ByUdp::NotTcp,
            state,
            runtime,
            owner,
            ledger,
        }
    }
}

/// A network of this machine that is joined as a whole.
#[derive(Debug)]
pub struct Behind {
    /// Its frame socket, if it is one in user mode. Nothing is made on this machine then.
    pub socket: Option<OwnedFd>,
    /// The names of what is in it, without a zone, for the hub.
    pub names: watch::Receiver<Vec<Name>>,
}

/// What a peer tells who runs it.
#[derive(Debug)]
pub enum Told<'a> {
    /// It is on the network, and what the hub says of that; again when there is something new. And its TUN
    /// device, if it has one.
    Connected(&'a Connected, Option<&'a str>),
    /// The hub is not reached, and why. It is tried again.
    Away(&'a str),
}

/// A peer that is on its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Its name at the hub.
    pub name: String,
    /// The hub, host and port.
    pub hub: String,
    /// Its TUN device.
    pub device: String,
    /// The network, and the addresses of this peer and the hub.
    #[serde(flatten)]
    pub connected: ConnectedAs,
}

/// Where on the network a peer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectedAs {
    /// The network.
    pub network: ipnet::Ipv4Net,
    /// The peer's address.
    pub address: std::net::Ipv4Addr,
    /// The peer's IPv6 address.
    pub address6: Option<std::net::Ipv6Addr>,
    /// The hub's address.
    pub hub_address: std::net::Ipv4Addr,
    /// The largest packet, bytes.
    pub mtu: u32,
    /// The zone whose names programs of this machine ask the hub for; `None`: they do not.
    pub zone: Option<String>,
}

/// Runs a peer until a signal comes (SIGINT, SIGTERM) or the hub lets it in no more; `ready` is called each
/// time that it is on the network.
///
/// # Errors
/// The hub refuses for good, or this machine does. What was made is undone.
pub fn run(options: Options, ready: impl Fn(&Joined)) -> Result<()> {
    let failed = |error: io::Error| Error::io("join a hub", &error);
    on_runtime(async move {
        let mut stop = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let stopped = async {
            tokio::select! {
                _ = stop.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let told = |peer: &Peer, is_new: bool, told: &Told<'_>| {
            if let (true, Told::Connected(connected, _)) = (is_new, told) {
                ready(&peer.joined(connected));
            }
        };
        Peer::new(options, None)?.run(&told, stopped).await
    })
}

/// Runs a peer for a network behind it until `stop` is over or the hub lets it in no more.
///
/// # Errors
/// The hub refuses for good, or this machine does. What was made is undone.
pub fn run_for(
    behind: Behind,
    options: Options,
    tell: impl Fn(&Told<'_>),
    stop: impl Future<Output = ()>,
) -> Result<()> {
    on_runtime(async move {
        let told = |_: &Peer, _: bool, told: &Told<'_>| tell(told);
        Peer::new(options, Some(behind))?.run(&told, stop).await
    })
}

fn on_runtime(peer: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::io("join a hub", &error))?;
    let done = LocalSet::new().block_on(&runtime, peer);
    // Not waiting for the system to give up a question about the hub's name.
    runtime.shutdown_background();
    done
}

/// Undoes what a killed peer has left on this machine, its kill switch too.
///
/// # Errors
/// It cannot be undone, or the peer lives.
pub fn undo(options: &Options) -> Result<()> {
    Machine::undo(options)
}

/// What the hub says of other peers while a lane is there.
#[derive(Debug, Default)]
struct Heard {
    news: RefCell<Option<News>>,
    came: Notify,
}

/// A lane, its UDP, and the way that it has taken.
struct LoggedIn {
    stream: PeerStream,
    inbox: Inbox,
    udp: Option<Rc<UdpLane>>,
    way: Way,
}

struct Peer {
    options: Options,
    site: Site,
    key: NodeKey,
    finder: Finder,
    config: Arc<ClientConfig>,
    outbox: Rc<Outbox>,
    lane: Option<JoinHandle<()>>,
    moves: Option<Moves>,
    /// The way of the last attempt.
    tried: Option<Way>,
    /// The number of this run.
    run: u64,
    /// What is behind this machine, for the hub to name.
    names: Option<watch::Receiver<Vec<Name>>>,
}

/// What is done with what a peer tells; `true` with the first of a lane.
trait Tell: Fn(&Peer, bool, &Told<'_>) {}

impl<T: Fn(&Peer, bool, &Told<'_>)> Tell for T {}

impl Peer {
    fn new(options: Options, behind: Option<Behind>) -> Result<Self> {
        make_folder(&options.state)?;
        let pool = Rc::new(RefCell::new(Pool::default()));
        let outbox = Rc::new(Outbox::new(pool, rand::random()));
        let (socket, names) = match behind {
            Some(Behind { socket, names }) => (socket, Some(names)),
            None => (None, None),
        };
        let site = match socket {
            Some(socket) => Site::Plug(Box::new(Plugged::open(socket, &outbox)?)),
            None => Site::Machine(Box::new(Machine::open(&options)?)),
        };
        let key = node_key(&options.state)?;
        // Behind a proxy the hub's name is the proxy's to look up.
        let first = options.proxy.as_ref().map_or(&options.join.hub, Proxy::endpoint);
        let finder = Finder::new(first, &options.state);
        let config = Arc::new(tls::peer(options.join.pin)?);
        let moves = Moves::open().inspect_err(|error| {
            tracing::warn!(%error, "changes of this machine's addresses are not seen");
        });
        Ok(Self {
            options,
            site,
            key,
            finder,
            config,
            outbox,
            lane: None,
            moves: moves.ok(),
            tried: None,
            run: rand::random(),
            names,
        })
    }

    /// Is on the network until `stop` is over, or no other attempt can help.
    async fn run(mut self, tell: &impl Tell, stop: impl Future<Output = ()>) -> Result<()> {
        let result = tokio::select! {
            error = self.serve(tell) => Err(error),
            () = stop => Ok(()),
        };
        self.say_bye().await;
        self.site.close(result)
    }

    /// Logs in, again and again; the error that no other attempt can help.
    async fn serve(&mut self, tell: &impl Tell) -> Error {
        let mut away = Instant::now();
        loop {
            self.site.hold(&self.options);
            match self.log_in().await {
                Ok((connected, logged_in)) => {
                    let entered = self.site.enter(&self.options, connected, &self.outbox);
                    if let Err(error) = entered.await {
                        return error;
                    }
                    self.tell_connected(tell, true);
                    self.site.set_connected(true);
                    let began = Instant::now();
                    let ended = self.carry(logged_in, tell).await;
                    self.site.set_connected(false);
                    away = Instant::now();
                    match ended {
                        Ended::Moved => {
                            tracing::info!("this machine has another way to the hub now");
                            // One that moves all the time waits between.
                            if began.elapsed() >= STEADY {
                                continue;
                            }
                        }
                        Ended::Bye(ByeReason::Replaced) => {
                            return self.refused("the same node has logged in from elsewhere").next(
                                "two machines must not share a node's key: join with a string of its own",
                            );
                        }
                        ended => {
                            tell(self, false, &Told::Away(&ended.to_string()));
                            tracing::warn!(%ended, "the lane to the hub has ended");
                        }
                    }
                }
                Err(Failure::Rejected(reject)) if !reject.code.is_passing() => {
                    return self.refused(&reject.message);
                }
                Err(Failure::Local(error)) => return *error,
                Err(Failure::Moved) => continue,
                Err(failure @ (Failure::Stranger | Failure::Proxy(ProxyError::Credentials)))
                    if self.site.connected().is_none() =>
                {
                    return self.refused(&failure.to_string());
                }
                Err(failure) => {
                    tell(self, false, &Told::Away(&failure.to_string()));
                    tracing::warn!(hub = %self.options.join.hub, %failure, "the hub is not reached");
                }
            }
            let pause = (away.elapsed() / PAUSE_PART).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            // Full jitter, so that the peers of a hub that comes back do not come together.
            self.pause(pause.mul_f64(rand::random())).await;
        }
    }

    /// Waits for this time, or until there is another way to the hub.
    async fn pause(&mut self, pause: Duration) {
        let over = time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                () = settled(&mut self.moves) => {
                    if self.tried.is_some_and(|way| has_moved(&mut self.site, way)) {
                        return;
                    }
                }
            }
        }
    }

    fn tell_connected(&self, tell: &impl Tell, is_new: bool) {
        if let Some(connected) = self.site.connected() {
            tell(self, is_new, &Told::Connected(connected, self.site.device()));
        }
    }

    fn refused(&self, found: &str) -> Error {
        Error::new(Blame::Peer, format!("join the hub {}", self.options.join.hub), found)
    }

    fn joined(&self, connected: &Connected) -> Joined {
        Joined {
            name: connected.name.clone(),
            hub: self.options.join.hub.to_string(),
            device: self.site.device().unwrap_or_default().to_owned(),
            connected: ConnectedAs {
                network: connected.network,
                address: connected.address,
                address6: connected.address6,
                hub_address: connected.hub,
                mtu: connected.mtu,
                zone: self.site.zone().map(str::to_owned),
            },
        }
    }

    /// A lane, until it ends.
    async fn carry(&mut self, logged_in: LoggedIn, tell: &impl Tell) -> Ended {
        let LoggedIn { stream, mut inbox, udp, way } = logged_in;
        let Some(port) = self.site.port() else { return Ended::Left };
        let number = self.outbox.attach(Instant::now());
        let heard = Rc::new(Heard::default());
        let mut receive = FromHub(port, Rc::clone(&heard));
        let mut by_udp = receive.clone();
        let outbox = Rc::clone(&self.outbox);
        let (result, ended) = tokio::sync::oneshot::channel();
        // A task of its own, so that it can say goodbye when the peer is told to stop.
        self.lane = Some(task::spawn_local(async move {
            let lane = (&*outbox, number);
            let way = stream.get_ref().0.get_ref().way();
            outbox.set_udp(udp.clone());
            let ended = tokio::select! {
                ended = lane::run((stream, way), &mut inbox, lane, rand::random(), &mut receive) => ended,
                never = udp::keep(udp.as_deref(), &outbox) => match never {},
                never = udp::receive(udp.as_deref(), &mut by_udp) => match never {},
            };
            if let Some(udp) = &udp {
                outbox.clear_udp(udp);
            }
            // Nobody waits for it when the peer stops.
            _ = result.send(ended);
        }));
        let mut looks = time::interval(LOOKED);
        let mut names = self.names.clone();
        // The hub has to be told on each lane.
        if let Some(names) = &mut names {
            names.mark_changed();
        }
        tokio::pin!(ended);
        loop {
            let Some(reader) = self.site.reader() else { return Ended::Device };
            tokio::select! {
                ended = &mut ended => return ended.unwrap_or(Ended::Left),
                _ = reader => {
                    if !self.site.forget() {
                        return Ended::Device;
                    }
                }
                () = heard.came.notified() => {
                    if let Some(news) = heard.news.take() {
                        self.site.hear(&self.options, news);
                        self.tell_connected(tell, false);
                    }
                }
                Some(names) = changed(&mut names) => {
                    self.outbox.tell(Message::Names(Names { names }.fit()));
                }
                () = settled(&mut self.moves) => {
                    if has_moved(&mut self.site, way) {
                        self.leave();
                        return Ended::Moved;
                    }
                }
                _ = looks.tick() => self.site.hold(&self.options),
            }
        }
    }

    /// Ends the lane without a word, which would not get there. What is sent meanwhile waits for the next.
    fn leave(&mut self) {
        if let Some(lane) = self.lane.take() {
            lane.abort();
        }
        self.outbox.set_udp(None);
    }

    /// Tells the hub, if it is there.
    async fn say_bye(&mut self) {
        self.outbox.end(ByeReason::Stop);
        if let Some(lane) = self.lane.take() {
            // Who does not hear it within this time, will notice.
            _ = time::timeout(lane::GOODBYE, lane).await;
        }
    }
}

/// Waits until something about this machine's addresses and routes has changed.
async fn settled(moves: &mut Option<Moves>) {
    match moves {
        Some(moves) => moves.settled().await,
        None => std::future::pending().await,
    }
}

/// Whether the hub is reached by another way now.
fn has_moved(site: &mut Site, way: Way) -> bool {
    site.pin(way.to.ip());
    way.is_left(|| site.way(way.to))
}

/// Waits for other names of what is behind this machine; `None`: there will be none.
async fn changed(names: &mut Option<watch::Receiver<Vec<Name>>>) -> Option<Vec<Name>> {
    let names = names.as_mut()?;
    names.changed().await.ok()?;
    Some(names.borrow_and_update().clone())
}

/// What comes from the hub.
#[derive(Clone)]
struct FromHub(Port, Rc<Heard>);

impl Receive for FromHub {
    fn packet(&mut self, record: &Record<'_>, offload: &Offload, packet: &IpPacket<'_>) {
        if !self.0.write(record, offload, packet) {
            tracing::debug!(source = %packet.source, "a packet is not taken");
        }
    }

    fn bad_packet(&mut self) {
        tracing::debug!("a packet that is not what it says");
    }

    fn message(&mut self, message: Message) {
        if let Message::News(news) = message {
            *self.1.news.borrow_mut() = Some(news);
            self.1.came.notify_one();
        }
    }
}

/// The node's key, made if it has none.
fn node_key(state: &Path) -> Result<NodeKey> {
    let file = state.join("node.key");
    match fs::read_to_string(&file) {
        Ok(content) => {
            let seed = text::decode(content.trim()).ok_or_else(|| {
                let wanted = format!("read the node's key in {}", file.display());
                Error::new(Blame::Input, wanted, "it is not base64url of 32 bytes")
                    .next("restore it, or remove it and join anew")
            })?;
            NodeKey::from_seed(seed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = NodeKey::generate()?;
            write_private(&file, &text::encode(key.seed()))?;
            Ok(key)
        }
        Err(error) => Err(Error::io(format!("read {}", file.display()), &error)),
    }
}
