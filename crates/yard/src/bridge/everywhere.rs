//! What a port of "every address" stands for: those of this machine, as the rules ask the kernel, but neither
//! loopback nor the virtual addresses of services.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netyard_engine::plumbing::KernelService;
use netyard_link::rtnetlink::{LOCAL_TABLE, Route, RouteKind, Rtnetlink};

use super::rules::unspecified;
use super::turns;

/// The addresses of this machine that are reached by a port of every address.
#[derive(Debug, Default)]
pub(super) struct Everywhere {
    local: Vec<IpNet>,
    virtual_addresses: BTreeSet<IpAddr>,
}

impl Everywhere {
    /// As it is now, with these services.
    pub(super) fn look<'a>(
        kernel: &mut Rtnetlink,
        services: impl Iterator<Item = &'a KernelService>,
    ) -> netyard_link::Result<Self> {
        let is_local = |route: &Route| route.table == LOCAL_TABLE && route.kind == RouteKind::Local;
        let routes = kernel.routes(None)?.into_iter().filter(is_local);
        Ok(Self {
            local: routes.map(|route| route.destination).collect(),
            virtual_addresses: services.flat_map(turns::addresses).collect(),
        })
    }

    /// Where what is sent there may be led from: the address itself, and every address if it is one of these.
    pub(super) fn fronts(&self, to: SocketAddr) -> impl Iterator<Item = SocketAddr> {
        let any = SocketAddr::new(unspecified(to.ip()), to.port());
        std::iter::once(to).chain(self.has(to.ip()).then_some(any))
    }

    fn has(&self, address: IpAddr) -> bool {
        !address.is_loopback()
            && !self.virtual_addresses.contains(&address)
            && self.local.iter().any(|net| net.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_this_machines_but_loopback_and_virtual_ones() {
        let everywhere = Everywhere {
            local: ["127.0.0.0/8", "198.51.100.0/24", "192.168.1.253/32", "2001:db8::1/128"]
                .map(|net| net.parse().unwrap())
                .into(),
            virtual_addresses: BTreeSet::from(["192.168.1.253".parse().unwrap()]),
        };
        for (to, fronts) in [
            ("198.51.100.7:53", &["198.51.100.7:53", "0.0.0.0:53"][..]),
            ("[2001:db8::1]:53", &["[2001:db8::1]:53", "[::]:53"]),
            ("127.0.0.1:53", &["127.0.0.1:53"]),
            ("192.168.1.253:53", &["192.168.1.253:53"]),
            ("203.0.113.1:53", &["203.0.113.1:53"]),
            ("[2001:db8::2]:53", &["[2001:db8::2]:53"]),
        ] {
            let found = everywhere.fronts(to.parse().unwrap());
            assert_eq!(found.map(|front| front.to_string()).collect::<Vec<_>>(), fronts, "{to}");
        }
    }
}
