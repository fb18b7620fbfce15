//! What a peer makes on its machine: the device, its routes, the kill switch, names.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use ipnet::IpNet;
use netyard_link::rtnetlink::LinkIndex;
use netyard_wire::{Offload, VNET_HEADER_LEN};
use tokio::task::{self, JoinHandle};

use super::Options;
use crate::addresses::Slot;
use crate::device::{BUDGET, Device};
use crate::dns::{Asked, Resolver};
use crate::error::{Error, Result};
use crate::folder::make_folder;
use crate::frame;
use crate::hosts::Hosts;
use crate::kill_switch::{KillSwitch, Passes};
use crate::lane::Outbox;
use crate::message::{Connected, News};
use crate::routes::{Entry, Routes};
use crate::through::Through;

/// A peer's device on its network.
pub(super) struct Network {
    pub(super) device: Rc<Device>,
    pub(super) connected: Connected,
    /// The subnets behind others that are led to the device; `None`: the kernel could not lead those that it was to.
    led: Option<Vec<IpNet>>,
    /// Ends when the device cannot be read any more.
    pub(super) reader: JoinHandle<()>,
}

impl Network {
    fn entry(&self, redirect: bool) -> Entry<'_> {
        let Connected { network, network6, address, far, address6, .. } = self.connected;
        let slot = Slot { address, far, address6 };
        Entry { device: self.device.name(), network, network6, slot, redirect }
    }

    fn prefixes(&self) -> Vec<IpNet> {
        let Connected { network, network6, .. } = self.connected;
        [Some(network.into()), network6.map(IpNet::V6)].into_iter().flatten().collect()
    }

    /// Takes the device away: another one may have its name then.
    async fn end(mut self) {
        self.reader.abort();
        // It has the device open until it has ended.
        _ = (&mut self.reader).await;
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What helps where a peer with this key runs already.
const IN_USE: &str = "this machine has joined with this key already, perhaps in another network namespace: stop \
    that one, or be another machine of the hub with a folder and a join string of its own: --state FOLDER";

/// A machine with a peer on it.
pub(super) struct Machine {
    routes: Routes,
    kill_switch: KillSwitch,
    hosts: Hosts,
    resolver: Resolver,
    pub(super) network: Option<Network>,
}

impl Machine {
    /// Takes back what a killed peer has left. Its kill switch stays, if there shall be one.
    pub(super) fn open(options: &Options) -> Result<Self> {
        make_folder(&options.runtime)?;
        let failed = |error| match (Error::link("join a hub", &error), error) {
            (told, netyard_link::Error::InUse { .. }) => told.next(IN_USE),
            (told, _) => told,
        };
        let Options { owner, runtime, ledger, .. } = options;
        // First, so that it is never away while the rest is made anew.
        let kill_switch = KillSwitch::open(owner, runtime, ledger).map_err(failed)?;
        let routes = Routes::open(owner, runtime, ledger, options.main_table).map_err(failed)?;
        let (hosts, resolver) = (Hosts::open(owner, runtime)?, Resolver::open(owner)?);
        let mut machine = Self { routes, kill_switch, hosts, resolver, network: None };
        match options.kill_switch {
            // The one of a killed peer lets its mark and device pass, not ours.
            Some(_) if machine.is_shut() => machine.engage(options, None)?,
            Some(_) => {}
            None => machine.kill_switch.lift().map_err(failed)?,
        }
        Ok(machine)
    }

    /// Takes back what a killed peer has left, its kill switch too.
    pub(super) fn undo(options: &Options) -> Result<()> {
        Self::open(&Options { kill_switch: None, ..options.clone() }).map(drop)
    }

    /// What the tunnel's own sockets carry as their mark.
    pub(super) const fn mark(&self) -> u32 {
        self.routes.mark()
    }

    /// Whether the kill switch is there.
    pub(super) fn is_shut(&self) -> bool {
        self.kill_switch.is_engaged()
    }

    fn passes<'a>(&self, options: &'a Options, tunnel: Option<LinkIndex>) -> Option<Passes<'a>> {
        let networks = options.kill_switch.as_deref()?;
        Some(Passes { mark: self.mark(), tunnel, networks, names_inside: options.dns })
    }

    /// Has the kill switch let pass what it must, if there shall be one.
    pub(super) fn engage(&mut self, options: &Options, tunnel: Option<LinkIndex>) -> Result<()> {
        let Some(passes) = self.passes(options, tunnel) else { return Ok(()) };
        let engaged = self.kill_switch.engage(passes);
        engaged.map_err(|error| Error::link("set the kill switch", &error))
    }

    /// Makes again what somebody else has undone.
    pub(super) fn hold(&mut self, options: &Options) {
        let mut held = match &self.network {
            Some(network) => network.device.hold().and_then(|()| self.routes.hold()),
            None => Ok(()),
        };
        let tunnel = self.network.as_ref().map(|network| network.device.index());
        if let Some(passes) = self.passes(options, tunnel) {
            held = self.kill_switch.hold(passes).and(held);
        }
        if let Err(error) = held {
            tracing::warn!(%error, "the routes are not held");
        }
        if let Err(error) = self.resolver.hold() {
            tracing::warn!(%error, "the network's names are not asked");
        }
    }

    /// Keeps the hub outside of the tunnel. Where that fails, connecting may still work.
    pub(super) fn pin(&mut self, hub: IpAddr) {
        let tunnel: Option<LinkIndex> = self.network.as_ref().map(|it| it.device.index());
        if let Err(error) = self.routes.pin(hub, tunnel) {
            tracing::warn!(%hub, %error, "the way to the hub is not kept outside of the tunnel");
        }
    }

    /// Is on the network as the hub says, with the device that is there if that fits.
    pub(super) async fn enter(
        &mut self,
        options: &Options,
        connected: Connected,
        outbox: &Rc<Outbox>,
    ) -> Result<()> {
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
        } else {
            self.make(options, connected, outbox).await?;
        }
        self.ask_names(options);
        self.heed(options);
        Ok(())
    }

    async fn make(
        &mut self,
        options: &Options,
        connected: Connected,
        outbox: &Rc<Outbox>,
    ) -> Result<()> {
        if let Some(former) = self.network.take() {
            former.end().await;
        }
        self.routes.leave().map_err(|error| Error::link("leave the former network", &error))?;
        let Options { tun, offload, redirect, subnets, translate, .. } = options;
        let device = Device::create(tun, *offload, connected.mtu, connected.queue_length)?;
        self.engage(options, Some(device.index()))?;
        let device = Rc::new(device);
        let reader = task::spawn_local(read(Rc::clone(&device), Rc::clone(outbox)));
        let network = Network { device, connected, led: Some(Vec::new()), reader };
        let Connected { network: net, network6, .. } = network.connected;
        let mut entered = self.routes.enter(network.entry(*redirect));
        if entered.is_ok() && !subnets.is_empty() {
            let device = network.device.name();
            let translate = *translate;
            let through = Through { device, network: net, network6, subnets, translate };
            entered = self.routes.let_through(&through);
        }
        entered.map_err(|error| Error::link(format!("route the network {net}"), &error))?;
        self.network = Some(network);
        Ok(())
    }

    /// Has programs ask the hub for names, if they shall and it answers them.
    fn ask_names(&mut self, options: &Options) {
        let Some(network) = self.network.as_ref().filter(|_| options.dns) else { return };
        let connected = &network.connected;
        let Some(dns) = &connected.dns else {
            return tracing::warn!("the hub does not answer questions about names");
        };
        let asked = Asked {
            zone: dns.zone.clone(),
            networks: network.prefixes(),
            hub: connected.hub,
            everything: dns.everything && options.redirect,
            device: network.device.index(),
        };
        if self.resolver.asked() == Some(&asked) {
            return;
        }
        if let Err(error) = self.resolver.ask(asked, network.device.name()) {
            tracing::warn!(%error, "the network's names are not asked");
        }
    }

    /// Which zone's names programs ask the hub for.
    pub(super) fn zone(&self) -> Option<&str> {
        self.resolver.asked().map(|asked| asked.zone.as_str())
    }

    /// Whether there is a lane to the hub.
    pub(super) fn set_connected(&self, connected: bool) {
        self.resolver.set_here(connected);
    }

    /// Heeds what the hub says of other peers.
    pub(super) fn hear(&mut self, options: &Options, news: News) {
        if let Some(network) = &mut self.network {
            network.connected.news = news;
            self.heed(options);
        }
    }

    /// Heeds what the hub has said last: writes the names of other peers, and leads what is behind them to the
    /// device.
    fn heed(&mut self, options: &Options) {
        let Some(network) = &mut self.network else { return };
        let news = &network.connected.news;
        if let Some(file) = &options.hosts
            && let Err(error) = self.hosts.write(file, &news.names, &network.prefixes())
        {
            tracing::warn!(%error, "the names of other peers are not known");
        }
        if !options.accept_subnets || network.led.as_ref() == Some(&news.subnets) {
            return;
        }
        // Not everything: that is asked for here, not there.
        let subnets: Vec<_> =
            (news.subnets.iter().copied()).filter(|subnet| subnet.prefix_len() > 0).collect();
        let led = self.routes.lead_to(network.entry(options.redirect), &subnets);
        if let Err(error) = &led {
            tracing::warn!(%error, "what is behind other peers is not led there");
        }
        network.led = matches!(led, Ok(true)).then(|| network.connected.news.subnets.clone());
    }

    /// Undoes everything. The kill switch goes last, and only if the peer was told to stop: if it could not
    /// go on, it stays.
    pub(super) fn close(&mut self, result: Result<()>) -> Result<()> {
        let failed = |error| Error::link("undo the peer's routes", &error);
        let names = self.resolver.clear().and(self.hosts.clear());
        let undone = names.and(self.routes.undo().map_err(failed));
        self.network = None;
        if result.is_ok() {
            return undone.and(self.kill_switch.lift().map_err(failed));
        }
        if !self.is_shut() {
            return result.and(undone);
        }
        let step = "the kill switch stays: join again, or lift it with --undo";
        result.map_err(|error| match error.next.clone() {
            Some(first) => error.next(format!("{first}; {step}")),
            None => error.next(step),
        })
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
