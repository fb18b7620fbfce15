//! A segment that is there, and what is plugged into it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipnet::IpNet;
use netyard_engine::config::{Config, Mode};
use netyard_engine::control::{
    ControlError, ControlErrorKind, PlugKind, PlugRequest, Plugged, Traffic,
};
use netyard_engine::edge::PlugId;
use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::{
    Flows, KernelForward, KernelService, PlugTraffic, Refusals, Segment, ServiceTraffic, Tracked,
};
use netyard_link::conntrack::{Conntrack, Entry, Filter};
use netyard_link::netns::Netns;
use netyard_link::nft::{self, Batch, Element, Event, Set, Value};
use netyard_link::plan::{Device, Host, Layer, Owner, Pair, Peer, Place, Plan, Step};
use netyard_link::rtnetlink::{Change, Link, LinkChange, LinkName, PortOptions, Watch};
use netyard_link::sysctl::Key;
use netyard_link::{BridgeFilter, Result};
use netyard_sys::tap;

use super::counters;
use super::everywhere::Everywhere;
use super::foreign;
use super::forwards::Forwards;
use super::guard::{Guard, Sender};
use super::rules::{self, Facts, Rules, TCP, UDP};
use super::segment::Wanted;
use super::turns::{self, Turns, forget};
use super::{failed, names, refused};

/// The plan of the bridge and the tables.
const SEGMENT: &str = "segment";

/// An instance's end of its link, if it has no name.
const FIRST: &str = "eth0";

/// What there is in the kernel of one network.
pub(super) struct Opened {
    host: Host,
    owner: Owner,
    network: String,
    /// The comment of our tables.
    tag: String,
    bridge: LinkName,
    /// The card that is a port of it.
    card: Option<LinkName>,
    mtu: u16,
    /// The host has IPv6.
    ipv6: bool,
    rules: Rules,
    /// `None`: this kernel has no rules for frames.
    guard: Option<Guard>,
    /// Who may change rules besides us? Nobody, if the kernel can own tables.
    owned: bool,
    tracked: Conntrack,
    links: Watch,
    ruleset: nft::Watch,
    plugs: BTreeMap<PlugId, Plug>,
    /// Which of them has a link.
    by_link: BTreeMap<LinkName, PlugId>,
    forwards: Forwards,
    turns: Turns,
    others: BTreeSet<LinkName>,
    tunnels: BTreeSet<LinkName>,
}

/// Whose tables have been changed.
#[derive(Debug, Default)]
struct Changed {
    /// This network's, by somebody else.
    ours: bool,
    /// Those of other networks.
    others: bool,
}

/// What has to be looked after.
#[derive(Debug, Default)]
struct Touched {
    /// The bridge and its addresses.
    segment: bool,
    /// Plugs whose links have gone.
    gone: BTreeSet<PlugId>,
    /// Plugs whose links are not as they were made, or are to be made again.
    plugs: BTreeSet<PlugId>,
}

#[derive(Debug)]
struct Plug {
    plan: String,
    sender: Sender,
    /// Its link is there for others to open: whoever deletes it does not take the plug out.
    comes_back: bool,
}

impl Plug {
    fn addresses(&self) -> [IpAddr; 2] {
        let Plugged { address4, address6, .. } = &self.sender.plugged;
        [(*address4).into(), (*address6).into()]
    }
}

