//! A peer: logs in to its hub, brings the network to this machine, and comes back when the lane breaks.
//!
//! The device, its address and its routes stay while there is no lane, so programs see silence and not
//! errors, and what they send meanwhile waits for two seconds.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netyard_link::rtnetlink::LinkIndex;
use netyard_wire::ip::IpPacket;
use netyard_wire::{Offload, VNET_HEADER_LEN};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::{self, JoinHandle, LocalSet};
use tokio::time;
use tokio_rustls::rustls::ClientConfig;

use crate::addresses::Slot;
use crate::clock::now_ms;
use crate::device::{BUDGET, Device};
use crate::dial;
use crate::error::{Blame, Error, Result};
use crate::folder::{make_folder, write_private};
use crate::frame::{self, Record};
use crate::hosts::Hosts;
use crate::identity::NodeKey;
use crate::join::Join;
use crate::kill_switch::{KillSwitch, Passes};
use crate::lane::{self, Ended, Inbox, Outbox, Receive};
use crate::login::{self, Failure, PeerStream, Wishes};
use crate::message::{ByUdp, ByeReason, Connected, Message, News};
use crate::pool::Pool;
use crate::proxy::{Proxy, ProxyError};
use crate::routes::{Entry, Routes};
use crate::through::Through;
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
        make_folder(&options.runtime)?;
        let mut peer = Peer::new(options)?;
        let result = tokio::select! {
            error = peer.serve(&ready) => Err(error),
            _ = stop.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        peer.say_bye().await;
        peer.close(result)
    })
}

/// Undoes what a killed peer has left on this machine, its kill switch too.
///
/// # Errors
/// It cannot be undone, or the peer lives.
pub fn undo(options: &Options) -> Result<()> {
    let failed = |error| Error::link("undo what a peer has left", &error);
    let Options { owner, runtime, ledger, .. } = options;
    make_folder(runtime)?;
    Hosts::open(owner, runtime)?;
    Routes::open(owner, runtime, ledger, options.main_table).map_err(failed)?;
    KillSwitch::open(owner, runtime, ledger).and_then(|mut it| it.lift()).map_err(failed)
}

/// A peer's device on its network.
struct Network {
    device: Rc<Device>,
    connected: Connected,
    /// The subnets behind others that are led to the device.
    led: Vec<IpNet>,
    reader: JoinHandle<()>,
}

impl Network {
    fn entry(&self, redirect: bool) -> Entry<'_> {
        let Connected { network, network6, address, far, address6, .. } = self.connected;
        let slot = Slot { address, far, address6 };
        Entry { device: self.device.name(), network, network6, slot, redirect }
    }
}

/// What the hub says of other peers while a lane is there.
#[derive(Debug, Default)]
struct Heard {
    news: RefCell<Option<News>>,
    came: Notify,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A lane, and its UDP.
type LoggedIn = (PeerStream, Inbox, Connected, Option<Rc<UdpLane>>);

struct Peer {
    options: Options,
    routes: Routes,
    kill_switch: KillSwitch,
    hosts: Hosts,
    key: NodeKey,
    config: Arc<ClientConfig>,
    outbox: Rc<Outbox>,
    network: Option<Network>,
    lane: Option<JoinHandle<()>>,
}

impl Peer {
    fn new(options: Options) -> Result<Self> {
        make_folder(&options.runtime)?;
        make_folder(&options.state)?;
        let failed = |error| Error::link("join a hub", &error);
        let Options { owner, runtime, ledger, .. } = &options;
        // First, so that it is never away while the rest is made anew.
        let kill_switch = KillSwitch::open(owner, runtime, ledger).map_err(failed)?;
        let routes = Routes::open(owner, runtime, ledger, options.main_table).map_err(failed)?;
        let hosts = Hosts::open(owner, runtime)?;
        let key = node_key(&options.state)?;
        let config = Arc::new(tls::peer(options.join.pin)?);
        let pool = Rc::new(RefCell::new(Pool::default()));
        let outbox = Rc::new(Outbox::new(pool, rand::random()));
        let mut peer = Self {
            options,
            routes,
            kill_switch,
            hosts,
            key,
            config,
            outbox,
            network: None,
            lane: None,
        };
        match peer.options.kill_switch {
            // The one of a killed peer lets its mark and device pass, not ours.
            Some(_) if peer.kill_switch.is_engaged() => peer.engage(None)?,
            Some(_) => {}
            None => peer.kill_switch.lift().map_err(failed)?,
        }
        Ok(peer)
    }

