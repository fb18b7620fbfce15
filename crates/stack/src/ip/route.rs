//! Routes: the longest prefix wins, and among equals the one that was given first.

use std::net::IpAddr;

use ipnet::IpNet;

use super::NicIndex;

/// Most routes; further ones are refused.
const MAX_ROUTES: usize = 1024;

/// Where packets for a prefix go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) prefix: IpNet,
    pub(crate) nic: NicIndex,
    /// `None`: the destination is on the link.
    pub(crate) gateway: Option<IpAddr>,
}

/// The table, longest prefixes first.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    sorted: Vec<Route>,
}

impl Routes {
    /// False if the table is full. A route that is there already stays as it is.
    pub(crate) fn add(&mut self, route: Route) -> bool {
        if self.sorted.contains(&route) {
            return true;
        }
        if self.sorted.len() >= MAX_ROUTES {
            return false;
        }
        let len = route.prefix.prefix_len();
        let place = self.sorted.partition_point(|other| other.prefix.prefix_len() >= len);
        self.sorted.insert(place, route);
        true
    }

    /// Takes out the routes that `remove` names; true if there were any.
    pub(crate) fn remove(&mut self, mut remove: impl FnMut(&Route) -> bool) -> bool {
        let before = self.sorted.len();
        self.sorted.retain(|route| !remove(route));
        self.sorted.len() != before
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Route> {
        self.sorted.iter()
    }

    /// The route to `destination`, only of `nic` if one is given.
    pub(crate) fn find(&self, destination: IpAddr, nic: Option<NicIndex>) -> Option<&Route> {
        self.sorted.iter().find(|route| {
            route.prefix.contains(&destination) && nic.is_none_or(|nic| nic == route.nic)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_in_whatever_order_routes_come() {
        let (one, other) = (NicIndex(0), NicIndex(1));
        let route = |prefix: &str, nic, gateway: Option<&str>| Route {
            prefix: prefix.parse().unwrap(),
            nic,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        };
        let mut routes = Routes::default();
        // The order in which the original would have shadowed the on-link network.
        let default = route("0.0.0.0/0", one, Some("192.168.1.1"));
        let link = route("192.168.1.0/24", one, None);
        let twin = route("192.168.1.0/24", other, None);
        for route in [default, link, twin, link] {
            assert!(routes.add(route));
        }
        let find = |to: &str, nic| routes.find(to.parse().unwrap(), nic).copied();
        assert_eq!(find("192.168.1.7", None), Some(link));
        assert_eq!(find("192.168.1.7", Some(other)), Some(twin));
        assert_eq!(find("8.8.8.8", None), Some(default));
        assert_eq!(find("8.8.8.8", Some(other)), None);
        assert_eq!(find("fd00::1", None), None);
        assert_eq!(routes.sorted.len(), 3);
        assert!(routes.remove(|route| route.nic == other));
        assert!(!routes.remove(|route| route.nic == other));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut routes = Routes::default();
        let prefix = |n: u32| IpNet::new(IpAddr::from(n.to_be_bytes()), 32).unwrap();
        let added = (0..2000)
            .filter(|n| routes.add(Route { prefix: prefix(*n), nic: NicIndex(0), gateway: None }))
            .count();
        assert_eq!(added, MAX_ROUTES);
    }
}
