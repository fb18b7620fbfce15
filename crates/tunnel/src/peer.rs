//! A peer: logs in to its hub, brings the network to this machine, and comes back when the lane breaks.
//!
//! The device, its address and its routes stay while there is no lane, so programs see silence and not
//! errors, and what they send meanwhile waits for two seconds.

mod machine;

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netyard_wire::Offload;
use netyard_wire::ip::IpPacket;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::{self, JoinHandle, LocalSet};
use tokio::time;
use tokio_rustls::rustls::ClientConfig;

use self::machine::{Machine, Network};
use crate::clock::now_ms;
use crate::device::Device;
use crate::dial;
use crate::error::{Blame, Error, Result};
use crate::folder::{make_folder, write_private};
use crate::frame::Record;
use crate::identity::NodeKey;
use crate::join::Join;
use crate::lane::{self, Ended, Inbox, Outbox, Receive};
use crate::login::{self, Failure, PeerStream, Wishes};
use crate::message::{ByUdp, ByeReason, Connected, Message, News};
use crate::pool::Pool;
use crate::proxy::{Proxy, ProxyError};
use crate::udp::{self, UdpLane};
use crate::{text, tls};

/// The first pause before another attempt, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long one address of the hub may take to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

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
    /// The peer by which it leaves the network; `None`: the hub.
    pub exit: Option<String>,
    /// Whether what is behind other peers is led to the tunnel.
    pub accept_subnets: bool,
    /// Whether programs of this machine ask the hub for the network's names, and for all names if everything goes
    /// through it and it knows them.
    pub dns: bool,
    /// The hosts file that shall have the names of the network's machines.
    pub hosts: Option<PathBuf>,
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.map_err(failed)?, async move {
        let mut stop = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut peer = Peer::new(options)?;
        let result = tokio::select! {
            error = peer.serve(&ready) => Err(error),
            _ = stop.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        peer.say_bye().await;
        peer.machine.close(result)
    })
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

/// A lane, and its UDP.
type LoggedIn = (PeerStream, Inbox, Connected, Option<Rc<UdpLane>>);

struct Peer {
    options: Options,
    machine: Machine,
    key: NodeKey,
    config: Arc<ClientConfig>,
    outbox: Rc<Outbox>,
    lane: Option<JoinHandle<()>>,
}

impl Peer {
    fn new(options: Options) -> Result<Self> {
        make_folder(&options.state)?;
        let machine = Machine::open(&options)?;
        let key = node_key(&options.state)?;
        let config = Arc::new(tls::peer(options.join.pin)?);
        let pool = Rc::new(RefCell::new(Pool::default()));
        let outbox = Rc::new(Outbox::new(pool, rand::random()));
        Ok(Self { options, machine, key, config, outbox, lane: None })
    }