impl Opened {
    /// Makes the segment; takes back what was made if that fails.
    pub(super) fn make(
        config: &Config,
        owner: &Owner,
        mut host: Host,
    ) -> Result<(Self, Segment), ControlError> {
        let error = |error| failed(&error);
        let wanted = Wanted::look(config, owner, host.kernel())?;
        let rules = Rules::new(
            &config.name,
            Facts {
                bridge: wanted.bridge.clone(),
                alone: wanted.joined.is_none() && wanted.card.is_none(),
                subnet4: config.subnet4,
                subnet6: config.subnet6,
                gateway4: config.gateway4(),
                gateway6: config.gateway6(),
                alias: [config.host4().into(), config.host6().into()],
                uplink: config.uplink.clone(),
                isolate: matches!(&config.mode, Mode::Bridge(bridge) if bridge.isolate),
                host: config.host.clone(),
            },
        );
        let features = *host.kernel().features();
        let guard = Guard::new(&config.name, wanted.mac.link_local());
        let guard = features.nftables_bridge.then_some(guard);
        // From before the first change, so that none is missed.
        let links = Watch::open(None).map_err(error)?;
        let ruleset = nft::Watch::open(None).map_err(error)?;
        let tracked = Conntrack::open().map_err(error)?;
        // The rules come first: the bridge is never without them.
        let mut plan = Plan::new(SEGMENT).map_err(error)?;
        plan = plan.step(Step::Table { table: rules.table.clone(), content: rules.content() });
        if let Some(guard) = &guard {
            plan = plan.step(Step::Table { table: guard.table.clone(), content: guard.content() });
        }
        host.apply(&wanted.steps(config, plan)?).map_err(error)?;
        let mut opened = Self {
            host,
            owner: owner.clone(),
            network: config.name.clone(),
            tag: owner.tag(SEGMENT),
            bridge: wanted.bridge.clone(),
            card: wanted.card.as_ref().and_then(|card| card.name.parse().ok()),
            mtu: wanted.mtu,
            ipv6: wanted.ipv6,
            rules,
            guard,
            owned: features.table_owner,
            tracked,
            links,
            ruleset,
            plugs: BTreeMap::new(),
            by_link: BTreeMap::new(),
            forwards: Forwards::default(),
            turns: Turns::of(owner),
            others: BTreeSet::new(),
            tunnels: BTreeSet::new(),
        };
        match opened.describe(&wanted) {
            Ok(segment) => Ok((opened, segment)),
            Err(cause) => {
                // What cannot be taken back is in the journal.
                let _ = opened.undo();
                Err(failed(&cause))
            }
        }
    }

    fn describe(&mut self, wanted: &Wanted) -> Result<Segment> {
        self.note_others()?;
        let kernel = self.host.kernel();
        let link = kernel.here()?.index(self.bridge.as_str())?;
        let chains = kernel.nftables()?.all_chains()?;
        let table = self.rules.table.name();
        let filter = BridgeFilter::current()?;
        let mut warnings = foreign::warnings(&chains, table, &self.bridge, filter);
        if self.guard.is_none() {
            warnings.push(
                "instances can send with each other's addresses: this kernel has no rules for \
                 frames (CONFIG_NF_TABLES_BRIDGE)"
                    .into(),
            );
        }
        if !self.ipv6 {
            warnings
                .push("instances reach nothing by IPv6: it is switched off on this host".into());
        }
        Ok(Segment {
            interface: self.bridge.to_string(),
            index: link.0,
            mac: wanted.mac,
            mtu: wanted.mtu,
            joined: wanted.joined.is_some(),
            warnings,
        })
    }

    /// Takes everything back.
    pub(super) fn undo(mut self) -> Result<()> {
        let forwards = self.forwards.none();
        let everywhere = self.everywhere(forwards.is_everywhere());
        let undone = self.host.recover();
        // Without rules nobody can open another one.
        let forwards = everywhere.and_then(|it| forwards.forget(&it, &mut self.tracked));
        let is_inside = |address| self.rules.is_of_segment(address);
        let services = self.turns.forget_all(is_inside, &mut self.tracked);
        if let Err(error) = forwards.and(services) {
            tracing::warn!(%error, "connections of forwards and services may go on");
        }
        undone
    }

    fn commit(&mut self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.host.kernel().nftables()?.commit(batch)
    }

