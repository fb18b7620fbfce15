//! The steps of plans: each can be checked, made, looked at, undone, and said in one line.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use ipnet::IpNet;
use netyard_sys::tap;
use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::Owner;
use super::host::Kernel;
use super::ledger::Ledger;
use crate::error::{Error, Result, gone_is_done};
use crate::netns::{self, Netns, NetnsId};
use crate::nft::{Batch, Table};
use crate::rtnetlink::{
    Address, AddressRecord, BridgeOptions, Kind, Link, LinkChange, LinkIndex, LinkName, Neighbor,
    NewLink, PROTOCOL, PeerEnd, PortOptions, Route, RouteRecord, Rtnetlink, Rule, VxlanOptions,
};
use crate::sysctl::Key;

/// A link in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub link: LinkName,
    /// Its namespace; ours if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NetnsId>,
}

impl Place {
    /// A link of our own namespace.
    #[must_use]
    pub const fn here(link: LinkName) -> Self {
        Self { link, namespace: None }
    }

    /// A link of another namespace.
    #[must_use]
    pub fn inside(link: LinkName, namespace: &Netns) -> Self {
        Self { link, namespace: Some(namespace.id().clone()) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.link)?;
        write_namespace(f, self.namespace.as_ref())
    }
}

fn write_namespace(f: &mut fmt::Formatter<'_>, namespace: Option<&NetnsId>) -> fmt::Result {
    match namespace {
        Some(namespace) => write!(f, " in {}", namespace.path().display()),
        None => Ok(()),
    }
}

/// A pair of links: a port of a bridge here, and what an instance has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The near end's name.
    pub name: LinkName,
    /// The near end's hardware address.
    pub mac: Option<MacAddr>,
    /// The largest IP packet, bytes; of both ends.
    pub mtu: Option<u32>,
    /// The bridge that the near end is a port of.
    pub bridge: Option<LinkName>,
    /// What the bridge does with it.
    pub port: PortOptions,
    /// The far end.
    pub peer: Peer,
}

/// The far end of a [`Pair`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name and namespace.
    pub at: Place,
    /// Its hardware address.
    pub mac: Option<MacAddr>,
}

/// A persistent TAP or TUN device that another program attaches to by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: LinkName,
    /// What it carries.
    pub layer: Layer,
    /// Whether each frame has a virtio-net header before it.
    pub headers: bool,
    /// The user who may attach without privilege.
    pub user: Option<u32>,
    /// The largest IP packet, bytes.
    pub mtu: Option<u32>,
    /// The bridge that it is a port of.
    pub bridge: Option<LinkName>,
    /// What the bridge does with it.
    pub port: PortOptions,
}

/// What a [`Device`] carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// Ethernet frames: a TAP.
    Frames,
    /// IP packets: a TUN.
    Packets,
}

/// One thing to be made or changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Step {
    /// A namespace with a name that `ip netns` knows, its loopback link up.
    Namespace {
        /// Its name.
        name: String,
    },
    /// A bridge, up.
    Bridge {
        /// Its name.
        name: LinkName,
        /// Its hardware address; without one it changes with its ports.
        mac: Option<MacAddr>,
        /// The largest IP packet, bytes.
        mtu: Option<u32>,
        /// How it behaves.
        options: BridgeOptions,
    },
    /// A pair of links, both up.
    Pair(Pair),
    /// A persistent TAP or TUN device, up.
    Device(Device),
    /// An end of a VXLAN overlay, up.
    Vxlan {
        /// Its name.
        name: LinkName,
        /// The overlay.
        options: VxlanOptions,
        /// The largest IP packet, bytes.
        mtu: Option<u32>,
        /// The bridge that it is a port of.
        bridge: Option<LinkName>,
        /// What the bridge does with it.
        port: PortOptions,
    },
    /// A link that is not ours becomes a port of a bridge. Undone: it leaves it.
    Join {
        /// The link.
        link: LinkName,
        /// The bridge.
        bridge: LinkName,
        /// What the bridge does with it.
        port: PortOptions,
    },
    /// A link is switched on. Undone: off, if it was off.
    Up {
        /// The link.
        at: Place,
    },
    /// The addresses of a link and the routes by it move to another link. Undone: back, as they
    /// were.
    Move {
        /// The link that has them.
        from: LinkName,
        /// The link that gets them.
        to: LinkName,
    },
    /// A link gets an address. One that it has already is not ours and stays.
    Address {
        /// The link.
        at: Place,
        /// The address and the length of its prefix.
        net: IpNet,
    },
    /// A point-to-point link gets its own IPv4 address and that of its far end. One that it has
    /// already is not ours and stays.
    PointToPoint {
        /// The link.
        at: Place,
        /// Its own address.
        local: Ipv4Addr,
        /// The address at its far end.
        far: Ipv4Addr,
    },
    /// A route. One that is there already is not ours and stays.
    Route {
        /// The link, or only the namespace that it is in.
        at: Place,
        /// The route; its link is `at`'s.
        route: Route,
    },
    /// A rule. One that is there already is not ours and stays.
    Rule {
        /// The namespace; ours if `None`.
        namespace: Option<NetnsId>,
        /// The rule.
        rule: Rule,
    },
    /// A neighbour that never expires.
    Neighbor {
        /// The link.
        at: Place,
        /// Its address.
        address: IpAddr,
        /// Its hardware address.
        mac: MacAddr,
    },
    /// A setting. Undone: as it was before the first who wanted it, once nobody wants it.
    Sysctl {
        /// The namespace; ours if `None`.
        namespace: Option<NetnsId>,
        /// Its name.
        key: Key,
        /// Its value.
        value: String,
    },
    /// An nftables table with what is in it, in one transaction.
    Table {
        /// The table.
        table: Table,
        /// What is in it; not needed to remove it.
        #[serde(skip)]
        content: Batch,
    },
}

