//! Addresses and routes of both ends, as plans that are undone at the end and after a kill.
//!
//! The network's own go with the TUN device, which goes with its process. What stays after a kill is a
//! peer's route to its hub, by the gateway that led there before; the next start finds it in the journal.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netyard_link::plan::{Host, Options, Owner, Place, Plan, Step};
use netyard_link::rtnetlink::{LinkIndex, LinkName, MAIN_TABLE, Route, RouteKind};
use netyard_link::{Features, Result};

use crate::addresses::Slot;

const NETWORK: &str = "network";
const WAY: &str = "way to the hub";

/// All of IPv4, and all of IPv6.
const HALVES: [&str; 2] = ["0.0.0.0/1", "128.0.0.0/1"];
const HALVES6: [&str; 2] = ["::/1", "8000::/1"];

/// What one hub or peer has made on this machine.
#[derive(Debug)]
pub(crate) struct Routes {
    host: Host,
    pinned: Option<(IpAddr, Hop)>,
}

/// By which link, and gateway, something is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hop {
    link: LinkIndex,
    gateway: Option<IpAddr>,
}

impl Routes {
    /// Opens the journal in `folder`, and undoes what a killed process of this owner has left.
    pub(crate) fn open(owner: &str, folder: &Path, ledger: &Path) -> Result<Self> {
        let mut host = Host::open(&Options {
            owner: Owner::new(owner)?,
            journal: folder.join("journal.json"),
            ledger: ledger.to_owned(),
            features: Features::probe()?,
        })?;
        if !host.plans().is_empty() {
            host.recover()?;
        }
        Ok(Self { host, pinned: None })
    }

    /// Gives a device its addresses, and leads the network to it; with `redirect` everything else too.
    pub(crate) fn enter(
        &mut self,
        device: &str,
        (network, network6): (Ipv4Net, Option<Ipv6Net>),
        slot: Slot,
        redirect: bool,
    ) -> Result<()> {
        let at = Place::here(LinkName::try_from(device.to_owned())?);
        let mut plan = Plan::new(NETWORK)?.step(match slot.far {
            Some(far) => Step::PointToPoint { at: at.clone(), local: slot.address, far },
            None => Step::Address { at: at.clone(), net: whole(IpAddr::V4(slot.address)) },
        });
        if let Some(address6) = slot.address6 {
            plan = plan.step(Step::Address { at: at.clone(), net: whole(IpAddr::V6(address6)) });
        }
        // Two halves win against a default route, and leave it as it is.
        let halves = |family: &[&str]| -> Vec<IpNet> {
            let halves = family.iter().filter_map(|half| half.parse().ok());
            if redirect { halves.collect() } else { Vec::new() }
        };
        for destination in [IpNet::V4(network)].into_iter().chain(halves(&HALVES)) {
            let source = slot.far.is_none().then_some(IpAddr::V4(slot.address));
            let gateway = slot.far.map(IpAddr::V4);
            let route = Route { gateway, source, ..Route::new(destination) };
            plan = plan.step(Step::Route { at: at.clone(), route });
        }
        if let Some(network6) = network6 {
            for destination in [IpNet::V6(network6)].into_iter().chain(halves(&HALVES6)) {
                let source = slot.address6.map(IpAddr::V6);
                let route = Route { source, ..Route::new(destination) };
                plan = plan.step(Step::Route { at: at.clone(), route });
            }
        }
        self.host.apply(&plan)
    }

    /// Takes the device's addresses and routes back.
    pub(crate) fn leave(&mut self) -> Result<()> {
        self.host.undo(NETWORK)
    }

    /// Keeps the way to the hub outside of the tunnel: a route to its address alone, by the gateway that
    /// leads there without us. Looked at before each connection, as that gateway may change.
    pub(crate) fn pin(&mut self, hub: IpAddr, tunnel: Option<LinkIndex>) -> Result<()> {
        let routes = self.host.kernel().here()?.routes(None)?;
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
        self.host.undo_all([NETWORK, WAY])
    }
}

fn whole(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn is_there(routes: &[Route], hub: IpAddr) -> bool {
    routes.iter().any(|route| route.is_ours() && route.destination == whole(hub))
}

/// The way to an address by the main table, without routes of ours and those into the tunnel.
fn way(routes: &[Route], to: IpAddr, tunnel: Option<LinkIndex>) -> Option<Hop> {
    let loopback = match to {
        IpAddr::V4(address) => address.is_loopback() || address == Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(address) => address.is_loopback(),
    };
    let is_local =
        routes.iter().any(|route| route.kind == RouteKind::Local && route.destination.addr() == to);
    if loopback || is_local {
        return None;
    }
    let fits = |route: &&Route| {
        route.table == MAIN_TABLE
            && route.kind == RouteKind::Unicast
            && !route.is_ours()
            && route.destination.contains(&to)
            && route.link.is_some()
            && route.link != tunnel
    };
    // The longest prefix, and of several the lowest metric.
    let order = |route: &&Route| {
        (route.destination.prefix_len(), std::cmp::Reverse(route.metric.unwrap_or(0)))
    };
    let best = routes.iter().filter(fits).max_by_key(order)?;
    Some(Hop { link: best.link?, gateway: best.gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLINK: LinkIndex = LinkIndex(2);
    const OTHER: LinkIndex = LinkIndex(3);
    const TUNNEL: LinkIndex = LinkIndex(9);

    fn route(destination: &str, gateway: Option<&str>, link: LinkIndex) -> Route {
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        Route { gateway, link: Some(link), protocol: 3, ..Route::new(destination.parse().unwrap()) }
    }

    fn hop(link: LinkIndex, gateway: Option<&str>) -> Option<Hop> {
        Some(Hop { link, gateway: gateway.map(|gateway| gateway.parse().unwrap()) })
    }

    #[test]
    fn the_way_is_that_of_the_kernel_without_us() {
        let to = "192.0.2.9".parse().unwrap();
        let mut routes = vec![
            route("0.0.0.0/0", Some("10.0.0.1"), UPLINK),
            Route { metric: Some(100), ..route("0.0.0.0/0", Some("10.0.0.2"), OTHER) },
            Route {
                protocol: Route::new(whole(to)).protocol,
                ..route("192.0.2.9/32", None, OTHER)
            },
            route("0.0.0.0/1", Some("10.1.1.4"), TUNNEL),
            Route { table: 99, ..route("192.0.2.0/24", None, OTHER) },
        ];
        assert_eq!(way(&routes, to, Some(TUNNEL)), hop(UPLINK, Some("10.0.0.1")));
        routes.push(route("192.0.2.0/24", None, OTHER));
        assert_eq!(way(&routes, to, Some(TUNNEL)), hop(OTHER, None), "a neighbour");
        assert_eq!(way(&routes, "2001:db8::1".parse().unwrap(), None), None);
    }

    #[test]
    fn there_is_no_way_to_this_machine() {
        let mut routes = vec![route("0.0.0.0/0", Some("10.0.0.1"), UPLINK)];
        assert_eq!(way(&routes, "127.0.0.1".parse().unwrap(), None), None);
        let local =
            Route { kind: RouteKind::Local, table: 255, ..route("10.0.0.5/32", None, UPLINK) };
        routes.push(local);
        assert_eq!(way(&routes, "10.0.0.5".parse().unwrap(), None), None);
    }
}