    pub(super) fn add_plug(
        &mut self,
        plugged: &Plugged,
        request: &PlugRequest,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), ControlError> {
        let error = |error| failed(&error);
        match (request.kind, descriptor) {
            (PlugKind::Namespace, Some(descriptor)) => {
                let link = self.name_of(request)?;
                let netns = Netns::from_descriptor(descriptor).map_err(error)?;
                let guest = request.guest_interface.as_deref().unwrap_or(FIRST);
                let step = Step::Pair(Pair {
                    name: link.clone(),
                    mac: None,
                    mtu: Some(self.mtu.into()),
                    bridge: Some(self.bridge.clone()),
                    port: self.port(),
                    peer: Peer {
                        at: Place::inside(guest.parse().map_err(error)?, &netns),
                        mac: Some(plugged.mac),
                    },
                });
                self.plug(plugged, &request.name, link, [step])
            }
            (PlugKind::Tap, Some(descriptor)) => {
                let name = tap::Device::from(descriptor).name().map_err(|error| {
                    let message = format!("plug {} in: {error}", request.name);
                    refused(ControlErrorKind::Failed, message)
                })?;
                let link: LinkName = name.parse().map_err(error)?;
                let steps = [
                    Step::Join {
                        link: link.clone(),
                        bridge: self.bridge.clone(),
                        port: self.port(),
                    },
                    Step::Up { at: Place::here(link.clone()) },
                ];
                self.dress(&link, plugged, &request.name).map_err(error)?;
                self.plug(plugged, &request.name, link, steps)
            }
            (PlugKind::Device { owner }, None) => {
                let link = self.name_of(request)?;
                let step = Step::Device(Device {
                    name: link.clone(),
                    layer: Layer::Frames,
                    headers: true,
                    // A TAP that is nobody's can be opened by everybody.
                    user: Some(owner),
                    mtu: Some(self.mtu.into()),
                    bridge: Some(self.bridge.clone()),
                    port: self.port(),
                });
                self.plug(plugged, &request.name, link, [step])
            }
            _ => Err(refused(
                ControlErrorKind::Failed,
                "a network in bridge mode has no sockets for frames: bring a TAP device or a namespace",
            )),
        }
    }

    /// The wanted name of a link, or one that tells whose it is.
    fn name_of(&self, request: &PlugRequest) -> Result<LinkName, ControlError> {
        match &request.interface {
            Some(name) => name.parse().map_err(|error| failed(&error)),
            None => names::host_end(&self.network, &request.name),
        }
    }

    /// What the bridge does with plugs. Hairpins need rules that keep them from echoing.
    fn port(&self) -> PortOptions {
        PortOptions { hairpin: Some(self.guard.is_some()), ..PortOptions::default() }
    }

    /// A device that others have made gets the segment's MTU and a name for people, and no address:
    /// it is a port. It has no mark of ours: it is held by whoever made it, and goes with them.
    fn dress(&mut self, link: &LinkName, plugged: &Plugged, instance: &str) -> Result<()> {
        // As for plugs of our own: without it a port is as good, only slower to switch on.
        let key = Key::try_from(format!("net/ipv6/conf/{link}/disable_ipv6"));
        if let Err(error) = key.and_then(|key| key.set(None, "1")) {
            tracing::debug!(%error, "the port speaks IPv6");
        }
        let kernel = self.host.kernel().here()?;
        let index = kernel.index(link.as_str())?;
        // The name of its plan as in marks, behind what is none.
        let alias = format!("netyard {}/plug {} {instance}", self.network, plugged.plug.0);
        let change = LinkChange::new().mtu(self.mtu.into()).link_local(false).alias(&alias);
        kernel.change_link(index, &change)
    }

    fn plug(
        &mut self,
        plugged: &Plugged,
        instance: &str,
        link: LinkName,
        steps: impl IntoIterator<Item = Step>,
    ) -> Result<(), ControlError> {
        if self.by_link.contains_key(&link) {
            let message = format!("the link {link} is plugged in already: choose another name");
            return Err(refused(ControlErrorKind::Taken, message));
        }
        let plan = Plan::new(&format!("plug {} {instance}", plugged.plug.0));
        let plan = steps.into_iter().fold(plan.map_err(|error| failed(&error))?, Plan::step);
        let plug = Plug {
            plan: plan.name().to_owned(),
            comes_back: plan.steps().iter().any(|step| matches!(step, Step::Device(_))),
            sender: Sender { link, plugged: plugged.clone() },
        };
        // Watched before it can send.
        let mut batch = Batch::new();
        self.admit(&plug, &mut batch);
        self.commit(&batch).map_err(|error| failed(&error))?;
        let made = self.host.apply(&plan);
        if made.is_err() {
            self.dismiss(&[plug]);
        } else {
            self.by_link.insert(plug.sender.link.clone(), plugged.plug);
            self.plugs.insert(plugged.plug, plug);
        }
        made.map_err(|error| failed(&error))
    }