impl From<Pair> for Step {
    fn from(pair: Pair) -> Self {
        Self::Pair(pair)
    }
}

impl From<Device> for Step {
    fn from(device: Device) -> Self {
        Self::Device(device)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = |f: &mut fmt::Formatter<'_>, bridge: &Option<LinkName>| match bridge {
            Some(bridge) => write!(f, ", a port of {bridge}"),
            None => Ok(()),
        };
        match self {
            Self::Namespace { name } => write!(f, "make the namespace {name}"),
            Self::Bridge { name, .. } => write!(f, "make the bridge {name}"),
            Self::Pair(pair) => {
                write!(f, "make the link {}", pair.name)?;
                port(f, &pair.bridge)?;
                write!(f, ", with its other end {}", pair.peer.at)
            }
            Self::Device(device) => {
                let kind = if device.layer == Layer::Frames { "TAP" } else { "TUN" };
                write!(f, "make the {kind} {}", device.name)?;
                port(f, &device.bridge)
            }
            Self::Vxlan { name, options, bridge, .. } => {
                write!(f, "make the end {name} of the overlay {}", options.vni)?;
                port(f, bridge)
            }
            Self::Join { link, bridge, .. } => write!(f, "make {link} a port of {bridge}"),
            Self::Up { at } => write!(f, "switch {at} on"),
            Self::Move { from, to } => {
                write!(f, "move the addresses and routes of {from} to {to}")
            }
            Self::Address { at, net } => write!(f, "give {at} the address {net}"),
            Self::PointToPoint { at, local, far } => {
                write!(f, "give {at} the address {local} with the far end {far}")
            }
            Self::Route { at, route } => {
                let route = Route { link: None, ..*route };
                write!(f, "add the route {route} by {at}")
            }
            Self::Rule { namespace, rule } => {
                write!(f, "add the rule {rule}")?;
                write_namespace(f, namespace.as_ref())
            }
            Self::Neighbor { at, address, mac } => {
                write!(f, "tell {at} that {address} is at {mac}")
            }
            Self::Sysctl { namespace, key, value } => {
                write!(f, "set {key} to {value}")?;
                write_namespace(f, namespace.as_ref())
            }
            Self::Table { table, content } => {
                write!(f, "make the nftables table {table}")?;
                match content.len() {
                    0 => Ok(()),
                    parts => write!(f, " of {parts} parts"),
                }
            }
        }
    }
}

/// What must be known to undo a step: written down before it is done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Before {
    /// Nothing was there.
    #[default]
    Nothing,
    /// It was there already, so it is not ours.
    Present,
    /// The setting's value; `None`: the ledger has it.
    Value(Option<String>),
    /// The addresses and routes that move.
    Moved { addresses: Vec<AddressRecord>, routes: Vec<RouteRecord> },
}

/// What the earlier steps of a plan will have made when a step's turn comes.
#[derive(Debug, Default)]
pub(super) struct Planned {
    links: Vec<Place>,
}

impl Planned {
    fn has(&self, at: &Place) -> bool {
        self.links.contains(at)
    }
}

/// What a step needs beside the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) owner: &'a Owner,
    pub(super) plan: &'a str,
    pub(super) ledger: &'a Ledger,
}

