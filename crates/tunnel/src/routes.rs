//! Addresses and routes of both ends, as plans that are undone at the end and after a kill.
//!
//! They are in one of two places ([`Form`]):
//!
//! * In a routing table of their own, which rules lead to. What the tunnel itself sends carries a mark, and
//!   passes these rules by; so it never runs through itself, whatever the main table says. See [`own_table`].
//! * In the main table. There a route to the hub's address alone, by the gateway that led there before,
//!   keeps the tunnel out of itself.
//!
//! The network's own routes go with the TUN device, which goes with its process. What stays after a kill, the
//! rules or the route to the hub, the next start finds in the journal.

mod own_table;
mod way;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netyard_link::plan::{Host, Options, Owner, Place, Plan, Step};
use netyard_link::rtnetlink::{LinkIndex, LinkName, Route};
use netyard_link::{Features, Result};

use self::way::{Hop, way};
use crate::addresses::Slot;
use crate::through::{self, Through};

const NETWORK: &str = "network";
const WAY: &str = "way to the hub";
/// The plan of each subnet begins with this.
const SUBNET: &str = "subnet ";
const THROUGH: &str = "let through";

/// All of IPv4, and all of IPv6, in two halves: they win against a default route, and leave it as it is.
const HALVES: [&str; 2] = ["0.0.0.0/1", "128.0.0.0/1"];
const HALVES6: [&str; 2] = ["::/1", "8000::/1"];
/// The same, where there is no other default route.
const WHOLE: [&str; 1] = ["0.0.0.0/0"];
const WHOLE6: [&str; 1] = ["::/0"];

/// Where routes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In the main table.
    Main,
    /// In a table of their own with this number, for all but what carries it as its mark.
    Own(u32),
}

/// A device on its network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// The device.
    pub(crate) device: &'a str,
    /// The network.
    pub(crate) network: Ipv4Net,
    /// Its IPv6 prefix.
    pub(crate) network6: Option<Ipv6Net>,
    /// The addresses of the device.
    pub(crate) slot: Slot,
    /// Everything else goes there, too.
    pub(crate) redirect: bool,
}

/// What one hub or peer has made on this machine.
#[derive(Debug)]
pub(crate) struct Routes {
    host: Host,
    owner: Owner,
    form: Form,
    mark: u32,
    pinned: Option<(IpAddr, Hop)>,
    /// The plans of subnets that the kernel has refused.
    refused: BTreeSet<String>,
}

impl Routes {
    /// Opens the journal in `folder`, and undoes what a killed process of this owner has left.
    pub(crate) fn open(
        owner: &str,
        folder: &Path,
        ledger: &Path,
        main_table: bool,
    ) -> Result<Self> {
        let owner = Owner::new(owner)?;
        let mut host = Host::open(&Options {
            owner: owner.clone(),
            journal: folder.join("journal.json"),
            ledger: ledger.to_owned(),
            features: Features::probe()?,
        })?;
        if !host.plans().is_empty() {
            host.recover()?;
        }
        let mark = own_table::free_number(&owner, host.kernel().here()?)?;
        let form = if main_table { Form::Main } else { Form::Own(mark) };
        Ok(Self { host, owner, form, mark, pinned: None, refused: BTreeSet::new() })
    }

    /// What the tunnel's own sockets carry as their mark.
    pub(crate) const fn mark(&self) -> u32 {
        self.mark
    }