    /// Lets a plug send with its own addresses.
    fn admit(&self, plug: &Plug, batch: &mut Batch) {
        if let Some(guard) = &self.guard {
            guard.add(&plug.sender, batch);
        }
        for (set, element) in self.guest(plug) {
            batch.add_elements(set, [element]);
        }
    }

    fn dismiss(&mut self, plugs: &[Plug]) {
        let mut batch = Batch::new();
        for plug in plugs {
            for (set, element) in self.guest(plug) {
                batch.remove_elements(set, [element]);
            }
            if let Some(guard) = &self.guard {
                guard.remove(&plug.sender, &mut batch);
            }
        }
        if let Err(error) = self.commit(&batch) {
            tracing::warn!(%error, "rules of plugs are left");
        }
    }

    fn guest(&self, plug: &Plug) -> [(&Set, Element); 2] {
        let Plugged { address4, address6, .. } = &plug.sender.plugged;
        [
            (&self.rules.guests.v4, Element::new(Value::from(*address4))),
            (&self.rules.guests.v6, Element::new(Value::from(*address6))),
        ]
    }

    pub(super) fn remove_plugs(&mut self, plugs: &[PlugId]) {
        let plugs: Vec<Plug> = plugs.iter().filter_map(|plug| self.plugs.remove(plug)).collect();
        for plug in &plugs {
            self.by_link.remove(&plug.sender.link);
        }
        if let Err(error) = self.host.undo_all(plugs.iter().map(|plug| plug.plan.as_str())) {
            tracing::warn!(%error, "plugs are left");
        }
        self.dismiss(&plugs);
        let addresses = plugs.iter().flat_map(Plug::addresses);
        if let Err(error) = self.turns.forget_guests(&addresses.collect(), &mut self.tracked) {
            tracing::warn!(%error, "connections to plugs that have gone are still counted");
        }
    }

    pub(super) fn forget_flows(&mut self, plug: PlugId) {
        let Some(plug) = self.plugs.get(&plug) else { return };
        if let Err(error) = self.turns.forget_flows(&plug.addresses().into(), &mut self.tracked) {
            tracing::warn!(%error, "flows to a program that has ended may go on");
        }
    }

    pub(super) fn forget_unanswered(&mut self, service: &str, instance: &str) {
        let forgotten =
            self.turns.forget_unanswered((service, instance), &self.rules, &mut self.tracked);
        if let Err(error) = forgotten {
            tracing::warn!(%error, "flows to an instance that does not answer may go on");
        }
    }

    /// What every address is, if that is of interest.
    fn everywhere(&mut self, is_asked: bool) -> Result<Everywhere> {
        if !is_asked {
            return Ok(Everywhere::default());
        }
        Everywhere::look(self.host.kernel().here()?, self.turns.specs())
    }

    pub(super) fn change_forwards(
        &mut self,
        gone: &[KernelForward],
        new: &[KernelForward],
    ) -> Result<(), ControlError> {
        let change = self.forwards.change(gone, new);
        self.commit(&change.batch(&self.rules)).map_err(|error| failed(&error))?;
        self.forwards.apply(&change);
        let everywhere = self.everywhere(change.is_everywhere());
        if let Err(error) = everywhere.and_then(|it| change.forget(&it, &mut self.tracked)) {
            tracing::warn!(%error, "connections of forwards that have changed may go on");
        }
        Ok(())
    }