impl Step {
    /// The link that it makes, with how it is to be dressed.
    fn link(&self) -> Option<Dress<'_>> {
        let plain = |name| Dress { name, bridge: None, port: PortOptions::default(), mtu: None };
        match self {
            Self::Bridge { name, mtu, .. } => Some(Dress { mtu: *mtu, ..plain(name) }),
            Self::Pair(Pair { name, bridge, port, mtu, .. })
            | Self::Device(Device { name, bridge, port, mtu, .. })
            | Self::Vxlan { name, bridge, port, mtu, .. } => {
                Some(Dress { name, bridge: bridge.as_ref(), port: *port, mtu: *mtu })
            }
            _ => None,
        }
    }

    /// The name of the link that it makes.
    pub(super) fn makes_link(&self) -> Option<&str> {
        self.link().map(|dress| dress.name.as_str())
    }

    /// Whether it can be done, as far as that can be seen before; notes what it will have made.
    pub(super) fn check(&self, kernel: &mut Kernel, planned: &mut Planned) -> Result<()> {
        self.check_features(kernel)?;
        if let Some(dress) = self.link() {
            free(kernel, planned, Place::here(dress.name.clone()))?;
            if let Some(bridge) = dress.bridge {
                bridge_there(kernel, planned, bridge)?;
            }
        }
        match self {
            Self::Namespace { name } if netns::named(name)?.exists() => {
                return Err(Error::Taken { what: format!("the namespace {name}") });
            }
            Self::Pair(pair) => free(kernel, planned, pair.peer.at.clone())?,
            Self::Join { link, bridge, .. } => {
                bridge_there(kernel, planned, bridge)?;
                there(kernel, planned, &Place::here(link.clone()))?;
            }
            Self::Move { from, to } => {
                there(kernel, planned, &Place::here(from.clone()))?;
                there(kernel, planned, &Place::here(to.clone()))?;
            }
            Self::Up { at }
            | Self::Address { at, .. }
            | Self::PointToPoint { at, .. }
            | Self::Neighbor { at, .. } => {
                there(kernel, planned, at)?;
            }
            Self::Route { at, route } => {
                there(kernel, planned, at)?;
                // The other way round is RFC 8950.
                let by_ipv4 = route.gateway.is_some_and(|gateway| gateway.is_ipv4());
                if by_ipv4 && route.destination.addr().is_ipv6() {
                    return Err(Error::Invalid(format!(
                        "the route {route} has a gateway of the other family"
                    )));
                }
            }
            Self::Table { table, .. } if kernel.nftables()?.table(table)?.is_some() => {
                return Err(Error::Taken { what: format!("the nftables table {table}") });
            }
            _ => {}
        }
        Ok(())
    }

    fn check_features(&self, kernel: &Kernel) -> Result<()> {
        let features = kernel.features();
        let (has, feature, option) = match self {
            Self::Bridge { .. } => (features.bridge, "bridges", "BRIDGE"),
            Self::Pair(_) => (features.veth, "pairs of links", "VETH"),
            Self::Vxlan { .. } => (features.vxlan, "VXLAN", "VXLAN"),
            Self::Table { .. } => (features.nftables, "nftables", "NF_TABLES_INET"),
            _ => return Ok(()),
        };
        if !has {
            let remedy = format!("it needs CONFIG_{option}, built in or as a module");
            return Err(Error::Unsupported { feature, remedy });
        }
        let isolated = self.link().is_some_and(|dress| dress.port.isolated == Some(true));
        if isolated && !features.port_isolation {
            let remedy = "isolation inside a bridge needs Linux 4.18".into();
            return Err(Error::Unsupported { feature: "isolated ports", remedy });
        }
        Ok(())
    }

    /// What must be known to undo it; it changes nothing. What carries a mark needs no look.
    pub(super) fn before(&self, kernel: &mut Kernel) -> Result<Before> {
        let present = match self {
            // Where addresses cannot be marked, only looking before tells ours from others'.
            Self::Address { at, net } if !kernel.features().address_mark => {
                address_there(kernel, at, *net, None)?
            }
            Self::PointToPoint { at, local, far } if !kernel.features().address_mark => {
                address_there(kernel, at, whole(*local), Some(*far))?
            }
            Self::Neighbor { at, address, mac } => {
                let (kernel, link) = kernel.at(at)?;
                let same = |it: &&Neighbor| it.address == *address && it.permanent;
                match kernel.neighbors(Some(link))?.iter().find(same) {
                    Some(it) if it.mac == Some(*mac) => true,
                    Some(_) => {
                        return Err(Error::Taken {
                            what: format!("a neighbour {address} of {at} with another address"),
                        });
                    }
                    None => false,
                }
            }
            Self::Up { at } => {
                let (kernel, link) = kernel.at(at)?;
                kernel.link_by_index(link)?.is_some_and(|link| link.up)
            }
            Self::Join { link, bridge, .. } => {
                let master = kernel.here()?.link(link.as_str())?.and_then(|link| link.master);
                let bridge = kernel.here()?.index(bridge.as_str())?;
                if master.is_some_and(|master| master != bridge) {
                    return Err(Error::Taken { what: format!("{link} as a port of another link") });
                }
                master == Some(bridge)
            }
            Self::Move { from, .. } => {
                let kernel = kernel.here()?;
                let link = kernel.index(from.as_str())?;
                return Ok(Before::Moved {
                    addresses: kernel.record_addresses(link)?,
                    routes: kernel.record_routes(link)?,
                });
            }
            Self::Sysctl { namespace: None, .. } => return Ok(Before::Value(None)),
            Self::Sysctl { namespace: Some(namespace), key, .. } => {
                let netns = open(namespace)?;
                return Ok(Before::Value(key.get(Some(&netns))?));
            }
            // Links, namespaces and tables are made, or it fails.
            _ => false,
        };
        Ok(if present { Before::Present } else { Before::Nothing })
    }

    /// Does it.
    pub(super) fn make(
        &self,
        kernel: &mut Kernel,
        context: Context<'_>,
        before: &Before,
    ) -> Result<()> {
        if matches!(before, Before::Present) {
            return Ok(());
        }
        match self {
            Self::Namespace { name } => {
                let tag = context.owner.tag(context.plan);
                netns::create_named(name, || {
                    let mut kernel = Rtnetlink::open()?;
                    kernel.change_link(LOOPBACK, &LinkChange::new().alias(&tag).up(true))
                })
            }
            Self::Bridge { name, mac, mtu, options } => {
                let new = NewLink::new(name, Kind::Bridge(*options)).mac(*mac).mtu(*mtu);
                self.make_link(kernel, context, new)
            }
            Self::Pair(pair) => {
                let namespace = pair.peer.at.namespace.as_ref().map(open).transpose()?;
                let peer = PeerEnd {
                    name: &pair.peer.at.link,
                    mac: pair.peer.mac,
                    namespace: namespace.as_ref(),
                };
                let new = NewLink::new(&pair.name, Kind::Veth(peer)).mac(pair.mac).mtu(pair.mtu);
                self.make_link(kernel, context, new)?;
                let (kernel, far) = kernel.at(&pair.peer.at)?;
                kernel.change_link(far, &LinkChange::new().up(true))
            }
            Self::Vxlan { name, options, mtu, .. } => {
                let new = NewLink::new(name, Kind::Vxlan(*options)).mtu(*mtu);
                self.make_link(kernel, context, new)
            }
            Self::Device(device) => self.make_device(kernel, context, device),
            Self::Join { link, bridge, port } => {
                let kernel = kernel.here()?;
                let (link, bridge) = (kernel.index(link.as_str())?, kernel.index(bridge.as_str())?);
                kernel.change_link(link, &LinkChange::new().master(Some(bridge)))?;
                match *port == PortOptions::default() {
                    true => Ok(()),
                    false => kernel.change_link(link, &LinkChange::new().port(*port)),
                }
            }
            Self::Up { at } => {
                let (kernel, link) = kernel.at(at)?;
                kernel.change_link(link, &LinkChange::new().up(true))
            }
            Self::Move { from, to } => {
                let kernel = kernel.here()?;
                let (from, to) = (kernel.index(from.as_str())?, kernel.index(to.as_str())?);
                shift(kernel, before, from, to, Mark::Ours)
            }
            Self::Address { at, net } => {
                let (kernel, link) = kernel.at(at)?;
                there_is_done(kernel.add_address(link, *net))
            }
            Self::PointToPoint { at, local, far } => {
                let (kernel, link) = kernel.at(at)?;
                there_is_done(kernel.add_pair(link, *local, *far))
            }
            Self::Route { at, route } => {
                let (kernel, link) = kernel.at(at)?;
                let route = Route { link: Some(link), protocol: PROTOCOL, ..*route };
                match kernel.add_route(&route) {
                    // There is one to that destination; the same?
                    Err(error) if error.exists() && !route_there(kernel, &route)? => Err(error),
                    result => there_is_done(result),
                }
            }
            Self::Rule { namespace, rule } => {
                there_is_done(kernel.routing(namespace.as_ref())?.add_rule(rule))
            }
            Self::Neighbor { at, address, mac } => {
                let (kernel, link) = kernel.at(at)?;
                kernel.set_neighbor(&Neighbor::new(link, *address, *mac))
            }
            Self::Sysctl { namespace: None, key, value } => {
                context.ledger.hold(key, value, &context.owner.tag(context.plan))
            }
            Self::Sysctl { namespace: Some(namespace), key, value } => {
                key.set(Some(&open(namespace)?), value)
            }
            Self::Table { table, content } => {
                let owned = table.owned && kernel.features().table_owner;
                let tag = context.owner.tag(context.plan);
                let table = table.clone().comment(&tag).owned(owned);
                let mut batch = Batch::new();
                batch.create_table(&table).append(content);
                kernel.nftables()?.commit(&batch)
            }
        }
    }

    /// Makes a link with mark and bridge in the same message, then gives it the rest.
    fn make_link(&self, kernel: &mut Kernel, context: Context<'_>, new: NewLink<'_>) -> Result<()> {
        let bridge = self.link().and_then(|dress| dress.bridge);
        let master = bridge.map(|bridge| kernel.here()?.index(bridge.as_str())).transpose()?;
        let new = new.master(master).group(context.owner.group());
        let link = kernel.here()?.add_link(&new)?;
        self.quieten(kernel);
        kernel.here()?.change_link(link, &self.clothes(context))
    }

    /// Keeps a port out of IPv6: the bridge speaks it. Otherwise the kernel gives each port routes of
    /// its own and walks through those of all the others when one goes up.
    fn quieten(&self, kernel: &mut Kernel) {
        let Some(Dress { name, bridge: Some(_), .. }) = self.link() else { return };
        let setting = kernel.ipv6_settings().map(|folder| {
            let folder = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
            folder.join(name.as_str()).join("disable_ipv6")
        });
        // A kernel without IPv6 has no such setting, and some containers may not write it: the port
        // is as good, only slower to make beside a thousand others.
        if let Err(error) = setting.and_then(|setting| fs::write(setting, "1")) {
            tracing::debug!(%error, "the port speaks IPv6");
        }
    }

    /// Makes a device that has its mark before it stays.
    fn make_device(
        &self,
        kernel: &mut Kernel,
        context: Context<'_>,
        device: &Device,
    ) -> Result<()> {
        let failed = |error: io::Error| match error.kind() {
            // Never somebody else's device.
            io::ErrorKind::ResourceBusy => {
                Error::Taken { what: format!("the link {}", device.name) }
            }
            _ => Error::io(format!("make the device {}", device.name), error),
        };
        let layer = match device.layer {
            Layer::Frames => tap::Layer::Frames,
            Layer::Packets => tap::Layer::Packets,
        };
        let held =
            tap::Device::create(device.name.as_str(), layer, device.headers).map_err(failed)?;
        let link = kernel.here()?.index(device.name.as_str())?;
        let change = LinkChange::new().group(context.owner.group());
        kernel.here()?.change_link(link, &change)?;
        if let Some(user) = device.user {
            held.set_owner(user).map_err(failed)?;
        }
        self.quieten(kernel);
        self.dress(kernel, context, link)?;
        held.set_persistent(true).map_err(failed)
    }

    /// Gives a link of ours all that it has beside its kind.
    fn dress(&self, kernel: &mut Kernel, context: Context<'_>, link: LinkIndex) -> Result<()> {
        let kernel = kernel.here()?;
        if let Some(bridge) = self.link().and_then(|dress| dress.bridge) {
            let master = Some(kernel.index(bridge.as_str())?);
            let is = kernel.link_by_index(link)?.and_then(|link| link.master);
            if is != master {
                // A port's options can be given to a port only: first it must be one.
                kernel.change_link(link, &LinkChange::new().master(master))?;
            }
        }
        kernel.change_link(link, &self.clothes(context))
    }

    /// What a link of ours has beside its kind and bridge.
    fn clothes(&self, context: Context<'_>) -> LinkChange {
        let change = LinkChange::new().alias(&context.owner.tag(context.plan)).up(true);
        let Some(dress) = self.link() else { return change };
        let change = match dress.bridge {
            Some(_) => change.link_local(false).port(dress.port),
            None => change,
        };
        match dress.mtu {
            Some(mtu) => change.mtu(mtu),
            None => change,
        }
    }

    /// Takes it back: what is there and ours, whether it was done, half done or not begun.
    pub(super) fn undo(
        &self,
        kernel: &mut Kernel,
        context: Context<'_>,
        before: &Before,
    ) -> Result<()> {
        if matches!(before, Before::Present) {
            return Ok(());
        }
        if let Some(dress) = self.link() {
            let kernel = kernel.here()?;
            return match kernel.link(dress.name.as_str())? {
                Some(link) if context.owner.owns(&link) => kernel.remove_link(link.index),
                // Gone, or somebody else's by now.
                _ => Ok(()),
            };
        }
        gone_is_done(self.undo_change(kernel, context, before))
    }

    fn undo_change(
        &self,
        kernel: &mut Kernel,
        context: Context<'_>,
        before: &Before,
    ) -> Result<()> {
        match self {
            Self::Namespace { name } => remove_namespace(name, context.owner),
            Self::Join { link, bridge, .. } => {
                let kernel = kernel.here()?;
                let bridge = kernel.index(bridge.as_str())?;
                match kernel.link(link.as_str())? {
                    Some(link) if link.master == Some(bridge) => {
                        kernel.change_link(link.index, &LinkChange::new().master(None))
                    }
                    _ => Ok(()),
                }
            }
            Self::Up { at } => {
                let (kernel, link) = kernel.at(at)?;
                kernel.change_link(link, &LinkChange::new().up(false))
            }
            Self::Move { from, to } => {
                let kernel = kernel.here()?;
                let from = kernel.index(from.as_str())?;
                // Without the other link they only have to come back.
                let to = kernel.link(to.as_str())?.map_or(from, |link| link.index);
                shift(kernel, before, to, from, Mark::AsItWas)
            }
            Self::Address { at, net } => {
                let marks = kernel.features().address_mark;
                let (kernel, link) = kernel.at(at)?;
                match address_is_ours(kernel, link, *net, None, marks)? {
                    true => kernel.remove_address(link, *net),
                    false => Ok(()),
                }
            }
            Self::PointToPoint { at, local, far } => {
                let marks = kernel.features().address_mark;
                let (kernel, link) = kernel.at(at)?;
                match address_is_ours(kernel, link, whole(*local), Some(*far), marks)? {
                    true => kernel.remove_pair(link, *local, *far),
                    false => Ok(()),
                }
            }
            Self::Route { at, route } => {
                let (kernel, link) = kernel.at(at)?;
                // The kernel removes a route that has our mark, or none.
                kernel.remove_route(&Route { link: Some(link), protocol: PROTOCOL, ..*route })
            }
            Self::Rule { namespace, rule } => {
                let kernel = kernel.routing(namespace.as_ref())?;
                match kernel.rules()?.contains(rule) {
                    true => kernel.remove_rule(rule),
                    false => Ok(()),
                }
            }
            Self::Neighbor { at, address, .. } => {
                let (kernel, link) = kernel.at(at)?;
                let found = kernel.neighbors(Some(link))?;
                let ours = |it: &&Neighbor| it.address == *address && it.protocol == PROTOCOL;
                found.iter().find(ours).map_or(Ok(()), |it| kernel.remove_neighbor(it))
            }
            Self::Sysctl { namespace: None, key, .. } => {
                context.ledger.release(key, &context.owner.tag(context.plan))
            }
            Self::Sysctl { namespace: Some(namespace), key, value } => {
                let netns = open(namespace)?;
                let is = key.get(Some(&netns))?;
                match before {
                    Before::Value(Some(before)) if is.as_ref() == Some(value) => {
                        key.set(Some(&netns), before)
                    }
                    _ => Ok(()),
                }
            }
            Self::Table { table, .. } => {
                let kernel = kernel.nftables()?;
                let tag = context.owner.tag(context.plan);
                match kernel.table(table)? {
                    Some(found) if found.comment.as_deref() == Some(&tag) => {
                        let mut batch = Batch::new();
                        batch.remove_table(table);
                        kernel.commit(&batch)
                    }
                    _ => Ok(()),
                }
            }
            Self::Bridge { .. } | Self::Pair(_) | Self::Device(_) | Self::Vxlan { .. } => Ok(()),
        }
    }

    /// Whether it is as it was made. What is in a namespace that is gone needs nothing.
    pub(super) fn holds(&self, kernel: &mut Kernel, before: &Before) -> Result<bool> {
        match self.look(kernel, before) {
            Err(error) if error.is_gone() => {
                let namespace = match self {
                    Self::Pair(pair) => pair.peer.at.namespace.as_ref(),
                    Self::Up { at }
                    | Self::Address { at, .. }
                    | Self::PointToPoint { at, .. }
                    | Self::Route { at, .. }
                    | Self::Neighbor { at, .. } => at.namespace.as_ref(),
                    Self::Rule { namespace, .. } | Self::Sysctl { namespace, .. } => {
                        namespace.as_ref()
                    }
                    _ => None,
                };
                Ok(match namespace {
                    Some(namespace) => namespace.open()?.is_none(),
                    None => false,
                })
            }
            result => result,
        }
    }

    /// Whether a link of our own namespace is as this step has made it, or left it; so is one that the
    /// step is not about.
    pub(super) fn fits(&self, kernel: &mut Kernel, link: &Link) -> Result<bool> {
        let dress = match self {
            Self::Up { at } if at.namespace.is_none() && at.link.as_str() == link.name => {
                return Ok(link.up);
            }
            Self::Join { link: name, bridge, port } => {
                Some(Dress { name, bridge: Some(bridge), port: *port, mtu: None })
            }
            step => step.link(),
        };
        let Some(dress) = dress.filter(|dress| dress.name.as_str() == link.name) else {
            return Ok(true);
        };
        let master = match dress.bridge.map(|bridge| kernel.here()?.index(bridge.as_str())) {
            Some(Err(Error::Absent { .. })) => return Ok(false),
            Some(bridge) => Some(bridge?),
            None => link.master,
        };
        let port = link.port.unwrap_or_default();
        let up = link.up || matches!(self, Self::Join { .. });
        Ok(up
            && link.master == master
            && port.satisfies(&dress.port)
            && dress.mtu.is_none_or(|mtu| mtu == link.mtu))
    }

    fn look(&self, kernel: &mut Kernel, before: &Before) -> Result<bool> {
        if let Some(dress) = self.link() {
            return match kernel.here()?.link(dress.name.as_str())? {
                Some(link) => self.fits(kernel, &link),
                None => Ok(false),
            };
        }
        Ok(match self {
            Self::Namespace { name } => netns::named(name)?.exists(),
            Self::Join { link, .. } => match kernel.here()?.link(link.as_str())? {
                Some(link) => self.fits(kernel, &link)?,
                None => false,
            },
            Self::Sysctl { namespace, key, value } => {
                let netns = namespace.as_ref().map(open).transpose()?;
                key.get(netns.as_ref())?.is_none_or(|is| is == *value)
            }
            Self::Address { at, net } => address_there(kernel, at, *net, None)?,
            Self::PointToPoint { at, local, far } => {
                address_there(kernel, at, whole(*local), Some(*far))?
            }
            Self::Route { at, route } => {
                let (kernel, link) = kernel.at(at)?;
                route_there(kernel, &Route { link: Some(link), ..*route })?
            }
            Self::Rule { namespace, rule } => {
                let rules = kernel.routing(namespace.as_ref())?.rules()?;
                rules.iter().any(|it| Rule { protocol: rule.protocol, ..it.clone() } == *rule)
            }
            Self::Move { to, .. } => {
                let Before::Moved { addresses, .. } = before else { return Ok(true) };
                let kernel = kernel.here()?;
                let link = kernel.index(to.as_str())?;
                let is = kernel.addresses(Some(link))?;
                addresses.iter().all(|wanted| is.iter().any(|it| it.net == wanted.net))
            }
            Self::Table { table, .. } => kernel.nftables()?.table(table)?.is_some(),
            _ => matches!(self.before(kernel)?, Before::Present),
        })
    }

    /// Makes it again where it does not hold any more. A table is left to its owner, who knows what
    /// belongs in it by now.
    pub(super) fn repair(
        &self,
        kernel: &mut Kernel,
        context: Context<'_>,
        before: &Before,
    ) -> Result<()> {
        let Some(dress) = self.link() else {
            return self.make(kernel, context, &before.again());
        };
        match kernel.here()?.link(dress.name.as_str())? {
            Some(link) if context.owner.owns(&link) => self.dress(kernel, context, link.index),
            Some(_) => Err(Error::Taken { what: format!("the link {}", dress.name) }),
            None => self.make(kernel, context, before),
        }
    }
}