    /// Has the kill switch let pass what it must, if there shall be one.
    fn engage(&mut self, tunnel: Option<LinkIndex>) -> Result<()> {
        let Some(networks) = &self.options.kill_switch else { return Ok(()) };
        let passes = Passes { mark: self.routes.mark(), tunnel, networks };
        let engaged = self.kill_switch.engage(passes);
        engaged.map_err(|error| Error::link("set the kill switch", &error))
    }

    /// Makes again what somebody else has undone.
    fn hold(&mut self) {
        let mut held = match self.network {
            Some(_) => self.routes.hold(),
            None => Ok(()),
        };
        if let Some(networks) = &self.options.kill_switch {
            let tunnel = self.network.as_ref().map(|network| network.device.index());
            let passes = Passes { mark: self.routes.mark(), tunnel, networks };
            held = self.kill_switch.hold(passes).and(held);
        }
        if let Err(error) = held {
            tracing::warn!(%error, "the routes are not held");
        }
    }

    /// Undoes everything. The kill switch goes last, and only if the peer was told to stop: if it could not
    /// go on, it stays.
    fn close(&mut self, result: Result<()>) -> Result<()> {
        let failed = |error| Error::link("undo the peer's routes", &error);
        let undone = self.hosts.clear().and(self.routes.undo().map_err(failed));
        self.network = None;
        if result.is_ok() {
            return undone.and(self.kill_switch.lift().map_err(failed));
        }
        if !self.kill_switch.is_engaged() {
            return result.and(undone);
        }
        let step = "the kill switch stays: join again, or lift it with --undo";
        result.map_err(|error| match error.next.clone() {
            Some(first) => error.next(format!("{first}; {step}")),
            None => error.next(step),
        })
    }

