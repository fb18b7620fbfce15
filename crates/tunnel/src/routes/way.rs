//! The way to the hub beside the tunnel, by the main table.

use std::net::{IpAddr, Ipv4Addr};

use netyard_link::rtnetlink::{LinkIndex, MAIN_TABLE, Route, RouteKind};

/// By which link, and gateway, something is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) link: LinkIndex,
    pub(super) gateway: Option<IpAddr>,
}

/// The way to an address by the main table, without routes of ours and those into the tunnel.
pub(super) fn way(routes: &[Route], to: IpAddr, tunnel: Option<LinkIndex>) -> Option<Hop> {
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
    use super::super::whole;
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