impl Before {
    /// What is gone is not present.
    fn again(&self) -> Self {
        match self {
            Self::Present => Self::Nothing,
            other => other.clone(),
        }
    }
}

/// `lo` of every namespace.
const LOOPBACK: LinkIndex = LinkIndex(1);

/// What a link of ours has beside its kind.
struct Dress<'a> {
    name: &'a LinkName,
    bridge: Option<&'a LinkName>,
    port: PortOptions,
    mtu: Option<u32>,
}

/// Opens a namespace that must be there.
fn open(namespace: &NetnsId) -> Result<Netns> {
    namespace.open()?.ok_or_else(|| Error::Absent {
        what: format!("namespace {} any more", namespace.path().display()),
    })
}

/// Nothing has that place yet, nor will; then it is planned.
fn free(kernel: &mut Kernel, planned: &mut Planned, at: Place) -> Result<()> {
    match kernel.routing(at.namespace.as_ref())?.index(at.link.as_str()) {
        Err(Error::Absent { .. }) if !planned.has(&at) => {
            planned.links.push(at);
            Ok(())
        }
        Ok(_) | Err(Error::Absent { .. }) => Err(Error::Taken { what: format!("the link {at}") }),
        Err(error) => Err(error),
    }
}

/// A link is there, or will be.
fn there(kernel: &mut Kernel, planned: &Planned, at: &Place) -> Result<()> {
    if planned.has(at) {
        return Ok(());
    }
    kernel.at(at).map(drop)
}