    /// Logs in, again and again; the error that no other attempt can help.
    async fn serve(&mut self, ready: &impl Fn(&Joined)) -> Error {
        let mut pause = FIRST_PAUSE;
        loop {
            self.hold();
            match self.log_in().await {
                Ok((stream, inbox, connected, udp)) => {
                    pause = FIRST_PAUSE;
                    if let Err(error) = self.enter(connected) {
                        return error;
                    }
                    if let Some(network) = &self.network {
                        ready(&self.joined(network));
                    }
                    let ended = self.carry(stream, inbox, udp).await;
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
                    if self.network.is_none() =>
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
            },
        }
    }

    async fn log_in(&mut self) -> Result<LoggedIn, Failure> {
        // Behind a proxy the hub's name is the proxy's to look up.
        let proxy = self.options.proxy.clone();
        let first = proxy.as_ref().map_or(&self.options.join.hub, Proxy::endpoint);
        let mut last = Failure::TimedOut;
        let addresses = dial::find(first, &self.options.state).await?;
        if !self.kill_switch.is_engaged() {
            // Not before the hub's name is known: its resolver is outside.
            self.engage(None).map_err(|error| Failure::Local(Box::new(error)))?;
        }
        for address in addresses {
            self.pin(address.ip());
            let connecting =
                time::timeout(CONNECT_LIMIT, dial::connect(address, self.routes.mark()));
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
            let mark = self.routes.mark();
            let udp = udp::at_peer(&stream, &connected, by_udp, address, mark);
            return Ok((stream, inbox, connected, udp));
        }
        Err(last)
    }

    /// Keeps the hub outside of the tunnel. Where that fails, connecting may still work.
    fn pin(&mut self, hub: IpAddr) {
        let tunnel: Option<LinkIndex> = self.network.as_ref().map(|it| it.device.index());
        if let Err(error) = self.routes.pin(hub, tunnel) {
            tracing::warn!(%hub, %error, "the way to the hub is not kept outside of the tunnel");
        }
    }

    /// Is on the network as the hub says, with the device that is there if that fits.
    fn enter(&mut self, connected: Connected) -> Result<()> {
        let fits = |network: &Network| {
            let known = &network.connected;
            (known.network, known.address, known.far)
                == (connected.network, connected.address, connected.far)
                && (known.network6, known.address6) == (connected.network6, connected.address6)
                && (known.mtu, known.queue_length) == (connected.mtu, connected.queue_length)
        };
        if let Some(network) = &mut self.network
            && fits(network)
        {
            network.connected = connected;
            self.heed();
            return Ok(());
        }
        self.network = None;
        self.routes.leave().map_err(|error| Error::link("leave the former network", &error))?;
        let Options { tun, offload, redirect, .. } = &self.options;
        let redirect = *redirect;
        let device = Device::create(tun, *offload, connected.mtu, connected.queue_length)?;
        self.engage(Some(device.index()))?;
        let device = Rc::new(device);
        let reader = task::spawn_local(read(Rc::clone(&device), Rc::clone(&self.outbox)));
        let network = Network { device, connected, led: Vec::new(), reader };
        let Connected { network: net, network6, .. } = network.connected;
        let mut entered = self.routes.enter(network.entry(redirect));
        let Options { subnets, .. } = &self.options;
        if entered.is_ok() && !subnets.is_empty() {
            let device = network.device.name();
            entered = self.routes.let_through(&Through { device, network: net, network6, subnets });
        }
        entered.map_err(|error| Error::link(format!("route the network {net}"), &error))?;
        self.network = Some(network);
        self.heed();
        Ok(())
    }

    /// Heeds what the hub has said last: writes the names of other peers, and leads what is behind them to the
    /// device.
    fn heed(&mut self) {
        let Some(network) = &mut self.network else { return };
        let Connected { network: net, network6, news, .. } = &network.connected;
        if let Some(file) = &self.options.hosts {
            let six = network6.map(IpNet::V6);
            let networks: Vec<_> = [Some(IpNet::V4(*net)), six].into_iter().flatten().collect();
            if let Err(error) = self.hosts.write(file, &news.names, &networks) {
                tracing::warn!(%error, "the names of other peers are not known");
            }
        }
        if !self.options.accept_subnets || network.led == news.subnets {
            return;
        }
        // Not everything: that is asked for here, not there.
        let subnets: Vec<_> =
            (news.subnets.iter().copied()).filter(|subnet| subnet.prefix_len() > 0).collect();
        match self.routes.lead_to(network.entry(self.options.redirect), &subnets) {
            Ok(()) => network.led.clone_from(&network.connected.news.subnets),
            Err(error) => tracing::warn!(%error, "what is behind other peers is not led there"),
        }
    }

    /// A lane, until it ends.
    async fn carry(
        &mut self,
        stream: PeerStream,
        mut inbox: Inbox,
        udp: Option<Rc<UdpLane>>,
    ) -> Ended {
        let Some(network) = &mut self.network else { return Ended::Left };
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
            let Some(network) = &mut self.network else { return Ended::Device };
            tokio::select! {
                ended = &mut ended => return ended.unwrap_or(Ended::Left),
                _ = &mut network.reader => self.network = None,
                () = heard.came.notified() => {
                    if let Some(news) = heard.news.take() {
                        network.connected.news = news;
                        self.heed();
                    }
                }
                _ = looks.tick() => self.hold(),
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

/// Queues what this machine sends.
async fn read(device: Rc<Device>, outbox: Rc<Outbox>) {
    let mut scratch = vec![0; frame::MAX_PACKET_LEN];
    let mut queue = |bytes: &[u8]| {
        if let Some((header, bytes)) = bytes.split_first_chunk::<VNET_HEADER_LEN>()
            && let Ok((offload, packet)) = Offload::parse_packet(header, bytes)
            // What the kernel tells its neighbours: there are none.
            && !packet.destination.is_multicast()
        {
            outbox.push(Instant::now(), (header, bytes), (&offload, &packet));
        }
    };
    loop {
        if let Err(error) = device.read(&mut scratch, BUDGET, &mut queue).await {
            return tracing::error!(%error, device = device.name(), "the TUN device cannot be read");
        }
        task::yield_now().await;
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