    pub(super) fn set_services(&mut self, services: &[KernelService]) -> Result<(), ControlError> {
        // A change to rules that are not there would be refused.
        self.repair_rules().map_err(|error| failed(&error))?;
        let kernel = self.host.kernel().nftables().map_err(|error| failed(&error))?;
        let changed = self.turns.change_to(services, &self.rules, kernel, &mut self.tracked);
        let turns::Change { turns: next, mut batch, rest } =
            changed.map_err(|error| failed(&error))?;
        batch.append(&self.rules.answered_change(self.turns.specs(), services));
        let address_plans = |specs: &mut dyn Iterator<Item = &KernelService>| {
            specs.flat_map(turns::addresses).collect::<BTreeSet<IpAddr>>()
        };
        let (before, after) =
            (address_plans(&mut self.turns.specs()), address_plans(&mut services.iter()));
        let added: Vec<IpAddr> = after.difference(&before).copied().collect();
        let added: Vec<IpAddr> =
            added.into_iter().filter(|address| self.ipv6 || address.is_ipv4()).collect();
        let mut made = Ok(());
        for address in &added {
            made = made.and_then(|()| self.host.apply(&self.virtual_address(*address)?));
        }
        if let Err(error) = made.and_then(|()| self.commit(&batch)) {
            for address in &added {
                // What is not there needs no undoing.
                let _ = self.host.undo(&virtual_plan(*address));
            }
            return Err(failed(&error));
        }
        if let Err(error) = self.commit(&rest) {
            tracing::warn!(%error, "what turns were taken from before is left in the table");
        }
        if let Err(error) = self.turns.forget_moved(services, &mut self.tracked) {
            tracing::warn!(%error, "flows to services that have gone or moved may go on");
        }
        let fronts = self.turns.that_come(services);
        let everywhere = self.everywhere(fronts.iter().any(|front| front.ip().is_unspecified()));
        let forgotten = everywhere.and_then(|it| forget::refused(&fronts, &it, &mut self.tracked));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "clients that were refused before may be refused again");
        }
        self.turns = next;
        for address in before.difference(&after) {
            if let Err(error) = self.host.undo(&virtual_plan(*address)) {
                tracing::warn!(%address, %error, "a virtual address is left");
            }
        }
        Ok(())
    }

    /// The bridge has the virtual addresses: it answers for them, and what comes there for
    /// anything but the service is refused.
    fn virtual_address(&self, address: IpAddr) -> Result<Plan> {
        let at = Place::here(self.bridge.clone());
        let step = Step::Address { at, net: IpNet::from(address) };
        Ok(Plan::new(&virtual_plan(address))?.step(step))
    }

    pub(super) fn traffic(&mut self, plug: PlugId) -> Option<PlugTraffic> {
        let plug = self.plugs.get(&plug)?;
        let kernel = self.host.kernel().here().ok()?;
        let link = kernel.index(plug.sender.link.as_str()).ok()?;
        let traffic = kernel.traffic(link).ok()??;
        let counted = |frames, bytes| Traffic { frames, bytes };
        Some(PlugTraffic {
            guest_to_host: counted(traffic.received_packets, traffic.received_bytes),
            host_to_guest: counted(traffic.sent_packets, traffic.sent_bytes),
            dropped: traffic.sent_dropped,
        })
    }

    pub(super) fn forward_traffic(&mut self) -> Result<BTreeMap<(Protocol, SocketAddr), u64>> {
        let kernel = self.host.kernel().nftables()?;
        self.forwards.traffic(&self.rules, kernel)
    }

    pub(super) fn tracked(&mut self) -> Result<Tracked> {
        self.repair_rules()?;
        let entries = self.tracked.entries(&Filter::all())?;
        let ours = |entry: &&Entry| {
            let ends = [entry.original.source, entry.original.destination, entry.reply.source];
            ends.into_iter().any(|end| self.rules.is_of_segment(end.ip()))
        };
        let mut flows = Flows::default();
        for entry in entries.iter().filter(ours) {
            match entry.original.protocol {
                TCP if entry.open => flows.tcp += 1,
                UDP => flows.udp += 1,
                _ => {}
            }
        }
        let kernel = self.host.kernel().nftables()?;
        let services = self.turns.traffic(&entries, &self.rules, kernel)?;
        Ok(Tracked { flows, services })
    }

    pub(super) fn refusals(&mut self) -> Result<Refusals> {
        let guard = self.guard.as_ref().map(|guard| &guard.table);
        let tables = std::iter::once(&self.rules.table).chain(guard);
        counters::read(tables, self.host.kernel().nftables()?)
    }

    pub(super) fn services(&mut self) -> Result<BTreeMap<String, ServiceTraffic>> {
        self.repair_rules()?;
        let entries = self.tracked.entries(&self.turns.marked())?;
        let kernel = self.host.kernel().nftables()?;
        self.turns.traffic(&entries, &self.rules, kernel)
    }

    pub(super) fn watched(&self) -> [BorrowedFd<'_>; 2] {
        [self.links.as_fd(), self.ruleset.as_fd()]
    }

    /// Repairs what others have changed; the plugs that have gone.
    pub(super) fn handle_changes(&mut self) -> Result<Vec<PlugId>> {
        self.repair_rules()?;
        let touched = self.touched()?;
        let gone: Vec<PlugId> = touched.gone.into_iter().collect();
        self.remove_plugs(&gone);
        let mut plans = Vec::new();
        if touched.segment {
            plans.push(SEGMENT.to_owned());
            let services = self.turns.specs().flat_map(turns::addresses);
            plans.extend(services.map(virtual_plan));
        }
        let plugs = touched.plugs.iter().filter_map(|plug| self.plugs.get(plug));
        plans.extend(plugs.map(|plug| plug.plan.clone()));
        for plan in &plans {
            for drift in self.host.reconcile_plan(plan)? {
                match drift.repaired {
                    Ok(true) => {
                        tracing::warn!(step = %drift.step, "somebody else has undone this; done again");
                    }
                    Ok(false) => {}
                    Err(error) => {
                        tracing::error!(step = %drift.step, %error, "cannot be repaired");
                    }
                }
            }
        }
        Ok(gone)
    }

    /// Makes the rules again if somebody else has changed them, and notes which other networks there are.
    fn repair_rules(&mut self) -> Result<()> {
        let changed = self.changed_tables()?;
        if changed.ours && !self.rules_hold()? {
            tracing::warn!("somebody else has changed the rules; making them again");
            self.make_rules_again()?;
        }
        if changed.others {
            self.note_others()?;
        }
        Ok(())
    }

    /// What has changed of links, addresses and routes. What it costs to look after a change must not
    /// grow with the plugs that are there: each new plug makes a dozen.
    fn touched(&mut self) -> Result<Touched> {
        let mut touched = Touched::default();
        let mut plugs = BTreeMap::new();
        while let Some(change) = self.links.next_change()? {
            match change {
                Change::Link(link) => match self.plug_of(&link) {
                    Some(plug) => drop(plugs.insert(plug, Some(link))),
                    None => self.touch(&link, &mut touched),
                },
                Change::LinkGone(link) => match self.plug_of(&link) {
                    Some(plug) => drop(plugs.insert(plug, None)),
                    None => self.touch(&link, &mut touched),
                },
                Change::AddressGone(_) | Change::RouteGone(_) => touched.segment = true,
                Change::Lost => {
                    touched.segment = true;
                    plugs.extend(self.look_at_plugs()?);
                }
                _ => {}
            }
        }
        for (id, link) in plugs {
            let Some(plug) = self.plugs.get(&id) else { continue };
            match link {
                None if plug.comes_back => drop(touched.plugs.insert(id)),
                None => drop(touched.gone.insert(id)),
                Some(link) if self.host.fits(&plug.plan, &link)? => {}
                Some(_) => drop(touched.plugs.insert(id)),
            }
        }
        Ok(touched)
    }

    fn plug_of(&self, link: &Link) -> Option<PlugId> {
        let name = LinkName::try_from(link.name.clone()).ok()?;
        self.by_link.get(&name).copied()
    }

    /// The link of each plug as it is now, if it is there.
    fn look_at_plugs(&mut self) -> Result<BTreeMap<PlugId, Option<Link>>> {
        let links = self.host.kernel().here()?.links()?;
        let mut plugs: BTreeMap<_, _> = self.plugs.keys().map(|plug| (*plug, None)).collect();
        for link in links {
            if let Some(plug) = self.plug_of(&link) {
                plugs.insert(plug, Some(link));
            }
        }
        Ok(plugs)
    }

    /// Notes a change of a link that is no plug's.
    fn touch(&self, link: &Link, touched: &mut Touched) {
        let ours = [Some(&self.bridge), self.card.as_ref()];
        touched.segment |= ours.into_iter().flatten().any(|ours| ours.as_str() == link.name);
        if self.owner.owns(link) && link.name != self.bridge.as_str() {
            // A plug that has another name now.
            touched.plugs.extend(self.plugs.keys());
        }
    }

    /// Which tables others have changed. (Nobody else can change an owned one.)
    fn changed_tables(&mut self) -> Result<Changed> {
        let ours = self.rules.table.name().to_owned();
        let us = self.host.kernel().nftables()?.port();
        let mut touched = false;
        let mut changed = Changed::default();
        while let Some(event) = self.ruleset.next_event()? {
            match event {
                Event::TableGone(state) | Event::Table(state) => match state.table.name() == ours {
                    true => touched = true,
                    false => changed.others |= rules::is_networks(&state.table),
                },
                Event::Inside { table, .. } => touched |= table == ours,
                Event::Committed { port, .. } => {
                    changed.ours |= touched && port != us;
                    touched = false;
                }
                Event::Lost => changed = Changed { ours: true, others: true },
                _ => {}
            }
        }
        Ok(changed)
    }

    /// Whether the tables are there and nobody else's; what is in tables that others can change may
    /// be anything.
    fn rules_hold(&mut self) -> Result<bool> {
        if !self.owned {
            return Ok(false);
        }
        let kernel = self.host.kernel().nftables()?;
        let tables = [Some(&self.rules.table), self.guard.as_ref().map(|guard| &guard.table)];
        for table in tables.into_iter().flatten() {
            let owner = kernel.table(table)?.and_then(|state| state.owner);
            if owner != Some(kernel.port()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes both tables as they are to be, in one transaction.
    fn make_rules_again(&mut self) -> Result<()> {
        let mut batch = Batch::new();
        let contents = [
            Some((&self.rules.table, self.rules.content())),
            self.guard.as_ref().map(|guard| (&guard.table, guard.content())),
        ];
        for (table, content) in contents.into_iter().flatten() {
            let table = table.clone().comment(&self.tag).owned(self.owned);
            // What is there goes, and need not be there for that.
            batch.add_table(&table).remove_table(&table).create_table(&table).append(&content);
        }
        for plug in self.plugs.values() {
            self.admit(plug, &mut batch);
        }
        batch.append(&self.forwards.all().batch(&self.rules));
        let mut turns = self.turns.clone();
        batch.append(&turns.restore(&self.rules, self.host.kernel().nftables()?)?);
        batch.append(&self.rules.answered_change([], self.turns.specs()));
        batch.add_elements(&self.rules.others, Rules::link_elements(&self.others));
        batch.add_elements(&self.rules.tunnels, Rules::link_elements(&self.tunnels));
        self.commit(&batch)?;
        self.turns = turns;
        Ok(())
    }

    /// Sets which links lead to remote machines.
    pub(super) fn set_tunnels(&mut self, links: &[String]) -> Result<(), ControlError> {
        let names: std::result::Result<BTreeSet<LinkName>, _> =
            links.iter().map(|link| link.parse()).collect();
        let tunnels = names.map_err(|error| failed(&error))?;
        let mut batch = Batch::new();
        batch.flush_set(&self.rules.tunnels);
        batch.add_elements(&self.rules.tunnels, Rules::link_elements(&tunnels));
        self.commit(&batch).map_err(|error| failed(&error))?;
        self.tunnels = tunnels;
        Ok(())
    }

    /// Brings the set of other networks' bridges up to date, as their tables name them.
    fn note_others(&mut self) -> Result<()> {
        let kernel = self.host.kernel().nftables()?;
        let mut others = BTreeSet::new();
        for table in kernel.tables()?.into_iter().map(|state| state.table) {
            if rules::is_networks(&table) && table.name() != self.rules.table.name() {
                match kernel.elements(&rules::bridge_of(&table)) {
                    // It is gone by now.
                    Err(error) if error.is_gone() => {}
                    found => {
                        let bridges = found?;
                        others.extend(bridges.iter().filter_map(|it| (&it.key).try_into().ok()));
                    }
                }
            }
        }
        if others == self.others {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.flush_set(&self.rules.others);
        batch.add_elements(&self.rules.others, Rules::link_elements(&others));
        self.commit(&batch)?;
        self.others = others;
        Ok(())
    }
}

/// The name of the plan of a virtual address.
fn virtual_plan(address: IpAddr) -> String {
    format!("virtual {address}")
}