/// A bridge is there, or will be.
fn bridge_there(kernel: &mut Kernel, planned: &Planned, bridge: &LinkName) -> Result<()> {
    if planned.has(&Place::here(bridge.clone())) {
        return Ok(());
    }
    match kernel.here()?.link(bridge.as_str())? {
        Some(link) if link.kind.as_deref() == Some("bridge") => Ok(()),
        Some(_) => Err(Error::Invalid(format!("{bridge} is not a bridge"))),
        None => Err(Error::Absent { what: format!("bridge {bridge}") }),
    }
}

/// The address alone, as a prefix.
fn whole(address: Ipv4Addr) -> IpNet {
    IpNet::new_assert(IpAddr::V4(address), 32)
}

/// Whether a link has an address, whoever gave it; one of a pair, if there is to be a far end.
fn address_there(
    kernel: &mut Kernel,
    at: &Place,
    net: IpNet,
    far: Option<Ipv4Addr>,
) -> Result<bool> {
    let (kernel, link) = kernel.at(at)?;
    Ok(kernel.addresses(Some(link))?.iter().any(|it| is_address(it, net, far)))
}

/// Whether a link has an address that we gave it; where addresses carry no marks, whoever gave it.
fn address_is_ours(
    kernel: &mut Rtnetlink,
    link: LinkIndex,
    net: IpNet,
    far: Option<Ipv4Addr>,
    marks: bool,
) -> Result<bool> {
    let found = kernel.addresses(Some(link))?;
    Ok(found.iter().any(|it| is_address(it, net, far) && (it.is_ours() || !marks)))
}