    /// Gives a device its addresses, and leads the network to it; with `redirect` everything else too.
    pub(crate) fn enter(&mut self, entry: Entry<'_>) -> Result<()> {
        let Entry { network, network6, slot, redirect, .. } = entry;
        let at = Place::here(LinkName::try_from(entry.device.to_owned())?);
        let mut plan = Plan::new(NETWORK)?.step(match slot.far {
            Some(far) => Step::PointToPoint { at: at.clone(), local: slot.address, far },
            None => Step::Address { at: at.clone(), net: whole(IpAddr::V4(slot.address)) },
        });
        if let Some(address6) = slot.address6 {
            plan = plan.step(Step::Address { at: at.clone(), net: whole(IpAddr::V6(address6)) });
        }
        let own = match self.form {
            Form::Main => None,
            Form::Own(table) => Some(table),
        };
        let rest = |halves: &[&str], whole: &[&str]| -> Vec<IpNet> {
            let all = if own.is_some() { whole } else { halves };
            let all = all.iter().filter_map(|net| net.parse().ok());
            if redirect { all.collect() } else { Vec::new() }
        };
        for destination in [IpNet::V4(network)].into_iter().chain(rest(&HALVES, &WHOLE)) {
            let source = slot.far.is_none().then_some(IpAddr::V4(slot.address));
            let gateway = slot.far.map(IpAddr::V4);
            let route = self.here(Route { gateway, source, ..Route::new(destination) });
            plan = plan.step(Step::Route { at: at.clone(), route });
        }
        if let Some(network6) = network6 {
            for destination in [IpNet::V6(network6)].into_iter().chain(rest(&HALVES6, &WHOLE6)) {
                let source = slot.address6.map(IpAddr::V6);
                let route = self.here(Route { source, ..Route::new(destination) });
                plan = plan.step(Step::Route { at: at.clone(), route });
            }
        }
        if let Some(table) = own {
            plan = own_table::lead(plan, self.owner.as_str(), table, &entry)?;
        }
        self.host.apply(&plan)
    }

    /// Makes again what somebody else has removed or changed.
    pub(crate) fn hold(&mut self) -> Result<()> {
        let mut drifts = self.host.reconcile_plan(NETWORK)?;
        drifts.extend(self.host.restore_plan(THROUGH)?);
        for plan in self.subnet_plans() {
            drifts.extend(self.host.reconcile_plan(&plan)?);
        }
        for drift in drifts {
            match drift.repaired {
                Ok(true) => {
                    tracing::warn!(step = %drift.step, "somebody undid this; it is done again")
                }
                Ok(false) => tracing::warn!(step = %drift.step, "somebody undid this"),
                Err(error) => tracing::warn!(step = %drift.step, %error, "somebody undid this"),
            }
        }
        Ok(())
    }

    /// Takes the device's addresses and routes back.
    pub(crate) fn leave(&mut self) -> Result<()> {
        let subnets = self.subnet_plans();
        self.host.undo_all(subnets.iter().map(String::as_str).chain([THROUGH, NETWORK]))
    }

    /// Leads subnets behind others to the device, in place of those before; not those that this machine is in.
    /// Each is led by itself: one that the kernel refuses keeps no other away. False if there is such a one.
    pub(crate) fn lead_to(&mut self, entry: Entry<'_>, subnets: &[IpNet]) -> Result<bool> {
        let kernel = self.host.kernel().here()?;
        let tunnel = kernel.index(entry.device)?;
        let own = kernel.addresses(None)?.into_iter().filter(|address| address.link != tunnel);
        let own: Vec<IpNet> = own.map(|address| address.net.trunc()).collect();
        let (here, subnets): (Vec<_>, Vec<_>) = (subnets.iter().copied())
            .partition(|subnet| own.iter().any(|net| net.contains(subnet) || subnet.contains(net)));
        for subnet in here {
            tracing::warn!(%subnet, "this machine is there itself: it is not led to the tunnel");
        }
        let undone = self.lead_only(entry, &subnets);
        let there = self.subnet_plans();
        let before = std::mem::take(&mut self.refused);
        for (plan, step) in self.subnet_steps(entry, &subnets)? {
            let was_refused = before.contains(&plan);
            if there.contains(&plan) && !was_refused {
                continue;
            }
            // What is left of it, if anything is.
            let led = self.host.undo(&plan);
            let led = led.and_then(|()| self.host.apply(&Plan::new(&plan)?.step(step)));
            if let Err(error) = led {
                if !was_refused {
                    tracing::warn!(plan, %error, "what is behind another machine is not led there");
                }
                self.refused.insert(plan);
            }
        }
        undone.map(|()| self.refused.is_empty())
    }

