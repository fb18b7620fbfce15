//! The network's own names: guests, services, gateway and host, the records of its configuration, and the
//! way back from their addresses.
//!
//! Beside the records they are what is plugged in at the moment of the question, so nothing has to be kept in
//! step.

use std::net::IpAddr;

use netyard_wire::dns::{Data, Fact, Hosts, Name, Srv, Zone};

use super::records::Records;
use crate::config::Config;
use crate::guests::Guests;
use crate::service::{Service, Services};

/// The name of the gateway, which serves the zone.
const GATEWAY: &str = "gateway";
const HOST: &str = "host";

/// The zones of a network.
pub(super) fn zone(config: &Config) -> Zone {
    let (four, six) = (config.subnet4, config.subnet6);
    let subnets =
        [(four.network().into(), four.prefix_len()), (six.network().into(), six.prefix_len())];
    Zone::new(&config.zone, GATEWAY, subnets)
}

/// Who is in them.
pub(super) struct Members<'a> {
    pub(super) config: &'a Config,
    pub(super) guests: &'a Guests,
    pub(super) services: &'a Services,
    pub(super) records: &'a Records,
}

impl Members<'_> {
    /// Where the service of a name like `_web._tcp` is (RFC 2782), or `_http._tcp.web` of one that speaks
    /// HTTP for sure; nothing of a name in front of which there are some. `None`: there is no such name.
    fn place(&self, host: &str) -> Option<Vec<Fact>> {
        let labels: Vec<&str> = host.split('.').collect();
        let transport = |service: &Service| format!("_{}", service.protocol());
        let mut all = self.services.iter().map(|(_, service)| service);
        let named = |name: &str| self.services.get(self.services.id_of(name)?);
        let service = match labels.as_slice() {
            [protocol] => {
                return all.any(|it| transport(it) == *protocol).then(Vec::new);
            }
            [name, protocol] if name.starts_with('_') && protocol.starts_with('_') => {
                named(name.strip_prefix('_')?).filter(|it| transport(it) == *protocol)?
            }
            ["_tcp", name] => {
                return named(name).filter(|it| it.is_per_request()).map(|_| Vec::new());
            }
            ["_http", "_tcp", name] => named(name).filter(|it| it.is_per_request())?,
            _ => return None,
        };
        let target: Name = format!("{}.{}", service.name(), self.config.zone).parse().ok()?;
        let srv = Srv { priority: 0, weight: 0, port: service.port(), target };
        Some(vec![Fact::of(Data::Srv(srv))])
    }
}

impl Hosts for Members<'_> {
    /// A service goes before an instance of its name.
    fn addresses(&self, host: &str) -> Option<Vec<IpAddr>> {
        let Self { config, guests, services, .. } = self;
        let own: Option<[IpAddr; 2]> = match host {
            GATEWAY => Some([config.gateway4().into(), config.gateway6().into()]),
            HOST => Some([config.host4().into(), config.host6().into()]),
            host => services.id_of(host).and_then(|id| Some(services.get(id)?.addresses())),
        };
        if let Some(addresses) = own {
            return Some(addresses.to_vec());
        }
        let addresses: Vec<IpAddr> = guests
            .by_name(host)
            .into_iter()
            .flat_map(|guest| [guest.address4.into(), guest.address6.into()])
            .collect();
        (!addresses.is_empty()).then_some(addresses)
    }

    /// Who is there goes before what a record says of the addresses of its name.
    fn facts(&self, host: &str) -> Option<Vec<Fact>> {
        let Some(known) = self.records.within(host) else { return self.place(host) };
        let is_there = self.addresses(host).is_some();
        let about_addresses =
            |fact: &Fact| matches!(fact.data, Data::A(_) | Data::Aaaa(_) | Data::Cname(_));
        let own = known.iter().filter(|fact| !is_there || !about_addresses(fact)).cloned();
        Some(own.chain(self.place(host).unwrap_or_default()).collect())
    }

    fn elsewhere(&self, name: &Name) -> Option<Vec<Fact>> {
        self.records.elsewhere(name).map(<[Fact]>::to_vec)
    }

    fn host(&self, address: IpAddr) -> Option<String> {
        let Self { config, guests, services, records } = self;
        let host = if config.is_gateway(address) {
            GATEWAY
        } else if config.is_host(address) {
            HOST
        } else if let Some(guest) = guests.by_address(address) {
            &guest.name
        } else if let Some(service) = services.by_address(address) {
            services.get(service)?.name()
        } else {
            records.host(address)?
        };
        Some(host.to_owned())
    }
}