/// Whether an address is the one that a step gives: one link may have several with the same near end.
fn is_address(it: &Address, net: IpNet, far: Option<Ipv4Addr>) -> bool {
    it.net == net && far.is_none_or(|far| it.far == Some(far.into()))
}

/// Whether there is such a route, whoever made it.
fn route_there(kernel: &mut Rtnetlink, route: &Route) -> Result<bool> {
    let same = |it: &Route| {
        it.destination.trunc() == route.destination.trunc()
            && it.table == route.table
            && it.gateway == route.gateway
            && route.metric.is_none_or(|metric| it.metric == Some(metric))
    };
    Ok(kernel.routes(route.link)?.iter().any(same))
}

/// What is there already is not ours, and stays: it does not carry our mark.
fn there_is_done(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.exists() => Ok(()),
        result => result,
    }
}

/// Whose marks what moves gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Ours,
    AsItWas,
}

/// Moves recorded addresses and routes from one link to another. Addresses are on both for a moment
/// so that connections live on; routes cannot be.
fn shift(
    kernel: &mut Rtnetlink,
    before: &Before,
    from: LinkIndex,
    to: LinkIndex,
    mark: Mark,
) -> Result<()> {
    let Before::Moved { addresses, routes } = before else { return Ok(()) };
    let ours = mark == Mark::Ours;
    for address in addresses {
        kernel.put_address(to, address, ours)?;
    }
    if from != to {
        for record in routes {
            let protocol = if ours { record.route.protocol } else { PROTOCOL };
            kernel.remove_route(&Route { link: Some(from), protocol, ..record.route })?;
        }
        let is = kernel.addresses(Some(from))?;
        for address in addresses {
            // On the way back only what we brought is taken.
            if is.iter().any(|it| it.net == address.net && (ours || it.is_ours())) {
                kernel.remove_address(from, address.net)?;
            }
        }
    }
    for route in routes {
        kernel.put_route(to, route, ours)?;
    }
    Ok(())
}

/// Removes a namespace whose loopback link has this owner's mark.
fn remove_namespace(name: &str, owner: &Owner) -> Result<()> {
    let path = netns::named(name)?;
    let data = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        data => data.map_err(|error| Error::io(format!("look at {}", path.display()), error))?,
    };
    let ours = match Netns::open(&path).and_then(|netns| Rtnetlink::open_in(&netns)) {
        Ok(mut inside) => inside.link_by_index(LOOPBACK)?.is_some_and(|lo| owner.owns(&lo)),
        // An empty file that never became a namespace: the journal says that it was not there
        // before us.
        Err(_) => data.is_file() && data.len() == 0,
    };
    if ours { netns::remove_named(name) } else { Ok(()) }
}