    /// Leads no subnet to the device any more but these.
    pub(crate) fn lead_only(&mut self, entry: Entry<'_>, subnets: &[IpNet]) -> Result<()> {
        let kept = self.subnet_steps(entry, subnets)?;
        let mut gone = self.subnet_plans();
        gone.retain(|plan| kept.iter().all(|(kept, _)| kept != plan));
        self.host.undo_all(gone.iter().map(String::as_str))
    }

    /// The plans by which subnets are led.
    fn subnet_plans(&self) -> Vec<String> {
        let plans = self.host.plans().into_iter();
        plans.filter(|plan| plan.starts_with(SUBNET)).map(str::to_owned).collect()
    }

    /// How subnets are led to the device: the name of each plan, which says all that is in it, and its step.
    fn subnet_steps(&self, entry: Entry<'_>, subnets: &[IpNet]) -> Result<Vec<(String, Step)>> {
        let at = Place::here(LinkName::try_from(entry.device.to_owned())?);
        let step = |subnet: &IpNet| {
            let source = match subnet {
                IpNet::V4(_) => IpAddr::V4(entry.slot.address),
                // Who has no address of that family, has nothing to send there.
                IpNet::V6(_) => IpAddr::V6(entry.slot.address6?),
            };
            let route = self.here(Route { source: Some(source), ..Route::new(*subnet) });
            let plan = format!("{SUBNET}{subnet} from {source} by {}", entry.device);
            Some((plan, Step::Route { at: at.clone(), route }))
        };
        Ok(subnets.iter().filter_map(step).collect())
    }

    /// Lets what comes from the network through to what is behind this machine.
    pub(crate) fn let_through(&mut self, through: &Through<'_>) -> Result<()> {
        let plan = through::forward(Plan::new(THROUGH)?, self.owner.as_str(), through)?;
        self.host.apply(&plan)
    }

    /// A route in our table.
    const fn here(&self, route: Route) -> Route {
        match self.form {
            Form::Main => route,
            Form::Own(table) => Route { table, ..route },
        }
    }

    /// Keeps the way to the hub outside of the tunnel. In the main table: a route to its address alone, by the
    /// gateway that leads there without us; looked at before each connection, as that gateway may change.
    pub(crate) fn pin(&mut self, hub: IpAddr, tunnel: Option<LinkIndex>) -> Result<()> {
        if self.form != Form::Main {
            return Ok(());
        }
        let routes = self.host.kernel().here()?.hops()?;
        let hop = way(&routes, hub, tunnel);
        if self.pinned.is_some()
            && self.pinned == hop.map(|hop| (hub, hop))
            && is_there(&routes, hub)
        {
            return Ok(());
        }
        self.host.undo(WAY)?;
        self.pinned = None;
        // Nothing leads there, or it is this machine: connecting will tell.
        let Some(hop) = hop else { return Ok(()) };
        let Some(link) = self.host.kernel().here()?.link_by_index(hop.link)? else { return Ok(()) };
        let at = Place::here(LinkName::try_from(link.name)?);
        let route = Route { gateway: hop.gateway, ..Route::new(whole(hub)) };
        self.host.apply(&Plan::new(WAY)?.step(Step::Route { at, route }))?;
        self.pinned = Some((hub, hop));
        Ok(())
    }

    /// Undoes everything.
    pub(crate) fn undo(&mut self) -> Result<()> {
        self.pinned = None;
        let subnets = self.subnet_plans();
        self.host.undo_all(subnets.iter().map(String::as_str).chain([THROUGH, NETWORK, WAY]))
    }
}

fn whole(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn is_there(routes: &[Route], hub: IpAddr) -> bool {
    routes.iter().any(|route| route.is_ours() && route.destination == whole(hub))
}