    /// Logs in, again and again; the error that no other attempt can help.
    async fn serve(&mut self, ready: &impl Fn(&Joined)) -> Error {
        let mut pause = FIRST_PAUSE;
        loop {
            self.machine.hold(&self.options);
            match self.log_in().await {
                Ok((stream, inbox, connected, udp)) => {
                    pause = FIRST_PAUSE;
                    let entered = self.machine.enter(&self.options, connected, &self.outbox);
                    if let Err(error) = entered {
                        return error;
                    }
                    if let Some(network) = &self.machine.network {
                        ready(&self.joined(network));
                    }
                    self.machine.set_connected(true);
                    let ended = self.carry(stream, inbox, udp).await;
                    self.machine.set_connected(false);
                    if let Ended::Bye(ByeReason::Replaced) = ended {
                        return self.refused("the same node has logged in from elsewhere").next(
                            "two machines must not share a node's key: join with a string of its own",
                        );
                    }
                    tracing::warn!(%ended, "the lane to the hub has ended");
                }
                Err(Failure::Rejected(reject)) if !reject.code.is_passing() => {
                    return self.refused(&reject.message);
                }
                Err(Failure::Local(error)) => return *error,
                Err(failure @ (Failure::Stranger | Failure::Proxy(ProxyError::Credentials)))
                    if self.machine.network.is_none() =>
                {
                    return self.refused(&failure.to_string());
                }
                Err(failure) => {
                    tracing::warn!(hub = %self.options.join.hub, %failure, "the hub is not reached");
                }
            }
            // Full jitter, so that the peers of a hub that comes back do not come together.
            time::sleep(pause.mul_f64(rand::random())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn refused(&self, found: &str) -> Error {
        Error::new(Blame::Peer, format!("join the hub {}", self.options.join.hub), found)
    }

    fn joined(&self, network: &Network) -> Joined {
        let connected = &network.connected;
        Joined {
            name: connected.name.clone(),
            hub: self.options.join.hub.to_string(),
            device: network.device.name().to_owned(),
            connected: ConnectedAs {
                network: connected.network,
                address: connected.address,
                address6: connected.address6,
                hub_address: connected.hub,
                mtu: connected.mtu,
                zone: self.machine.zone().map(str::to_owned),
            },
        }
    }

    async fn log_in(&mut self) -> Result<LoggedIn, Failure> {
        // Behind a proxy the hub's name is the proxy's to look up.
        let proxy = self.options.proxy.clone();
        let first = proxy.as_ref().map_or(&self.options.join.hub, Proxy::endpoint);
        let mut last = Failure::TimedOut;
        let addresses = dial::find(first, &self.options.state).await?;
        if !self.machine.is_shut() {
            // Not before the hub's name is known: its resolver is outside.
            let engaged = self.machine.engage(&self.options, None);
            engaged.map_err(|error| Failure::Local(Box::new(error)))?;
        }
        for address in addresses {
            self.machine.pin(address.ip());
            let connecting =
                time::timeout(CONNECT_LIMIT, dial::connect(address, self.machine.mark()));
            let mut socket = match connecting.await {
                Ok(Ok(socket)) => socket,
                Ok(Err(error)) => {
                    last = error.into();
                    continue;
                }
                Err(_) => continue,
            };
            lane::tune(&socket);
            let (config, join) = (Arc::clone(&self.config), &self.options.join);
            let clock_ms = now_ms().cast_unsigned();
            let Options { name, subnets, exit, hosts, .. } = &self.options;
            let names = hosts.is_some();
            let exit = exit.as_deref();
            // A proxy carries no UDP.
            let by_udp = if proxy.is_some() { ByUdp::Nothing } else { self.options.by_udp };
            let wishes = Wishes { name, subnets, exit, names, by_udp, clock_ms };
            let login = async {
                if let Some(proxy) = &proxy {
                    proxy.connect(&mut socket, &join.hub).await?.map_err(Failure::Proxy)?;
                }
                login::connect(config, socket, join, &self.key, &wishes).await
            };
            let logged_in = time::timeout(login::LIMIT, login).await;
            let (stream, inbox, connected) = logged_in.unwrap_or(Err(Failure::TimedOut))?;
            let mark = self.machine.mark();
            let udp = udp::at_peer(&stream, &connected, by_udp, address, mark);
            return Ok((stream, inbox, connected, udp));
        }
        Err(last)
    }

    /// A lane, until it ends.
    async fn carry(
        &mut self,
        stream: PeerStream,
        mut inbox: Inbox,
        udp: Option<Rc<UdpLane>>,
    ) -> Ended {
        let Some(network) = &self.machine.network else { return Ended::Left };
        let number = self.outbox.attach(Instant::now());
        let heard = Rc::new(Heard::default());
        let mut receive = FromHub(Rc::clone(&network.device), Rc::clone(&heard));
        let mut by_udp = receive.clone();
        let outbox = Rc::clone(&self.outbox);
        let (result, ended) = tokio::sync::oneshot::channel();
        // A task of its own, so that it can say goodbye when the peer is told to stop.
        self.lane = Some(task::spawn_local(async move {
            let lane = (&*outbox, number);
            outbox.set_udp(udp.clone());
            let ended = tokio::select! {
                ended = lane::run(stream, &mut inbox, lane, rand::random(), &mut receive) => ended,
                never = udp::keep(udp.as_deref()) => match never {},
                never = udp::receive(udp.as_deref(), &mut by_udp) => match never {},
            };
            if let Some(udp) = &udp {
                outbox.clear_udp(udp);
            }
            // Nobody waits for it when the peer stops.
            _ = result.send(ended);
        }));
        let mut looks = time::interval(LOOKED);
        tokio::pin!(ended);
        loop {
            let Some(network) = &mut self.machine.network else { return Ended::Device };
            tokio::select! {
                ended = &mut ended => return ended.unwrap_or(Ended::Left),
                _ = &mut network.reader => self.machine.network = None,
                () = heard.came.notified() => {
                    if let Some(news) = heard.news.take() {
                        self.machine.hear(&self.options, news);
                    }
                }
                _ = looks.tick() => self.machine.hold(&self.options),
            }
        }
    }

    /// Tells the hub, if it is there.
    async fn say_bye(&mut self) {
        self.outbox.end(ByeReason::Stop);
        if let Some(lane) = self.lane.take() {
            // Who does not hear it within this time, will notice.
            _ = time::timeout(Duration::from_millis(500), lane).await;
        }
    }
}

/// What comes from the hub.
#[derive(Clone)]
struct FromHub(Rc<Device>, Rc<Heard>);

impl Receive for FromHub {
    fn packet(&mut self, record: &Record<'_>, _: &Offload, packet: &IpPacket<'_>) {
        if !self.0.write(record) {
            tracing::debug!(source = %packet.source, "the kernel does not take a packet");
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
